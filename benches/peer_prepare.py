"""The peer of prepare.rs: the guide's functions with `datasets` on the same records. Prints one JSON line.

Usage: peer_prepare.py --data FILE.{jsonl,parquet} --tokenizer DIR [--num-proc 2] [--rounds 3]. Every round has a cache of its own, so
that nothing is reused.
"""
import argparse
import json
import resource
import statistics
import tempfile
import time

import datasets
from transformers import AutoTokenizer

BLOCK = 128


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    a, _ = parser.parse_known_args()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(a.tokenizer)

    def tokenize(rows):
        return tokenizer([" ".join(texts) for texts in rows["answers.text"]])

    def group(rows):
        joined = {name: sum(lists, []) for name, lists in rows.items()}
        length = len(next(iter(joined.values())))
        length = length // BLOCK * BLOCK if length >= BLOCK else length
        cut = {name: [all_[i:i + BLOCK] for i in range(0, length, BLOCK)] for name, all_ in joined.items()}
        cut["labels"] = cut["input_ids"].copy()
        return cut

    phases = {"all": [], "load": [], "tokenize": [], "group": []}
    for _ in range(a.rounds):
        with tempfile.TemporaryDirectory() as cache:
            started = time.perf_counter()
            kind = "parquet" if a.data.endswith(".parquet") else "json"
            loaded = datasets.load_dataset(kind, data_files=a.data, split="train", cache_dir=cache)
            load = time.perf_counter() - started
            flat = loaded.flatten()
            tokenized = flat.map(tokenize, batched=True, num_proc=a.num_proc, remove_columns=flat.column_names)
            tokenize_ = time.perf_counter() - started
            blocks = tokenized.map(group, batched=True, num_proc=a.num_proc)
            all_ = time.perf_counter() - started
            for name, value in [("all", all_), ("load", load), ("tokenize", tokenize_ - load), ("group", all_ - tokenize_)]:
                phases[name].append(value)
            records, tokens = len(loaded), len(blocks) * BLOCK
            del loaded, flat, tokenized, blocks
    median = {name: statistics.median(times) for name, times in phases.items()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({
        "bench": "prepare", "peer": f"datasets {datasets.__version__}", "records": records, "tokens": tokens,
        "num_proc": a.num_proc, "rounds": a.rounds, "median_s": median["all"], "min_s": min(phases["all"]),
        "max_s": max(phases["all"]), "load_s": median["load"], "tokenize_s": median["tokenize"], "group_s": median["group"],
        "records_per_s": records / median["all"], "tokens_per_s": tokens / median["all"], "peak_rss_mib": memory / 1024,
    }))


main()
