"""The command `check`: does a component keep its promises?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowzoo.cli.options import Command, count_type, json_option, plugin_option

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress
    from rich.text import Text

    from flowzoo.conformance.report import Result
    from flowzoo.conformance.workers import Heading, Session

_COLOURS = {"pass": "green", "fail": "red", "unexpected": "red", "skip": "dim"}
_SLOW = 1.0  # seconds from which on a check's duration is shown


@click.command("check", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Check everything that is installed.")
@click.option("--kind", help="Only components of one kind; without a NAME all of them.")
@click.option("--check", "only", multiple=True, metavar="CHECK",
              help="Run only this check; may be repeated.")  # fmt: skip
@plugin_option
@click.option("--jobs", "-j", type=count_type,
              help="Processes at a time [one a component, at most one a core].")  # fmt: skip
@click.option("--list", "listed", is_flag=True, help="List the checks instead of running them.")
@click.option("--badge", "as_badge", is_flag=True, help="Print a badge for a README, in Markdown.")
@click.option("--verbose", "-v", is_flag=True, help="Print every check, however many there are.")
@json_option
def check_command(
    names: tuple[str, ...],
    everything: bool,
    kind: str | None,
    only: tuple[str, ...],
    plugins: tuple[Path, ...],
    jobs: int | None,
    listed: bool,
    as_badge: bool,
    verbose: bool,
    as_json: bool,
) -> int:
    """Check that components keep their promises.

    NAME is a component, a recipe, whose flow is checked, or KIND/NAME. Exit code 1 if a check
    failed, or if a failure that a component declares did not happen.

    Examples:
      flowzoo check hutchinson
      flowzoo check recipe/ot-flow --check ladj
      flowzoo check my-trace --plugin my_idea.py
      flowzoo check --kind integrator
      flowzoo check --list --kind flow
      flowzoo check --all --json
    """
    from flowzoo.conformance.report import badge
    from flowzoo.conformance.workers import Request, Session

    if not (names or everything or kind or listed):
        raise click.UsageError("name what to check, or say --all")
    if names and everything:
        raise click.UsageError("--all checks everything; leave out the names, or --all")
    if as_json and as_badge:
        raise click.UsageError("--json and --badge print different things; leave one of them out")
    request = Request(names, kind, only, tuple(str(path.resolve()) for path in plugins))
    with Session(request) as session:
        if listed:
            _list(session.headings, as_json)
            return 0
        results = _run(session, jobs)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    elif as_badge:
        click.echo(badge(results))
    else:
        _report(results, tables=verbose or bool(names))
    return int(any(result.bad for result in results))


def _run(session: Session, jobs: int | None) -> list[Result]:
    """Return the results of all checks in order, with a bar on a terminal meanwhile."""
    from rich.console import Console

    found: dict[int, Result] = {}
    console = Console(stderr=True)
    bar = _bar(console) if console.is_terminal else None
    with bar or nullcontext():
        task = bar.add_task("checks", total=len(session.headings), said="") if bar else None
        for number, result in session.results(jobs):
            found[number] = result
            if bar and task is not None:
                bar.update(task, advance=1, said=f"{result.name} {result.check}")
    return [found[number] for number in sorted(found)]


def _bar(console: Any) -> Progress:
    """Return a bar that goes away when it ends."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}", markup=False, table_column=rest),
        TimeElapsedColumn(),
        console=console,
        expand=True,
        transient=True,
    )


def _report(results: Sequence[Result], tables: bool) -> None:
    """Print a table or a line for each component, then what failed in full, then the tally."""
    from flowzoo.conformance.report import tally

    names = list(dict.fromkeys(result.name for result in results))
    for name in names:
        mine = [result for result in results if result.name == name]
        if tables:
            _print(_table(mine))
        click.echo(f"{name}: {tally(mine)}" + "\n" * tables)
    for result in results:
        if result.bad:
            _print(_failure(result))
    if len(names) > 1:
        click.echo(f"{len(names)} components: {tally(results)}")


def _table(results: Iterable[Result]) -> RenderableType:
    """Return one component's checks as a table: check, outcome, what was measured."""
    from rich.text import Text

    rows = []
    for result in results:
        slow = f" ({result.seconds:.1f} s)" if result.seconds >= _SLOW else ""
        outcome = Text(result.outcome, _COLOURS.get(result.outcome, "yellow"))
        rows.append([result.check, outcome, result.detail + slow])
    return _grid(rows)


def _grid(rows: Sequence[Sequence[str | Text]]) -> RenderableType:
    """Return rows below each other, the last column wrapped; nothing in them is markup."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for _ in rows[0][:-1]:
        grid.add_column(no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return grid


def _failure(result: Result) -> RenderableType:
    """Return all that is known of a failure."""
    from rich.text import Text

    trace = f"\n{result.traceback.rstrip()}" if result.traceback else ""
    return Text.assemble(
        (f"{result.name} {result.check}: ", "bold"),
        (f"{result.detail}\n", "red"),
        f"promised: {result.about}{trace}\n",
    )


def _list(headings: Sequence[Heading], as_json: bool) -> None:
    """Print the checks of each kind, those of every kind first."""
    from flowzoo.conformance.check import ANY

    found = {(h.scope, h.check): h.about for h in headings}
    scopes = sorted({scope for scope, _ in found}, key=lambda scope: (scope != ANY, scope))
    rows = [
        {"kind": scope, "check": check, "about": about}
        for each in scopes
        for (scope, check), about in found.items()
        if scope == each
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for scope in scopes:
        click.echo("every kind" if scope == ANY else scope)
        _print(_grid([[row["check"], row["about"]] for row in rows if row["kind"] == scope]))
        click.echo()


def _print(shown: RenderableType) -> None:
    """Print as wide as the terminal, but no wider than one likes to read; 100 in a file."""
    from rich.console import Console

    console = Console()
    console.width = min(console.width, 120) if console.is_terminal else 100
    with console.capture() as captured:
        console.print(shown)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
