import json
import math

import pytest
from safetensors.torch import load_file
from synthetic_run import VOCAB, Counting, curve, make_job, train

from llmctl.config.averages import EmaConfig, TailConfig, average_share
from llmctl.config.guards import GuardConfig
from llmctl.model.transformer import Transformer
from llmctl.train.guards import LOSS, NORM, DivergedError, Guard
from llmctl.train.loop import fit


class Faulty(Counting):
    """Counting, but for given steps (from 0) of the run the loss is multiplied by something."""

    def __init__(self, job, factors):
        super().__init__()
        self.factors = factors
        self.of_row = {}
        from llmctl.train.loader import Plan

        plan = Plan.of(job.config, job.config.steps, 0, 1)
        for step, factor in factors.items():
            self.of_row[tuple(self.rows.batch(plan.rows(step, self.rows)[:1]).tokens[0].tolist())] = factor

    def loss(self, model, batch):
        factor = self.of_row.get(tuple(batch.tokens[0].tolist()), 1.0)
        return super().loss(model, batch) * factor


FIELDS = {"steps": 4, "batch_rows": 8, "micro_batch_rows": 8, "eval_every_steps": 0}


def run(directory, factors, **fields):
    job = make_job(directory, **{**FIELDS, **fields})
    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)
    fitted = fit(job, model, Faulty(job, factors), steps=job.config.steps, heldout_rows=None)
    return job, fitted


def rows(job):
    return [json.loads(line) for line in job.metrics_file.read_text().splitlines()]


def equal(a, b):
    return all((a.weights[name] == b.weights[name]).all() for name in a.weights)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_skipped_step_changes_nothing_and_its_rows_are_noted(tmp_path, factor):
    job, fitted = run(tmp_path / "a", {2: factor}, guard={"on_nan": "skip"}, checkpoint_every_steps=0)
    seen = rows(job)
    assert [row["step"] for row in seen] == [1, 2, 3, 4]
    assert seen[2]["incident"] == f"the loss is {factor}"
    assert seen[2]["action"] == "skip"
    assert len(seen[2]["rows"]) == 8
    assert "loss" not in seen[2]
    assert fitted.totals["left_out"] == 1
    assert seen[3]["tokens"] - seen[1]["tokens"] < seen[1]["tokens"]  # what was left out does not count
    _, harmless = run(tmp_path / "b", {}, checkpoint_every_steps=0)
    assert not equal(fitted, harmless)


def test_a_spike_is_skipped_and_the_moments_with_it(tmp_path):
    guard = {"on_spike": "skip", "after": 4, "window": 8, "sigma": 6.0}
    fields = {"steps": 12, "guard": guard, "checkpoint_every_steps": 0}
    job, spiked = run(tmp_path / "a", {9: 50.0}, **fields)
    _, other = run(tmp_path / "b", {9: 70.0}, **fields)
    incident = rows(job)[9]
    assert incident["incident"].startswith("the loss is ")
    assert "where the mean of the last 8 steps is" in incident["incident"]
    assert equal(spiked, other)  # however high the spike: nothing of it went anywhere


def test_a_spike_of_the_gradient_alone_is_seen(tmp_path):
    guard = Guard(GuardConfig(on_spike="stop", after=3, window=4, sigma=3.0))
    for norm in (1.0, 1.1, 0.9):
        assert guard.fault(NORM, 100.0) is None
        guard.trust(2.0, norm)
    assert guard.fault(NORM, 1.2) is None
    assert guard.fault(NORM, 1.3).action == "stop"
    assert guard.fault(LOSS, 2.0) is None
    assert guard.fault(LOSS, 2.1) is not None  # it had not moved at all


def test_a_guard_that_says_stop_names_the_spike(tmp_path):
    with pytest.raises(DivergedError, match=r"the loss is \d.* in step 10, rows"):
        run(tmp_path, {9: 50.0}, steps=12, guard={"on_spike": "stop", "after": 4})
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["action"]) == (10, "stop")


def test_a_rollback_leaves_out_the_steps_before_it_too(tmp_path):
    fields = {"steps": 12, "checkpoint_every_steps": 4}
    job, back = run(tmp_path / "a", {6: math.nan}, guard={"on_nan": "rollback", "rollback_steps": 1}, **fields)
    seen = rows(job)
    assert [(row["step"], row.get("action")) for row in seen if "incident" in row] == [(7, "rollback")]
    assert [row["step"] for row in seen if "left_out" in row] == [6, 7]
    assert [row["step"] for row in seen if "loss" in row] == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    # The same as a run in which those two steps were no steps at all.
    _, skipped = run(tmp_path / "b", {5: math.nan, 6: math.nan}, guard={"on_nan": "skip"}, **fields)
    assert equal(back, skipped)


def test_a_rollback_without_a_saved_state_skips(tmp_path):
    job, fitted = run(tmp_path, {1: math.nan}, guard={"on_nan": "rollback"}, checkpoint_every_steps=0)
    assert fitted.totals["left_out"] == 1
    assert [row["step"] for row in rows(job) if "loss" in row] == [1, 3, 4]


def test_too_many_steps_left_out_end_the_run(tmp_path):
    with pytest.raises(DivergedError, match=r"2 steps left out are more than guard\.most"):
        run(tmp_path, {1: math.nan, 2: math.nan}, guard={"on_nan": "skip", "most": 1})


def test_the_guards_memory_survives_a_resume(tmp_path):
    guard = {"on_spike": "skip", "after": 4, "window": 8}
    fields = {"steps": 12, "guard": guard, "checkpoint_every_steps": 3}
    whole, expected = run(tmp_path / "whole", {9: 50.0}, **fields)
    job = make_job(tmp_path / "parts", **{**FIELDS, **fields})
    model = Transformer(job.config.model, VOCAB)
    model.init_weights(0)

    class Dying(Faulty):
        def loss(self, model, batch):
            if len(list(job.work.glob("step-*[0-9]"))) == 2:
                raise MemoryError
            return super().loss(model, batch)

    with pytest.raises(MemoryError):
        fit(job, model, Dying(job, {9: 50.0}), steps=12, heldout_rows=None)
    resumed, fitted = run(tmp_path / "parts", {9: 50.0}, **fields)
    assert curve(resumed) == curve(whole)
    assert equal(fitted, expected)


def test_the_ema_is_its_recurrence():
    ema = EmaConfig(decay=0.75)
    values, average = [4.0, 8.0, 0.0, 12.0, 4.0, 4.0], None
    for step, value in enumerate(values, start=1):
        share = average_share(ema, step, 6)
        average = value if average is None else average + share * (value - average)
        if step <= 4:  # a plain mean until 1/step falls below 1 - decay
            assert average == pytest.approx(sum(values[:step]) / step)
    assert average == pytest.approx((6.0 * 0.75 + 1.0) * 0.75 + 1.0)


@pytest.mark.parametrize(("steps", "expected"), [(100, {60, 70, 80, 90, 100}), (25, {5, 15, 25}), (7, {7})])
def test_a_tail_is_the_mean_of_the_last_multiples(steps, expected):
    tail, average, used = TailConfig(count=5, every_steps=10), 0.0, set()
    for step in range(1, steps + 1):
        share = average_share(tail, step, steps)
        average += share * (step - average)
        used |= {step} if share else set()
    assert used == expected
    assert average == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("average", [{"name": "ema", "decay": 0.5}, {"name": "tail", "count": 2, "every_steps": 3}])
def test_an_average_is_published_measured_and_resumed_bitwise(tmp_path, average):
    fields = {"average": average, "steps": 12, "checkpoint_every_steps": 5}
    whole = make_job(tmp_path / "whole", **fields)
    train(whole)
    raw = make_job(tmp_path / "raw", steps=12)
    train(raw)
    published, last = (load_file(job.out / "model.safetensors") for job in (whole, raw))
    assert any((published[name] != last[name]).any() for name in last)
    assert [row["loss"] for row in curve(whole) if "loss" in row] == [
        row["loss"] for row in curve(raw) if "loss" in row
    ]
    assert curve(whole)[-1]["heldout_loss"] != curve(raw)[-1]["heldout_loss"]
    from test_loop import stop_at

    parts = make_job(tmp_path / "parts", **fields)
    stop_at(parts, 7)
    object.__setattr__(parts, "progress", whole.progress)
    train(parts)
    assert curve(parts) == curve(whole)
    assert (parts.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_a_tail_is_the_mean_of_saved_weights(tmp_path):
    """Against the weights of the two states, read from disk."""
    fields = {"checkpoint_every_steps": 3, "keep": "every:3", "steps": 12}
    job = make_job(tmp_path, average={"name": "tail", "count": 2, "every_steps": 3}, **fields)
    train(job)
    before = load_file(job.work / "step-000009" / "part-00000.safetensors")
    raw = make_job(tmp_path / "raw", **fields)
    train(raw)
    last, published = (load_file(one.out / "model.safetensors") for one in (raw, job))
    for name, value in published.items():
        mean = (before[f"weight/{name}"] + last[name]) / 2
        assert (value - mean).abs().max() < 1e-7
