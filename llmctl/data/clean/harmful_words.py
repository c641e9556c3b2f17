"""Lists of harmful words: a hard one, of which one word is too many, and a soft one, with a tolerance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmctl.config.clean_steps import HarmfulWordsConfig
from llmctl.data.clean.kernel import Rule, Verdict
from llmctl.data.clean.urls import entries

WORD = re.compile(r"\w+")
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, Khmer, kana, Han


class WordList:
    """Words and phrases, found without regard to letter case.

    An entry counts as whole words, also over line ends and punctuation; entries of scripts that put no blanks
    between words count wherever they stand. One place in the text counts once, for the longest entry there.
    """

    def __init__(self, listed: Iterable[str]) -> None:
        self.phrases: dict[str, list[tuple[str, ...]]] = {}  # by first word, the longest first
        self.unspaced: list[str] = []
        for entry in dict.fromkeys(text.casefold() for text in listed):
            words = tuple(WORD.findall(entry))
            if UNSPACED.search(entry):
                self.unspaced.append(entry)
            elif words:
                self.phrases.setdefault(words[0], []).append(words)
        for phrases in self.phrases.values():
            phrases.sort(key=len, reverse=True)

    @classmethod
    def read(cls, path: Path) -> WordList:
        """The list in a UTF-8 text file: one entry a line, `#` starts a comment."""
        return cls(entry for _, entry in entries(path))

    def count(self, text: str) -> int:
        """How often entries occur in the text."""
        text = text.casefold()
        return sum(1 for _ in self._found(WORD.findall(text))) + sum(text.count(entry) for entry in self.unspaced)

    def _found(self, words: list[str]) -> Iterator[tuple[str, ...]]:
        start = 0
        while start < len(words):
            for phrase in self.phrases.get(words[start], ()):
                if tuple(words[start : start + len(phrase)]) == phrase:
                    yield phrase
                    start += len(phrase)
                    break
            else:
                start += 1


class HarmfulWords(Rule):
    """Drops documents with too many words of either list; the value is how many."""

    def __init__(self, config: HarmfulWordsConfig, hard: WordList | None, soft: WordList | None) -> None:
        self.limits = tuple(
            (reason, words, most)
            for reason, words, most in (
                ("hard_words", hard, config.max_hard),
                ("soft_words", soft, config.max_soft),
            )
            if words is not None
        )

    def judge(self, text: str) -> Verdict | None:
        """The first list with too many words in the text."""
        for reason, words, most in self.limits:
            if (count := words.count(text)) > most:
                return Verdict(reason, float(count))
        return None
