import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from llmctl.data.collect import python_docs
from llmctl.data.collect.document import Document, Tally


@pytest.fixture(scope="module")
def tally() -> Tally:
    return Tally()


@pytest.fixture(scope="module")
def found(tally: Tally) -> dict[str, Document]:
    return {document.id: document for document in python_docs.PythonDocs().documents(tally)}


def harvest(**environment: str) -> bytes:
    command = [sys.executable, "-P", "-S", "-X", "utf8", "-W", "ignore", str(python_docs.HARVEST)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **environment})
    assert done.stderr == b""
    return done.stdout


@pytest.fixture(scope="module")
def first() -> bytes:
    return harvest(
        PYTHONHASHSEED="1", HOME="/nowhere", AN_ENVIRONMENT_VARIABLE="hunter2", TZ="Asia/Tokyo", COLUMNS="40"
    )


def test_two_processes_give_the_same_bytes_whatever_their_environment(first: bytes) -> None:
    second = harvest(PYTHONHASHSEED="2", HOME="/elsewhere")
    assert first == second
    assert b"hunter2" not in first
    assert b" at 0x" not in first.replace(b" at 0xff", b"")


def test_size_and_order(found: dict[str, Document]) -> None:
    assert len(found) > 3_000
    assert sum(len(d.text.encode()) for d in found.values()) > 2_000_000
    ids = list(found)
    first_distribution = next(i for i, name in enumerate(ids) if name.startswith("python-docs/dist/"))
    assert ids[:first_distribution] == sorted(ids[:first_distribution])
    assert ids[first_distribution:] == sorted(ids[first_distribution:])


@pytest.mark.parametrize(
    "name",
    [
        "len", "os.path.join", "os.listdir", "asyncio.run", "heapq.heappush", "random.randint", "json.loads",
        "collections.Counter", "collections.abc.Mapping", "functools.lru_cache", "logging.handlers.QueueHandler",
        "json", "topic/assert",
    ],
)  # fmt: skip
def test_documented_names_are_there_once(found: dict[str, Document], name: str) -> None:
    document = found[f"python-docs/{name}"]
    assert document.url == f"python:{name}"
    assert document.license == "PSF-2.0"
    assert document.source == "python-docs"


@pytest.mark.parametrize(
    "name", ["posixpath.join", "posix.listdir", "asyncio.runners.run", "_heapq.heappush", "builtins.len", "this"]
)
def test_other_names_of_the_same_objects_are_not(found: dict[str, Document], name: str) -> None:
    assert f"python-docs/{name}" not in found


def test_records_are_heading_signature_and_docstring(found: dict[str, Document]) -> None:
    assert found["python-docs/os.path.join"].text == (
        "os.path.join(a, *p)\n\n"
        "Join two or more pathname components, inserting '/' as needed.\n"
        "If any component is an absolute path, all previous path components\n"
        "will be discarded.  An empty last part will result in a path that\n"
        "ends with a separator."
    )
    counter = found["python-docs/collections.Counter"].text
    assert counter.startswith("class collections.Counter(iterable=None, /, **kwds)\n\nDict subclass for counting")
    assert "\n\nCounter.most_common(self, n=None)\n\nList the n most common elements" in counter
    assert found["python-docs/json"].text.startswith("module json\n\nJSON (JavaScript Object Notation)")


def test_defaults_that_differ_between_machines_are_not_shown(found: dict[str, Document]) -> None:
    # Their defaults are os.environ and sys.executable.
    assert "environ=..." in found["python-docs/cgi.FieldStorage"].text.partition("\n")[0]
    assert found["python-docs/platform.architecture"].text.startswith("platform.architecture(executable=..., ")
    assert not [name for name, document in found.items() if sys.prefix in document.text]


def test_distributions_carry_their_own_licence(found: dict[str, Document]) -> None:
    version = metadata.version("datasketch")
    document = found["python-docs/dist/datasketch"]
    assert document.url == f"pkg:pypi/datasketch@{version}"
    assert document.license == "MIT"
    assert document.text.startswith(f"datasketch {version}\n\n")
    assert "python-docs/dist/llmctl" not in found


@pytest.mark.usefixtures("found")
def test_skipped_modules_are_counted(tally: Tally, first: bytes) -> None:
    last = json.loads(first.decode().rstrip("\n").rpartition("\n")[2])
    assert tally.skipped["modules"] == len(last["skipped"])
    assert last["skipped"]["antigravity"] == "never imported"
    assert tally.notes


def test_the_fingerprint_follows_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = python_docs.PythonDocs().fingerprint()
    assert before == python_docs.PythonDocs().fingerprint()
    info = tmp_path / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n\nA description.\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert python_docs.PythonDocs().fingerprint() != before
