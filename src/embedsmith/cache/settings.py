"""What a cache is set up with: the encoder that serves, and the rules that calibrations of it promise something for."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from embedsmith.cache.decision import Policy
from embedsmith.cache.guard import fingerprint_rules
from embedsmith.cache.recalibration import FILE, Recalibration, read_recalibration
from embedsmith.calibration import Calibration, read_calibration
from embedsmith.choices import Turns
from embedsmith.encoder import Encoder, precision_of
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.model import count_conversations, fingerprint_model, load_encoder, model_inside
from embedsmith.runtime import FOLDER, REPORT, OnnxEncoder
from embedsmith.verifier import Adjustment, OnnxVerifier, Verifier

LOG = logging.getLogger("embedsmith.cache")
TAUGHT = 1000  # rows of conversations from which on a model counts as trained for them; 500 taught little (docs/log.md)
DELTA = 0.05  # where nothing is promised, what samples are judged against


@dataclass(frozen=True, slots=True)
class Promised:
    """Rules, and what the calibrations that they come from promise.

    Attributes:
        calibration: the common one; None for a threshold given by hand.
        delta: the most wrong answers among those served that is promised to anyone.
        since: by namespace, Unix seconds of the last verdict that chose its threshold.
    """

    policy: Policy
    calibration: Calibration | None = None
    delta: float = DELTA
    since: Mapping[str, float] = field(default_factory=dict)


def read_promises(
    model: Encoder | Path | str,
    *,
    fingerprint: str,
    threshold: float | None = None,
    calibration: Path | str | None = None,
    namespaces: Path | str | None = None,
    verifier: Verifier | Path | str | None = None,
    encoder: Encoder | None = None,
    guard: bool = True,
) -> Promised:
    """Return the rules for a model: a bare threshold, or what its calibrations say.

    What a calibration was made for and is not served is refused, but for another precision of the same weights and
    another version of the guard: these are warnings, since an export, or an update, would else have to wait for
    labelled pairs.

    Args:
        encoder: the one that serves, of which the precision counts. guard: whether the rules have one.
        fingerprint: of the model; calibrations of another one are refused.
        calibration: default is the file with the model. namespaces: default is the file beside the calibration;
            with a bare threshold, none.

    Raises:
        ConfigurationError: there is no threshold, or it is no cosine; or verifier or guard are not the calibration's.
        InputError: a file belongs to another model, or to similarities of another scale.
    """
    path = None if threshold is not None else find_calibration(model, calibration)
    beside = path.with_name(FILE) if path is not None and path.with_name(FILE).is_file() else None
    own = Path(namespaces) if namespaces is not None else beside
    found = read_calibration(path, model=fingerprint) if path is not None else None
    single = read_recalibration(own, model=fingerprint) if own is not None else None
    if single is not None and not single.thresholds:
        single = None  # it granted nobody anything, so nothing in it is served
    policy = _policy_of(found, verifier) if found is not None else _bare_policy(threshold, verifier, model, guard)
    for file, made in ((path, found), (own, single)):
        if file is not None and made is not None:
            require_guard(file, made, guard, model)
            warn_of_precision(file, made, encoder, model)
            warn_of_rules(file, made, model)
    if own is not None and single is not None:
        _require_scale(own, single, found)
    thresholds = single.thresholds if single is not None else {}
    return Promised(
        replace(policy, thresholds=thresholds, guard=policy.guard if guard else None),
        found,
        max((item.delta for item in (found, single) if item is not None), default=DELTA),
        single.since if single is not None else {},
    )


def settle_turns(
    policy: Policy,
    turns: Turns,
    *,
    taught: int,
    calibration: Calibration | None = None,
    model: Encoder | Path | str = "MODEL",
) -> tuple[Policy, str]:
    """Return the rules with what becomes of earlier turns, and a sentence that says it and why.

    Compared by meaning they are where the model was trained for it and the calibration's pairs of conversations carry
    the promise by themselves; a threshold given by hand does in their place if `turns` is "meaning".

    Args:
        taught: rows of conversations that the model was trained on.
        calibration: None for a threshold given by hand.

    Raises:
        ConfigurationError: "meaning", and what it takes is missing; or `turns` is something else.
    """
    if turns not in get_args(Turns):
        raise ConfigurationError(f"turns {turns!r}", expected=" or ".join(get_args(Turns)))
    if turns == "fingerprint":
        return replace(policy, conversations=None), "earlier turns must be equal, as asked"
    own = calibration.conversations if calibration is not None else None
    threshold = own.threshold if own is not None else None
    lacking = []
    if taught < TAUGHT:
        few = f"the model was trained on {taught} rows of conversations, and it takes {TAUGHT}"
        lacking.append(few if taught else "the model was not trained on conversations")
    if calibration is None and turns == "meaning":
        threshold = policy.threshold
    elif calibration is None:
        lacking.append("a threshold given by hand promises nothing")
    elif own is None:
        lacking.append("none of the calibration's pairs is of conversations")
    elif threshold is None:
        lacking.append(f"its {own.pairs} pairs of conversations carry no promise ({own.refused})")
    if lacking and turns == "meaning":
        raise ConfigurationError(
            f"earlier turns cannot be compared by meaning: {'; '.join(lacking)}",
            expected="a model trained on conversations, and a calibration with pairs of them (or a threshold by hand)",
            action=f"train and calibrate {tell_model(model)} on rows whose texts are lists of messages, or leave out "
            "--turns meaning",
        )
    if lacking or threshold is None:  # to most, who train on no conversations, more than that would be noise
        return policy, f"earlier turns must be equal: {'; '.join(lacking if taught else lacking[:1])}"
    carried = f"{own.pairs} pairs of them carry the promise" if own is not None else "without a promise"
    told = f"conversations by meaning from {threshold:.4f}: trained on {taught} rows of them, {carried}"
    return replace(policy, conversations=threshold), told


def count_taught(model: Encoder | Path | str) -> int:
    """Return how many rows of conversations a model was trained on; one in memory tells by `conversations`."""
    if isinstance(model, (str, Path)):
        return count_conversations(model_inside(Path(model)))
    found = getattr(model, "conversations", 0)
    return found if isinstance(found, int) else 0


def require_guard(
    path: Path, made: Calibration | Recalibration, guard: bool, model: Encoder | Path | str = "MODEL"
) -> None:
    """Refuse thresholds that were chosen with the guard where it is off, the other way round, or for no cache at all.

    Raises:
        ConfigurationError: the similarities of `made` are not those that this cache decides on.
    """
    again = _tell_again(path, made, model, guard=guard)
    if isinstance(made, Calibration) and made.cached is False:
        raise ConfigurationError(
            f"{path} was made of the model by itself, without a cache (--model-only)",
            expected="thresholds that were chosen as a cache serves: of its export, and no text that is not read whole",
            action=f"{again}, or pass a threshold at your own risk",
        )
    if made.guard is None or made.guard == guard:
        return
    if guard:
        raise ConfigurationError(
            f"{path} was made without the guard, and the guard is on",
            expected="thresholds that were chosen behind the guard: it may veto more right answers than wrong ones",
            action=f"{again}, or switch the guard off (--no-guard)",
        )
    raise ConfigurationError(
        f"{path} was made behind the guard, and the guard is off",
        expected="thresholds that were chosen without it: what it would veto is served now",
        action=f"leave the guard on, or {again}, or pass a threshold at your own risk",
    )


def warn_of_precision(
    path: Path, made: Calibration | Recalibration, encoder: Encoder | None, model: Encoder | Path | str = "MODEL"
) -> None:
    """Warn in the log if a calibration was made at another precision than is served, or does not record its own."""
    served = precision_of(encoder) if encoder is not None else ""
    again = _tell_again(path, made, model, guard=made.guard is not False)
    if made.guard is None:
        LOG.warning(
            "%s is of an older version and does not say on which vectors it was made, nor whether behind the guard. "
            "To do: %s",
            *(path, again),
        )
    elif served and made.precision and served != made.precision:
        LOG.warning(
            "%s was made on %s vectors, and %s ones are served%s. The threshold is used as it is; that at most %g%% of "
            "the answers are wrong was shown for the former only. To do: %s",
            *(path, made.precision, served, _tell_distance(encoder), 100 * made.delta, again),
        )


def warn_of_rules(path: Path, made: Calibration | Recalibration, model: Encoder | Path | str = "MODEL") -> None:
    """Warn in the log if a calibration was made behind a guard of other rules or words than is served."""
    if made.guard and made.guard_rules != (here := fingerprint_rules()):
        LOG.warning(
            "%s was made behind a guard of another version (%s, here %s). The threshold is used as it is; that at most "
            "%g%% of the answers are wrong was shown for that guard only. To do: %s",
            *(path, made.guard_rules or "not recorded", here, 100 * made.delta),
            _tell_again(path, made, model, guard=True),
        )


def _tell_again(path: Path, made: Calibration | Recalibration, model: Encoder | Path | str, *, guard: bool) -> str:
    """Return the command that makes thresholds again, into the file where they are looked for."""
    if isinstance(made, Recalibration):
        return f"embedsmith recalibrate FEEDBACK --model {tell_model(model)}{'' if guard else ' --no-guard'}"
    return tell_calibrate(model, path, guard=guard)


def tell_model(model: Encoder | Path | str) -> str:
    """Return how a command names a model; MODEL for one that is in memory only."""
    return shlex.quote(str(model)) if isinstance(model, (str, Path)) else "MODEL"


def tell_calibrate(model: Encoder | Path | str, out: Path, *, guard: bool = True) -> str:
    """Return the command that calibrates a model for a cache, PAIRS aside as it has to be typed."""
    kind = "--for-cache" if guard else "--for-cache --no-guard"
    return f"embedsmith calibrate {tell_model(model)} PAIRS {kind} --out {shlex.quote(str(out))}"


def tell_shadow(model: Encoder | Path | str, *, guard: bool = True) -> str:
    """Return the command that serves nothing yet and gathers pairs to judge, URL aside as it has to be typed."""
    watched = "--threshold 0.9 --shadow --sample 0.05 --feedback feedback.jsonl"
    return f"embedsmith serve --model {tell_model(model)} --upstream URL{'' if guard else ' --no-guard'} {watched}"


def place_calibration(model: Encoder | Path | str) -> Path:
    """Return where a calibration of the model is written, and looked for first: with a folder, in it."""
    folder = model_inside(Path(model)) if isinstance(model, (str, Path)) else Path()
    return (folder if folder.is_dir() else Path()) / "calibration.json"


def _tell_distance(encoder: Encoder | None) -> str:
    """Return what the export measured, where it was one."""
    if not isinstance(encoder, OnnxEncoder):
        return ""
    return f" (mean cosine {encoder.report.precisions[encoder.precision].mean_cosine:.4f} to fp32)"


def _require_scale(path: Path, single: Recalibration, common: Calibration | None) -> None:
    """Refuse thresholds of namespaces on cosines that a verifier moved otherwise than it does here.

    A file of an older version does not tell; it counts where it was made beside this very calibration.
    """
    here = (common.verifier, common.weight) if common is not None else ("", 0.0)
    if single.verifier is None:
        fits = common is None or single.common == common.threshold or (single.common is None and not common.verifier)
        made = f"beside another calibration (threshold {single.common})"
    else:
        fits = (single.verifier, single.weight) == here
        made = _tell_verifier(single.verifier, single.weight)
    if not fits:
        raise InputError(
            f"{path} was made {made}, and the calibration beside it {_tell_verifier(*here)}",
            expected="thresholds of one scale: a verifier moves the cosines that they are compared with",
            action="run `embedsmith recalibrate FEEDBACK --model MODEL` again, or remove the file",
        )


def _tell_verifier(verifier: str, weight: float) -> str:
    return f"with the verifier {verifier} at weight {weight:.4g}" if verifier else "without a verifier"


def _bare_policy(
    threshold: float | None, verifier: object, model: Encoder | Path | str = "MODEL", guard: bool = True
) -> Policy:
    if threshold is None:
        out = place_calibration(model)
        then = "" if out.parent != Path() else f"; then serve with --calibration {out}"
        raise ConfigurationError(
            "there is no threshold from which on answers may be served",
            expected="calibration.json beside the model, or a threshold",
            action=f"{tell_calibrate(model, out, guard=guard)} (PAIRS: labelled pairs){then}; or pass a threshold "
            "(--threshold) at your own risk",
        )
    require_cosine(threshold)
    if verifier is not None:
        raise ConfigurationError(
            "a verifier together with a bare threshold",
            expected="a calibration, which says how much the verifier's word weighs",
            action="embedsmith calibrate MODEL PAIRS --for-cache --verifier FOLDER",
        )
    return Policy(threshold)


def require_cosine(threshold: float | None) -> None:
    """Raise `ConfigurationError` unless a threshold given by hand is a cosine; None is none given."""
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigurationError(f"threshold {threshold}", expected="a cosine between -1 and 1, higher is closer")


def _policy_of(calibration: Calibration, verifier: Verifier | Path | str | None) -> Policy:
    if not calibration.verifier:
        return Policy(calibration.threshold)  # it was tried and did not prove itself, or never tried
    found = open_verifier(calibration, verifier)
    return Policy(calibration.threshold, verifier=found, adjustment=adjustment_of(calibration))


def open_verifier(calibration: Calibration, verifier: Verifier | Path | str | None) -> Verifier:
    """Return the verifier that a calibration was made with.

    Raises:
        ConfigurationError: it is another one, or none.
    """
    found = OnnxVerifier(verifier) if isinstance(verifier, (str, Path)) else verifier
    if found is None or found.fingerprint != calibration.verifier:
        given = "a cache without one" if found is None else found.fingerprint
        raise ConfigurationError(
            f"the calibration is for the verifier {calibration.verifier}, not for {given}",
            expected="the verifier that it was made with",
            action="pass its folder (--verifier), or calibrate without one",
        )
    return found


def adjustment_of(calibration: Calibration) -> Adjustment:
    """Return how far the verifier of a calibration moves a cosine."""
    return Adjustment(calibration.weight)


def find_calibration(model: Encoder | Path | str, calibration: Path | str | None = None) -> Path | None:
    """Return the calibration file that counts for a model: the one named, or the one with the model, if any."""
    if calibration is not None:
        return Path(calibration)
    if not isinstance(model, (str, Path)):
        return None
    folder = model_inside(Path(model))
    places = folder / "calibration.json", folder.parent / "calibration.json"  # `run` writes the second
    return next((at for at in places if at.is_file()), None)


def open_encoder(model: Encoder | Path | str, fingerprint: str | None = None) -> tuple[Encoder, str]:
    """Return the encoder and its fingerprint; a model folder with an ONNX export runs without torch.

    The folder of a run stands for the model in it, here as wherever a model is named.
    """
    if not isinstance(model, (str, Path)):
        mark = fingerprint or getattr(model, "fingerprint", None)
        if not isinstance(mark, str) or not mark:
            raise ConfigurationError(
                f"{type(model).__name__} has no fingerprint",
                expected="one, so that a store never mixes the vectors of two models",
                action="pass fingerprint='any name you change when the vectors change'",
            )
        return model, mark
    folder = model_inside(Path(model))
    if (folder / FOLDER / REPORT).is_file():
        exported = OnnxEncoder(folder)
        return exported, fingerprint or exported.fingerprint
    return load_encoder(model), fingerprint or fingerprint_model(model)
