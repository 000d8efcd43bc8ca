"""Challenges over real sockets: friends play the same questions, each at a time they choose."""

import contextlib
import secrets
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed

import trivia
from conftest import PASSWORD, Server, at_once, beside_of, edited_schema, stop_alone, wait_until

NEVER = 60
ACTS = "token-that-acts-too"
CONTEST = {
    "players": {"min": 2, "max": 8},
    "match": "challenge",
    "days": 3,
    "rounds": 3,
    "start_seconds": 0.05,
    "answer_seconds": NEVER,
    "reveal_seconds": 0.05,
    "scoring": {"correct": 100, "speed": 50},
    "seat_seconds": 30,
}
QUEUES = {
    "calm": {},
    "pair": {"players": {"min": 2, "max": 2}},
    "quick": {"answer_seconds": 1.5, "rounds": 30},
    "solemn": {"reveal_seconds": 1},
    "patient": {"reveal_seconds": NEVER},
}


def add_contests(tree):
    tree["queues"] |= {name: CONTEST | changes for name, changes in QUEUES.items()}


@pytest.fixture(scope="module")
def house():
    """A server with challenges."""
    running = Server(edited_schema(add_contests), env={"TRIVIA_OPS_ACT_TOKEN": f"ann:{ACTS}"})
    try:
        yield running.start()
        assert "Traceback" not in running.log, running.log[-5000:]
    finally:
        running.close()


def make(house, session, queue="calm"):
    answer = house.http("POST", "/challenges", {"queue": queue}, session["token"])
    assert answer.status == 201, answer.body
    assert set(answer.json) == {"code", "expires_at"}
    return answer.json["code"]


def show(house, code, session=None):
    answer = house.http("GET", f"/challenges/{code}", token=session and session["token"])
    assert answer.status == 200, answer.body
    return answer.json


def guest_of(house):
    answer = house.http("POST", "/auth/guest", {"secret": secrets.token_urlsafe(32)})
    assert answer.status == 201
    return answer.json


def enter(server, session, code, queue="calm"):
    return server.phone(session=session, queue=f"{queue}?code={code}")


def play(server, session, code, choose=lambda question: 0):
    phone = enter(server, session, code)
    phone.play(choose)
    return phone


def join_refused(phone, why, code):
    phone.send("join", code=code)
    phone.refused(why)


def frames(phone, kind):
    return [frame for frame in phone.frames if frame["type"] == kind]


def is_state(frame):
    return frame["type"] in ("question", "update")


def has_come(phone, is_it):
    """Waits until a phone has a frame for which is_it(frame) is true."""
    while not any(map(is_it, phone.frames)):
        phone.receive()


def finished(house, code, session, count):
    """Waits until so many players have finished the challenge. Returns the challenge."""

    def look():
        view = show(house, code, session)
        return [row["state"] for row in view["players"]].count("finished") == count and view

    return wait_until(look)


# -- games of friends


def test_the_repair_of_a_wrong_answer_key_corrects_scores_and_later_games(house):
    ann, bob = house.register(), house.register()
    code = make(house, ann)
    first = play(house, ann, code, lambda question: 0)
    finished(house, code, ann, 1)
    shown = show(house, code, ann)["rounds"][0]
    listed = house.http(
        "GET", f"/ops/look/questions?{urlencode({'text': shown['text']})}", token=ACTS
    )
    [question] = [row["id"] for row in listed.json["questions"] if row["text"] == shown["text"]]
    was_right = shown["correct"] == 0
    right = shown["choices"][1 if was_right else 0]

    def score():
        return show(house, code, ann)["players"][0]["score"]

    before = score()
    change = {"question": question, "right": right}
    answer = house.http("POST", "/ops/act/repair_question", change, ACTS)
    assert answer.status == 200, answer.body
    moved = wait_until(lambda: score() - before, 40)
    assert -150 <= moved <= -100 if was_right else 100 <= moved <= 150
    mended = wait_until(lambda: show(house, code, ann)["rounds"][0])
    assert mended["choices"][mended["correct"]] == right
    record = house.http("GET", f"/games/{first.frames[-1]['game']}", token=ann["token"]).json
    assert record["ranking"][0]["score"] == score()
    second = enter(house, bob, code)
    asked = second.expect("question")
    assert (asked["text"], asked["choices"]) == (shown["text"], shown["choices"])
    second.send("answer", round=1, choice=asked["choices"].index(right))
    reveal = second.expect("reveal")
    assert reveal["answers"][second.name]["points"] >= 100
    assert reveal["answers"][first.name] == mended["answers"][first.name]
    second.drop()
    undo = {"entry": answer.json["entry"]}
    assert house.http("POST", "/ops/act/undo", undo, ACTS).status == 200
    wait_until(lambda: score() == before, 40)


def test_friends_play_the_same_questions_and_see_others_answers_after_their_own(house):
    ann = house.register()
    code = make(house, ann)
    link = show(house, code)
    assert link["owner"] == ann["user"]["username"] and link["queue"] == "calm"
    assert (link["state"], link["players"]) == ("open", []) and "rounds" not in link
    first = play(house, ann, code, lambda question: 1)
    assert len(frames(first, "start")[0]["players"]) == 1
    finished(house, code, ann, 1)

    bob = guest_of(house)  # a guest, as in an app that was just installed
    typed = f"{code[:4]}-{code[4:]}".lower()
    second = enter(house, bob, typed, "solo")  # joins the queue of the challenge
    start = second.expect("start")
    assert [player["username"] for player in start["players"]] == [second.name, first.name]
    for before in frames(first, "question"):
        question = second.expect("question")
        same = ("round", "text", "choices")
        assert [question[key] for key in same] == [before[key] for key in same]
        seen = len(second.frames)
        second.send("answer", round=question["round"], choice=0)
        reveal = second.expect("reveal")
        of_first = frames(first, "reveal")[question["round"] - 1]
        assert reveal["answers"][first.name] == of_first["answers"][first.name]
        assert reveal["scores"][first.name] == of_first["scores"][first.name]
        assert reveal["answers"][second.name]["choice"] == 0
        assert [frame["type"] for frame in second.frames[seen:]] == ["reveal"]
    assert second.expect("end")["ranking"][0]["player"] == second.name

    view = finished(house, code, bob, 2)
    scores = {row["player"]: row["score"] for row in view["players"]}
    assert scores == frames(second, "reveal")[-1]["scores"]
    by_score = sorted(scores.values(), reverse=True)
    assert [row["rank"] for row in view["players"]] == [by_score.index(n) + 1 for n in by_score]
    for number, reveal in enumerate(frames(second, "reveal")):
        assert view["rounds"][number]["answers"] == reveal["answers"]
    assert "rounds" not in show(house, code) and "rounds" not in show(house, code, house.register())
    for session in (ann, bob):
        listed = house.http("GET", "/challenges", token=session["token"]).json["challenges"]
        assert listed == [{key: view[key] for key in view if key != "rounds"}]
    me = house.http("GET", "/users/me", token=ann["token"]).json
    assert (me["games"], me["wins"], me["rating"]) == (0, 0, 1500)


def test_a_player_who_reconnects_sees_their_rivals(house):
    ann, bob = house.register(), house.register()
    code = make(house, ann, "solemn")
    first = enter(house, ann, code)
    first.play()
    finished(house, code, ann, 1)
    second = enter(house, bob, code)
    question = second.expect("question")
    second.drop()
    back = enter(house, bob, code)
    update = back.expect("update")
    assert update["scores"] == {first.name: 0, back.name: 0} and "answers" not in update
    assert update["question"]["choices"] == question["choices"]
    assert {player["username"] for player in update["players"]} == {first.name, back.name}
    back.send("answer", round=1, choice=0)
    reveal = back.expect("reveal")
    back.send("check")
    update = back.expect("update", phase="reveal")
    assert (update["answers"], update["scores"]) == (reveal["answers"], reveal["scores"])
    back.play()


def test_friends_who_play_at_the_same_time_see_each_other_live(house, beside):
    ann, bob = house.register(), house.register()
    code = make(house, ann)
    first, second = enter(house, ann, code), enter(beside, bob, code)
    for phone in (first, second):
        phone.expect("question", round=1)
    first.send("answer", round=1, choice=2)
    of_first = first.expect("reveal", round=1)
    assert of_first["answers"].keys() == {first.name}
    update = second.expect("update")  # a rival has appeared
    assert [player["username"] for player in update["players"]] == [second.name, first.name]
    assert (update["phase"], update["scores"][first.name]) == ("question", 0)
    assert "answers" not in update and first.name not in update["answered"]
    assert "rounds" not in show(house, code, bob)
    second.send("check")
    before = second.expect("update")
    second.drop()
    second = enter(beside, bob, code)
    for update in (before, second.expect("update")):
        assert (update["phase"], update["scores"][first.name]) == ("question", 0)
        assert "answers" not in update and "correct" not in update
    house.http("GET", f"/games/{update['game']}", token=bob["token"]).refused(404, "not_found")
    second.send("answer", round=1, choice=0)
    reveal = second.expect("reveal", round=1)
    assert reveal["answers"][first.name] == of_first["answers"][first.name]
    assert reveal["scores"][first.name] == of_first["scores"][first.name]
    update = first.expect("update")
    assert [player["username"] for player in update["players"]] == [first.name, second.name]
    for phone in (first, second):  # an `update` may take the place of the `question`
        has_come(phone, lambda frame: is_state(frame) and frame["round"] == 2)
    second.send("answer", round=2, choice=1)
    of_second = second.expect("reveal", round=2)
    assert first.expect("answered") == {
        "seq": first.frames[-1]["seq"],
        "type": "answered",
        "game": update["game"],
        "round": 2,
        "player": second.name,
    }
    first.send("answer", round=2, choice=1)
    reveal = first.expect("reveal", round=2)
    assert reveal["answers"][second.name] == of_second["answers"][second.name]
    assert reveal["scores"][second.name] == of_second["scores"][second.name]
    late = enter(house, house.register(), code)  # a later player sees the answers so far
    late.expect("question", round=1)
    late.send("answer", round=1, choice=0)
    answers = late.expect("reveal", round=1)["answers"]
    assert answers.keys() == {first.name, second.name, late.name}
    for phone in (first, second):
        has_come(phone, lambda frame: late.name in frame.get("scores", ()))
    for phone in (first, second, late):
        phone.send("leave")
        while (frame := phone.receive())["type"] != "end":
            if frame["type"] == "error":  # a snapshot is under way
                phone.send("leave")
    view = finished(house, code, ann, 3)
    assert view["rounds"][1]["answers"].keys() == {first.name, second.name}
    assert not [name for name in stored(house, code) if name.startswith("live:")]
    second.close()


def test_an_answer_is_shown_to_a_rival_who_has_just_answered(house):
    ann, bob = house.register(), house.register()
    code = make(house, ann, "patient")
    first, second = enter(house, ann, code), enter(house, bob, code)
    for phone in (first, second):
        phone.expect("question", round=1)
    first.send("answer", round=1, choice=0)
    first.expect("reveal")
    second.expect("update")
    second.send("answer", round=1, choice=1)
    given = second.expect("reveal")["answers"]
    update = first.expect("update", phase="reveal")
    assert update["answers"] == given and given.keys() == {first.name, second.name}
    for phone in (first, second):
        phone.close()


def test_players_do_not_see_each_other_if_one_has_blocked_the_other(house, beside):
    ann, bob, cid = house.register(), house.register(), house.register()
    path = f"/users/{cid['user']['username']}/block"
    assert house.http("PUT", path, token=bob["token"]).status == 204
    code = make(house, ann)
    both, first = enter(house, ann, code), enter(beside, bob, code)
    for phone in (both, first):
        phone.expect("question", round=1)
    first.send("answer", round=1, choice=0)
    first.expect("reveal")
    names = lambda frame: {player["username"] for player in frame["players"]}
    assert names(both.expect("update")) == {both.name, first.name}
    second = enter(house, cid, code)
    assert names(second.expect("start")) == {second.name}
    second.expect("question", round=1)
    second.send("answer", round=1, choice=0)
    assert second.expect("reveal")["answers"].keys() == {second.name}
    assert names(both.expect("update")) == {both.name, first.name, second.name}
    for phone in (first, second):
        phone.send("check")
        assert names(phone.expect("update")) == {phone.name}
    for phone in (both, first, second):
        phone.close()


# -- what is refused


def stored(house, code):
    return house.redis.hgetall(trivia.Keys.contest(code))


def test_each_refusal_has_its_code_and_changes_nothing(house):
    ann, bob, eve = house.register(), house.register(), house.register()
    code = make(house, ann, "pair")
    friend = play(house, bob, code)
    finished(house, code, bob, 1)
    before = stored(house, code)
    join_refused(friend, "challenge_played", code)
    stranger = house.phone(session=eve, queue="pair")
    stranger.refused("code_needed")
    join_refused(stranger, "challenge_full", code)  # one place is reserved for the owner
    join_refused(stranger, "unknown_code", "CDFHJKMN")
    join_refused(stranger, "malformed_code", "CDFHJKM")
    assert stored(house, code) == before
    owner = play(house, ann, code)
    wait_until(lambda: show(house, code)["state"] == "finished")
    before = stored(house, code)
    join_refused(owner, "own_challenge", code)
    join_refused(stranger, "challenge_full", code)
    assert stored(house, code) == before

    old = make(house, ann)
    house.redis.hset(trivia.Keys.contest(old), "ends", 1)
    before = stored(house, old)
    join_refused(stranger, "expired_code", old)
    assert stored(house, old) == before and show(house, old)["state"] == "finished"
    stranger.send("join", queue="solo")  # the socket stays usable
    stranger.expect("start", queue="solo")


def test_the_challenge_of_a_blocked_player_looks_like_an_unknown_code(house):
    ann, bob, cid = house.register(), house.register(), house.register()
    code = make(house, ann)
    phone = play(house, bob, code)
    for blocker, blocked in ((ann, bob), (cid, ann)):
        path = f"/users/{blocked['user']['username']}/block"
        assert house.http("PUT", path, token=blocker["token"]).status == 204
    before = stored(house, code)
    stranger = enter(house, cid, code)
    stranger.refused("unknown_code")
    join_refused(stranger, "unknown_code", code)
    house.http("GET", f"/challenges/{code}", token=cid["token"]).refused(404, "unknown_code")
    assert stored(house, code) == before
    join_refused(phone, "challenge_played", code)  # a player of the challenge stays in it
    assert show(house, code, bob)["players"][0]["player"] == phone.name
    path = f"/users/{ann['user']['username']}/block"
    assert house.http("DELETE", path, token=cid["token"]).status == 204
    stranger.send("join", code=code)
    stranger.expect("start")


def test_routes_refuse_invalid_challenges_and_codes(house):
    ann = house.register()
    for queue in ("solo", "nowhere"):
        refused = house.http("POST", "/challenges", {"queue": queue}, ann["token"])
        assert "calm" in str(refused.refused(422, "invalid")["errors"]["queue"])
    house.http("POST", "/challenges", {"queue": "calm"}).refused(401, "not_authenticated")
    house.http("GET", "/challenges/CDFHJKMN").refused(404, "unknown_code")
    house.http("GET", "/challenges/CDFHJK").refused(422, "malformed_code")
    assert house.http("GET", "/challenges", token=ann["token"]).json == {"challenges": []}
    made = [house.http("POST", "/challenges", {"queue": "calm"}, ann["token"]) for _ in range(21)]
    assert [answer.status for answer in made] == [201] * 20 + [429]
    listed = house.http("GET", "/challenges", token=ann["token"]).json["challenges"]
    assert {view["code"] for view in listed} == {answer.json["code"] for answer in made[:20]}


def test_a_player_who_guesses_codes_of_challenges_has_to_wait(house):
    code = make(house, house.register())
    guesser = house.phone(queue="random")
    guesser.send("leave")
    guesser.expect("cancelled")
    for _ in range(30):
        guesser.send("join", code=trivia.draw_code(8))
        why = guesser.expect("error")["code"]
        if why == "too_many_attempts":
            break
        assert why == "unknown_code"
    join_refused(guesser, "too_many_attempts", code)
    assert not any(name.startswith("run:") for name in stored(house, code))


# -- the clock


def test_the_clock_of_a_challenge_runs_while_the_player_is_disconnected(house):
    ann = house.register()
    code = make(house, ann, "quick")
    phone = enter(house, ann, code)
    game = phone.expect("question", round=1)["game"]
    phone.drop()
    [key] = house.redis.keys(f"game:*:{game}")
    wait_until(lambda: trivia.parse_state(house.redis.hget(key, "state"))["round"] > 1)
    back = enter(house, ann, code)
    assert back.expect("update")["round"] > 1
    back.refused("late_answer", "answer", round=1, choice=0)
    view = show(house, code, ann)
    assert view["players"] == [{"player": back.name, "state": "playing"}] and "rounds" not in view
    back.send("leave")
    view = finished(house, code, ann, 1)
    assert view["players"] == [{"player": back.name, "state": "finished", "score": 0, "rank": 1}]
    back.expect("end")
    join_refused(back, "own_challenge", code)


# -- concurrent players, and lost workers


def test_a_challenge_admits_no_more_players_than_it_has_places_for(house):
    ann = house.register()
    code = make(house, ann, "pair")
    people = [house.register() for _ in range(3)]

    def join(i):
        with contextlib.suppress(ConnectionClosed):  # replaced by their other connection
            enter(house, people[i // 2], code).receive()

    at_once(6, join)
    runs = {name: text for name, text in stored(house, code).items() if name.startswith("run:")}
    assert len(runs) == 1
    [uid] = [name.removeprefix("run:") for name in runs]
    assert uid in {person["token"][:12] for person in people}
    wait_until(lambda: house.redis.keys(f"game:*:{runs[f'run:{uid}']}"))


def test_players_who_finish_at_once_on_two_workers_have_one_result_each(house, beside):
    ann, bob = house.register(), house.register()
    code = make(house, ann, "pair")
    phones = [enter(house, ann, code), enter(beside, bob, code)]
    for number in (1, 2):
        for phone in phones:
            has_come(phone, lambda frame: is_state(frame) and frame["round"] == number)
            phone.send("answer", round=number, choice=number)
    for phone in phones:
        has_come(phone, lambda frame: is_state(frame) and frame["round"] == 3)
    at_once(2, lambda i: phones[i].send("answer", round=3, choice=0))
    ends = [phone.expect("end")["ranking"][0]["score"] for phone in phones]
    view = finished(house, code, ann, 2)
    assert view["state"] == "finished"
    assert {row["player"]: row["score"] for row in view["players"]} == {
        phone.name: score for phone, score in zip(phones, ends, strict=True)
    }
    before = stored(house, code)
    again = [name for name, text in before.items() if name.startswith("run:")]
    for name in again:
        call = trivia.LIBRARY.function("record_run"), 1, trivia.Keys.contest(code)
        assert house.redis.fcall(*call, before[name].split(" ")[0], "999 1 - - -") == 0
    assert stored(house, code) == before
    for phone in phones:
        phone.close()


def test_a_game_of_a_challenge_survives_the_death_of_its_worker(house):
    """One of its players is in mid-game, the other at the end of their game."""
    ann, bob = house.register(), house.register()
    code = make(house, ann, "solemn")
    doomed = beside_of(house).start()
    try:
        phone, other = enter(doomed, ann, code), enter(doomed, bob, code)
        for number in (1, 2, 3):
            other.expect("question", round=number)
            other.send("answer", round=number, choice=1)
        phone.expect("question", round=1)
        phone.send("answer", round=1, choice=0)
        last = other.expect("reveal", round=3)
    finally:
        stop_alone(doomed)
    view = finished(house, code, bob, 1)  # another worker settles the game
    assert view["players"][0] == {
        "player": other.name,
        "state": "finished",
        "score": last["scores"][other.name],
        "rank": 1,
    }
    back = enter(house, ann, code)
    update = back.expect("update")
    if update["phase"] == "question":
        back.send("answer", round=update["round"], choice=0)
    back.play()
    view = finished(house, code, ann, 2)
    assert view["rounds"][0]["answers"][back.name]["choice"] == 0
    assert view["rounds"][2]["answers"][other.name] == last["answers"][other.name]
    assert frames(back, "reveal")[-1]["answers"][other.name] == last["answers"][other.name]


# -- merged and erased players


def test_a_merged_guest_keeps_their_challenges(house):
    ann, guest, account = house.register(), guest_of(house), house.register()
    code, own = make(house, ann), make(house, guest)
    play(house, guest, code)
    finished(house, code, guest, 1)
    old, new = guest["token"][:12], account["token"][:12]
    run = stored(house, code)[f"run:{old}"]
    for _ in range(2):
        for name in (code, own):
            call = trivia.LIBRARY.function("move_challenger"), 1, trivia.Keys.contest(name)
            house.redis.fcall(*call, old, new)
    assert stored(house, code)[f"run:{new}"] == run and f"run:{old}" not in stored(house, code)
    assert stored(house, own)["owner"] == new
    assert show(house, code)["players"][0]["player"] == account["user"]["username"]


def test_an_erased_player_is_removed_from_their_challenges(house):
    ann, bob = house.register(), house.register()
    code = make(house, ann)
    play(house, bob, code)
    play(house, ann, code)
    finished(house, code, ann, 2)
    exported = house.http("GET", "/users/me/export", token=ann["token"]).json["challenges"]
    assert [view["code"] for view in exported] == [code]
    assert house.http("DELETE", "/users/me", {"password": PASSWORD}, ann["token"]).status == 204
    assert ann["token"][:12] not in str(stored(house, code))
    view = show(house, code, bob)
    assert (view["owner"], len(view["players"])) == ("(erased)", 1)
    assert list(view["rounds"][0]["answers"]) == [bob["user"]["username"]]
