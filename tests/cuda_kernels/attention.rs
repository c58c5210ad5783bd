use cloze::ops::{AttentionOptions, Band, RelativeIndex, RelativeTerms, Rotary, RotaryPairs};

use super::*;

#[path = "../../src/ops/attention/cuda/call.rs"]
mod call;

use call::{Call, Strides};

#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    /// Features of a head of q and k, and of v.
    d: usize,
    e: usize,
    mask: Option<Vec<u32>>,
    query_mask: Option<Vec<u32>>,
    band: Option<Band>,
    causal: bool,
    rotary: Option<(usize, RotaryPairs, bool)>,
    /// Rows of the table, and whether it is every head's, and whether it leaves out the first.
    bias: Option<(usize, bool, bool)>,
    /// Rows of the tables that queries and keys have products with, in place of a bias.
    products: Option<usize>,
    /// Of sequences that lie one behind the other, as many queries and keys together.
    lengths: Option<Vec<usize>>,
    dropout: Dropout,
}

/// How queries, keys and values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    Apart,
    Blocks,
    PerHead,
}

const SCALE: f32 = 0.2;
const NAMES: [&str; 6] = ["out", "lse", "dq", "dk", "dv", "dterms"];
/// More than any sequence has.
const ALL: u32 = 1 << 30;

fn plain(heads: usize, [queries, keys]: [usize; 2], d: usize) -> Case {
    Case {
        batch: 1,
        heads,
        kv_heads: heads,
        queries,
        keys,
        d,
        e: d,
        mask: None,
        query_mask: None,
        band: None,
        causal: false,
        rotary: None,
        bias: None,
        products: None,
        lengths: None,
        dropout: NO_DROPOUT,
    }
}

impl Case {
    /// Elements of q, k, v and out.
    fn lengths(&self) -> [usize; 4] {
        let (b, d, e) = (self.batch, self.d, self.e);
        [
            b * self.queries * self.heads * d,
            b * self.keys * self.kv_heads * d,
            b * self.keys * self.kv_heads * e,
            b * self.queries * self.heads * e,
        ]
    }

    fn angles(&self) -> Option<Rotary> {
        let (width, pairs, values) = self.rotary?;
        let rotary = Rotary::with_theta(self.keys, width, 10.0, pairs).unwrap();
        Some(rotary.with_values(values))
    }

    /// Which row of the bias's table a pair has.
    fn index(&self, rows: usize) -> RelativeIndex {
        let (low, high) = (-(rows as i64) / 2, (rows as i64 - 1) / 2);
        RelativeIndex::clipped(
            self.longest(self.queries),
            self.longest(self.keys),
            low,
            high,
        )
    }

    fn longest(&self, otherwise: usize) -> usize {
        let longest = |lengths: &Vec<usize>| lengths.iter().copied().max().unwrap_or(0);
        self.lengths.as_ref().map_or(otherwise, longest)
    }

    fn table(&self) -> Option<Vec<f32>> {
        let (rows, shared, _) = self.bias?;
        Some(noise(rows * if shared { 1 } else { self.heads }, 7))
    }

    /// The products of queries and keys with tables, (heads, batch, n, rows) each.
    fn products<T: Element>(&self) -> [Vec<f32>; 2] {
        let rows = self.products.unwrap_or(0) * self.batch * self.heads;
        [(self.queries, 8), (self.keys, 9)].map(|(n, seed)| rounded::<T>(&noise(rows * n, seed)))
    }

    /// For every pair of (batch, heads, queries, keys) where its terms lie in the products.
    fn places_of_products(&self, rows: usize) -> impl Iterator<Item = [usize; 2]> {
        let (batch, heads, queries, keys) = (self.batch, self.heads, self.queries, self.keys);
        let index = self.index(rows);
        (0..batch * heads * queries * keys).map(move |at| {
            let (i, j) = (at / keys % queries, at % keys);
            let (b, h) = (at / keys / queries / heads, at / keys / queries % heads);
            let (row, of) = (index.get(i, j) as usize, h * batch + b);
            [
                (of * queries + i) * rows + row,
                (of * keys + j) * rows + row,
            ]
        })
    }

    /// out, dq, dk, dv and the terms' gradients of the CPU.
    fn expected<T: Element>(&self, [q, k, v]: [&[f32]; 3], dout: &[f32]) -> Vec<Vec<f32>> {
        let shape = |seq: usize, width: usize| [self.batch, seq, width];
        let q = var(q, &shape(self.queries, self.heads * self.d));
        let k = var(k, &shape(self.keys, self.kv_heads * self.d));
        let v = var(v, &shape(self.keys, self.kv_heads * self.e));
        let of = |mask: &Vec<u32>, n| {
            Tensor::from_vec(mask.clone(), (self.batch, n), &Device::Cpu).unwrap()
        };
        let mut options = AttentionOptions {
            kv_heads: Some(self.kv_heads),
            scale: f64::from(SCALE),
            dropout: self.dropout,
            mask: match (&self.mask, &self.lengths) {
                (_, Some(lengths)) => AttentionMask::Packed(lengths.clone().into()),
                (Some(mask), _) => AttentionMask::Keys(of(mask, self.keys)),
                _ => AttentionMask::None,
            },
            query_mask: self.query_mask.as_ref().map(|mask| of(mask, self.queries)),
            band: self.band,
            causal: self.causal,
            rotary: self.angles(),
            ..AttentionOptions::new(self.heads, self.d)
        };
        let table = self.table().map(|table| {
            let (rows, ..) = self.bias.unwrap();
            var(&table, &[rows, table.len() / rows])
        });
        if let Some(rows) = self.products {
            let products = self.products::<T>();
            let places = self.places_of_products(rows);
            let sums = places.map(|[q, k]| products[0][q] + products[1][k]);
            let shape = [self.batch, self.heads, self.queries, self.keys];
            let bias = var(&sums.collect::<Vec<f32>>(), &shape);
            options.mask = AttentionMask::Additive(bias.as_tensor().clone());
            let out = ops::attention_with(&q, &k, &v, &options).unwrap();
            let mut grads = gradients(&out, dout, &[&q, &k, &v, &bias]);
            let of_pairs = grads.pop().unwrap();
            let mut of_products = products.map(|x| vec![0f32; x.len()]);
            for (places, grad) in self.places_of_products(rows).zip(of_pairs) {
                of_products[0][places[0]] += grad;
                of_products[1][places[1]] += grad;
            }
            grads.push(of_products.concat());
            return std::iter::once(values(&out)).chain(grads).collect();
        }
        let mut inputs = vec![&q, &k, &v];
        let out = match (&table, self.bias) {
            (Some(table), Some((rows, _, skip_first))) => {
                inputs.push(table);
                let terms = RelativeTerms {
                    bias_table: Some(table.as_tensor().clone()),
                    skip_first,
                    ..RelativeTerms::new(self.index(rows))
                };
                ops::relative_attention(&q, &k, &v, &terms, &options).unwrap()
            }
            _ => ops::attention_with(&q, &k, &v, &options).unwrap(),
        };
        let grads = gradients(&out, dout, &inputs);
        std::iter::once(values(&out)).chain(grads).collect()
    }

    /// Whether nothing but keys is masked, and heads are each other's.
    fn is_plain(&self) -> bool {
        self.band.is_none()
            && !self.causal
            && self.rotary.is_none()
            && self.bias.is_none()
            && self.products.is_none()
            && self.lengths.is_none()
            && self.query_mask.is_none()
            && self.kv_heads == self.heads
    }

    /// The logarithm of each query's sum, in f64.
    fn expected_lse(&self, q: &[f32], k: &[f32]) -> Vec<f32> {
        let &Case {
            batch,
            heads,
            queries,
            keys,
            d,
            ..
        } = self;
        let mut all = vec![];
        for (b, h, i) in (0..batch * heads * queries)
            .map(|i| (i / queries / heads, i / queries % heads, i % queries))
        {
            let row = |x: &[f32], seq: usize, i: usize| -> Vec<f32> {
                x[((b * seq + i) * heads + h) * d..][..d].to_vec()
            };
            let hidden = |j: usize| {
                self.mask
                    .as_ref()
                    .is_some_and(|mask| mask[b * keys + j] == 0)
            };
            let even = (0..keys).all(hidden);
            let q = row(q, queries, i);
            let exp = |j: usize| {
                let dot: f64 = q
                    .iter()
                    .zip(row(k, keys, j))
                    .map(|(q, k)| f64::from(*q) * f64::from(k))
                    .sum();
                (dot * f64::from(SCALE)).exp()
            };
            let sum: f64 = if even {
                keys as f64
            } else {
                (0..keys).filter(|&j| !hidden(j)).map(exp).sum()
            };
            all.push(sum.ln() as f32);
        }
        all
    }

    /// The features that a head is filled up to.
    fn width(&self) -> usize {
        self.d.max(self.e).next_multiple_of(32)
    }

    /// Bytes of shared memory for that many rows.
    fn shared<T: Element>(&self, rows: usize) -> usize {
        rows * (self.width() * size_of::<T>() + 16)
    }

    /// out, lse, dq, dk, dv and the terms' gradients, that of a bias by `slices` blocks of each head; and what the three kernels
    /// with loops have copied.
    fn run<T: Element>(
        &self,
        qkv: [&[f32]; 3],
        dout: &[f32],
        lie: Lie,
        slices: usize,
    ) -> (Vec<Vec<f32>>, [u64; 3]) {
        let &Case {
            batch,
            heads,
            kv_heads,
            queries,
            keys,
            d,
            e,
            dropout,
            ..
        } = self;
        let buffers = Inputs::<T>::new(self, qkv, lie);
        let grads: Vec<_> = (buffers.given.iter())
            .map(|x| unwritten::<T>(x.values().len()))
            .collect();
        let [q, k, v] = buffers.places(&buffers.given);
        let [dq, dk, dv] = buffers.places(&grads);
        let (out, dout) = (unwritten::<T>(self.lengths()[3]), activations::<T>(dout));
        let [lse, delta] = [(); 2].map(|()| unwritten::<f32>(batch * heads * queries));
        let at = |address: Address| address as u64;
        let mask = self
            .mask
            .as_ref()
            .map(|mask| (Buffer::new(mask), Buffer::new(&vec![77u32; batch])));
        if let Some((mask, ends)) = &mask {
            let arguments = (ends.at(), mask.at(), batch as u32, keys as u32);
            launch("attention_key_ends", [batch, 1, 1], [128, 1], 0, arguments);
        }
        let query_mask = self.query_mask.as_ref().map(|mask| Buffer::new(mask));
        let starts = self.lengths.as_ref().map(|lengths| {
            let mut starts = vec![0u32];
            for &len in lengths {
                starts.push(starts[starts.len() - 1] + len as u32);
            }
            Buffer::new(&starts)
        });
        let angles = self.rotary.map(|(width, ..)| {
            let speeds = Rotary::speeds(width, 10.0);
            let angles = (0..keys).flat_map(|at| speeds.iter().map(move |s| at as f32 * s));
            let angles: Vec<f32> = angles.collect();
            let of =
                |f: fn(f32) -> f32| Buffer::new(&angles.iter().map(|&x| f(x)).collect::<Vec<_>>());
            (of(f32::cos), of(f32::sin), width / 2)
        });
        let (long_queries, long_keys) = (self.longest(queries), self.longest(keys));
        let table = self.table().map(|table| Buffer::new(&table));
        let products = self.products::<T>();
        let [by_query, by_key] = products.each_ref().map(|x| activations::<T>(x));
        let [dby_query, dby_key] = products
            .each_ref()
            .map(|x| Buffer::new(&vec![0f32; x.len()]));
        let (rows, shared, skip_first) = match self.products {
            Some(rows) => (rows, true, false),
            None => self.bias.unwrap_or((0, true, false)),
        };
        let of_products = |x: Address| if self.products.is_some() { x as u64 } else { 0 };
        let distances = if rows == 0 {
            0
        } else {
            long_queries - 1 + long_keys
        };
        let distance_rows = (rows > 0).then(|| {
            let index = self.index(rows);
            let (q, k) = (long_queries, long_keys);
            // From the last query's with the first key on.
            let of = |at: usize| match at < k {
                true => index.get(q - 1, at),
                false => index.get(q - 1 - (at + 1 - k), k - 1),
            };
            Buffer::new(&(0..distances).map(of).collect::<Vec<u32>>())
        });
        // Of a query with the key at its own position, and those in its window.
        let own = (long_queries - 1 + long_keys.saturating_sub(long_queries)) as u32;
        let band = self.band.unwrap_or(Band::both(ALL as usize));
        let reach = |n: usize| (n as u32).min(ALL);
        let reached = own.saturating_sub(reach(band.left))
            ..(own + reach(band.right) + 1).min(distances as u32);
        let count = self.lengths.as_ref().map_or(batch, Vec::len);
        let parts = Buffer::new(&vec![0f32; count * heads * slices * distances]);
        let side = |n: Option<usize>| n.map_or(ALL, |n| (n as u32).min(ALL));
        let right = if self.causal {
            Some(0)
        } else {
            self.band.map(|band| band.right)
        };
        let null = |x: Option<Address>| x.map_or(0, at);
        let call = Call {
            q: at(q),
            k: at(k),
            v: at(v),
            out: at(out.at()),
            lse: at(lse.at()),
            dout: at(dout.at()),
            delta: at(delta.at()),
            dq: at(dq),
            dk: at(dk),
            dv: at(dv),
            mask: null(mask.as_ref().map(|(mask, _)| mask.at())),
            ends: null(mask.as_ref().map(|(_, ends)| ends.at())),
            query_mask: null(query_mask.as_ref().map(Buffer::at)),
            starts: null(starts.as_ref().map(Buffer::at)),
            cos: null(angles.as_ref().map(|(cos, ..)| cos.at())),
            sin: null(angles.as_ref().map(|(_, sin, _)| sin.at())),
            distance_rows: null(distance_rows.as_ref().map(Buffer::at)),
            bias: null(table.as_ref().map(Buffer::at)),
            by_query: of_products(by_query.at()),
            by_key: of_products(by_key.at()),
            bias_parts: if self.bias.is_some() {
                at(parts.at())
            } else {
                0
            },
            dby_query: of_products(dby_query.at()),
            dby_key: of_products(dby_key.at()),
            dropout_key: dropout.key,
            q_strides: buffers.strides[0],
            k_strides: buffers.strides[1],
            v_strides: buffers.strides[2],
            batch: count as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            queries: queries as u32,
            keys: keys as u32,
            key: d as u32,
            value: e as u32,
            left: side(self.band.map(|band| band.left)),
            right: side(right),
            bounded: u32::from(self.band.is_some() || self.causal),
            half: angles.as_ref().map_or(0, |(.., half)| *half as u32),
            interleaved: u32::from(
                self.rotary
                    .is_some_and(|(_, pairs, _)| pairs == RotaryPairs::Interleaved),
            ),
            turn_values: u32::from(self.rotary.is_some_and(|(.., values)| values)),
            first_distance: reached.start,
            distances: reached.end.saturating_sub(reached.start),
            last_distance: (long_queries - 1) as u32,
            ratio: 1,
            rows: rows as u32,
            bias_copies: if shared { 1 } else { heads as u32 },
            skip_first: u32::from(skip_first),
            scale: SCALE,
            p: dropout.p,
            ..Call::default()
        };
        let name = |kernel: &str| format!("attention_{kernel}_{}_d{}", T::NAME, self.width());
        let (tile, small) = if T::NAME == "f32" { (32, 16) } else { (64, 32) };
        let by_queries = [long_queries.div_ceil(64), heads, count];
        let by_keys = [long_keys.div_ceil(64), kv_heads, count];
        let mut copies = [0; 3];
        let memory = self.shared::<T>(64 + 4 * tile);
        launch(&name("forward"), by_queries, [128, 1], memory, (call,));
        copies[0] = copied();
        let rows_of_out = batch * heads * queries;
        let delta_name = format!("attention_delta_{}", T::NAME);
        launch(
            &delta_name,
            [rows_of_out.div_ceil(4), 1, 1],
            [128, 1],
            0,
            (call,),
        );
        let mut memory = self.shared::<T>(2 * 64 + 4 * small);
        if rows > 0 {
            memory += 64 * (small + 1) * 4;
        }
        launch(&name("backward_kv"), by_keys, [128, 1], memory, (call,));
        copies[1] = copied();
        let blocks = match self.bias {
            None => by_queries,
            Some(_) => [slices, heads, count],
        };
        launch(&name("backward_q"), blocks, [128, 1], memory, (call,));
        copies[2] = copied();
        let grads = buffers.apart(&grads);
        let mut results = vec![widened(&out), lse.values()];
        results.extend(grads);
        if self.products.is_some() {
            results.push([dby_query.values(), dby_key.values()].concat());
        }
        if self.bias.is_some() {
            let of_bias = unwritten::<f32>(self.table().unwrap().len());
            launch(
                "attention_bias_gradient",
                [call.bias_copies as usize, rows, 1],
                [128, 1],
                0,
                (
                    of_bias.at(),
                    parts.at(),
                    // SAFETY: there are as many.
                    unsafe {
                        let rows = distance_rows.as_ref().unwrap().at().cast::<u32>();
                        rows.add(call.first_distance as usize)
                            .cast::<std::ffi::c_void>()
                    },
                    call.batch,
                    call.heads,
                    slices as u32,
                    call.distances,
                    call.bias_copies,
                ),
            );
            results.push(of_bias.values());
        }
        (results, copies)
    }

    /// q, k, v and the gradient of out.
    fn inputs<T: Element>(&self) -> [Vec<f32>; 4] {
        // What is turned is rounded once more, and where few keys are seen gradients cancel: small scores feel it less.
        let size = if self.is_plain() { 2.0 } else { 1.0 };
        let lengths = self.lengths();
        [0, 1, 2, 3].map(|i| {
            let values = noise(lengths[i], i as u64);
            rounded::<T>(&values.iter().map(|x| size * x).collect::<Vec<_>>())
        })
    }

    #[track_caller]
    fn check<T: Element>(&self) {
        let [q, k, v, dout] = self.inputs::<T>();
        let given = [&q[..], &k, &v];
        let mut want = self.expected::<T>(given, &dout);
        let lse = self.is_plain().then(|| self.expected_lse(&q, &k));
        want.insert(1, lse.unwrap_or_default());
        let got = in_orders(2, || self.run::<T>(given, &dout, Lie::Apart, 2).0);
        let rounding = T::ROUNDING.max(2e-6);
        for ((got, want), name) in got.iter().zip(&want).zip(NAMES) {
            let what = format!("{name} {self:?}");
            match name {
                "lse" if want.is_empty() => {}
                "lse" => close::<f32>(&what, got, want, 2e-6),
                // Probabilities and their gradients are rounded before they are multiplied, and out before its
                // product with dout: single elements may be some roundings off, all together may not.
                _ => {
                    close::<T>(&what, got, want, 8.0 * rounding);
                    let squares = |x: &mut dyn Iterator<Item = f32>| {
                        x.map(|x| f64::from(x).powi(2)).sum::<f64>()
                    };
                    let error = squares(&mut got.iter().zip(want).map(|(a, b)| a - b)).sqrt();
                    // As in `close`: what cancels to nearly nothing keeps the errors of its terms.
                    let size = squares(&mut want.iter().copied()).sqrt();
                    let size = size + 0.1 * (want.len() as f64).sqrt();
                    assert!(
                        error <= 2.0 * f64::from(rounding) * size,
                        "{what}: {error} of {size}"
                    );
                }
            }
        }
        if self.queries == self.keys && self.d == self.e {
            let mut ways = vec![Lie::Blocks];
            ways.extend((self.kv_heads == self.heads).then_some(Lie::PerHead));
            for lie in ways {
                let joined = self.run::<T>(given, &dout, lie, 2).0;
                assert_eq!(joined, got, "{lie:?}");
            }
        }
    }
}

/// Queries, keys and values on the device.
struct Inputs<T: Element> {
    given: Vec<Buffer<T>>,
    /// Where each begins, in elements.
    starts: [usize; 3],
    strides: [Strides; 3],
    /// Rows, heads and features of each.
    sizes: [[usize; 3]; 3],
}

impl<T: Element> Inputs<T> {
    fn new(case: &Case, qkv: [&[f32]; 3], lie: Lie) -> Self {
        let (heads, kv, d) = (case.heads, case.kv_heads, case.d);
        let rows = |n: usize| case.batch * n;
        let sizes = [
            [rows(case.queries), heads, d],
            [rows(case.keys), kv, d],
            [rows(case.keys), kv, case.e],
        ];
        let all = (heads + 2 * kv) * d;
        let (starts, strides) = match lie {
            Lie::Apart => ([0; 3], sizes.map(|[_, heads, d]| [heads * d, d])),
            Lie::Blocks => ([0, heads * d, (heads + kv) * d], [[all, d]; 3]),
            Lie::PerHead => ([0, d, 2 * d], [[all, 3 * d]; 3]),
        };
        let given = match lie {
            Lie::Apart => qkv.map(activations::<T>).into_iter().collect(),
            _ => {
                let mut joined = vec![0f32; sizes[0][0] * all];
                for (i, x) in qkv.into_iter().enumerate() {
                    for (at, &x) in places(sizes[i], starts[i], strides[i]).zip(x) {
                        joined[at] = x;
                    }
                }
                vec![activations::<T>(&joined)]
            }
        };
        let strides = strides.map(|[row, head]| Strides {
            row: row as u32,
            head: head as u32,
        });
        Self {
            given,
            starts,
            strides,
            sizes,
        }
    }

    fn places(&self, buffers: &[Buffer<T>]) -> [Address; 3] {
        [0, 1, 2].map(|i| {
            let buffer = if buffers.len() == 1 {
                &buffers[0]
            } else {
                &buffers[i]
            };
            // SAFETY: each part begins within the first row.
            unsafe { buffer.at().cast::<T>().add(self.starts[i]).cast() }
        })
    }

    /// What lies in buffers like these, each of the three by itself.
    fn apart(&self, buffers: &[Buffer<T>]) -> [Vec<f32>; 3] {
        [0, 1, 2].map(|i| {
            let all = widened(if buffers.len() == 1 {
                &buffers[0]
            } else {
                &buffers[i]
            });
            let Strides { row, head } = self.strides[i];
            let places = places(self.sizes[i], self.starts[i], [row as usize, head as usize]);
            places.map(|at| all[at]).collect()
        })
    }
}

/// Where the elements of (rows, heads, features) lie.
fn places(
    [rows, heads, d]: [usize; 3],
    start: usize,
    [row, head]: [usize; 2],
) -> impl Iterator<Item = usize> {
    (0..rows * heads * d).map(move |i| start + i / d / heads * row + i / d % heads * head + i % d)
}

/// Keys of two sequences: one padded behind and with holes, one of which nothing may be seen.
fn padding(keys: usize) -> Vec<u32> {
    let seen = |k| u32::from(k < keys * 3 / 5 && k % 7 != 1);
    (0..2 * keys)
        .map(|i| if i < keys { seen(i) } else { 0 })
        .collect()
}

/// Two sequences that are padded so, with dropout.
fn padded(case: Case) -> Case {
    Case {
        batch: 2,
        mask: Some(padding(case.keys)),
        dropout: DROPOUTS[1],
        ..case
    }
}

fn check<T: Element>() {
    for (d, sizes) in [
        (32, vec![[2, 5, 5], [1, 70, 130]]),
        (
            64,
            vec![[2, 5, 5], [1, 128, 128], [1, 200, 200], [2, 1, 65]],
        ),
        (96, vec![[1, 33, 70]]),
        (128, vec![[1, 66, 66]]),
    ] {
        for [heads, queries, keys] in sizes {
            let case = plain(heads, [queries, keys], d);
            case.check::<T>();
            Case {
                dropout: DROPOUTS[2],
                ..case.clone()
            }
            .check::<T>();
            padded(case.clone()).check::<T>();
            Case {
                dropout: NO_DROPOUT,
                ..padded(case)
            }
            .check::<T>();
        }
    }
}

#[test]
fn bf16_agrees_with_the_rounded_cpu_results() {
    check::<bf16>();
}

#[test]
fn f16_agrees_with_the_rounded_cpu_results() {
    check::<f16>();
}

#[test]
fn f32_agrees_with_the_cpu_results() {
    check::<f32>();
}

/// In bf16 and in f32.
#[track_caller]
fn check_both(case: &Case) {
    case.check::<bf16>();
    case.check::<f32>();
}

#[test]
fn heads_of_any_width_are_filled_up() {
    for (d, e) in [(8, 8), (1, 3), (40, 24), (72, 100)] {
        check_both(&Case {
            e,
            ..plain(2, [70, 67], d)
        });
    }
    // At addresses that wide accesses can't begin at.
    let case = padded(plain(2, [66, 66], 32));
    let [q, k, v, dout] = case.inputs::<bf16>();
    let [aligned, shifted] =
        in_all_orders(|| case.run::<bf16>([&q, &k, &v], &dout, Lie::Apart, 1).0);
    assert_eq!(aligned, shifted);
}

#[test]
fn windows_are_the_cpus_at_every_edge_of_a_tile() {
    let band = |left, right| Some(Band { left, right });
    for (band, causal) in [
        (band(0, 0), false),
        (band(1, 2), false),
        (band(63, 64), false),
        (band(200, 1), false),
        (band(5, 5), true),
        (None, true),
    ] {
        for [queries, keys] in [[130, 130], [65, 129]] {
            let case = Case {
                band,
                causal,
                ..plain(1, [queries, keys], 32)
            };
            check_both(&case);
            // The second sequence has no key that counts, the end of the first neither.
            check_both(&padded(case));
        }
    }
}

#[test]
fn queries_that_see_nothing_or_do_not_count_are_zero() {
    let n = 70;
    let case = Case {
        band: Some(Band { left: 1, right: 1 }),
        query_mask: Some((0..2 * n as u32).map(|i| u32::from(i % 3 != 0)).collect()),
        rotary: Some((16, RotaryPairs::Half, false)),
        bias: Some((5, false, false)),
        ..padded(plain(2, [n, n], 32))
    };
    check_both(&case);
    let [q, k, v, dout] = case.inputs::<bf16>();
    let (got, _) = case.run::<bf16>([&q, &k, &v], &dout, Lie::Apart, 1);
    for (i, name) in [(0, "out"), (2, "dq")] {
        for (row, values) in got[i].chunks(2 * 32).enumerate() {
            let blind = row >= n || row % 3 == 0 || row > n * 3 / 5;
            assert!(
                !blind || values.iter().all(|&x| x == 0.0),
                "{name} of {row}"
            );
        }
    }
    for (i, name) in [(3, "dk"), (4, "dv")] {
        assert!(got[i][n * 64..].iter().all(|&x| x == 0.0), "{name}");
    }
}

#[test]
fn heads_share_keys_and_values() {
    for (heads, kv_heads) in [(4, 2), (3, 1)] {
        let case = Case {
            kv_heads,
            ..plain(heads, [70, 70], 32)
        };
        check_both(&case);
        check_both(&padded(Case {
            band: Some(Band::both(9)),
            ..case
        }));
    }
}

#[test]
fn rotations_are_the_cpus() {
    for pairs in [RotaryPairs::Half, RotaryPairs::Interleaved] {
        for (d, width, values) in [
            (32, 32, false),
            (32, 20, true),
            (8, 8, true),
            (64, 64, false),
        ] {
            for [queries, keys] in [[70, 70], [5, 67]] {
                let case = Case {
                    kv_heads: 1,
                    rotary: Some((width, pairs, values)),
                    ..plain(2, [queries, keys], d)
                };
                check_both(&case);
                check_both(&padded(Case {
                    band: Some(Band { left: 6, right: 3 }),
                    ..case
                }));
            }
        }
    }
}

#[test]
fn biases_by_distance_are_the_cpus_and_so_are_their_gradients() {
    for (rows, shared, skip_first) in [(7, false, false), (7, true, false), (200, false, true)] {
        for [queries, keys] in [[130, 130], [70, 33], [3, 70]] {
            let case = Case {
                bias: Some((rows, shared, skip_first)),
                ..plain(2, [queries, keys], 32)
            };
            check_both(&case);
            if queries <= keys {
                check_both(&padded(Case {
                    band: Some(Band { left: 20, right: 9 }),
                    kv_heads: 1,
                    ..case
                }));
            }
        }
    }
}

#[test]
fn products_with_tables_are_read_by_distance_and_get_their_gradients() {
    for rows in [1, 9, 300] {
        for [queries, keys] in [[130, 130], [70, 33], [3, 70]] {
            let case = Case {
                products: Some(rows),
                ..plain(2, [queries, keys], 32)
            };
            check_both(&case);
            if queries <= keys {
                check_both(&Case {
                    batch: 2,
                    band: Some(Band { left: 20, right: 9 }),
                    dropout: DROPOUTS[1],
                    ..case
                });
            }
        }
    }
}

#[test]
fn sequences_one_behind_the_other_are_worked_on_as_by_themselves() {
    let lengths = vec![5, 64, 0, 130, 1, 70];
    let n = lengths.iter().sum();
    let case = Case {
        lengths: Some(lengths),
        ..plain(2, [n, n], 32)
    };
    check_both(&case);
    check_both(&Case {
        dropout: DROPOUTS[1],
        kv_heads: 1,
        band: Some(Band { left: 20, right: 3 }),
        rotary: Some((32, RotaryPairs::Half, false)),
        bias: Some((9, false, true)),
        ..case
    });
}

/// What the loops over tiles copy grows with the number of keys that a query sees, not with all keys.
#[test]
fn windows_cost_their_width() {
    let copies = |n: usize, band: Option<Band>| {
        let case = Case {
            band,
            ..plain(1, [n, n], 32)
        };
        let [q, k, v, dout] = case.inputs::<bf16>();
        case.run::<bf16>([&q, &k, &v], &dout, Lie::Apart, 1).1
    };
    let near = Some(Band::both(32));
    let (short, long) = (copies(256, near), copies(1024, near));
    let (short_full, long_full) = (copies(256, None), copies(1024, None));
    for i in 0..3 {
        // Four times as many positions: as many tiles each, or four times as many.
        let growth = long[i] as f64 / short[i] as f64;
        assert!((3.9..4.5).contains(&growth), "{growth} {short:?} {long:?}");
        let growth = long_full[i] as f64 / short_full[i] as f64;
        assert!((10.0..16.1).contains(&growth), "{growth}");
        assert!(4 * long[i] < long_full[i], "{long:?} {long_full:?}");
    }
}

#[test]
fn nan_affects_only_its_query() {
    let case = plain(1, [70, 70], 64);
    let [mut q, k, v, dout] = [1, 2, 3, 4].map(|seed| noise(70 * 64, seed));
    q[20 * 64 + 3] = f32::NAN;
    let (got, _) = case.run::<bf16>([&q, &k, &v], &dout, Lie::Apart, 1);
    for (i, row) in got[0].chunks(64).enumerate() {
        assert!(row.iter().all(|x| x.is_nan() == (i == 20)), "query {i}");
    }
}
