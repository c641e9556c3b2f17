"""The stage `synth`: a teacher makes data part by part, in one of several ways, and what passes is written."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmctl.config.errors import GateError, UsageError
from llmctl.config.synth import SynthConfig
from llmctl.data.funnel import write_funnel
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import SCHEMA_NAMES, SCHEMAS
from llmctl.objectives.asked import Message, Question
from llmctl.objectives.rewards.registry import Rewards
from llmctl.objectives.synth.answers import Answers, Preferences
from llmctl.objectives.synth.desk import Desk, Numbered
from llmctl.objectives.synth.instruct import SelfInstruct
from llmctl.objectives.synth.passages import Passages
from llmctl.objectives.synth.revisions import Revisions
from llmctl.objectives.synth.said import Ask
from llmctl.objectives.synth.scored import reward_model
from llmctl.objectives.synth.sieve import Sieve
from llmctl.objectives.synth.tally import ANSWERS, Tally
from llmctl.objectives.synth.teacher import open_teacher
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Input
from llmctl.store.files import publish_bytes

PART_PROMPTS = 16  # that are asked together, and kept together when they are answered
MILLION = 1e6


class Way(Protocol):
    """One way to make data.

    Attributes:
        counted: what its units are called among the totals.
        made: questions of the teacher's own; those of earlier parts decide what is asked in later ones.
    """

    counted: str
    made: list[str]

    def units(self, inputs: Mapping[str, Input]) -> list[Question]:
        """What is asked about, in order."""
        ...

    def opening(self, unit: Question) -> list[Message]:
        """What is asked first about a unit."""
        ...

    def rows(self, units: Sequence[Numbered], desk: Desk) -> Iterator[dict[str, Any]]:
        """What becomes of some units."""
        ...


def way_of(config: SynthConfig) -> Way:
    """The one that the configuration names."""
    ways: dict[str, Callable[[SynthConfig], Way]] = {
        "answers": Answers,
        "thoughts": Answers,
        "self_instruct": SelfInstruct,
        "questions": Passages,
        "preferences": Preferences,
        "revisions": Revisions,
    }
    return ways[config.way.name](config)


@dataclass(frozen=True)
class Part:
    """What became of some units, as it is kept until the run is over.

    Attributes:
        rows: of the table.
        steps: the books (`Tally.steps`).
        counts: requests, tokens, seconds, and units without a row.
        made: questions of the teacher's own.
        missing: why the first answer without a reward has none; empty where all have one.
    """

    rows: list[dict[str, Any]]
    steps: dict[str, dict[str, Any]]
    counts: dict[str, float]
    made: list[str]
    missing: str = ""


def run(job: Job[SynthConfig]) -> Product:
    """Work through all units, part by part; parts that a killed run has finished are taken as they are.

    Raises:
        GateError: nothing passes.
        InputError: a malformed prompt, or one that leaves no room for an answer.
        UsageError: inputs that the way does not ask about.
    """
    config = job.config
    if config.server.url and "input" in job.inputs:
        raise UsageError(f"{job.inputs['input'].ref} and {config.server.url} are both teachers", hint="leave out one")
    if wrong := {"prompts", "chats", "documents"} & set(job.inputs) - set(config.way.asks):
        asks, given = (" or ".join(f"--{role}" for role in some) for some in (config.way.asks, sorted(wrong)))
        raise UsageError(f"way={config.way.name} asks about {asks}, and got {given}", hint=f"leave out {given}")
    way = way_of(config)
    numbered = list(enumerate(way.units(job.inputs)))
    parts = [numbered[at : at + PART_PROMPTS] for at in range(0, len(numbered), PART_PROMPTS)]
    done: list[Part] = []
    while len(done) < len(parts) and (found := _finished(job.work, len(done))) is not None:
        done.append(found)
        way.made += found.made
    if done:
        job.progress.note(f"{len(done)} of {len(parts)} parts were answered before")
    if len(done) < len(parts):
        _work(job, way, parts, done)
    return _written(job, done, way.counted, len(numbered))


def _work(job: Job[SynthConfig], way: Way, parts: Sequence[Sequence[Numbered]], done: list[Part]) -> None:
    """Add the parts that are not done."""
    config, total = job.config, sum(map(len, parts))
    sieve = Sieve.of(job)
    score, scored_ids = reward_model(job)
    with Rewards(config.rewards, config.reward_timeout_s, score) as rewards, open_teacher(job) as teacher:
        units = [unit for part in parts for _, unit in part]
        rewards.check(units)
        teacher.check([(unit, Ask(way.opening(unit), (0,))) for unit in units])
        desk = Desk(teacher, rewards, sieve, config, scored_ids)
        for some in parts[len(done) :]:
            desk.begin()
            before = len(way.made)
            rows = list(way.rows(some, desk))
            counts = {**desk.counts, "generate_s": desk.seconds}
            done.append(Part(rows, desk.tally.steps, counts, way.made[before:], desk.missing))
            _keep(done[-1], job.work, len(done) - 1)
            kept = sum(len(part.rows) for part in done)
            job.progress.update(min(total, len(done) * PART_PROMPTS), total, way.counted, kept=kept)


def _file(work: Path, number: int) -> Path:
    return work / f"answers-{number:08d}.json"


def _keep(part: Part, work: Path, number: int) -> None:
    publish_bytes(_file(work, number), json.dumps(dataclasses.asdict(part)).encode())


def _finished(work: Path, number: int) -> Part | None:
    path = _file(work, number)
    return Part(**json.loads(path.read_bytes())) if path.is_file() else None


def _written(job: Job[SynthConfig], parts: Sequence[Part], counted: str, units: int) -> Product:
    """The table of all parts, the books, and what came of how much.

    Raises:
        GateError: there is nothing to write.
    """
    kind = job.config.way.output
    tally, counts = Tally(), Counter[str]()
    for part in parts:
        tally.merge(Tally(part.steps))
        counts.update(part.counts)
    rows, dropped = [row for part in parts for row in part.rows], tally.counts()
    missing = next((part.missing for part in parts if part.missing), "")
    if missing:
        job.progress.note(f"no reward, or no answer: {missing}")
    answers = tally.steps[ANSWERS]["in"] if ANSWERS in tally.steps else 0
    if not rows:
        told = ", ".join(f"{count} {name.removeprefix('dropped.')}" for name, count in dropped.items())
        raise GateError(
            f"none of {answers} answers passes: {told}",
            hint=missing or "raise samples or max_new_tokens, or lower least",
        )
    with TableWriter(job.out, SCHEMAS[kind], prefix="part") as writer:
        writer.write_rows(rows)
    files = writer.close()
    size = sum(len(turn["content"].encode()) for row in rows for turn in _spoken(row))
    each = 2 if job.config.way.compares else 1
    write_funnel(job.out, tally.content(len(rows), size, each))
    totals: dict[str, int | float | str] = {
        kind: len(rows),
        counted: units,
        "answers": answers,
        "yield": len(rows) / answers,
        "unanswered": round(counts["unanswered"]),
        **dropped,
        **_spent(job.config, counts),
        "rows_digest": writer.digest.hexdigest(),
    }
    job.log({"stage": "synth", **totals})
    return Product(SCHEMA_NAMES[kind], {}, totals, files)


def _spoken(row: dict[str, Any]) -> Iterator[dict[str, str]]:
    """All turns of a row."""
    for name in ("messages", "prompt", "chosen", "rejected"):
        yield from row.get(name, ())


def _spent(config: SynthConfig, counts: Mapping[str, float]) -> dict[str, int | float | str]:
    """What it took: requests, tokens, seconds, and money where the price is known."""
    asked, answered, seconds = counts["asked_tokens"], counts["tokens"], counts["generate_s"]
    spent: dict[str, int | float | str] = {
        "requests": round(counts["requests"]),
        "asked_tokens": round(asked),
        "generated_tokens": round(answered),
        "generated_tokens_per_s": answered / max(seconds, 1e-9),
        "generate_s": float(seconds),
    }
    if config.price is not None:
        cost = (config.price.asked * asked + config.price.answered * answered) / MILLION
        spent |= {"cost": cost, "price_asked": config.price.asked, "price_answered": config.price.answered}
    return spent
