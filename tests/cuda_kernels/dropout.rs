use super::*;

#[test]
fn the_mask_agrees_with_the_cpu_also_above_32_bit_indexes() {
    for (p, key) in [(0.1, 0), (0.3, u64::MAX), (1.0, 5), (0.999_999_94, 1 << 40)] {
        for start in [0, 12_345, (1u64 << 32) - 50, (7 << 32) - 1] {
            let out = unwritten::<f32>(200);
            launch(
                "mask_factors",
                [1, 1, 1],
                [32, 1],
                0,
                (out.at(), start, 200u32, p, key),
            );
            let mut want = vec![0.0; 200];
            Dropout { p, key }.factors(start, &mut want);
            assert_eq!(out.values(), want, "{p} {key} {start}");
        }
    }
}

#[test]
fn a_part_of_a_tensor_has_that_part_of_the_mask() {
    let half = 1u64 << 32;
    for (base, first) in [
        (0, 0),
        (12_345, 678),
        (half - 50, 0),
        (half - 1000, 900),
        (7 * half + 5, u32::MAX - 100),
        (8 * half - 1, u32::MAX - 200),
    ] {
        let (out, p, key) = (unwritten::<f32>(200), 0.3, 11u64);
        launch(
            "part_factors",
            [1, 1, 1],
            [32, 1],
            0,
            (out.at(), base, first, 200u32, p, key),
        );
        let mut want = vec![0.0; 200];
        Dropout { p, key }.factors(base + u64::from(first), &mut want);
        // 2^32 elements behind the base nothing belongs to the part.
        let within = (u32::MAX - first).min(199) as usize + 1;
        assert_eq!(out.values()[..within], want[..within], "{base} {first}");
    }
}

fn check<T: Element>() {
    for (n, grid) in [(1, 1), (7, 1), (2048, 1), (5003, 2)] {
        for dropout in DROPOUTS {
            let x = rounded::<T>(&noise(n, 1));
            let want = values(&ops::dropout(&tensor(&x, &[n]), dropout).unwrap());
            for got in in_all_orders(|| {
                let (out, x) = (unwritten::<T>(n), activations::<T>(&x));
                let name = format!("dropout_{}", T::NAME);
                let arguments = (out.at(), x.at(), n as u64, dropout.p, dropout.key);
                launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
                // In place.
                let arguments = (x.at(), x.at(), n as u64, dropout.p, dropout.key);
                launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
                vec![widened(&out), widened(&x)]
            }) {
                assert_eq!(got[0], rounded::<T>(&want));
                assert_eq!(got[1], got[0]);
            }
        }
    }
}

#[test]
fn every_type_drops_the_same_elements_as_the_cpu() {
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}
