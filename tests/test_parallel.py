"""train.parallel: processes share the envs, and average their gradients. Equal bits for equal numbers of processes, equal sums for any number; whoever dies is named, and nobody is left."""
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe, get_context
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlstudio.core.options import Config, ConfigError, TrainConfig, config_from_dict, config_hash, to_dict
from rlstudio.envs.workers import shared_bytes
from rlstudio.evidence.verify import verify
from rlstudio.fast import parallel
from rlstudio.fast.parallel import ParallelError, SharedMeeting, SharedRanks, say_error, take_part
from rlstudio.runs.config import Settings
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback, Trainer
from tests.support import ROOT, child_env

BASE: dict[str, Any] = dict(env=dict(id="CartPole-v1", num_envs=6), algo=dict(name="ppo", num_steps=16, num_epochs=2, num_minibatches=3), net=dict(hidden=[16]),
                            train=dict(total_steps=576), eval=dict(episodes=1), checkpoint=dict(every=192))


def config(processes: int, **more: Any) -> Config:
    "The base, with other values"
    return config_from_dict({k: BASE.get(k, {}) | more.get(k, {}) | (dict(parallel=processes) if k == "train" else {}) for k in ("env", "algo", "net", "train", "eval", "checkpoint")})


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks are threads of this process, joined by the same memory and pipes: no second is lost on starting

    What they share beyond that, processes would not: torch's global generator, which a learner lends to its layers while it is made, and which the check of a world watches. So they are made one after the other."""
    made = threading.Lock()
    def make(*args: Any, **more: Any) -> Trainer:
        with made: return Trainer(*args, **more)
    monkeypatch.setattr(parallel, "Trainer", make)
    def find(trainer: Trainer) -> SharedRanks:
        size, room, started, ours = trainer.config.train.parallel, 1 << 16, [], []
        memory = shared_bytes(SharedMeeting(None, 0, size, room).bytes, get_context("spawn"))
        def other(rank: int, line: Any) -> None:
            ranks = SharedRanks(SharedMeeting(memory, rank, size, room), size, [line])
            try: take_part(ranks, ranks.hear())
            except (EOFError, OSError): return
            except Exception as e: say_error(line, e)
        for rank in range(1, size):
            here, there = Pipe()
            thread = threading.Thread(target=other, args=(rank, there), daemon=True)
            thread.start()
            ours.append(here)
            started.append(SimpleNamespace(process=SimpleNamespace(exitcode=None, join=thread.join), alive=SimpleNamespace(close=lambda: None)))
        return SharedRanks(SharedMeeting(memory, 0, size, room), size, ours, started)
    monkeypatch.setattr(parallel, "find_ranks", find)


def vector(trainer: Trainer) -> np.ndarray: return trainer.algo.parts["agent"].flat.vector.detach().numpy().copy()


def trained(c: Config, engine: str = "auto", until: int | None = None, state: Any = None) -> tuple[Trainer, Any]:
    "A trainer at its end, and its state"
    t = Trainer(c, engine=engine)
    try:
        if state: t.load_state_dict(state)
        return t.train(until), t.state_dict()
    finally: t.env.close()


@pytest.mark.parametrize("more", [
    dict(), dict(algo=dict(name="a2c", num_steps=16)), dict(env=dict(id="Pendulum-v1", num_envs=5), algo=dict(num_minibatches=4)),
    dict(algo=dict(target_kl=1e-4)), dict(algo=dict(num_minibatches=48)), dict(env=dict(id="FrozenLake-v1")),
], ids=["ppo", "a2c", "a box, unequal shares", "target_kl", "two rows a minibatch", "a Gymnasium world"])
def test_the_sums_of_any_number_of_processes_are_those_of_one(threads: None, more: dict[str, Any]) -> None:
    processes = 3 if "env" in more else 2
    algo = BASE["algo"] | more.get("algo", {}) if more.get("algo", {}).get("name") != "a2c" else None
    def made(k: int) -> Config:
        return config(k, **(more | (dict(algo=algo) if algo else {}))) if algo else config_from_dict(to_dict(config(k)) | dict(algo=more["algo"]))
    (one, _), (many, _) = (trained(made(k), until=192) for k in (1, processes))
    assert many.env_steps == one.env_steps and many.episodes == one.episodes and many.metrics["schedule/epochs" if algo else "train/iteration"] == one.metrics["schedule/epochs" if algo else "train/iteration"]
    assert np.abs(vector(one) - vector(Trainer(one.config))).max() > 1e-4
    assert np.allclose(vector(one), vector(many), atol=2e-5), "the sums differ by more than their order"
    for name in ("loss/policy", "loss/value", "policy/entropy", "grad/norm", "episode/return_mean"): assert np.isclose(one.metrics[name], many.metrics[name], rtol=1e-3, atol=1e-5, equal_nan=True), name
    a, b = one.algo.module.state_dict(), many.algo.module.state_dict()
    for name in a:
        if a[name].shape == b[name].shape: assert np.allclose(a[name].numpy(), b[name].numpy(), atol=1e-4), name
    assert many.algo.module.obs_norm.count == one.env_steps


@pytest.mark.parametrize("engine", ["auto", "autograd", "compiled"])
def test_equal_bits_and_an_exact_resume(threads: None, engine: str) -> None:
    if engine == "compiled": pytest.importorskip("numba")
    whole, state = trained(config(2), engine)
    _, halfway = trained(config(2), engine, until=192)
    resumed, again = trained(config(2), engine, state=halfway)
    assert vector(whole).tobytes() == vector(resumed).tobytes() and list(whole.recent) == list(resumed.recent)
    assert state["streams"] == again["streams"] and (state["ranks"]["1"]["stepper"]["env"]["state"] == again["ranks"]["1"]["stepper"]["env"]["state"]).all()


class Shout(Callback):
    "Raises in the first rank, in the third iteration"
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration == 3: raise KeyError("a user's mistake")


def test_an_error_in_either_rank_is_raised_as_it_is(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    t = Trainer(config(2), [Shout()])
    with pytest.raises(KeyError, match="a user's mistake"): t.train()
    t.env.close()
    t = Trainer(config(2))
    t.step()
    whole = parallel.report_of
    def bad(trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        if trainer is not t: raise ZeroDivisionError("in the world of another rank")
        return whole(trainer, metrics)
    monkeypatch.setattr(parallel, "report_of", bad)
    with pytest.raises(ZeroDivisionError, match="in the world of another rank"): t.step()
    monkeypatch.setattr(parallel, "report_of", lambda trainer, metrics: whole(trainer, metrics) | dict(weights=trainer is t))
    t.algo.__dict__["collect"].__self__.leave()
    with pytest.raises(ParallelError, match="rank 1 of 2 has other weights than the first one"): t.step()
    t.env.close()


def test_refusals_and_the_hash_of_one_process() -> None:
    assert config_hash(TrainConfig(parallel=1)) == config_hash(TrainConfig()) != config_hash(TrainConfig(parallel=2))
    for more, why in (dict(net=dict(core="lstm")), "net.core = lstm"), (dict(env=dict(num_envs=1), algo=dict(num_minibatches=2)), "given 2 processes for env.num_envs = 1"):
        with pytest.raises(ConfigError, match=f"train.parallel: .*{why}"): Trainer(config(2, **more))


class Kill(Callback):
    "Kills a process of the team in the middle of the training, as a full memory would"
    children: list[int]
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration != 4: return
        started = trainer.algo.__dict__["collect"].__self__.found.started
        self.children, self.at = [s.process.pid for s in started], time.monotonic()
        os.kill(self.children[0], signal.SIGKILL)


def gone(pid: int) -> bool:
    try: os.kill(pid, 0)
    except ProcessLookupError: return True
    return False


def test_a_killed_rank_is_named_and_the_run_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    s = Settings(runs_dir=str(tmp_path))
    whole = Run.from_config(config(2), name="whole", settings=s).train()
    assert whole["status"] == "completed" and whole["total_steps"] == 576 and verify(tmp_path / "whole").whole
    run, kill = Run.from_config(config(2), name="killed", settings=s), Kill()
    with pytest.raises(ParallelError, match=r"rank 1 of 2 was killed by SIGKILL.*rlstudio resume"): run.train([kill])
    assert time.monotonic() - kill.at < 10 and all(map(gone, kill.children)) and run.status == "failed"
    assert Run.open(tmp_path / "killed", settings=s).train()["weights_sha256"] == whole["weights_sha256"]
    with pytest.raises(Exception, match="train.parallel.*each process has episodes in flight"): Run.open(tmp_path / "killed", train=dict(parallel=3), settings=s)
    assert run.agent().act is not None

    # the same team, started by torchrun and joined by TCP
    (tmp_path / "c.yaml").write_text((tmp_path / "whole" / "config.yaml").read_text())
    args = ["run", str(tmp_path / "c.yaml"), "--name", "torch", "--runs-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "rlstudio.fast.parallel", *args],
                          cwd=tmp_path, env=child_env() | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Run.open(tmp_path / "torch", settings=s).read("result.json")["weights_sha256"] == whole["weights_sha256"]
