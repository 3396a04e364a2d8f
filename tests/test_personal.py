"""Personal data is found and masked; numbers that only look like it are left alone."""

from __future__ import annotations

import pytest

from embedsmith.personal import Screen, describe_personal, find_personal, mask

DATA = [
    ("write to ada.lovelace+bills@mail.example.co.uk, please", "write to [e-mail], please"),
    ("jürgen@müller.de antwortet nicht", "[e-mail] antwortet nicht"),
    ("is <a_b@example.org> right?", "is <[e-mail]> right?"),
    ("my IBAN is DE89 3704 0044 0532 0130 00 now", "my IBAN is [IBAN] now"),
    ("meine iban de89370400440532013000", "meine iban [IBAN]"),
    ("from GB82WEST12345698765432 to NL91 ABNA 0417 1643 00.", "from [IBAN] to [IBAN]."),
    ("charge 4111 1111 1111 1111 again", "charge [card number] again"),
    ("my amex 3782-822463-10005 fails", "my amex [card number] fails"),
    ("card 5555555555554444?", "card [card number]?"),
    ("blocked from 91.198.174.192 since noon", "blocked from [IP address] since noon"),
    ("ping 2a00:1450:4001:82f::200e fails", "ping [IP address] fails"),
    ("call me at +49 170 1234567", "call me at [phone number]"),
    ("+1 (415) 555-2671 is busy", "[phone number] is busy"),
    ("ring 0049 30 901820 tomorrow", "ring [phone number] tomorrow"),
    ("ich bin unter 030 / 9018 2030 erreichbar", "ich bin unter [phone number] erreichbar"),
    ("meine Nummer: 0170-1234567", "meine Nummer: [phone number]"),
    ("bin auf 015112345678 umgezogen", "bin auf [phone number] umgezogen"),
    ("mon numéro 06 12 34 56 78 ne marche pas", "mon numéro [phone number] ne marche pas"),
    ("reach me on (415) 555-2671 or 415.555.2671", "reach me on [phone number] or [phone number]"),
    ("my phone is 5551234", "my phone is [phone number]"),
    ("Tel. 9018203", "Tel. [phone number]"),
    ("ada@example.org, 020 7946 0958", "[e-mail], [phone number]"),
]

ALIKE = [
    "where is order 4711 0815 2342",
    "order 111-2345678-1234567 has not come",
    "my order number is 0301234567",
    "invoice 2024-000123456 is wrong",
    "Rechnung Nr. 030 1234567",
    "meine Kundennummer 0170 1234567 wird nicht erkannt",
    "meter reading 0123456 on 01.02.2024",
    "from 01.02.2024 to 28.02.2024",
    "between 2024-01-15 and 2024-02-15 at 10:30:00",
    "on 01/02/2024 03/04/2024",
    "years 2019 2020 2021 2022",
    "1990-2024 statistics",
    "transfer 1 000 000 euros",
    "pay 1.250.000,00 € by Friday",
    "$12,345,678.90 in 2023",
    "call 100 000 000 times",
    "ISBN 978-3-16-148410-0 and 0-306-40615-2",
    "version 10.0.19045.1 or v1.22.333.4",
    "see section 12.34.56.78",
    "DNS 8.8.8.8, router 192.168.178.1, mask 255.255.255.0, here 127.0.0.1",
    "std::vector and a::b at 12:30:45",
    "MAC 00:1a:2b:3c:4d:5e",
    "4111 1111 1111 1112 fails the check",  # not Luhn's
    "9999 9999 9999 9995 is no issuer's",
    "DE89 3704 0044 0532 0130 01 is no IBAN",  # wrong check digits
    "my IBAN starts with DE89",
    "git@github.com:me/repo.git",
    "@support what is user@localhost",
    "5 @ 3.50 each",
    "pi is 3.14159265358979",
    "error 0x80070057 or 500123456789",
    "serial SN0301234567 and 0123456789",
    "GTIN 04012345678901 and 4006381333931",
    "the 24/7 service, 365 days",
    "latitude 52.520008, longitude 13.404954",
    "zip 10115 Berlin 20095 Hamburg",
    "from 0900-1700 on weekdays",
    "tracking 00340434161094042557",
    "timestamp 1700000000123",
]


@pytest.mark.parametrize(("text", "masked"), DATA)
def test_personal_data_is_replaced_by_its_kind(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert mask(masked) == masked


@pytest.mark.parametrize("text", ALIKE)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert find_personal(text) == ()


def test_a_screen_remembers_which_texts_and_what_kinds_and_never_the_data() -> None:
    texts = {"1": "hello", "2": "a@example.org and b@example.org", "3": "call +49 170 1234567 or a@example.org"}
    screen = Screen(masking=True)
    assert [screen.read(id, text) for id, text in texts.items()] == [
        *("hello", "[e-mail] and [e-mail]", "call [phone number] or [e-mail]"),
    ]
    assert screen.rows == [{"id": "2", "kinds": {"e-mail": 2}}, {"id": "3", "kinds": {"e-mail": 1, "phone number": 1}}]
    plain = Screen()
    assert [plain.read(id, text) for id, text in texts.items()] == list(texts.values())
    assert plain.rows == screen.rows


def test_what_is_said_before_texts_leave_the_machine() -> None:
    rows = [{"id": "2", "kinds": {"e-mail": 2}}, {"id": "3", "kinds": {"phone number": 1}}]
    told = describe_personal(rows, "queries", masked=False, host="api.example.org", place="x/personal.jsonl")
    assert told == (
        "personal data in 2 queries (ids in x/personal.jsonl): 2 × e-mail, 1 × phone number, "
        "sent to api.example.org as they are; --mask replaces them by placeholders such as [e-mail]"
    )
    assert describe_personal(rows, "queries", masked=False, host=None, place="x") == ""
    assert describe_personal(rows, "queries", masked=True, host=None, place="x").endswith("1 × phone number, masked")
    assert describe_personal([], "queries", masked=False, host="h", place="x") == ""
    assert "nothing to mask" in describe_personal([], "queries", masked=True, host=None, place="x")
