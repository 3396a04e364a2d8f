"""Files in other encodings are told apart, and texts that were encoded twice are found; ordinary ones are not."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from embedsmith.artifacts import read_jsonl
from embedsmith.charsets import find_twice_encoded, find_unmarked, guess_encoding
from embedsmith.corpus import Query, describe_twice_encoded, read_queries
from embedsmith.errors import InputError

GERMAN = "Wie kündige ich meinen Vertrag für März, größer als nötig?\n"


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        (GERMAN, "cp1252"),
        (GERMAN, "cp850"),  # what a German console writes
        (GERMAN, "mac_roman"),
        ("what is “this” – and it’s that\n", "cp1252"),
        ("Où est la clé déjà créée à côté ?\n", "mac_roman"),
        ("¿Cómo cambio mi contraseña en España?\n", "cp1252"),
        ("jak zmienić hasło na koncie, proszę śledzić\n", "cp1250"),
        ("şifremi nasıl değiştiririm\n", "cp1254"),
        ("как сбросить пароль на iPhone и войти\n", "cp1251"),
        ("как сбросить пароль на iPhone и войти\n", "koi8_r"),
        ("πώς αλλάζω τον κωδικό μου\n", "cp1253"),
        ("パスワードを変更する方法は何ですか\n", "cp932"),
        ("パスワードを変更する方法は何ですか\n", "euc_jp"),
        ("如何更改我的密码和账户\n", "gb18030"),
        ("如何更改我的密碼和帳戶\n", "big5"),
        ("비밀번호를 어떻게 변경하나요\n", "cp949"),
    ],
)
def test_the_encoding_is_guessed_from_how_a_text_reads(text: str, codec: str) -> None:
    assert guess_encoding(text.encode(codec))[1] == codec


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(codec: str) -> None:
    assert find_unmarked(GERMAN.encode(codec)) == codec.upper().replace("-16-", "-16")
    assert find_unmarked(GERMAN.encode()) is None
    assert find_unmarked(b"one \0 in a whole line") is None
    assert find_unmarked("如何更改我的密码".encode(codec)) is None  # nothing tells


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("codec", "named"), [("cp1252", "WINDOWS-1252"), ("utf-16-le", "UTF-16LE")])
def test_the_error_says_what_was_found_and_the_command_that_converts_it(
    tmp_path: Path, codec: str, named: str, zipped: bool
) -> None:
    path = tmp_path / ("my log.txt.gz" if zipped else "my log.txt")
    raw = ("all is well\n" + GERMAN).encode(codec)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    with pytest.raises(InputError) as refused:
        list(read_queries(path))
    if codec == "cp1252":
        assert "is not UTF-8: line 2 has the byte 0xfc (with WINDOWS-1252 it reads “Wie kündige" in refused.value.found
    command = refused.value.action.removeprefix("convert it: ")
    assert f"iconv -f {named} -t UTF-8" in command
    if shutil.which("iconv"):
        subprocess.run(["sh", "-c", command], check=True)
        assert [row.text for row in read_queries(tmp_path / "my log.utf8.txt") if isinstance(row, Query)] == [
            *("all is well", GERMAN.strip()),
        ]


def test_a_file_that_is_mostly_utf_8_is_not_to_be_converted_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(9 * '{"text": "für"}\n'.encode() + '{"text": "für"}\n'.encode("cp1252"))
    with pytest.raises(InputError, match=r"line 10 has the byte 0xfc, most others are UTF-8") as refused:
        list(read_jsonl(path))
    assert "iconv -c -f UTF-8 -t UTF-8" in refused.value.action


def test_texts_that_were_encoded_twice_are_found() -> None:
    twice = ["für den Strom", "don’t", "naïve", "привет", "£5", "€5", "😀", "été"]
    broken = [text.encode().decode("cp1252", "replace") for text in twice]
    broken[3] = "Ð¿Ñ€Ð¸Ð²ÐµÑ‚"  # has a byte that Windows-1252 lacks, which browsers keep
    found = list(find_twice_encoded(broken))
    assert [meant for _, meant in found] == ["für", *twice[1:]]
    ordinary = [*twice, "CAFÉ»", "der Buchstabe „Ä“", "São Paulo", "ação", "Ãrea", "50 °C", "Å, Ä und Ö", "señor ¿qué?"]
    assert not list(find_twice_encoded(ordinary))


def test_a_log_with_such_texts_is_warned_of_once() -> None:
    queries = [Query("1", "Kosten fÃ¼r Strom"), Query("2", "Strom"), Query("3", "Ã¼ber uns")]
    assert describe_twice_encoded(queries).startswith("2 queries were encoded twice, e.g. “fÃ¼r” for “für”")
    assert describe_twice_encoded(queries[1:2]) == ""
