"""Run folders of the present checkpoint version, frozen: `python tests/make_fixtures.py` makes those that are not there yet, and never one again.

They stand in tests/fixtures/v2. `tests/fixtures/resumed.json` says where each fixture of any version ends: weights after one more iteration, and for each identity of the arithmetic the hash at the end.
"""
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rlstudio.core.arithmetic import arithmetic_threads, identity, identity_key
from rlstudio.core.options import config_from_dict
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.checkpoint import SCHEMA_VERSION, checkpoints, load_checkpoint
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback, Trainer

FIXTURES = Path(__file__).parent / "fixtures"
RESUMED = FIXTURES / "resumed.json"
OFF = dict(learning_starts=100, num_steps=50, batch_size=32, buffer_size=400)
CASES: dict[str, dict[str, Any]] = {  # name → config; the second leg begins after four iterations
    "ppo-gymnasium": dict(env=dict(id="CartPole-v1", num_envs=2, backend="inprocess"), algo=dict(name="ppo", num_steps=64, num_minibatches=2, num_epochs=2),
                          net=dict(hidden=[8], normalize_obs=True, normalize_reward=True)),
    "a2c-memory": dict(env=dict(id="CartPole-v1", num_envs=2), algo=dict(name="a2c", num_steps=16), net=dict(hidden=[8], memory="gru", memory_size=8)),
    "dqn-all-parts": dict(env=dict(id="CartPole-v1", num_envs=2), algo=dict(name="dqn", n_step=3, prioritized=True, **OFF), net=dict(hidden=[8])),
    "sac": dict(env=dict(id="Pendulum-v1"), algo=dict(name="sac", **OFF), net=dict(hidden=[8])),
    "td3": dict(env=dict(id="Pendulum-v1", num_envs=2), algo=dict(name="td3", **OFF), net=dict(hidden=[8])),
}


class Stop(Callback):
    "Stops a training after its fourth iteration"
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration == 4: trainer.stop("SIGINT", interrupt=True)


def sample(trainer: Trainer) -> list[float]:
    "A few weights of each array, in order of names"
    state = sorted(trainer.algo.module.state_dict().items())
    return [float(x) for _, t in state for x in t.detach().double().reshape(-1)[:3].tolist()]


def where_it_ends(path: Path) -> dict[str, Any]:
    "From a checkpoint: the weights after one more iteration, and the hash at the end"
    saved = load_checkpoint(path)
    with arithmetic_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(config_from_dict(saved.meta["config"]))
        trainer.load_state_dict(saved.state)
        trainer.train(trainer.env_steps + 1)
        one = dict(env_steps=trainer.env_steps, weights=sample(trainer))
        return one | dict(end=weights_sha256(trainer.train().algo.module))


def close(a: list[float], b: list[float]) -> bool:
    "The numeric level, after one iteration of many updates"
    return len(a) == len(b) and np.allclose(a, b, rtol=0, atol=1e-5)


def fixtures() -> dict[str, Path]:
    "Name → a checkpoint to go on from, one that is not the end of its run"
    found = {}
    for run in sorted(FIXTURES.glob("v*/*/")):
        for path in checkpoints(run / "checkpoints"):
            if load_checkpoint(path).step < load_checkpoint(path).meta["config"]["train"]["total_steps"]: found[f"{run.parent.name}/{run.name}/{path.name}"] = path
    return found


def make(name: str) -> None:
    "A run that was stopped"
    with tempfile.TemporaryDirectory() as tmp:
        values = CASES[name] | dict(train=dict(total_steps=1000, seed=3), eval=dict(episodes=2), checkpoint=dict(every=5000, keep=1, best=False))
        run = Run.from_config(config_from_dict(values), runs_dir=tmp, name=name)
        run.train([Stop()])
        run.files.note(user="someone")
        (run.folder / "run.lock").unlink(missing_ok=True)
        shutil.copytree(run.folder, FIXTURES / f"v{SCHEMA_VERSION}" / name)


if __name__ == "__main__":
    for name in CASES:
        if not (FIXTURES / f"v{SCHEMA_VERSION}" / name).exists():
            make(name)
            print(f"{name}: made")
    known, key = json.loads(RESUMED.read_text()) if RESUMED.exists() else {}, identity_key(identity())
    for name, path in fixtures().items():
        got = where_it_ends(path)
        entry = known.setdefault(name, dict(env_steps=got["env_steps"], weights=got["weights"], ends={}))
        if not close(entry["weights"], got["weights"]): sys.exit(f"{name}: other weights than those that are known; nothing was written")
        if entry["ends"].setdefault(key, got["end"]) != got["end"]: sys.exit(f"{name}: another end than the one that is known; nothing was written")
    RESUMED.write_text(json.dumps(known, indent=1) + "\n")
