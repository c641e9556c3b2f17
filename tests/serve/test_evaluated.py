"""What eval asks a server is answered as it is in this process."""

import pytest

from llmctl.config.servers import ServerConfig
from llmctl.config.tasks import GenerationConfig
from llmctl.evals.local import LocalModel
from llmctl.evals.remote import RemoteModel
from llmctl.evals.requests import Ending, Generation, Likelihood, Likely, Prompt, Written
from llmctl.inference.remote import card_of
from tests.evals.tiny import text
from tests.serve.conftest import MODEL, Running

DRAWS = GenerationConfig.model_validate({"until": [" the"], "max_gen_toks": 12})
REQUESTS = [
    *(Likelihood(Prompt(text(n, 6)[:-1] + " " * (n % 2)), f" {text(n + 50, 3)}") for n in range(6)),
    Likelihood(Prompt(), f" {text(9, 3)}"),  # behind the begin token alone
    Generation(Prompt(text(3, 8)[:-1]), DRAWS),
    Generation(Prompt(chat=(("user", text(4, 5)),)), DRAWS),
]


def test_a_server_gives_what_the_engine_gives(server: Running) -> None:
    config = ServerConfig(url=f"{server.url}/v1", name=MODEL)
    there = RemoteModel(config, card_of(config), 2).answer(REQUESTS)
    here = LocalModel(server.engine, "", batch_tokens=512, truncate=False).answer(REQUESTS)
    for one, other in zip(there, here, strict=True):
        if isinstance(other, Likely):
            assert isinstance(one, Likely)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert (one.is_greedy, len(one.tokens)) == (other.is_greedy, len(other.tokens))
        else:
            assert isinstance(one, Written)
            assert one == other


def test_a_text_that_its_budget_cuts_gets_its_cue_where_the_server_lets_a_text_go_on(server: Running) -> None:
    config = ServerConfig(url=f"{server.url}/v1", name=MODEL)
    settings, ending = GenerationConfig.model_validate({"until": [], "max_gen_toks": 6}), Ending(" so: ", 4)
    asked = Prompt(text(5, 6)[:-1]), Prompt(chat=(("user", text(6, 5)),))
    plain, chat = RemoteModel(config, card_of(config), 2).answer([Generation(one, settings) for one in asked])
    cued, cut = RemoteModel(config, card_of(config), 2).answer(
        [Generation(one, settings, ending=ending) for one in asked]
    )
    assert all(isinstance(one, Written) for one in (plain, chat, cued, cut))
    assert cued.text.startswith(f"{plain.text} so: ")
    assert plain.tokens == 6 < cued.tokens <= 10
    assert cut == chat
