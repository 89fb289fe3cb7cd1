"A sink: where the numbers of a run go."
import csv
import os
from pathlib import Path
from typing import Any


class CSVSink:
    "Writes `metrics.csv`, a line for each number: step, name, value; a resumed run shows no step twice"
    def __init__(self) -> None: self.file: Any = None

    def open(self, folder: str | Path, offset: dict[str, int] | None = None) -> None:
        self.close()
        path = Path(folder) / "metrics.csv"
        begun = path.is_file() and not path.is_symlink()
        if begun and offset: os.truncate(path, min(offset["bytes"], path.stat().st_size))
        self.file = open(path, "a" if begun and offset else "w", newline="")
        if not (begun and offset): self.file.write("step,name,value\n")

    def write(self, record: dict[str, Any]) -> None:
        rows = [(record["step"], name, value) for name, value in record.items() if name != "step"]
        csv.writer(self.file, lineterminator="\n").writerows(rows)

    def offset(self) -> dict[str, int]:
        self.file.flush()
        return {"bytes": self.file.tell()}

    def flush(self, sync: bool = False) -> None:
        self.file.flush()
        if sync: os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file: self.file.close()
        self.file = None
