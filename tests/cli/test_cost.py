"""`cost` and what Prometheus answers instead of data (kubectl_gpusharing/usage/cost.py, kubectl_gpusharing/usage/prometheus.py, kubectl_gpusharing/shell/drawing.py)."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from tests.cli import desk as desks
from tests.cli.desk import END, JSON, Desk, Said, read_until, terminal
from tests.cli.fakeprometheus import GPU, HELD, NOW, Answer, FakePrometheus, failure, fake_prometheus, vector
from tests.fakes.tls import Identity
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED

SERVICES = "/api/v1/services"


def ask(desk: Desk, fake: FakePrometheus, *more: str) -> Said:
    return desk.type("cost", "--prometheus", fake.url, "--window", "1d", *more)


def wrong(desk: Desk, *words: str) -> str:
    return desks.wrong(desk, "cost", *words)


def instead(fake: FakePrometheus, answer: Answer) -> None:
    fake.instead = lambda path: answer


def test_a_gpu_that_was_held_for_half_a_day(desk: Desk, fake: FakePrometheus) -> None:
    said = ask(desk, fake)
    assert (said.status, said.err) == (DONE, "")
    assert (
        said.out
        == """\
1d until 2026-09-21T00:00:00Z, by namespace
NAMESPACE  RESOURCE        GPU-HOURS  PART   COST       BASIS
team-a     nvidia.com/gpu  12.0       50.0%  USD 24.00  measured
(idle)     nvidia.com/gpu  12.0       50.0%  USD 24.00

POOL    GPU-HOURS  PRICE OF A GPU-HOUR  COST
pool-x  24.0       USD 2.00 (policy)    USD 48.00

24.0 GPU-hours cost USD 48.00: held 24.00, idle 24.00, stranded 0.00, transition 0.00.
"""
    )


@pytest.mark.parametrize("selector", ['policy="pool-x"', 'node="gpu-1"', 'job=~"gpusharing.*"'])
def test_what_simulated_agents_metered_says_so(desk: Desk, fake: FakePrometheus, selector: str) -> None:
    fake.answers["max_over_time(gpusharing_agent_simulated["] = vector(
        ({"node": "gpu-1"}, "1"), ({"node": "gpu-9"}, "1")
    )
    words = ("--match", selector)
    told = ask(desk, fake, *words).out.splitlines()[1]
    assert told.startswith("SIMULATED: gpu-1 ")
    assert json.loads(ask(desk, fake, *words, "-o", "json").out)["simulated"] == ["gpu-1"]
    (row, _) = csv.DictReader(io.StringIO(ask(desk, fake, *words, "-o", "csv").out))
    assert row["simulated"] == "yes"


def test_a_selector_changes_nothing_where_everything_matches_and_finds_nothing_else(
    desk: Desk, fake: FakePrometheus
) -> None:
    everything = ask(desk, fake).out
    assert ask(desk, fake, "--match", 'policy="pool-x",node!="gpu-2"').out == everything
    for selector in ('policy="pool-y"', 'node="gpu-2"', 'cluster="east"'):
        said = ask(desk, fake, "--match", selector)
        assert (said.status, said.out) == (FAILED, "")
        assert not lacks(said.err, "gpusharing_gpu_seconds_total", f"{{{selector}}}")


def test_a_tenant_alone_is_no_bill(desk: Desk, fake: FakePrometheus) -> None:
    told = wrong(desk, "--prometheus", fake.url, "--match", 'namespace="team-a"')
    assert not lacks(told, '--match namespace="team-a"', "only some", "label namespace")
    assert fake.paths == []


def test_a_prometheus_that_is_named_needs_no_cluster(desk: Desk, fake: FakePrometheus) -> None:
    desk.kubeconfig.unlink()
    assert ask(desk, fake).status == DONE
    assert desk.server.asked == []


def test_a_person_sees_how_much_has_been_read_until_the_bill_is_there(desk: Desk, fake: FakePrometheus) -> None:
    with terminal(desk, "cost", "--prometheus", fake.url, "--window", "30d") as (_, screen):
        seen = read_until(screen, END)
    shown, _, bill = seen.rpartition("\r\x1b[K")
    progress = re.findall(rf"\r\x1b\[KReading from {fake.url}: (\d+)%", shown)
    assert progress == ["0", "27", "53", "80"]
    assert "GPU-hours cost" in bill
    assert "Reading" not in bill


def test_a_window_of_a_month_is_read_with_few_queries(desk: Desk, fake: FakePrometheus) -> None:
    assert desk.type("cost", "--prometheus", fake.url, "--window", "30d").status == CHANGES
    days = 30
    assert len(fake.paths) < 10 * days
    del fake.answers["group by (node) (count_over_time(gpusharing_gpu_seconds_total"]
    fake.marks = {
        NOW - day * 86_400: vector(
            ({**HELD, "what": "held"}, str((days - day) * 86_400)),
            ({**GPU, "what": "gpus"}, str((days - day) * 86_400)),
            ({"node": "gpu-1", "what": "gpusharing_agent_gpu_info"}, "1"),
        )
        for day in range(days + 1)
    }
    fake.paths.clear()
    assert desk.type("cost", "--prometheus", fake.url, "--window", "30d").status == CHANGES
    assert len(fake.paths) < 7 * days, "where no agent was away"


def test_its_own_clock_says_when_now_is(desk: Desk, fake: FakePrometheus) -> None:
    told = json.loads(ask(desk, fake, "-o", "json").out)
    assert (told["from"], told["until"]) == ("2026-09-20T00:00:00Z", "2026-09-21T00:00:00Z")


def test_a_namespace_that_the_agents_label_was_renamed_for(desk: Desk, fake: FakePrometheus) -> None:
    renamed = {**HELD, "namespace": "gpusharing-agent", "exported_namespace": "team-b"}
    fake.answers["gpusharing_slice_seconds_total"] = vector((renamed, "43200"))
    assert "team-b" in ask(desk, fake).out


def test_a_hundred_thousand_series_are_a_bill_like_any_other(desk: Desk, fake: FakePrometheus) -> None:
    held = [
        ({**HELD, "node": f"gpu-{number % 5000}", "namespace": f"n-{number // 5000}"}, "36")
        for number in range(100_000)
    ]
    fake.answers["gpusharing_slice_seconds_total"] = vector(*held)
    del fake.answers["gpusharing_device_slices"]
    whole = [({**GPU, "node": f"gpu-{node}"}, str(720 + 43_200 * (node == 1))) for node in range(5000)]
    fake.answers["group by (node) (count_over_time(gpusharing_gpu_seconds_total"] = vector(
        *(({"node": f"gpu-{node}"}, "1") for node in range(5000))
    )
    fake.answers["increase(gpusharing_gpu_seconds_total"] = vector(*whole)
    told = json.loads(ask(desk, fake, "-o", "json").out)
    assert [row["cost"] for row in told["rows"][:-1]] == [100.00] * 20
    assert told["totals"][0]["cost"] == 2024.00
    assert not told["partial"]


# --- where Prometheus is, and what it says instead ---------------------------------------------------------------


def test_where_nothing_listens(desk: Desk) -> None:
    told = wrong(desk, "--prometheus", "http://127.0.0.1:9")
    assert "no Prometheus responds at http://127.0.0.1:9" in told
    assert "port-forward" in told


@pytest.mark.parametrize(
    "url", ["prometheus", "ftp://x", "http://", "http://x:99999", "http://x:y", "http://x/?a=b", "http://[::"]
)
def test_an_address_that_is_none(desk: Desk, url: str) -> None:
    assert not lacks(wrong(desk, "--prometheus", url), f"--prometheus {url}", "http://127.0.0.1:9090")


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/html", b"<html>Grafana</html>"),
        (404, "text/plain", b"404 page not found\n"),
        (200, "application/json", b"{}"),
        (200, "application/json", b"[]"),
        (200, "application/json", b'{"status": "success"}'),
        (200, "application/json", b'{"status": "success", "data": {"resultType": "vector", "result": [{}]}}'),
        (200, "application/json", b'{"status": "success", "data": {"resultType": "vector", "result": []}}'),
        (200, "application/json", b'{"status": "success", "data": {"resultType": "string", "result": []}}'),
        (502, "text/html", b"bad gateway"),
        (500, "application/json", b'{"kind": "Status", "message": "no endpoints available"}'),
    ],
    ids=lambda answer: answer[2].decode()[-40:],
)
def test_what_is_no_prometheus_is_told(desk: Desk, fake: FakePrometheus, answer: Answer) -> None:
    instead(fake, answer)
    told = wrong(desk, "--prometheus", fake.url)
    assert "does not respond like a Prometheus" in told
    assert "/api/v1/query, for example http://127.0.0.1:9090" in told


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused(desk: Desk, fake: FakePrometheus, status: int) -> None:
    instead(fake, (status, "text/plain", b"no"))
    (desk.folder / "token").write_text("s3cret\n")
    for more in ((), ("--token-file", "token")):
        told = wrong(desk, "--prometheus", fake.url, *more)
        assert not lacks(told, f"HTTP {status}", "--token-file FILE")
        assert "s3cret" not in told


def test_nobody_sends_us_and_our_token_elsewhere(desk: Desk, fake: FakePrometheus) -> None:
    (desk.folder / "token").write_text("s3cret\n")
    with fake_prometheus() as other:
        fake.elsewhere = f"{other.url}/api/v1/query?query=vector(time())"
        instead(fake, (302, "text/html", b"<a>Found</a>"))
        told = wrong(desk, "--prometheus", fake.url, "--token-file", "token")
        assert not lacks(told, "Prometheus", "HTTP 302")
        assert other.paths == []


def test_a_token_is_not_sent_in_the_clear_but_to_this_machine(desk: Desk) -> None:
    (desk.folder / "token").write_text("s3cret\n")
    told = wrong(desk, "--prometheus", "http://prometheus.example", "--token-file", "token")
    assert not lacks(told, "http://prometheus.example", "unencrypted", "https")
    for here in ("http://localhost:9", "http://[::1]:9", "http://127.0.0.9:9"):
        assert "no Prometheus responds" in wrong(desk, "--prometheus", here, "--token-file", "token")


@pytest.mark.parametrize("url", ["http://me:secret@x", "http://me:secret@x:99999", "ftp://me:secret@x?a=b"])
def test_a_password_in_an_address_is_refused_and_not_repeated(desk: Desk, url: str) -> None:
    told = wrong(desk, "--prometheus", url)
    assert not lacks(told, "password", "address")
    assert "secret" not in told


def test_a_token_is_sent_and_never_shown(desk: Desk, fake: FakePrometheus) -> None:
    (desk.folder / "token").write_text("s3cret\n")
    said = ask(desk, fake, "--token-file", "token")
    assert set(fake.tokens) == {"Bearer s3cret"}
    assert "s3cret" not in said.out + said.err


@pytest.mark.parametrize("content", ["", "two words", "a\nb", "ä"])
def test_a_file_without_a_token(desk: Desk, content: str) -> None:
    (desk.folder / "token").write_text(content)
    told = wrong(desk, "--prometheus", "http://127.0.0.1:9", "--token-file", "token")
    assert "it does not contain a token" in told


def test_files_that_are_not_there_and_flags_that_do_not_go_together(desk: Desk) -> None:
    url = ("--prometheus", "https://127.0.0.1:9")
    assert "--token-file nowhere cannot be read" in wrong(desk, *url, "--token-file", "nowhere")
    (desk.folder / "ca").write_text("no certificate")
    assert "it contains no PEM certificates" in wrong(desk, *url, "--ca-file", "ca")
    assert "not both" in wrong(desk, *url, "--service", "a/b:1")
    assert "only work with --prometheus URL" in wrong(desk, "--token-file", "x")
    assert not lacks(wrong(desk, "--contexts", "a,b", "-o", "csv"), "-o csv", "--context a")


def test_a_certificate_that_nobody_trusts_and_then_its_authority(desk: Desk, tmp_path: Path) -> None:
    identity = Identity(tmp_path / "pki")
    with fake_prometheus(identity.context()) as fake:
        told = wrong(desk, "--prometheus", fake.url)
        assert "is not trusted" in told
        assert "--ca-file FILE" in told
        assert ask(desk, fake, "--ca-file", str(identity.pki.ca)).status == DONE


def test_tls_where_there_is_none(desk: Desk, fake: FakePrometheus) -> None:
    assert "Is it an http:// address?" in wrong(desk, "--prometheus", fake.url.replace("http:", "https:"))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            failure(422, "execution", "query processing would load too many samples into memory"),
            "too many samples into memory in query execution; narrow the query",
        ),
        (
            failure(503, "timeout", "query timed out"),
            "query timed out; narrow the query with --match, or use a --window shorter than a day",
        ),
        (failure(400, "bad_data", "parse error\n at char 3."), "cannot answer the query: parse error at char 3\n"),
    ],
)
def test_an_error_of_prometheus_is_told_in_its_words(
    desk: Desk, fake: FakePrometheus, answer: Answer, told: str
) -> None:
    instead(fake, answer)
    assert told.replace(" in query execution", "") in wrong(desk, "--prometheus", fake.url)


def test_a_warning_makes_a_bill_a_part(desk: Desk, fake: FakePrometheus) -> None:
    fake.answers["gpusharing_slice_seconds_total"] = vector((HELD, "43200"), warnings=["store x is away"])
    said = ask(desk, fake)
    assert said.status == CHANGES
    assert "PARTIAL: Prometheus warns: store x is away." in said.out
    (first, *_) = csv.DictReader(io.StringIO(ask(desk, fake, "-o", "csv").out))
    assert (first["name"], first["partial"]) == ("team-a", "yes")


def test_series_of_the_meter_that_are_not_kept_are_missed(desk: Desk, fake: FakePrometheus) -> None:
    del fake.answers["gpusharing_idle_slice_seconds_total"]
    said = ask(desk, fake)
    assert said.status == CHANGES
    assert not lacks(said.out, "12.0 GPU-hours", "metered", "24.0")


def test_without_the_label_of_the_node_nobody_can_tell_two_from_one(desk: Desk, fake: FakePrometheus) -> None:
    pods = [({"policy": "pool-x", "kubernetes_pod_name": name}, "9") for name in ("agent-a", "agent-b")]
    fake.answers = {" and on (node, policy)": vector(*pods), **fake.answers}
    told = wrong(desk, "--prometheus", fake.url, "--window", "1d")
    assert "differ in the label kubernetes_pod_name (agent-a, agent-b)" in told
    assert "from __meta_kubernetes_pod_node_name" in told


@pytest.mark.parametrize("label", ["namespace", "policy"])
def test_what_is_beyond_the_bounds_of_a_node_is_explained(desk: Desk, fake: FakePrometheus, label: str) -> None:
    fake.answers["gpusharing_slice_seconds_total"] = vector(({**HELD, label: "_others"}, "43200"))
    told = " ".join(ask(desk, fake).out.split())
    assert not lacks(told, "_others", "128")


def test_nothing_that_was_scraped_steers_the_terminal(desk: Desk, fake: FakePrometheus) -> None:
    bad = vector(({**HELD, "namespace": "team\x1b[2J"}, "43200"), warnings=["store\x1b[2J"])
    fake.answers["gpusharing_slice_seconds_total"] = bad
    told = ask(desk, fake).out
    assert "team?[2J" in told
    assert "store?[2J" in told
    assert "\x1b" not in told
    instead(fake, failure(400, "bad_data", "no\x1b[2J"))
    assert "cannot answer the query: no?[2J" in wrong(desk, "--prometheus", fake.url)


def test_values_that_are_no_numbers_are_left_out(desk: Desk, fake: FakePrometheus) -> None:
    fake.answers["(avg by (node) (node_gpu_hourly_cost"] = vector(({"node": "gpu-1"}, "NaN"))
    assert "USD 2.00 (policy)" in ask(desk, fake).out


# --- through the API server --------------------------------------------------------------------------------------


def service(name: str, **labels: str) -> JSON:
    ports = [{"name": "reloader-web", "port": 8080}, {"name": "http-web", "port": 9090}]
    return {"metadata": {"namespace": "monitoring", "name": name, "labels": labels}, "spec": {"ports": ports}}


def behind(fake: FakePrometheus, *services: JSON) -> None:
    """The fake plays the API server too: it lists these Services, and passes everything on to Prometheus."""
    listed = json.dumps({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": services})
    fake.instead = lambda path: (200, "application/json", listed.encode()) if path == SERVICES else None


def test_the_only_service_that_looks_like_a_prometheus_is_asked(desk: Desk, fake: FakePrometheus) -> None:
    behind(fake, service("kps-prometheus", app="kube-prometheus-stack-prometheus"), service("grafana", app="grafana"))
    desk.write_kubeconfig(fake.url)
    said = desk.type("cost", "--window", "1d", "-o", "json")
    assert said.status == DONE
    assert json.loads(said.out)["prometheus"] == "Service monitoring/kps-prometheus:9090 of context desk"
    (remark,) = json.loads(said.out)["remarks"]
    assert not lacks(remark, json.loads(said.out)["prometheus"], "--service")
    assert set(fake.paths[1:]) == {
        f"/api/v1/namespaces/monitoring/services/kps-prometheus:9090/proxy/api/v1/{one}"
        for one in ("query", "query_range")
    }
    assert set(fake.tokens) == {"Bearer secret-token"}


def test_a_service_that_is_named_is_not_looked_for(desk: Desk, fake: FakePrometheus) -> None:
    desk.write_kubeconfig(fake.url)
    for named, path in (("mon/p:web", "p:web"), ("mon/https:p:9090", "https:p:9090"), ("mon/https:p", "https:p:")):
        fake.paths.clear()
        assert desk.type("cost", "--service", named, "--window", "1d").status == DONE
        assert fake.paths[0] == f"/api/v1/namespaces/mon/services/{path}/proxy/api/v1/query"
    assert "use NAMESPACE/NAME:PORT" in wrong(desk, "--service", "prometheus")


def test_several_services_or_none_are_told(desk: Desk, fake: FakePrometheus) -> None:
    desk.write_kubeconfig(fake.url)
    behind(fake, service("a", app="prometheus-server"), service("b", app="prometheus-server"))
    assert not lacks(wrong(desk), "monitoring/a:9090", "monitoring/b:9090")
    behind(fake, service("grafana", app="grafana"))
    assert not lacks(wrong(desk), "no Service", "context desk", "--service")


def test_who_may_not_list_services_may_name_one(desk: Desk) -> None:
    desk.server.refusals[SERVICES] = (403, 'User "me" cannot list resource "services"')
    told = wrong(desk)
    assert 'cannot list resource "services"' in told
    assert "To skip the search, pass --service monitoring/prometheus-operated:9090" in told


def test_a_right_to_the_service_that_is_missing(desk: Desk, fake: FakePrometheus) -> None:
    status = {"kind": "Status", "message": 'User "me" cannot get resource "services/proxy"'}
    instead(fake, (403, "application/json", json.dumps(status).encode()))
    desk.write_kubeconfig(fake.url)
    told = wrong(desk, "--service", "monitoring/p:9090")
    assert not lacks(told, 'cannot get resource "services/proxy"', "permission", "get services/proxy")
