"The level of a run: what would change its bits is put aside or belongs to the identity, and what has fallen stays down, whatever is deleted."
import ctypes
import itertools
import json
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import memory_folder
from support import run, said

from rlstudio.core.arithmetic import RoundingError, arithmetic_threads, identity, odd_settings
from rlstudio.core.files import FileError
from rlstudio.runs import run as run_module
from rlstudio.runs.checkpoint import checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint
from rlstudio.runs.config import Settings
from rlstudio.runs.run import Run, claims, past
from rlstudio.train.trainer import Callback, Trainer

SMALL = dict(env=dict(id="CartPole-v1", num_envs=4), algo=dict(name="ppo", num_steps=32, num_minibatches=2, num_epochs=1), net=dict(hidden=[32]),
             train=dict(total_steps=768), eval=dict(episodes=0), checkpoint=dict(every=128, best=False, keep=9))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder() as folder: yield folder.resolve()


def begun(tmp_path: Path, name: str = "r", engine: str = "auto", **changes: Any) -> Run:
    return Run.from_config(SMALL | changes, runs_dir=tmp_path, name=name, settings=Settings(engine=engine))


class At(Callback):
    "Does something after an iteration, and perhaps stops"
    def __init__(self, iteration: int, what: Callable[[], object] = lambda: None, stop: bool = True) -> None:
        self.iteration, self.what, self.stop = iteration, what, stop

    def on_iteration_end(self, trainer: Trainer) -> None:
        if trainer.iteration != self.iteration: return
        self.what()
        if self.stop: trainer.stop("no time", interrupt=True)


@contextmanager
def turned(on: Callable[[], object], off: Callable[[], object]) -> Iterator[None]:
    on()
    try: yield
    finally: off()


def denormals_to_zero() -> AbstractContextManager[None]:
    if not torch.set_flush_denormal(True): pytest.skip("this processor cannot")
    return turned(lambda: None, lambda: torch.set_flush_denormal(False))


HARMLESS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype": lambda: turned(lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
    "default device": lambda: turned(lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    "a device's block": lambda: torch.device("meta"),
    "matmul precision": lambda: turned(lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")),
    "deterministic algorithms": lambda: turned(lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)),
    "denormals": denormals_to_zero,
    "no gradients": torch.no_grad, "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "numpy buffer": lambda: turned(lambda: np.setbufsize(16), lambda: np.setbufsize(8192)),
    "threads": lambda: turned(lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
    "global seeds": lambda: turned(lambda: torch.manual_seed(5), lambda: torch.manual_seed(6)),
    "print options": lambda: turned(lambda: torch.set_printoptions(precision=1), lambda: torch.set_printoptions(profile="default")),
    "numpy's errors": lambda: np.errstate(all="ignore"),
}


def state_of_process() -> list[Any]:
    return [*odd_settings(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), str(torch.get_default_dtype()), str(torch.get_default_device()),
            torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision, np.getbufsize()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    "Where runs end in a process that nobody has told anything"
    return {engine: begun(tmp_path_factory.mktemp("plain"), engine=engine).train([At(5)])["weights_sha256"] for engine in ("tape", "autograd")}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("engine", ["tape", "autograd"])
@pytest.mark.parametrize("setting", HARMLESS)
def test_harmless_settings(tmp_path: Path, plain: dict[str, str], setting: str, engine: str) -> None:
    "Same hash, level L3, the same identity; and whoever turned it finds it turned"
    with HARMLESS[setting]():
        before = state_of_process()
        begun_ = begun(tmp_path, engine=engine)
        result = begun_.train([At(5)])
        assert state_of_process() == before
    assert (result["weights_sha256"], result["level"], begun_.manifest["machine"]) == (plain[engine], "L3", identity(engine))


def test_some_of_them_would_have_changed_it(plain: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The test above can fail: without the block, gradients are off, and products may be rounded to 16 bits"
    from rlstudio.core import arithmetic
    monkeypatch.setattr(arithmetic, "plain_thread", nullcontext)
    with pytest.raises(RuntimeError), torch.no_grad(): begun(tmp_path, "a", "autograd").train([At(5)])
    with torch.autocast("cpu", torch.bfloat16): other = begun(tmp_path, "b", "autograd").train([At(5)])
    assert other["weights_sha256"] != plain["autograd"]


def test_interop_threads_are_harmless(tmp_path: Path, plain: dict[str, str]) -> None:
    "They can be set once in a process"
    code = ("import sys, torch; sys.path.insert(0, 'tests'); torch.set_num_interop_threads(3); from test_level import *\n"
            "print(begun(Path(sys.argv[1]), engine='tape').train([At(5)])['weights_sha256'], torch.get_num_interop_threads())")
    done = run(sys.executable, "-c", code, tmp_path)
    assert done.returncode == 0 and done.stdout.split()[-2:] == [plain["tape"], "3"], said(done)


# What cannot be put aside is part of the identity

def rounded_up() -> AbstractContextManager[None]:
    if platform.machine() != "x86_64": pytest.skip("the number of this rounding is known for x86")
    libm = ctypes.CDLL("libm.so.6")
    return turned(lambda: libm.fesetround(0x800), lambda: libm.fesetround(0))


NAMED: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "oneDNN off": (lambda: turned(lambda: torch._C._set_mkldnn_enabled(False), lambda: torch._C._set_mkldnn_enabled(True)), "onednn=off"),
}


@pytest.mark.faults(20)
@pytest.mark.parametrize("setting", NAMED)
def test_other_settings_are_named(tmp_path: Path, setting: str) -> None:
    "Begun plainly, gone on with the setting: L2, and why; begun with it and gone on with it: the same identity, L3"
    turn, name = NAMED[setting]
    first = begun(tmp_path)
    first.train([At(2)])
    with turn(), pytest.warns(UserWarning, match=rf"switches: unknown, now {name}.*no longer exact \(level L2\)"): first.train([At(4)])
    assert first.manifest["level"] == latest_checkpoint(first.folder / "checkpoints")[0].meta["level"] == "L2"
    with turn():
        second = begun(tmp_path, "second")
        second.train([At(2)])
        assert second.train([At(4)])["level"] == "L3" and second.manifest["machine"]["switches"] == name


def test_another_rounding_is_refused(tmp_path: Path) -> None:
    "Python itself reads numbers wrongly then"
    with rounded_up(), pytest.raises(RoundingError, match="expected one that does"):
        with arithmetic_threads(): pass
    r = begun(tmp_path)
    with rounded_up(), pytest.raises(RoundingError): r.train()
    assert r.train([At(5)])["level"] == "L3"


TURNED: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
    "denormals": (lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False), "denormals=zero"),
    "matmul": (lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest"), "fp32_matmul=bf16"),
    "a second thread": (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1), "threads=2"),
    "oneDNN": (lambda: torch._C._set_mkldnn_enabled(False), lambda: torch._C._set_mkldnn_enabled(True), "onednn=off"),
}


@pytest.mark.faults(20)
@pytest.mark.parametrize("setting", TURNED)
def test_what_is_turned_on_the_way_lowers_the_level(tmp_path: Path, setting: str) -> None:
    on, off, name = TURNED[setting]
    r = begun(tmp_path)
    try:
        with pytest.warns(UserWarning, match=f"changed while training .*{name}"): result = r.train([At(3, on, stop=False), At(5)])
    finally: off()
    assert result["level"] == r.manifest["level"] == load_checkpoint(checkpoints(r.folder / "checkpoints")[0]).meta["level"] == "L2"
    assert name in r.manifest["why"] and load_checkpoint(checkpoints(r.folder / "checkpoints")[-1]).meta["level"] == "L3"
    assert odd_settings() == []


def test_the_looks_are_right() -> None:
    "Each is seen where it is, and only there"
    with arithmetic_threads(): assert odd_settings() == []
    with denormals_to_zero(): assert odd_settings() == ["denormals=zero"] and np.float32(1e-38) * np.float32(.1) == 0
    assert np.float32(1e-38) * np.float32(.1) > 0
    with rounded_up(): assert odd_settings() == ["rounding=odd"]
    with torch.autocast("cpu"): assert odd_settings() == ["autocast=on"]
    assert odd_settings() == []


# It never rises

def fallen(tmp_path: Path) -> Run:
    "Begun at L3, and gone on with other arithmetic in two more processes; with a result, a best checkpoint and a ledger"
    r = begun(tmp_path, checkpoint=dict(every=128, keep=9), eval=dict(episodes=1, every=256))
    r.train([At(2)])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(run_module, "identity", lambda engine="": identity(engine) | dict(blas="openblas 0.3 Haswell"))
        r = Run.open(r.folder)
        r.train([At(4)])
        assert Run.open(r.folder).train()["level"] == "L2"
    return Run.open(r.folder)


def delete(folder: Path, what: str) -> None:
    "Something that a run's folder holds"
    ordinary = checkpoints(folder / "checkpoints")
    match what:
        case "newer": paths = [p for p in ordinary if load_checkpoint(p).meta["level"] == "L2"]
        case "best": paths = [folder / "checkpoints" / "best"]
        case _: paths = [folder / what]
    for path in paths: shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


PARTS = ["manifest.json", "newer", "best", "result.json", "ledger.jsonl", "hashes.json"]


@pytest.mark.faults(16, 20)
def test_whatever_is_deleted(tmp_path: Path) -> None:
    "All 64 choices: as long as one file knows of the fall, the level is low. With none, what is left was made exactly, and says so"
    r, knows = fallen(tmp_path), {"manifest.json", "newer", "best", "result.json", "ledger.jsonl"}
    levels = {load_checkpoint(p).meta["level"] for p in checkpoints(r.folder / "checkpoints")}
    assert levels == {"L2", "L3"} and load_checkpoint(checkpoints(r.folder / "checkpoints" / "best")[0]).meta["level"] == "L2"
    for n, chosen in enumerate(c for k in range(len(PARTS) + 1) for c in itertools.combinations(PARTS, k)):
        folder = Path(shutil.copytree(r.folder, tmp_path / str(n)))
        for what in chosen: delete(folder, what)
        level = past(claims(Run.open(folder).files, latest_checkpoint(folder / "checkpoints")[0]))["level"]
        assert level == ("L3" if knows <= set(chosen) else "L2"), chosen
        shutil.rmtree(folder)


@pytest.mark.parametrize("chosen", [("manifest.json",), ("manifest.json", "newer"), ("manifest.json", "newer", "best", "result.json", "hashes.json"),
                                    ("manifest.json", "newer", "result.json", "hashes.json", "ledger.jsonl")], ids=" ".join)
def test_it_trains_on_and_stays_low(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    "Through the door: the run goes on, and says L2 in its result, its manifest and every new checkpoint"
    r = fallen(tmp_path)
    for what in chosen: delete(r.folder, what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = Run.open(r.folder, total_steps=1024).train()
    assert result["level"] == "L2" == r.manifest["level"] == load_checkpoint(checkpoints(r.folder / "checkpoints")[0]).meta["level"]
    assert "blas: " in r.manifest["why"]


EDITS: dict[str, Callable[[dict], object]] = {
    "level up": lambda m: m.update(level="L3", why="one arithmetic thread on a CPU"), "level odd": lambda m: m.update(level="L9"), "level null": lambda m: m.update(level=None),
    "no level": lambda m: (m.pop("level"), m.pop("why")), "no machine": lambda m: m.pop("machine"), "machine list": lambda m: m.update(machine=[1]),
    "no versions": lambda m: m.pop("versions"), "an old copy": lambda m: m.clear() or m.update(schema_version=2, level="L3", why="one arithmetic thread on a CPU"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest(tmp_path: Path, edit: str) -> None:
    "The checkpoints remember: neither the level rises, nor is the comparison left out"
    r = begun(tmp_path)
    r.train([At(2)])
    m = r.manifest
    EDITS[edit](m)
    (r.folder / "manifest.json").write_text(json.dumps(m))
    (r.folder / "hashes.json").unlink(missing_ok=True)
    try: Run.open(r.folder).files.manifest
    except FileError: return  # refused by its shape: nothing goes on from it
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="blas: .*no longer exact|no longer exact"):
        patch.setattr(run_module, "identity", lambda engine="": identity(engine) | dict(blas="openblas 0.3 Haswell"))
        assert Run.open(r.folder).train([At(4)])["level"] == "L2"
    assert Run.open(r.folder).train([At(5)])["level"] == "L2"


def test_a_checkpoint_that_does_not_say_how_it_was_made(tmp_path: Path) -> None:
    "Level, versions and identity stand in each checkpoint; one without them is trusted to no bit"
    r = begun(tmp_path)
    r.train([At(2)])
    saved = latest_checkpoint(r.folder / "checkpoints")[0]
    assert {"level", "why", "versions", "machine"} <= saved.meta.keys() and saved.meta["machine"] == identity("tape")
    for lost in ("level", "versions", "machine"):
        folder = Path(shutil.copytree(r.folder, tmp_path / lost))
        shutil.rmtree(folder / "checkpoints")
        (folder / "hashes.json").unlink(missing_ok=True)
        save_checkpoint(folder / "checkpoints", saved.step, saved.state, {k: v for k, v in saved.meta.items() if k != lost})
        with pytest.warns(UserWarning, match=f"does not say how it was made .no {lost}"): assert Run.open(folder).train([At(4)])["level"] == "L1"


def test_claims_of_a_new_run_are_none(tmp_path: Path) -> None:
    assert claims(begun(tmp_path).files, None) == [] and past(claims(begun(tmp_path, "b").files, None)) == {}
