"""llmctl export."""

from __future__ import annotations

from typing import Any

from llmctl.cli.command import DEFAULT_STORE, Given, JsonOption, PrintConfigOption, StoreOption, build_command
from llmctl.cli.failures import guarded
from llmctl.cli.output import Mode, Sink
from llmctl.cli.stage import open_inputs
from llmctl.pipeline.stage import Role, Verb

EXPORT = Verb(
    command="export",
    summary="Write a checkpoint as a Hugging Face folder or a GGUF file.",
    config="llmctl.config.inout:ExportConfig",
    inputs={"input": Role(("checkpoint",), "checkpoint to write")},
    words="to",
    flags={"--format": "format", "--dtype": "dtype"},
    examples=(
        "llmctl export web.sft model/",
        "llmctl export web.sft model.gguf --dtype q8_0",
        "llmctl export web.sft model/ --dtype bf16 shard_bytes=2000000000",
    ),
)
COMMON: dict[str, tuple[Any, Any]] = {
    "store": (StoreOption, DEFAULT_STORE),
    "as_json": (JsonOption, False),
    "print_config": (PrintConfigOption, False),
}


def _body(given: Given) -> None:
    sink = Sink("export", as_json=given.options["as_json"], human=True)
    guarded(sink, lambda: _run(given, sink))


def _run(given: Given, sink: Sink) -> None:
    from llmctl.config.inout import ExportConfig
    from llmctl.store.artifact import Artifact

    if given.options["print_config"]:
        sink.write(given.config().model_dump_json(indent=2))
        return
    config, refs = given.resolve()
    inputs, _ = open_inputs(EXPORT, refs, given.options["store"])
    checkpoint = inputs["input"]
    assert isinstance(checkpoint, Artifact)
    assert isinstance(config, ExportConfig)

    from llmctl.cli.summary import byte_size
    from llmctl.model.exporting import export

    done = export(checkpoint, config, sink)
    if sink.mode is Mode.RECEIPTS:
        facts = {"ref": checkpoint.ref, "path": str(done.path), "format": done.format, "dtype": done.dtype}
        sink.write_json({**facts, "architecture": done.architecture, "bytes": done.bytes})
    else:
        sink.write(f"{done.path}  {done.architecture} in {done.dtype}, {byte_size(done.bytes)}")


command = build_command(EXPORT, COMMON, _body)
