"""The tests run programs in forks. A fork starts, prints and ends like a fresh process."""

import os
import signal
import subprocess
import sys

import pytest

import forks
from conftest import ROOT, trivia_py
from test_end_to_end import UVICORN


@pytest.mark.parametrize("words", [["--version"], ["check", "none.yaml"], ["check", "--nothing"]])
def test_a_command_in_a_fork_prints_and_returns_the_same(words, tmp_path):
    command = [sys.executable, ROOT / "trivia.py", *words]
    fresh = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    fork = trivia_py(*words, cwd=tmp_path)
    shown = lambda done: (done.returncode, done.stdout, done.stderr)
    assert shown(fork) == shown(fresh)


def test_a_server_in_a_fork_has_its_own_session_and_ends_by_the_signal_it_gets(make_server):
    server = make_server(env={"TRIVIA_OPS_TOKEN": "t" * 32})
    pid = server.process.pid
    assert isinstance(server.process, forks.Fork) and server.process.poll() is None
    assert os.getsid(pid) == os.getpgid(pid) == pid
    place = f"/proc/{pid}"
    assert os.readlink(f"{place}/cwd") == str(ROOT)
    assert os.readlink(f"{place}/fd/2") == str(server.log_file)
    with open(f"{place}/cmdline") as line:
        assert line.read().rstrip("\0").split("\0") == UVICORN
    assert server.http("GET", "/metrics", token="t" * 32).status == 200  # its environment
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.1)
    server.process.kill()
    assert server.process.wait(10) == server.process.poll() == -signal.SIGKILL


def test_a_program_with_other_settings_of_the_interpreter_starts_afresh():
    env = dict(os.environ)
    assert forks.fits(UVICORN, env)
    for name in ("PYTHONIOENCODING", "LD_PRELOAD", "LC_ALL"):
        assert not forks.fits(UVICORN, env | {name: "x"})
    assert not forks.fits([sys.executable, "-m", "pip", "list"], env)
