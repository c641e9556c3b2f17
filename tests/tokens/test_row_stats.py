"""Statistics of packed rows: figures against a plain count, and a picture that can be opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmctl.config.errors import InputError
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.pipeline.execute import Outcome
from llmctl.store.artifact import Artifact
from llmctl.tokens.row_picture import draw_rows
from llmctl.tokens.row_stats import measure_rows
from llmctl.tokens.rows import Rows

RunStage = Callable[..., Outcome]


@pytest.fixture
def tokens(run_stage: RunStage, write_documents: Any, documents: list[str]) -> Artifact:
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 700}})
    return run_stage("tokenize", config, {"input": write_documents(documents)}).artifact


def test_figures_are_those_of_a_plain_count(run_stage: RunStage, tokens: Artifact) -> None:
    artifact = run_stage("pack", PackConfig(seq_len=128, heldout_fraction=0.1), {"input": tokens}).artifact
    figures = measure_rows(artifact)
    assert set(figures["splits"]) == {"train", "heldout"}
    for split, found in figures["splits"].items():
        rows = Rows.open(artifact, split)
        batch = rows.batch(np.arange(rows.count))
        used = (batch.documents >= 0).sum(axis=1)
        totals = artifact.manifest.totals
        assert (found["rows"], found["tokens"]) == (rows.count, int(used.sum()))
        assert found["documents"] == totals[f"{split}.documents"]
        assert found["full_rows"] == np.count_nonzero(used == 128)
        assert abs(found["padding"] - totals[f"{split}.padding"]) < 1e-6
        assert found["pieces_per_row"]["max"] == int(batch.documents.max()) + 1
        assert sum(one["count"] for one in found["piece_tokens"]["histogram"]) == len(rows.slices)
        pieces = [rows.slices_of(row) for row in range(rows.count)]
        assert found["piece_tokens"]["max"] == max(int(piece[:, 2].max()) for piece in pieces)
        mean = sum(batch.positions[batch.documents >= 0].tolist()) / used.sum()
        assert abs(found["context"] - mean - 0.5) < 1e-9  # a token sees those before it, and half of itself
    assert sum(found["documents_cut"] for found in figures["splits"].values()) == totals["documents_cut"]
    assert figures["sources"] == []
    assert np.array(figures["first_rows"]).shape == (40, 128)


def test_shares_of_sources_by_stage(run_stage: RunStage, tokens: Artifact, tmp_path: Path) -> None:
    sources = {"sources.a": tokens, "sources.b": tokens}
    stages = [{"tokens": 5000, "weights": {"a": 3, "b": 1}}, {"weights": {"b": 1}}]
    config = PackConfig.model_validate({"seq_len": 64, "stages": stages})
    figures = measure_rows(run_stage("pack", config, sources, name="two.pack").artifact)
    first, second = figures["sources"]
    assert (first["source"], second["source"]) == ("a", "b")
    assert [round(stage["share"], 6) for stage in first["stages"]] == [0.75, 0.0]
    assert [round(stage["share"], 6) for stage in second["stages"]] == [0.25, 1.0]
    assert abs(first["stages"][0]["tokens"] - 5000) <= 64
    assert first["stages"][1]["tokens"] is None
    assert abs(first["tokens"] + second["tokens"] - figures["splits"]["train"]["tokens"]) == 0
    draw_rows(figures, tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.size == (1800, 1080)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    with pytest.raises(InputError, match="there is no folder"):
        draw_rows(figures, tmp_path / "none" / "two.png")


def test_the_command_line(llmctl: Any, run_stage: RunStage, tokens: Artifact, tmp_path: Path) -> None:
    run_stage("pack", PackConfig(seq_len=128), {"input": tokens}, name="docs.pack")
    shown = llmctl("stats", "docs.pack", "--png", "rows.png")
    assert shown.returncode == 0, shown.stderr
    assert "rows of 128 tokens" in shown.stdout
    assert "█" in shown.stdout
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.format == "PNG"
    machine = llmctl("stats", "docs.pack", "--json")
    assert '"padding":' in machine.stdout
    assert "first_rows" not in machine.stdout
