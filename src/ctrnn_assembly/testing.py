"""For test suites of your own: assert that a net is certified."""

from typing import Any

from ctrnn_assembly.certificates import Certificate, certify
from ctrnn_assembly.witness import judge


def assert_certified(net: Any, *, step: bool = True, **how: Any) -> Certificate:
    """The certificate of a net, as `certify` takes it, and its step, else an AssertionError."""
    certificate = certify(net, **how)
    own = certificate.step if step and certificate.certified else None
    failed = [*certificate.reasons, *([own.reason] if own and not own.certified else [])]
    if failed:
        found = judge(getattr(net, "core", net), certificate)
        raise AssertionError("; ".join([*failed, *map(str, found.witnesses), found.tried]))
    return certificate
