"""The web client in headless Chromium: whole games in two browsers, its layout in each size, and
the page of a custom schema."""

import base64
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections import defaultdict
from urllib.parse import urlsplit

import pytest
import zxingcpp
from playwright.sync_api import expect

import trivia
from conftest import (
    PASSWORD,
    ROOT,
    Server,
    edited_schema,
    npm_install,
    trivia_py,
    unique_name,
    wait_until,
)
from test_end_to_end import free_port, workers_of
from test_sign_in import MailBox, OpenId

expect.set_options(timeout=20_000)

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
SHOTS = os.environ.get("TRIVIA_SHOTS")  # a folder to save screenshots in
SECONDS = 1000  # Playwright's unit is the millisecond


@pytest.fixture(scope="module")
def long_games():
    """A server with rounds that last long enough for the tests to inspect them."""
    times = {"answer_seconds": 60, "reveal_seconds": 2, "start_seconds": 1, "rounds": 2}
    times |= {"fill_seconds": 4, "rematch_seconds": 60}
    running = Server(edited_schema(add_constructor, **times))
    try:
        yield running.start()
    finally:
        running.close()


def add_constructor(tree):
    """Adds a queue named like a property that every JavaScript object has."""
    tree["queues"]["constructor"] = dict(tree["queues"]["random"])


class Tab:
    """A page in a browser context of its own. Records the errors of the page.

    Tests use the same tabs in turn: in a Chromium with windows, a new context costs a second
    of CPU.
    """

    def __init__(self, chromium, **options):
        self.context = chromium.new_context(**options)
        self.context.set_default_timeout(30 * SECONDS)
        self.page = self.context.new_page()
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("request", lambda request: self.under_way.add(request))
        self.page.on("requestfinished", lambda request: self.under_way.discard(request))
        self.page.on("requestfailed", lambda request: self.under_way.discard(request))
        self.page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).netloc))

    def open(self, server, viewport, signed_in=None):
        """Opens the page of a server that the browser has never visited.

        `signed_in` is the name of a new player. It stores their token first, without a form.
        """
        self.server, self.viewport = server, viewport
        self.name, self.troubles, self.hosts, self.under_way = unique_name(), [], set(), set()
        self.page.set_viewport_size(viewport)
        origin = f"http://127.0.0.1:{server.port}"
        if signed_in:
            self.name, token = signed_in, server.register(signed_in)["token"]
            self.page.goto(f"{origin}/icon.svg")  # any page of the origin can store the token
            self.page.evaluate("token => { localStorage.token = token }", token)
        self.page.goto(f"{origin}/")
        if signed_in:
            self.on("lobby")
        return self

    def note(self, message):
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    def find(self, selector, **options):
        return self.page.locator(selector, **options)

    def on(self, screen, seconds=30):
        """Waits for a screen, and checks that nothing overflows sideways."""
        expect(self.find("body")).to_have_attribute(
            "data-screen", screen, timeout=seconds * SECONDS
        )
        self.check_width(screen)

    def check_width(self, screen):
        wide = self.page.evaluate("""() => [...document.querySelectorAll('body *')]
            .filter((one) => one.getClientRects().length
                && one.getBoundingClientRect().right > innerWidth + 1)
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

    def sign_out(self):
        """Signs out once the lobby has loaded: the server would refuse later requests."""
        while self.under_way:
            self.page.wait_for_timeout(20)
        self.find("#sign-out").click()
        self.on("auth")

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

    def leave(self):
        """Clears the browser's data of the server, and tells whether the tab can be used again."""
        if self.page.is_closed() or len(self.context.pages) > 1:
            self.context.close()
            return False
        self.page.emulate_media(color_scheme="null")
        self.page.goto("about:blank")
        origin = {"origin": f"http://127.0.0.1:{self.server.port}", "storageTypes": "all"}
        self.context.new_cdp_session(self.page).send("Storage.clearDataForOrigin", origin)
        return True


@pytest.fixture(scope="module")
def free_tabs():
    """Tabs that no test uses now, by their options."""
    return defaultdict(list)


@pytest.fixture
def open_tabs(chromium, free_tabs):
    """Opens tabs. At the end it checks that none had an error or a request to another host."""
    used = []

    def make(server, viewport=DESKTOP, count=2, signed_in=(), **options):
        options = {"reduced_motion": "reduce", "has_touch": False} | options
        free = free_tabs[str(options)]
        names = signed_in or [None] * count
        tabs = [free.pop() if free else Tab(chromium, **options) for _ in names]
        used.extend((tab.open(server, viewport, name), free) for tab, name in zip(tabs, names))
        return tabs

    yield make
    tabs = [tab for tab, _ in used]
    troubles, hosts = [tab.troubles for tab in tabs], {host for tab in tabs for host in tab.hosts}
    for tab, free in used:
        if tab.leave():
            free.append(tab)
    assert not any(troubles), troubles
    assert hosts <= {f"127.0.0.1:{tab.server.port}" for tab in tabs} | {""}, hosts


def new_names(count=2):
    return [unique_name() for _ in range(count)]


def see_first_question(tabs):
    """Waits until each tab shows the first question of its game."""
    for tab in tabs:
        tab.on("game")
        expect(tab.choice(0)).to_be_enabled()


def in_game(tabs, queue="random"):
    """Brings tabs from the lobby to the first question of a game."""
    for tab in tabs:
        tab.join(queue)
    see_first_question(tabs)


def play_round(ann, bob):
    """Ann answers first and Bob sees that, then Bob answers. Returns whether each was right."""
    ann.answer(0)
    expect(
        bob.find(f'[data-player="{ann.name}"]').get_by_role("img", name="answered")
    ).to_be_visible()
    bob.answer(1)
    return see_reveal(ann, bob)


def see_reveal(ann, bob):
    """Checks the reveal in both tabs. Returns whether Ann and Bob were right.

    Ann has taken the first choice, Bob the second.
    """
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
    """Plays from the first of two questions, which Ann has answered, to the end."""
    bob.answer(1)
    for tab in (ann, bob):
        expect(tab.find("#round")).to_contain_text("2 of 2", timeout=20 * SECONDS)
    play_round(ann, bob)
    for tab in (ann, bob):
        tab.on("result")


def test_two_players_play_a_whole_game_on_a_desktop_and_a_phone(long_games, open_tabs):
    [ann] = open_tabs(long_games, DESKTOP, count=1)
    moving = {"has_touch": True, "reduced_motion": "no-preference"}
    [bob] = open_tabs(long_games, PHONE, count=1, **moving)
    tabs = [ann, bob]
    for tab in tabs:
        tab.register()
    in_game(tabs)
    assert ann.find("#question").inner_text() == bob.find("#question").inner_text()
    expect(ann.find("#countdown")).to_contain_text(re.compile(r"^\s*[1-6]?\d\s*$"))
    for one, other in ((ann, bob), (bob, ann)):
        one.find('#emoji-bar button[data-emoji="🎉"]').click()
        expect(other.find(f'[data-player="{one.name}"]')).to_contain_text("🎉")
    points = {tab.name: 0 for tab in tabs}
    for number, order in ((1, [ann, bob]), (2, [bob, ann])):
        expect(ann.find("#round")).to_contain_text(f"{number} of 2")
        rights = play_round(*order)
        # Animations cost CPU: the second question has none.
        bob.page.emulate_media(reduced_motion="reduce" if number == 1 else "no-preference")
        for tab, right in zip(order, rights, strict=True):
            tab.check_width("reveal")
            seen = tab.score(tab.name)
            assert (seen > points[tab.name]) == right and seen >= points[tab.name]
            points[tab.name] = seen
        for one, other in ((ann, bob), (bob, ann)):
            score = one.find(f'[data-player="{other.name}"] .score')
            expect(score).to_have_text(str(points[other.name]))
    for tab in tabs:
        tab.on("result")
        expect(tab.find("[data-rank]")).to_have_count(2)
        rows = {name: tab.find("[data-rank]", has_text=name) for name in points}
        for name, row in rows.items():
            better = sum(other > points[name] for other in points.values())
            expect(row).to_have_attribute("data-rank", str(1 + better))
            expect(row.locator(".score")).to_have_text(str(points[name]))
        tab.find("#again").click()
    see_first_question(tabs)
    bob.find("#leave").click()
    bob.find("#leave-yes").click()
    ann.on("result")
    expect(ann.find('[data-rank="1"]')).to_contain_text(ann.name)
    ann.find("#home").click()
    ann.on("lobby")
    expect(ann.find("#me-games")).to_have_text("1")  # the second game had no answers


def test_a_reload_during_a_game_resumes_it_whatever_the_names(long_games, open_tabs):
    """The names include properties that every JavaScript object has."""
    ann, bob = tabs = open_tabs(long_games, signed_in=["constructor", "__proto__"])
    in_game(tabs, "constructor")
    for tab in tabs:
        for name in (ann.name, bob.name):
            assert tab.score(name) == 0
    question = ann.find("#question").inner_text()
    bob.page.reload()
    bob.on("game")
    ann.answer(0)
    ann.page.reload()
    ann.on("game")
    expect(ann.find("#question")).to_have_text(question)
    expect(ann.choice(0)).to_be_disabled()  # the answer from before the reload counts
    expect(ann.choice(0)).to_have_class(re.compile(r"\bown\b"))
    expect(bob.find("#question")).to_have_text(question)
    bob.answer(1)
    right = see_reveal(ann, bob)
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


def test_a_deploy_during_a_game_does_not_disturb_it(chromium, open_tabs, make_server):
    server = make_server(
        edited_schema(answer_seconds=60, reveal_seconds=2, start_seconds=1, rounds=2),
        command=[sys.executable, "trivia.py", "--port", str(free_port()), "--workers", "2"],
    )
    ann, bob = tabs = open_tabs(server, PHONE, signed_in=new_names())
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


def test_a_search_can_be_cancelled(long_games, open_tabs):
    (ann,) = open_tabs(long_games, PHONE, signed_in=new_names(1))
    ann.join("party")
    ann.on("searching")
    # Without this wait, the browser may note that it never connected.
    wait_until(lambda: long_games.redis.zcard("queue:{lobby}:party"))
    ann.find("#cancel").click()
    ann.on("lobby")


def test_a_player_signs_in_again(long_games, open_tabs):
    (ann,) = open_tabs(long_games, PHONE, count=1)
    ann.register()
    ann.sign_out()
    ann.find("#mode-login").click()
    ann.find("#login").fill(ann.name.upper())
    ann.find("#password").fill(PASSWORD)
    ann.find("#submit").click()
    ann.on("lobby")
    expect(ann.find("#me-name")).to_have_text(ann.name)


def test_the_form_shows_mistakes_beside_the_field(long_games, open_tabs):
    (ann,) = open_tabs(long_games, PHONE, count=1)
    ann.find("#mode-register").click()
    ann.find("#username").fill("<b>")
    ann.find("#password").fill("short")
    ann.find("#submit").click()
    for field in ("username", "email", "password"):
        expect(ann.find(f"#{field}-error")).not_to_be_empty()
        expect(ann.find(f"#{field}")).to_have_attribute("aria-invalid", "true")
    ann.on("auth")
    assert all("422" in trouble for trouble in ann.troubles), ann.troubles
    ann.troubles.clear()  # the browser notes a refused request in its console


# ---- sign-in ------------------------------------------------------------------------------------


def test_a_new_player_plays_with_one_tap_and_keeps_their_progress(make_server, open_tabs, tmp_path):
    server = make_server(edited_schema(rounds=1, start_seconds=1, answer_seconds=20))
    ann, bob = open_tabs(server, {"width": 390, "height": 844})
    for tab in (ann, bob):
        tab.on("auth")
        tab.find("#play-now").click()
    for tab in (ann, bob):
        tab.on("game")
        tab.name = tab.find("#players .me .name").inner_text()
        tab.answer(0)
    for tab in (ann, bob):
        tab.on("result")
        expect(tab.find("#keep")).to_be_visible()
    # A session that is days old may not do that: the page signs in again without a question.
    token = ann.page.evaluate("localStorage.token")
    secret = base64.urlsafe_b64encode(b"x" * 20 + (int(time.time()) - 86400).to_bytes(4)).decode()
    user = trivia.Keys.user(token[:12])
    server.redis.hset(user, f"session:{trivia.digest(secret)}", int(time.time()) + 86400)
    ann.page.evaluate("token => { localStorage.token = token }", token[:12] + secret)
    ann.page.reload()
    ann.on("lobby")
    ann.find("#keep-lobby").click()
    ann.on("auth")
    assert ann.find("#username").input_value() == ann.name
    ann.find("#email").fill(f"{unique_name()}@example.org")
    ann.find("#password").fill(PASSWORD)
    ann.find("#show-password").click()
    expect(ann.find("#password")).to_have_attribute("type", "text")
    ann.find("#submit").click()
    ann.on("lobby")
    assert ["403" in trouble for trouble in ann.troubles] == [True], ann.troubles
    ann.troubles.clear()  # the browser notes a refused request in its console
    expect(ann.find("#guest-note")).to_be_hidden()
    expect(ann.find("#me-games")).to_have_text("1")
    # The tab closes; another tab of the same browser is signed in.
    ann.page.close()
    again = ann.context.new_page()
    again.goto(f"http://127.0.0.1:{server.port}/")
    expect(again.locator("#me-name")).to_have_text(ann.name)
    bob.find("#home").click()
    expect(bob.find("#guest-note")).to_be_visible()
    bob.sign_out()
    bob.find("#play-now").click()  # the same guest
    bob.on("searching")
    bob.find("#cancel").click()
    bob.on("lobby")
    expect(bob.find("#me-name")).to_have_text(bob.name)


@pytest.fixture(scope="module")
def club():
    """An OpenID provider, a mail server, and a server that signs players in with both."""

    def edit(tree):
        web = {"client_id": "app.web", "authorize": f"{provider.issuer}/authorize"}
        spec = {"issuer": provider.issuer, "audiences": ["app.web"], "web": web}
        tree["sign_in"]["providers"] = {"acme": spec}

    with contextlib.closing(OpenId()) as provider, contextlib.closing(MailBox()) as mailbox:
        server = Server(edited_schema(edit), env={"TRIVIA_MAIL": mailbox.url})
        try:
            yield provider, mailbox, server.start()
        finally:
            server.close()


@pytest.fixture
def phone_browser(chromium, club):
    """Opens pages in new browsers, in the language of the tests."""
    contexts = []

    def make():
        viewport = {"width": 390, "height": 844}
        options = {"has_touch": True, "locale": "en-GB", "reduced_motion": "reduce"}
        contexts.append(chromium.new_context(viewport=viewport, **options))
        return open_page(contexts[-1], club[2])

    yield make
    for context in contexts:
        context.close()


def open_page(context, server):
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    return page


def tap(page, name, role="button"):
    page.get_by_role(role, name=name, exact=True).click()


def shoot(page, name):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/390-{name}.png")


def become_guest(page):
    """Taps Play, and returns to the lobby, which offers a guest to keep their progress."""
    tap(page, "Play")
    cancel = page.get_by_role("button", name="Cancel", exact=True)
    keep = page.get_by_role("button", name="Keep your progress").filter(visible=True)
    expect(cancel.or_(keep).first).to_be_visible()
    if cancel.is_visible():
        cancel.click()
    expect(keep).to_be_visible()
    return page.get_by_role("heading", level=1).inner_text()


def sign_in_with_acme(page, name):
    tap(page, "Continue with Acme")
    expect(page.get_by_role("heading", name="Acme")).to_be_visible()
    shoot(page, f"provider-{name}")
    tap(page, "It is me", "link")


def expect_account(page, name):
    """Waits for the lobby of an account with this name."""
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    expect(
        page.get_by_role("button", name="Keep your progress").filter(visible=True)
    ).to_have_count(0)


def test_a_guest_keeps_their_progress_with_a_provider_on_every_phone(club, phone_browser):
    provider, _, server = club
    provider.let_in("ann")
    page = phone_browser()
    shoot(page, "start")
    name = become_guest(page)
    shoot(page, "guest")
    tap(page, "Keep your progress")
    shoot(page, "keep")
    sign_in_with_acme(page, "link")
    expect_account(page, name)
    context = page.context
    page.close()
    page = open_page(context, server)  # the tab was closed; the browser remembers the player
    expect_account(page, name)
    tap(page, "Sign out")
    sign_in_with_acme(page, "again")
    expect_account(page, name)
    other = phone_browser()
    sign_in_with_acme(other, "new-phone")
    expect_account(other, name)


def test_a_guest_confirms_the_merge_into_the_account_of_their_identity(club, phone_browser):
    provider, _, server = club
    provider.let_in("bob")
    page = phone_browser()
    sign_in_with_acme(page, "first")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    account = page.get_by_role("heading", level=1).inner_text()
    second = phone_browser()
    guest = become_guest(second)
    for answer in ("Not now", "Move there"):
        tap(second, "Keep your progress")
        sign_in_with_acme(second, "taken")
        dialog = second.get_by_role("dialog", name="You have an account already")
        expect(dialog).to_contain_text(f"Move the games of {guest} to {account}?")
        shoot(second, "merge")
        dialog.get_by_role("button", name=answer).click()
        expect(dialog).to_be_hidden()
        status = 200 if answer == "Not now" else 404
        wait_until(lambda: server.http("GET", f"/users/{guest}").status == status)
    expect_account(second, account)
    shoot(second, "merged")


def test_a_player_sets_a_new_password_with_a_code_from_a_mail(club, phone_browser):
    _, mailbox, server = club
    player = server.register()["user"]
    page = phone_browser()
    tap(page, "Sign in")
    tap(page, "Forgot password")
    page.get_by_label("Username or email").fill(player["email"])
    tap(page, "Send me a code")
    page.get_by_label("Code of six digits").fill("12345x")
    password = page.get_by_role("textbox", name="Password")
    password.fill("another horse")
    tap(page, "Show")
    expect(password).to_have_attribute("type", "text")
    tap(page, "Set new password")
    expect(page.get_by_label("Code of six digits")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Code of six digits").fill(mailbox.code(player["email"]))
    shoot(page, "reset")
    tap(page, "Set new password")
    expect_account(page, player["username"])


def test_a_player_sets_a_new_password_with_a_link_from_a_mail(club, open_tabs):
    _, _, server = club
    player = server.register()
    name = player["user"]["username"]
    [tab] = open_tabs(server, {"width": 390, "height": 844}, count=1)
    tab.find("#mode-login").click()
    tab.find("#forgot").click()
    tab.find("#login").fill(name)
    tab.find("#submit").click()
    expect(tab.find("#code")).to_be_visible()
    tab.check_width("reset")
    done = trivia_py("user", name, "reset", env=server.env)
    code = re.search(r"\b\d{6}\b", done.stdout)[0]
    tab.page.goto("about:blank")
    tab.page.goto(f"http://127.0.0.1:{server.port}/#reset={code}&login={name}")
    tab.on("auth")
    expect(tab.find("#code")).to_have_value(code)
    assert tab.page.url.endswith("/")  # the page removes the code from the address
    tab.find("#password").fill("another horse")
    tab.find("#submit").click()
    tab.on("lobby")
    expect(tab.find("#me-name")).to_have_text(name)


# ---- layout and accessibility -------------------------------------------------------------------

SIZES = [(390, 844), (844, 390), (320, 568), (1280, 800)]
MAX_PAGE = 60 * 1024
AXE = "4.14.1"  # the version of the npm package axe-core
# Whether the whole of each choice is visible, and large enough for a thumb.
TAPPABLE = """() => [...document.querySelectorAll('.choice')]
    .map((one) => one.getBoundingClientRect())
    .every((box) => box.height >= 72 && box.top >= 0 && box.bottom <= innerHeight + 1)"""


@pytest.fixture(scope="module")
def axe(request):
    """The source of axe-core."""
    modules = npm_install(request.config.cache, f"axe-core@{AXE}")
    return (modules / "axe-core" / "axe.min.js").read_text("utf-8")


def check_with_axe(tab, axe):
    """Looks for barriers on the screen. In the dark scheme only the colours differ."""
    screen = tab.find("body").get_attribute("data-screen")
    if not tab.page.evaluate("'axe' in window"):
        tab.page.evaluate(axe)
    for scheme, options in (
        ("light", "resultTypes: ['violations']"),
        ("dark", "runOnly: ['color-contrast', 'link-in-text-block']"),
    ):
        tab.page.emulate_media(color_scheme=scheme)
        # Fetches only what is checked: the rest is a megabyte a screen.
        passes, violations = tab.page.evaluate(
            f"axe.run({{{options}}}).then((found) => [found.passes.length, found.violations])"
        )
        assert passes, (screen, scheme)
        assert not violations, (screen, scheme, json.dumps(violations, indent=1)[:3000])


def test_axe_finds_nothing_on_any_screen(long_games, open_tabs, axe):
    ann, bob = tabs = open_tabs(long_games, {"width": 390, "height": 844})
    check_with_axe(ann, axe)
    ann.find("#mode-register").click()
    check_with_axe(ann, axe)
    for tab in tabs:
        tab.register()
    expect(ann.find("#board-tabs button")).to_have_count(3)
    check_with_axe(ann, axe)
    ann.join()
    ann.on("searching")
    check_with_axe(ann, axe)
    bob.join()
    ann.on("game")
    for tab in tabs:
        expect(tab.choice(0)).to_be_enabled()
    check_with_axe(ann, axe)
    ann.answer(0)
    check_with_axe(ann, axe)
    bob.answer(1)
    expect(ann.find("button.choice.right")).to_have_count(1)
    check_with_axe(ann, axe)
    for tab in tabs:
        expect(tab.find("#round")).to_contain_text("2 of 2")
        tab.answer(0)
    ann.on("result")
    ann.find("#review summary").first.click()
    check_with_axe(ann, axe)
    ann.page.get_by_role("button", name=f"About {bob.name}").click()
    ann.find("#profile summary").click()
    check_with_axe(ann, axe)
    ann.page.keyboard.press("Escape")
    ann.find("#home").click()
    ann.join("challenge")
    ann.on("challenge")
    check_with_axe(ann, axe)
    ann.find("#challenge-home").click()
    ann.join("friends")
    ann.on("room")
    check_with_axe(ann, axe)


def test_eight_players_and_all_choices_fit_in_each_size(long_games, open_tabs):
    [tab] = open_tabs(long_games, signed_in=new_names(1))
    sessions = [long_games.register() for _ in range(7)]
    tab.join("party")
    tab.on("searching")
    phones = [long_games.phone(queue="party", session=session) for session in sessions]
    tab.on("game")
    expect(tab.choice(0)).to_be_enabled()
    for width, height in SIZES:
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.check_width(f"eight-{width}")
        assert tab.page.evaluate(TAPPABLE), (width, height)
        expect(tab.find("#players li")).to_have_count(8)
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.page.evaluate("document.documentElement.style.fontSize = '24px'")
    tab.check_width("large-fonts")
    for phone in phones:
        phone.close()
    tab.find("#leave").click()
    tab.find("#leave-yes").click()
    tab.on("lobby")
    tab.check_width("lobby-large-fonts")


def test_a_reveal_is_announced_once_and_a_rematch_needs_both_players(long_games, open_tabs):
    ann, bob = tabs = open_tabs(long_games, PHONE, signed_in=new_names())
    in_game(tabs)
    ann.page.evaluate("""() => {
        window.told = []
        const say = document.getElementById('say')
        new MutationObserver(() => told.push(say.textContent))
            .observe(say, {childList: true, characterData: true, subtree: true})
    }""")
    right, _ = play_round(ann, bob)
    told = ann.page.evaluate("told")
    assert len(told) == 1 and ("Right!" if right else "Not this time.") in told[0], told
    assert re.search(rf"you: \d+ points?, {bob.name}: \d+ points?", told[0]), told
    for tab in tabs:
        tab.page.keyboard.press("5")  # there is no such choice
    expect(ann.find("#round")).to_contain_text("2 of 2")
    assert "Round 2 of 2" in ann.page.evaluate("told[1]")
    ann.page.keyboard.press("1")
    bob.page.keyboard.press("2")
    for tab in tabs:
        tab.on("result")
    expect(ann.find("#review details")).to_have_count(2)
    ann.find("#review summary").first.click()
    expect(ann.find("#review details[open] li.ok")).to_have_count(1)
    shown = ann.find("#ranking").inner_text()
    assert not re.search(r"\d\.\d", shown), "ratings are whole numbers"
    ann.find("#rematch").click()
    expect(bob.find("#offer")).to_contain_text(f"{ann.name} wants a rematch!")
    bob.find("#rematch").click()
    see_first_question(tabs)
    ann.answer(0)
    play_on(ann, bob)
    bob.find("#home").click()
    expect(ann.find("#offer")).to_have_text("No rematch this time.")


@pytest.mark.parametrize(
    "ranks, reason, verdict, why",
    [
        ("1 2", "finished", "You won!", ""),
        ("2 1", "finished", "p1 won", ""),
        ("1 1", "finished", "A draw!", ""),
        ("1 2", "forfeit", "You won!", "p1 left the game."),
        ("1 2 3", "forfeit", "You won!", "p1 left the game."),
        ("1 2", "abandoned", "You won!", "The game was broken off."),
        ("1 1 3", "finished", "A draw: you share place 1 of 3", ""),
        ("5 1 2 3 4 6 7 8", "finished", "Place 5 of 8", ""),
        ("3 1 2 3 3 6 7 8", "finished", "A draw: you share place 3 of 8", ""),
        ("1", "finished", "2 of 3 right", ""),
    ],
)
def test_the_result_screen_describes_each_end_correctly(ended, ranks, reason, verdict, why):
    names = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"]
    ranking = [
        {"player": name, "score": 0, "rank": int(rank)}
        for name, rank in zip(names, ranks.split(), strict=False)
    ]
    shown = ended.page.evaluate(
        """([ranking, reason]) => {
            me = {username: 'p0'}
            const round = (choice) => ({correct: 1, answers: {p0: {choice}}})
            game = {players: [], away: new Map([['p1', 'left']]), log: [1, 1, 0].map(round),
                round: 3}
            renderResult(reason, ranking)
            return ['verdict', 'reason'].map((id) => document.getElementById(id).textContent)
        }""",
        [ranking, reason],
    )
    assert shown == [verdict, why]


@pytest.fixture(scope="module")
def ended(long_games, chromium):
    """A tab with the source of the page, so that tests can call its functions."""
    tab = Tab(chromium, reduced_motion="reduce").open(long_games, PHONE)
    facts = tab.find("#facts").text_content()
    page = (ROOT / "pages" / "play.html").read_text("utf-8")
    page = page.replace(">{}</script>", f">{facts}</script>")
    page = page.replace("(() => {\n/*----", "/*----").replace("\n})()\n", "\n")
    tab.page.set_content(page)
    yield tab
    tab.context.close()


def test_the_page_is_one_small_file_and_can_be_installed(long_games):
    page = long_games.http("GET", "/").body
    assert len(page.encode()) <= MAX_PAGE < len((ROOT / "pages" / "play.html").read_bytes())
    loaded = re.findall(r"<(?:img|link|script)[^>]* (?:src|href)=([^ >]+)", page)
    assert set(loaded) == {"icon.svg", "manifest.json"}
    assert not re.search(r"<!--|/\*|@import|url\(", page)
    manifest = long_games.http("GET", "/manifest.json")
    assert manifest.headers["content-type"] == "application/manifest+json"
    assert manifest.json["name"] == "Trivia" and manifest.json["display"] == "standalone"
    icon = long_games.http("GET", f"/{manifest.json['icons'][0]['src']}")
    assert icon.headers["content-type"] == "image/svg+xml" and trivia.ACCENT in icon.body
    policy = long_games.http("GET", "/").headers["content-security-policy"]
    assert "img-src 'self' data:;" in policy


# ---- alone and with friends ---------------------------------------------------------------------


def test_friends_join_a_room_by_a_link_and_the_host_controls_it(long_games, open_tabs):
    size = {"width": 390, "height": 844}
    [ann], [bob] = (
        open_tabs(long_games, size, count=1, signed_in=new) for new in (new_names(1), ())
    )
    tabs = [ann, bob]
    ann.join("friends")
    ann.on("room")
    code = ann.find("#room-code").inner_text()
    link = f"http://127.0.0.1:{long_games.port}/#room={code}"
    assert read_code(ann.page) == link
    expect(ann.find("#begin")).to_be_disabled()
    bob.page.goto(link)
    expect(bob.find("#invite")).to_contain_text(ann.name)
    bob.find("#play-now").click()  # this makes a guest account
    bob.on("room")
    bob.name = bob.find("[data-member]", has_text="you").locator(".name").inner_text()
    for tab in tabs:
        expect(tab.find("[data-member]")).to_have_count(2)
    expect(bob.find("#begin")).to_be_hidden()
    ann.find("#lock").click()
    expect(ann.find("#lock")).to_have_text("Unlock the room")
    ann.find(f'[data-member="{bob.name}"] [data-act="pass"]').click()
    expect(bob.find("#lock")).to_have_text("Unlock the room")
    bob.find(f'[data-member="{ann.name}"] [data-act="pass"]').click()
    ann.find("#begin").click()
    see_first_question(tabs)
    ann.answer(0)
    play_on(ann, bob)
    for tab in tabs:
        tab.find("#again").click()
        tab.on("room")
    ann.find(f'[data-member="{bob.name}"] [data-act="kick"]').click()
    bob.on("lobby")
    expect(bob.find("#toasts")).to_contain_text("sent you away")
    bob.find("#room-input").fill(f"{code[:3]} {code[3:]}".lower())
    bob.find("#code-form button").click()
    expect(bob.find("#toasts")).to_contain_text("from this room")
    bob.on("lobby")
    bob.find("#room-input").fill("CCCCCC")
    bob.find("#code-form button").click()
    expect(bob.find("#toasts")).to_contain_text("No room or challenge")
    bob.troubles.clear()  # the browser notes the 404 in its console


def test_a_player_alone_sees_which_answers_were_right(long_games, open_tabs):
    [ann] = open_tabs(long_games, PHONE, signed_in=new_names(1))
    ann.join("solo")
    ann.on("game")
    expect(ann.find("#lives")).to_have_text("3 ♥")
    right = 0
    for number in (1, 2):
        expect(ann.find("#round")).to_contain_text(f"{number} of 2")
        ann.answer(0)
        expect(ann.find("button.choice.right")).to_have_count(1)
        right += "right" in ann.choice(0).get_attribute("class")
    ann.on("result")
    expect(ann.find("#verdict")).to_have_text(f"{right} of 2 right")
    expect(ann.find("#review b.ok")).to_have_count(right)


def test_the_daily_questions_are_played_once_and_make_a_streak(long_games, open_tabs):
    [ann] = open_tabs(long_games, PHONE, signed_in=new_names(1))
    ann.join("daily")
    ann.on("game")
    answer_alone(ann)
    ann.on("result")
    points = int(ann.find("#ranking .score").inner_text())
    expect(ann.find("#streak")).to_have_text("🔥 1 day in a row")
    ann.find("#again").click()
    ann.on("lobby")
    expect(ann.find('#board-tabs [aria-pressed="true"]')).to_contain_text("Daily questions")
    expect(ann.find("#board .me .name")).to_have_count(int(points > 0))
    expect(ann.find('[data-queue="daily"]')).to_contain_text("Played today")
    ann.page.evaluate("localStorage.removeItem('played/daily')")  # as on another device
    ann.page.reload()
    ann.on("lobby")
    ann.join("daily")
    expect(ann.find("#toasts")).to_contain_text("You have played the questions of today")
    ann.on("lobby")
    expect(ann.find('[data-queue="daily"]')).to_contain_text("Played today")


def test_a_friend_plays_a_challenge_by_its_link(long_games, open_tabs):
    [ann] = open_tabs(long_games, PHONE, signed_in=new_names(1))
    [bob] = open_tabs(long_games, PHONE, count=1)
    ann.join("challenge")
    ann.on("challenge")
    code = ann.find("#challenge-code").inner_text().replace(" ", "")
    ann.find("#challenge-play").click()
    ann.on("game")
    answer_alone(ann)
    ann.on("result")
    bob.page.goto(f"http://127.0.0.1:{long_games.port}/#challenge={code}")
    expect(bob.find("#invite")).to_contain_text(f"{ann.name} challenges you")
    bob.find("#play-now").click()
    bob.on("challenge")
    expect(bob.find("#challenge-players .name")).to_have_text(ann.name)
    expect(bob.find("#challenge-review")).to_be_hidden()  # until Bob has played
    bob.find("#challenge-play").click()
    bob.on("game")
    answer_alone(bob)
    bob.on("result")
    expect(bob.find("#ranking [data-rank]")).to_have_count(2)
    expect(bob.find("#verdict")).to_have_text(re.compile("draw|won"))
    bob.find("#again").click()
    bob.on("challenge")
    expect(bob.find("#challenge-play")).to_be_hidden()
    expect(bob.find("#challenge-review details")).to_have_count(2)
    ann.find("#home").click()
    ann.on("lobby")
    ann.find(f'[data-challenge="{code}"]').click()
    ann.on("challenge")
    expect(ann.find("#challenge-players [data-rank]")).to_have_count(2)
    ann.find("#challenge-home").click()
    ann.find("#room-input").fill("AAAABBBB")
    ann.find("#code-form button").click()
    expect(ann.find("#toasts")).to_contain_text("No room or challenge")
    ann.troubles.clear()  # the browser notes the 404 in its console


def answer_alone(tab):
    for number in (1, 2):
        expect(tab.find("#round")).to_contain_text(f"{number} of 2")
        tab.answer(0)


def flags_of(server):
    """Counts the flags of all questions."""
    rows = server.redis.zrange(trivia.Keys.flagged, 0, -1, withscores=True)
    return sum(score for _, score in rows)


def test_players_flag_questions_and_report_and_block_each_other(long_games, open_tabs):
    ann, bob = tabs = open_tabs(long_games, PHONE, signed_in=new_names())
    before = flags_of(long_games)
    in_game(tabs)
    expect(ann.find("#flag")).to_be_hidden()
    play_round(ann, bob)
    ann.find("#flag").click()
    expect(ann.find("#toasts")).to_contain_text("We look at it")
    expect(ann.find("#round")).to_contain_text("2 of 2")
    play_round(ann, bob)
    ann.on("result")
    ann.find("#review summary").nth(1).click()
    ann.find("#review details[open] button").click()
    expect(ann.find("#toasts")).to_contain_text("We look at it")
    expect(ann.find("#review details[open] button")).to_have_count(0)
    wait_until(lambda: flags_of(long_games) == before + 2)
    row = ann.page.get_by_role("button", name=f"About {bob.name}")
    for answer in ("We look at it", "You have reported this already"):
        row.click()
        expect(ann.find("#profile-name")).to_have_text(bob.name)
        ann.find("#profile summary").click()
        ann.find("#report-reason").select_option("cheating")
        ann.find("#report-text").fill("So fast.")
        ann.find("#report-send").click()
        expect(ann.find("#toasts")).to_contain_text(answer)
    assert len(ann.troubles) == 1 and "409" in ann.troubles.pop()
    ann.page.keyboard.press("Escape")
    row.click()
    ann.find("#block").click()
    expect(ann.find("#toasts")).to_contain_text(f"You will not meet {bob.name} again")
    ann.find("#home").click()
    ann.find("#blocks summary").click()
    expect(ann.find("#block-list .name")).to_have_text(bob.name)
    ann.check_width("blocks")
    token = ann.page.evaluate("localStorage.getItem('token')")
    ann.find("#block-list button").click()
    expect(ann.find("#blocks")).to_be_hidden()
    assert long_games.http("GET", "/users/me/blocks", token=token).json["blocks"] == []
    assert [one for one in long_games.redis.scan_iter("report*")], "a report is stored"


def read_code(page):
    """Reads the QR code on a page, as a phone does."""
    wait_until(lambda: page.evaluate("document.getElementById('qr').naturalWidth"))
    pixels = page.evaluate("""() => {
        const canvas = new OffscreenCanvas(330, 330).getContext('2d')
        canvas.drawImage(document.getElementById('qr'), 0, 0, 330, 330)
        const red = canvas.getImageData(0, 0, 330, 330).data.filter((_, index) => index % 4 === 0)
        // A string arrives sooner than a list.
        return Array.from(red, (value) => String.fromCharCode(value)).join('')
    }""")
    picture = memoryview(pixels.encode("latin-1")).cast("B", (330, 330))
    [code] = zxingcpp.read_barcodes(picture)
    return code.text


# ---- a custom schema ----------------------------------------------------------------------------


def own(tree):
    """Changes everything that the page could take for granted."""
    tree["title"] = "Quizland"
    tree["page"] = {"accent": "#ffd400", "language": "de", "pictures": "avatar"}
    del tree["sign_in"]
    tree["leaderboards"] = {"most_games": {"field": "games"}}
    tree["queues"] = {"blitz": tree["queues"]["random"]}
    tree["users"]["fields"]["country"] = {"type": "string", "enum": ["AT", "DE"], "title": "Land"}
    tree["users"]["fields"]["code"] = {"type": "integer", "minimum": 10}
    tree["users"]["required"] += ["country", "code"]
    del tree["messages"]["client"]["emoji"]
    wave = {"type": "integer", "minimum": 1, "maximum": 3}
    tree["messages"]["client"]["wave"] = {"relay": "opponents", "fields": {"size": wave}}
    tree["messages"]["client"]["wave"]["required"] = ["size"]


def only_rooms(tree):
    """Keeps only the required parts of a schema, and one queue: rooms."""
    tree["queues"] = {"den": tree["queues"]["friends"]}
    tree["page"] = {"language": "de"}
    tree["leaderboards"] = {}
    del tree["sign_in"], tree["messages"]["client"]["emoji"]


def test_play_opens_a_room_if_that_is_the_only_queue(make_server, open_tabs):
    [tab] = open_tabs(make_server(edited_schema(only_rooms)), PHONE, count=1)
    tab.on("auth")
    expect(tab.find("#play-now")).to_be_hidden()
    tab.find("#mode-login").click()
    tab.find("#login").fill("nobody")
    tab.find("#password").fill(PASSWORD)
    tab.find("#submit").click()
    expect(tab.find("#problem")).to_have_text("Name oder Passwort stimmt nicht.")
    tab.troubles.clear()  # the browser notes the 401 in its console
    tab.register()
    expect(tab.find("#games")).to_be_visible()  # it takes the code of a friend's room
    expect(tab.find("#boards")).to_be_hidden()
    tab.find("#room-input").fill("CCCCCC")
    tab.find("#code-form button").click()
    expect(tab.find("#toasts")).to_contain_text("Zu diesem Code gibt es nichts.")
    tab.troubles.clear()  # and the 404
    tab.find("#play").click()
    tab.on("room")
    expect(tab.find("#room-note")).to_have_text("Es fehlt noch 1 Person.")


def test_the_page_follows_the_schema(make_server, open_tabs):
    server = make_server(edited_schema(own, rounds=1, start_seconds=2, answer_seconds=60))
    ann, bob = tabs = open_tabs(server, PHONE)
    for tab, number in ((ann, "9"), (bob, "10")):
        tab.on("auth")
        expect(tab.find("#mode-register")).to_have_text("Registrieren")
        expect(tab.find("h1:visible")).to_have_text("Quizland")
        tab.find("#username").fill(tab.name)
        tab.find("#email").fill(f"{tab.name}@example.org")
        tab.find("#password").fill(PASSWORD)
        tab.page.get_by_label("Land").select_option("DE")
        tab.page.get_by_label("Code", exact=True).fill(number)
        tab.find("#submit").click()
    expect(ann.find("#field-code-error")).to_contain_text("10")
    ann.troubles.clear()  # the browser notes the 422 in its console
    ann.find("#field-code").fill("11")
    ann.find("#submit").click()
    for tab in tabs:
        tab.on("lobby")
    assert ann.page.title() == "Quizland"
    assert (
        ann.page.evaluate("getComputedStyle(document.getElementById('play')).backgroundColor")
        == "rgb(255, 212, 0)"
    )
    assert (
        ann.page.evaluate("getComputedStyle(document.getElementById('play')).color")
        == "rgb(22, 19, 43)"
    )
    expect(ann.find("#board-tabs")).to_contain_text("Most games")
    token = ann.page.evaluate("localStorage.getItem('token')")
    picture = f"http://127.0.0.1:{server.port}/icon.svg"
    answer = server.http("PATCH", "/users/me", {"avatar": picture}, token)
    assert (answer.json["country"], answer.json["code"]) == ("DE", 11)
    for tab in tabs:
        tab.join("blitz")
    for tab in tabs:
        tab.on("game")
        expect(tab.find(f'[data-player="{ann.name}"] img')).to_have_count(1)
        expect(tab.choice(0)).to_be_enabled()
    expect(ann.find("#emoji-bar button")).to_have_count(3)
    ann.find('#emoji-bar [data-wave="2"]').click()
    expect(bob.find(f'[data-player="{ann.name}"] .float')).to_have_text("Wave 2")
    ann.answer(0)
    expect(ann.find("#note")).to_contain_text("Warte auf")
    bob.answer(1)
    for tab in tabs:
        tab.on("result")
        expect(tab.find("#again")).to_have_text("Noch einmal")
