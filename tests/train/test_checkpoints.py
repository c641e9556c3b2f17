import json

import pytest

from llmctl.config.errors import IntegrityError, UsageError
from llmctl.train import checkpoints
from llmctl.train.checkpoints import STATE_FILE, State, complete, cut_metrics, read, require_match, sweep


def state(step, **fields):
    values = {"tokens": 0, "train_s": 0.0, "elapsed_s": 0.0, "metrics_bytes": 0, "strategy": "local"}
    return State(step=step, **{**values, "world_size": 1, "zero": 0, "run": {}, **fields})


def save(work, step):
    def write(directory):
        (directory / "tensors").write_text(str(step))

    checkpoints.save(work, state(step), write, lambda: None, leads=True)


def test_the_two_newest_are_kept(tmp_path):
    for step in (3, 6, 9):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000006", "step-000009"]
    _, directory = complete(tmp_path)[-1]
    assert (read(directory).step, (directory / "tensors").read_text()) == (9, "9")


def test_steps_sort_as_numbers(tmp_path):
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert [step for step, _ in complete(tmp_path)] == [999_999, 1_000_000]


def test_a_partial_state_is_ignored_and_swept(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "step-000006.tmp").mkdir()
    (tmp_path / "step-000006.tmp" / "tensors").write_text("half")
    assert [step for step, _ in complete(tmp_path)] == [3]
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_a_failed_write_leaves_the_older_state(tmp_path):
    save(tmp_path, 3)

    def fail(directory):
        (directory / "tensors").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, state(6), fail, lambda: None, leads=True)
    assert [step for step, _ in complete(tmp_path)] == [3]


def test_nothing_saved(tmp_path):
    assert complete(tmp_path / "absent") == []


def test_a_damaged_state_is_an_integrity_error(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "step-000003" / STATE_FILE).write_text(json.dumps({"step": "three"}))
    with pytest.raises(IntegrityError, match="damaged"):
        read(tmp_path / "step-000003")


def test_another_configuration_is_refused():
    with pytest.raises(UsageError, match="configured otherwise: seed"):
        require_match(state(3, run={"seed": 0}), strategy="local", world_size=1, zero=0, run={"seed": 1})


def test_another_set_of_ranks_is_refused():
    saved = state(3, strategy="deepspeed", world_size=2, zero=1)
    with pytest.raises(UsageError, match=r"nproc=2 zero=1.*nproc=1 zero=0") as caught:
        require_match(saved, strategy="local", world_size=1, zero=0, run={})
    assert "--nproc 2 --zero 1" in caught.value.hint


def test_metrics_are_cut_back_and_never_stretched(tmp_path):
    path = tmp_path / "metrics.jsonl"
    cut_metrics(path, 0)
    path.write_bytes(b"one\ntwo\nhal")
    cut_metrics(path, 4)
    assert path.read_bytes() == b"one\n"
    with pytest.raises(IntegrityError, match="lost rows"):
        cut_metrics(path, 5)
