"""The sandbox and the system: who may use it, what it says where it cannot be had, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmctl.evals.sandbox.box import Sandbox
from llmctl.evals.sandbox.verdict import Limits

ROOT = Path(__file__).parents[3]
REPORT = """
import dataclasses, json
from llmctl.evals.sandbox.box import Sandbox
with Sandbox() as box:
    verdict = box.check("def f(x): return x * x", "assert f(3) == 9")
    output = box.run("import os; print(os.getuid(), os.listdir('/tmp'))")
    print(json.dumps([dataclasses.asdict(verdict), dataclasses.asdict(output), verdict.score]))
"""


def report(
    *command: str, before: str = "", interpreter: str = sys.executable
) -> tuple[dict[str, Any], dict[str, Any], float | None]:
    """What a fresh process gets from the sandbox."""
    done = subprocess.run(
        [*command, interpreter, "-c", before + REPORT],
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdict, output, score = json.loads(done.stdout)
    return verdict, output, score


AS_ANOTHER = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")


def readable(interpreter: str) -> bool:
    """Whether another user can start it and read this package with it."""
    code = (
        "import os, sys, llmctl\nsys.exit(sys.version_info < (3, 11) or not os.access(sys._base_executable, os.X_OK))"
    )
    command = [*AS_ANOTHER, interpreter, "-c", code]
    done = subprocess.run(command, cwd="/", env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_an_ordinary_user_has_the_same_sandbox(box: Sandbox) -> None:
    candidates = (os.path.realpath(sys.executable), "/usr/bin/python3")
    interpreter = next(filter(readable, candidates), None)
    if interpreter is None:
        pytest.skip("no interpreter of 3.11 or newer that another user may read")
    verdict, output, score = report(*AS_ANOTHER, interpreter=interpreter)
    assert (verdict["message"], verdict["kind"], score) == (None, "passed", 1.0)
    assert output["stdout"] == "65534 []\n"
    assert tuple(verdict["isolation"]) == box.check("def f(x): return x", "assert f(1) == 1").isolation


@pytest.mark.skipif(os.geteuid() != 0, reason="leaving out a capability needs root")
def test_root_without_the_right_to_mount_has_it_too() -> None:
    """As root of a container is, whose profile allows user namespaces."""
    verdict, output, _ = report("setpriv", "--bounding-set=-sys_admin")
    assert (verdict["message"], verdict["kind"], output["stdout"]) == (None, "passed", "65534 []\n")


# What the profile of a container does: unshare(2) is refused. The filter is made with the sandbox's own parts.
REFUSE = """
from llmctl.evals.sandbox.inside import linux, seccomp
def refuse(call):
    code = [*seccomp._when(0, 0x15, call, 0x50001), seccomp._step(0x06, 0x7FFF0000)]
    linux.prctl("no_new_privs", linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(b"".join(code))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize(
    ("call", "reason"),
    [(272, "unshare("), (165, "mount "), (442, "mount_setattr("), (155, "pivot_root: ")],
    ids=["unshare", "mount", "mount_setattr", "pivot_root"],
)
def test_where_it_cannot_be_had_it_says_why_and_gives_no_verdict(call: int, reason: str) -> None:
    verdict, output, score = report(before=f"{REFUSE}\nrefuse({call})\n")
    assert (verdict["kind"], score, verdict["isolation"]) == ("missing", None, [])
    assert verdict["message"].startswith(reason)
    assert (output["kind"], output["reason"]) == ("missing", verdict["message"])


def test_a_missing_interpreter_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "/nowhere/python")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Sandbox() as box:
        verdict = box.check("def f(): return 1", "assert f() == 1")
    assert (verdict.kind, verdict.score) == ("missing", None)
    assert "/nowhere/python" in (verdict.message or "")


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not alive


def test_close_ends_everything() -> None:
    before = set(children())
    sandbox = Sandbox(Limits(timeout_s=60), workers=2)
    assert sandbox.run("print(1)").stdout == "1\n"
    until = time.monotonic() + 5  # a supervisor ends just after its report
    while len(mine := set(children()) - before) > 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(mine) == 2
    sandbox.close()
    assert gone(list(mine), 5)
    assert sandbox.run("print(2)").stdout == "2\n"  # and it starts anew
    sandbox.close()


def test_a_killed_launcher_is_replaced(box: Sandbox) -> None:
    before = set(children())
    with Sandbox() as sandbox:
        sandbox.run("pass")
        mine = [process for process in children() if process not in before]
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):  # the second goes with the first
                process.send_signal(signal.SIGKILL)
        assert gone(mine, 5)
        kinds = [sandbox.check("def f(): return 1", "assert f() == 1").kind for _ in range(2)]
    assert kinds == ["passed", "passed"]


def test_a_killed_host_takes_its_programs_along() -> None:
    code = (
        "from llmctl.evals.sandbox.box import Sandbox\nfrom llmctl.evals.sandbox.verdict import Limits\n"
        "box = Sandbox(Limits(timeout_s=300))\nbox.run('pass')\nprint('ready', flush=True)\n"
        "box.run('import time\\ntime.sleep(300)')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        until = time.monotonic() + 20
        while len(family := psutil.Process(host.pid).children(recursive=True)) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(family) == 4  # the launcher's two, a supervisor, the program
        host.kill()
    assert gone(family, 5)


@pytest.mark.slow
def test_two_hundred_runs_leave_nothing() -> None:
    """Nothing in the process table, the mounts, the open files or the folder for temporary files."""

    def state() -> tuple[int, str, int, set[str]]:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
        ours = {"left", "link"} & set(os.listdir("/tmp"))  # noqa: S108
        return len(children()), mounts, len(os.listdir("/proc/self/fd")), ours

    before = state()
    program = (
        "import os\nopen('/tmp/left', 'w').write('x' * 9999)\nos.symlink('left', '/tmp/link')\n"
        "if os.fork() == 0:\n    import time\n    os.setsid()\n    time.sleep(60)\ndef f(x): return x * x"
    )
    with Sandbox(Limits(processes=4)) as box:
        kinds = {box.check(program, "assert f(3) == 9").kind for _ in range(200)}
        assert kinds == {"passed"}
    assert state() == before


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize("call", [126, 446], ids=["capset", "landlock_restrict_self"])
def test_a_program_that_cannot_be_restricted_does_not_run(call: int) -> None:
    """Refused only once the launcher is there: the program's process meets it, and must not count as failed."""
    verdict, output, score = report(before=f"{REFUSE}\nrefuse({call})\n")
    assert (verdict["kind"], output["kind"], score) == ("missing", "missing", None)
    assert "could not start a run" in verdict["message"]
    assert output["stdout"] == ""


def test_folders_that_are_shown(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "shown.py").write_text("NUMBER = 7", encoding="utf-8")
    program = (
        "import os, sys, shown\nprint(shown.NUMBER, os.listdir('/paths'), os.listdir('/paths/0'))\n"
        "try: open('/paths/0/x', 'w')\nexcept OSError as error: print(error.strerror)"
    )
    with Sandbox(paths=[tmp_path]) as box:
        assert box.run(program).stdout == "7 ['0'] ['shown.py']\nRead-only file system\n"


def test_limits_above_what_this_process_may_have() -> None:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))\n"
    verdict, output, _ = report(before=code)
    assert (verdict["message"], verdict["kind"], output["exit_code"]) == (None, "passed", 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes nobody")
def test_folders_that_nobody_may_read_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with Sandbox(paths=[tmp_path]) as box:
        assert box.refusal() == "Permission denied: /paths/0"
