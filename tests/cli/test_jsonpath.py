"""`-o jsonpath=TEMPLATE` (kubectl_gpusharing/shell/jsonpath.py), in this process and beside the real kubectl."""

import json
import subprocess
from pathlib import Path

import pytest
from hack.cluster import toolchain
from tests.cli.desk import Desk, wrong

from kubectl_gpusharing.shell.jsonpath import parse_template, render
from kubectl_gpusharing.shell.troubles import DONE, Trouble

CONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "east",
    "clusters": [
        {"name": "here", "cluster": {"server": "https://a:6443", "insecure-skip-tls-verify": True}},
        {"name": "there.c", "cluster": {"server": "https://b"}},
    ],
    "contexts": [
        {"name": "east", "context": {"cluster": "here", "namespace": "team-a", "user": "me"}},
        {"name": "west", "context": {"cluster": "there.c", "user": "me"}},
    ],
    "users": [{"name": "me", "user": {"username": "someone"}}],
}
"""A kubeconfig, because kubectl prints parts of it without a cluster."""
PRINTED = {
    "{.current-context}": "east",
    "{$.kind}": "Config",
    "{.contexts[*].name}": "east west",
    "{.contexts[1].name}": "west",
    "{.contexts[-1].name}": "west",
    "{['kind']} {.contexts[0]['name']}": "Config east",
    '{range .contexts[*]}{.name}{"\\t"}{.context.cluster}{"\\n"}{end}': "east\there\nwest\tthere.c\n",
    '{.contexts[?(@.context.cluster=="here")].name}': "east",
    "{.contexts[?(@.name!='east')].name}": "west",
    "{.contexts[?(@.context.namespace)].name}": "east",
    "{.clusters[?(@.cluster.insecure-skip-tls-verify==true)].name}": "here",
    "server {.clusters[1].cluster.server}!": "server https://b!",
    '{"{"}{.kind}{"}"}': "{Config}",
    "{.clusters[0].cluster.insecure-skip-tls-verify}": "true",
    "{range .clusters[*]}<{range .cluster}{.server}{end}>{end}": "<https://a:6443><https://b>",
    "{'a\\n'}{'\\t'}{'it\\'s'}{'\"'}": "a\n\tit's\"",
    "{ .kind }": "Config",
    "none": "none",
}
REFUSED = {
    "{.pools": "character 8, at the end",
    "{pools}": "character 2, at pools}",
    "{.a[0,1]}": "character 4, at [0,1]}",
    "{.a[0:1]}": "character 4, at [0:1]}",
    "{..name}": "character 2, at ..name}",
    '{.a[?(@.b>"c")]}': 'character 4, at [?(@.b>"c")]}',
    '{"x}': 'character 2, at "x}',
    "{.a}{end}": "there is no range that this could end: character 5",
    "{range .a}x": "{end} is missing after a range: character 12, at the end",
    "": "there is no template: character 1",
}


@pytest.mark.parametrize("template", PRINTED)
def test_a_template_prints(template: str) -> None:
    assert render(parse_template(template), CONFIG) == PRINTED[template]


def test_objects_lists_numbers_and_what_is_not_there_are_printed() -> None:
    document = {"list": [1, 2.5, None], "object": {"a": "é"}, "dotted.name": False}
    template = r"{.list}|{.object}|{.dotted\.name}|{.none.of.these}|{.list[7]}|{.object[0]}"
    assert render(parse_template(template), document) == '[1,2.5,null]|{"a":"é"}|false|||'


@pytest.mark.parametrize("step", ["[0]", "[-1]", "[?(@.a)]", '[?(@.a=="b")]'])
def test_an_index_or_a_filter_selects_nothing_from_an_object_whatever_its_keys(step: str) -> None:
    template = parse_template(f"<{{.object{step}}}>")
    assert render(template, {"object": {"": {"a": "b"}, "0": "c"}}) == "<>"
    assert render(parse_template("{.object['']}"), {"object": {"": "d"}}) == "d"


@pytest.mark.parametrize("template", REFUSED)
def test_a_mistake_is_named_with_its_position(template: str) -> None:
    with pytest.raises(Trouble) as trouble:
        parse_template(template)
    assert REFUSED[template] in str(trouble.value)


@pytest.mark.cluster
@pytest.mark.parametrize("template", PRINTED)
def test_kubectl_prints_the_same(tmp_path: Path, template: str) -> None:
    file = tmp_path / "config"
    file.write_text(json.dumps(CONFIG))
    kubectl = toolchain.control_plane_programs().kubectl
    done = subprocess.run(
        [kubectl, "config", "view", "--kubeconfig", file, "--raw", "-o", f"jsonpath={template}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == PRINTED[template]


def test_the_template_is_applied_to_what_json_prints(desk: Desk) -> None:
    said = desk.type("status", "-o", 'jsonpath={range .pools[*]}{.name} {.gpus}{"\\n"}{end}')
    assert (said.status, said.err) == (DONE, "")
    pools = json.loads(desk.type("status", "-o", "json").out)["pools"]
    assert said.out == "".join(f"{pool['name']} {pool['gpus']}\n" for pool in pools)


def test_a_mistake_in_a_template_is_found_before_a_cluster_is_asked(desk: Desk) -> None:
    assert "character 8, at the end" in wrong(desk, "status", "-o", "jsonpath={.pools")
    assert desk.server.asked == []
