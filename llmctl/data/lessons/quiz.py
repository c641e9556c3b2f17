"""The stage `quiz`: multiple-choice questions on entries that no chat and, through `pack`, no row is about."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.lessons import QuizConfig
from llmctl.data.lessons.chats import QUESTIONS
from llmctl.data.lessons.documentation import Entry, read_entries, split_entries
from llmctl.data.lessons.draw import key, pick, sample
from llmctl.data.lessons.near import Answers
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import PROMPTS, SCHEMA_NAMES
from llmctl.pipeline.job import Job, Product

# `prompt` ends in "Answer:" and every choice starts with a space: prompt + choice is scored as it stands.
PROMPT = "Question: {question}\nAnswer:"
FEWEST_QUIZ_WORDS = 4  # of a summary that can be told from others


def run_quiz(job: Job[QuizConfig]) -> Product:
    """Write one multiple-choice question for each suitable held-out entry, sorted by id.

    Left out, and counted: summaries of less than four words, those that name the entry, those that also
    belong to an entry that may be learned from, entries beyond `per_document`, and entries for which there
    are not enough distinct wrong choices.
    """
    config = job.config
    learned, heldout = split_entries(read_entries(job.inputs["input"]), config.heldout_fraction)
    suitable, skipped = _suitable(heldout, {entry.summary for entry in learned}, config)
    rows, summaries = [], Answers(suitable, lambda entry: entry.summary)
    for entry in suitable:
        wrong = summaries.wrong(entry, config.choices - 1, config.seed)
        if len(wrong) < config.choices - 1:
            skipped["too_few_choices"] += 1
        else:
            rows.append(_question(entry, wrong, config))
    rows = sorted(sample(rows, config.limit, config.seed), key=lambda row: str(row["id"]))
    if not rows:
        raise InputError(
            f"none of {len(heldout)} held-out entries makes a question",
            hint="give more documents or a larger heldout_fraction",
        )
    with TableWriter(job.out, PROMPTS) as writer:
        writer.write_rows(rows)
        files = writer.close()
    totals: dict[str, int | float | str] = {
        "questions": len(rows),
        "heldout": len(heldout),
        "chance": 1 / config.choices,
    }
    totals |= {f"skipped.{reason}": count for reason, count in sorted(skipped.items())}
    totals["rows_digest"] = writer.digest.hexdigest()
    job.log({"stage": "quiz", **totals})
    facts = {"choices": config.choices, "heldout_fraction": config.heldout_fraction}
    return Product(SCHEMA_NAMES["prompts"], facts, totals, files)


def _suitable(heldout: list[Entry], known: set[str], config: QuizConfig) -> tuple[list[Entry], Counter[str]]:
    """Held-out functions and classes to ask about, and how many were skipped for which reason."""
    skipped: Counter[str] = Counter()
    per_document: dict[str, list[Entry]] = defaultdict(list)
    asked: set[str] = set()
    for entry in heldout:
        if entry.kind == "module":
            skipped["module"] += 1
        elif len(entry.summary.split()) < FEWEST_QUIZ_WORDS:
            skipped["too_short"] += 1
        elif entry.names_itself():
            skipped["names_itself"] += 1
        elif entry.summary in known:
            skipped["learned_elsewhere"] += 1
        elif entry.summary in asked:
            skipped["same_summary"] += 1
        else:
            asked.add(entry.summary)
            per_document[entry.document].append(entry)
    chosen: list[Entry] = []
    for document, found in per_document.items():
        chosen += pick(found, config.per_document, config.seed, document)
        skipped["too_many_of_document"] += max(0, len(found) - config.per_document)
    return sorted(chosen, key=lambda entry: entry.id), +skipped


def _question(entry: Entry, wrong: list[str], config: QuizConfig) -> dict[str, Any]:
    question = QUESTIONS[entry.kind][0].format(name=entry.name)
    answer = key(config.seed, entry.id, "position") % config.choices
    choices = [*wrong[:answer], entry.summary, *wrong[answer:]]
    return {
        "id": entry.id,
        "prompt": PROMPT.format(question=question),
        "choices": [f" {choice}" for choice in choices],
        "answer": answer,
        "source": entry.source,
        "question": question,
    }
