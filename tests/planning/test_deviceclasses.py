"""Which DeviceClasses are created, corrected and removed."""

from dataclasses import replace

import pytest
from tests.build import make_gpu, make_gpunode, make_node, make_policy, make_snapshot, make_stack
from tests.configs import target_for
from tests.wording import lacks

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.actions import WriteClasses
from gpusharing.planning.snapshot.nvidia import DRA_DRIVER, DeviceClassView, DraView, NodeDevices
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.objects import (
    find_doubtful,
    find_profiles,
    find_unrequestable,
    plan_classes,
    profile_of,
    wanted_class,
)
from gpusharing.planning.wanted.target import Target

FULL = make_policy(mode="Full")

SMALL, MEDIA = wanted_class("1g.10gb"), wanted_class("1g.10gb+me")
OURS = DeviceClassView(SMALL.name, "uid-1", "7", ours=True, resource=SMALL.resource, selectors=SMALL.selectors)
THEIRS = DeviceClassView("gpu.nvidia.com", "uid-2", "8", ours=False, resource="nvidia.com/gpu", selectors=())


def test_a_class_serves_one_profile_under_the_name_of_the_device_plugin() -> None:
    assert MEDIA.name == "gpusharing-mig-1g.10gb.me"
    assert MEDIA.resource == "nvidia.com/mig-1g.10gb.me"
    assert " ".join(MEDIA.selectors) == (
        "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'mig'"
        " && device.attributes['gpu.nvidia.com'].profile == '1g.10gb+me'"
    )


def test_the_profiles_in_use_are_those_of_all_layouts() -> None:
    layouts = [None, (("3g.40gb", 1), ("1g.10gb", 4)), (("1g.10gb", 7),), ()]
    assert find_profiles(layouts) == ("1g.10gb", "3g.40gb")


PROVEN = Verified("pool-b", "all-1g.10gb", "", layout="7x1g.10gb", gpus=1)


def plan(wanted: list[str], present: list[DeviceClassView] | None, on_nodes: Layout = ()) -> WriteClasses | None:
    """The writes when policies want these profiles, and a GPU has this layout."""
    target = target_for(FULL, [make_gpu()], make_stack(FULL))
    assert isinstance(target, Target), target
    layout = tuple((profile, 1) for profile in wanted)
    snapshot = make_snapshot(
        [make_node()],
        gpunodes=[make_gpunode(gpus=[make_gpu(layout=on_nodes)])],
        stack=make_stack(FULL, dra=DraView(classes=None if present is None else tuple(present))),
    )
    return plan_classes(snapshot, [replace(target, layouts=(layout, None))])


@pytest.mark.parametrize(
    ("wanted", "present", "on_nodes", "writes"),
    [
        (["1g.10gb+me", "1g.10gb"], [THEIRS], (), WriteClasses(create=(SMALL, MEDIA))),
        (["1g.10gb"], [OURS, THEIRS], (), None),
        ([], [OURS, THEIRS], (), WriteClasses(remove=(OURS,))),
        (["1g.10gb+me"], [OURS], (), WriteClasses(create=(MEDIA,), remove=(OURS,))),
        (["1g.10gb+me"], [OURS], (("1g.10gb", 7),), WriteClasses(create=(MEDIA,))),
        ([], [], (("1g.10gb", 7),), None),
        (["1g.10gb"], None, (), None),
    ],
    ids=[
        "one for each profile",
        "nothing when it is there",
        "only ours are removed",
        "another profile is wanted",
        "a profile that a node still has is kept",
        "a profile that nobody asked for gets none",
        "nothing while they are not read",
    ],
)
def test_there_is_one_class_for_each_profile_that_is_wanted(
    wanted: list[str], present: list[DeviceClassView] | None, on_nodes: Layout, writes: WriteClasses | None
) -> None:
    assert plan(wanted, present, on_nodes) == writes


@pytest.mark.parametrize(
    ("record", "created"),
    [(PROVEN, (SMALL,)), (None, ())],
    ids=["what was proven on a node is created anew", "not what somebody made by hand"],
)
def test_a_node_keeps_the_classes_of_a_layout_that_was_proven_on_it_although_its_policy_wants_another(
    record: Verified | None, created: tuple[DeviceClassView, ...]
) -> None:
    node = replace(make_node(verified=record), devices=NodeDevices(((("1g.10gb", 7),),)))
    snapshot = make_snapshot([node], stack=make_stack(FULL, dra=DraView(classes=())))
    assert plan_classes(snapshot, []) == (WriteClasses(create=created) if created else None)


CHANGED = {
    "another selector": replace(OURS, selectors=("true",)),
    "a second selector": replace(OURS, selectors=(*SMALL.selectors, "true")),
    "another extended resource": replace(OURS, resource="example.com/x"),
    "a configuration": replace(OURS, plain=False),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_a_class_of_ours_that_somebody_changed_is_corrected(changed: DeviceClassView) -> None:
    assert plan(["1g.10gb"], [changed]) == WriteClasses(correct=((SMALL, changed),))
    assert plan([], [changed], (("1g.10gb", 1),)) == WriteClasses(correct=((SMALL, changed),))


FOREIGN = {
    "by its name": replace(OURS, ours=False, resource=""),
    "by its extended resource": replace(THEIRS, name="small", resource=SMALL.resource),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_a_class_of_somebody_else_is_never_touched(foreign: DeviceClassView) -> None:
    assert plan(["1g.10gb", "1g.10gb+me"], [foreign]) == WriteClasses(create=(MEDIA,))
    assert plan([], [foreign]) is None
    assert plan(["1g.10gb"], [OURS, foreign]) is None


@pytest.mark.parametrize(
    "name", ["team-a-small", "gpusharing-mig-team-a", "gpusharing-mig-1g.10gb-a2", "gpusharing-mig-", "1g.10gb"]
)
def test_a_copy_of_ours_under_another_name_is_that_of_a_person_although_it_has_our_label(name: str) -> None:
    copy = replace(OURS, name=name, uid="uid-3")
    assert plan([], [copy]) is None
    assert plan(["1g.10gb"], [copy]) is None, "the scheduler uses only one class of an extended resource"
    assert plan([], [OURS, copy]) == WriteClasses(remove=(OURS,))
    other = replace(copy, resource="example.com/team-a")
    assert plan(["1g.10gb"], [OURS, other]) is None
    assert plan(["1g.10gb"], [other]) == WriteClasses(create=(SMALL,))


def test_a_copy_of_ours_under_the_name_of_a_profile_is_not_removed_if_it_serves_another_resource() -> None:
    copy = replace(OURS, name=wanted_class("2g.20gb").name, resource="example.com/team-a")
    assert plan(["1g.10gb"], [OURS, copy]) is None
    assert plan([], [replace(copy, resource="")]) is not None, "the API server dropped the field"


@pytest.mark.parametrize(
    "profile", ["1g.10gb", "1g.10gb+me", "1g.12gb+me.all", "1g.24gb-me", "2g.48gb+gfx", "1c.3g.40gb"]
)
def test_the_class_of_every_kind_of_profile_is_known_as_ours_by_its_name(profile: str) -> None:
    wanted = wanted_class(profile)
    assert profile_of(wanted.resource) == profile
    written = replace(OURS, name=wanted.name, resource=wanted.resource, selectors=wanted.selectors)
    assert plan([], [written]) == WriteClasses(remove=(written,))
    assert profile_of(profile) == profile_of("nvidia.com/gpu") == profile_of("") == ""


OF_ANY_PROFILE = f"device.driver == '{DRA_DRIVER}'"


@pytest.mark.parametrize(
    ("selectors", "doubted"),
    [
        pytest.param(SMALL.selectors, False, id="names the profile"),
        pytest.param(
            (OF_ANY_PROFILE, f'device.attributes["{DRA_DRIVER}"].profile.matches("^1g.10gb$")'),
            False,
            id="names it in another form",
        ),
        pytest.param((OF_ANY_PROFILE,), True, id="names none"),
        pytest.param((), True, id="selects everything"),
        pytest.param(wanted_class("7g.80gb").selectors, True, id="names another"),
        pytest.param(MEDIA.selectors, True, id="names one that begins like it"),
        pytest.param(wanted_class("1c.1g.10gb").selectors, True, id="names one that ends like it"),
    ],
)
def test_a_class_of_somebody_else_is_doubted_if_no_selector_names_the_profile_of_its_resource(
    selectors: tuple[str, ...], doubted: bool
) -> None:
    theirs = replace(FOREIGN["by its extended resource"], selectors=selectors)
    found = find_doubtful([OURS, THEIRS, theirs], {SMALL.resource, "nvidia.com/gpu"})
    assert list(found) == (["small"] if doubted else [])
    if doubted:
        assert not lacks(
            found["small"], "DeviceClass small", "spec.extendedResourceName nvidia.com/mig-1g.10gb", "profile 1g.10gb"
        )
    assert find_doubtful([theirs], {MEDIA.resource}) == {}, "nobody wants it"
    assert find_doubtful([replace(OURS, selectors=selectors)], {SMALL.resource}) == {}, "ours is corrected"


def test_a_name_that_somebody_else_has_taken_is_told_and_not_said_to_be_created_or_deleted() -> None:
    for taken in (FOREIGN["by its name"], replace(OURS, ours=False, resource="example.com/small")):
        said = find_unrequestable([(("1g.10gb", 7),)], make_stack(FULL, dra=DraView(classes=(taken,))))
        assert isinstance(said, str)
        assert "DeviceClass gpusharing-mig-1g.10gb belongs to somebody else" in said
        assert "delete" not in said


def test_a_class_of_ours_without_its_resource_does_no_harm_beside_one_that_has_it() -> None:
    dra = DraView(classes=(DROPPED, FOREIGN["by its extended resource"]))
    assert not find_unrequestable([(("1g.10gb", 7),)], make_stack(FULL, dra=dra))


DROPPED = replace(OURS, resource="")


def test_a_class_whose_extended_resource_the_api_server_drops_is_named_and_not_written_again() -> None:
    assert plan(["1g.10gb"], [DROPPED]) is None
    said = find_unrequestable([(("1g.10gb", 7),)], make_stack(FULL, dra=DraView(classes=(DROPPED,))))
    assert isinstance(said, Finding)
    assert "DRAExtendedResource feature gate" in said.message
    assert [*map(str, said.commands)] == ["kubectl delete deviceclass gpusharing-mig-1g.10gb"]
    assert said.message.endswith("kubectl delete deviceclass gpusharing-mig-1g.10gb")


@pytest.mark.parametrize(
    ("layout", "classes", "says"),
    [
        (None, (), ""),
        ((("1g.10gb", 7),), (OURS,), ""),
        ((("1g.10gb", 7),), (FOREIGN["by its extended resource"],), ""),
        ((("1g.10gb", 7),), (), "lets pods request nvidia.com/mig-1g.10gb yet"),
        ((("1g.10gb", 7),), None, "lets pods request nvidia.com/mig-1g.10gb yet"),
    ],
    ids=["whole GPUs", "ours", "that of somebody else", "none", "not read"],
)
def test_a_profile_that_pods_cannot_request_is_named(
    layout: Layout | None, classes: tuple[DeviceClassView, ...] | None, says: str
) -> None:
    said = find_unrequestable([layout], make_stack(FULL, dra=DraView(classes=classes)))
    if not says:
        assert said == ""
    else:
        assert isinstance(said, Finding)
        assert said.reason is Reason.CONFIG_PROPAGATING, "nobody is told to act: the operator creates it now"
        assert says in said.message


def test_a_class_that_cannot_be_written_says_why() -> None:
    stack = make_stack(FULL, dra=DraView(classes=(), class_error="WriteClasses failed: forbidden"))
    said = find_unrequestable([(("1g.10gb", 7),)], stack)
    assert isinstance(said, str)
    assert not lacks(said, "gpusharing-mig-1g.10gb", "WriteClasses failed: forbidden")
