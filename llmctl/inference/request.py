"""What is asked of the engine and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from llmctl.config.errors import UsageError
from llmctl.tokens.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]
LARGEST_LOGPROBS = 1024


@dataclass(frozen=True)
class Constraint:
    """The form that an answer must have.

    Attributes:
        kind: `json_schema`; `regex`, which the whole answer matches; `choice`, a JSON list of strings; `grammar`, in
            the GBNF of llama.cpp or in the Lark dialect of llguidance.
        text: the form itself.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    Attributes:
        prompt_ids: token ids, BOS included where the model wants one; at least one.
        max_tokens: most tokens to generate; None for as many as the context holds; 0 only with `prompt_logprobs`.
        temperature: divides the logits; 0 takes the likeliest token always.
        top_k: sample among the k likeliest only (and what ties with the last); 0 for all.
        top_p: sample among the fewest likeliest whose probabilities reach this sum.
        min_p: sample among those at least min_p times as likely as the likeliest only.
        typical_p: sample among the fewest whose surprise is nearest to the expected one and that reach this sum.
        repetition_penalty: divides positive and multiplies negative logits of ids in prompt or answer; 1 for none.
        presence_penalty: taken from the logits of ids that the answer holds.
        frequency_penalty: the same for each time that the answer holds them.
        logit_bias: added to the logits of these ids.
        allowed_ids: the only ids that may come, stop ids among them where it is to end; None for all.
        banned_ids: ids that never come.
        min_tokens: before so many tokens neither a stop id comes nor does a stop string count.
        seed: of this request's own random numbers, so the answer does not depend on other requests; None for a
            fresh one.
        stop: strings that end the answer; they are not part of its text.
        stop_ids: token ids that end the answer; None for the tokenizer's.
        logprobs: how many likeliest tokens to report beside each chosen one, with natural log-probabilities of the
            distribution that `logprobs_of` names; None for no log-probabilities at all.
        logprobs_of: `raw` for the model's own distribution; `sampled` for the one that is drawn from, after penalties,
            temperature and truncation.
        prompt_logprobs: the same for the tokens of the prompt, always raw; its first token has none.
        cache_salt: cached prefixes are shared among requests of one salt only, so that nobody can tell by the time to
            the first token what someone else has asked.
        spelled_ids: special ids whose names are part of the text, where others have none.
        constraint: the form of the answer; it is whole where finish_reason is `stop`, cut where it is `length`.

    Raises:
        UsageError: a value is out of bounds.
    """

    prompt_ids: Sequence[int]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_ids: Sequence[int] | None = None
    banned_ids: Sequence[int] = ()
    min_tokens: int = 0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] | None = None
    logprobs: int | None = None
    logprobs_of: Literal["raw", "sampled"] = "raw"
    prompt_logprobs: int | None = None
    cache_salt: str = ""
    spelled_ids: Sequence[int] = ()
    constraint: Constraint | None = None

    def ends(self, tokenizer: Tokenizer | None) -> frozenset[int]:
        """Ids that end the answer: its own, or the tokenizer's; none without either."""
        if self.stop_ids is not None:
            return frozenset(self.stop_ids)
        return frozenset(tokenizer.stop_ids if tokenizer is not None else ())

    def __post_init__(self) -> None:
        for name, (fine, rule) in {**self._bounds(), **self._sampling_bounds()}.items():
            if not fine:
                raise UsageError(f"{name}: {rule}, got {getattr(self, name)!r}")

    def _bounds(self) -> dict[str, tuple[bool, str]]:
        least = 1 if self.prompt_logprobs is None else 0
        return {
            "prompt_ids": (len(self.prompt_ids) > 0, "needs at least one token, such as BOS"),
            "max_tokens": (self.max_tokens is None or self.max_tokens >= least, f"must be at least {least}"),
            "min_tokens": (
                0 <= self.min_tokens <= (math.inf if self.max_tokens is None else self.max_tokens),
                "must be from 0 to max_tokens",
            ),
            "seed": (self.seed is None or 0 <= self.seed < 2**64, "must be from 0 to 2^64 - 1"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "must be a list of strings that are not empty"),
            "logprobs": (_countable(self.logprobs), f"must be 0 to {LARGEST_LOGPROBS}"),
            "logprobs_of": (self.logprobs_of in ("raw", "sampled"), "must be raw or sampled"),
            "prompt_logprobs": (_countable(self.prompt_logprobs), f"must be 0 to {LARGEST_LOGPROBS}"),
        }

    def _sampling_bounds(self) -> dict[str, tuple[bool, str]]:
        return {
            "temperature": (math.isfinite(self.temperature) and self.temperature >= 0, "must be at least 0"),
            "top_k": (self.top_k >= 0, "must be at least 0 (0 for no limit)"),
            "top_p": (0 < self.top_p <= 1, "must be above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "must be from 0 to 1"),
            "typical_p": (0 < self.typical_p <= 1, "must be above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "must be a number above 0"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "must be a finite number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "must be a finite number"),
            "logit_bias": (all(map(math.isfinite, self.logit_bias.values())), "must hold finite numbers"),
            "allowed_ids": (
                self.allowed_ids is None or bool(set(self.allowed_ids) - set(self.banned_ids)),
                "must hold an id that is not banned",
            ),
        }

    @cached_property
    def bends(self) -> bool:
        """Whether the settings change logits before temperature and truncation."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.banned_ids
            or self.allowed_ids is not None
        )

    @property
    def named_ids(self) -> set[int]:
        """Every id that the settings name, which the model must have."""
        return {*self.logit_bias, *(self.allowed_ids or ()), *self.banned_ids, *self.spelled_ids}


def _countable(logprobs: int | None) -> bool:
    return logprobs is None or 0 <= logprobs <= LARGEST_LOGPROBS


class TokenLogprob(NamedTuple):
    """A token's log-probability.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability.
        top: ids and log-probabilities of the likeliest tokens, likeliest first; as many as were asked for, fewer where
            no others can come at all.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What one step added to an answer.

    Attributes:
        token_ids: the new tokens; the one that ended the answer is among them.
        text: text that is final now; it lags behind the tokens while a character is incomplete or a stop string may
            have begun. The texts of all events, joined, are the answer's text.
        finish_reason: None until the last event; `stop` for a stop id or string, `length` for max_tokens or the
            context, `cancelled` for `Handle.cancel`.
        logprobs: one for each token, where asked for.
        prompt_logprobs: one for each token of the prompt, None for its first, in the first event; where asked for.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer; the fields are those of its events, joined."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True)
class Score:
    """How likely a continuation is.

    Attributes:
        logprob: sum of the natural log-probabilities of its tokens.
        is_greedy: whether each of its tokens is the likeliest one in its place.
        token_logprobs: of each of its tokens, natural logarithms.
    """

    logprob: float
    is_greedy: bool
    token_logprobs: tuple[float, ...]

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.token_logprobs)
