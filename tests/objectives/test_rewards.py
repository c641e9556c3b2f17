"""Rewards: what each gives, and what is missing where one cannot be had."""

import math
import os
import random
import signal
import time

import pytest

from llmctl.config.errors import ConfigError, InputError
from llmctl.config.grpo import GrpoConfig
from llmctl.config.load import build
from llmctl.evals.sandbox import launch
from llmctl.evals.sandbox.box import Sandbox
from llmctl.objectives.rewards.registry import Rewards, lack
from llmctl.objectives.rewards.rules import Sample


def rewards_of(given, **options):
    config = GrpoConfig.model_validate({"rewards": given})
    return Rewards(config.rewards, options.pop("timeout_s", 20.0), **options)


def value_of(given, completion, answer=None, **fields):
    with rewards_of([given]) as rewards:
        (judged,) = rewards.judge([Sample("asked", completion, answer, tokens=len(completion.split()), fields=fields)])
    return judged.missing or judged.value


@pytest.mark.parametrize(
    ("given", "completion", "answer", "value"),
    [
        ("exact", " 7\n", "7", 1.0),
        ("exact", "Seven", "seven", 0.0),
        ({"kind": "exact", "ignore_case": True}, "Seven", "seven", 1.0),
        ("number", "so 3 + 4 = 7.", "#### 7", 1.0),
        ("number", "#### 8 because 7", "7", 0.0),  # what is behind the mark counts
        ("number", "#### 1 ... #### 1,234", "1234.0", 1.0),  # the last mark
        ("number", "it costs $-5", "-5", 1.0),
        ("number", "none", "5", 0.0),
        ("number", "5 ####", "5", 0.0),
        ({"kind": "regex", "pattern": r"\d+"}, "a 12", None, 1.0),
        ({"kind": "regex", "pattern": r"\d+", "whole": True}, "a 12", None, 0.0),
        ("json", '{"a": [1, 2]}', None, 1.0),
        ("json", "NaN", None, 0.0),
        ("json", "{'a': 1}", None, 0.0),
        ({"kind": "json", "keys": ["a", "b"]}, '{"a": 1, "b": null}', None, 1.0),
        ({"kind": "json", "keys": ["a"]}, "[1]", None, 0.0),
        ({"kind": "length", "most": 4}, "one two three", None, -0.75),
        ({"kind": "length", "free": 2, "most": 4}, "one two three", None, -0.5),
        ({"kind": "length", "most": 2}, "one two three", None, -1.0),
        ("repetition", "a b c a b c", None, -0.25),  # abc bca cab abc
        ("repetition", "a b c d", None, 0.0),
        ("repetition", "a b", None, 0.0),
        ("exact", "7", None, "exact: the prompt's row has no answer"),
        ("number", "7", "seven", "number: the wanted answer holds no number: 'seven'"),
    ],
)
def test_rules(given, completion, answer, value):
    assert value_of(given, completion, answer) == (value if isinstance(value, str) else pytest.approx(value))


def test_a_sum_of_weighted_rewards_names_its_parts():
    given = [
        {"kind": "exact", "weight": 2.0},
        {"kind": "length", "most": 10, "weight": 0.5},
        {"kind": "length", "most": 2},
    ]
    with rewards_of(given) as rewards:
        judged = rewards.judge([Sample("q", "one two", "one two", tokens=2), Sample("q", "one", None, tokens=1)])
    assert judged[0].value == pytest.approx(2.0 - 0.1 - 1.0)
    assert judged[0].parts == {"exact": 1.0, "length": pytest.approx(-0.2), "length_2": -1.0}
    assert math.isnan(judged[1].value)  # one is missing, so all are: half a sum would be another reward
    assert judged[1].parts == {"exact": None, "length": pytest.approx(-0.1), "length_2": pytest.approx(-0.5)}


OWN = """
import os, time
print("what it prints is in nobody's way")

def score(completion, answer, *, prompt, bonus=0, **fields):
    if completion == "raise":
        raise ValueError("cannot\\njudge")
    if completion == "hang":
        time.sleep(60)
    if completion == "end":
        os._exit(3)
    if completion == "nan":
        return float("nan")
    if completion == "nothing":
        return None
    if completion == "read":
        return len(input())
    return len(completion) + bonus + (prompt == "asked")

THING = 3
"""


def test_a_function_of_ones_own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    said = ["four", "raise", "hang", "end", "nan", "nothing", "read", "four"]
    with rewards_of(f"{tmp_path}/own.py:score", timeout_s=1.0) as rewards:
        begun = time.monotonic()
        judged = rewards.judge([Sample("asked", text, None, fields={"bonus": 10, "other": [1]}) for text in said])
        assert time.monotonic() - begun < 30  # the one that hangs was ended
    assert [one.value for one in judged] == pytest.approx([15, *[math.nan] * 6, 15], nan_ok=True)
    assert [one.missing for one in judged][1:7] == [
        "score: ValueError: cannot",
        "score: no value within 1 s",
        "score: its process ended",
        "score: its value is nan",
        "score: TypeError: float() argument must be a string or a real number, not 'NoneType'",
        "score: EOFError: EOF when reading a line",
    ]


def test_values_are_those_of_their_answers_however_many_a_pipe_holds(tmp_path):
    """The child is told of answers beforehand; it ends amid them, and twice at once."""
    (tmp_path / "own.py").write_text(OWN)
    rng = random.Random(0)
    said = ["x" * rng.choice([1, 50, 5_000, 40_000, 200_000]) for _ in range(60)]
    said[20] = said[40] = said[41] = "end"
    with rewards_of(f"{tmp_path}/own.py:score", timeout_s=10.0) as rewards:
        judged = rewards.judge([Sample("q", text) for text in said])
    wanted = [math.nan if text == "end" else len(text) for text in said]
    assert [one.value for one in judged] == pytest.approx(wanted, nan_ok=True)
    assert {one.missing for one in judged} == {"", "score: its process ended"}


def test_what_hangs_ends_itself_where_whoever_asked_is_gone(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    with rewards_of(f"{tmp_path}/own.py:score", timeout_s=0.5) as rewards:
        rewards.judge([Sample("asked", "four")])
        child = rewards._guarded["score"]
        assert os.getsid(child._child.pid) == child._child.pid  # an interrupt of the run does not reach it
        child._say(b'{"prompt": "", "completion": "hang", "answer": null, "fields": {}}\n')
        assert child._child.wait(timeout=30) == -signal.SIGALRM


def test_a_pattern_that_never_ends_is_missing():
    given = [{"kind": "regex", "pattern": r"(a+)+$"}]
    with rewards_of(given, timeout_s=1.0) as rewards:
        judged = rewards.judge([Sample("q", "a" * 40 + "b"), Sample("q", "aaa")])
    assert [one.missing for one in judged] == ["regex: no value within 1 s", ""]
    assert judged[1].value == 1.0


def test_an_edited_file_is_another_run(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    config = GrpoConfig.model_validate({"rewards": f"{path}:score"})
    assert GrpoConfig.model_validate(config.model_dump(mode="json")) == config
    path.write_text(OWN + "\n")
    assert GrpoConfig.model_validate({"rewards": f"{path}:score"}) != config
    with pytest.raises(ValueError, match="is not the file that it was"):
        GrpoConfig.model_validate(config.model_dump(mode="json"))
    with Rewards(config.rewards, 5.0) as rewards:
        (judged,) = rewards.judge([Sample("q", "four")])
    assert "was changed since the run began" in judged.missing


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("exactly", "exactly"),
        ("own.py:score", "cannot read own.py"),
        ([{"kind": "regex", "pattern": "("}], "no regular expression"),
        ([{"kind": "length", "free": 5, "most": 5}], "must be below most"),
        ([], "at least 1"),
    ],
)
def test_faults_are_told_before_any_work(given, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=fault):
        build(GrpoConfig, [{"rewards": given}])


def test_a_file_without_the_function(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    assert value_of(f"{tmp_path}/own.py:THING", "x").endswith("has no function THING")
    (tmp_path / "own.py").write_text("import no_such_module")
    assert "No module named 'no_such_module'" in value_of(f"{tmp_path}/own.py:score", "x")


def test_what_cannot_be_judged_is_told_before_any_answer(tmp_path, monkeypatch):
    """All of it at once."""
    (tmp_path / "own.py").write_text("import no_such_module")
    monkeypatch.setattr(launch, "_interpreter", lambda: str(tmp_path / "no-python"))
    given = [
        {"kind": "function", "of": f"{tmp_path}/own.py:score"},
        "number",
        "tests",
        {"kind": "length", "most": 5},
    ]
    rows = [Sample("q", "", "seven"), Sample("q", "", "eight")]
    with rewards_of(given) as rewards, pytest.raises(InputError) as told:
        rewards.check(rows)
    own, number, tests = told.value.faults
    assert own == "reward score: ModuleNotFoundError: No module named 'no_such_module' (mend the reward's file)"
    assert number.startswith("reward number: no prompt has what it needs: the wanted answer holds no number: 'seven'")
    assert tests.startswith("reward tests: programs of a model cannot be run here: the interpreter does not start")
    with rewards_of(["number"]) as rewards:
        rewards.check([*rows, Sample("q", "", "9")])  # one that can be judged is enough


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("exact", "the row has no answer"),
        ("number", "the row has no answer"),
        ({"kind": "judge", "url": "http://x", "template": "{completion} {hint}"}, "the row has no 'hint'"),
        ("tests", "the row has no 'tests'"),
        ("gym", "the row has no 'gym'"),
        ({"kind": "length", "most": 5}, ""),
        ("json", ""),
    ],
)
def test_what_a_row_must_have(given, fault):
    (config,) = GrpoConfig.model_validate({"rewards": [given]}).rewards
    assert lack(config, Sample("q", "", None)) == fault


def test_mathematics(tmp_path):
    pytest.importorskip("math_verify")
    assert value_of("math", "so it is $\\frac{2}{4}$", "$0.5$") == 1.0
    assert value_of("math", "$0.25$", "$\\frac{1}{2}$") == 0.0
    assert "the prompt's row has no answer" in value_of("math", "$1$")


def test_mathematics_needs_its_extra():
    try:
        import math_verify  # noqa: F401
    except ModuleNotFoundError:
        assert value_of("math", "1", "1") == "math: ModuleNotFoundError: No module named 'math_verify'"
    else:
        pytest.skip("math-verify is here")


@pytest.fixture(scope="module")
def tested():
    with Sandbox() as box:
        if reason := box.refusal():
            pytest.skip(f"no sandbox here: {reason}")
    with rewards_of(["tests"]) as rewards:
        rewards.check([Sample("asked", "", fields={"tests": "assert f(1)"})])
        yield rewards


def test_programs_by_their_tests(tested):
    right, wrong = "def double(x):\n    return 2 * x\n", "def double(x):\n    return 3 * x\n"
    told = f"First I thought of\n```python\n{wrong}```\nbut it is\n```python\n{right}```\nas you see."
    given = [right, wrong, told, "I cannot.", "import os; os._exit(0)"]
    tests = {"tests": "assert double(4) == 8"}
    samples = [Sample("asked", text, fields=tests) for text in given]
    assert [one.value for one in tested.judge(samples)] == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_programs_in_the_form_of_humaneval(tested):
    unsaid = {"tests": "assert twice(2) == 4", "setup": None, "entry_point": None}  # as a table has what a row lacks
    (judged,) = tested.judge([Sample("asked", "def twice(x):\n    return x + x", fields=unsaid)])
    assert judged.value == 1.0
    fields = {"tests": "def check(f):\n    assert f(2) == LIMIT", "setup": "LIMIT = 4", "entry_point": "twice"}
    (judged,) = tested.judge([Sample("asked", "def twice(x):\n    return x + x", fields=fields)])
    assert judged.value == 1.0


def test_programs_without_tests_have_no_reward(tested):
    (none, broken) = tested.judge(
        [Sample("asked", "pass"), Sample("asked", "def f(): pass", fields={"tests": "f(lambda: 1)"})]
    )
    assert math.isnan(none.value)
    assert none.missing == "tests: the prompt's row has no 'tests'"
    assert math.isnan(broken.value)  # what the tests cannot send is no fault of the program
    assert broken.missing.startswith("tests: ")
