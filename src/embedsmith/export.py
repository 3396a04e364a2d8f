"""Export: a sentence-transformers model as one ONNX graph from tokens to unit vectors, measured before it counts.

Pooling and normalisation are inside the graph, batch and length are free. A file is written only after its
vectors were compared with those of sentence-transformers; `embedsmith.runtime` serves it without torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from embedsmith import __version__
from embedsmith.artifacts import remove_leftovers, sync, sync_folder, write_json
from embedsmith.encoder import pair_cosines, pair_similarities
from embedsmith.errors import ConfigurationError, MissingPartError, ModelError
from embedsmith.examples import LabelledPair
from embedsmith.guards import shipped_guards
from embedsmith.machine import count_cores
from embedsmith.metrics import Ranking
from embedsmith.model import TorchEncoder, fingerprint_model, load_network, resolve_model, share_weights
from embedsmith.networks import default_prompt, max_length_of, pools_prompts
from embedsmith.noise import only_errors, quiet_transformers
from embedsmith.quantization import quantize
from embedsmith.runtime import (
    FILES,
    FOLDER,
    INPUTS,
    REPORT,
    TOKENIZER,
    ExportReport,
    Fidelity,
    Graph,
    Precision,
    load_tokenizer,
    pad,
    read_report,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedsmith.verifier import VerifierReport

OPSET = 20
ATTENTION = "embedsmith_onnx"  # the name under which transformers finds our attention
OUTPUT = "embedsmith_vectors"  # a name that no layer has
EXACT = 1 - 1e-5  # lowest cosine of an fp32 export
LEAST_COSINE = 0.99  # mean, of an int8 export
MOST_LOSS = 0.005  # of average precision, of an int8 export
CALIBRATION = 512  # texts on which int8 measures the activations
OLD = 86400  # seconds after which nobody still writes an export
LARGEST = 2**31 - 2**24  # bytes of weights that one ONNX file holds
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime")


def export_model(
    model: str | Path,
    out: Path | str | None = None,
    *,
    precision: Precision = "fp32",
    texts: Sequence[str] | None = None,
    pairs: Sequence[LabelledPair] | None = None,
    least_cosine: float = LEAST_COSINE,
    max_loss: float = MOST_LOSS,
) -> ExportReport:
    """Write the model as ONNX into its folder (`onnx/model.onnx` or `model_int8.onnx`); return what was measured.

    An earlier export of the other precision stays if it is of the same weights. Nothing is written, and what was
    there stays, when the export is refused.

    Args:
        model: a sentence-transformers folder, a hub id, or the demo model.
        out: a folder to copy the model to first; needed for whatever is not a folder of yours.
        texts: what the vectors are compared on, and what int8 measures activations on. None: the texts of
            `pairs`.
        pairs: labelled pairs for the average precision; None: the general pairs that ship with the package.
        least_cosine: int8 is refused below this mean cosine to fp32.
        max_loss: int8 is refused when it loses more average precision than this.

    Raises:
        ModelError: the model cannot be exported, or its fp32 graph does not give the model's vectors.
        ConfigurationError: int8 is further from fp32 than the bounds allow.
        MissingPartError: torch, onnx or onnxruntime is not installed.
    """
    if precision not in get_args(Precision):
        raise ConfigurationError(f"precision {precision!r} is not known", expected='"fp32" or "int8"')
    folder = prepare_folder(model, out)
    pairs = _shipped_pairs() if pairs is None else pairs
    texts = list(texts) if texts else [text for pair in pairs for text in (pair.sentence1, pair.sentence2)]
    if not texts:
        raise ConfigurationError("there is no text to compare the export on", expected="texts or pairs")
    network = load_network(folder)
    report, earlier = describe(network, folder, name=str(model)), _read_earlier(folder)
    graph = trace(network)
    with make_room(folder) as temporary:
        backend(network).save(str(temporary / TOKENIZER))
        if precision == "int8":
            graph = quantize(graph, _batches(list(dict.fromkeys(texts))[:CALIBRATION], temporary, report))
        (temporary / FILES[precision]).write_bytes(graph.SerializeToString())
        served = Graph(temporary, precision, report, threads=count_cores())
        fidelity = compare(TorchEncoder(network, name=str(model)), served, texts, pairs, FILES[precision])
        fidelity = replace(fidelity, size=(temporary / FILES[precision]).stat().st_size)
        require(fidelity, precision, least_cosine=least_cosine, max_loss=max_loss)
        report = replace(report, precisions=earlier | {precision: fidelity})
        publish(temporary, folder, REPORT, report)
    return report


def prepare_folder(model: str | Path, out: Path | str | None) -> Path:
    """Return the folder that is exported into: the model's own, or `out` with a copy of the model in it."""
    source = Path(resolve_model(model))
    if out is None:
        if not source.is_dir() or str(model).startswith("wheel:"):
            raise ConfigurationError(
                f"{model} is not a folder of yours to write into",
                expected="a model folder, or out=FOLDER",
                action="name the folder that the model is copied to and exported in",
            )
        return source
    target = Path(out)
    if source.is_dir() and target.resolve() != source.resolve():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FOLDER, ".*"))
    elif not source.is_dir():
        network = load_network(model)
        with quiet_transformers():
            network.save_pretrained(str(target), create_model_card=False)
        share_weights(target)
    return target


def describe(network: SentenceTransformer, folder: Path, *, name: str) -> ExportReport:
    """Return what the runtime must know about the model, as sentence-transformers worked it out.

    Raises:
        ModelError: the model reads something other than text by a fast tokenizer, or leaves its prompt out
            of the pooling.
    """
    tokenizer: Any = network.tokenizer
    prompt = default_prompt(network)
    if prompt and not pools_prompts(network):
        raise ModelError(
            f"{name} leaves its prompt out of the pooling (include_prompt is false)",
            expected="a model that pools all tokens",
            action="serve this model with sentence-transformers",
        )
    backend(network)
    return ExportReport(
        model=name,
        fingerprint=fingerprint_model(folder),
        dimension=network.get_embedding_dimension() or 0,
        max_length=max_length_of(network),
        prompt=prompt,
        fill=int(tokenizer.pad_token_id or 0),
        left=tokenizer.padding_side == "left",
        versions=list_versions(),
    )


def list_versions() -> dict[str, str]:
    """Return the versions of what an export was made with."""
    return {"embedsmith": __version__, "opset": str(OPSET)} | {name: metadata.version(name) for name in PACKAGES}


def backend(network: Any) -> Any:
    """Return the tokenizer of `network` as the tokenizers package knows it."""
    found = getattr(network.tokenizer, "backend_tokenizer", None)
    if found is None:
        raise ModelError(
            f"the tokenizer {type(network.tokenizer).__name__} has no fast form",
            expected="a tokenizer of the tokenizers package",
            action="serve this model with sentence-transformers",
        )
    return found


def trace(network: SentenceTransformer) -> Any:
    """Return `network` as an ONNX ModelProto: (ids, mask), each (n, length) int64, to unit rows (n, d).

    Raises:
        ModelError: torch.onnx cannot follow the model's code, or the model is too large for one file.
    """
    _require_exporter()
    import torch

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
            return torch.nn.functional.normalize(self.network(features)["sentence_embedding"], dim=-1)

    return trace_module(network, Served(), INPUTS)


def _require_exporter() -> None:
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingPartError(
            f"the export needs {error.name}, which is not installed", action="pip install 'embedsmith[export]'"
        ) from None


def trace_module(network: Any, served: Any, inputs: Sequence[str]) -> Any:
    """Return `served`, a module around `network` that takes `inputs`, each (n, length) int64, as an ONNX ModelProto.

    Args:
        network: a SentenceTransformer or a CrossEncoder. inputs: ids and mask first; others are all zeros when traced.

    Raises:
        ModelError: torch.onnx cannot follow the model's code, or the model is too large for one file.
    """
    _require_exporter()
    import torch

    kind = type(getattr(network[0], "auto_model", network[0])).__name__
    size = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    if size > LARGEST:
        raise ModelError(
            f"{kind} has {size / 2**30:.1f} GiB of weights",
            expected="less than 2 GiB, what one ONNX file holds",
            action="serve this model with sentence-transformers",
        )
    failures = (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError)
    with contextlib.suppress(*failures), fused_attention(network):
        return _export_graph(network, served, inputs)
    try:
        return _export_graph(network, served, inputs)
    except failures as error:
        cause = error.__cause__ or error
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ModelError(
            f"torch.onnx cannot export {kind}: {first.strip()[:200]}",
            expected="a model whose code torch.export can follow",
            action="serve this model with sentence-transformers",
        ) from error


def _export_graph(network: Any, served: Any, inputs: Sequence[str]) -> Any:
    import torch

    ids = torch.full((2, 7), 5, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    free = {0: torch.export.Dim("batch", max=2**16), 1: torch.export.Dim("length", max=_longest(network))}
    with only_errors("torch.onnx"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            served.eval(),
            (ids, mask, *(torch.zeros_like(ids) for _ in inputs[2:])),
            dynamo=True,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes=tuple(free for _ in inputs),
            opset_version=OPSET,
            verbose=False,
        )
    graph = program.model_proto
    drop_idle_reshapes(graph.graph)
    return graph


def drop_idle_reshapes(graph: Any) -> None:
    """Take out of an ONNX graph the reshapes that, alone or in a row, give the shape they were given.

    Splitting into heads and joining them again is left over when attention is one node.
    """
    shapes = {
        value.name: tuple(part.dim_param or part.dim_value for part in value.type.tensor_type.shape.dim)
        for value in graph.value_info
    }
    source: dict[str, str] = {}  # of a reshaped tensor: what was reshaped first
    same: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        # Without allowzero, a 0 in the new shape means "as in what is given", which must then not be replaced.
        if node.op_type == "Reshape" and any(part.name == "allowzero" and part.i for part in node.attribute):
            node.input[0] = source.get(node.input[0], node.input[0])
            source[node.output[0]] = node.input[0]
            before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
            if before is not None and before == after and all(before):
                same[node.output[0]] = node.input[0]
    results = {value.name for value in graph.output}
    made = [node for node in graph.node if node.op_type in {"Reshape", "Concat"}]
    while idle := [node for node in made if not _is_read(node, graph, results)]:
        made = [node for node in made if node not in idle]
        for node in idle:
            graph.node.remove(node)


def _is_read(node: Any, graph: Any, results: set[str]) -> bool:
    return node.output[0] in results or any(node.output[0] in other.input for other in graph.node)


@contextlib.contextmanager
def fused_attention(network: Any) -> Iterator[None]:
    """Let the encoder's attention leave the exporter as one node (onnxruntime's MultiHeadAttention).

    Only plain attention over all real tokens has that form; anything else (causal, windows, grouped heads,
    position biases) raises NotImplementedError while the graph is traced, and is exported as it is written.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    body: Any = getattr(network[0], "auto_model", None)
    before = getattr(getattr(body, "config", None), "_attn_implementation", None)
    if before is None:
        raise NotImplementedError("not a transformers model")
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _mask_padding)
    try:
        body.set_attn_implementation(ATTENTION)
        yield
    finally:
        body.set_attn_implementation(before)


def _mask_padding(*_: Any, mask_function: Any = None, attention_mask: Any = None, **__: Any) -> Any:
    """Return the (n, length) padding mask itself, which the fused node takes."""
    from transformers.masking_utils import bidirectional_mask_function

    if mask_function is not bidirectional_mask_function or attention_mask is None:
        raise NotImplementedError("not attention over all real tokens")
    return attention_mask


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **others: Any
) -> tuple[Any, None]:
    """Return attention over all real tokens as one node; query, key, value are (n, heads, length, size)."""
    import torch

    special = {name for name, value in others.items() if value is not None} - {"dropout", "is_causal"}
    plain = getattr(module, "is_causal", False) is False and not special
    if not plain or query.shape[1] != key.shape[1] or attention_mask is None or attention_mask.dim() != 2:
        raise NotImplementedError("not plain attention")
    rows, heads, length, size = query.shape
    flat = [part.transpose(1, 2).reshape(rows, length, heads * size) for part in (query, key, value)]
    result = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (*flat, None, attention_mask.to(torch.int32)),
        {"num_heads": int(heads), "scale": float(size**-0.5 if scaling is None else scaling)},
        dtype=query.dtype,
        shape=(rows, length, heads * size),
        version=1,
    )
    return result.reshape(rows, length, heads, size), None


def _longest(network: Any) -> int:
    return min(max_length_of(network) or 2**16, 2**16)


def compare(
    reference: TorchEncoder, served: Graph, texts: Sequence[str], pairs: Sequence[LabelledPair], file: str
) -> Fidelity:
    """Return how close the vectors of `served` are to those of `reference`."""
    cosines = pair_cosines(reference.encode(texts), served.encode(texts))
    labels = np.array([pair.label for pair in pairs], dtype=np.int64)
    loss = None
    if 0 < labels.sum() < len(labels):
        left, right = [pair.sentence1 for pair in pairs], [pair.sentence2 for pair in pairs]
        before, after = (
            Ranking(labels, pair_similarities(encoder, left, right)).average_precision()
            for encoder in (reference, served)
        )
        loss = before - after
    return Fidelity(
        file=file,
        size=0,
        mean_cosine=float(cosines.mean()),
        lowest_cosine=float(cosines.min()),
        texts=len(texts),
        average_precision_loss=loss,
        pairs=len(pairs) if loss is not None else 0,
    )


def require(fidelity: Fidelity, precision: Precision, *, least_cosine: float, max_loss: float) -> None:
    """Raise unless the exported vectors are close enough: all of them for fp32, on the whole for int8."""
    if precision == "fp32":
        if not fidelity.lowest_cosine >= EXACT:
            raise ModelError(
                f"the exported graph is not the model: the lowest cosine is {fidelity.lowest_cosine:.6f}",
                expected=f"at least {EXACT}",
                action="serve this model with sentence-transformers, and report its class",
            )
        return
    loss = fidelity.average_precision_loss
    if not fidelity.mean_cosine >= least_cosine or (loss is not None and loss > max_loss):
        lost = "" if loss is None else f", average precision {loss:+.4f} lost on {fidelity.pairs} pairs"
        raise ConfigurationError(
            f"int8 is too far from fp32: mean cosine {fidelity.mean_cosine:.4f} (lowest "
            f"{fidelity.lowest_cosine:.4f}) on {fidelity.texts} texts{lost}",
            expected=f"a mean cosine of at least {least_cosine} and a loss of at most {max_loss}",
            action="export in fp32, or allow more (least_cosine, max_loss)",
        )


def _batches(texts: Sequence[str], folder: Path, report: ExportReport) -> list[Mapping[str, Any]]:
    """Return one input of the graph for each text; without padding, whose activations serve nobody."""
    tokenizer = load_tokenizer(folder / TOKENIZER, report.max_length)
    found: list[Mapping[str, Any]] = []
    for text in texts:
        ids, mask = pad([tokenizer.encode(report.prompt + text).ids], fill=report.fill, left=report.left)
        found.append(dict(zip(INPUTS, (ids, mask), strict=True)))
    return found


def _read_earlier(folder: Path) -> dict[str, Fidelity]:
    """Return what an earlier export of the same model left."""
    with contextlib.suppress(ModelError):
        return dict(read_report(folder).precisions)
    return {}


@contextlib.contextmanager
def make_room(folder: Path) -> Iterator[Path]:
    """Yield an empty folder in a model's for what is to be published; what kills have left of earlier ones goes."""
    remove_leftovers(folder / FOLDER)
    _remove_nameless(folder)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", suffix=f".{os.getpid()}.tmp", dir=folder) as place:
        yield Path(place)


def _remove_nameless(folder: Path) -> None:
    """Remove what killed exports left under names that tell no process, as they were once; none of them takes a day."""
    for left in folder.glob(f".{FOLDER}.????????"):
        with contextlib.suppress(OSError):  # another export may do the same
            if time.time() - max(part.stat().st_mtime for part in (left, *left.iterdir())) > OLD:
                shutil.rmtree(left)


def publish(made: Path, folder: Path, name: str, report: ExportReport | VerifierReport) -> None:
    """Put exported files into a model's folder, each in one step; the report, which says what counts, comes last."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    sync(made)
    for file in [*made.iterdir()]:
        file.replace(target / file.name)
    sync_folder(target)
    write_json(target / name, report)
    for left in set(FILES.values()) - {part.file for part in report.precisions.values()}:
        (target / left).unlink(missing_ok=True)


def _shipped_pairs() -> list[LabelledPair]:
    return [row for row in shipped_guards()["general_pairs"] if isinstance(row, LabelledPair)]
