"""A reverse proxy on loopback in front of an API server, which can act at an exact write (docs/design/faults.md#proxy).

with FaultProxy(api.url, api.ca_pem, tls=context) as proxy:      # plain http without `tls`; bearer tokens pass through
    proxy.arm(7, lambda: os.kill(pid, signal.SIGKILL))       # write 7 is answered, but the answer is lost
    proxy.disturb(faults.AnswerLost(7, "one", times=3))      # the answers to three writes of that object are lost
    proxy.fail("PATCH", NODES.path(None, "gpu-1"), PlayedRefusal(503)).lift()      # None instead: no answer at all
"""

from hack.faultproxy.calls import PlayedRefusal, ProxiedWrite, Sick
from hack.faultproxy.proxy import FaultProxy

__all__ = ["FaultProxy", "PlayedRefusal", "ProxiedWrite", "Sick"]
