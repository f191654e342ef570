"""Somebody edits, deletes and renames our ConfigMaps behind the operator's back, on a real API server.

tests/embedded/test_configuration.py plays every case in virtual time; here are the ways in which people do it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from hack.cluster.api import ApiError, Object
from tests.integration.nodelog import corrected, fences
from tests.integration.product import FULL, H100, MIXED, OPERATOR, SLICED, Pool, Product
from tests.integration.workloads import PODS, Workload, pod_spec

from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY
from hack import launch

SPACE = "/api/v1/namespaces/gpu-operator/configmaps"
PLUGIN, MIG, SITE = (
    f"{SPACE}/{name}" for name in ("gpusharing-device-plugin", "gpusharing-mig-parted", "site-mig")
)
LABEL, WRITTEN = "app.kubernetes.io/managed-by", "gpusharing.dev/written"
PROPAGATION = 3.0
"""Seconds; long enough to be seen."""
OLD: Object = {"mode": "MIG", "mig": {"strategy": "single", "layouts": [{"profiles": {"1g.10gb": 7}}]}}
SEVENTHS = "[{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 7}}]"
HALVES = "[{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 2}}]"


def configured(product: Product) -> launch.LaunchedProcess:
    """An operator that merges the entries of ConfigMap site-mig."""
    return product.operator(
        "configuration", admin_mig_config_map="site-mig", config_propagation=str(PROPAGATION)
    )


@pytest.fixture(scope="module")
def operator(product: Product) -> Iterator[launch.LaunchedProcess]:
    """The operator of this module."""
    with configured(product) as process:
        yield process
        assert process.exit_status is None, process.log.read_text()[-3000:]


class Maps:
    """Our two ConfigMaps, for whoever may edit them."""

    def __init__(self, pool: Pool) -> None:
        self.api, self.pool = pool.api, pool

    def data(self) -> Mapping[str, Mapping[str, str]]:
        """What they hold; nothing of one that is not there."""
        found = {}
        for path in (PLUGIN, MIG):
            try:
                found[path] = self.api.get(path).get("data") or {}
            except ApiError as error:
                if error.status != 404:
                    raise
                found[path] = {}
        return found

    def entries(self) -> set[str]:
        """Names of all entries of both."""
        data = self.data()
        return {*data[PLUGIN], *yaml.safe_load(data[MIG]["config.yaml"])["mig-configs"]}

    def is_marked(self) -> bool:
        """Every entry has a time, and our label is on both."""
        marked, stamped = True, set()
        for path in (PLUGIN, MIG):
            metadata = self.api.get(path)["metadata"]
            marked = marked and metadata.get("labels", {}).get(LABEL) == "gpusharing-operator"
            stamped |= set(json.loads((metadata.get("annotations") or {}).get(WRITTEN, "{}")))
        return marked and stamped >= self.entries()

    def patch(self, path: str, data: Mapping[str, str | None], **metadata: object) -> None:
        """As `kubectl patch` and `kubectl edit` do."""
        self.api.merge_patch(path, {"data": dict(data), "metadata": metadata})

    def edit(self) -> None:
        """Another content under our names, in both."""
        data = self.data()
        self.patch(PLUGIN, dict.fromkeys(data[PLUGIN], "version: v1\n"))
        self.patch(MIG, {"config.yaml": data[MIG]["config.yaml"].replace("gb: 7", "gb: 1")})

    def delete_keys(self) -> None:
        """One by one."""
        self.patch(PLUGIN, dict.fromkeys(self.data()[PLUGIN]))
        self.patch(MIG, {"config.yaml": None})

    def rename(self) -> None:
        """The same content under other names, and a key of their own."""
        data = self.data()[PLUGIN]
        self.patch(PLUGIN, {**dict.fromkeys(data), **{f"my-{key}": text for key, text in data.items()}})

    def spoil(self) -> None:
        """A file that mig-parted refuses as a whole."""
        self.patch(MIG, {"config.yaml": self.data()[MIG]["config.yaml"] + "mine: 1\n"})

    def delete(self) -> None:
        """Both, as a whole."""
        self.pool.product.remove(PLUGIN, MIG)

    def strip(self) -> None:
        """Our label and our times."""
        for path in (PLUGIN, MIG):
            self.patch(path, {}, labels={LABEL: None}, annotations={WRITTEN: None})

    def wait_for(self, data: Mapping[str, Mapping[str, str]]) -> None:
        """Until they hold just that, with our marks."""

        def right() -> bool:
            return self.data() == data and self.is_marked()

        self.pool.wait(
            right, "the ConfigMaps to be put right", lambda: [self.api.get(p) for p in (PLUGIN, MIG)]
        )

    def settle(self, *names: str) -> Mapping[str, Mapping[str, str]]:
        """Wait until no entry of an earlier pool or configuration is left; returns what there is."""
        known = ("all-", NEUTRAL_KEY, *(names or (self.pool.name,)))
        self.pool.wait(
            lambda: all(key.startswith(known) for key in self.entries()), "old entries to go", self.data
        )
        return self.data()


ACTS: dict[str, Callable[[Maps], None]] = {
    "edits": Maps.edit,
    "deletes keys": Maps.delete_keys,
    "renames": Maps.rename,
    "spoils": Maps.spoil,
    "deletes": Maps.delete,
    "strips": Maps.strip,
}


def untouched(product: Product, pool: Pool, since: int) -> None:
    """No Node was written and no pod evicted."""
    assert product.writes("nodes", since=since) == []
    assert [r for r in product.requests(since, OPERATOR) if r.resource == "pods/eviction"] == []


def test_a_config_map_that_was_there_before_us_is_left_alone_until_it_is_handed_over(
    product: Product,
) -> None:
    product.remove(PLUGIN, MIG)
    theirs = {"time-slicing-a100": "version: v1\n"}
    product.api.create(SPACE, {"metadata": {"name": "gpusharing-device-plugin"}, "data": theirs})
    with product.pool(H100) as pool, configured(product):
        since = product.mark()
        pool.apply(SLICED)
        message = pool.wait_condition("Accepted", "False", "ConfigMapTaken")
        pool.wait_phase("Blocked", "ConfigMapTaken")
        assert product.api.get(PLUGIN)["data"] == theirs
        assert product.writes("configmaps", since=since) == []
        untouched(product, pool, since)
        command = next(part for part in message.split(": ") if part.startswith("kubectl label")).split(" (")[
            0
        ]
        product.plane.kubectl(*command.removeprefix("kubectl ").split())
        pool.wait_synced()
        assert theirs.keys() & product.api.get(PLUGIN)["data"].keys() == set()


def test_what_somebody_does_to_them_while_pools_are_synced_is_put_right_and_touches_nobody(
    product: Product, operator: launch.LaunchedProcess
) -> None:
    with product.pool(H100) as pool:
        pool.apply(MIXED)
        pool.wait_synced()
        work = Workload(pool, pool.nodes[0], 2, resource="nvidia.com/mig-3g.40gb")
        before = work.wait_running(2)
        maps = Maps(pool)
        right, labels, since = maps.settle(), pool.labels(), product.mark()
        ready = pool.condition("Ready")
        for act in ACTS.values():
            act(maps)
            maps.wait_for(right)
        assert pool.labels() == labels
        assert pool.condition("Ready") == ready, "not even for a moment"
        assert work.running() == before
        untouched(product, pool, since)


@contextmanager
def draining(pool: Pool, wanted: Object) -> Iterator[None]:
    """A change to `wanted` is under way, until the block ends: a pod does not go."""
    name = f"{pool.name}-hangs"
    metadata = {"name": name, "annotations": {"simulate.gpusharing.dev/stop": "never"}}
    pool.create(PODS, {"metadata": metadata, "spec": pod_spec(pool.nodes[0])})
    pool.wait(lambda: pool.api.get(f"{PODS}/{name}")["status"]["phase"] == "Running", "the pod")
    pool.apply({**wanted, "drain": {"unmanagedPods": "Evict", "strandedPods": "Allow"}})
    pool.wait_phase("Draining")
    yield
    pool.api.delete(f"{PODS}/{name}", {"gracePeriodSeconds": 0})


def damage(maps: Maps) -> None:
    """Everything at once, but no object is deleted."""
    maps.edit()
    maps.spoil()
    maps.strip()


@pytest.mark.parametrize("act", [Maps.delete, damage], ids=["deletes them", "edits and strips them"])
def test_what_somebody_does_to_them_during_a_change_is_put_right_and_the_label_waits_for_it(
    product: Product, operator: launch.LaunchedProcess, act: Callable[[Maps], None]
) -> None:
    with product.pool(H100) as pool:
        pool.apply(OLD)
        pool.wait_synced()
        old = pool.labels()["nvidia.com/device-plugin.config"], pool.labels()["nvidia.com/mig.config"]
        maps, since = Maps(pool), product.mark()
        maps.settle()
        with draining(pool, MIXED):
            right = maps.data()
            assert maps.entries() >= set(old), "labels still name them"
            behind = product.mark()
            act(maps)
            maps.wait_for(right)
        pool.wait_synced()
        fence, passed, release = product.writes("nodes", pool.nodes[0], since)
        repaired = product.writes("configmaps", since=behind)
        last = max(write.at for write in repaired if write.at < passed.at)
        assert (passed.at - last).total_seconds() >= PROPAGATION - 0.1, "the audit log rounds"
        assert fence.at < last < passed.at < release.at
        maps.settle()
        assert not maps.entries() & set(old), "nobody names them any more"


def site(pool: Pool, **entries: str) -> None:
    """The admin's own file, as a whole."""
    text = "".join(f"  {name}: {entry}\n" for name, entry in entries.items())
    manifest = {"metadata": {"name": "site-mig"}, "data": {"config.yaml": f"mig-configs:\n{text}"}}
    if pool.product.exists(SITE):
        pool.api.merge_patch(SITE, manifest)
    else:
        pool.create(SPACE, manifest)


def changed(pool: Pool, since: int) -> bool:
    """Whether a change has begun since then, and come to its end."""
    passed = fences(pool, since)
    return any(passed) and not passed[-1]


def test_an_admins_entries_are_merged_followed_and_survive_what_cannot_be_read(
    product: Product, operator: launch.LaunchedProcess
) -> None:
    named: Object = {"mode": "MIG", "mig": {"config": "mine"}}
    with product.pool(H100) as pool:
        maps = Maps(pool)
        site(pool, mine=HALVES, spare=SEVENTHS)
        pool.wait(lambda: {"mine", "spare"} <= maps.entries(), "the entries to be merged", maps.data)
        pool.apply(named)
        pool.wait_synced()
        assert pool.labels()["nvidia.com/mig.config"] == "mine"
        assert pool.offered() == {"nvidia.com/mig-3g.40gb": 4}
        since = product.mark()
        for broken in ("{", "mig-configs: {mine: [{devices: all}], more: 7}"):
            pool.api.merge_patch(SITE, {"data": {"config.yaml": broken}})
        site(pool, mine=HALVES, more=SEVENTHS)
        pool.wait(lambda: "more" in maps.entries() and "spare" not in maps.entries(), "the edit", maps.data)
        untouched(product, pool, since)
        for meaning, served in ((SEVENTHS, "1g.10gb"), (HALVES, "3g.40gb")):
            since = product.mark()
            site(pool, mine=meaning)
            pool.wait(lambda since=since: changed(pool, since), "a change to what the admin means now")
            assert not corrected(pool, since)
            assert set(pool.offered()) == {f"nvidia.com/mig-{served}"}
            pool.wait_synced()
        product.remove(SITE)
        maps.settle(pool.name, "mine")
        assert "mine" in maps.entries(), "a label names it"
        pool.apply(FULL)
        pool.wait_synced()
        maps.settle()


def test_a_key_that_only_cluster_policy_names_as_the_default_stays(
    product: Product, operator: launch.LaunchedProcess
) -> None:
    default: dict[str, Any] = {"spec": {"devicePlugin": {"config": {"default": "for-all"}}}}
    path = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
    with product.pool(H100) as pool:
        maps = Maps(pool)
        pool.apply(FULL)
        pool.wait_synced()
        product.api.merge_patch(path, default)
        try:
            maps.patch(PLUGIN, {"for-all": "version: v1\n", "for-nobody": "version: v1\n"})
            pool.wait(lambda: "for-nobody" not in maps.entries(), "the foreign key to go", maps.data)
            assert "for-all" in maps.entries()
        finally:
            product.api.merge_patch(path, {"spec": {"devicePlugin": {"config": {"default": None}}}})
        maps.settle()
