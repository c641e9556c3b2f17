from typing import Any

import pytest

from llmctl.config.rules import QualityConfig
from llmctl.data.clean.gopher_quality import GopherQuality
from tests.data.clean.conftest import distinct_words, reason_of, verdict_of


def quality(text: str, **fields: Any) -> str | None:
    return reason_of(GopherQuality(QualityConfig(**fields)), text)


# Punctuation is a word of its own here: it counts where a rule divides by the number of words.
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (distinct_words(50), None),
        (distinct_words(49), "too_few_words"),
        (distinct_words(49) + " -- == , ;", "too_few_words"),  # symbols are no words
        ("the and " + "ab " * 98, "words_too_short"),
        ("the and " + "abc " * 98, None),  # mean 3.0
        ("the of " + "abcdefghij " * 98, None),  # mean 9.85
        ("the of " + "abcdefghijk " * 98, "words_too_long"),
        (distinct_words(90) + " #" * 10, None),  # 10 of 100
        (distinct_words(89) + " #" * 11, "too_many_hashes"),
        ("... " * 5 + "… " * 5 + distinct_words(90), None),  # 10 of 100
        (distinct_words(89) + " ..." * 6 + " …" * 5, "too_many_ellipses"),
        ("\n".join(["- the of word here now"] * 9 + ["a last line of words"]), None),
        ("\n".join(["- the of word here and now"] * 9 + [" "]), None),  # 9 of 10: a blank line is a line
        ("\n".join(["  - the of word here now"] * 19 + ["a line"]), "too_many_bullet_lines"),
        ("\n".join(["• the of words right here"] * 10), "too_many_bullet_lines"),
        ("\n".join(["the of words on many lines of text here"] * 7 + ["more..."] * 3), None),
        ("\n".join(["the of words on many lines of text here"] * 13 + ["more… "] * 7), "too_many_ellipsis_lines"),
        (distinct_words(80) + " 1234" * 20, None),
        (distinct_words(79) + " 1234" * 21, "too_few_alphabetic_words"),
        (distinct_words(79) + " 1234," * 10 + " ,", "too_few_alphabetic_words"),  # 79 of 100
        ("to " + "word " * 60, "too_few_stop_words"),
        ("to (have) " + "word " * 60, None),
        ("to To " + "word " * 60, "too_few_stop_words"),  # one distinct word; case counts
        ("", "too_few_words"),
    ],
)
def test_rules_at_their_thresholds(text: str, reason: str | None) -> None:
    assert quality(text) == reason


def test_most_words() -> None:
    assert quality("the of " + "word " * 98, max_words=100) is None
    assert quality("the of " + "word " * 99, max_words=100) == "too_many_words"


def test_each_rule_can_be_switched_off() -> None:
    off = dict.fromkeys(set(QualityConfig.model_fields) - {"enabled"})
    assert quality("# ... #", **off) is None
    assert quality("", **off) is None


def test_the_value_that_broke_the_rule_is_told() -> None:
    verdict = verdict_of(GopherQuality(QualityConfig()), distinct_words(90) + " #" * 30)
    assert verdict == ("too_many_hashes", 30 / 120)
