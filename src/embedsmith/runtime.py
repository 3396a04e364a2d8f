"""Serving without torch: an exported model as an encoder, on numpy, onnxruntime and tokenizers alone.

`embedsmith.export` writes what is read here: `onnx/model.onnx` or `onnx/model_int8.onnx` (tokens in, unit
vectors out), `onnx/tokenizer.json`, and `onnx/report.json` with the facts that sentence-transformers worked
out from the folder (maximum length, prompt, padding) and the fingerprint of the model they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from embedsmith.artifacts import read_json
from embedsmith.choices import ServedPrecision
from embedsmith.encoder import TOO_LONG, UNKNOWN, Embeddings, normalize, surely_fits
from embedsmith.errors import ConfigurationError, InputError, MissingPartError, ModelError
from embedsmith.machine import count_cores, huge_pages
from embedsmith.model import check_model, fingerprint_model, resolve_model
from embedsmith.tokens import cut_microbatches, find_unknown

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Encoding, Tokenizer

Precision = ServedPrecision
Choice = Literal["auto", "fp32", "int8"]
Report = TypeVar("Report")

FOLDER = "onnx"  # below the model's folder
FILES: Mapping[Precision, str] = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
REPORT = "report.json"
TOKENIZER = "tokenizer.json"
INPUTS = ("input_ids", "attention_mask")
TOKEN_BUDGET = 2048  # padded tokens a run: activations stay in the cache of one core
LETTERS = 64  # of a token; more than any text has on the average
LONG = 2048  # letters of a text: from here on the wait for the GIL counts
MOST_THREADS = 4  # one short query has no work for more


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How close one exported file is to the model it was made from.

    Attributes:
        file: its name in the folder `onnx`. size: its bytes.
        mean_cosine, lowest_cosine: between its vectors and sentence-transformers' fp32 vectors.
        texts: on how many texts.
        average_precision_loss: what the labelled pairs lose in average precision; None without pairs.
        pairs: how many labelled pairs.
    """

    file: str
    size: int
    mean_cosine: float
    lowest_cosine: float
    texts: int
    average_precision_loss: float | None = None
    pairs: int = 0


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `onnx/report.json` says: the model, how its texts are read, and each exported file.

    Attributes:
        fingerprint: of the model folder that was exported.
        max_length: tokens a text is cut to; None cuts nothing.
        prompt: what stands before every text, "" when nothing does.
        fill: the token that pads. left: padding stands before the text.
        precisions: the exported files by precision.
    """

    model: str
    fingerprint: str
    dimension: int
    max_length: int | None
    prompt: str
    fill: int
    left: bool
    versions: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, Fidelity] = field(default_factory=dict)


class OnnxEncoder:
    """An exported model as an encoder; `encode` may be called from many threads at once.

    Attributes:
        fingerprint: of the model folder (16 hex digits), the same as that of the unexported model.
        dimension: of the vectors. max_length: tokens a text is cut to, None if never.
        precision: the one that is served. threads: that one call of `encode` may use.
        report: what the export measured.
        explained: each automatic choice with its reason, one sentence each.
        quick: a short text takes it milliseconds, and no network.
    """

    quick = True

    def __init__(self, folder: str | Path, *, precision: Choice = "auto", threads: int | None = None) -> None:
        """Load the export below the model folder.

        Args:
            folder: a sentence-transformers folder with its folder `onnx`.
            precision: "auto" takes int8 where it was exported, else fp32.
            threads: for one call of `encode`; None chooses by the cores this process may use.

        Raises:
            ModelError: nothing (or not this precision) was exported, the export belongs to other weights, or
                a file of it is damaged.
            MissingPartError: onnxruntime or tokenizers is not installed.
        """
        path = Path(resolve_model(folder))
        self.name = str(folder)
        self.report = read_report(path)
        self.fingerprint = self.report.fingerprint
        self.precision, why_precision = choose_precision(self.report, precision, path)
        self.threads, why_threads = choose_threads(threads, self.precision)
        self.explained = tuple(reason for reason in (why_precision, why_threads) if reason)
        self._graph = Graph(path / FOLDER, self.precision, self.report, threads=self.threads)

    @property
    def dimension(self) -> int:
        """The length of the vectors."""
        return self.report.dimension

    @property
    def max_length(self) -> int | None:
        """The tokens that a text is cut to; None if it is never cut."""
        return self.report.max_length

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return unit rows (n, d) float32 in the order of `texts`, as sentence-transformers encodes them."""
        return self._graph.encode(texts)

    def find_unread(self, text: str) -> str:
        """Return why the vector of `text` does not stand for all of it, "" where it does."""
        return self._graph.find_unread(text)

    def count_tokens(self, texts: Sequence[str], /) -> list[int]:
        """Return the tokens of each text as the model reads it: with prompt and special tokens, cut at its limit."""
        return self._graph.count_tokens(texts)


class Graph:
    """One exported file with its tokenizer: texts in, unit rows out. No question is asked about its origin.

    fp32 runs batches, each on all threads. int8 runs every text by itself, on one thread: its activations have
    one scale a run, so in a batch the neighbours of a text would change its vector.
    """

    def __init__(self, folder: Path, precision: Precision, report: ExportReport, *, threads: int) -> None:
        self.report = report
        self._alone = precision == "int8"
        self._threads = threads
        self._tokenizer = load_tokenizer(folder / TOKENIZER, report.max_length)
        self._unknown = find_unknown(self._tokenizer, report.prompt)
        self._session = load_session(folder / FILES[precision], threads=1 if self._alone else threads)

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return unit rows (n, d) float32 in the order of `texts`."""
        if len(texts) == 1:  # a cache asks one at a time: no sorting, no padding
            return self._run([read_text(self._tokenizer, self.report.prompt + texts[0]).ids])
        if not len(texts):
            return np.zeros((0, self.report.dimension), dtype=np.float32)
        encodings = self._tokenizer.encode_batch_fast([self.report.prompt + text for text in texts])
        rows = [encoding.ids for encoding in encodings]
        if self._alone:
            with ThreadPoolExecutor(self._threads) as pool:
                return np.concatenate(list(pool.map(lambda row: self._run([row]), rows)))
        vectors = np.zeros((len(texts), self.report.dimension), dtype=np.float32)
        for block in cut_microbatches(np.array([len(row) for row in rows], dtype=np.int64), TOKEN_BUDGET):
            vectors[block] = self._run([rows[place] for place in block])
        return vectors

    def find_unread(self, text: str) -> str:
        """Return why the vector of `text` does not stand for all of it, "" where it does."""
        text, limit = self.report.prompt + text, self.report.max_length
        if surely_fits(text, limit) and self._unknown.surely_absent(text):
            return ""
        beginning = text if limit is None else text[: limit * LETTERS]  # 8 MB need not be read to see that
        if len(beginning) < len(text) and read_text(self._tokenizer, beginning).overflowing:
            return TOO_LONG
        encoding = read_text(self._tokenizer, text)
        if encoding.overflowing:
            return TOO_LONG
        return UNKNOWN if self._unknown.id is not None and self._unknown.id in encoding.ids else ""

    def count_tokens(self, texts: Sequence[str], /) -> list[int]:
        """Return the tokens of each text."""
        encodings = self._tokenizer.encode_batch_fast([self.report.prompt + text for text in texts])
        return [len(encoding.ids) for encoding in encodings]

    def _run(self, rows: Sequence[Sequence[int]]) -> Embeddings:
        ids, mask = pad(rows, fill=self.report.fill, left=self.report.left)
        (vectors,) = self._session.run(None, {INPUTS[0]: ids, INPUTS[1]: mask})
        return normalize(np.asarray(vectors))


def pad(rows: Sequence[Sequence[int]], *, fill: int, left: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (ids, mask), each (n, longest) int64; mask is 1 on real tokens. A text without tokens is all fill."""
    width = max(1, *(len(row) for row in rows))
    ids = np.full((len(rows), width), fill, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for place, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, span] = row
        mask[place, span] = 1
    return ids, mask


def read_report(folder: Path) -> ExportReport:
    """Return the report of the export below the model folder `folder`.

    Raises:
        ModelError: there is no export, its report is damaged, or it is of other weights.
    """
    missing = ModelError(
        f"{folder} has no ONNX export ({FOLDER}/{REPORT} is missing)",
        expected="a model folder that was exported",
        action=f"embedsmith export {folder}",
    )
    return open_report(folder, REPORT, ExportReport, Fidelity, missing)


def open_report(
    folder: Path, name: str, report: Callable[..., Report], fidelity: Callable[..., Any], missing: ModelError
) -> Report:
    """Return the report of an export of either kind, of the weights in `folder`; else a `ModelError` like `missing`."""
    path = folder / FOLDER / name
    if not path.is_file():
        raise missing
    try:
        content = read_json(path)
        parts = {name: fidelity(**part) for name, part in content["precisions"].items()}
        found, exported = report(**{**content, "precisions": parts}), content["fingerprint"]
    except (InputError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}: {error})",
            expected="the report that the export wrote",
            action=missing.action,
        ) from None
    if (weights := fingerprint_model(folder)) != exported:
        raise ModelError(
            f"{folder / FOLDER} was exported from a model with fingerprint {exported}, "
            f"but the model in {folder} has {weights}: the export is stale",
            expected="an export of these weights, configuration and tokenizer",
            action=missing.action,
        )
    return found


def choose_precision(report: ExportReport, asked: Choice, folder: Path) -> tuple[Precision, str]:
    """Return the precision to serve and, where it was chosen here, why."""
    if asked not in get_args(Choice):
        raise ConfigurationError(f"precision {asked!r} is not known", expected='"auto", "fp32" or "int8"')
    if asked != "auto":
        if asked not in report.precisions:
            raise ModelError(
                f"{folder} was not exported in {asked}",
                expected=f"{FOLDER}/{FILES[asked]}; found: {', '.join(sorted(report.precisions)) or 'nothing'}",
                action=f"embedsmith export {folder} --precision {asked}",
            )
        return asked, ""
    if "int8" in report.precisions:
        close = report.precisions["int8"].mean_cosine
        return "int8", f"precision int8: it was exported, at mean cosine {close:.4f} to the fp32 model"
    if "fp32" in report.precisions:
        return "fp32", "precision fp32: int8 was not exported"
    raise ModelError(
        f"{folder} holds no exported file", expected=" or ".join(FILES.values()), action=f"embedsmith export {folder}"
    )


def choose_threads(asked: int | None, precision: Precision) -> tuple[int, str]:
    """Return the threads that one call of `encode` may use and, where they were chosen here, why."""
    if asked is not None:
        if asked < 1:
            raise ConfigurationError(f"threads is {asked}", expected="at least 1")
        return asked, ""
    cores = count_cores()
    threads = min(cores, MOST_THREADS)
    found = f"threads {threads}: this process may use {cores} cores"
    if precision == "int8":
        return threads, f"{found}; a call with several texts uses them, each text runs on one"
    return threads, f"{found}, and a short query has no work for more than {MOST_THREADS}"


def load_tokenizer(path: Path, max_length: int | None) -> Tokenizer:
    """Return the tokenizer in `path`, which cuts at `max_length` and never pads."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise _missing("tokenizers") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 (tokenizers raises bare Exception)
        raise _damaged(path, error) from None
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def read_text(tokenizer: Tokenizer, text: str | tuple[str, str], *, special: bool = True) -> Encoding:
    """Return the tokens of one text, or of a pair; other threads go on while a long one is read."""
    first, second = (text, None) if isinstance(text, str) else text
    if len(first) + len(second or "") < LONG:
        return tokenizer.encode(first, second, add_special_tokens=special)
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=special)  # `encode` holds the GIL
    return encoding


def load_session(path: Path, *, threads: int) -> InferenceSession:
    """Return an onnxruntime session on the file `path`, on the CPU."""
    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads answer sooner (MiniLM int8, 2 threads, idle machine: 1.1 instead of 1.4 ms) but keep their cores
    # busy between calls, and slow whatever else serves on them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The fused Add + LayerNormalization is slower than the two on the CPU (33 against 14 microseconds a layer).
    try:
        with huge_pages():  # 6% less time for a short text, in a virtual machine
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
            )
    except Exception as error:  # noqa: BLE001 (its errors share no public base)
        raise _damaged(path, error) from None


def _missing(package: str) -> MissingPartError:
    return MissingPartError(
        f"serving an exported model needs {package}, which is not installed", action="pip install 'embedsmith[serve]'"
    )


def _damaged(path: Path, error: Exception) -> ModelError:
    first: Any = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"{path} cannot be loaded: {first}",
        expected="the file that the export wrote",
        action=f"embedsmith export {path.parent.parent}",
    )


def load_token_counter(base: str) -> Callable[[str], int]:
    """Return what counts the tokens of a text with a model's tokenizer, without special tokens.

    Raises:
        ModelError: there is no such model, or its tokenizer cannot be read.
    """
    file = Path(resolve_model(base)) / "tokenizer.json"
    if file.is_file():  # without torch, and twice as fast
        fast = load_tokenizer(file, None)
        return lambda text: len(read_text(fast, text, special=False).ids)
    check_model(base)
    return _load_hub_tokenizer(base)


def _load_hub_tokenizer(base: str) -> Callable[[str], int]:
    from embedsmith.decoders import read_tokenizer

    try:
        tokenizer = read_tokenizer(resolve_model(base))
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer of {base} cannot be read: {error}", expected="tokenizer.json") from None
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
