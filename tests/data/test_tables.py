import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.data.table_writer import RowsDigest, TableWriter
from llmctl.data.tables import CHATS, DOCUMENTS, PROMPTS, conform, read_batches, read_parquet, read_rows
from llmctl.store.artifact import FileInput
from llmctl.store.files import sha256_file
from tests.data.broken import parquet_of_bytes

# Every string that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ROW = st.fixed_dictionaries(dict.fromkeys(DOCUMENTS.names, TEXT))


def document(number: int, text: str = "text") -> dict[str, str]:
    return {"id": str(number), "text": text, "source": "s", "url": "", "license": "", "lang": ""}


def rows_digest(batches: list[pa.RecordBatch]) -> str:
    digest = RowsDigest()
    for batch in batches:
        digest.update(batch)
    return digest.hexdigest()


def read(path: Path, kind: str = "documents") -> list[dict[str, object]]:
    return list(read_rows(FileInput(path, digest(path), kind)))


def digest(path: Path) -> str:
    return "sha256:" + sha256_file(path)


@settings(max_examples=30)
@given(st.lists(ROW, min_size=1, max_size=20))
def test_parquet_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    directory = tmp_path_factory.mktemp("parts")
    writer = TableWriter(directory, DOCUMENTS)
    writer.write_rows(rows)
    assert writer.close()["part-00000.parquet"].rows == len(rows)
    assert read(directory / "part-00000.parquet") == rows


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@settings(max_examples=15)
@given(st.lists(ROW, min_size=1, max_size=20))
def test_json_lines_round_trip(
    tmp_path_factory: pytest.TempPathFactory, ending: str, rows: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / f"rows{ending}"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(content))
    assert read(path) == rows


def test_parts_are_cut_by_size_and_read_back_in_order(tmp_path: Path) -> None:
    with TableWriter(tmp_path, DOCUMENTS, part_bytes=200_000) as writer:
        for start in range(0, 20_000, 1_000):
            writer.write_rows([document(n, "x" * 30) for n in range(start, start + 1_000)])
        facts = writer.close()
    assert list(facts) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert sum(f.rows or 0 for f in facts.values()) == 20_000
    assert [r["id"] for name in facts for r in read(tmp_path / name)] == [str(n) for n in range(20_000)]
    assert not list(tmp_path.glob("*.tmp"))


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with TableWriter(tmp_path / name, DOCUMENTS) as writer:
            writer.write_rows([document(n, f"text {n}") for n in range(500)])
    first, second = (tmp_path / name / "part-00000.parquet" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_failure_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), TableWriter(tmp_path, DOCUMENTS) as writer:
        writer.write_rows([document(n) for n in range(9_000)])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_rows_digest_ignores_order_and_batches_but_counts_repeats() -> None:
    rows = [document(n) for n in range(100)]
    batches = [pa.RecordBatch.from_pylist(rows[i : i + 7], schema=DOCUMENTS) for i in range(0, 100, 7)]
    whole = rows_digest([pa.RecordBatch.from_pylist(rows[::-1], schema=DOCUMENTS)])
    assert rows_digest(batches) == whole
    assert rows_digest([*batches, batches[0]]) != whole
    # Moving a character from one column to the next is another row.
    one = pa.RecordBatch.from_pylist([{**document(1), "source": "ab", "url": ""}], schema=DOCUMENTS)
    other = pa.RecordBatch.from_pylist([{**document(1), "source": "a", "url": "b"}], schema=DOCUMENTS)
    assert rows_digest([one]) != rows_digest([other])


def test_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    with TableWriter(tmp_path, DOCUMENTS) as writer:
        writer.write_rows([document(1)])
    batch = next(read_batches(FileInput(tmp_path / "part-00000.parquet", "", "documents"), ["text", "id"]))
    assert batch.schema.names == ["text", "id"]


def test_plain_chats_and_prompts_get_ids(tmp_path: Path) -> None:
    chats, prompts = tmp_path / "chats.jsonl", tmp_path / "quiz.jsonl"
    chats.write_text('{"messages":[{"role":"user","content":"hé"},{"role":"assistant","content":"ho"}]}\n')
    prompts.write_text('\n{"prompt":"1+1=","choices":["1","2"],"answer":1}\n')
    assert read(chats, "chats") == [
        {
            "id": f"{digest(chats)[7:19]}:1",
            "messages": [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "ho"}],
            "source": digest(chats)[7:19],
            "document": "",
        }
    ]
    assert read(prompts, "prompts")[0] == {
        "id": f"{digest(prompts)[7:19]}:2", "prompt": "1+1=", "choices": ["1", "2"], "answer": 1,
        "source": digest(prompts)[7:19], "question": "",
    }  # fmt: skip
    assert next(read_batches(FileInput(chats, "", "chats"))).schema == CHATS
    assert next(read_batches(FileInput(prompts, "", "prompts"))).schema == PROMPTS


def test_equal_bytes_give_equal_rows_whatever_the_file_is_called(tmp_path: Path) -> None:
    """The name of a file is in no action key, so it may decide nothing."""
    one, other = tmp_path / "chats.jsonl", tmp_path / "other.jsonl"
    for path in (one, other):
        path.write_text('{"messages":[{"role":"user","content":"a"}]}\n')
    assert read(one, "chats") == read(other, "chats")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_plain_prompts_keep_their_question(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"quiz{ending}"
    row = {"prompt": "Question: 1+1?\nAnswer:", "choices": [" 1", " 2"], "answer": 1, "question": "1+1?"}
    if ending == ".jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    assert read(path, "prompts") == [{"id": f"{digest(path)[7:19]}:1", "source": digest(path)[7:19], **row}]


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("chats", '{"messages": "hi"}', "line 1: 'messages' must be a list of {role, content}"),
        ("chats", '{"text": "hi"}', "line 1: no 'messages'"),
        ("prompts", '{"prompt":"a","choices":["x"],"answer":"x"}', "line 1: 'answer' must be the index"),
        ("documents", '{"text": 5}', "line 1: 'text' must be a string"),
        ("documents", "[1]", "line 1: a list, not an object"),
        ("documents", '{"text": "a"', "line 1: invalid JSON"),
        ("documents", "[" * 100_000, "line 1: invalid JSON"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, kind: str, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError) as caught:
        read(path, kind)
    assert message in caught.value.what
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("documents", {"text": 5}, "'text' must be a string"),
        ("documents", {"text": None}, "no 'text'"),
        ("documents", {"text": "a", "url": 5}, "'url' must be a string"),
        ("prompts", {"prompt": "a", "choices": "xy", "answer": 0}, "'choices' must be a list of strings"),
        ("prompts", {"prompt": "a", "choices": ["x"], "answer": 2**40}, "'answer' must be the index"),
        ("chats", {"messages": ["hi"]}, "'messages' must be a list of {role, content}"),
    ],
)
def test_bad_parquet_rows_are_named(tmp_path: Path, kind: str, row: dict[str, object], message: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(InputError) as caught:
        read(path, kind)
    assert caught.value.what.startswith(f"{path} row 1: {message}")


def test_the_first_bad_row_is_named_beyond_the_first_batch(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["x"] * 3_000
    pq.write_table(pa.table({"text": [*texts, None, *texts], "id": list(range(6_001))}), path)
    with pytest.raises(InputError, match="row 3001: no 'text'"):
        read(path)
    pq.write_table(pa.table({"text": texts, "id": list(range(3_000))}), path)
    assert [row["id"] for row in read(path)] == [str(number) for number in range(3_000)]


def test_a_missing_parquet_column_names_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"]}), path)
    with pytest.raises(InputError, match="row 1: no 'text'"):
        read(path)


@pytest.mark.parametrize(
    ("column", "row"), [("text", 1500), ("id", 3)], ids=["beyond the first batch", "a column that is not the text"]
)
def test_text_that_is_not_utf8_names_its_file_and_row(tmp_path: Path, column: str, row: int) -> None:
    values = {"id": [b"%d" % number for number in range(2000)], "text": ["h\u00e4user".encode()] * 2000}
    values[column][row - 1] = b"h\xe4user"
    path = parquet_of_bytes(tmp_path / "latin.parquet", **values)
    for reading in (lambda: read(path), lambda: list(read_parquet(path))):
        with pytest.raises(InputError, match=f"latin.parquet row {row}: '{column}' is not UTF-8"):
            reading()


def test_rows_of_another_kind_are_an_input_error() -> None:
    batch = pa.RecordBatch.from_pydict({"txt": ["a"]})
    with pytest.raises(InputError, match="without the column 'id'; they have: txt"):
        conform(batch, DOCUMENTS)
