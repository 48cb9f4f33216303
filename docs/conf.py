"""How the documentation is built: ``python -m sphinx -W -b html docs docs/_build/html``."""

import sys
from pathlib import Path

_root = Path(__file__).resolve().parent.parent
# The checkout's own packages are documented, whether or not they are installed.
sys.path[:0] = [str(_root), str(_root / "connectors")]

import proxyexec  # noqa: E402, TID251 - found by the above

project = "proxyexec"
author = "The proxyexec authors"
copyright = author
release = version = proxyexec.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"proxyexec {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# Signatures that would not fit a line are written one parameter a line.
maximum_signature_line_length = 80

# A reference within these packages that leads nowhere is a mistake. References to the standard
# library and to others cannot be checked without fetching their inventories, and type variables
# have no page; so only these are let through.
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(_?pickle|collections|concurrent|multiprocessing|os|types|typing|uuid|weakref)\..*",
    ),
    ("py:.*", r"(enum|typing_extensions|wrapt)\..*"),
    ("py:class", r"(Any|Buffer|Callable|Iterable|Iterator|Mapping|Sequence|Self|ParamSpec)"),
    ("py:class", r"(BaseContext|Future|Executor|TracebackType|Frames)"),
    ("py:(class|obj)", r"(.*\.)?(P|R|T)(\.args|\.kwargs)?"),
    ("py:exc", r"[A-Z][A-Za-z]*(Error|Exception)"),
    # Named without its package in a docstring; it is under proxyexec_connectors.protocol.
    ("py:attr", r"Connector\.address"),
    # What executors give to serializers; not for others to use.
    ("py:class", r"(proxyexec\._picklers\.)?Parts"),
    ("py:.*", r"(asyncio|contextlib|functools|gc|glob|json|subprocess)\..*"),
    ("py:class", r"(AsyncGenerator|AsyncIterable)"),
    ("py:.*", r"pydantic\..*"),
    ("py:class", r"proxyexec\._config_.*"),
    # What a policy is asked about; the page on policies says what it has.
    ("py:class", r"proxyexec\._serialize\.Candidate"),
]
