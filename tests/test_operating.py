"""What an operator works with: metrics, the log, the doctor, backup, restore and repair."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

import trivia
from conftest import FOLDER, PASSWORD, Server, debian_program, edited_schema, play_all, wait_until
from test_end_to_end import (
    TRIVIA,
    UVICORN,
    free_port,
    frozen,
    phone_on,
    run,
    running_valkey,
    the_valkey,
    valkeys,
    workers_of,
)
from test_failures import ClockedValkey, in_question

TOKEN = "t0ken-of-the-operator"
GAUGES = {
    "workers",
    "connections",
    "worker_resident_bytes",
    "worker_cpu_seconds",
    "queue_waiting",
    "queue_playing",
    "redis_up",
    "redis_memory_bytes",
    "redis_memory_limit_bytes",
    "redis_commands",
    "quick_players",
    "webhook_waiting",
}
BAD = b"\xff\xfe".decode("latin-1")


@contextlib.contextmanager
def running(*arguments, **options):
    made = Server(*arguments, **options)
    try:
        yield made.start()
    finally:
        made.close()


def families(server, token=TOKEN):
    answer = server.http("GET", "/metrics", token=token)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain"), (
        answer.body
    )
    return {family.name: family for family in text_string_to_metric_families(answer.body)}


def scraped(server):
    """Returns {"NAME LABEL ...": value}, without the prefix `trivia_` and without buckets."""
    return {
        " ".join(
            (
                sample.name.removeprefix("trivia_"),
                *(value for _, value in sorted(sample.labels.items())),
            )
        ): sample.value
        for family in families(server).values()
        for sample in family.samples
        if "le" not in sample.labels
    }


# ---- metrics


@pytest.fixture(scope="module")
def counted():
    """A server with two workers and an operator's token."""
    with running(
        edited_schema(rounds=3),
        command=[*TRIVIA, "--port", str(free_port())],
        workers=2,
        env={"TRIVIA_OPS_TOKEN": TOKEN},
    ) as server:
        wait_until(lambda: scraped(server)["workers"] == 2, 40)
        yield server


def from_each(server):
    """Yields the metrics page of each worker in turn."""
    for worker in workers_of(server):
        with frozen(workers_of(server) - {worker}):
            yield scraped(server)


def play_a_game(server):
    """Plays a game of two phones on two workers, in which the server refuses some messages.

    Returns {metric: how much the game adds to it}.
    """
    one, other = sorted(workers_of(server))
    ann = phone_on(server, one)
    ann.send("ping")
    ann.expect("pong")
    ann.refused("wrong_state", "join")
    ann.refused("unknown_type", "frob")
    ann.socket.send("{")
    ann.refused("bad_json")
    phones = ann, phone_on(server, other)
    ann.expect("start")
    ann.send("emoji", emoji="👍")
    play_all(phones)
    for phone in phones:
        phone.close()
    return {
        "connects_total": 2,
        "closes_total gone": 2,
        "answers_total": 6,
        "answer_seconds_count": 6,
        "messages_total answer": 6,
        "messages_total ping": 1,
        "messages_total emoji": 1,
        "messages_total join": 1,
        "errors_total bad_json": 1,
        "errors_total wrong_state": 1,
        "errors_total unknown_type": 1,
        "games_started_total random": 1,
        "games_ended_total random finished": 1,
        "queue_wait_seconds_count random": 2,
        "deliveries_total": sum(len(phone.frames) for phone in phones),
        "requests_total register 201": 2,
    }


def grown(server, before, *additions):
    """Waits until each worker reports that the sums have grown by exactly these additions.

    Returns the metrics page of one of the workers.
    """
    wanted = {
        name: before.get(name, 0) + sum(by.get(name, 0) for by in additions)
        for name in additions[0]
    }
    with contextlib.suppress(pytest.fail.Exception):
        wait_until(lambda: all(wanted.items() <= page.items() for page in from_each(server)), 8)
    page = scraped(server)
    assert {name: page.get(name) for name in wanted} == wanted
    return page


def test_all_workers_together_count_a_game_exactly_over_a_restart_and_a_crash(counted):
    before, first = scraped(counted), play_a_game(counted)
    skews = list(counted.redis.scan_iter("skew:*"))
    assert skews and all(
        0 < counted.redis.ttl(key) <= 20 and counted.redis.type(key) == "string" for key in skews
    )
    after = grown(counted, before, first)
    for name in (
        "answer_seconds",
        "delivery_seconds",
        "delivery_skew_seconds",
        "deadline_lateness_seconds",
        "redis_seconds",
    ):
        assert after[f"{name}_count"] > before.get(f"{name}_count", 0), name
        assert 0 <= after[f"{name}_sum"] - before.get(f"{name}_sum", 0) < 20, name

    first["errors_total not_found"] = 4
    for _ in range(4):
        counted.http("GET", "/nothing").refused(404, "not_found")
    counted.stop()
    assert not valkeys(counted)
    counted.start()
    wait_until(lambda: scraped(counted)["workers"] == 2, 40)
    grown(counted, before, first)
    second = play_a_game(counted)
    connections = set(grown(counted, before, first, second)) & {
        f"connections {name}" for name in workers_in(counted)
    }
    assert len(connections) == 2

    os.kill(min(workers_of(counted)), signal.SIGKILL)
    wait_until(
        lambda: len(workers_in(counted)) == 2 and not connections <= scraped(counted).keys(), 40
    )
    wait_until(lambda: scraped(counted)["workers"] == counted.redis.hlen("loads:{metrics}") == 2)
    grown(counted, before, first, second)


def workers_in(server):
    return server.redis.zrange("workers:{lobby}", 0, -1)


def test_sums_that_redis_refuses_are_added_later_and_only_once():
    added = []

    async def run(name, keys, *pairs):
        assert (name, keys) == ("add_metrics", (trivia.Keys.metrics,))
        if refuses:
            raise trivia.Unavailable("OOM")
        added.append(pairs)

    async def call(*command):
        assert command[:3] == ("HSET", trivia.Keys.loads, "w")

    redis, hub = SimpleNamespace(run=run, call=call), SimpleNamespace(sockets={})
    worker = SimpleNamespace(redis=redis, worker="w", hub=hub)
    worker._add_portion = lambda portion: trivia.Server._add_portion(worker, portion)
    trivia.take_sums()
    trivia.count("errors", "a")
    trivia.observe("redis_seconds", 0.25)
    expected = trivia.take_sums()
    for key, value in expected.items():
        trivia.count_many(key[0], value, *key[1:])
    for refuses in (True, False):
        asyncio.run(trivia.Server._add_up(worker))
        assert trivia.take_sums() == (expected if refuses else {})
        for key, value in expected.items() if refuses else ():
            trivia.count_many(key[0], value, *key[1:])
    assert added == [("errors a", 1, "redis_seconds le 9", 1, "redis_seconds sum 0", 0.25)]


def test_a_worker_with_many_messages_is_busy_unless_it_drains():
    async def run():
        worker = SimpleNamespace(
            redis=SimpleNamespace(links={"a": None, "b": None}),
            hub=SimpleNamespace(),
            batches=trivia.Batches(),
        )
        many = trivia.BUSY_RATE * trivia.METRICS_S
        for number, draining in ((many, False), (many - 1, False), (many, False), (many, True)):
            worker.hub.messages, worker.hub.draining = number, draining
            await trivia.Server._adapt(worker)
            assert worker.hub.messages == 0
            yield worker.batches.is_busy, worker.batches.pause_s

    async def collect():
        return [state async for state in run()]

    pause_s = 2 * trivia.BATCH_S  # as there are two primaries
    assert asyncio.run(collect()) == [(busy, pause_s) for busy in (True, False, True, False)]


def test_only_messages_that_are_handled_make_a_worker_busy():
    schema = trivia.Schema(trivia.read_schema(trivia.SCHEMA_FILE))
    loop = SimpleNamespace(time=lambda: 0.0)
    hub = SimpleNamespace(schema=schema, limits=schema.limits, loop=loop, messages=0)
    one = trivia.Connection.__new__(trivia.Connection)
    one.hub, one.allowance, one.allowed_at, one.excess = hub, 2, 0.0, 0
    one._dispatch = one._refuse_message = lambda *about: None
    for text in ('{"type":"ping"}', "[", '{"type":"ping"}'):  # the last one exceeds the allowance
        one.on_text(text)
    assert hub.messages == 1


def test_a_busy_worker_sleeps_once_between_two_batches_and_a_quiet_worker_never(monkeypatch):
    batches, sleeps, turns = trivia.Batches(), [], trivia.Batches.TURNS

    async def after(rate, number, primaries=1):
        """Reports a rate, waits for so many turns, and returns how many sleeps there were."""
        batches.adapt(rate, primaries)
        for _ in range(number):
            await asyncio.sleep(0)
        return len(sleeps)

    async def run():
        assert await after(trivia.BUSY_RATE - 1, 3 * turns) == 0
        assert await after(trivia.BUSY_RATE, 3 * turns) == 3
        assert await after(2 * trivia.BUSY_RATE, 2 * turns) == 5  # it does not start a second time
        assert await after(0, 3 * turns) == 5
        assert await after(trivia.BUSY_RATE, 2 * turns, primaries=99) == 7

    monkeypatch.setattr(trivia.time, "sleep", sleeps.append)
    monkeypatch.setattr(trivia.time, "monotonic", lambda: 0.001)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.time = lambda: 0.0
        loop.run_until_complete(run())
    pauses = [trivia.BATCH_S] * 5 + [trivia.MOST_BATCH_S] * 2
    assert sleeps == pytest.approx([pause - 0.001 for pause in pauses])  # all end on a multiple


def test_no_sleep_follows_a_batch_that_outlasts_the_pause(monkeypatch):
    batches, sleeps, now = trivia.Batches(), [], 0.0
    batches.pause_s = 0.03
    monkeypatch.setattr(trivia.time, "sleep", sleeps.append)
    monkeypatch.setattr(trivia.time, "monotonic", lambda: now)
    for began_s, now, slept in ((0.0, 0.029, 0.001), (0.0, 0.031, None), (0.02, 0.035, None)):
        batches.began_s, sleeps[:] = began_s, []
        batches._sleep()
        assert sleeps == ([pytest.approx(slept)] if slept else []) and batches.began_s == now


def test_work_waits_for_the_end_of_a_batch_and_runs_at_once_outside_of_one(monkeypatch):
    batches, done = trivia.Batches(), []
    batches.began_s = time.monotonic() + 60  # so that there is time left to sleep

    async def after(number):
        """Waits for this number of turns, and returns what was done in them."""
        for _ in range(number):
            await asyncio.sleep(0)
        found = done.copy()
        done.clear()
        return found

    async def run():
        batches.at_end(lambda: done.append("quiet"))
        assert await after(1) == ["quiet"]
        batches.adapt(trivia.BUSY_RATE)
        batches.at_end(lambda: done.append("first"))
        batches.at_end(lambda: done[1])  # it raises, and the others run nevertheless
        batches.at_end(lambda: done.append("second"))
        assert await after(batches.TURNS - 2) == []
        assert await after(1) == ["first", "second", "slept"]
        batches.at_end(lambda: done.append("last"))
        batches.adapt(0)
        assert await after(1) == ["last"]
        assert await after(2 * batches.TURNS) == []

    monkeypatch.setattr(trivia.time, "sleep", lambda seconds: done.append("slept"))
    asyncio.run(run())


def test_a_busy_worker_writes_to_redis_once_at_the_end_of_a_batch():
    async def run():
        worker = trivia.Server(trivia.Schema(trivia.read_schema(trivia.SCHEMA_FILE)), "w")
        link, written = trivia.RedisConnection("", lambda events: None, worker.redis), []
        link.transport = SimpleNamespace(is_closing=lambda: False, write=written.append)
        worker.batches.adapt(trivia.BUSY_RATE)
        for turn in range(worker.batches.TURNS - 1):
            link.send(lambda reply: None, ("PING", str(turn)))
            await asyncio.sleep(0)
        assert [text.count(b"PING") for text in written] == [worker.batches.TURNS - 1]

    asyncio.run(run())


def test_workers_that_are_being_reaped_do_not_count_as_alive(counted):
    with contextlib.closing(counted.redis) as link:
        link.zadd("workers:{lobby}", {"dead:0123456789": time.time() * 1000})
        try:
            assert scraped(counted)["workers"] == 2
        finally:
            link.zrem("workers:{lobby}", "dead:0123456789")


def test_every_metric_is_described_on_the_page(counted):
    found = families(counted, token=TOKEN)
    assert found.keys() == {f"trivia_{name}" for name in trivia.METRICS.keys() | GAUGES}
    assert all(family.documentation for family in found.values())
    for name, (labels, text) in trivia.METRICS.items():
        family = found[f"trivia_{name}"]
        assert (family.type, family.documentation) == (
            "histogram" if name.endswith("_seconds") else "counter",
            text,
        )
        assert all(set(sample.labels) - {"le"} == set(labels.split()) for sample in family.samples)


def test_buckets_are_cumulative_and_their_sum_is_that_of_the_observations():
    for seconds in (0, 0.0005, 0.0006, 3, 70):
        trivia.observe("request_seconds", seconds, "route")
    sums = {" ".join(map(str, key)): str(value) for key, value in trivia.take_sums().items()}
    [family] = [
        family for family in trivia.families(sums) if family.name == "trivia_request_seconds"
    ]
    *_, most, everything, total = values = [
        sample.value for sample in family.samples if not sample.name.endswith("_count")
    ]
    assert (
        values[:-1] == sorted(values[:-1])
        and (values[0], most, everything) == (2, 4, 5)
        and not trivia.take_sums()
    )
    assert total == pytest.approx(73.0011)


@pytest.mark.parametrize("given", [None, "Bearer", f"Bearer {TOKEN}"])
def test_without_an_operator_token_there_are_no_metrics(server, given):
    """A request through a bare `proxy_pass` looks like a request of this host itself."""
    headers = {"Authorization": given} if given else {}
    server.http("GET", "/metrics", headers=headers).refused(404, "not_found")
    server.http("GET", "/ops", headers=headers).refused(404, "not_found")


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, f"Bearer {BAD}"]
)
def test_with_an_operator_token_metrics_need_that_token(counted, authorization):
    counted.http(
        "GET", "/metrics", headers=authorization and {"Authorization": authorization}
    ).refused(401, "not_authenticated")
    assert (
        counted.http(
            "GET", "/metrics", token=TOKEN, headers={"X-Forwarded-For": "203.0.113.7"}
        ).status
        == 200
    )


@pytest.mark.parametrize("logged", ["json"], indirect=True)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_counts_made_while_redis_is_away_are_not_lost(logged, end):
    def refuse(times):
        for _ in range(times):
            logged.http("GET", "/nothing").refused(404, "not_found")

    def errors():
        return int(logged.redis.hget("metrics:{metrics}", "errors not_found") or 0)

    before, valkey, folder, other = (
        errors(),
        the_valkey(logged),
        logged.data / "d",
        logged.data / "away",
    )
    refuse(1)
    wait_until(lambda: errors() == before + 1)
    if end == signal.SIGKILL:  # the server restarts its own Redis at once, unless it can't
        folder.rename(other)
        folder.touch()
    os.kill(valkey, end)
    try:
        wait_until(lambda: scraped(logged) == {"redis_up": 0}, 12)
        refuse(5)
    finally:
        if end == signal.SIGKILL:
            folder.unlink()
            other.rename(folder)
        else:
            os.kill(valkey, signal.SIGCONT)
    wait_until(lambda: scraped(logged)["redis_up"] == 1, 20)
    assert wait_until(lambda: errors() > before + 1 and errors()) == before + 6


# ---- log

LINE = re.compile(
    r"[\d-]{10} [\d:,]{12} (?P<level>[A-Z]+) (?P<logger>[\w.]+) "
    r"(?P<message>.*?)(?:  (?P<ids>(\w+=\S+ ?)+))?"
)
ON_A_TERMINAL = f"import pty; pty.spawn({UVICORN!r})"


@pytest.fixture(scope="module", params=["json", "terminal"])
def logged(request):
    """A server that logs at debug level, as JSON to a file or as text on a terminal."""
    command = (
        [*TRIVIA, "--port", "0"]
        if request.param == "json"
        else [sys.executable, "-c", ON_A_TERMINAL]
    )
    with running(command=command, env={"TRIVIA_LOG": "debug", "TRIVIA_OPS_TOKEN": TOKEN}) as server:
        server.form = request.param
        yield server


def parsed(server, line):
    """Parses a line of the log into {level, logger, message, ids...}."""
    if server.form == "json":
        return json.loads(line)
    found = LINE.fullmatch(line)
    assert found, line
    return found.groupdict() | dict(pair.split("=", 1) for pair in (found["ids"] or "").split())


def lines(server, since=0):
    """Parses the complete lines of the log, without the tracebacks on a terminal."""
    whole = server.log[since:].replace("\r", "").rpartition("\n")[0]
    return [
        parsed(server, line)
        for line in whole.splitlines()
        if server.form == "json" or line[:2] == "20"
    ]


def mark(server):
    """Returns the length of the log, once it holds all that has happened so far."""
    made = server.http("GET", "/health/live").headers["x-request-id"]
    wait_until(lambda: re.search(f"{made}.*\n", server.log))
    return len(server.log)


def test_every_line_of_the_log_has_the_same_form(logged):
    found = lines(logged)
    assert all({"level", "logger", "message"} <= line.keys() for line in found)
    assert [line["message"] for line in found if line.get("worker")] == ["worker serves"]
    assert logged.form == "terminal" or all(
        re.match(r"\d{4}-\d\d-\d\dT", line["timestamp"]) for line in found
    )


@pytest.mark.parametrize(
    "given, taken",
    [
        ("abc-123_X.y", True),
        ("a" * 64, True),
        (None, False),
        ("a" * 65, False),
        ("short12", False),
        ("with space", False),
        ('quote"quote', False),
        (f"latin-{BAD}", False),
        ("", False),
    ],
)
def test_a_request_has_an_id_in_its_response_and_in_the_log(logged, given, taken):
    since = mark(logged)
    answer = logged.http(
        "GET", "/queues", headers=None if given is None else {"X-Request-Id": given}
    )
    made = answer.headers["x-request-id"]
    assert made == given if taken else re.fullmatch("[0-9a-f]{16}", made)
    mark(logged)
    [line] = [line for line in lines(logged, since) if line.get("request") == made]
    assert (line["level"], line["message"]) == ("DEBUG", "GET /queues")
    assert taken or not given or given not in logged.log[since:]


def test_a_server_error_is_logged_with_the_id_of_its_response_and_a_traceback(logged):
    ann, since = logged.register(), mark(logged)
    logged.redis.set(f"history:{{{ann['token'][:12]}}}", "of another type")
    answer = logged.http("GET", "/users/me/games", token=ann["token"])
    answer.refused(500, "internal")
    mark(logged)
    assert "WRONGTYPE" in logged.log[since:]
    first, *rest = logged.log[since:].replace("\r", "").splitlines()
    line = parsed(logged, first)
    assert (line["level"], line["message"]) == ("ERROR", "GET /users/me/games failed")
    assert (line["request"], line["player"]) == (answer.headers["x-request-id"], ann["token"][:12])
    assert "Traceback" in (line["exc_info"] if logged.form == "json" else rest[0])


@pytest.mark.parametrize(
    "action, line",
    [
        ("register", "registered"),
        ("login", "signed in"),
        ("wrong", "wrong password"),
        ("password", "password changed"),
        ("everywhere", "all sessions ended"),
        ("erase", "erased"),
    ],
)
def test_what_happens_to_an_account_is_logged_with_its_id_and_without_secrets(logged, action, line):
    since, address, new, phones = mark(logged), "203.0.113.77", "another passw0rd", []
    head = {"X-Forwarded-For": address}
    ann = logged.register("name-" + action)
    token, uid = ann["token"], ann["token"][:12]
    login = {"login": f"name-{action}@example.org", "password": PASSWORD}
    request = {
        "register": ("GET", "/users/name-register"),
        "login": ("POST", "/auth/login", login),
        "wrong": ("POST", "/auth/login", login | {"password": "wrong horse"}),
        "everywhere": ("DELETE", "/auth/sessions"),
        "password": ("POST", "/auth/password", {"password": PASSWORD, "new_password": new}),
        "erase": ("DELETE", "/users/me", {"password": PASSWORD}),
    }[action]
    for connect in (
        {"headers": head | {"Authorization": f"Bearer {token}"}},
        {"headers": head, "subprotocols": ["trivia.v1", f"bearer.{token}"]},
    ):
        phones.append(logged.phone(session=ann, **connect))
        phones[-1].receive()
    assert logged.http(*request, token=token, headers=head).status in (200, 204, 401)
    mark(logged)
    [found] = [one for one in lines(logged, since) if one["message"] == line]
    assert (found["level"], found["player"], len(found["request"])) == ("INFO", uid, 16)
    for secret in (
        token,
        token[12:],
        PASSWORD,
        new,
        "wrong horse",
        "example.org",
        f"name-{action}",
        address,
    ):
        assert secret not in logged.log[since:], secret
    phones[1].close()


def test_mistakes_of_clients_are_not_logged_as_errors(logged):
    since, phone = mark(logged), logged.phone()
    for method, path, body in (
        ("GET", "/nothing", None),
        ("POST", "/queues", b""),
        ("POST", "/auth/login", b"{"),
        ("POST", "/auth/login", b"\xff"),
        ("GET", "/users/" + "x" * 600, None),
        ("GET", "/users/me", None),
        ("POST", "/auth/login", b'{"login": "nobody", "password": "x"}'),
        ("POST", "/auth/register", b"x" * 99999),
    ):
        assert (
            400
            <= logged.http(
                method, path, raw=body, headers={"Authorization": f"Bearer {BAD}"}
            ).status
            < 500
        )
    for frame in (
        "{",
        b"\xff\xfe",
        '{"type": "frob"}',
        '{"type": "answer", "round": 1, "choice": 0}',
    ):
        phone.socket.send(frame)
        phone.expect("error")
    upgrade = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: "
    for attempt in (
        b"\x00garbage\r\n\r\n",
        upgrade + b"h2c\r\n\r\n",
        b"GET /docs/ui/swagger-ui.css HTTP/1.0\r\nif-modified-since: a client's text\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", logged.port), timeout=10) as raw:
            raw.sendall(attempt)
            while raw.recv(65536):  # until the server closes it
                pass
    phone.socket.socket.sendall(b"\xff" * 50)  # no frame at all
    mark(logged)
    assert {line["level"] for line in lines(logged, since)} <= {"DEBUG", "INFO"}, logged.log[since:]
    assert "Traceback" not in logged.log[since:]


@pytest.mark.parametrize(
    "command, name, value, says",
    [
        (TRIVIA, "TRIVIA_LOG", "loud", "found loud; expected debug, info, warning or error"),
        (
            UVICORN,
            "TRIVIA_OPS_TOKEN",
            "short-but-secret"[:15],
            "found 15 characters; expected 16 or more, without spaces",
        ),
        (TRIVIA, "TRIVIA_OPS_TOKEN", "sixteen or more with spaces", "found 27 characters"),
    ],
)
def test_an_invalid_variable_is_reported_in_one_line(command, name, value, says):
    code, printed = run(command, **{name: value})
    assert code == 1 and printed.startswith(f"{name}: {says}") and len(printed.splitlines()) == 1, (
        printed
    )
    assert name != "TRIVIA_OPS_TOKEN" or value not in printed


def test_lines_that_libraries_log_have_the_same_form():
    code, printed = run(
        [
            sys.executable,
            "-c",
            "import trivia; trivia.logging.getLogger('asyncio').error('never retrieved')",
        ]
    )
    assert json.loads(printed)["message"] == "never retrieved" and not code


# ---- doctor


def told(printed):
    """Parses what the doctor printed into {what it looked at: (fine, found, remedy)}."""
    return {
        found[2]: (found[1] == "fine", found[3], found[4] or "")
        for found in re.finditer(r"^(fine|MEND)  (.+?): (.*)(?:\n      (.*))?", printed, re.M)
    }


def mended(findings):
    return {what for what, (fine, *_) in findings.items() if not fine}


def one(findings, what):
    [found] = [finding for finding in findings if finding.what.startswith(what)]
    return found


@contextlib.contextmanager
def tls(folder, port):
    """Serves a port by TLS, and yields the port of that. Its certificate is FOLDER/cert."""
    subprocess.run(
        [
            debian_program("openssl", "openssl"),
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            f"{folder}/key",
            "-out",
            f"{folder}/cert",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(f"{folder}/cert", f"{folder}/key")

    async def carry(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def meet(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            carry(reader, far_writer), carry(far_reader, writer), return_exceptions=True
        )

    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(meet, "127.0.0.1", 0, ssl=context))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)


def test_the_doctor_reports_a_healthy_server_as_fine(counted, tmp_path):
    with tls(tmp_path, counted.port) as port:
        code, printed = run(
            [*TRIVIA, "doctor", f"https://localhost:{port}"],
            TRIVIA_DATA=str(counted.data / "d"),
            SSL_CERT_FILE=f"{tmp_path}/cert",
        )
    found = told(printed)
    fine = {
        "Redis",
        "append-only file",
        "fsync",
        "last writes of the file",
        "eviction",
        "socket of Redis",
        "clock of Redis",
        "workers",
        "lab",
        "TLS",
        "server behind it",
        "WebSocket behind it",
        "metrics",
    }
    assert fine <= found.keys() - mended(found), printed
    assert code == int(bool(mended(found))) and found["Redis"][1].startswith("valkey ")
    assert all(line[:6] in ("fine  ", "MEND  ", "      ") for line in printed.splitlines()), printed


def test_the_doctor_finds_what_is_wrong_with_redis_and_names_the_remedies(tmp_path):
    with contextlib.closing(ClockedValkey().start_with_clock()) as valkey:
        valkey.set_clock(5)
        for name, value in (
            ("appendonly", "no"),
            ("appendfsync", "no"),
            ("maxmemory", 0),
            ("maxmemory-policy", "allkeys-lru"),
        ):
            valkey.client.config_set(name, value)
        os.chmod(valkey.path, 0o777)
        os.chmod(valkey.folder, 0o755)
        code, printed = run(
            [*TRIVIA, "doctor", f"http://127.0.0.1:{free_port()}"],
            REDIS_URL=valkey.url,
            TRIVIA_LAB="1",
        )
    found = told(printed)
    remedies = {
        "append-only file": "redis.conf",
        "fsync": "redis.conf",
        "eviction": "redis.conf",
        "memory of Redis": "redis.conf",
        "socket of Redis": "unixsocketperm in redis.conf",
        "clock of Redis": "systemd-timesyncd",
        "lab": "TRIVIA_LAB",
        "workers": "systemctl start trivia",
    } | dict.fromkeys(("TLS", "server behind it", "WebSocket behind it"), "nginx.conf")
    assert code == 1 and remedies.keys() <= mended(found), printed
    for what, remedy in remedies.items():
        assert remedy in found[what][2], what
    assert found["clock of Redis"][1].startswith(("+5.", "+4.9"))


def test_the_doctor_changes_nothing_on_the_host(make_server):
    server = make_server(start=False)
    code, printed = run([*TRIVIA, "doctor"], TRIVIA_DATA=str(server.data / "d"))
    assert code == 1 and {"workers"} <= mended(told(printed)) and not valkeys(server), printed


@pytest.mark.parametrize(
    "url, what, says",
    [
        ("unix:///tmp/no-such.sock", "Redis", "No such file"),
        ("redis://:SECRET@127.0.0.1:{closed}", "Redis", "Connect call failed"),
        ("nonsense", "Redis", "REDIS_URL"),
        ("redis://:SEC/RET@127.0.0.1:{closed}", "Redis", "REDIS_URL"),
        ("redis://:S@SECRET@127.0.0.1:{closed}", "Redis", "Connect call failed"),
        ("redis://weak:{password}@127.0.0.1:{port}", "Redis", "NOPERM"),
        ("redis://127.0.0.1:{open}", "password of Redis", "none"),
        ("redis://:{password}@127.0.0.1:{port}", "password of Redis", "set"),
    ],
)
def test_the_doctor_examines_an_external_redis(elsewhere, monkeypatch, url, what, says):
    monkeypatch.setattr(trivia, "REDIS_URL", url.format(closed=free_port(), **elsewhere))
    found = one(
        asyncio.run(trivia.look_at_redis(trivia.Schema(trivia.read_schema(trivia.SCHEMA_FILE)))),
        what,
    )
    assert says in found.found and found.fine == (says == "set") and (found.fine or found.remedy)
    assert "SEC" not in str(found)


NET, PAGES, LIMITS = (
    "proc/sys/net/",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "Max open files  {}  65536  files\n",
)
GOOD = {
    NET + "core/somaxconn": "65535",
    NET + "ipv4/tcp_max_syn_backlog": "65535",
    NET + "ipv4/ip_local_port_range": "10240\t65535",
    "proc/sys/vm/overcommit_memory": "1",
    PAGES: "always [madvise] never",
    "proc/7/cmdline": "python\0trivia.py\0",
    "proc/7/limits": LIMITS.format(20256),
}


@pytest.mark.parametrize(
    "what, file, value, remedy",
    [
        (
            "open files of the server",
            "proc/7/limits",
            LIMITS.format(20255),
            "LimitNOFILE= in systemd/trivia.service",
        ),
        ("net.core.somaxconn", NET + "core/somaxconn", "4096", "trivia.sysctl"),
        ("net.ipv4.tcp_max_syn_backlog", NET + "ipv4/tcp_max_syn_backlog", None, "trivia.sysctl"),
        ("ports for the proxy", NET + "ipv4/ip_local_port_range", "32768\t60999", "trivia.sysctl"),
        ("vm.overcommit_memory", "proc/sys/vm/overcommit_memory", "0", "trivia.sysctl"),
        ("transparent huge pages", PAGES, "[always] madvise never", "trivia.tmpfiles"),
        ("clock", "adjtimex", 5, "systemd-timesyncd"),
        ("clock", "adjtimex", -1, "systemd-timesyncd"),
    ],
)
def test_the_doctor_finds_a_bad_kernel_setting(monkeypatch, tmp_path, what, file, value, remedy):
    def look(host):
        for name, text in host.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).unlink(missing_ok=True) if text is None else (
                tmp_path / name
            ).write_text(str(text))
        monkeypatch.setattr(
            trivia.ctypes,
            "CDLL",
            lambda _: SimpleNamespace(adjtimex=lambda _: host.get("adjtimex", 0)),
        )
        return [
            finding
            for finding in trivia.look_at_kernel(
                SimpleNamespace(limits=SimpleNamespace(connections=20_000), sign_in={})
            )
            if not finding.fine
        ]

    monkeypatch.setattr(trivia, "Path", lambda path: Path(f"{tmp_path}{path}"))
    assert not look(GOOD)
    [found] = look(GOOD | {file: value})
    assert found.what.startswith(what) and remedy in str(found)


@pytest.mark.parametrize(
    "command, is_server",
    [
        ("/opt/trivia/.venv/bin/python trivia.py --workers 2", True),
        ("python /opt/trivia/.venv/bin/uvicorn trivia:app", True),
        ("python3.11 -u ./trivia.py run", True),
        ("python trivia.py", True),
        ("vim trivia.py", False),
        ("timeout 9 python trivia.py doctor", False),
        ("python trivia.py backup x", False),
    ],
)
def test_the_doctor_tells_a_server_from_other_processes(monkeypatch, tmp_path, command, is_server):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cmdline").write_text(command.replace(" ", "\0") + "\0")
    (tmp_path / "proc/7/limits").write_text(LIMITS.format(5))
    monkeypatch.setattr(trivia, "Path", lambda path: Path(f"{tmp_path}{path}"))
    assert (trivia.open_files()[0] == 5) == is_server


INFO = {
    "used_memory": "1000000",
    "redis_version": "7.0.15",
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "aof_current_size": "1000000",
    "total_system_memory": "4000000000",
}
CONFIG = {
    "maxmemory": "1000000000",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "dir": "/",
}


@pytest.mark.parametrize(
    "what, info, config, free",
    [
        ("last writes of the file", {"aof_last_bgrewrite_status": "err"}, {}, 1e10),
        ("fsync", {}, {"appendfsync": "no"}, 1e10),
        ("last writes of the file", {"aof_last_write_status": "err"}, {}, 1e10),
        ("disk", {}, {}, 1e9),
        ("disk", {"aof_current_size": "5000000000"}, {}, 1e10),
        ("memory of Redis", {"used_memory": "800000001"}, {}, 1e10),
        ("memory of Redis", {}, {"maxmemory": str(1 << 60)}, 1e10),
    ],
)
def test_the_doctor_finds_an_unhealthy_redis(monkeypatch, what, info, config, free):
    monkeypatch.setattr(trivia.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert [
        finding.what
        for finding in trivia._redis_findings(INFO | info, CONFIG | config)
        if not finding.fine
    ] == [what]
    monkeypatch.setattr(trivia.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e10))
    assert all(finding.fine for finding in trivia._redis_findings(INFO, CONFIG))


@pytest.mark.parametrize(
    "maxmemory, games, connections, fine",
    [
        (1 << 30, 50, 20000, True),
        (1 << 30, 200, 20000, False),
        (1 << 30, 200, 8000, True),
        (0, 1000, 20000, True),  # another finding says that the memory has no limit
    ],
)
def test_the_doctor_compares_the_memory_with_the_finished_games(
    maxmemory, games, connections, fine
):
    limits = SimpleNamespace(games_per_user=games, connections=connections)
    found = trivia._games_finding(maxmemory, limits)
    assert found.fine == fine and "games_per_user" in found.remedy


@pytest.mark.parametrize(
    "url",
    [
        "localhost:{port}",
        "127.0.0.1",
        "http://[::1",
        "http://127.0.0.1:port",
        "http://",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{closed}",
        "http://" + "ä" * 70,
        "http://a b",
    ],
)
def test_the_doctor_finds_an_address_that_does_not_lead_to_the_server(server, url):
    url = url.format(port=server.port, closed=free_port())
    findings = list(trivia.look_at_front(url))
    assert (
        not one(findings, "TLS").fine
        and not one(findings, "server").fine
        and not one(findings, "WebSocket").fine
    )


def test_the_doctor_finds_that_a_server_has_no_tls(server):
    findings = list(trivia.look_at_front(f"http://127.0.0.1:{server.port}"))
    assert [finding.what for finding in findings if not finding.fine] == ["TLS"]


# ---- backup


@pytest.fixture(scope="module")
def elsewhere():
    """Two external servers: {port, password, open}.

    The first has a password, and a user `weak` with few rights. The other, at `open`, has none.
    """
    with running_valkey(port := free_port()) as locked, running_valkey(unlocked := free_port()):
        locked.client.set("key", "value")
        locked.client.execute_command(
            "ACL", "SETUSER", "weak", "on", ">p/w", "~*", "&*", "+@all", "-sync", "-info"
        )
        locked.client.execute_command("ACL", "SETUSER", "default", ">p/w")
        yield {"port": port, "password": "p%2Fw", "open": unlocked}


def everything(server, sessions):
    """Returns what the players have, as they see it."""

    def ask(path):
        return server.http("GET", path, token=session["token"]).json

    found = {
        "bank": server.redis.hgetall("bank:{bank}"),
        "wins": server.http("GET", "/leaderboards/wins?limit=100").json,
    }
    for session in sessions:
        export, games = ask("/users/me/export"), ask("/users/me/games")
        export["questions_seen"].sort(key=str)
        del export["sessions"]
        found[session["user"]["username"]] = (
            export,
            games,
            ask("/leaderboards/rating?around=me"),
            [ask(f"/games/{game['id']}") for game in games["games"]],
        )
    return found


def sign_in_again(server, phone):
    body = {"login": phone.name, "password": PASSWORD}
    phone.token = phone.session["token"] = server.http("POST", "/auth/login", body).json["token"]
    phone.headers = {"Authorization": f"Bearer {phone.token}"}


def destroy(server):
    server.kill(signal.SIGSTOP)  # otherwise the server might start another Valkey
    os.kill(the_valkey(server), signal.SIGKILL)
    server.stop(signal.SIGKILL)
    wait_until(lambda: not valkeys(server))
    shutil.rmtree(server.data / "d")


def test_a_backup_made_during_play_restores_everything(make_server, tmp_path):
    server = make_server(edited_schema(answer_seconds=60))
    env = {"TRIVIA_DATA": str(server.data / "d")}
    more = [
        {
            "question": f"What is {i} + {i}?",
            "correct_answer": str(2 * i),
            "incorrect_answers": ["-1"],
            "category": "Sums",
            "difficulty": "easy",
        }
        for i in range(1000, 1010)
    ]
    (tmp_path / "more.json").write_text(json.dumps(more))
    assert "10 added" in run([*TRIVIA, "import", str(tmp_path / "more.json")], **env)[1]
    phones = [phone for _ in range(5) for phone in server.pair()]
    play_all(phones, lambda question: hash(question["text"]) % 2)
    playing = in_question(server)
    playing[0].send("answer", round=1, choice=1)
    playing[1].expect("answered")
    sessions = [phone.session for phone in (*phones, *playing)]
    wait_until(
        lambda: all(
            server.http("GET", "/users/me", token=phone.token).json["games"] == 1
            for phone in phones
        )
    )
    before = everything(server, sessions)

    chatting = threading.Event()

    def chat():
        while not chatting.wait(0.15):
            playing[0].send("emoji", emoji="🎉")

    talk = threading.Thread(target=chat)
    talk.start()
    playing[1].expect("emoji")  # a backup may be faster than the first emoji
    code, printed = run([*TRIVIA, "backup", str(tmp_path / "kept")], **env)
    chatting.set()
    talk.join()
    file = Path(printed.strip())
    assert (
        code == 0
        and file.stat().st_mode & 0o777 == 0o600
        and os.listdir(tmp_path / "kept") == [file.name]
    ), printed
    playing[1].send("leave")  # what comes after the backup is lost
    assert playing[0].expect("end")["reason"] == "forfeit"
    assert server.http("DELETE", "/users/me", {"password": PASSWORD}, phones[0].token).status == 204
    server.register()

    destroy(server)
    code, printed = run([*TRIVIA, "restore", str(file)], **env)
    assert code == 0 and "Start the server" in printed, printed
    for word in ("All are ended", "Those of that time are valid again", "trivia.py erase UID"):
        assert word in printed, printed
    made = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    since = datetime.fromisoformat(re.search("--since '(.+) UTC'", printed)[1] + "+00:00")
    assert abs(made - since) < timedelta(minutes=2)
    assert not run([*TRIVIA, "backup", str(tmp_path / "again")], **env)[0] and not valkeys(
        server
    ), "the server was not running"
    server.start()
    for phone in (*phones, *playing):
        server.http("GET", "/users/me", token=phone.token).refused(401, "not_authenticated")
        sign_in_again(server, phone)
    assert everything(server, sessions) == before
    erased = phones[0].token[:12]  # the backup has brought this account back
    code, printed = run([*TRIVIA, "erase", erased, "nobody"], **env)
    assert code == 1 and "nobody: there is no such account" in printed, printed
    wait_until(lambda: server.redis.exists(trivia.Keys.user(erased)) == 0, 20)
    server.stop()
    server.start()  # it reads the old ends of sessions again, then the new ones
    assert server.http("GET", "/users/me", token=phones[1].token).status == 200
    game = playing[0].frames[-1]["game"]
    for phone in playing:
        update = phone.connect().expect("update")
        assert (update["game"], update["round"], update["phase"]) == (game, 1, "question")
    playing[1].send("answer", round=1, choice=0)
    assert [end["reason"] for end in play_all(playing)] == ["finished"] * 2


@pytest.mark.parametrize(
    "url, says",
    [
        ("redis://:{password}@127.0.0.1:{port}", None),
        ("redis://default:{password}@localhost:{port}/3", None),
        ("rediss://:{password}@localhost:{tls}", None),
        ("rediss://:{password}@localhost:{tls}?ssl_ca_certs={folder}/cert", None),
        ("rediss://:{password}@localhost:{tls}?ssl_ca_certs={folder}/key", "ssl_ca_certs: .*key"),
        ("rediss://:{password}@localhost:{tls}?ssl_ca_certs=/no/file", "/no/file: No such file"),
        (
            "rediss://:{password}@localhost:{tls}?ssl_ca_cert=x",
            "the parameter .ssl_ca_cert.;.*ssl_ca_certs",
        ),
        ("redis://127.0.0.1:{open}?ssl_ca_certs=/no/file", "parameter .ssl_ca_certs.; expected"),
        ("redis://127.0.0.1:{open}", None),
        ("redis://weak:{password}@127.0.0.1:{port}", "NOPERM.*sync"),
        ("redis://127.0.0.1:{closed}", "Connect call failed"),
        ("redis://:wrong@127.0.0.1:{port}", "WRONGPASS"),
    ],
)
def test_an_external_redis_is_backed_up(elsewhere, monkeypatch, tmp_path, capsys, url, says):
    with tls(tmp_path, elsewhere["port"]) as port:
        if "ssl_ca" not in url:
            monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/cert")
        url = url.format(tls=port, closed=free_port(), folder=tmp_path, **elsewhere)
        monkeypatch.setattr(trivia, "REDIS_URL", url)
        if says:
            with pytest.raises(trivia.Fatal, match=says):
                asyncio.run(trivia.backup(tmp_path / "kept"))
            return
        asyncio.run(trivia.backup(tmp_path / "kept"))
    assert b"value" in Path(capsys.readouterr().out.strip()).read_bytes() or "@" not in url


@pytest.mark.parametrize("folder", ["file", "file/folder", "/proc/nothing"])
def test_a_backup_into_an_unusable_folder_fails_with_one_line(
    elsewhere, monkeypatch, tmp_path, folder
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(trivia, "REDIS_URL", f"redis://127.0.0.1:{elsewhere['open']}")
    with pytest.raises(trivia.Fatal, match="backup: "):
        asyncio.run(trivia.backup(tmp_path / folder))


def test_an_incomplete_backup_is_deleted(monkeypatch, tmp_path):
    near, far = socket.socketpair()
    monkeypatch.setattr(trivia, "_dial", lambda *where: near)
    far.sendall(b"\n\n$100\r\nREDIS0010half")
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(trivia.Fatal, match="broke off, 87 bytes before its end"):
        trivia._fetch_snapshot(None, "", tmp_path / "x.rdb")
    assert not (tmp_path / "x.rdb").exists()
    far.close()


WHOLE = b"REDIS0010" + bytes(20) + b"\xff12345678"


@pytest.mark.parametrize(
    "content, data, says",
    [
        (None, "d", "No such file"),
        (b"", "d", "not a backup"),
        (b"{}", "d", "not a backup"),
        (WHOLE[:9], "d", "is incomplete"),
        (WHOLE[:-1], "d", "is incomplete"),
        (WHOLE, "taken", "already exists"),
        (WHOLE, "file/d", "Not a directory"),
        (WHOLE, "d", None),
    ],
)
def test_restore_takes_only_whole_backups_and_overwrites_nothing(
    monkeypatch, tmp_path, content, data, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken/appendonlydir").mkdir(parents=True)
    (tmp_path / "file").touch()
    if content is not None:
        (tmp_path / "x.rdb").write_bytes(content)
    monkeypatch.setattr(trivia, "DATA", Path(data))
    if says:
        with pytest.raises(trivia.Fatal, match=f"restore: .*{says}"):
            trivia.restore(Path("x.rdb"))
        assert not (tmp_path / "d").exists() and not list(
            (tmp_path / "taken/appendonlydir").iterdir()
        )
    else:
        trivia.restore(Path("x.rdb"))
        assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
        assert sorted(os.listdir(tmp_path / "d/appendonlydir")) == [
            "appendonly.aof.1.base.rdb",
            "appendonly.aof.1.incr.aof",
            "appendonly.aof.manifest",
        ]


def test_a_server_on_a_damaged_backup_says_so_in_one_line(elsewhere, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trivia, "REDIS_URL", f"redis://127.0.0.1:{elsewhere['open']}")
    asyncio.run(trivia.backup(tmp_path))
    file = Path(capsys.readouterr().out.strip())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    monkeypatch.setattr(trivia, "DATA", tmp_path / "d")
    trivia.restore(file)
    code, printed = run(TRIVIA, TRIVIA_DATA=str(tmp_path / "d"))
    errors = [json.loads(line) for line in printed.splitlines() if '"ERROR"' in line]
    assert (
        code == 3
        and "the Redis server did not start" in errors[0]["message"]
        and "restore a backup" in errors[0]["message"]
        and "Traceback" not in printed
    ), printed


# ---- repair


def test_a_damaged_end_of_the_append_only_file_is_reported_and_repaired(make_server):
    server = make_server()
    env = {"TRIVIA_DATA": str(server.data / "d")}
    code, printed = run([*TRIVIA, "repair"], **env)
    assert code == 1 and "stop it first" in printed, printed
    session = server.register()
    server.stop()
    wait_until(lambda: not valkeys(server))
    code, printed = run([*TRIVIA, "repair"], **env)
    assert code == 0 and "is whole" in printed, printed
    [file] = (server.data / "d" / "appendonlydir").glob("*.incr.aof")
    whole = file.read_bytes()
    file.write_bytes(whole + bytes(100))

    code, printed = run(TRIVIA, **env)
    errors = [json.loads(line) for line in printed.splitlines() if '"ERROR"' in line]
    assert code == 3 and "`python trivia.py repair`" in errors[0]["message"], printed
    assert "Traceback" not in printed and "\n" not in errors[0]["message"]

    code, printed = run([*TRIVIA, "repair"], **env)
    assert code == 0 and f"cut off 100 of {len(whole) + 100} bytes" in printed, printed
    assert file.read_bytes() == whole
    [copy] = (server.data / "d").glob("appendonlydir.*")
    assert (copy / file.name).read_bytes() == whole + bytes(100)
    server.start()
    assert server.http("GET", "/users/me", token=session["token"]).status == 200


@pytest.mark.parametrize(
    "manifest, says",
    [
        (None, "does not exist; set TRIVIA_DATA"),
        ("", "names no file that is there"),
        ("file gone.aof seq 1 type i\n", "names no file that is there"),
    ],
)
def test_a_repair_that_is_impossible_fails_with_one_line(tmp_path, manifest, says):
    if manifest is not None:
        (tmp_path / "d/appendonlydir").mkdir(parents=True)
        (tmp_path / "d/appendonlydir/appendonly.aof.manifest").write_text(manifest)
    code, printed = run([*TRIVIA, "repair"], TRIVIA_DATA=str(tmp_path / "d"))
    assert code == 1 and says in printed and len(printed.splitlines()) == 1, printed


@pytest.mark.skipif(os.geteuid() != 0, reason="root only")
def test_restore_as_root_follows_no_link_of_the_redis_user():
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    folder.chmod(0o755)
    (data, precious) = (folder / "data", folder / "etc")
    data.mkdir()
    precious.mkdir(mode=0o755)
    os.chown(data, 65534, 65534)
    (data / "appendonlydir.part").symlink_to(precious)
    (folder / "x.rdb").write_bytes(WHOLE)
    code, printed = run([*TRIVIA, "restore", str(folder / "x.rdb")], TRIVIA_DATA=str(data))
    assert (
        code
        and "Permission denied" in printed
        and not os.listdir(precious)
        and precious.stat().st_uid == 0
    ), printed
    (data / "appendonlydir.part").unlink()
    code, printed = run([*TRIVIA, "restore", str(folder / "x.rdb")], TRIVIA_DATA=str(data))
    assert not code and {path.stat().st_uid for path in data.rglob("*")} == {65534}, printed
    shutil.rmtree(folder)


def test_a_command_that_loses_redis_ends_with_one_line(elsewhere, monkeypatch):
    monkeypatch.setattr(trivia, "REDIS_URL", f"redis://127.0.0.1:{elsewhere['open']}")

    async def lose_redis():
        async with asyncio.timeout(10), trivia.connected_redis() as redis:
            await redis.at("any").call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
            while True:
                await redis.call("GET", "any")

    with pytest.raises(trivia.Fatal, match="."):
        asyncio.run(lose_redis())


def test_a_backup_without_data_fails(tmp_path):
    code, printed = run(
        [*TRIVIA, "backup", str(tmp_path / "kept")], TRIVIA_DATA=str(tmp_path / "d")
    )
    assert code and "holds nothing" in printed and not os.listdir(tmp_path), printed


def test_only_their_owner_can_read_the_files_of_the_embedded_redis(server):
    files = list(server.data.glob("d/appendonlydir/*"))
    assert files and not [path for path in files if path.stat().st_mode & 0o077]
