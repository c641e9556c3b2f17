"""PPO's advantages of tokens: what a value head expected, what came, and what a divergence takes off."""

import numpy as np
import pytest
import torch

from llmctl.config.grpo import GrpoConfig
from llmctl.objectives.rollouts import Answer
from llmctl.objectives.valued import token_penalties, valued


def config_of(**policy):
    return GrpoConfig.model_validate({"preset": "ppo", "policy": policy})


def answer(values, reward, reference=None, missing=""):
    other = None if reference is None else np.array(reference)
    return Answer(
        prompt=0,
        ids=np.arange(len(values)),
        logps=np.full(len(values), -1.0),
        text="",
        truncated=False,
        reward=reward,
        missing=missing,
        reference=other,
        values=np.array(values),
    )


def test_an_advantage_is_what_came_less_what_was_expected():
    config = config_of(adv_norm="none", kl={"weight": 0.0}, value={"decay": 1.0})
    (one,) = valued([answer([0.2, 0.5, 0.9], 1.0)], config)
    assert one.advantages == pytest.approx([0.8, 0.5, 0.1])
    assert one.returns == pytest.approx([1.0, 1.0, 1.0])
    (one,) = valued([answer([0.2, 0.5, 0.9], 1.0)], config_of(adv_norm="none", kl={"weight": 0}, value={"decay": 0.0}))
    assert one.advantages == pytest.approx([0.3, 0.4, 0.1])  # one token ahead


def test_a_divergence_costs_the_token_that_it_is_of():
    config = config_of(adv_norm="none", kl={"weight": 0.5}, value={"decay": 0.0})
    given = answer([0.0, 0.0], 1.0 - 0.5 * (0.5 - 0.25), reference=[-1.5, -0.75])  # the reward has both taken off
    assert token_penalties(given, config).tolist() == pytest.approx([0.25, -0.125])
    (one,) = valued([given], config)
    assert one.advantages == pytest.approx([-0.25, 1.0 + 0.125])


def test_whitened_over_the_tokens_of_answers_that_have_a_reward():
    config = config_of(kl={"weight": 0.0})
    answers = [answer([0.1, 0.2], 1.0), answer([0.4], float("nan"), missing="no"), answer([0.3, 0.3, 0.2], 0.0)]
    found = valued(answers, config)
    together = np.concatenate([found[0].advantages, found[2].advantages])
    assert together.mean() == pytest.approx(0, abs=1e-9)
    assert together.std(ddof=1) == pytest.approx(1, rel=1e-4)
    assert (found[1].advantages == 0).all()
    assert all(one.advantage == pytest.approx(one.advantages.mean()) for one in found)
    assert torch.tensor([one.returns[-1] for one in found]).isfinite().all()
