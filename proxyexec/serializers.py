"""How the parts of a call travel: by strategies that have names, in payloads that say which.

::

    from proxyexec.serializers import Serializers, check

    serializers = Serializers(code="reference", data="json", results=["json", "pickle"])
    check(function, 1, x=2, serializers=serializers, isolated=True)
    StoreExecutor(pool, serializers=serializers)

A *strategy* turns an object into frames and back: ``pickle``, ``cloudpickle``, ``dill`` and
``json`` do data, the pickles, ``reference`` and ``source`` do functions, and :func:`register`
makes others known. A :class:`Payload` is what a strategy wrote, and says which strategy, which
version of it, and which Python that was; whoever reads it looks at that first. A payload that
is refused is never loaded, not even in part.
"""

from __future__ import annotations

from proxyexec._checking import Arrived, check
from proxyexec._payloads import Payload, Serializers, decode, encode
from proxyexec._strategies import Strategy, names, register

__all__ = [
    "Arrived",
    "Payload",
    "Serializers",
    "Strategy",
    "check",
    "decode",
    "encode",
    "names",
    "register",
]
