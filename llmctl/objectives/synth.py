"""The stage `synth`: a teacher answers prompts by the engine, and the answers that pass become chats."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.config.errors import GateError, InputError
from llmctl.config.synth import SynthConfig
from llmctl.data.table_writer import TableWriter
from llmctl.data.tables import CHATS, SCHEMA_NAMES
from llmctl.inference.conversation import open_engine
from llmctl.inference.engine import Engine
from llmctl.inference.request import Completion, Request
from llmctl.objectives.asked import Message, Question, read_questions
from llmctl.objectives.rewards.registry import Judged, Rewards
from llmctl.objectives.rewards.rules import Sample
from llmctl.objectives.sampling import drawn
from llmctl.pipeline.job import Job, Product
from llmctl.store.files import publish_bytes
from llmctl.tokens.chat import render_prompt

PART_PROMPTS = 16  # that are asked together, and kept together when they are answered


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        text: of the answer.
        tokens: that it took.
        reward: what its rewards add up to; 0 where there are none.
        fault: why it is dropped; empty where it passes.
        missing: why it has no reward.
    """

    text: str
    tokens: int
    reward: float = 0.0
    fault: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Part:
    """What became of some prompts.

    Attributes:
        chats: rows of the table.
        counts: answers, tokens, seconds, and why answers were dropped.
        missing: why the first answer without a reward has none; empty where all have one.
    """

    chats: list[dict[str, Any]]
    counts: dict[str, float]
    missing: str = ""


def run(job: Job[SynthConfig]) -> Product:
    """Ask every prompt, part by part; parts that a killed run has finished are taken as they are.

    Raises:
        GateError: no answer passes.
        InputError: a malformed prompt, or one that leaves no room for an answer.
    """
    config, teacher = job.config, job.artifact()
    questions = read_questions(job.inputs)[: config.limit]
    parts = [questions[at : at + PART_PROMPTS] for at in range(0, len(questions), PART_PROMPTS)]
    done = {number: found for number in range(len(parts)) if (found := _finished(job.work, number)) is not None}
    if done:
        job.progress.note(f"{len(done)} of {len(parts)} parts were answered before")
    if len(done) < len(parts):
        with (
            Rewards(config.rewards, config.reward_timeout_s) as rewards,
            open_engine(
                teacher.data, device=config.device, precision=config.precision, max_running=config.running
            ) as engine,
        ):
            rewards.check([one for part in parts for one in part])
            asking = Asking(engine, rewards, config)
            asking.check(questions)
            for number in (number for number in range(len(parts)) if number not in done):
                done[number] = asking.part(parts[number], number * PART_PROMPTS)
                _keep(done[number], job.work, number)
                kept = sum(len(part.chats) for part in done.values())
                at = min(len(questions), len(done) * PART_PROMPTS)
                job.progress.update(at, len(questions), "prompts", kept=kept)
    return _written(job, [done[number] for number in range(len(parts))], len(questions))


class Asking:
    """Answers parts.

    Args:
        engine: over the teacher.
        rewards: judge.
        config: how it is asked, and what passes.
    """

    def __init__(self, engine: Engine, rewards: Rewards, config: SynthConfig) -> None:
        self._engine, self._rewards, self._config = engine, rewards, config

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse prompts that cannot be asked, before any is.

        Raises:
            InputError: naming the first.
        """
        for question in questions:
            try:
                tokens = len(self._prompt(question))
            except InputError as error:
                raise InputError(f"prompt {question.id}: {error.what}", hint=error.hint) from None
            if tokens >= self._engine.context:
                raise InputError(
                    f"prompt {question.id} has {tokens} tokens and leaves no room in the context of "
                    f"{self._engine.context}",
                    hint="shorten it, or take a teacher that reads more",
                )

    def part(self, questions: Sequence[Question], first: int) -> Part:
        """Ask, judge and choose; `first` is the number of the first question among all."""
        config, begun = self._config, time.perf_counter()
        answers = self._engine.generate(
            [
                Request(
                    self._prompt(question),
                    max_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=int(seed),
                )
                for number, question in enumerate(questions, start=first)
                for seed in drawn(config.seed, number, np.arange(config.samples))
            ]
        )
        spent, many = time.perf_counter() - begun, config.samples
        counts: Counter[str] = Counter(answers=len(answers), tokens=sum(len(one.token_ids) for one in answers))
        chats, missing = [], ""
        for place, question in enumerate(questions):
            said = self._judged(question, answers[place * many : (place + 1) * many])
            missing = missing or next((one.missing for one in said if one.missing), "")
            kept, dropped = chosen(said, config)
            counts.update(dropped)
            counts["unanswered"] += not kept
            chats += [self._chat(question, one, number) for number, one in enumerate(kept)]
        return Part(chats, {**counts, "generate_s": spent}, missing)

    def _prompt(self, question: Question) -> list[int]:
        return render_prompt(self._engine.tokenizer, self._messages(question, instructed=True))

    def _messages(self, question: Question, *, instructed: bool) -> list[Message]:
        turns, instruction = list(question.messages), self._config.instruction
        if instruction and instructed:
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n{instruction}"}
        return turns

    def _judged(self, question: Question, answers: Sequence[Completion]) -> list[Said]:
        """Each answer with its reward, or with what is wrong with it."""
        said = [Said(one.text.strip(), len(one.token_ids), fault=_fault(one)) for one in answers]
        if not self._rewards.names:
            return said
        samples = [Sample(question.spoken, one.text, question.answer, one.tokens, question.fields) for one in said]
        judged = self._rewards.judge([sample for sample, one in zip(samples, said, strict=True) if not one.fault])
        found = iter(judged)
        return [one if one.fault else self._verdict(one, next(found)) for one in said]

    def _verdict(self, one: Said, judged: Judged) -> Said:
        if judged.missing:
            return Said(one.text, one.tokens, fault="no_reward", missing=judged.missing)
        return Said(one.text, one.tokens, judged.value, "" if judged.value >= self._config.least else "wrong")

    def _chat(self, question: Question, said: Said, number: int) -> dict[str, Any]:
        turns = self._messages(question, instructed=self._config.keep_instruction)
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        return {
            "id": f"{question.id}?answer-{number}",
            "messages": [*messages, {"role": "assistant", "content": said.text}],
            "source": question.source,
            "document": question.document,
        }


def _fault(answer: Completion) -> str:
    if answer.finish_reason != "stop":
        return "cut"
    return "" if answer.text.strip() else "empty"


def chosen(said: Sequence[Said], config: SynthConfig) -> tuple[list[Said], dict[str, int]]:
    """The answers to one prompt that are kept, in the order of preference, and why the others are not."""
    dropped: Counter[str] = Counter(f"dropped.{one.fault}" for one in said if one.fault)
    passing: dict[str, Said] = {}
    for one in said:
        if not one.fault:
            passing.setdefault(one.text, one)
    dropped["dropped.repeated"] = sum(not one.fault for one in said) - len(passing)
    ranked = list(passing.values())
    if config.prefer == "best":
        ranked.sort(key=lambda one: -one.reward)
    elif config.prefer == "shortest":
        ranked.sort(key=lambda one: one.tokens)
    dropped["dropped.surplus"] = max(0, len(ranked) - config.keep)
    return ranked[: config.keep], dict(+dropped)


def _file(work: Path, number: int) -> Path:
    return work / f"answers-{number:08d}.json"


def _keep(part: Part, work: Path, number: int) -> None:
    publish_bytes(_file(work, number), json.dumps(dataclasses.asdict(part)).encode())


def _finished(work: Path, number: int) -> Part | None:
    path = _file(work, number)
    return Part(**json.loads(path.read_bytes())) if path.is_file() else None


def _written(job: Job[SynthConfig], parts: Sequence[Part], prompts: int) -> Product:
    """The table of all parts, and what came of how much.

    Raises:
        GateError: there is nothing to write.
    """
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    chats = [chat for part in parts for chat in part.chats]
    reasons = {name: round(count) for name, count in sorted(counts.items()) if name.startswith("dropped.")}
    missing = next((f"no reward: {part.missing}" for part in parts if part.missing), "")
    if missing:
        job.progress.note(f"{reasons['dropped.no_reward']} answers have {missing}")
    if not chats:
        told = ", ".join(f"{count} {name.removeprefix('dropped.')}" for name, count in reasons.items())
        raise GateError(
            f"none of {round(counts['answers'])} answers passes: {told}",
            hint=missing or "raise samples or max_new_tokens, or lower least",
        )
    with TableWriter(job.out, CHATS, prefix="part") as writer:
        writer.write_rows(chats)
    files = writer.close()
    totals: dict[str, int | float | str] = {
        "chats": len(chats),
        "prompts": prompts,
        "unanswered": round(counts["unanswered"]),
        "answers": round(counts["answers"]),
        "yield": len(chats) / counts["answers"],
        **reasons,
        "generated_tokens": round(counts["tokens"]),
        "generated_tokens_per_s": counts["tokens"] / max(counts["generate_s"], 1e-9),
        "generate_s": float(counts["generate_s"]),
        "rows_digest": writer.digest.hexdigest(),
    }
    job.log({"stage": "synth", **totals})
    return Product(SCHEMA_NAMES["chats"], {}, totals, files)
