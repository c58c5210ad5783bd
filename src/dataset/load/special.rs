//! NaN and the infinities in JSON, as Python writes them although JSON has none.

use std::borrow::Cow;

/// Returns `json` with NaN and the infinities as decimal numbers of the same length, for readers of types alone.
pub(super) fn as_numbers(json: &[u8]) -> Cow<'_, [u8]> {
    replaced(json, |word| match word {
        b"NaN" => b"0.5",
        b"Infinity" => b"0.500000",
        _ => b"-0.500000",
    })
}

/// Returns `json` with NaN and the infinities as texts, which the reader of a decimal column takes for the numbers they
/// name.
pub(super) fn as_strings(json: &[u8]) -> Cow<'_, [u8]> {
    replaced(json, |word| match word {
        b"NaN" => b"\"NaN\"",
        b"Infinity" => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    })
}

/// Replaces such words outside strings, where they are values.
fn replaced(json: &[u8], by: impl Fn(&[u8]) -> &'static [u8]) -> Cow<'_, [u8]> {
    let may_have = memchr::memmem::find(json, b"NaN").is_some()
        || memchr::memmem::find(json, b"Infinity").is_some();
    if !may_have {
        return Cow::Borrowed(json);
    }
    let mut out = Vec::with_capacity(json.len() + json.len() / 8);
    let mut at = 0;
    while at < json.len() {
        let from = at;
        match json[at] {
            b'"' => {
                at += 1;
                while at < json.len() && json[at] != b'"' {
                    at += 1 + usize::from(json[at] == b'\\');
                }
                at = (at + 1).min(json.len());
                out.extend_from_slice(&json[from..at]);
            }
            b'N' | b'I' | b'-' => {
                let word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-+._".contains(byte);
                at += json[at..].iter().take_while(|byte| word(byte)).count();
                let word = &json[from..at];
                let is_special = matches!(word, b"NaN" | b"Infinity" | b"-Infinity");
                out.extend_from_slice(if is_special { by(word) } else { word });
            }
            byte => {
                out.push(byte);
                at += 1;
                // What follows a letter or digit is no word of its own.
                if byte.is_ascii_alphanumeric() {
                    let rest = json[at..]
                        .iter()
                        .take_while(|byte| byte.is_ascii_alphanumeric());
                    let end = at + rest.count();
                    out.extend_from_slice(&json[at..end]);
                    at = end;
                }
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_outside_strings_are_replaced() {
        let json = br#"{"NaN": "NaN \" Infinity", "a": [NaN,Infinity , -Infinity], "b": -1, "c": xNaN, "d": NaNs}"#;
        let text = |bytes: Cow<[u8]>| String::from_utf8(bytes.into_owned()).unwrap();
        assert_eq!(
            text(as_strings(json)),
            r#"{"NaN": "NaN \" Infinity", "a": ["NaN","Infinity" , "-Infinity"], "b": -1, "c": xNaN, "d": NaNs}"#
        );
        let numbers = text(as_numbers(json));
        assert_eq!(numbers.len(), json.len());
        assert!(numbers.contains("[0.5,0.500000 , -0.500000]"), "{numbers}");
        assert!(matches!(as_numbers(b"{\"a\": 1}"), Cow::Borrowed(_)));
        for json in [&b"NaN"[..], b"\"NaN", b"\"NaN\\", b"-NaN", b"[Infinity"] {
            let _ = (as_numbers(json), as_strings(json));
        }
    }
}
