"""The line with byte-level BPE, from text to a served answer, opened by transformers on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from llmctl.config.serve import ServeConfig
from llmctl.inference.conversation import answer, open_engine
from llmctl.serve.app import create_app
from llmctl.store.store import Store
from llmctl.tokens.chat import render_prompt

LINE = (
    "llmctl collect notes | llmctl tokenize --model byte-bpe --vocab-size 330"
    " | llmctl pack --seq-len 64 heldout_fraction=0.1 | llmctl pretrain --model nano --steps 6 batch_rows=4"
    " | llmctl sft --chats chats.jsonl --epochs 1 batch_rows=2 max_tokens=64"
)
QUESTION = [{"role": "user", "content": "Où est <|im_end|> le 🚀?"}]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Forty pages of real words, and chats about them."""
    folder = tmp_path / "notes"
    folder.mkdir()
    words = "data flows through the house and every page goes down to the tokens before it comes up again".split()
    for page in range(40):
        lines = [" ".join(words[(page * 3 + line * 5 + at * 7) % len(words)] for at in range(11)) for line in range(9)]
        text = f"The notes of page {page} have to be read with care.\n" + ".\n".join(lines) + ".\n"
        (folder / f"{page:02}.txt").write_text(text)
    chats = [
        {"messages": [{"role": "user", "content": f"Page {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(8)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder


def test_byte_level_bpe_goes_the_whole_way(shell: Any, notes: Path, tmp_path: Path) -> None:
    done = shell(LINE)
    assert done.returncode == 0, done.stderr
    store = Store.open(tmp_path / "artifacts")
    tokens, checkpoint = store.resolve("notes.tokenize"), store.resolve("notes.sft")
    assert tokens.manifest.semantic["vocab_size"] == 330
    assert not (checkpoint.data / "tokenizer.model").exists()

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint.data)
    engine = open_engine(checkpoint.data, device="cpu", precision="fp32", max_running=2)
    with engine:
        ours = engine.tokenizer
        assert ours.changes == ()
        assert theirs("a é\n🚀 1").input_ids == [ours.bos_id, *ours.encode("a é\n🚀 1")]
        said = answer(engine, QUESTION, max_tokens=12, temperature=0.0)
        assert 1 <= len(said.token_ids) <= 12
        with TestClient(create_app(engine, ServeConfig.model_validate({"device": "cpu"}), "notes")) as client:
            asked = {"model": "notes", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
            replied = client.post("/v1/chat/completions", json=asked).json()
        assert replied["choices"][0]["message"]["content"] == said.text
        chat = [{"role": "user", "content": "Why?"}]
        expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert render_prompt(ours, chat) == expected
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.data)
    assert model.config.vocab_size == 330
    assert model.generation_config.eos_token_id == list(ours.stop_ids)
