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
fn sums_and_multiples_agree_with_the_cpu_in_every_type() {
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}

fn check_repeated<T: Element>() {
    for (rows, width, grid) in [(1, 1, 1), (5, 7, 1), (9, 64, 2), (3, 1000, 1)] {
        let n = rows * width;
        let (x, y) = (rounded::<T>(&noise(n, 1)), rounded::<T>(&noise(width, 2)));
        let factors = noise(rows, 3);
        let sum: Vec<f32> = (0..n).map(|i| x[i] + y[i % width]).collect();
        let scaled: Vec<f32> = (0..n).map(|i| x[i] * factors[i / width]).collect();
        let square: Vec<f32> = x.iter().map(|x| x * x).collect();
        for got in in_all_orders(|| {
            let (x, y) = (activations::<T>(&x), activations::<T>(&y));
            let factors = Buffer::new(&factors);
            let [out, rows, product] = [(); 3].map(|()| unwritten::<T>(n));
            let run = |name: &str, to: &Buffer<T>, other| {
                let arguments = (to.at(), x.at(), other, n as u64, width as u64);
                let name = format!("{name}_{}", T::NAME);
                launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
            };
            run("add_repeated", &out, y.at());
            run("mul_rows", &rows, factors.at());
            let arguments = (product.at(), x.at(), x.at(), n as u64);
            let name = format!("mul_{}", T::NAME);
            launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
            vec![widened(&out), widened(&rows), widened(&product)]
        }) {
            assert_eq!(got[0], rounded::<T>(&sum));
            assert_eq!(got[1], rounded::<T>(&scaled));
            assert_eq!(got[2], rounded::<T>(&square));
        }
    }
}

#[test]
fn repeated_operands_and_row_products_agree_with_the_cpu() {
    check_repeated::<f32>();
    check_repeated::<bf16>();
    check_repeated::<f16>();
}
