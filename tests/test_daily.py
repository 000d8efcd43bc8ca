"""The daily questions, and the streaks that they make."""

import asyncio
import itertools
import json
import random
import time
import zoneinfo
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed

import trivia
from conftest import ROOT, Server, at_once, clock_of, edited_schema, trivia_py, wait_until

DAY_S, HOUR_S = 86_400, 3600
NEVER = 60
ACTS = "token-that-acts-too"


def add_queues(tree):
    slow = tree["queues"]["daily"] | {"answer_seconds": NEVER, "reveal_seconds": 0.05}
    tree["queues"] |= {"slow": slow, "other": dict(slow)}
    tree["limits"]["registrations"] = 100_000


@pytest.fixture(scope="module")
def house():
    """A server with three daily queues: `daily`, `slow` and `other`."""
    running = Server(edited_schema(add_queues), env={"TRIVIA_OPS_ACT_TOKEN": f"ann:{ACTS}"})
    try:
        yield running.start()
        assert "Traceback" not in running.log, running.log[-5000:]
    finally:
        running.close()


def uid_of(phone):
    return phone.token[:12]


def me(house, phone):
    return house.http("GET", "/users/me", token=phone.token).json


def right_choice(house, question):
    """Returns the right choice by the latest version of a question in the bank."""
    bank = {
        n: json.loads(row)
        for n, row in house.redis.hgetall(trivia.Keys.bank).items()
        if n.isdigit()
    }
    versions = [int(n) for n, row in bank.items() if row[0] == question["text"]]
    return question["choices"].index(bank[str(max(versions))][1][0]) if versions else None


def questions_of(phone):
    shown = [frame for frame in phone.frames if frame["type"] == "question"]
    return [(frame["text"], frame["choices"]) for frame in shown]


def today():
    return datetime.now(UTC).strftime("%Y-%m-%d")


def act(house, name, dry=False, **arguments):
    answer = house.http("POST", f"/ops/act/{name}" + "?dry_run=1" * dry, arguments, ACTS)
    assert answer.status == 200, answer.body
    return answer.json


# -- a day


def test_the_repair_of_a_wrong_answer_key_corrects_daily_points_boards_and_later_games(house):
    ann, bob = house.phone(queue="daily"), house.phone(queue="daily")
    first = ann.play(lambda question: right_choice(house, question))
    bob.play(lambda question: (right_choice(house, question) + 1) % len(question["choices"]))
    text, choices = questions_of(ann)[0]
    listed = house.http("GET", f"/ops/look/questions?{urlencode({'text': text})}", token=ACTS)
    [question] = [row for row in listed.json["questions"] if row["text"] == text]
    key, wrong = choices[right_choice(house, {"text": text, "choices": choices})], None
    wrong = choices[(choices.index(key) + 1) % len(choices)]  # Bob's choice
    points = {phone: me(house, phone)["daily_points"] for phone in (ann, bob)}
    assert points[ann] >= 300 and points[bob] == 0
    change = {"question": question["id"], "right": wrong}
    planned = act(house, "repair_question", dry=True, **change)
    assert planned["players"] >= 2 and planned["after"]["daily_points"] >= 200
    entry = act(house, "repair_question", **change)["entry"]
    wait_until(lambda: me(house, bob)["daily_points"] >= 100, 40)
    lost = wait_until(lambda: points[ann] - me(house, ann)["daily_points"], 40)
    assert 100 <= lost <= 150
    board = house.http("GET", "/leaderboards/daily?around=me", token=bob.token).json["entries"]
    [shown] = [row["value"] for row in board if row["username"] == bob.name]
    assert shown == me(house, bob)["daily_points"]
    record = house.http("GET", f"/games/{first['game']}", token=ann.token).json
    assert record["ranking"][0]["score"] == me(house, ann)["daily_points"]
    late = house.phone(queue="daily")
    late.play(lambda question: question["choices"].index(wrong) if question["text"] == text else 0)
    reveal = next(frame for frame in late.frames if frame["type"] == "reveal")
    assert reveal["answers"][late.name]["points"] >= 100, "later games use the repaired key"
    assert questions_of(late)[0][0] == text
    act(house, "undo", entry=entry)
    wait_until(lambda: me(house, ann)["daily_points"] == points[ann], 40)
    wait_until(lambda: me(house, bob)["daily_points"] == 0, 40)
    assert me(house, ann)["streak"] == me(house, bob)["streak"] == 1


def test_all_players_get_the_same_questions_once_and_in_the_same_order(house):
    phones = [house.phone(queue="daily") for _ in range(3)]
    ends = [phone.play() for phone in phones]
    assert {end["reason"] for end in ends} == {"finished"}
    assert questions_of(phones[0]) == questions_of(phones[1]) == questions_of(phones[2])
    assert len(questions_of(phones[0])) == 3
    before = me(house, phones[0]), house.http("GET", "/leaderboards/daily").json
    for _ in range(2):
        phones[0].refused("already_played", "join", queue="daily")
    again = house.phone(session=phones[1].session, queue="daily")
    again.refused("already_played")
    assert (me(house, phones[0]), house.http("GET", "/leaderboards/daily").json) == before
    again.send("join", queue="solo")  # the socket stays usable
    again.expect("start", queue="solo")
    again.send("leave")


def test_a_player_may_reconnect_to_their_attempt_but_not_start_a_second_one(house):
    phone = house.phone(queue="slow")
    first = phone.expect("question")
    phone.drop()
    back = house.phone(session=phone.session, queue="slow")
    update = back.expect("update")
    assert update["question"]["choices"] == first["choices"] and update["left_ms"] <= NEVER * 1000
    back.send("leave")
    assert back.expect("end")["reason"] == "abandoned"
    back.refused("already_played", "join")
    assert me(house, back)["streak"] == 0  # they gave no answer


def test_many_joins_at_once_make_one_attempt(house):
    session = house.register()

    def connect(i):
        try:
            phone = house.phone(session=session, queue="slow")
            return phone.receive()["type"]
        except ConnectionClosed:
            return "replaced"

    at_once(6, connect)
    tried = house.redis.hget(trivia.Keys.tried("slow", today()), session["token"][:12])
    games = [
        key
        for key in house.redis.keys("game:*")
        if session["token"][:12] in str(house.redis.hget(key, "plan"))
    ]
    assert [key.split(":")[-1] for key in games] == [tried]


def test_a_daily_game_changes_only_points_and_streak(house):
    phone = house.phone(queue="daily")
    end = phone.play(lambda question: right_choice(house, question))
    score = end["ranking"][0]["score"]
    assert score >= 300 and end["ranking"] == [{"player": phone.name, "score": score, "rank": 1}]
    after = wait_until(lambda: me(house, phone)["streak"] and me(house, phone))
    assert (after["daily_points"], after["streak"]) == (score, 1)
    assert (after["games"], after["wins"], after["rating"]) == (0, 0, 1500)


def test_equal_points_share_a_rank_on_the_board_of_the_day(house):
    """It does not matter which player finished first."""
    people = [house.register() for _ in range(4)]
    points = dict(
        zip(
            [person["token"][:12] for person in people],
            [900_000, 800_000, 800_000, 700_000],
            strict=True,
        )
    )
    board = trivia.Keys.board("daily", today())
    house.redis.zadd(board, points)
    try:
        entries = house.http("GET", "/leaderboards/daily?limit=4").json["entries"]
        assert [entry["rank"] for entry in entries] == [1, 2, 2, 4]
        for offset, rank in ((1, 2), (2, 2), (3, 4)):
            page = house.http("GET", f"/leaderboards/daily?limit=1&offset={offset}").json
            assert [entry["rank"] for entry in page["entries"]] == [rank]
        third = next(
            person for person in people if person["user"]["username"] == entries[2]["username"]
        )
        around = house.http(
            "GET", "/leaderboards/daily?around=me&limit=1", token=third["token"]
        ).json
        assert [entry["rank"] for entry in around["entries"]] == [2]
    finally:
        house.redis.zrem(board, *points)


def test_a_game_that_ends_after_midnight_counts_for_the_day_of_its_questions(house):
    phone = house.phone(queue="other")
    game = phone.expect("start")["game"]
    [key] = house.redis.keys(f"game:*:{game}")
    plan = trivia.parse_plan(house.redis.hget(key, "plan"))
    assert plan["draw"][0] == today()
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
    plan["draw"][0] = yesterday
    house.redis.hset(key, "plan", trivia.write_plan(**plan))
    phone.play(lambda question: right_choice(house, question))
    board = wait_until(lambda: house.redis.hget(trivia.Keys.user(uid_of(phone)), "board:daily"))
    assert board.split(" ")[0] == yesterday
    assert not house.redis.zscore(trivia.Keys.board("daily", today()), uid_of(phone))


def test_a_game_over_midnight_counts_once_for_the_day_of_its_questions(make_server, tmp_path):
    """The clocks of the server and its Redis are set to just before midnight UTC."""
    midnight = (time.time() // DAY_S + 1) * DAY_S
    first, second = (
        datetime.fromtimestamp(midnight + shift, UTC).strftime("%Y-%m-%d") for shift in (-1, 0)
    )
    clock = tmp_path / "clock"

    def set_clock(before_s):
        clock.write_text(f"{midnight - before_s - time.time():+.0f}\n")

    set_clock(600)
    server = make_server(edited_schema(add_queues), env=clock_of(clock))
    ann = server.phone(queue="slow", connected=False)
    user, uid = trivia.Keys.user(uid_of(ann)), uid_of(ann)
    drawn = server.redis.hlen(trivia.Keys.draws)
    set_clock(5)
    ann.connect()
    game = ann.expect("question", round=1)["game"]
    [key] = server.redis.keys(f"game:*:{game}")
    assert trivia.parse_plan(server.redis.hget(key, "plan"))["draw"][0] == first
    ann.send("answer", round=1, choice=right_choice(server, ann.frames[-1]))
    ann.expect("question", round=2)

    wait_until(lambda: server.redis.time()[0] > midnight, 20)
    ann.drop()
    ann.connect()
    update = ann.expect("update")
    assert (update["game"], update["round"]) == (game, 2)
    ann.send("answer", round=2, choice=0)
    end = ann.play(lambda question: 0)
    points = end["ranking"][0]["score"]
    wait_until(lambda: server.redis.hget(user, "daily_points") == str(points))
    assert me(server, ann)["streak"] == 1
    assert server.redis.zscore(trivia.Keys.board("daily", first), uid) == points
    board = server.http("GET", "/leaderboards/daily").json
    assert (board["period"], board["entries"]) == (second, [])

    # The server notices a clock that jumps within DRAWS_S, and then draws one more day.
    wait_until(lambda: server.redis.hlen(trivia.Keys.draws) > drawn, 60)
    ann.send("join", queue="slow")
    ann.expect("question", round=1)
    ann.send("answer", round=1, choice=right_choice(server, ann.frames[-1]))
    end = ann.play(lambda question: right_choice(server, question))
    assert len({text for text, _ in questions_of(ann)}) == 6
    wait_until(lambda: me(server, ann)["streak"] == 2)
    gained = server.redis.zscore(trivia.Keys.board("daily", second), uid)
    assert gained == end["ranking"][0]["score"]
    assert server.redis.zscore(trivia.Keys.board("daily", first), uid) == points
    ann.refused("already_played", "join", queue="slow")


# -- what is hidden


def test_no_player_sees_questions_or_answers_before_they_have_played(house):
    played = house.phone(queue="other")
    game = played.expect("start")["game"]
    assert house.http("GET", f"/games/{game}", token=played.token).status == 404
    played.play()
    record = wait_until(lambda: house.http("GET", f"/games/{game}", token=played.token))
    assert [one["text"] for one in record.json["rounds"]] == [
        text for text, _ in questions_of(played)
    ]
    curious = house.register()
    house.http("GET", f"/games/{game}", token=curious["token"]).refused(404, "not_found")
    texts = [text for text, _ in questions_of(played)]
    for path in (
        f"/users/{played.name}",
        "/users/me/export",
        "/users/me/games",
        "/queues",
        "/leaderboards/daily",
    ):
        answer = house.http("GET", path, token=curious["token"])
        assert answer.status == 200 and not any(text in answer.body for text in texts), path


def bank_of(schema):
    """Returns a bank of the shipped questions, without Redis."""
    bank = trivia.Bank(None, schema)
    questions = list(trivia.read_question_file(trivia.QUESTION_FILE).questions.values())
    bank.questions = dict(enumerate(questions))
    bank.ids = {question.digest: number for number, question in bank.questions.items()}
    bank.reserve(frozenset(["-"]))
    return bank


def test_no_other_queue_asks_a_daily_question_or_its_correction():
    schema = trivia.Schema(trivia.read_schema(ROOT / "schema.yaml"))
    bank = bank_of(schema)
    drawn = random.Random(1).sample(list(bank.ids), 30)
    bank.reserve(frozenset(drawn))
    corrected = len(bank.questions)
    bank.questions[corrected] = bank.questions[bank.ids[drawn[0]]]
    bank.ids[drawn[0]] = corrected
    bank._fill_pools()
    hidden = {bank.ids[question] for question in drawn}
    for name, queue in schema.queues.items():
        assert hidden.isdisjoint(bank.pools[name]) != queue.is_daily, name
    everything_seen = b"\xff" * 1000
    for _ in range(50):
        assert hidden.isdisjoint(bank.pick("solo", [everything_seen]))


def test_check_refuses_a_bank_with_too_few_questions_for_daily_queues():
    schema = trivia.Schema(trivia.read_schema(ROOT / "schema.yaml"))
    questions = list(trivia.read_question_file(trivia.QUESTION_FILE).questions.values())
    assert not list(trivia.shortages(schema, questions))
    least = 30 + sum(q.spec["rounds"] for q in schema.queues.values() if not q.is_daily)
    assert not list(trivia.shortages(schema, questions[:least]))
    [(path, found, expected)] = trivia.shortages(schema, questions[: least - 1])
    assert path == ("queues", "daily") and found.startswith(f"{least - 1} questions")
    assert expected.startswith(f"at least {least}, for 3 days and the rounds of the other queues;")


def test_a_draw_leaves_enough_questions_for_each_other_queue():
    """This holds for a queue whose category has few questions to spare."""
    tree = trivia.read_schema(ROOT / "schema.yaml")
    bank = bank_of(trivia.Schema(tree))
    category = bank.questions[0].category
    few = [n for n, question in bank.questions.items() if question.category == category]
    others = [n for n in bank.questions if n not in few][:200]
    few = few[:12]
    tree["queues"]["narrow"] = tree["queues"]["solo"] | {"categories": [category], "rounds": 11}
    schema = trivia.Schema(tree)
    bank.schema, bank.reserved = schema, frozenset()
    bank.ids = {bank.questions[n].digest: n for n in few + others}
    bank._fill_pools()
    draws = trivia.Draws(None, schema, bank)
    for _ in range(20):
        draws.drawn = {}
        drawn = [trivia.parse_draw(draw)[1] for draw in draws._missing().values()]
        assert len(set(itertools.chain(*drawn))) == 30
        bank.reserve(frozenset(itertools.chain(*drawn)))
        assert len(bank.pools["narrow"]) in (11, 12)
        assert not set(bank.pools["narrow"]) & {bank.ids[one] for one in itertools.chain(*drawn)}
        bank.reserve(frozenset())


# -- draws


def with_draws(house, act):
    """Returns what act(draws, bank) returns. It runs in the test, on the Redis of the server."""

    async def run():
        schema = trivia.Schema(trivia.read_schema(house.data / "schema.yaml"))
        redis = trivia.Redis(f"unix://{house.data / 'd' / 'redis.sock'}", "", lambda events: None)
        await redis.connect()
        try:
            bank = trivia.Bank(redis, schema)
            await bank.load()
            return await act(trivia.Draws(redis, schema, bank), bank)
        finally:
            await redis.close()

    return asyncio.run(run())


def test_a_day_is_drawn_once_even_if_many_workers_draw_it(house):
    """Here many workers draw a new day at the same time."""

    async def draw(draws, bank):
        await draws.refresh()
        before = dict(draws.drawn)
        real = draws.day
        draws.day = lambda ahead=0: real(ahead + 1)
        others = [trivia.Draws(draws.redis, bank.schema, bank) for _ in range(8)]
        for other in others:
            other.day = draws.day
        await asyncio.gather(*(other.refresh() for other in others))
        return before, [other.drawn for other in others]

    before, drawn = with_draws(house, draw)
    assert all(one == drawn[0] for one in drawn) and before.items() < drawn[0].items()
    assert len(before) == 9 and len(drawn[0]) == 12
    days = {name: set(trivia.parse_draw(draw)[1]) for name, draw in drawn[0].items()}
    for one, other in itertools.combinations(days.values(), 2):
        assert one.isdisjoint(other)


def test_old_draws_are_deleted_and_later_ones_stay(house):
    house.redis.hset(
        trivia.Keys.draws, mapping={"daily 2001-01-01": '["",[]]', "gone 2999-01-01": '["",[]]'}
    )
    drawn = with_draws(house, lambda draws, bank: _refresh(draws))
    assert "daily 2001-01-01" not in drawn and "gone 2999-01-01" in drawn
    house.redis.hdel(trivia.Keys.draws, "gone 2999-01-01")


async def _refresh(draws):
    await draws.refresh()  # learns which day it is
    await draws.refresh()
    return draws.drawn


def test_the_draw_of_a_day_survives_a_restart_and_an_import(house, tmp_path):
    first = house.phone(queue="other")
    first.play()
    texts = [text for text, _ in questions_of(first)]
    file = tmp_path / "more.json"
    rows = [json.loads(row) for row in house.redis.hvals(trivia.Keys.bank) if row.startswith("[")]
    corrected = [row for row in rows if row[0] == texts[0]]
    text, (right, *wrong), category, difficulty = corrected[0]
    ids = {digest: number for digest, number in house.redis.hgetall(trivia.Keys.ids).items()}
    bank = house.redis.hgetall(trivia.Keys.bank)
    [known] = [
        key for key, entry in ids.items() if json.loads(bank[entry.split(" ")[0]])[0] == text
    ]
    item = {
        "id": known,
        "question": text + "!",
        "correct_answer": right,
        "incorrect_answers": wrong,
    }
    new = {"question": "Is this new?", "correct_answer": "yes", "incorrect_answers": ["no"]}
    more = {"category": category, "difficulty": difficulty}
    file.write_text(json.dumps([item | more, new | more]))
    done = trivia_py("import", "--update", file, env=house.env)
    assert done.returncode == 0, done.stdout + done.stderr
    house.stop()
    house.start()
    second = house.phone(queue="other")
    second.play()
    assert questions_of(second) == questions_of(first)
    house.phone(session=first.session, queue="other").refused("already_played")


def test_a_guests_attempt_counts_for_the_account_that_they_merge_into(house):
    phone = house.phone(queue="slow")
    phone.expect("start")
    account = house.register()
    guest, uid = uid_of(phone), account["token"][:12]

    async def merge(draws, bank):
        await draws.refresh()
        await draws.merge(guest, uid)
        await draws.merge(guest, uid)

    with_draws(house, merge)
    house.phone(session=account, queue="slow").refused("already_played")


def test_the_attempt_of_an_erased_player_is_deleted(house):
    phone, other = house.phone(queue="daily"), house.phone(queue="daily")
    key = trivia.Keys.tried("daily", today())
    for one in (phone, other):
        one.play()
        assert house.redis.hexists(key, uid_of(one))
    body = {"password": "correct horse"}
    assert house.http("DELETE", "/users/me", body, phone.token).status == 204
    done = trivia_py("ops", "erase", f"player={uid_of(other)}", env=house.env)
    assert done.returncode == 0, done.stderr
    for one in (phone, other):
        assert not house.redis.hexists(key, uid_of(one))


# -- streaks on a server


def test_a_phone_sets_the_time_zone_of_its_player(house):
    session = house.register(zone="Pacific/Auckland")
    assert session["user"]["zone"] == "Pacific/Auckland"
    public = house.http("GET", f"/users/{session['user']['username']}").json
    assert "zone" not in public and public["streak"] == 0
    for wrong in ("Europe/Atlantis", "../../etc/passwd", "UTC+1", "europe/berlin ", ""):
        refused = house.http("PATCH", "/users/me", {"zone": wrong}, session["token"])
        assert "time zone" in str(refused.refused(422, "invalid")["errors"]["zone"]), wrong
    assert house.http("PATCH", "/users/me", {"zone": "Asia/Tokyo"}, session["token"]).status == 200


@pytest.mark.parametrize("hours_ago,shown,after", [(20, 5, 6), (80, 0, 1)])
def test_a_streak_continues_or_starts_again(house, hours_ago, shown, after):
    session = house.register()
    played = int(time.time()) - hours_ago * HOUR_S
    streak = trivia.Streak(5, played // DAY_S - (hours_ago == 20), played, 0)
    key = trivia.Keys.user(session["token"][:12])
    house.redis.hset(key, ":streak", streak.write())
    assert house.http("GET", "/users/me", token=session["token"]).json["streak"] == shown
    phone = house.phone(session=session, queue="daily")
    phone.play()
    wait_until(lambda: me(house, phone)["streak"] == after)


# -- streaks of travellers


ZONES = sorted(trivia.zone_names() - {"Factory", "localtime"})


def date_at(now_s, offset_s):
    return (now_s + offset_s) // DAY_S


def journey(dice):
    """Yields (time, zone, offset) of games that keep a streak.

    Each is at most 36 hours after the one before, or before the end of the next day: by the
    clock of the last zone, or by that of the new one. Some games are as late as possible, after
    a flight to any zone of the world.
    """
    now_s = dice.randrange(0, 70 * 365 * DAY_S)
    zone = dice.choice(ZONES)
    for _ in range(5):
        offset_s = trivia.utc_offset(zone, now_s)
        yield now_s, zone, offset_s
        if dice.random() < 0.4:
            zone = dice.choice(ZONES)
        until_s = now_s + 36 * HOUR_S
        if dice.random() < 0.5:  # the end of the next day by the clock of the last zone
            until_s = max(until_s, (date_at(now_s, offset_s) + 2) * DAY_S - offset_s - 1)
        elif dice.random() < 0.5:  # the end of the next day by the clock of the new zone
            next_day = date_at(now_s, offset_s) + 1
            end_s = (next_day + 1) * DAY_S - trivia.utc_offset(zone, now_s + DAY_S) - 1
            if date_at(end_s, trivia.utc_offset(zone, end_s)) <= next_day:
                until_s = max(until_s, end_s)
        now_s = dice.choice([until_s, dice.randint(now_s + HOUR_S, until_s)])


def test_travel_and_clock_changes_do_not_break_a_streak():
    """3,000 random journeys through all zones, from 1970 to 2040."""
    dice = random.Random(15)
    visited = set()
    for number in range(3_000):
        streak, dates = trivia.Streak(), set()
        for now_s, zone, offset_s in journey(dice):
            visited.add(zone)
            before = streak
            streak = streak.after(now_s, offset_s)
            dates.add(date_at(now_s, offset_s))
            assert before.days <= streak.days <= before.days + 1, (number, before, now_s, zone)
            assert streak.days <= len(dates), (number, before, now_s, zone)
            assert streak.stands(now_s, offset_s)
            assert trivia.Streak.parse(streak.write()) == streak
    assert visited == set(ZONES)


def test_a_missed_day_breaks_a_streak_in_every_zone():
    dice = random.Random(16)
    for zone in ZONES:
        now_s = dice.randrange(0, 70 * 365 * DAY_S)
        streak = trivia.Streak().after(now_s, trivia.utc_offset(zone, now_s))
        later_s = now_s + 36 * HOUR_S + 1
        while (
            min(
                date_at(later_s, streak.offset_s),
                date_at(later_s, trivia.utc_offset(zone, later_s)),
            )
            <= streak.day + 1
        ):
            later_s += 600
        assert later_s - now_s < 74 * HOUR_S
        late = streak.after(later_s, trivia.utc_offset(zone, later_s))
        assert late.days == 1 and not streak.stands(later_s, trivia.utc_offset(zone, later_s)), zone


@pytest.mark.parametrize(
    "games,days",
    [
        # Two games on one date are one day.
        ([("2026-03-01T08:00", "Europe/Berlin"), ("2026-03-01T22:00", "Europe/Berlin")], 1),
        # The change of clocks makes a day of 23 hours, or of 25: early, then late the next day.
        ([("2026-03-28T00:05", "Europe/Berlin"), ("2026-03-29T23:55", "Europe/Berlin")], 2),
        ([("2026-10-24T00:05", "Europe/Berlin"), ("2026-10-25T23:55", "Europe/Berlin")], 2),
        # Samoa skipped a date.
        ([("2011-12-29T00:10", "Pacific/Apia"), ("2011-12-31T23:50", "Pacific/Apia")], 2),
        # Eastward over the date line: the same date again, then the next one.
        (
            [
                ("2026-05-05T20:00", "Pacific/Auckland"),
                ("2026-05-05T10:00", "Pacific/Honolulu"),
                ("2026-05-06T23:00", "Pacific/Honolulu"),
            ],
            2,
        ),
        # Westward over the date line: a date is skipped.
        ([("2026-05-05T20:00", "Pacific/Honolulu"), ("2026-05-07T21:00", "Pacific/Kiritimati")], 2),
        # A whole day without a game.
        ([("2026-05-05T08:00", "Asia/Tokyo"), ("2026-05-07T08:00", "Asia/Tokyo")], 1),
    ],
)
def test_days_of_a_streak_follow_the_time_zone_of_the_phone(games, days):
    streak = trivia.Streak()
    for text, zone in games:
        local = datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone))
        now_s = int(local.timestamp())
        streak = streak.after(now_s, trivia.utc_offset(zone, now_s))
    assert streak.days == days
