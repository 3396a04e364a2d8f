"""Bytes that are not UTF-8: which encoding they are most likely in; texts that were encoded twice.

A guess is for people, who see a line read with it: nothing is converted by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ENOUGH = 1000  # lines with other than ASCII bytes that are looked at behind the first that is not UTF-8
SHOWN = 60  # characters of a line in a message
WESTERN = "äöüßàáâãåæçèéêëìíîïñòóôõøùúûÿœÄÖÜÅÆÇÉÈÑØºª"
MARKS = "‘’‚“”„–—…€£§°«»·¿¡®©™\u00a0•²³½"
INSIDE_NONE = MARKS.replace("’", "")  # an apostrophe apart
KANA = r"[\u3041-\u30ff]"
# iconv's name, Python's, and what text in it has besides ASCII; of equals the first is taken.
FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("WINDOWS-1252", "cp1252", f"[{WESTERN}{MARKS}]"),
    ("CP850", "cp850", f"[{WESTERN}]"),
    ("MACINTOSH", "mac_roman", f"[{WESTERN}{MARKS}]"),
    ("WINDOWS-1250", "cp1250", f"[{MARKS}áäéíóöôúüýąćčďęěľłńňőřśşšťţůűźżžăâîŁŚŠČŽ]"),
    ("WINDOWS-1254", "cp1254", f"[{WESTERN}{MARKS}ğışĞİŞ]"),
    ("WINDOWS-1251", "cp1251", f"[а-яёіїєґ{MARKS}№]"),
    ("KOI8-R", "koi8_r", "[а-яё]"),
    ("WINDOWS-1253", "cp1253", f"[α-ωάέήίόύώϊϋ{MARKS}]"),
    ("SHIFT_JIS", "cp932", r"[\u3001-\u30ff\u4e00-\u9fff\uff01-\uff5e]"),
    ("EUC-JP", "euc_jp", r"[\u3001-\u30ff\u4e00-\u9fff\uff01-\uff5e]"),
    ("CP949", "cp949", r"[\uac00-\ud7a3]"),
    ("GB18030", "gb18030", r"[\u3001-\u3011\u4e00-\u9fff\uff01-\uff5e]"),
    ("BIG5", "big5", r"[\u3001-\u3011\u4e00-\u9fff\uff01-\uff5e]"),
)
LATIN = frozenset({"cp1252", "cp850", "mac_roman", "cp1250", "cp1254"})  # whose letters stand between ASCII ones
COMMON = {"gb18030": "gb2312", "big5": "big5", "cp932": "shift_jis"}  # rarer signs are what chance makes
LEVELS = {"big5": 0xC67E, "gb18030": 0xD7FE}  # the last code of the signs in daily use


@dataclass(frozen=True, slots=True)
class Misread:
    """What a file that is not UTF-8 has instead.

    Attributes:
        line: number of the first line that is not UTF-8. byte: the first such byte in it.
        encoding: iconv's name of the guess. shown: the line as it reads with the guess, shortened.
        mixed: most other lines beyond ASCII are UTF-8, so that converting the whole file would break them.
    """

    line: int
    byte: int
    encoding: str
    shown: str
    mixed: bool


def find_unmarked(start: bytes) -> str | None:
    """Return the kind of UTF-16 that the beginning of a file without a byte order mark is in, None where it is not.

    Text in Latin letters has a NUL in every other place.

    >>> find_unmarked("id,text".encode("utf-16-le")), find_unmarked(b"id,text")
    ('UTF-16LE', None)
    """
    half = max(len(start) // 2, 1)
    even, odd = start[::2].count(0) / half, start[1::2].count(0) / half
    if max(even, odd) < 0.3 or min(even, odd) > 0.05:
        return None
    return "UTF-16BE" if even > odd else "UTF-16LE"


def find_misread(lines: Iterable[bytes]) -> Misread | None:
    """Return what is known of the lines of a file that are not UTF-8; None where all are."""
    broken: list[bytes] = []
    first = good = 0
    for number, line in enumerate(lines, start=1):
        if not line.isascii():
            if _is_utf8(line):
                good += 1
            else:
                first = first or number
                broken.append(line)
        if broken and good + len(broken) >= ENOUGH:
            break
    if not broken:
        return None
    encoding, codec = guess_encoding(b"".join(broken))
    return Misread(first, _first_odd(broken[0]), encoding, _show(broken[0].decode(codec)), good >= 4 * len(broken))


def guess_encoding(raw: bytes) -> tuple[str, str]:
    """Return (iconv's name, Python's name) of the encoding in which bytes beyond ASCII read most like a language.

    >>> guess_encoding("Kündigung für März".encode("cp1252"))
    ('WINDOWS-1252', 'cp1252')
    """
    scores = {family[:2]: _score(raw, *family[1:]) for family in FAMILIES}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else ("ISO-8859-1", "latin-1")


def _score(raw: bytes, codec: str, expected: str) -> float:
    """Return the share of the characters beyond ASCII that a text in this encoding has, 0 to 1."""
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:
        return 0.0
    found = re.findall(r"[^\x00-\x7f]", text)
    if not found:
        return 0.0
    right = sum(re.fullmatch(expected, sign) is not None and _is_common(sign, codec) for sign in found)
    right -= len(re.findall(f"(?<=[a-zß-ÿ])[À-Þ{INSIDE_NONE}](?=[a-z])|(?<=[a-zß-ÿ])[À-Þ]", text))  # inside a word
    beside = len(re.findall(r"(?<=[A-Za-z])[^\W\d_a-zA-Z]|[^\W\d_a-zA-Z](?=[A-Za-z])", text))
    letters = sum(sign.isalpha() for sign in found)
    fits = not letters or (beside >= 0.3 * letters) == (codec in LATIN)
    kana = len(re.findall(KANA, text)) >= 0.1 * len(found)
    japanese = codec in ("cp932", "euc_jp")
    return right / len(found) * (1.0 if fits else 0.3) * (1.0 if kana or not japanese else 0.5)


def _is_common(sign: str, codec: str) -> bool:
    if codec not in COMMON or not "\u4e00" <= sign <= "\u9fff":
        return True
    try:
        code = sign.encode(COMMON[codec])
    except UnicodeEncodeError:
        return False
    return int.from_bytes(code, "big") <= LEVELS.get(codec, 0xFFFF)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _first_odd(line: bytes) -> int:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return line[error.start]
    return 0


def _show(text: str) -> str:
    """Return the surroundings of the first character beyond ASCII."""
    plain = " ".join(text.split())
    place = next((at for at, sign in enumerate(plain) if not sign.isascii()), 0)
    start = max(0, place - SHOWN // 2)
    return plain[start : start + SHOWN]


# UTF-8's first bytes of letters and marks beyond ASCII, and those behind them, as Windows-1252 or Latin-1 read them.
_LATER = "".join(chr(code) for code in range(0x80, 0xC0)) + bytes(range(0x80, 0xA0)).decode("cp1252", "ignore")
TWICE = re.compile(f"(?<![„“‚‘«»\"'])(?:[ÂÃÄÅÐÑ][{_LATER}]|[âãï][{_LATER}]{{2}}|ð[{_LATER}]{{3}})+")


def find_twice_encoded(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (the letters as they stand, as they were meant) for each text whose UTF-8 was read as something else.

    >>> list(find_twice_encoded(["Kosten fÃ¼r Strom", "Kosten für Strom", "CAFÉ»"]))
    [('fÃ¼r', 'für')]
    """
    for text in texts:
        if text.isascii():
            continue
        for match in TWICE.finditer(text):
            meant = _undo(match[0])
            if meant is not None:
                start = text.rfind(" ", 0, match.start()) + 1
                end = text.find(" ", match.end())
                word = text[start : end if end >= 0 else len(text)]
                yield word[:SHOWN], word.replace(match[0], meant)[:SHOWN]
                break


def _undo(text: str) -> str | None:
    """Return what a run of letters was before it was read as Windows-1252; None where it was nothing."""
    raw = b"".join(sign.encode("latin-1") if ord(sign) < 0x100 else sign.encode("cp1252") for sign in text)
    try:
        meant = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return meant if any(sign.isalpha() or not "\u00c0" <= sign < "\u2010" for sign in meant) else None
