use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Linear, Norm};
use crate::Result;
use crate::model::onnx::{self, Graph, Value};
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
    /// Embeddings that a family computes from the batch; `None` adds nothing.
    Of(Arc<IdsOf>),
}

/// Works ids (batch · seq) out of a batch.
type IdsOf = dyn Fn(&ModelInputs) -> Result<Option<Vec<u32>>> + Send + Sync;

impl Ids {
    /// Returns the ids of the batch, (batch · seq).
    pub(crate) fn of(&self, inputs: &ModelInputs) -> Result<Option<Vec<u32>>> {
        let (batch, seq) = inputs.shape();
        Ok(Some(match self {
            Self::Tokens => inputs.input_ids.clone(),
            Self::Segments => match &inputs.token_type_ids {
                Some(ids) => ids.clone(),
                None => vec![0; batch * seq],
            },
            Self::Positions(offset) => (0..batch)
                .flat_map(|_| *offset..*offset + seq as u32)
                .collect(),
            Self::PositionsAfterPadding(padding) => inputs.positions_after_padding(*padding),
            Self::Of(ids) => return ids(inputs),
        }))
    }
}

impl Lookup {
    /// Writes the lookup into an ONNX graph and returns its rows, (batch, sequence, width) or what broadcasts to that.
    pub(crate) fn export(&self, graph: &mut Graph) -> Result<Value> {
        let tokens = graph.input("input_ids");
        let ids = match &self.ids {
            Ids::Tokens => tokens,
            // Where there is one segment, nobody needs to say which.
            Ids::Segments if self.table.shape().dims().first() == Some(&1) => graph.int(0),
            Ids::Segments => graph.input("token_type_ids"),
            Ids::Positions(offset) => {
                let (positions, offset) = (graph.positions(), graph.int(i64::from(*offset)));
                graph.add(&positions, &offset)
            }
            Ids::PositionsAfterPadding(padding) => {
                let padding = graph.int(i64::from(*padding));
                let is_padding = graph.node("Equal", &[&tokens, &padding], &[]);
                let is_text = graph.node("Not", &[&is_padding], &[]);
                let is_text = graph.to_int(&is_text);
                let axis = graph.int(1);
                let count = graph.node("CumSum", &[&is_text, &axis], &[]);
                let count = graph.mul(&count, &is_text);
                graph.add(&count, &padding)
            }
            Ids::Of(_) => return Err(onnx::refused("what the family looks up beside words")),
        };
        let table = graph.param(&self.table)?;
        Ok(graph.gather(&table, &ids))
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

/// From token ids, and what else a batch has, to vectors.
pub trait Embed: std::fmt::Debug + Send + Sync {
    /// Returns the vectors of the batch, (batch, seq, hidden).
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor>;

    /// Writes the embedding into an ONNX graph and returns the vectors.
    fn export(&self, _graph: &mut Graph) -> Result<Value> {
        Err(onnx::refused("the family's embedding of words"))
    }
}

/// The sum of several lookups, with normalization, dropout and a projection to the encoder's width.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// The tables, the word table first.
    pub lookups: Vec<Lookup>,
    /// The normalization of the sum.
    pub norm: Option<Norm>,
    /// The dropout probability after it.
    pub dropout: f64,
    /// The map to the encoder's width.
    pub projection: Option<Linear>,
}

impl Embed for Embeddings {
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        self.finish(&self.sum(inputs)?, context)
    }

    fn export(&self, graph: &mut Graph) -> Result<Value> {
        let mut sum: Option<Value> = None;
        for lookup in &self.lookups {
            let rows = lookup.export(graph)?;
            sum = Some(match sum {
                Some(sum) => graph.add(&sum, &rows),
                None => rows,
            });
        }
        let sum = sum.ok_or_else(|| onnx::refused("an embedding without a table"))?;
        let normed = match &self.norm {
            Some(norm) => norm.export(&sum, graph)?,
            None => sum,
        };
        match &self.projection {
            Some(projection) => projection.export(&normed, graph),
            None => Ok(normed),
        }
    }
}

impl Embeddings {
    /// Normalizes the sum, drops out of it, and brings it to the encoder's width.
    pub fn finish(&self, sum: &Tensor, context: &Context) -> Result<Tensor> {
        let normed = match &self.norm {
            Some(norm) => &norm.forward(sum)?,
            None => sum,
        };
        let dropped = ops::dropout(normed, context.dropout(self.dropout))?;
        match &self.projection {
            Some(projection) => projection.forward(&dropped),
            None => Ok(dropped),
        }
    }

    /// Returns the word table and everything else separately, for families that put something between them.
    pub fn split_first(&self) -> (Self, Self) {
        let with = |lookups: &[Lookup]| Self {
            lookups: lookups.to_vec(),
            ..self.clone()
        };
        let (words, others) = self.lookups.split_at(1);
        (with(words), with(others))
    }

    /// Returns the sum of the lookups alone, (batch, seq, width).
    pub fn sum(&self, inputs: &ModelInputs) -> Result<Tensor> {
        // Lookups read ids on the CPU, and take them to their tables.
        let mut taken = Vec::with_capacity(self.lookups.len());
        for lookup in &self.lookups {
            if let Some(ids) = lookup.ids.of(inputs)? {
                taken.push((inputs.tensor_of(&ids, &Device::Cpu)?, lookup));
            }
        }
        let lookups: Vec<_> = (taken.iter())
            .map(|(ids, lookup)| (ids, &lookup.table, lookup.padding))
            .collect();
        ops::embedding_sum(&lookups)
    }
}
