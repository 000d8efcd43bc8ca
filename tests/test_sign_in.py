"""Sign-in without a password: guests, identities, merges, recovery, on real servers, providers and mail servers."""

import re
import secrets
import time

import pytest

from conftest import PASSWORD, Phone, Server, at_once, edited_schema, play_all, wait_until


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
    """A guest's session."""
    answer = server.http("POST", "/auth/guest", {"secret": secret or new_secret()})
    assert answer.status == status, answer.body
    return answer.json


def me(server, session):
    return server.http("GET", "/users/me", token=session["token"])


def new_account(**fields):
    name = f"a{secrets.token_hex(6)}"
    return {"username": name, "email": f"{name}@example.org", "password": PASSWORD} | fields


# ---- guests -------------------------------------------------------------------------------------


def test_a_guest_is_there_with_one_request_and_plays(server):
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


def test_of_simultaneous_requests_with_one_secret_one_makes_the_guest(server):
    secret = new_secret()
    answers = at_once(12, lambda i: server.http("POST", "/auth/guest", {"secret": secret}))
    assert {answer.status for answer in answers} == {200, 201}
    assert [answer.status for answer in answers].count(201) == 1
    assert len({uid_of(answer.json) for answer in answers}) == 1


def test_the_secret_is_kept_as_a_digest_only(server):
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
def test_a_wrong_secret_makes_no_guest(server, body):
    before = server.redis.zcard("guests:{guests}")
    server.http("POST", "/auth/guest", body).refused(422, "invalid")
    assert server.redis.zcard("guests:{guests}") == before


def test_a_guest_changes_the_name_and_it_stays_unique(server):
    guest, other = enter(server), enter(server)
    name = f"g{secrets.token_hex(5)}"
    answer = server.http("PATCH", "/users/me", {"username": name}, guest["token"])
    assert answer.status == 200 and answer.json["username"] == name and answer.json["guest"]
    answer = server.http("PATCH", "/users/me", {"username": name.upper()}, other["token"])
    answer.refused(409, "username_taken")


def test_a_guest_whose_name_is_taken_gets_another(make_server):
    def few(tree):
        words = [chr(97 + i) * 2 for i in range(20)]
        tree["sign_in"]["names"] = {"first": words, "second": words}

    server = make_server(edited_schema(few))
    names = [enter(server)["user"]["username"] for _ in range(400)]  # of 360,000 possible ones
    assert len(set(names)) == 400 and len({name.casefold() for name in names}) == 400
    wait_until(lambda: not any(" " in c.split(" ", 1)[1] for c in claims(server)))


def claims(server):
    """All claims on unique values; one that is confirmed has two parts."""
    keys = server.redis.keys("unique:*")
    return [claim for key in keys for claim in server.redis.hvals(key)]


def test_a_guest_has_no_password_to_guess_or_change(server):
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


# -- bounds


def test_new_guests_of_one_address_are_bounded_and_known_ones_still_come_in(make_server):
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
    assert len(claims(server)) == 5


def test_guests_in_all_are_bounded(make_server):
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
    phones[0].send("answer", round=question["round"], choice=0)  # the socket and the game go on
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
def test_an_upgrade_obeys_the_rules_of_a_registration(server, change):
    guest = enter(server)
    answer = server.http("POST", "/auth/upgrade", new_account(**change), guest["token"])
    assert list(answer.refused(422, "invalid")["errors"]) == list(change)
    assert me(server, guest).json == guest["user"]


def test_of_simultaneous_upgrades_of_one_guest_one_counts(server):
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
    """Moves the creation of a guest into the past, and has them checked now."""
    server.redis.hset(f"user:{{{uid}}}", ":created", int(time.time()) - days_ago * 86400)
    server.redis.zadd("guests:{guests}", {uid: 1})


def test_a_guest_who_does_not_play_expires_and_leaves_nothing(make_server):
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


def test_guests_are_off_where_they_are_not_declared(make_server):
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
def test_check_says_what_is_wrong_with_guests(make_server, guests, names, words):
    def edit(tree):
        tree["sign_in"]["guests"] |= guests
        if names is None:
            del tree["sign_in"]["names"]
        elif names:
            tree["sign_in"]["names"] = names

    server = make_server(edited_schema(edit), start=False)
    server.start(wait=False).process.wait(20)
    assert words in server.log and re.search(r"schema.yaml:\d+: sign_in", server.log), server.log
