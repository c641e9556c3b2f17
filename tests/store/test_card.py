from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlcroissant
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from llmctl.config.clean import CleanConfig
from llmctl.config.collect import CollectConfig
from llmctl.config.mix import MixConfig
from llmctl.store.artifact import Artifact
from llmctl.store.card import languages_of, size_category
from llmctl.store.contents import Contents

SENTENCE = "Number {} tells a story of its own, which is long enough to be told and read by somebody at home. "


def front_matter(artifact: Artifact) -> dict[str, Any]:
    _, front, _ = (artifact.path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values: dict[str, Any] = YAML(typ="safe").load(front)
    return values


@pytest.fixture
def line(tmp_path: Path, run_stage: Callable[..., Any]) -> list[Artifact]:
    """Collected, cleaned and mixed: 40 documents under two licences, 4 of them empty of words."""
    path = tmp_path / "web.jsonl"
    rows = [
        {
            "id": f"d{n}",
            "text": "..." if n % 10 == 9 else SENTENCE.format(n) * 8,
            "license": "MIT" if n % 4 else "CC0-1.0",
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    collected = run_stage(
        "collect", CollectConfig(sources=(str(path),)), argv=("collect", "my notes/web.jsonl")
    ).artifact
    settings = CleanConfig.model_validate({"repetition": {"enabled": False}})
    cleaned = run_stage("clean", settings, {"input": collected}).artifact
    mixture = MixConfig(heldout_fraction=0.2, near_threshold=1.0)
    mixed = run_stage("mix", mixture, {"sources.web": cleaned}).artifact
    return [collected, cleaned, mixed]


def test_the_front_matter_is_what_the_hub_reads(line: list[Artifact]) -> None:
    collected, cleaned, mixed = line
    front = front_matter(collected)
    assert front["license"] == ["cc0-1.0", "mit"]
    assert front["size_categories"] == ["n<1K"]
    assert front["pretty_name"] == "web"
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": ["data/part-00000.parquet"]}]
    files = {entry["split"]: entry["path"] for entry in front_matter(mixed)["configs"][0]["data_files"]}
    for split, rows in (
        ("train", mixed.manifest.totals["train.documents"]),
        ("heldout", mixed.manifest.totals["heldout.documents"]),
    ):
        assert sum(pq.read_metadata(mixed.path / path).num_rows for path in files[split]) == rows
    assert front_matter(cleaned)["license"] == ["cc0-1.0", "mit"]


def test_the_card_tells_how_it_was_made(line: list[Artifact]) -> None:
    collected, cleaned, mixed = line
    card = (mixed.path / "README.md").read_text(encoding="utf-8")
    stages = [row for row in card.splitlines() if row.startswith(("| collect |", "| clean |", "| mix |"))]
    assert [row.split(" | ")[:3] for row in stages] == [
        ["| collect", "web@v1", "40"],
        ["| clean", "web.clean@v1", "36"],
        ["| mix", "web.mix", str(mixed.manifest.totals["documents"])],
    ]
    assert "| too_few_words | 4 | 10.00% |" in (cleaned.path / "README.md").read_text(encoding="utf-8")
    assert "| kept | 36 | 90.00% |" in (cleaned.path / "README.md").read_text(encoding="utf-8")
    first = (collected.path / "README.md").read_text(encoding="utf-8")
    assert "llmctl collect 'my notes/web.jsonl'" in first
    assert "| MIT | 30 | 75.0% |" in first
    assert "| not stated | 40 | 100.0% |" in first, "no language is known yet"
    assert "heldout_fraction: 0.2" in card


def test_croissant_is_valid_and_gives_the_rows(line: list[Artifact], caplog: pytest.LogCaptureFixture) -> None:
    mixed = line[-1]
    with caplog.at_level(logging.WARNING):
        opened = mlcroissant.Dataset(jsonld=str(mixed.path / "croissant.json"))
    assert (opened.metadata.issues.errors, opened.metadata.issues.warnings) == (set(), set())
    assert "not standard" not in caplog.text
    for split in ("train", "heldout"):
        found = [record[f"{split}/id"].decode() for record in opened.records(split)]
        paths = mixed.files(suffix=".parquet", split=split)
        assert found == [name for path in paths for name in pq.read_table(path).column("id").to_pylist()]
    described = json.loads((mixed.path / "croissant.json").read_bytes())
    hashes = {item["contentUrl"]: item["sha256"] for item in described["distribution"] if "contentUrl" in item}
    assert hashes == {entry.path: entry.sha256 for entry in mixed.manifest.files}


@pytest.mark.parametrize(
    ("documents", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")],
)
def test_size_category(documents: int, category: str) -> None:
    assert size_category(documents) == category


def test_programming_languages_are_code() -> None:
    assert languages_of(Contents(9, {"python": 4, "en": 3, "": 2, "deu": 1}, {}, ())) == ["code", "deu", "en"]
