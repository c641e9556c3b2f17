"""Tools that a policy calls: whatever it writes, it gets a text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.errors import ConfigError
from llmctl.config.grpo import GrpoConfig
from llmctl.config.load import build
from llmctl.config.tools import ToolsConfig
from llmctl.evals.sandbox.box import Sandbox
from llmctl.objectives.tools.calculator import calculate
from llmctl.objectives.tools.registry import Tools


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (" 1 + 2 * 3", "7"),
        ("0.1 + 0.2", "0.3"),  # exact, as decimals are
        ("(2 - 5) // 2", "-2"),
        ("-7 % 3", "2"),
        ("1 / 3", "0.333333333333"),
        ("2 ** 100", "1267650600228229401496703205376"),
        ("2 ** -2", "0.25"),
        ("2 ** 0.5", "1.41421356237"),
        ("sqrt(9 / 4)", "1.5"),
        ("sqrt(2)", "1.41421356237"),
        ("max(3, abs(-4), min(1, 2))", "4"),
        ("round(2.567, 2) + round(7.2)", "9.57"),
    ],
)
def test_arithmetic(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9 ** 9 ** 9 ** 9", "too large"),
        ("2 ** (2 ** 40)", "too large"),
        ("1.5 ** 99999999999", "too large"),
        ("1e300 ** 1.5", "too large"),
        ("1e400", "no arithmetic expression"),
        ("9" * 1001, "more than 1000 characters"),
        ("(" * 900, "no arithmetic expression"),
        ("-" * 999 + "(", "no arithmetic expression"),
        ("", "no arithmetic expression"),
        ("three", "no arithmetic expression"),
        ("True + 1", "no arithmetic expression"),
        ("1j", "no arithmetic expression"),
        ("max(*[1])", "no arithmetic expression"),
        ("\ud800", "no arithmetic expression"),
        ("__import__('os').getpid()", "no arithmetic expression"),
        ("getpid(1)", "no function 'getpid'"),
        ("abs(1, 2)", "no function 'abs' takes 2 numbers"),
        ("sqrt(-1)", "a negative number has no root"),
        ("(-8) ** 0.5", "a negative number has no such power"),
    ],
)
def test_what_cannot_be_worked_out(expression, fault):
    with pytest.raises(ValueError, match=fault):
        calculate(expression)


PIECES = st.sampled_from([*"0123456789.+-*/%(), eaj", "**", "//", "sqrt", "max", "round", "999999", "\x00", "é"])


@given(st.lists(PIECES, max_size=24).map("".join))
def test_any_text_has_a_value_or_a_fault(expression):
    try:
        assert len(calculate(expression)) < 1300
    except ValueError as error:
        assert str(error)  # noqa: PT017 - both ends are right


@pytest.fixture(scope="module")
def tools():
    with Sandbox() as box:
        if reason := box.refusal():
            pytest.skip(f"no sandbox here: {reason}")
    made = Tools(ToolsConfig(names="calculator, python", timeout_s=1.0, output_chars=70))
    yield made
    made.close()


def program(code):
    return "python", json.dumps({"code": code})


@pytest.mark.parametrize(
    ("call", "text", "failed"),
    [
        (("calculator", '{"expression": "6 * 7"}'), "42", False),
        (("calculator", '{"expression": "6 *"}'), "Error: this is no arithmetic expression", True),
        (("calculator", '{"expression": 6}'), 'Error: the arguments must be {"expression": a text}', True),
        (("calculator", '{"expression": "6", "b": "7"}'), 'Error: the arguments must be {"expression": a text}', True),
        (("calculator", '{"expression": "6'), "Error: the arguments are no JSON", True),
        (("calculator", "[" * 10_000), "Error: the arguments are no JSON", True),
        (("\ud800", "{}"), r"Error: there is no function '\ud800', only calculator, python", True),
        (program("import math\nprint(math.comb(5, 2))"), "10", False),
        (program("x = 1"), "(nothing was printed)", False),
        (program("while True: pass"), "Error: it took more than 1 s", True),
        (program("import sys\nsys.exit('no')"), "no", True),
        (program("a\x00b"), "SyntaxError: source code string cannot contain null bytes", True),
        (program("print('ab' * 50)"), "ab" * 17 + "a … (30 characters left out) … b" + "ab" * 17, False),
    ],
)
def test_a_call_gives_a_text(tools, call, text, failed):
    (told,) = tools.run([call])
    assert (told.text, told.failed) == (text, failed)


def test_an_exception_is_told_with_its_last_line(tools):
    (told,) = tools.run([program("a = 1\nprint(a / 0)")])
    assert told.failed
    assert told.text.endswith("Error: division by zero")  # the middle of the traceback is cut


def test_calls_come_back_in_order(tools):
    calls = [program(f"import time\ntime.sleep({0.2 * (n == 0)})\nprint({n})") for n in range(4)]
    assert [told.text for told in tools.run(calls)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"tools": {"names": ["calculator", "shell"]}}, "shell"),
        ({"tools": {"names": "calculator"}, "chat": False}, "tools are called in chats"),
        ({"tools": {"names": "calculator", "calls": 0}}, "greater than or equal to 1"),
    ],
)
def test_faults_are_told_before_any_work(fields, fault):
    with pytest.raises(ConfigError, match=fault):
        build(GrpoConfig, [fields])
