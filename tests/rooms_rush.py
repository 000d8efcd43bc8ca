"""Measures how fast Redis and a worker's code open, fill and begin private rooms, without sockets.

    python tests/rooms_rush.py --rooms 10000 --players 8

The parts of one worker run in this process, on a Redis of their own. No phones connect, because
80,000 connections do not fit on a small machine. Each player is an account in Redis. `Rooms.join`
and `Rooms.begin` do what they do for a phone, and each match becomes a game. The first question of
the games is far away, so that the cost of playing is not measured. Prints calls a second and the
CPU of this process and of Redis, for each step.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

AT_ONCE = 200  # calls at the same time


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rooms", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--players", type=int, default=8, help="of each (default: %(default)s)")
    return parser.parse_args(arguments)


class Rush:
    """The players of all rooms, and the measurement of each step."""

    def __init__(self, trivia, rooms: int, players: int) -> None:
        self.trivia, self.rooms, self.players = trivia, rooms, players
        schema = trivia.Schema(trivia.read_schema(trivia.SCHEMA_FILE))
        self.server = trivia.Server(schema, "rush000001")
        self.queue = schema.queues["friends"]
        self.codes: list[str] = [""] * rooms
        self.redis_process: psutil.Process | None = None

    async def run(self) -> None:
        """Opens, fills and begins all rooms."""
        await self.server.start()
        info = await self.server.redis.call("INFO", "server")
        pid = next(line for line in info.splitlines() if line.startswith("process_id:"))
        self.redis_process = psutil.Process(int(pid.partition(":")[2]))
        everybody = range(self.rooms * self.players)
        await self._measure("accounts", self._account, everybody)
        began = time.monotonic()
        hosts = [number for number in everybody if number % self.players == 0]
        await self._measure("open", self._join, hosts)
        await self._measure("join", self._join, [one for one in everybody if one % self.players])
        await self._measure("begin", self._begin, hosts)
        await self._measure("start", self._until_formed, [0])
        print(f"{self.rooms} rooms of {self.players} in {time.monotonic() - began:.1f} s")
        await self.server.stop()
        self.redis_process.terminate()  # the embedded Redis outlives its workers
        self.redis_process.wait(20)

    async def _measure(self, name, work, numbers) -> None:
        """Calls work(number) for all numbers, AT_ONCE at a time, and prints what it took."""
        began, used, used_by_redis = time.monotonic(), time.process_time(), self._redis_cpu()
        left = iter(numbers)

        async def lane() -> None:
            for number in left:
                await work(number)

        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
        passed, count = time.monotonic() - began, len(numbers)
        own, redis = time.process_time() - used, self._redis_cpu() - used_by_redis
        print(
            f"{name:8} {count:6} in {passed:5.1f} s: {count / passed:7.0f} a second; "
            "us of CPU of each: "
            f"worker {1e6 * own / count:.0f}, Redis {1e6 * redis / count:.0f}",
            flush=True,
        )

    def _redis_cpu(self) -> float:
        times = self.redis_process.cpu_times()
        return times.user + times.system

    @staticmethod
    def _uid(number: int) -> str:
        return f"r{number:011}"

    async def _account(self, number: int) -> None:
        fields = "username", f"rush{number}", "email", f"rush{number}@example.org"
        await self.server.redis.call("HSET", self.trivia.Keys.user(self._uid(number)), *fields)

    async def _join(self, number: int) -> None:
        """Opens a room, or joins the host's room, from a network of the room's own."""
        room, code = number // self.players, self.codes[number // self.players]
        network = f"10.{room >> 16 & 255}.{room >> 8 & 255}.{room & 255}"
        who = self.trivia.Admission(self.queue, self._uid(number), 1, "", code, network, None)
        connection = f"{self.server.worker}.{number + 1}"
        _, reply = await self.server.rooms.join(who, connection, "", self.queue, code)
        assert reply[0] == "room", reply
        if not code:
            self.codes[room] = self.trivia.msgspec.json.decode(reply[1])["code"]

    async def _begin(self, number: int) -> None:
        code, connection = self.codes[number // self.players], f"{self.server.worker}.{number + 1}"
        await self.server.rooms.begin(self.queue, code, self._uid(number), connection)

    async def _until_formed(self, _: int) -> None:
        """Waits until each match has become a game."""
        while await self.server.redis.call("ZCARD", self.trivia.Keys.forming):
            await asyncio.sleep(0.05)


async def rush(trivia, options: argparse.Namespace) -> None:
    """Runs a rush inside a running loop, which its parts need."""
    await Rush(trivia, options.rooms, options.players).run()


def main() -> None:
    """Runs the command line."""
    options = options_of()
    with tempfile.TemporaryDirectory(prefix="rush-") as folder:
        schema = Path(folder, "schema.yaml")
        schema.write_text("extends: shipped\nqueues: {friends: {start_seconds: 86400}}\n")
        os.environ |= {"TRIVIA_DATA": folder, "TRIVIA_SCHEMA": str(schema)}
        os.environ["TRIVIA_LOG"] = "warning"
        import trivia

        uvloop.run(rush(trivia, options))


if __name__ == "__main__":
    main()
