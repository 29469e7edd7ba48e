"""Directives that make tables of the reference from the code, to be used inside ``{eval-rst}``.

``.. options:: TypedDict settings`` has the keys of a parameter that is a mapping, ``.. fields:: dataclass``
the fields of a result, ``.. environment::`` the worker's variables and ``.. connection-fields::`` the form's.
A field without a docstring is an error of the build.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from documented_fields import fields_of, load, meanings
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from airflow_arcadia.provider_info import get_provider_info
from airflow_arcadia.worker import _ONLY_READ, VARIABLES, PlacedWorker


class _Table(Directive):
    """A list-table whose cells are reStructuredText."""

    head: tuple[str, ...]
    widths: tuple[int, ...]

    def rows(self) -> Iterable[tuple[str, ...]]:
        """The cells, row by row."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The table."""
        lines = [
            ".. list-table::",
            "   :header-rows: 1",
            f"   :widths: {' '.join(map(str, self.widths))}",
            "",
        ]
        for row in [self.head, *self.rows()]:
            lines += [f"   {'* -' if number == 0 else '  -'} {cell}" for number, cell in enumerate(row)]
        box = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.name), self.content_offset, box)
        return box.children


class Options(_Table):
    """Keys of a mapping: the TypedDict says which, the settings class what they are."""

    required_arguments = 2
    head, widths = ("key", "takes", "default", "meaning"), (22, 18, 14, 46)

    def rows(self) -> Iterable[tuple[str, ...]]:
        """One row a key."""
        keys, settings = (load(path) for path in self.arguments)
        for field in fields_of(settings, list(keys.__annotations__)):
            yield f"``{field.name}``", field.type, field.default or "required", field.meaning


class Fields(_Table):
    """Fields of a result."""

    required_arguments = 1
    head, widths = ("field", "type", "meaning"), (24, 20, 56)

    def rows(self) -> Iterable[tuple[str, ...]]:
        """One row a field."""
        for field in fields_of(load(self.arguments[0])):
            yield f"``{field.name}``", field.type, field.meaning


class Environment(_Table):
    """The worker's environment variables."""

    head, widths = ("variable", "meaning"), (36, 64)

    def rows(self) -> Iterable[tuple[str, ...]]:
        """One row a variable."""
        told = meanings(PlacedWorker)
        for variable, name in sorted((_ONLY_READ | {v: n for n, v in VARIABLES.items()}).items()):
            yield f"``{variable}``", told[name]


class ConnectionFields(_Table):
    """Fields of the connection's form, beside the password."""

    head, widths = ("extra", "label in the form", "meaning"), (22, 26, 52)

    def rows(self) -> Iterable[tuple[str, ...]]:
        """One row a field."""
        (kind,) = get_provider_info()["connection-types"]
        for name, field in kind["conn-fields"].items():
            yield f"``{name}``", field["label"], field["description"].replace("*", r"\*")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("options", Options)
    app.add_directive("fields", Fields)
    app.add_directive("environment", Environment)
    app.add_directive("connection-fields", ConnectionFields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
