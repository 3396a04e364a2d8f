"""Model cards: what a trained folder says about itself, for people and for hubs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedsmith.artifacts import plain


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card of a model is written from."""

    base: str
    examples: int
    source: str  # where the examples come from, in one sentence
    configuration: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)  # metric → "before → after", already formatted
    verifier: bool = False


def write_card(facts: CardFacts) -> str:
    """Return the Markdown of a model card with the metadata that model hubs read."""
    settings = json.dumps(plain(facts.configuration), indent=2, ensure_ascii=False)
    measured = "".join(f"| {name} | {value} |\n" for name, value in facts.figures.items())
    table = f"\n## Measured\n\n| metric | before → after |\n|---|---|\n{measured}" if measured else ""
    local = facts.base.startswith(("/", "~", ".", "wheel:")) or Path(facts.base).exists()
    base = "" if local else f"base_model: {facts.base}\n"  # hubs take it for an id of theirs
    task, tag, usage = _VERIFIER if facts.verifier else _ENCODER
    return f"""---
library_name: sentence-transformers
pipeline_tag: {task}
{base}tags: [sentence-transformers, {tag}, embedsmith]
---

# A sentence-transformers model tuned by embedsmith

Base: `{facts.base}`. Tuned on {facts.examples:,} examples: {facts.source}

{usage}
{table}
## Training

```json
{settings}
```
"""


_ENCODER = (
    "sentence-similarity",
    "feature-extraction",
    """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
similarity = model.similarity(model.encode("one question"), model.encode("another"))
```

`calibration.json`, where present beside the model, holds the similarity from which two questions may share an
answer, and what that threshold promises.""",
)
_VERIFIER = (
    "text-ranking",
    "cross-encoder",
    """```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("path/to/this/folder")
same_answer = model.predict([("one question", "another")])  # probability that one answer serves both
```

`onnx/` holds the same model for serving without torch.""",
)
