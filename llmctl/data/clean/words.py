"""The words of a text by number, with what the rules count of them: split once, shared by all rules."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmctl.data.clean.characters import NO_WORD_CHARACTERS
from llmctl.data.clean.splitter import split_chunk

Integers = npt.NDArray[np.int64]

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Rae et al. 2021, section A.1.1
# Of a word: its number; whether it holds more than punctuation, and how many characters then; whether it holds a
# letter; the bit of the stop word that it is.
Facts = tuple[int, int, int, int, int]
MOST_CHUNKS = 1 << 18
MOST_CHARACTERS = 1 << 25

# Columns of what is known of a chunk.
FIRST, WORDS, SPELLED, SPELLED_CHARACTERS, ALPHABETIC, STOPS = range(6)


class Growing:
    """Rows of integers that are appended one by one and taken out many at a time."""

    def __init__(self, columns: int) -> None:
        self.values = array("q")
        self.columns = columns

    def __len__(self) -> int:
        return len(self.values) // self.columns

    def take(self, numbers: Integers) -> Integers:
        """The rows with these numbers, as a copy: `values` cannot grow while a view of it lives."""
        rows = np.frombuffer(self.values, dtype=np.int64) if self.values else np.zeros(0, dtype=np.int64)
        taken: Integers = rows.reshape(-1, self.columns)[numbers]
        return taken


class Vocabulary(dict[str, int]):
    """Numbers the chunks (runs without white space) that it meets, and the words in them.

    A chunk is split when first met; most chunks of a text have been met before, which is where the speed
    comes from. The memory is bounded: when full, it starts anew. Numbers mean nothing outside a text.
    """

    def __init__(self, most_chunks: int = MOST_CHUNKS) -> None:
        super().__init__()
        self.most_chunks = most_chunks
        self._forget()

    def _forget(self) -> None:
        self.clear()
        self._characters = 0
        self._words: dict[str, Facts] = {}
        self._lengths = Growing(1)
        self._members = Growing(1)
        self._chunks = Growing(6)

    def read(self, text: str) -> Words:
        """The words of `text`."""
        if len(self) > self.most_chunks or self._characters > MOST_CHARACTERS:
            self._forget()
        chunks = text.split()
        numbers = np.fromiter(map(self.__getitem__, chunks), dtype=np.int64, count=len(chunks))
        return Words(self, self._chunks.take(numbers))

    def __missing__(self, chunk: str) -> int:
        words = split_chunk(chunk)
        self._characters += len(chunk)
        first = len(self._members)
        spelled = characters = alphabetic = stops = 0
        for word in words:
            facts = self._words.get(word) or self._learn(word)
            self._members.values.append(facts[0])
            spelled += facts[1]
            characters += facts[2]
            alphabetic += facts[3]
            stops |= facts[4]
        number = self[chunk] = len(self._chunks)
        self._chunks.values.extend((first, len(words), spelled, characters, alphabetic, stops))
        return number

    def _learn(self, word: str) -> Facts:
        """What a chunk counts of a new word, with a number for it."""
        number = len(self._words)
        self._lengths.values.append(len(word))
        if word.isalpha():
            stop = 1 << STOP_WORDS.index(word) if word in STOP_WORDS else 0
            facts = (number, 1, len(word), 1, stop)
        else:
            spelled = not NO_WORD_CHARACTERS.issuperset(word)
            facts = (number, int(spelled), len(word) * spelled, int(any(map(str.isalpha, word))), 0)
        self._words[word] = facts
        return facts

    @property
    def size(self) -> int:
        """One more than the largest number of a word."""
        return len(self._words)

    def members(self, chunks: Integers) -> Integers:
        """The numbers of the words of these chunks (rows of what is known of them), in order."""
        counts = chunks[:, WORDS]
        before = np.cumsum(counts) - counts
        places = np.repeat(chunks[:, FIRST] - before, counts) + np.arange(counts.sum())
        return self._members.take(places)[:, 0]

    def lengths(self, numbers: Integers) -> Integers:
        """The length of each word in characters."""
        return self._lengths.take(numbers)[:, 0]


@dataclass(frozen=True)
class Words:
    """The words of one text. To be used before its vocabulary reads another text."""

    vocabulary: Vocabulary
    chunks: Integers  # (chunks, 6): what is known of each

    @cached_property
    def _sums(self) -> list[int]:
        sums: list[int] = self.chunks.sum(axis=0).tolist()
        return sums

    @property
    def count(self) -> int:
        """How many words there are."""
        return self._sums[WORDS]

    @property
    def spelled(self) -> int:
        """How many words there are with a character that is no punctuation."""
        return self._sums[SPELLED]

    @property
    def spelled_characters(self) -> int:
        """The length of these, summed."""
        return self._sums[SPELLED_CHARACTERS]

    @property
    def alphabetic(self) -> int:
        """How many words hold a letter."""
        return self._sums[ALPHABETIC]

    @property
    def stop_words(self) -> int:
        """How many different ones of `STOP_WORDS` occur."""
        return int(np.bitwise_or.reduce(self.chunks[:, STOPS])).bit_count()

    @cached_property
    def numbers(self) -> Integers:
        """Each word's number: equal words, equal numbers."""
        return self.vocabulary.members(self.chunks)

    @cached_property
    def lengths(self) -> Integers:
        """Each word's length in characters."""
        return self.vocabulary.lengths(self.numbers)
