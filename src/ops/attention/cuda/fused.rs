//! Attention by the kernels that keep neither scores nor probabilities.

use std::ops::Range;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::{DType, Tensor};

use super::call::{Call, Strides};
use super::visits::Visits;
use super::{kernel, of_zeros_and_others};
use crate::Result;
use crate::ops::attention::layout::View;
use crate::ops::attention::skew;
use crate::ops::attention::{
    AttentionKernel, AttentionMask, AttentionOptions, FusedLayout, RelativeTerms, RotaryPairs,
    Sizes, SparsePlan, composed,
};
use crate::ops::checkpoint_all;
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, compute_dtype, pointer, pointer_or_null, prepared, size, slice_pointer,
    suffix,
};
use crate::ops::graph::tape;

/// Rows of a block's own side.
const ROWS: usize = 64;

/// Threads of a block.
const THREADS: u32 = 128;

/// The features of a head that there are kernels for; others are filled up to the next.
const WIDTHS: [usize; 4] = [32, 64, 96, 128];

/// How many keys a query sees to one side where there is no window: more than any sequence has.
const ALL: usize = 1 << 30;

/// Blocks that are enough for a GPU to be busy, where each that is more costs memory.
const BUSY: usize = 256;

/// Attention for arguments that have been checked, none of them empty.
pub(in crate::ops::attention) struct Request<'a> {
    /// Queries, keys and values, or one tensor in a fused layout.
    pub qkv: &'a [&'a Tensor],
    pub layout: Option<FusedLayout>,
    pub sizes: Sizes,
    pub options: &'a AttentionOptions,
    pub terms: Option<&'a RelativeTerms>,
    /// Of sequences that lie one behind the other in one row of the batch.
    pub lengths: Option<&'a [usize]>,
    /// The plan of sparse attention.
    pub plan: Option<&'a SparsePlan>,
}

/// Returns the result, (batch, queries, heads · value); `None` where the kernels do not take the request.
pub(in crate::ops::attention) fn attend(request: &Request) -> Result<Option<Tensor>> {
    let dtype = compute_dtype(request.qkv[0]);
    let gpu = Gpu::of(request.qkv[0].device())?;
    let Some(width) = request.width(dtype, &gpu)? else {
        return Ok(None);
    };
    let out = match request.terms {
        Some(terms) if terms.query_table.is_some() || terms.key_table.is_some() => {
            with_products(request, terms, width)
        }
        _ => record(request, [None, None], width),
    };
    out.map(Some)
}

/// With terms that are products of queries and keys with tables. These are formed before, and for the backward pass once more:
/// nothing of them is kept.
fn with_products(request: &Request, terms: &RelativeTerms, width: usize) -> Result<Tensor> {
    let mut args = request.qkv.to_vec();
    let own = args.len();
    args.extend(terms.tables().into_iter().flatten());
    let (layout, sizes, options) = (request.layout, request.sizes, request.options.clone());
    let (terms, lengths) = (terms.clone(), request.lengths.map(<[usize]>::to_vec));
    checkpoint_all(&args, &[], move |args| {
        let (qkv, tables) = args.split_at(own);
        let terms = terms.with_tables(tables);
        let request = Request {
            qkv: &qkv.iter().collect::<Vec<_>>(),
            layout,
            sizes,
            options: &options,
            terms: Some(&terms),
            lengths: lengths.as_deref(),
            plan: None,
        };
        record(&request, request.products(&terms)?, width)
    })
}

/// One operation of the graph, of queries, keys and values, the table of a bias, and products of queries and keys with tables.
fn record(request: &Request, products: [Option<Tensor>; 2], width: usize) -> Result<Tensor> {
    let dtype = compute_dtype(request.qkv[0]);
    let gpu = Gpu::of(request.qkv[0].device())?;
    let qkv = request.qkv.iter().map(|x| prepared(x, dtype));
    let mut args = qkv.collect::<Result<Vec<_>>>()?;
    let bias = request.terms.and_then(|terms| terms.bias_table.as_ref());
    let bias = bias.map(|bias| prepared(bias, DType::F32)).transpose()?;
    let mut fused = Fused::new(request, gpu, dtype, width)?;
    let products = products.map(|x| x.map(|x| prepared(&x, dtype)).transpose());
    let [by_query, by_key] = products;
    let extras = [bias, by_query?, by_key?];
    fused.has = extras.each_ref().map(Option::is_some);
    args.extend(extras.into_iter().flatten());
    let args: Vec<&Tensor> = args.iter().collect();
    let (out, log_sums) = fused.forward(&args)?;
    let s = fused.sizes;
    let shape = (s.batch, s.queries, s.heads * s.value);
    tape::record(
        "attention",
        &args,
        out.storage,
        shape,
        move |args, out, dy| fused.backward(args, out, &log_sums, dy),
    )
}

impl Request<'_> {
    /// The longest sequence's queries.
    fn longest(&self) -> usize {
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        self.lengths.map_or(self.sizes.queries, longest)
    }

    /// The number of sequences.
    fn sequences(&self) -> usize {
        self.lengths.map_or(self.sizes.batch, <[usize]>::len)
    }

    /// Returns the features that heads are filled up to; `None` where the kernels do not take the request.
    fn width(&self, dtype: DType, gpu: &Gpu) -> Result<Option<usize>> {
        let (s, o) = (&self.sizes, self.options);
        // In f32 what the other way does as well is done there, by a library's products.
        let wanted = match kernel() {
            AttentionKernel::Products => false,
            AttentionKernel::Fused => true,
            AttentionKernel::Auto => dtype != DType::F32 || !self.is_plain(),
        };
        let keys = self.lengths.map_or(s.keys, |_| self.longest());
        // A head's pairs are counted with 32 bits, and positions with 30.
        let counts = !o.dropout.is_active() || u32::try_from(self.longest() * keys).is_ok();
        let fits = s.keys < ALL && [s.heads, self.sequences()].iter().all(|&n| n <= 65_535);
        let takes = wanted
            && counts
            && fits
            && self.terms.is_none_or(|terms| self.takes(terms))
            && !matches!(o.mask, AttentionMask::Additive(_));
        let width = WIDTHS.into_iter().find(|&d| d >= s.key.max(s.value));
        Ok(match width {
            Some(width) if takes && largest_memory(width, dtype) <= gpu.block_memory()? => {
                Some(width)
            }
            _ => None,
        })
    }

    /// Whether the kernels take these terms.
    fn takes(&self, terms: &RelativeTerms) -> bool {
        let (s, rows) = (&self.sizes, |table: &Option<Tensor>| {
            table.as_ref().map(|table| table.dims()[0])
        });
        if terms.value_table.is_some() {
            return false;
        }
        match (rows(&terms.query_table), rows(&terms.key_table)) {
            (None, None) => true,
            (Some(a), Some(b)) if a != b => false,
            // Products are those of what was not turned, and every head has its own.
            _ => {
                s.heads == s.kv_heads
                    && self.options.rotary.is_none()
                    && terms.index.has_rows_in_runs()
            }
        }
    }

    /// Returns which of the index's distances are within a window.
    fn reached(&self, grid: skew::Grid, (left, right): (usize, usize)) -> Range<usize> {
        if grid.ratio != 1 {
            return 0..grid.distances();
        }
        // Of a query with the key at its own position.
        let own = grid.by_query(0, self.sizes.keys.saturating_sub(self.sizes.queries));
        own.saturating_sub(left)..(own + right + 1).min(grid.distances())
    }

    /// Returns the products of queries and of keys with the rows of their tables, (heads, batch, n, rows) each.
    fn products(&self, terms: &RelativeTerms) -> Result<[Option<Tensor>; 2]> {
        let [q, k] = match (self.layout, self.qkv) {
            (Some(layout), [qkv, ..]) => {
                let [q, k, _] = composed::split(qkv, layout, self.options)?;
                [q, k]
            }
            (_, qkv) => [qkv[0].clone(), qkv[1].clone()],
        };
        let factor = terms.scale.unwrap_or(self.options.scale);
        let of = |x: &Tensor, table: &Option<Tensor>| {
            let products = |table| composed::products(x, table, self.sizes.heads, factor);
            table.as_ref().map(products).transpose()
        };
        Ok([of(&q, &terms.query_table)?, of(&k, &terms.key_table)?])
    }

    /// Whether there is nothing but heads, masked keys and dropout.
    fn is_plain(&self) -> bool {
        let o = self.options;
        self.layout.is_none()
            && self.terms.is_none()
            && self.lengths.is_none()
            && self.plan.is_none()
            && o.kv_heads() == o.heads
            && o.band.is_none()
            && !o.causal
            && o.rotary.is_none()
            && o.query_mask.is_none()
    }
}

// SAFETY: numbers alone, in C's layout.
unsafe impl DeviceRepr for Call {}

/// Returns how far apart rows and heads lie.
fn strides(view: &View) -> Result<Strides> {
    Ok(Strides {
        row: size(view.row)?,
        head: size(view.head)?,
    })
}

/// The request as the kernels read it.
struct Fused {
    gpu: Gpu,
    sizes: Sizes,
    layout: Option<FusedLayout>,
    dtype: DType,
    /// The features that heads are filled up to.
    width: usize,
    sequences: usize,
    longest: usize,
    /// Whether there is a bias, products of queries with a table, and products of keys.
    has: [bool; 3],
    held: Held,
    plan: Option<Visits>,
    /// Arguments that all kernels share.
    call: Call,
}

/// What the call's pointers point to.
struct Held {
    mask: Option<Tensor>,
    ends: Option<Fresh>,
    query_mask: Option<Tensor>,
    starts: Option<CudaSlice<u32>>,
    angles: Option<[Tensor; 2]>,
    distance_rows: Option<CudaSlice<u32>>,
}

impl Held {
    fn new(request: &Request, gpu: &Gpu) -> Result<Self> {
        let (o, device) = (request.options, request.qkv[0].device());
        let mask = match &o.mask {
            AttentionMask::Keys(mask) => Some(of_zeros_and_others(mask, device)?),
            _ => None,
        };
        let query_mask = o.query_mask.as_ref();
        let starts = |lengths: &[usize]| {
            let mut starts = vec![0];
            for &len in lengths {
                starts.push(starts[starts.len() - 1] + size(len)?);
            }
            gpu.upload(&starts)
        };
        Ok(Self {
            ends: mask.as_ref().map(|mask| ends(gpu, mask)).transpose()?,
            mask,
            query_mask: query_mask
                .map(|mask| of_zeros_and_others(mask, device))
                .transpose()?,
            starts: request.lengths.map(starts).transpose()?,
            angles: match &o.rotary {
                Some(rotary) => Some(rotary.tables_on(device)?),
                None => None,
            },
            distance_rows: request
                .terms
                .map(|terms| gpu.upload(&terms.index.rows))
                .transpose()?,
        })
    }

    /// Returns a call with these pointers.
    fn call(&self) -> Result<Call> {
        let [cos, sin] = match &self.angles {
            Some([cos, sin]) => [pointer(cos)?, pointer(sin)?],
            None => [0; 2],
        };
        Ok(Call {
            mask: pointer_or_null(self.mask.as_ref())?,
            ends: self.ends.as_ref().map_or(0, Fresh::ptr),
            query_mask: pointer_or_null(self.query_mask.as_ref())?,
            starts: self.starts.as_ref().map_or(0, slice_pointer),
            cos,
            sin,
            distance_rows: self.distance_rows.as_ref().map_or(0, slice_pointer),
            ..Call::default()
        })
    }
}

/// Returns one past the last key that counts, for each sequence.
fn ends(gpu: &Gpu, mask: &Tensor) -> Result<Fresh> {
    let (batch, keys) = mask.dims2()?;
    let ends = gpu.for_overwrite(batch, DType::U32)?;
    let grid = Grid::new((size(batch)?, 1, 1), (THREADS, 1, 1));
    let arguments = args![ends.ptr(), pointer(mask)?, size(batch)?, size(keys)?];
    // SAFETY: the mask is (batch, keys) of u32, and there is an end per sequence.
    unsafe { gpu.launch("attention", "attention_key_ends", grid, arguments)? };
    Ok(ends)
}

impl Fused {
    fn new(request: &Request, gpu: Gpu, dtype: DType, width: usize) -> Result<Self> {
        let (s, o) = (request.sizes, request.options);
        let held = Held::new(request, &gpu)?;
        let side = |distance: Option<usize>| size(distance.unwrap_or(ALL).min(ALL));
        let band = request.plan.map_or(o.band, |plan| plan.band);
        let right = if o.causal {
            Some(0)
        } else {
            band.map(|b| b.right)
        };
        let mut call = Call {
            dropout_key: o.dropout.key,
            batch: size(request.sequences())?,
            heads: size(s.heads)?,
            kv_heads: size(s.kv_heads)?,
            queries: size(s.queries)?,
            keys: size(s.keys)?,
            key: size(s.key)?,
            value: size(s.value)?,
            left: side(band.map(|band| band.left))?,
            right: side(right)?,
            bounded: u32::from(o.causal || band.is_some() || request.plan.is_some()),
            scale: o.scale as f32,
            p: o.dropout.p,
            ..held.call()?
        };
        if let Some(rotary) = &o.rotary {
            call.half = size(rotary.width() / 2)?;
            call.interleaved = u32::from(rotary.pairs() == RotaryPairs::Interleaved);
            call.turn_values = u32::from(rotary.turns_values());
        }
        if let Some(terms) = request.terms {
            let grid = terms.index.grid;
            let reached = request.reached(grid, (call.left as usize, call.right as usize));
            call.first_distance = size(reached.start)?;
            call.distances = size(reached.len())?;
            call.last_distance = size(grid.by_query(0, 0))?;
            call.ratio = size(grid.ratio)?;
            call.skip_first = u32::from(terms.skip_first);
            if let Some(table) = &terms.bias_table {
                call.bias_copies = size(table.dim(1)?)?;
            }
            if let Some(table) = terms.query_table.as_ref().or(terms.key_table.as_ref()) {
                call.rows = size(table.dim(0)?)?;
            }
        }
        let plan = request.plan.map(|plan| Visits::new(plan, &s, &gpu));
        let plan = plan.transpose()?;
        if let Some(plan) = &plan {
            call = plan.in_call(call)?;
        }
        Ok(Self {
            gpu,
            sizes: s,
            layout: request.layout,
            dtype,
            width,
            sequences: request.sequences(),
            longest: request.longest(),
            has: [false; 3],
            held,
            plan,
            call,
        })
    }

    /// Returns the layouts of the heads of queries, keys and values in the tensors that hold them.
    fn views(&self) -> [View; 3] {
        let s = &self.sizes;
        match self.layout {
            Some(layout) => layout.split(View::contiguous(s.queries, 1, s.fused_width()), s),
            None => [
                View::contiguous(s.queries, s.heads, s.key),
                View::contiguous(s.keys, s.kv_heads, s.key),
                View::contiguous(s.keys, s.kv_heads, s.value),
            ],
        }
    }

    /// Returns where queries, keys and values begin, or their gradients: in three buffers or one.
    fn places(&self, buffers: &[u64]) -> [u64; 3] {
        let views = self.views();
        [0, 1, 2].map(|i| {
            let buffer = buffers[if self.layout.is_some() { 0 } else { i }];
            buffer + (views[i].start * self.dtype.size_in_bytes()) as u64
        })
    }

    /// Returns how many of the arguments are queries, keys and values.
    fn own(&self) -> usize {
        if self.layout.is_some() { 1 } else { 3 }
    }

    /// Returns those of the arguments that are terms: the table of a bias, products of queries and of keys.
    fn extras<'a>(&self, args: &[&'a Tensor]) -> [Option<&'a Tensor>; 3] {
        let mut extras = args[self.own()..].iter().copied();
        self.has.map(|has| if has { extras.next() } else { None })
    }

    /// Returns the call for these arguments.
    fn call_of(&self, args: &[&Tensor]) -> Result<Call> {
        let starts = args[..self.own()].iter().map(|x| pointer(x));
        let starts = starts.collect::<Result<Vec<_>>>()?;
        let ([q, k, v], views) = (self.places(&starts), self.views());
        let [bias, by_query, by_key] = self.extras(args);
        Ok(Call {
            q,
            k,
            v,
            q_strides: strides(&views[0])?,
            k_strides: strides(&views[1])?,
            v_strides: strides(&views[2])?,
            bias: pointer_or_null(bias)?,
            by_query: pointer_or_null(by_query)?,
            by_key: pointer_or_null(by_key)?,
            ..self.call
        })
    }

    /// Returns `blocks` of rows for each of `heads` of each sequence.
    fn grid(&self, blocks: usize, heads: usize, shared: usize) -> Result<Grid> {
        let blocks = (size(blocks)?, size(heads)?, size(self.sequences)?);
        Ok(Grid::new(blocks, (THREADS, 1, 1)).shared(size(shared)?))
    }

    /// # Safety
    /// Every pointer of the call that the kernel uses must be valid for its sizes.
    unsafe fn launch(&self, kernel: &str, grid: Grid, call: &Call) -> Result<()> {
        let (of, d) = (suffix(self.dtype), self.width);
        let name = match kernel {
            "delta" => format!("attention_delta_{of}"),
            _ => format!("attention_{kernel}_{of}_d{d}"),
        };
        // SAFETY: the call is the kernels' only argument; the caller's promise.
        unsafe { self.gpu.launch_with("attention", &name, grid, call) }
    }

    /// Returns the result, and for each query the logarithm of its scores' sum of exponentials.
    fn forward(&self, args: &[&Tensor]) -> Result<(Fresh, Fresh)> {
        let s = self.sizes;
        let shape = (s.batch, s.queries, s.heads * s.value);
        let out = self.gpu.for_overwrite(shape, self.dtype)?;
        let log_sums = (s.batch, s.heads, s.queries);
        let log_sums = self.gpu.for_overwrite(log_sums, DType::F32)?;
        let call = Call {
            out: out.ptr(),
            lse: log_sums.ptr(),
            ..self.call_of(args)?
        };
        let shared = forward_memory(self.width, self.dtype);
        let grid = self.grid(self.blocks(), s.heads, shared)?;
        // SAFETY: q, k and v lie as the strides say, in tensors of that dtype; out and log sums have the size that the kernel
        // writes; masks, starts and tables were made for these sizes, and are held.
        unsafe { self.launch("forward", grid, &call)? };
        Ok((out, log_sums))
    }

    /// Returns the gradients of the arguments.
    fn backward(
        &self,
        args: &[&Tensor],
        out: &Tensor,
        log_sums: &Fresh,
        dy: &Tensor,
    ) -> Result<tape::Grads> {
        let (s, gpu) = (self.sizes, &self.gpu);
        let qkv = &args[..self.own()];
        let grads = qkv.iter().map(|x| gpu.for_overwrite(x.shape(), self.dtype));
        let grads = grads.collect::<Result<Vec<_>>>()?;
        let starts: Vec<u64> = grads.iter().map(Fresh::ptr).collect();
        let [dq, dk, dv] = self.places(&starts);
        let delta = (s.batch, s.heads, s.queries);
        let delta = gpu.for_overwrite(delta, DType::F32)?;
        let terms = self.term_gradients(args)?;
        let [bias_parts, dby_query, dby_key] =
            terms.each_ref().map(|x| x.as_ref().map_or(0, Fresh::ptr));
        let call = Call {
            out: pointer(out)?,
            lse: log_sums.ptr(),
            dout: pointer(dy)?,
            delta: delta.ptr(),
            dq,
            dk,
            dv,
            bias_parts,
            dby_query,
            dby_key,
            ..self.call_of(args)?
        };
        let rows = size(s.batch * s.heads * s.queries)?;
        let of_rows = Grid::new((rows.div_ceil(THREADS / 32), 1, 1), (THREADS, 1, 1));
        let mut shared = backward_memory(self.width, self.dtype);
        if terms.iter().any(Option::is_some) {
            shared += terms_memory(self.dtype);
        }
        let keys = match self.held.starts {
            Some(_) => self.longest,
            None => s.keys,
        };
        let of_keys = self.grid(keys.div_ceil(ROWS), s.kv_heads, shared)?;
        let of_queries = self.grid(self.slices(bias_parts != 0), s.heads, shared)?;
        // SAFETY: as forward; each gradient has the size of what it is of, delta that of the log sums, and there is a part of the
        // bias's gradient for every block of the last kernel.
        unsafe {
            self.launch("delta", of_rows, &call)?;
            self.launch("backward_kv", of_keys, &call)?;
            self.launch("backward_q", of_queries, &call)?;
        }
        // Each is formed along the way to the others: those that nobody asked for are dropped.
        let grads = qkv.iter().zip(grads);
        let grads = grads.map(|(x, grad)| x.track_op().then(|| grad.into_tensor()));
        let mut grads: tape::Grads = grads.collect();
        for (i, (x, grad)) in self.extras(args).into_iter().zip(terms).enumerate() {
            let Some(x) = x else { continue };
            grads.push(match grad {
                None => None,
                Some(parts) if i == 0 => Some(self.bias_gradient(x, &parts)?),
                Some(sums) => Some(sums.into_tensor().to_dtype(x.dtype())?),
            });
        }
        Ok(grads)
    }

    /// Returns zeros for the gradients of the terms that want one: parts for the bias's table, sums for the products.
    fn term_gradients(&self, args: &[&Tensor]) -> Result<[Option<Fresh>; 3]> {
        let [bias, by_query, by_key] = self.extras(args).map(|x| x.filter(|x| x.track_op()));
        let parts = self.sequences * self.sizes.heads * self.slices(true);
        let parts = parts * self.call.distances as usize;
        let zeros = |x: &Tensor| self.gpu.zeros(x.shape(), DType::F32);
        Ok([
            bias.map(|_| self.gpu.zeros(parts, DType::F32))
                .transpose()?,
            by_query.map(zeros).transpose()?,
            by_key.map(zeros).transpose()?,
        ])
    }

    /// Returns the number of blocks of queries of the longest sequence.
    fn blocks(&self) -> usize {
        match &self.plan {
            Some(plan) => plan.blocks,
            None => self.longest.div_ceil(ROWS),
        }
    }

    /// Returns how many blocks share the queries of a head in the kernel for dq: one for each 64, or fewer where each has a part
    /// of the bias's gradient.
    fn slices(&self, with_bias: bool) -> usize {
        let blocks = self.blocks();
        match with_bias {
            true => (BUSY / (self.sequences * self.sizes.heads)).clamp(1, blocks),
            false => blocks,
        }
    }

    /// Returns the gradient of a bias's table from its parts.
    fn bias_gradient(&self, table: &Tensor, parts: &Fresh) -> Result<Tensor> {
        let (rows, copies) = table.dims2()?;
        let grad = self.gpu.for_overwrite((rows, copies), DType::F32)?;
        let grid = Grid::new((size(copies)?, size(rows)?, 1), (THREADS, 1, 1));
        let arguments = args![
            grad.ptr(),
            parts.ptr(),
            self.call.distance_rows + u64::from(self.call.first_distance) * 4,
            self.call.batch,
            self.call.heads,
            size(self.slices(true))?,
            self.call.distances,
            self.call.bias_copies,
        ];
        // SAFETY: the parts are (sequences, heads, slices, distances), the gradient (rows, copies), with a block for each element.
        unsafe {
            let kernel = "attention_bias_gradient";
            self.gpu.launch("attention", kernel, grid, arguments)?;
        }
        Ok(grad.into_tensor())
    }
}

/// Elements from one row of shared memory to the next, times their bytes.
fn pitch(width: usize, dtype: DType) -> usize {
    width * dtype.size_in_bytes() + 16
}

/// Bytes of shared memory of the forward kernel: the queries, and two tiles each of keys and values that come and go.
fn forward_memory(width: usize, dtype: DType) -> usize {
    let tile = if dtype == DType::F32 { 32 } else { 64 };
    (ROWS + 4 * tile) * pitch(width, dtype)
}

/// Keys or queries at once in the backward kernels.
fn backward_tile(dtype: DType) -> usize {
    if dtype == DType::F32 { 16 } else { 32 }
}

/// Bytes of shared memory of the backward kernels: two tiles that stay, and two of halves that come and go.
fn backward_memory(width: usize, dtype: DType) -> usize {
    (2 * ROWS + 4 * backward_tile(dtype)) * pitch(width, dtype)
}

/// What the gradients of terms take beside that: a tile of the scores' gradients.
fn terms_memory(dtype: DType) -> usize {
    ROWS * (backward_tile(dtype) + 1) * 4
}

/// Bytes of shared memory that some kernel takes, those that it names itself included.
fn largest_memory(width: usize, dtype: DType) -> usize {
    let backward = backward_memory(width, dtype) + terms_memory(dtype) + (1 << 10);
    backward.max(forward_memory(width, dtype) + (1 << 10))
}
