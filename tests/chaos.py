"""The failure campaign: phones drop, processes die, Redis restarts, operators deploy, and nothing may be lost by it.

    python tests/chaos.py --games 1000 [--players 60] [--workers 4] [--every 1] [--seed N] [--json FILE]
                          [--faults kill,stop,client-kill,redis-kill,deploy,drop]
                          [--cluster]
    python tests/chaos.py registrations --kills 200 [--seed N] [--cluster [--replicas 1]]

The first starts a server of its own, plays games on it with phones that behave as phones should, and meanwhile makes a
failure about each `--every` seconds, to real processes:

    kill           kill -9 of a worker; the supervisor starts another one
    stop           SIGSTOP of a worker for 1 to 20 s; the supervisor kills one that hangs for too long
    client-kill    CLIENT KILL of a worker's connection to Redis
    redis-kill     kill -9 of Redis, now and then SIGSTOP of it for 1 to 8 s; the workers start it again
    deploy         SIGHUP to the supervisor: all workers are replaced, one after the other
    drop           a phone loses its TCP connection, or opens a second one beside it

With --cluster the store is a Valkey Cluster of three primaries and three replicas. Then `redis-kill` hits a primary, which
is started again once its replica has taken its place, now and then `redis-stop` for 8 to 12 s, and there is

    slots          the slot of the lobby, of games or of the bank moves to another primary, with all that is in it

Every phone keeps a transcript. When all has come to rest, the CHECKS compare the transcripts and what Redis holds: no
round, rating or account may be lost, doubled or misjudged. The second command does the same to a stream of
registrations, changes of password and deletions while Redis is killed again and again. Exit code 1 says that something
was violated. The order of failures depends on the seed alone; what they hit, also on the scheduling of the machine.

Sections: transcripts, phones, faults, evidence, checks, campaign, registrations, command line.
"""

import argparse
import ast
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import secrets
import signal
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import trivia
from conftest import PASSWORD, ROOT, Server, edited_schema, wait_until
from nodes import ClusterServer
from test_end_to_end import free_port, valkeys, workers_of

KINDS = ("kill", "stop", "client-kill", "redis-kill", "deploy", "drop")
CLUSTER_KINDS = (*KINDS, "slots")
QUEUES = ("random", "rated", "party")
ANSWER_S, SHORT_S, SEAT_S = (
    3,
    0.3,
    10,
)  # an answer; the start and a reveal; how long an empty seat is kept
MARGIN_S = 3  # how much longer than the longest phase a phone may hear nothing
MOST_WAIT_S = (
    15  # how long a phone may be without a connection, failures of Redis and workers aside
)
REST_S = 40  # in which everything must come to rest; the cleanup after a dead worker takes 15
BUSY = (
    "(seats|queue|due|forming|deadlines):"  # keys that are there only while somebody plays or waits
)
FREE_S = 35  # in which a name that nobody came to have must be free again


def short_games(tree):
    """Edits schema.yaml: quick games, of which some end by forfeit and some go on."""
    tree["queues"] = {name: tree["queues"][name] for name in QUEUES}
    for spec in tree["queues"].values():
        spec.update(
            start_seconds=SHORT_S,
            reveal_seconds=SHORT_S,
            answer_seconds=ANSWER_S,
            seat_seconds=SEAT_S,
            wait_seconds=20,
            rounds=3,
            rated=True,
        )
    tree["queues"]["party"].update(players={"min": 2, "max": 4}, fill_seconds=0.5)
    tree["queues"]["rated"]["widen"] = 300
    tree["limits"].update(login_failures=100_000, hashing_queue=1000, name_hold_days=0)
    tree["limits"].update(games_per_user=10_000)  # the checks compare all of them
    tree["limits"].update(pair_games=3, early_exit_seconds=1, early_exit_most_seconds=4)


def new_server(workers, on_cluster=False, words=""):
    """A server with a data folder, or a cluster, of its own."""
    command = [sys.executable, "trivia.py", "--port", str(free_port()), "--workers", str(workers)]
    schema = edited_schema(short_games)
    return ClusterServer(schema, command, words=words) if on_cluster else Server(schema, command)


# ---- transcripts --------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Something that a phone did or saw."""

    at: float  # s, monotonic
    connection: int  # of this phone, from 1
    way: str  # try (to connect), refused {status}, open, in (a frame), out (a frame), lost {code}
    frame: dict

    def __str__(self):
        return f"{self.at:.3f} #{self.connection} {self.way} {json.dumps(self.frame, ensure_ascii=False)[:300]}"


def received(transcript, *types):
    """The entries of frames of these types (or all) that came in."""
    return [
        entry
        for entry in transcript
        if entry.way == "in" and (not types or entry.frame["type"] in types)
    ]


def excerpt(transcript, at, before_s=4, after_s=4):
    """What a phone saw around a moment, for people."""
    return "".join(
        f"\n      {entry}" for entry in transcript if at - before_s <= entry.at <= at + after_s
    )


@dataclass
class Asked:
    """What a player sent as answers in one round, and what he heard of it."""

    sent: list = field(default_factory=list)  # entries
    refused: dict = field(default_factory=dict)  # id of a message -> error code
    acknowledged: str = ""  # by what
    intime: list = field(default_factory=list)  # those sent that no excuse is left for


def answers_of(transcript):
    """{(game, round): Asked} of one phone; acknowledgements by others are not in it."""
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


def waits_of(transcript):
    """[(since, until)] of the times without a connection: from its loss to the first `update` or `queued`."""
    waits, since, current = [], None, 0
    for entry in transcript:
        if entry.way == "open":
            current = max(current, entry.connection)
        elif entry.way == "lost" and entry.connection == current and since is None:
            since = entry.at
        elif (
            since is not None and entry.way == "in" and entry.frame["type"] in ("update", "queued")
        ):
            waits.append((since, entry.at))
            since = None
    return waits


# ---- phones -------------------------------------------------------------------------------------------------


class Phone:
    """A player who plays game after game, over whatever connections he gets, until he is told to retire."""

    def __init__(self, server, session, seed, fickle):
        self.url, self.token = f"ws://127.0.0.1:{server.port}/game/", session["token"]
        self.name = session["user"]["username"]
        self.random, self.fickle = random.Random(seed), fickle
        self.transcript, self.ids, self.choices, self.tasks = [], itertools.count(1), {}, set()
        self.connection, self.socket, self.whim = 0, None, asyncio.Event()
        self.state, self.round, self.game, self.seq, self.retiring, self.sent = (
            "away",
            None,
            "",
            0,
            False,
            {},
        )

    # -- connections

    async def live(self):
        """Keeps connected until retired and at rest."""
        pause = 0.05
        while not (self.retiring and self.state == "idle"):
            before = self.connection
            code = await self._visit()
            pause = 0.05 if self.connection > before else min(pause * 2, 2)
            if code not in (1000, 1012):
                await asyncio.sleep(pause * self.random.uniform(0.5, 1))

    async def _visit(self):
        """One connection, until it ends or is left for a second one; its close code, or 1000 if another is due."""
        self.note("try")
        try:
            socket = await connect(
                self.url + self.random.choice(QUEUES),
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
        self.note("open")
        reader = self._spawn(self._read(socket, self.connection))
        return await self._until_whim(socket, reader)

    async def _until_whim(self, socket, reader):
        self.whim.clear()
        whim = self._spawn(self.whim.wait())
        after_s = self.random.expovariate(1 / 20) if self.fickle else None
        await asyncio.wait({reader, whim}, timeout=after_s, return_when=asyncio.FIRST_COMPLETED)
        whim.cancel()
        if not reader.done() and self.random.random() < 0.3:
            return 1000  # a second connection, while the first is there
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
        """Writes something into the transcript."""
        self.transcript.append(Entry(time.monotonic(), number or self.connection, way, frame))

    def _spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    # -- out

    def say(self, kind, after_s=0.0, when=lambda: True, **values):
        """Sends a message on this connection, after a moment, if it is still the current one and `when` holds."""
        message = {"type": kind, "id": next(self.ids)} | values
        self._spawn(self._say(self.socket, self.connection, message, after_s, when))

    async def _say(self, socket, number, message, after_s, when):
        await asyncio.sleep(after_s)
        if number == self.connection and when():
            self.sent[message["id"]] = message
            self.note("out", number, **message)
            with contextlib.suppress(ConnectionClosed):
                await socket.send(json.dumps(message))

    def retire(self):
        """Plays no further game."""
        self.retiring = True
        if self.state == "queued":
            self.say("leave", when=lambda: self.state == "queued")
        elif self.state == "idle":
            self._spawn(self.socket.close())

    def close(self):
        """Ends everything at once."""
        for task in list(self.tasks):
            task.cancel()
        if self.socket is not None:
            self.socket.transport.abort()

    # -- in

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

    def _on_queued(self, frame):
        self.state = "queued"
        if self.retiring:
            self.say("leave", when=lambda: self.state == "queued")

    def _on_start(self, frame):
        self.state, self.round = "playing", None

    def _on_question(self, frame):
        self.round = (frame["game"], frame["round"])
        if self.random.random() < 0.01:
            return self.say("leave")
        if self.random.random() < 0.9:
            self._answer(len(frame["choices"]), twice=self.random.random() < 0.1)

    def _on_update(self, frame):
        self.state, self.round = "playing", None
        if frame["phase"] == "question":
            self.round = (frame["game"], frame["round"])
            if "choice" not in frame and self.random.random() < 0.9:
                self._answer(len(frame["question"]["choices"]))

    def _answer(self, count, twice=False):
        """Answers the open question; always with the same choice, unless it tries another right behind it."""
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
        self.state, self.round = "idle", None
        if self.retiring:
            self._spawn(self.socket.close())
        else:
            self.say("join", self.random.uniform(0, 0.3), queue=self.random.choice(QUEUES))

    _on_cancelled = _on_end

    def _on_error(self, frame):
        refused = self.sent.get(frame.get("id"), {"type": "join"})
        kind, asked = refused["type"], (refused.get("game"), refused.get("round"))
        if frame["code"] == "unavailable":
            again = {key: value for key, value in refused.items() if key not in ("type", "id")}
            self.say(
                kind,
                self.random.uniform(0.2, 0.5),
                lambda: kind != "answer" or self.round == asked,
                **again,
            )
        elif frame["code"] == "wrong_state" and kind == "leave" and self.retiring:
            self._on_end(frame)


# ---- faults -------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """A failure that was made; `until` it was over, as far as that is to be seen."""

    kind: str
    at: float
    until: float
    target: str


class Plan(NamedTuple):
    """A failure to be made: after a pause, of a kind, at a target and for a length that two numbers from 0 to 1 say."""

    pause_s: float
    kind: str
    pick: float
    length: float


def schedule(seed, kinds, every_s):
    """The failures to be made, without end; depends on the arguments alone."""
    source = random.Random(seed)
    while True:
        yield Plan(
            source.uniform(0.5, 1.5) * every_s,
            source.choice(kinds),
            source.random(),
            source.random(),
        )


def alive(pid):
    """Whether a process is there and not a zombie."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def answers(server):
    """Whether Redis answers."""
    with contextlib.suppress(redis.RedisError):
        client = redis.Redis(
            unix_socket_path=str(server.data / "d" / "redis.sock"), socket_timeout=0.5, retry=None
        )
        with contextlib.closing(client):
            return client.ping()
    return False


class Faults:
    """Makes failures and keeps a log of them."""

    def __init__(self, server, plans, phones=()):
        self.server, self.plans, self.phones = server, plans, phones
        self.log, self.stopped, self.tasks = [], set(), set()

    async def run(self):
        """Makes them until cancelled. Those that would leave no worker, or restart two times at once, are left out."""
        for plan in self.plans:
            await asyncio.sleep(plan.pause_s)
            task = asyncio.ensure_future(getattr(self, "_" + plan.kind.replace("-", "_"))(plan))
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task):
        self.tasks.discard(task)
        task.cancelled() or task.result()

    def let_go(self):
        """Lets everything that is stopped go on."""
        for pid in self.stopped:
            self._signal(pid, signal.SIGCONT)
        self.stopped.clear()

    async def heal(self):
        """Lets everything go on, and waits until Redis is back and the last deployment done."""
        self.let_go()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=60)

    @contextlib.contextmanager
    def _logged(self, kind, target):
        fault = Fault(kind, time.monotonic(), float("inf"), str(target))
        self.log.append(fault)
        try:
            yield
        finally:
            fault.until = time.monotonic()

    def _victim(self, plan):
        """A worker, or None while there is only one that could go on without it."""
        running = sorted(workers_of(self.server) - self.stopped)
        return running[int(plan.pick * len(running))] if len(running) > 1 else None

    async def _kill(self, plan):
        if pid := self._victim(plan):
            with self._logged("kill", pid):
                self._signal(pid, signal.SIGKILL)

    def _signal(self, pid, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    async def _stop(self, plan):
        if not self.stopped and (pid := self._victim(plan)):
            with self._logged("stop", pid):
                await self._hold(pid, 1 + 19 * plan.length)

    async def _hold(self, pid, seconds):
        """Stops a process for so long, or until it is killed or healed."""
        self.stopped.add(pid)
        self._signal(pid, signal.SIGSTOP)
        until = time.monotonic() + seconds
        while time.monotonic() < until and pid in self.stopped and alive(pid):
            await asyncio.sleep(0.05)
        self._signal(pid, signal.SIGCONT)
        self.stopped.discard(pid)

    async def _client_kill(self, plan):
        with contextlib.suppress(redis.RedisError), contextlib.closing(self.server.redis) as client:
            client.connection_pool.connection_kwargs["socket_timeout"] = 1
            found = [
                row["id"] for row in await asyncio.to_thread(client.client_list) if int(row["sub"])
            ]
            if found:
                with self._logged("client-kill", target := found[int(plan.pick * len(found))]):
                    await asyncio.to_thread(client.client_kill_filter, _id=target)

    async def _redis_kill(self, plan):
        if any(
            fault.kind.startswith("redis") and fault.until == float("inf") for fault in self.log
        ):
            return
        for pid in valkeys(self.server):
            hang = plan.pick < 0.25
            with self._logged("redis-stop" if hang else "redis-kill", pid):
                if hang:
                    await self._hold(pid, 1 + 7 * plan.length)
                else:
                    self._signal(pid, signal.SIGKILL)
                while (
                    not await asyncio.to_thread(answers, self.server)
                    and self.server.process.poll() is None
                ):
                    await asyncio.sleep(0.02)

    async def _deploy(self, plan):
        if any(
            fault.kind == "deploy" and time.monotonic() - fault.until < 10 for fault in self.log
        ):
            return
        old = set(workers_of(self.server))
        with self._logged("deploy", self.server.process.pid):
            self._signal(self.server.process.pid, signal.SIGHUP)
            until = (
                time.monotonic() + 40
            )  # it is given up when a new worker is killed before it serves
            while old & set(filter(alive, workers_of(self.server))) and time.monotonic() < until:
                await asyncio.sleep(0.2)

    async def _drop(self, plan):
        if self.phones:
            phone = self.phones[int(plan.pick * len(self.phones))]
            with self._logged("drop", phone.name):
                phone.whim.set()


class ClusterFaults(Faults):
    """The same for a server on a cluster. One thing at a time happens to its nodes."""

    TAGS = ("{lobby}", "{bank}", "{g0}", "{g1}", "{g2}", "{g3}")

    def __init__(self, *args):
        super().__init__(*args)
        self.cluster, self.busy = self.server.cluster, asyncio.Lock()

    async def heal(self):
        await super().heal()
        await asyncio.to_thread(wait_until, self.cluster.is_well, 60)

    async def _client_kill(self, plan):
        with contextlib.suppress(redis.RedisError):
            nodes = self.cluster.nodes
            client = nodes[int(plan.pick * len(nodes))].client
            rows = await asyncio.to_thread(client.client_list)
            found = [row["id"] for row in rows if int(row.get("ssub", 0))]
            if found:
                with self._logged("client-kill", found[0]):
                    await asyncio.to_thread(client.client_kill_filter, _id=found[0])

    async def _redis_kill(self, plan):
        """Kills a primary, and starts it again when it has been replaced; or stops it for long enough for that."""
        if self.busy.locked():
            return
        async with self.busy:
            nodes = await asyncio.to_thread(self.cluster.primaries)
            node = nodes[int(plan.length * len(nodes))]
            hang = plan.pick < 0.5
            with self._logged("redis-stop" if hang else "redis-kill", node.address):
                if hang:
                    await self._hold(node.process.pid, 8 + 8 * plan.pick)
                else:
                    node.kill()
                    gone = lambda: node not in self.cluster.primaries()
                    await asyncio.to_thread(wait_until, gone, 60)
                    await asyncio.to_thread(node.start)
                await asyncio.to_thread(wait_until, self.cluster.is_well, 60)

    async def _slots(self, plan):
        if self.busy.locked():
            return
        async with self.busy:
            tag = self.TAGS[int(plan.pick * len(self.TAGS))]
            nodes = await asyncio.to_thread(self.cluster.primaries)
            with self._logged("slots", tag):
                target = nodes[int(plan.length * len(nodes))]
                await asyncio.to_thread(self.cluster.move, tag, target)
                await asyncio.to_thread(wait_until, self.cluster.is_well, 60)


def outage(faults, since, until, kinds=("stop", "redis-kill", "redis-stop")):
    """For how long within a time failures of these kinds lasted, in s."""
    return sum(
        max(0.0, min(fault.until, until) - max(fault.at, since))
        for fault in faults
        if fault.kind in kinds
    )


# ---- evidence -----------------------------------------------------------------------------------------------
# All that the checks look at, as plain data: Redis as it is at rest, and the transcripts.


@dataclass
class Seat:
    """A player's part in a stored game."""

    uid: str
    name: str
    score: int
    log: list  # of each round (choice, ms, points), or None


def read_answer(text):
    """(choice, ms, points) of 'CHOICE:MS:POINTS', or None for '-'."""
    return None if text == "-" else tuple(map(int, text.split(":")))


class Stored:
    """A game as Redis keeps it."""

    def __init__(self, game, fields):
        self.id, self.fields = game, fields
        plan = trivia.parse_plan(fields["plan"])
        state = trivia.parse_state(fields["state"])
        self.phase, self.reason = state["phase"], state.get("reason")
        self.answer_ms, _, _, self.correct, self.speed, *_ = plan["rules"]
        self.right = [part.split(":")[1].index("0") for part in plan["quiz"].split()]
        self.result = json.loads(fields.get("result", "[]"))
        numbers = sorted(int(name) for name in fields if name.isdigit())
        rounds = [fields[str(number)].split() for number in numbers]
        self.seats = [
            Seat(uid, name, player["score"], [read_answer(row[i]) for row in rounds])
            for i, ((uid, name, *_), player) in enumerate(
                zip(plan["players"], state["players"], strict=True)
            )
        ]

    def points(self, number, choice, ms):
        """What an answer is worth, by the formula of the documents."""
        right = self.right[number - 1 : number] == [choice]
        return self.correct + self.speed * (self.answer_ms - ms) // self.answer_ms if right else 0

    def answers(self, number):
        """The answers of a round, as `reveal` shows them."""
        return {
            seat.name: dict(zip(("choice", "ms", "points"), seat.log[number - 1]))
            for seat in self.seats
            if number <= len(seat.log) and seat.log[number - 1]
        }

    def scores(self, number):
        """The scores after so many rounds."""
        return {
            seat.name: sum(answer[2] for answer in seat.log[:number] if answer)
            for seat in self.seats
        }

    def ranking(self):
        """The ranking as `end` shows it."""
        rows = [
            {
                "player": seat.name,
                "score": seat.score,
                "rank": part["rank"],
                "rating": part["rating"],
                "rating_change": part["change"],
            }
            | {name: part[name] for name in ("counts",) if name in part}
            for seat, part in zip(self.seats, self.result)
        ]
        return sorted(rows, key=lambda row: row["rank"])


@dataclass
class Evidence:
    """What is left of a campaign."""

    store: dict  # key -> {field: value}, {member: score} or text
    types: dict  # key -> type
    ttls: dict  # key -> s, -1 for none
    workers: int  # how many run
    transcripts: dict  # name -> [Entry]
    faults: list
    log: str = ""  # of the server
    incidents: list = field(default_factory=list)  # what went wrong with the campaign itself

    @property
    def games(self):
        """{id: Stored}"""
        return {
            key.split(":")[-1]: Stored(key.split(":")[-1], fields)
            for key, fields in self.of("game").items()
        }

    @property
    def users(self):
        """{UID: fields}"""
        return {key[len("user:{") : -1]: fields for key, fields in self.of("user").items()}

    def of(self, kind):
        """{key: value} of the keys of a kind."""
        return {key: value for key, value in self.store.items() if key.startswith(f"{kind}:")}

    @property
    def kept(self):
        """The ended games, but for those in which nobody answered, which are soon forgotten."""
        ttls = {key.split(":")[-1]: ttl for key, ttl in self.ttls.items()}
        return [
            game
            for game in self.games.values()
            if game.phase == "end" and ttls[game.id] > trivia.FORGET_S
        ]

    def ended(self, uid):
        """[(game, seat, part of the result)] of a user's ended games."""
        return [
            (game, seat, part)
            for game in self.kept
            for seat, part in zip(game.seats, game.result)
            if seat.uid == uid
        ]


def read_store(client):
    """(store, types, ttls) of a Redis."""
    types = {key: client.type(key) for key in client.scan_iter(count=1000)}
    types = {key: kind for key, kind in types.items() if kind != "none"}  # it has just expired
    read = {
        "hash": client.hgetall,
        "zset": lambda key: dict(client.zrange(key, 0, -1, withscores=True)),
        "string": lambda key: str(client.strlen(key)),
    }
    return (
        {key: read[kind](key) for key, kind in types.items()},
        types,
        {key: client.ttl(key) for key in types},
    )


def key_table(text):
    """[(pattern as a regular expression, type, pattern)] of the table in the docstring of trivia.py."""
    rows = re.findall(r"^    (\w+:\{.+?) +(hash|zset|string) ", text, re.MULTILINE)
    return [
        (
            re.compile(re.sub(r"[A-Z]+", "[^{}]+", re.sub(r"([{}])", r"\\\1", pattern))),
            kind,
            pattern,
        )
        for pattern, kind in rows
    ]


# ---- checks -------------------------------------------------------------------------------------------------
# Each yields what violates the sentence that is its name, with what is needed to find out why.


def points_are_those_of_the_formula_and_add_up_to_the_score(evidence):
    for game in evidence.games.values():
        for seat in game.seats:
            for number, answer in enumerate(seat.log, 1):
                if answer and (
                    not 0 <= answer[1] <= game.answer_ms
                    or answer[2] != game.points(number, *answer[:2])
                ):
                    yield f"game {game.id}, {seat.name}, round {number}: {answer}; right are {game.right}"
            if seat.score != sum(answer[2] for answer in seat.log if answer):
                yield f"game {game.id}, {seat.name}: score {seat.score} of {seat.log}"
            if game.reason == "finished" and len(seat.log) != len(game.right):
                yield f"game {game.id}, {seat.name}: finished, {len(game.right)} rounds, but {seat.log}"


def what_the_phones_saw_is_what_is_stored(evidence):
    games = {game.id: game for game in evidence.kept}
    for name, transcript in evidence.transcripts.items():
        for entry in received(transcript, "reveal", "update", "end"):
            if game := games.get(entry.frame["game"]):
                for key, expected in expectation(game, entry.frame).items():
                    if entry.frame[key] != expected:
                        yield (
                            f"game {game.id}, {name}, {entry.frame['type']}: {key} is {entry.frame[key]}, stored "
                            f"{expected}{excerpt(transcript, entry.at)}"
                        )


def expectation(game, frame):
    """What a frame must say, {key: value}, as far as the stored game tells."""
    if frame["type"] == "end":
        return {"reason": game.reason, "ranking": game.ranking()}
    number, revealed = frame["round"], frame["type"] == "reveal" or frame["phase"] == "reveal"
    if frame["type"] == "update" and frame["phase"] == "settle":
        return {"scores": game.scores(None)}
    if not revealed:
        return {"scores": game.scores(max(0, number - 1))}
    return {
        "correct": game.right[number - 1],
        "answers": game.answers(number),
        "scores": game.scores(number),
    }


def somebody_left(transcripts):
    """The games that somebody gave up for good, as he or another one saw it; they are not stored with the game."""
    for transcript in transcripts:
        game = None
        for entry in transcript:
            game = entry.frame.get("game", game)
            if (
                entry.frame.get("returns_ms") == 0
                or entry.way == "out"
                and entry.frame["type"] == "leave"
            ):
                yield game


def ranks_follow_the_scores(evidence):
    given_up = set(somebody_left(evidence.transcripts.values()))
    # Who left a game of an earlier campaign on this server is not known here.
    seen = {
        entry.frame.get("game")
        for transcript in evidence.transcripts.values()
        for entry in transcript
    }
    for game in evidence.games.values():
        scores = [seat.score for seat in game.seats]
        expected = [1 + sum(other > score for other in scores) for score in scores]
        is_whole = game.reason == "finished" and game.id in seen - given_up
        if is_whole and [part["rank"] for part in game.result] != expected:
            yield f"game {game.id}: scores {scores}, but {game.result}"
        for part in game.result:
            if part["won"] and (
                part["rank"] != 1 or sum(other["rank"] == 1 for other in game.result) > 1
            ):
                yield f"game {game.id}: won without being first alone: {game.result}"


def an_acknowledged_answer_counts_once_and_as_sent(evidence):
    asked = {name: answers_of(transcript) for name, transcript in evidence.transcripts.items()}
    for entry in itertools.chain.from_iterable(
        received(each, "answered") for each in evidence.transcripts.values()
    ):
        asked[entry.frame["player"]][
            entry.frame["game"], entry.frame["round"]
        ].acknowledged = "answered"
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
            yield f"game {game.id}, {name}, round {number}: {wrong}{excerpt(evidence.transcripts[name], at)}"


def judge(transcript, asked, stored):
    """What is wrong with the stored answer of a round, or None."""
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
    """Whether an answer may have been lost on its way: its connection did not last until after the round's reveal.

    While it lasts there is no excuse: what the server can't do, it says.
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
    rating = boards.get("board:{rating}", {})
    wins = next((value for key, value in boards.items() if key.startswith("board:{wins}:")), {})
    for uid, user in evidence.users.items():
        ended, history = evidence.ended(uid), evidence.store.get(f"history:{{{uid}}}", {})
        expected = {
            "games": sum(part.get("counts", True) for *_, part in ended),
            "wins": sum(part["won"] for *_, part in ended),
            "rating": 1500 + sum(part["change"] for *_, part in ended),
        }
        found = {key: float(user.get(key, 1500 if key == "rating" else 0)) for key in expected}
        where = f"user {uid} {user['username']}"
        if any(abs(expected[key] - found[key]) > 0.01 for key in expected):
            yield f"{where}: {found}, but by his {len(ended)} games {expected}"
        if set(history) != (games := {game.id for game, *_ in ended}):
            yield f"{where}: history {sorted(history)}, games {sorted(games)}"
        if (
            ended
            and abs(rating.get(uid, 0) - found["rating"]) > 0.001
            or not ended
            and uid in rating
        ):
            yield f"{where}: {rating.get(uid)} on the leaderboard of ratings, but {found}"
        if wins.get(uid, 0) != found["wins"]:
            yield f"{where}: {wins.get(uid)} on the leaderboard of wins, but {found}"


def answered_games(transcripts):
    """The games in which a phone saw an answer."""
    for transcript in transcripts:
        for entry in received(transcript, "answered", "reveal", "update"):
            frame = entry.frame
            if frame["type"] == "answered" or any(
                frame.get(name) for name in ("answers", "answered")
            ):
                yield frame["game"]


def no_started_game_is_lost(evidence):
    games = evidence.games
    answered = set(answered_games(evidence.transcripts.values()))
    kept = {game.id: game for game in evidence.kept}
    seats = sum(len(game.seats) for game in kept.values())
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
                yield f"game {entry.frame['game']}, {name}: {game and game.fields}{excerpt(transcript, entry.at)}"


def no_message_of_a_game_is_missing_or_twice(evidence):
    for name, transcript in evidence.transcripts.items():
        for _, entries in itertools.groupby(
            sorted(received(transcript), key=lambda entry: entry.connection),
            key=lambda entry: entry.connection,
        ):
            for game, entry, what in disorder([entry for entry in entries if "seq" in entry.frame]):
                yield f"game {game}, {name}: {what}{excerpt(transcript, entry.at)}"


def disorder(entries):
    """[(game, entry, what is wrong)] with the `seq` of the messages on one connection."""
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
                    f"{name} heard nothing for {until - since:.1f} s, at most {allowed:.1f} s are allowed"
                    f"{excerpt(transcript, since, 6, until - since + 4)}"
                )


def silences(transcript):
    """[(since, until, the longest that is to be expected)] of a phone that is connected, and in a game or a queue."""
    found, since, expected_s, current = [], None, 0, 0
    for entry in transcript:
        current = max(current, entry.connection)
        kind = entry.frame["type"] if entry.way == "in" else entry.way
        if entry.connection == current and kind not in ("error", "pong", "out", "open", "refused"):
            if since is not None:
                found.append((since, entry.at, expected_s))
            since = None if kind in ("end", "cancelled", "lost", "try") else entry.at
            expected_s = entry.frame["timeout_ms"] / 1000 if kind == "queued" else ANSWER_S
    return found


def nothing_is_left_behind(evidence):
    for key in evidence.store:
        if re.match(BUSY, key):
            yield f"{key} holds {evidence.store[key]}"
    if playing := {
        queue: n for queue, n in evidence.store.get("playing:{lobby}", {}).items() if int(n)
    }:
        yield f"playing:{{lobby}} holds {playing}"
    if len(listed := evidence.store.get("workers:{lobby}", {})) != evidence.workers:
        yield f"workers:{{lobby}} holds {listed}, but {evidence.workers} run"
    for key in evidence.of("game"):
        if evidence.ttls[key] < 0:
            yield f"{key} has no expiry"
    table = key_table(
        ast.get_docstring(ast.parse((ROOT / "trivia.py").read_text("utf-8")), clean=False)
    )
    for key, kind in evidence.types.items():
        if not any(pattern.fullmatch(key) and kind == expected for pattern, expected, _ in table):
            yield f"{key}, a {kind}, is not in the table of keys"


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
        yield f"{what} of {had[what]} is claimed by nobody"


def nobody_waits_long_without_a_connection(evidence):
    for name, transcript in evidence.transcripts.items():
        for since, until in waits_of(transcript):
            allowed = MOST_WAIT_S + outage(evidence.faults, since, until)
            if until - since > allowed:
                yield f"{name} was away for {until - since:.1f} s{excerpt(transcript, since, 2, until - since + 2)}"


def nobody_is_signed_out_or_replaced_by_an_older_connection(evidence):
    for name, transcript in evidence.transcripts.items():
        newest = 0  # the last connection for which there is no newer one, not even an attempt at it
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
    for found in re.finditer(r"Traceback \(most recent call last\)", evidence.log):
        yield f"...{evidence.log[max(0, found.start() - 300) : found.start() + 2500]}"


CHECKS = [
    points_are_those_of_the_formula_and_add_up_to_the_score,
    what_the_phones_saw_is_what_is_stored,
    ranks_follow_the_scores,
    an_acknowledged_answer_counts_once_and_as_sent,
    results_are_applied_exactly_once,
    no_started_game_is_lost,
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
    """[(name of the check, what)] of all checks."""
    return [(check.__name__, what) for check in CHECKS for what in check(evidence)]


# ---- campaign -----------------------------------------------------------------------------------------------


class Campaign:
    """Phones that play on a server to which failures are made, until so many games have ended."""

    def __init__(self, server, games, players, workers, kinds, every_s, seed, say=print):
        self.server, self.games, self.players, self.workers, self.seed, self.say = (
            server,
            games,
            players,
            workers,
            seed,
            say,
        )
        self.kinds, self.plans = kinds, schedule(seed, kinds, every_s)
        self.phones, self.faults, self.incidents = [], None, []

    async def run(self):
        """Plays; the Evidence."""
        sessions = await asyncio.gather(
            *(asyncio.to_thread(self.server.register) for _ in range(self.players))
        )
        await self._until(lambda: len(self._listed()) == self.workers, 30, "workers are up")
        self.phones = [
            Phone(self.server, session, f"{self.seed} {i}", "drop" in self.kinds)
            for i, session in enumerate(sessions)
        ]
        on_cluster = isinstance(self.server, ClusterServer)
        faults = ClusterFaults if on_cluster else Faults
        self.faults = faults(self.server, self.plans, self.phones)
        lives = [asyncio.ensure_future(phone.live()) for phone in self.phones]
        making = asyncio.ensure_future(self.faults.run())
        try:
            await self._play(lives)
            making.cancel()
            await self.faults.heal()
            self.say("no more failures; the phones retire")
            await self._come_to_rest(lives)
            return self._collect()
        finally:
            making.cancel()
            self.faults.let_go()
            for phone in self.phones:
                phone.close()

    def ended(self):
        """The ids of all games whose end a phone has seen."""
        return {
            entry.frame["game"]
            for phone in self.phones
            for entry in received(phone.transcript, "end")
        }

    def _listed(self):
        with contextlib.suppress(redis.RedisError):
            return self.server.redis.zrange("workers:{lobby}", 0, -1)
        return []

    async def _until(self, condition, seconds, what):
        """Waits for a condition, or writes down that it did not come true."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until or self.server.process.poll() is not None:
                return self.incidents.append(f"not in {seconds} s: {what}")
            await asyncio.sleep(0.1)

    async def _play(self, lives):
        until, told = time.monotonic() + 60 + 2 * self.games, 0.0
        while len(ended := self.ended()) < self.games:
            if broken := [life for life in lives if life.done()]:
                broken[0].result()
            if self.server.process.poll() is not None:
                return self.incidents.append(f"the server has ended:\n{self.server.log[-2000:]}")
            if time.monotonic() > until:
                return self.incidents.append(f"only {len(ended)} games came to an end in time")
            if time.monotonic() > told + 5:
                told = time.monotonic()
                self.say(
                    f"{len(ended)} games ended; {len(self.faults.log)} faults; phones: "
                    f"{dict(Counter(phone.state for phone in self.phones))}"
                )
            await asyncio.sleep(0.25)

    async def _come_to_rest(self, lives):
        for phone in self.phones:
            phone.retire()
        await asyncio.wait(lives, timeout=REST_S)
        for phone, life in zip(self.phones, lives):
            if not life.done():
                self.incidents.append(
                    f"{phone.name} does not come to rest; he is {phone.state}"
                    f"{excerpt(phone.transcript, phone.transcript[-1].at)}"
                )
                phone.note("lost", code=0)  # as far as he is concerned
            life.cancel()
        self.say("all have left; the store comes to rest")
        await self._until(self._at_rest, REST_S, "the store is at rest")

    def _at_rest(self):
        with contextlib.suppress(redis.RedisError), contextlib.closing(self.server.redis) as client:
            busy = [key for key in client.scan_iter(count=1000) if re.match(BUSY, key)]
            return not busy and len(self._listed()) == len(workers_of(self.server)) == self.workers
        return False

    def _collect(self):
        try:
            with contextlib.closing(self.server.redis) as client:
                store, types, ttls = read_store(client)
        except redis.RedisError as error:
            store, types, ttls = {}, {}, {}
            self.incidents.append(f"Redis is gone: {error}")
        return Evidence(
            store,
            types,
            ttls,
            len(workers_of(self.server)),
            {phone.name: phone.transcript for phone in self.phones},
            self.faults.log,
            self.server.log,
            self.incidents,
        )


def summary(evidence, found):
    """Figures of a campaign."""
    games, transcripts = evidence.games, evidence.transcripts.values()
    waits = sorted(
        until - since for transcript in transcripts for since, until in waits_of(transcript)
    ) or [0]
    return {
        "games": len(games),
        "reasons": dict(Counter(game.reason for game in games.values())),
        "rounds": sum(max(len(seat.log) for seat in game.seats) for game in games.values()),
        "answers": sum(
            answer is not None
            for game in games.values()
            for seat in game.seats
            for answer in seat.log
        ),
        "faults": dict(Counter(fault.kind for fault in evidence.faults)),
        "connections": sum(
            entry.way == "open" for transcript in transcripts for entry in transcript
        ),
        "closes": dict(
            Counter(
                entry.frame["code"]
                for transcript in transcripts
                for entry in transcript
                if entry.way == "lost"
            )
        ),
        "errors": dict(
            Counter(
                entry.frame["code"]
                for transcript in transcripts
                for entry in received(transcript, "error")
            )
        ),
        "wait_s": {
            name: round(waits[int(share * (len(waits) - 1))], 3)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
        },
        "violations": dict(Counter(check for check, _ in found)),
    }


def campaign(
    games, players=60, workers=4, kinds=None, every_s=1.0, seed=None, say=print, on_cluster=False
):
    """Runs one; (Evidence, violations, summary)."""
    kinds = kinds or (CLUSTER_KINDS if on_cluster else KINDS)
    server = new_server(workers, on_cluster)
    try:
        server.start()
        evidence = asyncio.run(
            Campaign(server, games, players, workers, kinds, every_s, seed, say).run()
        )
    finally:
        server.close()
    found = violations(evidence)
    return evidence, found, summary(evidence, found)


# ---- registrations ------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What is known of an account: whether it is there (None: may be), and which passwords it may have."""

    name: str
    exists: bool | None
    passwords: set
    token: str = ""


class Applicant:
    """Registers accounts, changes passwords and deletes accounts, one request after the other."""

    def __init__(self, server, seed, patient):
        self.server, self.random, self.patient = server, random.Random(seed), patient
        self.accounts, self.outcomes, self.surprises = [], Counter(), []

    def ask(self, what, *request, **options):
        """The Answer to a request, or None: refused for now, or lost on the way; it may have been done or not."""
        answer = None
        with contextlib.suppress(OSError, EOFError):
            answer = self.server.http(*request, **options)
        self.outcomes[f"{what} {answer.status if answer else 'lost'}"] += 1
        if answer is not None and answer.status >= 500 and answer.status != 503:
            self.surprises.append(f"{what}: {answer.status} {answer.body}")
        if answer is not None and answer.status != 503:
            return answer
        time.sleep(self.random.uniform(0.05, 0.3))  # as a client should, rather than at once
        return None

    def register(self, name, password):
        """The Answer to a registration, or None."""
        return self.ask(
            "register",
            "POST",
            "/auth/register",
            {"username": name, "email": f"{name}@example.org", "password": password},
        )

    def step(self):
        """A new account; then perhaps another password, perhaps its deletion."""
        account = Account(f"c{secrets.token_hex(6)}", None, {PASSWORD})
        self.accounts.append(account)
        answer = self.register(account.name, PASSWORD)
        if answer is None:
            return
        if answer.status != 201:
            return self.surprises.append(f"a new name: {answer.status} {answer.body}")
        account.exists, account.token = True, answer.json["token"]
        if self.random.random() < 0.4:
            self.change_password(account)
        if self.random.random() < 0.3:
            self.delete(account)

    def change_password(self, account):
        """Asks for a new password, until it is known whether it was set, or it fails three times."""
        for new in (f"password {secrets.token_hex(4)}" for _ in range(3)):
            old = self.random.choice(sorted(account.passwords))
            answer = self.ask(
                "password",
                "POST",
                "/auth/password",
                {"password": old, "new_password": new},
                token=account.token,
            )
            if answer is not None and answer.status == 204:
                account.passwords = {new}
                return
            if answer is None:
                account.passwords.add(new)

    def delete(self, account):
        """Asks for the deletion of an account once."""
        for password in sorted(account.passwords):
            answer = self.ask(
                "delete", "DELETE", "/users/me", {"password": password}, token=account.token
            )
            if answer is None:
                account.exists = None
            elif answer.status == 204:
                account.exists = False
                return

    def wrong(self, account):
        """What is wrong with an account, now that all is quiet; None if nothing is."""
        statuses = [
            self.ask("login", "POST", "/auth/login", {"login": account.name, "password": password})
            for password in sorted(account.passwords)
        ]
        statuses = [answer and answer.status for answer in statuses]
        if account.exists is False and 200 in statuses:
            return f"{account} was deleted, and can sign in"
        if account.exists and 200 not in statuses:
            return f"{account} was registered, and can't sign in: {statuses}"
        if 200 not in statuses and not self._is_free(account.name):
            return f"{account} can't sign in, and its name can't be had either: {statuses}"
        return None

    def _is_free(self, name):
        """Whether a name can be had, perhaps after a while; or, without the patience to wait, will be by itself."""
        until = time.monotonic() + FREE_S
        while (answer := self.register(name, PASSWORD)) is None or answer.status == 409:
            if answer is not None and not self.patient:
                return self._claim_ends(name)
            if time.monotonic() > until:
                return False
            time.sleep(1)
        return answer.status == 201

    def _claim_ends(self, name):
        """Whether the claims on a name and its address are of a registration under way, and end in half a minute."""
        with contextlib.closing(self.server.redis) as client:
            claims = [
                claim.split(" ")
                for key in client.scan_iter("unique:*", 1000)
                for claim in client.hmget(key, name, f"{name}@example.org")
                if claim
            ]
        return all(
            len(claim) == 3 and int(claim[2]) < 1000 * (time.time() + 31) for claim in claims
        )


def kill_redis(server, kills, seed, say):
    """Kills Redis so many times, about one time each second, each time after it has come back; [what is wrong]."""
    source = random.Random(seed)
    for i in range(1, kills + 1):
        time.sleep(
            source.uniform(0.2, 1.2)
        )  # not waiting for anything: this is when the next one is due
        for pid in valkeys(server):
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 30
        while not answers(server):
            if time.monotonic() > until or server.process.poll() is not None:
                return [f"Redis did not come back from kill {i}:\n{server.log[-2000:]}"]
            time.sleep(0.01)
        if i % 10 == 0:
            say(f"{i} kills")
    return []


def kill_primaries(server, kills, seed, say):
    """Kills a primary of a cluster so many times, each time after all is well again; [what is wrong]."""
    source, cluster = random.Random(seed), server.cluster
    for i in range(1, kills + 1):
        time.sleep(source.uniform(0.2, 1.2))
        node = source.choice(cluster.primaries())
        node.kill()
        wait_until(lambda: node not in cluster.primaries(), 60)  # noqa: B023
        node.start()
        wait_until(cluster.is_well, 60)
        if server.process.poll() is not None:
            return [f"the server ended after kill {i}:\n{server.log[-2000:]}"]
        if i % 10 == 0:
            say(f"{i} kills")
    return []


def registrations(
    kills, seed=None, applicants=6, patient=True, say=print, on_cluster=False, replicas=0
):
    """Kills Redis under a stream of registrations; (violations, {outcome: how often})."""
    server = new_server(2, on_cluster, f"?replicas={replicas}")
    kill = kill_primaries if on_cluster else kill_redis
    people, going = [Applicant(server, f"{seed} {i}", patient) for i in range(applicants)], [True]

    def work(person):
        while going:
            person.step()

    try:
        server.start()
        with ThreadPoolExecutor(applicants) as pool:
            works = [pool.submit(work, person) for person in people]
            try:
                wrong = kill(server, kills, seed, say)
            finally:
                going.clear()
            for one in works:
                one.result()
        say("no more kills; all accounts are looked at")
        found = [("redis_comes_back", what) for what in wrong] or check_accounts(people)
    finally:
        server.close()
    return found, dict(
        sum(
            (person.outcomes for person in people),
            Counter(accounts=sum(len(person.accounts) for person in people)),
        )
    )


def check_accounts(people):
    """Looks at all accounts at rest; [(name of the check, what)]."""
    with ThreadPoolExecutor(32) as pool:
        found = pool.map(
            lambda pair: pair[0].wrong(pair[1]),
            [(person, account) for person in people for account in person.accounts],
        )
        wrong = [("accounts_are_as_they_were_acknowledged", what) for what in found if what]
    return wrong + [
        ("answers_are_as_documented", what) for person in people for what in person.surprises
    ]


# ---- command line -------------------------------------------------------------------------------------------


def options_of(arguments):
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", nargs="?", choices=("games", "registrations"), default="games")
    parser.add_argument(
        "--games",
        type=int,
        default=1000,
        help="how many must come to an end (default: %(default)s)",
    )
    parser.add_argument("--players", type=int, default=60, help="phones (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=4, help="of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--faults", default="", help="kinds of failures, with commas between (default: all)"
    )
    parser.add_argument("--cluster", action="store_true", help="play on a cluster of 3 + 3 nodes")
    parser.add_argument(
        "--replicas",
        type=int,
        default=0,
        help="of a primary that must have an account before it is acknowledged (default: none)",
    )
    parser.add_argument(
        "--every", type=float, default=1, help="seconds between failures (default: %(default)s)"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=200,
        help="of Redis, under registrations (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", default=secrets.token_hex(3), help="of the failures (default: a new one)"
    )
    parser.add_argument(
        "--json", type=Path, help="a file for everything: transcripts, faults, games, violations"
    )
    options = parser.parse_args(arguments)
    known = CLUSTER_KINDS if options.cluster else KINDS
    options.faults = options.faults.split(",") if options.faults else list(known)
    if unknown := set(options.faults) - set(known):
        parser.error(f"--faults: {', '.join(unknown)}; expected some of {','.join(known)}")
    return options


def main(arguments=None):
    """Runs what was asked for; exits with 1 if anything was violated."""
    options = options_of(arguments)
    print(f"seed {options.seed}", flush=True)

    def say(line):
        print(time.strftime("%H:%M:%S"), line, flush=True)

    evidence = None
    if options.command == "registrations":
        found, figures = registrations(
            options.kills,
            options.seed,
            say=say,
            on_cluster=options.cluster,
            replicas=options.replicas,
        )
    else:
        evidence, found, figures = campaign(
            options.games,
            options.players,
            options.workers,
            options.faults,
            options.every,
            options.seed,
            say,
            options.cluster,
        )
    for check, what in found[:100]:
        print(f"VIOLATED {check}: {what}")
    print(json.dumps(figures, indent=1))
    if options.json:
        rest = {} if evidence is None else dataclasses.asdict(evidence)
        options.json.write_text(
            json.dumps({"seed": options.seed, "summary": figures, "violations": found} | rest)
        )
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
