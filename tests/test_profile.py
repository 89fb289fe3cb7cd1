"Where the time goes: the split adds up, a watch changes no bit, advice is tried, and the command explains mistakes."
import argparse
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from support import run, said
from typer.testing import CliRunner

from rlstudio.core.options import config_from_dict
from rlstudio.fast.profile import (
    Profile,
    Window,
    kinds_of,
    probe_update,
    profile_command,
    profile_config,
    profile_run,
    run_split,
    try_out,
    watched,
)
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.config import load_settings
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback, Trainer


def config(algo: str = "ppo", env: str = "CartPole-v1", steps: int = 512, **more: Any) -> Any:
    small = dict(num_steps=64, batch_size=16, learning_starts=64) if algo in ("dqn", "sac", "td3") else dict(num_steps=32)
    return config_from_dict(dict(env=dict(id=env, num_envs=2), algo=dict(name=algo, **small), net=dict(hidden=[16]), train=dict(total_steps=steps, seed=1), eval=dict(episodes=0)) | more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run, resumed once"
    home = tmp_path_factory.mktemp("profiled")
    run = Run.from_config(config(eval=dict(episodes=2, every=256)), runs_dir=home, name="one")

    class Halt(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None:
            if trainer.env_steps == 256: trainer.stop("halt", interrupt=True)

    run.train([Halt()], display="silent")
    Run.open(home / "one").train(display="silent")
    return home / "one"


@pytest.mark.parametrize(("algo", "env"), [("a2c", "Pendulum-v1"), ("sac", "Pendulum-v1"), ("td3", "Pendulum-v1"), ("dqn", "CartPole-v1")])
def test_a_watch_changes_no_bit(algo: str, env: str) -> None:
    "The weights are those of an unwatched training, and every place that an algorithm has is entered"
    plain, seen = Trainer(config(algo, env, 256)).train(), Trainer(config(algo, env, 256))
    laps = watched(seen)
    laps.start()
    laps.running = True
    seen.train()
    laps.go("")
    assert weights_sha256(plain.algo.module) == weights_sha256(seen.algo.module)
    assert {"env", "act", "store", "loss", "gradient", "optimizer", "update"} <= set(laps.calls)
    assert laps.calls["env"] == 256 // 2 and ("sample" in laps.calls) == (algo != "a2c" or "minibatch" in dir(seen.algo))


def test_callbacks_are_counted_where_they_say() -> None:
    "`timed_as` says where a callback's seconds go; one without it is a callback, and a pause is nobody's"
    spent = dict.fromkeys(("eval", "files", "callbacks"), 0)

    class Slow(Callback):
        def __init__(self, timed_as: str) -> None: self.timed_as = timed_as
        def on_iteration_end(self, trainer: Trainer) -> None:
            for _ in range(200_000): pass

    class Duck:   # listens without being a `Callback`
        def __getattr__(self, name: str) -> Any:
            if name.startswith("on_"): return lambda trainer: None
            raise AttributeError(name)
        name = ""

    for clock in (*spent, ""):
        t = Trainer(config(), [Slow(clock), Duck()]).train()   # type: ignore[list-item]
        told = {k: t.metrics[f"time/{k}"] for k in spent}
        assert not clock or told[clock] > 5 * max(x for k, x in told.items() if k != clock), (clock, told)
        assert clock or max(told.values()) < .2 * t.watch.total


def test_the_split_of_a_resumed_run(trained: Path) -> None:
    "Two processes' seconds are added; nothing is counted twice, and nothing is negative"
    run = Run.open(trained)
    split, records = run_split(run.history), run.history
    last = {k[5:]: x for k, x in records[-1].items() if k.startswith("time/")}
    assert set(split) == set(last) == {"env", "act", "update", "eval", "files", "callbacks"}
    assert all(split[k] >= last[k] >= 0 for k in split) and split["update"] > last["update"] > 0 and split["eval"] > 0
    assert run_split(json.loads('[{"step": 1, "time/env": "x"}, {"step": 2, "time/env": null}, {"step": 3}]')) == {}   # damaged, or older


def test_a_profile_of_a_run(trained: Path) -> None:
    "The config is measured here, and what the run logged stands beside it; the run itself is not touched"
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    found = profile_run(trained, seconds=.4)
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before
    assert found.run == run_split(Run.open(trained).history) and abs(sum(kinds_of(found).values()) - 1) < 1e-6 and "the whole run:" in str(found)
    assert found.config.train.total_steps == 512 and found.env_steps > 0 and found.calls["env"] * 2 == found.env_steps


def test_what_cannot_be_watched_is_left_out() -> None:
    "The compiled loop is one place, and a learner whose rows belong together is not asked for its calls"
    assert probe_update(Trainer(config()).algo, []) is None

    class Odd:
        def descend(self, rows: Any) -> None: raise ValueError("pieces of 32")

    assert probe_update(Odd(), range(64)) is None
    pytest.importorskip("numba")
    fast = profile_config(config(), seconds=.4, settings=replace(load_settings(), engine="compiled"))
    assert "rollout" in fast.shares and "env" not in fast.shares and fast.engine == "compiled"


def test_a_short_training_is_refused_with_a_fix() -> None:
    "A window that never opened has nothing to say"
    class Ends(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None: trainer.stop("enough")
    window = Window(watched, 60)
    Trainer(config(), [window, Ends()]).train()
    assert window.stage == 0 and window.env_steps == 0


def test_advice_is_tried() -> None:
    "A measured gain stands beside the estimate, and advice for people alone is left as it is"
    c = config()
    slow = Profile(c, "tape", {"env": 1., "act": 5., "store": 1., "gradient": 1., "callbacks:Mine": 4.}, {}, 1000, 500., .5, dict(cores=2, device="cpu", threads=1, on_policy=True, loop=False))
    done = try_out(slow, c, (), .3, load_settings()).tried
    assert len(done) == 2 and {a.measured is None for a in done} == {True, False}
    assert "measured" in str(replace(slow, tried=done)) and next(a for a in done if a.overrides).measured > 0


def test_the_command(trained: Path, tmp_path: Path) -> None:
    "One JSON object; a picture; a run by its folder; mistakes in one message"
    shell = typer.Typer()
    shell.command()(profile_command)
    def sh(*words: Any) -> Any: return CliRunner().invoke(shell, [str(w) for w in words])
    asked = sh(trained, "--seconds", .4, "--json", "--plot", tmp_path / "bar.svg")
    told = json.loads(asked.stdout)
    assert asked.exit_code == 0 and told["run"] and abs(sum(told["shares"].values()) - 1) < .02 and "profile of" in asked.stderr and (tmp_path / "bar.svg").stat().st_size > 1000
    for words, answer in ((("ppo/cartpol",), "did you mean"), ((trained, "env.num_env=3"), "did you mean 'num_envs'"), ((trained, "--plot", "x.gif"), "expected a file that ends in .png")):
        wrong = sh(*words)
        assert wrong.exit_code == 2 and answer in " ".join(wrong.output.split()) and "Traceback" not in wrong.output, wrong.output


def test_profile_needs_no_numba() -> None:
    "The chapter is of the part Fast, and does not import its kernels"
    assert "rlstudio.fast.kernels" not in (Path(sys.modules["rlstudio.fast.profile"].__file__ or "").read_text())


def test_the_table_of_the_peers_is_fresh() -> None:
    done = run(sys.executable, "benchmarks/peers", "--check", coverage=False)
    assert done.returncode == 0, said(done)


def test_every_peer_has_a_worker_and_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    "benchmarks/peers: a file does the work of each, and an environment that the pages use as well has the same packages there"
    monkeypatch.setattr(sys, "path", list(sys.path))
    here = Path(__file__).parents[1] / "benchmarks/peers"
    peers, pages = (runpy.run_path(str(here / f"{name}.py")) for name in ("__main__", "pages"))
    named = {name for case in peers["CASES"].values() for name in case.peers}
    assert named - {"cleanrl"} == set(peers["PACKAGES"]) and {"rllib", "cleanrl-envpool"} <= named
    assert not [name for name in named if not (here / f"work_{'sb3' if name == 'sbx' else name.split('-')[0]}.py").is_file()]
    homes: dict[str, list[str]] = {}
    for name, packages in (*((name.split("-")[0], p) for name, p in peers["PACKAGES"].items()), *(value[:2] for value in pages["PEERS"].values())): assert homes.setdefault(name, packages) == packages, name


def test_the_way_to_a_solved_world(monkeypatch: pytest.MonkeyPatch) -> None:
    "benchmarks/peers/solve.py: what fell short of the goal has no time, cold runs are told apart, ratios are those within a round"
    monkeypatch.setattr(sys, "path", list(sys.path))
    solve = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/peers/solve.py"))
    def row(library: str, round_: int, seconds: float, score: float = 500.) -> dict[str, Any]:
        return dict(session="s", library=library, round=round_, cold=round_ == 0, seconds=seconds, score=score) | (dict(whole=seconds + 1) if library.startswith("rlstudio") else {})
    rows = [row("sb3", 0, 30.), row("sb3", 1, 20.), row("sb3", 2, 1., 474.), row("sb3", 3, 24.), *(row("rlstudio-compiled", k, s) for k, s in enumerate((15., 2., 1., 3.))), row("sbx", 1, 9., 20.)]
    assert solve["summary"](rows) == [["rlstudio-compiled", "3 of 3", 2., 1., 3., 1., 3., 15.], ["sb3", "2 of 3", 22., 20., 24., 9., "–", 30.]]


def test_the_peers_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "benchmarks/peers: ratios are those within a round; what is stored is not made again; a peer that fails is left out, and the others go on"
    monkeypatch.setattr(sys, "path", list(sys.path))   # the script adds a folder
    peers = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/peers/__main__.py"))
    def row(library: str, round_: int, speed: float) -> dict[str, Any]:
        return dict(session="s", case="ppo", steps=1024, cores=1, library=library, round=round_, env_steps_per_second=speed, eval_return_mean=100., versions=dict(rlstudio="0"), version="1")
    rows = [row("rlstudio", 1, 400.), row("rlstudio", 2, 800.), row("sb3", 1, 100.), row("sb3", 2, 100.)]
    lines = peers["summary"](rows, "env_steps_per_second")
    assert [(x["library"], x["ratio"], x["ratio_least"], x["ratio_most"]) for x in lines] == [("rlstudio", 1., 1., 1.), ("sb3", 6., 4., 8.)]
    peers["draw"](lines, peers["CASES"]["ppo"], 1, tmp_path / "a.svg")
    peers["draw"](lines, peers["CASES"]["ppo"], 1, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    made: list[tuple[str, int]] = []
    def ours(name: str, case: str, seed: int, *rest: Any) -> dict[str, Any]:
        made.append((name, seed))
        return dict(env_steps_per_second=1., eval_return_mean=1.)
    def theirs(python: Path, name: str, *rest: Any) -> dict[str, Any]: raise peers["RunFailed"]("no")
    known = peers["rounds_of"].__globals__
    for name, value in dict(ours=ours, theirs=theirs, ROWS=tmp_path / "rows.jsonl").items(): monkeypatch.setitem(known, name, value)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("rlstudio", 1, 400.)) + "\n")
    options = argparse.Namespace(session="s", case="ppo", steps=1024, cores=1, rounds=2, no_store=False, rows=[])
    peers["rounds_of"](options, dict(rlstudio=Path("x"), sb3=Path("x")))
    assert made == [("rlstudio", 2)] and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
