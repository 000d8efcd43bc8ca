"""The load tool in small: its figures of a real server, and its reports of failures."""

import json
import subprocess
import sys

import load
import trivia
from conftest import ROOT, edited_schema, wait_until


def start(server, *options):
    """Starts the load tool on a server."""
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "tests" / "load.py"),
            "--think",
            "0.2",
            "--ramp",
            "0.5",
            *options,
            f"http://127.0.0.1:{server.port}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_short_run_gives_all_figures(make_server, tmp_path):
    server, file = make_server(afresh=True), tmp_path / "figures.json"
    tool = start(
        server,
        "--players",
        "4,12",
        "--minutes",
        "0.05",
        "--processes",
        "2",
        "--seed-accounts",
        "--json",
        str(file),
    )
    assert (tool.communicate(timeout=60)[0].count("Traceback"), tool.returncode) == (0, 0)
    figures = json.loads(file.read_text())
    few, many = figures["steps"]
    assert (few["connected"], many["connected"], figures["errors"], figures["games_lost"]) == (
        4,
        12,
        {},
        0,
    ), figures
    assert few["answers"] > 4 and many["answers"] > 12 and 0.8 < many["measured_share"] < 1.2, many
    assert many["games_started"] and many["games_ended"].keys() == {"finished"}, many
    for name in ("delivery", "lateness", "skew", "connect"):
        times = many[f"{name}_ms"]
        assert times["count"] and 0 <= times["p50"] <= times["p99"] <= times["max"] < 10_000, (
            name,
            times,
        )
    (worker,) = (used for name, used in many["processes"].items() if name.startswith("server"))
    assert worker["us_per_answer"] > 10 and worker["mib"] > 20 and worker["connections"] == 12, many
    assert any(
        name.startswith("redis") and used["us_per_answer"] > 1
        for name, used in many["processes"].items()
    ), many
    assert many["redis_per_game"]["commands"] > 20 and many["redis_per_answer"]["bytes_in"] > 50, (
        many
    )
    assert many["load_tool"]["us_per_answer"] > 10 and figures["samples"], many


def test_the_load_tool_plays_rooms_rematches_and_games_with_bots(make_server, tmp_path):
    def edit(tree):
        tree["queues"]["rated"]["rematch_seconds"] = 5
        bots = {"after_seconds": 0.2, "skill": "near"}
        tree["queues"]["random"].update(bots=bots, answer_seconds=1)

    server = make_server(edited_schema(edit))
    runs = [
        ("--queue", "friends", "--room", "3", "--players", "6"),
        ("--queue", "rated", "--rematch", "--players", "2"),
        ("--queue", "random", "--players", "1"),
    ]
    files = [tmp_path / f"{number}.json" for number in range(len(runs))]
    tools = [
        start(server, *options, "--minutes", "0.1", "--json", str(file))
        for options, file in zip(runs, files)
    ]
    printed = [tool.communicate(timeout=120)[0] for tool in tools]
    assert [tool.returncode for tool in tools] == [0, 0, 0], printed
    steps = [json.loads(file.read_text())["steps"][0] for file in files]
    assert all(step["answers"] > 2 and step["games_ended"] for step in steps), steps
    rooms, again, _ = steps
    assert rooms["filled_ms"]["count"] == rooms["begun_ms"]["count"] == 2, rooms
    assert 0.8 < rooms["measured_share"] < 1.2 and rooms["games_started"] > 1, rooms
    assert again["games_started"] > 1 and again["tickets_timed_out"] == 0, again
    pairs = [
        pair
        for key in server.redis.keys("game:*")
        for pair in server.redis.hmget(key, "plan", "state")
    ]
    series = [trivia.parse_plan(plan).get("series") for plan in pairs[::2]]
    assert any(series), series
    refused = start(server, "--queue", "friends", "--room", "3", "--players", "4")
    assert "multiples of 3" in refused.communicate(timeout=60)[0] and refused.returncode == 1


def test_the_rush_opens_fills_and_begins_rooms_without_sockets():
    command = [sys.executable, "tests/rooms_rush.py", "--rooms", "3", "--players", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "3 rooms of 4 in" in done.stdout, done.stdout + done.stderr


def test_a_run_on_a_server_that_dies_reports_the_errors_and_exits_with_1(make_server, tmp_path):
    server, file = make_server(afresh=True), tmp_path / "figures.json"
    tool = start(
        server, "--players", "4", "--minutes", "0.03", "--seed-accounts", "--json", str(file)
    )
    wait_until(lambda: server.redis.hget("playing:{lobby}", "random") == "4", 40)
    server.kill(9)
    output = tool.communicate(timeout=60)[0]
    assert tool.returncode == 1, output
    assert json.loads(file.read_text())["errors"]["close 1006"] == 4, output


def test_the_guard_fails_above_the_stored_ratio_and_its_margin(capsys):
    for found, worse in ((11.4, False), (11.6, True)):
        assert load.is_worse({"steps": [{"guard": {"echoes_per_answer": found}}]}, 10.0) == worse
        assert ("too much" in capsys.readouterr().out) == worse


def test_percentiles_are_exact_to_two_percent():
    histogram = load.Histogram()
    for number in range(1, 1001):
        histogram.add(number / 1000)
    for share, exact_ms in ((0.5, 500), (0.99, 990), (1, 1000)):
        assert abs(histogram.quantile_ms(share) / exact_ms - 1) < 0.02
