"""A judge behind a real server on loopback: what it gives, and what is missing where it gives nothing."""

import threading
import time
from http.server import ThreadingHTTPServer

import numpy as np
import pytest

from llmctl.config.base import semantic_values
from llmctl.config.errors import ConfigError, InputError, UsageError
from llmctl.config.grpo import GrpoConfig
from llmctl.config.load import build
from llmctl.config.rewards import JudgeReward
from llmctl.inference import remote
from llmctl.objectives.rewards.endpoint import told
from llmctl.objectives.rewards.registry import Rewards
from llmctl.objectives.rewards.rules import Sample
from tests.answering import Answering

SAYS = {
    "good": "Let me see. Score: 3 at first, but no.\nScore: **8**",
    "bad": "score = 0.5",
    "silent": "I would rather not.",
    "beyond": "Score: 11",
    "empty": "",
}


class Server(ThreadingHTTPServer):
    """Speaks OpenAI's API: it judges by the last line of what it is asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.keys, self.busy, self.leaves = [], set(), 0, False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(Answering):
    def get(self):
        self.server.keys.add(self.headers.get("Authorization"))
        self.say(200, {"data": [{"id": "small"}, {"id": "large"}]})

    def post(self, body):
        if self.server.leaves:
            return
        self.server.bodies.append(body)
        self.server.keys.add(self.headers.get("Authorization"))
        said = body["messages"][0]["content"].rpartition("\n")[2]
        if said == "busy" and self.server.busy < 2:
            self.server.busy += 1
            self.say(503, {"error": {"message": "later"}})
        elif said == "refused":
            self.say(400, {"error": {"message": "too long\nfor me"}})
        elif said == "odd":
            self.say(200, {"choices": []})
        elif said == "slow":
            time.sleep(2)
        else:
            self.say(200, {"choices": [{"message": {"content": SAYS.get(said, SAYS["good"])}}]})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "WAIT_S", 0.01)
    with Server() as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield serving
        serving.shutdown()


def judging(server, **fields):
    given = {"kind": "judge", "url": server.url, "template": "Grade\n{completion}", **fields}
    return Rewards(GrpoConfig.model_validate({"rewards": [given]}).rewards, 20.0)


def test_scores_become_values_and_what_is_none_is_missing(server):
    said = ["good", "bad", "silent", "beyond", "empty", "busy", "refused", "odd", "slow"]
    with judging(server, timeout_s=0.3) as rewards:
        rewards.check()
        judged = rewards.judge([Sample("q", text) for text in said])
    assert [one.value for one in judged] == pytest.approx([0.8, 0.05, *[np.nan] * 3, 0.8, *[np.nan] * 3], nan_ok=True)
    assert [one.missing for one in judged][2:] == [
        "judge: ValueError: no score in 'I would rather not.'",
        "judge: the score 11 is not from 0 to 10",
        "judge: the judge said nothing",
        "",
        "judge: server_error: HTTP 400: too long for me",
        "judge: the server's answer is none of a chat",
        "judge: server_error: TimeoutError: timed out",
    ]
    assert {body["model"] for body in server.bodies} == {"small"}
    assert {body["temperature"] for body in server.bodies} == {0}


def test_a_key_comes_from_the_environment_and_stays_there(server, monkeypatch):
    with judging(server, key_variable="JUDGE_KEY") as rewards:
        with pytest.raises(UsageError, match=r"reward judge: \$JUDGE_KEY is not set"):
            rewards.check()
        monkeypatch.setenv("JUDGE_KEY", "s3cret")
        rewards.check()
        (judged,) = rewards.judge([Sample("q", "good")])
    assert judged.value == pytest.approx(0.8)
    assert server.keys == {"Bearer s3cret"}
    assert "s3cret" not in rewards.configs[0].model_dump_json()


def test_a_judge_that_is_not_there_is_told_at_once(server):
    with judging(server, model="huge") as rewards, pytest.raises(InputError, match="has no model 'huge'"):
        rewards.check()
    with judging(server, url="http://127.0.0.1:9/v1") as rewards:
        with pytest.raises(InputError, match="reward judge: http://127.0.0.1:9/v1: server_error: ConnectionRefused"):
            rewards.check()
        (judged,) = rewards.judge([Sample("q", "good")])  # and in the middle of a run it is no zero
    assert np.isnan(judged.value)
    assert judged.parts == {"judge": None}
    assert "ConnectionRefused" in judged.missing


def test_a_judge_that_leaves_is_missing_and_may_come_back(server):
    with judging(server) as rewards:
        rewards.check()
        judged = []
        for server.leaves in (False, True, False):
            judged += rewards.judge([Sample("q", "good")])
    assert [one.value for one in judged] == pytest.approx([0.8, np.nan, 0.8], nan_ok=True)
    assert "RemoteDisconnected" in judged[1].missing


def test_how_a_judge_is_asked_is_no_part_of_what_is_judged(server):
    def key(**fields):
        return semantic_values(
            GrpoConfig.model_validate({"rewards": ["exact", {"kind": "judge", "url": server.url, **fields}]})
        )

    assert key(at_once=1, timeout_s=5) == key()
    assert key(max_tokens=9) != key()
    assert key()["rewards"][0] == {"kind": "exact", "weight": 1.0, "ignore_case": False}


def test_the_judge_is_told_of_everything_once():
    """What stands in an answer is not filled in again."""
    config = JudgeReward(
        url="http://x", template="{low}-{high} {rubric}|{prompt}|{answer}|{hint}|{completion}|{}", rubric="r"
    )
    sample = Sample("p {answer}", "c {prompt} {no}", None, fields={"hint": 3})
    assert told(config, sample) == "0-10 r|p {answer}|(not known)|3|c {prompt} {no}|{}"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, "url"),
        ({"url": "http://x", "pattern": "Score"}, "needs a group"),
        ({"url": "http://x", "pattern": "("}, "no regular expression"),
        ({"url": "http://x", "scale": [5, 5]}, "must be below the best"),
        ({"url": "http://x", "template": "Grade it."}, "must hold {completion}"),
    ],
)
def test_faults_are_told_before_any_work(fields, fault):
    with pytest.raises(ConfigError, match=fault):
        build(GrpoConfig, [{"rewards": [{"kind": "judge", **fields}]}])
