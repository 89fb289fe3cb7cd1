"Runs that go on: another leg with a larger budget, a warm start in another world, and folders that were moved or left half made."
import json
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import run, said
from test_cli import one_object

from rlstudio.runs.checkpoint import MAX_JSON, CheckpointError, checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint
from rlstudio.runs.folder import RunError, RunFolder
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback, Trainer

PPO = dict(env=dict(id="CartPole-v1", num_envs=4), algo=dict(name="ppo", num_steps=64, num_minibatches=2, num_epochs=2, learning_rate_schedule="constant"),
           eval=dict(episodes=4), checkpoint=dict(every=512))
TD3 = dict(env=dict(id="Pendulum-v1", num_envs=2), algo=dict(name="td3", num_steps=128, learning_starts=256, batch_size=16, buffer_size=2000), net=dict(hidden=[16]),
           eval=dict(episodes=2), checkpoint=dict(every=512))
WORLDS = {"ppo": PPO, "td3": TD3, "dqn": PPO | dict(env=dict(id="CartPole-v1", num_envs=2), net=dict(hidden=[16]), algo=dict(
    name="dqn", learning_starts=128, num_steps=64, epsilon_start=.2, epsilon_end=.2))}


def config(algo: str, folder: Path, **more: Any) -> Path:
    "A config file"
    (file := folder / f"{algo}.yaml").write_text(json.dumps(WORLDS[algo]))
    return file


def made(algo: str, folder: Path, name: str, total_steps: int, **more: Any) -> Run:
    return Run.from_config(config(algo, folder), {"train.total_steps": total_steps, **more.pop("overrides", {})}, folder, name, **more)


class StopAt(Callback):
    "Asks to stop at so many env steps"
    def __init__(self, step: int, for_now: bool = True): self.step, self.for_now = step, for_now
    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.env_steps >= self.step: trainer.stop("so far", interrupt=self.for_now)


def records(run_: Run) -> list[dict[str, Any]]: return [{k: x for k, x in r.items() if not k.startswith(("speed/", "time/")) and k != "train/progress"} for r in run_.history]


# Another leg

@pytest.mark.parametrize("algo", WORLDS)
def test_a_larger_budget_equals_one_long_run(algo: str, tmp_path: Path) -> None:
    "Weights, records and evaluations of a run in two legs are those of one that was long from the start, bit for bit"
    whole = made(algo, tmp_path, "whole", 2048).train()
    short = made(algo, tmp_path, "short", 1024)
    first = short.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longer = Run.open(short.folder, {"train.total_steps": 2048})
        assert longer.leg().exact
        second = longer.train()
    assert second["weights_sha256"] == whole["weights_sha256"] != first["weights_sha256"]
    assert records(longer) == records(Run.open(whole["run"])) and second["level"] == "L3"
    assert longer.manifest["legs"][1]["changed"] == {"train.total_steps": [1024, 2048]} and [leg["step"] for leg in longer.manifest["legs"]] == [0, 1024]
    assert "total_steps: 1024" in (longer.folder / "config.leg1.yaml").read_text() and "total_steps: 2048" in (longer.folder / "config.yaml").read_text()
    assert longer.read("result.leg1.json")["weights_sha256"] == first["weights_sha256"] and longer.read("result.json") == second
    assert Run.open(short.folder).train() == second and len(longer.manifest["legs"]) == 2      # there is nothing left to do


@pytest.mark.faults(3)
@pytest.mark.parametrize("at", [512, 1024, 1536, 1792])
def test_stopped_in_any_leg(at: int, tmp_path: Path) -> None:
    "A stop in the first leg or in the second, between checkpoints or at one, changes nothing"
    whole = made("ppo", tmp_path, "whole", 2048).train()
    short = made("ppo", tmp_path, "short", 1024)
    while short.train([StopAt(at)])["status"] != "completed": at += 10_000
    longer = Run.open(short.folder, "train.total_steps=2048")
    while longer.train([StopAt(at)])["status"] != "completed": at, longer = at + 10_000, Run.open(short.folder)
    assert longer.read("result.json")["weights_sha256"] == whole["weights_sha256"] and len(longer.manifest["legs"]) == 2


def test_a_schedule_is_told(tmp_path: Path) -> None:
    "Where a schedule follows the budget, the message says so, and the manifest keeps it"
    overrides = {"algo.learning_rate_schedule": "linear"}
    whole, short = (made("ppo", tmp_path, name, n, overrides=overrides) for name, n in (("whole", 2048), ("short", 1024)))
    short.train()
    longer = Run.open(short.folder, total_steps=2048)
    assert not longer.leg().exact
    with pytest.warns(UserWarning, match="this is not one long run of 2,048 steps, since algo.learning_rate") as heard: end = longer.train()
    assert "at step 1,024 it is 0 of 1,024 steps, 0.00015 of 2,048" in str(heard[0].message)
    assert end["weights_sha256"] != whole.train()["weights_sha256"] and len(longer.manifest["legs"][1]["notes"]) == 2
    rates = [r["schedule/learning_rate"] for r in longer.history]
    assert rates[4] == pytest.approx(1.5e-4) and rates[3] == pytest.approx(3e-4 / 4)


def test_another_learning_rate(tmp_path: Path) -> None:
    first = made("ppo", tmp_path, "a", 1024)
    first.train([StopAt(512)])
    with pytest.warns(UserWarning, match=r"algo.learning_rate: 0.0003 becomes 0.001 from step 512 on"): Run.open(first.folder, dict(learning_rate=1e-3)).train()
    assert [r["schedule/learning_rate"] for r in first.history] == [3e-4, 3e-4, 1e-3, 1e-3]


@pytest.mark.faults(19)
def test_what_cannot_change_is_refused(tmp_path: Path) -> None:
    "All at once, each with its reason, and with a command that works; the folder stays as it is"
    a = made("ppo", tmp_path, "a", 512)
    before = a.train()
    files = {p: p.read_bytes() for p in a.folder.rglob("*") if p.is_file()}
    with pytest.raises(RunError) as e: Run.open(a.folder, ["env.num_envs=8", "net.hidden=[8]", "algo.gamma=.9", "train.seed=3"])
    said_ = str(e.value)
    assert all(key in said_ for key in ("env.num_envs: given 8", "net.hidden: given [8]", "algo.gamma: given 0.9", "train.seed: given 3")) and "--from" in said_
    with pytest.raises(RunError, match="given 256, but the run has taken 512"): Run.open(a.folder, total_steps=256)
    assert {p: p.read_bytes() for p in a.folder.rglob("*") if p.is_file()} == files and Run.open(a.folder).train() == before


def test_a_config_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    a = made("ppo", tmp_path, "a", 512)
    a.train()
    text = (a.folder / "config.yaml").read_text()
    with pytest.raises(ValueError, match="no_such"): Run.open(a.folder, {"env.eval_kwargs": {"no_such": 1}}).train()
    assert (a.folder / "config.yaml").read_text() == text and a.status == "completed" and len(a.manifest["legs"]) == 1


@pytest.mark.faults(19)
@pytest.mark.parametrize("at", [512, 10_000])
def test_a_config_edited_by_hand(at: int, tmp_path: Path) -> None:
    "A completed run trains on with a larger budget, as an interrupted one does; never an old result under a new header"
    whole = made("ppo", tmp_path, "whole", 2048).train()
    a = made("ppo", tmp_path, "a", 1024)
    a.train([StopAt(at)])
    file = a.folder / "config.yaml"
    file.write_text(file.read_text().replace("total_steps: 1024", "total_steps: 2048"))
    end = Run.open(a.folder).train()
    assert end["total_steps"] == 2048 and end["weights_sha256"] == whole["weights_sha256"] and len(a.manifest["legs"]) == 2
    file.write_text(file.read_text().replace("gamma: 0.99", "gamma: 0.9"))
    with pytest.raises(RunError, match="algo.gamma: given 0.9, but this run goes on with 0.99"): Run.open(a.folder).train()


@pytest.mark.parametrize("change", [{"train.total_steps": 1024}, {"checkpoint.keep": 5}])
def test_after_an_early_stop(change: dict[str, Any], tmp_path: Path) -> None:
    "What a callback has ended goes on to its budget if somebody asks, even with the value that it has; a kill right behind that does not end it again"
    whole = made("ppo", tmp_path, "whole", 1024).train()
    a = made("ppo", tmp_path, "a", 1024)
    early = a.train([StopAt(512, for_now=False)])
    assert early["stopped_early"] == "so far" and Run.open(a.folder).train() == early
    Run.open(a.folder, change).train([StopAt(512)])       # at the next iteration
    end = Run.open(a.folder).train()
    assert end["weights_sha256"] == whole["weights_sha256"] and not end["stopped_early"] and [leg["step"] for leg in a.manifest["legs"]] == [0, 512]


def test_only_the_evaluation_changes(tmp_path: Path) -> None:
    "No step is taken, and the result is that of the new question"
    a = made("ppo", tmp_path, "a", 512)
    old = a.train()
    new = Run.open(a.folder, {"eval.episodes": 7}).train()
    assert (new["eval_episodes"], new["weights_sha256"], new["total_steps"]) == (7, old["weights_sha256"], 512)
    assert Run.open(a.folder).train() == new


def test_a_run_that_is_older_than_legs(tmp_path: Path) -> None:
    "Neither its manifest nor its checkpoints know of them: it has had one, and may have another"
    a = made("ppo", tmp_path, "a", 512)
    end = a.train()
    a.files.write("manifest.json", {k: x for k, x in a.manifest.items() if k not in ("legs", "config")})
    for path in checkpoints(a.folder / "checkpoints"):
        saved = load_checkpoint(path)
        shutil.rmtree(path)
        save_checkpoint(path.parent, saved.step, saved.state, {k: x for k, x in saved.meta.items() if k != "legs"})
    assert Run.open(a.folder).train() == end and "legs" not in a.manifest
    Run.open(a.folder, total_steps=1024).train()
    assert [leg["step"] for leg in a.manifest["legs"]] == [0, 512]


def test_back_behind_a_leg(tmp_path: Path) -> None:
    "All checkpoints of the newest leg are damaged: the run goes on from an older one, and says and lists that it did"
    a = made("ppo", tmp_path, "a", 1024)
    a.train()
    Run.open(a.folder, total_steps=2048).train([StopAt(1280)])
    for path in checkpoints(a.folder / "checkpoints")[:2]: (path / "state.json").write_text("{}")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Run.open(a.folder).train()
    assert any("goes on at step 512, though leg 2 began at 1,024" in str(w.message) for w in heard)
    assert [leg["step"] for leg in a.manifest["legs"]] == [0, 1024, 512]


def test_resume_from_a_shell(tmp_path: Path) -> None:
    "Killed in its second leg, then resumed; and what it says when there is nothing to do, and when it cannot"
    name, file = ["--runs-dir", tmp_path, "--json", "--quiet"], config("ppo", tmp_path)
    whole = one_object(run("rlstudio", "run", file, "train.total_steps=2048", "--name", "whole", *name).stdout)
    assert run("rlstudio", "run", file, "train.total_steps=1024", "--name", "a", *name).returncode == 0
    again = run("rlstudio", "resume", tmp_path / "a")
    assert again.returncode == 0 and "complete at 1,024 env steps; to train on: rlstudio resume" in again.stdout, said(again)
    refused = run("rlstudio", "resume", tmp_path / "a", "train.seed=7")
    assert refused.returncode == 2 and f"--from {tmp_path}/a" in refused.stderr and "Traceback" not in refused.stderr, said(refused)
    killed = run("rlstudio", "resume", tmp_path / "a", "train.total_steps=2048", RLSTUDIO_CRASH_AT="folder renamed", coverage=False)
    assert killed.returncode == -signal.SIGKILL and RunFolder(tmp_path / "a").status == "killed"
    done = run("rlstudio", "resume", tmp_path / "a", "--json")
    assert one_object(done.stdout)["weights_sha256"] == whole["weights_sha256"], said(done)
    assert len(RunFolder(tmp_path / "a").manifest["legs"]) == 2
    first = run("rlstudio", "resume", tmp_path / "a", "train.total_steps=2304")
    assert "leg 3 from step 2,048: train.total_steps: 2048 → 2304; the end is that of one long run, bit for bit" in first.stdout, said(first)


# A warm start

def test_weights_of_four_envs_into_two(tmp_path: Path) -> None:
    "The running returns begin anew, the weights load: as modules, and as a run"
    a = made("ppo", tmp_path, "a", 512)
    a.train()
    b = made("ppo", tmp_path, "b", 512, overrides={"env.num_envs": 2, "algo.learning_rate": 1e-3}, start_from=a.folder)
    theirs, ours = a.restored().algo.module.state_dict(), b.trainer.algo.module.state_dict()
    assert all(x.equal(ours[k]) for k, x in theirs.items() if k != "reward_scale.ret") and ours["reward_scale.ret"].tolist() == [0, 0]
    assert b.manifest["start_from"]["fresh"] == {"reward_scale.ret": "episodes begin anew"} and b.manifest["start_from"]["weights_sha256"] == a.read("result.json")["weights_sha256"]
    module = b.take_trainer().algo.module
    module.load_state_dict(theirs)                # a plain torch module takes them, too
    assert b.train()["status"] == "completed"


def test_a_warm_start_survives(tmp_path: Path) -> None:
    "The source is gone, the process too, before the first step: the new run still begins with the weights"
    a = made("ppo", tmp_path, "a", 512)
    a.train()
    b, c = (made("ppo", tmp_path, name, 512, start_from=a.folder) for name in "bc")
    expected = b.train()["weights_sha256"]
    shutil.rmtree(a.folder)
    assert Run.open(c.folder).train()["weights_sha256"] == expected != made("ppo", tmp_path, "cold", 512).train()["weights_sha256"]


def test_a_warm_start_is_one_start(tmp_path: Path) -> None:
    "Going on after a stop keeps what was learned since: the weights that it began with come once"
    a = made("ppo", tmp_path, "a", 512)
    a.train()
    whole, parts = (made("ppo", tmp_path, name, 1024, start_from=a.folder) for name in ("whole", "parts"))
    parts.train([StopAt(512)])
    assert Run.open(parts.folder).train()["weights_sha256"] == whole.train()["weights_sha256"]


def test_which_checkpoint(tmp_path: Path) -> None:
    a = made("ppo", tmp_path, "a", 1024, overrides={"eval.every": 512})
    a.train()
    best = made("ppo", tmp_path, "best", 256, start_from=f"{a.folder}@best").manifest["start_from"]["step"]
    assert a.files.evaluations and best in (512, 1024)
    at = {text: made("ppo", tmp_path, f"to{i}", 256, start_from=f"{a.folder}{text}") for i, text in enumerate(("", "@512", "@1_024"))}
    assert [r.manifest["start_from"]["step"] for r in at.values()] == [1024, 512, 1024]
    by_name = Run.from_config(config("ppo", tmp_path), runs_dir=tmp_path, start_from="a@512")
    assert by_name.manifest["start_from"]["weights_sha256"] == at["@512"].manifest["start_from"]["weights_sha256"]
    by_path = made("ppo", tmp_path, "path", 256, start_from=a.folder / "checkpoints" / "step_000000000512")
    assert by_path.manifest["start_from"]["step"] == 512
    with pytest.raises(CheckpointError, match="expected best or one of these steps: 0, 512, 1024"): made("ppo", tmp_path, "x", 256, start_from=f"{a.folder}@700")
    with pytest.raises(RunError, match="is no run with checkpoints"): made("ppo", tmp_path, "x", 256, start_from="nowhere")
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    "Another world of other inputs and actions: the first layers and the last one begin anew as whole layers; where nothing fits, nothing begins"
    a = made("ppo", tmp_path, "a", 512)
    a.train()
    b = made("ppo", tmp_path, "b", 512, overrides={"env.id": "Acrobot-v1"}, start_from=a.folder)
    facts = b.manifest["start_from"]
    assert {"actor.0.weight", "actor.0.bias", "actor.4.weight", "critic.0.bias", "obs_norm.mean"} < facts["fresh"].keys()
    assert {"actor.2.weight", "critic.2.bias", "critic.4.weight", "reward_scale.count"} < set(facts["loaded"])
    assert any("shape [4] there, [6] here" in line for line in facts["spaces"]) and any("nvec [2] there, [3] here" in line for line in facts["spaces"])
    with pytest.raises(RunError, match="of which none fits td3 on Pendulum-v1"): made("td3", tmp_path, "c", 512, start_from=a.folder)
    assert not (tmp_path / "c").exists()


def test_slow_copies_follow(tmp_path: Path) -> None:
    "Off policy, the target networks begin as what they follow, and the optimiser remembers nothing"
    a = made("td3", tmp_path, "a", 1024)
    a.train()
    b = made("td3", tmp_path, "b", 512, overrides={"env.num_envs": 1}, start_from=a.folder)
    for part in b.trainer.algo.parts.values():
        assert part.target is None or part.target.vector.equal(part.flat.vector.detach())
        assert not part.adam.mean.any()
    b.train()


def test_from_a_shell(tmp_path: Path) -> None:
    a = made("ppo", tmp_path, "a", 512)
    a.train()
    done = run("rlstudio", "run", config("ppo", tmp_path), "train.total_steps=512", "env.num_envs=2", "--from", f"{a.folder}@512", "--runs-dir", tmp_path, "--name", "b")
    assert done.returncode == 0 and "arrays taken over" in done.stdout and "anew: reward_scale.ret (episodes begin anew)" in done.stdout, said(done)
    refused = run("rlstudio", "run", config("td3", tmp_path), "--from", a.folder, "--runs-dir", tmp_path)
    assert refused.returncode == 2 and "of which none fits" in refused.stderr, said(refused)
    again = run("rlstudio", "run", a.folder / "config.yaml", "train.seed=3", "--from", a.folder, "--runs-dir", tmp_path, "--quiet")   # as a refused resume says
    assert again.returncode == 0, said(again)


# Folders

def test_a_moved_folder(tmp_path: Path) -> None:
    "Commands and summaries name the folder that was opened"
    a = made("ppo", tmp_path, "before", 512)
    a.train()
    a.folder.rename(moved := tmp_path / "after")
    shown = run("rlstudio", "show", moved)
    assert str(moved) in shown.stdout and "before" not in shown.stdout, said(shown)
    assert Run.open(moved).train()["run"] == str(moved)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    "What a kill left: `run` uses it, `resume` says what to do, and what is not ours is not touched"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="rlstudio run CONFIG --runs-dir .* --name empty"): Run.open(tmp_path / "empty")
    assert made("ppo", tmp_path, "empty", 256).train()["status"] == "completed"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(RunError, match="is no run .* choose another --name, or remove it"): made("ppo", tmp_path, "mine", 256)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"] and not [p for p in tmp_path.iterdir() if p.name.startswith(".new")]


def test_long_lists_fit_into_a_checkpoint(tmp_path: Path) -> None:
    "A million evaluated episodes, bit for bit"
    rng = np.random.default_rng(1)
    history = [dict(env_steps=1, returns=rng.normal(size=1_000_000).tolist(), lengths=rng.integers(1, 500, 1_000_000).tolist(), cut=[])]
    path = save_checkpoint(tmp_path, 1, dict(callbacks=dict(evaluate=dict(history=history))))
    assert load_checkpoint(path).state["callbacks"]["evaluate"]["history"] == history and (path / "state.json").stat().st_size < 10_000


@pytest.mark.parametrize("backend", ["native", "inprocess"])
def test_many_environments_fit_into_a_checkpoint(backend: str, tmp_path: Path) -> None:
    "16,384 copies: saved, and the same afterwards"
    overrides = {"env.num_envs": 16384, "env.backend": backend, "algo.num_steps": 2, "algo.num_epochs": 1, "eval.episodes": 0}
    if backend == "inprocess": overrides["env.num_envs"] = 2048    # the same bytes for each; all of them take a minute to make
    n = overrides["env.num_envs"]
    a = made("ppo", tmp_path, "a", 2 * n, overrides=overrides)
    a.train()
    saved, _ = latest_checkpoint(a.folder / "checkpoints")
    assert saved.step == 2 * n and (saved.path / "state.json").stat().st_size * 16384 // n < MAX_JSON
