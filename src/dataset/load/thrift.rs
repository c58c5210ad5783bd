//! Thrift's compact protocol, in which Parquet files describe themselves: as much of it as is needed to look at a description
//! before the library that reads it allocates what it says.

/// The most structs, lists and maps within each other.
const DEEPEST: usize = 16;

pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;
pub(super) const INTEGER: u8 = 5;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;

/// Reads Thrift's compact protocol, in which headers are written. `None` is what is incomplete or no such thing.
pub(super) struct Thrift<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

/// Reads or skips a field of a number and a kind.
pub(super) type Field<'f, 'a> = &'f mut dyn FnMut(&mut Thrift<'a>, i64, u8) -> Option<()>;

impl<'a> Thrift<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn integer(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Hands each field of a struct to `field`.
    pub(super) fn fields(&mut self, depth: usize, field: Field<'_, 'a>) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        let mut last = 0;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                return Some(());
            }
            last = match byte >> 4 {
                0 => self.integer()?,
                step => last.wrapping_add(i64::from(step)),
            };
            field(self, last, byte & 0xf)?;
        }
    }

    pub(super) fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            TRUE | FALSE => Some(()),
            3 => self.byte().map(drop),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let length = self.varint()?;
                self.pass(usize::try_from(length).ok()?)
            }
            LIST | 10 => {
                let (kind, count) = self.list()?;
                for _ in 0..count {
                    self.skip_element(kind, depth)?;
                }
                Some(())
            }
            11 => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                for _ in 0..count {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 0xf, depth)?;
                }
                Some(())
            }
            STRUCT => self.fields(depth + 1, &mut |thrift, _, kind| {
                thrift.skip(kind, depth + 1)
            }),
            _ => None,
        }
    }

    /// Returns the kind and the number of the elements of the list that begins here.
    pub(super) fn list(&mut self) -> Option<(u8, u64)> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        Some((head & 0xf, count))
    }

    /// Skips an element of a list or map, of which each takes a byte at least.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            _ if depth > DEEPEST => None,
            TRUE | FALSE => self.pass(1),
            _ => self.skip(kind, depth + 1),
        }
    }

    fn pass(&mut self, length: usize) -> Option<()> {
        self.at = self
            .at
            .checked_add(length)
            .filter(|&end| end <= self.bytes.len())?;
        Some(())
    }
}
