"""llmctl serve."""

from __future__ import annotations

from typing import Any

from llmctl.cli.command import DEFAULT_STORE, Given, PrintConfigOption, QuietOption, StoreOption, build_command
from llmctl.cli.failures import guarded
from llmctl.cli.output import Sink
from llmctl.cli.stage import open_inputs
from llmctl.pipeline.stage import Role, Verb

SERVE = Verb(
    command="serve",
    summary="Serve a checkpoint over HTTP, speaking the OpenAI protocol.",
    config="llmctl.config.serve:ServeConfig",
    inputs={"input": Role(("checkpoint",), "checkpoint to serve")},
    flags={
        "--host": "host",
        "--port": "port",
        "--model-name": "model_name",
        "--api-key-env": "api_key_env",
        "--api-key-file": "api_key_file",
        "--tls-cert": "tls_cert",
        "--tls-key": "tls_key",
        "--engine": "engine",
        "--precision": "precision",
        "--device": "device",
    },
    examples=(
        "llmctl serve web.sft",
        "llmctl serve web.sft --port 9000 --api-key-env LLMCTL_KEY",
        "llmctl serve web.sft --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem",
        "llmctl serve web.sft --engine vllm",
        "llmctl serve web.sft requests_per_minute=60 tokens_per_minute=20000 log_format=json",
    ),
)
COMMON: dict[str, tuple[Any, Any]] = {
    "store": (StoreOption, DEFAULT_STORE),
    "quiet": (QuietOption, False),
    "print_config": (PrintConfigOption, False),
}


def _body(given: Given) -> None:
    sink = Sink("serve", quiet=given.options["quiet"], human=True)
    guarded(sink, lambda: _run(given, sink))


def _run(given: Given, sink: Sink) -> None:
    from llmctl.config.serve import ServeConfig
    from llmctl.store.artifact import Artifact

    if given.options["print_config"]:
        sink.write(given.config().model_dump_json(indent=2))
        return
    config, refs = given.resolve()
    inputs, _ = open_inputs(SERVE, refs, given.options["store"])
    checkpoint = inputs["input"]
    assert isinstance(checkpoint, Artifact)
    assert isinstance(config, ServeConfig)

    from llmctl.serve.server import log_to_stderr, serve

    log_to_stderr(quiet=given.options["quiet"])
    serve(checkpoint, config, lambda url: sink.write(f"{checkpoint.ref} at {url}/v1  (stop with Ctrl-C)"))


command = build_command(SERVE, COMMON, _body)
