"""A stand-in for Prometheus' HTTP API, SIMULATED: it answers what it is told to, in the JSON of the real one."""

import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.web import WebServer

from kubectl_gpusharing.usage.queries import MATCHER

NOW = 1_789_948_800
"""Its time, seconds: a midnight, so that a bill of a day asks for one day."""
SECONDS = 60.0
"""Patience with a thread, on a machine that does other things too."""
Answer = tuple[int, str, bytes]


def success(kind: str, result: Sequence[Any], **more: Any) -> Answer:
    body = {"status": "success", "data": {"resultType": kind, "result": result}, **more}
    return 200, "application/json", json.dumps(body).encode()


def failure(status: int, kind: str, error: str) -> Answer:
    body = {"status": "error", "errorType": kind, "error": error}
    return status, "application/json", json.dumps(body).encode()


def refusal(status: int, message: str) -> Answer:
    """An error of an API server that stands in front."""
    return (status, "application/json", json.dumps({"kind": "Status", "code": status, "message": message}).encode())


def vector(*series: tuple[Mapping[str, str], str], **more: Any) -> Answer:
    return success("vector", [{"metric": labels, "value": [NOW, value]} for labels, value in series], **more)


AGENT = {"job": "gpusharing-agent", "namespace": "gpusharing-agent", "node": "gpu-1"}
"""Of the scrape of our agent, where a series has no such label itself."""
OF_AGENTS = re.compile(r"gpusharing_(?!policy_)\w+({[^}]*})")
"""A selector of its series; ours have no brace in a value."""


def matching(found: Answer, query: str) -> Answer:
    """Of an answer about agents the series that one of the query's selectors chooses, as Prometheus would."""
    selectors = [one[1] for one in OF_AGENTS.finditer(query)]
    if not selectors or found[0] != 200:
        return found
    told = json.loads(found[2])
    series = told["data"]["result"]
    told["data"]["result"] = [
        one for one in series if any(_chooses(text, {**AGENT, **one["metric"]}) for text in selectors)
    ]
    return found[0], found[1], json.dumps(told).encode()


def _chooses(selector: str, labels: Mapping[str, str]) -> bool:
    """An absent label is an empty one."""
    for matcher in MATCHER.finditer(selector):
        name, operator, value = re.fullmatch(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"(.*)"\s*', matcher[0]).groups()  # type: ignore[union-attr]  # it is what MATCHER found
        same = labels.get(name, "") == value if "~" not in operator else bool(re.fullmatch(value, labels.get(name, "")))
        if same is operator.startswith("!"):
            return False
    return True


MARK = '"what", "gpus"'
"""A part of no query but the one for the counters at one moment."""
GPU = {"node": "gpu-1", "policy": "pool-x"}
HELD = {**GPU, "namespace": "team-a", "resource": "nvidia.com/gpu"}
DAY: Mapping[str, Answer] = {
    "gpusharing_slice_seconds_total": vector((HELD, "43200")),
    "gpusharing_idle_slice_seconds_total": vector(({**GPU, "resource": "nvidia.com/gpu"}, "43200")),
    "increase(gpusharing_gpu_seconds_total": vector((GPU, "86400")),
    "(avg by (policy, currency) (gpusharing_policy_gpu_hourly_price": vector(
        ({"policy": "pool-x", "currency": "USD"}, "2")
    ),
    "gpusharing_device_slices": vector(({"node": "gpu-1", "resource": "nvidia.com/gpu"}, "1")),
    "group by (node) (count_over_time(gpusharing_gpu_seconds_total": vector((GPU, "1")),
}
"""A GPU for a day, by what is in the query: half of it team-a's. Its agent may have been away for a moment."""

HOURS = 30
LABELS = {
    "UUID": "GPU-1",
    "modelName": "NVIDIA H100 80GB HBM3",
    "Hostname": "gpu-1",
    "namespace": "team-a",
    "pod": "llm-6b8f9c7d5-x2k4p",
}


def hours_of(value: str, hours: int = HOURS, /, **labels: str) -> Mapping[str, Any]:
    """A series with the same value in each of the last hours."""
    points = [[NOW - 3600 * hour, value] for hour in reversed(range(hours))]
    return {"metric": {**LABELS, **labels}, "values": points}


def hourly(value: str, **labels: str) -> Answer:
    return success("matrix", [hours_of(value, **labels)])


MINUTES = [[NOW - 60 * minute, "1"] for minute in reversed(range(HOURS * 60))]
USED: Mapping[str, Answer] = {
    "kube_node_labels": vector(({"node": "gpu-1", "label_gpusharing_dev_pool": "b"}, "1")),
    "max_over_time((count": vector(({}, "1")),
}
USED_RANGES: Mapping[str, Answer] = {
    "count(": success("matrix", [{"metric": {}, "values": MINUTES}]),
    "quantile_over_time(0.95, DCGM": hourly("0.1"),
    "DCGM_FI_DEV_FB_USED": hourly("6144"),
    "gpusharing_": success("matrix", []),
}
"""A GPU that a pod takes 6 GiB of, and whose Node has a label, by what is in the query."""


@dataclass
class FakePrometheus:
    answers: dict[str, Answer] = field(default_factory=lambda: dict(DAY))
    ranges: dict[str, Answer] = field(default_factory=dict)
    """Answers to queries of a range, by what is in the query, unless there is more of it in `answers`. Else it tells 1 of a count of agents, for each minute of a day."""
    marks: dict[int, Answer] = field(default_factory=dict)
    """Answers to the query for the counters at one moment (`mark_query`), by that moment, in Unix seconds. They are given as they are, whatever the query selects."""
    instead: Callable[[str], Answer | None] = lambda path: None
    """An answer to every call, by its path; None: as ever."""
    tokens: list[str] = field(default_factory=list)
    expired: frozenset[str] = frozenset()
    """Tokens that the API server in front refuses, whenever a call with one of them arrives."""
    paths: list[str] = field(default_factory=list)
    url: str = ""
    moves: float = 0.0
    """By how many seconds what stands in front moves the beginning and the end of a range with a step of an hour."""
    elsewhere: str = ""
    """Where every answer says to look."""

    def between(self, found: Answer, start: float, end: float) -> Answer:
        """Of an answer to a range what lies in it: each part of a long window is asked for by itself."""
        status, kind, body = found
        try:
            result = json.loads(body)["data"]["result"]
            for one in result:
                if "value" in one:  # an answer for the end of a day
                    one["values"] = [[end, one.pop("value")[1]]]
            inside = [
                {**one, "values": [point for point in one["values"] if start - 1 <= float(point[0]) <= end + 1]}
                for one in result
            ]
        except (ValueError, RecursionError, TypeError, KeyError):
            return found  # it is one that makes no sense
        told = {**json.loads(body), "data": {"resultType": "matrix", "result": inside}}
        return status, kind, json.dumps(told).encode()

    def answer(self, path: str, query: str) -> Answer:
        self.paths.append(path)
        if (other := self.instead(path)) is not None:
            return other
        if path.endswith("/api/v1/query_range"):
            points = [[NOW - 86400 + second, "1"] for second in range(0, 86401, 60)]
            always = matching(success("matrix", [{"metric": GPU, "values": points}]), query)
            ranges = {**self.ranges, "count(gpusharing_gpu_seconds_total": always}
            first = next((text for text in ranges if text in query), "")
            if first and not any(text in query and len(text) > len(first) for text in self.answers):
                return ranges[first]
            return self.at_a_moment(query)
        if not path.endswith("/api/v1/query"):
            return 404, "text/plain", b"404 page not found\n"
        return self.at_a_moment(query)

    def at_a_moment(self, query: str) -> Answer:
        if query == "vector(time())":
            return vector(({}, str(NOW)))
        return next((matching(found, query) for text, found in self.answers.items() if text in query), vector())


class _Handler(BaseHTTPRequestHandler):
    server: "PrometheusServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fake, url = self.server.answering[self.client_address], urlsplit(self.path)
        token = self.headers.get("Authorization", "")
        fake.tokens.append(token)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        found = refusal(401, "Unauthorized") if token in fake.expired else None
        query = asked.get("query", "")
        if MARK in query:
            found = found or fake.marks.get(round(float(asked["time"])))
        found = found or fake.answer(url.path, query)
        if "start" in asked:
            moves = fake.moves if float(asked["step"]) == 3600 else 0.0
            found = fake.between(found, float(asked["start"]) + moves, float(asked["end"]) + moves)
        status, kind, body = found
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if fake.elsewhere:
            self.send_header("Location", fake.elsewhere)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class PrometheusServer(WebServer):
    """Listens on loopback and answers as its FakePrometheus says, which each test has anew."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        self.fake = FakePrometheus(url=self.url)
        self.answering: dict[Any, FakePrometheus] = {}
        """By the address of who is connected: the one that was there when they came."""
        self._came = threading.Condition()

    def get_request(self) -> tuple[Any, Any]:
        found = super().get_request()
        with self._came:
            self.answering[found[1]] = self.fake
            self._came.notify_all()
        return found

    def renew(self) -> FakePrometheus:
        """Return one that answers from now on, and that no call of an earlier test reaches: all that came before the connection that is made here are accepted before it."""
        with socket.create_connection(("127.0.0.1", self.server_port)) as last, self._came:
            assert self._came.wait_for(lambda: last.getsockname() in self.answering, SECONDS)
            self.fake = FakePrometheus(url=self.url)
        return self.fake


@contextmanager
def fake_prometheus(tls: ssl.SSLContext | None = None) -> Iterator[FakePrometheus]:
    """One that listens on loopback, for this block alone."""
    server = PrometheusServer(tls)
    with server.running():
        yield server.fake
