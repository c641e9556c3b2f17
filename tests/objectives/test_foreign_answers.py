"""Answers of a student as a teacher of other tokens reads them."""

import numpy as np
import pytest

from llmctl.objectives.chats import read_sides
from llmctl.objectives.foreign import NOWHERE, PLACES, read_foreign
from llmctl.objectives.foreign_answers import ForeignAlone, Reader
from llmctl.objectives.on_policy import joined, last_turn
from llmctl.objectives.start import fill_id, open_tokenizer
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.tokens.batch import IGNORE

from .test_distill import metrics_of
from .test_foreign import ROOMY, student, turns, uld  # noqa: F401 (a fixture)

OWN = {"share": 0.5, "max_new_tokens": 12}


@pytest.fixture
def reader(checkpoint, student):  # noqa: F811
    return Reader(open_tokenizer(student), open_tokenizer(checkpoint), 64)


@pytest.fixture
def pair(reader, chats):
    """The first chat as the student and as the teacher reads it."""
    return tuple(read_sides(chats, one, 10**6, 0.0).kept[0] for one in (reader.ours, reader.theirs))


def answer(chat, tokenizer, text, end):
    ids = (*tokenizer.encode(text), *((tokenizer.stop_ids[-1],) if end else ()))
    return joined(chat, chat.ids[: last_turn(chat)], ids)


@pytest.mark.parametrize("end", [True, False], ids=["ended", "cut"])
def test_the_teacher_reads_what_was_said_behind_its_own_prompt(reader, pair, end):
    ours, asked = pair
    said = answer(ours, reader.ours, "nine and three", end)
    theirs, places = reader.read(said, asked)
    prompt = last_turn(asked)
    assert theirs.ids[:prompt].tolist() == asked.ids[:prompt].tolist()
    assert reader.theirs.decode(theirs.ids[prompt:].tolist()) == "nine and three"
    assert bool(np.isin(theirs.ids[prompt:], reader.theirs.stop_ids).any()) == end
    before, there = turns(said.labels, reader.ours), turns(theirs.labels, reader.theirs)
    shared = [place for place in before if places[place] != NOWHERE]
    assert len(shared) > 2
    assert all(there[int(places[place])] == before[place] for place in shared)
    if end:
        assert places[max(before)] == max(there)  # the end of the turn


def test_what_the_teacher_would_have_said_is_read_as_it_stands(reader, pair):
    ours, asked = pair
    theirs, _ = reader.read(ours, asked)
    assert theirs.ids.tolist()[: asked.ids.size] == asked.ids[: theirs.ids.size].tolist()


def test_half_a_character_and_an_answer_beyond_the_context_share_no_place(reader, pair):
    ours, asked = pair
    half = joined(ours, ours.ids[: last_turn(ours)], tuple(reader.ours.encode("é"))[:1])
    assert (reader.read(half, asked)[1] == NOWHERE).all()
    long = answer(ours, reader.ours, "two and one make three. " * 9, True)
    theirs, places = reader.read(long, asked)
    assert theirs.ids.size == 64
    assert (places == NOWHERE).all()


def holds(tokens, ids):
    """Whether these ids stand behind one another in a row."""
    return any(row[at : at + ids.size].tolist() == ids.tolist() for row in tokens for at in range(row.size))


def test_answers_take_the_place_of_their_chats(reader, checkpoint, student, chats):  # noqa: F811
    ours = (reader.ours, ROOMY, fill_id(student, reader.ours))
    _, rows, _ = read_foreign(chats, uld(heldout_fraction=0), ours, (reader.theirs, 64))
    alone = ForeignAlone(rows, ROOMY, ours[2], reader)
    numbers = np.arange(4)
    plain = alone.batch(numbers)
    said = answer(alone.chats[2], reader.ours, "nine", True)
    batch = alone.answered(numbers, {2: said})
    before, now = (np.count_nonzero(one.labels != IGNORE) for one in (alone.chats[2], said))
    assert batch.targets == plain.targets - before + now
    heard = reader.read(said, rows.read[2][1])[0].ids
    assert holds(batch.beside["their_tokens"], heard)
    assert not holds(plain.beside["their_tokens"], heard)
    assert all(holds(batch.beside["their_tokens"], rows.read[at][1].ids) == (at != 2) for at in range(4))
    assert (batch.beside[PLACES][batch.labels == IGNORE] == NOWHERE).all()


def test_a_student_learns_on_policy_from_a_teacher_of_other_tokens(stages, checkpoint, student, chats):  # noqa: F811
    config = uld(on_policy=OWN, cross_entropy=0.2, steps=16)
    given = {"input": checkpoint, "student": student, "chats": chats}
    made = stages("distill", config, **given)
    steps = metrics_of(made, "on_policy", "compared", "divergence")
    assert all(0 < compared <= 1 for _, compared, _ in steps)
    assert 0.2 < np.mean([share for share, _, _ in steps]) < 0.8
    assert made.manifest.totals["heldout_divergence"] < metrics_of(made, "heldout_divergence")[0][0]
    again = execute(Call(stage_named("distill"), config, given, force=True), stages.store, Silent()).artifact
    assert again.digest == made.digest  # the same answers, the same curve
