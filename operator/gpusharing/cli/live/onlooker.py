"""A read-only client that shows policies as they would be if proposed ones were applied."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import GPUNODES, JSON, POLICIES, ApiRequest, KubeClient
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.paging import pages_of
from gpusharing.kube.passing import PassingClient
from gpusharing.kube.raw import section, text, whole


class Onlooker(PassingClient):
    """Passes reads on to another client, and raises for writes. Lists of policies include the proposed ones.

    `beforehand`: the operator is not installed yet and its kinds do not exist. Lists of them are empty then, also if
    the server refuses them: it checks a user's rights before it checks whether it serves a kind.
    """

    def __init__(
        self, client: KubeClient, proposed: Sequence[JSON] = (), *, beforehand: bool = False
    ) -> None:
        """Wrap `client`, and show `proposed` as if these policies were applied."""
        super().__init__(client)
        self._beforehand = beforehand
        self._proposed = {text(raw, "metadata", "name"): raw for raw in proposed}

    async def call(self, request: ApiRequest) -> JSON:
        """Make a request as KubeClient does. Raises RuntimeError for everything but get and list.

        If there are proposed policies, a list of policies is always one page with all of them, sorted by name,
        whatever page was requested.
        """
        if request.verb not in ("get", "list"):
            raise RuntimeError(
                f"a read-only client was asked to {request.verb} {request.resource.plural} {request.full_name}"
            )
        if request.verb != "list" or request.resource not in (POLICIES, GPUNODES):
            return await self.client.call(request)
        if request.resource == POLICIES and self._proposed:
            return await self._merged_policies()
        try:
            return await self.client.call(request)
        except (Forbidden, NotFound):
            if not self._beforehand:
                raise
            return _list([], "0")

    async def _merged_policies(self) -> JSON:
        """Return the list of all policies with the proposed ones applied, sorted by name."""
        policies: dict[str, JSON] = {}
        version = "0"
        try:
            async for page in pages_of(self.client, POLICIES):
                policies |= {text(raw, "metadata", "name"): raw for raw in page.items}
                version = page.resource_version
        except (Forbidden, NotFound):
            if not self._beforehand:
                raise
        for name, raw in self._proposed.items():
            policies[name] = applied(policies.get(name), raw)
        return _list([raw for _, raw in sorted(policies.items())], version)


def _list(items: list[JSON], version: str) -> JSON:
    return {"metadata": {"resourceVersion": version}, "items": items}


def applied(live: JSON | None, proposed: Mapping[str, Any]) -> JSON:
    """Return the policy as the server would have it after `kubectl apply`: the file's spec and annotations on the live
    object, and the next generation if the spec means something else. `live` is None for a policy that does not
    exist yet."""
    own = section(proposed, "metadata")
    if live is None:
        return {**proposed, "metadata": {**own, "generation": 1}}
    theirs = section(live, "metadata")
    same = validate_policy(live) == validate_policy(proposed)
    metadata = {
        **theirs,
        "annotations": {**section(theirs, "annotations"), **section(own, "annotations")},
        "generation": whole(theirs, "generation") + (not same),
    }
    return {**live, "metadata": metadata, "spec": proposed.get("spec")}
