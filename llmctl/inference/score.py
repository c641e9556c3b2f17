"""How likely given continuations are: the forward pass of generation, without choosing anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from llmctl.config.errors import UsageError
from llmctl.inference.request import Score
from llmctl.model.attention import packed
from llmctl.model.likelihood import LOGITS_AT_ONCE, cross_entropies
from llmctl.model.transformer import Transformer

Pair = tuple[Sequence[int], Sequence[int]]


class ScoreJob:
    """Pairs of context and continuation, cut into batches; its future gets their scores in the order given.

    Args:
        pairs: token ids of context and continuation, at least one each.
        batch_tokens: most tokens of one forward pass, padding included; one pair is always allowed.
        context: most tokens of a pair.
        vocab_size: ids must be below it.

    Raises:
        UsageError: a pair is empty on a side, too long, or holds an id that there is none of.
    """

    def __init__(self, pairs: Sequence[Pair], batch_tokens: int, context: int, vocab_size: int) -> None:
        for index, (before, after) in enumerate(pairs):
            _check(index, before, after, context, vocab_size)
        self.future: Future[list[Score]] = Future()
        self._pairs = pairs
        self._batches = batches([len(before) + len(after) - 1 for before, after in pairs], batch_tokens)
        self._batches.reverse()  # taken from the end
        self._scores: dict[int, Score] = {}
        self._finish_if_done()

    def step(self, model: Transformer) -> bool:
        """Score one batch; return whether it was the last."""
        batch = self._batches.pop()
        self._scores.update(zip(batch, score_batch(model, [self._pairs[i] for i in batch]), strict=True))
        return self._finish_if_done()

    def _finish_if_done(self) -> bool:
        if not self._batches:
            self.future.set_result([self._scores[index] for index in range(len(self._pairs))])
        return not self._batches


def _check(index: int, before: Sequence[int], after: Sequence[int], context: int, vocab_size: int) -> None:
    if not before or not after:
        side = "continuation" if before else "context"
        raise UsageError(f"pair {index} has an empty {side}", hint="a context needs one token at least, such as BOS")
    if len(before) + len(after) - 1 > context:
        raise UsageError(
            f"pair {index} has {len(before) + len(after)} tokens, the model's context is {context}",
            hint="shorten the context of the question",
        )
    if min(*before, *after) < 0 or max(*before, *after) >= vocab_size:
        raise UsageError(f"pair {index} holds a token id outside 0..{vocab_size - 1}", hint="use the model's tokenizer")


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped so that a group padded to its longest stays within `batch_tokens`, the longest group first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def score_batch(model: Transformer, pairs: Sequence[Pair]) -> list[Score]:
    """Score pairs in one forward pass, padded behind."""
    rows = [[*before, *after][:-1] for before, after in pairs]  # the last token predicts nothing that is asked
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)  # [B,T]
    documents = torch.tensor([[0] * len(row) + [-1] * (longest - len(row)) for row in rows], device=model.device)
    positions = torch.arange(longest, device=model.device).expand_as(tokens)
    hidden = model(tokens, positions, packed(documents))  # [B,T,D]
    row_of = [row for row, (_, after) in enumerate(pairs) for _ in after]
    place_of = [len(before) - 1 + step for before, after in pairs for step in range(len(after))]
    targets = torch.tensor([token for _, after in pairs for token in after], device=model.device)
    logprobs, greedy = _of_targets(model, hidden[row_of, place_of], targets)
    scores, start = [], 0
    for _, after in pairs:
        part = slice(start, start + len(after))
        scores.append(Score(math.fsum(logprobs[part]), all(greedy[part]), len(after)))
        start += len(after)
    return scores


def _of_targets(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability of each target, and whether it is the likeliest id: hidden [N,D], targets [N]."""
    likeliest: list[Tensor] = []

    def logits_of(states: Tensor) -> Tensor:
        logits = model.logits(states)  # [n,V]
        likeliest.append(logits.argmax(dim=-1))
        return logits

    losses = cross_entropies(logits_of, hidden, targets, logits_at_once=LOGITS_AT_ONCE, vocab_size=model.vocab_size)
    return (-losses).tolist(), (torch.cat(likeliest) == targets).tolist()
