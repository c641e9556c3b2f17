"""Which documents are held out: one rule for the whole house, on the document's id alone."""

from __future__ import annotations

import xxhash

HASH_RANGE = 2**64


def position(document_id: str) -> float:
    """Where the id falls in [0, 1): xxh64(id) / 2^64, the same everywhere and for ever."""
    return xxhash.xxh64_intdigest(document_id.encode()) / HASH_RANGE


def is_heldout(document_id: str, fraction: float) -> bool:
    """Whether the document is in the held-out `fraction` (0 to 1) of all ids: `position(id) < fraction`.

    There is no seed, so every stage that asks (pack, chats, quiz) gets the same answer, and a document held
    out at one fraction stays held out at every larger one.
    """
    return position(document_id) < fraction
