"""Answers in a given form: JSON of a schema, a regular expression, a choice, a grammar.

Compiled by llguidance, which says before each token which ids keep to the form.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmctl.config.errors import UsageError
from llmctl.inference.request import Constraint
from llmctl.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:  # loaded when the first form is asked for
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

JSON_LAYOUT: JsonCompileOptions = {"whitespace_flexible": True, "whitespace_pattern": r" |\n {0,16}"}
"""Between the parts of JSON: nothing, a space, or a line end and an indent. Unbounded, a weak model says only this."""
LARGEST = 1 << 16
KEPT = 64


class Matcher:
    """Where one answer stands in its form.

    Args:
        matcher: at the beginning.
        vocab_size: of the model.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> Tensor:
        """Bool [V], ids that may come next. None may where the form has become too complex to follow."""
        if self._matcher.is_error():
            return torch.zeros(self._vocab_size, dtype=torch.bool)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(allowed).bool() & (not self._matcher.is_error())

    def accept(self, token: int) -> bool:
        """Take a chosen id; return whether the form is complete, so that nothing can follow."""
        return bool(self._matcher.consume_token(token) and self._matcher.is_stopped())


class Forms:
    """Compiles forms for one tokenizer, and keeps the last few. Threads may share it.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._words: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the beginning of the form.

        Raises:
            UsageError: the form cannot be compiled, or is too large.
        """
        with self._lock:
            compiled = self._compiled.get(constraint)
            if compiled is None:
                compiled = self._compiled[constraint] = self._compile(constraint)
            self._compiled.move_to_end(constraint)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Matcher(compiled.deep_copy(), self._tokenizer.vocab_size)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        if len(constraint.text) > LARGEST:
            raise UsageError(f"the {constraint.kind} has more than {LARGEST} characters", hint="make it smaller")
        try:
            grammar = _grammar(constraint)
            matcher = LLMatcher(self._tokens(), grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
            fault = matcher.get_error() if matcher.is_error() else ""
        except ValueError as error:
            fault = str(error)
        if fault:
            told = " ".join(fault.split())[:300]
            raise UsageError(f"the {constraint.kind} cannot be compiled: {told}", hint="mend it, or ask without it")
        return matcher

    def _tokens(self) -> LLTokenizer:
        if self._words is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            self._words = LLTokenizer(
                TokenizerWrapper(_Words(self._tokenizer)), eos_token=list(self._tokenizer.stop_ids)
            )
        return self._words


class _Words:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = {index: text for text, index in tokenizer.special.items()}
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = [index for index in range(tokenizer.vocab_size) if not tokenizer.piece_bytes(index)]
        self.tokens = [
            tokenizer.piece_bytes(index) or names.get(index, f"<{index}>").encode()
            for index in range(tokenizer.vocab_size)
        ]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text.decode("utf-8", errors="replace"))


def _grammar(constraint: Constraint) -> str:
    """The form in llguidance's own language."""
    from llguidance import LLMatcher, grammar_from

    if constraint.kind == "json_schema":
        json.loads(constraint.text)  # says better than the compiler what is wrong
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides=JSON_LAYOUT)
    if constraint.kind == "choice":
        choices = json.loads(constraint.text)
        if not (isinstance(choices, list) and choices and all(isinstance(one, str) and one for one in choices)):
            raise ValueError("it must be a JSON list of strings, none empty")
    return grammar_from(constraint.kind, constraint.text)
