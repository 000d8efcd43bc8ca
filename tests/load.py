"""Plays real games against a trivia server, by the thousand, and measures what its host carries.

    python tests/load.py --players 20000 --think 4 --ramp 60 --minutes 5 http://127.0.0.1:8000
    python tests/load.py --players 1000,5000,20000 --seed-accounts --json sweep.json --plot sweep.png
    python tests/load.py --plot sweep.png sweep.json        # shows and draws an earlier run again
    python tests/load.py --guard --seed-accounts            # has an answer become more costly? See the end of this text

Players are registered (or taken from --accounts FILE, or written into the Redis of a server on this host with
--seed-accounts), connect to /game/QUEUE, answer at random after a think time, play again after each game, and reconnect
when their connection drops, as a phone would. Each process holds up to 5,000 of them; on loopback each has a source
address of its own (127.0.0.1, 127.0.0.2, ...), for one address has only about 28,000 ports. With several numbers of
players each is a step: more of them connect within the ramp, then it is measured for so many minutes.

What is measured, in ms, after the ramp of each step:

    delivery    from sending `answer` until `answered` is with an opponent, or, for the answer that closes the question,
                until the `reveal` is. The players of a game may be in different processes; all read the same clock
                (CLOCK_MONOTONIC), and note in shared memory when they sent and received. Left out are answers of
                players who lost their connection meanwhile: the share of answers that was measured is said.
    lateness    arrival of `question` against its due time, which the `reveal` (or `start`) before announced to the
                same player. What is early counts as 0.
    skew        between the first and the last player of a game whom a `question` or a `reveal` reached.
    match       from asking for a game until `start`.

And with the ramp: errors by kind;

    connect     from opening a connection until it is accepted;
    away        from the loss of a connection until the first `queued` or `update` on the next.

A game is lost when it had a `start` or an `update` but its player saw no `end`, and the server has no record of its end
either; with a record, it ended while he was away. Games that still go on at the end of the run are not lost.

On the server's own host its CPU and memory are read too, of the process that listens on the port, its descendants and
its Redis. Percentiles are exact to 2 %. When the load tool itself was too slow for its figures to be the server's, it
says so. It can't draw without matplotlib, which is not among the requirements.

The exit code is 0 when there were no errors and no game was lost. Connections closed with 1012 (the server restarts)
are not errors, so that a rolling restart can be measured: start this, then restart the server.

The guard: CPU per answer depends on the machine and on what else it does. What an answer costs in comparison to a
message that a bare uvicorn echoes, in the same seconds and beside it, depends much less on it. --guard measures both, as
tests/load_guard.json says, and the exit code is 1 when the ratio is more than 15 % above the one that is kept there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import http.client
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import random
import resource
import secrets
import signal
import socket
import ssl
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import psutil
import redis
import uvicorn
import uvloop
from picows import WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table

# ---- settings -----------------------------------------------------------------------------------------------
# What is not worth an option.

ROOT = Path(__file__).resolve().parent.parent
GUARD_FILE, GUARD_LIMIT = Path(__file__).with_name("load_guard.json"), 1.15
PLAYERS_A_PROCESS = 5_000
REGISTRATIONS = 16          # at a time; the server hashes a password in about 25 ms of CPU
SEEDINGS = 200              # at a time
TIMEOUT_S = 15              # of an HTTP request and of a handshake
REST_S = 1.0                # between two games of a player, at most
PATIENCE_S = 5              # a server that is silent for so long beyond what is due has lost the player
LAG_S, LAG_LIMIT_MS, CPU_LIMIT = 0.05, 20, 0.9      # our own timer, and from where on we do not trust ourselves
TOO_LATE_MS = 500           # who comes back to a question that ends so soon leaves it
LINE_S = 5                  # between the lines of progress when there is no terminal
ECHOES, ECHO_S = 200, 0.5   # connections to the echo, and how often each sends
MIB = 2 ** 20

CLOSE_RESTART, CLOSE_TRY_LATER = 1012, 1013
CLOSE_LOST = 1006           # the connection ended without a code
CLOSES_FOR_GOOD = {4401, 4409}
EXPECTED = f"close {CLOSE_RESTART}"     # the one kind that is no error
WITH_RAMP = ("connect", "away")         # durations that are taken in the ramp too

monotonic = time.monotonic


class Fatal(SystemExit):
    """Ends the program with one line."""


# ---- measures -----------------------------------------------------------------------------------------------
# What is counted, and how durations are kept: they add up, whatever their number.

class Histogram(Counter):
    """Durations, counted in steps of 2 %."""

    def add(self, seconds: float) -> None:
        """Counts one; what is negative counts as 0."""
        self[int(50 * math.log(max(1.0, seconds * 1e6)))] += 1

    def quantile_ms(self, share: float) -> float | None:
        """The duration that a share of them does not exceed, in ms; None if there are none."""
        wanted = share * self.total()
        for step in sorted(self):
            wanted -= self[step]
            if wanted <= 0:
                return round(math.exp((step + 0.5) / 50) / 1000, 3) if step else 0.0
        return None

    def summary(self) -> dict:
        """As it is reported."""
        quantiles = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1}
        return {"count": self.total()} | {name: self.quantile_ms(share) for name, share in quantiles.items()}


class Tally:
    """What happened to some players in some time."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()       # answers, measured, rounds, reconnects, unmatched
        self.errors: Counter[str] = Counter()
        self.times: dict[str, Histogram] = defaultdict(Histogram)
        self.started: set[str] = set()              # games
        self.ended: dict[str, str] = {}             # game -> reason
        self.missed: set[tuple[str, str]] = set()   # (game, token) of players who saw no end

    def add(self, other: Tally) -> None:
        """Adds what happened to others, or at another time."""
        for mine, more in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.update(more) if mine is not self.times else None
        for name, histogram in other.times.items():
            self.times[name].update(histogram)


class Report(NamedTuple):
    """What a process of players says when it is asked."""

    tally: Tally                # since it was asked before
    states: Counter[str]        # how many players are in which
    cpu_s: float


class Board:
    """Who sent or received what of which round when: shared by all processes, since a game's players may be in several.

    A player writes what is his alone, the time before the round; who reads it was told of it by the server, later.
    """

    QUESTION, ANSWER, REVEAL = range(3)

    def __init__(self, memory: Any) -> None:
        self.cells, self.half = memoryview(memory).cast("B").cast("d"), len(memory) // 2
        self.players = self.half // 3

    @staticmethod
    def memory(players: int) -> Any:
        """What is shared."""
        return multiprocessing.get_context("spawn").RawArray("d", 6 * players)

    def note(self, what: int, player: int, round_id: float, at: float) -> None:
        """Notes that it happened to a player; round 0: that it did not."""
        cell = what * self.players + player
        self.cells[cell] = at
        self.cells[self.half + cell] = round_id

    def when(self, what: int, player: int, round_id: float) -> float:
        """When it happened to a player in this round; 0 if it did not."""
        cell = what * self.players + player
        return self.cells[cell] if self.cells[self.half + cell] == round_id else 0.0


# ---- player -------------------------------------------------------------------------------------------------
# One player and his connection, driven by what arrives; at most one timer each. States:
#
#   away --connected--> joining --queued--> waiting --start--> playing --end--> resting --join--> joining
#
# and from each back to `away` when the connection is lost, or to `gone` when the server does not want him back.

class Seat(msgspec.Struct, gc=False):
    """A player of a game."""

    username: str


class Question(msgspec.Struct, gc=False):
    """What an `update` says about the open question."""

    choices: list[str] = []


class Message(msgspec.Struct, gc=False):
    """What is read of a server's message; the rest is skipped."""

    type: str
    game: str = ""
    seq: int = 0
    round: int = 0
    players: list[Seat] = []
    player: str = ""
    choices: list[str] = []
    question: Question | None = None
    answers: dict[str, msgspec.Raw] = {}
    choice: int | None = None
    phase: str = ""
    reason: str = ""
    code: str = ""
    starts_ms: float = 0
    answer_ms: float = 0
    reveal_ms: float = 0
    left_ms: float = 0


decode = msgspec.json.Decoder(Message).decode


class Player(WSListener):
    """One player."""

    __slots__ = ("crowd", "number", "name", "token", "transport", "state", "game", "seq", "others", "round", "round_id",
                 "whole", "unheard", "due_at", "asked_at", "lost_at", "alive_at", "attempts", "close_code", "timer")

    def __init__(self, crowd: Crowd, number: int, name: str, token: str) -> None:
        self.crowd, self.number, self.name, self.token = crowd, number, name, token
        self.transport: WSTransport | None = None
        self.state, self.game, self.seq, self.round = "new", "", 0, 0
        self.others: list[int] = []     # the numbers of the opponents
        self.unheard: list[int] = []    # ... of whose answer we have not been told
        self.round_id = 0.0             # for the board: the round and its game
        self.whole = False              # nothing of this round was missed
        self.due_at = self.asked_at = self.lost_at = self.alive_at = 0.0
        self.attempts, self.close_code = 0, CLOSE_LOST
        self.timer: asyncio.TimerHandle | None = None

    # -- connection

    def connect_soon(self, pause_s: float) -> None:
        """Connects after a pause."""
        self.state = "away"
        self._set_timer(pause_s, self.crowd.spawn, self._connect)

    async def _connect(self) -> None:
        self.asked_at, self.close_code = monotonic(), CLOSE_LOST
        try:
            await self.crowd.open(lambda: self, self.token)
        except WSHandshakeError as error:
            status = error.response.status if error.response else 0
            self._failed(f"HTTP {int(status)}" if status else "handshake failed", final=status in (401, 403, 404))
        except TimeoutError:
            self._failed("handshake timed out")
        except (OSError, WSError) as error:
            errno = getattr(error, "errno", None)
            self._failed(f"connect: {errno and os.strerror(errno) if (errno or 0) > 0 else error}")

    def _failed(self, kind: str, final: bool = False) -> None:
        self.crowd.tally.errors[kind] += 1
        if final:
            self._give_up()
        else:
            self._reconnect()

    def _give_up(self) -> None:
        """The server does not want him any more."""
        self._miss()
        self._set_timer(None)
        self.state = "gone"

    def _reconnect(self, code: int = CLOSE_LOST) -> None:
        """At once after a restart, else after pauses that grow, and differ from player to player."""
        if code == CLOSE_TRY_LATER:
            self.attempts = max(self.attempts, 3)
        pause_s = 0 if code == CLOSE_RESTART else min(30, 0.5 * 2 ** self.attempts) * random.uniform(0.5, 1.5)
        self.attempts = min(self.attempts + 1, 10)
        self.connect_soon(pause_s)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport, self.state, self.alive_at = transport, "joining", monotonic()
        self.crowd.tally.times["connect"].add(self.alive_at - self.asked_at)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if transport is not self.transport or self.crowd.stopping:
            return
        self.transport, self.whole, self.due_at = None, False, 0.0
        self.crowd.board.note(Board.ANSWER, self.number, 0, 0)      # it may not have arrived
        self.lost_at = self.lost_at or monotonic()
        if self.close_code:         # else it was us, see drop()
            self.crowd.tally.errors[f"close {self.close_code}"] += 1
        if self.close_code in CLOSES_FOR_GOOD:
            self._give_up()
        else:
            self._reconnect(self.close_code)

    def drop(self, kind: str) -> None:
        """Counts an error, gives the connection up and makes a new one."""
        self.crowd.tally.errors[kind] += 1
        self.close_code = 0
        self.transport.disconnect(False)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.alive_at = monotonic()
            try:
                message = decode(frame.get_payload_as_memoryview())
            except msgspec.DecodeError:
                self.crowd.tally.errors["unreadable message"] += 1
                return
            if message.seq and message.type not in ("start", "update"):
                self._follow(message)
            if handler := HANDLERS.get(message.type):
                handler(self, message, self.alive_at)
        elif frame.msg_type == WSMsgType.CLOSE:
            self.close_code = int(frame.get_close_code()) or CLOSE_LOST
            transport.disconnect()

    def _send(self, text: bytes) -> None:
        if self.transport is not None:
            self.transport.send(WSMsgType.TEXT, text)

    def _set_timer(self, delay_s: float | None, work: Callable | None = None, *args: Any) -> None:
        """Does something later, instead of what was to be done."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if delay_s is None else self.crowd.loop.call_later(delay_s, work, *args)

    # -- messages

    def _follow(self, message: Message) -> None:
        if message.game != self.game:
            self.crowd.tally.errors["message of another game"] += 1
        elif message.seq != self.seq + 1:
            self.crowd.tally.errors["gap in seq"] += 1
            self.whole = False
            self._send(b'{"type":"check"}')
        self.seq = message.seq

    def _back(self, now: float) -> None:
        """The server knows him again."""
        self.attempts = 0
        if self.lost_at:
            self.crowd.tally.times["away"].add(now - self.lost_at)
            self.crowd.tally.counts["reconnects"] += 1
            self.lost_at = 0.0

    def _enter(self, message: Message) -> None:
        if message.game != self.game:
            self._miss()
            self.game = message.game
            self.crowd.tally.started.add(self.game)
            names = [seat.username for seat in message.players if seat.username != self.name]
            self.others = [self.crowd.plan.numbers[name] for name in names if name in self.crowd.plan.numbers]
        self.state, self.seq = "playing", message.seq

    def _miss(self) -> None:
        """Whatever game he was in, he will see no end of it."""
        if self.game:
            self.crowd.tally.missed.add((self.game, self.token))
            self.game = ""

    def _on_queued(self, message: Message, now: float) -> None:
        self._miss()
        self.state = "waiting"
        self._back(now)

    def _on_start(self, message: Message, now: float) -> None:
        self.crowd.tally.times["match"].add(now - self.asked_at)
        self._enter(message)
        self.due_at = now + message.starts_ms / 1000

    def _on_update(self, message: Message, now: float) -> None:
        self._back(now)
        self._enter(message)
        self.round, self.whole, self.due_at = message.round, False, 0.0
        self._set_timer(None)
        answerable = message.phase == "question" and message.choice is None and message.left_ms > TOO_LATE_MS
        if answerable and message.question:
            self._think(len(message.question.choices), message.left_ms / 1000)

    def _on_question(self, message: Message, now: float) -> None:
        if self.due_at:
            self.crowd.tally.times["lateness"].add(now - self.due_at)
        self.round, self.whole, self.unheard = message.round, True, self.others.copy()
        self.round_id = zlib.crc32(self.game.encode()) * 1000.0 + message.round
        self._note_skew(Board.QUESTION, now)
        self._think(len(message.choices), message.answer_ms / 1000)

    def _think(self, choices: int, left_s: float) -> None:
        delay_s = min(self.crowd.plan.think_s * (0.5 + random.random()), 0.9 * left_s)
        self._set_timer(delay_s, self._answer, int(random.random() * choices))

    def _answer(self, choice: int) -> None:
        self.crowd.tally.counts["answers"] += 1
        if self.whole:
            self.crowd.board.note(Board.ANSWER, self.number, self.round_id, monotonic())
        self._send(b'{"type":"answer","round":%d,"choice":%d}' % (self.round, choice))

    def _on_answered(self, message: Message, now: float) -> None:
        number = self.crowd.plan.numbers.get(message.player)
        if self.whole and number in self.unheard:
            self.unheard.remove(number)
            self._note_delivery(number, now)

    def _note_delivery(self, sender: int, now: float) -> None:
        if sent_at := self.crowd.board.when(Board.ANSWER, sender, self.round_id):
            self.crowd.tally.times["delivery"].add(now - sent_at)
            self.crowd.tally.counts["measured"] += 1 / len(self.others)

    def _note_skew(self, what: int, now: float) -> None:
        """The last one whom it reaches finds the others' times on the board."""
        board, round_id = self.crowd.board, self.round_id
        board.note(what, self.number, round_id, now)
        times = [board.when(what, other, round_id) for other in self.others]
        if times and all(times):
            self.crowd.tally.times["skew"].add(now - min(times))

    def _on_reveal(self, message: Message, now: float) -> None:
        self._set_timer(None)
        self.due_at = now + message.reveal_ms / 1000
        self.crowd.tally.counts["rounds"] += 1 / (len(self.others) + 1)
        if self.whole and message.round == self.round:
            self._note_skew(Board.REVEAL, now)
            if len(message.answers) == len(self.others) + 1:    # else it was not an answer that caused it
                for number in self.unheard:
                    self._note_delivery(number, now)

    def _on_end(self, message: Message, now: float) -> None:
        self.crowd.tally.ended[message.game] = message.reason
        self.game = ""
        self._rest(random.uniform(0, REST_S))

    def _on_cancelled(self, message: Message, now: float) -> None:
        self.crowd.tally.counts["unmatched"] += not self.game
        self._miss()
        self._rest(random.uniform(0, REST_S))

    def _rest(self, seconds: float) -> None:
        self.state, self.due_at = "resting", 0.0
        self._set_timer(seconds, self._join)

    def _join(self) -> None:
        self.state, self.asked_at = "joining", monotonic()
        self._send(b'{"type":"join"}')

    def _on_error(self, message: Message, now: float) -> None:
        self.crowd.tally.errors[f"error {message.code}"] += 1
        self.whole = False
        if self.state == "joining":
            self._rest(random.uniform(1, 3))


HANDLERS = {"queued": Player._on_queued, "start": Player._on_start, "question": Player._on_question,
            "answered": Player._on_answered, "reveal": Player._on_reveal, "end": Player._on_end,
            "update": Player._on_update, "cancelled": Player._on_cancelled, "error": Player._on_error}


# ---- crowd --------------------------------------------------------------------------------------------------
# A process of players. Each number that comes through its pipe says how many of all players are to play from now on, and
# is answered with a report; STOP is the last.

STOP = -1


class Target(NamedTuple):
    """Where the server is."""

    url: str                    # with an address instead of `localhost`, so that nobody has to ask for it again
    name: str                   # as the certificate has it
    loopback: bool
    insecure: bool              # any certificate will do

    def ssl(self) -> ssl.SSLContext | None:
        """How to check certificates; None without TLS."""
        if not self.url.startswith("https"):
            return None
        return ssl._create_unverified_context() if self.insecure else ssl.create_default_context()


class Plan(NamedTuple):
    """What a crowd is to do."""

    target: Target
    queue: str
    address: str                            # to connect from, or ''
    accounts: list[tuple[str, str]]         # (username, token) of all players; of which ours are ...
    ours: slice
    think_s: float
    ramp_s: float
    silence_s: dict[str, float]             # state -> how long the server may say nothing
    numbers: dict[str, int]                 # username -> number of the player


class Crowd:
    """The players of a process."""

    def __init__(self, plan: Plan, board: Board, pipe: Any) -> None:
        self.plan, self.board, self.pipe = plan, board, pipe
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        self.tally, self.lags, self.stopping, self.tasks = Tally(), Histogram(), False, set()
        self.players = [Player(self, number, *plan.accounts[number]) for number in range(len(plan.accounts))[plan.ours]]
        self.url = f"{plan.target.url.replace('http', 'ws', 1)}/game/{plan.queue}"
        self.options = {"socket_factory": self._socket if plan.address else None, "ssl_context": plan.target.ssl(),
                        "websocket_handshake_timeout": TIMEOUT_S, "read_buffer_init_size": 2048}
        if self.options["ssl_context"]:
            self.options["server_hostname"] = plan.target.name

    async def run(self) -> None:
        """Plays until told to stop."""
        self.loop.add_reader(self.pipe.fileno(), self._on_command)
        self._beat(monotonic())
        await self.stopped.wait()

    async def open(self, listener: Callable, token: str) -> None:
        """A connection of a player."""
        await ws_connect(listener, self.url, extra_headers={"Authorization": f"Bearer {token}"}, **self.options)

    def spawn(self, work: Callable) -> None:
        """Starts a task and keeps it."""
        task = self.loop.create_task(work())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _socket(self, _: Any) -> socket.socket:
        """A socket with our source address; its port is chosen when it connects, so that more of them are free."""
        one = socket.socket(socket.AF_INET)
        one.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        one.bind((self.plan.address, 0))
        return one

    def _beat(self, due: float) -> None:
        now = monotonic()
        self.tally.times[f"lag {self.plan.ours.start}"].add(now - due)
        self.loop.call_later(LAG_S, self._beat, now + LAG_S)

    def _on_command(self) -> None:
        try:
            command = self.pipe.recv()
            if command == STOP:
                self._leave()
            else:
                self._start(command)
            tally, self.tally = self.tally, Tally()
            self.pipe.send(Report(tally, self._look_around(), time.process_time()))
        except (EOFError, OSError):     # nobody listens any more
            self._leave()

    def _start(self, count: int) -> None:
        for player in self.players:
            if player.state == "new" and player.number < count:
                player.connect_soon(random.uniform(0, self.plan.ramp_s))

    def _look_around(self) -> Counter[str]:
        """How many players are in which state; those from whom the server has turned away drop their connection."""
        now = monotonic()
        for player in self.players:
            if player.transport and now - player.alive_at > self.plan.silence_s.get(player.state, math.inf):
                player.drop(f"stale while {player.state}")
        return Counter(player.state for player in self.players)

    def _leave(self) -> None:
        self.stopping = True
        self.loop.remove_reader(self.pipe.fileno())
        for player in self.players:
            if player.lost_at:
                self.tally.times["away"].add(monotonic() - player.lost_at)
            if player.transport is not None:
                player.transport.disconnect()
        self.stopped.set()


def run_crowd(pipe: Any, plan: Plan, memory: Any) -> None:
    """A process of players, from its start to its end."""
    logging.getLogger("picows").setLevel(logging.CRITICAL)      # what it has to say is counted as an error
    raise_file_limit()
    gc.disable()            # players live as long as we do, and messages are freed without it

    async def work() -> None:
        await Crowd(plan, Board(memory), pipe).run()
    uvloop.run(work())


class Child:
    """A process of ours, and the pipe to it."""

    def __init__(self, work: Callable, *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *args), daemon=True)
        self.process.start()
        theirs.close()

    def tell(self, what: Any) -> None:
        """Sends it something; whether it still lives turns out in hear()."""
        with contextlib.suppress(OSError):
            self.pipe.send(what)

    def hear(self) -> Any:
        """What it answers. Raises EOFError or OSError if it is dead."""
        return self.pipe.recv()

    def end(self) -> None:
        """Ends it, if it did not by itself."""
        self.pipe.close()
        self.process.join(1)
        self.process.kill()


# ---- echo ---------------------------------------------------------------------------------------------------
# What the guard compares with: uvicorn, as trivia.serve() runs it, with nothing behind it.

class Echo:
    """An echo and its clients, each in a process of its own."""

    def __init__(self) -> None:
        self.server = Child(run_echo)
        self.clients = Child(run_echo_clients, self.server.hear())

    def used(self) -> tuple[float, int]:
        """CPU seconds and messages so far."""
        self.server.tell("how much?")
        return self.server.hear()

    def end(self) -> None:
        """Ends both."""
        self.clients.end()
        self.server.end()


def run_echo(pipe: Any) -> None:
    """Tells its port, and then what it has used, whenever asked."""
    os.setsid()             # Ctrl-C is not for it
    messages = 0

    async def echo(scope: dict, receive: Callable, send: Callable) -> None:
        nonlocal messages
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            messages += 1
            await send({"type": "websocket.send", "text": message["text"]})

    def answer() -> None:
        try:
            pipe.recv()
            pipe.send((time.process_time(), messages))
        except (EOFError, OSError):
            os._exit(0)

    async def work() -> None:
        asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
        await uvicorn.Server(uvicorn.Config(
            echo, lifespan="off", http="httptools", ws="websockets-sansio", ws_max_size=64 * 1024, ws_per_message_deflate=False,
            ws_ping_interval=25, ws_ping_timeout=20, access_log=False, log_level="warning")).serve([listener])
    listener = socket.create_server(("127.0.0.1", 0), backlog=ECHOES)
    pipe.send(listener.getsockname()[1])
    uvloop.run(work())


class EchoClient(WSListener):
    """Sends an answer again and again, as soon as the one before is back and some time has passed."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        asyncio.get_running_loop().call_later(random.uniform(0, ECHO_S), self._send, transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        asyncio.get_running_loop().call_later(ECHO_S * (0.5 + random.random()), self._send, transport)

    def _send(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, b'{"type":"answer","round":1,"choice":1}')


def run_echo_clients(pipe: Any, port: int) -> None:
    """Until the pipe is closed."""
    async def work() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), ended.set)
        for _ in range(ECHOES):
            await ws_connect(EchoClient, f"ws://127.0.0.1:{port}/")
        await ended.wait()
    uvloop.run(work())


# ---- accounts -----------------------------------------------------------------------------------------------
# The little that is asked over HTTP (the queues, accounts, what became of a game), and how accounts are made.

class Api:
    """The server's HTTP side."""

    def __init__(self, target: Target) -> None:
        self.target, self.address, self.ssl = target, urlsplit(target.url), target.ssl()

    def call(self, method: str, path: str, body: dict | None = None, token: str = "") -> tuple[int, dict]:
        """Status and answer of a request. Raises OSError."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        connection = self._connection()
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        except (http.client.HTTPException, ValueError):
            return 0, {}
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.ssl:
            return http.client.HTTPSConnection(self.target.name, self.address.port, timeout=TIMEOUT_S, context=self.ssl)
        return http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=TIMEOUT_S)

    def queue(self, name: str) -> dict:
        """The rules of a queue. Raises Fatal if there is no such server or queue."""
        try:
            status, answer = self.call("GET", "/queues")
        except OSError as error:
            raise Fatal(f"{self.target.url}: {error.strerror or error}") from None
        if status != 200 or "queues" not in answer:
            raise Fatal(f"{self.target.url}: found HTTP {status or 'nonsense'} at /queues; expected a trivia server")
        queues = {queue["name"]: queue for queue in answer["queues"]}
        if name not in queues:
            raise Fatal(f"--queue: found {name}; expected one of {', '.join(queues)}")
        return queues[name]

    def register(self, name: str) -> tuple[str, str]:
        """Registers a player: (username, token). Raises Fatal."""
        try:
            status, answer = self.call("POST", "/auth/register", new_user(name))
        except OSError as error:
            raise Fatal(f"registering {name}: {error.strerror or error}") from None
        if status != 201:
            raise Fatal(f"registering {name}: HTTP {status} {answer.get('detail', '')} {answer.get('errors', '')}".rstrip())
        return name, answer["token"]

    def has_record(self, game_and_token: tuple[str, str]) -> bool:
        """Whether there is a record of the end of a game."""
        try:
            return self.call("GET", f"/games/{game_and_token[0]}", token=game_and_token[1])[0] == 200
        except OSError:
            return False

    def many(self, work: Callable, items: list) -> Iterable:
        """The results of work(item), done for some at a time."""
        with ThreadPoolExecutor(REGISTRATIONS) as pool:
            try:
                yield from pool.map(work, items)
            finally:
                pool.shutdown(cancel_futures=True)


def new_user(name: str) -> dict:
    """What a player registers with."""
    return {"username": name, "email": f"{name}@example.org", "password": secrets.token_urlsafe(12)}


def read_accounts(file: Path, api: Api) -> list[tuple[str, str]]:
    """The (username, token) pairs of an earlier run. Raises Fatal if they are not this server's."""
    accounts = [tuple(line.split()) for line in file.read_text().splitlines()] if file.exists() else []
    if any(len(account) != 2 for account in accounts):
        raise Fatal(f"--accounts: {file}: expected lines of a username and a token")
    if accounts and api.call("GET", "/users/me", token=accounts[0][1])[0] != 200:
        raise Fatal(f"--accounts: {file}: the server does not know its tokens; remove the file, to register anew")
    return accounts


def ensure_accounts(options: argparse.Namespace, api: Api, host: Host, console: Console) -> list[tuple[str, str]]:
    """As many accounts as are wanted, from the file and new ones; those are added to the file as they come."""
    file, count = options.accounts, max(options.players)
    accounts = read_accounts(file, api)[:count] if file else []
    run, lacking = secrets.token_hex(4), count - len(accounts)
    names = [f"load{run}-{number}" for number in range(lacking)]
    made = seeded(host, names) if options.seed_accounts else api.many(api.register, names)
    with open(os.open(file or os.devnull, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a") as out:
        for account in track(made, "accounts", lacking, console=console, transient=True, disable=not lacking):
            accounts.append(account)
            out.write(f"{' '.join(account)}\n")
    return accounts


def seeded(host: Host, names: list[str]) -> Iterable[tuple[str, str]]:
    """Accounts, made in the server's Redis by its own code; only that one password is hashed for all of them."""
    schema = host.folder / host.environment.get("TRIVIA_SCHEMA", ROOT / "schema.yaml")
    os.environ.update(REDIS_URL=host.redis_url, TRIVIA_SCHEMA=str(schema))      # read as it is imported
    sys.path.insert(0, str(ROOT))
    trivia = importlib.import_module("trivia")

    async def hash_once(password: str) -> str:
        return hashed

    async def register(name: str) -> tuple[str, str]:
        return name, (await users.register(schema.new_user.load(new_user(name)), "127.0.0.1"))["token"]
    with asyncio.Runner() as runner:
        store, schema = runner.run(trivia.reach_redis()), trivia.Schema(trivia.read_schema(trivia.SCHEMA_FILE))
        users = trivia.Users(store, schema)
        hashed, users.passwords.hash = runner.run(users.passwords.hash(secrets.token_urlsafe())), hash_once

        async def register_all(some: list[str]) -> list[tuple[str, str]]:
            return await asyncio.gather(*map(register, some))
        for first in range(0, len(names), SEEDINGS):
            yield from runner.run(register_all(names[first:first + SEEDINGS]))
        runner.run(store.close())


# ---- host ---------------------------------------------------------------------------------------------------
# What the server uses, when it is on this host: CPU and memory of its processes and of its Redis.

class Usage(NamedTuple):
    """What has been used up to a moment, and is held at it."""

    at: float
    cpu_s: dict[str, float]             # by process, Redis among them
    memory: dict[str, int]              # bytes, likewise
    files: dict[str, int]               # how many are open; each connection is one
    redis: Counter[str]                 # its counters
    own_cpu_s: list[float]              # of our processes
    echo: tuple[float, int]             # CPU seconds and messages of the guard's echo


class Host:
    """The process that listens on a port and its descendants, also those that come later, and their Redis."""

    def __init__(self, address: str, port: int, redis_url: str) -> None:
        self.address, self.port = address, port
        self.root = self._find()
        self.processes: dict[str, psutil.Process] = {}      # those that live, as they were last seen
        self.cpu_s: dict[str, float] = {}                   # of those that lived, too
        self.environment, self.folder = self._environment()
        data = self.folder / self.environment.get("TRIVIA_DATA", "data") / "redis.sock"
        self.redis_url = redis_url or self.environment.get("REDIS_URL") or (f"unix://{data}" if self.root else "")
        self.store = Store(self.redis_url)

    def _find(self) -> psutil.Process | None:
        here, process = {one.address for some in psutil.net_if_addrs().values() for one in some}, None
        if self.address not in here and not self.address.startswith("127."):
            return None
        with contextlib.suppress(psutil.Error):
            pids = {one.pid for one in psutil.net_connections("tcp") if one.pid and self._listens(one)}
            process = min(map(psutil.Process, pids), key=psutil.Process.create_time, default=None)
            while process and (parent := process.parent()) and any(map(self._listens, parent.net_connections())):
                process = parent        # a socket that several hold is told of one of them only
        return process

    def _listens(self, connection: Any) -> bool:
        return connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port

    def _environment(self) -> tuple[dict[str, str], Path]:
        with contextlib.suppress(psutil.Error, AttributeError):
            return self.root.environ(), Path(self.root.cwd())
        return {}, Path()

    def cpu(self) -> dict[str, float]:
        """The CPU seconds used so far, by process; one that has ended keeps what it had."""
        with contextlib.suppress(psutil.Error):
            if self.root and self.root.status() != psutil.STATUS_ZOMBIE:
                self._look_at_all([one for one in self.root.children(recursive=True) if not is_helper(one)])
            elif self.cpu_s:
                self.root = self._find()        # the server was started anew
        return self.cpu_s | ({"redis": self.store.cpu_s()} if self.store.client else {})

    def _look_at_all(self, others: list[psutil.Process]) -> None:
        self.processes.clear()
        for one in [self.root, *others]:
            with contextlib.suppress(psutil.Error):
                name = f"{'supervisor' if one == self.root and others else 'worker'} {one.pid}"
                times = one.cpu_times()
                self.cpu_s[name], self.processes[name] = times.user + times.system, one

    def usage(self, own_cpu_s: list[float], echo: tuple[float, int]) -> Usage:
        """All that there is to know."""
        cpu_s, counters, at = self.cpu(), self.store.read(), monotonic()
        memory, files = ({}, {})
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.Error):
                memory[name], files[name] = memory_of(process), process.num_fds()
        if counters:
            memory["redis"] = counters["rss"]
        return Usage(at, cpu_s, memory, files, counters, own_cpu_s, echo)


def is_helper(process: psutil.Process) -> bool:
    """Whether it is another program, such as a Redis that the server started, or Python's own helper."""
    return process.name().startswith(("valkey", "redis")) or "resource_tracker" in " ".join(process.cmdline())


def memory_of(process: psutil.Process) -> int:
    """PSS, which shares out what processes have in common; RSS where that can't be read."""
    try:
        return process.memory_full_info().pss
    except (psutil.AccessDenied, AttributeError):
        return process.memory_info().rss


class Store:
    """The server's Redis, as its INFO tells."""

    FIELDS = {"commands": "total_commands_processed", "bytes_in": "total_net_input_bytes",
              "bytes_out": "total_net_output_bytes", "memory": "used_memory", "rss": "used_memory_rss"}

    def __init__(self, url: str) -> None:
        self.used_s = self.read_s = 0.0
        try:
            self.client = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) if url else None
        except ValueError as error:
            raise Fatal(f"--redis: {error}") from None
        if self.client is not None and not self.read():
            self.client = None      # there is none that we could ask

    def cpu_s(self) -> float:
        """CPU seconds used so far; it may be away meanwhile, or start anew."""
        if info := self._info("cpu"):
            before, self.read_s = self.read_s, info["used_cpu_user"] + info["used_cpu_sys"]
            self.used_s += self.read_s - before if self.read_s >= before else self.read_s
        return self.used_s

    def read(self) -> Counter[str]:
        """Its counters so far, with the number of calls of each command as `calls:NAME`; empty without a Redis."""
        if not (info := self._info("everything")):
            return Counter()
        calls = {f"calls:{key.removeprefix('cmdstat_')}": value["calls"] for key, value in info.items()
                 if key.startswith("cmdstat_")}
        return Counter({name: info.get(field, 0) for name, field in self.FIELDS.items()} | calls)

    def _info(self, section: str) -> dict:
        try:
            return self.client.info(section) if self.client else {}
        except redis.RedisError:
            return {}


# ---- run ----------------------------------------------------------------------------------------------------
# Starts the crowds, asks each second how they fare, and takes the steps.

class Step:
    """So many players: their ramp, and the time over which figures are taken."""

    def __init__(self, players: int, begin: Usage) -> None:
        self.players, self.ramped = players, False
        self.all, self.measured = Tally(), Tally()      # with the ramp, and without
        self.begin = self.end = begin                   # of what is measured
        self.states: Counter[str] = Counter()


class Run:
    """One run, from the start of its crowds to the last of their reports."""

    def __init__(self, options: argparse.Namespace, plans: list[Plan], host: Host) -> None:
        self.options, self.host = options, host
        signal.signal(signal.SIGINT, signal.SIG_IGN)    # which the crowds inherit: Ctrl-C is for us
        memory = Board.memory(len(plans[0].accounts))
        self.crowds = [Child(run_crowd, plan, memory) for plan in plans]
        self.echo = Echo() if options.guard else None
        self.reports = [Report(Tally(), Counter(), 0.0) for _ in plans]        # the last of each crowd
        self.total, self.second = Tally(), Tally()
        self.counting = [self.total, self.second]      # the tallies to which reports are added
        self.target, self.interrupted = 0, False
        self._ask()                 # they answer when they are ready
        self.first = self._usage()
        self.sampled_at, self.cpu_before = self.first.at, self.first.cpu_s
        self.steps: list[Step] = []
        self.samples: list[dict] = []

    def play(self, show: Callable) -> None:
        """Takes all steps; Ctrl-C ends it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        for players in self.options.players:
            if not self.interrupted:
                self._step(players, show)
        self.target = STOP
        self._ask()
        for child in [*self.crowds, *([self.echo] if self.echo else [])]:
            child.end()

    def _interrupt(self, *_: Any) -> None:
        """Ends the run soon, but not in the midst of a report; a second time, at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _step(self, players: int, show: Callable) -> None:
        self.target, step = players, Step(players, self._usage())
        self.steps.append(step)
        self.counting = [self.total, self.second, step.all]
        self._watch(self.options.ramp, show)
        if not self.interrupted:
            step.ramped, step.measured, step.begin = True, Tally(), self._usage()
            self.counting.append(step.measured)
            self._watch(60 * self.options.minutes, show)
        step.end, step.states, self.counting = self._usage(), self.states(), self.counting[:3]

    def _watch(self, seconds: float, show: Callable) -> None:
        ends = monotonic() + seconds
        while not self.interrupted and (left := ends - monotonic()) > 0:
            time.sleep(min(1.0, left))
            self._ask()
            show(self._sample())

    def _ask(self) -> None:
        """Takes a report of each crowd."""
        for crowd in self.crowds:
            crowd.tell(self.target)
        for number, crowd in enumerate(self.crowds):
            try:
                self._take(number, crowd.hear())
            except (EOFError, OSError):
                died = Tally()
                died.errors["a process of players died"] += self.target != STOP
                self._take(number, Report(died, Counter(), self.reports[number].cpu_s))
                self.interrupted = True

    def _take(self, number: int, report: Report) -> None:
        self.reports[number] = report
        for tally in self.counting:
            tally.add(report.tally)

    def states(self) -> Counter[str]:
        """How many players are in which state."""
        return sum((report.states for report in self.reports), Counter())

    def _usage(self) -> Usage:
        own = [*(report.cpu_s for report in self.reports), time.process_time()]
        return self.host.usage(own, self.echo.used() if self.echo else (0.0, 0))

    def _sample(self) -> dict:
        """What the last second was like."""
        now, cpu_s, times = monotonic(), self.host.cpu().copy(), self.second.times
        passed_s, states = now - self.sampled_at, self.states()
        sample = {"second": round(now - self.first.at, 1), "connected": connected(states), "playing": states["playing"],
                  "waiting": waiting(states), "games_ended": len(self.total.ended),
                  "answers_per_s": round(self.second.counts["answers"] / passed_s, 1),
                  "delivery_p50_ms": times["delivery"].quantile_ms(0.5), "delivery_p99_ms": times["delivery"].quantile_ms(0.99),
                  "lateness_p99_ms": times["lateness"].quantile_ms(0.99),
                  "server_cores": round((sum(cpu_s.values()) - sum(self.cpu_before.values())) / passed_s, 3),
                  "errors": wrong(self.total.errors).total()}
        self.sampled_at, self.cpu_before = now, cpu_s
        self.second.__init__()
        self.samples.append(sample)
        return sample


def connected(states: Counter[str]) -> int:
    """How many players have a connection."""
    return sum(states[name] for name in ("joining", "waiting", "playing", "resting"))


def waiting(states: Counter[str]) -> int:
    """How many want to play."""
    return states["joining"] + states["waiting"]


def wrong(errors: Counter[str]) -> Counter[str]:
    """The errors without what a rolling restart brings with it."""
    return Counter({kind: count for kind, count in errors.items() if count and kind != EXPECTED})


# ---- result -------------------------------------------------------------------------------------------------
# What --json writes.

def result_of(run: Run, api: Api) -> dict:
    """All figures of a run."""
    missed = sorted(run.total.missed)
    lost = [one for one, known in zip(missed, api.many(api.has_record, missed), strict=True) if not known]
    options = run.options
    return {"url": options.url, "queue": options.queue, "think_s": options.think, "ramp_s": options.ramp,
            "processes": len(run.crowds), "errors": dict(wrong(run.total.errors)),
            "games_lost": len({game for game, _ in lost}), "players_who_lost_a_game": len({token for _, token in lost}),
            "games_ended_while_a_player_was_away": len({game for game, _ in set(missed) - set(lost)}),
            "steps": [step_figures(step, run) for step in run.steps], "samples": run.samples}


def step_figures(step: Step, run: Run) -> dict:
    """The figures of a step."""
    tally, seconds = step.measured if step.ramped else step.all, step.end.at - step.begin.at
    counts, states, answers = tally.counts, step.states, tally.counts["answers"]
    times = tally.times | {name: step.all.times[name] for name in WITH_RAMP}
    return {"players": step.players, "after_ramp": step.ramped, "seconds": round(seconds, 1),
            "connected": connected(states), "playing": states["playing"], "waiting": waiting(states),
            "answers": answers, "answers_per_s": ratio(answers, seconds), "measured_share": ratio(counts["measured"], answers, 3),
            "games_started": len(tally.started), "games_ended": len(tally.ended),
            "ended_by": dict(Counter(tally.ended.values())), "tickets_timed_out": counts["unmatched"],
            "times": {name: times.get(name, Histogram()).summary()
                      for name in ("delivery", "lateness", "skew", "match", *WITH_RAMP)},
            "reconnects": step.all.counts["reconnects"], "restarts_told": step.all.errors[EXPECTED],
            "errors": dict(wrong(step.all.errors)),
            "server": server_figures(run.first, step, tally, run.options.rounds),
            "load_tool": own_figures(step, tally, seconds)} | guard_figures(step, answers)


def server_figures(first: Usage, step: Step, tally: Tally, rounds: int) -> dict:
    """What the server used."""
    begin, end, answers = step.begin, step.end, tally.counts["answers"]
    seconds, used_s = end.at - begin.at, cpu_used(step)
    processes = {name: {"cores": ratio(used, seconds, 3), "us_per_answer": ratio(1e6 * used, answers)}
                 | memory_figures(name, first, end) for name, used in used_s.items()}
    return {"cores": ratio(sum(used_s.values()), seconds, 3), "us_per_answer": ratio(1e6 * sum(used_s.values()), answers),
            "processes": processes, "redis": redis_figures(first, step, answers, tally.counts["rounds"] / rounds)}


def cpu_used(step: Step) -> dict[str, float]:
    """The CPU seconds within a step, by process."""
    return {name: used - step.begin.cpu_s.get(name, 0.0) for name, used in step.end.cpu_s.items()}


def memory_figures(name: str, first: Usage, end: Usage) -> dict:
    """Memory of a process, and by how much it has grown for each connection since before the first of them."""
    if not (now := end.memory.get(name)):
        return {}
    connections = end.files.get(name, 0) - first.files.get(name, end.files.get(name, 0))
    return {"mib": round(now / MIB, 1), "connections": connections,
            "kib_per_connection": ratio((now - first.memory.get(name, 0)) / 1024, connections)}


def redis_figures(first: Usage, step: Step, answers: int, games: float) -> dict:
    """What Redis did, per answer and per game; of a game's length, for few may have begun and ended meanwhile."""
    if not (now := step.end.redis):
        return {}
    used = Counter(now)
    used.subtract(step.begin.redis)
    calls = {name.removeprefix("calls:"): ratio(count, answers, 3) for name, count in used.most_common()
             if name.startswith("calls:") and count > 0 and answers}
    return {"memory_mib": round(now["memory"] / MIB, 1), "grown_mib": round((now["memory"] - first.redis["memory"]) / MIB, 1),
            "calls_per_answer": calls, **{f"{name}_per_{what}": ratio(used[name], count)
                                          for name in ("commands", "bytes_in", "bytes_out")
                                          for what, count in (("game", games), ("answer", answers))}}


def own_figures(step: Step, tally: Tally, seconds: float) -> dict:
    """How busy we were ourselves: each process of players, and last the one that sums up."""
    used_s = [now - before for now, before in zip(step.end.own_cpu_s, step.begin.own_cpu_s, strict=True)]
    lags = [histogram.quantile_ms(0.99) for name, histogram in tally.times.items() if name.startswith("lag")]
    shares = [ratio(used, seconds, 3) or 0.0 for used in used_s]
    return {"lag_p99_ms": max(lags, default=0.0), "cpu_shares": shares,
            "us_per_answer": ratio(1e6 * sum(used_s), tally.counts["answers"]),
            "overloaded": max(lags, default=0.0) > LAG_LIMIT_MS or max(shares) > CPU_LIMIT}


def guard_figures(step: Step, answers: int) -> dict:
    """What an answer costs, in messages of the echo; {} without the guard."""
    (echo_s, messages), (before_s, messages_before) = step.end.echo, step.begin.echo
    echo_us = ratio(1e6 * (echo_s - before_s), messages - messages_before, 2)
    answer_us = ratio(1e6 * sum(cpu_used(step).values()), answers, 2)
    return {"echo_us_per_message": echo_us, "echoes_per_answer": ratio(answer_us, echo_us, 2)} if echo_us and answer_us else {}


def ratio(amount: float, count: float, digits: int = 1) -> float | None:
    """Amount by count; None when there is nothing to divide by."""
    return round(amount / count, digits) if count else None


# ---- show ---------------------------------------------------------------------------------------------------
# The table made from the figures, the progress while it runs, and the plot.

def print_result(result: dict, console: Console) -> None:
    """The summary: a column for each step."""
    table = Table("", *(f"{step['players']} players" for step in result["steps"]))
    columns = [dict(rows(step)) for step in result["steps"]]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    console.print(table)
    console.print(f"errors: {listed(result['errors'])}; lost games: {result['games_lost']}, by "
                  f"{result['players_who_lost_a_game']} players; {result['games_ended_while_a_player_was_away']} games "
                  f"ended while a player was away")
    if any(step["load_tool"]["overloaded"] for step in result["steps"]):
        console.print("[bold]The load tool was held up itself: the latencies are the tool's, not the server's.[/bold] "
                      "Use more --processes, fewer --players, or a host with more cores.")


def rows(step: dict) -> Iterable[tuple[str, str]]:
    """The lines of the summary, for a step."""
    server, own = step["server"], step["load_tool"]
    yield "figures of", f"{step['seconds']} s " + ("after the ramp" if step["after_ramp"] else "of the ramp")
    yield "connected, playing, waiting", f"{step['connected']}, {step['playing']}, {step['waiting']}"
    yield "games started", f"{step['games_started']}"
    yield "games ended", f"{step['games_ended']} ({listed(step['ended_by'])})"
    yield "answers, a second", f"{step['answers']}, {shown(step['answers_per_s'])}"
    yield "... of which measured", shown(100 * (step["measured_share"] or 0)) + " %"
    for name, summary in step["times"].items():
        if summary["count"]:
            yield f"{name}: p50 p99 p99.9 max", " ".join(shown(value) for value in list(summary.values())[1:]) + " ms"
    if step["reconnects"] or step["restarts_told"]:
        yield "reconnects, told to", f"{step['reconnects']}, {step['restarts_told']}"
    if step["tickets_timed_out"]:
        yield "tickets timed out", f"{step['tickets_timed_out']}"
    yield "errors", listed(step["errors"])
    yield "server", f"{server['cores']} cores, {shown(server['us_per_answer'])} us an answer" if server["processes"] else "not seen"
    for name, used in server["processes"].items():
        yield name, process_text(used)
    if known := server["redis"]:
        for what in ("game", "answer"):
            yield f"redis, per {what}", ", ".join(f"{known[f'{name}_per_{what}'] or 0:.0f} {name.replace('_', ' ')}"
                                                  for name in ("commands", "bytes_in", "bytes_out"))
        yield "redis, calls per answer", listed(dict(list(known["calls_per_answer"].items())[:6]))
        yield "redis, used memory", f"{known['memory_mib']} MiB, grown by {known['grown_mib']}"
    yield "load tool", (f"lag p99 {own['lag_p99_ms']:.1f} ms, busiest {100 * max(own['cpu_shares']):.0f} % of a core, "
                        f"{shown(own['us_per_answer'])} us an answer")
    if "echoes_per_answer" in step:
        yield "guard", f"an answer costs {step['echoes_per_answer']} echoes of {step['echo_us_per_message']} us"


def process_text(used: dict) -> str:
    """What a process used, in words."""
    text = f"{used['cores']} cores, {shown(used['us_per_answer'])} us an answer"
    if "mib" in used:
        text += f", {used['mib']} MiB"
    if used.get("kib_per_connection") is not None:
        text += f"; {used['connections']} connections of {used['kib_per_connection']} KiB"
    return text


def listed(counts: dict) -> str:
    """Counts in words, the largest first."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda one: -one[1])) or "none"


def shown(number: float | None) -> str:
    """A number with one decimal."""
    return "-" if number is None else f"{number:.1f}"


def sample_row(sample: dict) -> dict[str, str]:
    """What is shown while it runs."""
    return {"seconds": f"{sample['second']:.0f}"} | {name: str(sample[name]) for name in ("connected", "playing", "waiting")} | {
        "games ended": str(sample["games_ended"]), "answers/s": f"{sample['answers_per_s']:.0f}",
        "delivery p50/p99": f"{shown(sample['delivery_p50_ms'])}/{shown(sample['delivery_p99_ms'])} ms",
        "late p99": f"{shown(sample['lateness_p99_ms'])} ms", "server": f"{sample['server_cores']:.2f} cores",
        "errors": str(sample["errors"])}


def play_shown(run: Run, console: Console) -> None:
    """Plays, and shows how it goes: a table in a terminal, else a line now and then."""
    def show_line(sample: dict) -> None:
        if len(run.samples) % LINE_S == 0:
            console.print("  ".join(f"{name} {text}" for name, text in sample_row(sample).items()))

    def show_table(sample: dict) -> None:
        table = Table(*sample_row(sample))
        table.add_row(*sample_row(sample).values())
        live.update(table, refresh=True)
    if not console.is_terminal:
        return run.play(show_line)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        run.play(show_table)


def plot(result: dict, file: Path) -> None:
    """Latency and CPU against the number of players: of each second as dots, of the steps as lines."""
    from matplotlib.figure import Figure

    steps, samples = result["steps"], result["samples"]
    latency, cpu = (figure := Figure(figsize=(8, 8), layout="constrained")).subplots(2, sharex=True)
    players = [step["connected"] for step in steps]
    for name, key in (("delivery", "p50"), ("delivery", "p99"), ("delivery", "p999"), ("lateness", "p99")):
        latency.plot(players, [step["times"][name][f"{key}_ms"] for step in steps], "o-", label=f"{name} {key}")
    cpu.plot(players, [step["server"]["cores"] for step in steps], "o-", label="server")
    for kind in ("worker", "redis"):
        cpu.plot(players, [sum(used["cores"] for name, used in step["server"]["processes"].items() if name.startswith(kind))
                           for step in steps], "o-", label=f"{kind}s" if kind == "worker" else kind)
    cpu.plot(players, [sum(step["load_tool"]["cpu_shares"]) for step in steps], "o--", label="load tool")
    for axes, key in ((latency, "delivery_p99_ms"), (cpu, "server_cores")):
        axes.scatter([sample["connected"] for sample in samples], [sample[key] or math.nan for sample in samples], 4, "gray",
                     alpha=0.4, label="each second")
        axes.grid(alpha=0.3)
        axes.legend()
    latency.set(ylabel="ms", yscale="log")
    cpu.set(ylabel="cores used", xlabel="players connected", ylim=(0, None), xlim=(0, None))
    figure.savefig(file)


# ---- command line -------------------------------------------------------------------------------------------

def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with a message when it makes no sense."""
    parser = argparse.ArgumentParser(prog="load.py",
                                     description="Plays games by the thousand, and measures what their host carries.",
                                     epilog="What the figures mean stands at the head of this file.")
    add = parser.add_argument
    add("url", nargs="?", default="http://127.0.0.1:8000", metavar="URL",
        help="the server (default: %(default)s), or the JSON file of an earlier run, to show it again")
    add("--players", type=ascending, default=[200], metavar="N[,N...]",
        help="how many players; several numbers are taken one after the other (default: 200)")
    add("--queue", default="random", help="the queue that they play in (default: %(default)s)")
    add("--think", type=positive, default=4.0, metavar="SECONDS",
        help="time to an answer, give or take a half; never beyond nine tenths of what is left (default: %(default)g)")
    add("--ramp", type=positive, default=10.0, metavar="SECONDS",
        help="the players (of each step) connect at random moments within it (default: %(default)g)")
    add("--minutes", type=positive, default=1.0, metavar="M",
        help="how long to measure after the ramp (default: %(default)g)")
    add("--processes", type=int, metavar="N",
        help=f"processes to hold the players (default: as many as are needed for {PLAYERS_A_PROCESS} players each)")
    add("--accounts", type=writable, metavar="FILE",
        help="where the players' tokens are kept for the next run; who is missing is added")
    add("--seed-accounts", action="store_true",
        help="make accounts in the Redis of a server on this host: hundreds a second, instead of some 70 a core")
    add("--insecure", action="store_true", help="with https://: take any certificate")
    add("--server-port", type=int, metavar="PORT",
        help="the server's own port on this host, when there is a proxy in front; whose CPU is read (default: that of URL)")
    add("--redis", metavar="URL", help="the server's Redis (default: as the server's own environment says)")
    add("--json", type=writable, metavar="FILE", help="write all figures there, also those of each second")
    add("--plot", type=writable, metavar="FILE.png", help="draw latency and CPU against players (needs matplotlib)")
    add("--guard", action="store_true", help=f"compare the CPU of an answer with what {GUARD_FILE.name} says")
    return parser.parse_args(arguments)


def ascending(text: str) -> list[int]:
    """Numbers of players, each greater than the one before."""
    numbers = [int(part) for part in text.split(",")]
    if numbers[0] < 1 or numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f"found {text}; expected 1 or more, and each more than the one before")
    return numbers


def writable(text: str) -> Path:
    """A file that can be written."""
    file = Path(text)
    if not os.access(file if file.exists() else file.parent, os.W_OK) or file.is_dir():
        raise argparse.ArgumentTypeError(f"found {text}; expected a file that can be written")
    return file


def positive(text: str) -> float:
    """A number of seconds or minutes."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}; expected 0 or more")
    return number


def raise_file_limit() -> int:
    """Allows this process as many open files as it may have, and returns how many."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most if most != resource.RLIM_INFINITY else sys.maxsize


def count_processes(options: argparse.Namespace) -> int:
    """How many processes it takes. Raises Fatal when one would need more open files than it may have."""
    room, players = raise_file_limit() - 100, max(options.players)
    processes = max(1, options.processes or math.ceil(players / min(PLAYERS_A_PROCESS, max(room, 1))))
    if (each := math.ceil(players / processes)) > room:
        raise Fatal(f"--players: {each} in a process need {each + 100} open files; "
                    f"the limit is {room + 100} (ulimit -Hn)")
    return min(processes, players)


def read_target(url: str, insecure: bool) -> Target:
    """Where the server is. Raises Fatal."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        addresses = [info[4][0] for info in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    except (KeyError, ValueError, TypeError):
        raise Fatal(f"{url}: expected http://HOST:PORT or https://HOST:PORT") from None
    except OSError as error:
        raise Fatal(f"{url}: {error.strerror}") from None
    address = min(addresses, key=lambda one: ":" in one)        # IPv4 if there is one
    url = f"{parts.scheme}://{f'[{address}]' if ':' in address else address}:{port}"
    return Target(url, parts.hostname, address.startswith("127."), insecure)


def make_plans(options: argparse.Namespace, target: Target, rules: dict, accounts: list[tuple[str, str]]) -> list[Plan]:
    """What each process is to do; the players are dealt out like cards."""
    count, numbers = count_processes(options), {name: number for number, (name, _) in enumerate(accounts)}
    longest_s = max(rules[f"{phase}_seconds"] for phase in ("start", "answer", "reveal"))
    silence_s = {"playing": longest_s + PATIENCE_S, "waiting": rules["wait_seconds"] + PATIENCE_S,
                 "joining": TIMEOUT_S + PATIENCE_S}
    return [Plan(target, options.queue, f"127.0.0.{number % 250 + 1}" if target.loopback else "", accounts,
                 slice(number, None, count), options.think, options.ramp, silence_s, numbers) for number in range(count)]


def measure(options: argparse.Namespace, console: Console) -> dict:
    """Plays, and returns the figures. Raises Fatal."""
    target = read_target(options.url, options.insecure)
    api, parts = Api(target), urlsplit(target.url)
    rules = api.queue(options.queue)
    options.rounds = rules["rounds"]
    count_processes(options)
    host = Host(parts.hostname, options.server_port or parts.port, options.redis)
    if (options.guard or options.seed_accounts) and not (host.root and host.store.client):
        raise Fatal("--guard, --seed-accounts: the server and its Redis must be on this host")
    accounts = ensure_accounts(options, api, host, console)
    run = Run(options, make_plans(options, target, rules, accounts), host)
    play_shown(run, console)
    return result_of(run, api)


def exit_code(result: dict, guarded: dict, console: Console) -> int:
    """0 when all went well."""
    worse = False
    if guarded:
        found, kept = result["steps"][-1].get("echoes_per_answer", math.inf), guarded["echoes_per_answer"]
        worse = found > GUARD_LIMIT * kept
        console.print(f"guard: an answer costs {found} echoes; {kept} are kept in {GUARD_FILE.name}: "
                      f"{100 * (found / kept - 1):+.0f} %, " + ("too much" if worse else "fine"))
    return int(worse or bool(result["errors"] or result["games_lost"]))


def main() -> None:
    """python tests/load.py."""
    options, console = read_options(), Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    if options.plot and not importlib.util.find_spec("matplotlib"):
        raise Fatal("--plot: it needs matplotlib; pip install matplotlib")
    guarded = json.loads(GUARD_FILE.read_text()) if options.guard else {}
    vars(options).update(guarded.get("options", {}))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)       # also when started in the background by a shell
    again = Path(options.url).is_file()
    result = json.loads(Path(options.url).read_text()) if again else measure(options, console)
    print_result(result, console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.plot:
        plot(result, options.plot)
    sys.exit(exit_code(result, guarded, console))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
