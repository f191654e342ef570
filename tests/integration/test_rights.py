"""The rights that the chart grants are exactly those that the tests of this folder were seen to use; runs last."""

from collections import Counter
from pathlib import Path

import pytest
from hack.cluster.audit import AuditedRequest
from hack.cluster.kubeconfig import node_bound_token
from hack.cluster.process import wait_until
from hack.sidebyside import LOOKED_BACK_AT
from tests.agent.test_access import get
from tests.chart.rbac import golden
from tests.integration.product import AGENT, GPUNODES, OPERATOR, SECONDS, Product
from tests.integration.test_secure_metrics import agent_process

from hack import launch

Used = tuple[str, str, str, str]
"""Subject, group, resource with subresource, verb."""
SELF = {"selfsubjectreviews", "selfsubjectaccessreviews"}
ELSEWHERE = {"deviceclasses", "devicetaintrules"}
"""What the operator uses only with NVIDIA's DRA driver, most of it on the control planes of test_dra.py and test_taintrules.py alone, which compare it with the rights."""


def granted(subject: str) -> set[Used]:
    return {
        (g.subject, g.group, f"{g.resource}/{g.subresource}" if g.subresource else g.resource, g.verb)
        for g in golden()
        if g.subject == subject
    }


def used(subject: str, requests: list[AuditedRequest]) -> Counter[Used]:
    """Requests about objects; paths such as /api and /version are everybody's."""
    return Counter(
        (subject, request.group, request.resource, request.verb)
        for request in requests
        if request.resource and request.resource not in SELF and request.status != 403
    )


def only_all_of_the_folder(request: pytest.FixtureRequest) -> None:
    ran = {item.nodeid.split("::", 1)[0] for item in request.session.items}
    if missing := LOOKED_BACK_AT - ran:
        pytest.skip(f"the audit log says it all only after {', '.join(sorted(missing))}")


def test_the_agents_use_what_they_were_granted_and_nothing_else(product: Product, tmp_path: Path) -> None:
    report_once(product, tmp_path)
    assert set(used("agent", product.requests(user=AGENT))) == granted("agent")


def report_once(product: Product, directory: Path) -> None:
    """Run the shipped agent as a process on one more node, and send it a token: of the simulated ones only the writes are their own."""
    with product.pool() as pool:
        node = pool.nodes[0]
        # Not the pool's agent: the process speaks for this node alone, and the simulated one is told nothing.
        gpunode = {"apiVersion": "gpusharing.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": node}}
        product.api.create(GPUNODES, {**gpunode, "spec": {"request": {"id": "rights", "quiet": False}}})
        since = product.mark()
        with agent_process(product, node, directory, METRICS_SECURE="true") as port:
            token = node_bound_token(product.api, launch.AGENT_NAMESPACE, "gpusharing-agent", node)
            status = get(f"https://127.0.0.1:{port}/metrics", f"Bearer {token}")[0]
            assert status == 403, "an agent may not read the metrics of another one"
            verbs = {"list", "watch", "patch"}
            wait_until(lambda: verbs <= {r.verb for r in product.requests(since, AGENT)}, SECONDS, "the agent's report")


def test_the_operator_uses_every_right_that_it_was_granted(product: Product, request: pytest.FixtureRequest) -> None:
    only_all_of_the_folder(request)
    calls = used("operator", product.requests(user=OPERATOR))
    seen, wanted = ({one for one in rights if one[2] not in ELSEWHERE} for rights in (calls, granted("operator")))
    unused = wanted - seen
    assert not unused, f"granted, and never used: {sorted(unused)}"
    assert seen == wanted


def test_nothing_was_refused_to_operator_or_agents(product: Product) -> None:
    assert product.refused() == []
