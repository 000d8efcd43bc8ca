"""A mail server for tests, in a thread."""

import ssl

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


class Box:
    """Takes mails into a list of (address, mail).

    `mode` is one of: take; refuse (550); die (after a mail is taken, before the reply); smtps or
    starttls, which take a mail over TLS after a sign-in.
    """

    def __init__(self, taken, mode):
        self.taken, self.mode, self.is_dead = taken, mode, False

    async def handle_DATA(self, server, session, envelope):
        if self.is_dead or self.mode == "refuse":
            return "550 no such mailbox"
        self.taken.append((envelope.rcpt_tos[0], envelope.original_content))
        if self.mode == "die":
            self.is_dead = True
            server.transport.abort()
        return "250 taken"


class FreePort(Controller):
    def _trigger_server(self):
        """Stores the port that the system chose; the parent then connects to it."""
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def controller_of(box, port, certificate):
    """Returns the controller of a mail server on a port; port 0 means any free port."""
    options = {}
    if box.mode in ("smtps", "starttls"):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        options = {"auth_required": True, "authenticator": knows_password}
        if box.mode == "smtps":  # the connection is TLS from its start
            options |= {"ssl_context": context, "auth_require_tls": False}
        else:
            options |= {"tls_context": context, "require_starttls": True}
    return FreePort(box, hostname="127.0.0.1", port=port, **options)


def knows_password(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == (b"me", b"p@ss word"))
