import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmctl.config.errors import InputError, IntegrityError, UsageError
from llmctl.config.keep import Keep
from llmctl.train.checkpoints import STATE_FILE, Saver, State, complete, cut_metrics, read, require_match, sweep


def state(step, **fields):
    values = {"tokens": 0, "train_s": 0.0, "elapsed_s": 0.0, "metrics_bytes": 0, "parts": 1}
    return State(step=step, **{**values, "run": {}, **fields})


def saver_of(work, keep="last:2"):
    return Saver(work, Keep.parse(keep), rank=0, add=list)


def save(work, *steps, keep="last:2", losses=()):
    with saver_of(work, keep) as saver:
        for number, step in enumerate(steps):
            loss = losses[number] if losses else None
            saver.save(state(step, heldout_loss=loss), {"weight/a": torch.tensor([float(step)])})
        saver.finish()


def kept(work):
    return [step for step, _ in complete(work)]


def test_the_two_newest_are_kept(tmp_path):
    save(tmp_path, 3, 6, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000006", "step-000009"]
    _, directory = complete(tmp_path)[-1]
    assert read(directory).step == 9
    assert load_file(directory / "part-00000.safetensors")["weight/a"].item() == 9.0


def test_what_is_kept_is_the_union_of_the_rules(tmp_path):
    save(tmp_path, 2, 4, 5, 6, 7, 8, 9, keep="last:2,every:4,best:1", losses=(3.0, 2.9, 1.0, 2.0, 1.5, 1.4, 1.3))
    assert kept(tmp_path) == [4, 5, 8, 9]


@given(st.lists(st.tuples(st.integers(1, 99), st.none() | st.floats(0, 9)), unique_by=lambda pair: pair[0]))
def test_the_newest_always_stays(states):
    states = sorted(states, key=lambda pair: pair[0])
    for text in ("best:1", "every:7", "last:1", "last:3,best:2,every:5"):
        stay = Keep.parse(text).stay(states)
        assert stay <= {step for step, _ in states}
        assert not states or states[-1][0] in stay


@pytest.mark.parametrize("text", ["", "last", "last:0", "first:1", "last:1,last:2", "every:x"])
def test_a_rule_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="is not a part of last:N,every:N,best:N"):
        Keep.parse(text)


def test_steps_sort_as_numbers(tmp_path):
    save(tmp_path, 999_999, 1_000_000)
    assert kept(tmp_path) == [999_999, 1_000_000]


def test_a_partial_state_is_ignored_and_swept(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "step-000006.tmp").mkdir()
    (tmp_path / "step-000006.tmp" / "part-00000.safetensors").write_text("half")
    assert kept(tmp_path) == [3]
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_a_partial_state_does_not_hinder_the_next_save_of_the_same_step(tmp_path):
    (tmp_path / "step-000006.tmp").mkdir()
    (tmp_path / "step-000006.tmp" / "part-00000.safetensors").write_text("half")
    save(tmp_path, 6)
    assert kept(tmp_path) == [6]


def test_nothing_is_published_before_every_rank_has_written(tmp_path):
    with saver_of(tmp_path) as saver:
        saver.save(state(3, parts=2), {"weight/a": torch.zeros(2)})
        while not saver.progress()[0]:
            pass
        saver.settle(1.0, 0.0)  # the other rank is still writing
        assert kept(tmp_path) == []
        saver.settle(2.0, 0.0)
        assert kept(tmp_path) == [3]


def test_what_another_rank_could_not_write_is_an_error_here(tmp_path):
    save(tmp_path, 3)
    with saver_of(tmp_path) as saver:
        saver.save(state(6, parts=2), {"weight/a": torch.zeros(2)})
        with pytest.raises(InputError, match="step 6: another rank failed.*the state of step 3 is intact"):
            saver.settle(2.0, 1.0)
    assert kept(tmp_path) == [3]


def test_a_full_disk_says_how_much_is_missing_and_leaves_the_older_state(tmp_path, monkeypatch):
    save(tmp_path, 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    with saver_of(tmp_path) as saver:
        saver.save(state(6), {"weight/a": torch.zeros(10**6)})
        with pytest.raises(InputError, match=r"5\.0 MB needed, 3\.0 missing; the state of step 3 is intact"):
            saver.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


@pytest.mark.skipif(not shutil.which("mount"), reason="needs a small file system")
def test_a_disk_that_fills_up_while_writing_leaves_the_older_state(tmp_path, monkeypatch):
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        save(small, 3)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**10))
        with saver_of(small) as saver:
            saver.save(state(6), {"weight/a": torch.zeros(10**6)})
            with pytest.raises(InputError, match=r"is full: .* missing; the state of step 3 is intact"):
                saver.finish()
        assert kept(small) == [3]
        save(small, 9)
        assert kept(small) == [3, 9]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_nothing_saved(tmp_path):
    assert complete(tmp_path / "absent") == []


def test_a_damaged_state_is_an_integrity_error(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "step-000003" / STATE_FILE).write_text(json.dumps({"step": "three"}))
    with pytest.raises(IntegrityError, match="damaged"):
        read(tmp_path / "step-000003")


def test_another_configuration_is_refused():
    with pytest.raises(UsageError, match="configured otherwise: seed"):
        require_match(state(3, run={"seed": 0}), {"seed": 1})


def test_metrics_are_cut_back_and_never_stretched(tmp_path):
    path = tmp_path / "metrics.jsonl"
    cut_metrics(path, 0)
    path.write_bytes(b"one\ntwo\nhal")
    cut_metrics(path, 4)
    assert path.read_bytes() == b"one\n"
    with pytest.raises(IntegrityError, match="lost rows"):
        cut_metrics(path, 5)
