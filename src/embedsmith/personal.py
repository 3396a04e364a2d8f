"""Personal data in texts: e-mail addresses, phone numbers, card numbers, IBANs, public IP addresses.

What has a check of its own (Luhn, ISO 7064, the ranges of addresses) is held to it; phone numbers, which have none,
need a form that other numbers do not have, or words before them. Names of people are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

E_MAIL, PHONE, CARD, IBAN, ADDRESS = "e-mail", "phone number", "card number", "IBAN", "IP address"
KINDS = (E_MAIL, PHONE, CARD, IBAN, ADDRESS)

# Lengths of IBANs by country, from the registry of ISO 13616.
LENGTHS = {
    entry[:2]: int(entry[2:])
    for entry in (  # noqa: SIM905 shorter to read than a list
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LI21 LT20 LU20 "
        "LV21 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SE24 SI19 SK24 SM27 "
        "TN24 TR26 UA29 VG24 XK20"
    ).split()
}
# Beginnings and lengths of card numbers by issuer: a tenth of all numbers passes Luhn's check by chance.
ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
    r"|(?:5018|5020|5038|6304|6759|676[1-3])\d{8,15}"
)

MAIL = re.compile(r"(?<![\w.+-])[\w.+-]*[\w+]@(?:[\w-]+\.)+[^\W\d_]{2,24}(?![\w-])(?!:\w)")  # git@host:path is none
# Looked ahead, since what follows may be another.
ACCOUNT = re.compile(r"(?<![A-Za-z0-9])(?=([A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}))")
DIGITS = re.compile(r"(?<![\w.,/-])\d(?:[ -]?\d){12,18}(?![\w/-]|[.,]\d)")
FOUR = re.compile(r"(?<![\w.,/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|[.,]\d)")
SIX = re.compile(r"(?<![\w:.])(?:[0-9a-f]{1,4}:){2,7}(?::?[0-9a-f]{1,4}|:)(?::[0-9a-f]{1,4})*(?![\w:])", re.IGNORECASE)
VERSION = re.compile(r"(?:\bv|version|release|build|firmware|section|chapter|kapitel|abschnitt|§)[ :]*$", re.IGNORECASE)

NUMBER = re.compile(r"(?<![\w.,/+-])(?:\+ ?|\()?\d(?:[ ./()-]{0,3}\d){5,16}(?![\w/-]|[.,]\d| ?[€$£%])")
DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}|\d{4}([./-])\d{1,2}\2\d{1,2}")
INTERNATIONAL = re.compile(r"\+ ?[1-9][\d ./()-]*|00[1-9]\d{0,2}[ /-][\d ./()-]*")
# An area code with its 0 and a separator behind it, or a mobile number in one piece.
NATIONAL = re.compile(r"\(?0[1-9]\d{0,4}\)?[ /-]{1,3}\d[\d /-]*|01[567]\d{8,9}|0[67]\d{8,9}")
AMERICAN = re.compile(r"(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([ .-]))[2-9]\d\d[ .-]\d{4}")
CALLED = re.compile(
    r"(?:\b(?:phone|tel(?:ephone|efon\w*|\.)?|mobile?|mobil\w*|cell|handy\w*|whatsapp|sms|fax|ruf(?:nummer)?|call"
    r"|t[eé]l[eé]phone|tel[eé]fono|m[oó]vil|cellulare|telefoon)\b[^\d?!\"{}]{0,25})$",
    re.IGNORECASE,
)
NUMBERED = re.compile(  # what else has numbers, before it
    r"(?:order|invoice|ticket|case|account|customer|contract|meter|serial|tracking|reference|policy|article|item|part"
    r"|isbn|model|version|zip|code|kunden\w*|vertrags?\w*|rechnung\w*|bestell\w*|auftrag\w*|z[aä]hler\w*|konto\w*"
    r"|artikel\w*|serien\w*|sendung\w*|akten\w*|commande|facture|pedido|factura|n[or°]\.?|#|€|\$|£)[^\d?!.]{0,20}$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A piece of personal data: its kind, one of `KINDS`, and the characters it covers."""

    kind: str
    start: int
    end: int


def find_personal(text: str) -> tuple[Found, ...]:
    """Return the personal data of a text from left to right; none overlaps another.

    >>> [found.kind for found in find_personal("mail ada@example.org or call +44 20 7946 0958")]
    ['e-mail', 'phone number']
    """
    if "@" not in text and not any(sign.isdigit() for sign in text):
        return ()
    found: list[Found] = []
    for kind, search in SEARCHES.items():
        for start, end in search(text):
            if all(end <= other.start or other.end <= start for other in found):
                found.append(Found(kind, start, end))
    return tuple(sorted(found, key=lambda one: one.start))


def mask(text: str) -> str:
    """Return the text with each piece of personal data replaced by its kind in brackets.

    >>> mask("mail ada@example.org about order 4711")
    'mail [e-mail] about order 4711'
    """
    for found in reversed(find_personal(text)):
        text = f"{text[: found.start]}[{found.kind}]{text[found.end :]}"
    return text


@dataclass
class Screen:
    """Looks through texts one by one and remembers which of them have personal data, never the data.

    Attributes:
        masking: whether the texts are given back masked.
        rows: id and number of pieces by kind, of each text that has any.
    """

    masking: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def read(self, id: str, text: str) -> str:
        """Return the text as it may be used."""
        kinds = Counter(found.kind for found in find_personal(text))
        if not kinds:
            return text
        self.rows.append({"id": id, "kinds": dict(kinds)})
        return mask(text) if self.masking else text


def describe_personal(
    rows: Iterable[Mapping[str, Any]], what: str, *, masked: bool, host: str | None, place: object
) -> str:
    """Return the sentence that is said before texts leave the machine, "" where there is nothing to say.

    Args:
        rows: of `Screen`. what: the texts are: "queries". host: that they go to, None where they stay here.
        place: the file with the rows.
    """
    counts: Counter[str] = Counter()
    ids = set()
    for row in rows:
        ids.add(row["id"])
        counts.update(row["kinds"])
    if not counts:
        return f"personal data: none found in the {what}, nothing to mask" if masked else ""
    if host is None and not masked:
        return ""
    told = ", ".join(f"{counts[kind]:,} × {kind}" for kind in KINDS if counts[kind])
    done = "masked" if masked else f"sent to {host} as they are; --mask replaces them by placeholders such as [e-mail]"
    return f"personal data in {len(ids):,} {what} (ids in {place}): {told}, {done}"


def _mails(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in MAIL.finditer(text)) if "@" in text else iter(())


def _accounts(text: str) -> Iterator[tuple[int, int]]:
    for match in ACCOUNT.finditer(text):
        length = LENGTHS.get(match[1][:2].upper())
        places = [at for at in range(*match.span(1)) if text[at] != " "]
        if length is None or len(places) < length:
            continue
        end = places[length - 1] + 1
        plain = text[match.start() : end].replace(" ", "").upper()
        if not text[end : end + 1].isalnum() and _is_account(plain):
            yield match.start(), end


def _is_account(plain: str) -> bool:
    """Say whether the check digits are right (ISO 7064, mod 97-10: letters are 10 to 35, the first four come last)."""
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in DIGITS.finditer(text):
        plain = re.sub(r"\D", "", match[0])
        if ISSUED.fullmatch(plain) and _passes_luhn(plain) and len(set(plain)) > 1:
            yield match.span()


def _passes_luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """Those of the public internet: others, such as 192.168.1.1, are the same in every home."""
    for match in FOUR.finditer(text):
        parts = match[0].split(".")
        if not VERSION.search(text[: match.start()]) and max(map(len, parts)) > 1 and _is_public(match[0]):
            yield match.span()
    for match in SIX.finditer(text):
        if _is_public(match[0]):
            yield match.span()


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and (address.version == 4 or text[0] in "23")  # 2000::/3 is what is given out


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in NUMBER.finditer(text):
        if _is_phone(match[0], text[max(0, match.start() - 50) : match.start()]):
            yield match.span()


def _is_phone(written: str, before: str) -> bool:
    digits = len(re.sub(r"\D", "", written))
    if not 6 <= digits <= 15 or DATE.match(written):
        return False
    if INTERNATIONAL.fullmatch(written):
        return digits >= 9
    if NUMBERED.search(before):
        return False
    if AMERICAN.fullmatch(written):
        return True
    if NATIONAL.fullmatch(written):
        return digits >= 9
    return CALLED.search(before) is not None and not re.fullmatch(r"\d{1,3}([ .])\d{3}(?:\1\d{3})*", written)


SEARCHES: Mapping[str, Callable[[str], Iterator[tuple[int, int]]]] = {  # what overlaps is of the first kind
    E_MAIL: _mails,
    IBAN: _accounts,
    CARD: _cards,
    ADDRESS: _addresses,
    PHONE: _phones,
}
