"""Events for the operator's backend: in a stream, and by signed requests to a webhook."""

import asyncio
import base64
import http.server
import json
import threading
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

import trivia
from conftest import Server, Valkey, edited_schema, play_all, wait_until
from trivia import Keys

OLD, NEW = ("whsec_" + base64.b64encode(bytes(range(n, n + 32))).decode() for n in (1, 2))
ACTS = "token-that-acts-too"


class Receiver:
    """A backend that receives events.

    `statuses` holds its next responses, and 204 follows; 0 hangs for a while. `once` holds the
    responses to certain events: {id: status}.
    """

    def __init__(self):
        self.requests, self.statuses, self.port, self.server = [], [], 0, None
        self.once = {}
        self.released = threading.Event()
        self.start()

    def start(self):
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                receiver.requests.append((dict(self.headers), body))
                status = receiver.once.pop(self.headers["webhook-id"], None)
                if status is None:
                    status = receiver.statuses.pop(0) if receiver.statuses else 204
                if status == 0:
                    receiver.released.wait(30)
                self.send_response(status or 204)
                self.send_header("content-length", "0")
                # Otherwise, open connections would be served after stop().
                self.send_header("connection", "close")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.handle_error = lambda *args: None
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def got(self, event):
        """Returns the requests with this event: [(headers, body)]."""
        return [(head, body) for head, body in self.requests if head["webhook-id"] == event]

    def expect(self, event, times=1):
        """Waits until an event has arrived `times` times, always the same, and returns its body."""
        found = wait_until(lambda: len(self.got(event)) >= times and self.got(event), 30)
        assert len({body for _, body in found}) == 1, found
        return json.loads(found[0][1])


@pytest.fixture(scope="module")
def receiver():
    running = Receiver()
    yield running
    running.released.set()
    running.stop()


@pytest.fixture(scope="module")
def backed(receiver):
    """A server with two workers that sends its events to the receiver."""
    env = {
        "TRIVIA_WEBHOOK": f"http://127.0.0.1:{receiver.port}/trivia",
        "TRIVIA_WEBHOOK_SECRET": f"{NEW} {OLD}",
        "TRIVIA_OPS_ACT_TOKEN": f"ann:{ACTS}",
    }
    running = Server(edited_schema(), workers=2, env=env)
    try:
        yield running.start()
    finally:
        running.close()


def act(server, name, **arguments):
    answer = server.http("POST", f"/ops/act/{name}", arguments, ACTS)
    assert answer.status == 200, answer.body
    return answer.json


def events(server):
    return server.http("GET", "/ops/look/events", token=ACTS).json


def streamed(server, event):
    """Counts how often the stream holds an event."""
    return sum(fields["id"] == event for _, fields in server.redis.xrange(Keys.events))


def uid_of(server, session):
    name = session["user"]["username"]
    return server.http("GET", f"/ops/look/player?player={name}", token=ACTS).json["id"]


def new_account(server):
    """Registers a player. Returns their session, their id, and the id of their first event."""
    session = server.register()
    uid = uid_of(server, session)
    return session, uid, f"account_{uid}"


def told_of(receiver, kind, uid):
    """Returns the data of all received events of a type about this player."""
    told = [json.loads(body) for _, body in receiver.requests]
    return [one["data"] for one in told if one["type"] == kind and one["data"].get("player") == uid]


# ---- content of events


def test_each_event_is_sent_once_and_names_players_only_by_their_ids(backed, receiver):
    phones = backed.pair()
    ends = play_all(phones)
    ann, bob = (phone.session for phone in phones)
    names = [phone.name for phone in phones]
    uids = [uid_of(backed, one) for one in (ann, bob)]
    for uid in uids:
        told = receiver.expect(f"account_{uid}")
        assert told["type"] == "player.registered"
        assert told["data"] == {"player": uid, "guest": False}
    guest = backed.http(
        "POST", "/auth/guest", {"secret": "a secret of one device, 32 or more"}
    ).json
    sent = {"player": names[1], "reason": "cheating", "game": ends[0]["game"], "text": "a bot"}
    report = backed.http("POST", "/reports", sent, ann["token"]).json["id"]
    shown = [frame["text"] for frame in phones[0].frames if frame["type"] == "question"]
    asked = {"question": shown[0], "reason": "outdated"}
    outdated = backed.http("POST", "/reports", asked, ann["token"])
    entry = act(backed, "ban", player=names[1], reason="cheats", hours=1)["entry"]
    [banned] = wait_until(lambda: told_of(receiver, "player.banned", uids[1]))
    assert banned["reason"] == "cheats" and banned["until_ms"] > time.time() * 1000
    act(backed, "undo", entry=entry)
    assert (
        backed.http("DELETE", "/users/me", {"password": "correct horse"}, ann["token"]).status
        == 204
    )
    told = receiver.expect(f"game_{ends[0]['game']}")
    assert (told["type"], told["data"]["reason"]) == ("game.ended", "finished")
    assert not told["data"]["void"] and {one["player"] for one in told["data"]["players"]} == set(
        uids
    )
    told = receiver.expect(f"report_{report}")
    assert told["type"] == "player.reported"
    assert told["data"] == {"report": report, "player": uids[1], "reason": "cheating"}
    told = receiver.expect(f"report_{outdated.json['id']}")
    assert told["type"] == "question.reported"
    told = receiver.expect(f"erased_{uids[0]}")
    assert (told["type"], told["data"]) == ("player.erased", {"player": uids[0]})
    guest_uid = uid_of(backed, guest)
    told = receiver.expect(f"guest_{guest_uid}")
    assert told["data"] == {"player": guest_uid, "guest": True}

    wait_until(lambda: told_of(receiver, "player.unbanned", uids[1]))
    for head, body in receiver.requests:
        assert not any(name in body for name in names), body
        assert len(receiver.got(head["webhook-id"])) == streamed(backed, head["webhook-id"]) == 1
        assert json.loads(body)["type"] in trivia.EVENTS
        assert json.loads(body)["data"].keys() == trivia.EVENTS[json.loads(body)["type"]][1].keys()


def test_both_secrets_of_a_rotation_verify_and_no_other_does(backed, receiver):
    _, _, event = new_account(backed)
    receiver.expect(event)
    [(headers, body)] = receiver.got(event)
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(body, headers)["type"] == "player.registered"
    for wrong in (body + " ", body.replace("player", "prayer")):
        with pytest.raises(WebhookVerificationError):
            Webhook(NEW).verify(wrong, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(bytes(32)).decode()).verify(body, headers)


def test_an_event_that_does_not_happen_is_not_sent(backed):
    async def run():
        store = trivia.Redis(f"unix://{backed.data / 'd' / 'redis.sock'}", "", lambda events: None)
        await store.connect()
        try:
            told = trivia.Events(store)
            sign = {"type": "player.banned", "id": "ban_never", "data": {}}
            sign["sign"] = [Keys.user("nobody-there"), ":ban", "0 "]
            now = round(time.time())
            with pytest.raises(trivia.Later):  # it may still happen
                await told._confirm(trivia.Chore("x", "event", now, 1, sign))
            await told._confirm(trivia.Chore("x", "event", now - 61, 1, sign))
        finally:
            await store.close()

    asyncio.run(run())
    assert not streamed(backed, "ban_never")


# ---- a receiver that fails


def test_a_receiver_that_was_down_gets_each_event_later_with_the_same_id(backed, receiver):
    receiver.stop()
    _, _, event = new_account(backed)
    try:
        wait_until(lambda: f"event {event}" not in backed.redis.hkeys(Keys.chores))
        tries = lambda: (backed.redis.hget(Keys.deliveries, event) or "0").split()[0]
        wait_until(lambda: tries() != "0", 30)  # a late confirmation delays the first try
        receiver.once[event] = 500
    finally:
        receiver.start()
    receiver.expect(event, times=2)
    wait_until(lambda: not backed.redis.hexists(Keys.deliveries, event))
    assert (len(receiver.got(event)), streamed(backed, event)) == (2, 1)


def test_an_event_that_the_receiver_refuses_is_listed_and_can_be_replayed(backed, receiver):
    receiver.statuses = [410]
    _, _, event = new_account(backed)
    receiver.expect(event)
    dead = wait_until(lambda: [row for row in events(backed)["dead"] if row["id"] == event])
    assert dead[0]["why"] == "status 410" and dead[0]["tries"] == 1
    assert not backed.redis.hexists(Keys.deliveries, event)
    entry = dead[0]["entry"]
    answer = backed.http("POST", "/ops/act/replay", {"entry": "1-1"}, ACTS)
    answer.refused(404, "not_found")
    assert act(backed, "replay", entry=entry)["before"] == {"given_up": 1}
    receiver.expect(event, times=2)
    wait_until(lambda: not backed.redis.hexists(Keys.deliveries, event))
    assert event not in [row["id"] for row in events(backed)["dead"]]
    backed.http("POST", "/ops/act/replay", {"entry": entry}, ACTS).refused(404, "not_found")


def test_an_event_that_fails_is_listed_as_dead_after_its_last_try(backed, receiver):
    receiver.statuses = [503, 503]
    _, _, event = new_account(backed)
    receiver.expect(event)
    tried = wait_until(lambda: backed.redis.hget(Keys.deliveries, event))
    chore = tried.partition(" ")[2]
    backed.redis.hset(Keys.deliveries, event, f"{trivia.DELIVERY_TRIES - 1} {chore}")
    backed.redis.zadd(Keys.due_deliveries, {event: 0})
    wait_until(lambda: [row for row in events(backed)["dead"] if row["id"] == event])
    act(backed, "replay")
    wait_until(lambda: not events(backed)["dead"])
    wait_until(lambda: not backed.redis.hexists(Keys.deliveries, event), 20)


def test_a_receiver_that_hangs_and_a_crash_of_all_workers_lose_no_event(backed, receiver):
    receiver.released.clear()
    receiver.statuses = [0]
    _, _, first = new_account(backed)
    receiver.expect(first)  # the receiver hangs with this event
    _, _, second = new_account(backed)
    wait_until(lambda: streamed(backed, second), 20)  # other events reach the stream
    session = backed.register()
    backed.stop(9)
    receiver.released.set()
    backed.start()
    third = f"account_{uid_of(backed, session)}"
    receiver.expect(third)  # its chore was stored before the registration
    backed.redis.zadd(Keys.due_deliveries, {first: 0})  # ends the lease of the dead worker
    receiver.expect(first, times=2)
    receiver.expect(second)
    wait_until(lambda: not backed.redis.hkeys(Keys.deliveries), 20)


# ---- bounds


def test_the_stream_is_bounded_and_a_repeated_event_is_delivered_once():
    store = Valkey().start()
    try:
        store.client.function_load(trivia.LIBRARY.text)
        keys = Keys.events, *trivia.Deliveries.KEYS

        def add(event, most=5):
            args = event, "game.ended", "{}", 100, "[]", most
            return store.client.fcall(trivia.LIBRARY.function("add_event"), 3, *keys, *args)

        assert [add("a"), add("a"), add("b")] == [1, 1, 1]
        assert store.client.hgetall(Keys.deliveries) == {"a": "0 []", "b": "0 []"}
        assert add("c", most=2) == 0, "too many deliveries are waiting"
        assert [fields["id"] for _, fields in store.client.xrange(Keys.events)] == list("aabc")
        for n in range(500):
            add(f"d{n}")
        assert 100 <= store.client.xlen(Keys.events) <= 200
        assert store.client.hlen(Keys.deliveries) == 5
    finally:
        store.close()


@pytest.mark.parametrize(
    ("url", "secret", "variable"),
    [
        ("example.org/hook", NEW, "TRIVIA_WEBHOOK"),
        ("ftp://example.org", NEW, "TRIVIA_WEBHOOK"),
        ("https://", NEW, "TRIVIA_WEBHOOK"),
        ("https://example.org:port", NEW, "TRIVIA_WEBHOOK"),
        ("https://example.org/hook", "", "TRIVIA_WEBHOOK_SECRET"),
        ("https://example.org/hook", "whsec_short", "TRIVIA_WEBHOOK_SECRET"),
        ("https://example.org/hook", f"{NEW} whsec_!!!", "TRIVIA_WEBHOOK_SECRET"),
    ],
)
def test_an_invalid_webhook_ends_the_start_with_one_line(monkeypatch, url, secret, variable):
    monkeypatch.setattr(trivia, "WEBHOOK", url)
    monkeypatch.setattr(trivia, "WEBHOOK_SECRETS", secret)
    with pytest.raises(trivia.Fatal) as caught:
        trivia.check_environment()
    told = str(caught.value)
    assert told.startswith(f"{variable}: found ") and "\n" not in told
    assert secret not in told or not secret


def test_a_webhook_can_have_several_secrets(monkeypatch):
    monkeypatch.setattr(trivia, "WEBHOOK", "https://example.org:8443/hook?tenant=1")
    monkeypatch.setattr(trivia, "WEBHOOK_SECRETS", f"{NEW} {OLD}")
    trivia.check_environment()
