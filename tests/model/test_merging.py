"""Merging, each method against its formula and the figures of other implementations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.model.merging import dropped, generator_of, largest, linear, slerp, task, ties

CHANGES = [torch.tensor([0.5, -0.4]), torch.tensor([-0.3, -0.6])]
WEIGHTS = [0.3, 0.9]


def test_a_mean_and_a_sum() -> None:
    torch.testing.assert_close(linear(CHANGES, WEIGHTS), torch.tensor([-0.12 / 1.2, -0.66 / 1.2]))
    torch.testing.assert_close(task(CHANGES, WEIGHTS), torch.tensor([-0.12, -0.66]))


@pytest.mark.parametrize(("variant", "expected"), [("mergekit", [-0.30, -0.55]), ("peft", [0.15, -0.33])])
def test_ties_as_two_libraries_have_it(variant: str, expected: list[float]) -> None:
    torch.testing.assert_close(ties(CHANGES, WEIGHTS, 1.0, variant), torch.tensor(expected))


def test_ties_keeps_the_largest() -> None:
    assert largest(torch.tensor([[1.0, -3.0], [2.0, -2.0]]), 0.5).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert ties([torch.tensor([1.0, 3.0])], [1.0], 0.5, "mergekit").tolist() == [0.0, 3.0]


def test_the_arc_keeps_the_lengths_of_its_ends() -> None:
    ends = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(slerp(*ends, 0.25), torch.tensor([0.923880, 0.765367]))
    assert slerp(*ends, 0.0).tolist() == pytest.approx([1, 0], abs=1e-7)
    assert slerp(*ends, 1.0).tolist() == pytest.approx([0, 2], abs=1e-7)
    same = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(slerp(same, 2 * same, 0.25), 1.25 * same)
    torch.testing.assert_close(slerp(torch.zeros(2), same, 0.5), 0.5 * same)


@given(st.floats(0.05, 1), st.floats(0, 1))
def test_the_arc_between_unit_vectors_is_of_unit_vectors(angle: float, at: float) -> None:
    made = slerp(torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)]), at)
    torch.testing.assert_close(made, torch.tensor([math.cos(at * angle), math.sin(at * angle)]), atol=1e-5, rtol=1e-5)


def test_dare_drops_by_chance_and_keeps_the_mean() -> None:
    change = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    kept = dropped(change, 0.3, "peft", generator_of(1, "a", "w"))
    stays = kept != 0
    assert stays.float().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(kept[stays], change[stays] / 0.3)
    scaled = dropped(change, 0.3, "mergekit", generator_of(1, "a", "w"))
    assert (scaled != 0).equal(stays)
    assert scaled.abs().sum().item() == pytest.approx(change.abs().sum().item(), rel=1e-5)
    other = dropped(change, 0.3, "peft", generator_of(1, "b", "w"))
    assert not (other != 0).equal(stays)
    assert dropped(change, 1.0, "peft", generator_of(1, "a", "w")).equal(change)
    assert dropped(torch.zeros(3), 0.5, "mergekit", generator_of(0, "a")).tolist() == [0, 0, 0]
