"""A process that checks: `python -m flowzoo.conformance.worker REQUEST`, with JSON both ways.

It writes one line with the list of cases, then reads their numbers and answers each with a result.
It talks over copies of its standard streams, so that nothing that a component prints, and no
process that it starts, disturbs the talk. When its input ends, so does it, whatever it is doing:
nothing outlives the command, however that was ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from queue import SimpleQueue
from threading import Thread
from typing import Any, TextIO

from flowzoo.errors import FlowzooError


def main() -> None:
    """Serve until the input ends."""
    listen, talk = _streams()
    from flowzoo.conformance.runner import run

    try:
        found = _cases(json.loads(sys.argv[1]))
    except FlowzooError as error:
        _say(talk, {"error": str(error)})
        return
    _say(talk, {"cases": [_heading(case) for case in found]})
    for number in _asked(listen):
        case = found[number]
        _say(talk, asdict(run(case.specimen, case.check)))


def _asked(listen: TextIO) -> Iterator[int]:
    """Yield numbers of cases as they are asked for; the end of the input ends the process."""
    numbers: SimpleQueue[int] = SimpleQueue()

    def read() -> None:
        for line in listen:
            numbers.put(int(line))
        os._exit(0)  # a check may be running, and may never end

    Thread(target=read, daemon=True).start()
    while True:
        yield numbers.get()


def _cases(request: dict[str, Any]) -> list[Any]:
    """Return the cases of a `workers.Request`."""
    from flowzoo.conformance.finding import cases, specimens
    from flowzoo.registry import Registry

    registry = Registry.installed().with_files(request["plugins"])
    found = specimens(request["names"], registry, request["kind"])
    return cases(found, request["only"])


def _heading(case: Any) -> list[str]:
    """Return the arguments of a `workers.Heading`."""
    specimen, check = case.specimen, case.check
    return [specimen.kind, specimen.name, check.name, check.about, check.kind]


def _streams() -> tuple[TextIO, TextIO]:
    """Return copies of the standard streams, and put nothing and stderr in their places."""
    listen, talk = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return listen, talk


def _say(talk: TextIO, value: object) -> None:
    print(json.dumps(value), file=talk, flush=True)


if __name__ == "__main__":
    main()
