"""The trained tokenizer, as every later stage uses it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from llmctl.config.errors import InputError
from llmctl.tokens.segments import META_SPACE, segments

MODEL_FILE = "tokenizer.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIALS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (MODEL_FILE, FAST_FILE, CONFIG_FILE, SPECIALS_FILE, TEMPLATE_FILE)
UNK, BOS, EOS, PAD, IM_START, IM_END = "<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"
NEVER_A_PIECE = "\u2585"  # SentencePiece reserves it while it trains
SURROGATE = re.compile("[\ud800-\udfff]")
SPECIALS = (UNK, BOS, EOS, PAD, IM_START, IM_END)  # their ids are their places here


class Tokenizer:
    """A SentencePiece model with its special tokens and its chat template. Threads may share one.

    With byte fallback, `decode(encode(text)) == text` for every string of Unicode scalar values: U+2581,
    which SentencePiece cannot tell from a space, is spelled in bytes here.

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
        hint = f"the directory must hold {MODEL_FILE} and {TEMPLATE_FILE}, as llmctl tokenizer writes them"
        try:
            serialized = (directory / MODEL_FILE).read_bytes()
            template = (directory / TEMPLATE_FILE).read_text(encoding="utf-8")
            processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        except (OSError, UnicodeDecodeError, RuntimeError) as error:
            raise InputError(f"cannot open the tokenizer in {directory}: {error}", hint=hint) from None
        missing = [text for index, text in enumerate(SPECIALS) if processor.piece_to_id(text) != index]
        if missing:
            raise InputError(f"{directory / MODEL_FILE} lacks the special tokens {' '.join(missing)}", hint=hint)
        return cls(processor, template)

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
        """Ids that end an assistant's turn: `</s>` and `<|im_end|>`."""
        return (self.special[EOS], self.special[IM_END])

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special id is added, and special strings in it are plain text.

        Raises:
            InputError: `text` holds half of a surrogate pair, which no UTF-8 text can.
        """
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[np.int32]]:
        """`encode` of each text, as int32 arrays, on `threads` threads."""
        if not self._meta_space_ids.size:  # no bytes to spell it in: any character that is never a piece does
            texts = [text.replace(META_SPACE, NEVER_A_PIECE) for text in texts]
        parts = [list(segments(text)) for text in texts]
        flat = [part for some in parts for part in some]
        try:
            if threads == 1:  # the batch call starts threads of its own, which costs more than a short text
                encoded = [self._processor.encode(part, return_type="numpy") for part in flat]
            else:
                encoded = self._processor.encode(flat, num_threads=threads, return_type="numpy")
        except RuntimeError:
            _refuse_surrogates(texts)
            raise
        encoded = [self._meta_space_ids if part == META_SPACE else ids for part, ids in zip(flat, encoded, strict=True)]
        joined, start = [], 0
        for some in parts:
            joined.append(encoded[start] if len(some) == 1 else _joined(encoded[start : start + len(some)]))
            start += len(some)
        return joined

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
        return piece.replace(META_SPACE, " ").encode()

    @cached_property
    def _meta_space_ids(self) -> NDArray[np.int32]:
        """Ids of the three bytes of U+2581 itself; none without byte fallback."""
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()]
        return np.array([index for index in ids if self._processor.is_byte(index)], dtype=np.int32)


def _joined(arrays: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        if match := SURROGATE.search(text):
            raise InputError(
                f"text cannot be encoded: character {match.start()} is U+{ord(match[0]):04X}, half of a surrogate pair",
                hint="no UTF-8 text can hold it; repair the text where it comes from",
            ) from None
