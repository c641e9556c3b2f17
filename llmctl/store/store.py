"""The store: finds artifacts, opens runs, commits them. The only writer of manifests, refs and indexes."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from llmctl.config.errors import InputError, IntegrityError, LockedError, UsageError
from llmctl.store.artifact import Artifact
from llmctl.store.card import render_card
from llmctl.store.contents import read_contents
from llmctl.store.croissant import CROISSANT_FILE, render_croissant
from llmctl.store.files import explain, explained, publish_bytes, sha256_file, sync_directory
from llmctl.store.history import documents_before
from llmctl.store.layout import NAME, RESERVED, STORE_FILE, STORE_FORMAT, RunDirectory, check_name, index_file
from llmctl.store.manifest import MANIFEST_FILE, FileEntry, Manifest
from llmctl.store.refs import Pointer, add_version, latest_version, parse_ref, read_pointer, versions

READ_ONLY = 0o444


@dataclass(frozen=True)
class Store:
    """A directory of immutable artifacts.

    Attributes:
        root: its absolute path.
    """

    root: Path

    @classmethod
    def open(cls, location: str | Path, *, create: bool = False) -> Store:
        """Open the store at `location`; with `create`, make it first where nothing is there.

        Raises:
            UsageError: for a URI, since artifacts are memory-mapped from local disk.
            InputError: where there is no store, or its directory cannot be used.
        """
        root = cls._local(location)
        mark = root / STORE_FILE
        try:
            if not mark.exists():
                if not create:
                    raise InputError(f"there is no store at {location}", hint="give --store, or make an artifact first")
                root.mkdir(parents=True, exist_ok=True)
                publish_bytes(mark, (json.dumps({"format": STORE_FORMAT}) + "\n").encode())
            held = json.loads(mark.read_bytes())
        except OSError as error:
            raise explain(error, f"the store {location}") from error
        except ValueError:
            held = None
        if not isinstance(held, dict) or held.get("format") != STORE_FORMAT:
            raise IntegrityError(f"{mark} does not say {STORE_FORMAT}", hint="choose another --store directory")
        return cls(root)

    @classmethod
    def expected(cls, location: str | Path) -> Store:
        """The store at `location`, or the empty one that `open(create=True)` would make there; writes nothing."""
        root = cls._local(location)
        with explained(f"the store {location}"):
            there = (root / STORE_FILE).exists()
        return cls.open(root) if there else cls(root)

    @staticmethod
    def _local(location: str | Path) -> Path:
        if "://" in str(location):
            raise UsageError(
                f"the store {location} is not a local directory", hint="give a path: artifacts are memory-mapped"
            )
        return Path(location).expanduser().absolute()

    def names(self) -> list[str]:
        """All artifact names, sorted."""
        entries = [
            p.name for p in self.root.iterdir() if p.is_dir() and NAME.fullmatch(p.name) and p.name not in RESERVED
        ]
        return sorted(name for name in entries if (self.root / name / "refs").is_dir())

    def versions(self, name: str) -> list[str]:
        """Every version of `name` as a reference, oldest first."""
        return [f"{name}@v{number}" for number in versions(self.root, name)]

    def resolve(self, ref: str) -> Artifact:
        """Find `name`, `name@v3`, `name@sha256:…` or the path of a run directory.

        Raises:
            InputError: where nothing answers to it.
        """
        if "/" in ref or ref.startswith("."):
            return self._at_path(ref)
        parsed = parse_ref(ref)
        bare = parsed.version is None and parsed.digest_prefix is None
        latest = latest_version(self.root, parsed.name) if bare else None  # first: a newer one may come meanwhile
        known = versions(self.root, parsed.name)
        if not known:
            raise InputError(f"no artifact is called {parsed.name!r} in {self.root}", hint="see llmctl ls")
        if parsed.digest_prefix is not None:
            hits = [n for n, p in known.items() if p.digest.removeprefix("sha256:").startswith(parsed.digest_prefix)]
            number = hits[-1] if hits else None
        else:
            number = parsed.version or latest or max(known)
        if number not in known:
            shown = ", ".join(f"v{n}" for n in known)
            raise InputError(f"{ref} does not exist; {parsed.name} has {shown}", hint=f"see llmctl ls {parsed.name}")
        return self.load(known[number], f"{parsed.name}@v{number}")

    def find(self, digest: str) -> Artifact:
        """The artifact with this content digest.

        Raises:
            InputError: where the store holds none.
        """
        pointer = read_pointer(index_file(self.root, "digest", digest))
        if pointer is None:
            raise InputError(f"the store {self.root} holds nothing with digest {digest[:19]}…", hint="see llmctl ls")
        return self.load(pointer, self._ref_of(pointer))

    def load(self, pointer: Pointer, ref: str) -> Artifact:
        """Read the manifest that `pointer` names and check it against the pointer."""
        artifact = self._read(self.root / pointer.run, ref)
        if sha256_file(artifact.path / MANIFEST_FILE) != pointer.manifest_sha256:
            raise IntegrityError(
                f"the manifest of {ref} was changed after its commit", hint="make the artifact again with --force"
            )
        return artifact

    def begin(self, name: str, run_id: str) -> tuple[RunDirectory, AbstractContextManager[object]]:
        """Make the directory of a new run, or re-open a partial one, and take its lock.

        Returns:
            The run, and its lock, held: leaving the context manager releases it.

        Raises:
            LockedError: where a live process works on that run.
        """
        run = RunDirectory(self.root, check_name(name), run_id)
        with explained(f"the store {self.root}"):
            run.data.mkdir(parents=True, exist_ok=True)
            run.work.mkdir(exist_ok=True)
            try:
                held = FileLock(run.lock).acquire(blocking=False)
            except Timeout:
                raise LockedError(f"another process works on run {run_id}", hint="wait for it, or stop it") from None
        return run, held

    def commit(self, run: RunDirectory, manifest: Manifest) -> Pointer:
        """Make a finished run visible: cards, read-only files, manifest (the commit mark), then the indexes."""
        with explained(f"the store {self.root}"):
            self._describe(run, manifest)
            for entry in manifest.files:
                (run.path / entry.path).chmod(READ_ONLY)
            publish_bytes(run.manifest, manifest.to_bytes())
            run.manifest.chmod(READ_ONLY)
            sync_directory(run.path.parent)
            return self.record(run, manifest)

    def _describe(self, run: RunDirectory, manifest: Manifest) -> None:
        """Write the data cards."""
        contents = read_contents(run.path, manifest)
        ancestors = documents_before(manifest, self.find) if contents is not None else []
        publish_bytes(run.path / "README.md", render_card(manifest, run.name, contents, ancestors).encode())
        if contents is not None:
            described = render_croissant(manifest, run.name, contents)
            publish_bytes(run.path / CROISSANT_FILE, described.encode())

    def record(self, run: RunDirectory, manifest: Manifest) -> Pointer:
        """Write the index entries of a committed run; safe to repeat after a kill between commit and index."""
        pointer = Pointer(run.key, manifest.digest, sha256_file(run.manifest))
        publish_bytes(index_file(self.root, "digest", manifest.digest), pointer.to_bytes())
        publish_bytes(index_file(self.root, "action", manifest.producer.action_key), pointer.to_bytes())
        shutil.rmtree(run.work, ignore_errors=True)
        return pointer

    def publish_version(self, name: str, pointer: Pointer, *, reuse: bool = False) -> Artifact:
        """Give a committed run the next version of `name` (or its old one, with `reuse`) and return it."""
        with explained(f"the store {self.root}"):
            number = add_version(self.root, name, pointer, reuse=reuse)
        return self.load(pointer, f"{name}@v{number}")

    def cached(self, action_key: str) -> Pointer | None:
        """The run that this action gave before; an entry that is damaged, dangling or lacks bytes counts as none."""
        try:
            pointer = read_pointer(index_file(self.root, "action", action_key))
            if pointer is None:
                return None
            artifact = self.load(pointer, pointer.run)
        except (InputError, IntegrityError):
            return None
        return pointer if all(_is_whole(artifact.path / f.path, f.bytes) for f in artifact.manifest.files) else None

    def _read(self, path: Path, ref: str) -> Artifact:
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
        except FileNotFoundError:
            raise InputError(f"{ref} is not a committed artifact", hint="see llmctl ls") from None
        except OSError as error:
            raise explain(error, ref) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "JSON"
            raise IntegrityError(
                f"the manifest of {ref} is damaged at {where}", hint="make the artifact again with --force"
            ) from None
        return Artifact(path, manifest, ref)

    def _at_path(self, text: str) -> Artifact:
        path = Path(text).expanduser()
        if not path.is_dir():
            raise InputError(f"{text} is not a run directory", hint="give the directory that holds manifest.json")
        return self._read(path.absolute(), text)

    def _ref_of(self, pointer: Pointer) -> str:
        """The best name for a run: the version of its own name that points to it, else its digest."""
        name = pointer.run.partition("/")[0]
        for number, known in versions(self.root, name).items():
            if known.run == pointer.run:
                return f"{name}@v{number}"
        return f"{name}@{pointer.digest[:19]}"


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def describe_files(run: RunDirectory) -> list[FileEntry]:
    """Hash every file under `data/`, sorted by path.

    Raises:
        IntegrityError: where a half-written file was left, or a link points out of the run.
    """
    entries: list[FileEntry] = []
    for path in sorted(p for p in run.data.rglob("*") if not p.is_dir()):
        relative = path.relative_to(run.path).as_posix()
        if path.suffix == ".tmp" or path.is_symlink():
            raise IntegrityError(f"{relative} in run {run.run_id} is not a finished file", hint="run the command again")
        entries.append(FileEntry(path=relative, bytes=path.stat().st_size, sha256=sha256_file(path)))
    return entries
