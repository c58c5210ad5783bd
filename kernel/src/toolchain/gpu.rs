//! The machine's GPUs, and what the installed kernel was built for.

use std::fmt;
use std::path::Path;
use std::process::Command;

/// Sets the compute capability for which the CUDA kernels are built; nvcc's build script reads the same variable.
pub const CAPABILITY: &str = "CUDA_COMPUTE_CAP";

/// The state of the machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The number of NVIDIA GPUs on the bus, with or without a driver.
    pub on_the_bus: usize,
    /// The GPUs that the driver knows.
    pub cards: Vec<Card>,
    /// Whether the driver's library can be loaded.
    pub driver: bool,
    /// The highest CUDA version that the driver supports.
    pub driver_cuda: Option<Version>,
    /// The version of nvcc.
    pub toolkit: Option<Version>,
    /// The compute capability that the installed kernel was built for, if it uses GPUs.
    pub built_for: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Card {
    /// Name, driver and memory, as printed by nvidia-smi.
    pub words: String,
    pub capability: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Returns the first version such as "12.4" in `text` after `label`.
    fn after(text: &str, label: &str) -> Option<Self> {
        let (_, rest) = text.split_once(label)?;
        let (major, rest) = rest.trim_start().split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let minor = &rest[..digits.unwrap_or(rest.len())];
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }

    /// Returns the value for CUDA_COMPUTE_CAP, for example 90.
    pub fn digits(self) -> String {
        format!("{}{}", self.0, self.1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Whether kernels compiled for `built_for` ("90", "90a", "120f") run on a GPU of this capability. Later GPUs run the
/// kernels of earlier ones, except those with a letter (a: this capability only; f: its family).
pub fn runs(built_for: &str, capability: Option<Version>) -> bool {
    let Some(capability) = capability else {
        return true;
    };
    let number = built_for.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let Ok(wanted) = number.replace('.', "").parse::<u32>() else {
        return true;
    };
    let has = 10 * capability.0 + capability.1;
    match &built_for[number.len()..] {
        "" => has >= wanted,
        "f" => has >= wanted && has / 10 == wanted / 10,
        _ => has == wanted,
    }
}

impl Machine {
    /// Inspects the machine; `kernelspec` is the folder of the installed kernel.
    pub fn look(kernelspec: Option<&Path>) -> Self {
        let smi = |arguments: &[&str]| {
            let output = Command::new("nvidia-smi").args(arguments).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(text)
        };
        let query = "--query-gpu=compute_cap,name,driver_version,memory.total";
        let cards = smi(&[query, "--format=csv,noheader"]).unwrap_or_default();
        let nvcc = Command::new("nvcc").arg("--version").output().ok();
        Self {
            on_the_bus: on_the_bus(Path::new("/sys/bus/pci/devices")),
            cards: cards.lines().filter_map(Card::read).collect(),
            // SAFETY: loading the driver's library has no side effects beyond making its functions available.
            driver: unsafe { libloading::Library::new("libcuda.so.1") }.is_ok(),
            driver_cuda: smi(&[]).and_then(|text| Version::after(&text, "CUDA Version:")),
            toolkit: nvcc
                .and_then(|nvcc| Version::after(&String::from_utf8_lossy(&nvcc.stdout), "release")),
            built_for: kernelspec.and_then(built_for),
        }
    }
}

impl Card {
    /// Parses "9.0, NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB".
    pub fn read(line: &str) -> Option<Self> {
        let (capability, words) = line.split_once(',')?;
        Some(Self {
            words: words.trim().to_owned(),
            capability: Version::after(capability, ""),
        })
    }
}

/// Counts NVIDIA's display controllers among the devices in this folder.
fn on_the_bus(devices: &Path) -> usize {
    let entries = std::fs::read_dir(devices).into_iter().flatten().flatten();
    let is = |folder: &Path, file: &str, start: &str| {
        std::fs::read_to_string(folder.join(file)).is_ok_and(|text| text.starts_with(start))
    };
    entries
        .filter(|entry| is(&entry.path(), "vendor", "0x10de") && is(&entry.path(), "class", "0x03"))
        .count()
}

/// Returns the capability that the kernel of this kernelspec was built for; `None` if it does not use GPUs.
fn built_for(kernelspec: &Path) -> Option<String> {
    let text = std::fs::read_to_string(kernelspec.join("kernel.json")).ok()?;
    let spec: serde_json::Value = serde_json::from_str(&text).ok()?;
    let arguments = spec["argv"].as_array()?;
    let uses_gpu = arguments.iter().any(|argument| argument == "cuda");
    let capability = spec["env"][CAPABILITY].as_str().unwrap_or("90");
    uses_gpu.then(|| capability.to_owned())
}

/// Returns the compute capability to build for: the environment's, or else that of the first GPU.
pub fn capability() -> Option<String> {
    if let Ok(asked) = std::env::var(CAPABILITY) {
        return Some(asked);
    }
    let machine = Machine::look(None);
    let capability = machine.cards.first()?.capability?;
    Some(capability.digits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_gpus_run_kernels_of_earlier_ones_except_those_with_a_letter() {
        let on = |built_for, major, minor| runs(built_for, Some(Version(major, minor)));
        assert!(on("80", 8, 0) && on("80", 9, 0) && on("8.0", 8, 6) && !on("90", 8, 9));
        assert!(on("90a", 9, 0) && !on("90a", 10, 0));
        assert!(on("120f", 12, 1) && !on("120f", 13, 0));
        assert!(runs("90", None));
    }

    #[test]
    fn versions_are_parsed_from_the_tools_output() {
        let nvcc = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n";
        assert_eq!(Version::after(nvcc, "release"), Some(Version(13, 0)));
        let smi = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4     |";
        assert_eq!(Version::after(smi, "CUDA Version:"), Some(Version(12, 4)));
        assert_eq!(Version::after("no such thing", "release"), None);
        assert!(Card::read("No devices were found").is_none());
        assert_eq!(Card::read("[N/A], Tesla, 1, 2").unwrap().capability, None);
    }

    #[test]
    fn only_nvidia_gpus_on_the_bus_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        for (name, vendor, class) in [
            ("0000:01:00.0", "0x10de\n", "0x030200\n"),
            // The GPU's audio device, and another vendor's GPU.
            ("0000:01:00.1", "0x10de\n", "0x040300\n"),
            ("0000:02:00.0", "0x1002\n", "0x030000\n"),
        ] {
            let device = folder.path().join(name);
            std::fs::create_dir(&device).unwrap();
            std::fs::write(device.join("vendor"), vendor).unwrap();
            std::fs::write(device.join("class"), class).unwrap();
        }
        assert_eq!(on_the_bus(folder.path()), 1);
        assert_eq!(on_the_bus(Path::new("/nowhere")), 0);
    }

    #[test]
    fn the_kernelspec_records_what_the_kernel_was_built_for() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(folder.path().join("kernel.json"), text).unwrap();
        assert_eq!(built_for(folder.path()), None);
        write(r#"{"argv": ["cloze", "kernel", "{connection_file}"]}"#);
        assert_eq!(built_for(folder.path()), None);
        write(
            r#"{"argv": ["cloze", "kernel", "--features", "cuda"], "env": {"CUDA_COMPUTE_CAP": "86"}}"#,
        );
        assert_eq!(built_for(folder.path()).as_deref(), Some("86"));
    }
}
