"""Sessions with the prelude loaded: training, interrupts of Cloze's own work, names and their documentation.

Run with `python -m unittest discover tests/kernel` and CLOZE_TEST_PRELUDE set, after `cloze install`: a kernel that must
build its prelude first takes minutes to answer.
"""
import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import unittest
from pathlib import Path

import nbformat
from harness import KERNEL, TIMEOUT, Cell, KernelCase, start
from jupyter_client.kernelspec import KernelSpecManager
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
let mut trainer = Trainer::new(&model, arguments, &blocks, MaskingCollator::new(&tokenizer));
"""

needs_prelude = unittest.skipUnless(os.environ.get("CLOZE_TEST_PRELUDE"), "needs the prelude: set CLOZE_TEST_PRELUDE")


@needs_prelude
def private_functions(kind):
    """Returns the names of private functions in an inherent `impl` of this type that no public function has.

    Names that public functions of other types have too (single words, mostly) are asked for one by one, as long as there is
    time for it: on a busy machine some of them are offered.
    """
    texts = [path.read_text() for path in (Path(__file__).parents[2] / "src").rglob("*.rs")]
    private = set()
    for text in texts:
        for block in re.findall(rf"^impl {kind} {{\n(.*?)^}}", text, re.M | re.S):
            private |= set(re.findall(r"^    (?:pub\([a-z]+\) )?(?:const )?fn (\w+_\w+)", block, re.M))
    public = {name for text in texts for name in re.findall(r"pub (?:const |unsafe )*fn (\w+)", text)}
    return private - public


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
        """Returns the steps that the training's display showed, in order."""
        shown = [m["content"]["data"]["text/plain"] for m in cell.messages if m["msg_type"].endswith("display_data")]
        return [int(found[1]) for text in shown if (found := re.match(r"step (\d+)/", text))]

    def interrupt_training(self, code):
        cell = Cell(self.client, code)
        cell.until(lambda _: len(set(self.steps_shown(cell))) >= 3)
        self.manager.interrupt_kernel()
        return cell, cell.end()

    def test_interrupted_training_returns_its_history_and_can_be_resumed(self):
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

    def test_progress_is_sent_at_most_five_times_a_second(self):
        cell, _ = self.interrupt_training("let pace = trainer.train()?;")
        came = [m["came"] for m in cell.messages if m["msg_type"].endswith("display_data")]
        # Messages may be late, never early, so that they are counted: one every 0.2 s, the first at once, the last whenever
        # it comes.
        self.assertLessEqual(len(came), came[-1] / 0.2 + 2)

    def test_other_interrupted_work_returns_an_error_and_keeps_variables(self):
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

    def test_map_shows_a_progress_bar(self):
        cell = self.run_cell(
            """let slow = Map::new(|batch: &Batch| { std::thread::sleep(std::time::Duration::from_millis(4)); Ok(batch.clone()) });
               let slow = asks.map(slow.num_proc(1))?;"""
        )
        updates = [m["content"]["data"]["text/plain"] for m in cell.messages if m["msg_type"] == "update_display_data"]
        self.assertGreaterEqual(len(updates), 2, cell.kinds())
        self.assertRegex(updates[0], r"^Map [\d,]+ / [\d,]+ rows")

    def test_evaluation_shows_a_progress_bar(self):
        # Its batches are slow: evaluations of less than half a second show no bar.
        self.run_cell(
            """struct Slow(MaskingCollator);
               impl Collator for Slow {
                   fn collate(&self, examples: &[Example], key: BatchKey) -> cloze::Result<MlmBatch> {
                       std::thread::sleep(std::time::Duration::from_millis(50));
                       self.0.collate(examples, key)
                   }
               }
               let slow = DataLoader::new(blocks["test"].clone(), Slow(MaskingCollator::new(&tokenizer)), 4)?;"""
        )
        batches = int(self.run_cell("slow.len()").result())
        self.assertGreaterEqual(batches, 20)
        def bar(messages):
            return [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"].endswith("display_data")]
        # An interrupted evaluation does not affect the next.
        cell = Cell(self.client, "trainer.evaluate_on(&slow)?;")
        cell.until(lambda _: bar(cell.messages))
        self.manager.interrupt_kernel()
        self.assertEqual(cell.end()["ename"], "Interrupted")
        for _ in range(2):
            shown = bar(self.run_cell("trainer.evaluate_on(&slow)?;").messages)
            self.assertGreaterEqual(len(set(shown)), 2)
            for text in shown:
                self.assertRegex(text, f"^Evaluate [0-9]+ / {batches} batches")
            self.assertTrue(shown[-1].startswith(f"Evaluate {batches} / {batches} batches"), shown[-1])

    def test_values_are_displayed_as_html_and_text(self):
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

    def test_a_split_that_is_moved_out_of_its_dict_says_clone(self):
        cell = self.run_cell('let train = asks["train"];', "error")
        self.assertEqual(cell.reply["ename"], "error[E0507]")
        self.assertIn('asks["train"].clone()', "\n".join(cell.reply["traceback"]))
        self.run_cell('let train = asks["train"].clone();')

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
                self.assertFalse([match for match in reply["matches"] if match.startswith("evcxr")])
        matches = self.client.complete("Tokenizer::", reply=True, timeout=TIMEOUT)["content"]["matches"]
        places = {name: next(at for at, match in enumerate(matches) if match.startswith(name)) for name in ("from_pretrained", "encode", "bos_token")}
        self.assertLess(places["from_pretrained"], places["encode"], matches)
        self.assertLess(places["from_pretrained"], places["bos_token"], matches)

    def test_completion_offers_nothing_private(self):
        # Internal functions of `impl Tokenizer` and `impl Trainer`.
        for kind, value in [("Tokenizer", "tokenizer"), ("Trainer", "trainer")]:
            private = private_functions(kind)
            self.assertGreater(len(private), 3, private)
            for code in [f"{value}.", f"{kind}::"]:
                with self.subTest(code):
                    matches = self.client.complete(code, reply=True, timeout=TIMEOUT)["content"]["matches"]
                    self.assertGreater(len(matches), 5)
                    self.assertEqual(sorted(private & set(matches)), [])

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
    def test_the_prelude_is_available_immediately_after_a_crash(self):
        self.run_cell('use cloze::prelude::*;\nlet t = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;')
        cell = self.run_cell("unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };", "error")
        self.assertEqual(cell.reply["ename"], "SegmentationFault")
        self.assertIn("Lost variables: t", cell.reply["evalue"])
        again = self.run_cell("Tensor::ones((2, 2), DType::F32, &Device::Cpu)?.sum_all()?.to_scalar::<f32>()?")
        self.assertEqual(again.result(), "4.0")


@needs_prelude
class StockNotebooks(KernelCase):
    def test_the_dep_line_of_the_stock_kernel_is_skipped(self):
        cell = self.run_cell(':dep cloze = { path = ".." }\nuse cloze::prelude::*;')
        self.assertEqual(cell.kinds(), [])
        self.assertLess(cell.messages[-1]["came"], 20)
        self.run_cell("let t = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;")


@needs_prelude
class Notebooks(unittest.TestCase):
    def test_an_executed_notebook_keeps_only_the_last_state_of_displays(self):
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
    """A Hub with one token, and one model whose files are sent a few bytes at a time."""

    protocol_version = "HTTP/1.1"
    COMMIT = "c0ffee" + 34 * "0"
    FILES = {"config.json": b'{"model_type": "roberta"}', "tokenizer.json": 1_000_000 * b" "}

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        name = self.path.rsplit("/", 1)[-1]
        if "/resolve/" in self.path and name in self.FILES:
            body = self.FILES[name]
            tag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            return self.send(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": self.COMMIT})
        if self.path.startswith("/api/models/ferris/slow/revision/"):
            return self.send(200, json.dumps({"sha": self.COMMIT, "siblings": [{"rfilename": name} for name in self.FILES]}).encode())
        if self.headers.get("Authorization") == "Bearer hf_right":
            account = {"name": "ferris", "orgs": [], "auth": {"accessToken": {"displayName": "t", "role": "write"}}}
            return self.send(200, json.dumps(account).encode())
        self.send(401, b'{"error": "Invalid credentials"}')

    def send(self, status, body, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for header in dict(headers).items():
            self.send_header(*header)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, len(body), 10_000):
                if start:
                    time.sleep(0.5)
                self.wfile.write(body[start : start + 10_000])
        except OSError:
            self.close_connection = True

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def with_hub():
    """A kernel that uses this server as its Hub, and its HF_HOME."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        settings = {"HF_HOME": home, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        removed = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
        kept = {name: value for name, value in os.environ.items() if name not in removed}
        manager, client = start(env={**kept, **settings})
        try:
            yield manager, client, Path(home)
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
            server.shutdown()
            server.server_close()


@needs_prelude
class Download(unittest.TestCase):
    def test_an_interrupted_download_is_an_error_and_can_be_resumed(self):
        with with_hub() as (manager, client, home):
            setup = Cell(client, "use cloze::prelude::*;\nlet kept = vec![1, 2, 3];")
            self.assertEqual(setup.end()["status"], "ok")
            for _ in range(2):
                cell = Cell(client, 'let tokenizer = Tokenizer::from_pretrained("ferris/slow")?;')
                shown = []
                def moves(message):
                    if message["msg_type"].endswith("display_data"):
                        shown.append(message["content"]["data"]["text/plain"])
                    return len(set(shown)) >= 3
                cell.until(moves)
                self.assertIn("ferris/slow", shown[-1])
                begun = cell.messages[-1]["came"]
                manager.interrupt_kernel()
                reply = cell.end(timeout=30)
                self.assertEqual((reply["status"], reply["ename"]), ("error", "Interrupted"), reply)
                self.assertIn("variables are kept", reply["evalue"])
                self.assertLess(cell.messages[-1]["came"] - begun, 5)
                length = Cell(client, "kept.len()")
                self.assertEqual((length.end()["status"], length.result()), ("ok", "3"))
            part = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
            self.assertTrue(part, "what has arrived is kept for the next attempt")


@needs_prelude
class Login(unittest.TestCase):
    def test_the_token_is_requested_as_a_password_and_stored_privately(self):
        with with_hub() as (_, client, home):
            cell = Cell(client, "use cloze::prelude::*;\nnotebook_login()?;", allow_stdin=True)
            question = client.get_stdin_msg(timeout=TIMEOUT)["content"]
            self.assertTrue(question["password"])
            client.input("hf_right")
            reply = cell.end()
            self.assertEqual(reply["status"], "ok", reply)
            self.assertNotIn("hf_right", json.dumps(cell.messages, default=str))
            token = home / "token"
            self.assertEqual(token.read_text(), "hf_right")
            self.assertEqual(stat.S_IMODE(token.stat().st_mode), 0o600)


if __name__ == "__main__":
    unittest.main()


@needs_prelude
@unittest.skipUnless(shutil.which("mpirun"), "there is no mpirun here (Debian: apt-get install openmpi-bin)")
class Ranks(KernelCase):
    """Training on two ranks, started from a cell."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        lines = "".join(f"The planet number {n} turns around a star of its own.\n" for n in range(64))
        (self.folder / "lines.txt").write_text(lines)

    def launch(self, *settings):
        """Returns a cell that trains with these settings."""
        program = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
        settings = ["train", "--model", "bundled:tiny_roberta", "--dataset", str(self.folder / "lines.txt"), "--output",
                    str(self.folder / "out"), "--line-by-line", "--max-seq-length=24", *settings]
        return f"cloze::distributed::Launch::new(2, {json.dumps(program)}).args({json.dumps(settings)}).run()?;"

    def test_a_cell_shows_the_live_progress_of_two_ranks(self):
        cell = self.run_cell(self.launch("--max-steps=30", "--eval-strategy=steps", "--eval-steps=10", "--save-strategy=no"))
        shown = [(m["came"], m["content"]["text"]) for m in cell.messages if m["msg_type"] == "stream"]
        text = "".join(text for _, text in shown)
        self.assertRegex(text, r"step 1/30, epoch \d.\d\d, loss \d")
        self.assertIn("step 20, epoch", text)
        self.assertEqual(text.count("step 30/30"), 1, "the first rank alone speaks")
        self.assertTrue((self.folder / "out/model.safetensors").exists())
        def came(words):
            return next(when for when, text in shown if words in text)
        self.assertLess(came("step 1/30"), came("saved "))

    def test_a_failing_rank_is_the_cells_error(self):
        cell = self.run_cell(self.launch("--learning-rate=fast"), status="error")
        self.assertIn("on 2 ranks ended with", cell.reply["evalue"])
        self.assertIn("learning", cell.text("stderr"))

    def test_an_interrupt_stops_the_ranks_after_a_checkpoint_and_keeps_variables(self):
        self.run_cell("let kept = 5;")
        cell = Cell(self.client, self.launch("--max-steps=100000", "--save-strategy=no"))
        cell.until(lambda _: "step 1/" in cell.text("stderr"))
        self.manager.interrupt_kernel()
        reply = cell.end(timeout=60)
        self.assertEqual((reply["status"], reply["ename"]), ("error", "Interrupted"), reply)
        self.assertEqual(self.run_cell("kept").result(), "5")
