use super::*;
use cloze::ops::Gate;

fn check<T: Element>() {
    let activations_ = [
        (Activation::Gelu, 0u32),
        (Activation::Silu, 3),
        (Activation::QuickGelu, 8),
    ];
    for (rows, half) in [(1, 1), (7, 15), (5, 64), (3, 1000)] {
        for (activation, code) in activations_ {
            for gate in [Gate::First, Gate::Second] {
                let n = rows * half;
                let x = rounded::<T>(&noise(2 * n, 1).iter().map(|x| 4.0 * x).collect::<Vec<_>>());
                let dy = rounded::<T>(&noise(n, 2));
                let input = var(&x, &[rows, 2 * half]);
                let y = ops::gated(&input, activation, gate).unwrap();
                let dx = gradients(&y, &dy, &[&input]).remove(0);
                let second = u32::from(gate == Gate::Second);
                for got in in_all_orders(|| {
                    let (x, dy) = (activations::<T>(&x), activations::<T>(&dy));
                    let (y, dx) = (unwritten::<T>(n), unwritten::<T>(2 * n));
                    let sizes = (n as u64, half as u32);
                    launch(
                        &format!("gated_forward_{}", T::NAME),
                        [2, 1, 1],
                        [256, 1],
                        0,
                        (y.at(), x.at(), sizes.0, sizes.1, code, second),
                    );
                    launch(
                        &format!("gated_backward_{}", T::NAME),
                        [2, 1, 1],
                        [256, 1],
                        0,
                        (dx.at(), dy.at(), x.at(), sizes.0, sizes.1, code, second),
                    );
                    vec![widened(&y), widened(&dx)]
                }) {
                    let what = |part| format!("{activation:?} {gate:?} {rows} {half} {part}");
                    close::<T>(&what("y"), &got[0], &values(&y), 1e-5);
                    close::<T>(&what("dx"), &got[1], &dx, 1e-5);
                }
            }
        }
    }
}

#[test]
fn f32_agrees_with_the_cpu() {
    check::<f32>();
}

#[test]
fn narrow_types_agree_with_the_rounded_cpu_results() {
    check::<bf16>();
    check::<f16>();
}
