//! Each fused operation at the sizes of a DistilRoBERTa training step, forward and backward, one JSON line each.
//!
//! `cargo bench --bench ops -- --batch 8 --seq 128 --rounds 15`. `gflops` counts the products (two operations a
//! multiply-add), `gbps` the memory that must at least be read and written; `cpu_ms` is the processor time of all threads,
//! which tells more than `ms` where others use the machine too. `compare_ops.py` sets PyTorch beside it, in turns.

mod support;

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use cloze::Result;
use cloze::ops::{
    self, Activation, AdamWOptions, AdamWState, AttentionMask, AttentionOptions, Band, Dropout,
    FusedLayout, Param, RelativeIndex, RelativeTerms, Rotary, RotaryPairs,
};
use support::{Arguments, VOCAB, median};

const HIDDEN: usize = 768;
const DROPOUT: Dropout = Dropout { p: 0.1, key: 7 };
const INNER: usize = 3072;
const HEADS: usize = 12;

struct Bench {
    batch: usize,
    seq: usize,
    rounds: usize,
}

/// What one pass must do at least.
#[derive(Clone, Copy, Default)]
struct Work {
    flops: f64,
    bytes: f64,
}

fn cpu_seconds() -> f64 {
    // SAFETY: an all-zero timespec is valid, and the call fills it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time);
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

impl Bench {
    /// Times `prepare` (untimed) followed by `run`, and prints a line.
    fn time<T>(
        &self,
        name: &str,
        pass: &str,
        work: Work,
        mut prepare: impl FnMut() -> Result<T>,
        mut run: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let (mut wall, mut cpu) = (Vec::new(), Vec::new());
        for round in 0..self.rounds + 2 {
            let input = prepare()?;
            let (start, used) = (Instant::now(), cpu_seconds());
            run(input)?;
            if round >= 2 {
                wall.push(start.elapsed().as_secs_f64());
                cpu.push(cpu_seconds() - used);
            }
        }
        let (wall, cpu) = (median(&mut wall), median(&mut cpu));
        println!(
            "{}",
            serde_json::json!({
                "bench": "ops", "peer": "cloze", "kernel": ops::matmul_kernel(), "op": name, "pass": pass,
                "batch": self.batch, "seq": self.seq, "ms": wall * 1e3, "cpu_ms": cpu * 1e3,
                "gflops": work.flops / wall * 1e-9, "gbps": work.bytes / wall * 1e-9,
            })
        );
        Ok(())
    }

    /// Times the forward pass of `op` and the backward pass behind it.
    fn both(
        &self,
        name: &str,
        forward: Work,
        backward: Work,
        params: &[Param],
        op: impl Fn() -> Result<Tensor>,
    ) -> Result<()> {
        self.time(name, "forward", forward, || Ok(()), |()| op().map(drop))?;
        self.time(name, "backward", backward, &op, |y| {
            params.iter().for_each(Param::zero_grad);
            ops::backward(&y, params)
        })
    }
}

fn input(shape: &[usize]) -> Result<Tensor> {
    Ok(Var::randn(0f32, 1f32, shape, &Device::Cpu)?.into_inner())
}

fn param(shape: &[usize]) -> Result<Param> {
    Param::new("p", &Tensor::randn(0f32, 0.02f32, shape, &Device::Cpu)?)
}

fn bench() -> Result<Bench> {
    let arguments = Arguments::read(&["batch", "seq", "rounds"], &[])?;
    Ok(Bench {
        batch: arguments.get("batch", 8)?,
        seq: arguments.get("seq", 128)?,
        rounds: arguments.get("rounds", 15)?,
    })
}

impl Bench {
    /// Returns the work of an operation that reads or writes this many times the hidden states.
    fn of_rows(&self, times: f64) -> Work {
        Work {
            flops: 0.0,
            bytes: (4 * self.batch * self.seq * HIDDEN) as f64 * times,
        }
    }

    /// Times affine maps, with and without an activation.
    fn linear(&self) -> Result<()> {
        let (batch, seq) = (self.batch, self.seq);
        let rows = self.batch * self.seq;
        for (name, width, out, activation) in [
            ("linear 768-768", HIDDEN, HIDDEN, Activation::Linear),
            ("linear gelu 768-3072", HIDDEN, INNER, Activation::Gelu),
            ("linear 3072-768", INNER, HIDDEN, Activation::Linear),
        ] {
            let (x, w, b) = (
                input(&[batch, seq, width])?,
                param(&[out, width])?,
                param(&[out])?,
            );
            let work = |products: f64| Work {
                flops: products * (2 * rows * width * out) as f64,
                bytes: products * (4 * (rows * width + rows * out + width * out)) as f64,
            };
            self.both(name, work(1.0), work(2.0), &[w.clone(), b.clone()], || {
                ops::linear_act(&x, &w, Some(&b), activation)
            })?;
        }
        Ok(())
    }

    /// Times plain, relative and local attention.
    fn attention(&self) -> Result<()> {
        let (batch, seq) = (self.batch, self.seq);
        let (q, k, v) = (
            input(&[batch, seq, HIDDEN])?,
            input(&[batch, seq, HIDDEN])?,
            input(&[batch, seq, HIDDEN])?,
        );
        let products = |n: f64| Work {
            flops: n * (2 * batch * seq * seq * HIDDEN) as f64,
            bytes: self.of_rows(2.0 * n).bytes,
        };
        self.both("attention", products(2.0), products(5.0), &[], || {
            let scale = 1.0 / ((HIDDEN / HEADS) as f64).sqrt();
            ops::attention(&q, &k, &v, HEADS, &AttentionMask::None, scale, DROPOUT)
        })?;

        // DeBERTa-v3: what the distances add is two products more in the forward pass, and six in the backward.
        let options = AttentionOptions {
            dropout: DROPOUT,
            ..AttentionOptions::new(HEADS, HIDDEN / HEADS)
        };
        let terms = RelativeTerms {
            query_table: Some(input(&[512, HIDDEN])?),
            key_table: Some(input(&[512, HIDDEN])?),
            ..RelativeTerms::new(RelativeIndex::log_buckets(seq, seq, 256, 512))
        };
        let (forward, backward) = (products(4.0), products(11.0));
        self.both(
            "attention, two relative terms",
            forward,
            backward,
            &[],
            || ops::relative_attention(&q, &k, &v, &terms, &options),
        )?;
        // ModernBERT's local layers.
        let qkv = input(&[batch, seq, 3 * HIDDEN])?;
        let local = AttentionOptions {
            band: Some(Band::both(64)),
            rotary: Some(Rotary::with_theta(
                seq,
                HIDDEN / HEADS,
                1e4,
                RotaryPairs::Half,
            )?),
            ..options
        };
        let share = (129.0 / seq as f64).min(1.0);
        let (forward, backward) = (products(2.0 * share), products(5.0 * share));
        self.both(
            "attention, rotary, window of 129",
            forward,
            backward,
            &[],
            || ops::attention_fused(&qkv, FusedLayout::Blocks, &local),
        )?;
        Ok(())
    }

    /// Times layer normalization and dropout.
    fn norms(&self) -> Result<()> {
        let (batch, seq) = (self.batch, self.seq);
        let (x, y, w, b) = (
            input(&[batch, seq, HIDDEN])?,
            input(&[batch, seq, HIDDEN])?,
            param(&[HIDDEN])?,
            param(&[HIDDEN])?,
        );
        let both = [w.clone(), b.clone()];
        self.both(
            "dropout + residual + layer norm",
            self.of_rows(3.0),
            self.of_rows(5.0),
            &both,
            || ops::add_layer_norm(&x, &y, &w, Some(&b), 1e-5, DROPOUT),
        )?;
        self.both("dropout", self.of_rows(2.0), self.of_rows(2.0), &[], || {
            ops::dropout(&x, DROPOUT)
        })?;
        Ok(())
    }

    /// Times the sum of the embeddings, with this table of words.
    fn embeddings(&self, words: &Param) -> Result<()> {
        let (batch, seq) = (self.batch, self.seq);
        let rows = self.batch * self.seq;
        let (positions, kinds) = (param(&[514, HIDDEN])?, param(&[1, HIDDEN])?);
        let ids: Vec<u32> = (0..rows).map(|i| (i * 7919 % 50_000) as u32).collect();
        let ids = Tensor::from_vec(ids, (batch, seq), &Device::Cpu)?;
        let places = Tensor::arange(2, seq as u32 + 2, &Device::Cpu)?.reshape((1, seq))?;
        let zeros = ids.zeros_like()?;
        let tables = [words.clone(), positions.clone(), kinds.clone()];
        // The backward pass clears the whole table first, as the peer does.
        let table = Work {
            flops: 0.0,
            bytes: (4 * VOCAB * HIDDEN) as f64,
        };
        self.both("embedding sum", self.of_rows(4.0), table, &tables, || {
            ops::embedding_sum(&[
                (&ids, words, Some(1)),
                (&places, &positions, Some(1)),
                (&zeros, &kinds, None),
            ])
        })?;
        Ok(())
    }

    /// Times the loss of the masked rows over the vocabulary.
    fn loss(&self, words: &Param) -> Result<()> {
        let rows = self.batch * self.seq;
        let counted = (rows * 3).div_ceil(20);
        let (hidden, bias) = (input(&[counted, HIDDEN])?, param(&[VOCAB])?);
        let labels: Vec<u32> = (0..counted).map(|i| (i * 7919 % 50_000) as u32).collect();
        let labels = Tensor::from_vec(labels, counted, &Device::Cpu)?;
        let product = |n: f64| Work {
            flops: n * (2 * counted * VOCAB * HIDDEN) as f64,
            bytes: n * (4 * (VOCAB * HIDDEN + VOCAB * counted)) as f64,
        };
        let both = [words.clone(), bias.clone()];
        self.both(
            "vocabulary + cross entropy",
            product(1.0),
            product(2.0),
            &both,
            || ops::masked_cross_entropy(&hidden, words, Some(&bias), &labels),
        )?;
        Ok(())
    }

    /// Times the gradient norm and AdamW over 82M parameters.
    fn updates(&self, words: Param) -> Result<()> {
        // 82M parameters: the word embeddings and as much again in matrices.
        let mut params = vec![words];
        for _ in 0..18 {
            params.push(param(&[INNER, HIDDEN])?);
        }
        let total: usize = params.iter().map(Param::elem_count).sum();
        let mut states = params
            .iter()
            .map(AdamWState::new)
            .collect::<Result<Vec<_>>>()?;
        for param in &params {
            param.add_grad(&Tensor::ones(param.shape(), param.dtype(), &Device::Cpu)?)?;
        }
        let bytes = |per: usize| Work {
            flops: 0.0,
            bytes: (total * per) as f64,
        };
        self.time(
            "gradient norm",
            "forward",
            bytes(4),
            || Ok(()),
            |()| ops::grad_norm(&params).map(drop),
        )?;
        self.time(
            "AdamW",
            "forward",
            bytes(28),
            || Ok(()),
            |()| ops::adamw_step(&params, &mut states, &AdamWOptions::default(), 1.0),
        )
    }
}

fn main() -> Result<()> {
    ops::tune_allocator();
    let bench = bench()?;
    let words = param(&[VOCAB, HIDDEN])?;
    bench.linear()?;
    bench.attention()?;
    bench.norms()?;
    bench.embeddings(&words)?;
    bench.loss(&words)?;
    bench.updates(words)
}
