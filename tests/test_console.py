"""The operator's console: what it shows, what it changes, who may do that, and its audit log."""

import json
import os
import time

import psutil
import pytest
from websockets.exceptions import InvalidStatus

import trivia
from conftest import PASSWORD, Server, edited_schema, play_all, trivia_py, unique_name, wait_until
from trivia import Keys

LOOKS, ACTS = "token-that-looks-only", "token-that-acts-too"
OPEN = {
    "TRIVIA_OPS_TOKEN": LOOKS,
    "TRIVIA_OPS_ACT_TOKEN": f"ann:{ACTS} bob:another-token-that-acts",
}
STORE = "https://example.org/store"


QUIZ = [  # a whole category with wrong keys: the choice that is really right begins with "true"
    {
        "id": f"quiz-{n}",
        "question": f"Which one is it, number {n}?",
        "correct_answer": f"key {n}",
        "incorrect_answers": [f"true {n}", f"wrong {n}"],
        "category": "Console",
        "difficulty": "easy" if n else "auto",
    }
    for n in range(4)
]


def add_quiz(tree):
    quiz = {"categories": ["Console"], "rounds": 3, "scoring": {"correct": 100, "speed": 0}}
    tree["queues"]["quiz"] = tree["queues"]["rated"] | quiz


@pytest.fixture(scope="module")
def desk():
    """A server with two workers, with tokens for operators to look and to act."""
    running = Server(edited_schema(add_quiz, answer_seconds=60), workers=2, env=OPEN)
    file = running.data / "quiz.json"
    file.write_text(json.dumps(QUIZ))
    try:
        assert trivia_py("import", file, env=running.env).returncode == 0
        yield running.start()
    finally:
        running.close()


def act(server, name, /, dry=False, token=ACTS, **arguments):
    path = f"/ops/act/{name}" + "?dry_run=1" * dry
    return server.http("POST", path, arguments, token)


def done(server, name, /, **arguments):
    answer = act(server, name, **arguments)
    assert answer.status == 200, answer.body
    return answer.json


def look(server, name, query="", token=LOOKS):
    return server.http("GET", f"/ops/look/{name}{query}", token=token)


def audit(server):
    return look(server, "audit").json


def undone(server, entry):
    return done(server, "undo", entry=entry)


def login(server, phone):
    return server.http("POST", "/auth/login", {"login": phone.name, "password": PASSWORD})


def idle_phones(server, count):
    """Connects so many waiting phones that almost surely several workers have some."""
    return [server.phone(queue="party") for _ in range(count)]


def refused_handshake(phone):
    with pytest.raises(InvalidStatus) as caught:
        phone.connect()
    return caught.value.response.status_code, json.loads(caught.value.response.body)


# ---- roles


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("wrong-token-of-good-length", 401), (LOOKS, 403)]
)
def test_without_the_role_nothing_changes_and_attempts_to_act_are_logged(
    desk, method, token, status
):
    player = desk.register()["user"]["username"]
    if method == "GET":
        paths = [
            "console",
            *(f"look/{name}" for name in ("audit", "player", "switches", "nowhere")),
        ]
        for path in paths if token != LOOKS else []:
            desk.http("GET", f"/ops/{path}", token=token).refused(401, "not_authenticated")
        return
    names = desk.http("GET", "/ops/console", token=LOOKS).json["acts"]
    before = len(audit(desk)["acts"])
    for i, name in enumerate(names):
        code = "forbidden" if status == 403 else "not_authenticated"
        away = {"X-Forwarded-For": f"198.51.100.{i}"}  # the log limits attempts by address
        body = {"player": player, "closed": True}
        desk.http("POST", f"/ops/act/{name}", body, token, away).refused(status, code)
        attempt = audit(desk)["refused"][0]
        assert (attempt["act"], attempt["code"]) == (name, code)
        assert attempt["who"] == ("look" if token == LOOKS else "-")
    assert len(audit(desk)["acts"]) == before
    assert look(desk, "switches").json["switches"] == {}


@pytest.mark.parametrize(
    ("name", "arguments", "status", "code"),
    [
        ("nothing", {}, 404, "not_found"),
        ("ban", {"player": "nobody-of-this-name"}, 404, "not_found"),
        ("ban", {}, 422, "invalid"),
        ("ban", {"player": "x", "hours": 0}, 422, "invalid"),
        ("ban", {"player": "x", "much": 1}, 422, "invalid"),
        ("void_game", {"game": "00abcdefghij"}, 404, "not_found"),
        ("void_game", {"game": "../../etc/pw"}, 422, "invalid"),
        ("end_game", {"game": "zzabcdefghij"}, 404, "not_found"),
        ("queue", {"queue": "nowhere", "closed": True}, 404, "not_found"),
        ("version", {"app": "a", "least": "1.0"}, 422, "invalid"),
        ("version", {"app": "a b", "least": "1.0", "store": STORE}, 422, "invalid"),
        ("undo", {"entry": "1-1"}, 404, "not_found"),
        ("undo", {"entry": "0"}, 422, "invalid"),
    ],
)
def test_an_invalid_act_is_refused_and_logged(desk, name, arguments, status, code):
    before = len(audit(desk)["acts"])
    act(desk, name, **arguments).refused(status, code)
    found = audit(desk)
    assert len(found["acts"]) == before
    assert (found["refused"][0]["act"], found["refused"][0]["code"]) == (name, code)
    assert found["refused"][0]["who"] == "ann"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nowhere", 404),
        ("player?player=nobody-of-this-name", 404),
        ("game?game=00abcdefghij", 404),
        ("game?game=x", 422),
        ("player", 422),
        ("audit?before=x", 422),
        ("audit?before=99999999999999999999-1", 422),
    ],
)
def test_a_look_at_something_that_does_not_exist_is_refused(desk, path, status):
    assert look(desk, path).status == status


# ---- players


def test_a_player_is_found_by_name_email_and_id(desk):
    ann, bob = desk.pair()
    card = look(desk, "player", f"?player={ann.name}", ACTS).json
    assert card["user"]["username"] == ann.name and card["ban"] is None
    assert card["seat"]["connected"] and len(card["sessions"]) == 1
    email = card["user"].pop("email")
    for text in (card["id"], ann.name.upper(), email):
        assert look(desk, "player", f"?player={text}", ACTS).json["id"] == card["id"]
    # With the token that only looks, no private field is shown or found.
    seen = look(desk, "player", f"?player={card['id']}").json
    assert seen == card | {
        "user": {key: card["user"][key] for key in card["user"] if key != "zone"}
    }
    assert look(desk, "player", f"?player={email}").status == 404
    games = look(desk, "running_games").json["games"]
    [game] = [game for game in games if game["id"] == card["seat"]["game"]]
    assert {player["name"] for player in game["players"]} == {ann.name, bob.name}
    ann.drop(), bob.drop()


def test_a_name_that_is_the_id_of_another_player_means_neither_of_them(desk):
    evader, second = desk.register(), desk.register()["user"]["username"]
    uid = evader["token"][:12]
    # This is as if the evader had registered a second account, and given it the id as its name.
    claim = desk.redis.hget(trivia.Keys.unique(second), second)
    desk.redis.hset(trivia.Keys.unique(trivia.fold(uid)), trivia.fold(uid), claim)
    desk.redis.hset(trivia.Keys.user(claim.split(" ")[0]), "username", uid)
    act(desk, "ban", player=uid).refused(409, "ambiguous")
    assert done(desk, "ban", player=evader["user"]["username"])["players"] == 1


def test_a_ban_closes_the_socket_and_refuses_sign_ins_until_it_is_undone(desk):
    phones = idle_phones(desk, 4)
    for phone in phones:
        dry = act(desk, "ban", dry=True, player=phone.name).json
        assert dry["players"] == 1 and "entry" not in dry
        banned = done(desk, "ban", player=phone.name, reason="insults", hours=2)
        phone.expect_close(4403)
        until_ms = int(banned["after"][":ban"].split(" ")[0])
        assert 0 < until_ms / 1000 - time.time() < 7300
        for answer in (login(desk, phone), desk.http("GET", "/users/me", token=phone.token)):
            problem = answer.refused(403, "banned")
            assert problem["until_ms"] == until_ms and problem["reason"] == "insults"
        assert refused_handshake(phone)[0] == 403
        entry = audit(desk)["acts"][0]
        assert (entry["who"], entry["act"], entry["outcome"]) == ("ann", "ban", "done")
        assert entry["before"] == {":ban": None} and entry["after"] == banned["after"]
        undone(desk, banned["entry"])
        assert login(desk, phone).status == 200
        phone.connect().expect("queued")
        act(desk, "undo", entry=banned["entry"]).refused(409, "changed_meanwhile")
        phone.drop()


def test_a_banned_player_in_a_browser_gets_the_close_code(desk):
    session = desk.register()
    name = session["user"]["username"]
    done(desk, "ban", player=name)
    protocols = ["trivia.v1", f"bearer.{session['token']}"]
    desk.phone(session=session, headers={}, subprotocols=protocols).expect_close(4403)
    done(desk, "unban", player=name)
    assert desk.http("GET", "/users/me", token=session["token"]).status == 200


def test_an_act_keeps_its_outcome_at_the_end_of_a_page_of_the_log(desk):
    entry = done(desk, "end_sessions", player=desk.register()["user"]["username"])["entry"]
    row = {"who": "ann", "act": "export", "target": ""} | dict.fromkeys(
        ("args", "before", "after"), "{}"
    )
    newer = [desk.redis.xadd(trivia.Keys.audit, row) for _ in range(trivia.AUDIT_PAGE - 1)]
    try:
        older = look(desk, "audit", f"?before={audit(desk)['before']}").json["acts"][0]
    finally:
        desk.redis.xdel(trivia.Keys.audit, *newer)
    assert (older["entry"], older["outcome"]) == (entry, "done")


def test_attempts_without_a_token_remove_nothing_from_the_log(desk):
    for i in range(25):
        path, away = f"/ops/act/stranger{i}", {"X-Forwarded-For": "192.0.2.99"}
        answer = desk.http("POST", path, {}, "no-token-of-an-operator", away)
        answer.refused(401, "not_authenticated")
    tried = [one for one in audit(desk)["refused"] if one["act"].startswith("stranger")]
    assert len(tried) == 20


def test_a_ban_ends_the_game_of_a_player_and_lifts_itself_in_time(desk):
    ann, bob = desk.pair(queue="rated")
    done(desk, "ban", player=ann.name, hours=1)
    ann.expect_close(4403)
    bob.expect("end")
    uid = look(desk, "player", f"?player={ann.name}").json["id"]
    desk.redis.hset(f"user:{{{uid}}}", ":ban", f"{int(time.time() * 1000) - 1} insults")
    assert login(desk, ann).status == 200
    bob.drop()


def test_a_banned_guest_gets_no_session(desk):
    secret = {"secret": "s" * 40}
    guest = desk.http("POST", "/auth/guest", secret).json
    done(desk, "ban", player=guest["user"]["username"])
    desk.http("POST", "/auth/guest", secret).refused(403, "banned")


def test_names_sessions_ratings_and_codes_can_be_set_and_most_of_it_undone(desk):
    session = desk.register()
    name, token = session["user"]["username"], session["token"]
    other = unique_name()
    renamed = done(desk, "rename", player=name, name=other)
    assert desk.http("GET", "/users/me", token=token).json["username"] == other
    assert desk.http("GET", f"/users/{name}").status == 404
    undone(desk, renamed["entry"])
    assert desk.http("GET", f"/users/{name}").status == 200
    taken = desk.register()["user"]["username"]
    act(desk, "rename", player=name, name=taken).refused(409, "username_taken")
    act(desk, "rename", player=name, name="\x00").refused(422, "invalid")

    uid = look(desk, "player", f"?player={name}").json["id"]
    desk.redis.hset(f"user:{{{uid}}}", mapping={"rating": "1650.5", ":sigma": "90"})
    reset = done(desk, "reset_rating", player=name)
    assert desk.http("GET", "/users/me", token=token).json["rating"] == 1500
    undone(desk, reset["entry"])
    assert desk.http("GET", "/users/me", token=token).json["rating"] == 1651

    code = done(desk, "reset_code", player=name)["code"]
    body = {"login": name, "code": code, "password": PASSWORD}
    token = desk.http("POST", "/auth/reset", body).json["token"]
    ended = done(desk, "end_sessions", player=name)
    assert desk.http("GET", "/users/me", token=token).status == 401
    act(desk, "undo", entry=ended["entry"]).refused(409, "no_undo")
    assert code not in json.dumps(audit(desk))


def test_an_account_is_exported_and_erased_and_its_name_is_not_in_the_log(desk):
    session = desk.register()
    name = session["user"]["username"]
    export = done(desk, "export", player=name)
    assert export["user"]["username"] == name and export["ban"] is None
    act(desk, "erase", dry=True, player=name)
    assert desk.http("GET", f"/users/{name}").status == 200
    done(desk, "erase", player=f"{name}@example.org")
    assert desk.http("GET", f"/users/{name}").status == 404
    assert [entry["act"] for entry in audit(desk)["acts"][:2]] == ["erase", "export"]
    assert name not in json.dumps(audit(desk))


# ---- games


def test_a_void_game_does_not_count_and_a_stopped_game_does(desk):
    for name, reason, moves in (("void_game", "void", False), ("end_game", "stopped", True)):
        ann, bob = phones = desk.pair(queue="rated")
        question = ann.expect("question")
        game = question["game"]
        bob.expect("question")
        correct = look(desk, "game", f"?game={game}").json["shown"][0]["correct"]
        ann.send("answer", round=1, choice=correct)
        for phone in (ann, bob):
            phone.expect("answered") if phone is bob else None
        bob.send("answer", round=1, choice=1 - min(correct, 1))
        bob.expect("reveal")
        assert act(desk, name, dry=True, game=game).json["players"] == 2
        done(desk, name, game=game)
        for phone in phones:
            end = phone.expect("end")
            assert end["reason"] == reason
            assert all((row["rating_change"] != 0) == moves for row in end["ranking"])
            me = desk.http("GET", "/users/me", token=phone.token).json
            assert (me["games"] == 1, me["rating"] != 1500) == (moves, moves)
        act(desk, name, game=game).refused(404, "not_found")
        ann.drop(), bob.drop()


# ---- switches


@pytest.fixture
def switched(desk):
    """The shared server; after the test all its switches are as before."""
    yield desk
    for name in list(look(desk, "switches").json["switches"]):
        kind, _, value = name.partition(" ")
        back = {
            "registration": {"closed": False},
            "maintenance": {"closed": False},
            "queue": {"queue": value, "closed": False},
            "version": {"app": value},
        }
        if kind in back:
            done(desk, kind, **back[kind])
        else:
            desk.redis.hdel("switches:{ops}", name)
    everywhere(desk, lambda: desk.http("GET", "/users/nobody-here").status == 404)


def everywhere(server, holds):
    """Waits until `holds` is true thirty times in a row, and so almost surely on each worker."""
    wait_until(lambda: all(holds() for _ in range(30)), 30)


def test_registration_is_closed_and_opened_on_all_workers(switched):
    closed = done(switched, "registration", closed=True, text="Back at noon.")

    def is_closed():
        guest = switched.http("POST", "/auth/guest", {"secret": unique_name() + "x" * 40})
        return guest.status == 503 and guest.json["code"] == "registration_closed"

    everywhere(switched, is_closed)
    name = unique_name()
    account = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    problem = switched.http("POST", "/auth/register", account).refused(503, "registration_closed")
    assert problem["detail"] == "Back at noon."
    undone(switched, closed["entry"])
    everywhere(switched, lambda: not is_closed())
    assert switched.http("POST", "/auth/register", account).status == 201


def test_a_closed_queue_admits_no_players_and_its_games_go_on(switched):
    ann, bob = switched.pair()
    waiting = idle_phones(switched, 3)
    for phone in waiting:
        phone.expect("queued")
    assert act(switched, "queue", dry=True, queue="party", closed=True).json["players"] == 3
    done(switched, "queue", queue="party", closed=True, text="Mending it.")
    done(switched, "queue", queue="random", closed=True)
    for phone in waiting:
        assert phone.expect("cancelled")["reason"] == "closed"
        phone.send("join", queue="party")
        assert phone.expect("error")["message"] == "Mending it."
        phone.send("join", queue="solo")
        phone.expect("start")
        phone.drop()
    newcomer = switched.phone(connected=False)
    status, problem = refused_handshake(newcomer)
    assert (status, problem["code"]) == (503, "queue_closed")
    ann.drop()
    bob.expect("user_exit")
    ann.connect().expect("update")
    ann.drop(), bob.drop()


def test_an_app_that_is_too_old_is_told_where_to_get_a_new_version(switched):
    old, new = {"X-App": "shop", "X-Version": "1.9.3"}, {"X-App": "shop", "X-Version": "1.10"}
    session = switched.register()
    queries = "party?app=shop&version=1.9", "party?app=other&version=1", "party"
    phones = [switched.phone(queue=query) for query in queries]
    wait_until(lambda: look(switched, "switches").json["apps"] == {"shop 1.9": 1, "other 1": 1})
    arguments = {"app": "shop", "least": "1.10.0", "store": STORE}
    assert act(switched, "version", dry=True, **arguments).json["players"] == 1
    done(switched, "version", **arguments)
    phones[0].expect_close(4426)
    assert phones[0].socket.protocol.close_reason == STORE

    def is_refused():
        answer = switched.http("GET", "/users/me", token=session["token"], headers=old)
        return answer.status == 426 and answer.json["store"] == STORE

    everywhere(switched, is_refused)
    assert switched.http("GET", "/users/me", token=session["token"], headers=new).status == 200
    assert switched.http("GET", "/users/me", token=session["token"]).status == 200
    status, problem = refused_handshake(phones[0])
    assert (status, problem["code"], problem["store"]) == (426, "app_too_old", STORE)
    for phone in phones[1:]:
        phone.drop()


def test_a_message_reaches_connected_players_and_those_who_connect_later(switched):
    phones = idle_phones(switched, 4)
    wait_until(lambda: act(switched, "announce", dry=True, text="x").json["players"] >= 4)
    done(switched, "announce", text="A new season begins.")
    phones.append(switched.phone(queue="party"))
    for phone in phones:
        notice = phone.expect("notice", text="A new season begins.")
        assert notice["code"] == "message"
        assert notice["until_ms"] > time.time() * 1000
        phone.drop()


def test_maintenance_is_announced_then_admits_no_players_and_ends_after_the_games(switched):
    ann, bob = switched.pair()
    waiting = switched.phone(queue="party")
    done(switched, "maintenance", closed=True, seconds=3600, text="We move.")
    for phone in (ann, bob, waiting):
        notice = phone.expect("notice", code="maintenance")
        assert notice["until_ms"] > time.time() * 1000
    done(switched, "maintenance", closed=True, seconds=0, text="We move.")
    waiting.expect_close(1013)
    assert refused_handshake(waiting)[1]["code"] == "maintenance"
    ann.drop()
    ann.connect().expect("update")  # a game goes on
    ann.send("leave")
    for phone in (ann, bob):
        phone.expect("end")
        phone.expect_close(1013)


def test_switches_bans_and_the_log_outlive_killed_workers(switched):
    phones = idle_phones(switched, 2)
    done(switched, "registration", closed=True)
    banned = done(switched, "ban", player=phones[0].name)
    for child in psutil.Process(switched.process.pid).children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    account = {"username": unique_name(), "email": "a@example.org", "password": PASSWORD}

    def is_up():
        try:
            return switched.http("GET", "/health/ready").status == 200
        except OSError:
            return False

    wait_until(is_up, 60)
    everywhere(switched, is_up)
    switched.http("POST", "/auth/register", account).refused(503, "registration_closed")
    login(switched, phones[0]).refused(403, "banned")
    assert banned["entry"] in [entry["entry"] for entry in audit(switched)["acts"]]
    undone(switched, banned["entry"])
    phones[0].connect().expect("queued")
    phones[0].drop()


# ---- questions


def quiz_rows(server, query=""):
    rows = look(server, "questions", query or "?text=Which%20one%20is%20it").json["questions"]
    return {row["id"]: row for row in rows}


def play_quiz(server, wanted):
    """Plays a game of two, in which each player takes the choices that begin with their word.

    Returns the phones, the first `end` message, and the texts of the questions.
    """
    phones, asked = server.pair(queue="quiz"), []
    for number in range(1, 4):
        for phone, word in zip(phones, wanted, strict=True):
            question = phone.expect("question")
            choice = [text.startswith(word) for text in question["choices"]].index(True)
            phone.send("answer", round=number, choice=choice)
        asked.append(question["text"])
        for phone in phones:
            phone.expect("reveal")
    ends = [phone.expect("end") for phone in phones]
    for phone in phones:
        phone.drop()
    return phones, ends[0], asked


def test_answers_are_counted_by_question(desk):
    _, _, asked = play_quiz(desk, ["key", "wrong"])
    asked = {f"quiz-{text[-2]}" for text in asked}
    wait_until(lambda: all(quiz_rows(desk)[key]["choices"][f"wrong {key[-1]}"] for key in asked))
    for key in asked:
        row = quiz_rows(desk)[key]
        assert row["right"] == row["choices"][f"key {key[-1]}"] and row["median_ms"]
        assert row["shown"] >= 2


def test_four_lists_show_questions_with_problems(desk):
    times = " ".join(["40"] + ["0"] * 10)
    rows = [  # shown, percent of the other questions right (sums), times, choices
        f"40 0 2000 {times} 0 30 10",
        f"40 2000 0 {times} 40",
        f"40 1000 1800 {times} 20 20",
        f"40 1800 1000 {times} 20 20",
    ]
    ids = {key: row.split(" ")[0] for key, row in desk.redis.hgetall("ids:{bank}").items()}
    chosen = sorted(ids.keys() - QUIZ_IDS)[:4]
    sums = {ids[key]: row for key, row in zip(chosen, rows, strict=True)}
    desk.redis.hset("stats:{bank}", mapping=sums)
    on = lambda name: [key for key in chosen if key in quiz_rows(desk, f"?list={name}")]
    assert on("nobody_right") == chosen[:1]
    assert on("everybody_right") == chosen[1:2]
    assert on("better_players_fail") == chosen[2:3]
    assert on("flagged") == []
    desk.redis.hdel("stats:{bank}", *sums)


QUIZ_IDS = {item["id"] for item in QUIZ}


def test_a_question_can_be_flagged_after_its_reveal_and_once_by_each_player(desk):
    ann, bob = desk.pair(queue="quiz")
    question = ann.expect("question")
    bob.expect("question")
    ann.refused("not_revealed", "flag", round=1)
    ann.refused("not_revealed", "flag", round=2)
    for phone in (ann, bob):
        phone.send("answer", round=1, choice=0)
    ann.expect("reveal")
    bob.expect("reveal")
    for _ in range(2):
        ann.send("flag", round=1)
    bob.send("leave")
    ann.expect("end")
    bob.expect("end")
    bob.send("flag", round=1)
    flagged = lambda: [
        row["flags"]
        for row in quiz_rows(desk, "?list=flagged").values()
        if row["text"] == question["text"]
    ]
    wait_until(lambda: flagged() == [2])
    desk.phone(queue="party").refused("wrong_state", "flag", round=1)
    ann.drop(), bob.drop()


def test_a_question_is_edited_and_retired_without_effect_on_running_games(desk):
    ann, bob = phones = desk.pair(queue="quiz")
    for phone in phones:
        question = phone.expect("question")
    key = f"quiz-{question['text'][-2]}"
    other = next(iter(QUIZ_IDS - {key}))
    arguments = {"question": key, "text": "Which one was it?", "wrong": "true x | wrong x | more"}
    edited = done(desk, "edit_question", **arguments)
    assert edited["before"]["question"] == question["text"]
    ann.drop()
    bob.expect("user_exit")
    assert ann.connect().expect("update")["question"]["text"] == question["text"]
    act(desk, "edit_question", question=key, wrong="a | a").refused(422, "invalid")
    act(desk, "edit_question", question="no-such", text="x").refused(404, "not_found")
    act(desk, "retire_question", question="no-such", retired=True).refused(404, "not_found")
    retired = done(desk, "retire_question", question=other, retired=True)
    act(desk, "retire_question", question=key, retired=True).refused(409, "too_few_questions")
    for phone in phones:
        phone.drop()

    def asked():
        _, end, texts = play_quiz(desk, ["key", "true"])
        return {texts[i][:17] for i in range(3)} | {f"quiz-{text[-2]}" for text in texts}

    found = asked()
    assert other not in found and "Which one was it?" in found
    undone(desk, retired["entry"])
    undone(desk, edited["entry"])
    assert quiz_rows(desk)[key]["text"] == question["text"]
    assert not quiz_rows(desk)[other]["retired"]
    act(desk, "undo", entry=edited["entry"]).refused(409, "changed_meanwhile")


def test_the_repair_of_a_wrong_key_corrects_points_wins_ratings_and_leaderboards(desk):
    phones, end, asked = play_quiz(desk, ["key", "true"])
    ann, bob = phones
    game = end["game"]
    assert end["ranking"][0]["player"] == ann.name
    me = lambda phone: desk.http("GET", "/users/me", token=phone.token).json
    record = lambda: desk.http("GET", f"/games/{game}", token=bob.token).json
    before = {phone.name: me(phone)["rating"] for phone in phones}
    assert (me(ann)["wins"], me(bob)["wins"]) == (1, 0)
    keys = [f"quiz-{text[-2]}" for text in asked]
    act(desk, "repair_question", question=keys[0], right="no answer").refused(422, "invalid")
    entries = []
    for n, key in enumerate(keys[:2], 1):
        right = f"true {key[-1]}"
        dry = act(desk, "repair_question", dry=True, question=key, right=right).json
        assert dry["players"] >= 2 and dry["after"]["games"] >= 1
        entries.append(done(desk, "repair_question", question=key, right=right)["entry"])
        scores = {ann.name: 300 - 100 * n, bob.name: 100 * n}
        told = lambda: {row["player"]: row["score"] for row in record()["ranking"]}
        wait_until(lambda: told() == scores, 30)
    shown = record()
    assert shown["rounds"][0]["choices"][shown["rounds"][0]["correct"]].startswith("true")
    assert shown["ranking"][0]["player"] == bob.name
    wait_until(lambda: (me(ann)["wins"], me(bob)["wins"]) == (0, 1))
    assert me(ann)["rating"] < before[ann.name] and me(bob)["rating"] > before[bob.name]
    assert abs(me(bob)["rating"] - before[ann.name]) < 0.01  # as if Bob had won in the first place
    board = desk.http("GET", "/leaderboards/rating?limit=100").json["entries"]
    ranked = {row["username"]: row["value"] for row in board}
    assert ranked[bob.name] == me(bob)["rating"]
    for entry in reversed(entries):
        undone(desk, entry)
    wait_until(lambda: (me(ann)["wins"], me(bob)["wins"]) == (1, 0), 30)
    wait_until(lambda: abs(me(ann)["rating"] - before[ann.name]) < 0.01)
    wait_until(lambda: record()["ranking"][0]["score"] == 300, 30)


# ---- reports


def reported(server, target, reason="cheating", **body):
    """Reports something as a new player, and returns the id of the report."""
    body = {"reason": reason} | (body or {"player": target})
    answer = server.http("POST", "/reports", body, server.register()["token"])
    assert answer.status == 201, answer.body
    return answer.json["id"]


def open_reports(server):
    return [row["id"] for row in look(server, "reports").json["reports"]]


def test_reports_are_listed_in_order_and_each_shows_its_game(desk):
    ann, bob = desk.pair()
    play_all((ann, bob))
    game = ann.frames[-1]["game"]
    sent = {"player": bob.name, "reason": "cheating", "game": game, "text": "a bot"}
    first = desk.http("POST", "/reports", sent, ann.token).json["id"]
    others = [reported(desk, desk.register()["user"]["username"], "name") for _ in range(2)]
    listed = look(desk, "reports").json
    mine = [row["id"] for row in listed["reports"] if row["id"] in (first, *others)]
    assert mine == [first, *others] and listed["total"] >= 3
    start = listed["total"] - 1
    assert look(desk, "reports", f"?start={start}").json["reports"][0]["id"] == others[-1]
    shown = look(desk, "report", f"?report={first}").json
    assert shown["name"] == shown["shown"]["username"] == bob.name and shown["text"] == "a bot"
    assert len(shown["transcript"]["rounds"]) == 3
    assert sorted(shown["transcript"]["players"]) == ["player", "reporter"]
    for one in (first, *others):
        done(desk, "close_report", report=one)
    assert not set(open_reports(desk)) & {first, *others}
    closed = look(desk, "reports", "?state=closed").json["reports"]
    assert [row["outcome"] for row in closed if row["id"] == first] == ["dismissed"]
    act(desk, "close_report", report=first).refused(404, "not_found")


def test_an_act_closes_all_reports_about_its_target_and_both_can_be_undone(desk):
    phone = desk.phone(queue="party")
    about = [reported(desk, phone.name) for _ in range(2)]
    stranger = reported(desk, desk.register()["user"]["username"])
    planned = act(desk, "ban", dry=True, player=phone.name, report=about[0]).json
    assert planned["players"] == 1 and set(about) <= set(open_reports(desk))
    banned = done(desk, "ban", player=phone.name, reason="cheats", report=about[0])
    phone.expect_close(4403)
    assert not set(about) & set(open_reports(desk)) and stranger in open_reports(desk)
    entry = audit(desk)["acts"][0]
    assert (entry["act"], entry["entry"]) == ("close_report", banned["closed"])
    assert entry["after"] == {"outcome": "ban", "reports": about} and entry["who"] == "ann"
    assert phone.name not in json.dumps(entry), "the log is kept longer than names"
    undone(desk, banned["closed"])
    assert set(about) <= set(open_reports(desk))
    undone(desk, banned["entry"])
    assert login(desk, phone).status == 200
    act(desk, "undo", entry=banned["closed"]).refused(409, "changed_meanwhile")
    act(desk, "ban", player=phone.name, report="no-such-one!").refused(422, "invalid")
    act(desk, "ban", player=phone.name, report="nosuchreport").refused(404, "not_found")
    assert login(desk, phone).status == 200, "an act with an unknown report bans no player"
    done(desk, "close_report", report=about[0], others=True)
    done(desk, "close_report", report=stranger)


def test_a_reported_question_is_retired_and_its_reports_are_closed(desk):
    text = QUIZ[0]["question"]
    about = [reported(desk, None, "wrong", question=text) for _ in range(2)]
    shown = look(desk, "report", f"?report={about[0]}").json
    assert (shown["kind"], shown["target"], shown["name"]) == ("question", "quiz-0", text)
    retired = done(desk, "retire_question", question="quiz-0", retired=True, report=about[1])
    assert not set(about) & set(open_reports(desk))
    undone(desk, retired["entry"])


def test_a_closed_report_is_deleted_with_the_account_or_after_a_while(desk):
    session = desk.register()
    report = reported(desk, session["user"]["username"])
    done(desk, "close_report", report=report)
    assert 0 < desk.redis.ttl(Keys.report(report)) <= trivia.HANDLED_S
    done(desk, "erase", player=session["user"]["username"])
    assert not desk.redis.exists(Keys.report(report))
    assert desk.redis.zscore(Keys.handled, report) is None


# ---- the log and the command line


def shell(server, *words):
    env = server.env | {"USER": "carla"}
    env.pop("SUDO_USER", None)
    return trivia_py("ops", *words, env=env)


def test_the_command_line_looks_and_acts_like_the_routes(desk):
    phone = desk.phone(queue="party")
    dry = shell(desk, "ban", f"player={phone.name}", "hours=1", "--dry-run")
    assert json.loads(dry.stdout)["players"] == 1, dry.stderr
    banned = json.loads(shell(desk, "ban", f"player={phone.name}", "hours=1").stdout)
    phone.expect_close(4403)
    entry = audit(desk)["acts"][0]
    assert (entry["entry"], entry["who"]) == (banned["entry"], "carla@shell")
    card = json.loads(shell(desk, "player", f"player={phone.name}").stdout)
    assert card["ban"]["until_ms"]
    wrong = shell(desk, "ban", "player=nobody-of-this-name")
    assert wrong.returncode == 1 and wrong.stderr == "ops ban: There is no such player.\n"


def test_the_log_is_bounded_and_refused_attempts_remove_no_acts(desk):
    client = desk.redis
    marker = done(desk, "announce", text="marker")["entry"]
    with client.pipeline() as pipe:
        for _ in range(1200):
            pipe.xadd("refused:{ops}", {"who": "-", "act": "ban", "code": "x"})
        pipe.execute()
    act(desk, "ban", token="wrong-token-of-good-length", player="x")
    assert client.xlen("refused:{ops}") == 1000
    assert marker in [entry["entry"] for entry in audit(desk)["acts"]]
    client.hdel("switches:{ops}", "message")


def test_an_invalid_variable_ends_the_start_with_one_line():
    for value in ("short", "ann:short", f"an n:{ACTS}", ACTS):
        ended = trivia_py("check", env=os.environ | {"TRIVIA_OPS_ACT_TOKEN": value})
        assert ended.returncode == 1 and ended.stderr.startswith("TRIVIA_OPS_ACT_TOKEN: found ")
        assert len(ended.stderr.splitlines()) == 1 and value not in ended.stderr
