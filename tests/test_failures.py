"""Failures of Redis: connection, memory, disk and clock. Workers that stop or are overloaded."""

import asyncio
import contextlib
import functools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

import trivia
from conftest import (
    PASSWORD,
    Phone,
    Server,
    Valkey,
    clock_of,
    edited_schema,
    play_all,
    unique_name,
    wait_until,
)
from test_end_to_end import (
    all_workers_up,
    await_reconnect,
    free_port,
    frozen,
    me,
    phone_on,
    workers_of,
)

TRIVIA = [sys.executable, "trivia.py"]


class ClockedValkey(Valkey):
    """A Valkey whose clock can be set."""

    def start_with_clock(self):
        """Starts Valkey under libfaketime."""
        self.clock = self.folder / "clock"
        self.clock.write_text("+0\n")
        return self.start(clock_of(self.clock))

    def set_clock(self, offset_s):
        self.clock.write_text(f"{offset_s:+}\n")
        wait_until(lambda: abs(self.client.time()[0] - time.time() - offset_s) < 5)


class Link:
    """A proxy in front of Redis, whose connections tests cut.

    `closed` refuses new connections. `last_words` is a command after which the connection is cut.
    """

    def __init__(self, target):
        self.target, self.path, self.closed, self.last_words, self.mute = (
            target,
            f"{target}-link",
            False,
            None,
            False,
        )
        self.url = f"unix://trivia@{self.path}"
        self.ends, self.listener = [], socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, far = self.listener.accept()[0], socket.socket(socket.AF_UNIX)
                self.ends += near, far
                try:
                    far.connect("" if self.closed else self.target)
                except OSError:
                    near.close()
                    continue
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source, sink):
        with contextlib.suppress(OSError):
            while (data := source.recv(65536)) and not self.mute:
                if last := self.last_words is not None and self.last_words in data:
                    # Mute first: else the reply may be faster than the cut.
                    self.last_words, self.mute = None, True
                sink.sendall(data)
                if last:
                    self.cut()

    def cut(self):
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.ends.clear()
        self.mute = False

    def close(self):
        self.listener.close()
        self.cut()


SLOW = {"answer_seconds": 60, "rounds": 2, "reveal_seconds": 0.3}


@contextlib.contextmanager
def server_on(redis, edit=lambda tree: None, **options):
    """Runs a server on a Redis, or on a Link to one."""
    schema = edited_schema(edit, **SLOW | options)
    with contextlib.closing(Server(schema, env={"REDIS_URL": redis.url})) as server:
        yield server.start()


@contextlib.contextmanager
def two_servers(edit=lambda tree: None):
    """Runs two servers on one Redis, the first through a Link: (one, two, link, Redis)."""
    with contextlib.closing(Valkey().start()) as valkey:
        with contextlib.closing(Link(str(valkey.path))) as link:
            with server_on(link, edit) as one, server_on(valkey, edit) as two:
                yield one, two, link, valkey


@pytest.fixture(scope="module")
def apart():
    """Two servers on one Redis. Each test must leave their queues empty."""
    with two_servers() as made:
        yield made


@pytest.fixture
def valkey():
    with contextlib.closing(Valkey()) as made:
        yield made


@pytest.fixture
def served(valkey, make_server):
    """Makes a server on the Valkey of the test."""

    def make(workers=1, **options):
        valkey.start()
        env = {"REDIS_URL": valkey.url}
        return make_server(edited_schema(**SLOW | options), env=env, workers=workers)

    return make


@pytest.fixture(scope="module")
def pair():
    """A server and its Redis, which tests make fail. Each test must leave both working."""
    with contextlib.closing(Valkey().start()) as valkey, server_on(valkey) as server:
        yield server, valkey


@pytest.fixture(scope="module")
def clocked():
    """A server and its Redis, whose clock tests set."""

    def edit(tree):
        tree["queues"]["party"]["wait_seconds"] = 4

    with contextlib.closing(ClockedValkey()) as valkey:
        valkey.start_with_clock()
        with server_on(valkey, edit, answer_seconds=20, start_seconds=0.5) as server:
            yield server, valkey


def in_question(server, queue="random"):
    """Returns two phones at their first question."""
    phones = server.pair(queue)
    for phone in phones:
        phone.expect("question")
    return phones


def finish(phones):
    """Has both phones play to the end, from any round. Returns the `end`."""
    for phone in phones:
        phone.send("check")
        if (update := phone.expect("update"))["phase"] == "question" and "choice" not in update:
            phone.send("answer", round=update["round"], choice=0)
    ends = play_all(phones)
    assert {end["reason"] for end in ends} == {"finished"} and ends[0]["ranking"] == ends[1][
        "ranking"
    ]
    return ends[0]


def unseen_ms(valkey, game):
    """Returns for how many ms the clock of a game has not been written."""
    lag, last, _ = map(int, valkey.client.get(trivia.Keys.game_keys(game)[2]).split(" "))
    seconds, micros = valkey.client.time()
    return seconds * 1000 + micros // 1000 - lag - last


def ready(server):
    return server.http("GET", "/health/ready").status == 200


# ---- Redis and the connection to it


@pytest.fixture
def small_disk():
    """A folder on a disk of 32 MB."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        folder.rmdir()
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_full_disk_is_reported_and_the_server_recovers_when_there_is_space(
    small_disk, make_server, tmp_path, fsync
):
    """With `always` Redis exits at the first write; with `everysec` it refuses writes."""
    server = make_server(data=small_disk, start=False)
    server.log_file = tmp_path / "log"
    server.start()
    server.redis.config_set("appendfsync", fsync)
    session = server.register()
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    wait_until(lambda: not ready(server))
    told = server.http("GET", "/health/ready").refused(503, "unavailable")
    assert told["detail"] == "Redis can't write to its disk; is it full?"
    reason = "is full; Redis can't write" if fsync == "always" else "No space left on device"
    wait_until(lambda: reason in server.log, 20)
    body = {"username": unique_name(), "email": "z@example.org", "password": PASSWORD}
    server.http("POST", "/auth/register", body).refused(503, "unavailable")
    filler.unlink()
    wait_until(lambda: ready(server), 20)
    assert server.http("GET", "/users/me", token=session["token"]).status == 200
    wait_until(lambda: server.http("POST", "/auth/register", body).status == 201, 20)
    assert "Traceback" not in server.log


def test_a_worker_that_loses_its_subscription_sends_its_players_updates(pair):
    server, valkey = pair
    waiting = server.phone(queue="rated")
    ann, bob = in_question(server)
    waiting.expect("queued")
    question = ann.frames[-1]
    ann.send("answer", round=1, choice=1)
    bob.expect("answered")
    for _ in range(3):
        valkey.client.client_kill_filter(_type="pubsub")
        updates = [phone.expect("update") for phone in (ann, bob)]
        assert (
            updates[0]["choice"] == 1
            and "choice" not in updates[1]
            and updates[0]["answered"] == [ann.name]
        )
        assert updates[0]["question"]["text"] == question["text"]
        waiting.expect("queued")
    bob.send("answer", round=1, choice=0)
    assert ann.expect("reveal")["answers"].keys() == {ann.name, bob.name}
    finish([ann, bob])
    waiting.send("leave")
    assert waiting.expect("cancelled")["reason"] == "left"


def test_while_redis_is_down_requests_fail_at_once_and_game_time_pauses(pair):
    server, valkey = pair
    ann, bob = in_question(server)
    session, (left, *_) = server.register(), (ann.send("check"), ann.expect("update"))[1:]
    valkey.kill()
    began = time.monotonic()
    wait_until(lambda: server.http("GET", "/users/me", token=ann.token).status == 503)
    refused = server.http(
        "POST",
        "/auth/register",
        {"username": unique_name(), "email": "x@example.org", "password": PASSWORD},
    ).refused(503, "unavailable")
    assert "try again" in refused["detail"]
    ann.refused("unavailable", "answer", round=1, choice=0)
    ann.refused("unavailable", "check", id=7)
    with pytest.raises((InvalidStatus, ConnectionClosed)) as told:
        server.phone(session=session).receive()
    assert "503" in str(told.value) or "1013" in str(told.value)
    assert server.http("GET", "/health/live").status == 200
    # Game time pauses over gaps of more than 3 s.
    wait_until(lambda: time.monotonic() - began > 4)
    valkey.start()
    updates = [phone.expect("update", 20) for phone in (ann, bob)]
    assert all(update["left_ms"] > left["left_ms"] - 3500 for update in updates), (
        left["left_ms"],
        updates,
    )
    ann.send("answer", round=1, choice=0)
    bob.expect("answered")
    bob.send("answer", round=1, choice=0)
    finish([ann, bob])
    assert "Traceback" not in server.log


def test_while_redis_hangs_requests_fail_and_the_server_recovers_by_itself(pair):
    server, valkey = pair
    ann, bob = in_question(server)
    valkey.kill(signal.SIGSTOP)
    try:
        server.http("GET", "/users/me", token=ann.token).refused(503, "unavailable")
        ann.refused("unavailable", "answer", round=1, choice=0)
    finally:
        valkey.kill(signal.SIGCONT)
    for phone in (ann, bob):
        phone.expect("update", 20)
    finish([ann, bob])
    assert "Traceback" not in server.log


def test_a_connection_to_a_silent_redis_is_closed_but_not_to_a_slow_one(valkey, monkeypatch):
    async def scene():
        redis = trivia.Redis(valkey.url, "", lambda events: None)
        await redis.connect()
        one = redis.only
        one.heard_at_s -= 1
        await one.probe()
        asked_at_s = one.asked_at_s
        await one.call("PING")
        assert asked_at_s and not one.transport.is_closing()
        monkeypatch.setattr(trivia, "MAX_PENDING", 0)  # no probe can be sent
        for silent_s, asked_s, dropped in ((2.9, 2.9, False), (9, 1, False), (3.1, 2.1, True)):
            one.heard_at_s, one.asked_at_s = one.loop.time() - silent_s, one.loop.time() - asked_s
            await one.probe()
            assert one.transport.is_closing() == dropped, silent_s

    valkey.start()
    asyncio.run(scene())


def test_a_worker_that_hung_reads_waiting_replies_before_it_takes_redis_for_silent(valkey):
    async def scene():
        redis = trivia.Redis(valkey.url, "", lambda events: None)
        await redis.connect()
        one = redis.only
        one.heard_at_s -= 1
        await one.probe()
        time.sleep(3.2)
        await one.probe()
        assert not one.transport.is_closing()

    valkey.start()
    asyncio.run(scene())


def test_a_redis_without_memory_refuses_writes_and_games_pause(served, valkey):
    server = served(answer_seconds=8)
    ann, bob = in_question(server)
    code = server.phone(queue="friends").expect("room")["code"]
    valkey.client.config_set("maxmemory", 1_000_000)
    body = {"username": unique_name(), "email": "y@example.org", "password": PASSWORD}
    server.http("POST", "/auth/register", body).refused(503, "unavailable")
    ann.refused("unavailable", "answer", round=1, choice=0)
    for path in ("/users/me", f"/rooms/{code}"):
        assert server.http("GET", path, token=ann.token).status == 200, "stored data can be read"
    assert ready(server)
    assert server.log.count("OOM") == 1 and "Traceback" not in server.log, server.log
    frames = len(bob.frames)
    # Game time pauses over gaps of more than 3 s.
    wait_until(lambda: unseen_ms(valkey, bob.frames[-1]["game"]) > 3500, 20)
    valkey.client.config_set("maxmemory", 10**9)
    assert server.http("POST", "/auth/register", body).status == 201
    bob.send("check")
    assert bob.expect("update")["phase"] == "question" and len(bob.frames) == frames + 1, (
        "no message came twice"
    )
    finish([ann, bob])


def test_a_redis_without_memory_accepts_what_frees_memory_or_protects_an_account(pair):
    server, valkey = pair
    sessions = [server.register() for _ in range(5)]
    phone = server.phone(session=sessions[1])
    phone.expect("queued")
    forgetful, guest = server.register(), {"secret": secrets.token_urlsafe(32)}
    assert server.http("POST", "/auth/guest", guest).status == 201
    uid = forgetful["token"][:12]
    code = f"{trivia.code_digest(uid, '123456')} 0 0 {2**50} -"
    valkey.client.hset(trivia.Keys.codes(uid), "reset", code)
    known = trivia.Keys.user(trivia.guest_uid(guest["secret"]))
    wait_until(lambda: not valkey.client.hexists(known, ":new"))  # their name is claimed
    most = valkey.client.config_get("maxmemory")["maxmemory"]
    valkey.client.config_set("maxmemory", 1_000_000)
    assert server.http("POST", "/auth/guest", guest).status == 200
    body = {"login": forgetful["user"]["username"], "code": "123456", "password": "a new horse"}
    assert server.http("POST", "/auth/reset", body).status == 200
    server.http("GET", "/users/me", token=forgetful["token"]).refused(401, "not_authenticated")
    protected = [
        ("POST", "/auth/logout", None),
        ("DELETE", "/auth/sessions", None),
        ("POST", "/auth/password", {"password": PASSWORD, "new_password": "a new horse"}),
        ("DELETE", "/users/me", {"password": PASSWORD}),
    ]
    for session, (method, path, body) in zip(sessions, protected, strict=False):
        answer = server.http(method, path, body, session["token"])
        assert answer.status == 204, (path, answer.body)
    phone.expect_close(4401)
    logins = [(0, PASSWORD, 200), (1, PASSWORD, 200), (2, PASSWORD, 401), (2, "a new horse", 200)]
    for i, password, status in [*logins, (3, PASSWORD, 401)]:
        body = {"login": sessions[i]["user"]["username"], "password": password}
        assert server.http("POST", "/auth/login", body).status == status, i
    assert "Traceback" not in server.log

    server.stop()  # a worker that starts without memory does the same
    server.start()
    last = sessions[4]["token"]
    assert server.http("DELETE", "/users/me", {"password": PASSWORD}, last).status == 204
    server.http("GET", "/users/me", token=last).refused(401, "not_authenticated")
    valkey.client.config_set("maxmemory", most)


def test_a_redis_that_became_a_replica_is_not_used_until_it_is_the_master_again(pair):
    server, valkey = pair
    ann, bob = in_question(server)
    valkey.client.replicaof("127.0.0.1", free_port())
    wait_until(lambda: "is a read-only replica" in server.log)
    server.http("POST", "/auth/login", {"login": ann.name, "password": PASSWORD}).refused(
        503, "unavailable"
    )
    assert not ready(server)
    valkey.client.replicaof("NO", "ONE")
    for phone in (ann, bob):
        phone.expect("update", 20)
    finish([ann, bob])
    assert "Traceback" not in server.log


def test_no_acknowledged_account_is_lost_when_redis_is_killed(pair):
    server, valkey = pair
    kept, stop = [], threading.Event()

    def register():
        while not stop.is_set():
            name = unique_name()
            with contextlib.suppress(OSError):
                answer = server.http(
                    "POST",
                    "/auth/register",
                    {"username": name, "email": f"{name}@example.org", "password": PASSWORD},
                )
                kept.extend([answer.json] * (answer.status == 201))

    threads = [threading.Thread(target=register) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for count in (8, 16, 24):
            wait_until(lambda: len(kept) >= count, 40)
            valkey.kill()
            valkey.start()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    wait_until(lambda: ready(server), 20)
    for session in kept:
        assert (
            server.http("GET", "/users/me", token=session["token"]).json["username"]
            == session["user"]["username"]
        )


def test_a_player_whose_join_reply_is_lost_is_not_left_in_the_queue(apart):
    one, two, link, valkey = apart
    ann = one.phone()
    ann.expect("queued")
    ann.send("leave")
    ann.expect("cancelled")
    link.last_words = trivia.LIBRARY.function("join").encode()
    ann.refused("unavailable", "join")
    wait_until(
        lambda: (
            (valkey.client.hget("seats:{lobby}", ann.token[:12]) or "").split(" ")[2:3] == ["-"]
        ),
        20,
    )
    bob = two.phone()
    bob.expect("queued")
    ann.send("join")
    assert ann.expect("start")["game"] == bob.expect("start")["game"]
    finish([phone for phone in (ann, bob) if phone.expect("question")])


def test_a_player_who_loses_their_place_during_a_redis_failure_is_told_and_may_join_again():
    with two_servers(lambda tree: tree["limits"].update(queue_length=1)) as servers:
        lose_a_place(*servers)


def lose_a_place(one, two, link, valkey):
    ann = one.phone()
    ann.expect("queued")
    link.closed = True
    link.cut()
    # No worker listens for Ann any more, so the next check removes their ticket.
    wait_until(lambda: not valkey.client.zcard("queue:{lobby}:random"), 20)
    bob = two.phone()
    bob.expect("queued")
    link.closed = False
    ann.refused("queue_full")
    ann.expect("cancelled", reason="left")
    bob.send("leave")
    bob.expect("cancelled")
    ann.send("join")
    ann.expect("queued")


def test_a_session_that_ended_during_a_redis_failure_closes_the_socket_afterwards(apart):
    one, two, link, valkey = apart
    ann, mark = one.phone(), len(one.log)
    ann.expect("queued")
    link.closed = True
    link.cut()
    wait_until(lambda: "redis lost" in one.log[mark:])
    assert two.http("POST", "/auth/logout", token=ann.token).status == 204
    link.closed = False
    ann.expect_close(4401, 20)
    wait_until(lambda: not valkey.client.zcard("queue:{lobby}:random"), 20)


def test_a_player_whose_state_can_not_be_read_is_told_to_reconnect(apart):
    one, _, link, valkey = apart
    ann = one.phone(queue="rated")
    ann.expect("queued")
    ann.send("ping", client_ms=1)
    ann.expect("pong")  # the server has handled their arrival
    key = f"user:{{{ann.token[:12]}}}"
    valkey.client.rename(key, "kept{x}")
    valkey.client.set(key, "no hash")
    link.cut()
    ann.expect_close(1013, 20)
    valkey.client.rename("kept{x}", key)
    ann.connect().expect("queued")
    ann.send("leave")
    ann.expect("cancelled")


def test_a_worker_that_fails_to_start_without_memory_leaks_no_connections_and_can_be_stopped(
    served, valkey
):
    server = served(workers=2)
    all_workers_up(server, 2)
    before = workers_of(server)
    most = len(valkey.client.client_list()) + 2
    valkey.client.config_set("maxmemory", 1_000_000)
    valkey.client.function_flush()  # a library can't be loaded without memory
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: server.log.count('"message": "redis: ') >= 5, 40)
    assert len(valkey.client.client_list()) <= most
    server.process.terminate()
    server.process.wait(20)


def test_a_worker_that_starts_during_a_redis_failure_waits_and_other_workers_stay(served, valkey):
    server = served(workers=2)
    all_workers_up(server, 2)
    before = workers_of(server)
    waiting = phone_on(server, max(before))
    valkey.kill()
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(workers_of(server) - before) == 1, 20)  # uvicorn has started another
    wait_until(
        lambda: server.log.count('"message": "redis: ') >= 2 and workers_of(server) > {max(before)},
        20,
    )
    valkey.start()
    waiting.expect("queued", 20)
    all_workers_up(server, 3)
    assert max(before) in workers_of(server) and server.process.poll() is None
    other = server.phone()
    finish([phone for phone in (waiting, other) if phone.expect("question")])


# ---- time


@pytest.mark.parametrize("hours", [(1,), (-1,), (-24, 0, 48)])
def test_a_game_is_not_affected_when_the_clock_is_set(clocked, hours):
    server, valkey = clocked
    valkey.set_clock(0)
    ann, bob = in_question(server)
    waiting = server.phone(queue="rated")
    waiting.expect("queued")
    for hour in hours:
        valkey.set_clock(hour * 3600)
        ann.send("check")
        update = ann.expect("update")
        assert update["phase"] == "question" and 5000 < update["left_ms"] <= 21_000, update
    bob.send("answer", round=1, choice=0)
    ann.expect("answered", 5)
    ann.send("answer", round=1, choice=0)
    reveal = ann.expect("reveal", 5)
    assert all(0 <= answer["ms"] <= 20_000 for answer in reveal["answers"].values()), reveal
    for phone in (ann, bob):
        phone.expect("question", 5)
    finish([ann, bob])
    # No worker was reaped, and tickets are still there.
    assert "worker is dead" not in server.log
    other = server.phone(queue="rated")
    assert {phone.expect("start", 20)["game"] for phone in (waiting, other)} == {
        waiting.frames[-1]["game"]
    }
    # No allowance is blocked by the change of the clock.
    assert (
        server.http("POST", "/auth/login", {"login": ann.name, "password": PASSWORD}).status == 200
    )


def test_a_ticket_times_out_although_the_clock_was_set_back(clocked):
    server, valkey = clocked
    valkey.set_clock(0)
    waiting = server.phone(queue="party")
    waiting.expect("queued")
    valkey.set_clock(-3600)
    assert waiting.expect("cancelled", 15)["reason"] == "timeout"


# ---- workers that stop


def test_a_worker_that_stops_tells_its_players_to_reconnect(make_server):
    server = make_server(
        edited_schema(
            answer_seconds=60, wait_seconds=300, players={"min": 8, "max": 8}, fill_seconds=300
        ),
        command=[*TRIVIA, "--port", "0"],
    )
    sessions = [server.register() for _ in range(6)]
    phones = [server.phone(session=session) for session in sessions]
    for phone in phones:
        phone.expect("queued")
    server.process.terminate()
    for phone in phones:
        phone.expect_close(1012)
        assert phone.socket.protocol.close_reason == "reconnect at once"
    assert server.process.wait(15) in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log


def test_a_drain_closes_a_few_connections_at_once_and_many_evenly_over_time():
    """A few connections close at once, many within about DRAIN_SECONDS."""

    async def measure(count):
        schema = SimpleNamespace(limits=SimpleNamespace(send_seconds=5))
        hub = trivia.Hub("w", None, schema, None, None, None, lambda send: None)
        closed = []

        async def send(message):
            closed.append((hub.loop.time(), message))

        for n in range(count):
            one = trivia.Connection.__new__(trivia.Connection)
            one.closing, one._send, one.hub = False, send, hub
            hub.sockets[str(n)] = one
        began = hub.loop.time()
        await hub.drain()
        await asyncio.sleep(0.01)
        return closed, hub.loop.time() - began

    closed, took = asyncio.run(measure(3))
    assert len(closed) == 3 and took < 1
    closed, took = asyncio.run(measure(1000))
    assert len(closed) == 1000 and 1.5 < took < 2 * trivia.DRAIN_SECONDS
    assert closed[499][0] - closed[0][0] > 0.3 * took, "not spread evenly"
    assert {(message["type"], message["code"]) for _, message in closed} == {
        ("websocket.close", 1012)
    }


def test_a_second_sigterm_does_not_cut_the_drain_short(make_server):
    """Workers get SIGTERM from the terminal or systemd, and again from the supervisor."""
    server = supervised(
        make_server, 1, wait_seconds=300, players={"min": 8, "max": 8}, fill_seconds=300
    )
    phones = [server.phone() for _ in range(3)]
    for phone in phones:
        phone.expect("queued")
    server.kill()
    server.process.terminate()
    for phone in phones:
        phone.expect_close(1012)
        assert phone.socket.protocol.close_reason == "reconnect at once"
    server.process.wait(20)
    assert "Traceback" not in server.log


def test_a_draining_worker_refuses_new_players():
    async def ask():
        schema = SimpleNamespace(limits=SimpleNamespace(send_seconds=1))
        hub = trivia.Hub("w", None, schema, None, None, None, lambda send: None)
        hub.draining, one, sent = True, trivia.Connection.__new__(trivia.Connection), []

        async def send(message):
            sent.append(message)

        one.hub, one.closing, one._send, one.queue = hub, False, send, SimpleNamespace(name="q")
        with pytest.raises(trivia.Problem) as refused:
            await hub._admit({"headers": [], "path": "/game/q"}, [])
        hub.schema.queues = {"q": None}
        await one._on_join({})
        return refused.value.detail, sent

    detail, (close,) = asyncio.run(ask())
    assert "restarts" in detail and close["code"] == 1012


def test_a_question_follows_an_event_that_arrives_while_the_player_enters_the_game():
    """The event has a higher `seq` than the snapshot, and is handled first."""
    written = []

    async def run():
        async def enter(*who):
            hub.deliver('emoji g 1.0 10:1:7:0123:5000 1:3\n{"type":"emoji"}')
            return SimpleNamespace(
                coming="10:1:7:0123:5000", queue="q", player_of=lambda uid: SimpleNamespace(seq=2)
            )

        async def snapshot(*whose):
            return {"type": "update", "seq": 2}

        async def note(*args):
            shown.set()

        games = SimpleNamespace(
            enter=enter, snapshot=snapshot, question_view=lambda *question: b'{"type":"question"}'
        )
        schema = SimpleNamespace(limits=None, queues={})
        hub = trivia.Hub("w", None, schema, None, None, games, lambda send: None)
        hub._note_skew, shown = note, asyncio.Event()
        one = trivia.Connection.__new__(trivia.Connection)
        one.hub, one.number, one.uid, one.id, one.turn, one.queue = hub, "1", "u", "w.1", 1, None
        one.buffered, one.is_stale, one.write = None, False, written.append
        one.send = lambda message: one.write(json.dumps(message).encode())
        hub.sockets["1"] = one
        await one._enter("g")
        await shown.wait()

    asyncio.run(run())
    frames = map(json.loads, written)
    assert [(one["type"], one["seq"]) for one in frames] == [
        ("update", 2),
        ("emoji", 3),
        ("question", 4),
    ]


def test_a_message_that_arrives_as_a_game_ends_belongs_to_that_game():
    """The handler of the message may run only after the end."""
    calls = []

    async def run():
        async def relay(game, *what):
            calls.append(game)
            return "not_playing"

        one = trivia.Connection.__new__(trivia.Connection)
        one.hub = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            games=SimpleNamespace(relay=relay),
            schema=SimpleNamespace(relayed={"emoji"}),
        )
        one.id, one.buffered, one.send = "w.1", None, lambda error: calls.append(error["code"])
        one._set_state(trivia.State.PLAYING, "g")
        waiting = one._dispatch("emoji", {"emoji": "x"}, {}), one._dispatch("check", {}, {})
        one._set_state(trivia.State.IDLE, over="g")
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert calls == ["g", "not_playing"]


@pytest.mark.parametrize(
    "seat, sent", [(("g", "ABC234"), ["update", "room"]), (("stale", "-"), ["update"])]
)
def test_a_check_shows_no_room_on_a_replaced_connection(seat, sent):
    """The newer connection may have left the room."""
    calls = []

    async def take_back(*who):
        return seat

    async def send(kind, *about):
        calls.append(kind)

    one = trivia.Connection.__new__(trivia.Connection)
    one.hub = SimpleNamespace(lobby=SimpleNamespace(take_back=take_back))
    one.uid, one.id, one.turn, one.game, one.code = "u", "w.1", 1, "g", "ABC234"
    one.state = trivia.State.PLAYING
    one._enter = functools.partial(send, "update")
    one._show_room = functools.partial(send, "room")
    asyncio.run(one._ask())
    assert calls == sent


def test_a_player_who_leaves_during_a_resync_does_not_join_again():
    calls = []

    async def run():
        answered = asyncio.Event()

        async def leave(*who):
            calls.append("leave")
            await answered.wait()
            return "left", ""

        async def call(name, *args):
            calls.append(name)
            return "-", "-"

        async def note(*args):
            calls.append("session")

        one = trivia.Connection.__new__(trivia.Connection)
        one.hub = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            resyncs=asyncio.Semaphore(),
            users=SimpleNamespace(authenticate=note),
            lobby=SimpleNamespace(leave=leave, take_back=functools.partial(call, "take_back")),
        )
        one.queue, one.uid, one.id, one.turn, one.token = (
            SimpleNamespace(name="q"),
            "u",
            "w.1",
            1,
            "t",
        )
        one.code, one.closing, one.buffered, one.is_stale = "ABC234", False, None, False
        one.write = lambda payload: calls.append(json.loads(payload)["type"])
        one._join = functools.partial(call, "join")
        one._set_state(trivia.State.ROOM)
        leaving = asyncio.ensure_future(one._on_leave({}))
        await asyncio.sleep(0)
        one.resync()  # a subscription was lost
        await asyncio.sleep(0.01)
        answered.set()
        await leaving
        while one.buffered is not None:
            await asyncio.sleep(0.01)
        return one.state, one.code

    assert asyncio.run(run()) == (trivia.State.IDLE, "")
    assert calls == ["leave", "cancelled", "session", "take_back", "leave"]


def supervised(make_server, workers, **queue):
    """Starts `python trivia.py` with several workers, and waits for all of them."""
    server = make_server(
        edited_schema(**queue),
        command=[*TRIVIA, "--port", str(free_port()), "--workers", str(workers)],
    )
    wait_until(lambda: server.redis.zcard("workers:{lobby}") == workers, 40)
    return server


def come_back(phone):
    """Reconnects at once, as close code 1012 asks. Returns the seconds until the first message."""
    began = time.monotonic()
    phone.connect()
    phone.receive()
    return time.monotonic() - began


def test_players_of_a_stopping_worker_continue_on_another_worker(make_server):
    server = supervised(make_server, 2, answer_seconds=60, rounds=2)
    ending = min(workers_of(server))
    ann, bob = phone_on(server, ending), phone_on(server, max(workers_of(server)))
    for phone in (ann, bob):
        phone.expect("question")
    bob.send("answer", round=1, choice=0)
    ann.expect("answered")
    os.kill(ending, signal.SIGTERM)
    ann.expect_close(1012)
    assert come_back(ann) < 5 and ann.frames[-1]["type"] == "update"
    assert bob.expect("user_exit")["player"] == bob.expect("user_return")["player"] == ann.name
    ann.send("answer", round=1, choice=0)
    # The round has waited for Ann.
    assert bob.expect("reveal")["answers"].keys() == {ann.name, bob.name}
    finish([ann, bob])


def test_workers_are_replaced_one_by_one_and_new_games_follow_the_new_schema(make_server):
    server = supervised(make_server, 2, answer_seconds=60, rounds=2)
    ann, bob = server.pair()
    for phone in (ann, bob):
        phone.expect("question")
    before = workers_of(server)

    def change(tree):
        tree["queues"]["fresh"] = tree["queues"].pop("random") | {"rounds": 1}

    (server.data / "schema.yaml").write_text(edited_schema(change), "utf-8")
    server.process.send_signal(signal.SIGHUP)
    waits = []
    while workers_of(server) & before or server.redis.zcard("workers:{lobby}") != 2:
        for phone in (ann, bob):
            try:
                phone.receive(0.2)
            except TimeoutError:
                continue
            except ConnectionClosed as closed:
                assert closed.rcvd.code == 1012
                # They may reach a worker whose schema does not have their queue any more.
                waits.append(come_back(phone))
                assert phone.frames[-1]["type"] == "update" and phone.frames[-1]["rounds"] == 2
    assert len(waits) >= 2 and max(waits) < 5, waits
    finish([ann, bob])
    queues = {queue["name"]: queue for queue in server.http("GET", "/queues").json["queues"]}
    assert "random" not in queues and queues["fresh"]["rounds"] == 1
    for phone in (ann, bob):
        phone.send("join", queue="fresh")
    for phone in (ann, bob):
        assert phone.expect("start")["rounds"] == 1
    finish([ann, bob])
    assert [me(server, phone)["games"] for phone in (ann, bob)] == [2, 2]


def test_a_worker_that_hung_for_long_disturbs_no_game_when_it_wakes(make_server):
    server = make_server(edited_schema(answer_seconds=60, rounds=2), workers=2)
    all_workers_up(server, 2)
    hung = min(workers_of(server))
    ann, bob = phone_on(server, hung), phone_on(server, max(workers_of(server)))
    for phone in (ann, bob):
        phone.expect("question")
    with frozen([hung]):
        again = Phone(server, ann.session, connected=False)
        await_reconnect(again)
        assert again.expect("update")["phase"] == "question"
        again.send("answer", round=1, choice=0)
        bob.expect("answered", player=ann.name)
        bob.send("answer", round=1, choice=0)
        finish([again, bob])
    assert me(server, ann)["games"] == me(server, bob)["games"] == 1
    # The old connection may still get messages that were on the way.
    with contextlib.suppress(ConnectionClosed, TimeoutError):
        while (frame := ann.receive(2))["type"] != "end":
            assert frame["type"] in ("answered", "question", "reveal", "user_exit", "update"), frame


# ---- overload


def test_a_player_who_connects_too_often_is_slowed_down(make_server):
    server = make_server()
    session = server.register()

    def until_refused(**options):
        """Connects until the player is refused. Returns the response or the close code.

        A refused player may still connect ten times a second.
        """
        for _ in range(3000):
            try:
                phone = server.phone(session=session, **options)
                phone.expect("queued")
                phone.drop()
            except InvalidStatus as refused:
                return refused.response
            except ConnectionClosed:
                return phone.socket.protocol.close_code
        pytest.fail("the player is never refused")

    told = json.loads(until_refused().body)
    assert (told["status"], told["code"]) == (429, "too_many_attempts")
    assert (
        until_refused(headers={}, subprotocols=["trivia.v1", f"bearer.{session['token']}"]) == 4429
    )
    # Wait for the player to leave the queue: else Ann or Bob might be matched with them.
    wait_until(lambda: not server.redis.hexists("seats:{lobby}", session["token"][:12]))
    ann, bob = server.pair()
    finish([ann, bob])
    wait_until(lambda: server.redis.pttl(f"limit:{{connect:{session['token'][:12]}}}") < 19_900, 20)
    server.phone(session=session).expect("queued")


def test_concurrent_handshakes_are_limited_and_the_excess_gets_a_503(monkeypatch):
    monkeypatch.setattr(trivia, "ADMISSION_SECONDS", 0.05)
    headers = [(b"authorization", b"Bearer t")]
    scope = {"path": "/game/random", "query_string": b"", "headers": headers}

    async def scene():
        inside, opened = [], asyncio.Event()

        async def authenticate(token, connects):
            inside.append(token)
            await opened.wait()
            return "uid", {":turn": "7"}

        users = SimpleNamespace(
            authenticate=authenticate,
            count_connection=lambda uid: asyncio.sleep(0),
            switches=SimpleNamespace(refuse_play=lambda queue, app: None),
        )
        queue = SimpleNamespace(name="random")
        schema = SimpleNamespace(
            limits=SimpleNamespace(connections=1000), origins=[], queues={"random": queue}
        )
        hub = trivia.Hub("w", None, schema, users, None, None, lambda send: None)
        crowd = [
            asyncio.create_task(hub._admit(scope, [])) for _ in range(trivia.MAX_ADMISSIONS + 20)
        ]
        while sum(one.done() for one in crowd) < 20:
            await asyncio.sleep(0)
        refused = [one.exception() for one in crowd if one.done()]
        assert len(inside) == trivia.MAX_ADMISSIONS and len(refused) == 20
        assert all(
            (one.status_code, one.code) == (503, "unavailable") and 1 <= one.retry_after <= 5
            for one in refused
        )
        opened.set()
        for one in [one for one in crowd if not one.done()] + [
            hub._admit(scope, []) for _ in crowd
        ]:
            assert (await one)[:4] == (queue, "uid", 7, "t")

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_timeout_is_named_even_if_its_error_has_no_text(monkeypatch):
    monkeypatch.setattr(trivia, "CALL_SECONDS", 0.1)
    said = []
    monkeypatch.setattr(trivia.log, "warning", lambda text, *args: said.append(text % args))

    async def end_nothing(*args):
        raise TimeoutError

    async def take_nothing(name, *args):
        return None

    async def scene():
        with socket.create_server(("127.0.0.1", 0)) as silent:  # never answers TLS
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            redis = trivia.Redis(f"rediss://{address}", "", lambda events: None)
            with pytest.raises(trivia.Unavailable, match=f"{address}: no answer$"):
                await redis.open_link(address)
        chores = trivia.Chores(SimpleNamespace(run=take_nothing))
        chores.handlers["mail"] = end_nothing
        assert not await chores._do("x", 1, trivia.write_chore("mail", {}))

    asyncio.run(scene())
    assert said == ["chore mail waits: timeout"]
