//! The GPU, as `cloze doctor` sees it: what is there, what is missing, and how to mend it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::doctor::Finding::{self, Absent, Bad, Good};

/// The compute capability that the CUDA kernels of a build are for; nvcc's build script reads the same variable.
pub const CAPABILITY: &str = "CUDA_COMPUTE_CAP";

/// What a look at the machine found.
#[derive(Clone, Debug, Default)]
struct Machine {
    /// NVIDIA's GPUs on the bus, whether or not there is a driver for them.
    on_the_bus: usize,
    /// Those that the driver knows.
    cards: Vec<Card>,
    /// Whether the driver's library can be loaded.
    driver: bool,
    /// The CUDA version that the driver supports at most.
    driver_cuda: Option<Version>,
    /// nvcc's.
    toolkit: Option<Version>,
    /// What the installed kernel was built for, if it uses GPUs.
    built_for: Option<String>,
}

#[derive(Clone, Debug)]
struct Card {
    /// Name, driver and memory, as nvidia-smi says it.
    words: String,
    capability: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    /// The first "12.4" in `text` behind `label`.
    fn after(text: &str, label: &str) -> Option<Self> {
        let (_, rest) = text.split_once(label)?;
        let (major, rest) = rest.trim_start().split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let minor = &rest[..digits.unwrap_or(rest.len())];
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }

    /// As CUDA_COMPUTE_CAP wants it: 90.
    fn digits(self) -> String {
        format!("{}{}", self.0, self.1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What `cloze doctor` says about GPUs. `kernelspec` is the installed kernel's folder.
pub fn look(kernelspec: Option<&Path>) -> Finding {
    explain(&Machine::look(kernelspec))
}

fn explain(machine: &Machine) -> Finding {
    let Machine {
        on_the_bus,
        cards,
        driver,
        driver_cuda,
        toolkit,
        built_for,
    } = machine;
    // Whoever installed the kernel for GPUs needs what others only could use.
    let missing = |text: String| match built_for {
        Some(_) => Bad(text),
        None => Absent(text),
    };
    if cards.is_empty() {
        return match (on_the_bus, built_for) {
            (0, None) => Absent("none found: models run on the CPU".into()),
            (0, Some(_)) => Bad(
                "none found, but the installed kernel is built for one: install it anew without `--features cuda`".into(),
            ),
            _ => missing(format!(
                "{} on the bus, but the driver does not know {}: install the NVIDIA driver (Ubuntu: sudo ubuntu-drivers install; \
                 Debian: sudo apt install nvidia-driver) and restart; in a container, start it with `--gpus all`",
                plural(*on_the_bus, "NVIDIA GPU"),
                if *on_the_bus == 1 { "it" } else { "them" }
            )),
        };
    }
    let words: Vec<&str> = cards.iter().map(|card| card.words.as_str()).collect();
    let words = words.join("\n");
    if !driver {
        return missing(format!(
            "{words}\nbut libcuda.so.1, the driver's library, can't be loaded: install the driver's libraries (Debian: \
             libcuda1); in a container, let the host's in with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        ));
    }
    if let Some(built_for) = built_for
        && let Some(card) = cards.iter().find(|card| !runs(built_for, card.capability))
        && let Some(capability) = card.capability
    {
        return Bad(format!(
            "{words}\nbut the kernel was built for compute capability {built_for}, and this GPU has {}: \
             {CAPABILITY}={} cloze install --features cuda",
            capability.digits(),
            capability.digits()
        ));
    }
    let Some(toolkit) = toolkit else {
        // What is built already runs without it.
        return match built_for {
            Some(built_for) => Good(format!(
                "{words}\nkernel built for {built_for}; no nvcc to build it anew with"
            )),
            None => Absent(format!(
                "{words}\nbut no nvcc: install the CUDA toolkit{} and put its `bin` on the path, then cloze install --features cuda",
                driver_cuda.map_or(String::new(), |most| format!(
                    " ({most} or earlier, which this driver supports)"
                ))
            )),
        };
    };
    if let Some(most) = driver_cuda.filter(|most| toolkit.0 > most.0) {
        return missing(format!(
            "{words}\nbut the driver supports CUDA {most} at most, and nvcc is {toolkit}: update the driver, or build with an \
             earlier toolkit"
        ));
    }
    Good(match built_for {
        Some(built_for) => format!("{words}\nnvcc {toolkit}, kernel built for {built_for}"),
        None => format!(
            "{words}\nnvcc {toolkit}; to use them in notebooks: cloze install --features cuda"
        ),
    })
}

fn plural(count: usize, what: &str) -> String {
    match count {
        1 => format!("one {what} is"),
        _ => format!("{count} {what}s are"),
    }
}

/// Whether kernels that were compiled for `built_for` ("90", "90a", "120f") run on a GPU of that capability: later ones take
/// the earlier ones', but for those with a letter (a: this one only; f: of its generation).
fn runs(built_for: &str, capability: Option<Version>) -> bool {
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
    fn look(kernelspec: Option<&Path>) -> Self {
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
            // SAFETY: the driver's library, whose loading has no effect beyond making its functions known.
            driver: unsafe { libloading::Library::new("libcuda.so.1") }.is_ok(),
            driver_cuda: smi(&[]).and_then(|text| Version::after(&text, "CUDA Version:")),
            toolkit: nvcc
                .and_then(|nvcc| Version::after(&String::from_utf8_lossy(&nvcc.stdout), "release")),
            built_for: kernelspec.and_then(built_for),
        }
    }
}

impl Card {
    /// From "9.0, NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB".
    fn read(line: &str) -> Option<Self> {
        let (capability, words) = line.split_once(',')?;
        Some(Self {
            words: words.trim().to_owned(),
            capability: Version::after(capability, ""),
        })
    }
}

/// NVIDIA's display controllers among the devices of that folder.
fn on_the_bus(devices: &Path) -> usize {
    let entries = std::fs::read_dir(devices).into_iter().flatten().flatten();
    let is = |folder: &Path, file: &str, start: &str| {
        std::fs::read_to_string(folder.join(file)).is_ok_and(|text| text.starts_with(start))
    };
    entries
        .filter(|entry| is(&entry.path(), "vendor", "0x10de") && is(&entry.path(), "class", "0x03"))
        .count()
}

/// What the kernel of that kernelspec was built for; `None` if it does not use GPUs.
fn built_for(kernelspec: &Path) -> Option<String> {
    let text = std::fs::read_to_string(kernelspec.join("kernel.json")).ok()?;
    let spec: serde_json::Value = serde_json::from_str(&text).ok()?;
    let arguments = spec["argv"].as_array()?;
    let uses_gpu = arguments.iter().any(|argument| argument == "cuda");
    let capability = spec["env"][CAPABILITY].as_str().unwrap_or("90");
    uses_gpu.then(|| capability.to_owned())
}

/// The compute capability to build for: as the environment says, or else that of the first GPU.
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

    /// A machine on which everything is well.
    fn whole() -> Machine {
        let line = "9.0, NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB";
        Machine {
            on_the_bus: 1,
            cards: vec![Card::read(line).unwrap()],
            driver: true,
            driver_cuda: Some(Version(13, 0)),
            toolkit: Some(Version(13, 0)),
            built_for: Some("90".into()),
        }
    }

    fn bad(machine: &Machine, words: &[&str]) {
        let Bad(text) = explain(machine) else {
            panic!("should be bad: {machine:?}");
        };
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    fn absent(machine: &Machine, words: &[&str]) {
        let Absent(text) = explain(machine) else {
            panic!("should be absent: {machine:?}");
        };
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    fn good(machine: &Machine, words: &[&str]) {
        let Good(text) = explain(machine) else {
            panic!("should be good: {machine:?}");
        };
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    #[test]
    fn a_machine_without_a_gpu_is_a_normal_place() {
        absent(&Machine::default(), &["none found", "CPU"]);
        let built = Machine {
            built_for: Some("90".into()),
            ..Machine::default()
        };
        bad(&built, &["without `--features cuda`"]);
    }

    #[test]
    fn what_is_whole_is_good_with_or_without_a_kernel_for_it() {
        good(&whole(), &["H100", "nvcc 13.0", "built for 90"]);
        let machine = Machine {
            built_for: None,
            ..whole()
        };
        good(&machine, &["cloze install --features cuda"]);
        // The toolkit is for building only.
        let machine = Machine {
            toolkit: None,
            ..whole()
        };
        good(&machine, &["no nvcc"]);
    }

    #[test]
    fn a_missing_driver_is_told_with_ways_to_get_it() {
        let machine = Machine {
            cards: Vec::new(),
            driver: false,
            driver_cuda: None,
            ..whole()
        };
        let words = [
            "one NVIDIA GPU is on the bus",
            "ubuntu-drivers",
            "--gpus all",
        ];
        bad(&machine, &words);
        let machine = Machine {
            built_for: None,
            ..machine
        };
        absent(&machine, &words);
        let machine = Machine {
            driver: false,
            ..whole()
        };
        bad(&machine, &["libcuda.so.1", "NVIDIA_DRIVER_CAPABILITIES"]);
    }

    #[test]
    fn a_missing_toolkit_is_told_with_the_versions_that_the_driver_supports() {
        let machine = Machine {
            toolkit: None,
            built_for: None,
            driver_cuda: Some(Version(12, 4)),
            ..whole()
        };
        absent(
            &machine,
            &[
                "no nvcc",
                "12.4 or earlier",
                "cloze install --features cuda",
            ],
        );
    }

    #[test]
    fn a_capability_that_was_not_compiled_for_is_told_with_the_command_that_mends_it() {
        let machine = Machine {
            cards: vec![Card::read("8.6, NVIDIA GeForce RTX 3090, 580.65.06, 24576 MiB").unwrap()],
            ..whole()
        };
        let command = "CUDA_COMPUTE_CAP=86 cloze install --features cuda";
        bad(&machine, &["RTX 3090", "capability 90", "has 86", command]);
    }

    #[test]
    fn a_toolkit_that_is_too_new_for_the_driver_is_told() {
        let machine = Machine {
            driver_cuda: Some(Version(12, 8)),
            ..whole()
        };
        bad(
            &machine,
            &["CUDA 12.8 at most", "nvcc is 13.0", "update the driver"],
        );
    }

    #[test]
    fn later_gpus_take_what_was_compiled_for_earlier_ones_unless_a_letter_says_no() {
        let on = |built_for, major, minor| runs(built_for, Some(Version(major, minor)));
        assert!(on("80", 8, 0) && on("80", 9, 0) && on("8.0", 8, 6) && !on("90", 8, 9));
        assert!(on("90a", 9, 0) && !on("90a", 10, 0));
        assert!(on("120f", 12, 1) && !on("120f", 13, 0));
        assert!(runs("90", None));
    }

    #[test]
    fn versions_are_read_from_what_the_tools_print() {
        let nvcc = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n";
        assert_eq!(Version::after(nvcc, "release"), Some(Version(13, 0)));
        let smi = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4     |";
        assert_eq!(Version::after(smi, "CUDA Version:"), Some(Version(12, 4)));
        assert_eq!(Version::after("no such thing", "release"), None);
        assert!(Card::read("No devices were found").is_none());
        assert_eq!(Card::read("[N/A], Tesla, 1, 2").unwrap().capability, None);
    }

    #[test]
    fn gpus_are_counted_on_the_bus_and_other_devices_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for (name, vendor, class) in [
            ("0000:01:00.0", "0x10de\n", "0x030200\n"),
            // Its sound, another vendor's GPU.
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
    fn the_kernelspec_says_what_the_kernel_was_built_for() {
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
