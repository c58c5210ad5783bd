use candle_core::Tensor;

use super::Kind;
use super::config::{BartConfig, Side};
use crate::Result;
use crate::model::nn::{FeedForward, Linear, Norm, Order, repeated};
use crate::model::{Context, ModelFlops, WeightBuilder};
use crate::ops::{self, Activation, AttentionMask, AttentionOptions, Param};

/// The epsilon of normalizations, which no key of the config sets.
pub(super) const EPS: f64 = 1e-5;

/// The keys that a layer may use.
#[derive(Clone, Debug)]
pub(super) struct Masks {
    /// Of its own sequence.
    pub own: AttentionMask,
    /// Of the other side's.
    pub memory: AttentionMask,
}

/// A layer of either side: attention to its own sequence, on the writing side attention to what was read, and the two
/// feed-forward maps, each with dropout, a residual connection and a normalization.
#[derive(Debug)]
pub(super) struct Layer {
    own: Attention,
    memory: Option<Attention>,
    feed_forward: FeedForward,
    final_norm: Norm,
    order: Order,
    /// Whether keys and values of prompts come with each input.
    prompted: bool,
    layerdrop: f64,
}

impl Layer {
    pub(super) fn new(
        values: &BartConfig,
        side: &Side,
        kind: &Kind,
        weights: &WeightBuilder,
    ) -> Result<Self> {
        let (width, std, dropout) = (values.d_model, values.init_std, values.dropouts());
        let attention = |name: &str, causal: bool| -> Result<Attention> {
            let maps = weights.pp(name);
            let map = |name: &str| Linear::new(&maps.pp(name), width, width, std);
            let norm = weights.pp(format!("{name}_layer_norm"));
            Ok(Attention {
                key: map("k_proj")?,
                value: map("v_proj")?,
                query: map("q_proj")?,
                output: map("out_proj")?,
                norm: Norm::layer(&norm, width, EPS)?,
                heads: side.heads,
                width,
                causal,
                weights_dropout: dropout.attention,
                dropout: dropout.attended,
            })
        };
        let inner = side.intermediate;
        Ok(Self {
            own: attention("self_attn", side.writes)?,
            memory: match side.writes {
                true => Some(attention("encoder_attn", false)?),
                false => None,
            },
            feed_forward: FeedForward {
                intermediate: Linear::new(&weights.pp("fc1"), width, inner, std)?,
                activation: Activation::from_name(&values.activation_function)?,
                activation_dropout: dropout.activation,
                output: Linear::new(&weights.pp("fc2"), inner, width, std)?,
                dropout: dropout.output,
            },
            final_norm: Norm::layer(&weights.pp("final_layer_norm"), width, EPS)?,
            order: kind.order,
            prompted: kind.prompts.is_some(),
            layerdrop: side.layerdrop,
        })
    }

    /// Returns the layer's output for the first of `xs` (batch, n, width). Behind it come, where the layer has use for
    /// them: what was read (batch, seq, width), the prompts of its own sequence and those of what was read.
    pub(super) fn forward(
        &self,
        xs: &[Tensor],
        masks: &Masks,
        context: &Context,
    ) -> Result<Tensor> {
        let (x, mut others) = (&xs[0], xs[1..].iter());
        if context.drops_layer(self.layerdrop) {
            return Ok(x.clone());
        }
        let memory = self.memory.as_ref().and_then(|_| others.next());
        let mut prompt = || others.next().filter(|_| self.prompted);
        let own = |x: &Tensor, prompt| self.own.attend(x, x, prompt, &masks.own, context);
        let prompt_of_own = prompt();
        let mut x = self.around(&self.own.norm, x, self.own.dropout, context, |x| {
            own(x, prompt_of_own)
        })?;
        if let (Some(attention), Some(memory)) = (&self.memory, memory) {
            let prompt = prompt();
            x = self.around(&attention.norm, &x, attention.dropout, context, |x| {
                attention.attend(x, memory, prompt, &masks.memory, context)
            })?;
        }
        let fed = &self.feed_forward;
        self.around(&self.final_norm, &x, fed.dropout, context, |x| {
            fed.forward(x, context)
        })
    }

    /// Puts dropout, the residual connection and the normalization around a part of the layer.
    fn around(
        &self,
        norm: &Norm,
        x: &Tensor,
        dropout: f64,
        context: &Context,
        part: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.order {
            Order::PostNorm => {
                let y = part(x)?;
                norm.forward_residual(&y, x, context.dropout(dropout))
            }
            Order::PreNorm => {
                let y = part(&norm.forward(x)?)?;
                ops::add(&ops::dropout(&y, context.dropout(dropout))?, x)
            }
        }
    }

    pub(super) fn params(&self) -> Vec<Param> {
        let attentions = std::iter::once(&self.own).chain(&self.memory);
        let mut params: Vec<Param> = attentions.flat_map(Attention::params).collect();
        params.extend(self.feed_forward.params());
        params.extend(self.final_norm.params());
        params
    }

    pub(super) fn flops(&self) -> ModelFlops {
        let attentions = std::iter::once(&self.own).chain(&self.memory);
        let mut flops = ModelFlops {
            per_token: 2 * self.feed_forward.weights() as u64,
            ..ModelFlops::default()
        };
        for attention in attentions {
            flops.per_token += 2 * attention.weights() as u64;
            // Of what comes later nothing is computed: half of all pairs.
            let pair = if attention.causal { 2 } else { 4 };
            flops.per_pair += pair * attention.width as u64;
        }
        flops
    }
}

/// Attention with its output map, and the normalization that belongs to it.
#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: Norm,
    heads: usize,
    width: usize,
    /// Whether each place sees what comes before it only.
    causal: bool,
    weights_dropout: f64,
    dropout: f64,
}

impl Attention {
    /// Returns what `x` (batch, n, width) sees in `source` (batch, m, width), and in a prompt (length, 2 · width) before
    /// it.
    fn attend(
        &self,
        x: &Tensor,
        source: &Tensor,
        prompt: Option<&Tensor>,
        mask: &AttentionMask,
        context: &Context,
    ) -> Result<Tensor> {
        let query = self.query.forward(x)?;
        let shape = source.dims3()?;
        // Keys and values give one gradient to what they come from, however many layers look at it.
        let source = ops::reshape(source, ((), self.width))?;
        let mut key = ops::reshape(&self.key.forward(&source)?, shape)?;
        let mut value = ops::reshape(&self.value.forward(&source)?, shape)?;
        if let Some(prompt) = prompt {
            let before = |part: usize, x: &Tensor| -> Result<Tensor> {
                let part = ops::narrow(prompt, 1, part * self.width, self.width)?;
                ops::concat(&[&repeated(&part, x.dim(0)?)?, x], 1)
            };
            (key, value) = (before(0, &key)?, before(1, &value)?);
        }
        let options = AttentionOptions {
            dropout: context.dropout(self.weights_dropout),
            mask: mask.clone(),
            causal: self.causal,
            ..AttentionOptions::new(self.heads, self.width / self.heads)
        };
        let attended = ops::attention_with(&query, &key, &value, &options)?;
        self.output.forward(&attended)
    }

    fn maps(&self) -> [&Linear; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }

    fn params(&self) -> Vec<Param> {
        let maps = self.maps().into_iter().flat_map(Linear::params);
        maps.chain(self.norm.params()).collect()
    }

    fn weights(&self) -> usize {
        self.maps().into_iter().map(Linear::weights).sum()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;
    use crate::model::Init;

    /// Anything before the text in keys and values is attended to like text, and not masked.
    #[test]
    fn a_prompt_of_tokens_is_attended_to_like_those_tokens() {
        let weights = WeightBuilder::random(5, &Device::Cpu);
        let width = 8;
        let map = |name: &str| Linear::new(&weights.pp(name), width, width, 0.5).unwrap();
        let attention = Attention {
            query: map("q"),
            key: map("k"),
            value: map("v"),
            output: map("o"),
            norm: Norm::layer(&weights.pp("norm"), width, EPS).unwrap(),
            heads: 2,
            width,
            causal: false,
            weights_dropout: 0.0,
            dropout: 0.0,
        };
        let tokens = |name: &str, count: usize| {
            let shape = (2, count, width);
            weights
                .param(name, shape, Init::Normal(1.0))
                .unwrap()
                .value()
        };
        let text = tokens("text", 4);
        let before = tokens("before", 3).narrow(0, 0, 1).unwrap();
        let prompt = [&attention.key, &attention.value].map(|map| map.forward(&before).unwrap());
        let prompt = Tensor::cat(&prompt, D::Minus1).unwrap().squeeze(0).unwrap();
        let mask = |row: [u32; 7], from: usize| {
            let rows = [&row[from..], &[1; 7][from..]].concat();
            AttentionMask::Keys(Tensor::from_vec(rows, (2, 7 - from), &Device::Cpu).unwrap())
        };
        let seen = [1, 1, 1, 1, 0, 1, 0];
        let context = Context::eval();
        let prompted = attention.attend(&text, &text, Some(&prompt), &mask(seen, 0), &context);
        let both = Tensor::cat(&[&before.repeat((2, 1, 1)).unwrap(), &text], 1).unwrap();
        let joined = attention.attend(&text, &both, None, &mask(seen, 0), &context);
        let difference = (prompted.unwrap() - joined.unwrap())
            .unwrap()
            .abs()
            .unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6);
        // And it is seen at all.
        let alone = attention.attend(&text, &text, None, &mask(seen, 3), &context);
        let prompted = attention.attend(&text, &text, Some(&prompt), &mask(seen, 0), &context);
        let difference = (prompted.unwrap() - alone.unwrap()).unwrap().abs().unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() > 1e-2);
    }
}
