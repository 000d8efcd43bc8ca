"""Measures how fast a server admits a crowd, and how fast it matches one that joins at once.

    python tests/rush.py --players 2000 --times 5 http://127.0.0.1:8000

The server must be on this host: the tool writes the accounts to its Redis, as --seed-accounts of
load.py does. All players connect at once, with their tokens. Players who get a game leave it. When
all players are idle, all join again at the same moment, and so on. The table shows the time until a
share of the players was admitted or had `start`, and the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
from time import monotonic

import msgspec
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect
from rich.console import Console
from rich.table import Table

import load

MOST_S = 60  # longest time of a rush
LEAVE = b'{"type":"leave"}'


class Message(msgspec.Struct):
    """The fields of a message that the tool reads."""

    type: str
    code: str = ""


class Player(WSListener):
    """A player of the crowd."""

    def __init__(self, crowd: Crowd, token: str) -> None:
        self.crowd, self.token = crowd, token

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            message = DECODER.decode(frame.get_payload_as_memoryview())
            getattr(self, f"_on_{message.type}", self.crowd.ignore)(message)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.crowd.fail("a connection was lost")

    def _on_queued(self, message: Message) -> None:
        self.crowd.note("let in")

    def _on_start(self, message: Message) -> None:
        self.crowd.note("matched")
        self.transport.send(WSMsgType.TEXT, LEAVE)

    def _on_end(self, message: Message) -> None:
        self.crowd.note("idle")

    def _on_cancelled(self, message: Message) -> None:
        self.crowd.note("idle")

    def _on_error(self, message: Message) -> None:
        if message.code not in ("wrong_state", "not_playing"):  # the opponent left first
            self.crowd.fail(message.code)


DECODER = msgspec.json.Decoder(Message)


class Crowd:
    """All players, and the times at which they reached each step of the present rush."""

    def __init__(self, url: str, queue: str, tokens: list[str]) -> None:
        self.url, self.queue, self.players = url, queue, [Player(self, token) for token in tokens]
        self.times: dict[str, list[float]] = {}
        self.failed: list[str] = []

    def ignore(self, message: Message) -> None:
        """Ignores a message."""

    def fail(self, what: str) -> None:
        self.failed.append(what)

    def note(self, what: str) -> None:
        self.times.setdefault(what, []).append(monotonic() - self.begun_at)

    async def rush(self, go: object) -> dict[str, list[float]]:
        """Calls go(player) for all players at once, and waits until all are idle again."""
        self.times, self.begun_at = {}, monotonic()
        await asyncio.gather(*(go(player) for player in self.players))
        async with asyncio.timeout(MOST_S):
            while len(self.times.get("idle", ())) < len(self.players) and not self.failed:
                await asyncio.sleep(0.02)
        if self.failed:
            raise load.Fatal(f"{len(self.failed)} failed: {self.failed[0]}")
        return self.times

    async def connect(self, player: Player) -> None:
        await ws_connect(
            lambda: player,
            self.url,
            extra_headers={"Authorization": f"Bearer {player.token}"},
            websocket_handshake_timeout=MOST_S,
        )

    async def join(self, player: Player) -> None:
        player.transport.send(WSMsgType.TEXT, b'{"type":"join","queue":"%s"}' % self.queue.encode())


async def play(crowd: Crowd, times: int) -> list[tuple[str, list[float]]]:
    """Runs the rushes; returns [(step, times at which players reached it)]."""
    rows = [("connected and in the queue", (await crowd.rush(crowd.connect))["let in"])]
    for number in range(1, times + 1):
        rows.append((f"matched, rush {number}", (await crowd.rush(crowd.join))["matched"]))
    return rows


def main() -> None:
    """Runs the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--players", type=int, default=2000)
    parser.add_argument(
        "--times", type=int, default=5, help="how often all join at once (default: %(default)s)"
    )
    parser.add_argument("--queue", default="random")
    options = parser.parse_args()
    target, console = load.read_target(options.url, False), Console()
    if load.raise_file_limit() < options.players + 100:
        raise load.Fatal("--players: more than this process may have open files")
    host, run = load.Host(target.address, target.port, None), secrets.token_hex(3)
    tokens = [
        token
        for _, token in load.seeded(
            host, [f"rush{run}-{number}" for number in range(options.players)]
        )
    ]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(
            play(Crowd(target.websocket(options.queue), options.queue, tokens), options.times)
        )
    table = Table("", "half, s", "99 %, s", "all, s", "a second")
    for what, times in rows:
        times.sort()
        table.add_row(
            what,
            *(f"{times[int(share * (len(times) - 1))]:.2f}" for share in (0.5, 0.99, 1)),
            f"{len(times) / times[-1]:,.0f} players",
        )
    console.print(table)
    os._exit(0)  # without closing the connections


if __name__ == "__main__":
    main()
