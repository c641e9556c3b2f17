"""Configuration of learning from rewards: what an answer is worth, and which loss its tokens get."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from llmctl.config.base import Config

Preset = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "rloo", "ppo"]
Baseline = Literal["group_mean", "leave_one_out", "value"]
AdvNorm = Literal["group", "batch", "none"]
Ratio = Literal["token", "sequence", "trajectory"]
LossAgg = Literal["grpo", "dr_grpo", "dapo", "bnpo", "seq_sum"]
KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "token", "sequence"]


class ClipConfig(Config):
    """How far a ratio of probabilities may go before it counts no more."""

    low: float = Field(default=0.2, ge=0, le=1, description="ratios count down to 1 - low")
    high: float = Field(default=0.2, ge=0, le=1000, description="ratios count up to 1 + high")
    dual: float | None = Field(
        default=None, gt=1, le=1000, description="a bad answer's loss is at most so many times its advantage"
    )


class KlConfig(Config):
    """What keeps the policy near its reference."""

    weight: float = Field(default=0.0, ge=0, le=1000, description="of the divergence; 0: no reference is looked at")
    estimator: KlEstimator = Field(
        default="k3", description="with x = log p - log p of the reference: k1 x, k2 x^2/2, k3 exp(-x) - 1 + x"
    )
    unbiased: bool = Field(
        default=True,
        description="in the loss: times the ratio of probabilities, which makes the gradient that of the divergence",
    )
    into: Literal["loss", "reward"] = Field(
        default="loss", description="loss: of each token, with a gradient; reward: summed over the answer, without"
    )


class ValueConfig(Config):
    """PPO's second output, which expects of every token what is still to come; for `baseline: value` alone."""

    weight: float = Field(default=0.1, ge=0, le=1000, description="of its loss beside the policy's")
    clip: float = Field(default=0.2, gt=0, le=1000, description="how far it may move from what it was at the rollout")
    discount: float = Field(default=1.0, gt=0, le=1, description="of what comes a token later (gamma)")
    decay: float = Field(default=0.95, ge=0, le=1, description="how far ahead advantages look (GAE's lambda)")


class PolicyConfig(Config):
    """Choices that the presets fill, each by itself."""

    baseline: Baseline = Field(
        default="group_mean",
        description="what an answer is compared with: its group, the others of it, or what a value head expects (PPO)",
    )
    value: ValueConfig = Field(default=ValueConfig(), description="Of the value head.")
    adv_norm: AdvNorm = Field(
        default="group", description="standard deviation that advantages are divided by: of the group, of all, or none"
    )
    ratio: Ratio = Field(
        default="token",
        description="log-ratio of a token: its own, the mean over its answer (GSPO), or the sum over it (RLOO)",
    )
    surrogate: Literal["clip", "cispo"] = Field(
        default="clip", description="clip: PPO's minimum; cispo: log p weighted by the ratio, cut at 1 + clip.high"
    )
    clip: ClipConfig = Field(default=ClipConfig(), description="How far ratios count.")
    loss_agg: LossAgg = Field(
        default="grpo",
        description="what the tokens' losses are divided by: grpo: an answer's length, then the number of answers; "
        "dr_grpo: max_new_tokens and answers; dapo: tokens of the whole rollout; bnpo: tokens of the step; "
        "seq_sum: answers",
    )
    kl: KlConfig = Field(default=KlConfig(), description="What keeps the policy near its reference.")
    correction: Correction = Field(
        default="none",
        description="weight for what the engine and the trainer compute differently: token: p / p of the engine up to "
        "correction_most; sequence: 0 for answers whose ratio is above it",
    )
    correction_most: float = Field(default=2.0, gt=1, le=1000, description="see correction")
    mask_truncated: bool = Field(
        default=False, description="answers that were cut at max_new_tokens count in the baseline, and not in the loss"
    )
    overlong_tokens: int = Field(
        default=0,
        ge=0,
        le=2**24,
        description="tokens before max_new_tokens over which the reward falls by up to 1 (DAPO's soft punishment)",
    )

    @model_validator(mode="after")
    def _cuts_one_way(self) -> PolicyConfig:
        if self.surrogate == "cispo" and self.clip.dual is not None:
            raise ValueError("clip.dual bounds PPO's minimum, and cispo takes none: leave it out")
        if self.baseline == "value" and self.adv_norm == "group":
            raise ValueError("adv_norm=group divides by what groups have, and a value head looks at none: take batch")
        return self


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "grpo": {},
    "dr_grpo": {"policy": {"adv_norm": "none", "loss_agg": "dr_grpo"}},
    "dapo": {"policy": {"clip": {"high": 0.28}, "loss_agg": "dapo"}, "dynamic_sampling": 4},
    "bnpo": {"policy": {"loss_agg": "bnpo"}},
    "gspo": {"policy": {"ratio": "sequence", "clip": {"low": 3e-4, "high": 4e-4}}},
    "cispo": {"policy": {"surrogate": "cispo", "clip": {"high": 4.0}, "loss_agg": "dapo"}},
    "rloo": {
        "policy": {
            "baseline": "leave_one_out",
            "adv_norm": "none",
            "ratio": "trajectory",
            "kl": {"weight": 0.05, "estimator": "k1", "into": "reward"},
        }
    },
    "ppo": {
        "policy": {
            "baseline": "value",
            "adv_norm": "batch",
            "loss_agg": "bnpo",
            "kl": {"weight": 0.05, "estimator": "k1", "into": "reward"},
        },
        "passes": 4,
    },
}
"""What each preset fills; whatever is said beside it holds."""
