//! Stochastic gradient descent with momentum.

use candle_core::{DType, Tensor};

use super::rules::{RuleOptimizer, Update, UpdateRule};
use crate::Result;
use crate::model::MaskedLm;
use crate::ops::{self, Param};

/// Stochastic gradient descent as `torch.optim.SGD` computes it: with momentum, damped or in Nesterov's form, and with weight
/// decay that is added to the gradient.
///
/// ```
/// # use cloze::model::{Config, MaskedLm};
/// use cloze::train::Sgd;
/// # let config = Config::new("roberta").set("vocab_size", 50).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let optimizer = Sgd::new(&model).momentum(0.9).nesterov(true);
/// # Ok::<(), cloze::Error>(())
/// ```
pub type Sgd = RuleOptimizer<SgdRule>;

/// The rule of [`Sgd`].
#[derive(Clone, Debug)]
pub struct SgdRule {
    momentum: f64,
    dampening: f64,
    nesterov: bool,
}

impl RuleOptimizer<SgdRule> {
    /// Returns an optimizer of all parameters of `model`, without momentum and weight decay.
    pub fn new(model: &MaskedLm) -> Self {
        Self::from_params(model.params())
    }

    /// Like [`new`](Self::new), for `params`, which must be distinct.
    pub fn from_params(params: &[Param]) -> Self {
        let rule = SgdRule {
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
        };
        Self::of(rule, params)
    }

    /// Sets how much of the sum of earlier gradients stays in each step. Default: 0.
    #[must_use]
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.rule.momentum = momentum;
        self
    }

    /// Sets by how much less than 1 each gradient counts in that sum. Default: 0.
    #[must_use]
    pub fn dampening(mut self, dampening: f64) -> Self {
        self.rule.dampening = dampening;
        self
    }

    /// Sets whether the step looks ahead along the sum (default: no).
    #[must_use]
    pub fn nesterov(mut self, nesterov: bool) -> Self {
        self.rule.nesterov = nesterov;
        self
    }
}

impl UpdateRule for SgdRule {
    fn name(&self) -> &'static str {
        "SGD"
    }

    fn state(&self, param: &Param) -> Result<Vec<(&'static str, Tensor)>> {
        if self.momentum == 0.0 {
            return Ok(Vec::new());
        }
        let zeros = Tensor::zeros(param.shape(), DType::F32, param.device())?;
        Ok(vec![("momentum_buffer", zeros)])
    }

    fn update(
        &self,
        param: &Param,
        grad: &Tensor,
        state: &mut [Tensor],
        at: &Update,
    ) -> Result<()> {
        let (momentum, decay) = (self.momentum, at.weight_decay);
        // The first gradient begins the sum undamped.
        let part = match at.step {
            1 => 1.0,
            _ => 1.0 - self.dampening,
        };
        let Some(sum) = state.first_mut() else {
            let value = param.value().to_dtype(DType::F32)?;
            let grad = (grad + (&value * decay)?)?;
            let value = (value - (grad * at.lr)?)?;
            return param.set(&value.to_dtype(param.dtype())?);
        };
        let [m, p, d, lr] = [momentum, part, decay, at.lr].map(|x| x as f32);
        let nesterov = self.nesterov;
        let done = ops::update_elements(param, grad, sum, |value, grad, sum| {
            let grad = grad + d * value;
            let sum = m * sum + p * grad;
            let direction = if nesterov { grad + m * sum } else { sum };
            (value - lr * direction, sum)
        })?;
        if !done {
            let value = param.value().to_dtype(DType::F32)?;
            let grad = (grad + (&value * decay)?)?;
            *sum = ((&*sum * momentum)? + (&grad * part)?)?;
            let direction = match nesterov {
                true => (grad + (&*sum * momentum)?)?,
                false => sum.clone(),
            };
            let value = (value - (direction * at.lr)?)?;
            param.set(&value.to_dtype(param.dtype())?)?;
        }
        Ok(())
    }
}
