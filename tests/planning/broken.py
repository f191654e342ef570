"""What is raised when an invariant of the random world does not hold."""


class Broken(AssertionError):
    """An invariant does not hold; the text says which."""


def hold(condition: bool, invariant: str) -> None:
    if not condition:
        raise Broken(invariant)
