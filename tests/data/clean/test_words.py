from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.clean.characters import NO_WORD_CHARACTERS
from llmctl.data.clean.splitter import split
from llmctl.data.clean.words import STOP_WORDS, Vocabulary

PIECES = [*"abc the of 12.,-()…\n\t", "don't", "e.g.", "漢"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


def check(vocabulary: Vocabulary, text: str) -> None:
    """Everything counted, against the words themselves."""
    words, expected = vocabulary.read(text), split(text)
    spelled = [word for word in expected if not NO_WORD_CHARACTERS.issuperset(word)]
    assert words.count == len(expected)
    assert words.spelled == len(spelled)
    assert words.spelled_characters == sum(map(len, spelled))
    assert words.alphabetic == sum(any(map(str.isalpha, word)) for word in expected)
    assert words.stop_words == len(set(STOP_WORDS).intersection(expected))
    assert words.lengths.tolist() == list(map(len, expected))
    assert first_places(words.numbers.tolist()) == first_places(expected)
    assert all(number < vocabulary.size for number in words.numbers.tolist())


def first_places(items: Sequence[object]) -> list[int]:
    return [items.index(item) for item in items]


@given(st.lists(TEXTS, max_size=5))
def test_counts_are_those_of_the_words(texts: list[str]) -> None:
    vocabulary = Vocabulary()
    for text in texts:
        check(vocabulary, text)


@given(st.lists(TEXTS, max_size=8))
def test_a_full_vocabulary_starts_anew(texts: list[str]) -> None:
    vocabulary = Vocabulary(most_chunks=3)
    for text in texts:
        check(vocabulary, text)
        assert len(vocabulary) <= 3 + len(text.split())


def test_chunks_are_kept_between_texts() -> None:
    vocabulary = Vocabulary()
    vocabulary.read("to be, or not to be,")
    assert set(vocabulary) == {"to", "be,", "or", "not"}
    assert vocabulary.size == 5  # to be , or not


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_no_words(text: str) -> None:
    check(Vocabulary(), text)
