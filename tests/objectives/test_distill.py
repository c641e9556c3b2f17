"""The stage `distill` and what it learns by: on a real teacher, in full and from what was kept of it."""

import copy
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch

from llmctl.config.distill import DistillConfig
from llmctl.config.dpo import LogprobsConfig
from llmctl.config.errors import ConfigError, InputError, IntegrityError, InterruptedRunError, UsageError
from llmctl.config.load import build
from llmctl.config.model import ModelConfig
from llmctl.config.train import PretrainConfig
from llmctl.model import huggingface
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.chats import read_sides
from llmctl.objectives.distilled import Distillation, add_projection, distances, projected
from llmctl.objectives.start import open_tokenizer
from llmctl.objectives.teachers import Kept, Live
from llmctl.objectives.texts import Side
from llmctl.objectives.top_logprobs import TopRows
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Job, Silent
from llmctl.pipeline.stages import stage_named
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.train.loop import fit

from .conftest import NANO, QUICK, chat
from .test_losses import CPU, SHAPE, VOCAB, documents_of, packed, small_model

FRESH = {**NANO, "width": 16, "layers": 1, "ffn_width": 32}
LOSSES = [
    {"loss": "forward_kl", "cross_entropy": 0.25},
    {"loss": {"name": "reverse_kl", "temperature": 2}},
    {"loss": {"name": "jsd", "beta": 0.3}},
    {"loss": "tvd", "cross_entropy": 0.5},
    {"loss": "forward_kl", "hidden": {"weight": 0.5}},
    {"loss": "forward_kl", "hidden": {"measure": "cosine"}},
]


def distill(**fields):
    return DistillConfig.model_validate({**QUICK, "steps": 6, "optimizer": {"lr": 3e-3}, **fields})


def metrics_of(made, *names):
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    return [[row[name] for name in names] for row in rows if names[0] in row] if names else rows


def other_model(width=12):
    """A teacher of another width than the student."""
    model = Transformer(ModelConfig.model_validate({**SHAPE, "width": width, "tied_embeddings": False}), VOCAB)
    model.init_weights(8)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # sure of itself, so that divergences are no trifles
    return model


def loss_and_gradient(objective, model, batches):
    """Of the mean over all targets of all batches, accumulated batch by batch."""
    model.zero_grad()
    targets, total = sum(batch.targets for batch in batches), 0.0
    for batch in batches:
        loss = objective.loss(model, Tensors.of(batch, CPU)) / targets
        loss.backward()
        total += loss.item()
    gradients = [one.grad for one in model.parameters() if one.grad is not None]  # of a projection, where it is used
    return total, torch.cat([gradient.flatten() for gradient in gradients])


class Laid:
    """Rows of the documents that a layout puts into them."""

    def __init__(self, batch):
        self.whole, self.count = batch, batch.rows

    def batch(self, indices):
        whole = self.whole
        return Batch(*(part[indices] for part in (whole.tokens, whole.positions, whole.documents, whole.labels)))


@pytest.mark.parametrize("fields", LOSSES, ids=str)
def test_packing_padding_accumulation_and_chunks_change_neither_loss_nor_gradient(fields):
    documents = documents_of([7, 3, 1, 9, 5, 4], 6)
    model, config = small_model(), distill(model=SHAPE, **fields)
    add_projection(model, 12, seed=0)
    teaching = Live(other_model())
    one_row = [packed([documents], sum(map(len, documents)))]
    one_each = packed([[ids] for ids in documents], 12)
    in_two = [packed([documents[:2], documents[2:]], 40).slice(slice(n, n + 1)) for n in range(2)]
    loss, expected = loss_and_gradient(Distillation(None, teaching, config), model, one_row)
    assert loss > 0.1
    for batches, chunk in (([one_each], 3 * VOCAB), (in_two, 10**6), (in_two, 1)):
        other, found = loss_and_gradient(Distillation(None, teaching, config, chunk), model, batches)
        assert other == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_mixture_that_is_said():
    batch = Tensors.of(packed([documents_of([9, 7], 0)], 16), CPU)
    student, teacher = small_model(), other_model()
    found = {}
    for share in (0.0, 0.25):
        objective = Distillation(None, Live(teacher), distill(model=SHAPE, cross_entropy=share))
        student.tally.clear()
        found[share] = objective.loss(student, batch).item()
    (divergence, count), (entropy, _) = (student.tally[name] for name in ("divergence", "cross_entropy"))
    assert count == 14
    assert found[0.0] == pytest.approx(divergence.sum().item(), rel=1e-6)
    assert found[0.25] == pytest.approx(0.75 * divergence.sum().item() + 0.25 * entropy.sum().item(), rel=1e-6)
    within = [(hidden_logits(model, batch)).double().log_softmax(-1) for model in (teacher, student)]
    wanted = batch.labels != IGNORE
    ours, theirs = within[1][wanted], within[0][wanted]
    assert divergence.sum().item() == pytest.approx((theirs.exp() * (theirs - ours)).sum().item(), rel=1e-5)
    assert entropy.sum().item() == pytest.approx(-ours.gather(-1, batch.labels[wanted][:, None]).sum().item(), rel=1e-5)


@torch.no_grad()
def hidden_logits(model, batch):
    return model.logits(hidden_states(model, batch)[0])


def test_a_student_matches_a_table(tmp_path):
    """The teacher looks at the last token alone: its blocks add nothing to the stream."""
    teacher = other_model(16)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    rows = Laid(packed([documents_of([24], seed) for seed in range(64)], 24))
    shape = {**SHAPE, "width": 24, "tied_embeddings": False, "context": 24}
    config = distill(
        model=shape, steps=250, batch_rows=8, micro_batch_rows=8, optimizer={"lr": 2e-2}, checkpoint_every_steps=0
    )
    for name in ("data", "work"):
        (tmp_path / name).mkdir()
    job = Job(config, {}, tmp_path / "data", tmp_path / "work", tmp_path / "metrics.jsonl", Silent(), None)
    model = Transformer(config.model, VOCAB)
    model.init_weights(1)
    fitted = fit(job, model, Distillation(rows, Live(teacher), config), steps=config.steps, heldout_rows=None)
    first = json.loads(job.metrics_file.read_text().splitlines()[0])
    assert first["divergence"] > 1
    assert fitted.totals["loss"] < 1e-3
    model.load_state_dict(fitted.weights)
    unseen = Tensors.of(packed([documents_of([24], 1000)], 24), CPU)
    assert divergences_of(Distillation(rows, Live(teacher), config), model, unseen).mean().item() < 1e-3


@torch.no_grad()
def divergences_of(objective, model, batch):
    """Of each target."""
    wanted = batch.labels != IGNORE
    hidden = hidden_states(model, batch)[0][wanted]
    return objective.parts(model, hidden, batch.labels[wanted], objective.teaching.seen(batch, wanted))[0]


def test_a_fresh_student_of_the_teachers_own_rows(stages, rows, checkpoint):
    made = stages("distill", distill(model=FRESH, steps=30), input=checkpoint, rows=rows)
    steps = metrics_of(made, "divergence", "cross_entropy", "loss")
    assert steps[-1][0] < 0.6 * steps[0][0]
    assert all(loss == pytest.approx(divergence, rel=1e-5) for divergence, _, loss in steps)
    held = metrics_of(made, "heldout_divergence", "heldout_loss", "heldout_bits_per_byte")
    assert held[-1][0] < held[0][0]
    assert held[-1][1] < held[0][1]
    totals, facts = made.manifest.totals, made.manifest.semantic
    assert totals["heldout_divergence"] == held[-1][0]
    for name in ("tokenizer", "vocab_size", "seq_len", "heldout_fraction"):
        assert facts[name] == checkpoint.manifest.semantic[name]
    student = huggingface.load(made.data)
    assert (student.config.width, student.config.layers, student.vocab_size) == (16, 1, 300)
    assert open_tokenizer(made).vocab_size == 300
    derived = execute(
        Call(stage_named("distill"), distill(model=FRESH, steps=30), {"input": checkpoint}), stages.store, Silent()
    )
    assert derived.cached  # the rows behind the teacher are found


@pytest.fixture(scope="module")
def student(stages, rows):
    return stages("pretrain", PretrainConfig.model_validate({**QUICK, "model": FRESH, "steps": 4}), input=rows)


def test_what_was_kept_teaches_as_the_teacher_does(stages, checkpoint, student, chats):
    given = {"input": checkpoint, "student": student, "chats": chats}
    config = {"max_tokens": 48, "heldout_fraction": 0.2, "loss": {"name": "jsd", "temperature": 2}}
    live = stages("distill", distill(**config), **given)
    kept = stages("distill", distill(**config, top_k=299), **given)  # all but one of 300 tokens
    names = ("loss", "divergence", "cross_entropy", "grad_norm")
    assert metrics_of(kept, *names) == [pytest.approx(row, rel=1e-4) for row in metrics_of(live, *names)]
    for made in (live, kept):
        totals = made.manifest.totals
        assert (totals["chats"] + totals["heldout_chats"], totals["dropped.overlong"]) == (25, 0)
        assert made.manifest.semantic["chat"] is True
    held = [made.manifest.totals["heldout_divergence"] for made in (live, kept)]
    assert held[1] == pytest.approx(held[0], rel=1e-4)
    assert "logprobs" not in live.manifest.inputs
    scored = stages.store.find(kept.manifest.inputs["logprobs"].digest)
    assert scored.manifest.totals["rows"] == 25
    assert 0.99 < scored.manifest.totals["kept_mass"] <= 1 + 1e-6


def test_the_teacher_is_asked_once(stages, checkpoint, student, chats):
    given = {"input": checkpoint, "student": student, "chats": chats}
    few = stages("distill", distill(max_tokens=48, top_k=8), **given)
    again = stages("distill", distill(max_tokens=48, top_k=8, loss="tvd", heldout_fraction=0.3), **given)
    assert few.manifest.inputs["logprobs"] == again.manifest.inputs["logprobs"]
    scored = stages.store.find(few.manifest.inputs["logprobs"].digest)
    assert scored.manifest.semantic["top_k"] == 8
    by_hand = stages("distill", distill(max_tokens=48), **given, logprobs=scored)
    assert by_hand.digest == few.digest
    renormalised = stages("distill", distill(max_tokens=48, top_k=8, rest="renormalise"), **given)
    assert renormalised.digest != few.digest


def test_what_was_kept_lies_at_its_place_however_chats_are_packed(stages, checkpoint, chats):
    config = LogprobsConfig(max_tokens=48, top_k=5, device="cpu", threads=1, batch_tokens=100)
    made = stages("logprobs", config, input=checkpoint, chats=chats)
    at_once = stages("logprobs", config.model_copy(update={"max_tokens": 64}), input=checkpoint, chats=chats)
    for name in ("ids.bin", "first.bin"):
        assert made.file(name).read_bytes() == at_once.file(name).read_bytes()
    found, other = (np.fromfile(one.file("logprobs.bin"), np.float32).reshape(-1, 6) for one in (made, at_once))
    np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)
    assert (np.diff(found[:, :5], axis=1) <= 0).all()
    tokenizer = open_tokenizer(checkpoint)
    first = read_sides(chats, tokenizer, 48, 0.0).kept[0]
    model, ids = huggingface.load(checkpoint.data), torch.from_numpy(first.ids)[None]
    batch = Tensors(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids, dtype=torch.int32), ids, one_each=True)
    wanted = hidden_logits(model, batch)[0].log_softmax(-1)[first.labels != IGNORE].topk(5)
    count = len(wanted.values)
    np.testing.assert_allclose(found[:count, :5], wanted.values.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        np.fromfile(made.file("ids.bin"), np.int32).reshape(-1, 5)[:count], wanted.indices.numpy()
    )


def test_rows_carry_what_was_kept_in_any_order():
    batch = packed([documents_of([4, 3], 0), documents_of([6], 1)], 8)
    side = Side(Laid(batch), np.array([1, 0]))  # units are numbered the other way round
    first = np.array([0, 5, 10])
    ids = np.arange(20, dtype=np.int32).reshape(10, 2)
    rows = TopRows(side, first, ids, np.zeros((10, 3), dtype=np.float32))
    got = rows.batch(np.array([1, 0, 1]))
    wanted = got.labels != IGNORE
    assert got.beside["top_ids"].shape == (3, 8, 2)
    np.testing.assert_array_equal(
        got.beside["top_ids"][wanted][:, 0], [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 0, 2, 4, 6, 8]
    )
    half = got.slice(slice(1, 2))
    np.testing.assert_array_equal(
        Kept("lump").seen(Tensors.of(half, CPU), torch.from_numpy(wanted[1:2]))[0][0], [10, 11]
    )


def test_distances_of_hidden_states_in_closed_form():
    states, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 2.0], [0.0, 2.0]])
    mse, cosine = (distill(model=SHAPE, hidden={"measure": name}).hidden for name in ("mse", "cosine"))
    assert distances(states, teacher, mse).tolist() == [2.5, 2.5]
    assert distances(states, teacher, cosine).tolist() == pytest.approx([1 - 20 / (5 * 20**0.5), 1])
    doubles = [one.double().requires_grad_() for one in (states, teacher)]
    for config in (mse, cosine):
        assert torch.autograd.gradcheck(lambda states, config=config: distances(states, doubles[1], config), doubles[0])


def test_a_projection_begins_as_nothing_where_widths_agree():
    model = small_model()
    add_projection(model, 8, seed=0)
    hidden = torch.randn(3, 8)
    assert projected(model, hidden).equal(hidden)
    add_projection(model, 12, seed=0)
    before = projected(model, hidden)
    add_projection(model, 12, seed=0)
    assert projected(model, hidden).equal(before)
    assert before.shape == (3, 12)


def test_hidden_states_come_closer_and_the_projection_is_not_published(stages, rows, checkpoint):
    hidden = {"weight": 2, "measure": "mse"}
    made = stages("distill", distill(model=FRESH, steps=20, hidden=hidden), input=checkpoint, rows=rows)
    steps = metrics_of(made, "hidden", "divergence", "loss")
    assert steps[-1][0] < 0.8 * steps[0][0]
    assert all(loss == pytest.approx(divergence + 2 * apart, rel=1e-5) for apart, divergence, loss in steps)
    student = huggingface.load(made.data)
    assert not any("projection" in name for name, _ in student.named_parameters())
    assert student.parameters_count() == made.manifest.semantic["parameters"]


class Interrupting(Silent):
    """A user who interrupts after the third step; the fourth agrees to it."""

    def update(self, done, total, unit, **facts):
        if unit == "steps" and done == 3:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("top_k", [None, 8])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(stages, checkpoint, student, chats, top_k):
    config = distill(max_tokens=48, top_k=top_k, seed=11, optimizer={"lr": 1e-3})
    given = {"input": checkpoint, "student": student, "chats": chats}
    call = Call(stage_named("distill"), config, given)
    with pytest.raises(InterruptedRunError, match="stopped after step 4 of 6"):
        execute(call, stages.store, Interrupting())
    resumed = execute(call, stages.store, Silent()).artifact
    whole = execute(dataclasses.replace(call, force=True, name="whole.distill"), stages.store, Silent()).artifact
    names = ("loss", "divergence", "cross_entropy", "grad_norm")
    assert metrics_of(resumed, *names) == metrics_of(whole, *names)
    assert resumed.digest == whole.digest


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"zero": 1}, {"zero": 3, "top_k": 8}, {"sequence_parallel": 2}])
def test_ranks_compute_what_one_process_does(stages, rows, checkpoint, fields):
    top = {"top_k": fields["top_k"]} if "top_k" in fields else {}
    config = {"model": FRESH | {"heads": 2, "kv_heads": 2}, "steps": 3, "clip_norm": 1e9, "cross_entropy": 0.5}
    alone = stages("distill", distill(**config, **top), input=checkpoint, rows=rows)
    both = execute(
        Call(
            stage_named("distill"),
            distill(**config, **fields, nproc=2),
            {"input": checkpoint, "rows": rows},
            force=True,
        ),
        stages.store,
        Silent(),
    ).artifact
    names = ("loss", "grad_norm", "divergence", "cross_entropy")
    assert metrics_of(both, *names) == [pytest.approx(row, rel=1e-4) for row in metrics_of(alone, *names)]
    held = [made.manifest.totals["heldout_divergence"] for made in (alone, both)]
    assert held[1] == pytest.approx(held[0], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "roles", "error", "message"),
    [
        ({}, (), UsageError, "there is no student"),
        ({"model": FRESH}, ("student",), UsageError, "--student and --model are both given"),
        ({"model": FRESH}, ("chats", "rows"), UsageError, "--chats and --rows are both given"),
        ({"model": {**FRESH, "context": 16}}, ("rows",), UsageError, "rows of 32 tokens are longer than the 16"),
        ({"model": FRESH, "max_tokens": 65}, ("chats",), UsageError, r"max_tokens \(65\) exceeds"),
        ({"model": {**FRESH, "context": 32}, "max_tokens": 40}, ("chats",), UsageError, "the student's context of 32"),
        ({"model": FRESH, "max_tokens": 8}, ("chats",), InputError, "chat 1 .* more than 8; 25 in all"),
        ({"model": FRESH, "top_k": 300}, ("rows",), UsageError, r"top_k \(300\) leaves none of 300 tokens out"),
        (
            {"model": FRESH, "max_tokens": 48, "heldout_fraction": 0.9999999},
            ("chats",),
            InputError,
            "all 25 chats are held out",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(stages, rows, checkpoint, student, chats, fields, roles, error, message):
    known = {"student": student, "chats": chats, "rows": rows}
    with pytest.raises(error, match=message):
        stages("distill", distill(**fields), input=checkpoint, **{role: known[role] for role in roles})


def strange(given, **facts):
    """The same artifact with other facts in its manifest."""
    manifest = given.manifest.model_copy(update={"semantic": {**given.manifest.semantic, **facts}})
    return dataclasses.replace(given, manifest=manifest)


def test_rows_may_be_longer_than_those_that_the_teacher_learned_from(stages, rows, checkpoint):
    teacher = strange(checkpoint, seq_len=16)
    for top_k in (None, 4):
        made = stages("distill", distill(model=FRESH, steps=1, top_k=top_k), input=teacher, rows=rows)
        assert made.manifest.semantic["seq_len"] == 32


def test_students_and_rows_of_other_ids_are_refused(stages, rows, checkpoint, student):
    other = strange(student, tokenizer="sha256:0", vocab_size=301)
    with pytest.raises(InputError, match="its tokenizer has 301 ids, not 300") as caught:
        stages("distill", distill(), input=checkpoint, student=other, rows=rows)
    assert "give --model for a fresh student" in caught.value.hint
    with pytest.raises(InputError, match="differ in their tokenizer: sha256:0 and"):
        stages("distill", distill(model=FRESH), input=checkpoint, rows=strange(rows, tokenizer="sha256:0"))


def test_what_was_kept_of_others_is_refused(stages, rows, checkpoint, student, chats, write_chats):
    config = LogprobsConfig(max_tokens=48, top_k=4, device="cpu", threads=1)
    kept = stages("logprobs", config, input=checkpoint, chats=chats)
    given = {"input": checkpoint, "student": student, "chats": chats, "logprobs": kept}
    with pytest.raises(InputError, match="is of other chats than"):
        stages("distill", distill(), **{**given, "chats": write_chats([chat(0, "one", "two"), chat(3, "one", "two")])})
    with pytest.raises(InputError, match="is of other input than"):
        stages("distill", distill(), **{**given, "input": student})
    with pytest.raises(InputError, match="temperature=1, not 2"):
        stages("distill", distill(loss={"temperature": 2}), **given)
    with pytest.raises(InputError, match="top_k=4, not 5"):
        stages("distill", distill(top_k=5), **given)
    with pytest.raises(UsageError, match="hidden has states to compare that are not kept, and --logprobs is given"):
        stages("distill", distill(hidden={}), **given)
    with pytest.raises(IntegrityError, match="does not hold the log-probabilities of these texts"):
        stages("distill", distill(max_tokens=48, learn="all"), **given)
    with pytest.raises(UsageError, match="logprobs scores one of preferences, chats and rows, and got none"):
        stages("logprobs", config, input=checkpoint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "sophia"}, "sophia estimates its curvature from next tokens"),
        ({"loss": "reverse_kl", "rest": "renormalise", "top_k": 4}, "the reverse KL is infinite"),
        ({"rest": "renormalise"}, "give top_k with it"),
        ({"hidden": {}, "top_k": 4}, "hidden compares with states that are not kept"),
        ({"loss": {"name": "jsd", "beta": 1}}, "loss"),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(DistillConfig, [fields])


def test_the_teacher_stays_as_it_is():
    teacher = other_model()
    before = copy.deepcopy(teacher.state_dict())
    objective = Distillation(None, Live(teacher), distill(model=SHAPE))
    objective.loss(small_model(), Tensors.of(packed([documents_of([9], 0)], 9), CPU)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
