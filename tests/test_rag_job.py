"""The job for retrieval end to end on a tiny model: documents in, a report that says what the model is worth."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from embedsmith import synthesis
from embedsmith.adapters import LoraConfig
from embedsmith.answers import write_rag_answer
from embedsmith.artifacts import RunDirectory
from embedsmith.batches import Prompts
from embedsmith.config import TrainingConfig
from embedsmith.encoder import sides_of
from embedsmith.errors import ConfigurationError, InputError, ModelRefused
from embedsmith.model import TorchEncoder, load_encoder, load_network
from embedsmith.pipeline import RagJob, RunResult, Watcher, run_rag
from embedsmith.pipeline.rag_job import choose_dimensions, open_base, refuse_what_is_worse
from embedsmith.preparation import Preparation
from embedsmith.report.rag import judge_retrieval
from embedsmith.synthesis.rag import RagPlan
from embedsmith.teacher import Teaching
from embedsmith.testing import FakeLLM
from tiny_decoders import SIZES

FILINGS = Path(__file__).parents[1] / "examples" / "filings"
TRAINING = TrainingConfig(losses={"distill_kl": 1.0}, batch=8, learning_rate=1e-5, precision="fp32")


def llm() -> FakeLLM:
    return FakeLLM(answer=lambda prompt: write_rag_answer(prompt.user))


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> RagJob:
    return RagJob(
        sources=(str(FILINGS),),
        base=str(tiny_model),
        out=tmp_path / "run",
        plan=RagPlan(trip="off", multi_passage=0.0),
        teaching=Teaching(negatives=2, depth=6),
        training=TRAINING,
        force=True,
    )


def test_a_run_leaves_model_report_and_every_file_on_the_way(job: RagJob) -> None:
    said: list[str] = []
    result = run_rag(job, llm(), Watcher(say=said.append))
    assert (result.model / "model.safetensors").exists()
    for name in ("passages.jsonl", "synthesis/examples.jsonl", "teaching/examples.jsonl", "retention.json"):
        assert (job.out / name).stat().st_size
    page = result.report.read_text()
    for heading in ("Before and after", "Shorter vectors", "What it keeps of the base", "Where the examples come from"):
        assert heading in page
    assert "held out of the training" in page
    assert not re.search(r"""(src|href)=["']https?:""", page)  # self-contained
    summary = json.loads((job.out / "report.json").read_text())
    assert set(summary["retrieval"]["metrics"]) == {"base", "tuned", "BM25"}
    assert summary["documents"]["documents"] >= 8
    assert any("graded by the base and BM25 (weight 0.4)" in line for line in said)


def test_a_second_run_does_nothing_again(job: RagJob) -> None:
    first = llm()
    run_rag(job, first)
    calls, said = len(first.calls), list[str]()
    run_rag(job, first, Watcher(say=said.append))
    assert len(first.calls) == calls
    assert {"training: up to date", "evaluation: up to date"} <= set(said)


def test_an_edited_prompts_file_is_read_again(job: RagJob, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.toml"
    shipped = (Path(synthesis.__file__).parent / "prompts/rag.toml").read_text()
    prompts.write_text(shipped)
    job = replace(job, plan=replace(job.plan, prompts=prompts))
    first, second, third = llm(), llm(), llm()
    run_rag(job, first)
    run_rag(job, second)
    assert second.calls == []
    prompts.write_text(shipped.replace('system = """', 'system = """Be brief. '))
    run_rag(job, third)
    assert any(prompt.system.startswith("Be brief. ") for prompt in third.calls)


def test_a_resumed_run_that_has_everything_does_not_load_the_base(job: RagJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run_rag(job, llm())
    loaded: list[object] = []
    monkeypatch.setattr("embedsmith.pipeline.rag_job.load_encoder", loaded.append)
    run_rag(job, llm())
    assert not loaded


@pytest.fixture
def decoder(tmp_path: Path, tiny_model: Path) -> Path:
    """A plain decoder of two layers with random weights that reads words, not bytes: texts stay short."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token, tokenizer.bos_token = tokenizer.sep_token, tokenizer.cls_token
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id}
    ids |= {"eos_token_id": tokenizer.sep_token_id, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **ids, num_key_value_heads=2, max_position_embeddings=512)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_a_decoder_is_trained_with_adapters_and_an_instruction_before_queries_only(
    job: RagJob, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedsmith.retention.ROWS", 30)  # of each guard: this is not about them, and looks are many
    base = decoder
    prompts = Prompts(query="Instruct: {instruction}\nQuery: ")
    lora = Preparation(lora=LoraConfig(rank=2, alpha=4), prompts=prompts, max_length=40)
    said: list[str] = []
    some = tuple(map(str, sorted(FILINGS.iterdir())[:5]))
    own = replace(
        job,
        sources=some,
        plan=replace(job.plan, quota=45),
        base=str(base),
        preparation=lora,
        instruction="Find the passage",
    )
    result = run_rag(own, llm(), Watcher(say=said.append))
    tuned = load_encoder(result.model)
    assert isinstance(tuned, TorchEncoder)
    assert tuned.network.prompts["query"] == "Instruct: Find the passage\nQuery: "
    queries, documents = sides_of(tuned)
    assert not np.allclose(queries.encode(["berth fee"]), documents.encode(["berth fee"]))
    assert any("is a decoder: pooling" in line for line in said)
    assert any("LoRA" in note for note in result.summary["training"]["notes"])
    assert result.summary["preparation"]["lora"]["rank"] == 2
    plain_base = open_base(str(base), own.reading)
    assert np.allclose(  # the base is measured with the same prompt and pooling
        sides_of(plain_base)[0].encode(["berth fee"]),
        load_encoder(base).encode(["Instruct: Find the passage\nQuery: berth fee"]),
        atol=1e-5,
    )
    assert replace(own, preparation=replace(lora, lora=None)).origin == own.origin  # adapters change no stage before
    assert replace(own, instruction="Another").origin != own.origin


def test_what_a_base_cannot_have_is_refused_before_any_call(job: RagJob) -> None:
    model = llm()
    with pytest.raises(ConfigurationError, match="how its tokens see each other"):
        run_rag(replace(job, preparation=Preparation(bidirectional=True)), model)
    assert not model.calls


def test_questions_of_the_evaluation_are_never_trained_on(job: RagJob, tmp_path: Path) -> None:
    run_rag(job, llm())
    rows = [json.loads(line) for line in (job.out / "synthesis/examples.jsonl").read_text().splitlines()]
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    asked = list(dict.fromkeys(row["anchor"] for row in rows))[:5]
    passages = {row["anchor"]: row["positive"] for row in rows}
    corpus = [{"_id": f"d{n}", "text": passages[question]} for n, question in enumerate(asked)]
    asked_before = [{"_id": "t", "text": "a question of the training split, which nobody judged"}]
    write(folder / "corpus.jsonl", corpus)
    own = [{"_id": f"q{n}", "text": question} for n, question in enumerate(asked)]
    write(folder / "queries.jsonl", own + asked_before)
    judged = [f"q{n}\td{n}\t1" for n in range(len(asked))]
    (folder / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    result = run_rag(replace(job, evaluation=folder, out=tmp_path / "second"), llm())
    kept = (tmp_path / "second/synthesis/examples.jsonl").read_text()
    assert not [question for question in asked if json.dumps(question, ensure_ascii=False) in kept]
    assert result.summary["retrieval"]["queries"] == 5
    assert result.summary["synthesis"]["counts"]["evaluation-leak"] >= 5
    assert "1 queries have no judgement (such as those of another split): left out." in result.report.read_text()


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_whose_folder_lies_in_the_sources_does_not_read_its_own_results(job: RagJob) -> None:
    folder = shutil.copytree(FILINGS, job.out.parent / "filings")
    inside = replace(job, sources=(str(folder),), out=folder / "runs" / "x")
    run_rag(inside, llm())
    passages = (inside.out / "passages.jsonl").read_bytes()
    (inside.out / "manifest.json").write_text('{"stages": {}}')
    said: list[str] = []
    run_rag(inside, llm(), Watcher(say=said.append))
    assert (inside.out / "passages.jsonl").read_bytes() == passages
    assert any("not used: 1 × own-output" in line for line in said)
    with RunDirectory(inside.out).hold(), pytest.raises(InputError, match="another run"):
        run_rag(inside, llm())


def test_no_documents_is_an_error_before_any_call(job: RagJob, tmp_path: Path) -> None:
    model = llm()
    with pytest.raises(InputError):
        run_rag(replace(job, sources=(str(tmp_path / "nothing"),)), model)
    assert not model.calls


def test_documents_of_no_known_kind_are_named_before_any_call(job: RagJob, tmp_path: Path) -> None:
    model, folder = llm(), tmp_path / "office"
    folder.mkdir()
    (folder / "a.docx").write_bytes(b"PK")
    (folder / "b.docx").write_bytes(b"PK")
    (folder / "c.txt").write_bytes(b"")
    for _ in range(2):  # also where the stage is up to date
        with pytest.raises(InputError, match=r"2 × unknown-format \(.*a\.docx: the ending '\.docx'.*1 × empty"):
            run_rag(replace(job, sources=(str(folder),)), model)
    assert not model.calls


def test_too_few_passages_are_an_error_before_any_call(job: RagJob, tmp_path: Path) -> None:
    model = llm()
    write(tmp_path / "few.jsonl", [{"text": text} for text in TOPICS[:5]])
    with pytest.raises(InputError, match="5 passages") as caught:
        run_rag(replace(job, sources=(str(tmp_path / "few.jsonl"),), teaching=Teaching()), model)
    assert "more than 5" in str(caught.value)
    assert not model.calls


def test_a_run_over_few_passages_has_questions_for_every_part(job: RagJob, tmp_path: Path) -> None:
    write(tmp_path / "few.jsonl", [{"text": text} for text in TOPICS])
    few = replace(job, sources=(str(tmp_path / "few.jsonl"),))
    result = run_rag(few, llm())
    assert result.summary["retrieval"]["queries"] > 0


TOPICS = (
    "The harbour office charges berth fees for every ship that stays longer than three hours at the northern quay.",
    "Refunds take thirty days from the day on which the goods came back to the warehouse in good order.",
    "A boiler loses pressure when water leaks from a radiator valve or when the expansion vessel has failed.",
    "Trains to the mountains leave every second hour in winter and every hour between May and late September.",
    "The library lends tools such as drills and ladders to members who have paid the yearly deposit of twenty pounds.",
)


def summary_of(
    value: float, low: float, high: float, p_value: float, *, before: float = 0.7, held_out: bool = False
) -> dict[str, object]:
    change = {"value": value, "low": low, "high": high, "p_value": p_value}
    return {
        "retrieval": {
            "primary": "ndcg@10",
            "baseline": "base",
            "queries": 300,
            "metrics": {"base": {"ndcg@10": {"value": before}}},
            "differences": {"tuned": {"ndcg@10": change}},
            "holm": {"tuned": {"ndcg@10": p_value}},
        },
        "held_out": held_out,
    }


@pytest.mark.parametrize(
    ("change", "tone"),
    [
        ((0.03, 0.01, 0.05, 0.001), "better"),
        ((0.01, -0.01, 0.03, 0.3), "open"),
        ((-0.0004, -0.02, 0.02, 0.9), "open"),
        ((-0.01, -0.03, -0.001, 0.04), "worse"),
    ],
)
def test_the_verdict_comes_first_and_is_plain(change: tuple[float, float, float, float], tone: str) -> None:
    assert judge_retrieval(summary_of(*change))["tone"] == tone


def test_the_verdict_doubts_what_is_too_easy_and_what_the_model_wrote_itself() -> None:
    assert "too easy to tell" in judge_retrieval(summary_of(0.0, 0.0, 0.0, 1.0, before=1.0))["text"]
    found = judge_retrieval(summary_of(0.03, 0.01, 0.05, 0.001, held_out=True))
    assert (found["tone"], "--eval" in found["text"]) == ("open", True)


def test_a_model_below_its_base_is_refused_unless_it_is_forced(job: RagJob, tmp_path: Path) -> None:
    result = RunResult(tmp_path, tmp_path / "model", tmp_path / "report.html", summary_of(-0.01, -0.03, 0.0, 0.1))
    refuse_what_is_worse(job, result)
    with pytest.raises(ModelRefused, match=r"below its base on 300 queries: ndcg@10 -0\.010"):
        refuse_what_is_worse(replace(job, force=False), result)


def test_dimensions_are_the_whole_its_half_and_quarter_and_the_usual_short_ones() -> None:
    assert choose_dimensions(384) == (384, 192, 96, 64, 32)
    assert choose_dimensions(768) == (768, 384, 192, 128, 64, 32)
    assert choose_dimensions(32) == (32,)


def test_the_base_is_searched_with_its_own_prompts_or_those_of_the_run_or_none(
    tiny_model: Path, tmp_path: Path
) -> None:
    network = load_network(tiny_model)
    network.prompts, network.default_prompt_name = {"query": "query: ", "document": "passage: "}, "query"
    network.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    bare = load_encoder(tiny_model)
    for asked, expected in (
        (None, ("query: a", "passage: a")),
        (Prompts("ask: "), ("ask: a", "a")),
        (Prompts(), ("a", "a")),
    ):
        sides = sides_of(open_base(str(tmp_path / "base"), Preparation(max_length=30, prompts=asked)))
        for side, text in zip(sides, expected, strict=True):
            np.testing.assert_allclose(side.encode(["a"]), bare.encode([text]), atol=1e-5)
