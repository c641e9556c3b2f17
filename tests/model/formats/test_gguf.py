"""GGUF: what the gguf package writes we read, and the other way round; every lie of a file is told by its name."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.errors import InputError, IntegrityError, LlmctlError
from llmctl.model.formats.gguf_header import ENCODINGS
from llmctl.model.formats.gguf_reader import GgufFile
from llmctl.model.formats.gguf_writer import Format, write_gguf

MATRIX = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))


def by_the_package(path: Path, kinds: dict[str, gguf.GGMLQuantizationType], version: int = 3) -> None:
    """A file with one tensor of each kind, written by the package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("flag", True)
    writer.add_array("words", ["a", "é"])
    writer.add_array("numbers", [1, 2, 3])
    for name, kind in kinds.items():
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, MATRIX.numpy())
        elif kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, MATRIX.half().numpy())
        else:
            writer.add_tensor(name, blocks_of(kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if version != 3:
        content = bytearray(path.read_bytes())
        content[4:8] = struct.pack("<I", version)
        path.write_bytes(content)


def blocks_of(kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Valid blocks: quantized where the package can, random bytes with sane scales else."""
    try:
        return quantize(MATRIX.numpy(), kind)
    except NotImplementedError:
        items, size = gguf.GGML_QUANT_SIZES[kind]
        return np.random.default_rng(0).integers(0, 60, (6, 256 // items * size), dtype=np.uint8)  # small float16


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=[encoding.name for encoding in ENCODINGS.values()])
@pytest.mark.parametrize("version", [2, 3])
def test_every_encoding_gives_what_the_package_gives(tmp_path: Path, encoding: object, version: int) -> None:
    kind = gguf.GGMLQuantizationType[encoding.name]  # type: ignore[attr-defined]
    path = tmp_path / "x.gguf"
    by_the_package(path, {"w": kind}, version)
    file = GgufFile.open(path)
    assert file.header.version == version
    assert file.stored["w"].shape == (6, 256)
    tensor = file.tensor("w")
    assert tensor.shape == (6, 256)
    if kind.name in ("F32", "F16", "BF16"):
        assert torch.equal(tensor, MATRIX.to(tensor.dtype))
    else:
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), dequantize(blocks_of(kind), kind))


def test_metadata_is_read(tmp_path: Path) -> None:
    by_the_package(tmp_path / "x.gguf", {"w": gguf.GGMLQuantizationType.F32})
    metadata = GgufFile.open(tmp_path / "x.gguf").metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 2
    assert metadata["llama.rope.freq_base"] == 10000.0
    assert metadata["flag"] is True
    assert metadata["words"] == ["a", "é"]
    assert metadata["numbers"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("wanted", "within"), [("F32", 0.0), ("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 2e-2)])
def test_the_package_reads_what_we_write(tmp_path: Path, wanted: Format, within: float) -> None:
    tensors = {"m": MATRIX, "v": MATRIX[0].bfloat16(), "odd": MATRIX[:, :33], "experts": MATRIX.view(2, 3, 256)}
    metadata = {"a.count": 7, "a.eps": 1e-5, "a.flag": False, "a.name": "é", "a.words": ["x", "y"], "a.ids": [1, 2]}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_gguf(tmp_path / "x.gguf", "llama", metadata, shapes, tensors.__getitem__, wanted=wanted)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    for key, value in metadata.items():
        assert reader.fields[key].contents() == (pytest.approx(value) if isinstance(value, float) else value)
    for found in reader.tensors:
        theirs = dequantize(found.data, found.tensor_type).reshape(shapes[found.name])
        assert np.abs(theirs - tensors[found.name].float().numpy()).max() <= within * 4
    ours = GgufFile.open(tmp_path / "x.gguf")
    assert {name: placed.encoding.name for name, placed in ours.stored.items()} == {
        "m": wanted,
        "v": "F32",
        "odd": "F16" if wanted == "Q8_0" else wanted,
        "experts": wanted,
    }
    again = {name: ours.tensor(name) for name in ours.stored}
    write_gguf(tmp_path / "y.gguf", "llama", metadata, shapes, again.__getitem__, wanted=wanted)
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def number(key: str, kind: int, packed: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + packed


def tensor(name: str = "w", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    lengths = b"".join(struct.pack("<Q", length) for length in shape)
    return text(name) + struct.pack("<I", len(shape)) + lengths + struct.pack("<IQ", kind, offset)


def file_of(metadata: list[bytes], tensors: list[bytes], data: bytes = bytes(16), version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + b"".join(metadata + tensors)
    return head + bytes(-len(head) % 32) + data


FAULTS: list[tuple[bytes, type[LlmctlError], str]] = [
    (b"", InputError, "does not begin with GGUF"),
    (b"GGML" + bytes(40), InputError, "does not begin with GGUF"),
    (b"GGUF\x03", IntegrityError, "ends within version"),
    (file_of([], [], version=1), InputError, "version is 1"),
    (file_of([], [], version=4), InputError, "version is 4"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), InputError, "big-endian"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), IntegrityError, "tensor_count is 1152921504606846976, more than"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), IntegrityError, "metadata_kv_count is"),
    (file_of([text("k") + struct.pack("<I", 99)], [tensor()]), IntegrityError, "'k' has the unknown type 99"),
    (file_of([number("k", 4, bytes(4))] * 2, [tensor()]), IntegrityError, "the metadata has 'k' twice"),
    (file_of([number("k", 8, struct.pack("<Q", 1 << 50))], [tensor()]), IntegrityError, "length of 'k' is"),
    (file_of([number("k", 8, struct.pack("<Q", 1) + b"\xff")], [tensor()]), IntegrityError, "'k' is not UTF-8"),
    (file_of([number("k", 9, struct.pack("<IQ", 4, 1 << 50))], [tensor()]), IntegrityError, "length of 'k' is"),
    (file_of([number("k", 9, struct.pack("<IQ", 9, 1))], [tensor()]), IntegrityError, "items of 'k' have the type 9"),
    (
        file_of([number("general.alignment", 4, struct.pack("<I", 0))], [tensor()]),
        IntegrityError,
        "general.alignment is 0",
    ),
    (file_of([number("split.count", 2, struct.pack("<H", 3))], [tensor()]), InputError, "one of 3 parts"),
    (file_of([], [tensor(), tensor(offset=32)], bytes(64)), IntegrityError, "tensor 'w' is there twice"),
    (file_of([], [tensor(shape=())]), IntegrityError, "tensor 'w' has 0 dimensions"),
    (file_of([], [tensor(shape=(1,) * 9)]), IntegrityError, "tensor 'w' has 9 dimensions"),
    (file_of([], [tensor(shape=(0, 1 << 63))]), IntegrityError, "tensor 'w' has the shape"),
    (file_of([], [tensor(kind=16)]), InputError, "tensor 'w' has the type 16, which is not read"),
    (file_of([], [tensor(kind=8)]), IntegrityError, "tensor 'w' has rows of 4, no multiple of Q8_0's 32"),
    (file_of([], [tensor(offset=4)]), IntegrityError, "tensor 'w' has the offset 4, no multiple"),
    (file_of([], [tensor(shape=(5,))]), IntegrityError, "tensor 'w' ends at byte"),
    (file_of([], [tensor(shape=(1 << 40, 1 << 40))]), IntegrityError, "tensor 'w' has the shape"),
    (file_of([], [tensor(shape=(16,)), tensor("u", offset=32)], bytes(64)), IntegrityError, "tensor 'u' overlaps 'w'"),
    (file_of([], [tensor()], bytes(15)), IntegrityError, "tensor 'w' ends at byte"),
]


@pytest.mark.parametrize(("content", "error", "says"), FAULTS, ids=[says for _, _, says in FAULTS])
def test_a_broken_header_is_named(tmp_path: Path, content: bytes, error: type[LlmctlError], says: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(error, match=says) as caught:
        GgufFile.open(tmp_path / "x.gguf")
    assert "x.gguf" in caught.value.what


def test_a_sound_small_file_opens(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(file_of([number("k", 4, bytes(4))], [tensor()]))
    file = GgufFile.open(tmp_path / "x.gguf")
    assert file.metadata == {"k": 0}
    assert torch.equal(file.tensor("w"), torch.zeros(4))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x.gguf does not exist"):
        GgufFile.open(tmp_path / "x.gguf")


def test_thousands_of_mutated_headers_read_or_fail_with_a_typed_error(tmp_path: Path) -> None:
    kinds = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "Q8_0", "Q4_K")}
    path = tmp_path / "x.gguf"
    by_the_package(path, kinds)
    whole = path.read_bytes()
    header_end = min(placed.start for placed in GgufFile.open(path).stored.values())
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for _ in range(4000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            kind, at = rng.randrange(4), rng.randrange(header_end)
            if kind == 0:
                content[at] = rng.randrange(256)
            elif kind == 1:
                del content[at : at + rng.randint(1, 20)]
            elif kind == 2:
                content[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1]))
            else:
                content[at:at] = rng.randbytes(rng.randint(1, 8))
        path.write_bytes(content)
        try:
            file = GgufFile.open(path)
            for name in file.stored:
                file.tensor(name)
            outcomes["read"] += 1
        except LlmctlError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 1000


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_fail_with_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + content)
    try:
        GgufFile.open(path)
    except LlmctlError:
        return
    assert content.startswith(bytes(16))  # no metadata, no tensors
