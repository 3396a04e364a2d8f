"""An exported graph in 8 bits: the linear layers multiply integers, everything else stays as it is.

Weights get one scale an output column, activations one scale a run (onnxruntime's DynamicQuantizeMatMul).
One scale for all channels is what costs accuracy: a few channels of a transformer are tens of times larger
than the rest, and the rest loses its bits. So the size of each input channel is first shared between
activation and weight (SmoothQuant, arXiv 2211.10438): X·W = (X / s)·(s · W) for any positive s a channel.
Layers that read the same input (query, key, value) become one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]

SHARE = 0.5  # of a channel's size that moves from the activation into the weight
OUTLIERS = 16  # input channels that stay in float32 in a layer that has outliers
TOWERING = 6.0  # a layer has outliers where its largest channel is so many times the one after the first OUTLIERS
DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Linear:
    """X·weight + bias in a graph; weight (inputs, outputs), bias (outputs,) or None.

    Attributes:
        source: the name of X. result: the name of what comes out, after the bias.
        nodes: the nodes that compute it, the product first.
    """

    source: str
    result: str
    weight: Matrix
    bias: Vector | None
    nodes: tuple[Any, ...]


def find_linears(model: Any) -> list[list[Linear]]:
    """Return the linear layers of an ONNX model (a ModelProto) with constant weights, grouped by their input."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    groups: dict[str, list[Linear]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants and len(constants[node.input[1]].dims) == 2:
            linear = _read_linear(node, constants, readers)
            groups.setdefault(linear.source, []).append(linear)
    return [part for group in groups.values() for part in _alike(group)]


def _alike(group: list[Linear]) -> list[list[Linear]]:
    """Split a group into layers with a bias and layers without: only like layers can be one."""
    parts = ([item for item in group if item.bias is not None], [item for item in group if item.bias is None])
    return [part for part in parts if part]


def _read_linear(node: Any, constants: Mapping[str, Any], readers: Mapping[str, Sequence[Any]]) -> Linear:
    from onnx import numpy_helper

    weight = numpy_helper.to_array(constants[node.input[1]])
    after = readers.get(node.output[0], [])
    if len(after) == 1 and after[0].op_type == "Add":
        for name in after[0].input:
            if name in constants and tuple(constants[name].dims) == (weight.shape[1],):
                bias = numpy_helper.to_array(constants[name])
                return Linear(node.input[0], after[0].output[0], weight, bias, (node, after[0]))
    return Linear(node.input[0], node.output[0], weight, None, (node,))


def measure_channels(model: Any, sources: Sequence[str], batches: Sequence[Mapping[str, Any]]) -> dict[str, Vector]:
    """Return the largest |value| of each channel (inputs,) of each tensor in `sources` over the batches."""
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sources)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest: dict[str, Vector] = {}
    for batch in batches:
        for name, value in zip(sources, session.run(list(sources), dict(batch)), strict=True):
            peaks = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, peaks), peaks)
    return largest


def quantize(model: Any, batches: Sequence[Mapping[str, Any]]) -> Any:
    """Return a copy of an ONNX model with its linear layers in 8 bits.

    Args:
        model: a ModelProto.
        batches: inputs of the model on which the size of each activation channel is measured.
    """
    import onnx

    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    graph = smaller.graph
    groups = find_linears(smaller)
    peaks = measure_channels(model, sorted({group[0].source for group in groups}), batches)
    first = {group[0].nodes[0].output[0]: (place, group) for place, group in enumerate(groups)}
    gone = {node.output[0] for group in groups for linear in group for node in linear.nodes}
    nodes = []
    for node in graph.node:
        if node.output[0] in first:
            place, group = first[node.output[0]]
            made, tensors = _build(f"int8_{place}", group, peaks[group[0].source])
            nodes.extend(made)
            graph.initializer.extend(tensors)
        if node.output[0] not in gone:
            nodes.append(_copy(node))
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    if all(entry.domain != DOMAIN for entry in smaller.opset_import):
        smaller.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return smaller


def share_sizes(peaks: Vector, weight: Matrix) -> Vector:
    """Return the factor s (inputs,) by which each channel leaves the activation and enters the weight."""
    rows = np.abs(weight).max(axis=1)
    usable = (peaks > 0) & (rows > 0)
    factor = np.ones_like(rows)
    factor[usable] = peaks[usable] ** SHARE / rows[usable] ** (1 - SHARE)
    return np.asarray(np.clip(factor, 1e-4, 1e4), dtype=np.float32)


def quantize_columns(weight: Matrix) -> tuple[NDArray[np.int8], Vector]:
    """Return `weight` as int8 (-127 to 127) and its scales (outputs,): weight ≈ integers · scales."""
    largest = np.abs(weight).max(axis=0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales


def _build(name: str, group: Sequence[Linear], peaks: Vector) -> tuple[list[Any], list[Any]]:
    """Return (nodes, constants) that compute all layers of a group at once."""
    from onnx import helper, numpy_helper

    weight = np.concatenate([linear.weight for linear in group], axis=1)
    factor = share_sizes(peaks, weight)
    apart = find_towering(peaks / factor)
    integers, scales = quantize_columns(weight * factor[:, None])
    smooth = 1 / factor
    smooth[apart] = 0  # they have their own product
    biases = [linear.bias for linear in group if linear.bias is not None]
    tensors: dict[str, NDArray[Any]] = {"smooth": smooth, "weight": integers, "scale": scales}
    if biases:
        tensors["bias"] = np.concatenate(biases)
    names = {key: f"{name}_{key}" for key in ("input", "sum", "few", "few_sum", "result")}
    constants = {key: f"{name}_{key}" for key in ("smooth", "weight", "scale", "bias", "channels", "kept", "split")}
    source, result = group[0].source, group[0].result if len(group) == 1 else names["result"]
    inputs = [names["input"], constants["weight"], constants["scale"], "", constants["bias"] if biases else ""]
    total = names["sum"] if len(apart) else result
    nodes = [
        helper.make_node("Mul", [source, constants["smooth"]], [names["input"]]),
        helper.make_node("DynamicQuantizeMatMul", inputs, [total], domain=DOMAIN),
    ]
    if len(apart):
        tensors |= {"channels": apart, "kept": weight[apart]}
        nodes += [
            helper.make_node("Gather", [source, constants["channels"]], [names["few"]], axis=-1),
            helper.make_node("MatMul", [names["few"], constants["kept"]], [names["few_sum"]]),
            helper.make_node("Add", [total, names["few_sum"]], [result]),
        ]
    if len(group) > 1:
        tensors["split"] = np.array([linear.weight.shape[1] for linear in group], dtype=np.int64)
        nodes.append(helper.make_node("Split", [result, constants["split"]], [item.result for item in group], axis=-1))
    return nodes, [numpy_helper.from_array(np.asarray(value), constants[key]) for key, value in tensors.items()]


def find_towering(sizes: Vector) -> NDArray[np.int64]:
    """Return the OUTLIERS largest channels of `sizes` (inputs,) where they tower over the next, else none."""
    order = np.argsort(-sizes, kind="stable")
    if len(sizes) <= 2 * OUTLIERS or sizes[order[0]] < TOWERING * sizes[order[OUTLIERS]]:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(np.sort(order[:OUTLIERS]), dtype=np.int64)


def _copy(node: Any) -> Any:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
