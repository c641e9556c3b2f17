from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from llmctl.config.errors import InputError
from llmctl.config.stats import StatsConfig
from llmctl.data.stats import measure, report
from llmctl.data.stats.measure import domain
from llmctl.data.stats.picture import draw, label, share_of, short
from llmctl.pipeline.job import Silent
from llmctl.store.artifact import Artifact

COLUMNS = ("id", "text", "url", "license", "lang", "source")
ROWS = [
    dict(zip(COLUMNS, row, strict=True))
    for row in (
        ("a", "one two three", "https://www.Example.org/a", "MIT", "en", "w"),
        ("b", "one two dréi", "http://example.org:8080/b", "MIT", "lb", "w"),
        ("c", "One, TWO", "", "", "en", "b"),
        ("d", "", "https://[broken", "", "", "b"),
    )
]


def figures_of(artifact: Artifact, **config: Any) -> dict[str, Any]:
    settings = StatsConfig(**config)
    return report(artifact, measure(artifact, settings, Silent()), settings)


def test_every_figure(documents: Callable) -> None:
    figures = figures_of(documents(ROWS), ngram_words=(1, 2))
    assert (figures["documents"], figures["words"], figures["characters"], figures["bytes"]) == (4, 8, 33, 34)
    assert figures["languages"] == {
        "different": 3,
        "top": [
            {"value": "en", "documents": 2, "bytes": 21},
            {"value": "", "documents": 1, "bytes": 0},
            {"value": "lb", "documents": 1, "bytes": 13},
        ],
    }
    assert [(one["value"], one["documents"]) for one in figures["domains"]["top"]] == [("", 2), ("example.org", 2)]
    assert [(one["value"], one["documents"]) for one in figures["licenses"]["top"]] == [("", 2), ("MIT", 2)]
    assert [(one["value"], one["documents"]) for one in figures["sources"]["top"]] == [("b", 2), ("w", 2)]
    assert figures["lengths"]["words"]["histogram"] == [
        {"from": 0, "below": 1, "count": 1}, {"from": 1, "below": 2, "count": 0}, {"from": 2, "below": 4, "count": 3},
    ]  # fmt: skip
    assert figures["ngrams"] == [
        {"words": 1, "counted": 8, "error": 0, "top": [
            {"text": "one", "count": 3}, {"text": "two", "count": 3}, {"text": "dréi", "count": 1},
            {"text": "three", "count": 1},
        ]},
        {"words": 2, "counted": 5, "error": 0, "top": [
            {"text": "one two", "count": 3}, {"text": "two dréi", "count": 1}, {"text": "two three", "count": 1},
        ]},
    ]  # fmt: skip
    json.dumps(figures)


def test_top_limits_what_is_listed_not_what_is_counted(documents: Callable) -> None:
    figures = figures_of(documents(ROWS), top=1)
    assert figures["languages"]["different"] == 3
    assert len(figures["languages"]["top"]) == len(figures["ngrams"][0]["top"]) == 1


def test_workers_do_not_change_it(documents: Callable) -> None:
    rows = [{"id": str(n), "text": f"word{n % 17} then number {n} " * (n % 9)} for n in range(600)]
    artifact = documents(rows)
    path = artifact.data / "part-00000.parquet"
    table = pq.read_table(path)
    entry = artifact.manifest.files[0]
    names = []
    for number in range(3):
        pq.write_table(table.slice(number * 200, 200), artifact.data / f"part-{number + 1:05d}.parquet")
        names.append(entry.model_copy(update={"path": f"data/part-{number + 1:05d}.parquet", "bytes": 32 << 20}))
    cut = Artifact(artifact.path, artifact.manifest.model_copy(update={"files": names}), artifact.ref)
    one, two = (figures_of(cut, workers=workers, ngrams_kept=150) for workers in (1, 2))
    assert one == two
    whole = figures_of(artifact, ngrams_kept=150)
    same = ("documents", "words", "lengths", "languages", "sources")
    assert {name: one[name] for name in same} == {name: whole[name] for name in same}
    assert one["ngrams"][2]["error"] > 0, "more different ones than are kept"


def test_an_empty_artifact(documents: Callable) -> None:
    with pytest.raises(InputError, match="holds no document"):
        figures_of(documents([]))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://WWW.A.org/x?y", "a.org"),
        ("a.org/x", ""),
        ("", ""),
        ("ftp://u:p@b.net:21/", "b.net"),
        ("http://[x", ""),
    ],
)
def test_domain(url: str, host: str) -> None:
    assert domain(url) == host


def test_the_picture(documents: Callable, tmp_path: Path) -> None:
    hard = [
        {"id": str(n), "text": "$x_1$ \\frac {b} 日本語 " * n, "lang": "$" * n, "license": "L" * 90} for n in range(30)
    ]
    path = tmp_path / "stats.png"
    draw(figures_of(documents(hard)), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (1800, 1200)
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50, "something is drawn"
    with pytest.raises(InputError, match="there is no folder"):
        draw(figures_of(documents(ROWS)), tmp_path / "missing" / "stats.png")


def test_labels() -> None:
    assert label("a$b$") == r"a\$b\$"
    assert label("x" * 50) == "x" * 29 + "…"
    assert label(" \n ") == "not stated"
    assert [short(n).strip() for n in (0, 999, 1000, 1234, 99_960, 2_000_000)] == [
        "0",
        "999",
        "1 k",
        "1.2 k",
        "100 k",
        "2 M",
    ]
    assert share_of(1, 10_000) == "<0.1%"
    assert share_of(1, 8) == "12.5%"
