use super::*;

fn run(name: &str, threads: usize) -> (Result<(), String>, Vec<f32>) {
    let out = unwritten::<f32>(threads);
    let result = try_launch(name, [1, 1, 1], [threads, 1], 4 * threads, (out.at(),));
    (result, out.values())
}

#[test]
fn a_correct_kernel_runs() {
    let (result, out) = run("fault_none", 64);
    assert_eq!(result, Ok(()));
    let want: Vec<f32> = (0..64).rev().map(|i| i as f32).collect();
    assert_eq!(out, want);
    in_all_orders(|| vec![run("fault_none", 64).1]);
}

#[test]
#[should_panic(expected = "the order of threads shows")]
fn a_missing_barrier_is_found() {
    in_all_orders(|| vec![run("fault_missing_barrier", 64).1]);
}

#[test]
fn shared_memory_is_initialized_with_nan() {
    assert!(
        run("fault_unwritten_shared", 64)
            .1
            .iter()
            .all(|x| x.is_nan())
    );
}

#[test]
fn faults_are_distinguished() {
    for (name, complaint) in [
        (
            "fault_divergent_barrier",
            "a barrier that not all threads reach",
        ),
        ("fault_two_barriers", "a barrier that not all threads reach"),
        (
            "fault_divergent_shuffle",
            "a warp function that not all lanes reach",
        ),
        (
            "fault_past_the_end",
            "access outside of every buffer: block (0, 0, 0), thread (63, 0, 0)",
        ),
        (
            "fault_past_shared",
            "access outside of every buffer: block (0, 0, 0), thread (63, 0, 0)",
        ),
        ("fault_misaligned", "undefined behaviour"),
    ] {
        let error = run(name, 64).0.expect_err(name);
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
#[should_panic(expected = "a kernel wrote beside a buffer")]
fn writing_before_a_buffer_is_found() {
    let out = Buffer::new(&[0f32; 32]);
    // SAFETY: the four bytes in front of the buffer belong to its mapping.
    unsafe { out.at().cast::<f32>().sub(1).write(1.0) };
}

#[test]
fn narrow_types_round_as_the_half_crate_does() {
    fn check<T: Element>(bits: impl Fn(u16) -> T) {
        let all: Vec<T> = (0..=u16::MAX).map(bits).collect();
        let wide: Vec<f32> = all.iter().map(|x| x.widen()).collect();
        // Each number, the middle between it and the next, and the neighbours of that.
        let mut x = Vec::new();
        for pair in wide.windows(2) {
            let middle = pair[0] / 2.0 + pair[1] / 2.0;
            x.extend([pair[0], middle, middle.next_down(), middle.next_up()]);
        }
        let count = x.len();
        let mut padded = all.clone();
        padded.resize(count, T::round(0.0));
        let (out, back) = (unwritten::<T>(count), unwritten::<f32>(count));
        let (x_buffer, all_buffer) = (Buffer::new(&x), Buffer::new(&padded));
        launch(
            &format!("convert_{}", T::NAME),
            [1, 1, 1],
            [32, 1],
            0,
            (
                out.at(),
                back.at(),
                x_buffer.at(),
                all_buffer.at(),
                count as u32,
            ),
        );
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        for (got, x) in widened(&out).iter().zip(&x) {
            assert!(same(*got, T::round(*x).widen()), "{x} became {got}");
        }
        for (got, want) in back.values().iter().zip(&wide) {
            assert!(same(*got, *want), "{want} became {got}");
        }
    }
    check(bf16::from_bits);
    check(f16::from_bits);
}
