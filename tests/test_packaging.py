"""Both packages come from one place, and the layers hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import proxyexec
import proxyexec_connectors

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, **kwargs
    )


def places():
    return Path(proxyexec.__file__).parent.parent, Path(proxyexec_connectors.__file__).parent.parent


def test_both_packages_come_from_one_place():
    ours, connectors = places()
    assert connectors in (ours, ours / "connectors")


def test_python_in_the_checkout_uses_the_checkout():
    script = "import proxyexec, proxyexec_connectors as c; print(proxyexec.__file__, c.__file__)"
    done = python("-c", script, cwd=ROOT)
    assert done.stdout.split() == [
        str(ROOT / "proxyexec" / "__init__.py"),
        str(ROOT / "connectors" / "proxyexec_connectors" / "__init__.py"),
    ], done.stderr


@pytest.mark.parametrize("name", ["protocol", "errors", "memory", "file", "registry", "listing"])
def test_connectors_import_without_proxyexec(name):
    script = f"""
import sys
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "proxyexec":
            raise ImportError("connectors must not import proxyexec")
sys.meta_path.insert(0, Ban())
sys.path.insert(0, {str(places()[1])!r})
import proxyexec_connectors.{name}
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr


def test_importing_is_light():
    script = "import sys, proxyexec; print(*sys.modules)"
    modules = python("-c", script).stdout.split()
    assert not {"numpy", "pandas", "redis", "distributed"} & set(modules)


def test_typing_information_is_shipped():
    for package in (proxyexec, proxyexec_connectors):
        assert Path(package.__file__).with_name("py.typed").exists()
