//! Connectionist temporal classification: the loss of a text whose letters have no places in the sound.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::naive;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::graph::tape::Data;
use crate::{Error, Result};

/// The target of each sequence of a batch.
#[derive(Clone, Copy, Debug)]
pub struct CtcTargets<'a> {
    /// The number of valid frames of each sequence.
    pub frames: &'a [usize],
    /// For each sequence, its letters.
    pub labels: &'a [Vec<u32>],
    /// The blank class.
    pub blank: u32,
    /// Whether sequences too short for their letters count nothing, instead of infinitely much.
    pub zero_infinity: bool,
}

/// Returns the negative logarithm of the probability (Graves et al. 2006) that the frames of each sequence say its
/// labels: of `logits` (b, frames, classes), the losses (b).
///
/// Forward and backward variables are in f64, in the logarithm.
pub fn ctc_loss(logits: &Tensor, targets: CtcTargets) -> Result<Tensor> {
    let (batch, frames, classes) = logits.dims3()?;
    check((batch, frames, classes), targets)?;
    #[cfg(feature = "cuda")]
    let on_gpu = crate::ops::cuda::takes(logits, []);
    #[cfg(not(feature = "cuda"))]
    let on_gpu = false;
    if !on_gpu && !storage::is_cpu_f32(logits) || logits.elem_count() == 0 {
        return naive::ctc_loss(logits, targets);
    }
    let logits = logits.contiguous()?;
    let wants = logits.track_op();
    let sequence = frames * classes;
    // The recursion is the processor's work: a GPU's logits, a few classes for each frame, come over.
    let here = logits
        .detach()
        .to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?;
    let found: Vec<(f64, Vec<f32>)> = storage::with(&here, |logits| {
        logits
            .par_chunks(sequence)
            .zip(targets.frames)
            .zip(targets.labels)
            .map(|((logits, &frames), labels)| {
                let (loss, grad) =
                    Lattice::new(logits, (frames, classes), labels, targets.blank).solve(wants);
                match loss.is_infinite() && targets.zero_infinity {
                    true => (0.0, vec![0.0; grad.len()]),
                    false => (loss, grad),
                }
            })
            .collect()
    })?;
    let losses: Vec<f32> = found.iter().map(|(loss, _)| *loss as f32).collect();
    let losses = Data::on(losses, logits.device())?;
    tape::record(
        "ctc_loss",
        &[&logits],
        losses,
        batch,
        move |args, _, grad| {
            let shape = args[0].shape();
            let mut dx = vec![0f32; shape.elem_count()];
            let here = grad.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            storage::with(&here, |grad| {
                dx.par_chunks_mut(sequence).zip(&found).zip(grad).for_each(
                    |((dx, (_, found)), factor)| {
                        // Frames without sound have no gradient.
                        for (dx, found) in dx.iter_mut().zip(found) {
                            *dx = factor * found;
                        }
                    },
                );
            })?;
            let dx = storage::tensor(dx, shape)?.to_device(args[0].device())?;
            Ok(vec![Some(dx.to_dtype(args[0].dtype())?)])
        },
    )
}

fn check((batch, frames, classes): (usize, usize, usize), targets: CtcTargets) -> Result<()> {
    if targets.frames.len() != batch || targets.labels.len() != batch {
        return Err(Error::argument(
            "targets",
            format!(
                "{} lengths and {} texts for {batch} sequences",
                targets.frames.len(),
                targets.labels.len()
            ),
        ));
    }
    if let Some(&long) = targets.frames.iter().find(|&&n| n > frames) {
        return Err(Error::argument(
            "frames",
            format!("a sequence of {long} frames among logits for {frames}"),
        ));
    }
    let mut all = targets.labels.iter().flatten();
    if let Some(bad) = all.find(|&&label| label as usize >= classes || label == targets.blank) {
        return Err(Error::argument(
            "labels",
            format!("{bad} is none of the {classes} classes, or the blank"),
        ));
    }
    if targets.blank as usize >= classes {
        let blank = targets.blank;
        return Err(Error::argument(
            "blank",
            format!("{blank} is none of the {classes} classes"),
        ));
    }
    Ok(())
}

/// All alignments of one sequence: at each frame, the position in the labels with blanks before, between and after
/// them.
struct Lattice {
    /// (frames, classes): logarithms of probabilities.
    scores: Vec<f64>,
    classes: usize,
    /// The class at each place.
    places: Vec<usize>,
}

impl Lattice {
    fn new(logits: &[f32], (frames, classes): (usize, usize), labels: &[u32], blank: u32) -> Self {
        let mut scores: Vec<f64> = (logits[..frames * classes].iter())
            .map(|&x| f64::from(x))
            .collect();
        for row in scores.chunks_mut(classes) {
            let total = log_sum(row);
            row.iter_mut().for_each(|x| *x -= total);
        }
        let blank = blank as usize;
        let letters = labels.iter().flat_map(|&label| [label as usize, blank]);
        Self {
            scores,
            classes,
            places: std::iter::once(blank).chain(letters).collect(),
        }
    }

    fn frames(&self) -> usize {
        self.scores.len() / self.classes
    }

    /// Returns whether place `s` may be reached from `s - 2`, over a blank: only between different letters.
    fn skips(&self, s: usize) -> bool {
        s >= 2 && s % 2 == 1 && self.places[s] != self.places[s - 2]
    }

    /// Returns the loss and, if wanted, its gradient with respect to the logits of the frames.
    fn solve(&self, wants_gradient: bool) -> (f64, Vec<f32>) {
        let (frames, count) = (self.frames(), self.places.len());
        if frames == 0 {
            let loss = if count == 1 { 0.0 } else { f64::INFINITY };
            return (loss, Vec::new());
        }
        let score = |t: usize, s: usize| self.scores[t * self.classes + self.places[s]];
        // Ways to a place, with its own score.
        let mut ahead = vec![f64::NEG_INFINITY; frames * count];
        for t in 0..frames {
            for s in 0..count {
                let before = |back: usize| ahead[(t - 1) * count + s - back];
                let ways = match t {
                    0 if s < 2 => 0.0,
                    0 => f64::NEG_INFINITY,
                    _ => log_sum(&[
                        before(0),
                        if s >= 1 { before(1) } else { f64::NEG_INFINITY },
                        if self.skips(s) {
                            before(2)
                        } else {
                            f64::NEG_INFINITY
                        },
                    ]),
                };
                ahead[t * count + s] = ways + score(t, s);
            }
        }
        let end = &ahead[(frames - 1) * count..];
        let total = log_sum(&end[count.saturating_sub(2)..]);
        if !wants_gradient {
            return (-total, Vec::new());
        }
        // Ways from a place to the end, without its own score.
        let mut behind = vec![f64::NEG_INFINITY; frames * count];
        for t in (0..frames).rev() {
            for s in 0..count {
                let after = |on: usize| behind[(t + 1) * count + s + on] + score(t + 1, s + on);
                behind[t * count + s] = if t + 1 == frames {
                    if s + 2 >= count {
                        0.0
                    } else {
                        f64::NEG_INFINITY
                    }
                } else {
                    log_sum(&[
                        after(0),
                        if s + 1 < count {
                            after(1)
                        } else {
                            f64::NEG_INFINITY
                        },
                        if s + 2 < count && self.skips(s + 2) {
                            after(2)
                        } else {
                            f64::NEG_INFINITY
                        },
                    ])
                };
            }
        }
        // The probability of the class, less that of passing through it.
        let mut grad: Vec<f64> = self.scores.iter().map(|x| x.exp()).collect();
        for t in 0..frames {
            for s in 0..count {
                let through = ahead[t * count + s] + behind[t * count + s] - total;
                grad[t * self.classes + self.places[s]] -= through.exp();
            }
        }
        (-total, grad.into_iter().map(|g| g as f32).collect())
    }
}

/// ln Σ eˣ.
fn log_sum(x: &[f64]) -> f64 {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return top;
    }
    top + x.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}
