"""What `eval` measures and how."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmctl.config.base import INTEGER_LIMIT, Config, execution, parted
from llmctl.config.devices import Device, Precision, Weights
from llmctl.config.servers import ServerConfig
from llmctl.config.tasks import AnyTask, GroupConfig, TaskConfig, read_tasks

RESULTS_FILE = "results.json"
"""Where an `eval` artifact keeps its figures, with what decided them."""
REPORT_FILES = ("report.md", "report.html")
PICTURE_FILE = "report.png"

Overlong = Literal["refuse", "truncate", "skip"]
HARNESS_SEED = 1234


def _gates(value: Any) -> Any:
    """`acc=0.5,gsm8k.exact_match,strict-match=0.3`, where a name may hold a comma, or `{acc: 0.5}`."""
    if isinstance(value, str):
        value = [one.strip(" ,") for one in re.findall(r"[^=]+(?:=[^,]*)?", value) if one.strip(" ,")]
    if not isinstance(value, list):
        return value
    pairs = [str(one).partition("=") for one in value]
    return {name.strip(): least.strip() for name, _, least in pairs}


def _numbers(value: Any) -> Any:
    """`64,128` or `64` for [64, 128] or [64]."""
    return [value] if isinstance(value, int) else parted(value)


class EvalConfig(Config):
    """`llmctl eval`: held-out loss, and tasks by log-likelihood or generation where any are named."""

    tasks: Annotated[tuple[AnyTask, ...], BeforeValidator(read_tasks)] = Field(
        (),
        description="tasks and groups, by name (docs/evals.md lists them) or as .yaml files, with commas between",
    )
    shots: int | None = Field(None, ge=0, le=1000, description="examples before each item, in place of the tasks' own")
    limit: int | None = Field(
        None,
        ge=1,
        description="score only the first N items of each task or subtask, and all held-out rows",
    )
    samples: dict[str, tuple[int, ...]] = Field({}, description="items to score, from 0, by task")
    chat: bool | Literal["auto"] = Field(
        "auto",
        description="ask through the chat template; auto: --choices alone, where the checkpoint was trained on chats",
    )
    draws: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="texts of each item, in place of the tasks' own number: figures by vote, by --scorer, and of an "
        "oracle, against tokens",
    )
    temperature: float = Field(
        0.7, gt=0, le=100, description="of several --draws, where the task itself always takes the likeliest token"
    )
    budget: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...], BeforeValidator(_numbers)] = Field(
        (), description="most tokens of a text, such as 64,128,256: figures at each, against the tokens spent"
    )
    overlong: Overlong = Field(
        "refuse",
        description="a prompt beyond the context: stop, cut it at its front as the harness does, or leave the item out "
        "and count it",
    )
    min: Annotated[dict[str, float], BeforeValidator(_gates)] = execution(
        {}, description="gates, such as acc=0.5 or piqa.acc_norm=0.6: exit 6 where a figure is below"
    )
    bootstrap: int = Field(
        100_000, ge=0, le=1_000_000, description="draws for standard errors that have no formula; 0 for none"
    )
    contamination: bool = Field(
        False, description="look for every item in what the checkpoint has learned from, as far as it is in the store"
    )
    forbid_contamination: bool = execution(False, description="do so, and exit 6 where an item is found")
    ngram_words: int = Field(13, ge=1, le=100, description="contamination: words in a row that count as overlap")
    server: ServerConfig = Field(ServerConfig(), description="what is measured in place of a checkpoint")
    delimiter: str = Field(
        " ",
        max_length=16,
        description="--choices: text between a prompt and a choice without the chat template, unless white space is "
        "there already",
    )
    baseline: bool = Field(
        False, description="measure an untrained model of the same shape as well, as the floor of every figure"
    )
    seed: int = Field(
        0, ge=0, lt=INTEGER_LIMIT, description="seed of the untrained model's weights and of what is drawn"
    )
    shots_seed: int = Field(HARNESS_SEED, ge=0, lt=INTEGER_LIMIT, description="seed of the examples")
    precision: Precision = Field("fp32", description="number format of weights and activations")
    weights: Weights = Field(
        "plain", description="int8, int4: round the weights, and measure beside it what that loses"
    )
    variants: Annotated[tuple[Literal["int8", "int4"], ...], BeforeValidator(parted)] = Field(
        (), description="weights rounded so, such as int8,int4: bits per byte, size and speed of each in one table"
    )
    batch_tokens: int = execution(
        8192, ge=1, le=1 << 24, description="tokens of one forward pass, which bounds its memory"
    )
    max_running: int = execution(32, ge=1, le=4096, description="texts generated at one time")
    reuse: bool = execution(True, description="keep every answer beside the store, and do not ask the same again")
    device: Device = execution("auto", description="where the model runs; auto takes an accelerator where there is one")

    @model_validator(mode="before")
    @classmethod
    def _looks(cls, value: Any) -> Any:
        """What is forbidden is looked for."""
        if isinstance(value, dict) and value.get("forbid_contamination"):
            return {**value, "contamination": True}
        return value

    @field_validator("variants")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _others(self) -> EvalConfig:
        if self.weights in self.variants:
            raise ValueError(f"variants hold {self.weights}, which the checkpoint is measured with already")
        return self

    @property
    def all_tasks(self) -> tuple[TaskConfig, ...]:
        """The tasks named, those of groups in their place, each once."""
        found: dict[str, TaskConfig] = {}
        for one in self.tasks:
            for task in one.tasks if isinstance(one, GroupConfig) else (one,):
                found.setdefault(task.task, task)
        return tuple(found.values())
