//! X-MOD (Pfeiffer et al. 2022, arXiv:2205.06266): XLM-RoBERTa with a small adapter for each language in every layer.
//!
//! The input `lang_ids` has one number for each example, an index into the config's `languages`; without it the config's
//! `default_language` is taken, which checkpoints mostly leave open.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::roberta;
use crate::model::nn::{Block, Linear, Norm, Order, Pass, Spec, Transformer, TransformerBlock};
use crate::model::{
    Architecture, Config, Context, Family, Input, Masked, ModelFlops, ModelInputs, Per,
    WeightBuilder, nn,
};
use crate::ops::{self, Activation, Param};
use crate::{Error, Result};

/// `XmodForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "xmod",
    class: "XmodForMaskedLM",
    synonyms: &["XmodModel"],
    defaults: r#"{"pad_token_id": 1, "languages": ["en_XX"]}"#,
    inputs: &[Input {
        name: "lang_ids",
        per: Per::Example,
        trailing: &[],
        padding: 0,
        masked: Masked::Kept,
    }],
    build,
    ..roberta::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Adapters {
    languages: Vec<String>,
    default_language: Option<String>,
    adapter_reduction_factor: usize,
    adapter_layer_norm: bool,
    adapter_reuse_layer_norm: bool,
    ln_before_adapter: bool,
    pre_norm: bool,
}

impl Default for Adapters {
    fn default() -> Self {
        Self {
            languages: vec!["en_XX".to_owned()],
            default_language: None,
            adapter_reduction_factor: 2,
            adapter_layer_norm: false,
            adapter_reuse_layer_norm: true,
            ln_before_adapter: true,
            pre_norm: false,
        }
    }
}

/// The name under which a pass hands the examples' languages to the blocks.
const LANGUAGES: &str = "languages";

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let adapters: Adapters = config.parse()?;
    let spec = roberta::spec(config)?;
    let spec = Spec {
        order: match adapters.pre_norm {
            true => Order::PreNorm,
            false => Order::PostNorm,
        },
        final_norm: adapters.pre_norm.then_some("encoder.LayerNorm"),
        ..spec
    };
    let hidden = spec.sizes.hidden;
    let inner = hidden.checked_div(adapters.adapter_reduction_factor);
    let inner = inner.filter(|&inner| inner > 0).ok_or_else(|| {
        Error::Config(format!(
            "adapter_reduction_factor {} must be from 1 to hidden_size {hidden}",
            adapters.adapter_reduction_factor
        ))
    })?;
    if adapters.languages.is_empty() {
        return Err(Error::Config("languages is empty".to_owned()));
    }
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let output = weights
            .pp(spec.base)
            .pp(format!("encoder.layer.{place}.output"));
        let adapter = |language: &String| -> Result<(Linear, Linear)> {
            let weights = output.pp(format!("adapter_modules.{language}"));
            Ok((
                Linear::new(&weights.pp("dense1"), hidden, inner, spec.std)?,
                Linear::new(&weights.pp("dense2"), inner, hidden, spec.std)?,
            ))
        };
        let norm = match adapters.adapter_layer_norm {
            true => Some(Norm::layer(
                &output.pp("adapter_layer_norm"),
                hidden,
                spec.eps,
            )?),
            false => None,
        };
        Ok(Arc::new(XmodBlock {
            block: spec.block(weights, place)?,
            adapters: adapters
                .languages
                .iter()
                .map(adapter)
                .collect::<Result<_>>()?,
            activation: spec.activation,
            norm,
            reuse_norm: adapters.adapter_reuse_layer_norm,
            residual_behind_norm: adapters.ln_before_adapter,
        }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    let default = match &adapters.default_language {
        Some(name) => {
            let found = adapters
                .languages
                .iter()
                .position(|language| language == name);
            Some(found.ok_or_else(|| {
                Error::Config(format!(
                    "default_language {name:?} is not among the languages: {}",
                    adapters.languages.join(", ")
                ))
            })?)
        }
        None => None,
    };
    Ok(Box::new(Xmod {
        transformer: spec.build_with(weights, blocks)?,
        languages: adapters.languages,
        default,
    }))
}

/// A transformer that knows the language of each example.
#[derive(Debug)]
struct Xmod {
    transformer: Transformer,
    languages: Vec<String>,
    default: Option<usize>,
}

impl Xmod {
    /// Returns the language of each example.
    fn languages_of(&self, inputs: &ModelInputs) -> Result<Vec<u32>> {
        let given = inputs.indices_of("lang_ids", &[inputs.batch], self.languages.len())?;
        match (given, self.default) {
            (Some(given), _) => Ok(given),
            (None, Some(default)) => Ok(vec![default as u32; inputs.batch]),
            (None, None) => Err(Error::argument(
                "lang_ids",
                format!(
                    "this model has an adapter for each language and the config names no default_language: set it \
                     (Config::set), or give each example lang_ids, an index into {}",
                    self.languages.join(", ")
                ),
            )),
        }
    }
}

impl Architecture for Xmod {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let languages = self.languages_of(inputs)?;
        let embedded = self.transformer.embeddings.forward(inputs, context)?;
        let mask = nn::padding_mask(inputs, embedded.device())?;
        let languages = Tensor::from_vec(languages, inputs.batch, &Device::Cpu)?;
        let pass = Pass {
            inputs: BTreeMap::from([(LANGUAGES, languages)]),
            ..Pass::new(mask, context)
        };
        self.transformer.encoder.forward(embedded, &pass)
    }

    fn head(&self) -> &dyn nn::Head {
        self.transformer.head()
    }

    fn max_positions(&self) -> Option<usize> {
        self.transformer.max_positions()
    }

    fn flops(&self) -> Option<ModelFlops> {
        self.transformer.flops()
    }
}

/// A block whose feed-forward output goes through the adapter of the example's language.
#[derive(Debug)]
struct XmodBlock {
    block: TransformerBlock,
    /// Of each language, the map to fewer features and back.
    adapters: Vec<(Linear, Linear)>,
    activation: Activation,
    /// The adapter's own normalization.
    norm: Option<Norm>,
    /// Whether the block's last normalization is used if the adapter has none.
    reuse_norm: bool,
    /// Whether the residual connection around the adapter starts after its normalization.
    residual_behind_norm: bool,
}

impl XmodBlock {
    /// Runs runs of examples of one language through its adapter.
    fn adapt(&self, x: &Tensor, languages: &[u32]) -> Result<Tensor> {
        let adapter = |x: &Tensor, language: u32| {
            let (down, up) = &self.adapters[language as usize];
            up.forward(&down.forward_act(x, self.activation)?)
        };
        let mut parts = Vec::new();
        let mut first = 0;
        for run in languages.chunk_by(|a, b| a == b) {
            if run.len() == languages.len() {
                return adapter(x, run[0]);
            }
            parts.push(adapter(&ops::narrow(x, 0, first, run.len())?, run[0])?);
            first += run.len();
        }
        ops::concat(&parts.iter().collect::<Vec<_>>(), 0)
    }
}

impl Block for XmodBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (block, context) = (&self.block, &pass.context);
        let pre = block.order == Order::PreNorm;
        let languages = match pass.inputs.get(LANGUAGES) {
            Some(languages) => languages.to_vec1::<u32>()?,
            None => vec![0; x.dim(0)?],
        };
        let attended = block.attended(x, context, |x, dropout| {
            block.attention.forward(x, &pass.mask, dropout)
        })?;
        let fed = if pre {
            block.output_norm.forward(&attended)?
        } else {
            attended.clone()
        };
        let fed = block.feed_forward.forward(&fed, context)?;
        let fed = ops::dropout(&fed, context.dropout(block.feed_forward.dropout))?;
        let fed = ops::add(&fed, &attended)?;
        let normed = match &self.norm {
            Some(norm) => norm.forward(&fed)?,
            None if self.reuse_norm => block.output_norm.forward(&fed)?,
            None => fed.clone(),
        };
        let residual = if self.residual_behind_norm {
            &normed
        } else {
            &fed
        };
        let adapted = self.adapt(&normed, &languages)?;
        let dropout = context.dropout(block.feed_forward.dropout);
        if pre {
            return ops::add(&ops::dropout(&adapted, dropout)?, residual);
        }
        block
            .output_norm
            .forward_residual(&adapted, residual, dropout)
    }

    fn params(&self) -> Vec<Param> {
        let mut params = self.block.params();
        for (down, up) in &self.adapters {
            params.extend(down.params());
            params.extend(up.params());
        }
        params.extend(self.norm.iter().flat_map(Norm::params));
        params
    }

    fn flops(&self) -> ModelFlops {
        let (down, up) = &self.adapters[0];
        let block = self.block.flops();
        ModelFlops {
            per_token: block.per_token + 2 * (down.weights() + up.weights()) as u64,
            ..block
        }
    }
}
