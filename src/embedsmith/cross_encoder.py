"""Training the verifier: labelled pairs in, a cross-encoder out, in torch and as ONNX.

The folder is one that sentence-transformers' `CrossEncoder` loads. The loss is the logistic one on the logit
(Nogueira & Cho 2019, arXiv 1901.04085, with one output); every pair comes in both orders, one an epoch, so
that the verifier does not care which question was stored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from embedsmith.artifacts import fingerprint
from embedsmith.batches import TrainingSet, collect_rows, pairs_of
from embedsmith.checkpoints import remove_checkpoint
from embedsmith.choices import Precision
from embedsmith.config import TrainingConfig, keyed
from embedsmith.devices import count_processes
from embedsmith.errors import ConfigurationError, InputError, ModelError, require
from embedsmith.examples import Example, LabelledText, ScoredPair
from embedsmith.export import backend, list_versions, publish, trace_module
from embedsmith.machine import best_attention, choose_precision, keep_memory
from embedsmith.model import fingerprint_model, load_pair_network, save_network
from embedsmith.networks import ENCODING_BUDGET, autocast, max_length_of, run_microbatches
from embedsmith.noise import only_errors
from embedsmith.optimization import Progress, Work, checkpoint_beside, count_work, optimize
from embedsmith.quantization import quantize
from embedsmith.readiness import Notes, check_checkpoint, describe_kept, describe_truncation
from embedsmith.runtime import FILES, FOLDER, TOKENIZER
from embedsmith.runtime import Precision as ExportPrecision
from embedsmith.step import BUDGET
from embedsmith.tokens import Index, Tokens, find_unknown, tokenize_pairs
from embedsmith.training import TrainingResult, make_result
from embedsmith.verifier import INPUTS, REPORT, Fidelity, Logits, PairGraph, VerifierReport, hold_back

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

LONGEST = 256  # tokens of a pair; two questions seldom have half of that
BATCH = 32  # pairs a step
EXACT = 0.001  # largest difference of probability of an fp32 export
MOST_GAP = 0.03  # mean difference of probability that int8 may have from fp32
MEASURED = 256  # pairs on which the export is compared, and on which int8 measures its activations


class TorchVerifier:
    """A cross-encoder in torch: the reference that exports are compared with."""

    def __init__(self, network: CrossEncoder, *, fingerprint: str = "", precision: Precision = "fp32") -> None:
        self.network, self.fingerprint, self.precision = network, fingerprint, precision

    def score(self, pairs: Sequence[tuple[str, str]], /) -> Logits:
        """Return (n,) logits that one answer serves both texts of a pair; of one that was not read whole, 0 at most."""
        import torch

        if not pairs:
            return np.zeros(0)
        tokens, firsts = tokenize_pairs(self.network.tokenizer, pairs, max_length=max_length_of(self.network))
        self.network.eval()
        with torch.inference_mode(), autocast(self.network, self.precision):
            logits = _forward(self.network, tokens, firsts, np.arange(len(pairs)), budget=ENCODING_BUDGET)
        unread = tokens.truncated | tokens.holding(find_unknown(self.network.tokenizer).id)
        return hold_back(logits.float().cpu().numpy().astype(np.float64), unread)


def load_verifier(folder: str | Path) -> TorchVerifier:
    """Return the verifier in a folder that `train_verifier` wrote, in torch.

    Raises:
        ModelError: the folder holds no cross-encoder with one output.
    """
    network = _load(folder, seed=0)
    return TorchVerifier(network, fingerprint=fingerprint_model(folder))


def train_verifier(
    examples: Sequence[Example],
    *,
    base: str | Path,
    out: Path | str,
    config: TrainingConfig | None = None,
    card: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Return the cross-encoder tuned on `examples`, saved to the folder `out` with its ONNX export (int8 and fp32).

    All pairs whose label follows from the examples count: paraphrases of one question among each other (1),
    each of them with each near miss (0). A killed run goes on from its last checkpoint, as in `train`.

    Args:
        base: any encoder; one tuned on the same domain is a good start.
        config: `losses`, `margin` and the like have no meaning here; batch 0 is 32 pairs.
        on_note: is told what is being done, and each note of the result when it is made.

    Raises:
        InputError: no labelled pair, or only one label. ModelError: the base cannot be loaded.
    """
    config = config or TrainingConfig()
    if config.compile:
        raise ConfigurationError("compile for a verifier is not offered", action="leave compile out")
    config = replace(config, batch=config.batch or BATCH, token_budget=config.token_budget or BUDGET)
    _require_pairs(examples)
    data = collect_rows(examples)
    pairs = [pair for row in data.rows for pair in pairs_of(row)]
    labels = np.array([label for _, _, label in pairs], dtype=np.float32)
    if not len(labels) or labels.min() == labels.max():
        raise InputError(
            f"{int(labels.sum())} pairs with the same answer, {int((labels == 0).sum())} with another one",
            expected="examples of both kinds",
        )
    keep_memory()
    notes = Notes(on_note)
    notes.say(f"loading {base}")
    network = _load(base, seed=config.seed, attention=best_attention())
    precision, reason = choose_precision(config.precision, network.device.type)
    texts = [(data.texts[left], data.texts[right]) for left, right, _ in pairs]
    both = [*texts, *((right, left) for left, right in texts)]
    tokens, firsts = tokenize_pairs(network.tokenizer, both, max_length=max_length_of(network))
    task = _PairTask(network, tokens, firsts, labels, config, precision)
    key = _key(data, base, config, precision)
    notes.add(*(f"warning: {found}" for found in check_checkpoint(checkpoint_beside(out), key, config)))
    notes.add(f"batch {config.batch} pairs", reason, *describe_truncation(tokens), *describe_kept(Path(out)))
    done = optimize(task, config, store=checkpoint_beside(out), key=key, on_progress=on_progress, say=notes.say)
    save_network(network, out, card=card or "")
    notes.say("exporting to ONNX")
    notes.add(*export_verifier(out, texts))
    remove_checkpoint(checkpoint_beside(out))
    rows, count = len(data.rows), len(labels)
    return make_result(Path(out), done, precision, notes.lines, rows=rows, pairs=count, tokens=tokens)


def _require_pairs(examples: Sequence[Example]) -> None:
    others = {type(example).__name__ for example in examples if isinstance(example, (ScoredPair, LabelledText))}
    if others:
        raise InputError(
            f"{' and '.join(sorted(others))} examples: a verifier learns whether one answer serves both texts",
            expected="labelled pairs, positive pairs or triplets",
        )
    require(count_processes() < 2, "several processes for a verifier", "one: it is small")


def _key(data: TrainingSet, base: str | Path, config: TrainingConfig, precision: Precision) -> str:
    return fingerprint(["verifier", data, fingerprint_model(base), keyed(config), precision])


class _PairTask:
    """Labelled pairs; row i and row i + n are one pair in both orders."""

    def __init__(
        self,
        network: CrossEncoder,
        tokens: Tokens,
        firsts: Index,
        labels: np.ndarray[Any, np.dtype[np.float32]],
        config: TrainingConfig,
        precision: Precision,
    ) -> None:
        self.network, self.tokens, self.firsts, self.labels = network, tokens, firsts, labels
        self.config, self.precision = config, precision

    def count(self) -> int:
        return -(-len(self.labels) // self.config.batch)

    def order(self, seed: int, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng([seed, epoch // 2])
        swapped = (generator.random(len(self.labels)) < 0.5) ^ bool(epoch % 2)  # the other order an epoch later
        rows = np.random.default_rng([seed, epoch]).permutation(len(self.labels))
        rows = rows + len(self.labels) * swapped[rows]
        return [part.tolist() for part in np.array_split(rows, self.count())]

    def accumulate(self, rows: Sequence[int], seed: int) -> tuple[float, Work]:
        import torch

        torch.manual_seed(seed)
        places = np.asarray(rows, dtype=np.int64)
        with autocast(self.network, self.precision):
            logits = _forward(self.network, self.tokens, self.firsts, places, budget=self.config.token_budget)
        truth = torch.from_numpy(self.labels[places % len(self.labels)]).to(logits.device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), truth)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), count_work(self.tokens.lengths[places], self.config.token_budget)

    def recall(self) -> str:
        return ""  # a step knows nothing of those before it

    def remember(self, memory: str) -> None:
        pass


def _forward(network: CrossEncoder, tokens: Tokens, firsts: Index, rows: Index, *, budget: int) -> torch.Tensor:
    """Return the logits (len(rows),) of pairs, in length-sorted micro-batches, in the order of `rows`."""

    def segments(block: Index, mask: Index) -> dict[str, Index]:
        return {"token_type_ids": mask * (np.cumsum(mask, axis=1) > firsts[block][:, None])}

    extra = segments if _has_segments(network) else None
    return run_microbatches(network, tokens, rows, "scores", budget=budget, extra=extra).squeeze(-1)


def _has_segments(network: CrossEncoder) -> bool:
    return "token_type_ids" in getattr(network.tokenizer, "model_input_names", ())


def _load(spec: str | Path, *, seed: int, attention: str | None = None) -> CrossEncoder:
    """Return the CrossEncoder at `spec`; a head that an encoder has not is drawn from `seed`."""
    with only_errors("transformers", "sentence_transformers"):  # that an encoder has no head yet is no news here
        network = load_pair_network(spec, seed=seed, attention=attention)
    network.max_seq_length = min(max_length_of(network) or LONGEST, LONGEST)
    return network


def export_verifier(folder: Path | str, pairs: Sequence[tuple[str, str]], *, most_gap: float = MOST_GAP) -> list[str]:
    """Write a verifier's folder `onnx`, fp32 always, int8 where it is close; return one sentence for each file.

    Args:
        pairs: on which the files are compared with torch, and int8 measures its activations.
        most_gap: int8 is left out above this mean difference of probability.

    Raises:
        ModelError: the fp32 graph is not the model.
    """
    folder = Path(folder)
    reference = load_verifier(folder)
    sample = list(pairs)[:: max(len(pairs) // MEASURED, 1)][:MEASURED]
    graph = _trace(reference.network)
    report = _describe(reference.network, folder)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", dir=folder) as place:
        target = Path(place)
        backend(reference.network).save(str(target / TOKENIZER))
        found: dict[ExportPrecision, Fidelity] = {}
        graphs: dict[ExportPrecision, Any] = {
            "fp32": graph,
            "int8": quantize(graph, _inputs(reference.network, sample)),
        }
        for precision, model in graphs.items():
            (target / FILES[precision]).write_bytes(model.SerializeToString())
            found[precision] = _compare(reference, target, report, FILES[precision], sample)
        kept = _require(found, most_gap)
        publish(target, folder, REPORT, replace(report, precisions=kept))
    return [
        f"{name} {'exported' if name in kept else 'left out'}: mean gap {fidelity.mean_gap:.4f} to torch in probability"
        for name, fidelity in found.items()
    ]


def _compare(
    reference: TorchVerifier, folder: Path, report: VerifierReport, file: str, pairs: Sequence[tuple[str, str]]
) -> Fidelity:
    """Return how far the probabilities of an exported file are from those of torch."""
    served = PairGraph(folder, report, file, threads=1).score(pairs)
    gaps = np.abs(expit(served) - expit(reference.score(pairs)))
    return Fidelity(file, (folder / file).stat().st_size, float(gaps.mean()), float(gaps.max()), len(pairs))


def _require(found: Mapping[ExportPrecision, Fidelity], most_gap: float) -> dict[ExportPrecision, Fidelity]:
    """Return what is close enough to be served; fp32 has to be."""
    if found["fp32"].largest_gap > EXACT:
        raise ModelError(
            f"the exported graph is not the model: a probability differs by {found['fp32'].largest_gap:.4f}",
            expected=f"at most {EXACT}",
        )
    return {name: fidelity for name, fidelity in found.items() if name == "fp32" or fidelity.mean_gap <= most_gap}


def _describe(network: CrossEncoder, folder: Path) -> VerifierReport:
    return VerifierReport(
        model=str(folder),
        fingerprint=fingerprint_model(folder),
        max_length=max_length_of(network),
        segments=_has_segments(network),
        versions=list_versions(),
    )


def _trace(network: CrossEncoder) -> Any:
    """Return the network as an ONNX ModelProto: ids, mask and segments, each (n, length) int64, to logits (n, 1)."""
    import torch

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
            features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
            if segments is not None:
                features["token_type_ids"] = segments
            scores: torch.Tensor = network(features)["scores"]
            return scores

    return trace_module(network, Served(), INPUTS if _has_segments(network) else INPUTS[:2])


def _inputs(network: CrossEncoder, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return one input of the graph for each pair, without padding."""
    found = []
    for left, right in pairs:
        limit = max_length_of(network)
        encoding = network.tokenizer([left], [right], truncation="longest_first", max_length=limit, return_tensors="np")
        names = INPUTS if _has_segments(network) else INPUTS[:2]
        found.append({name: np.asarray(encoding[name], dtype=np.int64) for name in names})
    return found
