"""Times notebooks' cells in several Jupyter kernels, in turns: from the start of a kernel to its first result, then cell by
cell from the request until the kernel is idle again.

    python benches/kernel_latency.py cloze rust --rounds 3

prints the medians as a table and one JSON line. Needs jupyter_client. The stock kernel (`cargo install evcxr_jupyter`)
keeps what it built from one start to the next where EVCXR_TMPDIR names a folder; the first round of all, which builds
what is not there yet, is reported apart.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

from jupyter_client import KernelManager

ROOT = Path(__file__).resolve().parents[1]
LOAD = f':dep cloze = {{ path = "{ROOT}" }}\nuse cloze::prelude::*;'
FIRST = "let t = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;"
PLAIN = [
    "let a = 1 + 1;",
    "a * 2",
    'println!("{a}");',
    "fn twice(x: i32) -> i32 { x * 2 }",
    "twice(a)",
    "let v: Vec<usize> = (0..10).collect();",
    "v.iter().sum::<usize>()",
    'let text = String::from("The Milky Way is a <mask> galaxy.");',
    "text.len()",
    "struct Pair { left: i32, right: i32 }\nlet pair = Pair { left: 1, right: 2 };",
    "pair.left + pair.right",
]
CALLS = [
    "let u = (&t + 1.0)?;",
    "u.sum_all()?.to_scalar::<f32>()?",
    'let tokenizer = Tokenizer::from_pretrained("bundled:tiny_roberta")?;',
    "let ids = tokenizer.encode_ids(&text)?;",
    "ids.len()",
    'let asks = load_eli5("train_asks")?.flatten()?;',
]
# A model and its first guess.
FILL = [
    'let fill = FillMask::from_pretrained("bundled:tiny_roberta")?;',
    'fill.fill("The Milky Way is a <mask> galaxy.")?',
]
DISPLAYS = ["tokenizer.encode(&text)?", "asks.clone()"]


def execute(client, code):
    failed = []
    def seen(message):
        if message["msg_type"] == "error":
            failed.append(message["content"]["evalue"])
    start = time.perf_counter()
    reply = client.execute_interactive(code, timeout=3600, output_hook=seen)
    seconds = time.perf_counter() - start
    if failed or reply["content"]["status"] != "ok":
        raise RuntimeError(f"{code!r} failed: {failed or reply['content']}")
    return seconds


def session(kernel):
    start = time.perf_counter()
    manager = KernelManager(kernel_name=kernel)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=600)
        times = {"start to ready": time.perf_counter() - start}
        execute(client, LOAD)
        execute(client, FIRST)
        times["start to first Tensor"] = time.perf_counter() - start
        for name, cell in zip(["cell that opens a model", "first fill"], FILL):
            times[name] = execute(client, cell)
        for name, cells in [("plain cell", PLAIN), ("cell that calls the library", CALLS), ("cell that shows a value", DISPLAYS)]:
            times[name] = [execute(client, code) for code in cells]
        return times
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def median(rounds, name):
    values = [value for times in rounds for value in (times[name] if isinstance(times[name], list) else [times[name]])]
    return statistics.median(values), min(values), max(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="all was built by an earlier run: leave out the first round")
    arguments = parser.parse_args()
    building = {} if arguments.warm else {kernel: session(kernel)["start to first Tensor"] for kernel in arguments.kernels}
    rounds = {kernel: [] for kernel in arguments.kernels}
    for _ in range(arguments.rounds):
        for kernel in arguments.kernels:
            rounds[kernel].append(session(kernel))
            print(json.dumps({kernel: rounds[kernel][-1]}), flush=True)
    names = list(rounds[arguments.kernels[0]][0])
    print("| median of", f"{arguments.rounds} rounds |", " | ".join(arguments.kernels), "|")
    print("|---" * (len(arguments.kernels) + 1) + "|")
    for name in names:
        shown = ("{:.2f} s ({:.2f} - {:.2f})".format(*median(rounds[kernel], name)) for kernel in arguments.kernels)
        print("|", name, "|", " | ".join(shown), "|")
    print(json.dumps({"building": building, "rounds": rounds}))


if __name__ == "__main__":
    main()
