//! Settings that are one of several: by their own type, or by the name that transformers has for them.

use std::fmt::Display;

use serde::Serialize;

use crate::{Error, Result};

/// Returns the value of `all` whose name is `name`; `setting` is the setting's name, for the error.
pub(super) fn by_name<T: Serialize + Copy>(
    setting: &'static str,
    name: &str,
    all: &[T],
) -> Result<T> {
    let found = all.iter().find(|value| name_of(*value) == name);
    found.copied().ok_or_else(|| {
        let names: Vec<String> = all.iter().map(name_of).collect();
        Error::argument(
            setting,
            format!("there is no {name:?}; choose one of {}", names.join(", ")),
        )
    })
}

/// Returns the name under which `value` is saved.
pub(super) fn name_of<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// An invalid choice. It is reported when the arguments are checked, because the methods that set it return the
/// arguments.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) name: &'static str,
    pub(super) message: String,
}

/// Sets `setting` to a choice, or records the error.
pub(super) fn choose<T, C: TryInto<T, Error: Display>>(
    choice: C,
    setting: (&'static str, &mut T),
    problems: &mut Vec<Problem>,
) {
    let (name, value) = setting;
    match choice.try_into() {
        Ok(choice) => *value = choice,
        Err(error) => {
            // An error of our own begins with a name, and the setting's is told already.
            let text = error.to_string();
            let message = match text.split_once(": ") {
                Some((first, rest)) if !first.contains(' ') => rest.to_owned(),
                _ => text,
            };
            problems.push(Problem { name, message });
        }
    }
}
