use super::*;

const EPS: f64 = 1e-5;

fn check<T: Element>() {
    for (rows, width) in [(1, 1), (7, 30), (7, 768), (40, 8), (3, 1500), (2, 1024)] {
        let n = rows * width;
        let (x, dy) = (rounded::<T>(&noise(n, 1)), rounded::<T>(&noise(n, 2)));
        let w = noise(width, 3);
        let (input, weight) = (var(&x, &[rows, width]), param(&w, &[width]));
        let y = ops::rms_norm(&input, &weight, EPS).unwrap();
        let dx = gradients(&y, &dy, &[&input]).remove(0);
        let dw = grad_of(&weight);
        for got in in_all_orders(|| run::<T>(rows, width, &x, &dy, &w)) {
            let what = |part| format!("{rows} {width} {part}");
            close::<T>(&what("y"), &got[0], &values(&y), 1e-5);
            close::<T>(&what("dx"), &got[1], &dx, 1e-5);
            close::<f32>(&what("dw"), &got[2], &dw, 1e-5);
        }
    }
}

/// y, dx, dw.
fn run<T: Element>(rows: usize, width: usize, x: &[f32], dy: &[f32], w: &[f32]) -> Vec<Vec<f32>> {
    let [x, dy] = [x, dy].map(activations::<T>);
    let w = Buffer::new(w);
    let [y, dx] = [(); 2].map(|()| unwritten::<T>(rows * width));
    let factors = unwritten::<f32>(rows);
    let block = row_block(width, 8);
    let sizes = (rows as u32, width as u32);
    launch(
        &format!("rms_norm_forward_{}", T::NAME),
        [rows.div_ceil(block[1]), 1, 1],
        block,
        0,
        (
            y.at(),
            factors.at(),
            x.at(),
            w.at(),
            sizes.0,
            sizes.1,
            EPS as f32,
        ),
    );
    // Fewer blocks than rows, so that blocks have several.
    let blocks = rows.div_ceil(block[1]).min(2);
    let partials = unwritten::<f32>(blocks * width);
    launch(
        &format!("rms_norm_backward_{}", T::NAME),
        [blocks, 1, 1],
        block,
        4 * block[1] * width,
        (
            dx.at(),
            partials.at(),
            dy.at(),
            x.at(),
            w.at(),
            factors.at(),
            sizes.0,
            sizes.1,
        ),
    );
    let dw = unwritten::<f32>(width);
    reduce([Some(&dw), None], &partials, blocks, width, [0, 0]);
    vec![widened(&y), widened(&dx), dw.values()]
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
