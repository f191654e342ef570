"""What operator and agent may do: the golden table, and the same read from rendered roles."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("rbac.yaml")
USERS = {"operator": "gpusharing-operator", "agent": "gpusharing-agent", "checks": "gpusharing-checks"}
"""Service account of each subject; also the names of their roles and of the leader Lease."""


@dataclass(frozen=True, slots=True, order=True)
class RoleGrant:
    """One verb that one subject may use."""

    subject: str
    """`operator`, `agent` or `checks`."""
    group: str
    resource: str
    subresource: str
    verb: str
    scope: str
    """`cluster`, or whose namespace: `own`, `agent` or `gpu-operator`."""
    names: tuple[str, ...] = ()
    """The only objects that it reaches; empty: all."""


def golden(*values: str) -> frozenset[RoleGrant]:
    """The grants of rbac.yaml, with those that stand there for one of these values being true.

    Raises: ValueError: a row says something twice or does not say why.
    """
    grants: set[RoleGrant] = set()
    for row in yaml.safe_load(TABLE.read_text()):
        if not row["why"]:
            raise ValueError(f"{row['resource']} does not say why")
        if row.get("when", "") not in ("", *values):
            continue
        for verb in row["verbs"]:
            grant = RoleGrant(
                row["subject"],
                row["group"],
                row["resource"],
                row.get("subresource", ""),
                verb,
                row["scope"],
                tuple(sorted(row.get("names", ()))),
            )
            if grant in grants:
                raise ValueError(f"{grant} stands twice in {TABLE.name}")
            grants.add(grant)
    return frozenset(grants)


def granted(objects: Iterable[Mapping[str, Any]], namespaces: Mapping[str, str]) -> frozenset[RoleGrant]:
    """What the bindings among these objects grant to our service accounts; `namespaces` maps name to scope."""
    roles = {_key(one): one for one in objects if one["kind"] in ("Role", "ClusterRole")}
    found: set[RoleGrant] = set()
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        space = binding["metadata"].get("namespace", "")
        scope = namespaces[space] if space else "cluster"
        reference = binding["roleRef"]
        role = roles[(reference["kind"], space if reference["kind"] == "Role" else "", reference["name"])]
        for account in binding["subjects"]:
            subject = next(key for key, name in USERS.items() if name == account["name"])
            found.update(_expanded(role, subject, scope))
    return frozenset(found)


def _key(role: Mapping[str, Any]) -> tuple[str, str, str]:
    return role["kind"], role["metadata"].get("namespace", ""), role["metadata"]["name"]


def _expanded(role: Mapping[str, Any], subject: str, scope: str) -> Iterator[RoleGrant]:
    for rule in role["rules"]:
        names = tuple(sorted(rule.get("resourceNames", ())))
        for group in rule["apiGroups"]:
            for path in rule["resources"]:
                resource, _, subresource = path.partition("/")
                for verb in rule["verbs"]:
                    yield RoleGrant(subject, group, resource, subresource, verb, scope, names)
