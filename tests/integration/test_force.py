"""drain.onTimeout ForceDelete on a real API server: what the value forceDelete allows, and what is done with it."""

from collections.abc import Callable, Iterator

import pytest
from hack.cluster.api import Api, Object
from hack.cluster.audit import AuditedRequest
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from hack.sim.manifests import daemon_set
from tests.chart.cluster import forbidden
from tests.integration.product import AGENT_ACCOUNT, H100, SECONDS, SLICED, Pool, Product
from tests.integration.stages import own_product
from tests.integration.workloads import PODS, Workload, guard

from hack import launch

FORCED: Object = {**SLICED, "drain": {"timeout": "8s", "onTimeout": "ForceDelete"}}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    played = ("--agent-interval", "1", *AGENT_ACCOUNT)
    with own_product(tmp_path_factory.mktemp("force"), "forceDelete=true", *played) as product:
        yield product


def deletions(product: Product, since: int) -> list[AuditedRequest]:
    found = product.requests(since)
    return [one for one in found if (one.verb, one.resource, one.namespace) == ("delete", "pods", "default")]


def busy(pool: Pool) -> tuple[Workload, list[str]]:
    work = Workload(pool, pool.nodes[0], 2)
    names = work.wait_running(2)
    guard(pool, work.app, 0, minAvailable=2)
    return work, names


def test_the_server_that_refuses_to_evict_for_a_budget_lets_the_pods_be_deleted_and_the_node_goes_on(
    product: Product,
) -> None:
    with product.operator(force_delete="true"), product.pool(H100) as pool:
        _, names = busy(pool)
        since = product.mark()
        pool.apply(FORCED)
        pool.wait(lambda: len(deletions(product, since)) == 2, "the deletions")
        pool.wait_synced()
        assert sorted(one.name for one in deletions(product, since)) == names
        refused = {r.status for r in product.requests(since) if (r.resource, r.verb) == ("pods/eviction", "create")}
        assert refused == {429}, "the server was asked first"
        pool.wait(lambda: "PodsForceDeleted" in dict(pool.events()), "the Event", pool.events)
        told = dict(pool.events())
        assert names[0] in told["PodsForceDeleted"]
        assert "ChangeGivenUp" not in told
        assert "forceDelete" not in pool.condition("Accepted")["message"]


# --- what a token may ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token(product: Product) -> Iterator[Api]:
    """The operator's service account; what it may delete is enforced."""
    account = service_account_token(product.api, launch.NAMESPACE, "gpusharing-operator")
    with product.api.as_token(account) as api:
        product.api.create(PODS, pod("probe", node=""))
        wait_until(lambda: "may only delete" in refusal(api, "default", "probe"), SECONDS, "the admission policy")
        yield api


def pod(name: str, *, node: str, grace: int = 30, **metadata: object) -> Object:
    """A pod with a grace period of its own, in seconds."""
    spec: Object = {"schedulerName": "nobody", "containers": [{"name": "main", "image": "x"}]}
    spec["terminationGracePeriodSeconds"] = grace
    if node:
        spec["nodeName"] = node
    return {"metadata": {"name": name, **metadata}, "spec": spec}


def refusal(api: Api, namespace: str, name: str, **options: object) -> str:
    """Why the server would not delete it; empty when it would."""
    body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "dryRun": ["All"], **options}
    return forbidden(lambda: api.delete(f"/api/v1/namespaces/{namespace}/pods/{name}", body))


def test_the_right_reaches_pods_on_nodes_by_uid_with_their_grace_period_and_nothing_else(
    product: Product, token: Api
) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        mirror = {"annotations": {"kubernetes.io/config.mirror": "x"}}
        made = {
            name: pool.create(f"/api/v1/namespaces/{space}/pods", pod(name, node=where, **more))
            for name, space, where, more in (
                ("plain", "default", node, {}),
                ("abrupt", "default", node, {"grace": 0}),
                ("unbound", "default", "", {}),
                ("static", "default", node, mirror),
                ("system", "kube-system", node, {}),
            )
        }

        def asked(name: str, **options: object) -> str:
            metadata = made[name]["metadata"]
            named = {"preconditions": {"uid": metadata["uid"]}, **options}
            return refusal(token, metadata["namespace"], metadata["name"], **named)

        assert asked("plain") == ""
        assert asked("plain", gracePeriodSeconds=30) == ""
        assert asked("plain", gracePeriodSeconds=300) == ""
        assert asked("abrupt", gracePeriodSeconds=1) == ""
        for name, options in REFUSED.items():
            assert "ValidatingAdmissionPolicy" in asked(name.partition(",")[0], **options), name
        daemons = "/apis/apps/v1/namespaces/default/daemonsets"
        pool.create(daemons, daemon_set("monitor", "default", {"app": "monitor"}, {}))
        own: Callable[[], list[Object]] = lambda: product.api.list(PODS, labelSelector="app=monitor")  # noqa: E731 - asked twice
        pool.wait(lambda: bool(own()), "the DaemonSet's pod")
        made["monitor"] = own()[0]
        assert "none that is static, of a DaemonSet" in asked("monitor")
        assert refusal(product.api, "kube-system", "system") == "", "whoever else may delete it still may"


REFUSED: dict[str, Object] = {
    "plain, without its UID": {"preconditions": None},
    "plain, at once": {"gracePeriodSeconds": 0},
    "plain, before its grace period is over": {"gracePeriodSeconds": 29},
    "abrupt, with its own grace period of none": {},
    "unbound": {},
    "static": {},
    "system": {},
}
