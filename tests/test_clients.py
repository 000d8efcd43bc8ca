"""The generated clients: they are up to date, compile, and play through every fault of the lab."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_dart
import tree_sitter_swift
from playwright._impl._driver import compute_driver_executable

import trivia
from conftest import (
    PASSWORD,
    ROOT,
    Server,
    edited_schema,
    npm_install,
    play_all,
    trivia_py,
    wait_until,
)

TYPESCRIPT = "5.9.3"  # version of the npm package
STRICT = ["--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--noEmit"]
STRICT += ["--target", "es2022", "--lib", "es2022,dom", "--module", "esnext"]
STRICT += ["--skipLibCheck"]  # checking the compiler's declarations doubles the time
KOTLIN = "0.19.0.944"  # version of the package kotlin-jupyter-kernel, which contains the compiler
FILES = {
    "typescript": "trivia.ts",
    "kotlin": "Trivia.kt",
    "swift": "Trivia.swift",
    "dart": "trivia.dart",
}
GRAMMARS = {"swift": tree_sitter_swift, "dart": tree_sitter_dart}
SCRIPTS = [
    "",
    "drop@3",
    "deploy@2",
    "lose@4",
    "duplicate",
    "reorder",
    "unavailable@2",
    "latency=400",
    "away@2",
    "silent",
    "drop@2,latency=300,duplicate",
]
STORE = "https://store.example.org/shop"
ACT_TOKEN = "a-token-of-an-operator"
GENERATORS = ["openapi-typescript@7.13.0", "@asyncapi/modelina@5.10.1"]  # npm packages
MODELINA = """
import {TypeScriptGenerator} from '@asyncapi/modelina'
import fs from 'fs'
const [, , file, folder] = process.argv
const options = {
  modelType: 'interface', enumType: 'union', mapType: 'record', rawPropertyNames: true
}
const document = JSON.parse(fs.readFileSync(file, 'utf8'))
const generator = new TypeScriptGenerator(options)
const models = await generator.generateCompleteModels(document, {exportType: 'named'})
for (const {modelName, result} of models) fs.writeFileSync(`${folder}/${modelName}.ts`, result)
"""
NODE = compute_driver_executable()[0]  # Playwright's Node.js, which runs TypeScript files directly


@functools.cache
def generated(language, schema=None, **env):
    """Returns the client that the command prints for a schema."""
    with tempfile.TemporaryDirectory() as folder:
        if schema is not None:
            file = Path(folder) / "schema.yaml"
            file.write_text(schema)
            env = env | {"TRIVIA_SCHEMA": str(file)}
        done = trivia_py("client", language, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def npm_modules(request):
    """The compiler of TypeScript and the generators of types, installed into one folder."""
    return npm_install(request.config.cache, f"typescript@{TYPESCRIPT}", *GENERATORS)


@pytest.fixture(scope="module")
def tsc(npm_modules):
    """Runs the compiler of TypeScript."""

    def compile_files(*files_and_options):
        command = [NODE, npm_modules / "typescript" / "lib" / "tsc.js", *STRICT, *files_and_options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return compile_files


# ---- generation


@pytest.mark.parametrize("language", FILES)
def test_the_client_of_the_shipped_schema_is_up_to_date(language):
    kept = (ROOT / "clients" / FILES[language]).read_text("utf-8")
    assert kept == generated(language), (
        f"run: python trivia.py client {language} clients/{FILES[language]}"
    )


def test_every_language_is_tested():
    generate = trivia.load_beside("client", trivia.CLIENT_FILE)
    assert {language: writer.file for language, writer in generate.WRITERS.items()} == FILES


def test_an_unknown_language_is_refused_with_one_line():
    done = trivia_py("client", "cobol")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip() == 'client: found "cobol"; expected one of ' + ", ".join(FILES)


def test_a_client_is_written_to_a_file_or_the_error_is_shown(tmp_path):
    assert trivia_py("client", "typescript", tmp_path / "trivia.ts").returncode == 0
    assert (tmp_path / "trivia.ts").read_text("utf-8") == generated("typescript")
    done = trivia_py("client", "typescript", tmp_path / "no" / "trivia.ts")
    assert done.returncode == 1 and done.stderr.strip().endswith("No such file or directory")


@functools.cache
def own_schema():
    """Returns a schema with fields, a queue and messages that an operator has added."""

    def edit(tree):
        tree["title"] = "Quiz Night"
        tree["users"]["fields"]["colour"] = {
            "type": "string",
            "enum": ["red", 'it\'s "blue" */'],
            "description": "Ends a comment: */",
        }
        tree["users"]["fields"]["level"] = {"type": "integer", "minimum": 1, "maximum": 9}
        tree["messages"]["client"]["buzz_in"] = {
            "description": "Presses the buzzer.",
            "fields": {"hard": {"type": "boolean"}},
            "relay": "opponents",
        }
        tree["queues"]["late_night"] = tree["queues"]["random"]
        tree["queues"]["random"] = tree["queues"]["random"] | {"rounds": 10}

    return edited_schema(edit)


def test_a_client_contains_what_the_operator_declares():
    source = generated("typescript", own_schema())
    assert "A client for Quiz Night" in source
    assert '"late_night"' in source and "buzzIn(fields: BuzzInFields = {})" in source
    assert "colour" in source and "level" in source


# ---- compilers


def test_the_typescript_clients_compile_strictly(tsc, tmp_path):
    """Compiles the clients of two schemas, and each again with a mistake, in one run."""
    files, wrong = [], "\nconst wrong: Player = { username: 1 };\n"
    for name, schema in (("shipped", edited_schema()), ("own", own_schema())):
        source = generated("typescript", schema)
        for file, text in ((f"{name}.ts", source), (f"{name}-wrong.ts", source + wrong)):
            (tmp_path / file).write_text(text, "utf-8")
            files.append(tmp_path / file)
    done = tsc(*files)
    mistakes = re.findall(r"([\w-]+)\.ts\(\d+,\d+\): error TS", done.stdout)
    assert sorted(mistakes) == ["own-wrong", "shipped-wrong"], done.stdout


@pytest.mark.parametrize("schema", [edited_schema(), own_schema()], ids=["shipped", "own"])
@pytest.mark.parametrize("language", GRAMMARS)
def test_a_client_in_a_language_without_a_compiler_here_is_valid_syntax(language, schema):
    parser = tree_sitter.Parser(tree_sitter.Language(GRAMMARS[language].language()))
    source = generated(language, schema)
    assert not parser.parse(source.encode()).root_node.has_error
    assert parser.parse((source + "\nclass {(").encode()).root_node.has_error


# ---- play


def readme_app(language, server, player):
    """Returns the app of the README, with an expression for the server, and another player."""
    readme = (ROOT / "README.md").read_text("utf-8")
    app = re.search(rf"```{language}\n(.*?)```", readme, re.S)[1]
    assert len(app.splitlines()) <= 10
    [name] = re.findall(r"(\w+)@example.org", app)
    return app.replace('"http://localhost:8000"', server).replace(name, player)


def play_apps(*commands):
    """Runs apps until each has printed the ranking, for at most 60 s."""
    with contextlib.ExitStack() as stack:
        apps = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for command in commands
        ]
        stack.callback(lambda: [app.kill() for app in apps])
        guard = threading.Timer(60, lambda: [app.kill() for app in apps])
        stack.callback(guard.cancel)
        guard.start()
        for app in apps:
            lines = iter(app.stdout.readline, "")
            assert any("rating" in line.lower() for line in lines), app.args


@pytest.fixture(scope="module")
def kotlin(request, lab, tmp_path_factory):
    """The class path of the compiled Kotlin client and of the README's app."""
    java = shutil.which("java") or pytest.skip("there is no java")
    jars = Path(request.config.cache.mkdir("kotlin")) / KOTLIN
    if not jars.exists():
        name = f"kotlin-jupyter-kernel=={KOTLIN}"
        folder = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, name]
        done = subprocess.run(command, text=True, capture_output=True, timeout=300)
        if done.returncode:
            pytest.skip(f"pip can't fetch the compiler of Kotlin: {done.stderr[-200:]}")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        shutil.move(folder / "run_kotlin_kernel" / "jars", jars)
    [library] = jars.glob("kotlin-stdlib-*.jar")
    folder = tmp_path_factory.mktemp("kotlin")
    sources = {
        "Trivia.kt": generated("kotlin", own_schema(), TRIVIA_LAB="1"),
        "Play.kt": (ROOT / "tests" / "clients" / "Play.kt").read_text("utf-8"),
        "App.kt": readme_app("kotlin", 'System.getProperty("server")', "linus"),
        "SignIn.kt": ANDROID + snippets("kotlin") + MERGE,
    }
    # For such short runs the second compiler of the JVM costs more than it saves.
    java = [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    digest = hashlib.sha256(json.dumps([KOTLIN, sources]).encode()).hexdigest()
    out = jars.with_name("classes") / digest
    if not out.exists():  # the compiler takes 20 s, so the classes are kept until a source changes
        shutil.rmtree(out.parent, ignore_errors=True)
        for name, text in sources.items():
            (folder / name).write_text(text, "utf-8")
        compiler = [*java, "-cp", f"{jars}/*", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
        compiler += ["-no-stdlib", "-no-reflect", "-cp", library, "-d", folder / "classes"]
        command = [*compiler, *(folder / name for name in sources)]
        done = subprocess.run(command, text=True, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr
        out.parent.mkdir()
        shutil.move(folder / "classes", out)
    return [*java, f"-Dserver=http://127.0.0.1:{lab[0].port}", "-cp", f"{out}:{library}"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with the lab, and a folder with files of the right answers."""
    questions = trivia.read_question_file(trivia.QUESTION_FILE).questions.values()
    folder = tmp_path_factory.mktemp("clients")
    answers = {one.text: one.choices[0] for one in questions}
    (folder / "answers.json").write_text(json.dumps(answers))
    lines = "".join(f"{text}\t{answer}\n" for text, answer in answers.items())
    (folder / "answers.txt").write_text(lines, "utf-8")
    server = Server(
        own_schema(), env={"TRIVIA_LAB": "1", "TRIVIA_OPS_ACT_TOKEN": f"ann:{ACT_TOKEN}"}
    )
    try:
        yield server.start(), folder
    finally:
        server.close()


def check(ends):
    """Checks that every answer arrived, and that clients reconnected after each break."""
    assert {end.get("reason") for end in ends.values()} == {"finished"}, ends
    # Four rounds; a right answer gets 100 points, and up to 50 for its speed.
    assert all(450 < end["score"] <= 600 for end in ends.values()), ends
    assert {script: ends[script]["links"] for script in ("", "deploy@2", "drop@3", "lose@4")} == {
        "": 1,
        "deploy@2": 2,
        "drop@3": 2,
        "lose@4": 1,
    }


def test_every_answer_of_the_typescript_client_arrives_despite_all_faults(lab):
    server, folder = lab

    command = [NODE, "tests/clients/play.ts", f"http://127.0.0.1:{server.port}", "lab"]
    command += [folder / "answers.json", *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120)
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(end["script"] for end in ends) == sorted(SCRIPTS)
    check({end["script"]: end for end in ends})


def test_every_answer_of_the_kotlin_client_arrives_despite_all_faults(lab, kotlin):
    server, folder = lab
    url = f"http://127.0.0.1:{server.port}"
    command = [*kotlin, "trivia.PlayKt", url, "lab", folder / "answers.txt", *SCRIPTS]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=240)
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert [end["script"] for end in ends] == SCRIPTS
    check({end["script"]: end for end in ends})


def test_a_room_of_the_typescript_client_survives_drops_and_lasts_after_its_game(lab):
    server, _ = lab
    command = [NODE, "tests/clients/room.ts", f"http://127.0.0.1:{server.port}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert json.loads(done.stdout or "{}") == {"same": True, "host": True, "reason": "finished"}


def typescript_app(server, folder, player):
    """Returns the command of the README's app, in a folder of its own."""
    folder.mkdir()
    (folder / "trivia.ts").write_text(generated("typescript", own_schema()), "utf-8")
    (folder / "app.ts").write_text(readme_app("ts", f'"http://127.0.0.1:{server.port}"', player))
    return [NODE, folder / "app.ts"]


def check_ten_rounds(server, player):
    body = {"login": player, "password": PASSWORD}
    token = server.http("POST", "/auth/login", body).json["token"]
    [game] = server.http("GET", "/users/me/games", token=token).json["games"]
    assert len(server.http("GET", f"/games/{game['id']}", token=token).json["rounds"]) == 10


def test_two_ten_line_apps_of_the_readme_play_ten_rounds(lab, tmp_path):
    server, _ = lab
    play_apps(*(typescript_app(server, tmp_path / name, name) for name in ("grace", "alan")))
    check_ten_rounds(server, "grace")


def test_the_kotlin_app_and_the_typescript_app_of_the_readme_play_one_game(lab, kotlin, tmp_path):
    server, _ = lab
    play_apps([*kotlin, "AppKt"], typescript_app(server, tmp_path / "ts", "edsger"))
    check_ten_rounds(server, "linus")


# The declarations that the README's snippets use from Android's libraries.
ANDROID = """
package trivia
import java.security.MessageDigest
class Activity
class Bundle
class Credential(val data: Bundle)
class GetCredentialResponse(val credential: Credential)
open class CredentialOption
class GetCredentialRequest {
    class Builder {
        fun addCredentialOption(option: CredentialOption) = this
        fun build() = GetCredentialRequest()
    }
}
class GetSignInWithGoogleOption : CredentialOption() {
    class Builder(serverClientId: String) {
        fun setNonce(nonce: String?) = this
        fun build() = GetSignInWithGoogleOption()
    }
}
class GoogleIdTokenCredential(val idToken: String) {
    companion object { fun createFrom(data: Bundle) = GoogleIdTokenCredential("") }
}
interface CredentialManager {
    suspend fun getCredential(
        context: Activity, request: GetCredentialRequest
    ): GetCredentialResponse
    companion object { fun create(context: Activity): CredentialManager = TODO() }
}
"""


def snippets(language):
    """Returns the README's code about sign-in."""
    text = (ROOT / "README.md").read_text("utf-8")
    part = re.search(r"^### Sign-in on iOS and Android\n(.*?)^### ", text, re.S | re.M)[1]
    found = re.findall(rf"^```{language}\n(.*?)^```", part, re.S | re.M)
    assert len(found) == 2
    return "\n".join(found)


def test_the_readmes_swift_code_about_sign_in_is_valid_syntax():
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    code = snippets("swift")
    assert not parser.parse(code.encode()).root_node.has_error
    assert parser.parse(code.replace("(", "", 1).encode()).root_node.has_error
    client = generated("swift")
    for declared in ("public func guest(_ body: Guest)", "public func play(queue: String"):
        assert declared in client


MERGE = """
fun merged(trivia: Trivia, error: TriviaException): String? =
    error.problem?.merge?.let {
        "${error.problem?.guest?.username} ${error.problem?.account?.username} $it"
    }
"""


def test_the_readmes_kotlin_code_about_sign_in_compiles(kotlin):
    classes = Path(kotlin[-1].partition(":")[0])
    assert (classes / "trivia" / "SignInKt.class").exists()


@pytest.fixture
def shop(lab):
    """A player's token, while apps named `shop` must be newer than the clients' version."""
    server, _ = lab
    token = server.register()["token"]
    url = "/ops/act/version"
    required = {"app": "shop", "least": "2.0", "store": STORE}
    assert server.http("POST", url, required, token=ACT_TOKEN).status == 200
    old = {"X-App": "shop", "X-Version": "1.9"}
    wait_until(lambda: server.http("GET", "/queues", headers=old).status == 426)
    yield token
    assert server.http("POST", url, {"app": "shop"}, token=ACT_TOKEN).status == 200


OUTDATED = f"app_too_old {STORE} outdated {STORE}"


def test_the_typescript_client_sends_players_of_an_old_app_to_the_store(lab, shop):
    url = f"http://127.0.0.1:{lab[0].port}"
    command = [NODE, "tests/clients/outdated.ts", url, "lab", shop]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout.strip() == OUTDATED


def test_the_kotlin_client_sends_players_of_an_old_app_to_the_store(lab, shop, kotlin):
    command = [*kotlin, "trivia.PlayKt", f"http://127.0.0.1:{lab[0].port}", "lab", shop]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout.strip() == OUTDATED


# ---- other generators


def test_types_of_other_generators_fit_the_servers_messages(server, npm_modules, tsc, tmp_path):
    for name in ("openapi", "asyncapi"):
        text = server.http("GET", f"/docs/{name}.json").body
        (tmp_path / f"{name}.json").write_text(text)
    command = [NODE, npm_modules / ".bin" / "openapi-typescript", tmp_path / "openapi.json"]
    subprocess.run([*command, "-o", tmp_path / "openapi.ts"], check=True, timeout=120)
    script = npm_modules.parent / "modelina.mjs"
    script.write_text(MODELINA)
    subprocess.run([NODE, script, tmp_path / "asyncapi.json", tmp_path], check=True, timeout=120)
    bodies, frames = recorded(server)
    lines = ["import type {components} from './openapi'"]
    for kind in sorted({model_of(frame) for frame in frames}):
        lines.append(f"import {{{kind}}} from './{kind}'")
    for i, (name, body) in enumerate(bodies):
        kind = f"components['schemas']['{name}']"
        lines.append(f"export const body{i}: {kind} = {json.dumps(body)}")
    for i, frame in enumerate(frames):
        lines.append(f"export const frame{i}: {model_of(frame)} = {json.dumps(frame)}")
    (tmp_path / "recorded.ts").write_text("\n".join(lines))
    done = tsc(tmp_path / "recorded.ts", "--moduleResolution", "bundler")
    assert done.returncode == 0, done.stdout[:2000]


def model_of(frame):
    return "Server" + "".join(word.capitalize() for word in frame["type"].split("_"))


def recorded(server):
    """Returns a server's HTTP bodies, by name of their schema, and frames of a game of two."""
    ann, bob = phones = server.pair()
    ann.send("emoji", emoji="🎉")
    bob.send("answer", round=9, choice=0, id=1)
    bob.send("ping", client_ms=1.5)
    bob.drop()
    ann.expect("user_exit")
    bob.connect()
    play_all(phones)
    ann.send("join", queue="friends")
    ann.expect("room")
    paths = {
        "User": "/users/me",
        "GameList": "/users/me/games",
        "QueueList": "/queues",
        "Leaderboard": "/leaderboards/rating",
        "Export": "/users/me/export",
    }
    bodies = [
        (name, server.http("GET", path, token=ann.token).json) for name, path in paths.items()
    ]
    bodies += [("Session", ann.session)]
    bodies += [("Problem", server.http("POST", "/auth/register", {"username": "x"}).json)]
    frames = {frame["type"]: frame for frame in ann.frames + bob.frames}
    assert frames.keys() >= {"queued", "start", "question", "reveal", "update", "end", "room"}
    return bodies, list(frames.values())
