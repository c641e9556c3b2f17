"""Brings what `collect` names by URL onto this disk: http, https, s3, gs and hf.

hauls = fetch_all(["https://example.org/a.jsonl.gz", "s3://bucket/texts/"], store / "downloads", …)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from llmctl.config.errors import InputError
from llmctl.data.collect.fetch.address import SCHEME, parse_url
from llmctl.data.collect.fetch.client import Client
from llmctl.data.collect.fetch.downloads import Fetched, Slot
from llmctl.data.collect.fetch.meter import Meter
from llmctl.data.collect.fetch.network import Limits, Network
from llmctl.data.collect.fetch.web import fetch_page
from llmctl.pipeline.job import Progress

__all__ = ["Fetched", "Haul", "Limits", "Network", "fetch_all", "is_remote"]

OBJECT_STORES = ("s3", "gs", "hf")


@dataclass(frozen=True)
class Haul:
    """What one argument gave.

    Attributes:
        name: of the file, or of the folder that holds them all.
        files: verified, sorted by name.
        skipped: how many files of a folder or pattern were not wanted.
    """

    name: str
    files: tuple[Fetched, ...]
    skipped: int = 0


def is_remote(argument: str) -> bool:
    """Whether an argument names something to fetch (`scheme://…`) and no path."""
    scheme = SCHEME.match(argument)
    return scheme is not None and argument.startswith("//", scheme.end())


def fetch_all(
    urls: Iterable[str],
    directory: Path,
    limits: Limits,
    network: Network,
    progress: Progress,
    wanted: Callable[[str], bool] = lambda _: True,
) -> dict[str, Haul]:
    """Download everything that is not there yet, in the order given.

    Args:
        urls: as the user gave them; `#sha256=…` at the end pins a file's bytes.
        directory: where downloads are kept.
        limits: bounds of each download.
        network: the way to other machines.
        progress: where to report.
        wanted: whether a file of a folder or pattern is to be fetched, by its name.

    Returns:
        By URL, what it gave.

    Raises:
        InputError: for the first URL that is refused, missing, damaged or not to be had. What others gave is kept,
            and so is the beginning of a broken download: the same call goes on there.
    """
    fetcher = _Fetcher(directory, limits, network, Meter(progress), wanted)
    return {url: fetcher.fetch(url) for url in dict.fromkeys(urls)}


class _Fetcher:
    def __init__(
        self, directory: Path, limits: Limits, network: Network, meter: Meter, wanted: Callable[[str], bool]
    ) -> None:
        self.directory, self.limits, self.network, self.meter, self.wanted = directory, limits, network, meter, wanted
        self._client = Client(limits, network)

    def fetch(self, address: str) -> Haul:
        """One argument."""
        scheme = address.partition("://")[0].lower()
        if scheme in OBJECT_STORES:
            return self._from_store(address)
        if scheme not in ("http", "https"):
            raise InputError(
                f"{scheme}:// is not fetched", hint="known: https, http, s3, gs, hf; give local files by their path"
            )
        url = parse_url(address)
        slot = Slot(self.directory, str(url))
        with slot.held(self.limits.total_s):
            record = fetch_page(url, slot, self._client, self.meter)
        self.meter.done()
        return Haul(record.name, (slot.fetched(record, record.name),))

    def _from_store(self, address: str) -> Haul:
        from llmctl.data.collect.fetch.object_stores import open_store, split_address
        from llmctl.data.collect.fetch.objects import fetch_objects, listed, split_digest

        plain, digest = split_digest(address)
        scheme, path = split_address(plain)
        store = open_store(scheme, self.network, self.limits)
        name, entries = listed(store, path, plain, self.limits)
        if digest and len(entries) > 1:
            raise InputError(f"{plain} stands for {len(entries)} files", hint="#sha256=… is for one file")
        alone = len(entries) == 1 and entries[0].name == name
        chosen = entries if alone else [entry for entry in entries if self.wanted(entry.name)]
        files = fetch_objects(store, scheme, chosen, digest, self.directory, self.limits, self.meter)
        return Haul(name, tuple(files), len(entries) - len(chosen))
