"""A policy's loss in rows: however a step is dealt it is the same, and it is that of TRL's trainer."""

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.grpo import GrpoConfig
from llmctl.model import huggingface
from llmctl.model.likelihood import Tensors
from llmctl.objectives.advantages import group_advantages
from llmctl.objectives.answer_rows import answer_batches, logps_at, score
from llmctl.objectives.policy import divergences
from llmctl.objectives.prompts import Prompt
from llmctl.objectives.rewarded import PolicyObjective
from llmctl.objectives.rollouts import Answer
from llmctl.tokens.batch import ROWS

from .test_pairs import VOCAB, nano

GROUP, LONGEST = 4, 9
CHOICES = {
    "grpo": {"preset": "grpo"},
    "dr_grpo with a reference": {"preset": "dr_grpo", "policy": {"kl": {"weight": 0.1}}},
    "dapo, dual": {"preset": "dapo", "policy": {"clip": {"dual": 3.0}}},
    "bnpo without what was cut": {"preset": "bnpo", "policy": {"mask_truncated": True}},
    "gspo": {"preset": "gspo", "policy": {"clip": {"low": 0.1, "high": 0.1}}},
    "cispo, k2": {"preset": "cispo", "policy": {"kl": {"weight": 0.2, "estimator": "k2"}}},
    "rloo": {"preset": "rloo"},
    "hot": {"temperature": 1.7, "policy": {"correction": "token"}},
}


def made_up(seed, prompts=3):
    """Prompts, and answers that another policy gave; one reward is missing."""
    rng = np.random.default_rng(seed)

    def ids(count):
        return rng.integers(1, VOCAB, size=count)

    asked = [Prompt(f"p/{n}", f"p/{n}", "", tuple(ids(rng.integers(1, 6)).tolist()), None) for n in range(prompts)]
    rewards = torch.from_numpy(rng.normal(size=(prompts, GROUP)))
    rewards[1, 2] = torch.nan
    advantages = group_advantages(rewards)
    answers = []
    for number in range(prompts):
        for sample in range(GROUP):
            count = int(rng.integers(1, LONGEST + 1))
            old, other = (-rng.uniform(2.0, 6.0, size=count) for _ in range(2))
            missing = "no" if rewards[number, sample].isnan() else ""
            value = float(advantages[number, sample])
            near = old + rng.normal(scale=0.3, size=count)
            answer = Answer(number, ids(count), near, "", count == LONGEST, np.nan, {}, missing, value, old, other)
            answers.append(answer)
    return asked, answers


def config_of(choice, **fields):
    sizes = {"group": GROUP, "prompts_per_rollout": 3, "max_new_tokens": LONGEST, "precision": "fp32"}
    return GrpoConfig.model_validate({**sizes, **copy.deepcopy(CHOICES[choice]), **fields})


@functools.cache
def policy():
    return copy.deepcopy(nano()).train()


def step(config, asked, answers, *, pad=0, lanes=1, order=None, ranks=1):
    """Loss and gradient, added up over micro-batches and ranks as the loop does."""
    model = policy()
    model.zero_grad()
    model.tally = {}
    objective = PolicyObjective.__new__(PolicyObjective)
    objective._config, objective._explorer = config, None
    tokens = sum(one.ids.size for one in answers if not one.missing)
    some = answers if order is None else [answers[at] for at in order]
    dealt = {"pad_id": pad, "rollout_tokens": tokens, "lanes": lanes, "ranks": ranks}
    parts = [answer_batches(some, asked, config, rank=rank, **dealt) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1, "every rank takes part in every pass"
    batches = [batch for part in parts for batch in part]
    targets, total = sum(batch.targets for batch in batches), 0.0
    for batch in batches:
        value = objective.loss(model, Tensors.of(batch, torch.device("cpu"))) / targets
        value.backward()
        total += value.item()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total, gradients, len(batches)


@pytest.mark.parametrize("choice", CHOICES)
@settings(max_examples=6, deadline=None)
@given(
    tokens=st.sampled_from([1, 20, 40, 10_000]),
    lanes=st.integers(1, 3),
    order=st.permutations(range(12)),
    pad=st.integers(0, VOCAB - 1),
    ranks=st.sampled_from([1, 2, 5, 16]),
)
def test_the_loss_is_the_same_however_a_step_is_dealt(choice, tokens, lanes, order, pad, ranks):
    asked, answers = made_up(3)
    loss, gradients, _ = step(config_of(choice), asked, answers)
    dealt = config_of(choice, micro_batch_tokens=tokens)
    other, others, _ = step(dealt, asked, answers, pad=pad, lanes=lanes, order=order, ranks=ranks)
    assert other == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=2e-6 * max(1.0, float(gradient.abs().max())))


def test_there_are_as_many_micro_batches_as_lanes_and_as_tokens_ask_for():
    asked, answers = made_up(3)
    assert step(config_of("grpo"), asked, answers)[2] == 1
    assert step(config_of("grpo"), asked, answers, lanes=3)[2] == 3
    assert step(config_of("grpo", micro_batch_tokens=1), asked, answers)[2] == 11  # one has no reward
    assert step(config_of("grpo", micro_batch_tokens=1), asked, answers, ranks=4)[2] == 12  # one idles once


def test_a_prompt_is_computed_once_for_its_answers_in_a_micro_batch():
    asked = [Prompt(name, name, "", tuple(range(1, count)), None) for name, count in (("a", 8), ("b", 4))]
    sizes = (5, 2, 9, 4)
    answers = [
        Answer(n, np.arange(1, size + 1), -np.ones(size), "", False, advantage=1.0) for n in (0, 1) for size in sizes
    ]
    config = config_of("grpo")
    (one,) = answer_batches(answers, asked, config, pad_id=0, rollout_tokens=40.0)
    assert one.tokens.size == (7 - 1) + (3 - 1) + 2 * sum(sizes)
    assert one.reach == (7 - 1) + 9
    rows = one.beside[ROWS][0]
    for row, at in zip(rows, (2, 0, 3, 1, 6, 4, 7, 5), strict=True):  # the longest first
        said = answers[at]
        ids = [*asked[said.prompt].ids, *said.ids.tolist()][:-1]
        assert one.tokens[0, row[row >= 0]].tolist() == ids
        assert one.positions[0, row[row >= 0]].tolist() == list(range(len(ids)))
    pair = answer_batches(answers, asked, config, pad_id=0, rollout_tokens=40.0, lanes=2)
    assert [batch.tokens.size for batch in pair] == [26, 22]  # as even as prompts allow
    small = answer_batches(answers, asked, config_of("grpo", micro_batch_tokens=30), pad_id=0, rollout_tokens=40.0)
    assert all(batch.beside[ROWS].size <= 30 for batch in small)


def test_what_teaches_nothing_is_not_computed():
    asked, answers = made_up(3)
    flat = [Answer(one.prompt, one.ids, one.logps, "", truncated=False, advantage=0.0) for one in answers]
    assert answer_batches(flat, asked, config_of("grpo"), pad_id=0, rollout_tokens=9.0) == []
    held = config_of("dr_grpo with a reference")  # the divergence has a gradient
    assert len(answer_batches(flat, asked, held, pad_id=0, rollout_tokens=9.0)) == 1


def test_the_weights_of_a_step_are_those_of_all_its_answers():
    """Whatever is left out: the same value as a loop over answers, one by one."""
    asked, answers = made_up(4)
    config = config_of("dr_grpo with a reference")
    loss, _, _ = step(config, asked, answers)
    model = policy()
    with torch.no_grad():
        given_ = {"answers": answers, "prompts": asked, "config": config}
        logps = score(model, logps_at(1.0), run=lambda call: call(model), **given_)
    total = 0.0
    for one, own in zip(answers, logps, strict=True):
        if one.missing:
            continue
        ratios = np.exp(own - one.old)
        losses = np.maximum(-ratios * one.advantage, -np.clip(ratios, 0.8, 1.2) * one.advantage)
        away = divergences(torch.from_numpy(own), torch.from_numpy(one.reference), "k3").numpy()
        total += (losses + 0.1 * away * ratios).sum() / (12 * LONGEST)
    assert loss == pytest.approx(total, rel=1e-5)


TRL = {
    "grpo": ({}, {"loss_type": "grpo"}),
    "grpo-kl": ({"policy": {"kl": {"weight": 0.1}}}, {"loss_type": "grpo", "beta": 0.1}),
    "grpo-kl-biased": (
        {"policy": {"kl": {"weight": 0.1, "unbiased": False}}},
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
    ),
    "dr_grpo": ({"preset": "dr_grpo"}, {"loss_type": "dr_grpo"}),
    "dapo": ({"preset": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "bnpo": ({"preset": "bnpo"}, {"loss_type": "bnpo"}),
    "gspo": (
        {"preset": "gspo", "policy": {"clip": {"low": 0.1, "high": 0.15}}},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.15},
    ),
    "cispo": ({"preset": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "dual": ({"policy": {"clip": {"dual": 1.5}}}, {"loss_type": "grpo", "delta": 1.5}),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("policy")
    huggingface.save(policy(), folder, None)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRL)
def test_value_and_gradient_are_those_of_trl(theirs, words, tmp_path, name):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    ours, given_ = TRL[name]
    asked, answers = made_up(5)
    answers = [
        Answer(one.prompt, one.ids, one.old, "", truncated=False, advantage=one.advantage, reference=one.reference)
        for one in answers
    ]
    config = trl.GRPOConfig(
        **{"beta": 0.0, **given_},
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
        per_device_train_batch_size=12, num_generations=GROUP, max_completion_length=LONGEST,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": "w1"}])
    trainer = trl.GRPOTrainer(
        model=theirs, args=config, train_dataset=rows, processing_class=words, reward_funcs=lambda **_: [0.0]
    )
    trainer.current_gradient_accumulation_steps = 1
    theirs.zero_grad()
    loss = trainer._compute_loss(theirs.train(), batch_of(asked, answers))
    loss.backward()
    made = GrpoConfig.model_validate(
        {"group": GROUP, "prompts_per_rollout": 3, "max_new_tokens": LONGEST, **copy.deepcopy(ours)}
    )
    value, gradients, _ = step(made, asked, answers)
    assert value == pytest.approx(loss.item(), abs=1e-5)
    found = dict(theirs.named_parameters())
    for key, gradient in gradients.items():
        their = found[key if key.startswith("lm_head") else f"model.{key}"].grad
        torch.testing.assert_close(gradient, their, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "theirs_"), [("group", "group"), ("batch", "batch"), ("none", "none")])
def test_advantages_are_those_of_trl(norm, theirs_):
    """By its own formulas (grpo_trainer.py, `_generate_and_score_completions`), with its own helper."""
    utils = pytest.importorskip("trl.trainer.utils")
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.25], [3.0, 3.0, 2.0, 0.0]])
    away = rewards - rewards.mean(dim=1, keepdim=True)
    spread = {"group": utils.nanstd(rewards, dim=1)[:, None], "batch": utils.nanstd(rewards), "none": None}[theirs_]
    expected = away if spread is None else away / (spread + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, norm=norm).float(), expected, rtol=1e-5, atol=1e-6)


def batch_of(asked, answers):
    """As TRL has it: prompts padded on the left, answers on the right."""
    before, behind = max(len(one.ids) for one in asked), max(one.ids.size for one in answers)
    shape = (len(answers), behind)
    prompt_ids, prompt_mask = (torch.zeros(len(answers), before, dtype=torch.int64) for _ in range(2))
    ids, mask = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
    old, reference = torch.zeros(shape), torch.zeros(shape)
    for row, one in enumerate(answers):
        prompt = asked[one.prompt].ids
        prompt_ids[row, before - len(prompt) :], prompt_mask[row, before - len(prompt) :] = torch.tensor(prompt), 1
        place = slice(0, one.ids.size)
        ids[row, place], mask[row, place] = torch.from_numpy(one.ids), 1
        old[row, place], reference[row, place] = torch.from_numpy(one.logps), torch.from_numpy(one.reference)
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": ids, "completion_mask": mask,
        "old_per_token_logps": old, "ref_per_token_logps": reference,
        "advantages": torch.tensor([one.advantage for one in answers]), "num_items_in_batch": mask.sum(),
    }  # fmt: skip
