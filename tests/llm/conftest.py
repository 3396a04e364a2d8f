"""Shared by the tests of language models: loopback servers that stop at once."""

from __future__ import annotations

from http.server import ThreadingHTTPServer
from socketserver import BaseServer

import pytest


@pytest.fixture(autouse=True)
def stop_servers_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library looks for the end of a server twice a second; here, a hundred times."""

    def serve_forever(server: BaseServer, poll_interval: float = 0.01) -> None:
        BaseServer.serve_forever(server, poll_interval)

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", serve_forever)
