"""The stage `import`: a model of others becomes a checkpoint, a tokenizer of others a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmctl.config.inout import ImportConfig
from llmctl.config.model import ModelConfig
from llmctl.model import adapters, gguf, huggingface
from llmctl.model.config_json import GENERATION_FILE, TOKEN_IDS, generation_json, read_object
from llmctl.model.device import DTYPES
from llmctl.model.families import OWN, Family
from llmctl.model.located import README, Located, locate
from llmctl.model.tokenizer_files import keep_tokenizer, tokenizer_facts, tokenizer_product, write_tokenizer
from llmctl.model.weights import Weights
from llmctl.pipeline.job import Job, Product
from llmctl.tokens.gguf import from_gguf

CHECKPOINT_SCHEMA = "llmctl.checkpoint/1"
TOKENS_KEY = "tokenizer.ggml.tokens"
GGUF_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
NAME_ENDING = re.compile(r"\.gguf$|\.json$|\.model$|\.tiktoken$", re.IGNORECASE)
LICENSE_LINE = re.compile(r"^license:\s*[\"']?([A-Za-z0-9.+-]+)[\"']?\s*$", re.MULTILINE)
SPDX: Final = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
}


def sources(config: ImportConfig, fetched: Located | None = None) -> tuple[str, dict[str, str]]:
    """The artifact's name where the user gives none, and `sha256:…` of what will be read."""
    located = locate(config, fetched)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", NAME_ENDING.sub("", located.name)).strip("-._") or "imported"
    return name[:100], {"source": located.fingerprint()}


def run(job: Job[ImportConfig]) -> Product:
    """Read, check, and write anew; nothing of what is read is run.

    Raises:
        InputError: the source is nothing that is imported, or of an architecture that is not known.
        IntegrityError: the source is damaged; the file and the tensor or field are named.
    """
    located = locate(job.config, job.fetched)
    if located.is_tokenizer:
        source = located.file if located.is_file else located.folder(job.work)
        return tokenizer_product(source, job.config.tokenizer, job.out)
    if located.is_adapter:
        return adapters.imported(located.folder(job.work), job.out)
    model = _from_gguf(job, located.file) if located.is_gguf else _from_folder(job, located)
    total = sum(shape.numel() * model.weights.dtype(name).itemsize for name, shape in model.weights.shapes.items())
    family = huggingface.write(
        job.out,
        model.config,
        model.vocab_size,
        model.weights,
        ids=model.ids,
        generation=model.generation,
        preferred=model.family,
        dtype=DTYPES.get(job.config.dtype),
        shard_bytes=job.config.shard_bytes,
        wrote=lambda done: job.progress.update(done, total, "bytes"),
    )
    if family is OWN:
        job.progress.note("no Hugging Face layout expresses this model: the checkpoint opens in llmctl alone")
    parameters = sum(shape.numel() for shape in model.weights.shapes.values())
    facts = {
        "architecture": family.architecture,
        "parameters": parameters,
        "vocab_size": model.vocab_size,
        "seq_len": model.config.context,
        **tokenizer_facts(job.out, model.vocab_size, job.progress),
    }
    shown: dict[str, int | float | str] = {"parameters": parameters, "ids": model.vocab_size}
    return Product(CHECKPOINT_SCHEMA, semantic=facts, totals=shown, license=_licenses(job.config, model.license))


@dataclass(frozen=True)
class _Model:
    """What was opened of a source."""

    config: ModelConfig
    vocab_size: int
    weights: Weights
    ids: Mapping[str, Any]
    generation: Mapping[str, Any]
    license: str
    family: Family | None = None


def _from_folder(job: Job[ImportConfig], located: Located) -> _Model:
    folder = located.folder(job.work)
    opened = huggingface.open_weights(folder)
    described = opened.described
    if described.runs_code:
        job.progress.note("the model brings code of its own (auto_map), which is not run: what it computes is ours")
    if opened.left_out:
        job.progress.note(f"{len(opened.left_out)} tensors are left out, such as {opened.left_out[0]}")
    ids = {name: described.content.get(name) for name in TOKEN_IDS}
    generation = generation_json(ids, described.config.context)
    if GENERATION_FILE in located.files:
        generation = read_object(folder / GENERATION_FILE)
    keep_tokenizer(folder, job.config.tokenizer, job.out, job.progress)
    return _Model(
        described.config,
        described.vocab_size,
        opened.weights,
        ids,
        generation,
        _license_of(located),
        described.family,
    )


def _from_gguf(job: Job[ImportConfig], path: Path) -> _Model:
    opened = gguf.open_gguf(path)
    metadata = opened.file.metadata
    ids = {name: _integer(metadata.get(f"tokenizer.ggml.{key}_token_id")) for name, key in GGUF_IDS.items()}
    stops = [ids["eos_token_id"], _integer(metadata.get("tokenizer.ggml.eot_token_id"))]
    stopping = list(dict.fromkeys(stop for stop in stops if stop is not None))
    if TOKENS_KEY in metadata:
        write_tokenizer(from_gguf(_plain(metadata)), job.out)
    generation = generation_json({**ids, "eos_token_id": stopping or None}, opened.config.context)
    told = metadata.get("general.license")
    return _Model(
        opened.config, opened.vocab_size, opened.weights, ids, generation, told if isinstance(told, str) else ""
    )


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with lists for arrays."""
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metadata.items()}


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _license_of(located: Located) -> str:
    """What the front matter of the folder's README names."""
    if README not in located.files:
        return ""
    head = located.files[README].read_text(encoding="utf-8", errors="replace")[:4096]
    if not head.startswith("---"):
        return ""
    found = LICENSE_LINE.search(head.split("---", 2)[1])
    return found[1] if found else ""


def _licenses(config: ImportConfig, told: str) -> tuple[str, ...]:
    name = config.license or SPDX.get(told.lower(), told)
    return (name,) if name and name != "other" else ()
