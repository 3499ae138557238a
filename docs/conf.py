"""Configuration of the documentation: sphinx-build -W docs SITE builds pages that need no network."""

import inspect
import re
from functools import partial
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from textwrap import dedent
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

import ctrnn_assembly

HERE = Path(__file__).parent
GENERATED = HERE / "reference" / "generated"

project = "ctrnn-assembly"
author = "The ctrnn-assembly authors"
copyright = author
version = release = ctrnn_assembly.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
smartquotes = False  # x' is a derivative
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}

viewcode_line_numbers = True
autodoc_member_order = "bysource"
import_module("torch._dynamo")  # reads values of triton's (torch 2.15): before that is mocked
autodoc_mock_imports = ["optuna", "sklearn", "triton"]
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def as_rst(lines: list[str]) -> list[str]:
    """Docstrings are plain text: indented blocks stay as they are, other markup is escaped."""
    made: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = paragraph.split("\n")
        head, rest = rows[0], dedent("\n".join(rows[1:])).split("\n")
        if paragraph.startswith(">>>"):
            made += rows
        elif re.fullmatch(r"(Args|Attributes|Returns|Raises|Example|Examples):", head):
            made += [f"**{head[:-1]}**", "", *(rest if head.startswith("Example") else entries(rest))]
        elif any(row.startswith(" ") for row in rows):
            made += ["::", "", *(f"    {row}" for row in rows)]
        elif head.startswith("- "):
            made += map(escaped, rows)
        else:
            made.append(escaped(" ".join(rows)))
        made.append("")
    return made


def entries(rows: list[str]) -> list[str]:
    """`name: text`, each with what is indented below it, as a list of definitions."""
    made: list[str] = []
    for row in rows:
        name, colon, text = row.partition(": ")
        if colon and not row.startswith(" "):
            made += [escaped(name), f"    {escaped(text)}"]
        else:
            made.append(f"    {escaped(row.strip())}")
    return made


def escaped(row: str) -> str:
    """Text in which only `code` is markup; sections, theorems and corrections lead to the theory."""
    parts = re.split(r"(`[^`]+`)", row)
    made = "".join(
        f"`{part}`" if part.startswith("`") else re.sub(r"([*|\\`]|_(?!\w))", r"\\\1", part)
        for part in parts
    )
    for cited, section in CITED:
        link = rf":ref:`\g<0> <{section}>`"
        made = re.sub(cited, partial(cited_in, link), made)
    return made


def cited_in(link: str, found: re.Match[str]) -> str:
    return re.sub(r"\bE?\d+\b", link, found[0])


# What docstrings cite, and where it is: a section of the theory, a theorem, a correction.
CITED = [
    (r"THEORY sections? \d+(?:(?:, | and )\d+)*", r"theory-\g<0>"),
    (r"\bTheorems? (?:[1-7]|35)\b(?:(?:, | and )[1-7]\b)*(?! of Gokhale)", "theory-2"),
    (r"THEORY E\d+|corrections E\d+", "theory-0"),
]


def process_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = as_rst(lines)


def process_description(app: Sphinx, ctx: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def process_options(app: Sphinx, ctx: Any, lines: list[str]) -> None:
    lines[:] = [row if row.lstrip().startswith("..") else row.replace("|", r"\|") for row in lines]


def modules() -> list[str]:
    """All of the package's; the kernels of CUDA devices are shown without triton."""
    return sorted(module.name for module in walk_packages(ctrnn_assembly.__path__, "ctrnn_assembly."))


def first_sentence(obj: Any) -> str:
    """Of a docstring, for a cell of a table."""
    text = " ".join((obj.__doc__ or "").split("\n\n")[0].split())
    return text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")


def generate(app: Sphinx) -> None:
    """A page for each module, and a table of the public names that leads there."""
    GENERATED.mkdir(exist_ok=True)
    names = modules()
    for old in GENERATED.glob("*.rst"):
        if old.stem not in names:
            old.unlink()
    for name in names:
        title = name.removeprefix("ctrnn_assembly.")
        options = "   :members:\n   :show-inheritance:\n"
        text = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {name}\n{options}"
        write(GENERATED / f"{name}.rst", text)
    rows = ["| name | what |", "|---|---|"]
    for name, home in sorted(ctrnn_assembly.HOMES.items(), key=lambda item: item[0].lower()):
        found = getattr(ctrnn_assembly, name)
        if callable(found):
            home = f"{getattr(found, '__module__', home)}.{getattr(found, '__qualname__', name)}"
            role, about = f"{{py:obj}}`{name} <{home}>`", first_sentence(found)
        else:
            role, about = f"{{py:mod}}`{name} <{home}>`", "a table: name to what it names"
        rows.append(f"| {role} | {about} |")
    write(GENERATED / "public.md", "\n".join(rows) + "\n")
    toc = "\n".join(f"   generated/{name}" for name in names)
    write(HERE / "reference" / "modules.rst", f"Modules\n=======\n\n.. toctree::\n\n{toc}\n")


def write(file: Path, text: str) -> None:
    """Files that are as they should be are left, so that a second build is short."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def link_theory(app: Sphinx, docname: str, source: list[str]) -> None:
    """Sections of the theory are targets, and the code that they name leads to its lines."""
    if docname != "theory":
        return
    text = re.sub(r"^## (\d+)\.", r"(theory-\1)=\n\g<0>", source[0], flags=re.MULTILINE)
    source[0] = re.sub(
        r"^Code: .+?\n\n",
        lambda found: re.sub(r"`([a-z]\w*(?:\.\w+)+)`", code_link, found[0]),
        text + "\n\n",
        flags=re.MULTILINE | re.DOTALL,
    )


def code_link(named: re.Match[str]) -> str:
    """`module.name`, or `module.Class.method`: links to the page of its docstring and to its line."""
    known = [name.removeprefix("ctrnn_assembly.") for name in modules()]
    place = max((name for name in known if named[1].startswith(name + ".")), key=len, default="")
    if not place or named[1].endswith(".py"):
        return named[0]
    names = named[1].removeprefix(place + ".").split(".")
    found: Any = import_module("ctrnn_assembly." + place)
    for name in names:
        found = getattr(found, name)
    line = inspect.getsourcelines(inspect.unwrap(found))[1]
    file = f"{place.replace('.', '/')}.py"
    page = f"_modules/ctrnn_assembly/{place.replace('.', '/')}.html#{'.'.join(names)}"
    shown = f"{{py:obj}}`{names[-1]} <ctrnn_assembly.{named[1]}>`"
    return f'{shown} (<a href="{page}">{file}, line {line}</a>)'


class Links(HTMLParser):
    """The targets of a page's links, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.links += [value for name in ("href", "src") if (value := given.get(name))]
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}


def check_links(app: Sphinx, failed: Exception | None) -> None:
    """Every link within the site leads to a file, and to an anchor in it, without a network."""
    if failed is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    pages = {page: Links(page.read_text(encoding="utf-8")) for page in root.rglob("*.html")}
    broken = []
    for page, found in pages.items():
        for link in found.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            path, anchor = map(unquote, urldefrag(link.split("?")[0] if "#" not in link else link))
            target = (page.parent / path.split("?")[0]).resolve() if path else page
            known = pages.get(target)
            if not target.exists() or (anchor and known and anchor not in known.anchors):
                broken.append(f"{page.relative_to(root)}: {link}")
    if broken:
        raise SphinxError("links that lead nowhere:\n" + "\n".join(sorted(set(broken))))


def setup(app: Sphinx) -> None:
    import_module("ctrnn_cli.main")
    app.connect("builder-inited", generate)
    app.connect("source-read", link_theory)
    app.connect("build-finished", check_links)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("sphinx-click-process-description", process_description)
    app.connect("sphinx-click-process-options", process_options)
