//! Differentiable operations that training rests on, each with a backward pass.
//!
//! One file per operation: its forward and backward for the CPU, behind one function; an operation with its own GPU
//! kernels has a folder: `mod.rs`, `cuda.rs` (with the feature `cuda`) and `kernel.cu`. They share `graph` (the tape
//! and the parameters), `gemm` (products) and `cuda` (memory, arguments, launches). Weights are passed as [`Param`]s,
//! into which the backward pass adds their gradients in place; activations are candle tensors and take part in candle's
//! autograd as usual.
//!
//! Some of candle's own fast functions have no backward and drop gradients silently; a training path uses these instead.

mod activation;
mod adamw;
mod add_broadcast;
mod affine;
mod allocator;
mod arithmetic;
mod attention;
mod convolution;
mod cross_entropy;
mod cross_entropy_of;
mod ctc_loss;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod damped_ema;
mod device;
mod dropout;
mod embedding;
mod fake_quantize;
mod fourier_mix;
mod gated;
mod gemm;
mod graph;
mod layer_norm;
mod linear;
mod mapped_file;
mod mean_segments;
mod multiply;
mod newton_pinv;
mod normalize_rows;
mod parallel;
mod precision;
mod rms_norm;
mod scale_by;
mod scatter_rows;
mod shapes;
mod simd;
mod softmax;
mod standardize;
mod sum_all;
mod update_elements;

pub mod integer;
pub mod naive;

pub use activation::{Activation, activate};
pub use adamw::{
    AdamWGroup, AdamWOptions, AdamWState, GradNorm, GradScale, adamw_step, adamw_step_groups,
    grad_norm, grad_norm_later,
};
pub use add_broadcast::add_broadcast;
pub use affine::affine;
pub use allocator::tune_allocator;
pub use arithmetic::{add, scale, sub};
pub use attention::{
    AttentionKernel, AttentionMask, AttentionOptions, Band, FusedLayout, PairWeights,
    RelativeIndex, RelativeTerms, Rotary, RotaryPairs, SparsePlan, attention, attention_fused,
    attention_with, pointwise_attention, relative_attention, relative_attention_fused,
    set_attention_kernel, sparse_attention, sparse_attention_sums,
};
pub use convolution::conv1d::{Conv1d, conv1d};
pub use convolution::depthwise_conv::depthwise_conv;
pub use convolution::dynamic_conv::dynamic_conv;
pub use cross_entropy::{IGNORE_INDEX, masked_cross_entropy};
pub use cross_entropy_of::{cross_entropy, smoothed_cross_entropy};
pub use ctc_loss::{CtcTargets, ctc_loss};
pub use damped_ema::{EmaParams, damped_ema};
pub(crate) use device::upload;
pub use device::{DeviceExt, DeviceMemory, device_memory, reset_peak_memory};
pub use dropout::{Dropout, dropout};
pub use embedding::{embedding, embedding_sum, select_rows};
pub use fake_quantize::{QuantRange, fake_quantize};
pub use fourier_mix::fourier_mix;
pub use gated::{Gate, gated};
pub use gemm::batched::matmul;
pub use gemm::matmul_kernel;
pub use graph::backward::backward;
pub use graph::checkpointing::{checkpoint, checkpoint_all};
pub(crate) use graph::param::{GradRows, GradWatcher, in_inference, watch_gradients};
pub use graph::param::{Param, inference, no_grad};
pub use graph::param_rows::param_rows;
pub(crate) use graph::storage::{copied, with_mut as with_values, zeros};
#[cfg(test)]
pub(crate) use graph::tape;
pub use layer_norm::{add_layer_norm, layer_norm};
pub use linear::grouped::linear_grouped;
pub use linear::{linear, linear_act};
pub use mapped_file::MappedFile;
pub use mean_segments::mean_segments;
pub use multiply::{mul, mul_rows};
pub use newton_pinv::newton_pinv;
pub use normalize_rows::{RowLength, normalize_rows};
pub(crate) use precision::in_pool;
pub use precision::{Precision, autocast, set_tf32, tf32};
pub use rms_norm::rms_norm;
pub use scale_by::scale_by;
pub use scatter_rows::scatter_rows;
pub use shapes::concat::concat;
pub use shapes::narrow::narrow;
pub use shapes::permute::permute;
pub use shapes::reshape::reshape;
pub(crate) use softmax::exponential_sum;
pub use softmax::softmax;
pub use standardize::{Standardized, standardize};
pub use sum_all::sum_all;
pub(crate) use update_elements::update_elements;
