"""Python's side of kernel.c: texts in Arrow columns to words, n-gram hashes and MinHash signatures.

A word is a run of letters, digits and underscores (`\\w+` of Python's `re`), in lower case. Its hash, and that of
an n-gram, are defined in kernel.c; two different n-grams share a hash with probability 2^-64, so the Jaccard
similarity of sets of these hashes is exact for all practical purposes.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from llmctl.data import compiled

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]

WORD, SPACE = re.compile(r"\w+"), re.compile(r"\s+")
CODE_POINTS = 0x40000  # that the tables hold: beyond them Unicode has no letter, digit or white space
WORD_CLASS, SPACE_CLASS = 1, 2  # as in kernel.c
BLOCK = 32  # as in kernel.c; so many bytes may be touched past the last text
LANES = 32  # as in kernel.c


def library() -> ctypes.CDLL:
    """The compiled kernel; an `LlmctlError` where it was not built."""
    return compiled.library(__file__, "kernel")


@functools.cache
def classes() -> npt.NDArray[np.uint8]:
    """uint8 [code points]: word characters, white space and others, as Python's `re` sees them."""
    table = np.zeros(CODE_POINTS, dtype=np.uint8)
    for pattern, value in ((WORD, WORD_CLASS), (SPACE, SPACE_CLASS)):
        for run in pattern.finditer(_characters()):
            table[run.start() : run.end()] = value
    return table


@functools.cache
def folds() -> npt.NDArray[np.uint32]:
    """uint32 [code points], what stands for each in a normalised text: its lower case, or a space.

    A character stands for a character, so `ß` is not `ss`, and of `İ`, whose lower case Python writes as two, the
    first is taken. Arrow's lower-casing is the same but takes 0.2 s to begin.
    """
    characters, two = _characters(), ord("İ")
    lower = f"{characters[:two].lower()}i{characters[two + 1 :].lower()}"
    table = np.frombuffer(lower.encode("utf-32-le", "surrogatepass"), dtype="<u4").copy()
    table[classes() == SPACE_CLASS] = ord(" ")
    return table


def _characters() -> str:
    return np.arange(CODE_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


@dataclass(frozen=True)
class Texts:
    """Lower-cased texts in which one space stands for each run of white space, none at the ends.

    Attributes:
        data: uint8, their UTF-8 bytes one after the other, and at least `BLOCK` more.
        offsets: int64 [texts + 1], where each begins and ends.
    """

    data: npt.NDArray[np.uint8]
    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def exact_keys(self) -> Hashes:
        """uint64 [texts, 2], xxh3_128 of each: equal for texts equal up to letter case and white space."""
        view, ends = memoryview(self.data.data), self.offsets.tolist()
        digests = [xxhash.xxh3_128_digest(view[a:b]) for a, b in itertools.pairwise(ends)]
        return np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)

    def short_keys(self) -> Hashes:
        """uint64 [texts], xxh3_64 of each."""
        view, ends = memoryview(self.data.data), self.offsets.tolist()
        digests = (xxhash.xxh3_64_intdigest(view[a:b]) for a, b in itertools.pairwise(ends))
        return np.fromiter(digests, dtype=np.uint64, count=len(self))


@dataclass(frozen=True)
class Shingles:
    """Word n-gram hashes of several texts.

    Attributes:
        hashes: uint64, one text after the other; in the order of the text, with repetitions.
        offsets: int64 [texts + 1].
    """

    hashes: Hashes
    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Offsets:
        """int64 [texts], n-grams in each."""
        return np.diff(self.offsets)

    def sets(self) -> Shingles:
        """Each text's hashes sorted, each once."""
        hashes, ends = self.hashes.copy(), self.offsets.tolist()
        for begin, end in itertools.pairwise(ends):
            hashes[begin:end].sort()
        new = np.ones(len(hashes), dtype=bool)
        new[1:] = hashes[1:] != hashes[:-1]
        new[self.offsets[:-1][self.lengths() > 0]] = True
        counted = np.concatenate(([0], np.cumsum(new)))
        return Shingles(hashes[new], counted[self.offsets])


def normalise(column: pa.Array) -> Texts:
    """Lower-case a column of strings (see `folds`) and make one space of each run of white space."""
    count = len(column)
    _, places, data = column.buffers()
    offsets = np.frombuffer(places, dtype=np.int32)[column.offset : column.offset + count + 1]
    text = np.frombuffer(data, dtype=np.uint8) if data is not None and data.size else np.zeros(1, dtype=np.uint8)
    size = int(offsets[-1] - offsets[0])
    out = np.empty(size + size // 2 + BLOCK, dtype=np.uint8)
    out_offsets = np.empty(count + 1, dtype=np.int64)
    library().normalise(_at(text), _at(offsets), ctypes.c_int64(count), _at(folds()), _at(out), _at(out_offsets))
    return Texts(out, out_offsets)


def shingles(texts: Texts, ngram_words: int) -> Shingles:
    """Hashes of the word n-grams of each text; one of all its words where it has fewer; none without words."""
    count = len(texts)
    hashes = np.empty((int(texts.offsets[-1]) + count) // 2 + 1, dtype=np.uint64)
    offsets = np.empty(count + 1, dtype=np.int64)
    library().shingles(
        _at(texts.data), _at(texts.offsets), ctypes.c_int64(count), _at(classes()), ctypes.c_int64(ngram_words),
        _at(hashes), _at(offsets),
    )  # fmt: skip
    return Shingles(hashes[: offsets[-1]], offsets)


def sign(given: Shingles, factors: npt.NDArray[np.uint32], addends: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MinHash signatures, uint32 [texts, permutations]: the smallest of each permutation h -> h factor + addend.

    The permutations are datasketch's (scheme `affine32`), and so is what comes out. A text without hashes gets
    the largest value everywhere.
    """
    width = -(-len(factors) // LANES) * LANES
    factors, addends = (np.resize(part, width).astype(np.uint32) for part in (factors, addends))
    out = np.empty((len(given), width), dtype=np.uint32)
    library().sign(
        _at(given.hashes), _at(given.offsets), ctypes.c_int64(len(given)), _at(factors), _at(addends),
        ctypes.c_int64(width), _at(out),
    )  # fmt: skip
    return out


def shared(addresses: Hashes, lengths: Offsets, pairs: Pairs, least: Offsets, shift: int = 0) -> Offsets:
    """int64 [pairs], how many hashes the two sets of each pair have in common.

    Args:
        addresses: uint64 [sets], where each set's sorted distinct hashes begin in memory.
        lengths: int64 [sets].
        pairs: int64 [pairs, 2], indices of sets.
        least: int64 [pairs]; a pair is given up once it cannot have so many in common, and its number is then
            anything from the true one to below `least`.
        shift: how many of the lowest bits not to compare.
    """
    out = np.empty(len(pairs), dtype=np.int64)
    pairs, least = (np.ascontiguousarray(part, dtype=np.int64) for part in (pairs, least))
    library().shared(
        _at(addresses), _at(lengths), _at(pairs), ctypes.c_int64(len(pairs)), ctypes.c_int(shift), _at(out),
        _at(least),
    )  # fmt: skip
    return out


def concatenate(parts: Sequence[Shingles]) -> Shingles:
    """Several as one."""
    lengths = [part.lengths() for part in parts]
    ends = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *lengths]))
    hashes = [part.hashes for part in parts]
    return Shingles(np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64), ends)


def _at(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """Address of a contiguous array's first element."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
