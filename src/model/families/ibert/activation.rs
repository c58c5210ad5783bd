//! Activations whose range is measured, and which are rounded to integers of a few bits.

use candle_core::{Device, Tensor};

use crate::model::{Context, Measured, WeightBuilder};
use crate::ops::integer::{self, Scale};
use crate::{Error, Result, ops};

/// Where ranges start: what is seen widens an empty one.
const EMPTY: f32 = 1e-5;
/// How much of a range stays with each batch.
const MOMENTUM: f32 = 0.95;

/// The reference's `QuantAct`. Clones share the range.
#[derive(Clone, Debug)]
pub(super) struct QuantAct {
    min: Measured,
    max: Measured,
    bits: u32,
}

impl QuantAct {
    /// Returns the activation named by `weights`, with integers of `bits` bits.
    pub(super) fn new(weights: &WeightBuilder, bits: u32) -> Result<Self> {
        let end = |name: &str, value: f32| {
            let start = Tensor::new(&[value], &Device::Cpu)?;
            weights.measured(name, 1, Some(start))
        };
        let act = Self {
            min: end("x_min", -EMPTY)?,
            max: end("x_max", EMPTY)?,
            bits,
        };
        let of = act.clone();
        weights.derived("act_scaling_factor", move || {
            // Nothing was measured: as the reference saves it.
            let step = of.step().unwrap_or(0.0);
            Ok(Tensor::new(&[step], &Device::Cpu)?)
        });
        Ok(act)
    }

    fn range(&self) -> Result<(f32, f32)> {
        let end = |of: &Measured| -> Result<f32> {
            match of.get() {
                Some(value) => Ok(value.flatten_all()?.to_vec1::<f32>()?[0]),
                None => Ok(0.0),
            }
        };
        Ok((end(&self.min)?, end(&self.max)?))
    }

    /// Returns the real value of one integer step.
    pub(super) fn step(&self) -> Result<f32> {
        let (min, max) = self.range()?;
        if is_empty(min, max) {
            return Err(Error::Config(format!(
                "the range of {} has not been measured: call calibrate with a few batches, or train with quant_mode",
                self.min.name().trim_end_matches(".x_min")
            )));
        }
        Ok(integer::step(min, max, self.bits))
    }

    /// Returns `x` and what is added to it in integers, as real values, and what their step stands for. An `x` without a scale
    /// was computed in floats.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        scale: Option<&Scale>,
        added: Option<(&Tensor, &Scale)>,
        context: &Context,
    ) -> Result<(Tensor, f32)> {
        if context.measures_ranges() {
            self.measure(x, added.map(|(added, _)| added))?;
        }
        let step = self.step()?;
        let y = match scale {
            Some(scale) => integer::requantize(x, scale, added, step, self.bits)?,
            None => integer::quantize(x, &Scale::All(step), self.bits)?,
        };
        Ok((y, step))
    }

    /// Moves the range towards that of `x` and what is added to it.
    fn measure(&self, x: &Tensor, added: Option<&Tensor>) -> Result<()> {
        let x = x.detach();
        let sum = match added {
            Some(added) => ops::add(&added.detach(), &x)?,
            None => x,
        };
        let flat: Vec<f32> = sum.flatten_all()?.to_vec1()?;
        if let Some(bad) = flat.iter().find(|value| !value.is_finite()) {
            return Err(Error::argument(
                "inputs",
                format!(
                    "{} became {bad}",
                    self.min.name().trim_end_matches(".x_min")
                ),
            ));
        }
        let low = flat.iter().copied().fold(f32::INFINITY, f32::min);
        let high = flat.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (min, max) = self.range()?;
        let (min, max) = match is_empty(min, max) {
            true => (min + low, max + high),
            false => (
                min * MOMENTUM + low * (1.0 - 0.95f64) as f32,
                max * MOMENTUM + high * (1.0 - 0.95f64) as f32,
            ),
        };
        self.min.set(Some(Tensor::new(&[min], &Device::Cpu)?));
        self.max.set(Some(Tensor::new(&[max], &Device::Cpu)?));
        Ok(())
    }
}

/// Returns whether nothing has been seen yet.
fn is_empty(min: f32, max: f32) -> bool {
    min > -1.1 * EMPTY && max < 1.1 * EMPTY
}
