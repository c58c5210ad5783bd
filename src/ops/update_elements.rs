//! A parameter's update in place, element by element, from its gradient and one number that is remembered of each.

use candle_core::Tensor;
use rayon::prelude::*;

use super::Param;
use crate::Result;
use crate::ops::graph::storage;

/// Elements that one task works on.
const CHUNK: usize = 1 << 15;

/// Replaces every value of `param` and every number of `state` by what `update` makes of the value, the gradient and the
/// number. Returns whether it did: everything must be in f32 on the CPU, of one shape and contiguous.
pub(crate) fn update_elements(
    param: &Param,
    grad: &Tensor,
    state: &Tensor,
    update: impl Fn(f32, f32, f32) -> (f32, f32) + Sync,
) -> Result<bool> {
    let plain =
        |t: &Tensor| storage::is_cpu_f32(t) && t.is_contiguous() && t.shape() == param.shape();
    if !param.is_cpu_f32() || !plain(grad) || !plain(state) || param.elem_count() == 0 {
        return Ok(false);
    }
    let run = |values: &mut [f32], states: &mut [f32], grads: &[f32]| {
        values
            .par_chunks_mut(CHUNK)
            .zip_eq(states.par_chunks_mut(CHUNK))
            .zip_eq(grads.par_chunks(CHUNK))
            .for_each(|((values, states), grads)| {
                for ((value, state), &grad) in values.iter_mut().zip(states).zip(grads) {
                    (*value, *state) = update(*value, grad, *state);
                }
            });
    };
    storage::with(grad, |grads| {
        storage::with_mut(param.own_var(), |values| {
            storage::with_mut(state, |states| run(values, states, grads))
        })
    })???;
    param.value_changed(false);
    Ok(true)
}
