"""A real model learns from real data through an adapter: SmolLM2-135M-Instruct on questions of GSM8K."""

import json

import pytest
import torch

from llmctl.config.inout import ImportConfig
from llmctl.config.merge import MergeConfig
from llmctl.config.train import SftConfig
from llmctl.objectives.chats import PackedChats, read_sides
from llmctl.objectives.start import fill_id, open_model, open_tokenizer
from llmctl.store.artifact import FileInput
from llmctl.train.heldout import HeldOutRows, measure
from tests.gsm8k import gsm8k
from tests.smollm2 import smollm2_gguf

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a minute or two: 135 million weights on a CPU

TOKENS, FRACTION = 192, 0.15


@pytest.fixture(scope="module")
def smol(stages):
    return stages("import", ImportConfig(sources=(str(smollm2_gguf()),)))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("gsm8k") / "chats.jsonl"
    rows = [
        {"id": f"gsm8k/{number}", "prompt": row["question"], "completion": row["answer"]}
        for number, row in enumerate(gsm8k(60))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileInput.of(path, "chats")


def heldout_loss(checkpoint, chats):
    """The mean loss on the held-out answers."""
    tokenizer = open_tokenizer(checkpoint)
    sides = read_sides(chats, tokenizer, TOKENS, FRACTION, "drop")
    rows = PackedChats(sides.held, TOKENS, fill_id(checkpoint, tokenizer))
    lengths = HeldOutRows(rows, tokenizer.byte_lengths).byte_lengths
    model = open_model(checkpoint, tokenizer).eval()
    return measure(model, [rows.batch(torch.tensor([at]).numpy()) for at in range(rows.count)], lengths).loss


def test_an_adapter_lowers_the_held_out_loss(stages, smol, questions):
    before = heldout_loss(smol, questions)
    config = SftConfig.model_validate(
        {
            "lora": {"rank": 8, "alpha": 16}, "optimizer": {"lr": 2e-3}, "steps": 10, "batch_rows": 2,
            "max_tokens": TOKENS, "heldout_fraction": FRACTION, "overlong": "drop", "device": "cpu", "threads": 1,
            "checkpoint_every_steps": 0, "heldout_rows": 0,
        }
    )  # fmt: skip
    adapter = stages("sft", config, input=smol, chats=questions)
    after = adapter.manifest.totals["heldout_loss"]
    assert after < before - 0.05
    merged = stages("merge", MergeConfig(), **{"sources.base": smol, "sources.adapter": adapter})
    assert heldout_loss(merged, questions) == pytest.approx(after, rel=1e-3)
