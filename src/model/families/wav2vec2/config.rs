use serde::Deserialize;

use crate::model::nn::check_layers;
use crate::{Error, Result};

/// The settings in a `config.json` of this family.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct Wav2Vec2Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub hidden_dropout: f64,
    pub activation_dropout: f64,
    pub attention_dropout: f64,
    pub feat_proj_dropout: f64,
    pub final_dropout: f64,
    pub layerdrop: f64,
    pub initializer_range: f64,
    pub layer_norm_eps: f64,
    pub feat_extract_norm: ExtractorNorm,
    pub feat_extract_activation: String,
    pub conv_dim: Vec<usize>,
    pub conv_stride: Vec<usize>,
    pub conv_kernel: Vec<usize>,
    pub conv_bias: bool,
    pub num_conv_pos_embeddings: usize,
    pub num_conv_pos_embedding_groups: usize,
    pub do_stable_layer_norm: bool,
    pub apply_spec_augment: bool,
    pub mask_time_prob: f64,
    pub mask_time_length: usize,
    pub mask_time_min_masks: usize,
    pub mask_feature_prob: f64,
    pub mask_feature_length: usize,
    pub mask_feature_min_masks: usize,
    pub ctc_loss_reduction: Reduction,
    pub ctc_zero_infinity: bool,
    pub pad_token_id: u32,
    pub add_adapter: bool,
    pub adapter_attn_dim: Option<usize>,
}

/// How the convolutions normalize.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExtractorNorm {
    /// Each feature of the first convolution over time.
    Group,
    /// The number of features of each frame after each convolution.
    Layer,
}

/// How the losses of a batch are reduced.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reduction {
    Sum,
    Mean,
}

impl Default for Wav2Vec2Config {
    fn default() -> Self {
        Self {
            vocab_size: 32,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            hidden_dropout: 0.1,
            activation_dropout: 0.1,
            attention_dropout: 0.1,
            feat_proj_dropout: 0.0,
            final_dropout: 0.1,
            layerdrop: 0.1,
            initializer_range: 0.02,
            layer_norm_eps: 1e-5,
            feat_extract_norm: ExtractorNorm::Group,
            feat_extract_activation: "gelu".to_owned(),
            conv_dim: vec![512; 7],
            conv_stride: vec![5, 2, 2, 2, 2, 2, 2],
            conv_kernel: vec![10, 3, 3, 3, 3, 2, 2],
            conv_bias: false,
            num_conv_pos_embeddings: 128,
            num_conv_pos_embedding_groups: 16,
            do_stable_layer_norm: false,
            apply_spec_augment: true,
            mask_time_prob: 0.05,
            mask_time_length: 10,
            mask_time_min_masks: 2,
            mask_feature_prob: 0.0,
            mask_feature_length: 10,
            mask_feature_min_masks: 0,
            ctc_loss_reduction: Reduction::Sum,
            ctc_zero_infinity: false,
            pad_token_id: 0,
            add_adapter: false,
            adapter_attn_dim: None,
        }
    }
}

impl Wav2Vec2Config {
    /// Checks that the sizes make sense and the model is one that is known here.
    pub(super) fn check(&self) -> Result<()> {
        let says = |why: String| Err(Error::Config(why));
        check_layers(
            "num_hidden_layers and the length of conv_dim",
            self.num_hidden_layers.saturating_add(self.conv_dim.len()),
        )?;
        if self.add_adapter || self.adapter_attn_dim.is_some() {
            return says(
                "add_adapter or adapter_attn_dim is set: adapters (as in MMS) are not supported"
                    .to_owned(),
            );
        }
        let (dims, kernels, strides) = (&self.conv_dim, &self.conv_kernel, &self.conv_stride);
        if dims.is_empty() || kernels.len() != dims.len() || strides.len() != dims.len() {
            return says(format!(
                "conv_dim, conv_kernel and conv_stride must be equally long, and have {}, {} and {} values",
                dims.len(),
                kernels.len(),
                strides.len()
            ));
        }
        if [dims, kernels, strides]
            .into_iter()
            .flatten()
            .any(|&n| n == 0)
        {
            return says("conv_dim, conv_kernel and conv_stride must be positive".to_owned());
        }
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || hidden == 0 || !hidden.is_multiple_of(heads) {
            return says(format!(
                "hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
            ));
        }
        let groups = self.num_conv_pos_embedding_groups;
        if groups == 0 || !hidden.is_multiple_of(groups) || self.num_conv_pos_embeddings == 0 {
            return says(format!(
                "hidden_size {hidden} is not a multiple of num_conv_pos_embedding_groups {groups}, or num_conv_pos_embeddings is 0"
            ));
        }
        if self.pad_token_id as usize >= self.vocab_size {
            return says(format!(
                "pad_token_id {}, the blank token, is outside the vocabulary of {}",
                self.pad_token_id, self.vocab_size
            ));
        }
        if self.mask_time_length == 0 || self.mask_feature_length == 0 {
            return says("mask_time_length and mask_feature_length must be positive".to_owned());
        }
        Ok(())
    }
}
