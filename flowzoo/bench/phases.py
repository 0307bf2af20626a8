"""The phases of a cell: data, flow, fit, judge; a fit that is stored is not done again."""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowzoo.bench.cells import Cell
from flowzoo.bench.environment import environment, peak_memory
from flowzoo.bench.files import read_json, write_brief, write_json
from flowzoo.bench.store import CHECKPOINT, CODE, PROGRESS, discard
from flowzoo.bench.trained import flow_facts, load_trained, save_flow
from flowzoo.build import build, build_dataclass
from flowzoo.data import Data, Dataset, Standardisation, standardised
from flowzoo.data.dataset import checksum
from flowzoo.errors import UserError
from flowzoo.flow import Flow
from flowzoo.judge import evaluate
from flowzoo.objective import Batch, Objective
from flowzoo.registry import Registry
from flowzoo.settings import Budget, Training
from flowzoo.training import Fitted, Progress, fit

Observe = Callable[[Progress], None]
_EVERY = 0.5  # seconds between two notes of progress


@dataclass
class _Work:
    """What the phases of one cell share."""

    cell: Cell
    folder: Path
    device: str
    registry: Registry
    facts: dict[str, Any]
    observe: Observe | None


def run_phases(
    cell: Cell, folder: Path, device: str, facts: dict[str, Any], observe: Observe | None = None
) -> None:
    """Run a cell, noting in `facts`, as it goes, what its record is to hold.

    Arguments:
        cell: The cell.
        folder: The cell's folder.
        device: Where to compute.
        facts: Fields of `Record`, filled in place, so that a failure keeps those before it.
        observe: Told where the fit stands.

    Raises:
        Incompatible, Diverged, UserError: What they say.
    """
    _settle(cell, device)
    work = _Work(cell, folder, device, cell.registry(), facts, observe)
    facts["environment"] = environment(device)
    facts["code"] = cell.code(work.registry)
    dataset: Dataset = build("dataset", cell.dataset, work.registry)
    raw = dataset.load()
    data, scale = standardised(raw) if dataset.standardise else (raw, None)
    facts["dataset"] = _described(cell, dataset, raw, scale)
    facts["reference"] = {
        "entropy": raw.entropy,
        "entropy_error": raw.entropy_error,
        "gaussian": gaussian_nll(raw.train, raw.test),
    }
    _same_code(folder, facts)
    flow = _fitted(work, data, scale)
    _judged(work, flow, data, scale)


def _settle(cell: Cell, device: str) -> None:
    """Set threads, device and seeds of this process."""
    # Optimizers import torch's compiler when first used: seconds that are not a fit's.
    importlib.import_module("torch._dynamo")
    torch.set_num_threads(cell.resources.threads)
    with contextlib.suppress(RuntimeError):  # only before any parallel work, so once a process
        torch.set_num_interop_threads(cell.resources.threads)
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.reset_peak_memory_stats()
    random.seed(cell.seed)
    np.random.seed(cell.seed % 2**32)  # noqa: NPY002 (for components that use the global state)
    torch.manual_seed(cell.seed)


def _described(
    cell: Cell, dataset: Dataset, data: Data, scale: Standardisation | None
) -> dict[str, Any]:
    files = {}
    for file in map(Path.resolve, dataset.files()):
        stat = file.stat()
        files[str(file)] = {
            "size": stat.st_size, "mtime": stat.st_mtime_ns, "sha256": checksum(file)
        }  # fmt: skip
    return {
        "spec": cell.dataset,
        "name": data.name,
        "title": data.title,
        "notes": data.notes,
        "dim": data.dim,
        "rows": [len(data.train), len(data.val), len(data.test)],
        "standardised": None
        if scale is None
        else {"mean": scale.mean.tolist(), "std": scale.std.tolist(), "ladj": scale.ladj},
        "fingerprint": dataset.fingerprint(),
        "files": files,
    }


def _same_code(folder: Path, facts: dict[str, Any]) -> None:
    """Throw away checkpoints and weights that other code or other data made."""
    now = {"code": facts["code"], "data": facts["dataset"]["fingerprint"]}
    if read_json(folder / CODE) != now:
        discard(folder)
        write_json(folder / CODE, now)


def _fitted(work: _Work, data: Data, scale: Standardisation | None) -> Flow:
    """Return the trained flow: the stored one where there is one, else a new one, then stored."""
    cell = work.cell
    if (known := flow_facts(work.folder)) is not None:
        with contextlib.suppress(UserError):  # damaged or of another composition: fit anew
            flow = load_trained(work.folder, work.device).flow
            work.facts["costs"] = known["costs"]
            work.facts["stages"] = known.get("stages", [])  # imported weights have none
            return flow
    context = 0 if data.train_context is None else data.train_context.shape[1]
    flow: Flow = build("flow", cell.flow_spec, work.registry, dim=data.dim, context_dim=context)
    objective: Objective = build("objective", cell.objective, work.registry)
    objective.check(flow)
    fitted = fit(
        flow,
        objective,
        Batch(data.train, data.train_context),
        Batch(data.val, data.val_context) if len(data.val) else None,
        budget=build_dataclass(Budget, cell.budget, "budget"),
        training=build_dataclass(Training, cell.training, "training"),
        seed=cell.seed,
        device=work.device,
        folder=work.folder,
        checkpoint_every=cell.resources.checkpoint_seconds,
        observe=_observer(work),
    )
    made = {"costs": _costs(fitted, work.device), "stages": fitted.stages}
    work.facts.update(made)
    save_flow(work.folder, fitted.flow, scale, made)
    (work.folder / CHECKPOINT).unlink(missing_ok=True)  # the weights are safe without it
    return fitted.flow


def _costs(fitted: Fitted, device: str) -> dict[str, Any]:
    names = ("steps", "samples", "nfe_forward", "nfe_backward", "stopped", "best_step",
             "best_validation")  # fmt: skip
    return {
        "train_seconds": fitted.seconds,
        **{name: getattr(fitted, name) for name in names},
        "parameters": sum(p.numel() for p in fitted.flow.in_use()),
        **_memory(device),
    }


def _memory(device: str) -> dict[str, int]:
    found = {"peak_memory": peak_memory()}
    if torch.device(device).type == "cuda":
        found["peak_gpu_memory"] = torch.cuda.max_memory_allocated()
    return found


def _observer(work: _Work) -> Callable[[Progress], None]:
    """Return what a fit reports to: the listeners, and now and then the file of its progress."""
    last = 0.0

    def observe(progress: Progress) -> None:
        nonlocal last
        if work.observe is not None:
            work.observe(progress)
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            _note(work.folder, {"phase": "train", **asdict(progress)})

    return observe


def _note(folder: Path, progress: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a progress bar is not worth a cell
        write_brief(folder / PROGRESS, json.loads(json.dumps(progress, default=str)))


def _judged(work: _Work, flow: Flow, data: Data, scale: Standardisation | None) -> None:
    """Score the flow and note its measures."""
    _note(work.folder, {"phase": "judge"})
    metrics = [build("metric", metric, work.registry) for metric in work.cell.metrics]
    started = time.perf_counter()
    cell = work.cell
    measures = evaluate(flow, data, scale, metrics, work.device, cell.seed, cell.judge.tolerance)
    costs = work.facts["costs"]
    costs["evaluate_seconds"] = time.perf_counter() - started
    memory = _memory(work.device)
    costs.update({name: max(amount, costs.get(name) or 0) for name, amount in memory.items()})
    work.facts["metrics"] = {name: asdict(measure) for name, measure in measures.items()}


def gaussian_nll(train: Tensor, test: Tensor) -> float | None:
    """Return the mean NLL of test rows under one Gaussian fitted to training rows, in nats.

    Maximum likelihood, full covariance (ddof 0), as MAF's Table 1 has it (Papamakarios, Pavlakou &
    Murray 2017); None where the covariance is singular.

    Arguments:
        train: Rows (n, d).
        test: Rows (m, d).
    """
    train, test = train.double(), test.double()
    mean = train.mean(0)
    covariance = (train - mean).mT @ (train - mean) / len(train)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed.item():
        return None
    density = torch.distributions.MultivariateNormal(mean, scale_tril=factor, validate_args=False)
    nll = -float(density.log_prob(test).mean())
    return nll if np.isfinite(nll) else None
