"""llama.cpp opens what we write, and computes the same. Slow, since llama-cpp-python has to be compiled first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.config.model import ModelConfig
from llmctl.model.attention import packed
from llmctl.model.gguf import write
from llmctl.model.transformer import Transformer
from llmctl.model.weights import HeldWeights
from tests.model.test_gguf import SHAPES

pytestmark = pytest.mark.slow

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
ALPHABET = [chr(byte) for byte in PRINTABLE] + [chr(256 + at) for at in range(len(OTHERS))]
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<|endoftext|>", *ALPHABET, "th"],
    "tokenizer.ggml.token_type": [3] + [1] * 257,
    "tokenizer.ggml.merges": ["t h"],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
}
VOCAB = 258
TOKENS = torch.randint(1, VOCAB, (1, 48), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("architecture", "changes"), SHAPES)
def test_llama_cpp_gives_our_logits(tmp_path: Path, architecture: str, changes: dict[str, Any]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
    model = Transformer(ModelConfig.model_validate({"name": "nano", "ffn_width": 96, **changes}), VOCAB)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        ours = model.logits(model(TOKENS, torch.arange(48)[None], packed(torch.zeros(1, 48))))[0]
    path = tmp_path / "x.gguf"
    assert write(path, model.config, VOCAB, HeldWeights(model.state_dict()), TOKENIZER, wanted="F32") == architecture
    theirs = llama_cpp.Llama(str(path), n_ctx=64, verbose=False, logits_all=True, n_threads=2)
    theirs.eval(TOKENS[0].tolist())
    scores = torch.tensor(np.array(theirs.scores[:48]))
    assert ours.std() > 0.3
    assert (scores - ours).abs().max().item() < 0.02 * ours.std().item() + 0.01  # its cache of keys is float16
