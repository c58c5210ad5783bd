//! The memory that a pickle would need, computed without building any of it.
//!
//! The pickle reader copies an object whenever a later part refers back to it, and recurses into nested objects, so a
//! few hundred bytes can ask for all memory or all of the stack. This module walks through the instructions that the
//! reader supports and keeps sizes and depths in place of objects.

/// A pickle may ask for this many times its own length, and for [`AT_LEAST`] in any case.
const MOST_TIMES: u64 = 64;
const AT_LEAST: u64 = 1 << 20;
/// Honest state dicts are a handful of levels deep.
const DEEPEST: u32 = 100;

/// An object: its parts and bytes, and the levels below it.
#[derive(Clone, Copy)]
struct Size {
    parts: u64,
    depth: u32,
}

const SCALAR: Size = Size { parts: 1, depth: 0 };

/// Checks that the pickle at the start of `bytes` can be read at a cost in proportion to its length, and returns that
/// length.
///
/// # Errors
/// A description of the problem, as the end of a sentence.
pub(super) fn check(bytes: &[u8]) -> Result<usize, String> {
    let mut walk = Walk {
        bytes,
        at: 0,
        stack: Vec::new(),
        memo: Default::default(),
        cost: 0,
    };
    while walk.step()? {}
    Ok(walk.at)
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// `None` is a mark.
    stack: Vec<Option<Size>>,
    memo: std::collections::HashMap<u32, Size>,
    /// Everything that was built or copied so far.
    cost: u64,
}

impl Walk<'_> {
    /// Carries out one instruction; false after the last.
    fn step(&mut self) -> Result<bool, String> {
        match self.take(1)?[0] {
            0x80 => drop(self.take(1)?),
            b'c' => {
                let mut length = 0;
                for _ in 0..2 {
                    let rest = &self.bytes[self.at..];
                    let end = memchr::memchr(b'\n', rest).ok_or("it ends in a name")?;
                    length += end as u64;
                    self.at += end + 1;
                }
                self.push(1 + length, 0)?;
            }
            b'K' => self.scalar(1)?,
            b'M' => self.scalar(2)?,
            b'J' => self.scalar(4)?,
            b'G' => self.scalar(8)?,
            b'N' | 0x88 | 0x89 => self.scalar(0)?,
            0x8a => {
                let length = self.take(1)?[0];
                // The reader takes numbers of at most 64 bits.
                if length > 8 {
                    return Err(format!("it contains a number of {length} bytes"));
                }
                self.scalar(usize::from(length))?;
            }
            b'X' => {
                let length = self.number(4)?;
                self.take(length as usize)?;
                self.push(1 + u64::from(length), 0)?;
            }
            b')' | b']' | b'}' => self.push(1, 0)?,
            b'd' => {
                // The reader knows this one as an empty dict.
                self.push(1, 0)?;
            }
            b'(' => self.stack.push(None),
            b't' => {
                let parts = self.since_mark()?;
                self.push(parts.parts + 1, parts.depth + 1)?;
            }
            0x85 => self.group(1)?,
            0x86 => self.group(2)?,
            0x87 => self.group(3)?,
            b'R' | b'b' | 0x81 => self.group(2)?,
            b'Q' => self.group(1)?,
            b'a' => self.put_into(1)?,
            b's' => self.put_into(2)?,
            b'e' | b'u' => {
                let parts = self.since_mark()?;
                self.stack.push(Some(parts));
                self.put_into(1)?;
            }
            b'q' | b'r' => {
                let wide = self.bytes[self.at - 1] == b'r';
                let place = self.number(if wide { 4 } else { 1 })?;
                let top = *self
                    .stack
                    .last()
                    .ok_or("it stores a value that does not exist")?;
                let top = top.unwrap_or(SCALAR);
                self.spend(top.parts)?;
                self.memo.insert(place, top);
            }
            b'h' | b'j' => {
                let wide = self.bytes[self.at - 1] == b'j';
                let place = self.number(if wide { 4 } else { 1 })?;
                let noted = *self
                    .memo
                    .get(&place)
                    .ok_or("it refers to a value that was never stored")?;
                self.push(noted.parts, noted.depth)?;
            }
            b'.' => return Ok(false),
            other => return Err(format!("it contains the unknown instruction {other:#04x}")),
        }
        Ok(true)
    }

    fn take(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("it ends in the middle of an instruction")?;
        self.at += length;
        Ok(taken)
    }

    fn number(&mut self, length: usize) -> Result<u32, String> {
        let bytes = self.take(length)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn scalar(&mut self, length: usize) -> Result<(), String> {
        self.take(length)?;
        self.push(1, 0)
    }

    fn spend(&mut self, parts: u64) -> Result<(), String> {
        self.cost = self.cost.saturating_add(parts);
        let most = (self.bytes.len() as u64)
            .saturating_mul(MOST_TIMES)
            .max(AT_LEAST);
        match self.cost > most {
            true => Err("it would expand far beyond its own size".to_owned()),
            false => Ok(()),
        }
    }

    fn push(&mut self, parts: u64, depth: u32) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("it is more than {DEEPEST} levels deep"));
        }
        self.spend(parts)?;
        self.stack.push(Some(Size { parts, depth }));
        Ok(())
    }

    fn pop(&mut self) -> Result<Size, String> {
        let top = self
            .stack
            .pop()
            .ok_or("it uses a value that does not exist")?;
        Ok(top.unwrap_or(SCALAR))
    }

    /// Makes one object of the last `count`.
    fn group(&mut self, count: usize) -> Result<(), String> {
        let mut group = SCALAR;
        for _ in 0..count {
            let part = self.pop()?;
            group.parts = group.parts.saturating_add(part.parts);
            group.depth = group.depth.max(part.depth + 1);
        }
        if group.depth > DEEPEST {
            return Err(format!("it is more than {DEEPEST} levels deep"));
        }
        // Only moved, which costs nothing.
        self.spend(1)?;
        self.stack.push(Some(group));
        Ok(())
    }

    /// Puts the last `count` objects into the one before them.
    fn put_into(&mut self, count: usize) -> Result<(), String> {
        self.group(count)?;
        let parts = self.pop()?;
        let mut into = self.pop()?;
        into.parts = into.parts.saturating_add(parts.parts);
        into.depth = into.depth.max(parts.depth);
        if into.depth > DEEPEST {
            return Err(format!("it is more than {DEEPEST} levels deep"));
        }
        self.stack.push(Some(into));
        Ok(())
    }

    /// Takes all objects down to the last mark.
    fn since_mark(&mut self) -> Result<Size, String> {
        let mut parts = Size { parts: 0, depth: 0 };
        loop {
            match self
                .stack
                .pop()
                .ok_or("it returns to a mark that does not exist")?
            {
                None => return Ok(parts),
                Some(part) => {
                    parts.parts = parts.parts.saturating_add(part.parts);
                    parts.depth = parts.depth.max(part.depth);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_pickle_passes_and_its_length_is_known() {
        // {"a": (1, "text")}, noted and referred back to as writers do it.
        let pickle =
            b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01X\x04\x00\x00\x00textq\x02\x86q\x03s.rest";
        assert_eq!(check(pickle), Ok(pickle.len() - 4));
        assert!(check(&pickle[..20]).unwrap_err().contains("ends in"));
    }

    #[test]
    fn doubling_by_reference_is_refused_before_allocating() {
        for (grow, last) in [
            (&b"h\x00h\x00\x86q\x00"[..], &b"."[..]),
            (b"(h\x00h\x00h\x00h\x00tq\x00", b"."),
            (b"]q\x00h\x00a", b"."),
        ] {
            let mut pickle =
                b"\x80\x02X\x20\x00\x00\x00abcdefghijklmnopqrstuvwxyzabcdefq\x00".to_vec();
            for _ in 0..80 {
                pickle.extend(grow);
            }
            pickle.extend(last);
            let started = std::time::Instant::now();
            let result = check(&pickle);
            assert!(started.elapsed().as_secs_f64() < 0.1);
            if grow.len() > 6 {
                let error = result.unwrap_err();
                assert!(
                    error.contains("expand") || error.contains("deep"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn depth_and_lengths_are_bounded() {
        let mut deep = b"\x80\x02)".to_vec();
        deep.extend(std::iter::repeat_n(0x85, 100_000));
        deep.push(b'.');
        assert!(check(&deep).unwrap_err().contains("levels deep"));
        assert!(check(b"\x80\x02X\xff\xff\xff\xffabc.").is_err());
        assert!(check(b"\x80\x02\x8a\xff.").is_err());
        assert!(check(b"\x80\x02t.").is_err());
        assert!(check(b"").is_err());
    }
}
