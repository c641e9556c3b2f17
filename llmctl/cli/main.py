"""The entry point. Only the command that was asked for is imported in full, so `--help` stays quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import typer

import llmctl
from llmctl.cli.command import help_text
from llmctl.pipeline.stages import STAGES

# Commands that are no stages, in the order of `--help`; each is `command` in llmctl/cli/<name>.py.
OTHERS = {
    "serve": "Serve a checkpoint over HTTP, speaking the OpenAI protocol.",
    "chat": "Ask a checkpoint questions in the terminal.",
    "export": "Write a checkpoint as a Hugging Face folder or a GGUF file.",
    "run": "Run a recipe's steps through the cache.",
    "ls": "List the artifacts of the store, or the versions of one.",
    "show": "Show what an artifact holds: totals, files, results.",
    "compare": "Compare two evaluations item by item.",
    "plot": "Draw the curves of runs, in the terminal and to a PNG.",
    "stats": "Measure documents, rows, or a tokenizer on documents.",
    "to-megatron": "Write token ids as Megatron's .bin and .idx.",
    "cat": "Send an artifact into a pipe as a receipt.",
    "verify": "Check stored bytes against their manifests.",
    "lineage": "Show what an artifact was made from, back to the sources.",
}


def main() -> None:
    """Run `llmctl` with the arguments of this process."""
    _drop_launcher_arguments()
    build_app(_first_word(sys.argv[1:]))()


def build_app(chosen: str | None) -> typer.Typer:
    """The whole command tree; only `chosen` can run, the others are there for `--help`."""
    app = typer.Typer(
        help="One command line from raw text to a served language model.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command, stage in STAGES.items():
        callback = _listed if command != chosen else _stage_callback(command)
        app.command(command, help=help_text(stage), short_help=stage.summary)(callback)
    for command, summary in OTHERS.items():
        callback = _listed if command != chosen else importlib.import_module(_module_of(command)).command
        app.command(command, help=callback.__doc__ if command == chosen else None, short_help=summary)(callback)
    return app


def _stage_callback(command: str) -> Callable[..., None]:
    from llmctl.cli.stage import stage_command

    return stage_command(STAGES[command])


def _module_of(command: str) -> str:
    return f"llmctl.cli.{command.replace('-', '_')}"


def _listed() -> None:
    """Stand in `--help` for a command that was not asked for."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmctl {llmctl.__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Hold the options of `llmctl` itself."""


def _first_word(arguments: list[str]) -> str | None:
    return next((word for word in arguments if not word.startswith("-")), None)


def _drop_launcher_arguments() -> None:
    """The deepspeed launcher appends `--local_rank=N`; the rank is read from the environment."""
    sys.argv[1:] = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
