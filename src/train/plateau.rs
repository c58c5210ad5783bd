//! A learning rate that falls when a metric has stopped improving.

use super::{Schedule, SchedulerKwargs, SchedulerType, ThresholdMode};

/// Reduces the learning rate when the metric of evaluations has stopped improving, as PyTorch's `ReduceLROnPlateau` does.
///
/// A [`Trainer`](super::Trainer) uses it with `lr_scheduler_type("reduce_lr_on_plateau")`; you need it only for a
/// manual loop.
///
/// ```
/// use cloze::train::ReduceLrOnPlateau;
///
/// let mut plateau = ReduceLrOnPlateau::new(1e-3).factor(0.5).patience(1);
/// for loss in [3.0, 2.9, 2.9, 2.9] {
///     plateau.step(loss);
/// }
/// assert_eq!(plateau.lr(), 5e-4);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ReduceLrOnPlateau {
    lr: f64,
    kwargs: SchedulerKwargs,
    /// Whether a larger metric is better.
    greater_is_better: bool,
    best: Option<f64>,
    without_improvement: usize,
    cooling: usize,
}

impl ReduceLrOnPlateau {
    /// Starts at `learning_rate`, for a metric that should fall.
    pub fn new(learning_rate: f64) -> Self {
        Self {
            lr: learning_rate,
            kwargs: SchedulerKwargs::default(),
            greater_is_better: false,
            best: None,
            without_improvement: 0,
            cooling: 0,
        }
    }

    /// Sets what the rate is multiplied by (default: 0.1).
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.kwargs.factor = factor;
        self
    }

    /// Sets how many evaluations in a row without improvement are allowed (default: 10).
    #[must_use]
    pub fn patience(mut self, patience: usize) -> Self {
        self.kwargs.patience = patience;
        self
    }

    /// Sets whether a larger metric is better (default: no).
    #[must_use]
    pub fn greater_is_better(mut self, greater: bool) -> Self {
        self.greater_is_better = greater;
        self
    }

    /// Sets everything else: threshold, cooldown, the least rate.
    #[must_use]
    pub fn kwargs(mut self, kwargs: SchedulerKwargs) -> Self {
        self.kwargs = kwargs;
        self
    }

    /// Returns the learning rate.
    pub fn lr(&self) -> f64 {
        self.lr
    }

    /// Takes note of an evaluation's metric, and reduces the rate if that is due.
    pub fn step(&mut self, metric: f64) {
        if self.improves(metric) {
            self.best = Some(metric);
            self.without_improvement = 0;
        } else {
            self.without_improvement += 1;
        }
        if self.cooling > 0 {
            self.cooling -= 1;
            self.without_improvement = 0;
        }
        if self.without_improvement > self.kwargs.patience {
            let reduced = (self.lr * self.kwargs.factor).max(self.kwargs.min_lr.unwrap_or(0.0));
            if self.lr - reduced > self.kwargs.eps {
                self.lr = reduced;
            }
            self.cooling = self.kwargs.cooldown;
            self.without_improvement = 0;
        }
    }

    fn improves(&self, metric: f64) -> bool {
        let Some(best) = self.best else {
            return !metric.is_nan();
        };
        let threshold = self.kwargs.threshold;
        match (self.greater_is_better, self.kwargs.threshold_mode) {
            (false, ThresholdMode::Rel) => metric < best * (1.0 - threshold),
            (false, ThresholdMode::Abs) => metric < best - threshold,
            (true, ThresholdMode::Rel) => metric > best * (1.0 + threshold),
            (true, ThresholdMode::Abs) => metric > best + threshold,
        }
    }
}

impl Schedule {
    /// Returns what reduces the rate where the metrics of evaluations decide over it.
    pub(super) fn plateau(&self) -> Option<ReduceLrOnPlateau> {
        let decides = self.own.is_none() && self.kind == SchedulerType::ReduceLrOnPlateau;
        decides.then(|| ReduceLrOnPlateau::new(self.learning_rate).kwargs(self.kwargs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evaluations that improve, stop improving, and improve by too little.
    const METRICS: [f64; 16] = [
        3.0, 2.5, 2.6, 2.49999, 2.7, 2.4, 2.4, 2.5, 2.5, 2.5, 2.5, 2.5, 2.39, 2.5, 2.5, 2.5,
    ];

    /// Checks the rates after each metric against those of PyTorch, from a peak of 3e-4.
    fn assert_rates(greater: bool, kwargs: SchedulerKwargs, expected: [f64; 16]) {
        let plateau = ReduceLrOnPlateau::new(3e-4).kwargs(kwargs);
        let mut plateau = plateau.greater_is_better(greater);
        for (i, (metric, expected)) in METRICS.into_iter().zip(expected).enumerate() {
            plateau.step(metric);
            let difference = (plateau.lr() - expected).abs();
            assert!(difference < 1e-18, "{i}: {:e}", plateau.lr());
        }
    }

    #[test]
    fn rates_equal_those_of_pytorch() {
        let default = SchedulerKwargs::default();
        let halved = SchedulerKwargs {
            patience: 1,
            factor: 0.5,
            ..default
        };
        let after = [
            0.0003, 0.0003, 0.0003, 0.00015, 0.00015, 0.00015, 0.00015, 7.5e-05, 7.5e-05, 3.75e-05,
            3.75e-05, 1.875e-05, 1.875e-05, 1.875e-05, 9.375e-06, 9.375e-06,
        ];
        assert_rates(false, halved, after);
        let cooling = SchedulerKwargs {
            patience: 0,
            factor: 0.3,
            threshold: 0.05,
            threshold_mode: ThresholdMode::Abs,
            cooldown: 2,
            min_lr: Some(1e-5),
            ..default
        };
        let mut after = [1e-5; 16];
        after[..2].fill(3e-4);
        after[2..6].fill(8.999999999999999e-05);
        after[6..9].fill(2.6999999999999996e-05);
        assert_rates(false, cooling, after);
        let largest = SchedulerKwargs {
            threshold: 0.01,
            ..halved
        };
        let after = std::array::from_fn(|i| 3e-4 * 0.5f64.powi((i / 2) as i32));
        assert_rates(true, largest, after);
        let too_little = SchedulerKwargs {
            patience: 0,
            factor: 0.9,
            eps: 4e-5,
            ..default
        };
        assert_rates(false, too_little, [3e-4; 16]);
    }
}
