"""A client that only looks, and that sees policies as they would be if somebody applied them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from gpusharing.api.validation import validate_policy
from gpusharing.kube.answers import ApiRequest
from gpusharing.kube.client import GPUNODES, JSON, POLICIES, KubeClient, Listing, Page, Resource
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.paging import pages_of
from gpusharing.kube.passing import PassingClient
from gpusharing.kube.raw import section, text, whole

Answer = TypeVar("Answer")


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

    async def passing(self, request: ApiRequest, name: str, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """See PassingClient. Raises RuntimeError for every write."""
        if request.verb not in ("get", "list"):
            raise RuntimeError(
                f"a read-only client was asked to {request.verb} {request.resource.plural} {name}"
            )
        return await send()

    async def pages(self, resource: Resource, **listing: Unpack[Listing]) -> AsyncIterator[Page]:
        """List as KubeClient does, with the proposed policies merged into those of the same names or added to them.
        With proposals, the policies come as one page in the order of their names, and `listing` does not apply to them.

        Where the operator is not installed yet (`beforehand`), its kinds count as empty.
        """
        merged = resource == POLICIES and bool(self._proposed)
        pages = pages_of(self.client, POLICIES) if merged else super().pages(resource, **listing)
        if self._beforehand and resource in (POLICIES, GPUNODES):
            pages = _none_where_not_there(pages)
        if not merged:
            async for page in pages:
                yield page
            return
        found: dict[str, JSON] = {}
        version = ""
        async for page in pages:
            found |= {text(raw, "metadata", "name"): raw for raw in page.items}
            version = page.resource_version
        for name, raw in self._proposed.items():
            found[name] = applied(found.get(name), raw)
        yield Page([raw for _, raw in sorted(found.items())], version)


async def _none_where_not_there(pages: AsyncIterator[Page]) -> AsyncIterator[Page]:
    try:
        async for page in pages:
            yield page
    except (Forbidden, NotFound):
        yield Page([], "0")


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
