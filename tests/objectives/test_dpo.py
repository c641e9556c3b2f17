"""The stages `logprobs` and `dpo` on a real checkpoint: what is learned, what is kept, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmctl.config.dpo import DpoConfig, LogprobsConfig
from llmctl.config.errors import ConfigError, InputError, IntegrityError, LlmctlError, UsageError
from llmctl.config.load import build
from llmctl.config.train import PretrainConfig
from llmctl.data.split import is_heldout
from llmctl.objectives.logprobs import FILE, check_made_for, read_references
from llmctl.objectives.pairs import read_pairs
from llmctl.objectives.start import check_same_tokens
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.tokens.tokenizer import Tokenizer

from .conftest import NANO, QUICK

WORDS = ["zero", "one", "two", "three", "four"]
LEARNS = {"batch_rows": 8, "epochs": 30, "max_tokens": 48, "optimizer": {"lr": 6e-3}, "heldout_fraction": 0.2}


def dpo(**fields):
    return DpoConfig.model_validate({**QUICK, **LEARNS, **fields})


def pair(number, a, b):
    """The second word is the better answer."""
    return {"id": f"pair/{number}", "prompt": f"{a} {b}", "chosen": f"{b}.", "rejected": f"{a}."}


@pytest.fixture(scope="session")
def preferences(write_preferences):
    return write_preferences([pair(n, a, b) for n, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS if a != b)])


@pytest.fixture(scope="session")
def judged(preferences, write_preferences):
    """The same answers, each by itself."""
    rows = []
    for line in preferences.path.read_text().splitlines():
        row = json.loads(line)
        rows += [
            {"id": f"{row['id']}/{name}", "prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for name in ("chosen", "rejected")
        ]
    return write_preferences(rows)


def metrics_of(made):
    return [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_which_answer_is_preferred(stages, checkpoint, preferences):
    made = stages("dpo", dpo(), input=checkpoint, preferences=preferences)
    steps = [row for row in metrics_of(made) if "loss" in row]
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the policy is its reference yet
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["rewards/accuracies"] == 1.0
    assert steps[-1]["rewards/margins"] > 1
    assert steps[-1]["rewards/chosen"] - steps[-1]["rewards/rejected"] == pytest.approx(steps[-1]["rewards/margins"])
    totals, facts = made.manifest.totals, made.manifest.semantic
    held = sum(is_heldout(f"pair/{n}", 0.2) for n in range(20))
    assert (totals["pairs"], totals["heldout_pairs"], totals["dropped.overlong"]) == (20 - held, held, 0)
    assert totals["heldout_rewards/accuracies"] > 0.5
    assert totals["heldout_loss"] < np.log(2)
    assert totals["before_heldout_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert totals["before_heldout_rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert totals["heldout_logps/margins"] > totals["before_heldout_logps/margins"] + 0.1
    assert totals["heldout_logps/accuracies"] > totals["before_heldout_logps/accuracies"]
    assert facts["tokenizer"] == checkpoint.manifest.semantic["tokenizer"]
    assert facts["chat"] is True
    assert made.manifest.inputs["logprobs"].kind == "logprobs"


def test_what_it_gained_is_told_and_outlasts_an_interruption(stages, checkpoint, preferences):
    config = dpo(steps=6, checkpoint_every_steps=2, seed=3)
    call = Call(stage_named("dpo"), config, {"input": checkpoint, "preferences": preferences})
    said = []

    class Notes(Silent):
        def note(self, text):
            said.append(text)

    class Breaks(Notes):
        def update(self, done, total, unit, **facts):
            if unit == "steps" and done == 5:
                raise OSError("the machine is gone")

    with pytest.raises(LlmctlError):
        execute(call, stages.store, Breaks())
    resumed = execute(call, stages.store, Notes()).artifact
    whole = execute(replace(call, force=True), stages.store, Silent()).artifact
    assert resumed.digest == whole.digest
    before = {name: value for name, value in whole.manifest.totals.items() if name.startswith("before_")}
    assert len(before) == 4
    assert before.items() <= resumed.manifest.totals.items()
    assert sum("the better answer likelier in" in text and text.startswith("step 0:") for text in said) == 1
    (gain,) = (text for text in said if "before and after" in text)
    after = whole.manifest.totals["heldout_logps/accuracies"]
    assert gain.endswith(f"better answer likelier in {before['before_heldout_logps/accuracies']:.4g} to {after:.4g}")


def test_the_reference_is_scored_once(stages, checkpoint, preferences):
    first = stages("dpo", dpo(steps=1), input=checkpoint, preferences=preferences)
    second = stages("dpo", dpo(steps=1, loss={"name": "ipo", "beta": 0.3}), input=checkpoint, preferences=preferences)
    assert first.manifest.inputs["logprobs"] == second.manifest.inputs["logprobs"]
    assert first.digest != second.digest
    kept = stages.store.find(first.manifest.inputs["logprobs"].digest)
    given = stages("dpo", dpo(steps=1), input=checkpoint, preferences=preferences, logprobs=kept)
    assert given.digest == first.digest
    shorter = stages("dpo", dpo(steps=1, max_tokens=40), input=checkpoint, preferences=preferences)
    assert shorter.manifest.inputs["logprobs"].digest != kept.digest  # it says what was the longest


def test_what_is_kept_of_the_reference(stages, checkpoint, preferences, judged):
    tokenizer = Tokenizer.open(checkpoint.data)
    for source, unpaired in ((preferences, False), (judged, True)):
        config = LogprobsConfig(max_tokens=48, unpaired=unpaired, device="cpu", threads=1, batch_tokens=100)
        made = stages("logprobs", config, input=checkpoint, preferences=source)
        pairs = read_pairs(source, tokenizer, 48, 0.0, unpaired=unpaired).pairs
        references = read_references(made, pairs)
        assert references.shape == (len(pairs), 2)
        assert (references < 0).all()
        table = pq.read_table(made.file(FILE))
        assert table.column_names == made.manifest.semantic["columns"]
        with pytest.raises(IntegrityError, match="does not hold the log-probabilities of these preferences"):
            read_references(made, pairs[1:])


def test_what_is_given_of_the_reference_must_be_of_this_run(stages, checkpoint, preferences, write_preferences):
    config = LogprobsConfig(max_tokens=48, device="cpu", threads=1)
    kept = stages("logprobs", config, input=checkpoint, preferences=preferences)
    given = {"input": checkpoint, "preferences": preferences}
    swapped = [{**json.loads(line)} for line in preferences.path.read_text().splitlines()]
    swapped = [{**row, "id": f"{row['id']}/other"} for row in swapped]  # as many pairs of as many tokens
    with pytest.raises(InputError, match="is of other preferences than"):
        stages("dpo", dpo(steps=1), input=checkpoint, preferences=write_preferences(swapped), logprobs=kept)
    facts = {**kept.manifest.semantic, "tokenizer": "sha256:0"}
    strange = replace(kept, manifest=kept.manifest.model_copy(update={"semantic": facts}))
    with pytest.raises(InputError, match="was scored with another tokenizer"):
        check_made_for(strange, checkpoint, preferences)
    with pytest.raises(UsageError, match="--reference and --logprobs are both given"):
        stages("dpo", dpo(steps=1), **given, reference=checkpoint, logprobs=kept)
    for unread in ({"reference": checkpoint}, {"logprobs": kept}):
        with pytest.raises(UsageError, match="the loss simpo has no reference"):
            stages("dpo", dpo(steps=1, loss="simpo"), **given, **unread)


def test_kto_learns_from_answers_judged_by_themselves(stages, checkpoint, judged):
    made = stages("dpo", dpo(loss="kto", epochs=28), input=checkpoint, preferences=judged)
    steps = [row for row in metrics_of(made) if "loss" in row]
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert steps[-1]["rewards/accuracies"] > 0.9
    assert steps[-1]["rewards/chosen"] > steps[-1]["rewards/rejected"] + 1
    assert all(row["kl"] >= 0 for row in steps)
    assert made.manifest.totals["pairs"] + made.manifest.totals["heldout_pairs"] == 40


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_without_a_reference_score_none(stages, checkpoint, preferences, name):
    made = stages("dpo", dpo(loss={"name": name}, epochs=4), input=checkpoint, preferences=preferences)
    assert "logprobs" not in made.manifest.inputs
    steps = [row for row in metrics_of(made) if "loss" in row]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_ranks_compute_what_one_process_does(stages, checkpoint, judged):
    config = {"loss": "kto", "steps": 3, "clip_norm": 1e9}
    alone = stages("dpo", dpo(**config), input=checkpoint, preferences=judged)
    inputs = {"input": checkpoint, "preferences": judged}
    call = Call(stage_named("dpo"), dpo(**config, nproc=2), inputs, force=True)
    both = execute(call, stages.store, Silent()).artifact
    compared = ("loss", "grad_norm", "kl", "rewards/chosen", "rewards/accuracies", "heldout_loss")
    figures = [[row[name] for row in metrics_of(made) for name in compared if name in row] for made in (alone, both)]
    assert len(figures[0]) == 3 * 5 + 2  # the held-out loss before and after
    assert figures[1] == pytest.approx(figures[0], rel=1e-4, abs=1e-6)


def test_a_reference_of_other_ids_is_refused(stages, rows, checkpoint, preferences, tmp_path):
    config = PretrainConfig.model_validate({**QUICK, "model": NANO, "steps": 1})
    other = stages("pretrain", config, input=rows)
    made = stages("dpo", dpo(steps=1), input=checkpoint, preferences=preferences, reference=other)
    assert made.manifest.inputs["reference"].digest == other.digest
    shutil.copytree(other.path, tmp_path / "run")
    strange = replace(other, path=tmp_path / "run")
    facts = {**other.manifest.semantic, "tokenizer": "sha256:0"}
    strange = replace(strange, manifest=other.manifest.model_copy(update={"semantic": facts}))
    check_same_tokens(checkpoint, strange)  # the same files under another digest
    template = tmp_path / "run" / "data" / "chat_template.jinja"
    template.chmod(0o644)
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    with pytest.raises(InputError, match="has another chat template than that of"):
        check_same_tokens(checkpoint, strange)
    more = strange.manifest.model_copy(update={"semantic": {**facts, "vocab_size": 301}})
    with pytest.raises(InputError, match="has 301 ids, not 300 than that of"):
        check_same_tokens(checkpoint, replace(strange, manifest=more))


@pytest.mark.parametrize(
    ("fields", "row", "error", "message"),
    [
        ({}, {"prompt": "a", "chosen": "b", "rejected": ""}, InputError, "preference 2 .* has an empty rejected"),
        ({}, {"prompt": "a", "chosen": "b", "rejected": "one " * 60}, InputError, "preference 2 .* more than 48"),
        ({}, {"prompt": "a", "completion": "b", "label": True}, InputError, "preference 2 .* has no rejected"),
        ({"max_tokens": 65}, None, UsageError, r"max_tokens \(65\) exceeds the model's context of 64"),
        (
            {"row_tokens": 4, "heldout_fraction": 0},
            None,
            UsageError,
            r"row_tokens \(4\) is below .* pair, of pair/0",
        ),
        ({"heldout_fraction": 0.9999999}, None, InputError, "all 1 preferences are held out"),
        ({"max_tokens": 4, "overlong": "drop"}, None, InputError, "no preference fits"),
    ],
)
@pytest.mark.parametrize("loss", ["sigmoid", "cpo"])
def test_bad_input_publishes_nothing(stages, checkpoint, write_preferences, fields, row, error, message, loss):
    given = write_preferences([pair(0, "one", "two"), *([row] if row else [])])
    with pytest.raises(error, match=message):
        stages("dpo", dpo(**fields, loss=loss), input=checkpoint, preferences=given)


def test_configurations():
    assert build(DpoConfig, [{"loss": "ipo"}, {"loss": {"beta": 0.2}}]).loss.model_dump()["beta"] == 0.2
    assert dpo(loss={"beta": 0.7}).loss.name == "sigmoid"
    with pytest.raises(ConfigError, match="sophia estimates its curvature"):
        build(DpoConfig, [{"optimizer": "sophia"}])
    with pytest.raises(ConfigError, match="loss"):
        build(DpoConfig, [{"loss": "dppo"}])


def test_the_command(stages, checkpoint, preferences):
    words = ["dpo", str(checkpoint.path), "--preferences", str(preferences.path), "--loss", "hinge", "--json"]
    words += ["--store", str(stages.store.root), "steps=1", "max_tokens=48", "device=cpu", "threads=1"]
    environ = {**os.environ, "LLMCTL_QUIET": "1"}
    command = [sys.executable, "-m", "llmctl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    receipt = json.loads(done.stdout.splitlines()[-1])
    assert receipt["ok"] is True
    assert stages.store.resolve(receipt["ref"]).manifest.producer.config["loss"]["name"] == "hinge"
