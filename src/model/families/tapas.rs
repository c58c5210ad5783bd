//! TAPAS (Herzig et al. 2020, arXiv:2004.02349): BERT that reads tables.
//!
//! Its `token_type_ids` are seven numbers per token: segment, column, row, previous label, column rank, inverse column
//! rank, numeric relation. Positions restart in each cell.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use super::bert;
use crate::model::nn::{Ids, Positions, Spec, Stream};
use crate::model::{Architecture, Config, Family, Input, ModelInputs, WeightBuilder};
use crate::{Error, Result};

/// `TapasForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "tapas",
    class: "TapasForMaskedLM",
    synonyms: &["TapasModel"],
    base: "tapas",
    defaults: r#"{"max_position_embeddings": 1024}"#,
    inputs: &[Input {
        trailing: &[TYPES],
        ..Input::per_token("token_type_ids")
    }],
    build,
    ..bert::FAMILY
};

/// The numbers that each token has.
const TYPES: usize = 7;
const COLUMN: usize = 1;
const ROW: usize = 2;

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Tables {
    max_position_embeddings: usize,
    type_vocab_sizes: Vec<usize>,
    reset_position_index_per_cell: bool,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            max_position_embeddings: 1024,
            type_vocab_sizes: vec![3, 256, 256, 2, 256, 256, 10],
            reset_position_index_per_cell: true,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let mut spec = Spec {
        base: "tapas",
        streams: Vec::new(),
        ..bert::spec(config)?
    };
    let tables: Tables = config.parse()?;
    if tables.type_vocab_sizes.len() != TYPES {
        return Err(Error::Config(format!(
            "type_vocab_sizes has {} numbers, but a token has {TYPES} types",
            tables.type_vocab_sizes.len()
        )));
    }
    let rows = tables.max_position_embeddings;
    if tables.reset_position_index_per_cell && rows > 0 {
        spec.positions = Positions::Other {
            rows,
            ids: Ids::Of(Arc::new(move |inputs| {
                positions_in_cells(inputs, rows).map(Some)
            })),
            most: None,
        };
    }
    for (which, &rows) in tables.type_vocab_sizes.iter().enumerate() {
        spec.streams.push(Stream {
            name: format!("embeddings.token_type_embeddings_{which}"),
            rows,
            ids: Ids::Of(Arc::new(move |inputs| types(inputs, which, rows).map(Some))),
            padding: None,
        });
    }
    Ok(Box::new(spec.build(weights)?))
}

/// Returns the seven types of all tokens, if there are any.
fn all_types(inputs: &ModelInputs) -> Result<Option<&[i64]>> {
    if inputs.token_type_ids.is_some() {
        return Err(Error::Dataset(format!(
            "TAPAS needs {TYPES} token_type_ids for each token, which tell its place in the table; there is one"
        )));
    }
    let (batch, seq) = inputs.shape();
    inputs.ids_of("token_type_ids", &[batch, seq, TYPES])
}

/// Type number `which` of all tokens; 0 for all where none are given.
fn types(inputs: &ModelInputs, which: usize, rows: usize) -> Result<Vec<u32>> {
    let Some(all) = all_types(inputs)? else {
        return Ok(vec![0; inputs.input_ids.len()]);
    };
    let index = |(token, types): (usize, &[i64])| match u32::try_from(types[which]) {
        Ok(index) if (index as usize) < rows => Ok(index),
        _ => Err(Error::Dataset(format!(
            "token_type_ids number {which} of token {} in row {} of the batch is {}, but must be below {rows}",
            token % inputs.seq,
            token / inputs.seq,
            types[which]
        ))),
    };
    all.chunks(TYPES).enumerate().map(index).collect()
}

/// Returns the tokens' positions, counted from the first token of the same cell in the same example.
fn positions_in_cells(inputs: &ModelInputs, rows: usize) -> Result<Vec<u32>> {
    let seq = inputs.seq;
    let all = all_types(inputs)?;
    let mut first = HashMap::new();
    let position = |token: usize| {
        let cell = all.map(|types| {
            let types = &types[token * TYPES..];
            (types[COLUMN], types[ROW])
        });
        let place = token % seq;
        let first = *first.entry((token / seq, cell)).or_insert(place);
        (place - first).min(rows - 1) as u32
    };
    Ok((0..inputs.input_ids.len()).map(position).collect())
}
