"""Validate settings by type where they enter the provider.

Airflow's templates turn values into text, and a form or a YAML file may give any shape. A settings class is a
frozen dataclass that declares the type and limits of each field; :func:`parse` makes one from a mapping.
Text becomes the declared type (``"False"`` → ``False``, ``"30"`` → 30.0). Whatever is not valid raises
:class:`ArcadiaConfigError` that names the parameter, and an unknown key with the nearest valid one.

Empty text where the field is not plain text, and None where it does not take None, mean "not set": a form
leaves these behind.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import shlex
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from airflow_arcadia.exceptions import ArcadiaConfigError

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
PortOrAny = Annotated[int, Field(ge=0, le=65535)]
"""0 means any free port."""
Fraction = Annotated[float, Field(ge=0, le=1)]


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{error}: quotes must come in pairs") from None


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
"""Words of a command line: a list of text, or one string that is split as a shell does."""


def _variable(value: object) -> object:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Variables = Mapping[str, Annotated[str, BeforeValidator(_variable)]]
"""Environment variables: text by name; a number is taken as its text."""

_CONFIG = ConfigDict(allow_inf_nan=False)
_NUMBERS = (int, float)
_SECRET = re.compile(r"(token|password|secret|api_?key|credentials?)$", re.IGNORECASE)
_LONGEST_VALUE = 60
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "dict": "a mapping",
    "mapping": "a mapping",
    "sequence": "a list",
    "list": "a list",
    "tuple": "a list",
    "is": "a list",  # is_instance_of Sequence
}
"""First word of pydantic's error types → what the field takes."""
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_NO_MAPPING = (
    "Give a mapping. A template renders to text unless the DAG has render_template_as_native_obj=True or "
    "the template renders JSON (| tojson)."
)
_NOT_SET = object()


@dataclasses.dataclass(frozen=True)
class _Problem:
    what: str
    what_to_do: str


def parse(
    cls: type[T], raw: object, where: str, *, names: Mapping[str, str] | None = None, **fixed: Any
) -> T:
    """An instance of the dataclass ``cls`` from a mapping, or from text that is a JSON object; None is empty.

    :param where: name of the parameter it was given as, for messages.
    :param names: key in ``raw`` → field of ``cls``, where they differ or not all may be given; other keys are
        then unknown.
    :param fixed: further fields of ``cls``; ``raw`` wins.

    Raises :class:`ArcadiaConfigError` naming every key at fault.
    """
    kind: Any = cls  # mypy takes a type[T] for unhashable
    values, problems = _fields(kind, mapping(raw, where), where, names)
    required = _required(kind)
    for key, name in _keys(kind, names).items():
        if name in required - {*values, *fixed} and not problems:
            problems.append(_Problem(f"{where} has no {key}.", f"Add {key}."))
    _refuse(problems)
    return cls(**{**fixed, **values})


def check_literals(cls: Any, raw: object, where: str, *, names: Mapping[str, str] | None = None) -> None:
    """Check what of ``raw`` is known when a DAG is parsed; templates and XComs are left to the execution.

    Raises :class:`ArcadiaConfigError` naming every key at fault.
    """
    if raw is None or (not isinstance(raw, Mapping) and is_rendered_later(raw)):
        return
    entry, keys = mapping(raw, where), _keys(cls, names)
    # A key is known even where its value is not.
    literal = {k: value for k, value in entry.items() if k not in keys or not is_rendered_later(value)}
    _refuse(_fields(cls, literal, where, names)[1])
    if len(literal) == len(entry) and not _required(cls):
        parse(cls, raw, where, names=names)


def check_fields(instance: Any, where: str) -> None:
    """Validate a frozen dataclass from its ``__post_init__``, whoever made it; sets the coerced values.

    Raises :class:`ArcadiaConfigError` naming every field at fault.
    """
    given = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
    values, problems = _fields(type(instance), given, where, None)
    _refuse(problems)
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def mapping(raw: object, where: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """``raw`` as a dict: a mapping, text that is a JSON object, or None for an empty one.

    :param known: the keys it may have; None accepts all.

    Raises :class:`ArcadiaConfigError` naming the unknown key with the nearest valid one.
    """
    found = _from_json(raw)
    if found is None or (isinstance(found, str) and not found.strip()):
        return {}
    if not isinstance(found, Mapping):
        what_to_do = _NO_MAPPING if isinstance(found, str) else "Give a mapping."
        raise ArcadiaConfigError(f"{where} is {_shown(found)}, not a mapping.", what_to_do=what_to_do)
    if known is not None:
        valid = list(known)
        _refuse([_unknown(where, key, valid) for key in found if key not in valid])
    return dict(found)


def is_rendered_later(value: object) -> bool:
    """Whether a value, or a part of it, is only known in the execution: a template, or an XCom argument."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(map(is_rendered_later, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(is_rendered_later, value))
    return not isinstance(value, (bool, int, float, bytes, type(None)))


def _fields(
    cls: Any, entry: Mapping[str, Any], where: str, names: Mapping[str, str] | None
) -> tuple[dict[str, Any], list[_Problem]]:
    """The values by field, and what is wrong with the others."""
    values: dict[str, Any] = {}
    problems: list[_Problem] = []
    keys, checks = _keys(cls, names), _checks(cls)
    for key, raw in entry.items():
        if key not in keys:
            problems.append(_unknown(where, key, list(keys)))
            continue
        path = f"{where}.{key}" if where else str(key)
        check = checks[keys[key]]
        value = check.prepared(raw)
        if value is _NOT_SET:
            continue
        if isinstance(value, bool) and check.is_number:
            problems.append(_Problem(f"{path} is {value}, not a number.", "Give a number."))
            continue
        try:
            values[keys[key]] = check.adapter.validate_python(value)
        except ValidationError as error:
            problems.append(_problem(path, error))
    return values, problems


@dataclasses.dataclass(frozen=True)
class _Check:
    """How one field is validated."""

    adapter: TypeAdapter[Any]
    takes_text: bool
    takes_none: bool
    blank_is_none: bool
    is_number: bool

    def prepared(self, value: object) -> object:
        """The value as pydantic shall see it; :data:`_NOT_SET` where the field's default holds."""
        if isinstance(value, str) and not self.takes_text:
            text = value.strip()
            if not text:
                return _NOT_SET
            value = None if text in {"None", "null"} else _from_json(value)
        elif isinstance(value, str) and self.blank_is_none and not value.strip():
            value = None
        return _NOT_SET if value is None and not self.takes_none else value


def _from_json(value: object) -> object:
    """Text that is a JSON object or list, decoded: how a template hands on a structure."""
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


@functools.cache
def _checks(cls: Any) -> dict[str, _Check]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: _check(hints[f.name]) for f in dataclasses.fields(cls) if f.init}


def _check(hint: Any) -> _Check:
    kinds = _kinds(hint)
    return _Check(
        TypeAdapter(hint, config=_CONFIG),
        takes_text=not kinds.isdisjoint({str, Any, object}),
        takes_none=not kinds.isdisjoint({type(None), Any, object}),
        blank_is_none={str, type(None)} <= kinds,
        is_number=not kinds.isdisjoint(_NUMBERS) and bool not in kinds,
    )


def _kinds(hint: Any) -> set[Any]:
    """The plain types of a field's annotation."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _kinds(typing.get_args(hint)[0])
    if origin in {typing.Union, types.UnionType}:
        return set().union(*map(_kinds, typing.get_args(hint)))
    return {origin or hint}


@functools.cache
def _required(cls: Any) -> frozenset[str]:
    missing = dataclasses.MISSING
    return frozenset(
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is missing and f.default_factory is missing
    )


def _keys(cls: Any, names: Mapping[str, str] | None) -> Mapping[str, str]:
    return names if names is not None else {f.name: f.name for f in dataclasses.fields(cls) if f.init}


def _unknown(where: str, key: object, known: Sequence[str]) -> _Problem:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Valid keys: {', '.join(known)}."
    return _Problem(f"{where} has the unknown key {key!r}.", hint)


def _problem(path: str, error: ValidationError) -> _Problem:
    """The first thing that is wrong with one field, in words."""
    first = error.errors(include_url=False)[0]
    kind, value, limits = str(first["type"]), first["input"], first.get("ctx") or {}
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    shown = _shown(value, secret=bool(_SECRET.search(path.rpartition(".")[2])))
    if known := _limit(path, shown, kind, limits):
        return known
    expected = _EXPECTED.get(kind.partition("_")[0])
    if expected is None:
        return _Problem(f"{path} is {shown}, which is not valid: {first['msg']}.", f"Correct {path}.")
    if expected == "text" and isinstance(value, _NUMBERS):
        lost = " YAML drops digits of an unquoted number: 3.10 becomes 3.1."
        return _Problem(f"{path} is {shown}, a number and not text.{lost}", "Put it in quotes.")
    return _Problem(f"{path} is {shown}, not {expected}.", f"Give {expected}.")


def _limit(path: str, shown: str, kind: str, limits: Mapping[str, Any]) -> _Problem | None:
    """A value of the right type that is not one of those allowed."""
    if kind == "string_too_short":
        return _Problem(f"{path} is empty.", f"Set {path}.")
    if kind == "literal_error":
        return _Problem(f"{path} is {shown}.", f"Use {limits['expected']}.")
    for name, words in _LIMITS.items():
        if name in limits:
            return _Problem(f"{path} is {shown}.", f"Set it to {words} {limits[name]:g}.")
    if isinstance(cause := limits.get("error"), Exception):
        return _Problem(f"{path} is {shown}, which is not valid: {cause}.", f"Correct {path}.")
    return None


def _shown(value: object, *, secret: bool = False) -> str:
    """The value in a message: short scalars as they are, of all else the type."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _LONGEST_VALUE and not secret else "text"
    if isinstance(value, (bool, *_NUMBERS)) and not secret:
        return repr(value)
    return "None" if value is None else f"a {type(value).__name__}"


def _refuse(problems: Sequence[_Problem]) -> None:
    if problems:
        raise ArcadiaConfigError(
            " ".join(dict.fromkeys(problem.what for problem in problems)),
            what_to_do=" ".join(dict.fromkeys(problem.what_to_do for problem in problems)),
        )
