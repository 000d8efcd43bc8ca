"""A client for the terminal: plays trivia on the screen, or runs bots to play against.

    python examples/terminal.py play
    python examples/terminal.py play --queue solo           alone; daily: the questions of today
    python examples/terminal.py play --queue friends        opens a private room
    python examples/terminal.py play --code ABC234          joins a room, or takes a challenge
    python examples/terminal.py play --challenge            makes a challenge and plays it first
    python examples/terminal.py bot -n 2
    python examples/terminal.py bot -n 3 --queue friends --room

Needs Python 3.11 or later and `pip install websockets`; `play` also needs `pip install rich`.

To write a client of your own, read `Client` (account, WebSocket, reconnects) and `Game` (the state
of a game, message by message). The rest is the screen and the bots.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import http.client
import json
import math
import os
import random
import secrets
import signal
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

try:
    from rich import box
    from rich.align import Align
    from rich.console import Console, Group, RenderableType
    from rich.layout import Layout
    from rich.live import Live
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    HAS_RICH = True
except ImportError:  # only `play` draws a screen
    HAS_RICH = False

try:
    import termios
    import tty
except ImportError:  # not Unix: each key then needs Enter
    termios = None  # type: ignore[assignment]

Message = dict[str, Any]

EMOJI = "👍😂😮😢😡🎉🤔👏"
CHOICE_KEYS = {key: index for keys in ("1234", "abcd") for index, key in enumerate(keys)}
ADJECTIVES = ("brave", "calm", "clever", "eager", "gentle", "happy", "jolly", "lucky", "sunny")
ANIMALS = ("badger", "beaver", "falcon", "heron", "lynx", "magpie", "otter", "panda", "walrus")
DIFFICULTY = {"easy": "green", "medium": "yellow", "hard": "red"}

# Close codes after which a reconnect can't help.
FINAL = {
    4400: "the server does not understand this client",
    4401: "the session has ended: log in again",
    4409: "this account now plays on another device",
    4413: "a message was too big for the server",
}
RESTART, TRY_LATER = 1012, (1013, 4429)
MAX_FAILURES = 12  # failed connections in a row, about two minutes
MAX_RETRY_AFTER = 30  # seconds; a longer Retry-After is an error
OVERDUE = 30.0  # seconds that a bot waits after a deadline before it reports an error
REJOINS = 3  # times in a row that a bot joins again after `cancelled`

# Errors after which the player is nowhere: the server did not let them in.
NOT_IN = {
    "already_played",
    "challenge_full",
    "challenge_played",
    "code_needed",
    "expired_code",
    "kicked",
    "malformed_code",
    "own_challenge",
    "queue_closed",
    "queue_full",
    "room_full",
    "room_locked",
    "too_many_attempts",
    "unknown_code",
}
CANCELLED = {
    "timeout": "Nobody came in time",
    "left": "You left",
    "kicked": "The host sent you away",
    "closed": "The queue is closed",
}


class TriviaError(Exception):
    """An error that ends the program. Its text is for the user."""


class Refused(TriviaError):
    """The server refused an HTTP request."""

    def __init__(self, status: int, headers: Any, body: bytes | bytearray) -> None:
        try:
            problem = dict(json.loads(body))
        except (TypeError, ValueError):
            problem = {}
        seconds = headers.get("Retry-After") or ""
        self.retry_after = int(seconds) if seconds.isdecimal() else 0
        self.code = problem.get("code")
        errors = [f"{name}: {' '.join(texts)}" for name, texts in problem.get("errors", {}).items()]
        text = "; ".join(errors) or problem.get("detail") or f"the server answered {status}"
        super().__init__(f"{text} (wait {seconds} s)" if self.retry_after else text)


def is_refusal(message: Message) -> bool:
    """Tells whether the server did not let the player into a queue, a room or a challenge."""
    return message["type"] == "error" and message["code"] in NOT_IN


def close_code(error: Exception) -> int | None:
    """Returns the close code that the server sent, if any."""
    return error.rcvd.code if isinstance(error, ConnectionClosed) and error.rcvd else None


class Client:
    """A player's account and WebSocket. Reconnects when the connection is lost."""

    def __init__(self, url: str, queue: str, code: str = "") -> None:
        self.url, self.queue = url.rstrip("/"), queue
        self.code = code  # of a room or of a challenge
        self._in_room = False  # a player stays there when a game has ended
        self.username = self._token = ""
        self._socket: ClientConnection | None = None
        self._failures = 0
        self._seen: dict[str, int] = {}  # game id -> last seq, of the current game
        # A connection joins the queue. After a game, only a player who wants another reconnects.
        self.wanted = asyncio.Event()
        self.wanted.set()

    async def register(self, name: str, password: str) -> None:
        """Creates an account and logs in. Raises TriviaError."""
        # The server requires an address, but sends no mail.
        email = f"{secrets.token_hex(8)}@example.com"
        await self._enter("/auth/register", username=name, email=email, password=password)

    async def log_in(self, name: str, password: str) -> bool:
        """Logs in, or registers if the name is free. Returns whether it registered."""
        try:
            await self._enter("/auth/login", login=name, password=password)
            return False
        except Refused as error:
            if error.code != "bad_credentials":
                raise
        # The server does not say whether the name or the password is wrong. A registration does.
        try:
            await self.register(name, password)
            return True
        except Refused as error:
            if error.code != "username_taken":
                raise
            raise TriviaError(f"wrong password for {name}") from None

    async def make_challenge(self) -> str:
        """Makes a challenge, which this player then plays first. Returns its code."""
        reply = await self._ask("/challenges", queue=self.queue)
        self.code = reply["code"]
        return self.code

    async def _enter(self, path: str, **body: str) -> None:
        """Registers or logs in."""
        reply = await self._ask(path, **body)
        try:
            self._token, self.username = reply["token"], reply["user"]["username"]
        except (LookupError, TypeError) as error:
            raise TriviaError(f"{self.url} is not a trivia server") from error

    async def _ask(self, path: str, **body: str) -> Message:
        """Posts a request. Repeats it after Retry-After while the server is busy."""
        for more_tries in reversed(range(10)):
            try:
                return await asyncio.to_thread(self._post, path, body)
            except Refused as error:
                if not (more_tries and 0 < error.retry_after <= MAX_RETRY_AFTER):
                    raise
                await asyncio.sleep(error.retry_after + random.random())
        raise AssertionError("the last try returns or raises")

    def _post(self, path: str, body: Message) -> Message:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.headers, error.read()) from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            raise TriviaError(f"no connection to {self.url}: {why}") from error
        except ValueError as error:
            raise TriviaError(f"{self.url} is not a trivia server") from error

    async def messages(self) -> AsyncIterator[Message]:
        """Yields the server's messages, and reconnects when needed. Raises TriviaError.

        Adds two types: `online`, and `lost` with a `reason` and a `pause` in seconds.
        """
        while True:
            await self.wanted.wait()
            try:
                self._socket = await self._connect()
                yield {"type": "online"}
                while True:
                    message = json.loads(await self._socket.recv())
                    await self._track(message)
                    yield message
            except (OSError, WebSocketException) as error:
                self._socket = None
                if self.wanted.is_set():
                    pause, code = self._pause(error), close_code(error)
                    reason = f"closed with code {code}" if code else str(error)
                    yield {"type": "lost", "reason": reason, "pause": pause}
                    await asyncio.sleep(pause)

    async def _connect(self) -> ClientConnection:
        path = f"/game/{urllib.parse.quote(self.queue, safe='')}"
        if self.code:
            path += f"?code={urllib.parse.quote(self.code, safe='')}"
        headers = {"Authorization": f"Bearer {self._token}"}
        url = "ws" + self.url.removeprefix("http") + path
        return await connect(url, additional_headers=headers, close_timeout=2)

    async def _track(self, message: Message) -> None:
        """Asks for an update after a gap in `seq`. Notes whether and where to reconnect."""
        self._failures = 0
        kind, seq = message["type"], message.get("seq")
        if seq is not None:
            if kind != "update" and seq > self._seen.get(message["game"], 0) + 1:
                await self.send("check")
            self._seen = {message["game"]: seq}
        if kind == "start":
            self.wanted.set()
        elif kind == "room":
            self.code, self._in_room = message["code"], True
        elif kind == "cancelled" or is_refusal(message) or (kind == "end" and not self._in_room):
            self.code, self._in_room = "", False
            self.wanted.clear()

    def _pause(self, error: Exception) -> float:
        """Returns the seconds to wait before a reconnect. Raises TriviaError if that can't help."""
        code = close_code(error)
        if code in FINAL:
            raise TriviaError(FINAL[code]) from error
        if isinstance(error, InvalidStatus):
            response = error.response
            if 400 <= response.status_code < 500 and response.status_code != 429:
                raise Refused(response.status_code, response.headers, response.body) from error
        self._failures += 1
        if self._failures > MAX_FAILURES:
            raise TriviaError(f"no connection to {self.url}: {error}") from error
        if code == RESTART and self._failures == 1:
            return 0.0
        busy = code in TRY_LATER or isinstance(error, InvalidStatus)
        pause = max(min(0.5 * 2.0**self._failures, 15.0), 6.0 if busy else 0.0)
        return pause * random.uniform(0.5, 1.0)

    async def send(self, kind: str, **fields: Any) -> None:
        """Sends a message, or drops it without a connection; `update` then shows the true state."""
        if self._socket:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(json.dumps({"type": kind, **fields}))

    async def join(self) -> None:
        """Asks for another game, on the same connection if it is still open."""
        await self.send("join")
        self.wanted.set()

    async def close(self) -> None:
        """Leaves the queue or the game, so that no opponent waits, and closes the connection."""
        if self._socket:
            if self.wanted.is_set():
                await self.send("leave")
            await self._socket.close()


@dataclass
class Game:
    """What one player knows of the game. `on_x` applies a message of type x."""

    me: str
    online: bool = False
    phase: str = "joining"  # queued, room, start, question, reveal, settle, over, cancelled
    deadline: float | None = None  # end of the phase, in time.monotonic()
    span: float = 0.0  # length of the phase, in seconds
    note: str = ""
    id: str = ""
    players: list[Message] = field(default_factory=list)
    rounds: int = 0
    round: int = 0
    question: Message = field(default_factory=dict)
    choice: int | None = None
    correct: int | None = None
    answers: dict[str, Message] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)  # other players who have answered
    scores: dict[str, int] = field(default_factory=dict)
    away: dict[str, float] = field(default_factory=dict)  # player -> end of the time to return
    emoji: dict[str, tuple[str, float]] = field(default_factory=dict)  # (emoji, shown until)
    ranking: list[Message] = field(default_factory=list)
    reason: str = ""
    room: Message = field(default_factory=dict)  # the private room that the player is in
    rematch: bool = False  # the players may agree to play again
    series: dict[str, int] = field(default_factory=dict)  # games won of those in a row

    @property
    def running(self) -> bool:
        return self.phase in ("start", "question", "reveal", "settle")

    @property
    def is_host(self) -> bool:
        return bool(self.room) and self.room["host"] == self.me

    @property
    def others(self) -> list[str]:
        """Returns the other players of the room."""
        names = [player["username"] for player in self.room.get("players", ())]
        return [name for name in names if name != self.me]

    @property
    def left(self) -> float:
        return max(0.0, (self.deadline or 0.0) - time.monotonic())

    @property
    def can_answer(self) -> bool:
        return self.phase == "question" and self.choice is None and self.online

    def apply(self, message: Message) -> None:
        """Applies a message. Ignores unknown types: they are for newer clients."""
        if handler := HANDLERS.get(message["type"]):
            handler(self, message)

    def result(self) -> str:
        """Returns this player's result in one line."""
        mine = next((row for row in self.ranking if row["player"] == self.me), None)
        if not mine:
            return f"no result ({self.reason})"
        rating = f", rating {mine['rating']:.0f} ({change(mine)})" if "rating" in mine else ""
        place = f"place {mine['rank']} of {len(self.ranking)}, {mine['score']} points"
        return place + (rating if mine.get("counts", True) else ", which does not count")

    def _reset(self) -> None:
        vars(self).update(vars(Game(self.me, online=True, room=self.room)))

    def _enter(self, phase: str, ms: float | None) -> None:
        # `update` has only the time left. The longest value of a phase is its length.
        known = self.span if phase == self.phase else 0.0
        self.phase, self.note = phase, ""
        self.deadline = None if ms is None else time.monotonic() + ms / 1000
        self.span = max(self.left, known)

    def _new_game(self, message: Message) -> None:
        self._reset()
        self.id, self.rounds = message["game"], message["rounds"]
        self.players = message["players"]
        self.scores = {player["username"]: 0 for player in self.players}

    def _new_round(self, number: int) -> None:
        self.round, self.choice, self.correct = number, None, None
        self.answers, self.answered = {}, set()

    def on_online(self, _: Message) -> None:
        self.online, self.note = True, ""

    def on_lost(self, _: Message) -> None:
        self.online, self.note = False, "Connection lost, reconnecting… "

    def on_queued(self, message: Message) -> None:
        self._reset()
        self._enter("queued", message.get("timeout_ms"))

    def on_room(self, message: Message) -> None:
        self.room = message
        if not self.running and self.phase != "over":  # the result stays until a key is pressed
            self.back_to_room()

    def back_to_room(self) -> None:
        """Shows the room instead of the result of its last game."""
        self._reset()
        self._enter("room", None)

    def on_cancelled(self, message: Message) -> None:
        self._stop(CANCELLED.get(message["reason"], message["reason"]))

    def _stop(self, reason: str) -> None:
        self._enter("cancelled", 0)
        self.reason, self.room = reason, {}

    def on_start(self, message: Message) -> None:
        self._new_game(message)
        self._enter("start", message["starts_ms"])

    def on_question(self, message: Message) -> None:
        self._new_round(message["round"])
        self.question = message
        self._enter("question", message["answer_ms"])

    def on_answered(self, message: Message) -> None:
        self.answered.add(message["player"])

    def on_reveal(self, message: Message) -> None:
        self.correct, self.answers = message["correct"], message["answers"]
        self.scores = message["scores"]
        self._enter("reveal", message["reveal_ms"])

    def on_update(self, message: Message) -> None:
        if message["game"] != self.id:
            self._new_game(message)
        if message["round"] != self.round:
            self._new_round(message["round"])
        self.scores = message["scores"]
        gone = self.scores.keys() - set(message["connected"])
        self.away = {player: self.away.get(player, 0.0) for player in gone}
        self.question = message.get("question") or self.question
        self.choice, self.correct = message.get("choice"), message.get("correct")
        self.answers = message.get("answers", {})
        self.answered = set(message.get("answered", self.answered))
        self._enter(message["phase"], message["left_ms"])

    def on_user_exit(self, message: Message) -> None:
        self.away[message["player"]] = time.monotonic() + message["returns_ms"] / 1000

    def on_user_return(self, message: Message) -> None:
        self.away.pop(message["player"], None)

    def on_emoji(self, message: Message) -> None:
        self.emoji[message["player"]] = message["emoji"], time.monotonic() + 4

    def on_end(self, message: Message) -> None:
        self._enter("over", message.get("rematch_ms", 0))
        self.reason, self.ranking = message["reason"], message["ranking"]
        self.rematch, self.series = "rematch_ms" in message, message.get("series", {})

    def on_rematch(self, message: Message) -> None:
        if self.phase == "over":
            self.rematch = message["expires_ms"] > 0
            agreed = f"{', '.join(message['players'])}: play again!" if message["players"] else ""
            self.note = agreed if self.rematch else "There is no rematch."

    def on_error(self, message: Message) -> None:
        self.note = message["message"]
        if message["code"] == "late_answer":
            self.choice = None
        elif message["code"] == "rematch_over":
            self.rematch = False
        elif is_refusal(message):
            self._stop(message["message"])


HANDLERS = {name[3:]: method for name, method in vars(Game).items() if name.startswith("on_")}


def change(row: Message) -> str:
    """Returns the change of a rating, with its sign."""
    return f"{row.get('rating_change', 0):+}"


# The screen. These functions draw the state and do not change it.


def plain(value: object, style: str = "") -> Text:
    """Returns text of the server without markup and control characters."""
    text = " ".join(str(value).split())
    return Text("".join(char for char in text if char.isprintable()), style)


def grid(*ratios: int) -> Table:
    """Returns a row of cells. Cells with a ratio share the width that the others leave."""
    table = Table.grid(expand=True, padding=(0, 1))
    for ratio in ratios:
        table.add_column(ratio=ratio or None, no_wrap=True, overflow="ellipsis")
    return table


def header_view(game: Game) -> RenderableType:
    line = grid(0, 1, 0)
    if game.running and game.round:
        level = game.question.get("difficulty", "")
        category = Align.center(plain(game.question.get("category", ""), "bold"))
        place = Text(f"Round {game.round}/{game.rounds}", "bold cyan")
        line.add_row(place, category, plain(level, DIFFICULTY.get(level, "")))
    else:
        line.add_row(Text("Trivia", "bold cyan"), "", plain(game.me))
    return Panel(line, border_style="cyan")


def choice_style(game: Game, index: int) -> tuple[str, str]:
    """Returns the mark and the style of a choice."""
    chosen = index == game.choice
    if game.correct is None:
        return ("▶", "bold yellow") if chosen else (" ", "" if game.choice is None else "dim")
    if index == game.correct:
        return "✓", "bold green"
    return ("✗", "bold red") if chosen else (" ", "dim")


def verdict(game: Game) -> Text:
    """Returns the line under the choices."""
    if game.correct is not None:
        answer = game.answers.get(game.me)
        if not answer:
            return Text("You did not answer in time", "bold red")
        if answer["choice"] != game.correct:
            return Text("Wrong", "bold red")
        return Text(f"Right! +{answer['points']} in {answer['ms'] / 1000:.1f} s", "bold green")
    if game.phase == "settle" or game.choice is None:
        return Text("Your answer?" if game.phase == "question" else "The result follows…", "cyan")
    others = [name for name in game.scores if name not in game.answered | {game.me}]
    return plain(f"Waiting for {', '.join(others)}…" if others else "All have answered", "dim")


def question_view(game: Game) -> RenderableType:
    choices = Table.grid(padding=(0, 1))
    for index, choice in enumerate(game.question["choices"]):
        mark, style = choice_style(game, index)
        choices.add_row(Text(mark, style), Text(f"{index + 1}", "cyan"), plain(choice, style))
    question, line = plain(game.question["text"], "bold"), verdict(game)
    border = "dim" if game.correct is None else line.style
    return Panel(Group(question, "", choices, "", line), padding=(1, 2), border_style=border)


def result_view(game: Game) -> RenderableType:
    first = [row["player"] for row in game.ranking if row["rank"] == 1]
    title = "Game over"
    if game.me in first:
        title = "You won!" if first == [game.me] else "A draw"
    if game.reason == "forfeit":
        title += " (by forfeit)"
    table = Table(title=title, title_style="bold cyan", border_style="dim", box=box.ROUNDED)
    for heading in ("", "Player", "Points", "Rating", ""):
        table.add_column(heading, justify="left" if heading == "Player" else "right")
    for row in game.ranking:
        name = plain(row["player"], "bold" if row["player"] == game.me else "")
        cells: list[RenderableType] = [str(row["rank"]), name, str(row["score"])]
        if "rating" in row:
            color = "red" if change(row).startswith("-") else "green"
            cells += [f"{row['rating']:.0f}", Text(change(row), color)]
        table.add_row(*cells)
    if game.series:
        won = ", ".join(f"{name} {count}" for name, count in game.series.items())
        table.caption = plain(f"Games won: {won}")
    return table


def introduction(player: Message) -> str:
    rating = f" ({player['rating']:.0f})" if "rating" in player else ""
    return f"{player['username']}{rating}"


def room_line(room: Message) -> Callable[[Message], str]:
    """Returns how a player of a room is shown."""

    def line(player: Message) -> str:
        name = player["username"]
        host = " (host)" if name == room["host"] else ""
        return introduction(player) + host + ("" if name in room["connected"] else " …")

    return line


def waiting_view(game: Game, notice: str) -> RenderableType:
    title, lines = "Joining…", [notice]
    if game.phase == "queued":
        title = "Waiting for other players…"
    elif game.phase == "cancelled":
        title = game.reason
    elif game.phase == "room":
        title, lines = (
            f"Room {game.room['code']}",
            list(map(room_line(game.room), game.room["players"])),
        )
    elif game.phase == "start":
        title = f"{game.rounds} questions"
        lines = [introduction(player) for player in game.players]
    texts = [Text(title, "bold cyan"), Text(" "), *map(plain, lines)]
    return Group(*(Align.center(text) for text in texts))


def main_view(game: Game, notice: str) -> RenderableType:
    if game.running and game.question:
        return question_view(game)
    view = result_view(game) if game.phase == "over" else waiting_view(game, notice)
    return Panel(Align.center(view, vertical="middle"), border_style="dim")


def player_mark(game: Game, name: str) -> Text:
    """Returns the mark beside a player: an emoji, the time left to return, points or a tick."""
    emoji, until = game.emoji.get(name, ("", 0.0))
    if until > time.monotonic():
        return plain(emoji)
    if name in game.away:
        left = game.away[name] - time.monotonic()
        return Text(f"{left:.0f} s" if left > 0 else "away", "red")
    if game.phase == "reveal":
        points = game.answers.get(name, {}).get("points", 0)
        return Text(f"+{points}", "green" if points else "dim")
    answered = name in game.answered or (name == game.me and game.choice is not None)
    return Text("✓" if answered else "", "bold green")


def players_view(game: Game, rows: int) -> RenderableType:
    lines = grid(1, 0, 0)
    lines.columns[1].min_width = lines.columns[2].min_width = 4
    for name in sorted(game.scores, key=game.scores.__getitem__, reverse=True)[:rows]:
        style = "bold" if name == game.me else ""
        score = Align.right(Text(str(game.scores[name]), style))
        lines.add_row(plain(name, style), Align.right(player_mark(game, name)), score)
    return Panel(lines, title="Players", border_style="dim")


def countdown_view(game: Game) -> RenderableType:
    if not game.left:
        return ""
    share = game.left / game.span
    color = "red"
    if game.phase != "question":
        color = "blue"
    elif share > 0.2:
        color = "green" if share > 0.5 else "yellow"
    line = grid(1, 0)
    bar = ProgressBar(total=1, completed=share, style="grey23", complete_style=color)
    line.add_row(bar, Text(f"{game.left:5.1f} s", color))
    return line


def screen_view(game: Game, notice: str, keys: str, width: int, height: int) -> Layout:
    """Returns the whole screen. The players are beside the question if it is wide enough."""
    screen, middle = Layout(), Layout(main_view(game, notice))
    if game.running and game.round:
        wide = width >= 76
        rows = height - 7 if wide else min(len(game.scores), 6)
        players = Layout(players_view(game, rows), size=34 if wide else rows + 2)
        main, middle = middle, Layout()
        (middle.split_row if wide else middle.split_column)(main, players)
    note = plain(game.note, "bold yellow" if game.online else "bold red")
    last = Text.assemble(note, (keys, "dim"), no_wrap=True)
    foot = Layout(Group(countdown_view(game), last), size=2)
    screen.split_column(Layout(header_view(game), size=3), middle, foot)
    return screen


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """Lets the terminal deliver each key without Enter."""
    if not termios or not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        # Drops keys that are still unread, or the shell gets them.
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, saved)


def read_keys(put: Callable[[str], None]) -> None:
    """Passes on what is typed, and "" at the end of the input. Runs in a thread."""
    with contextlib.suppress(RuntimeError):  # the event loop may be closed
        with contextlib.suppress(OSError):
            while data := os.read(sys.stdin.fileno(), 64):
                put(data.decode(errors="replace"))
        put("")


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs all of them until one ends or fails."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


class Player:
    """A person at the terminal: sends keys to the server and shows its messages."""

    def __init__(self, client: Client, notice: str) -> None:
        self.client, self.notice = client, notice
        self.game = Game(client.username)
        self.results: list[str] = []
        self._typed: asyncio.Queue[str] = asyncio.Queue()
        self._no_keys = False
        self._choosing = ""  # e: an emoji; k, p: whom to send away, or to make the host

    async def run(self) -> None:
        loop = asyncio.get_running_loop()

        def put(text: str) -> None:
            loop.call_soon_threadsafe(self._typed.put_nowait, text)

        with single_keys(), Live(console=Console(), screen=True, auto_refresh=False) as live:
            threading.Thread(target=read_keys, args=(put,), daemon=True).start()
            await first_of(self._listen(), self._handle_keys(), self._draw(live))

    async def _listen(self) -> None:
        async for message in self.client.messages():
            self.game.apply(message)
            if message["type"] == "end":
                self.results.append(self.game.result())
            if self._no_keys and not self.client.wanted.is_set():
                return

    async def _draw(self, live: Live) -> None:
        while True:
            size = live.console.size
            view = screen_view(self.game, self.notice, self._keys(), size.width, size.height)
            live.update(view, refresh=True)
            await asyncio.sleep(0.1)

    def _keys(self) -> str:
        """Returns the line that names the keys which work now."""
        game = self.game
        if self._choosing:
            choices = EMOJI if self._choosing == "e" else game.others
            return " " + "  ".join(f"{number} {one}" for number, one in enumerate(choices, 1))
        if game.phase in ("over", "cancelled"):
            rematch = "r: the same players again   " if game.rematch else ""
            return f" {rematch}{'y: back to the room' if game.room else 'Play again? y'}   n: stop"
        if game.phase == "room" and game.is_host:
            lock = "unlock" if game.room["locked"] else "lock"
            return f" b: begin   l: {lock}   k: send away   p: pass the room on   Ctrl-C: leave"
        if not game.running or not game.online:
            return " Ctrl-C: leave"
        count = len(game.question["choices"]) if game.can_answer else 0
        answer = f"1-{count} or a-{'abcd'[count - 1]}: answer   " if count else ""
        return f" {answer}e: emoji   Ctrl-C: leave"

    async def _handle_keys(self) -> None:
        """Handles keys until the player stops."""
        while True:
            text = await self._typed.get()
            self._no_keys = not text
            if self._no_keys and not self.client.wanted.is_set():
                return
            # Skips escape sequences, such as arrow keys.
            for key in "" if text.startswith("\x1b") else text.lower():
                if self.game.phase in ("over", "cancelled"):
                    if key == "n":
                        return
                    await self._press_after_game(key)
                elif self.game.phase == "room":
                    await self._press_in_room(key)
                elif self.game.running:
                    await self._press_in_game(key)

    async def _press_after_game(self, key: str) -> None:
        if key == "r" and self.game.rematch:
            await self.client.send("rematch", accept=True)
        elif key == "y" and self.game.room:
            self.game.back_to_room()
        elif key == "y":
            self.game = Game(self.game.me, self.game.online)
            await self.client.join()

    async def _press_in_room(self, key: str) -> None:
        game = self.game
        choosing, self._choosing = self._choosing, key if game.is_host and key in "kp" else ""
        number = int(key) if key.isdecimal() else 0
        if choosing and 0 < number <= len(game.others):
            act = "kick" if choosing == "k" else "pass"
            await self.client.send(act, player=game.others[number - 1])
        elif key == "b" and game.is_host:
            await self.client.send("begin")
        elif key == "l" and game.is_host:
            await self.client.send("lock", locked=not game.room["locked"])

    async def _press_in_game(self, key: str) -> None:
        game, choice = self.game, CHOICE_KEYS.get(key)
        choosing, self._choosing = self._choosing, "e" if key == "e" else ""
        if choosing and key in "12345678":
            game.on_emoji({"player": game.me, "emoji": EMOJI[int(key) - 1]})
            await self.client.send("emoji", emoji=EMOJI[int(key) - 1])
        elif choice is not None and game.can_answer and choice < len(game.question["choices"]):
            game.choice = choice
            await self.client.send("answer", round=game.round, choice=choice)


async def play(args: argparse.Namespace) -> int:
    client = Client(args.url, args.queue, args.code)
    if args.name:
        new = await client.log_in(args.name, args.password)
        notice = f"{'Registered' if new else 'Logged in'} as {client.username}"
    else:
        name = f"{random.choice(ADJECTIVES)}-{random.choice(ANIMALS)}-{random.randrange(10000):04}"
        password = args.password or secrets.token_urlsafe(9)
        await client.register(name, password)
        notice = f"New account {client.username}, password {password}"
    if args.challenge:
        notice += f"; friends play the same questions with the code {await client.make_challenge()}"
    print(notice)
    player = Player(client, notice)
    try:
        await player.run()
    finally:
        await client.close()
        print("\n".join(player.results) or "No game finished")
    return 0


class Bot:
    """A player that answers at random, since the server shows the right answer only afterwards."""

    def __init__(self, name: str, args: argparse.Namespace, room: asyncio.Future[str]) -> None:
        self.name, self.args = name, args
        self.room = room  # its code, once the first bot has opened it
        self.client = Client(args.url, args.queue, args.code)
        self.game = Game(name)
        self.finished: set[str] = set()
        self.rejoins = self.late = self.errors = 0
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Plays `--games` games. Counts errors instead of raising them."""
        try:
            if self.args.name:
                await self.client.log_in(self.name, self.args.password)
            else:
                await self.client.register(self.name, self.args.password)
            if self.args.room and not self.name.endswith("-01"):
                self.client.code = await self.room
            await self._play()
        except TimeoutError:
            self._fail(f"no message after the deadline of {self.game.phase} in game {self.game.id}")
        except Exception as error:  # the other bots go on
            self._fail(str(error) if isinstance(error, TriviaError) else repr(error))
        finally:
            self._stop_answering()
            await self.client.close()
            if not self.room.done():
                self.room.set_exception(TriviaError("nobody opened a room"))

    async def _play(self) -> None:
        async with asyncio.timeout(None) as watchdog:
            async for message in self.client.messages():
                if message["type"] in ("queued", "start", "cancelled") and self.game.running:
                    self._fail(f"game {self.game.id} did not end")
                self.game.apply(message)
                await self._react(message)
                if not self.client.wanted.is_set():
                    return
                due = self.game.deadline if self.game.online else None
                watchdog.reschedule(due and due + OVERDUE)

    async def _react(self, message: Message) -> None:
        match message["type"]:
            case "start":
                self.rejoins = 0
                self._say("start", f"game {self.game.id} of {', '.join(self.game.scores)}")
            case "question" | "update":
                self._schedule_answer()
            case "room":
                await self._begin_when_all_are_in()
            case "end":
                await self._end()
            case "cancelled":
                await self._cancelled(message["reason"])
            case "lost":
                self._stop_answering()
                self._say("lost", f"{message['reason']}; reconnect in {message['pause']:.1f} s")
            case "error" if message["code"] == "late_answer":
                self.late += 1
            case "error":
                self._fail(f"{message['code']}: {message['message']}")

    def _schedule_answer(self) -> None:
        """Schedules an answer within the time left."""
        self._stop_answering()
        if self.game.can_answer:
            pause = min(random.uniform(*self.args.think), max(0.0, self.game.left - 0.3))
            self._answering = asyncio.create_task(self._answer(pause))

    async def _answer(self, pause: float) -> None:
        await asyncio.sleep(pause)
        self.game.choice = random.randrange(len(self.game.question["choices"]))
        await self.client.send("answer", round=self.game.round, choice=self.game.choice)

    def _stop_answering(self) -> None:
        if self._answering:
            self._answering.cancel()

    async def _end(self) -> None:
        self._stop_answering()
        self._say("result", self.game.result())
        self.finished.add(self.game.id)
        if len(self.finished) == self.args.games:
            self.client.wanted.clear()
        elif self.game.room:
            await self._begin_when_all_are_in()
        else:
            await self.client.join()

    async def _begin_when_all_are_in(self) -> None:
        """Tells the others the code of the room; begins a game in it as its host."""
        room = self.game.room
        if not self.room.done():
            self.room.set_result(room["code"])
        is_full = room["state"] == "waiting" and len(room["connected"]) == self.args.n
        if self.args.room and self.game.is_host and is_full and not self.game.running:
            await self.client.send("begin")

    async def _cancelled(self, reason: str) -> None:
        self.rejoins += 1
        again = self.rejoins <= REJOINS
        self._say("no game", f"cancelled ({reason}), {'joins again' if again else 'gives up'}")
        if again:
            await self.client.join()

    def _say(self, event: str, text: str) -> None:
        if not self.args.quiet or event == "ERROR":
            print(f"{time.strftime('%H:%M:%S')} {self.name:<20} {event:<7} {text}", flush=True)

    def _fail(self, text: str) -> None:
        self.errors += 1
        self._say("ERROR", text)


async def run_bots(args: argparse.Namespace) -> int:
    prefix = args.name or f"robot-{secrets.token_hex(2)}"
    args.password = args.password or secrets.token_urlsafe(12)
    room: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    bots = [Bot(f"{prefix}-{number:02}", args, room) for number in range(1, args.n + 1)]
    try:
        await asyncio.gather(*(bot.run() for bot in bots))
    finally:
        games = len(set().union(*(bot.finished for bot in bots)))
        room.exception() if room.done() else room.cancel()
        late, errors = sum(bot.late for bot in bots), sum(bot.errors for bot in bots)
        print(f"games finished: {games}, late answers: {late}, errors: {errors}", flush=True)
    # A bot without an opponent is not an error. No game at all is an error.
    return 1 if errors or not games else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Play trivia in the terminal, or run bots.",
        epilog="Exit codes: 0 success, 1 error, 2 bad usage, 130 Ctrl-C.",
    )
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    add("--queue", default="random", help="the queue to join (default: %(default)s)")
    add("--code", default="", help="join the room, or take the challenge, of this code")
    add("--password", help="password of the account (default: ask, or generate one)")
    commands = parser.add_subparsers(dest="command", required=True)

    person = commands.add_parser("play", parents=[shared], help="play in this terminal")
    person.add_argument("--name", help="log in, or register if free (default: a random name)")
    person.add_argument("--challenge", action="store_true", help="make a challenge and play it")
    person.set_defaults(run=play)

    bot = commands.add_parser("bot", parents=[shared], help="run bots that answer at random")
    add = bot.add_argument
    think: Message = {"type": float, "nargs": 2, "default": (1.0, 4.0), "metavar": ("MIN", "MAX")}
    add("-n", type=int, default=2, help="number of bots (default: %(default)s)")
    add("--name", metavar="PREFIX", help="log in as PREFIX-01 and so on (default: new accounts)")
    add("--games", type=int, default=1, help="games of a bot, 0: no limit (default: %(default)s)")
    add("--think", **think, help="seconds before an answer, at random (default: 1 4)")
    add(
        "--room", action="store_true", help="the first bot opens a room, and begins when all are in"
    )
    add("--quiet", action="store_true", help="print only errors and the summary")
    bot.set_defaults(run=run_bots)

    args = parser.parse_args()
    if not args.url.startswith(("http://", "https://")):
        parser.error("--url must start with http:// or https://")
    if args.run is play and not sys.stdout.isatty():
        parser.error("play needs a terminal")
    if args.run is play and not HAS_RICH:
        parser.error("play needs the package rich: pip install rich")
    if args.run is run_bots and (args.n < 1 or args.games < 0):
        parser.error("-n must be 1 or more, --games 0 or more")
    if args.run is play and args.challenge and args.queue == "random":
        args.queue = "challenge"
    if args.run is run_bots and not 0 <= args.think[0] <= args.think[1] < math.inf:
        parser.error("--think needs two times, the shorter one first")
    return args


async def run(args: argparse.Namespace) -> int:
    """Runs the command. SIGTERM acts like Ctrl-C, so that the client leaves cleanly."""
    with contextlib.suppress(NotImplementedError):  # on Windows
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    code: int = await args.run(args)
    return code


def main() -> int:
    args = parse_args()
    try:
        if args.name and not args.password:
            args.password = getpass.getpass(f"Password of {args.name}: ")
        return asyncio.run(run(args))
    except TriviaError as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        return 130


if __name__ == "__main__":
    sys.exit(main())
