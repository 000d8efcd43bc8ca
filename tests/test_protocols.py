"""Hostile connections: whatever a connection sends, other players do not wait, and memory stays
bounded."""

import contextlib
import json
import re
import socket
import sys
import threading
import time

import pytest
from websockets.exceptions import ConnectionClosed

from conftest import Server, edited_schema, loop_seconds, unique_name, wait_until

TUNED = [sys.executable, "trivia.py", "--port", "0"]
MEGABYTE = 2**20
LONGEST_WORK_S = (
    0.25  # CPU time of the event loop while others wait: on an idle machine, their wait
)
LONGEST_WAIT_S = 10  # on a busy machine
GROWTH = 12 * MEGABYTE  # of a worker under attack, with the memory for its other work


@pytest.fixture(scope="module", params=[None, TUNED], ids=["uvicorn", "trivia.py"])
def either(request):
    """Both ways to run the server."""
    running = Server(edited_schema(answer_seconds=60), request.param)
    try:
        yield running.start()
        assert not re.search("Traceback|ERROR", running.log), running.log
    finally:
        running.close()


@pytest.fixture(scope="module")
def bystander(either):
    """A phone that waits in a queue."""
    phone = either.phone(queue="rated")
    phone.expect("queued")
    return phone


def resident_bytes(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) * 1024


@contextlib.contextmanager
def watched(server, bystander):
    """Checks another player's waits for a pong, the server's CPU time in them, and its memory."""
    done = threading.Event()
    waits, works = [0.0], [0.0]

    def watch():
        while not done.is_set():
            began, worked = time.monotonic(), loop_seconds(server)
            bystander.send("ping")
            bystander.expect("pong", 60)
            waits.append(time.monotonic() - began)
            works.append(loop_seconds(server) - worked)
            time.sleep(0.15)  # the limit is ten messages a second

    bystander.send("ping")
    bystander.expect("pong")
    before = resident_bytes(server)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
        grown = resident_bytes(server) - before
    finally:
        done.set()
        thread.join(90)
    assert max(works) < LONGEST_WORK_S and max(waits) < LONGEST_WAIT_S, (max(works), max(waits))
    assert grown < GROWTH, grown


def link_to(server, seconds=20):
    return socket.create_connection(("127.0.0.1", server.port), timeout=seconds)


def send_until_refused(link, data):
    """Sends until the server takes no more."""
    with contextlib.suppress(OSError):
        link.sendall(data)


def read_to_end(link):
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := link.recv(65536):
            data += chunk
    return data


# ---- frames


def frame(first, payload=b""):
    """Builds a masked frame of at most 125 bytes. The mask changes nothing."""
    return bytes((first, 0x80 | len(payload))) + bytes(4) + payload


FLOODS = {  # {name: (first frame, repeated frame)}
    "empty pings": (b"", frame(0x89)),
    "long pings": (b"", frame(0x89, b"x" * 125)),
    "empty pongs": (b"", frame(0x8A)),
    "empty fragments of a message without an end": (frame(0x01), frame(0x00)),
    "short fragments of a message without an end": (frame(0x01, b'"'), frame(0x00, b"x")),
    "pings within a message": (frame(0x01, b"["), frame(0x89, b"x")),
    "messages": (b"", frame(0x81, b'{"type":"ping"}')),
}


@pytest.mark.parametrize("beginning, repeated", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_frames_closes_with_4429_and_other_players_do_not_wait(
    either, bystander, beginning, repeated
):
    flood = beginning + repeated * (2 * MEGABYTE // len(repeated))
    phone = either.phone(queue="party")
    phone.expect("queued")
    with watched(either, bystander):
        send_until_refused(phone.socket.socket, flood)
        phone.expect_close(4429)


def test_a_stream_of_pings_is_closed_however_often_it_comes_back(either, bystander):
    session = either.register()
    with watched(either, bystander):
        for _ in range(5):
            phone = either.phone(session=session, queue="party")
            with contextlib.suppress(OSError, ConnectionClosed):
                while True:
                    phone.socket.socket.sendall(frame(0x89) * 800)
                    time.sleep(0.01)
            phone.expect_close(4429)


def test_the_server_ignores_frames_after_its_close(either, bystander):
    phone = either.phone(queue="party")
    phone.expect("queued")
    with watched(either, bystander):
        send_until_refused(phone.socket.socket, frame(0x89, b"x") * 20_000)
        phone.expect_close(4429)
        send_until_refused(phone.socket.socket, frame(0x81, b"[]") * 100_000)


def test_a_few_pings_and_fragments_are_allowed(either):
    phone = either.phone(queue="party")
    phone.expect("queued")
    for i in range(10):
        with phone.socket.send_context():
            phone.socket.protocol.send_ping(b"%d" % i)
    text = json.dumps({"type": "ping", "client_ms": 7})
    phone.socket.send([text[i : i + 4] for i in range(0, len(text), 4)])
    assert phone.expect("pong")["client_ms"] == 7
    phone.close()


def test_frames_sent_with_the_handshake_are_handled_after_it(either):
    session = either.register()
    request = (
        "GET /game/party HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {session['token']}\r\n\r\n"
    ).encode()
    with link_to(either) as link:
        link.sendall(request + frame(0x81, b'{"type":"ping","client_ms":5}') + frame(0x88))
        data = read_to_end(link)
    assert data.startswith(b"HTTP/1.1 101 ") and b'"client_ms":5' in data


def test_a_frame_of_more_than_64_kib_closes_with_1009(either):
    phone = either.phone(queue="party")
    phone.expect("queued")
    phone.socket.socket.sendall(b"\x81\xff" + (2**40).to_bytes(8) + bytes(4))
    phone.expect_close(1009)


# ---- requests


def head(*lines, first="GET /health/live HTTP/1.1"):
    return "\r\n".join([first, "Host: x", *lines, "", ""]).encode()


def read_answer(link):
    """Reads the next response; its body has a length, and may come in a segment of its own."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += link.recv(65536)
    length = re.search(rb"(?i)content-length: (\d+)", data)
    whole = data.index(b"\r\n\r\n") + 4 + int(length[1] if length else 0)
    while len(data) < whole:
        data += link.recv(65536)
    return data


def statuses(data):
    return re.findall(rb"HTTP/1\.1 (\d\d\d) ", data)


def test_pipelined_requests_are_answered_in_turn_and_other_players_do_not_wait(either, bystander):
    count = 1000
    flood = head() * (count - 1) + head("Connection: close")
    with watched(either, bystander), link_to(either, 60) as link:
        sender = threading.Thread(target=send_until_refused, args=(link, flood))
        sender.start()
        data = read_to_end(link)
        sender.join(10)
    assert statuses(data) == [b"200"] * count


def test_pipelined_requests_with_unread_responses_do_not_fill_memory(either, bystander):
    request = head(first="GET /docs/openapi.json HTTP/1.1")
    with watched(either, bystander), link_to(either, 2) as link:
        send_until_refused(link, request * (4 * MEGABYTE // len(request)))


def test_unread_responses_share_their_memory(either, bystander):
    request = head(first="GET /docs/ui/swagger-ui-bundle.js HTTP/1.1")
    with watched(either, bystander), contextlib.ExitStack() as stack:
        for _ in range(60):
            link = stack.enter_context(link_to(either))
            link.sendall(request)
        for _ in range(3):  # by now the server has sent as much as these connections take
            assert either.http("GET", "/health/live").status == 200


HEADS = {
    "tiny lines": b"GET /queues HTTP/1.1\r\n" + b"a:\r\n" * MEGABYTE,
    "a line without an end": b"GET /queues HTTP/1.1\r\nA: " + b"x" * 40 * MEGABYTE,
    "a name without an end": b"GET /queues HTTP/1.1\r\n" + b"x" * 4 * MEGABYTE,
    "a path without an end": b"GET /" + b"x" * 4 * MEGABYTE,
    "long lines": b"GET /queues HTTP/1.1\r\n" + (b"A: " + b"x" * 8000 + b"\r\n") * 500,
    "trailers": head("Transfer-Encoding: chunked", first="POST /auth/login HTTP/1.1")
    + b"0\r\n"
    + b"a: b\r\n" * MEGABYTE,
    "a trailer without an end": head(
        "Transfer-Encoding: chunked", first="POST /auth/login HTTP/1.1"
    )
    + b"0\r\na: "
    + b"x" * 4 * MEGABYTE,
    "an extension of a chunk": head("Transfer-Encoding: chunked", first="POST /auth/login HTTP/1.1")
    + b"1;"
    + b"x" * 4 * MEGABYTE,
    "empty lines": b"\r\n" * 2 * MEGABYTE,
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
def test_a_head_that_is_too_large_is_refused_and_other_players_do_not_wait(either, bystander, data):
    with watched(either, bystander), link_to(either) as link:
        send_until_refused(link, data)
        answer = read_to_end(link)
    assert statuses(answer) == [b"431"] or not answer  # a reset may overtake the response
    if answer:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "head_too_large"


def test_tiny_chunks_of_a_body_do_not_delay_other_players(either, bystander):
    request = head("Transfer-Encoding: chunked", first="POST /auth/login HTTP/1.1")
    with watched(either, bystander), link_to(either) as link:
        send_until_refused(link, request + b"1\r\nx\r\n" * 2 * MEGABYTE)
        assert statuses(read_to_end(link)) in ([b"413"], [])


def test_headers_that_do_not_arrive_in_time_end_the_connection(either):
    """This includes later requests. A complete request before them gets its response."""
    beginnings = [b"", b"\r\n", b"GET /health", head()[:-2], head() + b"GET / HTTP/1.1\r\nA: b"]
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(link_to(either, 40)) for _ in beginnings]
        for link, beginning in zip(links, beginnings, strict=True):
            link.sendall(beginning)
        began = time.monotonic()
        answers = [read_to_end(link) for link in links]
        assert time.monotonic() - began < 30
    assert [statuses(answer) for answer in answers] == [[], [], [], [], [b"200"]]


def test_nonsense_after_requests_is_refused_after_their_responses(either):
    with link_to(either) as link:
        link.sendall(head() + head() + b"nonsense\r\n\r\n")
        assert statuses(read_to_end(link)) in ([b"200", b"200"], [b"200", b"200", b"400"])


# ---- offers to upgrade


OFFERS = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQA"],
    "h2c after keep-alive": ["Connection: keep-alive, upgrade", "Upgrade: H2C"],
    "two lines": ["Connection: Upgrade", "Connection: keep-alive", "Upgrade: h2c"],
    "TLS": ["Connection: upgrade", "Upgrade: TLS/1.0"],
    "several": ["Connection: upgrade", "Upgrade: h2c, websocket"],
    "a WebSocket by POST": ["Connection: upgrade", "Upgrade: websocket"],
}


def new_user():
    name = unique_name()
    user = {"username": name, "email": f"{name}@example.org", "password": "correct horse"}
    return json.dumps(user).encode()


def as_chunks(body):
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + (
        b"0\r\n\r\n"
    )


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("way", ["at once", "in two", "chunked", "on request", "later"])
def test_an_offered_upgrade_is_ignored_and_the_body_is_read(either, offer, way):
    body = new_user()
    length = "Transfer-Encoding: chunked" if way == "chunked" else f"Content-Length: {len(body)}"
    lines = ["Content-Type: application/json", length, *offer]
    if way == "on request":
        lines.append("Expect: 100-continue")
    request = head(*lines, first="POST /auth/register HTTP/1.1")
    with link_to(either) as link:
        if way == "later":  # as the second request of the connection
            link.sendall(head())
            assert statuses(read_answer(link)) == [b"200"]
        link.sendall(request + body if way == "at once" else request)
        if way == "on request":
            assert statuses(read_answer(link)) == [b"100"]
        if way != "at once":
            time.sleep(0.05)
            link.sendall(as_chunks(body) if way == "chunked" else body)
        answer = read_answer(link)
        assert statuses(answer) == [b"201"], answer
        link.sendall(head(*offer, "Connection: close"))  # the connection is still open
        assert statuses(read_to_end(link)) == [b"200"]


def test_an_upgrade_over_http_1_0_is_ignored(either):
    lines = ["Connection: upgrade", "Upgrade: websocket"]
    with link_to(either) as link:
        link.sendall(head(*lines, first="GET /health/live HTTP/1.0"))
        assert statuses(read_to_end(link)) == [b"200"]


def test_a_request_for_a_tunnel_is_refused(either):
    with link_to(either) as link:
        link.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        assert statuses(read_to_end(link)) == [b"400"]


def test_the_bounded_protocols_serve_whatever_options_uvicorn_gets():
    """uvicorn's own options for protocols have no effect."""
    options = ["--http", "h11", "--ws", "wsproto"]
    command = [sys.executable, "-m", "uvicorn", "trivia:app", "--port", "0", *options]
    running = Server(command=command)
    try:
        running.start()
        with link_to(running) as link:
            link.sendall(HEADS["tiny lines"][:400_000])
            assert statuses(read_to_end(link)) == [b"431"]
        phone = running.phone(queue="party")
        send_until_refused(phone.socket.socket, frame(0x89) * 100_000)
        phone.expect_close(4429)
        wait_until(lambda: running.http("GET", "/health/ready").status == 200)
    finally:
        running.close()
