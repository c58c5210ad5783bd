//! From the arguments of a run to its optimizer.

use super::optimizer_name::{OptimizerName, settings};
use super::{Adafactor, AdamW, Lion, Optimizer, ParamGroup, Sgd, TrainingArguments};
use crate::Result;
use crate::model::MaskedLm;

/// Creates the optimizer that the arguments describe.
pub(super) fn optimizer(
    args: &TrainingArguments,
    model: &MaskedLm,
    groups: &[ParamGroup],
) -> Result<Box<dyn Optimizer>> {
    super::param_group::check(groups, model)?;
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
            for (name, value) in settings(args.optim, &args.optim_args)? {
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
            for (name, value) in settings(args.optim, &args.optim_args)? {
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
