"""Many clients at one time, a small run of what bench/serve_stress.py does at full size."""

import asyncio
from pathlib import Path

from tests.serve.conftest import MODEL, ROOMY, Start
from tests.serve.load import Mixed, client, disconnects, idle, twins


def test_a_crowd_gets_right_answers_and_leaves_nothing_behind(start: Start, roomy: Path) -> None:
    async def crowd(url: str) -> Mixed:
        async with client(url) as http:
            mixed = Mixed(http, MODEL, ROOMY, seed=1)
            await mixed.learn(12)
            await mixed.run(requests=90, clients=24)
            return mixed

    with start(roomy) as server:
        mixed = asyncio.run(crowd(server.url))
        assert mixed.counted.wrong == []
        assert mixed.unequal() == []
        assert len(mixed.counted.health) > 3
        assert server.engine.cache_usage == 0
        assert server.service._in_flight == 0
        assert not server.service.live


def test_clients_that_leave_at_any_point_free_their_place(start: Start, roomy: Path) -> None:
    async def leave(url: str) -> list[float]:
        async with client(url) as http:
            return await disconnects(http, MODEL, ROOMY, count=25, seed=2)

    with start(roomy) as server:
        assert len(asyncio.run(leave(server.url))) == 25
        assert server.engine.cache_usage == 0
        assert not server.service.live


def test_streams_are_what_whole_answers_are(start: Start) -> None:
    async def both(url: str) -> tuple[list[str], int]:
        async with client(url) as http:
            found = await twins(http, MODEL, count=40, clients=4, seed=3)
            await idle(http)
            return found

    with start() as server:
        faults, odd = asyncio.run(both(server.url))
        assert faults == []
        assert odd > 20
