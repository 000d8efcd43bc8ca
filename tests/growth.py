"""Measures what more primaries change: the CPU of each Redis for an answer, under the same load.

    python tests/growth.py [--primaries 1,3,6] [--turns 3] [--workers 2] [--players 600]
                           [--think 1] [--minutes 0.5] [--json FILE]

For each number of primaries it starts a server on one Redis or on a cluster. tests/load.py plays on
it: players answer at random in games of ten rounds, as in schema.yaml. It measures each number
several times, in turn, because a busy machine changes the cost of a wake-up. The median counts.

It compares the CPU time of the busiest primary, and of all primaries together, with the CPU time of
one Redis. That Redis is like the nodes: on TCP, without a disk. Run it on a quiet machine and with
many answers a second. A node wakes up for each write of a worker, so an answer costs more when
fewer answers share a write.

The exit code is 1 when an answer takes more than this share of the CPU of one Redis: 0.42 on the
busiest of three primaries, 0.24 on the busiest of six, or 1.2 on all primaries together.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import ROOT, Server, edited_schema
from nodes import Cluster, ClusterServer, Node
from test_end_to_end import free_port

# Highest ratio to one Redis: of the busiest primary (by number of primaries), and of all of them.
MOST_OF_BUSIEST, MOST_OF_ALL = {3: 0.42, 6: 0.24}, 1.2


def short_pauses(tree):
    """Edits schema.yaml: games with the shortest pauses between questions."""
    tree["queues"] = {"random": tree["queues"]["random"]}
    tree["queues"]["random"].update(start_seconds=0.5, reveal_seconds=0.5, rounds=10)


def measure(primaries, options):
    """Returns the CPU of each Redis (us an answer, highest first), and the answers a second."""
    schema = edited_schema(short_pauses)
    command = ["trivia.py", "--port", str(free_port()), "--workers", str(options.workers)]
    command = [sys.executable, *command]
    with contextlib.ExitStack() as stack:
        if primaries == 1:
            node = stack.enter_context(contextlib.closing(Node())).start()
            env = {"REDIS_URL": f"redis://trivia@{node.address}"}
            server = Server(schema, command, env=env, afresh=True)
        else:
            server = ClusterServer(schema, command, afresh=True, cluster=Cluster(primaries, 0))
        stack.enter_context(contextlib.closing(server)).start()
        file = stack.enter_context(tempfile.NamedTemporaryFile())
        words = {"players": options.players, "think": options.think, "ramp": 5}
        words |= {"minutes": options.minutes, "json": file.name, "processes": 1}
        load = [sys.executable, ROOT / "tests" / "load.py", "--seed-accounts"]
        load += [word for name, value in words.items() for word in (f"--{name}", str(value))]
        place = f"http://127.0.0.1:{server.port}"
        subprocess.run([*map(str, load), place], check=False, stdout=subprocess.DEVNULL)
        step = json.loads(Path(file.name).read_text())["steps"][0]
    each = [row["us_per_answer"] for name, row in step["processes"].items() if "redis" in name]
    return sorted(each, reverse=True), step["answers_per_s"]


def main():
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--primaries", default="1,3,6", help="numbers (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--players", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--think", type=float, default=1, help="seconds (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.5, help="each (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    counts = sorted(map(int, options.primaries.split(",")))
    turns = {count: [] for count in counts}
    for _ in range(options.turns):
        for count in counts:
            turns[count].append(measure(count, options))
            each, rate = turns[count][-1]
            print(count, "primaries:", *each, f"us an answer; {rate} answers/s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(turns))
    sys.exit(compare(turns))


def compare(turns):
    """Prints the cost of the busiest primary and of all; returns 1 if their ratios are too high."""
    medians = {
        count: [statistics.median(amount(each) for each, _ in rows) for amount in (max, sum)]
        for count, rows in turns.items()
    }
    failed = 0
    for count, (busiest, total) in medians.items():
        ratios = busiest / medians[1][0], total / medians[1][1]
        print(
            f"{count}: busiest {busiest:.0f} us ({ratios[0]:.2f}), "
            f"all {total:.0f} us ({ratios[1]:.2f})"
        )
        failed |= ratios[0] > MOST_OF_BUSIEST.get(count, 1) or ratios[1] > MOST_OF_ALL
    return int(failed)


if __name__ == "__main__":
    main()
