"""How the tests of the rules ask for a verdict."""

from __future__ import annotations

from llmctl.data.clean.kernel import Verdict
from llmctl.data.clean.rules import Document, RuleSet
from llmctl.data.clean.words import Vocabulary


def verdict_of(rules: RuleSet, text: str) -> Verdict | None:
    """Why the rules drop the text; None where they keep it."""
    result = rules.apply(Document(text, Vocabulary()))
    return result if isinstance(result, Verdict) else None


def reason_of(rules: RuleSet, text: str) -> str | None:
    """The reason alone."""
    verdict = verdict_of(rules, text)
    return verdict and verdict.reason


def distinct_words(count: int, stem: str = "word") -> str:
    """`count` different words, two of them stop words."""
    letters = "abcdefghij"
    return " ".join(["the", "of", *(stem + "".join(letters[int(d)] for d in str(n)) for n in range(count - 2))])
