"""SIGKILL at random points of the data stages: the same command goes on and gives the same bytes."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from llmctl.store.store import Store
from llmctl.store.verify import verify_store
from tests.conftest import LLMCTL, environment

KILLS = 50
FILES = 6
WORDS = "a page of the notes goes down the line and nothing of what it says is lost on the way to the end".split()
FOOTER = "All rights are kept by whoever keeps the notes."
COMMANDS = {
    "collect": ["collect", "notes", "workers=2"],
    "clean": [
        *["clean", "notes", "--keep-rejected", "--pii", "redact", "boilerplate.enabled=true", "boilerplate.by=source"],
        *["quality.min_stop_words=0", "quality.min_alphabetic_words=0.5", "repetition.enabled=false", "workers=2"],
    ],
    "dedup": ["dedup", "notes.clean", "workers=2"],
}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Several files, which are several parts of work, with exact and near duplicates between them."""
    folder = tmp_path / "notes"
    folder.mkdir()
    draw = random.Random(7)
    for number in range(FILES):
        with open(folder / f"{number}.jsonl", "w") as handle:
            for line in range(300):
                words = [draw.choice(WORDS) + str(draw.randrange(40)) for _ in range(60)]
                if line % 10 == 0:
                    words = [f"{word}{number * line % 7}" for word in WORDS * 3]
                if line % 13 == 0:
                    words = words[:20]  # too few to stay
                if line % 17 == 0:
                    words = [
                        *words,
                        "write",
                        "to",
                        f"{number}.{line}@example.org",
                        "\n" + FOOTER,
                    ] * 5
                words += ["\n" + FOOTER]
                handle.write(json.dumps({"text": " ".join(words), "id": f"{number}-{line}"}) + "\n")
    return folder


def start(folder: Path, store: str, stage: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*LLMCTL, *COMMANDS[stage], "--store", store, "-q"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(folder: Path, store: str, stage: str) -> float:
    begun = time.monotonic()
    process = start(folder, store, stage)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - begun


def digests(root: Path) -> dict[str, str]:
    store = Store.open(root)
    return {name: store.resolve(name).digest for name in store.names()}


@pytest.mark.slow
def test_a_stage_killed_anywhere_resumes_to_the_same_digest(notes: Path, tmp_path: Path) -> None:
    whole = {stage: finish(tmp_path, "whole", stage) for stage in COMMANDS}
    totals = Store.open(tmp_path / "whole").resolve("notes.clean").manifest.totals
    assert totals["dropped.too_few_words"]
    assert totals["boilerplate.lines"]
    assert totals["pii.email"]
    assert totals["kept"] > FILES * 200
    draw = random.Random(int(os.environ.get("LLMCTL_TEST_SEED", "0")))
    killed = 0
    while killed < KILLS:
        store = f"store{killed}"
        for stage, seconds in whole.items():
            for _ in range(3):
                victim = start(tmp_path, store, stage)
                time.sleep(draw.uniform(0.1, seconds))
                victim.send_signal(signal.SIGKILL)
                victim.communicate()
                killed += victim.returncode == -signal.SIGKILL
            finish(tmp_path, store, stage)
        assert digests(tmp_path / store) == digests(tmp_path / "whole")
        assert verify_store(Store.open(tmp_path / store), full=True)[1] == []
