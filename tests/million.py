"""Measures how long the operator's console takes to find a player among a million.

    python tests/million.py --players 1000000 --looks 300

Starts a server of its own, and writes accounts into its Redis as a registration does. Then looks up
players by name, address and id, one after the other. Prints memory, times, and the CPU time of the
server, which a busy machine does not lengthen.
"""

import argparse
import random
import secrets
import statistics
import time

import hiredis

from conftest import Server, loop_seconds, trivia

Keys = trivia.Keys

TOKEN = secrets.token_urlsafe()
AT_ONCE = 2000  # accounts in one write
HASH = (
    "$argon2id$v=19$m=8192,t=3,p=1$"
    + "c2FsdHNhbHRzYWx0c2E$"
    + "aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g"
)


def account(number):
    """Returns (UID, fields) of a player."""
    uid = trivia.digest(f"player {number}", trivia.UID_BYTES)
    fields = {
        "username": f"Player{number}",
        "email": f"player{number}@example.org",
        "password": HASH,
        ":created": "1796000000",
        ":from": "abcdefghijk",
        f"session:{trivia.digest(uid)}": "1806000000",
        "games": "12",
        "wins": "5",
        "rating": "1512.25",
        ":sigma": "210.5",
    }
    return uid, fields


def commands(number):
    """Yields the commands that write a player, and the claims on username and address."""
    uid, fields = account(number)
    yield "HSET", Keys.user(uid), *trivia.flatten(fields)
    for value in (fields["username"].lower(), fields["email"]):
        yield "HSET", Keys.unique(value), value, f"{uid} abcd"


def seed(client, players):
    """Writes the accounts to Redis."""
    connection = client.connection_pool.get_connection()
    for first in range(0, players, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, players))
        packed = [hiredis.pack_command(one) for number in numbers for one in commands(number)]
        connection.send_packed_command([b"".join(packed)])
        for _ in packed:
            connection.read_response()
    client.connection_pool.release(connection)


def measure(server, texts):
    """Returns the sorted times of all lookups (ms)."""
    times = []
    for text, uid in texts:
        began = time.perf_counter()
        answer = server.http("GET", f"/ops/look/player?player={text}", token=TOKEN)
        times.append(1000 * (time.perf_counter() - began))
        assert answer.status == 200 and answer.json["id"] == uid, answer.body
    return sorted(times)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--players", type=int, default=1_000_000)
    parser.add_argument("--looks", type=int, default=300, help="for each way to find a player")
    options = parser.parse_args()
    server = Server(env={"TRIVIA_OPS_ACT_TOKEN": f"ann:{TOKEN}"})  # this token finds by address too
    try:
        server.start()
        began = time.monotonic()
        seed(server.redis, options.players)
        used = server.redis.info("memory")["used_memory"]
        seconds = time.monotonic() - began
        each = used / options.players
        print(
            f"{options.players:,} players in {seconds:.0f} s; "
            f"{used / 2**20:,.0f} MiB, {each:.0f} bytes each"
        )
        for way in ("name", "address", "id", "capitals"):
            numbers = random.sample(range(options.players), options.looks)
            found = [account(number) for number in numbers]
            texts = {
                "name": lambda uid, one: one["username"],
                "address": lambda uid, one: one["email"],
                "id": lambda uid, one: uid,
                "capitals": lambda uid, one: one["username"].upper(),
            }[way]
            used = loop_seconds(server)
            times = measure(server, [(texts(*one), one[0]) for one in found])
            cpu = 1000 * (loop_seconds(server) - used) / options.looks
            middle, high = statistics.median(times), times[int(0.99 * len(times))]
            print(f"by {way}: median {middle:.1f} ms, p99 {high:.1f} ms, CPU {cpu:.1f} ms")
    finally:
        server.close()


if __name__ == "__main__":
    main()
