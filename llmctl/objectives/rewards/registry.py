"""Which reward is which, and several of them together on many answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from llmctl.config.errors import InputError, LlmctlError, together
from llmctl.config.rewards import (
    FunctionReward,
    GymReward,
    JudgeReward,
    MathReward,
    RegexReward,
    RewardConfig,
    ScorerReward,
    TestsReward,
)
from llmctl.objectives.rewards import rules
from llmctl.objectives.rewards.endpoint import Endpoint, columns_of
from llmctl.objectives.rewards.guarded import Guarded
from llmctl.objectives.rewards.programs import Tested
from llmctl.objectives.rewards.rules import NoRewardError, Sample

RULES: Final[dict[str, Callable[[Sample, Any], float]]] = {
    "exact": rules.exact,
    "number": rules.number,
    "json": rules.is_json,
    "length": rules.length,
    "repetition": rules.repetition,
}
Value = tuple[float | None, str]
"""A value and no reason, or no value and a reason."""
Score = Callable[[Sequence[Sample]], list[Value]]
"""A reward model: scores of many answers at once."""


class Judge(Protocol):
    """Judges many answers at once, by what must be there beforehand and closed afterwards."""

    def check(self) -> None:
        """An `LlmctlError` where it cannot judge."""

    def __call__(self, samples: Sequence[Sample], /) -> list[Value]:
        """Of each answer."""

    def close(self) -> None:
        """End what it started."""


class Row(Protocol):
    """What is known of a prompt before it is answered."""

    @property
    def answer(self) -> str | None:
        """What is wanted."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The other columns of its row."""


@dataclass(frozen=True)
class Judged:
    """What is known of one answer.

    Attributes:
        value: the weighted sum of all rewards; NaN where one of them is missing.
        parts: each reward by name, before its weight; None where it is missing.
        missing: why, of the first that is; empty where none is.
    """

    value: float
    parts: dict[str, float | None]
    missing: str = ""


class Rewards:
    """All rewards of a run. Close it, or use it as a context manager, to end what runs beside it.

    Args:
        configs: which.
        timeout_s: after which a function or pattern counts as hanging.
        score: the reward model, where one of them is `scorer`.
    """

    def __init__(self, configs: Sequence[RewardConfig], timeout_s: float, score: Score | None = None) -> None:
        self.configs = tuple(configs)
        self.names = _names(configs)
        self._score = score
        self._guarded = {
            name: Guarded(task, timeout_s)
            for name, config in zip(self.names, configs, strict=True)
            if (task := _task(config)) is not None
        }
        self._judges = {
            name: judge
            for name, config in zip(self.names, configs, strict=True)
            if (judge := _judge(config, timeout_s)) is not None
        }

    def check(self, prompts: Sequence[Row] = ()) -> None:
        """Find out before any work whether each reward can be had: its modules, its server, the sandbox, its data.

        Args:
            prompts: that will be answered.

        Raises:
            LlmctlError: one cannot; all of them are told.
        """
        faults = [
            fault
            for name, config in zip(self.names, self.configs, strict=True)
            if (fault := self._fault(name, config, prompts)) is not None
        ]
        if faults:
            self.close()
            raise together(faults)

    def _fault(self, name: str, config: RewardConfig, prompts: Sequence[Row]) -> LlmctlError | None:
        """Why a reward cannot be had, where that is so."""
        try:
            if name in self._judges:
                self._judges[name].check()
            if name in self._guarded:
                self._guarded[name].check()
        except NoRewardError as error:
            return InputError(f"reward {name}: {error}", hint=_remedy(config))
        except LlmctlError as error:
            return type(error)(f"reward {name}: {error.what}", hint=error.hint)
        lacking = [why for prompt in prompts if (why := lack(config, prompt))]
        if lacking and len(lacking) == len(prompts):
            return InputError(f"reward {name}: no prompt has what it needs: {lacking[0]}", hint="see docs/rl.md")
        return None

    def judge(self, samples: Sequence[Sample]) -> list[Judged]:
        """Each answer by each reward. A value that is no finite number, or that cannot be had, is missing."""
        columns = [self._column(name, config, samples) for name, config in zip(self.names, self.configs, strict=True)]
        found = []
        for row in zip(*columns, strict=True):
            parts = {name: value for name, (value, _) in zip(self.names, row, strict=True)}
            missing = next((f"{name}: {why}" for name, (_, why) in zip(self.names, row, strict=True) if why), "")
            weighted = [
                config.weight * value for config, (value, _) in zip(self.configs, row, strict=True) if value is not None
            ]
            found.append(Judged(math.nan if missing else math.fsum(weighted), parts, missing))
        return found

    def _column(self, name: str, config: RewardConfig, samples: Sequence[Sample]) -> list[Value]:
        """What one reward says of each answer."""
        if isinstance(config, ScorerReward):
            assert self._score is not None, "the stage refuses a scorer without its model"
            return self._score(samples)
        if name in self._judges:
            return self._judges[name](samples)
        if name in self._guarded:
            return [finite(value) for value in self._guarded[name].judge(samples)]
        return [_ruled(config, sample) for sample in samples]

    def close(self) -> None:
        """End the processes."""
        for guarded in self._guarded.values():
            guarded.close()
        for judge in self._judges.values():
            judge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _ruled(config: RewardConfig, sample: Sample) -> Value:
    """What a rule says of an answer."""
    try:
        return finite(RULES[config.kind](sample, config))
    except NoRewardError as error:
        return finite(error)


def finite(value: float | NoRewardError) -> Value:
    """The value, where it is a number."""
    if isinstance(value, NoRewardError):
        return None, str(value)
    return (value, "") if math.isfinite(value) else (None, f"its value is {value}")


def _names(configs: Sequence[RewardConfig]) -> list[str]:
    """Kinds, functions by their own names; what comes again gets a number."""
    plain = [config.of.rpartition(":")[2] if isinstance(config, FunctionReward) else config.kind for config in configs]
    return [name if name not in plain[:at] else f"{name}_{at}" for at, name in enumerate(plain)]


def _task(config: RewardConfig) -> dict[str, Any] | None:
    """What a child process is to do; None for what is done here."""
    if isinstance(config, RegexReward):
        return {"do": "regex", "pattern": config.pattern, "whole": config.whole}
    if isinstance(config, MathReward):
        return {"do": "math"}
    if isinstance(config, GymReward):
        return {"do": "gym", "tag": config.tag}
    if isinstance(config, FunctionReward):
        path, _, name = config.of.rpartition(":")
        return {"do": "function", "path": path, "name": name, "sha256": config.sha256}
    return None


def _judge(config: RewardConfig, timeout_s: float) -> Judge | None:
    """What judges many answers at once; None for other rewards."""
    if isinstance(config, TestsReward):
        return Tested(config)
    if isinstance(config, JudgeReward):
        return Endpoint(config, timeout_s)
    return None


def lack(config: RewardConfig, prompt: Row) -> str:
    """What a prompt's row lacks for that reward; empty where it lacks nothing."""
    if config.kind in ("exact", "number", "math") and prompt.answer is None:
        return "the row has no answer"
    if config.kind == "number" and rules.last_number(prompt.answer or "") is None:
        return f"the wanted answer holds no number: {prompt.answer!r}"
    columns = {"tests": ["tests"], "gym": ["gym"]}.get(config.kind, [])
    if isinstance(config, JudgeReward):
        columns = columns_of(config)
    return next((f"the row has no {name!r}" for name in columns if not prompt.fields.get(name)), "")


def _remedy(config: RewardConfig) -> str:
    """What helps where a reward's process does not start."""
    if config.kind in ("math", "gym"):
        return f"pip install 'llmctl[{config.kind}]', or leave the reward out"
    return "mend the reward's file" if config.kind == "function" else "mend the reward"
