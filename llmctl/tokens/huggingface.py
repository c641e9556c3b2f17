"""The files that transformers and vLLM open beside, or in place of, `tokenizer.model`.

`tokenizer.json` for the `tokenizers` library, with the same ids as SentencePiece gives by construction: a
segmentation depends on merge ranks (BPE) or on sums of scores (unigram) alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer

from llmctl.config.errors import InputError
from llmctl.tokens.chat import CHAT_TEMPLATE
from llmctl.tokens.engines import BOS, EOS, PAD, SPECIALS, UNK
from llmctl.tokens.protobuf import model_type_of, normalizer_of
from llmctl.tokens.segments import META_SPACE
from llmctl.tokens.tokenizer import CONFIG_FILE, FAST_FILE, SPECIALS_FILE, TEMPLATE_FILE

UNREACHABLE = -1e4  # score of ids that no text may match; far below any path of real pieces
OWN_NAMES = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}


def companion_files(fast: FastTokenizer) -> dict[str, bytes]:
    """Every file of a tokenizer trained here but `tokenizer.model`, by name."""
    return {FAST_FILE: fast.to_str(pretty=True).encode(), **described_files(OWN_NAMES, SPECIALS, CHAT_TEMPLATE)}


def described_files(named: Mapping[str, str], special: tuple[str, ...], template: str) -> dict[str, bytes]:
    """The files that say which tokens are special and how a chat is written.

    Args:
        named: bos_token, eos_token, unk_token and pad_token to their texts, as far as there are such.
        special: all special tokens.
        template: the chat template; empty for none.
    """
    others = [text for text in special if text not in named.values()]
    told: dict[str, Any] = {**named, **({"additional_special_tokens": others} if others else {})}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **told,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
    }
    if template:
        config["chat_template"] = template
    return {CONFIG_FILE: _json(config), SPECIALS_FILE: _json(told), TEMPLATE_FILE: template.encode()}


def with_specials(fast: FastTokenizer) -> FastTokenizer:
    """`fast` with the special tokens of tokenizers trained here, BOS before every text."""
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return begun_with(fast, BOS)


def begun_with(fast: FastTokenizer, bos: str) -> FastTokenizer:
    """`fast` with the special token `bos` before every text."""
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, fast.token_to_id(bos))]
    )
    return fast


def own_fast(model: bytes) -> FastTokenizer:
    """The `tokenizers` form of a SentencePiece model that was trained here.

    Pieces are written with real spaces and nothing is normalised, so U+2581 needs no exception there.
    """
    fast = FastTokenizer(_model(model, " "))
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return with_specials(fast)


def foreign_fast(model: bytes) -> FastTokenizer:
    """The `tokenizers` form of any SentencePiece model, with its own normalizer and special tokens.

    Raises:
        InputError: it is a word model, for which there is no such form.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    fast = FastTokenizer(_model(model, META_SPACE))
    normalizer = normalizer_of(model)
    steps: list[Any] = []
    if normalizer.charsmap:
        steps.append(normalizers.Precompiled(normalizer.charsmap))
    if normalizer.trims:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if normalizer.adds_space:
        steps.append(normalizers.Prepend(META_SPACE))
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", META_SPACE)])
    restored: list[Any] = [decoders.Replace(META_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*restored, *([decoders.Strip(" ", 1, 0)] if normalizer.adds_space else [])])
    size = processor.get_piece_size()
    special = [i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    fast.add_special_tokens([AddedToken(processor.id_to_piece(i), special=True, normalized=False) for i in special])
    return fast


def _model(serialized: bytes, space: str) -> Any:
    """The model of `tokenizers` that segments as SentencePiece does, with `space` written for a space."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    kind = model_type_of(serialized)
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    normal = [not _is_reserved(processor, index) for index in range(len(pieces))]
    texts = [piece.replace(META_SPACE, space) for piece in pieces]
    scores = [processor.get_score(index) for index in range(len(pieces))]
    has_bytes = any(processor.is_byte(index) for index in range(len(pieces)))
    # Only the unigram trainer lets the sum of scores decide; BPE scores are minus the rank of a merge.
    if kind == "unigram":
        kept = [score if real else UNREACHABLE for score, real in zip(scores, normal, strict=True)]
        unk = processor.unk_id()
        return models.Unigram(list(zip(texts, kept, strict=True)), unk_id=unk, byte_fallback=has_bytes)
    if kind not in ("bpe", "char"):
        raise InputError(f"a SentencePiece model of kind {kind} has no tokenizer.json", hint="use bpe, unigram or char")
    ranked = {text: score for text, score, real in zip(texts, scores, normal, strict=True) if real}
    return models.BPE(
        vocab={text: index for index, text in enumerate(texts)},
        merges=list(merges_of(ranked)) if kind == "bpe" else [],
        unk_token=processor.id_to_piece(processor.unk_id()),
        fuse_unk=True,
        byte_fallback=has_bytes,
    )


def _is_reserved(processor: sentencepiece.SentencePieceProcessor, index: int) -> bool:
    return bool(
        processor.is_control(index)
        or processor.is_unknown(index)
        or processor.is_byte(index)
        or processor.is_unused(index)
    )


def merges_of(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """All pairs that join to a piece, in the order in which SentencePiece and tiktoken would join them.

    They always join the pair whose whole has the best score, and among equals the leftmost. Several pairs can
    make one piece, but here every pair has a rank of its own. The order matters only where two such pairs
    overlap, x·y and y·z with xy = yz: then |x| is a period of the piece, x·y is the pair to the left, and so
    the split at a period goes before the split at the length less that period.
    """
    for piece in sorted(scores, key=lambda text: -scores[text]):
        cuts = [at for at in range(1, len(piece)) if piece[:at] in scores and piece[at:] in scores]
        for at in sorted(cuts, key=lambda at: (not piece.startswith(piece[at:]), -at)):
            yield piece[:at], piece[at:]


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
