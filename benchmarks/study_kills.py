#!/usr/bin/env python
"""Kill the driver and the workers of a study at random times, repeat the command, and compare every run with one that was alone.

    python benchmarks/study_kills.py                # 20 runs of PPO and DQN, ten kills
    python benchmarks/study_kills.py --seed 2       # other moments
    python benchmarks/study_kills.py --show         # only what is stored

The study has two arms, PPO and DQN (whose replay memory is a part of each checkpoint), with ten seeds each, two processes at a time. Ten times SIGKILL goes to the driver or to one of its workers, after a time drawn from 0.5 to 5 s (for a worker, from the moment at
which there is one): while it starts, trains, saves, evaluates. A driver that was killed is started again by the same command, at once, so that it meets the workers of the dead one. Then the command runs to its end.
It passes if the weights of all 20 runs have the SHA-256 of the same run done alone, if no record of metrics is missing or there twice, and if every file of every run is whole. Rows go to benchmarks/results/study_kills.jsonl.
"""
import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common import RESULTS, RLSTUDIO, append, history, record, table

STORE = RESULTS / "study_kills.jsonl"
ASK = ["ppo/cartpole", "dqn/cartpole", "train.total_steps=8192", "eval.episodes=5", "checkpoint.every=1024"]


def command(name: str, *more: object) -> list[str]:
    return [str(RLSTUDIO), "study", *ASK, "--seeds", "1-10", "--jobs", "2", "--name", name, "--quiet", *map(str, more)]


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(command("killed"), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(pid: int) -> list[int]:
    try: return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError: return []


def kill_study(folder: Path, draw: random.Random, kills: int) -> tuple[list[str], int, str]:
    "Ten kills and an end: what was killed and when, exit code, the last lines"
    done, driver = [], start(folder)
    while len(done) < kills and driver.poll() is None:
        victim, wait = draw.choice(["driver", "worker", "worker"]), draw.uniform(.5, 5)
        while victim == "worker" and not workers(driver.pid) and driver.poll() is None: time.sleep(.1)   # a slow machine takes long to start
        time.sleep(wait)
        pids = workers(driver.pid)
        if victim == "worker" and not pids or driver.poll() is not None: continue
        os.kill(draw.choice(pids) if victim == "worker" else driver.pid, signal.SIGKILL)
        done.append(f"{victim} after {wait:.1f} s")
        if victim == "driver":
            driver.wait()
            driver = start(folder)
    out = driver.communicate()[0]
    while driver.returncode:   # a run whose worker was killed three times is failed: the same command goes on
        driver = start(folder)
        out = driver.communicate()[0]
    return done, driver.returncode, out


def alone(folder: Path, cells: list) -> dict[str, str]:
    "The hashes of the same runs, each done alone"
    from rlstudio.runs.run import Run
    return {c.name: Run.from_config(c.config, runs_dir=folder, name=c.name).train(display="silent")["weights_sha256"] for c in cells}


def once(seed: int, kills: int) -> dict:
    from rlstudio.evidence.study import Study
    from rlstudio.evidence.verify import verify
    from rlstudio.runs.run import Run
    with tempfile.TemporaryDirectory() as tmp:
        folder, began = Path(tmp), time.monotonic()
        done, code, out = kill_study(folder, random.Random(seed), kills)
        seconds = time.monotonic() - began
        cells = Study.open(folder / "runs" / "killed").cells
        wanted, runs = alone(folder / "alone", cells), {c.name: Run.open(c.folder) for c in cells}
        same = sum(runs[n].manifest.get("weights_sha256") == wanted[n] for n in wanted)
        steps = {n: [r["step"] for r in run.history] for n, run in runs.items()}
        lone = {c.name: [r["step"] for r in Run.open(folder / "alone" / c.name).history] for c in cells}
        return dict(seed=seed, runs=len(cells), kills=done, exit=code, same=same, once=sum(steps[n] == lone[n] for n in steps), whole=sum(verify(c.folder).whole for c in cells),
                    left=sorted(p.name for p in (folder / "runs" / "killed").iterdir() if p.name not in runs), seconds=round(seconds, 1), said=out.strip().splitlines()[-2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show: append(STORE, record(**once(args.seed, args.kills)))
    print(table(("seed", "runs", "kills", "of the driver", "equal to lone runs", "each record once", "files whole", "s"),
                [(r["seed"], r["runs"], len(r["kills"]), sum(k.startswith("driver") for k in r["kills"]), r["same"], r["once"], r["whole"], r["seconds"]) for r in history(STORE)]))


if __name__ == "__main__": main()
