"""Shared fixtures: the real command line, and jobs built by hand for stage bodies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: as many files as there are cores run side by side

import pytest
from hypothesis import settings

from llmctl.config.base import Config
from llmctl.pipeline.execute import Call, Outcome, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Input
from llmctl.store.store import Store

settings.register_profile("llmctl", deadline=None)  # a timing is never a test
settings.load_profile("llmctl")
LLMCTL = [sys.executable, "-m", "llmctl"]
DATA = Path(os.environ.get("LLMCTL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))  # beside the checkout


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without any llmctl setting of the developer's own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LLMCTL_")}
    return {**clean, "HOME": "/nonexistent", "NO_COLOR": "1", **extra}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests start the most processes: none of them is what all wait for at the end."""
    first = ("test_line.py", "test_parity.py")
    items.sort(key=lambda item: item.path.parent.name != "train" and item.path.name not in first)


@pytest.fixture
def llmctl(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `llmctl ARGS…` in a real process with its store in `tmp_path/artifacts`."""

    def run(
        *args: str, stdin: str | None = None, timeout: float = 300, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            [*LLMCTL, *args],
            **given,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment(**extra),
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a line in `sh`, in which `llmctl` is this checkout's."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    script = binaries / "llmctl"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmctl "$@"\n')
    script.chmod(0o755)

    def run(line: str, timeout: float = 600, **extra: str) -> subprocess.CompletedProcess[str]:
        path = f"{binaries}:{os.environ['PATH']}"
        return subprocess.run(
            ["/bin/sh", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment(PATH=path, **extra),
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "artifacts", create=True)


@pytest.fixture
def run_stage(store: Store) -> Callable[..., Outcome]:
    """Run a stage's real body through the pipeline into `store`."""

    def run(command: str, config: Config, inputs: Mapping[str, Input] | None = None, **options: Any) -> Outcome:
        return execute(Call(stage_named(command), config, inputs or {}, **options), store, Silent())

    return run
