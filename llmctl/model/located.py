"""Where the files of a model to import lie, on this disk or behind `hf://`, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmctl.config.errors import InputError, UsageError
from llmctl.config.inout import ImportConfig
from llmctl.model.config_json import CONFIG_FILE, GENERATION_FILE
from llmctl.model.formats.pickles import ENDINGS, refuse_pickle, refuse_pickles_among
from llmctl.model.formats.safetensors_reader import INDEX_FILE
from llmctl.model.tokenizer_files import TOKENIZER_PARTS
from llmctl.pipeline.job import Progress
from llmctl.store.files import explained, sha256_file
from llmctl.store.manifest import sha256_of

GGUF = ".gguf"
README = "README.md"
BESIDE = ("tokenizer_config.json", "chat_template.jinja")  # of a tokenizer's file
ADAPTER = "adapter_config.json"
DESCRIPTIONS = (ADAPTER, CONFIG_FILE, GENERATION_FILE, INDEX_FILE, README, *TOKENIZER_PARTS)


@dataclass(frozen=True)
class Located:
    """The files of one source.

    Attributes:
        name: of the folder or file.
        files: by their names within it; the file first where the source is one, and what describes it.
        is_file: whether the source is a file.
    """

    name: str
    files: Mapping[str, Path]
    is_file: bool

    @property
    def file(self) -> Path:
        """The one file."""
        return next(iter(self.files.values()))

    @property
    def is_gguf(self) -> bool:
        """Whether the source is a GGUF file."""
        return self.is_file and self.name.lower().endswith(GGUF)

    @property
    def is_tokenizer(self) -> bool:
        """Whether the source is a tokenizer without a model."""
        if self.is_file:
            return is_tokenizer_file(self.name)
        weights = any(name.endswith((".safetensors", *ENDINGS)) for name in self.files)
        return CONFIG_FILE not in self.files and not weights

    @property
    def is_adapter(self) -> bool:
        """Whether the source is an adapter without its model."""
        return ADAPTER in self.files and CONFIG_FILE not in self.files

    def fingerprint(self) -> str:
        """`sha256:…` of names and bytes."""
        digests = {name: "sha256:" + sha256_file(path) for name, path in sorted(self.files.items())}
        return sha256_of(digests)

    def folder(self, work: Path) -> Path:
        """The files as a folder: links, where they do not lie in one by their own names."""
        places = {path.parent for path in self.files.values()}
        if len(places) == 1 and all(path.name == name for name, path in self.files.items()):
            return places.pop()
        linked = work / "source"
        linked.mkdir(parents=True, exist_ok=True)
        for name, path in self.files.items():
            (linked / name).unlink(missing_ok=True)
            (linked / name).symlink_to(path.absolute())
        return linked


def is_tokenizer_file(name: str) -> bool:
    """Whether a file is a tokenizer, by its name."""
    return name.endswith((".json", ".model", ".tiktoken"))


def is_wanted(name: str) -> bool:
    """Whether a file of a model's folder is read: descriptions, tokenizers, safetensors; nothing of its subfolders."""
    return "/" not in name and (name in DESCRIPTIONS or name.endswith((".safetensors", ".tiktoken")))


def kind_of(config: ImportConfig) -> str:
    """`checkpoint`, `adapter` or `tokenizer`, from the source's name and, on this disk, its files; nothing is fetched.

    What lies behind a URL is no adapter.
    """
    source = _source(config)
    if not _is_remote(source):
        located = _local(source)
        return "adapter" if located.is_adapter else "tokenizer" if located.is_tokenizer else "checkpoint"
    parts = source.partition("://")[2].split("/")
    return "tokenizer" if len(parts) > 2 and is_tokenizer_file(parts[-1]) else "checkpoint"


def fetch(config: ImportConfig, directory: Path, progress: Progress) -> Located | None:
    """Bring a source behind a URL into `directory`, if it is not there yet; None where it lies on this disk.

    Raises:
        InputError: it is refused, missing, damaged or not to be had, or holds pickles alone.
    """
    source = _source(config)
    if not _is_remote(source):
        return None
    if not source.startswith("hf://"):
        raise UsageError(f"{source} is not imported", hint="give hf://owner/name, a folder or a file")
    from llmctl.data.collect.fetch import Limits, Network, fetch_all

    limits = Limits(max_bytes=config.max_download_bytes, total_s=config.timeout_s)
    haul = fetch_all([source], directory, limits, Network(config.allow_private), progress, is_wanted)[source]
    files = {fetched.name: fetched.path for fetched in haul.files}
    if not files:
        raise InputError(
            f"{source} holds neither config.json nor safetensors",
            hint="a model kept as pickles alone is not imported: opening one would run the code in it",
        )
    alone = len(files) == 1 and haul.name in files
    name = source.partition("://")[2].partition("@")[0].rstrip("/").rpartition("/")[2]
    return Located(haul.name if alone else name, files, alone)


def locate(config: ImportConfig, fetched: Located | None) -> Located:
    """The files of the source.

    Raises:
        UsageError: there is no source.
        InputError: it is missing, or nothing of what is imported.
    """
    return fetched or _local(_source(config))


def _source(config: ImportConfig) -> str:
    if not config.sources:
        raise UsageError("import needs a source", hint="give a model's folder, hf://owner/name, or a .gguf file")
    return config.sources[0]


def _is_remote(source: str) -> bool:
    from llmctl.data.collect.fetch import is_remote

    return is_remote(source)


def _local(source: str) -> Located:
    path = Path(source).expanduser()
    with explained(source):
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
            files = {name: path / name for name in names if is_wanted(name)}
            if not any(name.endswith(".safetensors") for name in files):
                refuse_pickles_among(path, names)
            if not files:
                raise InputError(
                    f"{source} holds no model", hint="it must hold config.json and safetensors, or a tokenizer"
                )
            return Located(path.absolute().name, files, is_file=False)
        with open(path, "rb") as handle:
            refuse_pickle(path, handle.read(8))
    if path.suffix.lower() in ENDINGS:
        refuse_pickles_among(path.parent, [path.name])
    if path.suffix.lower() != GGUF and not is_tokenizer_file(path.name):
        raise InputError(
            f"{source} is neither a .gguf file nor a tokenizer",
            hint="give the folder that holds config.json and safetensors",
        )
    beside = {name: path.parent / name for name in BESIDE if path.suffix.lower() != GGUF}
    files = {name: file for name, file in beside.items() if file.is_file()}
    return Located(path.name, {path.name: path, **files}, is_file=True)
