"""The commands that need JupyterLab or the prelude: `cloze install`, `uninstall` and `lab`, without a browser."""
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import unittest
import urllib.error
import urllib.request
import venv
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager

CLOZE = KernelSpecManager().get_kernel_spec("cloze").argv[0]
TOKEN = "command"


class Commands(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def cloze(self, *arguments):
        done = subprocess.run([CLOZE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        return done.returncode, done.stdout

    def test_the_installed_kernel_runs_under_its_name_and_can_be_removed(self):
        status, said = self.cloze("install", "--prefix", str(self.folder), "--name", "another")
        self.assertEqual(status, 0, said)
        spec = self.folder / "share/jupyter/kernels/another"
        argv = json.loads((spec / "kernel.json").read_text())["argv"]
        self.assertTrue(os.access(argv[0], os.X_OK))
        self.assertEqual(argv[1:], ["kernel", "{connection_file}"])
        self.assertTrue((spec / "logo-64x64.png").exists() and (spec / "logo-svg.svg").exists())
        status, said = self.cloze("uninstall", "--prefix", str(self.folder), "--name", "another")
        self.assertEqual(status, 0, said)
        self.assertFalse(spec.exists())

    def test_lab_installs_the_kernel_if_jupyter_has_none(self):
        self.lab(self.another_jupyter())
        self.assertIn("installed the kernel `cloze`", self.said)
        self.assertTrue((self.folder / "data/kernels/cloze/kernel.json").exists())

    def test_lab_uses_the_kernel_that_jupyter_has(self):
        self.lab(Path(sys.prefix))
        self.assertNotIn("installed the kernel", self.said)
        self.assertFalse((self.folder / "data/kernels/cloze").exists())

    def another_jupyter(self):
        """Another installation of JupyterLab, without a kernel: a virtual environment that borrows this one's packages."""
        environment = self.folder / "venv"
        venv.create(environment)
        packages = next(environment.glob("lib/python*/site-packages"))
        (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        program = environment / "bin/jupyter-lab"
        program.write_text(f"#!{environment}/bin/python3\nfrom jupyterlab.labapp import main\n\nmain()\n")
        program.chmod(0o755)
        return environment

    def lab(self, installation):
        """Runs `cloze lab` with the JupyterLab of that installation, for a user who has installed nothing yet."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (self.folder / "work").mkdir()
        (self.folder / "work/mine.ipynb").write_text("{}")
        server = subprocess.Popen(
            [CLOZE, "lab", str(self.folder / "work"), "--", "--no-browser", "--allow-root", f"--port={port}",
             "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"],
            env={**os.environ, "JUPYTER_DATA_DIR": str(self.folder / "data"),
                 "PATH": f"{installation}/bin:{os.environ['PATH']}",
                 "JUPYTERLAB_DIR": str(Path(sys.prefix) / "share/jupyter/lab")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        try:
            self.wait(server, port)
            self.assertIn("started", json.loads(self.get(port, "/api/status")))
            self.assertIn("cloze", json.loads(self.get(port, "/api/kernelspecs"))["kernelspecs"])
            self.assertIn("mine.ipynb", [file["name"] for file in json.loads(self.get(port, "/api/contents"))["content"]])
            self.assertIn("JupyterLab", self.get(port, "/lab"))
        finally:
            # `cloze` has become JupyterLab: there is no other process to stop.
            server.send_signal(signal.SIGTERM)
            self.said, _ = server.communicate(timeout=60)

    def get(self, port, path):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?token={TOKEN}", timeout=60).read().decode()

    def wait(self, server, port):
        for _ in range(600):
            try:
                return self.get(port, "/api")
            except urllib.error.URLError:
                self.assertIsNone(server.poll(), "JupyterLab did not start")
                time.sleep(0.2)
        self.fail("JupyterLab does not answer")


if __name__ == "__main__":
    unittest.main()
