"""The only chance in lessons: hashes of a seed and of what is drawn for, so that nothing depends on order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import xxhash

T = TypeVar("T")


def key(seed: int, *parts: str) -> int:
    """A 64-bit number from a seed and strings: the only source of chance here."""
    return xxhash.xxh64_intdigest("\x00".join(parts).encode(), seed=seed)


def pick(items: Sequence[T], count: int, seed: int, *parts: str) -> list[T]:
    """`count` of `items` without repetition, chosen and ordered by hash."""
    order = sorted(range(len(items)), key=lambda index: key(seed, *parts, str(index)))
    return [items[index] for index in order[:count]]


def sample(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """At most `limit` rows, chosen by hash of their ids."""
    return sorted(rows, key=lambda row: key(seed, row["id"], "sample"))[:limit]
