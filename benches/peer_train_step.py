"""The PyTorch peer of train_step.rs: the same model, batch and step as the reference's Trainer takes it.

A RoBERTa of DistilRoBERTa's size (82M parameters, random weights, dropout on); forward with labels, backward,
clip_grad_norm_ to 1, fused AdamW without decay on biases and LayerNorm. 15% of the tokens are masked and count. Prints one
JSON line.

Usage: peer_train_step.py [--device cpu|cuda] [--batch 8] [--seq 128] [--steps 8] [--dtype f32|bf16] [--compile]
"""
import argparse
import json
import resource
import statistics
import time

import torch
from transformers import RobertaConfig, RobertaForMaskedLM

WARMUP = 2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=50265, hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
    )
    model = RobertaForMaskedLM(config).to(a.device).train()
    run = torch.compile(model) if a.compile else model
    spared = [n for n, _ in model.named_parameters() if "bias" in n or "layernorm" in n.lower() or "layer_norm" in n]
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in spared], "weight_decay": 0.01},
        {"params": [p for n, p in model.named_parameters() if n in spared], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-5, fused=True)
    ids = torch.randint(5, 50000, (a.batch, a.seq), device=a.device)
    labels = ids.clone()
    counted = torch.rand(a.batch, a.seq, device=a.device) < 0.15
    labels[~counted] = -100
    ids = ids.masked_fill(counted, 50264)
    mask = torch.ones_like(ids)
    sync = torch.cuda.synchronize if a.device == "cuda" else lambda: None

    times = []
    for _ in range(a.steps + WARMUP):
        sync()
        started = time.perf_counter()
        with torch.autocast(a.device, torch.bfloat16, enabled=a.dtype == "bf16"):
            loss = run(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sync()
        times.append(time.perf_counter() - started)
    times = times[WARMUP:]
    median = statistics.median(times)
    print(json.dumps({
        "bench": "train_step", "peer": f"torch {torch.__version__}" + (" compiled" if a.compile else ""),
        "device": a.device, "dtype": a.dtype, "batch": a.batch, "seq": a.seq, "steps": a.steps,
        "threads": torch.get_num_threads(), "median_s": median, "min_s": min(times), "max_s": max(times),
        "tokens_per_s": a.batch * a.seq / median,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_device_mib": torch.cuda.max_memory_allocated() / 2**20 if a.device == "cuda" else None,
        "loss": loss.item(),
    }))


main()
