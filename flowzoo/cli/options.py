"""What several commands share: options, help with examples, data specs, measures as text."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from flowzoo.errors import UserError

plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A Python file whose flowzoo_components() offers more components; may be repeated.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
METRICS = ("nll", "kl", "transport", "inverse-error")  # what a single flow is judged by
FILES = (".csv", ".npy", ".npz", ".parquet")
seed_type = click.IntRange(min=0)
count_type = click.IntRange(min=1)


class Command(click.Command):
    """A command whose docstring ends with examples, one a line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = keep_examples(self.help)


def keep_examples(text: str | None) -> str:
    """Return a help text in which click does not fill the paragraph of examples."""
    return inspect.cleandoc(text or "").replace("\n\nExamples:\n", "\n\n\b\nExamples:\n")


def data_spec(text: str) -> Any:
    """Return a spec written in YAML, a file's spec, or a data set's name."""
    if text.lstrip().startswith("{"):
        return parsed(text, "DATA")
    if text.lower().endswith(FILES):
        return {"name": "file", "path": str(Path(text).expanduser().resolve())}
    return text


def parsed(text: str, source: str) -> Any:
    """Return a value written in YAML; errors call it `source`."""
    from flowzoo.registry.yamlfile import parse_yaml

    return parse_yaml(text.encode(), source)


def change(text: str, example: str) -> tuple[str, Any]:
    """Return key and value of one `--set KEY=VALUE`.

    Raises:
        UserError: It has no such form; the sentence shows the example.
    """
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise UserError(f"--set {text}: expected KEY=VALUE, e.g. {example}")
    return key.strip(), parsed(value, f"--set {key.strip()}")


def lines(measures: dict[str, dict[str, Any]], parts: bool = False) -> str:
    """Return measures as text, one a line: name, value, error, unit, note.

    Arguments:
        measures: Measures by name.
        parts: Whether to put below each what its error is made of.
    """
    from tabulate import tabulate

    rows = []
    for name, m in measures.items():
        error = "" if m["error"] is None else f"± {m['error']:.2g}"
        rows.append([name, f"{m['value']:.5g}", error, m["unit"], m["note"]])
        rows += [["", f"{v:.3g}", "", "", part] for part, v in m["parts"].items() if parts]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)
