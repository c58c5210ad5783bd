//! Lion (Chen et al. 2023): the sign of a mixture of the gradient and its running mean.

use candle_core::{DType, Tensor};

use super::rules::{RuleOptimizer, Update, UpdateRule};
use crate::Result;
use crate::model::MaskedLm;
use crate::ops::{self, Param};

/// Lion (Chen et al. 2023), which moves every weight by the learning rate, up or down: rates a third to a tenth of AdamW's
/// suit it, and weight decays as much larger. It remembers one number a weight.
///
/// ```
/// # use cloze::model::{Config, MaskedLm};
/// use cloze::train::Lion;
/// # let config = Config::new("roberta").set("vocab_size", 50).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let optimizer = Lion::new(&model).betas(0.95, 0.98).weight_decay(0.1);
/// # Ok::<(), cloze::Error>(())
/// ```
pub type Lion = RuleOptimizer<LionRule>;

/// The rule of [`Lion`].
#[derive(Clone, Debug)]
pub struct LionRule {
    betas: (f64, f64),
}

impl RuleOptimizer<LionRule> {
    /// Returns an optimizer of all parameters of `model`, with the paper's betas 0.9 and 0.99 and no weight decay.
    pub fn new(model: &MaskedLm) -> Self {
        Self::from_params(model.params())
    }

    /// Like [`new`](Self::new), for `params`, which must be distinct.
    pub fn from_params(params: &[Param]) -> Self {
        let rule = LionRule { betas: (0.9, 0.99) };
        Self::of(rule, params)
    }

    /// Sets how much of the running mean is in an update, and its decay rate. Default: 0.9 and 0.99.
    #[must_use]
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        self.rule.betas = (beta1, beta2);
        self
    }
}

impl UpdateRule for LionRule {
    fn name(&self) -> &'static str {
        "Lion"
    }

    fn state(&self, param: &Param) -> Result<Vec<(&'static str, Tensor)>> {
        let zeros = Tensor::zeros(param.shape(), DType::F32, param.device())?;
        Ok(vec![("exp_avg", zeros)])
    }

    fn update(
        &self,
        param: &Param,
        grad: &Tensor,
        state: &mut [Tensor],
        at: &Update,
    ) -> Result<()> {
        let (beta1, beta2) = self.betas;
        let keep = 1.0 - at.lr * at.weight_decay;
        let [mean] = state else {
            return Ok(());
        };
        let numbers = [beta1, 1.0 - beta1, beta2, 1.0 - beta2, keep, at.lr];
        let [b1, r1, b2, r2, decayed, lr] = numbers.map(|x| x as f32);
        let done = ops::update_elements(param, grad, mean, |value, grad, mean| {
            let mixture = mean * b1 + grad * r1;
            // Rust's signum of 0 is 1.
            let sign = match mixture {
                0.0 => 0.0,
                _ => mixture.signum(),
            };
            (value * decayed - lr * sign, mean * b2 + grad * r2)
        })?;
        if !done {
            let mixture = ((&*mean * beta1)? + (grad * (1.0 - beta1))?)?;
            let value = param.value().to_dtype(DType::F32)?;
            let value = ((value * keep)? - (mixture.sign()? * at.lr)?)?;
            *mean = ((&*mean * beta2)? + (grad * (1.0 - beta2))?)?;
            param.set(&value.to_dtype(param.dtype())?)?;
        }
        Ok(())
    }
}
