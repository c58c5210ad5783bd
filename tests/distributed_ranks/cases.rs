//! The cases: each starts ranks, looks at what they left, and says what it saw.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::launch::{lines, run, start};
use crate::rank::{PER_STEP, STEPS};

type Case = fn() -> String;

/// All cases, in order.
pub const ALL: &[(&str, Case)] = &[
    ("join", join),
    ("launch", a_program_starts_ranks),
    ("refuse", refuse),
    ("one", one_rank_trains_like_a_single_process),
    ("equal", many_ranks_train_like_one),
    ("resume", a_run_resumes_on_another_number_of_ranks),
    ("shard", sharding_does_not_change_training),
    ("overlap", overlap_does_not_change_training),
    ("tied", a_tied_table_is_sent_before_its_lookups),
    ("map", ranks_map_their_rows),
    ("evaluate", evaluation_is_distributed),
    ("usr1", usr1_writes_a_checkpoint_and_stops),
    ("faults", a_failure_of_one_rank_ends_all),
    ("kill", a_killed_rank_ends_the_job),
    ("bytes", exchanged_bytes),
    ("exchange", exchange_time),
    ("hidden", hidden_exchange_time),
    ("stream", a_stream_has_one_order),
    ("large_stream", a_stream_takes_little_memory),
];

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// What the ranks of a plain run wrote; it is run once.
fn plain(ranks: usize) -> Vec<Vec<Value>> {
    static RUNS: LazyLock<Mutex<HashMap<usize, Vec<Vec<Value>>>>> = LazyLock::new(Mutex::default);
    let mut runs = RUNS.lock().unwrap();
    let run = runs.entry(ranks).or_insert_with(|| {
        let out = folder();
        run("train", ranks, out.path(), &[]).expect("training");
        (0..ranks.max(1))
            .map(|rank| lines(out.path(), rank))
            .collect()
    });
    run.clone()
}

fn bits(line: &Value, name: &str) -> u64 {
    line[name].as_u64().unwrap()
}

fn join() -> String {
    let out = folder();
    let done = run("facts", 3, out.path(), &[]).expect("joining");
    for rank in 0..3 {
        let fact = format!("Group(rank {rank} of 3, ");
        assert!(done.text.contains(&fact), "{}", done.text);
        assert!(
            done.text.contains(&format!("local {rank}")),
            "{}",
            done.text
        );
    }
    let by = done.text.split("of 3, ").nth(1).unwrap();
    format!("3 ranks: {}", by.split(')').next().unwrap())
}

fn a_program_starts_ranks() -> String {
    let out = folder();
    let done = run("launch", 0, out.path(), &[]).expect("launching");
    for fact in [
        "Group(rank 0 of 2",
        "Group(rank 1 of 2",
        "exit status: 0; distributed training: /nowhere/program on 2 ranks ended with",
    ] {
        assert!(
            done.text.contains(fact),
            "{fact:?} is not in:\n{}",
            done.text
        );
    }
    "2 ranks, started by a program that is none".to_owned()
}

/// A group that can't be joined is refused, with the reason.
fn refuse() -> String {
    let out = folder();
    let slurm = [("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")];
    run("facts", 0, out.path(), &slurm).expect_failure("srun --mpi=pmix");
    let off = [slurm[0], slurm[1], ("CLOZE_DISTRIBUTED", "off")];
    let done = run("facts", 0, out.path(), &off).expect("training alone");
    assert!(done.text.contains("Group(alone)"), "{}", done.text);
    let missing = [
        ("PMI_SIZE", "2"),
        ("PMI_RANK", "0"),
        ("CLOZE_MPI", "/nowhere/libmpi.so"),
    ];
    run("facts", 0, out.path(), &missing).expect_failure("/nowhere/libmpi.so");
    let other = [missing[0], missing[1], ("CLOZE_MPI", "libm.so.6")];
    run("facts", 0, out.path(), &other).expect_failure("it is not an MPI library");
    let torchrun = [
        ("WORLD_SIZE", "2"),
        ("RANK", "0"),
        ("MASTER_ADDR", "localhost"),
        ("TORCHELASTIC_RUN_ID", "none"),
    ];
    run("facts", 0, out.path(), &torchrun).expect_failure("torchrun started this program");
    "no library, no MPI, a world of one, torchrun: each refused with its reason".to_owned()
}

fn one_rank_trains_like_a_single_process() -> String {
    let (plain, alone) = (plain(0).swap_remove(0), plain(1).swap_remove(0));
    assert_eq!(plain.len(), STEPS);
    assert_eq!(plain, alone);
    format!("1 rank: {STEPS} steps bit for bit as without mpirun")
}

/// Losses within 1e-6, equal counts, the same weights on all ranks after every step.
fn many_ranks_train_like_one() -> String {
    let one = plain(0).swap_remove(0);
    let counted = |lines: &[Value]| -> Vec<_> {
        let counts = |line: &Value| (bits(line, "counted"), bits(line, "tokens"));
        lines.iter().map(counts).collect()
    };
    let mut most: f64 = 0.0;
    for ranks in [2, 3, 4] {
        let all = plain(ranks);
        let first = &all[0];
        assert_eq!(first.len(), STEPS);
        assert_eq!(counted(first), counted(&one), "{ranks} ranks");
        for (rank, lines) in all.iter().enumerate() {
            for (own, first) in lines.iter().zip(first) {
                for name in ["step", "bits", "norm", "weights"] {
                    assert_eq!(
                        own[name], first[name],
                        "rank {rank} of {ranks}: {own} {first}"
                    );
                }
            }
        }
        most = most.max(furthest(first, &one));
    }
    let again = folder();
    run("train", 3, again.path(), &[]).expect("training again");
    assert_eq!(lines(again.path(), 0), plain(3)[0], "3 ranks, again");
    format!(
        "2, 3 and 4 ranks: {STEPS} steps of {PER_STEP} batches, losses within {most:.1e} of one process, equal weights after \
         every step, the same bits again"
    )
}

/// The largest relative difference between the losses of two runs.
fn furthest(run: &[Value], expected: &[Value]) -> f64 {
    assert_eq!(run.len(), expected.len());
    let mut most: f64 = 0.0;
    for (step, expected) in run.iter().zip(expected) {
        assert_eq!(step["step"], expected["step"]);
        let (loss, expected) = (step["loss"].as_f64(), expected["loss"].as_f64());
        let difference = (loss.unwrap() / expected.unwrap() - 1.0).abs();
        assert!(difference < 1e-6, "step {}: {difference}", step["step"]);
        most = most.max(difference);
    }
    most
}

fn a_run_resumes_on_another_number_of_ranks() -> String {
    let out = folder();
    run("train", 2, out.path(), &[("STOP_AT", "7")]).expect("two ranks");
    let on = [("RESUME", "1"), ("STOP_AT", "13")];
    run("train", 3, out.path(), &on).expect("three ranks");
    run("train", 0, out.path(), &[("RESUME", "1")]).expect("one process");
    let (whole, parts) = (plain(0).swap_remove(0), lines(out.path(), 0));
    let most = furthest(&parts, &whole);
    for (part, whole) in parts.iter().zip(&whole) {
        assert_eq!(
            (&part["counted"], &part["tokens"]),
            (&whole["counted"], &whole["tokens"])
        );
    }
    format!(
        "2, 3, then 1 rank: stopped after 7 and 13 steps, the same batches, losses within {most:.1e}"
    )
}

fn sharding_does_not_change_training() -> String {
    let one = plain(0).swap_remove(0);
    let shard = ("SHARD", "1");
    let mut most: f64 = 0.0;
    for ranks in [2, 3] {
        let out = folder();
        run("train", ranks, out.path(), &[shard]).expect("training");
        let first = lines(out.path(), 0);
        most = most.max(furthest(&first, &one));
        for rank in 1..ranks {
            for (own, first) in lines(out.path(), rank).iter().zip(&first) {
                assert_eq!(own["weights"], first["weights"], "rank {rank} of {ranks}");
            }
        }
    }
    // Sharded on two ranks, on three, then not at all.
    let out = folder();
    run("train", 2, out.path(), &[shard, ("STOP_AT", "7")]).expect("two ranks");
    let on = [shard, ("RESUME", "1"), ("STOP_AT", "13")];
    run("train", 3, out.path(), &on).expect("three ranks");
    run("train", 0, out.path(), &[("RESUME", "1")]).expect("one process");
    most = most.max(furthest(&lines(out.path(), 0), &one));
    format!(
        "2 and 3 ranks, and 2, 3, then 1 unsharded: losses within {most:.1e}, equal weights after every step"
    )
}

fn overlap_does_not_change_training() -> String {
    for ranks in [2, 3] {
        let out = folder();
        run("train", ranks, out.path(), &[("OVERLAP", "1")]).expect("training with overlap");
        // Byte counts aside: units without a gradient are exchanged too.
        let steps = |mut lines: Vec<Value>| {
            lines
                .iter_mut()
                .for_each(|line| line["bytes"] = Value::Null);
            lines
        };
        let plain = plain(ranks).swap_remove(0);
        assert_eq!(steps(lines(out.path(), 0)), steps(plain), "{ranks} ranks");
    }
    "2 and 3 ranks: the same bits as without".to_owned()
}

/// A tied table that is large enough to go before its lookups: its sums are made in another order.
fn a_tied_table_is_sent_before_its_lookups() -> String {
    let overlap = ("OVERLAP", "1");
    let mut most: f64 = 0.0;
    let mut said = Vec::new();
    for ranks in [2, 3] {
        let outs: Vec<TempDir> = (0..3).map(|_| folder()).collect();
        run("tied", ranks, outs[0].path(), &[]).expect("training");
        for out in &outs[1..] {
            run("tied", ranks, out.path(), &[overlap]).expect("training with overlap");
        }
        let of = |out: usize, rank: usize| lines(outs[out].path(), rank);
        let (plain, first) = (of(0, 0), of(1, 0));
        most = most.max(furthest(&first, &plain));
        for rank in 0..ranks {
            for (own, first) in of(1, rank).iter().zip(&first) {
                assert_eq!(own["weights"], first["weights"], "rank {rank} of {ranks}");
            }
        }
        assert_eq!(of(2, 0), first, "{ranks} ranks, again");
        let bytes = |lines: &[Value]| (bits(&lines[5], "bytes") - bits(&lines[1], "bytes")) as f64;
        let more = bytes(&first) / bytes(&plain) - 1.0;
        // The rows come on top, and nothing comes twice.
        assert!(more > 0.0 && more < 0.05, "{more}");
        said.push(format!("{:.1}%", 100.0 * more));
    }
    format!(
        "2 and 3 ranks: losses within {most:.1e}, equal weights after every step, the same bits again; the rows are {} more bytes",
        said.join(" and ")
    )
}

fn ranks_map_their_rows() -> String {
    let (out, one, cache) = (folder(), folder(), folder());
    let variables = [("CLOZE_CACHE", cache.path().to_str().unwrap())];
    run("map", 3, out.path(), &variables).expect("mapping");
    let found: Vec<Value> = (0..3)
        .map(|rank| lines(out.path(), rank).swap_remove(0))
        .collect();
    let called: Vec<u64> = found.iter().map(|line| bits(line, "called")).collect();
    assert_eq!(called.iter().sum::<u64>(), 10_007);
    assert!(called.iter().all(|&rows| rows >= 3000), "{called:?}");
    // One process finds the parts again.
    run("map", 0, one.path(), &variables).expect("finding");
    let one = lines(one.path(), 0).swap_remove(0);
    assert_eq!(one["called"], 0);
    for line in &found {
        for name in ["rows", "columns", "row", "fingerprint"] {
            assert_eq!(line[name], one[name], "{name}");
        }
    }
    // Without the list the parts are nothing.
    let list = |file: &std::fs::DirEntry| file.path().to_string_lossy().ends_with(".parts.json");
    let entries = cache.path().join("datasets").read_dir().unwrap().flatten();
    let lists: Vec<_> = entries.filter(list).collect();
    assert_eq!(lists.len(), 1);
    std::fs::remove_file(lists[0].path()).unwrap();
    let anew = folder();
    run("map", 0, anew.path(), &variables).expect("mapping alone");
    let anew = lines(anew.path(), 0).swap_remove(0);
    assert_eq!(
        (&anew["called"], &anew["row"]),
        (&Value::from(10_007), &one["row"])
    );
    assert_eq!(anew["fingerprint"], one["fingerprint"]);
    format!("3 ranks: {called:?} of 10007 rows each, the list last, found again by one process")
}

fn evaluation_is_distributed() -> String {
    let mut found = Vec::new();
    for ranks in [0, 2, 3] {
        let out = folder();
        run("evaluate", ranks, out.path(), &[]).expect("evaluating");
        for rank in 0..ranks.max(1) {
            found.push(lines(out.path(), rank).swap_remove(0));
        }
    }
    assert_eq!(found[0]["samples"], 57);
    assert_eq!(found[0]["predicted"], 57);
    assert!(found.iter().all(|line| line == &found[0]));
    format!(
        "1, 2 and 3 ranks: the same loss to the bit over {} tokens, no example twice",
        found[0]["counted"]
    )
}

fn pids(out: &Path, ranks: usize) -> Vec<i32> {
    let pid = |rank| std::fs::read_to_string(out.join(format!("pid-{rank}")));
    let pids = (0..ranks).filter_map(|rank| pid(rank).ok()?.parse().ok());
    pids.collect()
}

/// Waits until every rank has taken a step.
fn wait_for_steps(out: &Path, ranks: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let begun = |rank: usize| {
        std::fs::metadata(out.join(format!("rank-{rank}.jsonl"))).is_ok_and(|file| file.len() > 0)
    };
    while !(0..ranks).all(begun) {
        assert!(Instant::now() < deadline, "no step within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn send(pid: i32, signal: libc::c_int) {
    // SAFETY: a signal to a process that this test started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn lives(pid: i32) -> bool {
    // A zombie that nobody has waited for yet does not live.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| state != 'Z')
}

fn usr1_writes_a_checkpoint_and_stops() -> String {
    let out = folder();
    let job = start("long", 2, out.path(), &[]);
    wait_for_steps(out.path(), 2);
    send(job.child.id() as i32, libc::SIGUSR1);
    let done = job.wait(Duration::from_secs(20)).expect("stopping");
    let said = done
        .text
        .lines()
        .find_map(|line| line.strip_prefix("stopped after "));
    let step = said.unwrap().split(' ').next().unwrap().to_owned();
    let checkpoint = out
        .path()
        .join("checkpoints")
        .join(format!("checkpoint-{step}"));
    assert!(
        checkpoint.join("checkpoint.json").is_file(),
        "{}",
        done.text
    );
    let next = (step.parse::<usize>().unwrap() + 1).to_string();
    let on = [("RESUME", "1"), ("STOP_AT", next.as_str())];
    run("long", 3, out.path(), &on).expect("going on");
    format!("2 ranks: USR1 to mpirun, a checkpoint after step {step}, gone on on 3 ranks")
}

fn a_failure_of_one_rank_ends_all() -> String {
    let quick = |role: &str, ranks: usize, message: &str| {
        let out = folder();
        let done = run(role, ranks, out.path(), &[]).expect_failure(message);
        assert!(done.seconds < 20.0, "{role}: {} s", done.seconds);
        // A launcher may end a moment before the ranks that it has killed are gone.
        let deadline = Instant::now() + Duration::from_secs(5);
        let ranks = pids(out.path(), ranks);
        while ranks.iter().any(|&pid| lives(pid)) {
            assert!(Instant::now() < deadline, "{role}: an orphan");
            std::thread::sleep(Duration::from_millis(20));
        }
        done
    };
    quick("panic", 3, "rank 1 panicked");
    let done = quick(
        "callback",
        3,
        "rank 0 got: distributed training: rank 1 failed: a test's error",
    );
    assert!(
        done.text.contains("rank 1 got: a test's error"),
        "{}",
        done.text
    );
    let done = quick("nan", 3, "rank 0 got: the loss became NaN at step 4");
    assert!(
        done.text
            .contains("rank 2 got: the loss became NaN at step 4"),
        "{}",
        done.text
    );
    let done = quick(
        "full",
        2,
        "rank 1 got: distributed training: rank 0 failed: could not write",
    );
    assert!(
        done.text.contains("rank 0 got: could not write"),
        "{}",
        done.text
    );
    quick("leave", 2, "rank 1 ended its program while rank 0 was at");
    quick("data", 2, "rank 1 has other training data");
    "2 and 3 ranks: a panic, a callback's error, NaN, a full disk, an early end, other data: no hang, all say why".to_owned()
}

fn a_killed_rank_ends_the_job() -> String {
    let moments = match std::env::var("CLOZE_TEST_KILLS") {
        Ok(count) => count.parse().unwrap(),
        Err(_) => 2,
    };
    let seed = std::process::id() as u64;
    let (mut slowest, mut resumed): (f64, usize) = (0.0, 0);
    for moment in 0..moments {
        let out = folder();
        let ranks = 3;
        let job = start("long", ranks, out.path(), &[]);
        wait_for_steps(out.path(), ranks);
        // Any moment of the next second and a half, any rank.
        let draw = blake3::hash(&(seed * 1000 + moment).to_le_bytes());
        let [rank, low, high, ..] = *draw.as_bytes();
        let wait = u64::from(u16::from_le_bytes([low, high])) * 1500 / 65536;
        std::thread::sleep(Duration::from_millis(wait));
        let pids = pids(out.path(), ranks);
        let killed = Instant::now();
        send(pids[usize::from(rank) % ranks], libc::SIGKILL);
        let done = job.wait(Duration::from_secs(10));
        slowest = slowest.max(killed.elapsed().as_secs_f64());
        assert!(!done.status.success(), "{}", done.text);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!pids.iter().any(|&pid| lives(pid)), "an orphan");
        if out
            .path()
            .join("checkpoints")
            .read_dir()
            .is_ok_and(|mut all| {
                all.any(|entry| {
                    entry
                        .unwrap()
                        .file_name()
                        .to_string_lossy()
                        .starts_with("checkpoint-")
                })
            })
        {
            let before = newest(&out.path().join("checkpoints"));
            let stop = (before + 1).to_string();
            let on = [("RESUME", "1"), ("STOP_AT", stop.as_str())];
            let done = run("long", 0, out.path(), &on).expect("going on");
            assert!(!done.text.contains("damaged"), "{}", done.text);
            assert!(
                done.text.contains(&format!("stopped after {stop} steps")),
                "{}",
                done.text
            );
            resumed += 1;
        }
    }
    format!(
        "3 ranks: {moments} times one was killed at a random moment, the job ended within {slowest:.1} s with no orphan, and \
         {resumed} newest checkpoints were whole and went on"
    )
}

/// The step of the newest checkpoint.
fn newest(checkpoints: &Path) -> usize {
    let entries = checkpoints.read_dir().unwrap().flatten();
    let step = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("checkpoint-")?.parse().ok()
    };
    entries.filter_map(step).max().unwrap()
}

fn exchanged_bytes() -> String {
    let mut said = Vec::new();
    for ranks in [2, 3, 4] {
        let params: usize = crate::rank::model(1)
            .params()
            .iter()
            .map(|p| p.elem_count())
            .sum();
        let mut all = 0;
        for lines in plain(ranks) {
            all += bits(&lines[STEPS - 1], "bytes") - bits(&lines[0], "bytes");
        }
        let steps = (STEPS - 1) as f64;
        let each = all as f64 / steps / ranks as f64;
        let expected = 2.0 * (ranks - 1) as f64 / ranks as f64 * 4.0 * params as f64;
        assert!((each / expected - 1.0).abs() < 0.01, "{each} {expected}");
        said.push(format!("{ranks} ranks {:.1} KB", each / 1e3));
    }
    format!(
        "a step and rank: {}: 2(N-1)/N of the gradients",
        said.join(", ")
    )
}

fn exchange_time() -> String {
    let mut said = Vec::new();
    // How long things take is no matter of a plain run.
    let limit = match std::env::var_os("CLOZE_TEST_TIMES") {
        Some(_) => 1.15,
        None => f64::INFINITY,
    };
    for ranks in [2, 3] {
        // Others may be at work on this machine: the best of three counts.
        let mut best = (f64::INFINITY, 0.0, 0.0);
        for _ in 0..3 {
            let out = folder();
            let done = run("exchange", ranks, out.path(), &[]).expect("exchanging");
            let line = done
                .text
                .lines()
                .find_map(|line| line.strip_prefix("exchange "));
            let numbers: Vec<f64> = line
                .unwrap()
                .split(' ')
                .map(|n| n.parse().unwrap())
                .collect();
            let ratio = numbers[1] / numbers[2];
            if ratio < best.0 {
                best = (ratio, numbers[0], numbers[1]);
            }
            if ratio <= limit {
                break;
            }
        }
        let (ratio, count, seconds) = best;
        assert!(
            ratio <= limit,
            "{ranks} ranks: {ratio} times the bare calls"
        );
        said.push(format!(
            "{ranks} ranks {:.0} ms for {:.1} MB, {ratio:.2} times the bare calls",
            1e3 * seconds,
            4e-6 * count
        ));
    }
    said.join(", ")
}

/// Exchanges beside the backward pass: how long they take, and how much of that is left to wait for at its end.
fn hidden_exchange_time() -> String {
    let mut said = Vec::new();
    for ranks in [2, 3] {
        let done = run("hidden", ranks, folder().path(), &[]).expect("training with overlap");
        let line = (done.text.lines()).find_map(|line| line.strip_prefix("hidden "));
        let numbers = line.unwrap().split(' ').map(|n| n.parse::<f64>().unwrap());
        let [step, exchange, wait] = numbers.collect::<Vec<_>>()[..] else {
            panic!("{}", done.text);
        };
        assert!(
            exchange > 0.0 && wait > 0.0 && wait < step,
            "{step} {exchange} {wait}"
        );
        said.push(format!(
            "{ranks} ranks: steps of {:.0} ms, exchanges of {:.0} ms, of which {:.0} ms are waited for: {:.0}% hidden",
            1e3 * step,
            1e3 * exchange,
            1e3 * wait,
            100.0 * (1.0 - wait / exchange)
        ));
    }
    said.join("; ")
}

/// What the ranks of a streaming run left: the batches by number, the highest memory of a rank, the losses, the rows tokenized.
struct Streamed {
    batches: Vec<Value>,
    peak: f64,
    losses: Vec<f64>,
    rows: Vec<u64>,
    seconds: f64,
}

fn streamed(data: &Path, out: &Path, ranks: usize, more: &[(&str, &str)]) -> Streamed {
    let cache = folder();
    let data = data.to_str().unwrap();
    let cache_dir = cache.path().to_str().unwrap();
    let variables = [&[("CLOZE_CACHE", cache_dir), ("DATA", data)], more].concat();
    let done = start("stream", ranks, out, &variables)
        .wait(Duration::from_secs(7200))
        .expect("streaming");
    assert_eq!(
        cache.path().read_dir().unwrap().count(),
        0,
        "a cache was written"
    );
    let mut found = Streamed {
        batches: Vec::new(),
        peak: 0.0,
        losses: Vec::new(),
        rows: Vec::new(),
        seconds: done.seconds,
    };
    for rank in 0..ranks.max(1) {
        for line in lines(out, rank) {
            let Some(bytes) = line["peak"].as_f64() else {
                found.batches.push(line);
                continue;
            };
            found.peak = found.peak.max(bytes);
            found.rows.push(bits(&line, "rows"));
            let losses = line["losses"].as_array().unwrap().iter();
            found.losses = losses.map(|loss| loss.as_f64().unwrap()).collect();
        }
    }
    // A batch may have been made again: the first one, to know the data by, or behind an interrupt.
    found.batches.sort_by_key(|line| bits(line, "batch"));
    found.batches.dedup();
    found
}

fn alike(found: &Streamed, expected: &Streamed) -> f64 {
    let numbers: Vec<u64> = found
        .batches
        .iter()
        .map(|line| bits(line, "batch"))
        .collect();
    assert_eq!(numbers, (0..96).collect::<Vec<u64>>());
    assert_eq!(found.batches, expected.batches);
    assert!(!found.losses.is_empty());
    assert_eq!(found.losses.len(), expected.losses.len());
    let pairs = found.losses.iter().zip(&expected.losses);
    let most = pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    assert!(most < 1e-6, "{most}");
    most
}

/// JSON lines through flatten, tokenize, group, shuffle and train: the same batches on 1, 2 and 3 ranks, and after stops.
fn a_stream_has_one_order() -> String {
    let data = folder();
    let rows = crate::stream::write(data.path(), 6 << 20);
    let plain = |ranks| streamed(data.path(), folder().path(), ranks, &[]);
    let one = plain(0);
    let mut most: f64 = 0.0;
    for ranks in [2, 3] {
        let found = plain(ranks);
        most = most.max(alike(&found, &one));
        // Six lanes, of which each rank reads its own alone.
        let all: u64 = found.rows.iter().sum();
        assert!(
            all < one.rows[0] * 3 / 2,
            "{:?} of {:?}",
            found.rows,
            one.rows
        );
    }
    let out = folder();
    let stop = |ranks, more: &[(&str, &str)]| streamed(data.path(), out.path(), ranks, more);
    stop(2, &[("STOP_AT", "3")]);
    stop(3, &[("RESUME", "1"), ("STOP_AT", "6")]);
    let resumed = stop(0, &[("RESUME", "1")]);
    // What other runs wrote into the folder is not overwritten; all of it is one order.
    let mut all = resumed;
    for rank in 1..3 {
        let lines = lines(out.path(), rank).into_iter();
        all.batches
            .extend(lines.filter(|line| line["peak"].is_null()));
    }
    all.batches.sort_by_key(|line| bits(line, "batch"));
    all.batches.dedup();
    most = most.max(alike(&all, &one));
    format!(
        "1, 2 and 3 ranks, and 2, 3, then 1: {rows} rows, plain and gzip, 8 steps, the same 96 batches, losses within {most:.1e}, \
         {:?} rows tokenized by one process, no cache",
        one.rows[0]
    )
}

/// As above with much data and little memory: one process reads it from beginning to end, and trains on one in 64 examples.
fn a_stream_takes_little_memory() -> String {
    let Ok(megabytes) = std::env::var("CLOZE_TEST_STREAM_MB") else {
        return "not asked for (CLOZE_TEST_STREAM_MB)".to_owned();
    };
    let megabytes: u64 = megabytes.parse().unwrap();
    let data = folder();
    let rows = crate::stream::write(data.path(), megabytes << 20);
    // A step takes about two megabytes.
    let steps = (megabytes * 11 / 20).max(8).to_string();
    let mut said = Vec::new();
    let mut first: Option<Streamed> = None;
    for (ranks, steps) in [(0, steps.as_str()), (2, "8"), (3, "8")] {
        let variables = [("STEPS", steps), ("BATCH", "2048"), ("TRAINED", "32")];
        let found = streamed(data.path(), folder().path(), ranks, &variables);
        assert!(found.peak < 1.5e9, "{} bytes", found.peak);
        said.push(format!(
            "{} ranks {steps} steps, {:?} rows read, at most {:.0} MB each, {:.0} s",
            ranks.max(1),
            found.rows,
            found.peak / 1e6,
            found.seconds
        ));
        match &first {
            Some(first) => assert_eq!(found.batches, first.batches),
            None => {
                assert!(found.rows[0] > rows, "{} of {rows} rows", found.rows[0]);
                first = Some(found);
            }
        }
    }
    format!(
        "{megabytes} MB of JSON lines ({rows} rows), the same batches: {}",
        said.join("; ")
    )
}
