"""What a model is asked: prompts, or chats without the assistant's last turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmctl.config.errors import InputError, UsageError
from llmctl.data.lines import plain_suffix, read_objects
from llmctl.data.tables import read_parquet, read_rows
from llmctl.objectives.targets import shown
from llmctl.store.artifact import Artifact, Input

ASKED = ("prompt", "question", "instruction")
"""Columns that may hold what is asked; the first that is there does."""
OWN_COLUMNS = ("id", "prompt", "answer", "document", "source", "messages")
Message = Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
        id: as in the data, or made of its place.
        messages: the chat up to the turn that is to be said.
        answer: what is wanted; None where the data does not say.
        document: on which the held-out rule acts.
        source: where it comes from.
        fields: the other columns of its row, for rewards.
        text: the prompt where it is one text; None where it is a chat.
    """

    id: str
    messages: Sequence[Message]
    answer: str | None = None
    document: str = ""
    source: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None

    @property
    def spoken(self) -> str:
        """All of it as one text, for people and rewards."""
        return self.text or "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)


def read_questions(inputs: Mapping[str, Input]) -> list[Question]:
    """All questions, in their order.

    Raises:
        InputError: a malformed row, named; or there is none.
        UsageError: prompts and chats are both given, or neither.
    """
    given = [role for role in ("prompts", "chats") if role in inputs]
    if len(given) != 1:
        told = " and ".join(f"--{role}" for role in given) or "neither"
        raise UsageError(
            f"synth asks one of prompts and chats, and got {told}", hint="give --prompts REF or --chats REF"
        )
    source = inputs[given[0]]
    found = list(_of_chats(source) if given == ["chats"] else prompts_of(source))
    if not found:
        raise InputError(f"{source.ref} holds no prompt", hint="see llmctl show")
    return found


def _of_chats(given: Input) -> Iterator[Question]:
    """What the assistant said last is the answer that is wanted, where a reward looks for one."""
    for number, row in enumerate(read_rows(given), start=1):
        turns = row["messages"]
        if not turns or turns[-1]["role"] != "assistant":
            raise InputError(
                f"{given.ref}: chat {number} ({row['id']}) does not end with the assistant: {shown(turns)}",
                hint="end it with its answer, or give it as a prompt",
            )
        document = row.get("document") or row["id"]
        yield Question(row["id"], turns[:-1], turns[-1]["content"], document, row.get("source", ""))


def prompts_of(given: Input) -> Iterator[Question]:
    """The questions of a `prompts` artifact or of a file with columns of `ASKED` and answer, in their order.

    Raises:
        InputError: a malformed row, named, or a file of an unknown format.
    """
    for number, row in enumerate(_rows(given), start=1):
        where, wanted = f"{given.ref}: prompt {number}", row.get("answer")
        asked = next((row[name] for name in ASKED if row.get(name)), None)
        if not asked or not isinstance(asked, str | list):
            raise InputError(f"{where} must be a string or messages: {shown(asked)}", hint='give {"prompt", "answer"}')
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, str | int | float)):
            raise InputError(f"{where}: 'answer' must be a string or a number: {shown(wanted)}", hint="mend the row")
        name = str(row.get("id") or f"{given.as_input().digest[7:19]}:{number}")
        yield Question(
            name,
            [{"role": "user", "content": asked}] if isinstance(asked, str) else asked,
            None if wanted is None else str(wanted),
            str(row.get("document") or name),
            str(row.get("source") or ""),
            {key: value for key, value in row.items() if key not in OWN_COLUMNS},
            asked if isinstance(asked, str) else None,
        )


def _rows(given: Input) -> Iterator[dict[str, Any]]:
    """Rows of an artifact, whose questions have choices, or of a file with columns of its own."""
    if isinstance(given, Artifact):
        for row in read_rows(given):
            choices, right = row.pop("choices"), row["answer"]
            if not 0 <= right < len(choices):
                raise InputError(
                    f"{given.ref}: question {row['id']} has answer {right}, but {len(choices)} choices",
                    hint="answer is the index of the right choice, from 0",
                )
            yield {**row, "prompt": row.get("question") or row["prompt"], "answer": choices[right]}
        return
    suffix = plain_suffix(given.path)
    if suffix == ".parquet":
        yield from itertools.chain.from_iterable(batch.to_pylist() for batch in read_parquet(given.path))
    elif suffix in {".jsonl", ".ndjson", ".json"}:
        yield from (row for _, row in read_objects(given.path))
    else:
        raise InputError(f"{given.path}: unknown format", hint="give a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file")
