"""Runs one stage: inputs, cache, run directory, body, commit, version. Every stage passes through here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ulid import ULID

import llmctl
from llmctl.config.base import Config, semantic_values
from llmctl.config.errors import InputError, LlmctlError, UsageError, together
from llmctl.pipeline.events import EventLog, Overheard, now
from llmctl.pipeline.job import Job, Product, Progress, Silent
from llmctl.pipeline.partial import Partial
from llmctl.pipeline.remote import is_remote, remote_file
from llmctl.pipeline.stage import Role, Stage, Verb, load
from llmctl.pipeline.stages import stage_named
from llmctl.store.artifact import Artifact, FileInput, Input
from llmctl.store.files import explain, explained
from llmctl.store.layout import RunDirectory, downloads_directory
from llmctl.store.manifest import (
    FileEntry,
    InputEntry,
    Manifest,
    Producer,
    RunInfo,
    content_digest,
    sha256_of,
)
from llmctl.store.store import Store, describe_files

LONGEST_ROOT = 80  # characters of a default name made from many inputs


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

    def with_derived(self, store: Store) -> Call:
        """The same call with the inputs that follow from those given, which nobody has to name."""
        if self.stage.derive is None:
            return self
        return self.with_inputs({**load(self.stage.derive)(self.inputs, store.find, self.config), **self.inputs})

    def with_inputs(self, inputs: Mapping[str, Input]) -> Call:
        """The same call, once its inputs are known."""
        return dataclasses.replace(self, inputs=inputs)


@dataclass(frozen=True)
class Outcome:
    """What came of a call, and the seconds that it took."""

    artifact: Artifact
    cached: bool
    seconds: float


def resolve_inputs(
    verb: Verb,
    refs: Mapping[str, str],
    store: Store,
    given: Mapping[str, Input] | None = None,
    later: Collection[str] = (),
    config: Config | None = None,
) -> dict[str, Input]:
    """Find every input that `refs` names; all missing and misfitting ones are reported together.

    Args:
        verb: whose roles are to be filled.
        refs: role to reference, or to a path of a plain file where the role takes one.
        store: where references are looked up.
        given: inputs that are there already: from the pipe, or from an earlier step of a recipe.
        later: roles that need not be named yet.
        config: where it is known; a field of it may stand in for an input.
    """
    found: dict[str, Input] = dict(given or {})
    for role, there in found.items():
        _check_kind(there, role, verb)
    faults: list[LlmctlError] = []
    for role in verb.inputs:
        if (fault := _missing(verb, role, {*found, *refs, *later}, config)) is not None:
            faults.append(fault)
        for key in (key for key in refs if key.partition(".")[0] == role and key not in found):
            try:
                found[key] = resolve_input(refs[key], key, verb, store)
            except LlmctlError as error:
                faults.append(error)
    if faults:
        raise together(faults)
    return found


def input_faults(verb: Verb, refs: Mapping[str, str], store: Store) -> list[LlmctlError]:
    """What is wrong with the inputs that `refs` names; the pipe is not read, and what it may bring not missed."""
    named = {role: ref for role, ref in refs.items() if ref != "-"}
    try:
        resolve_inputs(verb, named, store, later=("input",))
    except LlmctlError as error:
        return [error]
    return []


def _missing(verb: Verb, role: str, keys: set[str], config: Config | None) -> UsageError | None:
    """What to say where a role that must be filled has no input among `keys`."""
    wanted = verb.inputs[role]
    if not verb.lacks(role, keys, config):
        return None
    option = "an argument or a pipe" if role == "input" else "one or more as arguments" if wanted.many else ""
    return UsageError(f"{verb.command} needs {wanted.help}", hint=f"give {option or f'--{role} REF'}")


def resolve_input(ref: str, role: str, verb: Verb, store: Store) -> Input:
    """The artifact that `ref` names, or the plain file where the role takes one, checked by kind.

    A URL names a file too, and is fetched.
    """
    wanted = _role(verb, role)
    if wanted.files and is_remote(ref):
        return remote_file(ref, wanted.kinds[0], store)
    path = Path(ref).expanduser()
    if wanted.files and path.is_file():
        try:
            return FileInput.of(path, wanted.kinds[0])
        except OSError as error:
            raise explain(error, ref) from error
    artifact = store.resolve(ref)
    _check_kind(artifact, role, verb)
    return artifact


def _role(verb: Verb, key: str) -> Role:
    wanted = verb.role(key)
    if wanted is None:
        raise UsageError(f"{verb.command} has no input {key!r}", hint=f"it takes {', '.join(verb.inputs) or 'none'}")
    return wanted


def _check_kind(given: Input, role: str, verb: Verb) -> None:
    kinds = _role(verb, role).kinds
    if given.kind not in kinds:
        fitting = " or ".join(kinds)
        raise InputError(
            f"{given.ref} is a {given.kind} artifact; {verb.command} takes {fitting} as {role}", hint="see llmctl ls"
        )


def execute(call: Call, store: Store, progress: Progress) -> Outcome:
    """Run a stage, or answer from the cache; the artifact is published when this returns.

    Raises:
        GateError: what was published does not meet a threshold of the configuration.
        LlmctlError: nothing was published; what a resumable stage saved is kept for the same call again.
    """
    begun = time.monotonic()
    call = call.with_derived(store)
    fetched = _fetch(call, store, progress)
    name, digests = _identify(call, fetched)
    partial = Partial(store, _action_key(call, digests))
    if not call.force:
        partial.finish_commit()
        if (pointer := store.cached(partial.key)) is not None:
            artifact = store.publish_version(name, pointer, reuse=True)
            _check_gate(call, artifact)
            return Outcome(artifact, cached=True, seconds=time.monotonic() - begun)
    with explained(f"the store {store.root}"):
        run, held = partial.start(name, call.run_id, resumable=call.stage.resumable, anew=call.force)
    events = EventLog(store.root / "runs" / f"{run.run_id}.jsonl")
    heard = Overheard(progress, events)
    try:
        with held, explained(f"the store {store.root}"):
            facts = {"command": call.stage.command, "action": partial.key, "argv": list(call.argv), "name": name}
            events.add("START", receipt=call.run_id, **facts)
            artifact = _Attempt(call, name, run, partial, digests, heard, fetched).carry_out()
            events.add("COMPLETE", ref=artifact.ref, digest=artifact.digest)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be full: the first error is the one to tell
            events.fail(error, heard.last)
        if not call.stage.resumable and not run.manifest.exists():
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    _check_gate(call, artifact)
    return Outcome(artifact, cached=False, seconds=time.monotonic() - begun)


def _check_gate(call: Call, artifact: Artifact) -> None:
    """Raise the `GateError` of a threshold that is not met; the artifact is published all the same."""
    if call.stage.gate is not None:
        load(call.stage.gate)(call.config, artifact)


def plan(call: Call, store: Store) -> dict[str, object]:
    """What `execute` would do, without doing it: the resolved configuration, inputs, name and cache state.

    What lies elsewhere is fetched all the same, since its bytes decide whether the cache has the answer.
    """
    call = call.with_derived(store)
    name, digests = _identify(call, _fetch(call, store, Silent()))
    key = _action_key(call, digests)
    return {
        "command": call.stage.command,
        "name": name,
        "config": call.config.model_dump(mode="json"),
        "derived": call.config.resolved(),
        "inputs": digests,
        "action_key": key,
        "cached": store.cached(key) is not None,
    }


def _fetch(call: Call, store: Store, progress: Progress) -> Any:
    if call.stage.fetch is None:
        return None
    return load(call.stage.fetch)(call.config, downloads_directory(store.root), progress)


def _identify(call: Call, fetched: Any) -> tuple[str, dict[str, str]]:
    """The artifact's name, and the digest of everything that will be read, by role."""
    digests = {role: given.digest for role, given in call.inputs.items()}
    if call.stage.sources is not None:
        base, read = load(call.stage.sources)(call.config, fetched)
        digests |= read
        if base:
            return call.name or base, digests
    roles = ("input", call.stage.many)
    named = [given for key, given in call.inputs.items() if key.partition(".")[0] in roles]
    root = "-".join(sorted({given.name.partition(".")[0] for given in named}))[:LONGEST_ROOT]
    return call.name or f"{root}.{call.stage.command}", digests


def _action_key(call: Call, digests: Mapping[str, str]) -> str:
    nested = [command for command in call.stage.nests if command not in call.inputs]
    return sha256_of(
        {
            "command": call.stage.command,
            "op_version": call.stage.op_version,
            "nested": {command: stage_named(command).op_version for command in nested},
            "config": semantic_values(call.config),
            "inputs": dict(digests),
        }
    )


@dataclass(frozen=True)
class _Attempt:
    """One run from its open directory to its published version."""

    call: Call
    name: str
    run: RunDirectory
    partial: Partial
    digests: Mapping[str, str]
    heard: Overheard
    fetched: Any
    nested_inputs: dict[str, Artifact] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """Where everything goes."""
        return self.partial.store

    def carry_out(self) -> Artifact:
        """Call the stage's body, commit what it made, and give it a version."""
        started = now()
        job = Job(
            config=self.call.config,
            inputs=self.call.inputs,
            out=self.run.data,
            work=self.run.work,
            metrics_file=self.run.metrics,
            progress=self.heard,
            nested=self.nested,
            event=self.heard.events.add,
            fetched=self.fetched,
            promised=self.digests,
        )
        product: Product = load(self.call.stage.run)(job)
        pointer = self.store.commit(self.run, self.manifest(product, started))
        self.partial.clear(self.run)
        return self.store.publish_version(self.name, pointer)

    def nested(self, command: str, config: Config, inputs: Mapping[str, Input]) -> Artifact:
        """Run another stage through the cache; what it makes becomes an input of this run, under its command."""
        if command not in self.call.stage.nests:
            raise RuntimeError(f"the stage {self.call.stage.command} does not declare that it nests {command}")
        name = f"{self.name.partition('.')[0]}.{command}"
        inner = Call(stage_named(command), config, inputs, name=name, argv=self.call.argv)
        self.nested_inputs[command] = execute(inner, self.store, self.heard.progress).artifact
        return self.nested_inputs[command]

    def manifest(self, product: Product, started: str) -> Manifest:
        """Everything that is known about the run, with every file hashed."""
        call, stage = self.call, self.call.stage
        kind = stage.makes(call.config)
        files = [_with_facts(entry, product) for entry in describe_files(self.run)]
        if not files:
            raise InputError(f"{stage.command} made no files", hint="check that its input is not empty")
        used: dict[str, Input] = {**call.inputs, **self.nested_inputs}
        inputs = {role: given.as_input() for role, given in used.items()}
        for role in self.digests.keys() - inputs.keys():
            inputs[role] = InputEntry(digest=self.digests[role], kind="source", ref=role)
        return Manifest(
            kind=kind,
            schema=product.schema,
            digest=content_digest(kind, product.schema, product.semantic, files),
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
                action_key=self.partial.key,
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
    quietly = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=quietly)
    except OSError:  # a checkout on a machine without git
        return None
    return answer.stdout.strip() or None
