import pytest

from llmctl.config.base import semantic_values
from llmctl.config.errors import ConfigError
from llmctl.config.load import build, parse_overrides
from llmctl.config.schedules import CosineConfig, WsdConfig
from llmctl.config.train import PretrainConfig, SftConfig


def test_names_stand_for_blocks():
    config = build(PretrainConfig, [parse_overrides(["schedule=wsd", "optimizer=adamw", "model=nano"])])
    assert isinstance(config.schedule, WsdConfig)
    assert config.model.width == 64


def test_a_block_without_a_name_is_the_default_kind():
    config = build(PretrainConfig, [parse_overrides(["schedule.final_fraction=0.5", "optimizer.lr=1e-4"])])
    assert config.schedule == CosineConfig(final_fraction=0.5)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-4, 0.1)


def test_what_an_override_leaves_out_comes_from_the_stage():
    config = build(SftConfig, [parse_overrides(["optimizer.lr=1e-4"])])
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-4, 0.0)


def test_how_a_step_is_computed_is_not_semantic():
    plain = PretrainConfig()
    other = PretrainConfig(nproc=2, zero=3, micro_batch_rows=2, threads=3, device="cpu", checkpoint_every_steps=7)
    measured = PretrainConfig(eval_every_steps=3, heldout_rows=5)
    assert semantic_values(plain) == semantic_values(other) == semantic_values(measured)
    assert semantic_values(plain) != semantic_values(PretrainConfig(precision="bf16"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch_rows=3", "nproc=2"], "must be a multiple of nproc"),
        (["compile=true", "zero=1"], "single process only"),
        (["optimizer.betas=[0.9, 1.0]"], "each beta must lie in"),
        (["steps=0"], "steps"),
        (["schedule=exponential"], "schedule"),
        (["optimizer.momentum=0.9"], "momentum"),
        (["precision=fp17"], "precision"),
        (["zero=4"], "zero"),
        (["offload=cpu"], "offload moves what ZeRO shards"),
    ],
)
def test_faults_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        build(PretrainConfig, [parse_overrides(words)])


def test_resolved_pretrain():
    config = PretrainConfig(steps=200, batch_rows=16, nproc=2, micro_batch_rows=3)
    assert config.resolved() == {
        "rows_per_rank": 8,
        "micro_batch_rows": 3,
        "micro_batches_per_rank": 3,
        "warmup_steps": 10,
        "decay_steps": 190,
    }


def test_resolved_sft_knows_its_steps_and_tokens_only_where_they_are_given():
    assert SftConfig(batch_rows=8).resolved().keys() == {"rows_per_rank", "micro_batch_rows", "micro_batches_per_rank"}
    values = SftConfig(batch_rows=8, steps=40, max_tokens=512).resolved()
    assert (values["warmup_steps"], values["tokens_per_step"]) == (2, 4096)
