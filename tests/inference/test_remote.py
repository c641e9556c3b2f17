"""Connections to a server on loopback: kept between requests, made anew where the server closed them."""

from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer

import pytest

from llmctl.config.grpo import GrpoConfig
from llmctl.config.servers import ServerConfig
from llmctl.inference import remote
from llmctl.inference.remote import Connection, fetch, signed, sources
from llmctl.pipeline.job import Silent
from tests.answering import Answering


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.opened, self.closes, self.card = 0, False, {"id": "m", "created": 1, "context": 64}

    @property
    def config(self):
        return ServerConfig(url=f"http://127.0.0.1:{self.server_port}/v1")


class Handler(Answering):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.opened += 1

    def get(self):
        self.say(200, {"data": [self.server.card]})

    def post(self, body):
        self.say(200, {"twice": 2 * body["number"]})
        self.close_connection = self.server.closes  # without a word, as servers do that tire of waiting


@pytest.fixture
def server():
    with Server() as made, ThreadPoolExecutor(1) as thread:
        thread.submit(made.serve_forever)
        yield made
        made.shutdown()


def asked(connection, number):
    return connection.ask("/double", {"number": number})["twice"]


def test_one_connection_carries_many_requests(server):
    with Connection.of(server.config) as connection:
        assert [asked(connection, number) for number in range(20)] == [2 * number for number in range(20)]
        assert server.opened == 1
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda number: asked(connection, number), range(200)))
        assert found == [2 * number for number in range(200)]
        assert server.opened <= 4
    assert asked(connection, 1) == 2  # it may be asked again


def test_what_the_server_closed_meanwhile_is_opened_anew(server):
    server.closes = True
    with Connection.of(server.config) as connection:
        assert [asked(connection, number) for number in range(5)] == [0, 2, 4, 6, 8]
    assert server.opened == 5


def test_what_lay_idle_for_long_is_not_trusted(server, monkeypatch):
    monkeypatch.setattr(remote, "KEPT_S", 0.0)
    with Connection.of(server.config) as connection:
        assert [asked(connection, number) for number in range(3)] == [0, 2, 4]
    assert server.opened == 3


def test_a_stage_is_another_where_the_server_has_another_model(server):
    config = GrpoConfig(server={"url": server.config.url})
    card = fetch(config, None, Silent())
    assert card == {"id": "m", "context": 64}
    _, digests = sources(config, card)
    assert digests == sources(config, fetch(config, None, Silent()))[1]
    server.card = {**server.card, "created": 2}  # it was started again
    assert digests == sources(config, fetch(config, None, Silent()))[1]
    server.card = {**server.card, "context": 128}
    assert digests != sources(config, fetch(config, None, Silent()))[1]
    assert fetch(GrpoConfig(), None, Silent()) is None
    assert sources(GrpoConfig(), None) == ("", {})


def test_seeds_are_signed_as_their_bits_are():
    assert [signed(seed) for seed in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 2**63 - 1, -(2**63), -1]
