"""The operator's page in headless Chromium during games, and the Grafana dashboard compared with
/metrics."""

import itertools
import json
import os
import re
import sys

import pytest
from playwright.sync_api import expect
from prometheus_client.parser import text_string_to_metric_families

from conftest import ROOT, Server, edited_schema, play_all, wait_until
from test_end_to_end import free_port

expect.set_options(timeout=20_000)

TOKEN = "an operator's token: not for phones".replace(" ", "-")
WRONG = "another-token-of-good-length"
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 360, "height": 740}
ACTS = "an-operator-who-acts-has-this-one"
OPEN = {"TRIVIA_OPS_TOKEN": TOKEN, "TRIVIA_OPS_ACT_TOKEN": f"ann:{ACTS}"}
SHOTS = os.environ.get("TRIVIA_SHOTS")  # a folder to save screenshots in
PAGE, DASHBOARD = ROOT / "pages" / "ops.html", ROOT / "examples" / "grafana.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@pytest.fixture(scope="module")
def watched():
    """A server with an operator's token."""
    running = Server(edited_schema(answer_seconds=60), env=OPEN)
    try:
        yield running.start()
    finally:
        running.close()


def samples(server):
    """Parses /metrics into {(name, *values of labels): value}, without buckets."""
    return {
        (one.name, *one.labels.values()): one.value
        for family in families(server)
        for one in family.samples
        if "le" not in one.labels
    }


def families(server):
    return list(text_string_to_metric_families(server.http("GET", "/metrics", token=TOKEN).body))


class Desk:
    """The page in a browser context of its own. Records what a token could leak into.

    Tests use the same desks in turn: in a Chromium with windows, a new context costs a second of
    CPU.
    """

    def __init__(self, chromium):
        self.context = chromium.new_context()
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.urls.append(request.url))

    def open(self, server, viewport, color_scheme):
        self.origin = f"http://127.0.0.1:{server.port}"
        self.troubles, self.urls, self.lines = [], [], []
        self.page.set_viewport_size(viewport)
        self.page.emulate_media(color_scheme=color_scheme)
        self.page.goto(f"{self.origin}/ops")
        return self

    def note(self, message):
        self.lines.append(message.text)
        # The browser notes a request that failed or was refused.
        if message.type in ("error", "warning") and not message.text.startswith(
            "Failed to load resource"
        ):
            self.troubles.append(message.text)

    def sign_in(self, token=TOKEN):
        self.page.get_by_label("Operator’s token").fill(token)
        self.page.get_by_role("button", name="Show").click()
        return self

    def live(self):
        """Waits until rates are shown, which takes two measurements."""
        expect(self.page.get_by_role("status").first).to_have_text("Live.")
        return self

    def chart(self, name):
        return self.page.locator(f"#chart-{name}")

    def total(self, name):
        """Returns the total of one counter, or of two: "6", "1 / 1"."""
        return self.chart(name).locator(".total").inner_text().removeprefix("in all ")

    def row(self, table, *labels):
        """Returns a row as {column: text}, or {} without such a row.

        The column `lately` counts since the page was opened.
        """
        heads, *rows = self.page.get_by_role("table", name=table, exact=True).evaluate(
            """(table) => [...table.rows].map((row) =>
                [...row.cells].map((cell) => cell.textContent))"""
        )
        heads = ["lately" if head.endswith(" min") else head for head in heads]
        return next(
            (
                dict(zip(heads, row, strict=True))
                for row in rows
                if tuple(row[: len(labels)]) == labels
            ),
            {},
        )

    def check_width(self, name):
        wide = self.page.evaluate("""() => [...document.querySelectorAll('body *')]
            .filter((one) => one.getClientRects().length
                && one.getBoundingClientRect().right > one.closest('body, .box, figure')
                    .getBoundingClientRect().right + 1)
            .map((one) => one.outerHTML.slice(0, 100))""")
        assert (
            self.page.evaluate("document.documentElement.scrollWidth <= innerWidth") and not wide
        ), wide
        if SHOTS:
            self.page.screenshot(
                path=f"{SHOTS}/ops-{self.page.viewport_size['width']}-{name}.png", full_page=True
            )

    def leave(self):
        told = [self.page.title(), self.page.content(), *self.urls, *self.lines]
        kept = self.page.evaluate("Object.keys(localStorage)"), self.context.cookies()
        self.page.evaluate("sessionStorage.clear()")
        self.page.unroute_all()
        self.page.goto("about:blank")
        assert not self.troubles, self.troubles
        assert not any(token in text for token in (TOKEN, ACTS, WRONG) for text in told)
        assert kept == ([], [])


@pytest.fixture(scope="module")
def free_desks():
    """Desks that no test uses."""
    return []


@pytest.fixture
def open_desk(chromium, free_desks):
    """Opens the page. At the end it checks that there was no error, and that no token leaked."""
    desks = []

    def make(server, viewport=WIDE, color_scheme="light", is_shared=True):
        desk = free_desks.pop() if is_shared and free_desks else Desk(chromium)
        desks.append((desk, is_shared))
        return desk.open(server, viewport, color_scheme)

    yield make
    for desk, is_shared in desks:
        desk.leave()
        if is_shared:
            free_desks.append(desk)
        else:
            desk.context.close()


def add_constructor(tree):
    """Adds a queue named like a property that every JavaScript object has."""
    tree["queues"]["constructor"] = dict(tree["queues"]["random"])


def play_and_err(desk, server):
    """Two phones play a game, and one of them sends a bad message. Returns its error code."""
    ann, bob = phones = server.pair()
    expect(desk.chart("connected").locator("dd")).to_have_text("2")
    expect(desk.chart("placed").locator("dd")).to_have_text(["2", "0"])
    question = ann.expect("question")
    ann.send("answer", round=99, choice=0)
    code = ann.expect("error")["code"]
    ann.send("answer", round=question["round"], choice=0)
    play_all(phones)
    bob.close()
    ann.drop()
    return code


def test_the_page_shows_games_and_what_metrics_reports(make_server, open_desk):
    server = make_server(edited_schema(add_constructor, answer_seconds=60), env=OPEN)
    desk = open_desk(server).sign_in().live()
    code = play_and_err(desk, server)
    wait_until(
        lambda: (
            desk.total("answers") == "6"
            and desk.total("games") == "1 / 1"
            and desk.total("links") == "2 / 2"
        ),
        30,
    )
    told = samples(server)
    assert told["trivia_answers_total",] == 6 and told["trivia_games_started_total", "random"] == 1
    # The bad message came from a phone, too.
    assert desk.total("frames") == f"{told['trivia_deliveries_total',]:.0f} / 7"
    assert desk.row("Messages from phones", "answer")["in all"] == "7"
    assert desk.row("Errors", code)["in all"] == f"{told['trivia_errors_total', code]:.0f}" == "1"
    assert desk.row("Games ended", "random", "finished")["lately"] == "1"
    assert desk.row("Queues", "random")["playing"] == "0"
    assert desk.row("Queues", "constructor")["playing"] == "0"
    assert desk.row("HTTP requests", "register", "201")["in all"] == "2"
    (worker,) = (labels[0] for name, *labels in told if name == "trivia_connections")
    assert re.fullmatch(r"(?!0\.0 )[\d.]+ %", desk.row("Workers", worker)["CPU"])
    for name in ("wait", "delivery", "judging", "redis"):
        expect(desk.chart(name).locator("dd").first).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    desk.check_width("played")


def test_the_page_says_that_a_token_is_wrong(watched, open_desk):
    desk = open_desk(watched, PHONE)
    desk.check_width("asked")
    desk.sign_in(WRONG)
    expect(desk.page.get_by_role("alert")).to_have_text("The server refused this token.")
    expect(desk.page.get_by_label("Operator’s token")).to_be_focused()
    expect(desk.page.locator("#board")).to_be_hidden()
    desk.check_width("refused")
    desk.sign_in().live()
    expect(desk.page.get_by_role("alert")).to_be_hidden()


def test_the_token_survives_a_reload_and_can_be_forgotten(watched, open_desk):
    desk = open_desk(watched).sign_in().live()
    desk.page.reload()
    desk.live()
    desk.page.get_by_role("button", name="Forget token").click()
    expect(desk.page.get_by_label("Operator’s token")).to_be_focused()
    desk.page.reload()
    expect(desk.page.get_by_label("Operator’s token")).to_be_visible()
    expect(desk.page.locator("#board")).to_be_hidden()


def test_the_page_says_that_the_server_is_down_and_reconnects(make_server, open_desk):
    server = make_server(
        env=OPEN,
        command=[sys.executable, "-m", "uvicorn", "trivia:app", "--port", str(free_port())],
    )
    desk = open_desk(server).sign_in().live()
    server.stop()
    expect(desk.page.get_by_role("alert")).to_contain_text(
        "The server can’t be reached. Trying again every 2 s."
    )
    expect(desk.page.locator("#age")).to_have_text(re.compile(r"^Data ([4-9]|\d\d) s old\."))
    server.start()
    desk.live()
    expect(desk.page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide-light", "phone-dark"]
)
def test_everything_fits_and_has_an_accessible_name_and_role(watched, open_desk, viewport, scheme):
    desk = open_desk(watched, viewport, color_scheme=scheme).sign_in().live()
    page = desk.page
    watched.http("GET", "/nowhere")
    wait_until(lambda: desk.row("Errors", "not_found"))
    for title in (
        "Queues",
        "Workers",
        "HTTP requests",
        "Games ended",
        "Errors",
        "Connections closed",
        "Messages from phones",
    ):
        expect(page.get_by_role("table", name=title, exact=True)).to_be_visible()
    expect(page.get_by_role("rowheader", name="not_found")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Trivia operations")
    expect(page.get_by_role("img", name=re.compile(r"^Players connected: \d"))).to_be_visible()
    page.get_by_role("slider", name="Look back").press("ArrowLeft")
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", "2 s ago")
    assert page.locator("figure").count() == page.get_by_role("img").count() == 16
    desk.check_width(scheme)
    assert not too_pale(page), "text needs a contrast of at least 4.5 to 1"


def too_pale(page):
    """Returns the texts with less contrast than WCAG requires: [(ratio, text)]."""
    return page.evaluate("""() => {
        const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const ground = (node) => (rgb(getComputedStyle(node).backgroundColor)[3] === 0
            ? ground(node.parentElement) : node);
        const light = (colour) => rgb(colour).slice(0, 3).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
            .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
        const ratio = (node) => {
            const [a, b] = [light(getComputedStyle(node).color),
                light(getComputedStyle(ground(node)).backgroundColor)];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        };
        const texts = [...document.querySelectorAll('body *')]
            .filter((node) => node.getClientRects().length && [...node.childNodes]
                .some((child) => child.nodeType === 3 && child.textContent.trim()));
        return texts.map((node) => [ratio(node), node.textContent])
            .filter(([found]) => found < 4.5);
    }""")


HISTOGRAM = """# TYPE trivia_delivery_seconds histogram
trivia_delivery_seconds_bucket{{le="0.1"}} {0}
trivia_delivery_seconds_bucket{{le="0.2"}} {1}
trivia_delivery_seconds_bucket{{le="+Inf"}} {1}
"""


def test_counters_and_percentiles_are_those_of_prometheus(watched, open_desk):
    text = 'trivia_redis_up 1\ntrivia_errors_total{code="old"} 7.0\n' + HISTOGRAM.format(50, 50)
    desk = open_desk(watched)
    desk.page.route("**/metrics", lambda route: route.fulfill(body=text, content_type="text/plain"))
    desk.sign_in().live()
    # No message was delivered between the two measurements.
    expect(desk.chart("delivery").locator("dd")).to_have_text(["–", "–"])

    # One counter starts again. Another is new, and its label has all characters that may occur.
    # Half of the deliveries took up to 0.1 s, the others up to 0.2 s.
    text = (
        'trivia_redis_up 1\ntrivia_errors_total{code="old"} 2\n'
        'trivia_errors_total{code="a \\"b\\\\c} 1"} 1.5e+03 1700000000\n' + HISTOGRAM.format(60, 70)
    )
    expect(desk.chart("delivery").locator("dd")).to_have_text(["100 ms", "198 ms"])
    assert desk.row("Errors", "old")["lately"] == desk.row("Errors", "old")["in all"] == "2"
    assert desk.row("Errors", 'a "b\\c} 1')["lately"] == "1,500"

    text = "trivia_redis_up 0\n"
    expect(desk.page.get_by_role("listitem")).to_have_text("Redis does not answer")
    expect(desk.chart("errors").locator("dd")).to_have_text("–")
    text = 'trivia_redis_up 1\ntrivia_errors_total{code="old"} 3\n' + HISTOGRAM.format(60, 70)
    expect(desk.page.get_by_role("listitem")).to_have_text("Nothing out of the ordinary.")
    assert desk.row("Errors", "old")["lately"] == "3"  # without the errors from before


def test_the_page_says_that_a_server_has_no_metrics_or_fails(watched, open_desk):
    answers = {"status": 200, "body": "\n"}
    desk = open_desk(watched)
    desk.page.route("**/metrics", lambda route: route.fulfill(**answers))
    desk.sign_in()
    expect(desk.page.get_by_role("alert")).to_contain_text("There is no data yet")
    answers["status"] = 503
    expect(desk.page.get_by_role("alert")).to_contain_text("The server answered 503")


def test_a_hidden_tab_sends_no_requests(watched, open_desk):
    desk = open_desk(watched, is_shared=False)  # the test changes the clock of this desk for good
    desk.page.clock.install()
    desk.page.reload()
    desk.sign_in()
    expect(desk.page.get_by_role("status").first).to_contain_text("Live.")
    turn = """(hidden) => {
        Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    desk.page.evaluate(turn, True)
    asked = len(desk.urls)
    desk.page.clock.run_for(60_000)
    assert len(desk.urls) == asked
    expect(desk.page.get_by_role("status").first).to_have_text("Paused while this tab is hidden.")
    with desk.page.expect_request("**/metrics"):
        desk.page.evaluate(turn, False)
    expect(desk.page.get_by_role("status").first).to_contain_text("Live.")


def do(desk, box, name, **fields):
    """Fills in the form of an act, previews the act, and confirms it."""
    form = desk.page.locator(f"#{box} details:has(> summary:text-is('{name}'))").first
    form.locator("summary").click()
    for label, value in fields.items():
        field = form.locator(f"[name={label}]")
        field.check() if value is True else field.fill(value)
    form.get_by_role("button", name=f"Preview {name}").click()
    expect(form.locator("output")).to_contain_text("Would concern")
    form.get_by_role("button", name=f"Confirm {name}").click()
    expect(desk.page.locator("#answer")).to_contain_text(f"{name}: Done.")


def test_an_operator_bans_a_player_undoes_that_and_announces_maintenance(watched, open_desk):
    ann, bob = watched.phone(queue="party"), watched.phone(queue="party")
    desk = open_desk(watched).sign_in(ACTS).live()
    page = desk.page
    page.get_by_label("Player", exact=True).fill("nobody-of-this-name")
    page.get_by_role("button", name="Find").click()
    expect(page.locator("#answer")).to_have_text("There is no such player.")
    page.get_by_label("Player", exact=True).fill(ann.session["user"]["email"])
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("table", name=ann.name, exact=True)).to_contain_text("party")
    do(desk, "card", "ban", reason="insults", hours="2")
    ann.expect_close(4403)
    expect(page.locator("#card")).to_contain_text("insults")
    desk.check_width("banned")
    page.locator("#audit tr").filter(has_text="ban ").first.get_by_role(
        "button", name="Undo"
    ).click()
    expect(page.locator("#answer")).to_have_text("ban: undone.")
    ann.connect().expect("queued")
    do(desk, "switches", "maintenance", closed=True, text="We move.", seconds="3600")
    for phone in (ann, bob):
        assert phone.expect("notice")["text"] == "We move."
    page.locator("#audit tr").filter(has_text="maintenance").first.get_by_role(
        "button", name="Undo"
    ).click()
    expect(page.locator("#answer")).to_have_text("maintenance: undone.")
    ann.drop(), bob.drop()


def test_an_operator_responds_to_a_report_of_a_game_with_a_ban(watched, open_desk):
    ann, bob = watched.pair()
    text = "They <b>knew</b> each answer."
    sent = {"player": bob.name, "reason": "cheating", "text": text}
    game = ann.expect("question")["game"]
    for phone in (ann, bob):
        phone.send("answer", round=1, choice=0)
    ann.expect("reveal")
    watched.http("POST", "/reports", sent | {"game": game}, ann.token)
    desk = open_desk(watched, PHONE).sign_in(ACTS).live()
    page = desk.page
    expect(page.get_by_role("heading", name="Reports: 1")).to_be_visible()
    page.locator("#reports summary").first.click()
    expect(page.locator("#reports")).to_contain_text(text)
    expect(page.locator("#reports")).to_contain_text("reporter: ")
    desk.check_width("report")
    do(desk, "reports", "ban", reason="cheats")
    bob.expect_close(4403)
    expect(page.get_by_role("heading", name="Reports: 0")).to_be_visible()
    expect(page.locator("#audit")).to_contain_text("close report")
    expect(page.locator("#events")).to_contain_text("player.reported")
    ann.drop()


def test_an_operator_edits_and_retires_a_question_while_it_is_played(watched, open_desk):
    ann, bob = watched.pair()
    question = ann.expect("question")
    text = watched.http("GET", "/ops/look/questions", token=TOKEN).json
    assert text["total"] > 100
    client = watched.redis
    bank = client.hgetall("bank:{bank}")
    number = next(n for n in bank if n.isdigit() and json.loads(bank[n])[0] == question["text"])
    client.delete("flagged:{bank}")
    client.zadd("flagged:{bank}", {number: 3})
    desk = open_desk(watched).sign_in(ACTS).live()
    desk.page.get_by_role("button", name="flagged").click()
    expect(desk.page.locator("#listed")).to_contain_text(question["text"])
    do(desk, "listed", "retire question", retired=True)
    ann.send("check")
    assert ann.expect("update")["question"]["text"] == question["text"]
    desk.page.get_by_role("button", name="retired", exact=True).click()
    expect(desk.page.locator("#listed")).to_contain_text("retired: ")
    expect(desk.page.locator("#listed")).to_contain_text(question["text"])
    desk.check_width("questions")
    desk.page.get_by_role("button", name="flagged").click()
    # The list from before shows this question, too; the new list replaces its forms.
    expect(desk.page.locator("#listed")).to_contain_text("flagged: ")
    better = "Better: " + question["text"]
    do(desk, "listed", "edit question", text=better, right="12", wrong="7 | 9")
    assert any(json.dumps(better, ensure_ascii=False) in row for row in client.hvals("bank:{bank}"))
    desk.page.get_by_role("button", name="retired", exact=True).click()
    expect(desk.page.locator("#listed")).to_contain_text(better)
    expect(desk.page.locator("#listed th", has_text="✓")).to_have_text("12 ✓")
    ann.send("check")
    assert ann.expect("update")["question"]["text"] == question["text"]
    for act in ("edit question", "retire question"):
        row = desk.page.locator("#audit tr").filter(has_text=act).first
        row.get_by_role("button", name="Undo").click()
        expect(desk.page.locator("#answer")).to_have_text(f"{act}: undone.")
    client.zrem("flagged:{bank}", number)
    ann.drop(), bob.drop()


def test_a_token_that_may_not_act_shows_no_forms(watched, open_desk):
    phone = watched.phone(queue="party")
    desk = open_desk(watched, PHONE).sign_in().live()
    desk.page.get_by_label("Player", exact=True).fill(phone.name)
    desk.page.get_by_role("button", name="Find").click()
    expect(desk.page.get_by_role("table", name=phone.name, exact=True)).to_be_visible()
    expect(desk.page.locator("#console details")).to_have_count(0)
    desk.check_width("looks")
    phone.drop()


def named(text):
    return set(re.findall(r"\btrivia_\w+", text))


def served(server):
    """Returns the names that /metrics declares: {name of a sample: name of its metric}."""
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    return {
        one.name + ending: one.name
        for one in families(server)
        if one.name.startswith("trivia_")
        for ending in endings[one.type]
    }


def test_the_page_and_the_dashboard_use_the_metrics_that_exist(watched):
    names = served(watched)
    histograms = {metric for name, metric in names.items() if name.endswith("_bucket")}
    assert named(PAGE.read_text("utf-8")) <= names.keys() | histograms
    drawn = named(" ".join(expression for panel in panels() for expression in expressions(panel)))
    assert drawn <= names.keys()
    assert {names[name] for name in drawn} == set(names.values()), "a metric is in no panel"


def panels():
    return json.loads(DASHBOARD.read_text("utf-8"))["panels"]


def expressions(panel):
    return [target["expr"] for target in panel.get("targets", [])]


def test_the_dashboard_has_the_form_that_grafana_needs():
    board = json.loads(DASHBOARD.read_text("utf-8"))
    assert board["schemaVersion"] >= 38 and board["uid"] and board["title"] and "id" not in board
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert (
        variables["datasource"]["type"] == "datasource"
        and variables["datasource"]["query"] == "prometheus"
    )
    assert variables["instance"]["datasource"] == SOURCE
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["type"] in ("row", "stat", "timeseries") and panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == SOURCE
            assert (
                len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) >= 1
            )
            assert all("instance='$instance'" in expression for expression in expressions(panel))


def test_no_two_panels_of_the_dashboard_overlap():
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] >= 1
    for one, other in itertools.combinations(panels(), 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (
            one["title"],
            other["title"],
        )
