"""The PyTorch peer of families.rs: takes a training step of a given model for every line "step" that it reads.

Reads lines of arguments (--config FOLDER --class NAME --attention eager|sdpa --batch 8 --seq 128), each of which opens a model
in a process of its own, which ends at the line "close". So torch is loaded once, and memory is measured for each by itself.
"""
import argparse
import json
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import torch
import transformers

transformers.logging.set_verbosity_error()


def mixed(i):
    """The same numbers as in families.rs."""
    x = (i + 1) * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ (x >> 31)) * 0xBF58476D1CE4E5B9 % 2**64
    return x >> 33


def masked(batch, seq, vocab):
    ids = [5 + mixed(i) % (vocab - 5) for i in range(batch * seq)]
    counted = [mixed(i + 2**32) % 100 < 15 for i in range(batch * seq)]
    labels = [id if counts else -100 for id, counts in zip(ids, counted)]
    ids = [4 if counts else id for id, counts in zip(ids, counted)]
    tensor = lambda values: torch.tensor(values).view(batch, seq)
    return {"input_ids": tensor(ids), "attention_mask": torch.ones(batch, seq, dtype=torch.long), "labels": tensor(labels)}


def with_entities(inputs):
    batch, seq = inputs["input_ids"].shape
    count = max(seq // 16, 1)
    ids = torch.tensor([4 + mixed(i) % 900 for i in range(batch * count)])
    counts = torch.arange(batch * count) % 4 == 0
    places = torch.full((batch, count, 30), -1)
    places[:, :, 0] = 16 * torch.arange(count)
    places[:, :, 1] = places[:, :, 0] + 1
    return {
        **inputs,
        "entity_ids": ids.masked_fill(counts, 2).view(batch, count),
        "entity_labels": ids.masked_fill(~counts, -100).view(batch, count),
        "entity_attention_mask": torch.ones(batch, count, dtype=torch.long),
        "entity_position_ids": places,
    }


def heard(batch, samples, vocab):
    sound = [mixed(i) / 2**30 - 1 for i in range(batch * samples)]
    letters = [1 + mixed(i) % (vocab - 1) for i in range(batch * 20)]
    return {"input_values": torch.tensor(sound).view(batch, samples), "labels": torch.tensor(letters).view(batch, 20)}


def build(name, folder, attention):
    kind = getattr(transformers, name)
    with open(os.path.join(folder, "config.json")) as file:
        values = json.load(file)
    values.pop("model_type")
    config = kind.config_class(**values)
    if attention == "eager":
        try:
            config._attn_implementation = "eager"
        except AttributeError:
            pass
        return kind(config)
    model = kind._from_config(config, attn_implementation=attention)
    if model.config._attn_implementation != attention:
        raise ValueError(f"{name} has no {attention}")
    return model


def peak_rss_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def line():
    """The next line of the input, of which no more is read, since the next may be for another process."""
    read = b""
    while not read.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return None
        read += byte
    return read.decode().strip()


def serve(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--class", dest="name", required=True)
    parser.add_argument("--attention", default="eager")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    a = parser.parse_args(arguments.split())
    torch.manual_seed(0)
    empty = peak_rss_mib()
    model = build(a.name, a.config, a.attention).train()
    inputs = (masked if hasattr(model.config, "vocab_size") and not a.name.startswith("Wav2Vec2") else heard)(
        a.batch, a.seq, model.config.vocab_size)
    if a.name.startswith("Luke"):
        inputs = with_entities(inputs)
    # Those that take no mask.
    if a.name.startswith("FNet"):
        del inputs["attention_mask"]
    spared = [n for n, _ in model.named_parameters() if "bias" in n or "norm" in n.lower()]
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in spared], "weight_decay": 0.01},
        {"params": [p for n, p in model.named_parameters() if n in spared], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-5, fused=True)
    # What stands on the output from here on are results.
    say = lambda result: os.write(1, (json.dumps(result) + "\n").encode())
    say({
        "ready": True, "parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads(),
        "peer": f"transformers {transformers.__version__} {a.attention}", "empty_mib": empty, "rss_mib": peak_rss_mib(),
    })
    while line() == "step":
        started, cpu = time.perf_counter(), time.process_time()
        loss = model(**inputs).loss
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        say({
            "wall_s": ended - started, "cpu_s": time.process_time() - cpu, "forward_s": forward - started,
            "backward_s": backward - forward, "update_s": ended - backward, "peak_rss_mib": peak_rss_mib(), "loss": loss.item(),
        })


def main():
    while (arguments := line()) is not None:
        child = os.fork()
        if child == 0:
            try:
                serve(arguments)
            except Exception as error:
                print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr, flush=True)
                os.write(1, b"{}\n")
            os._exit(0)
        os.waitpid(child, 0)


main()
