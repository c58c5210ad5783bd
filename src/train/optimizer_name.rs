//! Optimizers by the names that transformers has for them.

use serde::{Deserialize, Serialize};

use super::choice;
use crate::{Error, Result};

/// The optimizers that arguments can name.
///
/// ```
/// use cloze::train::{OptimizerName, TrainingArguments};
///
/// let by_name = TrainingArguments::new("out").optim("adafactor");
/// assert_eq!(by_name.optim, OptimizerName::Adafactor);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OptimizerName {
    /// [`AdamW`](super::AdamW).
    #[default]
    #[serde(
        rename = "adamw_torch",
        alias = "adamw",
        alias = "adamw_torch_fused",
        alias = "adamw_hf"
    )]
    AdamW,
    /// [`Adafactor`](super::Adafactor), with the learning rate of the schedule.
    #[serde(rename = "adafactor")]
    Adafactor,
    /// [`Lion`](super::Lion), with `adam_beta1` and `adam_beta2`.
    #[serde(rename = "lion_32bit", alias = "lion")]
    Lion,
    /// [`Sgd`](super::Sgd); `optim_args` gives it momentum.
    #[serde(rename = "sgd")]
    Sgd,
}

impl OptimizerName {
    /// Returns the name that transformers has for it.
    pub fn name(self) -> String {
        choice::name_of(&self)
    }

    /// Returns the settings that `optim_args` may give it.
    pub(super) fn settings(self) -> &'static [&'static str] {
        match self {
            Self::AdamW | Self::Lion => &[],
            Self::Sgd => &["momentum", "dampening", "nesterov"],
            Self::Adafactor => &[
                "scale_parameter",
                "relative_step",
                "warmup_init",
                "clip_threshold",
                "decay_rate",
                "beta1",
            ],
        }
    }
}

impl TryFrom<&str> for OptimizerName {
    type Error = Error;

    /// Returns the optimizer that transformers calls `name`; "adamw" and "lion" without more serve too.
    fn try_from(name: &str) -> Result<Self> {
        let name = match name {
            "adamw" | "adamw_torch_fused" | "adamw_hf" => "adamw_torch",
            "lion" => "lion_32bit",
            name => name,
        };
        let all = [Self::AdamW, Self::Adafactor, Self::Lion, Self::Sgd];
        choice::by_name("optim", name, &all)
    }
}

/// Reads `optim_args`: names, and numbers (1 and 0 for true and false).
pub(super) fn settings(optim: OptimizerName, args: &str) -> Result<Vec<(String, f64)>> {
    let refuse = |message: String| Error::argument("optim_args", message);
    let read = |part: &str| {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| refuse(format!("{part:?} is not of the form name=value")))?;
        let (name, value) = (name.trim(), value.trim());
        if !optim.settings().contains(&name) {
            let known = match optim.settings() {
                [] => "there are none".to_owned(),
                known => format!("there are {}", known.join(", ")),
            };
            let optimizer = optim.name();
            return Err(refuse(format!(
                "{optimizer} has no setting {name:?}; {known}"
            )));
        }
        let number = match value.to_ascii_lowercase().as_str() {
            "true" => Some(1.0),
            "false" => Some(0.0),
            value => value.parse().ok().filter(|x: &f64| x.is_finite()),
        };
        let number =
            number.ok_or_else(|| refuse(format!("{name} can't be {value:?}; give a number")))?;
        Ok((name.to_owned(), number))
    };
    let parts = args.split(',').map(str::trim);
    let settings: Vec<(String, f64)> = parts
        .filter(|part| !part.is_empty())
        .map(read)
        .collect::<Result<_>>()?;
    let value = |name: &str| {
        let mut named = settings.iter().rev().filter(|(known, _)| known == name);
        named.next().map_or(0.0, |(_, value)| *value)
    };
    if let Some((name, number)) = settings
        .iter()
        .find(|(name, number)| *number < 0.0 && name != "decay_rate")
    {
        return Err(refuse(format!(
            "{name} can't be {number}; it must not be negative"
        )));
    }
    if value("nesterov") != 0.0 && (value("momentum") == 0.0 || value("dampening") != 0.0) {
        return Err(refuse(
            "nesterov needs momentum, and no dampening; set momentum=0.9, for instance".to_owned(),
        ));
    }
    if value("warmup_init") != 0.0 && value("relative_step") == 0.0 {
        return Err(refuse(
            "warmup_init needs relative_step; set relative_step=true, too".to_owned(),
        ));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictory_settings_are_reported() {
        let said = |optim, args: &str| settings(optim, args).unwrap_err().to_string();
        assert!(said(OptimizerName::Sgd, "nesterov=true").contains("momentum"));
        assert!(said(OptimizerName::Sgd, "momentum=-0.1").contains("-0.1"));
        assert!(said(OptimizerName::Adafactor, "warmup_init=1").contains("relative_step"));
        assert!(said(OptimizerName::AdamW, "momentum=1").contains("there are none"));
        let read = settings(OptimizerName::Sgd, "momentum=0.9, nesterov=True").unwrap();
        assert_eq!(read.len(), 2);
    }
}
