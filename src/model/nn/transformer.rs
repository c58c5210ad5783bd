use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Embed, Encoder, Head, Pass, padding_mask};
use crate::Result;
use crate::model::architecture::rows_of;
use crate::model::onnx::{self, Graph, Value};
use crate::model::{Architecture, Context, ModelFlops, ModelInputs};
use crate::ops::{self, AttentionMask};

/// Makes [`Pass::inputs`] of a batch, for a model on that device.
pub type Prepare = fn(&ModelInputs, &Device) -> Result<BTreeMap<&'static str, Tensor>>;

/// Embeddings, a stack of blocks, a head: what most families are.
#[derive(Debug)]
pub struct Transformer {
    /// From token ids to vectors.
    pub embeddings: Box<dyn Embed>,
    /// The blocks.
    pub encoder: Encoder,
    /// From vectors to the vocabulary.
    pub head: Box<dyn Head>,
    /// Makes what the family's own blocks need of a batch.
    pub prepare: Option<Prepare>,
    /// The longest sequence in tokens, where there is a limit.
    pub max_positions: Option<usize>,
}

impl Transformer {
    /// Returns what the blocks must know of a batch that was embedded on that device.
    fn pass(&self, inputs: &ModelInputs, context: &Context, device: &Device) -> Result<Pass> {
        let mut pass = Pass::new(padding_mask(inputs, device)?, context);
        if let Some(prepare) = self.prepare {
            pass.inputs = prepare(inputs, device)?;
        }
        Ok(pass)
    }

    /// Returns the last hidden states of embedded texts.
    fn encode(&self, embedded: Tensor, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let pass = self.pass(inputs, context, embedded.device())?;
        self.encoder.forward(embedded, &pass)
    }

    /// Returns the last hidden states of `rows` of embedded texts, (rows, hidden), without computing all others. Without
    /// gradients.
    fn encode_rows(
        &self,
        embedded: Tensor,
        inputs: &ModelInputs,
        rows: &[u32],
        context: &Context,
    ) -> Result<Tensor> {
        let (batch, seq, width) = embedded.dims3()?;
        let picks = Picks::new(rows, batch, seq);
        let pass = self.pass(inputs, context, embedded.device())?;
        let picked = self.encoder.forward_picked(embedded, &pass, |x| {
            let picked = rows_of(x, picks.places.clone())?;
            ops::reshape(&picked, (batch, picks.count, width))
        })?;
        rows_of(&picked, picks.rows)
    }

    /// Returns how the batch's texts are concatenated, if that is allowed.
    fn packing(&self, inputs: &ModelInputs, rows: &[u32], context: &Context) -> Option<Packing> {
        let blocks = &self.encoder.blocks;
        let may = context.leaves_out_padding()
            && inputs.has_padding()
            && blocks.iter().all(|block| block.takes_packed());
        may.then(|| Packing::new(inputs, rows)).flatten()
    }
}

/// Concatenated texts, without padding.
struct Packing {
    /// The positions of the tokens in the padded batch.
    places: Vec<u32>,
    lengths: Arc<[usize]>,
    /// The positions of the requested rows among the tokens.
    rows: Vec<u32>,
}

impl Packing {
    /// Returns `None` where a text has gaps, or rows are asked for that are padding.
    fn new(inputs: &ModelInputs, rows: &[u32]) -> Option<Self> {
        let seq = inputs.seq.max(1);
        let mut places = Vec::new();
        let mut lengths = Vec::with_capacity(inputs.batch);
        let mut numbers = vec![u32::MAX; inputs.attention_mask.len()];
        for (row, mask) in inputs.attention_mask.chunks(seq).enumerate() {
            let first = mask.iter().position(|&m| m != 0)?;
            let length = mask[first..].iter().take_while(|&&m| m != 0).count();
            if mask[first + length..].iter().any(|&m| m != 0) {
                return None;
            }
            let begins = row * seq + first;
            for (at, number) in numbers[begins..begins + length].iter_mut().enumerate() {
                *number = places.len() as u32;
                places.push((begins + at) as u32);
            }
            lengths.push(length);
        }
        let rows: Vec<u32> = (rows.iter())
            .map(|&row| numbers.get(row as usize).copied().unwrap_or(u32::MAX))
            .collect();
        (!rows.contains(&u32::MAX)).then_some(Self {
            places,
            lengths: lengths.into(),
            rows,
        })
    }
}

/// Positions of a batch, as many of each text.
struct Picks {
    /// How many of each text.
    count: usize,
    /// Their positions in the batch.
    places: Vec<u32>,
    /// The positions of the requested rows among them.
    rows: Vec<u32>,
}

impl Picks {
    /// Picks `rows` of (batch, seq), and the first position of a text as often as it has fewer than others.
    fn new(rows: &[u32], batch: usize, seq: usize) -> Self {
        let mut of_text = vec![Vec::new(); batch];
        let texts: Vec<(usize, usize)> = (rows.iter())
            .map(|&row| {
                let text = row as usize / seq;
                of_text[text].push(row);
                (text, of_text[text].len() - 1)
            })
            .collect();
        let count = of_text.iter().map(Vec::len).max().unwrap_or(0);
        for (text, places) in of_text.iter_mut().enumerate() {
            places.resize(count, (text * seq) as u32);
        }
        Self {
            count,
            places: of_text.concat(),
            rows: (texts.into_iter())
                .map(|(text, at)| (text * count + at) as u32)
                .collect(),
        }
    }
}

impl Architecture for Transformer {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let embedded = self.embeddings.forward(inputs, context)?;
        self.encode(embedded, inputs, context)
    }

    fn hidden_rows(
        &self,
        inputs: &ModelInputs,
        rows: Vec<u32>,
        context: &Context,
    ) -> Result<Tensor> {
        let embedded = self.embeddings.forward(inputs, context)?;
        let Some(packing) = self.packing(inputs, &rows, context) else {
            let places = inputs.batch * inputs.seq;
            let known = rows.iter().all(|&row| (row as usize) < places);
            if ops::in_inference() && known && embedded.dims()[..2] == [inputs.batch, inputs.seq] {
                return self.encode_rows(embedded, inputs, &rows, context);
            }
            return rows_of(&self.encode(embedded, inputs, context)?, rows);
        };
        let tokens = rows_of(&embedded, packing.places)?;
        let (count, width) = tokens.dims2()?;
        let tokens = ops::reshape(&tokens, (1, count, width))?;
        let pass = Pass::new(AttentionMask::Packed(packing.lengths), context);
        rows_of(&self.encoder.forward(tokens, &pass)?, packing.rows)
    }

    fn head(&self) -> &dyn Head {
        &*self.head
    }

    fn export(&self, graph: &mut Graph) -> Result<Value> {
        if self.prepare.is_some() {
            return Err(onnx::refused("what the family works out of each batch"));
        }
        let embedded = self.embeddings.export(graph)?;
        let encoded = self.encoder.export(&embedded, graph)?;
        self.head.export(&encoded, graph)
    }

    fn flops(&self) -> Option<ModelFlops> {
        Some(ModelFlops {
            per_counted: 2 * self.head.weights() as u64,
            ..self.encoder.flops()
        })
    }

    fn max_positions(&self) -> Option<usize> {
        self.max_positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Config, MaskedLm};

    #[test]
    fn selected_rows_equal_those_of_all_states() {
        for model_type in [
            "roberta",
            "bert",
            "roberta-prelayernorm",
            "distilbert",
            "esm",
            "deberta",
        ] {
            let model = MaskedLm::from_config(&Config::small(model_type), 1).unwrap();
            let ids: Vec<u32> = (0..3 * 12).map(|i| 5 + i * 7 % 40).collect();
            let inputs = ModelInputs::new(ids, (3, 12)).unwrap();
            // Of the texts two, none and three, in no order.
            for rows in [vec![0, 30, 7, 35, 24], vec![4, 20, 25]] {
                let logits = model.logits_at(&inputs, rows.clone()).unwrap();
                let kept = ops::inference(|| model.logits_at(&inputs, rows.clone())).unwrap();
                assert_eq!(kept.dims(), logits.dims());
                let apart = (logits - kept)
                    .unwrap()
                    .abs()
                    .unwrap()
                    .flatten_all()
                    .unwrap();
                let apart: f32 = apart.max(0).unwrap().to_scalar().unwrap();
                assert!(apart < 1e-5, "{model_type}: {apart}");
            }
        }
    }

    #[test]
    fn texts_with_fewer_rows_repeat_their_first_position() {
        let picks = Picks::new(&[9, 1, 8], 3, 4);
        assert_eq!(
            (picks.count, &picks.places[..]),
            (2, &[1, 0, 4, 4, 9, 8][..])
        );
        assert_eq!(picks.rows, [4, 0, 5]);
    }
}
