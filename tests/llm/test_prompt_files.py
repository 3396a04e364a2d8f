"""Prompts files: what is sent stays what it was, and what cannot be asked with is an error that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedsmith.artifacts import fingerprint
from embedsmith.documents import Passage
from embedsmith.errors import ConfigurationError, InputError
from embedsmith.llm.prompts import Slots, load_template, quote
from embedsmith.llm.verdicts import ask as ask_about_pair
from embedsmith.mining.relabelling import load_relabel_prompt
from embedsmith.synthesis.rag.plan import RagPlan
from embedsmith.synthesis.rag.prompts import load_prompts, render_judge, render_multi, render_questions

SLOTS = Slots({"question", "count"}, needed=("question",))
PASSAGES = [Passage("1", "The shop opens at 9.", document="shop.txt"), Passage("2", "It is red.", document="b.txt")]


def test_what_is_sent_is_what_journals_of_earlier_runs_hold() -> None:
    """A changed fingerprint makes every recorded call of that kind be paid for again: change it knowingly."""
    prompts = load_prompts()
    sent = {
        "questions": render_questions(prompts, RagPlan(), PASSAGES[0]),
        "multi": render_multi(prompts, PASSAGES),
        "judge": render_judge(prompts, "When?", PASSAGES),
        "pair": ask_about_pair("training", ("a", 'b "c"'), "0"),
        "relabelling": load_relabel_prompt().fill("0", "verdict", question=quote("When?"), passage=quote("At 9.")),
    }
    assert {name: prompt.fingerprint for name, prompt in sent.items()} == {
        "questions": "76855e9875860bd5",
        "multi": "64585e0b4ef106f8",
        "judge": "8efd7a0b7eb70e47",
        "pair": "8d7a8f09453a7421",
        "relabelling": "887a7c973a08af49",
    }
    assert fingerprint(load_relabel_prompt()) == "ef47efde03c4452b"  # stands in the rows that it made


def test_a_filled_prompt_has_quoted_texts_that_cannot_leave_their_quotes(tmp_path: Path) -> None:
    file = write(tmp_path, 'system = " s "\nuser = """\nAbout {question}: {{"answers": {count}}}"""')
    prompt = load_template(file, SLOTS).fill("7", "answers", question=quote('what is "{count}"?\nstop'), count=3)
    assert (prompt.system, prompt.row, prompt.task) == ("s", "7", "answers")
    assert prompt.user == 'About "what is \\"{count}\\"?\\nstop": {"answers": 3}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("system = [", "is not TOML"),
        ('system = ""', "lacks user"),
        ('system = ""\nuser = "{question}"\ntone = "kind"', "has tone"),
        ('system = 5\nuser = "{question}"', "system is 5"),
        ('system = ""\nuser = " "', "user is ' '"),
        ('system = ""\nuser = "{question} {text}"', "user has a wrong placeholder ('text')"),
        ('system = ""\nuser = "{question} {}"', "wrong placeholder"),
        ('system = ""\nuser = "{question} {"', "wrong placeholder"),
        ('system = ""\nuser = "{question} {count.size}"', "wrong placeholder"),
        ('system = ""\nuser = "{count} of {{question}}"', "user never names {question}"),
    ],
)
def test_a_file_that_cannot_be_asked_with_says_why(tmp_path: Path, text: str, found: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_template(file, SLOTS)
    assert found in caught.value.found
    assert str(file) in caught.value.found


def test_a_file_of_the_users_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    ours, own = write(tmp_path, 'system = ""\nuser = "{question}"'), tmp_path / "own.toml"
    with pytest.raises(InputError, match="does not exist"):
        load_template(ours, SLOTS, own)
    own.write_text('system = "own"\nuser = "{question}"', encoding="utf-8")
    assert load_template(ours, SLOTS, own).system == "own"


def write(folder: Path, text: str) -> Path:
    file = folder / "prompts.toml"
    file.write_text(text, encoding="utf-8")
    return file
