"""What is said where Prometheus gives no data, and what to do (kubectl_gpusharing/usage/prometheus.py,
kubectl_gpusharing/usage/endpoints.py)."""

import asyncio
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hack.sim.fakecluster import FakeCluster
from tests.cli.fakeprometheus import NOW, Answer, FakePrometheus, fake_prometheus, refusal
from tests.fakes.tls import Identity
from tests.wording import lacks

from gpusharing.kube.aio import aiohttp
from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.login import Access
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.endpoints import endpoint_from_url, find_service_endpoint
from kubectl_gpusharing.usage.prometheus import Endpoint, prometheus_at, unreachable

YEAR = timedelta(days=365)
SERVICE = "monitoring/p:9090"


async def asked(endpoint: Endpoint, questions: int = 1) -> set[float]:
    async with prometheus_at(endpoint) as prometheus:
        return set(await asyncio.gather(*(prometheus.now() for _ in range(questions))))


def wrong(endpoint: Endpoint) -> str:
    with pytest.raises(Trouble) as trouble:
        asyncio.run(asked(endpoint))
    return str(trouble.value)


class Renewable:
    """A Login whose token is another after each renewal; one that has no more tokens fails."""

    def __init__(self, server: str, *tokens: str) -> None:
        self.server, self.tokens, self.renewed = server, list(tokens), 0

    async def access(self) -> Access:
        return Access(self.server)

    async def token(self) -> str | None:
        return self.tokens[0]

    async def renew(self) -> None:
        self.renewed += 1
        if len(self.tokens) == 1:
            raise Unauthorized("no credentials from kubeconfig k: the login program failed")
        self.tokens.pop(0)


async def through(login: Renewable, questions: int = 1) -> set[float]:
    session = Session(FakeCluster().client("me"), "context test", login=login)
    return await asked(await find_service_endpoint(session, SERVICE), questions)


# --- certificates -----------------------------------------------------------------------------------------------


ELSEWHERE = "issued for another name: set the host in --prometheus"
CERTIFICATES = {
    "expired": (-YEAR * 2, None, "has expired"),
    "of next year": (YEAR, None, "not valid yet"),
    "of another name": (timedelta(), "other.example", ELSEWHERE),
    "of another address": (timedelta(), "127.0.0.9", ELSEWHERE),
}


@pytest.mark.parametrize(("since", "name", "told"), CERTIFICATES.values(), ids=CERTIFICATES)
def test_a_certificate_of_the_given_authority_that_is_not_accepted(
    tmp_path: Path, since: timedelta, name: str | None, told: str
) -> None:
    identity = Identity(tmp_path / "pki", made=datetime.now(UTC) + since)
    with fake_prometheus(identity.context()) as fake:
        endpoint = endpoint_from_url(fake.url, "", str(identity.pki.ca))
        said = wrong(replace(endpoint, tls_server_name=name))
    assert said.startswith(f"the certificate of {fake.url} is not trusted: ")
    assert told in said
    assert "--ca-file" not in said


def test_a_certificate_of_another_authority(tmp_path: Path) -> None:
    identity, other = Identity(tmp_path / "pki"), Identity(tmp_path / "other")
    with fake_prometheus(identity.context()) as fake:
        for ca in ("", str(other.pki.ca)):
            assert not lacks(wrong(endpoint_from_url(fake.url, "", ca)), "--ca-file FILE")


def test_of_an_api_server_the_kubeconfig_is_named(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "pki")
    with fake_prometheus(identity.context()) as fake:
        endpoint = replace(endpoint_from_url(fake.url, "", ""), through="context test")
        assert not lacks(wrong(endpoint), "certificate-authority", "context test")
        endpoint = replace(endpoint_from_url(fake.url, "", str(identity.pki.ca)), through="context test")
        told = wrong(replace(endpoint, tls_server_name="other.example"))
        assert not lacks(told, "tls-server-name", "context test")


def test_a_server_that_demands_a_client_certificate_says_so_unless_it_hung_up_first(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "pki")
    context = identity.context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(identity.pki.ca)
    with fake_prometheus(context) as fake:
        told = wrong(endpoint_from_url(fake.url, "", str(identity.pki.ca)))
    alert, lost = f"{fake.url} requires client", "It may require client authentication: this plugin"
    assert told.startswith(alert) or lost in told
    assert not lacks(told, "port", "--service NAMESPACE/NAME:PORT")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            aiohttp.ClientOSError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate"),
            "https://p requires client authentication: this plugin cannot present a client certificate",
        ),
        (aiohttp.ClientOSError(104, "reset"), "reset. It may require client authentication: "),
        (aiohttp.ServerDisconnectedError(), "disconnected. It may require client authentication: "),
        (aiohttp.ClientOSError(111, "refused"), "refused. To reach one inside a cluster: "),
    ],
)
def test_what_may_come_of_a_client_certificate_that_is_not_there(error: Exception, told: str) -> None:
    assert told in str(unreachable(error, "https://p", ""))


# --- another program --------------------------------------------------------------------------------------------

GO = (400, "text/plain", b"Client sent an HTTP request to an HTTPS server.\n")
NGINX = (400, "text/html", b"<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>")


@pytest.mark.parametrize("answer", [GO, NGINX], ids=["Go", "nginx"])
def test_without_tls_where_tls_is_spoken(fake: FakePrometheus, answer: Answer) -> None:
    fake.instead = lambda path: answer
    port = fake.url.rpartition(":")[2]
    assert not lacks(
        wrong(endpoint_from_url(fake.url, "", "")), fake.url, "TLS", f"--prometheus https://127.0.0.1:{port}"
    )
    with pytest.raises(Trouble, match=f"{SERVICE} .* use --service NAMESPACE/https:NAME:PORT"):
        asyncio.run(through(Renewable(fake.url, "Bearer a")))


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        ("text/plain; charset=utf-8", b"no such host\nmore\n", "(HTTP 502: no such host)"),
        ("text/plain", b"\x1b[31m\xff" + b"x" * 1000, f"(HTTP 502: ?[31m\ufffd{'x' * 294})"),
        ("text/plain", b"", "(HTTP 502)"),
        ("text/html", b"<h1>Bad gateway</h1>", "(HTTP 502)"),
    ],
    ids=["a line and another", "much that would paint", "nothing", "a page"],
)
def test_one_line_of_plain_text_is_passed_on(fake: FakePrometheus, kind: str, body: bytes, told: str) -> None:
    fake.instead = lambda path: (502, kind, body)
    assert told in wrong(endpoint_from_url(fake.url, "", ""))


# --- credentials ------------------------------------------------------------------------------------------------


def test_expired_credentials_are_renewed_once_and_the_question_is_put_again(fake: FakePrometheus) -> None:
    fake.expired = frozenset({"Bearer old"})
    login = Renewable(fake.url, "Bearer old", "Bearer new")
    assert asyncio.run(through(login)) == {NOW}
    assert (fake.tokens, login.renewed) == (["Bearer old", "Bearer new"], 1)


def test_several_questions_that_are_refused_at_once_renew_once(fake: FakePrometheus) -> None:
    fake.expired = frozenset({"Bearer old"})
    login = Renewable(fake.url, "Bearer old", "Bearer new", "Bearer newest")
    assert asyncio.run(through(login, 4)) == {NOW}
    assert login.renewed == 1


def test_credentials_that_are_refused_again(fake: FakePrometheus) -> None:
    fake.instead = lambda path: refusal(401, "Unauthorized")
    login = Renewable(fake.url, "Bearer old", "Bearer new")
    with pytest.raises(Trouble) as trouble:
        asyncio.run(through(login))
    assert not lacks(str(trouble.value), SERVICE, "context test", "HTTP 401: Unauthorized", "log in")
    assert (len(fake.tokens), login.renewed) == (2, 1)


def test_credentials_that_cannot_be_renewed(fake: FakePrometheus) -> None:
    fake.instead = lambda path: refusal(401, "Unauthorized")
    with pytest.raises(Trouble, match=r"the login program failed.* of context test have expired or were rejected"):
        asyncio.run(through(Renewable(fake.url, "Bearer old")))


@pytest.mark.parametrize("code", [401, 403])
def test_a_service_that_wants_a_login_of_its_own(fake: FakePrometheus, code: int) -> None:
    fake.instead = lambda path: (code, "text/plain", b"Unauthorized\n")
    login = Renewable(fake.url, "Bearer old", "Bearer new")
    with pytest.raises(Trouble, match="which the API server does not pass on: use --prometheus URL and"):
        asyncio.run(through(login))
    assert login.renewed == 0


def test_a_right_that_is_missing_is_no_matter_of_credentials(fake: FakePrometheus) -> None:
    fake.instead = lambda path: refusal(403, "services is forbidden")
    login = Renewable(fake.url, "Bearer old", "Bearer new")
    with pytest.raises(Trouble, match="forbidden\\): you need permission to get services/proxy there"):
        asyncio.run(through(login))
    assert login.renewed == 0
