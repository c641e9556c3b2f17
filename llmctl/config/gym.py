"""Configuration of prompts from reasoning-gym: which of its tasks, how many, and of which seed."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from pydantic import Field, field_validator, model_validator

from llmctl.config.base import Config, parted

PACKAGE = "reasoning-gym"


class GymTask(Config):
    """One of reasoning-gym's tasks."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="as reasoning-gym has it: chain_sum, leg_counting, …")
    share: float = Field(default=1.0, gt=0, le=1e6, description="of the prompts, beside the other tasks' shares")
    options: dict[str, Any] = Field(default={}, description="of the task, such as min_terms and max_terms")


class GymConfig(Config):
    """Prompts that reasoning-gym makes, and that the reward `gym` judges (the extra `gym`)."""

    tasks: tuple[GymTask, ...] = Field(min_length=1, description="names, or blocks of name, share and options")
    prompts: int = Field(default=1000, ge=1, le=2**24, description="how many, of all tasks together")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the prompts; that of the run is another")
    instruction: str = Field(
        default="", max_length=20_000, description="put behind each question, such as: Answer with a number alone."
    )
    version: str = Field(
        default="", description="of reasoning-gym; filled in, since another release makes other prompts of a seed"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_this_release(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"tasks": given}
        if not isinstance(given, dict):
            return given
        if "name" in given and "tasks" not in given:  # what a text beside other settings of a block becomes
            given = {"tasks" if key == "name" else key: value for key, value in given.items()}
        try:
            found = metadata.version(PACKAGE)
        except metadata.PackageNotFoundError:
            raise ValueError(f"{PACKAGE} is not installed: pip install 'llmctl[gym]'") from None
        if given.get("version") not in (None, "", found):
            raise ValueError(f"its prompts are of {PACKAGE} {given['version']}, and {found} is installed")
        return {**given, "version": found}

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_by_name(cls, value: Any) -> Any:
        value = parted(value)
        if not isinstance(value, list | tuple):
            return value
        return [{"name": one} if isinstance(one, str) else one for one in value]

    def counts(self) -> list[int]:
        """Prompts of each task: by share, what is left over to the largest remainders."""
        whole = sum(task.share for task in self.tasks)
        exact = [self.prompts * task.share / whole for task in self.tasks]
        counts = [int(one) for one in exact]
        by_remainder = sorted(range(len(exact)), key=lambda at: (counts[at] - exact[at], at))
        for at in by_remainder[: self.prompts - sum(counts)]:
            counts[at] += 1
        return counts
