"""The stage `eval`: held-out loss, multiple choice and tasks of a checkpoint, beside chance and an untrained model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.config.devices import Weights
from llmctl.config.errors import InputError, UsageError
from llmctl.config.evals import EvalConfig
from llmctl.config.tasks import GroupConfig
from llmctl.evals import contamination, report, results
from llmctl.evals.cache import RequestCache
from llmctl.evals.found import Found
from llmctl.evals.gates import check_gates
from llmctl.evals.load import Loaded, check_able, check_data, check_reasoning, loaded
from llmctl.evals.local import LocalModel
from llmctl.evals.measure import Figures, Measured, group_figures, measured
from llmctl.evals.questions import CHOICES, item_of, read_questions
from llmctl.evals.remote import Fetched, RemoteModel
from llmctl.evals.requests import Model, Prompt
from llmctl.evals.scorer import Scorer
from llmctl.inference.conversation import open_engine
from llmctl.inference.engine import Engine
from llmctl.inference.options import Options
from llmctl.inference.remote import card_of
from llmctl.model.transformer import Transformer
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact, Input
from llmctl.tokens.batch import Batch
from llmctl.tokens.chat import render_prompt_text
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.heldout import HeldOut, measure


@dataclass(frozen=True)
class EvaluationData:
    """What is measured, the same for every model.

    Attributes:
        heldout: the split to measure loss on; None where no rows are known.
        tasks: what is asked, the questions of --choices among them.
        scorer: the reward model that chooses among several texts; None where there is none.
    """

    heldout: Rows | None
    tasks: tuple[Loaded, ...]
    scorer: Scorer | None = None


def run(job: Job[EvalConfig]) -> Product:
    """Measure the checkpoint, and an untrained model of its shape where asked; write the figures and every sample.

    Where its weights are rounded, it is measured unrounded too.

    Raises:
        InputError: there is nothing to measure on, or an item cannot be asked; it says which and why.
    """
    config = job.config
    check_data(config, job.group("data"))
    check_able(config)
    check_reasoning(config, has_scorer="scorer" in job.inputs)
    check_gates(config, has_choices="choices" in job.inputs, has_scorer="scorer" in job.inputs)
    found = Found()
    if config.server.url:
        data = _served(job, found)
        tokenizer = None
    else:
        data, tokenizer = _local(job, found)
    for name, named_figures in found.figures.items():
        job.log({"model": name} | {metric: estimate.value for metric, estimate in named_figures.items()})
    files = results.write(
        job.out,
        found.figures,
        found.measured,
        _settings(config, data),
        lambda prompt: spelled(prompt, tokenizer),
    )
    given = {task.config.task: task.given for task in data.tasks}
    totals = results.flat(found.figures) | results.counts(found.measured[results.CHECKPOINT], given) | found.costs
    measured_ref = config.server.url or job.artifact().ref
    report.write(
        job.out,
        f"Evaluation of {measured_ref}",
        results.by_task(found.figures),
        found.measured[results.CHECKPOINT],
        found.weights(config.weights),
    )
    if config.contamination:
        learned = {key: one for key, one in job.group("learned").items() if isinstance(one, Artifact)}
        if not learned:
            job.progress.note("contamination: nothing that this checkpoint has learned from is in the store")
        hits = contamination.hits_of(data.tasks, learned, config.ngram_words, job.progress)
        files |= contamination.write(job.out, hits)
        totals |= contamination.counts(data.tasks, hits) | {"learned_from": len(learned)}
        if hits:
            job.progress.note(f"contamination: {contamination.named(hits)}")
    tasks = sorted({name.partition(".")[0] for name in found.figures[results.CHECKPOINT]})
    return Product(results.SCHEMA, semantic={"tasks": tasks}, totals=totals, files=files)


def _local(job: Job[EvalConfig], found: Found) -> tuple[EvaluationData, Tokenizer]:
    """Measure the checkpoint, and what is to be seen beside it."""
    config = job.config
    identity = f"{job.artifact().digest}:{config.precision}"
    with _opened(job, weights=config.weights) as engine:
        data = gather(job, engine.tokenizer, engine.context)
        tokenizer = engine.tokenizer
        measured_model(job, engine, data, found, results.CHECKPOINT, f"{identity}:{config.weights}")
        if config.baseline:
            with untrained(engine, config) as floor:
                named = f"{identity}:untrained:{config.seed}"
                measured_model(job, floor, data, found, results.UNTRAINED, named)
    if config.weights != "plain":
        with _opened(job, weights="plain") as engine:
            measured_model(job, engine, data, found, results.UNROUNDED, f"{identity}:plain")
    for weights in config.variants:
        with _opened(job, weights=weights) as engine:
            measured_heldout(job, engine, data, found, weights)
    return data, tokenizer


def _served(job: Job[EvalConfig], found: Found) -> EvaluationData:
    """Measure a server's model.

    Raises:
        UsageError: a checkpoint is given too, or what only a checkpoint has is asked for.
    """
    config = job.config
    if misplaced := [role for role in ("input", "rows", "choices") if role in job.inputs]:
        raise UsageError(f"{misplaced[0]} is given beside --model", hint="measure the one or the other")
    if not config.tasks or config.baseline or config.weights != "plain" or config.variants:
        raise UsageError("a server answers tasks alone", hint="give --tasks, without baseline, weights and variants")
    chat = config.chat is True
    tasks = tuple(loaded(task, config, job.group("data"), None, chat=chat) for task in config.all_tasks)
    if chat and (cued := [task.config.task for task in tasks if task.config.budget.tokens and task.config.budget.cue]):
        job.progress.note(f"{', '.join(cued)}: a chat over a server is cut where its budget ends, without its cue")
    data = EvaluationData(None, tasks, _scorer(job))
    fetched: Fetched = job.fetched
    card = fetched.card or card_of(config.server)
    with closing(RemoteModel(config.server, card, config.max_running)) as model:
        found.add(results.CHECKPOINT, *_asked(job, model, data))
    return data


def _settings(config: EvalConfig, data: EvaluationData) -> dict[str, Any]:
    """What decided the figures, to be read beside them."""
    return {
        "chat": {task.config.task: task.chat for task in data.tasks},
        "delimiter": config.delimiter,
        "overlong": config.overlong,
        "precision": config.precision,
        "weights": config.weights,
        "seed": config.seed,
        "shots": {task.config.task: task.config.num_fewshot for task in data.tasks},
        "draws": {task.config.task: task.config.repeats for task in data.tasks},
        "budgets": {task.config.task: task.config.budget.tokens for task in data.tasks if task.config.budget.tokens},
        "server": config.server.url,
    }


def _opened(job: Job[EvalConfig], *, weights: Weights) -> Engine:
    config = job.config
    return open_engine(
        job.artifact().data,
        device=config.device,
        precision=config.precision,
        max_running=config.max_running,
        options=Options(weights=weights),
    )


def spelled(prompt: Prompt, tokenizer: Tokenizer | None) -> str:
    """The text of a prompt as the model got it; of a chat with a server, whose template is not known, its messages."""
    if not prompt.chat:
        return prompt.text
    return json.dumps(prompt.messages) if tokenizer is None else render_prompt_text(tokenizer, prompt.messages)


def gather(job: Job[EvalConfig], tokenizer: Tokenizer, context: int) -> EvaluationData:
    """Find the held-out rows and read the tasks; every fault of the inputs shows here, before any scoring."""
    config, checkpoint = job.config, job.artifact()
    questions, data = job.inputs.get("choices"), job.group("data")
    source = _fitting_rows(job, checkpoint)
    if source is None and questions is None and not config.tasks:
        raise InputError(
            f"{checkpoint.ref} was not trained on rows of this store, and no questions are given",
            hint="give --rows, --choices or --tasks",
        )
    heldout = _heldout(job, source, context)
    if config.variants and heldout is None:
        raise InputError("variants are measured on held-out rows, and there are none", hint="give --rows")
    tasks: list[Loaded] = []
    if questions is not None:
        _check_unseen(checkpoint, questions)
        learned_chat = bool(checkpoint.manifest.semantic.get("chat", False))
        tasks.append(_choices(config, questions, chat=learned_chat if config.chat == "auto" else config.chat))
    tasks += [loaded(task, config, data, tokenizer, chat=config.chat is True) for task in config.all_tasks]
    return EvaluationData(heldout, tuple(tasks), _scorer(job))


def _scorer(job: Job[EvalConfig]) -> Scorer | None:
    return Scorer(job.artifact("scorer"), job.config.device) if "scorer" in job.inputs else None


def _choices(config: EvalConfig, given: Input, *, chat: bool) -> Loaded:
    questions = read_questions(given)
    items = [
        item_of(question, number, delimiter=config.delimiter, chat=chat)
        for number, question in enumerate(questions[: config.limit])
    ]
    return Loaded(CHOICES, tuple(items), len(questions), chat)


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
    if "choices" not in job.inputs and not job.config.tasks:
        raise InputError(f"{source.ref} has no held-out row", hint="pack with a larger --heldout, or more documents")
    job.progress.note(f"no held-out loss: {source.ref} has no held-out row")
    return None


def untrained(engine: Engine, config: EvalConfig) -> Engine:
    """An engine over a model of the same shape, dtype and device with random weights."""
    model = Transformer(engine.model.config, engine.model.vocab_size).to(engine.model.device, engine.model.dtype)
    model.init_weights(config.seed)
    return Engine(model, engine.tokenizer, max_running=config.max_running)


def measured_model(
    job: Job[EvalConfig], engine: Engine, data: EvaluationData, found: Found, name: str, identity: str
) -> None:
    """All figures of one model, its tasks, and what it takes."""
    config = job.config
    measured_heldout(job, engine, data, found, name)
    model = LocalModel(engine, identity, batch_tokens=config.batch_tokens, truncate=config.overlong == "truncate")
    more, tasks = _asked(job, model, data)
    found.add(name, found.figures[name] | more, tasks)


def measured_heldout(job: Job[EvalConfig], engine: Engine, data: EvaluationData, found: Found, name: str) -> None:
    """Figures of one model on the held-out rows, where there are any, and what it takes, where weights are compared."""
    figures: Figures = {}
    engine.model.eval()
    started = time.perf_counter()
    if data.heldout is not None:
        figures |= results.heldout_figures(_loss(job, engine, data.heldout))
        _check_finite(job, figures)
    seconds = time.perf_counter() - started
    found.add(name, figures, [])
    if name != results.UNTRAINED and (job.config.weights != "plain" or job.config.variants):
        found.cost(name, engine, seconds)


def _asked(job: Job[EvalConfig], model: Model, data: EvaluationData) -> tuple[Figures, list[Measured]]:
    """Figures of the tasks and of their groups, and what every item gave."""
    config, fetched = job.config, job.fetched or Fetched()
    figures: Figures = {}
    tasks: list[Measured] = []
    with RequestCache(fetched.requests, model.identity) as cache:
        for task in data.tasks:
            tasks.append(measured(task, model, cache, config, _reporter(job, task.config.task), data.scorer))
            figures |= tasks[-1].figures
            for reason, count in sorted(tasks[-1].skipped.items()):
                job.progress.note(f"{task.config.task}: {count} of {len(task.items)} items left out: {reason}")
    figures |= group_figures([one for one in config.tasks if isinstance(one, GroupConfig)], figures)
    _check_finite(job, figures)
    return figures, tasks


def _reporter(job: Job[EvalConfig], task: str) -> Callable[[int, int], None]:
    return lambda count, total: job.progress.update(count, total, f"requests of {task}")


def _check_finite(job: Job[EvalConfig], figures: Figures) -> None:
    """Refuse what is no number; a perplexity of words too large for one is left out, for it says nothing."""
    for name, estimate in list(figures.items()):
        if math.isinf(estimate.value) and name.endswith(".word_perplexity"):
            job.progress.note(f"{name} is larger than a number can be, and left out")
            del figures[name]
        elif not math.isfinite(estimate.value):
            raise InputError(f"{name} is {estimate.value}", hint="the weights have diverged, or hold NaN: train again")


def _loss(job: Job[EvalConfig], engine: Engine, rows: Rows) -> HeldOut:
    """Score every held-out row once. The engine's thread sleeps meanwhile, so its model may be used from here."""
    size = max(1, job.config.batch_tokens // rows.seq_len)

    def batches() -> Iterator[Batch]:
        for start in range(0, rows.count, size):
            yield rows.batch(np.arange(start, min(start + size, rows.count), dtype=np.int64))

    def report(count: int) -> None:
        job.progress.update(min(count * size, rows.count), rows.count, "held-out rows")

    return measure(engine.model, batches(), engine.tokenizer.byte_lengths, device=engine.model.device, done=report)
