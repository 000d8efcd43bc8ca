"""The first start migrates data of format 1, as trivia.py 1.0 wrote it."""

import itertools
import json
import re
import shutil
import sys
import time

import pytest

import forks
import trivia
from conftest import (
    PASSWORD,
    ROOT,
    Server,
    clock_of,
    edited_schema,
    play_all,
    redis_at,
    trivia_py,
    wait_until,
)

SNAPSHOT = ROOT / "tests" / "data" / "format1.rdb"
MADE_AT_S = 1_795_922_021  # `ctime` in the snapshot
FACTS = json.loads((ROOT / "tests" / "data" / "format1.json").read_text())
RUNNING = FACTS["running"][0].rpartition(":")[2]


def restored(server):
    """Copies the snapshot into the folder of a server that has not started. Returns the server."""
    folder = server.data / "d" / "appendonlydir"
    folder.mkdir(parents=True)
    shutil.copy(SNAPSHOT, folder / "appendonly.aof.1.base.rdb")
    manifest = "file appendonly.aof.1.base.rdb seq 1 type b\n"
    (folder / "appendonly.aof.manifest").write_text(manifest)
    return server


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """A server with two workers, started on the snapshot an hour after the snapshot was made."""
    clock = tmp_path_factory.mktemp("clock") / "clock"
    clock.write_text(f"{MADE_AT_S + 3600 - time.time():+.0f}\n")
    server = Server(workers=2, env=clock_of(clock), afresh=True)
    try:
        yield restored(server).start()
    finally:
        server.close()


def players(migrated, path):
    """Returns what each player of the snapshot gets at a path: {name: answer}."""
    tokens = FACTS["tokens"]
    return {name: migrated.http("GET", path, token=token) for name, token in tokens.items()}


def test_a_start_migrates_the_data_to_the_new_format(migrated):
    assert migrated.redis.get("format:{lobby}") == str(trivia.FORMAT)
    games = len(migrated.redis.keys("game:*"))

    def told():
        return [int(count) for count in re.findall(r"migrated (\d+) games", migrated.log)]

    # Two workers may migrate the same game. One may be ready while the other still migrates.
    wait_until(lambda: games <= sum(told()))
    assert max(told()) <= games


def edited(value, edit):
    """Returns a value with each mapping in it replaced by edit(mapping)."""
    if isinstance(value, list):
        return [edited(one, edit) for one in value]
    if isinstance(value, dict):
        return edit({key: edited(one, edit) for key, one in value.items()})
    return value


def as_shown(facts):
    """Returns facts as the server now shows them: ratings are whole numbers."""
    names = ("rating", "rating_change")
    return edited(facts, lambda row: row | {key: round(row[key]) for key in names if key in row})


def without_marks(shown):
    """Returns an answer without the new field `provisional`."""
    return edited(shown, lambda row: {key: row[key] for key in row if key != "provisional"})


def test_a_migration_keeps_accounts_and_sessions(migrated):
    found = players(migrated, "/users/me")
    assert found.keys() == FACTS["users"].keys()
    for name, facts in FACTS["users"].items():
        assert found[name].json == found[name].json | as_shown(facts)
        stored = migrated.redis.hget(f"user:{{{uid_of(migrated.redis, name)}}}", "rating")
        assert float(stored or 1500) == facts["rating"]


def test_each_player_can_still_sign_in_by_username(migrated):
    for name in FACTS["users"]:
        answer = migrated.http("POST", "/auth/login", {"login": name, "password": PASSWORD})
        assert answer.status == 200, (name, answer.body)


def test_each_player_can_still_sign_in_by_email(migrated):
    for user in FACTS["users"].values():
        body = {"login": user["email"], "password": PASSWORD}
        assert migrated.http("POST", "/auth/login", body).json["user"]["email"] == user["email"]
    assert not list(migrated.redis.scan_iter("unique:{*:*}"))


def test_a_value_of_two_players_goes_to_the_first_field_of_the_schema(make_server):
    def edit(tree):
        tree["users"]["fields"]["nick"] = {"type": "string", "unique": True}

    server = restored(make_server(edited_schema(edit), start=False))
    redis = start_embedded(server)
    email = FACTS["users"]["old1"]["email"]
    uid = uid_of(redis, "old0")
    redis.hset(f"user:{{{uid}}}", "nick", email)
    redis.hset("unique:{nick:7}", email, f"{uid} op")
    server.start()
    body = {"login": email, "password": PASSWORD}
    assert server.http("POST", "/auth/login", body).json["user"]["username"] == "old1"
    assert "1 players can't sign in by a value that another player has" in server.log


def test_a_migration_keeps_finished_games_and_histories(migrated):
    for name, answer in players(migrated, "/users/me/games").items():
        kept = [game for game in answer.json["games"] if game["id"] != RUNNING]
        assert without_marks(kept) == as_shown(FACTS["games"][name]["games"]), name
    for game, record in FACTS["records"].items():
        owner = next(
            name
            for name, page in FACTS["games"].items()
            if game in [row["id"] for row in page["games"]]
        )
        answer = migrated.http("GET", f"/games/{game}", token=FACTS["tokens"][owner])
        assert without_marks(answer.json) == as_shown(record)


def test_a_migration_keeps_the_leaderboards(migrated):
    for name, board in FACTS["boards"].items():
        values = [row["value"] for row in board["entries"]]
        for row in board["entries"]:  # format 1 gave equal values different ranks
            row["rank"] = 1 + sum(value > row["value"] for value in values)
            row["value"] = round(row["value"])
        assert without_marks(migrated.http("GET", f"/leaderboards/{name}?limit=100").json) == board


def test_a_running_game_ends_as_abandoned_and_changes_no_rating(migrated):
    for name in ("old4", "old5"):
        token = FACTS["tokens"][name]
        record = migrated.http("GET", f"/games/{RUNNING}", token=token).json
        assert record["reason"] == "abandoned"
        assert all("rating_change" not in row for row in record["ranking"])
        user = migrated.http("GET", "/users/me", token=token).json
        assert user == user | as_shown(FACTS["users"][name])


def test_nothing_of_the_old_format_is_left(migrated):
    redis = migrated.redis
    for key in redis.scan_iter("game:*:*"):
        assert "rules" not in redis.hkeys(key), key
        game = key.rpartition(":")[2]
        assert key == f"game:{{g{int(game[:2], 36)}}}:{game}"
    assert not list(redis.scan_iter("deadlines:*"))
    assert redis.hlen("playing:{lobby}") == 0
    assert not redis.zrange("queue:{lobby}:random", 0, -1)


def test_each_question_gets_an_id_and_none_is_stored_twice(migrated):
    redis = migrated.redis
    ids, fingerprints = redis.hgetall("ids:{bank}"), redis.hgetall("fingerprints:{bank}")
    shipped = json.loads((ROOT / "questions.json").read_text("utf-8"))
    assert ids.keys() == {item["id"] for item in shipped}
    assert fingerprints == {question_id: question_id for question_id in ids}
    texts = {item["id"]: item["question"] for item in shipped}
    for question_id, entry in ids.items():
        number, digest = entry.split(" ")
        assert digest == question_id
        assert json.loads(redis.hget("bank:{bank}", number))[0] == texts[question_id]
    assert redis.hlen("bank:{bank}") == len(shipped) + 1  # the digest of the file


def test_the_players_of_the_snapshot_can_play(migrated):
    pair = ("old0", "old6")
    sessions = [{"token": FACTS["tokens"][name], "user": FACTS["users"][name]} for name in pair]
    ends = play_all([migrated.phone(session=session) for session in sessions])
    assert all(end["reason"] == "finished" for end in ends)
    games = migrated.http("GET", "/users/me", token=sessions[0]["token"]).json["games"]
    assert games == FACTS["users"]["old0"]["games"] + 1


def start_embedded(server):
    """Starts only the embedded Redis of a server. Returns a client with all permissions."""
    code = "import trivia; trivia.EmbeddedRedis(trivia.DATA).start()"
    assert forks.run([sys.executable, "-c", code], env=server.env).returncode == 0
    return redis_at(server.data / "d" / "redis.sock")


def uid_of(redis, name):
    """Returns the UID of a player of the snapshot."""
    found = [key for key in redis.scan_iter("user:*") if redis.hget(key, "username") == name]
    return found[0].removeprefix("user:{").removesuffix("}")


def old_settlement(uids):
    """Returns a game of format 1 that the first player won, with its settlement begun."""
    game = {
        "queue": "random",
        "rules": "5000 100 20000 100 50 forfeit rated",
        "quiz": "7:0123",
        "players": "2",
        "phase": "settle",
        "round": "1",
        "opened": "1764384000000",
        "deadline": "1764384002000",
        "reason": "finished",
        "ended": "1764384001000",
    }
    for i, uid, score, log in ((1, uids[0], "120", "0:10:120 "), (2, uids[1], "0", "- ")):
        seat = {"uid": uid, "name": f"n{i}", "conn": f"w.{i}", "turn": "1", "gone": "", "seq": "3"}
        seat |= {"score": score, "ans": "", "log": log}
        game |= {f"{field}{i}": value for field, value in seat.items()}
    return game


def commands_of(monitor):
    """Yields the commands that Redis runs, as a monitor shows them."""
    for shown in monitor.listen():
        yield shown["command"]


def test_an_interrupted_settlement_is_completed_once(make_server):
    server = restored(make_server(start=False))
    redis = start_embedded(server)
    uids = [uid_of(redis, name) for name in ("old6", "old7")]
    redis.hset("game:{g1}:zz0123456789", mapping=old_settlement(uids))
    redis.zadd("deadlines:{g1}", {"zz0123456789": 1764384002000})
    # The second player's result was applied before the interruption.
    redis.zadd(f"history:{{{uids[1]}}}", {"zz0123456789": 1764384001000})
    with redis.monitor() as monitor:
        server.start()
        redis.echo("started")
        sent = list(itertools.takewhile(lambda text: "started" not in text, commands_of(monitor)))
    for game in ("zz0123456789", RUNNING):  # the key in the old format is deleted last
        histories = [n for n, text in enumerate(sent) if re.match(f"ZADD history.* {game}", text)]
        assert len(histories) == 2
        assert max(histories) < sent.index(f"DEL game:{{g1}}:{game}")
    first, second = (
        server.http("GET", "/users/me", token=FACTS["tokens"][name]).json
        for name in ("old6", "old7")
    )
    assert (first["games"], first["wins"]) == (1, 1)
    assert first["rating"] > 1500
    assert (second["games"], second["rating"]) == (0, 1500)
    record = server.http("GET", "/games/zz0123456789", token=FACTS["tokens"]["old6"]).json
    assert record["reason"] == "finished"
    assert record["rounds"][0]["answers"] == {"n1": {"choice": 0, "ms": 10, "points": 120}}
    assert not redis.exists("deadlines:{g1}")


def test_an_interrupted_migration_starts_again(make_server):
    server = restored(make_server(start=False))
    running = start_embedded(server).hgetall(FACTS["running"][0])
    server.start()
    server.stop()
    redis = start_embedded(server)
    redis.delete("format:{lobby}")
    redis.hset("seats:{lobby}", "nobody", "w.1 1 - 0 - -")
    redis.hset(FACTS["running"][0], mapping=running)  # as if interrupted before its deletion
    for history in redis.scan_iter("history:*"):
        redis.zrem(history, RUNNING)
    server.start()
    assert redis.get("format:{lobby}") == str(trivia.FORMAT)
    assert not redis.hexists("seats:{lobby}", "nobody")
    for name, token in FACTS["tokens"].items():
        user = server.http("GET", "/users/me", token=token).json
        assert user == user | as_shown(FACTS["users"][name])
    page = server.http("GET", "/users/me/games", token=FACTS["tokens"]["old4"]).json
    assert [game["id"] for game in page["games"]].count(RUNNING) == 1


def test_a_tool_does_not_migrate(make_server):
    server = restored(make_server(start=False))
    done = trivia_py("import", "questions.json", env=server.env)
    assert done.returncode == 1
    assert "the data has format 1; trivia.py 2.0.0 reads format 4" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_newer_format_is_refused_in_one_line(make_server):
    server = make_server()
    server.redis.set("format:{lobby}", "5")
    server.stop()
    server.start(wait=False)
    assert server.process.wait(20) != 0
    lines = [line for line in server.log.splitlines() if "format" in line]
    assert len(lines) == 1
    assert "the data has format 5; trivia.py 2.0.0 reads format 4" in lines[0]
    assert "Traceback" not in server.log


def test_a_start_is_refused_while_workers_of_format_1_run_and_names_them(make_server):
    server = restored(make_server(start=False))
    redis = start_embedded(server)
    redis.zadd("workers:{lobby}", {"0123456789": 1})
    listener = redis.pubsub()
    listener.subscribe("worker:0123456789")
    listener.get_message(timeout=5)
    # The user as that version left it.
    redis.execute_command("ACL SETUSER", "trivia", "-@all", "resetkeys", "+ping")
    server.start(wait=False)
    assert server.process.wait(20) != 0
    assert "workers of trivia.py 1.x still run on this data: 0123456789. Stop them" in server.log
    listener.close()
    server.start()
    assert server.http("GET", "/users/me", token=FACTS["tokens"]["old0"]).status == 200


@pytest.mark.parametrize("old", ["2", "3"])
def test_data_of_formats_2_and_3_is_migrated_only_when_no_worker_of_that_format_runs(
    make_server, old
):
    server = make_server()
    server.redis.set("format:{lobby}", old)
    server.stop()
    redis = start_embedded(server)
    redis.zadd("workers:{lobby}", {"0123456789": 1})
    listener = redis.pubsub()
    listener.execute_command("SSUBSCRIBE", "worker:{lobby}:0123456789")
    server.start(wait=False)
    assert server.process.wait(20) != 0
    told = f"workers of format {old} still run on this data: 0123456789. Stop them first"
    assert told in server.log and redis.get("format:{lobby}") == old
    listener.close()
    server.start()
    assert redis.get("format:{lobby}") == str(trivia.FORMAT)
