"""Process reward models: a score for each step of an answer, learned from steps that are labelled right or wrong.

Lightman et al. 2023 (arXiv:2305.20050); the data is in the form of TRL's stepwise supervision (`prompt`, `completions`,
`labels`). A step is judged where it ends: at the token that holds the last byte of its text. The ids are those of the
whole answer, as a policy would have said it, and not those of its steps by themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from llmctl.config.dpo import RewardConfig
from llmctl.config.errors import InputError
from llmctl.data.split import is_heldout
from llmctl.data.tables import read_rows
from llmctl.model import scoring
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.chats import Chat, PackedChats
from llmctl.objectives.preferred import Scored, summed, tallied
from llmctl.objectives.targets import refuse_overlong, shown
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Input
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.chat import render_prompt, render_training
from llmctl.tokens.tokenizer import Tokenizer

HEAD = "steps"
"""The fact `head` of a checkpoint whose score is of steps."""
RIGHT, WRONG = 1, 0


@dataclass(frozen=True)
class StepObjective:
    """Cross-entropy of each step's score, as log-odds that it is right; the mean is over steps.

    Attributes:
        rows: whose labels are 1 or 0 where a step ends.
    """

    rows: PackedChats
    names: ClassVar[tuple[str, ...]] = ("rewards/right", "rewards/wrong", "rewards/accuracies")

    def loss(self, model: Transformer, batch: Tensors) -> Tensor:
        """Sum over the steps of the batch."""
        return tallied(model, self.scored(model, batch))

    def scored(self, model: Transformer, batch: Tensors) -> Scored:
        """Losses; scores of right and of wrong steps, and how often a score is on the right side of zero."""
        found, right = step_scores(model, batch)
        losses = binary_cross_entropy_with_logits(found, right.double(), reduction="none")
        values = (found[right], found[~right], ((found > 0) == right).double())
        return Scored(losses, summed(self.names, values))


def step_scores(model: Transformer, batch: Tensors) -> tuple[Tensor, Tensor]:
    """The score of each step in row order, fp64 [N], and whether it is labelled right, bool [N]."""
    ends = batch.labels != IGNORE
    found = scoring.scores(model, hidden_states(model, batch)[0][ends])
    return found.double(), batch.labels[ends] == RIGHT


def answers_to_learn(
    job: Job[RewardConfig], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Chat], list[Chat], int]:
    """Answers to learn from, held-out ones, and how many did not fit; the last is said too.

    Raises:
        InputError: a row cannot be learned from, or nothing is left to learn from.
    """
    given, config = job.inputs["stepwise"], job.config
    fitting: list[Chat] = []
    overlong: list[str] = []
    for where, answer in _read(given, tokenizer, config.step_separator):
        if answer.ids.size > max_tokens:
            overlong.append(f"{where} has {answer.ids.size} tokens")
        else:
            fitting.append(answer)
    refuse_overlong(overlong, config.overlong, max_tokens)
    kept = [answer for answer in fitting if not is_heldout(answer.document, config.heldout_fraction)]
    held = [answer for answer in fitting if is_heldout(answer.document, config.heldout_fraction)]
    if not kept:
        raise InputError(f"{given.ref} leaves nothing to learn from", hint="give more rows, or raise max_tokens")
    if overlong:
        job.progress.note(f"dropped {len(overlong)} answers longer than {max_tokens} tokens")
    if not held:
        job.progress.note("no answer is held out, so there are no held-out figures")
    return kept, held, len(overlong)


def _read(given: Input, tokenizer: Tokenizer, separator: str) -> Iterator[tuple[str, Chat]]:
    for number, row in enumerate(read_rows(given), start=1):
        where = f"{given.ref}: answer {number} ({row['id']})"
        yield where, _answer(row, tokenizer, separator, where)


def _answer(row: dict[str, Any], tokenizer: Tokenizer, separator: str, where: str) -> Chat:
    """One answer as ids, with a label at the end of each step."""
    steps: list[str] = row["completions"]
    text = separator.join(steps)
    try:
        prompt = render_prompt(tokenizer, row["prompt"])
        ids, _ = render_training(tokenizer, [*row["prompt"], {"role": "assistant", "content": text}])
    except InputError as error:
        raise InputError(f"{where}: {error.what}", hint=error.hint) from None
    places = _ends(ids, len(prompt), tokenizer, steps, separator)
    if places is None or ids[: len(prompt)] != prompt:
        raise InputError(
            f"{where}: the chat template does not render the answer as it stands: {shown(text)}",
            hint="take white space off the ends of its steps, or mend chat_template.jinja",
        )
    if len(set(places)) < len(places):
        raise InputError(
            f"{where}: two of its steps end in one token: {shown(steps)}", hint="give step_separator, or longer steps"
        )
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    labels[places] = [RIGHT if right else WRONG for right in row["labels"]]
    return Chat(row.get("document") or row["id"], np.array(ids, dtype=np.int64), labels)


def _ends(
    ids: Sequence[int], start: int, tokenizer: Tokenizer, steps: Sequence[str], separator: str
) -> list[int] | None:
    """The place of the token that holds the last byte of each step; None where the text is not in the ids."""
    pieces = [tokenizer.piece_bytes(index) for index in ids[start:]]
    begin = b"".join(pieces).find(separator.join(steps).encode())
    if begin < 0:
        return None
    reach = np.cumsum([len(piece) for piece in pieces])  # bytes up to the end of each token
    lengths = itertools.accumulate(len((step + separator).encode()) for step in steps)
    last = np.array(list(lengths)) - len(separator.encode()) + begin  # bytes up to the end of each step
    return [int(place) + start for place in np.searchsorted(reach, last)]


def rows_of(answers: Sequence[Chat], pad_id: int, row_tokens: int | None = None) -> PackedChats:
    """Rows of whole answers, as long as the longest unless said otherwise."""
    longest = max((answer.ids.size for answer in answers), default=2)
    return PackedChats(answers, max(longest, row_tokens or 0), pad_id)


def judged(model: Transformer, rows: PackedChats) -> list[list[float]]:
    """The probability that each step is right, for each answer in the order of `rows.chats`."""
    found: list[list[float]] = [[] for _ in rows.chats]
    for row in range(rows.count):
        batch = Tensors.of(rows.batch(np.array([row])), model.device)
        with torch.inference_mode():
            scores = step_scores(model, batch)[0].sigmoid().tolist()
        for which in rows.chats_of(row):
            count = int(np.count_nonzero(rows.chats[which].labels != IGNORE))
            found[which], scores = scores[:count], scores[count:]
    return found
