"""Real rows, a real checkpoint and chats, made once by the stages themselves from generated text."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmctl.config.tokens import PackConfig, TokenizeConfig
from llmctl.config.train import PretrainConfig
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import FileInput
from llmctl.store.store import Store

NANO = {"name": "nano", "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_width": 64, "context": 64}
QUICK = {"batch_rows": 8, "precision": "fp32", "threads": 1, "device": "cpu", "eval_every_steps": 10}
ALONE = {name: value for name, value in QUICK.items() if name not in ("batch_rows", "eval_every_steps")}


torch.set_num_threads(1)  # the models are tiny, and the machine is shared


def sums(count):
    """Little sums in words: text that a nano model can begin to learn."""
    rng = random.Random(5)
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    texts = []
    for _ in range(count):
        lines = []
        for _ in range(rng.randint(2, 12)):
            a, b = rng.randrange(5), rng.randrange(5)
            lines.append(f"{numbers[a]} and {numbers[b]} make {numbers[a + b]}.")
        texts.append("\n".join(lines))
    return texts


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """Runs a stage in a store of its own: `stages(command, config, **inputs) -> Artifact`."""
    store = Store.open(tmp_path_factory.mktemp("store"), create=True)

    def run(command, config, **inputs):
        return execute(Call(stage_named(command), config, inputs), store, Silent()).artifact

    run.store = store
    return run


@pytest.fixture(scope="session")
def rows(stages, tmp_path_factory):
    texts = sums(150)
    path = tmp_path_factory.mktemp("documents") / "sums.parquet"
    columns = {"id": [f"sums/{n}" for n in range(len(texts))], "text": texts, "source": ["sums"] * len(texts)}
    pq.write_table(pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()}), path)
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 300}})
    tokens = stages("tokenize", config, input=FileInput.of(path, "documents"))
    return stages("pack", PackConfig(seq_len=32, heldout_fraction=0.1), input=tokens)


@pytest.fixture(scope="session")
def checkpoint(stages, rows):
    return stages("pretrain", PretrainConfig.model_validate({**QUICK, "model": NANO, "steps": 30}), input=rows)


@pytest.fixture(scope="session")
def write_chats(tmp_path_factory):
    """Chats as a JSON Lines file: `write_chats([{"messages": [...]}, ...]) -> FileInput`."""
    return writer_of("chats", tmp_path_factory)


@pytest.fixture(scope="session")
def write_preferences(tmp_path_factory):
    """Preferences as a JSON Lines file."""
    return writer_of("preferences", tmp_path_factory)


def writer_of(kind, tmp_path_factory):
    """Writes rows of that kind as a JSON Lines file."""

    def write(rows):
        path = tmp_path_factory.mktemp(kind) / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return FileInput.of(path, kind)

    return write


def chat(number, question, answer):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"chat/{number}", "messages": messages}


@pytest.fixture(scope="session")
def chats(write_chats):
    numbers = ["zero", "one", "two", "three", "four"]
    pairs = [(a, b) for a in numbers for b in numbers]
    return write_chats([chat(n, f"{a} {b}", f"{b} {a}.") for n, (a, b) in enumerate(pairs)])


@pytest.fixture(scope="session")
def digits(stages, tmp_path_factory):
    """Rows of a digit below five and any digit below five."""
    rng = random.Random(3)
    texts = [f"{rng.randrange(5)}:{rng.randrange(5)}" for _ in range(3000)]
    path = tmp_path_factory.mktemp("digits") / "digits.parquet"
    columns = {"id": [f"digits/{n}" for n in range(len(texts))], "text": texts, "source": ["digits"] * len(texts)}
    pq.write_table(pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()}), path)
    config = TokenizeConfig.model_validate({"train": {"vocab_size": 268}})
    tokens = stages("tokenize", config, input=FileInput.of(path, "documents"))
    return stages("pack", PackConfig(seq_len=32), input=tokens)


def guessing(stages, digits, **shape):
    """A model that answers a digit below five with any digit below five."""
    given = {**QUICK, "model": {**NANO, **shape}, "steps": 60, "batch_rows": 16, "optimizer": {"lr": 1e-2}}
    return stages("pretrain", PretrainConfig.model_validate(given), input=digits)


@pytest.fixture(scope="session")
def guesser(stages, digits):
    return guessing(stages, digits)


@pytest.fixture(scope="session")
def write_prompts(tmp_path_factory):
    return writer_of("prompts", tmp_path_factory)


@pytest.fixture(scope="session")
def copying(write_prompts):
    return write_prompts([{"id": f"copy/{n}", "prompt": f"{n}:", "answer": str(n)} for n in range(5)])


@pytest.fixture(scope="session")
def words():
    """A tokenizer that TRL's trainers can be made with; they read nothing of it that is compared."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {f"w{n}": n for n in range(48)} | {"[UNK]": 48, "[END]": 49}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[END]", pad_token="[UNK]")
