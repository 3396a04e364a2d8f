"""Probes: what the checks need of a network, and all checks of a run in the order of what they cost.

The untrained network encodes at most `checks.ROWS` rows of the data, the first `LENGTH` tokens of each text, and four
texts twice. It draws nothing at random that the training would draw, so weights stay bit-identical.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedsmith.artifacts import read_json
from embedsmith.batches import Prompts, Row, Source, TrainingSet
from embedsmith.checks import (
    ROWS,
    Finding,
    Outcome,
    Probe,
    Report,
    Unchecked,
    Values,
    check_default_prompt,
    check_known_pooling,
    check_leaks,
    check_mixture,
    check_order,
    check_pool,
    check_pooling,
    check_prompts,
    check_scores,
    check_settings,
    check_source,
    check_tokens,
    draw_probe,
    report_of,
)
from embedsmith.choices import Precision
from embedsmith.config import TrainingConfig
from embedsmith.decoders import frame_of, is_decoder
from embedsmith.encoder import pair_similarities
from embedsmith.errors import ConfigurationError, MissingPartError
from embedsmith.examples import Example
from embedsmith.model import DEMO_MODEL, has_modules, load_encoder, pooling_of, resolve_model
from embedsmith.networks import autocast, default_prompt, max_length_of, run_block, run_microbatches
from embedsmith.preparation import Prepared
from embedsmith.tokens import Tokens, tokenize

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

LENGTH = 128  # tokens of a text that the probe reads
BUDGET = 2048  # padded tokens a forward pass of the probe
SAMPLED = 4096  # numbers of each weight whose change is measured
POOLINGS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken"}
MOVED = 0.01  # cosine that padding may cost


def examine_examples(
    given: Sequence[Source],
    sources: Sequence[Source],
    data: TrainingSet,
    prompts: Prompts,
    config: TrainingConfig,
    held_out: Sequence[Example] = (),
) -> Report:
    """Return what can be told without the base.

    Args:
        given: the sources as the user gave them, `sources` with their losses settled and their scores fitted.
        config: with its batch settled.
    """

    def outcomes() -> Iterator[Outcome]:
        for source in given:
            yield from check_scores(source)
        for source in sources:
            yield from check_source(source, seed=config.seed)
            yield from check_prompts(source, prompts)
        rows = Counter(row.source for row in data.rows)
        yield from check_mixture(sources, [rows[number] for number in range(len(sources))], config)
        if held_out:
            yield from check_leaks([example for source in sources for example in source.examples], held_out)

    return report_of(outcomes())


def examine_network(
    prepared: Prepared,
    sources: Sequence[Source],
    data: TrainingSet,
    config: TrainingConfig,
    precision: Precision,
    *,
    asked: int = 0,
) -> Report:
    """Return what can be told of the base and the settings before all texts are tokenised.

    Args:
        asked: the batch that the user asked for, 0 where it was chosen.
    """
    network = prepared.network

    def outcomes() -> Iterator[Outcome]:
        losses = {name for source in sources for name in source.losses}
        dimension = network.get_embedding_dimension() or 0
        yield from check_settings(config, losses, rows=len(data.rows), dimension=dimension, asked=asked)
        yield from check_trainable(network)
        yield from check_positions(network)
        yield from check_ends(network)
        default = default_prompt(network)
        for source in sources if default else ():
            yield from check_default_prompt(source, default)

    found = report_of(outcomes())
    if any(finding.severity == "error" for finding in found.findings):
        return found  # such a network may not even run
    return found + report_of(check_padding(network, _spread_out(data.texts), precision))


def examine_batches(
    prepared: Prepared,
    base: str | Path,
    sources: Sequence[Source],
    data: TrainingSet,
    tokens: Tokens,
    batches: Sequence[Sequence[Row]],
    config: TrainingConfig,
    precision: Precision,
) -> Report:
    """Return what can be told of the batches, and by asking the untrained base about a sample of the rows."""

    def outcomes() -> Iterator[Outcome]:
        yield from check_tokens(tokens, prepared.network.max_seq_length)
        yield from check_known_pooling(_known_pooling(str(base)), pooling_of(prepared.network))
        losses, names = [source.losses for source in sources], [source.name for source in sources]
        yield from check_pool(batches, data, losses, names)
        for source in sources:
            probe = draw_probe(source, max(ROWS // len(sources), 50), seed=config.seed)
            if isinstance(probe, Unchecked):
                yield probe
            else:
                yield from ask_base(prepared, str(base), probe, precision)

    return report_of(outcomes())


# ── The network itself


def check_trainable(network: torch.nn.Module) -> Iterator[Outcome]:
    """Yield a network without a weight to train."""
    if not any(weight.requires_grad for weight in network.parameters()):
        count = sum(weight.numel() for weight in network.parameters())
        yield Finding(
            "nothing-to-train",
            "error",
            found=f"all {count:,} weights are frozen",
            expected="weights that are trained",
            action="unfreeze them (requires_grad_(True)), or add adapters: --set lora.rank=8",
            place="configuration",
        )


def check_positions(network: SentenceTransformer) -> Iterator[Outcome]:
    """Yield a maximum length beyond the model's positions: an error where each position has a vector of its own."""
    limit = max_length_of(network)
    table = _position_table(network)
    reach = table or int(getattr(_text_config(network), "max_position_embeddings", 0) or 0)
    if 0 < reach < (limit or math.inf):
        yield Finding(
            "max-length-beyond-positions",
            "error" if table else "warning",
            found=f"texts are {f'cut at {limit} tokens' if limit else 'not cut'}, and the model has {reach} positions",
            expected=f"at most {reach}",
            action=f"--set max_length={reach}",
            place="configuration",
        )


def _position_table(network: SentenceTransformer) -> int:
    """Return how many positions have a learnt vector; 0 where positions are computed (rotary, ALiBi)."""
    import torch

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe"):
            taken = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa starts behind the padding
            return module.num_embeddings - taken
    return 0


def _text_config(network: SentenceTransformer) -> Any:
    body: Any = network[0]
    model = getattr(body, "auto_model", None)
    return None if model is None else model.config.get_text_config()


def check_ends(network: SentenceTransformer) -> Iterator[Outcome]:
    """Yield a last-token model whose texts do not end in a special token, or are filled up with their end token."""
    tokenizer: Any = network.tokenizer
    if pooling_of(network) != "lasttoken":
        return
    try:
        _, behind = frame_of(tokenizer)
    except ConfigurationError as error:
        yield Unchecked("end-token-missing", error.found)
        return
    end = tokenizer.eos_token
    if not behind or behind[-1] not in tokenizer.all_special_ids:
        yield Finding(
            "end-token-missing",
            "warning",
            found=f"the vector is that of the last token, and the tokenizer appends no end token ({end!r}) to a text",
            expected="texts that all end in the same token, which has learnt to stand for the whole",
            action="start from the plain model (without modules.json), which gets an end token, or change "
            "tokenizer.json",
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield Finding(
            "pad-is-end-token",
            "warning",
            found=f"batches are filled up with the end token {end!r}, whose vector is the text's",
            expected="a pad token of its own: the embedding of a pad token gets no gradient",
            action="set another pad_token in tokenizer_config.json, or start from the plain model, which gets one",
        )


def check_padding(network: SentenceTransformer, texts: Sequence[str], precision: Precision) -> Iterator[Outcome]:
    """Yield a network whose vectors depend on the texts beside them: alone and padded together must be the same."""
    import torch

    if len(texts) < 2:
        yield Unchecked("padding", "one text alone is not padded")
        return
    tokens = _tokens(network, texts)
    network.eval()
    with torch.inference_mode(), autocast(network, precision):
        together = _unit(run_block(network, tokens, np.arange(len(texts)), "sentence_embedding"))
        rows = [run_block(network, tokens, np.array([row]), "sentence_embedding") for row in range(len(texts))]
        alone = _unit(torch.cat(rows))
    least = float((together * alone).sum(dim=1).min())
    if not least >= 1 - (MOVED if precision == "fp32" else 2 * MOVED):
        yield Finding(
            "padding-changes-vectors",
            "error",
            found=f"a text has another vector when longer texts are beside it: cosine {least:.3f} ({len(texts)} texts, "
            f"filled up on the {network.tokenizer.padding_side})",
            expected="the same vector, cosine 1",
            action="fill up on the other side (--set padding=right), or check the attention mask and the pooling of "
            "the base",
            place="configuration",
        )


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.normalize(vectors.float(), dim=1)


def _spread_out(texts: Sequence[str]) -> list[str]:
    """Return four texts of very different lengths."""
    order = sorted(dict.fromkeys(texts[:1000]), key=len)
    return (
        [order[place] for place in sorted({0, len(order) // 3, 2 * len(order) // 3, len(order) - 1})] if order else []
    )


def _tokens(network: SentenceTransformer, texts: Sequence[str]) -> Tokens:
    prompt = default_prompt(network)
    limit = min(LENGTH, int(network.max_seq_length or LENGTH))
    return tokenize(network.tokenizer, [prompt + text for text in texts], max_length=limit)


# ── What the untrained base says


def ask_base(prepared: Prepared, base: str, probe: Probe, precision: Precision) -> Iterator[Outcome]:
    """Yield where the data and an untrained encoder say the opposite, and where another pooling says it far better.

    A plain model is no encoder yet, so the demo's model is asked instead where it is installed and reads the language.
    """
    plain = not has_modules(resolve_model(base))
    modes = _modes(prepared, plain)
    own = pooling_of(prepared.network)
    found = _cosines(prepared.network, probe, modes or (own,), precision) if modes or not plain else {}
    if not plain:
        yield from check_order(probe, found[own], f"the cosines of {base}")
    else:
        yield from _ask_demo(probe)
    if modes:
        yield from check_pooling(probe, found, own)
    else:
        yield Unchecked("pooling", f"the pooling of {base} is the usual one of its kind, or has no other to compare")


def _modes(prepared: Prepared, plain: bool) -> tuple[str, ...]:
    """Return the poolings to compare, the own one among them; none where there is nothing to compare."""
    network = prepared.network
    config = _text_config(network)
    if config is None:
        return ()
    decoder = is_decoder(_body(network).config)
    modes = ("mean", "lasttoken") if decoder else ("mean", "cls")
    own = pooling_of(network)
    usual = "lasttoken" if decoder else "mean"
    return () if own not in modes or (plain and own == usual) else modes


def _body(network: SentenceTransformer) -> Any:
    first: Any = network[0]
    return first.auto_model


def _ask_demo(probe: Probe) -> Iterator[Outcome]:
    letters = [letter for text in probe.left for letter in text if letter.isalpha()]
    if sum(letter.isascii() for letter in letters) < 0.95 * len(letters):
        yield Unchecked("order", f"the base is no encoder yet, and {DEMO_MODEL} does not read this language")
        return
    try:
        encoder = load_encoder(DEMO_MODEL)
    except MissingPartError:
        yield Unchecked("order", f"the base is no encoder yet, and {DEMO_MODEL} is not installed")
        return
    yield from check_order(probe, pair_similarities(encoder, probe.left, probe.right), f"the cosines of {DEMO_MODEL}")


def _known_pooling(base: str) -> str:
    """Return the pooling that the folder of a base names, although it may lack modules.json; "" if it names none."""
    file = Path(resolve_model(base)) / "1_Pooling" / "config.json"
    if not file.is_file():
        return ""
    said = read_json(file)
    named = [mode for mode, key in POOLINGS.items() if said.get(key)]
    mode = said.get("pooling_mode") or (named[0] if len(named) == 1 else "")
    return mode if isinstance(mode, str) else ""


class _Poolings:
    """A network whose output is the stack of several poolings, (n, poolings, d)."""

    def __init__(self, network: SentenceTransformer, modes: Sequence[str]) -> None:
        from sentence_transformers.models import Pooling

        self.tokenizer, self.device = network.tokenizer, network.device
        modules: list[Any] = list(network)
        place = next(place for place, module in enumerate(modules) if hasattr(module, "pooling_mode"))
        self.before, self.after = modules[:place], modules[place + 1 :]
        self.pools: list[Any] = [Pooling(modules[0].get_embedding_dimension(), pooling_mode=mode) for mode in modes]

    def __call__(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        states = _run_through(self.before, dict(features))
        found = [_run_through([pool, *self.after], dict(states))["sentence_embedding"] for pool in self.pools]
        return {"all": torch.stack(found, dim=1)}


def _run_through(modules: Sequence[Any], features: dict[str, Any]) -> dict[str, Any]:
    for module in modules:
        features = module(features)
    return features


def _cosines(
    network: SentenceTransformer, probe: Probe, modes: Sequence[str], precision: Precision
) -> dict[str, Values]:
    """Return the cosine of each pair of the probe, by pooling; that of the network itself where there is one only."""
    import torch

    texts = list(dict.fromkeys((*probe.left, *probe.right)))
    place = {text: row for row, text in enumerate(texts)}
    tokens, rows = _tokens(network, texts), np.arange(len(texts))
    network.eval()
    with torch.inference_mode(), autocast(network, precision):
        if len(modes) == 1:
            stack = run_microbatches(network, tokens, rows, "sentence_embedding", budget=BUDGET)[:, None]
        else:
            stack = run_microbatches(_Poolings(network, modes), tokens, rows, "all", budget=BUDGET)
    stack = torch.nn.functional.normalize(stack.float(), dim=2)
    left, right = ([place[text] for text in side] for side in (probe.left, probe.right))
    cosines = (stack[left] * stack[right]).sum(dim=2).cpu().double().numpy()
    return {mode: cosines[:, column] for column, mode in enumerate(modes)}


class Movement:
    """How far the trained weights of a network go from where they are now, on a sample of each (of a share)."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._start = self._numbers()

    def measure(self) -> float:
        """Return the length of the change over the length of the weights."""
        moved = [new - old for new, old in zip(self._numbers(), self._start, strict=True)]
        length = sum(float((old**2).sum()) for old in self._start)
        return float(np.sqrt(sum(float((change**2).sum()) for change in moved) / max(length, 1e-30)))

    def _numbers(self) -> list[Values]:
        trained = (weight.detach() for weight in self._network.parameters() if weight.requires_grad)
        flat = [(weight.to_local() if hasattr(weight, "to_local") else weight).flatten() for weight in trained]
        return [numbers[:: max(len(numbers) // SAMPLED, 1)].cpu().double().numpy() for numbers in flat]
