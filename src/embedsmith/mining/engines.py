"""Who does the blocks: this process, or a Ray cluster. The work is the same function of a block's number."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

from embedsmith import errors
from embedsmith.errors import ConfigurationError, EmbedsmithError, MissingPartError
from embedsmith.machine import count_cores

Work = Callable[[int], None]


class Engine(Protocol):
    """Does numbered pieces of work; each leaves its result on disk, so the order is free."""

    name: str

    def run(self, work: Work, numbers: Sequence[int], /) -> Iterator[int]:
        """Do `work` for each number and yield the numbers as they are done."""
        ...


class LocalEngine:
    """One after the other, here."""

    name = "local"

    def run(self, work: Work, numbers: Sequence[int], /) -> Iterator[int]:
        """Do `work` for each number, in order."""
        for number in numbers:
            work(number)
            yield number


class RayEngine:
    """Ray Data with actors: each holds the work (the encoder too) once and takes one block after the other.

    The work folder has to be the same folder on every machine of the cluster. A context manager; a Ray that it
    started itself is shut down at the end, one that runs already is left alone.

    Args:
        workers: actors; default is one for each CPU of the cluster. threads: CPUs of each; the vectors of a torch
            model are those of as many threads.
        address: of a running cluster ("auto" finds it); None is a Ray of this machine alone.

    Raises:
        MissingPartError: ray is not installed. ConfigurationError: usearch was imported before.
    """

    name = "ray"

    def __init__(self, *, workers: int | None = None, threads: int = 1, address: str | None = None) -> None:
        try:
            import ray
            import ray.data
        except ImportError:
            raise MissingPartError("ray is not installed", action="pip install 'embedsmith[ray]'") from None
        if threads < 1 or (workers is not None and workers < 1):
            raise ConfigurationError(f"{workers} workers with {threads} threads", expected="at least one of each")
        if not ray.is_initialized() and "usearch" in sys.modules:  # both bring a C++ library; Ray's parser then aborts
            raise ConfigurationError(
                "usearch was imported before Ray was started; Ray 2.60 would end this process (std::regex_error)",
                expected="Ray started first",
                action="open the engine (or call ray.init) before anything that imports usearch",
            )
        self.workers, self.threads = workers, threads
        self._folder: str | None = None
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            self._folder = tempfile.mkdtemp(prefix="ray-")  # logs and sockets; paths of sockets have to be short
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            cpus = (workers or count_cores()) * threads
            alone = {"include_dashboard": False, "num_cpus": cpus, "_temp_dir": self._folder}
            ray.init(address=address or "local", **quiet, **({} if address else alone))
        ray.data.DataContext.get_current().enable_progress_bars = False

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the Ray that was started here."""
        import ray

        if self._folder is not None:
            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def run(self, work: Work, numbers: Sequence[int], /) -> Iterator[int]:
        """Do `work` for each number on the actors and yield the numbers as they are done, in any order.

        Raises:
            EmbedsmithError: what the work raised on an actor.
        """
        if not numbers:
            return
        import ray

        workers = self.workers or max(int(ray.cluster_resources().get("CPU", 1)) // self.threads, 1)
        dealt = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        done = dealt.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(work),),
            batch_size=1,
            num_cpus=self.threads,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
        )
        try:
            for row in done.iter_rows():
                if row["failure"]:
                    raise _read_failure(row["failure"])
                yield int(row["number"])
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise EmbedsmithError(
                f"Ray gave up: {lines[-1]}",
                expected="workers that import the encoder's class and reach the work folder",
                action="look into Ray's logs; --engine local runs the same without it",
            ) from error


class _Worker:
    """An actor: the work, loaded once. Errors of ours go back as rows, so that they arrive as they were raised."""

    def __init__(self, reference: Any) -> None:
        import ray

        self.work: Work = ray.get(reference)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"number": batch["number"], "failure": [self._do(number) for number in batch["number"].tolist()]}

    def _do(self, number: int) -> str:
        try:
            self.work(number)
        except EmbedsmithError as error:
            return json.dumps([type(error).__name__, error.found, error.expected, error.action])
        return ""


def _read_failure(text: str) -> EmbedsmithError:
    name, found, expected, action = json.loads(text)
    kind = getattr(errors, name, EmbedsmithError)
    return cast(EmbedsmithError, kind(found, expected=expected, action=action))
