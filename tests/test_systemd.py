"""The units of systemd/, and what trivia.py and systemd say to each other; a test plays systemd, which need not run here."""

import configparser
import contextlib
import fcntl
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time

import pytest

import trivia
from conftest import ROOT, debian_program, edited_schema, shipped_tree, wait_until
from test_end_to_end import workers_of

UNITS = ROOT / "systemd"
# What systemd does between fork and exec; the socket comes as any number.
LEND = """import os, sys
for i, number in enumerate(sys.argv[1].split(",")):
    os.dup2(int(number), 3 + i)
os.environ |= {"LISTEN_FDS": str(i + 1), "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "trivia.py", *sys.argv[2:]])"""
# Where a worker gets this signal its event loop stands still, and its other threads go on.
HANG = "import signal, time\nsignal.signal(signal.SIGUSR2, lambda *_: time.sleep(600))\n"


# ---- the units


def unit(name):
    parser = configparser.ConfigParser(
        strict=False, interpolation=None, delimiters="=", comment_prefixes="#"
    )
    parser.optionxform = str
    parser.read(UNITS / name)
    return parser


def sysctl(key):
    return re.search(rf"^{re.escape(key)} = (.*)$", (UNITS / "trivia.sysctl").read_text(), re.M)[1]


@pytest.fixture
def installed(tmp_path):
    """The units, with programs that are there in place of those that the README has an operator install."""
    for file in UNITS.iterdir():
        text = file.read_text()
        for program in ("/opt/trivia/.venv/bin/python", "/usr/bin/redis-server"):
            text = text.replace(program, sys.executable)
        (tmp_path / file.name).write_text(text)
    return tmp_path


def analyze(*arguments):
    done = subprocess.run(
        [debian_program("systemd-analyze", "systemd"), *map(str, arguments)],
        text=True,
        capture_output=True,
        env=os.environ | {"SYSTEMD_COLORS": "0"},
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_systemd_finds_nothing_wrong_with_the_units(installed):
    units = sorted([*installed.glob("*.socket"), *installed.glob("*.service")])
    assert len(units) == 3
    assert analyze("verify", "--man=no", "--recursive-errors=no", *units) == (0, "")


@pytest.mark.parametrize("name", ["trivia.service", "trivia-redis.service"])
def test_a_service_is_exposed_at_most_by_1_5_of_10(installed, name):
    code, printed = analyze(
        "security", "--offline=true", "--threshold=15", "--no-pager", installed / name
    )
    assert code == 0, printed


def test_numbers_that_must_agree_agree():
    service, redis = unit("trivia.service")["Service"], unit("trivia-redis.service")["Service"]
    assert (
        unit("trivia.socket")["Socket"]["Backlog"]
        == sysctl("net.core.somaxconn")
        == str(trivia.BACKLOG)
    )
    # The drain, uvicorn's wait for what is left, the last call to Redis, and some time to end.
    assert int(service["TimeoutStopSec"]) >= trivia.DRAIN_SECONDS + 10 + trivia.CALL_SECONDS + 5
    assert int(service["WatchdogSec"]) > 20 + trivia.DRAIN_SECONDS + 10 + trivia.CALL_SECONDS, (
        "a worker's part of a reload"
    )
    schema = shipped_tree()
    assert int(service["LimitNOFILE"]) > schema["limits"]["connections"] + 1000
    conf = dict(
        line.split(" ", 1)
        for line in (ROOT / "redis.conf").read_text().splitlines()
        if line[:1].isalpha()
    )
    assert service["Environment"] == f"REDIS_URL=unix://trivia@{conf['unixsocket']}" and conf[
        "user"
    ].startswith("trivia on ")
    assert conf["unixsocket"] == f"/run/{redis['RuntimeDirectory']}/redis.sock"
    assert redis["WorkingDirectory"] == f"/var/lib/{redis['StateDirectory']}"
    assert redis["MemoryMax"] == "2G" and conf["maxmemory"] == "1gb"
    assert int(redis["LimitNOFILE"]) > int(conf["maxclients"]) + 100
    users = (UNITS / "trivia.sysusers").read_text()
    assert {service["User"], redis["User"], redis["Group"]} == set(
        re.findall(r"^u (\S+)", users, re.M)
    )


def test_huge_pages_are_left_to_who_asks_for_them(tmp_path):
    pages = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    pages.parent.mkdir(parents=True)
    pages.write_text("always")
    subprocess.run(
        [
            debian_program("systemd-tmpfiles", "systemd"),
            "--create",
            f"--root={tmp_path}",
            UNITS / "trivia.tmpfiles",
        ],
        check=True,
        timeout=20,
    )
    assert pages.read_text().strip() == "madvise"


# ---- what is said


class Systemd:
    """The listening socket, and what the server tells."""

    def __init__(self, folder, make_server, abstract=False):
        self.folder, self.make_server = folder, make_server
        self.path = f"@trivia-{secrets.token_hex(8)}" if abstract else str(folder / "notify")
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ear.bind(self.path.replace("@", "\0"))
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=100)]

    def server(self, *listeners, workers=1, env=None, **options):
        fds = [one.fileno() for one in listeners or self.listeners]
        command = [sys.executable, "-c", LEND, ",".join(map(str, fds)), "--workers", str(workers)]
        return self.make_server(
            edited_schema(),
            command=command,
            pass_fds=fds,
            env={"NOTIFY_SOCKET": self.path} | (env or {}),
            **options,
        )

    def hear(self, seconds=30):
        """The next message, as a dict; None when none comes in time."""
        self.ear.settimeout(seconds)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            return dict(line.split("=", 1) for line in self.ear.recv(4096).decode().splitlines())

    def expect(self, seconds=30, **values):
        """The next message that has these values; pings before it are passed over."""
        deadline = time.monotonic() + seconds
        while (
            (news := self.hear(max(0.01, deadline - time.monotonic())))
            == {"WATCHDOG": "1"}
            != values
        ):
            pass
        assert news is not None and values.items() <= news.items(), news
        return news

    def forget(self):
        while self.hear(0):
            pass

    def knock(self, listener=None):
        """A client that has connected and asked; it may have to wait for the answer."""
        client = socket.create_connection(
            (listener or self.listeners[0]).getsockname()[:2], timeout=30
        )
        client.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return client

    def close(self):
        for one in (self.ear, *self.listeners):
            one.close()


@pytest.fixture
def make_systemd(tmp_path, make_server):
    made = []

    def make(**options):
        made.append(Systemd(tmp_path, make_server, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def systemd(make_systemd):
    return make_systemd()


def answer(client):
    with client, client.makefile("rb") as reader:
        return reader.readline()


@pytest.mark.parametrize("workers, abstract", [(1, False), (2, True)])
def test_it_is_ready_when_it_serves_and_not_before(make_systemd, workers, abstract):
    systemd = make_systemd(abstract=abstract)
    server = systemd.server(workers=workers, start=False)
    (server.data / "d").mkdir()
    with open(server.data / "d" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers wait for their Redis
        server.start(wait=False)
        early = systemd.knock()
        wait_until(lambda: len(workers_of(server)) == workers)
        assert systemd.hear(4) is None
    assert systemd.hear() == {"READY": "1"}
    assert answer(systemd.knock()) == answer(early) == b"HTTP/1.1 200 OK\r\n"


def test_several_sockets_are_served(systemd):
    try:
        systemd.listeners.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
    except OSError:
        pytest.skip("this host has no IPv6")
    server = systemd.server()
    assert f"http://[::1]:{systemd.listeners[1].getsockname()[1]} with 1 worker" in server.log
    for listener in systemd.listeners:
        assert answer(systemd.knock(listener)) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "family, kind, shown",
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, "AF_UNIX SOCK_STREAM"),
        (socket.AF_INET, socket.SOCK_DGRAM, "AF_INET SOCK_DGRAM"),
    ],
)
def test_a_passed_socket_of_another_kind_is_refused(systemd, family, kind, shown):
    with socket.socket(family, kind) as other:
        server = systemd.server(other, start=False).start(wait=False)
        assert server.process.wait(30) == 1
        assert server.log == f"systemd passed {shown}; expected ListenStream= with a TCP port\n"


def test_sockets_passed_to_another_process_are_let_be(make_server):
    server = make_server(
        command=[sys.executable, "trivia.py", "--port", "0"],
        env={"LISTEN_PID": "1", "LISTEN_FDS": "1"},
    )
    assert server.http("GET", "/health/ready").status == 200


def test_nobody_is_refused_while_it_restarts(systemd):
    """And what connections inherit is set on the passed socket."""
    server = systemd.server(workers=2)
    (listener,) = systemd.listeners
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    # The kernel doubles it.
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 64 * 1024
    phone = server.phone()
    phone.expect("queued")
    server.process.terminate()
    phone.expect_close(1012)
    waiting = [systemd.knock()]
    server.process.wait(30)
    waiting += [systemd.knock() for _ in range(20)]
    server.start()
    assert {answer(client) for client in waiting} == {b"HTTP/1.1 200 OK\r\n"}
    phone.connect()
    phone.expect("queued")


def test_a_reload_is_told_from_its_begin_to_its_end(systemd):
    server = systemd.server(workers=2, env={"WATCHDOG_USEC": "60000000"})
    systemd.expect(READY="1")
    old = wait_until(lambda: len(workers_of(server)) == 2 and workers_of(server))
    before = time.monotonic_ns() // 1000
    server.process.send_signal(signal.SIGHUP)
    begun = systemd.expect(RELOADING="1", WATCHDOG_USEC="180000000")
    assert before < int(begun["MONOTONIC_USEC"]) < before + 10_000_000
    assert answer(systemd.knock()) == b"HTTP/1.1 200 OK\r\n"
    systemd.expect(READY="1", WATCHDOG_USEC="60000000")
    assert len(workers_of(server)) == 2 and not workers_of(server) & old
    systemd.expect(WATCHDOG="1")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_watchdog_is_fed_while_every_worker_answers(systemd, workers):
    server = systemd.server(workers=workers, env={"WATCHDOG_USEC": "60000000"})
    systemd.expect(READY="1")
    assert systemd.hear() == systemd.hear() == {"WATCHDOG": "1"}
    worker = min(workers_of(server))
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1)
    systemd.forget()
    assert systemd.hear(3) is None
    os.kill(worker, signal.SIGCONT)
    systemd.expect(WATCHDOG="1")


def test_workers_that_die_while_they_are_asked_are_replaced_at_once(systemd):
    server = systemd.server(workers=2)
    old = wait_until(lambda: server.redis.zcard("workers:{lobby}") == 2 and workers_of(server), 30)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for worker in old:
            os.kill(worker, number)
        time.sleep(1.5)
    wait_until(lambda: len(workers_of(server) - old) == 2, 5)
    assert answer(systemd.knock()) == b"HTTP/1.1 200 OK\r\n"


def test_a_worker_whose_loop_hangs_says_where_and_is_replaced(systemd, tmp_path):
    """Also when systemd does not read what it is told, and its socket has filled up."""
    (tmp_path / "sitecustomize.py").write_text(HANG)
    server = systemd.server(
        workers=2, env={"WATCHDOG_USEC": "4000000", "PYTHONPATH": str(tmp_path)}
    )
    old = wait_until(lambda: server.redis.zcard("workers:{lobby}") == 2 and workers_of(server), 30)
    time.sleep(3)
    assert workers_of(server) == old, "who does not hang is let be"
    hung = min(old)
    os.kill(hung, signal.SIGUSR2)
    now = wait_until(
        lambda: (
            hung not in workers_of(server) and len(workers_of(server)) == 2 and workers_of(server)
        ),
        30,
    )
    assert old & now == old - {hung}
    assert "Timeout (0:00:02)!" in server.log and "sitecustomize.py" in server.log
    assert answer(systemd.knock()) == b"HTTP/1.1 200 OK\r\n"
