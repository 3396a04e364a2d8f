"""The server as a process: what it refuses to start with, and a start that answers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from embedsmith.cache.semantic import SemanticCache
from embedsmith.cache.stores.memory import MemoryStore
from embedsmith.cli import app
from embedsmith.encoder import Embeddings
from embedsmith.errors import ConfigurationError, EmbedsmithError
from embedsmith.hosted import HostedEncoder
from embedsmith.server.run import (
    Service,
    address_of,
    describe_lost_secret,
    describe_upstream,
    names_of,
    read_secret,
    read_token,
    warm_up,
)
from embedsmith.testing import FakeEncoder, FaultyServer

COMMAND = [sys.executable, "-m", "embedsmith", "serve", "--threshold", "0.8"]


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=120)


def test_wrong_addresses_are_errors_without_a_traceback(lean_model: Path) -> None:
    model = ["--model", str(lean_model)]
    done = serve("--upstream", "nonsense", *model)
    assert (done.returncode, "is no address" in done.stderr + done.stdout) == (2, True)
    assert "Traceback" not in done.stderr


def test_an_upstream_without_a_path_is_used_and_said() -> None:
    assert describe_upstream("https://api.openai.com/v1") == "https://api.openai.com/v1"
    assert describe_upstream("simulator:") == "simulator:"
    assert "/v1 at the end" in describe_upstream("https://api.openai.com/")


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", None, ["an `embedsmith serve` that still runs", "lsof -i :{port}", "choose another --port"]),
        ("203.0.113.7", 8080, ["cannot be listened on", "choose another --host or --port"]),
        ("127.0.0.1", 70000, ["less than or equal to 65535"]),
    ],
    ids=["taken", "of another machine", "no port"],
)
def test_a_port_that_cannot_be_had_is_told_before_the_model_is_loaded(
    host: str, port: int | None, words: Sequence[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port if port is not None else taken.getsockname()[1]
        done = serve("--upstream", "simulator:", "--model", "no such folder", "--host", host, "--port", str(port))
    told = " ".join((done.stderr + done.stdout).replace("│", " ").split())
    words = [word.format(port=port) for word in words]
    assert (done.returncode, [word for word in words if word not in told]) == (2, []), told
    assert "no such folder" not in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--upstream", "http://"], "it names no host"),
        (["--upstream", "http://:80/v1"], "it names no host"),
        (["--upstream", "https://api example.com/v1"], "it has a space"),
        (["--upstream", "http://host/v1 "], "it has a space"),
        (["--upstream", "ftp://host/v1"], "does not begin with http://"),
        (["--upstream", "http://host:port/v1"], "host or port cannot be read"),
        (["--upstream", "http://a..b/v1"], "host or port cannot be read"),
        (["--upstream", "http://[::1/v1"], "host or port cannot be read"),
        (["--upstream", "http://host:0/v1"], "port 0"),
        (["--upstream", "http://host/v1?api-version=1"], "something follows its path"),
        (["--upstream", "http://me:secret@host/v1"], "EMBEDSMITH_UPSTREAM_KEY"),
        (["--host", ""], "the host to listen on is empty"),
        (["--temperature", "nan"], "--temperature: the highest temperature is nan"),
        (["--temperature", "inf"], "--temperature: the highest temperature is inf"),
        (["--temperature", "-1"], "--temperature: the highest temperature is -1"),
        (["--threshold", "nan"], "threshold nan"),
        (["--threshold", "2"], "threshold 2.0"),
        (["--ttl", "inf"], "ttl is inf"),
        (["--ttl", "nan"], "ttl is nan"),
        (["--ttl", "1e30"], "ttl is 1e+30"),
        (["--max-entries", str(10**30)], "max_entries is 1000000000000000000000000000000"),
        (["--max-bytes", str(2**63)], "max_bytes is 9223372036854775808"),
        (["--grace", str(10**30)], "--grace"),
        (["--price", "1e308,1"], "'1e308,1' is no price"),
        (["--prompt-price", "inf"], "'inf,0.0' is no price"),
        (["--store", "redis://host/0", "--store-timeout", "inf"], "--store-timeout"),
        (["--store", "redis://host/0", "--store-timeout", "nan"], "--store-timeout"),
        (["--store", ""], "--store: '' names no store"),
        (["--store", "sqlite:///folder"], "--store: folder is a folder"),
        (["--store", "sqlite:///file/cache.db"], "nothing can be written at file/cache.db"),
        (["--store", "redis://host:port/0"], "--store: redis://host:port/0 cannot be used"),
        (["--store", "postgresql://a b/c"], "--store: the postgresql:// URL"),
        (["--ignore-header", ""], "'' is no name of a header"),
        (["--ignore-header", "x: y"], "'x: y' is no name of a header"),
        (["--ignore-header", "Cookie"], "--ignore-header: the header cookie says who asks"),
        (["--allow-origin", "chat.example"], "--allow-origin: 'chat.example' is no origin"),
        (["--allow-origin", "https://chat.example/"], "'https://chat.example/' is no origin"),
        (["--allow-origin", "https://chat.example:443"], "'https://chat.example:443' is no origin"),
        (["--allow-origin", "null"], "'null' is no origin"),
        (["--allow-host", "https://cache.example"], "--allow-host: 'https://cache.example' is no name of a host"),
        (["--allow-host", "cache.example:8080"], "'cache.example:8080' is no name of a host"),
        (["--allow-host", "*.example"], "'*.example' is no name of a host"),
        (["--feedback", "folder"], "folder is a folder"),
        (["--feedback", "file/feedback.jsonl"], "nothing can be written at file/feedback.jsonl"),
        (["--namespaces", "missing.json"], "missing.json does not exist"),
        (["--sample", "nan", "--feedback", "f.jsonl"], "--sample, --sample-margin: the share nan"),
        (["--sample", "-1", "--feedback", "f.jsonl"], "--sample, --sample-margin: the share -1.0"),
        (["--sample", ".1", "--sample-margin", "1e30", "--feedback", "f.jsonl"], "the margin 1e+30"),
        (["--sample", ".1", "--feedback", "f.jsonl", "--delta", "1e-320"], "delta 1e-320"),
        (["--sample", ".1", "--feedback", "f.jsonl", "--delta", "nan"], "delta nan"),
        (["--sample", ".1", "--feedback", "f.jsonl", "--judge", ""], "--judge: '' names no language model"),
        (["--sample", ".1", "--feedback", "f.jsonl", "--judge", "openai:m", "--judge-url", ""], "'' is no address"),
        (["--sample", ".1", "--feedback", "f.jsonl", "--judge", "openai:m", "--judge-url", "http://"], "no host"),
        (
            ["--sample", ".1", "--feedback", "f.jsonl", "--judge", "openai:m", "--judge-url", "http://u:secret@h"],
            "a user",
        ),
    ],
    ids=" ".join,
)
def test_options_that_cannot_be_are_refused_before_the_model_is_loaded(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("some text\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("embedsmith.cache.semantic.open_encoder", lambda *_: pytest.fail("the model was loaded"))
    given = ["--upstream", "simulator:", "--model", "model", "--threshold", "0.8", "--port", "0", *options]
    done = CliRunner().invoke(app, ["serve", *given], env={"COLUMNS": "300"})
    told = " ".join(f"{done.output} {done.exception}".split())
    assert words in told
    assert "secret" not in told
    assert done.exit_code == 2 or getattr(done.exception, "exit_code", None) == 2  # as `main` ends


@pytest.mark.parametrize(
    ("store", "environment", "words"),
    [
        ("redis://host/0", {}, "EMBEDSMITH_SECRET is not set"),
        ("memory://", {"EMBEDSMITH_SECRET": "00"}, "EMBEDSMITH_SECRET has 1 bytes"),
        ("sqlite:///cache.db", {}, "cache.db.secret is not hex"),
        ("memory://", {"EMBEDSMITH_ADMIN_TOKEN": "a\nb"}, "EMBEDSMITH_ADMIN_TOKEN holds a character"),
        ("memory://", {"EMBEDSMITH_UPSTREAM_KEY": "schlüssel"}, "EMBEDSMITH_UPSTREAM_KEY holds a character"),
    ],
)
def test_what_the_environment_lacks_is_told_before_the_model_is_loaded_or_a_store_made(
    store: str, environment: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cache.db.secret").write_text("spoilt")
    for name in ("EMBEDSMITH_SECRET", "EMBEDSMITH_ADMIN_TOKEN", "EMBEDSMITH_UPSTREAM_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("embedsmith.cache.semantic.open_encoder", lambda *_: pytest.fail("the model was loaded"))
    given = ["--upstream", "simulator:", "--model", "model", "--threshold", "0.8", "--port", "0", "--store", store]
    done = CliRunner().invoke(app, ["serve", *given], env=environment)
    assert isinstance(done.exception, ConfigurationError)
    assert words in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.db.secret"]


def test_files_of_a_calibration_that_are_not_there_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    for option, value in (("calibration", "."), ("calibration", "missing.json"), ("verifier", tmp_path)):
        with pytest.raises(EmbedsmithError, match=r"is a folder|does not exist|holds no verifier"):
            SemanticCache("no such model", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sample", "0.1"], "--sample without --feedback"),
        (["--judge", "openai:x"], "--judge without --sample"),
    ],
)
def test_sampling_that_cannot_be_is_refused_at_the_start(lean_model: Path, options: list[str], words: str) -> None:
    done = serve("--upstream", "simulator:", "--model", str(lean_model), *options)
    assert (done.returncode, words in " ".join((done.stderr + done.stdout).split())) == (2, True)


def test_the_help_says_that_the_judge_is_sent_the_questions() -> None:
    shown = subprocess.run([*COMMAND[:3], "serve", "--help"], capture_output=True, text=True, timeout=120).stdout
    assert "QUESTIONS OF YOUR USERS ARE SENT" in " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eviction", "fifo"], "'size'"),
        (["--max-bytes", "0"], "or equal to 1"),
        (["--max-entries", "-1"], "or equal to 1"),
    ],
)
def test_limits_that_cannot_be_are_refused_at_the_start(lean_model: Path, options: list[str], words: str) -> None:
    done = serve("--upstream", "simulator:", "--model", str(lean_model), *options)
    told = " ".join((done.stderr + done.stdout).replace("│", " ").split())
    assert (done.returncode, words in told) == (2, True)


def test_a_lookup_is_warm_before_the_first_request_and_a_hosted_encoder_is_not_called_for_it() -> None:
    asked: list[str] = []

    class Hosted(HostedEncoder):
        def encode(self, texts: Sequence[str], /) -> Embeddings:
            asked.extend(texts)
            return FakeEncoder().encode(texts)

    class Here(FakeEncoder):
        def encode(self, texts: Sequence[str], /) -> Embeddings:
            asked.extend(texts)
            return super().encode(texts)

    hosted = SemanticCache(object.__new__(Hosted), threshold=0.8, fingerprint="hosted")
    asked.clear()
    warm_up(hosted)
    assert asked == []
    warm_up(SemanticCache(Here(), threshold=0.8, fingerprint="here"))
    assert "How do I change my address?" in asked


@pytest.mark.parametrize(("host", "family", "named"), [("127.0.0.1", 4, "127.0.0.1"), ("::1", 6, "[::1]")])
def test_the_printed_address_can_be_called(host: str, family: int, named: str) -> None:
    if family == 6 and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server((host, 0), family=socket.AF_INET6 if family == 6 else socket.AF_INET) as listener:
        address = address_of(host, listener)
        with socket.create_connection((httpx.URL(address).host, httpx.URL(address).port or 0), timeout=5):
            assert address.startswith(f"http://{named}:")
            assert not address.endswith(":0")


@pytest.mark.parametrize(
    ("host", "named", "names"),
    [
        ("127.0.0.1", (), {"127.0.0.1"}),
        ("localhost", ("cache.example",), {"localhost", "cache.example"}),
        ("127.0.0.1", ("*",), set()),
        ("0.0.0.0", (), set()),
        ("0.0.0.0", ("cache.example",), {"0.0.0.0", "cache.example"}),
    ],
    ids=["this machine only", "behind a proxy", "whatever it is called", "a network's", "a network's, told its name"],
)
def test_names_count_where_only_this_machine_listens_or_where_some_are_given(
    host: str, named: tuple[str, ...], names: set[str]
) -> None:
    service = Service("simulator:", "memory://", host=host, hosts=named)
    with socket.create_server((host, 0)) as listener:
        assert names_of(service, listener) == names


@contextmanager
def running(model: Path, *options: str, token: str = "") -> Iterator[tuple[str, list[str]]]:
    """Start the command and yield its address and the lines that it has printed so far; more come as it prints."""
    command = [*COMMAND, "--upstream", "simulator:", "--model", str(model), "--port", "0", *options]
    environment = os.environ | {"EMBEDSMITH_ADMIN_TOKEN": token}
    process = subprocess.Popen(
        command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while not lines or "dashboard" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        yield lines[-1].split()[1].partition("/dashboard")[0], lines
    finally:
        process.send_signal(signal.SIGTERM)
        lines += process.communicate(timeout=30)[0].splitlines()
    assert process.returncode == -signal.SIGTERM


def client_of(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, transport=httpx.HTTPTransport(retries=5), timeout=30)


def ask(client: httpx.Client, text: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", json=body).headers["x-embedsmith-cache"]


def test_it_starts_answers_and_stops(lean_model: Path, tmp_path: Path) -> None:
    options = ("--store", f"sqlite:///{tmp_path}/cache.db", "--allow-origin", "https://chat.example")
    options += ("--allow-host", "cache.example")
    with running(lean_model, *options) as (address, lines):
        client = client_of(address)
        assert [ask(client, "hello there"), ask(client, "hello there")] == ["miss", "hit"]
        page = client.get("/v1/models", headers={"origin": "https://chat.example"})
        assert page.headers["access-control-allow-origin"] == "https://chat.example"
        named = [client.get("/health", headers={"host": name}) for name in ("evil.example:80", "cache.example")]
        assert [answer.status_code for answer in named] == [421, 200]
        token = lines[-1].strip().partition("#")[2]  # made by the server, and so printed
        answer = client.get("/admin/state", headers={"authorization": f"Bearer {token}"})
        assert answer.json()["hits"] == 1
    secret = tmp_path / "cache.db.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.unlink()
    with running(lean_model, "--store", f"sqlite:///{tmp_path}/cache.db") as (_, lines):
        assert any(f"{secret} is missing" in line for line in lines)


def test_what_is_held_in_memory_is_written_when_it_is_told_to_stop(lean_model: Path, tmp_path: Path) -> None:
    with running(lean_model, "--store", f"sqlite:///{tmp_path}/cache.db") as (address, lines):
        client = client_of(address)
        assert [ask(client, "hello there") for _ in range(4)] == ["miss", *["hit"] * 3]
    with closing(sqlite3.connect(tmp_path / "cache.db")) as stored:
        assert stored.execute("select sum(uses) from entries").fetchall() == [(3,)]
    assert "4 requests, 3 hit, 1 miss" in lines[-1]


def test_a_stop_waits_for_an_answer_only_so_long(lean_model: Path) -> None:
    with FaultyServer(faults={"hang": 1.0}, hang=120) as upstream, ThreadPoolExecutor(1) as pool:
        options = ["--upstream", upstream.base_url, "--grace", "1"]
        with running(lean_model, *options) as (address, _):
            asked = pool.submit(ask, client_of(address), "hello there")
            while not upstream.calls:
                time.sleep(0.01)
        # `running` has sent SIGTERM, and would have failed had the process not ended long before the upstream answers
        assert isinstance(asked.exception(timeout=30), httpx.HTTPError | KeyError)


def test_limits_hold_and_a_token_that_was_given_is_not_printed(lean_model: Path) -> None:
    token = "a-token-of-the-environment"
    with running(lean_model, "--max-bytes", "1", "--eviction", "size", token=f"{token}\n") as (address, lines):
        client = client_of(address)
        assert ask(client, "hello there") == "miss"
        answer = client.get("/admin/state", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["entries"]) == (200, 0)
    assert token not in "".join(lines)
    assert "EMBEDSMITH_ADMIN_TOKEN" in "".join(lines)


@pytest.mark.parametrize(("given", "read"), [("sk-1", "sk-1"), (" sk-1\r\n", "sk-1"), ("\n", None), ("", None)])
def test_a_token_from_a_file_with_a_line_break_is_the_token(
    given: str, read: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSMITH_UPSTREAM_KEY", given)
    assert read_token("EMBEDSMITH_UPSTREAM_KEY") == read


@pytest.mark.parametrize("token", ["pässwort", "two\nlines", "bytes \udcff"])
def test_a_token_that_no_header_carries_is_refused_at_once_and_not_shown(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right token was a 401: curl sends an umlaut as two bytes, and they were read as two letters."""
    monkeypatch.setenv("EMBEDSMITH_ADMIN_TOKEN", token)
    with pytest.raises(ConfigurationError, match="EMBEDSMITH_ADMIN_TOKEN holds a character") as caught:
        read_token("EMBEDSMITH_ADMIN_TOKEN")
    assert token[:4] not in str(caught.value)


def test_a_lost_secret_beside_a_filled_store_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMBEDSMITH_SECRET", raising=False)
    url = f"sqlite:///{tmp_path}/c.db"
    with closing(SemanticCache(FakeEncoder(), threshold=0.8, fingerprint="fake", store=url)) as cache:
        assert describe_lost_secret(url, cache.store) == ""  # a new store has lost nothing
        read_secret(url)
        cache.add("a question", "an answer", namespace="tenant")
        assert describe_lost_secret(url, cache.store) == ""
        (tmp_path / "c.db.secret").unlink()
        told = describe_lost_secret(url, cache.store)
        assert f"{tmp_path}/c.db.secret is missing" in told
        assert "holds answers (1)" in told
        assert "put the file back" in told
        monkeypatch.setenv("EMBEDSMITH_SECRET", "00" * 32)
        assert describe_lost_secret(url, cache.store) == ""


def test_servers_that_share_a_store_must_share_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMBEDSMITH_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="EMBEDSMITH_SECRET is not set"):
        read_secret("redis://localhost")
    assert read_secret(f"sqlite:///{tmp_path}/c.db") == read_secret(f"sqlite:///{tmp_path}/c.db")
    monkeypatch.setenv("EMBEDSMITH_SECRET", "00ff" * 16)
    assert read_secret("redis://localhost") == bytes([0, 255]) * 16


@pytest.mark.parametrize(("given", "told"), [("zz", "not hex"), ("00", "has 1 bytes"), ("ab" * 31, "has 31 bytes")])
def test_a_secret_that_is_none_is_refused_and_not_quoted(
    given: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDSMITH_SECRET", given)
    with pytest.raises(ConfigurationError, match=told) as raised:
        read_secret("memory://")
    assert given not in str(raised.value).split()
    monkeypatch.delenv("EMBEDSMITH_SECRET")
    (tmp_path / "c.db.secret").write_text(given)
    with pytest.raises(ConfigurationError, match=f"c.db.secret.* {told}"):
        read_secret(f"sqlite:///{tmp_path}/c.db")


def test_an_empty_secret_file_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMBEDSMITH_SECRET", raising=False)
    (tmp_path / "c.db.secret").touch()
    with pytest.raises(ConfigurationError, match="has 0 bytes"):
        read_secret(f"sqlite:///{tmp_path}/c.db")


def test_servers_that_start_together_agree_on_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMBEDSMITH_SECRET", raising=False)
    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            store = f"sqlite:///{tmp_path}/{number}.db"
            assert len(set(pool.map(lambda _, at=store: read_secret(at), range(8)))) == 1
    assert len(list(tmp_path.iterdir())) == 40  # and nothing is left over


def test_a_folder_that_cannot_hold_the_secret_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMBEDSMITH_SECRET", raising=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made or read"):
        read_secret(f"sqlite:///{tmp_path}/file/c.db")


def test_the_start_says_what_becomes_of_earlier_turns(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedsmith.server.run.listen", lambda cache, service, say: cache.close())
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)

    def start(*options: str) -> tuple[int, str]:
        command = ["serve", "--threshold", "0.8", "--upstream", "simulator:", "--model", str(folder), "--port", "0"]
        done = CliRunner().invoke(app, [*command, *options])
        return done.exit_code, " ".join((done.output + str(done.exception or "")).split())

    code, told = start("--turns", "meaning")
    assert code != 0
    assert "earlier turns cannot be compared by meaning: the model was not trained on conversations" in told
    (folder / "recipe.toml").write_text("[[sources]]\nconversations = 5000\n")
    assert "conversations by meaning from 0.8000: trained on 5000 rows" in start("--turns", "meaning")[1]
    assert "earlier turns must be equal: a threshold given by hand promises nothing" in start()[1]
    assert "earlier turns must be equal, as asked" in start("--turns", "fingerprint")[1]


def test_limits_of_the_command_line_reach_the_service(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Service] = []
    monkeypatch.setenv("EMBEDSMITH_SECRET", "00ff" * 16)
    monkeypatch.setattr("embedsmith.server.run.listen", lambda _, service, say: found.append(service))
    monkeypatch.setattr("embedsmith.cache.semantic.open_store", lambda _, **about: MemoryStore(**about))
    command = ["serve", "--threshold", "0.8", "--upstream", "simulator:", "--model", str(tiny_model)]
    command += ["--store", "redis://host/0", "--port", "0"]
    for options in ([], ["--store-timeout", "0.3", "--max-body", "20", "--truncate"]):
        assert CliRunner().invoke(app, [*command, *options]).exit_code == 0
    reached = [(service.store_timeout, service.max_body, service.truncate) for service in found]
    assert reached == [(1.0, 8, False), (0.3, 20, True)]
