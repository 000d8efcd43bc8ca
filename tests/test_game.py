"""Plays games over real sockets.

Tests the order and content of all messages, how answers are judged, and what a game stores.
"""

import html
import json
import math
import random
import secrets
import time

import pytest

import trivia
from conftest import (
    PASSWORD,
    ROOT,
    Server,
    change_state,
    edited_schema,
    play_all,
    stored_game,
    trivia_py,
    wait_until,
)

NEVER = 60  # seconds of a phase that must not end by itself in a test
SEAT_MS = 30_000
BANK = {
    html.unescape(item["question"]): item
    for item in json.loads((ROOT / "questions.json").read_text("utf-8"))
}
IMPORTED = "A category of the tests"

# The queues of this file: each differs from STANDARD in what a test needs.
QUEUES = {
    "duel": {},
    "friendly": {"rated": False},
    "sprint": {"answer_seconds": 0.4, "rounds": 2},
    "slow_start": {"start_seconds": NEVER},
    "slow_reveal": {"reveal_seconds": NEVER},
    "brief_seat": {"seat_seconds": 0.3},
    "trio_rated": {"players": 3, "on_exit": "continue"},
    "trio": {"players": 3, "on_exit": "continue", "rated": False},
    "trio_brief": {"players": 3, "on_exit": "continue", "seat_seconds": 0.3, "rated": False},
    "stubborn": {"on_exit": "continue", "rated": False},
    "octet": {"players": {"min": 2, "max": 8}, "fill_seconds": NEVER, "rated": False, "rounds": 2},
    "narrow": {"categories": ["History"], "difficulties": ["hard"], "rounds": 4},
    "growing": {"categories": ["Space", IMPORTED], "difficulties": ["hard"], "rounds": 5},
}
SOLO = {"players": 1, "seat_seconds": 20, "start_seconds": 0.05, "reveal_seconds": 0.05}
SOLO |= {"scoring": {"correct": 100, "speed": 50}, "rounds": 3, "answer_seconds": NEVER}
SOLO_QUEUES = {
    "alone": {},
    "survival": {"lives": 2, "rounds": 20},
    "speed_run": {"total_seconds": 1.5, "rounds": 100},
    "last_stand": {"lives": 1, "answer_seconds": 0.4},
}
STANDARD = {
    "players": 2,
    "match": "fifo",
    "rounds": 3,
    "start_seconds": 0.05,
    "answer_seconds": NEVER,
    "reveal_seconds": 0.05,
    "wait_seconds": NEVER,
    "scoring": {"correct": 100, "speed": 50},
    "rated": True,
    "on_exit": "forfeit",
    "seat_seconds": SEAT_MS // 1000,
}
KEYS = {  # all keys of each message about a game
    "queued": "queue timeout_ms",
    "start": "game seq queue players rounds starts_ms",
    "question": "game seq round text choices category difficulty answer_ms",
    "answered": "game seq round player",
    "reveal": "game seq round correct answers scores reveal_ms",
    "end": "game seq reason ranking",
    "user_exit": "game seq player returns_ms",
    "user_return": "game seq player",
    "emoji": "game seq player emoji",
}


PAIR_GAMES = 3
OPS_TOKEN = "token-of-the-operator"


def add_queues(tree):
    tree["limits"]["pair_games"] = PAIR_GAMES
    del tree["queues"]["daily"]  # it would reserve questions that the other queues need
    tree["queues"] |= {name: STANDARD | changes for name, changes in QUEUES.items()}
    tree["queues"] |= {name: SOLO | changes for name, changes in SOLO_QUEUES.items()}


@pytest.fixture(scope="module")
def hall():
    running = Server(edited_schema(add_queues), env={"TRIVIA_OPS_TOKEN": OPS_TOKEN})
    try:
        yield running.start()
        assert "Traceback" not in running.log
    finally:
        running.close()


@pytest.fixture
def sit(hall):
    """Seats new players in a game of a queue, and reads their `start`. Closes them at the end."""
    seated = []

    def seat(queue, count=2):
        phones = [hall.phone(queue=queue) for _ in range(count)]
        seated.extend(phones)
        starts = [phone.expect("start") for phone in phones]
        for phone, start in zip(phones, starts):
            phone.game = start["game"]
            assert {player["username"] for player in start["players"]} == {
                one.name for one in phones
            }
        assert len({phone.game for phone in phones}) == 1
        return phones

    yield seat
    for phone in seated:
        phone.close()


def questions(phones, number=1):
    """Returns the open question of a round, as each phone gets it."""
    return [phone.expect("question", round=number) for phone in phones]


# A question "WAIT:ROUND:NUMBER:ORDER:MS" that comes soon, and one that comes much later.
SOON, LATER, NOTHING = "200:2:1:0123:60000", "60000:2:1:0123:60000", "-"
# Events of trivia.lua as (kind, `seq`, next question), and the frames that the phone gets.
QUESTIONS_TO_COME = [
    ([("react", 3, SOON)], ["react 3", "question 4"]),
    ([("react", 3, SOON), ("react", 4, SOON)], ["react 3", "react 4", "question 5"]),
    # The second event counts the question: this worker was late to show it.
    ([("react", 3, LATER), ("react", 5, NOTHING)], ["react 3", "question 4", "react 5"]),
    # The second event does not count it: the question never opens.
    ([("react", 3, SOON), ("end", 4, NOTHING)], ["react 3", "end 4"]),
    # An event is lost between the two, and no question is shown in its place.
    ([("react", 3, LATER), ("react", 5, LATER)], ["react 3", "update 2"]),
]


def publish(hall, phone, kind, seq, coming):
    """Publishes an event to a phone's worker, as a function of trivia.lua does."""
    game, redis = phone.game, hall.redis
    connection, *_ = redis.hget("seats:{lobby}", phone.token[:12]).split(" ")
    worker, number = connection.split(".")
    seconds, us = redis.time()
    head = f"{kind} {game} {seconds}.{us:06} {coming} {number}:{seq}"
    body = json.dumps({"type": kind, "game": game, "player": "bob"})
    channel = f"worker:{{{trivia.Keys.tag(game)}}}:{worker}"
    assert redis.execute_command("SPUBLISH", channel, f"{head}\n{body}") == 1


@pytest.mark.parametrize(("events", "gets"), QUESTIONS_TO_COME)
def test_a_worker_shows_a_question_in_the_order_of_seq(hall, sit, events, gets):
    ann, bob = sit("duel")
    questions([ann, bob])
    shown = len(ann.frames)
    for event in events:
        publish(hall, ann, *event)
    for one in gets:
        ann.expect(one.split(" ")[0])
    frames = [f"{frame['type']} {frame['seq']}" for frame in ann.frames[shown:]]
    assert frames == gets


def test_a_player_gets_a_snapshot_if_a_question_was_shown_too_early(hall, sit):
    """An event that is older in Redis arrives after the question, and has the same `seq`."""
    ann, bob = sit("duel")
    questions([ann, bob])
    publish(hall, ann, "react", 3, "1:2:1:0123:60000")
    assert ann.expect("question", round=2)["seq"] == 4
    publish(hall, ann, "react", 4, SOON)
    assert ann.expect("update")["round"] == 1


def answer_all(phones, number=1, choice=0):
    """Has all phones answer the question of a round. Returns their `reveal`s."""
    questions(phones, number)
    for phone in phones:
        phone.send("answer", round=number, choice=choice)
    return [phone.expect("reveal", round=number) for phone in phones]


def play_again(phones):
    """Has all phones join the queue of their last game again. Returns their `start`s."""
    for phone in phones:
        phone.send("join")
    return [phone.expect("start") for phone in phones]


def right(question):
    return question["choices"].index(html.unescape(BANK[question["text"]]["correct_answer"]))


def wrong(question):
    return (right(question) + 1) % len(question["choices"])


def check(phone):
    phone.send("check")
    return phone.expect("update")


def state(hall, phone):
    """Returns what Redis holds about a player's game and seat. A question that is due is open."""
    seat = hall.redis.hget("seats:{lobby}", phone.token[:12])
    game = stored_game(hall.redis, phone.game)
    if game:
        open_if_due(hall, game["plan"], game["state"])
    return game, seat


def open_if_due(hall, plan, state):
    """Opens a question whose time has come, as the next call of a function does."""
    seconds, us = hall.redis.time()
    has_more = state["round"] < len(plan["quiz"].split())
    is_due = state["deadline"] <= seconds * 1000 + us // 1000
    if state["phase"] in ("start", "reveal") and has_more and is_due:
        deadline = state["deadline"] + plan["rules"][0]
        state |= {"phase": "question", "round": state["round"] + 1, "deadline": deadline}
        for player in state["players"]:
            player.pop("answer", None)
            player["seq"] += "conn" in player


def me(hall, phone):
    return hall.http("GET", "/users/me", token=phone.token).json


def assert_contiguous(phone):
    """Checks that `seq` has no gaps, and that an `update` carries the `seq` of the last message."""
    last = 0
    for frame in phone.frames:
        if frame["type"] == "update":
            assert frame["seq"] >= last, frame
            last = frame["seq"]
        elif "seq" in frame:
            assert frame["seq"] == last + 1, phone.frames
            last = frame["seq"]


def assert_no_secret(phone):
    """Checks that no frame tells right answers or choices of others before the `reveal`."""
    revealed = 0
    for frame in phone.frames:
        kind = frame["type"]
        if kind in KEYS:
            assert frame.keys() == {"type", *KEYS[kind].split()}, frame
        if kind == "reveal" or kind == "update" and frame["phase"] == "reveal":
            revealed = frame["round"]
        elif kind == "update":
            assert not {"correct", "answers"} & frame.keys(), frame
            assert frame.get("question", {}).keys() <= {
                "round",
                "text",
                "choices",
                "category",
                "difficulty",
            }
        asked = frame.get("question", frame) if kind in ("question", "update") else {}
        if "text" in asked and asked["round"] > revealed:
            answer = html.unescape(BANK[asked["text"]]["correct_answer"])
            assert asked["choices"].count(answer) == 1, asked
            rest = frame | {
                "question": asked | {"choices": [], "text": ""},
                "choices": [],
                "text": "",
            }
            assert json.dumps(answer) not in json.dumps(rest), frame


# ---- a whole game


def test_all_messages_of_a_game_are_complete_and_in_order(sit):
    ann, bob = sit("duel")
    start = ann.frames[-1]
    assert (
        start == bob.frames[-1]
        and start["rounds"] == 3
        and start["queue"] == "duel"
        and start["starts_ms"] == 50
    )
    counted = {"wins", "games", "rating", "streak", "daily_points"}
    assert start["players"][0].keys() == {"username", "avatar", "provisional"} | counted
    scores = {ann.name: 0, bob.name: 0}
    for number in (1, 2, 3):
        asked, same = ann.receive(), bob.receive()
        assert (
            asked.items()
            >= {"type": "question", "round": number, "answer_ms": NEVER * 1000}.items()
        )
        assert asked | {"seq": 0} == same | {"seq": 0}
        ann.send("answer", round=number, choice=right(asked), game=ann.game)
        answered = bob.receive()
        assert answered == {
            "seq": same["seq"] + 1,
            "type": "answered",
            "game": ann.game,
            "round": number,
            "player": ann.name,
        }
        bob.send("answer", round=number, choice=wrong(asked))
        reveal, again = ann.receive(), bob.receive()
        assert (reveal["seq"], again["seq"]) == (asked["seq"] + 1, asked["seq"] + number + 1)
        assert reveal | {"seq": 0} == again | {"seq": 0}
        assert (
            reveal["type"] == "reveal"
            and reveal["round"] == number
            and reveal["correct"] == right(asked)
        )
        assert reveal["answers"].keys() == scores.keys() and reveal["reveal_ms"] == 50
        assert reveal["answers"][bob.name] | {"ms": 0} == {
            "choice": wrong(asked),
            "points": 0,
            "ms": 0,
        }
        scores[ann.name] += reveal["answers"][ann.name]["points"]
        assert reveal["scores"] == scores
    ends = ann.receive(), bob.receive()
    assert ends[0] | {"seq": 0} == ends[1] | {"seq": 0}
    assert ends[0]["type"] == "end" and ends[0]["reason"] == "finished"
    assert [(row["player"], row["score"], row["rank"]) for row in ends[0]["ranking"]] == [
        (ann.name, scores[ann.name], 1),
        (bob.name, 0, 2),
    ]
    for phone in (ann, bob):
        assert_contiguous(phone)
        assert_no_secret(phone)


def test_the_right_answer_is_in_no_frame_before_its_reveal(sit):
    phones = sit("trio", 3)
    for number in (1, 2, 3):
        for phone in phones:
            phone.expect("question", round=number)
            check(phone)
            phone.send("answer", round=number, choice=0)
            if phone is not phones[-1]:
                assert check(phone)["phase"] == "question"
        for phone in phones:
            phone.expect("reveal", round=number)
    for phone in phones:
        phone.expect("end")
        assert_no_secret(phone)
        assert_contiguous(phone)


def test_choices_are_shuffled(hall, sit):
    games = [sit("duel") for _ in range(4)]
    play_all([phone for phones in games for phone in phones])
    places = [
        frame["correct"] for ann, _ in games for frame in ann.frames if frame["type"] == "reveal"
    ]
    assert len(places) == 12 and len(set(places)) > 1  # all equal in 1 of 4 million runs


def test_the_questions_come_from_the_bank(sit):
    ann, bob = sit("duel")
    play_all([ann, bob])
    for asked in (frame for frame in ann.frames if frame["type"] == "question"):
        item = BANK[asked["text"]]
        assert (asked["category"], asked["difficulty"]) == (
            html.unescape(item["category"]),
            item["difficulty"],
        )
        answers = item["correct_answer"], *item["incorrect_answers"]
        assert sorted(asked["choices"]) == sorted(map(html.unescape, answers))


@pytest.mark.parametrize(("queue", "answer_ms"), [("sprint", 400), ("duel", NEVER * 1000)])
def test_points_are_computed_by_the_scoring_of_the_queue(sit, queue, answer_ms):
    ann, bob = sit(queue)
    asked, _ = questions([ann, bob])
    ann.send("answer", round=1, choice=right(asked))
    bob.expect("answered")
    time.sleep(0.05)  # makes the two times differ by at least 50 ms
    bob.send("answer", round=1, choice=right(asked))
    answers = ann.expect("reveal")["answers"]
    for row in answers.values():
        assert 0 <= row["ms"] <= answer_ms
        assert row["points"] == 100 + math.floor(50 * (answer_ms - row["ms"]) / answer_ms)
    assert answers[bob.name]["ms"] >= answers[ann.name]["ms"] + 50


def test_eight_players_play_one_game(sit):
    phones = sit("octet", 8)
    ends = play_all(phones, lambda question: right(question) if question["round"] == 1 else 0)
    assert (
        len({json.dumps(end["ranking"]) for end in ends}) == 1 and ends[0]["reason"] == "finished"
    )
    ranking = ends[0]["ranking"]
    assert {row["player"] for row in ranking} == {phone.name for phone in phones}
    assert [row["score"] for row in ranking] == sorted(
        (row["score"] for row in ranking), reverse=True
    )
    for row in ranking:
        assert row["rank"] == 1 + sum(other["score"] > row["score"] for other in ranking)
        assert row.keys() == {"player", "score", "rank"}  # the queue is unrated
    for phone in phones:
        assert_contiguous(phone)
        assert_no_secret(phone)
        others = [frame["player"] for frame in phone.frames if frame["type"] == "answered"]
        assert phone.name not in others and max(map(others.count, others), default=0) <= 2


def test_a_player_whose_worker_dies_before_they_enter_the_game_can_return(hall, sit):
    """The worker dies between the join and the entry. The game has the older connection."""
    ann, bob = sit("stubborn")
    uid = ann.token[:12]
    _, turn, *rest = hall.redis.hget("seats:{lobby}", uid).split(" ")
    hall.redis.hset("seats:{lobby}", uid, " ".join(["0000000000.1", str(int(turn) + 1), *rest]))
    ann.drop()
    hall.redis.zadd("workers:{lobby}", {"0000000000": 1})  # silent since 1970
    assert bob.expect("user_exit")["player"] == ann.name
    ann.connect("stubborn")
    assert set(ann.expect("update")["connected"]) == {ann.name, bob.name}
    assert bob.expect("user_return")["player"] == ann.name


def test_a_join_on_the_same_socket_starts_another_game(sit):
    phones = sit("duel")
    first = play_all(phones)
    starts = play_again(phones)
    assert (
        starts[0]["game"] == starts[1]["game"] != first[0]["game"]
        and starts[0]["seq"] == starts[1]["seq"] == 1
    )
    assert [end["reason"] for end in play_all(phones)] == ["finished", "finished"]


def test_a_join_without_a_queue_uses_the_last_queue(hall, sit):
    ann, bob = sit("stubborn")
    ann.close()
    bob.expect("user_exit")
    ann.connect("duel")  # resumes the game, although the route names another queue
    assert ann.expect("update")["queue"] == "stubborn"
    ann.send("leave")
    assert ann.expect("cancelled") == {"type": "cancelled", "queue": "stubborn", "reason": "left"}
    ann.send("join")
    assert ann.expect("queued")["queue"] == "stubborn"


# ---- the end of a question


def test_a_question_is_revealed_as_soon_as_all_connected_players_have_answered(sit):
    ann, bob = sit("duel")
    began = time.monotonic()
    answer_all([ann, bob])
    assert time.monotonic() - began < NEVER / 2
    ann.expect("question", round=2)
    bob.expect("question", round=2)
    ann.send("answer", round=2, choice=0)
    bob.expect("answered")
    bob.drop()  # the only player who has not answered
    assert ann.expect("user_exit")["player"] == bob.name
    assert ann.expect("reveal", round=2)["answers"].keys() == {ann.name}
    assert time.monotonic() - began < NEVER / 2


def test_a_question_without_all_answers_is_revealed_at_its_deadline(sit, capsys):
    ann, bob = sit("sprint")
    late = []
    for number in (1, 2):
        questions([ann, bob], number)
        opened = time.monotonic()
        ann.send("answer", round=number, choice=0)
        reveal = ann.expect("reveal", round=number)
        late.append(time.monotonic() - opened - 0.4)
        assert reveal["answers"].keys() == {ann.name} and reveal["scores"][bob.name] == 0
    with capsys.disabled():  # prints the delay also when the test passes
        print(
            f"\n  revealed {', '.join(f'{seconds * 1000:.0f}' for seconds in late)} "
            "ms after the deadline"
        )
    assert all(-0.3 < seconds < 1 for seconds in late)
    assert ann.expect("end")["reason"] == "finished"


def test_a_game_continues_when_no_player_answers(sit):
    ann, bob = sit("sprint")
    end = ann.expect("end")
    reveals = [frame for frame in ann.frames if frame["type"] == "reveal"]
    assert [(frame["round"], frame["answers"]) for frame in reveals] == [(1, {}), (2, {})]
    assert [(row["rank"], row["score"]) for row in end["ranking"]] == [(1, 0), (1, 0)]
    assert bob.expect("end")["ranking"] == end["ranking"]


# ---- answers that are refused


def test_the_first_answer_counts(hall, sit):
    ann, bob = sit("duel")
    asked, _ = questions([ann, bob])
    ann.send("answer", round=1, choice=wrong(asked))
    bob.expect("answered")
    before = state(hall, ann)
    for choice in (right(asked), wrong(asked), 15):
        assert (
            ann.refused("already_answered", "answer", round=1, choice=choice, id=choice)["id"]
            == choice
        )
    assert state(hall, ann) == before
    bob.send("answer", round=1, choice=right(asked))
    assert ann.expect("reveal")["answers"][ann.name]["choice"] == wrong(asked)


REFUSED = [  # (queue, phase, fields of the answer, code)
    ("slow_start", "start", {"round": 1, "choice": 0}, "wrong_round"),
    ("slow_start", "start", {"round": 1, "choice": 0, "game": "another"}, "wrong_game"),
    ("duel", "question", {"round": 2, "choice": 0}, "wrong_round"),
    ("duel", "question", {"round": 1000, "choice": 0}, "wrong_round"),
    ("duel", "question", {"round": 1, "choice": 4}, "no_such_choice"),
    ("duel", "question", {"round": 1, "choice": 15}, "no_such_choice"),
    ("duel", "question", {"round": 1, "choice": 0, "game": ""}, "wrong_game"),
    ("duel", "question", {"round": 1, "choice": 0, "game": "zzzzzzzzzzzz"}, "wrong_game"),
    ("duel", "question", {"round": 1, "choice": -1}, "invalid_message"),
    ("duel", "question", {"round": 0, "choice": 0}, "invalid_message"),
    ("slow_reveal", "reveal", {"round": 1, "choice": 0}, "late_answer"),
    ("slow_reveal", "reveal", {"round": 1, "choice": 15}, "late_answer"),
    ("slow_reveal", "reveal", {"round": 2, "choice": 0}, "wrong_round"),
]


@pytest.mark.parametrize(("queue", "phase", "fields", "code"), REFUSED)
def test_an_invalid_answer_is_refused_without_effect(hall, sit, queue, phase, fields, code):
    ann, bob = sit(queue)
    if phase == "question":
        questions([ann, bob])
    elif phase == "reveal":
        answer_all([ann, bob], choice=1)
    before = state(hall, ann)
    assert before[0]["state"]["phase"] == phase
    assert ann.refused(code, "answer", **fields, id="x")["id"] == "x"
    assert state(hall, ann) == before


def test_an_answer_after_the_deadline_is_refused_even_if_the_reveal_is_late(hall, sit):
    ann, bob = sit("duel")
    questions([ann, bob])
    # The deadline in the game has passed. The list of deadlines still has a later one.
    change_state(hall.redis, ann.game, deadline=1)
    before = state(hall, ann)
    ann.refused("late_answer", "answer", round=1, choice=0)
    assert state(hall, ann) == before


def test_an_answer_after_the_end_of_the_game_is_refused(hall, sit):
    ann, bob = sit("duel")
    play_all([ann, bob])
    wait_until(lambda: hall.redis.hget("seats:{lobby}", ann.token[:12]).endswith(" -"))  # released
    before = state(hall, ann)
    ann.refused("wrong_state", "answer", round=3, choice=0, game=ann.game)
    assert state(hall, ann) == before


def test_a_late_answer_to_the_last_round_is_refused(hall, sit):
    ann, bob = sit("duel")
    answer_all([ann, bob])
    questions([ann, bob], 2)
    before = state(hall, ann)
    ann.refused("late_answer", "answer", round=1, choice=0)
    assert state(hall, ann) == before


# ---- check


def test_check_before_the_first_question_repeats_what_start_told(sit):
    ann, bob = sit("slow_start")
    update, start = check(ann), ann.frames[-2]
    assert (
        update.items()
        >= {
            "phase": "start",
            "round": 0,
            "rounds": 3,
            "seq": 1,
            "queue": "slow_start",
            "game": ann.game,
            "players": start["players"],
            "scores": {ann.name: 0, bob.name: 0},
        }.items()
    )
    assert sorted(update["connected"]) == sorted([ann.name, bob.name])
    assert NEVER * 500 < update["left_ms"] <= NEVER * 1000
    assert not {"question", "choice", "correct", "answers"} & update.keys()


def test_check_during_a_question_returns_all_that_a_phone_needs_to_continue(sit):
    ann, bob = sit("duel")
    asked, _ = questions([ann, bob])
    update = check(ann)
    assert update["question"] == {
        key: asked[key] for key in ("round", "text", "choices", "category", "difficulty")
    }
    assert (
        update.items()
        >= {"phase": "question", "round": 1, "seq": asked["seq"], "answered": []}.items()
    )
    assert NEVER * 500 < update["left_ms"] <= NEVER * 1000 and "choice" not in update
    ann.send("answer", round=update["round"], choice=right(update["question"]), game=update["game"])
    bob.expect("answered")
    again = check(ann)
    assert (
        again["choice"] == right(asked)
        and again["answered"] == [ann.name]
        and again["seq"] == asked["seq"]
    )
    theirs = check(bob)
    assert "choice" not in theirs and theirs["answered"] == [ann.name]
    bob.send("answer", round=1, choice=wrong(asked))
    assert ann.expect("reveal")["seq"] == again["seq"] + 1


def test_check_during_a_reveal_repeats_what_reveal_told(sit):
    ann, bob = sit("slow_reveal")
    asked, _ = questions([ann, bob])
    ann.send("answer", round=1, choice=right(asked))
    bob.send("answer", round=1, choice=wrong(asked))
    reveal, update = ann.expect("reveal"), check(ann)
    assert {key: update[key] for key in ("round", "correct", "answers", "scores", "seq")} == {
        key: reveal[key] for key in ("round", "correct", "answers", "scores", "seq")
    }
    assert update["phase"] == "reveal" and update["choice"] == right(asked)
    assert update["question"]["text"] == asked["text"]
    assert NEVER * 500 < update["left_ms"] <= NEVER * 1000


def test_check_changes_nothing(hall, sit):
    ann, bob = sit("duel")
    questions([ann, bob])
    before = state(hall, ann)
    for _ in range(5):
        check(ann)
    assert state(hall, ann) == before


# ---- connections that are lost


@pytest.mark.parametrize(
    ("queue", "phase"), [("slow_start", "start"), ("duel", "question"), ("slow_reveal", "reveal")]
)
def test_a_player_who_reconnects_gets_an_update_first_and_opponents_are_told(sit, queue, phase):
    ann, bob = sit(queue)
    if phase != "start":
        questions([ann, bob])
        ann.send("answer", round=1, choice=1)
        bob.expect("answered")
    if phase == "reveal":
        bob.send("answer", round=1, choice=2)
        bob.expect("reveal")
    ann.drop()
    left = bob.receive()
    assert left | {"seq": 0} == {
        "seq": 0,
        "type": "user_exit",
        "game": ann.game,
        "player": ann.name,
        "returns_ms": SEAT_MS,
    }
    assert check(bob)["connected"] == [bob.name]
    ann.connect()
    update = ann.receive()
    assert update["type"] == "update" and update["phase"] == phase
    assert update.get("choice") == (None if phase == "start" else 1)
    assert sorted(update["connected"]) == sorted([ann.name, bob.name])
    assert bob.receive() == {
        "seq": left["seq"] + 1,
        "type": "user_return",
        "game": ann.game,
        "player": ann.name,
    }
    bob.send("emoji", emoji="👏")
    assert ann.expect("emoji")["seq"] == update["seq"] + 1


def test_the_update_after_a_reconnect_is_enough_to_finish_the_game(sit):
    ann, bob = sit("duel")
    questions([ann, bob])
    ann.close()
    bob.expect("user_exit")
    ann.connect()
    ann.frames.clear()
    update = ann.receive()
    ann.send("answer", round=update["round"], choice=right(update["question"]))
    bob.send("answer", round=1, choice=wrong(update["question"]))
    assert ann.expect("reveal", round=1)["answers"][ann.name]["points"] > 0
    ends = play_all([ann, bob], right)
    assert ends[0]["reason"] == "finished"
    assert_contiguous(ann)
    assert_contiguous(bob)


def test_a_player_who_reconnects_keeps_their_answer_and_can_not_give_another(sit):
    ann, bob = sit("duel")
    asked, _ = questions([ann, bob])
    ann.send("answer", round=1, choice=right(asked))
    bob.expect("answered")
    ann.drop()
    bob.expect("user_exit")
    ann.connect()
    assert ann.expect("update")["choice"] == right(asked)
    ann.refused("already_answered", "answer", round=1, choice=wrong(asked))


def test_a_player_who_never_reconnects_forfeits_the_game(hall, sit):
    ann, bob = sit("brief_seat")
    asked, _ = questions([ann, bob])
    bob.send("answer", round=1, choice=right(asked))
    ann.expect("answered")
    ann.drop()
    exits = [bob.expect("user_exit"), bob.expect("user_exit")]
    assert [(frame["player"], frame["returns_ms"]) for frame in exits] == [
        (ann.name, 300),
        (ann.name, 0),
    ]
    end = bob.expect("end")
    assert end["reason"] == "forfeit" and [row["player"] for row in end["ranking"]] == [
        bob.name,
        ann.name,
    ]
    assert [row["rank"] for row in end["ranking"]] == [1, 2] and end["ranking"][0][
        "rating_change"
    ] > 0
    assert (me(hall, bob)["wins"], me(hall, ann)["wins"]) == (1, 0)
    assert_contiguous(bob)


def test_a_player_who_leads_loses_if_they_forfeit(sit):
    ann, bob = sit("duel")
    asked, _ = questions([ann, bob])
    ann.send("answer", round=1, choice=right(asked))
    bob.send("answer", round=1, choice=wrong(asked))
    assert ann.expect("reveal")["scores"][ann.name] > 0
    ann.send("leave")
    end = ann.expect("end")
    assert end["reason"] == "forfeit" and [row["player"] for row in end["ranking"]] == [
        bob.name,
        ann.name,
    ]
    assert end["ranking"][1]["score"] > end["ranking"][0]["score"] == 0


def test_the_other_players_continue_when_a_player_never_reconnects(hall, sit):
    ann, bob, cleo = sit("trio_brief", 3)
    questions([ann, bob, cleo])
    ann.drop()
    for phone in (bob, cleo):
        assert [phone.expect("user_exit")["returns_ms"] for _ in range(2)] == [300, 0]
    end = play_on([bob, cleo], 1)
    assert (
        end["reason"] == "finished"
        and {row["player"]: row["rank"] for row in end["ranking"]}[ann.name] == 3
    )
    ann.connect()  # Ann has no seat any more, so they join the queue
    assert ann.receive()["type"] == "queued"


def play_on(phones, number):
    """Answers the open question of a round and all later ones. Returns the `end`."""
    for phone in phones:
        phone.send("answer", round=number, choice=0)
    return play_all(phones)[0]


def test_a_game_ends_by_itself_when_all_players_are_disconnected(hall, sit):
    ann, bob = sit("brief_seat")
    questions([ann, bob])
    ann.drop()
    bob.drop()
    [key] = hall.redis.keys(f"game:*:{ann.game}")
    wait_until(lambda: stored_game(hall.redis, ann.game)["state"]["phase"] == "end")
    assert stored_game(hall.redis, ann.game)["state"]["reason"] in ("forfeit", "abandoned")
    assert hall.redis.zscore(f"deadlines:{key.split(':')[1]}", ann.game) is None
    wait_until(lambda: not hall.redis.hmget("seats:{lobby}", ann.token[:12], bob.token[:12])[0])


# ---- leaving


def test_a_player_who_leaves_a_game_of_two_ends_it_for_both(hall, sit):
    ann, bob = sit("duel")
    questions([ann, bob])
    ann.send("leave")
    exit_, end = bob.receive(), bob.receive()
    assert (exit_["type"], exit_["player"], exit_["returns_ms"]) == ("user_exit", ann.name, 0)
    assert (
        end["type"] == "end"
        and end["reason"] == "forfeit"
        and end["ranking"][0]["player"] == bob.name
    )
    mine = ann.receive()
    assert mine["ranking"] == end["ranking"] and mine["type"] == "end"
    for phone in (ann, bob):
        assert_contiguous(phone)
        phone.send("join")
        phone.expect("queued")


def test_the_other_players_continue_when_a_player_leaves_a_game_of_three(hall, sit):
    ann, bob, cleo = sit("trio", 3)
    questions([ann, bob, cleo])
    bob.send("answer", round=1, choice=0)
    ann.expect("answered")
    ann.send("leave")
    assert ann.receive() == {"type": "cancelled", "queue": "trio", "reason": "left"}
    for phone in (bob, cleo):
        assert phone.expect("user_exit")["returns_ms"] == 0
    cleo.send("answer", round=1, choice=0)
    assert bob.expect("reveal")["answers"].keys() == {bob.name, cleo.name}
    ann.refused("wrong_state", "answer", round=1, choice=0)
    ends = play_all([bob, cleo])
    assert ends[0]["reason"] == "finished" and ends[0]["ranking"][-1]["player"] == ann.name
    ann.send("ping")
    assert ann.receive()["type"] == "pong"  # no message of the game comes before it
    wait_until(lambda: me(hall, ann)["games"] == 1)


def test_a_player_who_leaves_before_any_answer_has_to_wait(hall, sit):
    ann, bob, cleo = sit("trio", 3)
    questions([ann, bob, cleo])
    held = lambda phone: hall.redis.exists(trivia.Keys.quits(phone.token[:12]))
    ann.send("leave")
    ann.expect("cancelled")
    assert held(ann)
    bob.send("answer", round=1, choice=0)
    cleo.expect("answered")
    cleo.send("leave")
    cleo.expect("cancelled")
    assert not held(cleo)


@pytest.mark.parametrize("returns", [True, False])
def test_a_player_who_disconnects_before_they_answer_has_to_wait(hall, sit, returns):
    ann, bob, cleo = sit("trio_brief", 3)
    questions([ann, bob, cleo])
    bob.send("answer", round=1, choice=0)
    ann.drop()
    bob.expect("user_exit", returns_ms=0)
    if returns:  # while the game still runs
        ann.connect(queue="trio")
        assert ann.expect("queued")["delay_ms"] > 0
    for phone in (bob, cleo):
        phone.send("leave")
    held = lambda phone: hall.redis.exists(trivia.Keys.quits(phone.token[:12]))
    wait_until(lambda: held(ann))
    assert not held(bob)


def test_a_player_who_left_may_play_another_game_while_the_first_one_continues(hall, sit):
    ann, bob, cleo = sit("trio", 3)
    ann.send("leave")
    ann.expect("cancelled")
    ann.send("join", queue="friendly")
    ann.expect("queued")
    dan = hall.phone(queue="friendly")
    other = ann.expect("start")
    assert (
        other["game"] != ann.game
        and other["seq"] == 1
        and dan.expect("start")["game"] == other["game"]
    )
    assert {end["game"] for end in play_all([bob, cleo])} == {bob.game}
    assert {end["game"] for end in play_all([ann, dan])} == {other["game"]}
    dan.close()
    wait_until(lambda: len(hall.http("GET", "/users/me/games", token=ann.token).json["games"]) == 2)


def test_the_last_player_continues_alone_if_the_queue_says_continue(sit):
    ann, bob = sit("stubborn")
    questions([ann, bob])
    ann.send("leave")
    assert ann.expect("cancelled")["reason"] == "left"
    bob.expect("user_exit")
    assert play_on([bob], 1)["ranking"][0]["player"] == bob.name


def test_a_game_that_all_players_leave_is_abandoned(hall, sit):
    phones = sit("trio", 3)
    questions(phones)
    phones[0].send("answer", round=1, choice=0)
    phones[2].expect("answered")
    for phone in phones[:2]:
        phone.send("leave")
        phone.expect("cancelled")
    phones[2].send("leave")
    assert phones[2].expect("end")["reason"] == "abandoned"
    for phone in phones:
        wait_until(lambda phone=phone: me(hall, phone)["games"] == 1)
        assert me(hall, phone)["wins"] == 0


# ---- relay


def test_an_emoji_reaches_the_opponents_only_and_names_its_player(sit):
    ann, bob, cleo = sit("trio", 3)
    questions([ann, bob, cleo])
    faces = ["👍", "😂", "😮", "😢", "😡", "🎉", "🤔", "👏"]
    for face in faces:
        ann.send("emoji", emoji=face)
    for phone in (bob, cleo):
        frames = [phone.receive() for _ in faces]
        assert [
            (frame["type"], frame["player"], frame["emoji"], frame["game"]) for frame in frames
        ] == [("emoji", ann.name, face, ann.game) for face in faces]
        assert_contiguous(phone)
    ann.send("ping")
    assert ann.receive()["type"] == "pong"
    ann.refused("invalid_message", "emoji", emoji="x")


# ---- what a game stores


def test_a_rated_game_moves_the_ratings(hall, sit):
    ann, bob = sit("duel")
    end = win(ann, bob)
    rows = {row["player"]: row for row in end["ranking"]}
    assert (
        rows[ann.name]["rating_change"] > 1
        and abs(sum(row["rating_change"] for row in rows.values())) < 0.01
    )
    for phone in (ann, bob):
        row = rows[phone.name]
        assert me(hall, phone)["rating"] == row["rating"] == 1500 + row["rating_change"]
        assert hall.http("GET", f"/users/{phone.name}").json["rating"] == row["rating"]
    assert rows[ann.name]["rating_change"] == 158  # as the README says


def test_shown_ratings_are_whole_numbers_and_provisional_while_they_are_uncertain(hall, sit):
    ann, bob = sit("duel")
    for phone, rating, sigma in ((ann, "1700.4", "299.9"), (bob, "1699.5", "300.1")):
        user = f"user:{{{phone.token[:12]}}}"
        hall.redis.hset(user, mapping={"rating": rating, ":sigma": sigma})
    for phone in (ann, bob):
        phone.send("check")
    told = {player["username"]: player for player in ann.expect("update")["players"]}
    end = win(ann, bob)
    record = hall.http("GET", f"/games/{end['game']}", token=ann.token).json
    for rows in (end["ranking"], record["ranking"]):  # from the ratings at the start
        assert all(row["provisional"] is True for row in rows)
        assert [type(row[key]) for row in rows for key in ("rating", "rating_change")] == [int] * 4
    for phone in (ann, bob):
        user = f"user:{{{phone.token[:12]}}}"
        wait_until(lambda: hall.redis.hget(user, "games"))
        hall.redis.hset(user, ":sigma", "299.9" if phone is ann else "300.1")
        profile = hall.http("GET", f"/users/{phone.name}").json
        for shown in (me(hall, phone), profile, told[phone.name]):
            assert shown.get("provisional") == (True if phone is bob else None)
        assert told[phone.name]["rating"] == 1700


def test_players_with_equal_shown_ratings_share_a_rank(hall):
    people = [hall.register() for _ in range(3)]
    ratings = ("90000.4", "89999.5", "89999.4")
    for person, rating in zip(people, ratings, strict=True):
        uid = person["token"][:12]
        hall.redis.hset(f"user:{{{uid}}}", mapping={"rating": rating, "games": 1, ":sigma": 300})
        hall.redis.zadd("board:{rating}", {uid: float(rating)})
    for offset in (0, 1):
        entries = hall.http("GET", f"/leaderboards/rating?limit=3&offset={offset}").json["entries"]
        mine = {entry["username"]: entry for entry in entries}
        for person, rank, value in list(zip(people, (1, 1, 3), (90000, 90000, 89999)))[offset:]:
            name = person["user"]["username"]
            assert mine[name] == {"rank": rank, "username": name, "value": value}
    hall.redis.hdel(f"user:{{{people[0]['token'][:12]}}}", ":sigma")
    first, *_ = hall.http("GET", "/leaderboards/rating?limit=3").json["entries"]
    assert first["provisional"] is True


def win(ann, bob):
    """Ann answers all questions right, and Bob all wrong. Returns the `end`."""
    for number in (1, 2, 3):
        asked, _ = questions([ann, bob], number)
        ann.send("answer", round=number, choice=right(asked))
        bob.send("answer", round=number, choice=wrong(asked))
    return [phone.expect("end") for phone in (ann, bob)][0]


def test_a_draw_between_newcomers_moves_no_rating_and_is_no_win(hall, sit):
    ann, bob = sit("sprint")
    end = play_all([ann, bob], wrong)[0]
    assert [row["rank"] for row in end["ranking"]] == [1, 1]
    assert all(abs(row["rating_change"]) < 0.001 for row in end["ranking"])
    assert [(me(hall, phone)["wins"], me(hall, phone)["games"]) for phone in (ann, bob)] == [
        (0, 1),
        (0, 1),
    ]


def test_an_unrated_game_counts_but_moves_no_rating(hall, sit):
    ann, bob = sit("friendly")
    end = win(ann, bob)
    assert all(row.keys() == {"player", "score", "rank"} for row in end["ranking"])
    assert me(hall, ann).items() >= {"rating": 1500, "wins": 1, "games": 1}.items()
    assert me(hall, bob).items() >= {"rating": 1500, "wins": 0, "games": 1}.items()


def test_a_game_updates_wins_games_history_and_boards(hall, sit):
    ann, bob = sit("duel")
    end = win(ann, bob)
    assert me(hall, ann).items() >= {"wins": 1, "games": 1}.items()
    assert me(hall, bob).items() >= {"wins": 0, "games": 1}.items()
    assert board(hall, "wins", ann) == 1 and board(hall, "wins", bob) is None
    assert [board(hall, "rating", phone) for phone in (ann, bob)] == [
        me(hall, phone)["rating"] for phone in (ann, bob)
    ]
    for phone in (ann, bob):
        [game] = hall.http("GET", "/users/me/games", token=phone.token).json["games"]
        assert (
            game.items()
            >= {
                "id": ann.game,
                "queue": "duel",
                "reason": "finished",
                "ranking": end["ranking"],
            }.items()
        )
        record = hall.http("GET", f"/games/{ann.game}", token=phone.token).json
        reveals = [frame for frame in phone.frames if frame["type"] == "reveal"]
        assert [(row["correct"], row["answers"]) for row in record["rounds"]] == [
            (frame["correct"], frame["answers"]) for frame in reveals
        ]
    other = hall.register()
    hall.http("GET", f"/games/{ann.game}", token=other["token"]).refused(404, "not_found")


def board(hall, name, phone):
    """Returns a player's value on a leaderboard, or None."""
    entries = hall.http("GET", f"/leaderboards/{name}?around=me&limit=5", token=phone.token).json[
        "entries"
    ]
    return next((entry["value"] for entry in entries if entry["username"] == phone.name), None)


def test_a_game_has_no_record_before_its_end(hall, sit):
    ann, bob = sit("duel")
    questions([ann, bob])
    hall.http("GET", f"/games/{ann.game}", token=ann.token).refused(404, "not_found")


def test_the_export_does_not_name_questions_of_later_rounds(hall, sit):
    ann, bob = sit("slow_reveal")
    asked, _ = questions([ann, bob])
    told = hall.http("GET", "/users/me/export", token=ann.token).json
    assert set(told["questions_seen"]) <= {asked["text"]}, (
        "the export names questions of later rounds"
    )
    assert told["games"] == []


def test_a_result_that_is_applied_twice_counts_once(hall, sit):
    ann, bob = sit("duel")
    win(ann, bob)
    people = [phone.token[:12] for phone in (ann, bob)]

    def store():
        return [
            [
                hall.redis.hgetall(f"user:{{{uid}}}"),
                hall.redis.zrange(f"history:{{{uid}}}", 0, -1, withscores=True),
                hall.redis.zscore("board:{rating}", uid),
            ]
            for uid in people
        ] + [board(hall, "wins", ann)]

    before = store()
    [key] = hall.redis.keys(f"game:*:{ann.game}")
    # The state after a worker has applied the result and died before it ended the game.
    ended = stored_game(hall.redis, ann.game)["state"]
    seats = [player | {"seq": 9, "turn": 1} for player in ended["players"]]
    change_state(hall.redis, ann.game, phase="settle", deadline=0, players=seats)
    hall.redis.zadd(f"deadlines:{key.split(':')[1]}", {ann.game: 0})
    wait_until(lambda: stored_game(hall.redis, ann.game)["state"]["phase"] == "end")
    wait_until(lambda: hall.redis.zscore(f"deadlines:{key.split(':')[1]}", ann.game) is None)
    assert store() == before


def test_a_player_who_is_erased_during_a_game_is_not_named_in_its_record(hall, sit):
    ann, bob = sit("stubborn")
    questions([ann, bob])
    erase(hall, ann)
    bob.expect("user_exit")
    play_on([bob], 1)
    [game] = wait_until(lambda: hall.http("GET", "/users/me/games", token=bob.token).json["games"])
    record = hall.http("GET", f"/games/{game['id']}", token=bob.token)
    assert record.status == 200 and ann.name not in record.body
    [key] = hall.redis.keys(f"game:*:{ann.game}")
    assert ann.token[:12] not in "".join(hall.redis.hgetall(key).values())


def leave_in_start(phones):
    phones[0].send("leave")


def leave_unanswered(phones):
    questions(phones)
    phones[0].send("leave")


def say_nothing(phones):
    pass


@pytest.mark.parametrize(
    "queue, act, reason",
    [
        ("slow_start", leave_in_start, "forfeit"),
        ("duel", leave_unanswered, "forfeit"),
        ("sprint", say_nothing, "finished"),
    ],
)
def test_a_game_without_answers_does_not_count(hall, sit, queue, act, reason):
    phones = sit(queue)
    act(phones)
    ends = [phone.expect("end") for phone in phones]
    assert [end["reason"] for end in ends] == [reason] * 2
    for row in ends[0]["ranking"]:
        assert (row["rating"], row["rating_change"], row["counts"]) == (1500, 0, False), row
    for phone in phones:
        wait_until(lambda phone=phone: state(hall, phone)[0]["state"]["phase"] == "end")
        mine = me(hall, phone)
        assert (mine["games"], mine["wins"], mine["rating"]) == (0, 0, 1500)
        assert hall.http("GET", "/users/me/games", token=phone.token).json["games"] == []
        assert board(hall, "rating", phone) is board(hall, "wins", phone) is None
    [key] = hall.redis.keys(f"game:*:{phones[0].game}")
    assert 0 < hall.redis.ttl(key) <= trivia.FORGET_S
    assert state(hall, phones[0])[0]["result"][0].keys() >= {"counts"}


def test_a_limited_number_of_games_a_day_with_the_same_opponent_count(hall, sit):
    """PAIR_GAMES of them count in this schema."""
    ann, bob = sit("duel")
    for game in range(PAIR_GAMES + 1):
        if game:
            play_again([ann, bob])
        end = win(ann, bob)
        counts = game < PAIR_GAMES
        for row in end["ranking"]:
            assert (row["rating_change"] != 0, row.get("counts", True)) == (counts, counts), row
    mine = me(hall, ann)
    assert (mine["games"], mine["wins"]) == (PAIR_GAMES, PAIR_GAMES)
    assert mine["rating"] == end["ranking"][0]["rating"]
    assert board(hall, "wins", ann) == PAIR_GAMES
    page = hall.http("GET", "/users/me/games?limit=100", token=ann.token).json
    assert len(page["games"]) == PAIR_GAMES + 1
    ann.send("join")  # a game with another player counts
    cleo = hall.phone(queue="duel")
    ann.expect("start")
    assert all("counts" not in row for row in win(ann, cleo)["ranking"])
    assert me(hall, ann)["wins"] == PAIR_GAMES + 1
    cleo.close()


def test_a_limited_number_of_games_a_day_with_guests_count(hall, sit):
    ann = hall.phone(queue="duel")
    met = trivia.Keys.met(ann.token[:12])
    for played in (0, PAIR_GAMES * trivia.GUESTS_AS_PAIRS):
        hall.redis.hset(met, trivia.GUESTS, played)
        secret = {"secret": f"{played:040}"}
        guest = hall.phone(session=hall.http("POST", "/auth/guest", secret).json, queue="duel")
        ann.expect("start")
        assert ["counts" in row for row in win(ann, guest)["ranking"]] == [played > 0, False]
        assert hall.redis.hget(met, trivia.GUESTS) == str(played or 1)
        guest.close()
        ann.send("join")
    ann.close()


def test_the_questions_of_a_game_are_marked_as_seen_when_it_ends(hall, sit):
    ann, bob = sit("duel")
    answer_all([ann, bob])
    answer_all([ann, bob], 2)
    questions([ann, bob], 3)
    bob.send("leave")
    for phone in (ann, bob):
        phone.expect("end")
        key = f"seen:{{{phone.token[:12]}}}"
        quiz = stored_game(hall.redis, phone.game)["plan"]["quiz"]
        asked = [number for number, _ in trivia.parse_quiz(quiz)][:3]
        assert [hall.redis.getbit(key, number) for number in asked] == [1, 1, 1]
        assert hall.redis.bitcount(key) == 3


def test_questions_after_a_player_left_are_not_marked_as_seen_for_them(hall, sit):
    ann, bob, eve = sit("trio", 3)
    answer_all([ann, bob, eve])
    questions([ann, bob, eve], 2)
    eve.send("leave")
    eve.expect("cancelled")
    play_on([ann, bob], 2)
    marked = [hall.redis.bitcount(f"seen:{{{phone.token[:12]}}}") for phone in (ann, bob, eve)]
    assert marked == [3, 3, 2]


def test_a_game_that_ends_before_its_first_question_marks_none_as_seen(hall, sit):
    phones = sit("slow_start")
    leave_in_start(phones)
    for phone in phones:
        phone.expect("end")
        assert not hall.redis.exists(f"seen:{{{phone.token[:12]}}}")


def test_right_answers_in_inhuman_time_are_shown_only_to_the_operator(hall, sit):
    hall.redis.delete("quick:{metrics}")  # only ten players are listed, and other tests add some
    ann, bob = sit("duel")
    for number in (1, 2, 3):
        asked, _ = questions([ann, bob], number)
        ann.send("answer", round=number, choice=right(asked))
        bob.send("answer", round=number, choice=wrong(asked))
    game = [phone.expect("end") for phone in (ann, bob)][0]["game"]
    answers = [
        row["answers"] for row in hall.http("GET", f"/games/{game}", token=ann.token).json["rounds"]
    ]
    quick = {
        phone: sum(row[phone.name]["ms"] < trivia.INHUMAN_MS for row in answers)
        for phone in (ann, bob)
    }
    for phone, sign in ((ann, 1), (bob, -1)):
        user = f"user:{{{phone.token[:12]}}}"
        assert int(hall.redis.hget(user, ":quick") or 0) == sign * quick[phone]
    assert quick[ann] > 0
    wait_until(lambda: f'trivia_quick_players{{player="{ann.token[:12]}"}}' in metrics(hall))
    assert bob.token[:12] not in metrics(hall)
    wait_until(lambda: 'trivia_quick_answers_total{verdict="right"}' in metrics(hall))
    shown = json.dumps([ann.frames, bob.frames, me(hall, ann)])
    shown += hall.http("GET", "/users/me/export", token=ann.token).body
    assert "quick" not in shown
    erase(hall, ann)
    assert hall.redis.zscore("quick:{metrics}", ann.token[:12]) is None


def metrics(hall):
    return hall.http("GET", "/metrics", token=OPS_TOKEN).body


def expected_changes(ratings, ranks):
    """Returns the rating changes that the model predicts from the ratings at the start."""
    before = [trivia.RATINGS.rating(rating, trivia.SIGMA) for rating in ratings]
    after = trivia.RATINGS.rate([[one] for one in before], ranks=ranks)
    return [math.floor(new.mu + 0.5) - old.mu for old, (new,) in zip(before, after)]


def strong(hall, queue):
    """Returns a strong player who waits in a queue. The first player to wait is seated first."""
    phone = hall.phone(queue=queue, connected=False)
    hall.redis.hset(f"user:{{{phone.token[:12]}}}", mapping={"rating": "2400", "games": "9"})
    return phone.connect()


def erase(hall, phone):
    assert hall.http("DELETE", "/users/me", {"password": PASSWORD}, phone.token).status == 204


def test_a_player_who_erases_themselves_during_a_game_forfeits_with_their_rating_at_the_start(hall):
    ann = strong(hall, "duel")
    bob = hall.phone(queue="duel")
    asked, _ = questions([ann, bob])
    ann.send("answer", round=1, choice=right(asked))
    bob.expect("answered")
    erase(hall, ann)
    end = bob.expect("end", seconds=SEAT_MS / 2000)
    assert end["reason"] == "forfeit"
    rows = {row["player"]: row for row in end["ranking"]}
    gain, _ = expected_changes([1500, 2400], [1, 2])
    assert rows[bob.name]["rating_change"] == gain
    wait_until(lambda: me(hall, bob)["rating"] == rows[bob.name]["rating"])
    bob.close()


def test_an_erased_player_still_counts_with_their_rating_when_the_others_finish(hall):
    ann = strong(hall, "trio_rated")
    others = [hall.phone(queue="trio_rated") for _ in range(2)]
    answer_all([ann, *others])
    questions([ann, *others], 2)
    erase(hall, ann)
    for phone in others:
        assert phone.expect("user_exit")["returns_ms"] == 0
    rows = {row["player"]: row for row in play_on(others, 2)["ranking"]}
    ranks = [rows[phone.name]["rank"] for phone in (ann, *others)]
    changes = expected_changes([2400, 1500, 1500], ranks)
    found = [rows[phone.name]["rating_change"] for phone in (ann, *others)]
    assert found == pytest.approx(changes, abs=0.01)
    for phone in others:
        phone.close()


def test_a_player_who_is_erased_while_disconnected_loses_their_seat(hall, sit):
    ann, bob = sit("duel")
    asked, _ = questions([ann, bob])
    bob.send("answer", round=1, choice=right(asked))
    ann.expect("answered")
    ann.drop()
    assert bob.expect("user_exit")["returns_ms"] > 0
    erase(hall, ann)
    assert bob.expect("end", seconds=SEAT_MS / 2000)["reason"] == "forfeit"
    assert hall.redis.hget("seats:{lobby}", ann.token[:12]) is None


def test_a_queue_shows_how_many_players_are_in_its_games(hall, sit):
    def playing():
        return {row["name"]: row["playing"] for row in hall.http("GET", "/queues").json["queues"]}[
            "octet"
        ]

    before = playing()
    phones = sit("octet", 8)
    assert playing() == before + 8
    play_all(phones)
    wait_until(lambda: playing() == before)


# ---- the bank


def test_the_choice_of_questions_and_their_order_do_not_depend_on_a_seed():
    bank = trivia.Bank(None, trivia.Schema(trivia.read_schema(ROOT / "schema.yaml")))
    questions = trivia.read_question_file(trivia.QUESTION_FILE).questions.values()
    bank.questions = dict(enumerate(questions))
    bank.pools = {"random": list(bank.questions)}

    def draw(numbers):
        random.seed(1)
        return bank.shuffled(numbers or bank.pick("random", []))

    assert len({draw(None) for _ in range(3)}) == 3
    assert len({draw(range(40)) for _ in range(3)}) == 3
    assert "math.random" not in (ROOT / "trivia.lua").read_text("utf-8")


def test_questions_do_not_repeat_until_all_questions_were_asked(sit):
    phones, seen = sit("narrow"), []
    pool = {
        text
        for text, item in BANK.items()
        if (item["category"], item["difficulty"]) == ("History", "hard")
    }
    for game in range(4):
        if game:
            play_again(phones)
        before = len(phones[0].frames)
        play_all(phones)
        asked = [
            frame["text"] for frame in phones[0].frames[before:] if frame["type"] == "question"
        ]
        assert len(asked) == len(set(asked)) == 4 and set(asked) <= pool
        seen += asked
    assert len(pool) == 12 and set(seen[:12]) == pool


# -- solo


def test_a_solo_game_has_the_same_messages_as_other_games(hall, sit):
    [ann] = sit("alone", 1)
    end = ann.play(right)
    assert [frame["type"] for frame in ann.frames] == [
        *("queued", "start"),
        *("question", "reveal") * 3,
        "end",
    ]
    assert_contiguous(ann)
    assert_no_secret(ann)
    assert end["reason"] == "finished"
    [row] = end["ranking"]
    assert row["player"] == ann.name and row["rank"] == 1 and row["score"] > 300
    assert row["counts"] is False
    assert [me(hall, ann)[name] for name in ("games", "wins", "rating")] == [0, 0, 1500]
    assert board(hall, "wins", ann) is None
    record = hall.http("GET", f"/games/{ann.game}", token=ann.token).json
    assert len(record["rounds"]) == 3
    ann.send("join")
    ann.expect("start")


def test_a_solo_game_is_resumed_after_a_disconnect(sit):
    [ann] = sit("alone", 1)
    ann.expect("question")
    ann.drop()
    ann.connect()
    update = ann.receive()
    assert (update["type"], update["phase"], update["round"]) == ("update", "question", 1)
    ann.send("answer", round=1, choice=right(update["question"]))
    assert ann.expect("reveal")["scores"][ann.name] > 100
    assert ann.play(right)["reason"] == "finished"


def test_a_solo_game_that_the_player_leaves_is_abandoned(hall, sit):
    [ann] = sit("alone", 1)
    ann.expect("question")
    ann.send("leave")
    assert ann.expect("end")["reason"] == "abandoned"


def test_a_survival_game_counts_lives_and_ends_with_the_last(sit):
    [ann] = sit("survival", 1)
    assert ann.frames[-1]["lives"] == 2
    lives = []
    for number, choose in enumerate((right, wrong, right, wrong), 1):
        question = ann.expect("question", round=number)
        ann.send("answer", round=number, choice=choose(question))
        lives.append(ann.expect("reveal")["lives"])
        if number == 2:
            assert check(ann)["lives"] == 1
    assert lives == [2, 1, 1, 0]
    end = ann.expect("end")
    assert end["reason"] == "finished" and end["ranking"][0]["score"] > 200
    assert ann.frames[-2]["type"] == "reveal"


def test_a_question_without_an_answer_takes_a_life(sit):
    [ann] = sit("last_stand", 1)
    assert ann.expect("reveal")["lives"] == 0
    assert ann.expect("end")["ranking"][0]["score"] == 0


def test_the_clock_of_a_speed_run_runs_only_while_a_question_is_open(sit):
    [ann] = sit("speed_run", 1)
    assert ann.frames[-1]["total_ms"] == 1500
    left = 1500
    for number in range(1, 4):
        question = ann.expect("question", round=number)
        assert question["answer_ms"] == left  # not the 60 s of the queue
        if number == 2:
            time.sleep(0.2)
            assert 0 < check(ann)["total_ms"] <= left - 200
        ann.send("answer", round=number, choice=right(question))
        reveal = ann.expect("reveal")
        took_ms = reveal["answers"][ann.name]["ms"]
        assert took_ms >= (200 if number == 2 else 0)
        assert reveal["total_ms"] == left - took_ms
        left = reveal["total_ms"]
    ann.expect("question")
    began = time.monotonic()
    reveal = ann.expect("reveal")
    assert reveal["total_ms"] == 0 and reveal["answers"] == {}
    assert time.monotonic() - began < left / 1000 + 2
    assert ann.expect("end")["reason"] == "finished"


def item(text, category=IMPORTED, difficulty="hard", **changes):
    return {
        "type": "multiple",
        "difficulty": difficulty,
        "category": category,
        "question": text,
        "correct_answer": "Caf&eacute;",
        "incorrect_answers": ["&lt;b&gt;", "B &amp; B", "&quot;C&quot;"],
    } | changes


def test_a_running_server_uses_imported_questions(hall, sit, tmp_path):
    mark = secrets.token_hex(4)
    old = next(iter(BANK))
    items = [item(f"{mark} &ldquo;{n}&rdquo; &amp; co?") for n in "abc"]
    items += [
        item(f"  {mark} “A” & CO?"),
        BANK[old] | {"question": old.upper(), "id": None},
        item(f"{mark} d", difficulty="trivial"),
        item(f"{mark} e", incorrect_answers=[]),
        item(f"{mark} f", incorrect_answers=["Café"]),
        "text",
        item(""),
    ]
    (tmp_path / "new.json").write_text(json.dumps({"response_code": 0, "results": items}))
    done = import_file(hall, tmp_path / "new.json")
    assert done.returncode == 1 and "3 added, 2 duplicates, 5 refused" in done.stdout, (
        done.stdout,
        done.stderr,
    )
    assert [line.split(":")[0].strip() for line in done.stdout.splitlines()[1:]] == [
        f"item {n}" for n in range(4, 11)
    ]
    phones = sit("growing")
    # 3 games of 5 questions ask all 12 questions of the server and the 3 new ones.
    for game in range(3):
        if game:
            play_again(phones)
        play_all(phones)
    asked = {frame["text"]: frame for frame in phones[0].frames if frame["type"] == "question"}
    new = [frame for text, frame in asked.items() if text.startswith(mark)]
    assert len(asked) == 15 and sorted(frame["text"] for frame in new) == [
        f"{mark} “{n}” & co?" for n in "abc"
    ]
    for frame in new:
        assert (
            sorted(frame["choices"]) == sorted(["Café", "<b>", "B & B", '"C"'])
            and frame["category"] == IMPORTED
        )


def import_file(hall, file):
    return trivia_py("import", file, env=hall.env, cwd=file.parent)
