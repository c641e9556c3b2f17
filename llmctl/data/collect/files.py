"""Documents from files, folders and glob patterns."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.config.errors import InputError
from llmctl.data.collect.document import Document, Tally
from llmctl.data.collect.fetch import Haul
from llmctl.data.lines import plain_suffix, read_objects, read_text
from llmctl.data.tables import read_parquet
from llmctl.store.files import explained, sha256_file
from llmctl.store.layout import STORE_FILE
from llmctl.store.manifest import sha256_of

PROSE = {".txt", ".text", ".md", ".markdown", ".rst", ".html", ".htm"}
JSON_LINES = {".jsonl", ".ndjson"}
CODE = {
    ".py": "python", ".pyi": "python", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp",
    ".hpp": "cpp", ".cu": "cuda", ".cs": "csharp", ".css": "css", ".go": "go", ".hs": "haskell", ".java": "java",
    ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript", ".jl": "julia", ".kt": "kotlin",
    ".lua": "lua", ".ml": "ocaml", ".php": "php", ".pl": "perl", ".r": "r", ".rb": "ruby", ".rs": "rust",
    ".scala": "scala", ".sh": "shell", ".bash": "shell", ".sql": "sql", ".swift": "swift", ".ts": "typescript",
    ".tsx": "typescript", ".zig": "zig",
}  # fmt: skip
KNOWN = "text (.txt .md .rst .html), .jsonl, .parquet or code, plain or as .gz or .zst"
TEXT_COLUMNS = ("text", "content")
ROW_COLUMNS = (*TEXT_COLUMNS, "id", "url", "source", "license")


def is_known(path: Path) -> bool:
    """Whether the name's ending is one that `collect` reads. Compressed Parquet is not."""
    suffix = plain_suffix(path)
    return suffix in PROSE or suffix in JSON_LINES or suffix in CODE or path.suffix.lower() == ".parquet"


def safe_name(text: str) -> str:
    """`text` as an artifact's name: letters, digits, `.`, `_`, `-`; never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "documents"


def stem(path: Path) -> str:
    """The file's name without its endings (`crawl.jsonl.gz` gives `crawl`)."""
    name = path.name
    while (suffix := Path(name).suffix.lower()) and (suffix in {".gz", ".zst", ".parquet"} or is_known(Path(name))):
        name = name[: -len(suffix)]
    return name


@dataclass(frozen=True)
class FileSource:
    """Files under one base.

    Attributes:
        name: what documents without a source of their own carry.
        members: (path, name of the file within the source), sorted by that name.
        skipped: how much was left out, by reason: files of unknown format, and artifact stores.
        max_document_bytes: longer documents are dropped.
        license: for documents that name none.
        origins: by the name of a fetched file, (its URL, its time), for documents that name none.
    """

    name: str
    members: tuple[tuple[Path, str], ...]
    skipped: Mapping[str, int]
    max_document_bytes: int
    license: str
    origins: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """The digest of the source's name and of its files' names and bytes; folder location plays no part.

        URL and time of fetched files do, since documents carry them.
        """
        files = []
        for path, name in self.members:
            with explained(str(path)):
                files.append([name, sha256_file(path)])
        origins = {"origins": {name: list(origin) for name, origin in self.origins.items()}} if self.origins else {}
        return sha256_of({"name": self.name, "files": files, **origins})

    def documents(self, tally: Tally) -> Iterator[Document]:
        """File by file; rows of one file in its order."""
        tally.skipped.update(self.skipped)
        for path, name in self.members:
            if plain_suffix(path) in JSON_LINES:
                yield from self._rows(path, name, "line", read_objects(path))
            elif path.suffix.lower() == ".parquet":
                yield from self._rows(path, name, "row", _parquet_rows(path))
            else:
                text = read_text(path, self.max_document_bytes)
                if text is None:
                    tally.dropped["too_large"] += 1
                    continue
                url, time = self.origins.get(name, ("", ""))
                yield Document(name, text, self.name, url, self.license, CODE.get(plain_suffix(path), ""), time)

    def _rows(self, path: Path, name: str, unit: str, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Document]:
        origin_url, time = self.origins.get(name, ("", ""))
        for number, row in rows:
            where = f"{path} {unit} {number}"
            text = next((row[column] for column in TEXT_COLUMNS if row.get(column) is not None), None)
            if text is None:
                raise InputError(f"{where}: no text", hint="each row needs a string `text` (or `content`)")
            row_id = row.get("id")
            yield Document(
                id=f"{name}:{number}" if row_id in (None, "") else _string(str(row_id), "id", where),
                text=_string(text, "text", where),
                source=_string(row.get("source") or self.name, "source", where),
                url=_string(row.get("url") or origin_url, "url", where),
                license=_string(row.get("license") or self.license, "license", where),
                time=time,
            )


def _string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"{where}: {column} must be a string, got {type(value).__name__}", hint="mend the row or leave it out"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {column} holds a lone surrogate at character {error.start}", hint="it is no valid Unicode text"
        ) from error
    return value


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in read_parquet(path):
        names = [name for name in batch.schema.names if name in ROW_COLUMNS]
        if not set(names) & set(TEXT_COLUMNS):
            raise InputError(f"{path} has no column 'text'", hint=f"it has: {', '.join(batch.schema.names)}")
        for row in batch.select(names).to_pylist():
            number += 1
            yield number, row


def open_source(argument: str, max_document_bytes: int, license_id: str) -> FileSource:
    """The source that a file, folder or glob pattern stands for. Contents are not read yet.

    Raises:
        InputError: where nothing is there, a folder cannot be listed, or a named file's format is not known.
    """
    path = Path(argument).expanduser()
    with explained(argument):
        exists = path.exists()
    if not exists and glob.has_magic(argument):
        found, skipped = _matches(path)
        base = _static_base(path)
        if not found:
            raise InputError(f"no readable file matches {argument}", hint=f"known formats: {KNOWN}")
        name = base.resolve().name
        members = [(match, match.relative_to(base).as_posix()) for match in found]
    elif not exists:
        raise InputError(f"{argument} does not exist", hint="check the path, or write python-docs")
    elif path.is_dir():
        name = path.resolve().name
        found, skipped = _walk(path)
        members = [(member, member.relative_to(path).as_posix()) for member in found]
    else:
        if not is_known(path):
            raise InputError(f"{argument}: unknown format {path.suffix!r}", hint=f"known: {KNOWN}")
        name, members, skipped = stem(path), [(path, path.name)], Counter()
    members.sort(key=lambda member: member[1])
    return FileSource(safe_name(name), tuple(members), skipped, max_document_bytes, license_id)


def open_haul(argument: str, haul: Haul, max_document_bytes: int, license_id: str) -> FileSource:
    """The source that fetched files make.

    Raises:
        InputError: where none of them has a known format.
    """
    known = [file for file in haul.files if is_known(file.path)]
    if not known:
        names = ", ".join(file.name for file in haul.files[:3]) or "nothing of a known format"
        raise InputError(f"{argument} gave {names}, which is not read", hint=f"known: {KNOWN}")
    return FileSource(
        name=safe_name(stem(Path(haul.name)) if len(known) == 1 else haul.name),
        members=tuple((file.path, file.name) for file in known),
        skipped=Counter({"unknown_format": haul.skipped} if haul.skipped else {}),
        max_document_bytes=max_document_bytes,
        license=license_id,
        origins={file.name: (file.url, file.time) for file in known},
    )


def _walk(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Files of known formats below `folder`, and counts of what is left out.

    Hidden names and folder links are left out uncounted; a store is left out whole, as it holds what was made
    from such files.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    skipped: Counter[str] = Counter()
    with explained(str(folder)):
        for directory, folders, names in os.walk(folder, onerror=fail):
            if STORE_FILE in names:
                skipped["store"] += 1
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [Path(directory, name) for name in names if not name.startswith(".")]
            _sort_out([path for path in paths if path.is_file()], found, skipped)
    return found, skipped


def _matches(pattern: Path) -> tuple[list[Path], Counter[str]]:
    found: list[Path] = []
    skipped: Counter[str] = Counter()
    matches = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    paths = [Path(match) for match in matches]
    _sort_out([path for path in paths if path.is_file()], found, skipped)
    return found, skipped


def _sort_out(paths: list[Path], found: list[Path], skipped: Counter[str]) -> None:
    for path in paths:
        if is_known(path):
            found.append(path)
        else:
            skipped["unknown_format"] += 1


def _static_base(pattern: Path) -> Path:
    """The folder above the first part of a pattern that has a wildcard."""
    base = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        base /= part
    return base
