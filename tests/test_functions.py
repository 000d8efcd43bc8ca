"""The functions of trivia.lua: what each returns, writes and publishes.

Most run twice, or by several callers at once. The key table is compared with what a played game
stores. Two state machines run the functions in random order.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import operator
import random
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from conftest import (
    PASSWORD,
    ROOT,
    Phone,
    Server,
    at_once,
    change_state,
    debian_program,
    edited_schema,
    play_all,
    stored_game,
    wait_until,
)
from nodes import Cluster, Node, free_ports

sys.path.insert(0, str(ROOT))

import trivia
from trivia import LIBRARY, Keys

QUIZ = "7:0123 8:1032 9:10"  # the right choices are 0, 1 and 1
RIGHT = {1: 0, 2: 1, 3: 1}
NOBODY = ""  # a caller that is no worker, so that all events are published
ANSWER_MS, REVEAL_MS, SEAT_MS, TURN = 60_000, 20_000, 30_000, 3
LOBBY = (
    Keys.seats,
    Keys.queue("q"),
    Keys.due,
    Keys.forming,
    Keys.workers,
    Keys.playing,
    Keys.lobby_clock,
    Keys.hidden,
    Keys.bots("q"),
)


GAME_FUNCTIONS = {
    "create_game",
    "advance",
    "answer",
    "exit_game",
    "stop_game",
    "enter_game",
    "relay",
    "finish_game",
}


def value_of(reply):
    """Returns the phase of a reply, which may be ['settle', field, value, ...]."""
    return reply[0] if isinstance(reply, list) and reply[0] == "settle" else reply


def without_events(reply, convert):
    """Converts the value of a reply, and keeps its events."""
    if isinstance(reply, list) and reply[:1] == ["events"]:
        return ["events", convert(reply[1]), *reply[2:]]
    return convert(reply)


class Store(Node):
    """A cluster of one node, in which functions run.

    It refuses a function that uses keys or channels of several hash tags.
    """

    def __init__(self):
        super().__init__("--cluster-enabled", "yes", "--cluster-port", free_ports(1)[0])

    def load(self):
        self.client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: "cluster_state:ok" in Cluster._info(self))
        self.client.function_load(LIBRARY.text, replace=True)
        return self

    def call(self, name, keys, *args):
        return self.client.fcall(LIBRARY.function(name), len(keys), *keys, *args)

    def run(self, name, keys, *args):
        """Runs a function. Tests pass the caller of a game function as the last argument."""
        if name in GAME_FUNCTIONS:
            args = args[-1], *args[:-1]
        return getattr(self, f"run_{name}", functools.partial(self.call, name))(keys, *args)

    def run_create_game(self, keys, caller, queue, rules, quiz, start_ms, start, *people):
        *numbers, on_exit, kind = rules.split(" ")
        seats = [people[i : i + 4] for i in range(0, len(people), 4)]
        people = [[uid, name, 1658.123, 480.123] for uid, name, *_ in seats]
        plan = trivia.write_plan(queue, [*map(int, numbers), on_exit, kind], quiz, people)
        connections = [item for _, _, conn, turn in seats for item in (conn, turn)]
        return self.call("create_game", keys, caller, plan, start_ms, start, *connections)

    def run_advance(self, keys, caller):
        game, deadlines, clock = keys
        reply = self.call("advance", (deadlines, clock, game), caller, 0, 0)
        return without_events(reply, lambda found: value_of(found[0][0]))

    def run_answer(self, keys, caller, *answer):
        game, deadlines, clock = keys
        reply = self.call("answer", (deadlines, clock, game), caller, *answer)
        return without_events(reply, operator.itemgetter(0))

    def run_exit_game(self, keys, *args):
        return without_events(self.call("exit_game", keys, *args), value_of)

    def run_stop_game(self, keys, *args):
        return value_of(self.call("stop_game", keys, *args))

    def run_finish_game(self, keys, caller, ranking, ttl, erased):
        return self.call("finish_game", keys, caller, ranking, ttl, *erased.split())

    def run_heartbeat(self, keys, worker, *silent):
        return self.beat(worker, 4, *silent, keys=keys)[:3]

    def beat(self, worker, serves, *silent, keys=(Keys.workers,)):
        keys = *keys, Keys.libraries, Keys.shards
        return self.call("heartbeat", keys, worker, LIBRARY.digest, serves, *silent)

    def run_release(self, keys, uid, game, early=0):
        held = 5000, 20_000
        return self.call("release", (*keys, Keys.quits(uid)), game, *held, uid, early)

    def due(self, keys, ahead=0, most=500):
        """What `advance` returns about the games of a shard: {game: ms until it is due}."""
        outcomes, *found = self.call("advance", keys, NOBODY, ahead, most)
        assert outcomes == []
        return trivia.pairs_to_dict(found)

    def run_apply_result(self, keys, *args):
        applied, self.dropped = self.call("apply_result", keys, *args)
        return applied

    def run_open_session(self, keys, *args):
        reply = self.call("open_session", keys, *args)
        return reply and reply[:2]

    def now(self):
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000


def flat(fields):
    """Returns a stored game as {name: text}, or {}. Fields of player I are named nameI."""
    if not fields:
        return {}
    plan, state = trivia.parse_plan(fields["plan"]), trivia.parse_state(fields["state"])
    logs = [text.split() for number, text in sorted(fields.items()) if number.isdigit()]
    found = {
        "queue": plan["queue"],
        "rules": " ".join(map(str, plan["rules"])),
        "quiz": plan["quiz"],
        "players": len(plan["players"]),
    }
    found |= {name: value for name, value in state.items() if name != "players"}
    for i, ((uid, name, *_), player) in enumerate(
        zip(plan["players"], state["players"], strict=True), 1
    ):
        found |= {
            f"uid{i}": uid,
            f"name{i}": name,
            f"conn{i}": player.get("conn", ""),
            f"turn{i}": player.get("turn", ""),
            f"gone{i}": "left" if player.get("left") else player.get("kept", ""),
            f"seq{i}": player.get("seq", ""),
            f"score{i}": player["score"],
            f"ans{i}": " ".join(map(str, player.get("answer", ()))),
            f"log{i}": "".join(f"{log[i - 1]} " for log in logs),
        }
    return {name: str(value) for name, value in found.items()}


def set_flat(client, key, fields):
    """Changes fields of a stored game, named as in flat()."""
    plan, state = client.hmget(key, "plan", "state")
    plan, state = trivia.parse_plan(plan), trivia.parse_state(state)
    for name, value in fields.items():
        field, number = re.fullmatch(r"([a-z]+)(\d*)", name).groups()
        if field == "rules":
            *numbers, on_exit, kind = value.split(" ")
            plan["rules"] = [*map(int, numbers), on_exit, kind]
        elif not number:
            state[field] = value
        else:
            set_player(state["players"][int(number) - 1], field, value)
    written = {"plan": trivia.write_plan(**plan), "state": trivia.write_state(state)}
    client.hset(key, mapping=written)


def set_player(player, field, value):
    if field == "ans":
        player["answer"] = [int(part) for part in value.split()]
    elif field == "gone":
        player.pop("conn", None)
        player |= {"left": True} if value == "left" else {"kept": int(value)}
    elif field == "conn" and not value:
        player.pop("conn", None)
    else:
        player[field] = value


@pytest.fixture(scope="module")
def module_store():
    with contextlib.closing(Store()) as store:
        yield store.start().load()


@pytest.fixture
def store(module_store):
    """An empty store, with all functions loaded."""
    module_store.client.flushall()
    return module_store


def question_in(coming):
    """Returns the question that an event names, "ROUND NUMBER ORDER MS", or ""."""
    return coming.partition(":")[2].replace(":", " ")


class Worker:
    """Subscribes to the channels of a worker, and sends its heartbeats."""

    def __init__(self, store, name=None):
        self.store, self.id, self.numbers = store, name or secrets.token_hex(3), itertools.count(1)
        self.coming = {}  # (game, connection) -> (`seq`, "ROUND NUMBER ORDER MS") of a question
        self.channels = [name for name in Keys.channels(self.id, 4) if name.startswith("worker:")]
        self.pubsub = store.client.pubsub()
        for channel in self.channels:
            self.pubsub.ssubscribe(channel)
            assert self.pubsub.get_message(timeout=10)["type"] == "ssubscribe"
        self.beat()

    def beat(self, *dead):
        return self.store.run("heartbeat", (Keys.workers,), self.id, *dead)

    def connection(self):
        return f"{self.id}.{next(self.numbers)}"

    def events(self):
        """Returns what was published since the last call, in order.

        An event is (kind, game, {connection: seq}, body).
        """
        found, mark = [], secrets.token_hex(8)
        # The mark arrives after everything that was published before it.
        self.store.client.spublish(self.channels[0], mark)
        while (message := self.pubsub.get_message(timeout=10))["data"] != mark:
            head, body = message["data"].split("\n", 1)
            kind, game, moved, coming, *targets = head.split(" ")
            assert game == "-" or re.fullmatch(r"\d{10}\.\d{6}", moved), head
            pairs = (target.split(":") for target in targets)
            seqs = {f"{self.id}.{n}": int(seq) for n, seq in pairs}
            found += [*self._shown_before(game, coming, seqs), (kind, game, seqs, body)]
            if coming != "-":
                assert re.fullmatch(r"\d+:\d+:\d+:\d+:\d+", coming), head
                self.expect(game, coming, seqs)
        return found + self._shown_now()

    def expect(self, game, coming, seqs):
        """Notes the next question of these connections, "WAIT:ROUND:NUMBER:ORDER:MS"."""
        question = question_in(coming)
        self.coming |= {(game, conn): (seq + 1, question) for conn, seq in seqs.items()}

    def _shown_before(self, game, coming, seqs):
        """Yields, as an event, the question whose `seq` a later event counts."""
        given = {conn: self.coming.get((game, conn), (seq, "")) for conn, seq in seqs.items()}
        new = question_in(coming)
        if any(its < seqs[conn] and question != new for conn, (its, question) in given.items()):
            (question,) = {text for _, text in given.values() if text}
            yield "question", game, self._taken(game, question), question
        for conn in seqs:
            self.coming.pop((game, conn), None)

    def _taken(self, game, question):
        known = [
            key for key, (_, text) in self.coming.items() if (key[0], text) == (game, question)
        ]
        return {key[1]: self.coming.pop(key)[0] for key in known}

    def _shown_now(self):
        """Returns, as events, the questions that are open in Redis now."""
        shown = []
        for game, question in {(game, text) for (game, _), (_, text) in self.coming.items()}:
            state = stored_game(self.store.client, game).get("state", {"phase": ""})
            if state["phase"] == "question" and question.startswith(f"{state['round']} "):
                shown.append(("question", game, self._taken(game, question), question))
        return shown

    def kinds(self):
        return [kind for kind, *_ in self.events()]

    def die(self):
        self.pubsub.close()
        # Redis has to notice that the connection is closed.
        wait_until(lambda: not self.store.client.pubsub_shardnumsub(self.channels[0])[0][1])


@pytest.fixture
def workers(store):
    """Makes workers that are subscribed."""
    made = []

    def make():
        made.append(Worker(store))
        return made[-1]

    yield make
    for worker in made:
        worker.pubsub.close()


@pytest.fixture
def worker(workers):
    return workers()


# ---- contracts

SOURCE = (ROOT / "trivia.lua").read_text("utf-8")
KINDS = set(re.findall(r"^    ([a-z]+):\{", trivia.__doc__, re.M))  # the first word of each key
FUNCTIONS = re.findall(r"^function functions\.(\w+)\(", SOURCE, re.M)


def contract(name):
    """Returns the comment in front of a function, and its body."""
    before, _, after = SOURCE.partition(f"\nfunction functions.{name}(")
    assert after, name
    comment = []
    for line in reversed(before.splitlines()):
        if not line.startswith("--"):
            break
        comment.insert(0, line)
    return "\n".join(comment) + "\n", after.partition("\nend\n")[0]


@functools.cache
def declared(name, kind):
    return re.findall(rf"^-- {kind} (\S+)", contract(name)[0], re.M)


def unpacked(name, kind):
    """Returns the names that a function takes from keys or args.

    The function may do so itself, or call a helper first that does.
    """
    body = contract(name)[1]
    for helper in ("read_search", "open_room", "read_offer"):
        if f"{helper}(keys, args)" in body:
            found = re.search(rf"local function {helper}\(.*?^end$", SOURCE, re.M | re.S)
            body = found[0] + body
    listed = re.findall(rf"local ([\w, ]+) = (?:\w+\(.*\), )?unpack\({kind}(?:, \d+)?\)", body)
    names = [one.strip() for names in listed for one in names.split(",")]
    names = [one for one in names if one not in ("room", "offer")]
    names += [one for _, one in sorted(re.findall(rf"{kind}\[(\d+)\]()", body))]
    return names


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_a_contract_that_says_what_it_returns(name):
    comment, _ = contract(name)
    assert comment.startswith(f"-- {name}: ") and "-- Returns " in comment
    assert declared(name, "KEYS")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_the_keys_and_arguments_of_its_contract(name):
    body = contract(name)[1]
    keys = [key for key in declared(name, "KEYS") if key != "..."]
    taken = unpacked(name, "keys")
    # Game functions pass `keys` to new_call, which takes the deadlines and the clock.
    assert keys[: len(taken)] == taken
    assert len(keys) == len(taken) or "new_call(keys" in body or "new_call({'', " in body
    for argument in declared(name, "ARGS"):
        if argument == "...":
            assert re.search(r"unpack\(args, |#args|ipairs\(args\)", body)
        else:
            assert argument in unpacked(name, "args") or re.search(r"args\[\d+\]", body)


def test_every_function_is_registered():
    registered = re.findall(r"^register\('(\w+)'[,)]", SOURCE, re.M)
    assert sorted(registered) == sorted(FUNCTIONS) and len(FUNCTIONS) > 25


def test_a_function_touches_only_keys_that_it_is_given():
    named = re.findall(r"call\('(\w+)', ['(]", SOURCE)
    assert set(named) == {"CLUSTER", "PUBSUB"}, named


def test_the_server_calls_each_function_with_the_keys_and_arguments_of_its_contract(played):
    seen = set()
    for full_name, keys, arguments in played.calls:
        name = full_name.removesuffix(f"_{LIBRARY.digest}")
        for kind, given in (("KEYS", keys), ("ARGS", arguments)):
            listed = declared(name, kind)
            fixed = [one for one in listed if one != "..."]
            assert len(given) >= len(fixed), (name, given)
            assert "..." in listed or len(given) == len(fixed), (name, given)
        for one, key in zip(declared(name, "KEYS"), keys, strict=False):
            assert one not in KINDS or key.startswith(f"{one}:"), (name, one, key)
        seen.add(name)
    assert set(FUNCTIONS) - seen <= {"begin_format"} | SIGN_IN | CONSOLE


# Functions that test_sign_in.py calls: it has an OpenID provider and a mail server.
SIGN_IN = {
    "apply_merge",
    "begin_merge",
    "end_merge",
    "merge_history",
    "merge_seen",
    "postpone_chore",
    "replace_player",
    "reset_password",
    "set_code",
    "try_code",
    "unlink_identity",
    "withdraw_guest",
}
# Functions that test_console.py calls.
CONSOLE = {
    "handle_report",
    "replay_event",
    "apply_repair",
    "begin_repair",
    "end_repair",
    "flag_question",
    "rate_question",
    "swap_field",
    "stop_game",
}
CONSOLE_KEYS = {
    "handled:{reports}",
    "deliveries:{events}",
    "due:{events}",
    "dead:{events}",
    "apps:{metrics}",
    "audit:{ops}",
    "flagged:{bank}",
    "flags:{bank}:NUMBER",
    "levels:{bank}",
    "mended:{UID}",
    "refused:{ops}",
    "retired:{bank}",
    "switches:{ops}",
}
SIGN_IN_KEYS = {
    "chores:{chores}",
    "due:{chores}",
    "codes:{UID}",
    "merged:{UID}",
    "merges:{UID}",
    "nonce:{DIGEST}",
    "provider:{NAME}",
}


def test_luacheck_finds_nothing():
    program = debian_program("luacheck", "lua-check")
    options = [
        "--std",
        "lua51",
        "--globals",
        "redis",
        "cjson",
        "struct",
        "bit",
        "--max-line-length",
        "100",
    ]
    done = subprocess.run(
        [program, "trivia.lua", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_each_code_of_a_refused_answer_has_a_text():
    codes = re.search(r"'ok', or the code of what is wrong: (.*?)\. Then", SOURCE, re.S)
    names = re.findall(r"\w+_\w+", codes[1])
    assert len(names) == 5 and set(names) <= trivia.REFUSALS.keys()


# ---- the library


def test_a_new_user_is_written_only_if_the_key_is_free(store):
    key = Keys.user("u1")
    create = lambda name, until=2**50: store.run(
        "create_user", (key,), "s", 1000, "addr", until, "username", name
    )
    assert create("late", store.now() - 1) is None and not store.client.exists(key)
    outcomes = at_once(8, lambda i: create(f"n{i}"))
    [first] = [i for i, outcome in enumerate(outcomes) if outcome]
    fields = store.client.hgetall(key)
    assert fields["username"] == f"n{first}" and int(fields["session:s"]) == outcomes[first]
    assert int(fields[":created"]) + 1000 == outcomes[first] and fields[":from"] == "addr"


def test_a_guest_is_created_once_and_is_provisional_until_their_name_is_claimed(store):
    key, merged = Keys.user("u1"), Keys.merged("u1")
    create = lambda name: store.run(
        "create_guest", (key, merged), "s", 1000, "addr", 5000, "proof", name
    )
    withdraw = lambda guest: store.run("withdraw_guest", (key,), guest)
    store.client.hset(merged, "username", "old")
    assert create("merged") == ["account"] and not store.client.exists(key)
    store.client.delete(merged)
    outcomes = at_once(8, lambda i: create(f"n{i}"))
    assert sorted(outcome[0] for outcome in outcomes) == ["begun"] * 7 + ["created"]
    [(name, new, expires)] = [
        (f"n{i}", *more) for i, (outcome, *more) in enumerate(outcomes) if more
    ]
    assert 0 <= store.now() + 5000 - int(new) < 4000
    assert store.client.hgetall(key) == {
        "username": name,
        ":guest": "proof",
        ":new": new,
        ":created": str(expires - 1000),
        ":from": "addr",
        "session:s": str(expires),
    }
    enter = lambda: store.run("open_session", (key,), "t", 9, 9, "addr", ":guest", "proof")
    assert enter() is None
    # The time for the creation is over, or the clock was set back.
    for late in (store.now() - 1, store.now() + 60_000):
        store.client.hset(key, ":new", late)
        assert create("other") == ["abandoned", str(late), name]
    assert withdraw(new) == 0 and store.client.exists(key)
    store.client.hdel(key, ":new")
    assert create("other") == ["known"] and store.client.hget(key, "username") == name
    assert enter() and withdraw(new) == 0
    store.client.hdel(key, ":guest")
    assert create("other") == ["account"]
    store.client.delete(key)
    _, new, _ = create("again")
    assert [withdraw(new) for _ in range(2)] == [1, 0] and not store.client.exists(key)


def test_a_format_is_written_once_and_deletes_the_given_keys(store):
    old = "old:{lobby}"
    store.client.set(old, 1)
    assert store.run("begin_format", (Keys.format, old), 2) == 1
    assert store.client.get(Keys.format) == "2" and not store.client.exists(old)
    store.client.set(old, 1)
    assert store.run("begin_format", (Keys.format, old), 3) == 0
    assert store.client.get(Keys.format) == "2" and store.client.exists(old)


def test_metrics_of_calls_are_added_up(store):
    for _ in range(2):
        assert store.run("add_metrics", (Keys.metrics,), "a", 1, "b x", 0.5) == 2
    assert store.client.hgetall(Keys.metrics) == {"a": "2", "b x": "1"}


def test_a_server_loads_lost_functions_again_without_a_restart(make_server):
    server = make_server()
    ann, bob = server.pair()
    server.redis.function_flush()
    assert [end["reason"] for end in play_all([ann, bob])] == ["finished"] * 2
    assert LIBRARY.name in str(server.redis.function_list())
    server.redis.function_flush()
    server.redis.flushall()
    assert server.register()["user"]["games"] == 0


def test_a_library_is_deleted_when_no_living_worker_uses_it(make_server):
    server = make_server()
    for name in ("aaaaaaaa", "bbbbbbbb"):
        text = (ROOT / "trivia.lua").read_text("utf-8").replace("DIGEST", name)
        server.redis.function_load(text)
    server.redis.hset(Keys.libraries, "another", "aaaaaaaa")

    async def drop():
        redis = trivia.Redis(f"unix://{server.data / 'd' / 'redis.sock'}", "", lambda events: None)
        await redis.connect()
        await redis.drop_unused_libraries()
        await redis.close()

    asyncio.run(drop())
    listed = str(server.redis.function_list())
    assert "trivia_aaaaaaaa" in listed and LIBRARY.name in listed
    assert "trivia_bbbbbbbb" not in listed
    ann, bob = server.pair()
    assert [end["reason"] for end in play_all([ann, bob])] == ["finished"] * 2


# ---- questions

BANK = (Keys.bank, Keys.fingerprints, Keys.ids)


def rows(store):
    """Returns what the keys of the bank hold."""
    return [store.client.hgetall(key) for key in BANK]


def test_a_question_is_added_once_and_corrected_by_an_update(store):
    def put(digest, text, mode="add", given=""):
        return store.run("put_question", BANK, digest, given, text, mode)

    assert put("a", "one") == ["added"]
    assert put("b", "two", given="x") == ["added"]
    assert put("a", "one") == put("b", "two", "update", "x") == put("b", "two") == ["duplicate"]
    before = rows(store)
    assert before == [{"0": "one", "1": "two"}, {"a": "a", "b": "x"}, {"a": "0 a", "x": "1 b"}]
    # A question changes only by an update, and not into one that exists already.
    assert put("a", "one!") == ["differs", "a", "one"]
    assert put("c", "three", given="x") == ["differs", "x", "two"]
    for mode in ("add", "update", "ship"):
        assert put("a", "one", mode, "x") == ["taken", "a"]
        assert put("b", "two", mode, "y") == ["taken", "x"]
    assert rows(store) == before
    # A correction adds a row, and the old row stays.
    assert put("c", "three", "update", "x") == ["changed", "x", "two"]
    assert put("c", "three", "update", "x") == put("c", "three") == ["duplicate"]
    assert put("a", "one!", "update") == ["changed", "a", "one"]
    assert rows(store) == [
        {"0": "one", "1": "two", "2": "three", "3": "one!"},
        {"a": "a", "c": "x"},
        {"a": "3 a edited", "x": "2 c edited"},
    ]


def test_a_question_without_a_given_id_keeps_its_id_when_it_is_corrected(store):
    def put(digest, text, mode="add", given=""):
        return store.run("put_question", BANK, digest, given, text, mode)

    assert put("a", "wrong") == ["added"]
    assert put("b", "right", "update", "a") == ["changed", "a", "wrong"]
    for mode in ("add", "update", "ship"):  # the old file must not bring the mistake back
        assert put("a", "wrong", mode) == ["differs", "a", "right"]
    assert put("b", "right") == ["duplicate"]
    assert len(rows(store)[0]) == 2


def test_a_shipped_question_is_corrected_unless_the_operator_has_edited_it(store):
    def put(digest, text, mode, given):
        return store.run("put_question", BANK, digest, given, text, mode)

    assert put("a", "one", "ship", "a") == put("b", "two", "ship", "b") == ["added"]
    assert put("c", "one, shipped", "ship", "a") == ["changed", "a", "one"]
    assert put("d", "two, edited", "update", "b") == ["changed", "b", "two"]
    assert put("e", "two, shipped", "ship", "b") == ["differs", "b", "two, edited"]
    assert rows(store)[2] == {"a": "2 c", "b": "3 d edited"}


def test_questions_that_are_added_at_once_get_a_number_each(store):
    outcomes = at_once(
        12,
        lambda i: [
            store.run("put_question", BANK, f"d{i // 2}-{j}", "", f"q{i // 2}-{j}", "add")
            for j in range(10)
        ],
    )
    assert sum(outcome.count(["added"]) for outcome in outcomes) == 60
    bank, fingerprints, ids = rows(store)
    numbers = {name: entry.split(" ")[0] for name, entry in ids.items()}
    assert sorted(map(int, numbers.values())) == sorted(map(int, bank)) == list(range(60))
    assert fingerprints == {digest: digest for digest in ids}
    assert all(bank[number] == f"q{digest[1:]}" for digest, number in numbers.items())


# ---- accounts

CLAIM_KEY, RESERVED_KEY = Keys.unique("ann"), Keys.reserved("ann")


def claim(store, uid, void="", operation="op", ms=30_000):
    return store.run("claim", (CLAIM_KEY, RESERVED_KEY), "ann", uid, operation, ms, void)


def settle_claim(store, text, confirm):
    return store.run("settle_claim", (CLAIM_KEY,), "ann", text, confirm)


def standing(store):
    return store.client.hget(CLAIM_KEY, "ann")


def test_a_claim_belongs_to_one_user_until_it_expires(store):
    outcome, text = claim(store, "u1")
    assert outcome == "claimed" and text == standing(store)
    uid, operation, until = text.split(" ")
    assert (uid, operation) == ("u1", "op") and 0 <= store.now() + 30_000 - int(until) < 5000
    assert claim(store, "u2") == ["pending"] == claim(store, "u2", "u1")
    store.client.hset(CLAIM_KEY, "ann", f"u1 op {store.now() - 1}")
    assert claim(store, "u2") == ["held", standing(store)]
    assert claim(store, "u2", "u1 op 123") == ["held", standing(store)]  # not the stored claim
    assert claim(store, "u2", standing(store))[0] == "claimed" and standing(store).startswith("u2 ")
    assert store.client.ttl(CLAIM_KEY) == -1


@pytest.mark.parametrize("before", ["u1 old", "u1 old 5", "u1 old 9999999999999"])
def test_a_later_claim_of_a_user_replaces_their_earlier_one(store, before):
    """The earlier operation can't release it then, and no other user can replace it."""
    store.client.hset(CLAIM_KEY, "ann", before)
    outcome, text = claim(store, "u1", operation="new")
    assert outcome == "claimed" and text.startswith("u1 new ") and standing(store) == text
    assert (
        settle_claim(store, before, 0) == settle_claim(store, before, 1) == 0
        and standing(store) == text
    )
    assert claim(store, "u2", before) == ["pending"]


def test_a_confirmed_claim_is_replaced_only_by_a_call_that_names_it(store):
    """The caller has checked that the user is erased, or has another value now."""
    store.client.hset(CLAIM_KEY, "ann", "u2 op")
    assert (
        claim(store, "u3")
        == claim(store, "u3", "u1 op 1")
        == claim(store, "u3", "u2 op 1")
        == ["held", "u2 op"]
    )
    assert claim(store, "u3", "u2 op")[0] == "claimed" and standing(store).startswith("u3 ")
    # The claim that the second caller has checked is replaced already.
    assert claim(store, "u4", "u2 op") == ["pending"]


def test_a_claim_that_was_confirmed_meanwhile_is_not_replaced(store):
    expired = f"u1 op {store.now() - 1}"
    store.client.hset(CLAIM_KEY, "ann", expired)
    assert claim(store, "u2") == ["held", expired]
    assert settle_claim(store, expired, 1) == 1
    assert claim(store, "u2", expired) == ["held", "u1 op"]


@pytest.mark.parametrize("void", ["", "u0 op"])
def test_a_value_that_a_user_gave_up_is_reserved_for_them(store, void):
    if void:
        store.client.hset(CLAIM_KEY, "ann", void)
    store.client.set(RESERVED_KEY, "u1")
    assert claim(store, "u2", void) == ["reserved"] and standing(store) == (void or None)
    assert claim(store, "u1", void)[0] == "claimed"
    store.client.set(RESERVED_KEY, trivia.NOBODY)
    assert claim(store, "u1") == claim(store, "u2") == ["reserved"]


@pytest.mark.parametrize("void", ["", "u0 op 5", "u0 op"])
def test_of_several_claims_at_once_one_wins(store, void):
    if void:
        store.client.hset(CLAIM_KEY, "ann", void)
    outcomes = [outcome[0] for outcome in at_once(12, lambda i: claim(store, f"u{i + 1}", void))]
    assert outcomes.count("claimed") == 1 and outcomes.count("pending") == 11
    assert standing(store).startswith(f"u{outcomes.index('claimed') + 1} ")


@pytest.mark.parametrize(
    "held, confirm, returned, after",
    [
        ("u1 op 123", 1, 1, "u1 op"),
        ("u1 op 123", 0, 1, None),
        ("u1 op", 1, 0, "u1 op"),
        ("u1 op", 0, 0, "u1 op"),
        ("u1 on 123", 0, 0, "u1 on 123"),
        ("u2 op 123", 1, 0, "u2 op 123"),
        (None, 1, 0, None),
        (None, 0, 0, None),
    ],
)
def test_a_claim_is_confirmed_or_released_only_if_it_is_as_it_was_read(
    store, held, confirm, returned, after
):
    if held:
        store.client.hset(CLAIM_KEY, "ann", held)
    assert settle_claim(store, "u1 op 123", confirm) == returned and standing(store) == after
    assert settle_claim(store, "u1 op 123", confirm) == 0 and standing(store) == after


def make_user(store, uid="u1", **fields):
    store.client.hset(Keys.user(uid), mapping={"username": uid, "password": "hash"} | fields)
    return Keys.user(uid)


def sessions(store, key):
    return {name[8:] for name in store.client.hkeys(key) if name.startswith("session:")}


def open_session(store, name, most=3, ttl=1000, password="hash"):
    proof = "password", password
    return store.run("open_session", (Keys.user("u1"),), name, ttl, most, "addr", *proof)


def test_a_session_is_opened_only_for_a_user_with_the_password_that_was_checked(store):
    assert open_session(store, "s") is None and not store.client.exists(Keys.user("u1"))
    key = make_user(store)
    assert open_session(store, "s", password="older") is None and not sessions(store, key)
    assert open_session(store, "s") and sessions(store, key) == {"s"}


def test_a_new_session_ends_expired_sessions_and_the_oldest_beyond_the_limit(store):
    now = int(store.client.time()[0])
    key = make_user(store, **{"session:old": now - 1, "session:a": now + 10, "session:b": now + 20})
    expires, ended, *_ = open_session(store, "new")
    assert now + 1000 <= expires <= now + 1010 and ended == 1
    assert sessions(store, key) == {"a", "b", "new"} and store.client.hget(key, ":from") == "addr"
    assert open_session(store, "newer", ttl=2000)[1] == 1
    assert sessions(store, key) == {"b", "new", "newer"}
    assert open_session(store, "newest", most=1, ttl=3000)[1] == 3
    assert sessions(store, key) == {"newest"}
    assert open_session(store, "newest", most=1, ttl=3000)[1] == 1
    assert sessions(store, key) == {"newest"}


def test_sessions_that_are_opened_at_once_keep_to_the_limit(store):
    key = make_user(store)
    assert all(at_once(12, lambda i: open_session(store, f"s{i}", most=5)))
    assert len(sessions(store, key)) == 5


@pytest.mark.parametrize(
    "left, ttl, found, renewed",
    [
        (None, 1000, False, False),
        (-1, 1000, False, False),
        (0, 1000, False, False),
        (1000, 1000, True, False),
        (905, 1000, True, False),
        (895, 1000, True, True),
        (10, 1000, True, True),
        (2_592_000 - 86_000, 2_592_000, True, False),
        (2_592_000 - 86_500, 2_592_000, True, True),
    ],
)
def test_a_session_is_found_and_extended_once_a_day(store, left, ttl, found, renewed):
    now = int(store.client.time()[0])
    key = make_user(store, wins=3, **({} if left is None else {"session:s": now + left}))
    fields = store.run("authenticate", (key,), "s", ttl, 0)
    assert (fields is not None) == found
    if found:
        user = dict(zip(fields[::2], fields[1::2]))
        assert user["username"] == "u1" and user["wins"] == "3"
        assert user == store.client.hgetall(key)
        assert (int(user["session:s"]) >= now + ttl) == (renewed or left == ttl)
        assert store.run("authenticate", (key,), "s", ttl, 0) == fields or renewed


def test_each_connection_of_a_user_gets_the_next_turn(store):
    key = make_user(store, **{"session:s": 2**40})
    turns = [
        fields[fields.index(":turn") + 1]
        for fields in at_once(8, lambda i: store.run("authenticate", (key,), "s", 1000, 1))
    ]
    assert sorted(turns) == list("12345678") and store.client.hget(key, ":turn") == "8"
    assert (
        store.run("authenticate", (key,), "wrong", 1000, 1) is None
        and store.client.hget(key, ":turn") == "8"
    )


def test_a_change_of_a_user_sets_and_removes_fields_and_ends_no_session(store):
    key = make_user(store, avatar="x", wins=1, **{"session:a": 1, "session:b": 2})
    for _ in range(2):
        assert store.run("change_user", (key,), 0, "", "avatar", "\0", "email", "e") == 1
        found = store.client.hmget(key, "avatar", "email", "wins", "username")
        assert found == [None, "e", "1", "u1"]
        assert sessions(store, key) == {"a", "b"}


@pytest.mark.parametrize("spared, left", [("b", {"b"}), ("z", set())])
def test_a_new_password_ends_all_sessions_but_one(store, spared, left):
    key = make_user(store, password="old", **{"session:a": 1, "session:b": 2, "session:c": 3})
    assert store.run("change_password", (key,), spared, "older", "new") == 0
    assert sessions(store, key) == {"a", "b", "c"}
    assert store.run("change_password", (key,), spared, "old", "new") == 1
    assert store.client.hget(key, "password") == "new" and sessions(store, key) == left
    assert store.run("change_password", (key,), spared, "old", "newer") == 0
    assert store.run("change_password", (Keys.user("gone"),), spared, "old", "new") == 0
    assert not store.client.exists(Keys.user("gone"))


def test_all_sessions_of_a_user_end_and_nothing_else(store):
    key = make_user(store, password="p", **{"session:a": 1, "session:b": 2})
    for _ in range(2):
        assert store.run("end_sessions", (key,)) == 1
        assert sessions(store, key) == set() and store.client.hget(key, "password") == "p"


def test_of_several_changes_at_once_from_the_same_state_one_is_made(store):
    key = make_user(store, avatar="a")
    outcomes = at_once(
        12, lambda i: store.run("change_user", (key,), 1, "", "avatar", "a", "avatar", f"a{i}")
    )
    assert (
        sorted(outcomes) == [-1] * 11 + [1]
        and store.client.hget(key, "avatar") == f"a{outcomes.index(1)}"
    )


@pytest.mark.parametrize(
    "read, done",
    [
        (["avatar", "a"], 1),
        (["avatar", "a", "email", ""], 1),
        (["avatar", ""], -1),
        (["email", "e"], -1),
        (["avatar", "a", "email", "e"], -1),
        ([], 1),
    ],
)
def test_a_user_who_has_changed_since_they_were_read_is_not_changed(store, read, done):
    key = make_user(store, avatar="a", **{"session:s": 1})
    before = store.client.hgetall(key)
    assert store.run("change_user", (key,), len(read) // 2, "", *read, "wins", "9") == done
    assert (store.client.hgetall(key) == before) == (done == -1)
    assert store.client.hget(key, "wins") == ("9" if done == 1 else None)


def test_a_unique_field_is_not_changed_after_its_claim_has_expired(store):
    key = make_user(store)
    late = store.run("change_user", (key,), 0, store.now() - 1, "username", "u2")
    assert late == -1 and store.client.hget(key, "username") == "u1"
    assert store.run("change_user", (key,), 0, store.now() + 9999, "username", "u2") == 1


def test_a_user_who_does_not_exist_is_not_changed(store):
    assert store.run("change_user", (Keys.user("u1"),), 0, "", "avatar", "x") == 0
    assert not store.client.exists(Keys.user("u1"))


def test_an_erased_users_unique_values_are_kept_until_they_are_released(store):
    key, erased = make_user(store, avatar="x", email="e", **{"session:a": 1}), Keys.erased("u1")
    names = "username", "email", "nick"
    outcomes = at_once(4, lambda i: store.run("erase_user", (key, erased), *names))
    assert outcomes == [["username", "u1", "email", "e"]] * 4
    assert store.client.keys() == [erased]
    store.client.delete(erased)
    assert store.run("erase_user", (key, erased), *names) == []


def test_an_overdue_erasure_is_handed_to_one_other_worker(store):
    later, keys = 30_000, (Keys.erasures,)
    assert store.run("begin_erasure", keys, "u1", later) == 1
    assert store.run("due_erasures", keys, later, 10) == []
    assert 0 < store.client.zscore(Keys.erasures, "u1") - store.now() <= later
    store.client.zadd(Keys.erasures, {"u1": 2, "u2": 1, "u3": 3})
    outcomes = at_once(4, lambda i: store.run("due_erasures", keys, later, 2))
    assert sorted(map(sorted, outcomes)) == [[], [], ["u1", "u2"], ["u3"]] or sorted(
        uid for uids in outcomes for uid in uids
    ) == ["u1", "u2", "u3"]


def test_a_new_game_does_not_shift_the_pages_of_a_history(store):
    key = Keys.history("u1")
    store.client.zadd(key, {f"g{i}": i for i in range(5)})
    assert store.run("history_page", (key,), "", 2) == ["g4", "g3"]
    store.client.zadd(key, {"g9": 9})
    assert store.run("history_page", (key,), "g3", 2) == ["g2", "g1"]
    assert store.run("history_page", (key,), "g1", 2) == ["g0"]
    assert store.run("history_page", (key,), "g0", 2) == []
    assert store.run("history_page", (key,), "other", 2) is None
    assert store.run("history_page", (Keys.history("u2"),), "", 2) == []


def test_old_games_are_removed_from_a_history_a_hundred_at_a_time(store):
    make_user(store)
    store.client.zadd(Keys.history("u1"), {f"g{i}": i for i in range(250)})
    for left in (151, 52, 3, 4):
        assert apply(store, f"new{left}", ended=10_000, keep=1000) == 1
        assert store.client.zcard(Keys.history("u1")) == left


def apply(
    store,
    game,
    ended=1000,
    keep=86_400_000,
    wins=0,
    change=0.0,
    sigma="",
    boards=(),
    uid="u1",
    most=1000,
    counts=1,
    quick=0,
    shown="",
    others="",
    daily=("", "", ""),
):
    return store.run(
        "apply_result",
        (Keys.user(uid), Keys.history(uid), Keys.met(uid), Keys.merged(uid), Keys.seen(uid)),
        game,
        ended,
        keep,
        most,
        counts,
        wins,
        change,
        sigma,
        1500,
        quick,
        shown,
        others,
        *daily,
        *boards,
    )


def test_a_result_is_applied_once(store):
    key = make_user(store)
    assert [apply(store, "g1", 100, wins=1, change=12.5, sigma=480.25) for _ in range(3)] == [
        1,
        0,
        0,
    ]
    assert store.client.hmget(key, "games", "wins", "rating", ":sigma") == [
        "1",
        "1",
        "1512.5",
        "480.25",
    ]
    assert apply(store, "g2", 200, change=-2.25, sigma=470) == 1
    assert store.client.hmget(key, "games", "wins", "rating", ":sigma") == [
        "2",
        "1",
        "1510.25",
        "470",
    ]
    assert store.client.zrange(Keys.history("u1"), 0, -1, withscores=True) == [
        ("g1", 100),
        ("g2", 200),
    ] or store.client.zrange(Keys.history("u1"), 0, -1, withscores=True) == [
        ["g1", 100],
        ["g2", 200],
    ]


def test_an_unrated_game_moves_no_rating_and_a_defeat_adds_no_win(store):
    key = make_user(store)
    assert apply(store, "g1") == 1
    assert store.client.hgetall(key) == {"username": "u1", "password": "hash", "games": "1"}


def test_a_result_that_does_not_count_is_only_added_to_the_history(store):
    key = make_user(store)
    boards = ("wins", "wins", "2026-W01", 0)
    for _ in range(2):
        apply(
            store, "g1", wins=1, change=5, sigma=400, boards=boards, counts=0, quick=3, others="a"
        )
    assert store.client.hgetall(key) == {"username": "u1", "password": "hash", ":quick": "3"}
    assert store.client.zrange(Keys.history("u1"), 0, -1) == ["g1"]
    assert not store.client.exists(Keys.met("u1"))


def test_opponents_are_counted_once_a_game_until_midnight(store):
    make_user(store)
    for game, others in (("g1", "a b"), ("g2", "a"), ("g2", "a"), ("g3", "")):
        apply(store, game, others=others)
    assert store.client.hgetall(Keys.met("u1")) == {"a": "2", "b": "1"}
    ends = store.client.expiretime(Keys.met("u1"))
    assert ends % 86_400 == 0 and 0 <= ends - store.now() / 1000 <= 86_400


def test_a_result_marks_once_which_questions_the_player_was_shown(store):
    make_user(store)
    for shown in ("3 64", "5"):
        apply(store, "g1", shown=shown)
    seen = Keys.seen("u1")
    assert [store.client.getbit(seen, number) for number in (3, 5, 64)] == [1, 0, 1]
    assert store.client.bitcount(seen) == 2


def test_quick_answers_add_up(store):
    key = make_user(store)
    for game, quick in (("g1", 3), ("g2", 0), ("g2", 9), ("g3", -4)):
        apply(store, game, quick=quick)
    assert store.client.hget(key, ":quick") == "-1"


def test_a_result_of_an_erased_user_stores_nothing(store):
    assert apply(store, "g1", boards=("wins", "wins", "2026-W01", 0)) == 0
    assert store.client.dbsize() == 0


def test_a_result_that_many_apply_at_once_counts_once(store):
    key = make_user(store)
    assert sum(at_once(12, lambda i: apply(store, "g1", wins=1, change=3, sigma=400))) == 1
    assert store.client.hmget(key, "games", "wins", "rating") == ["1", "1", "1503"]


def test_the_history_keeps_games_for_a_limited_time(store):
    make_user(store)
    for game, ended in (("a", 1000), ("b", 1500), ("c", 1500), ("d", 2499)):
        assert apply(store, game, ended, keep=1500) == 1
    history = lambda: store.client.zrange(Keys.history("u1"), 0, -1)
    assert history() == ["a", "b", "c", "d"]
    assert apply(store, "e", 2500, keep=1500) == 1 and history() == ["b", "c", "d", "e"]
    # This result was applied before.
    assert apply(store, "d", 5000, keep=1500) == 0 and history() == ["b", "c", "d", "e"]
    assert apply(store, "f", 9000, keep=1500) == 1 and history() == ["f"]


def test_the_history_keeps_a_limited_number_of_games_and_names_the_dropped_ones(store):
    key = make_user(store)
    named = []
    for i in range(1, 6):
        assert apply(store, f"g{i}", 1000 + i, most=3) == 1
        named.append(store.dropped)
    assert named == ["", "", "", "g1", "g2"]
    assert apply(store, "late", 1, most=3) == 1 and store.dropped == ""
    assert apply(store, "late", 1, most=3) == 0 and store.dropped == ""
    assert apply(store, "g6", 1006, most=1) == 1
    assert store.dropped.split() == ["late", "g3", "g4", "g5"]
    assert store.client.zrange(Keys.history("u1"), 0, -1) == ["g6"]
    assert store.client.hget(key, "games") == "7"


def test_a_late_result_of_an_old_game_is_applied_once(store):
    key = make_user(store)
    results = [("new", 9000), ("old", 100), ("old", 100), ("new", 9000)]
    assert [apply(store, game, ended, keep=50) for game, ended in results] == [1, 1, 0, 0]
    assert store.client.hget(key, "games") == "2"


def test_a_board_keeps_the_value_from_the_start_of_its_period(store):
    key = make_user(store, wins=7)

    def board(game, period):
        assert (
            apply(
                store,
                game,
                wins=1,
                boards=("weekly", "wins", period, 0, "daily", "games", "2026-01-01", 5),
            )
            == 1
        )
        return store.client.hget(key, "board:weekly")

    assert [
        board("a", "2026-W01"),
        board("b", "2026-W01"),
        board("c", "2026-W02"),
        board("d", "2026-W01"),
    ] == ["2026-W01 7 wins", "2026-W01 7 wins", "2026-W02 9 wins", "2026-W02 9 wins"]
    assert store.client.hget(key, "board:daily") == "2026-01-01 5 games"


@pytest.mark.parametrize(
    "kept, left",
    [
        (None, "2026-W02 7 wins"),
        ("2026-W01 3 wins", "2026-W02 7 wins"),
        ("2026-W02 3 wins", "2026-W02 3 wins"),
        ("2026-W03 3 wins", "2026-W03 3 wins"),
        ("2026-W02 3", "2026-W02 3"),  # the form of format 1
        ("2026-W02 3 games", "2026-W02 7 wins"),
        ("2026-12 3 wins", "2026-W02 7 wins"),
        ("2026-12-31 3 wins", "2026-W02 7 wins"),
    ],
)
def test_a_board_starts_again_for_another_field_or_a_later_period(store, kept, left):
    key = make_user(store, wins=7, **({"board:b": kept} if kept else {}))
    assert apply(store, "g", wins=1, boards=("b", "wins", "2026-W02", 0)) == 1
    assert store.client.hget(key, "board:b") == left


MINE = {"field a": "string", "field u": "string unique", "board b": "- wins", "queue q": "-"}


def meet(store, days, facts):
    return store.run("meet_schema", (Keys.schema,), days, *trivia.flatten(facts))


def test_a_different_schema_marks_the_facts_that_it_can_not_keep_true(store):
    assert meet(store, 30, MINE) == 30
    assert store.client.hgetall(Keys.schema) == {"game_days": "30"}
    gone = {"field gone": "string", "field lost": "string unique", "board gone": "- x"}
    store.client.hset(Keys.schema, mapping=MINE | gone)
    assert meet(store, 90, MINE) == 90 and meet(store, 7, MINE) == 90
    other = MINE | {"field u": "string", "board b": "week wins"}
    for _ in range(2):
        assert meet(store, 7, {**other, "field new": "integer"}) == 90
    assert store.client.hgetall(Keys.schema) == MINE | {
        "field u": "?string unique",
        "board b": "?- wins",
        "field gone": "string",
        "field lost": "?string unique",
        "board gone": "?- x",
        "game_days": "90",
    }


@pytest.mark.parametrize(
    "versions, before, done",
    [
        ({"w1": "l s"}, "", 1),
        ({"w1": "l s", "w2": "other s"}, "", 1),
        ({"w1": "l s", "w2": "l old"}, "", 0),
        ({"w1": "l s", "w2": "l"}, "", 0),
        ({"w1": "l s"}, "?string", 0),
    ],
)
def test_a_schema_is_adopted_when_all_workers_agree_and_no_fact_has_changed(
    store, versions, before, done
):
    store.client.hset(Keys.libraries, mapping=versions)
    store.client.hset(Keys.schema, "board gone", "?- x")
    rows = "field a", before, "string", "board gone", "?- x", ""
    assert store.run("adopt_schema", (Keys.schema, Keys.libraries), "s", *rows) == done
    after = {"field a": "string"} if done else {"board gone": "?- x"}
    assert store.client.hgetall(Keys.schema) == after


def limit(store, take=1, interval=1000, burst=3, who="u1"):
    return store.run("take_allowance", (Keys.limit("login", who),), interval, burst, take)


def test_an_allowance_is_used_up_refilled_and_expires(store):
    key = Keys.limit("login", "u1")
    assert [limit(store, interval=60_000) for _ in range(3)] == [0, 0, 0]
    wait = limit(store, interval=60_000)
    assert 50_000 < wait <= 60_000
    assert 170_000 < store.client.pttl(key) <= 180_000  # the refused call took nothing
    assert limit(store, -1, interval=60_000) == 0 and limit(store, interval=60_000) == 0
    for _ in range(5):
        assert limit(store, -1, interval=60_000) == 0
    assert not store.client.exists(key)
    store.client.set(key, store.now() - 5, px=100_000)
    assert limit(store) == 0 and 2_000 >= store.client.pttl(key) > 0


def test_an_allowance_is_not_exceeded_by_calls_at_once(store):
    assert at_once(16, lambda i: limit(store, interval=100_000, burst=5)).count(0) == 5


# ---- the lobby

SEAT = ("conn", "turn", "queue", "since", "rating", "game")
NO_BOTS = (-1, 0)
FIFO, NEAR = (2, 2, 0, 60_000, -1, 0, *NO_BOTS), (2, 2, 0, 60_000, 100, 25, *NO_BOTS)


def lobby_keys(name):
    return (Keys.seats, Keys.queue(name), *LOBBY[2:])


def turn_of(conn):
    """Returns the turn of a connection: 1 for the first that is asked for, then 2, 3..."""
    return _turns.setdefault(conn, len(_turns) + 1)


_turns = {}


def join(
    store, uid, conn, rules=FIFO, name="q", rating=1500, over="", longest=100, game=None, draw=""
):
    return store.run(
        "join",
        (*lobby_keys(name), Keys.quits(uid), Keys.tried(name, draw)),
        uid,
        name,
        game or trivia.new_game_id(3),
        *rules,
        conn,
        rating,
        over,
        longest,
        turn_of(conn),
        draw,
    )


def check_ticket(store, uid, rules=FIFO, name="q", message="bye", game=None):
    return store.run(
        "check_ticket", lobby_keys(name), uid, name, game or trivia.new_game_id(3), *rules, message
    )


def leave(store, uid, conn, gone=0, name="q"):
    keys = Keys.seats, Keys.queue(name), Keys.due, Keys.lobby_clock
    return store.run("leave", keys, uid, name, conn, gone)


def release(store, uid, game, early=0):
    return store.run("release", (Keys.seats, Keys.playing, Keys.due), uid, game, early)


def seat(store, uid):
    text = store.client.hget(Keys.seats, uid)
    return text and SimpleNamespace(**dict(zip(SEAT, text.split(" "), strict=False)))


def waited(store, uid, ms, name="q"):
    """Makes a ticket older by so many ms."""
    old = seat(store, uid)
    since = int(old.since) - ms
    store.client.hset(
        Keys.seats, uid, f"{old.conn} {old.turn} {old.queue} {since} {old.rating} {old.game}"
    )
    if store.client.zscore(Keys.queue(name), uid) == float(old.since):
        store.client.zadd(Keys.queue(name), {uid: since})


def no_tickets(store):
    return not store.client.exists(Keys.queue("q")) and not store.client.exists(Keys.due)


def test_the_second_player_to_join_is_matched_with_the_first(store, worker):
    first, second = worker.connection(), worker.connection()
    outcome, left, _ = join(store, "u1", first)
    assert outcome == "queued" and left == 60_000
    assert store.client.zrange(Keys.due, 0, -1) == ["q u1"]
    assert 900 < store.client.zscore(Keys.due, "q u1") - store.now() <= 1000
    outcome, match = join(store, "u2", second, game="abcdefghijkl")
    assert (outcome, match) == ("matched", "abcdefghijkl q u2 u1")
    assert [seat(store, uid).game for uid in ("u1", "u2")] == ["abcdefghijkl"] * 2
    assert [seat(store, uid).conn for uid in ("u1", "u2")] == [first, second]
    assert no_tickets(store) and store.client.hgetall(Keys.playing) == {"q": "2"}
    assert 1500 < store.client.zscore(Keys.forming, match) - store.now() <= 2000
    assert join(store, "u2", second) == ["game", "abcdefghijkl", "-"]
    assert (
        store.client.hgetall(Keys.playing) == {"q": "2"} and store.client.zcard(Keys.forming) == 1
    )
    assert worker.events() == []


def test_a_repeated_join_by_the_same_connection_changes_nothing(store, worker):
    conn = worker.connection()
    join(store, "u1", conn)
    waited(store, "u1", 5000)
    before = (
        store.client.hgetall(Keys.seats),
        store.client.zrange(Keys.queue("q"), 0, -1, withscores=True),
    )
    outcome, left, _ = join(store, "u1", conn)
    assert outcome == "queued" and 50_000 < left <= 55_000
    assert (
        store.client.hgetall(Keys.seats),
        store.client.zrange(Keys.queue("q"), 0, -1, withscores=True),
    ) == before
    assert worker.events() == []


def test_a_newer_connection_takes_over_the_ticket_of_the_older(store, workers):
    one, two = workers(), workers()
    old, new = one.connection(), two.connection()
    join(store, "u1", old)
    waited(store, "u1", 5000)
    since = seat(store, "u1").since
    assert join(store, "u1", new)[0] == "queued"
    assert (seat(store, "u1").conn, seat(store, "u1").since) == (new, since)
    assert one.events() == [("replaced", "-", {old: 0}, "")] and two.events() == []
    assert leave(store, "u1", old, 1) == ["stale"] and store.client.zcard(Keys.queue("q")) == 1
    assert leave(store, "u1", new, 1) == ["left"] and no_tickets(store) and not seat(store, "u1")


def test_an_older_connection_that_joins_late_takes_nothing_from_a_newer(store, workers):
    one, two = workers(), workers()
    old, new = one.connection(), two.connection()
    assert turn_of(old) < turn_of(new)
    assert join(store, "u1", new)[0] == "queued"
    before = store.client.hgetall(Keys.seats)
    assert join(store, "u1", old) == join(store, "u1", old, name="other") == ["stale"]
    assert store.client.hgetall(Keys.seats) == before and two.events() == []
    assert not store.client.exists(Keys.queue("other"))
    _, match = join(store, "u2", one.connection())
    assert join(store, "u1", old) == ["stale"] and join(store, "u1", new) == [
        "game",
        match.split(" ")[0],
        "-",
    ]


def test_the_seat_keeps_the_turn_of_its_connection(store, worker):
    conns = [worker.connection() for _ in range(3)]
    first, second, third = map(turn_of, conns)
    turn = lambda: int(seat(store, "u1").turn)
    assert join(store, "u1", conns[0])[0] == "queued" and turn() == first
    assert join(store, "u1", conns[1], name="other")[0] == "queued" and turn() == second
    assert leave(store, "u1", conns[0], 1) == ["stale"]
    assert leave(store, "u1", conns[1], name="other") == ["left"] and turn() == second
    assert join(store, "u1", conns[1], longest=0) == ["full"] and turn() == second
    assert join(store, "u1", conns[1])[0] == "queued"
    game = join(store, "u2", worker.connection())[1].split(" ")[0]
    assert leave(store, "u1", conns[1], 1) == ["game", game] and turn() == second
    assert join(store, "u1", conns[2]) == ["game", game, "-"] and turn() == third
    assert release(store, "u1", game) == 1 and turn() == third
    assert join(store, "u1", conns[2])[0] == "queued"
    waited(store, "u1", 60_001)
    assert check_ticket(store, "u1") == ["timeout"] and turn() == third


def test_a_player_who_joins_another_queue_loses_their_old_ticket(store, worker):
    old, new = worker.connection(), worker.connection()
    join(store, "u1", old, name="other")
    join(store, "u1", new)
    assert seat(store, "u1").queue == "q"
    # The old ticket is still in the queue, but matches no player.
    assert join(store, "u2", worker.connection(), name="other")[0] == "queued"
    assert store.client.zrange(Keys.queue("other"), 0, -1) == ["u2"]
    assert leave(store, "u1", old, 1, "other") == ["stale"] and seat(store, "u1").conn == new
    assert join(store, "u3", worker.connection())[0] == "matched"


def test_a_player_in_a_game_returns_to_it_whichever_queue_they_join(store, workers):
    one, two = workers(), workers()
    join(store, "u1", one.connection())
    _, match = join(store, "u2", one.connection())
    game, conn = match.split(" ")[0], two.connection()
    assert (
        join(store, "u1", conn, name="other") == ["game", game, "-"]
        and seat(store, "u1").conn == conn
    )
    assert one.kinds() == ["replaced"]
    assert join(store, "u1", conn, name="other", over="another") == ["game", game, "-"]
    assert join(store, "u1", conn, name="other", over=game)[0] == "queued"
    assert store.client.hgetall(Keys.playing) == {"q": "1"}
    assert release(store, "u1", game) == 0 and store.client.hgetall(Keys.playing) == {"q": "1"}


def leave_early(store, uid, conn, early=1):
    """Releases a player from a game that they left before any player had answered."""
    game = trivia.new_game_id(3)
    store.client.hset(Keys.seats, uid, f"{conn} {turn_of(conn)} q 0 1500 {game}")
    assert release(store, uid, game, early) == 1
    assert release(store, uid, game, early) == 0


def test_a_player_who_leaves_games_early_waits_longer_each_time(store, worker):
    conn = worker.connection()
    for wait in (5000, 10_000, 20_000, 20_000):
        leave_early(store, "u1", conn)
        outcome, left, held = join(store, "u1", conn)
        assert outcome == "queued" and wait - 2000 < held <= wait and left == held + 60_000
        assert join(store, "u1", conn)[2] <= held, "a second join does not shorten the wait"
        assert not store.client.exists(Keys.queue("q"))
        assert wait < store.client.pttl(Keys.quits("u1")) <= wait + 20_000
        assert leave(store, "u1", conn) == ["left"] and no_tickets(store)
        assert join(store, "u1", conn, name="other")[2] > 0, "another queue does not avoid the wait"
        leave(store, "u1", conn, name="other")
    store.client.delete(Keys.quits("u1"))  # it would expire by itself
    leave_early(store, "u1", conn)
    assert join(store, "u1", conn)[2] <= 5000


def test_a_player_who_leaves_later_does_not_wait(store, worker):
    conns = worker.connection(), worker.connection()
    leave_early(store, "u1", conns[0])
    leave_early(store, "u2", conns[1], early=0)
    assert join(store, "u2", conns[1])[2] == 0


@pytest.mark.parametrize("rules", [FIFO, (2, 2, 0, 60_000, 100, 0, *NO_BOTS)])
def test_a_player_who_is_held_back_is_matched_after_their_wait(store, worker, rules):
    conns = worker.connection(), worker.connection()
    leave_early(store, "u1", conns[0])
    assert join(store, "u1", conns[0], rules)[0] == "queued"
    assert join(store, "u2", conns[1], rules)[0] == "queued"
    assert check_ticket(store, "u1", rules) == check_ticket(store, "u2", rules) == ["waiting"]
    assert store.client.zscore(Keys.due, "q u1") == int(seat(store, "u1").since)
    assert store.client.zrange(Keys.queue("q"), 0, -1) == ["u2"]
    waited(store, "u1", 5001)
    assert check_ticket(store, "u1", rules)[0] == "matched" and no_tickets(store)


def test_no_player_is_held_back_longer_after_the_clock_was_set_back(store, worker):
    store.client.set(Keys.quits("u1"), f"1 5000 {store.now() + 3_600_000}")
    assert join(store, "u1", worker.connection())[2] == 5000


def test_a_full_queue_refuses_more_players(store, worker):
    rules = (2, 2, 0, 60_000, 0, 0, *NO_BOTS)
    conn = worker.connection()
    assert [
        join(store, f"u{i}", worker.connection(), rules, rating=i * 100, longest=3)[0]
        for i in range(4)
    ] == ["queued"] * 3 + ["full"]
    assert join(store, "u9", conn, rules, rating=9000, longest=3) == ["full"]
    assert vars(seat(store, "u9")) == {
        "conn": conn,
        "turn": str(turn_of(conn)),
        "queue": "-",
        "since": "0",
        "rating": "-",
        "game": "-",
    }
    assert store.client.zcard(Keys.queue("q")) == store.client.zcard(Keys.due) == 3


@pytest.mark.parametrize("same", [True, False])
def test_a_player_who_waits_in_a_full_queue_may_join_it_again(store, worker, same):
    conn = worker.connection()
    join(store, "u1", conn, longest=1)
    assert join(store, "u1", conn if same else worker.connection(), longest=1)[0] == "queued"
    assert seat(store, "u1").queue == "q"


def test_a_fifo_queue_matches_the_players_who_have_waited_longest(store, worker):
    rules = (3, 3, 0, 60_000, -1, 0, *NO_BOTS)
    for i in range(2):
        join(store, f"u{i}", worker.connection(), rules)
    for i in range(2, 5):  # join would form a game of three, so these tickets are written by hand
        store.client.hset(
            Keys.seats, f"u{i}", f"{worker.connection()} 1 q {store.now() - 1000 * i} 1500 -"
        )
        store.client.zadd(Keys.queue("q"), {f"u{i}": store.now() - 1000 * i})
    assert join(store, "u9", worker.connection(), rules)[1].split(" ")[2:] == ["u9", "u4", "u3"]
    assert set(store.client.zrange(Keys.queue("q"), 0, -1)) == {"u0", "u1", "u2"}


@pytest.mark.parametrize(
    "ratings, mine, opponent",
    [
        ({"a": 1400, "b": 1590, "c": 1450}, 1500, "c"),
        ({"a": 1601, "b": 1399}, 1500, None),
        ({"a": 1600}, 1500, "a"),
        ({"a": 1400}, 1500, "a"),
        ({"a": 1500, "b": 1501}, 1500, "a"),
        ({"a": 1399.999}, 1500, None),
        ({"a": -20}, -100, "a"),
    ],
)
def test_the_nearest_rating_in_the_window_is_matched(store, worker, ratings, mine, opponent):
    for uid, rating in ratings.items():
        store.client.hset(Keys.seats, uid, f"{worker.connection()} 1 q {store.now()} {rating} -")
        store.client.zadd(Keys.queue("q"), {uid: rating})
    outcome, match, *_ = join(store, "me", worker.connection(), NEAR, rating=mine)
    assert (outcome == "matched" and match.split(" ")[3:]) == ([opponent] if opponent else False)


def test_the_rating_window_widens_while_a_player_waits(store, worker):
    join(store, "u1", worker.connection(), NEAR, rating=1500)
    join(store, "u2", worker.connection(), NEAR, rating=1700)
    assert check_ticket(store, "u1", NEAR) == ["waiting"]
    waited(store, "u1", 3900)
    assert check_ticket(store, "u1", NEAR) == ["waiting"]
    waited(store, "u1", 200)
    assert check_ticket(store, "u1", NEAR)[0] == "matched" and no_tickets(store)


def test_players_with_the_same_rating_are_in_a_match_once_each(store, worker):
    rules, rating = (
        (3, 3, 0, 60_000, 100, 0, *NO_BOTS),
        "1512.12345678999",
    )  # Lua writes it with 14 digits
    assert [
        join(store, uid, worker.connection(), rules, rating=rating)[0] for uid in ("u1", "u2")
    ] == ["queued"] * 2
    assert sorted(
        join(store, "u3", worker.connection(), rules, rating=rating)[1].split(" ")[2:]
    ) == ["u1", "u2", "u3"]


def test_a_group_starts_when_it_is_full_or_enough_players_have_waited(store, worker):
    rules = (2, 4, 5000, 60_000, -1, 0, *NO_BOTS)
    assert [join(store, f"u{i}", worker.connection(), rules)[0] for i in range(3)] == ["queued"] * 3
    assert check_ticket(store, "u1", rules) == ["waiting"]
    assert len(join(store, "u3", worker.connection(), rules)[1].split(" ")) == 2 + 4
    for i in range(3):
        join(store, f"v{i}", worker.connection(), rules)
    assert 0 < store.client.zscore(Keys.due, "q v0") - store.now() <= 5000
    waited(store, "v0", 5001)
    assert sorted(check_ticket(store, "v2", rules)[1].split(" ")[2:]) == ["v0", "v1", "v2"]
    join(store, "w0", worker.connection(), rules)
    waited(store, "w0", 5001)
    assert check_ticket(store, "w0", rules) == ["waiting"]


def hang(store, worker):
    store.client.zrem(Keys.workers, worker.id)  # other workers do so when they miss its heartbeat


@pytest.mark.parametrize("lose", [lambda store, worker: worker.die(), hang])
def test_no_player_is_matched_with_a_connection_of_a_lost_worker(store, workers, lose):
    lost, alive = workers(), workers()
    join(store, "u1", lost.connection())
    lose(store, lost)
    assert join(store, "u2", alive.connection())[0] == "queued" and not seat(store, "u1")
    assert store.client.zrange(Keys.queue("q"), 0, -1) == ["u2"] and store.client.zrange(
        Keys.due, 0, -1
    ) == ["q u2"]
    assert join(store, "u3", alive.connection())[1].split(" ")[2:] == ["u3", "u2"]


def test_tickets_of_a_lost_worker_do_not_block_the_queue_for_long(store, workers):
    lost, alive = workers(), workers()
    rules = (100, 100, 0, 60_000, -1, 0, *NO_BOTS)
    for i in range(60):
        join(store, f"lost{i}", lost.connection(), rules)
    lost.die()
    join(store, "u1", alive.connection())
    join(store, "u2", alive.connection())
    outcomes = [check_ticket(store, "u1")[0] for _ in range(5)]
    assert "matched" in outcomes and seat(store, "u2").game == seat(store, "u1").game != "-"


@pytest.mark.parametrize("state", ["no seat", "other queue", "in a game", "dead"])
def test_a_ticket_without_a_waiting_player_is_removed(store, workers, state):
    alive, lost = workers(), workers()
    join(store, "u1", (lost if state == "dead" else alive).connection())
    if state == "no seat":
        store.client.hdel(Keys.seats, "u1")
    elif state == "other queue":
        store.client.hset(Keys.seats, "u1", f"{alive.connection()} 1 other 1 1500 -")
    elif state == "in a game":
        store.client.hset(Keys.seats, "u1", f"{alive.connection()} 1 q 1 1500 abc")
    else:
        lost.die()
    before = store.client.hgetall(Keys.seats)
    assert check_ticket(store, "u1") == ["gone"] == check_ticket(store, "u1")
    assert no_tickets(store) and store.client.hgetall(Keys.seats) == (
        {} if state == "dead" else before
    )


def test_a_ticket_that_times_out_is_cancelled_with_a_message(store, worker):
    conn = worker.connection()
    join(store, "u1", conn)
    assert check_ticket(store, "u1") == ["waiting"]
    assert worker.events() == []
    waited(store, "u1", 60_001)
    assert check_ticket(store, "u1", message="bye") == ["timeout"]
    assert worker.events() == [("cancelled", "-", {conn: 0}, "bye")]
    assert no_tickets(store) and seat(store, "u1").queue == "-" and seat(store, "u1").conn == conn
    assert check_ticket(store, "u1") == ["gone"] and worker.events() == []


def test_a_ticket_is_checked_at_growing_intervals_and_at_its_end(store, worker):
    join(store, "u1", worker.connection())
    for ms, later in ((0, 1000), (8000, 3000), (48_000, 4000)):  # the last check is at its end
        waited(store, "u1", ms)
        assert check_ticket(store, "u1") == ["waiting"]
        assert later - 300 < store.client.zscore(Keys.due, "q u1") - store.now() <= later + 10


def test_a_player_who_leaves_a_queue_keeps_their_seat_while_they_are_connected(store, worker):
    conn = worker.connection()
    for gone in (0, 1):
        join(store, "u1", conn)
        assert leave(store, "u1", conn, gone) == ["left"] and no_tickets(store)
        assert bool(seat(store, "u1")) != bool(gone)
        assert leave(store, "u1", conn, gone) == (["stale"] if gone else ["left"])
    assert leave(store, "u9", conn, 1) == ["stale"] and not store.client.exists(Keys.seats)


def test_leave_names_the_players_game_and_forgets_a_lost_connection(store, worker):
    conn = worker.connection()
    join(store, "u1", conn)
    game = join(store, "u2", worker.connection())[1].split(" ")[0]
    assert leave(store, "u1", conn) == ["game", game] and seat(store, "u1").conn == conn
    assert leave(store, "u1", conn, 1) == ["game", game] and seat(store, "u1").conn == "-"
    assert leave(store, "u1", conn, 1) == ["stale"] and seat(store, "u1").game == game
    assert release(store, "u1", game) == 1 and not seat(store, "u1")
    assert (
        release(store, "u2", "another") == 0
        and release(store, "u2", game) == 1
        and seat(store, "u2").queue == "-"
    )
    assert release(store, "u1", game) == release(store, "u2", game) == 0
    assert store.client.hgetall(Keys.playing) == {"q": "0"}


@pytest.mark.parametrize("rules", [FIFO, NEAR, (2, 4, 0, 60_000, -1, 0, *NO_BOTS)])
def test_players_who_join_at_once_are_each_matched_once(store, worker, rules):
    conns = [worker.connection() for _ in range(24)]
    outcomes = at_once(24, lambda i: [join(store, f"u{i}", conns[i], rules) for _ in range(2)])
    matches = store.client.zrange(Keys.forming, 0, -1)
    assert sorted(
        match for outcome in outcomes for kind, match, *_ in outcome if kind == "matched"
    ) == sorted(matches)
    people = [uid for match in matches for uid in match.split(" ")[2:]]
    assert len(people) == len(set(people)) == 24 and no_tickets(store)
    assert {seat(store, uid).game for uid in people} == {match.split(" ")[0] for match in matches}
    assert store.client.hgetall(Keys.playing) == {"q": "24"}


def test_a_player_who_joins_with_many_connections_at_once_is_not_matched_with_themselves(
    store, worker
):
    conns = [worker.connection() for _ in range(16)]
    newest = max(conns, key=turn_of)
    outcomes = at_once(16, lambda i: join(store, "u1", conns[i], name="qr"[i % 2])[0])
    assert set(outcomes) <= {"queued", "stale"} and seat(store, "u1").conn == newest
    assert not store.client.exists(Keys.forming)
    assert len(worker.events()) == outcomes.count("queued") - 1


def test_the_worker_of_a_connection_is_told_to_check_its_session(store, worker):
    conn = worker.connection()
    join(store, "u1", conn)
    assert [store.run("revoke", (Keys.seats,), uid) for uid in ("u1", "nobody")] == [1, 1]
    assert worker.events() == [("revoked", "-", {conn: 0}, "")]


def due_tickets(store):
    return store.run("due_tickets", (Keys.due, Keys.forming, Keys.lobby_clock))


def test_due_tickets_and_matches_are_handed_out_once(store):
    assert due_tickets(store) == [[], []] and not store.client.exists(Keys.lobby_clock)
    now = store.now()
    store.client.zadd(Keys.due, {"q u1": now - 5, "q u2": now + 60_000})
    store.client.zadd(Keys.forming, {"g q u1 u2": now - 5, "h q u3 u4": now + 60_000})
    outcomes = at_once(2, lambda i: due_tickets(store))
    assert sorted(map(json.dumps, outcomes)) == ['[["q u1"], ["g q u1 u2"]]', "[[], []]"]
    assert 900 < store.client.zscore(Keys.due, "q u1") - now < 6000
    assert store.client.zscore(Keys.due, "q u2") == now + 60_000
    assert 1900 < store.client.zscore(Keys.forming, "g q u1 u2") - now < 5000


def test_new_games_get_tags_that_all_living_workers_serve(store):
    beat = lambda *args: store.beat(*args)[3:]
    assert beat("a", 4) == [4, 4]
    assert beat("b", 64) == [64, 4]
    assert beat("a", 64) == [64, 64]
    assert beat("c", 8) == [64, 8]  # c has just started: it serves 8 tags until it learns of 64
    assert beat("b", 64) == [64, 8]
    store.client.zrem(Keys.workers, "c")
    store.client.hdel(Keys.shards, "a", "c")
    assert beat("b", 64) == [64, 64], "a worker without an entry is not waited for"
    assert beat("b", 4) == [64, 4], "games of all tags that were ever used are served"


def test_a_heartbeat_lists_all_workers_and_reaps_a_silent_one_once(store, workers):
    one, two = workers(), workers()
    known, dead, beats = one.beat()
    assert (known, dead) == (1, []) and set(beats[::2]) == {one.id, two.id}
    beats = dict(zip(beats[::2], beats[1::2]))
    assert 0 <= store.now() - int(beats[one.id]) < 5000
    store.client.zadd(Keys.workers, {"dead": 5, "back": 6})
    outcomes = at_once(2, lambda i: (one, two)[i].beat("dead", "5", "back", "5", "nobody", "5"))
    assert sorted(outcome[1] for outcome in outcomes) == [[], ["dead"]], (
        "a worker that beats again is alive"
    )
    assert set(store.client.zrange(Keys.workers, 0, -1)) == {"dead:dead", "back", one.id, two.id}
    mark = int(store.client.zscore(Keys.workers, "dead:dead"))
    assert one.beat("dead", "5")[1] == one.beat("dead:dead", str(mark - 1))[1] == []
    assert two.beat("dead:dead", str(mark))[1] == ["dead"], (
        "the other worker did not finish to reap it"
    )
    store.client.zrem(Keys.workers, one.id)
    assert one.beat()[0] == 0 and one.beat()[0] == 1


# ---- blocks


def test_a_report_is_stored_once_and_their_number_is_limited(store):
    add = lambda report, *more: store.run(
        "add_report", (Keys.report(report), Keys.reports), report, 2, "reason", "name", *more
    )
    assert [add("r1", "text", "x"), add("r1", "text", "y"), add("r2"), add("r3")] == [
        "ok",
        "ok",
        "ok",
        "full",
    ]
    assert store.client.hget(Keys.report("r1"), "text") == "x"
    assert store.client.zrange(Keys.reports, 0, -1) == ["r1", "r2"]
    change = lambda report: store.run("change_report", (Keys.report(report),), "text", "", "a", 1)
    assert (change("r1"), change("r9")) == (1, 0) and not store.client.exists(Keys.report("r9"))
    assert store.client.hgetall(Keys.report("r1")).keys() == {"at", "reason", "a"}


def test_the_number_of_noted_reports_of_a_user_is_limited(store):
    keys = Keys.user("u1"), Keys.reported("u1")
    assert store.run("note_report", keys, "player a", 2) == 0 and not store.client.exists(keys[1])
    store.client.hset(keys[0], "username", "n1")
    for target in "abac":
        assert store.run("note_report", keys, target, 2) == 1
    assert store.client.zcard(keys[1]) == 2


def hide(store, *pairs):
    """Makes the first player of each pair block the second."""
    for one, other in pairs:
        known = store.client.hget(Keys.hidden, one) or ""
        store.client.hset(Keys.hidden, one, f"{known} {other}".strip())


def test_the_number_of_blocks_is_limited_and_an_erased_user_has_none(store):
    store.client.hset(Keys.user("u1"), "username", "n1")
    block = lambda other, uid="u1": store.run("block", (Keys.user(uid), Keys.blocks(uid)), other, 2)
    assert [block(other) for other in ("a", "b", "c", "a")] == ["ok", "ok", "full", "ok"]
    assert store.client.zrange(Keys.blocks("u1"), 0, -1) == ["a", "b"]
    assert block("a", "u9") == "gone" and not store.client.exists(Keys.blocks("u9"))
    note = lambda uid, is_one: store.run(
        "note_blocker", (Keys.user(uid), Keys.blockers(uid)), "a", is_one
    )
    assert (note("u1", 1), note("u1", 1), note("u9", 1)) == (1, 1, 0)
    assert store.client.zrange(Keys.blockers("u1"), 0, -1) == ["a"]
    assert note("u1", 0) == note("u9", 0) == 1
    assert not any(store.client.exists(Keys.blockers(uid)) for uid in ("u1", "u9"))


def test_blocks_at_once_keep_to_the_limit(store):
    store.client.hset(Keys.user("u1"), "username", "n1")
    keys = Keys.user("u1"), Keys.blocks("u1")
    assert at_once(12, lambda i: store.run("block", keys, f"o{i}", 5)).count("ok") == 5


@pytest.mark.parametrize("pair", [("u1", "u2"), ("u2", "u1")])
@pytest.mark.parametrize("rules", [FIFO, NEAR])
def test_players_are_not_matched_if_one_has_blocked_the_other(store, worker, pair, rules):
    hide(store, pair)
    conns = {uid: worker.connection() for uid in ("u1", "u2", "u3")}
    for uid in ("u1", "u2"):
        assert join(store, uid, conns[uid], rules)[0] == "queued"
    for uid in ("u1", "u2"):
        assert check_ticket(store, uid, rules) == ["waiting"]
    outcome, match = join(store, "u3", conns["u3"], rules)
    assert outcome == "matched" and len(set(match.split(" ")[2:]) & {"u1", "u2"}) == 1


def test_a_group_has_no_two_players_if_one_has_blocked_the_other(store, worker):
    hide(store, ("u2", "u3"), ("u5", "u1"))
    rules = 4, 4, 0, 60_000, -1, 0, *NO_BOTS
    outcomes = [join(store, f"u{i}", worker.connection(), rules) for i in range(1, 8)]
    matches = [set(match[0].split(" ")[2:]) for kind, *match in outcomes if kind == "matched"]
    assert len(matches) == 1
    assert not {"u2", "u3"} <= matches[0] and not {"u1", "u5"} <= matches[0]


@pytest.mark.parametrize("rules", [FIFO, NEAR])
def test_a_player_whom_a_crowd_has_blocked_is_matched_with_other_players(store, worker, rules):
    """The players of the crowd have blocked each other too, so they stay first in the queue."""
    crowd = [f"c{i:02}" for i in range(40)]
    hide(store, *itertools.permutations(crowd, 2), *((one, "victim") for one in crowd))
    for one in crowd:
        assert join(store, one, worker.connection(), rules)[0] == "queued"
    hide(store, *((one, "friend") for one in crowd))
    assert join(store, "friend", worker.connection(), rules)[0] == "queued"
    outcome, match = join(store, "victim", worker.connection(), rules)
    assert outcome == "matched" and set(match.split(" ")[2:]) == {"friend", "victim"}


def test_a_player_whom_the_host_has_blocked_finds_no_room(store, worker):
    ann, bob, eve = (worker.connection() for _ in range(3))
    hide(store, ("u1", "u2"), ("u3", "u1"), ("u2", "u3"))
    join_room(store, "u1", ann, opens=1)
    for uid, conn in (("u2", bob), ("u3", eve)):
        assert join_room(store, uid, conn)[:2] == ["refused", "unknown_code"]
    store.client.delete(Keys.hidden)
    hide(store, ("u2", "u3"))  # neither is the host, and both were invited
    assert [join_room(store, *who)[0] for who in (("u2", bob), ("u3", eve))] == ["room"] * 2
    hide(store, ("u1", "u2"))
    assert join_room(store, "u2", bob)[0] == "room"  # a member stays


# ---- rooms


CODE = "CDFHJK"


def room_keys(code, *more):
    return (Keys.seats, Keys.room(code), Keys.due, Keys.lobby_clock, *more)


def room_rules(seat_ms=30_000, wait_ms=60_000):
    return NOBODY, "q", seat_ms, wait_ms


def join_room(store, uid, conn, code=CODE, opens=0, most=3, late=0, over=""):
    person = uid, conn, turn_of(conn), over, opens, most, late, f"name {uid}"
    view = json.dumps({"username": f"name {uid}"})
    keys = room_keys(code, Keys.playing, Keys.hidden)
    return store.call("join_room", keys, *room_rules(), *person, view)


def begin_room(store, uid, conn, code=CODE, least=2, game=None):
    keys = room_keys(code, Keys.playing, Keys.forming, Keys.workers)
    game = game or trivia.new_game_id(3)
    return store.call("begin_room", keys, *room_rules(), uid, conn, game, least)


def direct_room(store, uid, conn, act, value, code=CODE):
    keys = room_keys(code, Keys.playing)
    return store.call("direct_room", keys, *room_rules(), uid, conn, act, value)


def check_room(store, code=CODE, seat_ms=30_000, wait_ms=60_000):
    return store.call("check_room", room_keys(code), *room_rules(seat_ms, wait_ms))


def show_room(store, code=CODE):
    queue, *body = store.call("show_room", (Keys.seats, Keys.room(code)))
    return json.loads(body[0]) | {"queue": queue} if body else queue


def room_view(reply):
    outcome, body = reply
    assert outcome == "room", reply
    return json.loads(body)


def room_events(worker):
    """Returns the room events of a worker: [(connections, connected players)]."""
    told = []
    for kind, code, targets, text in worker.events():
        assert (kind, code) == ("room", CODE) and set(targets.values()) == {0}
        queue, _, body = text.partition(" ")
        assert queue == "q"
        told.append((set(targets), json.loads(body)["connected"]))
    return told


@pytest.fixture
def room(store, worker):
    """A room with a host and a guest: {player: connection}."""
    conns = {uid: worker.connection() for uid in ("u1", "u2")}
    join_room(store, "u1", conns["u1"], opens=1)
    join_room(store, "u2", conns["u2"])
    worker.events()
    return conns


def whole(store):
    """Returns all that the store holds, without the clock and the last time of each room."""
    content = {}
    for key in store.client.scan_iter():
        if store.client.type(key) == "hash":
            content[key] = store.client.hgetall(key)
            content[key].pop("since", None)
        elif key != Keys.due and store.client.type(key) == "zset":
            content[key] = store.client.zrange(key, 0, -1)
    return content


def test_a_room_is_opened_once_and_shown_to_all_its_members(store, worker):
    ann, bob = worker.connection(), worker.connection()
    view = room_view(join_room(store, "u1", ann, opens=1))
    assert view == {
        "code": CODE,
        "host": "name u1",
        "players": [{"username": "name u1"}],
        "connected": ["name u1"],
        "locked": False,
        "state": "waiting",
    }
    assert join_room(store, "u2", bob, opens=1) == ["taken"] and not seat(store, "u2")
    assert worker.events() == []
    view = room_view(join_room(store, "u2", bob))
    assert view["host"] == "name u1" and view["connected"] == ["name u1", "name u2"]
    assert room_events(worker) == [({ann}, ["name u1", "name u2"])]
    assert show_room(store) == view | {"queue": "q"}
    before = whole(store)
    assert room_view(join_room(store, "u2", bob)) == view and whole(store) == before
    assert check_room(store) == "open" and whole(store) == before and worker.events() == []


@pytest.mark.parametrize(
    "state, code",
    [
        ("unknown", "unknown_code"),
        ("closed", "expired_code"),
        ("full", "room_full"),
        ("locked", "room_locked"),
        ("kicked", "kicked"),
    ],
)
def test_a_refused_join_of_a_room_says_why_and_does_not_change_the_room(
    store, worker, room, state, code
):
    if state == "unknown":
        store.client.delete(Keys.room(CODE))
    elif state == "closed":
        for uid, conn in room.items():
            leave(store, uid, conn)
        assert check_room(store) == "gone" == check_room(store)
        assert 86_000 < store.client.ttl(Keys.room(CODE)) <= 86_400
    elif state == "full":
        join_room(store, "u3", worker.connection())
    elif state == "locked":
        direct_room(store, "u1", room["u1"], "lock", "1")
    else:
        join_room(store, "u9", worker.connection())
        assert direct_room(store, "u1", room["u1"], "kick", "name u9")[0] == "kicked"
        leave(store, "u9", seat(store, "u9").conn, 1)
    before = whole(store).get(Keys.room(CODE))
    conn = worker.connection()
    worker.events()
    assert join_room(store, "u9", conn) == ["refused", code, "-"]
    assert whole(store).get(Keys.room(CODE)) == before and worker.events() == []
    assert seat(store, "u9").conn == conn and seat(store, "u9").queue == "-"


def test_players_who_join_at_once_fill_a_room_and_no_more(store, worker):
    conns = [worker.connection() for _ in range(9)]
    join_room(store, "u0", conns[0], opens=1, most=4)
    replies = at_once(8, lambda i: join_room(store, f"u{i + 1}", conns[i + 1], most=4)[:2])
    assert sorted(reply[0] for reply in replies) == ["refused"] * 5 + ["room"] * 3
    assert len(show_room(store)["players"]) == 4


def test_a_room_begins_one_game_of_its_connected_members(store, workers):
    here, lost = workers(), workers()
    conns = {"u1": here.connection(), "u2": here.connection(), "u3": lost.connection()}
    for number, (uid, conn) in enumerate(conns.items()):
        join_room(store, uid, conn, opens=int(number == 0), most=5)
    gone = here.connection()
    join_room(store, "u4", gone, most=5)
    leave(store, "u4", gone, 1)
    lost.die()
    before = whole(store)
    assert begin_room(store, "u1", conns["u1"], least=3) == ["too_few_players"]
    assert begin_room(store, "u2", conns["u2"]) == ["not_host"]
    assert begin_room(store, "u1", conns["u2"]) == ["not_in_room"]
    assert begin_room(store, "u1", conns["u1"], code="XXXXXX") == ["unknown_code"]
    assert whole(store) == before
    replies = at_once(6, lambda i: begin_room(store, "u1", conns["u1"]))
    assert sorted(reply[0] for reply in replies) == ["matched"] + ["room_plays"] * 5
    [match] = [reply[1] for reply in replies if reply[0] == "matched"]
    game, *rest = match.split(" ")
    assert rest == ["q", "u1", "u2"] and store.client.zrange(Keys.forming, 0, -1) == [match]
    assert [seat(store, uid).game for uid in ("u1", "u2", "u3", "u4")] == [game, game, "-", "-"]
    assert store.client.hgetall(Keys.playing) == {"q": "2"}
    assert show_room(store)["state"] == "playing"
    assert [release(store, uid, game) for uid in ("u1", "u2")] == [1, 1]
    assert store.client.zscore(Keys.due, f"q room:{CODE}") == 0  # all members are told at once
    assert show_room(store)["state"] == "waiting" and check_room(store) == "open"
    assert begin_room(store, "u1", conns["u1"])[0] == "matched"


def test_a_disconnected_member_is_kept_for_a_while_then_a_host_is_replaced(store, worker, room):
    assert leave(store, "u1", room["u1"], 1) == ["left"]
    assert check_room(store) == "open"
    assert room_events(worker) == [({room["u2"]}, ["name u2"])]
    assert show_room(store)["host"] == "name u1"
    due_in = store.client.zscore(Keys.due, f"q room:{CODE}") - store.now()
    assert 29_000 < due_in <= 30_000
    assert check_room(store, seat_ms=0) == "open"
    view = show_room(store)
    assert (view["host"], len(view["players"])) == ("name u2", 1) and not seat(store, "u1")
    assert room_events(worker) == [({room["u2"]}, ["name u2"])]
    leave(store, "u2", room["u2"], 1)
    assert check_room(store, seat_ms=0) == "gone" and show_room(store) == "expired_code"
    assert not store.client.exists(Keys.seats) and not store.client.exists(Keys.due)


def test_a_member_who_reconnects_replaces_their_older_connection(store, worker, room):
    newer = worker.connection()
    assert room_view(join_room(store, "u2", newer))["connected"] == ["name u1", "name u2"]
    assert worker.events() == [("replaced", "-", {room["u2"]: 0}, "")]
    assert join_room(store, "u2", room["u2"]) == ["stale"]
    assert leave(store, "u2", room["u2"], 1) == ["stale"] and check_room(store) == "open"
    assert show_room(store)["connected"] == ["name u1", "name u2"] and worker.events() == []


@pytest.mark.parametrize("where", ["a queue", "another room"])
def test_a_member_who_joins_a_queue_or_another_room_leaves_the_room(store, worker, room, where):
    conn = worker.connection()
    if where == "a queue":
        join(store, "u2", conn)
    else:
        assert room_view(join_room(store, "u2", conn, code="XXXXXX", opens=1))
    worker.events()
    assert store.client.zscore(Keys.due, f"q room:{CODE}") == 0
    assert check_room(store) == "open"
    assert room_events(worker) == [({room["u1"]}, ["name u1"])]
    assert show_room(store)["players"] == [{"username": "name u1"}]


def test_an_idle_room_closes_and_tells_its_members(store, worker, room):
    assert check_room(store, wait_ms=0) == "gone"
    text = '{"type":"cancelled","queue":"q","reason":"timeout"}'
    told = sorted(worker.events(), key=str)
    assert told == sorted([("cancelled", "-", {conn: 0}, text) for conn in room.values()], key=str)
    assert [seat(store, uid).queue for uid in room] == ["-", "-"]
    assert check_room(store) == "gone" and not store.client.exists(Keys.due)


def test_a_room_whose_members_play_does_not_close(store, worker, room):
    begin_room(store, "u1", room["u1"])
    store.client.hset(Keys.room(CODE), "since", 1)
    assert check_room(store) == "open" and show_room(store)["state"] == "playing"


def test_only_the_host_directs_a_room(store, worker, room):
    before = whole(store)
    assert direct_room(store, "u2", room["u2"], "lock", "1") == ["not_host"]
    assert direct_room(store, "u1", room["u2"], "lock", "1") == ["not_in_room"]
    assert direct_room(store, "u1", room["u1"], "kick", "name u1") == ["no_such_player"]
    assert direct_room(store, "u1", room["u1"], "pass", "nobody") == ["no_such_player"]
    assert whole(store) == before and worker.events() == []
    assert direct_room(store, "u1", room["u1"], "pass", "name u2") == ["ok"]
    assert show_room(store)["host"] == "name u2"
    assert direct_room(store, "u1", room["u1"], "lock", "1") == ["not_host"]
    assert direct_room(store, "u2", room["u2"], "lock", "1") == ["ok"]
    assert show_room(store)["locked"] is True


def test_a_kicked_player_leaves_the_game_and_can_not_rejoin_the_room(store, worker, room):
    game = begin_room(store, "u1", room["u1"])[1].split(" ")[0]
    worker.events()
    reply = direct_room(store, "u1", room["u1"], "kick", "name u2")
    assert reply == ["kicked", game, "u2"]
    kinds = [kind for kind, *_ in worker.events()]
    assert kinds == ["cancelled", "room"] and store.client.hgetall(Keys.playing) == {"q": "1"}
    assert seat(store, "u2").game == "-" == seat(store, "u2").queue
    assert join_room(store, "u2", room["u2"]) == ["refused", "kicked", "-"]


def test_a_player_who_joins_a_playing_room_enters_its_game_if_the_queue_allows_it(
    store, worker, room
):
    game = begin_room(store, "u1", room["u1"])[1].split(" ")[0]
    waits, plays = worker.connection(), worker.connection()
    assert join_room(store, "u3", waits, most=5)[0] == "room" and seat(store, "u3").game == "-"
    assert join_room(store, "u4", plays, most=5, late=1) == ["game", game, CODE]
    assert seat(store, "u4").game == game and store.client.hgetall(Keys.playing) == {"q": "3"}
    assert join_room(store, "u4", plays, most=5, late=1) == ["game", game, CODE]
    # A player who has left the game waits for the next one.
    assert join_room(store, "u4", plays, most=5, late=1, over=game)[0] == "room"
    assert store.client.hgetall(Keys.playing) == {"q": "2"}


def test_room_events_for_the_calling_worker_come_with_its_reply(store, workers):
    here, other = workers(), workers()
    conns = [here.connection(), other.connection(), here.connection()]
    for number, conn in enumerate(conns):
        keys = room_keys(CODE, Keys.playing, Keys.hidden)
        person = f"u{number}", conn, turn_of(conn), "", int(number == 0), 3, 0, f"name {number}"
        reply = store.call(
            "join_room", keys, here.id, *room_rules()[1:], *person, '{"username":"x"}'
        )
    kind, value, event = reply
    assert kind == "events" and value[0] == "room"
    head, _, _ = event.partition("\n")
    number = conns[0].split(".")[1]
    assert re.fullmatch(rf"room {CODE} \d+\.\d{{6}} - {number}:0", head)
    assert here.events() == [] and len(other.events()) == 1


# ---- bots

FILLED = (2, 2, 0, 60_000, -1, 0, 5000, 3000)
NEAR_FILLED = (2, 2, 0, 60_000, 100, 0, 5000, 3000)
TRIO_FILLED = (3, 3, 0, 60_000, -1, 0, 5000, 3000)


def offers(store):
    return store.client.zrange(Keys.bots("q"), 0, -1)


def filled(store, worker, rules=FILLED, rating=1500):
    """Returns the game with a bot of a player whom no other player joined in time."""
    join(store, "u1", worker.connection(), rules, rating=rating)
    waited(store, "u1", 5001)
    outcome, match = check_ticket(store, "u1", rules)
    assert outcome == "matched" and match.split(" ")[1:] == ["q", "u1", "bots:1"]
    return match.split(" ")[0]


def test_bots_fill_a_game_after_a_player_has_waited_for_the_set_time(store, worker):
    join(store, "u1", worker.connection(), TRIO_FILLED)
    waited(store, "u1", 4500)
    assert check_ticket(store, "u1", TRIO_FILLED) == ["waiting"] and offers(store) == []
    assert 0 < store.client.zscore(Keys.due, "q u1") - store.now() <= 500
    join(store, "u2", worker.connection(), TRIO_FILLED)
    waited(store, "u1", 5001)
    outcome, match = check_ticket(store, "u1", TRIO_FILLED)
    assert outcome == "matched" and sorted(match.split(" ")[2:]) == ["bots:1", "u1", "u2"]
    assert store.client.hgetall(Keys.playing) == {"q": "2"} and len(offers(store)) == 1
    assert store.client.zrange(Keys.forming, 0, -1) == [match] and no_tickets(store)


def test_a_human_who_joins_before_the_start_takes_the_seat_of_a_bot_once(store, worker):
    game = filled(store, worker)
    conn = worker.connection()
    assert join(store, "u2", conn, FILLED) == ["seat", game] and offers(store) == []
    assert (seat(store, "u2").game, store.client.hgetall(Keys.playing)) == (game, {"q": "2"})
    assert join(store, "u2", conn, FILLED) == ["game", game, "-"]
    assert join(store, "u3", worker.connection(), FILLED)[0] == "queued"


def test_the_seat_of_a_bot_is_offered_within_the_rating_window_and_before_the_start(store, worker):
    filled(store, worker, NEAR_FILLED)
    assert join(store, "u2", worker.connection(), NEAR_FILLED, rating=1601)[0] == "queued"
    store.client.zadd(Keys.bots("q"), dict.fromkeys(offers(store), store.now() - 1))
    assert join(store, "u3", worker.connection(), NEAR_FILLED, rating=1450)[0] == "queued"
    leave(store, "u3", seat(store, "u3").conn)
    store.client.zadd(Keys.bots("q"), dict.fromkeys(offers(store), store.now() + 999))
    assert join(store, "u4", worker.connection(), NEAR_FILLED, rating=1450)[0] == "seat"


RULES_WITH_BOT = [ANSWER_MS, REVEAL_MS, SEAT_MS, 100, 50, "forfeit", "rated"]
BOT = ["bot1", "Bot Ada", 1500, 0, 1, "500:0 70000:1 900:1"]


def bot_game(store, conn):
    game = trivia.new_game_id(3)
    plan = trivia.write_plan("q", RULES_WITH_BOT, QUIZ, [["u1", "n1", 1500, 500], BOT])
    start = '{"type":"start"}'
    made = store.call("create_game", Keys.game_keys(game), "", plan, 3000, start, conn, 1, "-", 0)
    assert made == 1
    return game


def pass_time(store, game, left_ms):
    """Lets the phase end in so many ms, and advances the game. Returns the outcome."""
    change_state(store.client, game, deadline=store.now() + left_ms)
    return store.run("advance", Keys.game_keys(game), NOBODY)


def test_a_bot_answers_like_a_phone_when_its_time_has_come(store, worker):
    conn = worker.connection()
    game = bot_game(store, conn)
    at = lambda: store.client.zscore(Keys.game_keys(game)[1], game) - store.now()
    pass_time(store, game, -1)
    assert 0 < at() <= 500  # the answer of the bot
    worker.events()
    pass_time(store, game, ANSWER_MS - 400)
    assert worker.events() == [] and 0 < at() <= 100
    pass_time(store, game, ANSWER_MS - 600)
    ((kind, _, targets, body),) = worker.events()
    assert kind == "answered" and json.loads(body)["player"] == "Bot Ada" and set(targets) == {conn}
    assert at() > 50_000
    pass_time(store, game, ANSWER_MS - 700)
    assert worker.events() == [] and stored_game(store.client, game)["state"]["phase"] == "question"
    keys = Keys.game_keys(game)
    answer = lambda *given: store.call("answer", (*keys[1:], keys[0]), "", conn, *given)
    reply = answer(1, 3)
    ((kind, _, _, body),) = worker.events()
    answers = json.loads(body)["answers"]
    assert (reply, kind) == (["ok"], "reveal") and answers["Bot Ada"]["points"] in (148, 149)
    assert 600 <= answers["Bot Ada"]["ms"] < 3000 and answers["n1"]["points"] == 0
    # The bot's second answer would come after the deadline: the question ends without it.
    pass_time(store, game, -1)
    assert at() > 50_000
    answer(2, 0)
    assert pass_time(store, game, 20_000) == "question"
    assert pass_time(store, game, -1) == "reveal"
    assert json.loads(worker.events()[-1][3])["answers"].keys() == {"n1"}
    # The game ends: only a bot is left in it.
    assert store.call("exit_game", keys, "", conn, 1)[0] == "settle"
    assert stored_game(store.client, game)["state"]["reason"] == "abandoned"
    assert store.call("finish_game", keys, "", "[]", 60) == 1
    assert stored_game(store.client, game)["plan"]["players"][1][5] == ""
    assert store.call("drop_game", (Keys.game(game),), "u1") == 1


def test_the_seat_of_a_bot_is_taken_before_the_first_question_only(store, worker):
    ann, bob = worker.connection(), worker.connection()
    game = bot_game(store, ann)
    heard = worker.events()[0][2][ann]

    def enter(uid, conn):
        person = f'["{uid}","name {uid}",1400,90]'
        return store.call(
            "enter_game", Keys.game_keys(game), "", uid, conn, 1, "bot", person, uid, "2", "u1", "1"
        )

    reply = enter("u2", bob)
    assert reply[0] == "ok"
    plan = trivia.parse_plan(reply[2])
    assert (plan["players"][1], plan["marks"]) == (["u2", "name u2", 1400, 90], "12")
    ((kind, _, targets, _),) = worker.events()
    assert targets == {ann: heard + 2}  # the gap makes the connection ask for the game
    assert enter("u3", worker.connection()) == ["over"] and enter("u2", bob)[0] == "ok"
    late = bot_game(store, ann)
    pass_time(store, late, -1)
    game = late
    assert enter("u2", bob) == ["over"]
    assert stored_game(store.client, late)["plan"]["players"][1] == BOT


# ---- time

CLOCKS = [
    (*reversed(Keys.shard_keys(0)), lambda store: list(store.due(Keys.shard_keys(0)))),
    (Keys.lobby_clock, Keys.due, due_tickets),
]


def clock_of(store, key):
    lag, last, *_ = store.client.get(key).split(" ")
    return int(lag), int(last)


@pytest.mark.parametrize("key, pending, look", CLOCKS)
@pytest.mark.parametrize("jump_ms", [-3_600_000, -1000, 3_600_000, 4000])
def test_game_time_pauses_while_the_clock_is_set_or_no_function_runs(
    store, key, pending, look, jump_ms
):
    """The test can't set the clock: it changes the time at which the clock was last read."""
    store.client.zadd(pending, {"q later": store.now() - jump_ms + 2000})
    seen = store.now() - jump_ms
    store.client.set(key, f"0 {seen}")
    assert look(store) in ([], [[], []]), "the jump made nothing due"
    lag, last = clock_of(store, key)
    assert last == seen and 0 <= lag - jump_ms < 1000
    look(store)
    assert 0 <= clock_of(store, key)[0] - lag < 5, "time goes on from there"


@pytest.mark.parametrize("key, pending, look", CLOCKS)
def test_a_steady_clock_is_stored_once_a_second_and_keeps_its_lag(store, key, pending, look):
    now = store.now()
    store.client.zadd(pending, {"q later": now + 3_600_000})
    look(store)
    assert clock_of(store, key) == (0, int(store.client.get(key).split(" ")[1]))
    now = store.now()
    store.client.set(key, f"500 {now - 600}")
    look(store)
    assert clock_of(store, key) in [(500, now - 600), (500, store.now() - 500)], (
        "too early to write it again"
    )
    store.client.set(key, f"500 {store.now() - 2500}")
    look(store)
    lag, last = clock_of(store, key)
    assert lag == 500 and 0 <= store.now() - 500 - last < 1000


@pytest.mark.parametrize(("lag_ms", "ahead_ms"), [(5000, -100_000), (0, 100_000)])
def test_a_new_game_on_an_empty_shard_starts_at_the_time_of_redis(store, worker, lag_ms, ahead_ms):
    """So it does after the clock was set back: else game time would jump at the next call."""
    game = trivia.new_game_id(3)
    store.client.set(Keys.game_keys(game)[2], f"{lag_ms} {store.now() + ahead_ms}")
    store.run(
        "create_game",
        Keys.game_keys(game),
        "q",
        "1 1 1 1 1 continue rated",
        QUIZ,
        3000,
        "{}",
        "u1",
        "n1",
        "-",
        1,
        NOBODY,
    )
    lag, last = clock_of(store, Keys.game_keys(game)[2])
    assert lag == 0 and 0 <= store.now() - last < 2000
    deadline = int(flat(store.client.hgetall(Keys.game(game)))["deadline"])
    assert 0 <= store.now() + 3000 - deadline < 2000


def test_an_answer_while_the_clock_is_set_back_is_timed_correctly(store, worker, game):
    game.to_round(1)
    lag, last = clock_of(store, game.keys[2])
    # The clock jumps an hour back: all stored times are an hour ahead of it.
    game.set(deadline=int(game.deadline) + 3_600_000)
    store.client.set(game.keys[2], f"0 {last + 3_600_000}")
    assert game.answer(1, 0) == "ok"
    choice, ms, points = map(int, game.ans1.split(" "))
    assert choice == 0 and 0 <= ms <= 2000 and points > 140


@pytest.mark.parametrize("phase", ["start", "reveal"])
def test_a_question_that_was_due_to_open_is_open_after_a_gap_of_the_clock(store, worker, phase):
    """Workers show a question without a call to Redis, so it must not be taken back."""
    game = Play(store, [worker.connection(), worker.connection()])
    rounds = 1
    if phase == "reveal":
        game.to_round(1).next()
        rounds = 2
    assert game.phase == phase and untouched(game, game.advance) == phase
    _, last = clock_of(store, game.keys[2])
    store.client.set(game.keys[2], f"-3600000 {last} 1")  # no function has run for an hour
    assert game.answer(1, 0, rounds) == "ok"
    assert (game.phase, int(game.round)) == ("question", rounds)
    assert 0 <= int(game.deadline) - last - ANSWER_MS < 2000, (
        "the players get the full time from now on"
    )
    assert store.client.zscore(game.deadlines, game.id) == int(game.deadline)


# ---- a game


class Play:
    """A game in the store."""

    def __init__(self, store, conns, on_exit="forfeit", quiz=QUIZ):
        self.store, self.conns, self.id = store, list(conns), trivia.new_game_id(3)
        self.caller = NOBODY
        self.key, self.deadlines, _ = self.keys = Keys.game_keys(self.id)
        rules = f"{ANSWER_MS} {REVEAL_MS} {SEAT_MS} 100 50 {on_exit} rated"
        # The turn says that each player has their third connection.
        people = [x for i, conn in enumerate(self.conns, 1) for x in (f"u{i}", f"n{i}", conn, TURN)]
        start = json.dumps({"type": "start", "game": self.id})
        self.creation = ("q", rules, quiz, 3000, start, *people)
        self.created = self.run("create_game", *self.creation)

    def run(self, name, *args):
        return self.store.run(name, self.keys, *args, self.caller)

    def __getattr__(self, name):
        return flat(self.store.client.hgetall(self.key)).get(name)

    def set(self, **fields):
        set_flat(self.store.client, self.key, fields)

    def snapshot(self):
        return self.store.client.hgetall(self.key), self.store.client.zscore(
            self.deadlines, self.id
        )

    def advance(self):
        return self.run("advance")

    def next(self):
        """Lets the deadline of this phase pass. Returns the next phase."""
        self.set(deadline=self.store.now())
        return self.advance()

    def to_round(self, number):
        while int(self.round) < number:
            self.next()
        assert self.phase == "question"
        return self

    def answer(self, i, choice, round=None):
        return self.run("answer", self.conns[i - 1], round or self.round, choice)

    def enter(self, uid, conn, turn=TURN):
        return self.run("enter_game", uid, conn, turn)

    def exit(self, i, leaving=0):
        return self.run("exit_game", self.conns[i - 1], leaving)

    def finish(self, ranking="[]", erased=""):
        return self.run("finish_game", ranking, 1000, erased)

    def phase_ms(self):
        """Returns for how many ms the phase lasts."""
        return int(self.deadline) - self.store.now()

    def left_ms(self):
        """Returns the ms until the game is due to be advanced."""
        return self.store.client.zscore(self.deadlines, self.id) - self.store.now()


@pytest.fixture
def game(store, worker):
    """A game of two players on one worker; the event `start` was read."""
    made = Play(store, [worker.connection(), worker.connection()])
    worker.events()
    return made


def untouched(game, act):
    """Returns what act() returns, and asserts that it does not change the game."""
    before = game.snapshot()
    result = act()
    assert game.snapshot() == before
    return result


def test_a_result_is_written_once_and_only_if_the_game_exists(store):
    key = Keys.game("000000000001")
    fix = functools.partial(store.call, "fix_result", (key,))
    assert fix("[1]") is None and not store.client.exists(key)
    store.client.hset(key, "plan", "[]")
    assert fix("[1]") == fix("[2]") == store.client.hget(key, "result") == "[1]"


def test_a_game_is_created_once_and_told_to_its_players(store, workers):
    one, two = workers(), workers()
    game = Play(store, [one.connection(), two.connection(), one.connection(), "-"])
    assert game.created == 1
    a, b, c, _ = game.conns
    start = game.creation[4]
    assert one.events() == [("start", game.id, {a: 1, c: 1}, start)]
    assert two.events() == [("start", game.id, {b: 1}, start)]
    assert (game.phase, game.round, game.players, game.conn4, game.seq4) == (
        "start",
        "0",
        "4",
        "",
        "0",
    )
    assert [game.gone1, game.score1, game.log1, game.ans1, game.turn1, game.turn4] == [
        "",
        "0",
        "",
        "",
        "3",
        "3",
    ]
    assert (
        SEAT_MS - 2000 < int(game.gone4) - store.now() <= SEAT_MS and 2000 < game.phase_ms() <= 3000
    )
    assert untouched(game, lambda: game.run("create_game", *game.creation)) == 0
    assert one.events() == two.events() == [] and store.client.ttl(game.key) == -1


def test_a_running_game_of_two_takes_less_memory_than_in_version_1(store, worker):
    """It took 656 bytes in that version."""
    quiz = " ".join(f"{number}:0123" for number in range(691, 701))
    game = Play(store, [worker.connection(), worker.connection()], quiz=quiz)
    people = [x for conn in game.conns for x in (trivia.new_uid(), "a name of 15 ch", conn, TURN)]
    store.client.delete(game.key)
    game.run(
        "create_game",
        "random",
        "15000 3000 30000 100 50 forfeit rated",
        *game.creation[2:5],
        *people,
    )
    for number in range(1, 11):
        game.to_round(number)
        game.answer(1, 0)
        assert number == 10 or game.answer(2, 1) == "ok"
    assert store.client.memory_usage(game.key, samples=0) < 656


def test_game_events_for_the_calling_worker_come_with_its_reply(store, workers):
    one, two = workers(), workers()
    game = Play(store, [one.connection(), two.connection()])
    a, b = game.conns
    number = a.split(".")[1]
    one.events(), two.events()
    game.caller = one.id

    def told(reply, kind, seq, coming="-"):
        """Returns the value of a reply that brings one event, for the first player."""
        mark, value, event = reply
        head, body = event.split("\n")
        assert mark == "events" and re.fullmatch(
            rf"{kind} {game.id} \d{{10}}\.\d{{6}} {coming} {number}:{seq}", head
        ), reply
        assert json.loads(body)["type"] == kind
        return value

    assert game.next() == "question"  # the worker shows it without an event, with `seq` 2
    assert game.answer(1, 0) == "ok", "a player gets no event about their own answer"
    question = rf"\d+:2:8:1032:{ANSWER_MS}"
    assert told(game.answer(2, 0), "reveal", 3, question) == "ok"
    assert told(game.run("relay", b, "wave", ""), "wave", 4, question) == "ok"
    assert told(game.exit(2), "user_exit", 5, question) == "reveal"
    assert told(game.enter("u2", b), "user_return", 6, question)[0] == "ok"
    assert told(game.exit(2, leaving=1), "user_exit", 7, question) == "settle"
    assert told(game.finish(), "end", 8) == 1
    assert [kind for kind, *_ in two.events()] == [
        "question",
        "answered",
        "reveal",
        "end",
    ] and one.events() == []
    store.client.delete(game.key)
    first = rf"3000:1:7:0123:{ANSWER_MS}"
    assert told(game.run("create_game", *game.creation), "start", 1, first) == 1


def test_a_game_that_many_create_at_once_begins_once(store, worker):
    game = Play(store, [worker.connection(), worker.connection()])
    store.client.delete(game.key)
    worker.events()
    assert sum(
        at_once(8, lambda i: game.run("create_game", *game.creation))
    ) == 1 and worker.kinds() == ["start"]


def test_due_games_are_listed_and_not_changed(store):
    (key, _), now = Keys.shard_keys(0), store.now()
    store.client.zadd(key, {f"g{i}": now - i for i in range(40)} | {"later": now + 60_000})
    before = store.client.zrange(key, 0, -1, withscores=True)
    for late in at_once(4, lambda i: store.due(Keys.shard_keys(0))):
        assert late.keys() == {f"g{i}" for i in range(40)}
        assert all(-i - 5000 < late[f"g{i}"] <= -i for i in range(40))
    assert store.client.zrange(key, 0, -1, withscores=True) == before
    assert len(store.due(Keys.shard_keys(0), 0, 7)) == 7


def test_games_of_other_shards_are_due_only_after_a_grace_period(store):
    (key, _), now = Keys.shard_keys(0), store.now()
    store.client.zadd(key, {"long": now - 9000, "just": now})
    assert list(store.due(Keys.shard_keys(0), -8000)) == ["long"]
    assert store.due(Keys.shard_keys(0), -60_000) == {}


def test_a_worker_is_told_which_games_will_be_due_soon(store):
    key, clock = Keys.shard_keys(0)
    assert store.call("advance", (key, clock), NOBODY, 500, 500) == []
    assert not store.client.exists(clock), "a shard without games costs only this call"
    store.client.zadd(key, {"soon": store.now() + 60_000, "late": store.now() + 90_000})
    [(game, wait_ms)] = store.due(Keys.shard_keys(0), 60_000).items()
    assert game == "soon" and 0 < wait_ms <= 60_000


def test_a_game_moves_through_its_phases_at_its_deadlines(store, worker, game):
    a, b = game.conns
    assert untouched(game, game.advance) == "start"
    seqs, expected = itertools.count(2), []
    for number, (question, order) in enumerate((("7", "0123"), ("8", "1032"), ("9", "10")), 1):
        assert game.next() == "question" and ANSWER_MS - 2000 < game.left_ms() <= ANSWER_MS
        expected.append(
            (
                "question",
                game.id,
                {a: (n := next(seqs)), b: n},
                f"{number} {question} {order} {ANSWER_MS}",
            )
        )
        assert untouched(game, game.advance) == "question"
        assert game.next() == "reveal" and REVEAL_MS - 2000 < game.phase_ms() <= REVEAL_MS
        until = 0 if number == 3 else ANSWER_MS  # a question opens without a call
        assert REVEAL_MS - 2000 < game.left_ms() - until <= REVEAL_MS
        expected.append(("reveal", game.id, {a: (n := next(seqs)), b: n}, None))
        assert untouched(game, game.advance) == "reveal"
    assert (
        game.next() == "settle"
        and game.reason == "finished"
        and 0 <= store.now() - int(game.ended) < 5000
    )
    events = worker.events()
    assert [
        (*event[:3], event[3] if event[0] == "question" else None) for event in events
    ] == expected
    body = json.loads(events[1][3])
    assert body == {
        "type": "reveal",
        "game": game.id,
        "round": 1,
        "correct": 0,
        "answers": {},
        "scores": {"n1": 0, "n2": 0},
        "reveal_ms": REVEAL_MS,
    }
    assert [game.log1, game.log2] == ["- - - "] * 2
    assert game.advance() == game.advance() == "settle" and 1000 < game.left_ms() <= 2000


def test_advance_removes_the_deadline_of_a_missing_game(store):
    game = trivia.new_game_id(3)
    keys = Keys.game_keys(game)
    store.client.zadd(keys[1], {game: 1})
    assert store.run("advance", keys, NOBODY) == "missing" and store.client.keys() == [keys[2]]


def test_a_deadline_that_many_process_at_once_advances_the_game_once(store, worker, game):
    for kind, phase in (("question", "question"), ("reveal", "reveal")):
        game.set(deadline=store.now())
        assert set(at_once(8, lambda i: game.advance())) == {phase} and worker.kinds() == [kind]
    assert game.round == "1" and game.log1 == "- "


def test_the_seat_of_an_absent_player_is_given_up_after_its_time(store, worker):
    game = Play(store, [worker.connection() for _ in range(3)], "continue").to_round(1)
    game.exit(1)
    assert game.left_ms() <= SEAT_MS
    worker.events()
    assert untouched(game, game.advance) == "question"
    game.set(gone1=1)
    assert (
        game.advance() == "question" and game.gone1 == "left" and game.left_ms() > ANSWER_MS - 5000
    )
    ((kind, _, targets, body),) = worker.events()
    assert (kind, json.loads(body)["player"], json.loads(body)["returns_ms"]) == (
        "user_exit",
        "n1",
        0,
    )
    assert set(targets) == set(game.conns[1:])
    assert untouched(game, game.advance) == "question"


@pytest.mark.parametrize(
    "on_exit, left, reason",
    [
        ("forfeit", 1, "forfeit"),
        ("forfeit", 2, "abandoned"),
        ("continue", 1, None),
        ("continue", 2, "abandoned"),
    ],
)
@pytest.mark.parametrize("how", ["expired", "left"])
def test_a_deserted_game_ends_as_its_queue_says(store, worker, on_exit, left, reason, how):
    game = Play(store, [worker.connection(), worker.connection()], on_exit).to_round(2)
    for i in range(1, left + 1):
        game.exit(i, int(how == "left"))
        game.set(**{f"gone{i}": 1} if how == "expired" else {})
    phase = game.advance()
    # In a forfeit the first player who leaves ends the game. The second one changes nothing.
    expected = "forfeit" if how == "left" and on_exit == "forfeit" else reason
    assert (phase == "settle", game.reason) == (bool(expected), expected)


@pytest.mark.parametrize(
    "round, choice, prepare, code",
    [
        (2, 1, None, "ok"),
        (2, 3, None, "ok"),
        (2, 0, None, "ok"),
        (2, 4, None, "no_such_choice"),
        (2, 15, None, "no_such_choice"),
        (3, 0, None, "wrong_round"),
        (1, 0, None, "late_answer"),
        (2, 1, {"deadline": 1}, "late_answer"),
        (2, 1, {"phase": "reveal"}, "late_answer"),
        (2, 1, {"phase": "settle"}, "late_answer"),
        (2, 1, {"ans1": "0 5 0"}, "already_answered"),
        (2, 1, {"conn1": ""}, "not_playing"),
        (2, 1, {"conn1": "x.9"}, "not_playing"),
        (2, 1, {"gone1": "left"}, "not_playing"),
        (1, 1, {"ans1": "0 5 0"}, "late_answer"),
    ],
)
def test_an_answer_is_judged(worker, game, round, choice, prepare, code):
    game.to_round(2)
    if prepare:
        game.set(**prepare)
    worker.events()
    act = lambda: game.answer(1, choice, round)
    if code != "ok":
        assert untouched(game, act) == code and worker.events() == []
        return
    assert act() == "ok"
    given, ms, points = map(int, game.ans1.split(" "))
    assert given == choice and 0 <= ms < 5000
    assert points == (100 + 50 * (ANSWER_MS - ms) // ANSWER_MS if choice == RIGHT[2] else 0)
    ((kind, _, targets, body),) = worker.events()
    assert kind == "answered" and set(targets) == {game.conns[1]}
    assert json.loads(body) == {"type": "answered", "game": game.id, "round": 2, "player": "n1"}
    assert untouched(game, lambda: game.answer(1, 1, 2)) == "already_answered"


@pytest.mark.parametrize(
    "ago, points", [(0, 150), (ANSWER_MS // 2, 125), (ANSWER_MS - 3000, 102), (-ANSWER_MS, 150)]
)
def test_points_fall_with_the_time_an_answer_takes(store, game, ago, points):
    game.to_round(1).set(deadline=store.now() - ago + ANSWER_MS)
    assert game.answer(1, 0) == "ok"
    # 50 points fall within 60 s, and the answer may be up to 4 s late.
    assert 0 <= points - int(game.ans1.split(" ")[2]) <= 4


def test_calls_for_a_missing_game_are_refused(store):
    keys = Keys.game_keys("00aaaaaaaaaa")
    assert store.run("answer", keys, "w.1", 1, 0, NOBODY) == "not_playing"
    assert store.run("exit_game", keys, "w.1", 0, NOBODY) == "missing"
    assert store.run("enter_game", keys, "u1", "w.1", 1, NOBODY) == ["missing"]
    assert store.run("relay", keys, "w.1", "emoji", "", NOBODY) == "not_playing"
    assert store.run("finish_game", keys, "[]", 10, "u1", NOBODY) == 0
    assert store.client.keys() == [keys[2]]


def test_the_last_answer_reveals_the_round(worker, game):
    game.to_round(2)
    worker.events()
    assert game.answer(1, 1) == "ok" and game.answer(2, 0) == "ok"
    assert (game.phase, game.log2.split(" ")[1].split(":")[::2]) == ("reveal", ["0", "0"])
    answered, reveal = worker.events()
    b = game.conns[1]
    assert (answered[0], reveal[0]) == ("answered", "reveal") and reveal[2][b] == answered[2][b] + 1
    body = json.loads(reveal[3])
    points = body["answers"]["n1"]["points"]
    assert 100 < points <= 150 and body["scores"] == {"n1": points, "n2": 0} == {
        "n1": int(game.score1),
        "n2": 0,
    }
    assert body["correct"] == 1 and {k: v["choice"] for k, v in body["answers"].items()} == {
        "n1": 1,
        "n2": 0,
    }
    assert game.answer(1, 1) == "late_answer"


def test_one_call_judges_answers_in_several_games_of_a_shard(store, worker):
    pairs = [[worker.connection(), worker.connection()] for _ in range(2)]
    one, two = [Play(store, pair).to_round(1) for pair in pairs]
    keys = *one.keys[1:], one.key, two.key, Keys.game("03aaaaaaaaaa"), one.key
    answers = (one.conns[0], 1, 0), (two.conns[0], 1, 9), ("w.1", 1, 0), (one.conns[1], 1, 1)
    arguments = itertools.chain.from_iterable(answers)
    verdicts = store.call("answer", keys, NOBODY, *arguments)
    assert verdicts == ["ok", "no_such_choice", "not_playing", "ok"]
    assert (one.phase, two.phase) == ("reveal", "question")


def test_of_several_answers_at_once_the_first_counts(worker, game):
    game.to_round(1)
    codes = at_once(8, lambda i: game.answer(1, i % 4))
    assert sorted(codes) == ["already_answered"] * 7 + ["ok"]
    assert game.ans1.split(" ")[0] == str(codes.index("ok") % 4) and worker.kinds() == [
        "question",
        "answered",
    ]


def test_the_last_two_answers_at_once_reveal_the_round_once(worker, game):
    game.to_round(1)
    assert at_once(2, lambda i: game.answer(i + 1, 0)) == ["ok", "ok"]
    assert sorted(worker.kinds()) == ["answered", "question", "reveal"] and game.phase == "reveal"


def a_while_later(game, i, ms):
    """Lets so many ms pass since player i lost their connection."""
    kept = int(getattr(game, f"gone{i}")) - ms
    game.set(**{f"gone{i}": kept})


def test_a_question_waits_briefly_when_the_last_unanswered_player_disconnects(worker, game):
    game.to_round(1)
    game.answer(1, 0)
    worker.events()
    assert game.exit(2) == "question" and worker.kinds() == ["user_exit"]
    assert 1000 < game.left_ms() <= 2000, "the game is advanced again by then"
    a_while_later(game, 2, 900)
    assert game.advance() == "question"
    a_while_later(game, 2, 1100)
    assert game.advance() == "reveal" and worker.kinds() == ["reveal"]
    assert 2000 < game.phase_ms() <= REVEAL_MS


def test_a_player_who_reconnects_quickly_loses_no_round(worker, game):
    game.to_round(1)
    game.answer(1, 0)
    game.exit(2)
    game.conns[1] = worker.connection()
    assert game.enter("u2", game.conns[1])[0] == "ok"
    assert game.left_ms() > 10_000 and game.advance() == "question"
    assert game.answer(2, 1) == "ok" and game.phase == "reveal" and game.log2.startswith("1:")


def test_a_question_closes_when_the_last_unanswered_player_leaves(worker, game):
    game.set(rules=game.rules.replace("forfeit", "continue"))
    game.to_round(1)
    game.answer(1, 0)
    assert game.exit(2, leaving=1) == "reveal"


def test_a_question_stays_open_while_all_players_are_disconnected(worker, game):
    game.to_round(1)
    game.answer(1, 0)
    assert game.exit(1) == "question" and game.exit(2) == "question"
    for i in (1, 2):
        a_while_later(game, i, 2000)
    assert game.advance() == "question" and game.left_ms() > SEAT_MS - 4000


def test_a_question_closes_when_the_worker_of_the_last_unanswered_player_dies(store, workers):
    alive, lost = workers(), workers()
    game = Play(store, [alive.connection(), lost.connection()], "continue").to_round(1)
    alive.events()
    lost.die()
    assert game.answer(1, 0) == "ok"
    assert game.conn2 == "" and game.phase == "question" and alive.kinds() == ["user_exit"]
    a_while_later(game, 2, 2000)
    assert game.advance() == "reveal" and alive.kinds() == ["reveal"]


@pytest.mark.parametrize("leaving", [0, 1])
@pytest.mark.parametrize("on_exit", ["forfeit", "continue"])
def test_an_exit_happens_once_and_the_opponents_are_told_once(store, worker, leaving, on_exit):
    game = Play(store, [worker.connection() for _ in range(2)], on_exit).to_round(1)
    worker.events()
    ends = leaving and on_exit == "forfeit"
    goes_on = "early" if leaving else "question"
    assert game.exit(1, leaving) == ("settle" if ends else goes_on)
    ((kind, _, targets, body),) = worker.events()
    assert kind == "user_exit" and set(targets) == {game.conns[1]}
    returns = json.loads(body)["returns_ms"]
    assert returns == 0 if leaving else SEAT_MS - 10 <= returns <= SEAT_MS
    assert (game.gone1 == "left") == bool(leaving) and game.conn1 == (game.conns[0] if ends else "")
    assert untouched(game, lambda: game.exit(1, leaving)) == "stale" and worker.events() == []


@pytest.mark.parametrize("connected", [True, False])
def test_a_player_can_be_made_to_leave_by_their_uid(worker, game, connected):
    game.to_round(1)
    if not connected:
        game.exit(1)
    worker.events()
    assert game.run("exit_game", "nobody", 1) == "stale" and worker.events() == []
    assert game.run("exit_game", "u1", 1) == "settle"
    assert (game.gone1, game.reason) == ("left", "forfeit")
    assert worker.kinds() == ["user_exit"]
    assert untouched(game, lambda: game.run("exit_game", "u1", 1)) == "stale"


def test_a_player_who_has_left_can_not_leave_again(store, worker):
    game = Play(store, [worker.connection() for _ in range(3)], "continue").to_round(1)
    assert game.run("exit_game", "u1", 1) == "early"
    worker.events()
    assert untouched(game, lambda: game.run("exit_game", "u1", 1)) == "stale"
    assert worker.events() == []


def test_an_exit_is_early_until_a_player_has_answered(store, worker):
    game = Play(store, [worker.connection() for _ in range(5)], "continue")
    assert game.exit(1, leaving=1) == "early"
    game.to_round(2)  # no player answered in the first round
    assert game.exit(2, leaving=1) == "early"
    game.answer(3, 0)
    assert game.exit(4, leaving=1) == "question"
    game.to_round(3)
    assert game.exit(5, leaving=1) == "question"


@pytest.mark.parametrize("phase", ["settle", "end"])
def test_an_exit_from_a_game_that_is_over_is_stale(worker, game, phase):
    game.set(phase=phase)
    assert untouched(game, lambda: game.exit(1, 1)) == "stale" and worker.events() == []


@pytest.mark.parametrize("reason", ["stopped", "void"])
def test_a_game_is_stopped_once_and_keeps_its_reason(worker, game, reason):
    game.to_round(1)
    worker.events()
    assert game.run("stop_game", reason) == "settle"
    assert (game.phase, game.reason) == ("settle", reason) and int(game.ended) > 0
    assert untouched(game, lambda: game.run("stop_game", "other")) == "stale"
    game.set(phase="end")
    assert untouched(game, lambda: game.run("stop_game", reason)) == "stale"
    assert worker.events() == []


def test_question_ratings_match_the_true_difficulty_after_50_answers(store):
    dice = random.Random(11)
    true = {str(n): dice.gauss(1500, 300) for n in range(150)}
    rules = *trivia.LEVEL_START, trivia.LEVEL_LEAST_SIGMA, trivia.LEVEL_A_DAY
    for _ in range(10):  # days
        for number, difficulty in true.items():
            answers = []
            for _ in range(5):
                player = dice.gauss(1500, 250)
                right = dice.random() < 1 / (1 + 10 ** ((difficulty - player) / 400))
                answers.append(f"{player:.0f}:{right:d}")
            store.call("rate_question", (Keys.levels,), number, *rules, *answers)
        rows = store.client.hgetall(Keys.levels)
        for number, row in rows.items():  # one day passes
            rating, sigma, day, start = row.split(" ")
            assert abs(float(rating) - float(start)) <= trivia.LEVEL_A_DAY + 0.1
            store.client.hset(Keys.levels, number, f"{rating} {sigma} {int(day) - 1} {start}")
    found = {number: float(row.split(" ")[0]) for number, row in rows.items()}
    numbers = sorted(true)
    pairs = [true[n] for n in numbers], [found[n] for n in numbers]
    assert statistics.correlation(*pairs) > 0.95
    store.client.delete(Keys.levels)


def test_a_players_flag_counts_once_and_flags_are_limited(store):
    keys = Keys.flags(7), Keys.flagged
    flag = lambda who: store.call("flag_question", keys, 7, who, 3)
    assert [flag(who) for who in "aabcd"] == [1, 0, 1, 1, 0]
    assert store.client.zscore(Keys.flagged, 7) == 3
    store.client.delete(*keys)


def test_sums_of_a_question_are_added_number_by_number(store):
    for _ in range(2):
        assert store.call("add_stats", (Keys.stats,), 3, "1 0 50 1", 4, "2") == 2
    store.call("add_stats", (Keys.stats,), 4, "1 2 3")
    assert store.client.hgetall(Keys.stats) == {"3": "2 0 100 2", "4": "5 2 3"}
    store.client.delete(Keys.stats)


def test_a_repair_is_applied_once_and_only_to_the_game_as_it_was_read(store):
    user, mended = Keys.user("u9"), Keys.mended("u9")
    board = "weekly", "wins", "2026-W01", 0
    repair = lambda: store.call(
        "apply_repair", (user, mended), "g 5", 60, 1, "-3.5", 1500, 0, *board
    )
    assert repair() == []
    fields = {"username": "n", "wins": 4, "board:weekly": "2026-W02 3 wins"}
    store.client.hset(user, mapping=fields)
    assert repair()
    assert repair() == []
    told = store.client.hgetall(user)
    assert (told["wins"], told["rating"], told["board:weekly"]) == (
        "5",
        "1496.5",
        "2026-W02 4 wins",
    )
    assert 0 < store.client.ttl(mended) <= 60
    key = Keys.game("00abcdefghij")
    plan = trivia.write_plan("q", [1, 1, 1, 1, 1, "continue", "rated"], "7:01", [["u9", "n"]])
    player = {"turn": 0, "seq": 0, "score": 5}
    state = {"phase": "end", "round": 1, "deadline": 0, "reason": "finished", "ended": 1}
    text = trivia.write_state(state | {"players": [player]})
    store.client.hset(key, mapping={"plan": plan, "state": text, "1": "0:5:5"})
    repair = {"quiz": "8:10", "scores": [0], "result": '[{"rank":1}]', "rounds": {"1": "0:5:0"}}
    repair = trivia.dumps(repair)
    begin = lambda quiz: store.call("begin_repair", (key,), quiz, repair)
    assert [begin("7:10"), begin("7:01"), begin("7:01")] == [0, 1, 0]
    store.call("forget_player", (key,), "u9")  # the repair must not bring the player back
    assert [store.call("end_repair", (key,), repair) for _ in range(2)] == [1, 0]
    fields = store.client.hgetall(key)
    assert trivia.parse_plan(fields["plan"])["quiz"] == "8:10" and "u9" not in fields["plan"]
    assert trivia.parse_state(fields["state"])["players"][0]["score"] == 0
    assert (fields["1"], fields["result"], "repair" in fields) == ("0:5:0", '[{"rank":1}]', False)
    assert begin("7:01") == 0
    for one in (user, mended, key):
        store.client.delete(one)


def test_a_switch_is_set_only_if_it_is_as_it_was_read(store):
    key = Keys.switches
    assert store.call("swap_field", (key,), "queue q", "", '{"text":"a"}') == 1
    assert store.call("swap_field", (key,), "queue q", "", '{"text":"b"}') == 0
    assert store.call("swap_field", (key,), "queue q", '{"text":"a"}', '{"text":"b"}') == 1
    assert store.client.hgetall(key) == {"queue q": '{"text":"b"}'}
    assert store.call("swap_field", (key,), "queue q", '{"text":"b"}', "") == 1
    assert not store.client.exists(key)
    switch = lambda n: store.call("swap_field", (key,), "registration", "", f'{{"text":"{n}"}}')
    assert sorted(at_once(8, switch)) == [0] * 7 + [1]
    store.client.delete(key)


def entered(reply):
    assert reply[0] == "ok"
    return flat({"plan": reply[2], "state": reply[3]})


def test_the_opponents_are_told_once_that_a_player_returns(store, workers):
    one, two = workers(), workers()
    game = Play(store, [one.connection(), one.connection()]).to_round(1)
    assert entered(untouched(game, lambda: game.enter("u1", game.conns[0])))["phase"] == "question"
    game.exit(1)
    one.events()
    again = two.connection()
    reply = game.enter("u1", again, TURN + 1)
    assert abs(int(reply[1]) - store.now()) < 5000
    fields = entered(reply)
    assert fields == flat(store.client.hgetall(game.key))
    assert (fields["conn1"], fields["gone1"], fields["turn1"]) == (again, "", str(TURN + 1))
    ((kind, _, targets, body),) = one.events()
    assert (kind, list(targets), json.loads(body)["player"]) == (
        "user_return",
        [game.conns[1]],
        "n1",
    )
    assert untouched(game, lambda: game.enter("u1", again, TURN + 1))[0] == "ok"
    assert one.events() == two.events() == []
    assert game.left_ms() > SEAT_MS  # the deadline of the empty seat is removed
    game.exit(2)
    assert two.events()[0][2] == {again: int(fields["seq1"]) + 1}


def test_no_return_is_told_when_a_connection_replaces_another(worker, game):
    new = worker.connection()
    assert game.enter("u1", new, TURN + 1)[0] == "ok" and worker.events() == []
    assert untouched(game, lambda: game.exit(1)) == "stale"  # late, from the older connection
    assert (game.conn1, game.turn1) == (new, str(TURN + 1))


@pytest.mark.parametrize("newer", ["there", "gone", "entered twice"])
def test_a_replaced_connection_can_not_enter_the_game_again(worker, game, newer):
    new = worker.connection()
    for turn in range(TURN + 1, TURN + (3 if newer == "entered twice" else 2)):
        game.enter("u1", new := worker.connection(), turn)
    if newer == "gone":
        assert game.run("exit_game", new, 0) == "start"
    worker.events()
    for turn in (TURN, 0):
        assert untouched(game, lambda: game.enter("u1", game.conns[0], turn)) == ["stale"]
    assert worker.events() == [] and game.enter("u1", new, turn := int(game.turn1))[0] == "ok"
    # Each player has turns of their own.
    assert game.enter("u2", worker.connection(), TURN)[0] == "ok"


def test_of_several_connections_that_enter_at_once_the_newest_stays(worker, game):
    conns = [worker.connection() for _ in range(8)]
    outcomes = at_once(8, lambda i: game.enter("u1", conns[i], TURN + 1 + i)[0])
    assert (game.conn1, game.turn1) == (conns[7], str(TURN + 8)) and outcomes[7] == "ok"
    assert set(outcomes) <= {"ok", "stale"} and worker.events() == []


@pytest.mark.parametrize(
    "uid, prepare", [("stranger", {}), ("u1", {"gone1": "left"}), ("u1", {"phase": "end"})]
)
def test_a_player_for_whom_a_game_is_over_can_not_enter_it(worker, game, uid, prepare):
    game.set(**prepare)
    for turn in (0, TURN, TURN + 1):
        assert (
            untouched(game, lambda: game.enter(uid, "w.9", turn)) == ["over"]
            and worker.events() == []
        )


def test_muted_players_get_no_messages_of_each_other_until_they_are_unmuted(worker, game):
    relay = lambda i: game.run("relay", game.conns[i], "emoji", '"emoji":"x"')
    mute = lambda is_muted, *who: game.store.run("mute", (game.keys[0],), *who, is_muted)
    for who in (("u1", "u2"), ("u2", "u1")):
        assert mute(1, *who) == "ok" and game.store.client.hget(game.keys[0], "muted") == "1:2 "
    assert relay(0) == relay(1) == "ok" and worker.events() == []
    assert mute(1, "u1", "stranger") == "over" and relay(0) == "ok" and worker.events() == []
    assert mute(0, "u1", "u2") == "ok" and not game.store.client.hexists(game.keys[0], "muted")
    assert relay(0) == "ok" and worker.kinds() == ["emoji"]
    game.set(phase="end")
    assert untouched(game, lambda: mute(1, "u1", "u2")) == "over"
    assert game.store.run("mute", (Keys.game("000000000000"),), "u1", "u2", 1) == "missing"


def test_a_message_is_relayed_to_the_opponents_only(worker, game):
    assert game.run("relay", game.conns[0], "emoji", '"emoji":"\u2764"') == "ok"
    assert game.run("relay", game.conns[0], "wave", "") == "ok"
    assert game.run("relay", "w.9", "emoji", "") == "not_playing"
    events = worker.events()
    assert [(kind, targets, json.loads(body)) for kind, _, targets, body in events] == [
        (
            "emoji",
            {game.conns[1]: 2},
            {"type": "emoji", "game": game.id, "player": "n1", "emoji": "\u2764"},
        ),
        ("wave", {game.conns[1]: 3}, {"type": "wave", "game": game.id, "player": "n1"}),
    ]
    game.set(phase="end")
    assert untouched(game, lambda: game.run("relay", game.conns[0], "emoji", "")) == "not_playing"


@pytest.mark.parametrize("phase", ["start", "question", "reveal", "end"])
def test_only_a_settled_game_is_finished(worker, game, phase):
    game.set(phase=phase)
    assert untouched(game, game.finish) == 0 and worker.events() == []


def as_json(plan, state):
    """Returns plan and state of a game in format 2."""
    players = []
    for player in state["players"]:
        kept = -1 if player.get("left") else player.get("kept", 0)
        always = [player.get("conn", ""), player["turn"], player["seq"], player["score"]]
        players.append([*always, kept, *player.get("answer", ())])
    ends = [state["reason"], state["ended"]] if "reason" in state else []
    more = [plan["series"], plan["draw"]] if "draw" in plan else []
    texts = (
        [plan["queue"], plan["rules"], plan["quiz"], plan["players"], *more],
        [state["phase"], state["round"], state["deadline"], players, *ends],
    )
    return [json.dumps(text, separators=(",", ":")) for text in texts]


def test_a_running_game_in_the_json_of_format_2_continues(store, worker, game):
    game.to_round(1)
    game.answer(1, 0)
    texts = store.client.hmget(game.key, "plan", "state")
    plan, state = trivia.parse_plan(texts[0]), trivia.parse_state(texts[1])
    old_plan, old_state = as_json(plan, state)
    assert trivia.parse_plan(old_plan) == plan
    more = {"spent": 0, "wrong": 0, "gaps": state["gaps"]}
    assert trivia.parse_state(old_state) | more == state
    store.client.hset(game.key, mapping={"plan": old_plan, "state": old_state})
    assert game.answer(1, 1) == "already_answered"
    assert game.answer(2, 1) == "ok"
    after = stored_game(store.client, game.id)
    assert after["state"]["phase"] == "reveal" and len(after["rounds"][1].split()) == 2
    assert store.client.hget(game.key, "state")[0] == "\x01"
    game.exit(1, 1)
    assert game.finish() == 1
    assert [player[0] for player in stored_game(store.client, game.id)["plan"]["players"]] == [
        "u1",
        "u2",
    ]
    assert store.client.hget(game.key, "plan")[0] == "\x01"


@pytest.mark.parametrize("is_json", [False, True])
def test_a_rivals_progress_is_shown_once_even_if_calls_repeat_or_come_late(store, worker, is_json):
    game = Play(store, [worker.connection()]).to_round(1)
    plan = trivia.parse_plan(store.client.hget(game.key, "plan"))
    state = trivia.parse_state(store.client.hget(game.key, "state"))
    show = lambda uid, *answers: store.call(
        "show_rival", game.keys, NOBODY, json.dumps([uid, f"Zoë {uid}", answers])
    )
    assert untouched(game, lambda: show("z1", "-", "-", "-")) == "over", "the game is no challenge"
    plan |= {"rules": [*plan["rules"][:6], "challenge"], "series": 0, "draw": ["CODE", 5]}
    packed = trivia.write_plan(**plan), trivia.write_state(state)
    texts = as_json(plan, state) if is_json else packed
    store.client.hset(game.key, mapping=dict(zip(("plan", "state"), texts, strict=True)))
    worker.events()

    def told(seq_after, uid, *answers):
        """Returns the events of a new state of a rival. A repeated call changes nothing."""
        assert at_once(3, lambda i: show(uid, *answers)) == ["ok"] * 3
        assert untouched(game, lambda: show(uid, *answers)) == "ok"
        assert untouched(game, lambda: show(uid, *"---")) == "ok"
        assert int(game.seq1) == seq_after
        return [(kind, *targets.values()) for kind, _, targets, _ in worker.events()]

    seq = int(game.seq1)
    assert told(seq + 2, "z1", *"---") == [("user_return", seq + 2)], (
        "the player has to ask for a snapshot"
    )
    assert told(seq + 3, "z1", "0:20:140", "-", "-") == [("answered", seq + 3)]
    assert told(seq + 3, "z1", "0:20:140", "1:9:50", "-") == []
    assert told(seq + 5, "z2", *"---") == [("user_return", seq + 5)]
    assert game.answer(1, 3) == "ok"
    [(kind, _, _, body)] = worker.events()
    answers = json.loads(body)["answers"]
    assert kind == "reveal" and answers.keys() == {"n1", "Zoë z1"}
    assert answers["Zoë z1"] == {"choice": 0, "ms": 20, "points": 140}
    assert json.loads(body)["scores"] == {"n1": 0, "Zoë z1": 140, "Zoë z2": 0}
    assert told(seq + 6, "z1", "0:20:140", "1:9:50", "-") == []
    assert told(seq + 8, "z2", "2:70:0", "-", "-") == [("user_return", seq + 8)]
    stored = trivia.parse_plan(store.client.hget(game.key, "plan"))
    z1 = ["z1", "Zoë z1", ["0:20:140", "1:9:50", "-"]]
    assert stored["draw"] == ["CODE", 5, [z1, ["z2", "Zoë z2", ["2:70:0", "-", "-"]]]]
    for field in ("rules", "quiz", "players"):
        assert stored[field] == plan[field]
    game.exit(1, leaving=1)
    for _ in range(2):
        assert untouched(game, lambda: show("z1", "0:20:140", "1:9:50", "0:1:2")) == "over"
        game.finish()
    assert trivia.parse_plan(store.client.hget(game.key, "plan"))["draw"] == ["CODE", 5]
    store.client.delete(game.key)
    assert show("z1", *"---") == "over" and not store.client.exists(game.key)


def test_answers_in_a_challenge_are_noted_only_while_the_game_runs(store):
    key, answers = Keys.contest("CODE"), "1:2:3 -"
    note = lambda game, answers: store.call("note_progress", (key,), game, answers)
    assert note("g1", answers) == [] and not store.client.exists(key)
    store.call("create_challenge", (key,), "q", "u1", "[]", "1:01 2:01", 8, 60_000, 9)
    runs = {"run:u1": "g1", "run:u2": "g2", "run:u3": "g3 5 9 - -"}
    store.client.hset(key, mapping=runs)
    assert note("g1", answers) == note("g1", answers) == ["u2", "g2"]
    before = store.client.hgetall(key)
    assert before["live:u1"] == answers
    for late in (("g1", "- -"), ("g3", answers), ("g4", answers)):
        assert note(*late) == [] and store.client.hgetall(key) == before
    assert store.call("record_run", (key,), "g1", f"3 9 {answers}") == 1
    assert note("g2", answers) == []
    store.call("move_challenger", (key,), "u2", "")
    assert note("g2", answers) == []
    assert not [name for name in store.client.hkeys(key) if name.startswith("live:")]


def test_a_finished_game_keeps_only_what_its_record_needs_and_expires(store, worker, game):
    game.to_round(1)
    game.exit(1, 1)
    worker.events()
    assert sum(at_once(6, lambda i: game.finish('[{"player":"n2"}]'))) == 1
    ((kind, _, targets, body),) = worker.events()
    assert kind == "end" and set(targets) == set(game.conns)
    assert json.loads(body) == {
        "type": "end",
        "game": game.id,
        "reason": "forfeit",
        "ranking": [{"player": "n2"}],
    }
    assert store.client.hgetall(game.key).keys() == {"plan", "state"}
    state = trivia.parse_state(store.client.hget(game.key, "state"))
    plan = trivia.parse_plan(store.client.hget(game.key, "plan"))
    assert plan["players"] == [["u1", "n1"], ["u2", "n2"]]
    nobody = {"turn": 0, "seq": 0, "score": 0}
    assert state.pop("players") == [nobody | {"left": True}, nobody]
    assert (state.pop("phase"), state.pop("reason")) == ("end", "forfeit")
    assert state == {"round": 1, "deadline": 0, "ended": int(game.ended), "spent": 0, "wrong": 0}
    assert not store.client.exists(game.deadlines) and 990 <= store.client.ttl(game.key) <= 1000
    assert game.advance() == "end" and not store.client.exists(game.deadlines)
    assert 990 <= store.client.ttl(game.key) <= 1000


@pytest.mark.parametrize(
    "erased, left",
    [
        ("", ["u1 n1", "u2 n2"]),
        ("u2", ["u1 n1", " (erased 2)"]),
        ("u1 u2", [" (erased 1)", " (erased 2)"]),
        ("u u22 xu1 1", ["u1 n1", "u2 n2"]),
    ],
)
def test_a_player_who_is_erased_during_a_game_is_removed_from_it_at_its_end(
    worker, game, erased, left
):
    game.to_round(1)
    game.exit(1, 1)
    worker.events()
    assert game.finish('[{"player":"n2"}]', erased) == 1
    assert [f"{game.uid1} {game.name1}", f"{game.uid2} {game.name2}"] == left
    ((kind, _, targets, body),) = worker.events()
    # Until the game is over, the players see each other's names.
    assert (
        kind == "end"
        and set(targets) == set(game.conns)
        and json.loads(body)["ranking"] == [{"player": "n2"}]
    )
    assert untouched(game, lambda: game.finish("[]", "u1 u2")) == 0


def test_a_player_is_removed_from_a_game_in_settlement_in_two_steps(store, game):
    game.set(phase="settle")
    assert store.run("forget_player", (game.key,), "u2") == 2
    assert [game.uid2, game.name2] == ["u2", "(erased 2)"]
    game.set(phase="end")
    assert store.run("forget_player", (game.key,), "u2") == 1
    assert [game.uid2, game.name2] == ["", "(erased 2)"]


def test_an_erased_player_is_removed_from_a_finished_game(store, game):
    game.set(phase="end")
    for uid, returned, left in (
        ("nobody", 0, "u2 n2"),
        ("u2", 1, " (erased 2)"),
        ("u2", 0, " (erased 2)"),
    ):
        assert store.run("forget_player", (game.key,), uid) == returned
        assert [game.uid1, game.name1, f"{game.uid2} {game.name2}"] == ["u1", "n1", left]
    assert store.run("forget_player", (Keys.game("00aaaaaaaaaa"),), "u1") == 0
    assert not store.client.exists(Keys.game("00aaaaaaaaaa"))


def test_a_finished_game_is_deleted_when_no_history_has_it(store, game):
    drop = lambda uid: store.run("drop_game", (game.key,), uid)
    assert untouched(game, lambda: drop("u1")) == 0  # the game still runs
    game.to_round(1)
    game.exit(1, 1)
    assert game.finish("[]", "") == 1
    assert [drop("u2"), drop("u2"), drop("nobody")] == [0, 0, 0]
    assert 990 <= store.client.ttl(game.key) <= 1000
    assert drop("u1") == 1 and not store.client.exists(game.key)
    assert drop("u1") == 0


def test_a_finished_game_does_not_wait_for_players_who_were_erased(store, game):
    game.to_round(1)
    game.exit(1, 1)
    assert game.finish("[]", "u1") == 1
    assert store.run("drop_game", (game.key,), "u2") == 1 and not store.client.exists(game.key)


@pytest.mark.parametrize("lost_players", [1, 2])
def test_exits_of_a_dead_workers_players_follow_the_event_that_revealed_its_death(
    store, workers, lost_players
):
    """Lua goes through the workers in any order, but each player's events stay in order."""
    for _ in range(4):
        alive, other, lost = workers(), workers(), workers()
        game = Play(
            store,
            [
                alive.connection(),
                other.connection(),
                *(lost.connection() for _ in range(lost_players)),
            ],
        )
        alive.events(), other.events()
        lost.die()
        assert (game.next(), game.next()) == ("question", "reveal")
        exits = ["user_exit"] * lost_players
        for one in (alive, other):
            events = one.events()
            assert [kind for kind, *_ in events] == ["question", "reveal", *exits]
            assert [seq for *_, targets, _ in events for seq in targets.values()] == list(
                range(2, 4 + lost_players)
            )
        assert game.conn3 == "" and SEAT_MS - 5000 < int(game.gone3) - store.now() <= SEAT_MS


@pytest.mark.parametrize("lost_players", [1, 2])
def test_players_of_a_dead_worker_keep_their_seats_in_a_game_in_settlement(
    store, workers, lost_players
):
    alive, lost = workers(), workers()
    game = Play(store, [alive.connection(), *(lost.connection() for _ in range(lost_players))])
    while game.next() != "settle":
        pass
    alive.events()
    lost.die()
    assert game.run("relay", game.conns[0], "emoji", "") == "ok"
    assert game.conn2 == game.conns[1] and game.gone2 == "" and alive.events() == []
    assert game.finish() == 1 and alive.kinds() == ["end"] and game.phase == "end"


# ---- the key table


def parse_table(text):
    """Parses the key table: {pattern: [type, content, lives until]}.

    A row continues on lines without a pattern.
    """
    lines = text.split("    pattern  ", 1)[1].split("\n\n")[0].splitlines()
    kind_at, until_at = (
        ("    pattern  " + lines[0]).index(word) for word in ("type", "lives until")
    )
    rows = {}
    for line in lines[1:]:
        if pattern := line[:kind_at].strip():
            kind, content, until = (
                line[kind_at:].split(" ")[0],
                line[:until_at],
                line[until_at:].strip(),
            )
            last = rows[pattern] = [kind, content, until]
        else:
            last[1] += line[:until_at]
            last[2] += " " + line[until_at:].strip()
    return rows


TABLE = parse_table(trivia.__doc__)
WORDS = {
    "UID": r"[\w-]{12}",
    "DIGEST": r"[\w-]{16}",
    "WHAT": r"(login|address|try|refused|account|connect|register|rename|session|export"
    r"|codes?|rooms?|flags?|block|reports?|challenges?|merge)",
    "WHO": r"[^{}]+",
    "NAME": r"[a-z_]+",
    "SHARD": r"[0-3]",
    "ID": r"[0-9a-z]{12}",
    "PERIOD": r"\d{4}-W?\d\d(-\d\d)?",
    "GAME": r"[0-9a-z]{12}",
    "CODE": r"[A-Z0-9]{6}([A-Z0-9]{2})?",
    "DRAW": r"[a-z]+:\d{4}-\d\d-\d\d",
    "N": r"\d+",
    "REF": r"[\w-]{12}",
}
CONN, MS = r"([0-9a-f]{10}\.\d+)", r"\d{13}"
CONTENT = {  # MEMBER=VALUE as a regular expression, for each row that says more than a name
    "seats:{lobby}": rf"[\w-]{{12}}=({CONN}|-) [1-9]\d* ([a-z]+|-) ({MS}|0) ([\d.]+|-) "
    r"([0-9a-z]{12}|-)( [A-Z0-9]{6}| [0-9a-z]{12})?",
    "due:{lobby}": rf"([a-z]+ ([\w-]{{12}}|room:[A-Z0-9]{{6}})|- rematch:[0-9a-z]{{12}})=({MS}|0)",
    "queue:{lobby}:NAME": rf"[\w-]{{12}}=({MS}|[\d.]+)",
    "workers:{lobby}": rf"(dead:)?[0-9a-f]{{10}}={MS}",
    "forming:{lobby}": r"[0-9a-z]{12} [a-z]+( [\w-]{12})+( rematch:[0-9a-z]{12}| "
    rf"draw:[\dA-Z-]+| bots:\d)?={MS}",
    "bots:{lobby}:NAME": rf"[0-9a-z]{{12}} [\d.]+ \d( [\w-]{{12}})+={MS}",
    "clock:{lobby}": rf"=\d+ {MS} \d+",
    "clock:{gSHARD}": rf"=\d+ {MS} \d+",
    "playing:{lobby}": r"[a-z]+=\d+",
    "deadlines:{gSHARD}": rf"[0-9a-z]{{12}}={MS}",
    "history:{UID}": rf"[0-9a-z]{{12}}={MS}",
    "blocks:{UID}": r"[\w-]{12}=\d{10}",
    "blockers:{UID}": r"[\w-]{12}=\d{10}",
    "hidden:{lobby}": r"[\w-]{12}=[\w-]{12}( [\w-]{12})*",
    "reported:{UID}": r"(player [\w-]{12}|question .+)=\d{10}",
    "named:{UID}": r"[\w-]{12}=\d{10}",
    "reports:{reports}": rf"[\w-]{{12}}={MS}",
    "report:{reports}:REF": r"(at|reason|reporter|player|game|name|shown|transcript)=.+",
    "erasures:{lobby}": rf"[\w-]{{12}}={MS}",
    "erased:{UID}": r"(username|email)=.+",
    "unique:{N}": rf"[^ ]+=[\w-]{{12}} [\w-]{{4}}( {MS})?",
    "bank:{bank}": r"(\d+=\[.*\]|file:[\w.]+=[0-9a-f]{64})",
    "schema:{lobby}": r"(game_days=\d+|queue [a-z]+=\??-|(field|board) [a-z_]+=\??[a-z].*|"
    r"board [a-z_]+=\??-.*)",
    "chores:{chores}": r"(event [a-z]+_|block )?[\w-]+=\d+ \[.*\]",
    "due:{chores}": r"(event [a-z]+_|block )?[\w-]+=[\d.]+",
    "guests:{guests}": rf"[\w-]{{12}}={MS}",
    "fingerprints:{bank}": r"[\w-]{12}=[\w-]{12}",
    "ids:{bank}": r"[\w-]{12}=\d+ [\w-]{12}",
    "board:{NAME}": r"[\w-]{12}=[\d.]+",
    "board:{NAME}:PERIOD": r"[\w-]{12}=[\d.]+",
    "metrics:{metrics}": r"[a-z_]+( [\w-]+)*=[\d.e-]+",
    "libraries:{lobby}": r"[0-9a-f]{10}=[0-9a-f]{8} [0-9a-f]{8}",
    "shards:{lobby}": r"([0-9a-f]{10}|most)=4",
    "loads:{metrics}": r"[0-9a-f]{10}=\d+ \d+ [\d.]+",
    "stats:{bank}": r"\d+=\d+( \d+)+",
    "contests:{UID}": rf"[A-Z0-9]{{8}}={MS}",
    "tried:{lobby}:DRAW": r"[\w-]{12}=[0-9a-z]{12}",
    "draws:{draws}": r'daily \d{4}-\d\d-\d\d=\["(\d+:\d+ ?)+",\[("[\w-]{12}",?)+\]\]',
    "met:{UID}": r"([\w-]{8}|guests)=\d+",
    "quits:{lobby}:UID": rf"=\d+ \d+ {MS}",
    "quick:{metrics}": r"[\w-]{12}=-?\d+",
}
USER_FIELDS = (
    r":created|:turn|:quick|:streak|daily_points|:sigma|:from|:guest|:new|:merge|oidc:[a-z]+|"
    r"session:[\w-]+|board:[a-z_]+|" + "|".join(trivia.USER_FIELDS) + "|email|avatar"
)


GAME_FIELDS = r"plan|state|result|muted|[1-9]\d*"
ROOM_FIELDS = (
    r"queue|host|locked|game|since|members|kicked|shown|name:[\w-]{12}|view:[\w-]{12}|closed"
)
REMATCH_FIELDS = r"queue|least|ends|members|agreed|rest|shown|left|name:[\w-]{12}"
CONTEST_FIELDS = r"queue|owner|rules|quiz|most|ends|keep|(run|live):[\w-]{12}"
PLAN_FIELDS = {"queue", "rules", "quiz", "players", "series", "draw", "marks"}
STATE_FIELDS = {
    "phase",
    "round",
    "deadline",
    "reason",
    "ended",
    "gaps",
    "players",
    "spent",
    "wrong",
}
PLAYER_FIELDS = {"conn", "turn", "kept", "left", "seq", "score", "answer"}


@functools.cache
def row_patterns():
    """Returns {row of the table: regular expression of its keys}."""
    put = lambda row: re.sub("|".join(WORDS), lambda m: WORDS[m[0]], re.escape(row))
    return {row: re.compile(put(row)) for row in TABLE}


@functools.cache
def table_row(key):
    """Returns the row of the table that documents a key."""
    found = [row for row, pattern in row_patterns().items() if pattern.fullmatch(key)]
    assert len(found) == 1, f"{key} is documented by {found or 'nothing'}"
    return found[0]


def read_store(client):
    """Returns all that a cluster holds: {key: (type, {name: value}, ttl in s)}."""
    keys = list(client.scan_iter(count=1000))
    kinds = pipelined(client, lambda pipe: [pipe.type(key) for key in keys])
    ttls = pipelined(client, lambda pipe: [pipe.ttl(key) for key in keys])
    kinds = {key: kind for key, kind in zip(keys, kinds) if kind != "none"}  # others expired
    read = {
        "hash": lambda pipe, key: pipe.hgetall(key),
        "zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
    }
    listed = [key for key, kind in kinds.items() if kind in read]
    contents = pipelined(client, lambda pipe: [read[kinds[key]](pipe, key) for key in listed])
    contents = dict(zip(listed, contents))
    for key, kind in kinds.items():
        if kind == "zset":
            contents[key] = {name: f"{score:.17g}" for name, score in contents[key]}
    ttls = dict(zip(keys, ttls))
    return {key: (kind, contents.get(key, {}), ttls[key]) for key, kind in kinds.items()}


def pipelined(client, ask):
    """Sends commands together. Returns their replies."""
    with client.pipeline() as pipe:
        ask(pipe)
        return pipe.execute()


def call_recorder(nodes):
    """Starts to record the functions that are called on nodes: [(name, keys, arguments)]."""
    calls = []

    def read(stream):
        with stream.makefile(encoding="latin-1") as lines:
            for line in lines:
                words = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
                if words and words[0].upper() == "FCALL":
                    calls.append(
                        (words[1], words[3 : 3 + int(words[2])], words[3 + int(words[2]) :])
                    )

    for node in nodes:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(node.path))
        stream.sendall(b"MONITOR\r\n")
        assert stream.recv(5) == b"+OK\r\n"
        threading.Thread(target=read, args=(stream,), daemon=True).start()
    return calls


@pytest.fixture(scope="module")
def played():
    """Plays all that players can do, on a server and a cluster of three nodes.

    Gives samples of what is stored, the functions that were called, the people and their frames.
    """
    cluster, server = Cluster(3, 0), None
    try:
        client = cluster.start().client
        calls = call_recorder(cluster.nodes)

        def edit(tree):
            tree["queues"]["party"].update(fill_seconds=0.3)
            filled = {"bots": {"after_seconds": 0.2, "skill": "near"}, "answer_seconds": 1}
            tree["queues"]["filled"] = tree["queues"]["random"] | filled
            tree["limits"]["games_per_user"] = 2

        schema = edited_schema(edit, seat_seconds=0.3)
        server = Server(schema, env={"REDIS_URL": f"{cluster.url}?shards=4"}).start()
        samples, frames = {}, []

        def look(name):
            samples[name] = read_store(client)

        look("empty")
        people = [server.register() for _ in range(4)]
        enter = lambda: server.http("POST", "/auth/guest", {"secret": secrets.token_urlsafe(32)})
        visitor, expired = enter().json["token"], enter().json["token"][:12]
        look("guests have come")
        client.hset(Keys.user(expired), ":created", 1)
        client.zadd(Keys.guests, {expired: 10**12})
        phone = lambda i, queue: Phone(server, people[i], queue)

        alone = phone(0, "rated")
        alone.expect("queued")
        look("waiting")
        # A ticket is checked after a second. Have it checked now.
        client.zadd(Keys.due, {name: 1 for name in client.zrange(Keys.due, 0, -1)})
        wait_until(lambda: any(name.startswith("check_ticket_") for name, *_ in calls))
        client.client_kill_filter(_type="pubsub")  # the worker must cope with lost events
        alone.expect("queued")
        alone.send("leave")
        alone.expect("cancelled", reason="left")

        ann, bob = phone(0, "random"), phone(1, "random")
        ann.expect("question")
        ann.send("emoji", emoji="🎉")
        bob.expect("emoji")
        name = people[1]["user"]["username"]
        block = f"/users/{name}/block"
        report = {"player": name, "reason": "name", "game": ann.frames[-1]["game"]}
        assert server.http("POST", "/reports", report, people[0]["token"]).status == 201
        assert server.http("PUT", block, token=people[0]["token"]).status == 204
        look("blocked")
        assert server.http("DELETE", block, token=people[0]["token"]).status == 204
        ann.drop()
        bob.expect("user_exit")
        look("playing, one away")
        back = phone(0, "random")
        back.expect("update")
        bob.send("answer", round=1, choice=0)
        back.expect("answered")
        look("playing, one has answered")
        back.send("answer", round=1, choice=0)
        look("playing")
        play_all([back, bob], lambda question: 0)
        look("settled")
        for one in (back, bob):
            one.send("join")
        for one in (back, bob):
            one.expect("question")
        back.send("answer", round=1, choice=0)
        bob.expect("answered")
        bob.send("leave")
        assert [one.expect("end")["reason"] for one in (back, bob)] == ["forfeit"] * 2
        wait_until(lambda: client.zcard(Keys.history(people[1]["token"][:12])) == 2)
        look("won by forfeit")

        party = [phone(i, "party") for i in range(4)]
        for guest in party:
            guest.expect("start")
        party[3].send("leave")
        party[3].expect("cancelled", reason="left")
        play_all(party[:3])
        look("settled twice")
        party[0].send("rematch", accept=True)
        party[1].expect("rematch")
        party[1].drop()
        party[0].expect("rematch", connected=[party[n].name for n in (0, 2)])
        party[1].connect()
        party[1].expect("rematch")
        look("one wants to play again")
        for one in party[:2]:
            one.send("join", queue="random")
        for one in party[:2]:
            one.expect("start")
        party[0].send("leave")
        party[1].expect("end")
        look("left early")

        friends = [phone(0, "friends")]
        code = friends[0].expect("room")["code"]
        friends.append(phone(1, f"friends?code={code}"))
        friends[0].expect("room")
        friends[0].send("lock", locked=True)
        friends[1].expect("room", locked=True)
        assert server.http("GET", f"/rooms/{code}").status == 200
        look("in a room")
        friends[0].send("begin")
        play_all(friends)
        for one in friends:
            one.expect("room", state="waiting")
            one.send("leave")
            one.expect("cancelled", reason="left")
        wait_until(lambda: client.hget(Keys.room(code), "closed"))

        lonely = phone(3, "filled")
        lonely.expect("start")
        look("with a bot")
        lonely.play()

        survivor = phone(2, "solo")
        survivor.play(lambda question: 0)
        survivor.send("join", queue="daily")
        survivor.play(lambda question: 0)
        body = {"queue": "challenge"}
        made = server.http("POST", "/challenges", body, people[2]["token"]).json
        look("a challenge is made")
        survivor.send("join", code=made["code"])
        rival = phone(3, f"challenge?code={made['code']}")
        for one in (survivor, rival):
            one.expect("question", round=1)
        survivor.send("answer", round=1, choice=0)
        rival.expect("update")
        look("a challenge is played by two")
        rival.send("answer", round=1, choice=0)
        survivor.expect("update")
        for one in (rival, survivor):
            one.send("leave")
            one.expect("end")
        look("a challenge is played")

        server.http(
            "POST",
            "/auth/login",
            {"login": people[1]["user"]["username"], "password": "wrong password"},
        )
        look("a login failed")
        server.http(
            "PATCH", "/users/me", {"avatar": "https://example.org/a.png"}, people[1]["token"]
        )
        server.http(
            "POST",
            "/auth/logout",
            token=server.http(
                "POST",
                "/auth/login",
                {"login": people[2]["user"]["username"], "password": PASSWORD},
            ).json["token"],
        )
        passwords = {"password": PASSWORD, "new_password": PASSWORD}
        server.http("POST", "/auth/password", passwords, people[3]["token"])
        server.http("DELETE", "/auth/sessions", token=people[3]["token"])
        name = {"login": people[3]["user"]["username"], "password": PASSWORD}
        people[3] = server.http("POST", "/auth/login", name).json
        for one in (*party, back, bob, alone, *friends, survivor, lonely):
            frames.append(one.frames)
            one.close()
        wait_until(lambda: not client.exists(Keys.seats))
        look("all have left")
        wait_until(lambda: client.zcard(Keys.guests) == 1, 60)
        look("a guest has expired")
        assert not client.exists(Keys.user(expired))
        assert server.http("DELETE", "/users/me", {}, visitor).status == 204
        client.delete(Keys.guests)  # the entry of an erased guest stays until it is due
        assert (
            server.http("DELETE", "/users/me", {"password": PASSWORD}, people[0]["token"]).status
            == 204
        )
        look("one is erased")
        for person in people[1:]:
            assert (
                server.http("DELETE", "/users/me", {"password": PASSWORD}, person["token"]).status
                == 204
            )
        server.stop()
        look("the end")
        yield SimpleNamespace(calls=calls, samples=samples, people=people, frames=frames)
    finally:
        if server:
            server.kill(signal.SIGKILL)
            server.process.wait(10)
            shutil.rmtree(server.data)
        cluster.close()


def test_every_row_of_the_key_table_occurs_and_every_key_is_documented(played):
    met = {table_row(key) for sample in played.samples.values() for key in sample}
    brief = {"forming:{lobby}", "erasures:{lobby}", "erased:{UID}"}  # they exist for some ms
    assert met | brief | SIGN_IN_KEYS | CONSOLE_KEYS == TABLE.keys()


def test_keys_have_the_type_and_content_of_the_key_table(played):
    fields = {"user:{UID}": USER_FIELDS, "game:{gSHARD}:ID": GAME_FIELDS}
    fields["room:{lobby}:CODE"] = ROOM_FIELDS
    fields["contest:{lobby}:CODE"] = CONTEST_FIELDS
    fields["rematch:{lobby}:GAME"] = REMATCH_FIELDS
    for name, sample in played.samples.items():
        for key, (kind, content, _) in sample.items():
            row = table_row(key)
            assert kind == TABLE[row][0], (name, key)
            for member, value in content.items():
                if row in fields:
                    assert re.fullmatch(fields[row], member), (name, key, member)
                else:
                    assert re.fullmatch(CONTENT[row], f"{member}={value}"), (
                        name,
                        key,
                        member,
                        value,
                    )


def test_every_documented_field_of_a_game_occurs(played):
    plans, states, players = set(), set(), set()
    for sample in played.samples.values():
        for key, (_, content, _) in sample.items():
            if key.startswith("game:"):
                plans |= trivia.parse_plan(content["plan"]).keys()
                state = trivia.parse_state(content["state"])
                states |= state.keys()
                players |= set(itertools.chain(*state["players"]))
    assert (plans, states, players) == (PLAN_FIELDS, STATE_FIELDS, PLAYER_FIELDS)
    text = (ROOT / "trivia.lua").read_text("utf-8").split("A game is a hash of three parts")[1]
    documented = text.split("local DROPPED")[0]
    for field in PLAN_FIELDS | STATE_FIELDS | PLAYER_FIELDS | {"result"}:
        assert re.search(rf"\b{field}\b", documented), field


def test_keys_expire_only_as_the_key_table_says(played):
    for name, sample in played.samples.items():
        for key, (_, content, ttl) in sample.items():
            if ttl == -2:  # it expired while the sample was taken
                continue
            until = TABLE[table_row(key)][2].strip()
            if until == "then":
                expected = 0 <= ttl <= 86_400
            elif until == "name_hold_days":
                expected = 29 * 86400 < ttl <= 30 * 86400
            elif until == "a day after it closed":
                expected = ttl == -1 or (0 < ttl <= 86_400 and content == {"closed": "1"})
            elif until.startswith("its end"):
                days = 33 if any(field.startswith("run:") for field in content) else 3
                expected = (days - 1) * 86_400 < ttl <= days * 86_400 + 1
            elif until == "game_days after the last end":
                expected = 32 * 86_400 < ttl <= 33 * 86_400 + 1
            elif until == "3 days":
                expected = 2 * 86_400 < ttl <= 3 * 86_400
            elif until == "20 s":
                expected = 0 <= ttl <= 20
            elif until == "the game has begun":
                expected = 0 <= ttl <= 2
            elif until == "midnight UTC":
                expected = 0 <= ttl <= 86_400
            elif until == "forgotten":
                expected = 500 <= ttl <= 605
            elif until == "twice the period":
                days = 1 if key.startswith("board:{daily}") else 7
                expected = days * 86400 < ttl <= 2 * days * 86400
            elif "game_days" in until and trivia.parse_state(content["state"])["phase"] == "end":
                plan = trivia.parse_plan(content["plan"])
                is_uneven = len(plan["players"]) == 1 or plan["queue"] == "filled"
                is_void = '"counts":false' in content["result"] and not is_uneven
                expected = 60 < ttl <= 120 if is_void else 29 * 86400 < ttl <= 30 * 86400
            else:
                expected = ttl == -1
            assert expected, f"{name}: {key} expires in {ttl} s; the table says: {until}"


def test_a_user_stores_only_fields_that_differ_from_their_default(played):
    for sample in played.samples.values():
        for key, (_, content, _) in sample.items():
            if key.startswith("user:"):
                values = [value for name, value in content.items() if name != ":quick"]  # a sum
                assert "" not in values and "0" not in values
                assert content[":created"].isdigit()


def test_no_lobby_or_deadline_keys_are_left_after_all_players_have_left(played):
    rows = {
        table_row(key): content for key, (_, content, _) in played.samples["all have left"].items()
    }
    gone = {
        "seats:{lobby}",
        "queue:{lobby}:NAME",
        "due:{lobby}",
        "forming:{lobby}",
        "deadlines:{gSHARD}",
    }
    assert not gone & rows.keys()
    assert set(rows["playing:{lobby}"].values()) == {"0"} and len(rows["workers:{lobby}"]) == 1


def test_no_data_of_an_erased_user_is_left(played):
    before, after = played.samples["all have left"], played.samples["one is erased"]
    person = played.people[0]
    uid = person["token"][:12]
    for word in (uid, person["user"]["username"], person["user"]["email"]):
        assert word in json.dumps(before)
        kept = {key: value for key, value in after.items() if word in json.dumps([key, value])}
        assert [key for key in kept if not key.startswith("limit:")] == []
    left = {table_row(key) for key in played.samples["the end"]}
    assert left <= {
        "bank:{bank}",
        "fingerprints:{bank}",
        "ids:{bank}",
        "schema:{lobby}",
        "game:{gSHARD}:ID",
        "playing:{lobby}",
        "limit:{WHAT:WHO}",
        "reserved:{N}:DIGEST",
        "clock:{lobby}",
        "clock:{gSHARD}",
        "metrics:{metrics}",
        "stats:{bank}",
        "draws:{draws}",
        "events:{events}",  # names players only by id
        "skew:{GAME}",
        "format:{lobby}",
        "shards:{lobby}",  # the highest number of tags so far
        "room:{lobby}:CODE",  # a closed room
    }


def test_phones_get_the_right_answer_only_in_the_reveal(played):
    kinds = set()
    for frame in itertools.chain(*played.frames):
        kinds.add(frame["type"])
        revealed = frame["type"] == "reveal" or frame.get("phase") == "reveal"
        assert revealed == ("correct" in frame) == ("answers" in frame), frame
        assert frame["type"] != "question" or frame.keys() == {
            "type",
            "game",
            "seq",
            "round",
            "text",
            "choices",
            "category",
            "difficulty",
            "answer_ms",
        }
    assert {"question", "reveal", "update", "answered"} <= kinds


# ---- random actions

PEOPLE, QUEUES = (
    [f"p{i}" for i in range(6)],
    {"duel": FIFO, "near": NEAR, "trio": (2, 3, 0, 60_000, -1, 0, *NO_BOTS)},
)
HARMLESS = {
    "type",
    "game",
    "round",
    "player",
    "returns_ms",
    "emoji",
}  # fields that events may have while a question is open
WEIGHTS = {
    "connect": 4,
    "join_again": 3,
    "leave": 2,
    "leave_late": 2,
    "check_ticket": 2,
    "form": 4,
    "answer": 9,
    "advance": 8,
    "expire_seats": 1,
    "check": 2,
    "relay": 1,
    "apply_one": 2,
    "finish": 5,
    "worker_dies": 1,
    "worker_comes": 1,
    "beat": 1,
    "enter_late": 2,
    "clock_jumps": 1,
}
DRAWN = {
    "uid": st.sampled_from(PEOPLE),
    "queue": st.sampled_from(sorted(QUEUES)),
    "n": st.integers(0, 59),
    "flag": st.booleans(),
    "again": st.booleans(),
}


class AnyOrder(RuleBasedStateMachine):
    """Runs the actions of players and workers in any order, each perhaps twice.

    One rule draws all actions. With many rules, hypothesis leaves some out, and no game gets far.
    """

    store = None

    def __init__(self):
        super().__init__()
        self.store.client.flushall()
        _turns.clear()
        # Fixed names let a failure be repeated: the order of a Lua table depends on its keys.
        self.names, self.game_ids = (
            map("w{}".format, itertools.count(1)),
            map("{:012}".format, itertools.count(1)),
        )
        self.workers = [Worker(self.store, next(self.names)) for _ in range(2)]
        self.conns = {}  # UID -> (connection, queue)
        self.retired = []  # (UID, connection, queue) of old connections, which may act late
        self.heard = {}  # (game, connection) -> last `seq` that it got
        self.over = {}  # UID -> game that is over for this player
        self.games, self.applied = {}, set()
        for uid in PEOPLE:
            make_user(self.store, uid)

    def teardown(self):
        for worker in self.workers:
            worker.pubsub.close()

    def run(self, script, keys, *args, twice=False):
        if script in GAME_FUNCTIONS:
            args = (*args, NOBODY)
        result = self.store.run(script, keys, *args)
        if twice:
            self.store.run(script, keys, *args)
        return result

    def fields(self, game):
        return flat(self.store.client.hgetall(Keys.game(game)))

    def phase(self, game):
        return self.fields(game).get("phase")

    def set(self, game, **fields):
        set_flat(self.store.client, Keys.game(game), fields)

    def running(self):
        return [game for game in self.games if self.phase(game) != "end"]

    def pick(self, items, n):
        items = sorted(items)
        return items[n % len(items)]

    @initialize(queues=st.lists(DRAWN["queue"], min_size=len(PEOPLE), max_size=len(PEOPLE)))
    def everybody_comes(self, queues):
        for n, (uid, queue) in enumerate(zip(PEOPLE, queues)):
            self.connect(SimpleNamespace(uid=uid, queue=queue, n=n, again=False))
        self.form(SimpleNamespace(n=0, again=False))

    @rule(
        action=st.sampled_from(
            [action for action, weight in WEIGHTS.items() for _ in range(weight)]
        ),
        **DRAWN,
    )
    def act(self, action, **drawn):
        getattr(self, action)(SimpleNamespace(**drawn))

    # -- the lobby

    def connect(self, drawn):
        if old := self.conns.pop(drawn.uid, None):
            self.retired.append((drawn.uid, *old))
        self.conns[drawn.uid] = self.workers[drawn.n % len(self.workers)].connection(), drawn.queue
        self.join(drawn.uid, drawn.again)

    def join_again(self, drawn):
        if here := self.current_seat(drawn.uid):
            if here.queue == "-":  # an idle player may choose another queue
                self.conns[drawn.uid] = here.conn, drawn.queue
            self.join(drawn.uid, drawn.again)

    def current_seat(self, uid):
        """Returns the seat of a player, if it belongs to their present connection."""
        here = seat(self.store, uid)
        return here if uid in self.conns and here and here.conn == self.conns[uid][0] else None

    def join(self, uid, again):
        conn, queue = self.conns[uid]
        for _ in range(1 + again):
            outcome = self.join_once(uid, conn, queue)
        if outcome[0] == "game" and self.enter(uid, conn, outcome[1]) == "over":
            self.over[uid] = outcome[1]
            self.join_once(uid, conn, queue)

    def join_once(self, uid, conn, queue):
        outcome = join(
            self.store,
            uid,
            conn,
            QUEUES[queue],
            queue,
            over=self.over.get(uid, ""),
            game=next(self.game_ids),
        )
        assert outcome != ["stale"], "it is their newest connection"
        return outcome

    def enter(self, uid, conn, game):
        self.listen()
        reply = self.run("enter_game", Keys.game_keys(game), uid, conn, turn_of(conn))
        if reply[0] == "ok":
            fields = entered(reply)
            i = next(i for i in range(1, 9) if fields.get(f"uid{i}") == uid)
            self.heard[game, conn] = seq = int(fields[f"seq{i}"])
            self.listen(entered=(game, conn))
            if reply[4] != "-":
                (worker,) = (one for one in self.workers if conn.startswith(f"{one.id}."))
                worker.expect(game, reply[4], {conn: seq})
        return reply[0]

    def leave(self, drawn):
        if drawn.uid in self.conns:
            conn, queue = self.conns[drawn.uid]
            gone = drawn.n % 3 > 0
            self.depart(drawn.uid, conn, queue, gone, drawn.flag, drawn.again)
            if gone:
                self.retired.append((drawn.uid, *self.conns.pop(drawn.uid)))

    def leave_late(self, drawn):
        if self.retired:
            self.depart(*self.pick(self.retired, drawn.n), True, drawn.flag, drawn.again)

    def depart(self, uid, conn, queue, gone, exits, again):
        for _ in range(1 + again):
            outcome = leave(self.store, uid, conn, int(gone), queue)
            # Without `exits` the worker dies between the two calls.
            if outcome[0] == "game" and outcome[1] in self.games and (exits or not gone):
                phase = self.run("exit_game", Keys.game_keys(outcome[1]), conn, int(not gone))
                if not gone and phase not in ("settle", "stale"):
                    self.run("release", (Keys.seats, Keys.playing), uid, outcome[1])

    def enter_late(self, drawn):
        """Has an old connection enter its game late. It must not replace a newer one."""
        if self.retired and self.games:
            uid, conn, _ = self.pick(self.retired, drawn.n)
            mine = [game for game, uids in self.games.items() if uid in uids]
            if mine and conn.split(".")[0] in {worker.id for worker in self.workers}:
                game = self.pick(mine, drawn.n // 8)
                i, before = self.games[game].index(uid) + 1, self.fields(game)
                outcome = self.enter(uid, conn, game)
                if turn_of(conn) < int(before.get(f"turn{i}") or 0):
                    assert outcome in ("stale", "over") and self.fields(game) == before
                self.run("exit_game", Keys.game_keys(game), conn, 0, twice=drawn.again)

    def check_ticket(self, drawn):
        here = seat(self.store, drawn.uid)
        if here and here.queue == drawn.queue and here.game == "-":
            waited(self.store, drawn.uid, (0, 5000, 70_000)[drawn.n % 3], drawn.queue)
        check_ticket(
            self.store, drawn.uid, QUEUES[drawn.queue], drawn.queue, game=next(self.game_ids)
        )

    def form(self, drawn):
        for match in self.store.client.zrange(Keys.forming, 0, -1):
            game, queue, *uids = match.split(" ")
            assert len(set(uids)) == len(uids) >= 2
            rules = f"60000 20000 30000 100 50 {'continue' if queue == 'trio' else 'forfeit'} rated"
            seats = [
                here if here and here.game == game else SimpleNamespace(conn="-", turn=0)
                for here in (seat(self.store, uid) for uid in uids)
            ]
            people = [
                x
                for uid, here in zip(uids, seats)
                for x in (uid, uid.upper(), here.conn, here.turn)
            ]
            if game not in self.games:
                self.heard |= {(game, here.conn): 0 for here in seats}
            self.games[game] = uids
            self.run(
                "create_game",
                Keys.game_keys(game),
                queue,
                rules,
                QUIZ,
                3000,
                '{"type":"start"}',
                *people,
                twice=drawn.again,
            )
            if not drawn.again:  # else the worker dies before it removes the match
                self.store.client.zrem(Keys.forming, match)

    # -- games

    def some_game(self, drawn):
        return self.pick(self.running() or self.games, drawn.n)

    def answer(self, drawn):
        if self.games:
            game = self.some_game(drawn)
            uid = self.games[game][drawn.n // 4 % len(self.games[game])]
            number = int(self.fields(game)["round"]) + (drawn.n == 1) - (drawn.n == 2)
            if uid in self.conns and number:
                self.run(
                    "answer",
                    Keys.game_keys(game),
                    self.conns[uid][0],
                    number,
                    drawn.n % 5,
                    twice=drawn.again,
                )

    def advance(self, drawn):
        if self.games:
            game = self.some_game(drawn)
            for _ in range(8 if drawn.n % 6 == 1 else 1):  # to its end, or by one phase
                if self.phase(game) != "end" and drawn.n % 6:
                    _, now = clock_of(self.store, Keys.game_keys(game)[2])
                    self.set(game, deadline=now)
                self.run("advance", Keys.game_keys(game), twice=drawn.again)

    def expire_seats(self, drawn):
        for game in self.running():
            for name, value in self.fields(game).items():
                if name.startswith("gone") and value.isdigit():
                    self.set(game, **{name: 1})
            self.run("advance", Keys.game_keys(game), twice=drawn.again)

    def check(self, drawn):
        here = self.current_seat(drawn.uid)
        if here and here.game in self.games:
            for _ in range(1 + drawn.again):
                self.enter(drawn.uid, here.conn, here.game)

    def relay(self, drawn):
        here = seat(self.store, drawn.uid)
        if here and here.game in self.games:
            self.run("relay", Keys.game_keys(here.game), here.conn, "emoji", '"emoji":"x"')

    def settled(self):
        return [game for game in self.games if self.phase(game) in ("settle", "end")]

    def apply_one(self, drawn):
        if settled := self.settled():
            game = self.pick(settled, drawn.n)
            self.apply(game, self.games[game][drawn.n % len(self.games[game])], drawn.again)

    def apply(self, game, uid, again):
        for _ in range(1 + again):
            fresh = apply(
                self.store, game, 1000, 86_400_000, int(uid == self.games[game][0]), 1, 400, uid=uid
            )
            assert fresh == ((game, uid) not in self.applied)
            self.applied.add((game, uid))

    def finish(self, drawn):
        if settled := self.settled():
            game = self.pick(settled, drawn.n)
            for uid in self.games[game]:
                self.apply(game, uid, drawn.again)
            self.run("finish_game", Keys.game_keys(game), "[]", 1000, "", twice=drawn.again)
            # The worker may die halfway.
            for uid in self.games[game][: 8 if drawn.flag else drawn.n % 3]:
                self.run("release", (Keys.seats, Keys.playing), uid, game, twice=drawn.again)

    # -- workers

    def worker_dies(self, drawn):
        if len(self.workers) > 1:
            worker = self.workers.pop(drawn.n % len(self.workers))
            self.listen(worker)
            worker.die()
            for uid, (conn, queue) in list(self.conns.items()):
                if conn.startswith(f"{worker.id}."):
                    del self.conns[uid]
                    self.retired.append((uid, conn, queue))
                    if drawn.flag:
                        self.depart(uid, conn, queue, True, True, False)

    def worker_comes(self, drawn):
        if len(self.workers) < 3:
            self.workers.append(Worker(self.store, next(self.names)))

    def beat(self, drawn):
        for worker in self.workers:
            worker.beat()

    def clock_jumps(self, drawn):
        """Sets Redis's clock forward or back by an hour. No game gets late or stuck by that."""
        for key in self.store.client.keys("clock:*"):
            lag, last, gaps = map(int, self.store.client.get(key).split(" "))
            lag += 3_600_000 if drawn.flag else -3_600_000
            self.store.client.set(key, f"{lag} {last} {gaps}")
        for game in self.running():
            self.run("advance", Keys.game_keys(game), twice=drawn.again)
            fields, (_, now) = self.fields(game), clock_of(self.store, Keys.game_keys(game)[2])
            assert fields["phase"] == "settle" or 0 < int(fields["deadline"]) - now <= 61_000, (
                fields,
                now,
            )

    # -- what always holds

    @invariant()
    def all_is_well(self):
        self.listen()
        self.nobody_is_in_two_games_or_has_lost_their_ticket()
        self.scores_are_what_the_logs_say()
        self.results_are_applied_once()

    def listen(self, *workers, entered=None):
        """Reads what was published, and checks it.

        A player who has just entered got a snapshot, which includes the events before it.
        """
        for worker in workers or self.workers:
            for kind, game, targets, body in worker.events():
                for conn, seq in targets.items() if game != "-" else ():
                    if (game, conn) == entered:
                        assert seq <= self.heard[entered], (kind, conn, seq, self.heard[entered])
                        continue
                    assert seq == self.heard[game, conn] + 1, (
                        kind,
                        conn,
                        seq,
                        self.heard[game, conn],
                    )
                    self.heard[game, conn] = seq
                if kind not in ("question", "reveal", "start", "end", "replaced", "cancelled"):
                    assert json.loads(body).keys() <= HARMLESS

    def nobody_is_in_two_games_or_has_lost_their_ticket(self):
        playing = {}
        for uid, text in self.store.client.hgetall(Keys.seats).items():
            conn, turn, queue, _, _, game = text.split(" ")
            assert int(turn) >= 1 and _turns.get(conn, int(turn)) == int(turn)
            if game != "-":
                playing[queue] = playing.get(queue, 0) + 1
            elif queue != "-":
                assert self.store.client.zscore(Keys.queue(queue), uid) is not None
                assert self.store.client.zscore(Keys.due, f"{queue} {uid}") is not None
        counted = {
            queue: int(number) for queue, number in self.store.client.hgetall(Keys.playing).items()
        }
        assert {queue: number for queue, number in counted.items() if number} == playing
        seated = [
            fields[f"uid{i}"]
            for fields in map(self.fields, self.running())
            for i in range(1, int(fields["players"]) + 1)
            if fields[f"gone{i}"] != "left"
        ]
        assert len(seated) == len(set(seated))

    def scores_are_what_the_logs_say(self):
        for game, uids in self.games.items():
            fields = self.fields(game)
            assert (
                int(fields["players"])
                == len(uids)
                == len({fields[f"uid{i}"] for i in range(1, len(uids) + 1)})
            )
            assert (self.store.client.zscore(Keys.game_keys(game)[1], game) is None) == (
                fields["phase"] == "end"
            )
            for i in range(1, len(uids) + 1):
                log = fields[f"log{i}"].split()
                assert len(log) == int(fields["round"]) - (
                    fields["phase"] == "question" or self.cut_short(fields, log)
                )
                points = [
                    self.points(number, entry)
                    for number, entry in enumerate(log, 1)
                    if entry != "-"
                ]
                assert int(fields[f"score{i}"]) == sum(points)

    def cut_short(self, fields, log):
        return fields.get("reason") in ("forfeit", "abandoned") and len(log) < int(fields["round"])

    def points(self, number, entry):
        choice, ms, points = map(int, entry.split(":"))
        assert points == (100 + 50 * (60_000 - ms) // 60_000 if choice == RIGHT[number] else 0)
        return points

    def results_are_applied_once(self):
        for uid in PEOPLE:
            games, wins, rating = self.store.client.hmget(Keys.user(uid), "games", "wins", "rating")
            mine = {game for game, who in self.applied if who == uid}
            assert int(games or 0) == self.store.client.zcard(Keys.history(uid)) == len(mine)
            assert int(wins or 0) == sum(self.games[game][0] == uid for game in mine)
            assert float(rating or 1500) == 1500 + len(mine)
            assert set(self.store.client.zrange(Keys.history(uid), 0, -1)) == mine


def test_random_actions_in_any_order_lose_nothing_and_count_nothing_twice(store):
    AnyOrder.store = store
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(
            max_examples=8,
            stateful_step_count=50,
            deadline=None,
            database=None,
            # Shrinking a failure may take minutes. Add Phase.shrink to study one.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- random rooms, rematches and challenges

MEETINGS = {
    "connect": 4,
    "duel": 5,
    "enter_room": 12,
    "begin": 5,
    "direct": 3,
    "challenge": 4,
    "progress": 2,
    "leave": 3,
    "leave_late": 2,
    "agree": 8,
    "look": 3,
    "tidy": 3,
    "end": 6,
    "settle": 3,
}
ROOM_CODES, CONTEST_CODE, MOST = ("CDFHJK", "CDFHJM"), "CDFHJKMN", 3


class AnyMeeting(RuleBasedStateMachine):
    """Runs rooms, rematches, challenges and a queue in any order, each act perhaps twice."""

    store = None

    def __init__(self):
        super().__init__()
        self.store.client.flushall()
        _turns.clear()
        self.game_ids = map("{:012}".format, itertools.count(1))
        self.workers = [Worker(self.store, f"w{number}") for number in range(2)]
        self.conns, self.retired = {}, []
        self.games, self.ended, self.over, self.begun = {}, {}, {}, []
        for uid in PEOPLE:
            self.reconnect(uid, len(uid))
        plan = "contest", PEOPLE[0], "[]", "1:0123 2:0123", MOST, 60_000, 1000
        self.store.call("create_challenge", (Keys.contest(CONTEST_CODE),), *plan)

    def teardown(self):
        for worker in self.workers:
            worker.pubsub.close()

    def reconnect(self, uid, n):
        if uid in self.conns:
            self.retired.append((uid, self.conns[uid]))
        self.conns[uid] = self.workers[n % 2].connection()
        turn_of(self.conns[uid])

    @rule(
        act=st.sampled_from([act for act, weight in MEETINGS.items() for _ in range(weight)]),
        other=DRAWN["uid"],
        **DRAWN,
    )
    def act(self, act, **drawn):
        drawn = SimpleNamespace(**drawn)
        for _ in range(1 + drawn.again):
            getattr(self, act)(drawn)
            self.form()

    def form(self):
        for match in map(trivia.Match.parse, self.store.client.zrange(Keys.forming, 0, -1)):
            assert len(set(match.uids)) == len(match.uids) and match.game not in self.games
            self.games[match.game] = set(match.uids), match.queue
            self.begun += [(match.draw, uid) for uid in match.uids]
        self.store.client.delete(Keys.forming)

    # -- acts

    def seat(self, uid):
        return trivia.Seat.parse(self.store.client.hget(Keys.seats, uid))

    def players_of(self, game):
        """Returns the players of a game, which may have ended but not be settled."""
        return self.ended[game] if game in self.ended else self.games[game][0]

    def entered(self, uid, reply):
        if reply[0] == "game":  # a player returns to it, or enters the game of a room late
            self.players_of(reply[1]).add(uid)
        assert reply[0] != "stale", "it is their newest connection"

    def connect(self, drawn):
        self.reconnect(drawn.uid, drawn.n)

    def duel(self, drawn):
        conn, over, game = self.conns[drawn.uid], self.over.get(drawn.uid, ""), next(self.game_ids)
        self.entered(
            drawn.uid, join(self.store, drawn.uid, conn, FIFO, "duel", over=over, game=game)
        )

    def enter_room(self, drawn):
        code, over = ROOM_CODES[drawn.n % 4 == 0], self.over.get(drawn.uid, "")
        who = drawn.uid, self.conns[drawn.uid], code
        room = self.store.client.hget(Keys.room(code), "queue")
        if self.store.client.hexists(Keys.room(code), "closed") and drawn.n % 3 == 0:
            self.store.client.delete(Keys.room(code))  # a day later
        self.entered(
            drawn.uid, join_room(self.store, *who, int(not room), MOST, int(drawn.flag), over)
        )

    def begin(self, drawn):
        code = ROOM_CODES[drawn.n % 2]
        uid = self.store.client.hget(Keys.room(code), "host") or drawn.uid
        uid = drawn.uid if drawn.n % 7 == 0 else uid
        reply = begin_room(self.store, uid, self.conns[uid], code, game=next(self.game_ids))
        if reply[0] == "matched":
            assert uid == self.store.client.hget(Keys.room(code), "host")

    def direct(self, drawn):
        code = ROOM_CODES[drawn.n % 2]
        uid = self.store.client.hget(Keys.room(code), "host") or drawn.uid
        uid = drawn.uid if drawn.flag else uid
        act = ("lock", "kick", "pass")[drawn.n % 3]
        value = str(drawn.n % 2) if act == "lock" else f"name {drawn.other}"
        reply = direct_room(self.store, uid, self.conns[uid], act, value, code)
        if reply[0] == "kicked" and reply[1] != "-":
            self.players_of(reply[1]).discard(drawn.other)

    def challenge(self, drawn):
        keys = Keys.seats, Keys.contest(CONTEST_CODE), Keys.due, Keys.lobby_clock
        keys = *keys, Keys.playing, Keys.forming
        conn, over = self.conns[drawn.uid], self.over.get(drawn.uid, "")
        person = drawn.uid, conn, turn_of(conn), over, next(self.game_ids)
        reply = self.store.call("join_challenge", keys, *person)
        self.entered(drawn.uid, reply)
        if reply[0] == "refused":
            assert reply[1] in ("own_challenge", "challenge_played", "challenge_full")

    def runs(self):
        fields = self.store.client.hgetall(Keys.contest(CONTEST_CODE))
        return {key[4:]: text for key, text in fields.items() if key.startswith("run:")}

    def progress(self, drawn):
        playing = [text for text in self.runs().values() if " " not in text]
        if playing:
            game = self.pick(playing, drawn.n)
            others = self.store.call(
                "note_progress", (Keys.contest(CONTEST_CODE),), game, "1:20:100 -"
            )
            assert sorted(others[1::2]) == sorted(set(playing) - {game})

    def leave(self, drawn):
        here = self.seat(drawn.uid)
        if here and here.connection == self.conns[drawn.uid]:
            reply = leave(self.store, drawn.uid, here.connection, int(drawn.flag), here.queue)
            if reply[0] == "game" and not drawn.flag:
                release(self.store, drawn.uid, reply[1])
                self.players_of(reply[1]).discard(drawn.uid)
            if drawn.flag:
                self.reconnect(drawn.uid, drawn.n)

    def leave_late(self, drawn):
        if self.retired:
            uid, conn = self.retired[drawn.n % len(self.retired)]
            here = self.seat(uid)
            before = self.store.client.hgetall(Keys.seats)
            if leave(self.store, uid, conn, 1, here.queue if here else "duel") == ["stale"]:
                assert self.store.client.hgetall(Keys.seats) == before

    def offers(self):
        return self.store.client.keys("rematch:*")

    def rematch_call(self, name, game, queue, *args):
        lobby = Keys.seats, Keys.rematch(game), Keys.due, Keys.lobby_clock, Keys.playing
        keys = *lobby, Keys.forming, Keys.hidden, *queue
        return self.store.call(name, keys, NOBODY, next(self.game_ids), *args)

    def agree(self, drawn):
        here = self.seat(drawn.uid)
        if here and here.may_play_again:
            conn = here.connection if drawn.n % 9 else "w0.9999"
            accept = (1, 1, 1, 0, "")[drawn.n % 5]
            args = drawn.uid, conn, accept, here.queue
            reply = self.rematch_call(
                "answer_rematch", here.party, (Keys.queue(here.queue),), *args
            )
            assert reply[0] in ("waiting", "over", "matched", "rematch_over")

    def look(self, drawn):
        if offers := self.offers():
            key = self.pick(offers, drawn.n)
            if drawn.flag:
                self.store.client.hset(key, "ends", 1)
            game = key.rpartition(":")[2]
            self.rematch_call("check_rematch", game, (), game, "")

    def tidy(self, drawn):
        seat_ms, wait_ms = (0, 60_000) if drawn.flag else (30_000, drawn.n % 5 * 60_000)
        check_room(self.store, ROOM_CODES[drawn.n % 2], seat_ms, wait_ms)

    def end(self, drawn):
        if not self.games:
            return
        game = self.pick(self.games, drawn.n)
        uids, queue = self.games.pop(game)
        if queue == "contest":
            run = self.store.call("record_run", (Keys.contest(CONTEST_CODE),), game, "7 9 1:20:7 -")
            assert run == 1
        if queue == "duel":
            names = [item for uid in sorted(uids) for item in (uid, f"name {uid}")]
            lobby = Keys.seats, Keys.rematch(game), Keys.due, Keys.lobby_clock, Keys.playing
            rules = game, "duel", 20_000, 2, ""
            for _ in range(2):
                self.store.call("offer_rematch", lobby, *rules, *names)
        self.over |= dict.fromkeys(uids, game)  # the players may play again at once
        self.ended[game] = uids
        if drawn.flag:
            self.settle(drawn)

    def settle(self, drawn):
        for game, uids in self.ended.items():
            for uid in uids:
                release(self.store, uid, game)
        self.ended.clear()

    def pick(self, items, n):
        return sorted(items)[n % len(items)]

    # -- what always holds

    @invariant()
    def all_is_well(self):
        seats = {
            uid: trivia.Seat.parse(text)
            for uid, text in self.store.client.hgetall(Keys.seats).items()
        }
        playing = Counter(here.queue for here in seats.values() if here.game != "-")
        counted = self.store.client.hgetall(Keys.playing)
        assert {queue: int(count) for queue, count in counted.items() if count != "0"} == playing
        for uid, here in seats.items():
            assert here.game == "-" or uid in self.players_of(here.game)
        for code in ROOM_CODES:
            self.a_room_is_whole(code, {u for u, here in seats.items() if here.party == code})
        for uid, here in seats.items():
            if here.may_play_again:
                offer = self.store.client.hgetall(Keys.rematch(here.party))
                assert uid in offer["members"].split()
                assert set(offer["agreed"].split()) <= set(offer["members"].split())
        for key in self.offers():
            ticket = f"- rematch:{key.rpartition(':')[2]}"
            assert self.store.client.zscore(Keys.due, ticket) is not None
        runs = self.runs()
        assert len(runs) <= MOST and all(
            runs[uid].split(" ")[0] == here.game
            for uid, here in seats.items()
            if here.game != "-" and here.queue == "contest"
        )
        in_contest = [uid for draw, uid in self.begun if draw == CONTEST_CODE]
        assert sorted(in_contest) == sorted(runs)

    def a_room_is_whole(self, code, uids):
        room = self.store.client.hgetall(Keys.room(code))
        if "queue" not in room:
            assert not uids
            return
        members = room["members"].split()
        assert uids <= set(members) and len(members) == len(set(members)) <= MOST
        assert room["host"] in members
        named = {key[5:] for key in room if key.startswith("name:")}
        assert uids <= named <= set(members)  # a refused call may have removed absent members
        assert self.store.client.zscore(Keys.due, f"q room:{code}") is not None


def test_random_actions_in_any_order_keep_rooms_rematches_and_challenges_consistent(store):
    AnyMeeting.store = store
    run_state_machine_as_test(
        AnyMeeting,
        settings=settings(
            max_examples=16,
            stateful_step_count=60,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
