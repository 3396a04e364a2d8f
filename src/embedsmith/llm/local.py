"""A language model in this process: any causal model of transformers, GGUF files too; batched, held to a schema."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedsmith.artifacts import fingerprint
from embedsmith.errors import MissingPartError, ModelError
from embedsmith.gguf_files import find_gguf
from embedsmith.llm import Completion, Prompt, Sampling, object_schema
from embedsmith.noise import quiet_transformers

if TYPE_CHECKING:
    from embedsmith.llm.guided import Guide, Guides

LOG = logging.getLogger("embedsmith.llm")
BATCH = 8  # prompts generated together


class LocalModel:
    """Generation in process, in batches of prompts of like length; the same seed gives the same texts.

    Answers are held to `Prompt.answer_schema`: they are JSON of it and end within the sampling's `max_tokens`, unless
    that is too little for the fixed parts. A row's noise does not depend on its batch; the model's numbers do in their
    last digits (padding, the order of sums), so that two tokens of almost equal worth may change places.

    Args:
        spec: a model folder, a hub id, or a .gguf file.
        batch: prompts generated together. A step reads all weights once, whatever the batch, so that eight rows
            cost little more than one; a killed run loses at most the rows that are unfinished.
        guided: hold answers to their schema; None: if the model has a chat template and can be guided. It is part
            of the name, so that a journal does not take a free answer for a guided one.

    Raises:
        MissingPartError: torch, transformers, gguf or llguidance is not installed.
        ModelError: the model cannot be loaded, or its tokenizer cannot be guided.
    """

    def __init__(self, spec: str, *, batch: int = BATCH, guided: bool | None = None) -> None:
        self._batch = batch
        self._tokenizer, self._model = _load(spec)
        self._guides = self._prepare(spec, guided)
        self.name = f"local:{spec}" + (" (guided)" if self._guides is not None else "")

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield each completion as soon as it is whole, shortest prompts first."""
        texts = [self._render(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            rows = [self._start(place, texts[place], prompts[place], sampling) for place in places]
            for row in self._generate(rows, [texts[place] for place in places], sampling):
                yield row.place, self._read(row)

    def _prepare(self, spec: str, guided: bool | None) -> Guides | None:
        from embedsmith.llm.guided import Guides

        if guided is False or (guided is None and not self._tokenizer.chat_template):
            return None
        size = self._model.get_output_embeddings().weight.shape[0]
        try:
            return Guides(self._tokenizer, size, sorted(_stop_tokens(self._tokenizer, self._model)))
        except ModelError as error:
            if guided:
                raise
            LOG.warning("%s answers freely: %s", spec, error.found)  # better than no answers; they are repaired
            return None

    def _start(self, place: int, text: str, prompt: Prompt, sampling: Sampling) -> _Row:
        guide = self._guides.start(_hold(prompt), sampling.max_tokens) if self._guides is not None else None
        return _Row(place, fingerprint([text, sampling.seed]), guide)

    def _render(self, prompt: Prompt) -> str:
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            start = self._tokenizer.bos_token or ""  # what a template would have written
            return start + "\n\n".join(part for part in (prompt.system, prompt.user) if part) + "\n"
        try:
            return self._chat(prompt.messages)
        except TemplateError:  # some models (Gemma) know no system role: the first words of the user, then
            return self._chat([{"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}])

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _generate(self, rows: list[_Row], texts: list[str], sampling: Sampling) -> Iterator[_Row]:
        """Yield the rows as they end; those are out of the batch from then on."""
        ends = _stop_tokens(self._tokenizer, self._model)
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        for row, width in zip(rows, inputs["attention_mask"].sum(dim=1).tolist(), strict=True):
            row.prompt_tokens = int(width)
        forward, began = _Forward(self._model, inputs), time.monotonic()
        draw = _draw(rows, sampling)
        while rows:
            scores = forward.step()
            for row, token in zip(rows, draw(rows, _mask(rows, scores)), strict=True):
                row.take(token, ends, sampling.max_tokens)
            spent, began = time.monotonic() - began, time.monotonic()
            for row in rows:
                row.seconds += spent / len(rows)
            yield from (row for row in rows if row.finish)
            keep = [number for number, row in enumerate(rows) if not row.finish]
            rows = [rows[number] for number in keep]
            forward.go_on(keep, [row.tokens[-1] for row in rows])

    def _read(self, row: _Row) -> Completion:
        free = self._tokenizer.decode(row.tokens, skip_special_tokens=True) if row.guide is None else ""
        return Completion(
            text=free if row.guide is None else row.guide.text,
            finish=row.finish,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=len(row.tokens),
            seconds=round(row.seconds, 4),
            model=self.name,
        )


def _hold(prompt: Prompt) -> Mapping[str, Any]:
    """Return the schema of an answer; a list that nothing is said of holds one text at least.

    A small model likes to end what it need not begin. Where no text is an answer, the recipe has a schema of its own.
    """
    if prompt.schema is not None:
        return prompt.schema
    return object_schema({prompt.task: {"type": "array", "items": {"type": "string"}, "minItems": 1}})


@dataclass(slots=True)
class _Row:
    """One answer on its way. `key` decides its noise; `finish` is empty until it ends."""

    place: int
    key: str
    guide: Guide | None = None
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    prompt_tokens: int = 0
    seconds: float = 0.0

    def take(self, token: int, ends: set[int], limit: int) -> None:
        """Add a token, unless it is one that ends the answer."""
        if self.guide is None and token in ends:
            self.finish = "stop"
            return
        self.tokens.append(token if self.guide is None else self.guide.take(token))
        if self.guide is not None and self.guide.ended:
            self.finish = "stop"
        elif len(self.tokens) >= limit:
            self.finish = "length"


class _Forward:
    """The model's passes over a batch: first the prompts, then one token for each row that is left."""

    def __init__(self, model: Any, inputs: Mapping[str, Any]) -> None:
        self._model = model
        self._tokens = inputs["input_ids"].to(model.device)
        self._seen = inputs["attention_mask"].to(model.device)
        self._cache: Any = None
        known = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def step(self) -> Any:
        """Return the scores of the next token, (rows, vocabulary), in float32."""
        import torch

        places = (self._seen.cumsum(dim=1) - 1).clamp(min=0)[:, -self._tokens.shape[1] :]
        with torch.inference_mode():
            output = self._model(
                input_ids=self._tokens,
                attention_mask=self._seen,
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                **self._options,
            )
            self._cache = output.past_key_values
            return output.logits[:, -1].float()

    def go_on(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        """Leave the rows `keep` in the batch; `tokens` are what they wrote last."""
        import torch

        with torch.inference_mode():
            if len(keep) < len(self._seen):
                left = torch.tensor(keep, device=self._seen.device, dtype=torch.long)
                self._seen = self._seen[left]
                self._cache.batch_select_indices(left)
            self._tokens = torch.tensor(tokens, device=self._seen.device).reshape(-1, 1)
            self._seen = torch.cat([self._seen, self._seen.new_ones(len(keep), 1)], dim=1)


def _mask(rows: Sequence[_Row], scores: Any) -> Any:
    """Return the scores with those of tokens that a row's schema does not allow at minus infinity."""
    import numpy as np
    import torch

    guides = [row.guide for row in rows if row.guide is not None]
    if not guides:
        return scores
    masks = np.zeros((len(guides), (scores.shape[1] + 31) // 32), dtype=np.int32)
    for guide, mask in zip(guides, masks, strict=True):
        guide.allow(mask)
    allowed = np.unpackbits(masks.view(np.uint8), axis=1, count=scores.shape[1], bitorder="little")
    return scores.masked_fill(~torch.from_numpy(allowed.astype(bool)).to(scores.device), float("-inf"))


def _load(spec: str) -> tuple[Any, Any]:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise MissingPartError(
            "a local language model needs torch and transformers", action="pip install 'embedsmith[local]'"
        ) from None
    file = find_gguf(spec)  # the packages of `gguf_files.WHEELS` too
    where, extra = (str(file.parent), {"gguf_file": file.name}) if file is not None else (spec, {})
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **extra)
            model = AutoModelForCausalLM.from_pretrained(
                where,
                trust_remote_code=False,
                dtype=torch.float32 if not torch.cuda.is_available() else "auto",
                **extra,
            )
    except (OSError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the language model {spec} cannot be loaded: {first}",
            expected="a causal model of transformers, or a .gguf file (needs the package gguf)",
            action="check the path; pip install 'embedsmith[local]' for GGUF",
        ) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.eval()


def _draw(rows: Sequence[_Row], sampling: Sampling) -> Callable[[Sequence[_Row], Any], list[int]]:
    """Return what draws a token for each row from its scores, with one stream of noise for each row.

    The argmax of scores / temperature + Gumbel noise is a draw from the softmax (Gumbel-max). A row's noise
    depends on its text and the seed alone, so a resumed run, whose batches are others, draws the same.
    """
    import torch
    from transformers import TopPLogitsWarper

    streams = {row.place: torch.Generator().manual_seed(int(row.key, 16) % 2**63) for row in rows}
    nucleus = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None

    def draw(rows: Sequence[_Row], scores: Any) -> list[int]:
        if sampling.temperature <= 0:
            return [int(token) for token in scores.argmax(dim=1)]
        scores = scores / sampling.temperature
        scores = nucleus(None, scores) if nucleus is not None else scores
        size = scores.shape[1]
        noise = torch.stack([torch.empty(size).exponential_(generator=streams[row.place]) for row in rows])
        return [int(token) for token in (scores - noise.log().to(scores.device)).argmax(dim=1)]

    return draw


def _stop_tokens(tokenizer: Any, model: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured])
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}
