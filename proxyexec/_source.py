"""Functions as their source text, and back.

The text has to be all there is to a function: no decorators, nothing captured, no globals but
itself, defaults that are literals. Whether it is the function's is not left to hope: it is
compiled, and has to give the same code.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dis
import functools
import hashlib
import inspect
import linecache
import textwrap
import types
from collections.abc import Iterator
from typing import Any, TypeAlias

from proxyexec.errors import name_of

__all__ = ["function_from", "source_of"]

_Definition: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"


def source_of(function: Any) -> str:
    """Return the source text of a function.

    Raises:
        TypeError: it is no function written with ``def``.
        ValueError: its text alone is not all of it; the error says what is missing.
        OSError: there is no source to be had.
    """
    if type(function) is not types.FunctionType:
        raise TypeError(f"an object of type {name_of(type(function))} has no source of its own")
    name = function.__code__.co_name
    if name == "<lambda>":
        raise ValueError("a lambda has no source of its own; write it with def")
    if function.__closure__:
        captured = ", ".join(function.__code__.co_freevars)
        raise ValueError(f"it is a closure over {captured}; make that arguments")
    if vars(function):
        raise ValueError(f"its attributes would be lost: {', '.join(vars(function))}")
    needed = sorted(_needed_by(function))
    if needed:
        raise ValueError(
            f"it needs {', '.join(needed)} from its module; import that inside of it, "
            "or make it an argument"
        )
    text = inspect.getsource(function)
    definition = _definition_in(text)
    if definition.decorator_list:
        raise ValueError("it is decorated, and decorators would be called where it arrives")
    if definition.name != name or function.__name__ != name:
        raise ValueError(f"it is called {function.__name__!r}, and {definition.name!r} in its text")
    _check_defaults(function, definition.args)
    flags = function.__code__.co_flags & _FUTURES
    # Indented text in it, such as documentation, may be other text without the indentation.
    for candidate in (textwrap.dedent(text), text):
        compiled = _compiled_definition(_definition_in(candidate), "<source>", flags)
        if any(_is_same_code(code, function.__code__) for code in _codes_in(compiled)):
            return candidate
    raise ValueError("its text is not what it was compiled from: the file may have changed")


def function_from(text: str) -> Any:
    """Return the function that a text defines, with a namespace of its own.

    Raises:
        SyntaxError: this Python does not understand the text.
        ValueError: it is not one function.
    """
    name, code = _compiled(text)
    namespace: dict[str, Any] = {"__builtins__": builtins, "__name__": _MODULE}
    exec(code, namespace)  # noqa: S102 - running code that was sent is what executors do
    function = namespace[name]
    function.__module__ = _MODULE
    return function


@functools.lru_cache(maxsize=256)
def _compiled(text: str) -> tuple[str, types.CodeType]:
    definition = _definition_in(text)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    filename = f"<source of {definition.name}, {digest}>"
    # What annotations mention is not here, and nobody needs it.
    flags = __future__.annotations.compiler_flag
    code = _compiled_definition(definition, filename, flags)
    # So that tracebacks show its lines.
    linecache.cache[filename] = len(text), None, text.splitlines(keepends=True), filename
    return definition.name, code


def _definition_in(text: str) -> _Definition:
    if text[:1].isspace():
        body = ast.parse(f"if True:\n{text}").body
        if len(body) == 1 and isinstance(body[0], ast.If):
            body = body[0].body
            ast.increment_lineno(ast.Module(body, []), -1)
    else:
        body = ast.parse(text).body
    if len(body) != 1 or not isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise ValueError("its text is not one definition of a function")
    return body[0]


def _compiled_definition(definition: _Definition, filename: str, flags: int) -> types.CodeType:
    code = compile(ast.Module([definition], []), filename, "exec", flags, dont_inherit=True)
    assert isinstance(code, types.CodeType)  # noqa: S101 - there is no flag to return the tree
    return code


def _needed_by(function: types.FunctionType) -> Iterator[str]:
    """Yield the globals that a function mentions, and finds in its module, itself apart."""
    known = function.__globals__
    for name in {name for code in _codes_in(function.__code__) for name in _globals_of(code)}:
        if name in known and known[name] is not function:
            yield name


def _globals_of(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _OF_GLOBALS:
            yield str(instruction.argval)


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_in(constant)


def _check_defaults(function: types.FunctionType, arguments: ast.arguments) -> None:
    positional = [*arguments.posonlyargs, *arguments.args]
    given = function.__defaults__ or ()
    keywords = function.__kwdefaults__ or {}
    written = {
        **_by_name(positional[len(positional) - len(arguments.defaults) :], arguments.defaults),
        **_by_name(arguments.kwonlyargs, arguments.kw_defaults),
    }
    written = {name: expression for name, expression in written.items() if expression is not None}
    actual = {**_by_name(positional[len(positional) - len(given) :], given), **keywords}
    if written.keys() != actual.keys():
        raise ValueError("its defaults are not those in its text")
    for name, expression in written.items():
        try:
            value = ast.literal_eval(expression)
        except ValueError:
            raise ValueError(f"the default of {name} is not a literal") from None
        # As text, which tells 1 from True, and 0.0 from -0.0.
        if type(value) is not type(actual[name]) or repr(value) != repr(actual[name]):
            raise ValueError(f"the default of {name} is not what is in its text")


def _by_name(arguments: Any, values: Any) -> dict[str, Any]:
    return {argument.arg: value for argument, value in zip(arguments, values, strict=True)}


def _is_same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """Tell whether two pieces of code do the same, wherever they were written."""
    return (
        all(getattr(one, fact) == getattr(other, fact) for fact in _FACTS)
        and list(_steps_of(one)) == list(_steps_of(other))
        and len(one.co_consts) == len(other.co_consts)
        and all(map(_is_same_constant, one.co_consts, other.co_consts))
    )


def _steps_of(code: types.CodeType) -> Iterator[tuple[str, object]]:
    """Yield what code does, without where it is.

    How a method is called is left out, too: compilers do that in another way if the module has
    imported something of the same name.
    """
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in _OF_CALLS:
            continue
        name = "LOAD_ATTR" if name == "LOAD_METHOD" else name
        name = "CALL" if name in ("CALL_METHOD", "CALL_FUNCTION") else name
        if instruction.opcode in _JUMPS:
            yield name, None
        elif name == "LOAD_CONST":
            yield name, instruction.arg  # the constants are compared
        else:
            yield name, repr(instruction.argval)


def _is_same_constant(one: Any, other: Any) -> bool:
    if isinstance(one, types.CodeType) and isinstance(other, types.CodeType):
        return _is_same_code(one, other)
    if isinstance(one, str) and isinstance(other, str) and "<locals>" in one:
        return one.split("<locals>")[-1] == other.split("<locals>")[-1]  # in qualified names
    return type(one) is type(other) and repr(one) == repr(other)


_FACTS = (
    "co_name",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
)

_FUTURES = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag,
    __future__.all_feature_names,
    0,
)

# Instructions that look a name up in the module, or change it there.
_OF_GLOBALS = frozenset(
    {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
)

_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})
_OF_CALLS = frozenset({"PUSH_NULL", "PRECALL", "EXTENDED_ARG", "NOP"})

# What functions that arrived so say they are of; there is no such module.
_MODULE = "<source>"
