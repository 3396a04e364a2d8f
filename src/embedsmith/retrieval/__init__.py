"""Retrieval: queries, documents and judgements in; nDCG, MRR, recall, precision and MAP with paired tests out.

    task = read_beir("finance/")
    report = measure_retrieval({"base": base, "tuned": tuned, "BM25": LexicalRanker()}, task, dimensions=(192, 96))

Limits: the texts of a task are in memory (0.7 GB for a million passages of 500 letters), documents' vectors a block
at a time; BM25 holds the words of the whole corpus. The search is exact: its time is queries × documents × dimension.
"""

from __future__ import annotations

from embedsmith.retrieval.comparison import (
    CUTOFFS,
    RESAMPLES,
    DimensionRow,
    Rankings,
    RetrievalReport,
    compare_rankings,
    measure_retrieval,
    parse_cutoffs,
    rank_task,
    score_ranked,
    score_task,
)
from embedsmith.retrieval.rankers import (
    DEPTH,
    EncoderRanker,
    LexicalRanker,
    Ranked,
    Ranker,
    RunRanker,
    as_ranker,
    cut,
)
from embedsmith.retrieval.scoring import score_grades
from embedsmith.retrieval.tasks import RetrievalTask, judge_runs, read_beir
from embedsmith.retrieval.trec import Qrels, Run, read_qrels, read_run, write_qrels, write_run

__all__ = [
    "CUTOFFS",
    "DEPTH",
    "RESAMPLES",
    "DimensionRow",
    "EncoderRanker",
    "LexicalRanker",
    "Qrels",
    "Ranked",
    "Ranker",
    "Rankings",
    "RetrievalReport",
    "RetrievalTask",
    "Run",
    "RunRanker",
    "as_ranker",
    "compare_rankings",
    "cut",
    "judge_runs",
    "measure_retrieval",
    "parse_cutoffs",
    "rank_task",
    "read_beir",
    "read_qrels",
    "read_run",
    "score_grades",
    "score_ranked",
    "score_task",
    "write_qrels",
    "write_run",
]
