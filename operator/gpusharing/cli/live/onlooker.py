"""A client that only looks, and that sees policies as they would be if somebody applied them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import GPUNODES, JSON, POLICIES, ApiRequest, KubeClient
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.paging import pages_of
from gpusharing.kube.passing import PassingClient
from gpusharing.kube.raw import section, text, whole


class Onlooker(PassingClient):
    """Passes on what only reads; the lists of policies have the proposed ones in them.

    `beforehand`: the operator is not installed yet, and none of our kinds exist; a user without rights to them is
    refused before the API server checks whether it serves them.
    """

    def __init__(
        self, client: KubeClient, proposed: Sequence[JSON] = (), *, beforehand: bool = False
    ) -> None:
        super().__init__(client)
        self._beforehand = beforehand
        self._proposed = {text(raw, "metadata", "name"): raw for raw in proposed}

    async def call(self, request: ApiRequest) -> JSON:
        """See KubeClient. Raises RuntimeError for every write.

        With proposals, the policies come as one page in the order of their names, whatever page of whichever of them
        was asked for. Where the operator is not installed yet (`beforehand`), its kinds count as empty.
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
        """The list of all policies, with the proposed ones merged into those of the same names or added to them."""
        found: dict[str, JSON] = {}
        version = "0"
        try:
            async for page in pages_of(self.client, POLICIES):
                found |= {text(raw, "metadata", "name"): raw for raw in page.items}
                version = page.resource_version
        except (Forbidden, NotFound):
            if not self._beforehand:
                raise
        for name, raw in self._proposed.items():
            found[name] = applied(found.get(name), raw)
        return _list([raw for _, raw in sorted(found.items())], version)


def _list(items: list[JSON], version: str) -> JSON:
    return {"metadata": {"resourceVersion": version}, "items": items}


def applied(live: JSON | None, proposed: Mapping[str, Any]) -> JSON:
    """The policy as the server would have it after `kubectl apply`: the spec and the annotations of the file on what
    is there, and a new generation if the spec changed semantically."""
    mine = section(proposed, "metadata")
    if live is None:
        return {**proposed, "metadata": {**mine, "generation": 1}}
    theirs = section(live, "metadata")
    same = validate_policy(live) == validate_policy(proposed)
    metadata = {
        **theirs,
        "annotations": {**section(theirs, "annotations"), **section(mine, "annotations")},
        "generation": whole(theirs, "generation") + (not same),
    }
    return {**live, "metadata": metadata, "spec": proposed.get("spec")}
