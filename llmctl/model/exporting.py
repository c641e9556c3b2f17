"""A checkpoint as others take it: a Hugging Face folder, or one file for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmctl.config.errors import UsageError
from llmctl.config.inout import ExportConfig
from llmctl.model import gguf, huggingface
from llmctl.model.config_json import GENERATION_FILE, TOKEN_IDS, generation_json, read_object
from llmctl.model.device import DTYPES
from llmctl.model.families import OWN
from llmctl.model.formats.gguf_writer import Format
from llmctl.model.tokenizer_files import copy_tokenizer
from llmctl.model.weights import common_dtype
from llmctl.pipeline.job import Progress
from llmctl.store.artifact import Artifact
from llmctl.tokens.gguf_metadata import tokenizer_metadata

GGUF_FORMATS: Final[dict[str, Format]] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "q8_0": "Q8_0"}
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder or file.
        format: `hf` or `gguf`.
        architecture: in the words of the format.
        dtype: of most weights.
        bytes: of all files.
    """

    path: Path
    format: str
    architecture: str
    dtype: str
    bytes: int


def export(artifact: Artifact, config: ExportConfig, progress: Progress) -> Exported:
    """Write a checkpoint to `config.to`, which must not be there yet; parameters are read one at a time.

    Raises:
        UsageError: there is no place, something is there already, or the format cannot hold the model.
        IntegrityError: the checkpoint is damaged.
    """
    if not config.to:
        raise UsageError("export needs a place to write to", hint="give a new folder, or a file that ends in .gguf")
    target = Path(config.to[0]).expanduser()
    form = config.format if config.format != "auto" else "gguf" if target.suffix == ".gguf" else "hf"
    if target.exists() and not (target.is_dir() and form == "hf" and not any(target.iterdir())):
        raise UsageError(f"{target} is there already", hint="nothing is overwritten: give a new name")
    opened = huggingface.open_weights(artifact.data)
    generation: Mapping[str, Any] = {}
    if artifact.holds(GENERATION_FILE):
        generation = read_object(artifact.data / GENERATION_FILE)
    if form == "hf":
        return _folder(artifact, opened, generation, config, target, progress)
    return _file(artifact, opened, generation, config, target, progress)


def _folder(
    artifact: Artifact,
    opened: huggingface.Opened,
    generation: Mapping[str, Any],
    config: ExportConfig,
    target: Path,
    progress: Progress,
) -> Exported:
    if config.dtype == "q8_0":
        raise UsageError("q8_0 is a format of gguf alone", hint="give --format gguf, or --dtype bf16")
    described = opened.described
    ids = {name: described.content.get(name) for name in TOKEN_IDS}
    family = huggingface.write(
        target,
        described.config,
        described.vocab_size,
        opened.weights,
        ids=ids,
        generation=generation or generation_json(ids, described.config.context),
        preferred=described.family,
        dtype=DTYPES.get(config.dtype),
        shard_bytes=config.shard_bytes,
        wrote=lambda done: progress.update(done, None, "bytes"),
    )
    copy_tokenizer(artifact.data, target)
    if family is OWN:
        progress.note("no Hugging Face layout expresses this model: the folder opens in llmctl alone")
    dtype = NAMES[common_dtype(opened.weights)] if config.dtype == "keep" else config.dtype
    size = sum(path.stat().st_size for path in target.iterdir())
    return Exported(target, "hf", family.architecture, dtype, size)


def _file(
    artifact: Artifact,
    opened: huggingface.Opened,
    generation: Mapping[str, Any],
    config: ExportConfig,
    target: Path,
    progress: Progress,
) -> Exported:
    described = opened.described
    dtype = NAMES[common_dtype(opened.weights)] if config.dtype == "keep" else config.dtype
    metadata = {
        "general.name": artifact.name,
        "general.type": "model",
        **({"general.license": " AND ".join(artifact.manifest.license)} if artifact.manifest.license else {}),
        **tokenizer_metadata(artifact.data, described.vocab_size, stops(described.content, generation)),
    }
    architecture = gguf.write(
        target,
        described.config,
        described.vocab_size,
        opened.weights,
        metadata,
        wanted=GGUF_FORMATS[dtype],
        wrote=lambda done: progress.update(done, None, "bytes"),
    )
    return Exported(target, "gguf", architecture, dtype, target.stat().st_size)


def stops(content: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
    """Ids that end an answer, that of `config.json` first."""
    found: list[int] = []
    for told in (content.get("eos_token_id"), generation.get("eos_token_id")):
        found += [told] if isinstance(told, int) else [one for one in told or () if isinstance(one, int)]
    return list(dict.fromkeys(found))
