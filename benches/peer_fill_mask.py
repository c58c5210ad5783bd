"""The peer of fill_mask.rs: the reference's fill-mask pipeline on the same model and texts. Prints one JSON line.

Usage: peer_fill_mask.py --model DIR [--rounds 30], where DIR was made by `cargo bench --bench fill_mask -- --prepare`.
"""
import argparse
import json
import os
import resource
import statistics
import time

import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

WARMUP = 3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=30)
    a, _ = parser.parse_known_args()

    with open(os.path.join(a.model, "texts.json")) as file:
        texts = json.load(file)
    started = time.perf_counter()
    model = AutoModelForMaskedLM.from_pretrained(a.model).eval()
    load = time.perf_counter() - started
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    length = len(tokenizer(texts[0])["input_ids"])
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, batch_size=min(len(texts), 32))
    times = []
    for _ in range(a.rounds + WARMUP):
        started = time.perf_counter()
        predictions = fill(texts if len(texts) > 1 else texts[0])
        times.append(time.perf_counter() - started)
    times = times[WARMUP:]
    median = statistics.median(times)
    first = predictions[0] if len(texts) == 1 else predictions[0][0]
    print(json.dumps({
        "bench": "fill_mask", "peer": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "texts": len(texts), "length": length, "rounds": a.rounds, "threads": torch.get_num_threads(), "load_s": load,
        "median_s": median, "min_s": min(times), "max_s": max(times), "texts_per_s": len(texts) / median,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "best_score": first["score"],
    }))


main()
