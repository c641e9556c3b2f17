"""Configuration of the training stages: one base, and what pretrain and sft add to it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from llmctl.config.averages import AverageConfig
from llmctl.config.base import INTEGER_LIMIT, Config, execution, named
from llmctl.config.batches import Batches, BatchRampConfig
from llmctl.config.devices import AttentionBackend, Device, TrainPrecision
from llmctl.config.dial import DialConfig, dialled, laid_under
from llmctl.config.guards import GuardConfig
from llmctl.config.heldout import HELDOUT_FRACTION
from llmctl.config.keep import Keep
from llmctl.config.lora import LoraConfig
from llmctl.config.model import ModelConfig
from llmctl.config.optimizers import AdamWConfig, OptimizerConfig
from llmctl.config.schedules import CosineConfig, ScheduleConfig, ceil, decay_steps, warmup_steps
from llmctl.config.sequence import uncut

Learned = Literal["assistant", "last", "all"]
MaxTokens = Annotated[
    int | None,
    Field(
        ge=2,
        le=2**24,
        description="Longest chat, or prompt with its answer, up to the model's context; where left out, the length of "
        "the rows that the checkpoint was trained on, or its context where that is unknown.",
    ),
]
Overlong = Annotated[
    Literal["error", "drop"],
    Field(description="What is longer than max_tokens stops the run, or is dropped and counted."),
]


class TrainConfig(Config):
    """What every training stage has in common.

    Execution-only, so that a change of them still hits the cache, are fields of two sorts. `checkpoint_every_steps`,
    `eval_every_steps` and `heldout_rows` leave the weights as they are, bit for bit; the last two decide the
    held-out figures among the metrics and totals. `micro_batch_rows`, `nproc`, `zero`, `sequence_parallel`,
    `threads`, `lanes`, `device`, `attention_backend` and `compile` decide how a step is computed: sums are taken in
    another order, so weights and figures agree to rounding and not bit for bit. Runs with those equal are bitwise
    equal on CPU.
    """

    cuts_rows: ClassVar[bool] = False
    """Whether the loss is a sum over tokens, so that ranks may share a row."""

    batch_rows: int = Field(16, ge=1, le=2**20, description="Rows in one optimizer step, over all ranks.")
    micro_batch_rows: int | None = execution(
        None,
        ge=1,
        le=2**20,
        description="Rows in one forward pass of one rank; at most 4 where left out. Changes memory, not the result.",
    )
    batch_ramp: BatchRampConfig | None = Field(
        None, description="Smaller batches in the first steps: {start_rows: 4, steps: 100}."
    )
    optimizer: OptimizerConfig = Field(default=AdamWConfig(), description="Optimizer and its constants.")
    schedule: ScheduleConfig = Field(default=CosineConfig(), description="Learning rate over the steps.")
    clip_norm: float = Field(1.0, gt=0, description="Largest 2-norm of the whole gradient; it is scaled down to this.")
    guard: GuardConfig = Field(default=GuardConfig(), description="What happens to steps that cannot be trusted.")
    average: AverageConfig | None = Field(
        None, description="ema or tail: publish an average of the weights over steps; the last ones where left out."
    )
    precision: TrainPrecision = Field(
        "fp32",
        description="bf16: matrix products under autocast, with fp32 weights, gradients and optimizer state. "
        "Fast on GPUs and on CPUs with AMX or AVX512-BF16, very slow on others. fp16: the same with a scaled loss, "
        "for GPUs without bf16. fp8: bf16 with the products of linear layers in 8 bits, scaled by tensor or, as "
        "fp8-rowwise, by row; for Hopper and later, with the extra fp8.",
    )
    seed: int = Field(
        0, ge=0, lt=INTEGER_LIMIT, description="Seed of the initial weights and of the order of the rows."
    )
    checkpoint_every_steps: int = execution(
        100, ge=0, description="Steps between resumable states; 0: none. A killed run loses at most so many."
    )
    keep: str = execution(
        "last:2", description="Which states stay while the run lasts: last:N,every:N,best:N (by held-out loss)."
    )
    eval_every_steps: int = execution(
        100, ge=0, description="Steps between measurements on held-out rows; 0: at the end only."
    )
    heldout_rows: int = execution(64, ge=0, description="Held-out rows in each measurement, a fixed sample; 0: all.")
    nproc: int = execution(1, ge=1, le=4096, description="Ranks on this machine; above 1 they run under DeepSpeed.")
    zero: int = execution(0, ge=0, le=3, description="ZeRO stage: what DeepSpeed shards over the ranks; 0 is nothing.")
    sequence_parallel: int = execution(
        1, ge=1, le=1024, description="Ranks that share each row, for rows too long for one; divides the heads."
    )
    offload: str = execution(
        "none",
        pattern=r"^(none|cpu|nvme:/.*)$",
        description="cpu: the optimizer's state stays in the machine's memory, at zero=3 the parameters too. "
        "nvme:/PATH, at zero=3: the optimizer's state and the fp32 weights that it updates stay in files of that "
        "folder, and come into memory one group at a time.",
    )
    device: Device = execution("auto", description="auto: cuda where there is one.")
    compile: bool = execution(default=False, description="Compile the model with torch.compile (single process only).")
    attention_backend: AttentionBackend = execution(
        "auto",
        description="Kernel of attention: SDPA, our own on a CPU, FlexAttention or FlashAttention; auto: what works.",
    )
    recompute: Literal["none", "selective", "full"] = execution(
        "none",
        description="What is made again in the backward pass to save memory: all activations, or all but products.",
    )
    peak: Literal["measured", "vendor"] = execution(
        "measured", description="What utilisation (mfu) is a share of: a product timed at the start, or a data sheet."
    )
    track: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = execution(
        (), description="Trackers that get the metrics too, from the extras of the same names."
    )
    track_to: str | None = execution(None, description="Folder that trackers write to.")
    watchdog_s: float = execution(
        1800.0, ge=0, le=10**7, description="Seconds after which ranks that stand still are ended, naming the culprit."
    )
    threads: int = execution(0, ge=0, le=1024, description="CPU threads of a rank; 0: cores divided by ranks.")
    lanes: int = execution(
        0,
        ge=0,
        le=1024,
        description="Micro-batches at a time on a CPU, sharing the threads (single process only); 0: what pays.",
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _optimizer_by_name(cls, value: Any) -> Any:
        """What a block leaves out comes from the stage's own default, not from the optimizer's."""
        value = named(value, "adamw")
        own = cls.model_fields["optimizer"].get_default().model_dump()
        return {**own, **value} if isinstance(value, dict) and value["name"] == own["name"] else value

    @field_validator("schedule", mode="before")
    @classmethod
    def _schedule_by_name(cls, value: Any) -> Any:
        return named(value, "cosine")

    @field_validator("average", mode="before")
    @classmethod
    def _average_by_name(cls, value: Any) -> Any:
        return None if value is None else named(value, "ema")

    @model_validator(mode="after")
    def _trackers_have_a_place(self) -> TrainConfig:
        if self.track and not self.track_to:
            raise ValueError("track needs track_to, the folder that trackers may write to")
        return self

    @field_validator("keep")
    @classmethod
    def _keep_reads(cls, value: str) -> str:
        Keep.parse(value)
        return value

    @model_validator(mode="after")
    def _ramp_fits(self) -> TrainConfig:
        if self.batch_ramp is not None and self.batch_rows % self.batch_ramp.start_rows:
            start = self.batch_ramp.start_rows
            raise ValueError(f"batch_rows ({self.batch_rows}) must be a multiple of batch_ramp.start_rows ({start})")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        if self.sequence_parallel > 1 and not self.cuts_rows:
            raise ValueError("this stage's loss is of whole answers, and sequence_parallel cuts them: leave it out")
        if self.nproc > 1 and self.nproc % self.sequence_parallel:
            raise ValueError(f"nproc ({self.nproc}) must be a multiple of sequence_parallel ({self.sequence_parallel})")
        if self.batch_rows % self.row_ranks:
            shared = f" / sequence_parallel ({self.sequence_parallel})" if self.sequence_parallel > 1 else ""
            raise ValueError(f"batch_rows ({self.batch_rows}) must be a multiple of nproc ({self.nproc}){shared}")
        if self.compile and self.uses_deepspeed:
            raise ValueError("compile works in a single process only: leave out nproc and zero, or compile")
        if self.compile and self.recompute != "none":
            raise ValueError("compile chooses itself what it recomputes: leave out recompute, or compile")
        return self

    @model_validator(mode="after")
    def _offload_has_shards(self) -> TrainConfig:
        if self.offload != "none" and not self.zero:
            raise ValueError("offload moves what ZeRO shards: give zero=1, 2 or 3 with it")
        if self.offload_folder and self.zero != 3:
            raise ValueError("offload=nvme works at zero=3 alone: give zero=3 with it, or offload=cpu")
        return self

    @model_validator(mode="after")
    def _optimizer_takes_shards(self) -> TrainConfig:
        if self.zero and not self.optimizer.shards:
            raise ValueError(
                f"{self.optimizer.name} needs whole parameters, and zero={self.zero} gives each rank a shard without "
                "their shapes: leave out zero, or take adamw, muon or lion"
            )
        if self.optimizer.name == "sophia" and self.nproc > 1:
            raise ValueError("sophia runs in a single process only: leave out nproc, or take another optimizer")
        return self

    @model_validator(mode="after")
    def _eight_bits_find_weights(self) -> TrainConfig:
        if self.precision.startswith("fp8") and self.zero == 3:
            raise ValueError(
                "fp8 keeps each weight at hand until the backward pass, which zero=3 is there to avoid: "
                "give zero=1 or 2 with it"
            )
        return self

    @property
    def batches(self) -> Batches:
        """How many rows each step has."""
        return Batches(self.batch_rows, self.batch_ramp)

    @property
    def offload_folder(self) -> str:
        """Where offloaded tensors lie on a disk; empty where they lie in memory."""
        kind, _, folder = self.offload.partition(":")
        return folder if kind == "nvme" else ""

    @property
    def row_ranks(self) -> int:
        """How many ranks of this machine, or groups of ranks that share rows, the rows of a step are dealt to."""
        return max(1, self.nproc // self.sequence_parallel)

    @property
    def uses_deepspeed(self) -> bool:
        """Whether the flags ask for DeepSpeed; its launcher's environment asks for it too."""
        return self.nproc > 1 or self.zero > 0

    def resolved(self) -> dict[str, Any]:
        """What follows from the fields alone: how the rows of a step are dealt to ranks, and the schedule."""
        rows, micro = self.batch_rows // self.row_ranks, micro_rows(self, self.row_ranks)
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

    cuts_rows = True

    model: ModelConfig = Field(
        default_factory=lambda: ModelConfig.model_validate({}),
        description="Architecture: a preset's name or fields.",
    )
    dial: DialConfig | None = execution(
        None, description="One number from which shape, batch, learning rate and steps follow, where not given."
    )
    steps: int = Field(200, ge=1, le=10**9, description="Optimizer steps.")
    z_loss: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight of log(Z)^2 of each target, which keeps the softmax's Z near 1; PaLM has 1e-4.",
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_the_dial(cls, given: Any) -> Any:
        return laid_under(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _rows_can_be_cut(self) -> PretrainConfig:
        if self.sequence_parallel > 1 and (reason := uncut(self.model, self.sequence_parallel)):
            raise ValueError(reason)
        return self

    def resolved(self) -> dict[str, Any]:
        """Those of every training stage, and what follows from the dial."""
        follows = {} if self.dial is None else {"dial": dialled(self.dial).described()}
        return {**super().resolved(), **follows}


class FineTuneConfig(TrainConfig):
    """What learning from chats and from preferences has in common."""

    epochs: float = Field(1.0, gt=0, le=10_000, description="Passes over the packed rows; rounded up to whole steps.")
    steps: int | None = Field(None, ge=1, le=10**9, description="Optimizer steps; from epochs where left out.")
    max_tokens: MaxTokens = None
    overlong: Overlong = "error"
    heldout_fraction: float = Field(
        HELDOUT_FRACTION,
        ge=0,
        lt=1,
        description="Share of the rows of a plain file kept out of training for the held-out figures, by hash of the "
        "document's id. An artifact that is split already brings its own held-out side.",
    )
    inspect: int = execution(
        0,
        ge=0,
        le=1000,
        description="Print so many rows first: each token, whether it is learned, whether it ends a turn.",
    )


class AdaptableConfig(FineTuneConfig):
    """Fine-tuning that may train adapters in place of all weights."""

    lora: LoraConfig | None = Field(
        None, description="Train adapters and publish these, in PEFT's format: {rank: 16, alpha: 32}; else all weights."
    )

    @property
    def base(self) -> Literal["full", "nf4"]:
        """How the weights are kept that are not learned."""
        return "full" if self.lora is None else self.lora.base

    @model_validator(mode="after")
    def _adapters_alone(self) -> AdaptableConfig:
        if self.lora is not None and self.zero == 3:
            raise ValueError("zero=3 shards what lora's layers read themselves: take zero=0, 1 or 2")
        if self.lora is not None and self.precision.startswith("fp8"):
            raise ValueError("lora keeps its matrices in wider formats than fp8: take precision=bf16 or fp32")
        return self


class SftConfig(AdaptableConfig):
    """How a checkpoint is fine-tuned on chats, with the loss on what the assistant says."""

    cuts_rows = True

    optimizer: OptimizerConfig = Field(
        default=AdamWConfig(lr=5e-4, weight_decay=0.0), description="Optimizer and its constants."
    )
    epochs: float = Field(3.0, gt=0, le=10_000, description="Passes over the packed chats; rounded up to whole steps.")
    learn: Learned = Field(
        "assistant",
        description="What of a chat is learned: all turns of the assistant, its last one, or every token.",
    )
    neftune_alpha: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Noise on the embeddings while training (NEFTune, arXiv:2310.05914): uniform within "
        "alpha / sqrt(tokens of the chat x width); the paper takes 5 to 15. 0: none.",
    )


def micro_rows(config: TrainConfig, ranks: int) -> int:
    """Rows in one forward pass of one rank, or of a group of ranks that share rows."""
    per_rank = config.batch_rows // ranks
    return min(per_rank, config.micro_batch_rows or 4)


def steps_of_epochs(epochs: float, rows: int, batches: Batches) -> int:
    """Optimizer steps that see `rows` rows `epochs` times, the last step filled up."""
    ramp = 0 if batches.ramp is None else batches.ramp.steps
    in_ramp = batches.first_of(ramp)
    wanted = epochs * rows
    if wanted > in_ramp:
        return max(1, ramp + ceil((wanted - in_ramp) / batches.batch_rows))
    return max(1, next(step for step in range(ramp + 1) if batches.first_of(step) >= wanted - 1e-9))
