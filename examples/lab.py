"""A lab for authors of apps: an opponent, and faults on demand. TRIVIA_LAB=1 switches it on.

In the queue `lab` a phone plays an opponent of ours over the real protocol. A script causes faults
that otherwise take a train ride or a deploy. It comes as `script` in the `join`, or in the address:
/game/lab?script=drop@3,latency=800. Games in the lab count for nothing.

The lab is ASGI middleware. It knows the server only by its public protocol, and by two hooks: the
scope's `trivia.ticket_ratings` decides whom a phone meets, and `wire_of` cuts a connection.

    phone <==> Sandbox, bends what passes <==> app <==> Opponent, a player without a phone

To add a fault: FAULTS, and where the Sandbox or the Opponent obeys it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import random
import re
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs

log = logging.getLogger("trivia.lab")

QUEUE = "lab"
FAULTS = {
    "drop@N": "the connection breaks at question N",
    "deploy@N": "the server closes with 1012 at question N",
    "lose@N": "the game's message with seq N is lost",
    "unavailable@N": "the answer to question N gets that error, once",
    "latency=MS": "each message takes this long, both ways",
    "duplicate": "each message of the game arrives twice",
    "reorder": "every second message of the game arrives after the next one, or 2 s late",
    "silent": "the opponent never answers",
    "slow": "the opponent answers late",
    "away@N": "the opponent loses their connection at question N, and returns",
    "leave@N": "the opponent leaves at question N",
}
MAX_SCRIPT = 200
SCRIPT_FIELD = {
    "type": "string",
    "maxLength": MAX_SCRIPT,
    "description": "In the lab: the faults, such as drop@3,latency=800. "
    + "; ".join(f"{word}: {effect}" for word, effect in FAULTS.items())
    + ".",
}
LAB_SPEC = {
    "description": "A practice opponent, and faults on demand. Counts for nothing.",
    "players": 2,
    "match": "rating",
    "window": 0,
    "widen": 0,
    "rounds": 4,
    "start_seconds": 1,
    "answer_seconds": 8,
    "reveal_seconds": 1,
    "wait_seconds": 30,
    "scoring": {"correct": 100, "speed": 50},
    "rated": False,
    "on_exit": "continue",
    "seat_seconds": 20,
}
UNAVAILABLE = "The server can't do this now; try again shortly."
REORDER_S = 2  # a message that waits for the next one waits at most this long
AWAY_S = 1.5  # the opponent stays away this long
GOODBYE_S = 5  # a worker that stops waits this long for its opponents to erase their accounts


def extend(tree: dict) -> dict:
    """Returns the tree of schema.yaml with the queue `lab` and the field `script` of `join`."""
    messages = tree["messages"]
    join = messages["client"]["join"]
    join = join | {"fields": join["fields"] | {"script": SCRIPT_FIELD}}
    messages = messages | {"client": messages["client"] | {"join": join}}
    return tree | {"queues": tree["queues"] | {QUEUE: LAB_SPEC}, "messages": messages}


def parse_script(text: str) -> dict[str, int]:
    """Returns {word: its number, or 1}. Raises ValueError for an unknown word."""
    script = {}
    for word in re.findall(r"[^,;\s]+", text):
        name, mark, number = re.fullmatch(r"(.*?)(?:([@=])(\d{1,5}))?", word).groups()
        form = name + {"@": "@N", "=": "=MS", None: ""}[mark]
        if form not in FAULTS:
            known = ", ".join(FAULTS)
            raise ValueError(f"Unknown word {word[:60]!r}; expected words such as {known}.")
        script[name] = int(number or 1)
    return script


def take_once(script: dict[str, int], word: str, number: Any) -> bool:
    """Returns whether the script has this word with this number. If so, the word is used up."""
    if not number or script.get(word) != number:
        return False
    del script[word]
    return True


def read_frame(message: dict) -> dict:
    """Returns the JSON object in a text frame; {} if there is none."""
    with contextlib.suppress(ValueError, RecursionError):
        frame = json.loads(message.get("text") or "null")
        if isinstance(frame, dict):
            return frame
    return {}


def text_frame(kind: str, **fields: Any) -> dict:
    """Returns the ASGI message with which a server sends a JSON message."""
    text = json.dumps({"type": kind} | fields, ensure_ascii=False, separators=(",", ":"))
    return {"type": "websocket.send", "text": text}


class Response(NamedTuple):
    """The app's answer to an HTTP request."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Returns the decoded body."""
        return json.loads(self.body)


class Lab:
    """The app behind a Sandbox for each WebSocket. It has the attributes of the app."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.tasks: set[asyncio.Task] = set()
        self.opponents: set[asyncio.Task] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            receive = functools.partial(self._receive_stop, receive)
        elif scope["type"] == "websocket":
            sandbox = Sandbox(self, scope, receive, send)
            scope = scope | {"trivia.ticket_ratings": sandbox.ratings}
            receive = sandbox.receive
            send = sandbox.send
        await self.app(scope, receive, send)

    async def _receive_stop(self, receive: Callable) -> dict:
        """Receives a lifespan event. Lets opponents erase their accounts before a shutdown."""
        message = await receive()
        if message["type"] == "lifespan.shutdown" and self.opponents:
            await asyncio.wait(self.opponents, timeout=GOODBYE_S)
        return message

    def spawn(self, work: Awaitable) -> asyncio.Task:
        """Runs something in the background; it must handle its own exceptions."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def invite(self, opponent: Opponent) -> None:
        """Lets an opponent play one game."""
        task = self.spawn(opponent.play())
        self.opponents.add(task)
        task.add_done_callback(self.opponents.discard)

    async def request(self, method: str, path: str, body: Any = None, token: str = "") -> Response:
        """Calls a route of the app."""
        scope = _scope("http", path, token) | {"method": method}
        scope["headers"].append((b"content-type", b"application/json"))
        data = b"" if body is None else json.dumps(body).encode()
        parts = []
        status = 500

        async def receive() -> dict:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: dict) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        await self.app(scope, receive, send)
        return Response(status, b"".join(parts))


def _scope(kind: str, path: str, token: str) -> dict:
    """Returns the ASGI scope of a request from this host."""
    headers = [(b"host", b"localhost")]
    if token:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws" if kind == "websocket" else "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": (secrets.token_hex(4), 0),  # an address of its own: limits count by address
        "server": ("127.0.0.1", 0),
    }


def ratings_for(scope: dict) -> dict[str, float]:
    """Returns the ratings of a phone and its opponent, with which they meet only each other.

    The number is made of the phone's token, so that it stays the same when the phone reconnects.
    It has 40 bits: Lua writes at most 14 digits of a number.
    """
    headers = dict(scope["headers"])
    offered = " ".join(scope.get("subprotocols", []))
    token = headers.get(b"authorization", b"") + offered.encode()
    digest = hashlib.blake2b(token, digest_size=5).digest()
    return {QUEUE: float(int.from_bytes(digest))}


class Sandbox:
    """Stands between the app and a phone. Bends what passes by the script of the phone."""

    def __init__(self, lab: Lab, scope: dict, receive: Callable, send: Callable) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        self.lab = lab
        self.ratings = ratings_for(scope)
        self.loop = asyncio.get_running_loop()
        self.address_script = query.get("script", [""])[0]
        self.script: dict[str, int] = {}
        self.queue = scope["path"].rpartition("/game/")[2]
        self.busy = False  # the player is in a queue or a game
        self.hidden: list[str] = []  # what happens next and the phone does not see
        self.count = 0  # messages of the game
        self.kept: dict | None = None  # a message that waits for the next one
        self.opponent: Opponent | None = None
        self._receive = receive
        self._send = send

    # -- from the phone

    async def receive(self) -> dict:
        """Returns the next message for the app."""
        while True:
            message = await self._next_message()
            frame = read_frame(message)
            if frame.get("type") == "join":
                passes = await self._on_join(frame)
            elif frame.get("type") == "answer":
                passes = await self._on_answer(frame)
            else:
                passes = True
            if passes:
                return message

    async def _next_message(self) -> dict:
        if self._hides("leave"):
            return {"type": "websocket.receive", "text": '{"type":"leave"}'}
        message = await self._receive()
        if message["type"] == "websocket.receive" and "latency" in self.script:
            await asyncio.sleep(self.script["latency"] / 1000)
        return message

    async def _on_join(self, join: dict) -> bool:
        """Takes the script of a join. Returns whether the app gets the join."""
        script = join.get("script", "")
        if self.busy or not isinstance(script, str) or len(script) > MAX_SCRIPT:
            return True  # the app refuses it
        self.hidden.clear()
        return await self._begin(script, join)

    async def _on_answer(self, answer: dict) -> bool:
        """Refuses an answer if the script says so. Returns whether the app gets it."""
        if not take_once(self.script, "unavailable", answer.get("round")):
            return True
        await self._refuse(answer, "unavailable", UNAVAILABLE)
        return False

    async def _begin(self, script: str, join: dict) -> bool:
        """Puts a script in force. In the lab the last one stays in force if there is none."""
        if not script and join.get("queue", self.queue) == QUEUE:
            return True
        try:
            self.script = parse_script(script)
        except ValueError as error:
            await self._refuse(join, "bad_script", str(error))
            return False
        return True

    async def _refuse(self, frame: dict, code: str, text: str) -> None:
        mark = {"id": frame["id"]} if "id" in frame else {}
        await self._pass(text_frame("error", code=code, message=text, **mark))

    # -- from the app

    async def send(self, message: dict) -> None:
        """Passes a message of the app on to the phone, or not."""
        if message.get("text") is not None:
            return await self._on_text(message, json.loads(message["text"]))
        await self._send(message)
        if message["type"] == "websocket.accept" and not await self._begin(self.address_script, {}):
            # The app joins the queue of the address by itself. The player must leave it again.
            self.hidden = ["queued", "leave", "cancelled"]

    def _hides(self, step: str) -> bool:
        """Returns whether this is the next hidden step. If so, it is done."""
        if self.hidden[:1] != [step]:
            return False
        self.hidden.pop(0)
        return True

    async def _on_text(self, message: dict, frame: dict) -> None:
        self._follow(frame)
        if self._hides(frame["type"]):
            return
        number = frame.get("round", 0) if frame["type"] == "question" else 0
        if take_once(self.script, "drop", number):
            self._cut()
        elif take_once(self.script, "deploy", number):
            reason = "reconnect at once"
            await self._send({"type": "websocket.close", "code": 1012, "reason": reason})
        elif not take_once(self.script, "lose", frame.get("seq", 0)):
            await self._bend(message, frame)
        if frame["type"] == "queued" and self.queue == QUEUE:
            self._invite()

    def _follow(self, frame: dict) -> None:
        """Keeps track of where the player is."""
        if frame["type"] in ("queued", "start", "update"):
            self.busy = True
            self.queue = frame["queue"]
        elif frame["type"] in ("end", "cancelled"):
            self.busy = False

    def _cut(self) -> None:
        wire = sys.modules["trivia"].wire_of(self._send)
        if wire is None:
            log.warning("drop: this ASGI server offers no way to cut a connection")
        else:
            wire.abort()

    def _invite(self) -> None:
        """Invites an opponent, unless one waits already."""
        if self.opponent is None or not self.opponent.waiting:
            self.opponent = Opponent(self.lab, self.ratings, self.script)
            self.lab.invite(self.opponent)

    async def _bend(self, message: dict, frame: dict) -> None:
        if "seq" not in frame or frame["type"] in ("update", "end"):
            await self._release(self.kept)
            await self._pass(message)
            return
        self.count += 1
        if "reorder" in self.script and self.kept is None and self.count % 2:
            self.kept = message
            self.loop.call_later(REORDER_S, self._in_background, self._release, message)
            return
        await self._pass(message)
        if "duplicate" in self.script:
            await self._pass(message)
        await self._release(self.kept)

    async def _release(self, kept: dict | None) -> None:
        """Passes on the message that waits for the next one, if it still waits."""
        if kept is not None and kept is self.kept:
            self.kept = None
            await self._pass(kept)

    async def _pass(self, message: dict) -> None:
        if "latency" in self.script:
            delay_s = self.script["latency"] / 1000
            self.loop.call_later(delay_s, self._in_background, self._send, message)
        else:
            await self._send(message)

    def _in_background(self, send: Callable, message: dict) -> None:
        self.lab.spawn(_quietly(send(message)))


async def _quietly(sending: Awaitable) -> None:
    with contextlib.suppress(Exception):  # the phone may be gone by now
        await sending


class Opponent:
    """A player without a phone: the app talks to this class. The account lasts for one game."""

    def __init__(self, lab: Lab, ratings: dict[str, float], script: dict[str, int]) -> None:
        self.lab = lab
        self.ratings = ratings
        self.script = script  # the host's: each word is used up once for both
        self.loop = asyncio.get_running_loop()
        self.frames: asyncio.Queue[dict] = asyncio.Queue()
        self.waiting = True  # for the game to start
        self.over = False

    async def play(self) -> None:
        """Registers, plays one game and erases the account."""
        password = secrets.token_urlsafe()
        try:
            token = await self._register(password)
            while not self.over:
                await self._connect(token)
                if not self.over:
                    await asyncio.sleep(AWAY_S)
            await self.lab.request("DELETE", "/users/me", {"password": password}, token)
        except Exception:
            log.exception("the opponent failed")
        finally:
            self.waiting = False

    async def _register(self, password: str) -> str:
        """Makes an account with the fields that the documents require. Returns its token."""
        document = await self.lab.request("GET", "/docs/openapi.json")
        form = document.json()["components"]["schemas"]["NewUser"]
        name = f"lab-{secrets.token_hex(3)}"
        user = {field: sample(form["properties"][field], name) for field in form["required"]}
        user |= {"username": name, "password": password}
        response = await self.lab.request("POST", "/auth/register", user)
        if response.status != 201:
            raise RuntimeError(f"registration: {response.status} {response.body.decode()}")
        return response.json()["token"]

    async def _connect(self, token: str) -> None:
        """Connects and stays connected until a disconnect is put into `frames`."""
        self.frames = asyncio.Queue()
        self.frames.put_nowait({"type": "websocket.connect"})
        scope = _scope("websocket", f"/game/{QUEUE}", token)
        scope |= {"subprotocols": [], "extensions": {"websocket.http.response": {}}}
        scope |= {"trivia.ticket_ratings": self.ratings}
        await self.lab.app(scope, self.frames.get, self._on_message)

    async def _on_message(self, message: dict) -> None:
        """Takes a message of the app. It is this player's `send`."""
        if message["type"] == "websocket.accept":
            return
        frame = read_frame(message)
        if frame.get("type") == "start":
            self.waiting = False
        elif frame.get("type") == "question":
            self._on_question(frame)
        elif message["type"] != "websocket.send" or frame["type"] in ("end", "cancelled"):
            self.over = True
            self.waiting = False
            self._disconnect()

    def _on_question(self, question: dict) -> None:
        number = question["round"]
        if take_once(self.script, "leave", number):
            self._do({"type": "leave"})
        elif take_once(self.script, "away", number):
            self._disconnect()
        elif "silent" not in self.script:
            choice = random.randrange(len(question["choices"]))
            answer = {"type": "answer", "round": number, "choice": choice}
            share = (0.8, 0.95) if "slow" in self.script else (0.05, 0.25)
            delay_s = question["answer_ms"] / 1000 * random.uniform(*share)
            self.loop.call_later(delay_s, self._do, answer)

    def _do(self, message: dict) -> None:
        self.frames.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    def _disconnect(self) -> None:
        self.frames.put_nowait({"type": "websocket.disconnect", "code": 1001})


def sample(rule: dict, name: str) -> Any:
    """Returns a value for a field of a registration, given as JSON Schema."""
    formats = {
        "email": f"{name}@lab.example.org",
        "date": "2000-01-01",
        "date-time": "2000-01-01T00:00:00Z",
    }
    types = {
        "string": name.ljust(rule.get("minLength", 0), "-"),
        "integer": rule.get("minimum", 0),
        "number": rule.get("minimum", 0),
        "boolean": False,
    }
    if "enum" in rule:
        return rule["enum"][0]
    if rule.get("format") in formats:
        return formats[rule["format"]]
    if rule.get("examples"):
        return rule["examples"][0]
    return rule.get("default", types[rule["type"]])
