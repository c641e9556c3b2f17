"""What is predicted of a rendered text, checked so that nothing teaches never to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.tokenizer import Tokenizer

SHOWN_CHARS = 300


def targets(
    ids: Sequence[int], learned: Sequence[bool], tokenizer: Tokenizer, where: str, said: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids, int64 [n], and their labels, int64 [n]: the next id where that one is learned, -100 elsewhere.

    Args:
        ids: of the whole text.
        learned: for each, whether it is to be learned.
        tokenizer: that they are of.
        where: what an error starts with.
        said: the messages, printed in an error.

    Raises:
        InputError: nothing is learned, or no end of a turn.
    """
    tokens = np.array(ids, dtype=np.int64)
    labels = np.full(tokens.size, IGNORE, dtype=np.int64)
    labels[:-1] = np.where(learned[1:], tokens[1:], IGNORE)
    predicted = labels[labels != IGNORE]
    if predicted.size == 0:
        raise InputError(f"{where} has no token to learn: {shown(said)}", hint="mark the answers with {% generation %}")
    if not np.isin(predicted, tokenizer.stop_ids).any():
        raise InputError(
            f"{where} never teaches the model to stop, as no end of turn is learned: {shown(said)}",
            hint="put <|im_end|> inside {% generation %} in chat_template.jinja",
        )
    return tokens, labels


def inspected(name: str, ids: NDArray[np.int64], labels: NDArray[np.int64], tokenizer: Tokenizer) -> Iterator[str]:
    """Lines that show a text token by token: its place, its id, whether it is learned, whether it ends a turn.

    Args:
        name: what the text is.
        ids: int64 [n].
        labels: int64 [n], as `targets` makes them.
        tokenizer: that they are of.
    """
    special = {index: text for text, index in tokenizer.special.items()}
    learned = np.concatenate(([False], labels[:-1] != IGNORE))
    ends = np.isin(ids, tokenizer.stop_ids)
    yield f"{name}: {ids.size} tokens, {learned.sum()} learned, of which {(learned & ends).sum()} end a turn"
    yield "  place      id  learned  token"
    for place, index in enumerate(ids.tolist()):
        text = special.get(index) or tokenizer.piece_bytes(index).decode("utf-8", "backslashreplace")
        mark = "yes" if learned[place] else "-"
        yield f"{place:7d} {index:7d}  {mark:7}  {text!r}{'  ends a turn' if ends[place] else ''}"


def shown(said: Any) -> str:
    """The start of what was said, for an error."""
    text = repr(said)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def refuse_overlong(overlong: Sequence[str], policy: str, max_tokens: int) -> None:
    """Refuse what does not fit, unless it may be dropped.

    Args:
        overlong: what is wrong with each.
        policy: `error` or `drop`.
        max_tokens: the most that fit.

    Raises:
        InputError: naming the first of them.
    """
    if overlong and policy == "error":
        raise InputError(
            f"{overlong[0]}, more than {max_tokens}; {len(overlong)} in all are too long",
            hint="raise max_tokens up to the model's context, or overlong=drop",
        )
