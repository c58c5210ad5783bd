//! The damped moving average over both directions of MEGA (Ma et al. 2022).

use candle_core::Tensor;
use rayon::prelude::*;

use super::parallel::for_overwrite;
use super::{Param, depthwise_conv, naive, param_rows};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// The parameters of a moving average of h features with N states each, by their names in MEGA: all (2h, N), optionally
/// with a trailing dimension of 1. The first h rows look back, the others ahead; with only h rows the average only
/// looks back.
#[derive(Clone, Copy, Debug)]
pub struct EmaParams<'a> {
    /// δ, `damping_factor`.
    pub damping: &'a Param,
    /// α, `decay_factor`.
    pub decay: &'a Param,
    /// β, `ema_expansion_matrix`.
    pub expansion: &'a Param,
    /// γ, `kernel_projection_matrix`.
    pub projection: &'a Param,
}

/// Returns the moving average of `x` (b, n, h) in both directions: `y_t = Σ_{j ≤ t} k₁[t - j] x_j + Σ_{j ≥ t} k₂[j - t]
/// x_j`, where `k[l] = Σ_N σ(δ) β γ N^-½ (1 - σ(δ) σ(α))^l`, up to `truncation` positions far.
pub fn damped_ema(x: &Tensor, params: EmaParams, truncation: Option<usize>) -> Result<Tensor> {
    let (_, len, width) = x.dims3()?;
    let reach = truncation.unwrap_or(len).clamp(1, len.max(1));
    let EmaParams {
        damping,
        decay,
        expansion,
        projection,
    } = params;
    let params = [damping, decay, expansion, projection];
    let rows = damping.shape().dims().first().copied().unwrap_or(0);
    for param in params {
        let fits = matches!(*param.shape().dims(), [r, _] | [r, _, 1] if r == rows)
            && param.elem_count() == damping.elem_count();
        if !fits || (rows != width && rows != 2 * width) {
            return Err(Error::argument(
                "params",
                format!(
                    "{} has shape {:?}, but {width} features need a row each for one direction, or two for both, of as many \
                     states as the others have",
                    param.name(),
                    param.shape()
                ),
            ));
        }
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, params) && len > 0 {
        let [damping, decay, expansion, projection] = params.map(param_rows);
        let params = [&damping?, &decay?, &expansion?, &projection?];
        let kernels = crate::ops::cuda::composed("ema_kernels", &params, &[], move |args| {
            naive::ema_kernels([&args[0], &args[1], &args[2], &args[3]], width, reach)
        })?;
        return depthwise_conv(x, &kernels, reach - 1);
    }
    if !storage::is_cpu_f32(x) || !params.iter().all(|param| param.is_cpu_f32()) || len == 0 {
        return naive::damped_ema(
            x,
            EmaParams {
                damping,
                decay,
                expansion,
                projection,
            },
            truncation,
        );
    }
    let [damping, decay, expansion, projection] = params.map(param_rows);
    let kernels = kernels(
        [&damping?, &decay?, &expansion?, &projection?],
        (rows, width),
        reach,
    )?;
    depthwise_conv(x, &kernels, reach - 1)
}

/// Returns both directions as one kernel (width, 2 reach - 1) whose middle is the position itself.
fn kernels(params: [&Tensor; 4], (rows, width): (usize, usize), reach: usize) -> Result<Tensor> {
    let kernel = 2 * reach - 1;
    let states = params[0].elem_count() / rows;
    let directions = &[true, false][..rows / width];
    let mut w = vec![0f32; width * kernel];
    with4(params, |params| {
        w.par_chunks_mut(kernel)
            .enumerate()
            .for_each(|(channel, w)| {
                for &back in directions {
                    for state in 0..states {
                        let at = row(channel, width, back) * states + state;
                        let state = State::new(params, at, states);
                        let mut value = state.coefficient();
                        for l in 0..reach {
                            w[place(reach, l, back)] += value as f32;
                            value *= state.ratio();
                        }
                    }
                }
            });
    })?;
    tape::record(
        "ema_kernels",
        &params,
        w,
        (width, kernel),
        move |args, _, grad| {
            let params = [args[0], args[1], args[2], args[3]];
            let count = params[0].elem_count();
            let mut grads: Vec<[f64; 4]> = Vec::new();
            storage::with(grad, |dw| {
                with4(params, |params| {
                    (0..count)
                        .into_par_iter()
                        .map(|at| {
                            let row = at / states;
                            let (channel, back) = (row % width, row < width);
                            let dw = &dw[channel * kernel..][..kernel];
                            let from = |l: usize| f64::from(dw[place(reach, l, back)]);
                            State::new(params, at, states).gradients(reach, from)
                        })
                        .collect_into_vec(&mut grads);
                })
            })??;
            let of = |(i, param): (usize, &&Tensor)| -> Result<Option<Tensor>> {
                let mut values = for_overwrite(count);
                for (value, grads) in values.iter_mut().zip(&grads) {
                    *value = grads[i] as f32;
                }
                let wanted = param.track_op();
                wanted
                    .then(|| storage::tensor(values, param.shape()))
                    .transpose()
            };
            params.iter().enumerate().map(of).collect()
        },
    )
}

/// Returns the row of the parameters for a channel and direction.
fn row(channel: usize, width: usize, back: bool) -> usize {
    if back { channel } else { width + channel }
}

/// Returns the index in a kernel of the position at distance `l`.
fn place(reach: usize, l: usize, back: bool) -> usize {
    if back { reach - 1 - l } else { reach - 1 + l }
}

fn with4<T>(tensors: [&Tensor; 4], f: impl FnOnce([&[f32]; 4]) -> T) -> Result<T> {
    let [a, b, c, d] = tensors;
    storage::with2(a, b, |a, b| storage::with2(c, d, |c, d| f([a, b, c, d])))?
}

/// One state of one channel, in f64: its factors are raised to high powers.
struct State {
    /// σ(δ) and σ(α).
    damping: f64,
    decay: f64,
    expansion: f64,
    projection: f64,
    /// N^-½.
    scale: f64,
}

impl State {
    fn new([damping, decay, expansion, projection]: [&[f32]; 4], at: usize, states: usize) -> Self {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
        Self {
            damping: sigmoid(damping[at]),
            decay: sigmoid(decay[at]),
            expansion: f64::from(expansion[at]),
            projection: f64::from(projection[at]),
            scale: (states as f64).sqrt().recip(),
        }
    }

    fn coefficient(&self) -> f64 {
        self.damping * self.expansion * self.projection * self.scale
    }

    fn ratio(&self) -> f64 {
        1.0 - self.damping * self.decay
    }

    /// Returns the gradients of δ, α, β and γ, where `dk(l)` is that of the kernel.
    fn gradients(&self, reach: usize, dk: impl Fn(usize) -> f64) -> [f64; 4] {
        let q = self.ratio();
        // Σ dk[l] q^l, and its derivative by q.
        let (mut sum, mut slope, mut power, mut before) = (0.0, 0.0, 1.0, 0.0);
        for l in 0..reach {
            let dk = dk(l);
            sum += dk * power;
            slope += dk * before * l as f64;
            (before, power) = (power, power * q);
        }
        let Self {
            damping: p,
            decay: a,
            expansion,
            projection,
            scale,
        } = *self;
        let of_ratio = self.coefficient() * slope;
        let of_p = sum * expansion * projection * scale - of_ratio * a;
        [
            of_p * p * (1.0 - p),
            -of_ratio * p * a * (1.0 - a),
            sum * p * projection * scale,
            sum * p * expansion * scale,
        ]
    }
}
