"""The stage `dedup`: exact, then near duplicates; one document of every cluster stays.

Three passes over the parts, each in worker processes and resumable: keys of all documents, shingle sets of those
that share a key, and the documents that stay. What lies between works on columns of numbers in this process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmctl.config.dedup import DedupConfig
from llmctl.config.devices import cores
from llmctl.config.errors import InputError
from llmctl.data.dedup import decide
from llmctl.data.dedup.decide import REASONS, STAYS, Candidates, Decisions
from llmctl.data.dedup.groups import Grouping, NumpyGrouping
from llmctl.data.dedup.index import SHIFT, Index, IndexTask, facts, spill_index
from llmctl.data.dedup.kernel import library
from llmctl.data.dedup.keys import KEYS_FILE, Keys, KeyTask, compute_keys
from llmctl.data.dedup.minhash import Banding
from llmctl.data.dedup.sets import SetTask, ShingleSets, spill_sets
from llmctl.data.dedup.units import HASHES_FILE, Reading, UnitTask, hash_units, mark_seen
from llmctl.data.dedup.write import CLUSTERS_FILE, WriteTask, sources_losing_most, write_clusters, write_part
from llmctl.data.parts import Report, gather, run_parts
from llmctl.data.table_writer import RowsDigest
from llmctl.data.tables import SCHEMA_NAMES, extra_columns, parts_of
from llmctl.data.workers import Native, Threads, Workers, open_workers
from llmctl.pipeline.job import Job, Product
from llmctl.pipeline.stage import load

SOURCES_NAMED = 5
# Up to here the start of worker processes costs more than what little of the passes holds the interpreter's lock.
THREADS_UP_TO_BYTES = 1 << 30


def run(job: Job[DedupConfig]) -> Product:
    """Find what goes, then write what stays, in the input's order.

    Memory: in each worker a batch of documents and the keys of a part; here some 100 bytes a document and the
    groups of candidates, whatever the size of the texts. Unless `keep` is `first` or `unit` is not `document`,
    which documents stay does not depend on the order of the input.
    """
    library()  # before any work: where it was not built, say so
    run_ = _Run.begun(job)
    decisions = Decisions(len(run_.keys))
    decisions.reason[run_.keys.column("emptied")] = decide.EMPTY
    decisions.survivor[run_.keys.column("emptied")] = -1
    if job.config.exact:
        decide.remove_exact(run_.keys, run_.grouping, run_.index, decisions)
    if run_.banding is not None:
        run_.remove_near(run_.banding, decisions)
    decisions.follow()
    losing = sources_losing_most(run_.keys, decisions)
    for source, gone, count in losing[:SOURCES_NAMED]:
        job.progress.note(f"warning: source {source!r} loses {gone} of {count} documents as duplicates")
    return run_.publish(decisions, [source for source, _, _ in losing])


@dataclass(frozen=True)
class _Run:
    """What all passes of one run share."""

    job: Job[DedupConfig]
    workers: Workers
    threads: int
    grouping: Grouping
    banding: Banding | None
    index: Index | None
    readings: list[Reading]
    keys: Keys

    @classmethod
    def begun(cls, job: Job[DedupConfig]) -> _Run:
        """After the first pass."""
        config = job.config
        small = _is_small(job)
        threads = (config.workers or cores()) if small else 1
        workers = Native(1) if small else open_workers(config)
        banding = Banding.chosen(config.threshold, config.permutations, config.seed) if config.near else None
        index = None
        if "against" in job.inputs:
            if banding is None or not config.exact:
                raise InputError("against compares exact and near duplicates", hint="set exact=true and near=true")
            index = Index.of(job.artifact("against"), facts(config, banding))
        readings = _readings(job, workers)
        tasks = [
            KeyTask(number, reading, config.keep, config.ngram_words, banding, threads)
            for number, reading in enumerate(readings)
        ]
        counts = [
            report.figures["documents"]
            for report in _told(job, run_parts(job, workers, compute_keys, tasks, "keys"), "documents", "hashed")
        ]
        if not sum(counts):
            raise InputError(f"{job.inputs['input'].ref} holds no document", hint="nothing to deduplicate")
        keys = Keys([job.work / "keys" / f"{n:05d}" / KEYS_FILE for n in range(len(counts))], counts, config.keep)
        return cls(job, workers, threads, _grouping(config), banding, index, readings, keys)

    def remove_near(self, banding: Banding, decisions: Decisions) -> None:
        """Find candidates, compute their sets, compare them."""
        job, threshold = self.job, self.job.config.threshold
        job.progress.note(f"MinHash: {job.config.permutations} permutations, {banding.bands} bands of {banding.rows}")
        candidates = decide.find_candidates(self.keys, self.grouping, self.index, banding.bands, decisions.stays)
        if not len(candidates.rows):
            return
        own, theirs = self._spilled(candidates)
        if self.index is not None:
            decide.remove_near_against(
                candidates,
                ShingleSets.spilled([*own, *theirs], SHIFT, self.job.config.workers or cores()),
                threshold,
                decisions,
            )
        sets = ShingleSets.spilled(own, threads=self.job.config.workers or cores())
        decide.remove_near(
            self.keys, candidates, sets, threshold, decisions,
            lambda done, total: job.progress.update(done, total, "bands compared"),
        )  # fmt: skip

    def _spilled(self, candidates: Candidates) -> tuple[list[Path], list[Path]]:
        """The second pass: directories with the sets of the candidates, and of those of the index."""
        starts = self.keys.starts
        bounds = np.searchsorted(candidates.rows, starts)
        tasks = [
            SetTask(reading, candidates.rows[low:high] - start, self.job.config.ngram_words, self.threads)
            for reading, low, high, start in zip(self.readings, bounds, bounds[1:], starts, strict=False)
        ]
        for _ in run_parts(self.job, self.workers, spill_sets, tasks, "sets"):
            pass
        own = [self.job.work / "sets" / f"{number:05d}" for number in range(len(tasks))]
        if self.index is None:
            return own, []
        ends = np.concatenate(([0], np.cumsum(self.index.counts())))
        bounds = np.searchsorted(candidates.index_rows, ends)
        against = [
            IndexTask(path, candidates.index_rows[low:high] - start)
            for path, low, high, start in zip(self.index.files, bounds, bounds[1:], ends, strict=False)
        ]
        for _ in run_parts(self.job, self.workers, spill_index, against, "against"):
            pass
        return own, [self.job.work / "against" / f"{number:05d}" for number in range(len(against))]

    def publish(self, decisions: Decisions, losing: list[str]) -> Product:
        """The last pass: write what stays, and the table of clusters."""
        job, config = self.job, self.job.config
        bands = self.banding.bands if self.banding else 0
        masks = decide.mask_files(self.keys, decisions, job.work / "masks")
        extra = tuple(extra_columns(job.inputs["input"]))
        tasks = [
            WriteTask(reading, mask, path if config.index else None, bands, config.ngram_words, extra)
            for reading, mask, path in zip(self.readings, masks, self.keys.files, strict=True)
        ]
        counts: Counter[str] = Counter()
        digest = RowsDigest()
        reports: list[Report] = []
        workers = Threads(self.threads) if self.threads > 1 else self.workers
        for report in _told(job, run_parts(job, workers, write_part, tasks), "documents", "kept"):
            reports.append(report)
            counts.update(report.figures["counts"])
            digest.merge(report.figures["rows_digest"], report.figures["counts"]["kept"])
        files = gather(job, reports)
        files[CLUSTERS_FILE] = write_clusters(job.out / CLUSTERS_FILE, self.keys, decisions, self.index)
        totals = self._totals(decisions, counts) | {"sources_losing_most": len(losing)}
        if losing:
            totals["sources_losing_most_names"] = ", ".join(losing[:SOURCES_NAMED])
        totals["rows_digest"] = digest.hexdigest()
        job.log({"stage": "dedup", **totals})
        semantic = {"index": facts(config, self.banding)} if config.index and self.banding else {}
        return Product(SCHEMA_NAMES["documents"], semantic=semantic, totals=totals, files=files)

    def _totals(self, decisions: Decisions, counts: Counter[str]) -> dict[str, int | float | str]:
        """Counts that add up: in = kept + the sum of all `dropped.<reason>`."""
        reasons = np.bincount(decisions.reason, minlength=len(REASONS)).tolist()
        shown = {"exact", "near"} | ({"empty"} if self.job.config.unit != "document" else set())
        shown |= {"against_exact", "against_near"} if self.index else set()
        against = np.isin(decisions.reason, (decide.AGAINST_EXACT, decide.AGAINST_NEAR))
        copies = (decisions.reason != STAYS) & (decisions.reason != decide.EMPTY) & ~against
        totals: dict[str, int | float | str] = {"documents": counts["kept"]}
        totals |= {key: counts[key] for key in ("in", "kept", "bytes_in", "bytes")}
        totals |= {f"dropped.{name}": count for name, count in zip(REASONS, reasons, strict=True) if name in shown}
        if self.job.config.unit != "document":
            totals[f"{self.job.config.unit}s_removed"] = counts["units_removed"]
        totals["clusters"] = len(np.unique(decisions.survivor[copies])) + len(np.unique(decisions.survivor[against]))
        totals["pairs_compared"] = decisions.compared
        return totals


def _readings(job: Job[DedupConfig], workers: Workers) -> list[Reading]:
    """How the passes read each part: after a pass over its units where these are to be removed."""
    parts, unit = parts_of(job.inputs["input"]), job.config.unit
    if unit == "document":
        return [Reading(part) for part in parts]
    tasks = [UnitTask(part, unit) for part in parts]
    reports = _told(job, run_parts(job, workers, hash_units, tasks, "units"), "units", "hashed")
    counts = [report.figures["units"] for report in reports]
    files = [job.work / "units" / f"{number:05d}" / HASHES_FILE for number in range(len(parts))]
    marks = mark_seen(files, counts, job.work / "seen")
    return [Reading(part, unit, mark) for part, mark in zip(parts, marks, strict=True)]


def _told(job: Job[DedupConfig], reports: Iterator[Report], figure: str, verb: str) -> Iterator[Report]:
    """The same reports, with progress: how many of `figure` were hashed or kept so far."""
    done = 0
    for report in reports:
        done += report.figures[figure]
        job.progress.update(done, None, f"{figure} {verb}")
        yield report


def _is_small(job: Job[DedupConfig]) -> bool:
    """Whether threads do: the kernel works outside Python, so they share the batches of one part after the other."""
    size = sum(part.stat().st_size for part in parts_of(job.inputs["input"]) if isinstance(part, Path))
    return job.config.engine == "native" and job.config.unit == "document" and size <= THREADS_UP_TO_BYTES


def _grouping(config: DedupConfig) -> Grouping:
    if config.engine == "native":
        return NumpyGrouping()
    chosen: Callable[[], Grouping] = load("llmctl.data.dedup.daft_groups:DaftGrouping")
    return chosen()
