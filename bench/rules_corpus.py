"""Documentation that a Debian and PyPI machine has, and copies of it bent towards the thresholds of the rules."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

LONGEST = 40_000  # characters of a document, as on web pages


def build(path: Path, corpus: Path, originals: int, seed: int) -> int:
    """Write at most `originals` documents of `corpus` and a bent copy of each to a JSONL file; how many in all."""
    draw = random.Random(seed)
    chosen = sample(corpus, originals, draw)
    benders = list(BENDERS.items())
    with path.open("w", encoding="utf-8") as file:
        for number, (name, text) in enumerate(chosen):
            bender, bend = benders[number % len(benders)]
            for identifier, version in ((name, text), (f"{name}#{bender}", bend(text, draw))):
                file.write(json.dumps({"id": identifier, "text": version}) + "\n")
    return 2 * len(chosen)


def sample(corpus: Path, originals: int, draw: random.Random) -> list[tuple[str, str]]:
    """(name, text) of documents that bench/corpus.py wrote, its perturbed copies left out."""
    rows: list[tuple[str, str]] = []
    for part in sorted((corpus / "documents").glob("part-*.parquet")):
        table = pq.read_table(part, columns=["id", "text"])
        rows += zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    rows = [(name, text[:LONGEST]) for name, text in rows if not name.endswith("#copy")]
    return draw.sample(rows, min(originals, len(rows)))


Bender = Callable[[str, random.Random], str]


def per_line(change: Callable[[str, random.Random], str], least: float, most: float) -> Bender:
    """Change a share of the lines between `least` and `most`."""

    def bend(text: str, draw: random.Random) -> str:
        share = draw.uniform(least, most)
        return "\n".join(change(line, draw) if draw.random() < share else line for line in text.split("\n"))

    return bend


def per_word(change: Callable[[str, random.Random], str], least: float, most: float) -> Bender:
    """Change a share of the words between `least` and `most`."""

    def bend(text: str, draw: random.Random) -> str:
        share = draw.uniform(least, most)
        return "".join(
            change(piece, draw) if not piece.isspace() and draw.random() < share else piece
            for piece in re.split(r"(\s+)", text)
            if piece
        )

    return bend


def cut(least: int, most: int) -> Bender:
    """Keep a number of words between `least` and `most`."""

    def bend(text: str, draw: random.Random) -> str:
        pieces = re.split(r"(\s+)", text.strip())
        return "".join(pieces[: 2 * draw.randint(least, most)])

    return bend


def wrap(text: str, draw: random.Random) -> str:
    """Short lines, about as short as FineWeb's rule has it."""
    width, lines = draw.randint(20, 45), [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def one_line(text: str, _: random.Random) -> str:
    """All in one line, with two spaces behind a full stop."""
    return " ".join(text.split()).replace(". ", ".  ")


def repeat_lines(text: str, draw: random.Random) -> str:
    """Some lines again, up to a third of all, in any place."""
    lines = text.split("\n")
    for _ in range(draw.randint(1, 1 + len(lines) // 3)):
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return "\n".join(lines)


def repeat_paragraphs(text: str, draw: random.Random) -> str:
    """Some paragraphs again."""
    parts = text.split("\n\n")
    return "\n\n".join(parts + draw.choices(parts, k=draw.randint(1, 1 + len(parts) // 2)))


def repeat_phrase(text: str, draw: random.Random) -> str:
    """A phrase of 2 to 10 words again and again, up to about a fifth of the text."""
    words = text.split() or ["word"]
    start, length = draw.randrange(len(words)), draw.randint(2, 10)
    phrase = " ".join(words[start : start + length])
    pieces = text.split("\n")
    for _ in range(int(draw.uniform(0.05, 0.3) * len(text) / max(10, len(phrase))) + 1):
        at = draw.randrange(len(pieces))
        pieces[at] += f" {phrase}"
    return "\n".join(pieces)


def insert_lines(lines: tuple[str, ...], most: int) -> Bender:
    """One to `most` of `lines` in any place."""

    def bend(text: str, draw: random.Random) -> str:
        parts = text.split("\n")
        for _ in range(draw.randint(1, most)):
            parts.insert(draw.randrange(len(parts) + 1), draw.choice(lines))
        return "\n".join(parts)

    return bend


def foreign(text: str, draw: random.Random) -> str:
    """Letters of another script."""
    first = draw.choice((0x0430, 0x03B1, 0x0627, 0x0905, 0x3042, 0x4E00, 0xAC00, 0x05D0))
    return re.sub("[a-z]", lambda letter: chr(first + ord(letter[0]) - ord("a")), text)


def few_sentences(text: str, draw: random.Random) -> str:
    """Three to seven sentences in one to four lines."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if part]
    chosen = parts[: draw.randint(3, 7)]
    return "".join(part + draw.choice((" ", " ", "  ", "\n", " [1]  ")) for part in chosen).strip()


TRICKY = (
    "don't", "won't've", "it’s", ":-)", "8)", "U.S.", "e.g.", "Ph.D.", "5km²", "US$5", "100%", "a.m.", "10am", "w/o",  # noqa: RUF001
    "http://example.org/a?b=c#d", "me@example.org", "8.8.8.8/dns", "foo.Bar", "x=y", "well-known", "3-4", "a--b",
    "...", "…", "and/or", "(c.f.", "»so«", "C++", "don't!)", "._.", "©2024", "→", "{x}", "1.5M", "rock'n'roll",
)  # fmt: skip
POLICY = (
    "By visiting this site you accept our Terms of Use.", "Read our privacy policy before you go on.",
    "This site uses cookies, as all sites do.", "Please enable JavaScript to see this page well.",
    "We make use of cookies and of nothing else!",
)  # fmt: skip
BENDERS: dict[str, Bender] = {
    "as it is": lambda text, _: text,
    "bullets": per_line(lambda line, draw: f"{draw.choice(('-', '•', '*'))} {line}", 0.8, 1.0),
    "ellipsis lines": per_line(lambda line, draw: line + draw.choice(("...", "…", " ...")), 0.2, 0.4),
    "hashes": per_word(lambda word, _: f"#{word}", 0.05, 0.15),
    "ellipses": per_word(lambda word, draw: word + draw.choice(("...", "…")), 0.05, 0.15),
    "numbers": per_word(lambda _, draw: str(draw.randrange(10_000)), 0.05, 0.3),
    "short words": per_word(lambda word, _: word[:1], 0.3, 0.9),
    "long words": per_word(lambda word, _: word * 3, 0.1, 0.5),
    "fifty words": cut(35, 60),
    "few words": cut(1, 20),
    "no punctuation": lambda text, _: re.sub(r"[^\w\s]", "", text),
    "no line ends in punctuation": per_line(lambda line, _: line.rstrip(".?!\"'"), 0.5, 1.0),
    "line ends in punctuation": per_line(lambda line, draw: line + draw.choice(".?!"), 0.05, 0.9),
    "capitals": lambda text, _: text.upper(),
    "one stop word": per_word(lambda word, _: "" if word in {"the", "to", "of", "and"} else word, 0.9, 1.0),
    "short lines": wrap,
    "one line": one_line,
    "repeated lines": repeat_lines,
    "repeated paragraphs": repeat_paragraphs,
    "repeated phrase": repeat_phrase,
    "policy": insert_lines(POLICY, 4),
    "lorem": insert_lines(("Lorem ipsum dolor sit amet, and so on.", "{", "if (x) { y; }."), 1),
    "giant words": insert_lines(("x" * 1000 + " and so on.", "x" * 1001 + " and so on."), 2),
    "blank lines": insert_lines(("", "", " "), 40),
    "citations": per_word(lambda word, draw: word + draw.choice(("[1]", "[edit]", "[]", " [citation needed]")), 0, 0.3),
    "tricky words": per_word(lambda word, draw: f"{word} {draw.choice(TRICKY)}", 0.05, 0.4),
    "foreign letters": foreign,
    "few sentences": few_sentences,
}
