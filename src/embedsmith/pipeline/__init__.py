"""Whole jobs: raw text in, a tuned and measured model and a report out; each stage reads and writes files."""

from embedsmith.pipeline.cache_job import Job, run
from embedsmith.pipeline.common import RunResult, Watcher

__all__ = ["Job", "RunResult", "Watcher", "run"]
