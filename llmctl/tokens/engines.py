"""What encodes: SentencePiece for `tokenizer.model`, the `tokenizers` library for every other `tokenizer.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from llmctl.tokens.bytelevel import all_bytes_of
from llmctl.tokens.protobuf import normalizer_of
from llmctl.tokens.segments import META_SPACE, segments

UNK, BOS, EOS, PAD, IM_START, IM_END = "<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"
SPECIALS = (UNK, BOS, EOS, PAD, IM_START, IM_END)  # of every tokenizer trained here; their ids are their places
NEVER_A_PIECE = "\u2585"  # SentencePiece reserves it while it trains
UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))  # the others occur in no UTF-8 text
OUTSIDE = "characters outside the vocabulary"
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Engine(Protocol):
    """How a kind of tokenizer turns text into ids. Threads may share one.

    Attributes:
        pieces: the bytes that each id stands for; `b""` for special ids.
        special: special strings to ids.
        unk_id: what text outside the vocabulary becomes; None where every byte has an id.
        changes: in which ways text may come back other than it went in; empty where it never does.
        adds_space: whether a space is put before the text, and taken away again.
        added: special ids that other tools put around an empty text.
    """

    pieces: list[bytes]
    special: dict[str, int]
    unk_id: int | None
    changes: tuple[str, ...]
    adds_space: bool
    added: tuple[int, ...]

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[NDArray[np.int32]]:
        """Ids of each text on `threads` threads, none of them special."""
        ...


class SentencePieceEngine:
    """A SentencePiece model, ours or another's.

    Ours are cut into short segments, and spell U+2581 in bytes, which SentencePiece cannot tell from a space.

    Raises:
        RuntimeError: `serialized` is no SentencePiece model.
    """

    def __init__(self, serialized: bytes) -> None:
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        size = processor.get_piece_size()
        normalizer = normalizer_of(serialized)
        controls = [index for index in range(size) if processor.is_control(index) or processor.is_unknown(index)]
        self.special = {processor.id_to_piece(index): index for index in controls}
        self.is_ours = all(processor.piece_to_id(text) == index for index, text in enumerate(SPECIALS))
        self.pieces = [self._bytes_of(index) for index in range(size)]
        self.adds_space = normalizer.adds_space
        self.added: tuple[int, ...] = (processor.bos_id(),) if processor.bos_id() >= 0 else ()
        self._has_bytes = any(processor.is_byte(index) for index in range(size))
        self.unk_id = None if self._has_bytes else processor.unk_id()
        self.changes = (
            *(() if self._has_bytes else (f"{OUTSIDE} become the unknown id",)),
            *(() if self.is_ours and self._has_bytes else ("U+2581 becomes a space",)),
            *normalizer.changes,
        )

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[NDArray[np.int32]]:
        """See `Engine`."""
        if not self.is_ours:
            return self._encoded(texts, threads)
        if not self._meta_space_ids.size:  # no bytes to spell it in: any character that is never a piece does
            texts = [text.replace(META_SPACE, NEVER_A_PIECE) for text in texts]
        parts = [list(segments(text)) for text in texts]
        flat = [part for some in parts for part in some]
        encoded = self._encoded(flat, threads)
        encoded = [self._meta_space_ids if part == META_SPACE else ids for part, ids in zip(flat, encoded, strict=True)]
        joined, start = [], 0
        for some in parts:
            joined.append(encoded[start] if len(some) == 1 else _joined(encoded[start : start + len(some)]))
            start += len(some)
        return joined

    def _encoded(self, texts: Sequence[str], threads: int) -> list[NDArray[np.int32]]:
        if threads == 1:  # the batch call starts threads of its own, which costs more than a short text
            return [self._processor.encode(text, return_type="numpy") for text in texts]
        found: list[NDArray[np.int32]] = self._processor.encode(list(texts), num_threads=threads, return_type="numpy")
        return found

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


class FastEngine:
    """A `tokenizer.json` whose ids stand for bytes: byte-level BPE, or pieces in the manner of SentencePiece.

    Raises:
        ValueError: `source` is no such file.
    """

    def __init__(self, source: str) -> None:
        try:
            self._fast = FastTokenizer.from_str(source)
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise ValueError(str(error)) from None
        self._fast.encode_special_tokens = True  # special strings in a text are text
        self._fast.no_padding()
        self._fast.no_truncation()
        described = json.loads(source)
        kinds = set(_kinds(described.get("decoder")))
        self._byte_level = "ByteLevel" in kinds or "ByteLevel" in set(_kinds(described.get("pre_tokenizer")))
        if not self._byte_level and not kinds & {"ByteFallback", "Metaspace", "Fuse"}:
            raise ValueError(f"its decoder is {' and '.join(sorted(kinds)) or 'missing'}: its ids stand for no bytes")
        added = self._fast.get_added_tokens_decoder()
        self.special = {token.content: index for index, token in added.items() if token.special}
        self.added = tuple(self._fast.encode("").ids)
        vocabulary = described["model"].get("vocab")
        if not isinstance(vocabulary, dict):  # a unigram model's has scores
            vocabulary = self._fast.get_vocab()
        self.pieces = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)
        for index, content in zip(vocabulary.values(), self._all_bytes_of(vocabulary), strict=True):
            self.pieces[index] = content
        for index, token in added.items():
            self.pieces[index] = b"" if token.special else token.content.encode()
        known = set(self.pieces)
        self._missing = [byte for byte in UTF8_BYTES if bytes([byte]) not in known]
        self.adds_space = any(_adds_space(part) for part in _parts(described))
        unk = described["model"].get("unk_token")
        unk = described["model"].get("unk_id") if unk is None else self._fast.token_to_id(unk)
        self.unk_id = unk if self._missing else None
        if self.unk_id is not None:
            self.pieces[self.unk_id] = b""
        self.changes = tuple(self._found_changes(described))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[NDArray[np.int32]]:
        """See `Engine`; with more than one thread the library takes as many as RAYON_NUM_THREADS says."""
        if threads == 1:
            found = [self._fast.encode(text, add_special_tokens=False) for text in texts]
        else:
            found = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in found]

    def _all_bytes_of(self, pieces: Iterable[str]) -> list[bytes]:
        return all_bytes_of(pieces) if self._byte_level else [_bytes_of(piece) for piece in pieces]

    def _found_changes(self, described: dict[str, Any]) -> Iterable[str]:
        if self._missing:
            gone = "become the unknown id" if self.unk_id is not None else "are dropped"
            what = f"bytes without an id ({bytes(self._missing).hex(' ')})" if self._byte_level else OUTSIDE
            yield f"{what} {gone}"
        parts = list(_parts(described))
        if any(part["type"] == "Metaspace" or META_SPACE in str(part.get("content", "")) for part in parts):
            yield "U+2581 becomes a space"
        if any(part["type"] == "Metaspace" and part.get("prepend_scheme") == "first" for part in parts):
            yield "a space at the front may be lost"
        quiet = {"Sequence", "Prepend", "Replace"}
        normalizers = [kind for kind in _kinds(described.get("normalizer")) if kind not in quiet]
        if normalizers:
            yield f"text is normalised first: {', '.join(normalizers)}"
        if any(_shortens(part) for part in parts):
            yield "runs of spaces are shortened"
        if any(token.lstrip or token.rstrip for token in self._fast.get_added_tokens_decoder().values()):
            yield "spaces beside some added tokens are lost"


def _bytes_of(piece: str) -> bytes:
    """The bytes of a piece in the manner of SentencePiece."""
    if match := BYTE_PIECE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return piece.replace(META_SPACE, " ").encode()


def _joined(arrays: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)


def _nested(part: Any) -> Iterable[dict[str, Any]]:
    """A component of `tokenizer.json` and, of a sequence, its members."""
    if isinstance(part, dict) and "type" in part:
        yield part
        for key in ("normalizers", "pretokenizers", "decoders"):
            for member in part.get(key, ()):
                yield from _nested(member)


def _kinds(part: Any) -> Iterable[str]:
    return (str(one["type"]) for one in _nested(part))


def _parts(described: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Every component that changes text before it is encoded."""
    yield from _nested(described.get("normalizer"))
    yield from _nested(described.get("pre_tokenizer"))


def _adds_space(part: dict[str, Any]) -> bool:
    if part["type"] == "ByteLevel":
        return bool(part.get("add_prefix_space"))
    if part["type"] == "Metaspace":
        return str(part.get("prepend_scheme", "always")) != "never"
    return bool(part["type"] == "Prepend")


def _shortens(part: dict[str, Any]) -> bool:
    """Whether a replacement takes more than one character at a time."""
    return bool(part["type"] == "Replace") and "Regex" in part.get("pattern", {})
