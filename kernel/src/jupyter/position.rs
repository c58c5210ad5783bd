//! Converts positions in code: the protocol counts characters, Rust counts bytes.

/// Returns the byte at which a character begins.
pub fn to_byte(code: &str, character: usize) -> usize {
    code.char_indices()
        .nth(character)
        .map_or(code.len(), |(byte, _)| byte)
}

/// Returns the number of the character that begins at a byte.
pub fn to_character(code: &str, byte: usize) -> usize {
    code.char_indices().take_while(|(at, _)| *at < byte).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_and_bytes_are_converted() {
        let code = "é𝄞a";
        assert_eq!([0, 1, 2, 3, 9].map(|at| to_byte(code, at)), [0, 2, 6, 7, 7]);
        assert_eq!([0, 2, 6, 7].map(|at| to_character(code, at)), [0, 1, 2, 3]);
    }
}
