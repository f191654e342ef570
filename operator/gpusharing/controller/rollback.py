"""`gpusharing-rollback-check`: the chart's pre-rollback hook. It reads the CRD and the policies, and writes nothing.

Helm runs it from the revision that the release returns to, so the policies would keep only the fields that this image
knows.
"""

import asyncio
import os
import sys
from collections.abc import Mapping

from gpusharing.api.crd import structural_schema
from gpusharing.api.names import VERSION
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.kube.client import CUSTOM_RESOURCE_DEFINITIONS, JSON, POLICIES, KubeClient
from gpusharing.kube.errors import KubeError, NotFound
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import environment_login
from gpusharing.kube.paging import list_of
from gpusharing.kube.raw import entries, section, text
from gpusharing.planning.stack.hooks import HookAnswer, explain_unblock, find_retreat

REFUSED = 1
"""Exit status that makes Helm stop the rollback."""
CRD = POLICIES.full_name
RELEASE, NAMESPACE = "GPUSHARING_RELEASE", "GPUSHARING_NAMESPACE"
"""The variables that name the Helm release and its namespace; the chart sets both."""


async def ask(client: KubeClient, release: str, namespace: str) -> HookAnswer:
    """Return whether the release may be rolled back, and the reason. It may not if a policy has a field that the older
    version, which is ours, lacks (`find_retreat`). If the CRD does not exist, or the API server does not serve the
    policies, it may. If something else keeps the CRD or the policies from being read, it may not, and the error is the
    reason; no KubeError is raised."""
    try:
        crd = await client.get(CUSTOM_RESOURCE_DEFINITIONS, CRD)
        policies = await list_of(client, POLICIES)
    except NotFound:
        return HookAnswer(True, f"CRD {CRD} does not exist, so there is no policy.")
    except KubeError as error:
        return HookAnswer(
            False,
            "NOT ROLLED BACK: cannot tell whether a policy has a field that the older version lacks, because"
            f" the CRD or the policies cannot be read: {error}\n{explain_unblock(release, namespace)}",
        )
    specs = {text(raw, "metadata", "name"): raw.get("spec") for raw in policies}
    return find_retreat(specs, _served(crd), structural_schema(GPUSharingPolicySpec), release, namespace)


def _served(crd: JSON) -> JSON:
    """Return the schema of the spec in our version of the CRD; empty if the CRD does not have that version."""
    for version in entries(crd, "spec", "versions"):
        if text(version, "name") == VERSION:
            return section(version, "schema", "openAPIV3Schema", "properties", "spec")
    return {}


async def _run(environment: Mapping[str, str]) -> HookAnswer:
    """Return the answer of `ask` for the release that the environment names, with the credentials of the environment.
    Raises KeyError if RELEASE or NAMESPACE is not set."""
    login = environment_login(environment)
    async with HttpClient(login, name="gpusharing-rollback") as client:
        return await ask(client, environment[RELEASE], environment[NAMESPACE])


def main() -> None:
    """Print the answer, and exit with 0 if Helm may roll back, else with REFUSED. If RELEASE or NAMESPACE is not set or
    is empty, exit with REFUSED too, and with a message on standard error instead of the answer."""
    if missing := [name for name in (RELEASE, NAMESPACE) if not os.environ.get(name)]:
        example = " ".join(f"{name}=gpusharing" for name in missing)
        sys.exit(f"gpusharing-rollback-check: {' and '.join(missing)} must be set, for example: {example}")
    retreat = asyncio.run(_run(os.environ))
    print(retreat.text)
    sys.exit(0 if retreat.allowed else REFUSED)


if __name__ == "__main__":
    main()
