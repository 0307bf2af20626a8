"""Commands that say what there is: `list`, `show`, `plugins`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from flowzoo.cli.options import json_option, plugin_option
from flowzoo.recipes import Recipe, load_recipes
from flowzoo.registry import Component, Registry, suggest


@click.command("list")
@click.argument("kind", required=False)
@plugin_option
@json_option
def list_command(kind: str | None, plugins: tuple[Path, ...], as_json: bool) -> None:
    r"""List the components, or those of one KIND; `recipe` lists the recipes.

    \b
    Examples:
      flowzoo list
      flowzoo list trace
      flowzoo list recipe
      flowzoo list dataset --json
    """
    registry = Registry.installed().with_files(plugins) if plugins else Registry.installed()
    kinds = [*registry.kinds(), "recipe"]
    if kind is not None and kind not in kinds:
        raise click.UsageError(f"unknown kind '{kind}'{suggest(kind, kinds)}")
    rows = [] if kind == "recipe" else [_row(c) for c in registry.components(kind)]
    if kind in (None, "recipe"):
        rows += [_recipe_row(recipe) for recipe in load_recipes().values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif kind is None:
        for each in kinds:
            names = ", ".join(row["name"] + _mark(row) for row in rows if row["kind"] == each)
            click.echo(_paragraph(each, names))
    else:
        for row in rows:
            about = row["error"] or row["about"]
            click.echo(_paragraph(row["name"] + _mark(row), f"{about} [{row['origin']}]", 24))


@click.command("show")
@click.argument("name")
@plugin_option
@json_option
def show_command(name: str, plugins: tuple[Path, ...], as_json: bool) -> None:
    r"""Show a recipe or a component by NAME, or one as KIND/NAME.

    \b
    Examples:
      flowzoo show ot-flow
      flowzoo show trace/hutchinson
      flowzoo show moons
    """
    registry = Registry.installed().with_files(plugins) if plugins else Registry.installed()
    kind, _, short = name.rpartition("/")
    recipes = load_recipes() if kind in ("", "recipe") else {}
    found = [c for c in registry.components() if c.name == short and kind in ("", c.kind)]
    if not found and short not in recipes:
        names = sorted({*recipes, *(c.name for c in registry.components())})
        raise click.UsageError(f"unknown name '{name}'{suggest(short, names)}")
    shown: list[dict[str, Any]] = []
    if short in recipes:
        shown.append({"kind": "recipe", **asdict(recipes[short])})
    shown += [_described(registry, component) for component in found]
    if as_json:
        click.echo(json.dumps(shown, indent=2, default=str))
        return
    click.echo("\n\n".join(_page(each) for each in shown))


@click.command("plugins")
@plugin_option
@json_option
def plugins_command(plugins: tuple[Path, ...], as_json: bool) -> None:
    r"""List the packages and files that offer components, and which of them are broken.

    Every component is imported to find out. Exit code 1 if one is broken.

    \b
    Examples:
      flowzoo plugins
      flowzoo plugins --plugin my_idea.py --json
    """
    registry = Registry.installed().with_files(plugins) if plugins else Registry.installed()
    from flowzoo.hooks import hook_failures

    rows = [asdict(component) for component in registry.load_all()]
    rows += [asdict(component) for component in hook_failures(registry)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for origin in dict.fromkeys(row["origin"] for row in rows):
            mine = [row for row in rows if row["origin"] == origin]
            bad = [row for row in mine if row["state"] != "ok"]
            click.echo(f"{origin}: {len(mine)} components, {len(bad)} broken")
            for row in bad:
                click.echo(f"  {row['kind']}/{row['name']} ({row['state']}): {row['error']}")
    if any(row["state"] != "ok" for row in rows):
        raise SystemExit(1)


def _row(component: Component) -> dict[str, str]:
    return {
        "kind": component.kind,
        "name": component.name,
        "about": summary(component),
        "origin": component.origin,
        "state": component.state,
        "error": component.error or "",
    }


def _recipe_row(recipe: Recipe) -> dict[str, str]:
    origin = Path(recipe.source).name
    return {"kind": "recipe", "name": recipe.name, "about": recipe.title, "origin": origin,
            "state": "ok", "error": ""}  # fmt: skip


def _mark(row: dict[str, Any]) -> str:
    return "" if row["state"] == "ok" else f" ({row['state']})"


def _paragraph(head: str, text: str, width: int = 14) -> str:
    return click.wrap_text(f"{head:<{width}} {text}", 100, "", " " * (width + 1))


def summary(component: Component) -> str:
    """Return the first line of a component's docstring, read from its source without importing."""
    import ast

    from flowzoo.registry.source import parse

    module, _, name = component.target.rpartition(":")
    parsed = parse(module)
    node = parsed.nodes.get(name) if parsed else None
    doc = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
    return doc.splitlines()[0] if doc else ""


def _described(registry: Registry, component: Component) -> dict[str, Any]:
    from flowzoo.build import describe

    cls = registry.load(component.kind, component.name)
    import inspect

    return {
        "kind": component.kind,
        "name": component.name,
        "origin": component.origin,
        "target": component.target,
        "about": inspect.getdoc(cls) or "",
        "options": [
            {"name": o.name, "type": o.type, "default": o.default_text, "about": o.help}
            for o in describe(cls)
        ],
    }


def _page(shown: dict[str, Any]) -> str:
    if shown["kind"] == "recipe":
        import yaml

        body = {k: v for k, v in shown.items() if k not in ("kind", "name", "source") and v}
        return f"recipe {shown['name']}\n\n" + yaml.safe_dump(body, sort_keys=False, width=96)
    head = f"{shown['kind']} {shown['name']}   [{shown['origin']}, {shown['target']}]"
    return f"{head}\n\n{shown['about']}\n\n" + _options(shown["options"])


def _options(options: list[dict[str, Any]]) -> str:
    if not options:
        return "No options."
    from tabulate import tabulate

    rows = [[o["name"], o["type"], o["default"]] for o in options]
    return tabulate(rows, ["option", "type", "default"], tablefmt="simple", disable_numparse=True)
