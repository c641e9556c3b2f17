"""Optimizers by name, each with its own constants; the defaults are those of the papers where they give one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from llmctl.config.base import Config


def _below_one(betas: tuple[float, float]) -> tuple[float, float]:
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError("each beta must lie in [0, 1)")
    return betas


Betas = Annotated[tuple[float, float], AfterValidator(_below_one)]
LR = "Peak learning rate, reached at the end of the warm-up."
DECAY = "Decay of matrices, times the learning rate; gains and biases do not decay."


class _Optimizer(Config):
    """What the loop asks of every optimizer.

    Attributes:
        shards: whether it can update a shard of the parameters that knows nothing of their shapes.
    """

    shards: ClassVar[bool] = True


class AdamWConfig(_Optimizer):
    """AdamW (Loshchilov & Hutter, 2019): Adam with weight decay apart from the gradient."""

    name: Literal["adamw"] = Field(default="adamw", description="Which optimizer.")
    lr: float = Field(default=3e-3, gt=0, lt=10, description=LR)
    betas: Betas = Field(default=(0.9, 0.95), description="Decay of the averages of gradient and square.")
    eps: float = Field(default=1e-8, gt=0, lt=1, description="Added to the root of the second moment.")
    weight_decay: float = Field(default=0.1, ge=0, lt=10, description=DECAY)


class MuonConfig(_Optimizer):
    """Muon (Jordan et al., 2024): orthogonalised momentum for hidden matrices, AdamW for everything else.

    Updates are scaled by 0.2 sqrt(larger side), which gives them AdamW's usual size, so that one learning rate and
    one decay serve both (Liu et al., 2025, arXiv:2502.16982, section 2.2).
    """

    name: Literal["muon"] = Field(default="muon", description="Which optimizer.")
    lr: float = Field(default=3e-3, gt=0, lt=10, description=LR)
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Decay of the average of the gradient.")
    nesterov: bool = Field(default=True, description="Look ahead: orthogonalise gradient and average together.")
    ns_steps: int = Field(default=5, ge=1, le=20, description="Newton-Schulz iterations of one orthogonalisation.")
    weight_decay: float = Field(default=0.1, ge=0, lt=10, description=DECAY)
    rest_lr: float | None = Field(
        default=None, gt=0, lt=10, description="Peak rate of AdamW for embeddings, head, gains and biases; lr if unset."
    )
    betas: Betas = Field(default=(0.9, 0.95), description="AdamW's, for the rest.")
    eps: float = Field(default=1e-8, gt=0, lt=1, description="AdamW's, for the rest.")


class LionConfig(_Optimizer):
    """Lion (Chen et al., 2023, arXiv:2302.06675): the sign of an interpolated momentum.

    The paper advises a rate 3 to 10 times below AdamW's and a decay as many times above.
    """

    name: Literal["lion"] = Field(default="lion", description="Which optimizer.")
    lr: float = Field(default=3e-4, gt=0, lt=10, description=LR)
    betas: Betas = Field(default=(0.9, 0.99), description="Weight of the momentum in the update, and its own decay.")
    weight_decay: float = Field(default=1.0, ge=0, lt=10, description=DECAY)


class SophiaConfig(_Optimizer):
    """Sophia-G (Liu et al., 2023, arXiv:2305.14342): momentum over a clipped diagonal of the Gauss-Newton matrix.

    Every `interval` steps one more backward pass, with labels drawn from the model's own predictions, renews the
    estimate of the diagonal (Gauss-Newton-Bartlett, algorithm 2). It runs in a single process only.
    """

    shards: ClassVar[bool] = False

    name: Literal["sophia"] = Field(default="sophia", description="Which optimizer.")
    lr: float = Field(default=1e-3, gt=0, lt=10, description=LR)
    betas: Betas = Field(default=(0.96, 0.99), description="Decay of the averages of gradient and curvature.")
    gamma: float = Field(default=0.05, gt=0, lt=100, description="Scale of the curvature; smaller clips more.")
    eps: float = Field(default=1e-12, gt=0, lt=1, description="Least divisor.")
    interval: int = Field(default=10, ge=1, le=10**6, description="Steps between estimates of the curvature.")
    weight_decay: float = Field(default=0.2, ge=0, lt=10, description=DECAY)


class AdafactorConfig(_Optimizer):
    """Adafactor (Shazeer & Stern, 2018): Adam whose second moment is kept as a row and a column of each matrix."""

    shards: ClassVar[bool] = False

    name: Literal["adafactor"] = Field(default="adafactor", description="Which optimizer.")
    lr: float = Field(default=1e-2, gt=0, lt=10, description="Peak rate, relative to the size of each parameter.")
    beta2_decay: float = Field(default=-0.8, le=0, ge=-1, description="The second moment's decay is 1 - step^this.")
    clip_threshold: float = Field(default=1.0, ge=1, lt=100, description="Largest root mean square of an update.")
    weight_decay: float = Field(default=0.0, ge=0, lt=10, description=DECAY)


class Adam8bitConfig(_Optimizer):
    """AdamW with moments in 8 bits (Dettmers et al., 2022), from the package bitsandbytes; on a GPU only."""

    shards: ClassVar[bool] = False

    name: Literal["adamw8bit"] = Field(default="adamw8bit", description="Which optimizer.")
    lr: float = Field(default=3e-3, gt=0, lt=10, description=LR)
    betas: Betas = Field(default=(0.9, 0.95), description="Decay of the averages of gradient and square.")
    eps: float = Field(default=1e-8, gt=0, lt=1, description="Added to the root of the second moment.")
    weight_decay: float = Field(default=0.1, ge=0, lt=10, description=DECAY)


OptimizerConfig = Annotated[
    AdamWConfig | MuonConfig | LionConfig | SophiaConfig | AdafactorConfig | Adam8bitConfig,
    Field(discriminator="name"),
]
