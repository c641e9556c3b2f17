"""Where every way has its asking, sifting, judging and choosing done, and its books kept."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmctl.config.synth import SynthConfig
from llmctl.objectives.asked import Message, Question
from llmctl.objectives.rewards.registry import Judged, Rewards
from llmctl.objectives.rewards.rules import Sample
from llmctl.objectives.sampling import drawn
from llmctl.objectives.synth.said import Ask, Dropped, Said, chosen
from llmctl.objectives.synth.sieve import Sieve
from llmctl.objectives.synth.tally import ANSWERS, QUESTIONS, REVISIONS, TASKS, Tally
from llmctl.objectives.synth.teacher import Teacher

Numbered = tuple[int, Question]
"""A question and its number among all that are ever asked at its step, on which its seeds depend."""
ScoredIds = Callable[[Sequence[Message], str], Sequence[int]]
"""Ids of a chat with its answer, as a reward model reads them."""
Fault = Callable[[Question, Said], str]
"""What is wrong with an answer to a question; empty where nothing is."""
SALTS = {ANSWERS: 0, TASKS: 1, QUESTIONS: 2, "critiques": 3, REVISIONS: 4}
"""So that steps draw other numbers for the same question."""
ROUNDS = 64  # most of them


def no_fault(question: Question, one: Said) -> str:  # noqa: ARG001 - as every `Fault`
    """Nothing is wrong with any."""
    return ""


class Desk:
    """One part of the work at a time.

    Args:
        teacher: answers.
        rewards: judge.
        sieve: finds what is wrong with texts.
        config: how it is asked, and what passes.
        scored_ids: what a reward model among the rewards reads; None where there is none.

    Attributes:
        tally: what came and was dropped.
        counts: answers, tokens, seconds.
        missing: why the first answer without a reward, or refused, has none; empty where all have one.
    """

    def __init__(
        self,
        teacher: Teacher,
        rewards: Rewards,
        sieve: Sieve,
        config: SynthConfig,
        scored_ids: ScoredIds | None = None,
    ) -> None:
        self.config, self._teacher, self._rewards, self._sieve = config, teacher, rewards, sieve
        self._scored_ids = scored_ids
        self.begin()

    def begin(self) -> None:
        """Open the books of another part."""
        self.tally = Tally()
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.missing = ""

    def seeds(self, step: str, number: int, count: int, turn: int = 0) -> list[int]:
        """Of `count` answers; a function of the configuration's seed and of these alone."""
        salt = (SALTS[step] * ROUNDS + turn) * 1_000_003
        return [int(seed) for seed in drawn(self.config.seed + salt, number, np.arange(count))]

    def ask(self, asks: Sequence[Ask]) -> list[list[Said]]:
        """What the teacher says, with the tokens and the time that it took."""
        begun = time.perf_counter()
        answers = self._teacher.answer(asks)
        self.seconds += time.perf_counter() - begun
        for one in (one for several in answers for one in several):
            self.counts.update(requests=1, asked_tokens=one.asked, tokens=one.tokens)
            if one.fault == "refused":
                self.missing = self.missing or one.missing
        return answers

    def ask_step(
        self, step: str, asked: Sequence[Numbered], count: int, prompt: Callable[[Question], str]
    ) -> list[list[Said]]:
        """Texts of the teacher's that become questions: `count` for each, all of which come into the step."""
        said = self.ask(
            [
                Ask([{"role": "user", "content": prompt(question)}], self.seeds(step, number, count))
                for number, question in asked
            ]
        )
        self.tally.enter(step, [one.text for several in said for one in several])
        return said

    def uncontaminated(self, asked: Sequence[Numbered], *, enter: bool = True) -> list[Numbered]:
        """The questions that stand in no evaluation set; the others are dropped before they are asked.

        Args:
            asked: the questions.
            enter: whether they come into the step now; such as a teacher made have done so before.
        """
        texts = [question.spoken for _, question in asked]
        if enter:
            self.tally.enter(QUESTIONS, texts)
        spoiled = self._sieve.contaminated(texts)
        for (_, question), bad in zip(asked, spoiled, strict=True):
            if bad:
                self.tally.drop(QUESTIONS, "contaminated", Said(question.spoken, 0), question)
        return [one for one, bad in zip(asked, spoiled, strict=True) if not bad]

    def answered(
        self,
        asked: Sequence[Numbered],
        messages: Callable[[Question], list[Message]],
        fault: Fault = no_fault,
        *,
        judged: bool = True,
    ) -> list[list[Said]]:
        """The answers to each question, sifted, and judged where there are rewards.

        Args:
            asked: the questions.
            messages: what the teacher is asked about one.
            fault: what else may be wrong with an answer.
            judged: whether rewards look at them.
        """
        config = self.config
        said = self.ask(
            [Ask(messages(question), self.seeds(ANSWERS, number, config.samples)) for number, question in asked]
        )
        self.tally.enter(ANSWERS, [one.text for several in said for one in several])
        return self.sifted([question for _, question in asked], said, fault, judged=judged)

    def sifted(
        self,
        questions: Sequence[Question],
        said: Sequence[Sequence[Said]],
        fault: Fault = no_fault,
        *,
        judged: bool = True,
    ) -> list[list[Said]]:
        """Each answer to each question with its reward, or with what is wrong with it; arguments as for `answered`.

        All of them are judged together: a judge behind a server, a sandbox and a reward model take many at a time.
        """
        of = [question for question, several in zip(questions, said, strict=True) for _ in several]
        sifted = self._sieve.sifted([one for several in said for one in several])
        sifted = [
            one if one.fault else replace(one, fault=fault(question, one))
            for question, one in zip(of, sifted, strict=True)
        ]
        if judged and self._rewards.names:
            samples = [self._sample(question, one) for question, one in zip(of, sifted, strict=True) if not one.fault]
            found = iter(self._rewards.judge(samples))
            sifted = [one if one.fault else self._verdict(one, next(found)) for one in sifted]
        in_order = iter(sifted)
        return [[next(in_order) for _ in several] for several in said]

    def _sample(self, question: Question, one: Said) -> Sample:
        ids = self._scored_ids(question.messages, one.text) if self._scored_ids is not None else ()
        return Sample(question.spoken, one.text, question.answer, one.tokens, question.fields, tuple(ids))

    def _verdict(self, one: Said, judged: Judged) -> Said:
        if judged.missing:
            self.missing = self.missing or judged.missing
            return replace(one, fault="no_reward", missing=judged.missing)
        assert math.isfinite(judged.value), "what has no value is missing"
        passes = self.config.way.compares or judged.value >= self.config.least
        return replace(one, reward=judged.value, fault="" if passes else "wrong")

    def kept(
        self,
        question: Question,
        said: Sequence[Said],
        choose: Callable[[Sequence[Said]], tuple[list[Said], Dropped]] | None = None,
        step: str = ANSWERS,
    ) -> list[Said]:
        """The answers to one question that stay; the others are put down with their reasons."""
        kept, dropped = choose(said) if choose is not None else chosen(said, self.config)
        for reason, one in dropped:
            self.tally.drop(step, reason, one, question)
        self.counts["unanswered"] += not kept
        return kept


def row_of(question: Question, suffix: str) -> dict[str, Any]:
    """The columns that every row has: whence it comes, and the document on which the held-out rule acts."""
    return {"id": f"{question.id}?{suffix}", "source": question.source, "document": question.document}


def turns_of(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as tables hold them."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]


def said_by_assistant(text: str) -> dict[str, str]:
    """An answer as the turn of a chat."""
    return {"role": "assistant", "content": text}
