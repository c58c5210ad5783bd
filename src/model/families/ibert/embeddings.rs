//! The embeddings of I-BERT in integers.

use candle_core::{Device, Tensor};

use super::activation::QuantAct;
use super::layers::IntLayerNorm;
use super::{EMBEDDING_ACT_BITS, EMBEDDING_BITS, Floats};
use crate::model::nn::{Embed, Embeddings, Lookup};
use crate::model::{Context, ModelInputs, WeightBuilder};
use crate::ops::integer::{self, Scale};
use crate::ops::{self, Param, Precision};
use crate::{Error, Result};

/// The sum of words, segments and positions, normalized.
#[derive(Debug)]
pub(super) struct IntegerEmbeddings {
    /// Words, then what is added to them, in the reference's order.
    lookups: Vec<Lookup>,
    sums: QuantAct,
    norm: IntLayerNorm,
    dropout: f64,
    output: QuantAct,
}

impl IntegerEmbeddings {
    /// Returns `embeddings`, named by `weights`, in integers. `output` is what they give.
    pub(super) fn new(
        weights: &WeightBuilder,
        embeddings: &Embeddings,
        output: &QuantAct,
        floats: Floats,
    ) -> Result<Self> {
        let mut lookups = embeddings.lookups.clone();
        // Segments before positions.
        lookups[1..].reverse();
        for lookup in &lookups {
            // The table's name, without the base and the "embeddings." in front, and "weight" behind.
            let name = lookup.table.name().rsplit('.').nth(1).unwrap_or_default();
            let (at, table) = (weights.pp(name), lookup.table.clone());
            at.derived("weight_integer", move || {
                let step = table_step(&table)?;
                let values: Vec<f32> = table.value().flatten_all()?.to_vec1()?;
                let integers = integer::levels(&values, |_| step, EMBEDDING_BITS);
                Ok(Tensor::from_vec(integers, table.shape(), &Device::Cpu)?)
            });
            let table = lookup.table.clone();
            at.derived("weight_scaling_factor", move || {
                Ok(Tensor::new(&[table_step(&table)?], &Device::Cpu)?)
            });
        }
        let norm = embeddings.norm.as_ref();
        let norm = norm.ok_or_else(|| Error::Config("the embeddings have no norm".to_owned()))?;
        // The reference has a second one, and never uses it.
        QuantAct::new(&weights.pp("embeddings_act2"), EMBEDDING_ACT_BITS)?;
        Ok(Self {
            lookups,
            sums: QuantAct::new(&weights.pp("embeddings_act1"), EMBEDDING_ACT_BITS)?,
            norm: IntLayerNorm::new(&weights.pp("LayerNorm"), norm, floats.layer_norm)?,
            dropout: embeddings.dropout,
            output: output.clone(),
        })
    }

    /// Returns the rows that `lookup` takes, rounded, and the value of their step.
    fn rows(lookup: &Lookup, inputs: &ModelInputs) -> Result<Option<(Tensor, Scale)>> {
        let Some(ids) = lookup.ids.of(inputs)? else {
            return Ok(None);
        };
        let ids = inputs.tensor_of(&ids, &Device::Cpu)?;
        let rows = ops::embedding(&ids, &lookup.table, lookup.padding)?;
        let scale = Scale::All(table_step(&lookup.table)?);
        Ok(Some((
            integer::quantize(&rows, &scale, EMBEDDING_BITS)?,
            scale,
        )))
    }
}

/// Returns the real value of one step of a table's integers.
fn table_step(table: &Param) -> Result<f32> {
    let values: Vec<f32> = table.value().flatten_all()?.to_vec1()?;
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    Ok(integer::step(min, max, EMBEDDING_BITS))
}

impl IntegerEmbeddings {
    fn compute(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let mut sum: Option<(Tensor, Scale)> = None;
        for lookup in &self.lookups {
            let Some((rows, of_rows)) = Self::rows(lookup, inputs)? else {
                continue;
            };
            sum = Some(match sum {
                None => (rows, of_rows),
                Some((sum, scale)) => {
                    let added = Some((&rows, &of_rows));
                    let (sum, step) = self.sums.forward(&sum, Some(&scale), added, context)?;
                    (sum, Scale::All(step))
                }
            });
        }
        let Some((sum, Scale::All(step))) = sum else {
            return Err(Error::Config("there are no embeddings".to_owned()));
        };
        let (normed, scale) = self.norm.forward(&sum, step, context)?;
        let normed = ops::dropout(&normed, context.dropout(self.dropout))?;
        Ok(self
            .output
            .forward(&normed, scale.as_ref(), None, context)?
            .0)
    }
}

impl Embed for IntegerEmbeddings {
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        ops::autocast(Precision::F32, || self.compute(inputs, context))
    }
}
