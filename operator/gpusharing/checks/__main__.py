"""`gpusharing-checks`: one screen that says whether the installation can work; `helm test` runs it.

It only reads. Its settings are the operator's own variables (GPUSHARING_NAMESPACE and so on) and GPUSHARING_RELEASE.
Exit status: 0 if the installation can work, 1 if it cannot, 2 if the API server cannot be queried.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gpusharing.kube.errors import KubeError
from gpusharing.kube.http import HttpClient
from gpusharing.kube.installation import gather_installation
from gpusharing.kube.login import environment_login
from gpusharing.planning.stack.installation import find_symptoms, render
from gpusharing.planning.stack.installationviews import Place, find_unread_topics

PREFIX = "GPUSHARING_"
WORKS, BROKEN, NO_ANSWER = 0, 1, 2


def place_of(environment: Mapping[str, str]) -> Place:
    """Return the namespaces and names of the release, by default those of the chart.

    An empty GPUSHARING_AGENT_NAMESPACE stands for the operator's own namespace.
    """
    given: dict[str, Any] = {}
    for item in fields(Place):
        if text := environment.get(f"{PREFIX}{item.name.upper()}"):
            if isinstance(item.default, bool):
                given[item.name] = text == "true"
            elif isinstance(item.default, str):
                given[item.name] = text
    if environment.get(f"{PREFIX}AGENT_NAMESPACE") == "" and "namespace" in given:
        given["agent_namespace"] = given["namespace"]
    return Place(**given)


async def check(environment: Mapping[str, str]) -> int:
    login = environment_login(environment)
    try:
        async with HttpClient(login, name="gpusharing-checks") as client:
            view = await gather_installation(client, place_of(environment))
    except KubeError as error:
        print(f"cannot query the API server: {error}", file=sys.stderr)
        return NO_ANSWER
    symptoms = find_symptoms(view)
    print("\n".join(render(symptoms, find_unread_topics(view))))
    return BROKEN if any(one.severity == "ERROR" for one in symptoms) else WORKS


def main() -> None:
    sys.exit(asyncio.run(check(os.environ)))


if __name__ == "__main__":
    main()
