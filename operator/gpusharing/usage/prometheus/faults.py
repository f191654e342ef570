"""Why there are no data: what came instead of an answer of Prometheus, as a sentence that says what to do. Pure.

`where` is what messages call the Prometheus, `through` the cluster through whose API server it is asked, empty where
it is asked at an address of its own.
"""

import errno
import json
import re
import ssl
from dataclasses import dataclass
from typing import Any

from gpusharing.cli.shell.troubles import Trouble, said
from gpusharing.kube.aio import aiohttp

MOST_CHARACTERS = 300
"""Of what is passed on of a stranger's words."""
PORT_FORWARD = (
    "For one inside a cluster: kubectl -n monitoring port-forward svc/prometheus-operated 9090, then"
    " --prometheus http://127.0.0.1:9090"
)
PLAIN_TO_TLS = re.compile(r"HTTP request (?:was sent )?to (?:an )?HTTPS (?:server|port)")
"""`Client sent an HTTP request to an HTTPS server.` (Go net/http/server.go at 1.24, status 400) and `The plain HTTP
request was sent to HTTPS port` (nginx, on a page of HTML)."""
WANTS_CLIENT = "ALERT_CERTIFICATE_REQUIRED"
"""What OpenSSL calls the alert of TLS 1.3 by which a server says that we showed no certificate (RFC 8446, 6.2)."""
NO_FLAG = (
    "there is no flag for one, so ask it at a port that demands none, such as by --service NAMESPACE/NAME:PORT, or"
    " through a proxy that has one"
)
OTHER_NAME, OLD, EARLY, UNKNOWN_AUTHORITY = (62, 64), (10,), (9,), (2, 18, 19, 20, 21)
"""Codes of OpenSSL 3.0.19 (include/openssl/x509_vfy.h, X509_V_ERR_...): what is wrong with a certificate."""


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """What came over HTTP."""

    status: int
    """Its code."""
    told: Any
    """Its JSON; None: it is none."""
    line: str
    """The first line of plain text; empty: it is none."""
    wants_tls: bool
    """Who speaks TLS there says so."""

    @property
    def of_api_server(self) -> bool:
        """It is the API server's own, not passed on from a Service (apimachinery's metav1.Status)."""
        return isinstance(self.told, dict) and self.told.get("kind") == "Status"

    @property
    def words(self) -> str:
        """Its error message, after a colon: Prometheus puts it in `error`, Kubernetes in `message`."""
        if not isinstance(self.told, dict):
            return ""
        told = one_line(self.told.get("error") or self.told.get("message"))
        return f": {told}" if told else ""


def answer_of(status: int, kind: str, body: bytes) -> WebAnswer:
    """What to make of an answer with this content type."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    beginning = body[:4096].decode(errors="replace").strip()
    line = one_line(next(iter(beginning.splitlines()), "")) if kind == "text/plain" else ""
    return WebAnswer(status, told, line, bool(PLAIN_TO_TLS.search(beginning)) and status == 400)


def refused(answer: WebAnswer, where: str, through: str) -> Trouble:
    """A 401 or a 403."""
    if not through:
        remedy = "give a token that it accepts: --token-file FILE"
    elif not answer.of_api_server:
        remedy = (
            "it wants a login of its own, which the API server does not pass on: give --prometheus URL and"
            " --token-file FILE"
        )
    elif answer.status == 401:
        remedy = f"the credentials of {through} are expired or refused: log in again"
    else:
        remedy = "you need the right get services/proxy there, or give --prometheus URL"
    return Trouble(f"{where} refuses access (HTTP {answer.status}{answer.words}): {remedy}")


def no_prometheus(answer: WebAnswer, where: str, through: str) -> Trouble:
    """An answer that is not Prometheus'."""
    if answer.wants_tls:
        secure = f"--prometheus {where.replace('http:', 'https:', 1)}"
        remedy = "--service NAMESPACE/https:NAME:PORT" if through else secure
        return Trouble(f"{where} speaks TLS, and was asked without: write {remedy}")
    words = answer.words or (f": {answer.line}" if answer.line else "")
    return stranger(f"HTTP {answer.status}{words}", where)


def stranger(what: str, where: str) -> Trouble:
    """Another program, by what it did."""
    return Trouble(
        f"{where} does not answer as Prometheus does ({what}). Give the address that serves"
        " /api/v1/query, such as http://127.0.0.1:9090"
    )


def unreachable(error: Exception, where: str, through: str) -> Trouble:
    """No answer at all."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(error.certificate_error, where, through)
    if WANTS_CLIENT in str(error):
        return Trouble(f"{where} demands a client certificate: {NO_FLAG}")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Trouble(f"TLS with {where} failed: {said(error)}. Does it speak http://?")
    if isinstance(error, aiohttp.InvalidURL):
        return Trouble(f"{where} is not an address; write one like http://127.0.0.1:9090")
    # The alert comes after our handshake, and is lost where the server hung up before we read it.
    maybe = f"It may demand a client certificate: {NO_FLAG}. " if _hung_up(error, where) else ""
    return Trouble(f"no Prometheus answers at {where}: {said(error)}. {maybe}{PORT_FORWARD}")


def _hung_up(error: Exception, where: str) -> bool:
    """A TLS connection was made and then ended without an answer."""
    ended = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError) or (
        isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)
    )
    return ended and where.startswith("https:")


def _untrusted(error: Exception, where: str, through: str) -> Trouble:
    """A certificate that is not accepted, by OpenSSL's reason."""
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    if code in OTHER_NAME:
        given = f"tls-server-name for {through} in the kubeconfig" if through else "--prometheus"
        remedy = f"It is for another name: give one that it has, in {given}"
    elif code in OLD:
        remedy = "It has expired: have it renewed on the server, or correct the clock here"
    elif code in EARLY:
        remedy = "It is not valid yet: correct the clock here, or on the machine that made it"
    elif code in UNKNOWN_AUTHORITY and through:
        remedy = f"Its authority is not the certificate-authority of {through} in the kubeconfig"
    elif code in UNKNOWN_AUTHORITY:
        remedy = "Give the authority that signed it: --ca-file FILE"
    else:
        remedy = "Have another one made for the server"
    return Trouble(f"the certificate of {where} is not trusted: {said(error)}. {remedy}")


def one_line(text: object) -> str:
    """A stranger's words, as much of them as is shown."""
    return printable(" ".join(str(text or "").split())[:MOST_CHARACTERS].rstrip(". "))


def printable(text: str) -> str:
    """Without control characters: a scraped program may put anything into a label."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)
