"""Preferences as token ids: two answers behind one prompt, checked so that nothing trains silently wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.data.split import is_heldout
from llmctl.data.tables import read_rows
from llmctl.objectives.targets import inspected, refuse_overlong, shown, targets
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Artifact, Input
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.chat import render_prompt, render_training
from llmctl.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """One answer behind its prompt.

    Attributes:
        ids: int64 [n].
        labels: int64 [n], the next id where the assistant says it in the answer, -100 elsewhere.
        prompt: how many of the ids are the prompt's.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    prompt: int

    @property
    def targets(self) -> int:
        """How many ids are predicted."""
        return int(np.count_nonzero(self.labels != IGNORE))

    @property
    def end(self) -> int:
        """Where the last id stands that is predicted."""
        return int(np.flatnonzero(self.labels != IGNORE)[-1]) + 1


@dataclass(frozen=True)
class Pair:
    """Two answers that are looked at together.

    Attributes:
        document: id of the document that the row was made from, or of the row where it was made from none.
        answers: the chosen and the rejected one. Where answers are judged by themselves: the answer, and one to
            another prompt put behind this one.
        margin: by how much the chosen one is better; 0 where nobody said so.
        desirable: whether an answer that is judged by itself is a good one.
    """

    document: str
    answers: tuple[Answer, Answer]
    margin: float = 0.0
    desirable: bool = True

    @property
    def tokens(self) -> int:
        """Of both answers, each with its prompt."""
        return sum(answer.ids.size for answer in self.answers)


@dataclass(frozen=True)
class Pairs:
    """All pairs of a source that fit, in its order, held-out ones included.

    Attributes:
        pairs: that fit.
        held: bool [pairs], whether each is held out.
        overlong: what is wrong with those that do not fit.
        heldout_fraction: as in `llmctl.objectives.chats.Sides`.
    """

    pairs: list[Pair]
    held: NDArray[np.bool_]
    overlong: list[str]
    heldout_fraction: float | None

    def refuse(self, overlong: str, max_tokens: int) -> None:
        """Refuse what does not fit, unless it may be dropped.

        Raises:
            InputError: naming the first of them; or none is left.
        """
        refuse_overlong(self.overlong, overlong, max_tokens)
        if not self.pairs:
            raise InputError("no preference fits, so there is nothing to learn from", hint="raise max_tokens")

    def refuse_empty_training(self) -> None:
        """Refuse to hold out everything.

        Raises:
            InputError: nothing is left to learn from.
        """
        if self.held.all():
            raise InputError(
                f"all {len(self.pairs)} preferences are held out", hint="lower heldout_fraction, or give more"
            )

    def told(self, max_tokens: int) -> list[str]:
        """What is not trained on, or not measured."""
        overlong, every = len(self.overlong), len(self.overlong) + len(self.pairs)
        dropped = f"dropped {overlong} preferences longer than {max_tokens} tokens of {every}"
        unmeasured = "no preference is held out, so there are no held-out figures"
        return [*([dropped] if overlong else []), *([] if self.held.any() else [unmeasured])]


def pairs_to_learn(job: Job[Any], tokenizer: Tokenizer, max_tokens: int, *, unpaired: bool = False) -> Pairs:
    """The preferences of a training run; it is said what of them is not learned from, and the first are shown if asked.

    Args:
        job: the run.
        tokenizer: the checkpoint's.
        max_tokens: longest prompt with its answer that fits.
        unpaired: as for `read_pairs`.

    Raises:
        InputError: a row cannot be learned from, or nothing is left to learn from.
    """
    given, config = job.inputs["preferences"], job.config
    found = read_pairs(given, tokenizer, max_tokens, config.heldout_fraction, unpaired=unpaired)
    found.refuse(config.overlong, max_tokens)
    found.refuse_empty_training()
    names = ("completion", "mismatched") if unpaired else ("chosen", "rejected")
    for note in (*found.told(max_tokens), *_inspected(found.pairs[: config.inspect], names, tokenizer)):
        job.progress.note(note)
    return found


def _inspected(pairs: Sequence[Pair], names: tuple[str, str], tokenizer: Tokenizer) -> Iterator[str]:
    """Both answers of each pair, token by token; `names` says what they are."""
    for number, pair in enumerate(pairs, start=1):
        for name, answer in zip(names, pair.answers, strict=True):
            yield from inspected(f"preference {number}, {name}", answer.ids, answer.labels, tokenizer)


def read_pairs(given: Input, tokenizer: Tokenizer, max_tokens: int, fraction: float, *, unpaired: bool) -> Pairs:
    """Every row of `given` as ids.

    Args:
        given: preferences.
        tokenizer: the checkpoint's.
        max_tokens: longest prompt with its answer that fits.
        fraction: share to hold out of rows that are not split yet.
        unpaired: take each answer by itself, and put beside it the next answer to another prompt.

    Raises:
        InputError: a row that cannot be learned from, printed; or one that is malformed.
    """
    split = isinstance(given, Artifact) and "heldout_fraction" in given.manifest.semantic
    pairs: list[Pair] = []
    sides: list[bool] = []
    overlong: list[str] = []
    for side in ("train", "heldout") if split else ("train",):
        for number, row in enumerate(read_rows(given, side), start=1):
            where = f"{given.ref}: preference {number} ({row['id']})"
            for pair in _of_row(row, tokenizer, where, unpaired=unpaired):
                longest = max(answer.ids.size for answer in pair.answers)
                if longest > max_tokens:
                    overlong.append(f"{where} has {longest} tokens")
                else:
                    pairs.append(pair)
                    sides.append(side == "heldout" if split else is_heldout(pair.document, fraction))
    known = float(given.manifest.semantic["heldout_fraction"]) if split and isinstance(given, Artifact) else None
    if unpaired and pairs:
        pairs = mismatched(pairs, max_tokens, given.ref)
    return Pairs(pairs, np.array(sides, dtype=np.bool_), overlong, known)


def _of_row(row: dict[str, Any], tokenizer: Tokenizer, where: str, *, unpaired: bool) -> Iterator[Pair]:
    """One pair, or one answer for each side that there is; such an answer stands in for its mismatch too."""
    document = row.get("document") or row["id"]
    if unpaired:
        for name in ("chosen", "rejected"):
            if row[name]:
                answer = _answer(row, name, tokenizer, where)
                yield Pair(document, (answer, answer), desirable=name == "chosen")
        return
    for name in ("chosen", "rejected"):
        if not row[name]:
            raise InputError(
                f"{where} has no {name} answer: it was judged by itself", hint="--loss kto learns from such answers"
            )
    answers = (_answer(row, "chosen", tokenizer, where), _answer(row, "rejected", tokenizer, where))
    yield Pair(document, answers, margin=row.get("margin") or 0.0)


def _answer(row: dict[str, Any], name: str, tokenizer: Tokenizer, where: str) -> Answer:
    """Render one side and refuse what would teach nothing, or teach never to stop."""
    sides = {side: row[side] for side in ("prompt", "chosen", "rejected")}
    said = [turn["content"] for turn in row[name] if turn["role"] == "assistant"]
    if not said or not all(text.strip() for text in said):
        raise InputError(f"{where} has an empty {name} answer: {shown(sides)}", hint="leave the row out, or mend it")
    try:
        prompt = render_prompt(tokenizer, row["prompt"])
        ids, learned = render_training(tokenizer, [*row["prompt"], *row[name]])
    except InputError as error:
        raise InputError(f"{where}: {error.what}", hint=error.hint) from None
    if ids[: len(prompt)] != prompt:
        raise InputError(
            f"{where}: the chat template renders the prompt otherwise before an answer than by itself: {shown(sides)}",
            hint="what is learned would not be what is asked; mend chat_template.jinja",
        )
    spoken = [False] * len(prompt) + learned[len(prompt) :]
    tokens, labels = targets(ids, spoken, tokenizer, f"{where}: {name}", sides)
    return Answer(tokens, labels, len(prompt))


def mismatched(pairs: Sequence[Pair], max_tokens: int, ref: str) -> list[Pair]:
    """The same answers, and beside each the next one in order that answers another prompt, put behind this prompt.

    What does not fit is cut off: the estimate of how far the policy has moved (KTO's z) takes any text.

    Raises:
        InputError: all answer one prompt.
    """
    prompts = [pair.answers[0].ids[: pair.answers[0].prompt].tobytes() for pair in pairs]
    count = len(pairs)
    following = [0] * count  # the nearest later one, cyclically, with another prompt
    beyond = next((at for at in range(count) if prompts[at] != prompts[-1]), None)
    if beyond is None:
        raise InputError(f"{ref}: all answers are to one prompt", hint="KTO compares with answers to other prompts")
    for at in range(count - 1, -1, -1):
        differs = at + 1 < count and prompts[at + 1] != prompts[at]
        following[at] = at + 1 if differs else beyond if at + 1 == count else following[at + 1]
    return [
        dataclasses.replace(pair, answers=(pair.answers[0], _behind(pair.answers[0], pairs[at].answers[0], max_tokens)))
        for pair, at in zip(pairs, following, strict=True)
    ]


def _behind(own: Answer, other: Answer, max_tokens: int) -> Answer:
    """The other's answer behind the own prompt."""
    ids = np.concatenate([own.ids[: own.prompt], other.ids[other.prompt :]])[:max_tokens]
    labels = np.concatenate([own.labels[: own.prompt - 1], other.labels[other.prompt - 1 :]])[:max_tokens]
    labels[-1] = IGNORE  # where it was cut, what comes next is beyond the row
    return Answer(ids, labels, own.prompt)
