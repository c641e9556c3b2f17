"""Random weights keep to a form, or the answer says that it was cut."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from llmctl.config.errors import UsageError
from llmctl.config.model import ModelConfig
from llmctl.inference.engine import Engine
from llmctl.inference.options import Options
from llmctl.inference.request import Completion, Constraint, Request
from llmctl.model.transformer import Transformer
from llmctl.tokens.tokenizer import Tokenizer
from tests.inference.conftest import lively

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "more"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Iterator[Engine]:
    with Engine(lively(context=256), tokenizer, max_running=8) as engine:
        yield engine


def ask(engine: Engine, constraint: Constraint, count: int = 16, **settings: object) -> list[Completion]:
    base = {"max_tokens": 120, "constraint": constraint, **settings}
    return engine.generate([Request([1, seed + 6], seed=seed, **base) for seed in range(count)])  # type: ignore[arg-type]


def drawn_schema(drawn: random.Random, depth: int = 0) -> dict[str, object]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum"] + ["object", "array"] * (depth < 3)
    kind = drawn.choice(kinds)
    if kind == "enum":
        return {"enum": drawn.sample(["x", "y", 1, 2.5, None, True], 3)}
    if kind == "object":
        names = drawn.sample("abcdefgh", drawn.randint(0, 4))
        properties = {name: drawn_schema(drawn, depth + 1) for name in names}
        required = [name for name in names if drawn.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": drawn_schema(drawn, depth + 1), "maxItems": drawn.randint(0, 3)}
    return {"type": kind, **({"maxLength": 9} if kind == "string" else {})}


def test_json_of_many_schemas_is_valid_or_cut(engine: Engine) -> None:
    whole = 0
    for number in range(40):
        schema = drawn_schema(random.Random(number))
        for answer in ask(engine, Constraint("json_schema", json.dumps(schema)), 4, temperature=1.0):
            assert answer.finish_reason in ("stop", "length")
            if answer.finish_reason == "stop":
                jsonschema.validate(json.loads(answer.text), schema)
                whole += 1
            else:
                assert len(answer.token_ids) == 120
    assert whole > 120


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.5, "top_k": 40}, {"stop_ids": ()}])
def test_json_of_a_schema(engine: Engine, settings: dict[str, object]) -> None:
    answers = ask(engine, Constraint("json_schema", json.dumps(PERSON)), **settings)
    assert sum(answer.finish_reason == "stop" for answer in answers) >= 12
    for answer in answers:
        if answer.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.text), PERSON)


def test_whitespace_is_bounded(engine: Engine) -> None:
    spaces = {index: 50.0 for index in range(512) if not engine.tokenizer.piece_bytes(index).strip()}
    spaces = {index: bias for index, bias in spaces.items() if engine.tokenizer.piece_bytes(index)}
    answers = ask(engine, Constraint("json_schema", json.dumps(PERSON)), logit_bias=spaces, max_tokens=200)
    for answer in answers:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), PERSON)
        outside = re.sub(r'"[^"]*"', "s", answer.text)
        assert max((len(run) for run in re.findall(r"\s+", outside)), default=0) <= 17


def test_regex_choice_and_grammar(engine: Engine) -> None:
    for answer in ask(engine, Constraint("regex", r"[a-c]{3}-\d{2}")):
        assert re.fullmatch(r"[a-c]{3}-\d{2}", answer.text)
        assert answer.finish_reason == "stop"
    texts = {answer.text for answer in ask(engine, Constraint("choice", '["yes", "no", "no idea"]'), 32)}
    assert texts <= {"yes", "no", "no idea"}
    assert len(texts) > 1
    for notation in ('root ::= "(" root ")" | "x"', 'start: "(" start ")" | "x"'):
        for answer in ask(engine, Constraint("grammar", notation)):
            if answer.finish_reason == "stop":
                depth = answer.text.index("x")
                assert answer.text == "(" * depth + "x" + ")" * depth


def test_forms_go_with_guesses_logprobs_and_a_crowd(tokenizer: Tokenizer, engine: Engine) -> None:
    form = Constraint("json_schema", json.dumps(PERSON))
    plain = ask(engine, form, logprobs=2, logprobs_of="sampled")
    model = lively(context=256)
    for options in (Options(draft_tokens=4), Options(draft_tokens=3, draft=model), Options(step_tokens=16)):
        with Engine(model, tokenizer, max_running=3, options=options) as other:
            again = ask(other, form, logprobs=2, logprobs_of="sampled")
            assert [answer.token_ids for answer in again] == [answer.token_ids for answer in plain]
    assert all(entry.logprob <= 0 for answer in plain for entry in answer.logprobs or ())


def test_ids_that_only_pad_the_vocabulary_are_in_no_form(tokenizer: Tokenizer) -> None:
    model = Transformer(ModelConfig(name="nano"), 520)
    model.init_weights(0)
    with Engine(model, tokenizer) as padded:
        for answer in ask(padded, Constraint("regex", r"[a-c]{3}"), 4, logit_bias={515: 50.0}):
            assert re.fullmatch(r"[a-c]{3}", answer.text)
        (free,) = padded.generate([Request([1], max_tokens=3, temperature=0.0, logit_bias={515: 50.0})])
        assert (free.token_ids, free.text) == ((515,) * 3, "")


def test_a_form_that_the_bans_make_impossible_is_cut(engine: Engine) -> None:
    yes = engine.tokenizer.encode("y")[-1]
    starts = [index for index in range(512) if engine.tokenizer.piece_bytes(index).startswith(b"y")]
    (answer,) = ask(engine, Constraint("regex", "yes"), 1, banned_ids=[yes, *starts])
    assert (answer.token_ids, answer.text, answer.finish_reason) == ((), "", "length")


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (Constraint("json_schema", "{"), "cannot be compiled"),
        (Constraint("json_schema", '{"type": "frob"}'), "frob"),
        (Constraint("json_schema", '{"$ref": "http://127.0.0.1/x"}'), "cannot be compiled"),
        (Constraint("regex", "["), "unclosed"),
        (Constraint("grammar", "root := ("), "cannot be compiled"),
        (Constraint("choice", "[]"), "cannot be compiled"),
        (Constraint("regex", "a" * 70_000), "more than 65536 characters"),
    ],
)
def test_forms_that_cannot_be_compiled_are_refused(engine: Engine, constraint: Constraint, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        engine.submit(Request([1], constraint=constraint))
    with pytest.raises(UsageError, match=says):
        engine.check_constraint(constraint)
    assert engine.generate([Request([1], max_tokens=1)])  # the engine goes on


@pytest.mark.parametrize("regex", ["(a{1,1000}){1,1000}", "(.*a){200}b", "((a|b|c|ab|bc)*x){50}", "(x+x+)+y"])
def test_bombs_are_refused_or_cut(engine: Engine, regex: str) -> None:
    try:
        answers = ask(engine, Constraint("regex", regex), 2, max_tokens=20)
    except UsageError:
        return
    assert all(answer.finish_reason in ("stop", "length") for answer in answers)


def test_nothing_is_loaded_before_a_form_is_asked_for() -> None:
    code = "import sys, llmctl.inference.engine; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
