"""Optimizer state on a disk: refused where it cannot run, and the same numbers where it can."""

import contextlib
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_run import WIDE, StopAfter, curve, make_job, train
from torch.utils import cpp_extension

from llmctl.config.errors import ConfigError, InputError, InterruptedRunError, UsageError
from llmctl.config.load import build, parse_overrides
from llmctl.config.train import PretrainConfig
from llmctl.train import disk, launch

HERE = Path(__file__).parent


def built():
    """Whether the DeepSpeed of this environment has compiled its asynchronous I/O before, which takes minutes."""
    directory = Path(cpp_extension._get_build_directory("async_io", verbose=False))
    sources = Path(importlib.util.find_spec("deepspeed").origin).parent
    made = directory / "async_io.so"
    return made.exists() and str(sources) in (directory / "build.ninja").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["offload=nvme:/tmp", "zero=2", "nproc=2"], "zero=3 alone"),
        (["offload=nvme:/tmp"], "give zero=1, 2 or 3"),
        (["offload=nvme", "zero=3"], "offload"),
        (["offload=nvme:tmp", "zero=3"], "offload"),
    ],
)
def test_what_is_no_folder_or_has_no_shards_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        build(PretrainConfig, [parse_overrides(words)])


def test_a_folder_that_is_not_there_is_refused_before_work(tmp_path):
    job = make_job(tmp_path, nproc=2, zero=3, offload=f"nvme:{tmp_path}/absent")
    with pytest.raises(InputError, match="absent is no folder"):
        launch.start(job, "synthetic_run:train")


def test_without_a_compiler_it_is_refused_and_the_message_says_what_to_install(tmp_path, monkeypatch):
    job = make_job(tmp_path, nproc=2, zero=3, offload=f"nvme:{tmp_path}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="asynchronous I/O cannot be compiled here") as caught:
        launch.start(job, "synthetic_run:train")
    assert "libaio-dev" in caught.value.hint
    assert not list(job.work.iterdir())


def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(tmp_path):
    make = f"from llmctl.train import disk; print(disk.own_folder({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    left = Path(done.stdout.strip())
    assert left.is_dir()
    (tmp_path / "a file of the user's").touch()
    own = disk.own_folder(str(tmp_path))
    assert not left.exists()
    subprocess.run([sys.executable, "-c", make], check=True, stdout=subprocess.DEVNULL)
    assert own.is_dir()
    disk.clear()
    assert not own.exists()
    assert (tmp_path / "a file of the user's").exists()


class Watching(StopAfter):
    """Looks at what lies on the disk while the run goes on."""

    def __init__(self, step, folder):
        super().__init__(step)
        self.folder, self.seen = folder, set()

    def update(self, done, total, unit, **facts):
        self.seen |= {path.name.rpartition("-")[0] for path in self.folder.rglob("*.swp")}  # the weights have no name
        super().update(done, total, unit, **facts)


@pytest.mark.slow
@pytest.mark.skipif(not built(), reason="DeepSpeed's asynchronous I/O is not compiled here")
def test_state_on_a_disk_gives_the_same_and_goes_on_in_memory_and_back(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    fields = {"model": WIDE, "steps": 12, "micro_batch_rows": 3, "checkpoint_every_steps": 1, "eval_every_steps": 0}
    fields |= {"optimizer": {"name": "muon", "lr": 1e-3}, "average": {"name": "ema", "decay": 0.5}}
    whole = make_job(tmp_path / "whole", **fields)
    train(whole)
    (tmp_path / "disk").mkdir()
    on_disk = {**fields, "nproc": 2, "zero": 3, "offload": f"nvme:{tmp_path}/disk"}
    for step, given in ((2, on_disk), (8, fields), (math.inf, on_disk)):
        watched = Watching(step, tmp_path / "disk")
        job = make_job(tmp_path / "parts", watched, **given)
        with contextlib.nullcontext() if step == math.inf else pytest.raises(InterruptedRunError):
            launch.start(job, "synthetic_run:train")
        assert watched.seen == ({"", "momentum"} if given is on_disk else set())
        assert not list((tmp_path / "disk").iterdir())
    for mine, theirs in zip(curve(job), curve(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
