//! Scaled dot-product attention over all heads.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

#[cfg(any(test, feature = "cuda"))]
mod composed;
mod cpu;
mod index;
mod layout;
pub(super) mod masks;
mod options;
mod packed;
mod plan;
mod pointwise;
mod relative;
mod rotary;
mod rows;
mod skew;
mod sparse;
mod window;

use std::sync::Arc;

use candle_core::{D, Tensor};

use self::cpu::{Attention, Inputs, Targets, Upstream};
use self::layout::{Heads, Shared, View, readable, with_heads};
use self::relative::{Parts, Terms};
use super::parallel::for_overwrite;
use super::{Dropout, naive};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
#[cfg(feature = "cuda")]
use crate::ops::{Activation, checkpoint_all};
use crate::{Error, Result};

pub use index::RelativeIndex;
#[cfg(feature = "cuda")]
pub(super) use masks::reduce_to;
pub use options::{AttentionOptions, Band, FusedLayout};
pub use plan::SparsePlan;
pub use pointwise::PairWeights;
pub use relative::RelativeTerms;
pub use rotary::{Rotary, RotaryPairs};
pub use sparse::{sparse_attention, sparse_attention_sums};

/// The keys that a query may attend to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum AttentionMask {
    /// Everything.
    #[default]
    None,
    /// Keys whose entry in this (batch, key) u32 or u8 tensor is not zero: the tokenizer's `attention_mask`.
    Keys(Tensor),
    /// A tensor added to the scores before the softmax; broadcasts to (batch, heads, query, key) and is
    /// differentiable (relative position biases).
    Additive(Tensor),
    /// Restricts attention to the same sequence, where sequences of these lengths are concatenated in a single row of
    /// the batch, without padding. The positions of each begin at 0.
    Packed(Arc<[usize]>),
}

impl AttentionMask {
    /// Returns the positions of the longest sequence, in rows of `len` positions each.
    pub(crate) fn longest(&self, len: usize) -> usize {
        match self {
            Self::Packed(lengths) => lengths.iter().copied().max().unwrap_or(0),
            _ => len,
        }
    }
}

/// How attention is computed on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionKernel {
    /// As is fastest: by one kernel where it takes the heads, else by products.
    #[default]
    Auto,
    /// With kernels that store neither scores nor probabilities and whose time grows with the width of a band, for heads of
    /// up to 128 features, without additive masks and tables of values; otherwise with products.
    Fused,
    /// By products of all queries with all keys, with a softmax between them.
    Products,
}

/// Selects how attention is computed on GPUs, for comparisons. The default is the environment variable
/// `CLOZE_CUDA_ATTENTION` ("fused", "products"), or else [`AttentionKernel::Auto`]. No effect on the CPU.
pub fn set_attention_kernel(kernel: AttentionKernel) {
    #[cfg(feature = "cuda")]
    cuda::set_kernel(kernel);
    #[cfg(not(feature = "cuda"))]
    let _ = kernel;
}

/// Returns `softmax(scale · q kᵀ + mask) · v` for every head, with dropout on the probabilities.
///
/// `q` is (batch, query, heads · d), `k` (batch, key, heads · d), `v` (batch, key, heads · e), as the projections leave
/// them; the result is (batch, query, heads · e). A query all of whose keys are masked attends to all keys equally, as
/// in transformers.
///
/// Neither scores nor probabilities are kept: the backward pass forms them again, a block of queries at a time.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
    scale: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let options = AttentionOptions {
        scale,
        dropout,
        mask: mask.clone(),
        ..AttentionOptions::new(heads, 1)
    };
    attention_with(q, k, v, &options)
}

/// Like [`attention`](attention()), with everything that [`AttentionOptions`] offers: grouped heads, bands, the causal rule,
/// rotary positions.
///
/// `q` is (batch, query, heads · d), `k` (batch, key, kv_heads · d), `v` (batch, key, kv_heads · e); the result is (batch,
/// query, heads · e). On the CPU, parts of a larger tensor are read where they lie.
///
/// With a band or the causal rule, the result of a query that sees no key is 0. Without them, a query all of whose keys
/// are masked attends to all keys equally.
///
/// # Errors
/// If shapes do not fit, or there are fewer keys than queries under a band or the causal rule.
pub fn attention_with(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend([q, k, v], options, None)
}

/// Like [`attention_with`], for the result of one projection to queries, keys and values: (batch, sequence, width) with
/// width = (heads + 2 · kv_heads) · d, in that layout. Nothing is copied on the CPU, and one gradient of that shape comes
/// back.
///
/// # Errors
/// If shapes do not fit, or heads are grouped in [`FusedLayout::PerHead`].
pub fn attention_fused(
    qkv: &Tensor,
    layout: FusedLayout,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend_fused(qkv, layout, options, None)
}

/// Like [`attention_with`], with terms that depend on the distance between query and key.
///
/// Time grows with queries · keys as without them; none of the terms is kept for the backward pass, and at most one row
/// per distance is formed temporarily.
///
/// # Errors
/// If shapes do not match, or an index is beyond a table's last row.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use cloze::ops::{AttentionOptions, RelativeIndex, RelativeTerms, relative_attention};
/// let x = Tensor::rand(-1f32, 1f32, (2, 5, 8), &Device::Cpu)?;
/// let distances = Tensor::rand(-1f32, 1f32, (9, 4), &Device::Cpu)?;
/// let terms = RelativeTerms {
///     query_table: Some(distances),
///     ..RelativeTerms::new(RelativeIndex::clipped(5, 5, -4, 4))
/// };
/// let y = relative_attention(&x, &x, &x, &terms, &AttentionOptions::new(2, 4))?;
/// assert_eq!(y.dims(), [2, 5, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn relative_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    terms: &RelativeTerms,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend([q, k, v], options, Some(terms))
}

/// Like [`relative_attention`], for queries, keys and values side by side as [`attention_fused`] takes them.
///
/// # Errors
/// As these two.
pub fn relative_attention_fused(
    qkv: &Tensor,
    layout: FusedLayout,
    terms: &RelativeTerms,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend_fused(qkv, layout, options, Some(terms))
}

/// Like [`attention_with`], or as [`relative_attention`] where there are terms, with weights that depend on each pair's own score
/// in place of the softmax. Masked keys, and those that a query does not see, weigh nothing.
///
/// # Errors
/// As there.
pub fn pointwise_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    weights: PairWeights,
    terms: Option<&RelativeTerms>,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let qkv = [q, k, v];
    let sizes = Sizes::new(qkv, options)?;
    check(&sizes, options, terms)?;
    if sizes.is_empty() {
        let shape = (sizes.batch, sizes.queries, sizes.heads * sizes.value);
        return Ok(Tensor::zeros(shape, q.dtype(), q.device())?);
    }
    #[cfg(feature = "cuda")]
    if let (true, Some(weights)) = (
        qkv.iter().all(|x| crate::ops::cuda::takes(x, [])),
        weights.activation(),
    ) {
        return formed_again(qkv, sizes, options, terms, Some(weights));
    }
    if !is_fused(&qkv, options, terms) {
        return naive::attend(qkv, options, terms, Some(weights));
    }
    let qkv = [readable(q)?, readable(k)?, readable(v)?];
    let attention = Attention::new(sizes, options, Some(weights))?;
    on_cpu(&qkv.each_ref(), None, attention, options, terms)
}

fn attend(
    qkv: [&Tensor; 3],
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Tensor> {
    let [q, k, v] = qkv;
    if let AttentionMask::Packed(lengths) = &options.mask {
        return packed::attend(&qkv, None, lengths, options, terms);
    }
    let sizes = Sizes::new(qkv, options)?;
    check(&sizes, options, terms)?;
    #[cfg(feature = "cuda")]
    if qkv.iter().all(|x| crate::ops::cuda::takes(x, [])) {
        return on_gpu(qkv, sizes, options, terms);
    }
    if sizes.is_empty() {
        let shape = (sizes.batch, sizes.queries, sizes.heads * sizes.value);
        return Ok(Tensor::zeros(shape, q.dtype(), q.device())?);
    }
    if !is_fused(&qkv, options, terms) {
        return naive::attend(qkv, options, terms, None);
    }
    let qkv = [readable(q)?, readable(k)?, readable(v)?];
    let attention = Attention::new(sizes, options, None)?;
    on_cpu(&qkv.each_ref(), None, attention, options, terms)
}

/// For tensors on a GPU: by its kernels, or composed of them.
#[cfg(feature = "cuda")]
fn on_gpu(
    qkv: [&Tensor; 3],
    sizes: Sizes,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Tensor> {
    if sizes.is_empty() {
        return cuda::attention(qkv, sizes, &options.mask, options.scale, options.dropout);
    }
    let request = cuda::Request {
        qkv: &qkv,
        layout: None,
        sizes,
        options,
        terms,
        lengths: None,
        plan: None,
    };
    if let Some(out) = cuda::attend(&request)? {
        return Ok(out);
    }
    if terms.is_some() || options.band.is_some() || options.causal {
        return formed_again(qkv, sizes, options, terms, None);
    }
    by_products(qkv, sizes, options, terms, None)
}

/// Composed attention on a GPU; what is formed for pairs is kept for the backward pass.
#[cfg(feature = "cuda")]
fn by_products(
    qkv: [&Tensor; 3],
    sizes: Sizes,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
    weights: Option<Activation>,
) -> Result<Tensor> {
    composed::attend(qkv, options, terms, weights, |qkv, mask| {
        cuda::attention(qkv, sizes, mask, options.scale, options.dropout)
    })
}

/// Like [`by_products`], but of all that is formed for pairs nothing is kept: the backward pass forms it again.
#[cfg(feature = "cuda")]
fn formed_again(
    qkv: [&Tensor; 3],
    sizes: Sizes,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
    weights: Option<Activation>,
) -> Result<Tensor> {
    let mut args = qkv.to_vec();
    let has_bias = match &options.mask {
        AttentionMask::Additive(bias) => {
            args.push(bias);
            true
        }
        _ => false,
    };
    args.extend(terms.into_iter().flat_map(RelativeTerms::tables).flatten());
    let (mut options, terms) = (options.clone(), terms.cloned());
    if has_bias {
        options.mask = AttentionMask::None;
    }
    checkpoint_all(&args, &[], move |args| {
        let (qkv, rest) = args.split_at(3);
        let (bias, tables) = rest.split_at(usize::from(has_bias));
        let mut options = options.clone();
        if let [bias] = bias {
            options.mask = AttentionMask::Additive(bias.clone());
        }
        let terms = terms.as_ref().map(|terms| terms.with_tables(tables));
        let qkv = [&qkv[0], &qkv[1], &qkv[2]];
        by_products(qkv, sizes, &options, terms.as_ref(), weights)
    })
}

fn attend_fused(
    qkv: &Tensor,
    layout: FusedLayout,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Tensor> {
    if let AttentionMask::Packed(lengths) = &options.mask {
        return packed::attend(&[qkv], Some(layout), lengths, options, terms);
    }
    let sizes = Sizes::fused(qkv, layout, options)?;
    check(&sizes, options, terms)?;
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(qkv, []) {
        let request = cuda::Request {
            qkv: &[qkv],
            layout: Some(layout),
            sizes,
            options,
            terms,
            lengths: None,
            plan: None,
        };
        if !sizes.is_empty()
            && let Some(out) = cuda::attend(&request)?
        {
            return Ok(out);
        }
        let [q, k, v] = composed::split(qkv, layout, options)?;
        return attend([&q, &k, &v], options, terms);
    }
    if sizes.is_empty() || !is_fused(&[qkv], options, terms) {
        let [q, k, v] = naive::split(qkv, layout, options)?;
        return attend([&q, &k, &v], options, terms);
    }
    let attention = Attention::new(sizes, options, None)?;
    on_cpu(&[&readable(qkv)?], Some(layout), attention, options, terms)
}

fn check(sizes: &Sizes, options: &AttentionOptions, terms: Option<&RelativeTerms>) -> Result<()> {
    masks::check(&options.mask, sizes)?;
    if let Some(mask) = &options.query_mask {
        masks::check_queries(mask, sizes)?;
    }
    if (options.band.is_some() || options.causal) && sizes.keys < sizes.queries {
        return Err(Error::argument(
            "options",
            format!(
                "a band and the causal rule need as many keys as queries or more, but there are {} queries and {} keys",
                sizes.queries, sizes.keys
            ),
        ));
    }
    if let Some(rotary) = &options.rotary {
        let positions = sizes.keys.max(sizes.queries);
        rotary.check(positions, sizes.key, sizes.value)?;
    }
    terms.map_or(Ok(()), |terms| terms.check(sizes))
}

/// Returns whether the loops of the CPU take these tensors.
fn is_fused(qkv: &[&Tensor], options: &AttentionOptions, terms: Option<&RelativeTerms>) -> bool {
    let bias_fits = match &options.mask {
        AttentionMask::Additive(bias) => storage::is_cpu_f32(bias),
        _ => true,
    };
    let tables = terms.map_or([None; 4], RelativeTerms::tables);
    bias_fits
        && qkv.iter().all(|x| storage::is_cpu_f32(x))
        && tables.into_iter().flatten().all(storage::is_cpu_f32)
}

/// For `qkv` whose rows can be read where they lie: queries, keys and values, or one tensor in a fused layout.
fn on_cpu(
    qkv: &[&Tensor],
    fused: Option<FusedLayout>,
    attention: Attention,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Tensor> {
    let sizes = attention.sizes;
    let scale = options.scale;
    let tables = terms.map_or([None; 4], RelativeTerms::tables);
    let (out, rows) = {
        let expand = |terms| Terms::new(terms, tables, &sizes, scale);
        let terms = terms.map(expand).transpose()?;
        with_qkv(qkv, fused, &sizes, |[q, k, v]| {
            with_bias(&attention, |bias| {
                let terms = terms.as_ref();
                attention.forward(&Inputs {
                    q,
                    k,
                    v,
                    bias,
                    terms,
                })
            })
        })??
    };
    let mut args = qkv.to_vec();
    if let AttentionMask::Additive(bias) = &options.mask {
        args.push(bias);
    }
    args.extend(tables.into_iter().flatten());
    let has_table = tables.map(|table| table.is_some());
    let terms = terms.map(RelativeTerms::without_tables);
    let shape = (sizes.batch, sizes.queries, sizes.heads * sizes.value);
    tape::record("attention", &args, out, shape, move |args, out, grad| {
        let (qkv, rest) = args.split_at(if fused.is_some() { 1 } else { 3 });
        let (bias, tables) = rest.split_at(usize::from(attention.bias.is_some()));
        let mut tables = tables.iter().copied();
        let tables = has_table.map(|has| if has { tables.next() } else { None });
        let saved = Saved {
            attention: &attention,
            terms: terms.as_ref(),
            tables,
            scale,
            rows: &rows,
        };
        saved.backward(qkv, fused, bias.first().copied(), out, grad)
    })
}

/// The state that a backward pass keeps from its forward pass.
struct Saved<'a> {
    attention: &'a Attention,
    terms: Option<&'a RelativeTerms>,
    tables: [Option<&'a Tensor>; 4],
    scale: f64,
    rows: &'a [rows::Row],
}

impl Saved<'_> {
    /// Returns the gradients of the arguments, in their order.
    fn backward(
        &self,
        qkv: &[&Tensor],
        fused: Option<FusedLayout>,
        bias: Option<&Tensor>,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<tape::Grads> {
        let s = self.attention.sizes;
        let wants = |x: Option<&Tensor>| x.is_some_and(Tensor::track_op);
        let expand = |terms| Terms::new(terms, self.tables, &s, self.scale);
        let terms = self.terms.map(expand).transpose()?;
        let parts = self
            .terms
            .map(|terms| Parts::new(self.tables.map(wants), &terms.index, &s));
        let mut buffers: Vec<Vec<f32>> =
            qkv.iter().map(|x| for_overwrite(x.elem_count())).collect();
        let [q, k, v] = match (fused, &mut buffers[..]) {
            (Some(layout), [all, ..]) => {
                let view = View::contiguous(s.queries, 1, s.fused_width());
                layout.split(view, &s).map(|view| Shared::new(all, view))
            }
            (None, [q, k, v]) => [
                Shared::new(q, View::contiguous(s.queries, s.heads, s.key)),
                Shared::new(k, View::contiguous(s.keys, s.kv_heads, s.key)),
                Shared::new(v, View::contiguous(s.keys, s.kv_heads, s.value)),
            ],
            _ => unreachable!("attention has one argument for queries, keys and values, or three"),
        };
        let all_scores = s.batch * s.heads * s.queries * s.keys;
        let mut scores = vec![0f32; if wants(bias) { all_scores } else { 0 }];
        let mut targets = Targets {
            q,
            k,
            v,
            scores: &mut scores,
            terms: parts.as_ref(),
        };
        with_qkv(qkv, fused, &s, |[q, k, v]| {
            storage::with2(out, grad, |out, grad| {
                with_bias(self.attention, |bias| {
                    let view = View::contiguous(s.queries, s.heads, s.value);
                    let up = Upstream {
                        out: Heads { data: out, view },
                        grad: Heads { data: grad, view },
                        rows: self.rows,
                    };
                    let terms = terms.as_ref();
                    let inputs = Inputs {
                        q,
                        k,
                        v,
                        bias,
                        terms,
                    };
                    self.attention.backward(&inputs, &up, &mut targets);
                })
            })
        })???;
        let mut grads = Vec::new();
        for (x, buffer) in qkv.iter().zip(buffers) {
            // Each is formed along the way to the others: those that nobody asked for are dropped.
            let tensor = storage::tensor(buffer, x.shape())?;
            grads.push(x.track_op().then_some(tensor));
        }
        if let Some(bias) = bias {
            grads.push(match wants(Some(bias)) {
                true => {
                    let shape = (s.batch, s.heads, s.queries, s.keys).into();
                    Some(masks::reduce_to(&storage::tensor(scores, &shape)?, bias)?)
                }
                false => None,
            });
        }
        if let (Some(parts), Some(terms)) = (parts, self.terms) {
            let of_tables = parts.collect(&terms.index, self.tables)?;
            let present = self.tables.iter().zip(of_tables);
            grads.extend(
                present
                    .filter(|(table, _)| table.is_some())
                    .map(|(_, grad)| grad),
            );
        }
        Ok(grads)
    }
}

/// Calls `f` with the heads of queries, keys and values.
fn with_qkv<T>(
    qkv: &[&Tensor],
    fused: Option<FusedLayout>,
    sizes: &Sizes,
    f: impl FnOnce([Heads; 3]) -> T,
) -> Result<T> {
    match (fused, qkv) {
        (Some(layout), [all]) => with_heads(all, sizes.key, |Heads { data, view }| {
            f(layout.split(view, sizes).map(|view| Heads { data, view }))
        }),
        (None, [q, k, v]) => with_heads(q, sizes.key, |q| {
            with_heads(k, sizes.key, |k| {
                with_heads(v, sizes.value, |v| f([q, k, v]))
            })
        })??,
        _ => unreachable!("attention has one argument for queries, keys and values, or three"),
    }
}

/// Calls `f` with the additive mask's elements, or none.
fn with_bias<T>(attention: &Attention, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    match &attention.bias {
        Some(bias) => storage::with(&bias.values, f),
        None => Ok(f(&[])),
    }
}

impl FusedLayout {
    /// Returns the layouts of the heads of queries, keys and values in the rows that `view` describes.
    fn split(self, view: View, sizes: &Sizes) -> [View; 3] {
        let d = sizes.key;
        let (starts, head) = match self {
            Self::Blocks => ([0, sizes.heads, sizes.heads + sizes.kv_heads], d),
            Self::PerHead => ([0, 1, 2], 3 * d),
        };
        starts.map(|start| View {
            start: view.start + start * d,
            head,
            ..view
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub batch: usize,
    pub heads: usize,
    /// Of keys and values.
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    /// Of a head of q and k.
    pub key: usize,
    /// Of a head of v.
    pub value: usize,
}

impl Sizes {
    fn new([q, k, v]: [&Tensor; 3], options: &AttentionOptions) -> Result<Self> {
        let ((batch, queries, width), (_, keys, _)) = (q.dims3()?, k.dims3()?);
        let value_width = v.dim(D::Minus1)?;
        let (heads, kv_heads) = (options.heads, checked_kv_heads(options)?);
        let key = width / heads;
        let fits = width % heads == 0 && value_width % kv_heads == 0;
        if !fits
            || k.dims() != [batch, keys, kv_heads * key]
            || v.dims() != [batch, keys, value_width]
        {
            return Err(Error::argument(
                "q, k, v",
                format!(
                    "shapes {:?}, {:?}, {:?} do not fit together in {heads} heads{}",
                    q.dims(),
                    k.dims(),
                    v.dims(),
                    match kv_heads == heads {
                        true => String::new(),
                        false => format!(" with {kv_heads} of keys and values"),
                    }
                ),
            ));
        }
        Ok(Self {
            batch,
            heads,
            kv_heads,
            queries,
            keys,
            key,
            value: value_width / kv_heads,
        })
    }

    fn fused(qkv: &Tensor, layout: FusedLayout, options: &AttentionOptions) -> Result<Self> {
        let (batch, n, width) = qkv.dims3()?;
        let (heads, kv_heads) = (options.heads, checked_kv_heads(options)?);
        let all = heads + 2 * kv_heads;
        if layout == FusedLayout::PerHead && kv_heads != heads {
            return Err(Error::argument(
                "options",
                format!(
                    "{heads} heads share {kv_heads} of keys and values, but FusedLayout::PerHead has one for each"
                ),
            ));
        }
        if width % all != 0 {
            return Err(Error::argument(
                "qkv",
                format!(
                    "shape {:?} does not divide into {heads} heads of queries and {kv_heads} each of keys and values",
                    qkv.dims()
                ),
            ));
        }
        Ok(Self {
            batch,
            heads,
            kv_heads,
            queries: n,
            keys: n,
            key: width / all,
            value: width / all,
        })
    }

    /// Of a row with queries, keys and values side by side.
    fn fused_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.key
    }

    pub(super) fn is_empty(&self) -> bool {
        [self.batch, self.queries, self.keys, self.key, self.value].contains(&0)
    }
}

fn checked_kv_heads(options: &AttentionOptions) -> Result<usize> {
    let (heads, kv_heads) = (options.heads, options.kv_heads());
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::argument(
            "heads",
            format!(
                "{heads} heads can't share {kv_heads} heads of keys and values; the first number must be a multiple of the second, and neither 0"
            ),
        ));
    }
    Ok(kv_heads)
}
