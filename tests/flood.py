"""Floods a trivia server with requests of one kind, to see the effect on other players.

    python tests/flood.py frames http://127.0.0.1:8000 --seconds 20 --clients 50

One process sends as fast as it can. Run it beside `tests/load.py`, and compare the delivery times
with and without the flood. It prints each second, and at the end, what the server accepted and
refused, by HTTP status, close code or error code.
"""

import argparse
import asyncio
import json
import secrets
import time
from collections import Counter
from contextlib import suppress

import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

PASSWORD = "correct horse"


class Flood:
    """Clients that repeat one action and count its outcomes."""

    def __init__(self, url):
        self.url, self.seen, self.until = url, Counter(), 0.0
        self.host, _, port = url.partition("://")[2].partition(":")
        self.port = int(port or 80)

    async def http(self, method, path, body, address="127.0.0.1"):
        """Sends one request on a connection of its own; returns status and body."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            data = json.dumps(body).encode()
            writer.write(
                f"{method} {path} HTTP/1.0\r\nHost: {self.host}\r\n"
                "Content-Type: application/json\r\n"
                f"X-Forwarded-For: {address}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                + data
            )
            head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            return int(head.split(b" ", 2)[1]), answer
        finally:
            writer.close()

    async def register(self, address="127.0.0.1"):
        """Registers an account; returns the status, and its token or None."""
        name = f"f{secrets.token_hex(6)}"
        status, answer = await self.http(
            "POST",
            "/auth/register",
            {"username": name, "email": f"{name}@example.org", "password": PASSWORD},
            address,
        )
        return status, json.loads(answer)["token"] if status == 201 else None

    def socket(self, token, queue="rated"):
        return connect(
            f"ws://{self.host}:{self.port}/game/{queue}",
            compression=None,
            open_timeout=20,
            additional_headers={"Authorization": f"Bearer {token}"},
            close_timeout=1,
        )

    # -- the actions of the clients

    async def registrations(self, token):
        self.seen[(await self.register())[0]] += 1

    async def logins(self, token):
        self.seen[
            (
                await self.http(
                    "POST", "/auth/login", {"login": "nobody", "password": "wrong horse"}
                )
            )[0]
        ] += 1

    async def connections(self, token):
        try:
            async with self.socket(token):
                self.seen["connected"] += 1
        except InvalidStatus as refused:
            self.seen[refused.response.status_code] += 1

    async def strangers(self, token):
        await self.connections("x" * 40)

    async def frames(self, token):
        await self._send(token, lambda: ['{"type":"ping"}'])

    async def garbage(self, token):
        await self._send(token, lambda: [secrets.token_hex(2000)])

    async def joins(self, token):
        await self._send(token, lambda: ['{"type":"leave"}', '{"type":"join"}'])

    async def _send(self, token, frames):
        """Sends as fast as the connection takes it, until the server closes it."""
        try:
            async with self.socket(token) as socket:
                reading = asyncio.create_task(self._count(socket))
                with suppress(ConnectionClosed):
                    while time.monotonic() < self.until and not reading.done():
                        for frame in frames():
                            await socket.send(frame)
                            self.seen["sent"] += 1
                        await asyncio.sleep(0)  # a send alone does not yield to other tasks
                await reading
        except InvalidStatus as refused:
            self.seen[refused.response.status_code] += 1

    async def _count(self, socket):
        with suppress(ConnectionClosed):
            while True:
                frame = json.loads(await socket.recv())
                self.seen[frame.get("code", frame["type"])] += 1
        self.seen[f"closed {socket.close_code}"] += 1

    # -- the run

    async def client(self, act, token):
        while time.monotonic() < self.until:
            try:
                await act(token)
            except (OSError, InvalidHandshake, EOFError, TimeoutError, IndexError) as error:
                self.seen[type(error).__name__] += 1

    async def run(self, kind, clients, seconds):
        tokens = [(await self.register(f"10.0.0.{i}"))[1] for i in range(min(clients, 100))]
        self.until = time.monotonic() + seconds
        working = [
            asyncio.create_task(self.client(getattr(self, kind), tokens[i % len(tokens)]))
            for i in range(clients)
        ]
        while time.monotonic() < self.until:
            await asyncio.sleep(1)
            print(dict(self.seen), flush=True)
        await asyncio.wait(working, timeout=5)
        print(
            "mean rates a second:",
            {what: round(count / seconds, 1) for what, count in self.seen.items()},
        )


KINDS = ["registrations", "logins", "connections", "strangers", "frames", "garbage", "joins"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument(
        "--clients", type=int, default=50, help="how many at once (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20, help="for how long (default: %(default)s)"
    )
    options = parser.parse_args()
    uvloop.run(Flood(options.url).run(options.kind, options.clients, options.seconds))


if __name__ == "__main__":
    main()
