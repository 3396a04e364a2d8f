"""A guide against an adversary: somebody who draws, of the tokens that are allowed, the ones that do most harm."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from embedsmith.llm import object_schema
from embedsmith.llm.guided import Guide, Guides

TEXT = {"type": "string"}
ITEM = object_schema({"style": {"enum": ["keyword", "natural"]}, "question": TEXT, "answer": TEXT})
SCHEMAS = {
    "object": object_schema({"user_query": TEXT, "positive_document": TEXT}),
    "list": object_schema({"tasks": {"type": "array", "items": TEXT}}),
    "list of objects": object_schema({"questions": {"type": "array", "items": ITEM}}),
    "list in a list": object_schema(
        {"all": {"type": "array", "items": object_schema({"q": TEXT, "spans": {"type": "array", "items": TEXT}})}}
    ),
}
Draw = Callable[[np.random.Generator, list[int], Guides], int]


@pytest.fixture(scope="module")
def guides() -> Guides:
    """Tokens for all bytes, and such as real tokenizers have: they end one part and begin the next ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["</s>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in [  # the last one ends a character of two bytes and begins another
        '",Ġ"',
        '"},Ġ{"',
        '"],Ġ"',
        '":Ġ"',
        'Ġ["',
        'Ġ[{"',
        '."',
        '"}]',
        "the",
        '\\"',
        "éa",
        "©Ã",
    ]:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return Guides(tokenizer, len(vocabulary), [0])


def any_token(chance: np.random.Generator, allowed: list[int], _: Guides) -> int:
    return int(chance.choice(allowed))


def longest_token(_: np.random.Generator, allowed: list[int], guides: Guides) -> int:
    """Begin as much at once as a token can."""
    return max(allowed, key=lambda token: len(guides.spell(token)))


def no_end(chance: np.random.Generator, allowed: list[int], guides: Guides) -> int:
    """End no text, and no list, as long as there is a choice."""
    rest = [token for token in allowed if not set(guides.spell(token)) & set(b'"]')]
    return int(chance.choice(rest or allowed))


def half_characters(_: np.random.Generator, allowed: list[int], guides: Guides) -> int:
    """End every token with the first byte of a character of two, where no text can end."""
    return max(allowed, key=lambda token: (guides.spell(token).endswith(b"\xc3"), len(guides.spell(token))))


def write(guides: Guides, guide: Guide, limit: int, draw: Draw, seed: int) -> int:
    """Draw until the answer is whole or cut; return the number of tokens."""
    chance, mask = np.random.default_rng(seed), np.zeros((guides.size + 31) // 32, dtype=np.int32)
    for taken in range(limit):
        if guide.ended:
            return taken
        guide.allow(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
        guide.take(draw(chance, allowed, guides))
    return limit


@pytest.mark.parametrize("draw", [any_token, longest_token, no_end, half_characters])
@pytest.mark.parametrize("kind", SCHEMAS)
def test_an_answer_is_whole_at_any_limit_above_its_fixed_parts(guides: Guides, kind: str, draw: Draw) -> None:
    for limit in (90, 130, 200):
        for seed in range(5):
            guide = guides.start(SCHEMAS[kind], limit)
            write(guides, guide, limit, draw, seed)
            assert guide.ended, guide.text
            assert list(json.loads(guide.text)) == SCHEMAS[kind]["required"]


def test_a_list_may_be_empty_unless_its_schema_says_otherwise(guides: Guides) -> None:
    def most_brackets(_: np.random.Generator, allowed: list[int], known: Guides) -> int:
        return max(allowed, key=lambda token: known.spell(token).count(b"]"))

    written = []
    for least in (0, 1):
        guide = guides.start(object_schema({"tasks": {"type": "array", "items": TEXT, "minItems": least}}), 60)
        write(guides, guide, 60, most_brackets, 0)
        written.append(len(json.loads(guide.text)["tasks"]))
    assert written == [0, 1]


def test_a_list_gets_items_while_there_is_room_and_none_that_is_a_stub(guides: Guides) -> None:
    """Someone who never ends a text fills four shares of what is left, then further ones, each 16 tokens at least."""
    guide = guides.start(SCHEMAS["list"], 400)
    write(guides, guide, 400, no_end, 0)
    sizes = [len(guides.tokens.tokenize_str(text)) for text in json.loads(guide.text)["tasks"]]
    assert len(sizes) >= 4
    assert sizes[0] > sizes[1] > sizes[-1]
    assert sizes[-1] >= 14


def test_a_text_near_its_share_ends_with_its_sentence(guides: Guides) -> None:
    """At three quarters of the share a full stop is as good an end as any; before that it is just a full stop."""
    full_stop = guides.bytes_of[ord(".")]
    guide = guides.start(object_schema({"text": TEXT}), 100)
    write(guides, guide, 100, lambda _, allowed, __: full_stop if full_stop in allowed else allowed[0], 0)
    text = json.loads(guide.text)["text"]
    assert set(text) <= {".", " "}
    assert 40 < len(text) < 75


def test_an_integer_without_bounds_ends(guides: Guides) -> None:
    schema = object_schema({"number": {"type": "integer"}, "sure": {"type": "boolean"}})
    guide = guides.start(schema, 60)
    write(guides, guide, 60, no_end, 1)
    assert abs(json.loads(guide.text)["number"]) <= 999_999
