"""Opens model folders in transformers and compares its logits with ours; prints one JSON line for each folder.

Usage: open_in_transformers.py MODELS FIXTURES

MODELS holds NAME/KIND/{config.json,model.safetensors,ours.safetensors}, FIXTURES holds NAME/{io.safetensors,meta.json}. A
class that this version of transformers lacks is reported as absent.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import load_file

transformers.logging.set_verbosity_error()
RESULTS = ("logits", "loss")
# QDQBERT's own class needs NVIDIA's quantisation library; in float it is BERT.
AS = {"qdqbert": "BertForMaskedLM"}


def open_model(name, folder):
    """The model with what loading it found; `None` where this version has no such class."""
    kind = getattr(transformers, name, None)
    # Names of classes that are gone stand for nothing but an error.
    if kind is None or not hasattr(kind, "forward"):
        return None, None
    return kind.from_pretrained(folder, output_loading_info=True)


def compare(folder, fixture):
    with open(os.path.join(fixture, "meta.json")) as file:
        meta = json.load(file)
    io = load_file(os.path.join(fixture, "io.safetensors"))
    ours = load_file(os.path.join(folder, "ours.safetensors"))["logits"]
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    name = AS.get(config["model_type"]) or config["architectures"][0]
    found = {"class": name, "transformers": transformers.__version__}
    model, info = open_model(name, folder)
    if model is None:
        return {**found, "absent": True}
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found[key] = sorted(str(name) for name in info.get(key) or [])
    inputs = {
        name: value for name, value in io.items()
        if name != "labels" and not name.endswith(RESULTS) and not name.startswith(("grad.", "aux."))
    }
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits
    difference = (logits - ours).abs()
    if not meta.get("logits_valid", "all").startswith("all") and "attention_mask" in io:
        difference = difference * io["attention_mask"].unsqueeze(2)
    return {**found, "difference": difference.max().item(), "largest": logits.abs().max().item()}


def main():
    models, fixtures = sys.argv[1:]
    for name in sorted(os.listdir(models)):
        for kind in sorted(os.listdir(os.path.join(models, name))):
            try:
                found = compare(os.path.join(models, name, kind), os.path.join(fixtures, name))
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"[:400]}
            print(json.dumps({"name": name, "kind": kind, **found}), flush=True)


main()
