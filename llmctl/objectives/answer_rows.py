"""Answers in rows, one to a row: what a step learns from, and their log-probabilities under a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from llmctl.config.grpo import GrpoConfig
from llmctl.model import scoring
from llmctl.model.likelihood import LOGITS_AT_ONCE, Tensors, cross_entropies, hidden_states
from llmctl.model.transformer import Transformer
from llmctl.objectives.policy import corrections, token_weights
from llmctl.objectives.prompts import Prompt
from llmctl.objectives.rollouts import Answer, Doubles
from llmctl.tokens.batch import IGNORE, PADDING_DOCUMENT, Batch, padded_groups

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

    def logits_of(some: Tensor) -> Tensor:
        logits = model.logits(some)
        return logits if temperature == 1.0 else logits.float() / temperature

    return -cross_entropies(
        logits_of,
        states,
        batch.labels[batch.labels != IGNORE],
        logits_at_once=logits_at_once,
        vocab_size=model.vocab_size,
    )


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
    """A rank's micro-batches of a step, those of the longest answers first; none where none has a gradient.

    The weight of each token is that of the whole step, whatever is left out here and however it is dealt. Every rank
    has as many micro-batches as the others, a last one without targets where they do not come out even.

    Args:
        answers: of the step.
        prompts: by number.
        config: of the run.
        pad_id: what fills rows.
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
    sizes = [len(prompts[answers[at].prompt].ids) + answers[at].ids.size - 1 for at in active]
    groups = padded_groups(sizes, config.micro_batch_tokens)
    while len(groups) < min(lanes * ranks, len(active)):  # no lane idles
        groups.sort(key=len)
        most = groups.pop()
        groups += [most[: len(most) // 2], most[len(most) // 2 :]]

    def made(group: list[int]) -> Batch:
        some = [answers[active[at]] for at in group]
        return _batch(some, prompts, config, pad_id, weights[active][group] * len(active))

    own = [made(group) for group in groups[rank::ranks]]
    idle = -(-len(groups) // ranks) - len(own)
    return [*own, *(_blank(pad_id) for _ in range(idle))]


def _blank(pad_id: int) -> Batch:
    """A row of padding, for a rank that has nothing left while others have."""
    nothing = np.zeros((1, 1), dtype=np.int64)
    documents = np.full((1, 1), PADDING_DOCUMENT, dtype=np.int32)
    beside = {name: np.zeros((1, 1)) for name in BESIDE}
    return Batch(nothing + pad_id, nothing, documents, nothing + IGNORE, nothing[0], beside)


def _batch(
    answers: Sequence[Answer], prompts: Sequence[Prompt], config: GrpoConfig, pad_id: int, weights: Doubles
) -> Batch:
    """One row for each answer, and of each target, float64 [B,T], what the loss looks at beside it (`Batch.beside`).

    Targets are what the policy drew: the output of a tool is read, and is no target. `old`: log p of the
    weights that sampled. `advantage`: of its answer. `weight`: that its loss gets. `reference`: log p of the reference
    model, 0 where there is none. `correction`: see `corrections`. `value` and `return`: of a value head, what it said
    and should have said.
    """
    length = max(len(prompts[one.prompt].ids) + one.ids.size - 1 for one in answers)
    shape = (len(answers), length)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    documents = np.full(shape, PADDING_DOCUMENT, dtype=np.int32)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    beside = {name: np.zeros(shape) for name in BESIDE}
    for row, (one, weight) in enumerate(zip(answers, weights.tolist(), strict=True)):
        asked = prompts[one.prompt].ids
        count = len(asked) + one.ids.size - 1  # the last id predicts nothing
        place = len(asked) - 1 + one.places
        tokens[row, :count] = np.concatenate([np.array(asked, dtype=np.int64), one.ids[:-1]])
        positions[row, :count], documents[row, :count] = np.arange(count), 0
        labels[row, place] = one.ids[one.places]
        beside["old"][row, place] = one.logps if one.old is None else one.old
        beside["advantage"][row, place] = one.advantage if one.advantages is None else one.advantages
        beside["weight"][row, place] = weight
        beside["correction"][row, place] = _corrected(one, config)
        if one.reference is not None:
            beside["reference"][row, place] = one.reference
        if one.values is not None:
            beside["value"][row, place], beside["return"][row, place] = one.values, one.returns
    units = np.ones(len(answers), dtype=np.int64)
    return Batch(tokens, positions, documents, labels, units, beside)


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
    pad: int,
    run: Forward,
) -> list[Doubles]:
    """A figure of each id that the policy drew, under `model`, in order of the answers."""
    sizes = [len(prompts[one.prompt].ids) + one.ids.size - 1 for one in answers]
    found: dict[int, Doubles] = {}
    for group in padded_groups(sizes, config.micro_batch_tokens):
        some = [answers[at] for at in group]
        batch = Tensors.of(_batch(some, prompts, config, pad, np.zeros(len(some))), model.device)
        flat = run(functools.partial(_of, model, measure, batch)).double().cpu().numpy()
        ends = np.cumsum([one.size for one in some])
        found.update(zip(group, np.split(flat, ends[:-1]), strict=True))
    return [found[at] for at in range(len(answers))]


def _of(model: Transformer, measure: Measure, batch: Tensors, trained: Transformer) -> Tensor:
    """Of `model`, which need not be the one that is trained."""
    del trained
    return measure(model, batch)
