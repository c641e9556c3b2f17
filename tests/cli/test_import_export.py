"""`llmctl import` and `llmctl export` as one types them."""

import json
from pathlib import Path
from typing import Any

import torch

from llmctl.config.model import ModelConfig
from llmctl.model.huggingface import load, save
from llmctl.model.transformer import Transformer


def test_a_model_goes_through_the_pipe_and_out_again(shell: Any, llmctl: Any, tmp_path: Path) -> None:
    model = Transformer(ModelConfig(name="nano"), 101)
    model.init_weights(0)
    save(model, tmp_path / "theirs", None)
    done = shell("llmctl import theirs | llmctl export - ours --dtype bf16")
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM in bf16" in done.stdout
    assert torch.equal(load(tmp_path / "ours").embed_tokens.weight, model.embed_tokens.weight.bfloat16())

    again = llmctl("export", "theirs", "ours")
    assert (again.returncode, again.stdout) == (2, "")
    assert "ours is there already" in again.stderr
    nothing = llmctl("export", "theirs", "ours.gguf")
    assert nothing.returncode == 2
    assert "holds no tokenizer" in nothing.stderr
    told = llmctl("export", "theirs", "plain", "--json")
    facts = json.loads(told.stdout)
    assert (facts["ref"], facts["format"], facts["dtype"]) == ("theirs@v1", "hf", "fp32")


def test_what_cannot_be_imported_exits_with_its_code(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    done = shell("llmctl import theirs | llmctl export - ours")
    assert done.returncode == 4  # the stage before it did not finish
    assert "MambaForCausalLM" in done.stderr
    assert "known: LlamaForCausalLM" in done.stderr
    assert not (tmp_path / "ours").exists()
