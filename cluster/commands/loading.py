"""Commands whose modules are imported when they are called, so that `addp --help`, and the help of
any one command, wait for no other's imports."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from cluster.commands.modules import PASS_ON, module_command


class Entry(NamedTuple):
    """What is known of a command before its module is imported.

    import_path: "module:name", of the command's function, or of a typer app with commands of its
    own; or the name of a module that is a command line of its own.
    panel: the heading that `addp --help` lists it under.
    summary: how its own help begins.
    """

    import_path: str
    panel: str
    summary: str


class LazyCommand(TyperCommand):
    """A command of which only the entry is known. It becomes the real one where it is called."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.summary, rich_help_panel=entry.panel)
        self._name, self._import_path = name, entry.import_path

    def load(self) -> Any:
        """Import the module, and return the command that is there."""
        module, _, attribute = self._import_path.partition(":")
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        if not attribute:
            app.command(context_settings=PASS_ON)(module_command(module, self._name))
            return typer.main.get_command(app)
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            app.command()(found)
            found = app
        return typer.main.get_command(found)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Called by the group, which goes on with the command of the context that it gets."""
        return self.load().make_context(info_name, args, parent, **extra)


def lazy_group(entries: Mapping[str, Entry]) -> type[TyperGroup]:
    """Return the class of a group that has these commands."""

    class LazyGroup(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            for name, entry in entries.items():
                self.add_command(LazyCommand(name, entry))

    return LazyGroup
