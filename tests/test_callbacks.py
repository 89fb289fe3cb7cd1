"Ready-made callbacks and the best checkpoint: each stop is for good, is remembered, and survives a kill at any point."
import json
import math
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import run, said

from rlstudio.core.options import ConfigError, config_from_dict, config_hash
from rlstudio.runs.checkpoint import CRASH_POINTS, SaveBest, best_checkpoint, checkpoints, latest_checkpoint
from rlstudio.runs.config import find_config, load_config
from rlstudio.runs.run import FilmEvery, Run, RunError
from rlstudio.train.callbacks import CallbackError, EarlyStop, LinearAnneal, TimeLimit, can_anneal
from rlstudio.train.evaluate import Evaluate
from rlstudio.train.metrics import GLOSSARY, UNEXPLAINED, MetricError, read_metrics
from rlstudio.train.trainer import Callback, Trainer

FAST = ["train.total_steps=8192", "eval.episodes=4", "checkpoint.every=2048", "env.num_envs=8"]


def fresh(folder: Path, *more: str, config: str = "ppo/cartpole", name: str | None = None) -> Run:
    return Run.from_config(config, [*FAST, *more], runs_dir=folder, name=name)


class Halt(Callback):
    "Interrupts after so many iterations, as Ctrl-C does"
    def __init__(self, iteration: int): self.iteration = iteration
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration == self.iteration: trainer.stop("no time", interrupt=True)


# Early, and complete

def test_a_stop_by_a_callback_completes_the_run(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None:
            if trainer.iteration == 3: trainer.stop("reward reached")

    r = fresh(tmp_path)
    summary = r.train([Enough()])
    assert summary["status"] == r.status == "completed" and summary["total_steps"] == 3072 < 8192
    assert summary["stopped_early"] == r.manifest["stopped_early"] == r.read("result.json")["stopped_early"] == "reward reached"
    assert summary["eval_episodes"] == 4 and summary["eval_return_mean"] is not None
    assert (r.folder / "plots/learning_curve.png").is_file() and (r.folder / "videos/rollout.webp").is_file()
    again = run("rlstudio", "resume", r.folder)
    assert again.returncode == 0 and "stopped early: reward reached" in again.stdout, said(again)
    assert Run.open(r.folder).train() == summary


@pytest.mark.faults(3)
def test_a_signal_interrupts(tmp_path: Path) -> None:
    class Signal(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None:
            if trainer.iteration == 2: os.kill(os.getpid(), signal.SIGINT)

    r = fresh(tmp_path)
    summary = r.train([Signal()])
    assert summary["status"] == r.status == "interrupted" and r.manifest["stopped_by"] == "SIGINT" and "stopped_early" not in r.manifest
    done = Run.open(r.folder).train()
    assert done["status"] == "completed" and done["stopped_early"] is None and done["total_steps"] == 8192


@pytest.mark.faults(1)
def test_a_stop_survives_a_kill_before_the_end(tmp_path: Path) -> None:
    "The last checkpoint knows that it is over: the next process only evaluates"
    code = """if True:
    import os, signal, sys
    from rlstudio.runs import run as chapter
    from rlstudio.train.callbacks import EarlyStop
    chapter.finish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    chapter.Run.open(sys.argv[1]).train([EarlyStop('train/iteration', threshold=3)])"""
    r = fresh(tmp_path)
    done = run(sys.executable, "-c", code, r.folder, coverage=False)
    assert done.returncode == -signal.SIGKILL and Run.open(r.folder).status == "killed", said(done)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        summary = Run.open(r.folder).train()
    assert (summary["status"], summary["total_steps"], summary["stopped_early"]) == ("completed", 3072, "train/iteration is 3, threshold 3")
    assert any("early_stop train/iteration" in str(w.message) for w in heard), "a callback that is missing is named"


def test_an_event_that_nobody_has_heard_of(tmp_path: Path) -> None:
    "A misspelt method would never be called; a method of the user's own is nobody's business"
    class Misspelt(Callback):
        def on_iteration_ends(self, trainer: Trainer) -> None: ...
    class Own(Callback):
        def on_my_way(self) -> None: ...
    run_ = Run.from_config(load_config("ppo/cartpole", "total_steps=1024 env.num_envs=8 eval.episodes=1")[0], runs_dir=tmp_path)
    with pytest.raises(RunError, match=re.escape("train: Misspelt.on_iteration_ends: no such event; did you mean 'on_iteration_end'?")): run_.train([Misspelt()])
    assert run_.train([Own()])["status"] == "completed"


def test_stop_at_goal(tmp_path: Path) -> None:
    r = fresh(tmp_path, "train.stop_at_goal=true", "eval.goal=5", "eval.every=2048")
    summary = r.train()
    assert summary["total_steps"] == 2048 and summary["solved"] and summary["stopped_early"].startswith("goal 5 reached: ")
    assert len(r.read("evaluations.json")) == 1, "what was just evaluated is not evaluated again"
    with pytest.raises(ConfigError, match="train.stop_at_goal: given true, but no goal is known for Pendulum-v1"):
        fresh(tmp_path, "env.id=Pendulum-v1", "train.stop_at_goal=true")


def test_time_limit(tmp_path: Path) -> None:
    summary = fresh(tmp_path, "train.max_minutes=1e-6").train()
    assert summary["status"] == "completed" and summary["total_steps"] == 1024 and summary["stopped_early"] == "time limit of 1e-06 min"


def test_time_is_added_up(tmp_path: Path) -> None:
    "Over all processes of the run"
    r = fresh(tmp_path, "train.max_minutes=60")
    r.train([Halt(2)])
    saved = latest_checkpoint(r.folder / "checkpoints")[0].state["callbacks"]["time_limit"]
    limit = TimeLimit(60, clock=lambda: 0.)
    limit.load_state_dict(dict(seconds=saved["seconds"] + 3599.))
    assert 0 < saved["seconds"] < 600 and limit.seconds > 3599


@pytest.mark.parametrize("kill", [1, 3, 4])
def test_early_stop_is_exact(tmp_path: Path, kill: int) -> None:
    def patient() -> EarlyStop: return EarlyStop("loss/value", patience=2, lower=True)

    whole = fresh(tmp_path, name="whole").train([patient()])
    r = fresh(tmp_path, name="cut")
    r.train([Halt(kill), patient()])
    resumed = Run.open(r.folder).train([patient()])
    same = "total_steps", "weights_sha256", "stopped_early", "status"
    assert [resumed[k] for k in same] == [whole[k] for k in same]


# The best

class Scores(Callback):
    "An evaluation read from a list, one number for each iteration"
    def __init__(self, *scores: float): self.scores = scores
    def on_iteration_end(self, trainer: Trainer) -> None: trainer.log("eval/return_mean", self.scores[trainer.iteration - 1])


UP_AND_DOWN = 1., 5., 3., 9000., 2., 9000., 4., 0.


def test_the_best_is_kept(tmp_path: Path) -> None:
    r = fresh(tmp_path)
    r.train([Scores(*UP_AND_DOWN)])
    best = best_checkpoint(r.folder / "checkpoints")
    assert best is not None and best.step == 4096 and best.meta["best"] == dict(metric="eval/return_mean", value=9000., step=4096)
    assert len(checkpoints(r.folder / "checkpoints/best")) == 1 and best.meta["config"] and best.meta["level"] == "L3"
    t = Trainer(r.config, [SaveBest(tmp_path / "other")])
    t.load_state_dict(best.state)
    t.train()
    newest = latest_checkpoint(r.folder / "checkpoints")[0]
    weights = newest.state["algo"]["module"]
    assert all((weights[k] == v).all() for k, v in t.algo.state_dict()["module"].items()), "the best can be resumed, exactly"


def test_the_last_weights_may_be_the_best(tmp_path: Path) -> None:
    r = fresh(tmp_path)
    r.train()
    best = best_checkpoint(r.folder / "checkpoints")
    assert best is not None and best.step == 8192 and best.meta["best"]["value"] == r.read("result.json")["eval_return_mean"]
    off = fresh(tmp_path, "checkpoint.best=false")
    off.train()
    assert best_checkpoint(off.folder / "checkpoints") is None and not (off.folder / "checkpoints/best").exists()


CRASH = """if True:
    import os, sys
    sys.path.insert(0, 'tests')
    from test_callbacks import *
    import rlstudio.runs.run as chapter
    class Doomed(SaveBest):
        def offer(self, trainer, score):
            if trainer.env_steps == int(sys.argv[1]): os.environ['RLSTUDIO_CRASH_AT'] = point
            return super().offer(trainer, score)
    chapter.SaveBest = Doomed
    for argument in sys.argv[2:]:
        folder, point = argument.split('=')
        if pid := os.fork(): os.waitpid(pid, 0); continue
        try: Run.open(folder).train([Scores(*UP_AND_DOWN)])
        finally: os._exit(0)"""


@pytest.mark.faults(1, 5)
def test_the_best_survives_a_kill_at_any_point(tmp_path: Path) -> None:
    quick = "eval.episodes=0", "algo.num_epochs=1"
    whole = fresh(tmp_path, *quick, name="whole")
    whole.train([Scores(*UP_AND_DOWN), Halt(5)])
    expected = best_checkpoint(whole.folder / "checkpoints")
    assert expected is not None
    runs = {point: fresh(tmp_path, *quick, name=f"crash-{i}") for i, point in enumerate(CRASH_POINTS)}
    done = run(sys.executable, "-c", CRASH, 4096, *(f"{r.folder}={point}" for point, r in runs.items()), coverage=False)
    assert done.returncode == 0, said(done)
    for i, (point, r) in enumerate(runs.items()):
        home, left = r.folder / "checkpoints", best_checkpoint(r.folder / "checkpoints")
        assert r.status == "killed" and left is not None, point
        assert left.step == (4096 if i >= CRASH_POINTS.index("folder renamed") else 2048), point
        Run.open(r.folder).train([Scores(*UP_AND_DOWN), Halt(5)])
        found = best_checkpoint(home)
        assert found is not None and (found.step, found.meta["best"]) == (4096, expected.meta["best"]), point
        assert int(checkpoints(home / "best")[0].name[5:]) == 4096 and not list((home / "best").glob(".tmp-*"))
        mine, theirs = (c.state["algo"]["module"] for c in (found, expected))
        assert all((mine[k] == theirs[k]).all() for k in mine), point


def test_a_future_that_did_not_happen(tmp_path: Path) -> None:
    "Killed after its best, before the next ordinary checkpoint: the best of before is there, and the run goes on to the same end"
    r = fresh(tmp_path, "checkpoint.every=8192", "eval.episodes=0")
    r.train([Scores(*UP_AND_DOWN), Halt(3)])
    code = CRASH.replace("os.environ['RLSTUDIO_CRASH_AT'] = point", "os.kill(os.getpid(), 9)")
    done = run(sys.executable, "-c", code, 5 * 1024, f"{r.folder}=", coverage=False)
    home = r.folder / "checkpoints"
    best = best_checkpoint(home)
    assert r.status == "killed" and best is not None and best.step == 4096, said(done)
    Run.open(r.folder).train([Scores(1., 5., 3., 4., 4., 4., 4., 4.), Halt(5)])   # another future
    best = best_checkpoint(home)
    assert best is not None and best.step == 2048 and best.meta["best"]["value"] == 5.


def test_a_longer_budget_after_an_early_end(tmp_path: Path) -> None:
    "A run that was ended early says so, and goes on when it is told to; its best is not forgotten"
    r = fresh(tmp_path, "train.stop_at_goal=true", "eval.goal=5", "eval.every=2048")
    r.train()
    told = run("rlstudio", "resume", r.folder)
    assert told.returncode == 0 and "complete at 2,048 env steps (stopped early: goal 5 reached: " in told.stdout, said(told)
    longer = Run.open(r.folder, ["train.stop_at_goal=false"]).train()
    assert (longer["total_steps"], longer["status"], longer["stopped_early"]) == (8192, "completed", None)
    best, scores = best_checkpoint(r.folder / "checkpoints"), {e["env_steps"]: e["mean"] for e in r.read("evaluations.json")}
    assert best is not None and best.meta["best"]["value"] == max(scores.values()) and scores.keys() == {2048, 4096, 6144, 8192}


# Evaluations on the way

def test_pace_of_a_real_run(tmp_path: Path) -> None:
    "There is a best without a word in the config; it costs a tenth, and not a bit of the training"
    long = ["train.total_steps=20480", "eval.every=null", "eval.episodes=20"]
    r = fresh(tmp_path, *long, name="paced")
    summary = r.train()
    asked = [e for e in r.read("evaluations.json") if e["env_steps"] < summary["total_steps"]]
    assert [e["env_steps"] // 10_000 for e in asked][:1] == [1] and len(asked) <= 4
    assert all(sum(sum(e["lengths"]) for e in asked[:k]) <= asked[k]["env_steps"] / 10 for k in range(1, len(asked)))
    alone = fresh(tmp_path, *long[:1], "eval.every=0", "eval.episodes=0", "checkpoint.best=false", name="alone").train()
    assert alone["weights_sha256"] == summary["weights_sha256"] and alone["untrained"] is None
    short = fresh(tmp_path, "eval.every=null")
    short.train()
    assert len(short.read("evaluations.json")) == 1


def test_evaluations_are_arrays_in_a_checkpoint() -> None:
    watcher = Evaluate()
    watcher.history = [dict(env_steps=3, mean=1., returns=[1., 2.], lengths=[3, 4], cut=[])]
    state, other = watcher.state_dict(), Evaluate()
    assert state["history"][0]["returns"].dtype == "float64" and state["history"][0]["lengths"].dtype == "int64"
    other.load_state_dict(state)
    assert other.history == watcher.history and json.dumps(other.history)
    other.load_state_dict(dict(history=watcher.history, asked=3))   # of before
    assert other.history == watcher.history and other.spent == 0


# Numbers of one's own

def test_numbers_of_a_callback_are_written(tmp_path: Path) -> None:
    class Own(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None:
            trainer.log("own/logged", trainer.iteration)
            trainer.metrics["own/set"] = 2. * trainer.iteration

    r = fresh(tmp_path, "train.total_steps=3072")
    r.train(Own())   # one, without a list
    assert [(m["own/logged"], m["own/set"]) for m in read_metrics(r.folder)] == [(1, 2.), (2, 4.), (3, 6.)]
    assert GLOSSARY["own/logged"].formula == GLOSSARY["own/set"].formula == UNEXPLAINED


# A number on a line

def annealed(config: str, key: str, end: float, steps: int, *more: str) -> Trainer:
    return Trainer(load_config(find_config(config), [f"train.total_steps={steps}", *more])[0], [LinearAnneal(key, end)])


def weights(t: Trainer) -> list[Any]: return [p.detach().numpy().copy() for p in t.algo.module.parameters()]


def test_a_line_is_the_schedule(tmp_path: Path) -> None:
    "A learning rate moved by the callback is the learning rate of `linear`, bit for bit"
    fixed, key = "algo.learning_rate_schedule=constant", "algo.learning_rate"
    by_hand = annealed("ppo/cartpole", key, 0., 6144, fixed).train()
    scheduled = annealed("ppo/cartpole", "algo.ent_coef", by_hand.config.algo.ent_coef, 6144, "algo.learning_rate_schedule=linear").train()
    constant = annealed("ppo/cartpole", "algo.ent_coef", by_hand.config.algo.ent_coef, 6144, fixed).train()
    assert all((a == b).all() for a, b in zip(weights(by_hand), weights(scheduled)))
    assert any((a != b).any() for a, b in zip(weights(by_hand), weights(constant)))


@pytest.mark.parametrize("key, end", [("algo.ent_coef", .05), ("algo.clip_range", .01)])
def test_a_line_survives_a_kill(tmp_path: Path, key: str, end: float) -> None:
    line = LinearAnneal
    whole = fresh(tmp_path, name="whole").train([line(key, end)])
    r = fresh(tmp_path, name="cut")
    r.train([line(key, end), Halt(3)])
    assert Run.open(r.folder).train([line(key, end)])["weights_sha256"] == whole["weights_sha256"]
    plain = fresh(tmp_path, name="plain").train()
    assert plain["weights_sha256"] != whole["weights_sha256"], f"{key} was moved, and nothing changed"


@pytest.mark.parametrize("algo, env, key, end", [
    ("a2c", "CartPole-v1", "algo.vf_coef", .1), ("dqn", "CartPole-v1", "algo.tau", .01), ("sac", "Pendulum-v1", "algo.tau", .5),
    ("sac", "Pendulum-v1", "algo.learning_rate", 1e-5), ("td3", "Pendulum-v1", "algo.target_noise", .01)])
def test_what_can_be_moved_has_an_effect(algo: str, env: str, key: str, end: float) -> None:
    "Each algorithm reads what it says that it reads"
    small = {} if algo == "a2c" else dict(learning_starts=100, num_steps=100, batch_size=32, buffer_size=1000)
    config = config_from_dict(dict(env=dict(id=env, num_envs=1), algo=dict(name=algo, **small, **({"learning_rate_schedule": "constant"})),
                                   net=dict(hidden=[16]), train=dict(total_steps=600)))
    moved, plain = Trainer(config, [LinearAnneal(key, end)]).train(), Trainer(config).train()
    assert any((a != b).any() for a, b in zip(weights(moved), weights(plain)))


def test_what_cannot_be_moved_is_refused(tmp_path: Path) -> None:
    for key, why in (("algo.num_epochs", "cannot change"), ("algo.learning_rate", "cannot change"), ("net.hidden", "cannot change")):
        with pytest.raises(CallbackError, match=f"{why}.*expected one of algo.gamma"): fresh(tmp_path).train([LinearAnneal(key, .1)])
    with pytest.raises(CallbackError, match="gamma: given 1.99"): fresh(tmp_path).train([LinearAnneal("algo.gamma", 2.)])
    sac = config_from_dict(dict(env=dict(id="Pendulum-v1", num_envs=1), algo=dict(name="sac", ent_coef=.2)))
    assert "algo.ent_coef" not in can_anneal(Trainer(sac)), "α is made once, from the config"


# Films on the way

def test_films_on_the_way(tmp_path: Path) -> None:
    r = fresh(tmp_path, "train.total_steps=4096")
    with_film = r.train([FilmEvery(r.folder, 2048)])
    films = sorted(p.name for p in (r.folder / "videos").iterdir())
    assert films == ["rollout.webp", "step_000000002048.webp", "step_000000004096.webp"]
    assert fresh(tmp_path, "train.total_steps=4096").train()["weights_sha256"] == with_film["weights_sha256"]


# Configs of before

def test_configs_of_before() -> None:
    "New keys have defaults, and a config that says the defaults is the same config"
    bare = dict(env=dict(id="CartPole-v1"), algo=dict(name="ppo"))
    told = bare | dict(train=dict(stop_at_goal=False, max_minutes=None), eval=dict(every=None), checkpoint=dict(best=True))
    assert config_hash(config_from_dict(bare)) == config_hash(config_from_dict(told))


def test_two_callbacks_of_one_name_keep_two_states(tmp_path: Path) -> None:
    "Both watch one metric: the patient one goes on counting where it was, and so does the other"
    def both() -> list[EarlyStop]: return [EarlyStop("loss/value", patience=n, lower=True, min_delta=9e9) for n in (50, 60)]
    config = config_from_dict(dict(env=dict(id="CartPole-v1", num_envs=2), algo=dict(name="ppo"), train=dict(total_steps=4096)))
    first, second = both(), both()
    trainer = Trainer(config, first)
    first[0].waited, first[1].waited = 7, 3
    Trainer(config, second).load_state_dict(trainer.state_dict())
    assert [c.waited for c in second] == [7, 3]


# What a user types

@pytest.mark.parametrize("value", [1, True, 2.5, np.float32(.5), np.int64(3), np.bool_(True), np.ones(()), np.ones((1, 1)), torch.tensor(2.), torch.ones(1, requires_grad=True), math.nan])
def test_one_number_is_logged(value: Any, tmp_path: Path) -> None:
    class Note(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None: trainer.log("mine/x", value)

    r = fresh(tmp_path, "train.total_steps=1024", "eval.episodes=0")
    r.train([Note()])
    assert type(r.history[-1]["mine/x"]) in (bool, int, float, type(None)) and (r.history[-1]["mine/x"] == value or math.isnan(float(value)))


@pytest.mark.parametrize("value, given", [("text", "given 'text'"), (None, "given None"), ([1, 2], r"given \[1, 2\]"), (np.ones(3), "given a ndarray of 3 numbers"), (torch.ones(2), "given a Tensor of 2 numbers"), (np.array("a"), r"given array\('a', dtype='<U1'\)")])
def test_what_is_no_number_is_not_logged(value: Any, given: str) -> None:
    "The metric is named, and so is what was given; not hours later, where a sink meets it"
    trainer = Trainer(load_config(find_config("ppo/cartpole"), FAST)[0])
    with pytest.raises(MetricError, match=f"'mine/x': {given}, expected one number; fix: "): trainer.log("mine/x", value)
    assert "mine/x" not in trainer.logged
    trainer.env.close()


def test_a_warning_points_at_the_line_of_the_script(tmp_path: Path) -> None:
    "Not into the package: what starts the training, the callback that did it, and Python's own display of it"
    file = tmp_path / "mine.py"
    file.write_text("import random\nfrom rlstudio import Callback, Run\n\nclass Draw(Callback):\n    def on_iteration_end(self, trainer): random.random()\n\n"
                    "run = Run.from_config('ppo/cartpole', ['train.total_steps=2048', 'eval.episodes=2', 'eval.max_steps=2'])\nrun.train(Draw(),\n          display='silent')\n")
    done = run(sys.executable, file, cwd=tmp_path, coverage=False)
    lines = [line for line in done.stderr.splitlines() if "Warning: " in line]
    assert done.returncode == 0 and len(lines) >= 2 and any("global generator" in line for line in lines) and any("eval.max_steps" in line for line in lines), said(done)
    assert all(re.match(rf"{re.escape(str(file))}:8: UserWarning: ", line) for line in lines) and "run.train(Draw()," in done.stderr, said(done)
    done = run(sys.executable, "-W", "error::UserWarning:__main__", file, cwd=tmp_path, coverage=False)
    assert done.returncode == 1 and "UserWarning" in done.stderr, "a filter by module sees the user's"
