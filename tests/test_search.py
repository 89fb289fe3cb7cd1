"Searches: what is proposed, what survives a kill, what a stranger's journal may do, and the same bits by every executor."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from support import child_env, run, said

from rlstudio.core.seeding import global_states, make_generator, moved_generators
from rlstudio.evidence.search import (
    JOURNAL,
    STOPPED,
    Choices,
    Journal,
    Range,
    Search,
    SearchError,
    SearchTrial,
    behind_rung,
    below_median,
    importance,
    make_search,
    propose,
    ray_cluster,
    search_lines,
    search_of,
    trials,
)
from rlstudio.evidence.study import KILLED, Study, StudyError, asked_study, hand_over, run_cell
from rlstudio.runs.config import any_config, with_overrides
from rlstudio.runs.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:no video")   # a bandit cannot be drawn

SMALL = dict(env=dict(id="rlstudio/Bandit-v0", num_envs=4), algo=dict(name="ppo", num_steps=16, num_epochs=2, num_minibatches=2), net=dict(hidden=[8]),
             train=dict(total_steps=1024), eval=dict(every=256, episodes=5), checkpoint=dict(best=False, every=128))
SPACE = ["learning_rate=1e-5..1e-1:log", "gamma=0.9..0.999:logit", "net.activation=tanh|relu"]
TOY = Search((Range("algo.learning_rate", 1e-5, 1e-1, "log"), Choices("net.activation", ("tanh", "relu"))), 30)


def study(tmp: Path, name: str = "s", **search: object) -> Study:
    asked = dict(space=SPACE, trials=4, sampler="random") | search
    return Study.from_configs(dict(small=SMALL), seeds=asked.pop("seeds", 1), name=name, runs_dir=tmp, search=asked)


def weights(s: Study) -> dict[str, str]:
    return {c.name: json.loads((c.folder / "result.json").read_text())["weights_sha256"] for c in s.cells}


def test_a_trial_has_the_bits_of_a_lone_run_of_its_config(tmp_path: Path) -> None:
    s = study(tmp_path, trials=2)
    run_cell(str(s.folder), "trial-0001")
    config = Run.open(s.folder / "trial-0001").config
    alone = Run.from_config(config, runs_dir=tmp_path, name="alone").train(display="silent")
    assert weights_of(s.folder / "trial-0001") == alone["weights_sha256"]
    assert 1e-5 <= config.algo.learning_rate <= 1e-1 and config.train.seed == 1
    assert run("rlstudio", "verify", s.folder / "trial-0001", coverage=False).returncode == 0


def weights_of(folder: Path) -> str: return json.loads((folder / "result.json").read_text())["weights_sha256"]


WORKER = """
import sys
from rlstudio.evidence.study import run_cell, read_plan
from rlstudio.runs.folder import BusyError
for number in range(int(sys.argv[2])):
    try: run_cell(sys.argv[1], f'trial-{number:04}')
    except BusyError: pass
"""


def test_two_processes_at_one_journal_make_no_trial_twice(tmp_path: Path) -> None:
    "Both walk through all trials; whoever comes second finds the run locked, or done"
    s = study(tmp_path, trials=5, sampler="tpe")
    pair = [subprocess.Popen([sys.executable, "-c", WORKER, str(s.folder), "5"], env=child_env(coverage=False), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    for p in pair: assert p.wait(300) == 0, p.stdout and p.stdout.read().decode()
    for p in pair: p.stdout and p.stdout.close()
    s.run(jobs=1)
    journal = Journal(s.folder, TOY).trials()
    assert len(journal) == 5 == len(trials(s.folder)) and all(t.state.name == "COMPLETE" for t in journal)
    asked = [json.loads(line)["op_code"] for line in (s.folder / JOURNAL).read_text().splitlines()]
    assert asked.count(4) == 5 and asked.count(6) == 5   # created, and told, once each


def journal_lines(s: Study) -> int: return (s.folder / JOURNAL).read_bytes().count(b"\n") if (s.folder / JOURNAL).exists() else 0


@pytest.mark.faults(33)
def test_a_search_that_is_killed_again_and_again_is_the_same_search(tmp_path: Path) -> None:
    "SIGKILL at random moments, in the middle of trainings and of lines of the journal; then the same call"
    whole, killed = study(tmp_path, "whole", sampler="tpe", pruner="asha", trials=4), study(tmp_path, "killed", sampler="tpe", pruner="asha", trials=4)
    for c in whole.cells: run_cell(str(whole.folder), c.name)
    draw, kills = make_generator("numpy", 1, "kills"), 0
    for _ in range(30):
        p = subprocess.Popen([sys.executable, "-c", WORKER, str(killed.folder), "4"], env=child_env(coverage=False), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = journal_lines(killed) + draw.integers(1, 6)   # a training tells the journal of itself about five times
        while kills < 4 and p.poll() is None and journal_lines(killed) < lines: time.sleep(0.001)
        if kills == 4 or p.poll() is not None:
            assert p.wait(300) == 0
            break
        time.sleep(0.05 * draw.random())
        p.kill(); p.wait()
        kills += 1
        with open(killed.folder / JOURNAL, "ab") as f: f.write(b'{"op_code":7,"worker')   # as if it had died while writing
    assert weights(whole) == weights(killed) and kills >= 2
    assert [t.params for t in Journal(whole.folder, TOY).trials()] == [t.params for t in Journal(killed.folder, TOY).trials()]
    assert [(t.state, t.value) for t in Journal(whole.folder, TOY).trials()] == [(t.state, t.value) for t in Journal(killed.folder, TOY).trials()]


def test_a_stopped_trial_says_why_and_can_go_on(tmp_path: Path) -> None:
    s = study(tmp_path, pruner="asha", trials=3)
    journal = Journal(s.folder, make_search(any_config(SMALL)[0], **s.plan.search))
    for number in (1, 2):   # two that were much better
        journal.ask(number)
        journal.report(number, 1, 1e6)
        journal.tell(number, 1e6)
    out = run_cell(str(s.folder), "trial-0000")
    assert out["status"] == "completed" and out["stopped_early"].startswith(STOPPED) and out["total_steps"] < 1024
    assert journal.trials()[0].state.name == "PRUNED" and trials(s.folder)[0].state == "stopped"
    with warnings.catch_warnings(action="ignore"):
        on = Run.open(s.folder / "trial-0000", "total_steps=2048").train(display="silent")
    assert on["total_steps"] >= 2048 and not on["stopped_early"]


def test_values_that_do_not_fit_together_fail_their_trial_only(tmp_path: Path) -> None:
    "num_minibatches must divide the rollout of 4 × 16: 3 does not, and that shows only in the combination"
    s = Study.from_configs(dict(small=SMALL), seeds=1, name="s", runs_dir=tmp_path, search=dict(space=["num_minibatches=2|64", "num_steps=8|16"], trials=6, sampler="random"))
    rows = s.run(jobs=2)
    states = [t.state.name for t in Journal(s.folder, make_search(any_config(SMALL)[0], **s.plan.search)).trials()]
    assert {"COMPLETE"} <= set(states) <= {"COMPLETE", "FAIL"} and len(states) == 6 == len(rows)
    lost = [t for t in trials(s.folder) if t.state == "failed"]
    assert len(trials(s.folder)) == 6 and len(lost) == states.count("FAIL") and all("num_minibatches" in t.error for t in lost), "also those that never had a folder"


def test_several_seeds_make_one_score(tmp_path: Path) -> None:
    s = study(tmp_path, trials=2, seeds="1-2")
    assert [c.name for c in s.cells] == ["trial-0000_s1", "trial-0000_s2", "trial-0001_s1", "trial-0001_s2"]
    a, b = (run_cell(str(s.folder), f"trial-0000_s{seed}") for seed in (1, 2))
    first = Journal(s.folder, TOY).trials()[0]
    assert first.value == np.mean([a["eval_return_mean"], b["eval_return_mean"]]) == trials(s.folder)[0].score
    with pytest.raises(SearchError, match="expected one, since it judges one run"): study(tmp_path, "t", pruner="asha", seeds="1-2")


def test_the_same_question_goes_on_and_more_trials_are_the_same_question(tmp_path: Path) -> None:
    assert len(study(tmp_path, trials=2).cells) == 2 and len(study(tmp_path, trials=5).cells) == 5 and len(study(tmp_path, trials=3).cells) == 5
    for change, why in ((dict(space=SPACE[:2]), "the search"), (dict(sampler="tpe"), "the search"), (dict(seeds="2"), "the seeds")):
        with pytest.raises(StudyError, match=why): study(tmp_path, **change)


def test_no_folder_is_made_for_a_search_that_cannot_be(tmp_path: Path) -> None:
    for wrong, why in ((dict(space=["gama=0..1"]), "did you mean"), (dict(space=[]), "no dimension"), (dict(trials=0), "from 1 to"), (dict(trials="many"), "from 1 to"),
                       (dict(sampler="tpee"), "did you mean 'tpe'"), (dict(pruner="hyperband"), "expected one of"), (dict(tirals=3), "tirals"), (dict(seed=-1), "expected a whole number"),
                       (dict(space={"algo.gamma": "0.9..0.99", "gamma": "0.9..0.95"}), "twice"), (dict(space=7), "expected space")):
        with pytest.raises(ValueError, match=why): study(tmp_path, **wrong)
    with pytest.raises(SearchError, match="no grid"): Study.from_configs(dict(a=SMALL), grid="gamma=0.9,0.99", seeds=1, runs_dir=tmp_path, search=dict(space=SPACE))
    assert list(tmp_path.iterdir()) == []


def test_trials_need_a_search(tmp_path: Path) -> None:
    "--trials alone is answered with --search, not with the keys of a dict; in a file that searches, it asks for more"
    for option, value in (("--trials", "10"), ("--sampler", "random"), ("--pruner", "asha")):
        done = run("rlstudio", "study", "ppo/cartpole", "a2c/cartpole", option, value, cwd=tmp_path, coverage=False)
        assert done.returncode == 2 and done.stderr.startswith(f"{option} {value}: given without --search") and "--search algo.gamma=0.9..0.999:logit --trials 10" in done.stderr, said(done)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())
    (tmp_path / "mine.yaml").write_text("arms: {it: ppo/cartpole}\nsearch: {space: algo.gamma=0.9..0.999, trials: 3, seed: 7}\n")
    assert asked_study([str(tmp_path / "mine.yaml")], name="mine", runs_dir=tmp_path / "runs", search=dict(trials=5)).plan.search == dict(space=["algo.gamma=0.9..0.999"], trials=5, sampler="tpe", pruner="none", seed=7)


def test_proposals_move_no_global_generator(tmp_path: Path) -> None:
    before = global_states()
    journal = Journal(tmp_path, TOY)
    for number in range(15):
        journal.ask(number)
        journal.tell(number, float(number % 4))
    assert moved_generators(before) == [] and len({json.dumps(t.params) for t in journal.trials()}) == 15


def test_a_journal_of_a_stranger_harms_nobody(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / JOURNAL).symlink_to(secret)
    with pytest.raises(ValueError, match="a link"): Journal(tmp_path / "linked", TOY)
    (tmp_path / "hard").mkdir()
    os.link(secret, tmp_path / "hard" / JOURNAL)
    with pytest.raises(ValueError, match="hard link"): Journal(tmp_path / "hard", TOY)
    assert secret.read_text() == "mine\n"
    for i, text in enumerate((b"[1]\n", b"{}\n", b"\xff\xfe\n", b'{"op_code": 4, "worker_id": 1}\n', b'{"op_code": 99}\n', b"null\n" * 9, b'"x"\n')):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / JOURNAL).write_bytes(text)
        with pytest.raises(SearchError, match="damaged"): Journal(tmp_path / str(i), TOY)


def test_a_dead_owner_of_the_lock_stops_nobody(tmp_path: Path) -> None:
    "Optuna's own lock stays behind when its owner is killed; this one does not"
    code = f"from rlstudio.evidence.search import JournalLock; from pathlib import Path; import time; JournalLock(Path({str(tmp_path / JOURNAL)!r})).acquire(); print('held', flush=True); time.sleep(99)"
    p = subprocess.Popen([sys.executable, "-c", code], env=child_env(coverage=False), stdout=subprocess.PIPE)
    assert p.stdout and p.stdout.readline() == b"held\n"
    p.send_signal(signal.SIGKILL); p.wait(); p.stdout.close()
    began = time.process_time()
    assert Journal(tmp_path, TOY).ask(0) and time.process_time() - began < 20


def test_the_rules_against_a_slow_reading_of_their_papers() -> None:
    draw = make_generator("numpy", 1, "rules")
    for _ in range(300):
        others = [{m: float(v) for m, v in enumerate(draw.normal(size=draw.integers(1, 10)), 1)} for _ in range(draw.integers(0, 12))]
        mine = {m: float(v) for m, v in enumerate(draw.normal(size=draw.integers(1, 10)), 1)}
        now, value = len(mine), mine[len(mine)]
        there = sorted([o[now] for o in others if now in o] + [value], reverse=True)
        slow = now in (1, 3, 9) and len(there) >= 3 and value not in there[:len(there) // 3]
        assert bool(behind_rung(mine, others)) == slow
        peers = [o[now] for o in others if now in o]
        assert bool(below_median(mine, others)) == (len(peers) >= 5 and max(mine.values()) < np.median(peers))


def test_importance_finds_what_mattered_and_nothing_else() -> None:
    draw, both = make_generator("numpy", 3, "test"), (Range("algo.gamma", 0, 1), Range("algo.lam", 0, 1))
    def tried(score: object, n: int = 40) -> list[SearchTrial]:
        xs = draw.random((n, 2))
        return [SearchTrial(f"trial-{i:04}", "completed", {}, float(score(x)), tuple(map(float, x))) for i, x in enumerate(xs)]   # type: ignore[operator]
    hump = importance(tried(lambda x: -(x[0] - .3) ** 2), both)
    assert (hump[0].key, hump[0].p) == ("algo.gamma", .005) and hump[0].share > .5 and hump[1].p > .05
    chance = [x.p <= .05 for _ in range(100) for x in importance(tried(lambda x: draw.normal()), both)]
    assert .01 < np.mean(chance) < .10
    outlier = tried(lambda x: x[0])
    outlier[0] = SearchTrial("trial-0000", "completed", {}, -1e30, outlier[0].places)
    assert importance(outlier, both)[0].key == "algo.gamma"


def test_lines_of_a_search_without_optuna(tmp_path: Path) -> None:
    "A report can be made where the extra is not installed; a search cannot, and says what to install"
    s = study(tmp_path, trials=1)
    run_cell(str(s.folder), "trial-0000")
    code = "import sys; sys.modules['optuna'] = None; from rlstudio.evidence import search as S; print(S.search_lines(sys.argv[1])[1]); S.Journal(sys.argv[1], None)"
    done = run(sys.executable, "-c", code, s.folder, coverage=False)
    assert "1 of 1 trials: 1 completed" in done.stdout and "pip install 'rlstudio[search]'" in done.stderr, said(done)
    assert search_lines(s.folder)[-1].endswith("--seeds 2-11")


@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_every_executor_gives_the_same_bits(tmp_path: Path, executor: str) -> None:
    "The real libraries, on one machine: Ray's local cluster, submitit's local executor"
    here, there = study(tmp_path, "here", trials=2), study(tmp_path, "there", trials=2)
    for c in here.cells: run_cell(str(here.folder), c.name)
    if executor == "ray":
        try:
            with ray_cluster(1): there.run(jobs=1, executor="ray")
        except SearchError as e: pytest.skip(f"{e}")   # its parts give up after 15 s on a busy machine
    else:
        with pytest.warns(UserWarning, match="no Slurm here") if not shutil.which("srun") else warnings.catch_warnings(): there.run(jobs=2, executor="slurm")
        assert not list((there.folder / "logs").glob("slurm-*"))
    assert weights(here) == weights(there)


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_said(tmp_path: Path, executor: str, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from rlstudio.evidence.study import Study; Study.open(sys.argv[1]).run(executor={executor!r})"
    done = run(sys.executable, "-c", code, study(tmp_path, trials=1).folder, coverage=False)
    assert f"pip install 'rlstudio[{executor}]'" in done.stderr, said(done)


def test_a_cell_that_another_process_works_on_is_waited_for(tmp_path: Path) -> None:
    from rlstudio.evidence.search import hand_over
    s, words, heard = study(tmp_path, trials=1), iter(["busy", "busy", ""]), list[str]()
    hand_over(str(s.folder), ["trial-0000"], 1, lambda name, out: heard.append(out["status"]), lambda name: name, lambda handle: next(words), lambda handle: None, pause=.05)
    assert heard == ["running", "busy", "running", "busy", "running", "failed"]


def test_a_range_gives_values_that_the_config_takes() -> None:
    base = any_config("ppo/cartpole")[0]
    for d in (Range("algo.gamma", .9, .999, "logit"), Range("algo.learning_rate", 1e-6, 1., "log"), Range("algo.num_steps", 2, 500, "log", True), Range("algo.ent_coef", 0., .1)):
        for z in (0., .5, 1., 1 / 3):
            low, high = d.distribution().low, d.distribution().high   # type: ignore[attr-defined]
            value = d.value(round(low + z * (high - low)) if d.whole else low + z * (high - low))
            assert d.low <= value <= d.high and -1e-6 <= d.place(value) <= 1 + 1e-6
            with_overrides(base, [f"{d.key}={value}"])
    assert len({json.dumps(propose(TOY, [], n)) for n in range(20)}) == 20


def test_a_trial_whose_worker_was_killed_is_begun_again_before_another_is_proposed(tmp_path: Path) -> None:
    s, begun = study(tmp_path, trials=2), []

    def look(name: str) -> str:
        if begun == ["trial-0000"]: return KILLED + "SIGKILL"
        run_cell(str(s.folder), name)
        return ""

    hand_over(str(s.folder), [c.name for c in s.cells], 1, lambda name, what: None, lambda name: begun.append(name) or name, look, lambda handles: None, pause=0)
    assert begun == ["trial-0000", "trial-0000", "trial-0001"]


def test_a_foreign_run_in_the_place_of_a_trial_has_no_score(tmp_path: Path) -> None:
    s = study(tmp_path, trials=3)
    run_cell(str(s.folder), "trial-0000")
    journal = Journal(s.folder, search_of(s.plan)[0])
    journal.ask(1)
    other = with_overrides(Run.open(s.folder / "trial-0000").config, ["net.hidden=[4]"])[0]
    Run.from_config(other, runs_dir=s.folder, name="trial-0001").train(display="silent")
    run_cell(str(s.folder), "trial-0002")
    assert [t.state.name for t in journal.trials()] == ["COMPLETE", "RUNNING", "COMPLETE"]
