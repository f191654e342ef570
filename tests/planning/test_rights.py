"""The rights that are asked about are those that the chart grants."""

import pytest
from tests.chart.rbac import golden

from gpusharing.planning.stack import rights

NAMED = {
    "{lease}": "gpusharing-operator",
    "{plugin_config_map}": "gpusharing-device-plugin",
    "{mig_config_map}": "gpusharing-mig-parted",
}


@pytest.mark.parametrize(
    ("subject", "table", "values"),
    [
        ("operator", rights.OPERATOR_RIGHTS, ()),
        ("operator", rights.OPERATOR_RIGHTS + rights.CONFIGURE, ("gpuOperator.configure",)),
        ("operator", rights.OPERATOR_RIGHTS + rights.REPAIR_MPS, ("gpuOperator.repairMps",)),
        ("operator", rights.OPERATOR_RIGHTS + rights.FORCE_DELETE, ("forceDelete",)),
        ("operator", rights.OPERATOR_RIGHTS + rights.DEVICE_TAINTS, ("dra.deviceTaints",)),
        ("agent", rights.AGENT_RIGHTS + rights.SECURE_METRICS, ()),
    ],
)
def test_the_table_is_the_golden_one(
    subject: str, table: tuple[rights.Right, ...], values: tuple[str, ...]
) -> None:
    known = {
        (one.verb, one.group, one.resource, one.subresource, one.scope, NAMED.get(one.name, one.name))
        for one in table
    }
    wanted = {
        (grant.verb, grant.group, grant.resource, grant.subresource, grant.scope, name)
        for grant in golden(*values)
        if grant.subject == subject
        for name in grant.names or ("",)
    }
    assert known == wanted


def test_a_right_reads_as_kubectl_takes_it() -> None:
    texts = {right.text for right in rights.OPERATOR_RIGHTS}
    assert {"patch nodes", "create pods/eviction", "patch gpunodes.gpusharing.dev/status"} <= texts
