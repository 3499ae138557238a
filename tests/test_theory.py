"""docs/theory.md, THEORY in the code: every section, correction and oracle that is cited is there."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).resolve().parents[1]
THEORY = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
SECTIONS = set(re.findall(r"^## (\d+)\.", THEORY, re.MULTILINE))
CORRECTIONS = set(re.findall(r"^\| (E\d+) \|", THEORY, re.MULTILINE))
ORACLES = set(re.findall(r"^\| (\d+) \|", THEORY, re.MULTILINE))
CITING = [
    file
    for folder in ("src", "cli", "experiments", "tests")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "THEORY" in file.read_text(encoding="utf-8")
]


def cited(text: str, what: str) -> set[str]:
    """The numbers after "THEORY section(s)" or "oracle(s)", lists of them included."""
    text = re.sub(r"\s+#?\s*", " ", text)
    lists = re.findall(rf"{what}s? (\d+(?:(?:, | and | to )\d+)*)", text)
    return {number for found in lists for number in re.findall(r"\d+", found)}


@pytest.mark.parametrize("file", CITING, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_file_cites_is_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert cited(text, "THEORY section") <= SECTIONS
    assert cited(text, "THEORY oracle") <= ORACLES
    assert set(re.findall(r"THEORY (E\d+)", text)) <= CORRECTIONS


def test_sections_are_cited_at_all() -> None:
    every = set().union(*(cited(file.read_text(encoding="utf-8"), "THEORY section") for file in CITING))
    assert every >= {"1", "2", "3", "4", "5", "6", "7"}
    assert cited("THEORY sections 1 and 7, oracle 3", "THEORY section") == {"1", "7"}


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(r"`([\w/.]+(?:\.py|/))`", THEORY))
    places = (ROOT, ROOT / "src/ctrnn_assembly")
    assert named
    assert not {name for name in named if not any((place / name).exists() for place in places)}


def test_the_code_that_a_section_names_exists() -> None:
    named = re.findall(
        r"`([a-z_]\w*(?:\.\w+)+)`", "".join(re.findall(r"\nCode: .*?\n\n", THEORY, re.DOTALL))
    )
    named = [name for name in named if not name.startswith("nn.") and not name.endswith(".py")]
    assert len(named) > 50
    # Of what has no docstring there is no page to link to.
    assert all(resolve_name(f"ctrnn_assembly.{name}").__doc__ for name in named)
