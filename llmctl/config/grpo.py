"""Configuration of the stage that learns from rewards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import execution
from llmctl.config.gym import GymConfig
from llmctl.config.optimizers import AdamWConfig, OptimizerConfig
from llmctl.config.policy import PRESETS, PolicyConfig, Preset
from llmctl.config.rewards import ExactReward, RewardConfig, listed
from llmctl.config.schedules import ConstantConfig, ScheduleConfig
from llmctl.config.servers import ServerConfig
from llmctl.config.tools import ToolsConfig
from llmctl.config.train import AdaptableConfig

Missing = Literal["leave_out", "stop"]


class DrawsConfig(ServerConfig):
    """A server that draws the answers of rollouts, by the checkpoint that the policy begins with."""

    url: str = Field(default="", description="its address, up to /v1; the engine of this process draws where left out")
    push_to: str = Field(
        default="",
        description="a folder that the server sees too, for a vLLM in its development mode: the newest weights are "
        "written there before each rollout, and it is told to load them; it keeps its own where left out",
    )


class GrpoConfig(AdaptableConfig):
    """How a policy is improved by rewards for what it says.

    A rollout is `prompts_per_rollout` prompts with `group` answers each. It is learned from in
    `passes` passes of optimizer steps of `batch_rows` answers; then the next one is made by the new weights.
    """

    preset: Preset = Field("grpo", description="Fills the choices of policy that are not given: one published recipe.")
    policy: PolicyConfig = Field(default=PolicyConfig(), description="Advantages and loss.")
    rewards: tuple[RewardConfig, ...] = Field(
        (ExactReward(),),
        min_length=1,
        description="What answers are judged by: names, blocks, or file.py:function.",
    )
    missing: Missing = Field(
        "leave_out",
        description="An answer whose reward failed, hung or is no number: left out of baseline and loss, or the end.",
    )
    reward_timeout_s: float = Field(
        10.0, gt=0, le=86_400, description="Seconds after which a function or pattern counts as hanging on an answer."
    )
    group: int = Field(8, ge=2, le=4096, description="Answers to each prompt.")
    prompts_per_rollout: int = Field(8, ge=1, le=2**20, description="Prompts of one rollout.")
    batch_rows: int = Field(
        64, ge=1, le=2**20, description="Answers in one optimizer step; all of a rollout where left out."
    )
    passes: int = Field(1, ge=1, le=1000, description="How often a rollout is learned from.")
    epochs: float = Field(1.0, gt=0, le=10_000, description="Passes over the prompts; rounded up to whole rollouts.")
    max_new_tokens: int = Field(256, ge=1, le=2**24, description="Longest answer; what is longer is cut.")
    temperature: float = Field(
        1.0, gt=0, le=10, description="Logits are divided by it, in sampling and in the loss alike."
    )
    dynamic_sampling: int = Field(
        1,
        ge=1,
        le=100,
        description="How many batches of prompts may be tried to fill a rollout with groups whose rewards differ.",
    )
    gym: GymConfig | None = Field(
        None, description="Prompts that reasoning-gym makes, in place of --prompts: names of its tasks, or a block."
    )
    tools: ToolsConfig = Field(default=ToolsConfig(), description="What the policy may call while it answers.")
    ahead: bool = Field(
        default=False,
        description="Draw the next rollout while this one is learned from, by the weights of before.",
    )
    server: DrawsConfig = Field(DrawsConfig(), description="Draws the answers in place of this process's engine.")
    chat: bool | Literal["auto"] = Field(
        "auto", description="Put prompts through the chat template; auto: where the checkpoint was trained on chats."
    )
    heldout_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the prompts kept out of training for the held-out reward, by id."
    )
    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(lr=1e-6, weight_decay=0.0), description="Optimizer and its constants."
    )
    schedule: ScheduleConfig = Field(default=ConstantConfig(), description="Learning rate over the steps.")
    running: int = execution(64, ge=1, le=4096, description="Answers that are generated at one time.")
    micro_batch_tokens: int = execution(
        8192, ge=1, le=2**24, description="Tokens of one forward pass, padding included; one answer is always allowed."
    )
    largest_gap: float = Field(
        1e-4,
        gt=0,
        description="Largest difference between the engine's and the trainer's log p of a token in fp32, as a share of "
        "log p where that is below -1; beyond, the run stops.",
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_the_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        joined = _under(PRESETS.get(given.get("preset", "grpo"), {}), given)
        if given.get("gym") and "rewards" not in given:
            joined["rewards"] = "gym"
        if "batch_rows" not in given:  # one step for each rollout
            sizes = [joined.get(name, cls.model_fields[name].default) for name in ("group", "prompts_per_rollout")]
            if all(str(size).isdecimal() for size in sizes):
                joined["batch_rows"] = int(sizes[0]) * int(sizes[1])
        return joined

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards_by_name(cls, value: Any) -> Any:
        return listed(value)

    @model_validator(mode="after")
    def _dealt_evenly(self) -> GrpoConfig:
        answers = self.group * self.prompts_per_rollout
        if answers % self.batch_rows:
            raise ValueError(
                f"a rollout of {self.prompts_per_rollout} prompts x {self.group} answers cannot be dealt to steps of "
                f"batch_rows ({self.batch_rows}): give a divisor of {answers}"
            )
        return self

    @model_validator(mode="after")
    def _by_whole_answers(self) -> GrpoConfig:
        given = {
            "batch_ramp": self.batch_ramp is not None,
            "compile": self.compile,
            "micro_batch_rows": self.micro_batch_rows is not None,
        }
        if taken := [name for name, is_given in given.items() if is_given]:
            raise ValueError(f"leave out {' and '.join(taken)}: grpo trains on answers, in micro_batch_tokens")
        if self.zero == 3:
            raise ValueError("zero=3 shards the weights that answers are drawn with: take zero=0, 1 or 2")
        if self.server.push_to and (not self.server.url or self.lora is not None):
            raise ValueError("server.push_to pushes whole weights to server.url: give that, and leave out lora")
        if self.policy.baseline == "value" and self.lora is not None:
            raise ValueError("a value head is no adapter: leave out lora, or take another baseline")
        if self.tools.names and self.chat is False:
            raise ValueError("tools are called in chats: leave out chat=false")
        if self.optimizer.name == "sophia":
            raise ValueError(
                "sophia estimates its curvature from next tokens, not from rewards: take another optimizer"
            )
        return self

    @model_validator(mode="after")
    def _room_for_the_penalty(self) -> GrpoConfig:
        if self.policy.overlong_tokens > self.max_new_tokens:
            raise ValueError(
                f"policy.overlong_tokens ({self.policy.overlong_tokens}) must be at most max_new_tokens "
                f"({self.max_new_tokens})"
            )
        return self

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps that see each answer of a rollout once."""
        return self.group * self.prompts_per_rollout // self.batch_rows

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps until the next rollout."""
        return self.steps_per_pass * self.passes

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the rewards look at a reference model."""
        return self.policy.kl.weight > 0

    def resolved(self) -> dict[str, Any]:
        """Those of every training stage, and how rollouts are dealt to steps."""
        dealt = {name: value for name, value in super().resolved().items() if not name.startswith("micro_batch")}
        answers = self.group * self.prompts_per_rollout
        return {**dealt, "answers_per_rollout": answers, "steps_per_rollout": self.steps_per_rollout}


def _under(filled: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given`, and what `filled` has beyond it, block by block."""
    joined = {**filled, **given}
    for name, value in filled.items():
        if isinstance(value, dict) and isinstance(given.get(name), dict):
            joined[name] = _under(value, given[name])
    return joined
