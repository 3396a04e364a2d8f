"""What all benchmarks share: the data, the machine's description, the result file."""

from __future__ import annotations

import gzip
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """Return the shared development data (or EMBEDSMITH_DATA)."""
    folder = Path(os.environ.get("EMBEDSMITH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"the development data is not at {folder}; set EMBEDSMITH_DATA")
    return folder


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, bf16 instructions, library versions, the commit, and the GPU where there is one."""
    import torch
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    gpu = {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "bf16": sorted(flag for flag in flags if flag in {"amx_bf16", "avx512_bf16"}),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        **gpu,
    }


def write_result(name: str, result: dict[str, Any]) -> None:
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")
