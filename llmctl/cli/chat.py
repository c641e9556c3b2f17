"""llmctl chat."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli.command import DEFAULT_STORE, JsonOption, StoreOption
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink
from llmctl.config.devices import Device  # typer reads it at run time
from llmctl.pipeline.stage import Role, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmctl.inference.engine import Engine

CHAT = Verb(
    command="chat",
    summary="Ask a checkpoint questions.",
    config="llmctl.config.base:Config",
    inputs={"input": Role(("checkpoint",), "checkpoint to ask")},
)


@dataclass(frozen=True)
class Generation:
    """How every answer is generated."""

    temperature: float
    max_tokens: int


def command(
    ref: Annotated[str, typer.Argument(help="The checkpoint.", show_default=False)],
    questions: Annotated[
        list[str] | None, typer.Argument(help="What to ask; read from the terminal where left out.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.", min=0.0, max=10.0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 128,
    device: Annotated[
        Device, typer.Option(help="Where the model runs; auto takes an accelerator where there is one.")
    ] = "auto",
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
    guarded(sink, lambda: _run(ref, questions or [], Generation(temperature, max_tokens), device, store, sink))


def _run(ref: str, questions: list[str], settings: Generation, device: Device, location: str, sink: Sink) -> None:
    from llmctl.pipeline.execute import resolve_inputs
    from llmctl.store.artifact import Artifact
    from llmctl.store.store import Store

    checkpoint = resolve_inputs(CHAT, {"input": ref}, Store.open(location))["input"]
    assert isinstance(checkpoint, Artifact)

    from llmctl.inference.conversation import open_engine

    with open_engine(checkpoint.data, device=device, precision="fp32") as engine:
        if questions:
            for question in questions:
                _answer(engine, [{"role": "user", "content": question}], settings, sink)
        else:
            _converse(engine, _typed(), settings, sink)


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


def _converse(engine: Engine, lines: Iterable[str], settings: Generation, sink: Sink) -> None:
    """One conversation: every answer sees what was said before."""
    messages: list[dict[str, str]] = []
    for line in lines:
        messages.append({"role": "user", "content": line})
        text = _answer(engine, messages, settings, sink)
        messages.append({"role": "assistant", "content": text})


def _answer(engine: Engine, messages: list[dict[str, str]], settings: Generation, sink: Sink) -> str:
    """Answer the last message, print both, and return the answer's text."""
    from llmctl.inference.conversation import answer

    completion = answer(engine, messages, max_tokens=settings.max_tokens, temperature=settings.temperature)
    question, text = messages[-1]["content"], completion.text
    if sink.mode is Mode.RECEIPTS:
        sink.write_json({"question": question, "answer": text, "finish_reason": completion.finish_reason})
    else:
        sink.write(f"{question}\n  {text}\n")
    return text
