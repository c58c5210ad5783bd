//! MRA (Zeng et al. 2022, arXiv:2207.10284): attention at two resolutions, between whole blocks of 32 tokens, and token by
//! token for the pairs of blocks that matter most.
//!
//! Texts are padded to whole blocks, which moves the means that blocks are judged by, so only texts of one length share a
//! batch. `approx_mode` "full" keeps the rest at the coarse resolution, "sparse" leaves it out. Where a text has fewer pairs
//! of blocks than are to be chosen, all are.
//!
//! In transformers MRA runs on a GPU only. The reference results in the tests do not come from there but from a stand-in
//! for the CPU: transformers' model with its GPU kernels reimplemented as PyTorch operations.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;

use super::bert::{self, BertConfig};
use super::nystromformer::positions_from_two;
use super::padded::Padded;
use super::reformer::with_added;
use crate::model::nn::{
    Block, MOST_LAYERS, Mixing, MixingBlock, Pass, Projections, Spec, check_layers_up_to,
};
use crate::model::{Architecture, Config, Family, ModelFlops, Sharing, WeightBuilder};
use crate::ops::{self, AttentionMask, AttentionOptions, Param, SparsePlan};
use crate::{Error, Result};

/// `MraForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "mra",
    class: "MraForMaskedLM",
    synonyms: &["MraModel"],
    base: "mra",
    carried: &["mra.embeddings.position_ids"],
    defaults: r#"{"vocab_size": 50265, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}"#,
    sharing: Sharing::OneLength,
    build,
    ..bert::FAMILY
};

/// The tokens of a block.
const BLOCK: usize = 32;

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct MraConfig {
    block_per_row: usize,
    approx_mode: String,
    initial_prior_first_n_blocks: usize,
    initial_prior_diagonal_n_blocks: usize,
}

impl Default for MraConfig {
    fn default() -> Self {
        Self {
            block_per_row: 4,
            approx_mode: "full".to_owned(),
            initial_prior_first_n_blocks: 0,
            initial_prior_diagonal_n_blocks: 0,
        }
    }
}

/// More positions than any model has.
const MOST: usize = 1 << 20;

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: MraConfig = config.parse()?;
    let positions = config.parse::<BertConfig>()?.max_position_embeddings;
    let spec = Spec {
        base: "mra",
        positions: positions_from_two(config)?,
        ..bert::spec(config)?
    };
    check_layers_up_to("num_hidden_layers", spec.places.len(), MOST_LAYERS / 2)?;
    let coarse = match values.approx_mode.as_str() {
        "full" => true,
        "sparse" => false,
        other => {
            return Err(Error::Config(format!(
                "unknown approx_mode {other:?}; known are full and sparse"
            )));
        }
    };
    let row = positions / BLOCK;
    if row == 0 || positions > MOST || values.block_per_row == 0 {
        return Err(Error::Config(format!(
            "max_position_embeddings {positions} must be at least a block of {BLOCK} tokens and at most {MOST}, and \
             block_per_row {} be positive",
            values.block_per_row
        )));
    }
    let choice = Choice {
        pairs: row.saturating_mul(values.block_per_row.min(row)),
        first: values.initial_prior_first_n_blocks,
        diagonal: values.initial_prior_diagonal_n_blocks,
    };
    let counted = Tensor::arange(2i64, 2 + positions as i64, &Device::Cpu)?.unsqueeze(0)?;
    let ids = weights.pp("mra.embeddings");
    ids.carry_value("position_ids", counted)?;
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let mixing = TwoResolutions {
            maps: Projections::new(&spec, weights, place, "", true)?,
            choice,
            coarse,
        };
        let block = MixingBlock::new(&spec, weights, place, Box::new(mixing))?;
        Ok(Arc::new(block))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(Padded {
        model: Box::new(spec.build_with(weights, blocks)?),
        pad: spec.pad.unwrap_or(0),
        length: Box::new(|seq| seq.next_multiple_of(BLOCK)),
        max_positions: Some(row * BLOCK),
    }))
}

/// Which pairs of blocks are looked at token by token.
#[derive(Clone, Copy, Debug)]
struct Choice {
    /// How many in each head.
    pairs: usize,
    /// How many first blocks come before others, as queries and as keys.
    first: usize,
    /// How many diagonals come before others.
    diagonal: usize,
}

/// The number added to the logits of pairs with priority, and subtracted from those of padding.
const BEFORE: f32 = 5e3;
const NEVER: f32 = -1e4;
/// The number added to the sum of a query's weights.
const EPS: f32 = 1e-6;

/// The pairs of blocks of one head: for each block of queries, which blocks of keys.
struct Chosen {
    fine: Vec<Vec<usize>>,
    coarse: Vec<Vec<usize>>,
    /// The highest coarse logit of each block of queries, and the block of keys that it belongs to.
    top: Vec<(usize, f32)>,
}

impl Choice {
    /// Selects by the coarse logits (queries · keys) of one head, with blocks of this many tokens.
    fn choose(&self, logits: &[f32], tokens: &[f32]) -> Chosen {
        let count = tokens.len();
        let higher = |best: (usize, f32), (key, &logit): (usize, &f32)| match logit > best.1 {
            true => (key, logit),
            false => best,
        };
        let highest = |row: &[f32]| row.iter().enumerate().fold((0, f32::NEG_INFINITY), higher);
        let top: Vec<(usize, f32)> = logits.chunks(count).map(highest).collect();
        let value = |(at, &logit): (usize, &f32)| {
            let (query, key) = (at / count, at % count);
            let mut value = logit;
            if tokens[query] * tokens[key] < 0.5 {
                value += NEVER;
            }
            value -= top[query].1;
            if self.diagonal > 0 && query.abs_diff(key) <= self.diagonal / 2 {
                value += BEFORE;
            }
            for block in [query, key] {
                if block < self.first {
                    value += BEFORE;
                }
            }
            value
        };
        let values: Vec<f32> = logits.iter().enumerate().map(value).collect();
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order.truncate(self.pairs);
        let least = order.last().map_or(f32::INFINITY, |&last| values[last]);
        let mut fine = vec![Vec::new(); count];
        for at in order {
            fine[at / count].push(at % count);
        }
        fine.iter_mut().for_each(|keys| keys.sort_unstable());
        // Pairs that are as good as the last that was chosen are in neither.
        let left = |query: usize, key: usize| {
            values[query * count + key] < least && tokens[query] * tokens[key] > 0.5
        };
        let coarse = (0..count).map(|query| (0..count).filter(|&key| left(query, key)).collect());
        Chosen {
            coarse: coarse.collect(),
            fine,
            top,
        }
    }
}

/// Runs of `size` keys for each number, joined where they meet.
fn runs(numbers: &[usize], size: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &number in numbers {
        let (start, end) = (number * size, (number + 1) * size);
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// Attention at two resolutions.
#[derive(Debug)]
struct TwoResolutions {
    maps: Projections,
    choice: Choice,
    /// Whether what was not chosen is kept at the coarse resolution.
    coarse: bool,
}

/// Queries, keys (scaled) and values, (batch, n, hidden), and what is added to each key's scores.
struct Level<'a> {
    qkv: [&'a Tensor; 3],
    added: Option<Vec<f32>>,
    plan: SparsePlan,
}

impl TwoResolutions {
    fn scale(&self) -> f64 {
        // Narrower heads are filled up with zeros in transformers, and scaled as if they were as wide.
        1.0 / (self.maps.head_size.max(32) as f64).sqrt()
    }

    /// Returns results and the logarithms of sums, (n, batch, heads, size + 1). The texts are arranged as additional
    /// heads, because each has its own plan.
    fn attend(&self, level: &Level) -> Result<Tensor> {
        let ([q, k, v], heads) = (level.qkv, self.maps.heads);
        let (batch, n, _) = q.dims3()?;
        let side_by_side = |x: &Tensor| -> Result<Tensor> {
            let width = x.dim(2)?;
            ops::reshape(&ops::permute(x, &[1, 0, 2])?, (1, n, batch * width))
        };
        let [q, k] = match &level.added {
            Some(added) => with_added([q, k], heads, added.clone())?,
            None => [q.clone(), k.clone()],
        };
        let options = AttentionOptions {
            scale: 1.0,
            ..AttentionOptions::new(batch * heads, self.maps.head_size)
        };
        let (q, k, v) = (side_by_side(&q)?, side_by_side(&k)?, side_by_side(v)?);
        let seen = ops::sparse_attention_sums(&q, &k, &v, &level.plan, &options)?;
        ops::reshape(&seen, (n, batch, heads, self.maps.head_size + 1))
    }

    /// Returns the coarse logits of each text and head, (batch, heads, blocks, blocks), on the host.
    fn logits(&self, q: &Tensor, k: &Tensor) -> Result<Vec<f32>> {
        let per_head = |x: &Tensor| -> Result<Tensor> {
            let (batch, n, _) = x.dims3()?;
            let x = x.detach().to_device(&Device::Cpu)?;
            let x = x.reshape((batch, n, self.maps.heads, self.maps.head_size))?;
            Ok(x.transpose(1, 2)?.contiguous()?)
        };
        let logits = per_head(q)?.matmul(&per_head(k)?.t()?.contiguous()?)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    }

    /// Returns the highest score that each query has with the keys of chosen blocks, padding included at 0, in thousandths
    /// as the authors' kernel keeps it: (heads of all texts, n).
    fn highest(&self, q: &Tensor, k: &Tensor, chosen: &[Chosen]) -> Result<Vec<Vec<f32>>> {
        let (heads, size) = (self.maps.heads, self.maps.head_size);
        let (_, n, width) = q.dims3()?;
        let host = |x: &Tensor| -> Result<Vec<f32>> {
            let x = x.detach().to_device(&Device::Cpu)?;
            Ok(x.flatten_all()?.to_vec1()?)
        };
        let (q, k) = (host(q)?, host(k)?);
        let of_head = |(head, chosen): (usize, &Chosen)| -> Vec<f32> {
            let start = head / heads * n * width + head % heads * size;
            let row = |at: usize| start + at * width..start + at * width + size;
            let highest = |query: usize| {
                let mut top: Option<f32> = None;
                let own = &q[row(query)];
                for &block in &chosen.fine[query / BLOCK] {
                    for key in block * BLOCK..(block + 1) * BLOCK {
                        let pairs = own.iter().zip(&k[row(key)]);
                        let score: f32 = pairs.map(|(q, k)| q * k).sum();
                        top = Some(top.map_or(score, |top| top.max(score)));
                    }
                }
                // Below any score where nothing was chosen.
                top.map_or(-1e5, |top| (top * 1000.0).trunc() / 1000.0)
            };
            (0..n).map(highest).collect()
        };
        Ok(chosen.par_iter().enumerate().map(of_head).collect())
    }
}

impl Mixing for TwoResolutions {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (batch, n, _) = x.dims3()?;
        let (heads, size, blocks) = (self.maps.heads, self.maps.head_size, n / BLOCK);
        let [mut q, mut k, mut v] = self.maps.forward(x)?;
        let text = match &pass.mask {
            AttentionMask::Keys(text) => Some(text),
            _ => None,
        };
        let mut tokens = vec![BLOCK as f32; batch * blocks];
        let mut hidden_keys = None;
        if let Some(text) = text {
            [q, k, v] = [
                ops::mul_rows(&q, text)?,
                ops::mul_rows(&k, text)?,
                ops::mul_rows(&v, text)?,
            ];
            let text = text
                .to_device(&Device::Cpu)?
                .flatten_all()?
                .to_vec1::<u32>()?;
            let count = |block: &[u32]| block.iter().filter(|&&text| text != 0).count() as f32;
            tokens = text.chunks(BLOCK).map(count).collect();
            let added = text.iter().map(|&text| if text == 0 { NEVER } else { 0.0 });
            hidden_keys = Some(added.collect::<Vec<f32>>());
        }
        k = ops::scale(&k, self.scale())?;

        let mean = |x: &Tensor| -> Result<Tensor> {
            let means = ops::mean_segments(x, blocks)?;
            if text.is_none() {
                return Ok(means);
            }
            let factor = |&tokens: &f32| BLOCK as f32 / (tokens + EPS);
            let factors: Vec<f32> = tokens.iter().map(factor).collect();
            let factors = Tensor::from_vec(factors, (batch, blocks), &Device::Cpu)?;
            ops::mul_rows(&means, &factors.to_device(x.device())?)
        };
        let (mean_q, mean_k) = (mean(&q)?, mean(&k)?);
        let logits = self.logits(&mean_q, &mean_k)?;
        let choose = |(head, logits): (usize, &[f32])| {
            let tokens = &tokens[head / heads * blocks..][..blocks];
            self.choice.choose(logits, tokens)
        };
        let chosen = logits.par_chunks(blocks * blocks).enumerate().map(choose);
        let chosen: Vec<Chosen> = chosen.collect();
        let highest = self.highest(&q, &k, &chosen)?;

        let plan = |size: usize, of: fn(&Chosen) -> &Vec<Vec<usize>>, step: usize| {
            let head = |chosen: &Chosen| of(chosen).iter().map(|keys| runs(keys, size)).collect();
            let (n, ranges) = (blocks * size, chosen.iter().map(head).collect());
            SparsePlan::per_head(n, n, step, ranges)
        };
        let fine = self.attend(&Level {
            qkv: [&q, &k, &v],
            added: hidden_keys,
            plan: plan(BLOCK, |chosen| &chosen.fine, BLOCK)?,
        })?;
        let mut levels = vec![fine];
        if self.coarse {
            // A block weighs as much as its tokens.
            let weight = |&tokens: &f32| if tokens > 0.0 { tokens.ln() } else { 0.0 };
            let coarse = self.attend(&Level {
                qkv: [&mean_q, &mean_k, &mean(&v)?],
                added: Some(tokens.iter().map(weight).collect()),
                plan: plan(1, |chosen| &chosen.coarse, 1)?,
            })?;
            let coarse = ops::reshape(&coarse, (blocks, batch * heads * (size + 1)))?;
            let of_tokens: Vec<u32> = (0..n).map(|at| (at / BLOCK) as u32).collect();
            let of_tokens = Tensor::from_vec(of_tokens, n, &Device::Cpu)?;
            levels.push(ops::select_rows(&coarse, &of_tokens)?);
        }

        let top = self.coarse.then(|| self.top([&mean_q, &mean_k], &chosen));
        let constant = self.constant(top.transpose()?, &chosen, &highest, x)?;
        let mixed = self.mixed(&levels, &constant, x)?;
        match text {
            Some(text) => ops::mul_rows(&mixed, text),
            None => Ok(mixed),
        }
    }

    fn params(&self) -> Vec<Param> {
        self.maps.params()
    }

    /// Of the longest texts.
    fn flops(&self) -> ModelFlops {
        let pair = 4 * (self.maps.heads * self.maps.head_size) as u64;
        let seen = (self.choice.pairs.isqrt() * BLOCK) as u64;
        ModelFlops {
            per_token: 2 * self.maps.weights() as u64 + pair * seen,
            ..ModelFlops::default()
        }
    }
}

impl TwoResolutions {
    /// Returns the highest coarse logit of each block of queries, (batch · blocks · heads, 1).
    fn top(&self, [q, k]: [&Tensor; 2], chosen: &[Chosen]) -> Result<Tensor> {
        let (heads, size) = (self.maps.heads, self.maps.head_size);
        let (batch, blocks, _) = q.dims3()?;
        let rows = batch * blocks * heads;
        let key = |row: usize| {
            let (text, block, head) = (row / heads / blocks, row / heads % blocks, row % heads);
            let key = chosen[text * heads + head].top[block].0;
            ((text * blocks + key) * heads + head) as u32
        };
        let keys = Tensor::from_vec((0..rows).map(key).collect(), rows, &Device::Cpu)?;
        let k = ops::select_rows(&ops::reshape(k, (rows, size))?, &keys)?;
        let products = ops::mul(&ops::reshape(q, (rows, size))?, &k)?;
        let ones = Tensor::ones((size, 1), q.dtype(), q.device())?;
        ops::matmul(&products, &ones, false, false)
    }

    /// Returns the logarithm of the constant that is added to each query's sum, (n · batch · heads, 1). The constant is
    /// relative to the highest score, which goes along with the coarse logit where that is it, as in the reference.
    fn constant(
        &self,
        top: Option<Tensor>,
        chosen: &[Chosen],
        highest: &[Vec<f32>],
        x: &Tensor,
    ) -> Result<Tensor> {
        let ((batch, n, _), heads) = (x.dims3()?, self.maps.heads);
        let rows = n * batch * heads;
        let place = |row: usize| (row / (batch * heads), row % (batch * heads));
        let fine = |row: usize| {
            let (at, head) = place(row);
            highest[head][at]
        };
        // Whether the coarse logit is the highest.
        let coarse = |row: usize| {
            let (at, head) = place(row);
            self.coarse && chosen[head].top[at / BLOCK].1 > fine(row)
        };
        let known = |row: usize| EPS.ln() + if coarse(row) { 0.0 } else { fine(row) };
        let known = Tensor::from_vec((0..rows).map(known).collect(), (rows, 1), &Device::Cpu)?;
        let known = known.to_device(x.device())?.to_dtype(x.dtype())?;
        let Some(top) = top else {
            return Ok(known);
        };
        let of_block = |row: usize| {
            let (at, head) = place(row);
            ((head / heads * (n / BLOCK) + at / BLOCK) * heads + head % heads) as u32
        };
        let of_block = Tensor::from_vec((0..rows).map(of_block).collect(), rows, &Device::Cpu)?;
        let taken = (0..rows).map(|row| f32::from(coarse(row))).collect();
        let taken = Tensor::from_vec(taken, rows, &Device::Cpu)?;
        let top = ops::select_rows(&top, &of_block)?;
        ops::add(&ops::mul_rows(&top, &taken.to_device(x.device())?)?, &known)
    }

    /// Returns the levels' results, weighted by their shares of the sums, (batch, n, hidden); the shape is that of `x`.
    fn mixed(&self, levels: &[Tensor], constant: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (batch, n, hidden) = x.dims3()?;
        let (heads, size) = (self.maps.heads, self.maps.head_size);
        let rows = n * batch * heads;
        let count = levels.len();
        let levels: Vec<Tensor> = (levels.iter())
            .map(|level| ops::reshape(level, (rows, 1, size + 1)))
            .collect::<Result<_>>()?;
        let levels = ops::concat(&levels.iter().collect::<Vec<_>>(), 1)?;
        let sums = ops::reshape(&ops::narrow(&levels, 2, size, 1)?, (rows, count))?;
        let shares = ops::softmax(&ops::concat(&[&sums, constant], 1)?)?;
        let shares = ops::reshape(&ops::narrow(&shares, 1, 0, count)?, (rows, 1, count))?;
        let results = ops::narrow(&levels, 2, 0, size)?;
        let mixed = ops::matmul(&shares, &results, false, false)?;
        let mixed = ops::permute(&ops::reshape(&mixed, (n, batch, hidden))?, &[1, 0, 2])?;
        Ok(mixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_pairs_attend_token_by_token_and_the_rest_as_blocks() {
        let choice = Choice {
            pairs: 3,
            first: 0,
            diagonal: 0,
        };
        // Relative to each row's highest: 0 -1 -5, -2 0 -9, -4 0 -3.
        let logits = [1.0, 0.0, -4.0, 2.0, 4.0, -5.0, 0.0, 4.0, 1.0];
        let chosen = choice.choose(&logits, &[32.0, 32.0, 7.0]);
        assert_eq!(chosen.fine, [vec![0], vec![1], vec![1]]);
        assert_eq!(chosen.coarse, [vec![1, 2], vec![0, 2], vec![0, 2]]);
        assert_eq!(chosen.top, [(0, 1.0), (1, 4.0), (1, 4.0)]);
        // A block of padding is in neither, but where there is nothing else to choose.
        let chosen = choice.choose(&logits, &[32.0, 32.0, 0.0]);
        assert_eq!(chosen.fine, [vec![0, 1], vec![1], vec![]]);
        assert_eq!(chosen.coarse, [vec![], vec![0], vec![]]);
        let diagonal = Choice {
            diagonal: 1,
            ..choice
        };
        let chosen = diagonal.choose(&logits, &[32.0; 3]);
        assert_eq!(chosen.fine, [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn adjacent_blocks_form_one_run() {
        assert_eq!(runs(&[0, 1, 3], 32), [0..64, 96..128]);
        assert_eq!(runs(&[], 32), Vec::<Range<usize>>::new());
    }
}
