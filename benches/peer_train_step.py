"""The PyTorch peer of train_step.rs: the same model, batch and step as the reference's Trainer takes it.

A RoBERTa of DistilRoBERTa's size (82M parameters, random weights, dropout on); forward with labels, backward,
clip_grad_norm_ to 1, fused AdamW without decay on biases and LayerNorm. 15% of the tokens are masked and count. Attention is
PyTorch's scaled_dot_product_attention where this version of transformers has it for the model. Prints one JSON line.

Usage: peer_train_step.py [--device cpu|cuda] [--batch 8] [--seq 128] [--steps 8] [--dtype f32|tf32|bf16|f16] [--compile]
                          [--checkpointing] [--round N]

With --round N the device is waited for after every N steps only; 10 is the default on a GPU, as in train_step.rs.
"""
import argparse
import json
import resource
import statistics
import sys
import time

import torch
from transformers import AutoModelForMaskedLM, RobertaConfig

# Steps that are not timed; a compiled model is compiled in the first.
WARMUP = 2
AUTOCAST = {"bf16": torch.bfloat16, "f16": torch.float16}


def build(config):
    """The model, and which attention it has."""
    try:
        return AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa"), "sdpa"
    except (TypeError, ValueError) as error:
        print(f"note: no sdpa in this version of transformers ({error})", file=sys.stderr)
        return AutoModelForMaskedLM.from_config(config), "eager"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--round", type=int, help="steps after which the device is waited for")
    parser.add_argument("--dtype", default="f32", choices=["f32", "tf32", "bf16", "f16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    a = parser.parse_args()
    on_gpu = a.device == "cuda"
    if a.dtype == "f16" and not on_gpu:
        parser.error("--dtype f16 needs --device cuda")
    per_round = max(a.round or (10 if on_gpu else 1), 1)
    rounds = -(-max(a.steps, 1) // per_round)

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.dtype == "tf32"
    config = RobertaConfig(
        vocab_size=50265, hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
    )
    model, attention = build(config)
    model = model.to(a.device).train()
    if a.checkpointing:
        model.gradient_checkpointing_enable()
    run = torch.compile(model) if a.compile else model
    spared = [n for n, _ in model.named_parameters() if "bias" in n or "layernorm" in n.lower() or "layer_norm" in n]
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in spared], "weight_decay": 0.01},
        {"params": [p for n, p in model.named_parameters() if n in spared], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-5, fused=True)
    scaler = torch.amp.GradScaler(a.device) if a.dtype == "f16" else None
    ids = torch.randint(5, 50000, (a.batch, a.seq), device=a.device)
    labels = ids.clone()
    counted = torch.rand(a.batch, a.seq, device=a.device) < 0.15
    labels[~counted] = -100
    ids = ids.masked_fill(counted, 50264)
    mask = torch.ones_like(ids)
    sync = torch.cuda.synchronize if on_gpu else lambda: None

    def step():
        with torch.autocast(a.device, AUTOCAST.get(a.dtype), enabled=a.dtype in AUTOCAST):
            loss = run(input_ids=ids, attention_mask=mask, labels=labels).loss
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()
        return loss

    for _ in range(WARMUP):
        step()
    sync()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(per_round):
            loss = step()
        sync()
        times.append((time.perf_counter() - started) / per_round)
    median = statistics.median(times)
    print(json.dumps({
        "bench": "train_step", "peer": f"torch {torch.__version__} {attention}" + (" compiled" if a.compile else ""),
        "device": a.device, "dtype": a.dtype, "batch": a.batch, "seq": a.seq, "steps": rounds * per_round, "round": per_round,
        "checkpointing": a.checkpointing, "threads": torch.get_num_threads(),
        "median_s": median, "min_s": min(times), "max_s": max(times), "tokens_per_s": a.batch * a.seq / median,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_device_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "loss": loss.item(),
    }))


main()
