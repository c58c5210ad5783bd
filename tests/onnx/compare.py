"""Runs every exported model of a folder in ONNX Runtime and prints how far its logits are from those beside it."""

import json
import pathlib
import sys

import numpy as np
import onnxruntime

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    assert [each.name for each in session.get_outputs()] == ["logits"]
    for case in json.loads(path.with_suffix(".json").read_text()):
        shape = case["shape"]
        feeds = {name: np.array(case[name], dtype=np.int64).reshape(shape) for name in names}
        (found,) = session.run(None, feeds)
        expected = np.array(case["logits"], dtype=np.float32).reshape(*shape, -1)
        text = feeds["attention_mask"].astype(bool)
        assert found.shape == expected.shape, (found.shape, expected.shape)
        far = np.abs(found - expected)[text] / np.maximum(1, np.abs(expected[text]))
        print(json.dumps({"model": path.stem, "inputs": names, "shape": shape, "far": float(far.max())}))
