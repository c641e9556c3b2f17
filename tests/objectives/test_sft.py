import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from llmctl.config.errors import InputError, UsageError
from llmctl.config.train import SftConfig
from llmctl.data.split import is_heldout
from llmctl.model import huggingface
from llmctl.objectives.chats import PackedChats, _chat, read_chats
from llmctl.objectives.sft import open_model, split
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.tokenizer import Tokenizer

from .conftest import QUICK, chat


def sft(**fields):
    return SftConfig.model_validate({**QUICK, "max_tokens": 48, **fields})


def test_only_what_the_assistant_says_is_a_target(checkpoint, chats):
    tokenizer = Tokenizer.open(checkpoint.data)
    found, overlong = read_chats(chats, tokenizer, 48)
    assert (len(found), overlong) == (25, [])
    rows = PackedChats(found, 48, tokenizer.pad_id)
    batch = rows.batch(np.arange(rows.count))
    said = [
        tokenizer.decode(batch.labels[row][(batch.documents[row] == number) & (batch.labels[row] != IGNORE)].tolist())
        for row in range(rows.count)
        for number in range(batch.documents[row].max() + 1)
    ]
    wanted = [json.loads(line)["messages"][1]["content"] for line in chats.path.read_text().splitlines()]
    assert sorted(text.strip() for text in said) == sorted(wanted)
    ends = np.isin(batch.labels, tokenizer.stop_ids).sum()
    assert ends == 25
    assert (batch.labels[batch.documents < 0] == IGNORE).all()
    restarts = np.diff(batch.documents, axis=1) != 0
    assert (batch.positions[:, 1:][restarts] == 0).all()


def test_fine_tuning_learns_the_answers(stages, checkpoint, chats):
    made = stages("sft", sft(epochs=40, optimizer={"lr": 5e-3}), input=checkpoint, chats=chats)
    totals, facts = made.manifest.totals, made.manifest.semantic
    first = json.loads((made.path / "metrics.jsonl").read_text().splitlines()[0])
    assert totals["loss"] < first["loss"] / 3
    held = sum(is_heldout(f"chat/{n}", 0.05) for n in range(25))
    assert (totals["chats"], totals["heldout_chats"], totals["dropped.overlong"]) == (25 - held, held, 0)
    assert totals["steps"] == math.ceil(40 * totals["rows"] / 8)
    assert facts["tokenizer"] == checkpoint.manifest.semantic["tokenizer"]
    assert made.manifest.inputs["chats"].digest == chats.digest
    before, after = huggingface.load(checkpoint.data), huggingface.load(made.data)
    assert before.config == after.config
    assert not before.output_weight.equal(after.output_weight)


def test_a_chat_that_is_too_long_stops_the_run_or_is_counted(stages, checkpoint, write_chats):
    given_ = write_chats([chat(0, "one two", "three"), chat(1, "one " * 60, "two"), chat(2, "four", "one")])
    with pytest.raises(InputError, match=r"chat 2 \(chat/1\) has \d+ tokens, more than 48; 1 in all") as caught:
        stages("sft", sft(steps=1), input=checkpoint, chats=given_)
    assert "overlong=drop" in caught.value.hint
    made = stages("sft", sft(steps=1, overlong="drop"), input=checkpoint, chats=given_)
    assert made.manifest.totals["dropped.overlong"] == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, r"chat 2 .*no assistant turn"),
        ({"messages": []}, r"chat 2 .*messages are empty"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, r"chat 2 .*unknown role 'robot'"),
        ({"text": "hi"}, "line 2: no 'messages'"),
    ],
)
def test_a_chat_that_teaches_nothing_is_named(stages, checkpoint, write_chats, broken, message):
    with pytest.raises(InputError, match=message):
        stages("sft", sft(), input=checkpoint, chats=write_chats([chat(0, "one", "two"), broken]))


def with_template(checkpoint, directory, old, new):
    shutil.copytree(checkpoint.data, directory)
    path = directory / "chat_template.jinja"
    path.chmod(0o644)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return Tokenizer.open(directory)


def test_an_end_of_turn_that_is_never_learned_is_refused(checkpoint, chats, tmp_path):
    old = "{{- message.content + '<|im_end|>' }}\n        {%- endgeneration %}"
    new = "{{- message.content }}\n        {%- endgeneration %}{{- '<|im_end|>' }}"
    tokenizer = with_template(checkpoint, tmp_path / "t", old, new)
    with pytest.raises(InputError, match="never teaches the model to stop.*zero zero"):
        read_chats(chats, tokenizer, 48)


def test_a_template_that_marks_nothing_is_refused(checkpoint, chats, tmp_path):
    tokenizer = with_template(checkpoint, tmp_path / "t", "generation %}", "generation %}{# #}")
    assert read_chats(chats, tokenizer, 48)[0]
    tokenizer = with_template(checkpoint, tmp_path / "u", "message.role == 'assistant'", "false")
    with pytest.raises(InputError, match="marks nothing to learn"):
        read_chats(chats, tokenizer, 48)


def test_rows_beyond_the_context_are_refused(stages, checkpoint, chats):
    with pytest.raises(UsageError, match=r"max_tokens \(65\) exceeds the model's context of 64"):
        stages("sft", sft(max_tokens=65), input=checkpoint, chats=chats)


def test_nothing_left_to_train_on(stages, checkpoint, write_chats):
    number = next(n for n in range(1000) if is_heldout(f"chat/{n}", 0.05))
    with pytest.raises(InputError, match="all 1 chats are held out"):
        stages("sft", sft(), input=checkpoint, chats=write_chats([chat(number, "one", "two")]))


def test_a_tokenizer_of_another_size_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint.path, tmp_path / "run")
    other = replace(checkpoint, path=tmp_path / "run")

    class Larger:
        vocab_size, pad_id, stop_ids = 301, 3, (2, 5)

    with pytest.raises(InputError, match="the model has 300 ids, its tokenizer 301"):
        open_model(other, Larger())

    class PadEnds(Larger):
        vocab_size, stop_ids = 300, (2, 3)

    with pytest.raises(InputError, match="padding id 3 also ends a turn"):
        open_model(other, PadEnds())


def test_a_chat_is_held_out_with_its_document(checkpoint, chats):
    tokenizer = Tokenizer.open(checkpoint.data)
    found, _ = read_chats(chats, tokenizer, 48)
    assert [given.document for given in found] == [f"chat/{n}" for n in range(25)]  # plain files name no document
    inside = next(f"doc/{n}" for n in range(1000) if is_heldout(f"doc/{n}", 0.05))
    outside = next(f"doc/{n}" for n in range(1000) if not is_heldout(f"doc/{n}", 0.05))
    of_documents = [replace(given, document=(inside, outside)[n % 2]) for n, given in enumerate(found)]
    kept, held = split(of_documents, 0.05, 48, tokenizer.pad_id)
    assert (len(kept.chats), len(held.chats)) == (12, 13)
    assert {given.document for given in held.chats} == {inside}


@pytest.mark.parametrize(("document", "expected"), [("doc/1", "doc/1"), ("", "chat/0"), (None, "chat/0")])
def test_the_document_of_a_chat(checkpoint, document, expected):
    row = {**chat(0, "one", "two"), "document": document}
    assert _chat(row, Tokenizer.open(checkpoint.data), "here").document == expected
