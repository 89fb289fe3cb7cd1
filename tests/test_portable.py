"The engine `portable`: the same bits under every disguise of the processor, resumable, and honest about what it does not know."
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import disguise, run, said

from rlstudio.algos.common import EngineError
from rlstudio.core.arithmetic import arithmetic_threads, identity
from rlstudio.core.options import config_from_dict
from rlstudio.evidence.audit import promise
from rlstudio.evidence.drift import GOLDEN_CASES, everywhere, measure_drift, read_golden
from rlstudio.nets.flat import weights_sha256
from rlstudio.runs.config import Settings
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback, Trainer

CASES = [name for name in GOLDEN_CASES if everywhere(name)]
SMALL: dict[str, Any] = dict(env=dict(id="CartPole-v1", num_envs=4), algo=dict(name="ppo", num_steps=32, num_minibatches=2, num_epochs=1), net=dict(hidden=[16]),
                             train=dict(total_steps=768), eval=dict(episodes=3), checkpoint=dict(every=128, best=False, keep=9))

# Besides the hashes: what the compiler does with a product and a sum where it may fuse them, and what BLAS makes of a product of matrices
SOMEBODY_ELSES = """
import hashlib
import numpy as np
from rlstudio.fast.kernels import kernel
@kernel
def fused(x):
    y = 0.
    for i in range(len(x)): y = x[i] * x[i] - .01
    return y
a = np.random.default_rng(0).standard_normal((256, 256), np.float32)
theirs = dict(fused=fused(np.array([.1])), product=hashlib.sha256((a @ a).tobytes()).hexdigest())
"""
CHILD = SOMEBODY_ELSES + """
import json, sys
from rlstudio.evidence.drift import GOLDEN_CASES, train_case
print(json.dumps(dict(rows={name: train_case(GOLDEN_CASES[name]).end for name in sys.argv[1:]}, **theirs)))
"""
DISGUISES: dict[str, dict[str, str]] = {
    "another compiler target": dict(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=""),
    "no vector instructions at all": dict(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES=""),
    "simpler libraries": {},   # of `support.disguise`
}


@pytest.mark.parametrize("name", DISGUISES)
def test_the_same_bits_under_every_disguise(name: str, tmp_path: Path) -> None:
    "Each disguise changes somebody else's bits, and none of ours"
    if "x86_64" not in identity()["system"]: pytest.skip("the disguises are those of an x86-64 processor")
    env: Any = DISGUISES[name] or disguise()
    cases = CASES if env is not DISGUISES[name] else CASES[1:2] + CASES[-1:]   # where everything is compiled anew, two cases that use all of it
    (tmp_path / "child.py").write_text(CHILD)
    done = run(sys.executable, tmp_path / "child.py", *cases, coverage=False, **env)
    assert done.returncode == 0, said(done)
    told = json.loads(done.stdout)
    shared = next(m for m in read_golden() if not m.identity)
    assert told["rows"] == {case: shared.cases[case].end for case in cases}
    if name == "no vector instructions at all": assert told["fused"] == .1 * .1 - .01      # two roundings: it cannot fuse
    if name == "another compiler target": assert told["fused"] != .1 * .1 - .01            # one: it can
    if env is DISGUISES[name]: return
    exec(SOMEBODY_ELSES.replace("@kernel", ""), here := dict[str, Any]())
    assert told["product"] != here["theirs"]["product"]


def small(engine: str = "portable", **changes: Any) -> Trainer: return Trainer(config_from_dict(SMALL | changes), engine=engine)


@pytest.mark.parametrize("changes", [dict(), dict(env=dict(id="Pendulum-v1", num_envs=4), net=dict(hidden=[16], activation="silu", layer_norm=True)),
                                     dict(algo=dict(name="dqn", batch_size=16, learning_starts=64, num_steps=16, buffer_size=300, tau=.01), net=dict(hidden=[16, 16]))])
def test_first_updates_agree_with_the_tape(changes: dict[str, Any]) -> None:
    "From the same weights: other digits, the same learning; and two halves are a whole"
    with arithmetic_threads():
        mine, tape = small(**changes), small("tape", **changes)
        tape.algo.load_state_dict(mine.algo.state_dict())
        first = [p.detach().numpy().copy() for p in mine.algo.module.parameters()]
        mine.train(160), tape.train(160)
        ends = [np.concatenate([p.detach().numpy().ravel() for p in t.algo.module.parameters()]) for t in (mine, tape)]
        assert 0 < np.abs(ends[0] - ends[1]).max() < (2e-2 if "env" in changes else 3e-6)   # real actions have other noise
        assert np.abs(ends[0] - np.concatenate([p.ravel() for p in first])).max() > 1e-5, "nothing was learned, so nothing is shown"
        rest = small(**changes)
        rest.load_state_dict(mine.state_dict())
        assert weights_sha256(rest.train().algo.module) == weights_sha256(mine.train().algo.module) != weights_sha256(tape.train().algo.module)


def test_no_class_and_no_other_learner_changes() -> None:
    with arithmetic_threads():
        alone = weights_sha256(small("tape").train().algo.module)
        one, other = small("tape"), small()
        one.train(256), other.train(256)
        assert weights_sha256(one.train().algo.module) == alone != weights_sha256(other.train().algo.module)


@pytest.mark.parametrize("changes, says", [
    (dict(env=dict(id="Pendulum-v1"), algo=dict(name="td3"), net={}), "given TD3, expected PPO, A2C or DQN"),
    (dict(env=dict(id="rlstudio/BitFlip-v0")), "given a network with Joined, expected plain layers on plain numbers"),
    (dict(env=dict(id="rlstudio/Identity-v0", kwargs=dict(action="multi_binary"))), "given actions by Bernoulli"),
    (dict(algo=dict(name="dqn", prioritized=True), net={}), "given algo.prioritized = true"),
])
def test_what_it_does_not_know_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=f"engine = portable: .*{says}.*fix: engine = auto"): small(**(dict(train=dict(total_steps=20_000)) | changes))


class Stop(Callback):
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration == 2: trainer.stop("no time", interrupt=True)


def test_a_run_goes_on_elsewhere_at_level_4(tmp_path: Path) -> None:
    "Begun here, ended on another processor: the level stays, the weights and the evaluation are those of the run that never moved, and an audit promises as much"
    def begun(name: str, **more: Any) -> Run: return Run.from_config(SMALL | more, runs_dir=tmp_path, name=name, settings=Settings(engine="portable"))
    whole, moved = begun("whole"), begun("moved")
    result = whole.train()
    assert result["level"] == whole.manifest["level"] == "L4" and "on every processor" in whole.manifest["why"] and whole.manifest["engine"] == "portable"
    moved.train([Stop()])
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nengine = portable\n")
    done = run("rlstudio", "resume", moved.folder, "--json", cwd=tmp_path, coverage=False, **disguise())
    assert done.returncode == 0 and "exact" not in done.stderr, said(done)
    there = json.loads(done.stdout)
    assert (there["level"], there["weights_sha256"]) == ("L4", result["weights_sha256"]) and moved.read("result.json")["eval_return_mean"] == result["eval_return_mean"]
    assert moved.manifest["machine"]["blas"] != whole.manifest["machine"]["blas"]
    checked = run("rlstudio", "audit", whole.folder, moved.folder, cwd=tmp_path, coverage=False)
    assert checked.returncode == 0 and "level L4: equal bits are promised on every processor" in checked.stdout, said(checked)


def test_a_world_of_somebody_elses_is_level_3(tmp_path: Path) -> None:
    theirs = Run.from_config(SMALL | dict(env=dict(id="CartPole-v1", num_envs=4, backend="inprocess"), eval=dict(episodes=0)), runs_dir=tmp_path, settings=Settings(engine="portable"))
    theirs.train()
    assert theirs.manifest["level"] == "L3" and theirs.manifest["why"].endswith("CartPole-v1 has arithmetic of its own")


def test_what_an_audit_promises() -> None:
    "At level 4 the processor does not count; versions and engine do"
    then = dict(level="L4", why="", versions=dict(rlstudio="1"), machine=dict(cpu="one", engine="portable"))
    assert promise(then, then | dict(machine=dict(cpu="another", engine="portable"))) == "level L4: equal bits are promised on every processor"
    assert "here others are rlstudio" in promise(then, then | dict(versions=dict(rlstudio="2")))
    assert "here others are engine" in promise(then, then | dict(machine=dict(cpu="one", engine="tape")))


def test_another_hash_of_a_portable_case_is_found_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = GOLDEN_CASES[CASES[0]]
    monkeypatch.setitem(GOLDEN_CASES, CASES[0], replace(before, config=before.config | dict(train=before.config["train"] | dict(seed=2))))
    report = measure_drift([CASES[0]], [m for m in read_golden() if not m.identity])
    assert not report.ok and "whose bits are the same on every machine (level L4)" in report.conclusion()
