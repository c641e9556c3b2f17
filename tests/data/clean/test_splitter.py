"""The words expected are spaCy's, stored in spacy.json with its version."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.clean.characters import NO_WORD_CHARACTERS, SENTENCE_ENDS, TERMINALS
from llmctl.data.clean.special_words import special_words
from llmctl.data.clean.splitter import split, split_chunk
from llmctl.data.clean.web_address import is_address

STORED = json.loads(Path(__file__).with_name("spacy.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "words"), STORED["words"])
def test_words_are_those_of_spacy(text: str, words: list[str]) -> None:
    assert split(text) == words


MARKS = "aZéß09.,:;-—…'’\"()[]@/$€%+*^=<>°²漢©"  # noqa: RUF001 - the curled quote too
# Marks, letters of several scripts, units, and whole special words, put together at random.
PIECES = st.lists(
    st.one_of(st.sampled_from(MARKS), st.sampled_from([*special_words()]), st.text(max_size=3)),
    max_size=6,
)


@given(PIECES)
def test_a_split_loses_nothing(pieces: list[str]) -> None:
    text = "".join(pieces)
    for chunk in text.split():
        words = split_chunk(chunk)
        assert "".join(words) == chunk
        assert all(words)
    assert split(text) == [word for chunk in text.split() for word in split_chunk(chunk)]


def test_special_words_are_what_they_are_split_into() -> None:
    assert len(special_words()) == 1324  # spaCy's 1,347, without white space and words that stay whole anyway
    assert all("".join(parts) == word for word, parts in special_words().items())
    assert all(split_chunk(word) == list(parts) for word, parts in special_words().items())


def test_sentence_ends_are_159_characters_of_all_scripts() -> None:
    assert len(TERMINALS) == 159
    assert len(SENTENCE_ENDS) == 128
    assert set(".?!。؟।") < SENTENCE_ENDS < TERMINALS < NO_WORD_CHARACTERS
    assert not NO_WORD_CHARACTERS & set("aZ09éж漢")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("example.org", True), ("https://example.org/a?b#c", True), ("me@example.org", True), ("a@b@example.org", True),
        ("example.org:8080/x", True), ("example.org:8", False), ("example.org:123456", False), ("example.ORG", False),
        ("example.o", False), ("-a.org", False), ("a-.org", False), ("a" * 64 + ".org", True),
        ("a" * 65 + ".org", False), ("x." + "a" * 63, True), ("x." + "a" * 64, False), ("@example.org", False),
        ("8.8.8.8", True), ("10.1.2.3", False), ("172.16.0.1", False), ("172.15.0.1", True), ("224.0.0.1", False),
        ("8.8.8.256", False), ("localhost", False), ("http://localhost/", False), ("a.bc/@", True), ("", False),
    ],
)  # fmt: skip
def test_addresses(word: str, expected: bool) -> None:
    assert is_address(word) is expected


HOSTILE = {
    "letters": "a", "at": "@", "dashes": "-", "stops": ".", "brackets": "(", "both": "()", "stops and brackets": "..)",
    "address": "a.b@", "host": "a.", "scheme": "ab://", "digits": "1", "units": "5km", "quotes": "'s", "smileys": ":-)",
    "ellipses": "…", "dollars": "US$", "emoji": "🙂", "alternating": "a-b.C,", "slashes": "a/", "colons": ":a",
}  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_hostile_chunks_lose_nothing(unit: str) -> None:
    chunk = unit * (20_000 // len(unit))
    assert "".join(split_chunk(chunk)) == chunk


def test_a_megabyte_of_anything_ends() -> None:
    """Quadratic time would take hours for any of these; all of them together get minutes."""
    program = (
        "import sys; from llmctl.data.clean.splitter import split_chunk\n"
        "for unit in sys.argv[1:]: assert split_chunk(unit * (1_000_000 // len(unit)))"
    )
    subprocess.run([sys.executable, "-c", program, *HOSTILE.values()], check=True, timeout=300)
