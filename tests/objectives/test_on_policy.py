"""Distillation on the student's own answers: what it sees that a fixed text does not, and that it can be repeated."""

import json

import numpy as np
import pytest
import torch

from llmctl.config.distill import DistillConfig
from llmctl.config.errors import ConfigError, InterruptedRunError, UsageError
from llmctl.config.load import build
from llmctl.config.model import ModelConfig
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.chats import Chat
from llmctl.objectives.distilled import Distillation
from llmctl.objectives.on_policy import Alone, OnPolicy, last_turn
from llmctl.objectives.teachers import Live
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Job, Silent
from llmctl.pipeline.stages import stage_named
from llmctl.tokens.batch import IGNORE
from llmctl.train.loop import fit

from .test_distill import FRESH, Interrupting, distill, divergences_of, metrics_of

VOCAB = 20
HALF = VOCAB // 2
SHAPE = {
    "name": "nano",
    "width": 24,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "ffn_width": 32,
    "context": 24,
    "tied_embeddings": False,
}


def table_teacher():
    """From each token it goes to three others, mostly of the upper half, whichever half it comes from."""
    model = Transformer(ModelConfig.model_validate({**SHAPE, "width": VOCAB, "heads": 1}), VOCAB)
    model.init_weights(0)
    random = np.random.default_rng(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.embed_tokens.weight.copy_(torch.eye(VOCAB))
        model.lm_head.weight.zero_()  # [to, from]
        for token in range(VOCAB):
            places = random.choice(np.arange(HALF, VOCAB), size=3, replace=False)
            model.lm_head.weight[places, token] = 5 / VOCAB**0.5  # the norm makes each embedding sqrt(V) long
    return model


def texts_of_the_lower_half(count, length=12):
    """Chats of one token, and an answer in which the upper half does not occur."""
    random = np.random.default_rng(3)
    chats = []
    for number in range(count):
        ids = random.integers(1, HALF, size=length)
        labels = np.full(length, IGNORE)
        labels[:-1] = ids[1:]
        chats.append(Chat(f"chat/{number}", ids, labels))
    return Alone(chats, length, 0)


def trained(directory, config):
    for name in ("data", "work"):
        (directory / name).mkdir(parents=True)
    job = Job(config, {}, directory / "data", directory / "work", directory / "metrics.jsonl", Silent(), None)
    model = Transformer(config.model, VOCAB)
    model.init_weights(1)
    objective = OnPolicy(texts_of_the_lower_half(64), Live(table_teacher()), config, stop_ids=(0,))
    if config.on_policy is None:
        objective = Distillation(objective.rows, objective.teaching, config)
    fit(job, model, objective, steps=config.steps, heldout_rows=None)
    return model.eval()


def distance_on_its_own_answers(model):
    """KL(student || teacher) in nats for each token, over what the student samples."""
    own = DistillConfig.model_validate({"on_policy": {"share": 1}, "loss": "reverse_kl", "model": SHAPE})
    teacher, generator = table_teacher(), torch.Generator().manual_seed(0)
    ids = torch.arange(1, HALF).repeat(12)[:, None]
    with torch.no_grad():
        for _ in range(11):
            hidden = hidden_states(model, batch_of(ids))[0][:, -1]
            ids = torch.cat([ids, torch.multinomial(model.logits(hidden).softmax(-1), 1, generator=generator)], 1)
    return divergences_of(Distillation(None, Live(teacher), own), model, batch_of(ids)).mean().item()


def batch_of(ids):
    """Each row a document, of which every token is a target."""
    documents = torch.zeros(ids.shape, dtype=torch.int32)
    return Tensors(ids, torch.arange(ids.shape[1]).expand(ids.shape), documents, ids, one_each=True)


def test_on_policy_beats_offline_where_the_student_goes(tmp_path):
    """No text leads to where the teacher does, so that a student of the text alone does not know how to go on."""
    shared = {"model": SHAPE, "steps": 40, "batch_rows": 16, "checkpoint_every_steps": 0, "optimizer": {"lr": 1e-2}}
    offline = trained(tmp_path / "offline", distill(**shared))
    own = {"share": 0.5, "max_new_tokens": 11}
    on_policy = trained(tmp_path / "own", distill(**shared, on_policy=own))
    rows = [json.loads(line) for line in (tmp_path / "own" / "metrics.jsonl").read_text().splitlines()]
    assert 0.3 < np.mean([row["on_policy"] for row in rows]) < 0.7
    assert rows[-1]["divergence"] < 0.3
    without, with_own = distance_on_its_own_answers(offline), distance_on_its_own_answers(on_policy)
    assert with_own < 0.3
    assert without > 5 * with_own


def test_where_the_last_turn_begins():
    labels = np.full(12, IGNORE)
    labels[2:4], labels[7:10] = 5, 6
    chat = Chat("a", np.arange(12), labels)
    assert last_turn(chat) == 8  # the label at 7 is the id at 8
    assert last_turn(Chat("a", np.arange(4), np.array([1, 2, 3, IGNORE]))) == 1


@pytest.fixture(scope="module")
def given(checkpoint, chats):
    return {"input": checkpoint, "chats": chats}


OWN = {"model": FRESH, "max_tokens": 48, "on_policy": {"share": 0.6, "max_new_tokens": 10}}


def test_the_stage_repeats_and_resumes_what_the_student_said(stages, given):
    call = Call(stage_named("distill"), distill(**OWN), given, name="own.distill")
    with pytest.raises(InterruptedRunError, match="stopped after step 4 of 6"):
        execute(call, stages.store, Interrupting())
    resumed = execute(call, stages.store, Silent()).artifact
    whole = execute(Call(stage_named("distill"), distill(**OWN), given, force=True), stages.store, Silent()).artifact
    names = ("loss", "divergence", "grad_norm", "on_policy", "generated_tokens", "tokens")
    rows = metrics_of(resumed, *names)
    assert rows == metrics_of(whole, *names)
    assert resumed.digest == whole.digest
    assert len(rows) == 6
    assert sum(row[4] for row in rows) > 0
    assert all(0 <= row[3] <= 1 for row in rows)
    assert "heldout_divergence" in resumed.manifest.totals or resumed.manifest.totals["heldout_chats"] == 0


def test_what_cannot_be_on_policy_is_refused(stages, given, rows, checkpoint):
    for fields, message in (
        ({"top_k": 4}, "the teacher must be there"),
        ({"nproc": 2}, "on_policy trains in a single process"),
        ({"learn": "all"}, "learn=all makes no difference"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(DistillConfig, [{"on_policy": {}, **fields}])
    with pytest.raises(UsageError, match="on_policy answers chats, and rows are given"):
        stages("distill", distill(model=FRESH, on_policy={}), input=checkpoint, rows=rows)
    with pytest.raises(UsageError, match="on_policy has texts that nobody knows before, and --logprobs is given"):
        stages("distill", distill(**OWN), **given, logprobs=rows)
