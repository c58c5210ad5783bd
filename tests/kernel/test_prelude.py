"""Sessions with the prelude loaded: training, interrupts of Cloze's own work, names and their documentation.

Run with `python -m unittest discover tests/kernel` and CLOZE_TEST_PRELUDE set, after `cloze install`: a kernel that must
build its prelude first takes minutes to answer.
"""
import http.server
import json
import os
import re
import stat
import tempfile
import threading
import unittest
from pathlib import Path

import nbformat
from harness import KERNEL, TIMEOUT, Cell, KernelCase, start
from nbclient import NotebookClient

DATA = """
use cloze::prelude::*;
let tokenizer = Tokenizer::from_pretrained("bundled:tiny_roberta")?;
let asks = load_eli5("train_asks")?.train_test_split(TrainTestSplit::new(0.2).seed(42))?.flatten()?;
let model = MaskedLm::from_pretrained("bundled:tiny_roberta")?;
"""
BLOCKS = """
fn tokenize(tokenizer: &Tokenizer, asks: &DatasetDict) -> Map {
    Map::new(tokenizer.tokenize_column("answers.text")).batched().cache(false).remove_columns(asks["train"].column_names())
}
let blocks = asks.map(tokenize(&tokenizer, &asks))?.group_texts(128)?;
"""
TRAINER = """
let arguments = TrainingArguments::new("{folder}").num_train_epochs({epochs})
    .logging_steps(1).eval_strategy(IntervalStrategy::Epoch).save_strategy(IntervalStrategy::No);
let mut trainer = Trainer::new(
    model.clone(), arguments, blocks["train"].clone(), blocks["test"].clone(), MaskingCollator::new(&tokenizer),
);
"""

needs_prelude = unittest.skipUnless(os.environ.get("CLOZE_TEST_PRELUDE"), "needs the prelude: set CLOZE_TEST_PRELUDE")


@needs_prelude
class Work(KernelCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = tempfile.TemporaryDirectory()
        for code in (DATA, BLOCKS, TRAINER.format(folder=cls.folder.name + "/run", epochs=500)):
            reply = Cell(cls.client, code).end()
            assert reply["status"] == "ok", reply

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()

    def steps_shown(self, cell):
        """The steps that the training's display showed, in order."""
        shown = [m["content"]["data"]["text/plain"] for m in cell.messages if m["msg_type"].endswith("display_data")]
        return [int(found[1]) for text in shown if (found := re.match(r"step (\d+)/", text))]

    def interrupt_training(self, code):
        cell = Cell(self.client, code)
        cell.until(lambda _: len(set(self.steps_shown(cell))) >= 3)
        self.manager.interrupt_kernel()
        return cell, cell.end()

    def test_interrupted_training_gives_its_history_and_goes_on_later(self):
        cell, reply = self.interrupt_training("let history = trainer.train()?;\nhistory")
        self.assertEqual(reply["status"], "ok", reply)
        seen = self.steps_shown(cell)
        self.assertEqual(seen, sorted(seen))
        displays = {m["content"]["transient"]["display_id"] for m in cell.messages if m["msg_type"].endswith("display_data")}
        self.assertEqual(len(displays), 1, "one display changes in place")
        last = [m["content"]["data"] for m in cell.messages if m["msg_type"].endswith("display_data")][-1]
        self.assertIn("interrupted", last["text/html"])
        self.assertIn("interrupted", last["text/plain"])
        self.assertEqual(self.run_cell("history.interrupted").result(), "true")
        first = int(self.run_cell("history.step()").result())
        self.assertGreaterEqual(first, seen[-1])
        self.run_cell('FillMask::new(model.clone(), tokenizer.clone()).fill("The <mask> is round.")?')
        cell, reply = self.interrupt_training("let history = trainer.train()?;")
        self.assertEqual(reply["status"], "ok", reply)
        self.assertGreaterEqual(self.steps_shown(cell)[0], first)
        self.assertGreater(int(self.run_cell("history.step()").result()), first)

    def test_progress_comes_at_most_five_times_a_second(self):
        cell, _ = self.interrupt_training("let pace = trainer.train()?;")
        came = [m["came"] for m in cell.messages if m["msg_type"] == "update_display_data"]
        # The last state is shown whenever it comes.
        for before, after in zip(came[:-2], came[1:-1]):
            self.assertGreater(after - before, 0.12)

    def test_other_work_ends_with_an_interrupted_error_and_keeps_variables(self):
        self.run_cell("let fill = FillMask::new(model.clone(), tokenizer.clone());\nlet texts = vec![\"A <mask>.\"; 64];")
        for name, work in [
            ("map", "asks.map(Map::new(|batch: &Batch| Ok(batch.clone())))?;"),
            ("tokenize", "asks.map(tokenize(&tokenizer, &asks))?;"),
            ("group", "blocks.group_texts(GroupTexts::new(64).cache(false))?;"),
            ("evaluate", "trainer.evaluate()?;"),
            ("fill", "fill.fill_batch(&texts)?;"),
        ]:
            with self.subTest(name):
                cell = Cell(self.client, f'println!("running");\nloop {{ {work} }}')
                cell.until(lambda m: m["msg_type"] == "stream")
                self.manager.interrupt_kernel()
                reply = cell.end(timeout=30)
                self.assertEqual((reply["status"], reply["ename"]), ("error", "Interrupted"), reply)
                self.assertIn("interrupted while", reply["evalue"])
                self.assertEqual(self.run_cell("texts.len()").result(), "64")

    def test_work_shows_a_bar_that_moves(self):
        cell = self.run_cell(
            """let slow = Map::new(|batch: &Batch| { std::thread::sleep(std::time::Duration::from_millis(4)); Ok(batch.clone()) });
               let slow = asks.map(slow.num_proc(1))?;"""
        )
        updates = [m["content"]["data"]["text/plain"] for m in cell.messages if m["msg_type"] == "update_display_data"]
        self.assertGreaterEqual(len(updates), 2, cell.kinds())
        self.assertRegex(updates[0], r"^Map [\d,]+ / [\d,]+ rows")

    def test_values_show_themselves_as_html_and_text(self):
        for code, told in [
            ("asks", "train"),
            ("asks[\"train\"].row(0)?", "q_id"),
            ("fill_view.fill(\"The <mask> is round.\")?", "<table"),
            ("model", "layers"),
            ("tokenizer", "vocab"),
        ]:
            with self.subTest(code):
                if code.startswith("fill_view"):
                    self.run_cell("let fill_view = FillMask::new(model.clone(), tokenizer.clone());")
                cell = self.run_cell(code)
                results = [m["content"]["data"] for m in cell.messages if m["msg_type"] == "execute_result"]
                self.assertEqual(len(results), 1, cell.kinds())
                self.assertIn(told, results[0]["text/html"])
                self.assertGreater(len(results[0]["text/plain"]), 0)

    def test_an_error_of_the_library_is_the_cells_error(self):
        cell = self.run_cell('Tokenizer::from_pretrained("/no/such/folder")?;', "error")
        self.assertEqual(cell.reply["ename"], "cloze::Error")
        self.assertIn("/no/such/folder", cell.reply["evalue"])
        cell = self.run_cell('asks["nowhere"].len()', "error")
        self.assertEqual(cell.reply["ename"], "panic")
        self.assertIn("nowhere", cell.reply["evalue"])
        traceback = "\n".join(cell.reply["traceback"])
        self.assertIn('asks["nowhere"].len()', traceback)
        self.assertNotIn("evcxr", traceback)

    def test_completion_knows_the_prelude(self):
        for code, wanted in [
            ("Tokenizer::", "from_pretrained"),
            ("tokenizer.enc", "encode"),
            ("TrainingArguments::new(\"x\").learn", "learning_rate"),
            ("MaskedLm::from_pretrained(\"x\")?.forw", "forward"),
            ("load_el", "load_eli5"),
        ]:
            with self.subTest(code):
                reply = self.client.complete(code, reply=True, timeout=TIMEOUT)["content"]
                self.assertTrue(any(match.startswith(wanted) for match in reply["matches"]), reply["matches"][:20])
                self.assertEqual(reply["cursor_end"], len(code))

    def test_inspection_shows_documentation(self):
        for code, at, told in [
            ("Tokenizer::from_pretrained", 26, "from_pretrained"),
            ("MaskingCollator::new(&tokenizer).mlm_probability(0.15)", 40, "0.15"),
            ("trainer.train()", 12, "History"),
            ("load_eli5(\"train_asks\")", 5, "ELI5"),
        ]:
            with self.subTest(code):
                reply = self.client.inspect(code, at, reply=True, timeout=TIMEOUT)["content"]
                self.assertTrue(reply["found"], code)
                self.assertIn(told, reply["data"]["text/plain"])
                self.assertGreater(len(reply["data"]["text/plain"].splitlines()), 2, "a signature and its docs")


@needs_prelude
class Crashes(KernelCase):
    def test_after_a_crash_the_prelude_is_there_at_once(self):
        self.run_cell('use cloze::prelude::*;\nlet t = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;')
        cell = self.run_cell("unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };", "error")
        self.assertEqual(cell.reply["ename"], "SegmentationFault")
        self.assertIn("Lost variables: t", cell.reply["evalue"])
        again = self.run_cell("Tensor::ones((2, 2), DType::F32, &Device::Cpu)?.sum_all()?.to_scalar::<f32>()?")
        self.assertEqual(again.result(), "4.0")


@needs_prelude
class StockNotebooks(KernelCase):
    def test_the_line_that_the_stock_kernel_needs_costs_nothing(self):
        cell = self.run_cell(':dep cloze = { path = ".." }\nuse cloze::prelude::*;')
        self.assertEqual(cell.kinds(), [])
        self.assertLess(cell.messages[-1]["came"], 20)
        self.run_cell("let t = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;")


@needs_prelude
class Notebooks(unittest.TestCase):
    def test_an_executed_notebook_holds_the_last_state_only(self):
        with tempfile.TemporaryDirectory() as folder:
            cells = [DATA, BLOCKS, TRAINER.format(folder=folder, epochs=1), "let history = trainer.train()?;\nhistory"]
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
            NotebookClient(notebook, kernel_name=KERNEL, timeout=300).execute()
        shown = [o for o in notebook.cells[3].outputs if o.output_type in ("display_data", "execute_result")]
        self.assertEqual([o.output_type for o in shown], ["display_data", "execute_result"])
        for told in ("Training Loss", "Validation Loss", "Perplexity", "<img"):
            self.assertTrue(told in shown[0].data["text/html"], told)
        self.assertFalse("<script" in shown[0].data["text/html"])
        self.assertLess(len(nbformat.writes(notebook)), 300_000)
        nbformat.validate(notebook)


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows one token."""

    def do_GET(self):
        good = self.headers.get("Authorization") == "Bearer hf_right"
        body = json.dumps({"name": "ferris", "orgs": [], "auth": {"accessToken": {"displayName": "t", "role": "write"}}})
        body = (body if good else '{"error": "Invalid credentials"}').encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@needs_prelude
class Login(unittest.TestCase):
    def test_a_token_is_asked_for_as_a_password_and_kept_for_the_user_only(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory() as home:
            settings = {"HF_HOME": home, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
            removed = {name: "" for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE")}
            kept = {name: value for name, value in os.environ.items() if name not in removed}
            manager, client = start(env={**kept, **settings})
            try:
                cell = Cell(client, "use cloze::prelude::*;\nnotebook_login()?;", allow_stdin=True)
                question = client.get_stdin_msg(timeout=TIMEOUT)["content"]
                self.assertTrue(question["password"])
                client.input("hf_right")
                reply = cell.end()
                self.assertEqual(reply["status"], "ok", reply)
                self.assertNotIn("hf_right", json.dumps(cell.messages, default=str))
                token = Path(home) / "token"
                self.assertEqual(token.read_text(), "hf_right")
                self.assertEqual(stat.S_IMODE(token.stat().st_mode), 0o600)
            finally:
                client.stop_channels()
                manager.shutdown_kernel()
                server.shutdown()


if __name__ == "__main__":
    unittest.main()
