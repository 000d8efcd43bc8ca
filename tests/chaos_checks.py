"""The checks of the failure campaign, and the evidence that they read when the system is idle.

The evidence is plain data: the content of Redis, and the transcripts of the phones. The name of
each check is a sentence. The check yields what violates the sentence, with the details to find out
why.

Sections: evidence, checks of games, checks of ways to play, checks of phones and store.
"""

import ast
import functools
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import trivia
from chaos_phones import (
    ANSWER_S,
    BOTS_S,
    MATCHED,
    MOST_FRIENDS,
    REMATCH_S,
    WAIT_S,
    answers_of,
    excerpt,
    received,
    waits_of,
)
from conftest import ROOT

MARGIN_S = 3  # a phone may receive nothing for so much longer than the longest phase
# Longest time of a phone without a connection, besides failures of Redis and workers.
MOST_WAIT_S = 15
# Keys that exist only while players play or wait.
BUSY = "(seats|queue|due|forming|deadlines|rematch|bots):"


def outage(faults, since, until, kinds=("stop", "redis-kill", "redis-stop")):
    """Returns how long failures of these kinds lasted within a period, plus 1 s after each."""
    return sum(
        max(0.0, min(fault.until + 1, until) - max(fault.at, since))
        for fault in faults
        if fault.kind in kinds
    )


# ---- evidence ------------------------------------------------------------------------------------
# All data of the checks: Redis when it is idle, and the transcripts.


@dataclass
class Seat:
    """A player's part in a stored game."""

    uid: str
    name: str
    score: int
    left: bool  # for good, before the end
    first: int  # the round in which the player came
    is_bot: bool
    log: list  # (choice, ms, points) of each round, or None


def shown(rating):
    """Rounds a rating as players see it."""
    return math.floor(rating + 0.5)


def read_answer(text):
    """Parses 'CHOICE:MS:POINTS' to (choice, ms, points), and '-' to None."""
    return None if text == "-" else tuple(map(int, text.split(":")))


class Stored:
    """A game as Redis keeps it."""

    def __init__(self, game, fields):
        self.id, self.fields = game, fields
        plan = trivia.parse_plan(fields["plan"])
        state = trivia.parse_state(fields["state"])
        self.queue, self.quiz, self.series = plan["queue"], plan["quiz"], plan.get("series")
        self.draw = (plan.get("draw") or [""])[0]
        self.phase, self.reason = state["phase"], state.get("reason")
        self.ended, self.wrong = state.get("ended", 0), state.get("wrong", 0)
        rules = dict(zip(trivia.RULES, plan["rules"]))
        self.rules, self.kind, self.answer_ms = rules, rules["kind"], rules["answer_ms"]
        self.correct, self.speed = rules["correct"], rules["speed"]
        self.right = [order.index("0") for _, order in trivia.parse_quiz(self.quiz)]
        self.result = json.loads(fields.get("result", "[]"))
        numbers = sorted(int(name) for name in fields if name.isdigit())
        rounds = [fields[str(number)].split() for number in numbers]
        self.seats = [
            self._seat(i, rounds, player, *seat)
            for i, (seat, player) in enumerate(zip(plan["players"], state["players"], strict=True))
        ]

    @staticmethod
    def _seat(i, rounds, player, uid, name, *more):
        """Makes a seat. The row of a round ends with the last player who was there."""
        log = [read_answer(row[i]) if i < len(row) else None for row in rounds]
        first, is_bot = more[2] if len(more) > 2 else 1, len(more) > 3
        return Seat(uid, name, player["score"], player.get("left", False), first, is_bot, log)

    @property
    def has_bots(self):
        return any(seat.is_bot for seat in self.seats)

    @property
    def is_whole(self):
        """Whether all questions were asked, or the game's lives or its time were used up."""
        return len(self.seats[0].log) == len(self.right) or (
            self.rules.get("lives", 0) == self.wrong > 0 or self.rules.get("total_ms", 0) > 0
        )

    def wins(self):
        """Returns {name: games that the player has won} of a series, this game included."""
        ranks = [part["rank"] for part in self.result]
        before = self.series or [0] * len(self.seats)
        alone = ranks.count(1) == 1
        return {
            seat.name: won + (rank == 1 and alone)
            for seat, won, rank in zip(self.seats, before, ranks)
        }

    def points(self, number, choice, ms):
        """Returns the points of an answer, by the documented formula."""
        right = self.right[number - 1 : number] == [choice]
        return self.correct + self.speed * (self.answer_ms - ms) // self.answer_ms if right else 0

    def answers(self, number):
        """Returns the answers of a round, as `reveal` shows them."""
        return {
            seat.name: dict(zip(("choice", "ms", "points"), seat.log[number - 1]))
            for seat in self.seats
            if number <= len(seat.log) and seat.log[number - 1]
        }

    def scores(self, number):
        """Returns the scores after so many rounds, of the players who were there."""
        return {
            seat.name: sum(answer[2] for answer in seat.log[:number] if answer)
            for seat in self.seats
            if number is None or seat.first <= max(1, number)
        }

    def ranking(self):
        """Returns the ranking as `end` shows it."""
        rows = []
        for seat, part in zip(self.seats, self.result):
            row = {"player": seat.name, "score": seat.score, "rank": part["rank"]}
            row |= {"bot": True} if seat.is_bot else {}
            if "rating" in part:
                rating, before = shown(part["rating"]), shown(part["rating"] - part["change"])
                row |= {"rating": rating, "rating_change": rating - before}
                row |= {"provisional": True} if part["sigma"] > 300 else {}
            rows.append(row | {name: part[name] for name in ("counts",) if name in part})
        return sorted(rows, key=lambda row: row["rank"])


@dataclass
class Evidence:
    """The result of a campaign."""

    store: dict  # key -> {field: value}, {member: score}, {id: entry} or text
    types: dict  # key -> type
    ttls: dict  # key -> s, -1 for none
    workers: int  # how many must run
    transcripts: dict  # name -> [Entry]
    faults: list
    log: str = ""  # of the server
    incidents: list = field(default_factory=list)  # failures of the campaign itself

    @functools.cached_property
    def games(self):
        """{id: Stored}"""
        return {
            key.split(":")[-1]: Stored(key.split(":")[-1], fields)
            for key, fields in self.of("game").items()
            if "plan" in fields
        }

    @property
    def users(self):
        """{UID: fields}"""
        return {key[len("user:{") : -1]: fields for key, fields in self.of("user").items()}

    @property
    def names(self):
        """{UID: username}"""
        return {uid: fields.get("username") for uid, fields in self.users.items()}

    def entries(self, *types):
        """Yields (name of the phone, entry) of all received frames of these types."""
        for name, transcript in self.transcripts.items():
            for entry in received(transcript, *types):
                yield name, entry

    def of(self, kind):
        """Returns {key: value} of the keys of a kind."""
        return {key: value for key, value in self.store.items() if key.startswith(f"{kind}:")}

    @functools.cached_property
    def kept(self):
        """The ended games, without those that no player answered: they expire soon."""
        ttls = {key.split(":")[-1]: ttl for key, ttl in self.ttls.items()}
        return [
            game
            for game in self.games.values()
            if game.phase == "end" and ttls[game.id] > trivia.FORGET_S
        ]

    def ended(self, uid):
        """Returns [(game, seat, part of the result)] of a user's ended games."""
        return [
            (game, seat, part)
            for game in self.kept
            for seat, part in zip(game.seats, game.result)
            if seat.uid == uid
        ]


def read_store(client):
    """Reads a Redis; returns (store, types, ttls)."""
    types = {key: client.type(key) for key in client.scan_iter(count=1000)}
    types = {key: kind for key, kind in types.items() if kind != "none"}  # expired meanwhile
    read = {
        "hash": client.hgetall,
        "zset": lambda key: dict(client.zrange(key, 0, -1, withscores=True)),
        "string": lambda key: str(client.strlen(key)),
        "stream": lambda key: dict(client.xrange(key)),
    }
    return (
        {key: read[kind](key) for key, kind in types.items()},
        types,
        {key: client.ttl(key) for key in types},
    )


def key_table(text):
    """Parses the key table in trivia.py's docstring: [(regular expression, type, pattern)]."""
    rows = re.findall(r"^    (\w+:\{.+?) +(hash|zset|string|stream) ", text, re.MULTILINE)
    return [
        (
            re.compile(re.sub(r"[A-Z]+", "[^{}]+", re.sub(r"([{}])", r"\\\1", pattern))),
            kind,
            pattern,
        )
        for pattern, kind in rows
    ]


# ---- checks of games -----------------------------------------------------------------------------


def points_are_those_of_the_formula_and_add_up_to_the_score(evidence):
    for game in evidence.games.values():
        for seat in game.seats:
            for number, answer in enumerate(seat.log, 1):
                if answer and (
                    not 0 <= answer[1] <= game.answer_ms
                    or answer[2] != game.points(number, *answer[:2])
                ):
                    yield (
                        f"game {game.id}, {seat.name}, round {number}: {answer}; "
                        f"correct are {game.right}"
                    )
            if seat.score != sum(answer[2] for answer in seat.log if answer):
                yield f"game {game.id}, {seat.name}: score {seat.score} of {seat.log}"
            if game.reason == "finished" and not game.is_whole:
                yield (
                    f"game {game.id}, {seat.name}: finished, {len(game.right)} rounds, "
                    f"but {seat.log}"
                )


def what_the_phones_saw_is_what_is_stored(evidence):
    games = {game.id: game for game in evidence.kept}
    for name, entry in evidence.entries("reveal", "update", "end"):
        if game := games.get(entry.frame["game"]):
            rivals = rivals_of(evidence, game)
            for key, expected in expectation(game, entry.frame, rivals).items():
                if not is_shown(key, entry.frame[key], expected, game, rivals):
                    yield (
                        f"game {game.id}, {name}, {entry.frame['type']}: "
                        f"{key} is {entry.frame[key]}, stored {expected}"
                        f"{excerpt(evidence.transcripts[name], entry.at)}"
                    )


def expectation(game, frame, rivals):
    """Returns what a frame must say, {key: value}, by the stored game and the rivals' runs."""
    if frame["type"] == "end":
        return {"reason": game.reason, "ranking": game.ranking()}
    number, revealed = frame["round"], frame["type"] == "reveal" or frame["phase"] == "reveal"
    if frame["type"] == "update" and frame["phase"] == "settle":
        return {"scores": game.scores(None) | scores_of(rivals, None)}
    if not revealed:
        closed = max(0, number - 1)
        return {"scores": game.scores(closed) | scores_of(rivals, closed)}
    answers = {name: log[number - 1] for name, log in rivals.items() if log[number - 1]}
    answers = {name: dict(zip(("choice", "ms", "points"), one)) for name, one in answers.items()}
    return {
        "correct": game.right[number - 1],
        "answers": game.answers(number) | answers,
        "scores": game.scores(number) | scores_of(rivals, number),
    }


def scores_of(rivals, number):
    """Returns the scores of rivals after so many rounds."""
    return {
        name: sum(answer[2] for answer in log[:number] if answer) for name, log in rivals.items()
    }


def is_older(score, expected, log):
    """Returns whether a player had a score after some round before the expected one."""
    sums = itertools.accumulate((answer[2] if answer else 0 for answer in log), initial=0)
    return score < expected and score in sums


def is_shown(key, shown, expected, game, rivals):
    """Returns whether a frame's value agrees with the expected value.

    A frame may also show a bot without points, whose seat a player has taken since, and a player
    without points who has just come. A frame may leave out a player without points who came before
    the first question. Rivals of a challenge may be missing, or show an older score.
    """
    if key not in ("scores", "answers"):
        return shown == expected
    seats = {seat.name for seat in game.seats}
    for name in expected.keys() - shown.keys():
        if name in seats and (expected[name] or game.queue not in ("fill", "den")):
            return False
    return all(
        value == expected.get(name, 0 if name in seats or name.startswith("Bot ") else None)
        or (key == "scores" and name in rivals and is_older(value, expected[name], rivals[name]))
        for name, value in shown.items()
    )


def rivals_of(evidence, game):
    """Returns {name: answers by round} of the other players of a game's challenge."""
    runs = runs_of(evidence.store.get(f"contest:{{lobby}}:{game.draw}", {}))
    own = {seat.uid for seat in game.seats}
    return {
        evidence.names.get(uid): [read_answer(answer) for answer in run.answers]
        for uid, run in runs.items()
        if run and uid not in own
    }


def runs_of(fields):
    """Returns {UID: Run, or None while it goes on} of a challenge."""
    runs = {name[4:]: text for name, text in fields.items() if name.startswith("run:")}
    return {uid: trivia.Run.parse(text) for uid, text in runs.items()}


def ranks_follow_the_scores(evidence):
    for game in evidence.games.values():
        order = [(seat.left, -seat.score) for seat in game.seats]
        expected = [1 + sum(other < mine for other in order) for mine in order]
        if game.result and [part["rank"] for part in game.result] != expected:
            yield f"game {game.id}: scores {order}, but {game.result}"
        for seat, part in zip(game.seats, game.result):
            if part["won"] and (
                expected.count(1) > 1
                or part["rank"] != 1
                or seat.left
                or game.has_bots
                or game.queue not in MATCHED
            ):
                yield f"game {game.id}: {seat.name} can't have won: {game.result}"


def an_acknowledged_answer_counts_once_and_as_sent(evidence):
    asked = {name: answers_of(transcript) for name, transcript in evidence.transcripts.items()}
    contests = {game.id for game in evidence.games.values() if game.queue == "contest"}
    for _, entry in evidence.entries("answered"):
        frame = entry.frame
        # Bots have no transcript. In a challenge, rivals answer in a game of their own.
        if frame["player"] in asked and frame["game"] not in contests:
            asked[frame["player"]][frame["game"], frame["round"]].acknowledged = "answered"
    seats = {
        (game.id, seat.name): (game, seat)
        for game in evidence.games.values()
        for seat in game.seats
    }
    for name, (where, one) in (
        (name, item) for name, rounds in asked.items() for item in rounds.items()
    ):
        number, (game, seat) = where[1], seats.get((where[0], name), (None, None))
        if game is None or number > len(seat.log) and game.reason != "finished":
            continue  # the game was cut short before the reveal
        if wrong := judge(
            evidence.transcripts[name], one, dict(enumerate(seat.log, 1)).get(number)
        ):
            at = one.sent[0].at if one.sent else 0
            yield (
                f"game {game.id}, {name}, round {number}: {wrong}"
                f"{excerpt(evidence.transcripts[name], at)}"
            )


def judge(transcript, asked, stored):
    """Describes what is wrong with the stored answer of a round; None if nothing is."""
    refusals = [asked.refused.get(entry.frame["id"]) for entry in asked.sent]
    choices = [entry.frame["choice"] for entry in asked.sent]
    if stored is None:
        if asked.acknowledged:
            return f"acknowledged ({asked.acknowledged}), but not stored"
        lost = [
            entry
            for entry in asked.intime
            if entry.frame["id"] not in asked.refused and not excused(transcript, entry)
        ]
        return f"sent in time and not refused, but not stored: {lost[0]}" if lost else None
    if stored[0] not in choices:
        return f"stored {stored}, sent {choices}"
    if stored[0] != choices[0] and refusals[0] is None:
        return f"stored {stored}, but the first choice sent was {choices[0]}: {choices}"
    return None


def excused(transcript, sent):
    """Returns whether an answer may be lost: its connection ended before or soon after the reveal.

    On a connection that stays open, the server acknowledges or refuses each answer.
    """
    later = [
        entry for entry in transcript if entry.connection == sent.connection and entry.at >= sent.at
    ]
    reveals = [
        entry.at
        for entry in received(later, "reveal")
        if all(entry.frame[key] == sent.frame[key] for key in ("game", "round"))
    ]
    return not reveals or any(entry.way == "lost" and entry.at < reveals[0] + 1 for entry in later)


def results_are_applied_exactly_once(evidence):
    boards = evidence.of("board")
    for uid, user in evidence.users.items():
        ended, history = evidence.ended(uid), evidence.store.get(f"history:{{{uid}}}", {})
        where = f"user {uid} {user['username']}"
        expected = sums_of(ended)
        found = {key: float(user.get(key, 1500 if key == "rating" else 0)) for key in expected}
        if any(abs(expected[key] - found[key]) > 0.01 for key in expected):
            yield f"{where}: {found}, but the {len(ended)} ended games give {expected}"
        if set(history) != (games := {game.id for game, *_ in ended}):
            yield f"{where}: history {sorted(history)}, games {sorted(games)}"
        rating = boards.get("board:{rating}", {}).get(uid)
        on_board = found["rating"] if expected["games"] else None
        if rating != on_board and (None in (rating, on_board) or abs(rating - on_board) > 0.001):
            yield f"{where}: {rating} on the leaderboard of ratings, but {found}"
        for board, field_name in (("wins", "wins"), ("daily", "daily_points")):
            rows = [rows for key, rows in boards.items() if key.startswith(f"board:{{{board}}}:")]
            listed = sum(rows.get(uid, 0) for rows in rows)
            if listed != found[field_name]:
                yield f"{where}: {listed} on the leaderboards {board}, but {found}"


def sums_of(ended):
    """Returns the values of a user's fields after these games."""
    others = [part for game, _, part in ended if game.queue != "daily"]
    daily = [part for game, _, part in ended if game.queue == "daily"]
    return {
        "games": sum(part.get("counts", True) for part in others),
        "wins": sum(part["won"] for part in others),
        "rating": 1500 + sum(part.get("change", 0) for part in others),
        "daily_points": sum(part["points"] for part in daily),
    }


def games_of(evidence, queue):
    """Returns the games of a queue that phones were shown."""
    shown = evidence.entries("start", "update")
    return {entry.frame["game"] for _, entry in shown if entry.frame["queue"] == queue}


def answered_games(evidence):
    """Yields the games in which a phone saw an answer by a player of the game."""
    alone = games_of(evidence, "contest")
    for name, entry in evidence.entries("answered", "reveal", "update"):
        frame = entry.frame
        answered = {*frame.get("answers", ()), *frame.get("answered", ()), frame.get("player")}
        if name in answered if frame["game"] in alone else answered != {None}:
            yield frame["game"]


def no_started_game_is_lost(evidence):
    games = evidence.games
    answered = set(answered_games(evidence))
    kept = {game.id: game for game in evidence.kept}
    seats = sum(not seat.is_bot for game in kept.values() for seat in game.seats)
    histories = sum(map(len, evidence.of("history").values()))
    if seats != histories:
        yield f"{seats} seats in ended games, but {histories} entries in histories"
    for name, transcript in evidence.transcripts.items():
        for entry in received(transcript, "start", "update"):
            game = games.get(entry.frame["game"])
            is_void = game is None or game.phase == "end" and game.id not in kept
            if is_void and entry.frame["game"] not in answered:
                continue
            if (
                game is None
                or game.phase != "end"
                or name not in [seat.name for seat in game.seats]
            ):
                yield (
                    f"game {entry.frame['game']}, {name}: {game and game.fields}"
                    f"{excerpt(transcript, entry.at)}"
                )


# ---- checks of ways to play ----------------------------------------------------------------------


def bots_change_nothing_and_are_on_no_leaderboard(evidence):
    for key, value in evidence.store.items():
        names = [key, *value] if isinstance(value, dict) else [key]
        if found := [name for name in names if re.search(r"\bbot\d+\b", name)]:
            yield f"{key} has {found}"
    for game in evidence.games.values():
        for part in game.result if game.has_bots else ():
            if part.get("counts", True) or part["won"] or "rating" in part:
                yield f"game {game.id} with bots: {game.result}"
    for name, entry in evidence.entries("start", "update"):
        for player in entry.frame["players"]:
            if player.get("bot", False) != player["username"].startswith("Bot "):
                yield f"{name}: {entry}"


def a_day_has_one_try_and_the_same_questions_for_everybody(evidence):
    tries, quizzes, texts = defaultdict(set), defaultdict(set), defaultdict(set)
    days = evidence.of("tried")
    daily = games_of(evidence, "daily")
    for name, entry in evidence.entries("start", "update", "question"):
        frame = entry.frame
        if frame["game"] in daily:
            tries[name].add(frame["game"])
        if frame["game"] in daily and frame["type"] == "question":
            texts[frame["round"]].add((frame["text"], *frame["choices"]))
    counted = Counter(game for attempts in days.values() for game in attempts.values())
    for name, games in tries.items():
        if len(games) > len(days) or any(counted[game] != 1 for game in games):
            yield (
                f"{name} has played the games {games} of {len(days)} days; "
                f"the attempts are {counted}"
            )
    for game in evidence.games.values():
        if game.queue == "daily":
            quizzes[game.draw].add(game.quiz)
    for what, found in itertools.chain(quizzes.items(), texts.items()):
        if len(found) > (1 if what in quizzes else len(days)):
            yield f"different questions of {what}: {found}"


def a_streak_counts_each_day_once(evidence):
    for uid, user in evidence.users.items():
        days = {game.draw for game, *_ in evidence.ended(uid) if game.queue == "daily"}
        if (found := trivia.Streak.parse(user.get(":streak", "")).days) != len(days):
            yield f"user {uid}: a streak of {found} days, but played on {sorted(days)}"


def a_challenge_is_played_once_by_each_and_settles_once(evidence):
    contests = {key.split(":")[-1]: fields for key, fields in evidence.of("contest").items()}
    for code, fields in contests.items():
        runs = runs_of(fields)
        if len(runs) > int(fields["most"]):
            yield f"challenge {code} has too many runs: {fields}"
        for uid, run in runs.items():
            if wrong := wrong_run(run, evidence, uid, code):
                yield f"challenge {code}, {uid}: {wrong}"
    for game in evidence.games.values():
        if game.queue == "contest" and game.quiz != contests.get(game.draw, {}).get("quiz"):
            yield f"game {game.id} has other questions than challenge {game.draw}"
    for game in evidence.kept:
        run = runs_of(contests.get(game.draw, {})).get(game.seats[0].uid)
        if game.queue == "contest" and (run is None or run.game != game.id):
            yield (
                f"game {game.id} of {game.seats[0].name} is not that of challenge {game.draw}: "
                f"{run}"
            )
    made = [
        entry.frame["code"]
        for each in evidence.transcripts.values()
        for entry in each
        if entry.way == "made"
    ]
    if len(set(made)) < len(made) or set(made) - contests.keys():
        yield f"challenges are lost or doubled: made {sorted(made)}, stored {sorted(contests)}"


def wrong_run(run, evidence, uid, code):
    """Describes what is wrong with a player's run in a challenge; None if nothing is."""
    if code not in evidence.store.get(f"contests:{{{uid}}}", {}):
        return "it is not in the player's list"
    if run is None:
        return "it never ended"
    if game := evidence.games.get(run.game):
        answers = [game.fields.get(str(number), "-") for number in range(1, len(game.right) + 1)]
        if (run.score, run.answers, run.ended) != (game.seats[0].score, answers, game.ended):
            return f"{run}, but the game is {game.fields}"
    return None


def a_rematch_is_one_game_of_those_who_agreed(evidence):
    games, next_games = {game.id: game for game in evidence.kept}, defaultdict(set)
    for name, last, entry in rematches(evidence.transcripts):
        frame = entry.frame
        next_games[last].add(frame["game"])
        before = games.get(last)
        names = {player["username"] for player in frame["players"]}
        if before and not names <= {seat.name for seat in before.seats}:
            yield f"{name}: the rematch of {last} has other players: {entry}"
        if before and len(before.seats) == len(names) == 2 and frame.get("series") != before.wins():
            yield f"{name}: the series of {last} is {before.wins()}, but {entry}"
    for last, found in next_games.items():
        if len(found) > 1:
            yield f"several rematches of {last}: {found}"
    for name, entry in evidence.entries("end"):
        game = games.get(entry.frame["game"])
        if game and "series" in entry.frame and entry.frame["series"] != game.wins():
            yield f"{name}: the series is {game.wins()}, but {entry}"


def rematches(transcripts):
    """Yields (name, game, first entry of its rematch) of each phone that agreed and stayed."""
    for name, transcript in transcripts.items():
        agreed, current = "", 0
        for entry in transcript:
            current, frame = max(current, entry.connection), entry.frame
            if (
                entry.way in ("lost", "try")
                or entry.way == "out"
                and frame["type"] in ("join", "leave")
            ):
                agreed = ""
            if entry.way != "in" or entry.connection != current:
                continue
            if frame["type"] == "rematch":
                agreed = frame["game"] if frame["expires_ms"] and name in frame["players"] else ""
            elif agreed and frame["type"] in ("start", "update"):
                yield name, agreed, entry
                agreed = ""


def rooms_hold_together(evidence):
    for name, entry in evidence.entries("room"):
        room = entry.frame
        names = [player["username"] for player in room["players"]]
        is_right = room["host"] in names and name in names and set(room["connected"]) <= set(names)
        if not is_right or len(set(names)) < len(names) or len(names) > MOST_FRIENDS:
            about = f"host {room['host']}, players {names}, connected {room['connected']}"
            yield f"{name}: {about}{excerpt(evidence.transcripts[name], entry.at)}"
    for name, transcript in evidence.transcripts.items():
        room, banned = "", set()
        for entry in received(transcript, "room", "cancelled"):
            if entry.frame["type"] == "room":
                room = entry.frame["code"]
                if room in banned:
                    yield (
                        f"{name} is again in a room from which they were kicked"
                        f"{excerpt(transcript, entry.at)}"
                    )
            elif entry.frame["reason"] == "kicked":
                banned.add(room)
    for key, fields in evidence.of("room").items():
        if fields.keys() != {"closed"}:
            yield f"{key} is still open: {fields}"


def who_comes_late_is_asked_from_the_next_question_on(evidence):
    first = {
        (game.id, seat.name): seat.first for game in evidence.games.values() for seat in game.seats
    }
    for game in evidence.games.values():
        for seat in game.seats:
            if any(seat.log[: seat.first - 1]):
                yield f"game {game.id}: {seat.name} came in round {seat.first}, but has {seat.log}"
    for name, entry in evidence.entries("question"):
        if entry.frame["round"] < first.get((entry.frame["game"], name), 1):
            yield f"{name} is asked before they came: {entry}"


def lives_end_a_solo_game(evidence):
    for game in evidence.kept:
        lives, log = game.rules.get("lives", 0), game.seats[0].log
        wrong = sum(not answer or answer[0] != right for answer, right in zip(log, game.right))
        if lives and (wrong > lives or game.wrong != wrong):
            yield f"game {game.id}: {wrong} of {lives} lives: {game.fields}"


# ---- checks of phones and store ------------------------------------------------------------------


def no_message_of_a_game_is_missing_or_twice(evidence):
    for name, transcript in evidence.transcripts.items():
        for _, entries in itertools.groupby(
            sorted(received(transcript), key=lambda entry: entry.connection),
            key=lambda entry: entry.connection,
        ):
            for game, entry, what in disorder([entry for entry in entries if "seq" in entry.frame]):
                yield f"game {game}, {name}: {what}{excerpt(transcript, entry.at)}"


def disorder(entries):
    """Returns [(game, entry, what is wrong)] of the `seq` of messages on one connection."""
    wrong, last, hole = [], {}, None
    for entry in entries:
        game, seq = entry.frame["game"], entry.frame["seq"]
        if entry.frame["type"] == "update":
            hole = None
        elif seq <= last.get(game, 0):
            wrong.append((game, entry, f"seq {seq} after {last.get(game, 0)}"))
        elif seq > last.get(game, 0) + 1 and entry.frame["type"] != "end":
            hole = hole or (game, entry, f"seq {seq} after {last.get(game, 0)}, and no update")
        last[game] = max(seq, last.get(game, 0))
    return wrong + [hole] * (hole is not None and hole[1].at < entries[-1].at - MARGIN_S)


def no_phone_hears_nothing_for_too_long(evidence):
    for name, transcript in evidence.transcripts.items():
        for since, until, expected_s in silences(transcript):
            allowed = expected_s + MARGIN_S + outage(evidence.faults, since, until)
            if until - since > allowed:
                yield (
                    f"{name} received nothing for {until - since:.1f} s; "
                    f"at most {allowed:.1f} s are allowed"
                    f"{excerpt(transcript, since, 6, until - since + 4)}"
                )


SAME = object()


class Patience:
    """Computes how long a phone may receive nothing, after each entry of its transcript."""

    def __init__(self):
        self.waits = self.asked = self.playing = False
        self.room = ""  # state of the phone's room

    def after(self, entry):
        """Returns seconds; None: no message is due; SAME: the entry changes nothing."""
        if entry.way in ("lost", "try"):
            self.__init__()
            return None
        kind = entry.frame["type"] if entry.way in ("in", "out") else ""
        handler = getattr(self, f"_{entry.way}_{kind}", self._in_a_game)
        seconds = handler(entry.frame) if entry.way in ("in", "out") else SAME
        if seconds is not SAME:
            self.waits, self.asked = seconds is not None, entry.way == "out"
        return seconds

    def _in_a_game(self, frame):
        """Handles any other message of a game; a phone's own message changes nothing."""
        return SAME if "id" in frame else ANSWER_S

    def _in_pong(self, frame):
        return SAME

    def _out_join(self, frame):
        return SAME if self.waits else 0

    def _out_rematch(self, frame):
        if not frame["accept"]:
            return None
        return SAME if self.waits else REMATCH_S

    def _out_leave(self, frame):
        self.room = ""  # both for an answer `cancelled` and `end`
        return SAME

    def _in_error(self, frame):
        return None if self.asked else SAME

    def _in_queued(self, frame):
        self.room = ""
        if frame["queue"] == "fill":
            return frame.get("delay_ms", 0) / 1000 + BOTS_S + 1
        return frame["timeout_ms"] / 1000

    def _in_start(self, frame):
        self.playing = True
        return ANSWER_S

    _in_update = _in_start

    def _in_room(self, frame):
        begins = self.room == "waiting" and frame["state"] == "playing"
        self.room = frame["state"]
        if self.playing:
            return ANSWER_S
        return 0 if begins else WAIT_S + (frame["state"] == "playing") * WAIT_S

    def _in_rematch(self, frame):
        if self.playing:
            return SAME
        return frame["expires_ms"] / 1000 or None

    def _in_end(self, frame):
        self.playing = False
        return {"": None, "waiting": WAIT_S, "playing": 0}[self.room]

    def _in_cancelled(self, frame):
        self.playing, self.room = False, ""
        return None


def silences(transcript):
    """Returns [(since, until, longest expected)] of the times when a message was due."""
    found, since, expected_s, current, patience = [], None, 0, 0, Patience()
    for entry in transcript:
        current = max(current, entry.connection)
        seconds = patience.after(entry) if entry.connection == current else SAME
        if seconds is not SAME:
            if since is not None:
                found.append((since, entry.at, expected_s))
            since, expected_s = None if seconds is None else entry.at, seconds
    return found


@functools.cache
def documented_keys():
    """Returns the key table in the docstring of trivia.py."""
    module = ast.parse((ROOT / "trivia.py").read_text("utf-8"))
    return key_table(ast.get_docstring(module, clean=False))


def nothing_is_left_behind(evidence):
    for key in evidence.store:
        if re.match(BUSY, key):
            yield f"{key} holds {evidence.store[key]}"
    if playing := {
        queue: n for queue, n in evidence.store.get("playing:{lobby}", {}).items() if int(n)
    }:
        yield f"playing:{{lobby}} holds {playing}"
    if len(listed := evidence.store.get("workers:{lobby}", {})) != evidence.workers:
        yield f"workers:{{lobby}} holds {listed}, but {evidence.workers} must run"
    ending = ("game:", "room:", "contest:", "contests:", "tried:")
    for key, ttl in evidence.ttls.items():
        if key.startswith(ending) and ttl < 0:
            yield f"{key} has no expiry"
    for key, fields in evidence.of("game").items():
        if "plan" not in fields:
            yield f"{key} is an incomplete game: {fields}"
    table = documented_keys()
    for key, kind in evidence.types.items():
        if not any(pattern.fullmatch(key) and kind == expected for pattern, expected, _ in table):
            yield f"{key}, a {kind}, is not in the key table"


def unique_values_belong_to_those_who_have_them(evidence):
    claimed = {
        value: claim.split(" ")
        for bucket in evidence.of("unique").values()
        for value, claim in bucket.items()
    }
    had = {
        user[name].casefold(): uid
        for uid, user in evidence.users.items()
        for name in ("username", "email")
    }
    for what, claim in claimed.items():
        if had.get(what) != claim[0] or len(claim) != 2:
            yield f"{what} is claimed by {claim}, but {had.get(what)} has it"
    for what in had.keys() - claimed.keys():
        yield f"{what} of {had[what]} has no claim"


def nobody_waits_long_without_a_connection(evidence):
    for name, transcript in evidence.transcripts.items():
        for since, until in waits_of(transcript):
            allowed = MOST_WAIT_S + outage(evidence.faults, since, until)
            if until - since > allowed:
                yield (
                    f"{name} had no connection for {until - since:.1f} s"
                    f"{excerpt(transcript, since, 2, until - since + 2)}"
                )


def nobody_is_signed_out_or_replaced_by_an_older_connection(evidence):
    for name, transcript in evidence.transcripts.items():
        newest = 0  # the last connection; 0 while the phone tries to open a newer one
        for entry in transcript:
            newest = {"open": entry.connection, "try": 0}.get(entry.way, newest)
            code = entry.way == "lost" and entry.frame["code"]
            if (
                entry.frame.get("status") in (401, 403)
                or code == 4401
                or code == 4409
                and entry.connection == newest
            ):
                yield f"{name}: {entry}{excerpt(transcript, entry.at)}"


def everything_comes_to_rest(evidence):
    yield from evidence.incidents


def the_server_logs_no_traceback(evidence):
    # Helper processes of a killed worker may end with a traceback.
    for found in re.finditer(
        r"Traceback \(most recent call last\)(?!:\n  File \"<string>\")", evidence.log
    ):
        yield f"...{evidence.log[max(0, found.start() - 300) : found.start() + 2500]}"


CHECKS = [
    points_are_those_of_the_formula_and_add_up_to_the_score,
    what_the_phones_saw_is_what_is_stored,
    ranks_follow_the_scores,
    an_acknowledged_answer_counts_once_and_as_sent,
    results_are_applied_exactly_once,
    no_started_game_is_lost,
    bots_change_nothing_and_are_on_no_leaderboard,
    a_day_has_one_try_and_the_same_questions_for_everybody,
    a_streak_counts_each_day_once,
    a_challenge_is_played_once_by_each_and_settles_once,
    a_rematch_is_one_game_of_those_who_agreed,
    rooms_hold_together,
    who_comes_late_is_asked_from_the_next_question_on,
    lives_end_a_solo_game,
    no_message_of_a_game_is_missing_or_twice,
    no_phone_hears_nothing_for_too_long,
    nothing_is_left_behind,
    unique_values_belong_to_those_who_have_them,
    nobody_waits_long_without_a_connection,
    nobody_is_signed_out_or_replaced_by_an_older_connection,
    everything_comes_to_rest,
    the_server_logs_no_traceback,
]


def violations(evidence):
    """Runs all checks; returns [(name of the check, what is wrong)]."""
    return [(check.__name__, what) for check in CHECKS for what in check(evidence)]
