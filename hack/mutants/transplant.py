"""Puts another version of a module's source into a process that has already imported the module.

Importing the product and collecting tests takes far longer than a test. So both are done once, and each mutant lives
in a process that is forked after that. There the functions, defaults and plain constants of the module are replaced
with those of the other version. Objects that another module computed from them at its import do not change.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from importlib import import_module
from types import CellType, FunctionType, MappingProxyType, ModuleType
from typing import Any

PLAIN = (bool, int, float, str, bytes, type(None), tuple, frozenset)
EMPTY = CellType()
OURS = ("gpusharing", "tests", "hack")


def plant_source(module: str, text: str, known: Mapping[str, object] = MappingProxyType({})) -> None:
    """Replace the functions, defaults and plain constants of a module with those of the source `text`, until this
    process ends.

    Other modules of ours that import a constant get the new value, too. Functions and constants that are only in one of
    the two versions are ignored. `known` holds objects that the source uses without defining or importing them; they
    become globals of the module. Raises ValueError or KeyError if the closure or the defaults of a function do not fit
    the old ones (`_replace_function`), and any exception of the source when it runs.
    """
    present = import_module(module)
    assert present.__file__ is not None, "a module of ours is a file"
    other = ModuleType(module)
    other.__file__ = present.__file__
    vars(other).update(known)
    vars(present).update(known)
    exec(compile(text, present.__file__, "exec"), vars(other))
    done: set[int] = set()
    for name, value in list(vars(present).items()):
        new = vars(other).get(name)
        if _differs(value, new):
            for importer in (present, *_importers(module, name)):
                setattr(importer, name, new)
        _transplant(module, value, new, done)


def _differs(old: object, new: object) -> bool:
    """Whether both are of exactly the same type, which is one of PLAIN, all elements of `new` are plain, too (see
    `_is_plain`), and they are not equal."""
    return type(old) is type(new) and isinstance(old, PLAIN) and _is_plain(new) and old != new


def _is_plain(value: object) -> bool:
    """Whether the type is one of PLAIN and, in a tuple or frozenset, all elements are plain."""
    return type(value) in PLAIN and (not isinstance(value, tuple | frozenset) or all(map(_is_plain, value)))


def _importers(module: str, name: str) -> list[ModuleType]:
    """Return our loaded modules (OURS), except `module`, that have an attribute `name` and whose source imports it from
    this module (`_imports`). A constant that was imported under another name is not found."""
    return [
        each
        for key, each in list(sys.modules.items())
        if key.partition(".")[0] in OURS
        and hasattr(each, name)
        and key != module
        and _imports(each, module, name)
    ]


def _imports(importer: ModuleType, module: str, name: str) -> bool:
    """Whether the source of `importer`, at any depth, contains a `from module import …` for exactly this module that
    binds `name`, as the imported name or as its alias."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == module
        and any((alias.asname or alias.name) == name for alias in node.names)
        for node in ast.walk(ast.parse(inspect.getsource(importer)))
    )


def _transplant(module: str, old: Any, new: Any, done: set[int]) -> None:
    """Copy the code and defaults of functions, and the plain values of classes and dataclass instances, from `new` to
    `old`, and do the same for all objects that both hold in the same place. Keys that a dict no longer has are deleted;
    other changes of plain values in a dict or list are ignored.

    Objects are changed in place, so all references to them see the change. Functions and classes of other modules,
    objects whose types differ, and texts are left alone. `done` holds the ids of objects that were visited already, to
    which this one is added.
    """
    if id(old) in done or type(old) is not type(new) or isinstance(old, str | bytes):
        return
    done.add(id(old))
    if isinstance(old, FunctionType | type) and old.__module__ != module:
        return
    if isinstance(old, FunctionType):
        _replace_function(old, new)
    elif isinstance(old, type):
        _replace_class(old, new)
    elif is_dataclass(old):
        _replace_fields(old, new)
    elif isinstance(old, dict):
        for gone in old.keys() - new.keys():
            del old[gone]
    parts, others = _parts(old), _parts(new)
    for key in parts.keys() & others.keys():
        _transplant(module, parts[key], others[key], done)


def _replace_function(old: FunctionType, new: FunctionType) -> None:
    """Give `old` the code of `new`, and each default of `new` that is a plain value and differs. If only one of them
    has defaults of a kind (positional or keyword), that kind is ignored. Raises ValueError if their numbers of closure
    variables, or of positional defaults, differ, and KeyError if a keyword has a default in `new` only; `old` is then
    unchanged."""
    defaults, keywords = old.__defaults__, old.__kwdefaults__
    if old.__defaults__ and new.__defaults__:
        pairs = zip(old.__defaults__, new.__defaults__, strict=True)
        defaults = tuple(after if _differs(before, after) else before for before, after in pairs)
    if old.__kwdefaults__ and new.__kwdefaults__:
        changed = {
            name: value
            for name, value in new.__kwdefaults__.items()
            if _differs(old.__kwdefaults__[name], value)
        }
        keywords = {**old.__kwdefaults__, **changed}
    if old.__code__ != new.__code__:
        old.__code__ = new.__code__
    old.__defaults__, old.__kwdefaults__ = defaults, keywords


def _replace_class(old: type, new: type) -> None:
    """Copy to the class `old` the plain values of `new` that differ. Only names that both bodies have are compared, and
    none that begins with two underscores. For a NamedTuple, the code and defaults of its constructor are also replaced
    (`_replace_function`)."""
    if hasattr(old, "_field_defaults"):  # a NamedTuple, whose functions have another `__module__`
        _replace_function(vars(old)["__new__"].__func__, vars(new)["__new__"].__func__)
    for name, value in list(vars(old).items()):
        if _differs(value, vars(new).get(name)) and not name.startswith("__"):
            setattr(old, name, vars(new)[name])


def _replace_fields(old: Any, new: Any) -> None:
    """Copy the plain values of `new` that differ to the dataclass instance `old`, which may be frozen."""
    for each in fields(old):
        if _differs(getattr(old, each.name, None), value := getattr(new, each.name, None)):
            object.__setattr__(old, each.name, value)


def _parts(whole: Any) -> dict[object, Any]:
    """Return the parts of an object that may be functions or contain functions, by attribute, index or key: of a
    function the contents of its closure and what it wraps, of a property or another wrapper its functions, of a class
    its own attributes, of a tuple, list or mapping its items, of a dataclass instance its fields. An object of a type
    without known parts has only `wrapped`: the function that it wraps, or None."""
    match whole:
        case FunctionType():
            cells = [cell.cell_contents for cell in whole.__closure__ or () if cell != EMPTY]
            return {"wrapped": getattr(whole, "__wrapped__", None), **dict(enumerate(cells))}
        case property():
            return {"get": whole.fget, "set": whole.fset}
        case staticmethod() | classmethod():
            return {"function": whole.__func__}
        case cached_property() | partial():
            return {"function": whole.func}
        case type():
            return {
                name: value for name, value in vars(whole).items() if name not in ("__dict__", "__weakref__")
            }
        case tuple() | list():
            return dict(enumerate(whole))
        case Mapping():
            return dict(whole)
    if is_dataclass(whole):
        return {each.name: getattr(whole, each.name, None) for each in fields(whole)}
    return {"wrapped": getattr(whole, "__wrapped__", None)}  # the function that functools.cache wraps
