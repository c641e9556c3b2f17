"""What a training run left behind can be read afterwards, through real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PAGES = "".join(json.dumps({"id": str(n), "text": f"page {n} says {n * n} and no more"}) + "\n" for n in range(80))
SHARED = ("model=nano", "batch_rows=4", "device=cpu", "threads=1", "eval_every_steps=0", "-q")


@pytest.fixture
def rows(llmctl: Any, tmp_path: Path) -> str:
    (tmp_path / "d.jsonl").write_text(PAGES)
    for words in (
        ("collect", "d.jsonl", "--name", "d"),
        ("tokenize", "d", "--vocab-size", "300"),
        ("pack", "d.tokenize", "--seq-len", "32"),
    ):
        done = llmctl(*words, "-q")
        assert done.returncode == 0, done.stderr
    return "d.pack"


def test_incidents_are_shown_with_what_the_step_saw(llmctl: Any, rows: str) -> None:
    # So small a threshold that every loss above the mean of the ones before it counts as a spike.
    guard = ("guard.on_spike=skip", "guard.sigma=0.001", "guard.after=2", "optimizer.lr=1e-9")
    done = llmctl("pretrain", rows, "--steps", "12", *guard, *SHARED)
    assert done.stdout == "d.pretrain@v1\n", done.stderr
    shown = llmctl("show", "d.pretrain", "--incidents").stdout
    assert "the loss is " in shown or "the gradient's norm is " in shown
    assert ": skip; rows [" in shown
    assert " says " in shown
    lines = [json.loads(line) for line in llmctl("show", "d.pretrain", "--incidents", "--json").stdout.splitlines()]
    incidents = [line for line in lines if "incident" in line]
    assert {"step", "incident", "action", "rows"} <= incidents[0].keys()
    assert {piece["row"] for piece in lines if "text" in piece} == {row for one in incidents for row in one["rows"]}


def test_a_quiet_run_has_none(llmctl: Any, rows: str) -> None:
    assert llmctl("pretrain", rows, "--steps", "1", "--keep", "last:1", *SHARED).returncode == 0
    done = llmctl("show", "d.pretrain", "--incidents")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no step was left out" in done.stderr
    refused = llmctl("show", "d", "--incidents")
    assert refused.returncode == 3
    assert "documents artifact without steps" in refused.stderr


def test_curves_are_drawn_in_the_terminal_and_to_a_file(llmctl: Any, rows: str, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert llmctl("pretrain", rows, "--steps", "6", "--seed", seed, *SHARED).returncode == 0
    done = llmctl("plot", "d.pretrain@v1", "d.pretrain", "--png", "curves.png")
    assert done.returncode == 0, done.stderr
    assert "d.pretrain@v1" in done.stdout
    assert "heldout_loss" in done.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    points = llmctl("plot", "d.pretrain", "--figures", "lr", "--x", "tokens", "--json").stdout
    curve = json.loads(points)
    assert (curve["figure"], curve["axis"], curve["label"], len(curve["x"])) == ("lr", "tokens", "d.pretrain@v2", 6)
    wrong = llmctl("plot", "d.pretrain", "--figures", "lost")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "known: " in wrong.stderr
