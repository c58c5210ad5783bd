use super::*;

fn depthwise<T: Element>() {
    for ([batch, len, width], channels, kernel, pad) in [
        ([2, 9, 6], 6, 3, 1),
        ([1, 4, 3], 3, 4, 0),
        ([2, 7, 8], 2, 5, 4),
        ([1, 2, 4], 1, 7, 3),
    ] {
        let out = len + 2 * pad + 1 - kernel;
        let (n, m) = (batch * len * width, batch * out * width);
        let x = rounded::<T>(&noise(n, 1));
        let w = rounded::<T>(&noise(channels * kernel, 2));
        let dy = rounded::<T>(&noise(m, 3));
        let inputs = [var(&x, &[batch, len, width]), var(&w, &[channels, kernel])];
        let y = ops::depthwise_conv(&inputs[0], &inputs[1], pad).unwrap();
        let grads = gradients(&y, &dy, &[&inputs[0], &inputs[1]]);
        for got in in_all_orders(|| {
            let [x, w, dy] = [&x, &w, &dy].map(|x| activations::<T>(x));
            let (y, dx) = (unwritten::<T>(m), unwritten::<T>(n));
            let dw = unwritten::<f32>(channels * kernel);
            let sizes = [len, out, width, width / channels, kernel, pad].map(|n| n as u32);
            let [l, o, f, each, k, p] = sizes;
            let name = |name: &str| format!("depthwise_{name}_{}", T::NAME);
            launch(
                &name("forward"),
                [2, 1, 1],
                [256, 1],
                0,
                (y.at(), x.at(), w.at(), m as u64, l, o, f, each, k, p),
            );
            launch(
                &name("backward_input"),
                [2, 1, 1],
                [256, 1],
                0,
                (dx.at(), dy.at(), w.at(), n as u64, l, o, f, each, k, p),
            );
            launch(
                &name("backward_kernel"),
                [channels * kernel, 1, 1],
                [256, 1],
                0,
                (dw.at(), dy.at(), x.at(), batch as u32, l, o, f, each, k, p),
            );
            vec![widened(&y), widened(&dx), dw.values()]
        }) {
            close::<T>("y", &got[0], &values(&y), 1e-5);
            close::<T>("dx", &got[1], &grads[0], 1e-5);
            close::<f32>("dw", &got[2], &grads[1], 1e-5);
        }
    }
}

fn dynamic<T: Element>() {
    for ([batch, len, heads, d], kernel) in
        [([2, 9, 3, 4], 5), ([1, 3, 2, 5], 9), ([2, 6, 1, 3], 4)]
    {
        let width = heads * d;
        let (n, m) = (batch * len * width, batch * len * heads * kernel);
        let v = rounded::<T>(&noise(n, 1));
        let kernels = rounded::<T>(&noise(m, 2));
        let dy = rounded::<T>(&noise(n, 3));
        let inputs = [
            var(&v, &[batch, len, width]),
            var(&kernels, &[batch, len, heads, kernel]),
        ];
        let y = ops::dynamic_conv(&inputs[0], &inputs[1]).unwrap();
        let grads = gradients(&y, &dy, &[&inputs[0], &inputs[1]]);
        for got in in_all_orders(|| {
            let [v, kernels, dy] = [&v, &kernels, &dy].map(|x| activations::<T>(x));
            let [y, dv] = [(); 2].map(|()| unwritten::<T>(n));
            let dk = unwritten::<T>(m);
            let run = |name: &str, to: &Buffer<T>, a: &Buffer<T>, b: &Buffer<T>, count: usize| {
                let sizes = [len, width, d, kernel, (kernel - 1) / 2].map(|n| n as u32);
                let [l, f, d, k, p] = sizes;
                launch(
                    &format!("dynamic_{name}_{}", T::NAME),
                    [2, 1, 1],
                    [256, 1],
                    0,
                    (to.at(), a.at(), b.at(), count as u64, l, f, d, k, p),
                );
            };
            run("forward", &y, &v, &kernels, n);
            run("backward_value", &dv, &dy, &kernels, n);
            run("backward_kernel", &dk, &dy, &v, m);
            vec![widened(&y), widened(&dv), widened(&dk)]
        }) {
            close::<T>("y", &got[0], &values(&y), 1e-5);
            close::<T>("dv", &got[1], &grads[0], 1e-5);
            close::<T>("dk", &got[2], &grads[1], 1e-5);
        }
    }
}

#[test]
fn f32_agrees_with_the_cpu() {
    depthwise::<f32>();
    dynamic::<f32>();
}

#[test]
fn narrow_types_agree_with_the_rounded_cpu_results() {
    depthwise::<bf16>();
    depthwise::<f16>();
    dynamic::<bf16>();
    dynamic::<f16>();
}
