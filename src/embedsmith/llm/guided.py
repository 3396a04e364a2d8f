"""Answers held to a JSON schema, token by token: whatever the model, what it writes is JSON of the schema.

llguidance says which tokens the schema allows next. What it does not know is the limit on tokens: an answer that is
cut at `max_tokens` is lost. So a guide also follows where in the answer it is and what closing it would take, gives
each free text an equal share of what is left, and ends texts and lists in time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedsmith.errors import ConfigurationError, MissingPartError, ModelError

COMMA, COLON, QUOTE, BACKSLASH = b',:"\\'
FORMAT = {  # JSON as Python writes it; no \uXXXX, whose halves a cut could part
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\n',
}
WIDEST = 999_999  # of integers without bounds, which else could go on without end
ITEMS = 4  # the token budget of a list is that of so many items, whatever it holds already
ROOM = 16  # another item of a list is begun only with so many tokens left for each of its texts
SLACK = 6  # tokens: the rest of a character of four bytes or of an escape, the quote, and tokens met half-way
RIPE = 0.75  # of its share: from here on the end of a sentence ends a text
SENTENCE_ENDS = b".!?"


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer, or a part of it, must look like.

    Attributes:
        kind: "word" is an enum, an integer or a boolean.
        cost: most tokens that the smallest value takes. weight: free texts in it; a list counts as `ITEMS` items.
        parts: of an object its values; of a list the shape of its items.
        costs: of each part, with its key and what parts it from the one before.
    """

    kind: Literal["object", "array", "text", "word"]
    cost: int
    weight: int = 0
    parts: tuple[Shape, ...] = ()
    costs: tuple[int, ...] = ()


class Guides:
    """Guides for the answers of one model; what it takes to make them is made once.

    Args:
        tokenizer: a fast tokenizer of transformers. size: of the model's vocabulary. ends: tokens that end an answer.

    Raises:
        MissingPartError: llguidance is not installed.
        ModelError: the tokenizer is of a kind that llguidance does not read.
    """

    def __init__(self, tokenizer: Any, size: int, ends: Sequence[int]) -> None:
        try:
            import llguidance
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise MissingPartError(
                "answers held to a schema need llguidance",
                action="pip install 'embedsmith[local]', or guided=False",
            ) from None
        slices = llguidance.LLTokenizer.json_slices()
        try:
            self.tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=list(ends), slices=slices)
        except ValueError as error:
            raise ModelError(
                f"the model's tokenizer cannot be guided: {error}",
                expected="a fast tokenizer (tokenizer.json)",
                action="use guided=False",
            ) from error
        self.size = size
        if not {QUOTE, ord("]")} <= self.bytes_of.keys():
            raise ModelError(
                "the model's tokenizer cannot be guided: it has no token for a quote or a bracket alone",
                expected="a tokenizer with the signs of JSON",
                action="use guided=False",
            )
        self._compiled: dict[str, tuple[str, Shape]] = {}

    def start(self, schema: Mapping[str, Any], limit: int) -> Guide:
        """Return the guide of one answer of at most `limit` tokens.

        Raises:
            ConfigurationError: the schema has parts that are not known here, or llguidance refuses it.
        """
        import llguidance

        grammar, shape = self._compile(schema)
        return Guide(self, llguidance.LLMatcher(self.tokens, grammar, log_level=0), shape, limit)

    def _compile(self, schema: Mapping[str, Any]) -> tuple[str, Shape]:
        import llguidance

        key = json.dumps(schema)
        if key not in self._compiled:
            options: Any = FORMAT
            grammar = llguidance.LLMatcher.grammar_from_json_schema(_bound(schema), overrides=options)
            wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, self.tokens)
            if wrong:
                raise ConfigurationError(
                    f"the schema of an answer cannot be guided: {messages[0].splitlines()[0]}",
                    action="use a model with guided=False",
                )
            self._compiled[key] = grammar, self._shape(schema)
        return self._compiled[key]

    def _shape(self, schema: Mapping[str, Any]) -> Shape:
        if "enum" in schema:
            return Shape("word", max(len(json.dumps(value)) for value in schema["enum"]))
        kind = schema.get("type")
        if kind in {"integer", "boolean"}:
            return Shape(
                "word", 1 + len(str(max(WIDEST, *(abs(schema.get(end, 0)) for end in ("minimum", "maximum")))))
            )
        if kind == "string" and not {"pattern", "format", "minLength"} & set(schema):
            return Shape("text", 3, 1)
        if kind == "array" and "items" in schema and not {"maxItems", "prefixItems"} & set(schema):
            item, least = self._shape(schema["items"]), schema.get("minItems", 0)
            return Shape("array", 3 + least * (item.cost + 2), ITEMS * item.weight, (item,), (item.cost + 2,))
        if kind == "object" and list(schema.get("required", ())) == list(schema.get("properties", {})):
            return self._object(schema["properties"])
        raise ConfigurationError(
            f"the schema of an answer has a part that cannot be guided: {json.dumps(schema)[:200]}",
            expected="objects with all properties required, lists, plain strings, enums, integers, booleans",
            action="use a model with guided=False",
        )

    def _object(self, properties: Mapping[str, Any]) -> Shape:
        parts = tuple(self._shape(value) for value in properties.values())
        keys = [len(self.tokens.tokenize_str(f", {json.dumps(key)}: ")) + 2 for key in properties]
        costs = tuple(part.cost + key for part, key in zip(parts, keys, strict=True))
        return Shape("object", sum(costs) + 2, sum(part.weight for part in parts), parts, costs)

    def spell(self, token: int) -> bytes:
        """Return the bytes that a token stands for."""
        return self._spelling[token]

    @cached_property
    def _spelling(self) -> list[bytes]:
        return [self.tokens.decode_bytes([token]) for token in range(self.tokens.vocab_size)]

    @cached_property
    def bytes_of(self) -> dict[int, int]:
        """The token of each single byte that has one."""
        found = ((text[0], token) for token, text in enumerate(self._spelling) if len(text) == 1)
        return {byte: token for byte, token in found if not self.tokens.is_special_token(token)}

    @cached_property
    def single(self) -> NDArray[np.int32]:
        """The tokens of single bytes, as a mask."""
        mask = np.zeros((self.size + 31) // 32, dtype=np.int32)
        for token in self.bytes_of.values():
            _permit(mask, token)
        return mask


@dataclass(slots=True)
class _Place:
    """Where in an answer one is: the open objects and lists, each with the number of its present part."""

    root: Shape
    path: tuple[tuple[Shape, int], ...] = ()
    quoted: bool = False
    escaped: bool = False
    key: bool = False
    colon: bool = False
    last: int = 0
    texts: int = 0  # strings begun so far

    @property
    def part(self) -> Shape:
        """The shape of the value that is being written or comes next."""
        if not self.path:
            return self.root
        shape, number = self.path[-1]
        return shape.parts[number if shape.kind == "object" else 0]

    @property
    def in_text(self) -> bool:
        return self.quoted and not self.key and self.part.kind == "text"

    @property
    def in_list(self) -> bool:
        return not self.quoted and bool(self.path) and self.path[-1][0].kind == "array"

    @property
    def to_close(self) -> int:
        """Most tokens that end the answer from here, without what is open now of a text."""
        return 1 + sum(
            2 + (sum(shape.costs[number + 1 :]) if shape.kind == "object" else 0) for shape, number in self.path
        )

    @property
    def first(self) -> bool:
        """Whether the list at hand holds nothing yet."""
        return self.last == ord("[")

    def count_texts(self, further: int) -> int:
        """Return the texts to come, the present one included, if every list gets so many further items."""
        texts = 1
        for shape, number in self.path:
            if shape.kind == "array":
                texts += further * shape.parts[0].weight
            else:
                texts += sum(part.weight for part in shape.parts[number + 1 :])
        return texts

    def feed(self, byte: int) -> bool:
        """Take the next byte; True if it begins an item of a list, or announces one."""
        if self.quoted:
            self._feed_string(byte)
            return False
        begins = self.in_list and (byte == COMMA or (self.first and byte != ord("]")))
        if byte == QUOTE:
            self.quoted = True
            self.key = bool(self.path) and self.path[-1][0].kind == "object" and not self.colon
            self.texts += 1
        elif byte in b"{[":
            self.path, self.colon = (*self.path, (self.part, 0)), False
        elif byte in b"}]":
            self.path, self.colon = self.path[:-1], True
        elif byte == COLON:
            self.colon = True
        elif byte == COMMA:
            shape, number = self.path[-1]
            self.path, self.colon = (*self.path[:-1], (shape, number + 1)), False
        self.last = byte
        return begins

    def _feed_string(self, byte: int) -> None:
        self.last = byte
        if self.escaped:
            self.escaped = False
        elif byte == BACKSLASH:
            self.escaped = True
        elif byte == QUOTE:
            self.quoted = False


class Guide:
    """Says for one answer which tokens may come next, and is told which came."""

    def __init__(self, guides: Guides, matcher: Any, shape: Shape, limit: int) -> None:
        self._guides, self._matcher, self._left = guides, matcher, limit
        self._place = _Place(shape)
        self._forced: list[int] = []
        self._began = self._share = 0  # of the present text: tokens left at its start, tokens it may take
        self._written = bytearray()

    @property
    def ended(self) -> bool:
        """Whether the answer is whole."""
        return bool(self._matcher.is_stopped())

    @property
    def text(self) -> str:
        """What has been written."""
        return self._written.decode("utf-8", "replace")

    def allow(self, mask: NDArray[np.int32]) -> None:
        """Set in `mask`, (⌈vocabulary / 32⌉,), the bits of the tokens that may come next, lowest bit first.

        Raises:
            ModelError: the schema allows nothing that the model's tokens can write.
        """
        if not self._forced:
            self._forced = list(self._matcher.compute_ff_tokens())
        if self._forced:
            _only(mask, self._forced[0])
            return
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error() or not mask.any():
            raise ModelError(
                "the model's tokens cannot write an answer of the schema",
                expected="a tokenizer with the signs of JSON",
                action="use guided=False",
            )
        self._narrow(mask)

    def _narrow(self, mask: NDArray[np.int32]) -> None:
        """Leave only what ends the text or the list at hand, where it must end."""
        if self._place.in_text and self._is_full():
            quote = self._guides.bytes_of[QUOTE]
            if _permits(mask, quote):
                _only(mask, quote)
            elif (mask & self._guides.single).any():  # inside a character, which has to be whole first
                mask &= self._guides.single
        elif self._place.in_list and not self._has_room(self._place):
            bracket = self._guides.bytes_of[ord("]")]
            if _permits(mask, bracket):
                _only(mask, bracket)

    def _is_full(self) -> bool:
        taken = self._began - self._left
        ripe = taken >= RIPE * self._share and self._place.last in SENTENCE_ENDS and not self._place.escaped
        return taken >= self._share or ripe or self._left <= self._place.to_close + SLACK

    def _has_room(self, place: _Place) -> bool:
        shape = place.path[-1][0]
        wanted = SLACK if place.first else ROOM * shape.parts[0].weight
        return self._left - place.to_close - SLACK > shape.costs[0] + wanted

    def take(self, token: int) -> int:
        """Go on by the drawn token; return the one that is written: its first byte where it would begin too much."""
        token, place = self._shorten(token)
        if not self._matcher.consume_token(token):
            raise ModelError(f"a token that the schema does not allow was drawn: {token}")
        self._forced = self._forced[1:]
        self._written += self._guides.spell(token)
        self._left -= 1
        if place.in_text and place.texts != self._place.texts:
            self._began = self._left
            free = max(self._left - place.to_close - SLACK, 1)
            self._share = max(free // place.count_texts(ITEMS - 1), min(free // place.count_texts(0), ROOM))
        self._place = place
        return token

    def _shorten(self, token: int) -> tuple[int, _Place]:
        spelling, place = self._guides.spell(token), replace(self._place)
        for byte in spelling:
            before = replace(place)
            if place.feed(byte) and not self._has_room(before):
                first = self._guides.bytes_of.get(spelling[0])
                if first is None or len(spelling) == 1:
                    continue
                place = replace(self._place)
                place.feed(spelling[0])
                return first, place
        return token, place


def _bound(schema: Any) -> Any:
    """Return the schema with bounds for integers that have none."""
    if isinstance(schema, Mapping):
        bounded = {key: _bound(value) for key, value in schema.items()}
        return {"minimum": -WIDEST, "maximum": WIDEST} | bounded if schema.get("type") == "integer" else bounded
    return [_bound(item) for item in schema] if isinstance(schema, list) else schema


def _permits(mask: NDArray[np.int32], token: int) -> bool:
    return bool(int(mask[token // 32]) & 0xFFFFFFFF & (1 << token % 32))


def _permit(mask: NDArray[np.int32], token: int) -> None:
    mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)


def _only(mask: NDArray[np.int32], token: int) -> None:
    mask[:] = 0
    _permit(mask, token)
