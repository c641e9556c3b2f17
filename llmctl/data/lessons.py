"""Lessons from documentation: chats to learn from, and a quiz about entries that no chat mentions.

Both parse the same documents and split them by the house rule on the document's id, so a held-out function
is in no training chat (and, through `pack`, in no training row).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import xxhash

from llmctl.config.data import ChatsConfig, QuizConfig
from llmctl.config.errors import InputError
from llmctl.data.documentation import Entry, entries
from llmctl.data.split import is_heldout
from llmctl.data.tables import CHATS, PROMPTS, SCHEMA_NAMES, TableWriter, read_batches
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Input

T = TypeVar("T")

QUESTIONS = {
    "function": (
        "What does `{name}` do?",
        "What is `{name}` for?",
        "Explain `{name}` in a sentence or two.",
        "Tell me what `{name}` does.",
        "Describe `{name}`.",
        "I came across `{name}`. What does it do?",
    ),
    "class": (
        "What is `{name}`?",
        "What is the class `{name}` for?",
        "Explain `{name}` in a sentence or two.",
        "Tell me about the class `{name}`.",
        "Describe `{name}`.",
        "I came across `{name}`. What is it?",
    ),
    "module": (
        "What is the module `{name}` for?",
        "What does the module `{name}` offer?",
        "Explain the module `{name}` in a sentence or two.",
        "Tell me about the module `{name}`.",
        "Describe the module `{name}`.",
        "When would I import `{name}`?",
    ),
}
REVERSE = (
    "Which {kind} fits this description? {summary}",
    "What is the name of the {kind} described here: {summary}",
    "Name the Python {kind} that is documented as follows. {summary}",
)
CALLS = (
    "How do I call `{name}`?",
    "What arguments does `{name}` take?",
    "Show me the signature of `{name}`.",
)

# `prompt` ends in "Answer:" and every choice starts with a space: prompt + choice is scored as it stands.
PROMPT = "Question: {question}\nAnswer:"
FEWEST_QUIZ_WORDS = 4  # of a summary that can be told from others
NEAREST = 6  # wrong choices are drawn from this many shorter and longer candidates for each that is wanted
MOST_SHARED_WORDS = 0.5  # Jaccard similarity of two choices' words


def key(seed: int, *parts: str) -> int:
    """A 64-bit number from a seed and strings: the only source of chance in this module."""
    return xxhash.xxh64_intdigest("\x00".join(parts).encode(), seed=seed)


def pick(items: Sequence[T], count: int, seed: int, *parts: str) -> list[T]:
    """`count` of `items` without repetition, chosen and ordered by hash."""
    order = sorted(range(len(items)), key=lambda index: key(seed, *parts, str(index)))
    return [items[index] for index in order[:count]]


def read_entries(given: Input) -> list[Entry]:
    """Every documented entry of the input, sorted by id; an `InputError` where there is none."""
    found: list[Entry] = []
    for batch in read_batches(given, ["id", "text", "source"]):
        for document_id, text, source in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            found += entries(document_id, text, source)
    if not found:
        raise InputError(
            f"{given.ref} holds no reference documentation",
            hint="lessons are made from documents such as those of llmctl collect python-docs",
        )
    return sorted(found, key=lambda entry: entry.id)


def split_entries(found: Iterable[Entry], fraction: float) -> tuple[list[Entry], list[Entry]]:
    """(entries to learn from, held-out entries)."""
    learned: list[Entry] = []
    heldout: list[Entry] = []
    for entry in found:
        (heldout if is_heldout(entry.document, fraction) else learned).append(entry)
    return learned, heldout


def chats_of(entry: Entry, config: ChatsConfig, *, reversible: bool) -> Iterator[dict[str, Any]]:
    """The chats about one entry: what it does, which one does this, how it is called."""
    answer = entry.first_sentences(config.max_answer_words)
    for number, question in enumerate(pick(QUESTIONS[entry.kind], config.phrasings, config.seed, entry.id)):
        yield _chat(entry, f"what-{number}", question.format(name=entry.name), answer)
    if config.reverse and reversible:
        (question,) = pick(REVERSE, 1, config.seed, entry.id, "reverse")
        yield _chat(entry, "which", question.format(kind=entry.kind, summary=entry.summary), f"`{entry.name}`")
    if entry.call and entry.kind == "function":
        (question,) = pick(CALLS, 1, config.seed, entry.id, "call")
        yield _chat(entry, "call", question.format(name=entry.name), f"`{entry.call}`")


def _chat(entry: Entry, part: str, question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {
        "id": f"{entry.id}?{part}",
        "messages": messages,
        "source": entry.source,
        "document": entry.document,
    }


def run_chats(job: Job[ChatsConfig]) -> Product:
    """Write one to a few chats for each entry that is not held out, sorted by id."""
    config = job.config
    found = read_entries(job.inputs["input"])
    learned, heldout = split_entries(found, config.heldout_fraction)
    owners = Counter(entry.summary for entry in learned)
    chats: list[dict[str, Any]] = []
    for entry in learned:
        # A summary that several entries share, or that gives the name away, asks for no one entry's name.
        reversible = owners[entry.summary] == 1 and not entry.names_itself() and entry.kind != "module"
        chats += chats_of(entry, config, reversible=reversible)
    chats = sorted(_sample(chats, config.limit, config.seed), key=lambda chat: str(chat["id"]))
    if not chats:
        raise InputError("every entry is held out", hint="give more documents or a smaller heldout_fraction")
    with TableWriter(job.out, CHATS) as writer:
        _write(writer, chats)
        files = writer.close()
    totals: dict[str, int | float | str] = {"chats": len(chats), "entries": len(learned), "heldout": len(heldout)}
    totals["rows_digest"] = writer.digest.hexdigest()
    job.log({"stage": "chats", **totals})
    return Product(SCHEMA_NAMES["chats"], {"heldout_fraction": config.heldout_fraction}, totals, files)


def run_quiz(job: Job[QuizConfig]) -> Product:
    """Write one multiple-choice question for each suitable held-out entry, sorted by id.

    Left out, and counted: summaries of less than four words, those that name the entry, those that also
    belong to an entry that may be learned from, entries beyond `per_document`, and entries for which there
    are not enough distinct wrong choices.
    """
    config = job.config
    learned, heldout = split_entries(read_entries(job.inputs["input"]), config.heldout_fraction)
    suitable, skipped = _suitable(heldout, {entry.summary for entry in learned}, config)
    rows = []
    for entry in suitable:
        wrong = _wrong_choices(entry, suitable, config)
        if len(wrong) < config.choices - 1:
            skipped["too_few_choices"] += 1
        else:
            rows.append(_question(entry, wrong, config))
    rows = sorted(_sample(rows, config.limit, config.seed), key=lambda row: str(row["id"]))
    if not rows:
        raise InputError(
            f"none of {len(heldout)} held-out entries makes a question",
            hint="give more documents or a larger heldout_fraction",
        )
    with TableWriter(job.out, PROMPTS) as writer:
        _write(writer, rows)
        files = writer.close()
    totals: dict[str, int | float | str] = {
        "questions": len(rows),
        "heldout": len(heldout),
        "chance": 1 / config.choices,
    }
    totals |= {f"skipped.{reason}": count for reason, count in sorted(skipped.items())}
    totals["rows_digest"] = writer.digest.hexdigest()
    job.log({"stage": "quiz", **totals})
    return Product(SCHEMA_NAMES["prompts"], {"choices": config.choices}, totals, files)


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


def _wrong_choices(entry: Entry, others: list[Entry], config: QuizConfig) -> list[str]:
    """Summaries of other entries of the same kind, of nearly the same length, and unlike each other.

    How many are shorter and how many longer is drawn too: were it left to chance, the right answer would
    mostly be of middling length, and length would tell it.
    """
    wanted = config.choices - 1
    ranked = [other for other in others if other.kind == entry.kind and other.document != entry.document]
    ranked = sorted([*ranked, entry], key=lambda other: (len(other.summary), other.id))
    place = ranked.index(entry)
    below = ranked[max(0, place - NEAREST * wanted) : place]
    above = ranked[place + 1 : place + 1 + NEAREST * wanted]
    shorter = key(config.seed, entry.id, "shorter") % config.choices
    chosen = [entry.summary]
    for candidates, count in ((below, 1 + shorter), (above, 1 + wanted), (below, 1 + wanted)):
        for other in pick(candidates, len(candidates), config.seed, entry.id, "wrong"):
            if len(chosen) < count and all(_shared(other.summary, kept) < MOST_SHARED_WORDS for kept in chosen):
                chosen.append(other.summary)
    return pick(chosen[1:], wanted, config.seed, entry.id, "order")


def _shared(one: str, other: str) -> float:
    a, b = set(one.casefold().split()), set(other.casefold().split())
    return len(a & b) / len(a | b)


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


def _sample(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """At most `limit` rows, chosen by hash of their ids."""
    return sorted(rows, key=lambda row: key(seed, row["id"], "sample"))[:limit]


def _write(writer: TableWriter, rows: list[dict[str, Any]]) -> None:
    for start in range(0, len(rows), 1024):
        writer.write_rows(rows[start : start + 1024])
