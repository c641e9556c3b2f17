"""Answers that are criticised and written anew by the principles of a constitution.

(Bai et al. 2022, arXiv:2212.08073: the supervised stage of constitutional AI.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.config.errors import InputError
from llmctl.config.load import read_yaml
from llmctl.config.synth import SynthConfig
from llmctl.config.ways import RevisionsConfig
from llmctl.data.lessons.draw import pick
from llmctl.objectives.asked import Message, Question
from llmctl.objectives.synth.answers import Answers, chats, preference
from llmctl.objectives.synth.desk import Desk, Numbered, said_by_assistant, turns_of
from llmctl.objectives.synth.instruct import PLACES
from llmctl.objectives.synth.said import Ask, Dropped, Said, chosen
from llmctl.objectives.synth.tally import REVISIONS

CRITIQUE = "Say where your last answer fails this principle: {principle}"
REVISE = "Write your last answer anew so that it keeps to this principle, and nothing else: {principle}"


@dataclass(frozen=True)
class Principle:
    """One principle: what asks for the critique, and what for the new answer."""

    critique: str
    revise: str


@dataclass(frozen=True)
class Draft:
    """An answer on its way.

    Attributes:
        number: on which its seeds depend.
        question: that it answers.
        first: as it was before.
        last: as it is now; its fault where it goes no further.
    """

    number: int
    question: Question
    first: Said
    last: Said


class Revisions(Answers):
    """Answers to prompts, each `rounds` times criticised and written anew."""

    def __init__(self, config: SynthConfig) -> None:
        super().__init__(config)
        assert isinstance(config.way, RevisionsConfig), "that is why"
        self._way = config.way
        self._principles = read_constitution(Path(config.way.constitution))

    def rows(self, units: Sequence[Numbered], desk: Desk) -> Iterator[dict[str, Any]]:
        """The chats, or the preferences, of one part."""
        asked = desk.uncontaminated(units)
        drafts = list(self._begun(asked, desk))
        desk.tally.enter(REVISIONS, [draft.first.text for draft in drafts])
        for turn in range(self._way.rounds):
            drafts = self._revised(drafts, turn, desk)
        groups = [list(own) for _, own in itertools.groupby(drafts, key=lambda draft: draft.question)]
        questions = [own[0].question for own in groups]
        sifted = desk.sifted(questions, [[draft.last for draft in own] for own in groups])
        for question, own, said in zip(questions, groups, sifted, strict=True):
            yield from self._written(question, own, said, desk)

    def _begun(self, asked: Sequence[Numbered], desk: Desk) -> Iterator[Draft]:
        """All whole answers, whatever they are worth."""
        everything = replace_keep(self._config)
        for (number, question), said in zip(asked, desk.answered(asked, self.opening, judged=False), strict=True):
            for place, one in enumerate(desk.kept(question, said, lambda several: chosen(several, everything))):
                yield Draft(number * PLACES + place, question, one, one)

    def _revised(self, drafts: list[Draft], turn: int, desk: Desk) -> list[Draft]:
        """The same drafts after one more round; one that has a fault stays as it is."""
        going = [draft for draft in drafts if not draft.last.fault]
        principles = [self._principle(draft, turn) for draft in going]
        before = [[*turns_of(self.opening(draft.question)), said_by_assistant(draft.last.text)] for draft in going]
        critiques = self._asked(going, before, [one.critique for one in principles], "critiques", turn, desk)
        spoken: list[list[Message]] = [
            [*turns, {"role": "user", "content": principle.critique}, said_by_assistant(critique.text)]
            for turns, principle, critique in zip(before, principles, critiques, strict=True)
        ]
        sound = [at for at, critique in enumerate(critiques) if not critique.fault]
        written = self._asked(
            [going[at] for at in sound], [spoken[at] for at in sound], [principles[at].revise for at in sound],
            REVISIONS, turn, desk,
        )  # fmt: skip
        last = {**dict(enumerate(critiques)), **dict(zip(sound, written, strict=True))}
        found = iter(replace(draft, last=last[at]) for at, draft in enumerate(going))
        return [draft if draft.last.fault else next(found) for draft in drafts]

    def _asked(
        self,
        drafts: Sequence[Draft],
        before: Sequence[Sequence[Message]],
        requests: Sequence[str],
        step: str,
        turn: int,
        desk: Desk,
    ) -> list[Said]:
        """One answer to each request behind what was said."""
        asks = [
            Ask([*turns, {"role": "user", "content": request}], desk.seeds(step, draft.number, 1, turn))
            for draft, turns, request in zip(drafts, before, requests, strict=True)
        ]
        return [one for (one,) in desk.ask(asks)]

    def _principle(self, draft: Draft, turn: int) -> Principle:
        order = pick(self._principles, len(self._principles), self._config.seed, draft.question.id, str(draft.number))
        return order[turn % len(order)]

    def _written(
        self, question: Question, drafts: Sequence[Draft], said: Sequence[Said], desk: Desk
    ) -> Iterator[dict[str, Any]]:
        """What is made of the drafts of one question, and of what is known of their last texts."""
        messages = self.written(question)
        if self._way.write == "chats":
            yield from chats(question, messages, said, desk, REVISIONS)
            return
        pairs = list(zip(said, drafts, strict=True))
        firsts = {one.text: draft.first for one, draft in reversed(pairs)}  # of equal texts the first stays

        def changed(several: Sequence[Said]) -> tuple[list[Said], Dropped]:
            marked = [
                replace(one, fault="unchanged") if not one.fault and one.text == firsts[one.text].text else one
                for one in several
            ]
            return chosen(marked, self._config)

        for number, one in enumerate(desk.kept(question, said, changed, REVISIONS)):
            row = preference(question, messages, one.text, firsts[one.text].text, None)
            yield {**row, "id": f"{row['id']}-{number}"}


def replace_keep(config: SynthConfig) -> SynthConfig:
    """The same configuration, which keeps every answer in the order in which they were drawn."""
    return config.model_copy(update={"keep": config.samples, "prefer": "first"})


def read_constitution(path: Path) -> list[Principle]:
    """The principles of a file, in order: one a line, or a list in YAML or JSON of texts or of {critique, revise}.

    Raises:
        InputError: there is none, or one is neither.
    """
    if path.suffix in (".yaml", ".yml", ".json"):
        listed = read_yaml(path)
    else:
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        listed = [line for line in lines if line and not line.startswith("#")]
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path} holds no list of principles", hint="write one principle a line")
    return [_principle(one, f"{path}: principle {number}") for number, one in enumerate(listed, start=1)]


def _principle(given: Any, where: str) -> Principle:
    if isinstance(given, str) and given.strip():
        return Principle(CRITIQUE.format(principle=given.strip()), REVISE.format(principle=given.strip()))
    if isinstance(given, dict) and set(given) == {"critique", "revise"}:
        critique, revise = str(given["critique"]).strip(), str(given["revise"]).strip()
        if critique and revise:
            return Principle(critique, revise)
    raise InputError(f"{where} is {given!r:.100}", hint="give a text, or {critique: …, revise: …}")
