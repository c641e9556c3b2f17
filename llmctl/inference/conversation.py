"""A checkpoint opened where and how the user wants it, and asked in turns of a chat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmctl.config.devices import Device, Precision
from llmctl.inference.engine import DEFAULT, Engine
from llmctl.inference.linears import prepare
from llmctl.inference.options import Options
from llmctl.inference.request import Completion, Request
from llmctl.model import huggingface
from llmctl.model.device import DTYPES, choose_device
from llmctl.tokens.chat import render_prompt


def open_engine(
    directory: Path,
    *,
    device: Device,
    precision: Precision,
    max_running: int = 1,
    options: Options = DEFAULT,
    draft: Path | None = None,
    spare_cores: int = 0,
) -> Engine:
    """The engine over a checkpoint.

    Args:
        directory: a Hugging Face directory with its tokenizer.
        device: where the model runs.
        precision: number format of the weights and the KV cache, whatever the file's is.
        max_running: most sequences generated at one time.
        options: how the engine works.
        draft: checkpoint of a small model that guesses ahead.
        spare_cores: left to others while the weights are read.

    Raises:
        InputError: a checkpoint cannot be opened, or the two do not fit each other.
        UsageError: cuda was asked for and there is none.
    """
    place = choose_device(device)
    if draft is not None:
        small = huggingface.load(draft, dtype=DTYPES[precision], device=place)
        options = replace(options, draft=prepare(small, options.weights))
    return Engine.open(
        directory,
        dtype=DTYPES[precision],
        device=place,
        max_running=max_running,
        options=options,
        spare_cores=spare_cores,
    )


def answer(engine: Engine, messages: Sequence[Mapping[str, str]], *, max_tokens: int, temperature: float) -> Completion:
    """The assistant's next turn.

    Args:
        engine: open, with a tokenizer.
        messages: the chat so far, `{"role", "content"}` each.
        max_tokens: longest answer; shorter where the model's context ends first.
        temperature: 0 takes the likeliest token always.

    Raises:
        UsageError: the chat leaves no room for an answer in the model's context.
    """
    prompt = render_prompt(engine.tokenizer, messages)
    (completion,) = engine.generate([Request(prompt, max_tokens=max_tokens, temperature=temperature)])
    return completion


def converse(
    engine: Engine, questions: Iterable[str], *, max_tokens: int, temperature: float
) -> Iterator[tuple[str, Completion]]:
    """One conversation, turn by turn: (question, answer). Every answer sees what was said before.

    Args:
        engine: open, with a tokenizer.
        questions: the user's turns; each is taken once the one before it is answered.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token always.

    Raises:
        UsageError: the conversation leaves no room for an answer in the model's context.
    """
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        completion = answer(engine, messages, max_tokens=max_tokens, temperature=temperature)
        messages.append({"role": "assistant", "content": completion.text})
        yield question, completion
