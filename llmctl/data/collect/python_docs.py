"""The documentation of the running Python: its standard library and the installed distributions' descriptions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from llmctl.config.collect import CollectConfig
from llmctl.config.errors import InputError
from llmctl.data.collect.document import Document, Tally
from llmctl.store.manifest import sha256_of

NAME = "python-docs"
OP_VERSION = 1  # bump when the same interpreter would give other records
OWN_DISTRIBUTION = "llmctl"  # left out, so that editing our README does not change a corpus
HARVEST = Path(__file__).with_name("harvest.py")
HARVEST_TIMEOUT_S = 600
# A bare environment: nothing of the user's can show in a default value, and sets print in one order.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "TZ": "UTC"}

CLASSIFIERS = {
    "Academic Free License (AFL)": "AFL-3.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}


class PythonDocs:
    """The source `python-docs`. The standard library comes first, then distributions, each sorted by name."""

    name = NAME

    def fingerprint(self) -> str:
        """The digest of the interpreter's build and of the installed distributions' names and versions."""
        installed = [[name, found.version] for name, found in _distributions().items()]
        return sha256_of(
            {"op": OP_VERSION, "python": sys.version, "platform": sys.platform, "distributions": installed},
        )

    def pieces(self, tally: Tally, most: int) -> Iterator[PythonDocsPiece]:
        """All of it at once."""
        del tally, most
        yield PythonDocsPiece()

    def documents(self, tally: Tally) -> Iterator[Document]:
        """Modules, classes, functions and topics of the standard library, then distributions' descriptions."""
        yield from _standard_library(tally)
        for name, distribution in _distributions().items():
            if text := _description(distribution):
                yield Document(
                    id=f"{NAME}/dist/{name}",
                    text=text,
                    source=NAME,
                    url=f"pkg:pypi/{name}@{distribution.version}",
                    license=_license(distribution),
                )


@dataclass(frozen=True)
class PythonDocsPiece:
    """The whole documentation, for one worker."""

    size: int = 0  # not known before it is read

    def documents(self, config: CollectConfig, tally: Tally) -> Iterator[Document]:
        """As `PythonDocs.documents`."""
        del config
        yield from PythonDocs().documents(tally)


def _standard_library(tally: Tally) -> Iterator[Document]:
    for record in _harvest():
        if skipped := record.get("skipped"):
            tally.skipped["modules"] += len(skipped)
            tally.notes.append(f"{NAME}: {len(skipped)} modules cannot be imported here and are left out")
            continue
        yield Document(
            id=f"{NAME}/{record['name']}",
            text=record["text"],
            source=NAME,
            url=f"python:{record['name']}",
            license="PSF-2.0",
        )


def _harvest() -> list[dict[str, Any]]:
    """Run `harvest.py` in a process of its own, without site-packages; its records."""
    command = [sys.executable, "-P", "-S", "-X", "utf8", "-W", "ignore", str(HARVEST)]
    try:
        done = subprocess.run(
            command,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=HARVEST_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"cannot run {sys.executable}: {error}", hint="check the Python installation") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise InputError(
            f"reading the documentation of {sys.executable} failed with status {done.returncode}: {said[-1]}",
            hint="check the Python installation",
        )
    # Only \n ends a record: docstrings hold form feeds and other separators that splitlines() would cut at.
    return [json.loads(line) for line in done.stdout.decode().split("\n") if line]


def _distributions() -> dict[str, metadata.Distribution]:
    """Installed distributions by normalised name, sorted. The working directory is not searched."""
    here = {"", ".", str(Path.cwd())}
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions(path=[entry for entry in sys.path if entry not in here]):
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-").replace(".", "-")
        if name and name != OWN_DISTRIBUTION:
            found.setdefault(name, distribution)
    return dict(sorted(found.items()))


def _fields(distribution: metadata.Distribution) -> Message:
    """The metadata as the mail message that it is; its declared type lacks `get`."""
    return cast("Message", distribution.metadata)


def _description(distribution: metadata.Distribution) -> str:
    """Name, version, summary and long description; nothing where there is no long description."""
    fields = _fields(distribution)
    body = fields.get("Description") or fields.get_payload()
    if not isinstance(body, str) or body.strip() in {"", "UNKNOWN"}:
        return ""
    heading = f"{fields['Name']} {distribution.version}"
    return "\n\n".join(part for part in (heading, (fields.get("Summary") or "").strip(), body.strip()) if part)


def _license(distribution: metadata.Distribution) -> str:
    """The SPDX expression that the distribution states, by field or by classifier; "" where it states none."""
    stated = _fields(distribution).get("License-Expression")
    if stated:
        return str(stated)
    classifiers: list[str] = _fields(distribution).get_all("Classifier", [])
    names = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: OSI Approved :: ")]
    return " AND ".join(sorted({CLASSIFIERS[name] for name in names if name in CLASSIFIERS}))
