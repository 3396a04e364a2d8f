"""A whole server for the tests: the app under uvicorn on loopback, in front of a simulated upstream."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn.server

from embedsmith.cache.semantic import SemanticCache
from embedsmith.encoder import Encoder
from embedsmith.server.app import create_app
from embedsmith.server.watch import Watch
from embedsmith.server.wire import Patience, make_server
from embedsmith.testing import FakeEncoder, FaultyServer

TOKEN = "test-token"


class Hurried:
    """asyncio as `uvicorn.server` sees it: it looks every 10 ms, not every 100, whether it is to stop and may."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


@pytest.fixture(scope="session", autouse=True)
def hurried() -> Iterator[None]:
    """Hundreds of servers are started and stopped here, and each stop is two or three of uvicorn's looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", Hurried())
        yield


@dataclass(frozen=True)
class Served:
    """A running proxy, its cache and its upstream."""

    url: str
    cache: SemanticCache
    upstream: FaultyServer
    feedback: Path
    watch: Watch | None = None

    @property
    def calls(self) -> int:
        """Chat calls that reached the upstream."""
        return sum(call.path.endswith("/chat/completions") for call in self.upstream.calls)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start a server; options are those of FaultyServer, `cache` of SemanticCache, `app` of create_app."""
    with ExitStack() as stack:

        def start(
            cache: dict[str, Any] | None = None,
            app: dict[str, Any] | None = None,
            patience: Patience | None = None,
            encoder: Encoder | None = None,
            **faults: Any,
        ) -> Served:
            options = {"answer": lambda text: f"the answer to {text}"} | faults
            upstream = stack.enter_context(FaultyServer(**options))
            feedback = tmp_path / "feedback.jsonl"
            settings = {"threshold": 0.8, "fingerprint": "fake", "feedback": feedback} | (cache or {})
            held = SemanticCache(encoder if encoder is not None else FakeEncoder(), **settings)
            stack.callback(held.close)
            made = create_app(
                held, **{"upstream": upstream.base_url, "admin_token": TOKEN, "secret": b"secret"} | (app or {})
            )
            return Served(stack.enter_context(listen(made, patience)), held, upstream, feedback, made.state.watch)

        yield start


class listen:  # noqa: N801  used as a function
    def __init__(self, app: Any, patience: Patience | None = None) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server = make_server(app, patience, graceful=1)
        self._thread = threading.Thread(
            target=self._server.run, name="server", kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
