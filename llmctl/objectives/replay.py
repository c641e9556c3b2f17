"""Rollouts that an earlier run kept, to be learned from again: nothing is drawn and nothing judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from llmctl.config.base import semantic_values
from llmctl.config.errors import InputError
from llmctl.config.grpo import GrpoConfig
from llmctl.data.rollouts import FILE, has_rollouts
from llmctl.objectives.prompts import Prompt
from llmctl.objectives.rollouts import Answer, answers_of
from llmctl.objectives.start import check_same_tokens
from llmctl.pipeline.job import Job
from llmctl.store.artifact import Artifact

DECIDED = ("group", "prompts_per_rollout", "max_new_tokens", "temperature", "rewards", "tools")
"""What a rollout is made by, beside the policy; the rest of a configuration is how it is learned from."""


class Replay:
    """The rollouts of the artifact in the role `replay`.

    Args:
        job: the run that learns from them.
        prompts: those to learn on, which must be those that were answered.

    Attributes:
        keeps_reference: whether the log-probabilities of this run's reference are among what is kept.

    Raises:
        InputError: there are none, or they are of another tokenizer, model or configuration.
    """

    def __init__(self, job: Job[GrpoConfig], prompts: Sequence[Prompt]) -> None:
        self._given, self._config, self._prompts = job.artifact("replay"), job.config, prompts
        given, policy = self._given, job.artifact()
        if not has_rollouts(given):
            raise InputError(f"{given.ref} keeps no rollouts", hint="give what llmctl grpo made")
        check_same_tokens(policy, given, hint="rollouts are ids: give the checkpoint that their run began with")
        begun = given.manifest.inputs["input"]
        if begun.digest != policy.digest:
            raise InputError(
                f"the run of {given.ref} began with {begun.ref} ({begun.digest[:19]}), not with {policy.ref} "
                f"({policy.digest[:19]})",
                hint="give the checkpoint that it began with",
            )
        self._check_decided(given.manifest.producer.config)
        self.keeps_reference = _reference_of(given) == _digest_of_reference(job)
        self._file = pq.ParquetFile(given.file(FILE))

    def _check_decided(self, theirs: dict[str, Any]) -> None:
        """Whether the rollouts are of the kind that this configuration learns from."""
        ours = semantic_values(self._config)
        for name, mine, was in _compared(ours, theirs):
            if mine != was:
                raise InputError(
                    f"{self._given.ref}: its rollouts were made with {name}={was}, and {name}={mine} is given",
                    hint="nothing is drawn or judged again; give the same",
                )
        was_corrected = theirs["policy"]["correction"] != "none"
        if self._config.policy.correction != "none" and not was_corrected:
            raise InputError(
                f"{self._given.ref} keeps no log-probabilities of the trainer", hint="leave out policy.correction"
            )

    def check_enough(self, steps: int) -> None:
        """Refuse to learn for longer than there are rollouts.

        Raises:
            InputError: naming how many steps they are good for.
        """
        most = self._file.num_row_groups * self._config.steps_per_rollout
        if steps > most:
            raise InputError(
                f"{self._given.ref} keeps {self._file.num_row_groups} rollouts, enough for {most} steps, not {steps}",
                hint=f"give --steps {most}",
            )

    def answers(self, number: int) -> list[Answer]:
        """Those of a rollout, as they were drawn and judged; what no weights of now could measure is kept too.

        Raises:
            InputError: one of them is to another prompt.
        """
        table = self._file.read_row_group(number)
        for row in table.select(["prompt_number", "prompt_id", "prompt_ids"]).to_pylist():
            at = row["prompt_number"]
            if at >= len(self._prompts) or list(self._prompts[at].ids) != row["prompt_ids"]:
                raise InputError(
                    f"{self._given.ref}: its prompt {at + 1} ({row['prompt_id']}) is another one here",
                    hint="give the prompts, chat and heldout_fraction of its run",
                )
        return [self._bare(one) for one in answers_of(table)]

    def _bare(self, answer: Answer) -> Answer:
        """Without what this configuration computes itself, or does not look at."""
        policy = self._config.policy
        return dataclasses.replace(
            answer,
            old=answer.old if policy.correction != "none" else None,
            reference=answer.reference if self.keeps_reference and self._config.needs_reference else None,
            values=answer.values if policy.baseline == "value" else None,
            returns=None,
            advantages=None,
        )


def _compared(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, value here and value there of all that decides a rollout; a divergence where it is part of a reward."""
    found = [(name, ours[name], theirs.get(name)) for name in DECIDED]
    mine, was = ours["policy"], theirs["policy"]
    found.append(("policy.overlong_tokens", mine["overlong_tokens"], was["overlong_tokens"]))
    if any(one["kl"]["into"] == "reward" and one["kl"]["weight"] > 0 for one in (mine, was)):
        found += [(f"policy.kl.{name}", mine["kl"][name], was["kl"][name]) for name in mine["kl"]]
    return found


def _reference_of(given: Artifact) -> str | None:
    """The digest of the reference whose log-probabilities a run kept; None where it kept none."""
    if given.manifest.producer.config["policy"]["kl"]["weight"] == 0:
        return None
    inputs = given.manifest.inputs
    return inputs.get("reference", inputs["input"]).digest


def _digest_of_reference(job: Job[GrpoConfig]) -> str:
    return job.artifact("reference" if "reference" in job.inputs else "input").digest
