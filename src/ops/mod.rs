//! Differentiable operations that training rests on, each with a backward pass.
//!
//! One file per operation: its forward and backward, for the CPU and (with the feature `cuda`) the GPU, behind one
//! function. Weights are taken as [`Param`]s, into which the backward pass adds their gradients in place; activations
//! are candle tensors and take part in candle's autograd as usual.
//!
//! Some of candle's own fast functions have no backward and drop gradients silently; a training path uses these instead.

mod accumulate;
mod activation;
mod adamw;
mod add_broadcast;
mod affine;
mod allocator;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod arithmetic;
mod attention;
mod backward;
mod batched_matmul;
mod checkpointing;
mod concat;
mod conv1d;
mod cross_entropy;
mod cross_entropy_of;
mod ctc_loss;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod damped_ema;
mod depthwise_conv;
mod device;
mod dropout;
mod dynamic_conv;
mod embedding;
mod fake_quantize;
mod fourier_mix;
mod gated;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod gemm_packed;
#[cfg(target_arch = "x86_64")]
mod gemm_skinny;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod gemm_tiles;
mod layer_norm;
mod linear;
mod linear_grouped;
mod linear_kept;
mod mapped_file;
mod matmul;
mod mean_segments;
mod multiply;
mod narrow;
mod newton_pinv;
mod normalize_rows;
#[cfg(target_arch = "x86_64")]
mod operand;
#[cfg(target_arch = "x86_64")]
mod panels;
mod parallel;
mod param;
mod param_rows;
mod permute;
mod precision;
mod reshape;
mod rms_norm;
mod scale_by;
mod scatter_rows;
mod simd;
mod softmax;
mod standardize;
mod storage;
mod sum_all;
pub(crate) mod tape;
#[cfg(target_arch = "x86_64")]
mod transpose;
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
pub use backward::backward;
pub use batched_matmul::matmul;
pub use checkpointing::{checkpoint, checkpoint_all};
pub use concat::concat;
pub use conv1d::{Conv1d, conv1d};
pub use cross_entropy::{IGNORE_INDEX, masked_cross_entropy};
pub use cross_entropy_of::{cross_entropy, smoothed_cross_entropy};
pub use ctc_loss::{CtcTargets, ctc_loss};
pub use damped_ema::{EmaParams, damped_ema};
pub use depthwise_conv::depthwise_conv;
pub(crate) use device::upload;
pub use device::{DeviceExt, DeviceMemory, device_memory, reset_peak_memory};
pub use dropout::{Dropout, dropout};
pub use dynamic_conv::dynamic_conv;
pub use embedding::{embedding, embedding_sum, select_rows};
pub use fake_quantize::{QuantRange, fake_quantize};
pub use fourier_mix::fourier_mix;
pub use gated::{Gate, gated};
pub use layer_norm::{add_layer_norm, layer_norm};
pub use linear::{linear, linear_act};
pub use linear_grouped::linear_grouped;
pub use mapped_file::MappedFile;
pub use matmul::matmul_kernel;
pub use mean_segments::mean_segments;
pub use multiply::{mul, mul_rows};
pub use narrow::narrow;
pub use newton_pinv::newton_pinv;
pub use normalize_rows::{RowLength, normalize_rows};
pub(crate) use param::{GradRows, GradWatcher, in_inference, watch_gradients};
pub use param::{Param, inference, no_grad};
pub use param_rows::param_rows;
pub use permute::permute;
pub(crate) use precision::in_pool;
pub use precision::{Precision, autocast, set_tf32, tf32};
pub use reshape::reshape;
pub use rms_norm::rms_norm;
pub use scale_by::scale_by;
pub use scatter_rows::scatter_rows;
pub(crate) use softmax::exponential_sum;
pub use softmax::softmax;
pub use standardize::{Standardized, standardize};
pub(crate) use storage::{copied, with_mut as with_values, zeros};
pub use sum_all::sum_all;
pub(crate) use update_elements::update_elements;
