"Worlds that cheat: killed and resumed in another process, none keeps a level that it does not hold, and none loses its run"
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import run, said

NO_SEED, LOST, GONE = "a generator that a reset does not seed", "episodes in flight could not be replayed", "no replay brings that back"
REMEMBERS, ENTROPY, GLOBAL = "it remembers {} over episodes, which cannot be restored", "drew from the system's entropy", "the global generator of {} was used"
WORLDS = {  # what each must come to after a kill: the reason for L1, or '' where the run must be exact, and equal to one that was never killed
    "Honest": "", "SameArray": "", "Timed": "",
    "Episodes": "", "LateEpisodes": "", "History": "", "Wrapper": "", "Words": "",  # they remember, and their memory is carried along
    "Shapes": "", "Within": "", "LateList": NO_SEED, "SystemDice": ENTROPY,
    "Counting": REMEMBERS.format("Counting.ids.state"), "Yields": REMEMBERS.format("Yields.ids.n"), "NestedClass": REMEMBERS.format("class NestedClass.Facts.n"), "ListAndMore": REMEMBERS.format("ListAndMore.heap.total"),
    "Transitions": REMEMBERS.format("Transitions.seen"), "Hidden": REMEMBERS.format("Hidden.seen.data"),
    "ModuleState": REMEMBERS.format("module cheats.RESETS"), "ClassState": REMEMBERS.format("class ClassState.steps"),
    "Defaults": REMEMBERS.format("module cheats.luck(0)"), "Slots": REMEMBERS.format("Slots.counter.n"), "OtherEntropy": ENTROPY,
    "OwnGenerator": NO_SEED, "LateOwnGenerator": NO_SEED, "PythonGenerator": NO_SEED, "ImportedGenerator": GONE, "SeededModule": LOST,
    "GlobalDraws": GLOBAL.format("numpy.random"), "PythonDraws": GLOBAL.format("random"),
    "Entropy": ENTROPY, "RareEntropy": ENTROPY, "FreshGenerators": ENTROPY, "OtherWay": ENTROPY,
    "WallClock": LOST, "Threaded": ("Threaded.ticks", LOST),  # the trial sees it, or the replay does
     "Hashes": LOST, "FailsInReplay": "OSError: no connection yet",
    **dict.fromkeys(["SharedBuffer", "Addresses", "Seconds", "Today", "Hour", "Ticks", "Process", "Ticket", "Memo", "OwnFile"], "should equal the snapshot's, but differ"),
    "Noted": "", "Waits": "",  # they ask the clock, and nothing comes of it
    "Device": ENTROPY, "Order": LOST, "Variable": LOST,
}
CHILD = r'''
import json, os, sys, traceback, warnings
from pathlib import Path
import cheats
from rlstudio.runs.run import Run
from rlstudio.train.trainer import Callback

class Kill(Callback):
    def on_iteration_end(self, trainer):
        if trainer.iteration < 4: return
        note(dict(said=[str(w.message) for w in said]))
        os.kill(os.getpid(), 9)

def note(facts): (folder / f"{world}.{what}.json").write_text(json.dumps(facts))

def live():
    if what == "resume": return Run.open(folder / world).train()
    made = Run.from_config(dict(env=dict(id=f"Cheat/{world}-v0", num_envs=2), algo=dict(name="ppo", num_steps=128, num_epochs=1), train=dict(total_steps=6*256),
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
                done = live()
            note(done | dict(said=[str(w.message) for w in said]))
            code = 0
        except BaseException: note(dict(error=traceback.format_exc()))
        finally: os._exit(code)
    status = os.waitpid(pid, 0)[1]
    print(world, what, status)
'''



def children(what: str, folder: Path, worlds: list[str], **env: str) -> dict[str, Any]:
    "What became of each world, in a process of its own that imported the worlds anew"
    done = run(sys.executable, "-c", CHILD, what, folder, *worlds, cwd=folder, coverage=False, PYTHONPATH=str(Path(__file__).parent), **env)
    assert done.returncode == 0, said(done)
    return {w: json.loads(p.read_text()) for w in worlds if (p := folder / f"{w}.{what}.json").exists()}


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    "Each world killed and resumed; those that still claim to be exact also without a kill; and the folder of the runs"
    killed, whole = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("whole")
    first = children("kill", killed, [*WORLDS, "Ill", "Grown"], PYTHONHASHSEED="1")
    assert not any("level" in f for f in first.values()), "somebody survived"
    resumed = children("resume", killed, [*WORLDS, "Ill", "Grown"], PYTHONHASHSEED="2", CHEAT_RAISES="1")
    for w in WORLDS: resumed[w].setdefault("said", []).extend(first[w]["said"])
    return resumed, children("whole", whole, [w for w, r in resumed.items() if r.get("level") == "L3"], PYTHONHASHSEED="3"), killed


@pytest.mark.faults(30, 31)
@pytest.mark.parametrize("world", WORLDS)
def test_a_world_that_cheats_keeps_neither_its_level_nor_loses_its_run(world: str, lives: Any) -> None:
    "Completed, and exact only if it equals the run that was never killed"
    resumed, whole, folder = lives
    assert "error" not in resumed[world], resumed[world]["error"]
    manifest, why = json.loads((folder / world / "manifest.json").read_text()), WORLDS[world]
    assert manifest["status"] == "completed" and resumed[world]["total_steps"] == 1536
    assert resumed[world]["level"] == manifest["level"] == ("L1" if why else "L3"), manifest["why"]
    if why:
        newest = sorted((folder / world / "checkpoints").glob("step_*"))[-1]
        saved = json.loads((newest / "manifest.json").read_text())["meta"]
        words = (why,) if isinstance(why, str) else why
        assert any(word in manifest["why"] for word in words) and manifest["why"] == saved["why"] and saved["level"] == "L1"
        assert any(word in text for text in resumed[world]["said"] for word in words), "nothing was said"
    else: assert resumed[world]["weights_sha256"] == whole[world]["weights_sha256"]


def test_a_world_that_cannot_be_played_costs_nothing(lives: Any) -> None:
    "It raises at once, or has another space: refused with the reason, the run stays as it was, and goes on when the world is back"
    resumed, _, folder = lives
    assert "OSError: the licence has run out" in resumed["Ill"]["error"] and "ConfigError" in resumed["Ill"]["error"]
    assert "given" in resumed["Grown"]["error"] and "(4,)" in resumed["Grown"]["error"] and "RunError" in resumed["Grown"]["error"]
    again = children("resume", folder, ["Ill", "Grown"])
    assert {w: r.get("level", r.get("error")) for w, r in again.items()} == {"Ill": "L3", "Grown": "L3"}
    assert again["Ill"]["weights_sha256"] == again["Grown"]["weights_sha256"] == resumed["Honest"]["weights_sha256"]
