"""A language model in this process: any causal model of transformers, GGUF files too; batched."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embedsmith.artifacts import fingerprint
from embedsmith.errors import MissingPartError, ModelError
from embedsmith.llm import Completion, Prompt, Sampling

BATCH = 8  # prompts generated together


class LocalModel:
    """Generation in process, in batches of prompts of like length; the same seed gives the same texts.

    Args:
        spec: a model folder, a hub id, or a .gguf file.

    Raises:
        MissingPartError: torch, transformers or gguf is not installed.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, spec: str, *, batch: int = BATCH) -> None:
        self.name = f"local:{spec}"
        self._batch = batch
        self._tokenizer, self._model = _load(spec)

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Iterator[tuple[int, Completion]]:
        """Yield completions batch by batch, shortest prompts first."""
        texts = [self._render(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            done = self._generate([texts[place] for place in places], sampling)
            yield from zip(places, done, strict=True)

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

    def _generate(self, texts: list[str], sampling: Sampling) -> list[Completion]:
        import torch

        began = time.monotonic()
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                do_sample=False,
                logits_processor=[_draw(texts, sampling)] if sampling.temperature > 0 else [],
                max_new_tokens=sampling.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        share = (time.monotonic() - began) / len(texts)
        width = inputs["input_ids"].shape[1]
        rows = zip(output[:, width:].tolist(), inputs["attention_mask"].sum(dim=1).tolist(), strict=True)
        return [self._read(new, int(prompt_tokens), share) for new, prompt_tokens in rows]

    def _read(self, tokens: list[int], prompt_tokens: int, seconds: float) -> Completion:
        ends = _stop_tokens(self._tokenizer, self._model)
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        return Completion(
            text=self._tokenizer.decode(tokens[:length], skip_special_tokens=True),
            finish="stop" if length < len(tokens) else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=length,
            seconds=round(seconds, 4),
            model=self.name,
        )


def _load(spec: str) -> tuple[Any, Any]:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise MissingPartError(
            "a local language model needs torch and transformers", action="pip install 'embedsmith[local]'"
        ) from None
    path = Path(spec).expanduser()
    where, extra = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (spec, {})
    if path.suffix == ".gguf" and not path.is_file():
        raise ModelError(f"{path} does not exist", expected="a GGUF file")
    try:
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


def _draw(texts: Sequence[str], sampling: Sampling) -> Any:
    """Return a logits processor under which the greedy choice is a draw, from one stream for each row.

    The argmax of logits / temperature + Gumbel noise is a draw from the softmax (Gumbel-max). A row's noise
    depends on its text and the seed alone, so a resumed run, whose batches are others, draws the same.
    """
    import torch
    from transformers import TopPLogitsWarper

    keys = [int(fingerprint([text, sampling.seed]), 16) % 2**63 for text in texts]
    streams = [torch.Generator().manual_seed(key) for key in keys]
    nucleus = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None

    def draw(tokens: Any, scores: Any) -> Any:
        scores = scores.float() / sampling.temperature
        scores = nucleus(tokens, scores) if nucleus is not None else scores
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=stream) for stream in streams])
        return scores - noise.log().to(scores.device)

    return draw


def _stop_tokens(tokenizer: Any, model: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured])
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}
