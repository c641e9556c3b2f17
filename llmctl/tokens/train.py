"""The `tokenizer` stage: train a tokenizer on documents.

Nothing is normalised and no space is added or dropped, so text comes back byte for byte.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import sentencepiece
import xxhash

from llmctl.config.errors import InputError, LlmctlError, UsageError
from llmctl.config.tokens import TokenizerConfig
from llmctl.data.tables import read_batches, text_bytes
from llmctl.pipeline.job import Job, Product
from llmctl.store.artifact import Artifact, Input
from llmctl.store.files import explained, publish_bytes
from llmctl.tokens.bytebpe import train_byte_bpe, word_level
from llmctl.tokens.huggingface import companion_files, own_fast
from llmctl.tokens.quantize import quantized
from llmctl.tokens.segments import META_SPACE, segments
from llmctl.tokens.tokenizer import IM_END, IM_START, MODEL_FILE, SPECIALS, Tokenizer

SCHEMA = "llmctl.tokenizer/1"

# The unigram trainer sums its statistics per thread, so their number is part of the result.
TRAINING_THREADS = 16
LONGEST_SENTENCE_BYTES = 1 << 20
QUIET = 3  # no message of SentencePiece's own log: its failures come as exceptions

# Where a training text is cut. Newlines never share a piece with other characters, so the token after
# "<|im_start|>assistant\n" is the same in training and in generation, and long texts can be cut at lines.
# SentencePiece reserves the others: a sentence that holds one would be skipped.
DELIMITER = "\U0010fffe"
LISTS = ("char", "word")  # kinds with so many pieces as the text has, up to vocab_size, and no cuts inside a sentence
RESERVED = f"\0\t\u2581\u2585{DELIMITER}"
CUT = re.compile(f"(\n+)|[{RESERVED}]")

# Every printable ASCII character is a piece: then no spelled-out special such as <0x41> can match a unigram id.
ASCII = "".join(chr(code) for code in range(0x21, 0x7F))

TOO_LARGE = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


def run(job: Job[TokenizerConfig]) -> Product:
    """Train on a sample of the documents in `input`; writes the files of a Hugging Face tokenizer."""
    config = job.config
    documents, size = _measured(job.inputs["input"])
    share = min(1.0, config.max_training_bytes / size)
    if share < 1.0:
        job.progress.note(f"training on {share:.1%} of {size:,} bytes, chosen by hash (max_training_bytes)")
    sample = _Sample(job, share)
    files = trained_files(sample.texts(), config)
    with explained(str(job.out)):
        for name, content in files.items():
            publish_bytes(job.out / name, content)
    tokenizer = Tokenizer.open(job.out)
    return Product(
        schema=SCHEMA,
        semantic={
            "model": config.model,
            "vocab_size": tokenizer.vocab_size,
            "byte_fallback": config.byte_fallback,
            "special": tokenizer.special,
            "changes": list(tokenizer.changes),
        },
        totals={
            "vocab_size": tokenizer.vocab_size,
            "documents": documents,
            "training_documents": sample.documents,
            "training_bytes": sample.bytes,
        },
    )


def trained_files(texts: Iterator[str], config: TokenizerConfig) -> dict[str, bytes]:
    """Train on whole `texts`; the files of the tokenizer by name. Raises what `train` raises."""
    if config.model == "byte-bpe":
        return companion_files(train_byte_bpe(texts, config))
    parts_of = lines_of if config.model in LISTS else sentences_of
    model = train((sentence for text in texts for sentence in parts_of(text)), config)
    if config.model == "word":
        return companion_files(word_level(_words(model), config.vocab_size))
    return {MODEL_FILE: model, **companion_files(own_fast(model))}


def train(sentences: Iterator[str], config: TokenizerConfig) -> bytes:
    """Train SentencePiece on `sentences` (texts cut by `DELIMITER`); the bytes of `tokenizer.model`.

    The same sentences and configuration give the same bytes on any machine with one SentencePiece version.

    Raises:
        UsageError: the vocabulary is larger, or smaller, than the text supports.
        InputError: there is nothing to train on.
    """
    model = io.BytesIO()
    is_list = config.model in LISTS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=config.model,
            vocab_size=config.vocab_size,
            hard_vocab_limit=not is_list,
            byte_fallback=config.byte_fallback and config.model != "word",
            split_digits=config.split_digits,
            max_sentencepiece_length=config.max_piece_chars,
            character_coverage=config.character_coverage,
            required_chars=ASCII if config.model == "unigram" else "",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=config.model != "word",
            pretokenization_delimiter="" if is_list else DELIMITER,
            max_sentence_length=LONGEST_SENTENCE_BYTES,
            num_threads=TRAINING_THREADS,
            minloglevel=QUIET,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=[IM_START, IM_END],
        )
    except RuntimeError as error:
        raise _explained(str(error), config) from None
    trained = model.getvalue()
    return quantized(trained) if config.model == "unigram" else trained


def _words(model: bytes) -> Iterator[str]:
    """Words of a word model, the most frequent first."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for index in range(len(SPECIALS), processor.get_piece_size()):
        yield processor.id_to_piece(index).replace(META_SPACE, " ")


def sentences_of(text: str) -> Iterator[str]:
    """`text` as SentencePiece is to see it: short enough for its counters, with `DELIMITER` at every cut."""
    for part in segments(text):
        yield CUT.sub(lambda match: DELIMITER + (match[1] or "") + DELIMITER, part)


def lines_of(text: str) -> Iterator[str]:
    """`text` for the kinds that know no `DELIMITER`: the parts between its cuts, newlines left out."""
    return (part for part in re.split(f"[{RESERVED}\n]+", text) if part)


class _Sample:
    """The documents trained on: those whose hashed id falls below `share`. Counts what it gives out."""

    def __init__(self, job: Job[TokenizerConfig], share: float) -> None:
        self.documents = self.bytes = 0
        self._job = job
        self._share = share

    def texts(self) -> Iterator[str]:
        for batch in read_batches(self._job.inputs["input"], columns=["id", "text"]):
            for name, text in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                if self._share < 1.0 and xxhash.xxh3_64_intdigest(name.encode()) / 2**64 >= self._share:
                    continue
                self.documents += 1
                self.bytes += len(text.encode())
                yield text
            self._job.progress.update(self.bytes, None, "bytes")


def _measured(given: Input) -> tuple[int, int]:
    """Documents and bytes of text in the input, as its manifest says; `InputError` where there is no text.

    A plain file has no manifest, and so its text is read for them.
    """
    if isinstance(given, Artifact) and {"documents", "bytes"} <= given.manifest.totals.keys():
        documents, size = (int(given.manifest.totals[name]) for name in ("documents", "bytes"))
    else:
        documents = size = 0
        for batch in read_batches(given, columns=["text"]):
            documents += batch.num_rows
            size += text_bytes(batch)
    if not size:
        raise InputError(f"{given.ref} holds no text to train a tokenizer on", hint="check what was collected or kept")
    return documents, size


def _explained(message: str, config: TokenizerConfig) -> LlmctlError:
    """SentencePiece's failure as ours: what does not fit, and the value that would."""
    size = config.vocab_size
    if match := TOO_LARGE.search(message):
        return UsageError(
            f"vocabulary of {size} is larger than the text supports, at most {match[1]}",
            hint=f"use --vocab-size {match[1]} or less, or give more text",
        )
    if match := TOO_SMALL.search(message):
        return UsageError(
            f"vocabulary of {size} is smaller than the characters of the text need, at least {match[1]}",
            hint=f"use --vocab-size {match[1]} or more, or lower character_coverage",
        )
    if "sentences_.empty()" in message:
        return InputError("the documents hold no text to train a tokenizer on", hint="check what was collected or kept")
    reason = message.rsplit("] ", 1)[-1] or message
    return InputError(f"SentencePiece could not train on this text: {reason}", hint=f"special ids: {len(SPECIALS)}")
