"""Runs: every way a cell can end, resuming after a kill, limits, several runners at once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_matrices import make
from rich.console import Console
from safetensors.torch import load_file

from flowzoo.bench import load_matrix, run
from flowzoo.bench.cell import run_cell
from flowzoo.bench.cells import read_cell
from flowzoo.bench.check import Checked
from flowzoo.bench.claims import held
from flowzoo.bench.files import DiskFull
from flowzoo.bench.launchers import Ended, Job, Launcher, Local, resident
from flowzoo.bench.observer import Observer
from flowzoo.bench.pictures import draw_run
from flowzoo.bench.progress import progress_text, watcher
from flowzoo.bench.quantities import plugin_columns
from flowzoo.bench.record import Record
from flowzoo.bench.resources import Resources
from flowzoo.bench.runner import RUNS, unrecorded, usable_devices
from flowzoo.bench.store import CURVE, FLOW, LOG, RECORD, Store, now, write_record
from flowzoo.bench.tables import table
from flowzoo.bench.trained import load_flow, load_trained
from flowzoo.data import standardised
from flowzoo.errors import UserError
from flowzoo.registry.reader import Problems

FATES = {
    "": "ok",
    "raise": "failed",
    "crash": "failed",
    "exit": "failed",
    "killed": "killed",
    "diverge": "diverged",
    "no-memory": "out-of-memory",
    "incompatible": "skipped",
}


class Diary(Observer):
    """Notes what it is told."""

    def __init__(self):
        self.started_, self.finished_, self.ended, self.said = [], [], [], []

    def started(self, cell):
        self.started_.append(cell.folder)

    def running(self, progress):
        self.said += [said for said in progress.values() if said]

    def finished(self, cell, record):
        self.finished_.append((cell.folder, record.state))

    def end(self, interrupted):
        self.ended.append(interrupted)


@pytest.fixture
def unchecked(monkeypatch):
    """Spare the process that checks a matrix whole."""
    monkeypatch.setattr("flowzoo.bench.runner.check", lambda matrix, datasets: Checked(0))


# Every way to end


@pytest.fixture(scope="module")
def fates(tmp_path_factory):
    """One run in which every cell meets another fate."""
    folder = tmp_path_factory.mktemp("fates")
    text = f"flows: [affine]\ndata: [blob]\nswap: {{fate: {json.dumps(list(FATES))}}}\n"
    path, diary = make(folder, text), Diary()
    heard = folder / "heard"
    os.environ["FAKES_HEARD"] = str(heard)
    try:
        records = run(load_matrix(path), folder / "run", jobs=3, device="cpu", observer=diary)
    finally:
        del os.environ["FAKES_HEARD"]
    by_fate = {record.swap.removeprefix("fate="): record for record in records}
    return path, Store(folder / "run"), by_fate, diary, heard.read_text().split("\n")


@pytest.mark.parametrize(("fate", "state"), FATES.items())
def test_each_fate_is_one_record_and_harms_no_other(fates, fate, state):
    _, store, records, diary, heard = fates
    record = records[fate]
    assert record.state == state
    assert (record.reason == "") == (state == "ok")
    assert (record.folder, state) in diary.finished_
    assert heard.count(f"affine {state}") == list(FATES.values()).count(state)
    stored = json.loads((store.folder / record.folder / RECORD).read_text())
    assert stored["state"] == state
    assert not held(store.folder / record.folder)


def test_failures_keep_their_traceback_and_say_what_happened(fates):
    _, store, records, _, _ = fates
    assert "RuntimeError: an odd thing happened" in records["raise"].reason
    assert 'raise RuntimeError("an odd thing happened")' in records["raise"].traceback
    assert "SIGSEGV" in records["crash"].reason
    assert "Segmentation fault" in (store.folder / records["crash"].folder / LOG).read_text()
    assert "code 3" in records["exit"].reason
    assert "SIGKILL" in records["killed"].reason
    assert records["diverge"].reason.endswith("the loss is nan at step 3")
    assert "this flow fits nothing" in records["incompatible"].reason
    assert records["incompatible"].traceback == records["diverge"].traceback == ""


def test_a_record_has_everything_one_needs_to_trust_it(fates):
    _, store, records, diary, _ = fates
    record = records[""]
    nll = record.metrics["nll"]
    assert nll["unit"] == "nats"
    assert nll["error"] > 0
    entropy = 2 * 2.112085713764618
    assert abs(record.reference["entropy"] - entropy) < 1e-12
    assert abs(nll["value"] - record.reference["gaussian"]) < 0.5
    assert record.costs["steps"] == 40
    assert record.costs["samples"] == 2000
    assert record.costs["parameters"] == 4
    assert record.costs["train_seconds"] > 0
    assert record.costs["evaluate_seconds"] > 0
    assert record.costs["peak_memory"] > 2**20
    assert record.environment["torch"] == torch.__version__
    assert record.environment["threads"] == 1
    assert record.environment["device"] == "cpu"
    assert record.composition["flow"]["name"] == "affine"
    assert record.composition["training"]["batch_size"] == 50
    assert record.dataset["rows"] == [200, 50, 50]
    assert set(record.dataset["standardised"]) == {"mean", "std", "ladj"}
    assert {"frame", "flow affine", "dataset blob", "metric nll"} <= set(record.code)
    assert record.started <= record.finished
    assert (store.folder / record.folder / CURVE).is_file()
    assert diary.ended == [False]


def test_the_same_command_does_only_what_is_missing(fates):
    path, store, _, _, _ = fates

    def seen():
        return {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}

    before, diary = seen(), Diary()
    run(load_matrix(path), store.folder, device="cpu", observer=diary)
    (again,) = diary.started_  # a kill is no result
    assert "fate=killed" in again
    after = seen()
    assert {p for p in after if after[p] != before.get(p)} == {
        p for p in after if p.parent.name == again and p.name in (LOG, RECORD, "record-1.json")
    }


def test_plugins_add_columns(fates):
    path, _, records, _, _ = fates
    extra = plugin_columns(load_matrix(path).registry)
    made = table([records[""]], columns="metric", extra=extra)
    assert made.columns[-1] == "steps per second"
    assert made.lines[0].entries[-1].summary.mean > 0


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_can_be_watched(fates, terminal):
    _, store, records, _, _ = fates
    cells = store.cells()
    console = Console(force_terminal=terminal, width=100, file=io.StringIO(), record=True)
    watching = watcher(console)
    watching.begin(cells, cells[:2])
    for cell, record in zip(cells, list(records.values())[:2], strict=False):
        watching.started(cell)
        said = {"phase": "train", "step": 7, "fraction": 0.5, "terms": {"nll": 1.5}}
        watching.running({cell: said, cells[1]: None})
        watching.finished(cell, record)
    watching.end(False)
    said = console.export_text()
    assert "affine [fate=] on blob, seed 0  ok, nll 4." in said
    assert "failed: RuntimeError: an odd thing happened" in said


def test_progress_in_words():
    assert progress_text({"phase": "judge"}) == "judging"
    said = {"phase": "train", "step": 7, "terms": {"nll": 1.5}, "validation": 2.25}
    assert progress_text(said) == "step 7  nll 1.5  val 2.25"


def test_cells_say_how_far_they_are(fates):
    _, _, _, diary, _ = fates
    assert {said["phase"] for said in diary.said} <= {"train", "judge"}
    assert diary.said


def test_every_state_is_in_the_table(fates):
    _, _, records, _, _ = fates
    made = table(list(records.values()))
    shown = {line.label: line.entries[0].state for line in made.lines if not line.reference}
    assert shown == {f"affine [fate={fate}]": state for fate, state in FATES.items()}
    reasons = " ".join(made.footnotes.values())
    assert all(r.reason in reasons for r in records.values())


def test_a_trained_flow_comes_back_in_the_coordinates_of_its_data(fates):
    path, store, records, _, _ = fates
    folder = store.folder / records[""].folder
    trained = load_trained(folder)
    cell = next(c for c in store.cells() if c.folder == folder.name)
    from flowzoo.build import build

    data = build("dataset", cell.dataset, load_matrix(path).registry).load()
    nll = -trained.log_prob(data.test).double().mean()
    assert float(nll) == pytest.approx(records[""].metrics["nll"]["value"], abs=1e-5)
    scaled, scale = standardised(data)
    same = load_flow(folder).log_prob(scaled.test.float()) + scale.ladj
    torch.testing.assert_close(same, trained.log_prob(data.test), rtol=1e-5, atol=1e-5)
    x = trained.sample(4000, generator=torch.Generator().manual_seed(0))
    assert (x.mean(0) - data.train.mean(0)).abs().max() < 0.2
    assert (x.std(0) / data.train.std(0) - 1).abs().max() < 0.2
    with pytest.raises(UserError, match="no trained flow"):
        load_flow(store.folder / records["raise"].folder)


def test_pictures_are_drawn(fates, tmp_path):
    _, store, _, _, _ = fates
    files = draw_run(store.folder, tmp_path)
    assert {f.name for f in files} == {
        f"{name}.{suffix}" for name in ("densities", "curves") for suffix in ("png", "pdf")
    }
    assert all(f.stat().st_size > 2000 for f in files)


# Limits


def test_limits_of_time_and_memory_end_their_cell_alone(tmp_path):
    text = "flows: [affine]\ndata: [blob]\nswap: {fate: [hang, hog, '']}\n"
    store = Store(tmp_path / "run")
    cells = store.plan(load_matrix(make(tmp_path, text)))
    limits = [Resources(timeout=6), Resources(memory="900M"), Resources()]
    jobs = [Job(store.path(c), limit) for c, limit in zip(cells, limits, strict=True)]
    ends = Local(jobs=3, grace=0.5).launch(iter(jobs), ["cpu"])
    ended = {jobs.index(end.job): end for end in ends if end is not None}
    hang, hog = (unrecorded(cells[i], ended[i]) for i in (0, 1))
    assert (hang.state, hog.state) == ("timeout", "out-of-memory")
    assert "timeout of 6 s" in hang.reason
    assert "900 MB" in hog.reason
    assert ended[2].code == 0
    assert store.record(cells[2]).state == "ok"


def test_resident_memory_is_this_process_s(tmp_path):
    before = resident(os.getpid())
    block = torch.ones(2**26)  # large against what a garbage collection may free meanwhile
    assert resident(os.getpid()) - before > 0.5 * block.numel() * 4
    assert resident(2**22 + 12345) == 0


# Interruptions


SLOW = (
    "flows: [affine, {recipe: affine, as: slow, set: {flow.sleep: 0.03, budget.steps: 100}}]\n"
    "data: [blob]\nresources: {checkpoint: 0.2}\n"
)
RUNNER = (
    "import sys; from flowzoo.bench import load_matrix, run;"
    "run(load_matrix(sys.argv[1]), sys.argv[2], device='cpu')"
)


class Impatient(Diary):
    """Presses Ctrl-C as soon as a file is there."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def running(self, progress):
        if self.path.exists():
            raise KeyboardInterrupt


def processes_of(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"flowzoo.bench.cell" in words and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_after_ctrl_c_and_kill_9_the_same_command_ends_with_the_same_numbers(tmp_path):
    path, out = make(tmp_path, SLOW), tmp_path / "run"
    matrix = load_matrix(path)
    quick, slow = matrix.cells()
    folder = out / slow.folder
    checkpoint = folder / "checkpoint.pt"

    diary = Impatient(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        run(matrix, out, device="cpu", observer=diary)
    assert diary.ended == [True]
    assert diary.finished_ == [(quick.folder, "ok")]
    assert processes_of(folder) == []
    assert not held(folder)
    assert checkpoint.exists()
    finished = {p: p.read_bytes() for p in (out / quick.folder).iterdir()}
    written = checkpoint.stat().st_mtime_ns

    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(path), str(out)])
    wait_for(lambda: checkpoint.stat().st_mtime_ns > written)
    assert held(folder)
    assert Store(out).record(slow).state == "running"
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    wait_for(lambda: not processes_of(folder))  # no orphans
    assert Store(out).record(slow).state == "not-run"

    _, resumed = run(matrix, out, device="cpu")
    assert {p: p.read_bytes() for p in (out / quick.folder).iterdir()} == finished
    assert (folder / LOG).read_text().count("slow on blob, seed 0") == 3
    whole = run_cell(slow, tmp_path / "whole")
    assert resumed.state == whole.state == "ok"
    assert resumed.metrics == whole.metrics
    assert resumed.costs["steps"] == whole.costs["steps"] == 100
    a, b = (load_file(where / FLOW) for where in (folder, tmp_path / "whole"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


class Instant(Launcher):
    """Ends every cell at once, with a record."""

    def __init__(self, launched):
        self.launched = launched

    def launch(self, jobs, devices):
        for job in jobs:
            self.launched.append(job.folder.name)
            record = Record.of(read_cell(job.folder), "ok")
            write_record(job.folder, replace(record, finished=now()))
            yield Ended(job, "exit", 0)


@pytest.mark.usefixtures("unchecked")
def test_runners_share_the_work_and_do_nothing_twice(tmp_path):
    matrix = load_matrix(make(tmp_path, "flows: [affine]\ndata: [blob]\nseeds: 40\n"))
    launched: list[str] = []
    with ThreadPoolExecutor() as pool:
        work = [
            pool.submit(run, matrix, tmp_path / "run", launcher=Instant(launched)) for _ in "123"
        ]
        assert all(done.result() for done in work)
    assert sorted(launched) == sorted(cell.folder for cell in matrix.cells())
    assert {r.state for r in Store(tmp_path / "run").records()} == {"ok"}


# Refusals


def test_nothing_runs_when_anything_is_wrong(tmp_path):
    text = "flows: [affine]\ndata: [blob, {name: blob, as: b, broken: true}]\n"
    path = make(tmp_path, text)
    with pytest.raises(Problems, match="row 3 is NaN") as caught:
        run(load_matrix(path), tmp_path / "run", device="cpu")
    assert str(caught.value).startswith(f"{path}: data.1: ")
    assert list(tmp_path.rglob(RECORD)) == []
    assert list(tmp_path.rglob(LOG)) == []


@pytest.mark.usefixtures("unchecked")
def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path):
    path = make(tmp_path, "flows: [affine]\ndata: [blob]\nswap: {fate: [disk-full]}\n")
    with pytest.raises(DiskFull, match="free some space and run the same command again"):
        run(load_matrix(path), tmp_path / "run", device="cpu")
    assert [r.state for r in Store(tmp_path / "run").records()] == ["not-run"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"jobs": 0}, "at least 1"),
        ({"rerun": ["fail"]}, "did you mean 'failed'"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, expected):
    matrix = load_matrix(make(tmp_path, "flows: [affine]\ndata: [blob]\n"))
    with pytest.raises(UserError, match=expected):
        run(matrix, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cpu", 2, ["cpu"]),
        ("cuda:1", 2, ["cuda:1"]),
    ],
)
def test_usable_devices(device, gpus, expected):
    assert usable_devices(device, gpus) == expected


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda:2", 2), ("tpu", 1), ("cpu:0", 1)])
def test_devices_that_are_not_there(device, gpus):
    with pytest.raises(UserError, match="device"):
        usable_devices(device, gpus)


def test_runs_go_beside_the_caller():
    assert Path("runs") == RUNS
