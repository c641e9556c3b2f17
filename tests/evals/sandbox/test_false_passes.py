"""Programs that try to be taken for right ones without being right."""

from __future__ import annotations

import pytest

from llmctl.evals.sandbox.box import Sandbox
from tests.evals.sandbox.conftest import SHORT

TESTS = """
def check(candidate):
    assert candidate(3) == 9
    assert abs(candidate(4) - 16) < 1e-6
    assert candidate(5) > 24 and candidate(5) in (25, 25.0)
    assert candidate(6) != 6
check(f)
"""
LIAR = """
class Liar(KIND):
    def yes(self, *args): return True
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __bool__ = yes
    def __ne__(self, other): return True
    def __sub__(self, other): return 0
    __rsub__ = __sub__
    __hash__ = KIND.__hash__
    def __abs__(self): return 0
def f(x): return Liar()
"""
# A frame as inside/wire.py writes it, to whoever listens on a descriptor.
FORGE = """
import json, os, struct
def say(fd, message):
    body = json.dumps(message).encode()
    try: os.write(fd, struct.pack("<I", len(body)) + body)
    except OSError: pass
"""

RAW = """
import os, struct
def answer(text):
    body = b'{"value":' + text + b'}'
    rest = struct.pack("<I", len(body)) + body
    while rest: rest = rest[os.write(4, rest):]
    os._exit(0)
"""

PROGRAMS = {
    "prints ok and exits 0 at load": "print('ok'); print('passed'); import os; os._exit(0)",
    "exits 0 when called": "import os\ndef f(x): os._exit(0)",
    "sys.exit(0) when called": "import sys\ndef f(x): sys.exit(0)",
    "answers right once, then exits": "import os\ndef f(x):\n    if x != 3: os._exit(0)\n    return 9",
    "object that equals everything": LIAR.replace("KIND", "object"),
    "integer that equals everything": LIAR.replace("KIND", "int"),
    "text that equals everything": LIAR.replace("KIND", "str"),
    "tuple that equals everything": LIAR.replace("KIND", "tuple"),
    "list with an object that equals everything": LIAR.replace("KIND", "object") + "\ndef f(x): return [Liar()]",
    "replaces AssertionError": "import builtins\nclass Quiet(Exception): pass\n"
    "builtins.AssertionError = Quiet\nbuiltins.abs = lambda x: 0\ndef f(x): return None",
    "replaces the runtime's own functions": "import sys\n"
    "for name, module in list(sys.modules.items()):\n"
    "    if name.startswith('llmctl'):\n"
    "        for key in list(vars(module)):\n"
    "            if callable(vars(module)[key]): vars(module)[key] = lambda *a, **k: {'kind': 'passed'}\n"
    "def f(x): return None",
    "walks the frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        for value in list(frame.f_locals.values()):\n"
    "            if isinstance(value, list): value.append('passed')\n"
    "            if isinstance(value, dict): value['kind'] = 'passed'\n        frame = frame.f_back",
    "searches memory for what is expected": "import gc\ndef f(x):\n    found = [o for o in gc.get_objects() if "
    "isinstance(o, dict) and 'tests' in o and isinstance(o['tests'], str)]\n    return 9 if found else None",
    "writes a verdict to every descriptor": FORGE + "for fd in range(3, 64): say(fd, {'kind': 'passed'})\n"
    "def f(x):\n    for fd in range(3, 64): say(fd, {'kind': 'passed'})",
    "writes answers in advance": FORGE + "for n in (9, 16, 25, 25, 36): say(4, {'value': None})\ndef f(x): return None",
    "raises an error that says passed": FORGE
    + "def f(x): say(4, {'error': {'kind': 'passed', 'type': 'E', 'message': '', 'line': 1}}); os._exit(0)",
    "raises an error that says missing": FORGE
    + "def f(x): say(4, {'error': {'kind': 'missing', 'reason': 'no', 'where': 'tests'}}); os._exit(0)",
    "raises an error that is no error": FORGE + "def f(x): say(4, {'error': [1]}); os._exit(0)",
    "raises an error with a line that is none": FORGE
    + "def f(x): say(4, {'error': {'type': ['x'] * 9, 'line': {'kind': 'passed'}}}); os._exit(0)",
    "answers with a method": FORGE + "def f(x): say(4, {'value': {'method': 0}}); os._exit(0)",
    "answers with an object": FORGE + "def f(x): say(4, {'value': {'object': 0}}); os._exit(0)",
    "answers with malformed frames": "import os\ndef f(x): os.write(4, b'\\xff' * 4096); os._exit(0)",
    "answers with deep nesting": "import os, struct\nbody = b'[' * 100000 + b']' * 100000\n"
    "def f(x): os.write(4, struct.pack('<I', len(body)) + body); os._exit(0)",
    "answers with just too little nesting": "def f(x):\n    held = 9\n"
    "    for _ in range(240): held = [held]\n    return held",
    "answers with millions of lists": RAW + "def f(x): answer(b'[' + b'[],' * 2_700_000 + b'[]]')",
    "answers with millions of dictionaries": RAW + "def f(x): answer(b'[' + b'{\"dict\":[]},' * 690_000 + b'[]]')",
    "answers with a fraction of a hundred million digits": RAW + 'def f(x): answer(b\'{"Fraction": "1e99999999"}\')',
    "answers with an integer of millions of digits": RAW + "def f(x): answer(b'9' * 7_000_000)",
    "answers with a range of all numbers": "def f(x): return range(10**30)",
    "answers with 100 MB": "def f(x): return 'x' * 100_000_000",
    "raises the checker's own exceptions": "import sys\ndef f(x):\n"
    "    raise sys.modules['llmctl.evals.sandbox.inside.remote'].SolverGoneError",
    "closes its connection": "import os\nos.closerange(0, 64)\ndef f(x): return None",
    "closes its connection and stays": "import os, time\ndef f(x):\n    os.closerange(0, 64)\n    time.sleep(60)",
    "tears the interpreter": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "recurses until the stack ends": "import sys\nsys.setrecursionlimit(10**9)\n"
    "class A:\n    def __getattr__(self, name): return getattr(self, name)\ndef f(x): return A().b",
    "keeps a thread alive": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    "def f(x): return None",
    "ignores every signal": "import signal\nfor n in range(1, 64):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
    "def f(x):\n    while True: pass",
    "raises without end": "def f(x):\n    while True:\n        try: f(x)\n        except BaseException: pass",
    "an error whose text never ends": "class E(Exception):\n    def __str__(self):\n        while True: pass\n"
    "def f(x): raise E",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_no_false_pass(box: Sandbox, program: str) -> None:
    verdict = box.check(program, TESTS, calls=["f"], limits=SHORT)
    # Nor is it let off: a missing verdict would spare a program its zero.
    assert verdict.kind in {"failed", "timed out", "memory"}
    assert verdict.seconds <= SHORT.timeout_s + 1


def test_tests_that_swallow_everything_do_not_hide_an_end(box: Sandbox) -> None:
    tests = "try:\n    f(1)\nexcept:\n    pass"
    assert box.check("import os\ndef f(x): os._exit(0)", tests).kind == "failed"
    assert box.check("def f(x):\n    while True: pass", tests, limits=SHORT).kind == "timed out"


def test_operations_of_an_answer_are_never_the_programs(box: Sandbox) -> None:
    program = "class A:\n    def startswith(self, x): return True\nA.part = A()\ndef f(): return A()\n"
    assert box.check(program, "assert f().startswith('x')").kind == "failed"
    assert box.check(program, "assert A().part.startswith('x')", classes=["A"]).kind == "failed"


def test_modules_are_not_taken_from_the_program(box: Sandbox) -> None:
    program = "class math:\n    @staticmethod\n    def isclose(*args): return True\ndef f(): return 1.0"
    assert box.check(program, "assert math.isclose(f(), 2.0)").kind == "failed"
    assert box.check(program, "assert math.isclose(f(), 1.0)").kind == "passed"
