"""The phones of the failure campaign: what they play, how they behave, and what they write down.

A phone plays game after game in every way there is. It waits in queues; it plays alone, with bots,
and the questions of the day. It opens and joins rooms, and makes and accepts challenges. It agrees
to a rematch, declines it or says nothing. It does what a phone should, sometimes what it should
not, and keeps a transcript of everything.

Sections: games, transcripts, phones.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import random
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

# ---- games ---------------------------------------------------------------------------------------

# Relative frequency of each queue.
QUEUES = {
    "random": 3,
    "rated": 3,
    "party": 3,
    "fill": 3,
    "solo": 1,
    "sprint": 1,
    "daily": 2,
    "den": 8,
    "contest": 3,
}
MATCHED = ("random", "rated", "party", "fill")
SHIPPED = {"fill": "random", "sprint": "solo", "den": "friends", "contest": "challenge"}
# Time for an answer; for the start and a reveal; and for which an empty seat is kept.
ANSWER_S, SHORT_S, SEAT_S = (3, 0.3, 10)
REMATCH_S, BOTS_S = 4, 1  # time to agree to a rematch; time until bots come
WAIT_S = 20  # longest wait in a queue, and in a room in which nothing happens
LIVES, SPRINT_S, MOST_FRIENDS = 2, 5, 4
NOT_NOW = {  # refusals of a join after which a phone plays something else
    "already_played",
    "challenge_full",
    "challenge_played",
    "code_needed",
    "expired_code",
    "kicked",
    "own_challenge",
    "queue_full",
    "room_full",
    "room_locked",
    "too_many_attempts",
    "unknown_code",
}


def short_games(tree):
    """Edits schema.yaml: short games of all kinds; an exit ends some and not others."""
    tree["queues"] = {name: dict(tree["queues"][SHIPPED.get(name, name)]) for name in QUEUES}
    queues = tree["queues"]
    for spec in queues.values():
        spec.update(
            start_seconds=SHORT_S,
            reveal_seconds=SHORT_S,
            answer_seconds=ANSWER_S,
            seat_seconds=SEAT_S,
            rounds=3,
        )
    for name in MATCHED:
        queues[name].update(wait_seconds=WAIT_S, rated=True)
    queues["rated"].update(widen=300, rematch_seconds=REMATCH_S)
    queues["party"].update(
        players={"min": 2, "max": 4}, fill_seconds=0.5, rematch_seconds=REMATCH_S
    )
    bots = {"after_seconds": BOTS_S, "skill": "near"}
    queues["fill"].update(players=3, start_seconds=1, bots=bots)
    queues["solo"].update(lives=LIVES)
    del queues["sprint"]["lives"]
    queues["sprint"].update(total_seconds=SPRINT_S)
    queues["den"].update(players={"min": 2, "max": MOST_FRIENDS}, wait_seconds=WAIT_S)
    queues["contest"].update(players={"min": 2, "max": MOST_FRIENDS}, days=1)
    tree["limits"].update(login_failures=100_000, hashing_queue=1000, name_hold_days=0)
    tree["limits"].update(games_per_user=10_000)  # the checks compare all of them
    tree["limits"].update(pair_games=3, early_exit_seconds=1, early_exit_most_seconds=4)


# ---- transcripts ---------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Something that a phone did or saw."""

    at: float  # s, monotonic
    connection: int  # of this phone, from 1
    # try (to connect), refused {status}, open, in (frame), out (frame), made {code}, lost {code}
    way: str
    frame: dict

    def __str__(self):
        return (
            f"{self.at:.3f} #{self.connection} {self.way} "
            f"{json.dumps(self.frame, ensure_ascii=False)[:300]}"
        )


def received(transcript, *types):
    """Returns the entries of received frames of these types (default: all)."""
    return [
        entry
        for entry in transcript
        if entry.way == "in" and (not types or entry.frame["type"] in types)
    ]


def excerpt(transcript, at, before_s=4, after_s=4):
    """Formats what a phone saw around a moment."""
    return "".join(
        f"\n      {entry}" for entry in transcript if at - before_s <= entry.at <= at + after_s
    )


@dataclass
class Asked:
    """The answers that a player sent in one round, and the server's reactions."""

    sent: list = field(default_factory=list)  # entries
    refused: dict = field(default_factory=dict)  # id of a message -> error code
    acknowledged: str = ""  # how the server acknowledged an answer
    intime: list = field(default_factory=list)  # entries sent 0.5 s or more before the deadline


def answers_of(transcript):
    """Returns {(game, round): Asked} of one phone, without acknowledgements that others got."""
    asked, by_id, closes = defaultdict(Asked), {}, {}
    for entry in transcript:
        frame, key = entry.frame, (entry.frame.get("game"), entry.frame.get("round"))
        if entry.way == "out" and frame["type"] == "answer":
            asked[key].sent.append(entry)
            by_id[frame["id"]] = key
            if entry.at < closes.get(key, 0) - 0.5:
                asked[key].intime.append(entry)
        elif entry.way == "in" and frame["type"] in ("question", "update"):
            closes[key] = entry.at + frame.get("answer_ms", frame.get("left_ms")) / 1000
            if "choice" in frame and frame["phase"] in ("question", "reveal"):
                asked[key].acknowledged = "own update"
        elif entry.way == "in" and frame["type"] == "error" and frame.get("id") in by_id:
            asked[by_id[frame["id"]]].refused[frame["id"]] = frame["code"]
            if frame["code"] == "already_answered":
                asked[by_id[frame["id"]]].acknowledged = "already_answered"
    return asked


ARRIVED = ("update", "queued", "room", "rematch", "start", "end")


def is_arrival(frame):
    """Returns whether a frame tells a new connection where its player is."""
    return frame["type"] in ARRIVED or frame.get("code") in NOT_NOW


def waits_of(transcript):
    """Returns [(since, until)] of the times without a connection.

    Each lasts until the server says where the player is.
    """
    waits, since, current = [], None, 0
    for entry in transcript:
        if entry.way == "open":
            current = max(current, entry.connection)
        elif entry.way == "lost" and entry.connection == current and since is None:
            since = entry.at
        elif since is not None and entry.way == "in" and is_arrival(entry.frame):
            waits.append((since, entry.at))
            since = None
    return waits


# ---- phones --------------------------------------------------------------------------------------


class Crowd:
    """The codes of rooms and challenges that phones tell each other."""

    def __init__(self):
        self.codes = {"den": deque(maxlen=6), "contest": deque(maxlen=10)}

    def tell(self, queue, code):
        """Tells the other phones a code."""
        if code not in self.codes[queue]:
            self.codes[queue].append(code)

    def forget(self, code):
        """Removes a code that is not valid."""
        for codes in self.codes.values():
            if code in codes:
                codes.remove(code)

    def some(self, queue, source):
        """Returns a code of a queue, or ''."""
        codes = self.codes.get(queue)
        return source.choice(codes) if codes else ""


class Wire:
    """A player's connections, one after the other, and the transcript of all of them."""

    def __init__(self, server, session, seed, fickle, crowd, queues):
        self.server, self.token, self.name = server, session["token"], session["user"]["username"]
        self.random, self.fickle = random.Random(seed), fickle
        self.crowd, self.queues = crowd, queues
        self.transcript, self.ids, self.tasks, self.sent = [], itertools.count(1), set(), {}
        self.connection, self.socket, self.whim = 0, None, asyncio.Event()
        self.state, self.retiring, self.room, self.where = "away", False, {}, self._choose()

    # -- connections

    async def live(self):
        """Stays connected until retired and idle."""
        pause = 0.05
        while not (self.retiring and self.state == "idle"):
            before = self.connection
            code = await self._visit()
            pause = 0.05 if self.connection > before else min(pause * 2, 2)
            if code not in (1000, 1012):
                await asyncio.sleep(pause * self.random.uniform(0.5, 1))

    async def _visit(self):
        """Runs a connection until it ends, or until a second one replaces it.

        Returns its close code, or 1000 if another connection is due.
        """
        self.note("try")
        try:
            socket = await connect(
                self._url(),
                proxy=None,
                compression=None,
                open_timeout=5,
                close_timeout=2,
                ping_interval=5,
                ping_timeout=5,
                additional_headers={"Authorization": f"Bearer {self.token}"},
            )
        except InvalidStatus as error:
            return self.note("refused", status=error.response.status_code)
        except (OSError, InvalidHandshake, ConnectionClosed, EOFError) as error:
            return self.note("refused", error=repr(error))
        self.connection, self.socket = self.connection + 1, socket
        self.state, self.room = "away", {}
        self.note("open")
        reader = self._spawn(self._read(socket, self.connection))
        return await self._until_whim(socket, reader)

    def _url(self):
        """Returns the URL to connect to: mostly the last one, to a room also without its code."""
        if self.random.random() < 0.15:
            self.where = self._choose()
        queue, code = self.where
        if queue == "den" and self.random.random() < 0.3:
            code = ""
        query = f"?code={code}" if code else ""
        return f"ws://127.0.0.1:{self.server.port}/game/{queue}{query}"

    def _choose(self):
        """Chooses what to play: (queue, code, or '' for a new room or challenge)."""
        queue = self.random.choices([*self.queues], [*self.queues.values()])[0]
        joins = self.random.random() < 0.75
        return queue, self.crowd.some(queue, self.random) if joins else ""

    async def _until_whim(self, socket, reader):
        self.whim.clear()
        whim = self._spawn(self.whim.wait())
        after_s = self.random.expovariate(1 / 20) if self.fickle else None
        await asyncio.wait({reader, whim}, timeout=after_s, return_when=asyncio.FIRST_COMPLETED)
        whim.cancel()
        if not reader.done() and self.random.random() < 0.3:
            return 1000  # opens a second connection beside the first
        if not reader.done():
            socket.transport.abort()
        return await reader

    async def _read(self, socket, number):
        with contextlib.suppress(ConnectionClosed):
            async for text in socket:
                frame = json.loads(text)
                self.note("in", number, **frame)
                if number == self.connection:
                    self._react(frame)
        self.note("lost", number, code=socket.close_code or 1006)
        return socket.close_code or 1006

    def note(self, way, number=None, **frame):
        """Writes an entry to the transcript."""
        self.transcript.append(Entry(time.monotonic(), number or self.connection, way, frame))

    def _spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def close(self):
        """Ends everything at once."""
        for task in list(self.tasks):
            task.cancel()
        if self.socket is not None:
            self.socket.transport.abort()

    # -- out

    def say(self, kind, after_s=0.0, when=lambda: True, **values):
        """Sends a message after a pause, if the connection is still current and `when` holds."""
        message = {"type": kind, "id": next(self.ids)} | values
        self._spawn(self._say(self.socket, self.connection, message, after_s, when))

    async def _say(self, socket, number, message, after_s, when):
        await asyncio.sleep(after_s)
        if number == self.connection and when():
            self.sent[message["id"]] = message
            self.note("out", number, **message)
            with contextlib.suppress(ConnectionClosed):
                await socket.send(json.dumps(message))

    def _react(self, frame):
        raise NotImplementedError


class Phone(Wire):
    """Plays game after game until told to retire.

    `state` is away (until the server says where the player is), idle, queued, room, playing, or
    again (a rematch may come).
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.choices, self.round, self.game, self.seq, self.agreed = {}, None, "", 0, False

    def _react(self, frame):
        if "seq" in frame:
            self._count(frame)
        handler = getattr(self, f"_on_{frame['type']}", None)
        if handler is not None:
            handler(frame)

    def _count(self, frame):
        fresh = frame["type"] in ("update", "start", "end")
        if not fresh and (frame["game"], frame["seq"]) != (self.game, self.seq + 1):
            self.say("check")
        self.game, self.seq = frame["game"], frame["seq"]

    def _is(self, *states):
        """Returns a condition: the phone is in one of these states."""
        return lambda: self.state in states

    # -- from one game to the next

    def retire(self):
        """Plays no further game."""
        self.retiring = True
        if self.state in ("queued", "room"):
            self.say("leave", when=self._is("queued", "room"))
        elif self.state in ("idle", "again"):
            self._play_on()

    def _play_on(self):
        """Plays something else, or ends if retired."""
        self.state, self.room, self.agreed, self.round = "idle", {}, False, None
        if self.retiring:
            self._spawn(self.socket.close())
        else:
            self.where = self._choose()
            self._spawn(self._join(*self.where))

    async def _join(self, queue, code):
        if queue == "contest" and not code:
            code = await self._challenge()
            self.where = queue, code
        fields = {"queue": queue} | ({"code": code} if code else {})
        self.say("join", self.random.uniform(0, 0.3), self._is("idle"), **fields)

    async def _challenge(self):
        """Makes a challenge; returns its code, or '' if it was refused or the reply was lost."""
        request = "POST", "/challenges", {"queue": "contest"}, self.token
        with contextlib.suppress(OSError, EOFError, http.client.HTTPException):
            call = asyncio.to_thread(self.server.http, *request)
            answer = await asyncio.wait_for(call, 3)  # a stopped worker does not reply
            if answer.status == 201:
                self.note("made", code=answer.json["code"])
                self.crowd.tell("contest", answer.json["code"])
                return answer.json["code"]
        return ""

    async def _later(self, after_s, work, when):
        number = self.connection
        await asyncio.sleep(after_s)
        if number == self.connection and when():
            work()

    def _on_queued(self, frame):
        self.state = "queued"
        if self.retiring:
            self.say("leave", when=self._is("queued"))

    def _on_cancelled(self, frame):
        self._play_on()

    def _on_error(self, frame):
        refused = self.sent.get(frame.get("id"), {"type": "join"})
        kind, code = refused["type"], frame["code"]
        if code == "unavailable":
            self._say_again(refused)
        elif kind == "join" and code in NOT_NOW:
            self.crowd.forget(refused.get("code", self.where[1]))
            if self.state in ("idle", "away"):
                self._play_on()
        elif (code, self.state) == ("rematch_over", "again") or self._is_in_vain(kind, code):
            self._play_on()

    def _is_in_vain(self, kind, code):
        """Returns whether a retiring phone tried to leave something that it had left already."""
        return self.retiring and (kind, code) == ("leave", "wrong_state")

    def _say_again(self, refused):
        kind, asked = refused["type"], (refused.get("game"), refused.get("round"))
        again = {key: value for key, value in refused.items() if key not in ("type", "id")}
        is_due = {
            "answer": lambda: self.round == asked,
            "join": self._is("idle", "away"),
            "rematch": self._is("again", "queued"),
        }
        self.say(
            kind, self.random.uniform(0.2, 0.5), is_due.get(kind, self._is(self.state)), **again
        )

    # -- in a game

    def _on_start(self, frame):
        self.state, self.round, self.agreed = "playing", None, False

    def _on_question(self, frame):
        self.round = (frame["game"], frame["round"])
        if self.random.random() < 0.01:
            self.room = {}  # the player leaves the room too
            return self.say("leave", when=self._is("playing"))
        if self.random.random() < 0.02:
            self._direct(self._is("playing"))
        if self.random.random() < 0.9:
            self._answer(len(frame["choices"]), twice=self.random.random() < 0.1)

    def _on_update(self, frame):
        self.state, self.round, self.agreed = "playing", None, False
        if frame["phase"] == "question" and "question" in frame:
            self.round = (frame["game"], frame["round"])
            if "choice" not in frame and self.random.random() < 0.9:
                self._answer(len(frame["question"]["choices"]))

    def _answer(self, count, twice=False):
        """Answers the open question with one choice, or also tries another one right after it."""
        asked = self.round
        choice = self.choices.setdefault(asked, self.random.randrange(count))
        after_s = self.random.choice(
            [self.random.uniform(0, 1)] * 9 + [self.random.uniform(0, ANSWER_S + 0.2)]
        )
        for one in [choice, (choice + 1) % count][: 1 + twice]:
            self.say(
                "answer",
                after_s,
                lambda: self.round == asked,
                game=asked[0],
                round=asked[1],
                choice=one,
            )

    def _on_reveal(self, frame):
        self.round = None

    def _on_end(self, frame):
        self.round = None
        if self.room:
            self.state = "room"
            self._stay()
        elif "rematch_ms" in frame and not self.retiring and self.random.random() < 0.75:
            self._consider(frame["rematch_ms"] / 1000)
        else:
            self._play_on()

    # -- the same again

    def _consider(self, left_s):
        """Agrees to a rematch, declines it, or says nothing."""
        self.state = "again"
        undecided, after_s = self._is("again"), self.random.uniform(0, 1.5)
        will = self.random.choices(("agree", "decline", "silent"), (6, 2, 2))[0]
        if will != "silent":
            self.say("rematch", after_s, undecided, accept=will == "agree")
        if will != "agree":  # a phone that agrees waits for the server
            pause_s = after_s + 0.1 if will == "decline" else left_s + 0.5
            self._spawn(self._later(pause_s, self._play_on, undecided))

    def _on_rematch(self, frame):
        if frame["expires_ms"] == 0:
            if self.state == "again" or self.state == "queued" and self.agreed:
                self._play_on()
        elif self.state == "away" and self.retiring:
            self._play_on()
        elif self.state == "away":
            self.state = "again"
        elif self.state == "queued" and self.random.random() < 0.5:
            self.agreed = True
            self.say("rematch", 0.1, self._is("queued"), accept=True)

    # -- in a room

    def _on_room(self, frame):
        self.room, self.where = frame, ("den", frame["code"])
        self.crowd.tell("den", frame["code"])
        if self.state != "playing":
            self.state = "room"
            self._stay()

    def _stay(self):
        """Waits in a room for a game, as a host or as a guest, for a limited time."""
        room = self.room
        still = lambda: self.state == "room" and self.room is room
        if self.retiring:
            return self.say("leave", when=self._is("room"))
        self.say("leave", self.random.uniform(4, 12), still)
        if self.random.random() < 0.2:
            self._direct(still)
        if room["host"] == self.name and len(room["connected"]) > 1 or self.random.random() < 0.05:
            self.say("begin", self.random.uniform(0.1, 1.5), still)

    def _direct(self, when):
        """Sends a message of a host; sometimes without being the host."""
        others = [player["username"] for player in self.room.get("players", ())]
        others = [name for name in others if name != self.name]
        is_host = self.room.get("host") == self.name
        if not others or not is_host and self.random.random() < 0.9:
            return
        act = self.random.choice(("lock", "pass", "kick"))
        values = {"locked": not self.room["locked"]} if act == "lock" else {}
        values = values or {"player": self.random.choice(others)}
        self.say(act, self.random.uniform(0, 1), when, **values)
