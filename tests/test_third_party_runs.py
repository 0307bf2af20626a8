"""Other people's components in a run: of a package, of a file beside the matrix, broken ones."""

from __future__ import annotations

import json
import shutil

import pytest
from strangers import THIRD_PARTY, run, site  # noqa: F401 (a fixture)

MATRIX = """
flows:
  - recipe: flow-matching
    as: stranger
    set:
      flow.trace: TRACE
      objective: {name: likelihood, regularizers: [{name: COST, weight: 0.5}]}
      flow.integrator: {name: rk4, steps: 2}
      training.batch_size: 50
      budget.steps: 4
data: [{name: gaussian, dim: 2, train: 200, val: 50, test: 100}]
"""
COMMAND = """
import json, sys
from flowzoo.cli import main

said = {}
for arguments in json.loads(ARGUMENTS):
    print('\\nBEGIN', flush=True)
    sys.argv = ['flowzoo', *arguments]
    try:
        main()
    except SystemExit as ended:
        print('END', ended.code or 0, flush=True)
"""


def flowzoo(calls, *paths):
    """Return exit code and output of each call of the command, all in one fresh interpreter."""
    program = COMMAND.replace("ARGUMENTS", repr(json.dumps([[*map(str, c)] for c in calls])))
    parts = run(program, *paths).split("BEGIN\n")[1:]
    found = [part.rpartition("END") for part in parts]
    assert len(found) == len(calls)
    return [(int(code), out) for out, _, code in found]


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    """Return a writer of a matrix that names a trace and a regularizer, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(trace, cost, more=""):
        text = MATRIX.replace("TRACE", trace).replace("COST", cost) + more
        (tmp_path / "m.yaml").write_text(text)
        return tmp_path

    return write


def test_a_matrix_uses_an_installed_package_next_to_a_broken_one(site, matrix):  # noqa: F811
    folder = matrix("{name: sphere, samples: 2}", "taxicab")
    plugins, listed, shown, planned, ran, table = flowzoo(
        [
            ["plugins"],
            ["list", "trace"],
            ["show", "regularizer/taxicab"],
            ["plan", "m.yaml", "--json"],
            ["run", "m.yaml", "--device", "cpu"],
            ["table", "runs/m", "--columns", "metric"],
        ],
        site,
    )
    assert plugins[0] == 1
    assert "flowzoo-thirdparty 1.2.3: 2 ok, 0 broken" in plugins[1]
    assert "flowzoo-broken 0.0.1: 0 ok, 2 broken" in plugins[1]
    assert "RuntimeError: broken on purpose" in " ".join(plugins[1].split())
    assert "Hutchinson's estimator with probes on the sphere" in listed[1]
    assert "[flowzoo-thirdparty 1.2.3]" in listed[1]
    assert "integral of sum_i |v_i|" in shown[1]
    assert planned[0] == 0
    assert ran[0] == 0, ran[1]
    assert "letters" in table[1]  # the package's own column
    (path,) = (folder / "runs" / "m").glob("*/record.json")
    record = json.loads(path.read_text())
    assert record["state"] == "ok"
    assert record["composition"]["flow"]["trace"] == {"name": "sphere", "samples": 2}
    assert record["composition"]["objective"]["regularizers"] == [
        {"name": "taxicab", "weight": 0.5}
    ]
    assert {"trace sphere", "regularizer taxicab"} <= set(record["code"])
    assert "taxicab" in (path.parent / "curve.jsonl").read_text().lower()
    # Other code of the package: a result of the old one is stale, and says because of what.
    file = site / "flowzoo_thirdparty" / "costs.py"
    source = file.read_text()
    file.write_text(source.replace(".sum(-1)", ".mean(-1)"))
    ((_, status),) = flowzoo([["status", "runs/m"]], site)
    file.write_text(source)
    assert "stale: regularizer taxicab changed" in status
    # Without the package the names are unknown; what ran can still be read.
    (planned, status) = flowzoo([["plan", "m.yaml"], ["status", "runs/m"]])
    assert planned[0] == 2
    assert status[0] == 0


@pytest.mark.parametrize("beside", [True, False], ids=["found by itself", "named"])
def test_a_matrix_uses_one_file_without_packaging(matrix, beside):
    name = "flowzoo_plugins.py" if beside else "mine.py"
    folder = matrix("diagonal", "chebyshev", "" if beside else "plugins: [mine.py]\n")
    shutil.copy(THIRD_PARTY / "one_file_plugin.py", folder / name)
    ran, status, listed, shown, table = flowzoo(
        [
            ["run" if beside else "plan", "m.yaml"],
            ["status", "runs/m"],
            ["list", "trace", "--plugin", name],
            ["show", "chebyshev", "--plugin", name],
            ["list", "--plugin", name],
        ]
    )
    assert ran[0] == 0, ran[1]
    assert f"The trace as the sum of the diagonal, without randomness. [{name}]" in " ".join(
        listed[1].split()
    )
    assert "integral of max_i |v_i|" in shown[1]
    assert f"diagonal ({name})" in " ".join(table[1].split())
    if not beside:
        assert status[0] == 2
        assert "1 not-run" in ran[1]
        return
    assert status[0] == 0
    (path,) = (folder / "runs" / "m").glob("*/record.json")
    record = json.loads(path.read_text())
    assert record["state"] == "ok", record["reason"]
    assert record["composition"]["flow"]["trace"] == "diagonal"
    assert {"trace diagonal", "regularizer chebyshev"} <= set(record["code"])
    assert "chebyshev" in (path.parent / "curve.jsonl").read_text().lower()
