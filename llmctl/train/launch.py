"""Who computes: this process, ranks that it starts, or ranks that a launcher has started.

Importing this module imports no torch, so that every rank can ask early who it is.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from llmctl.config import errors
from llmctl.config.devices import cores
from llmctl.config.errors import LlmctlError
from llmctl.config.train import TrainConfig
from llmctl.pipeline import spec as specs
from llmctl.pipeline.job import Job, Product, Progress
from llmctl.pipeline.stage import load
from llmctl.store.files import publish_bytes
from llmctl.train import disk
from llmctl.train.ranks import environment
from llmctl.train.stop import Stop

LOG_FILE = "ranks.log"
SPEC_FILE = "ranks.json"
PRODUCT_FILE = "product.json"
FAILURE_FILES = "failure-*.json"  # the star is the rank
POLL_S = 0.2
TAIL_LINES = 20


def start(job: Job[Any], entry: str) -> Product:
    """Run `entry` (`module:function`, called as `function(job) -> Product`) by as many ranks as the job asks for.

    Under a launcher this rank leads the others, which must be in `follow`. Otherwise `nproc` or `zero` start
    ranks here, and without them the entry runs in this process.

    Raises:
        UsageError: the configuration asks for what this machine cannot do.
    """
    config: TrainConfig = job.config
    _require_machine(config)
    if environment().world_size > 1:
        return lead(job, entry)
    if config.uses_deepspeed:
        return run_ranks(job, entry)
    product: Product = load(entry)(job)
    return product


def _require_machine(config: TrainConfig) -> None:
    """Refuse what cannot run here, before a rank is started or a row is read."""
    eight_bits, folder = config.precision.startswith("fp8"), config.offload_folder
    if not eight_bits and not folder:
        return
    from llmctl.model.device import choose_device

    device = choose_device(config.device)
    if eight_bits:
        from llmctl.train.float8 import require_float8

        require_float8(config.precision, device)
    if folder:
        disk.require_files(folder, device.type)


def run_ranks(job: Job[Any], entry: str) -> Product:
    """Start `config.nproc` ranks under DeepSpeed's launcher, follow their progress and return what rank 0 made.

    The ranks' own output goes to `<work>/ranks.log`. They hold a pipe from this process as stdin and end when
    it closes, so that no rank outlives a killed parent.

    Raises:
        LlmctlError: the error that a rank raised, or what its log ends with.
        KeyboardInterrupt: on a second interrupt; the first one stops the ranks with their state saved.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    for stale in (job.work / PRODUCT_FILE, job.work / specs.PROGRESS_FILE, *job.work.glob(FAILURE_FILES)):
        stale.unlink(missing_ok=True)
    description = job.work / SPEC_FILE
    description.write_text(json.dumps(specs.describe(job, entry)), encoding="utf-8")
    with open(job.work / LOG_FILE, "wb") as log, Stop(job.work, signals=True) as stop:
        process = subprocess.Popen(
            _command(job.config.nproc, description),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_rank_environment(job.config),
            start_new_session=True,
        )
        try:
            _wait(process, job, stop)
        finally:
            _end(process)
    _raise_failure(job.work, process.returncode)
    return specs.product_of(json.loads((job.work / PRODUCT_FILE).read_bytes()))


def _command(nproc: int, description: Path) -> list[str]:
    """DeepSpeed's launcher for one machine, which its `deepspeed` command would start too."""
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(nproc))}).encode()).decode()
    launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    address = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
    return [*launcher, *address, "--log_level=warning", "--module", "llmctl.train.worker", str(description)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _rank_environment(config: TrainConfig) -> dict[str, str]:
    from llmctl.model.device import choose_device

    environ = dict(os.environ)
    environ["DS_ACCELERATOR"] = choose_device(config.device).type  # no probing, and cpu means cpu
    environ["OMP_NUM_THREADS"] = str(config.threads or max(1, cores() // config.nproc))
    roots = [str(Path(__file__).parents[2]), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(root for root in roots if root)
    return environ


def _wait(process: subprocess.Popen[bytes], job: Job[Any], stop: Stop) -> None:
    """Relay progress until the launcher ends."""
    path = job.work / specs.PROGRESS_FILE
    done = 0
    told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
        done = _relay(path, done, job.progress)
        if process.returncode is not None:
            return
        if stop.requested:
            stop.file.touch()  # again and again: rank 0 removes a file that lies there before it starts
            if not told:
                job.progress.note("stopping after this step; interrupt again to stop at once")
            told = True


def _relay(path: Path, start_at: int, progress: Progress) -> int:
    """Pass on the whole lines after byte `start_at`; the byte to go on from."""
    if not path.exists():
        return start_at
    with open(path, "rb") as handle:
        handle.seek(start_at)
        for line in handle:
            if not line.endswith(b"\n"):
                break
            start_at += len(line)
            specs.relay(json.loads(line), progress)
    return start_at


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe that the ranks watch, and make sure that none is left."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _raise_failure(work: Path, code: int) -> None:
    failures = [json.loads(path.read_bytes()) for path in sorted(work.glob(FAILURE_FILES))]
    for failure in sorted(failures, key=lambda failure: failure["class"] == errors.ElsewhereError.__name__):
        kind = getattr(errors, failure["class"], LlmctlError)
        raise kind(failure["what"], hint=failure["hint"])
    if code == 0 and (work / PRODUCT_FILE).exists():
        return
    lines = (work / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(lines[-TAIL_LINES:])
    raise LlmctlError(
        f"a rank ended with code {code}; the last lines of {work / LOG_FILE}:\n{tail}",
        hint="the same command resumes from the last saved step",
    )


_followers_wait = True  # on rank 0: whether the others are in `follow`, and not in the middle of a job


def lead(job: Job[Any], entry: str) -> Product:
    """On rank 0 of a launcher's ranks: tell the others what to run, and run it."""
    global _followers_wait  # noqa: PLW0603 (a process is one rank)
    _broadcast(specs.describe(job, entry))
    _followers_wait = False
    product: Product = load(entry)(job)
    _followers_wait = True
    return product


def follow() -> None:
    """On the other ranks: run what rank 0 says, until it dismisses them. Only rank 0 has a product to publish.

    Raises:
        LlmctlError: what the job raised on this rank, or rank 0 ended without dismissing this one.
    """
    while (description := _received()) is not None:
        job, entry = specs.rebuild(description, leads=False)
        load(entry)(job)


def dismiss() -> None:
    """On rank 0, when no more work will come: let the others end. Without a launcher this does nothing.

    It may be called before any `lead`, and then joins the others first. After a job that failed it does nothing
    too: ranks in the middle of a job would take the message for a part of it. They fail as rank 0 did, or when
    it ends.
    """
    if environment().world_size > 1 and _followers_wait:
        _broadcast(None)


def give_up(work: Path, error: LlmctlError) -> NoReturn:
    """End this rank with an error, from any thread: collective operations may hold the others for ever."""
    publish_bytes(work / failure_file(environment().rank), json.dumps(specs.describe_failure(error)).encode())
    sys.stderr.write(f"llmctl: {error.one_line}\n")
    sys.stderr.flush()
    os._exit(error.exit_code)


def leave(code: int) -> NoReturn:
    """End this process, a rank whose work is done, with `code` and without the interpreter's own shutdown.

    The process group and DeepSpeed keep C++ threads, and destroying them while they run aborts the process
    ("terminate called without an active exception", exit code -6) after everything has been written.
    """
    disk.clear()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _received() -> dict[str, Any] | None:
    """What rank 0 says next."""
    try:
        return _broadcast(None)
    except RuntimeError as error:  # torch.distributed's own errors are such
        reason = (str(error).splitlines() or [""])[0]
        raise LlmctlError(f"rank 0 ended before the other ranks: {reason}", hint="see what it says") from None


def _broadcast(description: dict[str, Any] | None) -> dict[str, Any] | None:
    """Send rank 0's description to every rank; what rank 0 sent."""
    import torch

    from llmctl.train.strategy import join

    join()
    box: list[dict[str, Any] | None] = [description]
    torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def failure_file(rank: int) -> str:
    """The name of the file in which a rank of `run_ranks` leaves its error."""
    return FAILURE_FILES.replace("*", f"{rank:05d}")
