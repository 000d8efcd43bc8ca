"""Question files: encodings, equality of questions and of choices, corrections."""

import asyncio
import base64
import json
import subprocess
import sys
import types
import unicodedata
from urllib.parse import quote, quote_plus

import pytest

import trivia
from conftest import ROOT, Server, Valkey, edited_schema, trivia_py

SHIPPED = ROOT / "questions.json"


@pytest.fixture(scope="module")
def store():
    """A Redis for the imports of this file."""
    valkey = Valkey()
    try:
        yield valkey.start()
    finally:
        valkey.close()


@pytest.fixture
def bank(store, monkeypatch, tmp_path, capsys):
    """Imports files into an empty bank. Returns (exit code, output without the path)."""
    store.client.flushall()
    monkeypatch.setattr(trivia, "REDIS_URL", store.url)

    def run(data, *options):
        path = tmp_path / "new.json"
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        with pytest.raises(SystemExit) as end:
            trivia.main(["import", *options, str(path)])
        said = capsys.readouterr().out if end.value.code in (0, 1) else end.value.code
        return end.value.code if end.value.code == 0 else 1, said.replace(f"{path}: ", "")

    run.client = store.client
    return run


def item(text="What is the capital of Wales?", right="Cardiff", wrong=("Swansea", "Bath"), **more):
    return {
        "type": "multiple",
        "difficulty": "easy",
        "category": "Science: Geography & Co",
        "question": text,
        "correct_answer": right,
        "incorrect_answers": list(wrong),
    } | more


def in_bank(client):
    """Returns the present version of each question: {id: [text, choices, category, difficulty]}."""
    numbers = {name: entry.split(" ")[0] for name, entry in client.hgetall("ids:{bank}").items()}
    return {name: json.loads(client.hget("bank:{bank}", n)) for name, n in numbers.items()}


def counts(added=0, duplicates=0, refused=0):
    return f"{added} added, {duplicates} duplicates, {refused} refused\n"


# ---- encodings


def encoded(one, encode):
    """Encodes every text of an item."""
    return {
        key: [encode(part) for part in value] if isinstance(value, list) else encode(value)
        for key, value in one.items()
    }


def to_base64(text):
    return base64.b64encode(text.encode()).decode()


ENCODERS = {
    "html": lambda text: text.replace("&", "&amp;").replace('"', "&quot;").replace("é", "&eacute;"),
    "legacy": quote_plus,
    "rfc3986": lambda text: quote(text, safe=""),
    "javascript": lambda text: quote(text, safe="!~*'()"),
    "base64": to_base64,
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
}
PLAIN = [
    item(),
    item("Who wrote “Émile”, & when?", "Rousseau (1762)", ["Zola", "50% of Paris"]),
    item("True or false: 2 + 2 = 5?", "False", ["True"], type="boolean", difficulty="hard"),
    item("Which one is C++?", "A language", ["100%", "ü"], category="Science: Computers"),
]


@pytest.mark.parametrize("encoding", ENCODERS)
def test_each_encoding_of_an_export_is_decoded(tmp_path, encoding):
    file = tmp_path / "export.json"
    items = [encoded(one, ENCODERS[encoding]) for one in PLAIN]
    file.write_text(json.dumps({"response_code": 0, "results": items}))
    read = trivia.read_question_file(file)
    assert (read.refused, read.remarks) == ({}, [])
    expected = [{key: one[key] for key in one if key != "type"} for one in PLAIN]
    assert [question.as_item() for question in read.questions.values()] == expected


PARTLY = [  # an item that is only partly encoded, and the key in the message
    (encoded(item(), to_base64) | {"correct_answer": "Cardiff!"}, "correct_answer"),
    (item(to_base64("What is the capital of Wales?")), "type"),
    (encoded(item(), to_base64) | {"question": "What is it?"}, "question"),
    (encoded(item(), quote_plus) | {"correct_answer": "St. David's, Wales"}, "correct_answer"),
    (item(category="Science%3A+Computers"), "question"),
    (encoded(item(), quote) | {"question": "%E9%E8%20is"}, "question"),  # Latin-1
]


@pytest.mark.parametrize("one, key", PARTLY)
def test_an_item_that_is_partly_encoded_is_refused(one, key):
    expected = rf"{key}: found .*; expected (base64|percent-encoding), like other texts of"
    with pytest.raises(ValueError, match=expected):
        trivia.read_item(one)


@pytest.mark.parametrize(
    "one",
    [
        item("7+3"),
        item("a+b"),
        item("How is a space written in a URL?", "%20", ["%2B", "+"]),
        item("Which is base64 of easy?", "ZWFzeQ==", ["aGFyZA==", "bWVkaXVt"]),
        item("Antidisestablishmentarianism", "A word", ["Two words"]),
        item("100%", "All", ["None"], category="Maths"),
        item("C++", "A language", ["A grade"]),
    ],
    ids=lambda one: one["question"],
)
def test_a_plain_text_that_looks_encoded_stays_as_it_is(one):
    question = trivia.read_item(one)
    assert [question.text, *question.choices] == [
        one["question"],
        one["correct_answer"],
        *one["incorrect_answers"],
    ]


@pytest.mark.parametrize("code, meaning", [(5, "too many requests"), (4, "token"), (1, "too few")])
@pytest.mark.parametrize("rest", [{"results": []}, {}, {"results": [item()]}])
def test_an_import_of_an_export_with_an_error_code_fails(bank, code, meaning, rest):
    status, said = bank({"response_code": code} | rest)
    assert status == 1 and f"response_code: found {code} (" in said and meaning in said
    assert not bank.client.exists("ids:{bank}")


@pytest.mark.parametrize("data", [[], {"results": []}, {"response_code": 0}, 5, "text", None])
def test_an_import_of_a_file_without_questions_fails(bank, data):
    status, said = bank(data)
    assert status == 1 and "found no list of questions; expected [...] or {" in said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_may_have_any_unicode_encoding_and_a_byte_order_mark(tmp_path, encoding):
    file = tmp_path / "new.json"
    file.write_bytes(json.dumps([item("É?")], ensure_ascii=False).encode(encoding))
    [question] = trivia.read_question_file(file).questions.values()
    assert question.text == "É?"


def test_an_import_of_a_file_that_is_not_utf8_fails(bank):
    assert bank(b'["\xe9"]') == (1, "can't be read: it is not valid UTF-8")


# ---- items


def test_an_import_names_unknown_keys_and_adds_the_question(bank):
    items = [item(), item("b?", id="b", dificulty=1), item("c?", tags=[], dificulty=2)]
    status, said = bank({"response_code": 0, "results": items, "token": "x"})
    assert status == 0 and said == counts(added=3) + (
        '  the file: found an unknown key, "token", and left it out; expected one of '
        "response_code, results\n"
        '  item 2 and 1 more: found an unknown key, "dificulty", and left it out; expected '
        "difficulty?\n"
        '  item 3: found an unknown key, "tags", and left it out; expected one of '
        f"{', '.join(trivia.ITEM_KEYS)}\n"
    )


BAD_ITEMS = [
    ("text", "not an object"),
    (item(""), 'question: found ""'),
    (item(5), "question: found 5"),
    (item("x" * 501), "question: found "),
    (item("\u200b\u2063"), r'question: found "\u200b\u2063"; expected a text of 1 to 500'),
    (item(right=" \u2800\u3164"), "correct_answer: found "),
    (item(wrong=["\x07"]), r'incorrect_answers: found "\u0007"'),
    (item(wrong=[]), "incorrect_answers: expected a list of 1 to 9 texts"),
    (item(incorrect_answers="Bath"), "incorrect_answers: expected a list"),
    (item(difficulty="fácil"), 'difficulty: found "fácil"; expected easy, medium, hard or auto'),
    (item(category=None), "category: found null"),
    (item(id=""), 'id: found ""; expected 1 to 64 of'),
    (item(id="a b"), 'id: found "a b"'),
    (item(id=1.5), "id: found 1.5"),
    (item(id=True), "id: found true"),
    (item(id="x" * 65), "id: found "),
]


@pytest.mark.parametrize("one, says", BAD_ITEMS)
def test_an_invalid_item_is_refused_with_a_clear_message(one, says):
    with pytest.raises(ValueError) as error:
        trivia.read_item(one)
    assert str(error.value).startswith(says), error.value


def test_an_id_is_unique_in_a_file_and_may_be_a_number(tmp_path):
    file = tmp_path / "new.json"
    file.write_text(json.dumps([item(id=7), item("b?", id="7"), item("c?", id="c:1.x-Y_")]))
    read = trivia.read_question_file(file)
    assert {number: one.id for number, one in read.questions.items()} == {1: "7", 3: "c:1.x-Y_"}
    assert read.refused == {2: 'item 2: id: found "7", as in item 1'}


# ---- equality of questions and choices

FLAG = "\U0001f3f4"
ENGLAND = FLAG + "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng") + "\U000e007f"
SCOTLAND = FLAG + "".join(chr(0xE0000 + ord(letter)) for letter in "gbsct") + "\U000e007f"
CHOICES = [  # two choices, and whether they look the same
    ("Jamaica", "Jamaica\u200e", True),
    ("\u202bJamaica\u202c", "Jamaica", True),
    ("Ja\u200bmai\u2060ca", "Jamaica", True),
    ("soft\u00adhyphen", "softhyphen", True),
    ("crème", unicodedata.normalize("NFD", "crème"), True),
    ("cre\u200b\u0300me", "crème", True),
    ("한", unicodedata.normalize("NFD", "한"), True),
    ("Å", "\u212b", True),  # ANGSTROM SIGN
    ("New York", "New  York", True),
    ("New York", "New\u00a0York", True),
    ("New York", "New\t\u200bYork", True),
    ("New York", "New\u3000York", True),
    ("heart \u2764", "heart \u2764\ufe0f", True),
    ("Jamaica", "Jamaica\U000e0041", True),
    ("W", "w", False),
    ("Maße", "Masse", False),
    ("MASSE", "MAẞE", False),
    ("x²", "x2", False),
    ("½", "1/2", False),
    ("ﬁ", "fi", False),
    ("１", "1", False),
    ("resume", "résumé", False),
    ("10 000", "10000", False),
    ("1.5", "15", False),
    ("-5", "5", False),
    ("Ω", "ω", False),
    (ENGLAND, SCOTLAND, False),
    ("I", "ı", False),
    ("1\u2044 2", "1\u20442", False),
]


@pytest.mark.parametrize("one, other, same", CHOICES, ids=ascii)
def test_choices_are_the_same_when_they_look_the_same(one, other, same):
    for pair in ((one, [other]), (other, ["neither", one]), ("neither", [one, other])):
        if not same:
            assert set(trivia.read_item(item("a?", *pair)).choices) >= {one, other}
            continue
        with pytest.raises(ValueError, match="look the same") as error:
            trivia.read_item(item("a?", *pair))
        assert str(error.value).isascii()  # invisible characters are shown as escapes


QUESTIONS = [  # two texts, and whether they are one question if the right answer is the same
    ("What is Ohm's law?", "WHAT IS  OHM’S LAW?", True),
    ("What is Ohm's law?", "\u200eWhat is Ohm's law?\u200b", True),
    ("True: 7 − 3 = 4?", "True: 7 - 3 = 4?", True),
    ("Café?", unicodedata.normalize("NFD", "CAFÉ?"), True),
    ("(2 + 3) × 4 = 20?", "2 + 3 × 4 = 20?", False),
    ("7 + 3 = ?", "7 - 3 = ?", False),
    ("1.5 + 1.5 = ?", "15 + 15 = ?", False),
    ("Is 1,5 > 1?", "Is 15 > 1?", False),
    ("5! > 5?", "5 > 5?", False),
    ("Is 2:1 a ratio?", "Is 21 a ratio?", False),
    ("Is 2² even?", "Is 22 even?", False),
    ("Is ½ a number?", "Is 1⁄2 a number?", False),
    ("Is f' a function?", "Is f a function?", False),
    ("Is 5″ a length?", "Is 5' a length?", False),
    ("What does ? do?", "What does : do?", False),
    ("What does [] make?", "What does () make?", False),
    ("Heißt es Maße?", "Heißt es Masse?", False),
    ("Is a.b valid?", "Is ab valid?", False),
    ("7 3?", "73?", False),
    ("Is ≠ a sign?", "Is = a sign?", False),
    ("A♯ is a note?", "A♭ is a note?", False),
]


@pytest.mark.parametrize("one, other, same", QUESTIONS, ids=ascii)
def test_questions_are_the_same_only_if_all_their_marks_are(one, other, same):
    digests = {trivia.read_item(item(text)).digest for text in (one, other)}
    assert len(digests) == (1 if same else 2)


def test_sums_that_differ_only_in_marks_are_different_questions(bank):
    sums = ["(2 + 3) × 4 = ?", "2 + 3 × 4 = ?", "2 + 3 × 4! = ?", "2.3 × 4 = ?"]
    assert bank([item(text) for text in sums]) == (0, counts(added=4))
    assert sorted(row[0] for row in in_bank(bank.client).values()) == sorted(sums)
    assert bank([item(text) for text in sums]) == (0, counts(duplicates=4))


def test_questions_with_the_same_text_but_different_answers_are_different(bank):
    items = [item("Which flag is this?", name, ["none"]) for name in ("Mali", "Peru", "Fiji")]
    assert bank(items) == (0, counts(added=3))
    assert bank(items) == (0, counts(duplicates=3))


# ---- duplicates and corrections


def test_an_import_reports_a_duplicate_that_differs(bank):
    bank([item(id="wales")])
    status, said = bank([item("WHAT is the capital of Wales?", wrong=["Swansea"])])
    assert (status, said) == (0, counts(duplicates=1) + (
        '  item 1: differs from wales in the bank: question: "What is the capital of Wales?" '
        'there, "WHAT is the capital of Wales?" here; incorrect_answers: ["Swansea", "Bath"] '
        'there, ["Swansea"] here\n'
    ))  # fmt: skip
    status, said = bank([item(id="cymru")])
    assert (status, said) == (
        0,
        counts(duplicates=1) + "  item 1: the bank has this question with the id wales\n",
    )


def test_an_import_reports_another_right_answer_to_the_same_text(bank):
    bank([item(right="Swansea", wrong=["Cardiff", "Bath"])])
    [first_id] = in_bank(bank.client)
    differ = (
        '  item 1: the right answers differ: here "Cardiff", but a question of this text in the '
        f'bank has "Swansea" (id {first_id}). '
    )
    status, said = bank([item()], "--update")
    assert (status, said.split("\n")[0]) == (1, "0 added, 0 changed, 0 duplicates, 1 refused")
    assert said.endswith(differ + "To correct it, give this item that id\n")
    status, said = bank([item()])
    assert (status, said) == (0, counts(added=1) + differ + "The bank has both now\n")


def test_an_update_corrects_a_question_by_id_and_reports_the_changes(bank):
    wrong = [item("a?"), item(id="wales", right="Swansea", wrong=["Cardiff", "Bath"]), item("b?")]
    right = [item("a?"), item(id="wales", difficulty="medium"), item("c?")]
    assert bank(wrong)[0] == 0
    status, said = bank(right)
    assert status == 1 and said.startswith(counts(added=1, duplicates=1, refused=1))
    assert 'item 2: differs from wales in the bank: correct_answer: "Swansea" there' in said
    assert "To correct it, import with --update" in said
    assert in_bank(bank.client)["wales"][1][0] == "Swansea"
    assert bank(right, "--update") == (0, (
        "0 added, 1 changed, 2 duplicates, 0 refused\n"
        '  item 2: corrected wales: correct_answer: "Swansea" became "Cardiff"; '
        'incorrect_answers: ["Cardiff", "Bath"] became ["Swansea", "Bath"]; '
        'difficulty: "easy" became "medium"\n'
    ))  # fmt: skip
    assert in_bank(bank.client)["wales"][1:] == [
        ["Cardiff", "Swansea", "Bath"],
        "Science: Geography & Co",
        "medium",
    ]
    assert bank(right, "--update") == (0, "0 added, 0 changed, 3 duplicates, 0 refused\n")


def test_an_update_can_use_the_id_that_an_import_generated(bank):
    bank([item(right="Swansea", wrong=["Cardiff"])])
    [made_up] = in_bank(bank.client)
    status, said = bank([item(id=made_up)], "--update")
    assert status == 0 and f"corrected {made_up}: " in said
    # The earlier file does not restore the mistake.
    for options in ([], ["--update"]):
        status, said = bank([item(right="Swansea", wrong=["Cardiff"])], *options)
        assert f"differs from {made_up} in the bank: correct_answer: " in said
        assert [row[1][0] for row in in_bank(bank.client).values()] == ["Cardiff"]


def test_an_update_never_turns_two_questions_into_one(bank):
    bank([item(id="a"), item("b?", id="b")])
    status, said = bank([item(id="b")], "--update")
    assert status == 1 and "item 1: the bank has this question with the id a" in said
    assert in_bank(bank.client)["b"][0] == "b?"


# ---- the command


def test_the_report_works_on_an_ascii_terminal(tmp_path):
    (tmp_path / "new.json").write_text(json.dumps([item("Água?", difficulty="fácil")]))
    server = Server()
    env = server.env | {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "trivia.py", "import", str(tmp_path / "new.json")],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
    finally:
        server.close()
    assert (done.returncode, done.stderr) == (1, "")
    assert r'item 1: difficulty: found "f\xe1cil"; expected easy' in done.stdout


def test_a_correction_applies_to_later_games_and_not_to_running_ones(make_server, tmp_path):
    def narrow(tree):
        tree["queues"]["random"]["categories"] = ["Correction"]

    server = make_server(edited_schema(narrow, rounds=1, answer_seconds=30), start=False)
    mine = item("Who?", "Ann", ["Bob", "Cid", "Dan"], category="Correction", id="who")
    file = tmp_path / "mine.json"

    def put(one, *options):
        file.write_text(json.dumps([one]))
        assert trivia_py("import", *options, file, env=server.env).returncode == 0

    put(mine)
    server.start()
    ann, bob = server.pair()
    asked = ann.expect("question")
    put(mine | {"correct_answer": "Bob", "incorrect_answers": ["Ann"]}, "--update")
    again = server.pair()
    assert sorted(again[0].expect("question")["choices"]) == ["Ann", "Bob"]
    # The running game shows the earlier question and judges by it.
    ann.send("check")
    assert ann.expect("update")["question"]["choices"] == asked["choices"]
    place = asked["choices"].index("Ann")
    for phone in (ann, bob):
        phone.send("answer", round=1, choice=place)
    assert ann.expect("reveal")["correct"] == place
    ann.expect("end")
    game = server.http("GET", f"/games/{asked['game']}", token=ann.token).json
    assert game["rounds"][0]["choices"] == asked["choices"]


def test_each_shipped_question_has_a_unique_id():
    read = trivia.read_question_file(SHIPPED)
    assert (read.refused, read.remarks) == ({}, [])
    assert len({question.id for question in read.questions.values()}) == len(read.questions) == 704


def test_a_player_whose_game_does_not_count_does_not_rate_its_questions():
    player = types.SimpleNamespace(is_bot=False, first_round=1, left=False, strength=[1500, 200])
    game = types.SimpleNamespace(
        closed=[trivia.parse_round("0:900:100 1:900:0")],
        rounds=[(7, "01")],
        players=[player, player],
        result=[{"won": True}, {"won": False, "counts": False}],
    )
    bank = types.SimpleNamespace(questions={7: types.SimpleNamespace(difficulty=trivia.AUTO)})
    statistics = trivia.QuestionStatistics(None, bank)
    statistics.count(game)
    assert statistics.results == {7: ["1500:1"]}
    assert (statistics.sums[7].shown, statistics.sums[7].right) == (2, 1)


def test_question_counts_that_could_not_be_sent_are_sent_later():
    sent = []

    async def run(name, keys, *args):
        sent.append(len(args) // 2)
        if len(sent) == 2:
            raise trivia.Unavailable("the connection was lost")

    async def act():
        statistics = trivia.QuestionStatistics(types.SimpleNamespace(run=run), None)
        at_once = trivia.COUNTED_AT_ONCE
        statistics.sums = {number: trivia.QuestionSums() for number in range(3 * at_once + 1)}
        with pytest.raises(trivia.Unavailable):
            await statistics.add_up()
        assert sent == [at_once, at_once]
        await statistics.add_up()
        assert sent[2:] == [at_once, 1] and not statistics.sums
        statistics.sums = {number: trivia.QuestionSums() for number in range(10_000)}
        assert await statistics.add_up() == trivia.MOST_PAUSE_S

    asyncio.run(act())
