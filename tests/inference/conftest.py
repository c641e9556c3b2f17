"""A real tokenizer, and small random models whose choices are far from ties."""

import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmctl.config.model import ModelConfig
from llmctl.config.tokens import TokenizerConfig
from llmctl.inference.engine import Engine
from llmctl.model.huggingface import save
from llmctl.model.transformer import Transformer
from llmctl.tokens.tokenizer import Tokenizer
from tests.tokenizers import write_tokenizer

VOCAB = 512


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [pydoc_data.topics.topics[name] for name in ("assert", "class", "import", "numbers", "strings", "try")]
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts, TokenizerConfig(vocab_size=VOCAB))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return Tokenizer.open(tokenizer_directory)


def lively(seed: int = 0, **changes: object) -> Transformer:
    """A random model with weights large enough that its answers vary and no two logits are nearly equal."""
    model = Transformer(ModelConfig.model_validate({"name": "nano", "context": 96, **changes}), VOCAB)
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    save(lively(), directory, tokenizer_directory)
    return directory


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine.open(checkpoint, max_running=4) as engine:
        yield engine
