"""Behaviour of front ends and other peers that the kernel must cope with."""
import os
import signal
import socket
import subprocess
import sys
import time
import unittest

import zmq
from jupyter_client.kernelspec import get_kernel_spec

from harness import KERNEL, TIMEOUT, Cell, KernelCase, start


class Input(KernelCase):
    READ = "let mut line = String::new();\nlet count = std::io::stdin().read_line(&mut line)?;\n(count, line)"

    def test_reading_stdin_without_a_prompt_asks_the_front_end(self):
        cell = Cell(self.client, self.READ, allow_stdin=True)
        question = self.client.get_stdin_msg(timeout=TIMEOUT)
        self.assertEqual(question["msg_type"], "input_request")
        self.client.input("Ferris")
        self.assertEqual(cell.end()["status"], "ok")
        self.assertEqual(cell.result(), '(7, "Ferris\\n")')

    def test_the_first_interrupt_ends_the_input_and_keeps_variables(self):
        self.run_cell("let before = 5;")
        cell = Cell(self.client, "std::io::read_to_string(std::io::stdin())?", allow_stdin=True)
        self.client.get_stdin_msg(timeout=TIMEOUT)
        self.manager.interrupt_kernel()
        self.assertEqual((cell.end()["status"], cell.result()), ("ok", '""'))
        self.assertEqual(self.run_cell("before").result(), "5")
        # The next cell may ask again.
        cell = Cell(self.client, self.READ, allow_stdin=True)
        self.client.get_stdin_msg(timeout=TIMEOUT)
        self.client.input("again")
        cell.end()
        self.assertEqual(cell.result(), '(6, "again\\n")')

    def test_a_front_end_without_stdin_ends_the_input(self):
        cell = self.run_cell(self.READ, allow_stdin=False)
        self.assertEqual(cell.result(), '(0, "")')


class Peers(KernelCase):
    def ping(self):
        context = zmq.Context.instance()
        with context.socket(zmq.REQ) as peer:
            peer.linger = 0
            peer.connect(f"tcp://127.0.0.1:{self.manager.hb_port}")
            peer.send(b"ping")
            return peer.recv() if peer.poll(5000) else None

    def test_peers_that_disconnect_badly_do_not_stop_the_heartbeat(self):
        code = f"import zmq\ns = zmq.Context().socket(zmq.REQ)\ns.connect('tcp://127.0.0.1:{self.manager.hb_port}')\n" \
               "while True:\n    s.send(b'x')\n    s.recv()\n    print('.', flush=True)\n"
        for _ in range(6):
            peer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            peer.stdout.readline()
            peer.send_signal(signal.SIGKILL)
            peer.wait()
            peer.stdout.close()
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
        for said in [b"", b"junk", greeting, greeting[:20], greeting + b"\x04\x26\x05READY", greeting + b"\xff" * 40]:
            for reset in [False, True]:
                with socket.create_connection(("127.0.0.1", self.manager.hb_port)) as peer:
                    peer.sendall(said)
                    if reset:
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                    time.sleep(0.05)
        self.assertEqual(self.ping(), b"ping")

    def test_a_history_search_is_fast_for_any_pattern(self):
        self.run_cell("let a = \"" + "a" * 400 + "\";")
        for pattern in ["*a" * 10 + "*b", "*" * 100_000]:
            begin = time.monotonic()
            reply = self.client.history(hist_access_type="search", pattern=pattern, n=10, reply=True, timeout=TIMEOUT)
            self.assertEqual(reply["content"]["status"], "ok")
            self.assertLess(time.monotonic() - begin, 20)

    def test_deeply_nested_brackets_do_not_end_the_kernel(self):
        deep = "(" * 5000 + "1" + ")" * 5000
        self.client.complete(deep, reply=True, timeout=TIMEOUT)
        self.client.inspect(deep, reply=True, timeout=TIMEOUT)
        self.run_cell(deep, status="error")
        self.assertEqual(self.run_cell("1 + 1").result(), "2")


class Names(KernelCase):
    def matches(self, code):
        content = self.client.complete(code, reply=True, timeout=TIMEOUT)["content"]
        return content["matches"], content["metadata"]["_jupyter_types_experimental"]

    def test_completion_inserts_each_name_once_and_shows_signatures(self):
        self.run_cell("let mut names = vec![String::new()];")
        names, kinds = self.matches("names.pu")
        self.assertIn("push", names)
        self.assertEqual(len(names), len(set(names)))
        self.assertFalse([name for name in names if "(" in name or ";" in name], names)
        self.assertTrue(next(kind for kind in kinds if kind["text"] == "push")["type"].startswith("fn("), kinds)
        fields = self.matches("names.")[0]
        self.assertNotIn("buf", fields)
        own = self.matches("nam")[0]
        self.assertEqual(own.count("names"), 1)

    def test_inspection_works_inside_calls_and_in_use_lines(self):
        for code, told in [
            ("let v = Vec::<u8>::with_capacity(", "with_capacity"),
            ("std::fs::copy(\"a\", ", "copy"),
            ("use std::collections::HashMap", "HashMap"),
        ]:
            with self.subTest(code):
                content = self.client.inspect(code, reply=True, timeout=TIMEOUT)["content"]
                self.assertTrue(content["found"], content)
                self.assertIn(told, content["data"]["text/plain"])


class Commands(KernelCase):
    def test_quit_is_an_error_and_the_kernel_keeps_running(self):
        self.run_cell("let a = 1;")
        self.assertIn(":quit", self.run_cell(":quit", status="error").reply["evalue"])
        self.assertEqual(self.run_cell("a").result(), "1")


class Children(unittest.TestCase):
    def test_processes_started_by_cells_end_with_the_kernel(self):
        for end in ["shutdown", "kill"]:
            with self.subTest(end):
                manager, client = start()
                cell = Cell(client, 'std::process::Command::new("sleep").arg("86399").spawn()?.id()')
                cell.end()
                child = int(cell.result())
                client.stop_channels()
                if end == "shutdown":
                    manager.shutdown_kernel()
                else:
                    os.kill(manager.provisioner.pid, signal.SIGKILL)
                for _ in range(300):
                    if not os.path.exists(f"/proc/{child}") or open(f"/proc/{child}/stat").read().split()[2] == "Z":
                        break
                    time.sleep(0.1)
                else:
                    self.fail(f"{child} goes on")
                manager.shutdown_kernel(now=True)

    def test_processes_started_by_cells_end_even_if_the_pipes_close_before_the_signal(self):
        # The process that runs cells, started as the kernel starts it, but by a parent that stays alive.
        kernel = get_kernel_spec(KERNEL).argv[0]
        commands, to_commands = os.pipe()
        answers, to_answers = os.pipe()
        for fd, name in [(commands, 200), (to_answers, 201), (answers, 202), (to_answers, 203)]:
            os.dup2(fd, name)
        process = subprocess.Popen(
            [kernel],
            env={**os.environ, "EVCXR_IS_RUNTIME": "1", "CLOZE_CELL_LIBRARIES": ""},
            pass_fds=[200, 201, 202, 203],
            process_group=0,
        )
        child = subprocess.Popen(["sleep", "86399"], process_group=process.pid)
        try:
            for fd in [200, 201, 202, 203, commands, answers, to_answers]:
                os.close(fd)
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(0.5)
            os.close(to_commands)
            self.assertEqual(process.wait(TIMEOUT), -signal.SIGKILL)
            self.assertEqual(child.wait(TIMEOUT), -signal.SIGKILL)
        finally:
            process.kill()
            child.kill()
            process.wait()
            child.wait()


if __name__ == "__main__":
    unittest.main()
