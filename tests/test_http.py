"""Bad input over HTTP from a hostile client: the server refuses it, and nothing changes."""

import contextlib
import json
import re
import socket
import time

import pytest
import redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from conftest import PASSWORD, Answer, Server, edited_schema, unique_name, wait_until

ORIGINS = ["https://play.example.org", "http://127.0.0.1:9999"]
# The same origins, as an operator may write them.
WRITTEN = ["https://Play.Example.org:443", ORIGINS[1]]
REGISTER, LOGIN = "/auth/register", "/auth/login"
JSON, CHUNKED, CLOSE = (
    b"Content-Type: application/json",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
)


@pytest.fixture(scope="module")
def target():
    """A server of this file, which waits a second for a body and allows two origins."""

    def edit(tree):
        tree["limits"]["body_seconds"] = 1
        tree["origins"] = WRITTEN

    running = Server(edited_schema(edit))
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture(scope="module")
def victim(target):
    return target.register("victim")


def store(server):
    """Returns what Redis holds, except what changes by itself, such as heartbeats and clocks."""
    path = str(server.data / "d" / "redis.sock")
    # Without driver_info, the client sends no commands that describe it.
    link = redis.Redis(unix_socket_path=path, driver_info=None)
    keys = [
        key
        for key in link.keys()
        if not key.startswith((b"workers:", b"limit:", b"clock:", b"metrics:", b"loads:"))
        and not key.endswith((b"{bank}", b"{events}", b"{chores}"))
    ]
    kinds = pipelined(link, lambda pipe, key: pipe.type(key), keys)
    read = {
        b"hash": lambda pipe, key: pipe.hgetall(key),
        b"string": lambda pipe, key: pipe.get(key),
        b"zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
    }
    found = pipelined(link, lambda pipe, pair: read[pair[1]](pipe, pair[0]), zip(keys, kinds))
    for kind, value in zip(kinds, found):
        if kind == b"hash":
            value.pop(b":turn", None)
    return dict(zip(keys, found))


def pipelined(link, ask, items):
    """Calls ask(pipe, item) for each item. Returns the replies of Redis, after one round trip."""
    pipe = link.pipeline(transaction=False)
    for item in items:
        ask(pipe, item)
    return pipe.execute()


@pytest.fixture
def attack(target, victim):
    """The target. Afterwards it must still serve, with the same store and no error in its log."""
    before, read = store(target), len(target.log)
    yield target
    assert target.http("GET", "/users/me", token=victim["token"]).json == victim["user"]
    assert store(target) == before
    complaints = re.findall(r"Traceback|ERROR|Exception|failed", target.log[read:])
    assert not complaints, target.log[read:]


# -- raw HTTP


def request(method, path, *headers, body=None, length=None):
    """Returns the bytes of a request. `length` may be a wrong content length."""
    head = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: 127.0.0.1", *headers]
    if body is not None or length is not None:
        head.append(b"Content-Length: %d" % (len(body) if length is None else length))
    return b"\r\n".join(head) + b"\r\n\r\n" + (body or b"")


def parse(data):
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if headers.get("transfer-encoding") == "chunked":
        chunks, rest = b"", body
        while rest and (size := int(rest.partition(b"\r\n")[0], 16)):
            rest = rest.partition(b"\r\n")[2]
            chunks, rest = chunks + rest[:size], rest[size + 2 :]
        body = chunks
    return Answer(int(first.split(" ")[1]), headers, body.decode())


def exchange(server, *parts, pause=0.0, seconds=20):
    """Sends bytes, with pauses between the parts, and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as link:
        for i, part in enumerate(parts):
            if i:
                time.sleep(pause)
            link.sendall(part)
        data = b""
        while chunk := link.recv(65536):
            data += chunk
    return parse(data)


def ask(server, method, path, *headers, body=None):
    return exchange(server, request(method, path, CLOSE, *headers, body=body))


def post(server, path, body, *headers):
    return ask(server, "POST", path, JSON, *headers, body=body)


def new_user(**fields):
    """Returns a body that registers a new player."""
    name = unique_name()
    return json.dumps(
        {"username": name, "email": f"{name}@example.org", "password": PASSWORD} | fields
    ).encode()


def nobody():
    """Returns a sign-in of an unknown player, each time another one, so that none is throttled."""
    return json.dumps({"login": unique_name(), "password": "x"}).encode()


# -- bodies

BAD_JSON = {
    "empty": b"",
    "blank": b"  \n",
    "a brace": b"{",
    "text": b"username=anna",
    "a comma too many": b'{"login":"a",}',
    "more after it": b'{"login":"a","password":"b"} {}',
    "single quotes": b"{'login':'a'}",
    "a comment": b"{}//",
    "NaN": b'{"login":NaN,"password":"b"}',
    "Infinity": b'{"login":Infinity,"password":"b"}',
    "-Infinity": b'{"login":"a","password":-Infinity}',
    "a key twice": b'{"login":"a","login":"b","password":"c"}',
    "a key twice, deep down": b'{"login":{"a":1,"a":2},"password":"c"}',
    "a lone surrogate": b'{"login":"\\ud800","password":"b"}',
    "a lone low surrogate": b'{"login":"\\udc00a","password":"b"}',
    "a surrogate in a key": b'{"\\udfff":1}',
    "surrogates the wrong way": b'{"login":"\\udc00\\ud800","password":"b"}',
    "an encoded surrogate": b'{"login":"\xed\xa0\x80","password":"b"}',
    "an encoded surrogate in a password": b'{"login":"a","password":"\xed\xbf\xbf"}',
    "a byte that is not UTF-8": b'{"login":"\xff","password":"b"}',
    "an overlong NUL": b'{"login":"\xc0\x80","password":"b"}',
    "UTF-16": '{"login":"a","password":"b"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"login":"a","password":"b"}'.encode("utf-16-le"),
    "UTF-32": '{"login":"a","password":"b"}'.encode("utf-32"),
    "a surrogate in UTF-16": '{"login":"\\ud800","password":"b"}'.encode("utf-16-be"),
    "a raw NUL": b'{"login":"a\x00","password":"b"}',
    "a raw newline": b'{"login":"a\n","password":"b"}',
    "arrays too deep": b"[" * 8000,
    "closed arrays too deep": b'{"login":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "objects too deep": b'{"a":' * 3000,
    "a number of 5000 digits": b'{"login":' + b"9" * 5000 + b',"password":"b"}',
    "a bad number": b'{"login":01,"password":"b"}',
    "a bad escape": b'{"login":"\\x","password":"b"}',
    "an array": b"[]",
    "null": b"null",
    "a string": b'"{}"',
    "a number": b"5",
    "true": b"true",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xabV\xb2RP\xaa\x05\x00",
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
@pytest.mark.parametrize("path", [REGISTER, LOGIN])
def test_a_body_that_is_no_json_object_is_refused(attack, path, body):
    problem = post(attack, path, body).refused(400, "bad_json")
    assert "errors" not in problem and "sys." not in problem["detail"]


WRONG_SHAPE = {
    "nothing": ({}, {"password"}),
    "numbers": ({"login": 5, "password": 5}, {"login", "password"}),
    "null": ({"login": None, "password": None}, {"login", "password"}),
    "containers": ({"login": ["a"], "password": {"a": 1}}, {"login", "password"}),
    "booleans": ({"login": True, "password": False}, {"login", "password"}),
    "too long": ({"login": "a" * 255, "password": "b" * 4001}, {"login", "password"}),
    "a NUL": ({"login": "a\0", "password": "b"}, {"login"}),
    "an escape": ({"login": "a", "password": "\x1b[2J"}, {"password"}),
    "a newline": ({"login": "a\n", "password": "b"}, {"login"}),
    "a C1 control": ({"login": "\x85", "password": "b"}, {"login"}),
    "an unknown field": ({"login": "a", "password": "b", "admin": True}, {"admin"}),
    "a very long key": ({"login": "a", "password": "b", "k" * 5000: 1}, {"k" * 60}),
    "an empty key": ({"login": "a", "password": "b", "": 1}, {""}),
    "a NUL in a key": ({"password": "b", "a\0": 1}, {"a\0"}),
    "__proto__": (
        {"login": "a", "password": "b", "__proto__": {}, "__class__": 1},
        {"__proto__", "__class__"},
    ),
}


@pytest.mark.parametrize("body, fields", WRONG_SHAPE.values(), ids=WRONG_SHAPE)
def test_json_of_the_wrong_shape_is_refused(attack, body, fields):
    problem = post(attack, LOGIN, json.dumps(body).encode()).refused(422, "invalid")
    assert set(problem["errors"]) == fields
    assert all(
        isinstance(text, str) and text for texts in problem["errors"].values() for text in texts
    )


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 4000, "1e-999", "0." + "1" * 5000])
def test_a_huge_number_is_refused(attack, number):
    body = new_user()[:-1] + f', "wins": {number}, "avatar": {number}}}'.encode()
    assert set(post(attack, REGISTER, body).refused(422, "invalid")["errors"]) == {"wins", "avatar"}


def test_a_refusal_names_all_mistakes_at_once(attack):
    problem = post(attack, REGISTER, b'{"username": "a b", "email": 5, "rating": 1}').refused(
        422, "invalid"
    )
    assert set(problem["errors"]) == {"username", "email", "password", "rating"}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b"Content-Type:"],
        [b"Content-Type: text/plain"],
        [b"Content-Type: application/x-www-form-urlencoded"],
        [b"Content-Type: multipart/form-data; boundary=x"],
        [b"Content-Type: application/json, text/plain"],
        [b"Content-Type: application/jsonp"],
        [b"Content-Type: application/problem+json"],
        [b"Content-Type: \xff"],
        [b"Content-Type: ;application/json"],
    ],
)
def test_a_wrong_content_type_is_refused(attack, headers):
    ask(attack, "POST", REGISTER, *headers, body=new_user()).refused(415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", [b"APPLICATION/JSON", b"application/json; charset=utf-8", b" application/json ;x"]
)
def test_a_content_type_may_have_any_letter_case_and_parameters(attack, kind):
    ask(attack, "POST", LOGIN, b"Content-Type: " + kind, body=b"{}").refused(422, "invalid")


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"br", b"deflate, gzip", b"\xff"])
def test_a_compressed_body_is_refused(attack, coding):
    header = b"Content-Encoding: " + coding
    problem = post(attack, REGISTER, new_user(), header).refused(415, "unsupported_media_type")
    assert "compressed" in problem["detail"]


def test_a_body_with_the_identity_encoding_is_accepted(attack):
    post(attack, LOGIN, b"{}", b"Content-Encoding: Identity").refused(422, "invalid")


@pytest.mark.parametrize("method, path", [("POST", REGISTER), ("PATCH", "/users/me")])
def test_a_field_that_only_the_server_sets_is_refused_as_read_only(attack, victim, method, path):
    body = json.dumps({"rating": 3000, "wins": 1, "created_at": 5, "ratings": 1}).encode()
    token = b"Authorization: Bearer " + victim["token"].encode()
    errors = ask(attack, method, path, JSON, token, body=body).refused(422, "invalid")["errors"]
    read_only = ["This field is read-only."]
    assert [errors[name] for name in ("rating", "wins", "created_at")] == [read_only] * 3
    assert errors["ratings"] == ["Unknown field."]


def test_a_request_without_a_body_is_refused(attack):
    post(attack, REGISTER, None).refused(400, "bad_json")
    ask(attack, "POST", REGISTER).refused(415, "unsupported_media_type")


# -- bodies that are too large, too short or too slow


def padded(size):
    """Returns the body of a registration, padded to a size in bytes."""
    body = new_user()
    return body[:-1] + b" " * (size - len(body)) + b"}"


@pytest.mark.parametrize("size", [16385, 20_000, 200_000, 1_000_000])
def test_a_body_that_is_too_large_is_refused(attack, size):
    answer = post(attack, REGISTER, padded(size))
    assert "16384" in answer.refused(413, "too_large")["detail"]
    assert answer.headers["connection"] == "close"


def test_a_body_of_the_maximum_size_is_accepted(target):
    assert post(target, REGISTER, padded(16384)).status == 201


def test_a_chunked_body_that_is_too_large_is_refused(attack):
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    head = request("POST", REGISTER, JSON, CHUNKED, CLOSE)
    exchange(attack, head + chunk * 5 + b"0\r\n\r\n").refused(413, "too_large")


def test_a_chunked_body_is_accepted(attack):
    body = nobody()
    head = request("POST", LOGIN, JSON, CHUNKED, CLOSE)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    exchange(attack, head + chunks + b"0\r\n\r\n").refused(401, "bad_credentials")


@pytest.mark.parametrize(
    "method, path", [("GET", "/queues"), ("GET", "/nothing"), ("PUT", "/queues"), ("GET", "/")]
)
def test_a_body_that_is_too_large_is_refused_at_every_path(attack, method, path):
    ask(attack, method, path, body=b"x" * 20_000).refused(413, "too_large")


def test_a_body_without_end_is_cut_off(attack):
    """The server stops reading. It may reset the connection before the client reads the refusal."""
    sent = 0
    with socket.create_connection(("127.0.0.1", attack.port), timeout=20) as link:
        link.sendall(request("POST", REGISTER, JSON, length=10**9))
        with contextlib.suppress(ConnectionError):
            while sent < 10**8:
                sent += link.send(b" " * 65536)
    assert sent < 10**8


@pytest.mark.parametrize("cut", [1, 20])
@pytest.mark.parametrize("half", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_truncated_body_has_no_effect(attack, cut, half):
    body = new_user()
    with socket.create_connection(("127.0.0.1", attack.port), timeout=20) as link:
        # The bytes are a valid registration, but the content length announces more.
        link.sendall(request("POST", REGISTER, JSON, body=body, length=len(body) + cut))
        link.shutdown(half)
        with contextlib.suppress(ConnectionError):
            while link.recv(4096):
                pass
    # Passwords are hashed in order: after these, a registration would be complete.
    for _ in range(2):
        attack.http("POST", LOGIN, json.loads(nobody())).refused(401, "bad_credentials")
    name = json.loads(body)["username"]
    attack.http("GET", f"/users/{name}").refused(404, "not_found")


@pytest.mark.parametrize("first", [b"", b'{"username":'])
def test_a_body_that_does_not_arrive_times_out(attack, first):
    begun = time.monotonic()
    answer = exchange(attack, request("POST", REGISTER, JSON, body=first, length=500))
    answer.refused(408, "body_timeout")
    assert answer.headers["connection"] == "close" and time.monotonic() - begun > 0.9


def test_a_body_that_arrives_byte_by_byte_times_out(attack):
    body = new_user()
    head = request("POST", REGISTER, JSON, length=len(body))
    with socket.create_connection(("127.0.0.1", attack.port), timeout=20) as link:
        link.sendall(head)
        # So that no byte is in transit when the second ends and the answer arrives.
        link.settimeout(0.13)
        data = b""
        for i in range(len(body)):
            link.sendall(body[i : i + 1])
            with contextlib.suppress(TimeoutError):
                data = link.recv(65536)
                break
        link.settimeout(20)
        while chunk := link.recv(65536):
            data += chunk
    parse(data).refused(408, "body_timeout")


def test_a_slow_body_that_arrives_in_time_is_accepted(attack):
    body = nobody()
    head = request("POST", LOGIN, JSON, CLOSE, length=len(body))
    exchange(attack, head + body[:5], body[5:], pause=0.2).refused(401, "bad_credentials")


def test_a_client_that_expects_100_continue_gets_it(attack):
    body = nobody()
    with socket.create_connection(("127.0.0.1", attack.port), timeout=20) as link:
        link.sendall(request("POST", LOGIN, JSON, CLOSE, b"Expect: 100-continue", length=len(body)))
        assert link.recv(4096).startswith(b"HTTP/1.1 100 ")
        link.sendall(body)
        assert link.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_connection_stays_open_after_a_refusal(attack):
    """Of two requests in one packet, the first is refused and the second is answered."""
    first = request("POST", LOGIN, JSON, body=b"{")
    second = request("GET", "/health/live", CLOSE)
    with socket.create_connection(("127.0.0.1", attack.port), timeout=20) as link:
        link.sendall(first + second)
        data = b""
        while chunk := link.recv(65536):
            data += chunk
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"400", b"200"]


# -- paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "//users/me",
        "/users",
        "/users/",
        "/users//me",
        "/users/me/nothing",
        "/auth",
        "/auth/register/x",
        "/AUTH/LOGIN",
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/docs/ui/../../schema.yaml",
        "/schema.yaml",
        "/docs/ui/%2e%2e%2f%2e%2e%2fschema.yaml",
        "/trivia.py",
        "/users/%",
        "/users/%zz",
        "/users/%ff",
        "/users/%00",
        "/users/%2f",
        "/users/..%2fme",
        "/users/%ed%a0%80",
        "/users/%0d%0aX:%20y",
        "/leaderboards",
        "/games/a/b",
        "/users/me%2fexport",
        "/leaderboards/%ed%a0%80",
        "/users/{username}",
        "/users/%F0%9F%98%80",
    ],
)
def test_an_unknown_path_is_not_found(attack, victim, path):
    answer = ask(attack, "GET", path, b"Authorization: Bearer " + victim["token"].encode())
    answer.refused(404, "not_found")
    assert "x" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/users/me" + "/" * 5000,
        "/" * 30_000 + "a",
        "/a" * 20_000,
        "/users/" + "a" * 50_000,
        "/users/" + "%00" * 10_000,
        "/games/" + "../" * 10_000,
        "/queues/" + "/" * 900,
    ],
)
def test_a_very_long_path_does_no_harm(attack, path):
    answer = ask(attack, "GET", path)
    assert 400 <= answer.status < 500 or (answer.status, path[:8]) == (200, "/queues/"), answer.body


@pytest.mark.parametrize("path", ["/game/random", "/game/nothing", "/game/random?code=1"])
@pytest.mark.parametrize(
    "headers", [[], [b"Upgrade: websocket"], [b"Upgrade: h2c", b"Connection: upgrade"]]
)
def test_a_game_path_without_an_upgrade_is_refused_with_the_required_protocol(
    attack, path, headers
):
    answer = exchange(attack, request("GET", path, *headers, b"Connection: close"))
    answer.refused(426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"


ME = {"GET", "PATCH", "DELETE"}


@pytest.mark.parametrize(
    "method, path, allowed",
    [
        ("GET", REGISTER, {"POST"}),
        ("PUT", LOGIN, {"POST"}),
        ("HEAD", LOGIN, {"POST"}),
        ("POST", "/users/me", ME),
        ("PUT", "/users/me", ME),
        ("DELETE", "/queues", {"GET"}),
        ("POST", "/users/victim", {"GET"}),
        ("DELETE", "/users/victim", {"GET"}),
        ("PATCH", "/users/victim", {"GET"}),
        ("GET", "/auth/sessions", {"DELETE"}),
        ("TRACE", "/queues", {"GET"}),
        ("POST", "/", {"GET"}),
        ("POST", "/docs/openapi.json", {"GET"}),
        ("PUT", "/games/abcdefghijkl", {"GET"}),
        ("POST", "/leaderboards/wins", {"GET"}),
    ],
)
def test_a_wrong_method_is_refused(attack, victim, method, path, allowed):
    answer = ask(
        attack,
        method,
        path,
        b"Authorization: Bearer " + victim["token"].encode(),
        JSON,
        body=json.dumps({"password": PASSWORD}).encode(),
    )
    if method != "HEAD":
        answer.refused(405, "method_not_allowed")
    assert answer.status == 405
    assert set(re.split(", *", answer.headers["allow"])) - {"OPTIONS", "HEAD"} == allowed


@pytest.mark.parametrize(
    "path",
    ["/queues", "/", "/health/ready", "/leaderboards/wins", "/docs/openapi.json", "/nothing"],
)
def test_head_answers_as_get_without_a_body(attack, path):
    get, head = ask(attack, "GET", path), ask(attack, "HEAD", path)
    assert head.status == get.status and head.body == ""
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_needs_a_session_where_get_does(attack, victim):
    assert ask(attack, "HEAD", "/users/me").status == 401
    assert (
        ask(
            attack, "HEAD", "/users/me", b"Authorization: Bearer " + victim["token"].encode()
        ).status
        == 200
    )


@pytest.mark.parametrize(
    "path, allowed",
    [
        ("/users/me", ME),
        ("/users/me/", ME),
        (REGISTER, {"POST"}),
        ("/queues", {"GET"}),
        ("/users/victim", {"GET"}),
    ],
)
def test_options_lists_the_allowed_methods(attack, path, allowed):
    answer = ask(attack, "OPTIONS", path)
    assert (answer.status, answer.body) == (204, "")
    assert set(re.split(", *", answer.headers["allow"])) - {"OPTIONS", "HEAD"} == allowed


def test_options_of_an_unknown_path_is_not_found(attack):
    ask(attack, "OPTIONS", "/nothing").refused(404, "not_found")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /queues HTTP/9.9\r\n\r\n",
        b"FOO /queues HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /users/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /queues HTTP/1.1\r\nX\xff: y\r\n\r\n",
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET " + b"/a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /queues HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    ],
)
def test_input_that_is_not_http_does_no_harm(attack, data):
    with socket.create_connection(("127.0.0.1", attack.port), timeout=20) as link:
        with contextlib.suppress(ConnectionError):
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            assert re.match(rb"HTTP/1.1 [24]\d\d |$", link.recv(65536))


# -- queries


@pytest.mark.parametrize(
    "query, fields",
    [
        *(
            (f"limit={value}", {"limit"})
            for value in (
                "0",
                "101",
                "-1",
                "abc",
                "",
                "1.5",
                "1e1",
                "+5",
                "0x5",
                "%EF%BC%95",
                "%00",
                "5%0a",
                "9" * 16,
                "9" * 5000,
                "true",
                "1&limit=2",
                "1&limit=1",
                "[1]",
                "5;offset=1",
            )
        ),
        ("limit", {"limit"}),
        ("LIMIT=5", {"LIMIT"}),
        ("limit[]=5", {"limit[]"}),
        ("limit%00=1", {"limit\0"}),
        ("offset=-1", {"offset"}),
        ("offset=1000001", {"offset"}),
        ("around=", {"around"}),
        ("around=you", {"around"}),
        ("around=me&around=me", {"around"}),
        ("limit=0&offset=x&a=b", {"limit", "offset", "a"}),
        ("=1", {""}),
        ("nonsense=1", {"nonsense"}),
        ("%ff=1", {"\ufffd"}),
        ("%ed%a0%80=1", {"\ufffd" * 3}),
        ("k" * 3000, {"k" * 60}),
        ("&".join(f"k{i}=1" for i in range(50)), {f"k{i}" for i in range(50)}),
    ],
)
def test_an_invalid_query_is_refused(attack, query, fields):
    problem = ask(attack, "GET", f"/leaderboards/wins?{query}").refused(422, "invalid")
    assert set(problem["errors"]) == fields


@pytest.mark.parametrize(
    "query",
    [
        "",
        "&",
        "&&",
        "limit=5",
        "limit=%35",
        "limit=005",
        "offset=1000000&limit=100",
        "limit=5#around=x",
    ],
)
def test_a_valid_query_is_accepted(attack, query):
    assert ask(attack, "GET", f"/leaderboards/wins?{query}").json["entries"] == []


# -- authorization


def test_a_route_about_the_player_requires_a_valid_token(attack, victim):
    token = victim["token"].encode()
    for value in (
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + token,
        token,
        b"Bearer" + token,
        b"Token " + token,
        b"Bearer, " + token,
        b"Bearer " + token + b" x",
        b"Bearer " + token[:-1],
        b"Bearer " + token + b"A",
        b"Bearer \xff\xfe",
        b"Bearer null",
        b"Bearer " + b"A" * 40,
        b"Bearer " + b"A" * 60_000,
        b"Bearer " + token[:12] + b"*" * 32,
        b"Bearer " + token.swapcase(),
        b"Bearer '" + token[1:-1] + b"'",
    ):
        headers = [] if value is None else [b"Authorization: " + value]
        answer = ask(attack, "GET", "/users/me", *headers)
        answer.refused(401, "not_authenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer   "])
def test_the_authorization_scheme_may_have_any_letter_case(attack, victim, scheme):
    answer = ask(attack, "GET", "/users/me", b"Authorization: " + scheme + victim["token"].encode())
    assert answer.json == victim["user"]


def test_a_token_outside_the_authorization_header_is_ignored(attack, victim):
    token = victim["token"]
    for path, headers in [
        (f"/users/me?token={token}", []),
        (f"/users/me?access_token={token}", []),
        ("/users/me", [f"Cookie: token={token}".encode()]),
        ("/users/me", [f"Sec-WebSocket-Protocol: trivia.v1, bearer.{token}".encode()]),
    ]:
        ask(attack, "GET", path, *headers).refused(401, "not_authenticated")


def test_an_expired_and_a_revoked_session_are_refused(target):
    expired, revoked = target.register()["token"], target.register()["token"]
    user = f"user:{{{expired[:12]}}}"
    [field] = [key for key in target.redis.hkeys(user) if key.startswith("session:")]
    target.redis.hset(user, field, int(time.time()) - 1)
    assert target.http("POST", "/auth/logout", token=revoked).status == 204
    for token in (expired, revoked):
        for method, path in [("GET", "/users/me"), ("DELETE", "/users/me"), ("PATCH", "/users/me")]:
            body = {"password": PASSWORD} if method == "DELETE" else {}
            target.http(method, path, body, token).refused(401, "not_authenticated")


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("PATCH", "/users/me", {"username": "other"}),
        ("DELETE", "/users/me", {"password": PASSWORD}),
        ("POST", "/auth/password", {"password": PASSWORD, "new_password": "x" * 9}),
        ("DELETE", "/auth/sessions", None),
        ("POST", "/auth/logout", None),
    ],
)
def test_a_request_without_a_session_has_no_effect(attack, method, path, body):
    attack.http(method, path, body).refused(401, "not_authenticated")
    attack.http(method, path, body, token="A" * 40).refused(401, "not_authenticated")


@pytest.mark.parametrize(
    "header",
    [
        b"Cookie: \xff;=;;a",
        b"Forwarded: ;;;for=",
        b"X-Forwarded-For: ,,\xff",
        b"Accept: \xff;q=x",
        b"Host: \xff",
        b"X-Forwarded-Proto: gopher",
        b"Accept-Encoding: \xff",
        b"X-HTTP-Method-Override: DELETE",
        b"Origin: \xff",
        b"Content-Encoding: gzip",
        b"Range: bytes=-1",
        b"If-None-Match: *",
        b"X-Scheme: \xff",
        b"X-Forwarded-Host: \xff",
        b"X-Forwarded-Port: x",
    ],
)
def test_a_strange_header_does_no_harm(attack, victim, header):
    answer = ask(
        attack, "GET", "/users/me", b"Authorization: Bearer " + victim["token"].encode(), header
    )
    assert answer.status == 200 and answer.json == victim["user"]


# -- headers for browsers


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("GET", "/queues", None),
        ("GET", "/nothing", None),
        ("GET", "/users/me", None),
        ("PUT", "/queues", None),
        ("GET", "/", None),
        ("GET", "/docs", None),
        ("GET", "/docs/openapi.json", None),
        ("OPTIONS", "/queues", None),
        ("GET", "/docs/ui/swagger-ui.css", None),
        ("POST", LOGIN, b"{"),
        ("POST", LOGIN, b"{}"),
        ("POST", LOGIN, b"x" * 20_000),
    ],
)
def test_every_answer_has_the_security_headers(attack, method, path, body):
    answer = ask(attack, method, path, JSON, body=body)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    if answer.headers.get("content-type", "").startswith("text/html"):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_private_answers_are_not_cached(attack, victim):
    for path in ("/users/me", "/users/me/export", "/users/me/games"):
        assert (
            attack.http("GET", path, token=victim["token"]).headers["cache-control"] == "no-store"
        )


def cors(answer):
    return {
        name: value
        for name, value in answer.headers.items()
        if name.lower().startswith("access-control-")
    }


WANTED = b"Access-Control-Request-Headers: authorization, content-type, x-evil"
PREFLIGHT = [b"Access-Control-Request-Method: PATCH", WANTED]


@pytest.mark.parametrize(
    "origin",
    [b"https://evil.example.org", b"null", b"https://play.example.org", b"http://localhost"],
)
def test_no_origin_may_read_answers_by_default(server, origin):
    for method, path, headers in [
        ("GET", "/queues", []),
        ("OPTIONS", "/users/me", PREFLIGHT),
        ("GET", "/nothing", []),
        ("GET", "/users/me", []),
    ]:
        assert cors(ask(server, method, path, b"Origin: " + origin, *headers)) == {}


@pytest.mark.parametrize("origin", ORIGINS)
def test_an_origin_of_the_schema_may_read_answers(attack, victim, origin):
    header = f"Origin: {origin}".encode()
    for path, headers, status in [
        ("/queues", [], 200),
        ("/nothing", [], 404),
        ("/users/me", [], 401),
        ("/users/me", [b"Authorization: Bearer " + victim["token"].encode()], 200),
    ]:
        answer = ask(attack, "GET", path, header, *headers)
        exposed = re.split(", *", answer.headers["access-control-expose-headers"].lower())
        assert {"retry-after", "x-request-id"} <= set(exposed)
        assert answer.status == status and answer.headers["access-control-allow-origin"] == origin
        assert (
            "origin" in answer.headers["vary"].lower()
            and "access-control-allow-credentials" not in answer.headers
        )


def test_an_origin_of_the_schema_may_read_the_refusal_of_a_large_body(attack):
    answer = post(attack, LOGIN, b"x" * 20_000, b"Origin: " + ORIGINS[0].encode())
    answer.refused(413, "too_large")
    assert answer.headers["access-control-allow-origin"] == ORIGINS[0]


@pytest.mark.parametrize(
    "path, method",
    [("/users/me", "PATCH"), ("/users/me", "DELETE"), (REGISTER, "POST"), ("/queues", "GET")],
)
def test_a_preflight_of_an_origin_of_the_schema_is_granted(attack, path, method):
    answer = ask(
        attack,
        "OPTIONS",
        path,
        f"Origin: {ORIGINS[0]}".encode(),
        f"Access-Control-Request-Method: {method}".encode(),
        WANTED,
    )
    assert answer.status == 204 and answer.headers["access-control-allow-origin"] == ORIGINS[0]
    assert method in answer.headers["access-control-allow-methods"]
    allowed = set(re.split(", *", answer.headers["access-control-allow-headers"].lower()))
    assert allowed == {"authorization", "content-type"}


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.org",
        "https://play.example.org.evil.com",
        "http://play.example.org",
        "https://play.example.org:444",
        "https://PLAY.example.org",
        "https://playXexample.org",
        "null",
    ],
)
def test_an_origin_that_only_resembles_one_of_the_schema_may_not_read_answers(attack, origin):
    for method, path, headers in [("GET", "/queues", []), ("OPTIONS", "/users/me", PREFLIGHT)]:
        assert cors(ask(attack, method, path, f"Origin: {origin}".encode(), *headers)) == {}


# -- origins of WebSockets


def dial(server, token, *origin):
    """Returns the status of a WebSocket handshake; 101 means accepted."""
    headers = [("Authorization", f"Bearer {token}"), *(("Origin", one) for one in origin)]
    try:
        with connect(
            f"ws://127.0.0.1:{server.port}/game/party", additional_headers=headers, open_timeout=20
        ):
            return 101
    except InvalidStatus as error:
        problem = json.loads(error.response.body)
        assert (
            problem["status"] == error.response.status_code and problem["code"] == "origin_refused"
        )
        return error.response.status_code


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.org",
        "null",
        "https://play.example.org.evil.com",
        "file://",
        "http://127.0.0.1",
        "https://evil.example.org/127.0.0.1",
    ],
)
def test_a_socket_from_a_page_of_another_origin_is_refused(attack, victim, origin):
    assert dial(attack, victim["token"], origin) == 403


def test_a_socket_from_an_allowed_page_is_accepted(attack, victim):
    for origin in ([], ORIGINS[:1], ORIGINS[1:], [f"http://127.0.0.1:{attack.port}"]):
        assert dial(attack, victim["token"], *origin) == 101
        wait_until(lambda: not attack.redis.hexists("seats:{lobby}", victim["token"][:12]))


def test_a_socket_from_a_page_of_another_origin_is_refused_by_default(server):
    token = server.register()["token"]
    assert dial(server, token, ORIGINS[0]) == 403
    assert dial(server, token, f"http://127.0.0.1:{server.port}") == 101
