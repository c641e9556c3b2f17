"""What is learned of a chat whose template marks nothing, against templates that mark it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.tokens.chat import CHAT_TEMPLATE, render_prompt, render_training
from llmctl.tokens.spans import enclosed, marks_generation, spoken_spans
from llmctl.tokens.tokenizer import Tokenizer

from .test_chat import CHAT, CONTENT

# SmolLM2-Instruct's, which puts a system message of its own before a chat that has none.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3's, which trims what is said.
TRIMS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n\n' + message.content | trim"
    " + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
# As Qwen 3's, which leaves out of earlier turns what comes before a mark.
FORGETS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{{ message.content if loop.last else message.content.split('|')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = CHAT_TEMPLATE.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
ROLES = ("user", "assistant")


def test_which_templates_mark_the_answers() -> None:
    assert marks_generation(CHAT_TEMPLATE)
    assert marks_generation("{% generation %}")
    assert not marks_generation(UNMARKED)
    assert not marks_generation("{{ add_generation_prompt }}{% if generation %}{% endif %}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(contents=st.lists(CONTENT, min_size=2, max_size=5))
def test_a_template_that_marks_nothing_teaches_what_one_that_marks_does(bpe: Tokenizer, contents: list[str]) -> None:
    messages = [{"role": ROLES[n % 2], "content": content} for n, content in enumerate(contents)]
    assert render_training(bpe.with_template(UNMARKED), messages) == render_training(bpe, messages)


@pytest.mark.parametrize("template", [SMOLLM2, TRIMS], ids=["smollm2", "trims"])
def test_templates_of_others(bpe: Tokenizer, template: str) -> None:
    given = bpe.with_template(template)
    for chat in (CHAT, CHAT[1:]):
        ids, learned = render_training(given, chat)
        said = [index for index, real in zip(ids, learned, strict=True) if real]
        answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
        if template == TRIMS:
            answers = [answer.strip() for answer in answers]
        end = given.special["<|im_end|>"]
        assert said == [index for answer in answers for index in (*given.encode(answer), end)]
        first = next(at for at, turn in enumerate(chat) if turn["role"] == "assistant")
        prompt = render_prompt(given, chat[:first])
        assert ids[: len(prompt)] == prompt
        assert learned.index(True) == len(prompt)


def test_a_template_that_rewrites_what_came_before_is_refused(bpe: Tokenizer) -> None:
    given = bpe.with_template(FORGETS)
    plain = [{"role": ROLES[n % 2], "content": str(n)} for n in range(4)]
    assert any(render_training(given, plain)[1])
    plain[1] = {"role": "assistant", "content": "hm|1"}
    assert any(render_training(given, plain[:2])[1])
    with pytest.raises(InputError, match=r"renders what comes before messages\[1\] otherwise once more follows"):
        render_training(given, plain)


def test_an_assistant_that_speaks_first_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(InputError, match="the assistant speaks first"):
        render_training(bpe.with_template(UNMARKED), CHAT[2:])


def test_spans_end_behind_the_last_end_of_turn() -> None:
    texts = {(1, True): "u.a:", (2, False): "u.a:yes.no.\n", (2, True): "u.a:yes.no.\na:"}
    whole = [(4, 11)]
    assert spoken_spans(["user", "assistant"], lambda n, opened: texts[n, opened], ["."]) == whole
    assert spoken_spans(["user", "assistant"], lambda n, opened: texts[n, opened], ["!"]) == [(4, 12)]
    assert enclosed("u.a:yes.no.\n", whole, "<", ">") == "u.a:<yes.no.>\n"
