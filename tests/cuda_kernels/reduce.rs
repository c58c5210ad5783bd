use super::*;

#[test]
fn parts_are_summed_into_one_or_two_gradients() {
    for (parts, width) in [(1, 1), (5, 30), (40, 768), (9, 33)] {
        let partials = noise(parts * 2 * width, 1);
        let before = noise(width, 2);
        let sums = |first: usize, stride: usize| -> Vec<f32> {
            let column = |c: usize| {
                (0..parts)
                    .map(|p| f64::from(partials[p * stride + first + c]))
                    .sum::<f64>()
            };
            (0..width).map(|c| column(c) as f32).collect()
        };
        let added = |sums: Vec<f32>| -> Vec<f32> {
            sums.iter()
                .zip(&before)
                .map(|(sum, before)| sum + before)
                .collect()
        };
        for got in in_all_orders(|| {
            let both = [Buffer::new(&before), Buffer::new(&before)];
            let buffer = Buffer::new(&partials);
            super::reduce(
                [Some(&both[0]), Some(&both[1])],
                &buffer,
                parts,
                width,
                [1, 0],
            );
            let one = Buffer::new(&partials[..parts * width]);
            let single = unwritten::<f32>(width);
            super::reduce([Some(&single), None], &one, parts, width, [0, 0]);
            vec![both[0].values(), both[1].values(), single.values()]
        }) {
            close::<f32>("added", &got[0], &added(sums(0, 2 * width)), 1e-6);
            close::<f32>("overwritten", &got[1], &sums(width, 2 * width), 1e-6);
            close::<f32>("single", &got[2], &sums(0, width), 1e-6);
        }
    }
}

#[test]
fn values_are_summed_and_scaled() {
    for n in [1, 7, 256, 10_001] {
        let x = noise(n, 5);
        let want = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        for got in in_all_orders(|| {
            let (out, x) = (unwritten::<f32>(1), Buffer::new(&x));
            let arguments = (out.at(), x.at(), n as u32, 1.0 / n as f32);
            launch("sum_values", [1, 1, 1], [256, 1], 0, arguments);
            vec![out.values()]
        }) {
            assert!((f64::from(got[0][0]) - want).abs() < 1e-7, "{n}");
        }
    }
}
