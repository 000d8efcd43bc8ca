"""The web client in headless Chromium: a whole game in two browser contexts, on a desktop and on a small phone."""

import os
import re
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from conftest import PASSWORD, ROOT, Server, edited_schema, unique_name, wait_until
from test_end_to_end import free_port, workers_of

expect.set_options(timeout=20_000)

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
SHOTS = os.environ.get("TRIVIA_SHOTS")  # a folder for screenshots, to look at
SECONDS = 1000  # Playwright counts in ms


@pytest.fixture(scope="module")
def long_games():
    """A server whose rounds are long enough to look around in them."""
    times = {"answer_seconds": 60, "reveal_seconds": 2, "start_seconds": 1, "rounds": 2}
    running = Server(edited_schema(add_constructor, **times))
    try:
        yield running.start()
    finally:
        running.close()


def add_constructor(tree):
    """Adds a queue whose name every object of JavaScript has."""
    tree["queues"]["constructor"] = dict(tree["queues"]["random"])


class Tab:
    """A page of a browser context of its own, with what went wrong in it."""

    def __init__(self, chromium, server, viewport, **options):
        self.server, self.viewport = server, viewport
        self.context = chromium.new_context(viewport=viewport, **options)
        self.context.set_default_timeout(30 * SECONDS)
        self.name, self.troubles, self.hosts = unique_name(), [], set()
        self.page = self.context.new_page()
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).netloc))
        self.page.goto(f"http://127.0.0.1:{server.port}/")

    def note(self, message):
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    def find(self, selector, **options):
        return self.page.locator(selector, **options)

    def on(self, screen, seconds=30):
        """Waits for a screen, on which nothing may overflow sideways."""
        expect(self.find("body")).to_have_attribute(
            "data-screen", screen, timeout=seconds * SECONDS
        )
        self.check_width(screen)

    def check_width(self, screen):
        wide = self.page.evaluate("""() => [...document.querySelectorAll('body *')]
            .filter((one) => one.getClientRects().length && one.getBoundingClientRect().right > innerWidth + 1)
            .map((one) => one.outerHTML.slice(0, 100))""")
        fits = self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert fits and not wide, f"{screen} overflows sideways: {wide}"
        if SHOTS:
            self.page.screenshot(path=f"{SHOTS}/{self.viewport['width']}-{screen}.png")

    def register(self):
        self.on("auth")
        self.find("#mode-register").click()
        self.find("#username").fill(self.name)
        self.find("#email").fill(f"{self.name}@example.org")
        self.find("#password").fill(PASSWORD)
        self.find("#submit").click()
        self.on("lobby")

    def join(self, queue="random"):
        self.find(f'button[data-queue="{queue}"]').click()

    def choice(self, index):
        return self.find(f'button.choice[data-index="{index}"]')

    def score(self, player):
        return int(self.find(f'[data-player="{player}"] .score').inner_text())

    def answer(self, index):
        expect(self.choice(index)).to_be_enabled()
        self.choice(index).click()
        expect(self.choice(index)).to_be_disabled()

    def close(self):
        self.context.close()


@pytest.fixture
def open_tabs(chromium):
    """Opens tabs; at the end none may have had an error or left the server."""
    tabs = []

    def make(server, viewport=DESKTOP, count=2, **options):
        tabs.extend(Tab(chromium, server, viewport, **options) for _ in range(count))
        return tabs[-count:]

    yield make
    troubles, hosts = [tab.troubles for tab in tabs], {host for tab in tabs for host in tab.hosts}
    for tab in tabs:
        tab.close()
    assert not any(troubles), troubles
    assert hosts <= {f"127.0.0.1:{tab.server.port}" for tab in tabs} | {""}, hosts


def in_game(tabs):
    """Brings tabs to the first question of a game."""
    for tab in tabs:
        tab.register()
        tab.join()
    for tab in tabs:
        tab.on("game")
        expect(tab.choice(0)).to_be_enabled()


def play_round(ann, bob):
    """Ann answers first, Bob sees it; both see the reveal. Returns whether each was right."""
    ann.answer(0)
    expect(
        bob.find(f'[data-player="{ann.name}"]').get_by_role("img", name="answered")
    ).to_be_visible()
    bob.answer(1)
    right = []
    for tab, chosen in ((ann, 0), (bob, 1)):
        expect(tab.find("button.choice.right")).to_have_count(1)
        right.append("right" in tab.choice(chosen).get_attribute("class"))
        expect(tab.choice(chosen)).to_have_class(
            re.compile(r"\bright\b" if right[-1] else r"\bwrong\b")
        )
        expect(tab.find("button.choice.wrong")).to_have_count(0 if right[-1] else 1)
    return right


def play_on(ann, bob):
    """From the first of two questions, which Ann has answered, to the end."""
    bob.answer(1)
    for tab in (ann, bob):
        expect(tab.find("#round")).to_contain_text("2 of 2", timeout=20 * SECONDS)
    play_round(ann, bob)
    for tab in (ann, bob):
        tab.on("result")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_whole_game_in_two_browsers(long_games, open_tabs, viewport):
    ann, bob = tabs = open_tabs(long_games, viewport, has_touch=viewport is PHONE)
    in_game(tabs)
    assert ann.find("#question").inner_text() == bob.find("#question").inner_text()
    expect(ann.find("#countdown")).to_contain_text(re.compile(r"^\s*[1-6]?\d\s*$"))
    ann.find('#emoji-bar button[data-emoji="🎉"]').click()
    expect(bob.find(f'[data-player="{ann.name}"]')).to_contain_text("🎉")
    points = {tab.name: 0 for tab in tabs}
    for number in (1, 2):
        expect(ann.find("#round")).to_contain_text(f"{number} of 2")
        for tab, right in zip(tabs, play_round(ann, bob), strict=True):
            tab.check_width("reveal")
            seen = tab.score(tab.name)
            assert (seen > points[tab.name]) == right and seen >= points[tab.name]
            points[tab.name] = seen
        expect(ann.find(f'[data-player="{bob.name}"] .score')).to_have_text(str(points[bob.name]))
    for tab in tabs:
        tab.on("result")
        expect(tab.find("[data-rank]")).to_have_count(2)
        rows = {name: tab.find("[data-rank]", has_text=name) for name in points}
        for name, row in rows.items():
            better = sum(other > points[name] for other in points.values())
            expect(row).to_have_attribute("data-rank", str(1 + better))
            expect(row.locator(".score")).to_have_text(str(points[name]))
        tab.find("#again").click()
    for tab in tabs:
        tab.on("game")
        expect(tab.choice(0)).to_be_enabled()
    bob.find("#leave").click()
    bob.find("#leave-yes").click()
    ann.on("result")
    expect(ann.find('[data-rank="1"]')).to_contain_text(ann.name)
    ann.find("#home").click()
    ann.on("lobby")
    expect(ann.find("#me-games")).to_have_text("1")  # nobody answered in the second one


def test_names_that_every_object_of_javascript_has_are_names_like_others(long_games, open_tabs):
    ann, bob = tabs = open_tabs(long_games)
    ann.name, bob.name = "constructor", "__proto__"
    for tab in tabs:
        tab.register()
        tab.join("constructor")
    for tab in tabs:
        tab.on("game")
        for name in (ann.name, bob.name):
            assert tab.score(name) == 0
    bob.page.reload()
    bob.on("game")
    right = play_round(ann, bob)
    for tab in tabs:
        for name, was_right in zip((ann.name, bob.name), right, strict=True):
            assert (tab.score(name) > 0) == was_right
    for tab in tabs:
        expect(tab.find("#round")).to_contain_text("2 of 2")
    play_round(ann, bob)
    for tab in tabs:
        tab.on("result")
        expect(tab.find("[data-rank] .name")).to_have_count(2)
        tab.find("#home").click()
        tab.on("lobby")
        expect(tab.find("#board .me .name")).to_have_text(tab.name)


def test_a_reload_in_mid_game_resumes_it(long_games, open_tabs):
    ann, bob = tabs = open_tabs(long_games)
    in_game(tabs)
    question = ann.find("#question").inner_text()
    bob.page.reload()
    bob.on("game")
    ann.answer(0)
    ann.page.reload()
    ann.on("game")
    expect(ann.find("#question")).to_have_text(question)
    expect(ann.choice(0)).to_be_disabled()  # the answer given before counts
    expect(ann.choice(0)).to_have_class(re.compile(r"\bown\b"))
    expect(bob.find("#question")).to_have_text(question)
    play_on(ann, bob)


def test_a_deploy_in_mid_game_is_hardly_noticed(chromium, open_tabs, make_server):
    server = make_server(
        edited_schema(answer_seconds=60, reveal_seconds=2, start_seconds=1, rounds=2),
        command=[sys.executable, "trivia.py", "--port", str(free_port()), "--workers", "2"],
    )
    ann, bob = tabs = open_tabs(server, PHONE)
    in_game(tabs)
    question, old = ann.find("#question").inner_text(), workers_of(server)
    ann.answer(0)
    server.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: not workers_of(server) & old and server.redis.zcard("workers:{lobby}") == 2, 60
    )
    for tab in tabs:
        expect(tab.find("#question")).to_have_text(question)
        tab.check_width("deployed")
    expect(ann.choice(0)).to_have_class(re.compile(r"\bown\b"))
    play_on(ann, bob)


def test_a_search_can_be_cancelled(server, open_tabs):
    (ann,) = open_tabs(server, PHONE, count=1)
    ann.register()
    ann.join("party")
    ann.on("searching")
    wait_until(
        lambda: server.redis.zcard("queue:{lobby}:party")
    )  # or the browser notes that it never connected
    ann.find("#cancel").click()
    ann.on("lobby")


def test_a_player_signs_in_again(server, open_tabs):
    (ann,) = open_tabs(server, PHONE, count=1)
    ann.register()
    ann.find("#sign-out").click()
    ann.on("auth")
    ann.find("#mode-login").click()
    ann.find("#login").fill(ann.name.upper())
    ann.find("#password").fill(PASSWORD)
    ann.find("#submit").click()
    ann.on("lobby")
    expect(ann.find("#me-name")).to_have_text(ann.name)


def test_mistakes_in_the_form_are_told_beside_the_field(server, open_tabs):
    (ann,) = open_tabs(server, PHONE, count=1)
    ann.find("#username").fill("<b>")
    ann.find("#password").fill("short")
    ann.find("#submit").click()
    for field in ("username", "email", "password"):
        expect(ann.find(f"#{field}-error")).not_to_be_empty()
        expect(ann.find(f"#{field}")).to_have_attribute("aria-invalid", "true")
    ann.on("auth")
    assert all("422" in trouble for trouble in ann.troubles), ann.troubles
    ann.troubles.clear()  # the browser itself notes a refused request in its console


# ---- sign-in ------------------------------------------------------------------------------------


def test_a_new_phone_plays_in_one_tap_and_keeps_its_progress(make_server, open_tabs, tmp_path):
    server = make_server(edited_schema(rounds=1, start_seconds=1, answer_seconds=20))
    ann, bob = open_tabs(server, {"width": 390, "height": 844})
    for tab in (ann, bob):
        tab.on("auth")
        tab.find("#play-now").click()
        tab.on("lobby")
        expect(tab.find("#guest-note")).to_be_visible()
        tab.name = tab.find("#me-name").inner_text()
        tab.join()
    for tab in (ann, bob):
        tab.on("game")
        tab.answer(0)
    for tab in (ann, bob):
        tab.on("result")
        expect(tab.find("#keep")).to_be_visible()
    ann.find("#keep-result").click()
    ann.on("auth")
    assert ann.find("#username").input_value() == ann.name
    ann.find("#email").fill(f"{unique_name()}@example.org")
    ann.find("#password").fill(PASSWORD)
    ann.find("#show-password").click()
    expect(ann.find("#password")).to_have_attribute("type", "text")
    ann.find("#submit").click()
    ann.on("lobby")
    expect(ann.find("#guest-note")).to_be_hidden()
    expect(ann.find("#me-games")).to_have_text("1")
    # The tab closes; another one of the same browser is signed in.
    ann.page.close()
    again = ann.context.new_page()
    again.goto(f"http://127.0.0.1:{server.port}/")
    expect(again.locator("#me-name")).to_have_text(ann.name)
    bob.find("#home").click()
    bob.find("#sign-out").click()
    bob.on("auth")
    bob.find("#play-now").click()  # the same guest
    bob.on("lobby")
    expect(bob.find("#me-name")).to_have_text(bob.name)


def test_a_link_in_a_mail_sets_a_new_password(make_server, open_tabs):
    env = {"TRIVIA_MAIL": "smtp://127.0.0.1:9?from=a@example.org"}
    server = make_server(env=env)
    player = server.register()
    name = player["user"]["username"]
    [tab] = open_tabs(server, {"width": 390, "height": 844}, count=1)
    tab.find("#mode-login").click()
    tab.find("#forgot").click()
    tab.find("#login").fill(name)
    tab.find("#submit").click()
    expect(tab.find("#code")).to_be_visible()
    tab.check_width("reset")
    command = [sys.executable, "trivia.py", "user", name, "reset"]
    done = subprocess.run(command, cwd=ROOT, env=server.env, capture_output=True, text=True)
    code = re.search(r"\b\d{6}\b", done.stdout)[0]
    tab.page.goto("about:blank")
    tab.page.goto(f"http://127.0.0.1:{server.port}/#reset={code}&login={name}")
    tab.on("auth")
    expect(tab.find("#code")).to_have_value(code)
    assert tab.page.url.endswith("/")  # the code is out of the address
    tab.find("#password").fill("another horse")
    tab.find("#submit").click()
    tab.on("lobby")
    expect(tab.find("#me-name")).to_have_text(name)
