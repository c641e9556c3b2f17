"""Which documents are held out: one rule for the whole house, on the document's id alone."""

from __future__ import annotations

import xxhash

HASH_RANGE = 2**64
MOST_DIGITS = 9


def split_mark(document_id: str) -> tuple[str, int]:
    """(id without its mark, number): `a~2`, which is what `collect` and `mix` call a second `a`, is ("a", 2).

    The number of an id without a mark is 1; of several marks the last one counts.
    """
    end, number = len(document_id), None
    while (tilde := document_id.rfind("~", 0, end)) > 0:
        digits = document_id[tilde + 1 : end]
        if not (len(digits) <= MOST_DIGITS and digits.isascii() and digits.isdigit()):
            break
        number = int(digits) if number is None else number
        end = tilde
    return document_id[:end], 1 if number is None else number


def original(document_id: str) -> str:
    """The id without the mark of a repetition: `a` of `a~2`."""
    return split_mark(document_id)[0]


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
