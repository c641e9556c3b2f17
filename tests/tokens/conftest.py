"""Generated text and small trained tokenizers, shared by the tests of this layer."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.config.tokens import TokenizerConfig
from llmctl.store.artifact import FileInput
from llmctl.tokens.tokenizer import Tokenizer
from tests.conftest import DATA
from tests.tokenizers import write_tokenizer

WriteDocuments = Callable[..., FileInput]


def generated_documents(count: int = 120, seed: int = 7) -> list[str]:
    """Prose of invented words, with numbers, runs of signs and accents, and real Python code among it."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfklmnprst" for b in ("a", "e", "i", "o", "u", "ar", "en")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(600)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    documents = []
    for _ in range(count):
        lines = [" ".join(rng.choices(words, weights, k=rng.randint(3, 12))) for _ in range(rng.randint(1, 30))]
        lines.append(rng.choice(["=" * 20, "-----", "a\tb", "été — naïve", "x = 3.14159", '{"k": [1, 2]}']))
        documents.append("\n".join(lines) + rng.choice(["", "\n", "\n\n\n"]))
    return [*documents, inspect.getsource(random), inspect.getsource(inspect)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return generated_documents()


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Callable[..., Path]:
    """Train once per configuration; the directory of its files."""
    made: dict[str, Path] = {}

    def make(**fields: object) -> Path:
        config = TokenizerConfig.model_validate({"vocab_size": 1000, **fields})
        key = config.model_dump_json()
        if key not in made:
            made[key] = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), documents, config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def bpe(make_tokenizer: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.open(make_tokenizer(model="bpe"))


@pytest.fixture(scope="session")
def unigram(make_tokenizer: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.open(make_tokenizer(model="unigram"))


@pytest.fixture
def write_documents(tmp_path: Path) -> WriteDocuments:
    """Documents as a plain Parquet file."""

    def write(texts: list[str], name: str = "docs") -> FileInput:
        path = tmp_path / f"{name}.parquet"
        columns = {
            "id": [f"{name}/{number}" for number in range(len(texts))],
            "text": texts,
            "source": [f"source {number % 3}" for number in range(len(texts))],
        }
        pq.write_table(pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()}), path)
        return FileInput.of(path, "documents")

    return write


@pytest.fixture
def shakespeare() -> str:
    path = DATA / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip(f"no {path.name} of Tiny Shakespeare in $LLMCTL_TEST_DATA")
    return path.read_text(encoding="utf-8")
