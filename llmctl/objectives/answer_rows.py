"""Answers behind their prompts: what a step learns from, and their log-probabilities under a model.

A prompt lies once before all answers to it that are in one micro-batch; each answer sees it and itself alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.config.grpo import GrpoConfig
from llmctl.model import scoring
from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, hidden_states, losses_at
from llmctl.model.transformer import Transformer
from llmctl.objectives.policy import corrections, token_weights
from llmctl.objectives.prompts import Prompt
from llmctl.objectives.rollouts import Answer, Doubles
from llmctl.tokens.batch import HOME, IGNORE, PADDING_DOCUMENT, ROWS, Batch

BESIDE = ("old", "advantage", "weight", "reference", "correction", "value", "return")
Forward = Callable[[Callable[[Transformer], Tensor]], Tensor]
"""Calls a function of the trained model under the run's precision: `Strategy.forward`."""


def target_states(model: Transformer, batch: Tensors) -> Tensor:
    """Hidden states of the places that have a target, in row order; [N,D]."""
    return hidden_states(model, batch)[0][batch.labels != IGNORE]


def sampled_logps(
    model: Transformer,
    states: Tensor,
    batch: Tensors,
    temperature: float,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Log p of every target from its hidden state, of the distribution at `temperature`; [N], fp32.

    It is the distribution that answers are drawn from, so it is also what is learned. Only places with a target pass
    through the output matrix.
    """
    return -losses_at(model, states, batch.labels[batch.labels != IGNORE], logits_at_once, temperature=temperature)


def answer_batches(
    answers: Sequence[Answer],
    prompts: Sequence[Prompt],
    config: GrpoConfig,
    *,
    pad_id: int,
    rollout_tokens: float,
    lanes: int = 1,
    rank: int = 0,
    ranks: int = 1,
) -> list[Batch]:
    """A rank's micro-batches of a step, of about as many tokens each; none where no answer has a gradient.

    The weight of each token is that of the whole step, whatever is left out here and however it is dealt. Every rank
    has as many micro-batches as the others, a last one without targets where they do not come out even.

    Args:
        answers: of the step.
        prompts: by number.
        config: of the run.
        pad_id: what a micro-batch of nothing holds.
        rollout_tokens: see `token_weights`.
        lanes: how many micro-batches are computed at a time.
        rank: whose part is wanted.
        ranks: that the step is dealt to.
    """
    policy = config.policy
    counted = np.array([one.counts(policy) for one in answers])
    lengths = torch.tensor([one.size for one in answers])
    weights = token_weights(
        lengths,
        torch.from_numpy(counted),
        policy.loss_agg,
        longest=config.max_new_tokens,
        rollout_tokens=rollout_tokens,
    ).numpy()
    held = policy.baseline == "value" or (policy.kl.weight > 0 and policy.kl.into == "loss")
    active = [at for at, one in enumerate(answers) if counted[at] and (one.advantage != 0 or held)]
    groups = _dealt([answers[at] for at in active], prompts, config.micro_batch_tokens, lanes * ranks)

    def made(group: list[int]) -> Batch:
        some = [answers[active[at]] for at in group]
        return _batch(some, prompts, config, weights[active][group] * len(active))

    own = [made(group) for group in groups[rank::ranks]]
    idle = -(-len(groups) // ranks) - len(own)
    return [*own, *(_blank(pad_id) for _ in range(idle))]


def _dealt(answers: Sequence[Answer], prompts: Sequence[Prompt], most: int, parts: int) -> list[list[int]]:
    """Numbers of the answers, those to a prompt behind one another, cut to runs of about as many tokens to compute.

    Args:
        answers: to be dealt.
        prompts: by number.
        most: tokens of a run whose answers are rows with their prompts, padding included; one answer is always allowed.
        parts: a multiple of this many runs, where there are as many answers.
    """
    if not answers:
        return []
    sizes = np.array([_before(prompts, one) + one.ids.size for one in answers], dtype=np.int64)
    longest: dict[int, int] = {}
    for one, size in zip(answers, sizes.tolist(), strict=True):
        longest[one.prompt] = max(longest.get(one.prompt, 0), size)
    order = sorted(range(len(answers)), key=lambda at: (-longest[answers[at].prompt], answers[at].prompt, -sizes[at]))
    own = np.array([answers[at].ids.size for at in order], dtype=np.int64)
    told = [answers[at].prompt for at in order]
    goes_on = np.array([False, *(one == other for one, other in itertools.pairwise(told))])
    cost = np.where(goes_on, own, sizes[order])
    runs = parts * max(1, -(-int(sizes.sum()) // (most * parts)))
    while True:
        ends = _ends(cost, sizes[order] - cost, min(runs, len(order)))
        groups = [order[begin:end] for begin, end in itertools.pairwise([0, *ends])]
        if all(len(group) == 1 or len(group) * sizes[group].max() <= most for group in groups):
            return groups
        runs += parts


def _ends(cost: NDArray[np.int64], again: NDArray[np.int64], runs: int) -> list[int]:
    """Where to cut so many runs of nearly equal sums; none of them is empty.

    Args:
        cost: tokens of each answer, with the prompt that it is the first one to.
        again: tokens that are computed once more where a run begins with it.
        runs: how many.
    """
    starts = np.cumsum(cost) - cost
    found: list[int] = []
    for number in range(1, runs):
        near = int(np.argmin(np.abs(starts - cost.sum() * number / runs) + again))
        found.append(min(max(near, found[-1] + 1 if found else 1), len(cost) - runs + number))
    return [*found, len(cost)]


def _before(prompts: Sequence[Prompt], answer: Answer) -> int:
    """Tokens that an answer shares with others: its prompt's, without the last, whose state predicts its first id."""
    return len(prompts[answer.prompt].ids) - 1


def _blank(pad_id: int) -> Batch:
    """One token of padding, for a rank that has nothing left while others have."""
    nothing = np.zeros((1, 1), dtype=np.int64)
    documents = np.full((1, 1), PADDING_DOCUMENT, dtype=np.int32)
    beside = {**{name: np.zeros((1, 1)) for name in BESIDE}, ROWS: nothing[None], HOME: nothing}
    return Batch(nothing + pad_id, nothing, documents, nothing + IGNORE, nothing[0], beside)


def _batch(answers: Sequence[Answer], prompts: Sequence[Prompt], config: GrpoConfig, weights: Doubles) -> Batch:
    """Answers behind one another, and of each target, float64 [1,N], what the loss looks at beside it.

    Targets are what the policy drew: the output of a tool is read, and is no target. `old`: log p of the
    weights that sampled. `advantage`: of its answer. `weight`: that its loss gets. `reference`: log p of the reference
    model, 0 where there is none. `correction`: see `corrections`. `value` and `return`: of a value head, what it said
    and should have said.

    Args:
        answers: those to one prompt behind one another.
        prompts: by number.
        config: of the run.
        weights: of the tokens of each answer.
    """
    folded = Folded.of(answers, prompts)
    shape = (1, folded.tokens.size)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    beside: dict[str, NDArray[Any]] = {name: np.zeros(shape) for name in BESIDE}
    for one, start, weight in zip(answers, folded.starts, weights.tolist(), strict=True):
        place = start + one.places
        labels[0, place] = one.ids[one.places]
        beside["old"][0, place] = one.logps if one.old is None else one.old
        beside["advantage"][0, place] = one.advantage if one.advantages is None else one.advantages
        beside["weight"][0, place] = weight
        beside["correction"][0, place] = _corrected(one, config)
        if one.reference is not None:
            beside["reference"][0, place] = one.reference
        if one.values is not None:
            beside["value"][0, place], beside["return"][0, place] = one.values, one.returns
    beside |= {ROWS: folded.rows[None], HOME: folded.home[None]}
    units = np.array([len(answers)])
    return Batch(folded.tokens[None], folded.positions[None], folded.documents[None], labels, units, beside)


@dataclass(frozen=True)
class Folded:
    """Answers behind one another, each prompt (all but its last token) once, before the first answer to it.

    Attributes:
        tokens: int64 [N].
        positions: int64 [N], in a prompt with an answer.
        documents: int32 [N], the number of an answer, or one of a prompt behind those.
        starts: where each answer begins, with its prompt's last token.
        rows: int64 [R,T], the places of each answer with its prompt; -1 behind its end.
        home: int64 [N], see `llmctl.model.unfolded`.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int32]
    starts: list[int]
    rows: NDArray[np.int64]
    home: NDArray[np.int64]

    @classmethod
    def of(cls, answers: Sequence[Answer], prompts: Sequence[Prompt]) -> Folded:
        """Of answers of which those to one prompt lie behind one another."""
        length = max(_before(prompts, one) + one.ids.size for one in answers)
        rows = np.full((len(answers), length), -1, dtype=np.int64)
        parts: list[tuple[NDArray[np.int64], int, int]] = []  # tokens, position of the first, document
        starts: list[int] = []
        homes: list[NDArray[np.int64]] = []
        end = shared = 0
        for number, one in enumerate(answers):
            ids, before = np.array(prompts[one.prompt].ids, dtype=np.int64), _before(prompts, one)
            if number == 0 or answers[number - 1].prompt != one.prompt:
                parts.append((ids[:-1], 0, len(answers) + number))
                homes.append(number * length + np.arange(before))
                shared, end = end, end + before
            parts.append((np.concatenate([ids[-1:], one.ids[:-1]]), before, number))  # the last id predicts nothing
            homes.append(number * length + before + np.arange(one.ids.size))
            rows[number, :before] = shared + np.arange(before)
            rows[number, before : before + one.ids.size] = end + np.arange(one.ids.size)
            starts.append(end)
            end += one.ids.size
        return cls(
            np.concatenate([tokens for tokens, _, _ in parts]),
            np.concatenate([begin + np.arange(tokens.size) for tokens, begin, _ in parts]),
            np.concatenate([np.full(tokens.size, number, dtype=np.int32) for tokens, _, number in parts]),
            starts,
            rows,
            np.concatenate(homes),
        )


def _corrected(answer: Answer, config: GrpoConfig) -> Doubles:
    """Weights of an answer's tokens."""
    policy = config.policy
    if answer.old is None:
        return np.ones(answer.size)
    old, sampler = torch.from_numpy(answer.old), torch.from_numpy(answer.logps)
    which = torch.zeros(answer.size, dtype=torch.int64)
    found: Doubles = corrections(old, sampler, which, 1, policy.correction, policy.correction_most).numpy()
    return found


Measure = Callable[[Transformer, Tensors], Tensor]
"""One figure of each target of a batch, in row order: [N]."""


def logps_at(temperature: float) -> Measure:
    """The log-probabilities that answers are drawn with."""

    def measure(model: Transformer, batch: Tensors) -> Tensor:
        return sampled_logps(model, target_states(model, batch), batch, temperature)

    return measure


def expected(model: Transformer, batch: Tensors) -> Tensor:
    """What the value head expects before each target."""
    return scoring.scores(model, target_states(model, batch))


@torch.no_grad()
def score(
    model: Transformer,
    measure: Measure,
    *,
    answers: Sequence[Answer],
    prompts: Sequence[Prompt],
    config: GrpoConfig,
    run: Forward,
) -> list[Doubles]:
    """A figure of each id that the policy drew, under `model`, in order of the answers."""
    found: dict[int, Doubles] = {}
    for group in _dealt(answers, prompts, config.micro_batch_tokens, 1):
        some = [answers[at] for at in group]
        batch = Tensors.of(_batch(some, prompts, config, np.zeros(len(some))), model.device)
        flat = run(functools.partial(_of, model, measure, batch)).double().cpu().numpy()
        ends = np.cumsum([one.size for one in some])
        found.update(zip(group, np.split(flat, ends[:-1]), strict=True))
    return [found[at] for at in range(len(answers))]


def _of(model: Transformer, measure: Measure, batch: Tensors, trained: Transformer) -> Tensor:
    """Of `model`, which need not be the one that is trained."""
    del trained
    return measure(model, batch)
