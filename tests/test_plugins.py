"The life of a real plugin: installed by pip, listed, allowed, used, resumed, exported, refused, isolated, named. And what plugins rely on: public names, and how they go."
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import public_names
import pytest
import typer
from safetensors.numpy import load_file
from support import PACKAGE, ROOT, run, said

import rlstudio
from rlstudio.core.registry import api_fault, goes_with
from rlstudio.runs.export import AgentError, load_agent
from rlstudio.runs.run import Run, RunError

EXAMPLE, NAME = ROOT / "examples/rlstudio-example-plugin", "rlstudio-example-plugin"
SMALL = "train.total_steps=1024", "eval.episodes=2", "env.num_envs=4", "checkpoint.every=256"


def pip_install(source: Path, site: Path) -> None:
    "As a user does, without an index"
    copy = shutil.copytree(source, site.with_name(f"source-{source.name}"), dirs_exist_ok=True)
    done = run(sys.executable, "-m", "pip", "install", "-q", "--target", site, "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", copy, coverage=False)
    assert done.returncode == 0, said(done)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder on Python's path into which pip has installed the example"
    pip_install(EXAMPLE, site := tmp_path_factory.mktemp("plugin") / "site")
    return site


class Workspace:
    "A folder with a settings.ini, and plugins on Python's path"
    def __init__(self, folder: Path, site: Path, allowed: str = NAME) -> None:
        self.folder, self.site = folder, site
        (folder / "settings.ini").write_text(f"[DEFAULT]\nplugins = {allowed}\nsinks = jsonl{', csv' if NAME in allowed else ''}\n")

    def sh(self, *args: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        "A command of ours; a mistake is one message, no traceback"
        done = run("rlstudio", *args, cwd=self.folder, coverage=False, PYTHONPATH=str(self.site))
        assert done.returncode == code and "Traceback" not in done.stdout + done.stderr, said(done)
        return done


def altered(site: Path, tmp_path: Path, file: str, old: str, new: str) -> Workspace:
    "A workspace whose plugin has one thing changed"
    copy = shutil.copytree(site, tmp_path / "site")
    path = next(copy.glob(file))
    assert old in (text := path.read_text())
    path.write_text(text.replace(old, new))
    return Workspace(tmp_path, copy)


# The life of a plugin

def test_listed_and_refused_until_it_is_allowed(site: Path, tmp_path: Path) -> None:
    "Name, version, origin, interface and what it brings are known; nothing is imported, and every use says what to do"
    here = altered(site, tmp_path, "*/world.py", '"A room', 'open("imported", "w")\n"A room')
    (tmp_path / "settings.ini").unlink()
    plugin, = json.loads(here.sh("plugins", "--json").stdout)["plugins"]
    assert {k: plugin[k] for k in ("name", "version", "api", "allowed", "problems")} == dict(name=NAME, version="1.0.0", api="1.0", allowed=False, problems=[])
    assert plugin["origin"].endswith(f"source-{NAME}") and {p["group"] for p in plugin["brings"]} == {"algos", "commands", "engines", "envs", "nets", "sinks"}
    refused = here.sh("heat", "room", code=2).stderr, here.sh("run", EXAMPLE / "room.yaml", code=2).stderr
    assert all(f"which is not allowed; plugins are code: if you trust it, write `plugins = {NAME}` in settings.ini" in why for why in refused), refused
    assert "heat" not in here.sh("--help").stdout and f"not allowed; if you trust it, write `plugins = {NAME}`" in here.sh("plugins", "explain", "rlstudio.example_plugin").stdout
    assert not (tmp_path / "imported").exists()


LIFE = '''
import json, sys
from pathlib import Path
import rlstudio
from rlstudio.runs.export import export_agent
from rlstudio.runs.run import Run
config, small, world = sys.argv[1], sys.argv[2].split(), Path(sys.argv[3])

class Stop:
    name = ""
    def __getattr__(self, event): return lambda trainer: trainer.stop("enough", interrupt=True) if event == "on_iteration_end" and trainer.env_steps >= 512 else None

def begun(name):
    run = Run.from_config(config, small, name=name)
    assert run.train([Stop()], "silent")["status"] == "interrupted"

whole = Run.from_config(config, small, name="whole").train(display="silent")
begun("halves")
halves = Run.open("runs/halves").train(display="silent")
begun("changed")
world.write_text(world.read_text() + "\\n# better now\\n")
changed = Run.open("runs/changed").train(display="silent")
export_agent(Run.open("runs/whole").agent(), "agent")
agent = rlstudio.load_agent("agent")
print(json.dumps(dict(whole=whole, halves=halves, changed=changed, action=int(agent([25., 0.])), versions=Run.open("runs/whole").manifest["versions"])))
'''


def test_used_resumed_and_exported(site: Path, tmp_path: Path) -> None:
    "World, network, algorithm and sink in one config; a stop in the middle changes no bit; a changed plugin lowers the level; the agent leaves; the plugin's command uses it"
    copy = shutil.copytree(site, tmp_path / "site")
    here = Workspace(tmp_path, copy)
    done = run(sys.executable, "-c", LIFE, EXAMPLE / "room.yaml", " ".join(SMALL), copy / "rlstudio_example_plugin/world.py", cwd=tmp_path, coverage=False, PYTHONPATH=str(copy))
    assert done.returncode == 0, said(done)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["whole"]["algo"] == "awr" and told["whole"]["env"] == "example/Room-v0" and told["whole"]["status"] == "completed"
    assert told["halves"]["weights_sha256"] == told["whole"]["weights_sha256"] and told["halves"]["level"] == "L3"
    assert re.fullmatch("1.0.0 [0-9a-f]{12}", told["versions"][f"plugin {NAME}"])
    assert told["changed"]["level"] == "L1" and f"resumed under other versions (plugin {NAME}: 1.0.0" in done.stderr
    rows = [[line.rsplit(",", 1)[0] for line in (tmp_path / "runs" / name / "metrics.csv").read_text().splitlines() if "time/" not in line] for name in ("whole", "halves")]
    assert rows[0] == rows[1] and len(rows[0]) == len(set(rows[0])) > 20, "the sink shows a step twice, or loses one"
    assert told["action"] in (0, 1) and (tmp_path / "agent/agent.json").is_file()
    assert len(here.sh("heat", "whole", "--steps", "5").stdout.splitlines()) == 5
    assert "nowhere: not a run" in here.sh("heat", "nowhere", code=2).stderr, "a mistake in a plugin's command is explained like one of ours"
    assert json.loads(here.sh("verify", "whole", "--json").stdout)["whole"]
    with pytest.raises(AgentError, match=f"this agent was made with the plugin {NAME} 1.0.0; .* pip install {NAME}, and allow it"): load_agent(tmp_path / "agent")   # it is not installed here
    with pytest.raises(RunError, match=f"unknown algorithm 'awr'.* this run was made with the plugin {NAME} 1.0.0: pip install {NAME}"): Run.open(tmp_path / "runs/whole")


def test_an_engine_of_a_plugin(site: Path, tmp_path: Path) -> None:
    "It trains, differs from the tape by rounding alone, repeats, and is audited under itself; misspelt it is named with its line"
    here, ini = Workspace(tmp_path, site), tmp_path / "settings.ini"
    allowed = ini.read_text()
    here.sh("run", EXAMPLE / "room.yaml", *SMALL, "--name", "tape", "--quiet")
    ini.write_text(f"{allowed}engine = wide\n")
    here.sh("run", EXAMPLE / "room.yaml", *SMALL, "--name", "wide", "--quiet")
    manifest = json.loads((tmp_path / "runs/wide/manifest.json").read_text())
    assert (manifest["engine"], manifest["engine_why"], manifest["level"]) == ("wide", "the tape, and Adam with 64 bits inside", "L3")
    ini.write_text(allowed)      # the ledger says which engine it was
    assert "equal" in here.sh("audit", "wide").stdout
    tape, wide = (load_file(max((tmp_path / "runs" / name).glob("checkpoints/step_*/*.safetensors"))) for name in ("tape", "wide"))
    moved = {k: abs(tape[k] - wide[k]).max() for k in tape if k.startswith("weights") and tape[k].dtype == "float32"}
    assert moved and 0 < max(moved.values()) < 1e-3, moved
    ini.write_text(f"{allowed}engine = wid\n")
    assert "settings.ini:4:1: engine: given 'wid', no engine; did you mean 'wide'?" in here.sh("run", EXAMPLE / "room.yaml", code=2).stderr
    ini.write_text("[DEFAULT]\nengine = wide\n")
    assert "engine 'wide' comes with the plugin rlstudio-example-plugin, which is not allowed" in here.sh("run", "ppo/cartpole", code=2).stderr and not (tmp_path / "runs/cartpole").exists()


def test_checked(site: Path, tmp_path: Path) -> None:
    "Everything that the example brings is what its group wants, and its command stands in the help"
    here = Workspace(tmp_path, site)
    checked, = json.loads(here.sh("plugins", "check", "--json").stdout)
    assert checked["ok"] and [(p["group"], p["problem"]) for p in checked["parts"]] == [(g, "") for g in ("algos", "commands", "engines", "envs", "nets", "sinks")]
    shown = here.sh("--help").stdout
    assert re.search(r"heat +A room to heat, a network", shown) and re.search("plugins +What others have written", shown)


@pytest.mark.faults(34)
def test_refused_when_the_interface_does_not_fit(site: Path, tmp_path: Path) -> None:
    "Before anything of it is imported"
    here = altered(site, tmp_path, "*.dist-info/entry_points.txt", "1.0 = ", "2.0 = ")
    for file in (tmp_path / "site/rlstudio_example_plugin").glob("*.py"): file.write_text("open('imported', 'w')")
    why = "was made for version 2.0 of the plugin interface, and this RLStudio has 1.0; install a newer version of RLStudio"
    assert f"plugin '{NAME}' {why}, or take it out of `plugins` in settings.ini" in here.sh("run", EXAMPLE / "room.yaml", code=2).stderr
    assert why in here.sh("plugins").stdout and why in here.sh("plugins", "check", code=3).stdout
    assert not (tmp_path / "imported").exists()


@pytest.mark.faults(34)
@pytest.mark.parametrize("how, why", [("raise OSError('no room')", "failed to load its network 'symlog': OSError: no room"), ("import os; os._exit(9)", "ended the process with exit code 9 while it was imported")])
def test_isolated_when_its_import_fails(site: Path, tmp_path: Path, how: str, why: str) -> None:
    "The part is named, with its reason; the others work"
    here = altered(site, tmp_path, "*/network.py", "import torch", how)
    checked, = json.loads(here.sh("plugins", "check", "--json", code=3).stdout)
    assert [p["group"] for p in checked["parts"] if not p["problem"]] == ["algos", "commands", "engines", "envs"] + ["sinks"] * ("raise" in how)
    assert why in next(p["problem"] for p in checked["parts"] if p["group"] == "nets")
    if "raise" not in how: return
    assert why in here.sh("run", EXAMPLE / "room.yaml", *SMALL, code=2).stderr
    assert json.loads(here.sh("run", EXAMPLE / "room.yaml", *SMALL, "net.encoder=flat", "--json").stdout)["status"] == "completed"


@pytest.mark.faults(34)
@pytest.mark.parametrize("group, name, kind", [("commands", "run", "command"), ("envs", "CartPole-v1", "environment"), ("sinks", "jsonl", "metric sink")])
def test_named_when_it_shadows(site: Path, tmp_path: Path, group: str, name: str, kind: str) -> None:
    "A name of ours stays ours, and the plugin is refused by name"
    here = altered(site, tmp_path, "*.dist-info/entry_points.txt", f"[rlstudio.{group}]\n", f"[rlstudio.{group}]\n{name} = rlstudio_example_plugin.world:Room\n")
    assert f"claims the {kind} {name!r}, which RLStudio itself brings; it has to choose another name" in here.sh("plugins").stdout
    assert f"plugin '{NAME}' claims the {kind} {name!r}, but that name is taken" in here.sh("check-env", "CartPole-v1", code=2).stderr
    assert "Train what a config describes" in here.sh("run", "--help").stdout


def test_the_how_to_and_both_packages_pass_their_own_tests(site: Path, tmp_path: Path) -> None:
    "What docs/pages/howto/plugin.md says is typed: a package from the template, installed, allowed, checked, trained; and what a plugin tests of itself passes"
    here, page = Workspace(tmp_path, shutil.copytree(site, tmp_path / "site"), ""), (ROOT / "docs/pages/howto/plugin.md").read_text()
    done = ""
    for language, code in re.findall(r"^```(sh|ini)\n(.*?)^```$", page, re.M | re.S):
        if code.startswith("# settings.ini"): (tmp_path / "settings.ini").write_text(code)
        elif language == "ini": assert not set(code.splitlines()) - set((tmp_path / "my-worlds/pyproject.toml").read_text().splitlines()), "the page shows another pyproject.toml than the template has"
        else:
            for line in code.splitlines():
                if line.startswith("pip install -e "): pip_install(tmp_path / line.split()[-1], here.site)
                else: done = here.sh(*line.split()[1:], *(["train.total_steps=4096", "--json"] if " run " in line else [])).stdout
    assert json.loads(done)["status"] == "completed" and json.loads(done)["eval_return_mean"] > .5
    assert "exists already" in here.sh("plugins", "new", "my-worlds", code=2).stderr
    tests = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", tmp_path, "--import-mode=importlib", tmp_path / "my-worlds/tests",
                site.with_name(f"source-{NAME}") / "tests", cwd=tmp_path, coverage=False, PYTHONPATH=str(here.site))
    assert tests.returncode == 0 and "4 passed" in tests.stdout, said(tests)


# Commands

def test_every_command_is_an_entry_point() -> None:
    "So that no plugin can take its name, and each name leads to the function that the command line calls"
    from rlstudio.studio.cli import app
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["rlstudio.commands"]
    own = {name: f"rlstudio.studio.cli:{getattr(command.callback, '__name__', '')}" for name, command in typer.main.get_command(app).commands.items()}   # type: ignore[attr-defined]
    assert {n: v for n, v in points.items() if v.startswith("rlstudio.studio.cli:")} == own, "write them into pyproject.toml, then pip install -e ."


# What plugins rely on

def test_public_names_are_those_of_the_snapshot() -> None:
    "A change of the interface is a decision"
    come, gone = public_names.changes(public_names.FILE.read_text(), now := public_names.text_of(public_names.public_names()))
    assert now == public_names.FILE.read_text(), f"python tests/public_names.py writes the snapshot anew; come: {come}; gone or changed: {gone} (ADR 0018)"


def test_the_snapshot_notices() -> None:
    source = "__all__ = ['f', 'A', 'N']\nN = 3\ndef f(x, y=1, *, z): pass\nclass A:\n    n: int = 3\n    def __init__(self, a): pass\n    def go(self, far): pass\n    def _own(self): pass\ndef hidden(): pass\n"
    assert sorted(public_names.names_of(source, "m")) == ["m.A(a)", "m.A.go(far)", "m.A.n=", "m.N", "m.f(x, y=, *, z)"]
    assert public_names.changes("# 1\na\nb", "# 2\na\nc") == (["c"], ["b"])


def overdue(source: str, version: str) -> list[str]:
    "Deprecations whose time has come"
    numbers = tuple(map(int, version.split(".")[:2]))
    return [since for since in re.findall(r"\bsince=['\"]([\d.]+)['\"]", source) if numbers >= tuple(map(int, goes_with(since).split(".")))]


def test_what_was_to_go_is_gone() -> None:
    "A name that began to warn in 0.2 is not in 0.3 any more"
    late = {p.name: found for p in PACKAGE.rglob("*.py") if (found := overdue(p.read_text(), rlstudio.__version__))}
    assert not late and overdue("@deprecated('g', since='0.2')", "0.3.0") == ["0.2"] and not overdue("@deprecated('g', since='0.2')", "0.2.9")


OLD = """
from dataclasses import dataclass
from rlstudio.algos.a2c import A2C, A2CConfig
from rlstudio.core.registry import Successor, algos

@dataclass(frozen=True, kw_only=True)
class NewerConfig(A2CConfig):
    renamed = {"discount": Successor("gamma", since="0.2")}

@algos.register("newer")
class Newer(A2C): Config = NewerConfig

algos.rename("older", "newer", since="0.2")
"""


def test_an_old_name_and_an_old_key_train_and_warn_once(tmp_path: Path) -> None:
    "The run is the one of the new names; beside the new key the old one is a mistake"
    (tmp_path / "aged.py").write_text(OLD)
    (tmp_path / "aged.yaml").write_text("env: {id: CartPole-v1, num_envs: 2}\nalgo:\n  name: older\n  discount: 0.9\ntrain: {total_steps: 64}\neval: {episodes: 1}\n")
    done = run("rlstudio", "run", "aged.yaml", "--import", "aged", "--name", "old", "--json", cwd=tmp_path, coverage=False)
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "completed", said(done)
    for why in ("algorithm 'older' goes with RLStudio 0.3; write 'newer'", "the key algo.discount goes with RLStudio 0.3; write 'gamma'"): assert done.stderr.count(why) == 1, said(done)
    kept = (tmp_path / "runs/old/config.yaml").read_text()
    assert "gamma: 0.9" in kept and "discount" not in kept
    done = run("rlstudio", "run", "aged.yaml", "algo.gamma=0.9", "--import", "aged", cwd=tmp_path, coverage=False)
    assert done.returncode == 2 and "algo.discount: given beside gamma, which is its new name; expected one of them; remove discount" in done.stderr and "aged.yaml:4:3" in done.stderr, said(done)


@pytest.mark.parametrize("made_for, fits", [("1.0", True), ("1.2", True), ("", True), ("1.3", False), ("2.0", False), ("0.9", False), ("1", False), ("1.x", False), ("1.0.0", False)])
def test_which_interface_fits(made_for: str, fits: bool) -> None:
    assert (api_fault(made_for, "1.2") == "") == fits and api_fault(rlstudio.__api__) == ""
