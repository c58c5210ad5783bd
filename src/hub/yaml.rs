//! Writes strings into the YAML headers of model and dataset cards, the way huggingface_hub and datasets do.

/// Words that YAML reads as something other than a string.
const SPECIAL: [&str; 7] = ["null", "true", "false", "yes", "no", "on", "off"];

/// Returns `text` as a YAML scalar that is read back as the same string, quoted only where necessary.
pub(crate) fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || "_-./[]*()".contains(c))
        && !SPECIAL.contains(&text.to_lowercase().as_str());
    if is_plain {
        return text.to_owned();
    }
    // JSON's strings are YAML's double-quoted ones.
    if text.chars().any(char::is_control) {
        return serde_json::Value::from(text).to_string();
    }
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_where_yaml_needs_it() {
        for (text, expected) in [
            ("plain_1", "plain_1"),
            ("owner/name-1.0", "owner/name-1.0"),
            ("null", "'null'"),
            ("Yes", "'Yes'"),
            ("no", "'no'"),
            ("12", "'12'"),
            ("it's: a", "'it''s: a'"),
            ("a \"b\"", "'a \"b\"'"),
            ("", "''"),
            ("- a", "'- a'"),
            ("a\nb", "\"a\\nb\""),
        ] {
            assert_eq!(scalar(text), expected);
        }
    }
}
