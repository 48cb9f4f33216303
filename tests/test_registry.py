"""From URLs to connectors: built in, from other distributions, or a helpful refusal."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from proxyexec_connectors import attach, connect
from proxyexec_connectors.errors import MissingExtraError, UnknownSchemeError
from proxyexec_connectors.memory import MemoryConnector


def test_a_scheme_that_is_built_in():
    connector = connect("memory://")
    assert isinstance(connector, MemoryConnector)
    assert attach(connector.address) is connector


@pytest.mark.parametrize("url", ["carrier-pigeon://coop/7", "no-scheme", "", "REDDIS://x"])
@pytest.mark.parametrize("call", [connect, attach])
def test_an_unknown_scheme_says_what_is_known(url, call):
    with pytest.raises(UnknownSchemeError, match="entry point") as error:
        call(url)
    for scheme in ("file", "memory", "redis", "rediss", "unix"):
        assert scheme in error.value.known
        assert scheme in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    "url",
    [
        "pigeon://user:s3cret@coop:7/x",
        "pigeon://:s3cret@coop",
        "pigeon://user:s3cret@with@signs@coop/x",
        "pigeon://user:s3cret/with/slashes@coop/x",
    ],
)
def test_an_unknown_scheme_never_quotes_a_password(url):
    with pytest.raises(UnknownSchemeError) as error:
        connect(url)
    assert "s3cret" not in str(error.value)
    assert "s3cret" not in repr(error.value)
    assert "coop" in str(error.value)


def python(code, *path):
    """What a fresh process prints; modules in ``path`` come first."""
    code = f"import sys\nsys.path[:0] = {[str(one) for one in path]}\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "rediss://x", "unix:///x"])
def test_a_missing_extra_says_what_to_install(url):
    said = python(
        f"""
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("redis", "hiredis"):
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Blocker())
        from proxyexec_connectors import attach, connect
        from proxyexec_connectors.errors import MissingExtraError

        for call in (connect, attach):
            try:
                call({url!r})
            except MissingExtraError as error:
                assert isinstance(error, ImportError)
                assert isinstance(error.__cause__, ModuleNotFoundError)
                print(error)
        """
    )
    assert said.count("pip install 'proxyexec[redis]'") == 2


def test_backends_are_imported_when_they_are_used():
    said = python(
        """
        import proxyexec_connectors
        print(sorted({"redis", "hiredis"} & set(sys.modules)))
        proxyexec_connectors.connect("memory://")
        print(sorted({"redis", "hiredis"} & set(sys.modules)))
        """
    )
    assert said.split() == ["[]", "[]"]


def test_connectors_of_other_distributions(tmp_path):
    info = tmp_path / "pigeons-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeons\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[proxyexec.connectors]\npigeon = pigeons:PigeonConnector\n"
    )
    (tmp_path / "pigeons.py").write_text(
        textwrap.dedent(
            """
            from proxyexec_connectors.memory import MemoryConnector

            class PigeonConnector(MemoryConnector):
                pass
            """
        )
    )
    said = python(
        """
        from proxyexec_connectors import connect
        from proxyexec_connectors.errors import UnknownSchemeError

        print("pigeons" in sys.modules)
        print(type(connect("pigeon://coop")).__name__)
        try:
            connect("dove://coop")
        except UnknownSchemeError as error:
            print("pigeon" in error.known)
        """,
        tmp_path,
    )
    assert said.split() == ["False", "PigeonConnector", "True"]


def test_its_errors_survive_pickling():
    import pickle

    for error in (
        UnknownSchemeError("a://b", ("c",)),
        MissingExtraError("a redis:// store", "redis"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
