"""Mixtures of experts in training: how evenly tokens are spread over all ranks, and the biases that even it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from llmctl.model.experts import balance_figures, layers_of, rebalance
from llmctl.model.transformer import Transformer


def end_step(model: Transformer, add: Callable[[Sequence[float]], Sequence[float]]) -> dict[str, float]:
    """Sum each expert's tokens and the tally over the ranks, move the biases, count anew.

    Collective where there are experts or a tally.

    Args:
        model: that was trained on.
        add: sums figures over the ranks.

    Returns:
        The figures of the step, nothing for a model that learns its next token alone.
    """
    tallied = _tallied(model, add)
    layers = [layer for layer in layers_of(model) if layer.load is not None]
    if not layers:
        return tallied
    counts = [float(count) for layer in layers if layer.load is not None for count in layer.load.tolist()]
    summed = torch.tensor(list(add(counts)), dtype=torch.int64)
    sizes = [layer.given.count for layer in layers]
    for layer, load in zip(layers, torch.split(summed, sizes), strict=True):
        assert layer.load is not None, "chosen by that"
        layer.load = load.to(layer.load.device)
    figures = balance_figures(model)
    rebalance(model)
    return {**figures, **tallied}


def _tallied(model: Transformer, add: Callable[[Sequence[float]], Sequence[float]]) -> dict[str, float]:
    """Means of the model's tally over all ranks, which begins anew."""
    tally, model.tally = model.tally, {}
    if not tally:
        return {}
    # Exactly rounded sums: micro-batches that are computed side by side note their figures in any order.
    flat = [figure for value, count in tally.values() for figure in (math.fsum(value.flatten().tolist()), count)]
    summed = list(add(flat))
    return {name: summed[2 * at] / max(1.0, summed[2 * at + 1]) for at, name in enumerate(tally)}


def forget_counts(model: Transformer) -> None:
    """Count anew, where a step does not count."""
    model.tally = {}
    for layer in layers_of(model):
        layer.load = None


@contextmanager
def not_training(model: Transformer) -> Iterator[None]:
    """While rows are scored: nothing is counted towards the balance."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
