"""The recipes that ship: every one is valid, and those for GSM8K read the data set's own files."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from llmctl.config.evals import EvalConfig
from llmctl.config.grpo import GrpoConfig
from llmctl.config.rewards import RegexReward
from llmctl.config.train import SftConfig
from llmctl.data.tables import read_rows
from llmctl.objectives.asked import prompts_of
from llmctl.pipeline.recipe import Recipe, outside_inputs, read_recipe
from llmctl.store.artifact import FileInput
from llmctl.store.store import Store
from tests.conftest import LLMCTL, environment
from tests.gsm8k import gsm8k as questions
from tests.smollm2 import smollm2_gguf

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
QUESTION = {"question": "How many legs have 2 dogs?", "answer": "They have 2*4 = <<2*4=8>>8 legs.\n#### 8"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    assert read_recipe(path).steps


@pytest.mark.parametrize(("words", "right"), [(9, False), (10, True), (16, True), (17, False)])
def test_the_reward_of_the_demo_counts_words(words: int, right: bool) -> None:
    configs = {step.id: step.config for step in read_recipe(REPOSITORY / "recipes" / "demo.yaml").steps}
    grpo = configs["grpo"]
    assert isinstance(grpo, GrpoConfig)
    (reward,) = grpo.rewards
    assert isinstance(reward, RegexReward)
    said = " ".join(["Return"] * (words - 1) + ["it"])
    assert reward.whole
    assert bool(re.fullmatch(reward.pattern, f"{said}.")) == right
    assert not re.fullmatch(reward.pattern, said)


@pytest.fixture
def gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of the data set's form where the recipes look for them."""
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps(QUESTION) + "\n")
    monkeypatch.chdir(tmp_path)
    return folder


def steps_of(recipe: Recipe) -> dict[str, dict[str, str]]:
    return {step.id: dict(step.refs) for step in recipe.steps}


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k-h100"])
def test_gsm8k_goes_from_imitation_to_rewards_and_is_measured_thrice(name: str, gsm8k: Path, tmp_path: Path) -> None:
    recipe = read_recipe(REPOSITORY / "recipes" / f"{name}.yaml", ("sft.steps=2", "grpo.steps=1"))
    found = steps_of(recipe)
    assert found["grpo"] == {"input": "sft", "prompts": "gsm8k/train.jsonl"}
    assert found["sft"]["input"] == "import"
    assert [found[f"eval_{step}"]["input"] for step in ("import", "sft", "grpo")] == ["import", "sft", "grpo"]
    outside = outside_inputs(recipe, Store.expected(str(tmp_path / "store")))
    assert {role for roles in outside.values() for role in roles} == {"chats", "prompts", "data.gsm8k"}
    configs = {step.id: step.config for step in recipe.steps}
    sft, grpo, measured = configs["sft"], configs["grpo"], configs["eval_grpo"]
    assert isinstance(sft, SftConfig)
    assert isinstance(grpo, GrpoConfig)
    assert isinstance(measured, EvalConfig)
    assert measured == configs["eval_import"] == configs["eval_sft"]
    assert [reward.kind for reward in grpo.rewards] == ["number"]
    (task,) = measured.all_tasks
    assert task.num_fewshot == 0
    on_a_gpu = name.endswith("h100")
    assert (sft.precision, grpo.precision, measured.precision) == (("bf16" if on_a_gpu else "fp32"),) * 3
    assert grpo.policy.correction == ("token" if on_a_gpu else "none")


def test_files_of_question_and_answer_are_chats_and_prompts(gsm8k: Path) -> None:
    (chat,) = read_rows(FileInput.of(gsm8k / "train.jsonl", "chats"))
    assert [turn["content"] for turn in chat["messages"]] == [QUESTION["question"], QUESTION["answer"]]
    (prompt,) = prompts_of(FileInput.of(gsm8k / "train.jsonl", "prompts"))
    assert (prompt.text, prompt.answer) == (QUESTION["question"], QUESTION["answer"])


SMALL = (
    *("sft.steps=2", "sft.batch_rows=1", "sft.max_tokens=192", "sft.heldout_rows=2", "sft.heldout_fraction=0.2"),
    *("grpo.steps=1", "grpo.prompts_per_rollout=1", "grpo.group=4", "grpo.max_new_tokens=48", "grpo.heldout_rows=1"),
    "grpo.rewards=[number,repetition]",  # answers of a model that solves nothing yet differ in what they repeat
    "grpo.heldout_fraction=0.2",
    *(f"eval_{step}.limit=1" for step in ("import", "sft", "grpo")),
)


@pytest.mark.slow  # a minute or two: 135 million weights on a CPU
@pytest.mark.timeout(1800)
def test_the_line_for_gsm8k_runs_with_the_real_model(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(30)))
    recipe = str(REPOSITORY / "recipes" / "gsm8k.yaml")
    command = [*LLMCTL, "run", recipe, "--store", "store", f"import.sources=[{smollm2_gguf()}]", *SMALL]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    store = Store.open(str(tmp_path / "store"))
    made = {
        step: store.resolve(f"gsm8k.{step}").manifest
        for step in ("import", "sft", "grpo", "eval_import", "eval_sft", "eval_grpo")
    }
    for step, before in (("sft", "import"), ("grpo", "sft"), ("eval_grpo", "grpo")):
        assert made[step].inputs["input"].digest == made[before].digest
        assert made[step].digest != made[before].digest
    assert 0.5 < made["sft"].totals["loss"] < 3
    grpo = made["grpo"].totals
    assert (grpo["steps"], grpo["answers"]) == (1, 4)
    assert grpo["tokens"] > 4 * 8  # so there was an update
    assert 0 < grpo["logprob_gap"] <= 1e-4
    assert [made[f"eval_{step}"].totals["gsm8k.scored"] for step in ("import", "sft", "grpo")] == [1, 1, 1]
