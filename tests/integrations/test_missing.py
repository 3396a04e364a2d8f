"""Without the library, importing its integration says how to get it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("library", "module", "extra"),
    [("langchain_core", "langchain", "langchain"), ("llama_index", "llamaindex", "llamaindex")],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(library: str, module: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
from embedsmith.errors import MissingPartError
try:
    import embedsmith.integrations.{module}
except MissingPartError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'embedsmith[{extra}]'" in run.stdout
