//! Affine maps in inference, whose weights are packed once and cached.

use candle_core::Tensor;

use crate::Result;
#[cfg(target_arch = "x86_64")]
use crate::ops::activation;
#[cfg(target_arch = "x86_64")]
use crate::ops::gemm::panels::Kind;
#[cfg(target_arch = "x86_64")]
use crate::ops::graph::param::in_inference;
#[cfg(target_arch = "x86_64")]
use crate::ops::graph::storage;
#[cfg(target_arch = "x86_64")]
use crate::ops::precision::{Precision, precision};
#[cfg(target_arch = "x86_64")]
use crate::ops::simd::{self, Level};
use crate::ops::{Activation, Param};

/// Elements of a weight from which rearranging it saves anything, and columns.
#[cfg(target_arch = "x86_64")]
const WORTHWHILE: (usize, usize) = (1 << 9, 16);
/// A map to this many times as many features is the output map to a vocabulary: the few rows it is applied to are
/// computed as fast with the weight as it is, in f32, and a copy would double the largest part of many a model's
/// memory.
#[cfg(target_arch = "x86_64")]
const VOCABULARY: usize = 8;

/// Returns `activation(x · weightᵀ + bias)` for contiguous `x` if the weight is kept rearranged for it. All are f32 and on
/// the CPU, and no graph is recorded.
#[cfg(target_arch = "x86_64")]
pub(in crate::ops) fn forward(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
) -> Result<Option<Vec<f32>>> {
    let (out, width) = weight.shape().dims2()?;
    let Some(kind) = kind((x.elem_count() / width.max(1), width, out), weight) else {
        return Ok(None);
    };
    let Some(panels) = weight.panels(kind)? else {
        return Ok(None);
    };
    /// Elements that are activated at a time.
    const PIECE: usize = 128;
    let finish = |row: &mut [f32]| {
        if activation != Activation::Linear {
            let mut before = [0.0; PIECE];
            for y in row.chunks_mut(PIECE) {
                let before = &mut before[..y.len()];
                before.copy_from_slice(y);
                activation::values(activation, before, y);
            }
        }
    };
    let y = match bias {
        Some(bias) => storage::with2(x, bias.own_var(), |x, bias| {
            panels.multiply(x, Some(bias), finish)
        })?,
        None => storage::with(x, |x| panels.multiply(x, None, finish))?,
    };
    Ok(Some(y))
}

#[cfg(not(target_arch = "x86_64"))]
pub(in crate::ops) fn forward(
    _: &Tensor,
    _: &Param,
    _: Option<&Param>,
    _: Activation,
) -> Result<Option<Vec<f32>>> {
    Ok(None)
}

/// Returns the format of the copy of the weight for a product of this size, if a copy is worthwhile.
#[cfg(target_arch = "x86_64")]
fn kind((rows, width, out): (usize, usize, usize), weight: &Param) -> Option<Kind> {
    if width * out < WORTHWHILE.0 || out < WORTHWHILE.1 {
        return None;
    }
    // The matrix unit is faster, with operands that are arranged otherwise.
    let vectors = simd::level() < Level::Matrix;
    let kind = match precision() {
        Precision::Int8 => Kind::Int8,
        Precision::Bf16 if in_inference() && vectors => Kind::Bf16,
        // A single row waits for memory, whatever lies there.
        Precision::F32 | Precision::F16
            if in_inference()
                && vectors
                && rows > 1
                && out <= VOCABULARY * width
                && !weight.is_exposed() =>
        {
            Kind::F32
        }
        _ => return None,
    };
    kind.unit().map(|_| kind)
}

#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::ops::{
        AdamWOptions, AdamWState, adamw_step, autocast, inference, linear_act, no_grad,
    };

    fn noise(shape: &[usize], seed: usize) -> Tensor {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32 * 1.7).sin());
        Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
    }

    fn apart(a: &Tensor, b: &Tensor) -> f32 {
        let worst = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        worst.max(0).unwrap().to_scalar().unwrap()
    }

    /// The map with a cached weight at a precision, and with the original weight.
    fn both(precision: Precision, x: &Tensor, weight: &Param, bias: &Param) -> [Tensor; 2] {
        let map = || linear_act(x, weight, Some(bias), Activation::Gelu).unwrap();
        let kept = autocast(precision, || inference(|| no_grad(map)));
        [kept, map().detach()]
    }

    fn is_kept(weight: &Param, kind: Kind) -> bool {
        let first = weight.panels(kind).unwrap().unwrap();
        std::sync::Arc::ptr_eq(&first, &weight.panels(kind).unwrap().unwrap())
    }

    #[test]
    fn a_cached_weight_gives_the_same_results_and_follows_every_change() {
        for (precision, most) in [
            (Precision::F32, 1e-5),
            (Precision::Bf16, 0.05),
            (Precision::Int8, 0.05),
        ] {
            let weight = Param::new("weight", &(noise(&[70, 40], 1) * 0.2).unwrap()).unwrap();
            let bias = Param::new("bias", &noise(&[70], 2)).unwrap();
            let x = noise(&[3, 5, 40], 3);
            let check = |what: &str| {
                let [kept, plain] = both(precision, &x, &weight, &bias);
                let apart = apart(&kept, &plain);
                assert!(apart < most, "{precision:?}, {what}: {apart}");
                plain
            };
            let before = check("as it was made");
            weight.set(&(noise(&[70, 40], 4) * 0.2).unwrap()).unwrap();
            let after = check("set");
            assert!(apart(&before, &after) > 0.5);
            // A step of the optimizer, large enough to be seen.
            weight.add_grad(&noise(&[70, 40], 5)).unwrap();
            let options = AdamWOptions {
                lr: 0.5,
                ..AdamWOptions::default()
            };
            let params = [weight.clone()];
            let mut states = [AdamWState::new(&weight).unwrap()];
            adamw_step(&params, &mut states, &options, 1.0).unwrap();
            let stepped = check("after a step");
            assert!(apart(&after, &stepped) > 0.5);
            weight.update_value(|value| value.fill(0.1)).unwrap();
            check("changed in place");
            // From here on anybody may change it.
            weight.var().set(&noise(&[70, 40], 6)).unwrap();
            check("exposed");
            weight
                .var()
                .set(&(noise(&[70, 40], 7) * 0.2).unwrap())
                .unwrap();
            check("changed unseen");
        }
    }

    #[test]
    fn a_weight_is_packed_once_and_not_cached_where_it_may_change_unnoticed() {
        let weight = Param::new("weight", &noise(&[64, 64], 1)).unwrap();
        if Kind::F32.unit().is_none() {
            return;
        }
        assert!(is_kept(&weight, Kind::F32));
        if Kind::Int8.unit().is_some() {
            assert!(is_kept(&weight, Kind::Int8));
        }
        let _seen = weight.var();
        assert!(!is_kept(&weight, Kind::F32));
    }

    #[test]
    fn gradients_are_those_of_f32_at_any_precision() {
        let weight = Param::new("weight", &noise(&[32, 48], 1)).unwrap();
        let x = noise(&[4, 48], 2);
        let grad = |precision| {
            weight.zero_grad();
            let y = autocast(precision, || {
                inference(|| linear_act(&x, &weight, None, Activation::Gelu).unwrap())
            });
            y.sum_all().unwrap().backward().unwrap();
            (y.detach(), weight.grad().unwrap())
        };
        let (int8, f32) = (grad(Precision::Int8), grad(Precision::F32));
        assert_eq!(apart(&int8.0, &f32.0), 0.0);
        assert_eq!(apart(&int8.1, &f32.1), 0.0);
    }
}
