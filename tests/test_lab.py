"""The lab: an opponent that the server plays, and scripted faults on a phone's own connection."""

import importlib.util
import time

import pytest
from websockets.exceptions import ConnectionClosed

import trivia
from conftest import ROOT, Server, edited_schema, wait_until
from test_end_to_end import UVICORN, run

spec = importlib.util.spec_from_file_location("lab", ROOT / "examples" / "lab.py")
lab_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lab_module)


@pytest.fixture(scope="module")
def lab():
    running = Server(edited_schema(), env={"TRIVIA_LAB": "1"})
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def enter(lab):
    """Makes phones that play in the lab by a script."""
    made = []

    def enter(script, by="message"):
        phone = lab.phone(connected=False)
        if by == "address":
            phone.connect(f"lab?script={script}")
        else:
            phone.connect("rated")
            phone.expect("queued")
            phone.send("leave")
            phone.expect("cancelled")
            phone.send("join", queue="lab", script=script)
        made.append(phone)
        return phone

    yield enter
    for phone in made:
        phone.close()


def question(phone, number):
    """Answers the questions before question `number`, and returns that question."""
    while (frame := phone.expect("question", 20))["round"] < number:
        phone.send("answer", round=frame["round"], choice=0)
    return frame


def counted(phone, frames=slice(None)):
    """Returns the seq of the game's messages, in the order of arrival, without updates."""
    return [
        frame["seq"]
        for frame in phone.frames[frames]
        if "seq" in frame and frame["type"] != "update"
    ]


def test_a_game_in_the_lab_changes_no_rating_history_or_leaderboard(lab, enter):
    phone = enter("latency=20")
    start = phone.expect("start")
    assert start["queue"] == "lab" and len(start["players"]) == 2
    end = phone.play()
    assert (
        end["reason"] == "finished"
        and len(end["ranking"]) == 2
        and "rating" not in end["ranking"][0]
    )
    assert counted(phone) == list(range(1, len(counted(phone)) + 1))
    me = lab.http("GET", "/users/me", token=phone.token).json
    assert (me["games"], me["wins"], me["rating"]) == (0, 0, 1500)
    assert lab.http("GET", "/users/me/games", token=phone.token).json["games"] == []
    assert lab.http("GET", "/leaderboards/rating").json["total"] == 0
    assert lab.http("GET", f"/games/{start['game']}", token=phone.token).json["queue"] == "lab"
    other = next(
        player["username"] for player in start["players"] if player["username"] != phone.name
    )
    wait_until(lambda: lab.http("GET", f"/users/{other}").status == 404)
    game = next(key for key in lab.redis.keys("game:*") if key.endswith(start["game"]))
    players = trivia.parse_plan(lab.redis.hget(game, "plan"))["players"]
    [uid] = [uid for uid, name in players if name == other]
    wait_until(
        lambda: not lab.redis.exists(f"user:{{{uid}}}", f"seen:{{{uid}}}", f"history:{{{uid}}}")
    )
    phone.send("join")
    assert phone.expect("start")["game"] != start["game"], (
        "a join without a script starts a new game"
    )


def test_two_players_in_the_lab_do_not_meet_each_other(enter):
    one, two = enter("silent"), enter("silent")
    games = {phone.expect("start")["game"] for phone in (one, two)}
    assert len(games) == 2
    for phone in (one, two):
        assert {player["username"] for player in phone.frames[-1]["players"]} >= {phone.name}


def test_drop_breaks_the_connection_and_the_game_is_resumed(enter):
    phone = enter("drop@2")
    with pytest.raises(ConnectionClosed):
        question(phone, 2)
    assert phone.socket.protocol.close_code == 1006
    update = phone.connect("lab?script=drop@2").expect("update")
    assert update["round"] == 2 and update["phase"] == "question"
    phone.send("answer", round=2, choice=0)
    assert question(phone, 3)["round"] == 3, "the script drops the connection only once"


def test_deploy_closes_the_connection_with_1012_and_the_game_is_resumed(enter):
    phone = enter("deploy@1")
    phone.expect_close(1012)
    assert phone.connect("lab").expect("update")["round"] == 1


def test_lose_leaves_a_gap_that_check_closes(enter):
    phone = enter("lose@3")
    question(phone, 1)
    phone.send("answer", round=1, choice=0)
    while counted(phone)[-1] < 4:
        phone.receive()
    assert counted(phone) == [1, 2, 4]
    phone.send("check")
    assert phone.expect("update")["seq"] >= 4


def test_unavailable_refuses_an_answer_once(enter):
    phone = enter("unavailable@1")
    question(phone, 1)
    phone.refused("unavailable", "answer", round=1, choice=0)
    phone.send("answer", round=1, choice=1)
    assert phone.expect("reveal")["answers"][phone.name]["choice"] == 1


def test_latency_delays_messages_in_both_directions(enter):
    phone = enter("latency=400")
    phone.expect("start")
    began = time.monotonic()
    phone.send("ping", client_ms=1)
    phone.expect("pong")
    assert time.monotonic() - began >= 0.8


def test_duplicate_sends_every_message_of_the_game_twice(enter):
    phone = enter("duplicate")
    question(phone, 1)
    phone.send("answer", round=1, choice=0)
    phone.expect("reveal"), phone.expect("reveal")
    seqs = counted(phone)
    assert seqs == sorted(seqs) and seqs[:6] == [1, 1, 2, 2, 3, 3]


def test_reorder_swaps_messages_and_loses_none(enter):
    phone = enter("reorder")
    phone.play()
    seqs = counted(phone)
    assert sorted(seqs) == list(range(1, len(seqs) + 1)) and seqs != sorted(seqs)


def test_a_silent_opponent_never_answers(enter):
    phone = enter("silent")
    question(phone, 1)
    phone.send("answer", round=1, choice=0)
    assert phone.expect("reveal", 20)["answers"].keys() == {phone.name}
    assert all(frame["type"] != "answered" for frame in phone.frames)


def test_a_slow_opponent_answers_late(enter):
    phone = enter("slow")
    asked = question(phone, 1)
    phone.send("answer", round=1, choice=0)
    answers = phone.expect("reveal", 20)["answers"]
    assert max(answer["ms"] for answer in answers.values()) > asked["answer_ms"] * 0.7


def test_an_opponent_leaves_and_returns_by_script(enter):
    phone = enter("away@1")
    gone = phone.expect("user_exit")
    assert gone["returns_ms"] > 0 and phone.expect("user_return")["player"] == gone["player"]


def test_an_opponent_leaves_for_good_by_script(enter):
    phone = enter("leave@1")
    assert phone.expect("user_exit")["returns_ms"] == 0
    phone.send("answer", round=1, choice=0)
    question(phone, 2)


@pytest.mark.parametrize(
    "script", ["drop", "drop=3", "latency@3", "latency=", "silent@1", "whatever@2", "drop@3&silent"]
)
def test_an_invalid_script_is_refused_with_the_list_of_words(enter, script):
    error = enter(script).expect("error")
    assert error["code"] == "bad_script" and "latency=MS" in error["message"]


def test_an_invalid_script_in_the_address_joins_no_queue(enter):
    phone = enter("whatever@2", by="address")
    assert phone.expect("error")["code"] == "bad_script"
    phone.send("join", script="latency=20", id=1)
    phone.expect("start")
    assert [frame["type"] for frame in phone.frames[-4:]] == ["error", "queued", "start"]


def test_an_invalid_script_in_a_join_names_the_message_and_keeps_the_last_script(enter):
    phone = enter("silent")
    phone.expect("start")
    phone.send("leave")
    phone.expect("cancelled")
    phone.send("join", script="nonsense", id="mine")
    assert phone.expect("error")["id"] == "mine"
    phone.send("join")
    question(phone, 1)
    phone.send("answer", round=1, choice=0)
    assert phone.expect("reveal", 20)["answers"].keys() == {phone.name}


def test_a_join_that_the_server_refuses_keeps_the_script(enter):
    phone = enter("silent")
    question(phone, 1)
    phone.refused("wrong_state", "join", script="drop@2")
    phone.send("answer", round=1, choice=0)
    assert question(phone, 2)["round"] == 2


def test_the_account_of_the_opponent_is_erased_when_the_server_stops(make_server):
    server = make_server(edited_schema(), env={"TRIVIA_LAB": "1"})
    phone = server.phone(queue="lab")
    players = phone.expect("start")["players"]
    server.stop()
    phone.close()
    server.start()
    (other,) = (player["username"] for player in players if player["username"] != phone.name)
    server.http("GET", f"/users/{other}").refused(404, "not_found")


def test_the_words_of_a_script_are_separated_by_commas_semicolons_or_spaces():
    assert lab_module.parse_script(" drop@3, latency=800;silent ") == {
        "drop": 3,
        "latency": 800,
        "silent": 1,
    }
    assert lab_module.parse_script("") == {}


def test_the_documents_list_the_words_of_a_script(lab):
    described = lab.http("GET", "/docs/asyncapi.json").body
    assert all(word in described for word in lab_module.FAULTS)


def test_without_the_environment_variable_there_is_no_lab(server):
    assert "lab" not in [queue["name"] for queue in server.http("GET", "/queues").json["queues"]]
    assert "drop@N" not in server.http("GET", "/docs/asyncapi.json").body
    phone = server.phone()
    phone.expect("queued")
    phone.refused("invalid_message", "join", queue="random", script="drop@1")
    phone.close()
    # The other tests share this server, so the queue must be empty again.
    wait_until(lambda: not server.redis.exists("queue:{lobby}:random"))


@pytest.mark.parametrize(
    "value, edit, says",
    [
        ("yes", lambda tree: None, "TRIVIA_LAB: found yes; expected 1 or 0"),
        (
            "1",
            lambda tree: tree["queues"].update(lab=tree["queues"]["random"]),
            "queues.lab: found a name that can't be used",
        ),
        (
            "",
            lambda tree: tree["queues"].update(lab=tree["queues"]["random"]),
            "queues.lab: found a name that can't be used",
        ),
    ],
)
def test_a_lab_that_can_not_start_is_refused_with_one_line(tmp_path, value, edit, says):
    (tmp_path / "schema.yaml").write_text(edited_schema(edit), "utf-8")
    schema, data = str(tmp_path / "schema.yaml"), str(tmp_path)
    code, printed = run(UVICORN, TRIVIA_LAB=value, TRIVIA_SCHEMA=schema, TRIVIA_DATA=data)
    assert code == 1 and says in printed and "Traceback" not in printed, printed
