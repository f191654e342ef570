"""What a kubelet 1.36 and containerd 2.2 say of a container that does not start.
tests/e2e/test_bad_input.py holds it to them; tests of the lower rungs, whose kubelet is SIMULATED, say the same."""

DIGEST = "ab" * 32


def back_off(image: str, why: str) -> str:
    return f'Back-off pulling image "{image}": ErrImagePull: {why}'


def not_in_registry(image: str) -> str:
    return (
        f'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": '
        f"failed to resolve image: {image}: not found"
    )


def other_platform() -> str:
    """The registry has it for other architectures only."""
    return (
        "rpc error: code = NotFound desc = get image config descriptor: "
        f"no match for platform in manifest sha256:{DIGEST}: not found"
    )


def never_pulled(image: str) -> str:
    """It is not on the node, and imagePullPolicy is Never."""
    return f'Container image "{image}" is not present with pull policy of Never'


def bad_format(program: str) -> str:
    """The whole log of a container whose program is for another architecture; its exit code is 1 (runc 1.1) or 255."""
    return f"exec {program}: exec format error\n"
