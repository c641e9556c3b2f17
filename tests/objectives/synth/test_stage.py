"""The stage `synth`: a real teacher answers, and what passes becomes chats that a student can be tuned on."""

import dataclasses
import io
import json
import os
import re
import signal

import pytest
from rich.console import Console

from llmctl.cli.summary import summary
from llmctl.config.errors import ConfigError, GateError, InputError, UsageError
from llmctl.config.load import build
from llmctl.config.synth import SynthConfig
from llmctl.config.train import SftConfig
from llmctl.data.funnel import rejected_examples
from llmctl.objectives.asked import read_questions
from llmctl.objectives.synth.said import Said, chosen
from llmctl.pipeline.derive import learned_by
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.receipts import end_ok
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import FileInput
from tests.objectives.conftest import QUICK, chat

from .conftest import ALL, dropped, synth, table, written


def test_a_teachers_answers_take_the_place_of_the_texts(stages, checkpoint, teacher, chats):
    made = stages("synth", synth(temperature=0), input=teacher, chats=chats)
    rows, totals = table(made), made.manifest.totals
    assert (totals["prompts"], totals["answers"]) == (25, 25)
    assert len(rows) == totals["chats"] == 25 - dropped(made)
    assert totals["yield"] == totals["chats"] / 25
    assert totals["generated_tokens"] >= 2 * totals["chats"]
    given = {row["id"]: row["messages"] for row in map(json.loads, chats.path.read_text().splitlines())}
    right = 0
    for row in rows:
        asked = given[row["document"]]
        assert row["id"] == f"{row['document']}?answer-0"
        assert row["messages"][:-1] == asked[:-1]
        right += row["messages"][-1] == asked[-1]
    assert right > 10  # chance would be one in 25
    config = {**QUICK, "steps": 2, "max_tokens": 48}
    student = stages("sft", SftConfig.model_validate(config), input=checkpoint, chats=made)
    assert student.manifest.inputs["chats"].digest == made.digest


def test_what_a_verifier_rejects_is_counted_and_not_written(stages, teacher, prompts):
    made = stages("synth", synth(samples=4, temperature=1.5, rewards="exact"), input=teacher, prompts=prompts)
    totals = made.manifest.totals
    assert totals["answers"] == 100
    assert totals["chats"] + dropped(made) == 100
    assert totals["dropped.wrong"] > 0
    assert totals["chats"] == 25 - totals["unanswered"]  # one is kept of each
    for row in table(made):
        a, b = row["messages"][0]["content"].split()
        assert row["messages"][1]["content"] == f"{b} {a}."
    shown = Console(width=100, file=io.StringIO())
    for part in summary(made, "sft"):
        shown.print(part)
    told = shown.file.getvalue()
    assert re.search(rf"^wrong +\d+ +{totals['dropped.wrong']} +\d+ .* 0  \S", told, re.MULTILINE)
    assert re.search(r"^yield +0\.\d+", told, re.MULTILINE)
    assert end_ok(made, cached=False)["totals"]["yield"] == totals["yield"]
    (example,) = rejected_examples(made, "wrong", 5)
    assert example["id"].startswith("p/")
    every = stages(
        "synth", synth(samples=4, temperature=1.5, least=-1, rewards="exact"), input=teacher, prompts=prompts
    )
    assert "dropped.wrong" not in every.manifest.totals
    again = stages("synth", synth(samples=4, temperature=1.5, rewards="exact", seed=1), input=teacher, prompts=prompts)
    assert again.manifest.totals["dropped.wrong"] != totals["dropped.wrong"] or table(again) != table(made)


def test_a_function_of_ones_own_judges_by_the_rows_other_columns(stages, teacher, prompts, tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(
        "def even(completion, answer, prompt, n):\n    return float(n % 2 == 0)\n"
        "def fails(completion, answer, **fields):\n    raise RuntimeError('no idea')\n"
    )
    made = stages("synth", synth(temperature=0, rewards=f"{path}:even"), input=teacher, prompts=prompts)
    numbers = [int(row["document"].partition("/")[2]) for row in table(made)]
    assert numbers
    assert all(number % 2 == 0 for number in numbers)
    with pytest.raises(GateError, match=r"none of 25 answers passes: .*\d+ no_reward") as caught:
        stages("synth", synth(temperature=0, rewards=f"{path}:fails"), input=teacher, prompts=prompts)
    assert "no idea" in caught.value.hint


def test_the_instruction_is_asked_and_not_written(stages, teacher, prompts):
    plain = stages("synth", synth(temperature=0, limit=8), input=teacher, prompts=prompts)
    asked = stages("synth", synth(temperature=0, limit=8, instruction="one"), input=teacher, prompts=prompts)
    kept = {"instruction": "one", "keep_instruction": True, "limit": 8, "temperature": 0}
    with_it = stages("synth", synth(**kept), input=teacher, prompts=prompts)
    assert asked.manifest.totals["generated_tokens"] == with_it.manifest.totals["generated_tokens"]
    assert {row["messages"][0]["content"] for row in table(asked)} <= {f"{a} {b}" for a, b in ALL}
    assert all(row["messages"][0]["content"].endswith("\none") for row in table(with_it))
    assert [row["messages"][1] for row in table(plain)] != [row["messages"][1] for row in table(asked)]


class Interrupting(Silent):
    def __init__(self):
        self.notes = []

    def update(self, done, total, unit, **facts):
        if unit in ("prompts", "times") and done == 16:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text):
        self.notes.append(text)


TASKS = {"name": "self_instruct", "times": 32, "shown": 2, "shown_new": 1, "prompt": "{tasks}", "most_similar": 0.9}


@pytest.mark.parametrize("fields", [{"samples": 2}, {"way": TASKS, "temperature": 1.2}], ids=["answers", "tasks"])
def test_answered_parts_are_not_asked_again(stages, teacher, prompts, fields):
    call = Call(stage_named("synth"), synth(seed=5, **fields), {"input": teacher, "prompts": prompts})
    with pytest.raises(KeyboardInterrupt):
        execute(call, stages.store, Interrupting())
    progress = Interrupting()
    progress.update = lambda *given, **facts: None
    resumed = execute(call, stages.store, progress).artifact
    assert progress.notes[0] == "1 of 2 parts were answered before"
    whole = execute(dataclasses.replace(call, force=True), stages.store, Silent()).artifact
    assert resumed.digest == whole.digest
    names = [name for name in whole.manifest.totals if not name.startswith("generate")]
    assert {name: resumed.manifest.totals[name] for name in names} == {
        name: whole.manifest.totals[name] for name in names
    }


def test_which_answers_are_kept():
    said = [
        Said("long right", 9, 1.0),
        Said("", 0, fault="empty"),
        Said("right", 3, 1.5),
        Said("right", 3, 1.5),
        Said("wrong", 2, 0.0, "wrong"),
    ]
    kept, gone = chosen(said, synth(samples=5))
    assert [one.text for one in kept] == ["long right"]
    assert [reason for reason, _ in gone] == ["empty", "wrong", "repeated", "surplus"]
    assert [one for _, one in gone] == [said[1], said[4], said[3], said[2]]
    assert [one.text for one in chosen(said, synth(samples=5, prefer="shortest"))[0]] == ["right"]
    assert [one.text for one in chosen(said, synth(samples=5, prefer="best", rewards="exact"))[0]] == ["right"]
    assert [one.text for one in chosen(said, synth(samples=5, keep=5))[0]] == ["long right", "right"]


def test_what_cannot_be_asked_is_refused(stages, teacher, prompts, chats, write_chats, tmp_path):
    with pytest.raises(UsageError, match="synth asks one of prompts and chats, and got neither"):
        stages("synth", synth(), input=teacher)
    with pytest.raises(UsageError, match="got --prompts and --chats"):
        stages("synth", synth(), input=teacher, prompts=prompts, chats=chats)
    with pytest.raises(InputError, match="chat 2 .* does not end with the assistant"):
        open_ended = {"id": "b", "messages": [{"role": "user", "content": "one"}]}
        read_questions({"chats": write_chats([chat(0, "one", "two"), open_ended])})
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"answer": "two"}\n')
    with pytest.raises(InputError, match="prompt 2 must be a string or messages"):
        read_questions({"prompts": FileInput.of(path, "prompts")})
    path.write_text('{"question": "one"}\n{"instruction": "two", "answer": 2}\n')
    assert [question.spoken for question in read_questions({"prompts": FileInput.of(path, "prompts")})] == [
        "one",
        "two",
    ]
    path.write_text(json.dumps({"id": "x", "prompt": "one " * 300}) + "\n")
    with pytest.raises(InputError, match=r"prompt x has \d+ tokens and leaves no room in the context of 256"):
        stages("synth", synth(), input=teacher, prompts=FileInput.of(path, "prompts"))
    with pytest.raises(GateError, match="none of 25 answers passes: 25 cut"):
        stages("synth", synth(max_new_tokens=1), input=teacher, prompts=prompts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 2}, "keep .2. is more than samples .1."),
        ({"samples": 2, "temperature": 0}, "temperature=0 gives the same answer"),
        ({"prefer": "best"}, "prefer=best compares rewards"),
        ({"rewards": "exactly"}, "rewards"),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(SynthConfig, [fields])


def test_what_stands_in_an_evaluation_set_is_neither_asked_nor_kept(stages, teacher, prompts, tmp_path, write_chats):
    tests = written(tmp_path / "tests.jsonl", [{"id": "one two", "question": "one two", "answer": 7}], "prompts")
    said = written(tmp_path / "said.jsonl", [{"id": "x", "text": "Say: four three! Twice."}], "documents")
    given = {"input": teacher, "prompts": prompts, "against.tests": tests, "against.said": said}
    close = {"ngram_words": 2, "min_words": 2}
    made = stages("synth", synth(temperature=0, contamination=close), **given)
    totals, rows = made.manifest.totals, table(made)
    assert totals["dropped.questions.contaminated"] == 2  # those that ask `one two` and `four three`
    asked = {row["messages"][0]["content"] for row in rows}
    assert not asked & {"one two", "four three"}
    spoken = [row["messages"][1]["content"] for row in rows]
    assert not any("one two" in text or "four three" in text for text in spoken)
    plain = {
        row["messages"][0]["content"]: row["messages"][1]["content"]
        for row in table(stages("synth", synth(temperature=0, contamination=None), **given))
    }
    leaked = {question for question, text in plain.items() if text in ("one two.", "four three.")} - asked
    assert totals["dropped.contaminated"] == len(leaked - {"one two", "four three"})
    assert len(plain) == 25
    assert totals["answers"] == 23 == totals["chats"] + dropped(made)
    made = stages("synth", synth(temperature=0, limit=1), input=teacher, prompts=prompts)
    again = stages("synth", synth(temperature=0, contamination=close, limit=9), **{**given, "against.made": made})
    config = SftConfig.model_validate({**QUICK, "steps": 1, "max_tokens": 48})
    tuned = stages("sft", config, input=teacher, chats=again)
    found = {one.digest for one in learned_by({"input": tuned}, stages.store.find).values()}
    assert again.digest in found
    assert made.digest not in found  # it was held against it, and not learned
    with pytest.raises(InputError, match="no evaluation item has a text of 8 words"):
        stages("synth", synth(), **given)


def test_answers_have_a_form_and_a_length(stages, teacher, prompts):
    config = synth(samples=4, temperature=1.5, form=r"^(zero|one) (zero|one|two)\.$", most_words=2)
    made = stages("synth", config, input=teacher, prompts=prompts)
    totals = made.manifest.totals
    assert totals["dropped.malformed"] > 0
    assert totals["answers"] == totals["chats"] + dropped(made)
    assert {row["messages"][1]["content"].split()[0] for row in table(made)} <= {"zero", "one"}
    short = stages("synth", synth(temperature=0, least_words=2, most_words=2), input=teacher, prompts=prompts)
    assert {len(row["messages"][1]["content"].split()) for row in table(short)} == {2}
