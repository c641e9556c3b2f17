"""Chats and preferences in the forms that others write, and every way in which a row can be none of them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.data.forms import canonical
from llmctl.data.tables import read_rows
from llmctl.store.artifact import FileInput


def said(*contents, roles=("user", "assistant")):
    return [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]


def only(role, content):
    return [{"role": role, "content": content}]


SYSTEM = only("system", "Be brief.")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": said("a", "b")}, said("a", "b")),
        ({"messages": [{**turn, "tool_calls": None, "name": ""} for turn in said("a", "b")]}, said("a", "b")),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, said("a", "b")),
        ({"conversations": said("a", "b"), "system": "Be brief."}, [*SYSTEM, *said("a", "b")]),
        (
            {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "a"}]},
            [*SYSTEM, *only("user", "a")],
        ),
        ({"instruction": "a", "output": "b"}, said("a", "b")),
        ({"instruction": "a", "input": "", "output": "b", "system": ""}, said("a", "b")),
        ({"instruction": "a", "input": "x", "output": "b", "system": "Be brief."}, [*SYSTEM, *said("a\nx", "b")]),
        ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, said("a", "b", "c", "d")),
        ({"prompt": "a", "completion": "b"}, said("a", "b")),
        ({"prompt": said("a", "b", "c"), "completion": only("assistant", "d")}, said("a", "b", "c", "d")),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_forms_of_chats(tmp_path: Path, ending: str, row: dict, messages: list) -> None:
    assert [found["messages"] for found in rows_of(tmp_path, "chats", ending, [row, row])] == [messages, messages]


B, C = only("assistant", "b"), only("assistant", "c")
CALLS = [*said("a"), {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, said("a"), B, C),
        ({"prompt": said("a"), "chosen": B, "rejected": C}, said("a"), B, C),
        ({"prompt": "a", "chosen": said("a", "b"), "rejected": said("a", "c")}, said("a"), B, C),  # UltraFeedback
        ({"chosen": said("a", "b"), "rejected": said("a", "c")}, said("a"), B, C),
        (
            {
                "chosen": [*SYSTEM, *said("a", "x", "y", "b")],
                "rejected": [*SYSTEM, *said("a", "x", "y", "c", "d", "e")],
            },
            [*SYSTEM, *said("a", "x", "y")],
            B,
            said("c", "d", "e", roles=("assistant", "user")),
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, said("a"), B, B),
        ({"prompt": "a", "completion": "b", "label": True}, said("a"), B, []),
        ({"prompt": said("a"), "completion": C, "label": False}, said("a"), [], C),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_forms_of_preferences(tmp_path: Path, ending, row, prompt, chosen, rejected) -> None:
    (found,) = rows_of(tmp_path, "preferences", ending, [row])
    assert (found["prompt"], found["chosen"], found["rejected"]) == (prompt, chosen, rejected)
    assert found["margin"] is None


def test_margins_and_ids_come_along(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    found = rows_of(
        tmp_path, "preferences", ".jsonl", [{**pair, "margin": 2, "id": "x"}, {**pair, "margin": 0.5}, pair]
    )
    assert [row["margin"] for row in found] == [2.0, 0.5, None]
    assert found[0]["id"] == "x"
    assert found[1]["id"].endswith(":2")


@pytest.mark.parametrize(
    ("kind", "row", "fault"),
    [
        ("chats", {"conversations": "a"}, "'conversations' must be a list"),
        ("chats", {"conversations": ["a"]}, "conversations[0] must be an object"),
        ("chats", {"conversations": [{"from": "alien", "value": "a"}]}, "conversations[0] is from the unknown speaker"),
        ("chats", {"conversations": [{"from": "gpt", "value": None}]}, "conversations[0]: 'value' must be a string"),
        ("chats", {"messages": CALLS}, "messages[1] has 'tool_calls', of which nothing would be learned"),
        ("chats", {"messages": [{**B[0], "weight": 0}]}, "messages[0] has 'weight'"),
        ("chats", {"prompt": "a", "completion": CALLS}, "'completion'[1] has 'tool_calls'"),
        ("chats", {"conversations": [{"from": "gpt", "value": "b", "weight": 0.5}]}, "conversations[0] has 'weight'"),
        ("preferences", {"prompt": "a", "chosen": CALLS, "rejected": C}, "'chosen'[1] has 'tool_calls'"),
        ("preferences", {"chosen": CALLS, "rejected": said("a", "c")}, "'chosen'[1] has 'tool_calls'"),
        ("chats", {"instruction": "a"}, "'output' must be a string, got NoneType"),
        ("chats", {"instruction": 1, "output": "b"}, "'instruction' must be a string, got int"),
        ("chats", {"instruction": "a", "output": "b", "history": ["x"]}, "history[0] must be a pair"),
        ("chats", {"completion": "b"}, "no 'prompt'"),
        ("preferences", {"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        ("preferences", {"prompt": "a", "rejected": "b"}, "no 'chosen'"),
        ("preferences", {"chosen": "b", "rejected": "c"}, "no 'prompt'"),
        ("preferences", {"prompt": 1, "chosen": "b", "rejected": "c"}, "'prompt' must be a string or a list"),
        ("preferences", {"prompt": [], "chosen": "b", "rejected": "c"}, "'prompt' must be a string or a list"),
        ("preferences", {"prompt": "a", "chosen": [], "rejected": "c"}, "'chosen' must be a string or a list"),
        ("preferences", {"prompt": "a", "chosen": ["b"], "rejected": "c"}, "'chosen' must be a string or a list"),
        ("preferences", {"prompt": "a", "chosen": said("z", "b"), "rejected": "c"}, "'chosen' begins with the role"),
        ("preferences", {"prompt": "a", "chosen": said("a"), "rejected": "c"}, "'chosen' holds no answer"),
        ("preferences", {"prompt": said("a", "b"), "chosen": "b", "rejected": "c"}, "'prompt' ends with the assistant"),
        ("preferences", {"chosen": said("a", "b"), "rejected": said("x", "c")}, "'chosen' and 'rejected' begin diff"),
        ("preferences", {"chosen": said("a", "b"), "rejected": said("a", "b")}, "'chosen' and 'rejected' are the same"),
        ("preferences", {"chosen": said("a", "b", "c"), "rejected": said("a", "b")}, "differ in nothing but"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "1"}, "'margin' must be a finite"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, "'margin' must be a finite"),
        ("preferences", {"prompt": "a", "completion": "b"}, "no 'label'"),
        ("preferences", {"prompt": "a", "completion": "b", "label": 1}, "'label' must be true or false, got 1"),
        ("preferences", {"prompt": "a", "label": True}, "no 'completion'"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, kind: str, row: dict, fault: str) -> None:
    sound = {"prompt": "a", "completion": "b", "label": True}
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path, kind, ".jsonl", [sound, row])
    assert caught.value.what.startswith(f"{tmp_path / 'rows.jsonl'} line 2: ")
    assert fault in caught.value.what
    assert caught.value.hint


TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=3)})


@settings(max_examples=200)
@example([*said("a"), *said("a", "b")], said("a", "b"))  # a turn that repeats the prompt is no prompt
@given(st.lists(TURN, max_size=4), st.lists(TURN, max_size=4))
def test_an_implicit_prompt_and_its_answers_are_the_conversations(chosen: list, rejected: list) -> None:
    """What is parted joins to what was given, or the row is refused; never anything else."""
    try:
        row = canonical("preferences", {"chosen": chosen, "rejected": rejected}, "here")
    except InputError:
        return
    assert [*row["prompt"], *row["chosen"]] == chosen
    assert [*row["prompt"], *row["rejected"]] == rejected
    assert row["chosen"][0] != row["rejected"][0]
    assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"


def rows_of(folder: Path, kind: str, ending: str, rows: list[dict]) -> list[dict]:
    path = folder / f"rows{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return list(read_rows(FileInput.of(path, kind)))
