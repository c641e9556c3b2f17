"""llmctl chat."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from llmctl.cli.command import DEFAULT_STORE, Given, JsonOption, PrintConfigOption, StoreOption, build_command
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink
from llmctl.cli.stage import open_inputs
from llmctl.config.errors import UsageError
from llmctl.pipeline.stage import Role, Verb

if TYPE_CHECKING:
    from llmctl.inference.request import Completion

CHAT = Verb(
    command="chat",
    summary="Ask a checkpoint questions. Each one given as an argument starts a new conversation.",
    config="llmctl.config.chat:ChatConfig",
    inputs={"input": Role(("checkpoint",), "checkpoint to ask")},
    words="questions",
    flags={"--temperature": "temperature", "--max-tokens": "max_tokens", "--device": "device"},
    examples=("llmctl chat web.sft", "llmctl chat web.sft 'What does `os.path.join` do?'"),
)
COMMON: dict[str, tuple[Any, Any]] = {
    "store": (StoreOption, DEFAULT_STORE),
    "as_json": (JsonOption, False),
    "print_config": (PrintConfigOption, False),
}


def _body(given: Given) -> None:
    sink = Sink("chat", as_json=given.options["as_json"], human=True)
    guarded(sink, lambda: _run(given, sink))


def _run(given: Given, sink: Sink) -> None:
    from llmctl.config.chat import ChatConfig
    from llmctl.store.artifact import Artifact

    if given.options["print_config"]:
        sink.write(given.config().model_dump_json(indent=2))
        return
    config, refs = given.resolve()
    inputs, piped = open_inputs(CHAT, refs, given.options["store"])
    checkpoint = inputs["input"]
    assert isinstance(checkpoint, Artifact)
    assert isinstance(config, ChatConfig)
    if piped and not config.questions:
        raise UsageError("no question was given", hint="the pipe takes the terminal's place: give questions as words")

    from llmctl.inference.conversation import converse, open_engine
    from llmctl.inference.options import Options

    options = Options(weights=config.weights)
    with open_engine(checkpoint.data, device=config.device, precision=config.precision, options=options) as engine:
        talks: list[Iterable[str]] = [[question] for question in config.questions]
        for talk in talks or [_typed()]:
            turns = converse(engine, talk, max_tokens=config.max_tokens, temperature=config.temperature)
            for question, answer in turns:
                _show(question, answer, sink)


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


def _show(question: str, answer: Completion, sink: Sink) -> None:
    if sink.mode is Mode.RECEIPTS:
        sink.write_json({"question": question, "answer": answer.text, "finish_reason": answer.finish_reason})
    else:
        sink.write(f"{question}\n  {answer.text}\n")


command = build_command(CHAT, COMMON, _body)
