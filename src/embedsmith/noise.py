"""What other libraries print by themselves, kept out of our own display."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars out of our own display, and its report of weights that are there and not used.

    Those are a decoder's output layer, as a rule. A report of weights that are missing is shown.
    """
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging as of_transformers

    logger = logging.getLogger("transformers.modeling_utils")
    was, drawn = of_transformers.is_progress_bar_enabled(), reader.tqdm
    of_transformers.disable_progress_bar()
    reader.tqdm = of_transformers.tqdm  # the one bar that asks nobody whether it may
    logger.addFilter(_tells_more)
    try:
        yield
    finally:
        logger.removeFilter(_tells_more)
        reader.tqdm = drawn
        if was:
            of_transformers.enable_progress_bar()


@contextmanager
def only_errors(*loggers: str) -> Iterator[None]:
    """Keep what libraries log below an error out of our own display."""
    known = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in known]
    for logger in known:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(known, levels, strict=True):
            logger.setLevel(level)


def _tells_more(record: logging.LogRecord) -> bool:
    """Say whether a record tells of more than unused weights."""
    told = record.getMessage()
    return "LOAD REPORT" not in told or any(word in told for word in ("MISSING", "MISMATCH", "CONVERSION"))
