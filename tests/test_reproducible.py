"A run is a function of (config, seed): in another process, after a kill, whatever the global generators hold, and tomorrow."
import json
import random
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, run, said
from test_off_policy import config as off_policy

from rlstudio.core.arithmetic import changed_facts, identity, identity_key
from rlstudio.core.batch import Batch
from rlstudio.core.options import Config, config_from_dict
from rlstudio.core.seeding import Streams, untouched_generators
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.checkpoint import latest_checkpoint
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback, Trainer

GOLDEN = ROOT / "tests" / "golden.json"
WORLDS = {  # name → the config's env section
    "cartpole": dict(id="CartPole-v1"), "acrobot": dict(id="Acrobot-v1"), "mountaincar": dict(id="MountainCar-v0"),
    "mountaincarcontinuous": dict(id="MountainCarContinuous-v0"), "pendulum": dict(id="Pendulum-v1"),
    "cartpole in process": dict(id="CartPole-v1", backend="inprocess"), "pendulum in process": dict(id="Pendulum-v1", backend="inprocess"),
    "lunarlander": dict(id="LunarLander-v3"), "frozenlake": dict(id="FrozenLake-v1"), "taxi": dict(id="Taxi-v4"),
    "chain cut short": dict(id="rlstudio/Chain-v0", max_episode_steps=7),
    "identity": dict(id="rlstudio/Identity-v0", kwargs=dict(action="multi_binary")),
    "cartpole, a2c": dict(id="CartPole-v1"), "pendulum, a2c": dict(id="Pendulum-v1"),
}


def config(world: str, seed: int = 1, num_envs: int = 4) -> Config:
    algo = dict(name="a2c", num_steps=8) if world.endswith("a2c") else dict(name="ppo", num_steps=40, num_epochs=2, num_minibatches=2)
    return config_from_dict(dict(env=dict(num_envs=num_envs, **WORLDS[world]), algo=algo,
                                 net=dict(hidden=[16]), train=dict(total_steps=6 * 40 * num_envs, seed=seed)))


def trained(world: str, **kwargs: int) -> str: return weights_sha256(Trainer(config(world, **kwargs)).train().algo.module)


# train(N) = train(k), another process, train(N - k)

HALF = """
import json, sys
from pathlib import Path
sys.path.insert(0, 'tests')
from test_reproducible import *
from rlstudio.runs.checkpoint import latest_checkpoint, save_checkpoint
half, folder, ends = sys.argv[1], Path(sys.argv[2]), {}
for world in WORLDS:
    t, k = Trainer(config(world)), random.Random(world).randint(1, 5)
    if half == 'first': save_checkpoint(folder / world, k, t.train(k * 160).state_dict(), {})
    else:
        t.load_state_dict(latest_checkpoint(folder / world)[0].state)
        ends[world] = t.env_steps, t.env.level, weights_sha256(t.train().algo.module)
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def second_halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    "Where the trainings end that one process began and another one finished"
    folder = tmp_path_factory.mktemp("halves")
    for half, odd in ("first", {}), ("second", dict(PYTHONHASHSEED="3", TZ="Asia/Tokyo")):
        done = run(sys.executable, "-c", HALF, half, folder, coverage=False, **odd)
        assert done.returncode == 0, said(done)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("world", WORLDS)
def test_two_halves_are_a_whole(world: str, second_halves: dict[str, list]) -> None:
    steps, level, end = second_halves[world]
    assert 0 < steps < config(world).train.total_steps and (level, end) == ("exact", trained(world))


# No global generator

def test_training_neither_reads_nor_changes_global_generators() -> None:
    want = trained("cartpole")
    for seed in (0, 1):
        random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)  # noqa: NPY002 (that is the point)
        with untouched_generators(): assert trained("cartpole") == want
        with untouched_generators(): Trainer(config("cartpole in process")).train()


def test_another_seed_is_another_run() -> None:
    assert trained("cartpole", seed=2) != trained("cartpole")


def test_another_stream_or_env_shifts_no_other() -> None:
    alone, crowded = Streams(1), Streams(1)
    for name in ("env", "a new purpose", "action2"): crowded[name, 7].random(5)
    assert [alone.seed("env", i) for i in range(4)] == [crowded.seed("env", i) for i in range(64)][:4]
    for name in ("action", "minibatch", "init"): assert (alone[name].random(9) == crowded[name].random(9)).all()
    few, many = (Trainer(config("cartpole", num_envs=n)).stepper for n in (4, 16))
    right = np.ones(16, np.int64)
    for _ in range(60):
        a, b = few.step(Batch(action=right[:4])), many.step(Batch(action=right))
        assert all((x == b.fields[name][:4]).all() for name, x in a.fields.items())


# Golden values: a change that breaks one needs a reason in writing (CHANGELOG.md). Hashes are kept under the identity of the arithmetic
# that made them; where that is unknown, the first updates are compared (level L2). `python tests/test_reproducible.py` writes those of this machine.

GOLDEN_CASES = {w: config(w) for w in ("cartpole", "pendulum", "chain cut short", "cartpole, a2c")} | {c: off_policy(c) for c in ("dqn", "dqn, all parts", "sac", "td3")}


def fingerprint(case: str) -> dict[str, object]:
    "Initial weights, weights after the first updates, and the hash at the end"
    t = Trainer(GOLDEN_CASES[case])
    def row() -> list[float]: return next(p for p in t.algo.module.parameters() if p.ndim > 1)[0].detach().numpy().astype(float).round(9).tolist()
    start, first = row(), (t.train(160), row())[1]
    return dict(start=start, first=first, end=weights_sha256(t.train().algo.module))


def close(got: dict, known: dict) -> bool:
    "Level L2: equal initial weights, and equal ones after the first updates, to 1e-6"
    return all(len(got[part]) == len(known[part]) and np.allclose(got[part], known[part], rtol=0, atol=1e-6) for part in ("start", "first"))


def judge(case: str, got: dict, golden: dict[str, dict], key: str) -> str:
    "'exact' or 'close', or an `AssertionError` that says what to do"
    how = "if that is meant, say why in CHANGELOG.md and run: python tests/test_reproducible.py"
    for known, cases in golden.items(): assert close(got, cases[case]), f"{case}: the first updates differ from those on {known}; {how}"
    if key not in golden: return "close"
    assert got["end"] == golden[key][case]["end"], f"{case}: the bits changed; {how}"
    return "exact"


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden(case: str) -> None:
    key = identity_key(identity())
    if judge(case, fingerprint(case), json.loads(GOLDEN.read_text()), key) == "close":
        pytest.skip(f"level L2 only: the first updates agree to 1e-6, and no hash is known for this arithmetic ({key})")


def test_golden_can_fail() -> None:
    known = dict(start=[.1, .2], first=[.3], end="a")
    golden = {"here": {"x": known}}
    assert judge("x", known, golden, "here") == "exact" and judge("x", known | dict(end="b"), golden, "elsewhere") == "close"
    assert judge("x", known | dict(end="b", first=[.3 + 9e-7]), golden, "elsewhere") == "close"
    with pytest.raises(AssertionError, match="the bits changed"): judge("x", known | dict(end="b"), golden, "here")
    for part, value in ("start", [.1, .2 + 2e-6]), ("first", [.3 - 2e-6]), ("first", [.3, .3]):
        with pytest.raises(AssertionError, match="differ from those on here"): judge("x", known | {part: value}, golden, "elsewhere")


# Other arithmetic: the level says so

def elsewhere() -> dict[str, str]:
    "The environment in which this machine computes like another one"
    if "openblas" not in (blas := identity()["blas"]): pytest.skip(f"only OpenBLAS can be told to choose other kernels, found {blas}")
    return dict(OPENBLAS_CORETYPE="Nehalem" if "Haswell" in blas else "Haswell")


def stop_at(iteration: int) -> Callback:
    class Stop(Callback):
        def on_iteration_end(self, trainer: Trainer) -> None:
            if trainer.iteration == iteration: trainer.stop("no time", interrupt=True)
    return Stop()


GO_ON = "import sys; sys.path.insert(0, 'tests'); from test_reproducible import *; print(Run.open(sys.argv[1]).train([stop_at(4)])['level'])"


@pytest.mark.faults(20)
def test_other_arithmetic_lowers_the_level(tmp_path: Path) -> None:
    "For good: in the manifest, in every checkpoint and in the result, also when the run comes back"
    begun = Run.from_config("ppo/cartpole", ["train.total_steps=12288", "checkpoint.every=2048", "eval.episodes=2"], runs_dir=tmp_path)
    assert begun.train([stop_at(2)])["level"] == "L3" and begun.manifest["machine"] == identity("tape")
    stay, go, back = (Run.open(shutil.copytree(begun.folder, tmp_path / name)) for name in ("stay", "go", "back"))
    assert stay.train()["level"] == stay.manifest["level"] == "L3"

    done = run("rlstudio", "resume", go.folder, "--json", **elsewhere())
    assert done.returncode == 0 and "no longer exact (level L2)" in done.stderr, said(done)
    assert "L2" == json.loads(done.stdout)["level"] == go.read("result.json")["level"] == go.manifest["level"]
    assert changed_facts(identity(), go.manifest["machine"])[0].startswith("blas: ") and "blas: " in go.manifest["why"]

    done = run(sys.executable, "-c", GO_ON, back.folder, **elsewhere())
    assert done.returncode == 0 and done.stdout.split()[-1] == "L2", said(done)
    (back.folder / "manifest.json").unlink()  # the checkpoint remembers too
    with warnings.catch_warnings(record=True) as heard: assert back.train()["level"] == "L2"
    assert not heard and "blas: " in back.manifest["why"] and back.manifest["machine"] == identity("tape")
    assert {latest_checkpoint(r.folder / "checkpoints")[0].meta["level"] for r in (go, back)} == {"L2"}


if __name__ == "__main__":
    key, new = identity_key(identity()), {c: fingerprint(c) for c in GOLDEN_CASES}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    same = golden.get(key, new) == new and all(c.keys() == new.keys() and all(close(new[n], c[n]) for n in new) for c in golden.values())
    kept = golden if same else {}  # what other machines knew belongs to the code as it was
    GOLDEN.write_text(json.dumps(kept | {key: new}, indent=1) + "\n")
    print(f"{key}: {'known, unchanged' if key in kept else 'written'}; {len(kept | {key: 0}) - 1} others kept, {len(golden.keys() - kept.keys() - {key})} dropped")
