"""Makes one table of the JSON lines that train_step and peer_train_step.py printed on a GPU.

Usage: gpu_table.py FILE, with one JSON line a run; `gpu_table.py --test` checks itself.

Runs with equal shape, precision and checkpointing are put side by side: the median of each side's runs, and the ratio of
their speeds. Both sides' MFU counts the model's arithmetic as Cloze's line states it, so that the two compare: what the peer
computes beyond it (the vocabulary product of tokens that do not count) is not work done for the model.
"""
import json
import statistics
import sys

COLUMNS = ["block", "batch", "dtype", "", "tokens/s", "MFU", "peak MiB", "loss", "cloze / peer"]


def read(lines):
    """The runs by what they share; each by peer."""
    runs = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        run = json.loads(line)
        if run.get("bench") != "train_step":
            continue
        key = (run["seq"], run["batch"], run["dtype"], bool(run.get("checkpointing")))
        runs.setdefault(key, {}).setdefault(run["peer"], []).append(run)
    return runs


def median(runs, name):
    values = [run[name] for run in runs if run.get(name) is not None]
    return statistics.median(values) if values else None


def cell(value, form):
    return "-" if value is None else form.format(value)


def rows(runs):
    precisions = ["f32", "tf32", "bf16", "f16"]
    order = lambda key: (key[0], key[1], precisions.index(key[2]) if key[2] in precisions else 9, key[3])
    for key in sorted(runs, key=order):
        seq, batch, dtype, checkpointing = key
        sides = runs[key]
        ours = sides.get("cloze", [])
        flops, peak = median(ours, "flops_per_token"), median(ours, "peak_flops")
        our_speed = median(ours, "tokens_per_s")
        for peer in sorted(sides, key=lambda peer: (peer != "cloze", peer)):
            speed = median(sides[peer], "tokens_per_s")
            mfu = 100 * speed * flops / peak if flops and peak else None
            ratio = our_speed / speed if peer != "cloze" and our_speed else None
            yield [
                str(seq), str(batch), dtype + (" checkpointed" if checkpointing else ""), peer, f"{speed:,.0f}",
                cell(mfu, "{:.1f}%"), cell(median(sides[peer], "peak_device_mib"), "{:.0f}"),
                cell(median(sides[peer], "loss"), "{:.3f}"), cell(ratio, "{:.2f}"),
            ]


def table(lines):
    body = list(rows(read(lines)))
    if not body:
        return "no runs"
    all_rows = [COLUMNS, *body]
    widths = [max(len(row[i]) for row in all_rows) for i in range(len(COLUMNS))]
    left = {2, 3}

    def line(row):
        cells = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i in left else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(COLUMNS), rule, *map(line, body)])


def test():
    ours = {
        "bench": "train_step", "peer": "cloze", "seq": 128, "batch": 32, "dtype": "bf16", "checkpointing": False,
        "tokens_per_s": 1_300_000.0, "flops_per_token": 3e8, "peak_flops": 1e15, "peak_device_mib": 2000.4, "loss": 10.9,
    }
    theirs = {
        "bench": "train_step", "peer": "torch 2 sdpa compiled", "seq": 128, "batch": 32, "dtype": "bf16",
        "checkpointing": False, "tokens_per_s": 650_000.0, "peak_device_mib": 6000.0, "loss": 10.95,
    }
    lines = [json.dumps(run) for run in [
        theirs, ours, {**ours, "tokens_per_s": 1_100_000.0}, {**ours, "tokens_per_s": 1_500_000.0},
        {**theirs, "seq": 512, "dtype": "tf32"},
        {**ours, "batch": 256, "peak_flops": None, "checkpointing": True, "peak_device_mib": None},
    ]]
    made = table(["note: something else", *lines, json.dumps({"bench": "ops"})])
    print(made)
    body = [[c.strip() for c in line.strip("|").split("|")] for line in made.splitlines()]
    assert body[0] == COLUMNS and len({len(line) for line in made.splitlines()}) == 1
    assert body[2:] == [
        ["128", "32", "bf16", "cloze", "1,300,000", "39.0%", "2000", "10.900", "-"],
        ["128", "32", "bf16", "torch 2 sdpa compiled", "650,000", "19.5%", "6000", "10.950", "2.00"],
        ["128", "256", "bf16 checkpointed", "cloze", "1,300,000", "-", "-", "10.900", "-"],
        ["512", "32", "tf32", "torch 2 sdpa compiled", "650,000", "-", "6000", "10.950", "-"],
    ], body[2:]
    assert table([]) == "no runs"
    print("ok")


if __name__ == "__main__":
    if sys.argv[1:] == ["--test"]:
        test()
    elif len(sys.argv) == 2:
        with open(sys.argv[1], encoding="utf-8") as file:
            print(table(file))
    else:
        sys.exit(__doc__)
