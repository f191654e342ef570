"""How late the leader renews its Lease while strangers ask for its metrics as fast as they can.

`python -m hack.bench.flood PORT` is one such crowd, in a process of its own; it runs until it is killed.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

from gpusharing.kube.lease import Timing
from hack.bench.machine import cpu_ms
from hack.bench.results import Measured
from hack.bench.testbed import LEASES, Testbed
from hack.cluster.process import wait_until

CONNECTIONS = 200
PAUSE = 0.2
"""Seconds until a connection that was refused is opened again."""


def flooded(testbed: Testbed, seconds: float) -> Iterator[Measured]:
    """Measure the renewals for so many seconds of a flood of the metrics port."""
    span, used = testbed.span(), cpu_ms(testbed.operator.pid)
    began = time.monotonic()
    crowd = subprocess.Popen([sys.executable, "-m", "hack.bench.flood", str(testbed.metrics_port)])
    try:
        wait_until(lambda: time.monotonic() - began >= seconds, 2 * seconds, "the end of the flood", poll=1.0)
    finally:
        crowd.kill()
        crowd.wait()
    used = (cpu_ms(testbed.operator.pid) - used) / (time.monotonic() - began) / 10
    renewals = sorted(
        request.at for request in testbed.requests(span) if request.is_write and request.resource == LEASES
    )
    longest = max((after - before).total_seconds() for before, after in pairwise(renewals))
    how = (
        f"the longest time between two of {len(renewals)} renewals, less the {Timing.retry:g} s between them, in"
        f" {seconds:.0f} s in which {CONNECTIONS} connections ask for /metrics; the operator took {used:.0f} % of a core"
    )
    yield Measured("lease_late_flooded_s", longest - Timing.retry, how)


async def ask_forever(port: int) -> None:
    while True:
        with suppress(OSError, EOFError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.read()
            writer.close()
        await asyncio.sleep(PAUSE)


async def main(port: int) -> None:
    await asyncio.gather(*(ask_forever(port) for _ in range(CONNECTIONS)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
