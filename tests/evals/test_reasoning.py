"""Several texts of an item, a reward model that chooses among them, and budgets of tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.config.evals import EvalConfig
from llmctl.evals.local import LocalModel
from llmctl.evals.reasoning import Draw, spent
from llmctl.model import scoring
from llmctl.store.artifact import Artifact
from llmctl.tokens.chat import render_training
from llmctl.tokens.tokenizer import Tokenizer
from tests.evals.evaluations import Evals, samples
from tests.evals.tiny import text

# The right answer is a letter that the random model often writes, and the cue asks for it.
LETTER = """\
task: letter
doc_to_text: question
doc_to_target: "{{right}}"
metric_list: [exact_match]
generation_kwargs: {until: ["#"], max_gen_toks: 12}
budget: {cue: " so: ", answer_tokens: 3}
filter_list: [{name: vowel, filter: [{function: regex, regex_pattern: "([aeiou])"}, {function: take_first}]}]
"""
ROWS = [{"question": text(n, 5), "right": "aeiou"[n % 5]} for n in range(6)]


def right(draws: list[Draw]) -> dict[str, float]:
    """What each way makes of all texts of one item."""
    return {one.method: one.share.value for one in spent([{0: draws}]) if one.texts == len(draws)}


def test_every_way_of_choosing_by_hand() -> None:
    a, b = Draw(3, "a", 0.0, score=0.0), Draw(5, "b", 1.0, score=1.5)
    # e^1.5 is more than two votes of weight 1 and less than five.
    assert right([a, a, b]) == {"vote": 0.0, "best": 1.0, "weighted": 1.0, "oracle_pass": 1.0}
    assert right([b, *[a] * 5]) == {"vote": 0.0, "best": 1.0, "weighted": 0.0, "oracle_pass": 1.0}
    silent = Draw(2, None, 0.0, score=9.0)  # the likeliest text of all holds no answer
    assert right([silent, b]) == {"vote": 1.0, "best": 0.0, "weighted": 1.0, "oracle_pass": 1.0}
    assert right([Draw(1, "a", 0.0), Draw(1, "b", 1.0)]) == {"vote": 0.0, "oracle_pass": 1.0}
    # Of programs no two are one answer; what has no verdict does not count.
    table = spent([{0: [Draw(4, None, None), Draw(4, None, 1.0), Draw(6, None, 0.0)]}])
    assert [(one.name, one.tokens, one.share.value) for one in table] == [
        ("oracle_pass@1", 4.0, 0.5), ("oracle_pass@2", 10.0, 1.0)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def scorer(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model with a head that prefers some texts to others."""
    folder = tmp_path_factory.mktemp("reward")
    shutil.copytree(checkpoint.data, folder / "data")
    generator = torch.Generator().manual_seed(1)
    width = scoring.huggingface.load(checkpoint.data).config.width
    scoring.save_head(folder / "data", torch.randn(1, width, generator=generator))
    manifest = checkpoint.manifest.model_copy(update={"digest": "sha256:" + "6" * 64})
    return Artifact(folder, manifest, "reward@v1")


def test_a_reward_model_chooses_and_what_it_says_is_what_it_learned(
    evals: Evals, scorer: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "letter.yaml").write_text(LETTER)
    config = {"tasks": str(tmp_path / "letter.yaml"), "draws": 4, "temperature": 1.0, "budget": "4,8"}
    artifact = evals.run(config, ROWS, {"scorer": scorer})
    kept = samples(artifact)
    model, tokenizer = scoring.load(scorer.data, dtype=torch.float32), Tokenizer.open(scorer.data)
    items: list[dict[int, list[Draw]]] = []
    for row in kept:
        draws = json.loads(row["draws"])
        assert [draw.pop("budget") for draw in draws] == [4] * 4 + [8] * 4
        items.append({4: [Draw(**draw) for draw in draws[:4]], 8: [Draw(**draw) for draw in draws[4:]]})
        for written, draw in zip(row["texts"], draws, strict=True):
            vowels = [letter for letter in written if letter in "aeiou"]
            assert draw["answer"] == (vowels[0] if vowels else None)
            assert draw["right"] == float(draw["answer"] == row["targets"][0])
    # The score of one text alone: where the turn of the assistant ends.
    asked = [{"role": "user", "content": kept[0]["prompt"]}, {"role": "assistant", "content": kept[0]["texts"][5]}]
    ids, spoken = render_training(tokenizer, asked)
    ids = ids[: max(place for place, said in enumerate(spoken) if said) + 1]
    assert ids[-1] in tokenizer.stop_ids
    assert scoring.last_scores(model, [ids])[0] == pytest.approx(items[0][8][1].score, abs=1e-4)
    assert len({draw.score for item in items for draw in item[8]}) > 12
    totals, results = artifact.manifest.totals, json.loads(artifact.file("results.json").read_text())
    for one in spent(items):
        assert totals[f"letter.{one.name}"] == pytest.approx(one.share.value)
    assert results["curves"]["letter"]["spent"] == [one.as_json() for one in spent(items)]
    assert {one.method for one in spent(items)} == {"vote", "best", "weighted", "oracle_pass"}
    assert totals["letter.exact_match,vowel"] == sum(item[8][0].right or 0 for item in items) / 6
    report = artifact.file("report.md").read_text()
    assert "## letter: the share that is right, against the tokens of an item" in report
    whole = next(one for one in spent(items) if one.name == "best@4,8_tokens")
    assert f"| best | 4 | 8 | {whole.tokens:.1f} | {whole.share.value:.4f} |" in report
    assert artifact.file("report.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_that_its_budget_cuts_is_asked_for_its_answer(evals: Evals, tmp_path: Path) -> None:
    (tmp_path / "letter.yaml").write_text(LETTER)
    artifact = evals.run({"tasks": str(tmp_path / "letter.yaml"), "budget": "8,4"}, ROWS)
    plain = evals.run({"tasks": str(tmp_path / "letter.yaml")}, ROWS)
    for row, whole in zip(samples(artifact), samples(plain), strict=True):
        for budget, written, draw in zip((4, 8), row["texts"], json.loads(row["draws"]), strict=True):
            thought, is_cut, answer = written.partition(" so: ")
            assert whole["texts"][0].startswith(thought.rstrip("�"))
            assert is_cut or whole["tokens"] <= budget
            assert draw["tokens"] <= budget + 3 * bool(is_cut)
            assert bool(answer) == bool(is_cut)
    totals = artifact.manifest.totals
    assert totals["letter.first@1,8_tokens"] == totals["letter.exact_match,vowel"]
    assert "letter.first@1,4_tokens" in totals
    assert json.loads(artifact.file("results.json").read_text())["settings"]["budgets"] == {"letter": [4, 8]}


def test_texts_are_kept_by_fewer_at_a_time(evals: Evals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill loses is a call's: texts take longer than likelihoods."""
    (tmp_path / "letter.yaml").write_text(LETTER)
    asked: list[int] = []
    answer = LocalModel.answer

    def counted(self: LocalModel, requests: Any) -> Any:
        asked.append(len(requests))
        return answer(self, requests)

    monkeypatch.setattr(LocalModel, "answer", counted)
    monkeypatch.setattr(LocalModel, "texts_at_once", 4)
    evals.run({"tasks": str(tmp_path / "letter.yaml")}, ROWS)
    assert asked == [4, 2]


def test_what_has_nothing_to_choose_among_is_told_first(evals: Evals, scorer: Artifact, tmp_path: Path) -> None:
    (tmp_path / "letter.yaml").write_text(LETTER)
    task: dict[str, Any] = {"tasks": str(tmp_path / "letter.yaml")}
    with pytest.raises(UsageError, match="--scorer chooses among several texts"):
        evals.run(task, ROWS, {"scorer": scorer})
    with pytest.raises(UsageError, match="no task has the model write any"):
        evals.run({"tasks": "piqa", "draws": 2}, ROWS)
    with pytest.raises(InputError, match=r"has no score.safetensors: it gives no scores"):
        evals.run({**task, "draws": 2}, ROWS, {"scorer": evals.checkpoint})
    of_steps = scorer.manifest.model_copy(update={"semantic": {**scorer.manifest.semantic, "head": "steps"}})
    with pytest.raises(InputError, match="reward@v1 scores steps, not whole answers"):
        evals.run({**task, "draws": 2}, ROWS, {"scorer": Artifact(scorer.path, of_steps, "reward@v1")})
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        EvalConfig.model_validate({"tasks": "gsm8k", "budget": "0,4"})
