"""The README.md of an artifact: Hugging Face front matter, so that the directory opens without llmctl."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from llmctl.store.contents import Contents, splits
from llmctl.store.history import Ancestor
from llmctl.store.manifest import Manifest

# The Hub's own classes: https://huggingface.co/docs/hub/datasets-cards
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")  # ISO 639; a longer word is a programming language
LONGEST_LIST = 20  # languages or licences in a table; the rest is summed up
TOO_LONG_CONFIG = 4000  # characters


def render_card(
    manifest: Manifest, name: str, contents: Contents | None = None, ancestors: Sequence[Ancestor] = ()
) -> str:
    """Markdown for one artifact; `load_dataset(directory)` finds its Parquet parts through the front matter.

    Args:
        manifest: what the artifact is.
        name: what it is called.
        contents: languages and licences, where it holds documents.
        ancestors: the documents artifacts that led to it, oldest first.
    """
    lines = ["---", _yaml(_front(manifest, name, contents)).rstrip(), "---", "", f"# {name}", ""]
    lines += [f"A `{manifest.kind}` artifact made by `llmctl {manifest.producer.command}`.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in manifest.totals.items()), ""]
    if contents is not None:
        lines += _contents(contents)
        lines += _funnel(manifest)
        lines += _stages(manifest, name, ancestors)
    if manifest.inputs:
        lines += ["Made from:", ""]
        lines += [
            f"- {role}: `{entry.ref}` ({entry.kind}, `{entry.digest[:19]}…`)" for role, entry in manifest.inputs.items()
        ]
        lines.append("")
    if contents is not None:
        lines += _how(manifest)
    return "\n".join(lines)


def size_category(documents: int) -> str:
    """The Hub's class of a data set's size: `n<1K`, `1K<n<10K`, … `n>1T`."""
    for place, (limit, size) in enumerate(zip((10**power for power in range(3, 13)), SIZES, strict=True)):
        if documents < limit:
            return f"{SIZES[place - 1]}<n<{size}" if place else f"n<{size}"
    return f"n>{SIZES[-1]}"


def languages_of(contents: Contents) -> list[str]:
    """Language codes, sorted; `code` where there are programs."""
    found = {lang if LANGUAGE_CODE.fullmatch(lang) else "code" for lang in contents.languages if lang}
    return sorted(found)


def _front(manifest: Manifest, name: str, contents: Contents | None) -> dict[str, Any]:
    front: dict[str, Any] = {"license": [spdx.lower() for spdx in manifest.license] or ["unknown"]}
    if contents is not None:
        front["pretty_name"] = name
        front["size_categories"] = [size_category(contents.documents)]
        if languages := languages_of(contents):
            front["language"] = languages
    if configs := _dataset_configs(manifest):
        front["configs"] = configs
    if manifest.kind == "checkpoint":
        front["library_name"] = "transformers"
        front["pipeline_tag"] = "text-generation"
    return front


def _dataset_configs(manifest: Manifest) -> list[dict[str, Any]]:
    """`data_files` by split for Parquet parts; nothing for other kinds of files."""
    found = splits(manifest)
    if not found:
        return []
    files = [{"split": split, "path": [entry.path for entry in entries]} for split, entries in found.items()]
    return [{"config_name": "default", "data_files": files}]


def _contents(contents: Contents) -> Iterator[str]:
    """Documents by language and by licence."""
    yield from ("## Contents", "")
    for heading, counts in (("language", contents.languages), ("licence", contents.licenses)):
        yield from (f"| {heading} | documents | share |", "|---|---:|---:|")
        shown = list(counts.items())[:LONGEST_LIST]
        rest = contents.documents - sum(count for _, count in shown)
        more = [(f"{len(counts) - len(shown)} more", rest)] if rest else []
        for value, count in [*shown, *more]:
            yield f"| {_cell(value) or 'not stated'} | {count:,} | {count / max(1, contents.documents):.1%} |"
        yield ""


def _funnel(manifest: Manifest) -> Iterator[str]:
    """What was dropped, by reason; nothing where nothing was counted."""
    dropped = _dropped(manifest.totals)
    if not dropped:
        return
    rows = manifest.totals.get("segments", manifest.totals.get("in", 0))  # where documents were cut, their segments
    given = int(rows) or int(manifest.totals.get("documents", 0)) + sum(dropped.values())
    yield from ("## What was dropped", "", "| reason | documents | share of the input |", "|---|---:|---:|")
    for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0])):
        yield f"| {reason} | {count:,} | {count / max(1, given):.2%} |"
    yield f"| kept | {given - sum(dropped.values()):,} | {(given - sum(dropped.values())) / max(1, given):.2%} |"
    yield f"| in | {given:,} | |"
    yield ""


def _dropped(totals: Mapping[str, int | float | str]) -> dict[str, int]:
    return {
        key.removeprefix("dropped."): int(value)
        for key, value in totals.items()
        if key.startswith("dropped.") and not isinstance(value, str)
    }


def _stages(manifest: Manifest, name: str, ancestors: Sequence[Ancestor]) -> Iterator[str]:
    """The counts of every stage on the way."""
    yield from ("## How it was made", "")
    yield from ("| stage | artifact | documents | bytes | dropped |", "|---|---|---:|---:|---:|")
    for ref, one in [*((ancestor.ref, ancestor.manifest) for ancestor in ancestors), (name, manifest)]:
        documents, size = (_number(one.totals.get(key)) for key in ("documents", "bytes"))
        yield f"| {one.producer.command} | {ref} | {documents} | {size} | {sum(_dropped(one.totals).values()):,} |"
    yield ""


def _how(manifest: Manifest) -> Iterator[str]:
    """The command line and its whole configuration."""
    producer = manifest.producer
    if producer.argv:
        yield from ("```sh", f"llmctl {shlex.join(producer.argv)}", "```", "")
    config = _yaml(producer.config).rstrip() if producer.config else ""
    if config and len(config) <= TOO_LONG_CONFIG:
        yield from (f"Configuration of `{producer.command}` (llmctl {producer.llmctl}):", "")
        yield from ("```yaml", config, "```", "")


def _number(value: float | str | None) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value or "")


def _cell(text: str) -> str:
    """A value from the data as one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())[:80]


def _yaml(value: Any) -> str:
    out = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.dump(value, out)
    return out.getvalue()
