"""Configuration of the training stages: one base, and what pretrain and sft add to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import INTEGER_LIMIT, Config, execution
from llmctl.config.devices import Device, Precision
from llmctl.config.heldout import HELDOUT_FRACTION
from llmctl.config.model import ModelConfig


class AdamWConfig(Config):
    """AdamW (Loshchilov & Hutter, 2019): Adam with weight decay apart from the gradient."""

    name: Literal["adamw"] = Field(default="adamw", description="Which optimizer.")
    lr: float = Field(default=3e-3, gt=0, lt=10, description="Peak learning rate, reached at the end of the warm-up.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Decay of the averages of gradient and square.")
    eps: float = Field(default=1e-8, gt=0, lt=1, description="Added to the root of the second moment.")
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        lt=10,
        description="Decay of matrices, times the learning rate; gains and biases do not decay.",
    )

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError("each beta must lie in [0, 1)")
        return betas


class _Schedule(Config):
    """Warm-up, which every schedule has: linear from lr/warm-up steps to lr."""

    warmup_steps: int | None = Field(default=None, ge=0, description="Steps of warm-up, in place of warmup_fraction.")
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1, description="Warm-up as a share of all steps, rounded up.")
    final_fraction: float = Field(default=0.1, ge=0, le=1, description="Last learning rate, as a share of the peak.")


class CosineConfig(_Schedule):
    """Half a cosine from the peak to the final rate (Loshchilov & Hutter, 2017)."""

    name: Literal["cosine"] = Field(default="cosine", description="Which schedule.")


class WsdConfig(_Schedule):
    """Warm-up, stable, decay: constant, then a fall by 1 - sqrt at the end (Hägele et al., 2024)."""

    name: Literal["wsd"] = Field(default="wsd", description="Which schedule.")
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="Share of all steps in which the rate falls.")


ScheduleConfig = Annotated[CosineConfig | WsdConfig, Field(discriminator="name")]


def _named(value: Any, default: str) -> Any:
    """A bare name stands for a block of that name, and a block without a name is of the default kind."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "name" not in value:
        return {"name": default, **value}
    return value


class TrainConfig(Config):
    """What every training stage has in common.

    Execution-only, so that a change of them still hits the cache, are fields of two sorts. `checkpoint_every_steps`,
    `eval_every_steps` and `heldout_rows` leave the weights as they are, bit for bit; the last two decide the
    held-out figures among the metrics and totals. `micro_batch_rows`, `nproc`, `zero`, `threads`, `device` and
    `compile` decide how a step is computed: sums are taken in another order, so weights and figures agree to
    rounding and not bit for bit. Runs with those equal are bitwise equal on CPU.
    """

    batch_rows: int = Field(16, ge=1, le=2**20, description="Rows in one optimizer step, over all ranks.")
    micro_batch_rows: int | None = execution(
        None,
        ge=1,
        le=2**20,
        description="Rows in one forward pass of one rank; at most 4 where left out. Changes memory, not the result.",
    )
    optimizer: AdamWConfig = Field(default=AdamWConfig(), description="Optimizer and its constants.")
    schedule: ScheduleConfig = Field(default=CosineConfig(), description="Learning rate over the steps.")
    clip_norm: float = Field(1.0, gt=0, description="Largest 2-norm of the whole gradient; it is scaled down to this.")
    precision: Precision = Field(
        "fp32",
        description="bf16: matrix products under autocast, with fp32 weights, gradients and optimizer state. "
        "Fast on GPUs and on CPUs with AMX or AVX512-BF16, very slow on others.",
    )
    seed: int = Field(
        0, ge=0, lt=INTEGER_LIMIT, description="Seed of the initial weights and of the order of the rows."
    )
    checkpoint_every_steps: int = execution(
        100, ge=0, description="Steps between resumable states; 0: none. A killed run loses at most so many."
    )
    eval_every_steps: int = execution(
        100, ge=0, description="Steps between measurements on held-out rows; 0: at the end only."
    )
    heldout_rows: int = execution(64, ge=0, description="Held-out rows in each measurement, a fixed sample; 0: all.")
    nproc: int = execution(1, ge=1, le=4096, description="Ranks on this machine; above 1 they run under DeepSpeed.")
    zero: int = execution(0, ge=0, le=3, description="ZeRO stage: what DeepSpeed shards over the ranks; 0 is nothing.")
    device: Device = execution("auto", description="auto: cuda where there is one.")
    compile: bool = execution(default=False, description="Compile the model with torch.compile (single process only).")
    threads: int = execution(0, ge=0, le=1024, description="CPU threads of a rank; 0: cores divided by ranks.")

    @field_validator("optimizer", mode="before")
    @classmethod
    def _optimizer_by_name(cls, value: Any) -> Any:
        """What a block leaves out comes from the stage's own default, not from the optimizer's."""
        value = _named(value, "adamw")
        own = cls.model_fields["optimizer"].get_default().model_dump()
        return {**own, **value} if isinstance(value, dict) and value["name"] == own["name"] else value

    @field_validator("schedule", mode="before")
    @classmethod
    def _schedule_by_name(cls, value: Any) -> Any:
        return _named(value, "cosine")

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        if self.batch_rows % self.nproc:
            raise ValueError(f"batch_rows ({self.batch_rows}) must be a multiple of nproc ({self.nproc})")
        if self.compile and self.uses_deepspeed:
            raise ValueError("compile works in a single process only: leave out nproc and zero, or compile")
        return self

    @property
    def uses_deepspeed(self) -> bool:
        """Whether the flags ask for DeepSpeed; its launcher's environment asks for it too."""
        return self.nproc > 1 or self.zero > 0

    def resolved(self) -> dict[str, Any]:
        """What follows from the fields alone: how the rows of a step are dealt to `nproc` ranks, and the schedule."""
        rows, micro = self.batch_rows // self.nproc, micro_rows(self, self.nproc)
        values: dict[str, Any] = {
            "rows_per_rank": rows,
            "micro_batch_rows": micro,
            "micro_batches_per_rank": -(-rows // micro),
        }
        steps, seq_len = getattr(self, "steps", None), getattr(self, "max_tokens", None)
        if steps is not None:
            values["warmup_steps"] = warmup_steps(self.schedule, steps)
            values["decay_steps"] = decay_steps(self.schedule, steps)
        if seq_len is not None:
            values["tokens_per_step"] = self.batch_rows * seq_len
        return values


class PretrainConfig(TrainConfig):
    """How a model is trained from scratch on packed rows."""

    model: ModelConfig = Field(
        default_factory=lambda: ModelConfig.model_validate({}),
        description="Architecture: a preset's name or fields.",
    )
    steps: int = Field(200, ge=1, le=10**9, description="Optimizer steps.")


class SftConfig(TrainConfig):
    """How a checkpoint is fine-tuned on chats, with the loss on the assistant's tokens only."""

    optimizer: AdamWConfig = Field(
        default=AdamWConfig(lr=5e-4, weight_decay=0.0), description="Optimizer and its constants."
    )
    epochs: float = Field(3.0, gt=0, le=10_000, description="Passes over the packed chats; rounded up to whole steps.")
    steps: int | None = Field(None, ge=1, le=10**9, description="Optimizer steps; from epochs where left out.")
    max_tokens: int | None = Field(
        None,
        ge=2,
        le=2**24,
        description="Longest chat and length of a row, up to the model's context; where left out, the length of the "
        "rows that the checkpoint was trained on, or its context where that is unknown.",
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="A chat longer than max_tokens stops the run, or is dropped and counted."
    )
    heldout_fraction: float = Field(
        HELDOUT_FRACTION,
        ge=0,
        lt=1,
        description="Share of the chats of a plain file kept out of training for the held-out loss, by hash of the "
        "document's id. An artifact of llmctl chats brings its own held-out side.",
    )


def warmup_steps(schedule: CosineConfig | WsdConfig, steps: int) -> int:
    """Steps of warm-up in a run of `steps`, never more than there are."""
    if schedule.warmup_steps is not None:
        return min(schedule.warmup_steps, steps)
    return _ceil(schedule.warmup_fraction * steps)


def decay_steps(schedule: CosineConfig | WsdConfig, steps: int) -> int:
    """Steps in which the rate falls, in a run of `steps`."""
    after_warmup = steps - warmup_steps(schedule, steps)
    if isinstance(schedule, CosineConfig):
        return after_warmup
    return min(_ceil(schedule.decay_fraction * steps), after_warmup)


def micro_rows(config: TrainConfig, ranks: int) -> int:
    """Rows in one forward pass of one rank."""
    per_rank = config.batch_rows // ranks
    return min(per_rank, config.micro_batch_rows or 4)


def steps_of_epochs(epochs: float, rows: int, batch_rows: int) -> int:
    """Optimizer steps that see `rows` rows `epochs` times, the last step filled up."""
    return max(1, _ceil(epochs * rows / batch_rows))


def _ceil(value: float) -> int:
    """Round up, forgiving the last bit: 0.05 x 20 is 1, not 2."""
    return int(-(-(value - 1e-9) // 1)) if value > 0 else 0
