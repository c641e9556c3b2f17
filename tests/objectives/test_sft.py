import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmctl.config.errors import InputError, UsageError
from llmctl.config.lessons import ChatsConfig
from llmctl.config.train import PretrainConfig, SftConfig
from llmctl.data.split import is_heldout
from llmctl.model import huggingface
from llmctl.objectives.chats import PackedChats, _chat, read_chats, read_sides
from llmctl.objectives.start import fill_id, open_model
from llmctl.pipeline.execute import Call, execute
from llmctl.pipeline.job import Silent
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import FileInput
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.tokenizer import Tokenizer

from .conftest import NANO, QUICK, chat


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


def test_what_is_learned_of_a_chat_can_be_chosen(checkpoint, tmp_path):
    turns = [("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "second")]
    path = tmp_path / "dialogue.jsonl"
    messages = [{"role": role, "content": content} for role, content in turns]
    path.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    given, tokenizer = FileInput.of(path, "chats"), Tokenizer.open(checkpoint.data)
    said = {}
    for learn in ("assistant", "last", "all"):
        ((chat,), _) = read_chats(given, tokenizer, 99, learn=learn)
        said[learn] = tokenizer.decode(chat.labels[chat.labels != IGNORE].tolist())
        ends = np.isin(chat.labels, tokenizer.stop_ids).sum()
        assert ends == {"assistant": 2, "last": 1, "all": 4}[learn]
    assert (said["assistant"], said["last"]) == ("firstsecond", "second")
    assert re.findall("one|first|two|second", said["all"]) == ["one", "first", "two", "second"]


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
    with pytest.raises(InputError, match=r"chat 1 .* more than 48; 1 in all"):  # the only one
        stages("sft", sft(steps=1), input=checkpoint, chats=write_chats([chat(0, "one " * 60, "two")]))
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


def test_rows_are_filled_with_what_ends_no_turn(checkpoint):
    tokenizer = Tokenizer.open(checkpoint.data)
    assert fill_id(checkpoint, tokenizer) == tokenizer.pad_id

    # Like SmolLM2's: padding is the end of a turn.
    given = {"bos_id": 1, "pad_id": 2, "special": {"end": 0, "start": 1, "turn": 2, "file": 3}}
    pad_ends = SimpleNamespace(**given, stop_ids=(2, 0), byte_lengths=np.zeros(4, dtype=np.int32))
    assert fill_id(checkpoint, pad_ends) == 3
    pad_ends.stop_ids = (2, 0, 3)
    with pytest.raises(InputError, match="padding id 2 also ends a turn, and no special token ends nothing"):
        fill_id(checkpoint, pad_ends)


def test_a_chat_of_a_plain_file_is_held_out_with_its_document(checkpoint, chats, write_chats):
    tokenizer = Tokenizer.open(checkpoint.data)
    found, _ = read_chats(chats, tokenizer, 48)
    assert [given.document for given in found] == [f"chat/{n}" for n in range(25)]  # plain files name no document
    inside = next(f"doc/{n}" for n in range(1000) if is_heldout(f"doc/{n}", 0.05))
    outside = next(f"doc/{n}" for n in range(1000) if not is_heldout(f"doc/{n}", 0.05))
    rows = [json.loads(line) for line in chats.path.read_text().splitlines()]
    of_documents = write_chats([{**row, "document": (inside, outside)[n % 2]} for n, row in enumerate(rows)])
    sides = read_sides(of_documents, tokenizer, 48, 0.05)
    assert (len(sides.kept), len(sides.held)) == (12, 13)
    assert {given.document for given in sides.held} == {inside}


@pytest.fixture(scope="module")
def lessons(stages, tmp_path_factory):
    """Chats that the stage `chats` made from documentation of thirty little functions."""
    names = [f"python-docs/sums.{a}_{b}" for a in "abcde" for b in "fghijk"]
    path = tmp_path_factory.mktemp("documents") / "docs.parquet"
    texts = [f"{name.partition('/')[2]}(a, b)\n\nMake zero and one of {n} words.\n" for n, name in enumerate(names)]
    pq.write_table(pa.table({"id": names, "text": texts, "source": ["python-docs"] * len(names)}), path)

    def make(fraction):
        config = ChatsConfig(heldout_fraction=fraction, phrasings=1, reverse=False)
        return stages("chats", config, input=FileInput.of(path, "documents"))

    return make


@pytest.fixture(scope="module")
def roomy(stages, rows):
    """A checkpoint whose context holds the longest of `lessons`."""
    config = {**QUICK, "model": {**NANO, "context": 128}, "steps": 1}
    return stages("pretrain", PretrainConfig.model_validate(config), input=rows)


def test_chats_bring_their_own_held_out_side(stages, roomy, lessons):
    held = lessons(0.3).manifest.totals["heldout_chats"]
    assert held > 0
    config = sft(steps=2, max_tokens=128, heldout_fraction=0.9)  # which is for plain files only
    made = stages("sft", config, input=roomy, chats=lessons(0.3)).manifest
    assert (made.totals["heldout_chats"], made.totals["chats"]) == (held, 60 - held)
    assert made.totals["heldout_loss"] > 0
    # The rows behind the checkpoint hold out 0.1, the chats 0.3: what neither has seen is the smaller share.
    assert made.semantic["heldout_fraction"] == roomy.manifest.semantic["heldout_fraction"] == 0.1
    assert made.semantic["chat"] is True
    fewer = stages("sft", config, input=roomy, chats=lessons(0.05)).manifest
    assert fewer.semantic["heldout_fraction"] == 0.05


def test_it_is_said_where_no_chat_is_held_out(stages, roomy, lessons):
    said = []

    class Notes(Silent):
        def note(self, text):
            said.append(text)

    inputs = {"input": roomy, "chats": lessons(0.0)}
    made = execute(Call(stage_named("sft"), sft(steps=1, max_tokens=128), inputs), stages.store, Notes()).artifact
    assert "no chat is held out, so there is no held-out loss" in said
    assert made.manifest.totals["heldout_chats"] == 0
    assert "heldout_loss" not in made.manifest.totals


@pytest.mark.parametrize(("document", "expected"), [("doc/1", "doc/1"), ("", "chat/0"), (None, "chat/0")])
def test_the_document_of_a_chat(checkpoint, document, expected):
    row = {**chat(0, "one", "two"), "document": document}
    assert _chat(row, Tokenizer.open(checkpoint.data), "here").document == expected
