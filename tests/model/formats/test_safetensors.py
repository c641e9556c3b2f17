"""Safetensors: what we write is what the library reads, and every lie of a file is told by its name."""

import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmctl.config.errors import InputError, IntegrityError, LlmctlError
from llmctl.model.formats.safetensors_header import read_header
from llmctl.model.formats.safetensors_reader import INDEX_FILE, WEIGHTS_FILE, SafetensorsFolder
from llmctl.model.formats.safetensors_writer import Planned, write_folder

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "c.weight": torch.ones(5, dtype=torch.float16),
    "empty": torch.zeros(0, 3),
}


def write(directory: Path, tensors: dict[str, torch.Tensor], shard_bytes: int = 1 << 40) -> None:
    planned = {name: Planned(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_folder(directory, planned, tensors.__getitem__, shard_bytes=shard_bytes)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    back = load_file(tmp_path / WEIGHTS_FILE)
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / WEIGHTS_FILE, {"format": "pt"})
    folder = SafetensorsFolder.open(tmp_path)
    assert folder.stored.keys() == TENSORS.keys()
    assert all(torch.equal(folder.tensor(name), tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(("shard_bytes", "files"), [(1 << 40, 1), (60, 2), (1, 4)])
def test_shards_round_trip(tmp_path: Path, shard_bytes: int, files: int) -> None:
    write(tmp_path, TENSORS, shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    folder = SafetensorsFolder.open(tmp_path)
    assert set(folder.stored) == set(TENSORS)
    assert all(torch.equal(folder.tensor(name), tensor) for name, tensor in TENSORS.items())
    if files > 1:
        index = json.loads((tmp_path / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())


def test_a_tensor_is_made_when_it_is_written_and_not_before(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.full((4,), float(len(made)))

    planned = {name: Planned(torch.float32, (4,)) for name in "xyz"}
    write_folder(tmp_path, planned, make, shard_bytes=32)
    assert made == ["x", "y", "z"]
    with pytest.raises(ValueError, match="x has shape"):
        write_folder(tmp_path, planned, lambda _: torch.zeros(5))
    assert not list(tmp_path.glob("*.tmp"))


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


FAULTS: list[tuple[bytes, str]] = [
    (b"", "0 bytes, too few"),
    (b"\x01\x02", "2 bytes, too few"),
    (struct.pack("<Q", 1 << 62), "length is 4611686018427387904, more than"),
    (struct.pack("<Q", 100) + b"{}", "length is 100, but only 2 bytes follow"),
    (file_of(b"{"), "header is not JSON"),
    (file_of(b"\xff\xfe"), "header is not JSON"),
    (file_of(b"[" * 100_000), "header is not JSON"),
    (file_of(b'{"t":' + b"9" * 5000 + b"}"), "header is not JSON"),
    (file_of([]), "no JSON object"),
    (file_of({"__metadata__": {"a": 1}}), "no map of strings"),
    (file_of({"t": 3}), "tensor 't' has no entry"),
    (file_of({"t": entry(dtype="F33")}), "tensor 't' has the unknown dtype 'F33'"),
    (file_of({"t": entry(dtype=["F32"])}), "tensor 't' has the unknown dtype"),
    (file_of({"t": entry(shape=[-2])}), "tensor 't' has the shape"),
    (file_of({"t": entry(shape=[True])}), "tensor 't' has the shape"),
    (file_of({"t": entry(shape=[1 << 70])}), "tensor 't' has the shape"),
    (file_of({"t": entry(shape=[0, 1 << 62, 4], offsets=[0, 0])}), "tensor 't' has the shape"),
    (file_of({"t": entry(shape="2")}), "tensor 't' has the shape"),
    (file_of({"t": entry(offsets=[8, 0])}), "tensor 't' has the data_offsets"),
    (file_of({"t": entry(offsets=[0, 4, 8])}), "tensor 't' has the data_offsets"),
    (file_of({"t": entry(offsets=[0.0, 8.0])}), "tensor 't' has the data_offsets"),
    (file_of({"t": entry(shape=[3])}), "tensor 't' has 8 bytes, but F32 of shape .3. takes 12"),
    (file_of({"t": entry(dtype="F64")}), "tensor 't' has 8 bytes, but F64 of shape .2. takes 16"),
    (file_of({"t": entry(offsets=[8, 16])}, bytes(16)), "8 bytes before tensor 't' are of none"),
    (file_of({"t": entry(), "u": entry(offsets=[4, 12])}, bytes(12)), "tensor 'u' overlaps 't'"),
    (file_of({"t": entry(), "u": entry(offsets=[8, 16])}), "tensor 'u' ends at byte 16 of the data, but there are 8"),
    (file_of({"t": entry()}, bytes(9)), "last 1 bytes are of no tensor"),
    (file_of(b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"t":1}'), "names 't' twice"),
]


@pytest.mark.parametrize(("content", "says"), FAULTS, ids=[says for _, says in FAULTS])
def test_a_broken_header_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match=says) as caught:
        SafetensorsFolder.open(tmp_path)
    assert WEIGHTS_FILE in caught.value.what


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_by_the_name_of_safetensors_is_refused_with_the_reason(tmp_path: Path, protocol: int) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(pickle.dumps({"weight": [1.0] * 40}, protocol=protocol))
    with pytest.raises(InputError, match="is a pickle .* run the code"):
        SafetensorsFolder.open(tmp_path)


def test_a_pytorch_file_by_any_name_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin, a pickle"):
        SafetensorsFolder.open(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / WEIGHTS_FILE)
    with pytest.raises(InputError, match=r"model.safetensors is a pickle"):
        SafetensorsFolder.open(tmp_path)


def test_a_header_of_as_many_bytes_as_a_pickle_begins_with_is_no_pickle(tmp_path: Path) -> None:
    text = json.dumps({"t": entry()}).encode()
    for length in (0x80, 0x280, 0x380, 0x480, 0x580):
        (tmp_path / "x.safetensors").write_bytes(file_of(text + b" " * (length - len(text))))
        assert list(read_header(tmp_path / "x.safetensors")) == ["t"]


def edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def fault(directory: Path) -> None:
        index = json.loads((directory / INDEX_FILE).read_text())
        change(index)
        (directory / INDEX_FILE).write_text(json.dumps(index))

    return fault


INDEX_FAULTS: list[tuple[Callable[[Path], object], type[LlmctlError], str]] = [
    (lambda d: (d / "model-00002-of-00004.safetensors").unlink(), InputError, "00002-of-00004.* has 'b.weight' in it"),
    (edit_index(lambda i: i["weight_map"].update(x="model-00001-of-00004.safetensors")), IntegrityError, "lacks 'x'"),
    (edit_index(lambda i: i["weight_map"].update(x="../x.safetensors")), IntegrityError, "puts 'x' into '../x"),
    (edit_index(lambda i: i["weight_map"].update(x="x.bin")), IntegrityError, "puts 'x' into 'x.bin'"),
    (edit_index(lambda i: i["weight_map"].update(x=3)), IntegrityError, "puts 'x' into 3"),
    (
        edit_index(lambda i: i["weight_map"].update({"b.weight": "model-00001-of-00004.safetensors"})),
        IntegrityError,
        "lacks 'b.weight'",
    ),
    (edit_index(lambda i: i.pop("weight_map")), IntegrityError, "no weight_map"),
    (lambda d: (d / INDEX_FILE).write_text("{"), IntegrityError, "not JSON"),
    (lambda d: (d / INDEX_FILE).write_text("[]"), IntegrityError, "no weight_map"),
    (lambda d: (d / INDEX_FILE).unlink(), InputError, "model.safetensors does not exist"),
    (
        lambda d: save_file({"a.weight": torch.ones(1), "z": torch.ones(1)}, d / "model-00001-of-00004.safetensors"),
        IntegrityError,
        "holds 'z', which",
    ),
]


@pytest.mark.parametrize(("fault", "error", "says"), INDEX_FAULTS, ids=[says for _, _, says in INDEX_FAULTS])
def test_a_broken_set_of_shards_is_named(
    tmp_path: Path, fault: Callable[[Path], object], error: type[LlmctlError], says: str
) -> None:
    write(tmp_path, TENSORS, 1)
    fault(tmp_path)
    with pytest.raises(error, match=says):
        SafetensorsFolder.open(tmp_path)


def test_thousands_of_mutated_headers_read_or_fail_with_a_typed_error(tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    path = tmp_path / WEIGHTS_FILE
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for _ in range(4000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            kind, at = rng.randrange(4), rng.randrange(header_end)
            if kind == 0:
                content[at] = rng.randrange(256)
            elif kind == 1:
                del content[at : at + rng.randint(1, 20)]
            elif kind == 2:
                content[at:at] = rng.choice([b'"', b"[", b"{", b"9", b"-", b",", b"null", b"1e400", bytes(3)])
            else:
                content[at] = ord(rng.choice("0123456789"))
        path.write_bytes(content)
        try:
            folder = SafetensorsFolder.open(tmp_path)
            for name in folder.stored:
                folder.tensor(name)
            outcomes["read"] += 1
        except LlmctlError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 20  # a letter of a name, say
    assert outcomes["refused"] > 1000


@given(st.binary(max_size=200))
def test_any_bytes_read_or_fail_with_a_typed_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    with pytest.raises(LlmctlError):
        read_header(path)
