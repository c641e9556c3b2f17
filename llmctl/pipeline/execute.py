"""Runs one stage: inputs, cache, run directory, body, commit, version. Every stage passes through here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from ulid import ULID

import llmctl
from llmctl.config.base import Config, semantic_values
from llmctl.config.errors import InputError, IntegrityError, LlmctlError, LockedError, UsageError
from llmctl.pipeline.events import EventLog, now
from llmctl.pipeline.job import Job, Product, Progress
from llmctl.pipeline.stage import Stage, Verb, load
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Artifact, FileInput, Input
from llmctl.store.files import explain, explained, publish_bytes, sha256_file
from llmctl.store.layout import RunDirectory, index_file
from llmctl.store.manifest import (
    MANIFEST_FILE,
    FileEntry,
    InputEntry,
    Manifest,
    Producer,
    RunInfo,
    content_digest,
    sha256_of,
)
from llmctl.store.refs import Pointer, read_pointer
from llmctl.store.store import Store, describe_files


@dataclass(frozen=True)
class Call:
    """One request to run a stage.

    Attributes:
        stage: what to run.
        config: its validated configuration.
        inputs: by role, already resolved.
        name: artifact name; the stage's default (`web.clean`) where None.
        force: run even where the cache has the answer.
        argv: the command line, for the manifest.
        run_id: fixed at the start, since the `begin` receipt carries it.
    """

    stage: Stage
    config: Config
    inputs: Mapping[str, Input]
    name: str | None = None
    force: bool = False
    argv: tuple[str, ...] = ()
    run_id: str = field(default_factory=lambda: str(ULID()))

    def with_inputs(self, inputs: Mapping[str, Input]) -> Call:
        """The same call, once its inputs are known."""
        return dataclasses.replace(self, inputs=inputs)


@dataclass(frozen=True)
class Outcome:
    """What came of a call."""

    artifact: Artifact
    cached: bool


def resolve_inputs(
    verb: Verb, refs: Mapping[str, str], store: Store, given: Mapping[str, Input] | None = None
) -> dict[str, Input]:
    """Find every input that `refs` names; all missing and misfitting ones are reported together.

    Args:
        verb: whose roles are to be filled.
        refs: role to reference, or to a path of a plain file where the role takes one.
        store: where references are looked up.
        given: inputs that are there already: from the pipe, or from an earlier step of a recipe.
    """
    found: dict[str, Input] = dict(given or {})
    for role, there in found.items():
        _check_kind(there, role, verb)
    faults: list[LlmctlError] = []
    for role, wanted in verb.inputs.items():
        if role in found:
            continue
        if role not in refs:
            if wanted.required:
                option = "an argument or a pipe" if role == "input" else f"--{role} REF"
                faults.append(UsageError(f"{verb.command} needs {wanted.help}", hint=f"give {option}"))
            continue
        try:
            found[role] = _resolve(refs[role], role, verb, store)
        except LlmctlError as error:
            faults.append(error)
    if faults:
        if len(faults) == 1:
            raise faults[0]
        raise type(faults[0])("; ".join(fault.one_line for fault in faults))
    return found


def _resolve(ref: str, role: str, verb: Verb, store: Store) -> Input:
    wanted = verb.inputs[role]
    path = Path(ref).expanduser()
    if wanted.files and path.is_file():
        try:
            return FileInput(path, "sha256:" + sha256_file(path), wanted.kinds[0])
        except OSError as error:
            raise explain(error, ref) from error
    artifact = store.resolve(ref)
    _check_kind(artifact, role, verb)
    return artifact


def _check_kind(given: Input, role: str, verb: Verb) -> None:
    if given.kind not in verb.inputs[role].kinds:
        fitting = " or ".join(verb.inputs[role].kinds)
        raise InputError(
            f"{given.ref} is a {given.kind} artifact; {verb.command} takes {fitting} as {role}", hint="see llmctl ls"
        )


def execute(call: Call, store: Store, progress: Progress) -> Outcome:
    """Run a stage, or answer from the cache; the artifact is published when this returns.

    Raises:
        LlmctlError: nothing was published; what a resumable stage saved is kept for the same call again.
    """
    name, digests = _identify(call)
    key = _action_key(call, digests)
    _finish_commit(store, key)
    if not call.force and (pointer := store.cached(key)) is not None:
        return Outcome(store.publish_version(name, pointer, reuse=True), cached=True)
    with explained(f"the store {store.root}"):
        run, lock = _open_run(call, store, name, key)
        events = EventLog(store.root / "runs" / f"{run.run_id}.jsonl")
        events.add("START", command=call.stage.command, action=key, argv=list(call.argv), name=name)
    try:
        with lock, explained(f"the store {store.root}"):
            artifact = _Attempt(call, store, run, key, digests, progress).carry_out()
            events.add("COMPLETE", ref=artifact.ref, digest=artifact.digest)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be full: the first error is the one to tell
            events.add("FAIL", error=error.one_line if isinstance(error, LlmctlError) else repr(error))
        if not call.stage.resumable and not run.manifest.exists():
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Outcome(artifact, cached=False)


def plan(call: Call, store: Store) -> dict[str, object]:
    """What `execute` would do, without doing it: the resolved configuration, inputs, name and cache state."""
    name, digests = _identify(call)
    key = _action_key(call, digests)
    return {
        "command": call.stage.command,
        "name": name,
        "config": call.config.model_dump(mode="json"),
        "inputs": digests,
        "action_key": key,
        "cached": store.cached(key) is not None,
    }


def _identify(call: Call) -> tuple[str, dict[str, str]]:
    """The artifact's name, and the digest of everything that will be read, by role."""
    digests = {role: given.digest for role, given in call.inputs.items()}
    base = ""
    if call.stage.sources is not None:
        base, read = load(call.stage.sources)(call.config)
        digests.update(read)
        return call.name or base, digests
    source = call.inputs["input"]
    base = source.path.parent.name if isinstance(source, Artifact) else source.path.stem
    return call.name or f"{base.partition('.')[0]}.{call.stage.command}", digests


def _action_key(call: Call, digests: Mapping[str, str]) -> str:
    return sha256_of(
        {
            "command": call.stage.command,
            "op_version": call.stage.op_version,
            "config": semantic_values(call.config),
            "inputs": dict(digests),
        }
    )


def _finish_commit(store: Store, key: str) -> None:
    """Index a run that was killed between its commit and its index entries."""
    left = _partial(store, key)
    if left is None or not (store.root / left.run / MANIFEST_FILE).exists():
        return
    name, _, run_id = left.run.partition("/")
    run = RunDirectory(store.root, name, run_id)
    store.record(run, store.resolve(str(run.path)).manifest)
    index_file(store.root, "partial", key).unlink(missing_ok=True)


def _partial(store: Store, key: str) -> Pointer | None:
    """The unfinished run of an action, if a killed one left its mark."""
    try:
        return read_pointer(index_file(store.root, "partial", key))
    except IntegrityError:
        return None


def _open_run(call: Call, store: Store, name: str, key: str) -> tuple[RunDirectory, FileLock]:
    """Start a run, taking over what a killed one with the same action key left behind."""
    left = _partial(store, key)
    if left is not None and (taken := _take_over(call, store, left)) is not None:
        return taken
    run, lock = store.begin(name, call.run_id)
    publish_bytes(index_file(store.root, "partial", key), Pointer(run.key, "", "").to_bytes())
    return run, lock


def _take_over(call: Call, store: Store, left: Pointer) -> tuple[RunDirectory, FileLock] | None:
    """The partial run `left` with its lock, if it can be resumed; what cannot be is swept."""
    name, _, run_id = left.run.partition("/")
    if not (store.root / left.run).is_dir():
        return None
    try:
        run, lock = store.begin(name, run_id)
    except LockedError:
        return None
    if call.force or not call.stage.resumable:
        shutil.rmtree(run.path, ignore_errors=True)
        lock.release()
        return None
    shutil.rmtree(run.data)
    run.data.mkdir()
    return run, lock


@dataclass(frozen=True)
class _Attempt:
    """One run from its open directory to its published version."""

    call: Call
    store: Store
    run: RunDirectory
    key: str
    digests: Mapping[str, str]
    progress: Progress
    nested_inputs: dict[str, Artifact] = field(default_factory=dict)

    def carry_out(self) -> Artifact:
        """Call the stage's body, commit what it made, and give it a version."""
        started = now()
        job = Job(
            config=self.call.config,
            inputs=self.call.inputs,
            out=self.run.data,
            work=self.run.work,
            metrics_file=self.run.metrics,
            progress=self.progress,
            nested=self.nested,
            lineage=self.store.find,
        )
        product: Product = load(self.call.stage.run)(job)
        pointer = self.store.commit(self.run, self.manifest(product, started))
        index_file(self.store.root, "partial", self.key).unlink(missing_ok=True)
        return self.store.publish_version(self.run.name, pointer)

    def nested(self, command: str, config: Config, inputs: Mapping[str, Input]) -> Artifact:
        """Run another stage through the cache; what it makes becomes an input of this run, under its command."""
        name = f"{self.run.name.partition('.')[0]}.{command}"
        inner = Call(stage_named(command), config, inputs, name=name, argv=self.call.argv)
        self.nested_inputs[command] = execute(inner, self.store, self.progress).artifact
        return self.nested_inputs[command]

    def manifest(self, product: Product, started: str) -> Manifest:
        """Everything that is known about the run, with every file hashed."""
        call, stage = self.call, self.call.stage
        files = [_with_facts(entry, product) for entry in describe_files(self.run)]
        if not files:
            raise InputError(f"{stage.command} made no files", hint="check that its input is not empty")
        used: dict[str, Input] = {**call.inputs, **self.nested_inputs}
        inputs = {role: given.as_input() for role, given in used.items()}
        for role in self.digests.keys() - inputs.keys():
            inputs[role] = InputEntry(digest=self.digests[role], kind="source", ref=role)
        return Manifest(
            kind=stage.output,
            schema=product.schema,
            digest=content_digest(stage.output, product.schema, product.semantic, files),
            files=files,
            totals=product.totals,
            semantic=product.semantic,
            producer=Producer(
                command=stage.command,
                op_version=stage.op_version,
                llmctl=llmctl.__version__,
                git=_git_revision(),
                argv=list(call.argv),
                config=call.config.model_dump(mode="json"),
                seed=getattr(call.config, "seed", None),
                action_key=self.key,
            ),
            inputs=dict(sorted(inputs.items())),
            run=RunInfo(id=self.run.run_id, started=started, finished=now(), host=socket.gethostname()),
            license=_licenses(product, used),
        )


def _with_facts(entry: FileEntry, product: Product) -> FileEntry:
    facts = product.files.get(entry.path.removeprefix("data/"))
    if facts is None:
        return entry
    return entry.model_copy(update={"rows": facts.rows, "tokens": facts.tokens, "split": facts.split})


def _licenses(product: Product, inputs: Mapping[str, Input]) -> list[str]:
    """The union of what the stage found and what its inputs carry."""
    found = set(product.license)
    for given in inputs.values():
        if isinstance(given, Artifact):
            found.update(given.manifest.license)
    return sorted(found)


def _git_revision() -> str | None:
    """The commit of the directory that the command runs in, for the record; None outside git."""
    if not any((parent / ".git").exists() for parent in (Path.cwd(), *Path.cwd().parents)):
        return None
    command = ["git", "rev-parse", "HEAD"]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    )
    return answer.stdout.strip() or None
