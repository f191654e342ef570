"""A reverse proxy on loopback in front of an API server that does something at an exact write: kill the client, say.

with FaultProxy(api.url, api.ca_pem, tls=context) as proxy:      # plain http without `tls`; bearer tokens pass through
    account = operator_account(kubeconfig, directory, Door(proxy.url, authority))
    proxy.arm(7, lambda: os.kill(pid, signal.SIGKILL))       # the 7th write is answered, the client does not hear it
    proxy.disturb(faults.AnswerLost(7, "one", times=3))      # as are the next two to the same object

Answers, refusals and watches are the server's (docs/design/faults.md#proxy), but for objects that a test makes
fail, once or for ever:

    sick = proxy.fail("PATCH", NODES.path(None, "gpu-1"), Refusal(503))
    deaf = proxy.fail("GET", PODS.path(), None, query="spec.nodeName=gpu-2")     # no answer at all
    sick.lift()

Each process gets a door of its own, so that the log tells whose a write was: `proxy.open_door("first")`.
"""

from hack.faultproxy.calls import PlayedRefusal, ProxiedWrite, Sick
from hack.faultproxy.proxy import FaultProxy

__all__ = ["FaultProxy", "PlayedRefusal", "ProxiedWrite", "Sick"]
