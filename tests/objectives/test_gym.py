"""reasoning-gym's tasks as prompts, and its own scores as rewards."""

from importlib import metadata

import pytest

from llmctl.config.errors import ConfigError, InputError
from llmctl.config.grpo import GrpoConfig
from llmctl.config.gym import GymConfig
from llmctl.config.load import build
from llmctl.objectives.gym import gym_questions
from llmctl.objectives.rewards.registry import Rewards
from llmctl.objectives.rewards.rules import Sample


def test_it_is_told_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"reasoning-gym is not installed: pip install 'llmctl\[gym\]'"):
        build(GrpoConfig, [{"gym": "chain_sum"}])


@pytest.fixture(scope="module")
def gym():
    return pytest.importorskip("reasoning_gym")


MIXED = {
    "tasks": [{"name": "chain_sum", "share": 3, "options": {"min_terms": 2, "max_terms": 2}}, "spell_backward"],
    "prompts": 6,
    "seed": 5,
    "instruction": "Be short.",
}


@pytest.fixture(scope="module")
def questions(gym):
    return gym_questions(GymConfig.model_validate(MIXED))


def test_prompts_are_the_packages_own_and_follow_from_the_seed(gym, questions):
    theirs = [
        *gym.create_dataset("chain_sum", size=5, seed=5, min_terms=2, max_terms=2),
        *gym.create_dataset("spell_backward", size=1, seed=5),
    ]
    assert [one.text for one in questions] == [f"{entry['question']}\nBe short." for entry in theirs]
    assert [one.answer for one in questions] == [entry["answer"] for entry in theirs]
    assert [one.id for one in questions[3:]] == ["gym/chain_sum/5/3", "gym/chain_sum/5/4", "gym/spell_backward/5/0"]


def test_answers_are_judged_as_the_package_judges_them(gym, questions):
    config = GrpoConfig.model_validate({"rewards": [{"kind": "gym", "tag": "answer"}], "gym": MIXED})
    dataset = gym.create_dataset("spell_backward", size=1, seed=5)
    right = questions[-1].answer
    with Rewards(config.rewards, 60.0) as rewards:
        rewards.check(questions)
        said = [f"<answer>no</answer> or <answer> {right} </answer>", right, f"<answer>{right}x</answer>"]
        judged = rewards.judge([Sample("", text, right, fields=questions[-1].fields) for text in said])
        (stray,) = rewards.judge([Sample("", "1", "1")])
    wanted = [dataset.score_answer(text, dataset[0]) for text in (right, "", f"{right}x")]
    assert [one.value for one in judged] == pytest.approx(wanted)
    assert wanted[0] == 1.0
    assert stray.missing == "gym: ValueError: the prompt's row has no 'gym'"


def test_a_task_that_there_is_not(gym):
    with pytest.raises(InputError, match=r"chain_sums: ValueError: there is no such task; there are chain_sum"):
        gym_questions(GymConfig.model_validate("chain_sums"))


def test_the_release_is_part_of_a_runs_identity(gym):
    config = GymConfig.model_validate("chain_sum, leg_counting")
    assert config.version == metadata.version("reasoning-gym")
    assert [task.name for task in config.tasks] == ["chain_sum", "leg_counting"]
    assert GymConfig.model_validate(config.model_dump(mode="json")) == config
    both = build(GrpoConfig, [{"gym": "chain_sum, leg_counting"}, {"gym": {"prompts": 9}}])  # a flag and an override
    assert both.gym == config.model_copy(update={"prompts": 9})
    with pytest.raises(ConfigError, match="are of reasoning-gym 0.0.1"):
        build(GrpoConfig, [{"gym": {"tasks": "chain_sum", "version": "0.0.1"}}])
    assert [one.kind for one in GrpoConfig.model_validate({"gym": "chain_sum"}).rewards] == ["gym"]


@pytest.mark.parametrize(
    ("shares", "prompts", "counts"), [([1, 1, 1], 10, [4, 3, 3]), ([3, 1], 6, [5, 1]), ([1, 1e6], 5, [0, 5])]
)
def test_prompts_are_dealt_by_share(gym, shares, prompts, counts):
    tasks = [{"name": f"t{at}", "share": share} for at, share in enumerate(shares)]
    assert GymConfig.model_validate({"tasks": tasks, "prompts": prompts}).counts() == counts
