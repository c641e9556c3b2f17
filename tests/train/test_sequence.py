"""Ranks that share rows (Ulysses): a step is that of one rank, whatever the model's attention sees."""

import json
from pathlib import Path

import numpy as np
import pytest
from cuts import CUTS, held
from splits import LAYOUTS, Laid, loss_and_gradient, take_a_step
from synthetic_run import MODEL, MadeUpRows, make_job

from llmctl.config.errors import ConfigError, UsageError
from llmctl.config.load import build, parse_overrides
from llmctl.config.model import ModelConfig
from llmctl.config.sequence import uncut
from llmctl.config.train import PretrainConfig, SftConfig, TrainConfig
from llmctl.train.launch import run_ranks
from llmctl.train.loader import Loader, Plan

HERE = Path(__file__).parent


@pytest.mark.slow
def test_ranks_that_share_rows_take_the_step_of_one_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    job = make_job(tmp_path / "ranks", batch_rows=4, nproc=4)
    run_ranks(job, "cuts:train_cut")
    for name, (layout, model, _) in CUTS.items():
        alone = tmp_path / "alone" / name
        expected = take_a_step(alone, LAYOUTS[layout], held(), model=model)
        (loss, gradient), (its_loss, its_gradient) = loss_and_gradient(job.out / name), loss_and_gradient(alone)
        assert loss == pytest.approx(its_loss, rel=1e-6), name
        assert gradient.keys() == its_gradient.keys()
        for key, value in gradient.items():
            assert value.abs().max() > 0, (name, key)
            assert (value - its_gradient[key]).abs().max() < 2e-6 * its_gradient[key].abs().max() + 1e-9, (name, key)
        totals = json.loads((job.out / name / "totals.json").read_text())
        assert totals["tokens"] == expected.totals["tokens"]
        if name == "pairs":
            for figure in ("heldout_loss", "heldout_bits_per_byte", "heldout_targets"):
                assert totals[figure] == pytest.approx(expected.totals[figure], rel=1e-5), figure


@pytest.mark.parametrize("parts", [2, 4])
def test_ranks_of_a_group_see_the_same_rows_and_count_each_target_once(parts):
    config = PretrainConfig.model_validate(
        {
            "batch_rows": 4,
            "micro_batch_rows": 1,
            "nproc": 4,
            "sequence_parallel": parts,
            "model": {**MODEL, "heads": 4, "kv_heads": 4},
        }
    )
    rows, counted, tokens = Laid(LAYOUTS["all in one row"]), 0, 0
    whole = rows.batch(np.arange(rows.count))
    seen = []
    for rank in range(4):
        plan = Plan.of(config, 1, rank, 4)
        with Loader(rows, plan) as loader:
            batches = loader.take(0)
        seen.append(np.concatenate([batch.tokens for batch in batches]).tolist())
        counted += sum(batch.targets for batch in batches)
        tokens += sum(plan.tokens(batch) for batch in batches)
    assert counted == whole.targets
    assert tokens == np.count_nonzero(whole.documents >= 0)
    for first in range(0, 4, parts):
        assert all(others == seen[first] for others in seen[first : first + parts])
    dealt = [row for first in range(0, 4, parts) for row in seen[first]]
    assert sorted(dealt) == sorted(whole.tokens.tolist())


def test_rows_that_cannot_be_cut_evenly_are_refused():
    config = PretrainConfig.model_validate({"nproc": 5, "batch_rows": 1, "sequence_parallel": 5, "model": MODEL_OF_5})
    with (
        Loader(MadeUpRows(8), Plan.of(config, 1, 0, 5)) as loader,
        pytest.raises(UsageError, match="rows of 24 tokens cannot be cut into 5 equal parts") as caught,
    ):
        loader.take(0)
    assert "make them of 25" in caught.value.hint
    with pytest.raises(UsageError, match="sequence_parallel=5 does not divide the 4 ranks"):
        Plan.of(config, 1, 0, 4)


MODEL_OF_5 = {"name": "nano", "width": 40, "heads": 5, "kv_heads": 5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sequence_parallel=2", "nproc=2", "model.heads=4", "model.kv_heads=1"], "1 kv_heads are no multiple of 2"),
        (["sequence_parallel=3", "nproc=3", "model.heads=4"], "4 heads are no multiple of 3"),
        (["sequence_parallel=2", "nproc=2", "model.mtp.depth=1"], "multi-token prediction"),
        (["sequence_parallel=2", "nproc=3"], r"nproc \(3\) must be a multiple of sequence_parallel"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_work(words, message):
    with pytest.raises(ConfigError, match=message):
        build(PretrainConfig, [parse_overrides(["model=nano", *words])])


def test_experts_stay_on_whole_rows():
    experts = ModelConfig.model_validate({**MODEL, "kv_heads": 2, "experts": {"count": 4, "top": 2, "ffn_width": 16}})
    assert "without experts" in uncut(experts, 2)
    assert uncut(ModelConfig.model_validate({**MODEL, "kv_heads": 2}), 2) is None


def test_only_losses_that_are_sums_over_tokens_may_be_cut():
    assert SftConfig(sequence_parallel=2, nproc=2).row_ranks == 1
    with pytest.raises(ValueError, match="loss is of whole answers"):
        TrainConfig(sequence_parallel=2, nproc=2)
