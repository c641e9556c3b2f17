"""Chats as packed rows with the loss on the assistant's tokens, checked so that nothing trains silently wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.config.train import Learned
from llmctl.data.split import is_heldout
from llmctl.data.tables import read_rows
from llmctl.objectives.targets import refuse_overlong, targets
from llmctl.store.artifact import Artifact, Input
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.tokens.chat import render_training
from llmctl.tokens.fit import fit_whole
from llmctl.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chat:
    """One chat as ids.

    Attributes:
        document: id of the document that the chat was made from, or of the chat where it was made from none.
        ids: int64 [n].
        labels: int64 [n], the next id where the assistant says it, -100 elsewhere.
    """

    document: str
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


class PackedChats:
    """Whole chats in rows of `seq_len` tokens, several to a row; a `RowSource`.

    Chats in one row do not see one another, and positions restart at each.
    """

    def __init__(self, chats: Sequence[Chat], seq_len: int, pad_id: int) -> None:
        self.chats = chats
        self.seq_len = seq_len
        self.pad_id = pad_id
        self._layout = fit_whole(np.array([chat.ids.size for chat in chats], dtype=np.int64), seq_len)
        self.count = self._layout.rows

    def chats_of(self, row: int) -> list[int]:
        """Which chats a row holds, in order."""
        found: list[int] = self._layout.documents_of(row).tolist()
        return found

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order."""
        shape = (len(indices), self.seq_len)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, PADDING_DOCUMENT, dtype=np.int32)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        for row, index in enumerate(indices):
            at = 0
            for number, which in enumerate(self.chats_of(int(index))):
                chat = self.chats[which]
                place = slice(at, at + chat.ids.size)
                tokens[row, place], labels[row, place] = chat.ids, chat.labels
                positions[row, place], documents[row, place] = np.arange(chat.ids.size), number
                at += chat.ids.size
        return Batch(tokens, positions, documents, labels)


@dataclass(frozen=True)
class Sides:
    """Chats to learn from and chats held out.

    Attributes:
        kept: to learn from, at least one.
        held: for the held-out loss.
        overlong: what is wrong with those that do not fit, on either side.
        heldout_fraction: below which `position` of its id no document is learned from; None where the chats do not
            tell of what documents they were made.
    """

    kept: list[Chat]
    held: list[Chat]
    overlong: list[str]
    heldout_fraction: float | None


def read_sides(
    given: Input,
    tokenizer: Tokenizer,
    max_tokens: int,
    fraction: float,
    overlong: str = "error",
    learn: Learned = "assistant",
) -> Sides:
    """Both sides of `given`.

    An artifact that says what share of documents it holds out brings its own sides. Other chats are split here, by
    the house rule on the ids of the documents that they were made from, so those of one document go to one side.

    Args:
        given: chats.
        tokenizer: the checkpoint's.
        max_tokens: longest chat that fits.
        fraction: share to hold out of chats that are not split yet.
        overlong: `error`, or `drop` chats that do not fit.
        learn: what of each chat is learned.

    Raises:
        InputError: a chat that cannot be learned from, printed; one that is malformed or does not fit; or none is left
            to learn from.
    """
    kept, too_long = read_chats(given, tokenizer, max_tokens, learn=learn)
    if isinstance(given, Artifact) and "heldout_fraction" in given.manifest.semantic:
        held, too_long_held = read_chats(given, tokenizer, max_tokens, "heldout", learn)
        too_long += too_long_held
        known = float(given.manifest.semantic["heldout_fraction"])
    else:
        chats, known = kept, None
        kept = [chat for chat in chats if not is_heldout(chat.document, fraction)]
        held = [chat for chat in chats if is_heldout(chat.document, fraction)]
    refuse_overlong(too_long, overlong, max_tokens)
    if held and not kept:
        raise InputError(f"all {len(held)} chats are held out", hint="lower heldout_fraction, or give more chats")
    if not kept:
        raise InputError(f"{given.ref} holds no chat to learn from", hint="see llmctl show, and max_tokens")
    return Sides(kept, held, too_long, known)


def read_chats(
    given: Input, tokenizer: Tokenizer, max_tokens: int, split: str = "train", learn: Learned = "assistant"
) -> tuple[list[Chat], list[str]]:
    """All chats of a split that fit, and the ids of those longer than `max_tokens`.

    Raises:
        InputError: a chat that cannot be learned from, printed; or one that is malformed.
    """
    fitting: list[Chat] = []
    overlong: list[str] = []
    for number, row in enumerate(read_rows(given, split), start=1):
        where = f"{given.ref}: chat {number} ({row['id']})"
        chat = _chat(row, tokenizer, where, learn)
        if chat.ids.size > max_tokens:
            overlong.append(f"{where} has {chat.ids.size} tokens")
        else:
            fitting.append(chat)
    return fitting, overlong


def _chat(row: dict[str, Any], tokenizer: Tokenizer, where: str, learn: Learned = "assistant") -> Chat:
    """Render one chat and refuse what would teach nothing, or teach never to stop."""
    try:
        ids, learned = render_training(tokenizer, row["messages"], learn)
    except InputError as error:
        raise InputError(f"{where}: {error.what}", hint=error.hint) from None
    tokens, labels = targets(ids, learned, tokenizer, where, row["messages"])
    return Chat(row.get("document") or row["id"], tokens, labels)
