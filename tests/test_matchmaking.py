"""Matchmaking: who plays with whom, and when. No player is lost or in two places."""

import contextlib
import secrets
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from conftest import (
    ROOT,
    Phone,
    Server,
    edited_schema,
    play_all,
    stored_game,
    unique_name,
    wait_until,
)

sys.path.insert(0, str(ROOT))

import trivia
from trivia import Keys

DUEL = {"players": 2, "match": "fifo", "wait_seconds": 60}
NEAR = {"players": 2, "match": "rating", "window": 100, "widen": 0, "wait_seconds": 60}
QUEUES = {  # each test has a queue of its own, so that tests do not disturb each other
    **{f"duel{i}": DUEL for i in range(10)},
    "lonely": DUEL,
    "left": DUEL | {"start_seconds": 30},
    "duel10": DUEL | {"seat_seconds": 60},
    "duel11": DUEL | {"seat_seconds": 60},
    "trio": DUEL | {"players": 3},
    "counted": DUEL | {"players": 3},
    "group": DUEL | {"players": {"min": 2, "max": 8}, "fill_seconds": 0.6},
    "eight": DUEL | {"players": {"min": 2, "max": 8}, "fill_seconds": 600},
    "three": DUEL | {"players": {"min": 3, "max": 8}, "fill_seconds": 0.3},
    "near": NEAR,
    "narrow": NEAR,
    "widening": NEAR | {"window": 50, "widen": 400},
    "full": NEAR | {"window": 0},
    "brief": DUEL | {"wait_seconds": 0.7},
    "briefly": NEAR | {"wait_seconds": 0.7},
}
QUEUE_LENGTH = 9


def schema_with(queues, **limits):
    def edit(tree):
        model = tree["queues"]["random"]
        tree["queues"] |= {
            name: {key: value for key, value in model.items() if key != "players"} | spec
            for name, spec in queues.items()
        }
        tree["limits"].update(limits)

    return edited_schema(edit, seat_seconds=1, on_exit="forfeit")


@contextlib.contextmanager
def running(schema=None, **options):
    """A server with a queue for each test. It is killed at the end, to save time."""
    server = Server(
        schema or schema_with(QUEUES, queue_length=QUEUE_LENGTH, early_exit_seconds=1), **options
    )
    try:
        yield server.start()
    finally:
        server.kill(signal.SIGKILL)
        server.process.wait(10)
        # Without a socket here, Redis belongs to another server.
        if (socket := server.data / "d" / "redis.sock").exists():
            with contextlib.suppress(redis.RedisError):
                redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)).shutdown(
                    nosave=True
                )
        shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture(scope="module")
def lobby():
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def beside(lobby):
    """A second worker on the same data, which a test may stop and continue."""
    with running(env={"TRIVIA_DATA": str(lobby.data / "d")}) as server:
        yield server


@pytest.fixture
def doomed(lobby):
    """Another worker on the same data, which a test may kill."""
    with running(env={"TRIVIA_DATA": str(lobby.data / "d")}) as server:
        yield server


def enlist(server, rating=None):
    """Writes a player with a session as the server does, without the cost of a password hash."""
    uid, secret, name = secrets.token_urlsafe(9), secrets.token_urlsafe(24), unique_name()
    fields = {
        "username": name,
        ":created": 1,
        f"session:{trivia.digest(secret)}": int(time.time()) + 3600,
    }
    server.redis.hset(
        Keys.user(uid), mapping=fields | ({} if rating is None else {"rating": rating})
    )
    return {"token": uid + secret, "user": {"username": name}}


def enter(server, queue, rating=None, session=None):
    """Connects a player's phone, and waits until it is in the queue."""
    phone = Phone(server, session or enlist(server, rating), queue)
    phone.expect("queued", queue=queue)
    return phone


def uid_of(phone):
    return phone.token[:12]


def seat(server, phone):
    text = server.redis.hget(Keys.seats, uid_of(phone))
    return text and dict(
        zip(("conn", "turn", "queue", "since", "rating", "game"), text.split(" "), strict=True)
    )


def started(*phones):
    """Checks that all phones start one game with exactly these players. Returns its `start`."""
    starts = [phone.expect("start") for phone in phones]
    assert len({start["game"] for start in starts}) == 1
    assert sorted(player["username"] for player in starts[0]["players"]) == sorted(
        phone.name for phone in phones
    )
    assert all(start["seq"] == 1 and start["players"] == starts[0]["players"] for start in starts)
    return starts[0]


def still_waits(server, *phones):
    for phone in phones:
        place = seat(server, phone)
        assert place["game"] == "-" and place["queue"] == phone.queue
        assert server.redis.zscore(Keys.queue(phone.queue), uid_of(phone)) is not None
        assert [frame["type"] for frame in phone.frames] == ["queued"]


def look_now(server, phone):
    """Makes the check of a ticket due, and waits until it was made."""
    ticket = f"{phone.queue} {uid_of(phone)}"
    server.redis.zadd(Keys.due, {ticket: 1})
    wait_until(lambda: server.redis.zscore(Keys.due, ticket) != 1)
    # The heartbeat has handed out the ticket. Now the script checks it, or the ticket is gone.
    wait_until(lambda: (server.redis.zscore(Keys.due, ticket) or 0) != 1)


def counts(server, queue):
    entry = next(
        entry for entry in server.http("GET", "/queues").json["queues"] if entry["name"] == queue
    )
    return entry["waiting"], entry["playing"]


def close(*phones):
    for phone in phones:
        phone.close()


# ---- who is matched


def test_the_player_who_waits_longest_is_matched_first(lobby):
    first = enter(lobby, "trio")
    second = enter(lobby, "trio")
    third = enter(lobby, "trio")
    started(first, second, third)
    ann, bob, eve = (enter(lobby, "duel0") for _ in range(3))
    started(ann, bob)
    still_waits(lobby, eve)
    dan = enter(lobby, "duel0")
    started(eve, dan)


def test_the_start_message_names_the_players_and_the_rules(lobby):
    ann, bob = enter(lobby, "duel1", rating=1612.5), enter(lobby, "duel1")
    start = started(ann, bob)
    assert start["queue"] == "duel1" and start["rounds"] == 3 and start["starts_ms"] == 100
    assert {player["username"]: player["rating"] for player in start["players"]} == {
        ann.name: 1613,
        bob.name: 1500,
    }
    assert all("email" not in player and "password" not in player for player in start["players"])


def test_a_group_starts_with_the_players_who_wait_when_the_fill_time_ends(lobby):
    began = time.monotonic()
    phones = [enter(lobby, "group") for _ in range(3)]
    started(*phones)
    assert time.monotonic() - began >= 0.6


def test_a_group_of_eight_starts_at_once_and_the_ninth_waits(lobby):
    phones = [enter(lobby, "eight") for _ in range(7)]
    still_waits(lobby, *phones)
    phones.append(enter(lobby, "eight"))
    started(*phones)
    ninth = enter(lobby, "eight")
    still_waits(lobby, ninth)
    close(*phones, ninth)


def test_fewer_players_than_the_minimum_never_start(lobby):
    ann, bob = enter(lobby, "three"), enter(lobby, "three")
    time.sleep(0.4)  # a little more than fill_seconds
    look_now(lobby, ann)
    look_now(lobby, bob)
    still_waits(lobby, ann, bob)
    started(ann, bob, enter(lobby, "three"))


def test_a_player_is_matched_with_the_nearest_rating(lobby):
    low, high, far = (
        enter(lobby, "near", 1390),
        enter(lobby, "near", 1530),
        enter(lobby, "near", 1900),
    )
    still_waits(lobby, low, high, far)
    started(high, enter(lobby, "near", 1480))
    started(low, enter(lobby, "near", 1480))
    still_waits(lobby, far)
    close(far)


def test_players_with_ratings_outside_the_window_are_not_matched(lobby):
    ann, bob = enter(lobby, "narrow", 1400), enter(lobby, "narrow", 1500.5)
    look_now(lobby, ann)
    look_now(lobby, bob)
    still_waits(lobby, ann, bob)
    started(bob, enter(lobby, "narrow", 1600.5))
    close(ann)


def test_the_window_of_ratings_widens_while_players_wait(lobby):
    ann, bob = enter(lobby, "widening", 1200), enter(lobby, "widening", 1500)
    still_waits(lobby, ann, bob)
    started(ann, bob)


# ---- one seat for each player


def test_a_newer_connection_replaces_the_older_one_in_the_queue(lobby):
    session = enlist(lobby)
    old = enter(lobby, "duel2", session=session)
    since = seat(lobby, old)["since"]
    new = enter(lobby, "duel2", session=session)
    old.expect_close(4409)
    assert seat(lobby, new)["since"] == since
    still_waits(lobby, new)
    started(new, enter(lobby, "duel2"))
    assert [frame["type"] for frame in old.frames] == ["queued"]


def test_a_player_who_connects_to_a_second_queue_leaves_the_first(lobby):
    session = enlist(lobby)
    old = enter(lobby, "duel3", session=session)
    new = enter(lobby, "duel4", session=session)
    old.expect_close(4409)
    wait_until(lambda: counts(lobby, "duel3") == (0, 0))
    other = enter(lobby, "duel3")
    still_waits(lobby, other, new)
    started(new, enter(lobby, "duel4"))
    still_waits(lobby, other)
    close(other)


def test_a_late_close_of_the_older_connection_does_not_affect_the_game(lobby):
    session = enlist(lobby)
    old, bob = enter(lobby, "duel5", session=session), enter(lobby, "duel5")
    old.expect("question"), bob.expect("question")
    new = Phone(lobby, session, "duel6")  # the game goes on, whichever queue the new socket names
    update = new.expect("update")
    assert update["queue"] == "duel5" and sorted(update["connected"]) == sorted(
        (old.name, bob.name)
    )
    old.expect_close(4409)
    bob.send("answer", round=1, choice=0)
    assert new.expect("answered")["seq"] == update["seq"] + 1
    new.send("answer", round=1, choice=0)
    play_all([new, bob])
    assert not {"user_exit", "user_return"} & {frame["type"] for frame in bob.frames}
    assert lobby.redis.zcard(Keys.history(uid_of(new))) == 1


def test_many_simultaneous_connections_of_a_player_make_one_ticket(lobby):
    session = enlist(lobby)
    with ThreadPoolExecutor(6) as pool:
        phones = list(
            pool.map(lambda i: Phone(lobby, session, ("duel6", "duel7")[i % 2]), range(6))
        )
    uid = uid_of(phones[0])

    def tickets():
        return [
            queue
            for queue in ("duel6", "duel7")
            if lobby.redis.zscore(Keys.queue(queue), uid) is not None
        ]

    # The ticket in the other queue is removed when its connection closes.
    wait_until(lambda: tickets() == [(seat(lobby, phones[0]) or {}).get("queue")])
    other = enter(lobby, tickets()[0])
    names = [player["username"] for player in other.expect("start")["players"]]
    assert sorted(names) == sorted((phones[0].name, other.name))
    close(*phones, other)


@pytest.mark.parametrize("leave", [Phone.close, Phone.drop])
def test_a_player_is_not_matched_with_a_closed_connection(lobby, leave):
    gone = enter(lobby, "duel8")
    leave(gone)
    wait_until(lambda: not seat(lobby, gone))
    ann = enter(lobby, "duel8")
    still_waits(lobby, ann)
    started(ann, enter(lobby, "duel8"))


def test_players_of_a_killed_worker_lose_their_tickets_and_can_return_to_their_game(lobby, doomed):
    waiting, rated, third = (
        enter(doomed, queue, session=enlist(lobby, 3000)) for queue in ("duel9", "near", "full")
    )
    playing, other = enter(doomed, "duel10", session=enlist(lobby)), enter(lobby, "duel10")
    game = started(playing, other)["game"]
    playing.expect("question"), other.expect("question")
    (worker,) = {
        seat(lobby, phone)["conn"].split(".")[0] for phone in (waiting, rated, third, playing)
    }
    doomed.kill(signal.SIGKILL)
    doomed.process.wait(10)
    wait_until(lambda: lobby.redis.pubsub_numsub(f"worker:{worker}")[0][1] == 0)

    ann, bob = enter(lobby, "duel9"), enter(lobby, "near", 3000)
    still_waits(lobby, ann, bob)
    assert not seat(lobby, waiting) and not seat(lobby, rated)
    started(ann, enter(lobby, "duel9"))
    started(bob, enter(lobby, "near", 3000))

    other.send("answer", round=1, choice=0)
    assert other.expect("user_exit")["player"] == playing.name
    # All players who are connected have answered.
    assert other.expect("reveal")["answers"].keys() == {other.name}
    back = Phone(lobby, playing.session, "duel10")
    assert back.expect("update")["game"] == game
    other.expect("user_return")
    play_all([back, other])

    # The other workers reap it after ten missed heartbeats.
    wait_until(
        lambda: lobby.redis.zscore(Keys.workers, worker) is None and not seat(lobby, third), 30
    )
    assert lobby.redis.zscore(Keys.queue("full"), uid_of(third)) is None


def test_a_connection_on_a_stopped_worker_does_not_take_the_game_from_a_newer_one(lobby, beside):
    ann, bob = enter(beside, "duel11", session=enlist(lobby)), enter(lobby, "duel11")
    started(ann, bob)
    ann.expect("question"), bob.expect("question")
    beside.kill(signal.SIGSTOP)
    try:
        ann.send("check")
        new = Phone(lobby, ann.session, "duel11")
        update = new.expect("update")
    finally:
        beside.kill(signal.SIGCONT)
    ann.expect_close(4409)
    bob.send("answer", round=1, choice=0)
    assert new.expect("answered", 4)["seq"] == update["seq"] + 1
    new.send("answer", round=1, choice=0)
    play_all([new, bob])


def test_a_worker_that_was_reaped_while_stopped_closes_its_sockets(lobby, beside):
    ann = enter(beside, "lonely", session=enlist(lobby))
    beside.kill(signal.SIGSTOP)
    try:
        # The other workers reap it after ten missed heartbeats.
        wait_until(lambda: not seat(lobby, ann), 30)
        assert lobby.redis.zscore(Keys.queue("lonely"), uid_of(ann)) is None
    finally:
        beside.kill(signal.SIGCONT)
    ann.expect_close(1012)
    again = enter(beside, "lonely", session=ann.session)
    still_waits(lobby, again)
    close(again)


# ---- how a ticket ends


@pytest.mark.parametrize("queue", ["brief", "briefly"])
def test_a_ticket_without_a_match_times_out_and_the_player_may_join_again(lobby, queue):
    ann = Phone(lobby, enlist(lobby), queue)
    assert ann.expect("queued") == {"type": "queued", "queue": queue, "timeout_ms": 700}
    assert ann.expect("cancelled") == {"type": "cancelled", "queue": queue, "reason": "timeout"}
    assert counts(lobby, queue) == (0, 0) and seat(lobby, ann)["queue"] == "-"
    ann.refused("wrong_state", "leave")
    ann.send("join")
    ann.expect("queued", queue=queue)
    ann.send("leave")
    assert ann.expect("cancelled") == {"type": "cancelled", "queue": queue, "reason": "left"}
    ann.close()
    wait_until(lambda: not seat(lobby, ann))


def test_a_player_who_left_the_queue_is_not_matched(lobby):
    ann = enter(lobby, "duel0")
    ann.send("leave")
    ann.expect("cancelled", reason="left")
    bob = enter(lobby, "duel0")
    still_waits(lobby, bob)
    ann.refused("wrong_state", "answer", round=1, choice=0)
    ann.send("join")
    ann.expect("queued")
    started(ann, bob)


def test_after_a_game_a_player_joins_any_queue_on_the_same_socket(lobby):
    ann, bob = enter(lobby, "duel1"), enter(lobby, "duel1")
    games = [started(ann, bob)["game"]]
    ann.refused("wrong_state", "join")
    play_all([ann, bob])
    for queue in (None, "duel0"):
        for phone in (ann, bob):
            phone.refused("unknown_queue", "join", queue="nowhere")
            phone.send("join", **({"queue": queue} if queue else {}))
            phone.expect("queued", queue=queue or "duel1")
        games.append(started(ann, bob)["game"])
        play_all([ann, bob])
    assert len(set(games)) == 3
    wait_until(lambda: seat(lobby, ann)["game"] == "-")
    assert lobby.redis.zrange(Keys.history(uid_of(ann)), 0, -1) == games
    assert [
        frame["seq"] for frame in ann.frames if "seq" in frame and frame["game"] == games[1]
    ] == list(range(1, 1 + len([frame for frame in ann.frames if frame.get("game") == games[1]])))


def test_a_full_queue_refuses_new_players_but_not_a_reconnection(lobby):
    phones = [enter(lobby, "full", 100 * i) for i in range(QUEUE_LENGTH)]
    late = Phone(lobby, enlist(lobby, 5000), "full")
    late.refused("queue_full")
    assert counts(lobby, "full") == (QUEUE_LENGTH, 0)
    late.refused("queue_full", "join")
    phones[0].close()
    wait_until(lambda: counts(lobby, "full")[0] == QUEUE_LENGTH - 1)
    late.send("join")
    late.expect("queued")
    again = Phone(lobby, phones[1].session, "full")
    assert again.receive()["type"] == "queued"
    close(*phones, late, again)


def test_the_counts_of_waiting_and_playing_players_are_right_and_return_to_zero(lobby):
    assert counts(lobby, "counted") == (0, 0)
    phones = [enter(lobby, "counted")]
    assert counts(lobby, "counted") == (1, 0)
    phones.append(enter(lobby, "counted"))
    assert counts(lobby, "counted") == (2, 0)
    phones.append(enter(lobby, "counted"))
    started(*phones)
    assert counts(lobby, "counted") == (0, 3)
    phones.append(enter(lobby, "counted"))
    assert counts(lobby, "counted") == (1, 3)
    phones[0].send("leave")
    phones[0].expect("cancelled", reason="left")
    assert counts(lobby, "counted") == (1, 2)
    phones[1].drop()
    phones[2].expect("user_exit", player=phones[1].name)
    assert counts(lobby, "counted") == (1, 2)  # their seat is kept
    phones[2].expect("end", reason="forfeit")
    phones[3].close()
    wait_until(lambda: counts(lobby, "counted") == (0, 0))


def test_a_player_who_leaves_before_the_first_question_waits_longer_each_time(lobby):
    ann = enter(lobby, "left")
    for wait_ms in (1000, 2000):
        bob = enter(lobby, "left")
        started(ann, bob)
        ann.send("leave")
        for phone in (ann, bob):
            phone.expect("end", reason="forfeit")
        ann.send("join")
        queued = ann.expect("queued")
        assert wait_ms - 900 < queued["delay_ms"] <= wait_ms
        assert queued["timeout_ms"] == queued["delay_ms"] + 60_000
        assert counts(lobby, "left")[0] == 0
        bob.send("join")
        assert "delay_ms" not in bob.expect("queued")
        started(bob, other := enter(lobby, "left"))
        close(bob, other)
    started(ann, late := enter(lobby, "left"))
    close(ann, late)


# ---- matches


def test_another_worker_starts_a_match_whose_worker_died(lobby):
    phones = enter(lobby, "narrow", 5000), enter(lobby, "narrow", 7000)
    game = trivia.new_game_id(3)
    for phone in phones:  # as the matching script leaves them
        place = seat(lobby, phone) | {"game": game}
        lobby.redis.hset(Keys.seats, uid_of(phone), " ".join(place.values()))
        lobby.redis.zrem(Keys.queue("narrow"), uid_of(phone))
        lobby.redis.zrem(Keys.due, f"narrow {uid_of(phone)}")
    lobby.redis.hincrby(Keys.playing, "narrow", 2)
    match = " ".join([game, "narrow", *map(uid_of, phones)])
    lobby.redis.zadd(Keys.forming, {match: 1})
    assert started(*phones)["game"] == game
    wait_until(lambda: lobby.redis.zscore(Keys.forming, match) is None)
    ends = play_all(phones)
    assert {end["game"] for end in ends} == {game}
    # A late repetition finds the game, and changes nothing.
    lobby.redis.zadd(Keys.forming, {match: 1})
    wait_until(lambda: lobby.redis.zscore(Keys.forming, match) is None)
    assert stored_game(lobby.redis, game)["state"]["phase"] == "end"
    wait_until(lambda: counts(lobby, "narrow")[1] == 0)
    assert [lobby.redis.zrange(Keys.history(uid_of(phone)), 0, -1) for phone in phones] == [
        [game]
    ] * 2
    close(*phones)


def test_a_match_that_starts_late_does_not_take_a_player_out_of_a_queue(lobby):
    """The player left before a worker started the match, and waits again."""
    ann = enter(lobby, "narrow", 9000)
    bob = enter(lobby, "narrow", 9900)
    game = trivia.new_game_id(3)
    place = seat(lobby, bob) | {"game": game}
    lobby.redis.hset(Keys.seats, uid_of(bob), " ".join(place.values()))
    lobby.redis.zrem(Keys.queue("narrow"), uid_of(bob))
    lobby.redis.hincrby(Keys.playing, "narrow", 1)
    lobby.redis.zadd(Keys.forming, {f"{game} narrow {uid_of(ann)} {uid_of(bob)}": 1})
    bob.expect("start")
    wait_until(lambda: not lobby.redis.exists(Keys.forming))
    assert "conn" not in stored_game(lobby.redis, game)["state"]["players"][0]
    still_waits(lobby, ann)
    bob.expect("end")
    close(ann, bob)


def test_100_players_who_join_four_workers_simultaneously_are_each_matched_once():
    with running(schema_with({"crowd": DUEL}), workers=4) as server:
        wait_until(lambda: server.redis.zcard(Keys.workers) == 4, 40)
        sessions, starts = [enlist(server) for _ in range(100)], [None] * 100
        barrier = threading.Barrier(100)

        def come(i):
            barrier.wait(60)
            phone = Phone(server, sessions[i], "crowd")
            starts[i] = phone, phone.expect("start", 40)

        with ThreadPoolExecutor(100) as pool:
            list(pool.map(come, range(100)))
        games = Counter(start["game"] for _, start in starts)
        assert len(games) == 50 and set(games.values()) == {2}
        for phone, start in starts:
            names = [player["username"] for player in start["players"]]
            assert len(set(names)) == 2 and phone.name in names
        workers = {text.split(" ")[0].split(".")[0] for text in server.redis.hvals(Keys.seats)}
        assert len(workers) > 1
        assert counts(server, "crowd") == (0, 100)
        assert not server.redis.exists(Keys.queue("crowd")) and server.redis.zcard(Keys.due) == 0
        for phone, _ in starts:
            phone.drop()
        wait_until(lambda: counts(server, "crowd") == (0, 0), 30)
        wait_until(lambda: not server.redis.exists(Keys.seats))
        assert not server.redis.keys(Keys.history("*"))  # no player has answered
        assert "Traceback" not in server.log
