"""The failure campaign: phones drop, processes die, Redis restarts, operators deploy.

    python tests/chaos.py --games 1000 [--players 60] [--workers 4] [--every 1] [--seed N]
                          [--json FILE] [--faults kill,stop,client-kill,redis-kill,deploy,drop]
                          [--queues random,rated,party,fill,solo,sprint,daily,den,contest]
                          [--cluster]
    python tests/chaos.py registrations --kills 200 [--seed N] [--cluster [--replicas 1]]

The first command starts a server of its own. Phones (see chaos_phones.py) play games of all kinds
on it. About each `--every` seconds a failure hits a real process:

    kill           kill -9 of a worker; the supervisor starts another one
    stop           SIGSTOP of a worker for 1 to 20 s; the supervisor kills one that hangs too long
    client-kill    CLIENT KILL of a worker's connection to Redis
    redis-kill     kill -9 of Redis, sometimes SIGSTOP for 1 to 8 s; the workers start it again
    deploy         SIGHUP to the supervisor, which replaces all workers, one after the other
    drop           a phone loses its TCP connection, or opens a second one beside it

With --cluster the store is a Valkey Cluster of three primaries and three replicas. Then
`redis-kill` hits a primary, which starts again once its replica has taken its place. Sometimes it
is a `redis-stop` for 8 to 12 s instead. There is one more kind:

    slots          the slot of the lobby, of games or of the bank moves to another primary

Every phone keeps a transcript. When the system is idle, the CHECKS of chaos_checks.py compare the
transcripts with Redis: no round, rating or account may be lost, doubled or wrong. The second
command kills Redis again and again under a stream of registrations, password changes and
deletions. Exit code 1 means that a check failed. The order of failures depends on the seed alone.
What they hit also depends on the scheduling of the machine.

Sections: faults, campaign, registrations, command line.
"""

import argparse
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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import redis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chaos_checks import BUSY, Evidence, read_store, violations
from chaos_phones import QUEUES, Crowd, Phone, excerpt, received, short_games, waits_of
from conftest import PASSWORD, Server, edited_schema, wait_until
from nodes import ClusterServer
from test_end_to_end import free_port, valkeys, workers_of

KINDS = ("kill", "stop", "client-kill", "redis-kill", "deploy", "drop")
CLUSTER_KINDS = (*KINDS, "slots")
REST_S = 40  # for everything to become idle; the cleanup after a dead worker takes 15
FREE_S = 35  # for an unused name to become free again
GIVE_UP = 0.05  # share of the registrations, refused for now, that are not tried again
ENOUGH = 100  # wrong accounts, after which the check stops


def new_server(workers, on_cluster=False, words=""):
    """Makes a server with a data folder, or a cluster, of its own."""
    command = [sys.executable, "trivia.py", "--port", str(free_port()), "--workers", str(workers)]
    schema = edited_schema(short_games)
    return ClusterServer(schema, command, words=words) if on_cluster else Server(schema, command)


# ---- faults --------------------------------------------------------------------------------------


@dataclass
class Fault:
    """A failure that was made; `until` is the time at which its effect ended."""

    kind: str
    at: float
    until: float
    target: str


def kinds_of(faults):
    """Returns the kinds of failures that were made; a hanging Redis counts as a killed one."""
    return {fault.kind.replace("redis-stop", "redis-kill") for fault in faults}


class Plan(NamedTuple):
    """A failure to make after a pause. Two numbers from 0 to 1 choose its target and length."""

    pause_s: float
    kind: str
    pick: float
    length: float


def schedule(seed, kinds, every_s):
    """Yields failures without end; they depend on the arguments alone."""
    source = random.Random(seed)
    while True:
        yield Plan(
            source.uniform(0.5, 1.5) * every_s,
            source.choice(kinds),
            source.random(),
            source.random(),
        )


def alive(pid):
    """Returns whether a process exists and is not a zombie."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def answers(server):
    """Returns whether Redis answers."""
    with contextlib.suppress(redis.RedisError):
        client = redis.Redis(
            unix_socket_path=str(server.data / "d" / "redis.sock"),
            socket_timeout=0.5,
            retry=None,
            driver_info=None,
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
        """Makes failures until cancelled, except those that would leave no worker running."""
        for plan in self.plans:
            await asyncio.sleep(plan.pause_s)
            task = asyncio.ensure_future(getattr(self, "_" + plan.kind.replace("-", "_"))(plan))
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task):
        self.tasks.discard(task)
        task.cancelled() or task.result()

    def let_go(self):
        """Continues all stopped processes."""
        for pid in self.stopped:
            self._signal(pid, signal.SIGCONT)
        self.stopped.clear()

    async def heal(self):
        """Continues all processes, and waits for Redis and the last deployment."""
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
        """Chooses a worker; None when it is the only one that runs."""
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
        """Stops a process for so many seconds, or until it is killed or continued."""
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
            rows = await asyncio.to_thread(client.client_list)
            found = [row["id"] for row in rows if int(row["sub"]) or int(row.get("ssub", 0))]
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
            # A deployment is given up when a new worker is killed before it serves.
            until = time.monotonic() + 40
            while old & set(filter(alive, workers_of(self.server))) and time.monotonic() < until:
                await asyncio.sleep(0.2)

    async def _drop(self, plan):
        if self.phones:
            phone = self.phones[int(plan.pick * len(self.phones))]
            with self._logged("drop", phone.name):
                phone.whim.set()


class ClusterFaults(Faults):
    """Makes failures for a server on a cluster. Only one at a time hits the cluster's nodes."""

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
        """Kills a primary and restarts it after its failover; or stops it for as long as that."""
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


# ---- campaign ------------------------------------------------------------------------------------


class Campaign:
    """Phones that play on a server, under failures.

    It ends when so many games have ended and each kind of failure has been made.
    """

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
        self.queues = QUEUES  # {name: relative frequency}
        self.phones, self.faults, self.incidents = [], None, []

    async def run(self):
        """Plays; returns the Evidence."""
        sessions = await asyncio.gather(
            *(asyncio.to_thread(self.server.register) for _ in range(self.players))
        )
        await self._until(lambda: len(self._listed()) == self.workers, 30, "workers are up")
        crowd = Crowd()
        self.phones = [
            Phone(
                self.server, session, f"{self.seed} {i}", "drop" in self.kinds, crowd, self.queues
            )
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
        """Returns the ids of all games whose end a phone has seen."""
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
        """Waits for a condition; adds an incident if it does not come true."""
        began = time.monotonic()
        while not condition():
            waited = time.monotonic() - began
            if waited > seconds or self.server.process.poll() is not None:
                return self.incidents.append(f"not true within {seconds} s: {what}")
            await asyncio.sleep(max(0.1, waited / 20))

    async def _play(self, lives):
        until, told, wanted = time.monotonic() + 60 + 2 * self.games, 0.0, set(self.kinds)
        while len(ended := self.ended()) < self.games or kinds_of(self.faults.log) < wanted:
            if broken := [life for life in lives if life.done()]:
                broken[0].result()
            if self.server.process.poll() is not None:
                return self.incidents.append(f"the server has ended:\n{self.server.log[-2000:]}")
            if time.monotonic() > until:
                made = [fault.kind for fault in self.faults.log]
                return self.incidents.append(f"only {len(ended)} games ended; failures: {made}")
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
                    f"{phone.name} does not become idle; its state is {phone.state}"
                    f"{excerpt(phone.transcript, phone.transcript[-1].at)}"
                )
                phone.note("lost", code=0)  # the transcript must end with the connection
            life.cancel()
        self.say("all phones have left; waiting for an idle store")
        await self._until(self._at_rest, REST_S, "the store is idle")

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
            self.incidents.append(f"Redis does not answer: {error}")
        return Evidence(
            store,
            types,
            ttls,
            self.workers,
            {phone.name: phone.transcript for phone in self.phones},
            self.faults.log,
            self.server.log,
            self.incidents,
        )


def summary(evidence, found):
    """Returns the figures of a campaign."""
    games, transcripts = evidence.games, evidence.transcripts.values()
    waits = sorted(
        until - since for transcript in transcripts for since, until in waits_of(transcript)
    ) or [0]
    return {
        "games": len(games),
        "queues": dict(Counter(game.queue for game in games.values())),
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
    games,
    players=60,
    workers=4,
    kinds=None,
    every_s=1.0,
    seed=None,
    say=print,
    on_cluster=False,
    queues=QUEUES,
):
    """Runs a campaign; returns (Evidence, violations, summary)."""
    kinds = kinds or (CLUSTER_KINDS if on_cluster else KINDS)
    server = new_server(workers, on_cluster)
    try:
        server.start()
        one = Campaign(server, games, players, workers, kinds, every_s, seed, say)
        one.queues = queues
        evidence = asyncio.run(one.run())
    finally:
        server.close()
    found = violations(evidence)
    return evidence, found, summary(evidence, found)


# ---- registrations -------------------------------------------------------------------------------


@dataclass
class Account:
    """The known state of an account: `exists` (None: perhaps), and its possible passwords."""

    name: str
    exists: bool | None
    passwords: set
    token: str = ""


class Applicant:
    """Registers accounts, changes passwords and deletes accounts, one request after the other.

    `pause_s` is the longest pause before a new account.
    """

    def __init__(self, server, seed, patient, pause_s=0):
        self.server, self.random, self.patient = server, random.Random(seed), patient
        self.pause_s = pause_s
        self.accounts, self.outcomes, self.surprises = [], Counter(), []

    def ask(self, what, *request, **options):
        """Returns the Answer to a request; None when it is refused for now, or lost.

        The server may or may not have done a request without an answer.
        """
        answer = None
        with contextlib.suppress(OSError, EOFError):
            answer = self.server.http(*request, **options)
        self.outcomes[f"{what} {answer.status if answer else 'lost'}"] += 1
        if answer is not None and answer.status >= 500 and answer.status != 503:
            self.surprises.append(f"{what}: {answer.status} {answer.body}")
        if answer is not None and answer.status != 503:
            return answer
        time.sleep(self.random.uniform(0.05, 0.3))  # clients should pause before they retry
        return None

    def register(self, name, what="register"):
        """Returns the Answer to a registration, or None."""
        email = f"{name}@example.org"
        body = {"username": name, "email": email, "password": PASSWORD}
        return self.ask(what, "POST", "/auth/register", body)

    def step(self):
        """Makes an account; then perhaps changes its password, perhaps deletes it."""
        time.sleep(self.random.uniform(0, self.pause_s))
        account = Account(f"c{secrets.token_hex(6)}", None, {PASSWORD})
        self.accounts.append(account)
        while (answer := self.register(account.name)) is None:
            if self.random.random() < GIVE_UP:
                return
        if answer.status != 201:
            return self.surprises.append(f"a new name: {answer.status} {answer.body}")
        account.exists, account.token = True, answer.json["token"]
        if self.random.random() < 0.4:
            self.change_password(account)
        if self.random.random() < 0.3:
            self.delete(account)

    def change_password(self, account):
        """Asks for a new password, until the server confirms one, at most three times."""
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
        """Asks once for the deletion of an account."""
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
        """Describes what is wrong with an account at rest; None if nothing is."""
        statuses = [
            self.ask("login", "POST", "/auth/login", {"login": account.name, "password": password})
            for password in sorted(account.passwords)
        ]
        statuses = [answer and answer.status for answer in statuses]
        if account.exists is False and 200 in statuses:
            return f"{account} was deleted, and can sign in"
        if account.exists and 200 not in statuses:
            return f"{account} was registered, and can't sign in: {statuses}"
        if account.exists and not self._is_signed_in(account):
            return f"{account} was registered, and has lost its session"
        if 200 not in statuses and not self._is_free(account.name):
            return f"{account} can't sign in, and its name can't be had either: {statuses}"
        return None

    def _is_signed_in(self, account):
        answer = self.ask("session", "GET", "/users/me", token=account.token)
        return answer is not None and answer.status == 200

    def _is_free(self, name):
        """Returns whether a name is free, perhaps after a wait.

        Without patience a name counts as free when its claim is about to end.
        """
        until = time.monotonic() + FREE_S
        while (answer := self.register(name, "free name")) is None or answer.status == 409:
            if answer is not None and not self.patient:
                return self._claim_ends(name)
            if time.monotonic() > until:
                return False
            time.sleep(1)
        return answer.status == 201

    def _claim_ends(self, name):
        """Returns whether a registration under way claims the name, for half a minute at most."""
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
    """Kills Redis so many times, about once a second, each time after it is back.

    Returns a list of what is wrong.
    """
    source = random.Random(seed)
    for i in range(1, kills + 1):
        # This waits for nothing: it is the pause before the next kill.
        time.sleep(source.uniform(0.2, 1.2))
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


def cut_off_replica(cluster, node, seconds):
    """Cuts off the replica of a primary, so that it misses what the primary writes.

    Returns the replica, which is stopped.
    """
    port = node.client.info("replication")["slave0"]["port"]
    replica = next(one for one in cluster.nodes if one.port == port)
    replica.kill(signal.SIGSTOP)
    node.client.execute_command("CLIENT KILL", "TYPE", "replica")
    time.sleep(seconds)
    return replica


def kill_primaries(server, kills, seed, say):
    """Kills a primary of a cluster so many times, each time after the cluster is well again.

    Each second time its replica was cut off before: then the primary's last writes are lost.
    Returns a list of what is wrong.
    """
    source, cluster = random.Random(seed), server.cluster
    for i in range(1, kills + 1):
        time.sleep(source.uniform(0.2, 1.2))
        node = source.choice(cluster.primaries())
        late = cut_off_replica(cluster, node, source.uniform(0, 0.5)) if i % 2 else node
        node.kill()
        late.kill(signal.SIGCONT)
        wait_until(lambda: node not in cluster.primaries(), 60)  # noqa: B023
        node.start()
        wait_until(cluster.is_well, 60)
        if server.process.poll() is not None:
            return [f"the server ended after kill {i}:\n{server.log[-2000:]}"]
        if i % 10 == 0:
            say(f"{i} kills")
    return []


def registrations(
    kills, seed=None, applicants=6, patient=True, pause_s=0, say=print, on_cluster=False, replicas=0
):
    """Kills Redis under a stream of registrations; returns (violations, {outcome: count})."""
    server = new_server(2, on_cluster, f"?replicas={replicas}")
    kill = kill_primaries if on_cluster else kill_redis
    seeds, going = (f"{seed} {i}" for i in range(applicants)), [True]
    people = [Applicant(server, one, patient, pause_s) for one in seeds]

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
        say("no more kills; checking all accounts")
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
    """Checks all accounts at rest; returns [(name of the check, what is wrong)]."""
    with ThreadPoolExecutor(32) as pool:
        looks = [(person, account) for person in people for account in person.accounts]
        found = pool.map(lambda pair: pair[0].wrong(pair[1]), looks)
        wrong = list(itertools.islice(filter(None, found), ENOUGH))
        pool.shutdown(cancel_futures=True)
    return [("accounts_are_as_they_were_acknowledged", what) for what in wrong] + [
        ("answers_are_as_documented", what) for person in people for what in person.surprises
    ]


# ---- command line --------------------------------------------------------------------------------


def options_of(arguments):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", nargs="?", choices=("games", "registrations"), default="games")
    parser.add_argument(
        "--games", type=int, default=1000, help="games that must end (default: %(default)s)"
    )
    parser.add_argument("--players", type=int, default=60, help="phones (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=4, help="workers of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--faults", default="", help="kinds of failures, separated by commas (default: all)"
    )
    parser.add_argument(
        "--queues", default=",".join(QUEUES), help="queues to play in (default: %(default)s)"
    )
    parser.add_argument("--cluster", action="store_true", help="play on a cluster of 3 + 3 nodes")
    parser.add_argument(
        "--replicas",
        type=int,
        default=0,
        help="replicas that must have an account before its acknowledgement (default: none)",
    )
    parser.add_argument(
        "--every", type=float, default=1, help="seconds between failures (default: %(default)s)"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=200,
        help="kills of Redis under registrations (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", default=secrets.token_hex(3), help="seed of the failures (default: a new one)"
    )
    parser.add_argument(
        "--json", type=Path, help="write transcripts, faults, games and violations to this file"
    )
    options = parser.parse_args(arguments)
    known = CLUSTER_KINDS if options.cluster else KINDS
    options.faults = options.faults.split(",") if options.faults else list(known)
    if unknown := set(options.faults) - set(known):
        parser.error(f"--faults: {', '.join(unknown)}; expected some of {','.join(known)}")
    options.queues = options.queues.split(",")
    if unknown := set(options.queues) - set(QUEUES):
        parser.error(f"--queues: {', '.join(unknown)}; expected some of {','.join(QUEUES)}")
    return options


def main(arguments=None):
    """Runs a command; exits with 1 if a check failed."""
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
            {name: QUEUES[name] for name in options.queues},
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
