"""A job as JSON, so that another process can take part in it: the job, its progress, its product, its failure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmctl.config.base import Config
from llmctl.config.errors import LlmctlError
from llmctl.pipeline.job import FileFacts, Job, Product, Progress, Silent
from llmctl.pipeline.stage import load
from llmctl.store.artifact import Artifact, FileInput, Input
from llmctl.store.manifest import MANIFEST_FILE, Manifest

PROGRESS_FILE = "progress.jsonl"


def describe(job: Job[Any], entry: str) -> dict[str, Any]:
    """Everything that `rebuild` needs, in JSON values; paths are absolute."""
    config = type(job.config)
    return {
        "entry": entry,
        "config_model": f"{config.__module__}:{config.__qualname__}",
        "config": job.config.model_dump(mode="json"),
        "inputs": {role: _describe_input(given) for role, given in job.inputs.items()},
        "out": str(job.out.absolute()),
        "work": str(job.work.absolute()),
        "metrics_file": str(job.metrics_file.absolute()),
    }


def rebuild(description: dict[str, Any], *, leads: bool) -> tuple[Job[Any], str]:
    """The job and the entry that `describe` was given. Only rank 0 reports progress, to a file."""
    work = Path(description["work"])
    job: Job[Any] = Job(
        config=load(description["config_model"]).model_validate(description["config"]),
        inputs={role: _input(given) for role, given in description["inputs"].items()},
        out=Path(description["out"]),
        work=work,
        metrics_file=Path(description["metrics_file"]),
        progress=FileProgress(work / PROGRESS_FILE) if leads else Silent(),
        nested=_no_nested,
    )
    return job, description["entry"]


def _no_nested(command: str, config: Config, inputs: Any) -> Artifact:
    del config, inputs
    raise RuntimeError(f"a rank cannot run the stage {command}")


def _describe_input(given: Input) -> dict[str, str]:
    if isinstance(given, Artifact):
        return {"type": "artifact", "path": str(given.path.absolute()), "ref": given.ref}
    return {"type": "file", "path": str(given.path.absolute()), "digest": given.digest, "kind": given.kind}


def _input(given: dict[str, str]) -> Input:
    path = Path(given["path"])
    if given["type"] == "file":
        return FileInput(path, given["digest"], given["kind"])
    return Artifact(path, Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes()), given["ref"])


class FileProgress:
    """A `Progress` that appends JSON lines to a file, which the parent process reads."""

    def __init__(self, path: Path) -> None:
        self._write: Callable[[str], int] = open(path, "a", encoding="utf-8", buffering=1).write  # noqa: SIM115 (lives as long as the process)

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """One line for each report."""
        self._write(json.dumps({"done": done, "total": total, "unit": unit, "facts": facts}) + "\n")

    def note(self, text: str) -> None:
        """One line for each note."""
        self._write(json.dumps({"note": text}) + "\n")


def relay(line: dict[str, Any], progress: Progress) -> None:
    """Report what a `FileProgress` wrote."""
    if "note" in line:
        progress.note(line["note"])
    else:
        progress.update(line["done"], line["total"], line["unit"], **line["facts"])


def describe_product(product: Product) -> dict[str, Any]:
    """A product as JSON values."""
    return dataclasses.asdict(product)


def product_of(values: dict[str, Any]) -> Product:
    """What `describe_product` was given."""
    files = {name: FileFacts(**facts) for name, facts in values["files"].items()}
    return Product(values["schema"], values["semantic"], values["totals"], files, tuple(values["license"]))


def describe_failure(error: LlmctlError) -> dict[str, str]:
    """A handled error as JSON values; its class is the nearest one of `llmctl.config.errors`."""
    known = next(base for base in type(error).__mro__ if base.__module__ == LlmctlError.__module__)
    return {"class": known.__name__, "what": error.what, "hint": error.hint}
