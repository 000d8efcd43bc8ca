"""The style of the code: ruff, the sections of trivia.py, and the version."""

import json
import re
import subprocess
import sys

import pytest

from conftest import ROOT

SOURCE = (ROOT / "trivia.py").read_text("utf-8")
MAX_SECTION = 600  # lines


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_ruff_finds_nothing(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_section_has_a_unique_name_and_at_most_600_lines():
    sections = re.split(r"^# ---- (.+?) -+$", SOURCE, flags=re.M)[1:]
    names, texts = sections[::2], sections[1::2]
    assert len(set(names)) == len(names) > 25
    long = {name: len(text.splitlines()) for name, text in zip(names, texts, strict=True)}
    assert {name: lines for name, lines in long.items() if lines > MAX_SECTION} == {}


def test_the_docstring_lists_all_sections():
    listed = re.search(r"The five parts: (.*?)\.\n", SOURCE, re.S)[1].lower()
    for name in re.findall(r"^# ---- (.+?) -+$", SOURCE, re.M):
        assert name.lower() in re.sub(r"\s+", " ", listed), name


def test_the_version_is_the_newest_one_of_the_changelog(server):
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    version = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.M)[1]
    command = [sys.executable, "trivia.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"trivia {version}"
    live = json.loads(server.http("GET", "/health/live").body)
    assert live == {"status": "ok", "version": version}
