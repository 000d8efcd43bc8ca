"""More than one machine: what REDIS_URL leads to, Valkey Clusters and Sentinels that lose, move and regain their nodes."""

import contextlib
import re
import sys

import pytest

from conftest import Valkey
from test_end_to_end import UVICORN, free_port, logged_errors, run

TRIVIA = [sys.executable, "trivia.py"]


class Node(Valkey):
    """A Valkey on a TCP port of its own, without a disk."""

    def __init__(self, *options):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        super().__init__(
            *("--port", self.port, "--bind", "127.0.0.1", "--appendonly", "no", *options)
        )


# ---- the wrong kind of server


@pytest.fixture(scope="module")
def kinds():
    """A standalone server, and a cluster node that has no slots."""
    with contextlib.ExitStack() as stack:
        made = [Node(), Node("--cluster-enabled", "yes")]
        for node in made:
            stack.enter_context(contextlib.closing(node.start()))
        yield {"server": made[0].address, "node": made[1].address}


@pytest.mark.parametrize(
    "url, says", [("redis://{node}", "{node}: found a cluster node; expected a standalone server")]
)
@pytest.mark.parametrize("command, code", [(UVICORN, 3), ([*TRIVIA, "--port", "0"], 1)])
def test_the_wrong_kind_of_server_ends_the_start_with_one_line(kinds, url, says, command, code):
    ended, printed = run(command, REDIS_URL=url.format(**kinds), TRIVIA_DATA="/dev/null/x")
    assert ended == code, printed
    assert says.format(**kinds) in printed and "Traceback" not in printed, printed


def test_any_error_of_redis_at_the_start_ends_it_with_one_line(kinds):
    with contextlib.closing(Node("--user", "trivia on nopass ~* &* +@all -hget").start()) as node:
        code, printed = run(UVICORN, REDIS_URL=f"redis://trivia@{node.address}")
    errors = logged_errors(printed)
    assert code == 3 and len(errors) == 2 and "startup failed" in errors[1], printed
    assert re.match(f"{node.address}: NOPERM .*hget", errors[0]), printed


def test_a_bug_at_the_start_ends_it_with_one_line():
    # Raised while the worker connects, where nothing expects it.
    program = "import trivia, uvicorn; trivia.open_redis = lambda *_: 1 / 0; uvicorn.run(trivia.app, port=0)"
    code, printed = run([sys.executable, "-c", program])
    assert code == 3 and "the start failed: ZeroDivisionError: division by zero" in printed
    assert "Traceback" not in printed, printed
