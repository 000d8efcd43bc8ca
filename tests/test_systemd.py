"""The units in systemd/, and the messages between trivia.py and systemd. The tests play the part of
systemd, so it need not run."""

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
# What systemd does between fork and exec. The sockets can have any numbers.
LEND = """import os, sys
for i, number in enumerate(sys.argv[1].split(",")):
    os.dup2(int(number), 3 + i)
os.environ |= {"LISTEN_FDS": str(i + 1), "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "trivia.py", *sys.argv[2:]])"""
# In a worker with this code, SIGUSR2 blocks the event loop; other threads go on.
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
    """A copy of the units. The programs that the README installs are replaced by Python."""
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
def test_systemd_rates_the_exposure_of_a_service_at_most_1_5_of_10(installed, name):
    code, printed = analyze(
        "security", "--offline=true", "--threshold=15", "--no-pager", installed / name
    )
    assert code == 0, printed


def test_settings_of_the_units_match_those_of_the_server():
    service, redis = unit("trivia.service")["Service"], unit("trivia-redis.service")["Service"]
    assert (
        unit("trivia.socket")["Socket"]["Backlog"]
        == sysctl("net.core.somaxconn")
        == str(trivia.BACKLOG)
    )
    # The drain, uvicorn's wait for the remaining connections, the last call to Redis, and 5 s.
    assert int(service["TimeoutStopSec"]) >= trivia.DRAIN_SECONDS + 10 + trivia.CALL_SECONDS + 5
    assert int(service["WatchdogSec"]) > 20 + trivia.DRAIN_SECONDS + 10 + trivia.CALL_SECONDS, (
        "the time of a worker in a reload"
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


def test_only_programs_that_request_huge_pages_get_them(tmp_path):
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


# ---- messages


class Systemd:
    """Stands in for systemd: passes a listening socket, and receives the server's messages."""

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
        """Returns the next message as a dict, or None if none comes in time."""
        self.ear.settimeout(seconds)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            return dict(line.split("=", 1) for line in self.ear.recv(4096).decode().splitlines())

    def expect(self, seconds=30, **values):
        """Waits for the next message but a watchdog ping, and checks that it has these values."""
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
        """Connects and sends a request, whose response may take a while."""
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
def test_the_server_is_ready_when_it_serves_and_not_before(make_systemd, workers, abstract):
    systemd = make_systemd(abstract=abstract)
    server = systemd.server(workers=workers, start=False)
    (server.data / "d").mkdir()
    with open(server.data / "d" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers wait for the embedded Redis
        server.start(wait=False)
        early = systemd.knock()
        wait_until(lambda: len(workers_of(server)) == workers)
        assert systemd.hear(4) is None
    assert systemd.hear() == {"READY": "1"}
    assert answer(systemd.knock()) == answer(early) == b"HTTP/1.1 200 OK\r\n"


def test_the_server_serves_several_sockets(systemd):
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


def test_sockets_passed_to_another_process_are_ignored(make_server):
    server = make_server(
        command=[sys.executable, "trivia.py", "--port", "0"],
        env={"LISTEN_PID": "1", "LISTEN_FDS": "1"},
    )
    assert server.http("GET", "/health/ready").status == 200


def test_no_connection_is_refused_during_a_restart(systemd):
    """The passed socket has the options that connections inherit."""
    server = systemd.server(workers=2)
    (listener,) = systemd.listeners
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    # The kernel doubles the size.
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


def test_the_start_and_the_end_of_a_reload_are_reported(systemd):
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
def test_the_watchdog_gets_pings_while_every_worker_responds(systemd, workers):
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


def test_workers_that_stop_and_die_are_replaced_at_once(systemd):
    server = systemd.server(workers=2)
    old = wait_until(lambda: server.redis.zcard("workers:{lobby}") == 2 and workers_of(server), 30)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for worker in old:
            os.kill(worker, number)
        time.sleep(1.5)
    wait_until(lambda: len(workers_of(server) - old) == 2, 5)
    assert answer(systemd.knock()) == b"HTTP/1.1 200 OK\r\n"


def test_a_worker_whose_loop_hangs_logs_where_and_is_replaced(systemd, tmp_path):
    """Even if systemd reads no messages and its socket is full."""
    (tmp_path / "sitecustomize.py").write_text(HANG)
    server = systemd.server(
        workers=2, env={"WATCHDOG_USEC": "4000000", "PYTHONPATH": str(tmp_path)}
    )
    old = wait_until(lambda: server.redis.zcard("workers:{lobby}") == 2 and workers_of(server), 30)
    time.sleep(3)
    assert workers_of(server) == old, "workers that do not hang are not replaced"
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
