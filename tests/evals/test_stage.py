"""The stage over checkpoints that the real line trained, its figures against plain torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.config.evals import EvalConfig
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.config.train import PretrainConfig, SftConfig
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import PROMPTS, read_rows
from llmctl.evals.questions import read_questions
from llmctl.inference.score import Pair
from llmctl.model import huggingface
from llmctl.model.attention import packed
from llmctl.model.transformer import Transformer
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Progress
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Artifact, FileInput, Input
from llmctl.store.manifest import Manifest, Producer, RunInfo, content_digest
from llmctl.store.store import Store, describe_files
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer
from tests.evals.tiny import pairs_of, text

CONTEXT = 64


class Notes(Progress):
    """Keeps what the user would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        self.said.append(text)


class Line:
    """Stages run into one store."""

    def __init__(self, root: Path) -> None:
        self.store = Store.open(root, create=True)
        self.notes = Notes()

    def run(self, command: str, config: Any, inputs: Mapping[str, Input] | None = None, **options: Any) -> Artifact:
        self.notes.said.clear()
        return execute(Call(stage_named(command), config, inputs or {}, **options), self.store, self.notes).artifact

    def eval(self, checkpoint: Artifact, config: Mapping[str, Any] | None = None, **inputs: Input) -> Artifact:
        settings = EvalConfig.model_validate({"device": "cpu", **(config or {})})
        return self.run("eval", settings, {"input": checkpoint, **inputs})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evals")


@pytest.fixture(scope="module")
def line(folder: Path) -> Line:
    torch.set_num_threads(1)
    return Line(folder / "artifacts")


@pytest.fixture(scope="module")
def rows(line: Line, folder: Path) -> Artifact:
    return pack(line, folder, "first", vocab_size=384)


def pack(line: Line, folder: Path, name: str, vocab_size: int) -> Artifact:
    """Packed rows of forty generated documents, some of them held out."""
    pages = folder / name
    pages.mkdir()
    for seed in range(40):
        (pages / f"{seed:02}.txt").write_text(text(seed, 60))
    documents = line.run("collect", CollectConfig(sources=(str(pages),)), name=name)
    tokenize = TokenizeConfig.model_validate({"train": {"vocab_size": vocab_size}})
    tokens = line.run("tokenize", tokenize, {"input": documents})
    config = PackConfig.model_validate({"seq_len": CONTEXT, "heldout_fraction": 0.2})
    return line.run("pack", config, {"input": tokens})


TRAIN = {"steps": 3, "batch_rows": 4, "device": "cpu", "precision": "fp32", "checkpoint_every_steps": 0, "threads": 1}


@pytest.fixture(scope="module")
def base(line: Line, rows: Artifact) -> Artifact:
    model = {"name": "nano", "context": CONTEXT}
    return line.run("pretrain", PretrainConfig.model_validate({**TRAIN, "model": model}), {"input": rows})


@pytest.fixture(scope="module")
def tuned(line: Line, base: Artifact, folder: Path) -> Artifact:
    chats = folder / "chats.jsonl"
    turns = [{"role": "user", "content": "what is a list?"}, {"role": "assistant", "content": "sorted"}]
    chats.write_text("".join(json.dumps({"messages": turns, "id": str(n)}) + "\n" for n in range(8)))
    return line.run("sft", SftConfig.model_validate(TRAIN), {"input": base, "chats": FileInput.of(chats, "chats")})


@pytest.fixture(scope="module")
def quiz(folder: Path) -> FileInput:
    questions = [
        {
            "id": f"q{n}",
            "prompt": text(n, 6),
            "choices": [" " * (c % 2) + text(100 + 5 * n + c, 1 + c) for c in range(2 + n % 3)],
            "answer": n % 2,
        }
        for n in range(24)
    ]
    path = folder / "quiz.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return FileInput.of(path, "prompts")


def results(evaluation: Artifact) -> Any:
    return json.loads(evaluation.file("results.json").read_text())


@torch.inference_mode()
def log_softmax(model: Transformer, ids: list[int]) -> Tensor:
    """Log-probabilities [T,V] of one sequence alone, without batching or padding."""
    tokens = torch.tensor([ids])
    positions = torch.arange(len(ids))[None]
    return model.logits(model(tokens, positions, packed(torch.zeros_like(tokens))))[0].double().log_softmax(-1)


def direct(model: Transformer, pair: Pair) -> float:
    """Log-likelihood of a continuation, token by token."""
    before, after = pair
    logprobs = log_softmax(model, [*before, *after])
    return math.fsum(logprobs[len(before) - 1 + n, token].item() for n, token in enumerate(after))


def test_heldout_figures_are_those_of_a_plain_loop(line: Line, base: Artifact, rows: Artifact) -> None:
    evaluation = line.eval(base)
    model, tokenizer = huggingface.load(base.data), Tokenizer.open(base.data)
    split = Rows.open(rows, "heldout")
    assert split.count > 1
    batch = split.batch(np.arange(split.count))
    nll: list[float] = []
    bits: list[float] = []
    size = 0
    for row in range(split.count):
        for document in range(batch.documents[row].max() + 1):
            places = np.flatnonzero(batch.documents[row] == document)
            ids = batch.tokens[row][places].tolist()
            logprobs = log_softmax(model, ids)
            for place, token in enumerate(ids[1:]):
                nll.append(-logprobs[place, token].item())
                if tokenizer.byte_lengths[token]:
                    bits.append(nll[-1] / math.log(2))
                    size += int(tokenizer.byte_lengths[token])
    heldout = results(evaluation)["tasks"]["heldout"]
    assert heldout["loss"]["n"] == heldout["perplexity"]["n"] == len(nll)
    assert heldout["bits_per_byte"]["n"] == size
    assert heldout["loss"]["value"] == pytest.approx(math.fsum(nll) / len(nll), abs=1e-5)
    assert heldout["perplexity"]["value"] == pytest.approx(math.exp(math.fsum(nll) / len(nll)), rel=1e-5)
    assert heldout["bits_per_byte"]["value"] == pytest.approx(math.fsum(bits) / size, abs=1e-5)
    assert evaluation.manifest.totals["heldout.bits_per_byte"] == heldout["bits_per_byte"]["value"]


@pytest.mark.parametrize("chat", [False, True])
def test_choices_are_those_of_a_plain_computation(line: Line, base: Artifact, quiz: FileInput, chat: bool) -> None:
    evaluation = line.eval(base, {"chat": chat, "batch_tokens": 200}, choices=quiz)
    model, tokenizer = huggingface.load(base.data), Tokenizer.open(base.data)
    samples = pq.read_table(evaluation.file("samples-00000.parquet")).to_pylist()
    right, right_norm = [], []
    for question, sample in zip(read_questions(quiz), samples, strict=True):
        pairs = pairs_of(question, tokenizer, chat=chat)
        expected = [direct(model, pair) for pair in pairs]
        assert sample["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        assert sample["prompt"] == (
            f"<s><|im_start|>user\n{question.question}<|im_end|>\n<|im_start|>assistant\n" if chat else question.prompt
        )
        assert sample["choices"] == [
            choice.strip() if chat else choice if choice[0] == " " else f" {choice}" for choice in question.choices
        ]
        per_character = [value / len(choice.strip()) for value, choice in zip(expected, question.choices, strict=True)]
        assert sample["prediction"] == int(np.argmax(expected))
        assert sample["prediction_norm"] == int(np.argmax(per_character))
        assert (sample["id"], sample["answer"], sample["model"]) == (question.id, question.answer, "checkpoint")
        right.append(float(np.argmax(expected) == question.answer))
        right_norm.append(float(np.argmax(per_character) == question.answer))
    choices = results(evaluation)["tasks"]["choices"]
    for name, values in (("acc", right), ("acc_norm", right_norm)):
        assert choices[name]["value"] == pytest.approx(np.mean(values), abs=1e-12)
        assert choices[name]["stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)
    counts = [len(question.choices) for question in read_questions(quiz)]
    guessing = pytest.approx(np.mean([1 / count for count in counts]))
    assert choices["acc"]["chance"] == guessing
    assert choices["acc_norm"]["chance"] == guessing
    assert results(evaluation)["settings"]["chat"] == {"choices": chat}


def test_the_baseline_is_an_untrained_model_of_the_same_shape(
    line: Line, base: Artifact, quiz: FileInput, folder: Path
) -> None:
    evaluation = line.eval(base, {"baseline": True, "seed": 5}, choices=quiz)
    model = huggingface.load(base.data)
    untrained = Transformer(model.config, model.vocab_size)
    untrained.init_weights(5)
    rows = pq.read_table(evaluation.file("samples-00000.parquet")).to_pylist()
    samples = [row for row in rows if row["model"] == "untrained"]
    tokenizer = Tokenizer.open(base.data)
    first = read_questions(quiz)[0]
    expected = [direct(untrained, pair) for pair in pairs_of(first, tokenizer)]
    assert samples[0]["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
    totals = evaluation.manifest.totals
    assert float(totals["untrained.heldout.loss"]) > float(totals["heldout.loss"])
    assert {"choices.acc", "choices.acc_norm", "choices.chance", "untrained.choices.acc"} <= set(totals)
    assert "untrained.choices.chance" not in totals
    loss = results(evaluation)["tasks"]["heldout"]["loss"]
    assert loss["untrained"] == totals["untrained.heldout.loss"]
    assert results(evaluation)["tasks"]["choices"]["acc"]["untrained_stderr"] == totals["untrained.choices.acc.stderr"]


def test_what_rounding_loses_is_measured_and_stored(line: Line, base: Artifact, quiz: FileInput) -> None:
    plain = line.eval(base, {}, choices=quiz)
    lost: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for weights in ("int8", "int4"):
        evaluation = line.eval(base, {"weights": weights}, choices=quiz)
        totals = evaluation.manifest.totals
        assert totals["unrounded.heldout.loss"] == plain.manifest.totals["heldout.loss"]
        assert totals["unrounded.choices.acc"] == plain.manifest.totals["choices.acc"]
        lost[weights] = float(totals["heldout.bits_per_byte.lost"])
        bits = results(evaluation)["tasks"]["heldout"]["bits_per_byte"]
        assert lost[weights] == pytest.approx(bits["value"] - bits["unrounded"], abs=1e-12)
        assert results(evaluation)["settings"]["weights"] == weights
        sizes[weights] = float(totals["weights_bytes"])
        sizes["plain"] = float(totals["unrounded.weights_bytes"])
        assert {"heldout.tokens_per_s", "unrounded.heldout.tokens_per_s"} <= set(totals)
    assert 0 < abs(lost["int8"]) < abs(lost["int4"]) < 0.05
    assert sizes["int4"] < sizes["int8"] < sizes["plain"]
    assert "heldout.bits_per_byte.lost" not in plain.manifest.totals
    several = line.eval(base, {"variants": "int8,int4"}, choices=quiz)
    totals = several.manifest.totals
    assert {name: totals[f"{name}.heldout.bits_per_byte.lost"] for name in lost} == lost
    assert {name: totals[f"{name}.weights_bytes"] for name in lost} == {name: sizes[name] for name in lost}
    assert totals["weights_bytes"] == sizes["plain"]
    table = several.file("report.md").read_text().partition("## Rounded weights, on the held-out rows")[2]
    for name, prefix in (("plain", ""), ("int8", "int8."), ("int4", "int4.")):
        bits, speed = (float(totals[f"{prefix}heldout.{figure}"]) for figure in ("bits_per_byte", "tokens_per_s"))
        more = f"{lost[name]:+.4f}" if name in lost else ""
        assert f"| {name} | {bits:.4f} | {more} | {sizes[name] / 2**20:.2f} | {speed:,.0f} |" in table


def test_variants_are_others_and_need_held_out_rows(line: Line, base: Artifact, quiz: FileInput) -> None:
    with pytest.raises(ValueError, match="variants hold int8, which the checkpoint is measured with already"):
        EvalConfig.model_validate({"weights": "int8", "variants": "int8,int4"})
    foreign = Artifact(base.path, base.manifest.model_copy(update={"inputs": {}}), "foreign")
    with pytest.raises(InputError, match="variants are measured on held-out rows, and there are none"):
        line.eval(foreign, {"variants": "int4"}, choices=quiz)


def test_chat_is_for_checkpoints_that_learned_it_and_rows_come_from_the_lineage(
    line: Line, rows: Artifact, base: Artifact, tuned: Artifact, quiz: FileInput
) -> None:
    plainly, chatting = line.eval(base, choices=quiz), line.eval(tuned, choices=quiz)
    assert results(plainly)["settings"]["chat"] == {"choices": False}
    assert results(chatting)["settings"]["chat"] == {"choices": True}
    counts = [results(evaluation)["tasks"]["heldout"]["loss"]["n"] for evaluation in (plainly, chatting)]
    assert counts[0] == counts[1] > 0
    for evaluation in (plainly, chatting):
        assert evaluation.manifest.inputs["rows"].digest == rows.digest


def test_rows_beyond_the_context_are_refused(line: Line, base: Artifact, rows: Artifact) -> None:
    tokens = line.store.find(rows.manifest.inputs["input"].digest)
    config = PackConfig.model_validate({"seq_len": CONTEXT + 1, "heldout_fraction": 0.2})
    longer = line.run("pack", config, {"input": tokens}, name="longer")
    with pytest.raises(InputError, match=rf"longer@v1 has rows of {CONTEXT + 1} tokens, the model reads {CONTEXT}"):
        line.eval(base, rows=longer)


def test_questions_on_documents_that_were_trained_on_are_refused(
    line: Line, base: Artifact, rows: Artifact, quiz: FileInput
) -> None:
    assert base.manifest.semantic["heldout_fraction"] == rows.manifest.semantic["heldout_fraction"] == 0.2
    asked = prompts_artifact(line, quiz, 0.2)
    assert line.eval(base, choices=asked).manifest.totals["choices.scored"] == 24
    with pytest.raises(InputError, match=r"asks about 0.21 of all documents, .* was kept from 0.2 only"):
        line.eval(base, choices=prompts_artifact(line, quiz, 0.21))


def prompts_artifact(line: Line, quiz: FileInput, fraction: float) -> Artifact:
    """The questions as an artifact of the stage quiz that was made with this fraction."""
    run, held = line.store.begin("quiz", f"01QUIZ{round(fraction * 1000)}")
    with held:
        with TableWriter(run.data, PROMPTS) as writer:
            writer.write_rows([{**row, "source": "test", "question": row["prompt"]} for row in read_rows(quiz)])
        files = describe_files(run)
        facts = {"choices": 4, "heldout_fraction": fraction}
        schema = "llmctl.prompts/1"
        producer = Producer(command="quiz", op_version=1, llmctl="0", argv=[], config={}, action_key=run.run_id)
        manifest = Manifest(
            kind="prompts", schema=schema, digest=content_digest("prompts", schema, facts, files), files=files,
            totals={}, semantic=facts, producer=producer, inputs={}, license=[],
            run=RunInfo(id=run.run_id, started="", finished="", host=""),
        )  # fmt: skip
        pointer = line.store.commit(run, manifest)
    return line.store.publish_version("quiz", pointer)


def test_the_limit_counts_what_it_leaves_out(line: Line, base: Artifact, quiz: FileInput) -> None:
    evaluation = line.eval(base, {"limit": 10}, choices=quiz)
    totals = evaluation.manifest.totals
    assert (totals["choices.scored"], totals["choices.skipped.limit"]) == (10, 14)
    assert pq.read_table(evaluation.file("samples-00000.parquet")).num_rows == 10
    whole = line.eval(base, choices=quiz).manifest.totals
    assert (whole["choices.scored"], whole["choices.skipped.limit"]) == (24, 0)


def test_two_runs_give_the_same_bytes(line: Line, base: Artifact, quiz: FileInput) -> None:
    config = EvalConfig(device="cpu", baseline=True)
    inputs: dict[str, Input] = {"input": base, "choices": quiz}
    first = line.run("eval", config, inputs, force=True)
    assert line.run("eval", config, inputs, force=True).digest == first.digest


def test_batches_do_not_change_a_figure(line: Line, base: Artifact, quiz: FileInput) -> None:
    small = line.eval(base, {"batch_tokens": 1, "limit": 23}, choices=quiz).manifest.totals
    large = line.eval(base, {"batch_tokens": 8192, "limit": 23, "seed": 1}, choices=quiz).manifest.totals
    assert {**small} == pytest.approx({**large}, abs=1e-5)


def test_rows_of_another_tokenizer_are_refused(line: Line, base: Artifact, folder: Path) -> None:
    other = pack(line, folder, "second", vocab_size=320)
    with pytest.raises(InputError, match="differ in tokenizer"):
        line.eval(base, rows=other)


def test_a_question_that_does_not_fit_stops_it(line: Line, base: Artifact, folder: Path) -> None:
    path = folder / "long.jsonl"
    path.write_text(json.dumps({"id": "long-one", "prompt": text(1, 200), "choices": ["a", "b"], "answer": 0}) + "\n")
    with pytest.raises(InputError, match=r"choices: item long-one needs \d+ tokens, the model reads 64"):
        line.eval(base, choices=FileInput.of(path, "prompts"))


def test_a_checkpoint_from_elsewhere_needs_rows_or_questions(
    line: Line, base: Artifact, rows: Artifact, quiz: FileInput
) -> None:
    manifest = base.manifest.model_copy(update={"inputs": {}})
    foreign = Artifact(base.path, manifest, "foreign")
    with pytest.raises(InputError, match="foreign was not trained on rows of this store"):
        line.eval(foreign, {"seed": 11})
    evaluation = line.eval(foreign, {"seed": 12}, choices=quiz)
    assert line.notes.said == ["no held-out loss: the rows behind this checkpoint are not known; give --rows"]
    assert evaluation.manifest.semantic == {"tasks": ["choices"]}
    assert line.eval(foreign, {"seed": 13}, rows=rows).manifest.semantic == {"tasks": ["heldout"]}


def test_weights_that_overflow_give_an_error_and_no_score(
    line: Line, base: Artifact, quiz: FileInput, folder: Path
) -> None:
    model = huggingface.load(base.data)
    broken = Transformer(model.config, model.vocab_size)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.norm.weight.fill_(3e38)  # finite, but no logit is
    huggingface.save(broken, folder / "broken" / "data", base.data)
    artifact = Artifact(folder / "broken", base.manifest, "broken")
    with pytest.raises(InputError, match="NaN|nan"):
        line.run("eval", EvalConfig(device="cpu"), {"input": artifact, "choices": quiz}, force=True)
