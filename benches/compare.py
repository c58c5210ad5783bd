"""Times a benchmark of this crate and its peer in Python in turns, so that both meet the same machine.

Usage: PYTHON benches/compare.py {train_step,prepare,fill_mask} [--times 3] [--binary FILE] [options of both]

    train_step   --batch 8 --seq 128 --steps 8 --dtype f32 --device cpu, --compile for the peer alone
    fill_mask    goes to compare_fill_mask.py, which has more peers and its own options
    prepare      --records 5000 --num-proc 2 --rounds 3 --text FILE, --parquet for the kind of file

Run it with a Python that has torch, transformers and datasets. Prints every run as a JSON line, then a table of the medians
over the runs, their spread and the ratios.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
# What a run achieves, and its unit.
RATES = {
    "train_step": ("tokens/s", "tokens_per_s"), "prepare": ("tokens/s", "tokens_per_s"),
}


def run(command, quiet=False):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or (not lines and not quiet):
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    if quiet:
        return None
    print(lines[-1], flush=True)
    return json.loads(lines[-1])


def build(bench, features):
    command = ["cargo", "bench", "--locked", "--bench", bench, "--no-run", "--message-format=json", *features]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == bench][-1]


def main():
    if sys.argv[1:2] == ["fill_mask"]:
        os.execv(sys.executable, [sys.executable, os.path.join(HERE, "compare_fill_mask.py"), *sys.argv[2:]])
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", choices=list(RATES))
    parser.add_argument("--times", type=int, default=3, help="runs of each")
    parser.add_argument("--binary", help="the benchmark, if it is built already")
    parser.add_argument("--compile", action="store_true", help="let the peer use torch.compile")
    parser.add_argument("--parquet", action="store_true", help="read the records from Parquet")
    a, both = parser.parse_known_args()
    features = ["--features", "cuda"] if "cuda" in both else []
    ours = [a.binary or build(a.bench, features), *both]
    peer = [sys.executable, os.path.join(HERE, f"peer_{a.bench}.py"), *both]
    peer += ["--compile"] if a.compile else []
    with tempfile.TemporaryDirectory() as folder:
        # What both are given: a model and texts, or records.
        given = {
            "train_step": [],
            "prepare": ["--data", os.path.join(folder, "records.parquet" if a.parquet else "records.jsonl"), "--tokenizer", os.path.join(ROOT, "data/tiny_roberta")],
        }[a.bench]
        if given:
            run([*ours, *given, "--prepare"], quiet=True)
        results = {"cloze": [], "peer": []}
        for _ in range(a.times):
            results["cloze"].append(run([*ours, *given]))
            results["peer"].append(run([*peer, *given]))

    unit, rate = RATES[a.bench]
    medians = []
    print(f"\n{'':40} {'median s':>9} {'spread s':>17} {unit:>10} {'peak MiB':>9}")
    for runs in results.values():
        times = [r["median_s"] for r in runs]
        median, memory = statistics.median(times), max(r["peak_rss_mib"] for r in runs)
        speed = statistics.median(r[rate] for r in runs)
        medians.append((median, speed, memory))
        spread = f"{min(times):.3f} - {max(times):.3f}"
        print(f"{runs[0]['peer']:40} {median:9.3f} {spread:>17} {speed:10.0f} {memory:9.0f}")
    (time, speed, memory), (peer_time, peer_speed, peer_memory) = medians
    print(f"{'peer / cloze':40} {peer_time / time:9.2f} {'':17} {peer_speed / speed:10.3f} {peer_memory / memory:9.2f}")


if __name__ == "__main__":
    main()
