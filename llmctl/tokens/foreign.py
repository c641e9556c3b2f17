"""The stage `from-megatron`: datasets that Megatron's tools made, as token shards of this store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmctl.config.errors import InputError, UsageError
from llmctl.config.tokens import FromMegatronConfig
from llmctl.data.collect.formats import safe_name
from llmctl.pipeline.job import Job, Product
from llmctl.store.files import explain, explained, sha256_file
from llmctl.tokens.encode import SCHEMA, ShardWriter, id_dtype
from llmctl.tokens.megatron import Indexed, open_indexed, paths_of
from llmctl.tokens.tokenizer import Tokenizer


def sources(config: FromMegatronConfig, _fetched: Any = None) -> tuple[str, dict[str, str]]:
    """The artifact's name where the user gives none, and the digests of the files, by role.

    Raises:
        UsageError: no dataset is named, or two have one name.
        InputError: a file cannot be read.
    """
    if not config.prefixes:
        raise UsageError("from-megatron needs a dataset", hint="give PREFIX of PREFIX.bin and PREFIX.idx")
    digests: dict[str, str] = {}
    for prefix in config.prefixes:
        for path in paths_of(prefix):
            if path.name in digests:
                raise UsageError(f"two datasets are called {path.stem}", hint="rename one: ids are made from the name")
            try:
                digests[path.name] = f"sha256:{sha256_file(path)}"
            except OSError as error:
                raise explain(error, prefix) from error
    return f"{safe_name(paths_of(config.prefixes[0])[0].stem)}.tokenize", digests


def run(job: Job[FromMegatronConfig]) -> Product:
    """Copy every document, with `<s>` before and `</s>` after it where they are not there yet.

    Raises:
        InputError: a dataset is damaged, empty, or holds an id that the tokenizer does not know.
    """
    artifact = job.artifact("tokenizer")
    tokenizer = Tokenizer.open(artifact.data)
    dtype = id_dtype(tokenizer.vocab_size)
    with explained(str(job.out)), ShardWriter(job.out, dtype, job.config.shard_tokens) as shards:
        for prefix in job.config.prefixes:
            _copy(open_indexed(prefix), tokenizer, shards)
            job.progress.update(shards.documents, None, "documents", tokens=shards.tokens)
    if not shards.documents:
        raise InputError(f"{' '.join(job.config.prefixes)}: no documents", hint="check how the dataset was made")
    totals: dict[str, int | float | str] = {
        "documents": shards.documents,
        "tokens": shards.tokens,
        "bytes": shards.bytes,
    }
    job.log(totals)
    return Product(SCHEMA, semantic_of(tokenizer, artifact.digest, dtype), totals, shards.facts)


def semantic_of(tokenizer: Tokenizer, digest: str, dtype: np.dtype[Any]) -> dict[str, Any]:
    """The facts of token shards, as `tokenize` states them."""
    return {
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": digest,
    }


def _copy(dataset: Indexed, tokenizer: Tokenizer, shards: ShardWriter) -> None:
    name, number = dataset.path.stem, 0
    for sizes, ids in dataset.chunks():
        _check_ids(dataset, ids, tokenizer.vocab_size)
        texts = [_unframed(one, tokenizer) for one in np.split(ids.astype(np.int32), np.cumsum(sizes)[:-1])]
        names = [f"{name}/{number + at:09d}" for at in range(len(texts))]
        number += len(texts)
        columns = {
            "id": pa.array(names, pa.string()),
            "source": pa.array([name] * len(texts), pa.string()),
            "bytes": pa.array([int(tokenizer.byte_lengths[one].sum()) for one in texts], pa.int32()),
        }
        shards.write(pa.RecordBatch.from_pydict(columns), texts, tokenizer)


def _check_ids(dataset: Indexed, ids: NDArray[Any], vocab_size: int) -> None:
    """Fail on the first id that the tokenizer cannot have made."""
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        worst = int(ids.max()) if int(ids.max()) >= vocab_size else int(ids.min())
        raise InputError(
            f"{dataset.path} holds the id {worst}; the tokenizer has {vocab_size} ids",
            hint="give the tokenizer that the dataset was made with",
        )


def _unframed(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.int32]:
    """The ids without the `<s>` and the `</s>` around them, which are written for every document."""
    begin = int(ids.size > 0 and ids[0] == tokenizer.bos_id)
    end = ids.size - int(ids.size > begin and ids[-1] == tokenizer.eos_id)
    return ids[begin:end]
