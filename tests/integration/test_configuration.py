"""Our ConfigMaps on a real API server, under the shipped rights: taken by somebody else, handed over, deleted.
tests/embedded/test_configuration.py plays what else people do to them."""

from collections.abc import Iterator

import pytest
from hack.cluster.api import Object
from tests.integration.product import H100, OPERATOR, SLICED, Pool, Product

SPACE = "/api/v1/namespaces/gpu-operator/configmaps"
PLUGIN, MIG = (f"{SPACE}/{name}" for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"))
THEIRS = {"time-slicing-a100": "version: v1\n"}


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    """A pool whose operator finds that somebody else has a ConfigMap with the name of ours."""
    product.remove(PLUGIN, MIG)
    product.api.create(SPACE, {"metadata": {"name": "gpusharing-device-plugin"}, "data": THEIRS})
    with product.pool(H100) as pool, product.operator("configuration") as process:
        yield pool
        assert process.exit_status is None, process.log.read_text()[-3000:]


def hand_over(pool: Pool, message: str) -> None:
    """Run the command of the message, which gives the ConfigMap to the operator."""
    command = next(part for part in message.split(": ") if part.startswith("kubectl label")).split(" (")[0]
    pool.product.plane.kubectl(*command.removeprefix("kubectl ").split())
    pool.wait_synced()


def test_a_config_map_of_somebody_else_is_ours_after_the_command_and_comes_back_when_it_is_deleted(
    product: Product, pool: Pool
) -> None:
    since = product.mark()
    pool.apply(SLICED)
    message = pool.wait_condition("Accepted", "False", "ConfigMapTaken")
    pool.wait_phase("Blocked", "ConfigMapTaken")
    assert product.api.get(PLUGIN)["data"] == THEIRS
    assert product.writes("configmaps", since=since) == []
    assert product.writes("nodes", since=since) == []
    hand_over(pool, message)
    ours: Object = product.api.get(PLUGIN)["data"]
    assert not THEIRS.keys() & ours.keys()
    since = product.mark()
    product.remove(PLUGIN, MIG)
    pool.wait(lambda: product.exists(MIG) and product.exists(PLUGIN), "both to be written anew")
    assert product.api.get(PLUGIN)["data"] == ours
    assert pool.condition("Ready")["status"] == "True"
    assert product.writes("nodes", since=since) == []
    assert [r for r in product.requests(since, OPERATOR) if r.resource == "pods/eviction"] == []
