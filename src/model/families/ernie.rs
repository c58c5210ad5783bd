//! ERNIE 2 and 3 (Sun et al. 2019, arXiv:1907.12412): BERT, with a table of tasks beside those of words, positions and
//! segments where `use_task_id` is set.

use std::sync::Arc;

use serde::Deserialize;

use super::bert;
use crate::Result;
use crate::model::nn::{Ids, Spec, Stream};
use crate::model::{Architecture, Config, Family, Input, WeightBuilder};

/// `ErnieForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "ernie",
    class: "ErnieForMaskedLM",
    synonyms: &["ErnieForPreTraining", "ErnieModel"],
    base: "ernie",
    inputs: &[Input::per_token("task_type_ids")],
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Tasks {
    use_task_id: bool,
    task_type_vocab_size: usize,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            use_task_id: false,
            task_type_vocab_size: 3,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let mut spec = Spec {
        base: "ernie",
        ..bert::spec(config)?
    };
    let tasks: Tasks = config.parse()?;
    if tasks.use_task_id {
        let rows = tasks.task_type_vocab_size;
        spec.streams.push(Stream {
            name: "embeddings.task_type_embeddings".to_owned(),
            rows,
            ids: Ids::Of(Arc::new(move |inputs| {
                let (batch, seq) = inputs.shape();
                let given = inputs.indices_of("task_type_ids", &[batch, seq], rows)?;
                Ok(Some(given.unwrap_or_else(|| vec![0; batch * seq])))
            })),
            padding: None,
        });
    }
    Ok(Box::new(spec.build(weights)?))
}
