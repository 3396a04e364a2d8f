"""Files and what they are worth: atomic writes, JSON lines, fingerprints, the run directory.

A run directory holds one `manifest.json`. A stage is *fresh* when the key recorded there (a hash of
its inputs, its configuration and the package version) equals today's and its outputs still have the
bytes they had. Anything else is run again; a stale file is never reused.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import shlex
import shutil
import tempfile
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Generic, Self, TypeVar

from embedsmith import __version__
from embedsmith.charsets import find_misread, find_unmarked
from embedsmith.errors import InputError

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

GZIP_MAGIC = b"\x1f\x8b"
TEXT_FILE = "UTF-8 text, or UTF-16 with a byte order mark"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
Row = TypeVar("Row")
PLAIN = frozenset((str, int, float, bool, type(None)))  # what JSON knows as it is


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write `content` so that a reader sees the old file or the new one, never a part; durable on return."""
    path = Path(path)
    with replacing(path) as new:
        new.write_bytes(content)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path of the same name, whose file or folder takes the place of `path` at the end, whole and on the disk.

    It lies in a folder of its own beside `path`, since some libraries write further files beside theirs. An error, a
    full disk too, leaves nothing of it; what a kill leaves `remove_leftovers` finds. A folder replaces none but an
    empty one.
    """
    room = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        yield room / path.name
        sync(room)
        (room / path.name).replace(path)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` left whose process is gone; where no process can be looked for, nothing."""
    if os.name != "posix":
        return
    for room in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = room.name.removesuffix(".tmp").rpartition(".")[2]
        if not (process.isascii() and process.isdigit()):
            continue
        try:
            os.kill(int(process), 0)  # asks, and ends nothing
        except ProcessLookupError:
            shutil.rmtree(room, ignore_errors=True)
        except (PermissionError, OverflowError):
            continue


def sync(folder: Path) -> None:
    """Make all that lies in `folder` durable."""
    for place, _, files in os.walk(folder):
        for name in files:
            with Path(place, name).open("rb+") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable (a no-op where folders cannot be synced)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def take_lock(path: Path, what: Path, *, expected: str) -> IO[str] | None:
    """Return the open file that keeps others away until it is closed, "PATH.lock"; None where there are no such locks.

    It lies beside the file itself: closing another handle of a SQLite file would end SQLite's own locks.

    Raises:
        InputError: another process has it; `what` is what that one works with.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        return None
    held = path.with_name(f"{path.name}.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.seek(0)
        holder = held.read().strip()
        held.close()
        raise InputError(
            f"another run{f' (process {holder})' if holder else ''} works with {what}",
            expected=expected,
            action="wait until it has ended, or name another folder",
        ) from None
    except OSError:  # a file system without locks
        held.close()
        return None
    held.truncate(0)
    held.write(f"{os.getpid()}\n")
    held.flush()
    return held


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: object) -> Path:
    """Write `value` (dataclasses allowed) as indented JSON, atomically."""
    return write_text(path, json.dumps(plain(value), ensure_ascii=False, indent=2) + "\n")


def write_arrays(folder: Path, name: str, key: str, **arrays: NDArray[Any]) -> None:
    """Write arrays that other processes map into their memory; `key` says what they are made from, and comes last."""
    import numpy as np

    (folder / f"{name}.key").unlink(missing_ok=True)
    for part, values in arrays.items():
        with replacing(folder / f"{part}.npy") as new:
            np.save(new, values, allow_pickle=False)
    write_text(folder / f"{name}.key", key)


def read_arrays(folder: Path, name: str, key: str, *parts: str) -> list[NDArray[Any]] | None:
    """Return arrays of `write_arrays`, mapped, or None where there are none or those of something else."""
    import numpy as np

    about = folder / f"{name}.key"
    if not about.is_file() or about.read_text(encoding="utf-8") != key:
        return None
    return [np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in parts]


def require_place(path: Path | str, *, folder: bool) -> None:
    """Raise `InputError` unless a file (or a folder with files) can be written at `path`; leaves nothing behind.

    For what is written after work that nobody wants to do twice.
    """
    path = Path(path)
    kind = "folder" if folder else "file"
    try:
        if path.exists() and path.is_dir() != folder:
            found, expected = f"{path} is a {'file' if folder else 'folder'}", f"a {kind} to write"
            raise InputError(found, expected=expected, action="name another place")
        above = next(at for at in ((path, *path.parents) if folder else path.parents) if at.exists())
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise InputError(
            f"nothing can be written at {path} ({error.strerror})",
            expected=f"a {kind} in a place that can be written to",
            action="name another place, or check the rights of the folder and the room on its disk",
        ) from None


def read_json(path: Path | str) -> Any:
    """Read one JSON file; a clear `InputError` when it is missing or broken."""
    with open_text(path) as handle, explain_bytes(path):
        text = handle.read()
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} is not JSON ({_describe_json(error)})",
                expected="one JSON value",
                action="restore the file, or delete it and run the stage that writes it again",
            ) from None


def open_text(path: Path | str) -> IO[str]:
    """Open a plain or gzip file as UTF-8 text, or as UTF-16 if it has that byte order mark; the mark is dropped.

    What is read from it is read inside `explain_bytes`.
    """
    path = Path(path)
    require_file(path)
    raw: IO[bytes] = gzip.open(path, "rb") if _is_gzip(path) else path.open("rb")  # type: ignore[assignment]
    try:
        with explain_bytes(path):
            start = raw.read(4096)
            raw.seek(0)
        marked = start[:2] in UTF16_MARKS
        if not marked and (unmarked := find_unmarked(start)) is not None:
            raise InputError(
                f"{path} is {unmarked} without a byte order mark: every other byte is 0",
                expected=TEXT_FILE,
                action=_tell_conversion(path, unmarked),
            )
    except InputError:
        raw.close()
        raise
    return io.TextIOWrapper(raw, encoding="utf-16" if marked else "utf-8-sig", newline="")


@contextlib.contextmanager
def explain_bytes(path: Path | str) -> Iterator[None]:
    """Turn what the bytes of a file can be wrong in into an `InputError`: cut or damaged gzip, another encoding."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _describe_encoding(Path(path), error) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} is damaged or cut off ({error})",
            expected="a whole gzip file",
            action="copy or download it again; gzip -t says whether it is whole",
        ) from None


def _describe_encoding(path: Path, error: UnicodeDecodeError) -> InputError:
    """Return the error of a file in another encoding: where it begins, how it reads as the best guess, the command."""
    found = None
    if error.encoding.startswith("utf-8"):
        with path.open("rb") as plain, gzip.open(plain) if _is_gzip(path) else plain as lines:
            found = find_misread(lines)
    if found is None:
        said = error.encoding.upper()
        return InputError(
            f"{path} is not {said}, whose byte order mark it has ({error.reason})",
            expected=TEXT_FILE,
            action="copy or write it again: it is cut off or damaged",
        )
    where = f"{path} is not UTF-8: line {found.line} has the byte {found.byte:#04x}"
    reading = f"with {found.encoding} it reads “{found.shown}”"
    if found.mixed:
        return InputError(
            f"{where}, most others are UTF-8 ({reading})",
            expected="one encoding for the whole file",
            action=f"mend such lines, or leave their odd bytes out: {_command(path, '-c -f UTF-8')}",
        )
    return InputError(f"{where} ({reading})", expected=TEXT_FILE, action=_tell_conversion(path, found.encoding))


def _tell_conversion(path: Path, encoding: str) -> str:
    return f"convert it: {_command(path, f'-f {encoding}')}"


def _command(path: Path, options: str) -> str:
    """Return the iconv command that makes a UTF-8 copy of a file, plain or gzip, beside it."""
    packed = _is_gzip(path)
    name = path.with_suffix("") if packed and path.suffix.lower() == ".gz" else path
    source, target = shlex.quote(str(path)), shlex.quote(str(name.with_name(f"{name.stem}.utf8{name.suffix}")))
    if packed:
        return f"gzip -dc {source} | iconv {options} -t UTF-8 > {target}"
    return f"iconv {options} -t UTF-8 {source} > {target}"


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as probe:
        return probe.read(2) == GZIP_MAGIC


def require_file(path: Path | str) -> None:
    """Raise `InputError` unless `path` is a file with something in it."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist", expected="a file", action="check the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder", expected="a file", action="name a file inside it")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty", expected="at least one row", action="check how it was written")


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON-lines file, plain or gzip; blank lines are passed over.

    Raises:
        InputError: the file is missing, empty, not UTF-8, or a line is not a JSON object.
    """
    with open_text(path) as handle:
        for number, line in enumerate(iterate_lines(handle, path), start=1):
            if line.strip():
                yield number, _parse_object(line, path, number)


def iterate_lines(handle: IO[str], path: Path | str) -> Iterator[str]:
    """Yield the lines of an open file with their ends; what is wrong with its bytes is an `InputError`."""
    with explain_bytes(path):
        yield from handle


def _parse_object(line: str, path: Path | str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, line {number}: not JSON ({_describe_json(error, one_line=True)})",
            expected="one JSON object a line",
            action="mend or remove the line",
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}, line {number}: a JSON {type(value).__name__}, not an object",
            expected='an object such as {"text": "..."}',
            action="mend or remove the line",
        )
    return value


def _describe_json(error: ValueError | RecursionError, *, one_line: bool = False) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg if one_line else f"line {error.lineno}: {error.msg}"
    if isinstance(error, RecursionError):
        return "brackets within brackets, too many to follow"
    return "a number of more digits than can be read"


class JsonLines:
    """A file of JSON lines that is written row by row and appears whole, when it is closed, or not at all.

    What killed processes of this machine left of the same file is removed.

    Same rows, same bytes: keys keep their order and gzip (by the `.gz` ending) carries no time stamp. A half character
    (lone surrogate), which UTF-8 does not have, is written as JSON's escape and comes back.

    >>> with JsonLines("rows.jsonl") as lines:   # doctest: +SKIP
    ...     lines.write({"id": 1})
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.rows = Path(path), 0
        remove_leftovers(self.path)
        self._open = contextlib.ExitStack()
        self._lines: IO[bytes] = self._open.enter_context(self._open.enter_context(replacing(self.path)).open("wb"))
        if self.path.suffix == ".gz":
            packed: Any = gzip.GzipFile("", "wb", fileobj=self._lines, mtime=0)
            self._lines = self._open.enter_context(packed)

    def write(self, row: object) -> None:
        """Add one row: a mapping or a dataclass."""
        line = json.dumps(plain(row), ensure_ascii=False) + "\n"
        self._lines.write(line.encode("utf-8", "backslashreplace"))  # all that fails is \ud800 to \udfff
        self.rows += 1

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def write_jsonl(path: Path | str, rows: Iterable[object]) -> int:
    """Write rows (mappings or dataclasses) as JSON lines, atomically; return their number."""
    with JsonLines(path) as lines:
        for row in rows:
            lines.write(row)
    return lines.rows


class Spool(Generic[Row]):
    """Rows that wait on disk between two steps: added one by one, read by place or in order, as often as needed.

    In memory are eight bytes a row. The file has no name, so a kill leaves nothing of it. For one thread at a time;
    several iterations may take turns.

    Args:
        read: the row of what `plain` makes of it.

    >>> with Spool(str) as rows:
    ...     rows.add("one")
    ...     rows.add("two")
    ...     list(rows), rows[1], len(rows)
    (['one', 'two'], 'two', 2)
    """

    def __init__(self, read: Callable[[Any], Row]) -> None:
        self._read = read
        self._file = tempfile.TemporaryFile(prefix="embedsmith-")
        self._starts = array("Q")

    def add(self, row: Row) -> None:
        """Append a row."""
        self._starts.append(self._file.seek(0, os.SEEK_END))
        line = json.dumps(plain(row), ensure_ascii=False) + "\n"
        # Not as JSON's escapes: two half characters behind each other would come back as one whole one.
        self._file.write(line.encode("utf-8", "surrogatepass"))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: int) -> Row:
        self._file.seek(self._starts[place])
        return self._read(json.loads(self._file.readline().decode("utf-8", "surrogatepass")))

    def __iter__(self) -> Iterator[Row]:
        return (self[place] for place in range(len(self)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def plain(value: object) -> Any:
    """Return `value` with dataclasses, paths, tuples and sets turned into what JSON knows; None fields are kept.

    A set becomes a list in the order of its elements' JSON: its own order differs from process to process.
    """
    if type(value) in PLAIN:  # most values are, and the questions below take ten times as long
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return value.tolist()
    return value


def fingerprint(value: object, *, length: int = 16) -> str:
    """Return `length` hex digits that depend on the content of `value` only, not on key order.

    Half characters (lone surrogates), which UTF-8 does not have, are content like any other.
    """
    canonical = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def fingerprint_file(path: Path | str) -> str:
    """Return 16 hex digits of the SHA-256 of a file's bytes, or of a folder's files: names, sizes, bytes."""
    path = Path(path)
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    for item in files:
        if item != path:
            name = item.relative_to(path).as_posix()
            digest.update(json.dumps([name, item.stat().st_size]).encode("ascii"))  # where each ends is told
        with item.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What the manifest remembers of one finished stage."""

    key: str
    outputs: Mapping[str, str]
    seconds: float
    inputs: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    finished: str = ""


class RunDirectory:
    """A folder whose stages are run once for the same inputs and configuration.

    >>> run = RunDirectory("runs/support")                                    # doctest: +SKIP
    >>> if not run.is_fresh("synthesize", inputs, configuration):             # doctest: +SKIP
    ...     with run.stage("synthesize", inputs, configuration, ["examples.jsonl"]): ...
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other runs out of the folder; a process that ends in any way lets go of it.

        Raises:
            InputError: another process holds it.
        """
        expected = "one run at a time in a folder: two would train into the same model"
        held = take_lock(self.path / "manifest.json", self.path, expected=expected)
        try:
            yield
        finally:
            if held is not None:
                held.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def stages(self) -> dict[str, StageRecord]:
        """The finished stages by name."""
        file = self.path / "manifest.json"
        if not file.exists():
            return {}
        return {name: StageRecord(**record) for name, record in read_json(file)["stages"].items()}

    def is_fresh(self, name: str, inputs: Mapping[str, str], configuration: Mapping[str, Any]) -> bool:
        """Say whether `name` ran with these inputs and this configuration and its outputs are untouched."""
        record = self.stages.get(name)
        return (
            record is not None
            and record.key == stage_key(inputs, configuration)
            and all(
                (self.path / output).exists() and fingerprint_file(self.path / output) == digest
                for output, digest in record.outputs.items()
            )
        )

    @contextlib.contextmanager
    def stage(
        self,
        name: str,
        inputs: Mapping[str, str],
        configuration: Mapping[str, Any],
        outputs: Sequence[str],
    ) -> Iterator[None]:
        """Run the body as stage `name`; its record is taken out first and written only when it succeeds.

        Args:
            inputs: fingerprint by input name.
            configuration: everything else the outputs depend on.
            outputs: paths below the run directory, files or folders.
        """
        self._record(name, None)
        started = time.monotonic()
        yield
        record = StageRecord(
            key=stage_key(inputs, configuration),
            outputs={output: fingerprint_file(self.path / output) for output in outputs},
            seconds=round(time.monotonic() - started, 3),
            inputs=dict(inputs),
            configuration=plain(configuration),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        self._record(name, record)

    def _record(self, name: str, record: StageRecord | None) -> None:
        stages = self.stages
        stages.pop(name, None)
        if record is not None:
            stages[name] = record
        write_json(self.path / "manifest.json", {"stages": stages})


def stage_key(inputs: Mapping[str, str], configuration: Mapping[str, Any]) -> str:
    """Return the hash that decides whether a stage has to run again."""
    return fingerprint({"inputs": inputs, "configuration": configuration, "version": __version__})


def write_ahead(connection: sqlite3.Connection, *, wait: float) -> None:
    """Switch a SQLite file to the write-ahead log; where another process does the same to a new file, wait for it.

    SQLite itself does not wait for that lock, whatever its timeout, but fails.

    Args:
        wait: seconds after which the other's lock is an error.
    """
    import sqlite3

    last = time.monotonic() + wait
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > last:
                raise
            time.sleep(0.005)
        else:
            return
