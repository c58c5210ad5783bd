use candle_core::Tensor;

use super::config::Wav2Vec2Config;
use crate::Result;
use crate::model::context::mix;
use crate::model::{Context, Init, WeightBuilder};
use crate::ops::{self, Param};

/// Damage done to the frames in training (Park et al. 2019, arXiv:1904.08779).
#[derive(Debug)]
pub(super) struct SpecAugment {
    /// The vector that replaces masked frames.
    embedding: Option<Param>,
    frames: Spans,
    features: Spans,
}

/// How much of a row is damaged.
#[derive(Clone, Copy, Debug)]
struct Spans {
    /// The share of places, before spans fall onto one another.
    probability: f64,
    length: usize,
    least: usize,
}

impl SpecAugment {
    pub(super) fn new(values: &Wav2Vec2Config, base: &WeightBuilder) -> Result<Self> {
        let any = values.mask_time_prob > 0.0 || values.mask_feature_prob > 0.0;
        let embedding = || {
            base.param(
                "masked_spec_embed",
                values.hidden_size,
                Init::Uniform(0.0, 1.0),
            )
        };
        let asked = |probability| match values.apply_spec_augment {
            true => probability,
            false => 0.0,
        };
        Ok(Self {
            embedding: any.then(embedding).transpose()?,
            frames: Spans {
                probability: asked(values.mask_time_prob),
                length: values.mask_time_length,
                least: values.mask_time_min_masks,
            },
            features: Spans {
                probability: asked(values.mask_feature_prob),
                length: values.mask_feature_length,
                least: values.mask_feature_min_masks,
            },
        })
    }

    /// Returns `x` (batch, frames, hidden) damaged, where this is training; of each example that many frames are sound.
    pub(super) fn apply(&self, x: Tensor, sound: &[usize], context: &Context) -> Result<Tensor> {
        let (batch, len, width) = x.dims3()?;
        let mut x = x;
        if let (Some(embedding), Some(mut draws)) = (&self.embedding, self.frames.draws(context)) {
            let damaged = self.frames.masks(sound, len, &mut draws);
            let kept: Vec<f32> = damaged.iter().map(|&mask| 1.0 - mask).collect();
            x = ops::mul_rows(&x, &Tensor::from_vec(kept, (batch, len), x.device())?)?;
            let damaged = Tensor::from_vec(damaged, (batch * len, 1), x.device())?;
            let embedding = ops::reshape(&ops::param_rows(embedding)?, (1, width))?;
            let put = ops::matmul(&damaged.to_dtype(x.dtype())?, &embedding, false, false)?;
            x = ops::add(&x, &ops::reshape(&put, (batch, len, width))?)?;
        }
        if let Some(mut draws) = self.features.draws(context) {
            let damaged = self.features.masks(&vec![width; batch], width, &mut draws);
            let kept = damaged.iter().map(|&mask| 1.0 - mask).collect();
            let kept = Tensor::from_vec(kept, (batch, 1, width), x.device())?;
            let kept = kept.to_dtype(x.dtype())?;
            let kept = kept.broadcast_as(x.shape())?.contiguous()?;
            x = ops::mul(&x, &kept)?;
        }
        Ok(x)
    }
}

impl Spans {
    /// Returns the random numbers of this pass; none where nothing is damaged.
    fn draws(&self, context: &Context) -> Option<Draws> {
        (self.probability > 0.0)
            .then(|| context.key())
            .flatten()
            .map(|key| Draws { key, count: 0 })
    }

    /// Returns 1 for the masked positions of each row of `len`, of which the first `lengths` count, and otherwise 0.
    fn masks(&self, lengths: &[usize], len: usize, draws: &mut Draws) -> Vec<f32> {
        let mut masks = vec![0.0; lengths.len() * len];
        // Rounded up or down by chance, for all rows of the batch alike.
        let rounding = draws.uniform();
        for (mask, &places) in masks.chunks_mut(len.max(1)).zip(lengths) {
            let mean = self.probability * places as f64 / self.length as f64;
            // Where not one span fits, nothing is damaged.
            let starts = (places + 1).saturating_sub(self.length);
            let spans = ((mean + rounding) as usize).max(self.least);
            let spans = spans.min(len / self.length).min(starts);
            for start in draws.distinct(spans, starts) {
                mask[start..start + self.length].fill(1.0);
            }
        }
        masks
    }
}

/// Random numbers that follow from a key.
struct Draws {
    key: u64,
    count: u64,
}

impl Draws {
    /// Returns a number from 0 to 1, 1 excluded.
    fn uniform(&mut self) -> f64 {
        self.count += 1;
        (mix(self.key ^ mix(self.count)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns `count` different numbers below `end`.
    fn distinct(&mut self, count: usize, end: usize) -> Vec<usize> {
        // The beginning of a shuffle (Fisher and Yates).
        let mut all: Vec<usize> = (0..end).collect();
        for i in 0..count {
            let other = i + (self.uniform() * (end - i) as f64) as usize;
            all.swap(i, other);
        }
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_inside_the_recording_and_have_the_requested_number() {
        let spans = Spans {
            probability: 0.3,
            length: 4,
            least: 2,
        };
        let context = Context::train(7, 1);
        let mut draws = spans.draws(&context).unwrap();
        let lengths = [40, 17, 3, 9];
        let masks = spans.masks(&lengths, 40, &mut draws);
        for (mask, &length) in masks.chunks(40).zip(&lengths) {
            assert!(mask[length..].iter().all(|&mask| mask == 0.0));
            let damaged = mask.iter().sum::<f32>();
            let most = 4.0 * (0.3 * length as f32 / 4.0 + 1.0).floor().max(2.0);
            assert!(damaged <= most, "{damaged} of {length}");
            assert_eq!(damaged == 0.0, length < 4);
        }
        assert!(spans.draws(&Context::eval()).is_none());
        let mut others = spans.draws(&Context::train(8, 1)).unwrap();
        assert_ne!(masks, spans.masks(&lengths, 40, &mut others));
    }

    #[test]
    fn the_share_of_masked_positions_is_close_to_the_setting() {
        let spans = Spans {
            probability: 0.2,
            length: 5,
            least: 0,
        };
        let mut damaged = 0.0;
        for pass in 0..200 {
            let mut draws = spans.draws(&Context::train(3, pass)).unwrap();
            damaged += spans.masks(&[500], 500, &mut draws).iter().sum::<f32>();
        }
        // 20 spans of 5 places among 500, less where they meet.
        let share = damaged / (200.0 * 500.0);
        assert!((0.15..0.2).contains(&share), "{share}");
    }
}
