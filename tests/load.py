"""Plays thousands of real games against a trivia server, and measures the server and its host.

    python tests/load.py --players 20000 --think 4 --ramp 60 --minutes 5 http://127.0.0.1:8000
    python tests/load.py --players 1000,5000 --seed-accounts --json sweep.json --plot sweep.png
    python tests/load.py --queue friends --room 8 --players 2000     # private rooms of eight
    python tests/load.py --queue rated --rematch                     # players agree to rematches
    python tests/load.py --plot sweep.png sweep.json                 # shows an earlier run again
    python tests/load.py --guard --seed-accounts                     # the guard, see below

Players are new, or come from --accounts FILE. --seed-accounts writes them straight to the Redis of
a server on this host. Each player connects to /game/QUEUE, answers at random after a think time,
and plays again after each game. When the connection drops, the player reconnects, as a phone does.

In a queue with `match: room` the first player of each --room opens a room and tells the others its
code. The game begins when all players are in the room, and the next game follows its end. A queue
with `bots` may fill games with bots; with --players 1 it must.

Each process holds up to 5,000 players. On loopback each process connects from an address of its
own (127.0.0.1, 127.0.0.2, ...), because one address has only about 28,000 ports. --players with
several numbers makes several steps. In each step more players connect during the ramp. Then the
figures are taken for --minutes.

Measured in ms, after the ramp of each step:

    delivery    from sending `answer` until an opponent has `answered`, or `reveal` if the answer
                closes the question. The players of a game may be in different processes. All
                processes read the same clock (CLOCK_MONOTONIC) and write the times of sending and
                receiving to shared memory. Answers of players who lost their connection meanwhile
                are left out; `measured_share` is the share of the answers that is measured.
    lateness    arrival of `question` after the time that the `reveal` (or `start`) before it
                announced to the same player. An early question counts as 0.
    skew        between the first and the last player of a game to receive a `question` or `reveal`.
    match       from asking for a game until `start`; in a room, from `begin` until the host
                receives `start`.

Measured with the ramp included: errors by kind, and

    connect     from opening a connection until the server accepts it;
    filled      from opening a room until all its players are in it;
    begun       from then until the host receives the `start` of the first game;
    away        from the loss of a connection until the first `queued` or `update` on the next.

A game is lost when a player saw its `start` or an `update` but no `end`, and the server has no
record of its end. With a record, the game ended while the player was away. Games that still run at
the end are not lost.

On the server's own host the tool also reads the CPU and memory of the server's processes: the one
that listens on the port, its descendants and its Redis. Percentiles are exact to 2 %. The tool says
so when it was too slow itself to measure the server. --plot needs matplotlib, which is not among
the requirements.

The exit code is 0 when there were no errors and no game was lost. Close code 1012 (the server
restarts) is not an error. So a rolling restart can be measured: start this tool, then restart the
server.

The guard: the CPU time of an answer depends on the machine and on its other work. Its ratio to the
CPU time of a message that a bare uvicorn echoes, on the same machine in the same seconds, depends
on them much less. --guard measures both, with the options in tests/load_guard.json. The exit code
is 1 when the ratio is more than 15 % above the ratio in that file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import http.client
import importlib
import ipaddress
import json
import logging
import math
import multiprocessing
import os
import platform
import random
import resource
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
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
from picows import WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table

# ---- settings ------------------------------------------------------------------------------------
# Constants without an option on the command line.

ROOT = Path(__file__).resolve().parent.parent
GUARD_FILE, GUARD_LIMIT = Path(__file__).with_name("load_guard.json"), 1.15
PLAYERS_A_PROCESS = 5_000
REGISTRATIONS = 16  # at a time; the server hashes a password in about 25 ms of CPU
SEEDINGS = 200  # accounts written to Redis at a time
TIMEOUT_S = 15  # of an HTTP request and of a handshake
REST_S = 1.0  # longest pause of a player between two games
PATIENCE_S = 5  # silence beyond what is due, after which the server has lost the player
# Interval of the tool's own timer, and the lag and CPU share above which its figures are not valid.
LAG_S, LAG_LIMIT_MS, CPU_LIMIT = (0.1, 20, 0.9)
TOO_LATE_MS = 500  # a player who returns to a question with less time left does not answer it
LINE_S = 5  # seconds between lines of progress without a terminal
ECHOES, ECHO_S = 200, 0.5  # connections to the echo server, mean seconds between their messages
MIB = 2**20

CLOSE_RESTART, CLOSE_TRY_LATER = 1012, 1013
CLOSE_LOST = 1006  # the connection ended without a code
REFUSED_FOR_GOOD = {401, 403, 404, 4401, 4409}  # statuses and close codes
EXPECTED = f"close {CLOSE_RESTART}"  # the only kind that is not an error

monotonic = time.monotonic


class Fatal(SystemExit):
    """Ends the program with one line."""


# ---- measures ------------------------------------------------------------------------------------
# Counters and histograms. Two of them can be added; the memory does not grow with the count.


class Histogram(Counter):
    """Durations, counted in steps of 2 %."""

    def add(self, seconds: float) -> None:
        """Counts one duration; a negative one counts as 0."""
        self[int(50 * math.log(max(1.0, seconds * 1e6)))] += 1

    def quantile_ms(self, share: float) -> float | None:
        """Returns the duration in ms that this share does not exceed; None without durations."""
        wanted = share * self.total()
        for step in sorted(self):
            wanted -= self[step]
            if wanted <= 0:
                return round(math.exp((step + 0.5) / 50) / 1000, 3) if step else 0.0
        return None

    def summary(self) -> dict:
        """Returns the figures of the report."""
        quantiles = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1}
        return {name: self.quantile_ms(share) for name, share in quantiles.items()} | {
            "count": self.total()
        }


class Tally:
    """Counts what happened to a group of players in a period."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # answers, measured, rounds, reconnects, timeouts
        self.errors: Counter[str] = Counter()
        self.times: dict[str, Histogram] = defaultdict(Histogram)
        self.started: set[str] = set()  # games
        self.ended: dict[str, str] = {}  # game -> reason
        self.missed: set[tuple[str, str]] = set()  # (game, token) of players who saw no end
        self.states: Counter[str] = Counter()  # players by state, at the end of the period
        self.cpu_s = 0.0  # CPU time of their process, at the end of the period

    def add(self, other: Tally) -> None:
        """Adds another group or another period."""
        for name, histogram in other.times.items():
            self.times[name].update(histogram)
        for name in ("counts", "errors", "started", "ended", "missed"):
            getattr(self, name).update(getattr(other, name))


class Board:
    """Stores when each player sent or received what in which round, in shared memory.

    The players of a game may be in several processes. A player writes only their own cells, and
    writes the time before the round. Readers read later, after a message of the server.
    """

    QUESTION, ANSWER, REVEAL = range(3)

    def __init__(self, memory: Any) -> None:
        """Takes shared memory of six doubles a player."""
        self.cells, self.half, self.players = (
            memoryview(memory).cast("B").cast("d"),
            len(memory) // 2,
            len(memory) // 6,
        )

    def note(self, what: int, player: int, round_id: float, at: float) -> None:
        """Stores that something happened to a player in a round; round 0 clears it."""
        cell = what * self.players + player
        self.cells[cell] = at
        self.cells[self.half + cell] = round_id

    def when(self, what: int, player: int, round_id: float) -> float:
        """Returns when it happened to a player in this round; 0 if it did not."""
        cell = what * self.players + player
        return self.cells[cell] if self.cells[self.half + cell] == round_id else 0.0


# ---- player --------------------------------------------------------------------------------------
# A player and their connection. Arriving messages drive it, and at most one timer. States:
#
#   new -> away -connected-> joining -queued-> waiting -start-> playing -end-> resting -join->
#   joining
#
# A lost connection leads from any state to `away`; a final refusal by the server leads to `gone`.


class Message(msgspec.Struct, gc=False):
    """The fields of a server's message that the tool reads; the decoder skips all others."""

    type: str
    game: str = ""
    seq: int = 0
    round: int = 0
    players: list = []  # users; in `rematch` names
    player: str = ""
    choices: list[str] = []
    question: dict = {}
    answers: dict[str, msgspec.Raw] = {}
    choice: int | None = None
    phase: str = ""
    reason: str = ""
    code: str = ""
    connected: list[str] = []
    state: str = ""
    starts_ms: float = 0
    answer_ms: float = 0
    reveal_ms: float = 0
    left_ms: float = 0
    rematch_ms: float = 0
    expires_ms: float = 0


decode = msgspec.json.Decoder(Message).decode


class Player(WSListener):
    """Plays games on one connection after another."""

    __slots__ = (
        "crowd",
        "number",
        "name",
        "token",
        "transport",
        "timer",
        "state",
        "game",
        "seq",
        "round",
        "attempts",
        "close_code",
        "due_at",
        "asked_at",
        "lost_at",
        "alive_at",
        "others",
        "unheard",
        "game_id",
        "round_id",
        "whole",
        "full_at",
    )

    def __init__(self, crowd: Crowd, number: int, name: str, token: str) -> None:
        self.crowd, self.number, self.name, self.token = crowd, number, name, token
        self.transport: WSTransport | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.state, self.game, self.seq, self.round, self.attempts, self.close_code = (
            "new",
            "",
            0,
            0,
            0,
            CLOSE_LOST,
        )
        self.due_at = self.asked_at = self.lost_at = self.alive_at = 0.0
        self.others: list[int] = []  # the numbers of the opponents
        self.unheard: list[int] = []  # opponents of whom no `answered` has come
        self.game_id = self.round_id = 0.0  # numbers for the board; round_id includes the game
        self.whole = False  # this player has missed nothing of the round
        self.full_at = 0.0  # of a host: when the room was full, until its first game

    @property
    def room(self) -> int:
        """The number of the player's room, if the queue has rooms."""
        return self.number // self.crowd.plan.room

    @property
    def is_host(self) -> bool:
        """Whether this player opens the room and begins its games."""
        return self.number % self.crowd.plan.room == 0

    def _become(self, state: str) -> None:
        self.crowd.states[self.state] -= 1
        self.crowd.states[state] += 1
        self.state = state

    def _set_timer(self, delay_s: float = 0, work: Callable | None = None, *args: Any) -> None:
        """Replaces the timer; without work only cancels it."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.crowd.loop.call_later(delay_s, work, *args) if work else None

    # -- connection

    def connect_soon(self, pause_s: float) -> None:
        """Connects after a pause."""
        self._become("away")
        self._set_timer(pause_s, self.crowd.spawn, self._connect)

    async def _connect(self) -> None:
        code = await self.crowd.code_for(self)
        self.asked_at, self.close_code = monotonic(), CLOSE_LOST
        try:
            await self.crowd.open(self, code)
        except (OSError, WSError) as error:
            if response := getattr(error, "response", None):
                self._lost(f"HTTP {int(response.status)}", int(response.status))
            else:
                number = getattr(error, "errno", None)
                self._lost(
                    f"connect: {os.strerror(number) if number else type(error).__name__}",
                    CLOSE_LOST,
                )

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport, self.alive_at = transport, monotonic()
        self._become("joining")
        self.crowd.tally.times["connect"].add(self.alive_at - self.asked_at)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if transport is self.transport and not self.crowd.stopping:
            self.transport, self.whole, self.due_at = None, False, 0.0
            self.crowd.board.note(Board.ANSWER, self.number, 0, 0)  # it may not have arrived
            self.lost_at = self.lost_at or monotonic()
            self._lost(
                f"close {self.close_code}" if self.close_code else "silence", self.close_code
            )

    def _lost(self, kind: str, code: int) -> None:
        """Counts an error and connects again.

        Connects at once after a restart of the server, else after a random, growing pause.
        """
        self.crowd.tally.errors[kind] += 1
        if code in REFUSED_FOR_GOOD:
            self._miss()
            self._set_timer()
            return self._become("gone")
        if code == CLOSE_TRY_LATER:
            self.attempts = max(self.attempts, 3)
        pause_s = (
            0
            if code == CLOSE_RESTART
            else min(30, 0.5 * 2**self.attempts) * random.uniform(0.5, 1.5)
        )
        self.attempts = min(self.attempts + 1, 10)
        self.connect_soon(pause_s)

    def drop_if_silent(self, now: float) -> None:
        """Drops a connection on which the server has lost the player."""
        if (
            self.transport
            and self.state != "resting"
            and now - self.alive_at > self.crowd.plan.silence_s
        ):
            self.close_code = 0
            self.transport.disconnect(False)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self._on_text(frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            self.close_code = int(frame.get_close_code()) or CLOSE_LOST
            transport.disconnect()

    def _send(self, text: bytes) -> None:
        if self.transport is not None:
            self.transport.send(WSMsgType.TEXT, text)

    # -- messages

    def _on_text(self, text: memoryview) -> None:
        self.alive_at = monotonic()
        message = decode(text)
        if message.seq and message.type not in ("start", "update"):
            self._follow(message)
        if handler := HANDLERS.get(message.type):
            handler(self, message, self.alive_at)

    def _follow(self, message: Message) -> None:
        if message.game != self.game:
            self.crowd.tally.errors["message of another game"] += 1
        elif message.seq != self.seq + 1:
            self.crowd.tally.errors["gap in seq"] += 1
            self.whole = False
            self._send(b'{"type":"check"}')
        self.seq = message.seq

    def _back(self, now: float) -> None:
        """Counts a reconnection: the server knows the player again."""
        self.attempts = 0
        if self.lost_at:
            self.crowd.tally.times["away"].add(now - self.lost_at)
            self.crowd.tally.counts["reconnects"] += 1
            self.lost_at = 0.0

    def _enter(self, message: Message) -> None:
        if message.game != self.game:
            self._miss()
            self.game, numbers = message.game, self.crowd.plan.numbers
            self.game_id = zlib.crc32(self.game.encode()) * 1000.0
            self.crowd.tally.started.add(self.game)
            names = {player["username"] for player in message.players} - {self.name}
            # Only opponents that this tool plays have a number.
            self.others = [numbers[name] for name in names if name in numbers]
        self.seq = message.seq
        self._become("playing")

    def _miss(self) -> None:
        """Notes that the player sees no end of their game."""
        if self.game:
            self.crowd.tally.missed.add((self.game, self.token))
            self.game = ""

    def _on_queued(self, message: Message, now: float) -> None:
        self._miss()
        self._become("waiting")
        self._back(now)

    def _on_room(self, message: Message, now: float) -> None:
        self._back(now)
        self.crowd.know_code(self.room, message.code)
        if self.state == "joining":
            self._become("waiting")
        is_full = len(message.connected) == self.crowd.plan.room
        if self.is_host and is_full and message.state == "waiting":
            if not self.game_id and not self.full_at:
                self.full_at = now
                self.crowd.tally.times["filled"].add(now - self.asked_at)
            if self.state == "waiting":
                self._begin()

    def _begin(self) -> None:
        """Begins a game of the room, with a pause after the last game to look at its ranking."""
        self._set_timer(random.uniform(0, REST_S) if self.game_id else 0, self._say_begin)

    def _say_begin(self) -> None:
        if self.state == "waiting":
            self.asked_at = self.alive_at = monotonic()
            self._send(b'{"type":"begin"}')

    def _on_start(self, message: Message, now: float) -> None:
        if self.is_host:  # true for every player of a queue without rooms
            self.crowd.tally.times["match"].add(now - self.asked_at)
        if self.full_at:
            self.crowd.tally.times["begun"].add(now - self.full_at)
            self.full_at = 0.0
        self._enter(message)
        self.due_at = now + message.starts_ms / 1000

    def _on_update(self, message: Message, now: float) -> None:
        self._back(now)
        self._enter(message)
        self.round, self.whole, self.due_at = message.round, False, 0.0
        self._set_timer()
        if message.phase == "question" and message.choice is None and message.left_ms > TOO_LATE_MS:
            self._think(len(message.question["choices"]), message.left_ms / 1000)

    def _on_question(self, message: Message, now: float) -> None:
        if self.due_at:
            self.crowd.tally.times["lateness"].add(now - self.due_at)
        self.round, self.whole, self.unheard = message.round, True, self.others.copy()
        self.round_id = self.game_id + message.round
        self._note_skew(Board.QUESTION, now)
        self._think(len(message.choices), message.answer_ms / 1000)

    def _think(self, choices: int, left_s: float) -> None:
        delay_s = min(self.crowd.plan.think_s * (0.5 + random.random()), 0.9 * left_s)
        self._set_timer(delay_s, self._answer, int(random.random() * choices))

    def _answer(self, choice: int) -> None:
        self.timer = None
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
        """Adds the skew when the last player of the game has received the message."""
        board, round_id = self.crowd.board, self.round_id
        board.note(what, self.number, round_id, now)
        times = [board.when(what, other, round_id) for other in self.others]
        if times and all(times):
            self.crowd.tally.times["skew"].add(now - min(times))

    def _on_reveal(self, message: Message, now: float) -> None:
        self._set_timer()
        self.due_at = now + message.reveal_ms / 1000
        self.crowd.tally.counts["rounds"] += 1 / (len(self.others) + 1)
        if self.whole and message.round == self.round:
            self._note_skew(Board.REVEAL, now)
            # Without an answer of each player, the deadline caused the reveal.
            if len(message.answers) == len(self.others) + 1:
                for number in self.unheard:
                    self._note_delivery(number, now)

    def _on_end(self, message: Message, now: float) -> None:
        self.crowd.tally.ended[message.game] = message.reason
        self.game = ""
        if self.crowd.plan.rooms:
            self.due_at = 0.0
            self._become("waiting")
            if self.is_host:
                self._begin()
        elif message.rematch_ms and self.crowd.plan.rematch:
            self._become("resting")
            self._set_timer(random.uniform(0, REST_S), self._agree)
        else:
            self._rest(random.uniform(0, REST_S))

    def _agree(self) -> None:
        self.asked_at = self.alive_at = monotonic()
        self._become("joining")
        self._send(b'{"type":"rematch","accept":true}')

    def _on_rematch(self, message: Message, now: float) -> None:
        if self.state == "joining" and message.expires_ms == 0:
            self.crowd.tally.counts["timeouts"] += 1
            self._rest(random.uniform(0, REST_S))

    def _on_cancelled(self, message: Message, now: float) -> None:
        self.crowd.tally.counts["timeouts"] += not self.game
        self._miss()
        self._rest(random.uniform(0, REST_S))

    def _rest(self, seconds: float) -> None:
        self.due_at = 0.0
        self._become("resting")
        self._set_timer(seconds, self._join)

    def _join(self) -> None:
        self.asked_at = self.alive_at = monotonic()
        self._become("joining")
        self._send(self.crowd.join_message(self))

    def _on_error(self, message: Message, now: float) -> None:
        if message.code == "rematch_over":
            self.crowd.tally.counts["timeouts"] += 1
        else:
            self.crowd.tally.errors[f"error {message.code}"] += 1
        self.whole = False
        if self.state == "joining":
            self._rest(random.uniform(1, 3))


HANDLERS = {
    "queued": Player._on_queued,
    "start": Player._on_start,
    "question": Player._on_question,
    "answered": Player._on_answered,
    "reveal": Player._on_reveal,
    "end": Player._on_end,
    "update": Player._on_update,
    "cancelled": Player._on_cancelled,
    "room": Player._on_room,
    "rematch": Player._on_rematch,
    "error": Player._on_error,
}


# ---- crowd ---------------------------------------------------------------------------------------
# A process of players. It receives numbers through its pipe. Each number says how many of all
# players play from now on, and the crowd answers it with a report. STOP is the last number.

STOP = -1


class Target(NamedTuple):
    """The address of the server."""

    scheme: str
    name: str  # of the host, as in its certificate
    address: str  # its IP address, so that the name is resolved only once
    port: int
    insecure: bool  # accept any certificate

    def tls(self) -> ssl.SSLContext | None:
        """Returns the TLS context that checks certificates; None without TLS."""
        if self.scheme == "http":
            return None
        return ssl._create_unverified_context() if self.insecure else ssl.create_default_context()

    def websocket(self, queue: str) -> str:
        """Returns the WebSocket URL of a queue."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme.replace('http', 'ws')}://{address}:{self.port}/game/{queue}"


class Plan(NamedTuple):
    """What one crowd has to do."""

    target: Target
    queue: str
    address: str  # to connect from, or ''
    accounts: list[tuple[str, str]]  # (username, token) of all players
    ours: list[int]  # indexes in `accounts` of this crowd's players
    rooms: bool  # the queue has private rooms
    room: int  # players of a room; 1 without rooms
    rematch: bool  # agree to rematches
    think_s: float
    ramp_s: float
    silence_s: float  # longest silence of the server
    numbers: dict[str, int]  # username -> number of the player
    echo_port: int  # of the guard's echo server; 0 without the guard, and in other crowds


class Crowd:
    """The players of one process. The first crowd also holds the clients of the guard's echo."""

    def __init__(self, plan: Plan, board: Board, pipe: Any) -> None:
        self.plan, self.board, self.pipe = plan, board, pipe
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        self.tally, self.stopping, self.tasks = Tally(), False, set()
        self.players = [Player(self, number, *plan.accounts[number]) for number in plan.ours]
        self.codes: dict[int, asyncio.Future[str]] = {}  # code of each room
        self.states, self.started, self.asked = Counter(new=len(self.players)), 0, 0
        self.url, tls = plan.target.websocket(plan.queue), plan.target.tls()
        # Without TLS aiofastnet would cost 10 % more CPU.
        self.options = {
            "websocket_handshake_timeout": TIMEOUT_S,
            "read_buffer_init_size": 2048,
            "use_aiofastnet": bool(tls),
        }
        if tls:
            self.options |= {"ssl_context": tls, "server_hostname": plan.target.name}

    async def run(self) -> None:
        """Plays until STOP arrives."""
        self.loop.add_reader(self.pipe.fileno(), self._on_command)
        self._beat(monotonic())
        for _ in range(ECHOES if self.plan.echo_port else 0):
            await ws_connect(lambda: EchoClient(self), f"ws://127.0.0.1:{self.plan.echo_port}/")
        await self.stopped.wait()

    async def code_for(self, player: Player) -> str:
        """Waits for the code of a player's room; '' for a host who opens it, and without rooms."""
        if not self.plan.rooms:
            return ""
        known = self.codes.setdefault(player.room, self.loop.create_future())
        return await known if known.done() or not player.is_host else ""

    def join_message(self, player: Player) -> bytes:
        """Returns the message that asks for a game, in the player's room if the queue has rooms."""
        known = self.codes.get(player.room) if self.plan.rooms else None
        return (
            b'{"type":"join","code":"%b"}' % known.result().encode()
            if known
            else b'{"type":"join"}'
        )

    def know_code(self, room: int, code: str) -> None:
        """Stores the code of a room at its first sight, so that its other players can join."""
        if not self.codes[room].done():
            self.codes[room].set_result(code)

    async def open(self, player: Player, code: str) -> None:
        """Opens a connection of a player. On loopback each room has a network of its own."""
        url, factory = f"{self.url}?code={code}" if code else self.url, None
        if address := self.plan.address:
            if self.plan.rooms:
                address = f"127.1.{player.room // 250}.{player.room % 250 + 1}"
            factory = functools.partial(self._socket, address)
        headers = {"Authorization": f"Bearer {player.token}"}
        await ws_connect(
            lambda: player, url, extra_headers=headers, socket_factory=factory, **self.options
        )

    def spawn(self, work: Callable) -> None:
        """Starts a task and keeps a reference to it."""
        task = self.loop.create_task(work())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @staticmethod
    def _socket(address: str, _: Any) -> socket.socket:
        """Makes a socket with a source address. The port is chosen late: so more are free."""
        one = socket.socket(socket.AF_INET)
        one.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        one.bind((address, 0))
        return one

    def _beat(self, due: float) -> None:
        now = monotonic()
        self.tally.times[f"lag {self.plan.ours[0]}"].add(now - due)
        self.loop.call_later(LAG_S, self._beat, now + LAG_S)

    def _on_command(self) -> None:
        try:
            command = self.pipe.recv()
        except (EOFError, OSError):  # the parent process has ended
            command = STOP
        self._leave() if command == STOP else self._play(command)
        report, self.tally = self.tally, Tally()
        report.states, report.cpu_s = +self.states, time.process_time()
        with contextlib.suppress(OSError):
            self.pipe.send(report)

    def _play(self, count: int) -> None:
        while self.started < len(self.players) and self.players[self.started].number < count:
            self.players[self.started].connect_soon(random.uniform(0, self.plan.ramp_s))
            self.started += 1
        self.asked += 1
        for player in self.players[self.asked % 10 :: 10]:  # a tenth of them each time
            player.drop_if_silent(monotonic())

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
    """Runs a process of players, from its start to its end."""
    # The tool counts as errors what picows would log.
    logging.getLogger("picows").setLevel(logging.CRITICAL)
    raise_file_limit()
    gc.disable()  # players live as long as the process, and messages make no cycles

    async def work() -> None:
        await Crowd(plan, Board(memory), pipe).run()

    uvloop.run(work())


class Child:
    """A child process and the pipe to it."""

    def __init__(self, work: Callable, *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *args), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: Any) -> None:
        """Sends something. A dead child shows when its answer is read."""
        with contextlib.suppress(OSError):
            self.pipe.send(what)

    def end(self) -> None:
        """Waits for the process to end, and kills it after 1 s."""
        self.pipe.close()
        self.process.join(1)
        self.process.kill()


# ---- echo ----------------------------------------------------------------------------------------
# The reference of the guard: uvicorn with the options of trivia.serve() and an application that
# only echoes. Its clients are in the first crowd.


def run_echo(pipe: Any) -> None:
    """Sends its port, and runs until the pipe is closed."""

    async def echo(scope: dict, receive: Callable, send: Callable) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    os.setsid()  # Ctrl-C does not reach it; it exits when the parent closes the pipe
    threading.Thread(target=lambda: (pipe.poll(None), os._exit(0)), daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=ECHOES)
    pipe.send(listener.getsockname()[1])
    uvicorn.Server(
        uvicorn.Config(
            echo,
            lifespan="off",
            loop="uvloop",
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=64 * 1024,
            ws_per_message_deflate=False,
            ws_ping_interval=25,
            ws_ping_timeout=20,
            access_log=False,
            log_level="warning",
        )
    ).run([listener])


class EchoClient(WSListener):
    """Sends a message, and a pause after each echo the next one."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.crowd.loop.call_later(
            ECHO_S * random.uniform(0.5, 1.5),
            transport.send,
            WSMsgType.TEXT,
            b'{"type":"answer","round":1,"choice":1}',
        )

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.crowd.tally.counts["echoes"] += 1
            self.on_ws_connected(transport)


# ---- accounts ------------------------------------------------------------------------------------
# The HTTP requests (queues, accounts, records of games), and two ways to make accounts.


def call(
    target: Target,
    method: str,
    path: str,
    body: dict | None = None,
    token: str = "",
    address: str = "",
) -> tuple[int, dict]:
    """Returns status and body of a request. Raises OSError.

    A server on this host takes `address` as the client's address.
    """
    kind, options = (
        (http.client.HTTPSConnection, {"context": tls})
        if (tls := target.tls())
        else (http.client.HTTPConnection, {})
    )
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {token}"} if token else {}
    )
    if address:
        headers["X-Forwarded-For"] = address
    with contextlib.closing(
        kind(target.name, target.port, timeout=TIMEOUT_S, **options)
    ) as connection:
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        except (http.client.HTTPException, json.JSONDecodeError):
            return 0, {}


def many(work: Callable, items: list) -> Iterable:
    """Yields the results of work(item); REGISTRATIONS run at a time."""
    with ThreadPoolExecutor(REGISTRATIONS) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def read_queue(target: Target, name: str) -> dict:
    """Returns the rules of a queue. Raises Fatal if there is no such server or queue."""
    where = f"{target.scheme}://{target.name}:{target.port}/queues"
    try:
        status, answer = call(target, "GET", "/queues")
    except OSError as error:
        raise Fatal(f"{where}: {error.strerror or error}") from None
    if status != 200 or "queues" not in answer:
        raise Fatal(f"{where}: found HTTP {status or 'nonsense'}; expected a trivia server")
    for queue in answer["queues"]:
        if queue["name"] == name:
            return queue
    raise Fatal(
        f"--queue: found {name}; expected one of "
        f"{', '.join(queue['name'] for queue in answer['queues'])}"
    )


def new_user(name: str) -> dict:
    """Returns the body of a registration."""
    return {"username": name, "email": f"{name}@example.org", "password": secrets.token_urlsafe(12)}


def register(target: Target, name: str) -> tuple[str, str]:
    """Registers a player; returns (username, token). Raises Fatal."""
    address = str(ipaddress.IPv4Address(0x0A000000 + secrets.randbelow(2**24)))  # of a phone
    status, answer = call(target, "POST", "/auth/register", new_user(name), address=address)
    if status != 201:
        raise Fatal(f"registering {name}: HTTP {status} {answer}")
    return name, answer["token"]


def ensure_accounts(
    options: argparse.Namespace, target: Target, host: Host, console: Console
) -> list[tuple[str, str]]:
    """Returns (username, token) of as many players as are wanted. Raises Fatal.

    Reads the file of accounts first, then makes the missing ones and adds them to the file.
    """
    accounts, file, run = [], options.accounts, secrets.token_hex(4)
    if file:
        file.seek(0)
        accounts = [tuple(line.split()) for line in file][: max(options.players)]
    if accounts and call(target, "GET", "/users/me", token=accounts[0][-1])[0] != 200:
        raise Fatal(
            f"--accounts: the server does not know the tokens in {file.name}; "
            "remove it, to register anew"
        )
    names = [f"load{run}-{number}" for number in range(max(options.players) - len(accounts))]
    made = (
        seeded(host, names)
        if options.seed_accounts
        else many(lambda name: register(target, name), names)
    )
    for account in track(
        made, "accounts", len(names), console=console, transient=True, disable=not names
    ):
        accounts.append(account)
        if file:
            print(*account, file=file)
    return accounts


def seeded(host: Host, names: list[str]) -> Iterable[tuple[str, str]]:
    """Makes accounts in the server's Redis with the server's code, and hashes only one password."""
    schema = host.folder / host.environment.get("TRIVIA_SCHEMA", ROOT / "schema.yaml")
    # trivia.py reads these variables when it is imported.
    os.environ.update(REDIS_URL=host.redis_url, TRIVIA_SCHEMA=str(schema), TRIVIA_LOG="warning")
    sys.path.insert(0, str(ROOT))
    trivia = importlib.import_module("trivia")
    with asyncio.Runner() as runner:
        store, schema = (
            runner.run(trivia.reach_redis()),
            trivia.Schema(trivia.read_schema(trivia.SCHEMA_FILE)),
        )
        users = trivia.Users(store, schema)
        hashed = runner.run(users.passwords.hash(secrets.token_urlsafe(), ""))

        async def hash_once(password: str, address: str) -> str:
            return hashed

        async def register_all(some: list[str]) -> list[dict]:
            return await asyncio.gather(
                *(users.register(schema.new_user.load(new_user(name)), name) for name in some)
            )

        users.passwords.hash = hash_once
        for first in range(0, len(names), SEEDINGS):
            for session in runner.run(register_all(names[first : first + SEEDINGS])):
                yield session["user"]["username"], session["token"]
        runner.run(store.close())


# ---- host ----------------------------------------------------------------------------------------
# CPU and memory of the server's processes and its Redis, when they run on this host.


class Usage(NamedTuple):
    """The resources used up to a moment (CPU, counters), or held at it (memory, files)."""

    at: float
    cpu_s: dict[str, float]  # by process, Redis included
    memory: dict[str, int]  # bytes, by process
    files: dict[str, int]  # open files by process; each connection is one
    redis: dict[str, int]  # the counters of Redis
    own_cpu_s: list[float]  # of each process of this tool
    echo_cpu_s: float  # of the guard's echo server


class Host:
    """Watches the process that listens on a port, its present and later descendants, and Redis."""

    def __init__(self, address: str, port: int, redis_url: str | None) -> None:
        self.address, self.port = address, port
        self.processes: dict[str, psutil.Process] = {}  # those that live
        self.cpu_s: dict[str, float] = {}  # of processes that have ended, too
        self.root, self.environment, self.folder = None, {}, Path()
        with contextlib.suppress(psutil.Error, AttributeError):
            self.root = self._find()
            self.environment, self.folder = self.root.environ(), Path(self.root.cwd())
        data = self.folder / self.environment.get("TRIVIA_DATA", "data") / "redis.sock"
        self.redis_url = (
            redis_url
            or self.environment.get("REDIS_URL")
            or (f"unix://{data}" if self.root else "")
        )
        self.stores = clients_of(self.redis_url) if self.redis_url else []

    def _find(self) -> psutil.Process | None:
        here = {one.address for some in psutil.net_if_addrs().values() for one in some}
        pids = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.pid and self._listens(one) and self.address in here
        }
        process = min(map(psutil.Process, pids), key=psutil.Process.create_time, default=None)
        with contextlib.suppress(psutil.Error):
            while process and any(map(self._listens, process.parent().net_connections())):
                process = process.parent()  # the system names only one owner of a shared socket
        return process

    def _listens(self, connection: Any) -> bool:
        return connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port

    def cpu(self) -> dict[str, float]:
        """Returns the CPU seconds used so far, by process, those that have ended included."""
        self.processes.clear()
        with contextlib.suppress(psutil.Error, AttributeError):
            for process in [self.root, *self.root.children(recursive=True)]:
                self._see(process.pid, "server" if process == self.root else "worker")
        for info in self.infos("server"):
            self._see(info["process_id"], "redis")
        return self.cpu_s.copy()

    def _see(self, pid: int, role: str) -> None:
        """Stores the CPU time of a process, if its program fits its role (Redis or not)."""
        with contextlib.suppress(psutil.Error):
            process, name = psutil.Process(pid), f"{role} {pid}"
            is_redis = process.name().startswith(("valkey", "redis"))
            if is_redis == (role == "redis") and "resource_tracker" not in " ".join(
                process.cmdline()
            ):
                self.cpu_s[name], self.processes[name] = cpu_of(process), process

    def usage(self, own_cpu_s: list[float], echo_cpu_s: float) -> Usage:
        """Reads everything at this moment."""
        cpu_s, counters, at, memory, files = self.cpu(), self.counters(), monotonic(), {}, {}
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.Error):
                memory[name], files[name] = process.memory_full_info().pss, process.num_fds()
        return Usage(at, cpu_s, memory, files, counters, own_cpu_s, echo_cpu_s)

    def counters(self) -> dict[str, int]:
        """Returns Redis's counters, and its calls of each command as `calls:NAME`; {} if none."""
        found: Counter[str] = Counter()
        for info in self.infos("everything"):
            for name, counter in COUNTERS.items():
                found[name] += info[counter]
            for name, known in info.items():
                if name.startswith("cmdstat_"):
                    found[f"calls:{name.removeprefix('cmdstat_')}"] += known["calls"]
        return dict(found)

    def description(self) -> dict:
        """Describes what the figures of this host depend on; {} when the server is elsewhere."""
        if not self.root:
            return {}
        cpu, server = (
            Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0],
            (self.infos("server") or [{}])[0],
        )
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        )
        return {
            "cpu": cpu or platform.machine(),
            "cores": psutil.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "commit": commit.stdout.strip(),
            server.get("server_name", "redis"): server.get(
                "valkey_version", server.get("redis_version")
            ),
        }

    def infos(self, section: str) -> list[dict]:
        """Returns the INFO of each Redis; [] when one does not answer."""
        try:
            return [store.info(section) for store in self.stores]
        except redis.RedisError:
            return []


COUNTERS = {  # name in the report -> name in INFO
    "commands": "total_commands_processed",
    "bytes_in": "total_net_input_bytes",
    "bytes_out": "total_net_output_bytes",
    "memory": "used_memory",
}


def clients_of(url: str) -> list[redis.Redis]:
    """Returns a client of the Redis at a URL, or of each primary of a cluster."""
    scheme, _, rest = url.partition("+cluster://")
    if not rest:
        return [redis.Redis.from_url(url, socket_timeout=1)]
    login, _, hosts = rest.partition("?")[0].strip("/").rpartition("@")
    client = lambda host: redis.Redis.from_url(f"{scheme}://{login}@{host}", socket_timeout=1)
    for host in hosts.split(","):
        with contextlib.suppress(redis.RedisError):
            rows = client(host).execute_command("CLUSTER SLOTS")
            places = {(row[2][0].decode(), row[2][1]) for row in rows}
            return [client(f"{host}:{port}") for host, port in sorted(places)]
    return []


def cpu_of(process: psutil.Process) -> float:
    """Returns the CPU seconds that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


# ---- run -----------------------------------------------------------------------------------------
# Starts the crowds, asks each second for their reports, and runs the steps.


class Step:
    """A number of players: their ramp, and the period of its figures."""

    def __init__(self, players: int, begin: Usage) -> None:
        self.players, self.ramped = players, False
        self.all, self.measured = Tally(), Tally()  # with the ramp, and without it
        self.begin = self.end = begin  # of the measured period
        self.states: Counter[str] = Counter()


class Run:
    """A run, from the start of its crowds to their last reports."""

    def __init__(
        self, options: argparse.Namespace, plans: list[Plan], host: Host, echo: Child | None
    ) -> None:
        self.options, self.host, self.echo = options, host, echo
        # The crowds inherit this: they end when STOP arrives.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        memory = multiprocessing.get_context("spawn").RawArray("d", 6 * len(plans[0].accounts))
        self.crowds = [Child(run_crowd, plan, memory) for plan in plans]
        self.reports = [Tally() for _ in plans]  # the last report of each crowd
        self.total, self.second = Tally(), Tally()
        self.counting = [self.total, self.second]  # the tallies to which reports are added
        self.target, self.interrupted = 0, False
        self._ask()  # the crowds answer when they are ready
        self.first = self._usage()
        self.sampled_at, self.cpu_before = self.first.at, self.first.cpu_s
        self.steps: list[Step] = []
        self.samples: list[dict] = []

    def play(self, show: Callable) -> None:
        """Runs all steps; Ctrl-C ends the run."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        for players in self.options.players:
            if not self.interrupted:
                self._step(players, show)
        self.target = STOP
        self._ask()
        for child in self.crowds:
            child.end()

    def _interrupt(self, *_: Any) -> None:
        """Ends the run after the current report; a second signal ends it at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _step(self, players: int, show: Callable) -> None:
        self.target, step = players, Step(players, self._usage())
        self.steps.append(step)
        self.counting = [self.total, self.second, step.all]
        self._watch(self.options.ramp, show)
        if not self.interrupted:
            step.ramped, step.begin = True, self._usage()
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
        """Takes a report from each crowd."""
        for crowd in self.crowds:
            crowd.ask(self.target)
        for number, crowd in enumerate(self.crowds):
            try:
                self.reports[number] = crowd.pipe.recv()
            except (EOFError, OSError):
                self.reports[number] = Tally()
                self.reports[number].errors["a process of players died"] += self.target != STOP
                self.interrupted = True
            for tally in self.counting:
                tally.add(self.reports[number])

    def states(self) -> Counter[str]:
        """Counts the players by state."""
        return sum((report.states for report in self.reports), Counter())

    def _usage(self) -> Usage:
        return self.host.usage(
            [*(report.cpu_s for report in self.reports), time.process_time()],
            cpu_of(psutil.Process(self.echo.process.pid)) if self.echo else 0.0,
        )

    def _sample(self) -> dict:
        """Returns the figures of the last second."""
        now, cpu_s, second = monotonic(), self.host.cpu(), self.second
        passed_s, delivery = now - self.sampled_at, second.times["delivery"]
        sample = {
            "second": round(now - self.first.at),
            **players_by_state(self.states()),
            "games_ended": len(self.total.ended),
            "answers_per_s": ratio(second.counts["answers"], passed_s),
            "p50_ms": delivery.quantile_ms(0.5),
            "p99_ms": delivery.quantile_ms(0.99),
            "late_p99_ms": second.times["lateness"].quantile_ms(0.99),
            "server_cores": ratio(sum(cpu_s.values()) - sum(self.cpu_before.values()), passed_s, 2),
            "errors": wrong(self.total.errors).total(),
        }
        self.sampled_at, self.cpu_before = now, cpu_s
        second.__init__()
        self.samples.append(sample)
        return sample


# ---- figures -------------------------------------------------------------------------------------
# The output of --json. The table on the screen has the same names.


def players_by_state(states: Counter[str]) -> dict[str, int]:
    """Counts the players who are connected, playing, and waiting for a game."""
    waiting = states["joining"] + states["waiting"]
    return {
        "connected": states["playing"] + states["resting"] + waiting,
        "playing": states["playing"],
        "waiting": waiting,
    }


def wrong(errors: Counter[str]) -> Counter[str]:
    """Returns the errors without those that a rolling restart causes."""
    return +Counter({kind: count for kind, count in errors.items() if kind != EXPECTED})


def ratio(amount: float, count: float, digits: int = 1) -> float | None:
    """Divides amount by count; None when count is 0."""
    return round(amount / count, digits) if count else None


def figures_of(run: Run, target: Target, rounds: int) -> dict:
    """Returns all figures of a run. Asks the server about games whose end a player did not see."""

    def has_record(game_and_token: tuple[str, str]) -> bool:
        game, token = game_and_token
        with contextlib.suppress(OSError):
            return call(target, "GET", f"/games/{game}", token=token)[0] == 200
        return False

    missed, options = sorted(run.total.missed), run.options
    lost = [one for one, known in zip(missed, many(has_record, missed), strict=True) if not known]
    return {
        "host": run.host.description(),
        "url": options.url,
        "queue": options.queue,
        "think_s": options.think,
        "ramp_s": options.ramp,
        "processes": len(run.crowds),
        "errors": dict(wrong(run.total.errors)),
        "games_lost": len({game for game, _ in lost}),
        "games_ended_while_a_player_was_away": len({game for game, _ in set(missed) - set(lost)}),
        "steps": [step_figures(step, run.first, rounds) for step in run.steps],
        "samples": run.samples,
    }


def step_figures(step: Step, first: Usage, rounds: int) -> dict:
    """Returns the figures of a step."""
    tally, seconds = step.measured if step.ramped else step.all, step.end.at - step.begin.at
    answers, times = tally.counts["answers"], tally.times
    return {
        "players": step.players,
        "after_ramp": step.ramped,
        "seconds": round(seconds, 1),
        **players_by_state(step.states),
        "games_started": len(tally.started),
        "games_ended": dict(Counter(tally.ended.values())),
        "answers": answers,
        "answers_per_s": ratio(answers, seconds),
        "measured_share": ratio(tally.counts["measured"], answers, 3),
        **{
            f"{name}_ms": times[name].summary()
            for name in ("delivery", "lateness", "skew", "match")
        },
        **{
            f"{name}_ms": step.all.times[name].summary()
            for name in ("connect", "away", "filled", "begun")
        },
        "reconnects": step.all.counts["reconnects"],
        "told_to_reconnect": step.all.errors[EXPECTED],
        "tickets_timed_out": tally.counts["timeouts"],
        "errors": dict(wrong(step.all.errors)),
        **server_figures(first, step, seconds, answers),
        **redis_figures(
            first.redis, step.begin.redis, step.end.redis, answers, tally.counts["rounds"] / rounds
        ),
        "load_tool": own_figures(step, tally, seconds),
        **guard_figures(step, tally),
    }


def server_figures(first: Usage, step: Step, seconds: float, answers: int) -> dict:
    """Returns the CPU that the server's processes and Redis used, in total and each."""

    def cpu(used_s: float) -> dict:
        return {"cores": ratio(used_s, seconds, 3), "us_per_answer": ratio(1e6 * used_s, answers)}

    used_s = cpu_used(step)
    return {
        "server_and_redis": cpu(sum(used_s.values())),
        "processes": {
            name: cpu(used) | memory_figures(name, first, step.end) for name, used in used_s.items()
        },
    }


def memory_figures(name: str, first: Usage, end: Usage) -> dict:
    """Returns the memory of a live process; if it is older than the players, by connection too."""
    if name not in end.memory:
        return {}
    memory = {"mib": round(end.memory[name] / MIB, 1)}
    if name not in first.memory or name.startswith("redis"):
        return memory
    connections = end.files[name] - first.files[name]
    grown_kib = (end.memory[name] - first.memory[name]) / 1024
    return memory | {
        "connections": connections,
        "kib_per_connection": ratio(grown_kib, connections),
    }


def cpu_used(step: Step) -> dict[str, float]:
    """Returns the CPU seconds used within a step, by process."""
    return {name: used - step.begin.cpu_s.get(name, 0.0) for name, used in step.end.cpu_s.items()}


def redis_figures(first: dict, begin: dict, end: dict, answers: int, games: float) -> dict:
    """Returns what Redis did. A game counts by its share of rounds: few may begin and end here."""
    if not end:
        return {}
    used = {name: count - begin.get(name, 0) for name, count in end.items()}
    traffic = ("commands", "bytes_in", "bytes_out")
    return {
        "redis_per_answer": {name: ratio(used[name], answers) for name in traffic},
        "redis_per_game": {name: ratio(used[name], games, 0) for name in traffic},
        "redis_calls_per_answer": {
            name.removeprefix("calls:"): ratio(count, answers, 2)
            for name, count in Counter(used).most_common(10)
            if name.startswith("calls:")
        },
        "redis_memory_mib": {
            "used": round(end["memory"] / MIB, 1),
            "grown": round((end["memory"] - first.get("memory", 0)) / MIB, 1),
        },
    }


def own_figures(step: Step, tally: Tally, seconds: float) -> dict:
    """Returns how busy this tool was: its busiest process of players, and all its processes."""
    used_s = [
        now - before for now, before in zip(step.end.own_cpu_s, step.begin.own_cpu_s, strict=True)
    ]
    lag_ms = max(
        (times.quantile_ms(0.99) for name, times in tally.times.items() if name.startswith("lag")),
        default=0.0,
    )
    busiest = ratio(max(used_s), seconds, 3) or 0.0
    return {
        "lag_p99_ms": lag_ms,
        "busiest_cores": busiest,
        "cores": ratio(sum(used_s), seconds, 3),
        "us_per_answer": ratio(1e6 * sum(used_s), tally.counts["answers"]),
        "overloaded": lag_ms > LAG_LIMIT_MS or busiest > CPU_LIMIT,
    }


def guard_figures(step: Step, tally: Tally) -> dict:
    """Returns what an answer costs, in messages of the echo server; {} without the guard."""
    if not tally.counts["echoes"] or not tally.counts["answers"]:
        return {}
    answer_us = 1e6 * sum(cpu_used(step).values()) / tally.counts["answers"]
    echo_us = 1e6 * (step.end.echo_cpu_s - step.begin.echo_cpu_s) / tally.counts["echoes"]
    return {
        "guard": {
            "echo_us_per_message": round(echo_us, 1),
            "echoes_per_answer": round(answer_us / echo_us, 2),
        }
    }


# ---- show ----------------------------------------------------------------------------------------
# The summary, the progress during a run, and the plot.


def print_figures(figures: dict, console: Console) -> None:
    """Prints the summary: a column for each step."""
    table, columns = (
        Table(show_header=False),
        [step | step["processes"] for step in figures["steps"]],
    )
    for name in dict.fromkeys(name for column in columns for name in column if name != "processes"):
        table.add_row(name, *(in_words(column.get(name)) for column in columns))
    console.print(table, in_words(figures["host"]), sep="\n")
    console.print(
        in_words(
            {
                name: figures[name]
                for name in ("errors", "games_lost", "games_ended_while_a_player_was_away")
            }
        )
    )
    if any(step["load_tool"]["overloaded"] for step in figures["steps"]):
        console.print(
            "The load tool was too slow itself: the latencies are the tool's, not the server's. "
            "Use more --processes, fewer --players, or a host with more cores.",
            style="bold",
        )


def in_words(value: Any) -> str:
    """Formats a figure, or several figures with their names."""
    if isinstance(value, dict):
        return (
            "  ".join(f"{in_words(one)} {name}" for name, one in value.items() if one is not None)
            or "none"
        )
    return "-" if value is None else str(value)


def play_shown(run: Run, console: Console) -> None:
    """Plays, and shows the progress: a table in a terminal, else a line every LINE_S seconds."""

    def show(sample: dict) -> None:
        table = Table(*sample)
        table.add_row(*map(in_words, sample.values()))
        live.update(table, refresh=True)
        if not console.is_terminal and len(run.samples) % LINE_S == 0:
            console.print(in_words(sample))

    with Live(console=console, auto_refresh=False, transient=True) as live:
        run.play(show)


def plot(figures: dict, file: Any) -> None:
    """Draws latency and CPU against the number of players: lines by step, dots by second."""
    from matplotlib.figure import Figure

    steps, samples, drawn = (
        figures["steps"],
        figures["samples"],
        Figure(figsize=(8, 8), layout="constrained"),
    )
    latency, cpu = drawn.subplots(2, sharex=True)

    def line(axes: Any, label: str, value: Callable) -> None:
        axes.plot(
            [step["connected"] for step in steps],
            [value(step) for step in steps],
            "o-",
            label=label,
        )

    for name, share in (
        ("delivery", "p50"),
        ("delivery", "p99"),
        ("delivery", "p999"),
        ("lateness", "p99"),
    ):
        line(
            latency,
            f"{name} {share}",
            lambda step, name=name, share=share: step[f"{name}_ms"][share],
        )
    for label, role in (("server in all", ""), ("Redis", "redis")):
        line(
            cpu,
            label,
            lambda step, role=role: sum(
                used["cores"] for name, used in step["processes"].items() if name.startswith(role)
            ),
        )
    line(cpu, "load tool", lambda step: step["load_tool"]["cores"])
    for axes, name, label in (
        (latency, "p99_ms", "delivery p99, each second"),
        (cpu, "server_cores", "server, each second"),
    ):
        axes.scatter(
            [sample["connected"] for sample in samples],
            [sample[name] or math.nan for sample in samples],
            4,
            "gray",
            alpha=0.4,
            label=label,
        )
        axes.grid(alpha=0.3)
        axes.legend()
    host = figures["host"]
    latency.set(
        ylabel="ms",
        yscale="log",
        title=f"{host['cores']} cores of {host['cpu']}, which also run the load tool"
        if host
        else figures["url"],
    )
    cpu.set(ylabel="cores used", xlabel="players connected", ylim=(0, None), xlim=(0, None))
    drawn.savefig(file)


# ---- command line --------------------------------------------------------------------------------


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line. Exits with a message when it is not valid."""
    parser = argparse.ArgumentParser(
        prog="load.py",
        description=__doc__.partition("\n")[0],
        epilog="The head of this file explains the figures.",
    )
    add, file = parser.add_argument, argparse.FileType
    add(
        "url",
        nargs="?",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="the server (default: %(default)s), "
        "or the JSON file of an earlier run, to show it again",
    )
    add(
        "--players",
        type=ascending,
        default=[200],
        metavar="N[,N...]",
        help="number of players; several numbers make several steps (200)",
    )
    add("--queue", default="random", help="the queue that all join (%(default)s)")
    add("--room", type=int, metavar="N", help="players of a private room (its greatest number)")
    add("--rematch", action="store_true", help="agree to a rematch after each game")
    add(
        "--think",
        type=float,
        default=4.0,
        metavar="SECONDS",
        help="mean time to an answer; each varies by a half (%(default)g)",
    )
    add(
        "--ramp",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time in which the players of a step connect (%(default)g)",
    )
    add(
        "--minutes",
        type=float,
        default=1.0,
        metavar="M",
        help="how long to measure after the ramp (%(default)g)",
    )
    add(
        "--processes",
        type=int,
        metavar="N",
        help=f"processes that hold the players (one for each {PLAYERS_A_PROCESS})",
    )
    add(
        "--accounts",
        type=private_file,
        metavar="FILE",
        help="read players' tokens from this file, and add those of new players",
    )
    add(
        "--seed-accounts",
        action="store_true",
        help="write accounts to the Redis of a server on this host, which is much faster",
    )
    add("--insecure", action="store_true", help="with https://: accept any certificate")
    add(
        "--server-port",
        type=int,
        metavar="PORT",
        help="the server's own port on this host, when URL is that of a proxy",
    )
    add("--redis", metavar="URL", help="the server's Redis (from the server's environment)")
    add(
        "--json",
        type=file("w"),
        metavar="FILE",
        help="write all figures to this file, also those of each second",
    )
    add(
        "--plot",
        type=file("wb"),
        metavar="FILE.png",
        help="draw latency and CPU against players (needs matplotlib)",
    )
    add("--guard", action="store_true", help=f"compare an answer's cost with {GUARD_FILE.name}")
    return parser.parse_args(arguments)


def private_file(name: str) -> Any:
    """Opens a file of tokens that no other user can read."""
    return open(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+")


def ascending(text: str) -> list[int]:
    """Parses numbers of players."""
    return sorted(map(int, text.split(",")))


def raise_file_limit() -> int:
    """Raises this process's limit of open files to the hard limit, and returns it."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def read_target(url: str, insecure: bool) -> Target:
    """Returns the address of the server. Raises Fatal."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        addresses = [
            info[4][0] for info in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        ]
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise Fatal(f"{url}: expected http://HOST:PORT or https://HOST:PORT ({error})") from None
    # min() prefers IPv4.
    return Target(
        parts.scheme, parts.hostname, min(addresses, key=lambda one: ":" in one), port, insecure
    )


def make_plans(
    options: argparse.Namespace, target: Target, rules: dict, accounts: list, echo_port: int
) -> list[Plan]:
    """Returns what each process has to do. Players, or whole rooms, go to the processes in turn."""
    count, numbers = options.processes, {name: number for number, (name, _) in enumerate(accounts)}
    silences = (rules.get(f"{what}_seconds", 0) for what in ("wait", "start", "answer", "reveal"))
    silence_s = PATIENCE_S + max(TIMEOUT_S, *silences)
    loopback = target.address.startswith("127.")
    return [
        Plan(
            target,
            options.queue,
            f"127.0.0.{number % 250 + 1}" if loopback else "",
            accounts,
            [one for one in range(len(accounts)) if one // options.room % count == number],
            rules.get("match") == "room",
            options.room,
            options.rematch,
            options.think,
            options.ramp,
            silence_s,
            numbers,
            0 if number else echo_port,
        )
        for number in range(count)
    ]


def room_size(options: argparse.Namespace, rules: dict) -> int:
    """Returns the players of a room; 1 in a queue without rooms. Raises Fatal."""
    if rules.get("match") != "room":
        if options.room:
            raise Fatal(f"--room: queue {options.queue} has no rooms")
        return 1
    least, most = rules["players"]["min"], rules["players"]["max"]
    size = options.room or most
    if not least <= size <= most:
        raise Fatal(
            f"--room: found {size}; rooms of {options.queue} have {least} to {most} players"
        )
    if any(players % size for players in options.players):
        raise Fatal(f"--players: expected multiples of {size}, the size of a room")
    return size


def measure(options: argparse.Namespace, console: Console) -> dict:
    """Plays, and returns the figures. Raises Fatal."""
    target = read_target(options.url, options.insecure)
    rules = read_queue(target, options.queue)
    options.room = room_size(options, rules)
    processes = options.processes or math.ceil(max(options.players) / PLAYERS_A_PROCESS)
    options.processes = min(processes, max(options.players) // options.room)
    if max(options.players) / options.processes > (room := raise_file_limit() - 100):
        raise Fatal(
            f"--players: a process can hold {room} of them (ulimit -Hn); use more --processes"
        )
    host = Host(target.address, options.server_port or target.port, options.redis)
    if (options.guard or options.seed_accounts) and not (host.root and host.counters()):
        raise Fatal("--guard, --seed-accounts: the server and its Redis must be on this host")
    accounts = ensure_accounts(options, target, host, console)
    echo = Child(run_echo) if options.guard else None
    run = Run(
        options,
        make_plans(options, target, rules, accounts, echo.pipe.recv() if echo else 0),
        host,
        echo,
    )
    play_shown(run, console)
    return figures_of(run, target, rules["rounds"])


def is_worse(figures: dict, kept: float) -> bool:
    """Prints the ratio of the guard. Returns whether it is above the limit."""
    found = figures["steps"][-1]["guard"]["echoes_per_answer"]
    worse = found > GUARD_LIMIT * kept
    print(
        f"guard: an answer costs {found} echoes, {found / kept - 1:+.0%} from the {kept} "
        f"in {GUARD_FILE.name}: " + ("too much" if worse else "fine")
    )
    return worse


def main() -> None:
    """Runs the command line."""
    options, console = read_options(), Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    if options.plot:
        importlib.import_module("matplotlib")  # fails now if missing, not after the run
    kept = json.loads(GUARD_FILE.read_text()) if options.guard else {"options": {}}
    vars(options).update(kept["options"])
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts background programs with SIGINT ignored.
        signal.signal(number, signal.default_int_handler)
    again = Path(options.url).is_file()
    figures = json.loads(Path(options.url).read_text()) if again else measure(options, console)
    print_figures(figures, console)
    if options.json:
        json.dump(figures, options.json, indent=1)
    if options.plot:
        plot(figures, options.plot)
    worse = options.guard and is_worse(figures, kept["echoes_per_answer"])
    sys.exit(int(worse or bool(figures["errors"] or figures["games_lost"])))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
