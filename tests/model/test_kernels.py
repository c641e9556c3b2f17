"""FlexAttention and FlashAttention against torch's own, where they run; what is chosen and what is said where not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.config.errors import UsageError
from llmctl.config.model import ModelConfig
from llmctl.model.attention import Scoring, packed
from llmctl.model.kernels import (
    FlashPacked,
    FlexPacked,
    attend_through,
    choose_backend,
    disagreement,
    document_starts,
)
from tests.model.shapes import SHAPE

CPU = torch.device("cpu")
SCORINGS: dict[str, Scoring] = {
    "plain": Scoring(),
    "scale": Scoring(scale=0.3),
    "window": Scoring(window=5),
    "softcap": Scoring(softcap=0.7),
    "slopes": Scoring(slopes=torch.tensor([0.5, 0.25, 0.1, 0.05])),
    "sinks": Scoring(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "all": Scoring(0.4, 7, 0.9, torch.tensor([0.5, 0.25, 0.1, 0.05]), torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


def documents() -> Tensor:
    """Two rows: three documents and padding; one document."""
    rows = torch.full((2, 40), -1, dtype=torch.int32)
    rows[0, :11], rows[0, 11:30], rows[0, 30:36] = 0, 1, 2
    rows[1] = 0
    return rows


def heads(value_width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 40, 4, 16, generator=generator),
        torch.randn(2, 40, 2, 16, generator=generator),
        torch.randn(2, 40, 2, value_width, generator=generator),
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", SCORINGS)
def test_flex_gives_what_sdpa_gives(name: str) -> None:
    given, (q, k, v) = documents(), heads()
    real = given >= 0
    ours = FlexPacked(given)(0, q, k, v, SCORINGS[name])
    theirs = packed(given)(0, q, k, v, SCORINGS[name])
    assert ours.shape == theirs.shape
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)
    assert not torch.allclose(ours[real], packed(given)(0, q, k, v)[real], atol=1e-3) or name == "plain"


def test_flash_is_given_each_document_apart() -> None:
    starts, longest = document_starts(documents())
    assert starts.tolist() == [0, 11, 30, 36, 40, 80]
    assert starts.dtype == torch.int32
    assert longest == 40
    q, k, v = heads()
    together = packed(documents())(0, q, k, v)
    for row, start, end in ((0, 0, 11), (0, 11, 30), (0, 30, 36), (1, 0, 40)):
        part = slice(start, end)
        alone = packed(torch.zeros(1, end - start, dtype=torch.int32))(
            0, q[row : row + 1, part], k[row : row + 1, part], v[row : row + 1, part]
        )
        assert torch.allclose(together[row, part], alone[0], atol=1e-5)


def test_what_flash_is_called_with_suits_it() -> None:
    q, k, v = (x.bfloat16() for x in heads())
    with pytest.raises(NotImplementedError, match="flash_attention_forward.*'CPU' backend"):  # and no earlier fault
        FlashPacked(*document_starts(documents()))(0, q, k, v, Scoring(scale=0.3, window=4))


def config(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**SHAPE, **changes})


@pytest.mark.parametrize(
    ("wanted", "compiled", "says"),
    [
        ("auto", True, "attention through sdpa (compiled)"),
        ("sdpa", False, "attention through sdpa"),
    ],
)
def test_sdpa_is_for_all(wanted: Any, compiled: bool, says: str) -> None:
    assert choose_backend(wanted, config(), CPU, torch.float32, compiled=compiled) == ("sdpa", says)


@pytest.mark.parametrize(
    ("changes", "dtype", "says"),
    [
        ({}, torch.float32, ""),
        ({"attention": {"window": 5}}, torch.float32, ""),
        ({}, torch.bfloat16, "not native: it computes in fp32 alone"),
        ({"positions": "alibi"}, torch.float32, "not native: it cannot express alibi"),
        ({"head_width": 24}, torch.float32, "not native: it cannot express heads whose width 16 does not divide"),
    ],
)
def test_a_cpu_has_a_kernel_of_its_own(changes: dict[str, Any], dtype: torch.dtype, says: str) -> None:
    backend, told = choose_backend("auto", config(**{"head_width": 32, **changes}), CPU, dtype)
    assert (backend, told) == (
        ("sdpa", f"attention through sdpa; {says}") if says else ("native", "attention through native")
    )


@pytest.mark.parametrize(("wanted", "says"), [("flex", "no backward pass on a CPU"), ("flash", "runs on GPUs alone")])
def test_what_cannot_be_had_is_refused_with_the_reason(wanted: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        choose_backend(wanted, config(), CPU, torch.float32)
    assert "attention_backend=auto" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "dtype", "says"),
    [
        ({}, torch.float32, "bf16 and fp16 alone"),
        ({"positions": "alibi"}, torch.bfloat16, "cannot express alibi"),
        ({"attention": {"softcap": 1.0, "sinks": True}}, torch.bfloat16, "cannot express soft-caps and sinks"),
        ({}, torch.bfloat16, "fails here"),
    ],
)
def test_an_accelerator_falls_back_and_says_why(changes: dict[str, Any], dtype: torch.dtype, says: str) -> None:
    # The meta device stands for an accelerator on which no kernel runs.
    backend, told = choose_backend("auto", config(**changes), torch.device("meta"), dtype)
    assert backend == "sdpa"
    assert told.startswith("attention through sdpa; not flash: ")
    assert says in told
    assert "not flex: it fails here" in told


def test_a_kernel_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreement("sdpa", config(), CPU, torch.float32) is None
    real = attend_through

    def wrong(backend: str, documents: Tensor, **more: Any) -> Any:
        return real("sdpa", torch.zeros_like(documents) if backend == "flex" else documents, **more)

    monkeypatch.setattr("llmctl.model.kernels.attend_through", wrong)
    assert "its result is off by" in str(disagreement("flex", config(), CPU, torch.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention and compiled FlexAttention want a GPU")
@pytest.mark.parametrize("backend", ["flash", "flex"])
def test_kernels_agree_on_a_gpu(backend: str) -> None:
    shape = config(width=256, head_width=64, attention={"window": 50})
    assert disagreement(backend, shape, torch.device("cuda"), torch.bfloat16) is None
