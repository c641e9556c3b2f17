"""Which documents go into the mixture, and where: all decided on indices, before a text is moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import xxhash

from llmctl.config.errors import InputError
from llmctl.config.mix import MixConfig, Unit
from llmctl.data.dedup.minhash import mix
from llmctl.data.mix.schedule import Supply, interleave, shares
from llmctl.data.mix.survey import COLUMNS, Ints, Mask, Survey


@dataclass(frozen=True)
class Source:
    """One source. Arrays are by document, in reading order.

    Attributes:
        name: what the user calls it.
        survey: identities and sizes.
        heldout: on the held-out side by the house rule.
        near: on the training side, but near a held-out document.
    """

    name: str
    survey: Survey
    heldout: Mask
    near: Mask

    def sizes(self, unit: Unit) -> Ints:
        """Size of each document."""
        return self.survey.sizes(unit)

    def training(self) -> Ints:
        """Indices of the documents that may be trained on."""
        found: Ints = np.flatnonzero(~self.heldout & ~self.near)
        return found


@dataclass(frozen=True)
class Drawn:
    """The rows of one split, in order: which source, and which of its documents."""

    source: npt.NDArray[np.int32]
    document: Ints

    def of(self, source: int) -> Ints:
        """The documents of one source, in order."""
        mine: Ints = self.document[self.source == source]
        return mine


def source_shares(sources: Sequence[Source], config: MixConfig) -> dict[str, float]:
    """Each source's share; sizes are those of the documents that may be trained on.

    Raises:
        InputError: a source has no such document.
    """
    sizes: dict[str, int] = {}
    for source in sources:
        training = source.training()
        if not len(training):
            held, near = int(source.heldout.sum()), int(source.near.sum())
            why = f"{held} held out, {near} near a held-out one" if held else "it is empty"
            raise InputError(
                f"the source {source.name} holds no document to train on: {why}",
                hint="leave it out, or give a smaller --heldout",
            )
        sizes[source.name] = max(1, int(source.sizes(config.by)[training].sum()))
    return shares(sizes, config.weights, config.temperature)


def draw_training(sources: Sequence[Source], share: Mapping[str, float], config: MixConfig) -> Drawn:
    """The training split: as much as is asked for, or as much as there is without repeating a document.

    Raises:
        InputError: the sources hold too little for the total, even with `max_epochs`.
    """
    pools = [source.training() for source in sources]
    epochs = 1.0 if config.total is None else config.max_epochs
    supplies = [
        _supply(source, pool, config, int(epochs * len(pool))) for source, pool in zip(sources, pools, strict=True)
    ]
    unit, wanted = config.total or ("documents", 1 << 62)
    meter = _Meter([source.sizes(unit) for source in sources], wanted)
    turns = interleave(supplies, [share[source.name] for source in sources], meter)
    if config.total is not None and turns.short is not None:
        name = sources[turns.short].name
        raise InputError(
            f"a total of {wanted:,} {unit} needs more than {config.max_epochs:g} epochs of {name}: "
            f"the mixture ends at {meter.reached:,}",
            hint="lower the total or the weight of that source, or raise max_epochs",
        )
    return _collected(turns.source, supplies)


def draw_heldout(sources: Sequence[Source], share: Mapping[str, float], config: MixConfig, train_size: int) -> Drawn:
    """The held-out split: in the same shares, never repeated, in proportion to the training split.

    A source whose held-out documents are used up is left out from there on. `train_size` is the training
    split's size in the unit of the shares.
    """
    pools = [np.flatnonzero(source.heldout) for source in sources]
    supplies = [_supply(source, pool, config, len(pool)) for source, pool in zip(sources, pools, strict=True)]
    wanted = round(train_size * config.heldout_fraction / (1 - config.heldout_fraction))
    meter = _Meter([source.sizes(config.by) for source in sources], max(1, wanted))
    turns = interleave(supplies, [share[source.name] for source in sources], meter, go_on=True)
    return _collected(turns.source, supplies)


class _Meter:
    """Adds up what is taken until there is enough."""

    def __init__(self, sizes: Sequence[Ints], wanted: int) -> None:
        self.reached = 0
        self._sizes, self._wanted = [own.tolist() for own in sizes], wanted

    def __call__(self, source: int, document: int) -> bool:
        self.reached += self._sizes[source][document]
        return self.reached >= self._wanted


def _supply(source: Source, pool: Ints, config: MixConfig, limit: int) -> Supply:
    return Supply(partial(_order, source, pool, config.seed), source.sizes(config.by), limit)


def _order(source: Source, pool: Ints, seed: int, epoch: int) -> Ints:
    """`pool` shuffled: by a hash of seed, source, epoch and id, so the order of the parts does not matter."""
    salt = np.uint64(xxhash.xxh64_intdigest(f"{seed}/{source.name}/{epoch}".encode()))
    return pool[np.argsort(mix(source.survey.identity[pool] ^ salt), kind="stable")]


def _collected(turns: npt.NDArray[np.int32], supplies: Sequence[Supply]) -> Drawn:
    document = np.empty(len(turns), dtype=np.int64)
    for number, supply in enumerate(supplies):
        document[turns == number] = supply.documents()
    return Drawn(turns, document)


def new_marks(survey: Survey) -> Ints:
    """By row of the mixture, the mark that its id gets, so that every id is there once; 0 where it stays as it is.

    The first row of an id keeps it. Every other one gets the next number that no id of the same origin has:
    `a`, `a~2` (as it came), then `a~3` for a second `a`.
    """
    count = len(survey.name)
    repeated = np.ones(count, dtype=np.bool_)
    repeated[np.unique(survey.name, return_index=True)[1]] = False
    family = np.unique(survey.identity, return_inverse=True)[1]
    highest = np.zeros(count, dtype=np.int64)
    np.maximum.at(highest, family, survey.mark)
    rows = np.flatnonzero(repeated)
    rows = rows[np.argsort(family[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(family[rows], prepend=-1))
    within = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    marks = np.zeros(count, dtype=np.int64)
    marks[rows] = highest[family[rows]] + 1 + within
    return marks


def cut(sizes: Ints, part_bytes: int) -> Ints:
    """By row, the number of the part that it goes to: a part is closed by the row that fills it."""
    if not len(sizes):
        return np.empty(0, dtype=np.int64)
    before = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    return np.unique(before // part_bytes, return_inverse=True)[1].astype(np.int64)


def survey_of(sources: Sequence[Source], drawn: Drawn) -> Survey:
    """What is known of the document of each row."""
    columns = {}
    for name in COLUMNS:
        own = [getattr(source.survey, name) for source in sources]
        columns[name] = np.empty(len(drawn.source), dtype=own[0].dtype)
        for number, values in enumerate(own):
            mine = drawn.source == number
            columns[name][mine] = values[drawn.document[mine]]
    return Survey(**columns)
