"""The rules as one kernel: each document is read once, and goes through all sets of rules that are on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property

import pyarrow as pa

from llmctl.data.clean.kernel import REASON, VALUE, Verdict, with_text, with_verdicts
from llmctl.data.clean.words import Vocabulary, Words

# (reason, value, least allowed, most allowed); None allows all.
Measure = tuple[str, float, float | None, float | None]


class Document:
    """A text with its words and lines, each worked out when first asked for and then kept."""

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        self.text = text
        self.vocabulary = vocabulary

    @cached_property
    def words(self) -> Words:
        """The words, as spaCy splits them."""
        return self.vocabulary.read(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The lines, blank ones too."""
        return self.text.splitlines()


class RuleSet(ABC):
    """Rules of one paper: a document goes through, perhaps rewritten, or is dropped."""

    @abstractmethod
    def apply(self, document: Document) -> Document | Verdict:
        """The document that goes on, or the first rule that it broke."""


class MeasuredRules(RuleSet):
    """Rules that compare a measure of the document with what is allowed."""

    @abstractmethod
    def measures(self, document: Document) -> Iterator[Measure]:
        """The measures in the order in which they decide; later ones are worked out when asked for."""

    def apply(self, document: Document) -> Document | Verdict:
        """The document as it is, or the first measure out of bounds."""
        for reason, value, least, most in self.measures(document):
            if (least is not None and value < least) or (most is not None and value > most):
                return Verdict(reason, value)
        return document


class Rules:
    """The kernel: fills `reason` and `value` of what the rules drop, and replaces the texts that they rewrite.

    Args:
        prose: sets of rules for documents, in their order.
        code: sets of rules for source code, which goes through no other then.
        languages: values of `lang` that are source code.
    """

    def __init__(self, prose: Sequence[RuleSet], code: Sequence[RuleSet] = (), languages: Sequence[str] = ()) -> None:
        self.prose = prose
        self.code = code
        self.languages = frozenset(languages)
        self.vocabulary = Vocabulary()

    def judge(self, text: str, lang: str = "") -> Document | Verdict:
        """The document that is left of `text`, or why it is dropped."""
        document = Document(text, self.vocabulary)
        for rules in self.code if lang in self.languages else self.prose:
            result = rules.apply(document)
            if isinstance(result, Verdict):
                return result
            document = result
        return document

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with `text`, `reason` and `value` brought up to date; a dropped document keeps its text."""
        batch = with_verdicts(batch)
        texts, languages = batch.column("text").to_pylist(), batch.column("lang").to_pylist()
        reasons, values = batch.column("reason").to_pylist(), batch.column("value").to_pylist()
        rewritten = False
        for row, reason in enumerate(reasons):
            if reason is not None:
                continue
            result = self.judge(texts[row], languages[row])
            if isinstance(result, Verdict):
                reasons[row], values[row] = result
            elif result.text != texts[row]:
                texts[row] = result.text
                rewritten = True
        names = batch.schema.names
        batch = batch.set_column(names.index("reason"), REASON, pa.array(reasons, REASON.type))
        batch = batch.set_column(names.index("value"), VALUE, pa.array(values, VALUE.type))
        return with_text(batch, texts) if rewritten else batch
