use super::*;

const EPS: f64 = 1e-5;

struct Case<T> {
    rows: usize,
    width: usize,
    residual: bool,
    bias: bool,
    dropout: Dropout,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Case<T> {
    fn check(&self, edit: impl Fn(&mut [f32])) {
        let &Self {
            rows,
            width,
            dropout,
            ..
        } = self;
        let shape = [rows, width];
        let n = rows * width;
        let mut x = noise(n, 1);
        edit(&mut x);
        let x = rounded::<T>(&x);
        let residual = rounded::<T>(&noise(n, 2));
        let dy = rounded::<T>(&noise(n, 3));
        let (w, b) = (noise(width, 4), noise(width, 5));

        let inputs = [var(&x, &shape), var(&residual, &shape)];
        let (weight, bias) = (param(&w, &[width]), param(&b, &[width]));
        let some_bias = self.bias.then_some(&bias);
        let y = if self.residual {
            ops::add_layer_norm(&inputs[0], &inputs[1], &weight, some_bias, EPS, dropout)
        } else {
            let dropped = ops::dropout(&inputs[0], dropout).unwrap();
            ops::layer_norm(&dropped, &weight, some_bias, EPS)
        }
        .unwrap();
        let grads = gradients(&y, &dy, &[&inputs[0], &inputs[1]]);

        for got in in_all_orders(|| self.run(&x, &residual, &dy, &w, &b)) {
            close::<T>("y", &got[0], &values(&y), 1e-5);
            close::<T>("dx", &got[2], &grads[0], 1e-5);
            if self.residual {
                close::<T>("dsum", &got[1], &grads[1], 1e-5);
            }
            close::<f32>("dw", &got[3], &grad_of(&weight), 1e-5);
            if self.bias {
                close::<f32>("db", &got[4], &grad_of(&bias), 1e-5);
            }
        }
    }

    /// y, dsum, dx, dw, db.
    fn run(&self, x: &[f32], residual: &[f32], dy: &[f32], w: &[f32], b: &[f32]) -> Vec<Vec<f32>> {
        let &Self {
            rows,
            width,
            dropout,
            ..
        } = self;
        let n = rows * width;
        let [x, residual, dy] = [x, residual, dy].map(activations::<T>);
        let [w, b] = [w, b].map(Buffer::new);
        let residual = if self.residual { residual.at() } else { NULL };
        let y = unwritten::<T>(n);
        let [mean, rstd] = [(); 2].map(|()| unwritten::<f32>(rows));
        let block = row_block(width, 8);
        launch(
            &format!("layer_norm_forward_{}", T::NAME),
            [rows.div_ceil(block[1]), 1, 1],
            block,
            4 * block[1] * width,
            (
                y.at(),
                mean.at(),
                rstd.at(),
                x.at(),
                residual,
                w.at(),
                if self.bias { b.at() } else { NULL },
                rows as u32,
                width as u32,
                EPS as f32,
                dropout.p,
                dropout.key,
            ),
        );
        let block = row_block(width, (49_152 / (16 * width)).clamp(1, 8));
        // Fewer blocks than rows, so that blocks have several.
        let blocks = rows.div_ceil(block[1]).min(2);
        let [dsum, dx] = [(); 2].map(|()| unwritten::<T>(n));
        let partials = unwritten::<f32>(blocks * 2 * width);
        launch(
            &format!("layer_norm_backward_{}", T::NAME),
            [blocks, 1, 1],
            block,
            16 * block[1] * width,
            (
                dsum.at(),
                if dropout.is_active() { dx.at() } else { NULL },
                partials.at(),
                dy.at(),
                x.at(),
                residual,
                w.at(),
                mean.at(),
                rstd.at(),
                rows as u32,
                width as u32,
                dropout.p,
                dropout.key,
            ),
        );
        let [dw, db] = [(); 2].map(|()| unwritten::<f32>(width));
        reduce([Some(&dw), Some(&db)], &partials, blocks, width, [0, 0]);
        let dx = if dropout.is_active() { &dx } else { &dsum };
        vec![
            widened(&y),
            widened(&dsum),
            widened(dx),
            dw.values(),
            db.values(),
        ]
    }
}

fn check<T: Element>() {
    for (rows, width) in [
        (1, 1),
        (7, 30),
        (7, 768),
        (40, 8),
        (1, 1000),
        (3, 1500),
        (2, 1024),
    ] {
        for dropout in DROPOUTS {
            for (residual, bias) in [(true, true), (false, false)] {
                let element = std::marker::PhantomData;
                Case::<T> {
                    rows,
                    width,
                    residual,
                    bias,
                    dropout,
                    element,
                }
                .check(|_| ());
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

#[test]
fn nan_affects_only_its_row() {
    for (rows, width) in [(3, 30), (3, 768), (2, 1500)] {
        let case = Case::<f32> {
            rows,
            width,
            residual: true,
            bias: true,
            dropout: NO_DROPOUT,
            element: std::marker::PhantomData,
        };
        case.check(|x| x[width + width / 2] = f32::NAN);
    }
}
