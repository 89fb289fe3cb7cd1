"Worlds that cheat: killed and resumed in another process, none keeps a level that it does not hold, and none loses its run"
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import child_env, run, said

EXACT = ["Honest", "SameArray", "Timed"]  # they look as if they cheated, and do not
CHILD = r'''
import json, os, sys, traceback, warnings
from pathlib import Path
import cheats
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback

class Kill(Callback):
    def on_iteration_end(self, trainer):
        if trainer.iteration == 9: os.kill(os.getpid(), 9)

def live(what, world, folder):
    if what == "resume": return Run.open(folder / world).train()
    made = Run.from_config(dict(env=dict(id=f"Cheat/{world}-v0", num_envs=2), algo=dict(name="ppo", num_steps=128), train=dict(total_steps=16*256),
                                eval=dict(episodes=0), checkpoint=dict(every=256)), runs_dir=folder, name=world)
    return made.train([Kill()] if what == "kill" else [])

what, folder, worlds = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
for world in worlds:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                done = live(what, world, folder)
            (folder / f"{world}.{what}.json").write_text(json.dumps(done | dict(said=[str(w.message) for w in said])))
            code = 0
        except BaseException: (folder / f"{world}.{what}.json").write_text(json.dumps(dict(error=traceback.format_exc())))
        finally: os._exit(code)
    status = os.waitpid(pid, 0)[1]
    print(world, what, status)
'''


def children(tmp: Path, what: str, folder: Path, worlds: list[str], **env: str) -> dict[str, Any]:
    "What became of each world"
    done = run(sys.executable, "-c", CHILD, what, folder, *worlds, cwd=tmp, coverage=False, PYTHONPATH=str(Path(__file__).parent), **env)
    assert done.returncode == 0, said(done)
    return {w: json.loads(p.read_text()) for w in worlds if (p := folder / f"{w}.{what}.json").exists()}
