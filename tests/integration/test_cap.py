"""The cap over all policies, on a real API server (docs/design/drain.md#holds): one node in flight in the cluster."""

import pytest
from tests.integration.product import H100, HELD, L40S, MIXED, SLICED, Product

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(max_in_flight="1", **HELD)]


def test_a_node_of_one_policy_waits_for_the_node_in_flight_of_another(product: Product) -> None:
    with product.pool(H100) as first, product.pool(L40S) as second:
        first.hold()
        first.apply(MIXED)
        first.wait_held()
        since = product.mark()
        second.apply(SLICED)
        message = second.wait_phase("Pending", "BudgetFull")
        assert "operator.maxInFlight" in message
        assert product.writes("nodes", second.nodes[0], since) == []
        first.let_go()
        first.wait_synced()
        second.wait_synced()
