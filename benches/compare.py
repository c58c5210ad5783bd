"""Times a training step of this crate and of its PyTorch peer in turns, so that both meet the same machine.

Usage: PYTHON benches/compare.py [--rounds 3] [--peer-compile] [--binary FILE] [options of both: --batch --seq --steps --dtype --device]

Run it with a Python that has torch and transformers. Prints every run as a JSON line, then a table of the medians over the
rounds, their spread and the ratios.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.path.dirname(HERE))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    print(lines[-1], flush=True)
    return json.loads(lines[-1])


def build(features):
    command = ["cargo", "bench", "--locked", "--bench", "train_step", "--no-run", "--message-format=json", *features]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=os.path.dirname(HERE)).stdout
    messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    built = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "train_step"]
    return built[-1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binary", help="the benchmark, if it is built already")
    parser.add_argument("--peer-compile", action="store_true", help="let the peer use torch.compile")
    a, both = parser.parse_known_args()
    features = ["--features", "cuda"] if "cuda" in both else []
    ours = [a.binary or build(features), *both]
    peer = [sys.executable, os.path.join(HERE, "peer_train_step.py"), *both]
    peer += ["--compile"] if a.peer_compile else []
    results = {"cloze": [], "peer": []}
    for _ in range(a.rounds):
        results["cloze"].append(run(ours))
        results["peer"].append(run(peer))

    medians = {}
    print(f"\n{'':24} {'median s':>9} {'spread s':>17} {'tokens/s':>9} {'peak MiB':>9}")
    for runs in results.values():
        times = [r["median_s"] for r in runs]
        median = statistics.median(times)
        memory = max(r["peak_rss_mib"] for r in runs)
        tokens = runs[0]["batch"] * runs[0]["seq"] / median
        medians[len(medians)] = (median, memory)
        spread = f"{min(times):.3f} - {max(times):.3f}"
        print(f"{runs[0]['peer']:24} {median:9.3f} {spread:>17} {tokens:9.0f} {memory:9.0f}")
    (time, memory), (peer_time, peer_memory) = medians.values()
    print(f"{'peer / cloze':24} {peer_time / time:9.2f} {'':17} {'':9} {peer_memory / memory:9.2f}")


main()
