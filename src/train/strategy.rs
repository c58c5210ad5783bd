//! When something happens during training.

use serde::{Deserialize, Serialize};

use super::choice;
use crate::{Error, Result};

/// When something happens during training, as in transformers.
///
/// ```
/// use cloze::prelude::*;
///
/// let by_name = TrainingArguments::new("out").eval_strategy("epoch");
/// assert_eq!(by_name.eval_strategy, IntervalStrategy::Epoch);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalStrategy {
    /// Never.
    #[default]
    No,
    /// Every given number of optimizer steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
    /// After each evaluation that is better than all before: only for checkpoints.
    Best,
}

/// The name that transformers has for the strategy of checkpoints.
pub type SaveStrategy = IntervalStrategy;

impl TryFrom<&str> for IntervalStrategy {
    type Error = Error;

    /// Returns the strategy that transformers calls "no", "steps", "epoch" or "best".
    fn try_from(name: &str) -> Result<Self> {
        let all = [Self::No, Self::Steps, Self::Epoch, Self::Best];
        choice::by_name("strategy", name, &all)
    }
}

/// What goes to the Hub while a training with `push_to_hub` goes on, as in transformers.
///
/// ```
/// use cloze::train::{HubStrategy, TrainingArguments};
///
/// let by_name = TrainingArguments::new("out").hub_strategy("end");
/// assert_eq!(by_name.hub_strategy, HubStrategy::End);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HubStrategy {
    /// The model of every checkpoint, in the background.
    #[default]
    EverySave,
    /// Nothing: the model goes there when it is trained.
    End,
}

impl TryFrom<&str> for HubStrategy {
    type Error = Error;

    /// Returns the strategy that transformers calls "every_save" or "end".
    fn try_from(name: &str) -> Result<Self> {
        choice::by_name("hub_strategy", name, &[Self::EverySave, Self::End])
    }
}
