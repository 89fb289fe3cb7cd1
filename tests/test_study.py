"Studies from outside: the command, killed drivers and workers, two drivers at once, runs that fail"
import json
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from support import child_env, run, said

from rlstudio.evidence import study as module
from rlstudio.evidence.study import Study, StudyError, asked_study, note_unbegun, read_plan, run_cell, steps_so_far
from rlstudio.evidence.verify import verify
from rlstudio.runs.run import Run
from rlstudio.train.ledger import first_difference, read_ledger

SMALL = ["train.total_steps=12288", "algo.num_steps=64", "eval.episodes=2", "checkpoint.every=1024"]


def study(*args: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(["rlstudio", "study", *map(str, args)], cwd=cwd, env=child_env(coverage=False), text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def children(pid: int) -> list[int]:
    try: return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError: return []


def until(true: Callable[[], object], what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(.05)


def alive(pid: int) -> bool:
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def command_of(pid: int) -> str:
    try: return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError: return ""


def seed_of(pid: int) -> str:
    "Of the cell that a worker works on"
    return command_of(pid).rstrip("\0").rpartition("_s")[2]


def lone_hashes(folder: Path, seeds: list[int]) -> list[str]:
    return [Run.from_config("ppo/cartpole", [*SMALL, f"train.seed={s}"], runs_dir=folder).train(display="silent")["weights_sha256"] for s in seeds]


@pytest.mark.faults(33)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
def test_a_study_whose_workers_and_driver_are_killed_runs_each_run_once(tmp_path: Path) -> None:
    ask = ["ppo/cartpole", *SMALL, "--seeds", "1-3", "--jobs", 2, "--name", "s"]
    folder = tmp_path / "runs" / "s"
    first = study(*ask, cwd=tmp_path)
    until(lambda: steps_so_far(folder / "ppo-cartpole_s1") > 2000 and children(first.pid), "run 1 is on its way")
    victim = next(p for p in children(first.pid) if seed_of(p) == "1")
    os.kill(victim, signal.SIGKILL)
    until(lambda: any(seed_of(p) == "1" and p != victim for p in children(first.pid)) or (folder / "ppo-cartpole_s3" / "metrics.jsonl").exists(), "another worker has begun")
    workers = children(first.pid)
    first.kill()
    assert "killed  ppo-cartpole_s1: its process was killed by SIGKILL; begun again" in first.communicate()[0]
    until(lambda: not any(map(alive, workers)), "the workers have ended after their driver")
    both = [study(*ask, cwd=tmp_path) for _ in range(2)]     # the same command again, and a second one that joins
    for done in both:
        out = done.communicate(timeout=300)[0]
        assert done.returncode == 0 and "3 of 3 done" in out, out
    runs = [Run.open(folder / f"ppo-cartpole_s{s}") for s in (1, 2, 3)]
    assert [r.manifest["weights_sha256"] for r in runs] == lone_hashes(tmp_path / "alone", [1, 2, 3])
    for r in runs:
        assert [record["step"] for record in r.history] == [*range(512, 12289, 512)]   # each update once
        assert verify(r.folder).whole
    assert {p.name for p in folder.iterdir()} == {"study.yaml", "logs", *(r.folder.name for r in runs)}


def test_ctrl_c_saves_all_and_the_folder_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ppo-cartpole"
    first = study("ppo/cartpole", *SMALL, "train.total_steps=2e6", "--seeds", "1-3", "--jobs", 2, cwd=tmp_path)
    until(lambda: all(steps_so_far(folder / f"ppo-cartpole_s{s}") > 1000 for s in (1, 2)), "two runs are on their way")
    first.send_signal(signal.SIGINT)
    out = first.communicate(timeout=120)[0]
    assert first.returncode == 130 and "each run saves a checkpoint" in out and "rlstudio study runs/ppo-cartpole" in out, out
    for s in (1, 2):
        r = Run.open(folder / f"ppo-cartpole_s{s}")
        assert r.status == "interrupted" and r.manifest["stopped_by"] == "SIGTERM" and (r.folder / "checkpoints" / f"step_{r.manifest['env_steps']:012d}").is_dir()
    assert not (folder / "ppo-cartpole_s3").exists()


def test_a_run_that_fails_is_named_and_the_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "my_env.py").write_text("""
import gymnasium as gym, numpy as np
class Breaks(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)
    def __init__(self, at=10**9): self.at, self.t = at, 0
    def reset(self, *, seed=None, options=None): super().reset(seed=seed); return np.zeros(1, np.float32), {}
    def step(self, action):
        self.t += 1
        if self.t > self.at: raise RuntimeError('the motor is hot')
        return np.zeros(1, np.float32), 1., self.t % 5 == 0, False, {}
gym.register('Breaks-v0', Breaks)
""")
    (tmp_path / "breaks.yaml").write_text("env: {id: Breaks-v0, num_envs: 2}\nalgo: {name: ppo, num_steps: 32}\ntrain: {total_steps: 256}\neval: {episodes: 1}\n")
    done = run("rlstudio", "study", "breaks.yaml", "--seeds", "1", "--grid", "env.kwargs={at: 40},{}", "--import", "my_env", "--json", cwd=tmp_path)
    assert done.returncode == 1, said(done)
    facts = json.loads(done.stdout)
    assert [row["done"] for row in facts["arms"]] == [0, 1] and [row["failed"] for row in facts["arms"]] == [1, 0]
    (name, why), = facts["failed"].items()
    assert name.startswith("breaks_env.kwargs=") and "the motor is hot" in why and "Traceback" not in done.stderr
    assert "the motor is hot" in (tmp_path / facts["study"] / "logs" / f"{name}.txt").read_text()
    again = run("rlstudio", "study", facts["study"], "--max-failures", "1", "--import", "my_env", cwd=tmp_path)
    assert again.returncode == 1 and "1 runs have failed" in again.stdout and f"rlstudio study {facts['study']}" in again.stdout, said(again)


@pytest.mark.parametrize("args, why", [
    (["ppo/cartpol"], "did you mean"),
    (["ppo/cartpole", "--seeds", "3-1"], "expected numbers and ranges such as 1-5,8"),
    (["ppo/cartpole", "train.seed=3"], "--seeds 1-10"),
    (["ppo/cartpole", "--grid", "algo.gama=0.9,0.99"], "algo.gama: unknown key; did you mean 'gamma'?"),
    (["ppo/cartpole", "--grid", "algo.num_minibatches=4,100000"], "algo.num_minibatches"),
    (["ppo/cartpole", "--executor", "lokal"], "did you mean 'local'"),
    (["ppo/cartpole", "--name", "../x"], "expected letters, digits"),
])
def test_mistakes_are_explained_before_anything_runs(args: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from rlstudio.studio.cli import app
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["study", *args, "train.total_steps=256"])
    assert done.exit_code == 2 and why in done.output and "Traceback" not in done.output, done.output
    assert not [*tmp_path.glob("runs/*/*_s*")] and (not (tmp_path / "runs").exists() or "lokal" in args)


def test_an_old_question_finds_its_folder_although_the_config_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lift.yaml").write_text("env: {id: CartPole-v1}\nalgo: {name: ppo}\n")
    old = asked_study(["lift.yaml"], seeds="1")
    assert asked_study(["lift.yaml"], seeds="1-2").folder == old.folder and read_plan(old.folder).seeds == (1, 2)
    Path("lift.yaml").write_text("env: {id: CartPole-v1}\nalgo: {name: ppo, gamma: 0.9}\n")
    assert asked_study(["lift.yaml"]).folder.name == "lift-2"
    assert asked_study(["lift"]).cells[0].config.algo.gamma != .9      # of the folder, not of the file


def test_two_shells_that_add_seeds_at_one_moment_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The second one comes between the reading and the writing of the first"
    def asked(seeds: str) -> Study: return Study.from_configs("ppo/cartpole", SMALL, seeds, name="s", runs_dir=tmp_path)
    right, others = module.put_file, [threading.Thread(target=asked, args=["4-5"]), threading.Thread(target=asked, args=["6"])]

    def put(path: Path, data: bytes) -> Path:
        if threading.current_thread() is threading.main_thread() and data.startswith(b"version") and others[0].ident is None and (tmp_path / "s").exists():
            for other in others: other.start(); other.join(1)
        return right(path, data)

    monkeypatch.setattr(module, "put_file", put)
    asked("1")
    first = asked("2-3")
    for other in others: other.join(60)
    assert set(read_plan(first.folder).seeds) == {1, 2, 3, 4, 5, 6} and [p.name for p in first.folder.iterdir()] == ["study.yaml"]


def test_two_workers_at_one_cell_share_its_log(tmp_path: Path) -> None:
    "The one that finds it busy ends in silence, and takes no word from the other"
    s = Study.from_configs("ppo/cartpole", ["train.total_steps=20_000_000"], "1", name="s", runs_dir=tmp_path)
    log = module.cell_log(s.folder, s.cells[0].name)
    pair = [module.CellProcess(str(s.folder), s.cells[0].name) for _ in range(2)]
    try:
        log.write_text("words of one of them\n")
        until(lambda: any(w.ended() is not None for w in pair), "one of the two has found it busy")
        assert sorted(map(str, (w.ended() for w in pair))) == ["75", "None"] and log.read_text() == "words of one of them\n"
        assert pair[0].last_words() == pair[1].last_words() == "words of one of them"
        late = module.CellProcess(str(s.folder), s.cells[0].name)
        until(lambda: late.ended() is not None, "a third one has found it busy")
        assert late.ended() == module.BUSY and late.last_words() == "" and log.read_text() == "words of one of them\n"
    finally:
        for w in pair: w.kill(); w.process.wait(); w.ended()
    assert log.exists()


def test_only_runs_of_the_plan_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A study.yaml that somebody has edited, a run whose config is gone, one without its result, one that failed before it had a folder: none of them is done"
    from typer.testing import CliRunner

    from rlstudio.studio.cli import app
    monkeypatch.chdir(tmp_path)
    bandit = dict(env=dict(id="rlstudio/Bandit-v0", num_envs=4), algo=dict(name="ppo", num_steps=8), net=dict(hidden=[8]), train=dict(total_steps=64), eval=dict(episodes=2))
    made = Study.from_configs(dict(x=bandit), seeds="1-2", name="s")
    with warnings.catch_warnings(action="ignore"):
        for c in made.cells: run_cell(str(made.folder), c.name)
    def shown() -> str: return CliRunner().invoke(app, ["show", "s"]).output
    assert "2 of 2 done" in shown() and "rlstudio report" in shown() and "compare" not in shown()
    file = made.folder / "study.yaml"
    text = file.read_text()
    file.write_text(text.replace("gamma: 0.99\n", "gamma: 0.5\n"))
    assert "0 of 2 done, 2 failed" in shown() and "2 runs, 0 done, 2 failed" in shown()
    with pytest.raises(StudyError, match="differs from the plan of its study in algo.gamma"): run_cell(str(made.folder), "x_s1")
    file.write_text(text)
    (made.folder / "x_s1" / "config.yaml").rename(tmp_path / "kept.yaml")
    assert "1 of 2 done, 1 failed" in shown()
    (tmp_path / "kept.yaml").rename(made.folder / "x_s1" / "config.yaml")
    (made.folder / "x_s1" / "result.json").unlink()   # as somebody does whom a damaged one stops
    assert "1 of 2 done" in shown() and made.results()[0]["done"] == 1
    with warnings.catch_warnings(action="ignore"): run_cell(str(made.folder), "x_s1")
    assert "2 of 2 done" in shown() and (made.folder / "x_s1" / "result.json").exists()
    more = asked_study(["s"], seeds="3")
    note_unbegun(more.folder / "x_s3", "ConfigError: no such world")
    assert "2 of 3 done, 1 failed" in shown() and more.results()[0]["failed"] == 1


def test_a_study_of_a_stranger_names_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    made = Study.from_configs("ppo/cartpole", seeds=1, runs_dir=tmp_path)
    file = made.folder / "study.yaml"
    text = file.read_text()
    for old, new in (("  ppo-cartpole:", "  ../../x:"), ("version: 1", "version: 2"), ("grid: {}", "grid: 3"), ("seeds: [1]", "seeds: 1-99999999"), ("id: CartPole-v1", "id: 7")):
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(ValueError): Study.open(made.folder)
    file.write_text(text)
    (made.folder / "logs").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="expected a folder"): made.run()
    (made.folder / "logs").unlink()
    (made.folder / "ppo-cartpole_s1").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="expected a folder"): run_cell(str(made.folder), "ppo-cartpole_s1")
    with pytest.raises(StudyError, match="not a study"): Study.open(tmp_path)


def test_what_one_types_next_leads_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "No comparison of a search or of one arm a world; nearly the right name is answered with it; runs in studies are not hidden"
    from types import SimpleNamespace

    from typer.testing import CliRunner

    from rlstudio.studio.cli import after_study, app
    def after(*arms: tuple[str, str], **search: object) -> str:
        return "; ".join(after_study(SimpleNamespace(folder="runs/s", plan=SimpleNamespace(search=search)), [dict(arm=arm, env=env, done=1, runs=1) for arm, env in arms]))
    assert after(("a", "x"), ("b", "x")).startswith("rlstudio compare runs/s;") and "compare" not in after(("a", "x"), ("b", "y")) + after(("a", "x"), ("b", "x"), trials=2)
    assert "compare 'runs/s/a_s[0-9]*' 'runs/s/c_s[0-9]*'" in after(("a", "x"), ("b", "y"), ("c", "x"))
    monkeypatch.chdir(tmp_path)
    asked_study(["ppo/cartpole", "train.total_steps=256"], seeds="1-2", name="pole")
    def said(*words: str) -> str: return " ".join(CliRunner().invoke(app, list(words)).output.split())
    for words in (["study", "ploe"], ["show", "ploe"], ["report", "ploe"]): assert "did you mean 'pole'" in said(*words)
    assert "did you mean 'quick'" in said("gate", "quik") and "2 runs of 1 study are not in this list: rlstudio list studies" in said("list", "runs")
    assert "write --search before each" in said("study", "ppo/cartpole", "gamma=0.9..0.99")


def test_a_stack_of_runs_is_one_process_and_each_run_is_as_alone(tmp_path: Path) -> None:
    "One run fails, one worker is killed; the others are done, with the bits, the ledger and the level of a lone run"
    (tmp_path / "my_env.py").write_text("""
import os
from pathlib import Path
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
here = Path(__file__).parent
with open(here / 'began', 'a') as f: print(os.getpid(), file=f)
class Breaks(CartPoleEnv):
    steps = 0
    def step(self, action):
        self.steps += 1
        if self.steps > 500 and (here / 'hot').exists(): (here / 'hot').unlink(); raise RuntimeError('the motor is hot')
        return super().step(action)
gym.register('Breaks-v0', Breaks, max_episode_steps=500)
""")
    (tmp_path / "pole.yaml").write_text("env: {id: Breaks-v0, num_envs: 2}\nalgo: {name: ppo, num_steps: 64}\ntrain: {total_steps: 6144}\ncheckpoint: {every: 1024}\neval: {episodes: 2}\n")
    (tmp_path / "hot").touch()
    began, folder = tmp_path / "began", tmp_path / "runs" / "s"
    driver = study("pole.yaml", "--import", "my_env", "--stack", 4, "--jobs", 1, "--name", "s", "--seeds", "1-4", cwd=tmp_path)
    until(lambda: steps_so_far(folder / "pole_s3") > 2000, "the third run is on its way")
    os.kill(int(began.read_text().split()[-1]), signal.SIGKILL)
    out = driver.communicate(timeout=120)[0]
    assert driver.returncode == 1 and "failed  pole_s1: EnvError: Breaks-v0" in out and "killed  pole_s3" in out and "3 of 4 done, 1 failed" in out, out
    assert "next    rlstudio study runs/s --import my_env" in out and "not done yet" not in out, out
    assert len(set(began.read_text().split())) == 1 + 3 and read_plan(folder).stack == 4   # the driver, and a worker up to the failure, up to the kill, to the end
    alone = run("rlstudio", "run", "pole.yaml", "--seed", "3", "--import", "my_env", "--runs-dir", "alone", "--name", "a", cwd=tmp_path)
    assert alone.returncode == 0, said(alone)
    stacked, lone = folder / "pole_s3", tmp_path / "alone" / "a"     # begun behind run 2, killed, ended behind run 4
    facts = [json.loads((f / "manifest.json").read_text()) for f in (stacked, lone)]
    for key in ("weights_sha256", "level", "why", "config_hash", "machine", "versions", "engine", "imports"): assert facts[0][key] == facts[1][key], key
    ledgers = [read_ledger(f) for f in (stacked, lone)]
    assert ledgers[0].records == ledgers[1].records and first_difference(*ledgers) is None and verify(stacked).whole
    shown = run("rlstudio", "show", "runs/s", "--import", "my_env", cwd=tmp_path).stdout
    assert "failed  pole_s1: EnvError: Breaks-v0" in shown and "the motor is hot" in shown, shown


def test_a_stack_is_asked_in_a_file_and_refused_where_no_executor_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("stack: 5\nseeds: 1-5\narms: {pole: ppo/cartpole}\n")
    mine = asked_study(["mine.yaml"])
    assert mine.plan.stack == 5 == asked_study([str(mine.folder)]).plan.stack and asked_study([str(mine.folder)], stack=2).plan.stack == 2
    with pytest.raises(StudyError, match="executor slurm: given stacks of 2 runs.*--executor local"): Study.open(mine.folder).run(executor="slurm")
    Path("mine.yaml").write_text("stack: many\narms: {pole: ppo/cartpole}\n")
    with pytest.raises(StudyError, match="stack: given many, expected"): asked_study(["mine.yaml"])
    assert Study.from_configs("ppo/cartpole", seeds=3, name="three").plan.seeds == (1, 2, 3)
