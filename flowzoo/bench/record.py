"""What is known of one cell: the unit that tables and reports read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from flowzoo.bench.cells import Cell

State = Literal[
    "ok",
    "diverged",
    "failed",
    "timeout",
    "out-of-memory",
    "killed",
    "skipped",
    "not-run",
    "running",
]
STATES: tuple[str, ...] = get_args(State)
MISSING = ("not-run", "killed")  # what running the same command again does
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """A cell with its state and, once it ran, everything that was measured.

    Arguments:
        flow: The flow's label in the matrix.
        data: The data's label.
        seed: The seed.
        swap: Which parts were replaced, e.g. `trace=hutchinson`; empty for none.
        key: Hash of everything that determines the result.
        folder: Name of the cell's folder inside its run.
        title: What the recipe is called in a table.
        state: How it ended, or that it did not.
        reason: Why it is not `ok`, in one sentence.
        traceback: The whole traceback of a failure.
        metrics: Measures by name: value, error, unit, better, parts, note.
        reference: What the numbers are compared with, in nats: `entropy`, `gaussian`.
        costs: Seconds, steps, evaluations of the field, parameters, bytes of memory.
        stages: What each stage of the fit took, with what it found (JKO-iFlow: of its block).
        composition: The resolved recipe: flow, objective, training, budget.
        dataset: The spec, the sizes, the preprocessing, the fingerprint and the files it came from.
        environment: Versions, device, threads, revision.
        code: Fingerprints of the components and of the frame.
        started: When the cell's process began, ISO 8601 in UTC.
        finished: When it ended.
        stale: What has changed since; worked out when the record is read, never stored.
    """

    flow: str
    data: str
    seed: int
    swap: str = ""
    key: str = ""
    folder: str = ""
    title: str = ""
    state: State = "not-run"
    reason: str = ""
    traceback: str = ""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference: dict[str, float | None] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    composition: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    stale: tuple[str, ...] = ()

    @classmethod
    def of(cls, cell: Cell, state: State = "not-run", reason: str = "") -> Record:
        """Return what is known of a cell before it ran."""
        return cls(
            flow=cell.flow,
            data=cell.data,
            seed=cell.seed,
            swap=cell.swap,
            key=cell.key,
            folder=cell.folder,
            title=cell.title,
            state=state,
            reason=reason,
            composition=cell.composition,
            dataset={"spec": cell.dataset},
        )

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Record:
        """Return a record as `to_mapping` wrote it.

        Raises:
            ValueError: It is no record, or its state is unknown.
        """
        if not isinstance(content, Mapping):
            raise ValueError("it holds no mapping")
        names = {f.name for f in dataclasses.fields(cls)} - {"stale"}
        given = {name: value for name, value in content.items() if name in names}
        if not {"flow", "data", "seed", "state"} <= set(given) or given["state"] not in STATES:
            raise ValueError("it is no record of a cell")
        return cls(**given)

    def to_mapping(self) -> dict[str, Any]:
        """Return the record as plain data, as it is stored."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del content["stale"]
        return {"format": FORMAT, **content}

    @property
    def label(self) -> str:
        """The flow with what was swapped in it: `ot-flow [trace=hutchinson]`."""
        return f"{self.flow} [{self.swap}]" if self.swap else self.flow

    def with_stale(self, changes: tuple[str, ...]) -> Record:
        """Return the record marked with what has changed since."""
        return replace(self, stale=changes) if changes else self
