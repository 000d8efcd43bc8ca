"""Accounts: registration, sessions, passwords, changes, erasure, export, games, leaderboards."""

import asyncio
import contextlib
import functools
import http.client
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
import types
import unicodedata
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import argon2
import psutil
import pytest
import redis

import forks
from conftest import (
    PASSWORD,
    ROOT,
    Answer,
    Phone,
    Server,
    at_once,
    edited_schema,
    loop_seconds,
    play_all,
    unique_name,
    wait_until,
)

sys.path.insert(0, str(ROOT))
import trivia  # noqa: E402

WRONG = "wrong horse"
_addresses = itertools.count(1)


def small_limits(tree):
    tree["limits"] |= {"sessions_per_user": 3, "name_hold_days": 0}
    tree["queues"]["rated"]["window"] = 10_000


@pytest.fixture(scope="module")
def small():
    """A server with small limits for the tests of this file. Each test leaves the queues empty."""
    running = Server(edited_schema(small_limits, rounds=1))
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture(scope="module")
def crowd():
    """A server with two workers, on which no test plays a game."""
    running = Server(workers=2)
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture(scope="module")
def resident(server):
    """A player whom no test may change."""
    return server.register(avatar="https://example.org/resident")


# -- helpers


def raw_redis(server):
    return redis.Redis(unix_socket_path=str(server.data / "d" / "redis.sock"), driver_info=None)


def store(server):
    """Returns what Redis holds about players: {key: content} in bytes.

    Leaves out the question bank. Leaves out events and chores too, as workers delete them later.
    """
    link = raw_redis(server)
    apart = b"{bank}", b"{events}", b"{chores}"
    keys = [key for key in link.keys() if not key.endswith(apart)]
    with link.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.type(key)
        read = {
            b"hash": pipe.hgetall,
            b"string": pipe.get,
            b"none": pipe.get,
            b"zset": lambda key: pipe.zrange(key, 0, -1, withscores=True),
        }
        for key, kind in zip(keys, pipe.execute()):
            read[kind](key)
        return dict(zip(keys, pipe.execute()))


def mentions(server, *words):
    """Returns the keys whose name or content contains one of the words."""
    return [
        key.decode()
        for key, content in store(server).items()
        if any(word.lower().encode() in repr((key, content)).lower().encode() for word in words)
    ]


def uid_of(session):
    return session["token"][:12]


def email_of(session):
    return session["user"]["email"]


def stranger():
    """Returns an address on loopback that no test has used yet."""
    n = next(_addresses)
    return f"127.{os.getpid() % 200 + 20}.{n // 250}.{n % 250 + 1}"


def call_from(server, address, method, path, body=None, token=None):
    """Sends a request from an address."""
    link = http.client.HTTPConnection(
        "127.0.0.1", server.port, timeout=30, source_address=(address, 0)
    )
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        link.request(method, path, json.dumps(body), headers)
        response = link.getresponse()
        return Answer(response.status, response.headers, response.read().decode())
    finally:
        link.close()


def login(server, name, password=PASSWORD, address="127.0.0.1"):
    return call_from(server, address, "POST", "/auth/login", {"login": name, "password": password})


def me(server, token):
    return server.http("GET", "/users/me", token=token)


def signed_out(server, *tokens):
    for token in tokens:
        me(server, token).refused(401, "not_authenticated")
    return True


def win(server, winner, loser, queue="random"):
    """Plays a game that the loser leaves. Returns its id once the result is applied."""
    phones = [Phone(server, session, queue) for session in (winner, loser)]
    game, _ = (phone.expect("start")["game"] for phone in phones)
    phones[0].expect("question")
    phones[0].send("answer", round=1, choice=0)
    phones[1].expect("answered")
    phones[1].send("leave")
    end = phones[0].expect("end")
    assert (end["reason"], end["ranking"][0]["player"]) == ("forfeit", phones[0].name)
    for phone in phones:
        phone.close()
    wait_until(lambda: server.redis.zscore(trivia.Keys.history(uid_of(loser)), game))
    return game


def typed(name):
    """Returns the digest of a typed name, as it stands in the keys of allowances."""
    return trivia.digest(trivia.fold(name), 9)


def tries_key(name, address):
    """Returns the key of the allowance for sign-ins by a name from an address."""
    return trivia.Keys.limit("login", f"{typed(name)}:{trivia.address_digest(address)}")


def session_key(session):
    """Returns the key of the allowance for checks of the password within a session."""
    secret = trivia.digest(session["token"][12:], 6)
    return trivia.Keys.limit("session", f"{uid_of(session)}:{secret}")


def use_up(server, key, ms=10_000_000):
    """Uses up an allowance."""
    server.redis.set(key, int(time.time() * 1000) + ms, px=ms)


def board(server, name, query="", token=None):
    answer = server.http("GET", f"/leaderboards/{name}{query}", token=token)
    assert answer.status == 200, answer.body
    return answer.json


def listed(server, name):
    return {
        entry["username"]: entry["value"] for entry in board(server, name, "?limit=100")["entries"]
    }


# -- registration


def test_a_registration_signs_the_player_in(server):
    name = unique_name()
    session = server.register(name, avatar="https://example.org/a.png")
    assert session["user"] == me(server, session["token"]).json
    assert (
        session["user"].items()
        >= {
            "username": name,
            "email": f"{name}@example.org",
            "wins": 0,
            "games": 0,
            "rating": 1500,
            "avatar": "https://example.org/a.png",
        }.items()
    )
    assert "password" not in session["user"]
    assert abs(session["expires_at"] - time.time() - 30 * 86400) < 60
    assert abs(session["user"]["created_at"] - time.time()) < 60


@pytest.mark.parametrize("variant", [str, str.upper, str.title, str.swapcase])
def test_a_username_is_taken_in_any_letter_case(server, resident, variant):
    name = resident["user"]["username"]
    problem = server.http(
        "POST",
        "/auth/register",
        {"username": variant(name), "email": f"{unique_name()}@example.org", "password": PASSWORD},
    ).refused(409, "username_taken")
    assert set(problem["errors"]) == {"username"}


@pytest.mark.parametrize(
    "mine, theirs",
    [
        ("plain", "PLAIN"),
        ("plain", "\uff50lain"),
        ("kelvin", "\u212aelvin"),
        ("ren\u00e9", "REN\u00c9"),
        ("stra\u00dfe", "STRASSE"),
        ("nos", "no\u017f"),
    ],
)
def test_an_email_is_taken_in_any_letter_case_and_unicode_form(server, mine, theirs):
    tail = f"-{unique_name()}@example.org"
    server.register(email=mine + tail)
    problem = server.http(
        "POST",
        "/auth/register",
        {"username": unique_name(), "email": theirs + tail.upper(), "password": PASSWORD},
    ).refused(409, "email_taken")
    assert set(problem["errors"]) == {"email"}


def test_a_refusal_names_both_values_that_are_taken(server, resident):
    taken = resident["user"]
    problem = server.http(
        "POST",
        "/auth/register",
        {"username": taken["username"], "email": taken["email"], "password": WRONG},
    ).refused(409, "username_taken")
    assert set(problem["errors"]) == {"username", "email"}


@pytest.mark.parametrize("clash", ["username", "email"])
def test_a_refused_registration_leaves_the_other_value_free(server, resident, clash):
    taken, fresh = resident["user"], unique_name()
    body = {"username": fresh, "email": f"{fresh}@example.org", "password": PASSWORD}
    server.http("POST", "/auth/register", body | {clash: taken[clash]}).refused(
        409, f"{clash}_taken"
    )
    assert not mentions(server, fresh)
    assert server.http("POST", "/auth/register", body).status == 201


@pytest.mark.parametrize(
    "field, value",
    [
        ("username", "ab"),
        ("username", "a" * 21),
        ("username", "a b c"),
        ("username", "\uff41nna"),
        ("username", "anna\n"),
        ("username", "an/na"),
        ("username", ""),
        ("username", None),
        ("username", 5),
        ("username", ["anna"]),
        ("email", "anna"),
        ("email", "anna@localhost"),
        ("email", "a@b@example.org"),
        ("email", "anna@example.org\n"),
        ("email", "an na@example.org"),
        ("email", "a" * 250 + "@example.org"),
        ("email", "@example.org"),
        ("email", None),
        ("password", "1234567"),
        ("password", "x" * 129),
        ("password", "with\0nul...."),
        ("password", 12345678),
        ("avatar", "javascript:alert(1)"),
        ("avatar", "ftp://example.org/a"),
        ("avatar", "https://a.org/" + "a" * 200),
        ("avatar", 'https://example.org/"onload='),
        ("avatar", "//example.org/a"),
        ("wins", 5),
        ("rating", 3000),
        ("games", 1),
        ("created_at", 1),
        (":sigma", "1"),
        ("session:x", "1"),
        ("nonsense", True),
    ],
)
def test_a_registration_with_an_invalid_field_is_refused(server, field, value):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD} | {field: value}
    problem = server.http("POST", "/auth/register", body).refused(422, "invalid")
    assert set(problem["errors"]) == {field} and all(problem["errors"][field])
    assert not mentions(server, name)


@pytest.mark.parametrize("missing", ["username", "email", "password"])
def test_a_registration_without_a_required_field_is_refused(server, missing):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    del body[missing]
    assert set(server.http("POST", "/auth/register", body).refused(422, "invalid")["errors"]) == {
        missing
    }


def simultaneous(server, count=30):
    name = unique_name()
    answers = at_once(
        count,
        lambda i: server.http(
            "POST",
            "/auth/register",
            {
                "username": name.upper() if i % 2 else name,
                "email": f"{name}.{i}@example.org",
                "password": PASSWORD,
            },
        ),
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * (count - 1)
    assert {answer.json["code"] for answer in answers if answer.status == 409} == {"username_taken"}
    winner = next(answer.json for answer in answers if answer.status == 201)
    assert me(server, winner["token"]).status == 200
    # The losers' email addresses are free again.
    assert mentions(server, f"{name}.") == mentions(server, email_of(winner))


def test_only_one_of_simultaneous_registrations_of_a_name_succeeds(server):
    simultaneous(server)


def test_only_one_of_simultaneous_registrations_at_two_workers_succeeds(crowd):
    simultaneous(crowd)


# -- repeated registrations


def test_a_registration_whose_reply_was_lost_can_be_repeated(server):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    first = server.http("POST", "/auth/register", body)
    again = server.http("POST", "/auth/register", body)
    assert first.status == again.status == 201
    assert again.json["user"] == first.json["user"]
    assert uid_of(again.json) == uid_of(first.json) and again.json["token"] != first.json["token"]
    for session in (first, again):
        assert me(server, session.json["token"]).json == first.json["user"]


def test_the_same_registration_sent_several_times_at_once_makes_one_account(crowd):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    answers = at_once(6, lambda i: crowd.http("POST", "/auth/register", body))
    assert {answer.status for answer in answers} == {201}
    assert len({uid_of(answer.json) for answer in answers}) == 1


@pytest.mark.parametrize("mine", [True, False])
def test_a_refused_registration_costs_one_hash_whoever_owns_the_names(server, mine):
    one, other, here = server.register(), server.register(), stranger()
    names = {"username": one["user"]["username"], "email": email_of(one if mine else other)}
    password = WRONG if mine else PASSWORD

    async def hashes(users):
        seen = []
        verify = users.passwords._verify
        users.passwords._verify = lambda *args: seen.append(args) or verify(*args)
        with pytest.raises(trivia.Problem, match="The username is taken"):
            await users.register(names | {"password": password}, here)
        return len(seen)

    assert inside(server, hashes) == 1  # in both cases, so that timing tells nothing
    # A repeated registration counts against the allowances of sign-in.
    use_up(server, tries_key(names["username"], here))
    register_from(server, here, **names, password=PASSWORD).refused(429, "too_many_attempts")


def test_a_registration_with_only_the_username_or_email_of_an_account_is_refused(server):
    user = server.register()["user"]
    for field in ("username", "email"):
        problem = register_from(server, stranger(), **{field: user[field]})
        assert set(problem.refused(409, f"{field}_taken")["errors"]) == {field}


@pytest.mark.parametrize("field", ["username", "email"])
def test_a_repeated_registration_restores_a_claim_that_a_failover_lost(server, field):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    first = server.http("POST", "/auth/register", body)
    server.redis.hdel(trivia.Keys.unique(body[field]), body[field])
    login(server, body[field]).refused(401, "bad_credentials")
    other = "email" if field == "username" else "username"
    wrong = server.http("POST", "/auth/register", body | {"password": WRONG})
    wrong.refused(409, f"{other}_taken")
    assert claimed(server, body[field]) is None
    again = server.http("POST", "/auth/register", body)
    assert again.status == 201 and uid_of(again.json) == uid_of(first.json)
    assert claimed(server, body[field]) == uid_of(first.json)
    assert login(server, body[field]).status == 200


def test_no_user_is_written_before_a_replica_has_the_claims(server, monkeypatch):
    """Otherwise a failover could lose a claim and keep the user."""
    monkeypatch.setattr(trivia, "WAIT_MS", 20)
    name, written = unique_name(), []

    async def act(users):
        run = users.redis.run_durably
        users.redis.run_durably = lambda what, *rest: written.append(what) or run(what, *rest)
        with pytest.raises(trivia.Unavailable):
            body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
            await users.register(body, stranger())

    inside(server, act, "?replicas=1")
    assert written == ["claim"]


# -- claims of unfinished registrations


def claim(server, value, content):
    server.redis.hset(trivia.Keys.unique(trivia.fold(value)), trivia.fold(value), content)


def claimed(server, value):
    """Returns the UID of a confirmed claim, or None."""
    held = server.redis.hget(trivia.Keys.unique(trivia.fold(value)), trivia.fold(value))
    assert held is None or len(held.split(" ")) == 2, held
    return held and held.split(" ")[0]


@pytest.mark.parametrize("field", ["username", "email"])
def test_a_claim_without_a_user_makes_others_wait_until_it_expires(server, field):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    expires = time.time() + 1.5
    claim(server, body[field], f"deadUID0 op {int(expires * 1000)}")
    session = server.http("POST", "/auth/register", body)
    assert session.status == 201 and time.time() >= expires
    assert claimed(server, body[field]) == uid_of(session.json)


def test_a_name_whose_claim_is_always_renewed_is_unavailable_but_not_taken(server):
    """The claims belong to users who never get the name, so the caller may try again."""
    name, on = unique_name(), threading.Event()

    def renew():
        claim(server, name, f"deadUID0 op {int(time.time() * 1000) + 2000}")

    def renew_again_and_again():
        while not on.wait(0.2):
            renew()

    renew()
    renewing = threading.Thread(target=renew_again_and_again)
    renewing.start()
    answer = register_from(server, stranger(), username=name)
    on.set()
    renewing.join()
    answer.refused(503, "unavailable")


@pytest.mark.parametrize("way", ["registration", "change"])
def test_a_request_for_a_free_and_a_taken_value_claims_neither(server, way):
    """Otherwise a player could reserve free names with refused requests."""
    taken, name, mine = server.register()["user"], unique_name(), server.register()
    writes = []

    async def act(users):
        run = users.redis.run
        users.redis.run = lambda function, *rest: writes.append(function) or run(function, *rest)
        with pytest.raises(trivia.Problem, match="taken"):
            body = {"username": name, "email": taken["email"], "password": PASSWORD}
            if way == "registration":
                await users.register(body, stranger())
            else:
                del body["password"]
                stored = await users.load(uid_of(mine))
                await users.apply_change(uid_of(mine), stored, body)

    inside(server, act)
    assert not {"claim", "settle_claim"} & set(writes)


@pytest.mark.parametrize("field", ["username", "email"])
@pytest.mark.parametrize("whose", ["nobody", "a user with another value"])
@pytest.mark.parametrize("how", ["registration", "change"])
def test_a_confirmed_claim_is_free_if_no_user_has_the_value(server, resident, field, whose, how):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    claim(server, body[field], ("deadUID0" if whose == "nobody" else uid_of(resident)) + " op")
    login(server, body[field]).refused(401, "bad_credentials")
    if how == "registration":
        answer = server.http("POST", "/auth/register", body)
        uid = uid_of(answer.json)
    else:
        session = server.register()
        answer, uid = patch(server, session, {field: body[field]}), uid_of(session)
    assert answer.status in (200, 201) and claimed(server, body[field]) == uid
    assert (
        login(server, body[field]).status == 200
        and me(server, resident["token"]).json == resident["user"]
    )


@pytest.mark.parametrize("held", ["deadUID0 op 1", "deadUID0 op"])
def test_only_one_of_simultaneous_registrations_of_a_void_claim_succeeds(server, held):
    name = unique_name()
    claim(server, name, held)
    statuses = at_once(
        20,
        lambda i: (
            server.http(
                "POST",
                "/auth/register",
                {"username": name, "email": f"{unique_name()}@example.org", "password": PASSWORD},
            ).status
        ),
    )
    assert sorted(statuses) == [201] + [409] * 19


@pytest.mark.parametrize("field", ["username", "email"])
def test_an_unconfirmed_claim_counts_if_its_user_exists(server, field):
    session = server.register()
    value = session["user"][field]
    claim(server, value, f"{uid_of(session)} op {int(time.time() * 1000) - 1}")
    assert login(server, value).status == 200  # the player notices nothing
    body = {
        "username": unique_name(),
        "email": f"{unique_name()}@example.org",
        "password": PASSWORD,
    } | {field: value}
    server.http("POST", "/auth/register", body).refused(409, f"{field}_taken")
    assert login(server, value).status == 200


def inside(server, act, words="", is_cheap=True):
    """Runs act(users) in a worker of its own, in this process, and returns the result.

    Appends `words` to its REDIS_URL. Hashes at the least cost, as the servers do, if `is_cheap`.
    """

    async def run():
        url = f"unix://{server.data / 'd' / 'redis.sock'}{words}"
        store = trivia.Redis(url, "", lambda events: None)
        await store.connect()
        try:
            schema = trivia.Schema(trivia.read_schema(server.data / "schema.yaml"))
            users = trivia.Users(store, schema)
            if is_cheap:
                users.passwords.hasher = forks.hasher_of_least_cost(argon2.PasswordHasher)
            return await act(users)
        finally:
            await store.close()

    return asyncio.run(run())


def fcall(server, name, keys, *args):
    """Runs a function of trivia.lua, as the server runs it."""
    return server.redis.fcall(trivia.LIBRARY.function(name), len(keys), *keys, *args)


# -- signing in


@pytest.mark.parametrize(
    "by",
    [
        lambda user: {"username": user["username"]},
        lambda user: {"username": user["username"].upper()},
        lambda user: {"email": user["email"]},
        lambda user: {"email": user["email"].upper()},
        lambda user: {"login": user["username"]},
        lambda user: {"login": user["email"]},
        lambda user: {"login": user["email"].title()},
        lambda user: {"login": "\uff50" + user["username"][1:]},
    ],
)
def test_a_player_signs_in_by_username_or_email_in_any_spelling(server, by):
    session = server.register()
    answer = server.http("POST", "/auth/login", by(session["user"]) | {"password": PASSWORD})
    assert answer.status == 200 and answer.json["user"] == session["user"]
    assert answer.json["token"] != session["token"]
    assert me(server, answer.json["token"]).status == me(server, session["token"]).status == 200


@pytest.mark.parametrize(
    "fields", [{}, {"login": "anna", "username": "anna"}, {"username": "a", "email": "b"}]
)
def test_a_sign_in_takes_exactly_one_name(server, fields):
    server.http("POST", "/auth/login", fields | {"password": PASSWORD}).refused(422, "invalid")


def test_a_ban_that_has_ended_only_by_the_worker_s_clock_still_refuses_a_session(
    server, monkeypatch
):
    session = server.register()
    key = trivia.Keys.user(uid_of(session))
    server.redis.hset(key, ":ban", f"{int(time.time() * 1000) + 60_000} ")
    monkeypatch.setattr(trivia, "ban_of", lambda user: None)

    async def act(users):
        proof = "password", server.redis.hget(key, "password")
        with pytest.raises(trivia.Problem) as refused:
            await users.open_session(uid_of(session), proof, "here")
        return refused.value

    problem = inside(server, act)
    assert (problem.code, problem.retry_after) == ("unavailable", 1)


def test_an_unknown_user_and_a_wrong_password_get_the_same_answer(server):
    name = server.register()["user"]["username"]
    wrong, unknown = login(server, name, WRONG), login(server, unique_name(), WRONG)
    assert wrong.refused(401, "bad_credentials") == unknown.refused(401, "bad_credentials")
    different = {"date", "content-length", "x-request-id"}
    assert {k: v for k, v in wrong.headers.items() if k not in different} == {
        k: v for k, v in unknown.headers.items() if k not in different
    }


@pytest.mark.parametrize("known", [True, False])
def test_a_hash_is_computed_whether_or_not_there_is_an_account(known):
    passwords = trivia.Passwords(10)
    kept, computed = passwords.hasher.hash(PASSWORD) if known else None, []
    hasher, passwords.hasher = (
        passwords.hasher,
        type(
            "Spy",
            (),
            {
                "verify": lambda self, kept, password: (
                    computed.append(kept) or hasher.verify(kept, password)
                ),
                "check_needs_rehash": lambda self, kept: False,
            },
        )(),
    )
    assert not asyncio.run(passwords.verify(kept, WRONG, "here"))
    assert asyncio.run(passwords.verify(kept, PASSWORD, "here")) == known
    assert len(computed) == 2 and all(
        one.split("$")[:4] == hasher.hash("x").split("$")[:4] for one in computed
    )


def test_passwords_are_stored_as_argon2id(server):
    name, secret = unique_name(), "a very particular secret"
    body = {"username": name, "email": f"{name}@example.org", "password": secret}
    session = inside(server, lambda users: users.register(body, stranger()), is_cheap=False)
    kept = server.redis.hget(trivia.Keys.user(uid_of(session)), "password")
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert not mentions(server, secret)


def test_a_password_is_hashed_again_when_the_parameters_have_changed(server):
    session = server.register()
    key, name = trivia.Keys.user(uid_of(session)), session["user"]["username"]
    present = server.redis.hget(key, "password").rpartition("p=")[0]
    other = argon2.PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    server.redis.hset(key, "password", other.hash(PASSWORD))
    second = login(server, name)
    assert second.status == 200
    wait_until(lambda: server.redis.hget(key, "password").startswith(present))
    assert login(server, name).status == 200
    assert me(server, session["token"]).status == me(server, second.json["token"]).status == 200


@pytest.mark.parametrize(
    "password", [PASSWORD + " ", " " + PASSWORD, PASSWORD.upper(), PASSWORD[:-1], "", "x" * 4000]
)
def test_a_password_that_is_almost_right_is_refused(server, resident, password):
    login(server, resident["user"]["username"], password, stranger()).refused(
        401, "bad_credentials"
    )


@pytest.mark.parametrize("password", ["x" * 128, "пароль пароль", "🐎🔋📎🐎🔋📎🐎🔋", "        "])
def test_a_password_may_have_any_characters(server, password):
    session = server.register(password=password)
    assert login(server, session["user"]["username"], password).status == 200


NFC, NFD = (unicodedata.normalize(form, "crème brûlée") for form in ("NFC", "NFD"))
MIXED = f"{NFC.split()[0]} {NFD.split()[1]}"


@pytest.mark.parametrize("first", [NFC, NFD, MIXED])
def test_a_password_is_the_same_in_every_unicode_form(server, first):
    session = server.register(password=first)
    name = session["user"]["username"]
    for typed_password in (NFC, NFD, MIXED):
        assert login(server, name, typed_password).status == 200
    login(server, name, "creme brulee").refused(401, "bad_credentials")
    body = {"password": NFD, "new_password": NFC[::-1]}
    assert server.http("POST", "/auth/password", body, session["token"]).status == 204


@pytest.mark.parametrize("old", [NFC, NFD, MIXED])
def test_a_password_hash_of_version_1_still_signs_in(server, old):
    """Version 1 hashed the password as typed. A mix of forms matches only as it was typed."""
    session = server.register()
    kept = trivia.Passwords(1).hasher.hash(old)
    server.redis.hset(trivia.Keys.user(uid_of(session)), "password", kept)
    for typed_password in {NFC, NFD, old} if old != MIXED else {MIXED}:
        assert login(server, session["user"]["username"], typed_password).status == 200
    wait_until(lambda: is_hash_of(server, session, trivia.normalized(old)))  # it is hashed again


def is_hash_of(server, session, password):
    kept = server.redis.hget(trivia.Keys.user(uid_of(session)), "password")
    with contextlib.suppress(argon2.exceptions.VerificationError):
        return argon2.PasswordHasher().verify(kept, password)


def test_the_length_of_a_password_counts_composed_characters(server):
    body = {"username": unique_name(), "email": f"{unique_name()}@example.org"}
    short = unicodedata.normalize("NFD", "é" * 7)
    server.http("POST", "/auth/register", body | {"password": short}).refused(422, "invalid")
    long = unicodedata.normalize("NFD", "é" * 128)
    assert server.http("POST", "/auth/register", body | {"password": long}).status == 201


# -- throttling of failed logins


def locked_out(server, name, address):
    """Tries wrong passwords until the server answers 429."""
    answers = [login(server, name, WRONG, address) for _ in range(11)]
    codes = [answer.status for answer in answers]
    # On a slow machine the allowance may have gained a try meanwhile.
    while codes[-1] == 401 and len(codes) < 20:
        answers.append(login(server, name, WRONG, address))
        codes.append(answers[-1].status)
    assert codes[:10] == [401] * 10 and codes[-1] == 429
    return answers[-1]


@pytest.mark.parametrize("known", [True, False])
def test_failed_logins_are_throttled(server, known):
    name = server.register()["user"]["username"] if known else unique_name()
    here = stranger()
    answer = locked_out(server, name, here)
    answer.refused(429, "too_many_attempts")
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    # The right password and another spelling of the name are refused as well.
    login(server, name.upper(), PASSWORD, here).refused(429, "too_many_attempts")
    # Another account from here, and this name from elsewhere, are not throttled.
    assert login(server, server.register()["user"]["username"], PASSWORD, here).status == 200
    assert login(server, name, PASSWORD, stranger()).status == (200 if known else 401)


def test_an_attacker_cannot_lock_the_player_out(server):
    name, home = unique_name(), stranger()
    server.register(name)
    assert login(server, name, PASSWORD, home).status == 200
    # Tries from many addresses have used up the allowance of the name.
    use_up(server, trivia.Keys.limit("account", typed(name)))
    login(server, name, PASSWORD, stranger()).refused(429, "too_many_attempts")
    assert login(server, name, PASSWORD, home).status == 200


def test_tries_from_many_addresses_use_up_the_account_s_allowance(server):
    session = server.register()
    for _ in range(3):
        login(server, session["user"]["username"], WRONG, stranger()).refused(
            401, "bad_credentials"
        )
    key = trivia.Keys.limit("account", typed(session["user"]["username"]))
    left = int(server.redis.get(key)) - time.time() * 1000
    assert 3 * 2000 - 5000 < left <= 3 * 2000


def test_a_throttled_login_gets_one_more_try_per_interval(server):
    session, here = server.register(), stranger()
    name = session["user"]["username"]
    locked_out(server, name, here)
    key = tries_key(name, here)
    # One interval has passed. Nine more would restore the whole allowance.
    server.redis.set(key, int(time.time() * 1000) + 9 * 10_000, px=100_000)
    login(server, name, WRONG, here).refused(401, "bad_credentials")
    server.redis.set(key, int(time.time() * 1000) + 9 * 10_000, px=100_000)
    assert login(server, name, PASSWORD, here).status == 200
    # The right password restores the whole allowance.
    assert not server.redis.exists(key)


def test_refused_tries_from_one_address_throttle_the_name_nowhere_else(server):
    name, here, home = unique_name(), stranger(), stranger()
    session = server.register(name)
    locked_out(server, name, here)
    assert {answer.status for answer in at_once(8, lambda i: login(server, name, WRONG, here))} <= {
        429,
        401,
    }
    for _ in range(100):
        login(server, name, WRONG, here)
    # Each try that was hashed took 2 s of the name's allowance; the refused ones took nothing.
    left = int(server.redis.get(trivia.Keys.limit("account", typed(name)))) - time.time() * 1000
    assert left < 25 * 2000
    assert login(server, name, PASSWORD, home).status == 200
    body = {"password": PASSWORD, "new_password": "battery staple"}
    change = call_from(server, here, "POST", "/auth/password", body, session["token"])
    assert change.status == 204


def test_a_player_who_signed_in_from_a_throttled_address_before_signs_in_there_again(server):
    known, newcomer, school = server.register(), server.register(), stranger()
    name = known["user"]["username"]
    assert login(server, name, PASSWORD, school).status == 200
    for _ in range(trivia_known_addresses() - 1):  # other addresses meanwhile
        assert login(server, name, PASSWORD, stranger()).status == 200
    key = trivia.Keys.limit("address", trivia.address_digest(school))
    use_up(server, key)
    before = server.redis.get(key)
    # A wrong password gets the same answer whether or not the address is known.
    for who in (name, newcomer["user"]["username"], unique_name()):
        login(server, who, WRONG, school).refused(429, "too_many_attempts")
    login(server, newcomer["user"]["username"], PASSWORD, school).refused(429, "too_many_attempts")
    assert server.redis.get(key) == before
    assert login(server, name, PASSWORD, school).status == 200
    assert login(server, email_of(known), PASSWORD, school).status == 200


def trivia_known_addresses():
    text = (ROOT / "trivia.lua").read_text("utf-8")
    return int(re.search(r"KNOWN_ADDRESSES = (\d+)", text)[1])


def test_the_known_addresses_of_a_user_are_bounded(server):
    session = server.register()
    key = trivia.Keys.user(uid_of(session))
    homes = [stranger() for _ in range(trivia_known_addresses() + 2)]
    for home in [*homes, homes[-2]]:
        assert login(server, session["user"]["username"], PASSWORD, home).status == 200
    newest_first = [homes[-2], homes[-1], *reversed(homes[2:-2])]
    kept = [trivia.address_digest(home) for home in newest_first]
    assert server.redis.hget(key, ":from") == " ".join(kept)


def test_throttling_of_a_username_does_not_reveal_its_email(server):
    """Nor does an email reveal its username: the server counts what was typed."""
    session, here = server.register(), stranger()
    name, email = session["user"]["username"], email_of(session)
    locked_out(server, name, here)
    use_up(server, trivia.Keys.limit("account", typed(name)))
    for guess in (email, f"{unique_name()}@example.org", unique_name()):
        login(server, guess, WRONG, here).refused(401, "bad_credentials")
    # No account has this name, and it is throttled like any other.
    nobody = unique_name()
    use_up(server, trivia.Keys.limit("account", typed(nobody)))
    for throttled in (name, nobody):
        login(server, throttled, WRONG, stranger()).refused(429, "too_many_attempts")


@pytest.mark.parametrize("who", ["an account", "nobody"])
def test_a_try_costs_one_hash_even_when_a_shared_allowance_is_used_up(server, who):
    """Otherwise timing would tell whether the address is exempt, and so whether the user exists."""
    name, here = unique_name(), stranger()
    if who == "an account":
        server.register(name)
        assert login(server, name, PASSWORD, here).status == 200
    use_up(server, trivia.Keys.limit("address", trivia.address_digest(here)))

    async def hashes(users):
        seen = []
        verify = users.passwords._verify
        users.passwords._verify = lambda *args: seen.append(args) or verify(*args)
        with pytest.raises(trivia.Problem, match="Too many attempts"):
            await users.login(name, WRONG, here)
        return len(seen)

    assert inside(server, hashes) == 1


def test_a_try_that_a_full_hashing_queue_refuses_does_not_count(server):
    name, here = unique_name(), stranger()

    async def refuse(users):
        users.passwords.max_waiting = 1
        users.passwords.idle = 0
        jobs_of(users.passwords, "somewhere")
        for _ in range(20):
            with pytest.raises(trivia.Problem, match="at once"):
                await users.login(name, WRONG, here)

    inside(server, refuse)
    assert not server.redis.exists(tries_key(name, here))
    assert not server.redis.exists(trivia.Keys.limit("account", typed(name)))


# -- a fair share of the hashing threads


def jobs_of(passwords, *addresses):
    """Queues a job for each address. Returns (addresses in the order they are done, jobs)."""
    done = []
    return done, [
        asyncio.ensure_future(passwords._run(address, done.append, address))
        for address in addresses
    ]


def test_addresses_take_turns_in_the_hashing_queue():
    async def act():
        passwords = trivia.Passwords(100)
        passwords.threads._max_workers = passwords.idle = 1
        done, jobs = jobs_of(passwords, *("aaaaaaaaaa" + "bb" + "c"))
        await asyncio.gather(*jobs)
        return "".join(done)

    assert asyncio.run(act()) == "aabcab" + "a" * 7


@pytest.mark.parametrize(
    "queue, addresses, refused",
    [
        (4, "aaaaa" + "a", [5]),  # one runs, four wait
        (4, "aaaaa" + "b", [4]),
        (4, "aaaaa" + "bb", [3, 4]),
        (4, "aaaaa" + "bbb", [3, 4, 7]),
        (4, "abcde" + "f", [5]),
    ],
)
def test_a_full_hashing_queue_refuses_the_address_with_the_most_jobs(queue, addresses, refused):
    async def act():
        passwords = trivia.Passwords(queue)
        passwords.threads._max_workers = passwords.idle = 1
        _, jobs = jobs_of(passwords, *addresses)
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        assert passwords.waiting == 0 and not passwords.lanes and passwords.idle == 1
        return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, trivia.Problem)]

    assert asyncio.run(act()) == refused


def test_a_flood_of_the_hashing_queue_delays_no_other_address(server):
    *greedy, other = (server.register() for _ in range(7))
    held, flooding, checked = threading.Event(), stranger(), []

    async def waiting(passwords, count):
        async with asyncio.timeout(20):
            while passwords.waiting < count:
                await asyncio.sleep(0.01)

    async def act(users):
        passwords, verify = users.passwords, users.passwords._verify
        passwords.threads._max_workers = passwords.idle = 1
        passwords._verify = lambda *args: checked.append(args[0]) or verify(*args)

        def sign_in(session, address):
            return asyncio.ensure_future(
                users.login(session["user"]["username"], PASSWORD, address)
            )

        jobs = [asyncio.ensure_future(passwords._run(stranger(), held.wait))]
        jobs += [sign_in(session, flooding) for session in 10 * greedy]
        await waiting(passwords, 60)
        jobs.append(sign_in(other, stranger()))
        await waiting(passwords, 61)
        held.set()
        await asyncio.gather(*jobs)

    inside(server, act)
    kept = server.redis.hget(trivia.Keys.user(uid_of(other)), "password")
    assert checked.index(kept) <= 1 and len(checked) == 61


# -- registrations from one address


@pytest.fixture(scope="module")
def strict():
    """A server with a small allowance of registrations for each address."""

    def edit(tree):
        tree["limits"] |= {"registrations": 20, "registration_seconds": 60}

    running = Server(edited_schema(edit))
    try:
        yield running.start()
    finally:
        running.close()


def register_from(server, address, **fields):
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD} | fields
    return call_from(server, address, "POST", "/auth/register", body)


def test_registrations_from_one_address_are_bounded(strict):
    here = stranger()
    answers = at_once(24, lambda i: register_from(strict, here))
    assert sorted(answer.status for answer in answers) == [201] * 20 + [429] * 4
    refused = next(answer for answer in answers if answer.status == 429)
    assert set(refused.refused(429, "too_many_attempts")["errors"]) == {"username"}
    assert 50 <= int(refused.headers["retry-after"]) <= 60
    assert register_from(strict, stranger()).status == 201


def test_a_list_of_emails_cannot_be_checked_by_registering(strict):
    here, taken = stranger(), strict.register()["user"]
    mark = len(strict.log)
    codes = []
    for i in range(30):
        guess = taken["email"] if i % 2 else f"{unique_name()}@example.org"
        names = {"username": taken["username"], "email": guess}
        codes.append(register_from(strict, here, **names, password=WRONG).status)
    assert codes == [409] * 5 + [429] * 25
    assert strict.log[mark:].count("name refused: username_taken") == 5
    # Once the allowance is used up, a free email gets the same answer as a taken one.
    # Registrations of free names from this address still succeed.
    assert register_from(strict, here).status == 201


def test_tries_to_register_from_one_address_are_bounded(strict):
    """Otherwise each 429 for used-up refusals would still reveal a taken email."""
    here, taken = stranger(), strict.register()["user"]["email"]
    key = trivia.Keys.limit("try", trivia.address_digest(here))
    register_from(strict, here, email=taken).refused(409, "email_taken")
    assert 0 < strict.redis.pttl(key) <= 3000
    use_up(strict, key)
    for email in (taken, f"{unique_name()}@example.org"):
        register_from(strict, here, email=email).refused(429, "too_many_attempts")


def test_an_invalid_registration_uses_up_no_allowance(strict):
    here = stranger()
    for _ in range(25):
        register_from(strict, here, password="short").refused(422, "invalid")
    assert register_from(strict, here).status == 201


def test_simultaneous_wrong_passwords_are_throttled_too(server):
    name, here = server.register()["user"]["username"], stranger()
    codes = [answer.status for answer in at_once(30, lambda i: login(server, name, WRONG, here))]
    assert set(codes) == {401, 429} and 10 <= codes.count(401) <= 13


@pytest.mark.parametrize(
    "method, path, more",
    [("POST", "/auth/password", {"new_password": "another horse"}), ("DELETE", "/users/me", {})],
)
def test_guesses_of_the_password_within_a_session_are_throttled(server, method, path, more):
    session, here = server.register(), stranger()
    codes = []
    while 429 not in codes and len(codes) < 20:
        codes.append(
            call_from(
                server, here, method, path, {"password": WRONG} | more, session["token"]
            ).status
        )
    assert codes[:10] == [403] * 10 and codes[-1] == 429
    assert (
        call_from(
            server, here, method, path, {"password": PASSWORD} | more, session["token"]
        ).status
        == 429
    )
    assert me(server, session["token"]).status == 200


# -- sessions


def test_tokens_are_stored_as_digests_only(server):
    session = server.register()
    token = session["token"]
    assert mentions(server, uid_of(session))  # the search finds what is stored
    assert not mentions(server, token) and not mentions(server, token[12:])
    files = [path.read_bytes() for path in (server.data / "d").rglob("*") if path.is_file()]
    assert any(uid_of(session).encode() in content for content in files)
    assert not any(token[12:].encode() in content for content in files)
    assert token not in server.log


def test_logout_ends_one_session(server):
    session = server.register()
    other = login(server, session["user"]["username"]).json
    answer = server.http("POST", "/auth/logout", token=session["token"])
    assert (answer.status, answer.body) == (204, "")
    signed_out(server, session["token"])
    server.http("POST", "/auth/logout", token=session["token"]).refused(401, "not_authenticated")
    assert me(server, other["token"]).status == 200


def test_logout_everywhere_ends_all_sessions(server):
    session, bystander = server.register(), server.register()
    others = [login(server, session["user"]["username"]).json["token"] for _ in range(2)]
    assert server.http("DELETE", "/auth/sessions", token=others[0]).status == 204
    signed_out(server, session["token"], *others)
    assert me(server, bystander["token"]).status == 200
    assert login(server, session["user"]["username"]).status == 200


@pytest.mark.parametrize(
    "end",
    [
        lambda server, session: server.http("POST", "/auth/logout", token=session["token"]),
        lambda server, session: server.http("DELETE", "/auth/sessions", token=session["token"]),
        lambda server, session: server.http(
            "DELETE", "/users/me", {"password": PASSWORD}, session["token"]
        ),
    ],
)
def test_the_end_of_a_session_closes_its_socket(small, end):
    session = small.register()
    phone = Phone(small, session, "rated")
    phone.expect("queued")
    assert end(small, session).status == 204
    phone.expect_close(4401)
    wait_until(lambda: not small.redis.hexists(trivia.Keys.seats, uid_of(session)))
    assert not small.redis.exists(trivia.Keys.queue("rated"))


@pytest.mark.parametrize("way", ["login", "repeated registration"])
def test_a_session_that_newer_ones_replace_loses_its_socket(small, way):
    session = small.register()
    user = session["user"]
    phone = Phone(small, session, "rated")
    phone.expect("queued")
    with contextlib.closing(phone):  # a rerun would meet this phone in the queue
        # It ends first, but less than a day early: else the check after `queued` extends it.
        small.redis.hset(*session_field(session), int(time.time()) + 30 * 86400 - 3600)
        for _ in range(3):
            if way == "login":
                assert login(small, user["username"]).status == 200
            else:
                assert register_from(small, stranger(), **names_of(user)).status == 201
        signed_out(small, session["token"])
        phone.expect_close(4401)
        wait_until(lambda: not small.redis.hexists(trivia.Keys.seats, uid_of(session)))


def names_of(user):
    return {name: user[name] for name in ("username", "email")}


def test_the_end_of_a_session_closes_its_socket_at_another_worker(crowd):
    for _ in range(7):  # often enough to meet both workers
        session = crowd.register()
        other = login(crowd, session["user"]["username"]).json
        phone = Phone(crowd, session, "random")
        phone.expect("queued")
        assert crowd.http("DELETE", "/auth/sessions", token=other["token"]).status == 204
        phone.expect_close(4401)


def test_the_end_of_one_session_leaves_the_socket_of_another_open(small):
    session = small.register()
    other = login(small, session["user"]["username"]).json
    phone = Phone(small, session, "rated")
    phone.expect("queued")
    assert small.http("POST", "/auth/logout", token=other["token"]).status == 204
    phone.send("ping")
    phone.expect("pong")
    phone.close()
    wait_until(lambda: not small.redis.hexists(trivia.Keys.seats, uid_of(session)))


def session_field(session):
    return trivia.Keys.user(uid_of(session)), f"session:{trivia.digest(session['token'][12:])}"


def test_the_use_of_a_session_extends_it(server):
    session = server.register()
    server.redis.hset(*session_field(session), int(time.time()) + 60)
    assert me(server, session["token"]).status == 200
    expires = int(server.redis.hget(*session_field(session)))
    assert abs(expires - time.time() - 30 * 86400) < 60
    # The expiry is not written on each use.
    server.redis.hset(*session_field(session), expires - 3600)
    assert me(server, session["token"]).status == 200
    assert int(server.redis.hget(*session_field(session))) == expires - 3600


@pytest.mark.parametrize("ago", [0, 1, 86400])
def test_an_expired_session_is_refused(server, ago):
    session = server.register()
    server.redis.hset(*session_field(session), int(time.time()) - ago)
    signed_out(server, session["token"])
    # The next login deletes it.
    login(server, session["user"]["username"])
    assert not server.redis.hexists(*session_field(session))


def test_a_new_session_replaces_the_one_that_ends_first(small):
    first = small.register()
    sessions = [first] + [login(small, first["user"]["username"]).json for _ in range(2)]
    for days, session in zip((20, 10, 15), sessions):
        small.redis.hset(*session_field(session), int(time.time()) + days * 86400)
    sessions.append(login(small, first["user"]["username"]).json)
    fields = small.redis.hkeys(trivia.Keys.user(uid_of(first)))
    assert sum(field.startswith("session:") for field in fields) == 3
    signed_out(small, sessions[1]["token"])
    assert all(me(small, sessions[i]["token"]).status == 200 for i in (0, 2, 3))


def test_simultaneous_sign_ins_do_not_exceed_the_limit_of_sessions(small):
    session = small.register()
    answers = at_once(8, lambda i: login(small, session["user"]["username"], address=stranger()))
    assert {answer.status for answer in answers} == {200}
    alive = [answer for answer in answers if me(small, answer.json["token"]).status == 200]
    assert 1 <= len(alive) <= 3


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token[:12] + "A" * 32,
        lambda token: "A" * 8 + token[12:],
        lambda token: token.swapcase(),
    ],
)
def test_a_token_that_is_almost_right_is_refused(server, resident, change):
    signed_out(server, change(resident["token"]))


def test_a_revocation_survives_a_kill_of_server_and_redis(small):
    session, bystander = small.register(), small.register()
    kept = login(small, session["user"]["username"]).json
    assert small.http("POST", "/auth/logout", token=session["token"]).status == 204
    assert small.http("DELETE", "/auth/sessions", token=bystander["token"]).status == 204
    store_process = small.redis.info("server")["process_id"]
    small.kill(signal.SIGKILL)
    os.kill(store_process, signal.SIGKILL)
    small.process.wait(10)
    small.start()
    signed_out(small, session["token"], bystander["token"])
    assert me(small, kept["token"]).json == session["user"]


# -- change of password


def test_a_new_password_ends_the_other_sessions(server):
    session = server.register()
    name, others = session["user"]["username"], []
    for _ in range(2):
        others.append(login(server, name).json["token"])
    answer = server.http(
        "POST",
        "/auth/password",
        {"password": PASSWORD, "new_password": "battery staple"},
        session["token"],
    )
    assert (answer.status, answer.body) == (204, "")
    assert me(server, session["token"]).status == 200
    signed_out(server, *others)
    login(server, name, PASSWORD).refused(401, "bad_credentials")
    assert login(server, name, "battery staple").status == 200


@pytest.mark.parametrize(
    "body, status, code",
    [
        ({"password": WRONG, "new_password": "battery staple"}, 403, "wrong_password"),
        ({"password": PASSWORD, "new_password": "short"}, 422, "invalid"),
        ({"password": PASSWORD, "new_password": "x" * 129}, 422, "invalid"),
        ({"password": PASSWORD, "new_password": None}, 422, "invalid"),
        ({"password": PASSWORD}, 422, "invalid"),
        ({"new_password": "battery staple"}, 422, "invalid"),
        ({"password": PASSWORD, "new_password": "battery staple", "username": "x"}, 422, "invalid"),
    ],
)
def test_a_refused_change_of_password_changes_nothing(server, body, status, code):
    session = server.register()
    other = login(server, session["user"]["username"]).json
    server.http("POST", "/auth/password", body, session["token"]).refused(status, code)
    assert me(server, session["token"]).status == me(server, other["token"]).status == 200
    assert login(server, session["user"]["username"]).status == 200


def test_a_change_of_password_whose_reply_was_lost_can_be_repeated(server):
    session = server.register()
    body = {"password": PASSWORD, "new_password": "battery staple"}
    for _ in range(2):
        answer = server.http("POST", "/auth/password", body, session["token"])
        assert (answer.status, answer.body) == (204, "")
    assert login(server, session["user"]["username"], "battery staple").status == 200


@pytest.mark.parametrize("way", ["is refused", "ends"])
def test_a_login_under_way_does_not_outlive_the_old_password(server, way):
    """If the password changes after its check, the login fails; a session open by then ends."""
    session = server.register()
    name = session["user"]["username"]

    async def act(users):
        uid, user = await users.find(name)
        sign_in = functools.partial(users.login, name, PASSWORD, stranger())
        change = functools.partial(users.change_password, uid, user, session["token"], PASSWORD)
        change = functools.partial(change, "battery staple", stranger())
        check, run = users.guard.check_login, users.redis.run_durably
        opened = []

        async def check_and_change(*args):
            right = await check(*args)
            assert right and not await change()
            users.guard.check_login = check
            return right

        async def run_behind_a_login(name, *rest):
            if name == "change_password":
                opened.append(await sign_in())
            return await run(name, *rest)

        if way == "is refused":
            users.guard.check_login = check_and_change
            with pytest.raises(trivia.Problem) as refused:
                await sign_in()
            assert refused.value.code == "bad_credentials"
        else:
            users.redis.run_durably = run_behind_a_login
            await change()
        return opened

    late = inside(server, act)
    assert len(late) == (way == "ends")
    signed_out(server, *(session["token"] for session in late))
    assert me(server, session["token"]).status == 200
    assert login(server, name, "battery staple").status == 200


# -- changes of the account


def patch(server, session, body):
    """Changes the account, with the password if the change requires it."""
    if body.keys() & {"username", "email"}:
        body = {"password": PASSWORD} | body
    return server.http("PATCH", "/users/me", body, session["token"])


NEW_NAMES = [("username", unique_name), ("email", lambda: f"{unique_name()}@example.org")]


def heir(server, field, value):
    """Registers another player with this value."""
    name = unique_name()
    body = {"username": name, "email": f"{name}@example.org", "password": WRONG} | {field: value}
    return server.http("POST", "/auth/register", body)


@pytest.mark.parametrize("field, new", NEW_NAMES)
def test_a_change_of_a_unique_field_frees_the_old_value(small, field, new):
    session, value = small.register(), new()
    old = session["user"][field]
    assert patch(small, session, {field: value}).json == session["user"] | {field: value}
    assert me(small, session["token"]).json[field] == value
    login(small, old).refused(401, "bad_credentials")
    assert login(small, value).json["user"][field] == value
    assert not mentions(small, old + "'") and claimed(small, old) is None
    assert heir(small, field, old).status == 201


@pytest.mark.parametrize("field, new", NEW_NAMES)
def test_the_old_value_of_a_unique_field_is_reserved_for_its_user(server, field, new):
    session, other = server.register(), server.register()
    old = session["user"][field]
    assert patch(server, session, {field: new()}).status == 200
    heir(server, field, old.upper()).refused(409, f"{field}_taken")
    patch(server, other, {field: old}).refused(409, f"{field}_taken")
    login(server, old).refused(401, "bad_credentials")
    assert patch(server, session, {field: old}).json[field] == old
    assert login(server, old).json["user"][field] == old


@pytest.mark.parametrize("field", ["username", "email"])
def test_the_names_of_an_erased_account_are_reserved(server, field):
    session = server.register()
    value = session["user"][field]
    erase(server, session)
    heir(server, field, value).refused(409, f"{field}_taken")
    assert server.redis.get(trivia.Keys.reserved(trivia.fold(value))) == trivia.NOBODY
    assert 29 * 86400 < server.redis.ttl(trivia.Keys.reserved(trivia.fold(value))) <= 30 * 86400
    server.redis.delete(trivia.Keys.reserved(trivia.fold(value)))  # the days have passed
    assert heir(server, field, value).status == 201


def test_a_change_that_stops_midway_frees_no_name(server):
    session, name = server.register(), unique_name()
    old = session["user"]["username"]

    async def die(users):
        settle, settled = users.claims.settle, []

        async def settle_once(uid, claims):
            settled.append(claims)
            if len(settled) == 2:
                raise trivia.Unavailable
            return await settle(uid, claims)

        users.claims.settle = settle_once
        with pytest.raises(trivia.Unavailable):
            await users.apply_change(
                uid_of(session), await users.load(uid_of(session)), {"username": name}
            )

    inside(server, die)
    assert me(server, session["token"]).json["username"] == name
    heir(server, "username", old).refused(409, "username_taken")


@pytest.mark.parametrize(
    "body, code, errors",
    [
        ({"username": "new"}, "invalid", {"password"}),
        ({"email": "new"}, "invalid", {"password"}),
        ({"username": "upper"}, "invalid", {"password"}),
        ({"username": "new", "password": WRONG}, "wrong_password", set()),
        ({"avatar": "https://example.org/a", "password": PASSWORD}, "invalid", {"password"}),
        ({"password": PASSWORD}, "invalid", {"password"}),
    ],
)
def test_a_change_of_a_name_requires_the_password(server, body, code, errors):
    session = server.register()
    user = session["user"]
    values = {"new": f"{unique_name()}@example.org", "upper": user["username"].upper()}
    if "email" not in body:
        values["new"] = unique_name()
    body = {name: values.get(value, value) for name, value in body.items()}
    answer = server.http("PATCH", "/users/me", body, session["token"])
    problem = answer.refused(422 if errors else 403, code)
    assert set(problem.get("errors", {})) == errors
    assert me(server, session["token"]).json == user


def test_a_change_that_repeats_the_names_requires_no_password(server):
    session = server.register()
    names = {name: session["user"][name] for name in ("username", "email")}
    body = names | {"avatar": "https://example.org/a"}
    answer = server.http("PATCH", "/users/me", body, session["token"])
    assert answer.json == session["user"] | body


def test_changes_of_names_are_throttled(server):
    session = server.register()
    for _ in range(trivia.RENAMES[1]):
        assert patch(server, session, {"username": unique_name()}).status == 200
    patch(server, session, {"email": f"{unique_name()}@x.org"}).refused(429, "too_many_attempts")
    assert patch(server, session, {"avatar": "https://example.org/a"}).status == 200


def test_a_list_of_emails_cannot_be_checked_by_changes_of_an_account(strict):
    sessions, taken = [strict.register() for _ in range(3)], strict.register()["user"]["email"]
    here, codes, mark = stranger(), [], len(strict.log)
    for i in range(9):
        body = {"email": taken, "password": PASSWORD}
        token = sessions[i % 3]["token"]
        codes.append(call_from(strict, here, "PATCH", "/users/me", body, token).status)
    assert codes == [409] * 5 + [429] * 4
    assert strict.log[mark:].count("name refused: email_taken") == 5


def test_a_player_changes_the_letter_case_of_their_name(server):
    session = server.register()
    name = session["user"]["username"].upper()
    assert patch(server, session, {"username": name}).json["username"] == name
    assert server.http("GET", f"/users/{name.lower()}").json["username"] == name
    server.http(
        "POST",
        "/auth/register",
        {"username": name.lower(), "email": f"{unique_name()}@example.org", "password": PASSWORD},
    ).refused(409, "username_taken")


@pytest.mark.parametrize("clash, free", [("username", "email"), ("email", "username")])
def test_a_change_to_a_taken_value_changes_nothing(server, clash, free):
    session, taken, fresh = server.register(), server.register()["user"], unique_name()
    body = {
        clash: taken[clash].upper(),
        free: fresh + "@example.org" * (free == "email"),
        "avatar": "https://a.org/",
    }
    assert set(patch(server, session, body).refused(409, f"{clash}_taken")["errors"]) == {clash}
    assert me(server, session["token"]).json == session["user"]
    assert not mentions(server, fresh)
    assert login(server, taken[clash]).json["user"] == taken


@pytest.mark.parametrize(
    "body",
    [
        {"wins": 5},
        {"games": 5},
        {"rating": 5},
        {"created_at": 5},
        {"nonsense": 5},
        {":sigma": "5"},
        {"uid": "AAAAAAAA"},
        {"password": "battery staple"},
        {"username": None},
        {"email": ""},
        {"username": "a b"},
        {"avatar": "data:text/html,x"},
    ],
)
def test_a_change_with_an_invalid_or_read_only_field_is_refused(server, resident, body):
    before = server.redis.hgetall(trivia.Keys.user(uid_of(resident)))
    problem = patch(server, resident, {"avatar": "https://example.org/a"} | body).refused(
        422, "invalid"
    )
    assert set(problem["errors"]) == set(body)
    assert server.redis.hgetall(trivia.Keys.user(uid_of(resident))) == before


def test_a_value_equal_to_the_default_is_not_stored(server):
    session = server.register(avatar="https://example.org/a")
    assert patch(server, session, {"avatar": ""}).json["avatar"] == ""
    assert "avatar" not in server.redis.hgetall(trivia.Keys.user(uid_of(session)))
    assert patch(server, session, {}).json == session["user"] | {"avatar": ""}


def test_after_simultaneous_changes_of_a_name_only_one_stays_taken(small):
    server, session = small, small.register()
    old, names = session["user"]["username"], [unique_name() for _ in range(5)]
    assert {
        answer.status
        for answer in at_once(5, lambda i: patch(server, session, {"username": names[i]}))
    } == {200}
    name = me(server, session["token"]).json["username"]
    assert login(server, name).status == 200
    for free in {old, *names} - {name}:
        assert server.http("GET", f"/users/{free}").status == 404
        server.register(free, email=f"{unique_name()}@example.org")


def test_only_one_of_simultaneous_changes_to_a_name_succeeds(server):
    sessions, name = [server.register() for _ in range(8)], unique_name()
    answers = at_once(8, lambda i: patch(server, sessions[i], {"username": name}))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 7
    names = [me(server, session["token"]).json["username"] for session in sessions]
    assert names.count(name) == 1 and all(login(server, one).status == 200 for one in names)


def change(server, session, user, data, prepare=lambda users: None):
    """Changes an account as a worker does that has read the user earlier."""

    async def act(users):
        prepare(users)
        return await users.apply_change(uid_of(session), user, data)

    return inside(server, act)


def test_a_refused_change_frees_no_name_that_another_change_took(server):
    session, other, name = server.register(), server.register(), unique_name()
    before = server.redis.hgetall(trivia.Keys.user(uid_of(session)))
    assert patch(server, session, {"username": name}).status == 200
    with pytest.raises(trivia.Problem, match="taken"):
        change(server, session, before, {"username": name, "email": email_of(other)})
    assert claimed(server, name) == uid_of(session)
    assert login(server, name).status == 200


def test_a_player_who_changes_back_at_the_same_time_keeps_the_name(server):
    session, name = server.register(), unique_name()
    old, before = (
        session["user"]["username"],
        server.redis.hgetall(trivia.Keys.user(uid_of(session))),
    )

    def overtake(users):
        settle = users.claims.settle

        async def settle_later(uid, claims):
            # The change is about to free the old name. Now the player changes back.
            if trivia.fold(old) in claims:
                back = await asyncio.to_thread(patch, server, session, {"username": old})
                assert back.status == 200
            return await settle(uid, claims)

        users.claims.settle = settle_later

    change(server, session, before, {"username": name}, overtake)
    assert me(server, session["token"]).json["username"] == old
    assert claimed(server, old) == uid_of(session)
    assert login(server, old).status == 200


# -- one name space


@pytest.fixture(scope="module")
def nicks():
    """A server whose users also have a unique `nick` of any characters."""

    def edit(tree):
        tree["users"]["fields"]["nick"] = {"type": "string", "maxLength": 60, "unique": True}
        tree["limits"]["name_hold_days"] = 0

    running = Server(edited_schema(edit))
    try:
        yield running.start()
    finally:
        running.close()


@pytest.mark.parametrize("victim_by", ["email", "username"])
@pytest.mark.parametrize("way", ["registration", "change"])
def test_a_unique_value_of_a_player_is_taken_in_every_field(nicks, victim_by, way):
    victim = nicks.register()["user"]
    value = victim[victim_by]
    if way == "registration":
        answer = heir(nicks, "nick", value.upper())
    else:
        thief = nicks.register()["token"]
        body = {"nick": value, "password": PASSWORD}
        answer = nicks.http("PATCH", "/users/me", body, thief)
    assert set(answer.refused(409, "nick_taken")["errors"]) == {"nick"}
    for field in ("login", victim_by):
        body = {field: value, "password": PASSWORD}
        assert nicks.http("POST", "/auth/login", body).json["user"] == victim


def test_a_player_may_have_one_value_in_two_fields(nicks):
    name, new = unique_name(), unique_name()
    session = nicks.register(name, nick=name)
    body = {"username": new, "password": PASSWORD}
    assert nicks.http("PATCH", "/users/me", body, session["token"]).status == 200
    assert login(nicks, name).json["user"]["nick"] == name  # the nick still has this value
    heir(nicks, "username", name).refused(409, "username_taken")
    body = {"nick": new, "username": name, "password": PASSWORD}  # swapped
    assert nicks.http("PATCH", "/users/me", body, session["token"]).json["nick"] == new
    assert login(nicks, new).status == login(nicks, name).status == 200


# -- the public profile


@pytest.mark.parametrize(
    "spell", [str, str.upper, lambda name: "%70" + name[1:], lambda name: "%EF%BD%90" + name[1:]]
)
def test_a_public_profile_shows_no_private_field(server, resident, spell):
    answer = server.http("GET", "/users/" + spell(resident["user"]["username"]))
    assert answer.status == 200
    shown = [
        "username",
        "avatar",
        "wins",
        "games",
        "rating",
        "provisional",
        "streak",
        "daily_points",
    ]
    assert answer.json == {name: resident["user"][name] for name in shown}
    assert email_of(resident) not in answer.body and uid_of(resident) not in answer.body


def test_there_is_no_profile_by_email_or_id(server, resident):
    for name in (
        email_of(resident),
        email_of(resident).replace("@", "%40"),
        uid_of(resident),
        unique_name(),
    ):
        server.http("GET", f"/users/{name}").refused(404, "not_found")


def test_opponents_see_no_private_field(small):
    ann, bob = small.pair()
    text = json.dumps(ann.frames + bob.frames)
    for phone in (ann, bob):
        assert (
            "@example.org" not in text
            and uid_of(phone.session) not in text
            and phone.token not in text
        )
    ann.send("leave")
    bob.expect("end")
    ann.close(), bob.close()


# -- erasure


def wait_until_erased(server, session):
    """Waits until no trace of a player is left. Reads the whole store only after the erasure."""
    written = lambda: server.redis.zscore(trivia.Keys.erasures, uid_of(session))
    wait_until(lambda: written() is None and not traces(server, session))


@pytest.mark.parametrize(
    "body, status, code",
    [
        ({"password": WRONG}, 403, "wrong_password"),
        ({}, 422, "invalid"),
        (None, 415, "unsupported_media_type"),
    ],
)
def test_an_erasure_requires_the_password(server, resident, body, status, code):
    server.http("DELETE", "/users/me", body, resident["token"]).refused(status, code)
    assert me(server, resident["token"]).json == resident["user"]


def erase(server, session):
    answer = server.http("DELETE", "/users/me", {"password": PASSWORD}, session["token"])
    assert (answer.status, answer.body) == (204, "")


def traces(server, session):
    """Returns the keys that mention a player, except allowances, which expire soon."""
    return [
        key
        for key in mentions(server, uid_of(session), session["user"]["username"], email_of(session))
        if not key.startswith("limit:")
    ]


def test_an_erasure_leaves_no_trace_of_the_player(small):
    ann, bob = small.register(avatar="https://example.org/ann"), small.register()
    name, other = ann["user"]["username"], login(small, email_of(ann)).json
    games = [win(small, ann, bob), win(small, bob, ann, "rated")]
    assert name in listed(small, "rating") and name in listed(small, "wins")
    kinds = {key.split(":")[0] for key in traces(small, ann)}
    assert kinds >= {"user", "history", "seen", "unique", "game", "board"}
    erase(small, ann)
    wait_until_erased(small, ann)
    signed_out(small, ann["token"], other["token"])
    login(small, name).refused(401, "bad_credentials")
    small.http("GET", f"/users/{name}").refused(404, "not_found")
    assert name not in listed(small, "rating") and name not in listed(small, "wins")
    for game, place in zip(games, (0, 1)):
        record = small.http("GET", f"/games/{game}", token=bob["token"])
        players = [row["player"] for row in record.json["ranking"]]
        assert players[1 - place] == bob["user"]["username"] and players[place] not in (
            name,
            "",
            None,
        )
        assert name not in record.body
    assert name not in small.http("GET", "/users/me/games", token=bob["token"]).body
    # Another player can take the name, and starts from zero.
    heir = small.register(name)
    assert heir["user"].items() >= {"wins": 0, "games": 0, "rating": 1500, "avatar": ""}.items()
    assert small.http("GET", "/users/me/games", token=heir["token"]).json == {
        "games": [],
        "cursor": None,
    }


def test_an_erasure_during_a_game_leaves_no_trace(small):
    ann, bob = small.pair()
    game = bob.frames[-1]["game"]
    bob.expect("question")
    bob.send("answer", round=1, choice=0)
    ann.expect("answered")
    erase(small, ann.session)
    ann.expect_close(4401)
    end = bob.play()
    assert end["type"] == "end" and bob.name in [row["player"] for row in end["ranking"]]
    bob.close()
    wait_until_erased(small, ann.session)
    record = small.http("GET", f"/games/{game}", token=bob.token)
    assert record.status == 200 and bob.name in record.body and ann.name not in record.body


def test_an_erasure_covers_every_game(small):
    ann, bob = small.register(), small.register()
    games = [win(small, ann, bob) for _ in range(6)]
    assert len(my_games(small, ann, "?limit=3")["games"]) == 3
    small.redis.delete(trivia.Keys.game(games[2]))  # one has expired
    erase(small, ann)
    wait_until(lambda: not small.redis.hexists(trivia.Keys.seats, uid_of(ann)))
    assert traces(small, ann) == []


def test_an_erasure_covers_last_week_s_leaderboard(small):
    ann, bob = small.register(), small.register()
    win(small, ann, bob)
    before = trivia.period_of("week", time.time() - 7 * 86400)
    small.redis.zadd(trivia.Keys.board("wins", before), {uid_of(ann): 3})
    erase(small, ann)
    wait_until(lambda: not small.redis.hexists(trivia.Keys.seats, uid_of(ann)))
    assert traces(small, ann) == []


def test_a_change_during_an_erasure_leaves_no_trace(small):
    session, new = small.register(), unique_name()
    key, guard = trivia.Keys.user(uid_of(session)), session_key(session)
    slow = argon2.PasswordHasher(time_cost=12, memory_cost=19 * 1024, parallelism=1)  # 0.2 s
    small.redis.hset(key, "password", slow.hash(PASSWORD))
    before = small.redis.hgetall(key)
    with ThreadPoolExecutor(1) as pool:
        erased = pool.submit(erase, small, session)
        wait_until(lambda: small.redis.exists(guard))
        # The check of the password usually lasts until the change is made.
        changes = {"username": new, "email": f"{new}@example.org"}
        try:
            assert change(small, session, before, changes)
        except trivia.Problem as problem:
            assert problem.code == "not_authenticated"
        erased.result()
    assert traces(small, session) == [] and mentions(small, new) == []
    small.register(new)


def test_a_player_cannot_take_the_name_of_an_anonymous_seat(small):
    ann, bob = small.register(), small.register()
    game = win(small, ann, bob)
    erase(small, ann)
    wait_until_erased(small, ann)
    seat = small.http("GET", f"/games/{game}", token=bob["token"]).json["ranking"][0]["player"]
    # Games list answers by name, and would confuse the player with this seat.
    small.http(
        "POST",
        "/auth/register",
        {"username": seat, "email": f"{unique_name()}@example.org", "password": PASSWORD},
    ).refused(422, "invalid")


def test_simultaneous_erasures_of_one_account_do_no_harm(server):
    session = server.register()
    statuses = at_once(
        4,
        lambda i: (
            server.http("DELETE", "/users/me", {"password": PASSWORD}, session["token"]).status
        ),
    )
    assert 204 in statuses and set(statuses) <= {204, 401, 403}
    wait_until_erased(server, session)


def cut_short(server, session, how_far):
    """Leaves an erasure unfinished, as a worker does that dies on the way."""
    uid, redis = uid_of(session), server.redis
    if how_far != "written down":
        keys = trivia.Keys.user(uid), trivia.Keys.erased(uid)
        fcall(server, "erase_user", keys, "username", "email")
    if how_far == "some games are done":
        [game, *_] = redis.zrange(trivia.Keys.history(uid), 0, 0)
        fcall(server, "forget_player", (trivia.Keys.game(game),), uid)
        redis.zrem(trivia.Keys.history(uid), game)
    redis.zadd(trivia.Keys.erasures, {uid: 1})  # long overdue, so its worker counts as dead


def test_unfinished_erasures_are_finished_even_if_another_one_fails(small):
    bad, bob, games = "-" * 12, small.register(), {}
    small.redis.set(trivia.Keys.history(bad), "no history")
    small.redis.zadd(trivia.Keys.erasures, {bad: 0})  # due before all others
    for how_far in ("written down", "the account is gone", "some games are done"):
        ann = small.register()
        games[how_far] = ann, [win(small, ann, bob) for _ in range(2)]
        phone = small.phone(session=ann)
        phone.expect("queued")
        cut_short(small, ann, how_far)
        phone.expect_close(4401)
    for ann, won in games.values():
        wait_until_erased(small, ann)
        for game in won:
            record = small.http("GET", f"/games/{game}", token=bob["token"])
            assert record.status == 200 and ann["user"]["username"] not in record.body
        small.register(ann["user"]["username"])
    small.redis.delete(trivia.Keys.history(bad))
    small.redis.zadd(trivia.Keys.erasures, {bad: 0})
    wait_until(lambda: not small.redis.zscore(trivia.Keys.erasures, bad))


def copy_game(server, session, game, count):
    """Gives a player many copies of a game."""
    redis = raw_redis(server)  # the plan of a game is binary
    stored = redis.hgetall(trivia.Keys.game(game))
    ids = [f"{game[:2]}{i:010}" for i in range(count)]
    for start in range(0, count, 1000):
        with redis.pipeline(transaction=False) as pipe:
            for copy in ids[start : start + 1000]:
                pipe.hset(trivia.Keys.game(copy), mapping=stored)
            scores = {copy: 1000 + int(copy[2:]) for copy in ids[start : start + 1000]}
            pipe.zadd(trivia.Keys.history(uid_of(session)), scores)
            pipe.execute()
    return ids


@contextlib.contextmanager
def longest_wait(phone, pause_s=0.1):
    """Pings in the background. Yields a list: the event loop's work until each pong (s), sorted."""
    waits, stop = [], threading.Event()

    def ping():
        while not stop.wait(pause_s):
            worked = loop_seconds(phone.server)
            phone.send("ping", client_ms=1)
            phone.expect("pong")
            waits.append(loop_seconds(phone.server) - worked)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield waits
    finally:
        stop.set()
        thread.join(30)
    waits.sort()


def test_an_export_and_erasure_of_5_000_games_delay_no_other_player(small):
    server = small
    ann, bob = server.register(), server.register()
    games = copy_game(server, ann, win(server, ann, bob), 5_000)
    other = server.phone(queue="rated")
    other.expect("queued")
    worker = psutil.Process(server.process.pid)
    before = worker.memory_info().rss
    with longest_wait(other, 0.05) as waits:
        export = server.http("GET", "/users/me/export", token=ann["token"])
    assert len(export.json["games"]) == len(games) + 1
    assert len(waits) > 5 and waits[-1] < 0.25, waits[-5:]
    assert worker.memory_info().rss - before < len(export.body)

    history = trivia.Keys.history(uid_of(ann))
    with ThreadPoolExecutor(1) as pool:
        password = {"password": PASSWORD}
        erasure = pool.submit(server.http, "DELETE", "/users/me", password, ann["token"])
        wait_until(lambda: server.redis.zcard(history) < 4_000, 60)
        server.stop(signal.SIGKILL)
        assert isinstance(erasure.exception(), (OSError, http.client.HTTPException))
    assert server.redis.zcard(history) > 0
    server.start()
    server.http("GET", "/users/me", token=ann["token"]).refused(401, "not_authenticated")
    other.connect().expect("queued")
    server.redis.zadd(trivia.Keys.erasures, {uid_of(ann): 1})  # half a minute has passed
    with longest_wait(other) as waits:
        wait_until(lambda: not server.redis.exists(trivia.Keys.erasures), 60)
    assert len(waits) > 5 and waits[-1] < 0.25, waits[-5:]
    assert traces(server, ann) == []


def test_a_client_sees_that_an_export_is_incomplete_when_redis_fails(make_server):
    server = make_server(edited_schema(rounds=1))
    ann, bob = server.register(), server.register()
    copy_game(server, ann, win(server, ann, bob), 10_000)
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/users/me/export",
        headers={"Authorization": f"Bearer {ann['token']}"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.read(1000).startswith(b'{"user":{"username":')
        server.redis.client_kill_filter(_type="pubsub")
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert "response broken off" in server.log and "Traceback" not in server.log


def test_exports_are_throttled(small):
    session = small.register()
    statuses = [
        small.http("GET", "/users/me/export", token=session["token"]).status for _ in range(11)
    ]
    assert statuses == [200] * 10 + [429]


# -- export


def test_an_export_contains_all_data_of_the_player(small):
    ann, bob = small.pair()
    play_all([ann, bob])
    game = ann.frames[-1]["game"]
    questions = [frame for frame in ann.frames if frame["type"] == "question"]
    login(small, ann.name)
    ann.close(), bob.close()
    export = small.http("GET", "/users/me/export", token=ann.token).json
    assert export["user"] == me(small, ann.token).json and export["user"]["email"] == email_of(
        ann.session
    )
    assert len(export["sessions"]) == 2 and all(
        one["expires_at"] > time.time() for one in export["sessions"]
    )
    assert export["games"] == [small.http("GET", f"/games/{game}", token=ann.token).json]
    [played] = export["games"][0]["rounds"]
    assert (played["text"], played["choices"]) == (questions[0]["text"], questions[0]["choices"])
    assert played["answers"].keys() == {ann.name, bob.name} and played["correct"] in range(
        len(played["choices"])
    )
    assert export["questions_seen"] == [questions[0]["text"]]


def test_an_export_contains_no_secrets_and_no_data_of_others(small):
    ann, bob = small.register(), small.register()
    win(small, ann, bob)
    text = small.http("GET", "/users/me/export", token=ann["token"]).body
    assert email_of(bob) not in text and uid_of(bob) not in text and "argon2" not in text
    assert ann["token"] not in text and trivia.digest(ann["token"][12:]) not in text


# -- past games


@pytest.fixture(scope="module")
def veteran(small):
    """Returns (session, game ids, oldest first, opponent). The first game is too old to list."""
    ann, bob = small.register(), small.register()
    games = [win(small, ann, bob) for _ in range(5)]
    age(small, ann, games[0], 30 * 86400)
    return ann, [*games, win(small, ann, bob)], bob


def age(server, session, game, seconds):
    """Makes a game older, by some seconds, in a player's list."""
    server.redis.zincrby(trivia.Keys.history(uid_of(session)), -seconds * 1000, game)


def my_games(server, session, query=""):
    answer = server.http("GET", f"/users/me/games{query}", token=session["token"])
    assert answer.status == 200, answer.body
    return answer.json


def test_a_player_s_games_are_listed_newest_first_without_those_too_old(small, veteran):
    ann, games, bob = veteran
    page = my_games(small, ann)
    assert [game["id"] for game in page["games"]] == games[:0:-1] and page["cursor"] is None
    ended = [game["ended_ms"] for game in page["games"]]
    assert ended == sorted(ended, reverse=True)
    first = page["games"][0]
    assert (first["queue"], first["reason"]) == ("random", "forfeit")
    assert [(row["player"], row["rank"]) for row in first["ranking"]] == [
        (ann["user"]["username"], 1),
        (bob["user"]["username"], 2),
    ]


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 100])
def test_cursors_lead_through_all_pages(small, veteran, limit):
    ann, games, _ = veteran
    seen, query = [], f"?limit={limit}"
    for _ in range(6):
        page = my_games(small, ann, query)
        assert 1 <= len(page["games"]) <= limit
        seen += [game["id"] for game in page["games"]]
        if page["cursor"] is None:
            break
        query = f"?limit={limit}&cursor={page['cursor']}"
    assert seen == games[:0:-1]


def test_games_are_listed_for_as_long_as_game_days_says(small):
    ann, bob = small.register(), small.register()
    games = [win(small, ann, bob) for _ in range(2)]
    age(small, ann, games[0], 30 * 86400 - 300)
    assert [game["id"] for game in my_games(small, ann)["games"]] == games[::-1]
    games.append(win(small, ann, bob))
    assert [game["id"] for game in my_games(small, ann)["games"]] == games[::-1]
    assert all(29 * 86400 < small.redis.ttl(trivia.Keys.game(game)) <= 30 * 86400 for game in games)


def test_only_the_newest_games_of_a_player_are_kept(small):
    ann, bob = small.register(), small.register()
    first = win(small, ann, bob)
    newer = {f"0000000000{i}": time.time() * 1000 + i for i in range(10, 60)}
    for session in (ann, bob):
        uid = uid_of(session)
        small.redis.zadd(trivia.Keys.history(uid), newer)
    last = win(small, ann, bob)
    wait_until(lambda: not small.redis.exists(trivia.Keys.game(first)))
    assert small.redis.exists(trivia.Keys.game(last))
    assert small.redis.zcard(trivia.Keys.history(uid)) == 50


def test_the_list_of_games_skips_an_expired_game(small):
    ann, bob = small.register(), small.register()
    games = [win(small, ann, bob) for _ in range(3)]
    small.redis.delete(trivia.Keys.game(games[1]))
    assert [game["id"] for game in my_games(small, ann)["games"]] == [games[2], games[0]]
    page = my_games(small, ann, f"?limit=1&cursor={games[1]}")
    assert [game["id"] for game in page["games"]] == [games[0]] and page["cursor"] is None
    small.http("GET", f"/games/{games[1]}", token=ann["token"]).refused(404, "not_found")
    assert len(small.http("GET", "/users/me/export", token=ann["token"]).json["games"]) == 2


def test_a_new_game_does_not_shift_the_next_page(small):
    ann, bob = small.register(), small.register()
    games = [win(small, ann, bob) for _ in range(3)]
    cursor = my_games(small, ann, "?limit=1")["cursor"]
    win(small, ann, bob)
    assert [game["id"] for game in my_games(small, ann, f"?cursor={cursor}")["games"]] == games[
        1::-1
    ]


@pytest.mark.parametrize(
    "query, field",
    [
        ("?cursor=", "cursor"),
        ("?cursor=nonsense", "cursor"),
        ("?cursor=" + "a" * 41, "cursor"),
        ("?cursor=abcdefghijkl", "cursor"),
        ("?cursor=a&cursor=b", "cursor"),
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?limit=-1", "limit"),
        ("?limit=1e1", "limit"),
        ("?offset=1", "offset"),
    ],
)
def test_an_invalid_page_of_games_is_refused(small, veteran, query, field):
    answer = small.http("GET", f"/users/me/games{query}", token=veteran[0]["token"])
    assert set(answer.refused(422, "invalid")["errors"]) == {field}


def test_the_cursor_of_another_player_is_refused(small, veteran):
    other = small.register()
    small.http("GET", f"/users/me/games?cursor={veteran[1][3]}", token=other["token"]).refused(
        422, "invalid"
    )


def test_a_game_is_shown_to_its_players_only(small, veteran):
    ann, games, bob = veteran
    path = f"/games/{games[-1]}"
    assert (
        small.http("GET", path, token=ann["token"]).json
        == small.http("GET", path, token=bob["token"]).json
    )
    small.http("GET", path, token=small.register()["token"]).refused(404, "not_found")
    small.http("GET", path).refused(401, "not_authenticated")


@pytest.mark.parametrize(
    "spoil",
    [
        str.upper,
        lambda game: game + "%0a",
        lambda game: game[:-1],
        lambda game: "a" * 12,
        lambda game: "%00",
        lambda game: "..%2f" + game,
    ],
)
def test_an_unknown_game_is_not_found(small, veteran, spoil):
    game = veteran[1][-1] if re.search("[a-z]", veteran[1][-1]) else "abcdefghijkl"
    small.http("GET", f"/games/{spoil(game)}", token=veteran[0]["token"]).refused(404, "not_found")


def test_a_running_game_is_not_shown(small):
    ann, bob = small.pair()
    small.http("GET", f"/games/{ann.frames[-1]['game']}", token=ann.token).refused(404, "not_found")
    assert my_games(small, ann.session)["games"] == []
    ann.send("leave")
    bob.expect("end")
    ann.close(), bob.close()


# -- leaderboards


def rank(server, session, rating):
    """Puts a player on the leaderboard by rating, as a game does."""
    server.redis.hset(trivia.Keys.user(uid_of(session)), mapping={"rating": rating, "games": 1})
    server.redis.zadd(trivia.Keys.board("rating", ""), {uid_of(session): rating})


@pytest.fixture(scope="module")
def ladder(crowd):
    """Returns (server, sessions, best first). Only these 7 players are on its leaderboard."""
    sessions = [crowd.register() for _ in range(7)]
    for place, session in enumerate(sessions):
        rank(crowd, session, 3000.5 - 100 * place)
    return crowd, sessions


def test_a_leaderboard_starts_with_the_best_players(ladder):
    server, sessions = ladder
    names = [session["user"]["username"] for session in sessions]
    assert board(server, "rating", "?limit=3") == {
        "leaderboard": "rating",
        "period": None,
        "total": 7,
        "entries": [
            {"rank": i + 1, "username": names[i], "value": 3001 - 100 * i, "provisional": True}
            for i in range(3)
        ],
    }
    assert [entry["username"] for entry in board(server, "rating")["entries"]] == names


@pytest.mark.parametrize(
    "query, ranks",
    [
        ("?limit=2&offset=5", [6, 7]),
        ("?offset=6", [7]),
        ("?offset=7", []),
        ("?limit=1", [1]),
        ("?offset=1000000", []),
    ],
)
def test_a_leaderboard_is_read_in_pages(ladder, query, ranks):
    page = board(ladder[0], "rating", query)
    assert [entry["rank"] for entry in page["entries"]] == ranks and page["total"] == 7


@pytest.mark.parametrize(
    "place, limit, ranks",
    [
        (3, 3, [3, 4, 5]),
        (3, 1, [4]),
        (0, 3, [1, 2, 3]),
        (6, 3, [6, 7]),
        (3, 100, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_a_player_reads_the_page_around_their_rank(ladder, place, limit, ranks):
    server, sessions = ladder
    page = board(server, "rating", f"?around=me&limit={limit}", sessions[place]["token"])
    assert [entry["rank"] for entry in page["entries"]] == ranks
    assert sessions[place]["user"]["username"] in [entry["username"] for entry in page["entries"]]


def test_the_page_around_a_player_requires_a_session(ladder):
    server, sessions = ladder
    server.http("GET", "/leaderboards/rating?around=me").refused(401, "not_authenticated")
    server.http("GET", "/leaderboards/rating?around=you", token=sessions[0]["token"]).refused(
        422, "invalid"
    )
    newcomer = server.register()
    page = board(server, "rating", "?around=me", newcomer["token"])
    assert page["entries"] == [] and page["total"] == 7


@pytest.mark.parametrize("name", ["nonsense", "RATING", "rating%2f", "username", "%00"])
def test_an_unknown_leaderboard_is_not_found(ladder, name):
    ladder[0].http("GET", f"/leaderboards/{name}").refused(404, "not_found")


def test_a_bad_token_is_refused_even_where_none_is_needed(ladder):
    ladder[0].http("GET", "/leaderboards/rating", token="nonsense").refused(
        401, "not_authenticated"
    )


def test_games_update_the_leaderboards(small):
    ann, bob = small.register(), small.register()
    win(small, ann, bob)
    names = [session["user"]["username"] for session in (ann, bob)]
    users = {name: small.http("GET", f"/users/{name}").json for name in names}
    assert [(users[name]["wins"], users[name]["games"]) for name in names] == [(1, 1), (0, 1)]
    assert users[names[0]]["rating"] > 1500 > users[names[1]]["rating"]
    shown = wait_until(
        lambda: (all_ := listed(small, "rating")) and set(names) <= set(all_) and all_
    )
    assert {name: shown[name] for name in names} == {name: users[name]["rating"] for name in names}
    weekly = listed(small, "wins")
    assert weekly[names[0]] == 1 and names[1] not in weekly
    assert board(small, "wins")["period"] == trivia.period_of("week", time.time())


def test_a_weekly_leaderboard_starts_from_zero_each_week(small):
    ann, bob = small.register(), small.register()
    name, uid = ann["user"]["username"], uid_of(ann)
    win(small, ann, bob)
    win(small, ann, bob)
    assert listed(small, "wins")[name] == 2
    # A week passes: this week's leaderboard becomes last week's.
    last = trivia.period_of("week", time.time() - 7 * 86400)
    field = small.redis.hget(trivia.Keys.user(uid), "board:wins")
    assert field.split(" ")[1:] == ["0", "wins"]
    small.redis.hset(trivia.Keys.user(uid), "board:wins", f"{last} 0")
    small.redis.zrem(trivia.Keys.board("wins", trivia.period_of("week", time.time())), uid)
    assert (
        patch(small, ann, {"avatar": "https://example.org/a"}).status == 200
    )  # updates the leaderboards
    assert name not in listed(small, "wins")
    win(small, ann, bob)
    assert listed(small, "wins")[name] == 1
    assert small.http("GET", f"/users/{name}").json["wins"] == 3


def test_a_weekly_leaderboard_expires(small):
    win(small, small.register(), small.register())
    left = small.redis.ttl(trivia.Keys.board("wins", trivia.period_of("week", time.time())))
    assert 7 * 86400 < left <= 14 * 86400


@pytest.mark.parametrize(
    "kind, before, after",
    [
        ("day", "2026-02-28T23:59:59", "2026-03-01T00:00:00"),
        ("week", "2026-11-29T23:59:59", "2026-11-30T00:00:00"),
        ("week", "2027-01-03T23:59:59", "2027-01-04T00:00:00"),
        ("month", "2026-09-30T23:59:59", "2026-10-01T00:00:00"),
        ("month", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
        ("week", "2024-12-29T23:59:59", "2024-12-30T00:00:00"),
    ],
)
def test_a_later_period_sorts_after_an_earlier_one(kind, before, after):
    first, then = (
        trivia.period_of(kind, datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp())
        for when in (before, after)
    )
    assert first < then


@pytest.mark.parametrize("kind, longest", [("day", 1), ("week", 7), ("month", 31)])
def test_periods_have_the_right_length_and_sort_by_time(kind, longest):
    days = [datetime(2024, 1, 1, 12, tzinfo=UTC) + timedelta(days=i) for i in range(1500)]
    periods = [trivia.period_of(kind, day.timestamp()) for day in days]
    assert periods == sorted(periods)
    assert max(periods.count(period) for period in set(periods)) == longest


@pytest.mark.parametrize("kind, longest", [("day", 1), ("week", 7), ("month", 31)])
def test_the_keys_of_a_leaderboard_name_every_period_that_may_still_be_stored(
    monkeypatch, kind, longest
):
    first, before = datetime(2026, 1, 1, 12, tzinfo=UTC), 2 * longest + 1
    noons = [first + timedelta(days=i) for i in range(-before, 1500)]
    keys = [trivia.Keys.board("wins", trivia.period_of(kind, noon.timestamp())) for noon in noons]
    for i in range(before, len(noons)):
        now = types.SimpleNamespace(time=noons[i].timestamp)
        monkeypatch.setattr(trivia, "time", now)
        stored = set(keys[i - before : i + 1])
        assert stored <= set(trivia.Boards.keys("wins", kind)), noons[i]


# -- the script that applies results


def apply(
    server,
    uid,
    game="g1",
    wins=1,
    change=10,
    sigma="400",
    period="2026-W47",
    keep=86_400_000,
    ended=1000,
):
    keys = [make(uid) for make in (trivia.Keys.user, trivia.Keys.history, trivia.Keys.met)]
    keys += trivia.Keys.merged(uid), trivia.Keys.seen(uid)
    boards = "wins", "wins", period, 0
    result = game, ended, keep, 1000, 1, wins, change, sigma, 1500, 0, *[""] * 5
    return fcall(server, "apply_result", keys, *result, *boards)[0]


@pytest.fixture
def somebody(server):
    """The id of a user whom no other test uses."""
    uid = "t" + unique_name()
    server.redis.hset(
        trivia.Keys.user(uid), mapping={"username": uid, "wins": 5, "board:wins": "2026-W46 3"}
    )
    yield uid
    server.redis.delete(trivia.Keys.user(uid), trivia.Keys.history(uid))


def test_a_result_is_applied_once(server, somebody):
    assert apply(server, somebody) == 1
    applied = server.redis.hgetall(trivia.Keys.user(somebody))
    assert applied == {
        "username": somebody,
        "wins": "6",
        "games": "1",
        "rating": "1510",
        ":sigma": "400",
        "board:wins": "2026-W47 5 wins",
    }
    assert apply(server, somebody) == 0
    assert server.redis.hgetall(trivia.Keys.user(somebody)) == applied


def test_a_result_in_the_same_week_keeps_the_week_s_starting_value(server, somebody):
    assert apply(server, somebody, period="2026-W46") == 1
    assert server.redis.hmget(trivia.Keys.user(somebody), "wins", "board:wins") == [
        "6",
        "2026-W46 3",
    ]


def test_a_late_result_does_not_restore_an_earlier_week(server, somebody):
    assert apply(server, somebody, period="2026-W45") == 1
    assert server.redis.hmget(trivia.Keys.user(somebody), "wins", "board:wins") == [
        "6",
        "2026-W46 3",
    ]


def test_an_unrated_defeat_counts_as_a_game_only(server, somebody):
    assert apply(server, somebody, wins=0, change=0, sigma="") == 1
    assert server.redis.hmget(trivia.Keys.user(somebody), "wins", "games", "rating", ":sigma") == [
        "5",
        "1",
        None,
        None,
    ]


def test_a_player_s_list_drops_games_older_than_the_limit(server, somebody):
    for i in range(5):
        assert apply(server, somebody, game=f"g{i}", ended=1000 + i, keep=3) == 1
    assert server.redis.zrange(trivia.Keys.history(somebody), 0, -1) == ["g2", "g3", "g4"]


def test_a_result_of_an_erased_player_writes_nothing(server):
    uid = "t" + unique_name()
    assert apply(server, uid) == 0
    assert not server.redis.exists(trivia.Keys.user(uid)) and not server.redis.exists(
        trivia.Keys.history(uid)
    )


def test_simultaneous_calls_apply_a_result_once(server, somebody):
    assert sorted(at_once(8, lambda i: apply(server, somebody))) == [0] * 7 + [1]
    assert server.redis.hget(trivia.Keys.user(somebody), "wins") == "6"


# -- authentication


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/users/me"),
        ("PATCH", "/users/me"),
        ("DELETE", "/users/me"),
        ("GET", "/users/me/export"),
        ("GET", "/users/me/games"),
        ("GET", "/games/abcdefghijkl"),
        ("POST", "/auth/logout"),
        ("DELETE", "/auth/sessions"),
        ("POST", "/auth/password"),
    ],
)
def test_a_route_about_the_caller_needs_a_session(server, method, path):
    answer = server.http(method, path, {})
    answer.refused(401, "not_authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
