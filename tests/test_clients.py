"""The generated clients: they are fresh, they compile, and they play through every fault of the lab."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

import trivia
from conftest import ROOT, Server, edited_schema

TYPESCRIPT = "5.9.3"  # of the npm package
STRICT = ["--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--noEmit"]
STRICT += ["--target", "es2022", "--lib", "es2022,dom", "--module", "esnext"]
FILES = {"typescript": "trivia.ts"}
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
NODE = compute_driver_executable()[0]  # of Playwright, which runs TypeScript as it is


def generated(language, schema=None, folder=None):
    """The client that the command prints for a schema file."""
    env = dict(os.environ)
    if schema is not None:
        (folder / "schema.yaml").write_text(schema)
        env["TRIVIA_SCHEMA"] = str(folder / "schema.yaml")
    command = [sys.executable, "trivia.py", "client", language]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tsc(request):
    """The compiler of TypeScript, fetched once into pytest's cache."""
    folder = Path(request.config.cache.mkdir("typescript")) / TYPESCRIPT
    if not (folder / "package").exists():
        if shutil.which("npm") is None:
            pytest.skip("there is no npm to fetch the compiler of TypeScript with")
        folder.mkdir(exist_ok=True)
        command = ["npm", "pack", "--silent", f"typescript@{TYPESCRIPT}"]
        done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120)
        if done.returncode:
            pytest.skip(f"npm can't fetch the compiler of TypeScript: {done.stderr[-200:]}")
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")

    def compile_file(file):
        command = [NODE, folder / "package" / "lib" / "tsc.js", *STRICT, file]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return compile_file


# ---- generation


@pytest.mark.parametrize("language", FILES)
def test_the_client_of_the_shipped_schema_is_fresh(language):
    kept = (ROOT / "clients" / FILES[language]).read_text("utf-8")
    assert kept == generated(language), (
        f"run: python trivia.py client {language} clients/{FILES[language]}"
    )


def test_every_language_is_tested():
    generate = trivia.load_beside("client", trivia.CLIENT_FILE)
    assert {language: writer.file for language, writer in generate.WRITERS.items()} == FILES


def test_an_unknown_language_is_told_in_one_line():
    command = [sys.executable, "trivia.py", "client", "cobol"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip() == 'client: found "cobol"; expected one of ' + ", ".join(FILES)


def test_a_client_is_written_to_a_file_or_the_reason_is_told(tmp_path):
    command = [sys.executable, "trivia.py", "client", "typescript"]
    subprocess.run([*command, tmp_path / "trivia.ts"], cwd=ROOT, check=True, timeout=60)
    assert (tmp_path / "trivia.ts").read_text("utf-8") == generated("typescript")
    done = subprocess.run(
        [*command, tmp_path / "no" / "trivia.ts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr.strip().endswith("No such file or directory")


def own_schema():
    """A schema with fields, a queue and messages of an operator's own."""

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

    return edited_schema(edit)


def test_a_client_has_what_the_operator_declares(tmp_path):
    source = generated("typescript", own_schema(), tmp_path)
    assert "A client for Quiz Night" in source
    assert '"late_night"' in source and "buzzIn(fields: BuzzInFields = {})" in source
    assert "colour" in source and "level" in source


# ---- compilers


@pytest.mark.parametrize("schema", [edited_schema(), own_schema()], ids=["shipped", "own"])
def test_the_typescript_client_compiles_strictly(tsc, tmp_path, schema):
    file = tmp_path / "trivia.ts"
    file.write_text(generated("typescript", schema, tmp_path), "utf-8")
    done = tsc(file)
    assert (done.returncode, done.stdout) == (0, "")
    file.write_text(file.read_text("utf-8") + "\nconst wrong: Player = { username: 1 };\n", "utf-8")
    assert tsc(file).returncode != 0, "the compiler looks at types"


# ---- play


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with the lab, and a file of the right answers."""
    questions, _ = trivia.read_questions(trivia.question_items(trivia.QUESTION_FILE))
    file = tmp_path_factory.mktemp("clients") / "answers.json"
    file.write_text(json.dumps({one.text: one.choices[0] for one in questions}))
    server = Server(edited_schema(), env={"TRIVIA_LAB": "1"})
    try:
        yield server.start(), file
    finally:
        server.close()


def play(program, lab, script):
    """Lets a client play a game in the lab, and returns what it prints of its end."""
    server, file = lab
    command = [*program, f"http://127.0.0.1:{server.port}", "lab", script, file]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120)
    return json.loads(done.stdout or "{}")


PROGRAMS = {"typescript": [NODE, "tests/clients/play.ts"]}


@pytest.mark.parametrize("language", PROGRAMS)
def test_every_answer_arrives_whatever_happens_to_the_line(language, lab):
    with ThreadPoolExecutor(6) as pool:
        played = pool.map(lambda script: play(PROGRAMS[language], lab, script), SCRIPTS)
    ends = dict(zip(SCRIPTS, played))
    assert {end.get("reason") for end in ends.values()} == {"finished"}, ends
    # Four rounds; a right answer gets 100 points, and up to 50 for its speed.
    assert all(450 < end["score"] <= 600 for end in ends.values()), ends
    assert ends[""]["links"] == ["online"]
    assert ends["deploy@2"]["links"] == ["online", "connecting", "online"]
    assert ends["drop@3"]["links"].count("online") == 2
