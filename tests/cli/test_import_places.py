"""`import` where the GPU Operator is not in namespace gpu-operator, or our ConfigMaps are not there yet (kubectl_gpusharing/setup/importing.py)."""

from tests.cli.asking import ask
from tests.cli.reported import reported
from tests.cli.test_import import SPACE, by_hand, policies
from tests.embedded.scene import L40S
from tests.fakes.virtualtime import virtually
from tests.recipes import Recipe, RecipePool

from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS
from kubectl_gpusharing.shell.troubles import DONE, FAILED

FRESH = Recipe({"devicePlugin": {}, "migManager": {"enabled": True}}, {}, {"d": RecipePool({}, {}, L40S)})
OURS = ("gpusharing-device-plugin", "gpusharing-mig-parted")


@virtually
async def test_before_the_installation_the_configmaps_of_a_gpu_operator_anywhere_are_read() -> None:
    """On OpenShift it is nvidia-gpu-operator (NVIDIA/gpu-operator#704), on DKP kommander (NVIDIA/gpu-operator#2376)."""
    told = await ask(reported("other-namespace"), "import")
    (one,) = policies(told.out).values()
    assert told.status == DONE
    assert (one["spec"]["mode"], one["spec"]["timeSlicing"]) == ("TimeSlicing", {"replicas": 4})
    values = "gpuOperator.namespace=nvidia-gpu-operator,gpuOperator.adminPluginConfigMap=time-slicing-config"
    install = f"helm install gpusharing CHART -n gpusharing --create-namespace --set {values}\n"
    assert install in told.out


@virtually
async def test_the_pointers_wait_for_configmaps_that_the_operator_has_not_written() -> None:
    async with by_hand(FRESH) as scene:
        await scene.e.kill_operator()
        for name in OURS:
            scene.e.cluster.delete(CONFIG_MAPS, name, SPACE)
        told = await ask(scene.e.cluster, "import")
    assert told.out.index("1. Wait until the operator has written") < told.out.index("2. Point ClusterPolicy")
    for name in OURS:
        assert f"kubectl get configmap {name} -n gpu-operator" in told.out


@virtually
async def test_no_pointer_moves_to_configmaps_in_another_namespace() -> None:
    async with by_hand(FRESH) as scene:
        status = {"status": {"namespace": "nvidia"}}
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", status, "", "status")
        told = await ask(scene.e.cluster, "import")
    assert (told.status, policies(told.out)) == (FAILED, {})
    assert "set chart value gpuOperator.namespace=nvidia" in told.out
    assert "kubectl patch" not in told.out
