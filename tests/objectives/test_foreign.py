"""A teacher of another vocabulary: where both have read the same, and a student that learns there."""

import json

import numpy as np
import pytest
import torch

from llmctl.config.distill import DistillConfig
from llmctl.config.errors import ConfigError, InputError, UsageError
from llmctl.config.load import build
from llmctl.config.merge import MergeConfig
from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.config.train import PretrainConfig
from llmctl.model import huggingface
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.objectives.chats import Chat, read_sides
from llmctl.objectives.distilled import Distillation
from llmctl.objectives.foreign import NOWHERE, PLACES, Foreign, read_foreign, shared_places
from llmctl.objectives.start import fill_id, open_model, open_tokenizer
from llmctl.pipeline.derive import rows_of_checkpoint
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import FileInput
from llmctl.tokens.batch import IGNORE

from .conftest import QUICK, chat, sums
from .test_distill import FRESH, loss_and_gradient, metrics_of

ROOMY = 96


def uld(**fields):
    config = {**QUICK, "steps": 12, "optimizer": {"lr": 3e-3}, "loss": "uld", "heldout_fraction": 0.2, "max_tokens": 48}
    return DistillConfig.model_validate({**config, **fields})


@pytest.fixture(scope="module")
def student(stages, tmp_path_factory):
    """It has merged less: 288 ids, where the teacher has 300."""
    path = tmp_path_factory.mktemp("few") / "sums.jsonl"
    path.write_text("".join(json.dumps({"id": f"s/{n}", "text": text}) + "\n" for n, text in enumerate(sums(30))))
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 288}})
    tokens = stages("tokenize", config, input=FileInput.of(path, "documents"))
    rows = stages("pack", PackConfig(seq_len=32, heldout_fraction=0.1), input=tokens)
    config = {**QUICK, "model": {**FRESH, "context": ROOMY}, "steps": 4}
    return stages("pretrain", PretrainConfig.model_validate(config), input=rows)


def turns(labels, tokenizer):
    """What stands before each target of a chat of one answer: bytes, by place."""
    found, said = {}, b""
    for place in np.flatnonzero(labels != IGNORE):
        found[int(place)] = said
        said += tokenizer.piece_bytes(int(labels[place]))
    return found


def test_places_are_shared_where_the_same_bytes_lie_before_them(checkpoint, student, chats):
    ours, theirs = open_tokenizer(student), open_tokenizer(checkpoint)
    for one, other in zip(*(read_sides(chats, of, 10**6, 0.0).kept for of in (ours, theirs)), strict=True):
        found = shared_places(one, other, ours, theirs)
        before, there = turns(one.labels, ours), turns(other.labels, theirs)
        wanted = {
            place: next((at for at, text in there.items() if text == said), NOWHERE) for place, said in before.items()
        }
        assert {place: int(found[place]) for place in before} == wanted
        assert (found[one.labels == IGNORE] == NOWHERE).all()
        first, last = min(before), max(before)
        assert (found[first], found[last]) == (min(there), max(there))  # the first token, and the end of the turn
        own = shared_places(one, one, ours, ours)
        assert own.tolist() == [at if at in before else NOWHERE for at in range(one.ids.size)]


def test_turns_are_matched_one_by_one(checkpoint, student, write_chats):
    talk = [turn for a, b in (("one", "two"), ("three", "four")) for turn in chat(0, a, b)["messages"]]
    given = write_chats([{"id": "talk", "messages": talk}])
    ours, theirs = open_tokenizer(student), open_tokenizer(checkpoint)
    one, other = (read_sides(given, of, 10**6, 0.0).kept[0] for of in (ours, theirs))
    found = shared_places(one, other, ours, theirs)
    ends = [int(place) for place in np.flatnonzero(np.isin(one.labels, ours.stop_ids))]
    assert len(ends) == 2
    assert [int(found[place]) for place in ends] == np.flatnonzero(np.isin(other.labels, theirs.stop_ids)).tolist()


def said(tokenizer, text):
    """A chat of nothing but an answer, as a template with white space of its own has it."""
    ids = np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], dtype=np.int64)
    return Chat("", ids, np.array([*ids[1:], IGNORE], dtype=np.int64))


def test_white_space_around_an_answer_shifts_no_place_and_other_words_share_none(checkpoint, student):
    ours, theirs = open_tokenizer(student), open_tokenizer(checkpoint)
    one, other = said(ours, "two and one make three."), said(theirs, "\n two and one make three. ")
    found, before, there = shared_places(one, other, ours, theirs), turns(one.labels, ours), turns(other.labels, theirs)
    shared = [place for place in before if found[place] != NOWHERE]
    assert len(shared) > 3
    assert all(there[int(found[place])].lstrip() == before[place] for place in shared)
    assert found[max(before)] >= 0  # the end of the turn, behind the last byte
    assert (shared_places(one, said(theirs, "two and one make four."), ours, theirs) == NOWHERE).all()


@pytest.fixture(scope="module")
def read(checkpoint, student, chats):
    """`read(seq_len) -> (rows of the student with the teacher's reading, objective)`."""

    def made(seq_len):
        tokenizer = open_tokenizer(student)
        ours = (tokenizer, seq_len, fill_id(student, tokenizer))
        _, rows, _ = read_foreign(
            chats, uld(heldout_fraction=0, cross_entropy=0.4), ours, (open_tokenizer(checkpoint), 64)
        )
        teacher = open_model(checkpoint, open_tokenizer(checkpoint))
        return rows, Distillation(rows, Foreign(teacher), uld(cross_entropy=0.4))

    return made


def test_packing_changes_neither_loss_nor_gradient(read, student):
    model = open_model(student, open_tokenizer(student))
    found = []
    for seq_len, at_once in ((ROOMY, 100), (48, 100), (48, 1)):
        rows, objective = read(seq_len)
        numbers = np.arange(rows.count)
        batches = [rows.batch(numbers[at : at + at_once]) for at in range(0, rows.count, at_once)]
        found.append(loss_and_gradient(objective, model, batches))
    assert found[0][0] > 0.1
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_distance_by_rank_where_both_have_read_the_same(read, checkpoint, student, chats):
    rows, objective = read(ROOMY)
    batch = rows.batch(np.arange(1))
    model, teacher = (open_model(one, open_tokenizer(one)) for one in (student, checkpoint))
    objective.loss(model, Tensors.of(batch, torch.device("cpu")))
    (divergence, count), _ = model.tally["divergence"], model.tally["cross_entropy"]
    ours, theirs = (read_sides(chats, open_tokenizer(one), 10**6, 0.0).kept for one in (student, checkpoint))
    expected = 0.0
    for at in rows._rows.chats_of(0):
        places = shared_places(ours[at], theirs[at], open_tokenizer(student), open_tokenizer(checkpoint))
        q, p = (probabilities(one, chats[at].ids) for one, chats in ((model, ours), (teacher, theirs)))
        for place in np.flatnonzero(places != NOWHERE):
            mine = torch.cat([q[place].sort(descending=True).values, torch.zeros(12)])
            expected += (mine - p[places[place]].sort(descending=True).values).abs().sum().item()
    assert count == batch.targets
    assert divergence.sum().item() == pytest.approx(expected, rel=1e-4)
    assert 0 < (batch.beside[PLACES] != NOWHERE).sum() < batch.targets


@torch.no_grad()
def probabilities(model, ids):
    tokens = torch.from_numpy(ids)[None]
    alone = Tensors(
        tokens, torch.arange(ids.size)[None], torch.zeros_like(tokens, dtype=torch.int32), tokens, one_each=True
    )
    return model.logits(hidden_states(model, alone)[0])[0].softmax(-1)


def test_a_student_learns_from_a_teacher_that_reads_other_tokens(stages, checkpoint, student, chats):
    made = stages("distill", uld(), input=checkpoint, student=student, chats=chats)
    steps = metrics_of(made, "divergence", "loss")
    assert steps[-1][0] < 0.8 * steps[0][0]
    facts, totals = made.manifest.semantic, made.manifest.totals
    assert (facts["vocab_size"], facts["tokenizer"]) == (288, student.manifest.semantic["tokenizer"])
    assert 0.2 < totals["compared"] < 1
    assert totals["chats"] + totals["heldout_chats"] == 25
    assert totals["heldout_divergence"] < metrics_of(made, "heldout_divergence")[0][0]
    assert huggingface.load(made.data).vocab_size == 288
    behind = rows_of_checkpoint({"input": made}, stages.store.find)["rows"]
    assert behind.manifest.semantic["tokenizer"] == facts["tokenizer"]  # the student's, not the teacher's
    short = uld(overlong="drop", max_tokens=40)
    assert (
        stages("distill", short, input=checkpoint, student=student, chats=chats).manifest.totals["dropped.overlong"] > 0
    )


@pytest.mark.slow
def test_ranks_compute_what_one_process_does(stages, checkpoint, student, chats):
    config = {"steps": 3, "clip_norm": 1e9, "cross_entropy": 0.4, "batch_rows": 4}
    given = {"input": checkpoint, "student": student, "chats": chats}
    alone = stages("distill", uld(**config), **given)
    call = Call(stage_named("distill"), uld(**config, zero=1, nproc=2), given, force=True)
    both = execute(call, stages.store, Silent()).artifact
    names = ("loss", "grad_norm", "divergence", "cross_entropy")
    assert metrics_of(both, *names) == [pytest.approx(row, rel=1e-4) for row in metrics_of(alone, *names)]
    for name in ("heldout_divergence", "compared"):
        assert both.manifest.totals[name] == pytest.approx(alone.manifest.totals[name], rel=1e-4)


def test_what_uld_cannot_compare_is_refused(stages, rows, checkpoint, student, chats):
    given = {"input": checkpoint, "student": student}
    with pytest.raises(UsageError, match="uld reads chats by both tokenizers, and rows are given"):
        stages("distill", uld(), **given, rows=rows)
    with pytest.raises(UsageError, match="uld teaches a student that has a tokenizer of its own"):
        stages("distill", uld(model=FRESH), input=checkpoint, chats=chats)
    with pytest.raises(InputError, match="chat 1 has .* tokens of the student's and .* of the teacher's, more than 8"):
        stages("distill", uld(max_tokens=8), **given, chats=chats)
    with pytest.raises(InputError, match="holds no chat to learn from"):
        stages("distill", uld(max_tokens=8, overlong="drop"), **given, chats=chats)
    with pytest.raises(InputError, match="its tokenizer has 288 ids, not 300") as raised:
        stages("distill", uld(loss="tvd"), **given, chats=chats)
    assert "--loss uld teaches across tokenizers" in raised.value.hint
    for fields, message in (
        ({"top_k": 4}, "leave out top_k"),
        ({"hidden": {}}, "leave out hidden"),
        ({"learn": "all"}, "leave out learn=all"),
        ({"nproc": 2, "sequence_parallel": 2}, "leave out sequence_parallel"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(DistillConfig, [{"loss": "uld", **fields}])


LORA = {"rank": 4, "alpha": 8}


@pytest.mark.parametrize(
    "fields",
    [{"loss": "forward_kl"}, {"loss": "jsd", "on_policy": {"share": 0.5, "max_new_tokens": 8}}, {"hidden": {}}],
    ids=["plain", "on_policy", "hidden"],
)
def test_adapters_of_a_student_learn_and_merge_into_it(stages, checkpoint, rows, chats, fields):
    small = stages("pretrain", PretrainConfig.model_validate({**QUICK, "model": FRESH, "steps": 4}), input=rows)
    config = {**fields, "lora": LORA, "optimizer": {"lr": 2e-2}}
    adapter = stages("distill", uld(**{"loss": "forward_kl", **config}), input=checkpoint, student=small, chats=chats)
    assert adapter.kind == "adapter"
    assert adapter.manifest.semantic["base"] == small.digest
    steps = metrics_of(adapter, "divergence")
    assert steps[-1][0] < 0.9 * steps[0][0]
    assert not any("projection" in path.name for path in adapter.files())
    merged = stages("merge", MergeConfig(), **{"sources.a": small, "sources.b": adapter})
    still = {"lora": None, "steps": 1, "optimizer": {"lr": 1e-12}, "loss": fields.get("loss", "forward_kl")}
    again = stages("distill", uld(**still), input=checkpoint, student=merged, chats=chats)
    figure = "heldout_divergence"
    assert again.manifest.totals[figure] == pytest.approx(adapter.manifest.totals[figure], rel=1e-4)


def test_adapters_need_a_student_that_is_there():
    with pytest.raises(ConfigError, match="lora adapts a student that is there"):
        build(DistillConfig, [{"model": FRESH, "lora": LORA}])
