#!/usr/bin/env python
"""Kill runs at random times, go on, and compare the end with a run that nobody killed: every algorithm in every kind of world.

    python benchmarks/kills.py                         # the whole matrix, `--runs` runs a cell; goes on where it was ended
    python benchmarks/kills.py --match "ppo .*" --runs 20
    python benchmarks/kills.py --points                # one kill at each crash point of a save, for each algorithm
    python benchmarks/kills.py --show                  # only the table of what is stored

A cell is an algorithm in a family of worlds. Its reference is one run without an interruption. Each run of the cell is killed with SIGKILL one to three times, also while a resume is under way: half of the times at a
moment drawn from all of its life (while it makes its folder, trains, saves, evaluates, draws), half of the times a random moment after a random record of metrics. Then it is brought to its end. It passes if its `weights_sha256` is the one of the reference, and if no record of
metrics is missing or there twice. Where the level is below L3 (BipedalWalker, whose simulator remembers), the run must end, and its manifest must say the lower level.

Most processes are forked from one that has imported the library and trained nothing, so that a run takes a second and not five; the first run of each cell is made of fresh processes (`process: new`). Files lie in memory
where the machine has such a folder, so an `fsync` costs nothing: what a power failure does to a disk is not shown here. Rows go to benchmarks/results/kills.jsonl.
"""
import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from common import RESULTS, append, history, record, table

STORE = RESULTS / "kills.jsonl"
FACTS = ("family", "algo", "kind", "run", "env", "process", "kills", "ended", "level", "steps", "ok", "same", "why", "seconds", "code")


# Worlds that no other package has: a dictionary and a picture for an algorithm of continuous actions

class Reach(gym.Env):
    "A point goes to a goal; what is seen is a dictionary, or a picture of 12 × 12 bytes"
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, pixels: bool = False) -> None:
        self.pixels, line = pixels, gym.spaces.Box(-2, 2, (2,), np.float32)
        self.observation_space = gym.spaces.Box(0, 255, (12, 12, 1), np.uint8) if pixels else gym.spaces.Dict(here=line, goal=line)

    def see(self) -> Any:
        if not self.pixels: return dict(here=self.here.astype(np.float32), goal=self.goal.astype(np.float32))
        picture = np.zeros((12, 12, 1), np.uint8)
        for at, light in (self.here, 255), (self.goal, 120): picture[(*np.clip((at * 3 + 6).astype(int), 0, 11), 0)] = light
        return picture

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.here, self.goal, self.age = np.zeros(2), self.np_random.uniform(-1.5, 1.5, 2), 0
        return self.see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.age += 1
        self.here = np.clip(self.here + .3 * np.asarray(action) + .05 * self.np_random.normal(size=2), -2, 2)
        far = float(np.abs(self.here - self.goal).sum())
        return self.see(), -far, far < .2, self.age >= 17, {}


gym.register("kills/Reach-v0", Reach)
gym.register("kills/ReachPixels-v0", Reach, kwargs=dict(pixels=True))

# Families of worlds: what an algorithm of discrete actions plays, and one of continuous ones; None: not with these

LOWER = ("BipedalWalker", "Gymnasium's vector")   # families that cannot be restored exactly, and have to say so
BOTH = ("a2c", "ppo")
ALGOS = ("a2c", "ppo", "dqn", "sac", "td3")
CLASSIC = dict(id="CartPole-v1"), dict(id="Pendulum-v1")
RAM = dict(id="ALE/Pong-v5", kwargs=dict(obs_type="ram"), wrappers=[dict(name="atari")])
FAMILIES: dict[str, dict[str, Any]] = {  # name → the env sections, and what else is special
    "batched classic": dict(worlds=CLASSIC),
    "Gymnasium classic": dict(worlds=tuple(w | dict(backend="inprocess") for w in CLASSIC)),
    "Box2D": dict(worlds=(dict(id="LunarLander-v3"), dict(id="LunarLander-v3", kwargs=dict(continuous=True)))),
    "BipedalWalker": dict(worlds=(None, dict(id="BipedalWalker-v3"))),
    "MuJoCo": dict(worlds=(None, dict(id="Hopper-v5"))),
    "Atari": dict(worlds=(RAM, None)),
    "toy text": dict(worlds=(dict(id="Taxi-v4"), None)),
    "Dict": dict(worlds=(dict(id="rlstudio/BitFlip-v0"), dict(id="kills/Reach-v0"))),
    "pixels": dict(worlds=(dict(id="rlstudio/Catch-v0"), dict(id="kills/ReachPixels-v0")), net=dict(encoder="small")),
    "recurrent": dict(worlds=(dict(id="rlstudio/TMaze-v0"), None), net=dict(core="gru", core_size=8), only=BOTH),
    "workers": dict(worlds=tuple(w | dict(backend="workers", workers=2) for w in CLASSIC)),
    "Gymnasium's vector": dict(worlds=tuple(w | dict(backend="gymnasium") for w in CLASSIC)),
}


def config(family: str, algo: str) -> dict[str, Any] | None:
    "A training of about a second; None: this algorithm cannot play there"
    facts = FAMILIES[family]
    if algo not in facts.get("only", ALGOS): return None
    discrete, box = facts["worlds"]
    world = discrete if algo == "dqn" else box if algo in ("sac", "td3") else discrete or box
    if world is None: return None
    off = dict(batch_size=16, learning_starts=64, num_steps=16, buffer_size=400)
    size = dict(num_steps=40, num_epochs=2, num_minibatches=2) if algo == "ppo" else dict(num_steps=20) if algo == "a2c" else off
    steps = 2400 if algo in BOTH else 1600
    return dict(env=dict(num_envs=4) | world, algo=dict(name=algo) | size,
                net=dict(hidden=[16]) | facts.get("net", {}), train=dict(total_steps=steps, seed=7), checkpoint=dict(every=200, keep=2),
                eval=dict(episodes=2, num_envs=2, max_steps=100))


# One process of a run

def work(folder: Path, given: dict[str, Any], arm: dict[str, Any]) -> None:
    "Begin the run, or go on with it; a crash point may wait for it from an iteration on"
    from rlstudio.runs.run import Run
    from rlstudio.train.trainer import Callback

    class Arm(Callback):
        def on_iteration_end(self, trainer: Any) -> None:
            if trainer.iteration == arm["iteration"]: os.environ["RLSTUDIO_CRASH_AT"] = arm["point"]

    begun = (folder / "config.yaml").is_file()
    run = Run.open(folder) if begun else Run.from_config(given, runs_dir=folder.parent, name=folder.name)
    run.train([Arm()] if arm else [], display="silent")


class Child:
    "A process that works on a run, forked or new"
    def __init__(self, folder: Path, given: dict[str, Any], new: bool, arm: dict[str, Any] | None = None) -> None:
        self.log = folder.parent / f"{folder.name}.log"
        out, task = open(self.log, "ab"), dict(folder=str(folder), given=given, arm=arm or {})
        self.began = time.monotonic()
        if new:
            self.process = subprocess.Popen([sys.executable, __file__, "--child", json.dumps(task)], stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            self.pid = self.process.pid
        elif not (pid := os.fork()):
            for stream in (1, 2): os.dup2(out.fileno(), stream)
            code = 1
            try: work(folder, given, arm or {}); code = 0
            except BaseException: traceback.print_exc()
            finally: sys.stderr.flush(); os._exit(code)
        else: self.pid = pid
        out.close()

    def wait(self, seconds: float = 600) -> int | None:
        "The exit code, minus the signal; None: still at work"
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: return os.waitstatus_to_exitcode(status)
            if time.monotonic() - self.began > seconds: return None
            time.sleep(.002)

    def wait_for(self, metrics: Path, records: int, seconds: float) -> int | None:
        "The same, until so many records more, and a moment"
        known = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        while (code := self.wait(0)) is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < known + records): time.sleep(.001)
        return self.wait(time.monotonic() - self.began + seconds) if code is None else code

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


# One run of a cell

def where(folder: Path) -> str:
    "How far a killed run had come, in words"
    if not (folder / "config.yaml").is_file(): return "before its folder"
    if not (steps := sorted(p.name for p in (folder / "checkpoints").glob("step_*"))): return "before its first checkpoint"
    torn = " in a save" if list((folder / "checkpoints").glob(".tmp-*")) else ""
    return f"after step {int(steps[-1][5:])}{torn}"


def outcome(folder: Path) -> dict[str, Any]:
    "The end of a completed run"
    result, manifest = (json.loads((folder / name).read_text()) for name in ("result.json", "manifest.json"))
    steps = [r["step"] for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "step" in r]
    return dict(hash=result["weights_sha256"], steps=steps, level=manifest["level"])


def killed(folder: Path, given: dict[str, Any], rng: random.Random, seconds: float, new: bool) -> dict[str, Any]:
    "A run that is killed one to three times, and brought to its end"
    planned, kills, tries = rng.randint(1, 3), list[str](), 0
    while len(kills) < planned and tries < 12:
        tries += 1
        child = Child(folder, given, new)
        if rng.random() < .5: code = child.wait(rng.uniform(0, seconds))
        else: code = child.wait_for(folder / "metrics.jsonl", rng.randint(1, 12), rng.uniform(0, .05))
        if code is None: code = child.kill()
        if code == -signal.SIGKILL: kills.append(where(folder))
        elif code: return dict(ended=False, kills=kills, why=last(child.log))
        elif kills: break   # it reached its end between two kills
        else: remove(folder)   # it was too fast: again, from the start
    return dict(kills=kills) | finished(folder, given, new)


def finished(folder: Path, given: dict[str, Any], new: bool) -> dict[str, Any]:
    "The run, brought to its end"
    child = Child(folder, given, new)
    code = child.wait()
    if code is None: child.kill()
    return dict(ended=False, why=last(child.log)) if code != 0 else dict(ended=True) | outcome(folder)


def last(log: Path) -> str: return (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1][:300]


def remove(folder: Path) -> None: shutil.rmtree(folder, ignore_errors=True)


def verdict(got: dict[str, Any], want: dict[str, Any], family: str) -> dict[str, Any]:
    "Does it hold what is claimed? The same bits at L3; where that cannot be, an end and no claim"
    if not got["ended"]: return dict(ok=False, same=False, why=got["why"], level=got.get("level"), steps=None)
    same, steps = got["hash"] == want["hash"], got["steps"]
    whole = steps == want["steps"] if got["level"] == "L3" else steps == sorted(set(steps))   # other episodes may have other lengths
    why = "" if same else f"level {got['level']}" if got["level"] < "L3" else "other weights, though L3"
    if not whole: why = "records of metrics are missing, or there twice"
    if got["level"] < "L3" and family not in LOWER: why = f"level {got['level']}, though this world can be restored exactly"
    return dict(ok=whole and (got["level"] < "L3" if family in LOWER and not same else same and (got["level"] == "L3" or family in LOWER)), same=same, why=why, level=got["level"], steps=got["steps"][-1])


def memory() -> str | None: return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def cell(family: str, algo: str, given: dict[str, Any], runs: list[int], points: bool) -> Iterator[dict[str, Any]]:
    "The rows of a cell"
    from rlstudio.runs.folder import code_hash
    with tempfile.TemporaryDirectory(dir=memory()) as tmp:
        about = dict(family=family, algo=algo, env=given["env"]["id"], code=code_hash())
        start = time.monotonic()
        want = finished(Path(tmp) / "reference", given, False)
        seconds = time.monotonic() - start
        if not want["ended"]:
            yield about | dict(kind="reference", run=0, kills=[], process="fork", ended=False, ok=False, same=False, level=None, steps=None, why=want["why"], seconds=round(seconds, 2))
            return
        for k in runs:
            rng, folder, start = random.Random(f"{family} {algo} {k}"), Path(tmp) / f"run-{k}", time.monotonic()
            got = at_point(folder, given, k, rng) if points else killed(folder, given, rng, seconds * (4 if k == 0 else 1), k == 0)
            yield about | dict(kind="point" if points else "random", run=k, kills=got["kills"], process="new" if k == 0 and not points else "fork", ended=got["ended"],
                               seconds=round(time.monotonic() - start, 2)) | verdict(got, want, family)
            remove(folder)


def at_point(folder: Path, given: dict[str, Any], k: int, rng: random.Random) -> dict[str, Any]:
    "A run that kills itself at the k-th crash point of a save in its middle, and is brought to its end"
    from rlstudio.runs.checkpoint import CRASH_POINTS
    child = Child(folder, given, False, dict(iteration=rng.randint(3, 6), point=CRASH_POINTS[k]))
    code = child.wait()
    if code != -signal.SIGKILL: return dict(ended=False, kills=[], why=f"crash point {CRASH_POINTS[k]!r} was not reached: exit code {code}, {last(child.log)}")
    return dict(kills=[f"{CRASH_POINTS[k]}, {where(folder)}"]) | finished(folder, given, False)


def summary(rows: list[dict[str, Any]]) -> str:
    "The stored rows as a table: a line for each family, a column for each algorithm"
    def text(family: str, algo: str) -> str:
        if config(family, algo) is None: return "–"
        found = [r for r in rows if r["family"] == family and r["algo"] == algo and r["kind"] == "random"]
        if not found: return "not run"
        same, ok, levels = (sum(bool(r[k]) for r in found) for k in ("same", "ok")), len(found), {r["level"] for r in found}
        same, ok = same
        lower = "" if levels <= {"L3"} else f" ({', '.join(sorted(str(x) for x in levels))}: {ok} ended)"
        return f"{same} of {len(found)}{lower}"
    return table(("family", *ALGOS), [(family, *(text(family, algo) for algo in ALGOS)) for family in FAMILIES])


def code_of() -> str:
    from rlstudio.runs.folder import code_hash
    return code_hash()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default=".*", help="regular expression over 'ALGO FAMILY'")
    parser.add_argument("--runs", type=int, default=20, help="runs a cell, with those that are stored")
    parser.add_argument("--points", action="store_true", help="a kill at each crash point of a save, in the batched classics")
    parser.add_argument("--again", action="store_true", help="rows of another version of the code do not count")
    parser.add_argument("--show", action="store_true", help="only the table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        task = json.loads(args.child)
        work(Path(task["folder"]), task["given"], task["arm"])
        return 0
    if args.show:
        print(summary(history(STORE)))
        return 0
    import matplotlib.backends.backend_agg  # noqa: F401 (all of these once, and not in each fork)
    import matplotlib.figure  # noqa: F401
    import PIL.WebPImagePlugin  # noqa: F401
    import torch

    import rlstudio.runs.run  # noqa: F401
    torch.nn.utils.skip_init(torch.nn.Linear, 1, 1)
    from rlstudio.runs.checkpoint import CRASH_POINTS
    kind, good = "point" if args.points else "random", True
    families = ["batched classic"] if args.points else list(FAMILIES)
    for family in families:
        for algo in ALGOS:
            given = config(family, algo)
            if given is None or not re.fullmatch(args.match, f"{algo} {family}"): continue
            done = {r["run"] for r in history(STORE) if (r["family"], r["algo"], r["kind"]) == (family, algo, kind) and (not args.again or r["code"] == code_of())}
            runs = [k for k in range(len(CRASH_POINTS) if args.points else args.runs) if k not in done]
            for row in cell(family, algo, given, runs, args.points) if runs else ():
                good = good and row["ok"]
                print(json.dumps({k: row[k] for k in ("algo", "family", "run", "kills", "level", "ok", "same", "why", "seconds")}), flush=True)
                if row["kind"] != "reference": append(STORE, record(**{k: row[k] for k in FACTS}))
    print(summary(history(STORE)))
    return 0 if good else 1


if __name__ == "__main__": sys.exit(main())
