//! BART (Lewis et al. 2019, arXiv:1910.13461): an encoder that reads the damaged text, and a decoder that writes the whole
//! one from left to right. mBART and MVP are made of the same parts.
//!
//! The decoder reads the text that it is to write, one place late: `decoder_input_ids` (batch, m), with a mask
//! `decoder_attention_mask` where some of it is padding. Without them it reads the labels shifted by one place, -100 being
//! padding, or the encoder's own ids where there are no labels; that is also how blanks are filled. Labels of another length
//! than the input are the column `labels` (batch, m).
//!
//! With the labels of a `MaskingCollator`, -100 but for the masked tokens, the loss is the one that transformers gives, but a
//! degenerate one: the decoder reads padding but for a few tokens out of context. A `DenoisingCollator` gives the objective
//! that these models were trained with, the whole text as labels.

mod config;
mod layer;
mod prompts;
mod shift;
mod stack;

use candle_core::Tensor;

pub(super) use self::config::BartConfig;
pub(super) use self::prompts::PromptSizes;
pub(super) use self::shift::Shift;
use self::stack::{Memory, Row, Stack};
use crate::model::nn::{Head, Order, PredictionHead, check_layers};
use crate::model::{
    Architecture, Config, Context, Family, Init, Input, Masked, ModelFlops, ModelInputs, Per,
    Sharing, WeightBuilder,
};
use crate::ops::Param;
use crate::{Error, Result};

/// `BartForConditionalGeneration`.
pub(super) const FAMILY: Family = Family {
    model_type: "bart",
    class: "BartForConditionalGeneration",
    synonyms: &["BartModel"],
    base: "model",
    body: &["shared.", "encoder.", "decoder."],
    renames: &[],
    ignored: &[
        "encoder.version",
        "decoder.version",
        "classification_head.",
        "qa_outputs.",
    ],
    carried: &[],
    aliases: &[
        ("hidden_size", "d_model"),
        ("num_attention_heads", "encoder_attention_heads"),
    ],
    defaults: r#"{"vocab_size": 50265}"#,
    inputs: &INPUTS,
    sharing: Sharing::AnyLength,
    build: |config, weights| {
        let values: BartConfig = config.parse()?;
        let kind = Kind {
            order: Order::PostNorm,
            shift: Shift::StartWith(values.decoder_start_token_id),
            prompts: None,
        };
        build(config, weights, &kind)
    },
};

/// The differences between the families of this kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Where the blocks normalize.
    pub order: Order,
    /// The decoder's input where none is given.
    pub shift: Shift,
    /// The prompts of all layers, where there are any.
    pub prompts: Option<PromptSizes>,
}

const DECODER_INPUTS: &str = "decoder_input_ids";
const DECODER_MASK: &str = "decoder_attention_mask";

/// Inputs of these families besides the usual ones.
pub(super) const INPUTS: [Input; 2] = [
    Input {
        name: DECODER_INPUTS,
        per: Per::Place,
        trailing: &[],
        // These families' own.
        padding: 1,
        masked: Masked::Kept,
    },
    Input {
        name: DECODER_MASK,
        per: Per::Place,
        trailing: &[],
        padding: 0,
        masked: Masked::Kept,
    },
];

/// Takes all weights of a model of this kind and puts it together.
pub(super) fn build(
    config: &Config,
    weights: &WeightBuilder,
    kind: &Kind,
) -> Result<Box<dyn Architecture>> {
    let values: BartConfig = config.parse()?;
    values.check()?;
    let (vocab, width) = (values.vocab_size, values.d_model);
    let model = weights.pp("model");
    let words = word_table(&values, &model, config.tie_word_embeddings())?;
    // What is written is computed from what was read.
    check_layers(
        "encoder_layers plus decoder_layers",
        values.encoder_layers.saturating_add(values.decoder_layers),
    )?;
    let encoder = Stack::new(&values, &values.encoder(), kind, &model, &words)?;
    let decoder = Stack::new(&values, &values.decoder(), kind, &model, &words)?;
    let constant = weights.buffer("final_logits_bias", (1, vocab), Init::Zeros)?;
    let bias = Param::new("final_logits_bias", &constant.reshape(vocab)?)?;
    bias.set_trainable(false);
    let tied = config.tie_word_embeddings().then_some(&words);
    let (matrix, _) = weights.decoder("lm_head", None, tied, (vocab, width), values.init_std)?;
    Ok(Box::new(Bart {
        encoder,
        decoder,
        shift: kind.shift,
        pad: values.pad_token_id,
        max_positions: values.max_position_embeddings,
        head: PredictionHead {
            transform: None,
            decoder: matrix,
            bias: Some(bias),
        },
    }))
}

/// Returns the table that both sides, and mostly the output, share under any of its names.
fn word_table(values: &BartConfig, model: &WeightBuilder, tied: bool) -> Result<Param> {
    let encoder = model.full("encoder.embed_tokens.weight");
    let decoder = model.full("decoder.embed_tokens.weight");
    let mut names = vec![encoder.as_str(), &decoder];
    if tied && !model.differ(&model.full("shared.weight"), "lm_head.weight")? {
        names.push("lm_head.weight");
    }
    let init = Init::NormalExceptRow(values.init_std, values.pad_token_id);
    let shape = (values.vocab_size, values.d_model);
    let shared = model.pp("shared");
    shared.param_or_alias("weight", &names, shape, init)
}

/// An encoder, and a decoder with attention to the encoder's output.
#[derive(Debug)]
struct Bart {
    encoder: Stack,
    decoder: Stack,
    /// The decoder's input where none is given.
    shift: Shift,
    pad: u32,
    max_positions: usize,
    head: PredictionHead,
}

impl Bart {
    /// Returns what the decoder reads, and how much of it each example has.
    fn decoder_inputs(&self, inputs: &ModelInputs) -> Result<(Vec<u32>, usize)> {
        let (batch, seq) = inputs.shape();
        if let Some(column) = inputs.columns.get(DECODER_INPUTS) {
            let len = column.shape.get(1).copied().unwrap_or(0);
            let vocab = self.head.vocab_size();
            let ids = inputs.indices_of(DECODER_INPUTS, &[batch, len], vocab)?;
            return self.fitting(ids.unwrap_or_default(), len);
        }
        let labels = inputs.label_values();
        // Where the model is asked for nothing, labels say nothing about the text.
        let (source, len) = match labels.len() / batch.max(1) {
            len if len == 0 || inputs.counted_tokens() == 0 => (
                inputs.input_ids.iter().map(|&id| i64::from(id)).collect(),
                seq,
            ),
            len => (labels.to_vec(), len),
        };
        self.fitting(self.shift.apply(source, len, self.pad)?, len)
    }

    /// Checks that `len` ids have places in the decoder.
    fn fitting(&self, ids: Vec<u32>, len: usize) -> Result<(Vec<u32>, usize)> {
        if (1..=self.max_positions).contains(&len) {
            return Ok((ids, len));
        }
        Err(Error::argument(
            DECODER_INPUTS,
            format!(
                "{len} tokens for the decoder, which takes from 1 to {}",
                self.max_positions
            ),
        ))
    }
}

impl Architecture for Bart {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (batch, seq) = inputs.shape();
        let (ids, len) = self.decoder_inputs(inputs)?;
        let own = inputs.ids_of(DECODER_MASK, &[batch, len])?;
        let own = own.map(|mask| mask.iter().map(|&seen| u32::from(seen != 0)).collect());
        let own: Option<Vec<u32>> = own;
        let text = Row {
            ids: &inputs.input_ids,
            seen: Some(&inputs.attention_mask),
            shape: (batch, seq),
        };
        let memory = self.encoder.forward(&text, None, context)?;
        let written = Row {
            ids: &ids,
            seen: own.as_deref(),
            shape: (batch, len),
        };
        let memory = Memory {
            states: &memory,
            seen: &inputs.attention_mask,
            shape: (batch, seq),
        };
        self.decoder.forward(&written, Some(&memory), context)
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.max_positions)
    }

    fn flops(&self) -> Option<ModelFlops> {
        let (encoder, decoder) = (self.encoder.flops(), self.decoder.flops());
        Some(ModelFlops {
            per_token: encoder.per_token + decoder.per_token,
            per_pair: encoder.per_pair + decoder.per_pair,
            per_counted: 2 * self.head.weights() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Column, Config, Context, MaskedLm, ModelInputs};

    fn text() -> ModelInputs {
        let inputs = ModelInputs::new(vec![5, 6, 7, 2, 8, 9, 2, 1], (2, 4)).unwrap();
        inputs
            .with_attention_mask(vec![1, 1, 1, 1, 1, 1, 1, 0])
            .unwrap()
    }

    fn difference(a: &candle_core::Tensor, b: &candle_core::Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap();
        difference.max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn without_labels_the_decoder_reads_the_text_itself() {
        let model = MaskedLm::from_config(&Config::small("bart"), 1).unwrap();
        let shifted = Column::ids(vec![2, 5, 6, 7, 2, 8, 9, 2], [2, 4]).unwrap();
        let given = text().with_column("decoder_input_ids", shifted);
        let given = model.forward(&given).unwrap();
        let derived = model.forward(text()).unwrap();
        assert_eq!(difference(&derived, &given), 0.0);
        let none = text().with_labels(vec![-100; 8]).unwrap();
        assert_eq!(difference(&model.forward(&none).unwrap(), &given), 0.0);
        let some = text()
            .with_labels([vec![-100; 7], vec![6]].concat())
            .unwrap();
        assert!(difference(&model.forward(&some).unwrap(), &given) > 1e-4);
    }

    #[test]
    fn the_output_may_be_longer_than_the_input() {
        for model_type in ["bart", "mbart", "mvp"] {
            let model = MaskedLm::from_config(&Config::small(model_type), 1).unwrap();
            let labels = vec![5, 6, 9, 9, 7, 2, 8, 9, 9, 2, -100, -100];
            let labels = Column::ids(labels, [2, 6]).unwrap();
            let inputs = text().with_column("labels", labels);
            assert_eq!(model.counts(&inputs), [10]);
            assert_eq!(model.forward(&inputs).unwrap().dims(), [2, 6, 100]);
            let loss = model.loss(&inputs, &Context::eval()).unwrap();
            assert_eq!(loss.counted(), 10);
            let loss = loss.value().unwrap();
            assert!((3.0..7.0).contains(&loss), "{loss}");
        }
    }

    #[test]
    fn the_decoder_attends_only_to_earlier_tokens_and_not_to_padding() {
        let model = MaskedLm::from_config(&Config::small("mbart"), 1).unwrap();
        let logits = |decoder: [i64; 8], hidden: u32| {
            let mut inputs = text();
            inputs.input_ids[7] = hidden;
            let decoder = Column::ids(decoder.to_vec(), [2, 4]).unwrap();
            let inputs = inputs.with_column("decoder_input_ids", decoder);
            model.forward(&inputs).unwrap()
        };
        let before = logits([2, 5, 6, 7, 2, 8, 9, 2], 1);
        let after = logits([2, 5, 6, 9, 2, 8, 9, 2], 30);
        let rows = |logits: &candle_core::Tensor, from, len| logits.narrow(1, from, len).unwrap();
        assert_eq!(difference(&rows(&after, 0, 3), &rows(&before, 0, 3)), 0.0);
        assert!(difference(&rows(&after, 3, 1), &rows(&before, 3, 1)) > 1e-4);
    }

    #[test]
    fn invalid_inputs_are_reported() {
        let model = MaskedLm::from_config(&Config::small("bart"), 1).unwrap();
        let with = |name: &str, values: Vec<i64>, shape: &[usize]| {
            let column = Column::ids(values, shape).unwrap();
            let error = model.forward(text().with_column(name, column)).unwrap_err();
            error.to_string()
        };
        assert!(with("decoder_input_ids", vec![5, 100], &[2, 1]).contains("from 0 to 99"));
        assert!(with("decoder_input_ids", vec![], &[2, 0]).contains("from 1 to"));
        assert!(with("decoder_attention_mask", vec![1; 6], &[2, 3]).contains("[2, 4]"));
        let config = Config::small("bart").set("decoder_attention_heads", 5);
        let error = MaskedLm::from_config(&config, 1).unwrap_err().to_string();
        assert!(error.contains("decoder_attention_heads 5"), "{error}");
    }

    #[test]
    fn bare_names_and_all_names_of_the_shared_table_are_recognised() {
        let model = MaskedLm::from_config(&Config::small("bart"), 1).unwrap();
        let expected = model.forward(text()).unwrap();
        for table in ["shared", "encoder.embed_tokens", "decoder.embed_tokens"] {
            let folder = tempfile::tempdir().unwrap();
            model.save_pretrained(folder.path()).unwrap();
            let file = folder.path().join("model.safetensors");
            let tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu);
            let renamed = tensors.unwrap().into_iter().map(|(name, tensor)| {
                let bare = name.strip_prefix("model.").unwrap_or(&name);
                (bare.replace("shared", table), tensor)
            });
            let mut renamed: std::collections::HashMap<_, _> = renamed.collect();
            let version = candle_core::Tensor::new(&[3f32], &candle_core::Device::Cpu).unwrap();
            renamed.insert("encoder.version".to_owned(), version);
            candle_core::safetensors::save(&renamed, &file).unwrap();
            let again = MaskedLm::from_pretrained(folder.path().to_str().unwrap()).unwrap();
            let report = again.load_report();
            assert!(report.missing.is_empty(), "{report:?}");
            assert!(report.unexpected.is_empty(), "{report:?}");
            let found = again.forward(text()).unwrap();
            assert_eq!(difference(&found, &expected), 0.0, "{table}");
        }
    }

    #[test]
    fn scaling_embeddings_equals_scaling_the_table() {
        let plain = Config::small("mbart").set("tie_word_embeddings", false);
        let scaled = plain.clone().set("scale_embedding", true);
        let (plain, scaled) = (
            MaskedLm::from_config(&plain, 1).unwrap(),
            MaskedLm::from_config(&scaled, 1).unwrap(),
        );
        let table = plain.param("model.shared.weight").unwrap();
        table.set(&(table.value() * 24f64.sqrt()).unwrap()).unwrap();
        let (a, b) = (plain.forward(text()), scaled.forward(text()));
        assert!(difference(&a.unwrap(), &b.unwrap()) < 1e-5);
    }
}
