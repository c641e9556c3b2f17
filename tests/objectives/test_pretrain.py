import math

import numpy as np
import pytest
import torch

from llmctl.config.errors import UsageError
from llmctl.config.train import PretrainConfig
from llmctl.model import huggingface
from llmctl.tokens.rows import Rows
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.heldout import measure

from .conftest import NANO, QUICK


def test_a_checkpoint_that_opens_and_learned(checkpoint, rows):
    facts, totals = checkpoint.manifest.semantic, checkpoint.manifest.totals
    tokenizer = Tokenizer.open(checkpoint.data)
    model = huggingface.load(checkpoint.data)
    assert facts["vocab_size"] == tokenizer.vocab_size == model.vocab_size == 300
    assert facts["parameters"] == model.parameters_count()
    assert (facts["architecture"], facts["seq_len"]) == ("LlamaForCausalLM", 32)
    assert facts["tokenizer"] == rows.manifest.semantic["tokenizer"]
    assert checkpoint.manifest.inputs["tokenizer"].digest == facts["tokenizer"]
    assert totals["steps"] == 30
    assert totals["loss"] < math.log(300) - 0.5


def test_the_held_out_figure_is_that_of_the_published_weights(checkpoint, rows):
    held = Rows.open(rows, "heldout")
    batch = held.batch(np.arange(held.count))
    found = measure(huggingface.load(checkpoint.data), [batch], Tokenizer.open(checkpoint.data).byte_lengths)
    assert found.loss == pytest.approx(checkpoint.manifest.totals["heldout_loss"], rel=1e-5)
    assert found.bits_per_byte == pytest.approx(checkpoint.manifest.totals["heldout_bits_per_byte"], rel=1e-5)


def test_the_same_run_gives_the_same_digest(stages, rows, checkpoint):
    config = PretrainConfig.model_validate({**QUICK, "model": NANO, "steps": 30, "checkpoint_every_steps": 7})
    assert stages("pretrain", config, input=rows).digest == checkpoint.digest


def test_another_seed_gives_other_weights(stages, rows, checkpoint):
    config = PretrainConfig.model_validate({**QUICK, "model": NANO, "steps": 30, "seed": 1})
    assert stages("pretrain", config, input=rows).digest != checkpoint.digest


def test_rows_longer_than_the_context_are_refused(stages, rows):
    config = PretrainConfig.model_validate({**QUICK, "model": {**NANO, "context": 16}, "steps": 1})
    with pytest.raises(UsageError, match="rows of 32 tokens are longer than the model's context of 16"):
        stages("pretrain", config, input=rows)


@pytest.mark.slow  # compiles with g++
def test_compiled_training_follows_the_eager_one(stages, rows, checkpoint):
    config = PretrainConfig.model_validate({**QUICK, "model": NANO, "steps": 4, "compile": True, "seed": 2})
    eager = PretrainConfig.model_validate({**QUICK, "model": NANO, "steps": 4, "seed": 2})
    torch._dynamo.reset()
    compiled_loss = stages("pretrain", config, input=rows).manifest.totals["loss"]
    assert compiled_loss == pytest.approx(stages("pretrain", eager, input=rows).manifest.totals["loss"], rel=1e-4)


def test_a_run_by_the_dial_holds_it_against_the_rows(stages, rows):
    dial = {"depth": 1, "seq_len": 32, "vocab_size": 300}
    fields = {**QUICK, "steps": 2, "batch_rows": 4}
    made = stages("pretrain", PretrainConfig.model_validate({**fields, "dial": dial}), input=rows)
    assert made.manifest.semantic["parameters"] == PretrainConfig(dial=dial).resolved()["dial"]["parameters"]
    with pytest.raises(UsageError, match="rows of 1024 tokens, and these have 32") as caught:
        stages("pretrain", PretrainConfig.model_validate({**fields, "dial": {"depth": 1}}), input=rows)
    assert caught.value.hint == "add dial.seq_len=32"


def test_experts_and_further_tokens_go_through_the_stages(stages, rows):
    beside = {
        "mtp": {"depth": 1},
        "experts": {
            "count": 4,
            "top": 2,
            "ffn_width": 16,
            "router": "sigmoid",
            "balance": "bias",
            "balance_loss": 0.01,
        },
    }
    fields = {**QUICK, "model": {**NANO, **beside}, "steps": 12}
    made = stages("pretrain", PretrainConfig.model_validate(fields), input=rows)
    model = huggingface.load(made.data)
    assert model.config.experts.count == 4
    biases = [value for name, value in model.state_dict().items() if name.endswith("balance_bias")]
    assert biases
    assert all(value.abs().max() > 0 for value in biases)
    held = Rows.open(rows, "heldout")
    found = measure(model, [held.batch(np.arange(held.count))], Tokenizer.open(made.data).byte_lengths)
    assert found.loss == pytest.approx(made.manifest.totals["heldout_loss"], rel=1e-5)
    assert made.manifest.totals["attention"] == "native"
