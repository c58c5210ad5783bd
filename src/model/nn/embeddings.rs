use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Linear, Norm};
use crate::Result;
use crate::model::{Context, ModelInputs};
use crate::ops::{self, Param};

/// Which row of a table each token takes.
#[derive(Clone)]
#[non_exhaustive]
pub enum Ids {
    /// The token's own id.
    Tokens,
    /// The segment that it belongs to; all belong to segment 0 where none are given.
    Segments,
    /// Its place in the row, plus this.
    Positions(u32),
    /// Its place among the tokens that are not the padding token, as RoBERTa counts: padding + 1, padding + 2, ..., and the
    /// padding's id for padding.
    PositionsAfterPadding(u32),
    /// What a family works out of the batch.
    Of(Arc<dyn Fn(&ModelInputs) -> Result<Vec<u32>> + Send + Sync>),
}

impl Ids {
    /// Returns the ids of the batch, (batch · seq).
    fn of(&self, inputs: &ModelInputs) -> Result<Vec<u32>> {
        let (batch, seq) = inputs.shape();
        Ok(match self {
            Self::Tokens => inputs.input_ids.clone(),
            Self::Segments => match &inputs.token_type_ids {
                Some(ids) => ids.clone(),
                None => vec![0; batch * seq],
            },
            Self::Positions(offset) => (0..batch)
                .flat_map(|_| *offset..*offset + seq as u32)
                .collect(),
            Self::PositionsAfterPadding(padding) => inputs.positions_after_padding(*padding),
            Self::Of(ids) => ids(inputs)?,
        })
    }
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tokens => f.write_str("Tokens"),
            Self::Segments => f.write_str("Segments"),
            Self::Positions(offset) => write!(f, "Positions({offset})"),
            Self::PositionsAfterPadding(id) => write!(f, "PositionsAfterPadding({id})"),
            Self::Of(_) => f.write_str("Of(..)"),
        }
    }
}

/// A table and the rows of it that are taken.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The table, (rows, width).
    pub table: Param,
    /// Which rows.
    pub ids: Ids,
    /// The row that gets no gradient from here.
    pub padding: Option<u32>,
}

/// The sum of several lookups, normalized, dropped out and brought to the encoder's width.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// The tables, the word table first.
    pub lookups: Vec<Lookup>,
    /// The normalization of the sum.
    pub norm: Option<Norm>,
    /// The dropout probability behind it.
    pub dropout: f64,
    /// The map to the encoder's width.
    pub projection: Option<Linear>,
}

impl Embeddings {
    /// Returns the vectors of the batch, (batch, seq, hidden).
    pub fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let sum = self.sum(inputs)?;
        let sum = match &self.norm {
            Some(norm) => norm.forward(&sum)?,
            None => sum,
        };
        let dropped = ops::dropout(&sum, context.dropout(self.dropout))?;
        match &self.projection {
            Some(projection) => projection.forward(&dropped),
            None => Ok(dropped),
        }
    }

    /// Returns the sum of the lookups alone, (batch, seq, width).
    pub fn sum(&self, inputs: &ModelInputs) -> Result<Tensor> {
        // Lookups read ids on the CPU, and take them to their tables.
        let ids = (self.lookups.iter())
            .map(|lookup| inputs.tensor_of(&lookup.ids.of(inputs)?, &Device::Cpu))
            .collect::<Result<Vec<_>>>()?;
        let lookups: Vec<_> = (ids.iter().zip(&self.lookups))
            .map(|(ids, lookup)| (ids, &lookup.table, lookup.padding))
            .collect();
        ops::embedding_sum(&lookups)
    }
}
