"""Commands that say what there is: `list`, `show`, `plugins`."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from flowzoo.cli.options import Command, json_option, plugin_option
from flowzoo.errors import UserError
from flowzoo.recipes import Recipe, load_recipes
from flowzoo.registry import Component, Registry, suggest


@click.command("list", cls=Command)
@click.argument("kind", required=False)
@plugin_option
@json_option
def list_command(kind: str | None, plugins: tuple[Path, ...], as_json: bool) -> None:
    """List the components, or those of one KIND.

    The kind `recipe` lists the recipes.

    Examples:
      flowzoo list
      flowzoo list trace
      flowzoo list recipe
      flowzoo list dataset --json
    """
    registry = Registry.installed().with_files(plugins)
    kinds = [*registry.kinds(), "recipe"]
    if kind is not None and kind not in kinds:
        raise UserError(f"unknown kind '{kind}'{suggest(kind, kinds, 'kinds')}")
    rows = [] if kind == "recipe" else [_row(c, registry) for c in registry.components(kind)]
    if kind in (None, "recipe"):
        rows += [_recipe_row(recipe) for recipe in load_recipes().values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif kind is None:
        for each in kinds:
            names = ", ".join(_name(row) for row in rows if row["kind"] == each)
            click.echo(_paragraph(each, names))
    else:
        for row in rows:
            about = row["error"] or row["about"]
            click.echo(_paragraph(_name(row, False), f"{about} [{row['origin']}]", 24))


@click.command("show", cls=Command)
@click.argument("name")
@plugin_option
@json_option
def show_command(name: str, plugins: tuple[Path, ...], as_json: bool) -> None:
    """Show a recipe or a component by NAME, or one as KIND/NAME.

    Examples:
      flowzoo show ot-flow
      flowzoo show trace/hutchinson
      flowzoo show moons
    """
    registry = Registry.installed().with_files(plugins)
    kind, _, short = name.rpartition("/")
    recipes = load_recipes() if kind in ("", "recipe") else {}
    found = [c for c in registry.components() if c.name == short and kind in ("", c.kind)]
    if not found and short not in recipes:
        raise UserError(_unknown(kind, short, registry, recipes))
    shown: list[dict[str, Any]] = []
    if short in recipes:
        shown.append({"kind": "recipe", **asdict(recipes[short])})
    shown += [_described(registry, component) for component in found]
    if as_json:
        click.echo(json.dumps(shown, indent=2, default=str))
        return
    click.echo("\n\n".join(_page(each) for each in shown))


@click.command("plugins", cls=Command)
@plugin_option
@json_option
def plugins_command(plugins: tuple[Path, ...], as_json: bool) -> None:
    """List who offers components, and which are broken.

    Every component is imported to find out. Exit code 1 if one is broken; one that needs an extra
    that is not installed is listed, but is not.

    Examples:
      flowzoo plugins
      flowzoo plugins --plugin my_idea.py --json
    """
    registry = Registry.installed().with_files(plugins)
    from flowzoo.hooks import hook_failures

    rows = [asdict(component) for component in registry.load_all()]
    rows += [asdict(component) for component in hook_failures(registry)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for origin in dict.fromkeys(row["origin"] for row in rows):
            mine = [row for row in rows if row["origin"] == origin]
            found = {state: [r for r in mine if r["state"] in states] for state, states in _STATES}
            counts = [f"{len(rows)} {state}" for state, rows in found.items() if state != "missing"]
            counts += [f"{len(found['missing'])} missing"] * bool(found["missing"])
            click.echo(f"{origin}: {', '.join(counts)}")
            for row in (*found["broken"], *found["missing"]):
                said = f"  {row['kind']}/{row['name']} ({row['state']}): {row['error']}"
                click.echo(_filled(said, 4))
    if any(row["state"] in ("broken", "clash") for row in rows):
        raise SystemExit(1)


_STATES = (("ok", ("ok",)), ("broken", ("broken", "clash")), ("missing", ("missing",)))


def _row(component: Component, registry: Registry) -> dict[str, str]:
    return {
        "kind": component.kind,
        "name": component.name,
        "about": summary(component, registry.loaded(component)),
        "origin": component.origin,
        "state": component.state,
        "error": component.error or "",
    }


def _recipe_row(recipe: Recipe) -> dict[str, str]:
    origin = Path(recipe.source).name
    return {"kind": "recipe", "name": recipe.name, "about": recipe.title, "origin": origin,
            "state": "ok", "error": ""}  # fmt: skip


def _unknown(kind: str, name: str, registry: Registry, recipes: dict[str, Recipe]) -> str:
    """Return the sentence for a name that nothing has."""
    if kind:
        known = [*recipes] if kind == "recipe" else registry.names(kind)
        return f"unknown {kind} '{name}'{suggest(name, known)}"
    close = difflib.get_close_matches(name, [*recipes, *(c.name for c in registry.components())], 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown name '{name}'; {hint}`flowzoo list` shows all names"


def _name(row: dict[str, Any], origin: bool = True) -> str:
    """Return a row's name, with its state where that is not ok and its origin where foreign."""
    strange = origin and not row["origin"].startswith(("flowzoo ", "registry.yaml"))
    marks = [row["state"]] * (row["state"] != "ok") + [row["origin"]] * strange
    return f"{row['name']} ({', '.join(marks)})" if marks else row["name"]


def _paragraph(head: str, text: str, width: int = 14) -> str:
    return _filled(f"{head:<{width}} {text}", width + 1)


def _filled(text: str, indent: int) -> str:
    """Return a paragraph as wide as the terminal, but no wider than one likes to read."""
    wide = min(shutil.get_terminal_size().columns, 100)
    lines = textwrap.wrap(text, wide, subsequent_indent=" " * indent, break_on_hyphens=False)
    return "\n".join(lines)


def summary(component: Component, cls: type | None = None) -> str:
    """Return the first line of a component's docstring; from its source where it is not loaded."""
    from flowzoo.registry.source import parse

    if cls is not None:
        return (inspect.getdoc(cls) or "").partition("\n")[0]
    module, _, name = component.target.rpartition(":")
    parsed = parse(module)
    node = parsed.nodes.get(name) if parsed else None
    doc = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
    return (doc or "").partition("\n")[0]


def _described(registry: Registry, component: Component) -> dict[str, Any]:
    from flowzoo.build import describe
    from flowzoo.registry.reader import SUPPLIED

    cls = registry.load(component.kind, component.name)
    given = SUPPLIED if component.kind != "dataset" else ()
    return {
        "kind": component.kind,
        "name": component.name,
        "origin": component.origin,
        "target": component.target,
        "about": inspect.getdoc(cls) or "",
        "options": [
            {
                "name": o.name,
                "type": o.type,
                "default": "from the data" if o.name in given else o.default_text,
                "about": o.help,
            }
            for o in describe(cls)
        ],
    }


def _page(shown: dict[str, Any]) -> str:
    if shown["kind"] == "recipe":
        import yaml

        body = {k: v for k, v in shown.items() if k not in ("kind", "name", "source") and v}
        text = yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=78)
        return f"recipe {shown['name']}\n\n{text.rstrip()}"
    head = f"{shown['kind']} {shown['name']}   [{shown['origin']}, {shown['target']}]"
    return f"{head}\n\n{shown['about']}\n\n" + _options(shown["options"])


def _options(options: list[dict[str, Any]]) -> str:
    if not options:
        return "No options."
    from tabulate import tabulate

    rows = [[o["name"], o["type"], o["default"]] for o in options]
    return tabulate(rows, ["option", "type", "default"], tablefmt="simple", disable_numparse=True)
