"""Stores on real servers, which are started once per session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from places import KINDS, Place, find_place, serve
from servers import start_postgres, start_redis


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    yield from serve(start_redis())


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    yield from serve(start_postgres())


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as opened:
        yield find_place(request.param, request, tmp_path, opened)


@pytest.fixture(params=[kind for kind in KINDS if kind != "memory"])
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as opened:
        yield find_place(request.param, request, tmp_path, opened)
