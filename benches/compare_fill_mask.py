"""Times fill_mask.rs and its peers in turns at three sizes, so that all meet the same machine: at f32, bf16 and int8 beside
ONNX Runtime, OpenVINO and the pipeline of transformers. `compare.py fill_mask` comes here.

Usage: PYTHON benches/compare_fill_mask.py [--times 3] [--rounds 30] [--threads 2] [--sizes 1x10,1x128,32x32]
       [--only cloze:f32,onnxruntime:f32,...] [--binary FILE] [--model DIR]

Run it with a Python that has torch, transformers, onnxruntime, onnx, onnxscript and openvino; peers that are not installed are
left out. Prints every run as a JSON line, then a table for each size: medians over the runs of wall time and of processor
time (of all threads, waiting in a loop included), the rate, its share of the ceiling (the fastest of the model's products at
that precision, measured here), and each time in proportion to ONNX Runtime's in f32. The graph's time is that of a peer's
graph without its tokenizer.
"""
import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile

from compare import HERE, ROOT, build

PROGRAMS = ["cloze:f32", "cloze:bf16", "cloze:int8", "onnxruntime:f32", "onnxruntime:int8", "openvino:f32", "transformers:f32"]
REFERENCE = "onnxruntime:f32"


def run(command, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    if lines:
        print(lines[-1], flush=True)
        return json.loads(lines[-1])


def table(size, programs, runs, gflop, ceilings):
    def middle(name, key):
        values = [r[key] for r in runs[name] if r.get(key) is not None]
        return statistics.median(values) if values else float("nan")

    reference = middle(REFERENCE, "median_s") if REFERENCE in programs else float("nan")
    print(f"\n{size + ' tokens':32} {'ms':>8} {'spread':>15} {'graph ms':>9} {'CPU ms':>8} {'GFLOP/s':>8} {'ceiling':>8} "
          f"{'/ ORT f32':>9} {'MiB':>6}")
    for name in programs:
        times = [1000 * r["median_s"] for r in runs[name]]
        time = middle(name, "median_s")
        rate = runs[name][0].get("gflop_done", gflop) / time
        ceiling = ceilings.get(name.split(":")[1])
        share = f"{100 * rate / ceiling:.0f}%" if ceiling else ""
        print(f"{runs[name][0]['peer'][:32]:32} {1000 * time:8.1f} {min(times):7.1f} -{max(times):6.1f} "
              f"{1000 * middle(name, 'graph_median_s'):9.1f} {1000 * middle(name, 'cpu_s'):8.1f} {rate:8.0f} {share:>8} "
              f"{time / reference:9.2f} {max(r['peak_rss_mib'] for r in runs[name]):6.0f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=3, help="runs of each")
    parser.add_argument("--rounds", type=int, default=30, help="calls of a run, a third of them for many tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default="1x10,1x128,32x32", help="texts x tokens")
    parser.add_argument("--only", default=",".join(PROGRAMS))
    parser.add_argument("--binary", help="the benchmark, if it is built already")
    parser.add_argument("--model", help="where the model and its exported graphs are kept from run to run")
    a = parser.parse_args()
    ours = a.binary or build("fill_mask", [])
    there = [name for name in a.only.split(",") if name.startswith("cloze") or importlib.util.find_spec(name.split(":")[0])]
    with tempfile.TemporaryDirectory() as scratch:
        model = a.model or os.path.join(scratch, "model")
        commands = {}
        for name in there:
            program, precision = name.split(":")
            commands[name] = {
                "cloze": [ours, "--precision", precision],
                "transformers": [sys.executable, os.path.join(HERE, "peer_fill_mask.py")],
            }.get(program) or [sys.executable, os.path.join(HERE, "peer_onnx.py"), "--runtime", program, "--precision", precision,
                               "--threads", str(a.threads)]
        precisions = {name.split(":")[1] for name in there if name.startswith("cloze")}
        ceilings = {p: run([ours, "--ceiling", "--precision", p], a.threads)["gflop_per_s"] for p in sorted(precisions)}
        tables = []
        for size in a.sizes.split(","):
            texts, length = map(int, size.split("x"))
            rounds = a.rounds if texts * length < 512 else max(a.rounds // 3, 1)
            shape = ["--model", model, "--texts", str(texts), "--length", str(length)]
            run([ours, *shape, "--prepare"], a.threads)
            runs = {name: [] for name in there}
            for _ in range(a.times):
                for name in there:
                    given = shape if name.startswith("cloze") else shape[:2]
                    runs[name].append(run([*commands[name], *given, "--rounds", str(rounds)], a.threads))
            gflop = next((r["gflop"] for rs in runs.values() for r in rs if "gflop" in r), float("nan"))
            tables.append((size, there, runs, gflop, ceilings))
        print("\nceilings, GFLOP/s: " + ", ".join(f"{p} {c:.0f}" for p, c in ceilings.items()))
        for each in tables:
            table(*each)


if __name__ == "__main__":
    main()
