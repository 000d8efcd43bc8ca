"""The documents under /docs are valid, match what the server sends, and work offline."""

import copy
import importlib.util
import itertools
import json
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jsonschema
import jsonschema_rs
import pytest

from conftest import FAST, PASSWORD, ROOT, Server, edited_schema, play_all, unique_name
from nodes import free_ports

sys.path.insert(0, str(ROOT))
import trivia  # noqa: E402 - the app lists its routes

ROUTES = {
    ("POST", "/auth/register"),
    ("POST", "/auth/guest"),
    ("POST", "/auth/upgrade"),
    ("POST", "/auth/recover"),
    ("POST", "/auth/reset"),
    ("POST", "/auth/confirm"),
    ("POST", "/auth/confirm/send"),
    ("POST", "/auth/login"),
    ("POST", "/auth/logout"),
    ("DELETE", "/auth/sessions"),
    ("POST", "/auth/password"),
    ("GET", "/users/me"),
    ("PATCH", "/users/me"),
    ("DELETE", "/users/me"),
    ("GET", "/users/me/export"),
    ("GET", "/users/me/blocks"),
    ("PUT", "/users/{username}/block"),
    ("DELETE", "/users/{username}/block"),
    ("POST", "/reports"),
    ("GET", "/users/me/games"),
    ("GET", "/users/{username}"),
    ("GET", "/games/{id}"),
    ("GET", "/leaderboards/{name}"),
    ("GET", "/queues"),
    ("POST", "/challenges"),
    ("GET", "/challenges"),
    ("GET", "/challenges/{code}"),
    ("GET", "/rooms/{code}"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
}
OPEN = {
    "/auth/register",
    "/auth/guest",
    "/auth/recover",
    "/auth/reset",
    "/auth/login",
    "/queues",
    "/health/live",
    "/health/ready",
}
# These routes work without a token, but refuse an invalid one.
OPTIONAL = {"/leaderboards/{name}", "/users/{username}", "/rooms/{code}", "/challenges/{code}"}
PROBLEM = "application/problem+json"


def strict(node):
    """Copies a document, and forbids properties that an object does not describe."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {"additionalProperties": False} if isinstance(node.get("properties"), dict) else {}
    return closed | {key: strict(value) for key, value in node.items()}


def validate(document, schema, value):
    """Checks a value against a schema, which may refer to the document's components."""
    closed = strict(
        {"components": {"schemas": document["components"]["schemas"]}, "schema": schema}
    )
    jsonschema.Draft202012Validator(
        closed | {"$ref": "#/schema"}, format_checker=jsonschema.FormatChecker()
    ).validate(value)


@pytest.fixture(scope="module")
def openapi(server):
    answer = server.http("GET", "/docs/openapi.json")
    assert answer.status == 200 and answer.headers["content-type"].startswith("application/json")
    return answer.json


@pytest.fixture(scope="module")
def asyncapi(server):
    answer = server.http("GET", "/docs/asyncapi.json")
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    return answer.json


def integers_of(part, name=""):
    """Yields the name and the rule of every integer in a document."""
    if isinstance(part, dict) and part.get("type") == "integer":
        yield name, part
    pairs = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            yield from integers_of(value, key)


def test_integers_that_can_exceed_32_bits_have_the_format_int64(openapi, asyncapi):
    found = {name: set() for name in ("expires_at", "created_at", "ended_ms", "server_ms", "ms")}
    found |= {"wins": set(), "rank": set(), "seq": set()}
    for name, rule in itertools.chain(integers_of(openapi), integers_of(asyncapi)):
        outgrows = max(-rule.get("minimum", 0), rule.get("maximum", 0)) >= 2**31
        is_time = re.search(r"(^|_)(ms|at)$", str(name))
        assert rule.get("format") == ("int64" if outgrows or is_time else None), (name, rule)
        if name in found:
            found[name].add(rule.get("format"))
    rank, seq = found.pop("rank"), found.pop("seq")
    assert rank == seq == {None}
    assert all(formats == {"int64"} for formats in found.values()), found


def named_types(part, path=()):
    """Yields the path and the rule of each object and enum in a schema."""
    if isinstance(part, dict) and (part.get("type") == "object" or "enum" in part):
        yield path, part
    pairs = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in pairs:
        if isinstance(value, (dict, list)) and key not in ("enum", "examples", "required"):
            yield from named_types(value, (*path, key))


def test_every_type_that_a_generator_names_has_a_unique_title(openapi, asyncapi):
    payloads = {
        key: message["payload"] for key, message in asyncapi["components"]["messages"].items()
    }
    parts = payloads | openapi["components"]["schemas"]
    titles = [rule.get("title") for _, rule in named_types(parts)]
    assert None not in titles and len(titles) == len(set(titles)) > 60
    assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]*", title) for title in titles)
    assert {payloads["client.emoji"]["title"], payloads["server.emoji"]["title"]} == {
        "ClientEmoji",
        "ServerEmoji",
    }


def test_all_codes_are_listed(openapi, asyncapi):
    problem = openapi["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    error = asyncapi["components"]["messages"]["server.error"]["payload"]["properties"]["code"]
    assert {*problem, *error["enum"]} == set(trivia.error_codes(trivia.app.ctx.schema))
    assert {"username_taken", "email_taken", "invalid"} < set(problem) and "taken" not in problem
    close = asyncapi["components"]["schemas"]["CloseCode"]
    ours = {
        value
        for name, value in vars(trivia).items()
        if name.startswith("CLOSE_") and type(value) is int and value > 1000
    }
    assert set(close["enum"]) == ours
    assert len(set(close["x-enum-varnames"])) == len(ours)


def test_fields_that_clients_send_have_no_default_that_makes_them_required(openapi, asyncapi):
    bodies = [
        name
        for path in openapi["paths"].values()
        for operation in path.values()
        for name in [
            operation.get("requestBody", {})
            .get("content", {})
            .get("application/json", {})
            .get("schema", {})
            .get("$ref", "")
            .rpartition("/")[2]
        ]
        if name
    ]
    sent = [openapi["components"]["schemas"][name] for name in bodies]
    messages = asyncapi["components"]["messages"]
    sent += [message["payload"] for key, message in messages.items() if key.startswith("client.")]
    rules = [rule for schema in sent for rule in schema["properties"].values()]
    assert len(rules) > 15 and not [rule for rule in rules if "default" in rule]
    avatar = openapi["components"]["schemas"]["NewUser"]["properties"]["avatar"]
    assert avatar["description"].endswith('Default: "".')


def test_the_server_accepts_the_examples_of_its_document(make_server):
    server = make_server()
    paths = server.http("GET", "/docs/openapi.json").json["paths"]
    token = None
    for method, path, status in (
        ("post", "/auth/register", 201),
        ("post", "/auth/login", 200),
        ("patch", "/users/me", 200),
        ("post", "/auth/password", 204),
        ("delete", "/users/me", 204),
    ):
        body = paths[path][method]["requestBody"]["content"]["application/json"]["example"]
        answer = server.http(method.upper(), path, body, token=token)
        assert answer.status == status, (path, answer.body)
        token = answer.json["token"] if path.startswith("/auth/") and answer.body else token


# ---- OpenAPI ------------------------------------------------------------------------------------


def test_the_openapi_document_is_valid(openapi):
    from openapi_spec_validator import OpenAPIV31SpecValidator  # its import takes very long

    assert openapi["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(openapi).iter_errors()) == []
    for schema in openapi["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_openapi_document_lists_exactly_the_routes_of_the_app(openapi):
    listed = {(method.upper(), path) for path, item in openapi["paths"].items() for method in item}
    served = {
        (method, "/" + re.sub(r"<(\w+):str>", r"{\1}", route.path))
        for route in trivia.app.router.routes
        for method in route.methods - {"OPTIONS", "HEAD"}
        if route.path and not route.path.startswith(("docs", "metrics"))
        if not route.path.endswith((".svg", ".json"))  # parts of the page
    }
    assert listed == ROUTES == served


def test_every_operation_has_a_name_a_summary_and_its_security(openapi):
    operations = [
        (path, operation) for path, item in openapi["paths"].items() for operation in item.values()
    ]
    assert len({operation["operationId"] for _, operation in operations}) == len(ROUTES)
    for path, operation in operations:
        assert operation["summary"] and all(
            response["description"] for response in operation["responses"].values()
        )
        needed = [] if path in OPEN else [{"bearer": []}] + [{}] * (path in OPTIONAL)
        assert operation.get("security", []) == needed
        assert ("401" in operation["responses"]) == (path not in OPEN or path == "/auth/login")
    assert openapi["components"]["securitySchemes"]["bearer"] == {
        "type": "http",
        "scheme": "bearer",
    }


class Checked:
    """Calls a server, and checks each response against the document of the server."""

    def __init__(self, server, document):
        self.server, self.document, self.seen = server, document, set()

    def __call__(self, method, path, *arguments, expect, where=None, **options):
        answer = self.server.http(method, path, *arguments, **options)
        where = where or path.partition("?")[0]
        assert answer.status == expect, answer.body
        response = self.document["paths"][where][method.lower()]["responses"][str(expect)]
        if "content" in response:
            ((kind, content),) = response["content"].items()
            assert answer.headers["content-type"] == kind
            validate(self.document, content["schema"], answer.json)
        else:
            assert answer.body == ""
        for name, header in response.get("headers", {}).items():
            jsonschema.validate(int(answer.headers[name]), header["schema"])
        if expect >= 400:
            assert answer.json["code"] in response["description"], (
                answer.json["code"],
                response["description"],
            )
        else:
            self.seen.add((method, where))
        return answer


def test_every_route_responds_as_documented(server, openapi):
    call = Checked(server, openapi)
    name = unique_name()
    account = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    session = call("POST", "/auth/register", account, expect=201).json
    token = session["token"]
    other = server.register(avatar="https://example.org/a.png")
    end = play_all([server.phone(session=session), server.phone(session=other)])[0]
    call("GET", "/users/me", token=token, expect=200)
    call("PATCH", "/users/me", {"avatar": "http://example.org/b.png"}, token, expect=200)
    call("PATCH", "/users/me", {}, token, expect=200)
    for person in (name, other["user"]["username"]):
        call("GET", f"/users/{person}", where="/users/{username}", expect=200)
    games = call("GET", "/users/me/games?limit=1", token=token, expect=200).json["games"]
    assert [game["id"] for game in games] == [end["game"]] and games[0]["ranking"] == end["ranking"]
    record = call("GET", f"/games/{end['game']}", token=token, where="/games/{id}", expect=200).json
    assert len(record["rounds"]) == FAST["rounds"] and all(
        len(part["answers"]) == 2 for part in record["rounds"]
    )
    for board in ("rating", "wins", "rating?around=me", "wins?limit=1&offset=1"):
        page = call(
            "GET", f"/leaderboards/{board}", token=token, where="/leaderboards/{name}", expect=200
        ).json
        assert page["total"] >= len(page["entries"])
    assert call("GET", "/users/me/export", token=token, expect=200).json["games"] == [record]
    person = other["user"]["username"]
    at = f"/users/{person}/block"
    call("PUT", at, token=token, where="/users/{username}/block", expect=204)
    call("GET", "/users/me/blocks", token=token, expect=200)
    call("DELETE", at, token=token, where="/users/{username}/block", expect=204)
    report = {"player": person, "reason": "name", "game": end["game"]}
    call("POST", "/reports", report, token, expect=201)
    assert len(call("GET", "/queues", expect=200).json["queues"]) == 7
    host = server.phone(queue="friends")
    code = host.expect("room")["code"]
    call("GET", f"/rooms/{code}", where="/rooms/{code}", expect=200)
    host.close()
    body = {"queue": "challenge"}
    code = call("POST", "/challenges", body, token, expect=201).json["code"]
    server.phone(session=session, queue=f"challenge?code={code}").play()
    where = "/challenges/{code}"
    shown = call("GET", f"/challenges/{code}", token=token, where=where, expect=200).json
    assert len(shown["rounds"]) == FAST["rounds"]
    call("GET", f"/challenges/{code}", where=where, expect=200)
    assert len(call("GET", "/challenges", token=token, expect=200).json["challenges"]) == 1
    call("GET", "/users/me/export", token=token, expect=200)
    call("GET", "/health/live", expect=200)
    call("GET", "/health/ready", expect=200)
    secret = {"secret": secrets.token_urlsafe(32)}
    guest = call("POST", "/auth/guest", secret, expect=201).json["token"]
    call("POST", "/auth/guest", secret, expect=200)
    call("GET", "/users/me", token=guest, expect=200)
    wanted = {"email": f"{unique_name()}@example.org", "password": PASSWORD}
    call("POST", "/auth/upgrade", wanted, guest, expect=200)
    for key in ("login", "username", "email"):
        again = call(
            "POST", "/auth/login", {key: account.get(key, name), "password": PASSWORD}, expect=200
        ).json
    call("POST", "/auth/logout", token=again["token"], expect=204)
    call(
        "POST",
        "/auth/password",
        {"password": PASSWORD, "new_password": "another horse"},
        token,
        expect=204,
    )
    call("DELETE", "/auth/sessions", token=token, expect=204)
    token = call(
        "POST", "/auth/login", {"login": name, "password": "another horse"}, expect=200
    ).json["token"]
    call("DELETE", "/users/me", {"password": "another horse"}, token, expect=204)
    # tests/test_sign_in.py has a mail server.
    coded = {route for route in ROUTES if re.match("/auth/(reset|recover|confirm)", route[1])}
    assert call.seen == ROUTES - coded
    # The other player's views of a game, after the account of the first is erased.
    call("GET", f"/games/{end['game']}", token=other["token"], where="/games/{id}", expect=200)
    call("GET", "/users/me/export", token=other["token"], expect=200)


def test_problems_have_the_documented_form(server, openapi):
    call = Checked(server, openapi)
    name, json_type = unique_name(), {"Content-Type": "application/json"}
    account = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    session = server.register(name)
    token = session["token"]
    for body, status in (
        (account | {"password": "another horse"}, 409),
        (account | {"username": name.upper(), "email": f"{unique_name()}@example.org"}, 409),
        ({}, 422),
        (account | {"x": 1}, 422),
        (account | {"username": "a b"}, 422),
        (account | {"password": 5}, 422),
    ):
        call("POST", "/auth/register", body, expect=status)
    for path, method in (
        ("/auth/register", "POST"),
        ("/auth/login", "POST"),
        ("/auth/password", "POST"),
        ("/auth/guest", "POST"),
        ("/auth/upgrade", "POST"),
        ("/users/me", "PATCH"),
        ("/users/me", "DELETE"),
    ):
        for raw in (b"{", b"[]", b"", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}'):
            call(method, path, raw=raw, headers=json_type, token=token, expect=400)
        call(
            method, path, raw=b"{}", headers={"Content-Type": "text/plain"}, token=token, expect=415
        )
        call(method, path, raw=b" " * 20_000, headers=json_type, token=token, expect=413)
        call(method, path, {"password": 7, "avatar": 7}, token, expect=422)
    for method, path in sorted(ROUTES):
        if path not in OPEN | OPTIONAL:
            for bad in (None, "x", token[:-1] + "?"):
                answer = call(
                    method, path.replace("{id}", "0" * 12), token=bad, where=path, expect=401
                )
                assert answer.headers["www-authenticate"] == "Bearer"
    call("GET", "/leaderboards/rating?around=me", where="/leaderboards/{name}", expect=401)
    call("GET", "/leaderboards/nope", where="/leaderboards/{name}", expect=404)
    call("GET", "/rooms/ABC234", where="/rooms/{code}", expect=404)
    call("GET", "/challenges/ABC23456", where="/challenges/{code}", expect=404)
    call("GET", "/challenges/nope", where="/challenges/{code}", expect=422)
    call("GET", "/challenges/nope", token="x", where="/challenges/{code}", expect=401)
    call("POST", "/challenges", {"queue": "solo"}, token, expect=422)
    call("GET", "/rooms/nope", where="/rooms/{code}", expect=422)
    for query in (
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=1&limit=2",
        "offset=-1",
        "around=you",
        "x=1",
        "limit=",
    ):
        call("GET", f"/leaderboards/rating?{query}", where="/leaderboards/{name}", expect=422)
    for query in ("limit=0", "cursor=nope", "offset=1"):
        call("GET", f"/users/me/games?{query}", token=token, expect=422)
    call("GET", f"/users/{unique_name()}", where="/users/{username}", expect=404)
    for game in ("0" * 12, "nope", "%2F", "a%0Ab"):
        call("GET", f"/games/{game}", token=token, where="/games/{id}", expect=404)
    call(
        "POST",
        "/auth/password",
        {"password": "wrong", "new_password": "another horse"},
        token,
        expect=403,
    )
    call("DELETE", "/users/me", {"password": "wrong"}, token, expect=403)
    change = {"username": unique_name(), "password": "wrong"}
    call("PATCH", "/users/me", change, token, expect=403)
    taken = server.register()["user"]["username"]
    call("PATCH", "/users/me", {"username": taken, "password": PASSWORD}, token, expect=409)
    call("POST", "/auth/login", {"login": name}, expect=422)
    call("POST", "/auth/login", {"login": name, "email": name, "password": PASSWORD}, expect=422)
    for path, body in (
        ("/auth/login", {"login": name, "password": PASSWORD}),
        ("/auth/password", {"password": PASSWORD, "new_password": "another horse"}),
    ):
        for _ in range(20):
            answer = server.http("POST", path, body | {"password": "wrong"}, token)
            if answer.status == 429:
                break
        assert int(call("POST", path, body, token, expect=429).headers["retry-after"]) > 0


# ---- the pages ----------------------------------------------------------------------------------


@pytest.fixture
def page(chromium):
    with chromium.new_page() as page:
        yield page


def test_the_docs_page_shows_and_calls_all_operations_and_no_other_host(server, page):
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "response", lambda response: wrong.append(response.url) if response.status >= 400 else None
    )
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    base = f"http://127.0.0.1:{server.port}"
    page.goto(f"{base}/docs", timeout=60_000)
    page.locator(".opblock").first.wait_for(timeout=60_000)
    shown = page.locator(".opblock").evaluate_all("""blocks => blocks.map((block) => [
        block.querySelector('.opblock-summary-method').innerText,
        block.querySelector('.opblock-summary-path').dataset.path,
    ])""")
    webhooks = {("POST", kind) for kind in trivia.EVENTS}
    assert {tuple(one) for one in shown} == ROUTES | webhooks and page.title() == "Trivia"
    live = page.locator(".opblock", has=page.locator("[data-path='/health/live']"))
    live.locator(".opblock-summary-control").click()
    live.locator(".try-out__btn").click()
    live.locator(".execute").click()
    live.locator(".live-responses-table .response-col_status", has_text="200").first.wait_for(
        timeout=30_000
    )
    assert f"{base}/docs/openapi.json" in asked and f"{base}/health/live" in asked
    assert [url for url in asked if not url.startswith((f"{base}/", "data:", "blob:"))] == []
    # Only the icon that browsers request by themselves may be missing.
    assert [
        text
        for text in wrong
        if "favicon.ico" not in text and "Failed to load resource" not in text
    ] == []


def test_the_page_of_messages_shows_them_and_calls_no_other_host(server, page):
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    base = f"http://127.0.0.1:{server.port}"
    page.goto(f"{base}/docs/asyncapi", timeout=60_000)
    page.get_by_text("The question is closed. Shows the right answer").first.wait_for(
        state="attached", timeout=60_000
    )
    assert page.title() == "Trivia"
    assert {url.rpartition("/")[2] for url in asked} - {"favicon.ico"} == {
        "asyncapi",
        "asyncapi-viewer.iife.js",
        "asyncapi.json",
    }
    assert [text for text in wrong if "Failed to load resource" not in text] == []


def test_the_openapi_document_is_also_at_the_path_that_tools_expect(server):
    answer = server.http("GET", "/openapi.json")  # the client follows the redirect
    assert answer.json == server.http("GET", "/docs/openapi.json").json


@pytest.mark.parametrize(
    "headers, host, protocol",
    [
        ({"Host": "quiz.your.org"}, "quiz.your.org", "ws"),
        ({"Host": "quiz.your.org", "X-Forwarded-Proto": "https"}, "quiz.your.org", "wss"),
        ({"Host": "[::1]:8000"}, "[::1]:8000", "ws"),
        ({"Host": '"><script>'}, "localhost:8000", "ws"),
    ],
)
def test_the_asyncapi_document_names_the_requested_server(server, headers, host, protocol):
    document = server.http("GET", "/docs/asyncapi.json", headers=headers).json
    named = document["servers"]["this"]
    assert (named["host"], named["protocol"]) == (host, protocol)


# ---- AsyncAPI -----------------------------------------------------------------------------------

SPECS = "6.11.1"  # the version of the npm package @asyncapi/specs: the JSON Schema of AsyncAPI


@pytest.fixture
def asyncapi_schema(request):
    """The official JSON Schema of AsyncAPI 3.0: from node_modules, or from pytest's cache."""
    installed = ROOT / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    kept = Path(request.config.cache.mkdir("asyncapi-specs")) / f"{SPECS}.json"
    if not installed.exists() and not kept.exists():
        if shutil.which("npm") is None:
            pytest.skip(
                "the schema of AsyncAPI is not here and neither is npm: "
                "npm install --no-save @asyncapi/specs"
            )
        done = subprocess.run(
            ["npm", "pack", "--silent", f"@asyncapi/specs@{SPECS}"],
            cwd=kept.parent,
            text=True,
            capture_output=True,
            timeout=90,
        )
        if done.returncode:
            pytest.skip(
                f"npm can't fetch the schema of AsyncAPI, @asyncapi/specs: {done.stderr[-200:]}"
            )
        with tarfile.open(kept.parent / done.stdout.split()[-1]) as archive:
            kept.write_bytes(archive.extractfile("package/schemas/3.0.0.json").read())
    return json.loads((installed if installed.exists() else kept).read_text("utf-8"))


def test_the_asyncapi_document_is_valid(asyncapi, asyncapi_schema):
    assert asyncapi["asyncapi"] == "3.0.0"
    validator = jsonschema_rs.Draft7Validator(asyncapi_schema)  # jsonschema takes a second
    broken = copy.deepcopy(asyncapi)
    broken["operations"]["random_send"]["action"] = "shout"
    assert not validator.is_valid(broken)
    assert [error.message for error in validator.iter_errors(asyncapi)] == []


def test_the_asyncapi_document_has_no_broken_reference(asyncapi):
    def references(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if "$ref" in node else []
            node = list(node.values())
        for item in node if isinstance(node, list) else ():
            yield from references(item)

    for reference in set(references(asyncapi)):
        part = asyncapi
        for key in reference.removeprefix("#/").split("/"):
            part = part[key]
        assert part
    for message in asyncapi["components"]["messages"].values():
        jsonschema.Draft202012Validator.check_schema(message["payload"])


def test_the_asyncapi_document_has_a_channel_with_all_messages_for_each_queue(asyncapi, server):
    queues = {queue["name"] for queue in server.http("GET", "/queues").json["queues"]}
    assert {channel["address"] for channel in asyncapi["channels"].values()} == {
        f"/game/{name}" for name in queues
    }
    messages = asyncapi["components"]["messages"]
    assert {name for name in messages if name.startswith("client.")} == {
        f"client.{name}"
        for name in (
            "answer",
            "check",
            "emoji",
            "ping",
            "join",
            "leave",
            "flag",
            "rematch",
            *trivia.HANDLED_IN_ROOMS,
        )
    }
    assert {name for name in messages if name.startswith("server.")} == {
        f"server.{name}" for name in (*trivia.SERVER_MESSAGES, "room", "rematch", "emoji")
    }
    for name, message in messages.items():
        assert (
            message["payload"]["properties"]["type"] == {"const": name.partition(".")[2]}
            and message["summary"]
        )
    for channel in asyncapi["channels"].values():
        assert channel["messages"].keys() == messages.keys()


def test_every_message_of_a_real_game_has_the_documented_form(server, asyncapi):
    ann, bob = server.pair()
    question = ann.expect("question")
    bob.expect("question")
    ann.send("ping")
    ann.expect("pong")
    ann.send("ping", client_ms=1.5)
    ann.expect("pong")
    ann.refused("no_such_choice", "answer", round=1, choice=9, id="a")
    ann.refused("invalid_message", "answer", round=1, id=7)
    ann.refused("unknown_type", "dance")
    ann.send("emoji", emoji="🎉")
    bob.expect("emoji")
    bob.drop()
    ann.expect("user_exit")
    bob.connect()
    bob.expect("update", phase="question")
    ann.expect("user_return")
    ann.send("answer", round=1, choice=1, game=question["game"])
    bob.expect("answered")
    bob.send("check")
    assert bob.expect("update")["answered"] == [ann.name]
    ann.send("check")
    assert ann.expect("update")["choice"] == 1
    bob.send("answer", round=1, choice=0)
    for phone in (ann, bob):
        phone.expect("reveal")
    play_all([ann, bob])
    ann.refused("rematch_over", "rematch", accept=True)
    for phone in (ann, bob):
        phone.send("join", queue="rated")
    for _ in range(2):
        play_all([ann, bob])
        for phone in (ann, bob):
            phone.send("rematch", accept=True)
            phone.expect("rematch")
    for phone in (ann, bob):
        phone.expect("start")
    bob.send("leave")
    ann.expect("end")
    ann.send("join", queue="rated")
    ann.expect("queued")
    ann.send("leave")
    assert ann.expect("cancelled")["reason"] == "left"
    forfeit(server, ann, bob)
    frames = [frame for phone in (ann, bob) for frame in phone.frames]
    # Operators send a notice, and no game does.
    sent = {*trivia.SERVER_MESSAGES, "rematch", "emoji"} - {"notice"}
    assert {frame["type"] for frame in frames} == sent
    for frame in frames:
        validate(
            asyncapi,
            asyncapi["components"]["messages"][f"server.{frame['type']}"]["payload"],
            frame,
        )
    for phone in (ann, bob):
        phone.close()


def test_every_message_of_a_room_and_of_a_solo_game_has_the_documented_form(server, asyncapi):
    host = server.phone(queue="friends")
    code = host.expect("room")["code"]
    guest = server.phone(queue=f"friends?code={code}")
    guest.expect("room")
    host.send("lock", locked=True)
    guest.expect("room", locked=True)
    host.send("begin")
    for phone in (host, guest):
        phone.expect("question")
    guest.drop()
    host.expect("user_exit")
    guest.connect()
    guest.expect("update")
    guest.expect("room", state="playing")
    host.send("kick", player=guest.name)
    assert guest.expect("cancelled")["reason"] == "kicked"
    guest.send("join", queue="solo")
    guest.expect("question")
    guest.send("check")
    assert guest.expect("update")["lives"] == 3
    guest.send("answer", round=1, choice=0)
    guest.expect("reveal")
    for frame in (*host.frames, *guest.frames):
        payload = asyncapi["components"]["messages"][f"server.{frame['type']}"]["payload"]
        validate(asyncapi, payload, frame)
    for phone in (host, guest):
        phone.close()


def forfeit(server, ann, bob):
    """Starts a game that Bob leaves at once."""
    for phone in (ann, bob):
        phone.send("join", queue="random")
        phone.expect("queued")
    for phone in (ann, bob):
        phone.expect("start")
    bob.send("leave")
    assert ann.expect("end")["reason"] == "forfeit"


MESSAGES = [
    {"type": "ping"},
    {"type": "ping", "client_ms": 1},
    {"type": "ping", "client_ms": -1.5},
    {"type": "ping", "client_ms": "1"},
    {"type": "ping", "client_ms": 1e300},
    {"type": "ping", "client_ms": True},
    {"type": "ping", "client_ms": None},
    {"type": "ping", "id": "a"},
    {"type": "ping", "id": 5},
    {"type": "ping", "id": 1.5},
    {"type": "ping", "id": True},
    {"type": "ping", "id": None},
    {"type": "ping", "id": "x" * 64},
    {"type": "ping", "id": "x" * 65},
    {"type": "ping", "id": []},
    {"type": "ping", "more": 1},
    {"type": "PING"},
    {"type": 1},
    {},
    {"type": "answer", "round": 1, "choice": 0},
    {"type": "answer", "round": 0, "choice": 0},
    {"type": "answer", "round": 1},
    {"type": "answer", "round": 1000, "choice": 15},
    {"type": "answer", "round": 1001, "choice": 0},
    {"type": "answer", "round": 1.0, "choice": 0},
    {"type": "answer", "round": 1, "choice": 16},
    {"type": "answer", "round": 1, "choice": 0, "game": "x" * 40},
    {"type": "answer", "round": 1, "choice": 0, "game": "x" * 41},
    {"type": "emoji", "emoji": "👍"},
    {"type": "emoji", "emoji": "x"},
    {"type": "emoji"},
    {"type": "join", "queue": "x" * 41},
    {"type": "check", "x": None},
]


@pytest.mark.parametrize("message", MESSAGES, ids=json.dumps)
def test_the_document_and_the_server_accept_the_same_messages(talker, asyncapi, message):
    messages = asyncapi["components"]["messages"]
    payloads = [entry["payload"] for name, entry in messages.items() if name.startswith("client.")]
    allowed = any(
        jsonschema.Draft202012Validator(payload).is_valid(message) for payload in payloads
    )
    talker.socket.send(json.dumps(message))
    reply = talker.receive()
    refused = reply["type"] == "error" and reply["code"] in (
        "invalid_message",
        "bad_message",
        "unknown_type",
    )
    assert allowed != refused, reply


@pytest.fixture
def talker(server):
    phone = server.phone(queue="rated")
    phone.expect("queued")
    yield phone
    phone.close()


# ---- a server with fields of every type ---------------------------------------------------------

FIELDS = {
    "color": {"type": "string", "enum": ["red", "green", "blue"], "default": "green"},
    "country": {"type": "string", "pattern": "^[A-Z]{2}$"},
    "level": {"type": "integer", "minimum": 1, "default": 1},
    "height": {"type": "number", "minimum": 0.001, "default": 1.8},
    "newsletter": {"type": "boolean", "default": False},
    "born": {"type": "string", "format": "date"},
    "phone": {"type": "string", "unique": True, "private": True},
}
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


def widen(tree):
    tree["users"]["fields"] |= FIELDS
    tree["queues"]["rated"] |= {"start_seconds": 1, "reveal_seconds": 1, "rounds": 1}


@pytest.fixture(scope="module")
def wide_server():
    """A server with fields of every type, for the tests that use up its rate limits.

    No mail server exists, so the outbox keeps all mails.
    """
    mail = f"smtp://127.0.0.1:{free_ports(1)[0]}?from=trivia@example.org"
    server = Server(edited_schema(widen), env={"TRIVIA_MAIL": mail})
    try:
        yield server.start()
    finally:
        server.close()


def test_an_update_has_the_documented_form_in_each_phase(wide_server):
    asyncapi = wide_server.http("GET", "/docs/asyncapi.json").json
    ann, bob = wide_server.pair("rated")
    for kind, phase in (("start", "start"), ("question", "question"), ("reveal", "reveal")):
        if kind != "start":
            ann.expect(kind)
        ann.send("check")
        update = ann.expect("update")
        assert update["phase"] == phase
        assert {"correct", "answers"} & update.keys() == (
            {"correct", "answers"} if phase == "reveal" else set()
        )
        validate(asyncapi, asyncapi["components"]["messages"]["server.update"]["payload"], update)
        if phase == "question":
            for phone in (ann, bob):
                phone.send("answer", round=1, choice=0)


def test_schemathesis_finds_no_server_error_and_no_undocumented_response(wide_server, tmp_path):
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    sessions = [wide_server.register() for _ in range(2)]
    play_all([wide_server.phone(session=session) for session in sessions])
    used, ended = (f'{{ Authorization = "Bearer {one["token"]}" }}' for one in sessions)
    # Two operations end the session that calls them, so they have a session of their own.
    (tmp_path / "schemathesis.toml").write_text(f"""
headers = {used}
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 503]
[[operations]]
include-path = ["/auth/logout", "/auth/sessions"]
headers = {ended}
""")
    command = [
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"http://127.0.0.1:{wide_server.port}/docs/openapi.json",
        "--seed=1",
        "--no-color",
        "--warnings=off",
        "--no-shrink",
        "--phases=coverage,fuzzing,stateful",  # another test sends the examples
        "--max-examples=3",  # limits all phases but `coverage`, which has most of the cases
        "--continue-on-failure",
        f"--checks={','.join(CHECKS)}",
    ]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=150)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 500
    for session, status in zip(sessions, (200, 401)):
        assert wide_server.http("GET", "/users/me", token=session["token"]).status == status
    assert "Traceback" not in wide_server.log, wide_server.log[-4000:]


# ---- the README ---------------------------------------------------------------------------------


def test_the_readme_names_only_tests_and_files_that_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named and not [name for name in named if f"def {name}(" not in tests]
    places = set(re.findall(r"\]\(([^)#:]+)\)", text)) | set(
        re.findall(r"\b(?:tests|examples|systemd)/[\w.-]+\w", text)
    )
    assert len(places) > 10 and not [place for place in places if not (ROOT / place).exists()]


def test_a_missing_page_or_viewer_is_reported_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(trivia, "PAGES", tmp_path)
    with pytest.raises(trivia.Fatal, match=f"^{tmp_path}/play.html: can't be read: .+$"):
        trivia.read_page("play.html")
    monkeypatch.setitem(trivia.VIEWER_FILES, "x.js", ("no_such_package", "dist", trivia.SCRIPT))
    with pytest.raises(trivia.Fatal, match="^no_such_package is not installed; pip install .+$"):
        trivia.viewer_file("x.js")
