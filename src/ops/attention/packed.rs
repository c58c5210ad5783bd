//! Attention of concatenated sequences, without padding between them.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::cpu::{Attention, Inputs, Targets, Upstream};
use super::layout::{Heads, Shared, View, readable};
use super::relative::{Parts, Terms};
use super::rows::Row;
use super::{
    AttentionMask, AttentionOptions, FusedLayout, RelativeTerms, Sizes, is_fused, with_qkv,
};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::parallel::for_overwrite;
use crate::ops::{Dropout, concat, narrow};
use crate::{Error, Result};

/// Like [`attention_with`](super::attention_with) and [`attention_fused`](super::attention_fused), or their relative
/// forms if there are terms, for sequences of these lengths in one row of the batch. The positions of each sequence
/// begin at 0, and it attends only to itself. The terms must cover at least as many positions as the longest has.
pub(super) fn attend(
    qkv: &[&Tensor],
    fused: Option<FusedLayout>,
    lengths: &Arc<[usize]>,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Tensor> {
    let sizes = match (fused, qkv) {
        (Some(layout), [all]) => Sizes::fused(all, layout, options)?,
        (_, &[q, k, v]) => Sizes::new([q, k, v], options)?,
        _ => unreachable!("attention has one argument for queries, keys and values, or three"),
    };
    check(&sizes, lengths, options)?;
    #[cfg(feature = "cuda")]
    if let Some(out) = on_gpu(qkv, fused, lengths, sizes, options, terms)? {
        return Ok(out);
    }
    if sizes.is_empty() || !is_fused(qkv, options, terms) {
        return one_by_one(qkv, fused, lengths, options, terms);
    }
    let qkv = qkv
        .iter()
        .map(|x| readable(x))
        .collect::<Result<Vec<_>>>()?;
    on_cpu(
        &qkv.iter().collect::<Vec<_>>(),
        fused,
        lengths,
        sizes,
        options,
        terms,
    )
}

fn check(sizes: &Sizes, lengths: &[usize], options: &AttentionOptions) -> Result<()> {
    let sum: usize = lengths.iter().sum();
    if (sizes.batch, sizes.queries, sizes.keys) != (1, sum, sum) {
        return Err(Error::argument(
            "attention_mask",
            format!(
                "sequences with {sum} positions in total need one row of as many, but there are {} rows of {} queries and {} keys",
                sizes.batch, sizes.queries, sizes.keys
            ),
        ));
    }
    if options.query_mask.is_some() {
        return Err(Error::argument(
            "query_mask",
            "not supported with packed sequences: remove the positions that do not count",
        ));
    }
    if let Some(rotary) = &options.rotary {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        rotary.check(longest, sizes.key, sizes.value)?;
    }
    Ok(())
}

/// Returns the options of sequence number `at`, with its own dropout mask.
fn of_sequence(options: &AttentionOptions, at: usize) -> AttentionOptions {
    let key = options.dropout.key;
    AttentionOptions {
        mask: AttentionMask::None,
        dropout: Dropout {
            key: key ^ (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            ..options.dropout
        },
        ..options.clone()
    }
}

/// By the kernels of a GPU, all sequences at once; `None` where they do not take them.
#[cfg(feature = "cuda")]
fn on_gpu(
    qkv: &[&Tensor],
    fused: Option<FusedLayout>,
    lengths: &[usize],
    sizes: Sizes,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Option<Tensor>> {
    let on_gpu = qkv.iter().all(|x| crate::ops::cuda::takes(x, []));
    if !on_gpu || sizes.is_empty() {
        return Ok(None);
    }
    if let Some(terms) = terms {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        terms.of_sequence(longest)?.check(&Sizes {
            queries: longest,
            keys: longest,
            ..sizes
        })?;
    }
    super::cuda::attend(&super::cuda::Request {
        qkv,
        layout: fused,
        sizes,
        options,
        terms,
        lengths: Some(lengths),
        plan: None,
    })
}

/// On any device: sequence by sequence.
fn one_by_one(
    qkv: &[&Tensor],
    fused: Option<FusedLayout>,
    lengths: &[usize],
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Tensor> {
    let mut first = 0;
    let mut parts = Vec::with_capacity(lengths.len());
    for (at, &len) in lengths.iter().enumerate() {
        let part = |x: &&Tensor| narrow(x, 1, first, len);
        let qkv = qkv.iter().map(part).collect::<Result<Vec<_>>>()?;
        let options = of_sequence(options, at);
        let terms = terms.map(|terms| terms.of_sequence(len)).transpose()?;
        let terms = terms.as_ref();
        parts.push(match (fused, &qkv[..]) {
            (Some(layout), [all]) => super::attend_fused(all, layout, &options, terms)?,
            (_, [q, k, v]) => super::attend([q, k, v], &options, terms)?,
            _ => unreachable!("as many as there were"),
        });
        first += len;
    }
    concat(&parts.iter().collect::<Vec<_>>(), 1)
}

/// One of the sequences.
struct Sequence {
    first: usize,
    attention: Attention,
    /// Its terms, without their tables, which are the same for all.
    terms: Option<RelativeTerms>,
}

impl Sequence {
    /// Where its rows lie, of those that `view` is of.
    fn view(&self, view: View) -> View {
        View {
            start: view.start + self.first * view.row,
            ..view
        }
    }

    /// Returns its terms with the tables.
    fn expanded(&self, tables: [Option<&Tensor>; 4], scale: f64) -> Result<Option<Terms>> {
        let expand = |terms| Terms::new(terms, tables, &self.attention.sizes, scale);
        self.terms.as_ref().map(expand).transpose()
    }

    fn inputs<'a>(&self, qkv: [Heads<'a>; 3], terms: Option<&'a Terms>) -> Inputs<'a> {
        let [q, k, v] = qkv.map(|Heads { data, view }| Heads {
            data,
            view: self.view(view),
        });
        Inputs {
            q,
            k,
            v,
            bias: &[],
            terms,
        }
    }
}

/// The gradients of a sequence's tables.
type OfTables = Result<Option<[Option<Tensor>; 4]>>;

fn on_cpu(
    qkv: &[&Tensor],
    fused: Option<FusedLayout>,
    lengths: &[usize],
    sizes: Sizes,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Tensor> {
    let sequences = sequences(lengths, sizes, options, terms)?;
    let scale = options.scale;
    let tables = terms.map_or([None; 4], RelativeTerms::tables);
    let results: Result<Vec<(Vec<f32>, Vec<Row>)>> = with_qkv(qkv, fused, &sizes, |qkv| {
        let forward = |sequence: &Sequence| {
            let terms = sequence.expanded(tables, scale)?;
            let inputs = sequence.inputs(qkv, terms.as_ref());
            Ok(sequence.attention.forward(&inputs))
        };
        sequences.par_iter().map(forward).collect()
    })?;
    let (outs, rows): (Vec<_>, Vec<_>) = results?.into_iter().unzip();
    let shape = (1, sizes.queries, sizes.heads * sizes.value);
    let mut args = qkv.to_vec();
    let own = args.len();
    args.extend(tables.into_iter().flatten());
    let pass = Pass {
        sequences,
        rows,
        fused,
        sizes,
        scale,
    };
    let has_table = tables.map(|table| table.is_some());
    tape::record(
        "attention",
        &args,
        outs.concat(),
        shape,
        move |args, out, grad| {
            let (qkv, tables) = args.split_at(own);
            let mut tables = tables.iter().copied();
            let tables = has_table.map(|has| if has { tables.next() } else { None });
            pass.backward(qkv, tables, out, grad)
        },
    )
}

/// Returns the sequences that are not empty, each with its own options and terms.
fn sequences(
    lengths: &[usize],
    sizes: Sizes,
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
) -> Result<Vec<Sequence>> {
    let mut sequences = Vec::with_capacity(lengths.len());
    let mut first = 0;
    for (at, &len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
        let sizes = Sizes {
            queries: len,
            keys: len,
            ..sizes
        };
        let terms = match terms {
            Some(terms) => {
                let terms = terms.of_sequence(len)?;
                terms.check(&sizes)?;
                Some(terms.without_tables())
            }
            None => None,
        };
        sequences.push(Sequence {
            first,
            attention: Attention::new(sizes, &of_sequence(options, at), None)?,
            terms,
        });
        first += len;
    }
    Ok(sequences)
}

/// The state that the forward pass keeps for the backward pass.
struct Pass {
    sequences: Vec<Sequence>,
    /// The statistics of each sequence's rows.
    rows: Vec<Vec<Row>>,
    fused: Option<FusedLayout>,
    sizes: Sizes,
    scale: f64,
}

impl Pass {
    /// Returns the gradients of queries, keys and values, or of their fused projection, and those of the tables.
    fn backward(
        &self,
        qkv: &[&Tensor],
        tables: [Option<&Tensor>; 4],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<tape::Grads> {
        let sizes = &self.sizes;
        let wants = tables.map(|table| table.is_some_and(Tensor::track_op));
        let mut buffers: Vec<Vec<f32>> =
            qkv.iter().map(|x| for_overwrite(x.elem_count())).collect();
        let contiguous = |heads, width| View::contiguous(sizes.queries, heads, width);
        let (views, of) = self.views();
        let starts: Vec<Shared> = (buffers.iter_mut())
            .map(|buffer| Shared::new(buffer, contiguous(1, 0)))
            .collect();
        let view = contiguous(sizes.heads, sizes.value);
        let of_tables: Vec<OfTables> = with_qkv(qkv, self.fused, sizes, |qkv| {
            storage::with2(out, grad, |out, grad| {
                let of_sequence = |(sequence, rows): (&Sequence, &Vec<Row>)| {
                    let terms = sequence.expanded(tables, self.scale)?;
                    let parts = sequence
                        .terms
                        .as_ref()
                        .map(|terms| Parts::new(wants, &terms.index, &sequence.attention.sizes));
                    let heads = |data| Heads {
                        data,
                        view: sequence.view(view),
                    };
                    let up = Upstream {
                        out: heads(out),
                        grad: heads(grad),
                        rows,
                    };
                    // No two sequences have a row in common.
                    let [q, k, v] =
                        [0, 1, 2].map(|i| starts[of[i]].seen_as(sequence.view(views[i])));
                    let mut to = Targets {
                        q,
                        k,
                        v,
                        scores: &mut [],
                        terms: parts.as_ref(),
                    };
                    let inputs = sequence.inputs(qkv, terms.as_ref());
                    sequence.attention.backward(&inputs, &up, &mut to);
                    let collect = |(parts, terms): (Parts, &RelativeTerms)| {
                        parts.collect(&terms.index, tables)
                    };
                    parts.zip(sequence.terms.as_ref()).map(collect).transpose()
                };
                let pairs = self.sequences.par_iter().zip(&self.rows);
                pairs.map(of_sequence).collect()
            })
        })??;
        // All of them are computed together; those that nobody asked for are dropped.
        let grads = qkv.iter().zip(buffers).map(|(x, buffer)| {
            let grad = storage::tensor(buffer, x.shape())?;
            Ok(x.track_op().then_some(grad))
        });
        let mut grads = grads.collect::<Result<Vec<_>>>()?;
        let present = tables.iter().zip(added(of_tables)?);
        grads.extend(
            present
                .filter(|(table, _)| table.is_some())
                .map(|(_, sum)| sum),
        );
        Ok(grads)
    }

    /// Returns the views of the gradients of queries, keys and values, and the number of the buffer of each.
    fn views(&self) -> ([View; 3], [usize; 3]) {
        let sizes = &self.sizes;
        let contiguous = |heads, width| View::contiguous(sizes.queries, heads, width);
        match self.fused {
            Some(layout) => (
                layout.split(contiguous(1, sizes.fused_width()), sizes),
                [0; 3],
            ),
            None => {
                let q = contiguous(sizes.heads, sizes.key);
                let k = contiguous(sizes.kv_heads, sizes.key);
                let v = contiguous(sizes.kv_heads, sizes.value);
                ([q, k, v], [0, 1, 2])
            }
        }
    }
}

/// Adds up the gradients of the tables, sequence by sequence.
fn added(of_sequences: Vec<OfTables>) -> Result<[Option<Tensor>; 4]> {
    let mut sums = [None, None, None, None];
    for grads in of_sequences {
        for (sum, grad) in sums.iter_mut().zip(grads?.into_iter().flatten()) {
            *sum = match (sum.take(), grad) {
                (Some(sum), Some(grad)) => Some((sum + grad)?),
                (sum, grad) => sum.or(grad),
            };
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::{
        Band, RelativeIndex, Rotary, RotaryPairs, attention_fused, attention_with,
        relative_attention, relative_attention_fused,
    };
    use super::*;
    use crate::ops::{self, scale};

    const LENGTHS: [usize; 5] = [5, 1, 0, 12, 3];

    fn noise(shape: &[usize], seed: usize) -> Var {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32 * 1.7).sin());
        Var::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
    }

    fn options() -> Vec<AttentionOptions> {
        let plain = AttentionOptions::new(4, 6);
        let rotary = Rotary::with_theta(16, 6, 100.0, RotaryPairs::Half).unwrap();
        vec![
            plain.clone(),
            AttentionOptions {
                rotary: Some(rotary),
                kv_heads: Some(2),
                ..plain.clone()
            },
            AttentionOptions {
                band: Some(Band::both(2)),
                ..plain.clone()
            },
            AttentionOptions {
                causal: true,
                ..plain.clone()
            },
            AttentionOptions {
                dropout: Dropout { p: 0.3, key: 9 },
                ..plain
            },
        ]
    }

    /// Result and gradients of a weighted sum of it.
    fn run(leaves: &[Var], f: impl Fn() -> Tensor) -> Vec<Tensor> {
        let y = f();
        let weights = noise(y.dims(), 77);
        let sum = ops::sum_all(&ops::mul(&y, &weights.as_tensor().detach()).unwrap()).unwrap();
        let grads = scale(&sum, 1.0).unwrap().backward().unwrap();
        let of = |leaf: &Var| grads.get(leaf).unwrap().clone();
        [y.detach()]
            .into_iter()
            .chain(leaves.iter().map(of))
            .collect()
    }

    #[track_caller]
    fn assert_close(a: &[Tensor], b: &[Tensor]) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let worst = (a - b)
                .unwrap()
                .abs()
                .unwrap()
                .flatten_all()
                .unwrap()
                .max(0)
                .unwrap();
            let worst: f32 = worst.to_scalar().unwrap();
            assert!(worst < 2e-6, "{i}: {worst}");
        }
    }

    #[test]
    fn each_sequence_attends_only_to_itself() {
        let n = LENGTHS.iter().sum();
        for options in options() {
            let kv = options.kv_heads();
            let leaves = [
                noise(&[1, n, 24], 1),
                noise(&[1, n, 6 * kv], 2),
                noise(&[1, n, 6 * kv], 3),
            ];
            let [q, k, v] = &leaves;
            let packed = AttentionOptions {
                mask: AttentionMask::Packed(LENGTHS.into()),
                ..options.clone()
            };
            let ours = run(&leaves, || attention_with(q, k, v, &packed).unwrap());
            let lengths: Vec<usize> = LENGTHS.into_iter().filter(|&len| len > 0).collect();
            // Numbered without the empty one, dropout would differ.
            if !options.dropout.is_active() {
                let qkv = [q.as_tensor(), k, v];
                let each = run(&leaves, || {
                    one_by_one(&qkv, None, &lengths, &options, None).unwrap()
                });
                assert_close(&ours, &each);
            } else {
                let again = run(&leaves, || attention_with(q, k, v, &packed).unwrap());
                assert_close(&ours, &again);
            }
        }
    }

    /// All four tables, and no other places than those that the sequences have.
    fn terms(tables: &[Var]) -> RelativeTerms {
        let [query, key, bias, value] = [0, 1, 2, 3].map(|i| Some(tables[i].as_tensor().clone()));
        RelativeTerms {
            query_table: query,
            key_table: key,
            bias_table: bias,
            value_table: value,
            ..RelativeTerms::new(RelativeIndex::clipped(14, 14, -6, 6))
        }
    }

    #[test]
    fn relative_terms_use_each_sequences_own_distances() {
        let n = LENGTHS.iter().sum();
        let tables = [
            noise(&[13, 24], 5),
            noise(&[13, 6], 6),
            noise(&[13, 4], 7),
            noise(&[13, 6], 8),
        ];
        let packed = AttentionOptions {
            mask: AttentionMask::Packed(LENGTHS.into()),
            ..AttentionOptions::new(4, 6)
        };
        let with = |leaves: &[Var], all: &[Var]| -> Vec<Var> { [leaves, all].concat() };
        let [q, k, v] = [1, 2, 3].map(|seed| noise(&[1, n, 24], seed));
        let leaves = with(&[q.clone(), k.clone(), v.clone()], &tables);
        let ours = run(&leaves, || {
            relative_attention(&q, &k, &v, &terms(&tables), &packed).unwrap()
        });
        let each = run(&leaves, || {
            let qkv = [q.as_tensor(), &k, &v];
            let terms = terms(&tables);
            one_by_one(&qkv, None, &LENGTHS, &packed, Some(&terms)).unwrap()
        });
        assert_close(&ours, &each);

        let all = noise(&[1, n, 72], 4);
        let leaves = with(std::slice::from_ref(&all), &tables);
        let layout = FusedLayout::PerHead;
        let ours = run(&leaves, || {
            relative_attention_fused(&all, layout, &terms(&tables), &packed).unwrap()
        });
        let apart = run(&leaves, || {
            let [q, k, v] = crate::ops::naive::split(&all, layout, &packed).unwrap();
            relative_attention(&q, &k, &v, &terms(&tables), &packed).unwrap()
        });
        assert_close(&ours, &apart);
    }

    #[test]
    fn a_fused_projection_gives_the_same() {
        let n: usize = LENGTHS.iter().sum();
        let all = noise(&[1, n, 72], 4);
        for (i, options) in options().into_iter().enumerate().filter(|(i, _)| *i != 1) {
            let packed = AttentionOptions {
                mask: AttentionMask::Packed(LENGTHS.into()),
                ..options
            };
            let layout = [FusedLayout::Blocks, FusedLayout::PerHead][i % 2];
            let leaves = std::slice::from_ref(&all);
            let ours = run(leaves, || attention_fused(&all, layout, &packed).unwrap());
            let apart = run(leaves, || {
                let [q, k, v] = crate::ops::naive::split(&all, layout, &packed).unwrap();
                attention_with(&q, &k, &v, &packed).unwrap()
            });
            assert_close(&ours, &apart);
        }
    }

    #[test]
    fn mismatched_lengths_are_errors() {
        let x = noise(&[1, 7, 24], 1);
        let with = |lengths: &[usize]| AttentionOptions {
            mask: AttentionMask::Packed(lengths.into()),
            ..AttentionOptions::new(4, 6)
        };
        assert!(attention_with(&x, &x, &x, &with(&[3, 3])).is_err());
        assert!(attention_with(&x, &x, &x, &with(&[3, 4])).is_ok());
        let two = noise(&[2, 7, 24], 1);
        assert!(attention_with(&two, &two, &two, &with(&[7, 7])).is_err());
        let of = |n| RelativeTerms::new(RelativeIndex::clipped(n, n, -2, 2));
        let attend = |n| relative_attention(&x, &x, &x, &of(n), &with(&[3, 4]));
        assert!(attend(4).is_ok() && attend(7).is_ok());
        let message = attend(3).unwrap_err().to_string();
        assert!(message.contains("a sequence has 4 positions"), "{message}");
    }
}
