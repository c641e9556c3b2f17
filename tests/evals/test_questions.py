"""Questions: what is read, what is refused, and the tokens that are scored."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.errors import InputError
from llmctl.evals.questions import Question, read_questions
from llmctl.store.artifact import FileInput
from llmctl.store.files import sha256_file
from llmctl.tokens.chat import render_prompt
from llmctl.tokens.tokenizer import Tokenizer
from tests.evals.tiny import pairs_of, tiny_tokenizer

GOOD = {"prompt": "the list is", "choices": ["sorted", "a file"], "answer": 1}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.open(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def lines(directory: Path, *rows: Any) -> FileInput:
    path = directory / "questions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return FileInput(path, "sha256:" + sha256_file(path), "prompts")


def test_a_file_is_read_in_order(tmp_path: Path) -> None:
    given = lines(tmp_path, {**GOOD, "id": "x"}, GOOD)
    first, second = read_questions(given)
    assert first == Question("x", "the list is", ("sorted", "a file"), 1, "the list is")
    assert second.id == f"{given.digest[7:19]}:2"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "choices": ["a", "b"]}, "line 2: no 'answer'"),
        ({"choices": ["a", "b"], "answer": 0}, "line 2: no 'prompt'"),
        ({**GOOD, "answer": 2}, r"questions.jsonl: question \w{12}:2 has answer 2, but 2 choices"),
        ({**GOOD, "answer": -1}, r"question \w{12}:2 has answer -1"),
        ({**GOOD, "answer": "b"}, "line 2: 'answer' must be the index"),
        ({**GOOD, "choices": ["a"]}, r"question \w{12}:2 has 1 choices"),
        ({**GOOD, "choices": ["a", ""]}, r"question \w{12}:2 has an empty choice"),
        ({**GOOD, "choices": "ab"}, "line 2: 'choices' must be a list of strings"),
        ("{not json", "line 2: invalid JSON"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_questions(lines(tmp_path, GOOD, row))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no question"):
        read_questions(lines(tmp_path))


def question(prompt: str, *choices: str) -> Question:
    return Question("q1", prompt, choices, 0, prompt)


def test_plain_pairs_begin_with_the_begin_token_and_join_by_the_delimiter(tokenizer: Tokenizer) -> None:
    pairs = pairs_of(question("the list is", "sorted", "a file"), tokenizer)
    whole = tokenizer.encode("the list is sorted")
    assert pairs[0][0] == [tokenizer.bos_id, *tokenizer.encode("the list is")]
    assert pairs[0][0][1:] + pairs[0][1] == whole
    assert tokenizer.decode(pairs[1][1]) == " a file"


def test_white_space_that_is_there_already_is_the_delimiter(tokenizer: Tokenizer) -> None:
    expected = pairs_of(question("the list is", "sorted", "b"), tokenizer)[0]
    assert pairs_of(question("the list is", " sorted", "b"), tokenizer)[0] == expected
    assert pairs_of(question("the list is ", "sorted", "b"), tokenizer)[0] == expected
    assert pairs_of(question("q", " sorted", "b"), tokenizer, chat=True) == pairs_of(
        question("q", "sorted", "b"), tokenizer, chat=True
    )


def test_an_empty_prompt_leaves_the_begin_token(tokenizer: Tokenizer) -> None:
    assert pairs_of(question("", "sorted", "b"), tokenizer, delimiter="")[0] == (
        [tokenizer.bos_id],
        tokenizer.encode("sorted"),
    )


def test_chat_pairs_are_what_training_would_learn(tokenizer: Tokenizer) -> None:
    (before, after), _ = pairs_of(question("what is sorted?", "a list", "b"), tokenizer, chat=True)
    assert before == render_prompt(tokenizer, [{"role": "user", "content": "what is sorted?"}])
    assert tokenizer.decode(after) == "a list"
    assert not set(after) & set(tokenizer.stop_ids)


def test_chat_asks_the_question_where_the_data_has_one(tokenizer: Tokenizer) -> None:
    asked = Question("q1", "Q: why?\nA:", ("a", "b"), 0, "why?")
    assert tokenizer.decode(pairs_of(asked, tokenizer, chat=True)[0][0]).endswith("user\nwhy?\nassistant\n")
