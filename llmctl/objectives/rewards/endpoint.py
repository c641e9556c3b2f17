"""The reward that a model behind a server gives: it is told of the answer, and its score is read from what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from llmctl.config.errors import InputError
from llmctl.config.rewards import JudgeReward
from llmctl.inference.remote import Connection, FailedError, card_of
from llmctl.objectives.rewards.guarded import Guarded
from llmctl.objectives.rewards.rules import NoRewardError, Sample

NAME = re.compile(r"\{(\w+)\}")
KNOWN: Final = ("prompt", "completion", "answer", "rubric", "low", "high")


class Endpoint:
    """A judge. Close it to end the process that reads its scores.

    Args:
        config: where it is, what it is told, how its score is read.
        read_s: what reading a score may take.
    """

    def __init__(self, config: JudgeReward, read_s: float) -> None:
        self._config = config
        self._reader = Guarded({"do": "read", "pattern": config.pattern}, read_s)
        self._name = ""
        self._connection: Connection | None = None

    def check(self) -> None:
        """Ask the server for its model.

        Raises:
            InputError: it cannot be reached, or has no such model.
            UsageError: its address is none, or the variable that should hold its key is not set.
        """
        self._name = str(card_of(self._config.server)["id"])
        self._connection = self._connection or Connection.of(self._config.server)

    def __call__(self, samples: Sequence[Sample]) -> list[tuple[float | None, str]]:
        """A value from 0 to 1 and no reason, or no value and a reason, for each answer."""
        try:
            if not self._name:
                self.check()
        except InputError as error:
            return [(None, error.what)] * len(samples)
        with ThreadPoolExecutor(self._config.at_once) as threads:
            verdicts = list(threads.map(self._verdict, samples))
        scores = iter(self._reader.judge([Sample("", said) for said, fault in verdicts if not fault]))
        return [(None, fault) if fault else self._of_scale(next(scores)) for _, fault in verdicts]

    def close(self) -> None:
        """End the process, and leave the server."""
        self._reader.close()
        if self._connection is not None:
            self._connection.close()

    def _verdict(self, sample: Sample) -> tuple[str, str]:
        """What the judge says, and why it says nothing where it does not."""
        assert self._connection is not None, "made by check"
        try:
            body = {
                "model": self._name,
                "messages": [{"role": "user", "content": told(self._config, sample)}],
                "max_tokens": self._config.max_tokens,
                "temperature": 0,
            }
            said = self._connection.ask("/chat/completions", body)["choices"][0]["message"]["content"]
        except (FailedError, NoRewardError) as error:
            return "", str(error)
        except (IndexError, KeyError, TypeError):
            return "", "the server's answer is none of a chat"
        return (said, "") if isinstance(said, str) and said else ("", "the judge said nothing")

    def _of_scale(self, score: float | NoRewardError) -> tuple[float | None, str]:
        """The score on a scale from 0 to 1."""
        low, high = self._config.scale
        if isinstance(score, NoRewardError):
            return None, str(score)
        if not low <= score <= high:
            return None, f"the score {score:g} is not from {low:g} to {high:g}"
        return (score - low) / (high - low), ""


def columns_of(config: JudgeReward) -> list[str]:
    """Columns of a prompt's row that the judge is told of."""
    return [name for name in NAME.findall(config.template) if name not in KNOWN]


def told(config: JudgeReward, sample: Sample) -> str:
    """The template with its names filled in; what stands in an answer is no name.

    Raises:
        NoRewardError: the prompt's row has no such column.
    """
    low, high = config.scale
    known = {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "answer": sample.answer or "(not known)",
        "rubric": config.rubric,
        "low": f"{low:g}",
        "high": f"{high:g}",
    }

    def filled(name: re.Match[str]) -> str:
        value = known.get(name[1], sample.fields.get(name[1]))
        if value is None:
            raise NoRewardError(f"the prompt's row has no {name[1]!r}")
        return str(value)

    return NAME.sub(filled, config.template)
