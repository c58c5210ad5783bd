use super::*;

fn check<T: Element>() {
    for (n, grid) in [(1, 1), (7, 1), (2048, 1), (5003, 2)] {
        let (a, b) = (rounded::<T>(&noise(n, 1)), rounded::<T>(&noise(n, 2)));
        let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let multiple: Vec<f32> = a.iter().map(|a| a * 0.3).collect();
        for got in in_all_orders(|| {
            let (x, y) = (activations::<T>(&a), activations::<T>(&b));
            let [out, scaled] = [(); 2].map(|()| unwritten::<T>(n));
            let add = |to: &Buffer<T>| {
                let name = format!("add_{}", T::NAME);
                let arguments = (to.at(), x.at(), y.at(), n as u64);
                launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
            };
            let scale = |to: &Buffer<T>, from: &Buffer<T>| {
                let name = format!("scale_{}", T::NAME);
                let arguments = (to.at(), from.at(), n as u64, 0.3f32);
                launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
            };
            add(&out);
            scale(&scaled, &x);
            // In place.
            add(&x);
            scale(&y, &y);
            vec![widened(&out), widened(&scaled), widened(&x), widened(&y)]
        }) {
            assert_eq!(got[0], rounded::<T>(&sum));
            assert_eq!(got[1], rounded::<T>(&multiple));
            assert_eq!(got[2], got[0]);
            let multiple: Vec<f32> = b.iter().map(|b| b * 0.3).collect();
            assert_eq!(got[3], rounded::<T>(&multiple));
        }
    }
}

#[test]
fn sums_and_multiples_are_the_cpus_in_every_type() {
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}
