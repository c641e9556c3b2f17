"""The stage `mix`: several weighted sources to one corpus, with a held-out split that training does not know.

Five steps: survey every document (id, sizes), compare the training side with the held-out documents, draw (on
indices alone), scatter the texts, write. All but the drawing go by parts and are resumable. Memory: some 60
bytes per document of the sources and of the mixture, and a part per worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmctl.config.errors import ConfigError
from llmctl.config.mix import MixConfig
from llmctl.config.weights import weight_problems
from llmctl.data.mix.draw import Drawn, Source, cut, draw_heldout, draw_training, new_marks, source_shares, survey_of
from llmctl.data.mix.near import HeldoutIndex
from llmctl.data.mix.shuffle import ScatterTask, WriteTask, scatter_part, write_part
from llmctl.data.mix.survey import (
    NEAR_FILE,
    Ints,
    Mask,
    NearTask,
    Survey,
    SurveyTask,
    TokenCounter,
    heldout_sets,
    near_part,
    survey_part,
)
from llmctl.data.parts import gather, run_parts
from llmctl.data.table_writer import PART_BYTES, RowsDigest
from llmctl.data.tables import SCHEMA_NAMES, Part, extra_columns, parts_of
from llmctl.data.workers import Native, Workers, open_workers
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact, Input

SOURCES = "sources"
SMALL_BYTES = 16 << 20  # as stored


@dataclass(frozen=True)
class Place:
    """One part of one source: the number of the source, and the part."""

    source: int
    part: Part


def run(job: Job[MixConfig], count_tokens: TokenCounter | None = None) -> Product:
    """Mix the inputs of the role `sources`.

    Every document is counted: in = kept + dropped.near_heldout + dropped.not_drawn; what a document is taken
    for beyond the first time is `repeated`.

    Args:
        job: the run.
        count_tokens: counts them, where there is a tokenizer; else they are estimated from bytes.
    """
    config = job.config
    given = job.group(SOURCES)
    if problems := weight_problems(config.weights, list(given)):
        raise ConfigError(problems)
    places = [Place(number, part) for number, source in enumerate(given.values()) for part in parts_of(source)]
    workers = _workers(config, given)
    surveys = _survey(job, workers, places, count_tokens)
    near = _near(job, workers, places, surveys)
    sources = [_source(number, name, places, surveys, near, config) for number, name in enumerate(given)]
    share = source_shares(sources, config)
    train = draw_training(sources, share, config)
    size = int(survey_of(sources, train).sizes(config.by).sum())
    drawn = {"train": train, "heldout": draw_heldout(sources, share, config, size)}
    _explain(job, sources, share, drawn)
    totals = _totals(config, sources, share, drawn)
    extra = tuple(name for source in given.values() for name in extra_columns(source))
    product = _shuffled(job, workers, places, surveys, sources, drawn, extra)
    totals |= product.totals
    job.log({"stage": "mix", **totals})
    return Product(product.schema, {"heldout_fraction": config.heldout_fraction}, totals, product.files)


def _workers(config: MixConfig, given: Mapping[str, Input]) -> Workers:
    """The workers asked for; a small mixture is made in this process, sooner than workers would have started."""
    size = sum(source.bytes for source in given.values() if isinstance(source, Artifact))
    if config.engine == "native" and size <= SMALL_BYTES:
        return Native(1)
    return open_workers(config)


def _survey(
    job: Job[MixConfig], workers: Workers, places: Sequence[Place], count_tokens: TokenCounter | None
) -> list[Survey]:
    """The survey of every part."""
    tasks = [SurveyTask(place.part, job.config, count_tokens) for place in places]
    seen = 0
    for report in run_parts(job, workers, survey_part, tasks, "survey"):
        seen += report.figures["documents"]
        job.progress.update(seen, None, "documents surveyed")
    return [Survey.read(job.work / "survey" / f"{number:05d}") for number in range(len(tasks))]


def _near(job: Job[MixConfig], workers: Workers, places: Sequence[Place], surveys: Sequence[Survey]) -> list[Mask]:
    """By part, which training documents are near duplicates of held-out ones."""
    config = job.config
    none = [np.zeros(len(survey.identity), dtype=np.bool_) for survey in surveys]
    if not any(survey.heldout(config.heldout_fraction).any() for survey in surveys):
        if config.heldout_fraction:
            job.progress.note("no document is held out: the sources are too small for that fraction")
        return none
    sets = [one for number in range(len(places)) for one in heldout_sets(job.work / "survey" / f"{number:05d}")]
    index = job.work / "index"
    HeldoutIndex.build(sets, config.near_threshold, index)
    tasks = [NearTask(place.part, config, index) for place in places]
    seen = found = 0
    for report in run_parts(job, workers, near_part, tasks, "near"):
        seen += report.figures["documents"]
        found += report.figures["near"]
        job.progress.update(seen, sum(map(len, none)), "documents compared", near=found)
    return [np.load(job.work / "near" / f"{number:05d}" / NEAR_FILE) for number in range(len(tasks))]


def _source(
    number: int, name: str, places: Sequence[Place], surveys: Sequence[Survey], near: Sequence[Mask], config: MixConfig
) -> Source:
    """A source from its parts."""
    mine = [index for index, place in enumerate(places) if place.source == number]
    survey = Survey.joined([surveys[index] for index in mine])
    marks = np.concatenate([np.empty(0, np.bool_), *(near[index] for index in mine)])
    return Source(name, survey, survey.heldout(config.heldout_fraction), marks)


def _explain(job: Job[MixConfig], sources: Sequence[Source], share: dict[str, float], drawn: dict[str, Drawn]) -> None:
    """Say what each source gives."""
    for number, source in enumerate(sources):
        epochs = len(drawn["train"].of(number)) / len(source.training())
        job.progress.note(f"{source.name}: {share[source.name]:.2%} of the mixture, {epochs:.2f} epochs")


def _totals(
    config: MixConfig, sources: Sequence[Source], share: dict[str, float], drawn: dict[str, Drawn]
) -> dict[str, int | float | str]:
    """Counts of documents in and out, sizes by split, and what became of each source."""
    rows = sum(len(split.source) for split in drawn.values())
    given = sum(len(source.heldout) for source in sources)
    kept = sum(len(np.unique(split.of(number))) for split in drawn.values() for number in range(len(sources)))
    near = sum(int(source.near.sum()) for source in sources)
    totals: dict[str, int | float | str] = {
        "documents": rows,
        "in": given,
        "kept": kept,
        "repeated": rows - kept,
        "dropped.near_heldout": near,
        "dropped.not_drawn": given - kept - near,
    }
    for name, split in drawn.items():
        totals[f"{name}.documents"] = len(split.source)
        survey = survey_of(sources, split)
        totals[f"{name}.tokens"] = int(survey.tokens.sum())
        totals[f"{name}.bytes"] = int(survey.bytes.sum())
    for number, source in enumerate(sources):
        mine = drawn["train"].of(number)
        totals[f"sources.{source.name}.share"] = round(share[source.name], 6)
        totals[f"sources.{source.name}.documents"] = len(mine)
        totals[f"sources.{source.name}.{config.by}"] = int(source.sizes(config.by)[mine].sum())
        totals[f"sources.{source.name}.epochs"] = round(len(mine) / len(source.training()), 4)
    return totals


def _shuffled(
    job: Job[MixConfig],
    workers: Workers,
    places: Sequence[Place],
    surveys: Sequence[Survey],
    sources: Sequence[Source],
    drawn: dict[str, Drawn],
    extra: tuple[str, ...],
) -> Product:
    """Move the texts to their places and publish the parts."""
    splits: list[str] = []
    targets = []
    for name, split in drawn.items():
        parts = cut(survey_of(sources, split).bytes, PART_BYTES)
        targets.append(parts + len(splits))
        splits += [name] * (int(parts.max()) + 1 if len(parts) else 0)
    rows = Drawn(*(np.concatenate([getattr(d, field) for d in drawn.values()]) for field in ("source", "document")))
    marks = new_marks(survey_of(sources, rows))
    tasks = _scatter_tasks(places, surveys, rows, marks, np.concatenate(targets), extra)
    pieces: list[list[tuple[str, int]]] = [[] for _ in splits]
    for number, report in enumerate(run_parts(job, workers, scatter_part, tasks, "scatter")):
        for batch, target in enumerate(report.figures["targets"]):
            pieces[target].append((f"{number:05d}", batch))
    root = job.work / "scatter"
    writes = [WriteTask(name, root, tuple(own), extra) for name, own in zip(splits, pieces, strict=True)]
    digest, done, size = RowsDigest(), [], 0
    for report in run_parts(job, workers, write_part, writes, "write"):
        digest.merge(report.figures["rows_digest"], report.figures["documents"])
        size += report.figures["bytes"]
        done.append(report)
        job.progress.update(digest.rows, len(rows.source), "documents written")
    totals: dict[str, int | float | str] = {"bytes": size, "rows_digest": digest.hexdigest()}
    return Product(SCHEMA_NAMES["documents"], totals=totals, files=gather(job, done, "write"))


def _scatter_tasks(
    places: Sequence[Place], surveys: Sequence[Survey], rows: Drawn, mark: Ints, target: Ints, extra: tuple[str, ...]
) -> list[ScatterTask]:
    """By part, the rows that it gives."""
    tasks: list[ScatterTask] = []
    first = 0  # number of the part's first document within its source
    for number, (place, survey) in enumerate(zip(places, surveys, strict=True)):
        first = 0 if number == 0 or places[number - 1].source != place.source else first
        end = first + len(survey.identity)
        mine = np.flatnonzero((rows.source == place.source) & (rows.document >= first) & (rows.document < end))
        tasks.append(ScatterTask(place.part, rows.document[mine] - first, mine, mark[mine], target[mine], extra))
        first = end
    return tasks
