"""The same tokenizer for the `tokenizers` library: `tokenizer.json` and the files that transformers reads.

Pieces are written with real spaces and nothing is normalised, so U+2581 needs no exception there. The ids are
equal by construction: a segmentation depends on merge ranks (BPE) or on sums of scores (unigram) alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import sentencepiece
from tokenizers import AddedToken, decoders, models, processors
from tokenizers import Tokenizer as FastTokenizer

from llmctl.tokens.chat import CHAT_TEMPLATE
from llmctl.tokens.segments import META_SPACE
from llmctl.tokens.tokenizer import (
    BOS,
    CONFIG_FILE,
    EOS,
    FAST_FILE,
    IM_END,
    IM_START,
    PAD,
    SPECIALS,
    SPECIALS_FILE,
    TEMPLATE_FILE,
    UNK,
)

Kind = Literal["bpe", "unigram"]

UNREACHABLE = -1e4  # score of ids that no text may match; far below any path of real pieces


def companion_files(processor: sentencepiece.SentencePieceProcessor, model: Kind = "bpe") -> dict[str, bytes]:
    """Every file of a tokenizer directory but `tokenizer.model`, by name.

    Args:
        processor: the trained model.
        model: how it was trained.
    """
    return {
        FAST_FILE: _fast(processor, model).to_str(pretty=True).encode(),
        CONFIG_FILE: _json(_tokenizer_config()),
        SPECIALS_FILE: _json(_special_tokens()),
        TEMPLATE_FILE: CHAT_TEMPLATE.encode(),
    }


def _fast(processor: sentencepiece.SentencePieceProcessor, kind: Kind) -> FastTokenizer:
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    normal = [not _is_reserved(processor, index) for index in range(len(pieces))]
    texts = [piece.replace(META_SPACE, " ") for piece in pieces]
    scores = [processor.get_score(index) for index in range(len(pieces))]
    has_bytes = any(processor.is_byte(index) for index in range(len(pieces)))
    # Only the unigram trainer lets the sum of scores decide; BPE scores are minus the rank of a merge.
    if kind == "bpe":
        ranked = {text: score for text, score, real in zip(texts, scores, normal, strict=True) if real}
        model: Any = models.BPE(
            vocab={text: index for index, text in enumerate(texts)},
            merges=list(_merges(ranked)),
            unk_token=UNK,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    else:
        kept = [score if real else UNREACHABLE for score, real in zip(scores, normal, strict=True)]
        model = models.Unigram(list(zip(texts, kept, strict=True)), unk_id=0, byte_fallback=has_bytes)
    fast = FastTokenizer(model)
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, SPECIALS.index(BOS))],
    )
    return fast


def _is_reserved(processor: sentencepiece.SentencePieceProcessor, index: int) -> bool:
    return bool(processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index))


def _merges(scores: dict[str, float]) -> Iterator[tuple[str, str]]:
    """All pairs that join to a piece, in the order in which SentencePiece would join them.

    It always joins the pair whose whole has the best score, and among equals the leftmost. Several pairs can
    make one piece, but here every pair has a rank of its own. The order matters only where two such pairs
    overlap, x·y and y·z with xy = yz: then |x| is a period of the piece, x·y is the pair to the left, and so
    the split at a period goes before the split at the length less that period.
    """
    for piece in sorted(scores, key=lambda text: -scores[text]):
        cuts = [at for at in range(1, len(piece)) if piece[:at] in scores and piece[at:] in scores]
        for at in sorted(cuts, key=lambda at: (not piece.startswith(piece[at:]), -at)):
            yield piece[:at], piece[at:]


def _special_tokens() -> dict[str, Any]:
    return {
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": PAD,
        "additional_special_tokens": [IM_START, IM_END],
    }


def _tokenizer_config() -> dict[str, Any]:
    def added(text: str) -> dict[str, Any]:
        flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
        return {"content": text, **flags}

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_special_tokens(),
        "added_tokens_decoder": {str(index): added(text) for index, text in enumerate(SPECIALS)},
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
