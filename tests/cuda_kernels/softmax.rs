use super::*;

struct Case {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    mask: Mask,
    dropout: Dropout,
}

#[derive(Clone)]
enum Mask {
    None,
    Keys(Vec<u32>),
    /// Values, and the shape that is broadcast.
    Additive(Vec<f32>, [usize; 4]),
}

const SCALE: f32 = 0.7;

impl Case {
    fn rows(&self) -> usize {
        self.batch * self.heads * self.queries
    }

    fn strides(&self) -> [u64; 4] {
        let Mask::Additive(_, shape) = &self.mask else {
            return [0; 4];
        };
        let mut strides = [0; 4];
        let mut step = 1;
        for dim in (0..4).rev() {
            strides[dim] = if shape[dim] == 1 { 0 } else { step };
            step *= shape[dim] as u64;
        }
        strides
    }

    /// The probabilities, in f64.
    fn expected(&self, scores: &[f32]) -> Vec<f32> {
        let Case {
            heads,
            queries,
            keys,
            ..
        } = *self;
        let strides = self.strides();
        let mut all = vec![];
        for row in 0..self.rows() {
            let [b, h, q] = [row / queries / heads, row / queries % heads, row % queries];
            let hidden = |k: usize| match &self.mask {
                Mask::Keys(mask) => mask[b * keys + k] == 0,
                _ => false,
            };
            let even = (0..keys).all(hidden);
            let score = |k: usize| {
                let scaled = f64::from(scores[row * keys + k]) * f64::from(SCALE);
                match &self.mask {
                    _ if even => 0.0,
                    Mask::Additive(bias, _) => {
                        let at = [b, h, q, k]
                            .into_iter()
                            .zip(strides)
                            .map(|(i, s)| i as u64 * s);
                        scaled + f64::from(bias[at.sum::<u64>() as usize])
                    }
                    _ if hidden(k) => f64::NEG_INFINITY,
                    _ => scaled,
                }
            };
            let top = (0..keys).map(score).fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = (0..keys).map(|k| (score(k) - top).exp()).collect();
            let sum: f64 = exps.iter().sum();
            all.extend(exps.iter().map(|exp| (exp / sum) as f32));
        }
        all
    }

    /// In f64, what becomes of these probabilities under dropout, and the gradient of the masked scores.
    fn expected_backward(&self, probs: &[f32], dprobs: &[f32]) -> [Vec<f32>; 2] {
        let mut all = [vec![], vec![]];
        for (row, (probs, dprobs)) in probs
            .chunks(self.keys)
            .zip(dprobs.chunks(self.keys))
            .enumerate()
        {
            let factor = |k: usize| match self.dropout.is_active() {
                true => f64::from(self.dropout.factor((row * self.keys + k) as u64)),
                false => 1.0,
            };
            let prob = |k: usize| f64::from(probs[k]);
            let grad = |k: usize| f64::from(dprobs[k]) * factor(k);
            let inner: f64 = (0..self.keys).map(|k| prob(k) * grad(k)).sum();
            for k in 0..self.keys {
                all[0].push((prob(k) * factor(k)) as f32);
                all[1].push((prob(k) * (grad(k) - inner)) as f32);
            }
        }
        all
    }

    /// Probabilities before and after dropout, the dropped again from backward, the gradient of the scores.
    fn run<T: Element>(&self, scores: &[f32], dprobs: &[f32]) -> Vec<Vec<f32>> {
        let &Case {
            batch,
            heads,
            queries,
            keys,
            dropout,
            ..
        } = self;
        let n = self.rows() * keys;
        let [scores, dprobs] = [scores, dprobs].map(activations::<T>);
        let [dropped, again] = [(); 2].map(|()| unwritten::<T>(n));
        let (mask, bias) = match &self.mask {
            Mask::None => (None, None),
            Mask::Keys(mask) => (Some(Buffer::new(mask)), None),
            Mask::Additive(bias, _) => (None, Some(activations::<T>(bias))),
        };
        let strides = self.strides();
        let if_active = |x: &Buffer<T>| if dropout.is_active() { x.at() } else { NULL };
        let block = row_block(keys, 8);
        // The probabilities take the scores' place.
        launch(
            &format!("softmax_forward_{}", T::NAME),
            [self.rows().div_ceil(block[1]), 1, 1],
            block,
            4 * block[1] * keys,
            (
                scores.at(),
                if_active(&dropped),
                scores.at(),
                mask.as_ref().map_or(NULL, Buffer::at),
                bias.as_ref().map_or(NULL, Buffer::at),
                batch as u32,
                heads as u32,
                queries as u32,
                keys as u32,
                strides[0],
                strides[1],
                strides[2],
                strides[3],
                SCALE,
                dropout.p,
                dropout.key,
            ),
        );
        let block = row_block(keys, 4);
        launch(
            &format!("softmax_backward_{}", T::NAME),
            [self.rows().div_ceil(block[1]), 1, 1],
            block,
            8 * block[1] * keys,
            (
                dprobs.at(),
                if_active(&again),
                dprobs.at(),
                scores.at(),
                self.rows() as u64,
                keys as u32,
                dropout.p,
                dropout.key,
            ),
        );
        let pick = |x| widened(if dropout.is_active() { x } else { &scores });
        vec![
            widened(&scores),
            pick(&dropped),
            pick(&again),
            widened(&dprobs),
        ]
    }

    fn check<T: Element>(&self) {
        let n = self.rows() * self.keys;
        let scores: Vec<f32> = noise(n, 1).iter().map(|x| 6.0 * x).collect();
        let (scores, dprobs) = (rounded::<T>(&scores), rounded::<T>(&noise(n, 2)));
        let rounding = Case {
            mask: match &self.mask {
                Mask::Additive(bias, shape) => Mask::Additive(rounded::<T>(bias), *shape),
                other => other.clone(),
            },
            ..*self
        };
        let want = rounding.expected(&scores);
        for got in in_all_orders(|| rounding.run::<T>(&scores, &dprobs)) {
            close::<T>("probs", &got[0], &want, 1e-5);
            let [dropped, _] = rounding.expected_backward(&want, &dprobs);
            close::<T>("dropped", &got[1], &dropped, 1e-5);
            let [again, dscores] = rounding.expected_backward(&got[0], &dprobs);
            close::<T>("dropped again", &got[2], &again, 1e-5);
            close::<T>("dscores", &got[3], &dscores, 1e-5);
        }
    }
}

/// Keys of two sequences: one padded behind and with a hole, one of which nothing may be seen.
fn padding(keys: usize) -> Vec<u32> {
    let seen = |k| u32::from(k == 0 || k < keys * 2 / 3 && k != 1);
    (0..2 * keys)
        .map(|i| if i < keys { seen(i) } else { 0 })
        .collect()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for [heads, queries, keys] in [[3, 5, 5], [1, 7, 128], [2, 3, 200], [1, 2, 1500], [1, 1, 1]] {
        let masks = [
            Mask::None,
            Mask::Keys(padding(keys)),
            Mask::Additive(noise(heads * queries * keys, 8), [1, heads, queries, keys]),
            Mask::Additive(noise(2 * keys, 9), [2, 1, 1, keys]),
            Mask::Additive(noise(2 * queries, 9), [2, 1, queries, 1]),
        ];
        for mask in masks {
            for dropout in DROPOUTS {
                let mask = mask.clone();
                cases.push(Case {
                    batch: 2,
                    heads,
                    queries,
                    keys,
                    mask,
                    dropout,
                });
            }
        }
    }
    cases
}

#[test]
fn every_mask_and_type_agrees_with_f64() {
    for case in cases() {
        case.check::<f32>();
        case.check::<bf16>();
        case.check::<f16>();
    }
}

#[test]
fn nan_affects_only_its_row() {
    for keys in [5, 128, 1500] {
        let case = Case {
            batch: 1,
            heads: 1,
            queries: 3,
            keys,
            mask: Mask::None,
            dropout: NO_DROPOUT,
        };
        let mut scores = noise(3 * keys, 1);
        scores[keys + 2] = f32::NAN;
        for got in in_all_orders(|| case.run::<f32>(&scores, &noise(3 * keys, 2))) {
            for got in got {
                assert!(
                    got[..keys]
                        .iter()
                        .chain(&got[2 * keys..])
                        .all(|x| x.is_finite())
                );
                assert!(got[keys..2 * keys].iter().all(|x| x.is_nan()));
            }
        }
    }
}

/// a (m, k) times b (k, n), of which each element is named.
fn product(
    [m, k, n]: [usize; 3],
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let sum = |i, j| {
        (0..k)
            .map(|l| f64::from(a(i, l)) * f64::from(b(l, j)))
            .sum::<f64>() as f32
    };
    (0..m * n).map(|at| sum(at / n, at % n)).collect()
}

#[test]
fn between_two_products_it_agrees_with_the_cpus_attention() {
    const D: usize = 8;
    for case in cases().into_iter().filter(|case| case.keys <= 200) {
        let Case {
            batch,
            heads,
            queries,
            keys,
            dropout,
            ..
        } = case;
        let width = heads * D;
        let shapes = [
            [batch, queries, width],
            [batch, keys, width],
            [batch, keys, width],
        ];
        let [q, k, v] = [0, 1, 2].map(|i| noise(shapes[i].iter().product(), i as u64));
        let dout = noise(q.len(), 7);
        let at =
            |b: usize, h: usize, seq: usize, i: usize, d: usize| (b * seq + i) * width + h * D + d;
        let each = |f: &dyn Fn(usize, usize) -> Vec<f32>| -> Vec<f32> {
            (0..batch * heads)
                .flat_map(|i| f(i / heads, i % heads))
                .collect()
        };
        let scores = each(&|b, h| {
            let (q, k) = (&q, &k);
            product(
                [queries, D, keys],
                |i, d| q[at(b, h, queries, i, d)],
                |d, j| k[at(b, h, keys, j, d)],
            )
        });
        let dprobs = each(&|b, h| {
            let (g, v) = (&dout, &v);
            product(
                [queries, D, keys],
                |i, d| g[at(b, h, queries, i, d)],
                |d, j| v[at(b, h, keys, j, d)],
            )
        });
        let got = case.run::<f32>(&scores, &dprobs);
        let (dropped, dscores) = (&got[1], &got[3]);
        let mut outcome =
            [0, 1, 2, 1].map(|i: usize| vec![0f32; shapes[i.min(1)].iter().product()]);
        for (b, h) in (0..batch * heads).map(|i| (i / heads, i % heads)) {
            let first = (b * heads + h) * queries * keys;
            let (p, s) = (&dropped[first..], &dscores[first..]);
            let out = product(
                [queries, keys, D],
                |i, j| p[i * keys + j],
                |j, d| v[at(b, h, keys, j, d)],
            );
            let dq = product(
                [queries, keys, D],
                |i, j| s[i * keys + j] * SCALE,
                |j, d| k[at(b, h, keys, j, d)],
            );
            let dk = product(
                [keys, queries, D],
                |j, i| s[i * keys + j] * SCALE,
                |i, d| q[at(b, h, queries, i, d)],
            );
            let dv = product(
                [keys, queries, D],
                |j, i| p[i * keys + j],
                |i, d| dout[at(b, h, queries, i, d)],
            );
            for (i, d) in (0..queries * D).map(|i| (i / D, i % D)) {
                outcome[0][at(b, h, queries, i, d)] = out[i * D + d];
                outcome[3].resize(q.len(), 0.0);
                outcome[3][at(b, h, queries, i, d)] = dq[i * D + d];
            }
            for (j, d) in (0..keys * D).map(|j| (j / D, j % D)) {
                outcome[1][at(b, h, keys, j, d)] = dk[j * D + d];
                outcome[2][at(b, h, keys, j, d)] = dv[j * D + d];
            }
        }
        let inputs = [
            var(&q, &shapes[0]),
            var(&k, &shapes[1]),
            var(&v, &shapes[2]),
        ];
        let mask = match &case.mask {
            Mask::None => AttentionMask::None,
            Mask::Keys(mask) => AttentionMask::Keys(
                Tensor::from_vec(mask.clone(), (batch, keys), &Device::Cpu).unwrap(),
            ),
            Mask::Additive(bias, shape) => AttentionMask::Additive(tensor(bias, shape)),
        };
        let [vq, vk, vv] = &inputs;
        let out = ops::attention(vq, vk, vv, heads, &mask, f64::from(SCALE), dropout).unwrap();
        let grads = gradients(&out, &dout, &[vq, vk, vv]);
        close::<f32>("out", &outcome[0], &values(&out), 1e-5);
        close::<f32>("dq", &outcome[3], &grads[0], 1e-5);
        close::<f32>("dk", &outcome[1], &grads[1], 1e-5);
        close::<f32>("dv", &outcome[2], &grads[2], 1e-5);
    }
}
