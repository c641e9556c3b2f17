"""The stage `reward`: what it learns, what it keeps, and that the loss does not depend on how pairs are dealt."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.dpo import DpoConfig, RewardConfig
from llmctl.config.errors import InputError, IntegrityError
from llmctl.config.preference import RewardLossConfig
from llmctl.model import huggingface, scoring
from llmctl.model.kernels import attend_through
from llmctl.model.likelihood import Tensors
from llmctl.objectives.pair_rows import PackedPairs
from llmctl.objectives.pairs import read_pairs
from llmctl.objectives.reward import RewardObjective, answer_scores
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import FileInput
from llmctl.tokens.tokenizer import Tokenizer

from .conftest import QUICK
from .test_pairs import LONGEST, made_up, nano

WORDS = ["zero", "one", "two", "three", "four"]


@functools.cache
def judge():
    model = copy.deepcopy(nano())
    scoring.add_head(model, torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))
    return model.train()


def gradient_of(rows, micro_rows):
    """Loss and gradient of one step, over micro-batches."""
    model, objective = judge(), RewardObjective(rows, RewardLossConfig(margin=True, centring=0.1))
    model.zero_grad()
    total = 0.0
    for at in range(0, rows.count, micro_rows):
        batch = rows.batch(np.arange(at, min(at + micro_rows, rows.count)))
        value = objective.loss(model, Tensors.of(batch, torch.device("cpu"))) / len(rows.pairs)
        value.backward()
        total += value.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@settings(max_examples=15)
@given(
    seq_len=st.sampled_from([2 * LONGEST, 40, 64, 200]),
    micro_rows=st.integers(1, 4),
    order=st.permutations(range(7)),
    pad=st.integers(0, 49),
)
def test_the_loss_is_the_same_however_pairs_are_dealt(seq_len, micro_rows, order, pad):
    pairs = made_up(7, seed=1)
    loss, gradients = gradient_of(PackedPairs(pairs, 2 * LONGEST, 0), 100)
    other, others = gradient_of(PackedPairs([pairs[n] for n in order], seq_len, pad), micro_rows)
    assert other == pytest.approx(loss, rel=1e-6)
    assert others.keys() == gradients.keys()
    assert "score.weight" in gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=2e-6 * max(1.0, float(gradient.abs().max())))


def test_a_score_is_read_at_the_token_that_ends_the_answer(checkpoint, tmp_path):
    tokenizer = Tokenizer.open(checkpoint.data)
    given = written(tmp_path, [{"prompt": "one", "chosen": "two three.", "rejected": "four."}])
    (pair,) = read_pairs(given, tokenizer, 64, 0.0, unpaired=False).pairs
    model = huggingface.load(checkpoint.data).eval()
    scoring.add_head(model, torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))
    rows = PackedPairs([pair], 64, 0)
    with torch.no_grad():
        found = answer_scores(model, Tensors.of(rows.batch(np.arange(1)), torch.device("cpu")))
        for answer, score in zip(pair.answers, found, strict=True):
            assert answer.ids[answer.end] in tokenizer.stop_ids
            said = torch.from_numpy(answer.ids[: answer.end + 1])[None]  # nothing behind it counts
            attend = attend_through("sdpa", torch.zeros_like(said, dtype=torch.int32), one_each=True)
            hidden = model(said, torch.arange(said.shape[1])[None], attend)
            assert score.item() == pytest.approx(scoring.scores(model, hidden[0, -1]).item(), abs=1e-5)


def written(folder, rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileInput.of(path, "preferences")


def reward(**fields):
    given = {**QUICK, "max_tokens": 48, "epochs": 6, "optimizer": {"lr": 3e-3}, "heldout_fraction": 0.3}
    return RewardConfig.model_validate({**given, **fields})


def test_it_orders_pairs_that_it_never_saw(stages, checkpoint, tmp_path):
    rows = [
        {"id": f"pair/{a}/{b}", "prompt": f"{a} {b}", "chosen": f"{a} two.", "rejected": f"{b} four."}
        for a in WORDS
        for b in WORDS
    ]
    made = stages("reward", reward(), input=checkpoint, preferences=written(tmp_path, rows))
    totals = made.manifest.totals
    assert totals["heldout_pairs"] >= 4
    assert totals["heldout_rewards/accuracies"] > 0.9
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert rows[0]["heldout_loss"] == totals["before_heldout_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # every text is worth the same yet
    assert made.manifest.semantic["head"] == "score"
    model = scoring.load(made.data)
    assert model.get_submodule("score").weight.abs().sum() > 0
    assert huggingface.load(made.data).config == model.config  # it opens without its head too


def test_margins_must_be_there_where_they_are_asked_for(stages, checkpoint, tmp_path):
    row = {"prompt": "one", "chosen": "two.", "rejected": "four."}
    config = reward(steps=1, loss={"margin": True}, heldout_fraction=0.0)
    with pytest.raises(InputError, match="holds no margin"):
        stages("reward", config, input=checkpoint, preferences=written(tmp_path, [row]))
    stages("reward", config, input=checkpoint, preferences=written(tmp_path, [{**row, "margin": 1.0}]))


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_it_is_said_what_is_not_learned_from(stages, checkpoint, tmp_path, command):
    said = []

    class Notes(Silent):
        def note(self, text):
            said.append(text)

    row = {"prompt": "one", "chosen": "two.", "rejected": "four."}
    given_ = written(tmp_path, [row, {**row, "chosen": "two " * 60}])
    config = {"reward": RewardConfig, "dpo": DpoConfig}[command].model_validate(
        {**QUICK, "max_tokens": 48, "steps": 1, "overlong": "drop", "heldout_fraction": 0}
    )
    inputs = {"input": checkpoint, "preferences": given_}
    execute(Call(stage_named(command), config, inputs), stages.store, Notes())
    assert "dropped 1 preferences longer than 48 tokens of 2" in said
    assert "no preference is held out, so there are no held-out figures" in said


def test_a_checkpoint_without_a_head_gives_no_scores(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"has no score.safetensors"):
        scoring.load(checkpoint.data)
    huggingface.save(nano(), tmp_path, None)
    scoring.save_head(tmp_path, torch.zeros(1, 31))
    with pytest.raises(IntegrityError, match=r"a head of \(1, 31\) for a width of 32"):
        scoring.load(tmp_path)
    (tmp_path / scoring.FILE).write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="cannot read"):
        scoring.load(tmp_path)
