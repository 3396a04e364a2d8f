"""mteb and ours in both directions: our encoders run on mteb's tasks, and local files become tasks of mteb, offline.

    from embedsmith.mteb_tasks import MtebEncoder, make_retrieval_task, run_mteb
    run_mteb(encoder, [make_retrieval_task(read_beir("finance/"))], name="finance-minilm")

Nothing here asks the hub for anything: a local task has its data from the start, and results are not cached. Tasks of
mteb's own (`mteb.get_task`) are fetched by mteb. mteb is imported when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedsmith.encoder import Embeddings, Encoder, Side, normalize, reader_of
from embedsmith.errors import ConfigurationError, MissingPartError
from embedsmith.retrieval import RetrievalTask
from embedsmith.suites import ScoredSet

SPLIT = "test"
PROMPT_TYPES: Mapping[str, Side] = {"query": "query", "document": "document", "passage": "document"}


@dataclass(frozen=True, slots=True)
class MtebEncoder:
    """An encoder of ours as mteb's `EncoderProtocol`: pass it to `mteb.evaluate`.

    Queries are read with the encoder's prompt for queries and documents with that for documents, where it has such
    prompts; what mteb calls neither is read as `encode` reads it. mteb's own instructions are not put before texts.

    Attributes:
        name: of the model in mteb's results, "organisation/model" or "model".
    """

    encoder: Encoder
    name: str = "embedsmith/encoder"
    revision: str = "local"

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_: Any) -> Embeddings:
        """Return unit rows (n, d) float32 of the texts of mteb's batches; batch size and the like are our own."""
        texts = [str(text) for batch in inputs for text in batch["text"]]
        side = str(getattr(prompt_type, "value", prompt_type))
        return reader_of(self.encoder, PROMPT_TYPES.get(side, "")).encode(texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each row with each row, (n1, n2), as a torch tensor, which mteb wants."""
        import torch

        return torch.from_numpy(_rows(embeddings1) @ _rows(embeddings2).T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each row with that of the same place, (n,), as a torch tensor."""
        import torch

        return torch.from_numpy(np.einsum("nd,nd->n", _rows(embeddings1), _rows(embeddings2)))

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes into its results about the model: its name, and that it is a local one."""
        meta = _load_mteb().models.ModelMeta.create_empty()
        name = self.name.strip("./") or "encoder"
        name = name if re.fullmatch(r"[^/]+/[^/]+", name) else f"embedsmith/{re.sub(r'[/:]+', '-', name)}"
        return meta.model_copy(update={"name": name, "revision": self.revision})


def _rows(vectors: Any) -> NDArray[np.float32]:
    return normalize(np.atleast_2d(np.asarray(vectors)))


def make_retrieval_task(task: RetrievalTask) -> Any:
    """Return the task as an `AbsTaskRetrieval` of mteb whose data are these; a title is part of the text already.

    Raises:
        MissingPartError: mteb is not installed.
        ConfigurationError: a task without texts (from judgements alone).
    """
    mteb = _load_mteb()
    if not any(task.documents.values()):
        raise ConfigurationError(f"the task {task.name} has no texts", expected="a BEIR folder")
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    def rows(texts: Mapping[str, str]) -> Any:
        return Dataset.from_list([{"id": key, "text": text} for key, text in texts.items()])

    kind = _local_class(mteb, AbsTaskRetrieval, task.name, kind="Retrieval", main_score="ndcg_at_10")
    made = kind()
    made.ignore_identical_ids = not task.keep_own  # as here
    corpus = Dataset.from_list([{"id": key, "title": "", "text": text} for key, text in task.documents.items()])
    relevant = {query: dict(grades) for query, grades in task.relevant.items()}
    part = {"corpus": corpus, "queries": rows(task.queries), "relevant_docs": relevant, "top_ranked": None}
    made.dataset, made.data_loaded = {"default": {SPLIT: part}}, True
    return made


def make_sts_task(data: ScoredSet) -> Any:
    """Return graded pairs (`suites.read_suite`) as an `AbsTaskSTS` of mteb whose data are these.

    Raises:
        MissingPartError: mteb is not installed.
    """
    mteb = _load_mteb()
    from datasets import Dataset
    from mteb.abstasks import AbsTaskSTS

    kind = _local_class(mteb, AbsTaskSTS, data.name, kind="STS", main_score="cosine_spearman")
    made = kind()
    scores = [pair.score for pair in data.pairs]
    made.min_score, made.max_score = min(scores), max(scores)
    columns = {
        "sentence1": [pair.sentence1 for pair in data.pairs],
        "sentence2": [pair.sentence2 for pair in data.pairs],
        "score": scores,
    }
    made.dataset, made.data_loaded = {"default": {SPLIT: Dataset.from_dict(columns)}}, True
    return made


def _local_class(mteb: Any, parent: type, name: str, *, kind: str, main_score: str) -> Any:
    """Return a task class with the metadata that mteb asks for; the path and revision say that nothing is fetched."""
    metadata = mteb.TaskMetadata(
        dataset={"path": f"local/{name}", "revision": "local"},
        name=name,
        description=f"{name}, from local files",
        type=kind,
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        modalities=["text"],
        category="t2t",
    )
    return type(re.sub(r"\W", "_", name), (parent,), {"metadata": metadata})


def run_mteb(encoder: Encoder, tasks: Sequence[Any], *, name: str = "embedsmith/encoder") -> dict[str, dict[str, Any]]:
    """Return what `mteb.evaluate` finds, by task and split: a list with mteb's scores of each subset.

    mteb rounds nDCG, MAP, recall and precision to five digits.

    Args:
        tasks: mteb's (`mteb.get_task("SciFact")`, which fetches its data) or local ones (`make_retrieval_task`).

    Raises:
        MissingPartError: mteb is not installed.
    """
    mteb = _load_mteb()
    results = mteb.evaluate(MtebEncoder(encoder, name), list(tasks), cache=None, show_progress_bar=False)
    return {result.task_name: dict(result.scores) for result in results}


def _load_mteb() -> Any:
    try:
        import mteb
        import mteb.models
    except ImportError:
        raise MissingPartError(
            "mteb is not installed", expected="it, to run its tasks", action="pip install 'embedsmith[mteb]'"
        ) from None
    return mteb
