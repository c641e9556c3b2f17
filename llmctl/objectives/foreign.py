"""A teacher of another vocabulary: where it has read the same bytes as the student, and what it says there.

Both read the same chats, each by its own tokenizer and template. Two of their targets are compared where the same bytes
of the same answer lie before them; which tokens may follow is then ranked on either side (see
`llmctl.objectives.divergences.ranked`), so that no token needs to be found again in the other vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.config.distill import DistillConfig
from llmctl.config.errors import InputError
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.chats import Chat, PackedChats, Sides, read_sides
from llmctl.objectives.divergences import ranked, tempered
from llmctl.objectives.targets import refuse_overlong
from llmctl.objectives.texts import Side, Texts, packed_sides
from llmctl.store.artifact import Input
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch
from llmctl.tokens.tokenizer import Tokenizer

NOWHERE = -1
ANY_LENGTH = 2**62
PLACES = "their_places"
Places = NDArray[np.int64]


class Foreign:
    """A `Teaching` that reads every chat by its own tokens, which `ForeignRows` puts beside the student's.

    Args:
        model: the teacher; it is moved to where the batches are.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def seen(self, batch: Tensors, wanted: Tensor) -> tuple[Tensor, ...]:
        """Hidden states [N,D], and whether there is one, bool [N]."""
        tokens, positions, documents = (batch.beside[f"their_{name}"] for name in ("tokens", "positions", "documents"))
        theirs = Tensors(tokens, positions, documents, torch.full_like(tokens, IGNORE), one_each=False)
        places = batch.beside[PLACES][wanted]
        rows = wanted.nonzero()[:, 0]
        return hidden_states(self.model, theirs)[0][rows, places.clamp(min=0)], places != NOWHERE

    def compared(self, logits: Tensor, temperature: float, *seen: Tensor) -> tuple[Tensor, Tensor]:
        """Both ranked, over as many classes as the larger vocabulary has.

        Where the teacher has nothing to say, the student is held against itself, which costs nothing.
        """
        hidden, reached = seen
        with torch.no_grad():
            teacher = tempered(self.model.logits(hidden), temperature)
        student = tempered(logits, temperature)
        classes = max(teacher.shape[-1], student.shape[-1])
        theirs, ours = ranked(teacher, classes), ranked(student, classes)
        return torch.where(reached[:, None], theirs.to(ours.dtype), ours.detach()), ours


def read_foreign(
    given: Input,
    config: DistillConfig,
    ours: tuple[Tokenizer, int, int],
    theirs: tuple[Tokenizer, int],
) -> tuple[Texts, ForeignRows, ForeignRows]:
    """The chats as the student learns them; rows to learn from and held-out rows, with the teacher's reading beside.

    Args:
        given: chats.
        config: of the run.
        ours: the student's tokenizer, the most tokens of a chat, and the id that fills rows.
        theirs: the teacher's tokenizer, and its context.

    Raises:
        InputError: a chat cannot be learned from or does not fit, nothing is left to learn from, or the two have no
            place in common.
    """
    tokenizer, longest, filling = ours
    found, other = (
        read_sides(given, reader, ANY_LENGTH, 0.0, config.overlong, config.learn) for reader in (tokenizer, theirs[0])
    )
    pairs = list(zip(_every(found), _every(other), strict=True))
    fits = [one.ids.size <= longest and another.ids.size <= theirs[1] for one, another in pairs]
    overlong = [
        f"{given.ref}: chat {number} has {one.ids.size} tokens of the student's and {another.ids.size} of the teacher's"
        for number, ((one, another), fit) in enumerate(zip(pairs, fits, strict=True), start=1)
        if not fit
    ]
    refuse_overlong(overlong, config.overlong, min(longest, theirs[1]))
    split = sum(fits[: len(found.kept)])
    if not split:
        raise InputError(f"{given.ref} holds no chat to learn from", hint="see llmctl show, and max_tokens")
    kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    sides = Sides([one for one, _ in kept[:split]], [one for one, _ in kept[split:]], overlong, found.heldout_fraction)
    texts = packed_sides(sides, longest, filling, config.heldout_fraction)
    places = [shared_places(one, another, tokenizer, theirs[0]) for one, another in kept]
    if all((one == NOWHERE).all() for one in places):
        raise InputError(
            f"{given.ref}: teacher and student never stand behind the same bytes of an answer",
            hint="their tokenizers change the text in other ways; see docs/distill.md",
        )
    rows, held = (ForeignRows(side, [another for _, another in kept], places) for side in (texts.kept, texts.held))
    return texts, rows, held


def _every(sides: Sides) -> list[Chat]:
    return [*sides.kept, *sides.held]


class ForeignRows:
    """Rows of chats with the teacher's reading of them: a `RowSource`.

    `Batch.beside` gets `their_tokens`, `their_positions` and `their_documents` [B,T'], the same chats in the same rows
    by the teacher's tokens, and `their_places` int64 [B,T]: where in its row of these the teacher predicts what the
    label's place predicts, `NOWHERE` where nowhere.

    Args:
        side: the student's rows.
        theirs: every chat as the teacher reads it.
        places: of every chat, as `shared_places` gives them.
    """

    def __init__(self, side: Side, theirs: Sequence[Chat], places: Sequence[Places]) -> None:
        assert isinstance(side.rows, PackedChats), "they are chats"
        self.count, self._side, self._rows = side.rows.count, side, side.rows
        self._theirs, self._places = theirs, places

    @property
    def read(self) -> list[tuple[Chat, Chat, Places]]:
        """Each chat of these rows, in their order: as the student and as the teacher reads it, and the places."""
        numbers = self._side.numbers.tolist()
        return [(chat, self._theirs[at], self._places[at]) for chat, at in zip(self._rows.chats, numbers, strict=True)]

    @property
    def reached(self) -> tuple[int, int]:
        """(targets at which the teacher can be asked, all targets)."""
        of_side = [self._places[number] for number in self._side.numbers]
        chats = self._rows.chats
        return (
            sum(int((one != NOWHERE).sum()) for one in of_side),
            sum(int((chat.labels != IGNORE).sum()) for chat in chats),
        )

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, in that order."""
        plain = self._rows.batch(indices)
        numbers = [self._side.units_of(int(row)) for row in indices]
        width = max(sum(self._theirs[number].ids.size for number in row) for row in numbers)
        shape = (len(indices), width)
        tokens, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, PADDING_DOCUMENT, dtype=np.int32)
        places = np.full(plain.labels.shape, NOWHERE, dtype=np.int64)
        for row, of_row in enumerate(numbers):
            at = ours = 0
            for place, number in enumerate(of_row):
                chat, own = self._theirs[number], self._places[number]
                there = slice(at, at + chat.ids.size)
                tokens[row, there], positions[row, there] = chat.ids, np.arange(chat.ids.size)
                documents[row, there] = place
                places[row, ours : ours + own.size] = np.where(own == NOWHERE, NOWHERE, own + at)
                at, ours = at + chat.ids.size, ours + own.size
        beside = {
            **plain.beside,
            "their_tokens": tokens,
            "their_positions": positions,
            "their_documents": documents,
            PLACES: places,
        }
        return Batch(plain.tokens, plain.positions, plain.documents, plain.labels, plain.units, beside)


def shared_places(ours: Chat, theirs: Chat, our_tokenizer: Tokenizer, their_tokenizer: Tokenizer) -> Places:
    """Of each of our places, the one of theirs whose target begins behind the same bytes of the same answer; [n].

    `NOWHERE` where there is no target or no such place. White space around an answer, which templates differ in, is
    before its first byte or behind its last; of several targets behind the same bytes the first counts.
    """
    found = np.full(ours.ids.size, NOWHERE, dtype=np.int64)
    for own, other in zip(_turns(ours), _turns(theirs), strict=False):
        our_text, our_starts = _spelled(ours.labels[own], our_tokenizer)
        their_text, their_starts = _spelled(theirs.labels[other], their_tokenizer)
        if our_text == their_text:
            for start in our_starts.keys() & their_starts.keys():
                found[own[our_starts[start]]] = other[their_starts[start]]
    return found


def _turns(chat: Chat) -> list[Places]:
    """The places whose labels are learned, turn by turn."""
    learned = np.flatnonzero(chat.labels != IGNORE)
    return np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1)


def _spelled(labels: Places, tokenizer: Tokenizer) -> tuple[bytes, dict[int, int]]:
    """The bytes of a turn without white space around them, and by how many of them lie before it, the first token."""
    pieces = [tokenizer.piece_bytes(int(index)) for index in labels]
    text = b"".join(pieces)
    begin = len(text.lstrip()) - len(text)
    starts: dict[int, int] = {}
    for at, piece in enumerate(pieces):
        end = begin + len(piece)
        if begin >= 0 or end > 0:
            starts.setdefault(max(begin, 0), at)
        begin = end
    return text.strip(), starts
