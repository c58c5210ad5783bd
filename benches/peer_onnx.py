"""The peers of fill_mask.rs that run an exported graph: ONNX Runtime and OpenVINO, on the same model and texts. Prints one
JSON line.

Usage: peer_onnx.py --model DIR --runtime {onnxruntime,openvino} [--precision {f32,int8}] [--threads 2] [--rounds 30], where
DIR was made by `cargo bench --bench fill_mask -- --prepare`. The graph is exported once, into DIR, and applies the head to
the masked rows alone. int8 is the runtime's dynamic quantization, weights by channel.
"""
import argparse
import json
import os
import resource
import statistics
import time

import numpy as np

WARMUP = 3
TOP_K = 5


def export(folder):
    """Writes the encoder and the head, for one masked row of each text, as DIR/model.onnx; returns its path."""
    path = os.path.join(folder, "model.onnx")
    if os.path.exists(path):
        return path
    import torch
    from transformers import AutoModelForMaskedLM

    class Masked(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.encoder, self.head = model.roberta, model.lm_head

        def forward(self, input_ids, rows):
            hidden = self.encoder(input_ids=input_ids).last_hidden_state
            return self.head(hidden.flatten(0, 1).index_select(0, rows))

    model = Masked(AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval())
    ids, rows = torch.randint(5, 300, (2, 16)), torch.tensor([1, 17])
    batch, length, masks = (torch.export.Dim(name) for name in ("batch", "length", "masks"))
    with torch.no_grad():
        torch.onnx.export(
            model, (ids, rows), path, input_names=["input_ids", "rows"], output_names=["logits"], opset_version=18, dynamo=True,
            dynamic_shapes={"input_ids": {0: batch, 1: length}, "rows": {0: masks}},
        )
    return path


def fused(path):
    """ONNX Runtime's own optimizer for transformers over the graph; returns the path of the result."""
    result = path.replace(".onnx", ".fused.onnx")
    if not os.path.exists(result):
        from onnxruntime.transformers import optimizer

        model = optimizer.optimize_model(path, model_type="bert", num_heads=12, hidden_size=768, opt_level=0)
        model.save_model_to_file(result)
    return result


def quantized(path):
    result = path.replace(".onnx", ".int8.onnx")
    if not os.path.exists(result):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(path, result, weight_type=QuantType.QInt8, per_channel=True)
    return result


def onnxruntime_run(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids, rows: session.run(None, {"input_ids": ids, "rows": rows})[0], f"onnxruntime {onnxruntime.__version__}"


def openvino_run(path, threads):
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = core.compile_model(core.read_model(path), "CPU", settings)
    request = model.create_infer_request()
    return (lambda ids, rows: request.infer({"input_ids": ids, "rows": rows})[model.output(0)],
            f"openvino {openvino.__version__.split('-')[0]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--precision", choices=["f32", "int8"], default="f32")
    parser.add_argument("--graph", choices=["plain", "fused"], default="fused", help="onnxruntime's optimizer first, or not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    a, _ = parser.parse_known_args()

    with open(os.path.join(a.model, "texts.json")) as file:
        texts = json.load(file)
    path = export(a.model)
    if a.runtime == "onnxruntime" and a.graph == "fused":
        path = fused(path)
    if a.precision == "int8":
        path = quantized(path)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(a.model, "tokenizer.json"))
    mask = tokenizer.token_to_id("<mask>")
    started = time.perf_counter()
    run, name = (onnxruntime_run if a.runtime == "onnxruntime" else openvino_run)(path, a.threads)
    load = time.perf_counter() - started

    def fill():
        """Text in, five guesses out, with their sentences; and the seconds of the graph alone."""
        ids = np.array([encoding.ids for encoding in tokenizer.encode_batch(texts)], dtype=np.int64)
        rows = np.flatnonzero(ids == mask)
        before = time.perf_counter()
        logits = run(ids, rows)
        alone = time.perf_counter() - before
        guesses = []
        for row, scores in zip(rows, logits):
            best = np.argpartition(scores, -TOP_K)[-TOP_K:]
            best = best[np.argsort(-scores[best])]
            probabilities = np.exp(scores[best] - scores.max()) / np.exp(scores - scores.max()).sum()
            text = ids[row // ids.shape[1]].copy()
            for token, probability in zip(best, probabilities):
                text[row % ids.shape[1]] = token
                guesses.append((float(probability), tokenizer.decode(text)))
        return guesses, alone

    for _ in range(WARMUP):
        guesses, _ = fill()
    times, graph = [], []
    cpu = time.process_time()
    for _ in range(a.rounds):
        started = time.perf_counter()
        guesses, alone = fill()
        times.append(time.perf_counter() - started)
        graph.append(alone)
    cpu = (time.process_time() - cpu) / a.rounds
    median = statistics.median(times)
    length = len(tokenizer.encode(texts[0]).ids)
    print(json.dumps({
        "bench": "fill_mask", "peer": f"{name} {a.precision}", "precision": a.precision, "texts": len(texts), "length": length,
        "rounds": a.rounds, "threads": a.threads, "load_s": load, "median_s": median, "min_s": min(times), "max_s": max(times),
        "graph_median_s": statistics.median(graph), "cpu_s": cpu, "texts_per_s": len(texts) / median,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "best_score": guesses[0][0],
    }))


if __name__ == "__main__":
    main()
