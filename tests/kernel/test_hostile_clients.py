"""Clients that send invalid messages: the kernel answers or drops them as ipykernel does, and keeps running."""
import contextlib
import json
import os
import socket
import time
import unittest

import zmq

from harness import TIMEOUT, Cell, KernelCase, start

RUNS_ON = 'println!("running");\nloop { std::thread::sleep(std::time::Duration::from_millis(5)); }'


def header(kind, **changes):
    known = {"msg_id": os.urandom(6).hex(), "msg_type": kind, "username": "u", "session": "s", "date": "2026-01-01T00:00:00Z", "version": "5.3"}
    known.update(changes)
    return {name: value for name, value in known.items() if value is not ...}


class Peer:
    """A raw socket to one of the kernel's channels, which can send anything."""

    def __init__(self, client, channel):
        info = client.get_connection_info()
        self.session = client.session
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"tcp://{info['ip']}:{info[channel + '_port']}")

    def frames(self, head, content=b"{}"):
        head = head if isinstance(head, bytes) else json.dumps(head).encode()
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        parts = [head, b"{}", b"{}", content]
        return [b"<IDS|MSG>", self.session.sign(parts), *parts]

    def send(self, head, content=b"{}"):
        self.socket.send_multipart(self.frames(head, content))

    def replies(self, count, timeout=TIMEOUT):
        found, end = [], time.monotonic() + timeout
        while len(found) < count and self.socket.poll(max(0, int((end - time.monotonic()) * 1000))):
            _, frames = self.session.feed_identities(self.socket.recv_multipart())
            found.append(self.session.deserialize(frames))
        return found


class HostileClients(KernelCase):
    def peer(self, channel="shell"):
        peer = Peer(self.client, channel)
        self.addCleanup(peer.socket.close)
        return peer

    def states(self, request):
        """Returns the states that iopub reports for a request, until it is idle."""
        told = []
        while not told or told[-1] != "idle":
            message = self.client.get_iopub_msg(timeout=TIMEOUT)
            if message["parent_header"].get("msg_id") == request["msg_id"]:
                told.append(message["content"].get("execution_state", message["msg_type"]))
        return told

    def connected(self, channel, kind):
        """Connects to a channel and completes the handshake of this socket type."""
        info = self.client.get_connection_info()
        peer = socket.create_connection((info["ip"], info[channel + "_port"]), timeout=TIMEOUT)
        self.addCleanup(peer.close)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31))
        peer.recv(64, socket.MSG_WAITALL)
        ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind + b"\x08Identity\x00\x00\x00\x00"
        peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
        return peer

    def test_a_client_that_never_reads_blocks_nobody(self):
        for _ in range(2):
            self.connected("iopub", b"SUB").sendall(b"\x00\x01\x01")
        time.sleep(0.5)
        cell = self.run_cell('let line = "x".repeat(1000); for _ in 0..50_000 { println!("{line}"); }')
        self.assertEqual(len(cell.text()), 50_000 * 1001)
        self.assertEqual(self.run_cell("2 + 3").result(), "5")

    def test_a_frame_that_announces_more_than_memory_does_not_end_the_kernel(self):
        # Anyone who can reach a port can send this: it needs no key.
        self.run_cell("let seven = 7;")
        for channel in ["shell", "iopub", "stdin", "control", "hb"]:
            for kind in [0, 1, 4]:
                for length in [1 << 45, 1 << 62, (1 << 63) - (1 << 20), (1 << 64) - 1]:
                    with self.connected(channel, b"DEALER") as peer, contextlib.suppress(OSError):
                        peer.sendall(bytes([kind | 2]) + length.to_bytes(8, "big"))
                        time.sleep(0.02)
        self.assertTrue(self.manager.is_alive())
        self.assertEqual(self.run_cell("seven").result(), "7")

    def test_a_header_needs_only_an_id_and_a_type(self):
        peer = self.peer()
        for changes in [{"date": ...}, {"date": "soon"}, {"date": None}, {"version": ...}, {"username": 5}, {"session": ...}, {"more": [1]}]:
            peer.send(header("kernel_info_request", **changes))
        self.assertEqual([reply["content"]["status"] for reply in peer.replies(7)], ["ok"] * 7)
        for head in [header("kernel_info_request", msg_id=...), header("x", msg_type=...), b"[]", b"", b"\xff{", b'{"a":' * 5000]:
            peer.send(head)
        for frames in [[b""], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"", b"{}"], [b"<IDS|MSG>"] * 10, [b"a"] * 500, [b"\0" * 100_000]]:
            peer.socket.send_multipart(frames)
        self.assertEqual(peer.replies(1, timeout=1), [])
        self.assertEqual(self.run_cell("1 + 1").result(), "2")

    def test_a_message_is_accepted_once_and_only_with_its_signature(self):
        peer = self.peer()
        good = peer.frames(header("kernel_info_request"))
        for signature in [b"", b"0" * 64, good[1][:-1], good[1].upper(), good[1] + b"00"]:
            peer.socket.send_multipart([good[0], signature, *good[2:]])
        self.assertEqual(peer.replies(1, timeout=1), [])
        peer.socket.send_multipart(good)
        self.assertEqual(len(peer.replies(1)), 1)
        # A replay of an intercepted message, on any channel.
        for channel in ["shell", "control"]:
            other = self.peer(channel)
            other.socket.send_multipart(good)
            self.assertEqual(other.replies(1, timeout=1), [])

    def test_invalid_requests_are_refused_and_end_idle(self):
        peer = self.peer()
        for kind, content in [
            ("execute_request", {}),
            ("execute_request", []),
            ("execute_request", b'{"code": "\\ud800"}'),
            ("execute_request", {"code": "1", "user_expressions": {"a": 5}}),
            ("complete_request", {"code": "a", "cursor_pos": -1}),
            ("inspect_request", {"code": "a", "cursor_pos": 1, "detail_level": "x"}),
            ("history_request", {"hist_access_type": "dance"}),
            ("is_complete_request", {"code": None}),
            ("shutdown_request", {"restart": "maybe"}),
            ("dance_request", {}),
        ]:
            with self.subTest(kind, content=content):
                head = header(kind)
                peer.send(head, content)
                reply = peer.replies(1)[0]
                self.assertEqual((reply["msg_type"], reply["content"]["status"]), (kind.replace("request", "reply"), "error"))
                self.assertEqual(self.states(head), ["busy", "idle"])
        for kind in ["dance", "comm_msg", "comm_close", "comm_open", "status", ""]:
            head = header(kind)
            peer.send(head, {"comm_id": 5})
            self.assertEqual(self.states(head), ["busy", "idle"], kind)
        for kind, content in [("complete_request", {"code": "a"}), ("history_request", {"n": 10**11}), ("connect_request", {})]:
            peer.send(header(kind), content)
            self.assertEqual(peer.replies(1)[0]["content"]["status"], "ok", kind)

    def test_positions_are_counted_in_code_points(self):
        self.run_cell("let word_of_mine = vec![1];")
        for code in ["'😀𝄞é'; word_of", "let a😀 = word_of", "é\u0301\u202e word_of", "a\r\nword_of 😀"]:
            at = code.index("word_of") + 7
            reply = self.client.complete(code, at, reply=True, timeout=TIMEOUT)["content"]
            self.assertEqual((reply["cursor_start"], reply["cursor_end"]), (at - 7, at), code)
            self.assertEqual(reply["matches"], ["word_of_mine"], code)
            for place in range(len(code) + 3):
                for asked in (self.client.complete, self.client.inspect):
                    self.assertEqual(asked(code, place, reply=True, timeout=TIMEOUT)["content"]["status"], "ok")

    def test_private_names_are_never_offered_even_on_a_busy_machine(self):
        self.run_cell("let list = vec![String::new()];\nstruct Vec3 { x: u8 }\nimpl Vec3 { fn len(&self) -> u8 { self.x } fn buf(&self) {} }\nlet mine = Vec3 { x: 1 };")
        for code, offered, private in [
            ("list.", ["push", "len", "first", "iter"], ["buf", "append_elements", "extend_with"]),
            ("Box::new(list.clone()).", ["push", "len"], ["buf", "append_elements"]),
            ("list.iter().map(|text| text.", ["chars", "len"], ["vec"]),
            ("Vec::<u8>::", ["new", "with_capacity"], ["append_elements"]),
            ("std::time::Duration::from_secs(1).", ["as_secs"], ["secs", "nanos"]),
            ("mine.", ["x", "len", "buf"], []),
        ]:
            matches = self.client.complete(code, reply=True, timeout=TIMEOUT)["content"]["matches"]
            self.assertEqual([name for name in offered if name not in matches], [], code)
            self.assertEqual([name for name in private if name in matches], [], code)
            self.assertEqual(len(matches), len(set(matches)), code)

    def test_large_requests_take_linear_time(self):
        peer = self.peer()
        begun = time.monotonic()
        for kind, content in [
            ("is_complete_request", {"code": "a" * (20 << 20)}),
            ("is_complete_request", {"code": "(" * (1 << 20)}),
            ("inspect_request", {"code": "f(" * (1 << 18), "cursor_pos": 1 << 18}),
            ("complete_request", {"code": "a" * (1 << 20)}),
            ("history_request", {"hist_access_type": "search", "pattern": "a*" * 500 + "b"}),
        ]:
            peer.send(header(kind), content)
            self.assertNotEqual(peer.replies(1)[0]["content"]["status"], "error", kind)
        self.assertLess(time.monotonic() - begun, 30)
        self.assertEqual(self.run_cell("// " + "a" * (5 << 20) + "\n2").result(), "2")

    def test_unrequested_input_is_discarded(self):
        peer = self.peer("stdin")
        for content in [{"value": "stray"}, {}, {"value": 5}, []]:
            peer.send(header("input_reply"), content)
        peer.send(header("kernel_info_request"))
        ask = "let mut line = String::new();\nstd::io::stdin().read_line(&mut line)?;\nline.trim().to_owned()"
        # A question gets one line as its answer.
        for answer, read in [("two\nlines", '"two lines"'), ("one", '"one"')]:
            cell = Cell(self.client, ask, allow_stdin=True)
            self.client.get_stdin_msg(timeout=TIMEOUT)
            self.client.input(answer)
            self.assertEqual((cell.end()["status"], cell.result()), ("ok", read))

    def test_a_silent_failure_does_not_abort_queued_cells(self):
        failing = Cell(self.client, 'panic!("alone");', silent=True)
        behind = Cell(self.client, "5")
        self.assertEqual((failing.end()["status"], behind.end()["status"]), ("error", "ok"))

    def test_user_expressions_fail_independently(self):
        asked = {"sum": "1 + 1", "none": "nope", "empty": "", "panic": 'panic!("x")', "open": "(", "quote": "'"}
        for options in [{}, {"silent": True}]:
            told = self.run_cell("3", user_expressions=asked, **options).reply["user_expressions"]
            self.assertEqual(told["sum"]["data"]["text/plain"], "2")
            self.assertEqual({told[name]["status"] for name in asked if name != "sum"}, {"error"})
        failed = self.run_cell('panic!("x");', status="error", user_expressions=asked).reply
        self.assertEqual(failed["user_expressions"], {})

    def test_many_interrupts_end_only_one_process(self):
        peer = self.peer("control")

        def flood(count):
            for _ in range(count):
                peer.send(header("interrupt_request"))
            self.assertEqual(len(peer.replies(count)), count)

        self.run_cell("fn kept() -> i32 { 7 }")
        flood(200)
        self.assertEqual(self.run_cell("kept()").result(), "7")
        cell = Cell(self.client, RUNS_ON)
        cell.until(lambda message: message["msg_type"] == "stream")
        flood(200)
        self.assertEqual(cell.end()["ename"], "Interrupted")
        self.assertEqual(self.run_cell("kept()").result(), "7")

    def test_interrupting_a_compilation_loses_nothing(self):
        self.run_cell("let precious = vec![1, 2, 3];\nfn kept() -> i32 { 7 }")
        peer = self.peer("control")
        for _ in range(3):
            # Slow to compile.
            functions = "".join(f"fn slow_{i}() -> Vec<String> {{ (0..{i}).map(|n| format!(\"{{n:?}}\")).collect() }}\n" for i in range(400))
            cell = Cell(self.client, functions)
            cell.until(lambda message: message["msg_type"] == "execute_input")
            time.sleep(0.3)
            for _ in range(5):
                peer.send(header("interrupt_request"))
            peer.replies(5)
            self.assertIn(cell.end()["status"], ("error", "ok"))
        self.assertEqual(self.run_cell("precious.len() as i32 + kept()").result(), "10")


class Ends(unittest.TestCase):
    def test_a_shutdown_during_a_cell_works_on_both_channels(self):
        for channel in ["control", "shell"]:
            manager, client = start()
            peer = Peer(client, channel)
            try:
                cell = Cell(client, RUNS_ON)
                cell.until(lambda message: message["msg_type"] == "stream")
                for _ in range(3):
                    peer.send(header("shutdown_request"), {"restart": False})
                self.assertEqual(peer.replies(1)[0]["content"], {"status": "ok", "restart": False})
                end = time.monotonic() + 20
                while manager.is_alive() and time.monotonic() < end:
                    time.sleep(0.05)
                self.assertFalse(manager.is_alive(), channel)
            finally:
                peer.socket.close()
                client.stop_channels()
                manager.shutdown_kernel(now=True)
