"""Below HTTP: uvicorn with time limits on clients that send, read or linger too slowly.

uvicorn waits for ever for the end of a request's head, for a client that does not read its answer, and for the
rest of a body that nobody wants. Here each of these has a time limit, whatever trickles meanwhile. (The time for a
body is counted in `edge.read_limited`, where there is still an answer to give.)
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import dataclass
from typing import Any, Literal

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from embedsmith.server.edge import LARGEST_HEAD, error_body


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds.

    Attributes:
        head: for a whole request line with its headers, from the connection's opening or the first byte on.
        read: for taking what was sent to it, while no more goes into its connection.
        linger: for which an unread rest of a request body is drained after the response, `spare` bytes at most.
        idle: between two requests of a connection. Longer than clients keep one (httpx, and so the OpenAI client: 5):
            a connection that both sides drop at the same moment breaks the request that is on its way.
    """

    head: float = 15.0
    read: float = 60.0
    linger: float = 1.0
    spare: int = 1 << 20
    idle: int = 75


def make_server(app: Any, patience: Patience | None = None, *, graceful: int | None = None) -> uvicorn.Server:
    """Return the server of an ASGI application, not started.

    Args:
        graceful: seconds that a stop waits for requests in flight; None waits for all of them.
    """
    limits = patience or Patience()
    protocol = type("PatientProtocol", (Protocol,), {"patience": limits})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_graceful_shutdown=graceful,
        timeout_keep_alive=limits.idle,
    )
    server = uvicorn.Server(config)
    if isinstance(app, Starlette):
        app.state.count_requests = server.server_state.tasks.__len__  # those whose bytes have come, begun or not
    return server


class Protocol(H11Protocol):
    """One connection with a client."""

    patience = Patience()
    _timer: asyncio.TimerHandle | None = None  # of the head
    _stalled: asyncio.TimerHandle | None = None  # of the answer
    _spare: int | None = None  # bytes that may still be thrown away
    _dropping: asyncio.TimerHandle | None = None  # how long that may go on

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        # Head and body go out in two writes: with Nagle's algorithm the second would wait 40 ms for the client's
        # acknowledgement. asyncio switches it off only where the listening socket names its protocol.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = self.loop.call_later(self.patience.head, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget all clocks."""
        for clock in (self._timer, self._stalled, self._dropping):
            if clock is not None:
                clock.cancel()
        self._timer = self._stalled = self._dropping = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the clock runs while the head of a request is not complete."""
        if self._spare is not None:
            self._spare -= len(data)
            if self._spare < 0:
                self.transport.abort()
                return
        super().data_received(data)
        self._watch_head()
        if self._spare is not None and self.conn.their_state is not h11.SEND_BODY:
            self._spare = None  # the rest has come: the connection is good again
            if self._dropping is not None:  # or it would end the next body that nobody reads, before its time
                self._dropping.cancel()
                self._dropping = None
            if self.conn.their_state is h11.IDLE and self._timer is None:  # uvicorn's clock stopped when the rest came
                self._set_idle_clock()

    def _watch_head(self) -> None:
        """Set the clock of a head that has begun, and stop that of one that is whole."""
        waiting = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if waiting and self._timer is None:
            self._timer = self.loop.call_later(self.patience.head, self._give_up)
        elif not waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_idle_clock(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _give_up(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._refuse(408, "the head of the request did not come in time")
        else:
            self.transport.close()
        self.loop.call_later(self.patience.linger, self.transport.abort)

    def on_response_complete(self) -> None:
        """Go on to the next request; a body that nobody read is thrown away for a moment, then the connection ends."""
        if self.conn.their_state is h11.SEND_BODY and self._spare is None:
            self._spare = self.patience.spare
            self._dropping = self.loop.call_later(self.patience.linger, self.transport.abort)
        super().on_response_complete()
        self._watch_head()  # half of the next one may have come with this request

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has nothing more to say, and drop it if its client will not read the end."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.patience.read, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.patience.read, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, with 431 where only the head is too large."""
        hint = getattr(sys.exception(), "error_status_hint", 400)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(431 if hint == 431 else 400, msg)
        else:  # the answer has begun already
            self.transport.abort()

    def _refuse(self, status: Literal[400, 408, 431], message: str) -> None:
        content = json.dumps(error_body(status, message)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
