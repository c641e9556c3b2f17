"""One dial: what follows from it, by hand; that each value can be overridden; what a wrong setting is told."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.base import semantic_values
from llmctl.config.dial import DEEPEST, DialConfig, dialled, parse_count
from llmctl.config.errors import ConfigError
from llmctl.config.load import build, parse_overrides
from llmctl.config.model import ModelConfig
from llmctl.config.train import PretrainConfig
from llmctl.model.transformer import Transformer


def config(*overrides: str) -> PretrainConfig:
    return build(PretrainConfig, [parse_overrides(overrides)])


def test_what_follows_from_a_depth() -> None:
    got = config("dial.depth=4")
    assert (got.model.layers, got.model.width, got.model.heads, got.model.kv_heads) == (4, 256, 4, 4)
    assert (got.model.ffn_width, got.model.context, got.model.tied_embeddings) == (704, 1024, True)
    parameters = 4 * (4 * 256**2 + 3 * 256 * 704 + 2 * 256) + 8192 * 256 + 256
    tokens = 20 * parameters
    compute = 6 * parameters * tokens
    rows = 0.2920 * compute**0.3271 / 1024
    assert got.batch_rows == 32
    assert rows / math.sqrt(2) < 32 < rows * math.sqrt(2)
    assert got.steps == math.ceil(tokens / (32 * 1024))
    assert got.optimizer.lr == pytest.approx(0.3118 * compute**-0.125, rel=0.02)
    derived = got.resolved()["dial"]
    assert (derived["parameters"], derived["tokens"], derived["tokens_per_step"]) == (parameters, tokens, 32 * 1024)
    assert "Chinchilla" in derived["rules"]["tokens"]


@pytest.mark.parametrize("depth", [1, 3, 4, 16, 17, 48])
def test_the_count_is_that_of_the_model(depth: int) -> None:
    follows = dialled(DialConfig(depth=depth, vocab_size=5000, seq_len=512))
    with torch.device("meta"):
        model = Transformer(ModelConfig.model_validate(follows.model()), 5000)
    assert model.parameters_count() == follows.parameters
    assert follows.width % follows.head_width == 0
    assert 0 <= follows.width - 64 * depth < 128


@given(st.integers(2_000_000, 10**11))
def test_a_number_of_parameters_is_met_as_nearly_as_steps_of_the_width_allow(parameters: int) -> None:
    follows = dialled(DialConfig(params=str(parameters)))
    assert follows.parameters == pytest.approx(parameters, rel=0.08)
    assert 32 <= follows.width / follows.layers <= 128
    assert follows.layers <= DEEPEST
    assert follows.steps * follows.batch_rows * follows.seq_len >= 20 * follows.parameters
    assert 1e-4 < follows.lr < 1e-2


def test_a_larger_model_has_a_larger_batch_and_a_smaller_rate() -> None:
    sizes = [dialled(DialConfig(params=params)) for params in ("1M", "10M", "100M", "1B", "10B")]
    for small, large in itertools.pairwise(sizes):
        assert small.layers < large.layers
        assert small.width < large.width
        assert small.batch_rows < large.batch_rows
        assert small.lr > large.lr


def test_every_value_that_follows_can_be_set_by_hand() -> None:
    got = config(
        "dial.params=50M",
        "steps=7",
        "batch_rows=6",
        "optimizer.lr=1e-4",
        "optimizer.weight_decay=0.2",
        "model.heads=5",
        "model.kv_heads=5",
        "model.attention.qk_norm=true",
    )
    assert (got.steps, got.batch_rows, got.optimizer.lr) == (7, 6, 1e-4)
    assert (got.model.width, got.model.heads, got.model.attention.qk_norm) == (640, 5, True)
    by_default = config("dial.params=50M").optimizer
    assert by_default.lr == pytest.approx(2e-3)
    assert config("dial.params=50M", "optimizer=adamw").optimizer == by_default
    other = config("dial.params=50M", "optimizer=muon").optimizer
    assert other == config("optimizer=muon").optimizer  # the law of the rate is AdamW's


def test_the_dial_itself_is_no_part_of_the_result() -> None:
    dialled_in = config("dial.depth=2")
    by_hand = PretrainConfig.model_validate({**dialled_in.model_dump(), "dial": None})
    assert semantic_values(dialled_in) == semantic_values(by_hand)
    assert PretrainConfig.model_validate(json.loads(dialled_in.model_dump_json())) == dialled_in
    assert "dial" not in config().resolved()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dial.depth=4", "dial.params=50M"], "give depth or params, one of the two"),
        (["dial.vocab_size=4096"], "give depth or params, one of the two"),
        (["dial.params=50X"], "write 50M or 1.5B"),
        (["dial.params=50"], "from 10K to 10000B"),
        (["dial.depth=0"], "greater than or equal to 1"),
        (["dial.depth=4", "model=tiny"], "goes without the preset tiny"),
        (["dial.depth=4", "model.name=gpt2"], "goes without the preset gpt2"),
        (["dial.depht=4"], "did you mean depth"),
    ],
)
def test_a_wrong_setting_is_told_how_to_mend_it(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*overrides)
    assert says in str(caught.value) + "".join(f"{problem}" for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "count"),
    [("50M", 50_000_000), ("1.5b", 1_500_000_000), ("124_000_000", 124_000_000), (" 20K ", 20_000)],
)
def test_counts_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count
