"""Moderation: blocks, reports, and the filter of names."""

import json
import secrets
import sys
import time

import pytest

from conftest import PASSWORD, ROOT, Phone, Server, edited_schema, play_all, unique_name, wait_until

sys.path.insert(0, str(ROOT))

import trivia
from trivia import Keys

MOST_BLOCKS = 3
MOST_REPORTS = 500
REPORTS_PER_DAY = 3


@pytest.fixture(scope="module")
def town():
    """A server with two workers for the tests of this file. Each test leaves the queues empty."""

    def edit(tree):
        tree["limits"] |= {
            "blocks": MOST_BLOCKS,
            "reports": MOST_REPORTS,
            "reports_per_day": REPORTS_PER_DAY,
        }
        tree["messages"]["client"]["say"] = {
            "fields": {"text": {"type": "string", "maxLength": 100, "filtered": True}},
            "required": ["text"],
            "relay": "opponents",
        }
        tree["queues"]["friends"]["late_join"] = True

    running = Server(edited_schema(edit, answer_seconds=60), workers=2)
    try:
        yield running.start()
        assert "Traceback" not in running.log, running.log[-5000:]
    finally:
        running.close()


def name_of(session):
    return session["user"]["username"]


def uid_of(session):
    return session["token"][:12]


def block(town, who, whom, method="PUT"):
    return town.http(method, f"/users/{name_of(whom)}/block", token=who["token"])


def blocked(town, who):
    answer = town.http("GET", "/users/me/blocks", token=who["token"])
    assert answer.status == 200, answer.body
    return [row["username"] for row in answer.json["blocks"]]


def profile(town, of, seen_by=None):
    return town.http("GET", f"/users/{name_of(of)}", token=seen_by and seen_by["token"])


# -- the list of blocks


def test_a_player_lists_removes_and_exports_blocks(town):
    ann, bob, eve = (town.register() for _ in range(3))
    before = int(time.time()) - 2
    for whom in (bob, eve, bob):
        assert block(town, ann, whom).status == 204
    assert sorted(blocked(town, ann)) == sorted(map(name_of, (bob, eve)))
    rows = town.http("GET", "/users/me/blocks", token=ann["token"]).json["blocks"]
    assert all(before <= row["blocked_at"] <= time.time() + 2 for row in rows)
    assert blocked(town, bob) == []
    assert town.http("GET", "/users/me/export", token=ann["token"]).json["blocks"] == rows
    for _ in range(2):
        assert block(town, ann, bob, "DELETE").status == 204
    assert blocked(town, ann) == [name_of(eve)]
    assert town.redis.hget(Keys.hidden, uid_of(ann)) == uid_of(eve)


def test_an_invalid_block_is_refused_with_its_code(town):
    ann = town.register()
    for method in ("PUT", "DELETE"):
        block(town, ann, {"user": {"username": "nobody-here"}}, method).refused(404, "not_found")
        block(town, ann, ann, method).refused(422, "yourself")
        name = f"/users/{name_of(ann)}/block"
        town.http(method, name).refused(401, "not_authenticated")
    town.http("POST", f"/users/{name_of(ann)}/block", {}, ann["token"]).refused(
        405, "method_not_allowed"
    )
    for _ in range(MOST_BLOCKS):
        assert block(town, ann, town.register()).status == 204
    block(town, ann, town.register()).refused(409, "blocks_full")
    assert len(blocked(town, ann)) == MOST_BLOCKS


def test_blocks_are_throttled(town):
    ann, bob = town.register(), town.register()
    key = Keys.limit("block", uid_of(ann))
    assert block(town, ann, bob).status == 204
    town.redis.set(key, town.redis.time()[0] * 1000 + 5000 * 100)
    block(town, ann, bob).refused(429, "too_many_attempts")


# -- effects of a block


@pytest.mark.parametrize("by", [0, 1])
def test_a_block_hides_each_profile_from_the_other_player(town, by):
    people = town.register(), town.register()
    ann, bob = people
    assert block(town, people[by], people[1 - by]).status == 204
    profile(town, ann, bob).refused(404, "not_found")
    profile(town, bob, ann).refused(404, "not_found")
    assert profile(town, ann, ann).status == profile(town, ann, town.register()).status == 200
    assert block(town, people[by], people[1 - by], "DELETE").status == 204
    assert profile(town, ann, bob).status == profile(town, bob, ann).status == 200


def test_a_mutual_block_ends_only_when_both_players_remove_it(town):
    ann, bob = town.register(), town.register()
    assert block(town, ann, bob).status == block(town, bob, ann).status == 204
    assert block(town, ann, bob, "DELETE").status == 204
    profile(town, ann, bob).refused(404, "not_found")
    assert block(town, bob, ann, "DELETE").status == 204
    assert profile(town, ann, bob).status == 200


def test_a_block_prevents_a_match_of_the_two_but_not_with_others(town):
    ann, bob, eve = (town.register() for _ in range(3))
    assert block(town, ann, bob).status == 204
    phones = [Phone(town, one, "random") for one in (ann, bob)]
    for phone in phones:
        phone.expect("queued")
    phones.append(Phone(town, eve, "random"))
    starts = phones[2].expect("start")
    names = {player["username"] for player in starts["players"]}
    assert name_of(eve) in names and len(names & {name_of(ann), name_of(bob)}) == 1
    for phone in phones:
        phone.close()


def in_room(town, sessions):
    """Puts players into one room. Returns (code, phones), the host's phone first."""
    phones = [Phone(town, sessions[0], "friends")]
    code = phones[0].expect("room")["code"]
    for session in sessions[1:]:
        phones.append(Phone(town, session, f"friends?code={code}"))
        phones[-1].expect("room")
    for phone in phones:
        while len(phone.frames[-1].get("players", ())) < len(sessions):
            phone.expect("room")
    return code, phones


def heard(phone, mark):
    """Returns the senders of the emojis that a phone receives before a given emoji."""
    found = []
    while (frame := phone.expect("emoji"))["emoji"] != mark:
        found.append(frame["player"])
    return found


@pytest.mark.parametrize("when", ["before the game", "in the game", "late"])
def test_a_block_mutes_the_two_players_in_a_room_that_both_joined(town, when):
    host, ann, bob = (town.register() for _ in range(3))
    block_now = lambda: block(town, bob, ann).status == 204
    assert when == "in the game" or block_now()
    if when == "late":
        code, phones = in_room(town, [host, ann, town.register()])
        phones[0].send("begin")
        phones[0].expect("question")
        phones.append(Phone(town, bob, f"friends?code={code}"))
        phones[3].expect("update")
        [key] = town.redis.keys("game:*:" + phones[3].frames[-1]["game"])
        wait_until(lambda: town.redis.hget(key, "muted"))
        phones.pop(2).close()
    else:
        code, phones = in_room(town, [host, ann, bob])
        phones[0].send("begin")
        for phone in phones:
            phone.expect("question")
    assert when != "in the game" or block_now()
    phones[1].send("emoji", emoji="👍")
    phones[2].send("emoji", emoji="👏")
    assert {phones[0].expect("emoji")["player"] for _ in range(2)} == {name_of(ann), name_of(bob)}
    phones[0].send("emoji", emoji="🎉")
    assert heard(phones[1], "🎉") == heard(phones[2], "🎉") == []
    assert block(town, bob, ann, "DELETE").status == 204
    phones[1].send("emoji", emoji="😮")
    assert phones[2].expect("emoji")["player"] == name_of(ann)
    for phone in phones:
        phone.close()


def test_a_block_hides_a_room_from_the_other_player(town):
    host, ann, bob = (town.register() for _ in range(3))
    assert block(town, host, ann).status == block(town, bob, host).status == 204
    code, [phone] = in_room(town, [host])
    for one in (ann, bob):
        town.http("GET", f"/rooms/{code}", token=one["token"]).refused(404, "unknown_code")
        other = Phone(town, one, f"friends?code={code}")
        other.refused("unknown_code")
        other.close()
    assert town.http("GET", f"/rooms/{code}").status == 200
    assert town.http("GET", f"/rooms/{code}", token=town.register()["token"]).status == 200
    town.http("GET", f"/rooms/{code}", token="wrong").refused(401, "not_authenticated")
    phone.close()


def test_a_block_hides_a_challenge_from_the_other_player(town):
    owner, ann, bob = (town.register() for _ in range(3))
    assert block(town, owner, ann).status == block(town, bob, owner).status == 204
    code = town.http("POST", "/challenges", {"queue": "challenge"}, owner["token"]).json["code"]
    for one in (ann, bob):
        town.http("GET", f"/challenges/{code}", token=one["token"]).refused(404, "unknown_code")
        other = Phone(town, one, f"challenge?code={code}")
        other.refused("unknown_code")
        other.close()
    assert town.http("GET", f"/challenges/{code}", token=owner["token"]).json["players"] == []


# -- erasure and recovery


def erase(town, session):
    body = {"password": PASSWORD}
    assert town.http("DELETE", "/users/me", body, session["token"]).status == 204


def traces(town, uid):
    """Returns the keys and fields of blocks that name a user."""
    found = [key for key in town.redis.keys("block*") if uid in key]
    found += [row for row in town.redis.hgetall(Keys.hidden).items() if uid in " ".join(row)]
    lists = town.redis.keys("blocks:*") + town.redis.keys("blockers:*")
    return found + [key for key in lists if town.redis.zscore(key, uid) is not None]


def test_an_erasure_deletes_blocks_by_and_against_the_player(town):
    ann, bob, eve = (town.register() for _ in range(3))
    assert block(town, ann, bob).status == block(town, eve, ann).status == 204
    assert len(traces(town, uid_of(ann))) == 6
    erase(town, ann)
    assert not traces(town, uid_of(ann)) and blocked(town, eve) == []


def test_another_worker_finishes_a_block_when_its_worker_dies_midway(town):
    """The list of blocks is written, but nothing that is derived from it."""
    ann, bob = town.register(), town.register()
    town.redis.zadd(Keys.blocks(uid_of(ann)), {uid_of(bob): 1})
    chore = trivia.dumps(["block", 1, {"uid": uid_of(ann), "other": uid_of(bob)}])
    town.redis.hset(Keys.chores, "test", f"0 {chore}")
    town.redis.zadd(Keys.due_chores, {"test": 1})
    wait_until(lambda: not town.redis.hexists(Keys.chores, "test"))
    profile(town, ann, bob).refused(404, "not_found")
    assert town.redis.zrange(Keys.blockers(uid_of(bob)), 0, -1) == [uid_of(ann)]


# -- reports


def report(town, who, token=None, **body):
    return town.http("POST", "/reports", body, token or who["token"])


def stored_report(town, answer):
    assert answer.status == 201, answer.body
    return town.redis.hgetall(Keys.report(answer.json["id"]))


def test_a_report_of_a_player_contains_their_profile_and_the_rounds_of_the_game(town):
    ann, bob = town.register(), town.register(avatar="https://example.org/rude.png")
    phones = [Phone(town, one, "random") for one in (ann, bob)]
    ends = play_all(phones)
    game = ends[0]["game"]
    sent = {"player": name_of(bob), "reason": "cheating", "game": game, "text": "Too fast."}
    found = stored_report(town, report(town, ann, **sent))
    assert (found["reporter"], found["player"]) == (uid_of(ann), uid_of(bob))
    assert (found["reason"], found["text"], found["game"]) == ("cheating", "Too fast.", game)
    assert found["name"] == name_of(bob) and "rude.png" in found["shown"]
    transcript = json.loads(found["transcript"])
    assert sorted(transcript["players"]) == ["player", "reporter"]
    record = town.http("GET", f"/games/{game}", token=ann["token"]).json
    assert [one["text"] for one in transcript["rounds"]] == [
        one["text"] for one in record["rounds"]
    ]
    assert all(len(one["answers"]) == 2 for one in transcript["rounds"])
    listed = town.http("GET", "/users/me/export", token=ann["token"]).json["reports"]
    assert [row["target"] for row in listed] == [f"player {uid_of(bob)}"]
    report(town, ann, **sent).refused(409, "already_reported")
    for phone in phones:
        phone.close()


def test_a_report_of_a_running_game_contains_its_rounds_so_far(town):
    ann, bob = town.pair()
    game = ann.expect("question")["game"]
    sent = {"player": bob.name, "reason": "name", "game": game}
    found = stored_report(town, report(town, ann.session, **sent))
    assert len(json.loads(found["transcript"])["rounds"]) == 1
    for phone in (ann, bob):
        phone.send("leave")
        phone.close()


def test_a_player_reports_a_question_by_its_text(town):
    ann = town.phone(queue="solo")
    question = ann.expect("question")
    sent = {"question": question["text"], "reason": "outdated", "game": question["game"]}
    found = stored_report(town, report(town, ann.session, **sent))
    assert found["name"] == question["text"] and town.redis.hget(Keys.ids, found["question"])
    again = {"question": found["question"], "reason": "wrong"}
    report(town, ann.session, **again).refused(409, "already_reported")
    ann.close()


def test_an_invalid_report_is_refused_and_stores_nothing(town):
    ann, bob = town.register(), town.register()
    before = town.redis.zcard(Keys.reports)
    name = name_of(bob)
    for body, field in (
        ({"reason": "name"}, "player"),
        ({"player": name, "question": "x", "reason": "name"}, "player"),
        ({"player": name}, "reason"),
        ({"player": name, "reason": "wrong"}, "reason"),
        ({"question": "x", "reason": "cheating"}, "reason"),
        ({"player": name, "reason": "name", "text": "x" * 501}, "text"),
        ({"player": name, "reason": "name", "game": 7}, "game"),
        ({"player": name, "reason": "name", "more": 1}, "more"),
    ):
        assert field in report(town, ann, **body).refused(422, "invalid")["errors"], body
    for body in (
        {"player": "nobody-here", "reason": "name"},
        {"question": "no such text", "reason": "wrong"},
        {"player": name, "reason": "name", "game": "000000000000"},
        {"player": name, "reason": "name", "game": "../x"},
    ):
        report(town, ann, **body).refused(404, "not_found")
    report(town, ann, player=name_of(ann), reason="name").refused(422, "yourself")
    report(town, ann, "wrong", player=name, reason="name").refused(401, "not_authenticated")
    assert town.redis.zcard(Keys.reports) == before
    assert not town.redis.exists(Keys.reported(uid_of(ann)))


def test_reports_are_bounded_for_a_player_a_network_and_in_total(town):
    ann = town.register()
    for _ in range(REPORTS_PER_DAY):
        stored_report(town, report(town, ann, player=name_of(town.register()), reason="name"))
    other = name_of(town.register())
    answer = report(town, ann, player=other, reason="name")
    answer.refused(429, "too_many_attempts")
    assert int(answer.headers["retry-after"]) > 0
    here = Keys.limit("reports", trivia.address_digest("127.0.0.1"))  # the allowance of the network
    town.redis.set(here, int(time.time() * 1000) + 86400_000 * trivia.NETWORK_TIMES)
    report(town, town.register(), player=other, reason="name").refused(429, "too_many_attempts")
    town.redis.delete(here)
    fill = {f"filler {i}": i for i in range(MOST_REPORTS)}
    town.redis.zadd(Keys.reports, fill)
    report(town, town.register(), player=other, reason="name").refused(503, "reports_full")
    town.redis.zrem(Keys.reports, *fill)


def test_an_erasure_deletes_reports_about_the_player_and_their_name_in_own_reports(town):
    ann, bob = town.register(), town.register()
    about = report(town, ann, player=name_of(bob), reason="name", text="private").json["id"]
    by = report(town, bob, player=name_of(ann), reason="picture", text="private").json["id"]
    erase(town, bob)
    assert not town.redis.exists(Keys.report(about))
    assert town.redis.zscore(Keys.reports, about) is None
    left = town.redis.hgetall(Keys.report(by))
    assert left["player"] == uid_of(ann) and not left.keys() & {"reporter", "text"}
    assert not town.redis.exists(Keys.reported(uid_of(bob)), Keys.named(uid_of(bob)))


# -- names


@pytest.mark.parametrize("name", ["xX_fuck_Xx", "f.u.c.k", "Sh1t.head", "Admin", "m0derator_1"])
def test_an_offensive_or_reserved_name_is_refused_everywhere(town, name):
    account = {"email": f"{unique_name()}@example.org", "password": PASSWORD}
    refused = lambda answer: "username" in answer.refused(422, "invalid")["errors"]
    assert refused(town.http("POST", "/auth/register", account | {"username": name}))
    ann = town.register()
    change = {"username": name, "password": PASSWORD}
    assert refused(town.http("PATCH", "/users/me", change, ann["token"]))
    guest = town.http("POST", "/auth/guest", {"secret": secrets.token_urlsafe(32)}).json
    upgrade = account | {"username": name}
    assert refused(town.http("POST", "/auth/upgrade", upgrade, guest["token"]))


def test_a_message_with_an_offensive_word_is_refused(town):
    ann, bob = town.pair()
    ann.expect("question")
    error = ann.refused("invalid_message", "say", text="what the f.u.c.k")
    assert list(error["errors"]) == ["text"]
    ann.send("say", text="Hello from Scunthorpe")
    assert bob.expect("say")["text"] == "Hello from Scunthorpe"
    for phone in (ann, bob):
        phone.send("leave")
        phone.close()
