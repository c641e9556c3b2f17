"""Writes a GGUF file one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.model.formats.gguf_header import ENCODINGS
from llmctl.store.files import explained, sync_directory

if TYPE_CHECKING:
    from gguf import GGUFWriter

Format = Literal["F32", "F16", "BF16", "Q8_0"]
FILE_TYPES: Final = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama.cpp's LLAMA_FTYPE
BLOCK = 32  # numbers of a block of Q8_0


def format_of(shape: Sequence[int], wanted: Format) -> Format:
    """How one tensor is kept: vectors in F32, as llama.cpp expects, and in F16 what Q8_0 cannot divide into blocks."""
    if len(shape) == 1:
        return "F32"
    return "F16" if wanted == "Q8_0" and shape[-1] % BLOCK else wanted


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[str], Tensor],
    *,
    wanted: Format,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a file that appears whole or not at all; equal arguments give equal bytes.

    Args:
        path: where to.
        architecture: llama.cpp's name of it.
        metadata: by key. Integers are written as u32, floats as f32; a numpy array keeps its type.
        shapes: of every tensor by name, in torch's order.
        make: gives the tensor of a name; asked once for each, and not kept.
        wanted: how matrices are kept.
        wrote: told the bytes of weights written so far.
    """
    import gguf

    temporary = path.with_name(f"{path.name}.tmp")
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_file_type(FILE_TYPES[wanted])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata.items():
        _add(writer, key, value)
    formats = {name: format_of(shape, wanted) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[formats[name]]
        held = _bytes(shape, formats[name])
        stored = gguf.quant_shape_to_byte_shape(shape, kind) if formats[name] in ("Q8_0", "BF16") else shape
        dtype = np.dtype(np.uint8) if formats[name] in ("Q8_0", "BF16") else np.dtype(np.float32)
        writer.add_tensor_info(name, stored, dtype, held, raw_dtype=kind)
    try:
        with explained(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            done = 0
            for name in shapes:
                block = encode(make(name), formats[name])
                writer.write_tensor_data(block)
                done += block.nbytes
                wrote(done)
            writer.close()
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def encode(tensor: Tensor, kept: Format) -> NDArray[Any]:
    """The numbers of a tensor as the file holds them."""
    tensor = tensor.detach().cpu()
    if kept == "F32":
        return tensor.float().contiguous().numpy()
    if kept == "F16":
        return tensor.half().contiguous().numpy()
    if kept == "BF16":
        return tensor.bfloat16().contiguous().view(torch.uint8).numpy()
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    quantized: NDArray[Any] = quantize(tensor.float().contiguous().numpy(), GGMLQuantizationType.Q8_0)
    return quantized


def _bytes(shape: Sequence[int], kept: Format) -> int:
    encoding = next(encoding for encoding in ENCODINGS.values() if encoding.name == kept)
    return int(np.prod(shape)) // encoding.items * encoding.bytes


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """One entry of the metadata, with the type that llama.cpp reads it by."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
