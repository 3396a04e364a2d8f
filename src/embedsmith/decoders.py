"""Plain transformers models as encoders of texts: which pooling, which padding, which end token, and why.

A decoder reads from left to right, so only its last token has seen the whole text: an end token is appended to every
text and its hidden state is the vector (arXiv 2401.00368, section 3; 2408.00690, section 3). An encoder's tokens have
all seen the text, and their mean is the vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from embedsmith.artifacts import read_json
from embedsmith.errors import ConfigurationError, MissingPartError, ModelError
from embedsmith.noise import quiet_transformers
from embedsmith.tokens import limit_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Pooling = Literal["auto", "lasttoken", "mean", "cls"]
Padding = Literal["left", "right"]

DECODER_LENGTH = (
    512  # tokens; what the published recipes train on (arXiv 2401.00368), far below what decoders could read
)
PROBE = 1e-3  # how far vectors of unit-sized hidden states may lie apart and still count as the same
PADS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}  # no chat template around texts


@dataclass(frozen=True, slots=True)
class BaseOptions:
    """What is asked of a base where it is loaded.

    Attributes:
        attention: what transformers calls `attn_implementation`; None leaves it to transformers.
        pooling: for plain models; "auto" is the last token for decoders, the mean for encoders.
        padding: the side on which batches are filled up; None is the folder's own, "right" for plain models.
        bidirectional: for plain decoders, attention in both directions where transformers has a switch for it.
        max_length: tokens a text is cut to; 0 leaves it to the base.
    """

    attention: str | None = None
    pooling: Pooling = "auto"
    padding: Padding | None = None
    bidirectional: bool = False
    max_length: int = 0


AS_IT_IS = BaseOptions()


@dataclass(frozen=True, slots=True)
class BasePlan:
    """How a plain model becomes an encoder.

    Attributes:
        decoder: whether its tokens see only what stands before them.
        pooling: "lasttoken", "mean" or "cls".
        padding: the side on which shorter texts of a batch are filled up.
        bidirectional: whether a decoder's attention is switched to both directions.
        max_length: tokens a text is cut to; None leaves it to the tokenizer and the configuration.
        attention: the implementation to ask transformers for; None leaves it to transformers.
        pad: the id that batches are filled up with; None leaves it to the tokenizer.
        notes: one sentence for each choice that was made for the user.
    """

    decoder: bool
    pooling: Pooling
    padding: Padding
    bidirectional: bool
    max_length: int | None
    attention: str | None
    pad: int | None
    notes: tuple[str, ...]


def is_decoder(config: Any) -> bool:
    """Say whether the model of `config` reads from left to right only.

    A decoder is what transformers knows as a causal language model and not as a masked one or as an encoder with a
    decoder. Families that are known as both (BERT, RoBERTa, …) say `is_decoder` themselves; a causal model that was
    switched to attention in both directions is an encoder.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING as MASKED

    if config.is_encoder_decoder or reads_both_ways(config):
        return False
    if type(config) in MASKED:
        return bool(getattr(config, "is_decoder", False))
    return type(config) in CAUSAL or type(config.get_text_config()) in CAUSAL


def reads_both_ways(config: Any) -> bool:
    """Say whether a causal model's configuration switches its attention to both directions."""
    text = config.get_text_config()
    return getattr(text, "is_causal", None) is False or getattr(text, "use_bidirectional_attention", False) in (
        True,
        "all",
    )


def plan_base(path: str, options: BaseOptions = AS_IT_IS) -> BasePlan:
    """Return how the plain model at `path` (a folder or a hub id) becomes an encoder; reads no weights.

    Raises:
        ConfigurationError: an option that this model cannot have.
        OSError, ValueError: transformers cannot read the configuration or the tokenizer.
    """
    if options.pooling not in get_args(Pooling):
        raise ConfigurationError(f"pooling {options.pooling!r} is not known", expected=", ".join(get_args(Pooling)))
    if options.padding not in (None, *get_args(Padding)):
        raise ConfigurationError(f"padding {options.padding!r} is not known", expected=", ".join(get_args(Padding)))
    config = read_config(path)
    if is_decoder(config):
        return _plan_decoder(path, config, options)
    if options.bidirectional:
        raise ConfigurationError(f"{path} ({config.model_type}) reads in both directions already")
    return _plan_encoder(config, options)


def _plan_encoder(config: Any, options: BaseOptions) -> BasePlan:
    pooling = options.pooling
    if pooling == "lasttoken" and not reads_both_ways(config):
        raise ConfigurationError(
            f"a {config.model_type} is no decoder: its last token is a separator",
            expected='pooling "mean" or "cls"',
        )
    chosen: Pooling = "mean" if pooling == "auto" else pooling
    note = f'{config.model_type} is an encoder: pooling "{chosen}"' + (
        ' (the mean of all tokens; pooling="cls" takes the first one)' if pooling == "auto" else ""
    )
    length = options.max_length or None
    return BasePlan(False, chosen, options.padding or "right", False, length, options.attention, None, (note,))


def _plan_decoder(path: str, config: Any, options: BaseOptions) -> BasePlan:
    pooling, attention = options.pooling, options.attention
    if pooling == "cls":
        raise ConfigurationError(
            f"{path} is a decoder ({config.model_type}): its first token has seen nothing of the text",
            expected='pooling "lasttoken" or "mean"',
        )
    tokenizer = read_tokenizer(path)
    pad = choose_pad(tokenizer)
    end = append_eos(tokenizer)
    chosen: Pooling = "lasttoken" if pooling == "auto" else pooling
    notes = [f'{config.model_type} is a decoder: pooling "{chosen}", every text ends in {end!r}']
    if options.bidirectional:
        notes.append("attention in both directions: the model was not trained so and has to be tuned")
    text = config.get_text_config()
    reach = limit_of(getattr(text, "max_position_embeddings", None)) or DECODER_LENGTH
    reach = min(reach, limit_of(tokenizer.model_max_length) or reach)
    if reach > DECODER_LENGTH and not options.max_length:
        notes.append(
            f"texts are cut at {DECODER_LENGTH} tokens (the model could read {reach}); max_seq_length raises it"
        )
    if pad != tokenizer.pad_token:
        why = "is its end token" if tokenizer.pad_token else "is missing"
        notes.append(f"batches are filled up with {pad!r}: the model's own pad token {why}")
    if getattr(text, "attn_logit_softcapping", None) and attention != "eager":
        attention = "eager"
        notes.append("attention is eager: the model caps its attention scores, which sdpa cannot")
    length = options.max_length or min(reach, DECODER_LENGTH)
    fill = tokenizer.convert_tokens_to_ids(pad)
    side = options.padding or "right"
    return BasePlan(True, chosen, side, options.bidirectional, length, attention, fill, tuple(notes))


def read_config(path: str) -> Any:
    """Return the transformers configuration at `path`; of an adapter folder, that of its base."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(adapter_base(path) or path, trust_remote_code=False)


def adapter_base(path: str) -> str | None:
    """Return the base model that the adapter folder `path` names; None when it is no adapter folder.

    Raises:
        ModelError: the folder names no base, or a base folder that does not exist.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return None
    base = read_json(file).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{file} names no base model", expected="base_model_name_or_path")
    if str(base).startswith(("/", ".", "~")) and not Path(base).is_dir():
        raise ModelError(
            f"{path} is an adapter of {base}, which does not exist here",
            expected="the folder of the base model",
            action=f"put the base there, or name its place in {file}; a merged model needs no base",
        )
    return str(base)


def require_adapter_parts(path: str) -> None:
    """Raise unless everything that loading `path` needs is here: for an adapter folder, peft and its base."""
    import importlib.util

    if adapter_base(path) is not None and importlib.util.find_spec("peft") is None:
        raise MissingPartError(f"{path} is an adapter, which needs peft", action="pip install 'embedsmith[train]'")


def read_tokenizer(path: str) -> Any:
    """Return the tokenizer at `path`.

    Raises:
        ConfigurationError: it is not a fast one, so nothing can be appended to what it does.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"the tokenizer of {path} ({type(tokenizer).__name__}) is a slow one: no end token can be appended to it",
            expected="a fast tokenizer (tokenizer.json)",
            action="convert it: transformers' convert_slow_tokenizer, then save_pretrained",
        )
    return tokenizer


def build_network(path: str, plan: BasePlan) -> SentenceTransformer:
    """Return the model at `path` with float32 weights and unit vectors, as `plan` says.

    Raises:
        ConfigurationError: left padding changes its vectors, or its family has no attention in both directions.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Transformer
    from sentence_transformers.models import Pooling as PoolingModule

    pad = {} if plan.pad is None else {"pad_token_id": plan.pad}
    with quiet_transformers():
        body: Any = Transformer(
            path,
            model_kwargs={"dtype": torch.float32, "trust_remote_code": False}
            | ({"attn_implementation": plan.attention} if plan.attention else {}),
            processor_kwargs={"trust_remote_code": False},
            config_kwargs={"trust_remote_code": False, **pad, **(_declared_switch(path) if plan.bidirectional else {})},
            max_seq_length=plan.max_length,
            modality_config=TEXT_ONLY,
            module_output_name="token_embeddings",
        )
    if plan.decoder:
        append_eos(body.tokenizer)
        body.tokenizer.pad_token = body.tokenizer.convert_ids_to_tokens(plan.pad)
    modules = [body, PoolingModule(body.get_embedding_dimension(), pooling_mode=plan.pooling), Normalize()]
    network: SentenceTransformer = SentenceTransformer(modules=modules)
    set_padding(network, plan.padding)
    if plan.bidirectional:
        switch_both_ways(network)
    return network


def append_eos(tokenizer: Any) -> str:
    """Make `tokenizer` end every text in its end token, exactly once, also when the text is cut; return that token.

    It becomes part of `tokenizer.json`, so transformers, sentence-transformers and users of `tokenizers` alone read
    the same ids: with the length cut at 4, "a b c d e" becomes (a, b, c, end). What stood before the text (a start
    token) and behind it stays.

    Raises:
        ConfigurationError: the tokenizer is a slow one or has no end token.
    """
    from tokenizers import processors

    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{type(tokenizer).__name__} is a slow tokenizer: no end token can be appended to it",
            expected="a fast tokenizer (tokenizer.json)",
        )
    end = tokenizer.eos_token
    if end is None or tokenizer.eos_token_id is None:
        raise ConfigurationError(
            "the tokenizer has no end token, so there is no last token to pool",
            expected="a tokenizer with eos_token",
            action="set eos_token in tokenizer_config.json to a token of the vocabulary, or use pooling='mean'",
        )
    before, after = frame_of(tokenizer)
    if after[-1:] == [tokenizer.eos_token_id]:
        return str(end)
    marks = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in (*before, *after)}
    marks[tokenizer.eos_token_id] = str(end)
    single, pair = _frame(before, [*after, tokenizer.eos_token_id], marks)
    template = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[{"id": _label(mark), "ids": [id_], "tokens": [mark]} for id_, mark in marks.items()],
    )
    backend = tokenizer.backend_tokenizer
    kept = _byte_level(backend.post_processor)
    backend.post_processor = processors.Sequence([kept, template]) if kept is not None else template
    return str(end)


def frame_of(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that `tokenizer` puts before and behind a text."""
    for text in ("a", "the", "1", *tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), 64)))):
        bare = tokenizer(text, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        if bare:  # a vocabulary without this letter and without an unknown token gives nothing
            break
    whole = tokenizer(text, add_special_tokens=True, padding=False, truncation=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise ConfigurationError(
        f"the tokenizer changes a text when it adds its special tokens: {bare} becomes {whole}",
        expected="special tokens before and behind the text only",
    )


def _frame(before: list[int], behind: list[int], marks: dict[int, str]) -> tuple[list[str], list[str]]:
    parts = [
        [*(f"{_label(marks[id_])}:{kind}" for id_ in before), text, *(f"{_label(marks[id_])}:{kind}" for id_ in behind)]
        for kind, text in enumerate(("$A:0", "$B:1"))
    ]
    return parts[0], [*parts[0], *parts[1]]


def _label(mark: str) -> str:
    return mark.replace(":", "_").replace("$", "_")  # both mean something in a template


def _byte_level(processor: Any) -> Any:
    """Return the part of a post-processor that moves offsets, which a new template must not lose."""
    from tokenizers import processors

    if isinstance(processor, processors.ByteLevel):
        return processor
    if isinstance(processor, processors.Sequence):
        parts: Any = processor
        return next((part for part in parts if isinstance(part, processors.ByteLevel)), None)
    return None


def choose_pad(tokenizer: Any) -> str:
    """Return the token to fill batches up with: the tokenizer's own unless it is missing or its end token.

    Which one is chosen changes no vector, since masks say what is text; but a pad token's embedding gets no
    gradient, so it must not be the end token, and tools that look for the first pad token would cut texts there.
    """
    own = tokenizer.pad_token
    if own is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return str(own)
    known = tokenizer.get_vocab()
    before, _ = frame_of(tokenizer)
    taken = {tokenizer.eos_token_id, *before}
    wanted: Iterable[str | None] = (*PADS, tokenizer.unk_token, *tokenizer.all_special_tokens)
    by_id = sorted(known, key=known.__getitem__)
    for token in (*wanted, *by_id):
        if token in known and known[token] not in taken:
            return str(token)
    raise ConfigurationError("the tokenizer has no token to fill batches up with", expected="a pad token")


def set_padding(network: SentenceTransformer, side: Padding) -> None:
    """Fill batches up on `side`, after showing that it changes nothing.

    On the right a decoder never looks at what it is filled up with. On the left, positions move: that is nothing to
    models with rotary positions and wrong for those that add a learned vector for each position (GPT-2).

    Raises:
        ConfigurationError: the vectors change with the padding on the left.
    """
    network.tokenizer.padding_side = side
    if side == "left" and _difference(network, pad=3) > PROBE:
        network.tokenizer.padding_side = "right"
        raise ConfigurationError(
            f"{network[0].auto_model.config.model_type} gives other vectors when batches are filled up on the left",
            expected='padding "right": its positions are absolute',
        )


def _difference(network: SentenceTransformer, *, pad: int) -> float:
    """Return how far the vector of one short text moves when `pad` tokens stand before it."""
    import torch

    ids, mask = _probe(network)
    fill = torch.full((1, pad), network.tokenizer.pad_token_id or 0, device=network.device)
    plain = _vectors(network, ids, mask)
    moved = _vectors(network, torch.cat([fill, ids], dim=1), torch.cat([torch.zeros_like(fill), mask], dim=1))
    return float((plain - moved).abs().max())


def _probe(network: SentenceTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    vocabulary = network[0].auto_model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 9, device=network.device)[None] % vocabulary
    return ids, torch.ones_like(ids)


def _vectors(network: SentenceTransformer, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    network.eval()
    with torch.inference_mode():
        found: torch.Tensor = network({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    return found.float()


def _declared_switch(path: str) -> dict[str, bool]:
    """Return the switch to attention in both directions that the family's configuration declares, {} without one."""
    declared = hasattr(read_config(path).get_text_config(), "use_bidirectional_attention")
    return {"use_bidirectional_attention": True} if declared else {}


def switch_both_ways(network: SentenceTransformer) -> None:
    """Let every token of the decoder in `network` see the whole text, after showing that its family can.

    A family without a switch of its own, or whose switch does nothing (Gemma 2), gets `is_causal` of the configuration,
    which transformers' masks obey (since 5.2) and which is saved with a whole model.

    Raises:
        ConfigurationError: the first token's state does not depend on the last token even so.
    """
    model: Any = network[0].auto_model
    if not _sees_ahead(network):
        model.config.get_text_config().is_causal = False
    if not _sees_ahead(network):
        raise ConfigurationError(
            f"transformers has no attention in both directions for {model.config.model_type}",
            expected="bidirectional=False, or a family whose configuration has such a switch",
        )


def _sees_ahead(network: SentenceTransformer) -> bool:
    """Say whether the first token's state depends on the last token; without padding the kernel's mask counts."""
    ids, mask = _probe(network)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    return not any(_first_states_equal(network, ids, other, mask, pad) for pad in (0, 2))


def _first_states_equal(
    network: SentenceTransformer, one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor, pad: int
) -> bool:
    import torch

    model: Any = network[0].auto_model
    network.eval()
    widen = torch.nn.functional.pad
    with torch.inference_mode():
        states = [
            model(input_ids=widen(ids, (0, pad)), attention_mask=widen(mask, (0, pad))).last_hidden_state[0, 0]
            for ids in (one, other)
        ]
    return bool(torch.allclose(states[0], states[1], atol=1e-7))


def checkpoint_gradients(network: SentenceTransformer) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again.

    The gradients stay the same; memory falls to about one layer's, a step takes about a third longer.

    Raises:
        ConfigurationError: the model's family cannot do it.
    """
    model: Any = network[0].auto_model
    if not model.supports_gradient_checkpointing:
        raise ConfigurationError(f"{model.config.model_type} has no gradient checkpointing")
    renamed = hasattr(model, "activation_checkpointing_enable")  # the old names warn in newer releases
    kind = "activation_checkpointing" if renamed else "gradient_checkpointing"
    getattr(model, f"{kind}_enable")(**{f"{kind}_kwargs": {"use_reentrant": False}})
