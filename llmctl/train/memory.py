"""What a run holds in memory, for the message of one that runs out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from llmctl.config.errors import UsageError
from llmctl.config.train import TrainConfig
from llmctl.model.device import product_dtype
from llmctl.model.likelihood import LOGITS_AT_ONCE
from llmctl.model.transformer import Transformer
from llmctl.train.states import Trained

SAYS = ("out of memory", "can't allocate memory", "not enough memory")


def parts_of(model: Transformer, trained: Trained, config: TrainConfig, rows: int, seq_len: int) -> dict[str, int]:
    """Bytes of each part of one rank's memory, the largest first; activations and logits are estimates.

    A block keeps about 10 D + 3 F numbers of each token for the backward pass (its inputs of products, norms and
    gates), or D where it recomputes them.
    """
    held = list(trained.layout.held())
    shape, tokens = model.config, rows * seq_len
    size = (product_dtype(config.precision) or torch.float32).itemsize
    kept = shape.width if config.recompute == "full" else 10 * shape.width + 3 * shape.ffn_width
    state = [value for one in held for value in trained.optimizer.state.get(one, {}).values()]
    parts = {
        "parameters": sum(p.numel() * p.element_size() for p in model.parameters()),
        "gradients": sum(one.numel() * one.element_size() for one in held),
        "optimizer state": sum(v.numel() * v.element_size() for v in state if isinstance(v, torch.Tensor)),
        "activations of a micro-batch": tokens * kept * size * shape.layers,
        "logits": 2 * 4 * min(tokens * model.vocab_size, LOGITS_AT_ONCE),
    }
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


@contextmanager
def exhaustion_explained(
    model: Transformer, trained: Trained, config: TrainConfig, shape: Callable[[], tuple[int, int]]
) -> Iterator[None]:
    """Let a step that runs out of memory say what took it and what to change.

    Args:
        model: that is trained.
        trained: its tensors.
        config: of the run.
        shape: rows and tokens of a row in one forward pass, asked when it happens.

    Raises:
        UsageError: instead of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and the CPU's has no class of its own
        if not any(words in str(error).lower() for words in SAYS):
            raise
        rows, seq_len = shape()
        parts = parts_of(model, trained, config, rows, seq_len)
        told = ", ".join(f"{name} {size / 1e9:.3g} GB" for name, size in list(parts.items())[:3])
        raise UsageError(
            f"out of memory; the largest parts: {told}", hint=_remedy(config, next(iter(parts)), rows)
        ) from error


def _remedy(config: TrainConfig, largest: str, rows: int) -> str:
    """What makes the largest part smaller."""
    if largest in ("activations of a micro-batch", "logits"):
        ways = [f"micro_batch_rows={rows // 2}"] if rows > 1 else ["shorter rows (pack --seq-len)"]
        ways += ["recompute=full"] if config.recompute != "full" and not config.compile else []
        ways += ["precision=bf16"] if config.precision == "fp32" else []
    else:
        ways = ["--nproc N --zero 3" if config.zero < 3 else "more ranks"]
        ways += ["offload=cpu"] if config.offload == "none" else []
        ways += ["optimizer=muon or lion, which keep one moment"] if config.optimizer.name == "adamw" else []
    return "; or ".join(ways)
