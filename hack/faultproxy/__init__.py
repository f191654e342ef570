"""A reverse proxy on loopback in front of an API server. It can act at an exact write, for example by killing the
client.

with FaultProxy(api.url, api.ca_pem, tls=context) as proxy:      # plain http without `tls`; bearer tokens pass through
    account = operator_account(kubeconfig, directory, Door(proxy.url, authority))
    proxy.arm(7, lambda: os.kill(pid, signal.SIGKILL))       # write 7 is answered, but the answer is lost
    proxy.disturb(faults.AnswerLost(7, "one", times=3))      # the answers to three writes of that object are lost

Answers, refusals and watches are the server's (docs/design/faults.md#proxy), except for paths that a test makes fail,
once or forever:

    sick = proxy.fail("PATCH", NODES.path(None, "gpu-1"), PlayedRefusal(503))
    deaf = proxy.fail("GET", PODS.path(), None, query="spec.nodeName=gpu-2")     # no answer at all
    sick.lift()

Each process gets an address of its own, so that the log says which process wrote: `proxy.open_door("first")`.
"""

from hack.faultproxy.calls import PlayedRefusal, ProxiedWrite, Sick
from hack.faultproxy.proxy import FaultProxy

__all__ = ["FaultProxy", "PlayedRefusal", "ProxiedWrite", "Sick"]
