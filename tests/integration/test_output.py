"""What people see: kubectl's own output of a running scenario, compared with golden files.

GOLDEN=write writes them anew; read the difference before you commit it. Ages and times are masked.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.product import FULL, GPUNODES, H100, L40S, MIXED, SLICED, Pool, Product
from tests.integration.workloads import Workload, guard

pytestmark = pytest.mark.usefixtures("operator")

GOLDEN = Path(__file__).with_name("golden")
MASKED_COLUMNS = {"AGE", "SINCE", "DEADLINE"}
MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"(pool-b-on-pool-b-\d)-[a-z0-9]{5}\b"), r"\1-POD"),
    (
        re.compile(r"Allows \d disruptions: \d of \d pods are healthy"),
        "Allows N disruptions: N of N pods are healthy",
    ),
    (re.compile(r"(UID|Resource Version|Hash): +\S+"), r"\1: MASKED"),
    (re.compile(r"^( +\w+ +\w+ +)(<invalid>|\d\S*|\S+ \(x\d+ over \S+\))( +gpusharing)", re.M), r"\1AGE\3"),
)


@pytest.fixture(scope="module")
def scenario(product: Product, operator: object) -> Iterator[Pool]:
    """Pool b: one node done, one in a drain that a budget blocks, one cordoned by a person; pools c and d: Synced."""
    with (
        product.pool(H100, H100, H100, name="pool-b") as pool,
        product.pool(H100, name="pool-c") as whole,
        product.pool(L40S, name="pool-d") as shared,
    ):
        whole.apply(FULL)
        shared.apply(SLICED)
        blocked = pool.nodes[1]
        spare = Workload(pool, whole.nodes[0], 0, app="pool-b")
        work = Workload(pool, blocked, 2)
        work.wait_running(2)
        guard(pool, "pool-b", 1, minAvailable=1)
        pool.cordon(pool.nodes[2])
        pool.apply({**MIXED, "rollout": {"maxUnavailable": 2}})
        pool.wait_phase("Synced", "", pool.nodes[0])
        pool.wait_phase("Draining", "PDB", blocked)
        pool.wait_phase("Blocked", "AlreadyCordoned", pool.nodes[2])
        whole.wait_synced()
        shared.wait_synced()
        pool.wait(lambda: pool.summary().get("used") == "1/8", "the count of used devices")
        report = f"{GPUNODES}/{blocked}"
        pool.wait(
            lambda: product.api.get(report)["status"]["observed"]["pods"] == 1,
            "the agent to see one pod less",
        )
        for one in (pool, whole, shared):
            one.wait(lambda one=one: one.summary().get("pendingPods") == 1, "the count of waiting pods")
        yield pool
        spare.scale(1)


def masked(text: str) -> str:
    """Without what differs from run to run; columns keep their order, not their width."""
    lines = text.splitlines()
    if lines and lines[0].startswith("NAME "):
        return "\n".join(_table(lines)) + "\n"
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    body, head, events = text.partition("Events:\n")
    # Two nodes move at once, so the order of their events is no one's promise.
    rows = sorted(re.sub(r" {2,}", "  ", line) for line in events.splitlines()[2:])
    return "\n".join(line.rstrip() for line in [*body.splitlines(), head.strip(), *rows]) + "\n"


def _table(lines: list[str]) -> Iterator[str]:
    header = [(match.group(), match.start()) for match in re.finditer(r"\S+", lines[0])]
    ends = [start for _, start in header[1:]] + [10_000]
    rows = []
    for line in lines:
        cells = [line[start:end].strip() for (_, start), end in zip(header, ends, strict=True)]
        rows.append(cells)
    for row in rows[1:]:
        for index, (name, _) in enumerate(header):
            if name in MASKED_COLUMNS and row[index]:
                row[index] = name.lower()
            for pattern, mask in MASKS:
                row[index] = pattern.sub(mask, row[index])
    widths = [max(len(row[index]) for row in rows) for index in range(len(header))]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


OUTPUTS: dict[str, tuple[str, ...]] = {
    "get-gsp": ("get", "gsp"),
    "get-gsp-wide": ("get", "gsp", "-o", "wide"),
    "get-gpun": ("get", "gpun"),
    "get-gpun-wide": ("get", "gpun", "-o", "wide"),
    "describe-gsp": ("describe", "gsp", "pool-b"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_kubectl_shows_what_the_golden_file_says(product: Product, scenario: Pool, name: str) -> None:
    assert scenario.name == "pool-b"
    seen = masked(product.plane.kubectl(*OUTPUTS[name]))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(seen)
    assert seen == path.read_text()


def test_the_category_gpu_shows_both_kinds(product: Product, scenario: Pool) -> None:
    shown = product.plane.kubectl("get", "gpu", "-o", "name").split()
    assert f"gpusharingpolicy.gpusharing.dev/{scenario.name}" in shown
    assert {f"gpunode.gpusharing.dev/{node}" for node in scenario.nodes} <= set(shown)
