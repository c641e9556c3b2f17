"""What every question and every answer must be, whatever the way: its form, its length, and in no evaluation set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from llmctl.config.errors import InputError
from llmctl.config.synth import SynthConfig
from llmctl.data.decontaminate.items import Item, Table, tables, texts_in
from llmctl.data.decontaminate.overlap import find
from llmctl.data.dedup.kernel import library
from llmctl.data.raw import raw_rows
from llmctl.data.tables import read_rows
from llmctl.objectives.synth.said import Said
from llmctl.pipeline.derive import AGAINST
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Input


class Sieve:
    """Finds what is wrong with texts.

    Args:
        config: form and length of answers.
        looked_for: n-grams of evaluation sets.
    """

    def __init__(self, config: SynthConfig, looked_for: Sequence[Table] = ()) -> None:
        self._config, self._looked_for = config, tuple(looked_for)
        self._form = re.compile(config.form)

    @classmethod
    def of(cls, job: Job[SynthConfig]) -> Sieve:
        """With the evaluation sets that are known; it is said how many items they have.

        Raises:
            InputError: a set is named that has no text to look for.
        """
        settings = job.config.contamination
        if settings is None:
            return cls(job.config)
        items = list(_items(job.group(AGAINST), job.inputs.get("chats")))
        if not items:
            job.progress.note("contamination: no evaluation set is known; --against NAME=REF names one")
            return cls(job.config)
        library()
        looked_for, short = tables(items, settings.ngram_words, settings.min_words)
        if short == len(items):
            raise InputError(
                f"no evaluation item has a text of {settings.min_words} words",
                hint="lower contamination.min_words, or contamination=null",
            )
        left_out = f"; {short} have no text of {settings.min_words} words and are not" if short else ""
        job.progress.note(f"contamination: {len(items) - short} evaluation items are looked for{left_out}")
        return cls(job.config, looked_for)

    def contaminated(self, texts: Sequence[str]) -> list[bool]:
        """Whether each holds words of an evaluation item."""
        if not self._looked_for or not texts:
            return [False] * len(texts)
        found = find(pa.array(texts, pa.string()), self._looked_for, 1)
        return [number in found for number in range(len(texts))]

    def sifted(self, said: Sequence[Said]) -> list[Said]:
        """The answers, each with what is wrong with it."""
        shaped = [one if one.fault else replace(one, fault=self._shape(one.text)) for one in said]
        spoiled = self.contaminated(["" if one.fault else one.text for one in shaped])
        return [
            replace(one, fault="contaminated") if bad and not one.fault else one
            for one, bad in zip(shaped, spoiled, strict=True)
        ]

    def _shape(self, text: str) -> str:
        words, config = len(text.split()), self._config
        if self._form.search(text) is None:
            return "malformed"
        if words < config.least_words:
            return "too_short"
        return "too_long" if config.most_words is not None and words > config.most_words else ""


def _items(against: Mapping[str, Input], chats: Input | None) -> Iterator[Item]:
    """Those of the sets that are named, and of the side of the chats that nothing may learn from."""
    for name, given in against.items():
        for where, row in raw_rows(given):
            yield Item(f"{name}: {where}", list(texts_in(row)))
    for row in read_rows(chats, "heldout") if chats is not None else ():
        yield Item(row["id"], list(texts_in(row["messages"])))
