"""Each effect of effects.py, by each verb, on a real API server: with a token of the account as the chart makes it, and after the account was granted every right. That a cluster admin may do the same shows that the request is a valid one."""

import re
from collections.abc import Iterator
from functools import partial

import pytest
from hack.cluster.api import MERGE_PATCH, Api, ApiError, Object
from hack.cluster.process import wait_until
from hack.sim.manifests import daemon_set
from tests.chart.charts import NAMESPACE, ROOT
from tests.chart.cluster import AGENT_NAMESPACE, NODES, POLICIES, POLICY, SECONDS, Installed, mighty
from tests.chart.effects import (
    CLASSES,
    EFFECTS,
    EVENTS,
    FORGERIES,
    GATED,
    LEASES,
    MANAGER,
    MAPS,
    OPERANDS,
    PLAIN,
    THEIRS,
    Ended,
    Request,
    Written,
    opened,
    record,
)
from tests.minors import DEVICE_CLASSES, lacks, need

from gpusharing.api import names
from gpusharing.kube.dra import device_class
from gpusharing.planning.wanted.objects import wanted_class

GATE = {"key": names.TAINT_UNPROVEN, "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def targets(installed: Installed) -> Iterator[None]:
    admin = installed.admin
    labels = {
        names.LABEL_GPU_PRESENT: "true",
        names.LABEL_POLICY: "pool-d",
        names.LABEL_MIG_CONFIG: "all-disabled",
        names.LABEL_MIG_STATE: "success",
        names.LABEL_PLUGIN_CONFIG: "pool-d-1",
    }
    objects: list[tuple[str, Object]] = [
        (NODES, {"metadata": {"name": PLAIN}}),
        (NODES, {"metadata": {"name": GATED, "labels": labels}, "spec": {"taints": [GATE]}}),
        (LEASES, {"metadata": {"name": THEIRS}, "spec": {"holderIdentity": "them"}}),
        (POLICIES, {**POLICY, "metadata": {"name": THEIRS}}),
        (MAPS, {"metadata": {"name": THEIRS}, "data": {}}),
        *((EVENTS, one) for one in FORGERIES.values()),
    ]
    if not lacks(DEVICE_CLASSES):
        objects.append((CLASSES, device_class(wanted_class("1g.10gb"))))
    for path, manifest in objects:
        admin.create(path, manifest)
    daemons = "/apis/apps/v1/namespaces/gpu-operator/daemonsets"
    daemon = daemon_set("effects-manager", "gpu-operator", {"app": "nvidia-mig-manager"}, {})
    daemon["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30
    admin.create(daemons, daemon)
    wait_until(lambda: bool(admin.list(OPERANDS, labelSelector=MANAGER)), SECONDS, "a pod of mig-manager")
    yield
    admin.delete(f"{daemons}/effects-manager")
    for path, manifest in objects:
        admin.delete(f"{path}/{manifest['metadata']['name']}")


@pytest.fixture(scope="module")
def thieves(installed: Installed, targets: None) -> Iterator[dict[str, Api]]:
    with installed.operator() as operator, installed.agent(installed.node_a) as agent:
        yield {"operator": operator, "agent": agent}


@pytest.fixture(scope="module")
def mighty_thieves(installed: Installed, thieves: dict[str, Api]) -> Iterator[dict[str, Api]]:
    with (
        mighty(installed, thieves["operator"], "gpusharing-operator", NAMESPACE),
        mighty(installed, thieves["agent"], "gpusharing-agent", AGENT_NAMESPACE),
    ):
        yield thieves


def effect_of(what: str) -> Written | Ended:
    """The effect, which the test is skipped without if the server does not serve what it is done to."""
    effect = EFFECTS[what]
    if effect.collection == CLASSES:
        need(DEVICE_CLASSES, "DeviceClass in v1")
    return effect


def answers(admin: Api, api: Api, effect: Written | Ended) -> dict[str, str]:
    """What the server says to each request that it refuses as forbidden, by verb; empty where it would do it."""
    found = {}

    def answered(verb: str) -> bool:
        request = next(one for one in effect.requests(admin) if one.verb == verb)
        try:
            request.send(api)
        except ApiError as error:
            if error.status == 409:  # somebody has written the object since it was read
                return False
            if error.status != 403:
                raise
            found[verb] = error.message
            return True
        found[verb] = ""
        return True

    for request in effect.requests(admin):
        wait_until(partial(answered, request.verb), SECONDS, "an answer that is no conflict")
    return found


@pytest.mark.cluster
@pytest.mark.parametrize("what", EFFECTS)
def test_a_token_of_the_account_may_not(installed: Installed, thieves: dict[str, Api], what: str) -> None:
    effect = effect_of(what)
    assert set(answers(installed.admin, installed.admin, effect).values()) == {""}
    assert "" not in answers(installed.admin, thieves[effect.account], effect).values()


@pytest.mark.cluster
@pytest.mark.parametrize("what", EFFECTS)
def test_with_every_right_it_still_may_not(installed: Installed, mighty_thieves: dict[str, Api], what: str) -> None:
    effect = effect_of(what)
    found = answers(installed.admin, mighty_thieves[effect.account], effect)
    assert {verb for verb, said in found.items() if "ValidatingAdmissionPolicy" not in said} == {*effect.by_rbac}


@pytest.mark.cluster
def test_with_the_proof_that_the_labels_name_the_start_up_taint_goes(
    installed: Installed, thieves: dict[str, Api]
) -> None:
    for verified in (record(), record(mig="")):
        Request("patch", "PATCH", f"{NODES}/{GATED}", opened(verified), MERGE_PATCH).send(thieves["operator"])


def test_the_page_about_security_has_a_row_for_each_effect() -> None:
    page = (ROOT / "docs" / "explanation" / "security.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| (operator|agent) \|", line)]
    told = [(row[0], row[1]) for row in rows if len(row) == 3]
    assert told == [(effect.account, what) for what, effect in EFFECTS.items()]
