"""An OpenID provider for tests: it serves the files of a folder, and stores what is posted to it.

    python tests/provider.py FOLDER [PORT]

Prints its port. A new jwks.json in FOLDER is a new key. In a browser it signs in the person of
FOLDER/person, with the key of FOLDER/signing.json.
"""

import html
import json
import sys
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt


class Provider(SimpleHTTPRequestHandler):
    def do_GET(self):
        with open(Path(self.directory) / "gets", "a") as gets:
            gets.write(self.path + "\n")
        if self.path.startswith("/authorize?"):
            self.show_sign_in(dict(parse_qsl(urlsplit(self.path).query)))
        else:
            super().do_GET()

    def show_sign_in(self, asked):
        """Shows a page with a link that leads back with an ID token (the implicit flow)."""
        assert asked["response_type"] == "id_token" and "openid" in asked["scope"].split()
        sub = Path(self.directory, "person").read_text()
        signing = json.loads(Path(self.directory, "signing.json").read_text())
        claims = {name: asked[name] for name in ("nonce",)} | {
            "aud": asked["client_id"],
            "sub": sub,
        }
        claims |= {"iss": signing["issuer"], "iat": int(time.time()), "exp": int(time.time()) + 600}
        token = jwt.encode(claims, signing["key"], "RS256", {"kid": signing["kid"]})
        back = f"{asked['redirect_uri']}#{urlencode({'id_token': token, 'state': asked['state']})}"
        page = f"<title>Acme</title><h1>Acme</h1><a href='{html.escape(back)}'>It is me</a>"
        self.answer(page.encode(), "text/html")

    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        form = self.rfile.read(int(self.headers["content-length"])).decode()
        with open(Path(self.directory) / "posts", "a") as posts:
            posts.write(json.dumps([self.path, dict(parse_qsl(form))]) + "\n")
        self.answer(b'{"refresh_token": "refresh-1"}' if self.path == "/token" else b"")

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    folder, *port = sys.argv[1:]
    handler = partial(Provider, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", int(*port or "0")), handler)
    print(server.server_port, flush=True)
    server.serve_forever()
