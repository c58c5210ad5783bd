//! What concerns a whole process: the memory that large files take, an interrupt, a full disk. One test at a time.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cloze::Error;
use cloze::prelude::*;

use crate::alone;
use crate::small_disk::SmallDisk;

/// Writes ELI5-like records until the file has `megabytes`; returns how many.
fn write_records(path: &Path, megabytes: usize) -> usize {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let (mut bytes, mut rows) = (0, 0);
    while bytes < megabytes << 20 {
        let answer = format!("Answer {rows}: the light of stars takes years to get here. ")
            .repeat(1 + rows % 30);
        let line = format!(
            "{{\"q_id\": \"q{rows}\", \"title\": \"Question {rows}?\", \"answers\": {{\"a_id\": [\"a{rows}\"], \
             \"text\": [{answer:?}], \"score\": [{}]}}}}\n",
            rows % 100
        );
        file.write_all(line.as_bytes()).unwrap();
        bytes += line.len();
        rows += 1;
    }
    file.flush().unwrap();
    rows
}

/// The memory of this process that no file stands behind, in bytes.
#[cfg(target_os = "linux")]
fn anonymous_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        << 10
}

/// By how much memory grew at most while `work` ran.
#[cfg(target_os = "linux")]
fn peak_growth<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = anonymous_memory();
    let (peak, done) = (AtomicUsize::new(before), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_memory(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, peak.load(Ordering::Relaxed).saturating_sub(before))
    })
}

/// `CLOZE_TEST_MEGABYTES` sets another size.
#[cfg(target_os = "linux")]
#[test]
fn a_large_file_is_processed_in_little_memory() {
    let _alone = alone();
    let megabytes = std::env::var("CLOZE_TEST_MEGABYTES").map_or(256, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.jsonl");
    let rows = write_records(&path, megabytes);
    let limit = 16 << 20;
    let ((), growth) = peak_growth(|| {
        let loader = Loader::new(path.to_str().unwrap())
            .memory_limit(limit)
            .cache_dir(folder.path());
        let dataset = loader.load().unwrap()["train"]
            .flatten()
            .unwrap()
            .shuffle(1)
            .unwrap();
        let words = Map::new(|batch: &Batch| {
            let texts: Vec<Vec<String>> = batch.column("answers.text")?;
            let ids: Vec<Vec<u32>> = texts
                .iter()
                .map(|texts| {
                    texts
                        .iter()
                        .flat_map(|text| text.split(' ').map(|word| word.len() as u32))
                        .collect()
                })
                .collect();
            Batch::new().with_column("input_ids", ids)
        });
        let words = words
            .batched()
            .remove_columns(dataset.column_names())
            .memory_limit(limit)
            .cache_dir(folder.path());
        let ids = dataset.map(words).unwrap();
        assert_eq!(ids.len(), rows);
        let blocks = ids.group_texts(GroupTexts::new(128).cache(false)).unwrap();
        assert!(blocks.len() > megabytes * 1000);
    });
    println!(
        "{megabytes} MB of JSON lines: memory grew by {} MB",
        growth >> 20
    );
    // Chunks under way and their threads' heaps take some megabytes per core; the file's size does not count.
    let cores = std::thread::available_parallelism().unwrap().get();
    let most = (64 << 20) + cores * (32 << 20);
    assert!(
        growth < most,
        "memory grew by {} MB, more than {} MB",
        growth >> 20,
        most >> 20
    );
}

#[test]
fn an_interrupt_ends_a_map_between_rows() {
    let _alone = alone();
    let dataset = Dataset::builder()
        .column("n", (0..1000).collect::<Vec<i64>>())
        .build()
        .unwrap();
    let slow = Map::new(|batch: &Batch| {
        if batch.rows().start == 20 {
            cloze::interrupt::request();
        }
        std::thread::sleep(Duration::from_millis(10));
        Ok(batch.clone())
    });
    let began = Instant::now();
    let error = dataset.map(slow.num_proc(1)).unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "all rows would take 10 s"
    );
    assert!(!cloze::interrupt::is_requested());
}

#[test]
fn an_interrupt_ends_a_map_and_keeps_the_dataset() {
    let _alone = alone();
    let dataset = Dataset::builder()
        .column("n", (0..100_000).collect::<Vec<i64>>())
        .build()
        .unwrap();
    let slow = Map::new(|batch: &Batch| {
        if batch.rows().start == 5000 {
            cloze::interrupt::request();
        }
        std::thread::sleep(Duration::from_millis(5));
        Ok(batch.clone())
    });
    let error = dataset.map(slow.batched().num_proc(2)).unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert_eq!(error.to_string(), "interrupted while mapping a dataset");
    assert!(
        !cloze::interrupt::is_requested(),
        "the request was answered"
    );
    assert_eq!(
        dataset
            .filter(|row| row["n"].as_i64() > Some(99_997))
            .unwrap()
            .len(),
        2
    );
}

#[test]
#[ignore = "the test after this one runs it in an environment of its own"]
fn maps_with_the_default_cache() {
    let dataset = Dataset::builder()
        .column("n", vec![1i64, 2])
        .build()
        .unwrap();
    let map = Map::new(|batch: &Batch| Ok(batch.clone()))
        .batched()
        .fingerprint("as it is");
    assert_eq!(dataset.map(map).unwrap().len(), 2);
}

#[test]
fn the_environment_moves_or_disables_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let kept_in =
        |folder: &Path| std::fs::read_dir(folder.join("datasets")).map_or(0, |files| files.count());
    let run = |variables: &[(&str, &Path)]| {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "dataset_process::maps_with_the_default_cache",
                "--ignored",
            ])
            .env_remove("CLOZE_CACHE")
            .env_remove("CLOZE_NO_CACHE")
            .envs(variables.iter().copied())
            .output()
            .unwrap()
            .status;
        assert!(status.success());
    };
    let [off, moved, usual] = ["off", "moved", "usual"].map(|name| folder.path().join(name));
    run(&[("CLOZE_CACHE", &off), ("CLOZE_NO_CACHE", Path::new("1"))]);
    assert_eq!(kept_in(&off), 0);
    run(&[("CLOZE_CACHE", &moved)]);
    assert_eq!(kept_in(&moved), 1);
    run(&[
        ("XDG_CACHE_HOME", &usual),
        ("CLOZE_NO_CACHE", Path::new("0")),
    ]);
    assert_eq!(kept_in(&usual.join("cloze")), 1);
}

#[test]
fn a_full_disk_loses_nothing() {
    let _alone = alone();
    let Some(disk) = SmallDisk::mount(4 << 10) else {
        return;
    };
    let disk = disk.path();
    // Text that no format can pack.
    let texts: Vec<String> = (0..200_000u32)
        .map(|n| blake3::hash(&n.to_le_bytes()).to_string())
        .collect();
    let dataset = Dataset::builder().column("text", texts).build().unwrap();
    let few = dataset.slice(0..1000);

    let saved = disk.join("saved");
    few.save_to_disk(&saved).unwrap();
    few.to_json_lines(disk.join("rows.jsonl")).unwrap();
    few.to_parquet(disk.join("rows.parquet")).unwrap();
    let full = |result: cloze::Result<()>| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("the disk is full"), "{error}");
    };
    full(dataset.save_to_disk(&saved));
    full(dataset.to_json_lines(disk.join("rows.jsonl")));
    full(dataset.to_parquet(disk.join("rows.parquet")));
    assert_eq!(Dataset::load_from_disk(&saved).unwrap().len(), 1000);
    for name in ["rows.jsonl", "rows.parquet"] {
        let path = disk.join(name);
        assert_eq!(
            load_dataset(path.to_str().unwrap()).unwrap()["train"].len(),
            1000,
            "{name}"
        );
    }
    assert_eq!(std::fs::read_dir(disk).unwrap().count(), 3, "no remains");

    // The cache does without what does not fit, and says so only where memory does not hold the result either.
    let map = || {
        Map::new(|batch: &Batch| {
            batch
                .clone()
                .with_column("again", batch.column::<String>("text")?)
        })
        .batched()
        .fingerprint("again")
        .cache_dir(disk.join("cache"))
    };
    assert_eq!(dataset.map(map()).unwrap().len(), 200_000);
    let error = dataset
        .map(map().memory_limit(1 << 20))
        .unwrap_err()
        .to_string();
    assert!(error.contains("the disk is full"), "{error}");
    assert_eq!(
        std::fs::read_dir(disk.join("cache/datasets"))
            .unwrap()
            .count(),
        0,
        "no remains in the cache"
    );
}
