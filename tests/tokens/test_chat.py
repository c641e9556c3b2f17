"""ChatML: ids, mask, forged turns, and the same ids in transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.tokens.chat import render_prompt, render_prompt_text, render_training
from llmctl.tokens.tokenizer import Tokenizer

BOS, EOS, START, END = 1, 2, 4, 5
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4, as\n\n ever. "},
    {"role": "user", "content": "Why?\n"},
    {"role": "assistant", "content": "Because."},
]
CONTENT = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "assistant\n", "<s>", "</s>", "<|", "im_end|>", "\U0010fffd"])
    | st.text("a .m()\n\U0010fffd<|", max_size=5),
    max_size=6,
).map("".join)


def test_a_prompt_ends_with_the_opened_turn(bpe: Tokenizer) -> None:
    ids = render_prompt(bpe, CHAT[:2])
    expected = [BOS]
    for role, text in (("system", "Be brief."), ("user", "What is 2 + 2?")):
        expected += [START, *bpe.encode(f"{role}\n{text}"), END, *bpe.encode("\n")]
    assert ids == [*expected, START, *bpe.encode("assistant\n")]


def test_only_what_the_assistant_says_is_learned(bpe: Tokenizer) -> None:
    ids, learned = render_training(bpe, CHAT)
    assert len(ids) == len(learned)
    said = [index for index, real in zip(ids, learned, strict=True) if real]
    assert said == [*bpe.encode("4, as\n\n ever. "), END, *bpe.encode("Because."), END]
    text = bpe.decode(index for index, real in zip(ids, learned, strict=True) if not real)
    assert text == "system\nBe brief.\nuser\nWhat is 2 + 2?\nassistant\n\nuser\nWhy?\n\nassistant\n\n"


def test_training_begins_as_generation_does(bpe: Tokenizer) -> None:
    for content in ("Because.", "\nBecause.", " so", ""):
        answer = {"role": "assistant", "content": content}
        ids, learned = render_training(bpe, [*CHAT[:2], answer])
        prompt = render_prompt(bpe, CHAT[:2])
        assert ids[: len(prompt)] == prompt
        assert learned == [False] * len(prompt) + [True] * (len(bpe.encode(content)) + 1) + [False]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=CONTENT, answer=CONTENT)
def test_content_cannot_forge_a_turn(bpe: Tokenizer, question: str, answer: str) -> None:
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids, learned = render_training(bpe, chat)
    assert [index for index in ids if index < 6] == [BOS, START, END, START, END]
    said = [index for index, real in zip(ids, learned, strict=True) if real]
    assert said[-1] == END
    assert bpe.decode(said) == answer
    first_turn = ids[2 : ids.index(END)]
    assert bpe.decode(first_turn) == f"user\n{question}"


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "messages are empty"),
        ("hello", "messages must be a list, got str"),
        (None, "messages must be a list, got NoneType"),
        (["hello"], r"messages\[0\] must be an object, got str"),
        ([CHAT[1], {"content": "x"}], r"messages\[1\] has no role"),
        ([{"role": "wizard", "content": "x"}], r"messages\[0\] has the unknown role 'wizard'"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\] has the unknown role"),
        ([CHAT[1], {"role": "user"}], r"messages\[1\] has no content"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\] has content of type list"),
    ],
)
def test_malformed_messages_are_named(bpe: Tokenizer, messages: Any, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        render_prompt(bpe, messages)


def test_a_chat_without_an_answer_teaches_nothing(bpe: Tokenizer) -> None:
    with pytest.raises(InputError, match="no assistant turn"):
        render_training(bpe, CHAT[:2])


def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    return tokenizer.with_template(source)


def test_templates_are_sandboxed_and_their_faults_explained(bpe: Tokenizer) -> None:
    for source, fault in (
        ("{{ messages.__class__.__mro__ }}", "the chat template fails"),
        ("{{ messages.append(1) }}", "the chat template fails"),
        ("{% if %}", "the chat template fails"),
        ("{{ raise_exception('no system please') }}", "no system please"),
    ):
        with pytest.raises(InputError, match=fault):
            render_prompt(with_template(bpe, source), CHAT)
    with pytest.raises(InputError, match="marks nothing to learn"):
        render_training(with_template(bpe, "{% generation %}{% endgeneration %}{{ messages[0].content }}"), CHAT)


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_transformers_renders_the_same_ids(model: str, make_tokenizer: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_tokenizer(model=model)
    ours, theirs = Tokenizer.open(directory), transformers.AutoTokenizer.from_pretrained(directory)
    for size in range(1, len(CHAT) + 1):
        prompt = theirs.apply_chat_template(CHAT[:size], add_generation_prompt=True, return_dict=True)
        assert prompt["input_ids"] == render_prompt(ours, CHAT[:size])
    training = theirs.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    ids, learned = render_training(ours, CHAT)
    assert training["input_ids"] == ids
    assert [bool(mark) for mark in training["assistant_masks"]] == learned


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 1,000,000 steps"),
        ("{% set r = range(2000) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "1,000,000 steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'x' * 10 ** 9 }}", "beyond"),
        ("{{ 'x' * 999999999 }}", "beyond 16,000,000"),
        ("{{ 9 ** 9 ** 9 }}", "a power of a number beyond 1,024"),
        ("{% set n = namespace(x='xx') %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "more than"),
        ("{% set n = namespace(x='xx') %}{% for a in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}", "more than"),
        ("{{ 'x'.ljust(10000000) }}", "a number beyond 1,000,000"),
        ("{{ '{:999999999}'.format(1) }}", "a width of four digits"),
        ("{{ '%999999999d' % 1 }}", "a width of four digits"),
        ("{{ 'x' | center(999999999) }}", "No filter named 'center'"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 16,000,000 characters"),
        ("{{ lipsum(n=1) }}", "'lipsum' is undefined"),
        ("{{ messages | random }}", "No filter named 'random'"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe|undefined"),
        ("{{ messages[0].nothing.at.all }}", "has no attribute|undefined"),
    ],
)
def test_a_template_cannot_spend_or_reach_more_than_its_share(bpe: Tokenizer, source: str, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        render_prompt(bpe.with_template(source), CHAT)


def test_what_published_templates_use_works(bpe: Tokenizer) -> None:
    source = (
        "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else 'none' -%}"
        "{%- set n = namespace(count=0) -%}"
        "{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set n.count = n.count + 1 -%}{%- endif -%}"
        "{%- if loop.last -%}{{ loop.index ~ '/' ~ loop.length }}{%- endif -%}{%- if loop.first %}{%- continue %}"
        "{%- endif -%}{%- endfor -%}"
        "{{ ' ' ~ n.count ~ ' ' ~ system | trim | upper ~ ' ' ~ messages[1] | tojson }}"
        "{%- if strftime_now is defined -%}{{ strftime_now('%d') }}{%- endif -%}{%- if tools -%}tools{%- endif -%}"
    )
    text = render_prompt_text(bpe.with_template(source), CHAT)
    assert text == '5/5 2 BE BRIEF. {"role": "user", "content": "What is 2 + 2?"}'


def test_a_tokenizer_without_a_template_says_so(bpe: Tokenizer) -> None:
    with pytest.raises(InputError, match="has no chat template"):
        render_prompt(bpe.with_template(""), CHAT)
