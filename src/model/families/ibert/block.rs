//! A block of I-BERT in integers.

use candle_core::Tensor;

use super::activation::QuantAct;
use super::layers::{IntLayerNorm, QuantLinear};
use super::{ACT_BITS, Floats, LN_INPUT_BITS, SOFTMAX_BITS};
use crate::Result;
use crate::model::nn::{Block, Pass, TransformerBlock};
use crate::model::{Context, ModelFlops, WeightBuilder};
use crate::ops::integer::{self, MaskedKeys, Scale};
use crate::ops::{self, AttentionMask, Param, Precision};

/// The last map of a half block, with its residual connection and normalization.
#[derive(Debug)]
struct Output {
    dense: QuantLinear,
    dropout: f64,
    norm_input: QuantAct,
    norm: IntLayerNorm,
    output: QuantAct,
}

impl Output {
    /// Returns the output for `x`, where `residual` has steps of `step`.
    fn forward(
        &self,
        x: &Tensor,
        (residual, step): (&Tensor, f32),
        context: &Context,
    ) -> Result<(Tensor, f32)> {
        let (x, scale) = self.dense.forward(x)?;
        let x = ops::dropout(&x, context.dropout(self.dropout))?;
        let added = Some((residual, &Scale::All(step)));
        let (sum, step) = self.norm_input.forward(&x, Some(&scale), added, context)?;
        let (normed, scale) = self.norm.forward(&sum, step, context)?;
        self.output.forward(&normed, scale.as_ref(), None, context)
    }
}

/// A block in integers, over the parameters of a block in floats.
#[derive(Debug)]
pub(super) struct IntegerBlock {
    block: TransformerBlock,
    floats: Floats,
    /// What the embeddings give: its step is that of the input of every block, as in transformers, which does not hand on those
    /// of the blocks.
    input: QuantAct,
    /// The maps to queries, keys and values, and what is made of their results.
    projections: [(QuantLinear, QuantAct); 3],
    exponentials: QuantAct,
    attended: QuantAct,
    attention_output: Output,
    before_intermediate: QuantAct,
    intermediate: QuantLinear,
    activated: QuantAct,
    before_output: QuantAct,
    output: Output,
}

impl IntegerBlock {
    /// Returns the block whose parameters are those of `block`, named by `weights`.
    pub(super) fn new(
        weights: &WeightBuilder,
        block: TransformerBlock,
        input: &QuantAct,
        floats: Floats,
    ) -> Result<Self> {
        let act = |name: &str, bits: u32| QuantAct::new(&weights.pp(name), bits);
        let map =
            |name: &str, map, input: &QuantAct| QuantLinear::new(&weights.pp(name), map, input);
        let norm = |name: &str, norm| IntLayerNorm::new(&weights.pp(name), norm, floats.layer_norm);
        let attention = &block.attention;
        let projection = |name: &str, of| -> Result<_> {
            let name = format!("attention.self.{name}");
            let act = act(&format!("{name}_activation"), ACT_BITS)?;
            Ok((map(&name, of, input)?, act))
        };
        let projections = [
            projection("query", &attention.query)?,
            projection("key", &attention.key)?,
            projection("value", &attention.value)?,
        ];
        let attended = act("attention.self.output_activation", ACT_BITS)?;
        let before_intermediate = act("pre_intermediate_act", ACT_BITS)?;
        let before_output = act("pre_output_act", ACT_BITS)?;
        let fed = &block.feed_forward;
        Ok(Self {
            projections,
            exponentials: act("attention.self.softmax.act", SOFTMAX_BITS)?,
            attention_output: Output {
                dense: map("attention.output.dense", &block.attention_output, &attended)?,
                dropout: block.attention_dropout,
                norm_input: act("attention.output.ln_input_act", LN_INPUT_BITS)?,
                norm: norm("attention.output.LayerNorm", &block.attention_norm)?,
                output: act("attention.output.output_activation", ACT_BITS)?,
            },
            intermediate: map(
                "intermediate.dense",
                &fed.intermediate,
                &before_intermediate,
            )?,
            activated: act("intermediate.output_activation", ACT_BITS)?,
            output: Output {
                dense: map("output.dense", &fed.output, &before_output)?,
                dropout: fed.dropout,
                norm_input: act("output.ln_input_act", LN_INPUT_BITS)?,
                norm: norm("output.LayerNorm", &block.output_norm)?,
                output: act("output.output_activation", ACT_BITS)?,
            },
            input: input.clone(),
            attended,
            before_intermediate,
            before_output,
            block,
            floats,
        })
    }

    /// Returns the attention probabilities of `scores` (batch, heads, queries, keys), whose steps are `step`, and the
    /// value of their steps if they were computed in integers.
    fn probabilities(
        &self,
        scores: &Tensor,
        step: f32,
        pass: &Pass,
    ) -> Result<(Tensor, Option<f32>)> {
        if self.floats.softmax {
            let scores = super::super::qdqbert::masked(scores, &pass.mask)?;
            return Ok((ops::softmax(&scores)?, None));
        }
        let seen: Option<Vec<u32>> = match &pass.mask {
            AttentionMask::Keys(seen) => Some(seen.flatten_all()?.to_vec1()?),
            _ => None,
        };
        let mask = seen.as_ref().map(|seen| MaskedKeys {
            seen,
            batch: scores.dims()[0],
        });
        let (powers, step) = integer::exponentials(scores, step, mask)?;
        let scale = Scale::All(step);
        let context = &pass.context;
        let (powers, step) = self
            .exponentials
            .forward(&powers, Some(&scale), None, context)?;
        let (probabilities, step) = integer::normalize(&powers, step, ACT_BITS)?;
        Ok((probabilities, Some(step)))
    }

    /// Returns the context vectors of `x`, (batch, seq, hidden), and the value of their steps.
    fn attend(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, f32)> {
        let (batch, seq, _) = x.dims3()?;
        let attention = &self.block.attention;
        let (heads, size) = (attention.heads, attention.head_size);
        let context = &pass.context;
        let project = |(map, act): &(QuantLinear, QuantAct)| -> Result<_> {
            let (y, scale) = map.forward(x)?;
            let (y, step) = act.forward(&y, Some(&scale), None, context)?;
            let y = ops::reshape(&y, (batch, seq, heads, size))?;
            Ok((ops::permute(&y, &[0, 2, 1, 3])?, step))
        };
        let [query, key, value] = &self.projections;
        let (query, query_step) = project(query)?;
        let (key, key_step) = project(key)?;
        let (value, value_step) = project(value)?;
        let scores = ops::matmul(&query, &key, false, true)?;
        let root = (size as f64).sqrt();
        let scores = ops::scale(&scores, 1.0 / root)?;
        let step = query_step * key_step / root as f32;
        let (probabilities, step) = self.probabilities(&scores, step, pass)?;
        let probabilities = ops::dropout(&probabilities, context.dropout(attention.dropout))?;
        let attended = ops::matmul(&probabilities, &value, false, false)?;
        let attended = ops::permute(&attended, &[0, 2, 1, 3])?;
        let attended = ops::reshape(&attended, (batch, seq, heads * size))?;
        let scale = step.map(|step| Scale::All(step * value_step));
        self.attended
            .forward(&attended, scale.as_ref(), None, context)
    }
}

impl IntegerBlock {
    fn compute(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let (attended, _) = self.attend(x, pass)?;
        let residual = (x, self.input.step()?);
        let (attended, step) = self
            .attention_output
            .forward(&attended, residual, context)?;
        let scale = Some(&Scale::All(step));
        let (x, step) = self
            .before_intermediate
            .forward(&attended, scale, None, context)?;
        let (inner, scale) = self.intermediate.forward(&x)?;
        let (inner, scale) = match self.floats.gelu {
            true => (
                ops::activate(&inner, self.block.feed_forward.activation)?,
                None,
            ),
            false => {
                let (inner, scale) = integer::gelu(&inner, &scale)?;
                (inner, Some(scale))
            }
        };
        let (inner, of_inner) = self
            .activated
            .forward(&inner, scale.as_ref(), None, context)?;
        let scale = Some(&Scale::All(of_inner));
        let (inner, _) = self.before_output.forward(&inner, scale, None, context)?;
        Ok(self.output.forward(&inner, (&x, step), context)?.0)
    }
}

impl Block for IntegerBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        // Integers are exact in f32, and in no dtype with fewer bits.
        ops::autocast(Precision::F32, || self.compute(x, pass))
    }

    fn params(&self) -> Vec<Param> {
        self.block.params()
    }

    fn flops(&self) -> ModelFlops {
        self.block.flops()
    }
}
