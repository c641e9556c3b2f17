"""The line in one table: every stage, in the order in which data flows through them."""

from __future__ import annotations

from llmctl.config.errors import UsageError
from llmctl.pipeline.stage import Role, Stage

DOCUMENTS = Role(("documents",), "documents to read")
TRAINING_FLAGS = {
    "--batch-rows": "batch_rows",
    "--lr": "optimizer.lr",
    "--precision": "precision",
    "--nproc": "nproc",
    "--zero": "zero",
    "--keep": "keep",
    "--seed": "seed",
}

STAGES: dict[str, Stage] = {
    stage.command: stage
    for stage in (
        Stage(
            command="collect",
            then="clean",
            summary="Read files, URLs, crawls, dumps, repositories.",
            config="llmctl.config.collect:CollectConfig",
            run="llmctl.data.collect:run",
            fetch="llmctl.data.collect:fetch_sources",
            sources="llmctl.data.collect:sources",
            op_version=2,
            resumable=True,
            output="documents",
            words="sources",
            flags={
                "--limit": "limit",
                "--sample": "sample",
                "--seed": "seed",
                "--license": "license",
                "--license-allow": "license_allow",
                "--allow-private": "allow_private",
            },
            examples=(
                "llmctl collect python-docs",
                "llmctl collect notes/ 'crawl/*.jsonl.gz' --name web",
                "llmctl collect 'CC-MAIN-*.warc.gz' --sample 0.1",
                "llmctl collect path/to/repository --license-allow MIT,Apache-2.0",
                "llmctl collect https://example.org/texts.jsonl.gz 's3://bucket/texts/*.parquet'",
            ),
        ),
        Stage(
            command="clean",
            then="dedup",
            summary="Extract, normalise and filter text, counting reasons.",
            config="llmctl.config.clean:CleanConfig",
            run="llmctl.data.clean:run",
            op_version=2,
            resumable=True,
            output="documents",
            inputs={
                "input": DOCUMENTS,
                "blocklist": Role(("list",), "file of URLs and domains to drop", required=False, files=True),
                "allowlist": Role(("list",), "file of URLs and domains that stay", required=False, files=True),
                "hardwords": Role(("list",), "file of words of which one drops a document", required=False, files=True),
                "softwords": Role(("list",), "file of words of which a few may occur", required=False, files=True),
                "classifier": Role(("classifier",), "classifier that scores quality", required=False, files=True),
                "kenlm": Role(("kenlm",), "KenLM model that measures perplexity", required=False, files=True),
            },
            flags={
                "--main-content": "main_content",
                "--lang": "language.keep",
                "--min-score": "language.min_score",
                "--min-words": "quality.min_words",
                "--max-words": "quality.max_words",
                "--keep-quantile": "classifier.keep_quantile",
                "--pii": "pii.action",
                "--segment": "segment.by",
                "--keep-rejected": "keep_rejected",
            },
            examples=(
                "llmctl clean web",
                "llmctl clean web --main-content --lang en,de --min-score 0.65 --pii redact",
                "llmctl clean web --blocklist domains.txt --keep-rejected",
                "llmctl clean web --classifier good.classifier --keep-quantile 0.5",
                "llmctl clean web --kenlm good perplexity.max_perplexity=1000",
                "llmctl collect notes/ | llmctl clean quality.min_stop_words=0",
            ),
        ),
        Stage(
            command="classifier",
            summary="Train a quality classifier on good and poor documents.",
            config="llmctl.config.classifier:ClassifierConfig",
            run="llmctl.data.classifier:run",
            output="classifier",
            inputs={
                "input": Role(("documents",), "documents that are good", files=True),
                "negative": Role(("documents",), "documents that are not", files=True),
            },
            flags={"--epochs": "epochs", "--seed": "seed"},
            examples=("llmctl classifier books.clean --negative web.clean",),
        ),
        Stage(
            command="kenlm",
            summary="Train an n-gram model with KenLM, for perplexity.",
            config="llmctl.config.kenlm:KenlmConfig",
            run="llmctl.data.kenlm:run",
            output="kenlm",
            inputs={"input": Role(("documents",), "documents that are good", files=True)},
            flags={"--order": "order"},
            examples=("llmctl kenlm books.clean --name good", "llmctl kenlm web.clean --order 3 'prune=[0, 0, 1]'"),
        ),
        Stage(
            command="dedup",
            then="tokenize",
            summary="Remove exact and near duplicates (MinHash).",
            config="llmctl.config.dedup:DedupConfig",
            run="llmctl.data.dedup:run",
            op_version=4,
            resumable=True,
            output="documents",
            inputs={
                "input": DOCUMENTS,
                "against": Role(
                    ("documents",), "earlier documents, deduplicated with index=true; theirs go", required=False
                ),
            },
            flags={
                "--unit": "unit",
                "--keep": "keep",
                "--engine": "engine",
                "--threshold": "threshold",
                "--permutations": "permutations",
                "--ngram": "ngram_words",
                "--seed": "seed",
            },
            examples=(
                "llmctl dedup web.clean",
                "llmctl dedup web.clean --threshold 0.8 index=true",
                "llmctl dedup new.clean --against web.dedup",
            ),
        ),
        Stage(
            command="decontaminate",
            then="tokenize",
            summary="Remove what overlaps with an evaluation set.",
            config="llmctl.config.decontaminate:DecontaminateConfig",
            run="llmctl.data.decontaminate:run",
            op_version=3,
            resumable=True,
            output="documents",
            inputs={
                "input": DOCUMENTS,
                "against": Role(
                    ("prompts", "documents", "chats"),
                    "evaluation set: an artifact, or a .jsonl or .parquet file",
                    files=True,
                ),
            },
            flags={
                "--ngram": "ngram_words",
                "--action": "action",
                "--min-words": "min_words",
                "--min-ngrams": "min_ngrams",
            },
            examples=(
                "llmctl decontaminate web.dedup --against questions.jsonl",
                "llmctl decontaminate web.dedup --against mmlu.parquet --action remove 'fields=[question, choices]'",
            ),
        ),
        Stage(
            command="mix",
            then="tokenize",
            summary="Mix weighted sources, with a held-out split.",
            config="llmctl.config.mix:MixConfig",
            run="llmctl.tokens.mixing:run",
            op_version=2,
            resumable=True,
            output="documents",
            inputs={
                "sources": Role(("documents",), "documents to mix, each with its weight", many=True, share="weights"),
                "tokenizer": Role(
                    ("tokenizer",),
                    "tokenizer to count tokens with; estimated from bytes where left out",
                    required=False,
                ),
            },
            flags={
                "--by": "by",
                "--tokens": "tokens",
                "--documents": "documents",
                "--bytes": "bytes",
                "--temperature": "temperature",
                "--heldout": "heldout_fraction",
                "--seed": "seed",
            },
            examples=(
                "llmctl mix web.dedup=0.7 books.dedup=0.3 --name corpus",
                "llmctl mix web:crawl.dedup@v3=7 books.dedup=3 --tokens 100000000 max_epochs=2",
                "llmctl mix en.dedup de.dedup sw.dedup --temperature 3",
            ),
        ),
        Stage(
            command="chats",
            summary="Turn documentation into question-and-answer chats.",
            config="llmctl.config.lessons:ChatsConfig",
            run="llmctl.data.lessons:run_chats",
            op_version=2,
            output="chats",
            inputs={"input": DOCUMENTS},
            flags={"--heldout": "heldout_fraction", "--seed": "seed"},
            examples=("llmctl chats python-docs.dedup",),
        ),
        Stage(
            command="quiz",
            summary="Make multiple-choice questions on held-out entries.",
            config="llmctl.config.lessons:QuizConfig",
            run="llmctl.data.lessons:run_quiz",
            op_version=2,
            output="prompts",
            inputs={"input": DOCUMENTS},
            flags={"--heldout": "heldout_fraction", "--choices": "choices", "--seed": "seed"},
            examples=("llmctl quiz python-docs.dedup",),
        ),
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
                "tokenizer": Role(
                    ("tokenizer",), "tokenizer to use; trained on the input where left out", required=False
                ),
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
        Stage(
            command="pretrain",
            then="eval",
            summary="Train a decoder on packed rows.",
            config="llmctl.config.train:PretrainConfig",
            run="llmctl.objectives.pretrain:run",
            derive="llmctl.pipeline.derive:tokenizer_of_rows",
            op_version=2,
            output="checkpoint",
            resumable=True,
            inputs={"input": Role(("rows",), "packed rows to train on")},
            flags={
                "--model": "model.name",
                "--depth": "dial.depth",
                "--params": "dial.params",
                "--steps": "steps",
                **TRAINING_FLAGS,
            },
            examples=(
                "llmctl pretrain web.pack --depth 4",
                "llmctl pretrain web.pack --params 50M --dry-run",
                "llmctl pretrain web.pack --model tiny --steps 200",
                "llmctl pretrain web.pack --model tiny model.layers=6 optimizer.lr=1e-3",
                "llmctl pretrain web.pack --nproc 2 --zero 2",
                "llmctl pretrain web.pack optimizer=muon schedule=wsd average=ema --keep last:3,every:1000,best:1",
                "llmctl pretrain web.pack guard.on_spike=skip guard.on_nan=rollback",
            ),
        ),
        Stage(
            command="sft",
            then="serve",
            summary="Fine-tune on chats, with loss on the answers only.",
            config="llmctl.config.train:SftConfig",
            run="llmctl.objectives.sft:run",
            op_version=2,
            output="checkpoint",
            resumable=True,
            inputs={
                "input": Role(("checkpoint",), "checkpoint to start from"),
                "chats": Role(("chats",), "chats in the messages form: an artifact or a .jsonl file", files=True),
            },
            flags={"--epochs": "epochs", **TRAINING_FLAGS},
            examples=("llmctl sft web.pretrain --chats chats.jsonl --epochs 3",),
        ),
        Stage(
            command="import",
            then="chat",
            summary="Read a model or tokenizer of others.",
            config="llmctl.config.inout:ImportConfig",
            run="llmctl.model.importing:run",
            decides="llmctl.model.located:kind_of",
            fetch="llmctl.model.located:fetch",
            sources="llmctl.model.importing:sources",
            output="checkpoint",
            words="sources",
            flags={"--dtype": "dtype", "--license": "license", "--allow-private": "allow_private"},
            examples=(
                "llmctl import path/to/model --name base",
                "llmctl import hf://HuggingFaceTB/SmolLM2-135M-Instruct",
                "llmctl import model.Q4_K_M.gguf --dtype bf16",
                "llmctl import path/to/tokenizer.json --name words",
            ),
        ),
        Stage(
            command="eval",
            summary="Measure held-out loss and multiple choice.",
            config="llmctl.config.evals:EvalConfig",
            run="llmctl.evals.stage:run",
            derive="llmctl.pipeline.derive:rows_of_checkpoint",
            op_version=3,
            output="eval",
            inputs={
                "input": Role(("checkpoint",), "checkpoint to measure"),
                "rows": Role(
                    ("rows",), "rows whose held-out split is scored; the training rows where left out", required=False
                ),
                "choices": Role(
                    ("prompts",), "multiple-choice questions: an artifact or a .jsonl file", required=False, files=True
                ),
            },
            flags={"--limit": "limit", "--batch-tokens": "batch_tokens", "--weights": "weights"},
            examples=(
                "llmctl eval web.pretrain",
                "llmctl eval web.sft --choices questions.jsonl",
                "llmctl eval web.sft --weights int4",
            ),
        ),
    )
}


def stage_named(command: str) -> Stage:
    """The stage called `command`; a `UsageError` names the known ones."""
    if command not in STAGES:
        raise UsageError(f"no stage is called {command!r}", hint=f"known: {', '.join(STAGES)}")
    return STAGES[command]
