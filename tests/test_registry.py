"""Names, guards, clashes, local files and strangers' packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_zoo
from strangers import THIRD_PARTY, distribution, run, site  # noqa: F401 (a fixture)

import flowzoo
from flowzoo.errors import UserError
from flowzoo.registry import Registry, fingerprint, frame_files, frame_fingerprint, suggest
from flowzoo.registry.component import Component, entry_points
from flowzoo.registry.source import code_hash, module_file

# --- names ---------------------------------------------------------------------------------------


def test_built_in_components_come_through_entry_points():
    registry = Registry.installed()
    assert {"trace", "velocity", "flow", "objective", "regularizer"} <= set(registry.kinds())
    assert "exact" in registry.names("trace")
    assert registry.component("trace", "exact").origin.startswith("flowzoo ")
    assert "hooks" not in registry.kinds()


def test_every_built_in_component_loads_and_is_of_its_kind():
    for component in Registry.installed().load_all():
        if component.origin.startswith("flowzoo "):
            assert component.state == "ok", component.error


def test_unknown_names_are_answered_with_the_closest_one():
    registry = toy_zoo.zoo()
    with pytest.raises(UserError, match=r"unknown wheel 'plian'; did you mean 'plain'\? \(avail"):
        registry.load("wheel", "plian")
    with pytest.raises(UserError, match=r"unknown kind 'whell'; did you mean 'wheel'\?"):
        registry.names("whell")
    with pytest.raises(UserError, match=r"unknown wheel 'xyzzy' \(available: absent, "):
        registry.component("wheel", "xyzzy")
    assert suggest("a", []) == " (available: none)"


def test_nothing_here_imports_torch(tmp_path):
    code = (
        "import sys, flowzoo.registry, flowzoo.build, flowzoo.recipes, flowzoo.hooks\n"
        "r = flowzoo.registry.Registry.installed()\n"
        "flowzoo.hooks.plugin_manager(r)\n"
        "spec = {'name': 'continuous', 'velocity': 'mlp', 'trace': {'name': 'hutchinsn'}}\n"
        "found = flowzoo.build.shallow_problems('flow', spec, r, 'flow')\n"
        "assert len(found) == 1 and 'hutchinson' in str(found[0]), found\n"
        "[flowzoo.registry.fingerprint(c) for c in r.components()]\n"
        "flowzoo.registry.frame_fingerprint()\n"
        "print('torch' in sys.modules)\n"
    )
    assert run(code) == "False"


# --- guards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent", "has no attribute 'Absent'"),
        ("misfiled", "registered as wheel, but its class is a 'boat'"),
        ("paint", "toy_zoo:zoo is not a class"),
    ],
)
def test_a_broken_component_says_whose_it_is_and_why(name, why):
    registry = toy_zoo.zoo()
    for _ in range(2):  # the second time from memory
        with pytest.raises(UserError, match=f"the wheel '{name}' of toys 1.0 is broken: .*{why}"):
            registry.load("wheel", name)
    states = {c.name: c.state for c in registry.load_all("wheel")}
    assert states[name] == "broken"
    assert states["plain"] == "ok"
    assert registry.load("wheel", "plain") is toy_zoo.Plain


@pytest.mark.parametrize("statement", ["raise ValueError('no')", "import sys; sys.exit(1)", "1 +"])
def test_whatever_an_import_raises_is_kept(tmp_path, monkeypatch, statement):
    (tmp_path / "raises_at_import.py").write_text(statement)
    monkeypatch.syspath_prepend(tmp_path)
    bad = Component("wheel", "bad", "raises_at_import:Bad", "bad 2.0")
    registry = toy_zoo.zoo(bad)
    with pytest.raises(UserError, match=r"the wheel 'bad' of bad 2\.0 is broken: "):
        registry.load("wheel", "bad")
    found = registry.component("wheel", "bad")
    assert found.state == "broken"
    assert "raises_at_import" in (found.traceback or "")
    assert "\n" not in (found.error or "")


def test_a_missing_dependency_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import surely_not_installed.part")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry([Component("wheel", "w", "needs_more:W", "needs 1.0")])
    said = "needs 'surely_not_installed', which is not installed: pip install surely_not_installed"
    with pytest.raises(UserError, match=said):
        registry.load("wheel", "w")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    distribution(
        tmp_path,
        "needy",
        {"flowzoo.wheel": {"w": "needs_extra:W"}},
        "Requires-Dist: Surely-POT>=1; extra == 'surely_ot'\n",
    )
    (tmp_path / "needs_extra.py").write_text("import surely_ot")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry(entry_points("wheel"))
    with pytest.raises(UserError, match=r"pip install 'needy\[surely_ot\]'"):
        registry.load("wheel", "w")


# --- distributions -------------------------------------------------------------------------------


def test_two_packages_with_one_name_clash_and_harm_nobody_else(tmp_path, monkeypatch):
    for name in ("first", "second"):
        points = {"round": "toy_zoo:Plain", f"own-{name}": "toy_zoo:Plain"}
        distribution(tmp_path, name, {"flowzoo.wheel": points})
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry(entry_points())
    with pytest.raises(UserError, match=r"offered by first 1.0 .* and second 1.0 .*; rename"):
        registry.load("wheel", "round")
    listed = [c for c in registry.load_all("wheel") if c.name == "round"]
    assert [c.state for c in listed] == ["clash", "clash"]
    assert {c.origin for c in listed} == {"first 1.0", "second 1.0"}
    assert registry.load("wheel", "own-first") is toy_zoo.Plain

    monkeypatch.setenv("FLOWZOO_DISABLE_PLUGINS", "Second, other")
    registry = Registry(entry_points())
    assert registry.load("wheel", "round") is toy_zoo.Plain
    assert "own-second" not in registry.names("wheel")


def test_the_first_of_two_copies_of_a_distribution_hides_the_other(tmp_path, monkeypatch):
    for folder, name in (("a", "twice"), ("b", "Twice")):
        (tmp_path / folder).mkdir()
        distribution(tmp_path / folder, name, {"flowzoo.wheel": {folder: "toy_zoo:Plain"}})
    monkeypatch.syspath_prepend(tmp_path / "b")
    monkeypatch.syspath_prepend(tmp_path / "a")
    assert Registry(entry_points()).names("wheel") == ["a"]


def test_a_package_may_bring_an_interface_of_its_own(tmp_path, monkeypatch):
    distribution(
        tmp_path, "wheels", {"flowzoo.wheel": {"plain": "toy_zoo:Plain"}, "other": {"a": "b:c"}}
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "wheel" in Registry(entry_points()).kinds()
    assert "other" not in Registry(entry_points()).kinds()


# --- strangers' packages, installed --------------------------------------------------------------


USE = """
import json, sys, torch
from flowzoo.build import build
from flowzoo.registry import Registry
registry = Registry.installed().with_files(sys.argv[1:])
flow = {"name": "continuous", "velocity": "mlp", "integrator": "rk4", "trace": TRACE}
flow = build("flow", flow, registry, dim=2)
cost = build("regularizer", {"name": COST, "weight": 0.5}, registry)
encoded = flow.encode(torch.randn(6, 2), [cost])
print(json.dumps({
    "finite": bool(encoded.ladj.isfinite().all() and (encoded.costs > 0).all()),
    "shape": list(encoded.costs.shape),
    "states": {f"{c.kind}/{c.name}": [c.origin, c.state, c.error] for c in registry.load_all()},
}))
"""


def use(trace, cost, *paths, **environment):
    code = USE.replace("TRACE", repr(trace)).replace("COST", repr(cost))
    return json.loads(run(code, *paths, **environment))


def test_an_installed_package_adds_components_and_a_broken_one_disturbs_nothing(site):  # noqa: F811
    found = use({"name": "sphere", "samples": 2}, "taxicab", site)
    assert found["finite"]
    assert found["shape"] == [6, 1]
    assert found["states"]["regularizer/taxicab"] == ["flowzoo-thirdparty 1.2.3", "ok", None]
    origin, state, error = found["states"].pop("trace/shattered")
    assert (origin, state) == ("flowzoo-broken 0.0.1", "broken")
    assert error == (
        "the trace 'shattered' of flowzoo-broken 0.0.1 is broken: RuntimeError: broken on purpose"
    )
    assert not any("flowzoo-broken" in str(error) for _, _, error in found["states"].values())


def test_names_of_an_installed_package_are_known_without_importing_it(site):  # noqa: F811
    code = (
        "import sys; from flowzoo.registry import Registry, fingerprint\n"
        "from flowzoo.build import shallow_problems\n"
        "r = Registry.installed(); c = r.component('trace', 'sphere'); h = fingerprint(c)\n"
        "found = shallow_problems('trace', {'name': 'sphere', 'sampels': 2}, r)\n"
        "print(r.names('trace').count('sphere'), len(h), 'flowzoo_thirdparty' in sys.modules,\n"
        "      found[0].message)\n"
    )
    said = "trace 'sphere' has no option 'sampels'; did you mean 'samples'? (options: samples)"
    assert run(code, site) == f"1 16 False {said}"


def test_an_installed_package_can_be_ignored(site):  # noqa: F811
    code = "from flowzoo.registry import Registry; print(Registry.installed().names('trace'))"
    names = run(code, site, FLOWZOO_DISABLE_PLUGINS="flowzoo_broken,other")
    assert "sphere" in names
    assert "shattered" not in names


# --- local files ---------------------------------------------------------------------------------


def test_one_file_adds_components_without_packaging():
    import torch

    from flowzoo.build import build

    path = THIRD_PARTY / "one_file_plugin.py"
    registry = Registry.installed().with_files([path])
    assert registry.files == (path,)
    assert "diagonal" not in Registry.installed().names("trace")
    assert registry.component("trace", "diagonal").origin == "one_file_plugin.py"
    assert Registry.installed().with_files(registry.files).load(
        "trace", "diagonal"
    ) is registry.load("trace", "diagonal")
    spec = {"name": "continuous", "velocity": "mlp", "integrator": "rk4"}
    cost = build("regularizer", "chebyshev", registry)
    x, both = torch.randn(4, 2), []
    for trace in ("diagonal", "exact"):
        torch.manual_seed(0)
        both.append(build("flow", {**spec, "trace": trace}, registry, dim=2).encode(x, [cost]))
    torch.testing.assert_close(both[0].ladj, both[1].ladj)
    assert both[0].costs.shape == (4, 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("raise ValueError('no')", "is broken: ValueError: no"),
        ("def f(:", "is broken: SyntaxError"),
        ("x = 1", r"offers nothing; define flowzoo_components\(\) in it"),
        ("def flowzoo_components(): return {'x': int}", "'x', which is not a class with a `kind`"),
        ("def flowzoo_components(): 1 / 0", r"flowzoo_components\(\) in .* failed: ZeroDiv"),
    ],
)
def test_a_local_file_that_is_wrong_is_refused(tmp_path, content, why):
    file = tmp_path / "idea.py"
    file.write_text(content)
    with pytest.raises(UserError, match=why) as raised:
        Registry().with_files([file])
    assert str(file) in str(raised.value)


def test_a_local_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the plugin file .*idea.py: No such file"):
        Registry().with_files([tmp_path / "idea.py"])


def test_a_local_file_clashes_with_what_is_installed(tmp_path):
    file = tmp_path / "idea.py"
    file.write_text("import toy_zoo\ndef flowzoo_components(): return {'plain': toy_zoo.Plain}")
    registry = toy_zoo.zoo().with_files([file])
    with pytest.raises(UserError, match=r"offered by idea.py .* and toys 1.0 "):
        registry.load("wheel", "plain")
    assert registry.load("wheel", "sized") is toy_zoo.Sized


def test_a_changed_local_file_is_read_again(tmp_path):
    file = tmp_path / "idea.py"
    hashes, spokes = [], []
    for n in (1, 2):
        file.write_text(
            f"import toy_zoo\nclass W(toy_zoo.Plain):\n    count = {n}\n"
            "def flowzoo_components(): return {'w': W}"
        )
        registry = Registry().with_files([file])
        spokes.append(registry.load("wheel", "w").count)
        hashes.append(fingerprint(registry.component("wheel", "w")))
    assert spokes == [1, 2]
    assert hashes[0] != hashes[1]


# --- fingerprints --------------------------------------------------------------------------------


def test_sources_are_found_without_importing_them():
    for component in Registry.installed().components():
        file = module_file(component.target.partition(":")[0])
        assert file is not None
        assert file.is_file()
    assert module_file("no_such_module.at.all") is None
    assert module_file("sys") is None


def test_a_fingerprint_covers_the_package_s_own_imports_and_nothing_else(tmp_path, monkeypatch):
    package = tmp_path / "printed"
    package.mkdir()
    (package / "__init__.py").write_text("raise ValueError('not imported')")
    (package / "main.py").write_text("from .helper import value\nclass W: pass\n")
    (package / "helper.py").write_text("value = 1\n")
    (package / "unused.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    component = Component("wheel", "w", "printed.main:W", "printed 1.0")
    first = fingerprint(component)
    (package / "unused.py").write_text("value = 22\n")
    assert fingerprint(component) == first
    (package / "helper.py").write_text("value = 22\n")
    assert fingerprint(component) != first


def test_the_frame_s_fingerprint_covers_what_numbers_depend_on():
    here = Path(flowzoo.__file__).parent
    names = {f.relative_to(here).as_posix() for f in frame_files()}
    assert {"field.py", "traces.py", "integrators.py", "flow.py", "objective.py"} <= names
    assert any(name.startswith("data/") for name in names)
    assert not any(name.startswith(("registry", "recipes", "cli", "bench")) for name in names)
    assert frame_fingerprint() == code_hash(frame_files())
    assert frame_fingerprint() != code_hash(frame_files()[1:])
