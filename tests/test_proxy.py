"""nginx with TLS in front of the server. The tests change only paths, ports and times of
examples/nginx.conf."""

import contextlib
import http.client
import json
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import trivia
from conftest import (
    FOLDER,
    ROOT,
    Answer,
    Phone,
    Server,
    at_once,
    debian_program,
    edited_schema,
    play_all,
    shipped_tree,
    unique_name,
    wait_until,
)

CONF = (ROOT / "examples" / "nginx.conf").read_text()
BY_THE_PROXY = "An answer of the proxy."


def free_ports():
    """Returns two ports in a row, outside of the kernel's range of ephemeral ports."""
    while True:
        port = secrets.choice(range(10_000, 30_000, 2))
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("", port))
            other.bind(("", port + 1))
            return port, port + 1


class Proxy:
    """nginx with the shipped configuration. `edits` are further replacements in its text."""

    def __init__(self, server, **edits):
        self.server, self.edits, self.process = server, edits, None
        program, self.openssl = (
            debian_program("nginx", "nginx"),
            debian_program("openssl", "openssl"),
        )
        self.folder = Path(tempfile.mkdtemp(prefix="nginx-", dir=FOLDER))
        self.port, self.plain_port = free_ports()
        self.file, self.tls = self.folder / "nginx.conf", self._certificate()
        # websockets uses a socket in two threads, and Python 3.11 has no lock for that. With TLS
        # 1.3, the ticket after the handshake is read while the request is written, and 1 of 500
        # requests is lost.
        self.phone_tls = ssl.create_default_context(cafile=self.folder / "fullchain.pem")
        self.phone_tls.maximum_version = ssl.TLSVersion.TLSv1_2
        self.file.write_text(self._text())
        self.command = [
            program,
            "-p",
            self.folder,
            "-c",
            self.file,
            "-e",
            self.folder / "error.log",
        ]

    def _certificate(self):
        subprocess.run(
            [
                self.openssl,
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=trivia.example.org",
                "-addext",
                "subjectAltName=DNS:trivia.example.org,IP:127.0.0.1",
                "-keyout",
                "privkey.pem",
                "-out",
                "fullchain.pem",
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
        )
        return ssl.create_default_context(cafile=self.folder / "fullchain.pem")

    def _text(self):
        text, folder = CONF, str(self.folder)
        places = {
            "/etc/letsencrypt/live/trivia.example.org": folder,
            "/var/www/html": folder,
            "/var/log/nginx": folder,
            "/run/nginx.pid": f"{folder}/pid",
            "127.0.0.1:8000 ": f"127.0.0.1:{self.server.port} ",
            "listen 443 ": f"listen {self.port} ",
            "listen [::]:443 ": f"listen [::]:{self.port} ",
            "listen 80 ": f"listen {self.plain_port} ",
            "listen [::]:80 ": f"listen [::]:{self.plain_port} ",
            # nginx creates these folders, though it writes nothing there. In Debian's place for
            # them, it would need root.
            "access_log off;": "access_log off;"
            + "".join(
                f"{kind}_temp_path {folder};"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            ),
        }
        for old, new in (places | self.edits).items():
            assert old in text, old
            text = text.replace(old, new)
        return text if Path("/proc/net/if_inet6").exists() else re.sub(r"listen \[::\].*", "", text)

    def start(self):
        self.process = subprocess.Popen([*self.command, "-g", "daemon off;"])
        wait_until(self._answers)
        return self

    def _answers(self):
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError):  # it listens before its workers accept requests
            return self.http("GET", "/health/ready")

    @property
    def log(self):
        return (self.folder / "error.log").read_text()

    def workers(self):
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def http(self, method, path, body=None, address="127.0.0.1", headers=None, raw=None):
        """Sends one request from this address of the host."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=30, context=self.tls, source_address=(address, 0)
        )
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(
                method, path, data, {"Content-Type": "application/json"} | (headers or {})
            )
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read().decode())

    def raw(self, protocol="http/1.1"):
        """Opens a TLS connection, for tests that send no proper request."""
        tls = ssl.create_default_context(cafile=self.folder / "fullchain.pem")
        tls.set_alpn_protocols([protocol])
        return tls.wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), timeout=30),
            server_hostname="127.0.0.1",
        )

    def phone(self, session=None, **options):
        return SecurePhone(self, session or self.server.register(), **options)

    def close(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            print(self.log)  # pytest shows the output of failed tests
        shutil.rmtree(self.folder)


class SecurePhone(Phone):
    """A phone in front of nginx. It offers compression, as browsers do."""

    def __init__(self, proxy, session, address="127.0.0.1", **options):
        self.address = address
        super().__init__(proxy, session, **options)

    def connect(self, queue=None):
        self.socket = connect(
            f"wss://127.0.0.1:{self.server.port}/game/{queue or self.queue}",
            ssl=self.server.phone_tls,
            additional_headers=self.headers,
            subprotocols=self.subprotocols,
            open_timeout=20,
            close_timeout=2,
            source_address=(self.address, 0),
            compression="deflate",
        ).__enter__()
        return self


COMMAND = [sys.executable, "trivia.py", "--port", "0"]


@pytest.fixture(scope="module")
def shared():
    """A server, started by the same command as the systemd unit."""
    server = Server(edited_schema(), command=COMMAND)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="module")
def proxy(shared):
    """nginx in front of the shared server."""
    made = Proxy(shared)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def make_proxy():
    """Starts further proxies."""
    with contextlib.ExitStack() as made:

        def make(server, **edits):
            proxy = Proxy(server, **edits)
            made.callback(proxy.close)
            return proxy.start()

        yield make


@pytest.fixture
def mortal(make_server, make_proxy):
    """nginx in front of a server of its own, which the test may stop."""
    return make_proxy(make_server(edited_schema(), command=COMMAND))


def some_address():
    """Returns a random loopback address, which almost surely no other test uses."""
    return "127." + ".".join(str(1 + secrets.randbelow(250)) for _ in range(3))


def problem(answer, status, code):
    """Checks that nginx itself has refused the request, in the form of the server's problems."""
    assert answer.refused(status, code)["detail"] == BY_THE_PROXY
    return answer


# ---- games


def test_a_game_is_played_over_tls_without_compression(mortal):
    session = mortal.server.register()
    phones = [
        mortal.phone(),
        mortal.phone(session, headers={}, subprotocols=["trivia.v1", f"bearer.{session['token']}"]),
    ]
    ends = play_all(phones)
    assert [end["reason"] for end in ends] == ["finished"] * 2
    assert [phone.socket.protocol.extensions for phone in phones] == [[], []]


def test_only_pages_of_this_host_can_connect(proxy):
    session = proxy.server.register()
    token = {"Authorization": f"Bearer {session['token']}"}
    proxy.phone(session, headers=token | {"Origin": f"https://127.0.0.1:{proxy.port}"}).expect(
        "queued"
    )
    with pytest.raises(InvalidStatus) as refused:
        proxy.phone(session, headers=token | {"Origin": "https://elsewhere.example.org"})
    assert refused.value.response.status_code == 403


def test_a_reload_of_nginx_disconnects_no_players(mortal):
    phones = mortal.phone(), mortal.phone()
    old = mortal.workers()
    phones[0].expect("start")
    mortal.process.send_signal(signal.SIGHUP)
    wait_until(lambda: mortal.workers() - old)
    assert mortal.http("GET", "/health/ready").status == 200
    assert [end["reason"] for end in play_all(phones)] == ["finished"] * 2
    for phone in phones:
        phone.close()
    wait_until(lambda: not mortal.workers() & old)


def test_a_restart_of_the_server_reaches_the_phone_with_its_close_code(mortal):
    phone = mortal.phone()
    phone.expect("queued")
    mortal.server.process.terminate()
    phone.expect_close(1012)


# ---- addresses


def test_the_server_sees_the_address_of_a_phone_and_no_header_can_forge_it(proxy):
    """After too many guesses an address is refused, even with forged headers. Others are not."""
    name, here, there = proxy.server.register()["user"]["username"], some_address(), some_address()

    def guess(address, **headers):
        return proxy.http(
            "POST", "/auth/login", {"login": name, "password": "wrong"}, address, headers
        ).status

    assert {guess(here) for _ in range(10)} == {401}
    assert guess(here) == 429
    assert guess(here, **{"X-Forwarded-For": there}) == 429
    assert guess(here, **{"X-Real-IP": there, "Forwarded": f"for={there}"}) == 429
    assert guess(there, **{"X-Forwarded-For": here}) == 401


def test_a_client_can_not_choose_the_request_id_in_the_log(proxy):
    answer = proxy.http("GET", "/health/ready", headers={"X-Request-Id": "0" * 32})
    assert (
        re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        and answer.headers["x-request-id"] != "0" * 32
    )


def test_an_address_that_sends_many_passwords_is_limited(proxy):
    here, there = some_address(), some_address()

    def guess(address):
        return proxy.http(
            "POST", "/auth/login", {"login": unique_name(), "password": "wrong"}, address
        )

    answers = at_once(80, lambda i: guess(here))
    refused = [answer for answer in answers if answer.status == 429]
    assert 80 - len(refused) >= 51 and refused
    assert problem(refused[0], 429, "too_many_attempts").headers["retry-after"] == "1"
    assert guess(there).status == 401
    assert here not in proxy.log
    assert proxy.http("GET", "/health/ready", address=here).status == 200


def test_the_connections_of_one_address_are_limited(shared, make_proxy):
    here, there = some_address(), some_address()
    proxy = make_proxy(shared, **{"limit_conn connections 1000": "limit_conn connections 3"})
    phones = [proxy.phone(address=here) for _ in range(3)]
    with pytest.raises(InvalidStatus) as refused:
        proxy.phone(address=here)
    assert refused.value.response.status_code == 429
    assert proxy.http("GET", "/health/ready", address=there).status == 200
    phones[0].close()
    wait_until(lambda: proxy.http("GET", "/health/ready", address=here).status == 200)


# ---- bounds


@pytest.mark.parametrize(
    "lines", [["X: " + "x" * 5000], ["X: " + "x" * 3000] * 8], ids=["a long line", "many"]
)
def test_huge_headers_do_not_reach_the_server(proxy, lines):
    with proxy.raw() as client:
        client.sendall(
            "\r\n".join(["GET /health/ready HTTP/1.1", "Host: x", *lines, "", ""]).encode()
        )
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("sent", [b"", b"GET /health/ready HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_headers_that_do_not_arrive_in_time_end_the_connection(shared, make_proxy, sent):
    proxy = make_proxy(shared, **{"client_header_timeout 10s": "client_header_timeout 1s"})
    with proxy.raw() as client:
        client.sendall(sent)
        client.settimeout(5)
        assert client.recv(100) == b""


def test_the_server_refuses_a_large_body_and_nginx_a_huge_one(proxy):
    def send(size):
        return proxy.http("POST", "/auth/login", raw=b"x" * size)

    assert send(20_000).refused(413, "too_large")["detail"] != BY_THE_PROXY
    problem(send(70 * 1024), 413, "too_large")


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/ops", "/metrics/", "//metrics", "/%6detrics", "/health/../metrics", "/ops?x=1"],
)
def test_pages_for_operators_are_not_served_outside(proxy, path):
    problem(proxy.http("GET", path), 404, "not_found")


# ---- the server is down


def test_requests_to_a_server_that_is_down_fail_at_once(mortal):
    session = mortal.server.register()
    mortal.server.stop()
    before = time.monotonic()
    assert (
        problem(mortal.http("GET", "/health/ready"), 502, "unavailable").headers["retry-after"]
        == "1"
    )
    with pytest.raises(InvalidStatus) as refused:
        mortal.phone(session)
    assert refused.value.response.status_code == 502
    assert time.monotonic() - before < 5


def test_requests_to_a_server_that_hangs_fail_in_time(make_server, make_proxy):
    server = make_server(edited_schema(), command=COMMAND)
    proxy = make_proxy(
        server,
        **{
            "proxy_read_timeout 20s": "proxy_read_timeout 1s",
            "proxy_read_timeout 60s": "proxy_read_timeout 2s",
        },
    )
    phone = proxy.phone()
    phone.expect("queued")
    server.kill(signal.SIGSTOP)
    problem(proxy.http("GET", "/health/ready"), 504, "unavailable")
    with pytest.raises(ConnectionClosed):
        phone.socket.recv(timeout=10)


# ---- redirects, headers and numbers


def test_plain_http_is_redirected_to_https(proxy):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.plain_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/auth/login?a=1", b"{}")
        answer = connection.getresponse()
    assert (answer.status, answer.headers["location"]) == (
        308,
        "https://trivia.example.org/auth/login?a=1",
    )


def test_acme_challenges_are_served_over_plain_http(proxy):
    folder = proxy.folder / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True)
    (folder / "proof").write_text("yes")
    connection = http.client.HTTPConnection("127.0.0.1", proxy.plain_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/.well-known/acme-challenge/proof")
        assert connection.getresponse().read() == b"yes"


def test_http_2_is_supported(proxy):
    with proxy.raw("h2") as client:
        assert client.selected_alpn_protocol() == "h2"


def test_browsers_are_told_to_use_only_https(proxy):
    assert (
        proxy.http("GET", "/health/ready").headers["strict-transport-security"]
        == "max-age=31536000"
    )


def test_the_play_page_has_its_content_security_policy(proxy):
    answer = proxy.http("GET", "/")
    assert (
        answer.status == 200
        and "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    )


def test_settings_of_nginx_match_those_of_the_server_and_the_units():
    def number(pattern, text=CONF):
        return int(re.search(pattern, text)[1])

    limits = shipped_tree()["limits"]
    source = (ROOT / "trivia.py").read_text()
    units = {file.name: file.read_text() for file in (ROOT / "systemd").iterdir()}
    assert 2 * limits["body_bytes"] <= 1024 * number(r"client_max_body_size (\d+)k")
    assert number(r"/game/.*\n.*\n.*\n *proxy_read_timeout (\d+)s") > number(
        r"ws_ping_interval=(\d+)", source
    )
    assert re.findall(r"listen .* backlog=(\d+)", CONF) == [str(trivia.BACKLOG)] * 4
    assert number(r"sndbuf=(\d+)k") == number(r"SO_SNDBUF, (\d+) \* 1024", source)
    assert (
        re.search(r"server (\S+) max_fails", CONF)[1]
        == re.search("ListenStream=(.*)", units["trivia.socket"])[1]
    )
    assert number(r"worker_rlimit_nofile (\d+)") > number(r"worker_connections (\d+)") > 2 * 30_000
