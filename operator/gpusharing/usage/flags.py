"""Find the Prometheus that the flags `--prometheus` and `--service` name, for verbs that query nothing else.

With `--prometheus`, no cluster is contacted. Otherwise a Service is queried through the API server, which requires the
right `get services/proxy`: the Service that `--service` names, or else the only one that looks like a Prometheus.
"""

from argparse import Namespace

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.usage.prometheus.client import Endpoint, place_of
from gpusharing.usage.prometheus.services import find_place


def place_named(typed: Namespace) -> Endpoint:
    """Return how to reach the Prometheus at the address in `--prometheus`. Raises Trouble if `--service` is given too,
    and wherever `place_of` does."""
    if typed.service:
        raise Trouble("pass either --prometheus or --service, not both")
    return place_of(typed.prometheus, typed.token_file, typed.ca_file)


async def place_found(session: Session, typed: Namespace) -> Endpoint:
    """Return how to reach a Prometheus in the cluster: the Service that `--service` names or, without that flag, the
    only Service that looks like a Prometheus. Raises Trouble as `find_place` does, and if `--token-file` or
    `--ca-file` is given, which only work with `--prometheus`."""
    if typed.token_file or typed.ca_file:
        raise Trouble(
            "--token-file and --ca-file only work with --prometheus URL; a Service is reached with your kubeconfig"
        )
    return await find_place(session, typed.service)
