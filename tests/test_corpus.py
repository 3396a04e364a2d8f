"""Logs of every kind, broken ones too; repeats merged without losing one."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedsmith.corpus import Query, deduplicate, read_queries, require_queries
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.examples import Rejected
from embedsmith.tables import describe_separator, parse_separator, read_rows

TELLING = ("from", "to", "York", "Leeds", "raise", "lower", "not", "$5", "€5", "C++", "C#", "👍", "👎")


def texts(path: Path, column: str | None = None) -> list[str]:
    return [row.text for row in read_queries(path, column=column) if isinstance(row, Query)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.txt", "first question\nsecond, with comma\n"),
        ("log.jsonl", '{"query": "first question"}\n\n{"query": "second, with comma"}\n'),
        ("log.csv", 'id,Text\n1,first question\n2,"second, with comma"\n'),
        ("log.tsv", "question\tn\nfirst question\t1\nsecond, with comma\t2\n"),
        ("log.csv", "id;question;n\n1;first question;2,5\n2;second, with comma;3,5\n"),
        ("log.csv", "id\tquestion, as asked\ttext\n1\t\tfirst question\n2\t;\tsecond, with comma\n"),
        ("log.csv", '"a, b"|text\nx|first question\nx|second, with comma\n'),
        ("log.txt", "\ufefffirst question\r\nsecond, with comma\r\n"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_same_queries_come_out_of_every_form(tmp_path: Path, name: str, content: str, zipped: bool) -> None:
    path = tmp_path / (name + ".gz" if zipped else name)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert texts(path) == ["first question", "second, with comma"]


def test_a_column_is_found_in_another_case_unless_there_is_the_very_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("Anfrage,anfrage\nfirst,second\n")
    assert texts(tmp_path / "log.csv", "anfrage") == ["second"]
    assert texts(tmp_path / "log.csv", "ANFRAGE") == ["first"]


def test_parquet_and_fields_with_line_breaks(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"prompt": ["a question", None]}), tmp_path / "log.parquet")
    assert texts(tmp_path / "log.parquet") == ["a question"]
    (tmp_path / "log.csv").write_text('text\n"two\nlines"\n')
    assert texts(tmp_path / "log.csv") == ["two\nlines"]


def test_the_last_user_message_of_a_chat_is_the_query(tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": "old"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "new"}],
        [{"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image_url", "image_url": {}}]}],
        [{"role": "system", "content": "no user here"}],
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    rows = list(read_queries(path))
    assert texts(path) == ["new", "part"]
    assert isinstance(rows[2], Rejected)
    assert (rows[2].reason, rows[2].line) == ("no-text", 3)


def test_rows_without_text_keep_file_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": "good"}\n{"text": "  "}\n{"text": 5}\n{"other": "x"}\n')
    lost = [row for row in read_queries(path) if isinstance(row, Rejected)]
    assert [(row.reason, row.line) for row in lost] == [("no-text", 2), ("no-text", 3), ("no-text-column", 4)]
    assert all(row.file == str(path) for row in lost)


def test_ids_are_the_rows_own_or_their_number(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"id": 7, "text": "a"}\n{"text": "b"}\n{"query_id": "q", "text": "c"}\n')
    assert [row.id for row in read_queries(path) if isinstance(row, Query)] == ["7", "1", "q"]


def test_ids_of_a_column_of_floats_are_those_of_integers(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"id": [1.0, float("nan"), None, 2.5], "text": ["a", "b", "c", "d"]})
    parquet.write_table(table, tmp_path / "log.parquet")
    assert [row.id for row in read_queries(tmp_path / "log.parquet") if isinstance(row, Query)] == [
        "1",
        "1~2",
        "2",
        "2.5",
    ]


def test_a_log_without_a_text_is_named_with_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": " "}\n{"text": ""}\n')
    with pytest.raises(
        InputError, match=r"log.jsonl has no row with a text: 2 rows not used, e.g. line 1: text is empty"
    ):
        require_queries(deduplicate(read_queries(path)), path)


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / name
    if name == "log.parquet":
        parquet.write_table(pyarrow.Table.from_arrays([["a"], ["b"]], names=["text", "text"]), path)
    else:
        path.write_text("text,text,,\na,b,,\n".replace(",", "\t" if name == "log.tsv" else ","))
    with pytest.raises(InputError, match=f"{name} has 'text' more than once among its columns"):
        texts(path)


def test_columns_without_a_name_may_be_many(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("text,,\nhow do I pay,,\n")
    assert texts(tmp_path / "log.csv") == ["how do I pay"]


def test_a_damaged_page_of_a_parquet_file_is_said_in_words(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    table = pyarrow.table({"text": [f"question number {number}" for number in range(2000)]})
    parquet.write_table(table, path, compression="none", use_dictionary=False)
    raw = path.read_bytes()
    path.write_bytes(raw[:2000] + b"\xff" * 200 + raw[2200:])
    with pytest.raises(InputError, match=r"log\.parquet is not Parquet, or damaged"):
        texts(path)


def test_a_name_of_a_user_is_no_id_and_an_id_that_comes_again_gets_an_ending(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [
        {"uid": "u7", "query": "How do I block my card?"},
        {"uid": "u7", "query": "Where is the nearest branch in Leeds?"},
        {"id": "1", "query": "c"},
        {"id": "1", "query": "d"},
        {"id": "1~2", "query": "e"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.id for row in read_queries(path) if isinstance(row, Query)] == ["0", "1", "1~2", "1~3", "1~2~2"]


def test_half_a_character_is_a_row_that_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"query": "where is my card \\ud83d"}\n{"query": "one\\u0000two"}\n{"query": "\\ud83d\\ude00 fine"}\n'
    )
    good, lost = [], []
    for row in read_queries(path):
        (good if isinstance(row, Query) else lost).append(row)
    assert [row.text for row in good] == ["😀 fine"]
    assert [(row.reason, row.line) for row in lost] == [("not-storable", 1), ("not-storable", 2)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_with_its_mark_is_read(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "log.csv").write_bytes(f"{mark}id,text\n1,Was kostet Café?\n".encode(encoding))
    assert texts(tmp_path / "log.csv") == ["Was kostet Café?"]


def test_a_very_long_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f"text\n{'long ' * 40_000}\nshort\n")
    assert [len(text) for text in texts(tmp_path / "log.csv")] == [199_999, 5]


def test_chats_in_a_csv_file_are_read_as_chats_and_other_text_wins_over_a_number_of_messages(tmp_path: Path) -> None:
    chat = json.dumps([{"role": "user", "content": "from the chat"}]).replace('"', '""')
    (tmp_path / "log.csv").write_text(f'messages,text\n"{chat}",plain\n3,"the text"\n')
    assert texts(tmp_path / "log.csv") == ["from the chat", "the text"]
    (tmp_path / "chats.csv").write_text(f'messages\n"{chat}"\n')
    assert texts(tmp_path / "chats.csv") == texts(tmp_path / "chats.csv", "messages") == ["from the chat"]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('1\t"how to pay\n2\tsecond\n3\tthird\n', ['"how to pay', "second", "third"]),
        ('1\t"how to pay\n2\ta 5" pipe\n3\tfits 5"\n', ['"how to pay', 'a 5" pipe', 'fits 5"']),
        ('1\t"freeze" my card\n2\t"whole"\n', ['"freeze" my card', "whole"]),
        ('1\t"with a\ttab"\n2\t"say ""hi"""\n', ["with a\ttab", 'say "hi"']),
        ('1\t"two\nlines"\n2\tsecond\n', ["two\nlines", "second"]),
        ('1\t"opens\n2\t"two\nlines"\n3\tthird\n', ['"opens', "two\nlines", "third"]),
        ('1\t"opens at the end', ['"opens at the end']),
    ],
)
def test_a_quote_in_a_tsv_file_swallows_no_line(tmp_path: Path, body: str, found: list[str]) -> None:
    (tmp_path / "log.tsv").write_text("id\ttext\n" + body)
    assert texts(tmp_path / "log.tsv") == found


def test_the_lines_of_a_tsv_file_are_counted(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text('text\tid\n"two\nlines"\t1\n\nx\t2\n  \t3\n')
    rows = list(read_queries(tmp_path / "log.tsv"))
    assert [row.text for row in rows if isinstance(row, Query)] == ["two\nlines", "x"]
    assert [row.line for row in rows if isinstance(row, Rejected)] == [6]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text('ab"\n ', min_size=1, max_size=8), max_size=5), quoting=st.sampled_from([0, 1]))
def test_a_text_of_several_lines_that_a_spreadsheet_wrote_comes_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], quoting: Literal[0, 1]
) -> None:
    rows = [[str(number), text] for number, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("tsv") / "log.tsv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n").writerows([["id", "text"], *rows])
    assert [list(row.values()) for _, row in read_rows(path)] == rows


@pytest.mark.parametrize(
    ("name", "content", "column", "words"),
    [
        ("log.jsonl", b'{"body": "x"}\n', None, "no text column"),
        ("log.jsonl", b'{"text": "x"}\n', "body", "no column 'body'"),
        ("log.csv", b"Anfrage;id\nx;1\n", "anfragen", "has: Anfrage, id\nTo do: --column Anfrage"),
        ("log.csv", b"id;text\n1;x;y\n", None, "2 fields between ';'"),
        ("log.csv", "text\ncaf\u00e9\n".encode("latin-1"), None, "not UTF-8"),
        ("log.xyz", b"text", None, "has the ending"),
        ("log.csv", b"text\na,b,c\n", None, "more fields than columns"),
        ("log.parquet", b"PAR1nonsense", None, "is not Parquet"),
        ("log.txt", b"", None, "is empty"),
        ("log.csv", b'text\none\n"two\nthree\n', None, "line 3: a quote opens a field and is never closed"),
        ("log.tsv", b'text\tid\none\t1\n"two\nthree\t2\n', None, "line 3: a quote opens a field"),
        ("log.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 900, mtime=0)[:-20], None, "is damaged or cut off"),
        ("log.csv.gz", gzip.compress(b"text\none\n" * 900, mtime=0)[:-20], None, "is damaged or cut off"),
        ("log.txt.gz", gzip.compress(b"one\n" * 900, mtime=0)[:-20], None, "is damaged or cut off"),
        ("log.txt.gz", gzip.compress(b"one\n", mtime=0)[:4], None, "is damaged or cut off"),
        ("log.txt.gz", b"\x1f\x8bnonsense", None, "is damaged or cut off"),
    ],
)
def test_broken_logs_are_refused_in_words(
    tmp_path: Path, name: str, content: bytes, column: str | None, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(read_queries(tmp_path / name, column=column))


def test_repeats_are_merged_into_the_first_and_counted() -> None:
    found = deduplicate(
        Query(str(row), text)
        for row, text in enumerate(
            [
                "Where is my new card?",
                "where is my NEW card",
                "Why has my new card not arrived in 5 days?",
                "Why has my new card not arrived in 7 days?",
                "Can you tell me why I haven't received my new card yet?",
                "Can you tell me why I haven't received my new card?",
            ]
        )
    )
    assert [(query.id, query.frequency, query.also) for query in found.kept] == [
        ("0", 2, ("1",)),
        ("2", 1, ()),
        ("3", 1, ()),
        ("4", 2, ("5",)),
    ]
    assert [(lost.reason, lost.context["merged_into"]) for lost in found.merged] == [
        ("repeat", "0"),
        ("near-repeat", "4"),
    ]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("How do I sort a list of words in C++?", "How do I sort a list of words in C#?"),
        ("How do I sort a list of words in C++?", "How do I sort a list of words in C?"),
        ("Is there a $50 fee?", "Is there a €50 fee?"),
        ("Why is my winter bill higher than my summer bill?", "Why is my summer bill higher than my winter bill?"),
        (
            "What do I have to do to increase the limit that my bank has set for the card of my daughter?",
            "What do I have to do to decrease the limit that my bank has set for the card of my daughter?",
        ),
        (
            "Warum kann ich mich seit der letzten Aktualisierung mit meinem Telefon einloggen?",
            "Warum kann ich mich seit der letzten Aktualisierung mit meinem Telefon nicht einloggen?",
        ),
        ("मेरा माल कब आएगा?", "मेरी मेल कब आएगी?"),
        ("👍", "👎"),
    ],
)
def test_questions_that_differ_in_a_sign_a_vowel_or_a_direction_are_not_merged(left: str, right: str) -> None:
    for rows in ((left, right), (right, left)):
        assert [query.text for query in deduplicate(Query(text, text) for text in rows).kept] == list(rows)


def test_a_smile_is_no_difference() -> None:
    found = deduplicate([Query("1", "Where is my new card 😀"), Query("2", "Where is my new card")])
    assert [query.frequency for query in found.kept] == [2]


def test_rows_without_text_go_through_and_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": "good"}\n{"text": ""}\n{"text": "Good!"}\n')
    found = deduplicate(read_queries(path))
    assert [query.frequency for query in found.kept] == [2]
    assert [row.line for row in found.rejected] == [2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(alphabet="ab c", min_size=1, max_size=12),
            st.lists(
                st.sampled_from(TELLING),
                min_size=1,
                max_size=6,
            ).map(" ".join),
        ),
        max_size=20,
    )
)
def test_merging_keeps_order_and_count_and_is_done_after_once(rows: list[str]) -> None:
    first = deduplicate(Query(str(row), text) for row, text in enumerate(rows))
    assert sum(query.frequency for query in first.kept) == len(rows)
    assert len(first.kept) + len(first.merged) == len(rows)
    places = [int(query.id) for query in first.kept]
    assert places == sorted(places)
    assert deduplicate(first.kept).kept == first.kept


def test_the_medical_log_is_read_whole(data: Path) -> None:
    assert len(texts(data / "medical_queries/queries.jsonl.gz")) == 762


@pytest.mark.parametrize(
    ("name", "content", "separator"),
    [
        ("log.csv", "text # a, b\nfirst question # x, y\n", "#"),
        ("log.csv", "text, and more;n\nfirst question;1\n", ";"),  # of equal numbers of fields the comma is taken
        ("log.tsv", "text;n\nfirst question;1\n", ";"),
        ("log.csv", "text\tn;m;o\nfirst question\t1\n", "tab"),
        ("log.jsonl", '{"text": "first question"}\n', ";"),  # has none
    ],
)
def test_a_separator_can_be_named_where_the_guess_is_wrong(
    tmp_path: Path, name: str, content: str, separator: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    columns = {"text", "text ", "text, and more"}
    (row,) = (row for _, row in read_rows(path, separator=parse_separator(separator)))
    assert {value.strip() for key, value in row.items() if key in columns} == {"first question"}
    assert describe_separator(path, parse_separator(separator)) == ""


def test_a_separator_that_was_chosen_is_told_unless_it_is_the_comma(tmp_path: Path) -> None:
    told = {}
    for name, line in {"a.csv": "id;text", "b.csv": "id,text", "c.csv": "id\ttext", "d.tsv": "id\ttext"}.items():
        (tmp_path / name).write_text(f"{line}\n")
        told[name] = describe_separator(tmp_path / name)
    assert "separated by semicolons" in told["a.csv"]
    assert "separated by tabs" in told["c.csv"]
    assert told["b.csv"] == told["d.tsv"] == ""
    assert describe_separator(tmp_path / "none.csv") == ""  # whoever reads it says so


@pytest.mark.parametrize("text", ["", ";;", '"', "\n"])
def test_a_separator_is_one_character(text: str) -> None:
    with pytest.raises(ConfigurationError, match="the separator"):
        parse_separator(text)
