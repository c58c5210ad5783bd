//! Learning rates as functions of the step, in the formulas of transformers' `get_scheduler`.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The shape of a learning-rate schedule, named as in transformers.
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

    /// The type that transformers calls `name`.
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

/// What some schedules need beyond their length. The names and defaults are transformers'.
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

/// The schedule that transformers calls `name`, from a peak `learning_rate`, in steps of the optimizer.
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

    /// `transformers`' default: up within `warmup_steps`, then straight down to 0.
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
                // `transformers` never gets past the end; staying there spares a negative base.
                let remaining = (1.0 - progress).max(0.0);
                ((peak - end) * remaining.powf(self.kwargs.power) + end) / peak
            }
            SchedulerType::InverseSqrt => {
                // `transformers`' time scale: the warmup, or 10000 steps where there is none.
                let scale = if warmup > 0 { warmup } else { 10_000 } as f64;
                1.0 / ((done as f64 + (scale - warmup as f64)) / scale).sqrt()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_rates(schedule: Schedule, expected: &[f64]) {
        for (done, &expected) in expected.iter().enumerate() {
            let lr = schedule.lr(done);
            assert!(
                (lr - expected).abs() <= 1e-15 * schedule.learning_rate.max(1.0),
                "{schedule:?} after {done} steps: {lr:e} instead of {expected:e}"
            );
        }
    }

    /// The rates that transformers' `get_scheduler` gives for a peak of 3e-4.
    #[test]
    fn rates_are_the_references() {
        let line = [
            0.0003,
            0.0002571428571428571,
            0.00021428571428571427,
            0.0001714285714285714,
            0.00012857142857142855,
            8.57142857142857e-05,
            4.285714285714285e-05,
            0.0,
        ];
        let cosine = [
            0.0003,
            0.0002851453301853628,
            0.00024352347027881003,
            0.00018337814009344714,
            0.00011662185990655284,
            5.6476529721189974e-05,
            1.4854669814637143e-05,
            0.0,
        ];
        let polynomial = [
            0.0003,
            0.00025715714285714283,
            0.0002143142857142857,
            0.00017147142857142856,
            0.00012862857142857141,
            8.578571428571428e-05,
            4.294285714285716e-05,
            9.999999999999998e-08,
        ];
        let inverse = [
            0.0003,
            0.00025980762113533157,
            0.000232379000772445,
            0.00021213203435596422,
            0.00019639610121239312,
            0.0001837117307087383,
            0.00017320508075688773,
            0.0001643167672515498,
        ];
        let warmup = [0.0, 9.999999999999999e-05, 0.00019999999999999998];
        for (name, after) in [
            ("linear", line),
            ("cosine", cosine),
            ("cosine_with_restarts", cosine),
            ("polynomial", polynomial),
            ("constant_with_warmup", [0.0003; 8]),
            ("inverse_sqrt", inverse),
        ] {
            let with_warmup: Vec<f64> = warmup.into_iter().chain(after).collect();
            assert_rates(get_scheduler(name, 3e-4, 3, 10).unwrap(), &with_warmup);
            if name != "inverse_sqrt" {
                assert_rates(get_scheduler(name, 3e-4, 0, 7).unwrap(), &after);
            }
        }
        assert_rates(
            get_scheduler("constant", 3e-4, 3, 10).unwrap(),
            &[0.0003; 11],
        );
    }

    #[test]
    fn rates_with_further_settings_are_the_references() {
        let schedule = |kind, steps, kwargs| Schedule::new(kind, 3e-4, 2, steps).kwargs(kwargs);
        let default = SchedulerKwargs::default();
        let cycles = |n| SchedulerKwargs {
            num_cycles: Some(n),
            ..default
        };
        assert_rates(
            schedule(SchedulerType::CosineWithRestarts, 10, cycles(2.0)),
            &[
                0.0,
                0.00015,
                0.0003,
                0.00025606601717798207,
                0.00015,
                4.3933982822017876e-05,
                0.0003,
                0.00025606601717798207,
                0.00015,
                4.3933982822017876e-05,
                0.0,
            ],
        );
        assert_rates(
            schedule(SchedulerType::Cosine, 10, cycles(1.5)),
            &[
                0.0,
                0.00015,
                0.0003,
                0.00020740251485476345,
                4.3933982822017876e-05,
                1.1418070123306972e-05,
                0.00014999999999999996,
                0.00028858192987669295,
                0.0002560660171779821,
                9.259748514523652e-05,
                0.0,
            ],
        );
        let square = SchedulerKwargs {
            power: 2.0,
            lr_end: 1e-5,
            ..default
        };
        assert_rates(
            schedule(SchedulerType::Polynomial, 8, square),
            &[
                0.0,
                0.00015,
                0.0003,
                0.0002113888888888889,
                0.0001388888888888889,
                8.249999999999999e-05,
                4.222222222222222e-05,
                1.805555555555555e-05,
                1e-05,
                1e-05,
                1e-05,
            ],
        );
    }

    #[test]
    fn unknown_names_and_impossible_rates_are_refused() {
        let error = get_scheduler("quadratic", 1e-3, 0, 10)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"quadratic\"") && error.contains("cosine_with_restarts"),
            "{error}"
        );
        let error = get_scheduler("polynomial", 1e-8, 0, 10)
            .unwrap_err()
            .to_string();
        assert!(error.contains("lr_end"), "{error}");
    }
}
