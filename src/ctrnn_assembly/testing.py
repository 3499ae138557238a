"""For test suites of your own: assert that a net is certified."""

from typing import Any

from ctrnn_assembly.certificates import Certificate, certify
from ctrnn_assembly.witness import judge


def assert_certified(net: Any, *, step: bool = True, **how: Any) -> Certificate:
    """The certificate of a net, as `certify` takes it, and its step, or an AssertionError and why."""
    certificate = certify(net, **how)
    found = judge(getattr(net, "core", net), certificate)
    if not certificate.certified or (step and found.step not in (None, "certified")):
        raise AssertionError("\n".join([str(certificate), *map(str, found.witnesses), found.tried]))
    return certificate
