"""The forms in which others write chats and preferences, each brought into our own.

The names are those that Hugging Face's libraries read (TRL, docs/source/dataset_formats.md; LLaMA-Factory,
data/README.md). A row that is in our form already passes as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from llmctl.config.errors import InputError

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

# ShareGPT's names of who speaks. It was written by people who export what a web page shows.
SPEAKERS: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}
# What Parquet fills in where other messages of the file have the key.
SAYS_NOTHING: Final[tuple[Any, ...]] = (None, "", [])
CHAT_FORMS = (
    "messages, ShareGPT's conversations, Alpaca's instruction and output, prompt and completion, or question and answer"
)
PREFERENCE_FORMS = "prompt, chosen and rejected, or prompt, completion and label"


def canonical(kind: str, row: Row, where: str) -> Row:
    """The row with the columns of its kind's schema; rows of other kinds stay as they are.

    Raises:
        InputError: it is in none of the known forms; the message starts with `where`.
    """
    bring = _FORMS.get(kind)
    return row if bring is None else bring(row, where)


def _chat(row: Row, where: str) -> Row:
    """The column `messages`, from whichever form the row is in."""
    if row.get("messages") is not None:
        _refuse_unknown_keys(row["messages"], ("role", "content"), f"{where}: messages")
        return row
    if row.get("conversations") is not None:
        return {**row, "messages": _with_system(row, _spoken(row["conversations"], where))}
    if row.get("instruction") is not None:
        return {**row, "messages": _with_system(row, _alpaca(row, where))}
    if row.get("completion") is not None:
        prompt, completion = _prompt(row, where), _answer(row, "completion", where)
        return {**row, "messages": [*prompt, *completion]}
    if row.get("question") is not None:  # as in GSM8K's own files
        question, answer = (_text(row.get(name), f"{where}: {name!r}") for name in ("question", "answer"))
        return {**row, "messages": [_message("user", question), _message("assistant", answer)]}
    raise InputError(f"{where}: no 'messages'", hint=f"a row of chats has {CHAT_FORMS}")


def _spoken(turns: Any, where: str) -> Messages:
    """ShareGPT's `[{"from": "human", "value": …}, …]`; some files say role and content there."""
    if not isinstance(turns, list):
        raise InputError(f"{where}: 'conversations' must be a list", hint='give [{"from", "value"}, …]')
    _refuse_unknown_keys(turns, ("from", "value", "role", "content"), f"{where}: conversations")
    messages = []
    for number, turn in enumerate(turns):
        place = f"{where}: conversations[{number}]"
        if not isinstance(turn, Mapping):
            raise InputError(f"{place} must be an object", hint='give {"from", "value"}')
        speaker, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if speaker not in SPEAKERS:
            raise InputError(f"{place} is from the unknown speaker {speaker!r}", hint=f"known: {', '.join(SPEAKERS)}")
        messages.append({"role": SPEAKERS[speaker], "content": _text(content, f"{place}: 'value'")})
    return messages


def _alpaca(row: Row, where: str) -> Messages:
    """`instruction`, `input` below it where there is one, and `output`; `history` holds pairs that came before."""
    messages = []
    history = row.get("history") or []
    for number, pair in enumerate(history if isinstance(history, list) else [history]):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"{where}: history[{number}] must be a pair", hint='give [["question", "answer"], …]')
        asked, said = (_text(text, f"{where}: history[{number}]") for text in pair)
        messages += [_message("user", asked), _message("assistant", said)]
    question = _text(row["instruction"], f"{where}: 'instruction'")
    given = row.get("input")
    if given:
        question += "\n" + _text(given, f"{where}: 'input'")
    answer = _text(row.get("output"), f"{where}: 'output'")
    return [*messages, _message("user", question), _message("assistant", answer)]


def _with_system(row: Row, messages: Messages) -> Messages:
    """The column `system`, which both forms may carry, as the first message."""
    system = row.get("system")
    return [_message("system", system), *messages] if isinstance(system, str) and system else messages


def _preference(row: Row, where: str) -> Row:
    """`prompt`, `chosen`, `rejected` as messages; of an answer that stands by itself the other side is empty."""
    if row.get("completion") is not None or row.get("label") is not None:
        return _unpaired(row, where)
    missing = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if missing:
        raise InputError(f"{where}: no {missing[0]!r}", hint=f"a row of preferences has {PREFERENCE_FORMS}")
    if row.get("prompt") is None:
        prompt, chosen, rejected = _parted(row, where)
    else:
        prompt = _prompt(row, where)
        chosen, rejected = (_behind(prompt, _answer(row, name, where), name, where) for name in ("chosen", "rejected"))
    margin = row.get("margin")
    if margin is not None and (
        isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin)
    ):
        raise InputError(f"{where}: 'margin' must be a finite number, got {margin!r}", hint="leave it out, or mend it")
    return {**row, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def _unpaired(row: Row, where: str) -> Row:
    """An answer with a label: true puts it on the side of the chosen."""
    label = row.get("label")
    if not isinstance(label, bool):
        fault = "no 'label'" if label is None else f"'label' must be true or false, got {label!r}"
        raise InputError(f"{where}: {fault}", hint="true for a good completion, false for a bad one")
    prompt = _prompt(row, where)
    answer = _behind(prompt, _answer(row, "completion", where), "completion", where)
    return {**row, "prompt": prompt, "chosen": answer if label else [], "rejected": [] if label else answer}


def _stepwise(row: Row, where: str) -> Row:
    """TRL's stepwise supervision: `completions`, the steps of an answer, and for each of them a label."""
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list) or not steps:
        raise InputError(f"{where}: no 'completions'", hint="give the steps of an answer, a list of strings")
    for number, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise InputError(f"{where}: completions[{number}] must be a step, got {step!r}", hint="leave it out")
    if not isinstance(labels, list) or len(labels) != len(steps):
        found = len(labels) if isinstance(labels, list) else 0
        raise InputError(f"{where}: {found} 'labels' of {len(steps)} steps", hint="give one, true or false, for each")
    for number, label in enumerate(labels):
        if label not in (True, False):
            raise InputError(f"{where}: labels[{number}] must be true or false, got {label!r}", hint="mend the row")
    return {**row, "prompt": _prompt(row, where), "labels": [bool(label) for label in labels]}


def _parted(row: Row, where: str) -> tuple[Messages, Messages, Messages]:
    """The prompt that two whole conversations share, and how each goes on."""
    chosen, rejected = (row[name] for name in ("chosen", "rejected"))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise InputError(f"{where}: no 'prompt'", hint="answers that are strings need one beside them")
    for name in ("chosen", "rejected"):
        _refuse_unknown_keys(row[name], ("role", "content"), f"{where}: {name!r}")
    shared = next(
        (at for at, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other),
        min(len(chosen), len(rejected)),
    )
    if shared == 0:
        raise InputError(
            f"{where}: no 'prompt', and 'chosen' and 'rejected' begin differently", hint="give the prompt by itself"
        )
    if shared in (len(chosen), len(rejected)):
        what = "are the same" if len(chosen) == len(rejected) else "differ in nothing but that one goes on"
        raise InputError(f"{where}: 'chosen' and 'rejected' {what}", hint="leave the row out, or mend it")
    prompt, *answers = (_messages(part, "", where) for part in (chosen[:shared], chosen[shared:], rejected[shared:]))
    better, worse = (
        _checked(prompt, answer, name, where) for name, answer in zip(("chosen", "rejected"), answers, strict=True)
    )
    return prompt, better, worse


def _prompt(row: Row, where: str) -> Messages:
    """A string is what the user says."""
    prompt = row.get("prompt")
    if prompt is None:
        raise InputError(f"{where}: no 'prompt'", hint="give a string or messages")
    return _messages(prompt, "user", f"{where}: 'prompt'")


def _answer(row: Row, name: str, where: str) -> Messages:
    """A string is what the assistant says."""
    if row.get(name) is None:
        raise InputError(f"{where}: no {name!r}", hint="give a string or messages")
    return _messages(row[name], "assistant", f"{where}: {name!r}")


def _behind(prompt: Messages, answer: Messages, name: str, where: str) -> Messages:
    """The answer without the prompt that it may repeat, as UltraFeedback's does."""
    return _checked(prompt, answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer, name, where)


def _checked(prompt: Messages, answer: Messages, name: str, where: str) -> Messages:
    """The answer, which begins with the assistant's turn behind a prompt that ends with another's."""
    if prompt[-1]["role"] == "assistant":
        raise InputError(f"{where}: 'prompt' ends with the assistant's turn", hint="an answer is a turn of its own")
    if not answer or answer[0]["role"] != "assistant":
        said = "holds no answer" if not answer else f"begins with the role {answer[0]['role']!r} and another prompt"
        raise InputError(f"{where}: {name!r} {said}", hint="an answer begins with the assistant's turn")
    return answer


def _messages(given: Any, role: str, what: str) -> Messages:
    """A string as one message of `role`; a list of messages as it is, if it is one."""
    if isinstance(given, str):
        return [_message(role, given)]
    _refuse_unknown_keys(given, ("role", "content"), what)
    fitting = isinstance(given, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in given
    )
    if not fitting or not given:
        raise InputError(f"{what} must be a string or a list of {{role, content}}", hint="see docs/objectives.md")
    return [_message(turn["role"], turn["content"]) for turn in given]


def _refuse_unknown_keys(messages: Any, known: tuple[str, ...], what: str) -> None:
    """Refuse messages that say more than is learned, as calls of tools or weights; dropped, they would go unnoticed.

    Raises:
        InputError: naming the first such message and key; what is no list of objects is refused elsewhere.
    """
    for number, message in enumerate(messages if isinstance(messages, list) else []):
        for key in message if isinstance(message, Mapping) else ():
            if key not in known and message[key] not in SAYS_NOTHING:
                raise InputError(
                    f"{what}[{number}] has {key!r}, of which nothing would be learned",
                    hint="role and content are learned from: write it into the content, or take the key out",
                )


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _text(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise InputError(f"{what} must be a string, got {type(given).__name__}", hint="mend the row, or leave it out")
    return given


_FORMS: Final[dict[str, Callable[[Row, str], Row]]] = {
    "chats": _chat,
    "preferences": _preference,
    "stepwise": _stepwise,
}
