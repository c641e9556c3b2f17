"""What a student says itself, as a teacher of other tokens reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.objectives.chats import Chat
from llmctl.objectives.foreign import ForeignRows, Places, shared_places
from llmctl.objectives.on_policy import Alone, joined, last_turn
from llmctl.objectives.texts import Side
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reader:
    """Reads what a student says as its teacher does.

    Attributes:
        ours: the student's tokenizer.
        theirs: the teacher's.
        longest: tokens that the teacher reads; an answer that goes on is not compared.
    """

    ours: Tokenizer
    theirs: Tokenizer
    longest: int

    def read(self, said: Chat, asked: Chat) -> tuple[Chat, Places]:
        """The teacher's chat up to its last turn and there what was said; and `shared_places` of the two.

        An answer that ended ends for the teacher too, as its own chat does. Where it was cut within a character, the
        two do not hold the same bytes, and share no place.
        """
        labels = said.labels[said.labels != IGNORE]
        ids = self.theirs.encode(self.ours.decode(labels.tolist()))
        if labels.size and labels[-1] in self.ours.stop_ids:
            ids += asked.labels[np.isin(asked.labels, self.theirs.stop_ids)].tolist()[-1:]
        prompt = asked.ids[: last_turn(asked)]
        theirs = joined(asked, prompt, tuple(ids[: self.longest - prompt.size]))
        return theirs, shared_places(said, theirs, self.ours, self.theirs)


class ForeignAlone(Alone):
    """Chats by themselves with the teacher's reading of them, and of answers that are said in their place.

    Args:
        rows: of the chats, with what the teacher reads.
        seq_len: longest text of the student.
        pad_id: what fills rows.
        reader: of answers.
    """

    def __init__(self, rows: ForeignRows, seq_len: int, pad_id: int, reader: Reader) -> None:
        super().__init__([chat for chat, _, _ in rows.read], seq_len, pad_id)
        self._read, self._reader = [(theirs, places) for _, theirs, places in rows.read], reader

    def answered(self, numbers: NDArray[np.int64], said: Mapping[int, Chat]) -> Batch:
        """As there; each chat and each answer with the teacher's reading beside it."""
        packed, found = self.packed(numbers, said), []
        for at, number in enumerate(numbers):
            theirs, places = self._read[int(number)]
            found.append(self._reader.read(said[at], theirs) if at in said else (theirs, places))
        side = Side(packed, np.arange(len(found)))
        rows = ForeignRows(side, [theirs for theirs, _ in found], [places for _, places in found])
        return rows.batch(np.arange(rows.count))
