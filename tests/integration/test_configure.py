"""ClusterPolicy on a real API server: what gpuOperator.configure writes and may not write, and two of them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hack.cluster import install
from hack.cluster.api import MERGE_PATCH, Api, Object
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from hack.faultproxy import FaultProxy
from tests.chart.cluster import forbidden
from tests.fakes.tls import Identity
from tests.integration.crash import ONCE, Kills, Scenario, Theatre
from tests.integration.nursery import Nursery
from tests.integration.product import CLUSTER_POLICY, FULL, GROUP, SECONDS, Pool, Product

from hack import launch

CLUSTER_POLICIES = CLUSTER_POLICY.rpartition("/")[0]
PLUGIN, MIG = "gpusharing-device-plugin", "gpusharing-mig-parted"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
MARK = "gpusharing.dev/configured"


def bare(name: str = "cluster-policy") -> Object:
    return {
        "apiVersion": "nvidia.com/v1",
        "kind": "ClusterPolicy",
        "metadata": {"name": name, "labels": {"app": "gpu-operator"}},
        "spec": {
            "operator": {"defaultRuntime": "containerd"},
            "devicePlugin": {"enabled": True, "version": "v0.19.3", "config": {"name": "", "default": ""}},
            "migManager": {"enabled": True, "config": {"name": "default-mig-parted-config"}},
        },
    }


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with ControlPlane(options=Options(audit=True)) as plane:
        install.install_gpu_operator(plane.api, cluster_policy=False)
        launch.install_chart(plane.kubeconfig, "--set", "operator.replicaCount=0,gpuOperator.configure=true")
        yield Product(plane, tmp_path_factory.mktemp("configure"))


@pytest.fixture(scope="module")
def token(product: Product) -> Iterator[Api]:
    with product.api.as_token(service_account_token(product.api, launch.NAMESPACE, "gpusharing-operator")) as api:
        product.api.create(CLUSTER_POLICIES, bare("probe"))

        def enforced() -> bool:
            return "may only change" in refusal(api, {"spec": {"operator": {"x": "y"}}}, "probe")

        wait_until(enforced, SECONDS, "the admission policy to be enforced")
        product.api.delete(f"{CLUSTER_POLICIES}/probe")
        yield api


def refusal(api: Api, body: Object, name: str = "cluster-policy", subresource: str = "") -> str:
    """Why the server would not do this patch; empty when it would."""
    path = f"{CLUSTER_POLICIES}/{name}{subresource}"
    return forbidden(lambda: api.request("PATCH", path, body, MERGE_PATCH, dryRun="All"))


def pointed(**names: Any) -> Object:
    return {"spec": {block: {"config": {"name": name}} for block, name in names.items()}}


BOTH = pointed(devicePlugin=PLUGIN, migManager=MIG)
REFUSED: dict[str, Object] = {
    "an image that runs as root on every node": {"spec": {"devicePlugin": {"image": "evil"}}},
    "another block": {"spec": {"operator": {"defaultRuntime": "crio"}}},
    "a block that was not there": {"spec": {"toolkit": {"env": [{"name": "A", "value": "b"}]}}},
    "a field taken away": {"spec": {"devicePlugin": {"version": None}}},
    "a block taken away": {"spec": {"operator": None}},
    "another ConfigMap": pointed(devicePlugin="theirs"),
    "the other ConfigMap of ours": pointed(devicePlugin=MIG),
    "a default beside the name": {"spec": {"devicePlugin": {"config": {"default": "x"}}}},
    "a field beside the name": {"spec": {"migManager": {"config": {"other": "x"}}}},
    "a label": {"metadata": {"labels": {"app": "mine"}}},
    "an annotation of somebody else": {"metadata": {"annotations": {"example.com/a": "b"}}},
    "a finalizer": {"metadata": {"finalizers": ["gpusharing.dev/forever"]}},
}


def test_a_token_of_the_operator_may_set_the_two_names_and_change_nothing_else(product: Product, token: Api) -> None:
    product.api.create(CLUSTER_POLICIES, bare())
    try:
        assert refusal(token, {**BOTH, "metadata": {"annotations": {MARK: "x"}}}) == ""
        allowed = [what for what, body in REFUSED.items() if "ValidatingAdmissionPolicy" not in refusal(token, body)]
        assert allowed == []
        product.api.merge_patch(CLUSTER_POLICY, pointed(devicePlugin="theirs", migManager=MIG))
        assert "nobody has set another value" in refusal(token, pointed(devicePlugin=PLUGIN))
        assert "nobody has set another value" in refusal(token, pointed(migManager=""))
        assert refusal(token, {"status": {"state": "ready"}}, subresource="/status")
        assert forbidden(lambda: token.delete(CLUSTER_POLICY))
        assert refusal(product.api, REFUSED["another block"]) == "", "whoever else may write it still may"
    finally:
        product.api.delete(CLUSTER_POLICY)


def test_a_clusterpolicy_without_a_config_block_gets_one(product: Product, token: Api) -> None:
    spec = bare()["spec"]
    for block in ("devicePlugin", "migManager"):
        del spec[block]["config"]
    product.api.create(CLUSTER_POLICIES, {**bare(), "spec": spec})
    try:
        assert refusal(token, BOTH) == ""
        assert refusal(token, {"spec": {"driver": {"image": "evil"}}})
    finally:
        product.api.delete(CLUSTER_POLICY)


def names(product: Product) -> tuple[str, str]:
    spec = product.api.get(CLUSTER_POLICY)["spec"]
    return spec["devicePlugin"]["config"]["name"], spec["migManager"]["config"]["name"]


def test_the_operator_sets_both_once_says_so_and_leaves_what_is_set_back(product: Product, token: Api) -> None:
    api = product.api
    before, since = api.create(CLUSTER_POLICIES, bare()), product.mark()
    with product.operator("configure", configure_gpu_operator="true") as process:
        wait_until(lambda: names(product) == (PLUGIN, MIG), SECONDS, "both pointers")
        after = api.get(CLUSTER_POLICY)
        assert after["metadata"]["annotations"][MARK] == "devicePlugin.config.name,migManager.config.name"
        for spec in (before["spec"], after["spec"]):
            for block in ("devicePlugin", "migManager"):
                del spec[block]["config"]["name"]
        assert after["spec"] == before["spec"]

        def told() -> list[Object]:
            return [one for one in api.list(EVENTS) if one["reason"] == "PointersSet"]

        wait_until(lambda: told() != [], SECONDS, "the Event")
        assert told()[0]["regarding"]["uid"] == before["metadata"]["uid"]

        api.merge_patch(CLUSTER_POLICY, pointed(devicePlugin=""))
        pool = Pool(product, "nobody")
        pool.create(f"{GROUP}/gpusharingpolicies", pool.manifest(FULL))
        message = pool.wait_condition("Accepted", "False", "PluginConfigNotOurs")
        assert "the operator set it once" in message
        assert "run: kubectl patch clusterpolicy cluster-policy" in message
        assert process.exit_status is None, process.log.read_text()[-3000:]
    assert names(product) == ("", MIG)
    assert len(product.writes("clusterpolicies", since=since)) == 1
    maps = [write.name for write in product.writes("configmaps")]
    assert set(maps) == {PLUGIN, MIG}


# --- killed at any write ------------------------------------------------------------------------------------


def cluster_policy_of(plugin: str) -> Callable[[Pool], None]:
    """Before the operator starts: a new ClusterPolicy, whose device plugin has this ConfigMap."""

    def prepare(pool: Pool) -> None:
        pool.product.remove(CLUSTER_POLICY)
        pool.api.create(CLUSTER_POLICIES, bare())
        pool.api.merge_patch(CLUSTER_POLICY, pointed(devicePlugin=plugin))

    return prepare


def create(pool: Pool) -> None:
    pool.apply(FULL)


def set_back(pool: Pool) -> None:
    create(pool)
    pool.wait(lambda: names(pool.product) == (PLUGIN, MIG), "both pointers")
    pool.api.merge_patch(CLUSTER_POLICY, pointed(devicePlugin=""))


def both_set(pool: Pool) -> bool:
    return names(pool.product) == (PLUGIN, MIG) and pool.condition("Accepted").get("status") == "True"


def told(plugin: str, words: str) -> Callable[[Pool], bool]:
    """The operator says whose the device plugin's is, in words that it did not use before."""

    def holds(pool: Pool) -> bool:
        return names(pool.product) == (plugin, MIG) and words in pool.condition("Accepted").get("message", "")

    return holds


CRASHES = (
    Scenario("pointers", create, both_set, (), prepare=cluster_policy_of("")),
    Scenario(
        "pointers-foreign",
        create,
        told("theirs", "never overwrites what someone else has set"),
        (),
        prepare=cluster_policy_of("theirs"),
    ),
    Scenario(
        "pointers-set-back", set_back, told("", "someone has changed it since"), (), prepare=cluster_policy_of("")
    ),
)


@pytest.fixture(scope="module")
def theatre(product: Product, token: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """Operators that are asked to set the pointers, through a proxy that kills them."""
    directory = tmp_path_factory.mktemp("crash")
    identity, api = Identity(directory / "tls"), product.api
    asked = {"configure_gpu_operator": "true"}
    with FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy, Nursery() as nursery:
        yield Theatre(product, proxy, nursery, identity.authority, directory, asked)
    product.remove(CLUSTER_POLICY)


@pytest.mark.crash
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(one, id=one.name, marks=[pytest.mark.thorough] if one.name == "pointers-set-back" else [])
        for one in CRASHES
    ],
)
def test_a_kill_after_any_write_sets_no_pointer_twice_and_none_of_somebody_else(
    theatre: Theatre, scenario: Scenario
) -> None:
    report = Kills(theatre).kill(scenario)
    assert report.undisturbed[0].applied.count(ONCE) == 1
    assert report.points >= 4, "two ConfigMaps, the pointers, a status"
    assert not report.complaints, "\n".join(report.complaints)
