"""The behaviour of the kernel, checked through jupyter_client.

Run with `python -m unittest discover tests/kernel`, with the kernel installed under the name in CLOZE_KERNEL_NAME
(default: cloze).
"""
import os
import platform
import queue
import re
import stat
import tempfile
import time
import unittest
from pathlib import Path

import zmq
from harness import KERNEL, TIMEOUT, Cell, KernelCase, start
from jupyter_client import KernelManager


class Output(KernelCase):
    def test_a_line_without_a_newline_arrives_while_the_cell_runs(self):
        cell = Cell(self.client, 'print!("50%\\r"); std::thread::sleep(std::time::Duration::from_secs(2)); println!("100%");')
        first = cell.until(lambda m: m["msg_type"] == "stream")
        cell.end()
        self.assertEqual(first["content"]["text"], "50%\r")
        self.assertGreater(cell.messages[-1]["came"] - first["came"], 1.0)
        self.assertEqual(cell.text(), "50%\r100%\n")

    def test_displays_change_in_place_while_the_cell_runs(self):
        cell = self.run_cell(
            """for step in 0..4 {
                   let update = if step > 0 { " update=1" } else { "" };
                   println!("EVCXR_BEGIN_CONTENT text/html display_id=bar{update}\\n{step}\\nEVCXR_END_CONTENT");
                   std::thread::sleep(std::time::Duration::from_millis(400));
               }"""
        )
        self.assertEqual(cell.kinds(), ["display_data"] + ["update_display_data"] * 3)
        shown = [m for m in cell.messages if m["msg_type"].endswith("display_data")]
        self.assertEqual({m["content"]["transient"]["display_id"] for m in shown}, {"bar"})
        self.assertEqual([m["content"]["data"]["text/html"] for m in shown], ["0", "1", "2", "3"])
        self.assertGreater(shown[-1]["came"] - shown[0]["came"], 1.0)

    def test_output_keeps_its_order_and_streams_are_separate(self):
        cell = self.run_cell(
            """println!("a");
               println!("EVCXR_BEGIN_CONTENT text/html\\n<i>b</i>\\nEVCXR_END_CONTENT");
               println!("c");
               eprintln!("d");"""
        )
        self.assertEqual([k for k in cell.kinds() if k != "stream"], ["display_data"])
        self.assertLess(cell.kinds().index("stream"), cell.kinds().index("display_data"))
        self.assertEqual((cell.text(), cell.text("stderr")), ("a\nc\n", "d\n"))

    def test_a_hundred_thousand_switches_between_streams_are_fast(self):
        self.run_cell("1")
        for turns, most in [(500, 1000), (100_000, 5000)]:
            cell = self.run_cell(f'for i in 0..{turns} {{ println!("o{{i}}"); eprintln!("e{{i}}"); }}')
            self.assertEqual(cell.text("stdout"), "".join(f"o{i}\n" for i in range(turns)))
            self.assertEqual(cell.text("stderr"), "".join(f"e{i}\n" for i in range(turns)))
            said = [m["content"]["text"] for m in cell.messages if m["msg_type"] == "stream"]
            # In the order of writing; only after very many switches, stream by stream.
            self.assertTrue("".join(said).startswith("".join(f"o{i}\ne{i}\n" for i in range(500))))
            self.assertLessEqual(len(said), most)
            self.assertLess(cell.messages[-1]["came"], 30)

    def test_a_statement_has_no_result(self):
        self.assertIsNone(self.run_cell("for _ in 0..2 { }").result())
        self.assertIsNone(self.run_cell("()").result())
        self.assertEqual(self.run_cell("1 + 1").result(), "2")

    def test_user_expressions_are_evaluated_with_the_cell(self):
        cell = self.run_cell("let five = 5;", user_expressions={"six": "five + 1", "none": "nothing"})
        six, none = cell.reply["user_expressions"]["six"], cell.reply["user_expressions"]["none"]
        self.assertEqual((six["status"], six["data"]["text/plain"]), ("ok", "6"))
        self.assertEqual(none["status"], "error")
        self.assertEqual(cell.kinds(), [])

    def test_a_silent_cell_shows_nothing_and_is_not_counted(self):
        before = self.run_cell("1").reply["execution_count"]
        cell = self.run_cell('println!("unseen");', silent=True)
        self.assertEqual((cell.kinds(), cell.reply["execution_count"]), ([], before))


class Types(KernelCase):
    def test_the_types_of_the_standard_library_are_known(self):
        """Also where rust-analyzer is shown only an outline."""
        for code in [
            "let map: std::collections::HashMap<String, u8> = Default::default();",
            "let keys = map.keys().cloned().collect::<Vec<_>>();",
            "let age = std::fs::metadata(\".\")?.modified()?.elapsed()?;",
            "let (sender, receiver) = std::sync::mpsc::channel::<i32>();",
            "let status = std::process::Command::new(\"true\").status()?;",
            "let power = 2u32.pow(3).checked_add(1);",
        ]:
            self.run_cell(code)

    @unittest.skipUnless(platform.machine() == "x86_64", "names of this processor's intrinsics")
    def test_intrinsics_have_types(self):
        self.run_cell("use std::arch::x86_64::*;\nlet four = unsafe { _mm_set1_ps(1.0) };")
        self.assertEqual(self.run_cell("let known = is_x86_feature_detected!(\"sse2\");\nknown").result(), "true")


class Failures(KernelCase):
    def fails(self, code, name):
        cell = self.run_cell(code, "error")
        errors = [m["content"] for m in cell.messages if m["msg_type"] == "error"]
        self.assertEqual(len(errors), 1)
        self.assertEqual(errors[0]["ename"], name)
        self.assertEqual(errors[0]["ename"], cell.reply["ename"])
        return errors[0]

    def test_every_kind_of_failure_is_an_error_and_leaves_a_usable_kernel(self):
        self.run_cell("fn kept() -> i32 { 7 }")
        for code, name, told in [
            ('let before = 1;\npanic!("on purpose");', "panic", "on purpose"),
            ('std::fs::read_to_string("/nowhere")?;', "std::io::Error", "No such file"),
            ('let x: u32 = "text";', "error[E0308]", "expected `u32`"),
            ("unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };", "SegmentationFault", "SIGSEGV"),
            ("std::process::exit(3);", "ProcessExited", "exit status: 3"),
            ("std::process::abort();", "Aborted", "SIGABRT"),
            # As the operating system does when memory runs out.
            ('std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status()?;', "Killed", "out of memory"),
        ]:
            with self.subTest(name):
                error = self.fails(code, name)
                self.assertIn(told, "\n".join(error["traceback"]))
                self.assertEqual(self.run_cell("kept()").result(), "7")

    def test_a_panic_points_to_its_line(self):
        error = self.fails('let v: Vec<i32> = vec![];\nlet first = v[0];', "panic")
        traceback = "\n".join(error["traceback"])
        self.assertIn("let first = v[0];", traceback)
        self.assertNotIn("lib.rs", traceback)

    def test_a_panic_in_a_library_points_to_the_calling_line(self):
        self.run_cell('fn earlier(n: usize) -> usize {\n    assert!(n > 0, "not above");\n    n\n}\nlet zero = 0usize;')
        for code, line, told in [
            # Raised in the standard library, by functions that do not know their caller; without a loop, and with one.
            ("let before = 1;\nlet steps = (before..9).step_by(zero).sum::<i32>();", "let steps = (before..9).step_by(zero).sum::<i32>();", "step != 0"),
            ("let mut sum = 0;\nfor n in 1..9 {\n    sum += (1..n).step_by(zero).sum::<usize>();\n}", "    sum += (1..n).step_by(zero).sum::<usize>();", "step != 0"),
            ("std::thread::scope(|s| {\n    s.spawn(|| ()).join().unwrap();\n    None::<i32>.expect(\"a number\");\n});", '    None::<i32>.expect("a number");', "a number"),
            ("let before = 1;\nlet after = earlier(zero);", "let after = earlier(zero);", "not above"),
            ("let before = 1;\nlet worker = std::thread::spawn(|| {\n    let v: Vec<i32> = vec![];\n    v[0]\n});\nstd::panic::resume_unwind(worker.join().unwrap_err());", "    v[0]", "out of bounds"),
        ]:
            with self.subTest(line):
                shown = "\n".join(self.fails(code, "panic")["traceback"])
                self.assertIn(told, shown)
                self.assertRegex(shown, re.escape(f"\x1b[0m {line}\n") + r".*\|.* \x1b\[31m\^\x1b\[0m panicked")
                self.assertNotIn("run_user_code", shown)

    def test_cells_queued_after_a_failure_are_aborted(self):
        first = Cell(self.client, 'std::thread::sleep(std::time::Duration::from_millis(500)); panic!("stop");')
        others = [Cell(self.client, "1"), Cell(self.client, "2")]
        self.assertEqual(first.end()["status"], "error")
        self.assertEqual([cell.end()["status"] for cell in others], ["aborted"] * 2)
        self.run_cell("3")

    def test_queued_cells_continue_after_a_failure_without_stop_on_error(self):
        first = Cell(self.client, 'panic!("go on");', stop_on_error=False)
        second = Cell(self.client, "4")
        self.assertEqual((first.end()["status"], second.end()["status"]), ("error", "ok"))


    def test_a_process_that_ends_just_behind_its_cell_leaves_no_words_to_the_next(self):
        for milliseconds in [0, 0, 1, 1, 2, 3, 5, 10]:
            Cell(self.client, f"std::thread::spawn(|| {{ std::thread::sleep(std::time::Duration::from_millis({milliseconds})); std::process::exit(3) }});").end()
            time.sleep(0.05)
            # Finds no process, or is the first of the next one.
            Cell(self.client, "1").end()
            error = self.fails('eprintln!("before"); panic!("own");', "panic")
            self.assertIn("own", error["evalue"])
            cell = self.run_cell('println!("said"); 5')
            self.assertEqual((cell.text(), cell.result()), ("said\n", "5"), milliseconds)


class Interrupts(KernelCase):
    def test_a_second_interrupt_ends_the_process_and_lists_lost_variables(self):
        self.run_cell("let precious = 1;\nfn kept() -> i32 { 7 }")
        cell = Cell(self.client, 'println!("running");\nloop { std::thread::sleep(std::time::Duration::from_millis(5)); }')
        cell.until(lambda m: m["msg_type"] == "stream")
        self.manager.interrupt_kernel()
        hint = cell.until(lambda m: m["msg_type"] == "stream" and m["content"]["name"] == "stderr")
        self.assertIn("second interrupt", hint["content"]["text"])
        self.manager.interrupt_kernel()
        reply = cell.end()
        self.assertEqual((reply["status"], reply["ename"]), ("error", "Interrupted"))
        self.assertIn("precious", reply["evalue"])
        self.assertEqual(self.run_cell("kept()").result(), "7")

    def test_interrupting_an_idle_kernel_changes_nothing(self):
        self.run_cell("let still_here = 3;")
        self.manager.interrupt_kernel()
        time.sleep(0.3)
        self.assertEqual(self.run_cell("still_here").result(), "3")

    @unittest.skipUnless(os.environ.get("CLOZE_TEST_PRELUDE"), "needs the prelude")
    def test_one_interrupt_stops_code_that_checks_for_it_and_keeps_variables(self):
        self.run_cell("use cloze::prelude::*;\nlet kept = vec![1, 2, 3];")
        cell = Cell(
            self.client,
            """println!("running");
               loop {
                   cloze::interrupt::check("the test")?;
                   std::thread::sleep(std::time::Duration::from_millis(5));
               }""",
        )
        cell.until(lambda m: m["msg_type"] == "stream")
        self.manager.interrupt_kernel()
        reply = cell.end()
        self.assertEqual((reply["status"], reply["ename"]), ("error", "Interrupted"))
        self.assertEqual(self.run_cell("kept.len()").result(), "3")


    @unittest.skipUnless(os.environ.get("CLOZE_TEST_PRELUDE"), "needs the prelude")
    def test_one_interrupt_stops_a_cell_whenever_it_comes(self):
        self.run_cell("use cloze::prelude::*;\nlet kept = vec![1, 2, 3];")
        for step in range(20):
            # Another number, so that it is compiled anew.
            cell = Cell(self.client, f'loop {{ cloze::interrupt::check("step {step}")?; std::thread::sleep(std::time::Duration::from_millis(5)); }}')
            cell.until(lambda m: m["msg_type"] == "execute_input")
            time.sleep(step * 0.03)
            self.manager.interrupt_kernel()
            reply = cell.end()
            self.assertEqual((reply["status"], reply["ename"]), ("error", "Interrupted"), step)
            self.assertNotIn("second interrupt", cell.text("stderr"), step)
        self.assertEqual(self.run_cell("kept.len()").result(), "3")


class Protocol(KernelCase):
    def test_requests_are_answered_while_a_cell_runs(self):
        with tempfile.TemporaryDirectory() as folder:
            done = Path(folder, "done")
            cell = Cell(self.client, f'while !std::path::Path::new("{done}").exists() {{ std::thread::sleep(std::time::Duration::from_millis(10)); }}')
            cell.until(lambda m: m["msg_type"] == "execute_input")
            self.client.kernel_info()
            self.assertEqual(self.client.get_shell_msg(timeout=TIMEOUT)["msg_type"], "kernel_info_reply")
            done.touch()
            self.assertEqual(cell.end()["status"], "ok")

    def test_messages_with_a_wrong_signature_are_dropped(self):
        info = self.client.get_connection_info()
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.connect(f"{info['transport']}://{info['ip']}:{info['shell_port']}")
        session = self.client.session
        request = session.msg("execute_request", {"code": 'println!("forged");', "silent": False})
        good = session.serialize(request)
        forged = good[:1] + [b"0" * len(good[1])] + good[2:]
        socket.send_multipart(forged)
        with self.assertRaises(queue.Empty):
            while True:
                message = self.client.get_iopub_msg(timeout=2)
                self.assertNotEqual(message["parent_header"].get("msg_id"), request["header"]["msg_id"])
        socket.close()
        self.run_cell("1 + 1")

    def test_the_connection_key_is_private(self):
        mode = stat.S_IMODE(os.stat(self.manager.connection_file).st_mode)
        self.assertEqual(mode & 0o077, 0)
        key = self.manager.session.key
        pid = self.manager.provisioner.pid
        self.assertNotIn(key, Path(f"/proc/{pid}/cmdline").read_bytes())

    def test_it_listens_only_at_the_addresses_of_the_connection_file(self):
        pid = self.manager.provisioner.pid
        own = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        listening = {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}
        ports = [value for name, value in self.client.get_connection_info().items() if name.endswith("_port")]
        self.assertEqual(listening, {f"0100007F:{port:04X}" for port in ports})

    def test_a_cell_outside_the_history_is_not_counted(self):
        before = self.run_cell("1").reply["execution_count"]
        cell = self.run_cell("2 + 2", store_history=False)
        self.assertEqual((cell.result(), cell.reply["execution_count"]), ("4", before))
        history = self.client.history(hist_access_type="tail", n=1, reply=True, timeout=TIMEOUT)["content"]["history"]
        self.assertEqual(history[-1][2], "1")

    def test_there_are_no_comms(self):
        reply = self.client.comm_info(reply=True, timeout=TIMEOUT)["content"]
        self.assertEqual((reply["status"], reply["comms"]), ("ok", {}))

    def test_displays_carry_their_metadata(self):
        cell = self.run_cell(
            'println!("EVCXR_BEGIN_CONTENT image/svg+xml metadata={{\\"width\\": 20}}\\n<svg/>\\nEVCXR_END_CONTENT");'
        )
        shown = [m["content"] for m in cell.messages if m["msg_type"] == "display_data"]
        self.assertEqual([content["metadata"] for content in shown], [{"image/svg+xml": {"width": 20}}])

    def test_input_is_requested_from_the_front_end(self):
        code = """println!("EVCXR_INPUT_REQUEST:name? ");
                  let mut line = String::new();
                  std::io::stdin().read_line(&mut line)?;
                  line.trim().to_owned()"""
        cell = Cell(self.client, code, allow_stdin=True)
        question = self.client.get_stdin_msg(timeout=TIMEOUT)
        self.assertEqual((question["msg_type"], question["content"]["prompt"]), ("input_request", "name? "))
        self.client.input("Ferris")
        self.assertEqual(cell.end()["status"], "ok")
        self.assertEqual(cell.result(), '"Ferris"')

    def ask(self, kind, **options):
        code = f"""println!("EVCXR_INPUT_REQUEST{kind}:say: ");
                   let mut line = String::new();
                   std::io::stdin().read_line(&mut line)?;
                   line.trim().to_owned()"""
        return Cell(self.client, code, **options)

    def test_password_prompts_are_marked_as_passwords(self):
        cell = self.ask("_PASSWORD", allow_stdin=True)
        question = self.client.get_stdin_msg(timeout=TIMEOUT)["content"]
        self.assertEqual((question["prompt"], question["password"]), ("say: ", True))
        self.client.input("sesame")
        self.assertEqual((cell.end()["status"], cell.result()), ("ok", '"sesame"'))

    def test_an_interrupt_ends_a_cells_wait_for_input(self):
        cell = self.ask("", allow_stdin=True)
        self.client.get_stdin_msg(timeout=TIMEOUT)
        self.manager.interrupt_kernel()
        self.assertEqual((cell.end()["status"], cell.result()), ("ok", '""'))

    def test_a_front_end_without_stdin_gives_an_empty_line(self):
        cell = self.ask("", allow_stdin=False)
        self.assertEqual((cell.end(timeout=TIMEOUT)["status"], cell.result()), ("ok", '""'))
        self.assertIn("can't give", cell.text("stderr"))
        self.assertEqual(self.ask("", silent=True).end(timeout=TIMEOUT)["status"], "ok")

    def test_completion_knows_the_sessions_own_names(self):
        self.run_cell("struct Walrus { tusks: u8 }\nimpl Walrus { fn roar(&self) {} }\nlet w = Walrus { tusks: 2 };")
        reply = self.client.complete("w.ro", reply=True, timeout=TIMEOUT)["content"]
        self.assertTrue(any(match.startswith("roar") for match in reply["matches"]), reply)
        self.assertEqual((reply["cursor_start"], reply["cursor_end"]), (2, 4))

    def test_an_unknown_comm_is_closed(self):
        message = self.client.session.msg("comm_open", {"comm_id": "c", "target_name": "nobody", "data": {}})
        self.client.shell_channel.send(message)
        while (answer := self.client.get_iopub_msg(timeout=TIMEOUT))["msg_type"] != "comm_close":
            pass
        self.assertEqual(answer["content"]["comm_id"], "c")

    def test_unknown_requests_are_refused(self):
        message = self.client.session.msg("dance_request", {})
        self.client.shell_channel.send(message)
        reply = self.client.get_shell_msg(timeout=TIMEOUT)
        self.assertEqual((reply["msg_type"], reply["content"]["status"]), ("dance_reply", "error"))


class Sessions(unittest.TestCase):
    def test_two_kernels_run_side_by_side(self):
        pairs = [start() for _ in range(2)]
        try:
            cells = [Cell(client, f"let mine = {number};\nmine * 10") for number, (_, client) in enumerate(pairs, 1)]
            self.assertEqual([cell.end()["status"] for cell in cells], ["ok", "ok"])
            self.assertEqual([cell.result() for cell in cells], ["10", "20"])
        finally:
            for manager, client in pairs:
                client.stop_channels()
                manager.shutdown_kernel()

    def test_ipc_sockets_are_served(self):
        with tempfile.TemporaryDirectory() as folder:
            manager = KernelManager(kernel_name=KERNEL, transport="ipc", ip=f"{folder}/kernel")
            manager.start_kernel()
            client = manager.client()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=TIMEOUT)
                cell = Cell(client, "2 + 3")
                self.assertEqual((cell.end()["status"], cell.result()), ("ok", "5"))
            finally:
                client.stop_channels()
                manager.shutdown_kernel()

    def test_a_restart_forgets_variables(self):
        manager, client = start()
        try:
            self.assertEqual(Cell(client, "let gone = 1;").end()["status"], "ok")
            manager.restart_kernel()
            client.wait_for_ready(timeout=TIMEOUT)
            self.assertEqual(Cell(client, "gone").end()["status"], "error")
            self.assertEqual(Cell(client, "2 + 2").end()["status"], "ok")
        finally:
            client.stop_channels()
            manager.shutdown_kernel()


@unittest.skipUnless(os.environ.get("CLOZE_TEST_LONG"), "takes minutes: set CLOZE_TEST_LONG")
class Endurance(KernelCase):
    CELLS = 500

    def resident(self):
        """Memory in MiB of the kernel and of the process that runs its cells."""
        kernel = self.manager.provisioner.pid
        pids = {task.read_text() for task in Path(f"/proc/{kernel}/task").glob("*/children")}
        pids = [kernel, *(int(pid) for text in pids for pid in text.split())]
        sizes = []
        for pid in pids:
            status = Path(f"/proc/{pid}/status").read_text()
            sizes.append(int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024)
        return sizes

    def test_500_cells_do_not_leak_memory(self):
        self.run_cell("let mut total = 0u64;")
        sizes = []
        for number in range(self.CELLS):
            self.run_cell(f"total += {number}; total")
            if number % 100 == 99:
                sizes.append(self.resident())
        self.assertEqual(self.run_cell("total").result(), str(sum(range(self.CELLS))))
        kernel, cells = zip(*sizes)
        self.assertLess(kernel[-1] - kernel[0], 50, sizes)
        # The library of each cell stays loaded: variables may have its types.
        self.assertLess(cells[-1] - cells[0], self.CELLS * 0.1, sizes)


if __name__ == "__main__":
    unittest.main()
