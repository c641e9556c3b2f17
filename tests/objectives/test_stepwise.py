"""Process reward models: where steps end, what is learned of them, and what is refused."""

import copy
import itertools
import json
import math
import random

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from llmctl.config.dpo import RewardConfig
from llmctl.config.errors import InputError, UsageError
from llmctl.model import scoring
from llmctl.model.likelihood import Tensors, hidden_states
from llmctl.objectives.chats import Chat, PackedChats
from llmctl.objectives.start import open_tokenizer
from llmctl.objectives.stepwise import StepObjective, _answer, judged, rows_of
from llmctl.tokens.batch import IGNORE

from .conftest import QUICK, writer_of
from .test_pairs import VOCAB, nano

RIGHT = ["one and two make three.", "zero and four make four.", "two and two make four."]
BAD = ["one and two make one.", "zero and four make zero.", "two and two make two."]


@pytest.fixture(scope="session")
def write_steps(tmp_path_factory):
    """Answers by steps as a JSON Lines file."""
    return writer_of("stepwise", tmp_path_factory)


@pytest.fixture(scope="session")
def steps(write_steps):
    """Answers of one to three sums, of which some are wrong."""
    rng = random.Random(1)
    rows = []
    for number, count in enumerate(itertools.islice(itertools.cycle((1, 2, 3)), 60)):
        labels = [rng.random() < 0.5 for _ in range(count)]
        said = [rng.choice(RIGHT if right else BAD) for right in labels]
        rows.append({"id": f"answer/{number}", "prompt": "sums", "completions": said, "labels": labels})
    return write_steps(rows)


def reward(**fields):
    given = {**QUICK, "batch_rows": 8, "epochs": 25, "max_tokens": 64, "heldout_fraction": 0.2}
    return RewardConfig.model_validate({**given, "optimizer": {"lr": 6e-3}, **fields})


def row(said, labels):
    return {"id": "a", "prompt": [{"role": "user", "content": "sums"}], "completions": said, "labels": labels}


@pytest.mark.parametrize("separator", ["\n", " ", "\n\n", " and then "])
def test_a_step_is_judged_where_its_text_ends(checkpoint, separator):
    tokenizer = open_tokenizer(checkpoint)
    said = ["one and two", "zéro", "make three."]
    answer = _answer(row(said, [True, False, True]), tokenizer, separator, "here")
    places = np.flatnonzero(answer.labels != IGNORE)
    assert answer.labels[places].tolist() == [1, 0, 1]
    for count, place in enumerate(places, start=1):
        before = b"".join(tokenizer.piece_bytes(index) for index in answer.ids[:place])
        until = before + tokenizer.piece_bytes(int(answer.ids[place]))
        text = separator.join(said[:count]).encode()
        assert text in until
        assert text not in before


def made_up(count, seed):
    """Answers of random ids, with labels at some of them."""
    rng = np.random.default_rng(seed)
    answers = []
    for number in range(count):
        ids = rng.integers(1, VOCAB, rng.integers(3, 12))
        labels = np.where(rng.random(ids.size) < 0.4, rng.integers(0, 2, ids.size), IGNORE)
        labels[-1] = number % 2
        answers.append(Chat(f"answer/{number}", ids, labels))
    return answers


def judge():
    model = copy.deepcopy(nano())
    scoring.add_head(model, torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))
    return model.train()


def step_of(model, rows, micro_rows):
    """Loss and gradient of one step on all rows."""
    objective, count = StepObjective(rows), sum((one.labels != IGNORE).sum() for one in rows.chats)
    model.zero_grad()
    total = 0.0
    for at in range(0, rows.count, micro_rows):
        batch = rows.batch(np.arange(at, min(at + micro_rows, rows.count)))
        value = objective.loss(model, Tensors.of(batch, torch.device("cpu"))) / count
        value.backward()
        total += value.item()
    return total, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_loss_and_gradient_do_not_depend_on_rows_and_micro_batches():
    model, answers = judge(), made_up(9, 3)
    loss, gradient = step_of(model, PackedChats(answers, 12, 0), 1)
    for seq_len, micro_rows, pad in ((12, 4, 0), (30, 1, 7), (64, 2, 0), (200, 1, 49)):
        other, changed = step_of(model, PackedChats(answers, seq_len, pad), micro_rows)
        assert other == pytest.approx(loss, rel=1e-5)
        for name, value in changed.items():
            torch.testing.assert_close(value, gradient[name], rtol=1e-3, atol=1e-5)


def test_the_loss_is_that_of_two_classes():
    """What token classification with two labels, as TRL's trainer for process rewards had, computes."""
    model, rows = judge(), PackedChats(made_up(5, 8), 40, 0)
    batch = Tensors.of(rows.batch(np.arange(rows.count)), torch.device("cpu"))
    objective = StepObjective(rows)
    score = scoring.scores(model, hidden_states(model, batch)[0])
    classes = torch.stack((torch.zeros_like(score), score), dim=-1)
    wanted = cross_entropy(classes.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")
    assert objective.loss(model, batch).item() == pytest.approx(wanted.item(), rel=1e-6)
    figures = objective.scored(model, batch).figures
    right = batch.labels == 1
    assert figures["rewards/right"] == (pytest.approx(score[right].sum().item(), rel=1e-5), int(right.sum()))
    accurate = ((score > 0) == right)[batch.labels != IGNORE]
    assert figures["rewards/accuracies"] == (accurate.sum().item(), accurate.numel())


def test_it_tells_right_steps_from_wrong_ones(stages, checkpoint, steps):
    made = stages("reward", reward(), input=checkpoint, stepwise=steps)
    totals, facts = made.manifest.totals, made.manifest.semantic
    assert (made.kind, facts["head"]) == ("checkpoint", "steps")
    assert totals["answers"] + totals["heldout_answers"] == 60
    assert totals["heldout_steps"] > totals["heldout_answers"]
    assert totals["before_heldout_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert totals["heldout_rewards/accuracies"] > 0.9
    assert totals["heldout_rewards/right"] > 0 > totals["heldout_rewards/wrong"]

    tokenizer, model = open_tokenizer(made), scoring.load(made.data)
    said = [[RIGHT[0], BAD[1], RIGHT[2]], [BAD[2]], [RIGHT[1], RIGHT[0]]]
    answers = [_answer(row(one, [True] * len(one)), tokenizer, "\n", "here") for one in said]
    chances = judged(model, rows_of(answers, tokenizer.pad_id, 200))
    assert [[chance > 0.5 for chance in one] for one in chances] == [[step in RIGHT for step in one] for one in said]
    alone = [judged(model, rows_of([one], tokenizer.pad_id))[0] for one in answers]
    assert list(itertools.chain(*chances)) == pytest.approx(list(itertools.chain(*alone)), rel=1e-4)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"completions": [], "labels": []}, "line 2: no 'completions'"),
        ({"completions": ["a", " "], "labels": [True, True]}, r"line 2: completions\[1\] must be a step"),
        ({"completions": ["a", "b"], "labels": [True]}, "line 2: 1 'labels' of 2 steps"),
        ({"completions": ["a"], "labels": ["yes"]}, r"line 2: labels\[0\] must be true or false, got 'yes'"),
        ({"completions": ["a"], "labels": [True], "prompt": None}, "line 2: no 'prompt'"),
        ({"completions": ["one " * 80], "labels": [True]}, r"answer 2 .* has \d+ tokens, more than 64"),
    ],
)
def test_broken_rows_are_named(stages, checkpoint, write_steps, broken, message):
    good = {"prompt": "x", "completions": ["a"], "labels": [True]}
    with pytest.raises(InputError, match=message):
        stages("reward", reward(), input=checkpoint, stepwise=write_steps([good, {**good, **broken}]))


def test_steps_that_no_place_is_found_for(checkpoint):
    tokenizer = open_tokenizer(checkpoint)
    content = "message['content']" if "message['content']" in tokenizer.chat_template else "message.content"
    assert content in tokenizer.chat_template
    trims = tokenizer.with_template(tokenizer.chat_template.replace(content, f"({content} | trim)"))
    assert _answer(row(["one", "two"], [True, True]), trims, "\n", "here").labels.max() == 1
    with pytest.raises(InputError, match="here: the chat template does not render the answer as it stands"):
        _answer(row(["one", "two "], [True, True]), trims, "\n", "here")
    with pytest.raises(InputError, match="here: two of its steps end in one token"):
        _answer(row(["zero and", "", " zero"], [True, True, False]), tokenizer, "", "here")


def test_pairs_or_steps(stages, checkpoint, steps, write_preferences):
    pairs = write_preferences([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(UsageError, match="neither --preferences nor --stepwise"):
        stages("reward", reward(), input=checkpoint)
    with pytest.raises(UsageError, match="both --preferences and --stepwise"):
        stages("reward", reward(), input=checkpoint, stepwise=steps, preferences=pairs)
    labels = {json.dumps(json.loads(line)["labels"]) for line in steps.path.read_text().splitlines()}
    assert len(labels) > 4  # else the fixture would teach one answer
