//! Adafactor (Shazeer & Stern 2018): second moments kept as the means of rows and columns.

use candle_core::{D, DType, Tensor};

use super::rules::{RuleOptimizer, Update, UpdateRule};
use crate::Result;
use crate::model::MaskedLm;
use crate::ops::Param;

/// Adafactor (Shazeer & Stern 2018) as in transformers: of a matrix's second moments it stores only the means of rows
/// and columns, so its state is tiny.
///
/// With [`relative_step`](RuleOptimizer::relative_step) it finds its own learning rate and ignores the one that it is given;
/// that is the default here as there. The [`Trainer`](super::Trainer)'s `optim("adafactor")` turns it off, together with
/// [`scale_parameter`](RuleOptimizer::scale_parameter), as the one in transformers does.
///
/// ```
/// # use cloze::model::{Config, MaskedLm};
/// use cloze::train::Adafactor;
/// # let config = Config::new("roberta").set("vocab_size", 50).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let optimizer = Adafactor::new(&model).relative_step(false).scale_parameter(false);
/// # Ok::<(), cloze::Error>(())
/// ```
pub type Adafactor = RuleOptimizer<AdafactorRule>;

/// The rule of [`Adafactor`].
#[derive(Clone, Debug)]
pub struct AdafactorRule {
    eps: (f64, f64),
    clip_threshold: f64,
    decay_rate: f64,
    beta1: Option<f64>,
    scale_parameter: bool,
    relative_step: bool,
    warmup_init: bool,
}

impl RuleOptimizer<AdafactorRule> {
    /// Returns an optimizer of all parameters of `model`, with the defaults of transformers.
    pub fn new(model: &MaskedLm) -> Self {
        Self::from_params(model.params())
    }

    /// Like [`new`](Self::new), for `params`, which must be distinct.
    pub fn from_params(params: &[Param]) -> Self {
        let rule = AdafactorRule {
            eps: (1e-30, 1e-3),
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            scale_parameter: true,
            relative_step: true,
            warmup_init: false,
        };
        Self::of(rule, params)
    }

    /// Sets the constant added to squared gradients, and the lower bound on a parameter's size, which scales its rate.
    /// Default: 1e-30 and 1e-3.
    #[must_use]
    pub fn eps(mut self, of_gradient: f64, of_parameter: f64) -> Self {
        self.rule.eps = (of_gradient, of_parameter);
        self
    }

    /// Sets the root mean square that an update of a parameter has at most. Default: 1.
    #[must_use]
    pub fn clip_threshold(mut self, threshold: f64) -> Self {
        self.rule.clip_threshold = threshold;
        self
    }

    /// Sets the power of the step that the second moments' decay rate comes near to 1 by. Default: -0.8.
    #[must_use]
    pub fn decay_rate(mut self, rate: f64) -> Self {
        self.rule.decay_rate = rate;
        self
    }

    /// Sets the decay rate of a running mean of the updates. Default: none is kept.
    #[must_use]
    pub fn beta1(mut self, beta1: f64) -> Self {
        self.rule.beta1 = Some(beta1);
        self
    }

    /// Sets whether rates are multiplied by the root mean square of the parameter (default: yes).
    #[must_use]
    pub fn scale_parameter(mut self, scale: bool) -> Self {
        self.rule.scale_parameter = scale;
        self
    }

    /// Sets whether the learning rate depends only on the step (default: yes).
    #[must_use]
    pub fn relative_step(mut self, relative: bool) -> Self {
        self.rule.relative_step = relative;
        self
    }

    /// Sets whether that rate begins at a millionth and rises (default: no).
    #[must_use]
    pub fn warmup_init(mut self, warmup: bool) -> Self {
        self.rule.warmup_init = warmup;
        self
    }
}

/// Returns the root mean square of all elements.
fn rms(tensor: &Tensor) -> Result<f64> {
    let squares = tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?;
    let squares = squares.to_scalar::<f64>()?;
    Ok((squares / tensor.elem_count().max(1) as f64).sqrt())
}

/// Adds `rise` of `new` to what is left of a running mean.
fn blend(mean: &Tensor, new: &Tensor, keep: f64) -> Result<Tensor> {
    Ok(((mean * keep)? + (new * (1.0 - keep))?)?)
}

impl UpdateRule for AdafactorRule {
    fn name(&self) -> &'static str {
        "Adafactor"
    }

    fn state(&self, param: &Param) -> Result<Vec<(&'static str, Tensor)>> {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, param.device());
        let dims = param.shape().dims();
        let mut state = match dims {
            [before @ .., rows, columns] => vec![
                ("exp_avg_sq_row", zeros(&[before, &[*rows]].concat())?),
                ("exp_avg_sq_col", zeros(&[before, &[*columns]].concat())?),
            ],
            _ => vec![("exp_avg_sq", zeros(dims)?)],
        };
        if self.beta1.is_some() {
            state.push(("exp_avg", zeros(dims)?));
        }
        Ok(state)
    }

    fn update(
        &self,
        param: &Param,
        grad: &Tensor,
        state: &mut [Tensor],
        at: &Update,
    ) -> Result<()> {
        let value = param.value().to_dtype(DType::F32)?;
        let step = at.step as f64;
        let mut lr = at.lr;
        if self.relative_step {
            let most = if self.warmup_init { 1e-6 * step } else { 1e-2 };
            lr = most.min(1.0 / step.sqrt());
        }
        if self.scale_parameter {
            lr *= rms(&value)?.max(self.eps.1);
        }
        let keep = 1.0 - step.powf(self.decay_rate);
        let squares = (grad.sqr()? + self.eps.0)?;
        let factored = grad.rank() >= 2;
        let mut update = if factored {
            state[0] = blend(&state[0], &squares.mean(D::Minus1)?, keep)?;
            state[1] = blend(&state[1], &squares.mean(D::Minus2)?, keep)?;
            let rows = state[0].broadcast_div(&state[0].mean_keepdim(D::Minus1)?)?;
            let rows = rows.sqrt()?.recip()?.unsqueeze(D::Minus1)?;
            let columns = state[1].sqrt()?.recip()?.unsqueeze(D::Minus2)?;
            (rows.broadcast_mul(&columns)? * grad)?
        } else {
            state[0] = blend(&state[0], &squares, keep)?;
            (state[0].sqrt()?.recip()? * grad)?
        };
        let clipped = (rms(&update)? / self.clip_threshold).max(1.0);
        update = (update * (lr / clipped))?;
        if let (Some(beta1), Some(mean)) = (self.beta1, state.last_mut()) {
            *mean = blend(mean, &update, beta1)?;
            update = mean.clone();
        }
        let value = ((value * (1.0 - at.weight_decay * lr))? - update)?;
        param.set(&value.to_dtype(param.dtype())?)
    }
}
