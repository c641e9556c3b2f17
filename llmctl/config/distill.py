"""Configuration of distillation: how far a student is from its teacher, and how that is brought down."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, named
from llmctl.config.model import ModelConfig
from llmctl.config.optimizers import AdamWConfig, OptimizerConfig
from llmctl.config.train import AdaptableConfig, Learned

MOST_KEPT = 4096

Temperature = Annotated[
    float, Field(gt=0, le=100, description="divides the logits of both before they become probabilities")
]
Rest = Annotated[
    Literal["lump", "renormalise"],
    Field(
        description="what becomes of the mass beyond a teacher's top_k: one more class for both, or the teacher's kept "
        "probabilities are divided by their sum",
    ),
]


class _Tempered(Config):
    """A divergence of distributions under a temperature."""

    temperature: Temperature = 1.0
    squared: bool = Field(
        default=True,
        description="multiply the divergence by temperature^2, which keeps the size of its gradient (Hinton et al. "
        "2015, section 2.1)",
    )

    @property
    def scale(self) -> float:
        """What the divergence is multiplied by."""
        return self.temperature**2 if self.squared else 1.0


class ForwardKlConfig(_Tempered):
    """KL(teacher || student): the student covers all that the teacher does."""

    name: Literal["forward_kl"] = Field(default="forward_kl", description="which divergence")


class ReverseKlConfig(_Tempered):
    """KL(student || teacher): the student keeps to what the teacher does (MiniLLM, arXiv:2306.08543)."""

    name: Literal["reverse_kl"] = Field(default="reverse_kl", description="which divergence")


class JsdConfig(_Tempered):
    """Generalised Jensen-Shannon: b KL(teacher || m) + (1 - b) KL(student || m), m = b teacher + (1 - b) student.

    It tends to 0 as b tends to 0 or 1 (divided by b, or by 1 - b, to the forward or reverse KL), so both ends are left
    to the other two (Agarwal et al. 2023, arXiv:2306.13649).
    """

    name: Literal["jsd"] = Field(default="jsd", description="which divergence")
    beta: float = Field(default=0.5, gt=0, lt=1, description="b, the teacher's share of the mixture")


class TvdConfig(_Tempered):
    """Total variation: half the sum of |teacher - student| (f-distill, arXiv:2307.15190)."""

    name: Literal["tvd"] = Field(default="tvd", description="which divergence")


class UldConfig(_Tempered):
    """Sum of |teacher - student|, each from its likeliest token down, for teachers of other vocabularies.

    Universal logit distillation (Boizard et al. 2024, arXiv:2402.12030).
    """

    name: Literal["uld"] = Field(default="uld", description="which divergence")


AnyDivergence = ForwardKlConfig | ReverseKlConfig | JsdConfig | TvdConfig | UldConfig
DivergenceConfig = Annotated[AnyDivergence, Field(discriminator="name")]


class OnPolicyConfig(Config):
    """Which answers are the student's own, and how it gives them."""

    share: float = Field(0.5, gt=0, le=1, description="Part of the chats whose last answer the student gives itself.")
    max_new_tokens: int = Field(128, ge=1, le=2**20, description="Longest answer, up to what max_tokens leaves.")
    temperature: float = Field(1.0, ge=0, le=100, description="Of the student's sampling; 0 takes the likeliest token.")
    running: int = Field(16, ge=1, le=4096, description="Answers that are given at one time.")


class HiddenConfig(Config):
    """How close the student's last hidden states, projected to the teacher's width, come to the teacher's own."""

    weight: float = Field(1.0, gt=0, le=1e6, description="What the distance is multiplied by.")
    measure: Literal["mse", "cosine"] = Field(
        "mse", description="mse: mean square of the difference over the teacher's width; cosine: 1 - cosine."
    )


class DistillConfig(AdaptableConfig):
    """How a student learns a teacher's next-token distributions."""

    cuts_rows = True

    model: ModelConfig | None = Field(
        None, description="Shape of a fresh student, a preset's name or fields, where no --student is given."
    )
    loss: DivergenceConfig = Field(default=ForwardKlConfig(), description="Which divergence, and its constants.")
    cross_entropy: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the cross-entropy with the text's own tokens; the rest is the divergence's.",
    )
    top_k: int | None = Field(
        None,
        ge=1,
        le=MOST_KEPT,
        description="Score the text under the teacher once, keep so many of its likeliest tokens at each place, and "
        "train without it; where left out, the teacher scores every step in full.",
    )
    rest: Rest = "lump"
    learn: Learned = Field(
        "assistant",
        description="What of a chat is learned: all turns of the assistant, its last one, or every token.",
    )
    hidden: HiddenConfig | None = Field(
        None,
        description="Learn the teacher's last hidden states too, through a matrix that is thrown away: {weight: 1}.",
    )
    on_policy: OnPolicyConfig | None = Field(
        None,
        description="Learn from the student's own answers too, anew at each step: {share: 0.5, max_new_tokens: 128}; a "
        "step then has batch_rows chats.",
    )
    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(lr=5e-4, weight_decay=0.0), description="Optimizer and its constants."
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_by_name(cls, value: Any) -> Any:
        return named(value, "forward_kl")

    @model_validator(mode="after")
    def _optimizer_reads_gradients_alone(self) -> DistillConfig:
        if self.optimizer.name == "sophia":
            raise ValueError(
                "sophia estimates its curvature from next tokens, not from distributions: take another optimizer"
            )
        return self

    @model_validator(mode="after")
    def _divergence_is_finite(self) -> DistillConfig:
        if self.rest == "renormalise" and self.loss.name == "reverse_kl":
            raise ValueError(
                "the reverse KL is infinite where the teacher has no mass, as rest=renormalise has it beyond its "
                "top_k: leave out rest, or take another loss"
            )
        if self.rest == "renormalise" and self.top_k is None:
            raise ValueError("rest says what becomes of what top_k leaves out: give top_k with it")
        return self

    @model_validator(mode="after")
    def _other_vocabularies_are_read_anew(self) -> DistillConfig:
        if self.loss.name != "uld":
            return self
        for name in ("top_k", "hidden"):
            if getattr(self, name) is not None:
                raise ValueError(f"uld ranks all that a teacher of other tokens says of a text: leave out {name}")
        if self.learn == "all":
            raise ValueError("uld compares answers, and templates differ in the rest: leave out learn=all")
        if self.sequence_parallel > 1:
            raise ValueError("uld reads each row twice, cut in other places: leave out sequence_parallel")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> DistillConfig:
        if self.lora is not None and self.model is not None:
            raise ValueError("lora adapts a student that is there: give --student REF in place of model")
        return self

    @model_validator(mode="after")
    def _states_are_there(self) -> DistillConfig:
        if self.hidden is not None and self.top_k is not None:
            raise ValueError("hidden compares with states that are not kept: leave out top_k, or hidden")
        return self

    @model_validator(mode="after")
    def _own_answers_can_be_had(self) -> DistillConfig:
        if self.on_policy is None:
            return self
        if self.top_k is not None:
            raise ValueError("on_policy has texts that nobody knows before: leave out top_k, the teacher must be there")
        if self.uses_deepspeed:
            raise ValueError("on_policy trains in a single process: leave out nproc and zero, or on_policy")
        if self.learn == "all":
            raise ValueError("on_policy has answers to prompts, and learn=all makes no difference between them")
        return self
