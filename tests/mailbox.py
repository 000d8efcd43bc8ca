"""A mail server for tests: each mail becomes a file of a folder.

python tests/mailbox.py FOLDER PORT MODE: prints its port. MODE: take, or refuse (550), or die after
it has taken a mail and before it says so; smtps or starttls, which take a mail over TLS, with the
certificate FOLDER/tls.pem, after a sign-in.
"""

import os
import ssl
import sys
import time
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


class Box:
    def __init__(self, folder, mode):
        self.folder, self.mode = Path(folder), mode

    async def handle_DATA(self, server, session, envelope):
        if self.mode == "refuse":
            return "550 no such mailbox"
        head = f"X-RcptTo: {envelope.rcpt_tos[0]}\r\n".encode()
        name = f"{time.time_ns()}"
        (self.folder / f"{name}.tmp").write_bytes(head + envelope.original_content)
        (self.folder / f"{name}.tmp").rename(self.folder / f"{name}.eml")
        if self.mode == "die":
            os._exit(1)
        return "250 taken"


class FreePort(Controller):
    def _trigger_server(self):
        """Knows the port only now, if any would do."""
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def tls_options(folder, mode):
    """Options for a server that takes mail over TLS from who knows the password."""
    if mode not in ("smtps", "starttls"):
        return {}
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(folder, "tls.pem"))
    sign_in = {"auth_required": True, "authenticator": knows_password}
    if mode == "smtps":
        return sign_in | {"ssl_context": context, "auth_require_tls": False}  # it is TLS anyway
    return sign_in | {"tls_context": context, "require_starttls": True}


def knows_password(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == (b"me", b"p@ss word"))


if __name__ == "__main__":
    folder, port, mode = sys.argv[1:]
    options = tls_options(folder, mode)
    controller = FreePort(Box(folder, mode), hostname="127.0.0.1", port=int(port), **options)
    controller.start()
    print(controller.port, flush=True)
    time.sleep(1e6)
