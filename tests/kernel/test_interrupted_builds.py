"""An interrupt or a shutdown while the prelude is built: the build ends, and a later cell begins it again."""
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from harness import TIMEOUT, Cell, start

SOURCES = Path(__file__).resolve().parents[2]
# A toolchain whose cargo never finishes the prelude. It writes down the id of a program that it waits for.
RUSTC = """#!/bin/sh
if [ "$*" = '--print sysroot' ]; then echo '{own}'; else exec '{real}/bin/rustc' "$@"; fi
"""
CARGO = """#!/bin/sh
case " $* " in *' --release '*) sleep 98765 & echo $! >> '{own}/sleepers'; wait;; esac
exec '{real}/bin/cargo' "$@"
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


class InterruptedBuilds(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.own = Path(folder.name)
        real = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
        (self.own / "bin").mkdir()
        (self.own / "lib").symlink_to(Path(real, "lib"))
        for name, script in [("rustc", RUSTC), ("cargo", CARGO)]:
            path = self.own / "bin" / name
            path.write_text(script.format(own=self.own, real=real))
            path.chmod(0o755)
        changed = {
            "PATH": f"{self.own}/bin:{os.environ['PATH']}",
            "CLOZE_KERNEL_CACHE": str(self.own / "cache"),
            "CLOZE_SOURCES": str(SOURCES),
        }
        self.manager, self.client = start(env=os.environ | changed)
        self.addCleanup(self.manager.shutdown_kernel, now=True)
        self.addCleanup(self.client.stop_channels)

    def sleepers(self, count):
        """Returns the ids of the programs that builds waited for, once there are so many."""
        end = time.monotonic() + TIMEOUT
        while True:
            path = self.own / "sleepers"
            ids = path.read_text().split() if path.exists() else []
            if len(ids) == count:
                return [int(id) for id in ids]
            self.assertLess(time.monotonic(), end, f"{len(ids)} builds have begun")
            time.sleep(0.05)

    def assert_ended(self, pid):
        end = time.monotonic() + 5
        while is_running(pid):
            self.assertLess(time.monotonic(), end, "the build goes on")
            time.sleep(0.02)

    def test_an_interrupt_fails_the_waiting_cells_and_the_next_cell_builds_again(self):
        waiting = Cell(self.client, "1 + 1")
        [first] = self.sleepers(1)
        begun = time.monotonic()
        self.manager.interrupt_kernel()
        reply = waiting.end(timeout=30)
        self.assertLess(time.monotonic() - begun, 5)
        self.assertEqual((reply["status"], reply["ename"]), ("error", "Interrupted"))
        self.assertIn("while the prelude was being built", reply["evalue"])
        self.assert_ended(first)
        # Completion does not begin it again.
        self.client.complete("std::f", reply=True, timeout=TIMEOUT)
        again = Cell(self.client, "1 + 1")
        second = self.sleepers(2)[1]
        self.manager.interrupt_kernel()
        self.assertEqual(again.end(timeout=30)["ename"], "Interrupted")
        self.assert_ended(second)

    def test_a_shutdown_ends_the_build(self):
        [build] = self.sleepers(1)
        self.manager.shutdown_kernel()
        self.assert_ended(build)

    def test_a_killed_kernel_leaves_no_build_behind(self):
        [build] = self.sleepers(1)
        self.manager.shutdown_kernel(now=True)
        self.assert_ended(build)


if __name__ == "__main__":
    unittest.main()
