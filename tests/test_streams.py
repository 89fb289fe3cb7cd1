"""`train.streams`: one named random stream gets a seed of its own, and nothing else moves"""
import json
from dataclasses import replace

import numpy as np
import pytest
from support import ROOT, run

from rlstudio import Run
from rlstudio.core.options import ConfigError, config_from_dict, config_hash, stream_names, to_dict
from rlstudio.core.registry import algos
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.config import load_config
from rlstudio.runs.folder import RunError
from rlstudio.train.trainer import Callback, Trainer

SMALL = dict(ppo=("CartPole-v1", dict(num_steps=32, num_epochs=2, num_minibatches=2)), a2c=("CartPole-v1", dict(num_steps=8)),
             dqn=("CartPole-v1", dict(learning_starts=64, batch_size=16, buffer_size=500, num_steps=16)),
             sac=("Pendulum-v1", dict(learning_starts=64, batch_size=16, buffer_size=500, num_steps=16)),
             td3=("Pendulum-v1", dict(learning_starts=64, batch_size=16, buffer_size=500, num_steps=16)))


class StopAt(Callback):
    def __init__(self, step): self.step = step
    def on_iteration_end(self, trainer):
        if trainer.env_steps >= self.step: trainer.stop("a test", interrupt=True)


def small(algo, **train):
    env, options = SMALL[algo]
    return config_from_dict(dict(env=dict(id=env, num_envs=2), algo=dict(name=algo) | options, net=dict(hidden=[16]), train=dict(total_steps=256) | train, eval=dict(episodes=2)))


def beginning(algo, **train):
    """Weights at the start, starts of the worlds, weights at the end"""
    t = Trainer(small(algo, **train))
    start, seeds = weights_sha256(t.algo.module), [t.streams.seed("env", i) for i in range(2)]
    return start, seeds, weights_sha256(t.train().algo.module), t


@pytest.mark.parametrize("algo", SMALL)
def test_each_stream_is_named_and_matters_alone(algo):
    start, seeds, end, t = beginning(algo, seed=1)
    drawn = {path.split("/")[1] for path in t.streams.state_dict()["streams"]}
    names = stream_names(algos.get(algo))
    assert drawn <= set(names), "a class names in `draws` what it draws from"
    assert beginning(algo, seed=1, streams=dict.fromkeys(names, 1))[:3] == (start, seeds, end), "the same seed by name is the same run"
    for name in names:
        a = beginning(algo, seed=1, streams={name: 7})
        assert (a[0] != start) == (name == "init")
        assert (a[1] != seeds) == (name == "env")
        assert (a[2] != end) == (name != "eval"), f"{name} plays a part in the training of {algo}"
    assert beginning(algo, seed=7, streams={name: 1 for name in names if name != "init"})[0] == beginning(algo, seed=1, streams=dict(init=7))[0] == beginning(algo, seed=7)[0]


def test_the_hash_of_a_config_without_streams_is_what_it_was():
    for folder in ("v2/a2c-memory", "v2/td3"):
        noted = json.loads((ROOT / "tests/fixtures" / folder / "manifest.json").read_text())
        config, _ = load_config(ROOT / "tests/fixtures" / folder)
        assert to_dict(config)["train"]["streams"] == {} and config_hash(config) == noted["config_hash"]
        assert config_hash(replace(config, train=replace(config.train, streams=dict(init=3)))) != config_hash(config)


def test_a_run_with_a_stream_of_its_own_resumes_exactly_and_judges_by_it(tmp_path):
    keys = dict(runs_dir=tmp_path)
    changes = ["train.total_steps=2048", "algo.num_steps=64", "eval.episodes=3", "train.streams.minibatch=5", "train.streams.eval=9"]
    whole = Run.from_config("ppo/cartpole", changes, name="whole", **keys)
    end = whole.train()
    half = Run.from_config("ppo/cartpole", changes, name="half", **keys)
    half.train(callbacks=[StopAt(1024)])
    assert half.status == "interrupted" and Run.open(half.folder).train()["weights_sha256"] == end["weights_sha256"]
    assert {e["seed"] for e in whole.files.evaluations} == {9}
    other = Run.from_config("ppo/cartpole", [*changes[:-1], "train.streams.eval=8"], name="other", **keys)
    assert other.train()["weights_sha256"] == end["weights_sha256"], "how it is judged changes nothing in what is learned"
    assert not np.array_equal(other.files.evaluations[-1]["returns"], whole.files.evaluations[-1]["returns"])
    with pytest.raises(RunError, match=r"train\.streams\.init: given 3, but this run goes on with null: its random streams began there"): Run.open(half.folder, ["train.streams.init=3"])


def test_a_stream_that_is_not_there_is_refused_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match="no stream of A2C, which draws from init, action, env, eval"): small("a2c", streams=dict(minibatch=3))
    file = tmp_path / "mine.yaml"
    file.write_text("env: {id: CartPole-v1}\nalgo: {name: ppo}\ntrain:\n  streams:\n    minibtach: 3\n")
    done = run("rlstudio", "run", file, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 2 and "mine.yaml:5:5: train.streams.minibtach: no stream of PPO, which draws from init, action, minibatch, env, eval; did you mean 'minibatch'?" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
