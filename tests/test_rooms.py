"""Rooms, rematches and bots over real sockets: codes, hosts, late joins, lost workers."""

import math
import random
import secrets
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed

from conftest import (
    PASSWORD,
    ROOT,
    Server,
    beside_of,
    change_state,
    edited_schema,
    play_all,
    stop_alone,
    wait_until,
)

sys.path.insert(0, str(ROOT))

import trivia

NEVER = 60
ROOM = {
    "players": {"min": 2, "max": 4},
    "match": "room",
    "rounds": 3,
    "start_seconds": 0.05,
    "answer_seconds": NEVER,
    "reveal_seconds": 0.05,
    "scoring": {"correct": 100, "speed": 50},
    "on_exit": "continue",
    "seat_seconds": 30,
}
QUEUES = {
    "den": {},
    "brief": {"seat_seconds": 0.5},
    "short": {"wait_seconds": 1},
    "open": {"late_join": True},
    "slow": {"late_join": True, "start_seconds": NEVER},
}


DUEL = ROOM | {
    "players": 2,
    "match": "fifo",
    "wait_seconds": NEVER,
    "rated": False,
    "on_exit": "forfeit",
}
BOT = {"bots": {"after_seconds": 0.3, "skill": "near"}, "answer_seconds": 1.5}
MATCHED = {
    "fill": {"rated": True, **BOT},
    "fill_slow": {"start_seconds": NEVER, **BOT},
    "lonely": {
        "match": "rating",
        "window": 0,  # no player is matched with another one
        "widen": 0,
        "start_seconds": NEVER,
        "bots": {"after_seconds": 2, "skill": "near"},
    },
    "fill_long": {"rounds": 10, **BOT, "answer_seconds": 3},
    "again": {"rematch_seconds": 20},
    "again_soon": {"rematch_seconds": 0.7},
    "trio": {"players": {"min": 2, "max": 3}, "fill_seconds": NEVER, "rematch_seconds": 20},
}


def add_rooms(tree):
    tree["queues"] |= {name: ROOM | changes for name, changes in QUEUES.items()}
    tree["queues"] |= {name: DUEL | changes for name, changes in MATCHED.items()}


@pytest.fixture(scope="module")
def house():
    """A server with rooms."""
    running = Server(edited_schema(add_rooms))
    try:
        yield running.start()
        assert "Traceback" not in running.log, running.log[-5000:]
    finally:
        running.close()


@pytest.fixture
def phones(house):
    """Connects new players, and closes their connections after the test."""
    connected = []

    def connect(queue, code="", **options):
        at = f"{queue}?code={code}" if code else queue
        connected.append(house.phone(queue=at, **options))
        return connected[-1]

    yield connect
    for phone in connected:
        phone.close()


def open_room(phones, queue="den", guests=1):
    """Opens a room with a host and guests. Returns (code, phones).

    All have read the `room` message that shows the last guest.
    """
    host = phones(queue)
    code = host.expect("room")["code"]
    everybody = [host]
    for number in range(guests):
        everybody.append(phones(queue, code))
        for phone in everybody:
            assert len(phone.expect("room")["players"]) == number + 2
    return code, everybody


def names(room):
    return [player["username"] for player in room["players"]]


def begin(everybody):
    """Has the host begin a game. Returns the `start` of each phone."""
    everybody[0].send("begin")
    return [phone.expect("start") for phone in everybody]


def join_refused(phone, why, code):
    phone.send("join", code=code)
    phone.refused(why)


# -- a room from its opening to its second game


def test_friends_meet_by_a_code_play_and_return_to_their_room(house, phones):
    host = phones("den")
    first = host.receive()
    code = first["code"]
    assert first["type"] == "room" and (first["queue"], first["host"]) == ("den", host.name)
    assert names(first) == first["connected"] == [host.name]
    assert (first["locked"], first["state"]) == (False, "waiting")
    assert first["settings"]["players"] == {"min": 2, "max": 4} and first["settings"]["rounds"] == 3
    guest = phones("den", code.lower()[:3] + "-" + code[3:])
    room = guest.receive()
    assert (room["type"], room["code"], room["host"]) == ("room", code, host.name)
    assert names(room) == room["connected"] == [host.name, guest.name]
    assert host.receive() == room
    for game in (1, 2):
        starts = begin([host, guest])
        assert starts[0] == starts[1] and starts[0]["queue"] == "den"
        assert names(starts[0]) == [host.name, guest.name]
        for end in play_all([host, guest]):
            assert end["reason"] == "finished" and "rating" not in end["ranking"][0]
        for phone in (host, guest):
            assert phone.expect("room", state="waiting")["host"] == host.name
        wait_until(lambda: house.http("GET", "/users/me", token=host.token).json["games"] == game)
    me = house.http("GET", "/users/me", token=host.token).json
    assert (me["wins"], me["rating"]) == (0, 1500)
    guest.send("leave")
    assert guest.expect("cancelled") == {"type": "cancelled", "queue": "den", "reason": "left"}
    assert names(host.expect("room")) == [host.name]
    host.send("leave")
    host.expect("cancelled", reason="left")
    wait_until(lambda: house.http("GET", f"/rooms/{code}").status == 410)


def test_a_player_joins_a_room_on_a_socket_that_is_already_open(phones):
    code, [host] = open_room(phones, guests=0)
    guest = phones("random")
    guest.expect("queued")
    guest.send("leave")
    guest.expect("cancelled")
    guest.send("join", code=code)
    assert names(guest.expect("room")) == [host.name, guest.name]
    begin([host, guest])
    guest.send("leave")
    assert guest.expect("cancelled")["reason"] == "left"
    assert names(host.expect("room", state="playing")) == [host.name]
    guest.send("join", queue="den")
    other = guest.expect("room")
    assert other["code"] != code and other["host"] == guest.name


def test_a_link_shows_the_room_to_people_who_have_not_joined(house, phones):
    code, [host, guest] = open_room(phones)
    room = house.http("GET", f"/rooms/{code.lower()}").json
    assert room == {key: value for key, value in guest.frames[-1].items() if key != "type"}
    begin([host, guest])
    assert house.http("GET", f"/rooms/{code}").json["state"] == "playing"


def test_a_guest_account_joins_a_room_by_link_or_code_at_once(house, phones):
    code, [host] = open_room(phones, guests=0)
    for way in (f"den?code={code}", f"random?code={code.lower()}", "den"):
        answer = house.http("POST", "/auth/guest", {"secret": secrets.token_urlsafe(32)})
        assert answer.status == 201
        preview = house.http("GET", f"/rooms/{code}", token=answer.json["token"])
        assert (preview.status, preview.json["host"]) == (200, host.name)
        guest = phones(way, session=answer.json)
        if "code" not in way:  # the guest is in a room of their own, and has to leave it first
            assert guest.expect("room")["code"] != code
            guest.send("leave")
            guest.expect("cancelled", reason="left")
            guest.send("join", code=code)
        room = guest.expect("room", code=code)
        assert (
            room["players"][-1]["guest"] is True and room["players"][-1]["username"] == guest.name
        )
        assert len(host.expect("room")["players"]) == len(room["players"])
    preview = house.http("GET", f"/rooms/{code}").json
    assert preview == {key: value for key, value in room.items() if key != "type"}
    begin([host, guest])


# -- hosts


def test_a_kicked_player_can_not_join_the_room_again(house, phones):
    code, [host, guest, other] = open_room(phones, guests=2)
    host.send("kick", player=guest.name)
    assert guest.expect("cancelled")["reason"] == "kicked"
    assert names(host.expect("room")) == names(other.expect("room")) == [host.name, other.name]
    join_refused(guest, "kicked", code)
    guest.send("join", queue="den")  # the guest may play elsewhere
    guest.expect("room")


def test_a_kicked_player_also_leaves_the_game(phones):
    _, players = open_room(phones, guests=3)
    host, guest, away, other = players
    begin(players)
    for phone in players:
        phone.expect("question")
    away.drop()
    assert host.expect("user_exit")["returns_ms"] > 0
    for player in (away, guest):
        host.send("kick", player=player.name)
        left = host.expect("user_exit")
        assert (left["player"], left["returns_ms"]) == (player.name, 0)
    guest.expect("cancelled", reason="kicked")
    host.send("answer", round=1, choice=0)
    other.send("answer", round=1, choice=0)
    assert other.expect("reveal")["round"] == 1
    guest.send("join", queue="den")
    guest.expect("room")


def test_a_locked_room_admits_only_its_members(phones):
    code, [host, guest] = open_room(phones)
    host.send("lock", locked=True)
    assert guest.expect("room")["locked"] is True
    stranger = phones("den", code)
    stranger.refused("room_locked")
    guest.drop()
    guest.connect()
    assert guest.expect("room")["locked"] is True
    host.send("lock", locked=False)
    guest.expect("room", locked=False)
    stranger.send("join", code=code)
    stranger.expect("room")


def test_a_host_who_passes_the_room_can_not_direct_it_any_more(phones):
    _, [host, guest] = open_room(phones)
    host.send("pass", player=guest.name)
    assert host.expect("room")["host"] == guest.expect("room")["host"] == guest.name
    for message in (
        {"kind": "begin"},
        {"kind": "lock", "locked": True},
        {"kind": "kick", "player": guest.name},
        {"kind": "pass", "player": host.name},
    ):
        host.refused("not_host", **message)
    begin([guest, host])


def test_the_member_who_joined_next_becomes_host_when_the_host_leaves(phones):
    _, [host, guest, other] = open_room(phones, guests=2)
    host.send("leave")
    assert guest.expect("room")["host"] == other.expect("room")["host"] == guest.name


def test_a_disconnected_host_stays_host_until_their_seat_expires(phones):
    _, [host, guest] = open_room(phones, "brief")
    host.drop()
    room = guest.expect("room")
    assert (room["host"], room["connected"]) == (host.name, [guest.name])
    room = guest.expect("room")
    assert (room["host"], names(room)) == (guest.name, [guest.name])


def test_a_host_who_reconnects_is_still_the_host(phones):
    code, [host, guest] = open_room(phones)
    host.drop()
    assert guest.expect("room")["connected"] == [guest.name]
    host.connect()
    room = host.expect("room")
    assert room["code"] == code and room["host"] == host.name
    assert room["connected"] == [host.name, guest.name]
    guest.expect("room", connected=[host.name, guest.name])
    begin([host, guest])


# -- what is refused


def test_each_kind_of_wrong_code_has_its_own_error_and_changes_nothing(house, phones):
    code, [host, guest] = open_room(phones)
    gone, [leaver] = open_room(phones, guests=0)
    leaver.send("leave")
    leaver.expect("cancelled")
    wait_until(lambda: house.http("GET", f"/rooms/{gone}").status == 410)
    before = house.redis.hgetall(f"room:{{lobby}}:{code}")
    stranger = phones("den", "ABC234")
    stranger.refused("unknown_code")
    for wrong, why in (
        ("nope", "malformed_code"),
        (gone, "expired_code"),
        ("ABC235", "unknown_code"),
    ):
        join_refused(stranger, why, wrong)
        status = {"malformed_code": 422, "expired_code": 410, "unknown_code": 404}[why]
        house.http("GET", f"/rooms/{wrong}").refused(status, why)
    for _ in range(2):
        phones("den", code).expect("room")
    join_refused(stranger, "room_full", code)
    assert house.redis.hget(f"room:{{lobby}}:{code}", "host") == before["host"]
    stranger.send("join", queue="random")  # other queues are still open to them
    stranger.expect("queued")


def test_a_member_who_reconnects_with_a_wrong_code_stays_in_their_room(phones):
    code, [host, guest] = open_room(phones)
    guest.drop()
    guest.connect("den?code=ABC234")
    assert guest.receive()["code"] == code
    guest.refused("unknown_code")
    begin([host, guest])


def test_commands_that_a_host_can_not_give_are_refused_with_a_code(phones):
    _, [host] = open_room(phones, guests=0)
    host.refused("too_few_players", "begin")
    host.refused("no_such_player", "kick", player="nobody")
    host.refused("no_such_player", "kick", player=host.name)
    host.refused("no_such_player", "pass", player="nobody")
    host.refused("invalid_message", "lock")
    host.refused("wrong_state", "join", queue="random")
    host.refused("wrong_state", "answer", round=1, choice=0)
    alone = phones("random")
    for kind, fields in (("begin", {}), ("lock", {"locked": True}), ("kick", {"player": "x"})):
        alone.refused("wrong_state", kind, **fields)


def test_refused_commands_do_not_change_a_room(house, phones):
    code, [host, guest, other, last] = open_room(phones, guests=3)
    host.send("kick", player=last.name)
    last.expect("cancelled", reason="kicked")
    host.send("lock", locked=True)
    host.expect("room", locked=True)
    stranger = phones("den")
    own = stranger.expect("room")["code"]

    def state():
        return [house.redis.hgetall(f"room:{{lobby}}:{one}") for one in (code, own)] + [
            seat_of(house, phone) for phone in (host, guest, other)
        ]

    before = state()
    commands = (
        {"kind": "begin"},
        {"kind": "lock", "locked": False},
        {"kind": "kick", "player": other.name},
        {"kind": "pass", "player": guest.name},
    )
    for command in commands:
        guest.refused("not_host", **command)
        last.refused("wrong_state", **command)
    for command in commands[2:]:  # sent by the host of another room
        stranger.refused("no_such_player", **command)
    for player in (host.name, stranger.name, "nobody", "x" * 255):
        host.refused("no_such_player", "kick", player=player)
        host.refused("no_such_player", "pass", player=player)
    for fields in ({"player": "x" * 256}, {"player": 1}, {}):
        host.refused("invalid_message", "kick", **fields)
    join_refused(last, "kicked", code)
    newcomer = phones("den", code)
    newcomer.refused("room_locked")
    for wrong, why in (("CDFHJK", "unknown_code"), ("CDFHJ?", "malformed_code")):
        join_refused(newcomer, why, wrong)
    newcomer.send("join", code="C" * 41)
    newcomer.refused("invalid_message")
    assert state() == before
    begin([host, guest])


def test_a_room_plays_one_game_at_a_time(phones):
    _, [host, guest] = open_room(phones)
    begin([host, guest])
    host.refused("wrong_state", "begin")


def test_an_idle_room_closes(house, phones):
    code, [host, guest] = open_room(phones, "short")
    for phone in (host, guest):
        assert phone.expect("cancelled") == {
            "type": "cancelled",
            "queue": "short",
            "reason": "timeout",
        }
    assert house.http("GET", f"/rooms/{code}").status == 410
    host.send("join")
    host.expect("room")


def test_a_member_who_joins_a_queue_or_another_room_leaves_their_room(phones):
    code, [host, guest] = open_room(phones)
    guest.drop()
    guest.connect("random")
    guest.expect("queued")
    assert names(host.expect("room", players=[host.frames[-1]["players"][0]])) == [host.name]
    other = phones("den")
    second = other.expect("room")["code"]
    guest.drop()
    guest.connect(f"den?code={second}")
    assert names(guest.expect("room")) == [other.name, guest.name]


# -- late joins


def test_a_player_who_joins_during_a_game_plays_from_the_next_question(house, phones):
    code, [host, guest] = open_room(phones, "open")
    [game, _] = [start["game"] for start in begin([host, guest])]
    for phone in (host, guest):
        phone.expect("question", round=1)
    late = phones("open", code)
    update = late.receive()
    assert (update["type"], update["game"], update["phase"]) == ("update", game, "question")
    assert "question" not in update and update["round"] == 1
    assert names(update) == [host.name, guest.name, late.name]
    room = late.expect("room")
    assert (room["state"], len(room["players"])) == ("playing", 3)
    for phone in (host, guest):
        assert phone.expect("user_return")["player"] == late.name
    late.refused("not_playing", "answer", round=1, choice=0)
    for phone in (host, guest):  # the round does not wait for an answer of the late player
        phone.send("answer", round=1, choice=0)
    reveal = late.expect("reveal", round=1)
    assert late.name not in reveal["answers"] and reveal["scores"][late.name] == 0
    second = late.expect("question", round=2)
    assert second["answer_ms"] == NEVER * 1000
    late.send("answer", round=2, choice=0)
    host.expect("answered", player=late.name)
    late.drop()
    host.expect("user_exit")
    late.connect()
    update = late.receive()
    assert (update["type"], update["choice"]) == ("update", 0) and "question" in update
    session = house.register()
    met = {trivia.digest(one.token[:12], trivia.MET_BYTES): 10 for one in (host, guest, late)}
    house.redis.hset(trivia.Keys.met(session["token"][:12]), mapping=met)
    last = phones("open", code, session=session)  # after a round was closed
    assert last.receive()["round"] == 2
    last.drop()
    last.connect()
    assert last.receive()["round"] == 2
    for phone in (host, guest):
        phone.send("answer", round=2, choice=0)
    answers = late.expect("reveal", round=2)["answers"]
    assert answers.keys() == {host.name, guest.name, late.name}
    everybody = [host, guest, late, last]
    for end in play_all(everybody):
        assert {row["player"] for row in end["ranking"]} == {phone.name for phone in everybody}
        assert [row["player"] for row in end["ranking"] if "counts" in row] == [last.name]
    record = house.http("GET", f"/games/{game}", token=late.token).json
    assert late.name not in record["rounds"][0]["answers"]
    assert late.name in record["rounds"][1]["answers"]
    for phone in everybody:
        assert phone.expect("room", state="waiting")["host"] == host.name


def test_a_player_who_joins_before_the_first_question_plays_all_rounds(phones):
    code, [host, guest] = open_room(phones, "slow")
    begin([host, guest])
    late = phones("slow", code)
    update = late.receive()
    assert (update["phase"], update["round"], len(update["players"])) == ("start", 0, 3)


def test_a_player_who_joins_in_the_last_round_waits_in_the_room(phones):
    code, [host, guest] = open_room(phones, "open")
    begin([host, guest])
    for number in (1, 2):
        for phone in (host, guest):
            phone.expect("question", round=number)
        for phone in (host, guest):
            phone.send("answer", round=number, choice=0)
    host.expect("question", round=3)
    late = phones("open", code)
    assert late.receive()["state"] == "playing"
    late.refused("wrong_state", "check")
    for phone in (host, guest):
        phone.send("answer", round=3, choice=0)
    for phone in (host, guest):
        phone.expect("end")
    late.expect("room", state="waiting")
    begin([host, guest, late])


def test_a_player_who_joins_during_a_game_without_late_join_waits_in_the_room(phones):
    code, [host, guest] = open_room(phones, "den")
    begin([host, guest])
    late = phones("den", code)
    assert late.receive()["state"] == "playing"
    for end in play_all([host, guest]):
        assert len(end["ranking"]) == 2
    late.expect("room", state="waiting")
    assert names(begin([host, guest, late])[0]) == [host.name, guest.name, late.name]


# -- lost workers, and guessed codes


def test_the_members_of_a_room_may_be_on_several_workers(house, beside, phones):
    code, [host] = open_room(phones, guests=0)
    guest = beside.phone(queue=f"den?code={code}")
    assert names(host.expect("room")) == names(guest.expect("room")) == [host.name, guest.name]
    begin([host, guest])
    play_all([host, guest])
    for phone in (host, guest):
        phone.expect("room", state="waiting")
    host.send("pass", player=guest.name)
    guest.expect("room", host=guest.name)
    host.expect("room", host=guest.name)
    begin([guest, host])
    guest.close()


def test_a_room_survives_the_death_of_its_hosts_worker(house, phones):
    doomed = beside_of(house).start()
    try:
        host = doomed.phone(queue="brief")
        code = host.expect("room")["code"]
        guest, other = phones("brief", code), phones("brief", code)
        other.expect("room")
        begin([host, guest, other])
    finally:
        stop_alone(doomed)
    for number in (1, 2, 3):  # the game continues without the host
        for phone in (guest, other):
            phone.expect("question", round=number)
        for phone in (guest, other):
            phone.send("answer", round=number, choice=0)
        for phone in (guest, other):
            phone.expect("reveal", round=number)
    for phone in (guest, other):
        phone.expect("end")
    # The worker is reaped after ten missed heartbeats. The host's seat expires after that.
    room = guest.expect("room", seconds=30, host=guest.name)
    assert names(room) == [guest.name, other.name]
    host.server = house
    host.connect(f"brief?code={code}")
    assert names(host.expect("room")) == [guest.name, other.name, host.name]
    other.expect("room", connected=[guest.name, other.name, host.name])
    begin([guest, other, host])
    host.close()


def test_a_worker_that_lost_events_corrects_what_its_players_see(house, phones):
    _, [host, guest, other, idle] = open_room(phones, guests=3)
    begin([host, guest, other, idle])
    for phone in (host, guest, other, idle):
        phone.expect("question")
    idle.send("leave")
    idle.expect("cancelled")
    client = house.redis
    seats = {}
    for phone in (guest, other, idle):
        uid = phone.token[:12]
        seats[uid] = client.hget("seats:{lobby}", uid)
        conn, turn, queue, since, rating, game, *room = seats[uid].split()
        if phone is guest:  # as after a kick
            lost = f"{conn} {turn} - 0 - -"
        else:  # as after their worker hung
            lost = f"- {turn} {queue} {since} {rating} {game} {' '.join(room)}".strip()
        client.hset("seats:{lobby}", uid, lost)
    client.client_kill_filter(_type="pubsub")
    assert guest.expect("cancelled")["reason"] == "left"
    host.expect("user_exit", player=guest.name)
    for phone in (other, idle):
        uid = phone.token[:12]
        wait_until(lambda: client.hget("seats:{lobby}", uid) == seats[uid])
    for phone in (host, other):
        phone.send("answer", round=1, choice=0)
    assert guest.name not in host.expect("reveal")["answers"]


def test_a_player_who_guesses_codes_has_to_wait(house, phones):
    code, _ = open_room(phones, guests=0)
    stranger = phones("den", "ABC234")
    stranger.refused("unknown_code")
    answers = []
    for _ in range(14):
        stranger.send("join", code=trivia.draw_code(6))
        answers.append(stranger.expect("error")["code"])
    assert answers[:9] == ["unknown_code"] * 9
    assert answers[-1] == "too_many_attempts" and len(set(answers)) == 2
    join_refused(stranger, "too_many_attempts", code)  # a right code is refused too
    friend = phones("den", code)  # a player who knows the code gets in
    friend.expect("room")
    for _ in range(6):  # and may leave and join many times
        friend.send("leave")
        friend.expect("cancelled")
        friend.send("join", code=code)
        friend.expect("room")


@pytest.fixture(scope="module")
def many_codes():
    return [trivia.draw_code(6) for _ in range(20_000)]


def test_a_million_guesses_a_minute_find_less_than_one_of_ten_thousand_rooms(many_codes):
    tries = trivia.NETWORK_CODE_ALLOWANCE[1] + 60_000 / trivia.NETWORK_CODE_ALLOWANCE[0]
    codes = set(many_codes)
    letters = set("".join(codes))
    assert len(codes) > 19_990 and letters == set(trivia.CODE_LETTERS)
    share = 20_000 / len([*codes])  # corrects for codes that were drawn twice
    assert 10_000 / (len(letters) ** trivia.ROOM_CODE_LENGTH) * tries * share < 0.1


def test_codes_have_no_similar_letters_and_no_rude_words(many_codes):
    for pair in ("0O", "1I", "1L", "2Z", "5S", "6G", "8B", "VU", "QO"):
        assert not set(pair) <= set(trivia.CODE_LETTERS), pair
    assert not set("AEIOU") & set(trivia.CODE_LETTERS)
    assert not [code for code in many_codes if "FCK" in code or "5HT" in code or "DCK" in code]
    assert trivia.read_code(" abc-234 ", 6) == "ABC234"
    for malformed in ("", "ABC23", "ABC2345", "ABC23ß", "äBC234", "ABC 2 3 4 5"):
        assert trivia.read_code(malformed, 6) == trivia.NO_CODE


# -- rematches


def meet(phones, queue="again", count=2):
    """Connects new players, and plays a game to its end. Returns phones and `end`s."""
    players = [phones(queue) for _ in range(count)]
    for phone in players:
        phone.expect("start")
    return players, play_all(players, lambda question: 0)


def offer_of(house, end):
    return house.redis.exists(f"rematch:{{lobby}}:{end['game']}")


def seat_of(house, phone):
    return house.redis.hget("seats:{lobby}", phone.token[:12])


def test_two_players_play_again_with_one_message_each_and_see_their_series(house, phones):
    (ann, bob), ends = meet(phones)
    wins = {row["player"]: int(row["rank"] == 1) for row in ends[0]["ranking"]}
    if sum(wins.values()) > 1:
        wins = dict.fromkeys(wins, 0)
    assert ends[0]["rematch_ms"] == 20_000 and ends[0]["series"] == wins
    texts = [{frame["text"] for frame in ann.frames if frame["type"] == "question"}]
    for _ in range(2):
        game = ends[0]["game"]
        ann.send("rematch", accept=True)
        for phone in (ann, bob):
            told = phone.expect("rematch")
            assert told.pop("expires_ms") in range(1, 20_001)
            assert told == {
                "type": "rematch",
                "game": game,
                "players": [ann.name],
                "connected": told["connected"],
                "declined": [],
                "series": wins,
            }
            assert sorted(told["connected"]) == sorted([ann.name, bob.name])
        bob.send("rematch", accept=True)
        starts = [phone.expect("start") for phone in (ann, bob)]
        assert starts[0] == starts[1] and starts[0]["queue"] == "again"
        assert starts[0]["game"] != game and starts[0]["series"] == wins
        ann.send("check")
        assert ann.expect("update")["series"] == wins
        ends = play_all([ann, bob], lambda question: 0)
        ranks = {row["player"]: row["rank"] for row in ends[0]["ranking"]}
        if sorted(ranks.values()) == [1, 2]:
            wins = {name: count + (ranks[name] == 1) for name, count in wins.items()}
        assert ends[0]["series"] == wins
        texts.append({frame["text"] for frame in ann.frames if frame["type"] == "question"})
    assert len(texts[2]) == 9  # new questions each time
    wait_until(lambda: house.http("GET", "/users/me", token=ann.token).json["games"] == 3)


def test_the_opponent_is_told_at_once_when_a_player_declines_or_joins_elsewhere(house, phones):
    decline, join = {"kind": "rematch", "accept": False}, {"kind": "join", "queue": "den"}
    for act in (decline, join, join | {"code": "UNKNWN"}, None):
        (ann, bob), ends = meet(phones)
        ann.send("rematch", accept=True)
        bob.expect("rematch", players=[ann.name])
        ann.expect("rematch", players=[ann.name])
        if act:
            bob.send(**act)
        else:  # Bob joins on another connection
            bob.connect("random")
            bob.expect("queued")
        if act and "code" in act:
            bob.refused("unknown_code")
        told = ann.expect("rematch", expires_ms=0)
        assert (told["declined"], told["expires_ms"]) == ([bob.name], 0)
        ann.refused("rematch_over", "rematch", accept=True)
        ann.send("join", queue="random")
        ann.expect("queued")
        ann.send("leave")
        assert not offer_of(house, ends[0])


def test_a_player_who_reconnects_during_the_offer_plays_again(house, beside, phones):
    (ann, bob), ends = meet(phones)
    bob.drop()
    ann.send("rematch", accept=True)
    assert ann.expect("rematch", connected=[ann.name])["players"] == [ann.name]
    bob.server = beside  # on another worker
    bob.connect()
    told = bob.receive()
    assert (told["type"], told["players"]) == ("rematch", [ann.name])
    ann.expect("rematch", connected=ends[0]["ranking"] and told["connected"])
    ann.drop()  # a player who has agreed need not stay connected
    bob.expect("rematch", connected=[bob.name])
    bob.send("rematch", accept=True)
    game = bob.expect("start")["game"]
    ann.connect("den")
    assert ann.receive()["game"] == game
    for end in play_all([ann, bob]):
        assert end["reason"] == "finished" and sum(end["series"].values()) <= 2
    bob.close()


def test_a_player_who_reconnects_before_the_other_agrees_may_still_agree(house, phones):
    (ann, bob), _ = meet(phones)
    bob.drop()
    told = ann.expect("rematch")
    assert (told["players"], told["connected"], told["declined"]) == ([], [ann.name], [])
    bob.connect()
    assert bob.receive()["type"] == "queued"
    told = bob.receive()
    assert (told["type"], told["players"], told["declined"]) == ("rematch", [], [])
    assert 0 < told["expires_ms"] <= 20_000 and sorted(told["connected"]) == sorted(
        [ann.name, bob.name]
    )
    ann.send("rematch", accept=True)
    assert bob.expect("rematch")["players"] == [ann.name]
    bob.send("rematch", accept=True)
    for phone in (ann, bob):
        phone.expect("start")
    assert not house.redis.exists("queue:{lobby}:again")


def test_a_player_whose_ticket_times_out_may_still_agree(house, phones):
    (ann, bob), _ = meet(phones)
    bob.drop()
    ann.expect("rematch")
    bob.connect()
    assert [bob.receive()["type"] for _ in range(2)] == ["queued", "rematch"]
    ann.expect("rematch")
    conn, turn, queue, _, *rest = seat_of(house, bob).split(" ")
    long_ago = " ".join([conn, turn, queue, "1", *rest])
    house.redis.hset("seats:{lobby}", bob.token[:12], long_ago)
    house.redis.zadd("due:{lobby}", {f"again {bob.token[:12]}": 0})
    assert bob.expect("cancelled")["reason"] == "timeout"
    ann.send("rematch", accept=True)
    assert bob.expect("rematch", players=[ann.name])["declined"] == []
    bob.send("rematch", accept=True)
    for phone in (ann, bob):
        phone.expect("start")


def test_a_player_who_blocks_the_other_after_the_game_declines_the_rematch(house, phones):
    (ann, bob), _ = meet(phones)
    bob.send("rematch", accept=True)
    ann.expect("rematch", players=[bob.name])
    assert house.http("PUT", f"/users/{bob.name}/block", token=ann.token).status == 204
    ann.send("rematch", accept=True)
    assert bob.expect("rematch", expires_ms=0)["declined"] == [ann.name]


def test_a_player_who_is_matched_elsewhere_declines_the_rematch(phones):
    (ann, bob), _ = meet(phones)
    bob.drop()
    bob.connect()
    bob.expect("queued")
    ann.send("rematch", accept=True)
    bob.expect("rematch")
    stranger = phones("again")
    stranger.expect("start")
    bob.expect("start")
    assert ann.expect("rematch", expires_ms=0)["declined"] == [bob.name]


def test_the_time_for_a_rematch_ends(house, phones):
    (ann, bob), ends = meet(phones, "again_soon")
    assert ends[0]["rematch_ms"] == 700
    ann.send("rematch", accept=True)
    for phone in (ann, bob):
        assert phone.expect("rematch", expires_ms=0)["players"] == [ann.name]
    for phone in (ann, bob):
        phone.refused("rematch_over", "rematch", accept=True)
    assert not offer_of(house, ends[0])
    assert seat_of(house, ann).split(" ")[2:] == ["-", "0", "-", "-"]


def test_of_three_players_the_two_who_agree_play_again(phones):
    (ann, bob, cid), ends = meet(phones, "trio", 3)
    assert "series" not in ends[0]
    ann.send("rematch", accept=True)
    bob.expect("rematch", players=[ann.name])
    cid.send("rematch", accept=False)
    assert ann.expect("rematch", declined=[cid.name])["expires_ms"] > 0
    bob.send("rematch", accept=True)
    start = ann.expect("start")
    assert {player["username"] for player in start["players"]} == {ann.name, bob.name}
    cid.refused("rematch_over", "rematch", accept=True)


def test_no_player_can_agree_to_a_rematch_that_is_not_offered(phones):
    alone = phones("random")
    alone.refused("rematch_over", "rematch", accept=True)
    alone.send("leave")
    ann, bob = phones("again"), phones("again")
    for phone in (ann, bob):
        phone.expect("start")
    ann.refused("wrong_state", "rematch", accept=True)
    bob.send("leave")
    assert "rematch_ms" not in ann.expect("end")
    ann.refused("rematch_over", "rematch", accept=True)
    ann.refused("invalid_message", "rematch")
    (host, guest), ends = meet(phones, "random")  # a queue without rematches
    assert "rematch_ms" not in ends[0]
    host.refused("rematch_over", "rematch", accept=True)


def test_a_rematch_survives_the_death_of_a_players_worker(house, phones):
    doomed = beside_of(house).start()
    try:
        ann, bob = doomed.phone(queue="again"), phones("again")
        for phone in (ann, bob):
            phone.expect("start")
        play_all([ann, bob])
        ann.send("rematch", accept=True)
        bob.expect("rematch", players=[ann.name])
    finally:
        stop_alone(doomed)
    ann.server = house
    ann.connect()
    assert ann.expect("rematch")["players"] == [ann.name]
    bob.send("rematch", accept=True)
    for phone in (ann, bob):
        phone.expect("start")
    play_all([ann, bob])
    ann.close()


def test_an_offer_is_deleted_when_all_its_players_have_left(house, phones):
    (ann, bob), ends = meet(phones)
    for phone in (ann, bob):
        phone.close()
    wait_until(lambda: not seat_of(house, ann) and not seat_of(house, bob))
    assert not offer_of(house, ends[0])


def test_an_erased_player_is_not_named_in_a_room_or_an_offer(house, phones):
    code, [host, guest, other] = open_room(phones, guests=2)
    other.drop()  # the seat is kept for a while
    host.expect("room", connected=[host.name, guest.name])
    (ann, bob, cid), ends = meet(phones, "trio", 3)
    waiting = phones("fill_slow")
    waiting.expect("queued")
    for phone in (guest, other, cid, waiting):
        answer = house.http("DELETE", "/users/me", {"password": PASSWORD}, phone.token)
        assert answer.status == 204
    assert names(host.expect("room", players=[host.frames[-1]["players"][0]])) == [host.name]
    assert ann.expect("rematch", declined=["(erased)"])["expires_ms"] > 0
    stored = str(house.redis.hgetall(f"room:{{lobby}}:{code}"))
    stored += str(house.redis.hgetall(f"rematch:{{lobby}}:{ends[0]['game']}"))
    stored += str(house.redis.zrange("due:{lobby}", 0, -1))
    for phone in (guest, other, waiting):
        assert phone.name not in stored and phone.token[:12] not in stored
    assert cid.name not in stored
    for phone in (ann, bob):
        phone.send("rematch", accept=True)
    assert {player["username"] for player in ann.expect("start")["players"]} == {ann.name, bob.name}


# -- bots


def bots_of(rows):
    return [row for row in rows if row.get("bot")]


def test_a_player_without_an_opponent_plays_a_bot_and_the_game_does_not_count(house, phones):
    ann = phones("fill")
    start = ann.expect("start")
    (view,) = bots_of(start["players"])
    bot = view["username"]
    assert bot.startswith("Bot ") and (view["rating"], view["bot"]) == (1500, True)
    ann.expect("question")
    ann.send("check")
    update = ann.expect("update")
    assert bots_of(update["players"]) == [view] and bot in update["connected"]
    answers = [ann.expect("reveal")["answers"] for _ in range(3)]
    given = [round_answers[bot] for round_answers in answers if bot in round_answers]
    assert given and all(300 < answer["ms"] <= 1500 for answer in given)
    end = ann.expect("end")
    assert [row["player"] for row in bots_of(end["ranking"])] == [bot]
    assert all(row["counts"] is False and "rating" not in row for row in end["ranking"])
    assert "rematch_ms" not in end
    me = house.http("GET", "/users/me", token=ann.token).json
    assert (me["games"], me["wins"], me["rating"]) == (0, 0, 1500)
    (game,) = house.http("GET", "/users/me/games", token=ann.token).json["games"]
    record = house.http("GET", f"/games/{game['id']}", token=ann.token).json
    for shown in (game, record):
        assert [row["player"] for row in bots_of(shown["ranking"])] == [bot]
    for board in ("rating", "wins"):
        assert bot not in house.http("GET", f"/leaderboards/{board}").body
    assert not house.redis.keys("*bot1*")


def test_a_bot_comes_at_most_a_second_late_even_when_a_worker_dies(house, beside, phones):
    people = [house.register() for _ in range(15)]
    for number, person in enumerate(people):
        user = trivia.Keys.user(person["token"][:12])
        house.redis.hset(user, "rating", 1000 + 10 * number)
    doomed = beside_of(house).start()
    all_wait = threading.Barrier(len(people) + 1)

    def wait(number):
        at = (house, beside, doomed)[number % 3]
        phone = at.phone(session=people[number], queue="lonely")
        phone.expect("queued")
        since = time.monotonic()
        all_wait.wait(30)
        try:
            start = phone.expect("start")
        except ConnectionClosed:
            phone.server = house
            start = phone.connect().expect("start")
        waited_s = time.monotonic() - since
        phone.close()
        return waited_s, {bool(player.get("bot")): player for player in start["players"]}

    with ThreadPoolExecutor(len(people)) as pool:
        try:
            waits = [pool.submit(wait, number) for number in range(len(people))]
            all_wait.wait(30)
        finally:
            stop_alone(doomed)
        done = [one.result() for one in waits]
    for _, players in done:
        assert players[True]["rating"] == players[False]["rating"]
    assert sorted(waited_s for waited_s, _ in done)[-2] < 3, done


def test_a_human_takes_the_seat_of_a_bot_and_the_game_counts(house, beside, phones):
    ann = phones("fill_slow")
    start = ann.expect("start")
    assert len(bots_of(start["players"])) == 1
    key = trivia.Keys.game(start["game"])
    house.redis.rename(key, f"{key}:aside")  # as while another worker still forms the game
    bob = beside.phone(queue="fill_slow")
    assert bob.receive()["type"] == "queued"
    house.redis.rename(f"{key}:aside", key)
    taken = bob.receive()
    assert (taken["type"], taken["game"], taken["seq"]) == ("start", start["game"], 1)
    assert [player["username"] for player in taken["players"]] == [ann.name, bob.name]
    assert ann.expect("update")["players"] == taken["players"]
    assert not bots_of(taken["players"])
    change_state(house.redis, start["game"], deadline=1)
    house.redis.zadd(trivia.Keys.game_keys(start["game"])[1], {start["game"]: 1})
    for end in play_all([ann, bob]):
        assert not any("counts" in row for row in end["ranking"])
    bob.close()


def test_a_game_with_a_bot_survives_the_death_of_its_players_worker(house, phones):
    doomed = beside_of(house).start()
    try:
        ann = doomed.phone(queue="fill_long")
        game = ann.expect("question")["game"]
    finally:
        stop_alone(doomed)
    ann.server = house
    ann.connect()
    update = ann.receive()
    assert (update["type"], update["game"]) == ("update", game)
    assert ann.play()["reason"] == "finished"
    ann.close()


def test_a_player_who_leaves_a_bot_alone_ends_the_game(phones):
    ann = phones("fill_long")
    ann.expect("question")
    ann.expect("reveal")
    ann.send("leave")
    assert ann.expect("end")["reason"] == "abandoned"


# -- the skill of bots


NO_SUMS = trivia.QuestionSums.parse("")


@pytest.fixture
def dice(monkeypatch):
    """Seeds the bots' random numbers, so that each run draws the same."""
    monkeypatch.setattr(trivia, "DICE", random.Random(2026))
    return trivia.DICE


def human_score(dice, questions, rating):
    """Returns the points of a human. Their answer times are distributed unlike those of bots."""
    points = 0
    for question in questions:
        share = trivia.share_right(question, NO_SUMS)
        ms = max(500, dice.gammavariate(4, 1100))
        if dice.random() < trivia.chance_of_right(share, 4, rating - 1500) and ms < 15_000:
            points += 100 + int(50 * (15_000 - ms) / 15_000)
    return points


def bot_score(questions, rating):
    quiz = [(trivia.share_right(question, NO_SUMS), "1203") for question in questions]
    ((*_, script),) = trivia.new_bots(1, rating, rating - 1500, quiz, 15_000)
    answers = [map(int, part.split(":")) for part in script.split(" ")]
    return sum(
        100 + int(50 * (15_000 - ms) / 15_000)
        for ms, choice in answers
        if choice == 2 and ms < 15_000
    )


def share_won(dice, rating, skill, games=2000):
    """Returns the share of games that a player wins against bots. A draw counts as half a game."""
    won = 0
    for _ in range(games):
        quiz = [
            trivia.Question("?", tuple("abcd"), "c", dice.choice(trivia.DIFFICULTIES))
            for _ in range(10)
        ]
        mine, other = human_score(dice, quiz, rating), bot_score(quiz, skill)
        won += (mine > other) + (mine == other) / 2
    return won / games


@pytest.mark.parametrize("rating", [300, 900, 1500, 2100, 2700])
def test_a_player_wins_half_of_their_games_against_bots_of_their_skill(dice, rating):
    assert 0.45 < share_won(dice, rating, rating) < 0.55


@pytest.mark.parametrize("gap", [-600, -300, -100, 100, 300, 600])
def test_a_player_wins_as_often_against_a_bot_as_the_ratings_predict(dice, gap):
    scale = math.sqrt(2) * trivia.RATINGS.beta  # PlackettLuce for two ratings without uncertainty
    predicted = 1 / (1 + math.exp(-gap / scale))
    assert abs(share_won(dice, 1500 + gap / 2, 1500 - gap / 2) - predicted) < 0.05


def test_statistics_of_a_question_replace_its_difficulty():
    question = trivia.Question("?", tuple("abcd"), "c", "easy")
    assert trivia.share_right(question, NO_SUMS) == 0.75
    sums = trivia.QuestionSums(shown=980, choices=[98, 882])
    assert trivia.share_right(question, sums) == (15 + 98) / 1000


def test_bots_answer_as_fast_as_people(dice):
    times = sorted(trivia.answer_time(15_000) for _ in range(4000))
    assert 3800 < times[2000] < 4200 and 2200 < times[600] < 2600 and times[0] >= 800
    assert 6300 < times[3400] < 7200 and times[-1] > 15_000  # bots sometimes answer too late
    hasty = sorted(trivia.answer_time(1000) for _ in range(4000))
    assert 380 < hasty[2000] < 420
