"""The trained tokenizer, as every later stage uses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from llmctl.config.errors import InputError

MODEL_FILE = "tokenizer.model"
TEMPLATE_FILE = "chat_template.jinja"
UNK, BOS, EOS, PAD, IM_START, IM_END = "<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"
SPECIALS = (UNK, BOS, EOS, PAD, IM_START, IM_END)  # their ids are their places here


class Tokenizer:
    """A SentencePiece model with its special tokens and its chat template. Safe to share between threads.

    Attributes:
        special: special strings to ids.
        byte_lengths: int32 [vocab_size], bytes of text that each id stands for; 0 for special ids.
        chat_template: Jinja source (see `llmctl.tokens.chat`).
    """

    special: dict[str, int]
    byte_lengths: NDArray[np.int32]
    chat_template: str

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, chat_template: str) -> None:
        self._processor = processor
        self.chat_template = chat_template
        self.special = {text: processor.piece_to_id(text) for text in SPECIALS}
        self._pieces = [self._bytes_of(index) for index in range(processor.get_piece_size())]
        self.byte_lengths = np.array([len(piece) for piece in self._pieces], dtype=np.int32)

    @classmethod
    def open(cls, directory: Path) -> Tokenizer:
        """Read `tokenizer.model` and `chat_template.jinja` of a tokenizer or checkpoint directory."""
        model, template = directory / MODEL_FILE, directory / TEMPLATE_FILE
        try:
            serialized, source = model.read_bytes(), template.read_text(encoding="utf-8")
            processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        except (OSError, UnicodeDecodeError, RuntimeError) as error:
            raise InputError(
                f"cannot open the tokenizer in {directory}: {error}",
                hint="it must hold tokenizer.model and chat_template.jinja",
            ) from None
        return cls(processor, source)

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self._pieces)

    @property
    def bos_id(self) -> int:
        """Id of `<s>`, which begins a document."""
        return self.special[BOS]

    @property
    def eos_id(self) -> int:
        """Id of `</s>`, which ends a document."""
        return self.special[EOS]

    @property
    def pad_id(self) -> int:
        """Id of `<pad>`, which fills rows."""
        return self.special[PAD]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn."""
        return (self.special[EOS], self.special[IM_END])

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special id is added, and special strings in it are plain text."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[np.int32]]:
        """`encode` of each text, as int32 arrays."""
        return [np.array(ids, dtype=np.int32) for ids in self._processor.encode(list(texts), num_threads=threads)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special ids are skipped, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._pieces[index] for index in ids).decode("utf-8", errors="replace")

    def piece_bytes(self, index: int) -> bytes:
        """The bytes that an id stands for; `b""` for special ids."""
        return self._pieces[index]

    def _bytes_of(self, index: int) -> bytes:
        """The bytes of one id, from SentencePiece's own form of it."""
        processor = self._processor
        if processor.is_control(index) or processor.is_unknown(index):
            return b""
        piece: str = processor.id_to_piece(index)
        if processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])  # <0xE2>
        return piece.replace("\u2581", " ").encode()
