"""Which DeviceClasses are created, corrected and removed."""

from dataclasses import replace

import pytest

from gpusharing.planning.wanted.deviceclasses import (
    ClassPlan,
    DeviceClassView,
    find_profiles,
    plan_classes,
    wanted_class,
)

SMALL, MEDIA = wanted_class("1g.10gb"), wanted_class("1g.10gb+me")
OURS = DeviceClassView(
    SMALL.name, "uid-1", "7", ours=True, resource=SMALL.resource, selectors=(SMALL.selector,)
)
THEIRS = DeviceClassView("gpu.nvidia.com", "uid-2", "8", ours=False, resource="nvidia.com/gpu", selectors=())


def test_a_class_serves_one_profile_under_the_name_of_the_device_plugin() -> None:
    assert MEDIA.name == "gpusharing-mig-1g.10gb.me"
    assert MEDIA.resource == "nvidia.com/mig-1g.10gb.me"
    assert MEDIA.selector == (
        "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'mig'"
        " && device.attributes['gpu.nvidia.com'].profile == '1g.10gb+me'"
    )


def test_the_profiles_in_use_are_those_of_all_layouts() -> None:
    layouts = [None, (("3g.40gb", 1), ("1g.10gb", 4)), (("1g.10gb", 7),), ()]
    assert find_profiles(layouts) == ("1g.10gb", "3g.40gb")


@pytest.mark.parametrize(
    ("profiles", "present", "plan"),
    [
        (["1g.10gb+me", "1g.10gb", "1g.10gb"], [THEIRS], ClassPlan(create=(SMALL, MEDIA))),
        (["1g.10gb"], [OURS, THEIRS], ClassPlan()),
        ([], [OURS, THEIRS], ClassPlan(remove=(OURS,))),
        (["1g.10gb+me"], [OURS], ClassPlan(create=(MEDIA,), remove=(OURS,))),
    ],
    ids=[
        "one for each profile",
        "nothing when it is there",
        "only ours are removed",
        "another profile is in use",
    ],
)
def test_there_is_one_class_for_each_profile_in_use(
    profiles: list[str], present: list[DeviceClassView], plan: ClassPlan
) -> None:
    assert plan_classes(profiles, present) == plan


CHANGED = {
    "another selector": replace(OURS, selectors=("true",)),
    "a second selector": replace(OURS, selectors=(SMALL.selector, "true")),
    "no extended resource": replace(OURS, resource=""),
    "a configuration": replace(OURS, plain=False),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_a_class_of_ours_that_somebody_changed_is_corrected(changed: DeviceClassView) -> None:
    assert plan_classes(["1g.10gb"], [changed]) == ClassPlan(correct=((SMALL, changed),))


FOREIGN = {
    "by its name": replace(OURS, ours=False, resource=""),
    "by its extended resource": replace(THEIRS, name="small", resource=SMALL.resource),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_a_class_of_somebody_else_is_reported_and_never_touched(foreign: DeviceClassView) -> None:
    plan = plan_classes(["1g.10gb", "1g.10gb+me"], [foreign])
    assert plan == ClassPlan(create=(MEDIA,), conflict=plan.conflict)
    assert (
        f"DeviceClass {foreign.name} was created by somebody else and serves {SMALL.resource}"
        in plan.conflict
    )
    assert plan_classes([], [foreign]) == ClassPlan()


def test_a_foreign_class_beside_ours_is_reported_and_ours_stays() -> None:
    plan = plan_classes(["1g.10gb"], [OURS, FOREIGN["by its extended resource"]])
    assert plan == ClassPlan(conflict=plan.conflict)
    assert "DeviceClass small" in plan.conflict
