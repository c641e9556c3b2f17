import json
import subprocess
import sys

import pytest
import torch
from synthetic_run import make_job

from llmctl.config.errors import ElsewhereError, GateError, InputError, LlmctlError
from llmctl.pipeline import spec
from llmctl.train import launch
from llmctl.train.guards import DivergedError
from llmctl.train.ranks import Ranks, environment, meeting_point


def test_environment_of_the_two_launchers():
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert environment({**given, "LOCAL_SIZE": "2"}) == Ranks(3, 4, 1, 2)  # deepspeed
    assert environment({**given, "LOCAL_WORLD_SIZE": "2"}) == Ranks(3, 4, 1, 2)  # torchrun
    assert environment({}) == Ranks(0, 1, 0, 1)


SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu-[03-04]",
    "SLURM_JOB_ID": "123456",
}


def test_srun_starts_ranks_and_a_batch_script_is_none():
    assert environment(SLURM) == Ranks(5, 8, 1, 4)
    assert environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == Ranks()
    assert environment({**SLURM, "RANK": "1", "WORLD_SIZE": "2"}).world_size == 2


@pytest.mark.parametrize(
    ("hosts", "first"), [("gpu-[03-04]", "gpu-03"), ("a1,b2", "a1"), ("one", "one"), ("n[7,9-11],m1", "n7")]
)
def test_ranks_of_srun_meet_at_the_first_host(hosts, first):
    found = meeting_point({**SLURM, "SLURM_STEP_NODELIST": hosts})
    assert found == {
        "MASTER_ADDR": first,
        "MASTER_PORT": str(15_000 + 123_456 % 10_000),
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
    }
    assert environment(found) == Ranks(5, 8, 1, 4)


def test_under_other_launchers_nothing_is_changed():
    assert meeting_point({}) == meeting_point({**SLURM, "RANK": "0"}) == {}


def test_asking_who_one_is_imports_no_torch():
    code = "import sys, llmctl.train.ranks as r; r.environment(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_error_survives_json_as_its_nearest_public_class(tmp_path):
    failure = spec.describe_failure(DivergedError("loss is nan", hint="lower it"))
    assert failure == {"class": "GateError", "what": "loss is nan", "hint": "lower it"}
    (tmp_path / "failure-00001.json").write_text(json.dumps(failure))
    with pytest.raises(GateError, match="loss is nan"):
        launch._raise_failure(tmp_path, 6)


class Recorder:
    def __init__(self):
        self.seen = []

    def update(self, done, total, unit, **facts):
        self.seen.append((done, total, unit, facts))

    def note(self, text):
        self.seen.append(text)


def test_progress_is_relayed_line_by_line(tmp_path):
    path = tmp_path / "progress.jsonl"
    writer, reader = spec.FileProgress(path), Recorder()
    writer.update(1, 2, "steps", loss=0.5)
    writer.note("half")
    with open(path, "a") as handle:
        handle.write('{"note": "torn')
    at = launch._relay(path, 0, reader)
    assert reader.seen == [(1, 2, "steps", {"loss": 0.5}), "half"]
    with open(path, "a") as handle:
        handle.write(' no more"}\n')
    launch._relay(path, at, reader)
    assert reader.seen[2:] == ["torn no more"]


def test_dismissing_without_a_launcher_does_nothing():
    launch.dismiss()
    assert not torch.distributed.is_initialized()


@pytest.fixture
def sent(monkeypatch):
    """Rank 0 of two, with what it broadcasts in a list instead of on a network."""
    messages = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "_broadcast", messages.append)
    monkeypatch.setattr(launch, "_followers_wait", True)
    return messages


def test_rank_0_that_fails_before_it_leads_dismisses_the_others(sent):
    launch.dismiss()
    assert sent == [None]


def test_rank_0_whose_job_failed_sends_nothing_into_the_middle_of_it(sent, tmp_path):
    with pytest.raises(TypeError):
        launch.lead(make_job(tmp_path), "builtins:abs")
    launch.dismiss()
    assert [type(message) for message in sent] == [dict]


def test_of_several_ranks_errors_the_one_that_knows_is_told(tmp_path):
    elsewhere = ElsewhereError("another rank failed to write its part", hint="the same command resumes")
    knows = InputError("the disk is full: 5.0 MB needed, 3.0 missing", hint="free space")
    for rank, error in enumerate([elsewhere, knows, elsewhere]):
        (tmp_path / launch.failure_file(rank)).write_text(json.dumps(spec.describe_failure(error)))
    with pytest.raises(InputError, match="3.0 missing") as caught:
        launch._raise_failure(tmp_path, 3)
    assert caught.value.hint == "free space"


def test_rank_0_that_ends_without_a_word_is_an_error(monkeypatch):
    def lost(description):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(launch, "_broadcast", lost)
    with pytest.raises(LlmctlError, match="rank 0 ended before the other ranks: Connection closed"):
        launch.follow()
