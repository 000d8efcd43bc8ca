"""Sign-in without a password: guests, identities, merges, recovery.

The tests run real servers, identity providers and mail servers.
"""

import asyncio
import base64
import contextlib
import email
import functools
import hashlib
import hmac
import http.client
import itertools
import json
import os
import queue
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from conftest import (
    FOLDER,
    PASSWORD,
    ROOT,
    Phone,
    Server,
    Valkey,
    at_once,
    check,
    edited_schema,
    play_all,
    trivia_py,
    wait_until,
)
from mail_server import Box, controller_of
from test_end_to_end import workers_of

sys.path.insert(0, str(ROOT))
import trivia  # noqa: E402
from test_failures import Link  # noqa: E402


def widen(tree):
    tree["users"]["fields"]["nickname"] = {"type": "string", "maxLength": 20}


@pytest.fixture(scope="module")
def server():
    """A server that the tests of this file share."""
    running = Server(edited_schema(widen))
    try:
        yield running.start()
    finally:
        running.close()


def new_secret():
    return secrets.token_urlsafe(32)


def uid_of(session):
    return session["token"][:12]


def enter(server, secret=None, status=201):
    """Registers or signs in a guest, and returns the session."""
    answer = server.http("POST", "/auth/guest", {"secret": secret or new_secret()})
    assert answer.status == status, answer.body
    return answer.json


def me(server, session):
    return server.http("GET", "/users/me", token=session["token"])


def new_account(**fields):
    name = f"a{secrets.token_hex(6)}"
    return {"username": name, "email": f"{name}@example.org", "password": PASSWORD} | fields


# ---- guests -------------------------------------------------------------------------------------


def test_a_guest_registers_with_one_request_and_plays(server):
    sessions = [enter(server) for _ in range(2)]
    assert len({session["user"]["username"] for session in sessions}) == 2
    for session in sessions:
        user = session["user"]
        assert user["guest"] is True and user["email"] is None and user["rating"] == 1500
        assert re.fullmatch(r"[A-Z][a-z]+-[A-Z][a-z]+-\d{3}", user["username"])
        assert me(server, session).json == user
        shown = server.http("GET", f"/users/{user['username']}").json
        assert shown["guest"] is True and "email" not in shown
    phones = [Phone(server, session, "rated") for session in sessions]
    start = phones[0].expect("start")
    assert [player["guest"] for player in start["players"]] == [True, True]
    ends = play_all(phones)
    assert {row["player"] for row in ends[0]["ranking"]} == {phone.name for phone in phones}
    assert all("rating" in row for row in ends[0]["ranking"])
    board = server.http("GET", "/leaderboards/rating?around=me", token=sessions[0]["token"]).json
    assert sessions[0]["user"]["username"] in [row["username"] for row in board["entries"]]
    for phone in phones:
        phone.close()


def test_the_same_secret_finds_the_same_guest(server):
    secret = new_secret()
    first, again = enter(server, secret), enter(server, secret, 200)
    assert again["user"] == first["user"] and again["token"] != first["token"]
    assert [me(server, session).status for session in (first, again)] == [200, 200]
    other = enter(server, secret[:-1] + ("a" if secret[-1] != "a" else "b"))
    assert uid_of(other) != uid_of(first)


def test_simultaneous_requests_with_one_secret_make_one_guest(server):
    secret = new_secret()
    answers = at_once(12, lambda i: server.http("POST", "/auth/guest", {"secret": secret}))
    assert {answer.status for answer in answers} == {200, 201}
    assert [answer.status for answer in answers].count(201) == 1
    assert len({uid_of(answer.json) for answer in answers}) == 1


def test_the_secret_of_a_guest_is_stored_as_a_digest_only(server):
    secret = new_secret()
    enter(server, secret)
    stored = {key: server.redis.dump(key) for key in server.redis.keys("user:*")}
    everything = " ".join(map(str, [server.redis.hgetall(key) for key in stored]))
    assert secret not in everything and secret not in server.log


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"secret": None},
        {"secret": 5},
        {"secret": "x" * 31},
        {"secret": "x" * 129},
        {"secret": "x" * 40 + "\0"},
        {"secret": ["x" * 40]},
        {"secret": "x" * 40, "username": "somebody"},
    ],
)
def test_an_invalid_secret_makes_no_guest(server, body):
    before = server.redis.zcard("guests:{guests}")
    server.http("POST", "/auth/guest", body).refused(422, "invalid")
    assert server.redis.zcard("guests:{guests}") == before


def test_a_guest_changes_their_name_and_it_stays_unique(server):
    guest, other = enter(server), enter(server)
    name = f"g{secrets.token_hex(5)}"
    answer = server.http("PATCH", "/users/me", {"username": name}, guest["token"])
    assert answer.status == 200 and answer.json["username"] == name and answer.json["guest"]
    answer = server.http("PATCH", "/users/me", {"username": name.upper()}, other["token"])
    answer.refused(409, "username_taken")


FEW = [f"{letter}x" for letter in "abcdefghijklmnopqrst"]


def use_few_names(tree):
    tree["sign_in"]["names"] = {"first": FEW, "second": FEW}


def take_names(client):
    """Claims a fifth of the few names for another player."""
    line = client.pipeline(transaction=False)
    for first, second, number in itertools.product(FEW, FEW, range(100, 1000, 5)):
        name = f"{first}-{second}-{number}"
        line.hset(trivia.Keys.unique(name), name, "somebody op")
    line.execute()


def check_claims(client, guests):
    """Checks that each guest has a unique name that was free. `guests` is {name: uid}."""
    folded = {name.casefold(): uid for name, uid in guests.items()}
    assert len(folded) == len(guests) and all(int(name[-3:]) % 5 for name in folded)
    for name, uid in folded.items():
        assert client.hget(trivia.Keys.unique(name), name).startswith(f"{uid} ")


def test_a_guest_whose_name_is_taken_gets_another(make_server):
    server = make_server(edited_schema(use_few_names))
    client = server.redis
    take_names(client)
    guests = {one["user"]["username"]: uid_of(one) for one in (enter(server) for _ in range(60))}
    check_claims(client, guests)
    claim = lambda name: client.hget(trivia.Keys.unique(name), name)
    wait_until(lambda: all(claim(one.casefold()).count(" ") == 1 for one in guests))  # confirmed


def claims(server):
    """Returns all claims on unique values. A confirmed claim has two parts."""
    keys = server.redis.keys("unique:*")
    return [claim for key in keys for claim in server.redis.hvals(key)]


def test_a_guest_has_no_password_to_check_or_change(server):
    guest = enter(server)
    login = {"login": guest["user"]["username"], "password": ""}
    server.http("POST", "/auth/login", login).refused(401, "bad_credentials")
    change = {"password": "", "new_password": PASSWORD}
    answer = server.http("POST", "/auth/password", change, guest["token"])
    answer.refused(403, "wrong_password")


def test_a_guest_is_erased_without_a_password_and_an_account_is_not(server):
    secret = new_secret()
    guest = enter(server, secret)
    assert server.http("DELETE", "/users/me", {}, guest["token"]).status == 204
    me(server, guest).refused(401, "not_authenticated")
    assert not server.redis.exists(f"user:{{{uid_of(guest)}}}")
    assert enter(server, secret)["user"]["username"] != guest["user"]["username"]
    account = server.register()
    answer = server.http("DELETE", "/users/me", {}, account["token"])
    assert "password" in answer.refused(422, "invalid")["errors"]


# -- creation


class SlowLink(Link):
    """A link to Redis that delays each packet, however many are in transit."""

    delay_s = 0

    def _carry(self, source, sink):
        under_way = queue.SimpleQueue()
        threading.Thread(target=self._deliver, args=(under_way, sink), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                under_way.put((time.monotonic() + self.delay_s, data))

    def _deliver(self, under_way, sink):
        with contextlib.suppress(OSError):
            while True:
                due_s, data = under_way.get()
                time.sleep(max(0, due_s - time.monotonic()))
                sink.sendall(data)


def test_a_guest_registers_or_signs_in_with_one_round_trip_to_redis(make_server):
    with contextlib.closing(Valkey().start()) as valkey:
        with contextlib.closing(SlowLink(str(valkey.path))) as link:
            server = make_server(env={"REDIS_URL": link.url})
            link.delay_s = 0.25
            secrets_of_guests = [new_secret() for _ in range(3)]
            for status in (201, 200):
                seconds = []
                for secret in secrets_of_guests:
                    begun_s = time.monotonic()
                    enter(server, secret, status)
                    seconds.append(time.monotonic() - begun_s)
                assert 0.5 <= min(seconds) < 0.9, seconds


def abandon(server, guest, until_ms=1):
    """Makes a guest look as if their worker died during the creation."""
    server.redis.hset(trivia.Keys.user(uid_of(guest)), ":new", until_ms)


def claim_of(server, name):
    folded = trivia.fold(name)
    return (server.redis.hget(trivia.Keys.unique(folded), folded) or "-").split(" ")


@pytest.mark.parametrize("claim", ["own", "new", "missing", "of another"])
def test_a_guest_whose_creation_was_interrupted_gets_a_unique_name(server, claim):
    secret = new_secret()
    guest, other = enter(server, secret), enter(server)
    name = guest["user"]["username"]
    wait_until(lambda: len(claim_of(server, name)) == 2)
    folded = trivia.fold(name)
    bucket = trivia.Keys.unique(folded)
    if claim == "missing":
        server.redis.hdel(bucket, folded)
    elif claim != "own":
        uid = uid_of(guest if claim == "new" else other)
        server.redis.hset(bucket, folded, f"{uid} op" + " 1" * (claim == "new"))
    abandon(server, guest)
    again = enter(server, secret, 200)["user"]["username"]
    assert (again == name) == (claim != "of another")
    assert claim_of(server, again)[0] == uid_of(guest)
    assert server.http("GET", f"/users/{again}").json["username"] == again
    stored = server.redis.hgetall(trivia.Keys.user(uid_of(guest)))
    assert ":new" not in stored and stored["username"] == again
    assert me(server, guest).status == 200


def test_a_request_waits_while_another_one_creates_the_same_guest(server):
    secret = new_secret()
    guest = enter(server, secret)
    abandon(server, guest, round(server.redis.time()[0] * 1000) + 2500)
    begun_s = time.monotonic()
    assert enter(server, secret, 200)["user"] == guest["user"]
    assert time.monotonic() - begun_s > 1


@pytest.fixture(scope="module")
def mortal(provider):
    """A server with two workers, and its Redis. Tests kill both. A fifth of all names are taken."""
    valkey = Valkey().start()
    command = [sys.executable, "trivia.py", "--port", "0", "--workers", "2"]
    edit = lambda tree: (use(tree, provider), use_few_names(tree))
    server = Server(edited_schema(edit), command, env={"REDIS_URL": valkey.url})
    try:
        server.start()
        take_names(valkey.client)
        yield server, valkey
        assert "Traceback" not in server.log, server.log[-4000:]
    finally:
        server.close()
        valkey.close()


def test_guests_get_unique_names_while_workers_and_redis_are_killed(mortal):
    server, valkey = mortal
    insist = lambda _: insist_on_a_guest(server)
    guests = do_under_sudden_deaths(server, valkey, insist, range(24))
    wait_until(lambda: me(server, guests[0]).status == 200, 30)
    shown = {me(server, guest).json["username"]: uid_of(guest) for guest in guests}
    assert len(shown) == len(guests)
    check_claims(valkey.client, shown)


def insist_on_a_guest(server):
    """Registers a guest as an app does: it repeats a request that failed."""
    secret, deadline = new_secret(), time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer = server.http("POST", "/auth/guest", {"secret": secret})
            if answer.status in (200, 201):
                return answer.json
            assert answer.status == 503, answer.body
        time.sleep(0.05)
    pytest.fail("no guest in time")


# -- bounds


def test_new_guests_of_one_address_are_bounded_and_known_ones_still_sign_in(make_server):
    def edit(tree):
        tree["limits"] |= {"registrations": 5, "registration_seconds": 3600}

    server = make_server(edited_schema(edit))
    kept = [new_secret() for _ in range(5)]
    for secret in kept:
        enter(server, secret)
    answer = server.http("POST", "/auth/guest", {"secret": new_secret()})
    answer.refused(429, "too_many_attempts")
    assert 3000 < int(answer.headers["retry-after"]) <= 3600
    for secret in kept * 2:
        enter(server, secret, 200)
    assert server.redis.zcard("guests:{guests}") == 5 == len(server.redis.keys("user:*"))
    wait_until(lambda: len(claims(server)) == 5)


def test_the_total_number_of_guests_is_bounded(make_server):
    def edit(tree):
        tree["sign_in"]["guests"]["most"] = 7

    server = make_server(edited_schema(edit))
    kept = [new_secret() for _ in range(7)]
    for secret in kept:
        enter(server, secret)
    answers = at_once(5, lambda i: server.http("POST", "/auth/guest", {"secret": new_secret()}))
    for answer in answers:
        answer.refused(503, "guests_full")
    enter(server, kept[0], 200)
    session = server.register()  # accounts are not guests
    assert me(server, session).status == 200 and len(server.redis.keys("user:*")) == 8


# -- upgrade


def test_an_upgrade_keeps_everything(server):
    secret = new_secret()
    guest, rival = enter(server, secret), enter(server)
    ends = play_all([Phone(server, guest, "random"), Phone(server, rival, "random")])
    before, uid = me(server, guest).json, uid_of(guest)
    seen = server.redis.strlen(f"seen:{{{uid}}}")
    phones = [Phone(server, guest, "random"), Phone(server, rival, "random")]
    question = phones[0].expect("question")
    account = new_account(nickname="Nick")
    answer = server.http("POST", "/auth/upgrade", account, guest["token"])
    assert answer.status == 200, answer.body
    user = answer.json["user"]
    assert "guest" not in user and user["username"] == account["username"]
    assert user["nickname"] == "Nick" and user["email"] == account["email"]
    same = ("rating", "games", "wins", "created_at")
    assert {key: user[key] for key in same} == {key: before[key] for key in same}
    phones[0].send(
        "answer", round=question["round"], choice=0
    )  # the socket stays open and the game continues
    phones[1].expect("answered")
    again = play_all(phones)
    games = server.http("GET", "/users/me/games", token=guest["token"]).json["games"]
    assert [game["id"] for game in games] == [again[0]["game"], ends[0]["game"]]
    assert server.redis.strlen(f"seen:{{{uid}}}") >= seen > 0
    login = server.http(
        "POST", "/auth/login", {"login": account["email"], "password": PASSWORD}
    ).json
    assert uid_of(login) == uid and login["user"]["games"] == 2
    assert server.redis.zscore("guests:{guests}", uid) is None
    server.http("POST", "/auth/guest", {"secret": secret}).refused(409, "has_account")
    server.http("POST", "/auth/upgrade", new_account(), guest["token"]).refused(409, "not_a_guest")
    for phone in phones:
        phone.close()


def test_an_upgrade_without_a_username_keeps_the_name(server):
    guest = enter(server)
    account = new_account()
    del account["username"]
    user = server.http("POST", "/auth/upgrade", account, guest["token"]).json["user"]
    assert user["username"] == guest["user"]["username"]


@pytest.mark.parametrize("clash", ["username", "email"])
def test_an_upgrade_to_a_taken_value_changes_nothing(server, clash):
    resident, guest = server.register(), enter(server)
    account = new_account(**{clash: resident["user"][clash].upper()})
    answer = server.http("POST", "/auth/upgrade", account, guest["token"])
    answer.refused(409, f"{clash}_taken")
    assert me(server, guest).json == guest["user"]
    free = "email" if clash == "username" else "username"
    wanted = new_account(**{free: account[free]})
    assert server.http("POST", "/auth/register", wanted).status == 201


@pytest.mark.parametrize(
    "change",
    [
        {"password": "short"},
        {"password": None},
        {"email": "no"},
        {"username": "a b"},
        {"rating": 3000},
        {"guest": False},
    ],
)
def test_an_upgrade_follows_the_rules_of_a_registration(server, change):
    guest = enter(server)
    answer = server.http("POST", "/auth/upgrade", new_account(**change), guest["token"])
    assert list(answer.refused(422, "invalid")["errors"]) == list(change)
    assert me(server, guest).json == guest["user"]


def test_only_one_of_simultaneous_upgrades_of_a_guest_succeeds(server):
    guest = enter(server)
    wanted = [new_account() for _ in range(6)]
    answers = at_once(6, lambda i: server.http("POST", "/auth/upgrade", wanted[i], guest["token"]))
    [won] = [i for i, answer in enumerate(answers) if answer.status == 200]
    for i, answer in enumerate(answers):
        if i != won:
            answer.refused(409, "not_a_guest")
    assert me(server, guest).json["username"] == wanted[won]["username"]
    loser = wanted[1 - won] if won < 2 else wanted[0]
    assert server.http("POST", "/auth/register", loser).status == 201  # its values are free


# -- expiry


def make_due(server, uid, days_ago):
    """Moves the creation of a guest into the past, and makes the check for expiry due."""
    server.redis.hset(f"user:{{{uid}}}", ":created", int(time.time()) - days_ago * 86400)
    server.redis.zadd("guests:{guests}", {uid: 1})


def test_a_guest_who_does_not_play_expires_and_leaves_no_data(make_server):
    server = make_server(edited_schema(widen, seat_seconds=60, answer_seconds=60))
    gone, fresh, busy, rival, waiting = (enter(server) for _ in range(5))
    phones = [Phone(server, busy, "random"), Phone(server, rival, "random")]
    phones[0].expect("question")
    queued = Phone(server, waiting, "party")
    queued.expect("queued")
    secret = new_secret()
    veteran = enter(server, secret)
    now = server.redis.time()[0]
    server.redis.zadd(f"history:{{{uid_of(veteran)}}}", {"0" * 12: now * 1000})
    for session in (gone, busy, waiting, veteran):
        make_due(server, uid_of(session), 31)
    make_due(server, uid_of(fresh), 29)
    wait_until(lambda: me(server, gone).status == 401, 40)
    for session in (fresh, busy, waiting, veteran):  # played lately, or has a seat
        assert me(server, session).status == 200
    assert me(server, gone).status == 401
    name = gone["user"]["username"]
    assert server.http("GET", f"/users/{name}").status == 404
    left = [key for key in server.redis.keys("*") if uid_of(gone) in key]
    assert not left and server.redis.zscore("guests:{guests}", uid_of(gone)) is None
    assert len(claims(server)) == 5
    phones[0].send("answer", round=1, choice=0)
    phones[1].expect("answered")
    due = server.redis.zscore("guests:{guests}", uid_of(fresh))
    assert 0 < due / 1000 - now < 1.1 * 86400
    for phone in (*phones, queued):
        phone.close()


def test_guests_are_off_unless_the_schema_declares_them(make_server):
    server = make_server(edited_schema(lambda tree: tree.pop("sign_in")))
    for path in ("/auth/guest", "/auth/upgrade"):
        server.http("POST", path, {"secret": new_secret()}).refused(404, "not_found")
    document = server.http("GET", "/docs/openapi.json").json
    assert "/auth/guest" not in document["paths"] and "/auth/register" in document["paths"]


def test_guests_stay_off_leaderboards_if_the_schema_says_so(make_server):
    def edit(tree):
        widen(tree)
        tree["sign_in"]["guests"]["leaderboards"] = False

    server = make_server(edited_schema(edit, rounds=1))
    guest, player = enter(server), server.register()
    phones = [Phone(server, guest, "random"), Phone(server, player, "random")]
    play_all(phones)
    board = lambda: [
        row["username"] for row in server.http("GET", "/leaderboards/rating").json["entries"]
    ]
    assert board() == [player["user"]["username"]]
    server.http("POST", "/auth/upgrade", account := new_account(), guest["token"])
    assert set(board()) == {player["user"]["username"], account["username"]}
    for phone in phones:
        phone.close()


TWICE = {"first": ["Able"] * 20, "second": ["Otter"] * 20}
LONG = dict.fromkeys(TWICE, [f"{chr(97 + i)}longwords" for i in range(20)])


@pytest.mark.parametrize(
    "guests, names, words",
    [
        ({"guest_days": 0}, {}, "sign_in.guests.guest_days: found 0; expected at least 1"),
        (
            {"guest_day": 3},
            {},
            "sign_in.guests.guest_day: found an unknown key; expected guest_days?",
        ),
        ({"most": 10**9}, {}, "sign_in.guests.most: found 1000000000; expected at most"),
        ({}, TWICE, "sign_in.names.first: found"),
        ({}, LONG, 'sign_in.names: found {"first": ["along'),
        ({}, None, "sign_in.names: found nothing; expected this key"),
    ],
)
def test_check_says_what_is_wrong_with_guests(tmp_path, guests, names, words):
    def edit(tree):
        tree["sign_in"]["guests"] |= guests
        if names is None:
            del tree["sign_in"]["names"]
        elif names:
            tree["sign_in"]["names"] = names

    said = check(tmp_path / "schema.yaml", edited_schema(edit))
    assert words in said and re.search(r"schema.yaml:\d+: sign_in", said), said


# ---- identities ---------------------------------------------------------------------------------


@functools.cache
def rsa_key(name):
    """Returns the key of this name, the same for every provider. A new key takes 0.1 s."""
    return rsa.generate_private_key(65537, 2048)


class OpenId:
    """An identity provider in a process of its own, and its signing keys."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="oidc-", dir=FOLDER))
        (self.folder / ".well-known").mkdir()
        self.process, self.port, self.keys = None, "", {}
        self.rotate("k1")
        self.start()

    def start(self):
        command = [sys.executable, ROOT / "tests" / "provider.py", self.folder]
        command += [self.port] if self.port else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = self.process.stdout.readline().strip()
        self.issuer = f"http://127.0.0.1:{self.port}"
        endpoints = {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/jwks.json",
            "token_endpoint": f"{self.issuer}/token",
            "revocation_endpoint": f"{self.issuer}/revoke",
        }
        file = self.folder / ".well-known" / "openid-configuration"
        file.write_text(json.dumps(endpoints))

    def stop(self):
        self.process.kill()
        self.process.wait(10)

    def close(self):
        self.stop()
        shutil.rmtree(self.folder)

    def rotate(self, *names):
        """Publishes keys of these names, and no others; the first one signs."""
        self.keys |= {name: rsa_key(name) for name in names}
        published = []
        for name in names:
            jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.keys[name].public_key()))
            published.append(jwk | {"kid": name, "use": "sig", "alg": "RS256"})
        (self.folder / "jwks.json").write_text(json.dumps({"keys": published}))
        self.name = names[0]

    def let_in(self, sub):
        """Makes the provider sign in the next browser as this person."""
        form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        key = self.keys[self.name].private_bytes(*form).decode()
        signing = {"issuer": self.issuer, "kid": self.name, "key": key}
        (self.folder / "signing.json").write_text(json.dumps(signing))
        (self.folder / "person").write_text(sub)

    def token(self, sub=None, key=None, alg="RS256", kid=None, drop=(), **claims):
        """Returns (id_token, nonce) for a person."""
        now, nonce = int(time.time()), secrets.token_hex(16)
        claims = {
            "iss": self.issuer,
            "aud": "app.ios",
            "sub": sub or secrets.token_hex(8),
            "iat": now,
            "exp": now + 600,
            "nonce": nonce,
        } | claims
        claims = {name: value for name, value in claims.items() if name not in drop}
        headers = {"kid": kid or self.name}
        return jwt.encode(claims, key or self.keys[self.name], alg, headers), nonce

    def noted(self, name):
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture(scope="module")
def provider():
    with contextlib.closing(OpenId()) as one:
        yield one


@pytest.fixture(scope="module")
def mailbox():
    with contextlib.closing(MailBox()) as one:
        yield one


def page(tree):
    tree["sign_in"]["recovery"]["page"] = "https://quiz.example.org/"
    german = {"subject": "Dein Code {code}", "text": "Hallo {username}: {code} {link}"}
    tree["sign_in"]["recovery"]["mails"]["de"] = {"reset": german, "confirm": german}


def use(tree, provider):
    widen(tree)
    spec = {"issuer": provider.issuer, "audiences": ["app.ios", "app.android"]}
    tree["sign_in"]["providers"] = {"acme": spec}


@pytest.fixture(scope="module")
def club(provider, mailbox):
    """A server with an identity provider and mail, so it has all routes."""
    env = {"TRIVIA_SECRET_ACME": "client-secret"}
    edit = lambda tree: (use(tree, provider), page(tree))
    env |= {"TRIVIA_MAIL": mailbox.url}
    running = Server(edited_schema(edit, rounds=1), env=env)
    try:
        yield running.start()
    finally:
        running.close()


def present(server, token_and_nonce, session=None, **more):
    token, nonce = token_and_nonce
    body = {"id_token": token, "nonce": nonce} | more
    return server.http("POST", "/auth/oidc/acme", body, session and session["token"])


def sign_in(server, provider, sub, session=None, **claims):
    answer = present(server, provider.token(sub, **claims), session)
    assert answer.status in (200, 201), answer.body
    return answer.json


def test_simultaneous_first_sign_ins_make_one_account(club, provider):
    """The first requests to a server also import the verification of tokens, simultaneously."""
    sub = secrets.token_hex(8)
    tokens = [provider.token(sub) for _ in range(8)]
    answers = at_once(8, lambda i: present(club, tokens[i]))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len({uid_of(answer.json) for answer in answers}) == 1


def test_an_identity_makes_an_account_once_and_signs_in_again(club, provider):
    sub = secrets.token_hex(8)
    first = present(club, provider.token(sub, email="a@example.org", email_verified=False))
    assert first.status == 201 and "guest" not in first.json["user"]
    assert first.json["user"]["email"] is None
    again = present(club, provider.token(sub, aud="app.android"))
    assert again.status == 200 and uid_of(again.json) == uid_of(first.json)
    assert again.json["user"] == first.json["user"]
    other = present(club, provider.token())
    assert other.status == 201 and uid_of(other.json) != uid_of(first.json)


def test_an_account_gets_the_verified_address_of_its_identity_if_it_is_free(club, provider):
    email = f"{secrets.token_hex(6)}@example.org"
    user = sign_in(club, provider, None, email=email, email_verified=True)["user"]
    assert user["email"] == email
    user = sign_in(club, provider, None, email=email.upper(), email_verified="true")["user"]
    assert user["email"] is None
    user = sign_in(club, provider, None, email="no", email_verified=True)["user"]
    assert user["email"] is None


@pytest.mark.parametrize("hashed", [False, True])
def test_the_app_may_hash_the_nonce(club, provider, hashed):
    nonce = secrets.token_hex(16)
    given = hashlib.sha256(nonce.encode()).hexdigest() if hashed else nonce
    token, _ = provider.token(nonce=given)
    assert present(club, (token, nonce)).status == 201


@functools.cache
def strange_key():
    """A key that no provider has published."""
    return rsa.generate_private_key(65537, 2048)


def unsigned(provider):
    token, nonce = provider.token()
    body = token.split(".")[1]
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT","kid":"k1"}').rstrip(b"=")
    return f"{header.decode()}.{body}.", nonce


def signed_with_the_public_key(provider):
    """Signs by hand with HS256, as PyJWT refuses to do it."""
    public = provider.keys[provider.name].public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token, nonce = provider.token()
    header = json.dumps({"alg": "HS256", "typ": "JWT", "kid": provider.name}).encode()
    head = base64.urlsafe_b64encode(header).rstrip(b"=").decode() + "." + token.split(".")[1]
    signature = hmac.digest(secret, head.encode(), "sha256")
    return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}", nonce


def truncated(provider):
    token, nonce = provider.token()
    return token[:-10], nonce


NOW = time.time
HOSTILE = {
    "alg none": (unsigned, "algorithm is not allowed"),
    "HS256 with the public key": (signed_with_the_public_key, "algorithm is not allowed"),
    "wrong issuer": (lambda p: p.token(iss="https://accounts.example.org"), "issuer"),
    "wrong audience": (lambda p: p.token(aud="another.app"), "audience"),
    "another authorized party": (lambda p: p.token(aud=["app.ios", "x"], azp="x"), "another app"),
    "another provider's key id": (
        lambda p: p.token(key=strange_key(), kid="theirs"),
        "key is not one",
    ),
    "another provider's key": (lambda p: p.token(key=strange_key()), "signature"),
    "expired": (lambda p: p.token(iat=int(NOW()) - 900, exp=int(NOW()) - 300), "expired"),
    "not yet valid": (lambda p: p.token(nbf=int(NOW()) + 300), "not valid yet"),
    "from the future": (lambda p: p.token(iat=int(NOW()) + 300), "not valid yet"),
    "too old": (lambda p: p.token(iat=int(NOW()) - 100_000), "too old"),
    "no nonce": (lambda p: p.token(drop=["nonce"]), "no nonce"),
    "another nonce": (lambda p: p.token(nonce="a" * 32), "nonce is another"),
    "no sub": (lambda p: p.token(drop=["sub"]), "no sub"),
    "an empty sub": (lambda p: crafted(p, sub=""), "subject is empty"),
    "a sub that is no text": (lambda p: crafted(p, sub=7), "malformed"),
    "a nonce that is no text": (lambda p: crafted(p, nonce=7), "no nonce"),
    "a time that is text": (lambda p: crafted(p, iat=str(int(NOW()))), "malformed"),
    "an infinite time": (lambda p: crafted(p, iat=float("inf")), "malformed"),
    "no exp": (lambda p: p.token(drop=["exp"]), "no exp"),
    "a truncated signature": (truncated, "signature|malformed"),
    "no token": (lambda p: ("x.y.z", "n" * 20), "malformed"),
    "an algorithm that is no text": (lambda p: headed({"alg": ["RS256"]}), "not allowed"),
    "a key id that is no text": (lambda p: headed({"alg": "RS256", "kid": {}}), "malformed"),
    "an issuer with a slash at its end": (lambda p: p.token(iss=f"{p.issuer}/"), "issuer"),
    "several issuers": (lambda p: crafted(p, iss=[p.issuer, "x"]), "malformed|issuer"),
    "several audiences": (lambda p: p.token(aud=["app.ios", "app.android"]), "another app"),
    "no audience": (lambda p: crafted(p, aud=[]), "no aud"),
    "an audience that is no text": (lambda p: crafted(p, aud={"app.ios": 1}), "audience"),
    "a sub of 256 characters": (lambda p: crafted(p, sub="s" * 256), "subject is empty or too"),
    "a sub that is not Unicode": (lambda p: crafted(p, sub="\ud800"), "malformed"),
    "a nonce that is not Unicode": (lambda p: crafted(p, nonce="\ud800"), "malformed"),
    "an unknown critical header": (lambda p: signed(p, {"crit": ["x"], "x": 1}), "malformed"),
    "critical headers that are none": (lambda p: signed(p, {"crit": "x"}), "malformed"),
    "a payload that is elsewhere": (lambda p: signed(p, {"crit": ["b64"], "b64": False}), "malf"),
    "a path as key id": (lambda p: p.token(kid="../../../../dev/null"), "key is not one"),
    "a query as key id": (lambda p: p.token(kid="k1' UNION SELECT 'x"), "key is not one"),
    "a key id of another case": (lambda p: p.token(kid=p.name.upper()), "key is not one"),
    "a key of its own": (lambda p: signed(p, {"jwk": stranger_jwk()}, strange_key()), "signature"),
    "an address of keys": (lambda p: signed(p, elsewhere("jku"), strange_key()), "signature"),
    "an address of certificates": (
        lambda p: signed(p, elsewhere("x5u"), strange_key()),
        "signature",
    ),
    "certificates of its own": (lambda p: signed(p, {"x5c": ["AAAA"]}, strange_key()), "signature"),
    "two algorithms, the second none": (lambda p: headed(twice("RS256", "none")), "not allowed"),
    "two algorithms, the first none": (lambda p: headed(twice("none", "RS256")), "key is not"),
    "a header of arrays": (lambda p: headed("[" * 5000), "malformed"),
    "a header that is an array": (lambda p: headed("[]"), "malformed"),
    "claims too deep": (lambda p: signed(p, {}, claims=b"[" * 5000), "malformed"),
    "claims that are an array": (lambda p: signed(p, {}, claims=b"[]"), "malformed"),
    "claims that are no JSON": (lambda p: signed(p, {}, claims=b"\xff{"), "malformed"),
    "encrypted": (lambda p: ("e30.a.b.c.d", "n" * 20), "malformed"),
}


def elsewhere(name):
    return {name: "http://127.0.0.1:9/jwks.json"}


def stranger_jwk():
    return json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(strange_key().public_key()))


def twice(*algorithms):
    """Returns a header that has the key `alg` several times."""
    return "{" + ",".join(f'"alg":"{one}"' for one in algorithms) + ',"kid":"x"}'


def encoded(part):
    part = part if isinstance(part, bytes) else part.encode()
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def signed(provider, header, key=None, claims=None):
    """Returns a signed token with headers or claims that PyJWT would not write."""
    valid, nonce = provider.token()
    if claims is not None:
        claims = encoded(claims)
    header = {"alg": "RS256", "kid": provider.name} | header
    text = f"{encoded(json.dumps(header))}.{claims or valid.split('.')[1]}"
    signer = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    signature = signer.sign(text.encode(), key or provider.keys[provider.name])
    return f"{text}.{encoded(signature)}", nonce


def headed(header):
    """Returns a token with any header, given as fields or as text."""
    header = header if isinstance(header, str) else json.dumps(header)
    return f"{encoded(header)}.e30.AAAA", "n" * 20


def crafted(provider, **claims):
    """Returns a signed token with claims that PyJWT refuses to write."""
    nonce, now = secrets.token_hex(16), int(time.time())
    claims = {
        "iss": provider.issuer,
        "aud": "app.ios",
        "sub": "s",
        "iat": now,
        "exp": now + 60,
        "nonce": nonce,
    } | claims
    key = provider.keys[provider.name]
    sign = jwt.api_jws.PyJWS().encode
    return sign(json.dumps(claims).encode(), key, "RS256", {"kid": provider.name}), nonce


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_token_is_refused(club, provider, name):
    make, reason = HOSTILE[name]
    users = len(club.redis.keys("user:*"))
    refused = present(club, make(provider)).refused(401, "bad_id_token")
    assert re.search(reason, refused["detail"]), refused
    assert len(club.redis.keys("user:*")) == users


def test_a_replayed_token_is_refused(club, provider):
    token = provider.token()
    assert present(club, token).status == 201
    refused = present(club, token).refused(401, "bad_id_token")
    assert "used before" in refused["detail"]
    tokens = [provider.token("twice", nonce="n" * 32)[0] for _ in range(6)]
    answers = at_once(6, lambda i: present(club, (tokens[i], "n" * 32)))
    assert sorted(answer.status for answer in answers) == [201] + [401] * 5


def test_an_oversized_token_is_refused(club, provider):
    """The size alone decides: the token is valid and its signature is right."""
    token, nonce = provider.token(padding="x" * 6200)
    assert 8192 < len(token) < 16000
    refused = present(club, (token, nonce)).refused(422, "invalid")
    assert list(refused["errors"]) == ["id_token"] and "8192" in str(refused["errors"])


@pytest.mark.parametrize(
    "body, status",
    [
        ({}, 422),
        ({"id_token": "x"}, 422),
        ({"id_token": "x" * 8193, "nonce": "n" * 16}, 422),
        ({"id_token": "x" * 20_000, "nonce": "n" * 16}, 413),
        ({"id_token": ["x"], "nonce": "n" * 16}, 422),
        ({"id_token": None, "nonce": "n" * 16}, 422),
        ({"id_token": "x", "nonce": "n" * 7}, 422),
        ({"id_token": "x", "nonce": "n" * 16, "sub": "y"}, 422),
    ],
)
def test_a_sign_in_by_identity_with_an_invalid_body_is_refused(club, body, status):
    assert club.http("POST", "/auth/oidc/acme", body).status == status


def test_an_unknown_provider_is_not_found(club):
    body = {"id_token": "x", "nonce": "n" * 16}
    for name in ("nope", "__proto__", "acme%00"):
        club.http("POST", f"/auth/oidc/{name}", body).refused(404, "not_found")


def test_tokens_and_subjects_are_neither_stored_nor_logged(club, provider):
    sub = f"sub-{secrets.token_hex(16)}"
    token = provider.token(sub)
    present(club, token)
    everything = club.log + str(
        [club.redis.hgetall(key) for key in club.redis.keys("user:*")] + club.redis.keys("*")
    )
    for secret in (sub, token[0], token[1]):
        assert secret not in everything


# -- keys


def test_the_server_follows_rotated_keys_and_survives_an_outage_of_the_provider(make_server):
    """The server is also restarted during the outage."""
    own = OpenId()
    try:
        server = make_server(edited_schema(lambda tree: use(tree, own)))
        assert present(server, own.token()).status == 201
        own.rotate("k2", "k1")
        old = own.keys["k1"]
        make_fetchable(server)
        assert (
            present(server, own.token()).status == 201
        )  # signed with k2, which the server does not know yet
        assert present(server, own.token(key=old, kid="k1")).status == 201
        own.stop()
        assert present(server, own.token()).status == 201
        server.stop()
        server.start()
        assert present(server, own.token()).status == 201  # the keys are in Redis
        stranger = present(server, own.token(key=strange_key(), kid="k3"))
        stranger.refused(503, "provider_unavailable")
        assert int(stranger.headers["retry-after"]) > 0
        key = "provider:{acme}"
        known = json.loads(server.redis.get(key))
        server.redis.set(key, json.dumps(known | {"at": known["at"] - 3700}))
        server.stop()
        server.start()  # an hour into the outage
        assert present(server, own.token()).status == 201
        server.redis.set(key, json.dumps(known | {"at": known["at"] - 90_000}))
        server.stop()
        server.start()  # a day into it
        present(server, own.token()).refused(503, "provider_unavailable")
        own.rotate("k3")
        own.start()
        make_fetchable(server)
        assert present(server, own.token()).status == 201
        withdrawn = own.token(key=own.keys["k2"], kid="k2")
        present(server, withdrawn).refused(401, "bad_id_token")
        assert "Traceback" not in server.log
    finally:
        own.close()


def make_fetchable(server):
    """Waits until the pause between two fetches is over."""
    time.sleep(trivia.KEYS_PAUSE_S + 0.1)


def test_unknown_key_ids_do_not_flood_the_provider(club, provider):
    before = len(provider.noted("gets"))
    tokens = [provider.token(key=strange_key(), kid=f"x{i}") for i in range(60)]
    for answer in at_once(60, lambda i: present(club, tokens[i])):
        answer.refused(401, "bad_id_token")
    assert len(provider.noted("gets")) - before <= 4


NONSENSE = "", "[]", "{}", '{"issuer": "https://other.example.org"}', "x" * 300_000, '{"issuer": 7}'


def test_a_provider_that_answers_nonsense_counts_as_down(make_server, provider):
    def use_nonsense(tree):
        use(tree, provider)
        spec = tree["sign_in"]["providers"].pop("acme")
        for number, document in enumerate(NONSENSE):
            file = provider.folder / f"n{number}" / ".well-known" / "openid-configuration"
            file.parent.mkdir(parents=True)
            file.write_text(document)
            issuer = f"{provider.issuer}/n{number}"
            tree["sign_in"]["providers"][f"n{number}"] = spec | {"issuer": issuer}

    server = make_server(edited_schema(use_nonsense))
    for number in range(len(NONSENSE)):
        token, nonce = provider.token(iss=f"{provider.issuer}/n{number}")
        answer = server.http("POST", f"/auth/oidc/n{number}", {"id_token": token, "nonce": nonce})
        answer.refused(503, "provider_unavailable")
        assert f"/n{number}/.well-known/openid-configuration" in provider.noted("gets")
    assert "Traceback" not in server.log


# -- linking


def test_a_guest_who_links_an_identity_keeps_everything(club, provider):
    secret, sub = new_secret(), secrets.token_hex(8)
    guest = enter(club, secret)
    rival = enter(club)
    phones = [Phone(club, guest, "random"), Phone(club, rival, "random")]
    play_all(phones)
    linked = sign_in(club, provider, sub, guest)
    assert linked["token"] == guest["token"] and "guest" not in linked["user"]
    assert linked["user"]["games"] == 1
    again = sign_in(club, provider, sub)
    assert uid_of(again) == uid_of(guest) and again["user"] == linked["user"]
    assert sign_in(club, provider, sub, again)["token"] == again["token"]
    club.http("POST", "/auth/guest", {"secret": secret}).refused(409, "has_account")
    assert club.redis.zscore("guests:{guests}", uid_of(guest)) is None
    phones[0].send("join")  # the socket stays open
    phones[0].expect("queued")
    for phone in phones:
        phone.close()


def test_the_last_way_to_sign_in_cannot_be_unlinked(club, provider):
    sub, other = secrets.token_hex(8), secrets.token_hex(8)
    session = sign_in(club, provider, sub)
    unlink = lambda one: club.http("DELETE", "/auth/oidc/acme", token=one["token"])
    unlink(session).refused(409, "last_sign_in")
    account = club.register()
    sign_in(club, provider, other, account)
    present(club, provider.token(), account).refused(409, "provider_linked")
    assert uid_of(sign_in(club, provider, other)) == uid_of(account)
    assert [unlink(account).status for _ in range(2)] == [204, 204]
    fresh = present(club, provider.token(other))
    assert fresh.status == 201 and uid_of(fresh.json) != uid_of(account)
    sign_in(club, provider, None, account)  # another identity can replace it


def test_an_identity_of_another_account_is_refused(club, provider):
    sub = secrets.token_hex(8)
    owner, account = sign_in(club, provider, sub), club.register()
    refused = present(club, provider.token(sub), account).refused(409, "identity_taken")
    assert "merge" not in refused
    assert uid_of(sign_in(club, provider, sub)) == uid_of(owner)


def test_only_one_of_simultaneous_links_of_an_identity_succeeds(club, provider):
    sub, guests = secrets.token_hex(8), [enter(club) for _ in range(6)]
    tokens = [provider.token(sub) for _ in guests]
    answers = at_once(6, lambda i: present(club, tokens[i], guests[i]))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 5
    [won] = [i for i, answer in enumerate(answers) if answer.status == 200]
    assert uid_of(sign_in(club, provider, sub)) == uid_of(guests[won])


def test_an_erasure_deletes_the_identity_and_revokes_its_token(club, provider):
    sub = secrets.token_hex(8)
    session = present(club, provider.token(sub), code="code-1").json
    field = f"user:{{{uid_of(session)}}}"
    wait_until(lambda: club.redis.hget(field, ":revoke:acme") == "app.ios refresh-1")
    assert club.http("DELETE", "/users/me", {}, session["token"]).status == 204
    posts = lambda: [json.loads(line) for line in provider.noted("posts")]
    wait_until(lambda: any(path == "/revoke" for path, _ in posts()))
    [exchange] = [form for path, form in posts() if path == "/token"]
    [revoked] = [form for path, form in posts() if path == "/revoke"]
    assert exchange["code"] == "code-1" and exchange["grant_type"] == "authorization_code"
    for form in (exchange, revoked):
        assert (form["client_id"], form["client_secret"]) == ("app.ios", "client-secret")
    assert revoked["token"] == "refresh-1"
    # An announced event stays until it happens or is given up.
    left = lambda: [one for one in club.redis.hkeys("chores:{chores}") if "event " not in one]
    wait_until(lambda: not left())
    assert not [key for key in club.redis.keys("*") if uid_of(session) in key]
    assert not [claim for claim in claims(club) if uid_of(session) in claim]
    fresh = present(club, provider.token(sub))
    assert fresh.status == 201 and uid_of(fresh.json) != uid_of(session)


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"issuer": "http://idp.example.org", "audiences": ["a"]}, "text that matches"),
        ({"issuer": "https://idp.example.org", "audiences": []}, "at least 1 item"),
        ({"issuer": "https://idp.example.org/", "audiences": ["a"]}, "text that matches"),
        ({"audiences": ["a"]}, "issuer: found nothing"),
    ],
)
def test_check_says_what_is_wrong_with_a_provider(tmp_path, spec, words):
    edit = lambda tree: tree["sign_in"].update(providers={"acme": spec})
    said = check(tmp_path / "schema.yaml", edited_schema(edit))
    assert "sign_in.providers.acme" in said and words in said, said


# ---- merges -------------------------------------------------------------------------------------


def offer(server, provider, sub, guest):
    """Presents an identity that has an account. Returns the refusal, with its offer to merge."""
    refused = present(server, provider.token(sub), guest).refused(409, "identity_taken")
    assert {"merge", "guest", "account"} <= refused.keys()
    return refused


def merge(server, token):
    return server.http("POST", "/auth/merge", {"merge": token})


def numbers(server, session):
    user = me(server, session).json
    return user["wins"], user["games"]


def add_past(server, session, wins, games, rating, week, gained, seen, prefix, field=" wins"):
    """Gives a player past games, a rating, wins of a week and questions seen. Returns the games."""
    uid, link = uid_of(session), server.redis
    fields = {"wins": wins, "games": games, "rating": rating, ":sigma": 100 + wins}
    if week:
        fields["board:wins"] = f"{week} {wins - gained}{field}"
    link.hset(f"user:{{{uid}}}", mapping=fields)
    now = link.time()[0] * 1000
    history = {f"{prefix}{i:011d}"[:12]: now - 1000 * i for i in range(games)}
    if history:
        link.zadd(f"history:{{{uid}}}", history)
    for number in seen:
        link.setbit(f"seen:{{{uid}}}", number, 1)
    return set(history)


def test_a_merge_moves_all_data_of_the_guest_to_the_account(club, provider):
    sub, secret = secrets.token_hex(8), new_secret()
    account = sign_in(club, provider, sub)
    guest, rival = enter(club, secret), enter(club)
    first = play_all([Phone(club, guest, "random"), Phone(club, rival, "random")])[0]["game"]
    second = play_all([Phone(club, account, "random"), Phone(club, rival, "random")])[0]["game"]
    before = [me(club, session).json for session in (guest, account)]
    refused = offer(club, provider, sub, guest)
    assert refused["guest"]["username"] == guest["user"]["username"]
    assert refused["account"]["username"] == account["user"]["username"]
    assert "email" not in refused["account"]
    merged = merge(club, refused["merge"])
    assert merged.status == 200 and uid_of(merged.json) == uid_of(account)
    user = me(club, merged.json).json
    assert user["games"] == 2 and user["wins"] == before[0]["wins"] + before[1]["wins"]
    assert user["rating"] == max(before[0]["rating"], before[1]["rating"])
    assert user["username"] == account["user"]["username"]
    me(club, guest).refused(401, "not_authenticated")
    games = club.http("GET", "/users/me/games", token=merged.json["token"]).json["games"]
    assert {game["id"] for game in games} == {first, second}
    for game in (first, second):
        assert club.http("GET", f"/games/{game}", token=merged.json["token"]).status == 200
    export = club.http("GET", "/users/me/export", token=merged.json["token"]).json
    assert len(export["questions_seen"]) >= 1 and len(export["games"]) == 2
    assert club.http("GET", f"/users/{guest['user']['username']}").status == 404
    board = club.http("GET", "/leaderboards/rating?limit=100").json["entries"]
    names = [row["username"] for row in board]
    assert names.count(account["user"]["username"]) == 1
    assert guest["user"]["username"] not in names
    club.http("POST", "/auth/guest", {"secret": secret}).refused(409, "has_account")
    assert merge(club, refused["merge"]).status == 200  # its reply may have been lost
    assert me(club, merged.json).json == user
    assert club.redis.zscore("guests:{guests}", uid_of(guest)) is None
    # An announced event stays until it happens or is given up.
    left = lambda: [one for one in club.redis.hkeys("chores:{chores}") if "event " not in one]
    wait_until(lambda: not left())


def test_a_merge_moves_blocks_and_reports_by_and_against_the_guest(club, provider):
    sub = secrets.token_hex(8)
    account, guest = sign_in(club, provider, sub), enter(club)
    victim, judge = enter(club), enter(club)
    block = lambda who, whom: club.http(
        "PUT", f"/users/{whom['user']['username']}/block", token=who["token"]
    )
    assert block(guest, victim).status == block(judge, guest).status == 204
    report = lambda who, whom: club.http(
        "POST", "/reports", {"player": whom["user"]["username"], "reason": "name"}, who["token"]
    )
    by, about = report(guest, victim).json["id"], report(judge, guest).json["id"]
    merged = merge(club, offer(club, provider, sub, guest)["merge"]).json
    listed = lambda who: [
        row["username"]
        for row in club.http("GET", "/users/me/blocks", token=who["token"]).json["blocks"]
    ]
    assert listed(merged) == [victim["user"]["username"]]
    assert listed(judge) == [account["user"]["username"]]
    name = f"/users/{account['user']['username']}"
    for other in (victim, judge):
        club.http("GET", name, token=other["token"]).refused(404, "not_found")
    assert not [key for key in club.redis.keys("block*") if uid_of(guest) in key]
    assert club.redis.hget(f"report:{{reports}}:{by}", "reporter") == uid_of(account)
    assert club.redis.hget(f"report:{{reports}}:{about}", "player") == uid_of(account)
    report(merged, victim).refused(409, "already_reported")
    assert uid_of(guest) not in str(club.redis.hgetall("hidden:{lobby}"))


WEEK = trivia.period_of("week", time.time())
PAST = "2020-W01"
# (guest's wins, week, gain), the same of the account, expected gain, field that it stores
MERGED_BOARDS = [
    ((5, WEEK, 2), (10, WEEK, 3), 5, " wins"),
    ((5, WEEK, 2), (10, WEEK, 3), 5, ""),  # as version 1 stored it
    ((5, WEEK, 2), (10, WEEK, 3), 2, " games"),  # the leaderboard now has another field
    ((5, WEEK, 2), (10, PAST, 3), 2, " wins"),
    ((5, PAST, 2), (10, WEEK, 3), 3, " wins"),
    ((5, WEEK, 5), (0, "", 0), 5, " wins"),
    ((0, "", 0), (10, WEEK, 3), 3, " wins"),
]


@pytest.mark.parametrize("guest_past, account_past, gained, field", MERGED_BOARDS)
def test_a_merge_adds_up_the_wins_of_this_week(
    club, provider, guest_past, account_past, gained, field
):
    sub = secrets.token_hex(8)
    account, guest = sign_in(club, provider, sub), enter(club)
    pasts = []
    for session, (wins, week, gain), prefix, of in (
        (guest, guest_past, "0", " wins"),
        (account, account_past, "1", field),
    ):
        rating = 1600 if session is guest else 1550
        past = wins, wins + 1, rating, week, gain, [wins], prefix, of
        pasts.append(add_past(club, session, *past))
    token = offer(club, provider, sub, guest)["merge"]
    assert merge(club, token).status == 200
    user = me(club, account).json
    assert user["wins"] == guest_past[0] + account_past[0]
    assert user["games"] == user["wins"] + 2 and user["rating"] == 1600
    uid = uid_of(account)
    assert club.redis.zscore(f"board:{{wins}}:{WEEK}", uid) == gained
    assert set(club.redis.zrange(f"history:{{{uid}}}", 0, -1)) == pasts[0] | pasts[1]
    for number in (guest_past[0], account_past[0]):
        assert club.redis.getbit(f"seen:{{{uid}}}", number)
    stored = club.redis.hgetall(f"user:{{{uid}}}")
    assert stored[":sigma"] == str(100 + guest_past[0])


def test_a_lower_rating_of_the_guest_changes_nothing(club, provider):
    sub = secrets.token_hex(8)
    account, guest = sign_in(club, provider, sub), enter(club)
    add_past(club, guest, 1, 2, 1400, "", 0, [], "2")
    add_past(club, account, 1, 2, 1450, "", 0, [], "3")
    assert merge(club, offer(club, provider, sub, guest)["merge"]).status == 200
    assert me(club, account).json["rating"] == 1450


def test_a_merge_is_refused_until_the_guest_s_game_ends(club, provider):
    sub = secrets.token_hex(8)
    account, guest, rival = sign_in(club, provider, sub), enter(club), enter(club)
    token = offer(club, provider, sub, guest)["merge"]
    phones = [Phone(club, guest, "random"), Phone(club, rival, "random")]
    phones[0].expect("question")
    merge(club, token).refused(409, "in_game")
    assert me(club, guest).status == 200
    play_all(phones)
    merged = wait_until(lambda: (answer := merge(club, token)).status == 200 and answer)
    assert merged.json["user"]["games"] == 1 and uid_of(merged.json) == uid_of(account)
    phones[0].expect_close(4401)
    phones[1].close()


def test_simultaneous_merges_of_one_guest_have_the_effect_of_one(club, provider):
    sub = secrets.token_hex(8)
    account, guest = sign_in(club, provider, sub), enter(club)
    add_past(club, guest, 3, 7, 1700, "", 0, [1, 2, 3], "4")
    token = offer(club, provider, sub, guest)["merge"]
    answers = at_once(8, lambda i: merge(club, token))
    assert [answer.status for answer in answers] == [200] * 8
    assert numbers(club, account) == (3, 7)


@pytest.mark.parametrize("token", ["", "x", "x" * 44, "x" * 64, "é" * 44])
def test_an_invalid_merge_token_is_refused(club, token):
    merge(club, token).refused(401, "bad_merge_token")


def test_a_merge_token_is_refused_when_replaced_expired_or_void(club, provider):
    sub = secrets.token_hex(8)
    account, guest = sign_in(club, provider, sub), enter(club)
    old = offer(club, provider, sub, guest)["merge"]
    new = offer(club, provider, sub, guest)["merge"]
    merge(club, old).refused(401, "bad_merge_token")  # a newer one replaces it
    assert merge(club, new[:-1] + ("a" if new[-1] != "a" else "b")).status == 401
    user = f"user:{{{uid_of(guest)}}}"
    stored = club.redis.hget(user, ":merge")
    club.redis.hset(user, ":merge", re.sub(r"\d+$", "1", stored))
    merge(club, new).refused(401, "bad_merge_token")  # too old
    club.redis.hset(user, ":merge", stored)
    assert club.http("POST", "/auth/upgrade", new_account(), guest["token"]).status == 200
    merge(club, new).refused(401, "bad_merge_token")  # no guest any more
    assert me(club, guest).status == me(club, account).status == 200


def test_a_banned_guest_is_not_merged_and_merges_into_one_account_are_bounded(club, provider):
    sub = secrets.token_hex(8)
    account, guest = sign_in(club, provider, sub), enter(club)
    token = offer(club, provider, sub, guest)["merge"]
    user = trivia.Keys.user(uid_of(guest))
    club.redis.hset(user, ":ban", "0 cheating")
    merge(club, token).refused(403, "banned")
    keys = [user, trivia.Keys.merged(uid_of(guest))]
    begin = trivia.LIBRARY.function("begin_merge")  # the ban may come after its check
    assert club.redis.fcall(begin, 2, *keys, club.redis.hget(user, ":merge").split(" ")[0]) == 0
    club.redis.hdel(user, ":ban")
    taken = trivia.Keys.limit("merge", trivia.digest(uid_of(account), 9))
    interval_ms, burst = trivia.MERGE_ALLOWANCE
    club.redis.set(taken, int(time.time() * 1000) + interval_ms * burst)
    merge(club, token).refused(429, "too_many_attempts")
    assert me(club, guest).status == 200
    club.redis.delete(taken)
    assert merge(club, token).status == 200
    club.redis.set(taken, int(time.time() * 1000) + interval_ms * burst)
    assert merge(club, token).status == 200  # its reply may have been lost


def test_no_guest_is_merged_into_an_erased_account(club, provider):
    sub = secrets.token_hex(8)
    account, guest = sign_in(club, provider, sub), enter(club)
    token = offer(club, provider, sub, guest)["merge"]
    assert club.http("DELETE", "/users/me", {}, account["token"]).status == 204
    merge(club, token).refused(401, "bad_merge_token")
    assert not [key for key in club.redis.keys("*") if uid_of(account) in key]


def test_an_account_that_is_erased_after_a_merge_leaves_no_data(club, provider):
    sub = secrets.token_hex(8)
    account, guest, rival = sign_in(club, provider, sub), enter(club), enter(club)
    play_all([Phone(club, guest, "random"), Phone(club, rival, "random")])
    merged = merge(club, offer(club, provider, sub, guest)["merge"]).json
    assert club.http("DELETE", "/users/me", {}, merged["token"]).status == 204
    for key in club.redis.keys("*"):
        assert uid_of(account) not in key and uid_of(guest) not in key, key
        if key.startswith("game:"):
            plan = club.redis.hget(key, "plan")
            assert uid_of(account) not in plan and uid_of(guest) not in plan


# -- merges while workers and Redis are killed

MERGES = int(os.environ.get("TRIVIA_TEST_MERGES", "24"))


def test_merges_lose_and_double_nothing_while_workers_and_redis_are_killed(mortal, provider):
    """Two guests are merged into each account, while workers and Redis are killed repeatedly."""
    server, valkey = mortal
    wait_until(lambda: server.http("GET", "/health/ready").status == 200, 30)
    others, guests = set(valkey.client.keys("user:*")), valkey.client.zcard("guests:{guests}")
    people = []
    for i in range(MERGES // 2):
        sub = secrets.token_hex(8)
        account = sign_in(server, provider, sub)
        past = [add_past_at(valkey.client, account, i % 5, i % 7 + 1, f"a{i}")]
        tokens = []
        for k in range(2):
            guest = enter(server)
            past.append(add_past_at(valkey.client, guest, k + 1, i % 3 + k + 1, f"{k}{i}"))
            tokens.append(offer(server, provider, sub, guest)["merge"])
        people.append((account, past, tokens))
    jobs = [token for _, _, tokens in people for token in tokens]
    do_under_sudden_deaths(server, valkey, lambda token: insist(server, token), jobs)
    for chore in left_to_do(valkey.client):
        valkey.client.zadd("due:{chores}", {chore: 1})  # the leases of dead workers have expired
    wait_until(lambda: not left_to_do(valkey.client), 90)
    for account, past, _ in people:
        key, uid = f"user:{{{uid_of(account)}}}", uid_of(account)
        found = valkey.client.hgetall(key)
        assert int(found.get("wins", 0)) == sum(wins for wins, _ in past)
        assert int(found["games"]) == sum(len(games) for _, games in past)
        history = set(valkey.client.zrange(f"history:{{{uid}}}", 0, -1))
        assert history == set().union(*(games for _, games in past))
    users = {f"user:{{{uid_of(account)}}}" for account, _, _ in people}
    assert set(valkey.client.keys("user:*")) == others | users
    assert valkey.client.zcard("guests:{guests}") == guests


def left_to_do(client):
    """Returns the chores of merges. Announced events of merged guests are given up later."""
    return [chore for chore in client.hkeys("chores:{chores}") if not chore.startswith("event ")]


def add_past_at(client, session, wins, games, prefix):
    history = {f"{prefix}_{i}".ljust(12, "0"): time.time() * 1000 for i in range(games)}
    uid = uid_of(session)
    client.hset(f"user:{{{uid}}}", mapping={"wins": wins, "games": games})
    client.zadd(f"history:{{{uid}}}", history)
    return wins, set(history)


def insist(server, token):
    """Merges as an app does: it repeats a request that failed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer = merge(server, token)
            if answer.status == 200:
                return
            assert answer.status == 503, answer.body
        time.sleep(0.05)
    pytest.fail("not merged in time")


def do_under_sudden_deaths(server, valkey, work, things):
    """Calls work(thing) for all, eight at the same time, and returns the results.

    Kills a worker or Redis during each eight.
    """
    dice, done, deaths = random.Random(7), [], itertools.cycle(("worker", "Redis", "worker"))
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(things), 8):
            futures = [pool.submit(work, thing) for thing in things[start : start + 8]]
            time.sleep(dice.uniform(0, 0.03))  # to hit any moment of the work
            if next(deaths) == "Redis":
                valkey.kill()
                valkey.start()
            else:
                os.kill(dice.choice(sorted(wait_until(lambda: workers_of(server)))), signal.SIGKILL)
            done += [future.result() for future in futures]
    assert len(things) > 16, "too few for a kill of a worker and of Redis"
    return done


# ---- mail and recovery --------------------------------------------------------------------------


class MailBox:
    """A mail server in a thread, and the mails that it has accepted."""

    def __init__(self, mode="take", tls=None):
        self.port, self.taken = 0, []
        self.start(mode, tls)

    def start(self, mode="take", tls=None):
        self.box = Box(self.taken, mode)
        self.controller = controller_of(self.box, self.port, tls)
        self.controller.start()
        self.port = self.controller.port
        self.url = f"smtp://127.0.0.1:{self.port}?from=Trivia%20%3Cgame%40example.org%3E"

    def stop(self):
        self.controller.stop(no_assert=True)

    close = stop

    def mails(self, to):
        """Returns the mails to an address, in the order of arrival."""
        return [email.message_from_bytes(mail) for address, mail in self.taken if address == to]

    def code(self, to, number=1):
        """Waits for a mail to an address, by its number, and returns the code in it."""
        mail = wait_until(lambda: (found := self.mails(to))[number - 1 :] and found[number - 1], 30)
        return re.search(r"\b\d{6}\b", mail.get_payload(decode=True).decode())[0]


def waiting_mails(server):
    """Returns the ids of the chores that send a mail, or decide whether to send one."""
    chores = server.redis.hgetall("chores:{chores}").items()
    return [chore for chore, text in chores if re.search(r'"(recover|confirm|mail)",\d', text)]


def recover(server, login, **headers):
    answer = server.http("POST", "/auth/recover", {"login": login}, headers=headers)
    assert answer.status == 202 and answer.body == "", answer.body


def reset(server, login, code, password="a new horse"):
    body = {"login": login, "code": code, "password": password}
    return server.http("POST", "/auth/reset", body)


def wrong(code):
    return f"{(int(code) + 1) % 1_000_000:06}"


def test_a_reset_of_a_forgotten_password_ends_all_sessions(club, mailbox):
    player = club.register()
    phone = Phone(club, player, "random")
    phone.expect("queued")
    to = player["user"]["email"]
    recover(club, player["user"]["username"])
    code = mailbox.code(to)
    [mail] = mailbox.mails(to)
    text = mail.get_payload(decode=True).decode()
    assert code in mail["Subject"] and mail["From"] == "Trivia <game@example.org>"
    assert f"https://quiz.example.org/#reset={code}&login={player['user']['username']}" in text
    session = reset(club, to, code)
    assert session.status == 200 and uid_of(session.json) == uid_of(player)
    assert session.json["user"]["email_confirmed"] is True
    me(club, player).refused(401, "not_authenticated")
    phone.expect_close(4401)
    assert me(club, session.json).status == 200
    login = {"login": to, "password": PASSWORD}
    club.http("POST", "/auth/login", login).refused(401, "bad_credentials")
    assert club.http("POST", "/auth/login", login | {"password": "a new horse"}).status == 200
    reset(club, to, code, "another horse").refused(403, "bad_code")  # a code works once
    assert code not in club.log and to not in club.log
    assert code not in str([club.redis.hgetall(key) for key in club.redis.keys("codes:*")])


def test_a_mail_is_in_the_language_of_the_phone(club, mailbox):
    player = club.register()
    recover(club, player["user"]["email"], **{"Accept-Language": "fr, de-AT;q=0.8, en"})
    mailbox.code(player["user"]["email"])
    assert mailbox.mails(player["user"]["email"])[0]["Subject"].startswith("Dein Code")


def test_a_code_is_void_after_five_wrong_tries(club, mailbox):
    player = club.register()
    name, to = player["user"]["username"], player["user"]["email"]
    recover(club, name)
    code = mailbox.code(to)
    for _ in range(4):
        reset(club, name, wrong(code)).refused(403, "bad_code")
    at_once(4, lambda i: reset(club, name, wrong(code)))
    reset(club, name, code).refused(403, "bad_code")
    recover(club, name)
    assert reset(club, name, mailbox.code(to, 2)).status == 200


def test_wrong_codes_from_unknown_addresses_use_up_no_tries_of_the_owner(club, mailbox):
    player = club.register()
    name, to = player["user"]["username"], player["user"]["email"]
    recover(club, name)
    code = mailbox.code(to)
    from_abroad = lambda code: club.http(
        "POST",
        "/auth/reset",
        {"login": name, "code": code, "password": "a new horse"},
        headers={"X-Forwarded-For": "192.0.2.7"},
    )
    for _ in range(5):
        from_abroad(wrong(code)).refused(403, "bad_code")
    from_abroad(code).refused(403, "bad_code")
    assert reset(club, name, code).status == 200  # the player registered from here


def test_a_code_expires_after_a_quarter_of_an_hour(club, mailbox):
    player = club.register()
    recover(club, player["user"]["username"])
    code = mailbox.code(player["user"]["email"])
    key = f"codes:{{{uid_of(player)}}}"
    assert 0 < club.redis.ttl(key) <= 900
    kept = club.redis.hget(key, "reset").split(" ")
    left_ms = int(kept[3]) - time.time() * 1000
    assert 800_000 < left_ms <= 901_000
    club.redis.hset(key, "reset", " ".join([*kept[:3], "1000000000000", *kept[4:]]))
    reset(club, player["user"]["username"], code).refused(403, "bad_code")


def test_only_one_of_simultaneous_resets_with_a_code_succeeds(club, mailbox):
    player = club.register()
    recover(club, player["user"]["username"])
    code = mailbox.code(player["user"]["email"])
    passwords = [f"new horse {i}" for i in range(4)]
    answers = at_once(4, lambda i: reset(club, player["user"]["username"], code, passwords[i]))
    assert sorted(answer.status for answer in answers) == [200, 403, 403, 403]


def test_a_recovery_does_not_reveal_whether_an_account_exists(club, mailbox):
    player, guest = club.register(), enter(club)
    unknown = f"{secrets.token_hex(8)}@example.org"
    for login in (player["user"]["email"], unknown, guest["user"]["username"], "\N{SNOWMAN}"):
        recover(club, login)
    answers = [reset(club, login, "000000") for login in (player["user"]["email"], unknown)]
    assert answers[0].status == answers[1].status == 403 and answers[0].body == answers[1].body
    mailbox.code(player["user"]["email"])
    wait_until(lambda: not waiting_mails(club))
    assert not mailbox.mails(unknown)


def test_recovery_mails_to_a_player_are_bounded(club, mailbox):
    player = club.register()
    club.redis.hdel(
        f"user:{{{uid_of(player)}}}", ":from"
    )  # the request now comes from an unknown address
    for _ in range(8):
        recover(club, player["user"]["username"])
    wait_until(lambda: not waiting_mails(club), 30)
    assert len(mailbox.mails(player["user"]["email"])) == 5


@pytest.mark.parametrize(
    "path, body",
    [
        ("recover", {}),
        ("recover", {"login": 5}),
        ("recover", {"login": "x" * 255}),
        ("reset", {"login": "x", "code": "12345", "password": PASSWORD}),
        ("reset", {"login": "x", "code": "1234567", "password": PASSWORD}),
        ("reset", {"login": "x", "code": "١٢٣٤٥٦", "password": PASSWORD}),
        ("reset", {"login": "x", "code": 123456, "password": PASSWORD}),
        ("reset", {"login": "x", "code": "123456", "password": "short"}),
        ("reset", {"login": "x", "code": "123456"}),
    ],
)
def test_an_invalid_request_for_recovery_is_refused(club, path, body):
    club.http("POST", f"/auth/{path}", body).refused(422, "invalid")


# -- confirmation


def send_confirmation(server, session, body=None):
    return server.http("POST", "/auth/confirm/send", body, session["token"])


def confirm(server, session, code):
    return server.http("POST", "/auth/confirm", {"code": code}, session["token"])


def test_a_player_confirms_an_address_with_its_code(club, mailbox):
    player = club.register()
    assert me(club, player).json["email_confirmed"] is False
    assert send_confirmation(club, player).status == 202
    code = mailbox.code(player["user"]["email"])
    confirm(club, player, wrong(code)).refused(403, "bad_code")
    assert confirm(club, player, code).status == 204
    assert me(club, player).json["email_confirmed"] is True
    assert code not in club.log and wrong(code) not in club.log
    assert code not in str([club.redis.hgetall(key) for key in club.redis.keys("codes:*")])
    confirm(club, player, code).refused(403, "bad_code")
    other = club.register()
    confirm(club, other, code).refused(403, "bad_code")


def test_an_unconfirmed_address_goes_to_the_player_who_confirms_it(club, mailbox):
    squatter, owner = club.register(), club.register()
    address = squatter["user"]["email"]
    assert send_confirmation(club, owner, {"email": address.upper()}).status == 202
    code = mailbox.code(address.upper())
    assert confirm(club, owner, code).status == 204
    user = me(club, owner).json
    assert user["email"] == address.upper() and user["email_confirmed"] is True
    assert me(club, squatter).json["email"] is None
    login = {"login": address, "password": PASSWORD}
    assert uid_of(club.http("POST", "/auth/login", login).json) == uid_of(owner)
    # The address is confirmed now: another player gets the same answer, but no mail is sent.
    third = club.register()
    assert send_confirmation(club, third, {"email": address}).status == 202
    wait_until(lambda: not waiting_mails(club))
    assert len(mailbox.mails(address)) == 0


def test_mails_that_others_request_to_an_address_are_bounded(club, mailbox):
    address = f"{secrets.token_hex(8)}@example.org"
    for session in [enter(club) for _ in range(8)]:
        assert send_confirmation(club, session, {"email": address}).status == 202
    wait_until(lambda: not waiting_mails(club), 30)
    assert len(mailbox.mails(address)) == 5
    own = club.register(f"o{secrets.token_hex(6)}", email=address)
    send_confirmation(club, own)  # the owner has an allowance of their own
    mailbox.code(address, 6)


@pytest.mark.parametrize(
    "text, is_one",
    [
        ("a.b+c@example.org", True),
        ("<a@example.org", False),
        ("x:a@example.org", False),
        ("(x)a@example.org", False),
        ("root,a@example.org", False),
        ("root>a@example.org", False),
        ("é@example.org", False),
    ],
)
def test_mail_goes_only_to_a_valid_address(text, is_one):
    assert trivia.is_mailable(text) is is_one


# -- stolen tokens


def stolen(server, session):
    """Returns a token of a session that began long ago, as a thief may have it."""
    secret = base64.urlsafe_b64encode(b"x" * 20 + (int(time.time()) - 1000).to_bytes(4)).decode()
    key = trivia.Keys.user(uid_of(session))
    server.redis.hset(key, f"session:{trivia.digest(secret)}", int(time.time()) + 10_000)
    token = {"token": uid_of(session) + secret, "user": session["user"]}
    assert me(server, token).status == 200
    return token


def test_a_stolen_token_links_and_unlinks_no_identity(club, provider):
    sub = secrets.token_hex(8)
    for owner in (club.register(), sign_in(club, provider, sub)):
        thief = stolen(club, owner)
        theirs = provider.token()
        if not owner["user"]["providers"]:
            present(club, theirs, thief).refused(403, "sign_in_again")
            assert (
                present(club, theirs, owner).status == 200
            )  # the refusal did not use up the token
        unlink = club.http("DELETE", "/auth/oidc/acme", token=thief["token"])
        unlink.refused(403, "sign_in_again")
        assert me(club, owner).json["providers"] == ["acme"]


def test_a_stolen_token_of_an_account_without_a_password_neither_takes_nor_erases_it(
    club, provider
):
    owner = sign_in(club, provider, secrets.token_hex(8))
    thief = stolen(club, owner)
    for body in ({"username": f"t{secrets.token_hex(6)}"}, {"email": "t@example.org"}):
        club.http("PATCH", "/users/me", body, thief["token"]).refused(403, "sign_in_again")
        assert club.http("PATCH", "/users/me", {"nickname": "Nick"}, thief["token"]).status == 200
    club.http("DELETE", "/users/me", {}, thief["token"]).refused(403, "sign_in_again")
    name = {"username": f"o{secrets.token_hex(6)}"}
    assert club.http("PATCH", "/users/me", name, owner["token"]).status == 200


def test_a_stolen_token_of_a_guest_neither_takes_nor_erases_the_guest(club, provider):
    secret, sub = new_secret(), secrets.token_hex(8)
    owner = club.http("POST", "/auth/guest", {"secret": secret}).json
    thief = stolen(club, owner)
    sign_in(club, provider, sub)  # an account of the thief, as a target for a merge
    for identity in (provider.token(sub=sub), provider.token()):
        present(club, identity, thief).refused(403, "sign_in_again")
    for method, path, body in [
        ("POST", "/auth/upgrade", new_account()),
        ("PATCH", "/users/me", {"email": f"{secrets.token_hex(6)}@example.org"}),
        ("DELETE", "/users/me", {}),
    ]:
        club.http(method, path, body, thief["token"]).refused(403, "sign_in_again")
    # The owner's phone still has the secret, and first signs in again with it.
    again = club.http("POST", "/auth/guest", {"secret": secret})
    assert again.status == 200
    upgrade = club.http("POST", "/auth/upgrade", new_account(), again.json["token"])
    assert upgrade.status == 200


def test_a_stolen_token_cannot_change_the_address_for_mail(club, mailbox):
    owner = club.register()
    thief = stolen(club, owner)
    theirs = f"{secrets.token_hex(8)}@example.org"
    send_confirmation(club, thief, {"email": theirs}).refused(403, "sign_in_again")
    assert send_confirmation(club, thief).status == 202  # to the owner's own address
    mailbox.code(owner["user"]["email"])
    assert send_confirmation(club, owner, {"email": theirs}).status == 202
    assert confirm(club, owner, mailbox.code(theirs)).status == 204
    assert me(club, owner).json["email"] == theirs


# -- outages


@pytest.fixture(scope="module")
def frail():
    """A mail server that fails, and a server that sends its mail there."""
    with contextlib.closing(MailBox()) as box:
        with contextlib.closing(Server(env={"TRIVIA_MAIL": box.url})) as server:
            yield box, server.start()


def test_a_mail_waits_for_a_mail_server_that_is_down_and_is_sent_once(frail):
    box, server = frail
    player = server.register()
    box.stop()
    recover(server, player["user"]["username"])
    wait_until(lambda: "chore mail waits" in server.log, 30)
    server.stop(signal.SIGKILL)
    server.start()
    [chore] = waiting_mails(server)
    box.start()
    server.redis.zadd("due:{chores}", {chore: 1})  # as if the next try were due
    code = box.code(player["user"]["email"])
    wait_until(lambda: not server.redis.hlen("chores:{chores}"), 30)
    assert len(box.mails(player["user"]["email"])) == 1
    assert reset(server, player["user"]["username"], code).status == 200


def test_a_mail_server_that_dies_without_a_reply_gets_a_mail_at_most_twice(frail):
    box, server = frail
    player = server.register()
    box.stop()
    box.start("die")  # it stores the mail and dies without a reply
    recover(server, player["user"]["username"])
    to = player["user"]["email"]
    for sent in (1, 2):
        wait_until(lambda: len(box.mails(to)) == sent and box.box.is_dead, 40)
        box.stop()
        box.start("die")
    wait_until(lambda: "was given up" in server.log, 40)
    assert len(box.mails(to)) == 2 and not server.redis.hlen("chores:{chores}")


def test_a_mail_that_the_mail_server_rejects_for_good_is_dropped(frail):
    box, server = frail
    box.stop()
    box.start("refuse")
    player = server.register()
    recover(server, player["user"]["username"])
    wait_until(lambda: "refuses a mail: 550" in server.log, 30)
    wait_until(lambda: not server.redis.hlen("chores:{chores}"), 30)
    uid = uid_of(player)
    assert not [line for line in server.log.splitlines() if "sent" in line and uid in line]


def self_signed():
    """Returns a key and its self-signed certificate as one text."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    made = made.public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    signed = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    return (key.private_bytes(*form) + signed).decode()


@pytest.mark.parametrize("mode", ["smtps", "starttls"])
def test_mail_goes_over_tls_with_a_password(tmp_path, mode):
    """The certificate of a mail server on this host may be self-signed."""
    (tmp_path / "tls.pem").write_text(self_signed())
    box = MailBox(mode, tmp_path / "tls.pem")
    scheme = "smtps" if mode == "smtps" else "smtp"
    url = f"{scheme}://me:p%40ss%20word@127.0.0.1:{box.port}?from=game@example.org"
    sender = types.SimpleNamespace(server=trivia.MailServer.parse(url))

    async def write():
        message = EmailMessage()
        message.set_content("123456")
        return message

    with contextlib.closing(box):
        assert asyncio.run(trivia.Mail._deliver(sender, "to@example.org", write))
        assert box.code("to@example.org") == "123456"


@pytest.mark.parametrize(
    "url, use_tls, start_tls, validate_certs",
    [
        ("smtps://me:x@mail.example.org", True, None, True),
        ("smtp://me:x@mail.example.org", False, True, True),
        ("smtp://mail.example.org", False, None, True),
        ("smtp://me:x@localhost", False, None, False),
        ("smtps://[::1]", True, None, False),
    ],
)
def test_a_password_leaves_this_host_over_tls_only(url, use_tls, start_tls, validate_certs):
    tls = {"use_tls": use_tls, "start_tls": start_tls, "validate_certs": validate_certs}
    assert trivia.MailServer.parse(f"{url}?from=game@example.org").tls == tls


def test_without_a_mail_server_the_operator_creates_the_code(server):
    player = server.register()
    name = player["user"]["username"]
    server.http("POST", "/auth/recover", {"login": name}).refused(503, "no_mail")
    send_confirmation(server, player).refused(503, "no_mail")
    done = trivia_py("user", name, "reset", env=server.env)
    assert done.returncode == 0, done.stderr
    code = re.search(r"\b\d{6}\b", done.stdout)[0]
    session = reset(server, name, code)
    assert session.status == 200 and session.json["user"]["email_confirmed"] is False
    refused = {"nobody": "There is no such player", enter(server)["user"]["username"]: "a guest"}
    for nobody, why in refused.items():
        done = trivia_py("user", nobody, "reset", env=server.env)
        assert done.returncode == 1 and why in done.stderr
    acts = trivia_py("ops", "audit", env=server.env).stdout
    assert "reset_code" in acts and code not in acts


@pytest.mark.parametrize(
    "url",
    ["mail.example.org", "http://h?from=a@b", "smtp://h", "smtp://h?from=a", "smtp://h:x?from=a@b"],
)
def test_an_invalid_address_of_the_mail_server_stops_the_start_and_its_secret_is_not_logged(
    make_server, url
):
    url = url.replace("//h", "//me:secret@h")
    server = make_server(env={"TRIVIA_MAIL": url}, start=False)
    server.start(wait=False).process.wait(20)
    assert "TRIVIA_MAIL: found" in server.log and "secret" not in server.log


@pytest.mark.parametrize(
    "mail, words",
    [
        ({"text": "no code", "subject": "x"}, "found no {code}"),
        ({"text": "{code} {name}", "subject": "x"}, 'found "name"; expected only {username}'),
        ({"text": "{code} {", "subject": "x"}, "expected only {username}"),
        ({"text": "{code.__class__}", "subject": "x"}, "expected only {username}"),
        ({"text": "{code}"}, "subject: found nothing"),
    ],
)
def test_check_says_what_is_wrong_with_a_mail(tmp_path, mail, words):
    edit = lambda tree: tree["sign_in"]["recovery"]["mails"]["en"].update(reset=mail)
    said = check(tmp_path / "schema.yaml", edited_schema(edit))
    assert words in said and "sign_in.recovery.mails.en.reset" in said, said


def test_the_doctor_reports_the_mail_server_or_that_there_is_none(monkeypatch):
    tree = trivia.read_schema(trivia.SCHEMA_FILE)
    for url, fine, words in (
        ("", False, "TRIVIA_MAIL is not set"),
        ("smtp://me:secret@mail.example.org?from=a@example.org", True, "to mail.example.org"),
    ):
        monkeypatch.setattr(trivia, "MAIL", url)
        [finding] = trivia._mail_findings(trivia.Schema(tree))
        assert (finding.fine, finding.found) == (fine, words) and "secret" not in str(finding)


# ---- hostile bodies -----------------------------------------------------------------------------

WRONG_JSON = {
    "no JSON": b"{",
    "a key twice": b'{"secret":"a","secret":"b"}',
    "a lone surrogate": b'{"code":"\\ud800"}',
    "not UTF-8": b'{"login":"\xff"}',
    "too deep": b"[" * 8000,
    "an array": b"[]",
    "NaN": b'{"merge":NaN}',
}
# Each route: its fields, and whether it requires a session.
ROUTES = {
    "guest": (["secret"], False),
    "upgrade": (["username", "email", "password"], True),
    "oidc/acme": (["id_token", "nonce", "code"], False),
    "merge": (["merge"], False),
    "recover": (["login"], False),
    "reset": (["login", "code", "password"], False),
    "confirm/send": (["email"], True),
    "confirm": (["code"], True),
}
WRONG_VALUES = [None, 5, True, ["x"], {"x": "y"}, "a\0b", "\x1b[2J" * 5, "x" * 9000]


def test_the_table_has_all_routes_that_take_a_body(club):
    paths = club.http("GET", "/docs/openapi.json").json["paths"]
    known = {"register", "login", "password", "logout", *ROUTES}
    posts = {path.removeprefix("/auth/") for path in paths if path.startswith("/auth/")}
    assert {path.replace("{provider}", "acme") for path in posts} - {"sessions"} == known


@pytest.mark.parametrize("path", ROUTES)
def test_each_route_refuses_invalid_bodies(club, path):
    server, guest = club, enter(club)
    names, needs_session = ROUTES[path]
    token = guest["token"] if needs_session else None
    post = lambda **body: server.http("POST", f"/auth/{path}", token=token, **body)
    read, before = len(server.log), set(server.redis.keys("*"))
    for what, raw in WRONG_JSON.items():
        answer = post(raw=raw)
        assert answer.status == 400 and answer.json["code"] == "bad_json", (what, answer.body)
    for name in names:
        for value in WRONG_VALUES:
            errors = post(body={name: value}).refused(422, "invalid")["errors"]
            assert name in errors, (name, value, errors)
    post(body={"unknown": 1, "__proto__": {}}).refused(422, "invalid")
    post(raw=b" " * 20_000).refused(413, "too_large")
    answer = post(raw=b"{}", headers={"Content-Type": "text/plain"})
    answer.refused(415, "unsupported_media_type")
    if needs_session:
        server.http("POST", f"/auth/{path}", {names[0]: "x"}).refused(401, "not_authenticated")
    assert not re.search("Traceback|ERROR", server.log[read:]), server.log[read:]
    new = {key for key in set(server.redis.keys("*")) - before if not key.startswith("limit:")}
    assert new <= {"metrics:{metrics}", "loads:{metrics}", "clock:{lobby}"}, new
    assert me(server, guest).json == guest["user"]


# ---- the whole journey ---------------------------------------------------------------------------


def moved(server, phone, session):
    """Connects a new session of a player during a game. The server closes the old socket."""
    new = Phone(server, session, "rated")
    new.expect("update")
    phone.expect_close(4409)
    return new


def everything(server, session):
    """Returns all data that a player must never lose."""
    token = session["token"]
    export = server.http("GET", "/users/me/export", token=token).json
    games = server.http("GET", "/users/me/games", token=token).json["games"]
    return {
        "uid": uid_of(session),
        "games": {game["id"] for game in games},
        "seen": {json.dumps(question) for question in export["questions_seen"]},
        "user": me(server, session).json,
    }


def finish(phones):
    """Answers the open question, plays to the end, and returns the game's id."""
    for phone in phones:
        phone.send("answer", round=1, choice=0)
    return play_all(phones)[0]["game"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_player_keeps_everything_from_guest_to_account_to_merge(
    make_server, provider, mailbox, workers
):
    """The journey: guest, reinstall, upgrade, link, sign-in on a new phone, merge, recovery."""
    env = {"TRIVIA_MAIL": mailbox.url}
    schema = edited_schema(lambda tree: use(tree, provider), rounds=2, answer_seconds=60)
    server = make_server(schema, workers=workers, env=env)
    sub, secret = secrets.token_hex(8), new_secret()
    rival = Phone(server, enter(server), "rated")
    rival.expect("queued")
    begun = time.monotonic()
    player = enter(server, secret)  # one request
    phone = Phone(server, player, "rated")  # and one socket
    phone.expect("question")
    assert time.monotonic() - begun < 3
    # The player reinstalls the app during the game. The keychain has kept the secret.
    again = enter(server, secret, 200)
    phone = moved(server, phone, again)
    first = finish([phone, rival])
    kept = everything(server, player)
    assert kept == everything(server, again)
    assert kept["games"] == {first} and len(kept["seen"]) == 2
    assert kept["user"]["rating"] != 1500 or kept["user"]["wins"] == 0
    # The player upgrades and links an identity during a game. The socket stays open.
    for one in (phone, rival):
        one.send("join", queue="rated")
    for one in (phone, rival):
        one.expect("question")
    account = new_account()
    assert server.http("POST", "/auth/upgrade", account, again["token"]).status == 200
    sign_in(server, provider, sub, again)
    phone.send("check")
    assert phone.expect("update")["phase"] == "question"
    # A new phone signs in by the identity and takes over the game.
    session = sign_in(server, provider, sub)
    phone = moved(server, phone, session)
    second = finish([phone, rival])
    before = everything(server, session)
    assert before["uid"] == kept["uid"] and before["games"] == {first, second}
    assert before["seen"] > kept["seen"] and len(before["seen"]) == 4
    assert before["user"]["games"] == 2 and before["user"]["providers"] == ["acme"]
    same = {"created_at", "wins", "games", "rating"}
    assert before["user"].keys() >= same
    # On a third phone the player starts as a new guest, then signs in to the account.
    guest = enter(server)
    third_phone = Phone(server, guest, "rated")
    rival.send("join", queue="rated")
    for one in (third_phone, rival):
        one.expect("question")
    refused = offer(server, provider, sub, guest)
    assert refused["account"]["username"] == account["username"]
    merge(server, refused["merge"]).refused(409, "in_game")
    third = finish([third_phone, rival])
    played = everything(server, guest)
    merged = wait_until(
        lambda: (answer := merge(server, refused["merge"])).status == 200 and answer.json
    )
    after = everything(server, merged)
    assert after["uid"] == kept["uid"] and after["games"] == {first, second, third}
    assert after["seen"] == before["seen"] | played["seen"]
    mine, theirs = before["user"], played["user"]
    assert after["user"]["games"] == 3 and after["user"]["wins"] == mine["wins"] + theirs["wins"]
    assert after["user"]["rating"] == max(mine["rating"], theirs["rating"])
    third_phone.expect_close(4401)
    phone.send("join", queue="rated")  # the account's socket has stayed open
    phone.expect("queued")
    # The player signs in by identity, by password, and after a reset of the password.
    assert uid_of(sign_in(server, provider, sub)) == kept["uid"]
    login = {"login": account["email"], "password": PASSWORD}
    assert uid_of(server.http("POST", "/auth/login", login).json) == kept["uid"]
    recover(server, account["email"])
    session = reset(server, account["email"], mailbox.code(account["email"])).json
    last = everything(server, session)
    assert {key: last[key] for key in ("uid", "games", "seen")} == {
        key: after[key] for key in ("uid", "games", "seen")
    }
    for one in (phone, rival):
        one.close()
