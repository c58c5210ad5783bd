use super::*;

/// The label of a row that does not count.
const NONE: u32 = u32::MAX;
/// The gradient of the loss: large, so that its roundings stand out.
const UPSTREAM: f32 = 1000.0;

struct Case {
    rows: usize,
    vocab: usize,
    stride: usize,
    bias: bool,
}

impl Case {
    fn labels(&self) -> Vec<u32> {
        let label = |row| (row * 7919 % self.vocab) as u32;
        (0..self.rows)
            .map(|row| if row == 1 { NONE } else { label(row) })
            .collect()
    }

    /// Rows of logits, NaN between them.
    fn logits(&self) -> Vec<f32> {
        let mut logits: Vec<f32> = noise(self.rows * self.stride, 1)
            .iter()
            .map(|x| 8.0 * x)
            .collect();
        for row in logits.chunks_mut(self.stride) {
            row[self.vocab..].fill(f32::NAN);
        }
        logits
    }

    fn bias_values(&self) -> Vec<f32> {
        if self.bias {
            noise(self.vocab, 2)
        } else {
            vec![0.0; self.vocab]
        }
    }

    /// By the CPU's operation, one row at a time: its loss, and the gradient of its logits.
    fn expected(&self, logits: &[f32], bias: &[f32]) -> [Vec<f32>; 2] {
        let Case { vocab, stride, .. } = *self;
        let (mut losses, mut grads) = (vec![], vec![]);
        for (row, &label) in logits.chunks(stride).zip(&self.labels()) {
            if label == NONE {
                losses.push(0.0);
                grads.extend(std::iter::repeat_n(0.0, stride));
                continue;
            }
            // The logits are the product of a one with them.
            let weight = param(&row[..vocab], &[vocab, 1]);
            let bias = param(bias, &[vocab]);
            let labels = Tensor::from_vec(vec![label], 1, &Device::Cpu).unwrap();
            let hidden = tensor(&[1.0], &[1, 1]);
            let loss = ops::masked_cross_entropy(&hidden, &weight, Some(&bias), &labels).unwrap();
            gradients(&loss, &[UPSTREAM], &[]);
            losses.push(values(&loss)[0]);
            grads.extend(grad_of(&weight));
            grads.extend(std::iter::repeat_n(0.0, stride - vocab));
        }
        [losses, grads]
    }

    fn check<T: Element, U: Element>(&self, suffix: &str) {
        let Case {
            rows,
            vocab,
            stride,
            ..
        } = *self;
        let (logits, bias, labels) = (
            rounded::<T>(&self.logits()),
            self.bias_values(),
            self.labels(),
        );
        let [want_losses, want_grads] = self.expected(&logits, &bias);
        let in_place = T::NAME == U::NAME;
        for got in in_all_orders(|| {
            let [x, y] = [(); 2].map(|()| activations::<T>(&logits));
            let [to_x, to_y] = [(); 2].map(|()| unwritten::<U>(rows * stride));
            let (bias, labels) = (Buffer::new(&bias), Buffer::new(&labels));
            let bias_at = if self.bias { bias.at() } else { NULL };
            let scale = Buffer::new(&[UPSTREAM]);
            let [losses, lse, fused_losses] = [(); 3].map(|()| unwritten::<f32>(rows));
            let correct = Buffer::new(&vec![9u32; rows]);
            let sizes = (rows as u32, vocab as u32, stride as u32);
            launch(
                &format!("cross_entropy_forward_{}", T::NAME),
                [rows, 1, 1],
                [512, 1],
                0,
                (
                    losses.at(),
                    lse.at(),
                    correct.at(),
                    x.at(),
                    bias_at,
                    labels.at(),
                    sizes.0,
                    sizes.1,
                    sizes.2,
                ),
            );
            launch(
                &format!("cross_entropy_backward_{suffix}"),
                [rows, 1, 1],
                [512, 1],
                0,
                (
                    if in_place { x.at() } else { to_x.at() },
                    x.at(),
                    bias_at,
                    labels.at(),
                    lse.at(),
                    scale.at(),
                    sizes.0,
                    sizes.1,
                    sizes.2,
                ),
            );
            launch(
                &format!("cross_entropy_fused_{suffix}"),
                [rows, 1, 1],
                [512, 1],
                0,
                (
                    fused_losses.at(),
                    if in_place { y.at() } else { to_y.at() },
                    y.at(),
                    bias_at,
                    labels.at(),
                    scale.at(),
                    sizes.0,
                    sizes.1,
                    sizes.2,
                ),
            );
            let picked = correct.values().iter().map(|&c| c as f32).collect();
            let [dx, dy] = if in_place {
                [widened(&x), widened(&y)]
            } else {
                [widened(&to_x), widened(&to_y)]
            };
            vec![losses.values(), picked, dx, fused_losses.values(), dy]
        }) {
            close::<f32>("losses", &got[0], &want_losses, 1e-5);
            close::<f32>("fused losses", &got[3], &want_losses, 1e-5);
            close::<U>("gradient", &got[2], &want_grads, 1e-5);
            close::<U>("fused gradient", &got[4], &want_grads, 1e-5);
            let sums: Vec<Vec<f32>> = (logits.chunks(stride))
                .map(|row| row[..vocab].iter().zip(&bias).map(|(x, b)| x + b).collect())
                .collect();
            for ((row, &label), &picked) in sums.iter().zip(&labels).zip(&got[1]) {
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let first = row.iter().position(|&x| x == top).unwrap();
                assert_eq!(picked == 1.0, first == label as usize);
            }
        }
    }
}

#[test]
fn losses_and_gradients_agree_with_the_cpu() {
    for [rows, vocab, stride] in [[3, 1, 1], [3, 7, 8], [5, 1009, 1009], [4, 2000, 2000]] {
        for bias in [true, false] {
            let case = Case {
                rows,
                vocab,
                stride,
                bias,
            };
            case.check::<f32, f32>("f32");
            case.check::<bf16, bf16>("bf16");
            case.check::<f16, f16>("f16");
            case.check::<f32, bf16>("f32_bf16");
            case.check::<f32, f16>("f32_f16");
        }
    }
}

#[test]
fn a_vocabulary_of_odd_size_agrees_with_the_cpu() {
    let bias = true;
    let (rows, vocab) = (2, 50_265);
    Case {
        rows,
        vocab,
        stride: vocab,
        bias,
    }
    .check::<bf16, bf16>("bf16");
    let stride = 50_272;
    Case {
        rows,
        vocab,
        stride,
        bias,
    }
    .check::<f32, bf16>("f32_bf16");
}

#[test]
fn the_first_of_equal_logits_is_the_largest() {
    // In one thread's columns, in one warp's, in two warps'; before the first multiple of 16 bytes and behind the last.
    for (first, second) in [(9, 11), (1, 40), (3, 900), (1, 1008), (0, 2)] {
        let mut logits = noise(2 * 1009, 1);
        for row in logits.chunks_mut(1009) {
            (row[first], row[second]) = (2.0, 2.0);
        }
        let labels = [first as u32, second as u32];
        for got in in_all_orders(|| {
            let [losses, lse] = [(); 2].map(|()| unwritten::<f32>(2));
            let (correct, x, labels) = (
                Buffer::new(&[9u32; 2]),
                Buffer::new(&logits),
                Buffer::new(&labels),
            );
            let sizes = (2u32, 1009u32, 1009u32);
            launch(
                "cross_entropy_forward_f32",
                [2, 1, 1],
                [512, 1],
                0,
                (
                    losses.at(),
                    lse.at(),
                    correct.at(),
                    x.at(),
                    NULL,
                    labels.at(),
                    sizes.0,
                    sizes.1,
                    sizes.2,
                ),
            );
            vec![correct.values().iter().map(|&c| c as f32).collect()]
        }) {
            assert_eq!(got[0], [1.0, 0.0], "{first} {second}");
        }
    }
}

#[test]
fn nan_and_infinities_agree_with_the_cpu() {
    let case = Case {
        rows: 4,
        vocab: 1009,
        stride: 1009,
        bias: false,
    };
    let mut logits = case.logits();
    logits[3] = f32::NAN;
    logits[2 * 1009 + 3] = f32::INFINITY;
    logits[3 * 1009..][..600].fill(f32::NEG_INFINITY);
    let labels = Buffer::new(&[5u32, 5, 5, 700]);
    let [losses, lse] = [(); 2].map(|()| unwritten::<f32>(4));
    let x = Buffer::new(&logits);
    launch(
        "cross_entropy_forward_f32",
        [4, 1, 1],
        [512, 1],
        0,
        (
            losses.at(),
            lse.at(),
            NULL,
            x.at(),
            NULL,
            labels.at(),
            4u32,
            1009u32,
            1009u32,
        ),
    );
    let got = losses.values();
    assert!(
        got[0].is_nan() && got[1].is_finite() && !got[2].is_finite(),
        "{got:?}"
    );
    let row = param(&logits[3 * 1009..], &[1009, 1]);
    let label = Tensor::from_vec(vec![700u32], 1, &Device::Cpu).unwrap();
    let want = ops::masked_cross_entropy(&tensor(&[1.0], &[1, 1]), &row, None, &label).unwrap();
    close::<f32>("loss", &got[3..], &values(&want), 1e-6);
}
