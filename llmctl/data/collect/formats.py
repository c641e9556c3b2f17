"""What a file's name, or its first line, says of its format."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from llmctl.data.lines import COMPRESSED

PROSE = {".txt", ".text", ".md", ".markdown", ".rst", ".html", ".htm", ".xhtml"}
CODE = {
    ".py": "python", ".pyi": "python", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp",
    ".hpp": "cpp", ".hh": "cpp", ".cu": "cuda", ".cs": "csharp", ".css": "css", ".go": "go", ".hs": "haskell",
    ".java": "java", ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript", ".jl": "julia", ".kt": "kotlin",
    ".lua": "lua", ".ml": "ocaml", ".php": "php", ".pl": "perl", ".pm": "perl", ".r": "r", ".rb": "ruby",
    ".rs": "rust", ".scala": "scala", ".sh": "shell", ".bash": "shell", ".sql": "sql", ".swift": "swift",
    ".ts": "typescript", ".tsx": "typescript", ".zig": "zig", ".ex": "elixir", ".exs": "elixir", ".erl": "erlang",
    ".clj": "clojure", ".dart": "dart", ".f90": "fortran", ".f": "fortran", ".nim": "nim",
    ".ps1": "powershell", ".proto": "protobuf", ".tcl": "tcl", ".vhd": "vhdl", ".el": "emacs-lisp",
}  # fmt: skip
BY_NAME = {
    "makefile": "make", "gnumakefile": "make", "dockerfile": "dockerfile", "rakefile": "ruby", "gemfile": "ruby",
    "cmakelists.txt": "cmake",
}  # fmt: skip
INTERPRETERS = {
    "sh": "shell", "bash": "shell", "dash": "shell", "ksh": "shell", "zsh": "shell", "python": "python",
    "perl": "perl", "ruby": "ruby", "node": "javascript", "php": "php", "lua": "lua", "tclsh": "tcl",
    "rscript": "r", "julia": "julia", "awk": "awk", "gawk": "awk",
}  # fmt: skip
SHEBANG = re.compile(rb"#!\s*(?:\S*/env\s+(?:-\S+\s+|\w+=\S*\s+)*)?(?:\S*/)?([A-Za-z]+)[\d.]*(?:\s|$)")

# Endings of what holds several records, by the reader that takes them.
RECORDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".xml": "mediawiki",
    ".warc": "warc", ".wet": "warc", ".arc": "arc", ".tar": "tar", ".zip": "zip",
}  # fmt: skip
SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".tbz": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
SEEKING = {"parquet", "zip"}  # readers that need the end of the file first: these are never compressed again
KNOWN = (
    "text (.txt .md .rst .html), .jsonl, .csv, .parquet, code, .warc, .arc, .wet, MediaWiki's .xml, "
    "as they are or as .gz .zst .bz2 .xz; .tar and .zip of them; git repositories"
)


def full_name(name: str) -> str:
    """The last part of a path in lower case, with `.tgz` and its like written out."""
    base = PurePosixPath(name).name.lower()
    for short, long in SHORT.items():
        if base.endswith(short):
            return base[: -len(short)] + long
    return base


def compression(name: str) -> str:
    """`.gz`, `.zst`, `.bz2`, `.xz` or ""."""
    ending = PurePosixPath(full_name(name)).suffix
    return ending if ending in COMPRESSED else ""


def plain_name(name: str) -> str:
    """The name without its compression, in lower case."""
    return full_name(name).removesuffix(compression(name))


def format_of(name: str) -> str:
    """`text`, a value of `RECORDS`, `script` for a name without an ending, or "" where it is not known.

    A script is text if its first line says so, and not known otherwise.
    """
    plain = plain_name(name)
    suffix = PurePosixPath(plain).suffix
    if plain in BY_NAME or suffix in PROSE or suffix in CODE:
        return "text"
    found = RECORDS.get(suffix, "")
    if found in SEEKING and compression(name):
        return ""
    return found or ("" if suffix or compression(name) or "." in plain else "script")


def language_of(name: str) -> str:
    """The programming language that a name tells, or ""."""
    plain = plain_name(name)
    return BY_NAME.get(plain) or CODE.get(PurePosixPath(plain).suffix, "")


def language_of_script(content: bytes) -> str:
    """The language of a `#!` line, or ""."""
    found = SHEBANG.match(content[:256])
    return INTERPRETERS.get(found[1].decode().lower(), "") if found else ""


def stem(name: str) -> str:
    """The name without its known endings (`crawl.jsonl.gz` gives `crawl`)."""
    base = PurePosixPath(name).name
    for short in SHORT:
        if base.lower().endswith(short):
            return base[: -len(short)]
    base = base[: len(base) - len(compression(base))]
    suffix = PurePosixPath(base).suffix
    known = suffix.lower() in RECORDS or suffix.lower() in PROSE or suffix.lower() in CODE
    return base[: -len(suffix)] if known and suffix else base


def safe_name(text: str) -> str:
    """`text` as an artifact's name: letters, digits, `.`, `_`, `-`, a letter or digit first; never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("-._")[:100].rstrip("-.") or "documents"
