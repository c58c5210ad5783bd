//! Training on several ranks: starts itself under `mpirun`, once for each case, and prints a line a case.
//!
//! Without an `mpirun` it says so and passes. `cargo test --release --test distributed -- NAME` runs the cases whose names
//! contain NAME; tests/README.md tells of the long ones.

#[path = "distributed_ranks/cases.rs"]
mod cases;
#[path = "distributed_ranks/launch.rs"]
mod launch;
#[path = "distributed_ranks/rank.rs"]
mod rank;
#[path = "distributed_ranks/stream.rs"]
mod stream;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(rank::ROLE) {
        return rank::play(&role);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let filters = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'));
    let filters: Vec<&String> = filters.collect();
    if launch::mpirun().is_none() {
        println!(
            "distributed: SKIPPED, there is no mpirun here (Debian: apt-get install openmpi-bin)"
        );
        println!("test result: ok. 0 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in cases::ALL {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let started = std::time::Instant::now();
        let result = std::panic::catch_unwind(case);
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(said) => {
                passed += 1;
                println!("{name}: {said} ... ok ({seconds:.1} s)");
            }
            Err(_) => {
                failed += 1;
                println!("{name} ... FAILED ({seconds:.1} s)");
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}
