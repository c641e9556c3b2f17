"""A run of several passes that is stopped at any part goes on there, to the same bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmctl.config.classifier import ClassifierConfig
from llmctl.config.clean import CleanConfig
from llmctl.data.classifier import run as train
from llmctl.data.clean import run
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import DOCUMENTS
from llmctl.pipeline.job import Job, Product, Silent
from llmctl.store.artifact import Artifact
from tests.data.conftest import artifact_of, unused

CONFIG = CleanConfig(
    boilerplate={"enabled": True}, classifier={"keep_quantile": 0.5}, pii={"action": "redact"}, workers=1,
    keep_rejected=True, quality={"enabled": False}, repetition={"enabled": False},
)  # fmt: skip
PARTS = 3


class StopsAfter(Silent):
    """Interrupts the run at its n-th report."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture
def inputs(documents: Callable, stage: Callable, tmp_path: Path) -> dict[str, Artifact]:
    writer = TableWriter(tmp_path / "given" / "data", DOCUMENTS, part_bytes=1)
    for part in range(PARTS):
        rows = [
            {"id": f"{part}-{n}", "text": f"menu of the site\n\nlemma {part} proof {n} a@b.org", "source": "s",
             "url": "http://x.org/", "license": "", "lang": "", "time": ""}
            for n in range(4)
        ]  # fmt: skip
        batch = pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)
        for place in range(0, batch.num_rows, 4):
            writer.write(batch.slice(place, 4))
            writer._write_group()
    given = artifact_of(tmp_path / "given", Product("llmctl.documents/1", files=writer.close()))
    good, poor = (
        documents([{"id": f"{word}{n}", "text": f"{word} {n}"} for n in range(50)]) for word in ("lemma", "buy")
    )
    return {"input": given, "classifier": stage(train, ClassifierConfig(buckets=1000), good, negative=poor)[1]}


def job_of(directory: Path, inputs: dict[str, Artifact], progress: Any) -> Job[CleanConfig]:
    shutil.rmtree(directory / "data", ignore_errors=True)  # as the pipeline does
    directory.mkdir(exist_ok=True)
    return Job(
        config=CONFIG, inputs=inputs, out=directory / "data", work=directory / "work", nested=unused,
        metrics_file=directory / "metrics.jsonl", progress=progress,
    )  # fmt: skip


def test_stopped_at_every_part(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    whole = artifact_of(tmp_path / "whole", run(job_of(tmp_path / "whole", inputs, Silent())))
    assert len(inputs["input"].files()) == PARTS
    assert whole.manifest.totals["boilerplate.lines"] == 4 * PARTS
    for reports in range(3 * PARTS):
        directory = tmp_path / f"stopped{reports}"
        with pytest.raises(KeyboardInterrupt):
            run(job_of(directory, inputs, StopsAfter(reports)))
        again = artifact_of(directory, run(job_of(directory, inputs, Silent())))
        assert [(f.path, f.sha256) for f in again.manifest.files] == [(f.path, f.sha256) for f in whole.manifest.files]
        assert again.manifest.totals == whole.manifest.totals
