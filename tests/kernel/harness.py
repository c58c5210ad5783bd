"""Shared by the tests: a kernel under test, and its cells."""
import os
import time
import unittest

from jupyter_client import KernelManager

KERNEL = os.environ.get("CLOZE_KERNEL_NAME", "cloze")
TIMEOUT = 120


def start(**options):
    manager = KernelManager(kernel_name=KERNEL)
    manager.start_kernel(**options)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=TIMEOUT)
    return manager, client


class Cell:
    """A running cell: its reply, and its output messages with the time at which each arrived."""

    def __init__(self, client, code, **options):
        self.client = client
        self.start = time.monotonic()
        self.id = client.execute(code, **options)
        self.messages = []

    def next(self, timeout=TIMEOUT):
        """Returns the next message that belongs to the cell."""
        end = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(end - time.monotonic(), 0))
            if message["parent_header"].get("msg_id") == self.id:
                message["came"] = time.monotonic() - self.start
                self.messages.append(message)
                return message

    def until(self, wanted, timeout=TIMEOUT):
        while not wanted(message := self.next(timeout)):
            pass
        return message

    def end(self, timeout=TIMEOUT):
        """Returns the reply, once all output has arrived."""
        self.until(lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "idle", timeout)
        while True:
            reply = self.client.get_shell_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") == self.id:
                return reply["content"]

    def kinds(self):
        return [m["msg_type"] for m in self.messages if m["msg_type"] not in ("status", "execute_input")]

    def text(self, name="stdout"):
        streams = (m["content"] for m in self.messages if m["msg_type"] == "stream")
        return "".join(c["text"] for c in streams if c["name"] == name)

    def result(self):
        results = [m["content"]["data"]["text/plain"] for m in self.messages if m["msg_type"] == "execute_result"]
        return results[-1] if results else None


class KernelCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.manager, cls.client = start()

    @classmethod
    def tearDownClass(cls):
        cls.client.stop_channels()
        cls.manager.shutdown_kernel()

    def run_cell(self, code, status="ok", **options):
        cell = Cell(self.client, code, **options)
        reply = cell.end()
        self.assertEqual(reply["status"], status, (code, reply, cell.text("stderr")))
        cell.reply = reply
        return cell
