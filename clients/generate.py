"""Makes a client: one file of source with the types of schema.yaml and the reconnects inside.

    python trivia.py client typescript            prints it
    python trivia.py client typescript trivia.ts  writes it

A client has two halves. What schema.yaml decides (fields, messages, routes, codes, queues) is made
here from the two documents that the server publishes, OpenAPI and AsyncAPI. What it does not decide
(requests, the reconnect machine, the state of a game) stands in the template of the language,
LANGUAGE.txt, with {{marks}} where the first half goes.

    documents --read--> Contract --a Writer for each language--> {mark: text} --template--> source

To add a language: a template, a subclass of Writer, and an entry in WRITERS.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMENT_WIDTH = 100
CODES = ("ProblemCode", "ServerErrorCode")  # titles of enums that a client has as one, ErrorCode
HANDLED = ("answer", "check", "join", "leave", "ping")  # the templates send these by themselves


# ---- contract ------------------------------------------------------------------------------------


@dataclass
class Field:
    """A property of an object. `rule` is its JSON Schema."""

    name: str
    rule: dict
    required: bool

    @property
    def text(self) -> str:
        """Its description."""
        return self.rule.get("description", "")


@dataclass
class Shape:
    """An object with a name of its own. `kind` is the `type` of a message, or ""."""

    name: str
    text: str
    fields: list[Field]
    kind: str = ""


@dataclass
class Operation:
    """A route. `path` has its parameters in braces; `body` and `answer` are names of shapes."""

    name: str
    text: str
    method: str
    path: str
    query: list[Field]
    body: str
    answer: str

    @property
    def parameters(self) -> list[str]:
        """The parameters in the path."""
        return re.findall(r"{(\w+)}", self.path)


@dataclass
class Contract:
    """What the documents say, in the order in which they say it."""

    title: str
    protocol: str
    shapes: list[Shape]
    server: list[Shape]
    client: list[Shape]
    operations: list[Operation]
    codes: list[str]
    queues: list[str]


def read_contract(openapi: dict, asyncapi: dict, protocol: str, codes: list[str]) -> Contract:
    """Reads the documents."""
    messages = asyncapi["components"]["messages"]
    shapes = openapi["components"]["schemas"]
    return Contract(
        title=openapi["info"]["title"],
        protocol=protocol,
        shapes=[_shape(name, rule, rule.get("description", "")) for name, rule in shapes.items()],
        server=list(_messages(messages, "server.", "Message")),
        client=list(_messages(messages, "client.", "Fields")),
        operations=list(_operations(openapi)),
        codes=codes,
        queues=[channel["title"] for channel in asyncapi["channels"].values()],
    )


def _shape(name: str, rule: dict, text: str, kind: str = "") -> Shape:
    required = rule.get("required", ())
    fields = [Field(key, part, key in required) for key, part in rule["properties"].items()]
    return Shape(name, text, fields, kind)


def _messages(messages: dict, prefix: str, suffix: str) -> Iterator[Shape]:
    for key, message in messages.items():
        if key.startswith(prefix):
            kind = key.removeprefix(prefix)
            shape = _shape(pascal(kind) + suffix, message["payload"], message["summary"], kind)
            shape.fields = [field for field in shape.fields if field.name != "type"]
            yield shape


def _operations(openapi: dict) -> Iterator[Operation]:
    for path, methods in openapi["paths"].items():
        for method, spec in methods.items():
            query = [
                Field(one["name"], one["schema"], one.get("required", False))
                for one in spec["parameters"]
                if one["in"] == "query"
            ]
            body = _content(spec.get("requestBody", {}))
            answers = [r for status, r in spec["responses"].items() if status.startswith("2")]
            name, text = spec["operationId"], spec["summary"]
            answer = _content(answers[0])
            yield Operation(name, text, method.upper(), path, query, body, answer)


def _content(part: dict) -> str:
    """Returns the name of the shape in a body, or ""."""
    schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    return name_of(schema.get("$ref", ""))


def name_of(reference: str) -> str:
    """Returns the name of a shape that a $ref points to."""
    return reference.rpartition("/")[2]


def pascal(name: str) -> str:
    """Returns user_exit as UserExit."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name))


def camel(name: str) -> str:
    """Returns user_exit as userExit."""
    text = pascal(name)
    return text[:1].lower() + text[1:]


def without_null(rule: dict) -> tuple[dict, bool]:
    """Returns a rule that does not allow null, and whether it did."""
    options = rule.get("oneOf") or rule.get("anyOf") or ()
    others = [option for option in options if option.get("type") != "null"]
    if len(others) == 1 and len(options) == 2:
        return {"description": rule.get("description", "")} | others[0], True
    kinds = rule.get("type")
    if isinstance(kinds, list) and "null" in kinds:
        rest = [kind for kind in kinds if kind != "null"]
        return rule | {"type": rest[0] if len(rest) == 1 else rest}, True
    return rule, False


# ---- writers -------------------------------------------------------------------------------------


class Writer:
    """Writes the parts of a client that schema.yaml decides: {mark of the template: text}."""

    template = ""
    file = ""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    def source(self) -> str:
        """Returns the client."""
        marks = self.marks()
        text = (HERE / self.template).read_text("utf-8")
        return re.sub(r"{{(\w+)}}", lambda mark: marks[mark[1]], text)

    def marks(self) -> dict[str, str]:
        """Returns {mark: text}."""
        raise NotImplementedError

    def common_marks(self, quoted: Callable[[str], str] = json.dumps) -> dict[str, str]:
        """Returns the marks that differ between languages only in how a string is quoted."""
        contract = self.contract
        return {
            "title": contract.title,
            "protocol": contract.protocol,
            "queue": contract.queues[0],
            "queues": ", ".join(map(quoted, contract.queues)),
            "codes": ", ".join(map(quoted, contract.codes)),
        }


class TypeScript(Writer):
    """TypeScript, of the kind that Node runs as it is: types that can be erased."""

    template = "typescript.txt"
    file = "trivia.ts"
    SCALARS = {
        "string": "string",
        "integer": "number",
        "number": "number",
        "boolean": "boolean",
        "null": "null",
    }

    def marks(self) -> dict[str, str]:
        contract = self.contract
        return {
            "title": contract.title,
            "protocol": contract.protocol,
            "queue": contract.queues[0],
            "queues": " | ".join(map(json.dumps, contract.queues)),
            "codes": ", ".join(map(json.dumps, contract.codes)),
            "sign_in": self._sign_in(),
            "types": "\n\n".join(map(self._interface, contract.shapes)),
            "messages": self._messages(),
            "operations": "\n\n".join(map(self._operation, contract.operations)),
            "client_messages": self._client_messages(),
        }

    def _sign_in(self) -> str:
        guest = any(operation.path == "/auth/guest" for operation in self.contract.operations)
        return "guest({ secret })" if guest else "login({ login, password })"

    # -- types

    def type_of(self, rule: dict, indent: str = "") -> str:
        """Returns the type of a rule."""
        rule, nullable = without_null(rule)
        text = self._type(rule, indent)
        return f"{text} | null" if nullable else text

    def _type(self, rule: dict, indent: str) -> str:
        if "$ref" in rule:
            return name_of(rule["$ref"])
        if "const" in rule:
            return json.dumps(rule["const"])
        if rule.get("title") in CODES:
            return "ErrorCode"
        if "enum" in rule:
            return " | ".join(json.dumps(value, ensure_ascii=False) for value in rule["enum"])
        options = rule.get("oneOf") or rule.get("anyOf")
        if options:
            return " | ".join(self._type(option, indent) for option in options)
        kind = rule.get("type")
        if isinstance(kind, list):
            return " | ".join(self._type(rule | {"type": one}, indent) for one in kind)
        if kind == "array":
            return f"Array<{self.type_of(rule.get('items', {}), indent)}>"
        if kind == "object":
            return self._object(rule, indent)
        return self.SCALARS.get(kind, "unknown")

    def _object(self, rule: dict, indent: str) -> str:
        if "properties" in rule:
            fields = _shape("", rule, "").fields
            return "{\n" + self._fields(fields, indent + "  ") + f"{indent}}}"
        values = rule.get("additionalProperties")
        values_type = self.type_of(values, indent) if isinstance(values, dict) else "unknown"
        return f"Record<string, {values_type}>"

    def _fields(self, fields: list[Field], indent: str) -> str:
        text = ""
        for field in fields:
            name = field.name if re.fullmatch(r"[A-Za-z_]\w*", field.name) else repr(field.name)
            mark = "" if field.required else "?"
            text += comment(field.text, indent)
            text += f"{indent}{name}{mark}: {self.type_of(field.rule, indent)};\n"
        return text

    def _interface(self, shape: Shape) -> str:
        kind = f'  type: "{shape.kind}";\n' if shape.kind else ""
        fields = self._fields(shape.fields, "  ")
        return comment(shape.text) + f"export interface {shape.name} {{\n{kind}{fields}}}"

    # -- messages

    def _messages(self) -> str:
        server = "\n\n".join(map(self._interface, self.contract.server))
        client = "\n\n".join(self._client_shape(shape) for shape in self.contract.client)
        of_server = " | ".join(shape.name for shape in self.contract.server)
        of_client = " | ".join(
            f'({{ type: "{shape.kind}" }} & {shape.name})' for shape in self.contract.client
        )
        return (
            f"{server}\n\n{client}\n\n"
            f"/** What the server sends. */\nexport type ServerMessage = {of_server};\n\n"
            f"/** What a client sends. */\nexport type ClientMessage = {of_client};"
        )

    def _client_shape(self, shape: Shape) -> str:
        return self._interface(Shape(shape.name, shape.text, shape.fields))

    def _client_messages(self) -> str:
        """Returns a method for each message that the template does not send by itself."""
        methods = []
        for shape in self.contract.client:
            if shape.kind in HANDLED:
                continue
            required = any(field.required for field in shape.fields)
            default = "" if required else " = {}"
            methods.append(
                comment(shape.text, "  ")
                + f"  {camel(shape.kind)}(fields: {shape.name}{default}): boolean {{\n"
                + f'    return this.send({{ type: "{shape.kind}", ...fields }});\n  }}'
            )
        return "\n\n".join(methods)

    # -- routes

    def _operation(self, operation: Operation) -> str:
        names = [f"{name}: string" for name in operation.parameters]
        if operation.body:
            names.append(f"body: {operation.body}")
        if operation.query:
            fields = self._fields(operation.query, "").replace("\n", " ")
            names.append("query: { " + fields + "} = {}")
        answer = operation.answer or "void"
        path = re.sub(r"{(\w+)}", r"${encodeURIComponent(\1)}", operation.path)
        quoted = f"`{path}`" if operation.parameters else json.dumps(path)
        query = "query" if operation.query else "undefined"
        body = "body" if operation.body else "undefined"
        call = f"this.request<{answer}>({json.dumps(operation.method)}, {quoted}, {query}, {body})"
        head = f"  async {camel(operation.name)}({', '.join(names)}): Promise<{answer}> {{\n"
        return comment(operation.text, "  ") + head + self._operation_body(operation, call) + "  }"

    @staticmethod
    def _operation_body(operation: Operation, call: str) -> str:
        if operation.answer == "Session":
            return (
                f"    const session = await {call};\n"
                "    this.setToken(session.token);\n"
                "    return session;\n"
            )
        if operation.name in ENDS_SESSION:
            return f"    await {call};\n    this.setToken(null);\n"
        return f"    return {call};\n"


class Nominal(Writer):
    """Writes for a language in which every object has a class.

    An object within another becomes a class within the other's class, named after its property.
    """

    SCALARS: dict[str, str] = {}
    LIST = "List<{}>"
    MAP = "Map<String, {}>"
    ANY = ""
    INT = INT64 = "Int"
    KEYWORDS: frozenset[str] = frozenset()
    # How a method of a route names its parameters, and puts them into the path and the query.
    PARAMETER = "{name}: {kind}"
    BODY = "body: {}"
    PLACE = PAIR = ""

    def name(self, name: str) -> str:
        """Returns the name of a property or a parameter."""
        text = camel(name)
        return f"`{text}`" if text in self.KEYWORDS else text

    def type_of(self, field: Field) -> str:
        """Returns the type of a property."""
        rule, nullable = without_null(field.rule)
        text = self._type(rule, field.name)
        is_optional = (nullable or not field.required) and not text.endswith("?")
        return f"{text}?" if is_optional else text

    def _type(self, rule: dict, name: str) -> str:
        kind = rule.get("type")
        if "$ref" in rule:
            return name_of(rule["$ref"])
        if "enum" in rule or "const" in rule:
            values = rule.get("enum", [rule.get("const")])
            kind = "string" if all(isinstance(value, str) for value in values) else None
        if kind == "array":
            return self.LIST.format(self._type(without_null(rule.get("items", {}))[0], name))
        if kind == "object" and "properties" in rule:
            return self._nested_name(name)
        if kind == "object" and isinstance(rule.get("additionalProperties"), dict):
            return self.MAP.format(self._type(rule["additionalProperties"], name))
        if kind == "integer":
            return self.INT64 if rule.get("format") == "int64" else self.INT
        return self.SCALARS.get(kind, self.ANY) if isinstance(kind, str) else self.ANY

    def _nested_name(self, name: str) -> str:
        """Returns the name of the class of an object within a property."""
        return pascal(name)

    def _parameters(self, operation: Operation) -> list[str]:
        """Returns the parameters of a route's method, without those of the query."""
        names = map(self.name, operation.parameters)
        parameters = [self.PARAMETER.format(name=name, kind="String") for name in names]
        return parameters + ([self.BODY.format(operation.body)] if operation.body else [])

    def _path(self, operation: Operation) -> str:
        """Returns the path of a route, with its parameters put in."""
        return re.sub(r"{(\w+)}", lambda one: self.PLACE.format(self.name(one[1])), operation.path)

    def _pairs(self, operation: Operation) -> str:
        """Returns the query of a route, as pairs of key and value."""
        names = [one.name for one in operation.query]
        return ", ".join(self.PAIR.format(key=name, name=self.name(name)) for name in names)

    def _nested_shape(self, field: Field) -> Shape | None:
        """Returns the shape of an object within a property."""
        rule = without_null(field.rule)[0]
        for inner in ("items", "additionalProperties"):
            rule = rule[inner] if isinstance(rule.get(inner), dict) else rule
        if "properties" not in rule:
            return None
        return _shape(self._nested_name(field.name), rule, field.text)


class Kotlin(Nominal):
    """Kotlin, for Java 8 or Android 7: one data class a shape, with what reads it from JSON."""

    template = "kotlin.txt"
    file = "Trivia.kt"
    PLACE = "${{part({})}}"
    PAIR = '"{key}" to {name}'
    SCALARS = {"string": "String", "number": "Double", "boolean": "Boolean"}
    ANY = "Any?"
    INT64 = "Long"
    READERS = {"String": "text()", "Double": "double()", "Boolean": "bool()"}
    READERS |= {"Int": "int()", "Long": "long()", "Any?": "value"}
    KEYWORDS = frozenset(
        ["as", "class", "fun", "in", "is", "object", "val", "var", "when", "typealias", "interface"]
    )

    def marks(self) -> dict[str, str]:
        contract = self.contract
        server = [self._class(shape, self._read_function(shape)) for shape in contract.server]
        client = [self._class(shape, self._fields_function(shape)) for shape in contract.client]
        cases = (f'"{one.kind}" -> {one.name}.from(json)' for one in contract.server)
        return {
            **self.common_marks(),
            "sign_in": "login(Login(login = name, password = password))",
            "types": "\n\n".join(map(self._shape, contract.shapes)),
            "server_cases": "\n".join(" " * 12 + case for case in cases),
            "messages": "\n\n".join(server + client),
            "operations": "\n\n".join(map(self._operation, contract.operations)),
            "client_messages": "\n\n".join(self._client_messages()),
        }

    # -- types

    def _class(self, shape: Shape, body: str) -> str:
        base = "ServerMessage" if shape.name.endswith("Message") else "ClientMessage"
        return self._data_class(shape.name, shape.text, shape.fields, f" : {base}", body)

    def _shape(self, shape: Shape) -> str:
        body = self._fields_function(shape, "") + self._read_function(shape, "")
        return self._data_class(shape.name, shape.text, shape.fields, "", body)

    def _data_class(self, name: str, text: str, fields: list[Field], base: str, body: str) -> str:
        for field in fields:
            body += self._nested(field)
        if not fields:
            return f"{comment(text)}class {name}{base} {{\n{body}}}"
        lines = "".join(map(self._property, fields))
        return f"{comment(text)}data class {name}(\n{lines}){base} {{\n{body}}}"

    def _property(self, field: Field) -> str:
        kind = self.type_of(field)
        default = "" if field.required else " = null"
        return comment(field.text, "    ") + f"    val {self.name(field.name)}: {kind}{default},\n"

    def _nested(self, field: Field) -> str:
        shape = self._nested_shape(field)
        if shape is None:
            return ""
        return "\n" + textwrap.indent(self._shape(shape), "    ") + "\n"

    # -- JSON

    def _read_function(self, shape: Shape, override: str = "override ") -> str:
        """Returns what makes an object of the class from JSON."""
        kind = f'    override val type get() = "{shape.kind}"\n\n' if override else ""
        parts = (
            f"            {self.name(field.name)} = {self._read_field(field)},\n"
            for field in shape.fields
        )
        unused = "" if shape.fields else '@Suppress("UNUSED_PARAMETER") '
        return (
            f"{kind}    companion object {{\n"
            f"        internal fun from({unused}json: Json) = {shape.name}(\n{''.join(parts)}"
            "        )\n    }\n"
        )

    def _read_field(self, field: Field) -> str:
        rule, nullable = without_null(field.rule)
        value = f"json[{json.dumps(field.name)}]"
        if self._type(rule, field.name) == "Any?":
            return f"{value}.value"
        if nullable or not field.required:
            return f"{value}.orNull {{ {self._read(rule, field.name, 'it')} }}"
        return self._read(rule, field.name, value)

    def _read(self, rule: dict, name: str, value: str) -> str:
        rule, nullable = without_null(rule)
        kind = self._type(rule, name)
        if kind.startswith("List<"):
            return f"{value}.list {{ {self._read(rule.get('items', {}), name, 'it')} }}"
        if kind.startswith("Map<"):
            return f"{value}.map {{ {self._read(rule['additionalProperties'], name, 'it')} }}"
        if kind in self.READERS:
            return f"{value}.{self.READERS[kind]}"
        return f"{kind}.from({value})"

    def _fields_function(self, shape: Shape, override: str = "override ") -> str:
        """Returns what makes JSON of an object of the class."""
        pairs = [f'"type" to "{shape.kind}"'] if shape.kind else []
        for field in shape.fields:
            pairs.append(f"{json.dumps(field.name)} to {self._plain(field)}")
        visible = override or "internal "
        return f"    {visible}fun fields() = fieldsOf({', '.join(pairs)})\n\n"

    def _plain(self, field: Field) -> str:
        """Returns a property as maps, lists and scalars."""
        name = self.name(field.name)
        rule, nullable = without_null(field.rule)
        dot = "?." if nullable or not field.required else "."
        kind = self._type(rule, field.name)
        inner = re.sub(r"^(List<|Map<String, )(.*)>$", r"\2", kind)
        if inner in self.READERS or inner.startswith(("List<", "Map<")):
            return name
        if kind.startswith("List<"):
            return f"{name}{dot}map {{ it.fields() }}"
        if kind.startswith("Map<"):
            return f"{name}{dot}mapValues {{ it.value.fields() }}"
        return f"{name}{dot}fields()"

    # -- routes and messages

    def _client_messages(self) -> Iterator[str]:
        for shape in self.contract.client:
            if shape.kind not in HANDLED:
                head = f"    fun {self.name(shape.kind)}(message: {shape.name})"
                yield comment(shape.text, "    ") + f"{head} = send(message)"

    def _operation(self, operation: Operation) -> str:
        names = self._parameters(operation)
        names += [f"{self.name(one.name)}: {self.type_of(one)} = null" for one in operation.query]
        query = f"fieldsOf({self._pairs(operation)})" if operation.query else "emptyMap()"
        body = "body.fields()" if operation.body else "null"
        call = f'request("{operation.method}", "{self._path(operation)}", {query}, {body})'
        answer = f": {operation.answer}" if operation.answer else ""
        head = f"    fun {self.name(operation.name)}({', '.join(names)}){answer} {{\n"
        return comment(operation.text, "    ") + head + self._body(operation, call) + "    }"

    @staticmethod
    def _body(operation: Operation, call: str) -> str:
        if operation.answer == "Session":
            return (
                f"        val session = Session.from({call})\n"
                "        setToken(session.token)\n        return session\n"
            )
        if operation.answer:
            return f"        return {operation.answer}.from({call})\n"
        forget = "        setToken(null)\n" if operation.name in ENDS_SESSION else ""
        return f"        {call}\n{forget}"


class Swift(Nominal):
    """Swift, on Foundation: one Codable struct a shape."""

    template = "swift.txt"
    file = "Trivia.swift"
    BODY = "_ body: {}"
    PLACE = r"\(part({}))"
    PAIR = r'"{key}": {name}.map {{ "\($0)" }}'
    SCALARS = {"string": "String", "number": "Double", "boolean": "Bool"}
    LIST = "[{}]"
    MAP = "[String: {}]"
    ANY = "JSONValue?"
    KEYWORDS = frozenset(["as", "class", "default", "func", "in", "is", "let", "operator", "var"])

    def marks(self) -> dict[str, str]:
        contract = self.contract
        server = contract.server
        cases = (f"    case {self.name(one.kind)}({one.name})" for one in server)
        decoders = (
            f'        case "{one.kind}": return .{self.name(one.kind)}'
            f"(try JSONDecoder().decode({one.name}.self, from: data))"
            for one in server
        )
        return {
            **self.common_marks(),
            "sign_in": "login(Login(login: name, password: password))",
            "types": "\n\n".join(self._struct(one, "Codable") for one in contract.shapes),
            "server_enum": "\n".join(cases),
            "server_cases": "\n".join(decoders),
            "messages": self._messages(),
            "operations": "\n\n".join(map(self._operation, contract.operations)),
            "client_messages": "\n\n".join(self._client_messages()),
        }

    # -- types

    def _messages(self) -> str:
        server = [self._struct(one, "Codable") for one in self.contract.server]
        client = [self._struct(one, "ClientMessage") for one in self.contract.client]
        query = [self._query(one) for one in self.contract.client if one.kind == "join"]
        return "\n\n".join(server + client + query)

    def _struct(self, shape: Shape, kinds: str) -> str:
        body = "".join(map(self._property, shape.fields))
        if "ClientMessage" in kinds:
            body = f'    public let type = "{shape.kind}"\n{body}'
        for field in shape.fields:
            nested = self._nested_shape(field)
            if nested is not None:
                body += "\n" + textwrap.indent(self._struct(nested, "Codable"), "    ") + "\n"
        body += self._keys(shape, "ClientMessage" in kinds) + self._init(shape)
        head = f"public struct {shape.name}: {kinds}, Equatable, Sendable"
        return f"{line_comment(shape.text)}{head} {{\n{body}}}"

    def _property(self, field: Field) -> str:
        head = line_comment(field.text, "    ")
        return f"{head}    public var {self.name(field.name)}: {self.type_of(field)}\n"

    def _keys(self, shape: Shape, has_type: bool) -> str:
        """Returns what maps the names of properties to those in JSON."""
        pairs = [f"{self.name(one.name)} = {json.dumps(one.name)}" for one in shape.fields]
        if has_type:
            pairs.insert(0, 'type = "type"')
        if not pairs:
            return ""
        cases = "".join(f"        case {pair}\n" for pair in pairs)
        return f"\n    enum CodingKeys: String, CodingKey {{\n{cases}    }}\n"

    def _init(self, shape: Shape) -> str:
        """Returns the initializer: that of the compiler is not public."""
        names = (
            f"{self.name(one.name)}: {self.type_of(one)}"
            + (" = nil" if self.type_of(one).endswith("?") else "")
            for one in shape.fields
        )
        lines = "".join(
            f"        self.{self.name(one.name)} = {self.name(one.name)}\n" for one in shape.fields
        )
        return f"\n    public init({', '.join(names)}) {{\n{lines}    }}\n"

    def _query(self, shape: Shape) -> str:
        """Returns what puts the fields of a `join` into an address."""
        pairs = ", ".join(
            f'{json.dumps(one.name)}: {self.name(one.name)}.map {{ "\\($0)" }}'
            for one in shape.fields
            if one.name not in ("id", "queue")
        )
        body = f"[{pairs or ':'}]"
        return f"extension {shape.name} {{\n    var query: [String: String?] {{ {body} }}\n}}"

    # -- routes and messages

    def _client_messages(self) -> Iterator[str]:
        for shape in self.contract.client:
            if shape.kind not in HANDLED:
                head = f"    public func {self.name(shape.kind)}(_ message: {shape.name})"
                yield (
                    line_comment(shape.text, "    ") + f"{head} {{\n        send(message)\n    }}"
                )

    def _operation(self, operation: Operation) -> str:
        names = self._parameters(operation)
        names += [f"{self.name(one.name)}: {self.type_of(one)} = nil" for one in operation.query]
        parts = [f'"{operation.method}"', f'"{self._path(operation)}"']
        parts += [f"query: [{self._pairs(operation)}]"] if operation.query else []
        parts += ["body: body"] if operation.body else []
        answer = f" -> {operation.answer}" if operation.answer else ""
        head = (
            f"    public func {self.name(operation.name)}({', '.join(names)}) async throws{answer}"
        )
        body = self._body(operation, ", ".join(parts))
        return line_comment(operation.text, "    ") + f"{head} {{\n{body}    }}"

    @staticmethod
    def _body(operation: Operation, parts: str) -> str:
        if operation.answer == "Session":
            return (
                f"        let session: Session = try await request({parts})\n"
                "        setToken(session.token)\n        return session\n"
            )
        if operation.answer:
            return f"        return try await request({parts})\n"
        forget = "        setToken(nil)\n" if operation.name in ENDS_SESSION else ""
        return f"        try await send({parts})\n{forget}"


class Dart(Nominal):
    """Dart 3, on its own libraries: one class a shape.

    Dart has no classes within classes. The class of an object within another is named after both.
    """

    template = "dart.txt"
    file = "trivia.dart"
    PARAMETER = "{kind} {name}"
    BODY = "{} body"
    PLACE = "${{Uri.encodeComponent({})}}"
    PAIR = "'{key}': {name}"
    SCALARS = {"string": "String", "number": "double", "boolean": "bool"}
    ANY = "Object?"
    INT = INT64 = "int"
    KEYWORDS = frozenset(["class", "default", "enum", "in", "is", "new", "switch", "var", "with"])

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract)
        self.owner = ""  # the class that is being written

    def marks(self) -> dict[str, str]:
        contract = self.contract
        server = [self._class(one, "ServerMessage") for one in contract.server]
        client = [self._class(one, "ClientMessage") for one in contract.client]
        cases = (f"{quote(one.kind)} => {one.name}.from(json)," for one in contract.server)
        return {
            **self.common_marks(quote),
            "sign_in": "login(Login(login: name, password: password))",
            "types": "\n\n".join(map(self._class, contract.shapes)),
            "server_cases": "\n".join(" " * 8 + case for case in cases),
            "messages": "\n\n".join(server + client),
            "operations": "\n\n".join(map(self._operation, contract.operations)),
            "client_messages": "\n\n".join(self._client_messages()),
        }

    # -- types

    def name(self, name: str) -> str:
        text = camel(name)
        return f"{text}_" if text in self.KEYWORDS else text

    def _nested_name(self, name: str) -> str:
        return self.owner + pascal(name)

    def _class(self, shape: Shape, base: str = "") -> str:
        self.owner = shape.name
        text = line_comment(shape.text) + f"class {shape.name}"
        text += f" extends {base} {{\n" if base else " {\n"
        text += self._constructors(shape, reads=base != "ClientMessage")
        text += "".join(map(self._property, shape.fields))
        if base != "ServerMessage":
            override = "\n  @override" if base else ""
            text += f"{override}\n  Map<String, dynamic> toJson() => {self._to_json(shape)};\n"
        nested = [self._nested_shape(field) for field in shape.fields]
        classes = [text + "}"] + [self._class(one) for one in nested if one is not None]
        return "\n\n".join(classes)

    def _constructors(self, shape: Shape, reads: bool) -> str:
        parts = (
            f"this.{self.name(field.name)}"
            if self.type_of(field).endswith("?")
            else f"required this.{self.name(field.name)}"
            for field in shape.fields
        )
        names = ", ".join(parts)
        text = f"  const {shape.name}({'{' + names + '}' if names else ''});\n"
        if not reads:
            return text
        reads_of = (f"{self.name(one.name)} = {self._read_field(one)}" for one in shape.fields)
        values = ",\n        ".join(reads_of)
        start = f"\n      : {values}" if values else ""
        return f"{text}\n  {shape.name}.from(Map<String, dynamic> json){start};\n"

    def _property(self, field: Field) -> str:
        head = "\n" + line_comment(field.text, "  ")
        return f"{head}  final {self.type_of(field)} {self.name(field.name)};\n"

    # -- JSON

    def _read_field(self, field: Field) -> str:
        rule, nullable = without_null(field.rule)
        value = f"json[{quote(field.name)}]"
        if self._type(rule, field.name) != self.ANY and (nullable or not field.required):
            return f"_orNull({value}, (it) => {self._read(rule, field.name, 'it')})"
        return self._read(rule, field.name, value)

    def _read(self, rule: dict, name: str, value: str) -> str:
        rule = without_null(rule)[0]
        kind = self._type(rule, name)
        if kind.startswith("List<"):
            return f"_list({value}, (it) => {self._read(rule.get('items', {}), name, 'it')})"
        if kind.startswith("Map<"):
            return f"_map({value}, (it) => {self._read(rule['additionalProperties'], name, 'it')})"
        if kind == "double":
            return f"({value} as num).toDouble()"
        if kind == self.ANY:
            return value
        if kind in ("int", "String", "bool"):
            return f"{value} as {kind}"
        return f"{kind}.from({value} as Map<String, dynamic>)"

    def _to_json(self, shape: Shape) -> str:
        pairs = [f"'type': {quote(shape.kind)}"] if shape.kind else []
        pairs += [f"{quote(one.name)}: {self.name(one.name)}" for one in shape.fields]
        return f"_fields({{{', '.join(pairs)}}})"

    # -- routes and messages

    def _client_messages(self) -> Iterator[str]:
        for shape in self.contract.client:
            if shape.kind not in HANDLED:
                head = f"  void {self.name(shape.kind)}({shape.name} message)"
                yield line_comment(shape.text, "  ") + f"{head} => send(message);"

    def _operation(self, operation: Operation) -> str:
        names = self._parameters(operation)
        named = ", ".join(f"{self.type_of(one)} {self.name(one.name)}" for one in operation.query)
        names += [f"{{{named}}}"] if named else []
        parts = [quote(operation.method), f"'{self._path(operation)}'"]
        parts += [f"query: {{{self._pairs(operation)}}}"] if operation.query else []
        parts += ["body: body"] if operation.body else []
        answer = operation.answer or "void"
        head = f"  Future<{answer}> {self.name(operation.name)}({', '.join(names)}) async {{\n"
        body = self._body(operation, f"await _request({', '.join(parts)})")
        return line_comment(operation.text, "  ") + head + body + "  }"

    @staticmethod
    def _body(operation: Operation, call: str) -> str:
        if operation.answer == "Session":
            return (
                f"    final session = Session.from({call});\n"
                "    setToken(session.token);\n    return session;\n"
            )
        if operation.answer:
            return f"    return {operation.answer}.from({call});\n"
        forget = "    setToken(null);\n" if operation.name in ENDS_SESSION else ""
        return f"    {call};\n{forget}"


def quote(text: str) -> str:
    """Returns a string of Dart."""
    return "'" + text.replace("\\", r"\\").replace("'", r"\'").replace("$", r"\$") + "'"


ENDS_SESSION = ("logout", "end_sessions", "erase_me")
WRITERS: dict[str, type[Writer]] = {
    "typescript": TypeScript,
    "kotlin": Kotlin,
    "swift": Swift,
    "dart": Dart,
}


def comment(text: str, indent: str = "") -> str:
    """Returns a documentation comment in the form /** ... */, or "" without a text."""
    words = " ".join(text.replace("*/", "* /").split())
    if not words:
        return ""
    if len(indent + words) <= COMMENT_WIDTH - 7:
        return f"{indent}/** {words} */\n"
    lines = textwrap.wrap(words, COMMENT_WIDTH - len(indent) - 3)
    body = "".join(f"{indent} * {line}\n" for line in lines)
    return f"{indent}/**\n{body}{indent} */\n"


def line_comment(text: str, indent: str = "") -> str:
    """Returns a documentation comment in the form ///, or "" without a text."""
    lines = textwrap.wrap(" ".join(text.split()), COMMENT_WIDTH - len(indent) - 4)
    return "".join(f"{indent}/// {line}\n" for line in lines)


def client(language: str, documents: tuple[dict, dict], protocol: str, codes: list[str]) -> str:
    """Returns the source of a client. `documents` are the OpenAPI and the AsyncAPI document."""
    contract: Any = read_contract(*documents, protocol, codes)
    return WRITERS[language](contract).source()
