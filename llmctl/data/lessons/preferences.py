"""The stage `preferences`: questions on documentation, with the right answer preferred to one about something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.lessons import PreferencesConfig
from llmctl.data.lessons.chats import QUESTIONS
from llmctl.data.lessons.documentation import Entry, read_entries, split_entries
from llmctl.data.lessons.draw import pick, sample
from llmctl.data.lessons.near import Answers
from llmctl.data.lessons.sides import write_sides
from llmctl.data.tables import PREFERENCES, SCHEMA_NAMES
from llmctl.pipeline.job import Job, Product


def run_preferences(job: Job[PreferencesConfig]) -> Product:
    """Write preferences, sorted by id: those to learn from, and apart those about entries of held-out documents.

    A rejected answer is another entry's of the same side, so that it is as fluent as the chosen one and only wrong.
    Left out of the held-out side, and counted: answers that are also those of an entry that is learned from.
    """
    config = job.config
    learned, heldout = split_entries(read_entries(job.inputs["input"]), config.heldout_fraction)
    known = {_answer(entry, config) for entry in learned}
    unknown = [entry for entry in heldout if _answer(entry, config) not in known]
    sides = {"train": _side(learned, config), "heldout": _side(unknown, config)}
    if not sides["train"]:
        raise InputError(
            f"none of {len(learned)} entries to learn from has another with a different answer of its length",
            hint="give more documents or a smaller heldout_fraction",
        )
    files, digest = write_sides(job.out, PREFERENCES, sides)
    totals: dict[str, int | float | str] = {
        "preferences": len(sides["train"]),
        "heldout_preferences": len(sides["heldout"]),
        "skipped.learned_elsewhere": len(heldout) - len(unknown),
        "rows_digest": digest.hexdigest(),
    }
    job.log({"stage": "preferences", **totals})
    return Product(SCHEMA_NAMES["preferences"], {"heldout_fraction": config.heldout_fraction}, totals, files)


def _side(entries: list[Entry], config: PreferencesConfig) -> list[dict[str, Any]]:
    """The preferences about `entries`, at most the limit, by id."""
    answers = Answers(entries, lambda entry: _answer(entry, config))
    rows = [row for entry in entries for row in _preferences(entry, answers, config)]
    return sorted(sample(rows, config.limit, config.seed), key=lambda row: str(row["id"]))


def _preferences(entry: Entry, answers: Answers, config: PreferencesConfig) -> Iterator[dict[str, Any]]:
    """One for each phrasing, each with a wrong answer of its own where there are as many."""
    questions = pick(QUESTIONS[entry.kind], config.phrasings, config.seed, entry.id)
    wrong = answers.wrong(entry, config.phrasings, config.seed)
    for number, (question, rejected) in enumerate(zip(questions, wrong, strict=False)):
        yield {
            "id": f"{entry.id}?what-{number}",
            "prompt": [{"role": "user", "content": question.format(name=entry.name)}],
            "chosen": [{"role": "assistant", "content": _answer(entry, config)}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "margin": None,
            "source": entry.source,
            "document": entry.document,
        }


def _answer(entry: Entry, config: PreferencesConfig) -> str:
    return entry.first_sentences(config.max_answer_words)
