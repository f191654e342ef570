"""`gpusharing-uninstall-check`: the chart's pre-delete hook. It reads Nodes and policies, and writes nothing.

Terms: docs/design/glossary.md#fence.
"""

import asyncio
import os
import sys
from collections.abc import Mapping

from gpusharing.controller.settings import SettingsError, from_environment
from gpusharing.kube.client import CLUSTER_POLICIES, NODES, POLICIES, KubeClient
from gpusharing.kube.convert import node_view, policy_view
from gpusharing.kube.errors import KubeError, NotFound
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import environment_login
from gpusharing.kube.paging import list_of, pages_of
from gpusharing.kube.raw import text
from gpusharing.planning.snapshot.views import PlanSettings, PolicyView
from gpusharing.planning.stack.hooks import HookAnswer, find_farewell

REFUSED = 1
"""Exit status that makes Helm stop the removal."""


async def ask(client: KubeClient, settings: PlanSettings) -> HookAnswer:
    """Return whether the operator may be uninstalled, and the reason. It may not while a node has our fence or a policy
    has our finalizer (`find_farewell`), or if the Nodes or the policies cannot be read; then the error is the reason.
    If the API server no longer knows the kind of the policies, there are none. If the ClusterPolicies cannot be read,
    none are named. No KubeError is raised."""
    try:
        nodes = [node_view(raw) async for page in pages_of(client, NODES) for raw in page.items]
        policies = await _policies(client)
    except KubeError as error:
        return HookAnswer(
            False,
            "NOT UNINSTALLED: cannot tell whether a node or policy still needs the operator, because nodes or policies"
            f" cannot be read: {error}\nTo uninstall anyway: helm uninstall --no-hooks",
        )
    return find_farewell(nodes, settings, await _cluster_policies(client), policies)


async def _policies(client: KubeClient) -> list[PolicyView]:
    """Return all policies; empty if their kind no longer exists. Raises other KubeErrors."""
    try:
        return list(map(policy_view, await list_of(client, POLICIES)))
    except NotFound:
        return []


async def _cluster_policies(client: KubeClient) -> list[str]:
    """Return the names of all ClusterPolicies, for the commands that are printed. Empty if they cannot be read, which
    does not prevent the removal."""
    try:
        return [text(raw, "metadata", "name") for raw in await list_of(client, CLUSTER_POLICIES)]
    except KubeError:
        return []


async def _run(environment: Mapping[str, str]) -> HookAnswer:
    """Return the answer of `ask` with the settings and the credentials of the environment. Raises SettingsError."""
    settings = from_environment(environment)
    login = environment_login(environment)
    async with HttpClient(login, name="gpusharing-uninstall") as client:
        return await ask(client, settings.plan)


def main() -> None:
    """Print the answer, and exit with 0 if Helm may go on, else with REFUSED. If a setting is not valid, exit with
    REFUSED too, and with a message on standard error instead of the answer."""
    try:
        farewell = asyncio.run(_run(os.environ))
    except SettingsError as error:
        sys.exit(f"gpusharing-uninstall: {error}")
    print(farewell.text)
    sys.exit(0 if farewell.allowed else REFUSED)


if __name__ == "__main__":
    main()
