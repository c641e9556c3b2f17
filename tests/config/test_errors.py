from __future__ import annotations

from llmctl.config.errors import ConfigError, InputError, LlmctlError, Problem, UsageError, together

BAD = Problem("seed", "is too large", "choose a smaller one")


def test_a_problem_reads_as_one_line() -> None:
    assert str(BAD) == "seed: is too large (choose a smaller one)"
    assert str(Problem("seed", "is too large")) == "seed: is too large"
    assert ConfigError([BAD, BAD]).what == f"{BAD}; {BAD}"


def test_one_error_is_told_as_it_is() -> None:
    error = InputError("gone", hint="look")
    assert together([error]) is error


def test_several_are_told_together_with_every_remedy_and_the_first_ones_code() -> None:
    missing = together([InputError("gone", hint="look"), InputError("wrong")])
    assert (type(missing), missing.faults) == (InputError, ("gone (look)", "wrong"))
    whole: LlmctlError = together([ConfigError([BAD, BAD]), missing])
    assert (type(whole), whole.exit_code) == (UsageError, 2)
    assert whole.faults == (str(BAD), str(BAD), "gone (look)", "wrong")
    assert whole.one_line == "; ".join(whole.faults)
