"""papermill with this kernel, its parameters written by `kernel/papermill`."""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from harness import KERNEL

PACKAGE = Path(__file__).parents[2] / "kernel/papermill"


@unittest.skipUnless(importlib.util.find_spec("papermill"), "papermill is not installed")
class Papermill(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def papermill(self, cells, *parameters):
        """Runs a notebook with these cells, the first of which is tagged `parameters`, from a shell."""
        kernel = {"name": KERNEL, "display_name": "Cloze", "language": "rust"}
        cells = [{"cell_type": "code", "id": f"c{number}", "execution_count": None, "outputs": [], "source": source,
                  "metadata": {"tags": [] if number else ["parameters"]}} for number, source in enumerate(cells)]
        notebook = {"cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "rust"}},
                    "nbformat": 4, "nbformat_minor": 5}
        (self.folder / "in.ipynb").write_text(json.dumps(notebook))
        # Installed, the entry point imports the module; here the same is said by hand.
        start = "import cloze_papermill; from papermill.cli import papermill; papermill()"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", start, "in.ipynb", "out.ipynb", "--no-progress-bar", *parameters],
            cwd=self.folder, env={**os.environ, "PYTHONPATH": str(PACKAGE)}, capture_output=True, text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads((self.folder / "out.ipynb").read_text())

    def test_parameters_keep_the_types_in_the_notebook(self):
        written = self.papermill(
            ['let epochs: usize = 1;\nlet rate: f32 = 0.1;\nlet model = String::from("a");\nlet name = "b";\nlet fast = false;\n'
             'let sizes: Vec<u8> = vec![1];\nlet limit: Option<usize> = Some(3);',
             "let checked: (usize, f32, String, &str, bool, Vec<u8>, Option<usize>) = "
             "(epochs, rate, model.clone(), name, fast, sizes.clone(), limit);\nchecked"],
            "-p", "epochs", "7", "-p", "rate", "2e-5", "-r", "model", 'a "quoted"\n\u00e9\\ line', "-p", "fast", "True",
            "-y", "{sizes: [4, 5], limit: null, name: 'tab\\there'}",
        )
        shown = "".join(written["cells"][2]["outputs"][0]["data"]["text/plain"])
        self.assertEqual(shown, '(7, 2e-5, "a \\"quoted\\"\\n\u00e9\\\\ line", "tab\\\\there", true, [4, 5], None)')


class Quotes(unittest.TestCase):
    @unittest.skipUnless(importlib.util.find_spec("papermill"), "papermill is not installed")
    def test_strings_are_escaped_for_rust(self):
        sys.path.insert(0, str(PACKAGE))
        self.addCleanup(sys.path.remove, str(PACKAGE))
        from cloze_papermill import RustTranslator
        for text, rust in [('"', r'"\""'), ("\\u0041", r'"\\u0041"'), ("\x08\x01\x7f", r'"\u{8}\u{0001}\u{7f}"'), ("{}\n", r'"{}\n"')]:
            self.assertEqual(RustTranslator.quote(text), rust)


    @unittest.skipUnless(importlib.util.find_spec("papermill"), "papermill is not installed")
    def test_the_parameters_of_a_cell_are_found(self):
        sys.path.insert(0, str(PACKAGE))
        self.addCleanup(sys.path.remove, str(PACKAGE))
        from cloze_papermill import RustTranslator
        source = 'let epochs = 3.0;\nlet mut size: usize = 8; // a batch\nlet text = "a = b;";\nprintln!("{epochs}");'
        found = [tuple(parameter) for parameter in RustTranslator.inspect({"source": source})]
        self.assertEqual(found, [("epochs", "None", "3.0", ""), ("size", "usize", "8", "a batch"), ("text", "None", '"a = b;"', "")])


if __name__ == "__main__":
    unittest.main()
