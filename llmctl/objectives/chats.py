"""Chats as packed rows with the loss on the assistant's tokens, checked so that nothing trains silently wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.data.tables import read_batches
from llmctl.store.artifact import Input
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.tokens.chat import render_training
from llmctl.tokens.tokenizer import Tokenizer

SHOWN_CHARS = 300


@dataclass(frozen=True)
class Chat:
    """One chat as ids.

    Attributes:
        id: of the chat.
        ids: int64 [n].
        labels: int64 [n], the next id where the assistant says it, -100 elsewhere.
    """

    id: str
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
        self._rows = pack_whole([chat.ids.size for chat in chats], seq_len)
        self.count = len(self._rows)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order."""
        shape = (len(indices), self.seq_len)
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, PADDING_DOCUMENT, dtype=np.int32)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        for row, index in enumerate(indices):
            at = 0
            for number, which in enumerate(self._rows[index]):
                chat = self.chats[which]
                place = slice(at, at + chat.ids.size)
                tokens[row, place], labels[row, place] = chat.ids, chat.labels
                positions[row, place], documents[row, place] = np.arange(chat.ids.size), number
                at += chat.ids.size
        return Batch(tokens, positions, documents, labels)


def pack_whole(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows as lists of item numbers: best fit decreasing, no item split, ties by number.

    Each item, longest first, goes to the fullest row that has room for it, or to a new one
    (Johnson et al., 1974: at most 11/9 of the optimum and 4 rows more).
    """
    longest = max(lengths, default=0)
    if longest > capacity:
        raise ValueError(f"an item of {longest} does not fit into {capacity}")
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by what they have room for
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        length = lengths[item]
        room = next((room for room in range(length, capacity + 1) if by_room[room]), None)
        row = len(rows) if room is None else by_room[room].pop()
        if room is None:
            room = capacity
            rows.append([])
        rows[row].append(item)
        by_room[room - length].append(row)
    return rows


def read_chats(given: Input, tokenizer: Tokenizer, max_tokens: int) -> tuple[list[Chat], list[str]]:
    """All chats that fit, and the ids of those longer than `max_tokens`.

    Raises:
        InputError: a chat that cannot be learned from, printed; or one that is malformed.
    """
    fitting: list[Chat] = []
    overlong: list[str] = []
    for number, row in enumerate(_rows(given), start=1):
        where = f"{given.ref}: chat {number} ({row['id']})"
        chat = _chat(row, tokenizer, where)
        if chat.ids.size > max_tokens:
            overlong.append(f"{where} has {chat.ids.size} tokens")
        else:
            fitting.append(chat)
    if not fitting:
        raise InputError(f"{given.ref} holds no chat to learn from", hint="see llmctl show, and max_tokens")
    return fitting, overlong


def _rows(given: Input) -> Iterator[dict[str, Any]]:
    for batch in read_batches(given, columns=("id", "messages")):
        yield from batch.to_pylist()


def _chat(row: dict[str, Any], tokenizer: Tokenizer, where: str) -> Chat:
    """Render one chat and refuse what would teach nothing, or teach never to stop."""
    try:
        ids, learned = render_training(tokenizer, row["messages"])
    except InputError as error:
        raise InputError(f"{where}: {error.what}", hint=error.hint) from None
    tokens = np.array(ids, dtype=np.int64)
    labels = np.full(tokens.size, IGNORE, dtype=np.int64)
    labels[:-1] = np.where(learned[1:], tokens[1:], IGNORE)
    targets = labels[labels != IGNORE]
    if targets.size == 0:
        raise InputError(f"{where} has no token to learn: {_shown(row)}", hint="mark the answers with {% generation %}")
    if not np.isin(targets, tokenizer.stop_ids).any():
        raise InputError(
            f"{where} never teaches the model to stop, as no end of turn is learned: {_shown(row)}",
            hint="put <|im_end|> inside {% generation %} in chat_template.jinja",
        )
    return Chat(row["id"], tokens, labels)


def _shown(row: dict[str, Any]) -> str:
    text = repr(row["messages"])
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
