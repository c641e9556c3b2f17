"""Stages of token ids: tokenizers, shards, packed rows."""

from __future__ import annotations

from llmctl.pipeline.stage import Role, Stage
from llmctl.pipeline.stages_data import DOCUMENTS

TOKEN_STAGES: tuple[Stage, ...] = (
    Stage(
        command="tokenizer",
        summary="Train a tokenizer.",
        config="llmctl.config.tokens:TokenizerConfig",
        run="llmctl.tokens.train:run",
        op_version=2,
        output="tokenizer",
        inputs={"input": DOCUMENTS},
        flags={
            "--vocab-size": "vocab_size",
            "--model": "model",
            "--split": "split",
            "--split-digits": "split_digits",
        },
        examples=(
            "llmctl tokenizer web.dedup --vocab-size 8192",
            "llmctl tokenizer web.dedup --model byte-bpe --split gpt2 --vocab-size 32768",
            "llmctl tokenizer web.dedup --model unigram split_digits=false",
        ),
    ),
    Stage(
        command="tokenize",
        then="pack",
        summary="Encode documents to token ids.",
        config="llmctl.config.tokens:TokenizeConfig",
        run="llmctl.tokens.encode:run",
        nests=("tokenizer",),
        op_version=2,
        output="tokens",
        inputs={
            "input": DOCUMENTS,
            "tokenizer": Role(("tokenizer",), "tokenizer to use; trained on the input where left out", required=False),
        },
        flags={"--vocab-size": "train.vocab_size", "--model": "train.model"},
        examples=(
            "llmctl tokenize web.dedup --vocab-size 4096",
            "llmctl tokenize web.dedup --tokenizer web.tokenizer",
        ),
    ),
    Stage(
        command="from-megatron",
        then="pack",
        summary="Read token ids from Megatron's .bin and .idx.",
        config="llmctl.config.tokens:FromMegatronConfig",
        run="llmctl.tokens.foreign:run",
        sources="llmctl.tokens.foreign:sources",
        output="tokens",
        words="prefixes",
        inputs={"tokenizer": Role(("tokenizer",), "tokenizer that the ids are of")},
        examples=(
            "llmctl from-megatron corpus/web --tokenizer web.tokenizer",
            "llmctl from-megatron corpus/a corpus/b.idx --tokenizer web.tokenizer --name web.tokenize",
        ),
    ),
    Stage(
        command="pack",
        then="pretrain",
        summary="Pack documents into rows of fixed length.",
        config="llmctl.config.tokens:PackConfig",
        run="llmctl.tokens.pack:run",
        derive="llmctl.pipeline.derive:tokenizer_of_tokens",
        op_version=3,
        output="rows",
        inputs={
            "input": Role(("tokens",), "token shards to pack"),
            "sources": Role(
                ("tokens",), "several to mix, each with its weight", required=False, many=True, share="weights"
            ),
        },
        flags={"--seq-len": "seq_len", "--heldout": "heldout_fraction", "--fim-rate": "fim.rate"},
        examples=(
            "llmctl pack web.tokenize --seq-len 1024",
            "llmctl pack code.tokenize --seq-len 2048 --fim-rate 0.5",
            "llmctl pack web.tokenize=0.7 code.tokenize=0.3 --name corpus.pack",
            (
                "llmctl pack a:web.tokenize b:code.tokenize "
                "'stages=[{tokens: 1000000000, weights: {a: 9, b: 1}}, {weights: {a: 1, b: 1}}]'"
            ),
        ),
    ),
)
