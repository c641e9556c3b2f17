"""The README.md of an artifact: Hugging Face front matter, so that the directory opens without llmctl."""

from __future__ import annotations

import io
from collections import defaultdict
from typing import Any

from ruamel.yaml import YAML

from llmctl.store.manifest import Manifest


def render_card(manifest: Manifest, name: str) -> str:
    """Markdown for one artifact; `load_dataset(directory)` finds its Parquet parts through the front matter."""
    front: dict[str, Any] = {"license": [spdx.lower() for spdx in manifest.license] or ["unknown"]}
    if configs := _dataset_configs(manifest):
        front["configs"] = configs
    if manifest.kind == "checkpoint":
        front["library_name"] = "transformers"
        front["pipeline_tag"] = "text-generation"
    lines = ["---", _yaml(front).rstrip(), "---", "", f"# {name}", ""]
    lines += [f"A `{manifest.kind}` artifact made by `llmctl {manifest.producer.command}`.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in manifest.totals.items()), ""]
    if manifest.inputs:
        lines += ["Made from:", ""]
        lines += [
            f"- {role}: `{entry.ref}` ({entry.kind}, `{entry.digest[:19]}…`)" for role, entry in manifest.inputs.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _dataset_configs(manifest: Manifest) -> list[dict[str, Any]]:
    """`data_files` by split for Parquet parts; nothing for other kinds of files."""
    by_split: dict[str, list[str]] = defaultdict(list)
    for entry in manifest.files:
        if entry.path.startswith(("data/part-", "data/heldout-")) and entry.path.endswith(".parquet"):
            by_split[entry.split or "train"].append(entry.path)
    if not by_split:
        return []
    return [{"config_name": "default", "data_files": [{"split": s, "path": p} for s, p in sorted(by_split.items())]}]


def _yaml(value: Any) -> str:
    out = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.dump(value, out)
    return out.getvalue()
