"""make verify: which of its steps are left to the tests."""

from hack.verify import STEPS, without_tests


def test_ci_leaves_out_the_steps_that_are_tests_and_nothing_else() -> None:
    assert without_tests() == ["format", "lint", "types", "imports", "generated"]
    assert {STEPS[name].split()[0] for name in set(STEPS) - set(without_tests())} == {"pytest"}
