"""A real tokenizer and a random model on disk, made in a second: what serve and eval are tested on."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmctl.config.model import ModelConfig
from llmctl.config.tokens import TokenizerConfig
from llmctl.evals.local import pair_of
from llmctl.evals.questions import Question, item_of
from llmctl.evals.requests import Likelihood
from llmctl.inference.score import Pair
from llmctl.model import huggingface
from llmctl.model.transformer import Transformer
from llmctl.store.artifact import FileInput
from llmctl.tokens.tokenizer import Tokenizer
from tests.tokenizers import write_tokenizer

WORDS = (
    "the a of in returns list string number file path value key name sorted open close read write "
    "join split map item object error index count true false café naïve — ünï 漢字"
).split()


def text(seed: int, words: int = 400) -> str:
    """Pseudo-random prose over a small lexicon."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(words)) + "."


def tiny_tokenizer(directory: Path, vocab_size: int = 384) -> Path:
    """A tokenizer trained on generated text."""
    config = TokenizerConfig.model_validate({"vocab_size": vocab_size})
    return write_tokenizer(directory, map(text, range(40)), config)


def write_checkpoint(directory: Path, *, seed: int = 0, context: int = 256, **changes: int) -> Path:
    """A complete Hugging Face directory with random weights."""
    tokenizer = tiny_tokenizer(directory / "tokenizer")
    vocab_size = Tokenizer.open(tokenizer).vocab_size
    model = Transformer(ModelConfig.model_validate({"name": "nano", "context": context, **changes}), vocab_size)
    model.init_weights(seed)
    huggingface.save(model, directory / "checkpoint", tokenizer)
    return directory / "checkpoint"


def pairs_of(question: Question, tokenizer: Tokenizer, *, delimiter: str = " ", chat: bool = False) -> list[Pair]:
    """(context ids, continuation ids) of each choice of a question."""
    item = item_of(question, 0, delimiter=delimiter, chat=chat)
    return [pair_of(one, tokenizer) for one in item.requests if isinstance(one, Likelihood)]


def file_of(path: Path, rows: Iterable[Mapping[str, Any]]) -> FileInput:
    """Rows as a JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileInput.of(path, "prompts")
