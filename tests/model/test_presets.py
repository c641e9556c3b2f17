"""Presets: the counts that their table claims, and what a wrong shape is told."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from llmctl.config.base import semantic_values
from llmctl.config.dial import DialConfig, dialled
from llmctl.config.model import PRESETS, ModelConfig
from llmctl.model.families import family_for
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
"""Exact counts of presets of our own."""

PUBLISHED = {
    # vocabulary, parameters in millions as published: of the released weights, or of the paper where none are
    "gpt2": (50257, 124.44),
    "gpt2-medium": (50257, 354.82),
    "gpt2-large": (50257, 774.03),
    "gpt2-xl": (50257, 1557.61),
    "llama-30b": (32000, 32_500),
    "llama2-7b": (32000, 6738.4),
    "llama2-13b": (32000, 13_015.9),
    "llama2-70b": (32000, 68_976.6),
    "llama3-8b": (128_256, 8030.3),
    "llama3-70b": (128_256, 70_553.7),
    "llama3.1-8b": (128_256, 8030.3),
    "llama3.1-70b": (128_256, 70_553.7),
    "llama3.1-405b": (128_256, 405_853.4),
    "llama3.2-1b": (128_256, 1235.8),
    "llama3.2-3b": (128_256, 3212.7),
    "mistral-7b": (32000, 7241.7),
    "qwen2-0.5b": (151_936, 494.03),
    "qwen2-1.5b": (151_936, 1543.7),
    "qwen2-7b": (152_064, 7615.6),
    "qwen2-72b": (152_064, 72_706.2),
    "qwen3-0.6b": (151_936, 596.05),
    "qwen3-1.7b": (151_936, 1720.6),
    "qwen3-4b": (151_936, 4022.5),
    "qwen3-8b": (151_936, 8190.7),
    "qwen3-14b": (151_936, 14_768.3),
    "qwen3-32b": (151_936, 32_762.1),
    "qwen3-30b-a3b": (151_936, 30_532.1),
    "mixtral-8x7b": (32000, 46_702.8),
    "deepseek-v3": (129_280, 671_026.4),
    "smollm2-135m": (49152, 134.52),
    "smollm2-360m": (49152, 361.82),
    "smollm2-1.7b": (49152, 1711.4),
}
LABELLED = {
    # GPT-3's table names its models by rounded sizes only, and the weights are not released
    "gpt3-125m": 125,
    "gpt3-350m": 350,
    "gpt3-760m": 760,
    "gpt3-1.3b": 1300,
    "gpt3-2.7b": 2700,
    "gpt3-6.7b": 6700,
    "gpt3-13b": 13_000,
    "gpt3-175b": 175_000,
}


def parameters_of(name: str, vocab_size: int) -> int:
    with torch.device("meta"):
        return Transformer(ModelConfig(name=name), vocab_size).parameters_count()


@pytest.mark.parametrize(("name", "vocab_size", "parameters"), COUNTS)
def test_parameter_counts(name: str, vocab_size: int, parameters: int) -> None:
    assert parameters_of(name, vocab_size) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_within_a_hundredth(name: str) -> None:
    vocab_size, millions = PUBLISHED[name]
    assert parameters_of(name, vocab_size) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", LABELLED)
def test_gpt3_counts_are_what_its_rounded_labels_say(name: str) -> None:
    assert parameters_of(name, 50257) / 1e6 == pytest.approx(LABELLED[name], rel=0.02)


def test_every_preset_is_counted() -> None:
    assert {*[name for name, _, _ in COUNTS], *PUBLISHED, *LABELLED} == set(PRESETS)


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
        ({"attention": {"pattern": ["global", "local"]}}, "give window too"),
        ({"norm": {"bias": True}}, "RMSNorm has no bias: leave bias out, or set name=layer"),
        ({"positions": "alibi", "rope_scaling": {"name": "ntk", "factor": 2}}, "no effect on alibi positions"),
        ({"positions": "sinusoidal", "width": 63, "heads": 1, "kv_heads": 1}, "width 63 is odd"),
        ({"rope_scaling": {"name": "yarrn", "factor": 2}}, "'linear', 'ntk', 'yarn', 'llama3'"),
        ({"head_width": 7}, "give an even head_width"),
        ({"widht": 64}, "Extra inputs"),
        ({"norm_eps": 0}, "greater than 0"),
        ({"rope_base": 1.0}, "greater than 1"),
        ({"rope_base": float("nan")}, "finite number"),
    ],
)
def test_a_wrong_shape_is_told_how_to_mend_it(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModelConfig.model_validate(given)


def test_a_block_is_laid_over_that_of_the_preset() -> None:
    config = ModelConfig.model_validate({"name": "gpt2", "attention": {"window": 128}, "norm": {"name": "rms"}})
    assert (config.attention.window, config.attention.qkv_bias, config.attention.output_bias) == (128, True, True)
    assert (config.norm.name, config.norm.bias) == ("rms", False)  # another name is another block
    assert (config.head_width, ModelConfig(name="qwen3-0.6b").head_width) == (64, 128)
    stretched = ModelConfig.model_validate({"name": "llama3.1-8b", "rope_scaling": {"factor": 16}})
    assert (
        stretched.rope_scaling
        == ModelConfig.model_validate(
            {
                "name": "llama3-8b",
                "context": 131_072,
                "rope_scaling": {"name": "llama3", "factor": 16, "original_context": 8192},
            }
        ).rope_scaling
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_its_own_json(name: str) -> None:
    config = ModelConfig(name=name)
    assert ModelConfig.model_validate(semantic_values(config)) == config


def test_the_table_in_the_documentation_is_right() -> None:
    document = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in document.splitlines()
        if line.endswith(("LMHeadModel |", "ForCausalLM |"))
    ]
    assert [row[0] for row in rows] == list(PRESETS)
    for name, layers, width, heads, context, vocab_size, parameters, layout in rows:
        config = ModelConfig(name=name)
        assert (layers, width) == (str(config.layers), str(config.width))
        assert heads == f"{config.heads}/{config.kv_heads}"
        assert int(context.replace(" ", "")) == config.context
        assert int(parameters.replace(" ", "")) == parameters_of(name, int(vocab_size.replace(" ", "")))
        assert layout == family_for(config)[0].architecture


def test_what_the_documentation_says_of_the_dial_is_so() -> None:
    document = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    lines = [line for line in document.splitlines() if line.startswith("| `--")]
    assert len(lines) == 5
    for line in lines:
        setting, layers, width, _, _, rows, rate, steps = (cell.strip(" `") for cell in line.strip("|").split("|"))
        flag, value = setting.removeprefix("--").split()
        follows = dialled(DialConfig.model_validate({flag: value}))
        assert (int(layers), int(width), int(rows)) == (follows.layers, follows.width, follows.batch_rows)
        assert float(rate) == follows.lr
        assert int(steps.replace(" ", "")) == follows.steps
