"""The stage `eval`: held-out loss and multiple choice of a checkpoint, beside chance and an untrained model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmctl.config.errors import InputError
from llmctl.config.evals import EvalConfig
from llmctl.evals import results
from llmctl.evals.questions import Asked, ask, read_questions
from llmctl.evals.results import Answered, Figures
from llmctl.inference.conversation import open_engine
from llmctl.inference.engine import Engine
from llmctl.inference.options import Options
from llmctl.model.transformer import Transformer
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact, Input
from llmctl.tokens.batch import Batch
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.heldout import HeldOut, measure


@dataclass(frozen=True)
class EvaluationData:
    """What is measured, the same for every model.

    Attributes:
        heldout: the split to measure loss on; None where no rows are known.
        questions: as they are asked; empty where none were given.
        given: how many questions there were before the limit.
        chat: whether the questions are asked through the chat template.
    """

    heldout: Rows | None
    questions: list[Asked]
    given: int
    chat: bool


def run(job: Job[EvalConfig]) -> Product:
    """Measure the checkpoint, and an untrained model of its shape where asked; write the figures and every sample.

    Where its weights are rounded, it is measured unrounded too.

    Raises:
        InputError: there is nothing to measure on, or a question cannot be scored; it says which and why.
    """
    config, checkpoint = job.config, job.artifact()
    figures: dict[str, Figures] = {}
    answers: dict[str, list[Answered]] = {}
    options = Options(weights=config.weights)
    with open_engine(checkpoint.data, device=config.device, precision=config.precision, options=options) as engine:
        data = gather(job, engine.tokenizer, engine.context)
        figures[results.CHECKPOINT], answers[results.CHECKPOINT] = measured(job, engine, data)
        if config.baseline:
            with untrained(engine, config.seed) as floor:
                figures[results.UNTRAINED], answers[results.UNTRAINED] = measured(job, floor, data)
    if config.weights != "plain":
        with open_engine(checkpoint.data, device=config.device, precision=config.precision) as engine:
            figures[results.UNROUNDED], answers[results.UNROUNDED] = measured(job, engine, data)

    for name, named in figures.items():
        job.log({"model": name} | {metric: estimate.value for metric, estimate in named.items()})
    settings = {
        "chat": data.chat,
        "delimiter": config.delimiter,
        "precision": config.precision,
        "weights": config.weights,
        "seed": config.seed,
    }
    files = results.write(job.out, figures, answers, settings)
    totals = results.flat(figures)
    if data.given:
        scored = len(data.questions)
        totals |= {"choices.scored": scored, "choices.skipped.limit": data.given - scored}
    tasks = sorted({name.partition(".")[0] for name in figures[results.CHECKPOINT]})
    return Product(results.SCHEMA, semantic={"tasks": tasks}, totals=totals, files=files)


def gather(job: Job[EvalConfig], tokenizer: Tokenizer, context: int) -> EvaluationData:
    """Find the held-out rows and read the questions; every fault of the inputs shows here, before any scoring."""
    checkpoint = job.artifact()
    given = job.inputs.get("choices")
    source = _fitting_rows(job, checkpoint)
    if source is None and given is None:
        raise InputError(
            f"{checkpoint.ref} was not trained on rows of this store, and no questions are given",
            hint="give --rows, --choices or both",
        )
    heldout = _heldout(job, source, context)
    if given is None:
        return EvaluationData(heldout, [], 0, chat=False)
    _check_unseen(checkpoint, given)
    learned_chat = bool(checkpoint.manifest.semantic.get("chat", False))
    chat = learned_chat if job.config.chat == "auto" else job.config.chat
    questions = read_questions(given)
    asked = [
        ask(question, tokenizer, context, delimiter=job.config.delimiter, chat=chat)
        for question in questions[: job.config.limit]
    ]
    return EvaluationData(heldout, asked, len(questions), chat)


def _check_unseen(checkpoint: Artifact, questions: Input) -> None:
    """Refuse questions on documents that the checkpoint has learned from, where both tell what they hold out."""
    if not isinstance(questions, Artifact):
        return
    unseen, asked = (given.manifest.semantic.get("heldout_fraction") for given in (checkpoint, questions))
    if unseen is not None and asked is not None and asked > unseen:
        raise InputError(
            f"{questions.ref} asks about {asked:g} of all documents, {checkpoint.ref} was kept from {unseen:g} only",
            hint="give pack, chats and quiz the same heldout_fraction",
        )


def _fitting_rows(job: Job[EvalConfig], checkpoint: Artifact) -> Artifact | None:
    """The rows given or behind the checkpoint, None where there are none.

    Raises:
        InputError: their tokens are not those of the checkpoint's tokenizer.
    """
    if "rows" not in job.inputs:
        return None
    rows = job.artifact("rows")
    for fact in ("tokenizer", "vocab_size"):
        theirs, ours = rows.manifest.semantic.get(fact), checkpoint.manifest.semantic.get(fact)
        if theirs != ours:
            raise InputError(
                f"{rows.ref} and {checkpoint.ref} differ in {fact}: {theirs} and {ours}",
                hint="give --rows that were packed with the checkpoint's tokenizer",
            )
    return rows


def _heldout(job: Job[EvalConfig], source: Artifact | None, context: int) -> Rows | None:
    """The held-out split of `source`; None, with a note, where questions can be scored without it.

    Raises:
        InputError: its rows are longer than the model's context, or there is nothing to score at all.
    """
    if source is None:
        job.progress.note("no held-out loss: the rows behind this checkpoint are not known; give --rows")
        return None
    rows = Rows.open(source, "heldout")
    if rows.seq_len > context:
        raise InputError(
            f"{source.ref} has rows of {rows.seq_len} tokens, the model reads {context}",
            hint=f"pack with --seq-len {context}",
        )
    if rows.count:
        return rows
    if "choices" not in job.inputs:
        raise InputError(f"{source.ref} has no held-out row", hint="pack with a larger --heldout, or more documents")
    job.progress.note(f"no held-out loss: {source.ref} has no held-out row")
    return None


def untrained(engine: Engine, seed: int) -> Engine:
    """An engine over a model of the same shape, dtype and device with random weights."""
    model = Transformer(engine.model.config, engine.model.vocab_size).to(engine.model.device, engine.model.dtype)
    model.init_weights(seed)
    return Engine(model, engine.tokenizer, max_running=1)


def measured(job: Job[EvalConfig], engine: Engine, data: EvaluationData) -> tuple[Figures, list[Answered]]:
    """All figures of one model, and its answers."""
    figures: Figures = {}
    engine.model.eval()
    if data.heldout is not None:
        figures |= results.heldout_figures(_loss(job, engine, data.heldout))
    answers = _answers(job, engine, data.questions)
    if answers:
        figures |= results.choice_figures(answers)
    for name, estimate in figures.items():
        if not math.isfinite(estimate.value):
            raise InputError(f"{name} is {estimate.value}", hint="the weights have diverged, or hold NaN: train again")
    return figures, answers


def _loss(job: Job[EvalConfig], engine: Engine, rows: Rows) -> HeldOut:
    """Score every held-out row once. The engine's thread sleeps meanwhile, so its model may be used from here."""
    size = max(1, job.config.batch_tokens // rows.seq_len)

    def batches() -> Iterator[Batch]:
        for start in range(0, rows.count, size):
            yield rows.batch(np.arange(start, min(start + size, rows.count), dtype=np.int64))

    def report(count: int) -> None:
        job.progress.update(min(count * size, rows.count), rows.count, "held-out rows")

    return measure(engine.model, batches(), engine.tokenizer.byte_lengths, device=engine.model.device, done=report)


def _answers(
    job: Job[EvalConfig],
    engine: Engine,
    questions: list[Asked],
) -> list[Answered]:
    """The log-likelihood of every choice of every question."""
    if not questions:
        return []
    pairs = [pair for asked in questions for pair in asked.pairs]
    scores = iter(engine.score(pairs, batch_tokens=job.config.batch_tokens))
    answers = []
    for asked in questions:
        values = tuple(next(scores).logprob for _ in asked.pairs)
        if any(math.isnan(value) for value in values):
            raise InputError(
                f"question {asked.question.id}: a log-likelihood is NaN", hint="the checkpoint's weights are damaged"
            )
        answers.append(Answered(asked, values))
    job.progress.update(len(questions), len(questions), "questions")
    return answers
