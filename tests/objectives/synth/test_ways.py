"""The ways of `synth`, each by a real teacher: what is asked, what is kept, and that the books close."""

import json

import pytest

from llmctl.config.dpo import DpoConfig, RewardConfig
from llmctl.config.errors import ConfigError, GateError, InputError, UsageError
from llmctl.config.load import build
from llmctl.config.synth import SynthConfig
from llmctl.data.funnel import read_funnel
from llmctl.data.likeness import rouge_l, words_of
from llmctl.objectives.synth.instruct import tasks_in
from llmctl.objectives.synth.passages import passages_in, question_in, share_in
from llmctl.objectives.synth.revisions import read_constitution
from llmctl.objectives.synth.said import Said, furthest
from llmctl.objectives.synth.stage import run
from llmctl.objectives.synth.teacher import EngineTeacher
from llmctl.pipeline.job import Job, Silent
from tests.objectives.conftest import QUICK

from .conftest import ALL, dropped, synth, table, written

SELF = {"name": "self_instruct", "times": 40, "shown": 2, "shown_new": 1, "prompt": "{tasks}", "most_similar": 0.9}


@pytest.fixture
def asked(monkeypatch):
    """Every prompt that the teacher got, in order, beside its first answer; it is the real one that answers."""
    found = []
    answer = EngineTeacher.answer

    def recorded(teacher, asks):
        said = answer(teacher, asks)
        found.extend((ask.messages, several[0].text) for ask, several in zip(asks, said, strict=True))
        return said

    monkeypatch.setattr(EngineTeacher, "answer", recorded)
    return found


def closes(made):
    """Every rule of the funnel takes what the one before it left, and the totals name the same."""
    funnel = read_funnel(made)
    left = funnel["in"]
    for rule in funnel["rules"]:
        assert rule["in"] == left
        assert rule["out"] == left - rule["dropped"] or not rule["dropped"]
        left = rule["out"]
        if rule["dropped"]:
            assert made.manifest.totals[f"dropped.{rule['rule']}"] == rule["dropped"]
            assert rule["example"]["text"] or rule["rule"].endswith(("empty", "no_room"))
    return left == funnel["out"] == len(table(made))


def test_new_tasks_are_made_after_the_pattern_of_given_ones(stages, teacher, prompts, asked):
    made = stages("synth", synth(way=SELF, temperature=1.2, limit=6), input=teacher, prompts=prompts)
    totals = made.manifest.totals
    given = [f"{a} {b}" for a, b in ALL][:6]
    first = [messages[-1]["content"].splitlines() for messages, _ in asked[:16]]
    assert all(len(shown) == 2 for shown in first)
    assert all({line[3:] for line in shown} <= set(given) for shown in first)  # none is its own yet
    later = [messages[-1]["content"] for messages, _ in asked if messages[-1]["content"].startswith("1. ")][16:]
    assert any({line[3:] for line in shown.splitlines()} - set(given) for shown in later)
    tasks = [row["messages"][0]["content"] for row in table(made)]
    assert len(tasks) > 3
    for at, task in enumerate(tasks):
        assert all(rouge_l(words_of(task), words_of(other)) < 0.9 for other in [*given, *tasks[:at]])
    assert totals["dropped.questions.near_duplicate"] > 0
    assert totals["answers"] == totals["chats"] + dropped(made)
    assert totals["times"] == 40
    assert closes(made)


def test_a_passage_is_asked_about_and_answered_from(stages, teacher, tmp_path, asked):
    rows = [{"id": f"d/{n}", "text": f"{a} {b}", "source": "s"} for n, (a, b) in enumerate(ALL)]
    documents = written(tmp_path / "d.jsonl", [*rows, {"id": "d/short", "text": "one"}], "documents")
    way = {"name": "questions", "least_passage_words": 2, "form": r"\.$", "least_grounded": 0.7, "per_passage": 2}
    config = synth(way={**way, "prompt": "{passage}", "answer": "{question} {passage}"}, temperature=1.0)
    made = stages("synth", config, input=teacher, documents=documents)
    totals = made.manifest.totals
    assert totals["passages"] == 25
    assert sum(totals.get(f"dropped.{name}", 0) for name in ("questions.near_duplicate", "questions.malformed")) > 0
    assert totals["answers"] == 50 - dropped(made, "questions") == totals["chats"] + dropped(made)
    texts = {row["id"]: row["text"] for row in rows}
    there = {messages[-1]["content"] for messages, _ in asked}
    for row in table(made):
        passage, (question, answer) = texts[row["document"]], row["messages"]
        assert row["source"] == "s"
        assert f"{question['content']} {passage}" in there
        assert question["content"].endswith(".")
        assert share_in(answer["content"], passage) >= 0.7
    assert closes(made)
    with_it = synth(way={**way, "prompt": "{passage}", "answer": "{question} {passage}", "keep_passage": True}, limit=3)
    rows = table(stages("synth", with_it, input=teacher, documents=documents))
    assert rows
    assert all(row["messages"][0]["content"].endswith(f" {texts[row['document']]}") for row in rows)


def test_the_best_answer_over_the_worst_is_what_dpo_learns(stages, teacher, prompts):
    config = synth(way="preferences", samples=4, rewards="exact", temperature=1.5)
    made = stages("synth", config, input=teacher, prompts=prompts)
    totals, rows = made.manifest.totals, table(made)
    assert made.kind == "preferences"
    assert totals["answers"] == 100 == 2 * totals["preferences"] + dropped(made)
    assert totals["unanswered"] == 25 - totals["preferences"]
    for row in rows:
        a, b = row["prompt"][0]["content"].split()
        assert row["chosen"][0]["content"] == f"{b} {a}." != row["rejected"][0]["content"]
        assert row["margin"] == 1.0
    assert closes(made)
    learned = DpoConfig.model_validate({**QUICK, "steps": 1, "max_tokens": 64})
    assert stages("dpo", learned, input=teacher, preferences=made).manifest.inputs["preferences"].digest == made.digest


def test_a_reward_model_judges_what_it_reads_by_its_own_tokens(stages, teacher, prompts, write_preferences):
    pairs = [{"prompt": f"{a} {b}", "chosen": f"{b} {a}.", "rejected": f"{a} {a} {a}."} for a, b in ALL]
    config = {**QUICK, "epochs": 8, "max_tokens": 64, "heldout_fraction": 0, "optimizer": {"lr": 3e-3}}
    scorer = stages("reward", RewardConfig.model_validate(config), input=teacher, preferences=write_preferences(pairs))
    given = {"input": teacher, "prompts": prompts, "scorer": scorer}
    way = {"name": "preferences", "least_margin": 0.5}
    made = stages("synth", synth(way=way, samples=4, rewards="scorer", temperature=1.5), **given)
    assert all(row["margin"] > 0.5 for row in table(made))
    assert len(table(made)) > 5
    with pytest.raises(UsageError, match="the reward scorer needs a reward model"):
        stages("synth", synth(rewards="scorer"), input=teacher, prompts=prompts)
    with pytest.raises(UsageError, match="no reward looks at --scorer"):
        stages("synth", synth(), **given)


def test_answers_are_criticised_and_written_anew(stages, teacher, prompts, tmp_path, asked):
    path = tmp_path / "constitution.yaml"
    path.write_text('- {critique: "one two", revise: "two one"}\n- {critique: "four two", revise: "three one"}\n')
    way = {"name": "revisions", "constitution": str(path), "rounds": 2}
    made = stages("synth", synth(way=way, temperature=1, limit=8), input=teacher, prompts=prompts)
    assert made.kind == "chats"
    assert closes(made)
    talks = [[turn["content"] for turn in messages] + [said] for messages, said in asked]
    said = {tuple(talk[:-1]): talk[-1] for talk in talks}
    for row in table(made):
        question, last = (turn["content"] for turn in row["messages"])
        first = said[question,]
        principles = [("one two", "two one"), ("four two", "three one")]
        for order in (principles, principles[::-1]):  # drawn for each question, and each comes once
            answer = first
            for critique, revise in order:
                criticism = said.get((question, answer, critique))
                answer = said.get((question, answer, critique, criticism, revise))
            if answer == last:
                break
        assert answer == last
    config = synth(way={**way, "write": "preferences"}, temperature=1, limit=8)
    pairs = stages("synth", config, input=teacher, prompts=prompts)
    assert pairs.kind == "preferences"
    for row in table(pairs):
        assert row["rejected"][0]["content"] == said[row["prompt"][0]["content"],]
        assert row["chosen"][0]["content"] != row["rejected"][0]["content"]
    path.write_text("[Be kind.]")
    with pytest.raises(ConfigError, match="is not the file that it was"):
        build(SynthConfig, [json.loads(config.model_dump_json())])


def test_thoughts_are_asked_for_and_those_that_err_are_dropped(stages, teacher, prompts, asked):
    way, rewards = {"name": "thoughts", "think": "one"}, [{"kind": "regex", "pattern": "one"}]
    made = stages("synth", synth(way=way, temperature=0, rewards=rewards), input=teacher, prompts=prompts)
    assert [messages[-1]["content"] for messages, _ in asked] == [f"{a} {b}\none" for a, b in ALL]
    right = {messages[-1]["content"].removesuffix("\none"): said for messages, said in asked if "one" in said}
    assert {row["messages"][0]["content"]: row["messages"][1]["content"] for row in table(made)} == right
    assert made.manifest.totals.get("dropped.wrong", 0) == 25 - len(right)
    assert closes(made)


def test_texts_are_read_as_they_are_meant(tmp_path):
    assert tasks_in("Sure!\n1. Sort\n these.\n2) Add.\nTask 3: Stop.\n4.\n") == ["Sort these.", "Add.", "Stop."]
    assert tasks_in("Write a\npoem.\n\nAnother thing.") == ["Write a poem."]
    assert tasks_in("") == []
    text = "a b\n\nc d e\n\n\nf\n\ng h i j k l m"
    assert list(passages_in(text, 5)) == ["a b\n\nc d e", "f", "g h i j k", "l m"]
    assert " ".join(passages_in(text, 3)).split() == text.split()
    assert question_in('1. Question: "What is it?"\nBecause.') == "What is it?"
    assert share_in("The sea, the SKY.", "the sea") == 0.75
    path = tmp_path / "principles.txt"
    path.write_text("# ours\nBe kind.\n\nBe brief.\n")
    kind, brief = read_constitution(path)
    assert "Be kind." in kind.critique
    assert "Be brief." in brief.revise
    bad = tmp_path / "bad.json"
    bad.write_text('["Be kind.", {"critique": "x"}]')
    with pytest.raises(InputError, match="principle 2 is {'critique': 'x'}"):
        read_constitution(bad)


def test_the_two_that_differ_most():
    said = [
        Said("a", 1, 0.5),
        Said("b", 1, 2.0),
        Said("c", 1, 2.0),
        Said("d", 1, -1.0),
        Said("a", 1, 0.5),
        Said("", 0, fault="cut"),
    ]
    pair, gone = furthest(said, 0.0)
    assert [one.text for one in pair] == ["b", "d"]
    assert [(reason, one.text) for reason, one in gone] == [
        ("cut", ""),
        ("repeated", "a"),
        ("surplus", "a"),
        ("surplus", "c"),
    ]
    assert furthest(said, 3.0)[0] == []
    assert [reason for reason, _ in furthest(said[:1], 0.0)[1]] == ["alike"]
    assert furthest(said[-1:], 0.0) == ([], [("cut", said[-1])])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"way": "thoughts"}, "way=thoughts judges answers by rewards"),
        ({"way": "preferences", "rewards": "exact"}, "compares answers to one prompt: give --samples 2"),
        ({"way": "preferences", "rewards": "exact", "samples": 4, "keep": 2}, "leave out keep and prefer"),
        ({"way": {"name": "self_instruct", "prompt": "one more"}}, "has no {tasks} to be filled in"),
        ({"way": {"name": "self_instruct", "shown": 2, "shown_new": 2}}, "leaves no given task among the 2 shown"),
        ({"way": {"name": "revisions", "constitution": "no/such/file"}}, "cannot read no/such/file"),
        ({"form": "("}, "no regular expression"),
        ({"way": {"name": "questions", "form": "("}}, "no regular expression"),
        ({"least_words": 5, "most_words": 4}, "no answer has 5 words or more and 4 or fewer"),
    ],
)
def test_ways_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(SynthConfig, [fields])


def test_a_way_is_given_what_it_asks_about(stages, teacher, prompts, tmp_path):
    documents = written(tmp_path / "d.jsonl", [{"id": "d", "text": "one two"}], "documents")
    with pytest.raises(UsageError, match="way=answers asks about --prompts or --chats, and got --documents"):
        stages("synth", synth(), input=teacher, documents=documents)
    with pytest.raises(UsageError, match=r"sums\.sft@v\d+ and http://127.0.0.1:9/v1 are both teachers"):
        both = synth(server={"url": "http://127.0.0.1:9/v1"})
        run(Job(both, {"input": teacher, "prompts": prompts}, tmp_path, tmp_path, tmp_path / "m", Silent(), None))
    with pytest.raises(UsageError, match="way=questions asks about documents alone"):
        stages("synth", synth(way="questions"), input=teacher)
    with pytest.raises(InputError, match="holds no passage of 20 words"):
        stages("synth", synth(way="questions"), input=teacher, documents=documents)
    with pytest.raises(GateError, match=r"none of 0 answers passes: 3 tasks\.cut"):
        stages("synth", synth(way={**SELF, "times": 3}, max_new_tokens=1), input=teacher, prompts=prompts)
