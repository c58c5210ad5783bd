//! DeBERTa-v2 and DeBERTa-v3 (He et al. 2021, arXiv:2111.09543): DeBERTa with distances in buckets that grow with the
//! logarithm, and a projection each for queries, keys and values.
//!
//! Checkpoints of v3 were trained to tell replaced tokens, not to fill masks: without a masked-LM head, `fill_mask` is random
//! until the model has been trained.

use serde::Deserialize;

use super::deberta::{self, Convolution, Plan, Projections, Span, Values};
use crate::model::nn::{Linear, Spec};
use crate::model::{Architecture, Config, Family, WeightBuilder};
use crate::ops::Activation;
use crate::{Error, Result};

/// `DebertaV2ForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "deberta-v2",
    class: "DebertaV2ForMaskedLM",
    synonyms: &["DebertaV2ForPreTraining", "DebertaV2Model"],
    defaults: r#"{"vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24,
        "intermediate_size": 6144, "type_vocab_size": 0, "layer_norm_eps": 1e-7}"#,
    carried: &["deberta.encoder.LayerNorm."],
    build,
    ..deberta::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Version2 {
    hidden_size: usize,
    num_attention_heads: usize,
    attention_head_size: Option<usize>,
    share_att_key: bool,
    position_buckets: i64,
    norm_rel_ebd: String,
    conv_kernel_size: i64,
    conv_groups: usize,
    conv_act: String,
}

impl Default for Version2 {
    fn default() -> Self {
        Self {
            hidden_size: 1536,
            num_attention_heads: 24,
            attention_head_size: None,
            share_att_key: false,
            position_buckets: -1,
            norm_rel_ebd: "none".to_owned(),
            conv_kernel_size: 0,
            conv_groups: 1,
            conv_act: "tanh".to_owned(),
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: Values = config.parse()?;
    let version: Version2 = config.parse()?;
    let (hidden, heads) = (version.hidden_size, version.num_attention_heads);
    if let Some(size) = version.attention_head_size
        && size.checked_mul(heads) != Some(hidden)
    {
        return Err(Error::Config(format!(
            "attention_head_size {size} times num_attention_heads {heads} must be hidden_size {hidden}"
        )));
    }
    let kinds = values.kinds()?;
    let projections = |weights: &WeightBuilder, spec: &Spec| -> Result<Projections> {
        let map = |name: &str| Linear::new(&weights.pp(name), hidden, hidden, spec.std);
        Ok(Projections::Separate {
            query: map("query_proj")?,
            key: map("key_proj")?,
            value: map("value_proj")?,
        })
    };
    let positions = |weights: &WeightBuilder, spec: &Spec, own: &Projections| {
        if let (true, Projections::Separate { query, key, .. }) = (version.share_att_key, own) {
            return Ok((
                kinds.c2p.then(|| key.clone()),
                kinds.p2c.then(|| query.clone()),
            ));
        }
        let map = |name: &str| Linear::new(&weights.pp(name), hidden, hidden, spec.std);
        let key = kinds.c2p.then(|| map("pos_key_proj"));
        let query = kinds.p2c.then(|| map("pos_query_proj"));
        Ok((key.transpose()?, query.transpose()?))
    };
    let norms = version.norm_rel_ebd.to_lowercase();
    let normed = norms.split('|').any(|name| name.trim() == "layer_norm");
    Plan {
        values: &values,
        distances: version.span(&values)?,
        parts: 1 + usize::from(kinds.c2p) + usize::from(kinds.p2c),
        projections: &projections,
        positions: &positions,
        normed,
        conv: version.convolution()?,
    }
    .build(config, weights)
}

impl Version2 {
    fn span(&self, values: &Values) -> Result<Option<Span>> {
        if !values.relative_attention {
            return Ok(None);
        }
        let farthest = values.farthest()?;
        Ok(Some(match self.position_buckets {
            ..1 => Span {
                rows: farthest,
                buckets_up_to: None,
            },
            1 => {
                return Err(Error::Config(
                    "position_buckets must be at least 2, or -1 for none".to_owned(),
                ));
            }
            buckets => {
                let buckets = usize::try_from(buckets).unwrap_or(usize::MAX);
                Span {
                    rows: deberta::bounded("position_buckets", buckets)?,
                    buckets_up_to: Some(farthest),
                }
            }
        }))
    }

    fn convolution(&self) -> Result<Option<Convolution>> {
        let Ok(width @ 1..) = usize::try_from(self.conv_kernel_size) else {
            return Ok(None);
        };
        Ok(Some(Convolution {
            width,
            groups: self.conv_groups,
            activation: Activation::from_name(&self.conv_act)?,
        }))
    }
}
