"""A read-only client that shows the cluster as if proposed policies had been applied."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import GPUNODES, JSON, POLICIES, ApiRequest, KubeClient, Page, PassingClient
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.paging import pages_of
from gpusharing.kube.raw import section, text, whole


class Onlooker(PassingClient):
    """Passes reads on to another client, and raises an error for writes. Lists of policies include the proposed ones.

    With `beforehand`, the operator's kinds do not exist yet, and their lists are empty. The server may also answer
    Forbidden for them, because it checks a user's rights before it looks for a kind.
    """

    def __init__(
        self, client: KubeClient, proposed: Sequence[JSON] = (), *, beforehand: bool = False
    ) -> None:
        super().__init__(client)
        self._beforehand = beforehand
        self._proposed = {text(raw, "metadata", "name"): raw for raw in proposed}

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb not in ("get", "list"):
            raise RuntimeError(
                f"a read-only client was asked to {request.verb} {request.resource.plural} {request.full_name}"
            )
        proposed = self._proposed if request.verb == "list" and request.resource == POLICIES else {}
        pages: list[Page] = []
        try:
            if not proposed:
                return await self.client.call(request)
            pages = [page async for page in pages_of(self.client, POLICIES)]
        except (Forbidden, NotFound):
            if not self._beforehand or request.verb != "list" or request.resource not in (POLICIES, GPUNODES):
                raise
        policies = {text(raw, "metadata", "name"): raw for page in pages for raw in page.items}
        policies |= {name: applied(policies.get(name), raw) for name, raw in proposed.items()}
        version = pages[-1].resource_version if pages else "0"
        items = [policies[name] for name in sorted(policies)]
        return {"metadata": {"resourceVersion": version}, "items": items}


def applied(live: JSON | None, proposed: Mapping[str, Any]) -> JSON:
    """Return the policy as the server would store it after `kubectl apply`."""
    own = section(proposed, "metadata")
    if live is None:
        metadata = {"name": own.get("name"), "annotations": section(own, "annotations"), "generation": 1}
        return {"metadata": metadata, "spec": proposed.get("spec")}
    theirs = section(live, "metadata")
    same = validate_policy(live) == validate_policy(proposed)
    metadata = {
        **theirs,
        "annotations": {**section(theirs, "annotations"), **section(own, "annotations")},
        "generation": whole(theirs, "generation") + (not same),
    }
    return {**live, "metadata": metadata, "spec": proposed.get("spec")}
