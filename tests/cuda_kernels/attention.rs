use super::*;

struct Case {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    mask: Option<Vec<u32>>,
    dropout: Dropout,
}

const SCALE: f32 = 0.2;
const NAMES: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];

impl Case {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// out, dq, dk, dv of the CPU.
    fn expected(&self, [q, k, v]: [&[f32]; 3], dout: &[f32]) -> [Vec<f32>; 4] {
        let shape = |seq| [self.batch, seq, self.width()];
        let [q, k, v] =
            [(q, self.queries), (k, self.keys), (v, self.keys)].map(|(x, seq)| var(x, &shape(seq)));
        let mask = match &self.mask {
            None => AttentionMask::None,
            Some(mask) => {
                let mask = Tensor::from_vec(mask.clone(), (self.batch, self.keys), &Device::Cpu);
                AttentionMask::Keys(mask.unwrap())
            }
        };
        let out = ops::attention(
            &q,
            &k,
            &v,
            self.heads,
            &mask,
            f64::from(SCALE),
            self.dropout,
        )
        .unwrap();
        let mut grads = gradients(&out, dout, &[&q, &k, &v]).into_iter();
        let mut next = || grads.next().unwrap();
        [values(&out), next(), next(), next()]
    }

    /// The logarithm of each query's sum, in f64.
    fn expected_lse(&self, q: &[f32], k: &[f32]) -> Vec<f32> {
        let Case {
            batch,
            heads,
            queries,
            keys,
            head_dim,
            ..
        } = *self;
        let mut all = vec![];
        for (b, h, i) in (0..batch * heads * queries)
            .map(|i| (i / queries / heads, i / queries % heads, i % queries))
        {
            let row = |x: &[f32], seq: usize, i: usize| -> Vec<f32> {
                x[((b * seq + i) * heads + h) * head_dim..][..head_dim].to_vec()
            };
            let hidden = |j: usize| {
                self.mask
                    .as_ref()
                    .is_some_and(|mask| mask[b * keys + j] == 0)
            };
            let even = (0..keys).all(hidden);
            let q = row(q, queries, i);
            let exp = |j: usize| {
                let dot: f64 = q
                    .iter()
                    .zip(row(k, keys, j))
                    .map(|(q, k)| f64::from(*q) * f64::from(k))
                    .sum();
                (dot * f64::from(SCALE)).exp()
            };
            let sum: f64 = if even {
                keys as f64
            } else {
                (0..keys).filter(|&j| !hidden(j)).map(exp).sum()
            };
            all.push(sum.ln() as f32);
        }
        all
    }

    /// out, lse, dq, dk, dv. With `joined`, q, k and v are columns of one tensor, and so are their gradients.
    fn run<T: Element>(&self, [q, k, v]: [&[f32]; 3], dout: &[f32], joined: bool) -> Vec<Vec<f32>> {
        let &Case {
            batch,
            heads,
            queries,
            keys,
            head_dim,
            dropout,
            ..
        } = self;
        let (width, d) = (self.width(), head_dim);
        let rows = batch * heads * queries;
        let stride = if joined { 3 * width } else { width };
        let lengths = [queries, keys, keys].map(|seq| batch * seq * width);
        let parts = [q, k, v];
        let (given, grads): (Vec<_>, Vec<_>) = if joined {
            let all: Vec<f32> = (0..batch * queries)
                .flat_map(|row| {
                    parts
                        .into_iter()
                        .flat_map(move |part| part[row * width..][..width].to_vec())
                })
                .collect();
            (
                vec![activations::<T>(&all)],
                vec![unwritten::<T>(all.len())],
            )
        } else {
            let given = parts.map(activations::<T>).into_iter().collect();
            (given, lengths.map(unwritten::<T>).into_iter().collect())
        };
        let place = |buffers: &[Buffer<T>], i: usize| match joined {
            // SAFETY: each part begins within the first row.
            true => unsafe { buffers[0].at().cast::<T>().add(i * width).cast() },
            false => buffers[i].at(),
        };
        let [q, k, v] = [0, 1, 2].map(|i| place(&given, i));
        let [dq, dk, dv] = [0, 1, 2].map(|i| place(&grads, i));
        let (out, dout) = (unwritten::<T>(lengths[0]), activations::<T>(dout));
        let [lse, delta] = [(); 2].map(|()| unwritten::<f32>(rows));
        let mask = self
            .mask
            .as_ref()
            .map(|mask| (Buffer::new(mask), Buffer::new(&vec![77u32; batch])));
        if let Some((mask, ends)) = &mask {
            let arguments = (ends.at(), mask.at(), batch as u32, keys as u32);
            launch("attention_key_ends", [batch, 1, 1], [128, 1], 0, arguments);
        }
        let [mask, ends] = match &mask {
            Some((mask, ends)) => [mask.at(), ends.at()],
            None => [NULL, NULL],
        };
        let name = |kernel: &str| format!("attention_{kernel}_{}_d{d}", T::NAME);
        let [b, h, n, m, s] = [batch, heads, queries, keys, stride].map(|x| x as u32);
        let (p, key) = (dropout.p, dropout.key);
        let by_queries = [queries.div_ceil(64), heads, batch];
        let by_keys = [keys.div_ceil(64), heads, batch];
        let shared = |rows: usize| rows * (d + 8) * 2;
        launch(
            &name("forward"),
            by_queries,
            [128, 1],
            shared(64 + 4 * 64),
            (
                out.at(),
                lse.at(),
                q,
                k,
                v,
                mask,
                ends,
                b,
                h,
                n,
                m,
                s,
                s,
                s,
                SCALE,
                p,
                key,
            ),
        );
        let arguments = (delta.at(), dout.at(), out.at(), b, h, n);
        launch(
            &name("delta"),
            [rows.div_ceil(4), 1, 1],
            [128, 1],
            0,
            arguments,
        );
        let (given, statistics) = ((dout.at(), q, k, v), (lse.at(), delta.at()));
        launch(
            &name("backward_kv"),
            by_keys,
            [128, 1],
            shared(2 * 64 + 4 * 32),
            (
                dk,
                dv,
                given.0,
                given.1,
                given.2,
                given.3,
                statistics.0,
                statistics.1,
                mask,
                ends,
                b,
                h,
                n,
                m,
                s,
                s,
                s,
                s,
                s,
                SCALE,
                p,
                key,
            ),
        );
        launch(
            &name("backward_q"),
            by_queries,
            [128, 1],
            shared(2 * 64 + 4 * 32),
            (
                dq,
                given.0,
                given.1,
                given.2,
                given.3,
                statistics.0,
                statistics.1,
                mask,
                ends,
                b,
                h,
                n,
                m,
                s,
                s,
                s,
                s,
                SCALE,
                p,
                key,
            ),
        );
        let [dq, dk, dv] = [0, 1, 2].map(|i| match joined {
            true => widened(&grads[0])
                .chunks(stride)
                .flat_map(|row| row[i * width..][..width].to_vec())
                .collect(),
            false => widened(&grads[i]),
        });
        vec![widened(&out), lse.values(), dq, dk, dv]
    }

    fn check<T: Element>(&self) {
        let Case {
            batch,
            queries,
            keys,
            ..
        } = *self;
        let given = [queries, keys, keys, queries].map(|seq| batch * seq * self.width());
        let [q, k, v, dout] = [0, 1, 2, 3].map(|i| {
            rounded::<T>(
                &noise(given[i], i as u64)
                    .iter()
                    .map(|x| 2.0 * x)
                    .collect::<Vec<_>>(),
            )
        });
        let given = [&q[..], &k, &v];
        let [out, dq, dk, dv] = self.expected(given, &dout);
        let want = [out, self.expected_lse(&q, &k), dq, dk, dv];
        let got = in_orders(2, || self.run::<T>(given, &dout, false));
        for ((got, want), name) in got.iter().zip(&want).zip(NAMES) {
            let what = format!(
                "{name} {:?}",
                (
                    batch,
                    self.heads,
                    queries,
                    keys,
                    self.head_dim,
                    self.dropout
                )
            );
            match name {
                "lse" => close::<f32>(&what, got, want, 2e-6),
                // Probabilities and their gradients are rounded before they are multiplied, and out before its
                // product with dout: single elements may be some roundings off, all together may not.
                _ => {
                    close::<T>(&what, got, want, 8.0 * T::ROUNDING);
                    let squares = |x: &mut dyn Iterator<Item = f32>| {
                        x.map(|x| f64::from(x).powi(2)).sum::<f64>()
                    };
                    let error = squares(&mut got.iter().zip(want).map(|(a, b)| a - b)).sqrt();
                    let size = squares(&mut want.iter().copied()).sqrt();
                    assert!(
                        error <= 2.0 * f64::from(T::ROUNDING) * size,
                        "{what}: {error} of {size}"
                    );
                }
            }
        }
        if queries == keys {
            assert_eq!(
                self.run::<T>(given, &dout, true),
                got,
                "as parts of one tensor"
            );
        }
    }
}

/// Keys of two sequences: one padded behind and with holes, one of which nothing may be seen.
fn padding(keys: usize) -> Vec<u32> {
    let seen = |k| u32::from(k < keys * 3 / 5 && k % 7 != 1);
    (0..2 * keys)
        .map(|i| if i < keys { seen(i) } else { 0 })
        .collect()
}

fn check<T: Element>() {
    for (head_dim, sizes) in [
        (32, vec![[2, 5, 5], [1, 70, 130]]),
        (
            64,
            vec![[2, 5, 5], [1, 128, 128], [1, 200, 200], [2, 1, 65]],
        ),
        (96, vec![[1, 33, 70]]),
        (128, vec![[1, 66, 66]]),
    ] {
        for [heads, queries, keys] in sizes {
            for (mask, dropout) in [
                (None, DROPOUTS[0]),
                (Some(padding(keys)), DROPOUTS[1]),
                (Some(padding(keys)), DROPOUTS[0]),
                (None, DROPOUTS[2]),
            ] {
                // One sequence is enough where none is padded.
                let batch = if mask.is_some() { 2 } else { 1 };
                Case {
                    batch,
                    heads,
                    queries,
                    keys,
                    head_dim,
                    mask,
                    dropout,
                }
                .check::<T>();
            }
        }
    }
}

#[test]
fn bf16_agrees_with_the_rounded_cpu_results() {
    check::<bf16>();
}

#[test]
fn f16_agrees_with_the_rounded_cpu_results() {
    check::<f16>();
}

#[test]
fn nan_affects_only_its_query() {
    let (batch, heads, queries, keys, head_dim) = (1, 1, 70, 70, 64);
    let case = Case {
        batch,
        heads,
        queries,
        keys,
        head_dim,
        mask: None,
        dropout: NO_DROPOUT,
    };
    let [mut q, k, v, dout] = [1, 2, 3, 4].map(|seed| noise(queries * head_dim, seed));
    q[20 * head_dim + 3] = f32::NAN;
    let got = case.run::<bf16>([&q, &k, &v], &dout, false);
    for (i, row) in got[0].chunks(head_dim).enumerate() {
        assert!(row.iter().all(|x| x.is_nan() == (i == 20)), "query {i}");
    }
}

#[test]
fn lengths_need_no_mask() {
    let (batch, heads, queries, keys, head_dim) = (2, 1, 70, 70, 32);
    let lengths = [41usize, 70];
    let mask: Vec<u32> = (0..batch * keys)
        .map(|i| u32::from(i % keys < lengths[i / keys]))
        .collect();
    let given = [1, 2, 3].map(|seed| rounded::<f16>(&noise(batch * keys * head_dim, seed)));
    let case = Case {
        batch,
        heads,
        queries,
        keys,
        head_dim,
        mask: Some(mask),
        dropout: NO_DROPOUT,
    };
    let [q, k, v] = &given;
    let want = case.run::<f16>([q, k, v], q, false);
    let [q, k, v] = given.map(|x| activations::<f16>(&x));
    let ends = Buffer::new(&lengths.map(|n| n as u32));
    let (out, lse) = (
        unwritten::<f16>(batch * queries * head_dim),
        unwritten::<f32>(batch * queries),
    );
    let n = 70u32;
    launch(
        "attention_forward_f16_d32",
        [2, heads, batch],
        [128, 1],
        320 * 40 * 2,
        (
            out.at(),
            lse.at(),
            q.at(),
            k.at(),
            v.at(),
            NULL,
            ends.at(),
            2u32,
            1u32,
            n,
            n,
            32u32,
            32u32,
            32u32,
            SCALE,
            0f32,
            0u64,
        ),
    );
    assert_eq!(widened(&out), want[0]);
    assert_eq!(lse.values(), want[1]);
}
