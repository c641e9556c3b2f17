"""Parquet that is damaged, through real processes: one line that names the file, never a bug."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.store.store import Store
from tests.data.broken import parquet_of_bytes

WORDS = "one two three four five six seven eight nine ten"
STAGES = {
    "clean": ("clean", "web"),
    "dedup": ("dedup", "web"),
    "mix": ("mix", "web"),
    "decontaminate": ("decontaminate", "web", "--against", "items.jsonl"),
    "tokenize": ("tokenize", "web", "--vocab-size", "300"),
    "stats": ("stats", "web"),
}


@pytest.fixture
def part(llmctl: Any, tmp_path: Path) -> Path:
    """The only part of the artifact `web`."""
    for name in ("web", "items"):
        rows = [{"id": f"{name}{number}", "text": f"{WORDS} {name} {number}"} for number in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert llmctl("collect", "web.jsonl", "-q").returncode == 0
    path = Store.open(tmp_path / "artifacts").resolve("web").file("part-00000.parquet")
    path.chmod(0o644)
    return path


def test_a_damaged_part_of_an_artifact(llmctl: Any, part: Path) -> None:
    table = pq.read_table(part)
    columns = {name: [value.encode() for value in table[name].to_pylist()] for name in table.column_names}
    columns["text"][3] += b" \xff"
    parquet_of_bytes(part, **columns)
    for stage, words in STAGES.items():
        done = llmctl(*words)
        assert done.returncode == 3, (stage, done.stderr)
        assert "part-00000.parquet row 4: 'text' is not UTF-8" in done.stderr, stage
    part.write_bytes(part.read_bytes()[:-100])
    for stage, words in STAGES.items():
        done = llmctl(*words)
        assert done.returncode == 3, (stage, done.stderr)
        assert "part-00000.parquet is truncated or not Parquet" in done.stderr, stage


@pytest.mark.parametrize(
    "words",
    [
        ("collect", "./given.parquet"),
        ("decontaminate", "web", "--against", "./given.parquet"),
        ("classifier", "web", "--negative", "./given.parquet"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("part")
def test_a_damaged_plain_file(llmctl: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    given = parquet_of_bytes(tmp_path / "given.parquet", text=[WORDS.encode(), b"caf\xe9"])
    done = llmctl(*words)
    assert (done.returncode, "given.parquet row 2" in done.stderr) == (3, True), done.stderr
    assert "UTF-8" in done.stderr
    given.write_bytes(given.read_bytes()[:60])
    done = llmctl(*words)
    assert (done.returncode, "given.parquet is truncated or not Parquet" in done.stderr) == (3, True), done.stderr
    pq.write_table(pa.table({"text": [1, 2]}), given)
    done = llmctl(*words)
    assert (done.returncode, "given.parquet" in done.stderr) == (3, True), done.stderr
