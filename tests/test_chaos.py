"""The failure campaign in small. Each of its checks must fail on evidence with a known mistake."""

import copy
import itertools
import json
from collections import Counter

import pytest

import chaos
import chaos_checks
import trivia
from chaos import Account, Applicant, Fault
from chaos_checks import Evidence
from chaos_phones import Entry
from conftest import PASSWORD, Answer

GAME, KEY = "1abcdefghijk", "game:{g2}:1abcdefghijk"
QUESTION = {"text": "Why?", "choices": ["a", "b", "c", "d"]}
PAIR = [{"username": "ann"}, {"username": "bob"}]
RANKING = [
    {
        "player": "ann",
        "score": 145,
        "rank": 1,
        "rating": 1601,
        "rating_change": 101,
        "provisional": True,
    },
    {
        "player": "bob",
        "score": 0,
        "rank": 2,
        "rating": 1400,
        "rating_change": -100,
        "provisional": True,
    },
]


# ---- small campaigns


def test_games_survive_failures_of_all_kinds():
    # The first six failures of this seed are of six different kinds.
    one, found, figures = chaos.campaign(10, players=12, workers=2, every_s=1.5, seed="tests 482")
    assert found == [], one.faults
    assert figures["games"] >= 10 and figures["answers"] > 40, figures
    assert chaos.kinds_of(one.faults) == set(chaos.KINDS), figures
    assert len(figures["queues"]) >= 4, figures
    assert any(code in figures["closes"] for code in (1006, 1012)), figures


def test_games_survive_failures_of_all_kinds_on_a_cluster():
    # The first seven failures of this seed are of seven different kinds.
    one, found, figures = chaos.campaign(
        10, players=12, workers=2, every_s=1.5, seed="tests 31261", on_cluster=True
    )
    assert found == [], one.faults
    assert figures["games"] >= 10, figures
    assert chaos.kinds_of(one.faults) == set(chaos.CLUSTER_KINDS), figures


def test_accounts_survive_kills_of_redis():
    found, outcomes = chaos.registrations(3, seed="tests", applicants=3, patient=False, pause_s=0.2)
    assert found == []
    assert outcomes["register 201"] > 5 and outcomes["accounts"] > 5, outcomes


def test_the_schedule_depends_on_the_seed_alone():
    def first(seed):
        return list(itertools.islice(chaos.schedule(seed, chaos.KINDS, 1), 200))

    assert first("a") == first("a") != first("b")
    assert {plan.kind for plan in first("a")} == set(chaos.KINDS)
    assert all(0.5 <= plan.pause_s <= 1.5 for plan in first("a"))


# ---- the checks can fail


def transcript(name, other, choice):
    """Returns what a phone saw of a game of one round that began at 100 s."""
    game = {"game": GAME}
    answers = {
        "ann": {"choice": 2, "ms": 300, "points": 145},
        "bob": {"choice": 0, "ms": 500, "points": 0},
    }
    rows = [
        (100.0, "try", {}),
        (100.0, "open", {}),
        (100.1, "in", {"type": "queued", "queue": "random", "timeout_ms": 9000}),
        (100.2, "in", {"type": "start", "seq": 1, "queue": "random", "players": PAIR} | game),
        (
            100.5,
            "in",
            {"type": "question", "seq": 2, "round": 1, "answer_ms": 3000} | QUESTION | game,
        ),
        (100.9, "out", {"type": "answer", "id": 1, "round": 1, "choice": choice} | game),
        (101.0, "in", {"type": "answered", "seq": 3, "round": 1, "player": other} | game),
        (
            101.1,
            "in",
            {
                "type": "reveal",
                "seq": 4,
                "round": 1,
                "correct": 2,
                "answers": answers,
                "scores": {"ann": 145, "bob": 0},
            }
            | game,
        ),
        (101.4, "in", {"type": "end", "seq": 5, "reason": "finished", "ranking": RANKING} | game),
        (110.0, "lost", {"code": 1000}),
    ]
    return [Entry(at, int(way != "try"), way, copy.deepcopy(frame)) for at, way, frame in rows]


def as_read(packed):
    """Decodes bytes as the Redis clients of these tests do."""
    return packed.decode("utf-8", "surrogateescape")


def pack(flat):
    """Returns a game as Redis keeps it, from {name: text}; player I has the fields nameI, ..."""
    *numbers, on_exit, kind = flat["rules"].split()
    rules = [*map(int, numbers), on_exit, kind]
    people = [[flat[f"uid{i}"], flat[f"name{i}"]] for i in (1, 2)]
    state = {name: flat[name] for name in ("phase", "reason")}
    state |= {name: int(flat[name]) for name in ("round", "ended")} | {"deadline": 0}
    state["players"] = [{"turn": 0, "seq": 0, "score": int(flat[f"score{i}"])} for i in (1, 2)]
    logs = flat["log1"].split(), flat["log2"].split()
    rounds = itertools.zip_longest(*logs, fillvalue="-")
    plan = trivia.write_plan(flat["queue"], rules, flat["quiz"], people)
    return {
        "plan": as_read(plan),
        "state": as_read(trivia.write_state(state)),
        "result": flat["result"],
        "flat": json.dumps(flat),
    } | {str(number): " ".join(answers) for number, answers in enumerate(rounds, 1)}


def evidence():
    """Returns the evidence of one game without mistakes."""
    result = [
        {"rank": 1, "won": True, "rating": 1600.5, "change": 100.5, "sigma": 480},
        {"rank": 2, "won": False, "rating": 1399.5, "change": -100.5, "sigma": 480},
    ]
    game = {
        "queue": "random",
        "rules": "3000 300 10000 100 50 forfeit rated",
        "quiz": "7:1302",
        "players": "2",
        "phase": "end",
        "round": "1",
        "reason": "finished",
        "ended": "1000",
        "result": json.dumps(result),
        "uid1": "A",
        "name1": "ann",
        "score1": "145",
        "log1": "2:300:145 ",
        "uid2": "B",
        "name2": "bob",
        "score2": "0",
        "log2": "0:500:0 ",
    }
    store = {
        KEY: pack(game),
        "history:{A}": {GAME: 1000},
        "history:{B}": {GAME: 1000},
        "playing:{lobby}": {"random": "0"},
        "user:{A}": {
            "username": "ann",
            "email": "ann@x.org",
            "games": "1",
            "wins": "1",
            "rating": "1600.5",
        },
        "user:{B}": {"username": "bob", "email": "bob@x.org", "games": "1", "rating": "1399.5"},
        "board:{rating}": {"A": 1600.5, "B": 1399.5},
        "board:{wins}:2026-W48": {"A": 1},
        "seen:{A}": "10",
        "unique:{username:1}": {"ann": "A op", "bob": "B op"},
        "workers:{lobby}": {"w1": 1, "w2": 2},
        "unique:{email:2}": {"ann@x.org": "A op", "bob@x.org": "B op"},
    }
    zsets = ("history", "board", "workers")
    types = {
        key: "zset" if key.startswith(zsets) else "string" if key.startswith("seen") else "hash"
        for key in store
    }
    return Evidence(
        store,
        types,
        {key: -1 for key in store} | {KEY: 1000},
        2,
        {"ann": transcript("ann", "bob", 2), "bob": transcript("bob", "ann", 0)},
        [],
    )


def stored(key, **values):
    """Changes fields of a hash or sorted set of the store; None removes a field."""

    def tamper(one):
        fields = one.store.setdefault(key, {})
        if key == KEY:
            one.store[key] = pack(json.loads(fields["flat"]) | values)
            return
        fields.update(values)
        for name in [name for name, value in fields.items() if value is None]:
            del fields[name]
        one.types.setdefault(key, "hash")
        one.ttls.setdefault(key, -1)

    return tamper


def replan(**values):
    """Changes the plan of the game."""

    def tamper(one):
        plan = trivia.parse_plan(one.store[KEY]["plan"]) | values
        one.store[KEY]["plan"] = as_read(trivia.write_plan(**plan))

    return tamper


def room(name, at, **values):
    """Adds a `room` frame to a transcript, valid except for these values."""
    right = {"code": "ABCDEF", "host": "bob", "players": PAIR, "connected": ["ann"]}
    return seen(name, at, "in", type="room", **right | {"state": "waiting"} | values)


def without(key):
    """Removes a key."""
    return lambda one: one.store.pop(key)


def frame(name, kind, **values):
    """Changes a frame of a transcript."""

    def tamper(one):
        next(
            entry for entry in one.transcripts[name] if entry.frame.get("type") == kind
        ).frame.update(values)

    return tamper


def seen(name, at, way, connection=1, **values):
    """Adds an entry to a transcript, sorted by time."""

    def tamper(one):
        one.transcripts[name] = sorted(
            [*one.transcripts[name], Entry(at, connection, way, values)], key=lambda entry: entry.at
        )

    return tamper


def unseen(*kinds):
    """Removes the frames of these types from all transcripts."""

    def tamper(one):
        one.transcripts = {
            name: [entry for entry in entries if entry.frame.get("type") not in kinds]
            for name, entries in one.transcripts.items()
        }

    return tamper


def fault(kind, at, until):
    """Adds a failure, which can excuse a delay."""
    return lambda one: one.faults.append(Fault(kind, at, until, "7"))


def ttl(one):
    one.ttls[KEY] = -1


def wrong_type(one):
    one.types["history:{A}"] = "string"


def logged(one):
    one.log = "fine\nTraceback (most recent call last)\nOops\n"


def incident(one):
    one.incidents.append("the server has ended")


POINTS, SAW = (
    chaos_checks.points_are_those_of_the_formula_and_add_up_to_the_score,
    chaos_checks.what_the_phones_saw_is_what_is_stored,
)
RANKS, COUNTS = (
    chaos_checks.ranks_follow_the_scores,
    chaos_checks.an_acknowledged_answer_counts_once_and_as_sent,
)
ONCE, LOST = chaos_checks.results_are_applied_exactly_once, chaos_checks.no_started_game_is_lost
ORDER, STALE = (
    chaos_checks.no_message_of_a_game_is_missing_or_twice,
    chaos_checks.no_phone_hears_nothing_for_too_long,
)
LEFT, UNIQUE = (
    chaos_checks.nothing_is_left_behind,
    chaos_checks.unique_values_belong_to_those_who_have_them,
)
WAITS, SIGNED = (
    chaos_checks.nobody_waits_long_without_a_connection,
    chaos_checks.nobody_is_signed_out_or_replaced_by_an_older_connection,
)
BOTS = chaos_checks.bots_change_nothing_and_are_on_no_leaderboard
DAY = chaos_checks.a_day_has_one_try_and_the_same_questions_for_everybody
STREAK = chaos_checks.a_streak_counts_each_day_once
CHALLENGE = chaos_checks.a_challenge_is_played_once_by_each_and_settles_once
REMATCH = chaos_checks.a_rematch_is_one_game_of_those_who_agreed
ROOMS = chaos_checks.rooms_hold_together
LATE = chaos_checks.who_comes_late_is_asked_from_the_next_question_on
LIVES = chaos_checks.lives_end_a_solo_game
DAILY = replan(queue="daily", draw=["2026-11-29", 1])
CONTEST = {"queue": "contest", "quiz": "7:1302", "most": "2"}
RUN = f"{GAME} 145 1000 2:300:145"
OFFER = {"type": "rematch", "game": GAME, "expires_ms": 3000, "players": ["ann"]}
NEXT = {"type": "start", "queue": "random", "game": "1bcdefghijkl", "players": PAIR}
RESTS, LOGS = chaos_checks.everything_comes_to_rest, chaos_checks.the_server_logs_no_traceback
UNANSWERED = stored(KEY, log2="- ")
MOVED = {"type": "user_return", "game": GAME, "player": "bob"}
AWAY = [seen("ann", 110.1, "try"), seen("ann", 130, "open", 2)]


@pytest.mark.parametrize(
    "check, tampering",
    [
        (POINTS, [stored(KEY, score1="146")]),
        (POINTS, [stored(KEY, log1="2:300:144 ")]),
        (POINTS, [stored(KEY, log1="2:3001:100 ", score1="100")]),
        (POINTS, [stored(KEY, log2="0:500:1 ", score2="1")]),
        (POINTS, [stored(KEY, log1="", log2="")]),
        (POINTS, [stored(KEY, log1="2:300:145 2:300:145 ", score1="290")]),
        (SAW, [frame("ann", "reveal", correct=1)]),
        (SAW, [frame("bob", "reveal", answers={})]),
        (SAW, [frame("bob", "reveal", scores={"ann": 0, "bob": 0})]),
        (SAW, [frame("ann", "end", ranking=RANKING[:1])]),
        (SAW, [frame("ann", "end", reason="forfeit")]),
        (
            SAW,
            [
                seen(
                    "bob",
                    101.05,
                    "in",
                    type="update",
                    game=GAME,
                    seq=3,
                    round=1,
                    phase="question",
                    left_ms=1000,
                    scores={"ann": 145, "bob": 0},
                )
            ],
        ),
        (RANKS, [stored(KEY, score2="145")]),
        (
            RANKS,
            [
                stored(
                    KEY, result=json.dumps([{"rank": 1, "won": True, "change": 0, "rating": 0}] * 2)
                )
            ],
        ),
        (COUNTS, [UNANSWERED]),
        (COUNTS, [UNANSWERED, unseen("answered")]),
        (COUNTS, [stored(KEY, log2="1:500:0 ")]),
        (
            COUNTS,
            [
                UNANSWERED,
                unseen("answered", "answer"),
                seen(
                    "bob",
                    101,
                    "in",
                    type="update",
                    game=GAME,
                    seq=3,
                    round=1,
                    phase="question",
                    left_ms=2500,
                    choice=0,
                ),
            ],
        ),
        (
            COUNTS,
            [
                UNANSWERED,
                unseen("answered"),
                seen("bob", 101, "in", type="error", id=1, code="already_answered"),
            ],
        ),
        (
            COUNTS,
            [
                stored(KEY, log2="1:500:0 "),
                seen("bob", 100.91, "out", type="answer", id=2, game=GAME, round=1, choice=1),
            ],
        ),
        (ONCE, [stored("user:{A}", games="2")]),
        (ONCE, [stored("user:{A}", wins="0")]),
        (ONCE, [without("history:{B}")]),
        (ONCE, [stored("user:{B}", rating="1500")]),
        (ONCE, [stored("board:{rating}", A=1500)]),
        (ONCE, [stored("board:{rating}", B=None)]),
        (ONCE, [stored("board:{wins}:2026-W48", A=2)]),
        (ONCE, [stored("history:{A}", another=1)]),
        (LOST, [without(KEY)]),
        (LOST, [stored(KEY, phase="settle")]),
        (LOST, [without("history:{B}")]),
        (LOST, [stored(KEY, name1="eve")]),
        (ORDER, [frame("ann", "reveal", seq=3)]),
        (ORDER, [frame("ann", "start", seq=0)]),
        (
            ORDER,
            [
                frame("ann", "reveal", seq=6),
                frame("ann", "end", seq=7),
                seen("ann", 109, "in", seq=8, **MOVED),
            ],
        ),
        (STALE, [unseen("reveal", "end", "answered")]),
        (
            STALE,
            [
                unseen("reveal", "end", "answered"),
                fault("redis-kill", 101, 102),
                fault("kill", 101, 109),
            ],
        ),
        (
            STALE,
            [
                unseen("start", "question", "answer", "answered", "reveal", "end"),
                frame("ann", "queued", timeout_ms=5000),
            ],
        ),
        (STALE, [seen("ann", 102, "out", type="join", id=9)]),
        (STALE, [seen("ann", 102, "in", type="queued", queue="fill", timeout_ms=20_000)]),
        (STALE, [seen("ann", 102, "in", **OFFER)]),
        (STALE, [room("ann", 101, state="playing")]),
        (BOTS, [stored("board:{rating}", bot1=1500)]),
        (BOTS, [replan(players=[["A", "ann"], ["bot1", "Bot Ada", 1500, 0, 1, ""]])]),
        (BOTS, [frame("ann", "start", players=[{"username": "Bot Ada"}])]),
        (DAY, [DAILY, frame("ann", "start", queue="daily")]),
        (
            DAY,
            [
                DAILY,
                stored("tried:{lobby}:daily:2026-11-29", A="x"),
                frame("ann", "start", queue="daily"),
            ],
        ),
        (STREAK, [DAILY]),
        (ONCE, [stored("user:{A}", daily_points="5")]),
        (CHALLENGE, [seen("ann", 99, "made", code="ABCDEFGH")]),
        (CHALLENGE, [stored("contest:{lobby}:ABCDEFGH", **CONTEST | {"run:A": GAME})]),
        (CHALLENGE, [stored("contest:{lobby}:ABCDEFGH", **CONTEST | {"run:A": RUN})]),
        (
            CHALLENGE,
            [
                stored("contest:{lobby}:ABCDEFGH", **CONTEST),
                replan(queue="contest", draw=["ABCDEFGH", 1]),
            ],
        ),
        (REMATCH, [seen("ann", 102, "in", **OFFER), seen("ann", 103, "in", **NEXT)]),
        (
            REMATCH,
            [
                seen("ann", 102, "in", **OFFER),
                seen("ann", 103, "in", **NEXT | {"players": [{"username": "eve"}]}),
            ],
        ),
        (REMATCH, [frame("ann", "end", series={"ann": 0, "bob": 1})]),
        (ROOMS, [room("ann", 102, host="eve")]),
        (ROOMS, [room("ann", 102, players=PAIR[1:])]),
        (
            ROOMS,
            [
                room("ann", 102),
                seen("ann", 103, "in", type="cancelled", reason="kicked"),
                room("ann", 104),
            ],
        ),
        (ROOMS, [stored("room:{lobby}:ABCDEF", queue="den")]),
        (LATE, [replan(players=[["A", "ann", 0, 0, 2], ["B", "bob"]])]),
        (
            LIVES,
            [
                stored(KEY, log1="0:300:0 "),
                replan(rules=[3000, 300, 10000, 100, 50, "forfeit", "solo", 0, 1]),
            ],
        ),
        (LEFT, [stored("seats:{lobby}", A="w.1 1 - 0 - -")]),
        (LEFT, [stored("deadlines:{g1}", x=1)]),
        (LEFT, [stored("playing:{lobby}", random="2")]),
        (LEFT, [stored("workers:{lobby}", w3=3)]),
        (LEFT, [ttl]),
        (LEFT, [stored("user:A", x="1")]),
        (LEFT, [wrong_type]),
        (LEFT, [stored("queue:{lobby}:random", A=1)]),
        (UNIQUE, [stored("unique:{username:1}", ann=None)]),
        (UNIQUE, [stored("unique:{username:1}", eve="E op")]),
        (UNIQUE, [stored("unique:{username:1}", ann="B op")]),
        (UNIQUE, [stored("unique:{username:1}", bob="B op 9")]),
        (WAITS, [*AWAY, seen("ann", 131, "in", 2, type="queued", queue="random", timeout_ms=9000)]),
        (SIGNED, [seen("ann", 111, "refused", status=401)]),
        (SIGNED, [seen("ann", 109, "lost", code=4401)]),
        (SIGNED, [seen("ann", 109, "lost", code=4409)]),
        (LOGS, [logged]),
        (RESTS, [incident]),
    ],
)
def test_each_check_finds_its_kind_of_violation(check, tampering):
    one = evidence()
    for tamper in tampering:
        tamper(one)
    assert list(check(one)) and check in chaos_checks.CHECKS


@pytest.mark.parametrize(
    "excuses",
    [
        [],
        [
            seen("ann", 109, "try"),
            seen("ann", 109.1, "open", 2),
            seen("ann", 109.2, "lost", code=4409),
        ],  # a newer connection of the same player replaces the first
        [
            seen("ann", 108, "in", seq=8, **MOVED),
            seen(
                "ann",
                108.1,
                "in",
                type="update",
                game=GAME,
                queue="random",
                players=PAIR,
                seq=8,
                round=1,
                phase="settle",
                left_ms=1,
                scores={"ann": 145, "bob": 0},
            ),
        ],
        [
            *AWAY,
            seen("ann", 131, "in", 2, type="queued", queue="random", timeout_ms=9000),
            fault("redis-stop", 115, 122),
        ],
        [
            seen("ann", 102, "in", **OFFER),
            seen("ann", 103, "in", **NEXT | {"series": {"ann": 1, "bob": 0}}),
            seen("ann", 104, "in", type="end", game="1bcdefghijkl", seq=1),
        ],
        [
            room("ann", 99),
            room("ann", 102),
            seen("ann", 103, "in", type="cancelled", reason="left"),
        ],
        [
            # Refused for now, then sent again.
            seen("bob", 100.8, "out", type="answer", id=9, game=GAME, round=1, choice=3),
            seen("bob", 100.85, "in", type="error", id=9, code="unavailable"),
        ],
    ],
    ids=["none", "replaced", "hole", "outage", "rematch", "room", "refused"],
)
def test_an_excused_irregularity_is_no_violation(excuses):
    one = evidence()
    for excuse in excuses:
        excuse(one)
    assert chaos_checks.violations(one) == []


@pytest.mark.parametrize(
    "excuse",
    [
        seen("bob", 100.95, "lost", code=1006),
        seen("bob", 102, "lost", code=1012),
        seen("bob", 100.95, "in", type="error", id=1, code="late_answer"),
        unseen("reveal"),
    ],
)
def test_an_answer_may_be_lost_only_with_an_excuse(excuse):
    one = evidence()
    for tamper in (UNANSWERED, unseen("answered")):
        tamper(one)
    assert list(COUNTS(one))
    excuse(one)
    assert not list(COUNTS(one))


def test_every_check_has_a_case_in_which_it_fails():
    cases = test_each_check_finds_its_kind_of_violation.pytestmark[0].args[1]
    assert {check for check, _ in cases} == set(chaos_checks.CHECKS)


def test_the_summary_counts_games_rounds_answers_and_failures():
    one = evidence()
    fault("kill", 1, 2)(one)
    figures = chaos.summary(one, [("a", "x"), ("a", "y")])
    assert (figures["games"], figures["rounds"], figures["answers"]) == (1, 1, 2)
    assert (
        figures["faults"] == {"kill": 1}
        and figures["violations"] == {"a": 2}
        and figures["closes"] == {1000: 2}
    )


# ---- accounts


class Told:
    """A stub server: it answers with these statuses, by path."""

    def __init__(self, **statuses):
        self.statuses = statuses

    def http(self, method, path, body=None, token=None):
        return Answer(self.statuses[path.rpartition("/")[2]], {}, "")


@pytest.mark.parametrize(
    "exists, login, register, me, wrong",
    [
        (True, 200, 409, 200, None),
        (True, 401, 201, 200, "can't sign in"),
        (True, 503, 201, 200, "can't sign in"),
        (True, 200, 409, 401, "lost its session"),
        (False, 401, 201, 401, None),
        (False, 200, 409, 200, "was deleted"),
        (False, 401, 409, 401, "can't be had"),
        (None, 401, 201, 401, None),
        (None, 200, 409, 401, None),
        (None, 401, 409, 401, "can't be had"),
        (None, 401, 422, 401, "can't be had"),
    ],
)
def test_an_account_must_be_usable_or_its_name_free(
    monkeypatch, exists, login, register, me, wrong
):
    monkeypatch.setattr(chaos, "FREE_S", 0)
    person = Applicant(Told(login=login, register=register, me=me), "", True)
    person.accounts.append(Account("ann", exists, {PASSWORD}))
    found = chaos.check_accounts([person])
    assert [wrong in what for _, what in found] == [True] if wrong else not found


def test_the_check_of_accounts_stops_after_enough_wrong_ones():
    person = Applicant(Told(login=401), "", True)
    person.accounts = [Account("ann", True, {PASSWORD})] * 3 * chaos.ENOUGH
    assert len(chaos.check_accounts([person])) == chaos.ENOUGH


def test_an_unexpected_status_of_a_registration_is_reported():
    person = Applicant(Told(register=500), "", True)
    person.step()
    person.server.statuses["register"] = 409
    person.step()
    assert [what.split()[-1] for what in person.surprises] == ["500", "500", "409"]


# ---- the command line


def test_a_run_with_violations_exits_with_1(monkeypatch, capsys, tmp_path):
    one = evidence()
    monkeypatch.setattr(
        chaos, "campaign", lambda *_: (one, [("a_check", "what was seen")], {"games": 1})
    )
    with pytest.raises(SystemExit) as ended:
        chaos.main(["--games", "1", "--seed", "s", "--json", str(tmp_path / "all.json")])
    printed = capsys.readouterr().out
    assert (
        ended.value.code == 1
        and "seed s" in printed
        and "VIOLATED a_check: what was seen" in printed
    )
    assert json.loads((tmp_path / "all.json").read_text())["transcripts"].keys() == {"ann", "bob"}


def test_a_run_without_violations_exits_with_0(monkeypatch, capsys):
    monkeypatch.setattr(chaos, "registrations", lambda *_, **__: ([], Counter(accounts=3)))
    with pytest.raises(SystemExit) as ended:
        chaos.main(["registrations", "--kills", "1"])
    assert ended.value.code == 0 and '"accounts": 3' in capsys.readouterr().out


def test_an_unknown_kind_of_failure_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        chaos.main(["--faults", "kill,flood"])
    assert ended.value.code == 2 and "flood" in capsys.readouterr().err
