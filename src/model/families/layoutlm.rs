//! LayoutLM (Xu et al. 2019, arXiv:1912.13318): BERT with the position of each word on the page.
//!
//! The input `bbox` has a box (x0, y0, x1, y1) for each token, in thousandths of the page: the box of a word for all its
//! pieces, [0, 0, 0, 0] for `[CLS]` and padding, [1000, 1000, 1000, 1000] for `[SEP]`. A dataset's column of that name is
//! taken; masking leaves it as it is.

use std::sync::Arc;

use serde::Deserialize;

use super::bert;
use crate::model::nn::{Ids, Positions, Spec, Stream};
use crate::model::{Architecture, Config, Family, Input, ModelInputs, WeightBuilder};
use crate::{Error, Result};

/// `LayoutLMForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "layoutlm",
    class: "LayoutLMForMaskedLM",
    synonyms: &["LayoutLMModel"],
    base: "layoutlm",
    carried: &["layoutlm.pooler."],
    inputs: &[Input {
        trailing: &[4],
        ..Input::per_token("bbox")
    }],
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Page {
    max_2d_position_embeddings: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            max_2d_position_embeddings: 1024,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let mut spec = Spec {
        base: "layoutlm",
        ..bert::spec(config)?
    };
    if let Positions::Relative { rows, .. } = spec.positions {
        // Here the table of places in the text counts beside the distances.
        spec.streams.insert(
            0,
            Stream {
                name: spec.position_table.to_owned(),
                rows,
                ids: Ids::Positions(0),
                padding: None,
            },
        );
    }
    let rows = config.parse::<Page>()?.max_2d_position_embeddings;
    let places: [(&str, Place); 6] = [
        ("embeddings.x_position_embeddings", |bbox| bbox[0]),
        ("embeddings.y_position_embeddings", |bbox| bbox[1]),
        ("embeddings.x_position_embeddings", |bbox| bbox[2]),
        ("embeddings.y_position_embeddings", |bbox| bbox[3]),
        ("embeddings.h_position_embeddings", |bbox| bbox[3] - bbox[1]),
        ("embeddings.w_position_embeddings", |bbox| bbox[2] - bbox[0]),
    ];
    for (name, place) in places {
        spec.streams.push(Stream {
            name: name.to_owned(),
            rows,
            ids: Ids::Of(Arc::new(move |inputs| {
                of_boxes(inputs, rows, place).map(Some)
            })),
            padding: None,
        });
    }
    let hidden = spec.sizes.hidden;
    let model = spec.build(weights)?;
    let pooler = weights.pp(spec.base);
    pooler.carry_linear("pooler.dense", hidden, hidden, spec.std)?;
    Ok(Box::new(model))
}

/// One number of a box.
type Place = fn(&[i64]) -> i64;

/// Returns one number of each token's box; without boxes all are [0, 0, 0, 0].
fn of_boxes(inputs: &ModelInputs, rows: usize, place: Place) -> Result<Vec<u32>> {
    let (batch, seq) = inputs.shape();
    let Some(boxes) = inputs.ids_of("bbox", &[batch, seq, 4])? else {
        return Ok(vec![0; batch * seq]);
    };
    let of_box = |(token, bbox): (usize, &[i64])| match bbox {
        // Its sides are then in the tables too.
        [x0, y0, x1, y1]
            if *x0 >= 0 && *y0 >= 0 && x0 <= x1 && y0 <= y1 && (*x1.max(y1) as usize) < rows =>
        {
            Ok(place(bbox) as u32)
        }
        _ => Err(Error::Dataset(format!(
            "bbox of token {} in row {} of the batch is {bbox:?}; a box is [x0, y0, x1, y1] with 0 <= x0 <= x1 < {rows} and 0 <= y0 <= y1 < {rows}, in thousandths of the page",
            token % seq,
            token / seq
        ))),
    };
    boxes.chunks(4).enumerate().map(of_box).collect()
}
