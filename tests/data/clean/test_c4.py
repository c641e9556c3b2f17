import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.rules import C4Config
from llmctl.data.clean.c4 import C4, line_breaks
from llmctl.data.clean.kernel import Verdict
from llmctl.data.clean.rules import Document
from llmctl.data.clean.words import Vocabulary

STORED = json.loads(Path(__file__).with_name("spacy.json").read_text(encoding="utf-8"))
FIVE = "\n".join(f"Here is line {n}." for n in "abcde")


def c4(text: str, **fields: Any) -> str | Verdict:
    """The text that is left, or the verdict."""
    result = C4(C4Config(**fields)).apply(Document(text, Vocabulary()))
    return result if isinstance(result, Verdict) else result.text


@pytest.mark.parametrize(("line", "sentences"), STORED["sentences"])
def test_sentences_are_those_of_spacy(line: str, sentences: int) -> None:
    assert 1 + line_breaks(line, 1000) == sentences


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("A line that ends.", "A line that ends."),
        ("Does it end?", "Does it end?"),
        ('He said "it ends"', 'He said "it ends"'),
        ("Does it end", None),
        ("A line ends...", None),
        ("A line ends.)", None),
        ("  Three words only.  ", "Three words only."),
        ("Two words.", None),
        ("Two words. [1]", None),  # what ends a line is looked at without the citation, and white space stays
        ("Two words[1] here.", "Two words here."),
        ("So [edit] it[citation needed] is[].", "So  it is."),
        ("Turn on JavaScript now.", None),
        ("You accept the Terms of Use.", None),
        ("Our PRIVACY POLICY is long.", None),
        ("See the cookie policy here.", None),
        ("This page uses cookies.", None),
        ("The use of cookies helps.", None),
        ("We do use cookies.", None),
        ("x" * 1000 + " is long.", "x" * 1000 + " is long."),
        ("x" * 1001 + " is long.", None),
    ],
)
def test_lines(line: str, left: str | None) -> None:
    assert c4(f"{FIVE}\n{line}") == (FIVE if left is None else f"{FIVE}\n{left}")


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("Lorem IPSUM dolor sit.", ("lorem_ipsum", 1.0)),
        ("A {{ is here.", ("curly_bracket", 2.0)),
        ("A line with { that does not end", None),  # dropped before it is looked at
        ("Turn on JavaScript { now.", None),
    ],
)
def test_lines_that_drop_the_document(line: str, verdict: tuple[str, float] | None) -> None:
    result = c4(f"{FIVE}\n{line}")
    assert result == (FIVE if verdict is None else verdict)


def test_sentences_at_their_threshold() -> None:
    assert c4("A line of. Two lines.\n" * 2) == ("too_few_sentences", 4.0)
    assert c4("A line of. Two lines.\n" * 2 + "And one more.") == "A line of. Two lines.\n" * 2 + "And one more."
    assert c4("This is one. " * 5) == ("This is one. " * 5).strip()
    assert c4("This is one. " * 4) == ("too_few_sentences", 4.0)
    assert c4("") == ("too_few_sentences", 0.0)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("No end here", {"terminal_punctuation": False}),
        ("Two words.", {"min_line_words": None}),
        ("x" * 1001 + " is long.", {"max_word_length": None}),
        ("One [1] is here.", {"remove_citations": False}),
        ("Turn on JavaScript now.", {"drop_javascript_lines": False}),
        ("We do use cookies.", {"drop_policy_lines": False}),
        ("Lorem ipsum dolor sit.", {"drop_lorem_ipsum": False}),
        ("A { is here.", {"drop_curly_brackets": False}),
    ],
)
def test_each_rule_can_be_switched_off(line: str, fields: dict[str, Any]) -> None:
    assert c4(f"{FIVE}\n{line}") != f"{FIVE}\n{line}"
    assert c4(f"{FIVE}\n{line}", **fields) == f"{FIVE}\n{line}"
    assert c4(line, min_sentences=None, **fields) == line


def test_a_text_that_stays_is_the_same_document() -> None:
    document = Document(FIVE, Vocabulary())
    assert C4(C4Config()).apply(document) is document
