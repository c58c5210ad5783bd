"""The guide's notebook in JupyterLab, as a person at a browser walks through it.

`tests/browser/run` installs what this needs: JupyterLab, the kernel, Playwright, Debian's Chromium. Screenshots go to the
folder CLOZE_SCREENSHOTS, if that is set.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

GUIDE = Path(__file__).parents[2] / "notebooks/masked_language_modeling.ipynb"
CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium"))
SCREENSHOTS = os.environ.get("CLOZE_SCREENSHOTS")
# Epochs enough to look at the training, and to interrupt it.
EPOCHS = 4
SECONDS = 1000
PATIENCE = 240 * SECONDS
ERROR = '[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]'


class Lab:
    """JupyterLab on a folder of its own, in which the guide lies."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp())
        notebook = json.loads(GUIDE.read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
            source = "".join(cell["source"])
            cell["source"] = re.sub(r"^let epochs = .*;$", f"let epochs = {EPOCHS}.0;", source, flags=re.M)
        notebook["metadata"]["kernelspec"] = {"name": "cloze", "display_name": "Cloze (Rust)", "language": "rust"}
        (self.folder / "guide.ipynb").write_text(json.dumps(notebook))
        settings = self.folder / "settings/@jupyterlab"
        # All cells stay in the page, also those out of sight; no questions about news.
        self.write(settings / "notebook-extension/tracker.jupyterlab-settings", {"windowingMode": "none"})
        self.write(settings / "apputils-extension/notification.jupyterlab-settings", {"fetchNews": "false", "checkForUpdates": False})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = open(self.folder / "lab.log", "wb")
        self.server = subprocess.Popen(
            ["jupyter", "lab", "--no-browser", "--allow-root", f"--port={self.port}", "--IdentityProvider.token=walk",
             f"--ServerApp.root_dir={self.folder}", "--ServerApp.port_retries=0"],
            env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
                 "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces")},
            stdout=self.log, stderr=self.log, cwd=self.folder,
        )
        self.wait()

    @staticmethod
    def write(path, settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    def wait(self):
        for _ in range(600):
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token=walk")
            except urllib.error.URLError:
                if self.server.poll() is not None:
                    break
                time.sleep(0.2)
        raise RuntimeError("JupyterLab did not start:\n" + (self.folder / "lab.log").read_text())

    def url(self, notebook):
        return f"http://127.0.0.1:{self.port}/lab/tree/{notebook}?token=walk"

    def stop(self):
        self.server.terminate()
        self.server.wait(30)
        self.log.close()
        shutil.rmtree(self.folder)


class Walk(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab()
        cls.addClassCleanup(cls.lab.stop)
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        cls.addClassCleanup(browser.close)
        cls.page = browser.new_page(viewport={"width": 1180, "height": 900}, device_scale_factor=2)
        cls.page.set_default_timeout(PATIENCE)

    def test_the_guide_shows_live_training_and_resumes_after_an_interrupt(self):
        page = self.page
        page.goto(self.lab.url("guide.ipynb"))
        page.locator(".jp-NotebookPanel").wait_for()
        expect(page.locator("#jp-main-statusbar")).to_contain_text("Cloze (Rust) | Idle", timeout=PATIENCE)
        # The file browser makes room for the notebook.
        page.keyboard.press("Control+b")

        # The training's display moves while the cell runs.
        self.menu("Run", "Run All Cells")
        training = self.cell("trainer.train()")
        states = self.states(training, at_least=4)
        self.assertEqual(states, sorted(states))
        self.assertEqual(self.prompt(training), "[*]:")
        # The first evaluation has given the table a row.
        self.until(lambda: training.locator(".jp-OutputArea tr").count() >= 2)
        self.assertEqual(self.prompt(training), "[*]:")
        self.screenshot("training", training)

        # An interrupt ends the training, not the notebook.
        page.locator('[data-command="notebook:interrupt-kernel"], [title^="Interrupt the kernel"]').first.click()
        self.until(lambda: self.ended(training))
        expect(training.locator(".jp-OutputArea").first).to_contain_text("interrupted")
        last = self.cell("let inputs = tokenizer.encode(&text)?;")
        self.until(lambda: self.ended(last))
        expect(last.locator(".jp-OutputArea").first).to_contain_text("The Milky Way is a")
        self.assertEqual(page.locator(ERROR).count(), 0)
        self.screenshot("interrupted", training)
        self.screenshot("fill_mask", self.cell('FillMask::from_pretrained("eli5_mlm_model")'))

        # Training goes on from there to its end.
        rest = self.run_new("trainer.train()?")
        self.until(lambda: self.ended(rest))
        expect(rest.locator(".jp-OutputArea").first).to_contain_text(f"epoch {EPOCHS} of {EPOCHS}")
        self.screenshot("trained", rest)

        # A compile error points into the cell.
        wrong = self.run_new('let name = "Ferris";\nlet length: u32 = name.len();')
        self.until(lambda: self.ended(wrong))
        expect(wrong.locator(ERROR)).to_contain_text("error[E0308]: mismatched types")
        expect(wrong.locator(ERROR)).to_contain_text("expected `u32`, found `usize`")
        self.screenshot("compile_error", wrong)

        # Completion knows the prelude.
        new = self.new_cell("Tokenizer::")
        page.keyboard.press("Tab")
        completer = page.locator(".jp-Completer:not(.lm-mod-hidden)")
        expect(completer).to_contain_text("from_pretrained", timeout=PATIENCE)
        self.screenshot("completion", new)
        page.keyboard.press("Escape")

        # The saved notebook holds the last states only.
        page.keyboard.press("Escape")
        page.keyboard.press("Control+s")
        saved = self.lab.folder / "guide.ipynb"
        self.until(lambda: "E0308" in saved.read_text())
        self.assertLess(saved.stat().st_size, 600_000)

    def menu(self, *path):
        bar = self.page.locator("#jp-top-bar, #jp-menu-panel, .lm-MenuBar").first
        bar.get_by_text(path[0], exact=True).click()
        self.page.locator(".lm-Menu").get_by_text(path[1], exact=True).click()

    def cell(self, source):
        """The code cell with this text in it."""
        return self.page.locator(".jp-CodeCell").filter(has=self.page.locator(".jp-InputArea-editor", has_text=source)).last

    def prompt(self, cell):
        return cell.locator(".jp-InputPrompt").first.inner_text()

    def ended(self, cell):
        return re.fullmatch(r"\[\d+\]:", self.prompt(cell))

    def states(self, cell, at_least):
        """The steps that the training's bar shows, one after the other, while the cell runs."""
        seen = []
        def look():
            text = cell.locator(".jp-OutputArea").first.inner_text()
            found = re.search(r"([\d,]+) / [\d,]+", text)
            step = found and int(found[1].replace(",", ""))
            if step and step not in seen:
                seen.append(step)
            return len(seen) >= at_least
        self.until(look)
        return seen

    def new_cell(self, code):
        """Types a new last cell."""
        page = self.page
        page.locator(".jp-Cell").last.locator(".jp-InputPrompt").click()
        page.keyboard.press("Escape")
        page.keyboard.press("b")
        page.keyboard.press("Enter")
        page.keyboard.insert_text(code)
        return page.locator(".jp-CodeCell").last

    def run_new(self, code):
        cell = self.new_cell(code)
        self.page.keyboard.press("Control+Enter")
        self.until(lambda: self.prompt(cell) != "[ ]:")
        return cell

    def until(self, condition, patience=PATIENCE / SECONDS):
        end = time.monotonic() + patience
        while not condition():
            self.assertLess(time.monotonic(), end, "waited too long")
            time.sleep(0.05)

    def screenshot(self, name, *elements):
        """A picture of the page, with the elements in view."""
        if not SCREENSHOTS:
            return
        for element in elements:
            element.scroll_into_view_if_needed()
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}_page.png")
        elements[0].screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


if __name__ == "__main__":
    unittest.main()
