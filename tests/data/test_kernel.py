"""The compiled kernel against plain Python, and against datasketch."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data.dedup import kernel
from llmctl.data.dedup.kernel import normalise, shared, shingles
from llmctl.data.dedup.minhash import FALSE_NEGATIVE_WEIGHT, FALSE_POSITIVE_WEIGHT, FOUND, Signer, bands_and_rows
from tests.data import shingle_reference as reference
from tests.data.shingle_reference import as_shingles

AWKWARD = "aZ_9 \t\n.-#ßẞİıΐŉéÉ漢字ー٣²½①ǅﬁ\u00a0\u2003\u3000\u1680\x1c\x85\u0301\u200b\u2060\x00"
AWKWARD += "\U0001d518\U0001d7d8\U0001f642\U0010ffff"
texts = st.lists(st.one_of(st.text(max_size=60), st.text(AWKWARD, max_size=60)), max_size=12)


@given(texts, st.integers(1, 7))
@settings(max_examples=300)
def test_shingles_and_exact_keys_are_those_of_plain_python(given: list[str], n: int) -> None:
    folded = normalise(pa.array(given, pa.string()))
    found = shingles(folded, n)
    held = [found.hashes[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)]
    assert held == [reference.ngram_hashes(text, n) for text in given]
    keys = [int.from_bytes(key.tobytes(), "big") for key in folded.exact_keys()]
    assert keys == [xxhash.xxh3_128_intdigest(reference.normalised(text).encode()) for text in given]
    assert folded.short_keys().tolist() == [
        xxhash.xxh3_64_intdigest(reference.normalised(text).encode()) for text in given
    ]


def test_every_character_has_the_class_that_python_gives_it() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    text = " ".join(characters)
    found = shingles(normalise(pa.array([text])), 1)
    assert found.hashes.tolist() == reference.ngram_hashes(text, 1)


def test_slices_and_empty_columns() -> None:
    column = pa.array(["first text", "Second ÄTEXT", "", "third"])
    whole, part = (shingles(normalise(c), 1).hashes.tolist() for c in (column, column.slice(1, 2)))
    assert part == whole[2:4]
    assert len(shingles(normalise(column.slice(0, 0)), 3)) == 0
    assert shingles(normalise(pa.array(["", " "])), 3).offsets.tolist() == [0, 0, 0]


@given(st.binary(max_size=80), st.integers(1, 3))
def test_broken_utf8_is_read_to_its_end_and_no_further(data: bytes, n: int) -> None:
    found = kernel.Texts(np.frombuffer(data + bytes(8), dtype=np.uint8), np.array([0, len(data)]))
    hashes = shingles(found, n).hashes
    assert len(hashes) <= (len(data) + 1) // 2
    other = kernel.Texts(np.frombuffer(data + b"abcdefgh", dtype=np.uint8), np.array([0, len(data)]))
    assert np.array_equal(shingles(other, n).hashes, hashes), "what lies behind the text changes nothing"


def test_signatures_are_those_of_datasketch_and_of_numpy() -> None:
    chance = np.random.default_rng(0)
    sets = [np.unique(chance.integers(0, 2**64, size, dtype=np.uint64)) for size in (1, 7, 40_000, 300, 2, 1024, 1025)]
    for permutations in (16, 33, 64, 128):
        signer = Signer.drawn(permutations, seed=3)
        signed = signer(as_shingles(sets))
        assert np.array_equal(signed, reference.signatures(sets, signer.factors, signer.addends))
        for row, one in zip(signed, sets, strict=True):
            held = MinHash(num_perm=permutations, seed=3, scheme="affine32", hashfunc=lambda value: value)
            held.update_batch((one & np.uint64(0xFFFFFFFF)).tolist())
            assert np.array_equal(row, held.hashvalues)


def test_permutations_bands_and_rows_are_those_of_datasketch() -> None:
    for permutations, seed in ((16, 1), (128, 2**32 - 1), (256, 7)):
        signer = Signer.drawn(permutations, seed)
        drawn = MinHash(num_perm=permutations, seed=seed, scheme="affine32").permutations
        assert np.array_equal(np.array([signer.factors, signer.addends]), drawn)
    for (threshold, permutations), found in FOUND.items():
        index = MinHashLSH(threshold, permutations, weights=(FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT))
        assert (index.b, index.r) == bands_and_rows(threshold, permutations) == found
    assert bands_and_rows(0.5, 128) == (42, 3)
    assert bands_and_rows(1.0, 128) == (2, 64), "where datasketch's best would be a single band"


def test_a_text_without_shingles_has_the_largest_signature() -> None:
    assert (Signer.drawn(16, 1)(as_shingles([np.empty(0, np.uint64)])) == 0xFFFFFFFF).all()


hashes = st.lists(st.integers(0, 50) | st.integers(0, 2**64 - 1), max_size=40)


@given(st.lists(hashes, min_size=1, max_size=6))
def test_sets_and_what_they_share(given: list[list[int]]) -> None:
    held = as_shingles([np.array(one, dtype=np.uint64) for one in given]).sets()
    for one, (a, b) in zip(given, zip(held.offsets, held.offsets[1:], strict=False), strict=True):
        assert held.hashes[a:b].tolist() == sorted(set(one))
    addresses = held.offsets[:-1].astype(np.uint64) * np.uint64(8) + np.uint64(held.hashes.ctypes.data)
    pairs = np.array([(i, j) for i in range(len(given)) for j in range(len(given))])
    true = np.array([len(set(given[i]) & set(given[j])) for i, j in pairs.tolist()])
    assert shared(addresses, held.lengths(), pairs, np.zeros_like(true)).tolist() == true.tolist()
    assert shared(addresses, held.lengths(), pairs, true).tolist() == true.tolist()
    given_up = shared(addresses, held.lengths(), pairs, true + 1)
    assert (given_up == true).all()
    assert (shared(addresses, held.lengths(), pairs, true + 5) < true + 5).all()


def test_a_comparison_in_vain_ends_early() -> None:
    held = as_shingles([np.arange(0, 2000, 2, dtype=np.uint64), np.arange(1, 2001, 2, dtype=np.uint64)])
    addresses = np.array([0, 8000], np.uint64) + np.uint64(held.hashes.ctypes.data)
    (bound,) = shared(addresses, held.lengths(), np.array([[0, 1]]), np.array([900])).tolist()
    assert 800 < bound < 900, "given up at the first look after a hundred hashes that the other lacks"


def test_shifted_sets_are_compared_without_their_lowest_bits() -> None:
    held = as_shingles([np.array([1 << 30, 5 << 30], np.uint64), np.array([(1 << 30) + 77, 6 << 30], np.uint64)])
    addresses = np.array([0, 16], np.uint64) + np.uint64(held.hashes.ctypes.data)
    assert shared(addresses, held.lengths(), np.array([[0, 1]]), np.array([1])).tolist() == [0]
    assert shared(addresses, held.lengths(), np.array([[0, 1]]), np.array([1]), shift=24).tolist() == [1]


def test_a_missing_library_is_one_clear_error(tmp_path: Path) -> None:
    package = tmp_path / "llmctl"
    shutil.copytree(Path(kernel.__file__).parents[2], package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = (
        "from llmctl.config.errors import LlmctlError\nfrom llmctl.data.dedup.kernel import library\n"
        "try: library()\nexcept LlmctlError as error: print(error.one_line)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert "was not built" in done.stdout
    assert "apt install g++" in done.stdout


@pytest.mark.slow
def test_a_wheel_carries_the_library(tmp_path: Path) -> None:
    source = tmp_path / "source"
    root = Path(kernel.__file__).parents[3]
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(root / "llmctl", source / "llmctl", ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(root / name, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*wheel, str(source)], check=True)
    (built,) = tmp_path.glob("llmctl-*.whl")
    shutil.unpack_archive(built, tmp_path / "installed", "zip")
    code = "from llmctl.data.dedup import kernel; print(kernel.__file__, kernel.library().shared)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(tmp_path / "installed")})  # fmt: skip
    assert str(tmp_path / "installed") in done.stdout
