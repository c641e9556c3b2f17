"""llmctl chat."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmctl.inference.engine import Engine


def command(
    ref: Annotated[str, typer.Argument(help="The checkpoint.", show_default=False)],
    questions: Annotated[
        list[str] | None, typer.Argument(help="What to ask; read from the terminal where left out.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.", min=0.0, max=10.0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 128,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Ask a checkpoint questions. Each question given as an argument starts a new conversation.

    \b
    Examples:
      llmctl chat web.sft
      llmctl chat web.sft 'What does `os.path.join` do?'
    """
    sink = Sink("chat", as_json=as_json, human=True)
    guarded(sink, lambda: _run(ref, questions or [], temperature, max_tokens, store, sink))


def _run(ref: str, questions: list[str], temperature: float, max_tokens: int, location: str, sink: Sink) -> None:
    from llmctl.config.errors import InputError
    from llmctl.store.store import Store

    checkpoint = Store.open(location).resolve(ref)
    if checkpoint.kind != "checkpoint":
        raise InputError(f"{checkpoint.ref} is a {checkpoint.kind} artifact, not a checkpoint", hint="see llmctl ls")

    from llmctl.inference.engine import Engine

    engine = Engine.open(checkpoint.data)
    try:
        if questions:
            for question in questions:
                _answer(engine, [{"role": "user", "content": question}], temperature, max_tokens, sink)
        else:
            _converse(engine, _typed(), temperature, max_tokens, sink)
    finally:
        engine.close()


def _typed() -> Iterator[str]:
    """Lines from the terminal until end of file."""
    while True:
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _converse(engine: Engine, lines: Iterable[str], temperature: float, max_tokens: int, sink: Sink) -> None:
    """One conversation: every answer sees what was said before."""
    messages: list[dict[str, str]] = []
    for line in lines:
        messages.append({"role": "user", "content": line})
        answer = _answer(engine, messages, temperature, max_tokens, sink)
        messages.append({"role": "assistant", "content": answer})


def _answer(engine: Engine, messages: list[dict[str, str]], temperature: float, max_tokens: int, sink: Sink) -> str:
    from llmctl.inference.request import Request
    from llmctl.tokens.chat import render_prompt

    prompt = render_prompt(engine.tokenizer, messages)
    request = Request(
        prompt_ids=prompt, max_tokens=max_tokens, temperature=temperature, stop_ids=tuple(engine.tokenizer.stop_ids)
    )
    (completion,) = engine.generate([request])
    text = str(completion.text)
    if sink.mode is Mode.RECEIPTS:
        question = messages[-1]["content"]
        sink.write_json({"question": question, "answer": text, "finish_reason": completion.finish_reason})
    else:
        sink.write(f"{messages[-1]['content']}\n  {text}\n")
    return text
