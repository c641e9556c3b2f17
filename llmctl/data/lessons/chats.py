"""The stage `chats`: questions on documentation, and answers to learn from.

Those about entries of held-out documents are written apart, as the split `heldout`, and nothing trains on them: the
split is the house rule on the document's id, as in `pack`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.lessons import ChatsConfig
from llmctl.data.lessons.documentation import Entry, read_entries, split_entries
from llmctl.data.lessons.draw import pick, sample
from llmctl.data.lessons.sides import write_sides
from llmctl.data.tables import CHATS, SCHEMA_NAMES
from llmctl.pipeline.job import Job, Product

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
    """Write one to a few chats for each entry, sorted by id: those to learn from, and the held-out ones apart."""
    config = job.config
    found = read_entries(job.inputs["input"])
    owners = Counter(entry.summary for entry in found)
    learned, heldout = split_entries(found, config.heldout_fraction)
    if not learned:
        raise InputError("every entry is held out", hint="give more documents or a smaller heldout_fraction")
    sides = {"train": _side(learned, owners, config), "heldout": _side(heldout, owners, config)}
    files, digest = write_sides(job.out, CHATS, sides)
    totals: dict[str, int | float | str] = {
        "chats": len(sides["train"]),
        "heldout_chats": len(sides["heldout"]),
        "entries": len(learned),
        "heldout_entries": len(heldout),
        "rows_digest": digest.hexdigest(),
    }
    job.log({"stage": "chats", **totals})
    return Product(SCHEMA_NAMES["chats"], {"heldout_fraction": config.heldout_fraction}, totals, files)


def _side(entries: list[Entry], owners: Counter[str], config: ChatsConfig) -> list[dict[str, Any]]:
    """The chats about `entries`, at most the limit, by id."""
    chats: list[dict[str, Any]] = []
    for entry in entries:
        # A summary that several entries share, or that gives the name away, asks for no one entry's name.
        reversible = owners[entry.summary] == 1 and not entry.names_itself() and entry.kind != "module"
        chats += chats_of(entry, config, reversible=reversible)
    return sorted(sample(chats, config.limit, config.seed), key=lambda chat: str(chat["id"]))
