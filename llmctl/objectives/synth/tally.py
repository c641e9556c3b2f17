"""The books of synthesis: what came into each step, what was dropped there and why, with an example each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llmctl.data.funnel import FUNNEL_FORMAT, excerpt
from llmctl.objectives.asked import Question
from llmctl.objectives.synth.said import Said

TASKS: Final = "tasks"
QUESTIONS: Final = "questions"
ANSWERS: Final = "answers"
REVISIONS: Final = "revisions"
STEPS: Final = (TASKS, QUESTIONS, ANSWERS, REVISIONS)
"""In the order in which they follow each other; no way has all of them."""
REASONS: Final = (
    "refused",
    "no_room",
    "cut",
    "empty",
    "malformed",
    "too_short",
    "too_long",
    "ungrounded",
    "near_duplicate",
    "contaminated",
    "no_reward",
    "wrong",
    "repeated",
    "unchanged",
    "alike",
    "surplus",
)
"""In the order in which they are looked at."""
JUDGED: Final = ("wrong", "alike", "surplus")  # whose example shows the reward; that of others, the tokens

Row = dict[str, Any]


class Tally:
    """Counts by step and reason.

    Args:
        steps: what `to_json` gave.
    """

    def __init__(self, steps: dict[str, Row] | None = None) -> None:
        self.steps: dict[str, Row] = steps or {}

    def enter(self, step: str, texts: Sequence[str]) -> None:
        """Count what comes into a step."""
        row = self.steps.setdefault(step, {"in": 0, "bytes": 0, "dropped": {}})
        row["in"] += len(texts)
        row["bytes"] += sum(len(text.encode()) for text in texts)

    def drop(self, step: str, reason: str, one: Said, question: Question) -> None:
        """Count one that goes no further."""
        assert reason in REASONS, f"{reason} has no place in the order of reasons"
        value = one.reward if reason in JUDGED else float(one.tokens)
        example = {"id": question.id, "source": question.source, "url": "", "value": value, "text": excerpt(one.text)}
        self._add(step, reason, {"count": 1, "bytes": len(one.text.encode()), "example": example})

    def _add(self, step: str, reason: str, row: Row) -> None:
        known = self.steps[step]["dropped"].setdefault(reason, {"count": 0, "bytes": 0, "example": row["example"]})
        known["count"] += row["count"]
        known["bytes"] += row["bytes"]

    def merge(self, other: Tally) -> None:
        """Add another part's; of two examples the first stays."""
        for step, row in other.steps.items():
            known = self.steps.setdefault(step, {"in": 0, "bytes": 0, "dropped": {}})
            known["in"] += row["in"]
            known["bytes"] += row["bytes"]
            for reason, dropped in row["dropped"].items():
                self._add(step, reason, dropped)

    def counts(self) -> dict[str, int]:
        """`dropped.<reason>` of answers, `dropped.<step>.<reason>` of what comes before and after them."""
        return {
            f"dropped.{_rule(step, reason)}": self.steps[step]["dropped"][reason]["count"]
            for step in STEPS
            for reason in self._reasons(step)
        }

    def content(self, kept: int, kept_bytes: int, each: int) -> Row:
        """What `funnel.json` holds (`llmctl.data.funnel`).

        Args:
            kept: rows that are written.
            kept_bytes: of their text.
            each: how many of what came out of the last step a row is made of.
        """
        rows: list[Row] = []
        first = last = ""
        left = 0
        for step in (step for step in STEPS if step in self.steps):
            came = self.steps[step]["in"]
            if first:
                rows.append(_passage(step, left, came))
            first, last, left = first or step, step, came
            for reason in self._reasons(step):
                row = self.steps[step]["dropped"][reason]
                rows.append({"rule": _rule(step, reason), "in": left, "dropped": row["count"],
                             "out": left - row["count"], "bytes": row["bytes"], "example": row["example"]})  # fmt: skip
                left -= row["count"]
        if left != kept * each:
            raise AssertionError(f"{left} {last} are left by the funnel, and {kept} rows of {each} were kept")
        if each > 1:
            rows.append(_passage("pairs", left, kept))
        came = self.steps[first]
        return {"format": FUNNEL_FORMAT, "in": came["in"], "bytes_in": came["bytes"], "rules": rows, "out": kept,
                "bytes_out": kept_bytes}  # fmt: skip

    def _reasons(self, step: str) -> list[str]:
        dropped = self.steps[step]["dropped"] if step in self.steps else {}
        return [reason for reason in REASONS if reason in dropped]


def _rule(step: str, reason: str) -> str:
    return reason if step == ANSWERS else f"{step}.{reason}"


def _passage(rule: str, left: int, came: int) -> Row:
    """From one step to the next, which has as many of its own."""
    return {"rule": rule, "in": left, "dropped": 0, "out": came, "bytes": 0, "example": None}
