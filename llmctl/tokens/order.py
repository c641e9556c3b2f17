"""In which order training sees the rows: a pure function of the seed and the step, without any state.

Each epoch is a pseudo-random permutation of the rows, computed index by index: a Feistel network (Luby & Rackoff,
1988) on the two digits of the index in a mixed radix, walked until the value falls inside the range (the generalised
Feistel cipher and cycle walking of Black & Rogaway, 2002). Nothing is stored, so the position of a run is its step.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd
U64 = np.uint64


def mix64(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood, 2014), elementwise: a bijection on 64-bit words."""
    value = (value ^ (value >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> U64(27))) * U64(0x94D049BB133111EB)
    return value ^ (value >> U64(31))


def round_keys(seed: int, epochs: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Feistel keys, uint64 [ROUNDS, len(epochs)], from the seed and the number of the epoch."""
    start = mix64(np.full(epochs.shape, (seed + GOLDEN) % 2**64, dtype=np.uint64))
    state = mix64(start + epochs.astype(np.uint64))
    return np.stack([mix64(state + U64(GOLDEN * (turn + 1) % 2**64)) for turn in range(ROUNDS)])


@lru_cache(maxsize=64)
def _known_keys(seed: int, epochs: tuple[int, ...]) -> NDArray[np.uint64]:
    """`round_keys`, kept: the steps of an epoch share them."""
    return round_keys(seed, np.array(epochs, dtype=np.int64))


def permuted(seed: int, positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows at `positions` of the endless concatenation of epochs over `count` rows; int64, same shape."""
    epochs, places = np.divmod(positions, count)
    different, which = np.unique(epochs, return_inverse=True)
    keys = _known_keys(seed, tuple(different.tolist()))[:, which]
    high = math.isqrt(count - 1) + 1  # digits: value = left * low + right, left < high, right < low
    low = -(-count // high)
    values = places.astype(np.uint64)
    walking = np.arange(values.size)
    while walking.size:
        left, right = np.divmod(values[walking], U64(low))
        for turn in range(0, ROUNDS, 2):
            left = (left + mix64(right + keys[turn, walking]) % U64(high)) % U64(high)
            right = (right + mix64(left + keys[turn + 1, walking]) % U64(low)) % U64(low)
        values[walking] = left * U64(low) + right
        walking = walking[values[walking] >= U64(count)]
    return values.astype(np.int64)


def rows_of_step(seed: int, step: int, batch_rows: int, count: int) -> NDArray[np.int64]:
    """Indices of the `batch_rows` rows that step `step` (0-based) trains on; int64 [batch_rows].

    The answer depends on nothing else: ranks and micro-batches take contiguous parts of it. A batch may
    span the end of an epoch, and an epoch may be shorter than a batch.

    Args:
        seed: of the order.
        step: the optimizer step, from 0.
        batch_rows: rows in the global batch, over all ranks and micro-batches.
        count: rows in the split.
    """
    if count < 1 or batch_rows < 1 or step < 0:
        raise ValueError(f"need count ≥ 1, batch_rows ≥ 1, step ≥ 0; got {count}, {batch_rows}, {step}")
    positions = np.arange(batch_rows, dtype=np.int64) + step * batch_rows
    return permuted(seed, positions, count)


def part_of_rank(rows: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The rows of a step that one rank computes: a contiguous part, equal for all."""
    part = rows.size // world_size
    return rows[rank * part : (rank + 1) * part]
