"""Which documents are held out: one rule for the whole house, on the document's id alone."""

from __future__ import annotations

import re

import xxhash

HASH_RANGE = 2**64
REPEAT = re.compile(r"(?<=.)(?:~[0-9]+)+\Z", re.DOTALL)


def original(document_id: str) -> str:
    """The id without the mark of a repetition: `a` of `a~2`, which is what `mix` calls the second `a`."""
    return REPEAT.sub("", document_id) if "~" in document_id else document_id


def identity(document_id: str) -> int:
    """64 bits that stand for the original id, the same everywhere and for ever: xxh64."""
    return xxhash.xxh64_intdigest(original(document_id).encode())


def position(document_id: str) -> float:
    """Where the original id falls in [0, 1): xxh64(id) / 2^64."""
    return identity(document_id) / HASH_RANGE


def is_heldout(document_id: str, fraction: float) -> bool:
    """Whether the document is in the held-out `fraction` (0 to 1) of all ids: `position(id) < fraction`.

    There is no seed, so every stage that asks (mix, pack, chats, quiz) gets the same answer, and a document
    held out at one fraction stays held out at every larger one. A repeated document (`a~2`) is where the
    first one is.
    """
    return position(document_id) < fraction
