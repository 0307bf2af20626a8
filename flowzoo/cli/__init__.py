"""The command `flowzoo`.

Commands are imported when they run, and they import torch only when they compute: `--help`, `list`
and `plan` answer at once. Exit codes: 0 done; 1 done, but some cells failed; 2 what was asked for
is wrong (one sentence on stderr says what); 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

import click

from flowzoo.cli.options import keep_examples
from flowzoo.errors import FlowzooError, UserError

COMMANDS = {
    "list": "components",
    "show": "components",
    "plugins": "components",
    "plan": "matrices",
    "run": "matrices",
    "status": "matrices",
    "table": "matrices",
    "draw": "matrices",
    "fit": "fit",
    "import": "imports",
    "sample": "flows",
    "score": "flows",
    "check": "check",
}


class Commands(click.Group):
    """A group whose commands are imported one by one, and which takes more from plugins."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = keep_examples(self.help)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the built-in commands, then those of plugins."""
        return [*COMMANDS, *sorted(_extra())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None where there is no such name."""
        if cmd_name in COMMANDS:
            module = importlib.import_module(f"flowzoo.cli.{COMMANDS[cmd_name]}")
            return getattr(module, f"{cmd_name}_command")
        return _extra().get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that was asked for; an unknown one gets a suggestion."""
        if self.get_command(ctx, args[0]) is None:
            from flowzoo.registry import suggest

            names = self.list_commands(ctx)
            raise UserError(f"unknown command '{args[0]}'{suggest(args[0], names, 'commands')}")
        return super().resolve_command(ctx, args)


def _extra() -> dict[str, click.Command]:
    """Return the commands of plugins; one that cannot say its commands has none."""
    from flowzoo.registry.component import HOOKS, entry_points

    if not any(entry_points(HOOKS)):
        return {}
    from flowzoo.hooks import plugin_manager
    from flowzoo.registry import Registry

    found = plugin_manager(Registry.installed()).notify("flowzoo_commands")
    return {str(command.name): command for commands in found for command in commands}


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.version_option(package_name="flowzoo")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Compare flow-based generative models honestly.

    Examples:
      flowzoo list                              what there is
      flowzoo show ot-flow                      a recipe or component, its options
      flowzoo plan benchmarks/quickstart.yaml   what a matrix would run
      flowzoo run benchmarks/quickstart.yaml    run it; run again, it goes on
      flowzoo table runs/quickstart             the comparison table
      flowzoo fit ot-flow moons --out my-flow   train one flow
      flowzoo check ot-flow                     does a component keep its promises?
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command; print what went wrong in one sentence and exit with a code that says who."""
    try:
        code = cli.main(prog_name="flowzoo", standalone_mode=False)
    except click.ClickException as error:
        _refuse(_sentence(error))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except FlowzooError as error:
        _refuse(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _refuse(f"cannot use {error.filename}: {error.strerror}" if error.filename else str(error))
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _refuse(said: str) -> NoReturn:
    """Print what is wrong, one line for each thing, and exit."""
    for line in said.splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(2)


def _sentence(error: click.ClickException) -> str:
    """Return what click says of wrong arguments, with where to read about them."""
    context = getattr(error, "ctx", None)
    said = " ".join(error.format_message().split())
    return f"{said.rstrip('.')}; see {context.command_path} --help" if context else said
