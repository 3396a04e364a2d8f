"""The house rules that a machine can check: imports go one way, and the package loads light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import embedsmith

SOURCE = Path(embedsmith.__file__).parent
# From the ground up; a module may import from its own layer and from those before it.
LAYERS = (
    ("__init__",),
    ("errors", "choices"),
    ("artifacts", "charsets", "machine", "noise"),
    ("conversation", "text", "tables", "lexicon", "western", "wishes", "facts", "signatures", "personal"),
    ("settlement", "examples", "metrics", "encoder", "logistic", "leakage"),
    ("corpus", "documents", "guards", "gguf_files", "lexical", "llm", "tokens"),
    ("decoders", "adapters", "devices", "sharding", "compilation", "networks"),
    ("synthesis", "losses", "hosted", "model", "testing", "answers", "cards", "batches", "checkpoints", "quantization"),
    ("lean", "flash", "agreement"),
    ("packing",),
    ("objectives", "preparation", "hardness", "inspection"),
    ("config",),
    ("optimization", "parts"),
    ("checks",),
    ("probes",),
    ("step", "readiness", "training", "evaluation", "calibration", "runtime", "recipes", "retention", "guide"),
    ("verifier", "suites", "retrieval", "mteb_tasks", "mining", "teacher"),
    ("cross_encoder", "export"),
    ("report", "cache"),
    ("server", "integrations"),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: place for place, names in enumerate(LAYERS) for name in names}


def module_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("embedsmith"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names if alias.name in LAYER}
    return found


FACE = SOURCE / "__init__.py"  # names everything, and loads nothing of it


@pytest.mark.parametrize(
    "path", sorted({*SOURCE.rglob("*.py")} - {FACE}), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_imports_go_one_way(path: Path) -> None:
    own = module_of(path)
    assert own in LAYER, f"{own} has no layer: give it one here and in ARCHITECTURE.md"
    for other in imports_of(path):
        assert LAYER[other] <= LAYER[own], f"{own} must not import {other}"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(name for name in sys.modules if '.' not in name))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    heavy = {"torch", "numpy", "scipy", "openai", "matplotlib", "transformers", "langchain_core", "llama_index"}
    assert not loaded_by("import embedsmith") & heavy


def test_no_command_waits_for_numpy_before_it_knows_what_it_is_to_do() -> None:
    assert not loaded_by("import embedsmith.cli") & {"numpy", "scipy", "openai", "httpx", "torch"}


def test_a_cache_that_serves_loads_no_scipy() -> None:
    assert not loaded_by("import embedsmith.cache.semantic, embedsmith.server.app") & {"scipy", "openai", "torch"}


@pytest.mark.parametrize(
    "module",
    [
        "metrics",
        "calibration",
        "evaluation",
        "guards",
        "suites",
        "retrieval",
        "mteb_tasks",
        "synthesis",
        "model",
        "config",
        "checks",
        "report",
        "testing",
        "runtime",
        "export",
        "integrations.prompts",
        "mining",
    ],
)
def test_what_serves_and_measures_needs_no_torch(module: str) -> None:
    assert not loaded_by(f"import embedsmith.{module}") & {"torch", "transformers", "sentence_transformers"}


def test_every_public_name_exists_and_is_typed_as_what_it_is() -> None:
    """What type checkers see (the imports under TYPE_CHECKING) is what a program gets."""
    assert all(getattr(embedsmith, name) is not None for name in embedsmith.__all__)
    tree = ast.parse(FACE.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "embedsmith" in str(node.module)]
    typed = {(alias.asname, f"{node.module}") for node in imports for alias in node.names}
    assert typed == {(name, f"embedsmith.{home}") for name, home in embedsmith._HOMES.items()}


def test_the_package_names_a_function_for_each_command() -> None:
    from embedsmith.cli import app

    commands = {known.name or known.callback.__name__ for known in app.registered_commands if known.callback}
    told = dict(re.findall(r"^- ([\w, ]+): (.*)$", str(embedsmith.__doc__), flags=re.MULTILINE))
    assert {name for names in told for name in names.split(", ")} == commands - {"demo", "version"}
    names = set(re.findall(r"`(\w+)`", " ".join(told.values())))
    assert names <= set(embedsmith.__all__)
