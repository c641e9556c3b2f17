"""Where the rows of reinforcement learning come from: each rollout is made by the newest weights, judged, and kept."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.config.errors import GateError, InputError
from llmctl.config.grpo import GrpoConfig
from llmctl.inference.request import Request
from llmctl.model.transformer import Transformer
from llmctl.objectives.advantages import deviations, group_advantages, overlong_penalty
from llmctl.objectives.ahead import Ahead
from llmctl.objectives.answer_rows import Measure, answer_batches, expected, logps_at, score
from llmctl.objectives.dealt import Drawer, dealt
from llmctl.objectives.prompts import Prompt
from llmctl.objectives.replay import Replay
from llmctl.objectives.rewards.registry import Judged, Rewards
from llmctl.objectives.rewards.rules import Sample
from llmctl.objectives.rollouts import Answer, Doubles, Drawn, figures_of, generate, kept, requests_of, table_of, write
from llmctl.objectives.served import Server, follow
from llmctl.objectives.tools.talk import Talks
from llmctl.objectives.valued import token_penalties, valued
from llmctl.objectives.writing import Writing
from llmctl.pipeline.job import Job
from llmctl.tokens.batch import Batch
from llmctl.tokens.order import rows_of_step
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.loader import Plan
from llmctl.train.local import Local
from llmctl.train.strategy import Strategy

FOLDER = "rollouts"
Made = tuple[list[Answer], dict[str, float]]
"""A rollout, and its figures."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What every rollout of a run has in common.

    Attributes:
        job: the run.
        tokenizer: the policy's.
        prompts: to learn on.
        rewards: judge.
        reference: the model to stay close to; None where there is none.
        pad_id: what fills rows.
        replay: what an earlier run said; None where answers are drawn.
        server: draws answers; None where the engine of this process does.
        talks: run the policy's calls; None where there are no tools.
    """

    job: Job[GrpoConfig]
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    rewards: Rewards
    reference: Transformer | None
    pad_id: int
    replay: Replay | None = None
    server: Server | None = None
    talks: Talks | None = None
    _judging: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def said(self, model: Transformer, requests: Sequence[Request], server: Server | None = None) -> list[Drawn]:
        """What `model` or a server says to each request, in their order, with calls made where there are tools."""
        running = self.job.config.running
        if server is None:
            draw = functools.partial(generate, model, self.tokenizer, running=running)
        else:
            draw = functools.partial(server.drawn, at_once=running)
        return draw(requests) if self.talks is None else self.talks.converse(draw, requests)

    def judge(self, samples: Sequence[Sample]) -> list[Judged]:
        """Each by all rewards, whose processes hear one at a time."""
        with self._judging:
            return self.rewards.judge(samples)

    def close(self) -> None:
        """End what runs beside the run."""
        self.rewards.close()
        if self.server is not None:
            self.server.close()
        if self.talks is not None:
            self.talks.close()


class Explorer:
    """Gives each step its answers; a `Feed`.

    Every rollout lies in `job.work` before a state is saved, so that a resumed run learns from what the killed one
    said; it is written beside what learns from it. What was made after the step that a run goes on from is made again,
    by the same weights. Each rank asks and judges for a share of the prompts; all of them know all answers, and learn
    from a share of each step.

    Args:
        asked: what is common to all rollouts.
        plan: steps of the run.
        strategy: whose model answers.

    Attributes:
        figures: of the newest rollout, to be logged with the step that it was made for; empty with others.
        fresh: whether the weights are still those that made the rollout.
    """

    def __init__(self, asked: Asked, plan: Plan, strategy: Strategy) -> None:
        self._asked, self._plan, self._strategy = asked, plan, strategy
        self._config: GrpoConfig = asked.job.config
        self._ahead: Ahead | None = None
        if self._config.ahead and asked.replay is None:
            self._ahead = Ahead(strategy, self._config.precision)
        self._last: int | None = None
        self._held: tuple[int, Made] | None = None
        self._begun = 0  # the newest rollout that was drawn ahead
        self._told = False
        self._writing = Writing()
        self.figures: dict[str, float] = {}
        self.fresh = True

    def take(self, step: int) -> list[Batch]:
        """The answers of `step`, those that teach nothing left out."""
        if self._last is None or step <= self._last:
            self._forget(step)
        self._last = step
        config, lanes = self._config, self._strategy.lanes if isinstance(self._strategy, Local) else None
        number, within = divmod(step, config.steps_per_rollout)
        answers, figures = self._rollout(number)
        self.figures = figures if within == 0 else {}
        server = self._asked.server
        kept_back = server is not None and not server.follows
        older = self._ahead is not None or self._asked.replay is not None or kept_back
        self.fresh = within == 0 and not (older and number)
        self._look_ahead(number + 1)
        order = rows_of_step(self._plan.seed, step, config.batch_rows, len(answers))
        counted = [one for one in answers if one.counts(config.policy)]
        return answer_batches(
            [answers[at] for at in order],
            self._asked.prompts,
            config,
            pad_id=self._asked.pad_id,
            rollout_tokens=sum(one.size for one in counted) / config.steps_per_pass,
            lanes=1 if lanes is None else lanes.count,
            rank=self._plan.rank,
            ranks=self._plan.world_size,
        )

    def _look_ahead(self, number: int) -> None:
        """Begin to draw that rollout, where it is to be drawn ahead and nobody has begun it."""
        wanted = number > self._begun and number * self._config.steps_per_rollout < self._plan.steps
        if self._ahead is None or not wanted:
            return
        if not self._strategy.gather(rollout_file(self._asked.job.work, number).is_file())[0]:  # as the leader sees it
            self._ahead.begin(functools.partial(self._keep, number))
            self._begun = number

    def of_all(self, values: Sequence[float]) -> list[float]:
        """Those of all ranks."""
        return [value for part in self._strategy.gather(values) for value in part]

    def settle(self) -> None:
        """Wait for what is drawn ahead, which then lies in `job.work`; what went wrong is raised by who needs it.

        Raises:
            OSError: a rollout could not be written.
        """
        if self._ahead is not None:
            self._ahead.wait()
        self._writing.require()

    def _forget(self, step: int) -> None:
        """Remove rollouts that were made at `step` or later: by weights that are to be reached anew."""
        self._held, self._begun = None, 0
        self.settle()
        folder = self._asked.job.work / FOLDER
        first = -(-step // self._config.steps_per_rollout) + (1 if self._ahead is not None and step else 0)
        for path in folder.glob("*.parquet") if self._plan.rank == 0 and folder.is_dir() else ():
            if int(path.stem) >= first:
                path.unlink()

    def _rollout(self, number: int) -> Made:
        """The one of that number: at hand, on the disk, or made now."""
        if self._held is not None and self._held[0] == number:
            return self._held[1]
        if self._ahead is not None:
            self._ahead.require()
        self._writing.require()
        path = rollout_file(self._asked.job.work, number)
        at_hand = kept(path) if self._plan.rank == 0 and path.is_file() else None
        made = self._strategy.gather(at_hand)[0] or self._keep(number, self._strategy)
        self._held = (number, made)
        return made

    def _keep(self, number: int, by: Drawer) -> Made:
        """Make a rollout, and begin to write it down."""
        begun = time.perf_counter()
        answers, figures = self._made(number, by) if self._asked.replay is None else self._again(number, by)
        figures["rollout_s"] = time.perf_counter() - begun
        if self._plan.rank == 0:
            first = number * self._config.steps_per_rollout + 1
            path, told = rollout_file(self._asked.job.work, number), dict(figures)
            table = functools.partial(table_of, answers, self._asked.prompts, self._config.group, first)
            self._writing.begin(lambda: write(table(), path, told))
        return answers, figures

    def _again(self, number: int, by: Drawer) -> Made:
        """What an earlier run said, with whatever it has not measured."""
        assert self._asked.replay is not None, "asked by `_keep`"
        answers = self._asked.replay.answers(number)
        if self._asked.reference is not None:
            measure = logps_at(self._config.temperature)
            answers = self._measured(answers, "reference", self._asked.reference, measure, by)
        if self._config.policy.baseline == "value" and answers[0].values is None:
            answers = self._measured(answers, "values", by.model, expected, by)
        return self._advantages(answers), figures_of(answers, self._config.group)

    def _made(self, number: int, by: Drawer) -> Made:
        """Ask, judge, and ask again where groups tell nothing and more may be tried."""
        config = self._config
        wanted, tries = config.prompts_per_rollout, config.dynamic_sampling
        telling: list[list[Answer]] = []
        others: list[list[Answer]] = []
        drawn: list[Answer] = []
        spent = 0.0
        follow(self._asked.server, by.model, by)
        for attempt in range(tries):
            draw = number * tries + attempt
            numbers = rows_of_step(self._plan.seed, draw, wanted, len(self._asked.prompts))
            answers, seconds = self._answers(numbers, draw, by)
            spent += seconds
            drawn += answers
            for first in range(0, len(answers), config.group):
                group = answers[first : first + config.group]
                (telling if _tells(group) else others).append(group)
            if len(telling) >= wanted:
                break
        self._tell_missing(drawn)
        learned = [one for group in [*telling, *others][:wanted] for one in group]
        figures = {**figures_of(drawn, config.group), "generate_s": spent, "tries": attempt + 1}
        return self._advantages(learned), figures

    def _answers(self, numbers: NDArray[np.int64], draw: int, by: Drawer) -> tuple[list[Answer], float]:
        """Judged answers to some prompts, of which each rank asks a part, and the seconds that they took to generate.

        Raises:
            GateError: one has no reward, where that is the end.
        """
        config, asked = self._config, self._asked
        prompts = [(int(at), asked.prompts[at]) for at in numbers]
        requests = requests_of(
            prompts,
            config.group,
            self._plan.seed,
            draw,
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )

        def work(own: Sequence[int]) -> tuple[list[Answer], float]:
            begun = time.perf_counter()
            said = asked.said(by.model, [requests[at] for at in own], asked.server)
            seconds = time.perf_counter() - begun
            mine = [Answer.of(prompts[at // config.group][0], one) for at, one in zip(own, said, strict=True)]
            return self._judged(self._scored(mine, by)), seconds

        answers, seconds = dealt(by, len(requests), config.group, work)
        failed = next((one for one in answers if one.missing), None)
        if failed is not None and config.missing == "stop":
            said_of = f"{asked.prompts[failed.prompt].id}: no reward: {failed.missing}"
            raise GateError(said_of, hint="mend the reward, or missing=leave_out")
        return answers, seconds

    def _scored(self, answers: list[Answer], by: Drawer) -> list[Answer]:
        """With log-probabilities of the reference, and figures of the weights that drew them that only these can give.

        That is the trainer's log-probabilities where they are to correct the engine's, and what a value head expects.
        """
        config, asked = self._config, self._asked
        measure = logps_at(config.temperature)
        if asked.reference is not None:
            answers = self._measured(answers, "reference", asked.reference, measure, by)
        if config.policy.correction != "none":
            answers = self._measured(answers, "old", by.model, measure, by)
        if config.policy.baseline == "value":
            answers = self._measured(answers, "values", by.model, expected, by)
        return answers

    def _measured(
        self, answers: list[Answer], name: str, model: Transformer, measure: Measure, by: Drawer
    ) -> list[Answer]:
        """With a figure of each token under that name."""
        given = {"answers": answers, "prompts": self._asked.prompts, "config": self._config}
        found = score(model, measure, run=by.forward, **given)  # type: ignore[arg-type]
        return [_with(one, name, values) for one, values in zip(answers, found, strict=True)]

    def _judged(self, answers: list[Answer]) -> list[Answer]:
        """With rewards: those of the registry, less what is taken off for length and for leaving the reference."""
        config, prompts = self._config, self._asked.prompts
        judged = self._asked.judge([sample_of(answer, prompts[answer.prompt]) for answer in answers])
        lengths = torch.tensor([answer.size for answer in answers])
        penalties = overlong_penalty(lengths, config.max_new_tokens, config.policy.overlong_tokens).tolist()
        found = []
        for answer, one, penalty in zip(answers, judged, penalties, strict=True):
            value = one.value + penalty - _divergence(answer, config)
            found.append(dataclasses.replace(answer, reward=value, parts=one.parts, missing=one.missing))
        return found

    def _advantages(self, answers: list[Answer]) -> list[Answer]:
        policy = self._config.policy
        if policy.baseline == "value":
            return valued(answers, self._config)
        rewards = torch.tensor([one.reward for one in answers], dtype=torch.float64).view(-1, self._config.group)
        values = group_advantages(rewards, baseline=policy.baseline, norm=policy.adv_norm).flatten().tolist()
        return [dataclasses.replace(one, advantage=value) for one, value in zip(answers, values, strict=True)]

    def _tell_missing(self, answers: Sequence[Answer]) -> None:
        """Say once that answers have no reward, and why the first has none.

        Raises:
            InputError: none of them has one.
        """
        missing = [one.missing for one in answers if one.missing]
        if len(missing) == len(answers):
            raise InputError(
                f"none of the {len(answers)} answers of a rollout has a reward: {missing[0]}",
                hint="mend the reward, or give the prompts what it needs",
            )
        if missing and not self._told:
            self._told = True
            of_all = f"{len(missing)} of {len(answers)} answers have no reward and are left out"
            self._asked.job.progress.note(f"{of_all}: {missing[0]}; further ones are counted as missing")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead.close()
        try:
            self._writing.close()
        finally:
            self._asked.close()


def rollout_file(work: Path, number: int) -> Path:
    """Where a rollout is kept while the run lasts."""
    return work / FOLDER / f"{number:08d}.parquet"


def _with(answer: Answer, name: str, values: Doubles) -> Answer:
    """The answer with log-probabilities under that name."""
    changes: dict[str, Any] = {name: values}
    return dataclasses.replace(answer, **changes)


def _tells(group: Sequence[Answer]) -> bool:
    """Whether rewards differ, so that there is something to learn."""
    rewards = torch.tensor([[one.reward for one in group]], dtype=torch.float64)
    return bool(deviations(rewards)[0] > 0)


def _divergence(answer: Answer, config: GrpoConfig) -> float:
    """What is taken off the reward for leaving the reference."""
    return float(token_penalties(answer, config).sum())


def sample_of(answer: Answer, prompt: Prompt) -> Sample:
    """What rewards look at: the last turn, where there are several, and all of them as the field `turns`."""
    ids = (*prompt.ids, *answer.ids.tolist())
    said = [{"role": turn.role, "content": turn.text} for turn in answer.turns]
    fields = {**prompt.fields, "turns": said} if said else prompt.fields
    return Sample(prompt.text, answer.text.strip(), prompt.answer, answer.size, fields, ids)
