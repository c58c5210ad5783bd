"""Times each fused operation of this crate and PyTorch's way of doing the same, in turns, and prints a table.

Usage: PYTHON benches/compare_ops.py [--rounds 3] [--batch 8] [--seq 128] [--binary FILE]; with --peer it is the peer itself.

Run it with a Python that has torch. JSON lines first, then medians over the rounds; `ratio` is the peer's time over ours.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from compare import build

HERE = os.path.dirname(os.path.abspath(__file__))
HIDDEN, INNER, HEADS, VOCAB = 768, 3072, 12, 50265


def peer(batch, seq, rounds=15):
    import torch
    import torch.nn.functional as F

    rows, counted = batch * seq, (batch * seq * 3 + 19) // 20

    def say(op, direction, prepare, run):
        wall, cpu = [], []
        for i in range(rounds + 2):
            given = prepare()
            start, used = time.perf_counter(), time.process_time()
            run(given)
            if i >= 2:
                wall.append(time.perf_counter() - start)
                cpu.append(time.process_time() - used)
            del given
        print(json.dumps({"bench": "ops", "peer": f"torch {torch.__version__}", "op": op, "pass": direction, "batch": batch,
                          "seq": seq, "ms": statistics.median(wall) * 1e3, "cpu_ms": statistics.median(cpu) * 1e3}), flush=True)

    def both(op, f, leaves):
        def back(y):
            for leaf in leaves:
                leaf.grad = None
            y.backward(torch.ones_like(y))
        say(op, "forward", lambda: None, lambda _: f())
        say(op, "backward", f, back)

    def leaf(*shape):
        return torch.randn(*shape).mul_(0.02).requires_grad_()

    for name, width, out, gelu in [("linear 768-768", HIDDEN, HIDDEN, False), ("linear gelu 768-3072", HIDDEN, INNER, True),
                                   ("linear 3072-768", INNER, HIDDEN, False)]:
        x, w, b = leaf(batch, seq, width), leaf(out, width), leaf(out)
        both(name, lambda: F.gelu(F.linear(x, w, b)) if gelu else F.linear(x, w, b), [x, w, b])
    q, k, v = leaf(batch, seq, HIDDEN), leaf(batch, seq, HIDDEN), leaf(batch, seq, HIDDEN)

    def attention():
        a, b, c = [x.view(batch, seq, HEADS, -1).transpose(1, 2) for x in (q, k, v)]
        probs = F.dropout(torch.softmax(a @ b.transpose(-1, -2) / (HIDDEN // HEADS) ** 0.5, -1), 0.1)
        return (probs @ c).transpose(1, 2).reshape(batch, seq, HIDDEN)

    both("attention", attention, [q, k, v])
    x, w, b = leaf(batch, seq, HIDDEN), leaf(HIDDEN), leaf(HIDDEN)
    both("dropout + residual + layer norm", lambda: F.layer_norm(F.dropout(x, 0.1) + q, (HIDDEN,), w, b), [x, q, w, b])
    both("dropout", lambda: F.dropout(x, 0.1), [x])
    words, positions, kinds = leaf(VOCAB, HIDDEN), leaf(514, HIDDEN), leaf(1, HIDDEN)
    ids = (torch.arange(rows) * 7919 % 50_000).view(batch, seq)
    places, zeros = torch.arange(2, seq + 2).expand(1, seq), torch.zeros_like(ids)
    both("embedding sum", lambda: F.embedding(ids, words, 1) + F.embedding(places, positions, 1) + F.embedding(zeros, kinds),
         [words, positions, kinds])
    hidden, bias = leaf(counted, HIDDEN), leaf(VOCAB)
    labels = torch.arange(counted) * 7919 % 50_000
    both("vocabulary + cross entropy", lambda: F.cross_entropy(F.linear(hidden, words, bias), labels, reduction="sum"),
         [hidden, words, bias])
    params = [words] + [leaf(INNER, HIDDEN) for _ in range(18)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW(params, fused=True)
    say("gradient norm", "forward", lambda: None,
        lambda _: torch.nn.utils.get_total_norm([p.grad for p in params]))
    say("AdamW", "forward", lambda: None, lambda _: optimizer.step())


def lines(command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.path.dirname(HERE))
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not found:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    print("\n".join(found), flush=True)
    return [json.loads(line) for line in found]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--binary", help="the benchmark, if it is built already")
    parser.add_argument("--peer", action="store_true")
    a = parser.parse_args()
    if a.peer:
        return peer(a.batch, a.seq)
    ours = a.binary or build("ops", [])
    size = ["--batch", str(a.batch), "--seq", str(a.seq)]
    results = {}
    for _ in range(a.rounds):
        for side, command in [("ours", [ours, *size]), ("peer", [sys.executable, os.path.abspath(__file__), "--peer", *size])]:
            for line in lines(command):
                results.setdefault((line["op"], line["pass"]), {}).setdefault(side, []).append(line)
    print(f"\n{'operation':32} {'pass':9} {'ours ms':>8} {'GFLOP/s':>8} {'GB/s':>6} {'peer ms':>8} {'ratio':>6} {'cpu ratio':>9}")
    for (op, direction), sides in results.items():
        def mid(side, key):
            return statistics.median(line[key] for line in sides[side])
        print(f"{op:32} {direction:9} {mid('ours', 'ms'):8.2f} {mid('ours', 'gflops'):8.0f} {mid('ours', 'gbps'):6.1f} {mid('peer', 'ms'):8.2f} "
              f"{mid('peer', 'ms') / mid('ours', 'ms'):6.2f} {mid('peer', 'cpu_ms') / mid('ours', 'cpu_ms'):9.2f}")


main()
