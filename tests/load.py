"""Plays real games against a trivia server, by the thousand, and measures what its host carries.

    python tests/load.py --players 20000 --think 4 --ramp 60 --minutes 5 http://127.0.0.1:8000

Needs `pip install picows msgspec psutil redis rich uvloop`, and matplotlib for --plot.

Players are registered (or taken from --accounts FILE), connect to /game/QUEUE, answer at random after a think time,
play again after each game, and reconnect when their connection drops, as a phone would. Each process holds up to 5,000
of them; on loopback each has a source address of its own (127.0.0.1, 127.0.0.2, ...), for one address has only about
28,000 ports. Once a second each process reports to the one that you started, which sums up.

What is measured, in ms, from the end of the ramp on (of the whole run, if it ended before):

    delivery    from sending `answer` until `answered` is with an opponent, or, for the answer that closes the question,
                until the `reveal` is. The players of a game may be in different processes; all read the same clock
                (CLOCK_MONOTONIC) and report when they sent and received, and the rounds are put together here. Left
                out are rounds in which a player lost his connection: the share of answers that was measured is said.
    lateness    arrival of `question` against its due time, which the `reveal` (or `start`) before announced to the
                same player. What is early counts as 0.
    skew        between the first and the last player of a game whom a `question` or a `reveal` reached.
    match       from asking for a game until `start`.

And over the whole run: games, and how they ended; errors by kind;

    connect     from opening a connection until it is accepted;
    away        from the loss of a connection until the first `queued` or `update` on the next.

A game is lost when it had a `start` or an `update` but its player saw no `end`, and the server has no record of its end
either; with a record, it ended while he was away. Games that still go on at the end of the run are not lost.

On the server's own host its CPU and memory are read too: of the process that listens on the port and its descendants,
and of its Redis. Percentiles are exact to 2 %. When the load tool itself was too slow for its figures to be the
server's, it says so.

The exit code is 0 when there were no errors and no game was lost. Connections closed with 1012 (the server restarts)
are not errors, so that a rolling restart can be measured: start this, then restart the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import importlib.util
import ipaddress
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
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import psutil
import redis
import uvloop
from picows import WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table

# ---- settings -----------------------------------------------------------------------------------------------
# What is not worth an option.

PLAYERS_A_PROCESS = 5_000
REGISTRATIONS = 16          # at a time; the server hashes a password in about 25 ms of CPU
TIMEOUT_S = 15              # of an HTTP request and of a handshake
REST_S = 1.0                # between two games of a player, at most
PATIENCE_S = 5              # a server that is silent for so long beyond what is due has lost the player
LAG_S, LAG_LIMIT_MS, CPU_LIMIT = 0.05, 20, 0.9      # our own timer, and from where on we do not trust ourselves
TOO_LATE_MS = 500           # who comes back to a question that ends so soon leaves it
LINE_S = 5                  # between the lines of progress when there is no terminal
MIB = 2 ** 20

CLOSE_RESTART, CLOSE_TRY_LATER = 1012, 1013
CLOSE_LOST = 1006           # the connection ended without a code
CLOSES_FOR_GOOD = {4401, 4409}
EXPECTED = "close 1012"     # the one kind that is no error
WHOLE_RUN = {"connect", "away"}     # durations that are not measured after the ramp only

monotonic = time.monotonic


class Fatal(SystemExit):
    """Ends the program with one line."""


# ---- measures -----------------------------------------------------------------------------------------------
# What a process of players tells each second, and how durations are kept: they add up, whatever their number.

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


class Round(NamedTuple):
    """What one player saw of a round, from its `question` to its `reveal`; times by CLOCK_MONOTONIC."""

    game: str
    round: int
    players: int                # of the game
    name: str
    question_at: float
    answer_at: float            # when he sent his answer; 0 if he did not
    heard: dict[str, float]     # username -> arrival of its `answered`
    reveal_at: float


class Report:
    """What happened to the players of a process since the report before."""

    def __init__(self) -> None:
        self.connected = self.playing = self.waiting = self.answers = self.reconnects = self.unmatched = 0
        self.cpu_s = time.process_time()
        self.errors: Counter[str] = Counter()
        self.times: dict[str, Histogram] = defaultdict(Histogram)      # connect, match, lateness, away, lag
        self.rounds: list[Round] = []
        self.started: list[str] = []                # games
        self.ended: list[tuple[str, str]] = []      # (game, reason)
        self.missed: list[tuple[str, str]] = []     # (game, token) of players who saw no end


# ---- player -------------------------------------------------------------------------------------------------
# One player and his connection, driven by what arrives; at most one timer each. States:
#
#   away --connected--> joining --queued--> waiting --start--> playing --end--> resting --join--> joining
#
# and from each back to `away` when the connection is lost, or to `gone` when the server does not want him back.

class Question(msgspec.Struct, gc=False):
    """What an `update` says about the open question."""

    choices: list[str] = []


class Message(msgspec.Struct):
    """What is read of a server's message; the rest is skipped."""

    type: str
    game: str = ""
    seq: int = 0
    round: int = 0
    players: list[msgspec.Raw] = []
    player: str = ""
    choices: list[str] = []
    question: Question | None = None
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

    __slots__ = ("crowd", "name", "token", "transport", "state", "game", "seq", "players", "round", "whole",
                 "question_at", "answer_at", "heard", "due_at", "asked_at", "lost_at", "alive_at", "attempts",
                 "close_code", "timer")

    def __init__(self, crowd: Crowd, name: str, token: str) -> None:
        self.crowd, self.name, self.token = crowd, name, token
        self.transport: WSTransport | None = None
        self.state, self.game, self.seq, self.players, self.round = "away", "", 0, 0, 0
        self.whole = False          # nothing of this round was missed
        self.question_at = self.answer_at = self.due_at = self.asked_at = self.lost_at = self.alive_at = 0.0
        self.heard: dict[str, float] = {}
        self.attempts, self.close_code = 0, CLOSE_LOST
        self.timer: asyncio.TimerHandle | None = None

    # -- connection

    def connect_soon(self, pause_s: float) -> None:
        """Connects after a pause."""
        self._set_timer(pause_s, lambda: self.crowd.spawn(self._connect()))

    async def _connect(self) -> None:
        self.asked_at, self.close_code = monotonic(), CLOSE_LOST
        try:
            await ws_connect(lambda: self, self.crowd.url, socket_factory=self.crowd.socket_factory,
                             extra_headers={"Authorization": f"Bearer {self.token}"},
                             websocket_handshake_timeout=TIMEOUT_S, read_buffer_init_size=2048)
        except WSHandshakeError as error:
            status = error.response.status if error.response else 0
            self._failed(f"HTTP {int(status)}" if status else "handshake failed", final=status in (401, 403, 404))
        except TimeoutError:
            self._failed("handshake timed out")
        except (OSError, WSError) as error:
            errno = getattr(error, "errno", None)
            self._failed(f"connect: {os.strerror(errno) if errno else error}")

    def _failed(self, kind: str, final: bool = False) -> None:
        self.crowd.report.errors[kind] += 1
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
        self.crowd.report.times["connect"].add(self.alive_at - self.asked_at)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if transport is not self.transport or self.crowd.stopping:
            return
        self.transport, self.state, self.whole, self.due_at = None, "away", False, 0.0
        self.lost_at = self.lost_at or monotonic()
        if self.close_code:         # else it was us, see drop()
            self.crowd.report.errors[f"close {self.close_code}"] += 1
        if self.close_code in CLOSES_FOR_GOOD:
            self._give_up()
        else:
            self._reconnect(self.close_code)

    def drop(self, kind: str) -> None:
        """Counts an error, gives the connection up and makes a new one."""
        self.crowd.report.errors[kind] += 1
        self.close_code = 0
        self.transport.disconnect(False)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.alive_at = monotonic()
            try:
                message = decode(frame.get_payload_as_memoryview())
            except msgspec.DecodeError:
                self.crowd.report.errors["unreadable message"] += 1
                return
            self._on_message(message, self.alive_at)
        elif frame.msg_type == WSMsgType.CLOSE:
            self.close_code = int(frame.get_close_code()) or CLOSE_LOST
            transport.disconnect()

    def _send(self, text: bytes) -> None:
        if self.transport is not None:
            self.transport.send(WSMsgType.TEXT, text)

    def _set_timer(self, delay_s: float | None, work: Any = None) -> None:
        """Does something later, instead of what was to be done."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if delay_s is None else self.crowd.loop.call_later(delay_s, work)

    # -- messages

    def _on_message(self, message: Message, now: float) -> None:
        if message.seq and message.type not in ("start", "update"):
            self._follow(message)
        if handler := HANDLERS.get(message.type):
            handler(self, message, now)

    def _follow(self, message: Message) -> None:
        if message.game != self.game:
            self.crowd.report.errors["message of another game"] += 1
        elif message.seq != self.seq + 1:
            self.crowd.report.errors["gap in seq"] += 1
            self.whole = False
            self._send(b'{"type":"check"}')
        self.seq = message.seq

    def _back(self, now: float) -> None:
        """The server knows him again."""
        self.attempts = 0
        if self.lost_at:
            self.crowd.report.times["away"].add(now - self.lost_at)
            self.crowd.report.reconnects += 1
            self.lost_at = 0.0

    def _enter(self, message: Message) -> None:
        if message.game != self.game:
            self._miss()
            self.game = message.game
            self.crowd.report.started.append(self.game)
        self.state, self.seq, self.players = "playing", message.seq, len(message.players)

    def _miss(self) -> None:
        """Whatever game he was in, he will see no end of it."""
        if self.game:
            self.crowd.report.missed.append((self.game, self.token))
            self.game = ""

    def _on_queued(self, message: Message, now: float) -> None:
        self._miss()
        self.state = "waiting"
        self._back(now)

    def _on_start(self, message: Message, now: float) -> None:
        self.crowd.report.times["match"].add(now - self.asked_at)
        self._enter(message)
        self.due_at = now + message.starts_ms / 1000

    def _on_update(self, message: Message, now: float) -> None:
        self._back(now)
        self._enter(message)
        self.round, self.whole, self.due_at, self.answer_at = message.round, False, 0.0, 0.0
        self._set_timer(None)
        answerable = message.phase == "question" and message.choice is None and message.left_ms > TOO_LATE_MS
        if answerable and message.question:
            self._think(len(message.question.choices), message.left_ms / 1000)

    def _on_question(self, message: Message, now: float) -> None:
        if self.due_at:
            self.crowd.report.times["lateness"].add(now - self.due_at)
        self.round, self.question_at, self.whole = message.round, now, True
        self.answer_at, self.heard = 0.0, {}
        self._think(len(message.choices), message.answer_ms / 1000)

    def _think(self, choices: int, left_s: float) -> None:
        delay_s = min(self.crowd.think_s * random.uniform(0.5, 1.5), 0.9 * left_s)
        self._set_timer(delay_s, lambda: self._answer(random.randrange(choices or 1)))

    def _answer(self, choice: int) -> None:
        self.answer_at = monotonic()
        self.crowd.report.answers += 1
        self._send(b'{"type":"answer","round":%d,"choice":%d}' % (self.round, choice))

    def _on_answered(self, message: Message, now: float) -> None:
        self.heard[message.player] = now

    def _on_reveal(self, message: Message, now: float) -> None:
        self._set_timer(None)
        self.due_at = now + message.reveal_ms / 1000
        if self.whole and message.round == self.round:
            self.crowd.report.rounds.append(Round(self.game, self.round, self.players, self.name, self.question_at,
                                                  self.answer_at, self.heard, now))

    def _on_end(self, message: Message, now: float) -> None:
        self.crowd.report.ended.append((message.game, message.reason))
        self.game = ""
        self._rest(random.uniform(0, REST_S))

    def _on_cancelled(self, message: Message, now: float) -> None:
        self.crowd.report.unmatched += not self.game
        self._miss()
        self._rest(random.uniform(0, REST_S))

    def _rest(self, seconds: float) -> None:
        self.state, self.due_at = "resting", 0.0
        self._set_timer(seconds, self._join)

    def _join(self) -> None:
        self.state, self.asked_at = "joining", monotonic()
        self._send(b'{"type":"join"}')

    def _on_error(self, message: Message, now: float) -> None:
        self.crowd.report.errors[f"error {message.code}"] += 1
        self.whole = False
        if self.state == "joining":
            self._rest(random.uniform(1, 3))


HANDLERS = {"queued": Player._on_queued, "start": Player._on_start, "question": Player._on_question,
            "answered": Player._on_answered, "reveal": Player._on_reveal, "end": Player._on_end,
            "update": Player._on_update, "cancelled": Player._on_cancelled, "error": Player._on_error}


# ---- crowd --------------------------------------------------------------------------------------------------
# A process of players. It reports each second through a pipe; whatever comes the other way, or its end, ends it.

class Plan(NamedTuple):
    """What a crowd is to do."""

    url: str                            # of the queue, ws:// or wss://
    address: str                        # to connect from, or ''
    accounts: list[tuple[str, str]]     # (username, token)
    think_s: float
    ramp_s: float
    silence_s: dict[str, float]         # state -> how long the server may say nothing


class Crowd:
    """The players of a process."""

    def __init__(self, plan: Plan, pipe: Any) -> None:
        self.plan, self.pipe, self.url, self.think_s = plan, pipe, plan.url, plan.think_s
        self.socket_factory = self._open_socket if plan.address else None
        self.loop = asyncio.get_running_loop()
        self.report, self.stopping, self.tasks = Report(), False, set()
        self.players = [Player(self, name, token) for name, token in plan.accounts]

    async def run(self) -> None:
        """Plays until told to stop."""
        stop = asyncio.Event()
        self.loop.add_reader(self.pipe.fileno(), stop.set)
        self._beat(monotonic())
        for player in self.players:
            player.connect_soon(random.uniform(0, self.plan.ramp_s))
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)
            self._look_around()
            await self._send_report()
        self.loop.remove_reader(self.pipe.fileno())
        await self._leave()

    def spawn(self, work: Any) -> None:
        """Starts a task and keeps it."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _open_socket(self, _: Any) -> socket.socket:
        """A socket with our source address; its port is chosen when it connects, so that more of them are free."""
        one = socket.socket(socket.AF_INET)
        one.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.bind((self.plan.address, 0))
        return one

    def _beat(self, due: float) -> None:
        now = monotonic()
        self.report.times["lag"].add(now - due)
        self.loop.call_later(LAG_S, self._beat, now + LAG_S)

    def _look_around(self) -> None:
        now, states = monotonic(), Counter(player.state for player in self.players)
        self.report.playing, self.report.waiting = states["playing"], states["waiting"] + states["joining"]
        self.report.connected = self.report.playing + self.report.waiting + states["resting"]
        for player in self.players:
            if now - player.alive_at > self.plan.silence_s.get(player.state, math.inf):
                player.drop(f"stale while {player.state}")

    async def _send_report(self) -> None:
        report, self.report = self.report, Report()
        report.cpu_s = time.process_time()
        with contextlib.suppress(OSError):      # nobody listens any more
            await self.loop.run_in_executor(None, self.pipe.send, report)     # a full pipe must not stop the players

    async def _leave(self) -> None:
        self.stopping = True
        for player in self.players:
            if player.lost_at:
                self.report.times["away"].add(monotonic() - player.lost_at)
            if player.transport is not None:
                player.transport.disconnect()
        await self._send_report()


def run_crowd(plan: Plan, pipe: Any) -> None:
    """A process of players, from its start to its end."""
    logging.getLogger("picows").setLevel(logging.CRITICAL)      # what it has to say is counted as an error
    raise_file_limit()

    async def work() -> None:
        await Crowd(plan, pipe).run()
    pipe.send(Report())     # we are ready
    if pipe.recv() == "go":
        uvloop.run(work())


# ---- http ---------------------------------------------------------------------------------------------------
# The little that is asked over HTTP: the queues, accounts, and what became of a game.

def call(url: str, method: str, path: str, body: dict | None = None, token: str = "") -> tuple[int, dict]:
    """Status and answer of a request. Raises OSError."""
    target = urlsplit(url)
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    connection = kind(target.hostname, target.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    except (http.client.HTTPException, ValueError):
        return 0, {}
    finally:
        connection.close()


def read_queue(url: str, name: str) -> dict:
    """The rules of a queue. Raises Fatal if there is no such server or queue."""
    try:
        status, answer = call(url, "GET", "/queues")
    except OSError as error:
        raise Fatal(f"{url}: {error.strerror or error}") from None
    if status != 200 or "queues" not in answer:
        raise Fatal(f"{url}: found HTTP {status or 'nonsense'} at /queues; expected a trivia server")
    queues = {queue["name"]: queue for queue in answer["queues"]}
    if name not in queues:
        raise Fatal(f"--queue: found {name}; expected one of {', '.join(queues)}")
    return queues[name]


def read_accounts(file: Path, url: str) -> list[tuple[str, str]]:
    """The (username, token) pairs of an earlier run. Raises Fatal if they are not this server's."""
    if not file.exists():
        return []
    accounts = [tuple(line.split()) for line in file.read_text().splitlines() if line.strip()]
    if any(len(account) != 2 for account in accounts):
        raise Fatal(f"--accounts: {file}: expected lines of a username and a token")
    if accounts and call(url, "GET", "/users/me", token=accounts[0][1])[0] != 200:
        raise Fatal(f"--accounts: {file}: the server does not know its tokens; remove the file, to register anew")
    return accounts


def register(url: str, name: str) -> tuple[str, str]:
    """Registers a player. Raises Fatal."""
    form = {"username": name, "email": f"{name}@example.org", "password": secrets.token_urlsafe(12)}
    try:
        status, answer = call(url, "POST", "/auth/register", form)
    except OSError as error:
        raise Fatal(f"registering {name}: {error.strerror or error}") from None
    if status != 201:
        raise Fatal(f"registering {name}: HTTP {status} {answer.get('detail', '')} {answer.get('errors', '')}".rstrip())
    return name, answer["token"]


def ensure_accounts(url: str, file: Path | None, count: int, console: Console) -> list[tuple[str, str]]:
    """As many accounts as are wanted, from the file and by registering; those are added to the file as they come."""
    accounts = read_accounts(file, url)[:count] if file else []
    run, lacking = secrets.token_hex(4), count - len(accounts)
    names = [f"load{run}-{number}" for number in range(lacking)]
    with ThreadPoolExecutor(REGISTRATIONS) as pool, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        out = file and stack.enter_context(open(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a"))
        for name, token in progress(pool.map(lambda name: register(url, name), names), lacking, console):
            accounts.append((name, token))
            if out:
                out.write(f"{name} {token}\n")
    return accounts


def progress(items: Iterable, total: int, console: Console) -> Iterable:
    """Shows how far registering has come."""
    if console.is_terminal and total:
        yield from track(items, "registering", total, console=console, transient=True)
        return
    said_at = monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if monotonic() - said_at > LINE_S or count == total:
            said_at = monotonic()
            console.print(f"registered {count} of {total}")


# ---- server -------------------------------------------------------------------------------------------------
# What the server uses, when it is on this host: CPU and memory of its processes and of its Redis.

class Family:
    """The process that listens on a port and its descendants, also those that come later."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.root = self._find()
        self.processes: dict[int, psutil.Process] = {}
        self.cpu_s: dict[int, tuple[str, float]] = {}       # pid -> (role, CPU seconds so far)
        self.pss_before, self.pids_before = self.pss(), set(self.processes)

    def _find(self) -> psutil.Process | None:
        here, process = {one.address for some in psutil.net_if_addrs().values() for one in some}, None
        if not {info[4][0] for info in socket.getaddrinfo(self.host, self.port)} & here:
            return None
        with contextlib.suppress(psutil.Error):
            pids = {one.pid for one in psutil.net_connections("tcp") if one.pid and self._any_listens([one])}
            process = min(map(psutil.Process, pids), key=psutil.Process.create_time, default=None)
            while process and (parent := process.parent()) and self._any_listens(parent.net_connections()):
                process = parent        # a socket that several hold is told of one of them only
        return process

    def _any_listens(self, connections: list) -> bool:
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == self.port for one in connections)

    def look(self) -> Counter[str]:
        """The CPU seconds used so far, by role; a process that has ended keeps what it had."""
        with contextlib.suppress(psutil.Error):
            if self.root and self.root.status() != psutil.STATUS_ZOMBIE:
                self._look_at_all([one for one in self.root.children(recursive=True) if not is_helper(one)])
            elif self.cpu_s:
                self.root = self._find()        # the server was started anew
        totals: Counter[str] = Counter()
        for role, seconds in self.cpu_s.values():
            totals[role] += seconds
        return totals

    def _look_at_all(self, others: list[psutil.Process]) -> None:
        for one in [self.root, *others]:
            with contextlib.suppress(psutil.Error):
                times, role = one.cpu_times(), "supervisor" if one == self.root and others else "worker"
                self.cpu_s[one.pid] = role, times.user + times.system
                self.processes[one.pid] = one

    def pss(self) -> Counter[str]:
        """Memory now, in bytes by role: PSS, or RSS where that can't be read."""
        self.look()
        totals: Counter[str] = Counter()
        for pid, (role, _) in self.cpu_s.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                totals[role] += memory_of(self.processes[pid])
        return totals

    def has_changed(self) -> bool:
        """Whether processes were replaced since the beginning."""
        return set(self.processes) != self.pids_before

    def redis_url(self) -> str:
        """Where the server's Redis is, as the server's environment says; '' if that can't be read."""
        try:
            environment, folder = self.root.environ(), self.root.cwd()
        except (psutil.Error, AttributeError):
            return ""
        data = Path(folder, environment.get("TRIVIA_DATA", "data"))
        return environment.get("REDIS_URL") or f"unix://{data / 'redis.sock'}"


def is_helper(process: psutil.Process) -> bool:
    """Whether it is another program, such as a Redis that the server started, or Python's own helper."""
    return "resource_tracker" in " ".join(process.cmdline()) or process.name().startswith(("valkey", "redis"))


def memory_of(process: psutil.Process) -> int:
    """PSS, which shares out what processes have in common; RSS where that can't be read."""
    try:
        return process.memory_full_info().pss
    except (psutil.AccessDenied, AttributeError):
        return process.memory_info().rss


class Store:
    """The server's Redis, as its INFO tells."""

    FIELDS = {"commands": "total_commands_processed", "bytes_in": "total_net_input_bytes",
              "bytes_out": "total_net_output_bytes", "memory": "used_memory",
              "rss": "used_memory_rss"}

    def __init__(self, url: str) -> None:
        self.used_s = self.read_s = 0.0
        self.client = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) if url else None
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
# Starts the crowds, gathers what they report, and puts rounds together from what their players saw.

class Usage:
    """What had been used up to a moment, by the server and by ourselves."""

    def __init__(self, family: Family, store: Store, crowds_cpu_s: list[float]) -> None:
        self.at, self.redis, self.cpu_s = monotonic(), store.read(), server_cpu_s(family, store)
        self.own_cpu_s = [*crowds_cpu_s, time.process_time()]


def server_cpu_s(family: Family, store: Store) -> Counter[str]:
    """CPU seconds so far, by role."""
    totals = family.look()
    if store.client:
        totals["redis"] = store.cpu_s()
    return totals


class Window:
    """The time over which figures are taken."""

    def __init__(self, begin: Usage) -> None:
        self.begin, self.rounds = begin, set()      # (game, round) that had a reveal
        self.answers = self.measured = 0            # answers sent, and those whose delivery to all opponents was seen
        self.times: dict[str, Histogram] = defaultdict(Histogram)
        self.lags: dict[int, Histogram] = defaultdict(Histogram)        # of each crowd


class Run:
    """One run, from the start of its crowds to the last of their reports."""

    def __init__(self, options: argparse.Namespace, plans: list[Plan], family: Family, store: Store) -> None:
        self.options, self.family, self.store = options, family, store
        self.reports = [Report() for _ in plans]        # the last of each crowd
        self.errors, self.reconnects, self.unmatched = Counter(), 0, 0
        self.times: dict[str, Histogram] = defaultdict(Histogram)       # connect and away, of the whole run
        self.started, self.ended, self.missed = set(), {}, set()
        self.rounds: dict[tuple[str, int], list[Round]] = {}
        self.last_second, self.answers_before, self.answers = defaultdict(Histogram), 0, 0
        self.samples: list[dict] = []
        self.window, self.ramped, self.finishing = Window(self._usage()), False, False
        self.redis_before, self.cpu_before = self.window.begin.redis, self.window.begin.cpu_s
        self.sampled_at, self.interrupted = monotonic(), False
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # which the crowds inherit: Ctrl-C is for us
        self.pipes, self.processes = zip(*map(start_crowd, plans), strict=True)

    def _usage(self) -> Usage:
        return Usage(self.family, self.store, [report.cpu_s for report in self.reports])

    def play(self, show: Any) -> None:
        """Plays for the time, or the number of games, that was asked for; Ctrl-C ends it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        try:
            for number, pipe in enumerate(self.pipes):
                self._take(number, pipe.recv())
            for pipe in self.pipes:
                pipe.send("go")
            self._watch(show)
        except EOFError:
            self.errors["a process of players died"] += 1
        self._finish()

    def _interrupt(self, *_: Any) -> None:
        """Ends the run soon, but not in the midst of a report; a second time, at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _watch(self, show: Any) -> None:
        began_at = self.sampled_at = monotonic()
        ramp_ends, tick_at = began_at + self.options.ramp, began_at + 1
        ends = ramp_ends + self.options.seconds
        while not self.interrupted and (now := monotonic()) < ends and len(self.ended) < self.options.games:
            if not self._gather(max(0.0, tick_at - now)):
                break
            if not self.ramped and now >= ramp_ends:
                self.window, self.ramped = Window(self._usage()), True
            if now >= tick_at:
                tick_at = max(tick_at + 1, now)
                show(self._sample(now - began_at))

    def _gather(self, timeout_s: float) -> bool:
        """Takes what the crowds report within a time; False when none is left."""
        left = {pipe: number for number, pipe in enumerate(self.pipes) if not pipe.closed}
        for pipe in wait(list(left), timeout_s):
            try:
                self._take(left[pipe], pipe.recv())
            except (EOFError, OSError):
                pipe.close()
                if not self.finishing:
                    self.errors["a process of players died"] += 1
        return bool(left)

    def _take(self, number: int, report: Report) -> None:
        self.reports[number] = report
        self.errors.update(report.errors)
        self.reconnects += report.reconnects
        self.unmatched += report.unmatched
        self.started.update(report.started)
        self.ended.update(report.ended)
        self.missed.update(report.missed)
        self.answers += report.answers
        self.window.answers += report.answers
        self.window.lags[number].update(report.times.pop("lag", ()))
        for name in WHOLE_RUN & report.times.keys():
            self.times[name].update(report.times.pop(name))
        for name, histogram in report.times.items():
            self._add(name, histogram)
        for one in report.rounds:
            self._add_round(one)

    def _add(self, name: str, histogram: Histogram) -> None:
        self.window.times[name].update(histogram)
        self.last_second[name].update(histogram)

    def _add_round(self, one: Round) -> None:
        """Keeps a round until all its players have told of it."""
        self.window.rounds.add((one.game, one.round))
        seen = self.rounds.setdefault((one.game, one.round), [])
        seen.append(one)
        if len(seen) == one.players:
            del self.rounds[one.game, one.round]
            self._measure(seen)

    def _measure(self, seen: list[Round]) -> None:
        """Delivery and skew of a round. What no `answered` told an opponent was told by the `reveal` that it caused."""
        delivery, skew, all_answered = Histogram(), Histogram(), all(one.answer_at for one in seen)
        for times in ([one.question_at for one in seen], [one.reveal_at for one in seen]):
            skew.add(max(times) - min(times))
        for one in seen:
            arrivals = [other.heard.get(one.name, other.reveal_at if all_answered else 0.0)
                        for other in seen if other is not one]
            if one.answer_at and all(arrivals):
                self.window.measured += 1
                for arrival in arrivals:
                    delivery.add(arrival - one.answer_at)
        self._add("delivery", delivery)
        self._add("skew", skew)

    def _sample(self, second: float) -> dict:
        """What the last second was like."""
        now, cpu_s = monotonic(), server_cpu_s(self.family, self.store)
        passed_s, delivery = now - self.sampled_at, self.last_second["delivery"]
        sample = {"second": round(second, 1), **self.gauges(), "games_ended": len(self.ended),
                  "answers_per_s": round((self.answers - self.answers_before) / passed_s, 1),
                  "delivery_p50_ms": delivery.quantile_ms(0.5), "delivery_p99_ms": delivery.quantile_ms(0.99),
                  "lateness_p99_ms": self.last_second["lateness"].quantile_ms(0.99),
                  "cores": {role: round((cpu_s[role] - self.cpu_before[role]) / passed_s, 3) for role in cpu_s},
                  "errors": wrong(self.errors).total()}
        self.sampled_at, self.cpu_before, self.answers_before = now, cpu_s, self.answers
        self.last_second = defaultdict(Histogram)
        self.samples.append(sample)
        self._forget_old_rounds(now - 60)
        return sample

    def gauges(self) -> dict[str, int]:
        """How many players are doing what."""
        return {name: sum(getattr(report, name) for report in self.reports)
                for name in ("connected", "playing", "waiting")}

    def _forget_old_rounds(self, before: float) -> None:
        """Those that will not become complete, since a player lost his connection."""
        for key, seen in list(self.rounds.items()):
            if seen[0].reveal_at >= before:
                break
            del self.rounds[key]

    def _finish(self) -> None:
        """Notes what was used, then ends the crowds."""
        self.end, self.pss, self.final = self._usage(), self.family.pss(), self.gauges()
        self.finishing, give_up_at = True, monotonic() + TIMEOUT_S
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send("stop")
        while monotonic() < give_up_at and self._gather(1):
            pass
        for process in self.processes:
            process.join(1)
            process.kill()


def start_crowd(plan: Plan) -> tuple[Any, Any]:
    """Starts a process of players; its pipe and itself."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_crowd, args=(plan, theirs), daemon=True)
    process.start()
    theirs.close()
    return ours, process


# ---- result -------------------------------------------------------------------------------------------------
# What --json writes, and the table that is made from it.

def wrong(errors: Counter[str]) -> Counter[str]:
    """The errors without what a rolling restart brings with it."""
    return Counter({kind: count for kind, count in errors.items() if kind != EXPECTED})


def result_of(run: Run, options: argparse.Namespace) -> dict:
    """All figures of a run."""
    window, seconds = run.window, run.end.at - run.window.begin.at
    return {"url": options.url, "queue": options.queue, "players": options.players, "processes": len(run.processes),
            "think_s": options.think, "ramp_s": options.ramp, "after_ramp": run.ramped, "seconds": round(seconds, 1),
            **run.final, "peak_connected": max((sample["connected"] for sample in run.samples), default=0),
            "peak_playing": max((sample["playing"] for sample in run.samples), default=0),
            "games": games_of(run, options.url), "tickets_timed_out": run.unmatched,
            "answers": {"count": window.answers, "per_s": round(window.answers / seconds, 1),
                        "measured_share": ratio(window.measured, window.answers, 3)},
            "times": {name: (window.times | run.times)[name].summary()
                      for name in ("delivery", "lateness", "skew", "match", "connect", "away")},
            "reconnects": run.reconnects,
            "errors": dict(wrong(run.errors)), "restarts_told": run.errors[EXPECTED],
            "server": server_of(run, seconds), "generator": generator_of(run, seconds), "samples": run.samples}


def games_of(run: Run, url: str) -> dict:
    """What became of the games. The server is asked about those whose end a player did not see."""
    def has_ended(game_and_token: tuple[str, str]) -> bool:
        game, token = game_and_token
        try:
            return call(url, "GET", f"/games/{game}", token=token)[0] == 200
        except OSError:
            return False
    with ThreadPoolExecutor(REGISTRATIONS) as pool:
        missed = sorted(run.missed)
        lost = [one for one, ended in zip(missed, pool.map(has_ended, missed), strict=True) if not ended]
    return {"started": len(run.started), "ended": len(run.ended), "ended_by": dict(Counter(run.ended.values())),
            "lost": len({game for game, _ in lost}), "players_who_lost_a_game": len({token for _, token in lost}),
            "ended_while_a_player_was_away": len({game for game, _ in set(missed) - set(lost)})}


def server_of(run: Run, seconds: float) -> dict:
    """What the server used."""
    begin, end = run.window.begin.cpu_s, run.end.cpu_s
    used_s = {role: end[role] - begin[role] for role in end}
    cpu = {role: {"seconds": round(used, 2), "cores": ratio(used, seconds, 3),
                  "us_per_answer": ratio(1e6 * used, run.window.answers)} for role, used in used_s.items()}
    return {"cpu": cpu, "memory": memory_by_role(run), "redis": redis_of(run)}


def memory_by_role(run: Run) -> dict:
    """Memory at the end, and by how much it grew from before the first connection."""
    before = run.family.pss_before | Counter(redis=run.redis_before["rss"])
    now = run.pss | Counter(redis=run.end.redis["rss"])
    connections = 0 if run.family.has_changed() else run.final["connected"]     # a new process begins anew
    return {role: {"mib": round(size / MIB, 1), "kib_per_connection": ratio((size - before[role]) / 1024, connections)}
            for role, size in now.items()}


def redis_of(run: Run) -> dict:
    """What Redis did, per game and per answer."""
    used, now = Counter(run.end.redis), run.end.redis
    used.subtract(run.window.begin.redis)
    games, answers = len(run.window.rounds) / run.options.rounds, run.window.answers    # few may have come to their end
    if not now:
        return {}
    calls = {name.removeprefix("calls:"): ratio(used[name], answers, 3) for name, count in used.most_common()
             if name.startswith("calls:") and count > 0 and answers}
    return {"used_memory_mib": round(now["memory"] / MIB, 1), "calls_per_answer": calls,
            **{f"{name}_per_{what}": ratio(used[name], count) for name in ("commands", "bytes_in", "bytes_out")
               for what, count in (("game", games), ("answer", answers))}}


def generator_of(run: Run, seconds: float) -> dict:
    """How busy we were ourselves: each process of players, and last the one that sums up."""
    now_s, before_s = run.end.own_cpu_s, run.window.begin.own_cpu_s
    shares = [round((now - before) / seconds, 3) for now, before in zip(now_s, before_s, strict=True)]
    lags = [run.window.lags[number].quantile_ms(0.99) or 0.0 for number in range(len(run.processes))]
    used_us = 1e6 * seconds * sum(shares)
    return {"lag_p99_ms": lags, "cpu_share": shares, "cpu_us_per_answer": ratio(used_us, run.window.answers),
            "overloaded": max(lags) > LAG_LIMIT_MS or max(shares) > CPU_LIMIT}


def ratio(amount: float, count: float, digits: int = 1) -> float | None:
    """Amount by count; None when there is nothing to divide by."""
    return round(amount / count, digits) if count else None


def print_result(result: dict, console: Console) -> None:
    """The summary."""
    table = Table(title="\nafter the ramp" if result["after_ramp"] else "\nthe whole run, for the ramp did not end",
                  show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in result_rows(result):
        table.add_row(name, text)
    console.print(table)
    if result["generator"]["overloaded"]:
        console.print("[bold]The load tool was held up itself: the latencies are the tool's, not the server's.[/bold] "
                      "Use more --processes, fewer --players, or a host with more cores.")


def result_rows(result: dict) -> Iterable[tuple[str, str]]:
    """The lines of the summary."""
    games, answers, own = result["games"], result["answers"], result["generator"]
    yield "players", (f"{result['connected']} connected (at most {result['peak_connected']}), {result['playing']} "
                      f"playing, {result['waiting']} waiting; {result['processes']} processes; {result['seconds']} s")
    yield "games", (f"{games['started']} started, {games['ended']} ended ({listed(games['ended_by'])}), "
                    f"{games['ended_while_a_player_was_away']} while a player was away")
    yield "lost games", f"{games['lost']}, by {games['players_who_lost_a_game']} players"
    yield "answers", (f"{answers['count']}, {answers['per_s']}/s, delivery measured of "
                      f"{percent(answers['measured_share'])}")
    for name, summary in result["times"].items():
        yield name, quantiles(summary)
    yield "reconnects", f"{result['reconnects']}; {result['restarts_told']} connections were closed by restarts"
    yield "errors", listed(result["errors"])
    yield "timed-out tickets", str(result["tickets_timed_out"])
    yield from server_rows(result["server"])
    yield "load tool", (f"lag p99 {max(own['lag_p99_ms']):.1f} ms, busiest process {percent(max(own['cpu_share']))} "
                        f"of a core, {shown(own['cpu_us_per_answer'])} us an answer")


def server_rows(server: dict) -> Iterable[tuple[str, str]]:
    """The lines about the server's host."""
    if not server["cpu"]:
        yield "server", "not seen on this host"
    for role, used in server["cpu"].items():
        yield f"CPU of {role}", (f"{used['seconds']} s, {used['cores']} cores, "
                                f"{shown(used['us_per_answer'])} us an answer")
    for role, used in server["memory"].items():
        grown = used["kib_per_connection"]
        yield f"memory of {role}", f"{used['mib']} MiB" + (f", grown by {grown} KiB a connection" if grown else "")
    if known := server["redis"]:
        calls = listed(dict(list(known["calls_per_answer"].items())[:6]))
        for what in ("answer", "game"):
            commands, bytes_in, bytes_out = (shown(known[f"{name}_per_{what}"]) for name in
                                             ("commands", "bytes_in", "bytes_out"))
            yield f"redis, per {what}", f"{commands} commands, {bytes_in} bytes in, {bytes_out} bytes out"
        yield "redis, calls per answer", calls


def listed(counts: dict) -> str:
    """Counts in words, the largest first."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda one: -one[1])) or "none"


def percent(share: float | None) -> str:
    """A share in words."""
    return "-" if share is None else f"{100 * share:.0f} %"


def shown(number: float | None) -> str:
    """A number with one decimal."""
    return "-" if number is None else f"{number:.1f}"


def quantiles(summary: dict) -> str:
    """A duration in words."""
    if not summary["count"]:
        return "-"
    return (f"p50 {summary['p50_ms']:.1f}  p99 {summary['p99_ms']:.1f}  p99.9 {summary['p999_ms']:.1f}  "
            f"max {summary['max_ms']:.1f} ms  ({summary['count']} times)")


def sample_row(sample: dict) -> dict[str, str]:
    """What is shown while it runs."""
    p50, p99, late = (shown(sample[f"{name}_ms"]) for name in ("delivery_p50", "delivery_p99", "lateness_p99"))
    cores = sum(sample["cores"].values())
    return {"seconds": f"{sample['second']:.0f}", "connected": str(sample["connected"]),
            "playing": str(sample["playing"]), "waiting": str(sample["waiting"]),
            "games ended": str(sample["games_ended"]), "answers/s": f"{sample['answers_per_s']:.0f}",
            "delivery p50/p99": f"{p50}/{p99} ms", "late p99": f"{late} ms",
            "server": f"{cores:.2f} cores" if sample["cores"] else "-", "errors": str(sample["errors"])}


def live_table(sample: dict) -> Table:
    """The same as a table."""
    table, row = Table(), sample_row(sample)
    for name in row:
        table.add_column(name, justify="right")
    table.add_row(*row.values())
    return table


def play_shown(run: Run, console: Console) -> None:
    """Plays, and shows how it goes: a table in a terminal, else a line now and then."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            run.play(lambda sample: live.update(live_table(sample), refresh=True))
        return

    def show_line(sample: dict) -> None:
        if len(run.samples) % LINE_S == 0:
            console.print("  ".join(f"{name} {text}" for name, text in sample_row(sample).items()))
    run.play(show_line)


def plot(samples: list[dict], file: Path) -> None:
    """Latency and CPU, against the number of players and against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(12, 7), sharex="col", sharey="row", layout="constrained")
    for column, (key, label, style) in enumerate((("connected", "players connected", "."), ("second", "seconds", "-"))):
        x = [sample[key] for sample in samples]
        for name in ("delivery p50", "delivery p99", "lateness p99"):
            y = [sample[f"{name.replace(' ', '_')}_ms"] or math.nan for sample in samples]
            grid[0][column].plot(x, y, style, label=name)
        for role in sorted({role for sample in samples for role in sample["cores"]}):
            grid[1][column].plot(x, [sample["cores"].get(role, math.nan) for sample in samples], style, label=role)
        grid[1][column].set_xlabel(label)
    grid[0][0].set(ylabel="ms, in each second", yscale="log")
    grid[1][0].set(ylabel="cores used", ylim=(0, None))
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.legend(*axes.get_legend_handles_labels())
    figure.savefig(file)


# ---- command line -------------------------------------------------------------------------------------------

def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with a message when it makes no sense."""
    parser = argparse.ArgumentParser(prog="load.py",
                                     description="Plays games by the thousand, and measures what their host carries.",
                                     epilog="What the figures mean stands at the head of this file.")
    add = parser.add_argument
    add("url", nargs="?", default="http://127.0.0.1:8000", metavar="URL", help="the server (default: %(default)s)")
    add("--players", type=whole, default=200, metavar="N", help="how many players (default: %(default)s)")
    add("--queue", default="random", help="the queue that they play in (default: %(default)s)")
    add("--think", type=positive, default=4.0, metavar="SECONDS",
        help="time to an answer, give or take a half; never beyond nine tenths of what is left (default: %(default)g)")
    add("--ramp", type=positive, default=10.0, metavar="SECONDS",
        help="the players connect at random moments within it (default: %(default)g)")
    add("--minutes", type=positive, default=1.0, metavar="M",
        help="how long to go on after the ramp (default: %(default)g)")
    add("--seconds", type=positive, metavar="S", help="the same in seconds")
    add("--games", type=whole, default=sys.maxsize, metavar="N", help="end as soon as so many games have ended")
    add("--processes", type=whole, metavar="N",
        help=f"processes to hold the players (default: as many as are needed for {PLAYERS_A_PROCESS} players each)")
    add("--accounts", type=writable, metavar="FILE",
        help="where the players' tokens are kept for the next run; who is missing is registered and added")
    add("--redis", metavar="URL", help="the server's Redis (default: as the server's own environment says)")
    add("--json", type=writable, metavar="FILE", help="write all figures there, also those of each second")
    add("--plot", type=writable, metavar="FILE.png",
        help="draw latency and CPU against players and time (needs matplotlib)")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or 60 * options.minutes
    return options


def whole(text: str) -> int:
    """A number from 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"found {text}; expected 1 or more")
    return number


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
    room = raise_file_limit() - 100
    processes = options.processes or math.ceil(options.players / min(PLAYERS_A_PROCESS, max(room, 1)))
    if (each := math.ceil(options.players / processes)) > room:
        raise Fatal(f"--players: {each} in a process need {each + 100} open files; "
                    f"the limit is {room + 100} (ulimit -Hn)")
    return min(processes, options.players)


def read_target(url: str) -> tuple[str, bool]:
    """The URL, `localhost` resolved and without a path, and whether it is on IPv4 loopback. Raises Fatal."""
    try:
        target = urlsplit(url)
        port = target.port or {"http": 80, "https": 443}[target.scheme]
        addresses = [info[4][0] for info in socket.getaddrinfo(target.hostname, port, type=socket.SOCK_STREAM)]
    except (KeyError, ValueError, TypeError):
        raise Fatal(f"{url}: expected http://HOST:PORT or https://HOST:PORT") from None
    except OSError as error:
        raise Fatal(f"{url}: {error.strerror}") from None
    address = min(addresses, key=lambda one: ":" in one)        # IPv4 if there is one
    host = address if target.hostname == "localhost" else target.hostname
    url = f"{target.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    return url, ipaddress.ip_address(address).is_loopback and "." in address


def make_plans(options: argparse.Namespace, rules: dict, accounts: list[tuple[str, str]]) -> list[Plan]:
    """What each process is to do; the players are dealt out like cards."""
    count = count_processes(options)
    url = f"{options.url.replace('http', 'ws', 1)}/game/{options.queue}"
    longest_s = max(rules[f"{phase}_seconds"] for phase in ("start", "answer", "reveal"))
    silence_s = {"playing": longest_s + PATIENCE_S, "waiting": rules["wait_seconds"] + PATIENCE_S,
                 "joining": TIMEOUT_S + PATIENCE_S}
    return [Plan(url, f"127.0.0.{number % 250 + 1}" if options.loopback else "", accounts[number::count],
                 options.think, options.ramp, silence_s) for number in range(count)]


def make_store(options: argparse.Namespace, family: Family) -> Store:
    """The server's Redis. Raises Fatal when the one that was named can't be read."""
    try:
        store = Store(options.redis or family.redis_url())
    except ValueError as error:
        raise Fatal(f"--redis: {error}") from None
    if options.redis and not store.client:
        raise Fatal("--redis: there is no Redis that answers INFO")
    return store


def main() -> None:
    """python tests/load.py."""
    options, console = read_options(), Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    if options.plot and not importlib.util.find_spec("matplotlib"):
        raise Fatal("--plot: it needs matplotlib; pip install matplotlib")
    options.url, options.loopback = read_target(options.url)
    rules = read_queue(options.url, options.queue)
    options.rounds = rules["rounds"]
    count_processes(options)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)       # also when started in the background by a shell
    accounts = ensure_accounts(options.url, options.accounts, options.players, console)
    target = urlsplit(options.url)
    family = Family(target.hostname, target.port)
    run = Run(options, make_plans(options, rules, accounts), family, make_store(options, family))
    play_shown(run, console)
    result = result_of(run, options)
    print_result(result, console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.plot:
        plot(run.samples, options.plot)
    sys.exit(int(bool(result["errors"] or result["games"]["lost"])))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
