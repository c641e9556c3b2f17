"""Servers on loopback, and a fetch into a folder of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.collect.fetch import Haul, Limits, Network, fetch_all
from llmctl.pipeline.job import Silent
from tests.data.fetch import servers

QUICK = Limits(idle_s=5, total_s=60, attempts=3, max_bytes=1 << 26)


@pytest.fixture
def site() -> Iterator[servers.Site]:
    with servers.site() as running:
        yield running


@pytest.fixture
def canary() -> Iterator[servers.Canary]:
    running = servers.Canary()
    yield running
    running.close()


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., Haul]:
    """Fetch one URL into `tmp_path/downloads`; private addresses are allowed unless a network is given."""

    def run(url: str, limits: Limits = QUICK, network: Network | None = None, **options: Any) -> Haul:
        way = network or Network(allow_private=True)
        return fetch_all([url], tmp_path / "downloads", limits, way, Silent(), **options)[url]

    return run
