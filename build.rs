//! With the feature `cuda`, compiles the kernels in `src/ops` for one GPU architecture; without it, nothing.
//!
//! Each `.cu` file becomes a fat binary of machine code for that architecture and PTX for later ones, so that nothing is
//! compiled when a program starts, and a kernel that asks for too many registers or too much memory fails here.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};

const OPERATIONS: &str = "src/ops";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_CFG_UNIX").is_none() {
        println!(
            "cargo::error=Cloze runs on Linux and macOS; on Windows build it in WSL 2 (wsl --install)"
        );
        return ExitCode::FAILURE;
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed={OPERATIONS}");
    for name in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "CUDA_PATH", "NVCC"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let architecture = architecture()?;
    println!("cargo::rustc-env=CLOZE_CUDA_COMPUTE_CAP={architecture}");
    let nvcc = nvcc();
    let sources = sources()?;

    let next = AtomicUsize::new(0);
    let threads = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let worker = || {
            let mut done = Ok(());
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                done = done.and_then(|()| compile_one(&nvcc, source, &out, &architecture));
            }
            done
        };
        let workers: Vec<_> = (0..threads.unwrap_or(1).min(sources.len()))
            .map(|_| scope.spawn(worker))
            .collect();
        let panicked = |_| Err("a thread of the build script panicked".to_owned());
        (workers.into_iter())
            .map(|worker| worker.join().unwrap_or_else(panicked))
            .collect()
    });
    results.into_iter().collect::<Result<(), String>>()?;

    let mut table = String::from("/// The compiled kernels by the names of their operations.\n");
    table += "pub(super) static MODULES: &[(&str, &[u8])] = &[\n";
    for source in &sources {
        let binary = binary(source, &out);
        table += &format!("    ({:?}, include_bytes!({binary:?})),\n", name(source));
    }
    table += "];\n";
    std::fs::write(out.join("kernels.rs"), table).map_err(|e| format!("kernels.rs: {e}"))
}

/// The compute capability to compile for, as in `sm_90`.
fn architecture() -> Result<String, String> {
    if let Ok(asked) = std::env::var("CUDA_COMPUTE_CAP") {
        // 90, 90a, 9.0, 120f: a number and perhaps a letter.
        let digits = asked.trim().replace('.', "");
        let number = digits.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let known = number.parse::<u32>().is_ok_and(|n| (10..1000).contains(&n));
        if !known || digits.len() > number.len() + 1 {
            return Err(format!(
                "CUDA_COMPUTE_CAP={asked:?} is no compute capability; write it as 90 for an H100, 89 for an RTX 4090, 80 for an A100"
            ));
        }
        return new_enough(digits);
    }
    let found = Command::new("nvidia-smi")
        .args(["--query-gpu=compute_cap", "--format=csv,noheader"])
        .output();
    let found = found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let lowest = found.ok().and_then(|lines| {
        let number = |line: &str| line.trim().replace('.', "").parse::<u32>().ok();
        lines.lines().filter_map(number).min()
    });
    let lowest = lowest.ok_or_else(|| {
        "nvidia-smi names no GPU to compile for; set CUDA_COMPUTE_CAP to the compute capability of the GPU that will run this \
         (90 for an H100, 89 for an RTX 4090, 86 for an RTX 3090, 80 for an A100)"
            .to_owned()
    })?;
    new_enough(lowest.to_string())
}

/// The capability, unless the kernels' instructions for bf16 are missing there.
fn new_enough(capability: String) -> Result<String, String> {
    let number = capability.trim_end_matches(|c: char| c.is_ascii_lowercase());
    match number.parse::<u32>() {
        Ok(80..) => Ok(capability),
        _ => Err(format!(
            "the kernels need compute capability 8.0 or later (an A100, an RTX 30 or later), and {capability} is less; \
             for an older GPU leave the feature cuda out"
        )),
    }
}

/// The compiler: `NVCC`, that of `CUDA_HOME` or `CUDA_PATH`, or the one in `PATH`.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return nvcc.into();
    }
    ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(|home| Path::new(&home).join("bin/nvcc"))
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}

/// The kernels: `kernel.cu` in an operation's folder, and the files of what operations share.
fn sources() -> Result<Vec<PathBuf>, String> {
    let mut sources = Vec::new();
    for folder in inside(Path::new(OPERATIONS))? {
        if folder.is_dir() {
            sources.extend(inside(&folder)?);
        }
    }
    sources.retain(|path| path.extension().is_some_and(|ending| ending == "cu"));
    sources.sort();
    Ok(sources)
}

fn inside(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).and_then(|entries| {
        let paths = entries.map(|entry| Ok(entry?.path()));
        paths.collect::<std::io::Result<_>>()
    });
    entries.map_err(|e| format!("{}: {e}", folder.display()))
}

/// The name of a file of kernels: that of its folder for an operation's `kernel.cu`.
fn name(source: &Path) -> String {
    let stem = source.file_stem().unwrap_or_default();
    let folder = source.parent().and_then(Path::file_name);
    let name = match stem.to_str() {
        Some("kernel") => folder.unwrap_or(stem),
        _ => stem,
    };
    name.to_string_lossy().into_owned()
}

fn binary(source: &Path, out: &Path) -> PathBuf {
    out.join(name(source)).with_extension("fatbin")
}

fn compile_one(nvcc: &Path, source: &Path, out: &Path, architecture: &str) -> Result<(), String> {
    let output = Command::new(nvcc)
        .args(["-fatbin", "-std=c++17", "-O3", "-Werror", "all-warnings"])
        .arg("-gencode")
        .arg(format!(
            "arch=compute_{architecture},code=[sm_{architecture},compute_{architecture}]"
        ))
        .arg("-o")
        .arg(binary(source, out))
        .arg(source)
        .output()
        .map_err(|e| {
            format!(
                "{} could not be run ({e}); the feature cuda needs the CUDA toolkit: install it, or set CUDA_HOME to where it is",
                nvcc.display()
            )
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "nvcc failed on {}:\n{}{}",
        source.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
