//! Wav2Vec2 (Baevski et al. 2020, arXiv:2006.11477) with a head for speech recognition: convolutions turn a waveform
//! into frames, a transformer processes the frames, and each predicts a letter or nothing.
//!
//! It reads no tokens. A batch is made by [`ModelInputs::from_waveforms`]: 16,000 samples a second with mean 0 and variance
//! 1, the shorter ones padded with zeros; the attention mask says which samples are sound. The column `labels` (batch, m) has
//! the letters, and -100 behind them. The loss is that of connectionist temporal classification, summed up over the batch
//! (`ctc_loss_reduction`: "sum") or taken per letter and example ("mean").
//!
//! In training, spans of frames are replaced by a learned vector, and spans of features by zeros (SpecAugment, Park et al.
//! 2019); `mask_time_prob` and `mask_feature_prob` say how many. The convolutions are mostly left as they are when a model
//! is fine-tuned: `model.freeze("wav2vec2.feature_extractor")`.

mod config;
mod features;
mod positions;
mod spec_augment;

use std::sync::Arc;

use candle_core::{Device, Tensor};

use self::config::{Reduction, Wav2Vec2Config};
use self::features::FeatureEncoder;
use self::positions::ConvPositions;
use self::spec_augment::SpecAugment;
use crate::model::nn::{
    Block, Encoder, FeedForward, Head, Linear, Norm, Order, Pass, PredictionHead, SelfAttention,
    TransformerBlock, numbered,
};
use crate::model::{
    Architecture, Config, Context, Family, INPUT_VALUES, Init, Input, LossTerm, Masked, MlmLoss,
    ModelFlops, ModelInputs, Per, Sharing, WeightBuilder,
};
use crate::ops::{self, Activation, AttentionMask, CtcTargets, Param};
use crate::{Error, Result};

/// `Wav2Vec2ForCTC`.
pub(super) const FAMILY: Family = Family {
    model_type: "wav2vec2",
    class: "Wav2Vec2ForCTC",
    synonyms: &["Wav2Vec2ForMaskedLM", "Wav2Vec2Model"],
    base: "wav2vec2",
    body: &[
        "feature_extractor.",
        "feature_projection.",
        "encoder.",
        "masked_spec_embed",
    ],
    renames: &[
        // As PyTorch called them before 2.1.
        (".conv.weight_g", ".conv.parametrizations.weight.original0"),
        (".conv.weight_v", ".conv.parametrizations.weight.original1"),
    ],
    // What pre-training needs.
    ignored: &["quantizer.", "project_q.", "project_hid."],
    carried: &["masked_spec_embed"],
    aliases: &[],
    defaults: "{}",
    inputs: &[Input {
        name: INPUT_VALUES,
        per: Per::Place,
        trailing: &[],
        padding: 0,
        masked: Masked::Kept,
    }],
    sharing: Sharing::OneLength,
    build,
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: Wav2Vec2Config = config.parse()?;
    values.check()?;
    let (hidden, std) = (values.hidden_size, values.initializer_range);
    let base = weights.pp("wav2vec2");
    let augment = SpecAugment::new(&values, &base)?;
    let features = FeatureEncoder::new(&values, &base.pp("feature_extractor"))?;
    let projection = base.pp("feature_projection");
    let width = values.conv_dim.last().copied().unwrap_or(0);
    let projection_norm = Norm::layer(&projection.pp("layer_norm"), width, values.layer_norm_eps)?;
    let k = 1.0 / (width.max(1) as f64).sqrt();
    let projection = Linear::drawn(
        &projection.pp("projection"),
        width,
        hidden,
        Init::Uniform(-k, k),
    )?;
    let encoder = base.pp("encoder");
    let positions = ConvPositions::new(&values, &encoder.pp("pos_conv_embed").pp("conv"))?;
    let norm = Norm::layer(&encoder.pp("layer_norm"), hidden, values.layer_norm_eps)?;
    let layers = encoder.pp("layers");
    let blocks = numbered("num_hidden_layers", values.num_hidden_layers)?
        .iter()
        .map(|place| {
            Ok(Arc::new(SometimesLeftOut {
                block: block(&values, &layers.pp(place))?,
                layerdrop: values.layerdrop,
            }) as Arc<dyn Block>)
        })
        .collect::<Result<_>>()?;
    let head = weights.pp("lm_head");
    let (norm, final_norm) = match values.do_stable_layer_norm {
        true => (None, Some(norm)),
        false => (Some(norm), None),
    };
    Ok(Box::new(Wav2Vec2 {
        features,
        projection_norm,
        projection,
        augment,
        positions,
        norm,
        encoder: Encoder {
            blocks,
            norm: final_norm,
        },
        head: PredictionHead {
            transform: None,
            decoder: head.param("weight", (values.vocab_size, hidden), Init::Normal(std))?,
            bias: Some(head.param("bias", values.vocab_size, Init::Zeros)?),
        },
        values,
    }))
}

/// Returns one layer of the encoder.
fn block(values: &Wav2Vec2Config, weights: &WeightBuilder) -> Result<TransformerBlock> {
    let (hidden, heads, std) = (
        values.hidden_size,
        values.num_attention_heads,
        values.initializer_range,
    );
    let (inner, fed) = (values.intermediate_size, weights.pp("feed_forward"));
    let maps = weights.pp("attention");
    let square = |name: &str| Linear::new(&maps.pp(name), hidden, hidden, std);
    let norm = |name: &str| Norm::layer(&weights.pp(name), hidden, values.layer_norm_eps);
    Ok(TransformerBlock {
        attention: SelfAttention {
            query: square("q_proj")?,
            key: square("k_proj")?,
            value: square("v_proj")?,
            heads,
            head_size: hidden / heads,
            dropout: values.attention_dropout,
            position_scores: None,
            angles: None,
        },
        attention_output: square("out_proj")?,
        attention_dropout: values.hidden_dropout,
        attention_norm: norm("layer_norm")?,
        feed_forward: FeedForward {
            intermediate: Linear::new(&fed.pp("intermediate_dense"), hidden, inner, std)?,
            activation: Activation::from_name(&values.hidden_act)?,
            activation_dropout: values.activation_dropout,
            output: Linear::new(&fed.pp("output_dense"), inner, hidden, std)?,
            dropout: values.hidden_dropout,
        },
        output_norm: norm("final_layer_norm")?,
        order: match values.do_stable_layer_norm {
            true => Order::PreNorm,
            false => Order::PostNorm,
        },
    })
}

#[derive(Debug)]
struct Wav2Vec2 {
    features: FeatureEncoder,
    projection_norm: Norm,
    projection: Linear,
    augment: SpecAugment,
    positions: ConvPositions,
    /// The normalization before the first block, if there is none after the last.
    norm: Option<Norm>,
    encoder: Encoder,
    head: PredictionHead,
    values: Wav2Vec2Config,
}

impl Wav2Vec2 {
    /// Returns how many frames of each example are sound.
    fn frames(&self, inputs: &ModelInputs) -> Result<Vec<usize>> {
        let rows = inputs.attention_mask.chunks(inputs.seq.max(1));
        let frames = rows.map(|row| {
            let samples = row.iter().filter(|&&seen| seen != 0).count();
            self.features.frames(samples)
        });
        frames.collect()
    }
}

impl Architecture for Wav2Vec2 {
    fn main_input(&self) -> &'static str {
        INPUT_VALUES
    }

    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (batch, samples) = inputs.shape();
        let frames = self.frames(inputs)?;
        let sound = inputs.floats_of(INPUT_VALUES, &[batch, samples])?;
        let device = self.head.decoder.device();
        let sound = Tensor::from_slice(sound, (batch, samples, 1), device)?;
        let features = self
            .projection_norm
            .forward(&self.features.forward(&sound)?)?;
        let x = self.projection.forward(&features)?;
        let x = ops::dropout(&x, context.dropout(self.values.feat_proj_dropout))?;
        let mut x = self.augment.apply(x, &frames, context)?;
        let len = x.dim(1)?;
        let mut mask = AttentionMask::None;
        if frames.iter().any(|&frames| frames < len) {
            let places = frames
                .iter()
                .flat_map(|&n| (0..len).map(move |i| u32::from(i < n)));
            let places: Vec<u32> = places.collect();
            let factors: Vec<f32> = places.iter().map(|&seen| seen as f32).collect();
            x = ops::mul_rows(&x, &Tensor::from_vec(factors, (batch, len), device)?)?;
            mask = AttentionMask::Keys(ops::upload(&places, (batch, len), device)?);
        }
        let mut x = ops::add(&x, &self.positions.forward(&x)?)?;
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        let x = ops::dropout(&x, context.dropout(self.values.hidden_dropout))?;
        let x = self.encoder.forward(x, &Pass::new(mask, context))?;
        ops::dropout(&x, context.dropout(self.values.final_dropout))
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn counts(&self, inputs: &ModelInputs) -> Vec<usize> {
        // A sum is no mean of anything: of several batches, the mean of their sums is taken.
        vec![match self.values.ctc_loss_reduction {
            Reduction::Sum => 1,
            Reduction::Mean => inputs.batch,
        }]
    }

    fn loss(&self, inputs: &ModelInputs, context: &Context) -> Result<MlmLoss> {
        let batch = inputs.batch;
        let labels = letters(inputs, self.head.vocab_size())?;
        let frames = self.frames(inputs)?;
        let logits = self.logits(inputs, context)?;
        let losses = ops::ctc_loss(
            &logits,
            CtcTargets {
                frames: &frames,
                labels: &labels,
                blank: self.values.pad_token_id,
                zero_infinity: self.values.ctc_zero_infinity,
            },
        )?;
        let losses = match self.values.ctc_loss_reduction {
            Reduction::Sum => losses,
            Reduction::Mean => {
                let shares = labels
                    .iter()
                    .map(|letters| 1.0 / letters.len().max(1) as f32);
                let shares = Tensor::from_vec(shares.collect(), batch, losses.device())?;
                ops::mul(&losses, &shares)?
            }
        };
        Ok(MlmLoss {
            terms: vec![LossTerm {
                sum: ops::sum_all(&losses)?,
                count: self.counts(inputs)[0],
                weight: 1.0,
            }],
        })
    }
}

/// Returns the letters of each example; a negative label is none.
fn letters(inputs: &ModelInputs, vocab: usize) -> Result<Vec<Vec<u32>>> {
    let labels = inputs.label_values();
    let len = labels.len() / inputs.batch.max(1);
    if len == 0 {
        return Ok(vec![Vec::new(); inputs.batch]);
    }
    let letter = |&label: &i64| match u32::try_from(label) {
        Ok(letter) if (letter as usize) < vocab => Ok(letter),
        _ => Err(Error::argument(
            "labels",
            format!("label {label} is not one of the model's {vocab} letters"),
        )),
    };
    let row = |row: &[i64]| {
        row.iter()
            .filter(|&&label| label >= 0)
            .map(letter)
            .collect()
    };
    labels.chunks(len).map(row).collect()
}

/// A block that training leaves out now and then (Fan et al. 2019).
#[derive(Debug)]
struct SometimesLeftOut {
    block: TransformerBlock,
    layerdrop: f64,
}

impl Block for SometimesLeftOut {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match pass.context.drops_layer(self.layerdrop) {
            true => Ok(x.clone()),
            false => self.block.forward(x, pass),
        }
    }

    fn params(&self) -> Vec<Param> {
        self.block.params()
    }

    fn flops(&self) -> ModelFlops {
        self.block.flops()
    }
}

/// Returns a parameter that is 1 everywhere and stays so, for normalizations without weights.
fn ones(count: usize, device: &Device) -> Result<Param> {
    let ones = Tensor::ones(count, candle_core::DType::F32, device)?;
    let ones = Param::new("ones", &ones)?;
    ones.set_trainable(false);
    Ok(ones)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, MaskedLm};

    fn sound(samples: usize) -> ModelInputs {
        let values = (0..2 * samples).map(|i| (i as f32 * 0.37).sin()).collect();
        let labels = Column::ids(vec![7, 3, 3, 7, -100, -100], [2, 3]).unwrap();
        let inputs = ModelInputs::from_waveforms(values, (2, samples)).unwrap();
        inputs.with_column("labels", labels)
    }

    #[test]
    fn the_mean_is_over_letters_and_then_over_examples() {
        let loss = |reduction: &str| {
            let config = Config::small("wav2vec2").set("ctc_loss_reduction", reduction);
            let model = MaskedLm::from_config(&config, 1).unwrap();
            model.loss(sound(200), &Context::eval()).unwrap()
        };
        let (sum, mean) = (loss("sum"), loss("mean"));
        let number = |loss: &MlmLoss| loss.value().unwrap();
        let alone = |example: usize| {
            let labels = [vec![7, 3, 3], vec![7]][example].clone();
            let len = labels.len();
            let mut inputs = sound(200);
            let values = inputs.floats_of(INPUT_VALUES, &[2, 200]).unwrap();
            let values = values[example * 200..][..200].to_vec();
            inputs = ModelInputs::from_waveforms(values, (1, 200)).unwrap();
            let inputs = inputs.with_column("labels", Column::ids(labels, [1, len]).unwrap());
            let model = MaskedLm::from_config(&Config::small("wav2vec2"), 1).unwrap();
            number(&model.loss(inputs, &Context::eval()).unwrap())
        };
        let (first, second) = (alone(0), alone(1));
        assert!((number(&sum) / (first + second) - 1.0).abs() < 1e-5);
        assert!((number(&mean) / ((first / 3.0 + second) / 2.0) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn frozen_convolutions_get_no_gradient() {
        let model = MaskedLm::from_config(&Config::small("wav2vec2"), 1).unwrap();
        assert_eq!(model.freeze("wav2vec2.feature_extractor."), 4);
        let loss = model.loss(sound(200), &Context::eval()).unwrap();
        model.backward(&loss.mean().unwrap()).unwrap();
        for param in model.params() {
            let unused = param.name().ends_with("masked_spec_embed");
            let frozen = param.name().contains("feature_extractor");
            assert_eq!(param.grad().is_none(), frozen || unused, "{}", param.name());
        }
    }

    #[test]
    fn layers_are_dropped_in_training_alone() {
        let config = Config::small("wav2vec2").set("layerdrop", 1.0);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        for (context, dropped) in [(Context::eval(), false), (Context::train(1, 1), true)] {
            let loss = model.loss(sound(200), &context).unwrap();
            model.backward(&loss.mean().unwrap()).unwrap();
            let layers = model.params().iter().filter(|param| {
                param.name().contains("encoder.layers.") && param.name().ends_with("weight")
            });
            let gradients: Vec<bool> = layers.map(|param| param.grad().is_none()).collect();
            assert!(!gradients.is_empty() && gradients.iter().all(|none| *none == dropped));
            model.zero_grad();
        }
    }

    #[test]
    fn the_older_class_is_opened_too() {
        let model = MaskedLm::from_config(&Config::small("wav2vec2"), 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        let file = folder.path().join("config.json");
        let saved = std::fs::read_to_string(&file).unwrap();
        let older = saved.replace("Wav2Vec2ForCTC", "Wav2Vec2ForMaskedLM");
        assert_ne!(saved, older);
        std::fs::write(&file, older).unwrap();
        let again = MaskedLm::from_pretrained(folder.path().to_str().unwrap()).unwrap();
        assert!(again.load_report().missing.is_empty());
    }

    #[test]
    fn invalid_waveforms_are_reported() {
        let model = MaskedLm::from_config(&Config::small("wav2vec2"), 1).unwrap();
        let ids = ModelInputs::new(vec![5, 6], (1, 2)).unwrap();
        let error = model.forward(&ids).unwrap_err().to_string();
        assert!(error.contains("input_values"), "{error}");
        // A frame of the second convolution takes three of the first: 10 + 2 · 5 samples.
        let error = model.forward(sound(19)).unwrap_err().to_string();
        assert!(error.contains("takes 20"), "{error}");
        assert_eq!(model.forward(sound(20)).unwrap().dims(), [2, 1, 100]);
        let text = MaskedLm::from_config(&Config::small("bert"), 1).unwrap();
        let error = text.forward(sound(20)).unwrap_err().to_string();
        assert!(error.contains("reads input_ids"), "{error}");
        let config = Config::small("wav2vec2").set("adapter_attn_dim", 16);
        let error = MaskedLm::from_config(&config, 1).unwrap_err().to_string();
        assert!(error.contains("adapter"), "{error}");
    }

    #[test]
    fn an_initialized_kernel_equals_its_normalized_direction_times_its_length() {
        let model = MaskedLm::from_config(&Config::small("wav2vec2"), 1).unwrap();
        let name = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight";
        let lengths = model.param(&format!("{name}.original0")).unwrap().value();
        let directions = model.param(&format!("{name}.original1")).unwrap().value();
        let found = directions.sqr().unwrap().sum_keepdim((0, 1)).unwrap();
        let found = (found.sqrt().unwrap() - lengths).unwrap().abs().unwrap();
        assert!(found.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6);
    }

    #[test]
    fn kernels_are_read_under_their_older_names() {
        let model = MaskedLm::from_config(&Config::small("wav2vec2"), 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        let file = folder.path().join("model.safetensors");
        let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        let renamed = tensors.into_iter().map(|(name, tensor)| {
            let name = name.replace("parametrizations.weight.original0", "weight_g");
            (
                name.replace("parametrizations.weight.original1", "weight_v"),
                tensor,
            )
        });
        let renamed: std::collections::HashMap<_, _> = renamed.collect();
        assert!(renamed.contains_key("wav2vec2.encoder.pos_conv_embed.conv.weight_g"));
        candle_core::safetensors::save(&renamed, &file).unwrap();
        let again = MaskedLm::from_pretrained(folder.path().to_str().unwrap()).unwrap();
        let report = again.load_report();
        assert!(
            report.missing.is_empty() && report.unexpected.is_empty(),
            "{report:?}"
        );
        let (a, b) = (
            model.forward(sound(60)).unwrap(),
            again.forward(sound(60)).unwrap(),
        );
        let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0);
    }
}
