"""The reward of answers that are programs: whether they pass the tests of their prompt's row, in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmctl.config.rewards import TestsReward
from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verify import Program, refuse_where_impossible, verdicts
from llmctl.objectives.rewards.rules import NoRewardError, Sample

FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COLUMNS = ("tests", "setup", "entry_point")  # of the row; the last two may be missing


class Tested:
    """Runs the programs of answers. Close it to end the sandbox."""

    def __init__(self, config: TestsReward) -> None:
        self._timeout_s = config.timeout_s
        self._box = Sandbox()

    def check(self) -> None:
        """Start the sandbox.

        Raises:
            InputError: this system cannot hold programs, and why.
        """
        refuse_where_impossible(self._box, "leave out the reward `tests`")

    def __call__(self, samples: Sequence[Sample]) -> list[tuple[float | None, str]]:
        """1 or 0 and no reason, or no value and a reason, for each answer."""
        programs: dict[int, Program] = {}
        found: dict[int, tuple[float | None, str]] = {}
        for at, sample in enumerate(samples):
            try:
                programs[at] = self._program(sample)
            except NoRewardError as error:
                found[at] = None, str(error)
        for at, verdict in zip(programs, verdicts(self._box, list(programs.values())), strict=True):
            found[at] = verdict.score, "" if verdict.score is not None else verdict.message or verdict.kind
        return [found[at] for at in range(len(samples))]

    def close(self) -> None:
        """End what still runs."""
        self._box.close()

    def _program(self, sample: Sample) -> Program:
        test, setup, entry_point = (str(sample.fields.get(name) or "") for name in COLUMNS)
        if not test.strip():
            raise NoRewardError(f"the prompt's row has no {COLUMNS[0]!r}")
        source = program_in(sample.completion)
        return Program(source, test, entry_point=entry_point, setup=setup, reference="", timeout_s=self._timeout_s)


def program_in(text: str) -> str:
    """The last fenced block of a text, or all of it where there is none."""
    blocks = FENCED.findall(text)
    return str(blocks[-1]) if blocks else text
