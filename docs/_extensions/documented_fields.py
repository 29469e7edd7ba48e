"""Reads what docstrings say about parameters and fields. Independent of Sphinx, for tests."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

_PARAM = re.compile(r":param (\w+): +(.*?)(?=\n\s*:param |\n\s*\n|\Z)", re.DOTALL)
_TYPES = (
    (r"Annotated\[float, Field\(ge=0\)\]", "number, 0 or more"),
    (r"Literal\[(.*?)\]", lambda found: " or ".join(f"``{v.strip()}``" for v in found[1].split(","))),
    (r"(Sequence|tuple)\[Mapping\[str, \w+\](, \.\.\.)?\]", "list of mappings"),
    (r"(Sequence|tuple)\[str(, \.\.\.)?\]", "list of texts"),
    (r"Mapping\[str, str\]", "mapping of texts"),
    (r"Mapping\[str, \w+\]", "mapping"),
    (r"\bPositiveSeconds\b", "seconds, above 0"),
    (r"\bSeconds\b", "seconds, 0 or more"),
    (r"\bCount\b", "integer, 1 or more"),
    (r"\bIndex\b", "integer, 0 or more"),
    (r"\bFraction\b", "number, 0 to 1"),
    (r"\bShare\b", "number, above 0 to 1"),
    (r"\bPortOrAny\b", "port, or 0"),
    (r"\bPort\b", "port"),
    (r"\bWords\b", "words: a list, or one text"),
    (r"\bVariables\b", "mapping of texts"),
    (r"\bstr\b", "text"),
    (r"\bText\b", "text"),
    (r"\bint\b", "integer"),
    (r"\bfloat\b", "number"),
    (r"\bbool\b", "true or false"),
    (r" \| None\b", " or None"),
)
"""Pattern of an annotation → what a reader calls it."""


@dataclass(frozen=True)
class Documented:
    """One field as the reference shows it; ``default`` is empty where there is none."""

    name: str
    type: str
    default: str
    meaning: str


def load(path: str) -> Any:
    """The object at ``package.module.name``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def meanings(cls: type[Any]) -> dict[str, str]:
    """Parameter → what the class's docstring, or that of a base in this package, says about it."""
    found: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        if kind.__module__.startswith("airflow_arcadia"):
            text = inspect.cleandoc(kind.__doc__ or "")
            found |= {name: re.sub(r"\s+", " ", told).strip() for name, told in _PARAM.findall(text)}
    return found


def fields_of(settings: type[Any], only: list[str] | None = None) -> list[Documented]:
    """The fields of a dataclass, with their types and defaults.

    :param only: names to show, in their order; None shows all.

    Raises :class:`KeyError` naming a field about which no docstring says anything.
    """
    told, declared = meanings(settings), {field.name: field for field in dataclasses.fields(settings)}
    return [
        Documented(name, _type(str(declared[name].type)), _default(declared[name]), told[name])
        for name in (only if only is not None else list(declared))
        if name in declared
    ]


def parameters_of(cls: type[Any]) -> list[str]:
    """Names that the class takes by keyword, without those it passes on."""
    taken = inspect.signature(cls.__init__).parameters.values()
    return [p.name for p in taken if p.name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD]


def _type(annotation: str) -> str:
    for pattern, plain in _TYPES:
        annotation = re.sub(pattern, plain, annotation)
    return annotation


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return ""
    return "none" if value in ((), {}) else f"``{value!r}``"
