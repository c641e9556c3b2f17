"""Preferences as ids and rows, and the invariance of every loss on them."""

import functools
import itertools
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.batches import Batches
from llmctl.config.errors import InputError
from llmctl.config.model import ModelConfig
from llmctl.config.preference import needs_reference
from llmctl.data.tables import PREFERENCES, read_rows
from llmctl.model.kernels import attend_through
from llmctl.model.likelihood import Tensors
from llmctl.model.transformer import Transformer
from llmctl.objectives.dpo import objective_of
from llmctl.objectives.pair_rows import PackedPairs, answer_logps
from llmctl.objectives.pairs import Answer, Pair, mismatched, read_pairs
from llmctl.objectives.preferred import HeldOutPairs
from llmctl.store.artifact import Artifact, FileInput
from llmctl.store.files import sha256_file
from llmctl.store.manifest import FileEntry
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.heldout import sample_scored
from llmctl.train.loader import Plan
from llmctl.train.local import Local

from .conftest import NANO
from .test_preference import EVERY, loss_of

VOCAB, LONGEST = 50, 9
EVERY_LOSS = [*EVERY, {"name": "kto", "beta": 0.05, "undesirable_weight": 1.5}]


@functools.cache
def nano():
    model = Transformer(ModelConfig.model_validate(NANO), VOCAB)
    model.init_weights(3)
    return model.train()


def made_up(count, seed):
    """Pairs of random ids with prompts of their own."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        prompt = rng.integers(1, VOCAB, rng.integers(1, 4))
        answers = []
        for _ in range(2):
            ids = np.concatenate([prompt, rng.integers(1, VOCAB, rng.integers(1, LONGEST - 3))])
            labels = np.full(ids.size, IGNORE)
            labels[prompt.size - 1 : -1] = ids[prompt.size :]
            answers.append(Answer(ids, labels, prompt.size))
        pairs.append(Pair(f"pair/{number}", tuple(answers), float(rng.random()), bool(number % 3)))
    return pairs


def gradient_of(loss, rows, parts, micro_rows):
    """Loss and gradient of one step on all rows, dealt to `parts` ranks and to micro-batches."""
    model, strategy = nano(), Local(torch.device("cpu"))
    strategy.model, strategy.autocast = model, None
    objective = objective_of(rows, loss_of(loss))
    ranks = [list(part) for part in np.array_split(np.arange(rows.count), parts)]
    batches = [
        rows.batch(np.array(rank[at : at + micro_rows])) for rank in ranks for at in range(0, len(rank), micro_rows)
    ]
    targets = sum(batch.targets for batch in batches)
    assert targets == len(rows.pairs)
    if hasattr(objective, "look_ahead"):
        objective.look_ahead(batches, strategy)
    model.zero_grad()
    model.tally = {}
    total = 0.0
    for batch in batches:
        value = objective.loss(model, Tensors.of(batch, strategy.device)) / targets
        value.backward()
        total += value.item()
    tally = {name: float(value.sum()) / max(1, count) for name, (value, count) in model.tally.items()}
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}, tally


@functools.cache
def undivided(at):
    pairs = made_up(7, seed=at)
    references = np.random.default_rng(at).uniform(-30, -10, (7, 2))
    return pairs, references, gradient_of(EVERY_LOSS[at], PackedPairs(pairs, 2 * LONGEST, 0, references), 1, 100)


@settings(max_examples=60)
@given(
    at=st.integers(0, len(EVERY_LOSS) - 1),
    seq_len=st.sampled_from([2 * LONGEST, 40, 64, 200]),
    parts=st.integers(1, 3),
    micro_rows=st.integers(1, 4),
    order=st.permutations(range(7)),
    pad=st.integers(0, VOCAB - 1),
)
def test_every_loss_is_the_same_however_its_pairs_are_dealt(at, seq_len, parts, micro_rows, order, pad):
    """Over micro-batches, accumulation, ranks, padding, packing and order: loss, gradient and figures."""
    pairs, references, (loss, gradients, tally) = undivided(at)
    rows = PackedPairs([pairs[n] for n in order], seq_len, pad, references[list(order)])
    assert tally.get("kl", 1) > 0
    other, others, figures = gradient_of(EVERY_LOSS[at], rows, parts, micro_rows)
    assert other == pytest.approx(loss, rel=1e-6)
    assert figures == pytest.approx(tally, rel=1e-5, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=2e-6 * max(1.0, float(gradient.abs().max())))


def test_log_probabilities_are_those_of_each_answer_alone():
    pairs = made_up(5, seed=11)
    rows = PackedPairs(pairs, 64, 0)
    with torch.no_grad():
        together = answer_logps(nano(), Tensors.of(rows.batch(np.arange(rows.count)), torch.device("cpu")))
        order = [int(at) for row in range(rows.count) for at in rows.pairs_of(row)]
        assert sorted(order) == list(range(5))
        for slot, side in itertools.product(range(5), range(2)):
            answer = pairs[order[slot]].answers[side]
            ids = torch.from_numpy(answer.ids)[None]
            attend = attend_through("sdpa", torch.zeros_like(ids, dtype=torch.int32), one_each=True)
            hidden = nano()(ids, torch.arange(ids.shape[1])[None], attend)
            scores = nano().logits(hidden).log_softmax(-1)[0]
            said = range(answer.prompt, ids.shape[1])
            alone = sum(scores[at - 1, ids[0, at]].item() for at in said)
            assert together[side][0][slot].item() == pytest.approx(alone, abs=1e-4)
            assert together[side][1][slot].item() == len(said) == answer.targets


def test_held_out_figures_are_means_and_blank_rows_count_for_nothing():
    pairs = made_up(6, seed=2)
    rows = PackedPairs(pairs, 2 * LONGEST, 0, np.full((6, 2), -9.0))
    held = HeldOutPairs(rows, objective_of(rows, loss_of({"name": "sigmoid"})))
    model = nano().eval()
    try:
        with torch.no_grad():
            whole = rows.batch(np.arange(rows.count))
            sums = held.sums(model, Tensors.of(whole, torch.device("cpu")))
            blank = held.sums(model, Tensors.of(whole.without_targets(), torch.device("cpu")))
    finally:
        model.train()
    assert blank.tolist() == [0.0] * len(sums)
    measured = held.total(sums.tolist())
    figures = measured.figures
    assert figures["heldout_pairs"] == measured.pairs == 6
    assert figures["heldout_loss"] == pytest.approx(gradient_of({"name": "sigmoid"}, rows, 1, 9)[0])
    margin = figures["heldout_rewards/chosen"] - figures["heldout_rewards/rejected"]
    assert figures["heldout_rewards/margins"] == pytest.approx(margin)
    assert f"{figures['heldout_rewards/accuracies']:.1%} told right" in measured.told


def test_the_held_out_kl_is_that_of_the_held_out_answers():
    """However the sample is dealt, blank rows beside it or not, and whatever the last step's was."""
    pairs, references = made_up(6, seed=2), np.full((6, 2), -30.0)
    rows = PackedPairs(pairs, 2 * LONGEST, 0, references)
    wanted = gradient_of({"name": "kto"}, rows, 1, 9)
    assert wanted[2]["kl"] > 0
    strategy = Local(torch.device("cpu"))
    strategy.model, strategy.autocast = nano(), None
    for micro_rows in (1, 4):
        objective = objective_of(rows, loss_of({"name": "kto"}))
        objective.divergence = 99.0
        held = HeldOutPairs(rows, objective)
        figures = sample_scored(held, 0, Plan(0, 1, Batches(8), 0, 1, micro_rows), strategy).figures
        assert figures["heldout_kl"] == pytest.approx(wanted[2]["kl"])
        assert figures["heldout_loss"] == pytest.approx(wanted[0])
    whole = rows.batch(np.arange(rows.count))
    held.look_ahead([whole, whole.without_targets()], strategy)
    assert objective.divergence == pytest.approx(wanted[2]["kl"])


def test_which_losses_ask_for_a_reference():
    named = {loss["name"] for loss in EVERY_LOSS if needs_reference(loss_of(loss))}
    assert named == {"sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "kto"}


def written(folder, rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileInput.of(path, "preferences")


PAIR = {"prompt": "one two", "chosen": "three.", "rejected": "four five."}


def test_only_the_answer_is_a_target(checkpoint, tmp_path):
    tokenizer = Tokenizer.open(checkpoint.data)
    earlier = [{"role": "user", "content": "zero"}, {"role": "assistant", "content": "one"}]
    turns = [*earlier, {"role": "user", "content": "two"}]
    found = read_pairs(
        written(tmp_path, [PAIR, {**PAIR, "prompt": turns, "margin": 1.5}]), tokenizer, 64, 0.0, unpaired=False
    )
    for pair in found.pairs:
        for answer, text in zip(pair.answers, ("three.", "four five."), strict=True):
            said = answer.labels[answer.labels != IGNORE]
            assert tokenizer.decode(said.tolist()).strip() == text
            assert said[-1] in tokenizer.stop_ids
            assert answer.targets == said.size
    assert [pair.margin for pair in found.pairs] == [0.0, 1.5]
    assert not found.held.any()


def test_answers_by_themselves_stand_beside_one_to_another_prompt(checkpoint, tmp_path):
    tokenizer = Tokenizer.open(checkpoint.data)
    rows = [
        PAIR,
        {"prompt": "four", "completion": "one two three.", "label": False},
        {"prompt": "four", "completion": "one.", "label": True},
    ]
    found = read_pairs(written(tmp_path, rows), tokenizer, 64, 0.0, unpaired=True)
    assert [pair.desirable for pair in found.pairs] == [True, False, False, True]
    said = [
        [tokenizer.decode(answer.ids[answer.prompt :].tolist()).strip() for answer in pair.answers]
        for pair in found.pairs
    ]
    assert said == [
        ["three.", "one two three."],
        ["four five.", "one two three."],
        ["one two three.", "three."],
        ["one.", "three."],
    ]
    own, other = found.pairs[0].answers
    assert own.ids[: own.prompt].tolist() == other.ids[: other.prompt].tolist()
    assert other.targets == found.pairs[2].answers[0].targets
    cut = read_pairs(written(tmp_path, rows), tokenizer, own.ids.size, 0.0, unpaired=True)
    assert all(pair.answers[1].ids.size <= own.ids.size for pair in cut.pairs)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=12))
def test_the_mismatched_answer_is_the_next_one_of_another_prompt(prompts):
    pairs = []
    for number, prompt in enumerate(prompts):
        ids = np.array([prompt, 10 + number, 3])
        answer = Answer(ids, np.array([10 + number, 3, IGNORE]), 1)
        pairs.append(Pair(str(number), (answer, answer)))
    if len(set(prompts)) == 1:
        with pytest.raises(InputError, match="all answers are to one prompt"):
            mismatched(pairs, 8, "here")
        return
    for at, pair in enumerate(mismatched(pairs, 8, "here")):
        wanted = next(n % len(prompts) for n in range(at + 1, 99) if prompts[n % len(prompts)] != prompts[at])
        assert pair.answers[1].ids.tolist() == [prompts[at], 10 + wanted, 3]
        assert pair.answers[1].labels.tolist() == [10 + wanted, 3, IGNORE]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PAIR, "chosen": " "}, r"preference 2 \(.*:2\) has an empty chosen answer: .*one two"),
        ({"prompt": "a", "completion": "b", "label": True}, r"preference 2 .* has no rejected answer"),
        (
            {**PAIR, "prompt": [{"role": "robot", "content": "a"}]},
            r"preference 2 .*: messages\[0\] has the unknown role 'robot'",
        ),
    ],
)
def test_a_row_that_teaches_nothing_is_named(checkpoint, tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_pairs(written(tmp_path, [PAIR, row]), Tokenizer.open(checkpoint.data), 64, 0.0, unpaired=False)


def test_an_overlong_row_is_named_or_counted(checkpoint, tmp_path):
    rows = [PAIR, {**PAIR, "rejected": "four " * 40}]
    random.Random(0).shuffle(rows)
    found = read_pairs(written(tmp_path, rows), Tokenizer.open(checkpoint.data), 48, 0.0, unpaired=False)
    assert (len(found.pairs), len(found.overlong)) == (1, 1)
    found.refuse("drop", 48)
    with pytest.raises(InputError, match=r"preference \d .* has \d+ tokens, more than 48; 1 in all are too long"):
        found.refuse("error", 48)


def test_an_artifact_brings_its_own_held_out_side(checkpoint, tmp_path):
    rows = {
        side: [{**PAIR, "prompt": f"{side} {n}", "margin": None, "id": f"{side}/{n}"} for n in range(3)]
        for side in ("part", "heldout")
    }
    files = []
    for side, given_ in rows.items():
        (tmp_path / side).mkdir()
        found = list(read_rows(written(tmp_path / side, given_)))
        path = tmp_path / "data" / f"{side}-00000.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(found, schema=PREFERENCES), path)
        files.append(FileEntry(path=f"data/{path.name}", bytes=path.stat().st_size, sha256=sha256_file(path)))
    facts = {"heldout_fraction": 0.25}
    manifest = checkpoint.manifest.model_copy(update={"kind": "preferences", "files": files, "semantic": facts})
    artifact = Artifact(tmp_path, manifest, "made@v1")
    found = read_pairs(artifact, Tokenizer.open(checkpoint.data), 64, 0.99, unpaired=False)
    assert [pair.document for pair in found.pairs] == [f"{side}/{n}" for side in ("part", "heldout") for n in range(3)]
    assert found.held.tolist() == [False] * 3 + [True] * 3
    assert found.heldout_fraction == 0.25
