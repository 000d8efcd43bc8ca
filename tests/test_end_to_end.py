"""Whole servers: how they start, stop, restart and share a Redis, run under other ASGI servers, and
refuse to start."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

import forks
import trivia
from conftest import (
    FOLDER,
    PASSWORD,
    ROOT,
    Valkey,
    edited_schema,
    play_all,
    redis_at,
    unique_name,
    wait_until,
)

UVICORN = [sys.executable, "-m", "uvicorn", "trivia:app", "--port", "0"]
TRIVIA = [sys.executable, "trivia.py"]
REDIS_PASSWORD = "p@ss/w:rd? 100%"


# ---- helpers


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def valkeys(server):
    """Returns the pids of the Valkey processes that run in a server's data folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd") == str(server.data / "d") and "valkey" in os.readlink(
                process / "exe"
            ):
                found.add(int(process.name))
    return found


def the_valkey(server):
    """Returns the pid of a server's only Valkey."""
    running = valkeys(server)
    assert len(running) == 1, running
    return running.pop()


def parent(pid):
    """Returns the pid of a process's parent, or 0 if there is no such process."""
    with contextlib.suppress(OSError):
        return int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    return 0


def workers_of(server):
    """Returns the pids of the workers under a supervisor."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process may have ended by now
            if (
                parent(process.name) == server.process.pid
                and b"spawn_main" in (process / "cmdline").read_bytes()
            ):
                found.add(int(process.name))
    return found


def all_workers_up(server, count):
    return wait_until(lambda: server.log.count("Application startup complete") >= count, 40)


def me(server, phone):
    return server.http("GET", "/users/me", token=phone.token).json


def forfeit(server, winner, loser):
    """Plays the shortest game that counts: the loser leaves after an answer."""
    winner.send("answer", round=winner.expect("question")["round"], choice=0)
    loser.expect("answered")
    loser.send("leave")
    end = winner.expect("end")
    assert end["reason"] == "forfeit" and end["ranking"][0]["player"] == winner.name
    return wait_until(lambda: me(server, winner)["games"] == 1 and me(server, winner))


def await_reconnect(phone, seconds=20):
    """Reconnects as a phone does, again and again until it works."""

    def attempt():
        with contextlib.suppress(OSError, InvalidHandshake, EOFError):
            return phone.connect()

    return wait_until(attempt, seconds)


def refusal(server, token, **options):
    """Returns the status or the close code with which the server refuses a phone."""
    try:
        server.phone(session={"user": {"username": "nobody"}, "token": token}, **options).receive()
    except InvalidStatus as error:
        return error.response.status_code
    except ConnectionClosed as error:
        return error.rcvd.code


def run(command, **env):
    """Runs a command to its end, and returns its exit code and all that it printed."""
    ours = ("REDIS_URL", "TRIVIA_DATA", "TRIVIA_SCHEMA", "TRIVIA_LAB")
    clean = {key: value for key, value in os.environ.items() if key not in ours}
    done = forks.run(command, env=clean | env, merged=True)
    return done.returncode, done.stdout


# ---- the embedded Redis


def stop(server):
    server.stop()
    assert not valkeys(server), "the last worker stops the Valkey"


def kill_server(server):
    server.stop(signal.SIGKILL)
    assert valkeys(server), "Valkey is a process of its own, and goes on"


def kill_valkey_and_server(server):
    server.kill(signal.SIGSTOP)  # otherwise the server might start another Valkey
    os.kill(the_valkey(server), signal.SIGKILL)
    server.stop(signal.SIGKILL)
    wait_until(lambda: not valkeys(server))


@pytest.mark.parametrize("end", [stop, kill_server, kill_valkey_and_server])
def test_users_ratings_and_a_game_in_progress_survive_a_restart(make_server, end):
    server = make_server(edited_schema(answer_seconds=60, rounds=1))
    ann, bob = server.pair()
    forfeit(server, ann, bob)
    before, valkey = [me(server, phone) for phone in (ann, bob)], the_valkey(server)
    assert before[0]["rating"] > before[1]["rating"] and (before[0]["wins"], before[1]["wins"]) == (
        1,
        0,
    )
    for phone in (ann, bob):
        phone.send("join")
    question = [phone.expect("question") for phone in (ann, bob)][0]

    end(server)
    server.start()
    assert (the_valkey(server) == valkey) == (end is kill_server)
    assert [me(server, phone) for phone in (ann, bob)] == before
    assert (
        server.http("POST", "/auth/login", {"login": ann.name, "password": PASSWORD}).status == 200
    )
    assert server.http("GET", "/leaderboards/rating").json["entries"][0]["username"] == ann.name
    for phone in (ann, bob):
        update = phone.connect().expect("update")
        assert (update["game"], update["phase"]) == (question["game"], "question")
        assert update["question"]["text"] == question["text"]
    for phone in (ann, bob):
        phone.send("answer", round=1, choice=0)
    assert [phone.expect("end")["reason"] for phone in (ann, bob)] == ["finished"] * 2
    assert wait_until(lambda: all(me(server, phone)["games"] == 2 for phone in (ann, bob)))


def test_a_game_goes_on_after_a_crash_of_valkey(make_server):
    server = make_server(edited_schema(answer_seconds=60, rounds=2))
    phones = server.pair()
    for phone in phones:
        phone.expect("question")
    before = the_valkey(server)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: valkeys(server) - {before}, 20)
    wait_until(lambda: server.http("GET", "/health/ready").status == 200, 20)
    for phone in phones:
        assert phone.expect("update")["phase"] == "question"
        phone.send("answer", round=1, choice=0)
    assert [end["reason"] for end in play_all(phones)] == ["finished"] * 2
    the_valkey(server)


def test_any_data_folder_works_and_the_shipped_schema_is_the_default(make_server):
    # The longest path that is allowed, with characters that shells and configuration files treat
    # specially.
    odd = Path("/tmp") / f"q'u\"o t#e é{os.getpid()}"
    fill = 107 - len(os.fsencode(odd / "d" / "redis.sock"))
    odd = odd.with_name(odd.name + "x" * fill)
    odd.mkdir()
    server = make_server(start=False, data=odd, afresh=True)
    assert len(os.fsencode(server.data / "d" / "redis.sock")) == 107
    del server.env["TRIVIA_SCHEMA"]
    server.start()
    ann, bob = server.pair()
    assert ann.frames[-1]["rounds"] == 10
    forfeit(server, ann, bob)
    password = server.redis.hget(f"user:{{{ann.token[:12]}}}", "password")
    assert password.startswith("$argon2id$v=19$m=19456,t=2,p=1$"), "the shipped cost is in use"
    kept = server.redis.config_get("append*")
    assert kept["appendonly"] == "yes" and kept["appendfsync"] == "always"
    assert (server.data / "d").stat().st_mode & 0o077 == 0, "only its owner may enter the folder"
    server.stop()
    assert not valkeys(server) and (server.data / "d" / "appendonlydir").is_dir()


def loaded_by(pid):
    """Returns the file names of the libraries that a process has loaded."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {Path(line.split()[-1]).name for line in maps.splitlines() if "/" in line}


@pytest.fixture
def start_valkey():
    """Starts an embedded Redis in a folder of its own, and returns its pid."""
    with contextlib.ExitStack() as started:

        def start():
            folder = Path(tempfile.mkdtemp(prefix="v-", dir=FOLDER))
            started.callback(shutil.rmtree, folder, ignore_errors=True)
            embedded = trivia.EmbeddedRedis(folder)
            embedded.start()
            client = redis_at(embedded.socket_path)
            started.callback(client.shutdown, nosave=True)
            return client.info("server")["process_id"]

        yield start


def test_valkey_uses_a_fast_allocator(server):
    assert "libmimalloc.so" in {name[:14] for name in loaded_by(the_valkey(server))}


def test_valkey_uses_the_allocator_of_libc_if_there_is_no_other(start_valkey, monkeypatch):
    monkeypatch.setattr(trivia, "allocator", lambda: None)
    assert not re.search("mimalloc|jemalloc", " ".join(loaded_by(start_valkey())))


def test_valkey_starts_even_if_the_allocator_is_damaged(start_valkey, monkeypatch, tmp_path):
    (tmp_path / "libmimalloc.so").write_text("no library")
    monkeypatch.setattr(trivia, "allocator", lambda: tmp_path / "libmimalloc.so")
    assert "libmimalloc.so" not in loaded_by(start_valkey())


def compiled(file, source):
    """Compiles C code to a shared library."""
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", file]
    subprocess.run(command, input=source, text=True, check=True)
    return file


def test_valkey_starts_even_if_the_allocator_crashes_it(start_valkey, monkeypatch, tmp_path):
    code = "__attribute__((constructor)) void crash(void) { __builtin_trap(); }"
    library = compiled(tmp_path / "libcrash.so", code)
    monkeypatch.setattr(trivia, "allocator", lambda: library)
    assert library.name not in loaded_by(start_valkey())


def test_valkey_also_loads_the_libraries_that_the_operator_preloads(
    start_valkey, monkeypatch, tmp_path
):
    own = compiled(tmp_path / "libown.so", "int own;")
    monkeypatch.setenv("LD_PRELOAD", str(own))
    names = loaded_by(start_valkey())
    assert own.name in names
    assert any(name.startswith("libmimalloc.so") for name in names)


def test_two_servers_started_at_once_share_a_folder_and_one_valkey(make_server):
    one = make_server(start=False)
    two = make_server(start=False, env={"TRIVIA_DATA": one.env["TRIVIA_DATA"]})
    one.start(wait=False)
    two.start(wait=False)
    for server in (one, two):
        wait_until(server._ready, 40)
    valkey = the_valkey(one)
    ann, bob = one.phone(), two.phone()
    assert [end["reason"] for end in play_all([ann, bob])] == ["finished"] * 2
    assert two.http("GET", f"/users/{ann.name}").status == 200
    one.stop()
    assert the_valkey(one) == valkey, "the other server still needs it"
    assert play_all([bob.server.phone(), bob.server.phone()])[0]["reason"] == "finished"
    two.stop()
    assert not valkeys(one)


# ---- several workers


@contextlib.contextmanager
def frozen(pids):
    """Stops these processes for a while, so that a new connection goes to another process."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def phone_on(server, worker):
    """Connects a new phone to this worker."""
    session = server.register()
    with frozen(workers_of(server) - {worker}):
        phone = server.phone(session=session)
        phone.expect("queued")
    return phone


def test_four_workers_share_one_valkey_and_survive_the_death_of_one_worker(make_server):
    server = make_server(edited_schema(answer_seconds=60, rounds=2), workers=4)
    all_workers_up(server, 4)
    valkey = the_valkey(server)
    workers = workers_of(server)
    assert len(workers) == 4 and parent(valkey) in workers
    doomed = parent(valkey)  # Valkey must outlive the worker that started it
    ann, bob = phone_on(server, doomed), phone_on(server, min(workers - {doomed}))
    seats = server.redis.hvals("seats:{lobby}")
    assert len({seat.partition(".")[0] for seat in seats}) == 2, "two workers have one phone each"
    for phone in (ann, bob):
        phone.expect("question")
    bob.send("answer", round=1, choice=0)
    ann.expect("answered", player=bob.name)

    os.kill(doomed, signal.SIGKILL)
    with pytest.raises(ConnectionClosed):
        ann.receive()
    await_reconnect(ann)
    assert ann.expect("update")["scores"] == {ann.name: 0, bob.name: 0}
    ann.send("answer", round=1, choice=0)
    assert [end["reason"] for end in play_all([ann, bob])] == ["finished"] * 2
    all_workers_up(server, 5)  # the supervisor has started another worker
    assert the_valkey(server) == valkey

    server.process.terminate()
    for phone in (ann, bob):
        phone.expect_close(1012)
    server.process.wait(30)
    assert not valkeys(server), "the last worker stops the Valkey"
    assert "Traceback" not in server.log


# ---- an external Redis


@contextlib.contextmanager
def running_valkey(port):
    """Runs a Valkey with TCP that the server did not start, and so must not stop."""
    with contextlib.closing(Valkey("--bind", "127.0.0.1", "--port", port)) as one:
        yield one.start()
        assert one.process.poll() is None, "the server has stopped a Valkey that it did not start"


@pytest.fixture(scope="module")
def valkey():
    """The address of an external Valkey with a password: {port, socket, password}."""
    with running_valkey(port := free_port()) as one:
        for user in ("trivia", "default"):
            one.client.execute_command("ACL", "SETUSER", user, f">{REDIS_PASSWORD}")
        strict = "on", f">{REDIS_PASSWORD}", "~*", "&*", "+@all", "-function"
        one.client.execute_command("ACL", "SETUSER", "strict", *strict)
        yield {"port": port, "socket": one.path, "password": quote(REDIS_PASSWORD, safe="")}


@pytest.mark.parametrize(
    "url, db",
    [("unix://:{password}@{socket}?db=3", 3), ("redis://trivia:{password}@127.0.0.1:{port}/5", 5)],
)
def test_redis_url_chooses_the_redis_and_its_database(make_server, valkey, url, db):
    server = make_server(env={"REDIS_URL": url.format(**valkey)})
    ann, bob = server.pair()
    assert play_all([ann, bob])[0]["reason"] == "finished"
    client = redis.Redis(port=valkey["port"], password=REDIS_PASSWORD, db=db)
    assert client.exists("bank:{bank}")
    assert (
        client.info("keyspace").keys() <= {"db3", "db5"}
        and client.info("keyspace")[f"db{db}"]["keys"] > 5
    )
    assert not (server.data / "d").exists(), "an embedded Redis has started as well"
    server.stop()
    assert (
        client.ping() and REDIS_PASSWORD not in server.log and valkey["password"] not in server.log
    )


# ---- refused starts


@contextlib.contextmanager
def something_else():
    """Yields the port of a server that is not Redis."""

    def answer():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "url, says",
    [
        ("redis://:SECRET@127.0.0.1:{closed}/1", "Connection refused"),
        ("http://127.0.0.1:{port}", "REDIS_URL: .*redis://"),
        ("redis://:SECRET@127.0.0.1:{port}", "WRONGPASS"),
        ("redis://127.0.0.1:{port}", "NOAUTH"),
        ("unix:///tmp/no-such.sock?password=SECRET", "No such file"),
        ("redis://:{password}@127.0.0.1:{port}/99", "DB index"),
        ("redis://127.0.0.1:{other}", "127.0.0.1:{other}: "),
        (
            "redis://strict:{password}@127.0.0.1:{port}",
            "can't load trivia.lua: NOPERM .*; use the user trivia of redis.conf",
        ),
    ],
)
def test_an_unusable_redis_url_is_reported_in_one_line(valkey, url, says):
    with something_else() as other:
        places = valkey | {"closed": free_port(), "other": other}
        code, printed = run(UVICORN, REDIS_URL=url.format(**places), TRIVIA_DATA="/dev/null/x")
    errors = logged_errors(printed)
    assert code == 3 and len(errors) == 2 and "startup failed" in errors[1], printed
    assert re.search(says.format(**places), errors[0]) and "Traceback" not in printed, printed
    assert "SECRET" not in printed and valkey["password"] not in printed, (
        "passwords must not be logged"
    )


def logged_errors(printed):
    """Returns the messages of the errors in a log."""
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line["level"] == "ERROR"]


def too_long(folder):
    return folder / ("x" * 108)


def a_file(folder):
    (folder / "file").touch()
    return folder / "file"


def beneath_a_file(folder):
    return a_file(folder) / "x"


def lock_is_a_folder(folder):
    (folder / "lock").mkdir()
    return folder


def files_of_something_else(folder):
    (folder / "appendonlydir").touch()
    return folder


@pytest.mark.parametrize(
    "spoil, says",
    [
        (too_long, "107 bytes"),
        (a_file, "expected a folder"),
        (beneath_a_file, "expected a folder"),
        (lock_is_a_folder, "expected a folder"),
        (files_of_something_else, "did not start: .*appendonlydir"),
    ],
)
def test_an_unusable_data_folder_is_reported_in_one_line(tmp_path, spoil, says):
    folder = spoil(tmp_path)
    code, printed = run(UVICORN, TRIVIA_DATA=str(folder))
    errors = logged_errors(printed)
    assert code == 3 and len(errors) == 2 and re.search(says, errors[0]), printed
    assert "Traceback" not in printed and len(printed.splitlines()) == 4, printed


@pytest.mark.parametrize(
    "options, says",
    [
        (["--port", "{taken}"], "in use"),
        (["--port", "99999"], "99999"),
        (["--workers", "0"], "workers"),
        (["--host", "203.0.113.7"], "203.0.113.7"),
    ],
)
def test_invalid_options_are_reported_in_one_line(tmp_path, options, says):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # With this address the command ends even if it accepts the options.
        environment = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
        code, printed = run(
            [*TRIVIA, *(option.format(taken=port) for option in options)], **environment
        )
    assert code not in (0, 3) and "Traceback" not in printed, printed
    assert says in printed.splitlines()[-1] and "serving" not in printed, printed


def test_the_command_fails_if_its_workers_can_not_start():
    code, printed = run(
        [*TRIVIA, "--port", "0", "--workers", "2"], REDIS_URL=f"redis://127.0.0.1:{free_port()}"
    )
    assert code != 0 and "[Errno 111]" in printed and "Traceback" not in printed, (code, printed)


# ---- python trivia.py


def terminate(server):
    server.process.terminate()


def interrupt(server):
    server.kill(signal.SIGINT)  # like Ctrl-C, it also reaches the workers


@pytest.mark.parametrize("workers, ask_to_stop", [(1, terminate), (1, interrupt), (2, terminate)])
def test_the_command_serves_and_ends_cleanly(make_server, workers, ask_to_stop):
    port = free_port() if workers > 1 else 0
    server = make_server(
        command=[*TRIVIA, "--port", str(port), "--workers", str(workers)], afresh=workers > 1
    )
    assert (
        f"serving on http://127.0.0.1:{server.port} with {workers} worker"
        in server.log.splitlines()[0]
    )
    assert port in (0, server.port)
    wait_until(lambda: server.redis.zcard("workers:{lobby}") == workers, 40)
    the_valkey(server)
    phones = server.pair()
    assert play_all(phones)[0]["reason"] == "finished"
    playing = server.pair()
    ask_to_stop(server)
    for phone in (*phones, *playing):
        phone.expect_close(1012)
    assert server.process.wait(15) in (0, -signal.SIGTERM, -signal.SIGINT, 130)
    assert {json.loads(line)["level"] for line in server.log.splitlines()} == {
        "INFO"
    } and not valkeys(server), server.log


@pytest.mark.parametrize(
    "command, shows",
    [
        ([*TRIVIA, "run", "--help"], ["--host", "--port", "--workers"]),
        (
            [sys.executable, "examples/terminal.py", "play", "--help"],
            ["--url", "--queue", "--name"],
        ),
        ([sys.executable, "examples/terminal.py", "bot", "--help"], ["-n", "--games", "--think"]),
    ],
)
def test_each_command_prints_its_help(command, shows):
    code, printed = run(command)
    assert code == 0 and all(option in printed for option in shows), printed


# ---- other ASGI servers


@pytest.mark.parametrize(
    "command",
    [
        ["daphne", "--bind", "127.0.0.1", "--port", "{port}", "trivia:app"],
        ["hypercorn", "--bind", "127.0.0.1:{port}", "trivia:app"],
    ],
    ids=["daphne", "hypercorn"],
)
def test_other_asgi_servers_serve_a_game(make_server, command):
    pytest.importorskip(command[0])
    port = free_port()
    server = make_server(
        command=[sys.executable, "-m", *(part.format(port=port) for part in command)]
    )
    ann, bob = server.pair()
    ann.send("emoji", emoji="🎉")
    bob.expect("emoji", player=ann.name)
    ends = play_all([ann, bob])
    assert ends[0]["ranking"] == ends[1]["ranking"] and ends[0]["reason"] == "finished"
    assert wait_until(lambda: me(server, ann)["games"] == 1)
    page = server.http("GET", "/")
    assert (
        page.headers["content-type"] == "text/html; charset=utf-8"
        and page.headers["content-security-policy"]
    )
    server.http("POST", "/auth/register", {"username": "x"}).refused(422, "invalid")
    server.http("GET", "/nowhere").refused(404, "not_found")
    server.http("POST", "/auth/register", raw=b"[" * 20_000).refused(413, "too_large")
    assert refusal(server, "wrong") in (401, 4401)
    assert refusal(server, "", headers={}, subprotocols=["trivia.v1", "bearer.wrong"]) == 4401
    assert "Traceback" not in server.log, server.log


def test_an_asgi_server_without_lifespan_serves_once_redis_is_up(make_server):
    pytest.importorskip("daphne")
    port, redis_port = free_port(), free_port()
    server = make_server(
        command=[sys.executable, "-m", "daphne", "--port", str(port), "trivia:app"],
        start=False,
        env={"REDIS_URL": f"redis://127.0.0.1:{redis_port}"},
    ).start(wait=False)
    server.port = port
    wait_until(lambda: "Listening on TCP" in server.log, 40)
    server.http("GET", "/health/ready").refused(503, "unavailable")
    with running_valkey(redis_port):
        wait_until(lambda: server.http("GET", "/health/ready").status == 200, 20)
        assert play_all(server.pair())[0]["reason"] == "finished"
        server.stop()


def test_sanics_own_server_is_refused_with_a_reason():
    code, printed = run([sys.executable, "-m", "sanic", "trivia:app", "--port", str(free_port())])
    assert code == 1 and "Traceback" not in printed, printed
    assert "expected an ASGI server: uvicorn trivia:app" in printed.splitlines()[-1], printed


# ---- the terminal client


def test_two_bots_play_against_each_other(server):
    code, printed = run(
        [
            sys.executable,
            "examples/terminal.py",
            "bot",
            "-n",
            "2",
            "--url",
            f"http://127.0.0.1:{server.port}",
            "--think",
            "0",
            "0.1",
        ]
    )
    assert code == 0 and "games finished: 1, late answers: 0, errors: 0" in printed, printed


def test_bots_meet_in_a_room_and_play_there_again(server):
    url = f"http://127.0.0.1:{server.port}"
    bots = [sys.executable, "examples/terminal.py", "bot", "-n", "3", "--think", "0", "0.1"]
    code, printed = run([*bots, "--url", url, "--queue", "friends", "--room", "--games", "2"])
    assert code == 0 and "games finished: 2, late answers: 0, errors: 0" in printed, printed


@pytest.fixture(scope="module")
def terminal():
    """The module examples/terminal.py."""
    spec = importlib.util.spec_from_file_location("terminal", ROOT / "examples" / "terminal.py")
    sys.modules["terminal"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_terminal_client_plays_solo_games_and_challenges(server, terminal):
    async def play(client):
        game = terminal.Game(client.username)
        async for message in client.messages():
            game.apply(message)
            if game.can_answer:
                game.choice = 0
                await client.send("answer", round=game.round, choice=0)
            if not client.wanted.is_set():
                return game

    async def everything():
        url = f"http://127.0.0.1:{server.port}"
        ann, bob = terminal.Client(url, "challenge"), terminal.Client(url, "solo")
        await ann.register(unique_name(), PASSWORD)
        await bob.register(unique_name(), PASSWORD)
        code = await ann.make_challenge()
        games = [await play(ann), await play(bob)]
        await bob.close()
        bob.wanted.set()
        bob.code = code.lower()
        games.append(await play(bob))
        await ann.close()
        ann.wanted.set()
        ann.code = code
        return [*games, await play(ann)]

    first, solo, second, again = asyncio.run(everything())
    assert [game.phase for game in (first, solo, second)] == ["over"] * 3
    assert [len(game.players) for game in (first, solo, second)] == [1, 1, 2]
    assert again.phase == "cancelled" and "played" in again.reason


def test_keys_of_the_terminal_client_control_a_room_and_request_a_rematch(terminal):
    sent = []

    class Client:
        username = "ann"

        async def send(self, kind, **fields):
            sent.append((kind, fields))

    player = terminal.Player(Client(), "")
    room = {"type": "room", "code": "ABC256", "host": "ann", "locked": False, "state": "waiting"}
    people = [{"username": "ann"}, {"username": "bob"}, {"username": "eve"}]
    room |= {"players": people, "connected": ["ann", "bob"]}
    player.game.apply({"type": "online"})
    player.game.apply(room)
    assert player.game.phase == "room" and "b: begin" in player._keys()
    for key in "blk2p1x":
        asyncio.run(player._press_in_room(key))
    assert sent == [
        ("begin", {}),
        ("lock", {"locked": True}),
        ("kick", {"player": "eve"}),
        ("pass", {"player": "bob"}),
    ]
    player.game.apply(room | {"host": "bob"})
    asyncio.run(player._press_in_room("b"))
    assert len(sent) == 4 and "begin" not in player._keys()
    player.game.apply({"type": "cancelled", "reason": "kicked"})
    assert (player.game.phase, player.game.reason) == ("cancelled", "The host sent you away")
    end = {"type": "end", "reason": "finished", "ranking": [], "rematch_ms": 9000}
    player.game.apply(end | {"series": {"ann": 1, "bob": 0}})
    assert "r: the same players" in player._keys()
    asyncio.run(player._press_after_game("r"))
    assert sent[4:] == [("rematch", {"accept": True})]
    player.game.apply({"type": "rematch", "players": [], "expires_ms": 0})
    assert "r: the same players" not in player._keys() and "no rematch" in player.game.note
    screen = terminal.screen_view(player.game, "", player._keys(), 80, 24)
    console = terminal.Console(width=80, height=24)
    with console.capture() as printed:
        console.print(screen)
    assert "Games won: ann 1, bob 0" in printed.get()


def test_bots_without_a_server_fail_with_one_line():
    code, printed = run(
        [sys.executable, "examples/terminal.py", "bot", "--url", f"http://127.0.0.1:{free_port()}"]
    )
    assert code == 1 and "no connection to" in printed and "Traceback" not in printed, printed
