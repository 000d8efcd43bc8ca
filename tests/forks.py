"""Starts Python programs for the tests by a fork, at half the cost of a fresh start.

Most of a fresh start is the import of packages. A template process imports the packages of
trivia.py, but not trivia.py itself, and forks for each program. The fork gets its own folder,
environment, streams and session. It runs trivia.py as any process does, and ends with its own exit
code. Its workers are forks in the same way.

The interpreter reads some settings only at its start. A program with other values of them starts
afresh.

One thing differs from a fresh start: argon2 runs at its least cost, because the tests register
thousands of players.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

import argon2

ROOT = Path(__file__).resolve().parent.parent
# Prefixes of the variables that the interpreter or the loader reads once, at the start.
AT_START = ("LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ")
SERVERS = ("uvicorn", "daphne", "hypercorn", "sanic")
# Modules that uvicorn imports when its server starts, and asyncio and sanic when they serve.
LATER = [
    "encodings.idna",
    "multiprocessing.spawn",
    "pythonjsonlogger.json",
    "sanic.touchup",
    "uvicorn.main",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.supervisors",
]

# ---- in the process of the tests


class Fork:
    """A program that runs in a fork; it has the methods of subprocess.Popen that the tests use."""

    def __init__(self, command, **how):
        self.args, self.returncode, self._lock = command, None, threading.Lock()
        self.pid, self._status = the_template().fork(command, **how)

    def poll(self):
        return self._wait(0)

    def wait(self, timeout=None):
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _wait(self, seconds):
        with self._lock:
            if self.returncode is None:
                poll = select.poll()
                poll.register(self._status, select.POLLIN)
                if poll.poll(None if seconds is None else 1000 * seconds):
                    self.returncode = os.waitstatus_to_exitcode(int(os.read(self._status, 16)))
                    os.close(self._status)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Template:
    """The process that forks, and the socket to it."""

    def __init__(self):
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lock = threading.Lock()
        with theirs:
            self.process = subprocess.Popen(
                # The last argument makes room for the command lines of the forks.
                [sys.executable, __file__, str(theirs.fileno()), "-" * 300],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C does not reach it; it ends when the socket closes
            )

    def fork(self, command, *, cwd, env, stdin, stdout, stderr, own_session, pass_fds=()):
        """Forks; returns the pid of the program, and a file that will hold its wait status."""
        status, theirs = os.pipe()
        order = {"words": list(map(str, command[1:])), "cwd": str(cwd), "env": env}
        order |= {"own_session": own_session, "numbers": [0, 1, 2, *pass_fds]}
        try:
            with self.lock:
                files = [theirs, stdin, stdout, stderr, *pass_fds]
                socket.send_fds(self.line, [json.dumps(order).encode()], files)
                return int(self.line.recv(16)), status
        finally:
            os.close(theirs)


@functools.cache
def the_template():
    return Template()


def fits(command, env):
    """Returns whether a fork can be this program.

    It can be trivia.py or an ASGI server, in the same Python with the same settings of its start. A
    program after `-c` must use trivia, or end in a call of os.execv.
    """

    def at_start(environment):
        names = {name for name in environment if name.startswith(AT_START)} - {"PYTHONUNBUFFERED"}
        return {name: environment[name] for name in names}

    is_ours = (
        command[1] in ("trivia.py", str(ROOT / "trivia.py"))
        or (command[1] == "-m" and command[2] in SERVERS)
        or (command[1] == "-c" and command[2].startswith("import trivia"))
        or (command[1] == "-c" and "os.execv(sys.executable" in command[2])
    )
    return command[0] == sys.executable and is_ours and at_start(env) == at_start(os.environ)


def run(command, *, cwd=ROOT, env=None, merged=False, timeout=60):
    """Runs a program like subprocess.run, and captures its output as text.

    `merged` puts both streams into stdout.
    """
    env = dict(os.environ) if env is None else env
    command = list(map(str, command))
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(open(os.devnull))
        stdout, stderr = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
        how = {"cwd": cwd, "env": env, "stdin": stdin, "stdout": stdout}
        how["stderr"] = stdout if merged else stderr
        process = start(command, own_session=False, **how)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


def start(command, *, cwd, env, stdin, stdout, stderr, own_session, pass_fds=(), afresh=False):
    """Starts a program, by a fork if a fork fits and `afresh` is false."""
    if afresh or not fits(command, env):
        files = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "pass_fds": pass_fds}
        how = files | {"start_new_session": own_session}
        return subprocess.Popen(command, cwd=cwd, env=env, **how)
    files = {"stdin": stdin.fileno(), "stdout": stdout.fileno(), "stderr": stderr.fileno()}
    how = files | {"own_session": own_session, "pass_fds": pass_fds}
    return Fork(command, cwd=cwd, env=env, **how)


# ---- in the template process


def warm_up():
    """Imports the packages and checks the schema once.

    Each fork inherits the caches of the packages, such as compiled patterns. Each fork runs
    trivia.py itself, but its code is read only once.
    """
    loader = importlib.machinery.SourceFileLoader
    loader.get_code = functools.cache(loader.get_code)
    for name in LATER:
        importlib.import_module(name)
    main = sys.modules["__main__"]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        with contextlib.suppress(SystemExit):
            become([str(ROOT / "trivia.py"), "check"])
    sys.modules["__main__"] = main
    sys.modules.pop("trivia", None)


def serve(line):
    """Forks until the tests end. Returns in each fork, with its order and its files."""
    ends, (awake, alarm) = {}, os.pipe()
    os.set_blocking(alarm, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(alarm)
    while True:
        ready, _, _ = select.select([line, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            tell_ends(ends)
        if line in ready:
            order, files, _, _ = socket.recv_fds(line, 1 << 20, 100)
            if not order:
                sys.exit()
            if (pid := os.fork()) == 0:
                return json.loads(order), files
            ends[pid] = files[0]
            for file in files[1:]:
                os.close(file)
            line.send(b"%d" % pid)


def tell_ends(ends):
    """Reaps the forks that have ended, and tells the tests their wait status."""
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        with contextlib.suppress(BrokenPipeError):
            os.write(ends[pid], b"%d" % status)
        os.close(ends.pop(pid))


def settle(order, files):
    """Gives a fork the files, signals, session, folder and environment of a new process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if order["own_session"]:
        os.setsid()
    free = max(500, *order["numbers"]) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, free) for file in files[1:]]
    os.closerange(3, free)
    for file, number in zip(moved, order["numbers"]):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    argon2.PasswordHasher = functools.partial(hasher_of_least_cost, argon2.PasswordHasher)
    os.execv = execute
    spawn = multiprocessing.util.spawnv_passfds
    multiprocessing.util.spawnv_passfds = functools.partial(spawn_by_fork, spawn)
    show_command([sys.executable, *order["words"]])


def show_command(words):
    """Makes `ps` and /proc show another command line, in the memory of the first one."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    line = b"\0".join(word.encode() for word in words)
    ctypes.memmove(begin, line[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


def execute(program, words):
    """Replaces os.execv, by which a program becomes trivia.py."""
    show_command(words)
    become(words[1:])
    sys.exit()


def spawn_by_fork(spawn, program, words, files):
    """Replaces multiprocessing.util.spawnv_passfds, by which a supervisor starts its workers."""
    if b"spawn_main" not in b" ".join(map(os.fsencode, words)):
        return spawn(program, words, files)
    if pid := os.fork():
        return pid
    code = 1
    try:
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        close_all_but(files)
        words = list(map(os.fsdecode, words))
        show_command(words)
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.modules.pop("trivia", None)  # a worker imports its own
        sys.argv = words[words.index("-c") :]
        del sys.argv[1]
        exec(words[words.index("-c") + 1], vars(sys.modules["__main__"]))
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    os._exit(code)


def close_all_but(files):
    """Closes the files that an exec would close."""
    kept = sorted({0, 1, 2, *files})
    for last, following in zip(kept, [*kept[1:], 4096]):
        os.closerange(last + 1, following)


def hasher_of_least_cost(kind, **_):
    """Replaces argon2.PasswordHasher."""
    return kind(time_cost=1, memory_cost=8, parallelism=1)


def become(words):
    """Runs what `python WORDS` would run."""
    if words[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[2:]]
        exec(words[1], vars(main))
        return
    script = Path(words[0]).resolve()
    sys.path[0], sys.argv = str(script.parent), words
    spec = importlib.util.spec_from_file_location(script.stem, script)
    main.__file__, main.__builtins__ = words[0], __builtins__
    exec(spec.loader.get_code(script.stem), vars(main))


if __name__ == "__main__":
    line_to_tests = socket.socket(fileno=int(sys.argv[1]))
    warm_up()
    gc.collect()
    gc.freeze()  # so that a collection in a fork does not copy the pages of the packages
    my_order, my_files = serve(line_to_tests)
    settle(my_order, my_files)
    become(my_order["words"])
