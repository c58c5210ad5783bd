//! `cloze doctor`: reports what is installed, what is missing, and how to fix it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::finding::Finding::{self, Absent, Bad, Good};
use super::kernelspec;
use crate::toolchain::Toolchain;
use crate::toolchain::environment::cache_folder;
use crate::toolchain::prelude::Sources;
use crate::{Error, Result};

/// Free disk space, in GiB, below which a build may fail.
const ENOUGH_GIB: f64 = 5.0;

/// Runs every check and prints the results. Fails if something is missing that notebooks need.
pub fn doctor() -> Result<()> {
    let toolchain = Toolchain::find();
    let looks: [(&str, Finding); 8] = [
        ("compiler", compiler(&toolchain)),
        ("standard library's sources", library_sources(&toolchain)),
        ("linker", linker(&toolchain)),
        ("sources of Cloze", own_sources()),
        ("Jupyter", jupyter()),
        ("kernel", kernel()),
        ("GPU", gpu()),
        ("cache", cache()),
    ];
    let mut bad = 0;
    for (what, finding) in &looks {
        let (mark, text) = match finding {
            Good(text) => ("ok", text),
            Absent(text) => ("--", text),
            Bad(text) => {
                bad += 1;
                ("!!", text)
            }
        };
        println!("{mark} {what}: {}", text.replace('\n', "\n   "));
    }
    match bad {
        0 => Ok(()),
        1 => Err("one problem must be fixed before notebooks can run".into()),
        _ => Err(format!("{bad} problems must be fixed before notebooks can run").into()),
    }
}

fn compiler(toolchain: &Result<Toolchain>) -> Finding {
    match toolchain {
        Ok(toolchain) => Good(format!(
            "{} in {}",
            toolchain.name(),
            toolchain.sysroot.display()
        )),
        Err(error) => Bad(error.to_string()),
    }
}

fn library_sources(toolchain: &Result<Toolchain>) -> Finding {
    match toolchain {
        Ok(toolchain) if toolchain.has_sources() => Good("there".into()),
        Ok(_) => Bad(
            "missing, so the types of variables can't be inferred: rustup component add rust-src"
                .into(),
        ),
        Err(_) => Bad("no compiler".into()),
    }
}

fn linker(toolchain: &Result<Toolchain>) -> Finding {
    if !succeeds(Command::new("cc").arg("--version")) {
        return Bad("`cc`, which links Rust programs, is missing: install gcc or clang".into());
    }
    if on_path("mold") {
        return Good("mold".into());
    }
    let own = toolchain.as_ref().ok().map(|t| {
        t.sysroot
            .join("lib/rustlib")
            .join(&t.host)
            .join("bin/gcc-ld/ld.lld")
    });
    // The default linker of this target since Rust 1.90.
    if own.is_some_and(|linker| linker.exists())
        && cfg!(all(target_os = "linux", target_arch = "x86_64"))
    {
        return Good("rust-lld, the toolchain's own".into());
    }
    Absent("the system's, which is slow: install mold to compile cells faster".into())
}

fn own_sources() -> Finding {
    match Sources::own() {
        Some(sources) => Good(sources.to_string()),
        None => Bad(Sources::missing().to_string()),
    }
}

fn jupyter() -> Finding {
    match kernelspec::find_jupyter() {
        Some(path) => Good(format!("JupyterLab, {}", path.display())),
        None => Absent(
            "JupyterLab is not on the path (pipx install jupyterlab); `cloze run` works without it"
                .into(),
        ),
    }
}

fn kernel() -> Finding {
    match kernelspec::find() {
        Some(folder) => Good(folder.display().to_string()),
        None => Absent("not installed for Jupyter: cloze install".into()),
    }
}

fn gpu() -> Finding {
    super::gpu::look(kernelspec::find().as_deref())
}

fn cache() -> Finding {
    let folder = match cache_folder() {
        Ok(folder) => folder,
        Err(error) => return Bad(error.to_string()),
    };
    let used = gib(size(&folder));
    let preludes = preludes(&folder);
    match free_space(&folder) {
        Ok(free) if gib(free) < ENOUGH_GIB => Bad(format!(
            "{}: {used:.1} GiB used, only {:.1} GiB free; a build needs {ENOUGH_GIB:.0} GiB\n{preludes}",
            folder.display(),
            gib(free)
        )),
        Ok(free) => Good(format!(
            "{}: {used:.1} GiB used, {:.0} GiB free\n{preludes}",
            folder.display(),
            gib(free)
        )),
        Err(error) => Bad(error.to_string()),
    }
}

/// Counts the preludes. A build removes old ones.
fn preludes(cache: &Path) -> String {
    let all = crate::toolchain::prelude::list(cache);
    let in_use = all.iter().filter(|prelude| prelude.in_use).count();
    let count = match all.len() {
        0 => return "no prelude is built: cloze install".into(),
        1 => "1 prelude".to_owned(),
        count => format!("{count} preludes"),
    };
    format!("{count}, {in_use} in use; builds remove old ones")
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn free_space(folder: &Path) -> Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path =
        std::ffi::CString::new(folder.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with a NUL byte, and the structure to fill in has the right type; all zeroes are a valid
    // value.
    let (done, stats) = unsafe {
        (
            libc::statvfs(path.as_ptr(), stats.as_mut_ptr()),
            stats.assume_init(),
        )
    };
    if done != 0 {
        return Err(Error::file(folder)(std::io::Error::last_os_error()));
    }
    Ok(stats.f_bavail * stats.f_frsize)
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder: PathBuf| folder.join(name).is_file())
}
