"""Kernels of our own against mathematics in float64: values and gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmctl.data import compiled
from llmctl.model import native
from llmctl.model.attention import Scoring, packed
from llmctl.model.kernels import attend_through
from llmctl.model.positions import rotary_angles, rotate

Function = Callable[..., Tensor]


def builds() -> list[str]:
    """What this processor runs."""
    return list(native.BUILDS[: compiled.library(native.__file__, "native").level() + 1])


@pytest.fixture(params=builds(), ids=lambda build: build or "plain")
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """Each build of the kernels in turn."""
    library = compiled.library(native.__file__, f"native{request.param}")
    monkeypatch.setattr(native, "_library", lambda: library)
    return library


def agree(ours: Function, exact: Function, *given: Tensor) -> None:
    """The same value and gradients of float32 through `ours` and of float64 through `exact`."""
    plain, double = ([x.to(kind, copy=True).requires_grad_() for x in given] for kind in (torch.float32, torch.float64))
    got, wanted = ours(*plain), exact(*double)
    weights = torch.randn(got.shape, dtype=torch.float64)
    (got * weights.float()).sum().backward()
    (wanted * weights).sum().backward()
    pairs = [(got, wanted), *((a.grad, b.grad) for a, b in zip(plain, double, strict=True))]
    for mine, theirs in pairs:
        assert mine is not None
        assert theirs is not None
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() <= 2e-5 * theirs.abs().max().clamp(min=1.0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("width", [1, 8, 19, 192])
def test_norms(build: ctypes.CDLL, width: int) -> None:
    def exact(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight

    agree(lambda x, weight: native.rms_norm(x, weight, 1e-5), exact, torch.randn(3, 41, width), torch.randn(width))


@pytest.mark.parametrize("width", [1, 8, 19, 64])
def test_gates(build: ctypes.CDLL, width: int) -> None:
    gate, up = 4 * torch.randn(3, 41, width), torch.randn(3, 41, width)
    gate[0, 0, 0], gate[1, 0, 0] = 200.0, -200.0  # where e^x has no float
    agree(native.gated, lambda gate, up: functional.silu(gate) * up, gate, up)


@pytest.mark.parametrize("width", [2, 24, 64])
def test_turns(build: ctypes.CDLL, width: int) -> None:
    angles = rotary_angles(torch.arange(40).view(2, 20), width, 10_000.0)

    def exact(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        cos, sin = (angle.double() for angle in (angles[0][..., : width // 2], angles[1][..., width // 2 :]))
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    agree(lambda x: rotate(x, angles), exact, torch.randn(2, 20, 3, width))


@pytest.mark.parametrize("width", [1, 7, 8, 100])
def test_cross_entropies(build: ctypes.CDLL, width: int) -> None:
    logits, targets = 5 * torch.randn(33, width), torch.arange(33) % width
    logits[0] += 1e4  # whose exponentials have no float
    agree(
        lambda x: native.cross_entropies(x, targets),
        lambda x: functional.cross_entropy(x, targets, reduction="none"),
        logits,
    )


@pytest.mark.parametrize("width", [1, 7, 8, 100])
def test_cross_entropies_of_what_is_projected(build: ctypes.CDLL, width: int) -> None:
    hidden, matrix, targets = 2 * torch.randn(33, 24), torch.randn(width, 24), torch.arange(33) % width
    hidden[0] *= 20  # one logit is all there is
    agree(
        lambda *given: native.projected_cross_entropies(*given, targets),
        lambda x, w: functional.cross_entropy(x @ w.t(), targets, reduction="none"),
        hidden,
        matrix,
    )


def test_of_a_frozen_matrix_the_hidden_states_learn_the_same(build: ctypes.CDLL) -> None:
    hidden, matrix, targets = torch.randn(33, 24), torch.randn(100, 24), torch.arange(33)
    grads = []
    for frozen in (False, True):
        states, weights = hidden.clone().requires_grad_(), matrix.clone().requires_grad_(not frozen)
        native.projected_cross_entropies(states, weights, targets).sum().backward()  # type: ignore[no-untyped-call]
        assert (weights.grad is None) == frozen
        assert states.grad is not None
        grads.append(states.grad)
    assert torch.equal(*grads)


def test_what_reaches_x_beside_a_norm_is_added_to_its_gradient(build: ctypes.CDLL) -> None:
    x, weight, grad, beside = torch.randn(5, 19), torch.randn(19), torch.randn(5, 19), torch.randn(5, 19)
    _, scales = native.norm(x, weight, 1e-5)
    alone, gain = native.norm_gradients(x, weight, scales, grad)
    both, same = native.norm_gradients(x, weight, scales, grad, beside)
    assert (both - alone - beside).abs().max() < 1e-6
    assert torch.equal(gain, same)


def rows_of(*lengths: int, length: int) -> Tensor:
    """int32 [2,T]: a row of documents of these lengths and padding behind them, and a row of one document."""
    first = [number for number, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor([first + [-1] * (length - len(first)), [0] * length], dtype=torch.int32)


@pytest.mark.parametrize(
    ("documents", "heads", "kv_heads", "widths", "scoring"),
    [
        (rows_of(1, length=1), 2, 2, (16, 16), Scoring()),
        (rows_of(1, 2, length=5), 4, 2, (16, 32), Scoring()),
        (rows_of(30, 49, 70, length=161), 6, 2, (32, 32), Scoring()),
        (rows_of(100, length=131), 3, 3, (64, 48), Scoring(scale=0.3)),
        (rows_of(30, 90, length=131), 4, 1, (32, 32), Scoring(window=7)),
        (rows_of(120, length=131), 2, 2, (32, 32), Scoring(window=50)),
    ],
)
def test_attention(
    build: ctypes.CDLL, documents: Tensor, heads: int, kv_heads: int, widths: tuple[int, int], scoring: Scoring
) -> None:
    (E, G), shape = widths, documents.shape
    q, k, v = torch.randn(*shape, heads, E), torch.randn(*shape, kv_heads, E), torch.randn(*shape, kv_heads, G)
    attend, exact, real = attend_through("native", documents), packed(documents), documents >= 0
    agree(
        lambda *given: attend(0, *given, scoring)[real],
        lambda *given: exact(0, *given, scoring)[real],
        q,
        k,
        v,
    )


def test_padding_mixes_nothing_and_learns_nothing() -> None:
    given = [torch.randn(2, 40, heads, 16, requires_grad=True) for heads in (2, 1, 1)]
    documents = rows_of(30, length=40)
    mixed = attend_through("native", documents)(0, *given)
    mixed.sum().backward()
    for x in (mixed, *(x.grad for x in given)):
        assert x is not None
        assert not x[documents < 0].any()
        assert x[documents >= 0].any()


def test_a_document_is_the_same_to_the_last_bit_whatever_lies_beside_it() -> None:
    def gradients(documents: Tensor, part: slice) -> list[Tensor]:
        given = [x[:, part].clone().requires_grad_() for x in (q, k, v)]
        mixed = attend_through("native", documents)(0, *given)
        (mixed * weights[:, part]).sum().backward()
        return [mixed, *(x.grad for x in given if x.grad is not None)]

    q, k, v, weights = (torch.randn(1, 200, heads, 32) for heads in (4, 2, 2, 4))
    documents = torch.tensor([[0] * 63 + [1] * 100 + [2] * 37], dtype=torch.int32)
    beside = gradients(documents, slice(None))
    alone = gradients(torch.zeros((1, 100), dtype=torch.int32), slice(63, 163))
    assert all(torch.equal(a[:, 63:163], b) for a, b in zip(beside, alone, strict=True))


def test_the_number_of_threads_changes_nothing() -> None:
    def gradients(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        given = [x.clone().requires_grad_() for x in (x0, weight0)]
        out = native.rms_norm(*given, 1e-5)
        native.cross_entropies(out, torch.arange(500)).sum().backward()
        return [x.grad for x in given if x.grad is not None]

    before, x0, weight0 = torch.get_num_threads(), torch.randn(500, 700), torch.randn(700)
    try:
        assert all(torch.equal(a, b) for a, b in zip(gradients(1), gradients(4), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("target", [-100, -1, 8, 10_000_000])
def test_a_target_that_there_is_none_of_is_refused(target: int) -> None:
    with pytest.raises(IndexError, match=r"outside 0\.\.7"):
        native.cross_entropies(torch.randn(3, 8), torch.tensor([0, target, 7]))


def test_attention_refuses_other_kinds_of_numbers() -> None:
    attend = attend_through("native", torch.zeros((1, 5), dtype=torch.int32))
    with pytest.raises(TypeError, match="in float32 on a CPU, not in torch.bfloat16"):
        attend(0, *(torch.randn(1, 5, 2, 16, dtype=torch.bfloat16) for _ in range(3)))


def test_other_kinds_of_numbers_are_left_to_torch() -> None:
    x = torch.randn(3, 8)
    assert native.serves(x)
    assert not native.serves(x, x.double())
    assert not native.serves(x.bfloat16())
    assert not native.serves(x.to("meta"))
