"""Jobs built by hand for the bodies of the document stages, and artifacts from what they wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.config.base import Config
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import documents_schema
from llmctl.pipeline.job import Job, Product, Progress, Silent
from llmctl.store.artifact import Artifact, Input
from llmctl.store.files import sha256_file
from llmctl.store.manifest import FileEntry, Manifest, Producer, RunInfo


def unused(*_: Any) -> Any:
    raise AssertionError("the document stages run no other stage")


def job_of(
    config: Config, directory: Path, given: Input | None = None, progress: Progress | None = None, **roles: Input
) -> Job[Any]:
    """A job whose files lie in `directory`; `roles` are inputs beside `input`."""
    return Job(
        config=config, inputs=roles if given is None else {"input": given, **roles}, out=directory / "data",
        work=directory / "work", metrics_file=directory / "metrics.jsonl", progress=progress or Silent(),
        nested=unused,
    )  # fmt: skip


def artifact_of(directory: Path, product: Product) -> Artifact:
    """The artifact that the pipeline would commit, without a store."""
    entries = [
        FileEntry(path=f"data/{path.name}", bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted((directory / "data").iterdir())
    ]
    kind = product.schema.removeprefix("llmctl.").partition("/")[0]
    manifest = Manifest(
        kind=kind, schema=product.schema, digest="sha256:0", files=entries, totals=product.totals,
        semantic=product.semantic, inputs={}, license=list(product.license),
        producer=Producer(command="test", op_version=1, llmctl="0", argv=[], config={}, action_key=""),
        run=RunInfo(id="01", started="", finished="", host=""),
    )  # fmt: skip
    return Artifact(path=directory, manifest=manifest, ref=f"{directory.name}@v1")


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., tuple[Product, Artifact]]:
    """Run a stage's body; (its product, the artifact)."""
    count = 0

    def run(
        body: Callable[[Any], Product], config: Config, given: Input | None = None, **roles: Input
    ) -> tuple[Product, Artifact]:
        nonlocal count
        count += 1
        directory = tmp_path / f"run{count}"
        directory.mkdir()
        job = job_of(config, directory, given, **roles)
        product = body(job)
        return product, artifact_of(directory, product)

    return run


@pytest.fixture
def documents(tmp_path: Path) -> Callable[..., Artifact]:
    """An artifact of documents with the rows given, and the `EXTRA_COLUMNS` that are named."""
    count = 0

    def make(rows: Sequence[dict[str, Any]], *extra: str) -> Artifact:
        nonlocal count
        count += 1
        directory = tmp_path / f"given{count}"
        writer = TableWriter(directory / "data", documents_schema(extra))
        writer.write_rows([{"source": "test", "url": "", "license": "", "lang": "", **row} for row in rows])
        files = writer.close()
        return artifact_of(directory, Product("llmctl.documents/1", files=files))

    return make


def rows_of(artifact: Artifact, prefix: str = "part-") -> list[dict[str, Any]]:
    """All rows of the artifact's tables whose names start with `prefix`."""
    paths = [path for path in artifact.files(suffix=".parquet") if path.name.startswith(prefix)]
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    return rows
