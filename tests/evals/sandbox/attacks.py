"""Programs that try to reach the machine: each notes in `hits` what it reached.

`reached(action)` notes what the action gives unless it raises; `call` is a raw system call, by number of x86_64 (on
another machine the numbers mean other calls, which no program needs either). HOST is the process of the tests, PORT
where it listens on loopback, ABSTRACT its abstract socket, CANARY a file that everyone may write.
"""

from __future__ import annotations

PREAMBLE = """
import ctypes, os, sys, time
hits = []
def reached(action):
    try: hits.append(repr(action())[:200])
    except (OSError, ImportError, KeyError, ValueError, RuntimeError): pass
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(ctypes.c_long(number), *args)
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
    return result
def f(): return hits
"""

ATTACKS = {
    "environment": """
hits += list(os.environ)
reached(lambda: open("/proc/self/environ", "rb").read())
libc.getenv.restype = ctypes.c_char_p
if libc.getenv(b"LLMCTL_CANARY"): hits.append("getenv")
""",
    "files of the host": """
for path in ("/etc/passwd", "/proc", "/sys", "/var", "/bin/sh", CANARY, os.path.dirname(CANARY)):
    reached(lambda: os.stat(path))
hits += sorted(set(os.listdir("/")) - {"dev", "lib", "lib64", "tmp", "usr", INTERPRETER})
""",
    "the parent through /proc": """
for pid in (os.getppid(), 1, HOST):
    reached(lambda: os.stat(f"/proc/{pid}"))
    for name in ("environ", "mem", "maps", "root", "fd", "cwd"):
        reached(lambda: os.listdir(f"/proc/{pid}/{name}"))
        reached(lambda: open(f"/proc/{pid}/{name}", "rb").read(10))
reached(lambda: call(165, b"proc", b"/tmp", b"proc", ctypes.c_long(0), None))
reached(lambda: call(430, b"proc", ctypes.c_long(0)))
""",
    "ptrace": """
for pid in (1, 2, os.getppid(), HOST):
    reached(lambda: call(101, ctypes.c_long(16), ctypes.c_long(pid), None, None))
    reached(lambda: call(310, ctypes.c_long(pid), None, 0, None, 0, 0))
    reached(lambda: call(311, ctypes.c_long(pid), None, 0, None, 0, 0))
""",
    "network": """
import socket
def tcp(host):
    connection = socket.create_connection((host, PORT), timeout=0.3)
    connection.sendall(b"x")
for host in ("127.0.0.1", "0.0.0.0", "::1", "169.254.169.254"): reached(lambda: tcp(host))
for family in range(46): reached(lambda: socket.socket(family, socket.SOCK_DGRAM))
reached(lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + ABSTRACT))
""",
    "writing outside": """
library = os.path.dirname(os.__file__)
for path in ("/x", "/dev/x", "/usr/lib/x", os.__file__, library + "/x", CANARY):
    reached(lambda: open(path, "ab"))
    reached(lambda: os.mkdir(path + ".d"))
for path in ("/", "/usr/lib", os.__file__): reached(lambda: os.chmod(path, 0o777))
reached(lambda: os.unlink(os.__file__))
reached(lambda: os.rename(os.__file__, "/tmp/os.py"))
reached(lambda: os.link(os.__file__, "/tmp/os.py"))
""",
    "links out of scratch": """
os.symlink(CANARY, "/tmp/link")
os.symlink("/", "/tmp/root")
os.symlink("/proc/1/root", "/tmp/up")
for path in ("/tmp/link", "/tmp/root/x", "/tmp/up/etc/passwd", "/tmp/../../../etc/passwd"):
    reached(lambda: open(path))
    reached(lambda: open(path, "w"))
""",
    "racing links": """
import threading
end = time.monotonic() + 0.4
def swap():
    while time.monotonic() < end:
        for target in ("/tmp/own", CANARY, "/etc/passwd"):
            try:
                os.symlink(target, "/tmp/new")
                os.replace("/tmp/new", "/tmp/link")
            except OSError: pass
open("/tmp/own", "w").write("own")
thread = threading.Thread(target=swap)
thread.start()
while time.monotonic() < end:
    try:
        text = open("/tmp/link").read()
        if text not in ("own", ""): hits.append(text)
        open("/tmp/link", "r+").write("own")
    except OSError: pass
thread.join()
""",
    "signals": """
import signal
for number in (signal.SIGTERM, signal.SIGKILL):
    for pid in (HOST, -HOST, os.getppid() or HOST): reached(lambda: os.kill(pid, number))
    for everybody in (0, -1):  # reaches this process itself, which is the first one and takes no notice
        try: os.kill(everybody, number)
        except OSError: pass
""",
    "starting programs": """
import subprocess
reached(lambda: subprocess.run([sys.executable, "-c", "1"]))
reached(lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "sleep 60"], {}))
reached(lambda: os.fork())
reached(lambda: os.execv(sys.executable, ["x"]))
if libc.system(b"true") == 0: hits.append("system")
loader = "/lib64/ld-linux-x86-64.so.2"
if os.path.exists(loader):
    open("/tmp/x", "wb").write(open(loader, "rb").read())
    os.chmod("/tmp/x", 0o700)
    reached(lambda: os.execv("/tmp/x", ["x"]))
    reached(lambda: os.execv(loader, ["x"]))
reached(lambda: os.memfd_create("x"))
""",
    "namespaces and mounts": """
for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000):
    reached(lambda: call(272, ctypes.c_long(flag)))
    reached(lambda: call(56, ctypes.c_long(flag | 17), None, None, None, None))
reached(lambda: call(165, b"none", b"/tmp", b"tmpfs", ctypes.c_long(0), None))
reached(lambda: call(166, b"/tmp", ctypes.c_long(2)))
reached(lambda: os.chroot("/tmp"))
reached(lambda: call(442, ctypes.c_long(-100), b"/", 0, None, ctypes.c_long(0)))
""",
    "privileges": """
import resource, socket
reached(lambda: os.setuid(0))
reached(lambda: os.setgroups([0]))
if os.getuid() == 0: hits.append("root")
reached(lambda: os.mknod("/tmp/n", 0o060666, os.makedev(254, 0)))
reached(lambda: os.nice(-5))
reached(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))
reached(lambda: socket.sethostname("x"))
""",
    "kernel interfaces": """
for number in (321, 298, 323, 425, 246, 313, 304, 248, 250, 103, 29, 68, 64, 240, 319, 434, 438, 9999, 1 << 30 | 39):
    reached(lambda: call(number, None, None, None, None, None))
""",
    "descriptors of the host": """
for fd in range(5, 4096): reached(lambda: os.fstat(fd))
""",
}

# Programs that take what they can get.
BOMBS = {
    "forks": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "threads": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(60,)).start()
    except RuntimeError: pass
""",
    "processes that leave": """
import os, time
for _ in range(30):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
    except OSError: pass
def f(): return 1
""",
    "ten gigabytes of output": """
import os
block = b"x" * 65536
for _ in range(160000): os.write(1, block)
""",
    "a million files": """
import os
while True:
    for number in range(1000000):
        try: os.close(os.open(f"/tmp/{number}", os.O_CREAT))
        except OSError: pass
""",
    "a large file": """
file = open("/tmp/x", "wb")
while True:
    try:
        file.write(bytes(1 << 20))
        file.flush()
    except OSError: pass
""",
    "deep folders": """
import os
while True:
    try:
        os.mkdir("d")
        os.chdir("d")
    except OSError: pass
""",
    "memory": """
held = []
while True:
    try: held.append(bytes(1 << 20))
    except MemoryError: pass
""",
    "pipes": """
import os
held = []
while True:
    try: held.append(os.pipe())
    except OSError: pass
""",
    "tracebacks": """
def f():
    try: f()
    finally: f()
f()
""",
}
