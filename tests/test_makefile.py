"""What `make` would do, without doing it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_clean_removes_nothing_that_the_user_named() -> None:
    command = ["make", "-n", "clean", "STORE=/srv/precious", "VENV=/usr"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # `make test` runs this
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1], env=own)
    assert done.stdout.split() == ["rm", "-rf", ".venv", "demo"]
