"""Prompts to be answered, as token ids: what the policy is asked, and what its answers are judged by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmctl.config.errors import InputError
from llmctl.data.lines import plain_suffix, read_objects
from llmctl.data.split import is_heldout
from llmctl.data.tables import read_parquet, read_rows
from llmctl.objectives.targets import refuse_overlong, shown
from llmctl.store.artifact import Artifact, Input
from llmctl.tokens.chat import render_prompt
from llmctl.tokens.tokenizer import Tokenizer

OWN_COLUMNS = ("id", "prompt", "answer", "document")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: as in the data; the start of the file's digest and the line where it has none.
        document: on which the held-out rule acts; the id where the data has none.
        text: to be read.
        ids: what the policy continues.
        answer: what is wanted, where the data says so.
        fields: the other columns of its row, for rewards.
    """

    id: str
    document: str
    text: str
    ids: tuple[int, ...]
    answer: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompts:
    """Both sides of a source.

    Attributes:
        kept: to learn on, at least one.
        held: for the held-out reward.
        overlong: what is wrong with those that leave no room for an answer.
    """

    kept: list[Prompt]
    held: list[Prompt]
    overlong: list[str]


def read_prompts(
    given: Input, tokenizer: Tokenizer, *, chat: bool, longest: int, fraction: float, overlong: str
) -> Prompts:
    """Every prompt of `given`.

    Args:
        given: rows of prompt and answer; other columns are handed to rewards.
        tokenizer: the policy's.
        chat: put prompts through the chat template, else as text behind BOS.
        longest: most tokens of a prompt.
        fraction: share to hold out.
        overlong: `error`, or `drop` prompts that do not fit.

    Raises:
        InputError: a malformed row; one that does not fit; or none is left to learn on.
    """
    fitting: list[Prompt] = []
    too_long: list[str] = []
    for number, row in enumerate(_rows(given), start=1):
        where = f"{given.ref}: prompt {number}"
        prompt = _prompt(row, tokenizer, where, f"{given.as_input().digest[7:19]}:{number}", chat=chat)
        if len(prompt.ids) > longest:
            too_long.append(f"{where} ({prompt.id}) has {len(prompt.ids)} tokens")
        else:
            fitting.append(prompt)
    if longest < 1:
        raise InputError("max_new_tokens leaves no room for a prompt", hint="lower it, or raise max_tokens")
    refuse_overlong(too_long, overlong, longest)
    kept = [prompt for prompt in fitting if not is_heldout(prompt.document, fraction)]
    held = [prompt for prompt in fitting if is_heldout(prompt.document, fraction)]
    if not kept:
        raise InputError(f"{given.ref} holds no prompt to learn on", hint="see max_tokens and heldout_fraction")
    return Prompts(kept, held, too_long)


def _rows(given: Input) -> Iterator[dict[str, Any]]:
    """Rows of an artifact, whose questions have choices, or of a file with columns of its own.

    Raises:
        InputError: the file is of an unknown format or damaged.
    """
    if isinstance(given, Artifact):
        for row in read_rows(given):
            choices = row.pop("choices")
            yield {**row, "prompt": row.get("question") or row["prompt"], "answer": choices[row["answer"]]}
        return
    suffix = plain_suffix(given.path)
    if suffix == ".parquet":
        yield from itertools.chain.from_iterable(batch.to_pylist() for batch in read_parquet(given.path))
    elif suffix in {".jsonl", ".ndjson", ".json"}:
        yield from (row for _, row in read_objects(given.path))
    else:
        raise InputError(f"{given.path}: unknown format", hint="give a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file")


def _prompt(row: Mapping[str, Any], tokenizer: Tokenizer, where: str, origin: str, *, chat: bool) -> Prompt:
    asked, wanted = row.get("prompt"), row.get("answer")
    if not asked or not isinstance(asked, str | list):
        raise InputError(f"{where} must be a string or messages: {shown(asked)}", hint='give {"prompt", "answer"}')
    if isinstance(asked, list) and not chat:
        raise InputError(f"{where} is messages, and the policy takes text", hint="chat=true, or a string")
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, str | int | float)):
        raise InputError(f"{where}: 'answer' must be a string or a number: {shown(wanted)}", hint="mend the row")
    try:
        if chat:
            ids = render_prompt(tokenizer, [{"role": "user", "content": asked}] if isinstance(asked, str) else asked)
        else:
            ids = [tokenizer.bos_id, *tokenizer.encode(str(asked))]
    except InputError as error:
        raise InputError(f"{where}: {error.what}", hint=error.hint) from None
    text = asked if isinstance(asked, str) else _spoken(asked)
    name = str(row.get("id") or origin)
    fields = {key: value for key, value in row.items() if key not in OWN_COLUMNS}
    answer = None if wanted is None else str(wanted)
    return Prompt(name, str(row.get("document") or name), text, tuple(ids), answer, fields)


def _spoken(turns: list[Any]) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
