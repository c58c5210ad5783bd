//! Maps and normalizations in integers, with what the reference saves of them.

use candle_core::{Device, Tensor};

use crate::model::nn::{Linear, Norm};
use crate::model::{Context, Measured, WeightBuilder};
use crate::ops::integer::{self, Scale};
use crate::ops::{self, Param};
use crate::{Error, Result};

use super::activation::QuantAct;

/// The reference's `QuantLinear`: a map with 8-bit weights, whose input comes from `input`.
#[derive(Clone, Debug)]
pub(super) struct QuantLinear {
    weight: Param,
    bias: Param,
    input: QuantAct,
}

impl QuantLinear {
    /// Returns `map`, named by `weights`, in integers.
    pub(super) fn new(weights: &WeightBuilder, map: &Linear, input: &QuantAct) -> Result<Self> {
        let params = <[Param; 2]>::try_from(map.params());
        let [weight, bias] =
            params.map_err(|_| Error::Config(format!("{} has no bias", weights.full("weight"))))?;
        let map = Self {
            weight,
            bias,
            input: input.clone(),
        };
        let of = map.clone();
        weights.derived("weight_integer", move || Ok(of.integers()?.weight));
        let of = map.clone();
        weights.derived("bias_integer", move || vector(of.integers()?.bias));
        let of = map.clone();
        weights.derived("fc_scaling_factor", move || vector(of.integers()?.steps));
        Ok(map)
    }

    /// Returns the integers; those of the bias as they are with an input whose range is not known yet: zero.
    fn integers(&self) -> Result<integer::IntegerWeights> {
        let step = self.input.step();
        let known = step.is_ok();
        let step = step.unwrap_or(1.0);
        let mut integers = integer::integer_weights(&self.weight, &self.bias, step)?;
        if !known {
            integers.bias.fill(0.0);
        }
        Ok(integers)
    }

    /// Applies the map; returns the result and the value of its steps.
    pub(super) fn forward(&self, x: &Tensor) -> Result<(Tensor, Scale)> {
        integer::linear(x, self.input.step()?, &self.weight, &self.bias)
    }
}

fn vector(values: Vec<f32>) -> Result<Tensor> {
    let count = values.len();
    Ok(Tensor::from_vec(values, count, &Device::Cpu)?)
}

/// The reference's `IntLayerNorm`.
#[derive(Clone, Debug)]
pub(super) struct IntLayerNorm {
    weight: Param,
    bias: Param,
    eps: f64,
    shift: Measured,
    /// Whether it is computed in floats.
    float: bool,
}

impl IntLayerNorm {
    /// Returns `norm`, named by `weights`, in integers, or in floats.
    pub(super) fn new(weights: &WeightBuilder, norm: &Norm, float: bool) -> Result<Self> {
        let Norm::Layer {
            weight,
            bias: Some(bias),
            eps,
        } = norm
        else {
            return Err(Error::Config(format!(
                "{} has no bias",
                weights.full("weight")
            )));
        };
        let start = Tensor::new(&[0f32], &Device::Cpu)?;
        // The reference has one here, and never uses it.
        QuantAct::new(&weights.pp("activation"), 32)?;
        Ok(Self {
            weight: weight.clone(),
            bias: bias.clone(),
            eps: *eps,
            shift: weights.measured("shift", 1, Some(start))?,
            float,
        })
    }

    /// Normalizes `x`, whose steps are `step`; returns the result and, if it was computed in integers, the value of its
    /// steps.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        step: f32,
        context: &Context,
    ) -> Result<(Tensor, Option<Scale>)> {
        if self.float {
            let y = ops::layer_norm(x, &self.weight, Some(&self.bias), self.eps)?;
            return Ok((y, None));
        }
        let mut shift = match self.shift.get() {
            Some(shift) => shift.flatten_all()?.to_vec1::<f32>()?[0],
            None => 0.0,
        };
        if context.measures_ranges() {
            let needed = integer::layer_norm_shift(&x.detach(), step, shift)?;
            if needed != shift {
                self.shift.set(Some(Tensor::new(&[needed], &Device::Cpu)?));
                shift = needed;
            }
        }
        let (y, scale) = integer::layer_norm(x, step, &self.weight, &self.bias, shift)?;
        Ok((y, Some(scale)))
    }
}
