"""Presets: the counts that their table claims, and what a wrong shape is told."""

import pytest
import torch
from pydantic import ValidationError

from llmctl.config.base import semantic_values
from llmctl.config.model import PRESETS, ModelConfig
from llmctl.model.transformer import Transformer

COUNTS = [
    ("nano", 4096, 354_624),
    ("tiny", 4096, 1_967_424),
    ("small", 8192, 10_244_160),
    ("base", 50304, 123_587_328),
    ("350m", 49152, 361_821_120),  # as HuggingFaceTB/SmolLM-360M
    ("1b", 32000, 1_100_048_384),  # as TinyLlama-1.1B
    ("7b", 32000, 6_738_415_616),  # as Llama-2-7b
]


@pytest.mark.parametrize(("name", "vocab_size", "parameters"), COUNTS)
def test_parameter_counts(name: str, vocab_size: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Transformer(ModelConfig(name=name), vocab_size)
    assert model.parameters_count() == parameters


def test_every_preset_is_counted() -> None:
    assert [name for name, _, _ in COUNTS] == list(PRESETS)


def test_a_preset_fills_only_what_is_not_given() -> None:
    config = ModelConfig(name="base", layers=3, rope_base=5e5)
    assert (config.layers, config.rope_base) == (3, 5e5)
    assert (config.width, config.heads, config.ffn_width) == (768, 12, 2048)
    assert ModelConfig() == ModelConfig(name="tiny") == ModelConfig.model_validate("tiny")
    assert ModelConfig.model_validate(semantic_values(config)) == config


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "tinny"}, "did you mean tiny"),
        ({"name": "qqqqqq"}, "known: nano, tiny"),
        ({"heads": 5}, "not divisible by heads 5; heads=4 would fit"),
        ({"heads": 4, "kv_heads": 3}, "not divisible by kv_heads 3; kv_heads=4 always fits"),
        ({"width": 12, "heads": 4, "kv_heads": 4}, "= 3 is odd"),
        ({"name": "custom", "width": 64}, "give layers, heads"),
        ({"widht": 64}, "Extra inputs"),
        ({"norm_eps": 0}, "greater than 0"),
        ({"rope_base": 1.0}, "greater than 1"),
        ({"rope_base": float("nan")}, "finite number"),
    ],
)
def test_a_wrong_shape_is_told_how_to_mend_it(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModelConfig.model_validate(given)
