"""Hooks of packages and local files: answered, refused, and never in the way."""

from __future__ import annotations

import sys

import pytest
from strangers import THIRD_PARTY, distribution, run, site  # noqa: F401 (a fixture)

from flowzoo.errors import UserError
from flowzoo.hooks import hook_failures, hookimpl, plugin_manager
from flowzoo.registry import Registry
from flowzoo.registry.component import Component


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Return a maker of installed modules that listen."""

    def install(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
            distribution(tmp_path, name, {"flowzoo.hooks": {"listener": name}})
        monkeypatch.syspath_prepend(tmp_path)
        return plugin_manager(Registry())

    return install


def test_a_package_listens_and_a_broken_one_is_noted(packages):
    manager = packages(
        hooks_a="heard = []\ndef flowzoo_cell_finished(record): heard.append(record)",
        hooks_b="raise RuntimeError('no')",
    )
    manager.hook.flowzoo_cell_finished(cell="c", record="r")
    import hooks_a

    assert hooks_a.heard == ["r"]
    (failure,) = manager.failures
    assert (failure.kind, failure.state) == ("hooks", "broken")
    assert failure.error == "the hooks 'listener' of hooks_b 1.0 is broken: RuntimeError: no"
    assert "hooks_b.py" in (failure.traceback or "")
    assert [f.error for f in hook_failures(Registry())] == [failure.error]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def flowzoo_stp(cell): ...", "unknown hook 'flowzoo_stp'; did you mean 'flowzoo_step'?"),
        ("def flowzoo_step(stpe): ...", "Argument(s) {'stpe'} are declared in the hookimpl but"),
        ("def flowzoo_components(): ...", "a package offers components as entry points"),
    ],
)
def test_a_listener_to_nothing_is_left_out(packages, text, why):
    manager = packages(
        hooks_wrong=text + "\ndef flowzoo_cell_started(cell): raise ValueError",
        hooks_right="def flowzoo_commands(): return [1]",
    )
    (failure,) = manager.failures
    assert failure.origin == "hooks_wrong 1.0"
    assert why in (failure.error or "")
    assert "\n" not in (failure.error or "")
    manager.hook.flowzoo_cell_started(cell=1)
    assert manager.hook.flowzoo_commands() == [[1]]
    for name in ("hooks_wrong", "hooks_right"):
        sys.modules.pop(name, None)


def test_a_marked_implementation_may_ask_for_its_turn():
    manager, heard = plugin_manager(Registry()), []

    class Late:
        @hookimpl(trylast=True)
        def flowzoo_step(self, step):
            heard.append(("late", step))

    class Early:
        def flowzoo_step(self, terms):
            heard.append(("early", terms))

    manager.register(Early())
    manager.register(Late())
    manager.hook.flowzoo_step(cell=None, step=1, terms={"loss": 2.0})
    assert heard == [("early", {"loss": 2.0}), ("late", 1)]


def test_a_listener_that_raises_is_dropped_and_the_others_still_hear():
    manager, heard = plugin_manager(Registry()), []

    class Bad:
        def flowzoo_step(self, step):
            heard.append("bad")
            raise ValueError("no")

    class Good:
        def flowzoo_step(self, step):
            heard.append(step)

    manager.add(Component("hooks", "good", "x", "good 1.0"), Good())
    manager.add(Component("hooks", "bad", "x", "bad 1.0"), Bad())
    said = "the hooks 'bad' of bad 1.0 is ignored from here on: flowzoo_step raised ValueError: no"
    with pytest.warns(UserWarning, match=said):
        manager.notify("flowzoo_step", cell=None, step=1, terms={})
    manager.notify("flowzoo_step", cell=None, step=2, terms={})
    assert heard == ["bad", 1, 2]
    assert [f.error for f in manager.failures] == [said]


def test_one_that_cannot_answer_does_not_silence_the_others():
    manager = plugin_manager(Registry())

    class Bad:
        def flowzoo_table_columns(self):
            raise ValueError("no")

    class Good:
        def flowzoo_table_columns(self):
            return {"one": len}

    manager.add(Component("hooks", "good", "x", "good 1.0"), Good())
    manager.add(Component("hooks", "bad", "x", "bad 1.0"), Bad())
    with pytest.warns(UserWarning, match="'bad' of bad 1.0 is ignored from here on"):
        assert manager.notify("flowzoo_table_columns") == [{"one": len}]


def test_a_local_file_listens():
    registry = Registry.installed().with_files([THIRD_PARTY / "one_file_plugin.py"])
    manager = plugin_manager(registry)
    manager.notify("flowzoo_step", cell=None, step=7, terms={})
    (module,) = [m for m in manager.get_plugins() if hasattr(m, "steps")]
    assert module.steps[-1] == 7


def test_a_local_file_that_listens_to_nothing_is_refused(tmp_path):
    file = tmp_path / "idea.py"
    file.write_text("def flowzoo_stp(): ...")
    registry = Registry().with_files([file])
    with pytest.raises(UserError, match=r"of idea\.py is broken: unknown hook 'flowzoo_stp'"):
        plugin_manager(registry)


def test_an_installed_package_s_hooks_are_found_without_torch(site):  # noqa: F811
    code = (
        "import sys; from flowzoo.hooks import plugin_manager\n"
        "from flowzoo.registry import Registry\n"
        "m = plugin_manager(Registry.installed()); (columns,) = m.hook.flowzoo_table_columns()\n"
        "print(columns['letters']('abc'), [f.origin for f in m.failures], 'torch' in sys.modules)"
    )
    assert run(code, site) == "3 ['flowzoo-broken 0.0.1'] False"
