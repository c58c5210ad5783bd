//! Learning rates as functions of the step, in the formulas of the reference's `get_scheduler`.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The shape of a learning-rate schedule, named as in the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SchedulerType {
    /// Warmup, then straight down to 0.
    #[default]
    Linear,
    /// Warmup, then down to 0 along half a cosine.
    Cosine,
    /// Warmup, then several cosines that each start from the peak.
    CosineWithRestarts,
    /// Warmup, then down to `lr_end` as a power of what remains.
    Polynomial,
    /// The peak all along, without warmup.
    Constant,
    /// Warmup, then the peak.
    ConstantWithWarmup,
    /// Warmup, then down with the inverse square root of the step.
    InverseSqrt,
}

impl FromStr for SchedulerType {
    type Err = Error;

    /// The type that the reference calls `name`.
    fn from_str(name: &str) -> Result<Self> {
        serde_json::from_value(name.into()).map_err(|_| {
            Error::argument(
                "lr_scheduler_type",
                format!(
                    "there is no schedule {name:?}; there are linear, cosine, cosine_with_restarts, polynomial, \
                     constant, constant_with_warmup and inverse_sqrt"
                ),
            )
        })
    }
}

/// What some schedules need beyond their length. The names and defaults are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerKwargs {
    /// Waves of the cosine schedules. Default: 0.5 for cosine (just down), 1 for cosine with restarts.
    pub num_cycles: Option<f64>,
    /// The exponent of the polynomial schedule. Default: 1.
    pub power: f64,
    /// Where the polynomial schedule ends. Default: 1e-7.
    pub lr_end: f64,
}

impl Default for SchedulerKwargs {
    fn default() -> Self {
        Self {
            num_cycles: None,
            power: 1.0,
            lr_end: 1e-7,
        }
    }
}

/// The learning rate of every step of a run.
///
/// ```
/// use cloze::train::Schedule;
///
/// let schedule = Schedule::linear(2e-5, 10, 110);
/// assert_eq!(schedule.lr(0), 0.0);
/// assert_eq!(schedule.lr(10), 2e-5);
/// assert_eq!(schedule.lr(60), 1e-5);
/// assert_eq!(schedule.lr(110), 0.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    kind: SchedulerType,
    learning_rate: f64,
    warmup_steps: usize,
    training_steps: usize,
    kwargs: SchedulerKwargs,
}

/// The schedule that the reference calls `name`, from a peak `learning_rate`, in steps of the optimizer.
///
/// # Errors
/// When there is no schedule of that name, or the learning rate does not suit it.
pub fn get_scheduler(
    name: &str,
    learning_rate: f64,
    warmup_steps: usize,
    training_steps: usize,
) -> Result<Schedule> {
    Schedule::new(name.parse()?, learning_rate, warmup_steps, training_steps).checked()
}

impl Schedule {
    /// A schedule that rises to `learning_rate` within `warmup_steps` and ends after `training_steps`.
    pub fn new(
        kind: SchedulerType,
        learning_rate: f64,
        warmup_steps: usize,
        training_steps: usize,
    ) -> Self {
        Self {
            kind,
            learning_rate,
            warmup_steps,
            training_steps,
            kwargs: SchedulerKwargs::default(),
        }
    }

    /// The reference's default: up within `warmup_steps`, then straight down to 0.
    pub fn linear(learning_rate: f64, warmup_steps: usize, training_steps: usize) -> Self {
        Self::new(
            SchedulerType::Linear,
            learning_rate,
            warmup_steps,
            training_steps,
        )
    }

    /// Up within `warmup_steps`, then down to 0 along half a cosine.
    pub fn cosine(learning_rate: f64, warmup_steps: usize, training_steps: usize) -> Self {
        Self::new(
            SchedulerType::Cosine,
            learning_rate,
            warmup_steps,
            training_steps,
        )
    }

    /// The same learning rate for ever.
    pub fn constant(learning_rate: f64) -> Self {
        Self::new(SchedulerType::Constant, learning_rate, 0, 0)
    }

    /// Sets what some schedules need beyond their length.
    #[must_use]
    pub fn kwargs(mut self, kwargs: SchedulerKwargs) -> Self {
        self.kwargs = kwargs;
        self
    }

    /// The schedule itself, if its numbers make sense.
    pub(super) fn checked(self) -> Result<Self> {
        let SchedulerKwargs {
            num_cycles,
            power,
            lr_end,
        } = self.kwargs;
        let sane = |x: f64| x.is_finite() && x >= 0.0;
        if !sane(power) || !sane(lr_end) || num_cycles.is_some_and(|n| !sane(n)) {
            return Err(Error::argument(
                "lr_scheduler_kwargs",
                format!(
                    "{:?}: the numbers must be finite and not negative",
                    self.kwargs
                ),
            ));
        }
        if self.kind == SchedulerType::Polynomial && self.learning_rate <= lr_end {
            return Err(Error::argument(
                "learning_rate",
                format!(
                    "the polynomial schedule falls from the learning rate {:e} to lr_end {lr_end:e}, which must be smaller",
                    self.learning_rate
                ),
            ));
        }
        Ok(self)
    }

    /// The learning rate of the step after `done` steps: `lr(0)` belongs to the first step.
    pub fn lr(&self, done: usize) -> f64 {
        self.learning_rate * self.factor(done)
    }

    fn factor(&self, done: usize) -> f64 {
        let warmup = self.warmup_steps;
        if done < warmup && self.kind != SchedulerType::Constant {
            return done as f64 / warmup as f64;
        }
        let decaying = self.training_steps.saturating_sub(warmup).max(1) as f64;
        let progress = (done.saturating_sub(warmup)) as f64 / decaying;
        match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => self.training_steps.saturating_sub(done) as f64 / decaying,
            SchedulerType::Cosine => {
                let cycles = self.kwargs.num_cycles.unwrap_or(0.5);
                (0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())).max(0.0)
            }
            SchedulerType::CosineWithRestarts if progress >= 1.0 => 0.0,
            SchedulerType::CosineWithRestarts => {
                let cycles = self.kwargs.num_cycles.unwrap_or(1.0);
                (0.5 * (1.0 + (PI * ((cycles * progress) % 1.0)).cos())).max(0.0)
            }
            SchedulerType::Polynomial => {
                let (peak, end) = (self.learning_rate, self.kwargs.lr_end);
                // The reference never gets past the end; staying there spares a negative base.
                let remaining = (1.0 - progress).max(0.0);
                ((peak - end) * remaining.powf(self.kwargs.power) + end) / peak
            }
            SchedulerType::InverseSqrt => {
                // The reference's time scale: the warmup, or 10000 steps where there is none.
                let scale = if warmup > 0 { warmup } else { 10_000 } as f64;
                1.0 / ((done as f64 + (scale - warmup as f64)) / scale).sqrt()
            }
        }
    }
}
