"""Whole jobs: raw text in, a tuned and measured model and a report out; each stage reads and writes files."""

from embedsmith.pipeline.cache_job import Job, run
from embedsmith.pipeline.common import RunResult, Watcher
from embedsmith.pipeline.rag_job import ASKING, RAG_TRAINING, RAG_VALUES, RagJob, run_rag

__all__ = ["ASKING", "RAG_TRAINING", "RAG_VALUES", "Job", "RagJob", "RunResult", "Watcher", "run", "run_rag"]
