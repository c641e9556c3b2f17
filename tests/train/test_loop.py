import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_run import VOCAB, WIDE, Counting, MadeUpRows, curve, make_job, train

from llmctl.config.errors import InputError, IntegrityError, InterruptedRunError, UsageError
from llmctl.model.transformer import Transformer
from llmctl.objectives.losses import next_token
from llmctl.pipeline.job import Silent
from llmctl.store.artifact import Artifact
from llmctl.store.manifest import Manifest
from llmctl.tokens.batch import IGNORE, Batch
from llmctl.tokens.order import permuted
from llmctl.tokens.rows import SCHEMA as ROWS_SCHEMA
from llmctl.train.guards import DivergedError
from llmctl.train.heldout import HeldOutRows
from llmctl.train.loader import Loader, Plan
from llmctl.train.loop import fit
from llmctl.train.stop import STOP_FILE, Stop
from llmctl.train.strategy import precision_warning


def test_two_runs_are_bitwise_equal(tmp_path):
    first, second = make_job(tmp_path / "a"), make_job(tmp_path / "b")
    totals = train(first).totals
    train(second)
    assert curve(first) == curve(second)
    assert (first.out / "model.safetensors").read_bytes() == (second.out / "model.safetensors").read_bytes()
    rows = curve(first)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if "heldout_loss" in row] == [5, 10, 12]
    assert (totals["loss"], totals["heldout_loss"]) == (rows[-2]["loss"], rows[-1]["heldout_loss"])
    assert totals["heldout_loss"] < math.log(VOCAB)


def test_the_kernel_of_attention_is_said_and_kept(tmp_path):
    class Noting(Silent):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    job = make_job(tmp_path / "a", model=WIDE, progress=Noting(), steps=1)
    assert train(job).totals["attention"] == "native"
    assert "attention through native" in job.progress.notes
    with pytest.raises(UsageError, match="flash: it runs on GPUs alone"):
        train(make_job(tmp_path / "b", attention_backend="flash"))


def test_learns_to_count(tmp_path):
    job = make_job(tmp_path, steps=150, batch_rows=16, optimizer={"lr": 1e-2}, model={"name": "nano", "layers": 1})
    assert train(job).totals["loss"] < 2.0  # ln 64 = 4.16 at the start


@pytest.mark.parametrize("fields", [{"micro_batch_rows": 1}, {"micro_batch_rows": 3}, {"micro_batch_rows": 5}])
def test_micro_batches_change_nothing_but_rounding(tmp_path, fields):
    whole, parts = make_job(tmp_path / "whole"), make_job(tmp_path / "parts", **fields)
    train(whole)
    train(parts)
    for a, b in zip(curve(whole), curve(parts), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_bf16_follows_fp32(tmp_path):
    exact, rough = make_job(tmp_path / "exact"), make_job(tmp_path / "rough", precision="bf16")
    train(exact)
    train(rough)
    for a, b in zip(curve(exact), curve(rough), strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=2e-2)


def test_a_slow_precision_is_announced(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    cpu = torch.device("cpu")
    assert "precision=fp32 is faster" in precision_warning("bf16", cpu)
    assert precision_warning("fp32", cpu) is None
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert precision_warning("bf16", cpu) is None


def kill_after_states(directory, fields, states):
    """Start the run in a process of its own and SIGKILL it once it has saved so many states."""
    program = Path(__file__).with_name("synthetic_run.py")
    process = subprocess.Popen([sys.executable, str(program), str(directory), fields])
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if len(list((directory / "work").glob("step-*"))) >= states:
            break
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"


def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path):
    whole = make_job(tmp_path / "whole", steps=60)
    train(whole)
    kill_after_states(tmp_path / "killed", "{'steps': 60}", 2)
    killed = make_job(tmp_path / "killed", steps=60)
    left = max((killed.work).glob("step-*")).name
    assert not (killed.out / "model.safetensors").exists()
    train(killed)
    assert curve(killed) == curve(whole), f"resumed from {left}"
    assert (killed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_rows_after_the_last_state_are_not_doubled(tmp_path):
    whole = make_job(tmp_path / "whole")
    train(whole)
    job = make_job(tmp_path / "stopped")
    stop_at(job, 7)
    with open(job.metrics_file, "a") as handle:
        handle.write('{"step": 8, "loss": 1.0, "torn')
    train(job)
    assert curve(job) == curve(whole)


class Stopper:
    """Asks for a stop once a step is done, as a user's signal would."""

    def __init__(self, job, step):
        self.job, self.step, self.notes = job, step, []

    def update(self, done, total, unit, **facts):
        if done == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(self, text):
        self.notes.append(text)


def stop_at(job, step):
    object.__setattr__(job, "progress", Stopper(job, step))
    with pytest.raises(InterruptedRunError, match=f"stopped after step {step} of 12") as caught:
        train(job)
    assert caught.value.exit_code == 75


def test_a_signal_stops_after_the_step_with_the_state_saved(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    job = make_job(tmp_path, checkpoint_every_steps=0)
    stop_at(job, 4)
    assert [path.name for path in job.work.iterdir()] == ["step-000004"]
    assert signal.getsignal(signal.SIGTERM) is before
    stop_at(job, 9)
    assert "resuming after step 4 of 12" in job.progress.notes


def test_a_state_of_another_run_is_refused(tmp_path):
    stop_at(make_job(tmp_path), 4)
    with pytest.raises(UsageError, match="configured otherwise: seed"):
        train(make_job(tmp_path, seed=1))


def test_divergence_names_step_and_rows_and_saves_nothing(tmp_path):
    job = make_job(tmp_path, optimizer={"lr": 9.0, "weight_decay": 9.0}, checkpoint_every_steps=1, clip_norm=1e30)

    class Exploding(Counting):
        def loss(self, model, batch):
            return super().loss(model, batch) * (math.inf if (batch.tokens == 3).any() else 1.0)

    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    expected = Plan.of(job.config, 12, 0, 1).rows(0, MadeUpRows(40)).tolist()
    with pytest.raises(DivergedError, match=f"the loss is inf in step 1, rows {', '.join(map(str, expected))}"):
        fit(job, model, Exploding(), steps=12, heldout_rows=None)
    assert not list(job.work.glob("step-*"))


def test_a_gradient_that_is_not_finite_is_an_error(tmp_path):
    job = make_job(tmp_path)

    class Sharp(Counting):
        def loss(self, model, batch):
            loss = super().loss(model, batch)
            return loss + (loss - loss.detach()).sqrt()  # the slope of a root at 0 is infinite

    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    with pytest.raises(DivergedError, match="gradient's norm is (inf|nan) in step 1"):
        fit(job, model, Sharp(), steps=12, heldout_rows=None)


def test_a_step_without_targets_is_an_error(tmp_path):
    class Unlabelled(MadeUpRows):
        def batch(self, indices):
            batch = super().batch(indices)
            return Batch(batch.tokens, batch.positions, batch.documents, np.full_like(batch.labels, IGNORE))

    objective = Counting()
    objective.rows = Unlabelled(5)
    job = make_job(tmp_path)
    with pytest.raises(InputError, match="step 1, rows .* hold no target"):
        fit(job, Transformer(job.config.model, VOCAB), objective, steps=1, heldout_rows=None)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_micro_batches_deal_each_row_once(tmp_path, world_size):
    config = make_job(tmp_path, batch_rows=8, micro_batch_rows=3).config
    for step in range(7):  # beyond one epoch of 40 rows
        dealt = []
        for rank in range(world_size):
            plan = Plan.of(config, 7, rank, world_size)
            with Loader(MadeUpRows(40), plan) as loader:
                batches = loader.take(step)
            assert len(batches) == plan.micro_batches
            dealt += [row for batch in batches for row in batch.tokens.tolist()]
        expected = MadeUpRows(40).batch(Plan.of(config, 7, 0, 1).rows(step, MadeUpRows(40))).tokens.tolist()
        assert dealt == expected


def test_growing_batches_are_dealt_in_the_same_order_and_resume(tmp_path):
    fields = {"batch_rows": 12, "batch_ramp": {"start_rows": 3, "steps": 6}, "micro_batch_rows": 4}
    plan = Plan.of(make_job(tmp_path, **fields).config, 12, 0, 1)
    dealt = [row for step in range(12) for row in plan.rows(step, MadeUpRows(40)).tolist()]
    assert len(dealt) == 3 + 3 + 6 + 6 + 9 + 9 + 6 * 12
    assert dealt == permuted(0, np.arange(len(dealt)), 40).tolist()
    whole, parts = make_job(tmp_path / "whole", **fields), make_job(tmp_path / "parts", **fields)
    train(whole)
    stop_at(parts, 4)
    parts.progress.step = 0
    train(parts)
    assert curve(parts) == curve(whole)
    with pytest.raises(UsageError, match=r"batch_ramp.start_rows \(3\) is not a multiple of the 2 ranks"):
        Plan.of(whole.config, 12, 0, 2)


def test_rows_that_cannot_be_dealt_evenly_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"batch_rows \(8\) is not a multiple of the 3 ranks"):
        Plan.of(make_job(tmp_path).config, 1, 0, 3)


def test_a_second_interrupt_does_not_wait(tmp_path):
    with Stop(tmp_path, signals=True) as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_file_asks_for_a_stop(tmp_path):
    with Stop(tmp_path, signals=False) as stop:
        assert not stop.requested
        stop.file.touch()
        assert stop.requested


def test_the_file_of_an_earlier_attempt_stops_nothing(tmp_path):
    job = make_job(tmp_path, steps=3)
    (job.work / STOP_FILE).touch()
    assert train(job).totals["steps"] == 3


def test_a_rank_that_does_not_lead_leaves_the_file_alone(tmp_path):
    (tmp_path / STOP_FILE).touch()
    with Stop(tmp_path, signals=False, leads=False) as stop:
        assert not stop.requested
    assert (tmp_path / STOP_FILE).exists()


@pytest.mark.parametrize("name", ["part-00000.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"\xff" * 40])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, name, damage):
    whole = make_job(tmp_path / "whole")
    train(whole)
    job = make_job(tmp_path / "stopped")
    stop_at(job, 8)
    assert sorted(path.name for path in job.work.glob("step-*")) == ["step-000006", "step-000008"]
    path = job.work / "step-000008" / name
    path.write_bytes(damage(path.read_bytes()))
    job.progress.step = 0  # no more stops
    train(job)
    notes = [note for note in job.progress.notes if "damaged" in note or "resuming" in note]
    assert "step-000008 is damaged" in notes[0]
    assert notes[1:] == ["resuming after step 6 of 12"]
    assert curve(job) == curve(whole)
    assert (job.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_where_every_state_is_damaged_the_run_does_not_start_anew_by_itself(tmp_path):
    job = make_job(tmp_path)
    stop_at(job, 4)
    for path in job.work.glob("step-*/part-*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="is damaged") as caught:
        train(job)
    assert "--force" in caught.value.hint


def test_a_resume_that_rounds_otherwise_says_so(tmp_path):
    job = make_job(tmp_path)
    stop_at(job, 4)
    again = make_job(tmp_path, Stopper(None, 0), micro_batch_rows=2)
    train(again)
    assert "micro_batch_rows 4 became 2: results agree with those of an undisturbed run to rounding only" in (
        again.progress.notes
    )


def test_the_hint_of_a_divergence_shows_its_rows(tmp_path):
    job = make_job(tmp_path, seed=7)
    manifest = Manifest.model_construct(schema_=ROWS_SCHEMA, digest="sha256:00")
    job = replace(job, inputs={"input": Artifact(tmp_path, manifest, "notes.pack@v1")})

    class Exploding(Counting):
        def loss(self, model, batch):
            return super().loss(model, batch) * math.inf

    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    with pytest.raises(DivergedError) as caught:
        fit(job, model, Exploding(), steps=12, heldout_rows=None)
    assert caught.value.exit_code == 6
    assert caught.value.hint == (
        "lower optimizer.lr or clip_norm; look at them: llmctl show notes.pack@v1 --step 1 --seed 7 --batch-rows 8"
    )


def test_the_loss_function_is_the_sum_over_targets(tmp_path):
    model = Transformer(make_job(tmp_path).config.model, VOCAB)
    model.init_weights(0)
    from llmctl.model.likelihood import Tensors

    batch = MadeUpRows(4).batch(np.arange(4))
    total = next_token(model, Tensors.of(batch, torch.device("cpu")))
    assert total.item() / batch.targets == pytest.approx(math.log(VOCAB), rel=0.1)


def test_an_undefined_figure_is_left_out(tmp_path):
    job = make_job(tmp_path)
    held = HeldOutRows(MadeUpRows(3, salt=1), np.zeros(VOCAB, dtype=np.int32))  # no id stands for any text
    totals = fit(job, Transformer(job.config.model, VOCAB), Counting(), steps=2, heldout_rows=held).totals
    assert "heldout_bits_per_byte" not in totals
    assert 0 < totals["heldout_loss"] < 100
    assert totals["heldout_targets"] > 0
    assert [sorted(row) for row in curve(job)][-1] == ["heldout_loss", "heldout_targets", "step", "tokens"]
    assert "NaN" not in job.metrics_file.read_text()
