"""The weights of convolutions and linear layers as int8: a quarter of the file, the same arithmetic.

Each output channel has a scale, the largest magnitude of its weights over 127 (symmetric, round to nearest). The file
holds int8 values and a ``DequantizeLinear`` before each layer, so the arithmetic is float32 as before (onnxruntime has
to be told so: ``sources/onnx_model.py``).
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LAYERS = {"Conv": 0, "Gemm": 0, "MatMul": 1}
"""Node types whose second input is a weight, and the axis of its output channels."""
LARGEST = 127


def quantise_weights(path: Path) -> int:
    """Write the weights of an ONNX file as int8 -> how many values are int8 now."""
    model = onnx.load(path)
    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    nodes, done, count = [], set(), 0
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type in LAYERS else None
        if weight is not None and len(weight.dims) > 1:
            name = weight.name
            if name not in done:
                axis = output_axis(node)
                values, scale = per_channel_int8(numpy_helper.to_array(weight), axis)
                weight.CopyFrom(numpy_helper.from_array(values, f"{name}.q"))
                graph.initializer.append(numpy_helper.from_array(scale, f"{name}.s"))
                inputs = [f"{name}.q", f"{name}.s"]
                nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], axis=axis))
                done.add(name)
                count += values.size
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # shapes of what lies between: every runtime finds them by itself
    onnx.save(model, path)
    return count


def output_axis(node: onnx.NodeProto) -> int:
    """Of the weight of a layer: Gemm may have its weight transposed."""
    if node.op_type == "Gemm":
        return 0 if any(each.name == "transB" and each.i for each in node.attribute) else 1
    return LAYERS[node.op_type]


def per_channel_int8(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """-> int8 values of the weight's shape, float32 scale (channels,); a channel of zeros has scale 1."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others) / LARGEST
    scale[scale == 0] = 1
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    values = np.rint(weight / scale.reshape(shape)).clip(-LARGEST, LARGEST)
    return values.astype(np.int8), scale.astype(np.float32)
