"""An OpenID provider for tests: it serves the files of a folder, and notes what is posted to it.

python tests/provider.py FOLDER [PORT]: prints its port. A new key is a new jwks.json in FOLDER.
"""

import json
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl


class Provider(SimpleHTTPRequestHandler):
    def do_GET(self):
        with open(Path(self.directory) / "gets", "a") as gets:
            gets.write(self.path + "\n")
        super().do_GET()

    def do_POST(self):
        form = self.rfile.read(int(self.headers["content-length"])).decode()
        with open(Path(self.directory) / "posts", "a") as posts:
            posts.write(json.dumps([self.path, dict(parse_qsl(form))]) + "\n")
        body = b'{"refresh_token": "refresh-1"}' if self.path == "/token" else b""
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    folder, *port = sys.argv[1:]
    handler = partial(Provider, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", int(*port or "0")), handler)
    print(server.server_port, flush=True)
    server.serve_forever()
