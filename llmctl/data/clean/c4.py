"""C4 rules (Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.2)."""

from __future__ import annotations

import re
import unicodedata

from llmctl.config.rules import C4Config
from llmctl.data.clean.characters import SENTENCE_ENDS
from llmctl.data.clean.kernel import Verdict
from llmctl.data.clean.rules import Document, RuleSet
from llmctl.data.clean.splitter import split_chunk

LINE_ENDS = (".", "?", "!", '"', "'")
CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
POLICY_PHRASES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
# White space other than one space is a word to spaCy's sentencizer, and can open a sentence.
PIECE = re.compile(r"\S+|\s\s+|[^\S ]")


class C4(RuleSet):
    """Keeps the lines that read like sentences, and drops the document if these are few.

    The thresholds are fields of `C4Config`. Lines are judged from the top; the first line that drops the
    document ends it. The list of bad words of the paper is a filter of its own.
    """

    def __init__(self, config: C4Config) -> None:
        self.config = config

    def apply(self, document: Document) -> Document | Verdict:
        """The document with the lines that are kept, or why it is dropped."""
        kept: list[str] = []
        for line in document.lines:
            result = self.judge_line(line.strip())
            if isinstance(result, Verdict):
                return result
            if result is not None:
                kept.append(result)
        if (least := self.config.min_sentences) is not None and (found := count_sentences(kept, least)) < least:
            return Verdict("too_few_sentences", found)
        text = "\n".join(kept).strip()
        return document if text == document.text else Document(text, document.vocabulary)

    def judge_line(self, line: str) -> str | Verdict | None:
        """The line as it is kept; None if it goes; a verdict if the document goes."""
        limits = self.config
        longest = limits.max_word_length
        if longest is not None and len(line) > longest and max(map(len, line.split()), default=0) > longest:
            return None
        words = line.split(None, limits.min_line_words) if limits.min_line_words else ()
        if limits.remove_citations and "[" in line:
            line = CITATION.sub("", line)
        if limits.terminal_punctuation and (not line.endswith(LINE_ENDS) or line.endswith("...")):
            return None
        if limits.min_line_words and len(words) < limits.min_line_words:
            return None
        return self._judge_phrases(line, line.lower())

    def _judge_phrases(self, line: str, lowered: str) -> str | Verdict | None:
        limits = self.config
        if limits.drop_lorem_ipsum and "lorem ipsum" in lowered:
            return Verdict("lorem_ipsum", 1.0)
        if limits.drop_javascript_lines and "javascript" in lowered:
            return None
        if limits.drop_curly_brackets and "{" in line:
            return Verdict("curly_bracket", float(line.count("{")))
        if limits.drop_policy_lines and any(phrase in lowered for phrase in POLICY_PHRASES):
            return None
        return line


def count_sentences(lines: list[str], enough: int) -> int:
    """How many sentences the lines hold; the count stops at `enough`. Each line has one at least."""
    if len(lines) >= enough:
        return enough
    found = len(lines)
    for line in lines:
        found += line_breaks(line, enough - found)
        if found >= enough:
            return enough
    return found


def line_breaks(line: str, enough: int) -> int:
    """How many more sentences start within a line, by spaCy's rule; the count stops at `enough`.

    After a sentence end, the first word that is neither a sentence end nor punctuation starts a sentence.
    """
    found, ended = 0, False
    for piece in PIECE.finditer(line):
        for word in split_chunk(piece[0]) if not piece[0].isspace() else (piece[0],):
            if word in SENTENCE_ENDS:
                ended = True
            elif ended and not is_punctuation(word):
                found, ended = found + 1, False
                if found >= enough:
                    return found
    return found


def is_punctuation(word: str) -> bool:
    """Whether all characters are of Unicode's categories P."""
    return all(unicodedata.category(character).startswith("P") for character in word)
