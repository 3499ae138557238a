"""Errors that a user's input can cause: each says what, the offending value, and the fix.

The command line prints them and exits with code 2. Broken internal algebra is an `AssertionError`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class CtrnnError(Exception):
    """Anything that a user can cause and mend.

    >>> issubclass(ShapeError, CtrnnError) and issubclass(ShapeError, ValueError)
    True
    """


class ShapeError(CtrnnError, ValueError):
    """A tensor has the wrong shape, dtype or device.

    >>> certify(torch.zeros(2, 3))
    Traceback (most recent call last):
    ctrnn_assembly.errors.ShapeError: W must be square, (n, n), ...; got [(2, 3)].
    """


class ContractionError(CtrnnError, ValueError):
    """A set of contracting weights was asked for what it cannot give, or a guarantee is lost.

    >>> Subnetwork(Symmetric(), 1, weight=torch.ones(1, 1))
    Traceback (most recent call last):
    ctrnn_assembly.errors.ContractionError: Theorem 2 needs g lmax(W) < 0.98999; got 1. Scale W down.
    """


class SolverError(CtrnnError, RuntimeError):
    """A solve could not be started, or could not be finished.

    >>> solve(lambda t, x: x**2, torch.ones(1, 1), torch.arange(9))
    Traceback (most recent call last):
    ctrnn_assembly.errors.SolverError: solver 'euler': the state became inf at t = 8, step 8 ...
    """


class DataError(CtrnnError, ValueError):
    """Data are missing, corrupt, not finite or of the wrong form.

    >>> LinearInterpolation(torch.zeros(1, 2, 1), torch.tensor([1.0, 0.0]))
    Traceback (most recent call last):
    ctrnn_assembly.errors.DataError: sample times must be finite and increase; got [1.0, 0.0]...
    """


class ConfigError(CtrnnError, ValueError):
    """A setting is unknown or impossible.

    >>> load_task("digitz")
    Traceback (most recent call last):
    ctrnn_assembly.errors.ConfigError: got 'digitz'. Did you mean 'digits'? task must be one of ...
    """


class TrainingError(CtrnnError, RuntimeError):
    """Training had to stop; what was saved before stays."""


def check_known(what: str, given: object, known: Collection[str]) -> None:
    """Refuse a name that a table does not have."""
    if given not in known:
        raise unknown(what, given, known)


def check_within(
    interval: str, fix: str = "", kind: type[CtrnnError] | None = None, /, **given: float | None
) -> None:
    """Refuse numbers outside of an interval such as "[0, 1)" or "(0, inf)"; NaN and None are in none.

    The message has their names, and `fix` as a further sentence; `kind` is by default a ConfigError.
    """
    low, high = map(float, interval[1:-1].split(", "))
    outside = {low} if interval[0] == "(" else set()
    outside |= {high} if interval[-1] == ")" else set()
    words = {"(0, inf)": "positive and finite", f"[{low:g}, inf)": f"at least {low:g}"}
    for name, value in given.items():
        if isinstance(value, str | list | tuple | None) or not low <= value <= high or value in outside:
            must = words.get("" if value == high else interval, f"in {interval}")
            raise (kind or ConfigError)(f"{name} must be {must}; got {value!r}. {fix}".rstrip())


def configure(target: object, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Set attributes, whose `settings` are an interval, as of `check_within`, or all names there are."""
    for name, value in given.items():
        check_known("setting", name, settings)
        if isinstance(settings[name], str):
            check_within(settings[name], **{name: value})
        else:
            check_known(name, value, settings[name])
        setattr(target, name, value)


def unknown(
    what: str, given: object, known: Iterable[str], fix: str = "", meant: Iterable[str] = ()
) -> ConfigError:
    """The error for a name that a table does not have: first the name, then those that are like it, then
    all, which may be many; `fix` is a further sentence, `meant` guesses."""
    names = list(known)
    alike = {name.lower(): name for name in names}
    near = dict.fromkeys([*meant, *(alike[k] for k in get_close_matches(str(given).lower(), alike))])
    guess = f". Did you mean {' or '.join(map(repr, near))}?" if near else ":"
    return ConfigError(f"got {given!r}{guess} {what} must be one of {', '.join(names)}. {fix}".rstrip())


@contextmanager
def refusing(what: str, advice: str, *, told: bool = True) -> Iterator[None]:
    """Whatever fails inside is a DataError: what is wrong, the reason, if that is told, what to do."""
    try:
        yield
    except Exception as error:  # torch raises many kinds for a damaged file
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[1] if "state_dict" in lines[0] and len(lines) > 1 else lines[0]  # names a class
        reason = reason.partition(" <_io.")[0].partition("; use `")[0]  # PIL's address, NumPy's advice
        what = f"{what}: {reason.strip().rstrip('.')[:200]}" if told else what
        raise DataError(f"{what}. {advice}") from None
