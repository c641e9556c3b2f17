"""The stage `clean`: text out of pages, in order, without what breaks a rule; every document accounted for."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.config.clean import CleanConfig
from llmctl.config.errors import InputError
from llmctl.data.clean.boilerplate import recurring
from llmctl.data.clean.chain import BOILERPLATE_FILE, SEGMENT_STEP, Setting
from llmctl.data.clean.passes import Task, clean_part, scores_of
from llmctl.data.funnel import REJECTED_PREFIX, Funnel, write_funnel
from llmctl.data.parts import Report, gather, run_parts
from llmctl.data.table_writer import RowsDigest
from llmctl.data.tables import SCHEMA_NAMES, Part, extra_columns, parts_of
from llmctl.data.workers import open_workers
from llmctl.pipeline.job import FileFacts, Job, Product
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.files import publish_bytes

MODEL_FILE = "model.bin"
FILE_ROLES = ("blocklist", "allowlist", "hardwords", "softwords", "kenlm", "classifier")
DEFAULT_CHARACTERS = 10_000  # for a classifier that llmctl did not train


@dataclass
class Figures:
    """Sums over the parts of all passes."""

    counts: Counter[str] = field(default_factory=Counter)
    funnel: Funnel = field(default_factory=Funnel)
    digest: RowsDigest = field(default_factory=RowsDigest)

    def add(self, report: Report, *, first: bool, last: bool) -> None:
        """Add one part's report: documents come in with the first pass and stay with the last."""
        counts = Counter(report.figures["counts"])
        come, stay = ("in", "bytes_in"), ("kept", "bytes")
        taken = [key for key in counts if (first or key not in come) and (last or key not in stay)]
        self.counts.update({key: counts[key] for key in taken})
        self.funnel.merge(report.figures["funnel"])
        if last:
            self.digest.merge(report.figures["rows_digest"], counts["kept"])


def run(job: Job[CleanConfig]) -> Product:
    """Clean every part of the input, in one pass; in more where a step must first know all documents.

    Every document is counted: in (and the segments added) = kept + the sum of all `dropped.<reason>`.
    """
    given = job.inputs["input"]
    setting, extra = setting_of(job), tuple(extra_columns(given))
    parts: Sequence[Part] = parts_of(given)
    figures, files = Figures(), dict[str, FileFacts]()
    passes = setting.passes()
    for number, stretches in enumerate(passes):
        first, last = number == 0, number == len(passes) - 1
        if "judge" in stretches and not first:
            setting = replace(setting, boilerplate=_boilerplate(job, len(parts)))
        if "finish" in stretches and setting.by_quantile:
            setting = replace(setting, least_quality=_quantile(job, parts))
        tasks = [Task(part, setting, stretches, extra, last) for part in parts]
        step = "-".join(stretches)
        reports: list[Report] = []
        for report in run_parts(job, open_workers(job.config), clean_part, tasks, step):
            reports.append(report)
            figures.add(report, first=first, last=last)
            job.progress.update(figures.counts["in"], None, "documents", kept=figures.counts["kept"])
        if last and not figures.counts["kept"]:
            raise InputError(f"clean kept none of {figures.counts['in']} documents", hint=_why(figures.counts))
        files |= gather(job, list(_published(reports, last=last)), step)
        parts = [job.work / step / f"{place:05d}" / "part-00000.parquet" for place in range(len(parts))]
    return _product(job, figures, files)


def setting_of(job: Job[CleanConfig]) -> Setting:
    """The configuration with the files that the optional inputs name.

    Raises:
        InputError: where a limit is set for an input that is not given.
    """
    files: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    for role in FILE_ROLES:
        source = job.inputs.get(role)
        if isinstance(source, FileInput):
            files[role] = source.path
        elif isinstance(source, Artifact):
            known = source.manifest.semantic
            files[role] = source.file(known.get("file", MODEL_FILE))
            facts |= {f"{role}.{name}": known[name] for name in ("max_characters", "lowercase") if name in known}
    facts.setdefault("classifier.max_characters", DEFAULT_CHARACTERS)
    config = job.config
    for role, limited in (
        ("classifier", (config.classifier.min_score, config.classifier.keep_quantile)),
        ("kenlm", (config.perplexity.min_perplexity, config.perplexity.max_perplexity)),
    ):
        if role not in files and any(limit is not None for limit in limited):
            raise InputError(f"clean has a limit for {role} and no {role}", hint=f"give --{role}")
    if config.urls.only_allowed and "allowlist" not in files:
        raise InputError("urls.only_allowed needs an allow list", hint="give --allowlist FILE")
    return Setting(config, files, facts)


def _boilerplate(job: Job[CleanConfig], parts: int) -> Path:
    """The file with the keys of recurring lines, from what the first pass counted."""
    directories = [job.work / "extract" / f"{place:05d}" for place in range(parts)]
    keys = recurring(directories, job.config.boilerplate)
    job.progress.note(f"boilerplate: {len(keys):,} different lines recur")
    content = io.BytesIO()
    np.save(content, keys)
    publish_bytes(job.work / BOILERPLATE_FILE, content.getvalue())
    return job.work / BOILERPLATE_FILE


def _quantile(job: Job[CleanConfig], parts: Sequence[Part]) -> float:
    """The lowest score that still belongs to the best `keep_quantile` of the documents; ties stay."""
    scores = np.sort(scores_of([part for part in parts if isinstance(part, Path)]).to_numpy())
    share = job.config.classifier.keep_quantile
    if share is None or not len(scores):
        return 0.0
    least = float(scores[len(scores) - max(1, math.ceil(share * len(scores)))])
    job.progress.note(f"quality: the best {share:g} of {len(scores):,} documents score {least:.4g} or more")
    return least


def _published(reports: Sequence[Report], *, last: bool) -> Iterator[Report]:
    """The files of a pass that belong into the artifact: documents of the last one, dropped ones of all."""
    for report in reports:
        names = [name for name in report.files if last or name.startswith(REJECTED_PREFIX)]
        yield Report({name: report.files[name] for name in names}, report.figures)


def _product(job: Job[CleanConfig], figures: Figures, files: dict[str, FileFacts]) -> Product:
    counts = figures.counts
    segments = (SEGMENT_STEP, counts["added"]) if job.config.segment.by != "none" else None
    sizes = (counts["bytes_in"], counts["bytes"])
    write_funnel(job.out, figures.funnel.content(counts["in"], counts["kept"], sizes, segments))
    totals: dict[str, int | float | str] = {"documents": counts["kept"]}
    totals |= {key: counts[key] for key in ("in", "kept", "bytes_in", "bytes")}
    if segments is not None:
        totals["segments"] = counts["in"] + counts["added"]
    for group in ("dropped.", "boilerplate.", "pii."):
        totals |= {key: counts[key] for key in sorted(counts) if key.startswith(group)}
    totals["rows_digest"] = figures.digest.hexdigest()
    job.log({"stage": "clean", **totals})
    return Product(SCHEMA_NAMES["documents"], totals=totals, files=files)


def _why(counts: Counter[str]) -> str:
    dropped = Counter({key: count for key, count in counts.items() if key.startswith("dropped.")})
    if not dropped:
        return "the input is empty"
    reasons = ", ".join(f"{key.removeprefix('dropped.')} {count}" for key, count in dropped.most_common(3))
    return f"dropped: {reasons}; docs/rules.md has the field of each rule, and quality.enabled=false ends a whole set"
