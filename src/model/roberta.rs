//! RoBERTa (Liu et al. 2019, arXiv:1907.11692) and its kin CamemBERT, XLM-RoBERTa and Data2VecText: BERT's encoder with
//! positions that start behind the padding id, and another head.

use candle_core::Tensor;

use super::bert::{BertConfig, BertEmbeddings, bert_encoder};
use super::layers::{Encoder, LayerNorm, Linear, PredictionHead, padding_mask};
use super::{Architecture, Config, Context, Decoder, Init, ModelFlops, ModelInputs, WeightBuilder};
use crate::Result;
use crate::ops::Activation;

/// `RobertaForMaskedLM`, `CamembertForMaskedLM`, `XLMRobertaForMaskedLM`, `Data2VecTextForMaskedLM`.
#[derive(Debug)]
pub(super) struct Roberta {
    embeddings: BertEmbeddings,
    encoder: Encoder,
    head: PredictionHead,
    max_positions: usize,
}

impl Roberta {
    /// The model whose body is named `base` ("roberta", "data2vec_text").
    pub(super) fn new(config: &Config, base: &str, weights: &WeightBuilder) -> Result<Self> {
        let tied = config.tie_word_embeddings();
        let settings: BertConfig = with_defaults(config).parse()?;
        settings.check()?;
        // The position table has rows that no position uses: those up to the padding id.
        let unused = settings.pad_token_id as usize + 1;
        let max_positions = settings.max_position_embeddings.saturating_sub(unused);

        let body = weights.pp(base);
        let embeddings = BertEmbeddings::new(&settings, &body.pp("embeddings"), true)?;
        let encoder = bert_encoder(&settings, &body)?;

        let (hidden, std) = (settings.hidden_size, settings.initializer_range);
        let head = weights.pp("lm_head");
        let decoder = if tied {
            weights.ignore(&["lm_head.decoder.weight"]);
            embeddings.word.clone()
        } else {
            let shape = (settings.vocab_size, hidden);
            head.param("decoder.weight", shape, Init::Normal(std))?
        };
        let aliases = ["lm_head.decoder.bias"];
        let head = PredictionHead {
            dense: Linear::new(&head.pp("dense"), hidden, hidden, std)?,
            // Whatever hidden_act says: the reference's head always uses the exact GELU.
            activation: Activation::Gelu,
            norm: LayerNorm::new(&head.pp("layer_norm"), hidden, settings.layer_norm_eps)?,
            decoder,
            bias: head.param_or_alias("bias", &aliases, settings.vocab_size, Init::Zeros)?,
        };
        Ok(Self {
            embeddings,
            encoder,
            head,
            max_positions,
        })
    }
}

/// RoBERTa's defaults where they differ from BERT's.
fn with_defaults(config: &Config) -> Config {
    let mut config = config.clone();
    let vocab_size = match config.model_type() {
        "roberta" => 50265,
        _ => 30522,
    };
    let defaults = [("vocab_size", vocab_size), ("pad_token_id", 1)];
    for (key, value) in defaults {
        if config.get(key).is_none_or(serde_json::Value::is_null) {
            config = config.set(key, value);
        }
    }
    config
}

impl Architecture for Roberta {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let embedded = self.embeddings.forward(inputs, context)?;
        let mask = padding_mask(inputs, embedded.device())?;
        self.encoder.forward(embedded, &mask, context)
    }

    fn transform(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.transform(hidden)
    }

    fn decoder(&self) -> Decoder {
        self.head.decoder()
    }

    fn flops(&self) -> Option<ModelFlops> {
        Some(self.head.flops(&self.encoder))
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.max_positions)
    }
}
