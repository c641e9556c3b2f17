"""A checkpoint as what is evaluated: requests become token ids by the harness's rules, and the engine scores them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llmctl.config.errors import InputError
from llmctl.evals.requests import (
    Answer,
    Apart,
    Ending,
    Generation,
    Likelihood,
    Likely,
    Request,
    Rolling,
    Skipped,
    Written,
    key_of,
)
from llmctl.evals.scoring import split_pair
from llmctl.inference.engine import Engine
from llmctl.inference.request import Request as Generating
from llmctl.inference.score import Pair
from llmctl.tokens.chat import render_prompt
from llmctl.tokens.tokenizer import Tokenizer

TOO_LONG: Final = "too_long"


class LocalModel:
    """An engine that answers requests.

    Args:
        engine: open; closed by whoever opened it.
        identity: see `Model`.
        batch_tokens: most tokens of one forward pass.
        truncate: whether a prompt that the model cannot read whole is cut at its front, as the harness does.
    """

    at_once = 512
    texts_at_once = 128

    def __init__(self, engine: Engine, identity: str, *, batch_tokens: int, truncate: bool) -> None:
        self.engine, self.identity = engine, f"{identity}:{truncate}"
        self._tokenizer = engine.tokenizer
        self._batch_tokens, self._truncate = batch_tokens, truncate

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in order."""
        answers: list[Answer | None] = [None] * len(requests)
        scored: list[int] = []
        pairs: list[Pair] = []
        written: list[int] = []
        generating: list[Generating] = []
        for place, request in enumerate(requests):
            if isinstance(request, Generation):
                ready = self._generating(request)
                if isinstance(ready, Skipped):
                    answers[place] = ready
                else:
                    written.append(place)
                    generating.append(ready)
                continue
            windows = self._windows(request)
            if isinstance(windows, Skipped):
                answers[place] = windows
            else:
                scored += [place] * len(windows)
                pairs += windows
        self._score(answers, scored, pairs)
        endings = [request.ending for place in written if isinstance(request := requests[place], Generation)]
        for place, one in zip(written, self._written(generating, endings), strict=True):
            answers[place] = one
        return [answer if answer is not None else Likely(0.0, is_greedy=True) for answer in answers]

    def _written(self, asked: Sequence[Generating], endings: Sequence[Ending | None]) -> list[Written]:
        """What is written; a text that its budget cut gets its cue, and the answer behind it."""
        done = self.engine.generate(asked)
        texts = [Written(one.text, len(one.token_ids)) for one in done]
        cut = {at: end for at, end in enumerate(endings) if end is not None and done[at].finish_reason == "length"}
        behind = [self._behind(end, asked[at], done[at].token_ids) for at, end in cut.items()]
        for (at, end), said in zip(cut.items(), self.engine.generate(behind), strict=True):
            texts[at] = Written(texts[at].text + end.cue + said.text, texts[at].tokens + len(said.token_ids))
        return texts

    def _behind(self, ending: Ending, request: Generating, written: Sequence[int]) -> Generating:
        """The request for the answer behind the cue."""
        ids = [*request.prompt_ids, *written, *self._tokenizer.encode(ending.cue)]
        seed = None if request.seed is None else request.seed + 1
        return replace(request, prompt_ids=ids, max_tokens=ending.tokens, seed=seed)

    def _score(self, answers: list[Answer | None], places: Sequence[int], pairs: Sequence[Pair]) -> None:
        """Fill in the answers at `places`, each the sum of its windows."""
        for place, score in zip(places, self.engine.score(pairs, batch_tokens=self._batch_tokens), strict=True):
            before = answers[place]
            tokens = before.tokens if isinstance(before, Likely) else ()
            greedy = before.is_greedy if isinstance(before, Likely) else True
            total = (before.logprob if isinstance(before, Likely) else 0.0) + score.logprob
            answers[place] = Likely(total, greedy and score.is_greedy, tokens + score.token_logprobs)

    def _windows(self, request: Likelihood | Rolling) -> list[Pair] | Skipped:
        """What is scored: one pair, or those of the windows of a long text; none of an empty one."""
        if isinstance(request, Rolling):
            # A tokenizer's own BOS is a token like others here, as it is to the harness.
            ids = [*self._tokenizer.text_start, *self._tokenizer.encode(request.text)]
            return rolling_windows(ids, self._tokenizer.bos_id, self.engine.context)
        if isinstance(request, Apart):
            before, after = apart_of(request, self._tokenizer)
        else:
            before, after = pair_of(request, self._tokenizer)
        over = len(before) + len(after) - (self.engine.context + 1)
        if over <= 0:
            return [(before, after)]
        if self._truncate and over < len(before):
            return [(before[over:], after)]
        return self._too_long(len(before) + len(after) - 1)

    def _generating(self, request: Generation) -> Generating | Skipped:
        settings, tokenizer = request.settings, self._tokenizer
        if request.prompt.chat:
            ids, ends = render_prompt(tokenizer, request.prompt.messages), tokenizer.stop_ids
        else:
            ids, ends = [*tokenizer.text_start, *tokenizer.encode(request.prompt.text)], (tokenizer.eos_id,)
        ids = ids or [tokenizer.bos_id]
        most = settings.max_gen_toks
        if request.ending is not None:
            most += len(tokenizer.encode(request.ending.cue)) + request.ending.tokens
        room = self.engine.context - most
        if len(ids) > room:
            if not self._truncate or room < 1:
                return self._too_long(len(ids) + most)
            ids = ids[-room:]
        draws = settings.do_sample
        return Generating(
            ids,
            max_tokens=settings.max_gen_toks,
            temperature=settings.temperature if draws else 0.0,
            top_p=settings.top_p if draws else 1.0,
            top_k=settings.top_k if draws else 0,
            seed=_seed_of(request),
            stop=tuple(text for text in settings.until if text),
            stop_ids=ends,
        )

    def _too_long(self, tokens: int) -> Skipped:
        return Skipped(TOO_LONG, f"needs {tokens} tokens, the model reads {self.engine.context}")


def _seed_of(request: Generation) -> int:
    """Random numbers of one answer: they follow from what is asked, not from what else is."""
    return int.from_bytes(hashlib.sha256(key_of(request).encode()).digest()[:7])


def pair_of(request: Likelihood, tokenizer: Tokenizer) -> Pair:
    """Ids of a prompt and of its continuation, as the harness parts them.

    After a chat, the continuation is what the assistant says: it is encoded by itself, as it is in training and in
    generation.

    Raises:
        InputError: the continuation adds no token.
    """
    prompt = request.prompt
    if prompt.chat:
        before, after = render_prompt(tokenizer, prompt.messages), tokenizer.encode(request.continuation)
    elif prompt.text:
        before, after = split_pair(prompt.text, request.continuation, tokenizer.encode)
        before = [*tokenizer.text_start, *before] or [tokenizer.bos_id]
    else:
        before, after = [tokenizer.bos_id], tokenizer.encode(request.continuation)
        if len(after) > 1 and after[0] == tokenizer.bos_id:  # then it is its own context
            before, after = after[:1], after[1:]
    if not after:
        raise InputError(
            f"the continuation {request.continuation!r} adds no token to its prompt",
            hint="let the delimiter or the choice begin with a space",
        )
    return before, after


def apart_of(request: Apart, tokenizer: Tokenizer) -> Pair:
    """Ids that are shared with the other texts, and those that are not, as nanochat parts them; or the other way round.

    One token is scored at least, where a choice is the beginning of another.

    Raises:
        InputError: an empty text.
    """
    text = request.prompt.text + request.continuation
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    if len(ids) == 1:
        raise InputError("a choice is an empty text, which has no likelihood", hint="leave the item out")
    step = 1 if request.shared == "start" else -1
    others = [[tokenizer.bos_id, *tokenizer.encode(one)][::step] for one in request.others if one != text]
    common = min((_common(ids[::step], other) for other in others), default=0)
    at = common if request.shared == "start" else len(ids) - common
    at = min(max(at, 1), len(ids) - 1)
    return ids[:at], ids[at:]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two texts begin with together."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def rolling_windows(ids: Sequence[int], first: int, context: int) -> list[Pair]:
    """Every token once: the first window behind `first`; each later one predicts as many tokens as fit.

    A later window is filled up in front with what came before, so that its tokens see as much as they can.
    """
    pairs: list[Pair] = []
    done = min(context, len(ids))
    if done:
        pairs.append(([first], list(ids[:done])))
    while done < len(ids):
        end = min(done + context, len(ids))
        start = max(0, end - context - 1)
        pairs.append((list(ids[start:done]), list(ids[done:end])))
        done = end
    return pairs
