"""What kernel.c computes, in plain Python and NumPy: the reference that it is held against."""

import re

import numpy as np

from llmctl.data.dedup.kernel import Hashes, Shingles

MULTIPLIER, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def mix(value: int) -> int:
    value = ((value ^ value >> 32) * MULTIPLIER) & MASK
    return value ^ value >> 29


def lowered(text: str) -> str:
    """A character for a character."""
    return "".join(character.lower()[0] for character in text)


def word_hash(word: str) -> int:
    encoded, value = word.encode(), 0
    for start in range(0, len(encoded), 8):
        value = mix((value * MULTIPLIER + int.from_bytes(encoded[start : start + 8], "little")) & MASK)
    return value


def ngram_hashes(text: str, n: int) -> list[int]:
    """In the order of the text, with repetitions."""
    words = [word_hash(word) for word in re.findall(r"\w+", lowered(text))]
    n = min(n, len(words))
    grams = []
    for start in range(len(words) - n + 1 if n else 0):
        value = 0
        for word in words[start : start + n]:
            value = (value * MULTIPLIER + word) & MASK
        grams.append(mix(value))
    return grams


def normalised(text: str) -> str:
    return re.sub(r"\s+", " ", lowered(text)).strip()


def signatures(sets: list[Hashes], factors: Hashes, addends: Hashes) -> np.ndarray:
    """uint32 [sets, permutations]; each set must hold at least one hash."""
    rows = []
    for one in sets:
        values = one.astype(np.uint32)
        values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        values ^= values >> np.uint32(16)
        rows.append((values[:, None] * factors + addends).min(axis=0))
    return np.array(rows)


def as_shingles(sets: list[Hashes]) -> Shingles:
    ends = np.cumsum([0, *(len(one) for one in sets)])
    return Shingles(np.concatenate([*sets, np.empty(0, np.uint64)]), ends)
