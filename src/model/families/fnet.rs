//! FNet (Lee-Thorp et al. 2021, arXiv:2105.03824): a fast encoder that mixes its tokens by Fourier transforms where BERT
//! attends.
//!
//! There is no attention, and so no attention mask: padding takes part in the mixing like any token, and only texts of one
//! length share a batch.

use std::sync::Arc;

use candle_core::Tensor;

use super::bert::{self, BertConfig};
use crate::Result;
use crate::model::nn::{
    Block, Dropouts, Embed, Embeddings, FeedForward, Linear, Norm, Pass, Positions, Sizes, Spec,
    Transformer,
};
use crate::model::{
    Architecture, Config, Context, Family, ModelFlops, ModelInputs, Sharing, WeightBuilder,
};
use crate::ops::{self, Dropout, Param};

/// `FNetForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "fnet",
    class: "FNetForMaskedLM",
    synonyms: &["FNetForPreTraining", "FNetModel"],
    base: "fnet",
    // The last two stand for the transform itself where it is written as a product.
    ignored: &["position_ids", "dft_mat_hidden", "dft_mat_seq"],
    carried: &["fnet.pooler."],
    defaults: r#"{"vocab_size": 32000, "hidden_act": "gelu_new", "type_vocab_size": 4, "pad_token_id": 3}"#,
    sharing: Sharing::OneLength,
    build,
    ..bert::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let rows = config.parse::<BertConfig>()?.max_position_embeddings;
    let spec = bert::spec(config)?;
    let dropout = spec.dropout.output;
    let spec = Spec {
        base: "fnet",
        sizes: Sizes {
            heads: 1,
            ..spec.sizes
        },
        // It stands behind the projection here.
        dropout: Dropouts {
            embeddings: 0.0,
            ..spec.dropout
        },
        positions: Positions::Table { rows, offset: 0 },
        projection: Some("embeddings.projection"),
        ..spec
    };
    let hidden = spec.sizes.hidden;
    let pooler = weights.pp(spec.base);
    pooler.carry_linear("pooler.dense", hidden, hidden, spec.std)?;
    let embeddings = spec.embeddings(weights)?;
    let head = spec.head(weights, &embeddings.lookups[0].table)?;
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let at = weights.pp(spec.base).pp(format!("encoder.layer.{place}"));
        let Sizes {
            hidden,
            intermediate,
            ..
        } = spec.sizes;
        Ok(Arc::new(FourierBlock {
            mixed_norm: Norm::layer(&at.pp("fourier.output.LayerNorm"), hidden, spec.eps)?,
            feed_forward: FeedForward {
                intermediate: Linear::new(
                    &at.pp("intermediate.dense"),
                    hidden,
                    intermediate,
                    spec.std,
                )?,
                activation: spec.activation,
                activation_dropout: 0.0,
                output: Linear::new(&at.pp("output.dense"), intermediate, hidden, spec.std)?,
                dropout: spec.dropout.output,
            },
            output_norm: Norm::layer(&at.pp("output.LayerNorm"), hidden, spec.eps)?,
        }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(Transformer {
        embeddings: Box::new(DroppedEmbeddings {
            embeddings,
            dropout,
        }),
        encoder: spec.encoder(weights, blocks)?,
        head: Box::new(head),
        prepare: None,
        max_positions: spec.max_positions(),
    }))
}

/// The embeddings, followed by dropout.
#[derive(Debug)]
struct DroppedEmbeddings {
    embeddings: Embeddings,
    dropout: f64,
}

impl Embed for DroppedEmbeddings {
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let x = self.embeddings.forward(inputs, context)?;
        ops::dropout(&x, context.dropout(self.dropout))
    }
}

/// A block whose first half has no weights but those of its normalization.
#[derive(Debug)]
struct FourierBlock {
    mixed_norm: Norm,
    feed_forward: FeedForward,
    output_norm: Norm,
}

impl Block for FourierBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let mixed = ops::fourier_mix(x)?;
        let x = self.mixed_norm.forward_residual(&mixed, x, Dropout::NONE)?;
        let fed = self.feed_forward.forward(&x, context)?;
        let dropout = context.dropout(self.feed_forward.dropout);
        self.output_norm.forward_residual(&fed, &x, dropout)
    }

    fn params(&self) -> Vec<Param> {
        [
            self.mixed_norm.params(),
            self.feed_forward.params(),
            self.output_norm.params(),
        ]
        .concat()
    }

    /// The transforms are left out: they have no weights, and cost what their algorithm costs.
    fn flops(&self) -> ModelFlops {
        ModelFlops {
            per_token: 2 * self.feed_forward.weights() as u64,
            ..ModelFlops::default()
        }
    }
}
