//! Loss scaling for fp16, whose small numbers vanish: the gradients are computed of a loss many times as large.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Optimizer;
use crate::{Result, ops};

/// Below this scale it is not the scale that makes gradients overflow.
const LEAST: f64 = 1e-4;

/// Finds the largest factor for the loss at which gradients in fp16 do not overflow: what `torch.amp.GradScaler` does, for
/// a training loop by hand or a [`Trainer`](super::Trainer) with [`fp16`](super::TrainingArguments::fp16).
///
/// After every [`growth_interval`](Self::growth_interval) steps in a row with finite gradients the scale is multiplied by
/// [`growth_factor`](Self::growth_factor); a step whose gradients are not finite must be left out, and multiplies it by
/// [`backoff_factor`](Self::backoff_factor). As long as both are powers of two, scaling changes no gradient's digits.
///
/// ```
/// use cloze::model::{Config, Context, MaskedLm, ModelInputs};
/// use cloze::train::{AdamW, GradScaler};
///
/// # let config = Config::new("roberta").set("vocab_size", 50).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// # let batch = ModelInputs::new(vec![0, 7, 49, 2], (1, 4))?.with_labels(vec![-100, -100, 8, -100])?;
/// let mut optimizer = AdamW::new(&model);
/// let mut scaler = GradScaler::new();
/// for step in 0..3 {
///     let loss = model.loss(&batch, &Context::train(42, step))?;
///     model.backward(&scaler.scale(&loss.mean()?)?)?;
///     scaler.unscale(&mut optimizer);
///     let norm = optimizer.clip_grad_norm(1.0)?;
///     if scaler.update(norm) {
///         optimizer.step(1e-3)?;
///     }
///     optimizer.zero_grad();
/// }
/// assert_eq!(scaler.get_scale(), 65536.0);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradScaler {
    scale: f64,
    growth_factor: f64,
    backoff_factor: f64,
    growth_interval: u64,
    /// Steps in a row with finite gradients since the scale changed.
    growth_tracker: u64,
}

impl Default for GradScaler {
    fn default() -> Self {
        Self {
            scale: 65536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2000,
            growth_tracker: 0,
        }
    }
}

impl GradScaler {
    /// Returns a scaler with PyTorch's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the scale to begin with. Default: 65536.
    #[must_use]
    pub fn init_scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// Sets the factor on the scale after it has held for long enough. Default: 2.
    #[must_use]
    pub fn growth_factor(mut self, factor: f64) -> Self {
        self.growth_factor = factor;
        self
    }

    /// Sets the factor on the scale after gradients that are not finite. Default: 0.5.
    #[must_use]
    pub fn backoff_factor(mut self, factor: f64) -> Self {
        self.backoff_factor = factor;
        self
    }

    /// Sets after how many steps in a row the scale grows. Default: 2000.
    #[must_use]
    pub fn growth_interval(mut self, steps: u64) -> Self {
        self.growth_interval = steps;
        self
    }

    /// Returns the scale.
    pub fn get_scale(&self) -> f64 {
        self.scale
    }

    /// Returns `loss` times the scale: what to begin the backward pass with.
    pub fn scale(&self, loss: &Tensor) -> Result<Tensor> {
        ops::scale(loss, self.scale)
    }

    /// Lets `optimizer` divide the gradients by the scale: in the next norm, and in the next step.
    pub fn unscale(&self, optimizer: &mut (impl Optimizer + ?Sized)) {
        optimizer.unscale(self.scale);
    }

    /// Takes note of a step's gradient norm, whatever its size, and changes the scale if it is time to. Whether the norm is
    /// finite: the optimizer's step must be left out otherwise.
    pub fn update(&mut self, grad_norm: f64) -> bool {
        if !grad_norm.is_finite() {
            self.scale *= self.backoff_factor;
            self.growth_tracker = 0;
            return false;
        }
        self.growth_tracker += 1;
        if self.growth_tracker >= self.growth_interval {
            let larger = self.scale * self.growth_factor;
            // The scale is a factor in f32.
            if larger <= f64::from(f32::MAX) {
                self.scale = larger;
            }
            self.growth_tracker = 0;
        }
        true
    }

    /// Returns whether the scale is so small that no smaller one would help.
    pub(super) fn is_exhausted(&self) -> bool {
        self.scale < LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_equal_those_of_pytorch() {
        let scaler = GradScaler::new();
        let GradScaler {
            scale,
            growth_factor,
            backoff_factor,
            growth_interval,
            growth_tracker,
        } = scaler;
        assert_eq!((scale, growth_factor, backoff_factor), (65536.0, 2.0, 0.5));
        assert_eq!((growth_interval, growth_tracker), (2000, 0));
    }

    #[test]
    fn the_scale_doubles_after_2000_finite_steps_in_a_row_and_not_before() {
        let mut scaler = GradScaler::new();
        for step in 1..=4000 {
            assert!(scaler.update(1.0));
            let expected = 65536.0 * f64::from(1 << (step / 2000));
            assert_eq!(scaler.get_scale(), expected, "step {step}");
        }
    }

    #[test]
    fn non_finite_gradients_halve_it_and_restart_the_count() {
        let mut scaler = GradScaler::new().growth_interval(3).init_scale(8.0);
        let mut scales = Vec::new();
        for norm in [
            1.0,
            1.0,
            f64::INFINITY,
            1.0,
            1.0,
            1.0,
            f64::NAN,
            f64::NAN,
            1.0,
        ] {
            assert_eq!(scaler.update(norm), norm.is_finite());
            scales.push(scaler.get_scale());
        }
        assert_eq!(scales, [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 4.0, 2.0, 2.0]);
    }

    #[test]
    fn it_never_grows_beyond_the_range_of_the_loss() {
        let largest = f64::from(f32::MAX);
        let mut scaler = GradScaler::new().growth_interval(1).init_scale(largest);
        assert!(scaler.update(1.0));
        assert_eq!(scaler.get_scale(), largest);
    }

    #[test]
    fn it_gives_up_when_no_scale_helps() {
        let mut scaler = GradScaler::new();
        let steps = (1..)
            .find(|_| {
                scaler.update(f64::NAN);
                scaler.is_exhausted()
            })
            .unwrap();
        assert_eq!(steps, 30);
    }

    #[test]
    fn its_state_round_trips() {
        let mut scaler = GradScaler::new().growth_interval(3).init_scale(1e30);
        scaler.update(1.0);
        scaler.update(1.0);
        let text = serde_json::to_string(&scaler).unwrap();
        let mut again: GradScaler = serde_json::from_str(&text).unwrap();
        assert_eq!(again, scaler);
        again.update(1.0);
        assert_eq!(again.get_scale(), 2e30);
    }
}
