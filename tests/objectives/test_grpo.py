"""The stage `grpo` on a real checkpoint: what is learned, what is kept, what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from llmctl.config.dpo import RewardConfig
from llmctl.config.errors import ConfigError, GateError, InputError, InterruptedRunError, UsageError
from llmctl.config.grpo import DrawsConfig, GrpoConfig
from llmctl.config.load import build
from llmctl.data.rollouts import FILE, answers_of_step
from llmctl.data.split import is_heldout
from llmctl.inference.engine import Engine
from llmctl.inference.request import Request
from llmctl.model import huggingface, scoring
from llmctl.model.kernels import attend_through
from llmctl.objectives.grpo import run, train
from llmctl.objectives.rewards.rules import Sample
from llmctl.objectives.rewards.scorer import scorer_of
from llmctl.objectives.start import open_model, open_tokenizer
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Job, Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Artifact
from llmctl.tokens.tokenizer import Tokenizer
from tests.conftest import LLMCTL, environment

from .conftest import ALONE, QUICK

LEARNS = {
    "group": 16,
    "prompts_per_rollout": 5,
    "batch_rows": 40,
    "passes": 2,
    "max_new_tokens": 4,
    "max_tokens": 32,
    "optimizer": {"lr": 3e-3, "betas": [0.9, 0.95]},
}


# Enough answers a step that it is learned with any seed; the other tests need no such certainty.
CERTAIN = {"prompts_per_rollout": 10, "batch_rows": 80, "steps": 200, "optimizer": {"lr": 2e-3, "betas": [0.9, 0.95]}}


def grpo(**fields):
    return GrpoConfig.model_validate({**ALONE, **LEARNS, **fields})


def metrics_of(made):
    return [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_to_copy(stages, guesser, copying):
    made = stages("grpo", grpo(**CERTAIN), input=guesser, prompts=copying)
    rows = [row for row in metrics_of(made) if "reward" in row]
    assert len(rows) == 200 / 4  # two passes of two steps
    rewards, entropies = ([row[name] for row in rows] for name in ("reward", "entropy"))
    assert np.mean(rewards[:3]) < 0.3
    assert np.mean(rewards[-3:]) > 0.9
    assert np.mean(entropies[-3:]) < np.mean(entropies[:3])
    idle = [row for row in rows if row.get("no_update")]  # where all groups agree, the trainer computes nothing
    assert all(row["zero_std"] == 1 for row in idle)
    assert all(row["logprob_gap"] < 1e-4 for row in rows if row not in idle)
    assert 0 < made.manifest.totals["logprob_gap"] < 1e-4


def answers_in(made):
    return answers_in_file(made.file(FILE))


def answers_in_file(path):
    return pq.read_table(path).to_pylist()


def bare(metrics_file):
    """The curve without what was timed."""
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    timed = ("_s", "mfu", "peak_memory_bytes")
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]


SHORT = {"steps": 8, "seed": 5}


@pytest.fixture(scope="session")
def short(stages, guesser, copying):
    return stages("grpo", grpo(**SHORT), input=guesser, prompts=copying)


def test_every_answer_is_kept_with_ids_log_probabilities_and_rewards(stages, guesser, short):
    rows = answers_in(short)
    assert len(rows) == 2 * 5 * 16
    tokenizer = Tokenizer.open(guesser.data)
    for row in rows:
        assert len(row["ids"]) == len(row["logprobs"])
        assert tokenizer.decode([one for one in row["ids"] if one not in tokenizer.stop_ids]) == row["completion"]
        assert row["reward"] == row["reward/exact"] == float(row["completion"].strip() == row["answer"])
        assert row["truncated"] == (row["ids"][-1] not in tokenizer.stop_ids)
    for first in range(0, len(rows), 16):
        group = rows[first : first + 16]
        assert len({row["prompt_id"] for row in group}) == 1
        assert [row["sample"] for row in group] == list(range(16))
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-9)
    assert {row["step"] for row in rows} == {1, 5}
    assert len(answers_of_step(short, 4)) == len(answers_of_step(short, 8)) == 80
    assert answers_of_step(short, 5) == rows[80:]
    with pytest.raises(InputError, match="has no step 9"):
        answers_of_step(short, 9)


def test_log_probabilities_are_those_of_the_checkpoint(guesser, short):
    """Of the first rollout, which the checkpoint itself gave: by a forward pass of one answer at a time."""
    model = huggingface.load(guesser.data).eval()
    for row in answers_in(short)[:80:7]:
        ids = torch.tensor([[*row["prompt_ids"], *row["ids"]]])
        attend = attend_through("sdpa", torch.zeros_like(ids, dtype=torch.int32), one_each=True)
        with torch.no_grad():
            table = model.logits(model(ids, torch.arange(ids.shape[1])[None], attend))[0].log_softmax(-1)
        said = table[len(row["prompt_ids"]) - 1 : -1].gather(1, torch.tensor(row["ids"])[:, None])[:, 0]
        assert row["logprobs"] == pytest.approx(said.tolist(), abs=1e-4)


def test_a_seed_gives_the_same_bytes(stages, guesser, copying, short):
    call = Call(stage_named("grpo"), grpo(**SHORT), {"input": guesser, "prompts": copying}, force=True)
    again = execute(call, stages.store, Silent()).artifact
    assert bare(again.path / "metrics.jsonl") == bare(short.path / "metrics.jsonl")
    assert again.digest == short.digest
    other = stages("grpo", grpo(**{**SHORT, "seed": 6}), input=guesser, prompts=copying)
    assert [row["completion"] for row in answers_in(other)] != [row["completion"] for row in answers_in(short)]


class StopAfter(Silent):
    """A user who interrupts once so many steps are done."""

    def __init__(self, step):
        self.step = step

    def update(self, done, total, unit, **facts):
        if done == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def job_of(folder, given, prompts, progress=None, **fields):
    for name in ("data", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Job(
        config=grpo(**{**SHORT, "steps": 30, "checkpoint_every_steps": 1, **fields}),
        inputs={"input": given, "prompts": prompts},
        out=folder / "data",
        work=folder / "work",
        metrics_file=folder / "metrics.jsonl",
        progress=progress or Silent(),
        nested=None,
    )


@pytest.fixture(scope="module")
def whole(guesser, copying, tmp_path_factory):
    job = job_of(tmp_path_factory.mktemp("whole"), guesser, copying)
    train(job)
    return job


def test_the_reward_of_prompts_that_are_held_out(stages, guesser, write_prompts):
    rows = [{"id": f"copy/{n}/{turn}", "prompt": f"{n}:", "answer": str(n)} for n in range(5) for turn in range(4)]
    config = grpo(steps=8, heldout_fraction=0.3, eval_every_steps=4)
    made = stages("grpo", config, input=guesser, prompts=write_prompts(rows))
    held = [row for row in rows if is_heldout(row["id"], 0.3)]
    learned = {row["prompt_id"] for row in answers_in(made)}
    assert held
    assert not learned & {row["id"] for row in held}
    totals = made.manifest.totals
    assert totals["heldout_prompts"] == len(held)
    assert totals["before_heldout_reward"] == pytest.approx(share_right(guesser, held))
    assert totals["heldout_reward"] == pytest.approx(share_right(made, held))
    assert [row["step"] for row in metrics_of(made) if "heldout_reward" in row] == [0, 4, 8]


def share_right(checkpoint, rows):
    """How many of the likeliest answers are the wanted ones."""
    with Engine.open(checkpoint.data) as engine:
        bos = engine.tokenizer.bos_id
        asked = [Request([bos, *engine.tokenizer.encode(row["prompt"])], max_tokens=4, temperature=0.0) for row in rows]
        return np.mean(
            [one.text.strip() == row["answer"] for one, row in zip(engine.generate(asked), rows, strict=True)]
        )


def assert_same(job, whole):
    for name in ("model.safetensors", FILE):
        assert (job.out / name).read_bytes() == (whole.out / name).read_bytes()
    assert bare(job.metrics_file) == bare(whole.metrics_file)


@pytest.mark.parametrize("step", [2, 3])  # between two rollouts, and within one
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(guesser, copying, whole, tmp_path, step):
    with pytest.raises(InterruptedRunError, match=f"stopped after step {step + 1} of 30"):
        train(job_of(tmp_path, guesser, copying, StopAfter(step)))
    job = job_of(tmp_path, guesser, copying)
    train(job)
    assert_same(job, whole)


def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(guesser, copying, whole, tmp_path):
    job = job_of(tmp_path, guesser, copying)
    words = [str(tmp_path), str(guesser.path), str(copying.path)]
    command = [sys.executable, "-m", "tests.objectives.grpo_run", *words]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(job.work.glob("step-00000[5-9]")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    train(job)
    assert_same(job, whole)


class Noting(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_equal_rewards_change_nothing(stages, guesser, write_prompts):
    prompts = write_prompts([{"prompt": f"{n}:", "answer": "never"} for n in range(5)])
    made = stages("grpo", grpo(steps=4), input=guesser, prompts=prompts)
    rows = metrics_of(made)
    assert [row["no_update"] for row in rows] == [1] * 4
    assert (rows[0]["reward"], rows[0]["zero_std"]) == (0.0, 1.0)
    assert all(row["advantage"] == 0 for row in answers_in(made))
    before, after = (load_file(one.data / "model.safetensors") for one in (guesser, made))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_more_prompts_are_tried_where_groups_tell_nothing(stages, guesser, write_prompts):
    hopeless = [{"id": f"never/{n}", "prompt": f"{n % 5}:", "answer": "never"} for n in range(15)]
    prompts = write_prompts([*hopeless, *({"id": f"copy/{n}", "prompt": f"{n}:", "answer": str(n)} for n in range(5))])
    once, thrice = (
        stages("grpo", grpo(steps=8, dynamic_sampling=tries), input=guesser, prompts=prompts) for tries in (1, 4)
    )
    telling = [sum(row["advantage"] != 0 for row in answers_in(made)) for made in (once, thrice)]
    assert telling[1] > 2 * telling[0]
    assert max(row["tries"] for row in metrics_of(thrice) if "tries" in row) > 1
    assert len(answers_in(thrice)) == len(answers_in(once)) == 2 * 5 * 16


def test_a_divergence_keeps_the_policy_near_its_reference(stages, guesser, copying):
    given = {"steps": 60, "seed": 1}
    free, held = (
        stages("grpo", grpo(**given, policy={"kl": {"weight": weight}}), input=guesser, prompts=copying)
        for weight in (1e-9, 1.0)
    )
    assert metrics_of(free)[0]["kl"] == pytest.approx(0, abs=1e-9)  # the policy is its reference yet
    far, near = (np.mean([row["kl"] for row in metrics_of(made)[-8:]]) for made in (free, held))
    assert near < far / 3
    row = answers_in(held)[0]
    assert row["reference_logprobs"] == pytest.approx(row["logprobs"], abs=1e-4)


def test_ppo_learns_to_copy(stages, guesser, copying):
    policy = {"kl": {"weight": 0.02}, "value": {"weight": 0.5, "clip": 0.5}}
    made = stages("grpo", grpo(preset="ppo", policy=policy, **CERTAIN), input=guesser, prompts=copying)
    rows = [row for row in metrics_of(made) if "reward" in row]
    rewards, entropies = ([row[name] for row in rows] for name in ("reward/exact", "entropy"))
    assert np.mean(rewards[:3]) < 0.3
    assert np.mean(rewards[-3:]) > 0.9
    assert np.mean(entropies[-3:]) < np.mean(entropies[:3])
    told = answers_in(made)[-1]
    assert len(told["values"]) == len(told["advantages"]) == len(told["returns"]) == len(told["ids"])
    assert "score.weight" not in load_file(made.data / "model.safetensors")
    assert not (made.data / scoring.FILE).exists()


@pytest.mark.parametrize("preset", ["dapo", "gspo", "cispo", "rloo"])  # the others differ in a divisor
def test_presets_learn(stages, guesser, copying, preset):
    fields = {"steps": 120, "preset": preset, "seed": 2}
    if preset == "gspo":  # its published bounds are for long answers
        fields["policy"] = {"clip": {"low": 0.1, "high": 0.1}}
    made = stages("grpo", grpo(**fields), input=guesser, prompts=copying)
    rewards = [row["reward/exact"] for row in metrics_of(made) if "reward" in row]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.1


def test_what_the_engine_computes_otherwise_is_corrected_for(stages, guesser, copying):
    plain, corrected = (
        stages("grpo", grpo(steps=4, policy={"correction": kind}), input=guesser, prompts=copying)
        for kind in ("none", "token")
    )
    figures = [[row[name] for row in metrics_of(made) for name in ("loss", "grad_norm")] for made in (plain, corrected)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-3, abs=1e-6)
    for row in answers_in(corrected):
        assert row["old_logprobs"] == pytest.approx(row["logprobs"], abs=1e-4)


def test_what_has_no_reward_is_left_out_or_ends_the_run(stages, guesser, copying, tmp_path):
    (tmp_path / "own.py").write_text(
        "def score(completion, answer, **row):\n"
        "    if completion.strip() == '3':\n        raise ValueError('three')\n"
        "    return float(completion.strip() == answer)\n"
    )
    given = {"rewards": f"{tmp_path}/own.py:score", "steps": 4}
    call = Call(stage_named("grpo"), grpo(**given), {"input": guesser, "prompts": copying})
    told = Noting()
    made = execute(call, stages.store, told).artifact
    (note,) = [note for note in told.notes if "no reward" in note]
    assert note.endswith("left out: score: ValueError: three; further ones are counted as missing")
    rows = answers_in(made)
    failed = [row for row in rows if row["completion"].strip() == "3"]
    assert failed
    assert all((row["reward"], row["missing"]) == (None, "score: ValueError: three") for row in failed)
    assert all(row["advantage"] == 0 for row in failed)
    assert metrics_of(made)[0]["missing"] == pytest.approx(sum(bool(row["missing"]) for row in rows[:80]) / 80)
    with pytest.raises(GateError, match="no reward: score: ValueError: three"):
        stages("grpo", grpo(**given, missing="stop"), input=guesser, prompts=copying)
    (tmp_path / "own.py").write_text("def score(completion, answer, **row):\n    return float('nan')\n")
    with pytest.raises(InputError, match="none of the 80 answers of a rollout has a reward: score: its value is nan"):
        stages("grpo", grpo(**given), input=guesser, prompts=copying)


def test_what_cannot_be_judged_is_told_before_the_first_answer(guesser, copying, tmp_path):
    (tmp_path / "own.py").write_text("import no_such_module")
    rewards = f"{tmp_path}/own.py:score"
    job = job_of(tmp_path, guesser, copying, rewards=rewards)
    with pytest.raises(InputError, match="reward score: ModuleNotFoundError: No module named 'no_such_module'"):
        train(job)
    assert not list(job.work.iterdir())
    with pytest.raises(UsageError, match="takes one of prompts and gym, and got neither"):
        run(replace(job, inputs={"input": guesser}))
    with pytest.raises(UsageError, match="no reference is looked at"):
        run(replace(job, inputs={**job.inputs, "reference": guesser}))
    with pytest.raises(UsageError, match="a replay draws nothing, and server.url is given"):
        served = job.config.model_copy(update={"server": DrawsConfig(url="http://127.0.0.1:9/v1")})
        run(replace(job, inputs={**job.inputs, "replay": guesser}, config=served))


def test_a_reward_model_judges(stages, guesser, copying, write_preferences):
    pairs = [{"prompt": f"{n}", "chosen": "1", "rejected": "4"} for n in range(5)]
    fields = {**QUICK, "max_tokens": 32, "steps": 10, "heldout_fraction": 0, "optimizer": {"lr": 3e-3}}
    scorer = stages("reward", RewardConfig.model_validate(fields), input=guesser, preferences=write_preferences(pairs))
    made = stages("grpo", grpo(steps=4, rewards="scorer"), input=guesser, prompts=copying, scorer=scorer)
    model = scoring.load(scorer.data).eval()
    for row in answers_in(made)[::17]:
        ids = torch.tensor([[*row["prompt_ids"], *row["ids"]]])
        attend = attend_through("sdpa", torch.zeros_like(ids, dtype=torch.int32), one_each=True)
        with torch.no_grad():
            hidden = model(ids, torch.arange(ids.shape[1])[None], attend)
            assert row["reward"] == pytest.approx(scoring.scores(model, hidden[0, -1]).item(), abs=1e-4)
    with pytest.raises(UsageError, match="needs a reward model"):
        stages("grpo", grpo(steps=4, rewards="scorer"), input=guesser, prompts=copying)
    with pytest.raises(UsageError, match="no reward looks at --scorer"):
        stages("grpo", grpo(steps=4), input=guesser, prompts=copying, scorer=scorer)
    # What was judged is not judged again.
    replayed = {"input": guesser, "prompts": copying, "replay": made}
    call = Call(stage_named("grpo"), grpo(steps=4, rewards="scorer"), replayed, name="again.grpo")
    again = execute(call, stages.store, Silent()).artifact
    assert again.file("model.safetensors").read_bytes() == made.file("model.safetensors").read_bytes()


def test_a_reward_model_says_nothing_of_what_it_cannot_read(stages, guesser, copying, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(guesser.data, folder)
    scoring.save_head(folder, torch.ones(1, 32))
    score = scorer_of(folder, torch.device("cpu"), torch.float32)
    (fits, why), *others = score([Sample("", "", ids=(1,) * count) for count in (64, 65, 3)])
    assert (np.isfinite(fits), why) == (True, "")
    assert others[0] == (None, "with its prompt it is longer than the 64 tokens that the reward model reads")
    assert others[1][0] == pytest.approx(score([Sample("", "", ids=(1,) * 3)])[0][0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    short = Artifact(tmp_path, guesser.manifest, "short.reward@v1")
    with pytest.raises(InputError, match="may have 32 tokens, and short.reward@v1 reads 16"):
        stages("grpo", grpo(steps=1, rewards="scorer"), input=guesser, prompts=copying, scorer=short)


def test_adapters_learn_too(stages, guesser, copying):
    given = grpo(steps=4, lora={"rank": 4}, policy={"kl": {"weight": 0.1}})
    made = stages("grpo", given, input=guesser, prompts=copying)
    assert made.kind == "adapter"
    assert all(row["logprob_gap"] < 1e-4 for row in metrics_of(made) if "logprob_gap" in row)


def test_a_policy_learns_on_the_base_in_four_bits_that_its_adapter_names(stages, guesser, copying):
    made = stages("grpo", grpo(steps=1, lora={"rank": 4, "base": "nf4"}), input=guesser, prompts=copying)
    row = answers_in(made)[0]  # said before the first update: the adapter adds nothing yet
    ids = torch.tensor([[*row["prompt_ids"], *row["ids"]]])
    said = {}
    for base in ("full", "nf4"):
        model = open_model(guesser, open_tokenizer(guesser), base).eval()
        attend = attend_through("sdpa", torch.zeros_like(ids, dtype=torch.int32), one_each=True)
        with torch.no_grad():
            hidden = model(ids, torch.arange(ids.shape[1])[None], attend)[0, len(row["prompt_ids"]) - 1 : -1]
            logps = model.logits(hidden).log_softmax(-1)
        said[base] = logps[range(len(row["ids"])), row["ids"]].tolist()
    assert row["logprobs"] == pytest.approx(said["nf4"], abs=1e-4)
    assert row["logprobs"] != pytest.approx(said["full"], abs=1e-4)


def test_a_model_of_steps_is_no_judge_of_whole_answers(stages, guesser, copying):
    facts = guesser.manifest.model_copy(update={"semantic": {**guesser.manifest.semantic, "head": "steps"}})
    with pytest.raises(InputError, match="scores steps, not whole answers"):
        stages(
            "grpo",
            grpo(steps=1, rewards="scorer"),
            input=guesser,
            prompts=copying,
            scorer=replace(guesser, manifest=facts),
        )


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "", "answer": "1"}, "prompt 1 must be a string or messages"),
        ({"answer": "1"}, "prompt 1 must be a string or messages"),
        ({"prompt": [{"role": "user", "content": "1"}]}, "prompt 1 is messages, and the policy takes text"),
        ({"prompt": "1:", "answer": [1]}, "'answer' must be a string or a number"),
        ({"prompt": "1:" * 40, "answer": "1"}, "has 81 tokens, more than 28"),
    ],
)
def test_prompts_that_cannot_be_learned_on_are_named(stages, guesser, write_prompts, row, fault):
    with pytest.raises(InputError, match=fault):
        stages("grpo", grpo(steps=1), input=guesser, prompts=write_prompts([row]))


def test_overlong_prompts_may_be_dropped(stages, guesser, copying, write_prompts):
    rows = [json.loads(line) for line in copying.path.read_text().splitlines()]
    prompts = write_prompts([*rows, {"prompt": "1:" * 40, "answer": "1"}])
    made = stages("grpo", grpo(steps=4, overlong="drop"), input=guesser, prompts=prompts)
    assert (made.manifest.totals["prompts"], made.manifest.totals["dropped.overlong"]) == (5, 1)


def test_no_room_for_a_prompt_and_no_prompt_at_all(stages, guesser, copying, write_prompts):
    with pytest.raises(InputError, match="max_new_tokens leaves no room for a prompt"):
        stages("grpo", grpo(steps=1, max_new_tokens=32), input=guesser, prompts=copying)
    with pytest.raises(InputError, match="holds no prompt to learn on"):
        stages("grpo", grpo(steps=1), input=guesser, prompts=write_prompts([]))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"batch_rows": 30}, "give a divisor of 80"),
        ({"zero": 3}, "zero=3 shards the weights that answers are drawn with"),
        ({"server": {"push_to": "pushed"}}, "server.push_to pushes whole weights to server.url"),
        ({"group": 1}, "greater than or equal to 2"),
        ({"policy": {"overlong_tokens": 5}}, "must be at most max_new_tokens"),
        ({"preset": "cispo", "policy": {"clip": {"dual": 3.0}}}, "clip.dual bounds PPO's minimum"),
    ],
)
def test_what_does_not_fit_together_is_said_at_once(fields, fault):
    with pytest.raises(ConfigError, match=fault):
        build(GrpoConfig, [{**LEARNS, **fields}])


def test_a_preset_fills_what_is_not_given():
    config = GrpoConfig.model_validate({"preset": "dapo", "policy": {"clip": {"low": 0.1}}, "group": 4})
    assert (config.policy.clip.low, config.policy.clip.high, config.policy.loss_agg) == (0.1, 0.28, "dapo")
    assert (config.dynamic_sampling, config.batch_rows) == (4, 32)
    assert GrpoConfig.model_validate(config.model_dump(mode="json")) == config
    assert GrpoConfig.model_validate({"preset": "dapo", "policy": {"loss_agg": "bnpo"}}).policy.loss_agg == "bnpo"


def test_the_command_line(stages, guesser, copying, shown):
    words = ["grpo", str(guesser.path), "--prompts", str(copying.path), "--reward", "exact", "--group", "4"]
    words += ["--prompts-per-rollout", "2", "--max-new-tokens", "4", "--steps", "2", "--name", "said", "max_tokens=32"]
    receipt = json.loads(shown(*words, "--json").splitlines()[-1])
    assert receipt["ok"] is True
    told = shown("show", "said", "--step", "2")
    assert "sample 3, reward" in told
    assert "wanted '" in told


@pytest.fixture
def shown(stages):
    def run(*words):
        environ = environment(LLMCTL_STORE=str(stages.store.root))
        done = subprocess.run([*LLMCTL, *words], capture_output=True, text=True, check=False, env=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
