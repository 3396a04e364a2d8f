"""The blocks of docs/integrations.md run as they stand, and do what their comments say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S))


@pytest.fixture(autouse=True)
def _no_global_cache() -> Iterator[None]:
    yield
    try:
        from langchain_core.globals import set_llm_cache
    except ImportError:
        return
    set_llm_cache(None)


def run(title: str, model: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"MODEL": model, "__name__": "docs"}
    exec(compile(BLOCKS[title], f"{PAGE} {title}", "exec"), names)
    return names


def test_no_block_is_left_out() -> None:
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(BLOCKS) == 4


def test_plain_functions(tiny_model: Path) -> None:
    names = run("Plain functions", tiny_model)
    asyncio.run(names["answer_later"]("How do I freeze my card?"))
    assert names["cache"].store.count().entries == 3


def test_langchain(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain_core")
    names = run("LangChain", tiny_model)
    assert names["hit"].content == "In the app."
    assert "In the app. {'reason': 'same text'" in capsys.readouterr().out
    assert len(names["vectors"][0]) == 32


def test_llamaindex(tiny_model: Path) -> None:
    pytest.importorskip("llama_index.core")
    names = run("LlamaIndex", tiny_model)
    assert str(names["first"]) == str(names["again"])
    assert names["cache"].store.count().entries == 1


def test_tenants(tiny_model: Path) -> None:
    pytest.importorskip("langchain_core")
    assert run("Tenants", tiny_model)["shared"].shelf.tenant == "a"
