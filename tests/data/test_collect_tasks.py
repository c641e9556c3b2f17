"""Work by parts: one result for any number of workers, through kills, limits, samples and files that change."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError, IntegrityError
from llmctl.data.collect import run, sources, tasks
from llmctl.data.collect.files import FilePiece
from llmctl.data.collect.formats import safe_name
from llmctl.data.collect.tasks import group, id_hash, sample_place
from llmctl.data.collect.unique import Naming, repeated
from llmctl.pipeline.job import Silent
from llmctl.store.layout import check_name
from tests.conftest import LLMCTL, environment
from tests.data.conftest import job_of, rows_of


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """Four files of about 40 MB on the disk, hence four tasks; ids of rows occur in several of them."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    for name in "abcd":
        with open(folder / f"{name}.jsonl", "w") as handle:
            for number in range(400):
                row = {"text": f"{name}{number} " + "word " * 20_000, "id": f"{number % 300}" if name < "c" else None}
                handle.write(json.dumps(row) + "\n")
    return folder


def digest_of(product) -> object:
    return {name: facts.rows for name, facts in product.files.items()}, product.totals


def test_workers_do_not_show_in_the_result(crawl: Path, stage: Callable) -> None:
    one, first = stage(run, CollectConfig(sources=(str(crawl),), workers=1))
    two, second = stage(run, CollectConfig(sources=(str(crawl),), workers=2))
    assert digest_of(one) == digest_of(two)
    assert [entry.sha256 for entry in first.manifest.files] == [entry.sha256 for entry in second.manifest.files]
    ids = [row["id"] for row in rows_of(first)]
    assert len(set(ids)) == len(ids) == one.totals["documents"] == one.totals["in"] == 1600
    assert ids[300:303] == ["0~2", "1~2", "2~2"]
    assert ids[400:402] == ["0~3", "1~3"]
    assert ids[800] == "c.jsonl:1"
    assert max(path.stat().st_size for path in first.files()) <= 64 << 20


def test_a_limit_is_exact_and_later_tasks_are_not_begun(crawl: Path, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    product = run(job_of(CollectConfig(sources=(str(crawl),), limit=450, workers=2), tmp_path / "job"))
    assert product.totals["documents"] == product.totals["in"] == 450
    assert sorted(path.name for path in (tmp_path / "job" / "work" / "parts").iterdir()) == ["00000", "00001"]


def test_a_sample_is_by_id_and_seed(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "t", "id": "{n}"}}\n' for n in range(2000)))
    settings = {"sources": [str(tmp_path / "rows.jsonl")], "sample": 0.25}
    product, artifact = stage(run, CollectConfig.model_validate(settings))
    kept = [row["id"] for row in rows_of(artifact)]
    assert kept == [str(n) for n in range(2000) if sample_place(str(n), 0) < 0.25]
    assert 430 < len(kept) < 570
    assert product.totals["dropped.sample"] + len(kept) == product.totals["in"] == 2000
    _, other = stage(run, CollectConfig.model_validate({**settings, "seed": 1}))
    assert kept != [row["id"] for row in rows_of(other)]


def test_a_killed_run_goes_on_at_finished_tasks(crawl: Path, tmp_path: Path) -> None:
    command = [*LLMCTL, "collect", "crawl", "workers=1", "--json"]
    settings = {"cwd": tmp_path, "env": environment(), "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    whole = subprocess.run([*command, "--store", "whole"], check=True, **settings)
    victim = subprocess.Popen([*command, "--store", "s"], **settings)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("s/crawl/*/work/parts/00001")):
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert not list(tmp_path.glob("s/crawl/*/manifest.json"))
    resumed = subprocess.Popen([*command, "--store", "s"], **settings)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    digests = [json.loads(text.splitlines()[-1])["digest"] for text in (whole.stdout, output)]
    assert digests[0] == digests[1]
    log = "".join(path.read_text() for path in tmp_path.glob("s/runs/*.jsonl"))
    assert log.count('"START"') == 2


def test_a_file_that_changes_under_the_run_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "before"}\n')
    settings = CollectConfig(sources=(str(path.parent),))
    promised = sources(settings)[1]
    path.write_text('{"text": "after!"}\n')
    job = job_of(settings, tmp_path / "job1")
    object.__setattr__(job, "promised", promised)
    with pytest.raises(IntegrityError, match="in changed while llmctl looked at it") as caught:
        run(job)
    assert caught.value.exit_code == 5
    piece = FilePiece(str(path), "a.jsonl", "in", 19, "0" * 64, strict=False)
    report = tasks.Task((piece,), settings)
    with pytest.raises(IntegrityError, match=r"a\.jsonl changed while it was being read"):
        tasks.collect_part(report, tmp_path / "00000.tmp")


def test_every_reader_leaves_the_hash_of_the_whole_file(tmp_path: Path, stage: Callable) -> None:
    """Sources of every kind pass the check, also where their reader seeks or stops early."""
    from tests.data.test_collect_warc import SOUND

    for name, content in SOUND.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "long.txt").write_bytes(b"x" * 300_000)
    product, _ = stage(run, CollectConfig(sources=(str(tmp_path),), max_document_bytes=200_000))
    assert product.totals["dropped.too_large"] == 1
    assert "dropped.damaged" not in product.totals


def test_links_and_hidden_names_are_left_out_and_counted(tmp_path: Path, stage: Callable) -> None:
    folder = tmp_path / "in"
    (folder / ".hidden").mkdir(parents=True)
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("a")
    (folder / ".b.txt").write_text("b")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "out.txt").symlink_to("../secret.txt")
    (folder / "dead.txt").symlink_to("nowhere.txt")
    (folder / "round").symlink_to(".")
    (folder / "inside.txt").symlink_to("sub/a.txt")
    os.mkfifo(folder / "pipe.txt")
    product, artifact = stage(run, CollectConfig(sources=(str(folder),)))
    assert [row["id"] for row in rows_of(artifact)] == ["inside.txt", "sub/a.txt"]
    skipped = {key: value for key, value in product.totals.items() if key.startswith("skipped.")}
    assert skipped == {"skipped.hidden": 2, "skipped.link": 3, "skipped.special": 1}
    with pytest.raises(InputError, match="no regular file"):
        stage(run, CollectConfig(sources=(str(folder / "pipe.txt"),)))


def test_nul_is_taken_out_and_direction_marks_stay(tmp_path: Path, stage: Callable) -> None:
    (tmp_path / "a.txt").write_text("a\0b \u202eright\u202c")
    product, artifact = stage(run, CollectConfig(sources=(str(tmp_path),)))
    assert rows_of(artifact)[0]["text"] == "ab \u202eright\u202c"
    assert product.totals["nul_removed"] == 1


class Recorder(Silent):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None, str]] = []

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        self.seen.append((done, total, unit))


def test_progress_is_in_bytes_of_the_disk(crawl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmctl.data.collect.progress.EVERY_S", 0.01)
    monkeypatch.setattr("llmctl.data.collect.tasks.PROGRESS_EVERY_S", 0.01)
    recorder = Recorder()
    run(job_of(CollectConfig(sources=(str(crawl),), workers=1), tmp_path / "job", progress=recorder))
    size = sum(path.stat().st_size for path in crawl.iterdir())
    assert {(total, unit) for _, total, unit in recorder.seen} == {(size, "bytes")}
    done = [place for place, _, _ in recorder.seen]
    assert len(set(done)) > 8  # within tasks, not only between them
    assert 0 <= min(done) <= max(done) <= size


@given(st.lists(st.integers(0, 100 << 20), max_size=30))
def test_groups_keep_the_order_and_the_bound(sizes: list[int]) -> None:
    pieces = [FilePiece("p", str(n), "s", size, "", strict=False) for n, size in enumerate(sizes)]
    made = group(pieces, CollectConfig())
    assert [piece for task in made for piece in task.pieces] == pieces
    assert all(task.size <= tasks.GROUP_BYTES or len(task.pieces) == 1 for task in made)


@given(st.lists(st.sampled_from(["a", "b", "a~2", "a~3", "c"]), max_size=30))
def test_ids_become_unique_and_first_owners_keep_theirs(wanted: list[str]) -> None:
    hashes = np.array([id_hash(name) for name in wanted], dtype=np.uint64)
    rows, naming, final = set(repeated(hashes).tolist()), Naming(hashes), []
    for row, name in enumerate(wanted):
        final.append(naming(name) if row in rows else name)
        assert (row in rows) == (name in wanted[:row])
    assert len(set(final)) == len(wanted)
    assert all(new == old or new.startswith(f"{old}~") for new, old in zip(final, wanted, strict=True))


@given(st.text(max_size=200))
def test_any_file_gives_a_name_that_artifacts_may_have(text: str) -> None:
    assert check_name(f"{safe_name(text)}.clean")
    assert safe_name("_notes") == "notes"


def test_a_tiny_folder_loads_no_engine_and_no_crawl_reader(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    code = (
        "import sys; from pathlib import Path; from llmctl.config.collect import CollectConfig\n"
        "from llmctl.data.collect import run; from tests.data.conftest import job_of\n"
        f"run(job_of(CollectConfig(sources=({str(tmp_path / 'in')!r},)), Path({str(tmp_path)!r})))\n"
        "print(sorted({'fastwarc', 'daft', 'ray', 'resiliparse', 'multiprocessing.spawn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
