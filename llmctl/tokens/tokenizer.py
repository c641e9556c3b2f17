"""A tokenizer, as every later stage uses it, whatever its kind."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.tokens.engines import (
    BOS,
    EOS,
    IM_END,
    IM_START,
    PAD,
    SPECIALS,
    UNK,
    Engine,
    FastEngine,
    SentencePieceEngine,
)

__all__ = ["BOS", "EOS", "IM_END", "IM_START", "PAD", "SPECIALS", "TOKENIZER_FILES", "UNK", "Tokenizer"]

MODEL_FILE = "tokenizer.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIALS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (MODEL_FILE, FAST_FILE, CONFIG_FILE, SPECIALS_FILE, TEMPLATE_FILE)
OPENING = "the directory must hold tokenizer.model or tokenizer.json, as llmctl tokenizer and llmctl import write them"
SURROGATE = re.compile("[\ud800-\udfff]")

# Special tokens that end a turn or a document, by their names in published tokenizers
# (github.com/ggml-org/llama.cpp, src/llama-vocab.cpp: what it takes for the end of generation).
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")


class Tokenizer:
    """What turns text into ids, with its special tokens and its chat template. Threads may share one.

    Where `changes` is empty, `decode(encode(text)) == text` for every string of Unicode scalar values.

    Attributes:
        special: special strings to ids.
        byte_lengths: int32 [vocab_size], bytes of text that each id stands for; 0 for special ids.
        chat_template: Jinja source (see `llmctl.tokens.chat`); empty where the tokenizer has none.
        changes: in which ways text may come back other than it went in.
        unk_id: what text outside the vocabulary becomes; None where every byte has an id.
        bos_id: id that begins a document; the id of EOS where the tokenizer has no BOS.
        eos_id: id that ends a document.
        pad_id: id that fills rows; the id of EOS where the tokenizer has none.
    """

    special: dict[str, int]
    byte_lengths: NDArray[np.int32]
    chat_template: str
    changes: tuple[str, ...]

    def __init__(self, engine: Engine, named: Mapping[str, str], chat_template: str) -> None:
        self._engine = engine
        self.chat_template = chat_template
        self.special = dict(engine.special)
        self.changes = engine.changes
        self.unk_id = engine.unk_id
        self._pieces = engine.pieces
        self.byte_lengths = np.array([len(piece) for piece in self._pieces], dtype=np.int32)
        self.bos_token, self.eos_token = named.get("bos_token", ""), named["eos_token"]
        self.eos_id = self.special[self.eos_token]
        self.bos_id = self.special.get(self.bos_token, self.eos_id)
        self.pad_id = self.special.get(named.get("pad_token", ""), self.eos_id)

    @classmethod
    def open(cls, directory: Path) -> Tokenizer:
        """Read the files of a tokenizer or checkpoint directory.

        Raises:
            InputError: one is missing or damaged, or none says which token ends a document.
        """
        try:
            engine = _engine(directory)
            config = _config(directory / CONFIG_FILE)
            template = _template(directory / TEMPLATE_FILE, config)
        except (OSError, ValueError, RuntimeError, IndexError, KeyError, TypeError) as error:
            raise InputError(f"cannot open the tokenizer in {directory}: {error}", hint=OPENING) from None
        named = {key: name for key in ("bos_token", "eos_token", "pad_token") if (name := name_of(config.get(key)))}
        if not config and SPECIALS[0] in engine.special:
            named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
        unknown = [name for name in named.values() if name not in engine.special]
        if unknown or "eos_token" not in named:
            fault = f"has no special token {unknown[0]}" if unknown else "does not say which token ends a document"
            raise InputError(
                f"the tokenizer in {directory} {fault}",
                hint=f"{CONFIG_FILE} must name an eos_token of the vocabulary; llmctl import writes it",
            )
        return cls(engine, named, template)

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self._pieces)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn: EOS, and `<|im_end|>` or what else has that name elsewhere."""
        ends = {self.special[text] for text in ENDS if text in self.special}
        return (self.eos_id, *sorted(ends - {self.eos_id}))

    @property
    def text_start(self) -> tuple[int, ...]:
        """What stands before a text that is no part of a chat: BOS, where the tokenizer's files say so to all tools."""
        return (self.bos_id,) if self.bos_id in self._engine.added[:1] else ()

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special id is added, and special strings in it are plain text.

        Raises:
            InputError: `text` holds half of a surrogate pair, which no UTF-8 text can.
        """
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[np.int32]]:
        """`encode` of each text, as int32 arrays, on `threads` threads."""
        try:
            return self._engine.encode_batch(texts, threads)
        except (RuntimeError, TypeError, ValueError):
            _refuse_surrogates(texts)
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special ids are skipped, bytes that are not UTF-8 become U+FFFD."""
        content = b"".join(self._pieces[index] for index in ids)
        if self._engine.adds_space:
            content = content.removeprefix(b" ")
        return content.decode("utf-8", errors="replace")

    def piece_bytes(self, index: int) -> bytes:
        """The bytes that an id stands for; `b""` for special ids."""
        return self._pieces[index]

    def spelled(self, ids: Collection[int]) -> Callable[[int], bytes]:
        """`piece_bytes`, but special ids that are among `ids` stand for their names."""
        names = {index: text.encode() for text, index in self.special.items() if index in ids}
        return (lambda index: names.get(index) or self.piece_bytes(index)) if names else self.piece_bytes

    def padded(self, size: int) -> Tokenizer:
        """The same tokenizer with ids below `size` that stand for nothing: embeddings are often rounded up."""
        more = size - self.vocab_size
        if more <= 0:
            return self
        padded = copy.copy(self)
        padded._pieces = [*self._pieces, *[b""] * more]  # noqa: SLF001 (of a copy of this)
        padded.byte_lengths = np.pad(self.byte_lengths, (0, more))
        return padded

    def with_template(self, chat_template: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        pad = next((text for text, index in self.special.items() if index == self.pad_id), "")
        return Tokenizer(self._engine, {**named, "pad_token": pad}, chat_template)


def name_of(token: Any) -> str:
    """The text of a token in `tokenizer_config.json`: a string, or an object with it as `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _engine(directory: Path) -> Engine:
    path = directory / MODEL_FILE
    if path.is_file() or not (directory / FAST_FILE).is_file():
        return SentencePieceEngine(path.read_bytes())
    return FastEngine((directory / FAST_FILE).read_text(encoding="utf-8"))


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} holds no object")  # noqa: TRY004 - reported as the file's fault
    return config


def _template(path: Path, config: dict[str, Any]) -> str:
    """The chat template: a file of its own, or inside the configuration, as older versions of transformers wrote it."""
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        if match := SURROGATE.search(text):
            raise InputError(
                f"text cannot be encoded: character {match.start()} is U+{ord(match[0]):04X}, half of a surrogate pair",
                hint="no UTF-8 text can hold it; repair the text where it comes from",
            ) from None
