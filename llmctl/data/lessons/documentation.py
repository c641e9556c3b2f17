"""Entries of reference documentation: a name, how it is called, and the sentences that sum it up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmctl.config.errors import InputError
from llmctl.data.split import is_heldout
from llmctl.data.tables import read_batches
from llmctl.store.artifact import Input

HEADING = re.compile(r"(?:(class|module) )?([A-Za-z_][\w.]*)(\(.*)?")
# Docstrings of C code often open with a call: `D.get(k[,d]) -> D[k] if k in D, else d.`
CALL = re.compile(r"[A-Za-z_][\w.]*\([^\n]{0,200}?\)(?:[ ]*->[ ]*[\w\[\], |()]{1,80}?)?[ ]*(?:[:.]|--|\n|$)\s*")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[A-Z`'\"(])")
ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|no|fig|al)|\b[A-Z])\.$", re.IGNORECASE)
LONGEST_ABBREVIATION = len("approx.")
NOT_PROSE = re.compile(r">>>|::|^\s*[-*+|=~^]{2,}|\\n|https?:|\bdeprecated\b", re.IGNORECASE)
FEWEST_WORDS = 3  # of a summary that says something
WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True)
class Entry:
    """One function, class, method or module that a document describes.

    Attributes:
        document: id of the document, which decides whether the entry is held out.
        id: of the entry; a method's ends in `#name`.
        source: of the document.
        kind: `function`, `class` or `module`; a method is a function.
        name: dotted, as users write it.
        call: the name with its arguments, or "" where they are not known.
        sentences: of the docstring's first paragraph, white space normalised.
    """

    document: str
    id: str
    source: str
    kind: str
    name: str
    call: str
    sentences: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first sentence."""
        return self.sentences[0]

    @property
    def short_name(self) -> str:
        """The name's last part."""
        return self.name.rpartition(".")[2]

    def names_itself(self) -> bool:
        """Whether the summary holds the entry's own (short) name as a word, in any case."""
        return re.search(rf"\b{re.escape(self.short_name)}\b", self.summary, re.IGNORECASE) is not None

    def first_sentences(self, max_words: int) -> str:
        """As many whole sentences, at least one, as fit into `max_words`."""
        taken = [self.summary]
        for sentence in self.sentences[1:]:
            if sum(len(s.split()) for s in taken) + len(sentence.split()) > max_words:
                break
            taken.append(sentence)
        return " ".join(taken)


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


def entries(document_id: str, text: str, source: str) -> Iterator[Entry]:
    """The entries of one document; none where it is not laid out as reference documentation.

    The layout: the first line is `name(arguments)`, `class name(arguments)` or `module name`, where the
    document's id ends in `/name`; then a blank line and the docstring. In a class, each method follows as
    a line `Class.method(arguments)` between blank lines, and its docstring.
    """
    heading, _, body = text.partition("\n\n")
    match = HEADING.fullmatch(heading)
    name = document_id.rpartition("/")[2].partition("~")[0]
    if match is None or match[2] != name:
        return
    kind = match[1] or "function"
    sections = _sections(name, body) if kind == "class" else [("", "", body)]
    for method, arguments, docstring in sections:
        sentences = summary_sentences(docstring)
        if not sentences:
            continue
        if not method:
            call = f"{name}{_arguments(match[3])}" if match[3] else ""
            yield Entry(document_id, document_id, source, kind, name, call, sentences)
        else:
            full = f"{name}.{method}"
            call = f"{full}{_arguments(arguments)}" if arguments else ""
            yield Entry(document_id, f"{document_id}#{method}", source, "function", full, call, sentences)


def _sections(name: str, body: str) -> list[tuple[str, str, str]]:
    """(method, arguments, docstring) of a class's text; the first is the class itself with both empty."""
    title = re.escape(name.rpartition(".")[2])
    parts = re.split(rf"(?:^|\n\n){title}\.(\w+)(\(.*)?\n\n", body)
    found = [("", "", parts[0])]
    found += [(parts[i], parts[i + 1] or "", parts[i + 2]) for i in range(1, len(parts), 3)]
    return found


def _arguments(text: str) -> str:
    """The argument list without `self` and without what is returned."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            text = text[: position + 1]
            break
    return re.sub(r"^\((?:self|cls|type)(?:, /)?(?:, )?", "(", text).replace("(/, ", "(")


def summary_sentences(docstring: str) -> tuple[str, ...]:
    """Sentences of the first paragraph of prose; none where it is code, a bare call or no sentence."""
    text = docstring.strip()
    opening = CALL.match(text)
    if opening:
        text = text[opening.end() :].strip()
    paragraph = " ".join(text.partition("\n\n")[0].split())
    if NOT_PROSE.search(paragraph) or not paragraph[:1].isalpha() or len(WORD.findall(paragraph)) < 2:
        return ()
    sentences = list(_sentences(paragraph))
    if sentences[-1].endswith(":"):  # it introduces what is not in this paragraph
        sentences.pop()
    if not sentences or len(sentences[0].split()) < FEWEST_WORDS:
        return ()
    first = sentences[0]
    sentences[0] = first[0].upper() + first[1:]
    if sentences[-1][-1] not in ".!?":
        sentences[-1] += "."
    return tuple(sentences)


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for end in SENTENCE_END.finditer(paragraph):
        before = paragraph[max(start, end.start() - LONGEST_ABBREVIATION - 1) : end.start()]
        if not ABBREVIATION.search(before):
            yield paragraph[start : end.end()].strip()
            start = end.end()
    yield paragraph[start:].strip()
