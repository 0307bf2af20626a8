"""The command `flowzoo`.

Commands are imported when they run, and they import torch only when they compute: `--help`, `list`
and `plan` answer at once. Exit codes: 0 done; 1 done, but some cells failed; 2 what was asked for
is wrong (one sentence on stderr says what); 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys

import click

from flowzoo.errors import FlowzooError

COMMANDS = {
    "list": "components",
    "show": "components",
    "plugins": "components",
    "plan": "matrices",
    "run": "matrices",
    "status": "matrices",
    "table": "matrices",
    "draw": "matrices",
    "fit": "flows",
    "sample": "flows",
    "score": "flows",
}


class Commands(click.Group):
    """A group whose commands are imported one by one, and which takes more from plugins."""

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
            raise click.UsageError(f"unknown command '{args[0]}'{suggest(args[0], names)}")
        return super().resolve_command(ctx, args)


def _extra() -> dict[str, click.Command]:
    from flowzoo.registry.component import HOOKS, entry_points

    if not any(entry_points(HOOKS)):
        return {}
    from flowzoo.hooks import plugin_manager
    from flowzoo.registry import Registry

    found = plugin_manager(Registry.installed()).hook.flowzoo_commands()
    return {str(command.name): command for commands in found for command in commands}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flowzoo")
def cli() -> None:
    r"""Compare flow-based generative models honestly.

    \b
    Examples:
      flowzoo list                              what there is
      flowzoo show ot-flow                      a recipe or a component, with its options
      flowzoo plan benchmarks/quickstart.yaml   what a matrix would run
      flowzoo run benchmarks/quickstart.yaml    run it; the same command resumes it
      flowzoo table runs/quickstart             the comparison table
      flowzoo fit ot-flow moons --out my-flow   train one flow
    """


def main() -> None:
    """Run the command; print what went wrong in one sentence and exit with a code that says who."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except FlowzooError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
