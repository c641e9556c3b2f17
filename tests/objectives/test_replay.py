"""Rollouts of an earlier run, learned from again: the same curve, another loss, and what does not fit."""

import pytest

from llmctl.config.errors import InputError
from llmctl.data.rollouts import FILE
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named

from .test_grpo import SHORT, answers_in, bare, grpo, metrics_of

DRAWING = ("tries", "logprob_gap")  # what only a run that draws can say


@pytest.fixture(scope="module")
def short(stages, guesser, copying):
    return stages("grpo", grpo(**SHORT), input=guesser, prompts=copying)  # the run of test_grpo.py, from the cache


def curve(made):
    rows = bare(made.path / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in DRAWING} for row in rows]


def again(stages, earlier, config, **inputs):
    call = Call(stage_named("grpo"), config, {**inputs, "replay": earlier}, name="again.grpo")
    return execute(call, stages.store, Silent()).artifact


def assert_the_same(made, earlier):
    assert curve(made) == curve(earlier)
    for name in ("model.safetensors", FILE):
        assert made.file(name).read_bytes() == earlier.file(name).read_bytes()


@pytest.mark.parametrize(
    "fields",
    [
        SHORT,
        {**SHORT, "preset": "rloo", "ahead": True},
        {**SHORT, "policy": {"kl": {"weight": 0.1}, "correction": "token"}},
        {**SHORT, "preset": "ppo", "passes": 2},
    ],
    ids=["grpo", "rloo, ahead", "a reference, corrected", "ppo"],
)
def test_the_same_configuration_gives_the_same_curve_bit_for_bit(stages, guesser, copying, fields):
    given = {"input": guesser, "prompts": copying}
    earlier = stages("grpo", grpo(**fields), **given)
    made = again(stages, earlier, grpo(**fields), **given)
    assert_the_same(made, earlier)
    assert made.manifest.inputs["replay"].digest == earlier.digest
    assert all(row.get("generate_s", 0) == 0 for row in metrics_of(made))


def test_another_loss_learns_from_the_same_answers(stages, guesser, copying, short):
    config = grpo(**{**SHORT, "policy": {"loss_agg": "dapo", "adv_norm": "none", "kl": {"weight": 0.1}}})
    made = again(stages, short, config, input=guesser, prompts=copying)
    for name in ("ids", "logprobs", "reward", "completion"):
        assert [row[name] for row in answers_in(made)] == [row[name] for row in answers_in(short)], name
    assert answers_in(made)[0]["reference_logprobs"] == pytest.approx(answers_in(made)[0]["logprobs"], abs=1e-4)
    assert answers_in(made)[0]["advantage"] != answers_in(short)[0]["advantage"]
    assert [row["loss"] for row in metrics_of(made)] != [row["loss"] for row in metrics_of(short)]


def test_what_does_not_fit_is_named(stages, guesser, checkpoint, copying, short, write_prompts):
    given = {"input": guesser, "prompts": copying}
    fits = grpo(**SHORT)
    other = write_prompts([{"prompt": f"{n}{n}:", "answer": str(n)} for n in range(5)])
    for earlier, config, inputs, fault in (
        (guesser, fits, given, "keeps no rollouts"),
        (short, fits, {**given, "input": checkpoint}, "its tokenizer has 268 ids, not 300"),
        (short, fits, {**given, "input": short}, r"began with digits.pretrain@v1 \(sha256:\w{12}\), not with"),
        (short, grpo(**SHORT, temperature=0.5), given, "were made with temperature=1.0, and temperature=0.5 is given"),
        (short, grpo(**SHORT, rewards="number"), given, "were made with rewards="),
        (short, grpo(**SHORT, policy={"overlong_tokens": 2}), given, "made with policy.overlong_tokens=0, and"),
        (short, grpo(**SHORT, policy={"correction": "token"}), given, "keeps no log-probabilities of the trainer"),
        (short, grpo(steps=9, seed=5), given, "keeps 2 rollouts, enough for 8 steps, not 9"),
        (short, fits, {**given, "prompts": other}, r"its prompt \d \(copy/\d\) is another one here"),
    ):
        with pytest.raises(InputError, match=fault):
            again(stages, earlier, config, **inputs)
