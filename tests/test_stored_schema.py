"""Stored data when schema.yaml changes between two starts.

The server migrates the data, fills it again, or refuses to start.
"""

import contextlib
import signal
import sys
import types

import jsonschema
import pytest

import trivia
from conftest import (
    PASSWORD,
    Server,
    Valkey,
    edited_schema,
    play_all,
    trivia_py,
    unique_name,
    wait_until,
)

BEFORE = {
    "nick": {"type": "string", "maxLength": 40},
    "badge": {"type": "string", "unique": True},
    "level": {"type": "integer", "default": 1},
    "steps": {"type": "string"},
    "flag": {"type": "boolean", "default": False},
    "color": {"type": "string", "enum": ["red", "green"]},
    "motto": {"type": "string", "maxLength": 40},
    "team": {"type": "string"},
    "gone": {"type": "string", "default": ""},
    # A tool of the operator writes this field.
    "grade": {"type": "integer", "default": 1, "readOnly": True},
}
AFTER = {
    "nick": {"type": "string", "maxLength": 40, "unique": True},
    "badge": {"type": "string"},
    "level": {"type": "number", "default": 5, "maximum": 8},
    "steps": {"type": "integer", "default": 0},
    "flag": {"type": "string"},
    "color": {"type": "string", "enum": ["blue"]},
    "motto": {"type": "string", "maxLength": 3},
    "team": {"type": "string"},
    "fresh": {"type": "integer", "default": 3},
    "grade": {"type": "number", "default": 5, "readOnly": True},
}


def before(tree):
    """Makes the schema of the first and the third start."""
    tree["users"]["fields"] |= BEFORE
    tree["leaderboards"] |= {
        "grades": {"field": "grade"},
        "daily": {"field": "games", "period": "day"},
        "moved": {"field": "games"},
        "out": {"field": "wins"},
        "rhythm": {"field": "wins", "period": "week"},
    }
    tree["queues"]["old"] = tree["queues"]["random"] | {}
    tree["limits"] |= {"game_days": 30, "session_days": 30, "name_hold_days": 0}


def after(tree):
    """Makes the schema of the second start."""
    tree["users"]["fields"] |= AFTER
    tree["users"]["required"] += ["team"]
    tree["leaderboards"] |= {
        "grades": {"field": "grade"},
        "daily": {"field": "wins", "period": "day"},
        "moved": {"field": "wins"},
        "new": {"field": "wins"},
        "rhythm": {"field": "wins", "period": "day"},
    }
    tree["queues"]["renamed"] = tree["queues"]["random"] | {}
    tree["limits"] |= {"game_days": 3, "session_days": 1, "name_hold_days": 0}


def me(server, session):
    answer = server.http("GET", "/users/me", token=session["token"])
    assert answer.status == 200, answer.body
    return answer.json


def board(server, name):
    rows = server.http("GET", f"/leaderboards/{name}?limit=100").json["entries"]
    return {row["username"]: row["value"] for row in rows}


def uid_of(session):
    return session["token"][:12]


def adopted(redis, schema):
    """Waits until the stored data fits a schema."""
    facts = trivia.Schema(trivia.yaml.safe_load(schema)).facts

    def fits():
        known = redis.hgetall(trivia.Keys.schema)
        misfits = {
            fact
            for fact in known.keys() | facts.keys()
            if known.get(fact) != facts.get(fact)
            and fact != "game_days"
            and (fact in facts or not fact.startswith("field "))
        }
        return not misfits

    wait_until(fits, 30)


def restart(server, edit):
    server.stop()
    schema = edited_schema(edit)
    (server.data / "schema.yaml").write_text(schema, "utf-8")
    server.start()
    adopted(server.redis, schema)


def win(server, winner, loser, queue="random"):
    phones = [server.phone(session=session, queue=queue) for session in (winner, loser)]
    phones[0].expect("start")
    play_all(phones, lambda question: 0)
    for phone in phones:
        phone.close()


@pytest.fixture(scope="module")
def story():
    """A server that starts three times: with schema `before`, `after`, and `before` again.

    `first` and `second` hold what the first two starts showed.
    """
    server = Server(edited_schema(before))
    try:
        server.start()
        ann = server.register(
            nick="Ann", badge="A1", level=9, steps="12", flag=True, color="red", motto="hello",
            gone="kept",
        )  # fmt: skip
        bob = server.register(nick="bob", badge="B2", steps="wide", color="green")
        eve = server.register(gone="hers", badge="E3")
        server.redis.hset(trivia.Keys.user(uid_of(ann)), "grade", 9)
        win(server, ann, bob)
        win(server, eve, bob)
        server.http("PATCH", "/users/me", {"level": 7}, bob["token"])
        old_game = server.http("GET", "/users/me/games", token=ann["token"]).json["games"][0]["id"]
        waiting = server.phone(queue="old")
        waiting.expect("queued")
        first = {name: board(server, name) for name in ("moved", "out", "grades", "daily")}
        server.kill(signal.SIGKILL)  # so that the ticket stays
        server.process.wait(10)
        # As if the workers were reaped.
        server.redis.delete(trivia.Keys.libraries, trivia.Keys.workers)

        restart(server, after)
        second = types.SimpleNamespace(
            ann=me(server, ann),
            bob=me(server, bob),
            boards={name: board(server, name) for name in ("moved", "new", "grades", "rhythm")},
            out=server.http("GET", "/leaderboards/out").status,
            documents=server.http("GET", "/docs/openapi.json").json,
            log=server.log,
            keys=set(server.redis.keys()),
            due=server.redis.zrange(trivia.Keys.due, 0, -1),
            seats=server.redis.hgetall(trivia.Keys.seats),
            badges=[value for value in ("a1", "b2", "e3") if claimed(server.redis, value)],
            session=int(server.redis.hget(trivia.Keys.user(uid_of(ann)), session_of(ann))),
            now=server.redis.time()[0],
        )
        win(server, ann, bob)
        second.daily = board(server, "daily")
        second.history = server.redis.zcard(trivia.Keys.history(uid_of(ann)))
        second.same_badge = server.register(badge="A1", team="x", nick=unique_name())
        server.http("PATCH", "/users/me", {"badge": "C3"}, second.same_badge["token"])
        erased = server.http("DELETE", "/users/me", {"password": PASSWORD}, eve["token"])
        assert erased.status == 204
        wait_until(lambda: not server.redis.exists(trivia.Keys.erasures))

        restart(server, before)
        yield types.SimpleNamespace(
            server=server, ann=ann, bob=bob, eve=eve, first=first, second=second,
            old_game=old_game, waiting=waiting,
        )  # fmt: skip
    finally:
        server.close()


def claimed(redis, value):
    return redis.hexists(trivia.Keys.unique(value), value)


def session_of(session):
    return f"session:{trivia.digest(session['token'][12:])}"


# ---- fields


@pytest.mark.parametrize(
    "what, name, ann, bob",
    [
        ("added", "fresh", 3, 3),
        ("made unique", "nick", "Ann", "bob"),
        ("made not unique", "badge", "A1", "B2"),
        ("of a wider type; a value outside of the new bounds", "level", 9, 7),
        ("of a type that can hold some values", "steps", 12, 0),
        ("of a type that can hold all values", "flag", "1", None),
        ("that has lost choices", "color", "red", "green"),
        ("that is shorter", "motto", "hello", None),
        ("that is required", "team", None, None),
    ],
)
def test_a_changed_field_shows_the_stored_value_or_its_default(story, what, name, ann, bob):
    assert (story.second.ann[name], story.second.bob[name]) == (ann, bob), what


def test_answers_fit_the_documents_whatever_was_stored(story):
    schema = story.second.documents["components"]["schemas"]["User"]
    for user in (story.second.ann, story.second.bob):
        jsonschema.Draft202012Validator(schema).validate(user)


def test_the_log_names_the_players_whose_values_do_not_fit_the_new_type(story):
    expected = "users.fields.steps: 1 stored values are no integer; these players get the default"
    assert f"{expected}: {uid_of(story.bob)}" in story.second.log
    assert "wide" not in story.second.log


def test_a_field_that_was_removed_and_restored_has_its_earlier_values(story):
    user = me(story.server, story.ann)
    assert user["gone"] == "kept" and user["steps"] == "12" and user["flag"] is True


def test_a_field_that_became_unique_is_unique_and_signs_players_in(story):
    """The field is not unique at the third start, so the server starts a fourth time."""
    server = story.server
    restart(server, after)
    login = {"login": "ANN", "password": PASSWORD}
    assert (
        server.http("POST", "/auth/login", login).json["user"]["username"]
        == (story.ann["user"]["username"])
    )
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD, "team": "x"}
    server.http("POST", "/auth/register", body | {"nick": "ann"}).refused(409, "nick_taken")
    server.http("POST", "/auth/register", body | {"nick": "BOB"}).refused(409, "nick_taken")
    restart(server, before)


def test_a_field_that_stopped_being_unique_leaves_no_claims(story):
    assert story.second.badges == []
    found = story.server.http("POST", "/auth/login", {"login": "B2", "password": PASSWORD})
    assert found.json["user"]["username"] == story.bob["user"]["username"]  # it is unique again


def test_a_player_who_was_erased_between_the_starts_leaves_no_data(story):
    redis, uid = story.server.redis, uid_of(story.eve)
    for key in redis.scan_iter():
        if redis.type(key) == "hash":
            assert not any(uid in value for value in redis.hvals(key)), key
        assert uid not in key, key
        if key.startswith("board:"):
            assert redis.zscore(key, uid) is None, key
    assert not claimed(redis, "e3")


# ---- leaderboards


def test_new_and_changed_leaderboards_are_filled_from_the_stored_values(story):
    ann, bob, eve = (one["user"]["username"] for one in (story.ann, story.bob, story.eve))
    assert story.first["moved"] == {ann: 1, bob: 2, eve: 1}
    assert story.second.boards["moved"] == story.second.boards["new"]
    assert story.second.boards["moved"].keys() == {ann, bob, eve}
    assert sum(story.second.boards["moved"].values()) <= 2  # wins, not games
    assert story.first["grades"] == {ann: 9, bob: 1, eve: 1}
    assert story.second.boards["grades"] == {ann: 9, bob: 5, eve: 5}  # by the new default


def test_a_leaderboard_whose_field_or_period_changed_counts_from_the_change(story):
    games = story.first["daily"]
    assert games[story.bob["user"]["username"]] == 2
    assert max(story.second.daily.values(), default=0) <= 1
    assert story.second.boards["rhythm"] == {}


def test_a_leaderboard_that_was_removed_and_restored_is_correct(story):
    assert story.second.out == 404 and "board:{out}" not in story.second.keys
    players = [story.ann, story.bob]
    wins = {one["user"]["username"]: me(story.server, one)["wins"] for one in players}
    assert board(story.server, "out") == wins


# ---- queues and limits


def test_tickets_of_a_removed_queue_are_dropped(story):
    uid = uid_of(story.waiting.session)
    assert "queue:{lobby}:old" not in story.second.keys
    assert f"old {uid}" not in story.second.due and uid not in story.second.seats
    story.waiting.queue = "old"
    story.waiting.connect().expect("queued")
    story.waiting.close()


def test_a_shorter_limit_of_days_applies_to_stored_sessions_but_not_to_stored_games(story):
    assert story.second.history == 2
    answer = story.server.http("GET", f"/games/{story.old_game}", token=story.ann["token"])
    assert answer.status == 200
    assert story.second.session - story.second.now <= 86400
    assert story.server.redis.hget(trivia.Keys.schema, "game_days") == "30"


# ---- refusals


def command(server, *words):
    done = trivia_py(*words, env=server.env)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_field_cannot_become_unique_while_players_share_a_value(make_server):
    server = make_server(edited_schema(before))
    twins = [server.register(nick=nick) for nick in ("Zoë", "ZOË", "zoe")]
    for i in range(24):
        name = f"shared{i}"
        fields = {"username": name, "nick": f"n{i // 2}"}
        server.redis.hset(trivia.Keys.user(f"{name:x<12}"), mapping=fields)
    server.stop()
    (server.data / "schema.yaml").write_text(edited_schema(after), "utf-8")

    assert command(server, "check")[0] == 0
    code, refusal = command(server, "check", "--stored")
    uids = sorted(map(uid_of, twins[:2]))
    found = f"found the same value at the players {', '.join(uids)}; expected"
    lines = refusal.splitlines()
    assert code == 1 and all("users.fields.nick.unique: found" in line for line in lines)
    assert len(lines) == 11 and "3 more values" in refusal
    code, report = command(server, "doctor")
    assert "MEND  stored data: users.fields.nick.unique: the same value at" in report
    server.start(wait=False)
    assert server.process.wait(40) != 0
    assert "users.fields.nick.unique" in server.log and "Traceback" not in server.log
    assert "zoë" not in (server.log + refusal + report).lower()

    (server.data / "schema.yaml").write_text(edited_schema(before), "utf-8")
    server.start()  # nothing was changed
    for i in range(24):
        server.redis.delete(trivia.Keys.user(f"{f'shared{i}':x<12}"))
    body = {"nick": "another"}
    assert server.http("PATCH", "/users/me", body, twins[1]["token"]).status == 200
    server.stop()
    (server.data / "schema.yaml").write_text(edited_schema(after), "utf-8")
    code, printed = command(server, "check", "--stored")
    assert code == 0, (printed, found)
    server.start()
    login = {"login": "zoË", "password": PASSWORD}
    assert server.http("POST", "/auth/login", login).json["user"] == me(server, twins[0])


# ---- old and new workers side by side


def test_old_and_new_workers_side_by_side_do_not_harm_each_other_s_data(make_server):
    old_schema, new_schema = edited_schema(before), edited_schema(after)
    with contextlib.closing(Valkey().start()) as valkey:
        old = make_server(old_schema, env={"REDIS_URL": valkey.url})
        adopted(valkey.client, old_schema)
        first = old.register(nick="same")
        rival = old.register()
        new = make_server(new_schema, env={"REDIS_URL": valkey.url})
        known = valkey.client.hgetall(trivia.Keys.schema)
        assert known["field nick"] == "?string" and known["board out"].startswith("?- wins")

        # The old server continues to follow its own schema.
        second = old.register(nick="SAME", badge="X")
        win(old, first, rival, "old")
        body = {"login": "same", "password": PASSWORD}
        assert (
            new.http("POST", "/auth/login", body).json["user"]["username"]
            == (first["user"]["username"])
        )
        assert valkey.client.hget(trivia.Keys.schema, "field nick") == "?string"

        old.stop()
        adopted(valkey.client, new_schema)
        assert f'"player": "{uid_of(second)}"' in new.log and "another player has this" in new.log
        assert (
            new.http("POST", "/auth/login", body).json["user"]["username"]
            == (first["user"]["username"])
        )
        assert first["user"]["username"] in board(new, "new")
        assert "Traceback" not in new.log + old.log


def test_a_reload_is_refused_and_changes_nothing_if_stored_data_does_not_fit(make_server):
    command = [sys.executable, "trivia.py", "--port", "0", "--workers", "2"]
    server = make_server(edited_schema(before), command)
    session = server.register(nick="twin")
    server.register(nick="Twin")
    (server.data / "schema.yaml").write_text(edited_schema(after), "utf-8")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload refused" in server.log, 40)
    assert "users.fields.nick.unique" in server.log
    assert "fresh" not in me(server, session)
