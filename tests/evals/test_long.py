"""Long contexts, from the command to the figure: a needle in a haystack, and the loss by place."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmctl.config.errors import InputError
from llmctl.model import huggingface
from llmctl.store.artifact import Artifact
from llmctl.store.store import Store
from llmctl.tokens.tokenizer import Tokenizer
from tests.evals.evaluations import Evals, imported
from tests.evals.test_stage import log_softmax
from tests.evals.tiny import file_of, text

LENGTHS, DEPTHS = (56, 72), (0, 0.5, 1)


def needle(folder: Path) -> Path:
    """The shipped task at lengths that a tiny model reads."""
    shipped = (resources.files("llmctl.config") / "benchmarks" / "needle.yaml").read_text()
    short = f"haystack: {{lengths_tokens: {list(LENGTHS)}, depths: {list(DEPTHS)}, repeats: 2}}"
    path = folder / "needle.yaml"
    path.write_text(re.sub(r"^haystack: .*$", short, shipped, flags=re.MULTILINE))
    return path


def test_needle_and_loss_by_place_through_the_command(
    checkpoint: Artifact, store: Store, llmctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    imported(checkpoint, store)
    hay, pages = tmp_path / "hay.txt", [text(n, 3) for n in range(40)]
    hay.write_text("\n".join(pages))
    texts = [text(n, 8 + 60 * (n % 2)) for n in range(6)]
    file_of(tmp_path / "texts.jsonl", [{"text": one} for one in texts])
    done = llmctl(
        "eval", "tiny", "--tasks", f"{needle(tmp_path)},perplexity", "--data", f"needle={hay}",
        "--data", f"perplexity={tmp_path / 'texts.jsonl'}", "--overlong", "skip", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = Path(json.loads(done.stdout.splitlines()[-1])["manifest"]).parent
    totals = json.loads((made / "manifest.json").read_text())["totals"]
    curves = json.loads((made / "data" / "results.json").read_text())["curves"]
    rows = pq.read_table(made / "data" / "samples-00000.parquet").to_pylist()
    tokenizer = Tokenizer.open(checkpoint.data)
    asked = [row for row in rows if row["task"] == "needle"]
    assert len(asked) == len(LENGTHS) * len(DEPTHS) * 2
    assert totals["needle.scored"] + totals.get("needle.skipped.too_long", 0) == len(asked)
    places: dict[str, list[float]] = {}
    for row in asked:
        haystack, _, _ = row["prompt"].partition("\n\nQuestion:")
        lines = haystack.split("\n")
        at = next(place for place, line in enumerate(lines) if line.startswith("The secret number of "))
        assert lines[at].endswith(f"{row['targets'][0]}.")
        assert [line for line in lines if line != lines[at]] == pages[: len(lines) - 1]
        most = max(len(tokenizer.encode(page)) for page in pages) + 2
        assert int(row["part"]) - most <= len(tokenizer.encode(haystack)) <= int(row["part"])
        places.setdefault(row["part"], []).append(at / max(1, len(lines) - 1))
        if not row["skipped"]:
            numbers = re.findall(r"\d+", row["texts"][0])
            right = float(bool(numbers) and numbers[0] == row["targets"][0])
            assert json.loads(row["scores"])["exact_match,number"] == right
    for part in places.values():  # two of each depth
        assert [round(2 * place) / 2 for place in part] == [depth for depth in DEPTHS for _ in range(2)]
    assert totals["needle.scored"] >= 2
    # The curve against plain torch, each text alone behind the token that begins it.
    model = huggingface.load(checkpoint.data)
    losses: list[list[float]] = []
    for one in texts:
        ids = [tokenizer.bos_id, *tokenizer.text_start, *tokenizer.encode(one)][: model.config.context + 1]
        table = log_softmax(model, ids[:-1])
        losses.append([-float(table[place, ids[place + 1]]) for place in range(len(ids) - 1)])
    for first, last, nats, count in curves["perplexity"]["loss_by_position"]:
        inside = [loss for some in losses for loss in some[first : last + 1]]
        if last < model.config.context:
            assert count == len(inside)
            assert nats == pytest.approx(sum(inside) / count, abs=1e-4)
    assert totals["perplexity.scored"] == len(texts)
    assert (made / "data" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_hay_that_does_not_reach_is_told(evals: Evals, tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text(text(1, 6))
    from llmctl.store.artifact import FileInput

    with pytest.raises(InputError, match=r"the haystack has \d+ tokens, \d+ are wanted"):
        evals.run({"tasks": str(needle(tmp_path))}, needle=FileInput.of(tmp_path / "hay.txt", "documents"))
