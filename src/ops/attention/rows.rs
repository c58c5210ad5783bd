//! The softmax of one query's scores, forward and backward.

use crate::ops::dropout::Stream;
use crate::ops::simd::{self, simd_fn};

/// The softmax statistics of one query: its largest score, and the reciprocal of the sum of exponentials.
pub(super) type Row = [f32; 2];

/// Of a query that sees nothing: all its probabilities come out as 0.
pub(super) const BLIND: Row = [f32::INFINITY, 0.0];

simd_fn! {
    /// Adds `terms` to `row`.
    pub(super) fn add(row: &mut [f32], terms: &[f32]) {
        for (x, term) in row.iter_mut().zip(terms) {
            *x += term;
        }
    }
}

simd_fn! {
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::dot(a, b)
    }
}

simd_fn! {
    /// Replaces a row of scores by its softmax; by zeros where all of them are -∞.
    pub(super) fn softmax(row: &mut [f32]) -> Row {
        let top = simd::max(row);
        if top == f32::NEG_INFINITY {
            row.fill(0.0);
            return BLIND;
        }
        for x in row.iter_mut() {
            *x = simd::exp(*x - top);
        }
        let scale = 1.0 / simd::sum(row, |x| x);
        for x in row.iter_mut() {
            *x *= scale;
        }
        [top, scale]
    }
}

simd_fn! {
    /// Turns scores into probabilities, and the gradient of those into that of the scores.
    pub(super) fn softmax_backward(scores: &mut [f32], grads: &mut [f32], row: Row, inner: f32) {
        let [top, scale] = row;
        for (score, grad) in scores.iter_mut().zip(grads) {
            let prob = simd::exp(*score - top) * scale;
            *score = prob;
            *grad = prob * (*grad - inner);
        }
    }
}

simd_fn! {
    /// Like [`softmax_backward`], with dropout between the probabilities and their use.
    pub(super) fn softmax_backward_dropped(
        stream: &Stream,
        start: u32,
        scores: &mut [f32],
        grads: &mut [f32],
        row: Row,
        inner: f32,
    ) {
        let [top, scale] = row;
        for (i, (score, grad)) in scores.iter_mut().zip(grads).enumerate() {
            let factor = stream.factor(start.wrapping_add(i as u32));
            let prob = simd::exp(*score - top) * scale;
            *score = prob * factor;
            *grad = prob * grad.mul_add(factor, -inner);
        }
    }
}
