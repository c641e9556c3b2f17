"""Configuration of learning from preferences: which loss over a pair of answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmctl.config.base import Config

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


class _Referenced(Config):
    """A loss of log-ratios to a reference model."""

    beta: float = Field(default=0.1, gt=0, le=1000, description="weight of the log-ratios: how far to stay close")
    divergence: Divergence = Field(
        default="reverse_kl", description="what keeps the policy near its reference (f-DPO, arXiv:2309.16240)"
    )
    alpha: float = Field(default=0.5, gt=0, lt=1, description="of the alpha divergence alone")


class SigmoidConfig(_Referenced):
    """DPO (Rafailov et al. 2023); with label smoothing, conservative DPO."""

    name: Literal["sigmoid"] = Field(default="sigmoid", description="which loss")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of the pairs that are taken to be the wrong way round"
    )


class RobustConfig(_Referenced):
    """Robust DPO (Chowdhury et al. 2024): unbiased where that share of the pairs is wrong."""

    name: Literal["robust"] = Field(default="robust", description="which loss")
    label_smoothing: float = Field(default=0.1, gt=0, lt=0.5, description="share of the pairs that are wrong")


class HingeConfig(_Referenced):
    """SLiC and RSO's hinge (Liu et al. 2023)."""

    name: Literal["hinge"] = Field(default="hinge", description="which loss")


class IpoConfig(_Referenced):
    """IPO (Azar et al. 2023)."""

    name: Literal["ipo"] = Field(default="ipo", description="which loss")
    average: bool = Field(
        default=False, description="log-ratios are averaged over an answer's tokens, in place of summed"
    )


class SigmoidNormConfig(_Referenced):
    """DPO on log-ratios averaged over an answer's tokens (Tülu 3's dpo_norm)."""

    name: Literal["sigmoid_norm"] = Field(default="sigmoid_norm", description="which loss")
    beta: float = Field(default=5.0, gt=0, le=1000, description="weight of the averaged log-ratios")


class SimPoConfig(Config):
    """SimPO (Meng et al. 2024): no reference, averaged log-probabilities, a margin."""

    name: Literal["simpo"] = Field(default="simpo", description="which loss")
    beta: float = Field(default=2.0, gt=0, le=1000, description="weight of the averaged log-probabilities")
    gamma: float = Field(default=0.5, ge=0, description="margin, not multiplied by beta")


class CpoConfig(Config):
    """CPO (Xu et al. 2024): no reference; a preference and the likelihood of the chosen answer."""

    name: Literal["cpo"] = Field(default="cpo", description="which loss")
    beta: float = Field(default=0.1, gt=0, le=1000, description="weight of the summed log-probabilities")
    alpha: float = Field(default=1.0, ge=0, description="weight of the chosen answer's loss for each token")


class OrpoConfig(Config):
    """ORPO (Hong et al. 2024): no reference; the likelihood of the chosen answer and a ratio of odds."""

    name: Literal["orpo"] = Field(default="orpo", description="which loss")
    beta: float = Field(default=0.1, gt=0, le=1000, description="weight of the odds ratio (the paper's lambda)")


class RrhfConfig(Config):
    """RRHF (Yuan et al. 2023): no reference; answers ranked by averaged log-probability, and the best one's loss."""

    name: Literal["rrhf"] = Field(default="rrhf", description="which loss")
    alpha: float = Field(default=1.0, ge=0, description="weight of the chosen answer's loss")


class KtoConfig(Config):
    """KTO (Ethayarajh et al. 2024): answers that are good or bad each by itself."""

    name: Literal["kto"] = Field(default="kto", description="which loss")
    beta: float = Field(default=0.1, gt=0, le=1000, description="weight of the log-ratios")
    desirable_weight: float = Field(default=1.0, gt=0, description="weight of good answers")
    undesirable_weight: float = Field(default=1.0, gt=0, description="weight of bad answers")


PairLossConfig = (
    SigmoidConfig
    | RobustConfig
    | HingeConfig
    | IpoConfig
    | SigmoidNormConfig
    | SimPoConfig
    | CpoConfig
    | OrpoConfig
    | RrhfConfig
)
PreferenceLossConfig = Annotated[PairLossConfig | KtoConfig, Field(discriminator="name")]


def needs_reference(config: PairLossConfig | KtoConfig) -> bool:
    """Whether the loss compares with a reference model."""
    return not isinstance(config, SimPoConfig | CpoConfig | OrpoConfig | RrhfConfig)


class RewardLossConfig(Config):
    """Bradley and Terry's model of which of two answers is preferred."""

    margin: bool = Field(default=False, description="subtract each pair's `margin` from the difference of its scores")
    centring: float = Field(
        default=0.0, ge=0, le=1, description="weight of the squared sum of the scores, which keeps them around zero"
    )
