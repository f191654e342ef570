"""The flags of verbs that query only Prometheus, and the one that they mean (`--prometheus`, `--service`, or
neither).

With an address no cluster is contacted. Otherwise a Service is queried, through the API server and with the right
`get services/proxy`: the one that is named, or the only one that looks like a Prometheus.
"""

from argparse import Namespace

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.usage.prometheus.client import Endpoint, place_of
from gpusharing.usage.prometheus.services import find_place


def place_named(typed: Namespace) -> Endpoint:
    """Return how to reach the Prometheus at the address of `--prometheus`. Raises Trouble if a Service is named
    too."""
    if typed.service:
        raise Trouble("give --prometheus or --service, not both")
    return place_of(typed.prometheus, typed.token_file, typed.ca_file)


async def place_found(session: Session, typed: Namespace) -> Endpoint:
    """Return how to reach a Prometheus in the cluster. Raises Trouble, also for flags that only work with an
    address."""
    if typed.token_file or typed.ca_file:
        raise Trouble(
            "--token-file and --ca-file are for --prometheus URL; a Service is reached with your kubeconfig"
        )
    return await find_place(session, typed.service)
