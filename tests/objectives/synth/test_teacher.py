"""A teacher behind a server: what it says is what the engine says, and what becomes of a run whose server fails."""

import threading
from http.server import ThreadingHTTPServer

import pytest

from llmctl.config.errors import GateError, InputError, InterruptedRunError
from llmctl.objectives.synth.teacher import sources
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from tests.answering import Answering
from tests.serve.conftest import MODEL, start  # noqa: F401 (a fixture)

from .conftest import ALL, synth, table


def served(url, **fields):
    return synth(server={"url": f"{url}/v1"}, **fields)


def test_a_server_teaches_what_the_engine_does(stages, teacher, prompts, start):  # noqa: F811
    here = stages("synth", synth(temperature=0), input=teacher, prompts=prompts)
    with start(teacher.data) as server:
        config = served(server.url, temperature=0, price={"asked": 2.0, "answered": 10.0})
        there = stages("synth", config, prompts=prompts)
        draws = served(server.url, temperature=1.5, samples=3, running=2)
        drawn = [stages("synth", one, prompts=prompts) for one in (draws, draws.model_copy(update={"running": 7}))]
    assert table(there) == table(here)
    assert there.name == f"{MODEL}.synth"
    assert there.manifest.inputs["server"].kind == "source"
    totals, own = there.manifest.totals, here.manifest.totals
    assert {name: totals[name] for name in ("requests", "asked_tokens")} == {
        name: own[name] for name in ("requests", "asked_tokens")
    }
    spent = 2.0 * totals["asked_tokens"] + 10.0 * totals["generated_tokens"]
    assert totals["cost"] == pytest.approx(spent / 1e6)
    assert drawn[0].digest == drawn[1].digest  # how many are asked at a time is of no account
    assert drawn[0].manifest.totals["answers"] == 75


class Scripted(Answering):
    """Lists a model, and answers with what its server's `answers` gives for the number of the question."""

    def get(self):
        self.say(200, {"data": [{"id": "big-model", "created": self.server.asked}]})

    def post(self, body):
        with self.server.lock:
            self.server.asked += 1
        question = body["messages"][-1]["content"]
        self.say(*self.server.answers(self.server.asked, question))


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr("llmctl.inference.remote.WAIT_S", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.asked, server.lock = 0, threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def right(question, reason="stop"):
    a, b = question.split()
    return 200, {"choices": [{"message": {"content": f"{b} {a}."}, "finish_reason": reason}], "usage": {}}


def test_a_run_whose_server_dies_goes_on_where_it_was(stages, prompts, scripted):
    scripted.answers = lambda asked, question: right(question) if asked <= 16 else (503, {"error": {"message": "no"}})
    call = Call(stage_named("synth"), served(scripted.url, running=1), {"prompts": prompts})
    with pytest.raises(InterruptedRunError, match="HTTP 503: no") as raised:
        execute(call, stages.store, Silent())
    assert (raised.value.exit_code, "the same command goes on" in raised.value.hint) == (75, True)
    scripted.answers = lambda asked, question: right(question)
    before = scripted.asked
    made = execute(call, stages.store, Silent()).artifact
    assert scripted.asked - before == len(ALL) - 16
    assert [row["messages"][-1]["content"] for row in table(made)] == [f"{b} {a}." for a, b in ALL]


def test_what_a_server_refuses_or_garbles_is_counted(stages, prompts, scripted):
    def answers(asked, question):
        if question == "zero one":
            return 400, {"error": {"message": "too long"}}
        if question == "zero two":
            return 200, {"choices": []}
        return right(question, "length" if question == "zero three" else "stop")

    scripted.answers = answers
    totals = stages("synth", served(scripted.url, limit=6), prompts=prompts).manifest.totals
    assert (totals["chats"], totals["dropped.refused"], totals["dropped.cut"]) == (3, 2, 1)
    scripted.answers = lambda asked, question: (400, {"error": {"message": "too long"}})
    with pytest.raises(GateError, match="none of 25 answers passes: 25 refused") as raised:
        stages("synth", served(scripted.url, seed=3), prompts=prompts)
    assert "HTTP 400: too long" in raised.value.hint
    scripted.answers = lambda asked, question: (401, {"error": {"message": "who?"}})
    with pytest.raises(InputError, match="HTTP 401: who"):
        stages("synth", served(scripted.url, seed=4), prompts=prompts)


def test_a_server_gives_its_models_name_and_digest():
    config = synth(server={"url": "http://127.0.0.1:9/v1"})
    name, digests = sources(config, {"id": "Big/Model"})
    assert name == "big-model.synth"
    assert digests == sources(config, {"id": "Big/Model"})[1] != sources(config, {"id": "Other"})[1]


def test_a_judge_hears_the_answers_of_many_prompts_at_a_time(stages, teacher, prompts, scripted):
    both = threading.Event()

    def verdict(asked, told):
        if asked > 1:
            both.set()
        assert both.wait(20)  # the first has its verdict once the second has been asked for
        wanted, _, said = told.partition("\n")
        return 200, {"choices": [{"message": {"content": f"Score: {10 * (said == wanted)}"}}]}

    scripted.answers = verdict
    judge = {"kind": "judge", "url": f"{scripted.url}/v1", "template": "{answer}\n{completion}", "at_once": 2}
    judged, exact = (
        stages("synth", synth(rewards=rewards, temperature=1.5), input=teacher, prompts=prompts)
        for rewards in ([judge], "exact")
    )
    assert table(judged) == table(exact)
    assert 0 < len(table(judged)) < len(ALL)
