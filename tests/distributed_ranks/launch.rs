//! Starting ranks and watching them.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rank::{OUT, ROLE};

/// The `mpirun` to start ranks with: that of `CLOZE_TEST_MPIRUN`, or the one on the search path.
pub fn mpirun() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CLOZE_TEST_MPIRUN") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join("mpirun"));
    found.into_iter().find(|file| file.is_file())
}

/// A job under way.
pub struct Job {
    pub child: Child,
    out: PathBuf,
    started: Instant,
}

/// What a job left.
pub struct Done {
    pub status: ExitStatus,
    /// All ranks' output.
    pub text: String,
    pub seconds: f64,
}

/// Starts `role` on so many ranks, with `out` as its folder; 0 ranks is a process without mpirun.
pub fn start(role: &str, ranks: usize, out: &Path, variables: &[(&str, &str)]) -> Job {
    let me = std::env::current_exe().unwrap();
    let mut command = match ranks {
        0 => Command::new(me),
        _ => {
            let mut command = Command::new(mpirun().unwrap());
            command.args(["-n", &ranks.to_string()]).arg(me);
            command
        }
    };
    std::fs::create_dir_all(out).unwrap();
    let log = std::fs::File::create(out.join("log")).unwrap();
    command
        .env(ROLE, role)
        .env(OUT, out)
        .env("RAYON_NUM_THREADS", "1")
        // More ranks than cores, as root, in a container.
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Job {
        child: command.spawn().unwrap(),
        out: out.to_path_buf(),
        started: Instant::now(),
    }
}

/// Runs `role` to its end, which must come within a minute or two.
pub fn run(role: &str, ranks: usize, out: &Path, variables: &[(&str, &str)]) -> Done {
    start(role, ranks, out, variables).wait(Duration::from_secs(120))
}

impl Job {
    /// Waits for the end.
    pub fn wait(mut self, most: Duration) -> Done {
        let deadline = Instant::now() + most;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("no end within {most:?}; it said:\n{}", self.text());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Done {
            status,
            text: self.text(),
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }

    fn text(&self) -> String {
        let mut bytes = Vec::new();
        std::fs::File::open(self.out.join("log"))
            .and_then(|mut log| log.read_to_end(&mut bytes))
            .unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Done {
    /// Checks that all went well.
    pub fn expect(self, what: &str) -> Self {
        assert!(
            self.status.success(),
            "{what}: {}\n{}",
            self.status,
            self.text
        );
        self
    }

    /// Checks that it failed and said this.
    pub fn expect_failure(self, message: &str) -> Self {
        assert!(!self.status.success(), "should have failed:\n{}", self.text);
        assert!(
            self.text.contains(message),
            "{message:?} is not in:\n{}",
            self.text
        );
        self
    }
}

/// The lines that a rank wrote.
pub fn lines(out: &Path, rank: usize) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join(format!("rank-{rank}.jsonl"))).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
