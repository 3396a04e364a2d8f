"""Recipes: what ships can be read and printed, what is wrong is named, what is set is set."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from embedsmith.adapters import LoraConfig
from embedsmith.batches import Prompts, Source
from embedsmith.config import TrainingConfig
from embedsmith.errors import ConfigurationError, EmbedsmithError, InputError
from embedsmith.examples import PositivePair
from embedsmith.model import count_conversations
from embedsmith.preparation import Preparation
from embedsmith.recipes import (
    PLAIN,
    change,
    describe_source,
    read_recipe,
    recipe_names,
    write_recipe,
)


def test_four_published_systems_ship() -> None:
    assert recipe_names() == ("e5", "langcache", "rag", "sts-cft")
    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.about
        assert recipe.configure().losses


def test_the_published_values_of_the_small_language_models() -> None:
    """arXiv 2408.00690: LoRA r 8, α 32, dropout .1 on q and v; τ .05; lr 5e-5 cosine; 1,000 steps; 150 tokens."""
    recipe = read_recipe("sts-cft")
    config = recipe.configure()
    assert recipe.preparation.lora == LoraConfig(rank=8, alpha=32, dropout=0.1, targets=("q_proj", "v_proj"))
    assert (config.temperature, config.learning_rate, config.schedule) == (0.05, 5e-5, "cosine")
    assert (config.steps, config.weight_decay, recipe.preparation.max_length) == (1000, 1e-4, 150)
    assert round(config.steps * config.warmup) == 100
    assert config.dropout is None  # the trainer leaves Phi-2 its own


def test_the_published_values_of_e5_mistral() -> None:
    """arXiv 2401.00368: τ .02, LoRA r 16, lr 1e-4, weight decay .1, batch 2,048, 512 tokens, query side only."""
    recipe = read_recipe("e5")
    config = recipe.configure()
    assert (config.temperature, config.learning_rate, config.weight_decay) == (0.02, 1e-4, 0.1)
    assert (config.batch, config.epochs, recipe.preparation.max_length) == (2048, 1, 512)
    assert recipe.preparation.prompts == Prompts("Instruct: {instruction}\nQuery: ", "")
    assert recipe.preparation.lora is not None
    assert recipe.preparation.lora.rank == 16


def test_a_small_machine_changes_only_what_its_table_says() -> None:
    whole, small = read_recipe("sts-cft"), read_recipe("sts-cft", small=True)
    assert small.configure().temperature == whole.configure().temperature
    assert small.configure().epochs == 1
    with pytest.raises(ConfigurationError, match="no values for a small machine"):
        read_recipe("langcache", small=True)


def test_values_are_set_by_name_whichever_table_they_are_in() -> None:
    changed = change(
        read_recipe("langcache"),
        ["temperature=.02", "lora.rank=4", "pooling=mean", "dimensions=[64, 32]", "prompts.query=ask: ", "guide=self"],
    )
    config, preparation = changed.configure(), changed.preparation
    assert (config.temperature, config.dimensions, config.guide) == (0.02, (64, 32), "self")
    assert preparation.lora == LoraConfig(rank=4)
    assert (preparation.pooling, preparation.prompts.query) == ("mean", "ask: ")
    assert config.margin == 0.5


@pytest.mark.parametrize(
    ("given", "prompt"),
    [("query: ", "query: "), (" query: ", " query: "), ('"query: "', "query: "), ('"a\\nb" ', "a\nb"), ("7", "7")],
)
def test_a_prompt_keeps_its_spaces(given: str, prompt: str) -> None:
    """E5's input is "query: how …", and "query:how …" is another one."""
    assert change(PLAIN, [f"prompts.query={given}"]).preparation.prompts.query == prompt


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("temperature", "'temperature' sets no value"),
        ("temprature=1", "temprature"),
        ("lora.rnk=1", "rnk"),
        ("gradient_accumulation_steps=16", "gradient_accumulation_steps"),
        ("warmup=100", "warmup is 100"),
        ("epochs=many", "epochs is 'many'"),
        ("epochs=1.5", "epochs is 1.5"),
        ("epochs=true", "epochs is True"),
        ("epochs=own", "epochs is None"),
        ("batch=8.5", "batch is 8.5"),
        ("dimensions=16", "dimensions is 16"),
        ("dimensions=[16, 8.5]", "dimensions is"),
        ("guide=1", "guide is 1"),
        ("symmetric=False", "symmetric is 'False'"),
        ("guide_relative=no", "guide_relative is 'no'"),
        ("sharded=1", "sharded is 1"),
        ("merge=False", "merge is 'False'"),
        ("checkpointing=off", "checkpointing is 'off'"),
        ("max_length=64.5", "max_length is 64.5"),
        ("lora=8", "lora is 8"),
        ("lora.rank=8.5", "lora.rank is 8.5"),
        ("lora.targets=5", "LoRA targets are 5"),
        ("losses=infonce", "losses is 'infonce'"),
        ("losses={ infonce = -1 }", "infonce has the weight -1"),
        ("losses={ infonce = nan }", "infonce has the weight nan"),
    ],
)
def test_what_is_wrong_is_named(assignment: str, found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        change(PLAIN, [assignment])


def test_a_run_is_written_so_that_it_can_be_repeated(tmp_path: Path) -> None:
    config = TrainingConfig(losses={"infonce": 1.0, "cosent": 0.5}, dropout=None, dimensions=(64, 32), guide="self")
    preparation = Preparation("lasttoken", "left", 150, lora=LoraConfig(targets="all-linear"), prompts=Prompts("q: \n"))
    (tmp_path / "recipe.toml").write_text(write_recipe(config, preparation), encoding="utf-8")
    again = read_recipe(tmp_path / "recipe.toml")
    assert again.preparation == preparation
    assert again.configure() == config


def test_what_was_trained_on_is_recorded_and_a_recipe_with_it_can_be_read(tmp_path: Path) -> None:
    rows = (PositivePair("a", "b"), PositivePair("c", "d"))
    sources = [
        Source(rows, "x/pairs.jsonl", {"infonce": 1.0}, 3.0),
        Source(rows[:1], 'the "graded"', {"cosent": 0.5}, 1.0, Prompts("q: "), symmetric=True),
    ]
    (tmp_path / "recipe.toml").write_text(write_recipe(TrainingConfig(), Preparation(), sources), encoding="utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert tomllib.loads(recipe.text)["sources"] == [
        {"name": "x/pairs.jsonl", "examples": 2, "losses": {"infonce": 1.0}, "weight": 3.0},
        {
            "name": 'the "graded"',
            "examples": 1,
            "losses": {"cosent": 0.5},
            "weight": 1.0,
            "prompts": {"query": "q: ", "document": ""},
            "symmetric": True,
        },
    ]
    assert recipe.configure() == TrainingConfig()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[training]\nlerning_rate = 1", "lerning_rate"),
        ("[trainings]\nepochs = 1", "trainings"),
        ("[preparation.lora]\nr = 8", "lora: r"),
        ("not toml", "is no TOML"),
    ],
)
def test_a_recipe_of_the_user_with_a_mistake(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(EmbedsmithError, match=found):
        read_recipe(tmp_path / "mine.toml")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="no recipe 'none'") as told:
        read_recipe("none")
    assert "sts-cft" in told.value.expected


def test_the_record_counts_rows_of_conversations(tmp_path: Path) -> None:
    chat = "User: a\nAssistant: b\nUser: c"
    spoken = Source((PositivePair(chat, chat), PositivePair(chat, "c"), PositivePair("a", "b")), "chats")
    plain = Source((PositivePair("a", "b"),), "questions")
    assert describe_source(spoken)["conversations"] == 1
    assert "conversations" not in describe_source(plain)
    recipe = write_recipe(TrainingConfig(), Preparation(), [spoken, plain, spoken])
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert count_conversations(tmp_path) == 2
    (tmp_path / "recipe.toml").write_text("[[sources", encoding="utf-8")
    with pytest.raises(InputError, match="no record of a training"):
        count_conversations(tmp_path)
