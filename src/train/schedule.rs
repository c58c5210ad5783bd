//! Learning rates as functions of the step, in the formulas of `get_scheduler` in transformers.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The shape of a learning-rate schedule, named as in transformers.
///
/// ```
/// use cloze::prelude::*;
///
/// let by_name = TrainingArguments::new("out").lr_scheduler_type("cosine_with_restarts");
/// assert_eq!(by_name.lr_scheduler_type, SchedulerType::CosineWithRestarts);
/// assert_eq!(SchedulerType::CosineWithRestarts.name(), "cosine_with_restarts");
/// ```
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
    /// The peak until an evaluation's metric has stopped improving, then less and less: see
    /// [`ReduceLrOnPlateau`](super::ReduceLrOnPlateau).
    ReduceLrOnPlateau,
    /// Warmup, then down to `min_lr`, or `min_lr_rate` of the peak, along half a cosine.
    CosineWithMinLr,
    /// The same with a warmup that begins at `warmup_lr_rate` of the peak and not at 0.
    CosineWarmupWithMinLr,
    /// Warmup, then the peak, then down within `num_decay_steps`.
    WarmupStableDecay,
}

impl SchedulerType {
    /// Every type.
    const ALL: [Self; 11] = [
        Self::Linear,
        Self::Cosine,
        Self::CosineWithRestarts,
        Self::Polynomial,
        Self::Constant,
        Self::ConstantWithWarmup,
        Self::InverseSqrt,
        Self::ReduceLrOnPlateau,
        Self::CosineWithMinLr,
        Self::CosineWarmupWithMinLr,
        Self::WarmupStableDecay,
    ];

    /// Returns the name that transformers has for it, "cosine_with_restarts" for instance.
    pub fn name(self) -> String {
        super::choice::name_of(&self)
    }
}

impl FromStr for SchedulerType {
    type Err = Error;

    /// Returns the type that transformers calls `name`.
    fn from_str(name: &str) -> Result<Self> {
        super::choice::by_name("lr_scheduler_type", name, &Self::ALL)
    }
}

impl TryFrom<&str> for SchedulerType {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self> {
        name.parse()
    }
}

/// How a rate rises or falls between two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Ramp {
    /// In a straight line.
    #[serde(rename = "linear")]
    Linear,
    /// Along a cosine.
    #[serde(rename = "cosine")]
    Cosine,
    /// As one minus a square root: quickly first when it falls, slowly first when it rises.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl TryFrom<&str> for Ramp {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self> {
        let all = [Self::Linear, Self::Cosine, Self::OneMinusSqrt];
        super::choice::by_name("lr_scheduler_kwargs", name, &all)
    }
}

/// How an improvement is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// As a part of the best metric.
    Rel,
    /// As a difference.
    Abs,
}

/// Further arguments of some schedules. The names and defaults are those of transformers, and of PyTorch's
/// `ReduceLROnPlateau` for the plateau.
///
/// ```
/// use cloze::train::SchedulerKwargs;
/// let kwargs = SchedulerKwargs { min_lr_rate: Some(0.1), ..SchedulerKwargs::default() };
/// assert_eq!(kwargs.patience, 10);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerKwargs {
    /// Waves of the cosine schedules. Default: 0.5 (just down), 1 for cosine with restarts.
    pub num_cycles: Option<f64>,
    /// The exponent of the polynomial schedule. Default: 1.
    pub power: f64,
    /// The polynomial schedule's final rate. Default: 1e-7.
    pub lr_end: f64,
    /// Where the cosine with a minimum ends; the least rate of the plateau (default there: 0).
    pub min_lr: Option<f64>,
    /// Where the cosine with a minimum ends, as a part of the peak; in place of `min_lr`.
    pub min_lr_rate: Option<f64>,
    /// Where the warmup of `cosine_warmup_with_min_lr` begins, as a part of the peak. Default: the peak over the number of
    /// warmup steps.
    pub warmup_lr_rate: Option<f64>,
    /// The time scale of the inverse square root, in steps. Default: the warmup, or 10000 without one.
    pub timescale: Option<f64>,
    /// The steps in which `warmup_stable_decay` falls; it must be given there.
    pub num_decay_steps: Option<usize>,
    /// The steps that `warmup_stable_decay` stays at the peak. Default: what the other two parts leave.
    pub num_stable_steps: Option<usize>,
    /// How `warmup_stable_decay` rises. Default: linear.
    pub warmup_type: Ramp,
    /// How `warmup_stable_decay` falls. Default: along a cosine.
    pub decay_type: Ramp,
    /// Where `warmup_stable_decay` begins and ends, as a part of the peak. Default: 0.
    pub min_lr_ratio: f64,
    /// The factor of the plateau's rate. Default: 0.1.
    pub factor: f64,
    /// How many evaluations in a row without improvement the plateau allows. Default: 10.
    pub patience: usize,
    /// By how much the plateau's metric must improve. Default: 1e-4.
    pub threshold: f64,
    /// Whether that is a part of the best metric or a difference to it. Default: a part.
    pub threshold_mode: ThresholdMode,
    /// Evaluations after a reduction of the plateau's rate that do not count. Default: 0.
    pub cooldown: usize,
    /// Reductions of the plateau's rate by less than this are left out. Default: 1e-8.
    pub eps: f64,
}

impl Default for SchedulerKwargs {
    fn default() -> Self {
        Self {
            num_cycles: None,
            power: 1.0,
            lr_end: 1e-7,
            min_lr: None,
            min_lr_rate: None,
            warmup_lr_rate: None,
            timescale: None,
            num_decay_steps: None,
            num_stable_steps: None,
            warmup_type: Ramp::Linear,
            decay_type: Ramp::Cosine,
            min_lr_ratio: 0.0,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            eps: 1e-8,
        }
    }
}

/// The factor of the learning rate after this many steps.
type Factor = dyn Fn(usize) -> f64 + Send + Sync;

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
#[derive(Clone)]
pub struct Schedule {
    pub(super) kind: SchedulerType,
    /// One's own factors of the learning rate, in place of those of the kind.
    pub(super) own: Option<Arc<Factor>>,
    pub(super) learning_rate: f64,
    warmup_steps: usize,
    training_steps: usize,
    pub(super) kwargs: SchedulerKwargs,
}

/// Returns the schedule that transformers calls `name`, from a peak `learning_rate`, in steps of the optimizer.
///
/// # Errors
/// When there is no schedule of that name, or the learning rate does not suit it.
///
/// ```
/// use cloze::prelude::*;
///
/// let schedule = get_scheduler("cosine", 2e-5, 10, 110)?;
/// assert_eq!(schedule.lr(10), 2e-5);
/// assert!((schedule.lr(60) - 1e-5).abs() < 1e-12);
/// assert!(get_scheduler("cosin", 2e-5, 10, 110).is_err());
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn get_scheduler(
    name: &str,
    learning_rate: f64,
    warmup_steps: usize,
    training_steps: usize,
) -> Result<Schedule> {
    Schedule::new(name.parse()?, learning_rate, warmup_steps, training_steps).checked()
}

impl Schedule {
    /// Returns a schedule that rises to `learning_rate` within `warmup_steps` and ends after `training_steps`.
    pub fn new(
        kind: SchedulerType,
        learning_rate: f64,
        warmup_steps: usize,
        training_steps: usize,
    ) -> Self {
        Self {
            kind,
            own: None,
            learning_rate,
            warmup_steps,
            training_steps,
            kwargs: SchedulerKwargs::default(),
        }
    }

    /// Returns the default of transformers: up within `warmup_steps`, then straight down to 0.
    pub fn linear(learning_rate: f64, warmup_steps: usize, training_steps: usize) -> Self {
        Self::new(
            SchedulerType::Linear,
            learning_rate,
            warmup_steps,
            training_steps,
        )
    }

    /// Rises within `warmup_steps`, then falls to 0 along half a cosine.
    pub fn cosine(learning_rate: f64, warmup_steps: usize, training_steps: usize) -> Self {
        Self::new(
            SchedulerType::Cosine,
            learning_rate,
            warmup_steps,
            training_steps,
        )
    }

    /// Returns a custom schedule: `learning_rate` times the result of `factor` for the number of completed steps, as
    /// PyTorch's `LambdaLR`. The same number must always give the same factor, so that a resumed run continues exactly.
    ///
    /// ```
    /// use cloze::train::Schedule;
    /// let halved_every_hundred = Schedule::lambda(1e-3, |done| 0.5f64.powi((done / 100) as i32));
    /// assert_eq!(halved_every_hundred.lr(250), 2.5e-4);
    /// ```
    pub fn lambda(
        learning_rate: f64,
        factor: impl Fn(usize) -> f64 + Send + Sync + 'static,
    ) -> Self {
        let constant = Self::constant(learning_rate);
        Self {
            own: Some(Arc::new(factor)),
            ..constant
        }
    }

    /// Returns the same learning rate for ever.
    pub fn constant(learning_rate: f64) -> Self {
        Self::new(SchedulerType::Constant, learning_rate, 0, 0)
    }

    /// Sets what some schedules need beyond their length.
    #[must_use]
    pub fn kwargs(mut self, kwargs: SchedulerKwargs) -> Self {
        self.kwargs = kwargs;
        self
    }

    /// Returns the schedule itself, if its numbers make sense.
    pub(super) fn checked(self) -> Result<Self> {
        let kwargs = self.kwargs;
        let sane = |x: f64| x.is_finite() && x >= 0.0;
        let numbers = [
            Some(kwargs.power),
            Some(kwargs.lr_end),
            kwargs.num_cycles,
            kwargs.min_lr,
            kwargs.min_lr_rate,
            kwargs.warmup_lr_rate,
            kwargs.timescale,
            Some(kwargs.min_lr_ratio),
            Some(kwargs.threshold),
            Some(kwargs.eps),
        ];
        let refuse = |message: String| Err(Error::argument("lr_scheduler_kwargs", message));
        if !numbers.into_iter().flatten().all(sane) {
            return refuse(format!(
                "{kwargs:?}: the numbers must be finite and not negative"
            ));
        }
        if !sane(self.learning_rate) {
            return Err(Error::argument(
                "learning_rate",
                format!(
                    "{} is not allowed; give a number that is not negative",
                    self.learning_rate
                ),
            ));
        }
        match self.kind {
            SchedulerType::Polynomial if self.learning_rate <= kwargs.lr_end => {
                return Err(Error::argument(
                    "learning_rate",
                    format!(
                        "the polynomial schedule decays from the learning rate {:e} to lr_end {:e}, which must be smaller",
                        self.learning_rate, kwargs.lr_end
                    ),
                ));
            }
            SchedulerType::CosineWithMinLr | SchedulerType::CosineWarmupWithMinLr
                if kwargs.min_lr.is_some() == kwargs.min_lr_rate.is_some() =>
            {
                return refuse(format!(
                    "{} needs either min_lr, the final rate, or min_lr_rate, the same as a fraction of the learning rate",
                    self.kind.name()
                ));
            }
            SchedulerType::WarmupStableDecay if kwargs.num_decay_steps.is_none() => {
                return refuse(
                    "warmup_stable_decay needs num_decay_steps, the number of steps of the final decay".to_owned(),
                );
            }
            SchedulerType::InverseSqrt if kwargs.timescale == Some(0.0) => {
                return refuse("the timescale must be above 0".to_owned());
            }
            SchedulerType::ReduceLrOnPlateau if !(0.0..1.0).contains(&kwargs.factor) => {
                return refuse(format!(
                    "the factor {} of reduce_lr_on_plateau must be below 1, or the rate would not be reduced",
                    kwargs.factor
                ));
            }
            _ => {}
        }
        Ok(self)
    }

    /// Returns the learning rate at the peak.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Returns the learning rate of the step after `done` steps: `lr(0)` belongs to the first step.
    pub fn lr(&self, done: usize) -> f64 {
        self.learning_rate * self.factor(done)
    }

    fn factor(&self, done: usize) -> f64 {
        if let Some(own) = &self.own {
            return own(done);
        }
        let (warmup, kwargs) = (self.warmup_steps, &self.kwargs);
        let unwarmed = matches!(
            self.kind,
            SchedulerType::Constant | SchedulerType::ReduceLrOnPlateau
        );
        if done < warmup && !unwarmed {
            return self.rise(done);
        }
        let decaying = self.training_steps.saturating_sub(warmup).max(1) as f64;
        let progress = (done.saturating_sub(warmup)) as f64 / decaying;
        match self.kind {
            SchedulerType::Constant
            | SchedulerType::ConstantWithWarmup
            | SchedulerType::ReduceLrOnPlateau => 1.0,
            SchedulerType::Linear => self.training_steps.saturating_sub(done) as f64 / decaying,
            SchedulerType::Cosine => self.wave(progress).max(0.0),
            SchedulerType::CosineWithMinLr => self.above_least(self.wave(progress)),
            SchedulerType::CosineWarmupWithMinLr => {
                let progress = (done as f64 - warmup as f64 + 1.0) / decaying;
                self.above_least(self.wave(progress))
            }
            SchedulerType::CosineWithRestarts if progress >= 1.0 => 0.0,
            SchedulerType::CosineWithRestarts => {
                let cycles = kwargs.num_cycles.unwrap_or(1.0);
                (0.5 * (1.0 + (PI * ((cycles * progress) % 1.0)).cos())).max(0.0)
            }
            SchedulerType::Polynomial => {
                let (peak, end) = (self.learning_rate, kwargs.lr_end);
                // transformers never gets past the end; staying there spares a negative base.
                let remaining = (1.0 - progress).max(0.0);
                ((peak - end) * remaining.powf(kwargs.power) + end) / peak
            }
            SchedulerType::InverseSqrt => {
                let fallback = if warmup > 0 { warmup } else { 10_000 } as f64;
                let scale = kwargs.timescale.unwrap_or(fallback);
                1.0 / ((done as f64 + (scale - warmup as f64)) / scale).sqrt()
            }
            SchedulerType::WarmupStableDecay => self.stable_then_down(done - warmup),
        }
    }

    /// Returns the factor within the warmup.
    fn rise(&self, done: usize) -> f64 {
        let (warmup, kwargs) = (self.warmup_steps as f64, &self.kwargs);
        let progress = done as f64 / warmup;
        match self.kind {
            SchedulerType::CosineWarmupWithMinLr => match kwargs.warmup_lr_rate {
                None => (done as f64 + 1.0) / warmup,
                Some(rate) => rate + (1.0 - rate) * done as f64 / (warmup - 1.0).max(1.0),
            },
            SchedulerType::WarmupStableDecay => {
                let factor = match kwargs.warmup_type {
                    Ramp::Linear => progress,
                    Ramp::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                    Ramp::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
                };
                (factor * (1.0 - kwargs.min_lr_ratio) + kwargs.min_lr_ratio).max(0.0)
            }
            _ => progress,
        }
    }

    /// Returns a cosine from 1 to 0 and back, half a wave by default.
    fn wave(&self, progress: f64) -> f64 {
        let cycles = self.kwargs.num_cycles.unwrap_or(0.5);
        0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())
    }

    /// Brings a factor from between 0 and 1 to between the least one and 1.
    fn above_least(&self, factor: f64) -> f64 {
        let of_peak = |least: f64| least / self.learning_rate;
        let least = self.kwargs.min_lr.map(of_peak);
        let least = least.or(self.kwargs.min_lr_rate).unwrap_or(0.0);
        (factor * (1.0 - least) + least).max(0.0)
    }

    /// Returns the factor of `warmup_stable_decay` this many steps after the warmup.
    fn stable_then_down(&self, done: usize) -> f64 {
        let kwargs = &self.kwargs;
        let falling = kwargs.num_decay_steps.unwrap_or(0);
        let rest = self.training_steps as i64 - self.warmup_steps as i64 - falling as i64;
        let stable = kwargs.num_stable_steps.map_or(rest, |steps| steps as i64);
        // A negative number of stable steps begins in the middle of the decay, as in transformers.
        let into = done as i64 - stable;
        if into < 0 {
            return 1.0;
        }
        if into >= falling as i64 {
            return kwargs.min_lr_ratio;
        }
        let progress = into as f64 / falling.max(1) as f64;
        let factor = match kwargs.decay_type {
            Ramp::Linear => 1.0 - progress,
            Ramp::Cosine => self.wave(progress),
            Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
        };
        (factor * (1.0 - kwargs.min_lr_ratio) + kwargs.min_lr_ratio).max(0.0)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        let own = match (&self.own, &other.own) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let numbers = |s: &Self| (s.kind, s.learning_rate, s.warmup_steps, s.training_steps);
        own && numbers(self) == numbers(other) && self.kwargs == other.kwargs
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.own.is_some() {
            return write!(f, "Schedule({:e} times a closure)", self.learning_rate);
        }
        write!(
            f,
            "Schedule({} from {:e}, {} warmup steps of {})",
            self.kind.name(),
            self.learning_rate,
            self.warmup_steps,
            self.training_steps
        )
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

    /// The rates that `get_scheduler` of transformers gives for a peak of 3e-4.
    #[test]
    fn rates_equal_those_of_transformers() {
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
    fn rates_with_further_settings_equal_those_of_transformers() {
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
    fn rates_with_a_minimum_equal_those_of_transformers() {
        let default = SchedulerKwargs::default();
        let rates = |kind, (warmup, steps), kwargs, expected: &[f64]| {
            let schedule = Schedule::new(kind, 3e-4, warmup, steps).kwargs(kwargs);
            assert_rates(schedule.checked().unwrap(), expected);
        };
        let falling = [
            0.0003,
            0.0002819134295108992,
            0.00023249999999999999,
            0.000165,
            9.750000000000003e-05,
            4.808657048910077e-05,
            2.9999999999999997e-05,
            4.8086570489100784e-05,
        ];
        let least = SchedulerKwargs {
            min_lr: Some(3e-5),
            ..default
        };
        let before = |warmup: &[f64]| [warmup, &falling[..]].concat();
        let warmup = [0.0, 0.00015];
        rates(
            SchedulerType::CosineWithMinLr,
            (2, 8),
            least,
            &before(&warmup),
        );
        let warmup = [9.999999999999999e-05, 0.00019999999999999998];
        let warm = SchedulerType::CosineWarmupWithMinLr;
        rates(warm, (3, 9), least, &before(&warmup));
        let part = SchedulerKwargs {
            min_lr_rate: Some(0.1),
            warmup_lr_rate: Some(0.25),
            ..default
        };
        rates(warm, (3, 9), part, &before(&[7.5e-05, 0.0001875]));
        let waves = SchedulerKwargs {
            min_lr_rate: Some(0.2),
            num_cycles: Some(1.5),
            ..default
        };
        rates(
            SchedulerType::CosineWithMinLr,
            (2, 8),
            waves,
            &[
                0.0, 0.00015, 0.0003, 0.00018, 6e-05, 0.00018, 0.0003, 0.00018, 6e-05, 0.00018,
            ],
        );
        let scale = SchedulerKwargs {
            timescale: Some(7.0),
            ..default
        };
        rates(
            SchedulerType::InverseSqrt,
            (2, 8),
            scale,
            &[
                0.0,
                0.00015,
                0.0003,
                0.00028062430400804556,
                0.00026457513110645904,
                0.00025099800796022265,
                0.00023931721056523968,
                0.000229128784747792,
            ],
        );
    }

    #[test]
    fn warmup_stable_decay_equals_that_of_transformers() {
        let rates = |steps, kwargs, expected: &[f64]| {
            let kind = SchedulerType::WarmupStableDecay;
            let schedule = Schedule::new(kind, 3e-4, 3, steps).kwargs(kwargs);
            assert_rates(schedule.checked().unwrap(), expected);
        };
        let default = SchedulerKwargs {
            num_decay_steps: Some(4),
            ..SchedulerKwargs::default()
        };
        rates(
            12,
            default,
            &[
                0.0,
                9.999999999999999e-05,
                0.00019999999999999998,
                0.0003,
                0.0003,
                0.0003,
                0.0003,
                0.0003,
                0.0003,
                0.00025606601717798207,
                0.00015,
                4.3933982822017876e-05,
                0.0,
            ],
        );
        let straight = SchedulerKwargs {
            num_stable_steps: Some(2),
            warmup_type: Ramp::Cosine,
            decay_type: Ramp::Linear,
            min_lr_ratio: 0.1,
            ..default
        };
        rates(
            0,
            straight,
            &[
                2.9999999999999997e-05,
                9.749999999999998e-05,
                0.00023249999999999996,
                0.0003,
                0.0003,
                0.0003,
                0.00023249999999999999,
                0.000165,
                9.75e-05,
                2.9999999999999997e-05,
                2.9999999999999997e-05,
            ],
        );
        let roots = SchedulerKwargs {
            num_decay_steps: Some(5),
            warmup_type: Ramp::OneMinusSqrt,
            decay_type: Ramp::OneMinusSqrt,
            min_lr_ratio: 0.05,
            ..default
        };
        rates(
            12,
            roots,
            &[
                1.4999999999999999e-05,
                6.729847443559807e-05,
                0.0001354551732809566,
                0.0003,
                0.0003,
                0.0003,
                0.0003,
                0.0003,
                0.000172544125282512,
                0.00011975017337040235,
                7.923994926617721e-05,
                4.5088250565023976e-05,
                1.4999999999999999e-05,
            ],
        );
    }

    #[test]
    fn every_type_has_its_name_from_transformers() {
        for kind in SchedulerType::ALL {
            assert_eq!(kind.name().parse::<SchedulerType>().unwrap(), kind);
        }
        let plateau = SchedulerType::ReduceLrOnPlateau.name();
        assert_eq!(plateau, "reduce_lr_on_plateau");
        assert_eq!(SchedulerType::CosineWithMinLr.name(), "cosine_with_min_lr");
    }

    #[test]
    fn schedules_name_a_missing_setting() {
        for (name, expected) in [
            ("cosine_with_min_lr", "min_lr_rate"),
            ("warmup_stable_decay", "num_decay_steps"),
        ] {
            let error = get_scheduler(name, 1e-3, 0, 10).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
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
