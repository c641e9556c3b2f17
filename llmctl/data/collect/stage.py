"""The stage `collect`: sources in, one table of documents out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError, IntegrityError
from llmctl.data.collect.document import EXAMPLES, Tally
from llmctl.data.collect.fetch import Haul
from llmctl.data.collect.formats import safe_name
from llmctl.data.collect.progress import Watch
from llmctl.data.collect.sources import Source, digests, open_sources
from llmctl.data.collect.tasks import GROUP_BYTES, Task, collect_part, group
from llmctl.data.collect.unique import rename_part, renamings
from llmctl.data.parts import Report, gather, run_parts
from llmctl.data.table_writer import RowsDigest
from llmctl.data.tables import SCHEMA_NAMES
from llmctl.data.workers import Native, Workers, open_workers
from llmctl.pipeline.job import FileFacts, Job, Product

# Reasons that the user asked for; the others are worth a line with examples.
EXPECTED = {"sample", "license", "empty", "record_type", "http_status", "content_type", "namespace", "redirect"}


def sources(config: CollectConfig, fetched: Mapping[str, Haul] | None = None) -> tuple[str, dict[str, str]]:
    """The artifact's name where the user gives none, and `sha256:…` of everything that will be read, by role.

    The name is the first source's (`python-docs`, `notes`). A source's role is its name too. Files count with
    their bytes and their name within the source, repositories with their commit; where they lie does not count.

    Raises:
        UsageError: there is no source.
        InputError: for the first source that is missing or unreadable.
    """
    found = digests(list(open_sources(config, fetched)))
    return safe_name(next(iter(found))), found


@dataclass
class _Sum:
    """All reports together."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    licenses: set[str] = field(default_factory=set)
    reports: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """One report more."""
        figures = report.figures
        self.reports.append(report)
        self.counts.update(figures["counts"])
        self.notes += figures["notes"]
        self.licenses |= set(figures["licenses"])
        for reason, places in figures["examples"].items():
            known = self.examples.setdefault(reason, [])
            known += places[: EXAMPLES - len(known)]


def run(job: Job[CollectConfig]) -> Product:
    """Read every source into `part-*.parquet`, task by task.

    Every record is counted: in = documents + the sum of all `dropped.<reason>`. Files that are not looked into
    are counted as `skipped.<reason>`.
    """
    config, tally = job.config, Tally()
    opened = list(open_sources(config, job.fetched))
    _check_promise(job, opened)
    tasks = group([piece for source in opened for piece in source.pieces(tally, GROUP_BYTES)], config)
    workers = open_workers(config) if config.limit is None else Native(1)
    found = _Sum()
    with Watch(job.progress, job.work / "parts", sum(task.size for task in tasks)) as watch:
        for report in _reports(job, workers, tasks):
            found.add(report)
            watch.finished(report.figures)
    found.counts.update({f"skipped.{reason}": count for reason, count in tally.skipped.items()})
    counts = found.counts
    if not counts["documents"]:
        raise InputError(f"no document found in {', '.join(config.sources)}", hint=_why_empty(found))
    _tell(job, found)
    files, digest = _publish(job, workers, found)
    totals: dict[str, int | float | str] = {name: counts[name] for name in ("documents", "in", "bytes")}
    totals |= {name: count for name, count in sorted(counts.items()) if count and name not in totals}
    totals["rows_digest"] = digest.hexdigest()
    job.log({"stage": "collect", **totals})
    return Product(SCHEMA_NAMES["documents"], totals=totals, files=files, license=tuple(sorted(found.licenses)))


def _check_promise(job: Job[CollectConfig], opened: list[Source]) -> None:
    """Refuse sources that are not those any more that the action key was made from."""
    if not job.promised:
        return
    for role, digest in digests(opened).items():
        if job.promised.get(role) != digest:
            raise IntegrityError(
                f"{role} changed while llmctl looked at it", hint="run the same command again when it is at rest"
            )


def _reports(job: Job[CollectConfig], workers: Workers, tasks: list[Task]) -> Iterator[Report]:
    """What the tasks made, up to the limit; tasks beyond it are not begun."""
    limit = job.config.limit
    for report in run_parts(job, workers, collect_part, tasks):
        yield report
        if limit is not None and report.figures["taken"] >= limit:
            return


def _publish(job: Job[CollectConfig], workers: Workers, found: _Sum) -> tuple[dict[str, FileFacts], RowsDigest]:
    """Link all parts into the artifact, those with an id that was taken rewritten before."""
    step, reports = "parts", found.reports
    plans = renamings([job.work / step / f"{number:05d}" for number in range(len(reports))])
    if plans is not None:
        renamed = sum(len(plan.ids) for plan in plans)
        job.progress.note(f"{renamed} ids occur more than once; the later ones end in ~2, ~3, …")
        step = "unique"
        reports = list(run_parts(job, workers, rename_part, plans, step=step))
    digest = RowsDigest()
    for report in reports:
        digest.merge(report.figures["rows_digest"], report.figures["counts"]["documents"])
    return gather(job, reports, step), digest


def _tell(job: Job[CollectConfig], found: _Sum) -> None:
    """Notes of the sources, and a line for each reason that nobody asked for."""
    for note in found.notes:
        job.progress.note(note)
    for reason, places in sorted(found.examples.items()):
        if reason not in EXPECTED:
            shown = f", such as {places[0]}" if places else ""
            job.progress.note(f"left out: {found.counts[f'dropped.{reason}']} {reason}{shown}")
    if found.counts["nul_removed"]:
        job.progress.note(f"NUL characters were taken out of {found.counts['nul_removed']} documents")


def _why_empty(found: _Sum) -> str:
    left_out = {name.partition(".")[2]: count for name, count in found.counts.items() if "." in name and count}
    counted = [f"{count} {reason}" for reason, count in sorted(left_out.items())]
    return f"left out: {', '.join(counted)}" if counted else "give files with text in them"
