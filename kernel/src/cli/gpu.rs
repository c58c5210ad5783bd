//! The GPU checks of `cloze doctor`: what is installed, what is missing, and how to fix it.

use std::path::Path;

use super::finding::Finding::{self, Absent, Bad, Good};
use crate::toolchain::gpu::{CAPABILITY, Machine, runs};

/// Checks the GPU setup. `kernelspec` is the folder of the installed kernel.
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
    // A missing driver is an error only if the installed kernel was built for GPUs.
    let missing = |text: String| match built_for {
        Some(_) => Bad(text),
        None => Absent(text),
    };
    if cards.is_empty() {
        return match (on_the_bus, built_for) {
            (0, None) => Absent("none found: models run on the CPU".into()),
            (0, Some(_)) => Bad(
                "none found, but the installed kernel is built for one: install it again without `--features cuda`".into(),
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
        // A prelude that is already built runs without nvcc.
        return match built_for {
            Some(built_for) => Good(format!(
                "{words}\nkernel built for {built_for}; no nvcc to build it again"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain::gpu::{Card, Version};

    /// Describes a machine whose GPU setup is complete.
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
    fn a_missing_gpu_is_reported_but_is_no_fault() {
        absent(&Machine::default(), &["none found", "CPU"]);
        let built = Machine {
            built_for: Some("90".into()),
            ..Machine::default()
        };
        bad(&built, &["without `--features cuda`"]);
    }

    #[test]
    fn a_complete_setup_is_good_with_and_without_a_gpu_kernel() {
        good(&whole(), &["H100", "nvcc 13.0", "built for 90"]);
        let machine = Machine {
            built_for: None,
            ..whole()
        };
        good(&machine, &["cloze install --features cuda"]);
        // The toolkit is needed only to build.
        let machine = Machine {
            toolkit: None,
            ..whole()
        };
        good(&machine, &["no nvcc"]);
    }

    #[test]
    fn a_missing_driver_is_reported_with_ways_to_install_it() {
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
    fn a_missing_toolkit_is_reported_with_the_versions_the_driver_supports() {
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
    fn an_unsupported_compute_capability_is_reported_with_the_command_that_fixes_it() {
        let machine = Machine {
            cards: vec![Card::read("8.6, NVIDIA GeForce RTX 3090, 580.65.06, 24576 MiB").unwrap()],
            ..whole()
        };
        let command = "CUDA_COMPUTE_CAP=86 cloze install --features cuda";
        bad(&machine, &["RTX 3090", "capability 90", "has 86", command]);
    }

    #[test]
    fn a_toolkit_newer_than_the_driver_is_reported() {
        let machine = Machine {
            driver_cuda: Some(Version(12, 8)),
            ..whole()
        };
        bad(
            &machine,
            &["CUDA 12.8 at most", "nvcc is 13.0", "update the driver"],
        );
    }
}
