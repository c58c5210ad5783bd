use super::*;

const ALL: [Activation; 10] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
    Activation::Linear,
    Activation::Sigmoid,
    Activation::ReluSquared,
    Activation::QuickGelu,
    Activation::Laplace,
];

fn check<T: Element>() {
    for (rows, width) in [(1, 1), (7, 30), (130, 40), (5, 1000), (9, 768)] {
        for (code, activation) in ALL.into_iter().enumerate() {
            for with_bias in [true, false] {
                case::<T>([rows, width], code as u32, activation, with_bias);
            }
        }
    }
}

fn case<T: Element>([rows, width]: [usize; 2], code: u32, activation: Activation, with_bias: bool) {
    let n = rows * width;
    let mut x: Vec<f32> = noise(n, 1).iter().map(|x| 5.0 * x).collect();
    // The square stays among f16's numbers.
    let far = match activation {
        Activation::ReluSquared => 1e2,
        _ => 1e4,
    };
    for (x, extreme) in x[n / 2..].iter_mut().zip([0.0, -far, far, f32::NAN]) {
        *x = extreme;
    }
    let x = rounded::<T>(&x);
    let dy = rounded::<T>(&noise(n, 2));
    let b = if with_bias {
        noise(width, 3)
    } else {
        vec![0.0; width]
    };
    let sums: Vec<f32> = x
        .iter()
        .enumerate()
        .map(|(i, x)| x + b[i % width])
        .collect();
    let input = var(&sums, &[rows, width]);
    let y = activation.apply(&input).unwrap();
    let dx = gradients(&y, &dy, &[&input]).remove(0);
    let db: Vec<f32> = (0..width)
        .map(|c| (0..rows).map(|r| f64::from(dx[r * width + c])).sum::<f64>() as f32)
        .collect();
    let plain: Vec<f32> = (0..width)
        .map(|c| (0..rows).map(|r| f64::from(x[r * width + c])).sum::<f64>() as f32)
        .collect();
    for got in in_all_orders(|| {
        let [dy, x] = [&dy, &x].map(|x| activations::<T>(x));
        let b = Buffer::new(&b);
        let bias = if with_bias { b.at() } else { NULL };
        let [y, dx] = [(); 2].map(|()| unwritten::<T>(n));
        let (grid, parts) = column_grid::<T>(rows, width);
        let sizes = (rows as u32, width as u32);
        launch(
            &format!("bias_act_forward_{}", T::NAME),
            [grid[0], rows.div_ceil(32), 1],
            [32, 8],
            0,
            (y.at(), x.at(), bias, sizes.0, sizes.1, code),
        );
        let [partials, columns] = [(); 2].map(|()| unwritten::<f32>(parts * width));
        launch(
            &format!("bias_act_backward_{}", T::NAME),
            grid,
            [32, 8],
            0,
            (
                dx.at(),
                partials.at(),
                dy.at(),
                x.at(),
                bias,
                sizes.0,
                sizes.1,
                code,
            ),
        );
        launch(
            &format!("column_sums_{}", T::NAME),
            grid,
            [32, 8],
            0,
            (columns.at(), x.at(), sizes.0, sizes.1, sizes.1),
        );
        let [db, plain] = [(); 2].map(|()| unwritten::<f32>(width));
        reduce([Some(&db), None], &partials, parts, width, [0, 0]);
        reduce([Some(&plain), None], &columns, parts, width, [0, 0]);
        // In the gradient's place.
        launch(
            &format!("bias_act_backward_{}", T::NAME),
            grid,
            [32, 8],
            0,
            (dy.at(), NULL, dy.at(), x.at(), bias, sizes.0, sizes.1, code),
        );
        vec![
            widened(&y),
            widened(&dx),
            db.values(),
            plain.values(),
            widened(&dy),
        ]
    }) {
        let what = |part| format!("{activation:?} {rows} {width} {part}");
        close::<T>(&what("y"), &got[0], &values(&y), 1e-5);
        close::<T>(&what("dx"), &got[1], &dx, 1e-5);
        close::<f32>(&what("db"), &got[2], &db, 1e-5);
        close::<f32>(&what("sums"), &got[3], &plain, 1e-5);
        close::<T>(&what("dx in place"), &got[4], &got[1], 0.0);
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

#[test]
fn column_sums_skip_gaps_between_rows() {
    fn check<T: Element>() {
        for (rows, width, stride) in [(7, 30, 31), (70, 101, 104)] {
            let mut x = noise(rows * stride, 1);
            for row in x.chunks_mut(stride) {
                row[width..].fill(f32::NAN);
            }
            let x = rounded::<T>(&x);
            let want: Vec<f32> = (0..width)
                .map(|c| (0..rows).map(|r| x[r * stride + c]).sum::<f32>())
                .collect();
            for got in in_all_orders(|| {
                let x = activations::<T>(&x);
                let (grid, parts) = column_grid::<T>(rows, width);
                let (partials, sums) = (unwritten::<f32>(parts * width), unwritten::<f32>(width));
                let arguments = (
                    partials.at(),
                    x.at(),
                    rows as u32,
                    width as u32,
                    stride as u32,
                );
                launch(
                    &format!("column_sums_{}", T::NAME),
                    grid,
                    [32, 8],
                    0,
                    arguments,
                );
                reduce([Some(&sums), None], &partials, parts, width, [0, 0]);
                vec![sums.values()]
            }) {
                close::<f32>("sums", &got[0], &want, 1e-5);
            }
        }
    }
    check::<f32>();
    check::<bf16>();
}
