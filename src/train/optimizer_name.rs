//! Optimizers by the names that transformers has for them.

use serde::{Deserialize, Serialize};

use super::{Adafactor, AdamW, Lion, Optimizer, ParamGroup, Sgd, TrainingArguments, choice};
use crate::model::MaskedLm;
use crate::{Error, Result};

/// The optimizers that arguments can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OptimizerName {
    /// [`AdamW`].
    #[default]
    #[serde(rename = "adamw_torch")]
    AdamW,
    /// [`Adafactor`], with the learning rate of the schedule.
    #[serde(rename = "adafactor")]
    Adafactor,
    /// [`Lion`], with `adam_beta1` and `adam_beta2`.
    #[serde(rename = "lion_32bit")]
    Lion,
    /// [`Sgd`]; `optim_args` gives it momentum.
    #[serde(rename = "sgd")]
    Sgd,
}

impl OptimizerName {
    /// Returns the name that transformers has for it.
    pub fn name(self) -> String {
        choice::name_of(&self)
    }

    /// The settings that `optim_args` may give it.
    fn settings(self) -> &'static [&'static str] {
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
pub(super) fn settings(args: &TrainingArguments) -> Result<Vec<(String, f64)>> {
    let refuse = |message: String| Error::argument("optim_args", message);
    let read = |part: &str| {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| refuse(format!("{part:?} is not of the form name=value")))?;
        let (name, value) = (name.trim(), value.trim());
        if !args.optim.settings().contains(&name) {
            let known = match args.optim.settings() {
                [] => "there are none".to_owned(),
                known => format!("there are {}", known.join(", ")),
            };
            let optimizer = args.optim.name();
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
    let parts = args.optim_args.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).map(read).collect()
}

/// Makes the optimizer that the arguments describe.
pub(super) fn optimizer(
    args: &TrainingArguments,
    model: &MaskedLm,
    groups: &[ParamGroup],
) -> Result<Box<dyn Optimizer>> {
    let mut groups = groups.to_vec();
    if let Some(decay) = args.layerwise_lr_decay {
        groups.extend(ParamGroup::layerwise(model, decay));
    }
    let (decay, beta1, beta2) = (args.weight_decay, args.adam_beta1, args.adam_beta2);
    Ok(match args.optim {
        OptimizerName::AdamW => {
            let adamw = AdamW::new(model).betas(beta1, beta2).eps(args.adam_epsilon);
            Box::new(adamw.param_groups(groups).weight_decay(decay))
        }
        OptimizerName::Lion => {
            let lion = Lion::new(model).betas(beta1, beta2);
            Box::new(lion.param_groups(groups).weight_decay(decay))
        }
        OptimizerName::Sgd => {
            let mut sgd = Sgd::new(model);
            for (name, value) in settings(args)? {
                sgd = match name.as_str() {
                    "momentum" => sgd.momentum(value),
                    "dampening" => sgd.dampening(value),
                    _ => sgd.nesterov(value != 0.0),
                };
            }
            Box::new(sgd.param_groups(groups).weight_decay(decay))
        }
        OptimizerName::Adafactor => {
            let adafactor = Adafactor::new(model);
            let mut adafactor = adafactor.scale_parameter(false).relative_step(false);
            for (name, value) in settings(args)? {
                adafactor = match name.as_str() {
                    "scale_parameter" => adafactor.scale_parameter(value != 0.0),
                    "relative_step" => adafactor.relative_step(value != 0.0),
                    "warmup_init" => adafactor.warmup_init(value != 0.0),
                    "clip_threshold" => adafactor.clip_threshold(value),
                    "decay_rate" => adafactor.decay_rate(value),
                    _ => adafactor.beta1(value),
                };
            }
            Box::new(adafactor.param_groups(groups).weight_decay(decay))
        }
    })
}
