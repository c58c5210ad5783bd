"""Crates that a notebook adds with `:dep`: paths are relative to the notebook, and builds are kept for the next session.

CLOZE_TEST_NETWORK also fetches one from crates.io.
"""
import os
import tempfile
import unittest
from pathlib import Path

from harness import Cell, start

MANIFEST = '[package]\nname = "helper"\nversion = "0.1.0"\nedition = "2024"\n'
# Writes a line each time it is built.
BUILD = """use std::io::Write;
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open("built.txt").unwrap();
    writeln!(log, "built").unwrap();
}
"""


class Dependencies(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def session(self):
        """A kernel started in the folder, as front ends start it in the notebook's folder."""
        manager, client = start(cwd=str(self.folder))

        def end():
            client.stop_channels()
            manager.shutdown_kernel()

        return client, end

    def run_cells(self, client, *cells):
        for code in cells:
            cell = Cell(client, code)
            reply = cell.end(timeout=300)
            self.assertEqual(reply["status"], "ok", (code, reply, cell.text("stderr")))
        return cell.result()

    def test_paths_are_relative_to_the_notebook_and_builds_are_kept(self):
        crate = self.folder / "helper"
        (crate / "src").mkdir(parents=True)
        (crate / "Cargo.toml").write_text(MANIFEST)
        (crate / "build.rs").write_text(BUILD)
        (crate / "src/lib.rs").write_text("pub fn answer() -> i32 { 42 }\n")
        for _ in range(2):
            client, end = self.session()
            try:
                result = self.run_cells(client, ':dep helper = { path = "helper" }', "let a = helper::answer();", "a")
            finally:
                end()
            self.assertEqual(result, "42")
        self.assertEqual((crate / "built.txt").read_text(), "built\n")

    def test_two_sessions_with_the_same_crate_do_not_block_each_other(self):
        crate = self.folder / "helper"
        (crate / "src").mkdir(parents=True)
        (crate / "Cargo.toml").write_text(MANIFEST)
        (crate / "src/lib.rs").write_text("pub fn answer() -> i32 { 42 }\n")
        one, end_one = self.session()
        two, end_two = self.session()
        try:
            self.run_cells(one, ':dep helper = { path = "helper" }')
            busy = Cell(one, "std::thread::sleep(std::time::Duration::from_secs(20)); helper::answer()")
            busy.until(lambda m: m["msg_type"] == "execute_input")
            self.assertEqual(self.run_cells(two, ':dep helper = { path = "helper" }', "helper::answer()"), "42")
            self.assertEqual(busy.end()["status"], "ok")
        finally:
            end_one()
            end_two()

    def test_rebuilding_a_crate_loses_only_its_own_variables(self):
        crate = self.folder / "helper"
        (crate / "src").mkdir(parents=True)
        (crate / "Cargo.toml").write_text(MANIFEST + "\n[features]\nmore = []\n")
        (crate / "src/lib.rs").write_text("pub struct Thing(pub i32);\n#[cfg(feature = \"more\")]\npub fn more() -> i32 { 2 }\n")
        client, end = self.session()
        try:
            self.run_cells(client, ':dep helper = { path = "helper" }', "let thing = helper::Thing(5);\nlet other = 7;")
            self.assertEqual(self.run_cells(client, ':dep helper = { path = "helper", features = ["more"] }', "helper::more() + other"), "9")
            self.assertEqual(self.run_cells(client, "let thing = helper::Thing(6);", "thing.0"), "6")
        finally:
            end()

    @unittest.skipUnless(os.environ.get("CLOZE_TEST_NETWORK"), "fetches a crate: set CLOZE_TEST_NETWORK")
    def test_changing_the_version_of_tokio_starts_a_new_runtime(self):
        client, end = self.session()
        try:
            cells = [
                "async fn three() -> i32 { 3 }",
                "three().await",
                ':dep tokio = { version = "1", features = ["full"] }',
                "tokio::time::sleep(std::time::Duration::from_millis(1)).await;\nthree().await + 1",
                "1 + 1",
            ]
            self.assertEqual(self.run_cells(client, *cells), "2")
        finally:
            end()

    @unittest.skipUnless(os.environ.get("CLOZE_TEST_NETWORK"), "fetches a crate: set CLOZE_TEST_NETWORK")
    def test_a_crate_is_fetched_from_crates_io(self):
        client, end = self.session()
        try:
            cells = [":dep itertools", "use itertools::Itertools;", '["a", "b"].iter().join("-")']
            self.assertEqual(self.run_cells(client, *cells), '"a-b"')
        finally:
            end()

    def test_a_crate_that_stops_compiling_is_named_and_loses_no_variables(self):
        sound = "pub struct Thing(pub i32);\npub fn answer() -> i32 { 42 }\n"
        # Beyond the last line of any cell's own library.
        broken = sound + "\n" * 9000 + "pub fn wrong() -> u8 { \"text\" }\n"
        for name, code in [("helper", sound), ("other", broken)]:
            (self.folder / name / "src").mkdir(parents=True)
            (self.folder / name / "Cargo.toml").write_text(MANIFEST.replace("helper", name))
            (self.folder / name / "src/lib.rs").write_text(code)
        library = self.folder / "helper/src/lib.rs"
        client, end = self.session()
        try:
            self.run_cells(client, ':dep helper = { path = "helper" }', "let thing = helper::Thing(5);\nlet seven = 7;")
            library.write_text(broken)
            for code, crate in [("seven + thing.0", "helper"), ("seven", "helper"), (':dep helper = { path = "helper" }', "helper")]:
                reply = Cell(client, code).end()
                self.assertEqual(reply["status"], "error")
                self.assertIn(f"the crate `{crate}` in {library.parent.parent}", reply["evalue"])
                self.assertIn("E0308", reply["ename"])
                self.assertIn(f"{library}:9003:", "\n".join(reply["traceback"]))
            library.write_text(sound)
            self.assertEqual(self.run_cells(client, "seven + thing.0"), "12")
            reply = Cell(client, ':dep other = { path = "other" }').end()
            self.assertEqual(reply["status"], "error")
            self.assertIn("the crate `other`", reply["evalue"])
            self.assertEqual(self.run_cells(client, "seven + thing.0"), "12")
            library.unlink()
            library.parent.rmdir()
            (self.folder / "helper/Cargo.toml").unlink()
            reply = Cell(client, "seven").end()
            self.assertEqual(reply["status"], "error")
            self.assertIn("cargo can't build the crates that `:dep` added: failed to load manifest for dependency `helper`", reply["evalue"])
        finally:
            end()

    def test_a_missing_crate_is_an_error_and_the_session_continues(self):
        client, end = self.session()
        try:
            reply = Cell(client, ':dep nowhere = { path = "nowhere" }').end()
            self.assertEqual(reply["status"], "error")
            self.assertIn("nowhere", "\n".join(reply["traceback"]))
            self.assertEqual(self.run_cells(client, "1 + 1"), "2")
        finally:
            end()


if __name__ == "__main__":
    unittest.main()
