"""schema.yaml: `check` reports mistakes in it, and an edit of it alone changes the server."""

import functools
import itertools
import json
import math
import os
import re
import sys
import time
import types
from datetime import date

import jsonschema
import jsonschema_rs
import marshmallow
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from conftest import (
    FAST,
    ROOT,
    SHIPPED,
    as_yaml,
    check,
    edited_schema,
    from_yaml,
    play_all,
    shipped_tree,
    trivia_py,
    unique_name,
)

sys.path.insert(0, str(ROOT))
import trivia  # noqa: E402 - runs `check` without a new process for each case

GONE = object()  # as a value in an edit: the key is removed
TEXT = {"type": "string"}
BOTS = {"after_seconds": 5, "skill": "near"}


def changed(edits):
    """Applies edits, {dotted path: value}, to schema.yaml. Returns its text and its tree."""
    tree = shipped_tree()
    for path, value in edits.items():
        *above, last = path.split(".")
        part = tree
        for key in above:
            part = part[key]
        if value is GONE:
            del part[last]
        else:
            part[last] = value
    return as_yaml(tree), tree


def line_of(text, path):
    """Returns the line of a path, or of its nearest parent, in a file that as_yaml wrote."""
    lines, at = text.split("\n"), 0
    for depth, key in enumerate(path.split(".")):
        if key.isdigit():  # an item of a list, which begins on the line after its name
            return at + 1 + int(key)
        inside = ("  " * depth, "  " * (depth - 1) + "- ")
        block = itertools.takewhile(
            lambda i, inside=inside: lines[i].startswith(inside), range(at, len(lines))
        )
        found = next((i for i in block if lines[i].startswith("  " * depth + f"{key}:")), None)
        if found is None:
            return max(at, 1)
        at = found + 1
    return at


@pytest.fixture(scope="module", autouse=True)
def questions_are_read_once():
    """Caches the shipped questions, which each check reads and no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trivia, "read_question_file", functools.cache(trivia.read_question_file))
        yield


@pytest.fixture
def file(tmp_path):
    return tmp_path / "schema.yaml"


# ---- the command ---------------------------------------------------------------------------------


def run(*arguments, **env):
    ours = ("REDIS_URL", "TRIVIA_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return trivia_py("check", *arguments, env=clean | env)


def test_check_exits_with_0_for_the_shipped_schema():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        "schema.yaml: fine: 10 user fields, 3 leaderboards, 7 queues, 12 client messages\n"
    )


def test_check_exits_with_1_and_its_message_goes_to_stderr(file):
    file.write_text(changed({"queues.party.rounds": "ten"})[0])
    for done in (run(file), run(TRIVIA_SCHEMA=str(file))):
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(
            rf'{file}:\d+: queues\.party\.rounds: found "ten"; expected .*integer.*\n', done.stderr
        )


def test_json_schema_is_valid_and_accepts_the_shipped_schema_but_not_a_mistake():
    done = run("--json-schema")
    schema = json.loads(done.stdout)
    assert (
        done.returncode == 0 and schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    )
    jsonschema_rs.meta.validate(schema)  # in Python it takes a second
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(shipped_tree())
    assert not validator.is_valid(changed({"queues.party.rouns": 3})[1])


def test_check_names_a_file_that_it_cannot_read(tmp_path):
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("title: Fußball".encode("latin-1"))
    for file in (tmp_path / "nowhere.yaml", tmp_path, latin):
        assert re.fullmatch(rf"{file}: can't be read: .+", check(file))


# ---- mistakes ------------------------------------------------------------------------------------

X = "users.fields.x"
MISTAKES = [  # edits, the path of the one mistake, what the message contains
    # keys
    ({"limits.conections": 5}, "limits.conections", "expected connections?"),
    ({"queues.party.scorings": {}}, "queues.party.scorings", "expected scoring?"),
    ({"users.fields.email.maxlength": 5}, "users.fields.email.maxlength", "expected maxLength?"),
    ({"zzz": 5}, "zzz", "expected one of title, "),
    ({"queues.party.rounds": GONE}, "queues.party.rounds", "found nothing"),
    ({"limits.body_bytes": GONE}, "limits.body_bytes", "found nothing"),
    ({"users": GONE}, "users", "found nothing"),
    ({"queues": {}}, "queues", "{}"),
    ({"queues.Bad-Name": shipped_tree()["queues"]["random"]}, "queues.Bad-Name", "a-z"),
    ({"users.fields.Größe": TEXT}, "users.fields.Größe", "a-z"),
    ({"messages.client.a b": {"relay": "opponents"}}, "messages.client.a b", "a-z"),
    # types and bounds
    ({"queues.party.rounds": "ten"}, "queues.party.rounds", "integer"),
    ({"queues.party.rounds": True}, "queues.party.rounds", "integer"),
    ({"queues.party.rounds": 0}, "queues.party.rounds", "at least 1"),
    ({"queues.party.rounds": 101}, "queues.party.rounds", "at most 100"),
    ({"queues.party.match": "elo"}, "queues.party.match", "one of fifo, rating, room, challenge"),
    ({"queues.party.answer_seconds": 0}, "queues.party.answer_seconds", "more than 0"),
    ({"queues.party.answer_seconds": math.nan}, "queues.party.answer_seconds", ""),
    ({"queues.rated.window": math.inf}, "queues.rated.window", ""),
    (
        {"queues.party.difficulties": ["easy", "nasty"]},
        "queues.party.difficulties",
        '"nasty"; expected one of easy, ',
    ),
    ({"limits.connections": -5}, "limits.connections", "found -5; expected at least 1"),
    (
        {"users.fields.avatar": {"type": "string", "maxLength": 501, "filtered": True}},
        "users.fields.avatar.maxLength",
        "found 501; expected at most 500",
    ),
    ({"limits.login_seconds": 0}, "limits.login_seconds", "at least 1"),
    ({"limits.pair_games": 0}, "limits.pair_games", "found 0; expected at least 1"),
    ({"limits.pair_games": 2.5}, "limits.pair_games", "integer"),
    (
        {"limits.early_exit_seconds": 700},
        "limits.early_exit_seconds",
        "found 700; expected at most early_exit_most_seconds, 600",
    ),
    ({"limits.early_exit_most_seconds": 86_401}, "limits.early_exit_most_seconds", "at most 86400"),
    ({"limits.message_bytes": 65_537}, "limits.message_bytes", "at most 65536"),
    ({"limits.connections": None}, "limits.connections", "integer"),
    ({"leaderboards": None}, "leaderboards", "object"),
    ({"queues": ["random"]}, "queues", "object"),
    ({"origins": "*"}, "origins", "array"),
    ({"title": 2024}, "title", "string"),
    ({"leaderboards.wins.period": "year"}, "leaderboards.wins.period", "one of day, week, month"),
    # queues
    ({"queues.party.players": {"min": 5, "max": 3}}, "queues.party.players", "min at most max"),
    ({"queues.party.players": 0}, "queues.party.players", "at least 1"),
    ({"queues.party.match": GONE}, "queues.party.match", "found nothing"),
    ({"queues.party.rated": GONE}, "queues.party.rated", "found nothing"),
    ({"queues.party.on_exit": GONE}, "queues.party.on_exit", "found nothing"),
    ({"queues.party.wait_seconds": GONE}, "queues.party.wait_seconds", "found nothing"),
    # solo
    ({"queues.solo.rated": True}, "queues.solo.rated", "two players"),
    (
        {"queues.party.players": {"min": 1, "max": 4}, "queues.party.rated": True},
        "queues.party.rated",
        "two players",
    ),
    (
        {"queues.solo.match": "rating", "queues.solo.window": 1, "queues.solo.widen": 1},
        "queues.solo.match",
        "no opponents",
    ),
    ({"queues.solo.lives": 0}, "queues.solo.lives", "at least 1"),
    ({"queues.party.lives": 3}, "queues.party.lives", "unless the queue has `players: 1`"),
    # challenges
    ({"queues.challenge.days": GONE}, "queues.challenge.days", "found nothing"),
    ({"queues.challenge.days": 31}, "queues.challenge.days", "at most 30"),
    ({"queues.challenge.players": 1}, "queues.challenge.match", "no opponents"),
    ({"queues.challenge.rated": True}, "queues.challenge.rated", "challenge choose each other"),
    ({"queues.challenge.lives": 3}, "queues.challenge.lives", "`players: 1`"),
    ({"queues.party.days": 3}, "queues.party.days", "unless the queue has `match: challenge`"),
    (
        {"queues.friends": GONE, "messages.client.join.fields.code": GONE},
        "messages.client.join.fields.code",
        "since the queue challenge has `match: challenge`",
    ),
    # daily
    ({"queues.daily.attempts": GONE}, "queues.daily.attempts", "found nothing"),
    ({"queues.daily.attempts": 2}, "queues.daily.attempts", "at most 1"),
    ({"queues.daily.draw": "weekly"}, "queues.daily.draw", "one of daily"),
    ({"queues.daily.draw": GONE}, "queues.daily.attempts", "unless the queue has `draw: daily`"),
    ({"queues.daily.rated": True}, "queues.daily.rated", "two players"),
    (
        {"queues.party.draw": "daily", "queues.party.attempts": 1},
        "queues.party.draw",
        "unless the queue has `players: 1`",
    ),
    ({"users.fields.streak.type": "number"}, "users.fields.streak", "integer"),
    ({"users.fields.daily_points.readOnly": GONE}, "users.fields.daily_points", "readOnly"),
    ({"users.fields.zone.default": "Mars"}, "users.fields.zone.default", "a time zone"),
    ({"leaderboards.wins.field": "streak"}, "leaderboards.wins.field", "a numeric, public field"),
    # rooms
    ({"queues.friends.rated": True}, "queues.friends.rated", "choose each other"),
    (
        {"queues.party.late_join": True},
        "queues.party.late_join",
        "unless the queue has `match: room`",
    ),
    ({"queues.friends.players": 1}, "queues.friends.match", "no opponents"),
    ({"queues.friends.on_exit": GONE}, "queues.friends.on_exit", "found nothing"),
    (
        {"messages.client.begin": GONE},
        "messages.client.begin",
        "since the queue friends has `match: room`",
    ),
    (
        {"messages.client.join.fields.code": GONE},
        "messages.client.join.fields.code",
        "since the queue friends",
    ),
    ({"messages.server.room": GONE}, "messages.server.room", "since the queue friends"),
    ({"messages.client.kick.required": []}, "messages.client.kick.required", "player"),
    ({"messages.client.lock.fields.locked": TEXT}, "messages.client.lock.fields.locked", "boolean"),
    ({"messages.client.pass.relay": "opponents"}, "messages.client.pass.relay", ""),
    # rematches
    ({"queues.friends.rematch_seconds": 20}, "queues.friends.rematch_seconds", "rooms stay"),
    ({"queues.solo.rematch_seconds": 20}, "queues.solo.rematch_seconds", "alone joins again"),
    (
        {"queues.challenge.rematch_seconds": 20},
        "queues.challenge.rematch_seconds",
        "plays a challenge once",
    ),
    ({"queues.challenge.bots": BOTS}, "queues.challenge.bots", "waits for others"),
    ({"queues.challenge.late_join": True}, "queues.challenge.late_join", "`match: room`"),
    (
        {"queues.challenge.draw": "daily", "queues.challenge.attempts": 1},
        "queues.challenge.draw",
        "`players: 1`",
    ),
    ({"queues.friends.days": 3}, "queues.friends.days", "`match: challenge`"),
    ({"queues.friends.lives": 3}, "queues.friends.lives", "`players: 1`"),
    ({"queues.daily.match": "room"}, "queues.daily.match", "no opponents"),
    ({"queues.daily.days": 3}, "queues.daily.days", "`match: challenge`"),
    ({"queues.daily.late_join": True}, "queues.daily.late_join", "`match: room`"),
    ({"queues.daily.rematch_seconds": 9}, "queues.daily.rematch_seconds", "alone joins again"),
    ({"queues.solo.attempts": 1}, "queues.solo.attempts", "`draw: daily`"),
    ({"queues.party.window": 0}, "queues.party.window", "`match: rating`"),
    ({"queues.random.widen": 5}, "queues.random.widen", "`match: rating`"),
    ({"queues.rated.rematch_seconds": 86_401}, "queues.rated.rematch_seconds", "at most 86400"),
    # bots
    ({"queues.random.bots": {"skill": 1500}}, "queues.random.bots.after_seconds", "found nothing"),
    ({"queues.random.bots.skill": "hard"}, "queues.random.bots.skill", "near"),
    ({"queues.random.bots.skill": -1}, "queues.random.bots.skill", "at least 0"),
    ({"queues.random.bots.after_seconds": 0}, "queues.random.bots.after_seconds", "more than 0"),
    (
        {"queues.random.bots.after_seconds": 60},
        "queues.random.bots.after_seconds",
        "less than wait_seconds, 60",
    ),
    ({"queues.friends.bots": BOTS}, "queues.friends.bots", "waits for others"),
    ({"messages.client.rematch": GONE}, "messages.client.rematch", "`rematch_seconds`"),
    ({"messages.server.rematch": GONE}, "messages.server.rematch", "`rematch_seconds`"),
    ({"queues.solo.total_seconds": 0}, "queues.solo.total_seconds", "more than 0"),
    ({"queues.party.players": {"min": 2}}, "queues.party.players", "max"),
    ({"queues.party.players": {"min": 2, "max": 9}}, "queues.party.players", "8"),
    ({"queues.party.fill_seconds": GONE}, "queues.party.fill_seconds", "found nothing"),
    ({"queues.rated.window": GONE}, "queues.rated.window", "found nothing"),
    ({"queues.rated.widen": GONE}, "queues.rated.widen", "found nothing"),
    # fields
    ({X: {}}, f"{X}.type", "found nothing"),
    ({X: {"type": "text"}}, f"{X}.type", "one of string, integer, number, boolean"),
    ({X: TEXT | {"pattern": "("}}, f"{X}.pattern", "regex"),
    ({X: TEXT | {"pattern": "a{99999999999}"}}, f"{X}.pattern", ""),
    ({X: TEXT | {"pattern": "(" * 3000 + ")" * 3000}}, f"{X}.pattern", ""),
    ({X: TEXT | {"pattern": "^(?!admin)"}}, f"{X}.pattern", "without look-around"),
    ({X: TEXT | {"pattern": r"(.)\1"}}, f"{X}.pattern", "back-references"),
    ({X: TEXT | {"pattern": "a{2000}"}}, f"{X}.pattern", "regex"),
    ({X: TEXT | {"format": "phone"}}, f"{X}.format", "one of email, "),
    ({X: TEXT | {"enum": []}}, f"{X}.enum", "[]"),
    ({X: TEXT | {"default": None}}, f"{X}.default", "null"),
    ({X: TEXT | {"default": date(2020, 1, 2)}}, f"{X}.default", "2020-01-02"),
    ({X: {"type": "integer", "unique": True}}, X, '"string"'),
    ({X: {"type": "integer", "minimum": 5, "maximum": 4}}, f"{X}.minimum", "maximum"),
    ({X: TEXT | {"minLength": 9, "maxLength": 8}}, f"{X}.minLength", "maxLength"),
    # The maxLength of a string that gives none is 255.
    ({X: TEXT | {"minLength": 300}}, f"{X}.minLength", "255"),
    ({X: {"type": "number", "minimum": math.nan}}, f"{X}.minimum", ""),
    ({X: {"type": "number", "maximum": math.inf}}, f"{X}.maximum", ""),
    # YAML reads an unquoted `no` as false.
    ({X: TEXT | {"enum": ["on", False]}}, f"{X}.enum", "false"),
    ({X: {"type": "integer", "enum": ["a"]}}, f"{X}.enum", '"a"'),
    (
        {X: TEXT | {"enum": ["a"], "default": "b"}},
        f"{X}.default",
        '"b"; expected a value that the field takes',
    ),
    (
        {X: TEXT | {"enum": ["a"], "default": ""}},
        f"{X}.default",
        '""; expected a value that the field takes',
    ),
    ({X: TEXT | {"default": 5}}, f"{X}.default", "5; expected a value that the field takes"),
    (
        {X: {"type": "integer", "default": ""}},
        f"{X}.default",
        '""; expected a value that the field takes',
    ),
    (
        {X: {"type": "integer", "default": 1.5}},
        f"{X}.default",
        "1.5; expected a value that the field takes",
    ),
    (
        {X: {"type": "integer", "default": True}},
        f"{X}.default",
        "true; expected a value that the field takes",
    ),
    (
        {X: {"type": "boolean", "default": "yes"}},
        f"{X}.default",
        '"yes"; expected a value that the field takes',
    ),
    ({X: {"type": "number", "default": math.nan}}, f"{X}.default", ""),
    (
        {X: TEXT | {"format": "date", "default": "2020-02-31"}},
        f"{X}.default",
        "a value that the field takes",
    ),
    ({X: TEXT | {"unique": True, "default": "a"}}, X, ""),  # all players would have the same value
    ({"users.fields.created_at": {"type": "integer"}}, "users.fields.created_at", ""),
    ({"users.fields.login": TEXT | {"unique": True}}, "users.fields.login", ""),
    (
        {"users.required": ["username", "email", "password", "nick"]},
        "users.required",
        "the name of a field",
    ),
    ({"users.required": ["username", "password", "password"]}, "users.required", ""),
    # fields that the server itself uses
    ({"users.fields.username": GONE}, "users.fields.username", "found nothing"),
    ({"users.fields.username.type": "integer"}, "users.fields.username", "string"),
    ({"users.fields.username.unique": False}, "users.fields.username", "true"),
    ({"users.fields.username.unique": GONE}, "users.fields.username", "unique"),
    ({"users.fields.username.readOnly": True}, "users.fields.username", ""),
    ({"users.fields.username.writeOnly": True}, "users.fields.username", ""),
    ({"users.fields.username.private": True}, "users.fields.username", ""),
    ({"users.fields.password.writeOnly": GONE}, "users.fields.password", "writeOnly"),
    ({"users.fields.password.readOnly": True}, "users.fields.password", ""),
    # Its claim would store it in clear text.
    ({"users.fields.password.unique": True}, "users.fields.password", ""),
    ({"users.fields.wins.type": "number"}, "users.fields.wins", "integer"),
    ({"users.fields.games": GONE}, "users.fields.games", "found nothing"),
    ({"users.fields.rating.readOnly": GONE}, "users.fields.rating", "readOnly"),
    ({"users.fields.rating.default": GONE}, "users.fields.rating", "default"),
    ({"users.required": ["username", "email"]}, "users.required", "password"),
    # leaderboards
    (
        {"leaderboards.new": {"field": "nope"}},
        "leaderboards.new.field",
        "a numeric, public field that players can't write: wins, ",
    ),
    (
        {"leaderboards.new": {"field": "email"}},
        "leaderboards.new.field",
        "a numeric, public field that players can't write: wins, ",
    ),
    ({"leaderboards.new": {}}, "leaderboards.new.field", "found nothing"),
    # Players could write themselves to the top.
    (
        {X: {"type": "integer", "default": 0}, "leaderboards.new": {"field": "x"}},
        "leaderboards.new.field",
        'found "x"; expected a numeric, public field that players can\'t write: '
        "wins, games, rating",
    ),
    # origins that no browser sends
    ({"page": {"accent": "blue"}}, "page.accent", "text that matches"),
    ({"page": {"pictures": "email"}}, "page.pictures", "not private: avatar"),
    ({"page": {"pictures": "face"}}, "page.pictures", "not private: avatar"),
    ({"origins": ["https://play.example.org/"]}, "origins.0", "expected https://play.example.org?"),
    ({"origins": ["*", "play.example.org"]}, "origins.1", "expected https://play.example.org?"),
    ({"origins": ["https://play.example.org/app"]}, "origins.0", "https://play.example.org?"),
    ({"origins": ["wss://play.example.org"]}, "origins.0", "expected https://play.example.org?"),
    ({"origins": ["https://*.example.org"]}, "origins.0", "an origin as browsers send it"),
    ({"origins": ["https://play.example.org:99999"]}, "origins.0", "an origin as browsers"),
    ({"origins": ["https://me@play.example.org"]}, "origins.0", "an origin as browsers"),
    ({"origins": ["https://müller.example"]}, "origins.0", "an origin as browsers"),
    ({"origins": ["file:///index.html"]}, "origins.0", "an origin as browsers"),
    ({"origins": ["http://[::1::]"]}, "origins.0", "an origin as browsers"),
    ({"origins": [""]}, "origins.0", "an origin as browsers"),
    # the bank
    (
        {"queues.party.categories": ["History", "Geografy"]},
        "queues.party.categories.1",
        'found "Geografy", of which the bank has no question; expected Geography?, or add some '
        "with python trivia.py import FILE",
    ),
    (
        {"queues.party.categories": ["History"], "queues.party.rounds": 45},
        "queues.party",
        "found 44 questions of its categories and difficulties in the bank; expected at least its "
        "45 rounds; add some with python trivia.py import FILE",
    ),
    (
        {X: {"type": "integer", "private": True, "default": 0}, "leaderboards.new": {"field": "x"}},
        "leaderboards.new.field",
        "x",
    ),
    # messages
    ({"messages.client.ping": GONE}, "messages.client.ping", "found nothing"),
    ({"messages.server.reveal": GONE}, "messages.server.reveal", "found nothing"),
    ({"messages.server.gossip": {}}, "messages.server.gossip", "one of queued, "),
    ({"messages.client.wave": {}}, "messages.client.wave", "relay"),
    ({"messages.client.wave": {"relay": "all"}}, "messages.client.wave.relay", "opponents"),
    ({"messages.client.answer.relay": "opponents"}, "messages.client.answer.relay", ""),
    ({"messages.client.reveal": {"relay": "opponents"}}, "messages.client.reveal", ""),
    ({"messages.client.emoji.fields.player": TEXT}, "messages.client.emoji.fields.player", ""),
    ({"messages.client.emoji.fields.game": TEXT}, "messages.client.emoji.fields.game", ""),
    ({"messages.client.check.fields": {"id": TEXT}}, "messages.client.check.fields.id", ""),
    (
        {"messages.client.emoji.required": ["emojy"]},
        "messages.client.emoji.required",
        "the name of a field",
    ),
    (
        {"messages.client.join.fields": {}, "queues.friends": GONE, "queues.challenge": GONE},
        "messages.client.join.fields.queue",
        "found nothing",
    ),
    (
        {"messages.client.answer.fields.choice": TEXT},
        "messages.client.answer.fields.choice",
        "integer",
    ),
    (
        {"messages.client.join.fields.queue": {"type": "integer"}},
        "messages.client.join.fields.queue",
        "string",
    ),
    ({"messages.client.answer.required": ["round"]}, "messages.client.answer.required", "choice"),
    # The documentation of the server's messages must be JSON Schema about existing fields.
    ({"messages.server.pong.fields.server_ms": 3}, "messages.server.pong.fields.server_ms", "3"),
    (
        {"messages.server.pong.fields.server_ms": {"type": "int"}},
        "messages.server.pong.fields.server_ms",
        '"int"',
    ),
    (
        {"messages.server.pong.fields.server_ms": {"enum": [date(2020, 1, 2)]}},
        "messages.server.pong.fields.server_ms",
        "",
    ),
    (
        {"messages.server.pong.required": ["nope"]},
        "messages.server.pong.required",
        "the name of a field",
    ),
]


def title(edits):
    return " and ".join(
        f"{path}={'GONE' if value is GONE else value}"[:60] for path, value in edits.items()
    )


@pytest.mark.parametrize("edits, path, words", MISTAKES, ids=[title(row[0]) for row in MISTAKES])
def test_check_reports_a_mistake_once_with_line_path_and_expectation(file, edits, path, words):
    text, _ = changed(edits)
    said = check(file, text)
    assert said, "check reported no mistake"
    lines = said.split("\n")
    found = re.fullmatch(rf"{re.escape(str(file))}:(\d+): ([^:]+): found .+; expected .+", lines[0])
    assert found, said
    assert (path + ".").startswith(found[2] + ".") or (found[2] + ".").startswith(path + "."), said
    assert words in lines[0], said
    assert int(found[1]) == line_of(text, found[2]), said
    assert len(lines) == 1, said


SEVERAL = {
    "limits.connections": -5,
    "limits.conections": 3,
    "queues.party.rounds": "ten",
    "queues.rated.on_exit": GONE,
    "queues.rated.scoring": GONE,
    "users.fields.x": {"type": "string", "pattern": "("},
}


def test_check_reports_all_mistakes_at_once_in_the_order_of_lines(file):
    said = check(file, changed(SEVERAL)[0]).split("\n")
    found = [re.match(r".+?:(\d+): ([^:]+): ", line).groups() for line in said]
    assert sorted(path for _, path in found) == sorted(
        [
            "limits.connections",
            "limits.conections",
            "queues.party.rounds",
            "queues.rated.on_exit",
            "queues.rated.scoring",
            "users.fields.x.pattern",
        ]
    )
    assert [int(line) for line, _ in found] == sorted(int(line) for line, _ in found)


def test_a_mistake_of_form_does_not_hide_a_mistake_of_meaning(file):
    said = check(
        file,
        changed(
            {
                "limits.connections": -5,
                "leaderboards.new": {"field": "nope"},
                "messages.client.wave": {},
            }
        )[0],
    )
    assert all(
        path in said
        for path in ("limits.connections", "leaderboards.new.field", "messages.client.wave")
    )


NOT_A_SCHEMA = [  # text, the line, words of the message
    ("", 1, "found null"),
    ("# nothing\n", 1, "found null"),
    ("- users\n- queues\n", 1, 'found ["users", "queues"]'),
    ("hello", 1, 'found "hello"'),
    ("42", 1, "found 42"),
    ("title: [1, 2\nusers: 3\n", 2, "not YAML"),
    ("title: x\n\tusers: y\n", 2, "not YAML"),
    ("title: x\n  users: y\n", 2, "not YAML"),
    ("title: *x", 1, "not YAML: found undefined alias"),
    ("title: 'x", 1, "not YAML"),
    ("title: x\n---\ntitle: y\n", 2, "not YAML"),
    ("title: !python/object:os.system x", 1, "not YAML"),
    ("title: x\nusers: a\0b\n", 2, "not YAML"),
    ("title: x\nusers: \a\n", 2, "not YAML"),
    ("title: x\n? [a, b]\n: y\n", 2, ""),
    ("title: x\n{a: b}: y\n", 2, ""),
    ("title: x\nusers: 2020-99-99\n", 2, ""),
    ("title: x\nusers: !!int ten\n", 2, ""),
    ("title: x\nusers: " + "9" * 5000, 2, ""),
    ("title: {2020-01-01: x}", 1, ""),
    ("title: &a [*a]", 1, ""),
    ("users: &a {fields: *a}", 1, ""),
    ("title: " + "[" * 3000 + "]" * 3000, 1, ""),
    ("title: &a {x: 1, y: &b {x: 1}}\nusers: {<<: *b}\n", 1, ""),
]


@pytest.mark.parametrize("text, line, words", NOT_A_SCHEMA, ids=lambda value: str(value)[:24])
def test_a_file_that_is_not_a_schema_gets_a_message_with_a_line_and_no_traceback(
    file, text, line, words
):
    said = check(file, text)
    first = re.match(
        rf"{re.escape(str(file))}:(\d+): (not YAML: .+|.+: found .+; expected .+)", said
    )
    assert first and int(first[1]) == line and words in first[0], said


def test_a_duplicate_key_is_reported_with_the_line_of_the_second(file):
    lines = SHIPPED.split("\n")
    at = lines.index("  random:")
    said = check(
        file, "\n".join([*lines[: at + 1], "    rated: false", *lines[at + 1 :], "title: again"])
    )
    second = at + 1 + next(i for i, line in enumerate(lines[at:], 1) if line == "    rated: true")
    found = [
        re.fullmatch(rf"{file}:(\d+): ([^:]+): found (.+); expected .+", line).groups()
        for line in said.split("\n")
    ]
    # The file ends with a line break, and one line was added before it.
    assert [(int(line), path) for line, path, _ in found] == [
        (second, "queues.random.rated"),
        (len(lines) + 2, "title"),
    ]
    assert all("twice" in what for *_, what in found)


def test_line_numbers_are_right_with_comments_and_windows_line_ends(file):
    text = SHIPPED.replace("bad_messages: 20 ", "bad_messages: no ").replace("\n", "\r\n")
    line = 1 + next(i for i, line in enumerate(text.split("\r\n")) if "bad_messages: no" in line)
    assert check(file, text).startswith(
        f"{file}:{line}: limits.bad_messages: found false; expected type "
    )


OWN = """\
extends: shipped
title: Quizland
queues:
  rated: null
  party: {rounds: 5}
  blitz: {players: 1, rounds: 3, start_seconds: 1, answer_seconds: 5, \
reveal_seconds: 1, seat_seconds: 9,
          scoring: {correct: 10, speed: 0}}
sign_in: null
"""


def test_a_file_may_contain_only_what_differs_from_the_shipped_schema(file):
    assert check(file, OWN) == ""
    shipped = shipped_tree()
    queues = shipped["queues"]
    queues["party"]["rounds"] = 5
    del queues["rated"], shipped["sign_in"]
    queues["blitz"] = from_yaml(OWN)["queues"]["blitz"]
    assert trivia.read_schema(file) == shipped | {"title": "Quizland"}
    editor = json.loads(run("--json-schema").stdout)
    validator = jsonschema.Draft202012Validator(editor)
    assert validator.is_valid(from_yaml(OWN))
    assert not validator.is_valid(from_yaml(OWN.replace("rounds", "roundz")))


@pytest.mark.parametrize(
    "edit, mistake",
    [
        (
            ("shipped", "shiped"),
            '1: extends: found "shiped"; expected shipped, in a file of your own',
        ),
        (("rated: null", "ratd: null"), "4: queues.ratd: found null; expected rated?"),
        (("party: {rounds", "party: {roundz"), "5: queues.party.roundz: found an unknown key; "),
        (
            ("party: {rounds: 5", "party: {rounds: 0"),
            "5: queues.party.rounds: found 0; expected at",
        ),
        (
            ("party: {rounds: 5", "party: {match: null"),
            "5: queues.party.match: found nothing; expec",
        ),
    ],
)
def test_a_mistake_in_an_extending_file_is_reported_with_the_line_in_that_file(file, edit, mistake):
    assert check(file, OWN.replace(*edit)).startswith(f"{file}:{mistake}")


def test_a_schema_may_use_merge_keys_and_aliases(file):
    text = SHIPPED.replace("  random:\n", "  random: &random\n").replace(
        "  party:\n", "  blitz:\n    <<: *random\n    rounds: 3\n  party:\n"
    )
    assert check(file, text) == ""
    assert trivia.read_schema(file)["queues"]["blitz"] == shipped_tree()["queues"]["random"] | {
        "rounds": 3
    }


@pytest.mark.parametrize(
    "edits",
    [
        {"leaderboards": {}},
        {
            "users.fields.email": GONE,
            "users.required": ["username", "password"],
            "sign_in.recovery": GONE,
        },
        {"origins": GONE},
        {"origins": ["*"]},
        {"origins": ["null", "http://localhost:3000", "capacitor://localhost", "http://[::1]:80"]},
        {"origins": ["HTTPS://Play.Example.org:443"]},
        {"queues.random.players": {"min": 3, "max": 3}, "queues.random.fill_seconds": 5},
        {"queues.random.players": 1, "queues.random.rated": False, "queues.random.lives": 1},
        {"queues.party.total_seconds": 60},
        {"queues.friends.rated": False, "queues.friends.fill_seconds": 5},
        {"queues.friends.players": {"min": 1, "max": 8}, "queues.friends.wait_seconds": 60},
        {
            "queues.friends": GONE,
            "queues.challenge": GONE,
            "messages.client.begin": GONE,
            "messages.client.kick": GONE,
            "messages.client.lock": GONE,
            "messages.client.pass": GONE,
            "messages.client.join.fields.code": GONE,
            "messages.server.room": GONE,
        },
        {"users.fields.x": {"type": "integer", "maximum": -5}},
        {"users.fields.x": {"type": "number", "minimum": -3, "maximum": -1, "default": -2}},
        {"users.fields.x": {"type": "string", "minLength": 300, "maxLength": 400}},
        {"messages.client.wave": {"relay": "opponents"}},
        {"title": GONE, "description": GONE},
    ],
    ids=lambda edits: ", ".join(edits),
)
def test_an_unusual_schema_is_accepted_and_documented(file, edits):
    text, tree = changed(edits)
    assert check(file, text) == ""
    documents_of(tree)


def test_a_generated_name_starts_with_a_first_word_whatever_the_order_of_the_lists():
    tree = trivia.read_schema(ROOT / "schema.yaml")
    names = tree["sign_in"]["names"]
    turned = {"second": names["second"], "first": names["first"]}
    schema = trivia.Schema(tree | {"sign_in": tree["sign_in"] | {"names": turned}})
    first, second, _ = re.split("[ _.-]", trivia.Names(schema, None).new())
    assert first in names["first"] and second in names["second"]


def test_a_whole_number_with_a_decimal_point_is_read_as_an_integer(file):
    text, _ = changed(
        {"queues.party.rounds": 3.0, "queues.party.players": 2.0, "limits.connections": 100.0}
    )
    # JSON Schema accepts 3.0 as an integer, but range(3.0) would fail during a game.
    assert not check(file, text)
    tree = trivia.read_schema(file)
    party = tree["queues"]["party"]
    numbers = party["rounds"], party["players"], tree["limits"]["connections"]
    assert [type(number) for number in numbers] == [int, int, int]


def test_limits_with_a_default_may_be_left_out(file):
    tree = shipped_tree()
    for name, rule in trivia.LIMITS_WITH_DEFAULT.items():
        assert tree["limits"].pop(name) == rule["default"]
    file.write_text(as_yaml(tree), "utf-8")
    limits = trivia.Schema(trivia.read_schema(file)).limits
    assert (limits.pair_games, limits.early_exit_seconds) == (10, 5)


# ---- numbers


def numbers_of(schema, path=()):
    """Yields (path, rule) of every number that a schema allows; '*' stands for any name."""
    kinds = schema.get("type", ())
    if {"integer", "number"} & ({kinds} if isinstance(kinds, str) else set(kinds)):
        yield path, schema
    for part in schema.get("allOf", ()):
        yield from numbers_of(part, path)
    for name, part in schema.get("properties", {}).items():
        yield from numbers_of(part, (*path, name)) if isinstance(part, dict) else ()
    for key, name in (("additionalProperties", "*"), ("items", "0")):
        if isinstance(schema.get(key), dict):
            yield from numbers_of(schema[key], (*path, name))


NUMBERS = {".".join(path): rule for path, rule in numbers_of(trivia.FILE_SCHEMA)}


def test_every_number_in_the_schema_has_a_maximum():
    limits = trivia.LIMITS | trivia.LIMITS_WITH_DEFAULT
    assert {f"limits.{name}" for name in limits} < NUMBERS.keys()
    assert [path for path, rule in NUMBERS.items() if "maximum" not in rule] == []
    assert max(rule["maximum"] for rule in NUMBERS.values()) == 2**53


def test_a_huge_number_anywhere_in_the_file_is_a_mistake(file):
    tree = shipped_tree()
    tree["users"]["fields"]["rating"] |= {"minimum": 0, "maximum": 5000, "examples": [3]}
    tree["messages"]["client"]["emoji"]["fields"]["emoji"] |= {"minLength": 1, "maxLength": 9}
    huge = set()
    for path in list(paths(tree)):
        *above, last = path or (None,)
        part = functools.reduce(lambda part, key: part[key], above, tree)
        if path and type(part[last]) in (int, float) and path[:2] != ("messages", "server"):
            part[last] = 10**17
            huge.add(".".join(map(str, path)))
    said = check(file, as_yaml(tree))
    found = {line.split(": ")[1] for line in said.split("\n") if "expected at most" in line}
    assert huge - found == set()
    assert len(found) > 60


# ---- dates and times

RFC_3339 = [  # format, text, whether RFC 3339 allows it
    ("date", "2024-02-29", True),
    ("date", "0000-02-29", True),
    ("date", "9999-12-31", True),
    ("date", "2023-02-29", False),
    ("date", "1900-02-29", False),
    ("date", "2024-00-10", False),
    ("date", "2024-13-01", False),
    ("date", "20240229", False),
    ("date", "2024-W09-4", False),
    ("date", "2024-060", False),
    ("date", "2024-2-9", False),
    ("date", "2024-02-29T00:00:00Z", False),
    ("date", " 2024-02-29", False),
    ("date", "٢٠٢٤-٠٢-٢٩", False),
    ("date", "", False),
    ("date-time", "2024-02-29T20:15:00Z", True),
    ("date-time", "2024-02-29t20:15:00z", True),
    ("date-time", "2024-02-29T20:15:00.5z", True),
    ("date-time", "2024-02-29T20:15:00.123456789012Z", True),
    ("date-time", "2024-02-29T20:15:00+05:45", True),
    ("date-time", "2024-02-29T20:15:00-00:00", True),
    ("date-time", "0000-01-01T00:00:00+23:59", True),
    ("date-time", "9999-12-31T23:59:59-23:59", True),
    ("date-time", "2016-12-31T23:59:60Z", True),
    ("date-time", "2017-01-01T00:59:60.25+01:00", True),
    ("date-time", "2015-06-30T15:59:60-08:00", True),
    ("date-time", "2016-12-31T23:58:60Z", False),
    ("date-time", "2016-12-30T23:59:60Z", False),
    ("date-time", "2016-12-31T23:59:60+01:00", False),
    ("date-time", "2024-02-29T20:15:61Z", False),
    ("date-time", "2024-02-29T24:00:00Z", False),
    ("date-time", "2024-02-29T20:60:00Z", False),
    ("date-time", "2023-02-29T20:15:00Z", False),
    ("date-time", "2024-02-29T20:15:00", False),
    ("date-time", "2024-02-29T20:15Z", False),
    ("date-time", "2024-02-29 20:15:00Z", False),
    ("date-time", "2024-02-29T20:15:00.Z", False),
    ("date-time", "2024-02-29T20:15:00,5Z", False),
    ("date-time", "2024-02-29T20:15:00+0545", False),
    ("date-time", "2024-02-29T20:15:00+05", False),
    ("date-time", "2024-02-29T20:15:00+24:00", False),
    ("date-time", "2024-02-29T20:15:00+05:60", False),
    ("date-time", "2024-02-29T20:15:00\u221205:45", False),
    ("date-time", "20240229T201500Z", False),
    ("date-time", "2024-02-29", False),
]


@pytest.mark.parametrize("kind, text, valid", RFC_3339)
def test_dates_and_times_follow_rfc_3339(kind, text, valid):
    form = trivia.Form({"when": TEXT | {"format": kind}})
    if valid:
        assert form.load({"when": text}) == {"when": text}
        return
    with pytest.raises(marshmallow.ValidationError) as refusal:
        form.load({"when": text})
    assert "RFC 3339, such as 2026-" in refusal.value.messages["when"][0]


# ---- random YAML ---------------------------------------------------------------------------------

FUZZ = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],  # shrinking a failure takes minutes
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["", "string", "(", "a{9}", "username", "opponents", -1, 2.0])
)
KEYS = SCALARS | st.sampled_from(
    ["type", "default", "fields", "relay", "required", "min", "max", "field", "enum"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
FRAGMENTS = st.lists(
    st.sampled_from(
        list("-?:,[]{}#&*!|>'\"%@ \n\t\r\0x0._~<")
        + [
            "users",
            "fields",
            "<<",
            "!!int",
            "!!map",
            "!!set",
            "!!binary",
            "&a",
            "*a",
            ": ",
            "\n  ",
            "2020-01-01",
            "0x_",
            "1e9",
            ".inf",
            "---",
            "...",
            "= ",
            "\ufeff",
            "\u2028",
            "é",
            "users: ",
            "title: ",
            "queues:\n  a: ",
        ]
    ),
    max_size=30,
).map("".join)


def documents_of(tree):
    """Makes the documents of a schema, as the app does when it starts. They must be JSON."""
    schema = trivia.Schema(tree)
    return [
        json.loads(json.dumps(make(schema), allow_nan=False))
        for make in (trivia.openapi, trivia.asyncapi)
    ]


@settings(max_examples=120, **FUZZ)
@given(text=FRAGMENTS)
def test_any_text_gets_a_clear_message(file, text):
    assert re.match(rf"{re.escape(str(file))}(:\d+)?: .+", check(file, text))


def paths(tree, path=()):
    """Yields every path of a tree."""
    yield path
    for key in (
        tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    ):
        yield from paths(tree[key], (*path, key))


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_any_value_in_the_schema_gets_a_clear_message_or_valid_documents(file, data):
    tree = from_yaml(SMALL)
    path = data.draw(st.sampled_from(list(paths(tree))[1:]))
    part = tree
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = data.draw(VALUES)
    text = as_yaml(tree)
    said = check(file, text)
    if said:
        assert all(
            re.match(rf"{re.escape(str(file))}(:\d+)?: .+", line) for line in said.split("\n")
        ), said
    else:
        documents_of(trivia.read_schema(file))


def small_schema():
    """Returns a smaller copy of the shipped schema, for speed, as YAML."""
    tree = shipped_tree()
    tree["queues"] = {"rated": tree["queues"]["rated"], "party": tree["queues"]["party"]}
    for spec in tree["messages"]["server"].values():
        spec.pop("description")
    return as_yaml(tree)


SMALL = small_schema()


# ---- the server with a wrong schema --------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [None, [sys.executable, "trivia.py", "--port", "0"]], ids=["uvicorn", "trivia.py"]
)
def test_the_server_refuses_a_wrong_schema_with_the_message_of_check(make_server, command):
    server = make_server(changed(SEVERAL)[0], command, start=False)
    server.start(wait=False)
    assert server.process.wait(40) != 0
    assert server.log.strip() == check(server.data / "schema.yaml")
    assert not (server.data / "d" / "redis.sock").exists()


def test_the_server_refuses_to_start_when_the_bank_lacks_questions_for_a_queue(make_server):
    text = changed({"queues.party.categories": ["Astrology"]})[0]
    server = make_server(text, start=False)
    server.start(wait=False)
    assert server.process.wait(40) != 0
    assert (
        "queues.party: found 0 questions of its categories and difficulties in the bank"
        in server.log
        and "Traceback" not in server.log
    )


def test_check_counts_imported_questions(make_server, tmp_path):
    text = changed({"queues.party.categories": ["Astrology"], "queues.party.rounds": 1})[0]
    server = make_server(text, start=False)
    row = {"category": "Astrology", "difficulty": "hard", "question": "Which sign comes first?"}
    row |= {"correct_answer": "Aries", "incorrect_answers": ["Leo"]}
    (tmp_path / "new.json").write_text(json.dumps([row]))

    def command(*words):
        return trivia_py(*words, env=server.env)

    found = command("check").stderr.splitlines()
    assert [line.split(": ")[1] for line in found] == ["queues.party", "queues.party.categories.0"]
    assert not server.data.joinpath("d").exists()  # check creates no files
    assert command("import", str(tmp_path / "new.json")).returncode == 0
    assert command("check").returncode == 0
    server.start()


def test_origins_are_compared_as_browsers_send_them():
    tree = changed({"origins": ["HTTPS://Play.Example.org:443", "http://[0:0::1]:080"]})[1]
    assert trivia.Schema(tree).origins == ["https://play.example.org", "http://[::1]"]
    assert trivia.Schema(changed({"origins": ["https://a.example", "*"]})[1]).origins == ["*"]


# ---- the server with another schema --------------------------------------------------------------
# Only schema.yaml changes between the two starts.

NEW_FIELDS = {
    "color": {
        "type": "string",
        "enum": ["red", "green", "blue"],
        "default": "green",
        "description": "Of the shirt.",
    },
    "country": {"type": "string", "pattern": "^[A-Z]{2}$", "description": "ISO 3166 code."},
    "motto": {"type": "string", "maxLength": 40, "default": "hello"},
    "born": {"type": "string", "format": "date"},
    "level": {"type": "integer", "minimum": 1, "maximum": 99, "default": 1},
    "latitude": {"type": "number", "minimum": -90, "maximum": 90, "default": 0},
    "steps": {"type": "integer"},
    "newsletter": {"type": "boolean", "default": True},
    "secret": {"type": "string", "private": True, "default": ""},
    "phone": {"type": "string", "maxLength": 20, "unique": True, "private": True},
    "shoe": {"type": "integer", "default": 40},
}
DEFAULTS = {name: rule.get("default") for name, rule in NEW_FIELDS.items()}
BLITZ = {
    "description": "Three at once.",
    "players": {"min": 2, "max": 3},
    "fill_seconds": 60,
    "match": "fifo",
    "wait_seconds": 90,
    "scoring": {"correct": 7, "speed": 0},
    "rated": False,
    "on_exit": "continue",
    "seat_seconds": 9,
}
WAVE = {
    "description": "Waves.",
    "relay": "opponents",
    "required": ["strength"],
    "fields": {
        "strength": {"type": "integer", "minimum": 1, "maximum": 5},
        "note": {"type": "string", "maxLength": 10},
    },
}


def grow(tree):
    """Edits schema.yaml: the tests below check the effect."""
    tree["limits"]["name_hold_days"] = 0
    tree["users"]["fields"] |= NEW_FIELDS
    tree["leaderboards"] |= {
        "veterans": {"field": "games", "description": "The most seasoned."},
        "climbers": {"field": "rating", "period": "day"},
    }
    tree["queues"]["blitz"] = BLITZ | FAST | {"rounds": 2}
    tree["messages"]["client"] |= {"wave": WAVE, "nod": {"relay": "opponents"}}


@pytest.fixture(scope="module")
def grown():
    """A server that was restarted with an extended schema, and players from before the restart.

    `old` are two players who have played. `odd` has a value that the new schema does not allow.
    """
    from conftest import Server

    server = Server(
        edited_schema(lambda tree: tree["users"]["fields"].update(shoe={"type": "string"}))
    )
    try:
        server.start()
        old, odd = [server.register() for _ in range(2)], server.register(shoe="wide")
        play_all([server.phone(session=session) for session in old])
        server.stop()
        (server.data / "schema.yaml").write_text(edited_schema(grow), "utf-8")
        server.start()
        yield types.SimpleNamespace(
            server=server,
            old=old,
            odd=odd,
            documents={
                name: server.http("GET", f"/docs/{name}.json").json
                for name in ("openapi", "asyncapi")
            },
        )
    finally:
        server.close()


@pytest.mark.parametrize(
    "pattern", ["^([A-Za-z]+ ?)+$", "^(a|a)*$", "^(a*)*$", "(a?){30}a{30}!!", "^(a|b|ab)*c$"]
)
def test_no_pattern_and_text_block_the_worker(pattern):
    form = trivia.Form({"x": TEXT | {"pattern": pattern, "maxLength": 4000}})
    for length in (24, 4000):  # a backtracking engine takes seconds even for the first
        began = time.process_time()
        with pytest.raises(marshmallow.ValidationError, match="Must match"):
            form.load({"x": "a" * (length - 1) + "!"})
        assert time.process_time() - began < 0.5


def test_a_text_that_is_too_long_is_not_matched_with_the_pattern():
    form = trivia.Form({"x": TEXT | {"pattern": "^b$", "maxLength": 3}})
    with pytest.raises(marshmallow.ValidationError) as refused:
        form.load({"x": "aaaa"})
    assert len(refused.value.messages["x"]) == 1
    assert "length" in refused.value.messages["x"][0].lower()


GOOD = [
    ("color", "blue"),
    ("country", "DE"),
    ("motto", "héllo wörld 🎉"),
    ("motto", ""),
    ("born", "2001-02-28"),
    ("level", 99),
    ("level", 1),
    ("latitude", 52.5),
    ("latitude", -90),
    ("latitude", 52.5200066),
    ("steps", -12345678901),
    ("newsletter", False),
    ("newsletter", True),
    ("secret", "x"),
    ("phone", ""),
]
BAD = [
    ("color", "black"),
    ("color", ""),
    ("color", 1),
    ("color", None),
    ("country", "DEU"),
    ("country", "DE\n"),
    ("country", "de"),
    ("motto", "x" * 41),
    ("motto", "a\0b"),
    ("motto", ["x"]),
    ("born", "2001-02-30"),
    ("born", "yesterday"),
    ("level", 0),
    ("level", 100),
    ("level", 1.5),
    ("level", "5"),
    ("level", True),
    ("latitude", 90.01),
    ("latitude", "1"),
    ("latitude", False),
    ("steps", 2**53 + 1),
    ("steps", "1"),
    ("newsletter", 1),
    ("newsletter", "true"),
    ("newsletter", None),
    ("phone", "1" * 21),
    ("unheard", "of"),
]


def player_of(server, session, path="/users/me"):
    answer = server.http("GET", path, token=session["token"])
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.parametrize("name, value", GOOD, ids=repr)
def test_a_new_field_is_accepted_stored_and_served(grown, name, value):
    server = grown.server
    session = server.register(**{name: value})
    assert session["user"][name] == value and type(session["user"][name]) in (type(value), float)
    assert player_of(server, session) == session["user"] | DEFAULTS | {"shoe": 40, name: value}
    other = server.register()
    changed = server.http("PATCH", "/users/me", {name: value}, other["token"])
    assert (changed.status, changed.json[name]) == (200, value)
    seen = server.http("GET", f"/users/{other['user']['username']}").json
    assert seen.get(name, "not shown") == (
        "not shown" if NEW_FIELDS[name].get("private") else value
    )


@pytest.mark.parametrize("name, value", BAD, ids=lambda value: repr(value)[:20])
def test_a_new_field_refuses_values_that_break_its_rule(grown, name, value):
    server, new = grown.server, unique_name()
    body = {
        "username": new,
        "email": f"{new}@example.org",
        "password": "correct horse",
        name: value,
    }
    assert name in server.http("POST", "/auth/register", body).refused(422, "invalid")["errors"]
    assert server.http("GET", f"/users/{new}").status == 404
    old = grown.old[0]
    before = player_of(server, old)
    problem = server.http("PATCH", "/users/me", {name: value}, old["token"]).refused(422, "invalid")
    assert list(problem["errors"]) == [name]
    assert player_of(server, old) == before


def test_earlier_users_get_the_defaults_of_new_fields_and_keep_their_values(grown):
    for old in grown.old:
        user = player_of(grown.server, old)
        assert user == old["user"] | DEFAULTS | {
            key: user[key] for key in ("wins", "games", "rating")
        }
        assert user["games"] == 1
        shown = grown.server.http("GET", f"/users/{user['username']}").json
        assert shown == {
            key: value
            for key, value in user.items()
            if key not in ("created_at", "email", "email_confirmed", "secret", "phone", "zone")
        }


def test_a_stored_value_that_does_not_fit_the_new_type_is_replaced_by_the_default(grown):
    assert player_of(grown.server, grown.odd)["shoe"] == 40  # it was a string, "wide"


def test_a_player_can_change_a_field_back_to_its_default(grown):
    session = grown.server.register(color="red", level=7, newsletter=False, motto="mine")
    back = {"color": "green", "level": 1, "newsletter": True, "motto": "hello"}
    assert grown.server.http("PATCH", "/users/me", back, session["token"]).status == 200
    assert back.items() <= player_of(grown.server, session).items()
    kept = grown.server.redis.hgetall("user:{" + session["token"][:12] + "}")
    # A default is not stored, as it may change.
    assert "username" in kept and not back.keys() & kept.keys()


def test_a_new_unique_field_is_unique_in_any_letter_case(grown):
    server, number = grown.server, unique_name()
    session = server.register(phone=number)
    name = unique_name()
    again = {
        "username": name,
        "email": f"{name}@example.org",
        "password": "correct horse",
        "phone": number.upper(),
    }
    assert list(
        server.http("POST", "/auth/register", again).refused(409, "phone_taken")["errors"]
    ) == ["phone"]
    other = server.register()

    def change(session, phone):
        body = {"phone": phone, "password": "correct horse"}
        return server.http("PATCH", "/users/me", body, session["token"])

    change(other, number).refused(409, "phone_taken")
    assert player_of(server, other)["phone"] is None
    for body in ({"phone": number}, {"login": number}):
        signed_in = server.http("POST", "/auth/login", body | {"password": "correct horse"})
        assert (
            signed_in.status == 200
            and signed_in.json["user"]["username"] == session["user"]["username"]
        )
    assert change(session, unique_name()).status == 200
    assert change(other, number).status == 200
    # An empty value claims nothing.
    assert server.http("POST", "/auth/register", again | {"phone": ""}).status == 201


def test_private_fields_are_shown_only_to_their_owner(grown):
    server = grown.server
    owner = server.register(secret="s3cret", phone=unique_name())
    assert player_of(server, owner)["secret"] == "s3cret"
    shown = server.http(
        "GET", f"/users/{owner['user']['username']}", token=server.register()["token"]
    ).json
    assert not {"secret", "phone", "email"} & shown.keys()
    phones = [server.phone(session=owner, queue="random"), server.phone()]
    players = phones[1].expect("start")["players"]
    phones[1].send("check")
    for people in (players, phones[1].expect("update")["players"]):
        assert {person["username"] for person in people} == {phone.name for phone in phones}
        assert all(person.keys() == shown.keys() for person in people)
    for phone in phones:
        phone.close()


def board(grown, name):
    answer = grown.server.http("GET", f"/leaderboards/{name}?limit=100")
    assert answer.status == 200 and answer.json["leaderboard"] == name, answer.body
    return {entry["username"]: entry for entry in answer.json["entries"]}, answer.json


def test_a_new_leaderboard_follows_its_field(grown):
    server = grown.server
    sessions = [server.register() for _ in range(3)]
    names = [session["user"]["username"] for session in sessions]
    # A player without a finished game is not listed.
    assert not set(names) & board(grown, "veterans")[0].keys()
    phones = [server.phone(session=session, queue="blitz") for session in sessions]
    play_all(phones)
    entries, page = board(grown, "veterans")
    assert [entries[name]["value"] for name in names] == [1, 1, 1] and page["period"] is None
    for phone in phones[:2]:
        phone.send("join", queue="random")
    play_all(phones[:2])
    entries, _ = board(grown, "veterans")
    assert [entries[name]["value"] for name in names] == [2, 2, 1]
    ranks = [entries[name]["rank"] for name in names]
    assert max(ranks[:2]) < ranks[2]


def test_a_new_leaderboard_with_a_period_counts_from_the_default_of_its_field(grown):
    phones = grown.server.pair()
    end = play_all(phones)[0]
    entries, page = board(grown, "climbers")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", page["period"])
    # These players started with the default rating. A gain of zero is not listed.
    for row in end["ranking"]:
        listed = entries.get(row["player"], {"value": 0})["value"]
        assert listed == pytest.approx(row["rating_change"], abs=0.01)


def test_a_new_leaderboard_includes_earlier_players(grown):
    entries, _ = board(grown, "veterans")
    assert {session["user"]["username"] for session in grown.old} <= entries.keys()


def test_a_new_queue_is_listed_with_its_rules_and_can_be_played(grown):
    server = grown.server
    listed = {queue["name"]: queue for queue in server.http("GET", "/queues").json["queues"]}
    shipped = shipped_tree()["queues"]
    assert list(listed) == [*shipped, "blitz"]
    assert listed["blitz"].items() >= (BLITZ | FAST | {"rounds": 2}).items()
    phones = [server.phone(queue="blitz") for _ in range(3)]
    ends = play_all(phones)
    assert (
        ends[0]["ranking"] == ends[1]["ranking"] == ends[2]["ranking"]
        and len(ends[0]["ranking"]) == 3
    )
    assert all("rating" not in row and row["score"] in (0, 7, 14) for row in ends[0]["ranking"])
    start = next(frame for frame in phones[0].frames if frame["type"] == "start")
    assert (start["queue"], start["rounds"], len(start["players"])) == ("blitz", 2, 3)
    assert all(player["level"] == 1 and player["color"] == "green" for player in start["players"])
    with pytest.raises(InvalidStatus) as refused:
        server.phone(queue="blitzz")
    assert refused.value.response.status_code == 404 and b"blitz" in refused.value.response.body


def test_a_new_message_is_validated_and_relayed_to_the_opponents(grown):
    ann, bob = grown.server.pair()
    question = bob.expect("question")
    ann.expect("question")
    for fields, wrong in (
        ({}, "strength"),
        ({"strength": 6}, "strength"),
        ({"strength": "3"}, "strength"),
        ({"strength": 3, "note": "x" * 11}, "note"),
        ({"strength": 3, "player": "me"}, "player"),
        ({"strength": 3, "seq": 1}, "seq"),
        ({"strength": 3, "game": question["game"]}, "game"),
    ):
        assert list(ann.refused("invalid_message", "wave", **fields)["errors"]) == [wrong]
    ann.send("wave", strength=3, note='"}\\ é🎉', id=7)
    assert bob.receive() == {
        "type": "wave",
        "game": question["game"],
        "seq": question["seq"] + 1,
        "player": ann.name,
        "strength": 3,
        "note": '"}\\ é🎉',
    }
    ann.send("nod")
    assert bob.receive() == {
        "type": "nod",
        "game": question["game"],
        "seq": question["seq"] + 2,
        "player": ann.name,
    }
    ann.send("ping", client_ms=1)
    assert ann.receive()["type"] == "pong"  # the sender received nothing else before
    idle = grown.server.phone(queue="rated")
    idle.expect("queued")
    idle.refused("wrong_state", "nod")
    for phone in (ann, bob, idle):
        phone.close()


def test_new_fields_boards_queues_and_messages_are_documented(grown):
    openapi, asyncapi = grown.documents["openapi"], grown.documents["asyncapi"]
    schemas = openapi["components"]["schemas"]
    for form in ("NewUser", "UserChanges"):
        for name, rule in NEW_FIELDS.items():
            shown = schemas[form]["properties"][name]
            kept = rule.keys() - {*trivia.OWN_WORDS, "default", "description"}
            assert {key: shown[key] for key in kept} == {key: rule[key] for key in kept}
            assert rule.get("description", "") in shown.get("description", "")
            # A default in a request would make its field required in generated types.
            assert "default" not in shown
            if rule.get("default") is not None:
                assert trivia.dumps(rule["default"]) in shown["description"]
    assert set(NEW_FIELDS) <= schemas["User"]["properties"].keys()
    assert set(NEW_FIELDS) & schemas["Player"]["properties"].keys() == set(NEW_FIELDS) - {
        "secret",
        "phone",
    }
    assert "phone" in schemas["Login"]["properties"]
    parameter = openapi["paths"]["/leaderboards/{name}"]["get"]["parameters"][0]
    assert parameter["schema"]["enum"] == ["rating", "wins", "daily", "veterans", "climbers"]
    channel = asyncapi["channels"]["game_blitz"]
    assert channel["address"] == "/game/blitz" and channel["description"] == BLITZ["description"]
    assert {"client.wave", "server.wave", "client.nod", "server.nod"} <= channel["messages"].keys()
    sent, relayed = (
        asyncapi["components"]["messages"][f"{side}.wave"]["payload"]
        for side in ("client", "server")
    )
    assert (
        sent["properties"].items() >= WAVE["fields"].items()
        and sent["additionalProperties"] is False
    )
    assert set(relayed["required"]) == {"type", "game", "seq", "player", "strength"}
    operations = {
        action: asyncapi["operations"][f"blitz_{action}"]["messages"]
        for action in ("receive", "send")
    }
    for action, side in (("receive", "client"), ("send", "server")):
        assert {"$ref": f"#/channels/game_blitz/messages/{side}.wave"} in operations[action]


def test_an_earlier_user_without_a_newly_required_field_fits_the_documents():
    _, tree = changed(
        {
            "users.fields.team": {"type": "string", "maxLength": 20},
            "users.required": ["username", "email", "password", "team"],
        }
    )
    schema = trivia.Schema(tree)
    for name, view in (
        (
            "User",
            schema.own_view({"username": "old", "email": "a@example.org"})
            | {"created_at": 1, "email_confirmed": False},
        ),
        ("Player", schema.public_view({"username": "old"})),
    ):
        jsonschema.Draft202012Validator(trivia.components(schema)[name]).validate(view)
