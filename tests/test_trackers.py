"W&B, MLflow, trackio and TensorBoard as guests of a run: real packages, no network (chapter train.trackers)."
import json
import os
import shutil
import signal
import struct
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from socket import INADDR_LOOPBACK
from typing import Any

import pytest
from faults import child
from support import run, said

from rlstudio.core.registry import sinks
from rlstudio.runs.config import Settings
from rlstudio.runs.run import Run
from rlstudio.train.metrics import MetricError, read_metrics
from rlstudio.train.trackers import MlflowSink, TrackioSink, WandbSink, recall
from rlstudio.train.trainer import Callback, Trainer

LOOPBACK = str(ip_address(INADDR_LOOPBACK))
SHORT = dict(total_steps=4096, checkpoint={"every": 1024}, eval={"episodes": 1, "every": 2048}, env={"num_envs": 4})
OFFLINE = dict(WANDB_MODE="offline", WANDB_ERROR_REPORTING="false", DO_NOT_TRACK="true", MLFLOW_DISABLE_TELEMETRY="true",
               http_proxy=f"http://{LOOPBACK}:9", https_proxy=f"http://{LOOPBACK}:9", no_proxy="")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    "Nothing leaves this machine; no child uses the service process that this one has started"
    for name, value in OFFLINE.items(): monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_PROJECT"): monkeypatch.delenv(name, raising=False)
    yield
    for name in [n for n in os.environ if "WANDB_SERVICE" in n]: del os.environ[name]


def new(folder: Path, *names: str) -> Run:
    "A short run with these sinks"
    return Run.from_config("ppo/cartpole", settings=Settings(runs_dir=str(folder), sinks=("jsonl", *names)), name="guest", **SHORT)


def steps(run: Run) -> list[int]: return [r["step"] for r in read_metrics(run.folder)]


KILLED = """
import os, signal, sys, time
from test_trackers import new
from rlstudio.train.trainer import Callback
from pathlib import Path
class Kill(Callback):
    def on_iteration_end(self, trainer):
        if trainer.env_steps >= 2600:
            time.sleep(2)    # W&B buffers for a second
            os.kill(os.getpid(), signal.SIGKILL)
new(Path(sys.argv[1]), sys.argv[2]).train([Kill()])
"""


def killed_and_resumed(folder: Path, name: str) -> tuple[Run, dict[str, Any]]:
    "A run that died between two checkpoints, brought to its end by another process"
    done = child(KILLED, folder, name, check=False, **OFFLINE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = Run.open(folder / "guest", settings=Settings(runs_dir=str(folder), sinks=("jsonl", name)))
    assert again.status != "completed" and max(steps(again)) > 2048   # beyond the checkpoint: these steps come twice
    return again, again.train()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    "The summary of the same run without any tracker"
    return new(tmp_path_factory.mktemp("alone")).train()


def check_same(summary: dict[str, Any], alone: dict[str, Any]) -> None:
    for key in ("weights_sha256", "level", "eval_return_mean", "status"): assert summary[key] == alone[key], key


# ---- the registry ------------------------------------------------------------------------------------------------------

def test_the_sinks_are_found_by_name_and_import_no_tracker() -> None:
    assert [sinks.get(n) for n in ("wandb", "mlflow", "trackio")] == [WandbSink, MlflowSink, TrackioSink]
    code = """import sys
from rlstudio.core.registry import sinks
for n in ('wandb', 'mlflow', 'trackio'): sinks.get(n)()
print([m for m in ('wandb', 'mlflow', 'trackio', 'torch', 'tensorboard') if m in sys.modules])"""
    assert child(code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_said_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MetricError, match=rf"the sink '{name}' needs the package {name}: pip install 'rlstudio\[{name}\]'"):
        new(tmp_path, name).train()
    assert not list(tmp_path.glob("guest/checkpoints/*"))


# ---- W&B ---------------------------------------------------------------------------------------------------------------

def wandb_records(path: Path) -> Iterator[Any]:
    "The records in the file of an offline run: LevelDB's log format, with a protocol buffer in each record"
    from wandb.proto import wandb_internal_pb2
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7]) if left >= 7 else (0, 0)
        if not kind: at += left; continue
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def wandb_legs(folder: Path) -> list[list[Any]]:
    return [list(wandb_records(p)) for p in sorted(folder.glob("trackers/wandb/offline-run-*/*.wandb"))]


def items(pairs: Any) -> dict[str, Any]:
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in pairs}


def test_wandb_keeps_a_run_that_was_killed(tmp_path: Path, alone: dict[str, Any]) -> None:
    guest, summary = killed_and_resumed(tmp_path, "wandb")
    check_same(summary, alone)
    legs = wandb_legs(guest.folder)
    runs = [r.run for leg in legs for r in leg if r.HasField("run")]
    assert {r.run_id for r in runs} == {recall(guest.folder / "trackers" / "wandb.json")["id"]} and len(legs) == 2
    assert {r.display_name for r in runs} == {"guest"}
    rows = [items(r.history.item) for leg in legs for r in leg if r.HasField("history")]
    curve = [r["step"] for r in rows if "train/iteration" in r]
    assert sorted(set(curve)) == curve == steps(guest)   # each once, in order, none missing
    config = [items(r.config.update) for leg in legs for r in leg if r.HasField("config")]
    assert any(c.get("algo.name") == "ppo" and c.get("train.total_steps") == 4096 for c in config)
    verdict: dict[str, Any] = {}
    for r in legs[-1]:
        if r.HasField("summary"): verdict |= items(r.summary.update)
    assert verdict["result/eval_return_mean"] == summary["eval_return_mean"]
    assert not any("/guest" in str(v) for k, v in verdict.items() if k.startswith("result/"))   # no paths of this machine
    media = {p.suffix for p in guest.folder.glob("trackers/wandb/*/files/media/**/*") if p.is_file()}
    assert media == {".png", ".gif"}


def test_trackers_leave_standard_output_to_the_json_object(tmp_path: Path) -> None:
    "And no files where one works: W&B's are in the run, MLflow's store is beside the runs"
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nsinks = jsonl, wandb, mlflow\n")
    done = run("rlstudio", "run", "ppo/cartpole", "train.total_steps=2048", "eval.episodes=1", "--json", cwd=tmp_path, coverage=False, **OFFLINE)
    assert done.returncode == 0, said(done)
    assert json.loads(done.stdout)["status"] == "completed" and not {"wandb", "mlflow"} & set(done.stderr.lower().split())
    assert {p.name for p in tmp_path.iterdir()} == {"settings.ini", "runs"} and [p.name for p in tmp_path.glob("runs/ml*")] in (["mlruns"], ["mlflow.db"])


def test_wandb_without_a_login_is_said_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nsinks = jsonl, wandb\n")
    done = run("rlstudio", "run", "ppo/cartpole", "train.total_steps=2048", "--quiet", cwd=tmp_path, coverage=False, HOME=str(tmp_path),
               **OFFLINE | {"WANDB_MODE": "online"})
    assert done.returncode == 2 and "Traceback" not in done.stderr, said(done)
    assert "the sink 'wandb' has no login: run `wandb login`, or set WANDB_MODE=offline" in done.stderr


class At(Callback):
    "Does something once, behind the first record after so many steps"
    def __init__(self, step: int, do: Any) -> None: self.step, self.do = step, do

    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.env_steps >= self.step and self.do:
            self.do()
            self.do = None


def told(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if "the run goes on without it" in str(w.message)]


def test_wandb_dies_and_the_training_does_not(tmp_path: Path, alone: dict[str, Any]) -> None:
    "Its service process is killed in the middle"
    code = r"""
import json, os, signal, sys, warnings
from pathlib import Path
from test_trackers import At, new, told
def kill_service():
    mine = [p.parent for p in Path('/proc').glob('[0-9]*/cmdline') if b'wandb-core' in p.read_bytes() and b'\0%d\0' % os.getpid() in p.read_bytes()]
    found = [int(p.name) for p in mine]
    assert found, (mine, told(caught))
    for pid in found: os.kill(pid, signal.SIGKILL)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    summary = new(Path(sys.argv[1]), 'wandb').train([At(1500, kill_service)])
print(json.dumps([summary, told(caught)]))
"""
    done = child(code, tmp_path, timeout=120, **OFFLINE)
    summary, words = json.loads(done.stdout.splitlines()[-1])
    check_same(summary, alone)
    assert len(words) == 1 and words[0].startswith("wandb failed to "), (words, done.stderr)


class StopAt(Callback):
    "Ctrl-C"
    def __init__(self, step: int) -> None: self.step = step

    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.env_steps >= self.step and not trainer.stop_asked: signal.raise_signal(signal.SIGINT)


# ---- MLflow ------------------------------------------------------------------------------------------------------------

def mlflow_run(guest: Run) -> tuple[Any, str, Any]:
    "MLflow's own client, the id, and what it knows of the run"
    from mlflow import MlflowClient

    from rlstudio.train.trackers import mlflow_place
    client, known = MlflowClient(tracking_uri=mlflow_place(guest.folder)), recall(guest.folder / "trackers" / "mlflow.json")["id"]
    return client, known, client.get_run(known)


def test_mlflow_keeps_a_run_that_was_killed(tmp_path: Path, alone: dict[str, Any]) -> None:
    guest, summary = killed_and_resumed(tmp_path, "mlflow")
    check_same(summary, alone)
    client, known, kept = mlflow_run(guest)
    assert [m.step for m in client.get_metric_history(known, "train/iteration")] == steps(guest)   # each once, none missing
    assert kept.info.status == "FINISHED" and kept.info.run_name == "guest"
    assert kept.data.params["algo.name"] == "ppo" and kept.data.params["train.total_steps"] == "4096"
    assert kept.data.metrics["result/eval_return_mean"] == summary["eval_return_mean"] and kept.data.tags["result/status"] == "completed"
    assert "result/run" not in kept.data.tags   # no paths of this machine
    assert [f.path for d in ("plots", "videos") for f in client.list_artifacts(known, d)] == ["plots/learning_curve.png", "videos/rollout.webp"]
    assert len(client.search_runs([kept.info.experiment_id])) == 1


def test_mlflow_switched_on_later_gets_the_whole_curve(tmp_path: Path) -> None:
    guest = new(tmp_path)
    assert guest.train([StopAt(1500)])["status"] == "interrupted"
    again = Run.open(guest.folder, settings=Settings(runs_dir=str(tmp_path), sinks=("mlflow", "jsonl")))
    assert again.train()["status"] == "completed"
    client, known, _ = mlflow_run(again)
    assert [m.step for m in client.get_metric_history(known, "train/iteration")] == steps(again)


def test_mlflow_marks_a_stopped_run(tmp_path: Path) -> None:
    guest = new(tmp_path, "mlflow")
    guest.train([StopAt(2000)])
    assert mlflow_run(guest)[2].info.status == "KILLED"


def test_mlflow_dies_and_the_training_does_not(tmp_path: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    "Its store is gone in the middle"
    monkeypatch.setattr(MlflowSink, "every", 0.)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        summary = new(tmp_path, "mlflow").train([At(1500, lambda: shutil.rmtree(tmp_path / "store"))])
    check_same(summary, alone)
    assert len(told(caught)) == 1 and "mlflow failed to take metrics" in told(caught)[0]


def test_mlflow_without_its_server_is_one_warning(tmp_path: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{LOOPBACK}:9")
    with pytest.warns(UserWarning, match="mlflow failed to begin .*the run goes on without it") as caught: summary = new(tmp_path, "mlflow").train()
    assert len(told(list(caught))) == 1
    check_same(summary, alone)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_folder_that_takes_nothing_is_one_warning(tmp_path: Path, alone: dict[str, Any], name: str) -> None:
    guest = new(tmp_path, name)
    (guest.folder / "trackers" / f"{name}.json").mkdir(parents=True)   # in the way
    with pytest.warns(UserWarning, match=f"{name} failed to begin") as caught: summary = guest.train()
    assert len(told(list(caught))) == 1
    check_same(summary, alone)


# ---- trackio -----------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not find_spec("trackio"), reason="trackio is not installed")
def test_trackio_keeps_a_run(tmp_path: Path, alone: dict[str, Any]) -> None:
    code = """
import json, sys
from pathlib import Path
from test_trackers import StopAt, new, steps
from rlstudio.runs.config import Settings
from rlstudio.runs.run import Run
guest = new(Path(sys.argv[1]), 'trackio')
guest.train([StopAt(1500)])
summary = Run.open(guest.folder, settings=Settings(runs_dir=sys.argv[1], sinks=('jsonl', 'trackio'))).train()
from rlstudio.train.trackers import recall
from trackio.sqlite_storage import SQLiteStorage
facts = recall(guest.folder / 'trackers' / 'trackio.json')
logs = SQLiteStorage.get_logs(facts['project'], facts['id'])
print(json.dumps([summary, [r['step'] for r in logs if 'train/iteration' in r], steps(guest)]))
"""
    done = child(code, tmp_path, timeout=120, TRACKIO_DIR=str(tmp_path / "trackio"), **OFFLINE)
    summary, curve, expected = json.loads(done.stdout.splitlines()[-1])
    check_same(summary, alone)
    assert curve == expected and len(done.stdout.splitlines()) == 1


# ---- TensorBoard -------------------------------------------------------------------------------------------------------

def test_tensorboard_has_hyper_parameters_and_films(tmp_path: Path, alone: dict[str, Any]) -> None:
    from io import BytesIO

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    guest, summary = killed_and_resumed(tmp_path, "tensorboard")
    check_same(summary, alone)
    events = EventAccumulator(str(guest.folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [e.step for e in events.Scalars("train/iteration")] == steps(guest)
    assert events.Scalars("result/eval_return_mean")[-1].value == pytest.approx(summary["eval_return_mean"])
    film, curve = (events.Images(tag)[-1].encoded_image_string for tag in ("rollout", "learning_curve"))
    with Image.open(BytesIO(film)) as gif: assert gif.format == "GIF" and getattr(gif, "n_frames", 1) > 1
    with Image.open(BytesIO(curve)) as png: assert png.format == "PNG"
    found = {tag: HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content) for tag in events.PluginTagToContent("hparams")}
    start = found["_hparams_/session_start_info"].session_start_info.hparams
    assert start["algo.name"].string_value == "ppo" and start["algo.learning_rate"].number_value > 0
    assert "_hparams_/session_end_info" in found and "_hparams_/experiment" in found


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_a_verdict_that_nobody_takes_is_a_warning(tmp_path: Path, error: BaseException) -> None:
    "Also for somebody who is tired of waiting: the run is complete"
    from rlstudio.train.metrics import MAX_FILMS, conclude_run
    taken: list[list[str]] = []

    class Refuses:
        def conclude(self, summary: dict[str, Any], pictures: list[Path]) -> None: raise error

    class Takes:
        def conclude(self, summary: dict[str, Any], pictures: list[Path]) -> None: taken.append([p.name for p in pictures])

    (tmp_path / "videos").mkdir()
    for step in range(12):
        (tmp_path / "videos" / f"step_{step}.webp").write_bytes(b"")
        os.utime(tmp_path / "videos" / f"step_{step}.webp", (step, step))
    with pytest.warns(UserWarning, match=f"Refuses did not take the verdict: {type(error).__name__}"): conclude_run([Refuses(), Takes(), object()], {}, tmp_path)
    assert taken == [[f"step_{k}.webp" for k in range(12 - MAX_FILMS, 12)]]   # the newest ones
