"""Hostile WebSocket clients: malformed, excessive and forbidden messages do no harm."""

import asyncio
import contextlib
import functools
import json
import re
import socket as sockets
import subprocess
import sys
import time
from collections import Counter

import pytest
import uvloop
from websockets.exceptions import ConnectionClosed, InvalidStatus

from conftest import PASSWORD, ROOT, Phone, Server, edited_schema, wait_until

sys.path.insert(0, str(ROOT))
import trivia  # noqa: E402
from trivia import ALLOWED, RELAYED_IN  # noqa: E402

# What uvicorn logs for a text frame that is not UTF-8, which is no failure of the server.
BROKEN_TEXT = re.compile(
    r"ERROR: +Invalid UTF-8 sequence received.*?\nUnicodeDecodeError[^\n]*\n", re.S
)
TUNED = [sys.executable, "trivia.py", "--port", "0"]


def serving(command=None, **limits):
    """Runs a server with these limits for the test module, and checks that it logs no failure."""

    def edit(tree):
        tree["limits"].update(limits)

    running = Server(edited_schema(edit, answer_seconds=60), command)
    try:
        yield running.start()
        assert not failures(running.log)
    finally:
        running.close()


@pytest.fixture(scope="module")
def strict():
    """A server with low limits, and room for five connections."""
    yield from serving(
        TUNED, bad_messages=5, message_burst=8, messages_per_second=1, idle_seconds=1, connections=5
    )


@pytest.fixture(scope="module")
def lax():
    """A server that allows many messages, but buffers few for a slow phone."""
    yield from serving(
        TUNED,  # this server adapter buffers less in the kernel for a phone that does not read
        bad_messages=10**4,
        message_burst=10**4,
        messages_per_second=1000,
        outbox_messages=8,
        send_seconds=2,
    )


def failures(log):
    """Returns the lines of a log that report a failure of the server."""
    lines = BROKEN_TEXT.sub("", log).splitlines()
    return [line for line in lines if re.match("Traceback|ERROR|CRITICAL|.* ERROR ", line)]


@pytest.fixture(autouse=True)
def no_failure_is_logged(server):
    before = len(server.log)
    yield
    assert not failures(server.log[before:]), server.log[before:]


@pytest.fixture
def open_phone(server):
    """Connects new players, or further phones of a player; closes all of them after the test."""
    opened = []

    def connect(*args, at=server, **options):
        opened.append(at.phone(*args, **options))
        return opened[-1]

    yield connect
    for phone in opened:
        phone.close()


@pytest.fixture(scope="module")
def mallory(server):
    return server.register()


@pytest.fixture
def waiting(server, open_phone, mallory):
    """A phone that waits alone in a queue."""
    phone = open_phone(queue="rated", session=mallory)
    phone.expect("queued")
    # Many tests in a row connect this player, more often than the rate limit allows.
    server.redis.delete(trivia.Keys.limit("connect", mallory["token"][:12]))
    return phone


@pytest.fixture
def pair(open_phone):
    """Connects two players, and returns their phones once their game has started."""

    def play(queue="random", **options):
        phones = [open_phone(queue=queue, **options) for _ in range(2)]
        for phone in phones:
            phone.game = phone.expect("start")["game"]
        return phones

    return play


def read_strictly(phone):
    """Returns the next frame, which must be JSON as RFC 8259 defines it."""

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    return json.loads(phone.socket.recv(timeout=15), parse_constant=refuse)


def lives(phone):
    """Checks that the connection still answers."""
    phone.send("ping", client_ms=7)
    return phone.expect("pong")["client_ms"] == 7


def store(server, uid):
    """Returns all that Redis stores about a player, their queue and their game."""
    seat = server.redis.hget("seats:{lobby}", uid)
    games = (
        [server.redis.hgetall(key) for key in server.redis.keys(f"game:*:{seat.split(' ')[-1]}")]
        if seat
        else []
    )
    return [
        seat,
        games,
        server.redis.hgetall(f"user:{{{uid}}}"),
        server.redis.zrange("queue:{lobby}:rated", 0, -1),
        server.redis.zcard(f"history:{{{uid}}}"),
        server.redis.get(f"limit:{{{uid}}}"),
    ]


# ---- malformed messages


def deep(depth, opening="[", closing="]"):
    return opening * depth + closing * depth


MALFORMED = [  # (frame, code)
    *(
        (text, "bad_json")
        for text in (
            "",
            " ",
            "x",
            "{",
            "}",
            "'a'",
            "{'type':'ping'}",
            '{"type":"ping",}',
            '{"type":"ping"}{}',
            '{"type":"ping"} x',
            '{"type":ping}',
            '{type:"ping"}',
            '{"type":"ping"}//',
            "NaN",
            "Infinity",
            "-Infinity",
            '{"type":NaN}',
            "undefined",
            '{"type":"ping","client_ms":NaN}',
            '{"type":"ping","client_ms":-Infinity}',
            '{"type":"ping","client_ms":01}',
            '{"type":"ping","client_ms":.5}',
            '{"type":"ping","client_ms":+1}',
            '{"type":"ping","client_ms":0x10}',
            '{"type":"ping","type":"ping"}',
            '{"type":"leave","type":"ping"}',
            '{"type":"ping","x":{"a":1,"a":1}}',
            '{"id":1,"id":2,"type":"ping"}',
            r'{"type":"\ud800"}',
            r'{"type":"ping","id":"\udfff"}',
            r'{"\ud83d":1,"type":"ping"}',
            r'{"type":"ping","id":"\ude00\ud83d"}',
            '{"type":"pi\nng"}',
            '{"type":"ping\0"}',
            "\0",
            '\ufeff{"type":"ping"}',
            r'{"type":"\x70ing"}',
            deep(2000),
            deep(4000, "[", ""),
            deep(600, '{"a":', ""),
            '{"type":"ping"',
        )
    ),
    *(
        (text, "bad_message")
        for text in (
            "[]",
            "1",
            "-0",
            "null",
            "true",
            '"ping"',
            '["ping"]',
            '[{"type":"ping"}]',
            "1e400",
            deep(3),
        )
    ),
    *(
        (text, "unknown_type")
        for text in (
            "{}",
            '{"type":null}',
            '{"type":1}',
            '{"type":true}',
            '{"type":[]}',
            '{"type":{}}',
            '{"type":["ping"]}',
            '{"type":""}',
            '{"type":"PING"}',
            '{"type":"ping "}',
            r'{"type":"ping\u0000"}',
            '{"type":"__class__"}',
            '{"type":"_on_ping"}',
            '{"type":"start"}',
            '{"type":"end"}',
            '{"type":"queued"}',
            '{"type":"replaced"}',
            '{"type":"revoked"}',
            '{"type":1e400}',
            '{"Type":"ping"}',
            '{"type":' + deep(900) + "}",
            json.dumps({"type": "x" * 4000}),
            '{"type":"😀"}',
        )
    ),
]


@pytest.mark.parametrize(("text", "code"), MALFORMED, ids=lambda value: ascii(value)[:40])
def test_a_malformed_message_is_refused_without_effect(server, mallory, waiting, text, code):
    before = store(server, mallory["token"][:12])
    waiting.socket.send(text)
    error = read_strictly(waiting)
    assert error.keys() == {"type", "code", "message"} and (error["type"], error["code"]) == (
        "error",
        code,
    )
    assert 0 < len(error["message"]) < 300
    assert lives(waiting) and store(server, mallory["token"][:12]) == before


INVALID = [  # (type, fields, names of the fields that the error lists)
    ("answer", {}, "round choice"),
    ("answer", {"round": 1}, "choice"),
    ("answer", {"choice": 0}, "round"),
    *(
        ("answer", {"round": value, "choice": 0}, "round")
        for value in (
            "1",
            True,
            None,
            1.5,
            -1,
            0,
            1001,
            2**53,
            2**64,
            -(2**64),
            [],
            [1],
            {},
            {"a": 1},
            "",
            10**300,
        )
    ),
    *(
        ("answer", {"round": 1, "choice": value}, "choice")
        for value in ("0", False, None, 0.5, -1, 16, 2**63, [0], {})
    ),
    *(
        ("answer", {"round": 1, "choice": 0, "game": value}, "game")
        for value in (1, None, True, [], {}, "x" * 41, "a\0", "a\nb", "\x7f")
    ),
    ("answer", {"round": 1, "choice": 0, "points": 1000}, "points"),
    ("answer", {"round": "1", "choice": "0", "x": 1}, "round choice x"),
    ("check", {"x": 1}, "x"),
    ("check", {"": 1}, ""),
    ("check", {"game": "x"}, "game"),
    ("leave", {"for": "good"}, "for"),
    ("emoji", {}, "emoji"),
    *(
        ("emoji", {"emoji": value}, "emoji")
        for value in ("x", "", "👍👍", "👍\0", 1, None, ["👍"], {}, True)
    ),
    ("emoji", {"emoji": "👍", "player": "bob"}, "player"),
    ("emoji", {"emoji": "👍", "seq": 1}, "seq"),
    *(
        ("ping", {"client_ms": value}, "client_ms")
        for value in ("1", True, None, [], {}, 2**54, 10**400)
    ),
    *(("join", {"queue": value}, "queue") for value in (1, None, [], {}, "x" * 41, "a\0", True)),
    ("join", {"queue": "random", "over": "x"}, "over"),
]


@pytest.mark.parametrize(("kind", "fields", "named"), INVALID, ids=lambda value: ascii(value)[:40])
def test_invalid_fields_are_refused_by_name(server, mallory, waiting, kind, fields, named):
    before = store(server, mallory["token"][:12])
    waiting.send(kind, id="mine", **fields)
    error = read_strictly(waiting)
    assert (error["type"], error["code"], error["id"]) == ("error", "invalid_message", "mine"), (
        error
    )
    assert error["errors"].keys() == (set(named.split()) or {""})
    assert all(
        isinstance(what, list) and what and all(map(str.strip, what))
        for what in error["errors"].values()
    )
    assert lives(waiting) and store(server, mallory["token"][:12]) == before


@pytest.mark.parametrize(
    "data", [b"", b"\0", b'{"type":"ping"}', bytes(range(256)), b"\xff\xfe"], ids=repr
)
def test_a_binary_frame_is_refused(server, mallory, waiting, data):
    before = store(server, mallory["token"][:12])
    waiting.socket.send(data)
    assert waiting.expect("error")["code"] == "not_text"
    assert lives(waiting) and store(server, mallory["token"][:12]) == before


@pytest.mark.parametrize(
    "mark",
    [
        "a",
        "",
        " ",
        "x" * 64,
        "😀",
        "a\0b",
        "\u2028",
        '"}',
        0,
        -1,
        7,
        1.5,
        1e300,
        -1e-300,
        2**53,
        2**70,
    ],
)
def test_an_error_carries_the_id_of_the_message(waiting, mark):
    waiting.send("nothing", id=mark)
    error = read_strictly(waiting)
    assert (error["code"], error["id"]) == ("unknown_type", mark) and type(error["id"]) is type(
        mark
    )
    waiting.send("answer", id=mark)
    assert read_strictly(waiting)["id"] == mark
    waiting.send("join", id=mark)
    error = read_strictly(waiting)
    assert (error["code"], error["id"]) == ("wrong_state", mark)


@pytest.mark.parametrize(
    "mark",
    [
        "true",
        "false",
        "[]",
        "{}",
        "[1]",
        '{"a":1}',
        '"' + "x" * 65 + '"',
        "1" + "0" * 70,
        "1e400",
        "-1e400",
        deep(500),
    ],
    ids=lambda value: value[:20],
)
def test_an_invalid_id_is_refused(waiting, mark):
    waiting.socket.send('{"type":"ping","id":' + mark + "}")
    error = read_strictly(waiting)
    assert (error["type"], error["code"]) == ("error", "bad_message") and "id" not in error
    assert lives(waiting)


def test_each_error_has_the_id_of_its_own_message(waiting):
    marks = [{}, {"id": 1}, {"id": 2}]
    for mark in [*marks, *marks]:
        error = waiting.refused("wrong_state", "answer", round=1, choice=0, **mark)
        assert mark == {name: value for name, value in error.items() if name == "id"}


def test_an_id_of_null_is_no_id(waiting):
    waiting.socket.send('{"type":"nothing","id":null}')
    assert "id" not in waiting.expect("error")


@pytest.mark.parametrize(
    "number", ["0", "7", "1764000000000", "9007199254740992", "-1", "1.5", "1e3"]
)
def test_pong_gives_the_clock_of_the_phone_back_unchanged(waiting, number):
    waiting.socket.send('{"type":"ping","client_ms":' + number + "}")
    pong = read_strictly(waiting)
    assert pong["type"] == "pong" and abs(pong["server_ms"] - time.time() * 1000) < 5000
    assert repr(pong["client_ms"]) == repr(json.loads(number)), "an integer stays an integer"


def test_deeply_nested_messages_are_refused_at_any_depth(lax):
    with contextlib.closing(lax.phone(queue="rated")) as phone:
        phone.expect("queued")
        for depth in range(1, 1300, 3):
            for text in (
                deep(depth),
                '{"type":' + deep(depth) + "}",
                '{"type":"ping","x":' + deep(depth) + "}",
                deep(min(depth, 680), '{"":', "}").replace("}", "1}", 1),
            ):
                phone.socket.send(text)
                assert read_strictly(phone)["code"] in (
                    "bad_json",
                    "bad_message",
                    "unknown_type",
                    "invalid_message",
                )
        assert lives(phone)


# ---- size and fragments


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"type":"ping"}'.ljust(4096), True),
        ('{"type":"ping"}'.ljust(4097), False),
        ("x" * 5000, False),
        ("😀" * 1025, False),
        ("é" * 2049, False),
        ("x" * 60_000, False),
        (b"x" * 4097, False),
        (["x" * 1000] * 5, False),
        (["x" * 500] * 9, False),
    ],
    ids=lambda value: ascii(value)[:25] + ("" if isinstance(value, bool) else f" {len(value)}"),
)
@pytest.mark.parametrize("place", ["server", "strict"])
def test_a_message_of_more_than_4096_bytes_closes_the_connection(request, place, text, fits):
    target = request.getfixturevalue(place)
    phone = target.phone(session=a_player(target), queue="rated")
    phone.expect("queued")
    phone.socket.send(text)
    if fits:
        phone.expect("pong")
        phone.close()
    else:
        phone.expect_close(4413)


@functools.cache
def a_player(target):
    """Returns an account of this server, the same one at each call."""
    return target.register()


def test_a_message_that_is_far_too_big_closes_the_connection(strict):
    phone = strict.phone(session=a_player(strict), queue="rated")
    phone.expect("queued")
    with contextlib.suppress(ConnectionClosed):
        phone.socket.send("x" * 1_000_000)
    with pytest.raises(ConnectionClosed):
        while True:
            phone.receive()
    assert phone.socket.protocol.close_code in (
        4413,
        1009,
    )  # the WebSocket library may be the first to refuse it


@pytest.mark.parametrize("size", [2, 7])
def test_a_message_in_fragments_is_one_message(waiting, size):
    text = json.dumps({"type": "ping", "client_ms": 42}).ljust(50)  # 30 frames at once are allowed
    waiting.socket.send([text[i : i + size] for i in range(0, len(text), size)])
    assert waiting.expect("pong")["client_ms"] == 42


def test_control_frames_between_fragments_and_empty_fragments_do_no_harm(waiting):
    parts = ['{"type":', "", '"ping",', "", "", '"client_ms":1}', ""]

    def fragments():
        for part in parts:
            yield part
            send_raw(waiting, 0x89, b"beat")  # a ping of the protocol

    waiting.socket.send(fragments())
    assert waiting.expect("pong")["client_ms"] == 1


def send_raw(phone, head, payload=b"", masked=True):
    """Sends a frame with any first byte."""
    mask = b"\1\2\3\4" if masked else b""
    body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if masked else payload
    phone.socket.socket.sendall(bytes([head, len(payload) | (0x80 if masked else 0)]) + mask + body)


BREACHES = {
    "half a byte": (0x81, b"\xff", True, 1007),
    "a surrogate": (0x81, b"\xed\xa0\x80", True, 1007),
    "no mask": (0x81, b"{}", False, 1002),
    "opcode 3": (0x83, b"", True, 1002),
    "opcode 11": (0x8B, b"", True, 1002),
    "reserved bits": (0xF1, b"{}", True, 1002),
    "nothing to continue": (0x80, b"x", True, 1002),
    "a ping in parts": (0x09, b"", True, 1002),
}


@pytest.mark.parametrize(
    ("head", "payload", "masked", "code"), BREACHES.values(), ids=list(BREACHES)
)
@pytest.mark.parametrize("place", ["server", "strict"])
def test_a_breach_of_the_protocol_ends_the_connection_only(
    request, place, head, payload, masked, code
):
    target = request.getfixturevalue(place)
    phone = target.phone(session=a_player(target), queue="rated")
    phone.expect("queued")
    send_raw(phone, head, payload, masked)
    phone.expect_close(code)
    again = target.phone(session=a_player(target), queue="rated")
    again.expect("queued")
    assert lives(again)
    again.close()


def test_text_that_is_not_utf8_is_not_logged_as_a_failure(server):
    before = len(server.log)
    phone = server.phone(session=a_player(server), queue="rated")
    phone.expect("queued")
    send_raw(phone, 0x81, b"\xff")
    phone.expect_close(1007)
    assert "Traceback" not in server.log[before:]


# ---- limits


def test_too_many_malformed_messages_close_the_connection(strict):
    phone = strict.phone(queue="rated")
    phone.expect("queued")
    for i in range(6):
        phone.send("nothing", id=i)
    for i in range(6):
        assert phone.expect("error")["id"] == i
    phone.expect_close(4400)


def test_a_message_in_the_wrong_state_does_not_count_as_malformed(strict):
    phone = strict.phone(queue="rated")
    phone.expect("queued")
    for _ in range(7):
        phone.refused("wrong_state", "join")
    assert lives(phone)
    phone.close()


def test_too_many_messages_are_refused_and_then_close_the_connection(strict):
    phone = strict.phone(queue="rated")
    phone.expect("queued")
    with contextlib.suppress(ConnectionClosed):
        for i in range(60):
            phone.send("ping", client_ms=i)
    phone.expect_close(4429)
    frames = phone.frames[1:]
    pongs = [frame["client_ms"] for frame in frames if frame["type"] == "pong"]
    errors = [frame["code"] for frame in frames if frame["type"] == "error"]
    assert pongs[:8] == list(range(8)) and set(errors) == {"too_fast"} and len(errors) >= 8
    assert len(frames) < 60


def test_a_player_who_slows_down_is_served_again(strict):
    phone = strict.phone(queue="rated")
    phone.expect("queued")
    for _ in range(10):
        phone.send("ping")
    wait_until(lambda: phone.receive().get("code") == "too_fast")

    def heard():
        time.sleep(0.6)  # the allowance grows by 0.6 messages
        phone.send("ping", client_ms=99)
        while (frame := phone.receive())["type"] == "pong" and frame.get("client_ms") != 99:
            pass
        return frame["type"] == "pong"

    wait_until(heard)
    phone.close()


def test_an_idle_player_is_disconnected_and_a_queued_player_is_not(strict):
    patient, idle = strict.phone(queue="party"), strict.phone(queue="rated")
    patient.expect("queued")
    idle.expect("queued")
    idle.send("leave")
    idle.expect("cancelled")
    idle.expect_close(4408)
    assert lives(patient)
    patient.close()


def test_a_full_server_refuses_further_connections(strict):
    sessions, phones = [strict.register() for _ in range(6)], []
    for session in sessions[:5]:

        def connected(session=session):  # connections of other tests may still be closing
            with contextlib.suppress(InvalidStatus):
                return strict.phone(session=session, queue="rated" if len(phones) % 2 else "party")

        phones.append(wait_until(connected))
    with pytest.raises(InvalidStatus) as refused:
        strict.phone(session=sessions[5])
    response = refused.value.response
    assert response.status_code == 503 and json.loads(response.body)["code"] == "unavailable"
    assert (
        response.headers["content-type"] == "application/problem+json"
        and int(response.headers["retry-after"]) > 0
    )
    browser = Phone(
        strict,
        sessions[5],
        headers={},
        subprotocols=["trivia.v1", f"bearer.{sessions[5]['token']}"],
    )
    browser.expect_close(1013)
    assert strict.redis.hget("seats:{lobby}", sessions[5]["token"][:12]) is None
    for phone in phones:
        phone.close()


# ---- who may connect

OTHER = "x" * 32


@pytest.fixture(scope="module")
def tokens(server):
    """Invalid tokens, by what is wrong with them, and the right one."""
    session, old, ended = server.register(), server.register(), server.register()
    uid = old["token"][:12]
    [field] = [
        name for name in server.redis.hkeys(f"user:{{{uid}}}") if name.startswith("session:")
    ]
    server.redis.hset(f"user:{{{uid}}}", field, int(time.time()) - 1)
    assert server.http("POST", "/auth/logout", token=ended["token"]).status == 204
    token = session["token"]
    return {
        "right": token,
        "wrong secret": token[:12] + OTHER,
        "unknown user": OTHER[:12] + token[12:],
        "short": token[:39],
        "long": token + "x",
        "nonsense": "x",
        "empty": "",
        "expired": old["token"],
        "revoked": ended["token"],
        "another case": token.swapcase(),
        "cut": token[:12],
    }


BAD = [
    "wrong secret",
    "unknown user",
    "short",
    "long",
    "nonsense",
    "empty",
    "expired",
    "revoked",
    "another case",
    "cut",
]


def handshake(server, headers, subprotocols=None, path="random"):
    """Tries a handshake that the server must refuse, and returns the response and its problem."""
    session = {"token": "", "user": {"username": ""}}
    with pytest.raises(InvalidStatus) as refused:
        Phone(server, session, path, headers=headers, subprotocols=subprotocols)
    response = refused.value.response
    problem = json.loads(response.body)
    assert (
        response.headers["content-type"] == "application/problem+json"
        and problem["status"] == response.status_code
    )
    return response, problem


@pytest.mark.parametrize("what", BAD)
def test_a_bad_token_in_the_header_is_refused_with_401(server, tokens, what):
    response, problem = handshake(server, {"Authorization": f"Bearer {tokens[what]}"})
    assert (response.status_code, problem["code"]) == (401, "not_authenticated")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "scheme",
    [None, "", "Basic {}", "Bearer", "{}", "Token {}", "Bearer{}", "Bearer {} {}", "Bearer é"],
)
def test_a_header_without_a_token_is_refused_with_401(server, tokens, scheme):
    headers = {} if scheme is None else {"Authorization": scheme.replace("{}", tokens["right"])}
    response, problem = handshake(server, headers)
    assert (response.status_code, problem["code"]) == (401, "not_authenticated")


@pytest.mark.parametrize("what", [name for name in BAD if name != "empty"])
def test_a_bad_token_in_the_subprotocol_is_closed_with_4401(server, tokens, what):
    session = {"token": tokens[what], "user": {"username": ""}}
    phone = Phone(server, session, headers={}, subprotocols=["trivia.v1", f"bearer.{tokens[what]}"])
    assert phone.socket.subprotocol == "trivia.v1"
    phone.expect_close(4401)
    assert phone.frames == []


def test_the_right_token_in_the_subprotocol_is_accepted_and_not_repeated(open_phone, mallory):
    for offered in (
        ["trivia.v1", "bearer." + mallory["token"]],
        ["bearer." + mallory["token"], "trivia.v1", "other"],
    ):
        phone = open_phone(queue="rated", session=mallory, headers={}, subprotocols=offered)
        phone.expect("queued")
        assert phone.socket.subprotocol == "trivia.v1"
        assert mallory["token"] not in str(phone.socket.response.headers)


@pytest.mark.parametrize(
    "path",
    [
        "nope",
        "",
        "Random",
        "random/",
        "random/x",
        "..",
        "%2e%2e",
        "random%00",
        "random%0a",
        "*",
        "random%20",
        "é",
        "../game/random",
        "-",
    ],
)
@pytest.mark.parametrize("browser", [False, True])
def test_an_unknown_queue_is_refused_with_404(server, mallory, path, browser):
    token = mallory["token"]
    headers = {} if browser else {"Authorization": f"Bearer {token}"}
    offered = ["trivia.v1", f"bearer.{token}"] if browser else None
    response, problem = handshake(server, headers, offered, path)
    assert (response.status_code, problem["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://evil.example", False),
        ("null", False),
        ("http://127.0.0.1", False),
        ("http://127.0.0.1:{}.evil.example", False),
        ("http://127.0.0.1:{}@evil.example", False),
        ("http://evil.example/127.0.0.1:{}", False),
        ("http://127.0.0.1:{}/", False),
        ("http://127.0.0.1:", False),
        ("http://[::1]:{}", False),
        ("http://[", False),
        ("http://127.0.0.1:{}", True),
        ("HTTP://127.0.0.1:{}", True),
    ],
)
def test_a_page_of_another_origin_may_not_connect(server, open_phone, mallory, origin, allowed):
    headers = {
        "Authorization": f"Bearer {mallory['token']}",
        "Origin": origin.replace("{}", str(server.port)),
    }
    if allowed:
        open_phone(queue="rated", session=mallory, headers=headers).expect("queued")
    else:
        response, problem = handshake(server, headers)
        assert (response.status_code, problem["code"]) == (403, "origin_refused")


# ---- one connection a player


def test_a_newer_connection_replaces_the_older_in_the_queue(server, open_phone, waiting, mallory):
    newer = open_phone(queue="rated", session=mallory)
    assert newer.expect("queued")["timeout_ms"] <= 90_000
    waiting.expect_close(4409)
    assert lives(newer)
    assert server.redis.zrange("queue:{lobby}:rated", 0, -1).count(mallory["token"][:12]) == 1


def test_a_newer_connection_to_another_queue_ends_the_ticket_in_the_first(
    server, open_phone, waiting, mallory
):
    newer = open_phone(queue="party", session=mallory)
    newer.expect("queued")
    waiting.expect_close(4409)
    uid = mallory["token"][:12]
    wait_until(lambda: server.redis.zscore("queue:{lobby}:rated", uid) is None)
    assert server.redis.zscore("queue:{lobby}:party", uid) is not None and lives(newer)


def test_a_newer_connection_takes_over_the_game_unseen_by_the_opponent(pair, open_phone):
    ann, bob = pair()
    ann.expect("question")
    newer = open_phone(session=ann.session)
    update = newer.receive()
    assert update["type"] == "update" and sorted(update["connected"]) == sorted(
        [ann.name, bob.name]
    )
    ann.expect_close(4409)
    newer.send("answer", round=1, choice=0)
    bob.expect("answered")
    assert [frame["type"] for frame in bob.frames] == ["queued", "start", "question", "answered"]


def test_only_the_newest_of_many_connections_of_one_player_stays(server, open_phone, mallory):
    phones = [open_phone(queue="rated", session=mallory) for _ in range(8)]
    for phone in phones[:-1]:
        phone.expect_close(4409)
    phones[-1].expect("queued")
    assert lives(phones[-1])


# ---- a session that ends while its player is connected


def log_out(server, phone):
    return server.http("POST", "/auth/logout", token=phone.token)


def log_out_everywhere(server, phone):
    return server.http("DELETE", "/auth/sessions", token=sign_in(server, phone))


def change_password_elsewhere(server, phone):
    body = {"password": PASSWORD, "new_password": "another horse"}
    return server.http("POST", "/auth/password", body, sign_in(server, phone))


def erase(server, phone):
    return server.http("DELETE", "/users/me", {"password": PASSWORD}, sign_in(server, phone))


def sign_in(server, phone):
    return server.http("POST", "/auth/login", {"login": phone.name, "password": PASSWORD}).json[
        "token"
    ]


@pytest.mark.parametrize("end", [log_out, log_out_everywhere, change_password_elsewhere, erase])
def test_a_connection_ends_with_its_session_in_the_queue(server, open_phone, end):
    phone = open_phone(queue="rated")
    phone.expect("queued")
    assert end(server, phone).status == 204
    phone.expect_close(4401)
    wait_until(lambda: server.redis.hget("seats:{lobby}", phone.token[:12]) is None)
    assert server.redis.zscore("queue:{lobby}:rated", phone.token[:12]) is None
    assert handshake(server, phone.headers)[0].status_code == 401


@pytest.mark.parametrize("end", [log_out, erase])
def test_a_connection_ends_with_its_session_in_a_game(server, pair, end):
    ann, bob = pair()
    assert end(server, ann).status == 204
    ann.expect_close(4401)
    assert bob.expect("user_exit")["player"] in (ann.name, "erased-1", "erased-2")


def test_a_connection_ends_with_its_session_between_games(server, open_phone):
    phone = open_phone(queue="rated")
    phone.expect("queued")
    phone.send("leave")
    phone.expect("cancelled")
    assert log_out(server, phone).status == 204
    phone.expect_close(4401)


def test_the_end_of_another_session_does_not_end_the_connection(server, open_phone):
    phone = open_phone(queue="rated")
    phone.expect("queued")
    assert server.http("POST", "/auth/logout", token=sign_in(server, phone)).status == 204
    body = {"password": PASSWORD, "new_password": "another horse"}
    assert server.http("POST", "/auth/password", body, phone.token).status == 204
    assert lives(phone)


# ---- which message is legal when

STATES = ["idle", "queued", "room", "playing"]
FIELDS = {"answer": {"round": 1, "choice": 0}, "emoji": {"emoji": "👍"}}
FIELDS |= {"flag": {"round": 1}, "rematch": {"accept": True}}
FIELDS |= {"kick": {"player": "x"}, "pass": {"player": "x"}, "lock": {"locked": True}}
LEGAL = ALLOWED | {"emoji": RELAYED_IN}
PAIRS = [(kind, state) for kind in LEGAL for state in STATES]


@pytest.fixture(scope="module")
def phones_in(server):
    """A phone in each state."""
    phones = {"idle": server.phone(queue="party")}
    phones["idle"].send("leave")
    phones["idle"].expect("cancelled")
    phones |= {"queued": server.phone(queue="party"), "playing": server.phone()}
    phones["room"] = server.phone(queue="friends")
    phones["room"].expect("room")
    partner = server.phone()
    phones["queued"].expect("queued")
    phones["playing"].expect("question")
    yield phones
    for phone in (*phones.values(), partner):
        phone.close()


def test_the_table_of_legal_messages_names_all_of_them(server):
    document = server.http("GET", "/docs/asyncapi.json").json
    assert LEGAL.keys() <= set(json.dumps(document).replace('"', " ").split())
    assert {state for states in LEGAL.values() for state in states} == set(STATES)


@pytest.mark.parametrize(
    ("kind", "state"), [pair for pair in PAIRS if pair[1] not in LEGAL[pair[0]]]
)
def test_a_message_in_the_wrong_state_is_refused_without_effect(server, phones_in, kind, state):
    phone = phones_in[state]
    before = store(server, phone.token[:12])
    error = phone.refused("wrong_state", kind, id="x", **FIELDS.get(kind, {}))
    assert (
        error["id"] == "x"
        and state in error["message"]
        and all(legal in error["message"] for legal in LEGAL[kind])
    )
    assert store(server, phone.token[:12]) == before and lives(phone)


def test_a_join_to_an_unknown_queue_is_refused_and_the_next_is_not(server, open_phone):
    phone = open_phone(queue="rated")
    phone.expect("queued")
    phone.send("leave")
    phone.expect("cancelled")
    before = store(server, phone.token[:12])
    for name in ("nope", "", "Random", "../random"):
        phone.refused("unknown_queue", "join", queue=name)
    assert store(server, phone.token[:12]) == before
    phone.send("join")
    assert phone.expect("queued")["queue"] == "rated"


@pytest.mark.parametrize(
    ("scheme", "host", "origin", "allowed"),
    [
        ("ws", "quiz.your.org", "http://quiz.your.org", True),
        ("ws", "quiz.your.org:80", "http://quiz.your.org", True),
        ("ws", "Quiz.Your.ORG", "http://quiz.your.org:80", True),
        ("wss", "quiz.your.org:443", "https://quiz.your.org", True),
        ("wss", "quiz.your.org", "https://QUIZ.your.org:443", True),
        ("ws", "quiz.your.org", "https://quiz.your.org", True),  # a TLS proxy sets no header
        ("ws", "[2001:DB8::1]:8000", "http://[2001:db8::1]:8000", True),
        ("wss", "quiz.your.org", "http://quiz.your.org", False),
        ("wss", "quiz.your.org", "https://quiz.your.org:8443", False),
        ("ws", "quiz.your.org:8000", "http://quiz.your.org", False),
        ("ws", "quiz.your.org", "http://quiz.your.org.evil.example", False),
        ("ws", "quiz.your.org", "http://your.org", False),
        ("ws", "quiz.your.org", "null", False),
        ("ws", "", "http://", False),
        ("ws", "your.org:port", "http://your.org", False),
        ("wss", "quiz.your.org", "https://Friend.example:443", True),
        ("wss", "quiz.your.org", "https://friend.example", True),
        ("wss", "quiz.your.org", "http://friend.example", False),
    ],
)
def test_an_origin_is_compared_by_scheme_host_and_port(scheme, host, origin, allowed):
    headers = {"host": host, "origin": origin}
    friends = ["https://friend.example:443"]
    if allowed:
        return trivia.check_origin(headers, scheme, friends)
    with pytest.raises(trivia.Problem) as refused:
        trivia.check_origin(headers, scheme, friends)
    assert refused.value.code == "origin_refused"


# ---- a phone that does not read


@pytest.mark.parametrize(
    ("head", "payload"),
    [(0x81, b'{"type":"check"}'), (0x89, b"x" * 125)],
    ids=["messages", "pings of the protocol"],
)
def test_a_phone_that_never_reads_is_dropped_unseen_by_its_opponent(lax, head, payload):
    flood = (bytes([head, 0x80 | len(payload)]) + bytes(4) + payload) * 500
    with contextlib.closing(lax.phone()) as ann, contextlib.closing(lax.phone()) as bob:
        ann.expect("question")
        with contextlib.closing(deafen(ann)) as deaf:
            bob.expect("user_return")
            slowest = flood_until_dropped(deaf, flood, bob)
            assert bob.frames[-1]["type"] == "user_exit" or bob.expect("user_exit", 10)
        assert slowest < 5, slowest
        bob.send("answer", round=1, choice=0)
        assert bob.expect("reveal")["answers"].keys() == {bob.name}


def flood_until_dropped(deaf, flood, opponent):
    """Floods the server until it drops the phone, at most 300 times.

    Returns the longest time in seconds that the opponent waited for a reply.
    """
    slowest = 0
    for _ in range(300):
        with contextlib.suppress(OSError):  # it times out, or the server has dropped the phone
            deaf.sendall(flood)
        began = time.monotonic()
        opponent.send("ping")
        if opponent.receive()["type"] == "user_exit":
            break
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def deafen(phone):
    """Connects a player again through a raw socket with the smallest receive buffer."""
    phone.drop()
    raw = sockets.socket()
    raw.settimeout(0.2)
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 2048)
    raw.connect(("127.0.0.1", phone.server.port))
    raw.sendall(
        (
            f"GET /game/random HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {phone.token}\r\n\r\n"
        ).encode()
    )
    return raw


# ---- how frames are split


@pytest.fixture(scope="module", params=[None, TUNED], ids=["uvicorn", "trivia.py"])
def either(request):
    """Both ways to run the server: uvicorn, and trivia.py with its fast path for short frames."""
    yield from serving(request.param)


def masked(text, first=0x81, mask=b"\x01\x80\xff\x10"):
    """Builds a frame as a phone sends it."""
    data = text.encode()
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
    return bytes((first,)) + size + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


CUTS = {
    "whole": lambda answer: [masked(answer)],
    "byte by byte": lambda answer: [bytes((byte,)) for byte in masked(answer)],
    "fragments and a ping": lambda answer: [
        masked(answer[:9], 0x01) + masked("", 0x89),
        masked(answer[9:], 0x80),
    ],
    "in two": lambda answer: [masked(answer)[:3], masked(answer)[3:]],
    "behind a long one": lambda answer: [
        masked(json.dumps({"type": "check"}) + " " * 200) + masked(answer)
    ],
    "long": lambda answer: [masked(answer + " " * 200)],
    "behind a ping": lambda answer: [masked("hello", 0x89) + masked(answer)],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_an_answer_counts_however_its_frames_are_split(either, cut):
    ann, bob = either.pair()
    number = ann.expect("question")["round"]
    ann.socket.socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    for piece in cut(json.dumps({"type": "answer", "round": number, "choice": 1})):
        ann.socket.socket.sendall(piece)
        time.sleep(0.002)  # so that each piece is a TCP segment of its own
    bob.expect("answered", player=ann.name)
    assert ann.refused("already_answered", "answer", round=number, choice=1, id=7)["id"] == 7


def test_frames_in_one_segment_are_handled_in_order(either):
    ann, bob = either.pair()
    number = ann.expect("question")["round"]
    answer = json.dumps({"type": "answer", "round": number, "choice": 1, "id": "second"})
    ann.socket.socket.sendall(
        masked('{"type":"check"}')
        + masked(answer.replace("second", "first"))
        + masked(answer)
        + masked('{"type":"ping","client_ms":5}')
    )
    assert "choice" not in ann.expect("update") and ann.expect("error") == ann.frames[-1]
    assert (ann.frames[-1]["code"], ann.frames[-1]["id"]) == ("already_answered", "second")
    ann.expect("pong", client_ms=5)
    bob.expect("answered", player=ann.name)


@pytest.mark.parametrize(
    "piece, code",
    [
        (b"\x81\x02{}", 1002),
        (masked("{}", 0xA1), 1002),
        (masked("{}", 0x83), 1002),
        (b"\x81\x82\0\0\0\0\xff\xff", 1007),
        (masked("", 0x88), 1005),
    ],
    ids=["unmasked", "reserved bit", "unknown opcode", "not UTF-8", "close"],
)
def test_a_frame_that_breaks_the_protocol_closes_the_connection(either, piece, code):
    ann, bob = either.pair()
    ann.socket.socket.sendall(piece)
    with pytest.raises(ConnectionClosed):
        while True:
            ann.receive()
    bob.expect("user_exit", player=ann.name)
    assert ann.socket.protocol.close_code == code


# ---- the log


def test_no_token_is_in_the_log(server, open_phone):
    session = server.register()
    token = session["token"]
    phone = open_phone(queue="rated", session=session)
    phone.expect("queued")
    phone.refused("unknown_type", "nothing", token=token)
    phone.refused("invalid_message", "check", token=token)
    browser = open_phone(
        queue="rated", session=session, headers={}, subprotocols=["trivia.v1", f"bearer.{token}"]
    )
    browser.expect("queued")
    handshake(server, {"Authorization": f"Bearer {token}"}, path="nope")
    handshake(server, {"Authorization": f"Bearer {token}", "Origin": "http://evil.example"})
    assert server.http("POST", "/auth/login", {"login": token, "password": token}).status == 401
    assert log_out(server, browser).status == 204
    browser.expect_close(4401)
    handshake(server, {"Authorization": f"Bearer {token}"})
    assert "registered" in server.log
    assert token not in server.log and token[12:] not in server.log and PASSWORD not in server.log


# ---- many connections at once


def test_one_turn_of_the_loop_accepts_many_connections():
    async def scene():
        loop, turn, taken = asyncio.get_running_loop(), 0, Counter()

        def count_turns():
            nonlocal turn
            turn += 1
            loop.call_soon(count_turns)

        class Guest(asyncio.Protocol):
            def connection_made(self, transport):
                taken[turn] += 1

        listener = trivia.open_socket("127.0.0.1", 0)
        address = listener.getsockname()
        servers = [
            await loop.create_server(Guest, sock=door)
            for door in trivia.repeat_listeners([listener])
        ]
        with contextlib.ExitStack() as crowd:
            for _ in range(3 * trivia.ACCEPTS_PER_TURN):
                crowd.enter_context(sockets.create_connection(address))
            count_turns()
            while taken.total() < 3 * trivia.ACCEPTS_PER_TURN:
                await asyncio.sleep(0)
        for server in servers:
            server.close()
        assert set(taken.values()) == {trivia.ACCEPTS_PER_TURN}, taken

    uvloop.run(asyncio.wait_for(scene(), 20))


# ---- what a closed connection leaves in memory

CYCLES = """
import asyncio, gc
import uvicorn
from websockets.asyncio.client import connect
import trivia

async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})

def kinds():
    theirs = ("uvicorn.protocols", "websockets.server", "trivia")
    return {
        kind.__qualname__
        for kind in map(type, gc.get_objects())
        if str(kind.__module__).startswith(theirs)
    }

async def main():
    config = uvicorn.Config(echo, port=0, ws=trivia.WebSocket, http=trivia.Http,
                            lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    url = f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    gc.disable()
    before = kinds()
    for end in ("close", "drop", "close", "drop"):
        phone = await connect(url)
        await phone.send("hello" * 100)
        assert await phone.recv() == "hello" * 100
        await phone.close() if end == "close" else phone.transport.abort()
        while server.server_state.connections or server.server_state.tasks:
            await asyncio.sleep(0.01)
    for _ in range(200):        # the last turns of the loop may be to come
        if not (left := kinds() - before):
            break
        await asyncio.sleep(0.01)
    print(*left)
    server.should_exit = True
    await serving

asyncio.run(main())
"""


def test_a_closed_connection_leaves_no_reference_cycles():
    """Old objects are frozen, so the garbage collector would keep a cycle for a day."""
    done = subprocess.run(
        [sys.executable, "-c", CYCLES], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), (done.stdout, done.stderr)
