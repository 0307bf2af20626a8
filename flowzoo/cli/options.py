"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A Python file whose flowzoo_components() offers more components; may be repeated.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
