"""Recurring lines: counted over all parts of a site, removed above the share, the same as a plain count says."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st

import llmctl.data.clean.boilerplate as module
from llmctl.config.clean import CleanConfig
from llmctl.config.clean_steps import BoilerplateConfig
from llmctl.data.clean import run
from llmctl.data.clean.boilerplate import LineCounts, WithoutBoilerplate, line_key, recurring, sites_of
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import DOCUMENTS
from tests.data.conftest import artifact_of, rows_of

OFF = {"quality": {"enabled": False}, "repetition": {"enabled": False}}


def batch_of(rows: list[tuple[str, str]]) -> pa.RecordBatch:
    full = [
        {**dict.fromkeys(DOCUMENTS.names, ""), "id": str(n), "text": text, "url": url}
        for n, (url, text) in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(full, schema=DOCUMENTS)


LINES = ["Home | About", "  Home | About ", "All rights reserved", "}", "", "a line of text", "another line"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@examples(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["http://a.org/1", "http://b.org/", ""]), st.lists(st.sampled_from(LINES), max_size=6)
            ),
            max_size=8,
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0.3, 0.5, 1.0]),
    st.integers(2, 4),
)
def test_counts_are_those_of_plain_python(
    tmp_path_factory, parts: list[list[tuple[str, list[str]]]], share: float, least: int
) -> None:
    config = BoilerplateConfig(enabled=True, min_share=share, min_documents=least)
    directories = []
    seen, totals = Counter[tuple[int, str]](), Counter[int]()
    for part in parts:
        directories.append(tmp_path_factory.mktemp("part"))
        counts = LineCounts(config)
        batch = batch_of([(url, "\n".join(lines)) for url, lines in part])
        counts.add(batch)
        counts.write(directories[-1])
        for site, (_, lines) in zip(sites_of(batch, "host"), part, strict=True):
            totals[site] += 1
            seen.update({(site, line.strip()) for line in lines if len(line.strip()) >= 8})
    expected = {line_key(line, site) for (site, line), n in seen.items() if n >= least and n >= share * totals[site]}
    assert set(recurring(directories, config).tolist()) == expected


def test_ranges_do_not_matter(tmp_path: Path, monkeypatch) -> None:
    config = BoilerplateConfig(enabled=True)
    counts = LineCounts(config)
    counts.add(batch_of([(f"http://x.org/{n}", "\n".join(f"line number {k}" for k in range(50))) for n in range(10)]))
    counts.write(tmp_path)
    whole = recurring([tmp_path], config)
    monkeypatch.setattr(module, "RANGE_ROWS", 3)
    assert np.array_equal(recurring([tmp_path], config), whole)
    assert len(whole) == 50
    assert np.all(np.diff(whole.astype(object)) > 0)


def test_blank_lines_that_meet_become_one() -> None:
    config = BoilerplateConfig(enabled=True)
    kernel = WithoutBoilerplate(config, np.array([line_key("Home | About", 7)], np.uint64))
    assert kernel.rewrite("Home | About\n\ntext\n\n Home | About\n\nmore\nHome | About", 7) == "text\n\nmore"
    assert kernel.rewrite("Home | About", 8) == "Home | About"
    assert kernel.counts["boilerplate.lines"] == 3


def test_boilerplate_in_the_stage_over_parts(stage: Callable, tmp_path: Path) -> None:
    directory = tmp_path / "given"
    writer = TableWriter(directory / "data", DOCUMENTS, part_bytes=1)
    for n in range(9):
        own = f"Page {n} has a text of its own." if n != 8 else ""
        row = {"id": str(n), "text": f"Home | About us\n\n{own}\n\nAll rights reserved", "url": f"http://x.org/{n}"}
        writer.write(batch_of([(row["url"], row["text"])]).set_column(0, DOCUMENTS.field(0), pa.array([row["id"]])))
    writer.write(batch_of([("http://y.org/", "Home | About us")]))
    from llmctl.pipeline.job import Product

    given = artifact_of(directory, Product("llmctl.documents/1", files=writer.close()))
    config = CleanConfig(boilerplate={"enabled": True}, keep_rejected=True, workers=1, **OFF)
    product, artifact = stage(run, config, given)
    texts = [row["text"] for row in rows_of(artifact)]
    assert texts == [f"Page {n} has a text of its own." for n in range(8)] + ["Home | About us"]
    assert product.totals["dropped.only_boilerplate"] == 1
    assert product.totals["boilerplate.lines"] == 18
    assert [row["id"] for row in rows_of(artifact, "rejected")] == ["8"]
    plain, _ = stage(run, CleanConfig(workers=1, **OFF), given)
    assert plain.totals["kept"] == 10
    twice, _ = stage(run, CleanConfig(boilerplate={"enabled": True}, workers=2, **OFF), given)
    assert twice.totals["rows_digest"] == product.totals["rows_digest"]
