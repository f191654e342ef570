"""What a stolen token of the operator cannot write into our two ConfigMaps, on a real API server. NVIDIA's privileged programs read them."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hack.cluster.api import MERGE_PATCH, Api, Object
from hack.cluster.process import wait_until
from tests.chart.charts import CHART
from tests.chart.cluster import SECONDS, Installed, denied, forbidden

from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing

pytestmark = pytest.mark.cluster

MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
PLUGIN, MIG = "gpusharing-device-plugin", "gpusharing-mig-parted"


@pytest.fixture(scope="module", autouse=True)
def enforced(operator: Api) -> None:
    wait_until(lambda: not_admitted(operator, "made-up", {}), SECONDS, "the policy to be enforced")


def written(api: Api, name: str, data: dict[str, str], **rest: Any) -> Any:
    body: Object = {"metadata": {"name": name}, "data": data, **rest}
    return api.request("POST", MAPS, body, dryRun="All", fieldValidation="Strict")


def not_admitted(api: Api, name: str, data: dict[str, str]) -> bool:
    return bool(forbidden(lambda: written(api, name, data)))


OWN = {
    f"pool-{strategy}-{mig}-{rename}": pluginconfig.render(
        PluginConfig(mig, Sharing((("nvidia.com/gpu", 4), ("nvidia.com/mig-1g.10gb", 2)), rename, rename, strategy))
    )
    for strategy in pluginconfig._BLOCKS
    for mig in pluginconfig.STRATEGIES.values()
    for rename in (False, True)
} | {"whole": pluginconfig.render(PluginConfig("mixed")), pluginconfig.NEUTRAL_KEY: pluginconfig.NEUTRAL}


def test_the_operator_may_write_each_configuration_that_it_renders(operator: Api) -> None:
    assert written(operator, PLUGIN, OWN)["data"] == OWN


def test_one_write_may_have_the_entries_of_a_thousand_policies(operator: Api) -> None:
    text = OWN["pool-mps-mixed-True"]
    assert written(operator, PLUGIN, {f"pool-{number}": text for number in range(1000)})


ADMIN = """\
# Ours – since 2024
---
version: v1
flags:
  migStrategy: "none"   # the default
  failOnInitError: true
  plugin:
    passDeviceSpecs: false
    deviceListStrategy: [envvar, "cdi-cri"]
    deviceIDStrategy: uuid
  gfd:
    sleepInterval: 60s
sharing:
  timeSlicing:
    renameByDefault: false
    resources:
    - name: nvidia.com/gpu
      replicas: 4
      devices:
        - 0
        - '0:1'
        - MIG-6b3a2b1c-0000-1111-2222-333344445555
    -   name: nvidia.com/mig-1g.5gb
        replicas: 2
"""


@pytest.mark.parametrize("text", [ADMIN, ADMIN.replace("\n", "\r\n"), ""], ids=["LF", "CRLF", "empty"])
def test_an_admins_entry_in_block_style_is_merged_word_for_word(operator: Api, text: str) -> None:
    assert written(operator, PLUGIN, {"ours": text})["data"]["ours"] == text


FORBIDDEN = (
    "containerDriverRoot: /",
    "nvidiaDriverRoot: /",
    "nvidiaDevRoot: /",
    "nvidiaCTKPath: /tmp/x",
    "mpsRoot: /etc",
    "cdiAnnotationPrefix: x/",
    "deviceDiscoveryStrategy: tegra",
    "gdsEnabled: true",
    "gdrcopyEnabled: true",
    "mofedEnabled: true",
    "outputFile: /etc/cron.d/x",
    "machineTypeFile: /etc/shadow",
    "channelIDs: [0]",
    "NVIDIACTKPATH: /tmp/x",
)


@pytest.mark.parametrize("line", FORBIDDEN)
def test_the_operator_may_not_write_the_field(operator: Api, line: str) -> None:
    text = f"version: v1\nflags:\n  plugin:\n    {line}\n"
    message = denied(lambda: written(operator, PLUGIN, {"default": "version: v1\n", "bad": text}))
    assert "ValidatingAdmissionPolicy 'gpusharing-operator-configmaps'" in message
    assert f'entry bad has the line "    {line}", which the operator may not write into' in message
    assert "add the field to chart value admission.pluginFields" in message


HOSTILE = {
    "a quoted name": 'flags:\n  "nvidiaDriverRoot": /\n',
    "a name in single quotes": "flags:\n  'nvidiaDriverRoot': /\n",
    "a name with an escape": 'flags:\n  "nvidiaDriverRo\\x6ft": /\n',
    "a name that a folded line continues": 'flags:\n  "nvidiaDriver\\\n  Root": /\n',
    "a flow map": "flags: {nvidiaDriverRoot: /}\n",
    "a flow map of several lines": "flags: {\n  nvidiaDriverRoot: /\n}\n",
    "JSON": '{"flags":{"nvidiaDriverRoot":"/"}}\n',
    "a pair in a flow list": "flags: [nvidiaDriverRoot: /]\n",
    "a quoted pair in a flow list": 'flags: ["nvidiaDriverRoot":/]\n',
    "a flow list that ends in the middle": 'devices: ["]\nname: "], nvidiaDriverRoot: /, x: ["\n',
    "an explicit name": "flags:\n  ? nvidiaDriverRoot\n  : /\n",
    "a space before the colon": "flags:\n  nvidiaDriverRoot : /\n",
    "a name after a dash": "flags:\n- nvidiaDriverRoot: /\n",
    "a name after two dashes": "flags:\n- - nvidiaDriverRoot: /\n",
    "a name without a value": "flags:\n  nvidiaDriverRoot:\n    /\n",
    "an anchor": "flags: &x\n  migStrategy: none\n",
    "an alias": "flags: *x\n",
    "a merge key": "flags:\n  <<: *x\n",
    "a tag": "flags: !!map\n  migStrategy: none\n",
    "a tagged name": "flags:\n  !!str nvidiaDriverRoot: /\n",
    "a literal text": "name: |\n  x\n",
    "a folded text": "name: >-\n  x\n",
    "a plain text of two lines": "name: a\n  b\n",
    "a quoted text of two lines": 'name: "a\n  b"\n',
    "a name before a carriage return": "nvidiaDriverRoot:\r\n  /\r\n",
    "a line break of its own: CR": "version: v1 # x\rnvidiaDriverRoot: /\n",
    "a line break of its own: CR in quotes": 'name: "x"\rnvidiaDriverRoot: "/"\n',
    "a line break of its own: NEL": "version: v1 # x\x85nvidiaDriverRoot: /\n",
    "a line break of its own: LS": "version: v1 # x\u2028nvidiaDriverRoot: /\n",
    "a line break of its own: PS": "version: v1 # x\u2029nvidiaDriverRoot: /\n",
    "a line break of its own: VT": "version: v1 # x\x0bnvidiaDriverRoot: /\n",
    "a byte order mark": "\ufeffversion: v1\n",
    "a tab as indentation": "flags:\n\tnvidiaDriverRoot: /\n",
    "a directive": "%YAML 1.1\n---\nversion: v1\n",
    "a second document": "version: v1\n---\nnvidiaDriverRoot: /\n",
    "a document that begins beside its mark": "--- {nvidiaDriverRoot: /}\n",
    "a letter that Go folds": "fla\u0261s:\n  x: y\n",
    "a long s that Go folds to s": "flag\u017f:\n  migStrategy: none\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_other_spelling_hides_a_field(operator: Api, what: str) -> None:
    message = denied(lambda: written(operator, PLUGIN, {"bad": HOSTILE[what]}))
    assert "ValidatingAdmissionPolicy 'gpusharing-operator-configmaps'" in message
    assert "may not write into ConfigMap gpusharing-device-plugin" in message


def test_bytes_and_what_keeps_or_removes_a_configmap_are_not_the_operators(operator: Api) -> None:
    owner = {"apiVersion": "v1", "kind": "Node", "name": "none", "uid": "1-2-3"}
    for rest in (
        {"binaryData": {"bad": "ZmxhZ3M6IHt9Cg=="}},
        {"immutable": True},
        {"metadata": {"name": PLUGIN, "ownerReferences": [owner]}},
        {"metadata": {"name": PLUGIN, "finalizers": ["example.test/x"]}},
    ):
        assert "may not set binaryData, immutable" in denied(
            lambda rest=rest: written(operator, PLUGIN, {}, **rest)  # type: ignore[misc]  # a default binds the loop's value
        )


@pytest.fixture
def present(installed: Installed) -> Iterator[str]:
    """Path of the ConfigMap with an entry that an admin wrote by hand."""
    data = {"theirs": "flags:\n  nvidiaDriverRoot: /\n"}
    installed.admin.create(MAPS, {"metadata": {"name": PLUGIN}, "data": data})
    yield f"{MAPS}/{PLUGIN}"
    installed.admin.delete(f"{MAPS}/{PLUGIN}")


def test_an_entry_that_is_there_already_stays_and_may_only_be_removed(operator: Api, present: str) -> None:
    def patch(**data: str | None) -> Any:
        return operator.request("PATCH", present, {"data": data}, MERGE_PATCH, dryRun="All")

    assert "theirs" in patch(new="version: v1\n")["data"]
    assert not patch(theirs=None).get("data")
    assert "entry theirs has the line" in denied(lambda: patch(theirs="flags:\n  nvidiaDriverRoot: /tmp\n"))


MIG_FILE = """\
version: v1
mig-configs:
  ours: &shared
  - {devices: [0, 1], mig-enabled: true, mig-devices: {1g.10gb+me: 1, 1c.3g.40gb: 2}}
  - {devices: [2], mig-enabled: false, device-filter: ['0x233010DE:0x1', "0x12", '0x233010DE']}
  - {devices: all, mig-enabled: true, mig-devices: {}, device-filter: null}
  theirs: *shared
  "1": *shared
  off: [{devices: [], mig-enabled: false, device-filter: '0x20B010DE'}]
"""


def test_the_operator_may_write_each_mig_parted_file_that_it_renders(operator: Api) -> None:
    merged, problem = migfile.parse_admin(MIG_FILE)
    assert problem == ""
    text = migfile.render(merged)
    assert yaml.safe_load(text)["mig-configs"]["theirs"] == yaml.safe_load(text)["mig-configs"]["ours"]
    assert written(operator, MIG, {"config.yaml": text})
    many = {f"{name}-{number}": entry for name, entry in merged.items() for number in range(100)}
    assert written(operator, MIG, {"config.yaml": migfile.render(many)})


HOSTILE_MIG = {
    "a field that mig-parted does not know": "version: v1\nhooks:\n  x: y\n",
    "a field of a row": "mig-configs:\n  x:\n  - devices: all\n    script: /x\n",
    "an anchor": "mig-configs: &x\n",
    "a flow map": "{mig-configs: {}}\n",
    "another line break": "version: v1\u2028x: y\n",
}


@pytest.mark.parametrize("what", HOSTILE_MIG)
def test_the_operator_may_write_nothing_else_for_mig_manager(operator: Api, what: str) -> None:
    message = denied(lambda: written(operator, MIG, {"config.yaml": HOSTILE_MIG[what]}))
    assert "may not write into ConfigMap gpusharing-mig-parted" in message


def test_the_operator_may_write_no_other_file_for_mig_manager(operator: Api) -> None:
    message = denied(lambda: written(operator, MIG, {"hooks.yaml": "version: v1\n"}))
    assert "may only write the key config.yaml of ConfigMap gpusharing-mig-parted, not hooks.yaml" in message


def test_a_field_that_the_chart_allows_is_merged(installed: Installed, operator: Api) -> None:
    text = 'version: v1\nflags:\n  nvidiaDriverRoot: "/"\n'
    try:
        installed.must("upgrade", str(CHART), "--set", "admission.pluginFields={nvidiaDriverRoot}")
        wait_until(lambda: not not_admitted(operator, PLUGIN, {"x": text}), SECONDS, "the new rule to count")
        assert not_admitted(operator, PLUGIN, {"x": text.replace("DriverRoot", "CTKPath")})
    finally:
        installed.must("upgrade", str(CHART))
    wait_until(lambda: not_admitted(operator, PLUGIN, {"x": text}), SECONDS, "the old rule to count again")
