from typing import Any

import pytest

from llmctl.config.rules import FineWebConfig
from llmctl.data.clean.fineweb import FineWeb
from tests.data.clean.conftest import reason_of, verdict_of

LONG = "This line {} has more than thirty characters in it"  # 10 words


def fineweb(text: str, **fields: Any) -> str | None:
    return reason_of(FineWeb(FineWebConfig(**fields)), text)


def lines(count: int, ends: int = 0) -> list[str]:
    return [LONG.format(n) + ("." if n < ends else "") for n in range(count)]


@pytest.mark.parametrize("end", [".", "?", "!", "。", "؟", "।", "។"])
def test_punctuated_lines_at_their_threshold(end: str) -> None:
    text = "\n".join([*lines(22), *(line + end for line in lines(25)[22:])])  # 3 of 25 are 0.12
    assert fineweb(text) is None
    assert fineweb(text + "\n" + LONG.format("x")) == "too_few_punctuated_lines"


def test_quotes_end_no_sentence_here() -> None:
    assert fineweb("\n".join(line + '."' for line in lines(10))) == "too_few_punctuated_lines"


def test_short_lines_at_their_threshold() -> None:
    short = [f"Exactly thirty characters {n:03}." for n in range(68)]
    assert {len(line) for line in short} == {30}
    assert fineweb("\n".join([*lines(33), *short[:67]])) is None  # 67 of 100
    assert fineweb("\n".join([*lines(32), *short[:68]])) == "too_many_short_lines"
    assert fineweb("\n".join([*lines(32), *(line + "." for line in short)]), min_punctuated_lines=None) is None


def test_repeated_lines_at_their_threshold() -> None:
    text = "\n".join(["x" * 10 + ".", "x" * 10 + ".", *(letter * 100 + "." for letter in "abcdefghij")])
    most = 11 / (22 + 1010)
    assert fineweb(text, max_duplicate_line_characters=most, max_newlines_per_word=None) is None
    verdict = verdict_of(FineWeb(FineWebConfig()), text)
    assert verdict == ("repeated_line_characters", most)  # 0.0107


def test_line_ends_at_their_threshold() -> None:
    text = "A line of more than thirty characters which ends.\n\n\n"  # 10 words with the full stop, 3 line ends
    assert fineweb(text) is None
    assert fineweb(text + "\n") == "too_many_newlines"


def test_no_lines() -> None:
    assert fineweb("\n \n") == "no_lines"


def test_each_rule_can_be_switched_off() -> None:
    off = dict.fromkeys(
        ("min_punctuated_lines", "max_short_lines", "max_duplicate_line_characters", "max_newlines_per_word")
    )
    assert fineweb("a\na\n\n\na", **off) is None
