"""Records are whole or absent, finished ones are never touched, two runners never share a cell."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowzoo.bench import claims, files
from flowzoo.bench.claims import Claim, held
from flowzoo.bench.files import DiskFull, is_disk_full, write_json, write_text
from flowzoo.bench.matrix import load_matrix
from flowzoo.bench.record import STATES, Record
from flowzoo.bench.store import FLOW, RECORD, Store, now
from flowzoo.errors import UserError

FAKES = Path(__file__).parent / "bench_fakes" / "fakes.py"
RECIPE = """
recipes:
  affine: {flow: affine, objective: likelihood, budget: {steps: 60}}
"""
MATRIX = "recipes: [mine.yaml]\nplugins: [fakes.py]\nflows: [affine]\ndata: [blob]\nseeds: 2\n"


@pytest.fixture
def store(tmp_path):
    shutil.copy(FAKES, tmp_path / "fakes.py")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "m.yaml").write_text(MATRIX)
    store = Store(tmp_path / "run")
    store.plan(load_matrix(tmp_path / "m.yaml"))
    return store


def finish(store, cell, state="ok", **more):
    more = {"code": cell.code(cell.registry()), **more}
    record = replace(Record.of(cell, state), finished=now(), **more)
    store.write(cell, record)
    return record


@given(
    state=st.sampled_from(STATES),
    reason=st.text(),
    seed=st.integers(0, 2**31),
    metrics=st.dictionaries(
        st.text(),
        st.fixed_dictionaries({"value": st.floats(allow_nan=False, allow_infinity=False)}),
    ),
)
def test_a_record_comes_back_as_it_was_written(tmp_path_factory, state, reason, seed, metrics):
    record = Record("f", "d", seed, state=state, reason=reason, metrics=metrics)
    path = tmp_path_factory.mktemp("r") / RECORD
    write_json(path, record.to_mapping())
    assert Record.from_mapping(json.loads(path.read_text(encoding="utf-8"))) == record


def test_stored_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), float("inf"), 1.5]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, None, 1.5]}


def test_what_is_missing_and_what_is_not(store):
    first, second = store.cells()
    assert [r.state for r in store.records()] == ["not-run", "not-run"]
    finish(store, first)
    assert [c.folder for c in store.missing()] == [second.folder]
    finish(store, second, "failed")
    assert store.missing() == []
    assert [c.folder for c in store.missing(["failed"])] == [second.folder]
    finish(store, second, "killed")
    assert [c.folder for c in store.missing()] == [second.folder]


def test_planning_again_touches_no_file(store, tmp_path):
    finish(store, store.cells()[0])

    def seen():
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.folder.rglob("*.*")}

    before = seen()
    store.plan(load_matrix(tmp_path / "m.yaml"))
    assert seen() == before


def test_limits_may_change_for_cells_that_have_not_run(store, tmp_path):
    first, second = store.cells()
    finish(store, first)
    (tmp_path / "m.yaml").write_text(MATRIX + "resources: {timeout: 5m}\n")
    store.plan(load_matrix(tmp_path / "m.yaml"))
    assert [c.resources.seconds for c in store.cells()] == [None, 300.0]
    assert [c.key for c in store.cells()] == [first.key, second.key]


@pytest.mark.parametrize("content", ["", "{", '{"state": "ok"}', "[]", '{"flow": 1, "state": 2}'])
def test_a_damaged_record_is_named_and_run_again(store, content):
    first = store.cells()[0]
    (store.path(first) / RECORD).write_text(content)
    record = store.records()[0]
    assert record.state == "not-run"
    assert RECORD in record.reason
    assert first.folder in [c.folder for c in store.missing()]
    store.reopen(first)
    assert not (store.path(first) / RECORD).exists()


def test_changed_code_marks_records_stale_and_names_the_component(store, tmp_path):
    first = store.cells()[0]
    finish(store, first)
    assert store.records()[0].stale == ()
    plugin = tmp_path / "fakes.py"
    plugin.write_text(plugin.read_text() + "\nCHANGED = True\n")
    stale = store.records()[0].stale
    assert {"flow affine", "dataset blob"} <= set(stale)
    assert "objective likelihood" not in stale
    assert "frame" not in stale
    assert [c.folder for c in store.missing(["stale"])] == [c.folder for c in store.cells()]
    assert store.records()[0].state == "ok"  # kept until it is asked for


def test_changed_data_file_marks_records_stale(store, tmp_path):
    first, data = store.cells()[0], tmp_path / "rows.csv"
    data.write_text("1,2\n")
    from flowzoo.bench.staleness import file_facts

    finish(store, first, dataset={"files": {str(data): file_facts(data)}})
    os.utime(data, (1, 1))  # touched, not changed
    assert store.records()[0].stale == ()
    data.write_text("1,3\n")
    assert store.records()[0].stale == (str(data),)


def test_a_changed_recipe_gives_a_new_cell_and_the_old_one_is_superseded(store, tmp_path):
    first = store.cells()[0]
    finish(store, first)
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("60", "61"))
    store.plan(load_matrix(tmp_path / "m.yaml"))
    assert [r.state for r in store.records()] == ["not-run", "not-run"]
    (old,) = store.superseded()
    assert (old.key, old.folder) == (first.key, first.folder)


def test_reopening_keeps_the_old_record_and_what_can_be_gone_on_with(store):
    first = store.cells()[0]
    folder = store.path(first)
    for state, kept in (("ok", set()), ("timeout", {FLOW, "checkpoint.pt"}), ("failed", {FLOW})):
        finish(store, first, state)
        for name in (FLOW, "checkpoint.pt"):
            (folder / name).write_text("x")
        store.reopen(first)
        assert not (folder / RECORD).exists()
        assert {p.name for p in folder.iterdir()} & {FLOW, "checkpoint.pt"} == kept
    old = [json.loads((folder / f"record-{i}.json").read_text())["state"] for i in (1, 2, 3)]
    assert old == ["ok", "timeout", "failed"]


def test_opening_what_is_no_run_says_so(store, tmp_path):
    with pytest.raises(UserError, match="there are runs in it: run"):
        Store.open(tmp_path)
    assert Store.open(tmp_path / "run").title == "m"


# Writing


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / RECORD
    write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskFull, match="finished records are safe") as caught:
        write_text(path, "new")
    assert is_disk_full(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, text = tmp_path / "big.json", json.dumps(["x" * 1000] * 300)
    write_text(path, text)
    program = (
        "import sys; from pathlib import Path; from flowzoo.bench.files import write_text\n"
        f"path = Path({str(path)!r}); text = path.read_text()\n"
        "for i in range(60): write_text(path, text)"
    )
    writer = subprocess.Popen([sys.executable, "-c", program])
    reads = 0
    while writer.poll() is None or reads < 10:
        assert path.read_text() == text
        reads += 1
    assert writer.returncode == 0


# Claims


def test_a_claim_is_exclusive_and_ends_with_its_release(tmp_path):
    claim = Claim.take(tmp_path)
    assert claim is not None
    assert held(tmp_path)
    assert Claim.take(tmp_path) is None
    claim.release()
    assert not held(tmp_path)
    assert Claim.take(tmp_path) is not None


def test_one_of_many_processes_gets_a_claim(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from flowzoo.bench.claims import Claim\n"
        "claim = Claim.take(Path(sys.argv[1])); print('yes' if claim else 'no', flush=True)\n"
        "sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, str(tmp_path)]
    many = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    answers = [process.stdout.readline().strip() for process in many]
    for process in many:
        process.communicate()
    assert sorted(answers) == ["no", "no", "no", "yes"]
    # All of them are gone now, without having released anything.
    assert not held(tmp_path)
    assert Claim.take(tmp_path) is not None


def test_a_claim_of_another_machine_lives_as_long_as_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    claim = Claim.take(tmp_path)
    monkeypatch.undo()
    assert held(tmp_path)
    assert Claim.take(tmp_path) is None
    os.utime(tmp_path / claims.NAME, (1, 1))
    assert not held(tmp_path)
    mine = Claim.take(tmp_path)
    assert mine is not None
    claim.release()  # too late: it is not the other's any more
    assert held(tmp_path)


def test_a_process_id_used_again_is_not_taken_for_the_holder(tmp_path):
    claim = Claim.take(tmp_path)
    content = json.loads(claim.content)
    if content["start"] is None:
        pytest.skip("this system does not tell when a process began")
    (tmp_path / claims.NAME).write_text(json.dumps({**content, "start": "1"}))
    assert not held(tmp_path)


def test_nothing_but_the_claim_is_left_in_the_folder(tmp_path):
    Claim.take(tmp_path)
    held(tmp_path)
    Claim.take(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [claims.NAME]
