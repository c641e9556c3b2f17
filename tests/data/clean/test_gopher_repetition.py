import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.rules import RepetitionConfig
from llmctl.data.clean import ngrams
from llmctl.data.clean.gopher_repetition import GopherRepetition, lines_of, paragraphs_of, repeated_parts
from llmctl.data.clean.ngrams import Ngrams
from tests.data.clean.conftest import reason_of

NO_NGRAMS = {"max_top_ngram_characters": None, "max_duplicate_ngram_characters": None}
NO_CHARACTERS = {"max_duplicate_paragraph_characters": None, "max_duplicate_line_characters": None, **NO_NGRAMS}


def repetition(text: str, **fields: Any) -> str | None:
    return reason_of(GopherRepetition(RepetitionConfig(**fields)), text)


def grams_of(words: list[str]) -> Ngrams:
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
    return Ngrams(codes, np.array([len(word) for word in words], dtype=np.int64), len(numbers))


@pytest.mark.parametrize(("separator", "unit"), [("\n\n", "paragraph"), ("\n\n\n", "paragraph"), ("\n", "line")])
def test_duplicate_parts_at_their_thresholds(separator: str, unit: str) -> None:
    different = [f"part {n}" for n in range(7)]
    at = separator.join([*different, "part 0", "part 1", "part 2"])  # 3 of 10
    above = separator.join([*different[:6], "part 0", "part 1", "part 2"])  # 3 of 9
    assert repetition(at, **NO_CHARACTERS) is None
    assert repetition(above, **NO_CHARACTERS) == f"duplicate_{unit}s"


@pytest.mark.parametrize(("separator", "unit"), [("\n\n", "paragraph"), ("\n", "line")])
@pytest.mark.parametrize(("length", "broken"), [(105, False), (104, True)])
def test_duplicate_characters_at_their_thresholds(separator: str, unit: str, length: int, broken: bool) -> None:
    repeated = "x" * 21  # 21 of 105 characters are 0.2
    text = f"{repeated}{separator}{repeated}{separator}"
    text += "y" * (length - len(text))
    off: dict[str, Any] = {"max_duplicate_paragraphs": None, "max_duplicate_lines": None, **NO_NGRAMS}
    assert repetition(text, **off) == (f"duplicate_{unit}_characters" if broken else None)


def test_an_end_of_line_at_the_end_makes_a_line() -> None:
    lines = "a\nb\nc\na\n"  # a b c a and nothing: 1 of 5, without the last end of line 1 of 4
    assert repetition(lines, max_duplicate_lines=0.2, **NO_CHARACTERS) is None
    assert repetition(lines.strip(), max_duplicate_lines=0.2, **NO_CHARACTERS) == "duplicate_lines"


@given(st.lists(st.sampled_from(["", "a", "bb", "ccc"]), max_size=12))
def test_repeated_parts_counts_second_and_later_ones(parts: list[str]) -> None:
    again = [part for place, part in enumerate(parts) if part in parts[:place]]
    assert repeated_parts(parts) == (len(again), sum(map(len, again)))


@given(st.text(alphabet="ab \n", max_size=30))
def test_parts_are_those_of_plain_splits(text: str) -> None:
    assert paragraphs_of(text) == re.split(r"\n{2,}", text.strip())
    assert Counter(lines_of(text)) == Counter(re.split(r"\n+", text))  # the order does not matter


def test_top_ngrams() -> None:
    words = ["a", "bb", "a", "bb", "c", "a", "bb"]
    assert grams_of(words).top_characters(2) == 3 * len("a bb")
    assert grams_of(words).top_characters(3) == len("a bb a")  # each occurs once: the first
    assert grams_of(words).top_characters(3, least=2) == 0
    assert grams_of(["a"]).top_characters(2) == 0


def test_top_ngrams_at_their_thresholds() -> None:
    head = "xx yy aa xx yy bb xx yy cc xx yy dd xx yy ee xx yy "  # `xx yy` 6 times: 30 characters
    assert repetition(head + "q" * (150 - len(head))) is None  # 30 of 150 = 0.20
    assert repetition(head + "q" * (149 - len(head))) == "top_2gram"


def test_repeated_ngrams_do_not_overlap() -> None:
    words = "a b c d e a b c d e a b c d e".split()
    assert grams_of(words).repeated_characters(5) == 10  # the second and third run of five
    assert grams_of(words).repeated_characters(10) == 10  # from the sixth word on
    assert grams_of(list("abcdef")).repeated_characters(5) == 0
    assert grams_of(["x"] * 11).repeated_characters(5) == 10


@pytest.mark.parametrize("bits", [0, ngrams.POSITION_BITS])  # 0: the way of texts too long for one number
@given(words=st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), n=st.integers(1, 6))
def test_ngram_counts_are_those_of_plain_python(bits: int, words: list[str], n: int) -> None:
    before, ngrams.POSITION_BITS = ngrams.POSITION_BITS, bits
    try:
        counted = grams_of(words)
        tops = [counted.top_characters(n, least) for least in (1, 2)]
        repeated = counted.repeated_characters(n)
    finally:
        ngrams.POSITION_BITS = before
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    gram, count = (Counter(grams).most_common(1) or [((), 0)])[0]
    assert tops == [len(" ".join(gram)) * count if count >= least else 0 for least in (1, 2)]
    seen, characters, start = set(), 0, 0
    while start < len(grams):
        if grams[start] in seen:
            characters += len("".join(grams[start]))
            start += n
        else:
            seen.add(grams[start])
            start += 1
    assert repeated == characters


def test_duplicate_ngrams_at_their_threshold() -> None:
    sentence = "one two tri for fiv"  # 15 letters, 19 characters
    off = {"max_top_ngram_characters": None, "max_duplicate_lines": None, "max_duplicate_line_characters": None}
    for length, reason in ((100, None), (99, "duplicate_5gram")):
        text = f"{sentence} {sentence} "
        text += "q" * (length - len(text))
        assert repetition(text, **off) == reason  # 15 of 100 = 0.15


def test_a_short_text_can_be_spared() -> None:
    text = "Return the length of an object."
    assert repetition(text) == "top_2gram"  # `Return the` is a third of it, as datatrove counts
    assert repetition(text, min_top_ngram_count=2) is None
