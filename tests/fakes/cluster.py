"""FakeCluster lives in hack/sim because `make demo` uses it too; tests import it from here."""

from hack.sim.fakecluster import FakeClient, FakeCluster
from hack.sim.fakefaults import Call, Crash, Write

__all__ = ["Call", "Crash", "FakeClient", "FakeCluster", "Write"]
