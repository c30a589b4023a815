"""Run directories: a folder that explains itself, continues where it stopped, and refuses a changed configuration.

This module imports little, because the command line loads it before it knows whether JAX is needed.
"""

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.files import atomic
from landscape.files.progress import Bar
from landscape.runs import record
from landscape.runs.options import Options
from landscape.runs.record import differences, environment_of, read_config, record_of, refuse_changes

if TYPE_CHECKING:
    from landscape.datasets import Dataset
    from landscape.evaluation.execution import Execution

RESULTS = (".png", ".pdf", ".html", ".nc", ".json", ".npz", ".csv", ".md")


@dataclass(frozen=True)
class Run:
    """One run directory, open in this process.

    Attributes:
        name: The command, such as "figure1".
        path: The directory.
        options: The shared options.
        leader: False in all but the first process of a distributed run: such a process prints and logs nothing.
    """

    name: str
    path: Path
    options: Options = field(default_factory=Options)
    leader: bool = True

    def file(self, name: str) -> Path:
        """The path of a file in the run directory."""
        return self.path / name

    def say(self, label: str, text: str = "") -> None:
        """Print "label    text" (further lines indented likewise) unless --quiet, and log it."""
        self.log(label.rstrip(": "), text=text)
        if self.options.progress and self.leader:
            first, *others = text.split("\n")
            lines = [f"{label:<8} {first}", *(f"{'':<8} {line}" for line in others)]
            print_line("\n".join(line.rstrip() for line in lines))

    def plan(self, *parts: str) -> None:
        """Say what is about to happen: devices, the `parts` (memory, operations, time), the directory."""
        self.say("plan:", " · ".join([self.devices, *parts, str(self.path)]))

    def execution(self, progress: "bool | Bar" = False) -> "Execution":
        """The `Execution` of this run: its options, and its directory for resuming.

        Args:
            progress: A bar already open, or whether to show one.
        """
        from landscape.evaluation.execution import Execution

        return Execution(
            precision=self.options.precision,
            memory=self.options.memory_bytes,
            directory=self.path,
            progress=progress,
            check_stop=self.check_stop,
        )

    def log(self, event: str, **content: Any) -> None:
        """Append one JSON line to log.jsonl."""
        if self.leader:
            line = {"time": now(), "event": event, **content}
            with open(self.file("log.jsonl"), "a", encoding="utf-8") as log:
                log.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    @cached_property
    def devices(self) -> str:
        """The devices in words: "2 CPU devices"."""
        import jax

        kind = jax.devices()[0].device_kind
        words = "CPU" if jax.default_backend() == "cpu" else kind
        return f"{jax.device_count()} {words} device{'s' * (jax.device_count() > 1)}"

    def measures(self, content: dict[str, Any]) -> None:
        """Write measures.json, whole or not at all."""
        if self.leader:
            atomic.write_json(self.file("measures.json"), content)

    def data(self, dataset: "Dataset", name: str = "data") -> str:
        """Record the sha256 of a data set in config.json, and return it.

        Raises:
            ValueError: The run was begun with other data.
        """
        found = atomic.fingerprint(dataset)
        record = read_config(self.path)
        known = record.setdefault("data", {}).setdefault(name, found)
        if known != found:
            raise ValueError(
                f"{self.path} was begun with other data: sha256 {known[:12]}… then, {found[:12]}… now.\n"
                "  Restore the data files, or choose --out."
            )
        if self.leader:
            atomic.write_json(self.file("config.json"), record)
        return found

    def take_up(self, environment: dict[str, Any]) -> None:
        """Announce that a run is continued and how the environment differs; remove half-written files."""
        record = read_config(self.path)
        self.say("resuming:", f"{self.path}, begun {record['begun']}")
        begun = record["environment"]
        changes = [f"{key} {new} (begun with {old})" for key, old, new in differences(begun, environment)]
        if changes:
            self.say("note:", "continued with " + ", ".join(changes))
        if self.leader:
            for pending in self.path.glob(".*.pending*"):
                pending.unlink(missing_ok=True)

    def stage(
        self, name: str, inputs: Any, compute: Callable[[], Mapping[str, Any]], word: str = ""
    ) -> dict[str, np.ndarray]:
        """The arrays of one stage, read from disk if they belong to the same inputs, otherwise computed and written.

        A damaged file is computed again, with a warning.

        Args:
            name: A short name for the file.
            inputs: All that the stage depends on: arrays, numbers, strings and records of these.
            compute: Makes the arrays.
            word: Printed if the stage is read from disk; nothing if empty.

        Raises:
            Stopped: A request to stop has come; the stage is on disk.
        """
        key = atomic.fingerprint(name, inputs)
        file = self.file(f"stage-{name}-{key[:8]}.npz")
        found = atomic.recovered(file, key)
        if found is None:
            found = {where: np.asarray(array) for where, array in compute().items()}
            atomic.save_arrays(file, found, key)
            self.check_stop()
        elif word:
            self.say("kept", word)
        return found

    def clear(self) -> None:
        """Remove the files that were kept for resuming."""
        atomic.remove(self.path, "stage-*.npz", "block-*.npz", "training.npz")

    def check_stop(self) -> None:
        """Answer a request to stop; to be called between two units of work, after writing the first.

        Raises:
            Stopped: SIGTERM or SIGUSR1 has come.
        """
        if on_any_process(bool(_stop), self.options.distributed):
            raise atomic.Stopped

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "") -> Iterator[Bar]:
        """One progress bar: `with run.bar("train    I=10", steps) as bar: … bar.update(n); bar.note("risk 0.1")`."""
        bar = Bar(label, total, unit, shown=self.options.progress and self.leader)
        try:
            yield bar
        finally:
            bar.close()
            self.log(label, done=bar.done, total=total, seconds=round(bar.seconds, 3), note=bar.text)


def now() -> str:
    """Local time with its offset, in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def print_line(text: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


_stop: list[int] = []


def on_any_process(flag: bool, distributed: bool) -> bool:
    """Whether the flag is set on any process of the computation; all processes must ask."""
    if not distributed:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))


def _ask(received: int, _: object) -> None:
    _stop.append(received)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """In this context SIGTERM and SIGUSR1 are requests, which `Run.check_stop` answers after the current unit of work.

    Nesting it takes the signals back from libraries that have changed the handlers. The outermost context forgets
    earlier requests.
    """
    wanted = (signal.SIGTERM, signal.SIGUSR1)
    if signal.getsignal(signal.SIGTERM) is not _ask:
        _stop.clear()
    before = [signal.signal(number, _ask) for number in wanted]
    try:
        yield
    finally:
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def noting(run: Run) -> Iterator[None]:
    """In this context warnings of the package are printed and logged as notes of the run."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if category is UserWarning:
                run.say("note", str(message))
            else:
                show(message, category, *where)

        warnings.showwarning = say
        yield


@contextmanager
def opened(name: str, config: Any, options: Options, command: str, leader: bool = True) -> Iterator[Run]:
    """Open the run directory of a command for this process alone, and begin or continue the run in it.

    A directory in which an earlier run kept nothing is begun anew. If a run is refused before it keeps anything, the
    directory is removed.

    Args:
        name: The command.
        config: Its configuration.
        options: The shared options; `out` is the directory, runs/NAME by default.
        command: What was typed, to be repeated.
        leader: Whether this process writes the records.

    Raises:
        ValueError: The directory cannot be written, is in use, holds something else or another configuration.
    """
    path = options.out or Path("runs") / name
    wanted, made = record_of(name, config, options), record.missing(path)
    with (
        atomic.locked(path) if leader else nullcontext(),
        record.removed_if_refused(path, made) if leader else nullcontext(),
    ):
        begun = (path / "config.json").exists()
        resumed = begun and not record.keeps_nothing(path)
        if resumed:
            refuse_changes(path, wanted)
        elif leader and not begun:
            refuse_foreign_files(path)
        resumed = on_any_process(resumed, options.distributed)
        environment = environment_of()
        run = Run(name, path, options, leader)
        if leader and not resumed:
            about = {"command": command, "begun": now(), **wanted, "environment": environment}
            atomic.write_json(run.file("config.json"), about)
        run.log("start", resumed=resumed, command=command, environment=environment)
        if resumed:
            run.take_up(environment)
        on_any_process(False, options.distributed)  # wait until the directory is ready
        with noting(run):
            yield run


def mark(run: Run, milestone: str) -> list[str]:
    """Note in config.json that a run is "computed", then "finished"; returns its result files."""
    files = sorted(f.name for f in run.path.iterdir() if f.is_file() and f.suffix in RESULTS)
    if run.leader:
        atomic.write_json(run.file("config.json"), {**read_config(run.path), milestone: files})
    run.log(milestone, files=files)
    return files


def complete(path: Path, milestone: str) -> bool:
    """Whether a run reached a milestone and still has all the files it had then."""
    files = read_config(path).get(milestone, [])
    return bool(files) and all((path / file).exists() for file in files)


def finished(name: str, config: Any, options: Options) -> bool:
    """Whether the run directory already holds this very run, complete with its files.

    Raises:
        ValueError: It holds another configuration.
    """
    path = options.out or Path("runs") / name
    if not (path / "config.json").exists() or record.keeps_nothing(path):
        return False
    refuse_changes(path, record_of(name, config, options))
    return complete(path, "finished")


def refuse_foreign_files(path: Path) -> None:
    """Refuse to begin a run in a folder with other files.

    Raises:
        ValueError: The folder holds files, but no config.json.
    """
    foreign = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if foreign:
        raise ValueError(
            f"{path} holds other files ({', '.join(foreign[:3])}…) and is no run directory.\n"
            "  Choose an empty or new folder as --out."
        )
