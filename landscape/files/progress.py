"""Progress of one long computation: a bar on a terminal or in a notebook, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 5.0
"""Seconds between two lines without a terminal."""


class Bar:
    """Counts finished units and shows them.

    Attributes:
        done: Units finished.
        text: The latest note.
    """

    def __init__(self, label: str, total: int, unit: str = "", *, shown: bool = True) -> None:
        self.label, self.total, self.unit, self.done, self.text = label, total, unit, 0, ""
        self.shown, self.start = shown, time.monotonic()
        self.spoken = self.start
        self.terminal = None
        if shown and (sys.stdout.isatty() or in_notebook()):
            from tqdm.auto import tqdm

            form = "{desc}{bar:20} {percentage:3.0f} %  {elapsed}  {unit}"
            self.terminal = tqdm(
                total=total, desc=f"{label:<22} ", unit=unit, bar_format=form, file=sys.stdout, leave=False
            )

    @property
    def seconds(self) -> float:
        """Seconds since the bar was opened."""
        return time.monotonic() - self.start

    def update(self, n: int = 1) -> None:
        """Count `n` more units."""
        self.done += n
        if self.terminal is not None:
            self.terminal.unit = "  ".join(filter(None, [self.left(), self.text]))
            self.terminal.update(n)
        elif self.shown and time.monotonic() - self.spoken >= EVERY:
            self.spoken = time.monotonic()
            self.line(self.left())

    def note(self, text: str) -> None:
        """Show a text beside the bar from the next update on."""
        self.text = text

    def left(self) -> str:
        """The time left at the rate so far."""
        return f"{clock(self.seconds / self.done * (self.total - self.done))} left" if self.done else ""

    def close(self) -> None:
        """Leave one final line."""
        if self.terminal is not None:
            self.terminal.close()
        if self.shown:
            self.line()

    def line(self, left: str = "") -> None:
        """Write one line: label, bar, share, time, note."""
        share = self.done / max(self.total, 1)
        full = round(20 * min(share, 1.0))
        unit = f"{self.done:,} {self.unit}" if self.unit else ""
        words = "  ".join(filter(None, [left, self.text or unit]))
        bar = f"{'█' * full}{'░' * (20 - full)}"
        sys.stdout.write(f"{self.label:<22} {bar} {100 * share:3.0f} %  {clock(self.seconds)}  {words}".rstrip() + "\n")
        sys.stdout.flush()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def showing(progress: "bool | Bar", label: str, total: int, unit: str = "") -> Iterator[Bar]:
    """The bar of a long call: a new one if `progress` is True, a silent one if False, or the given bar."""
    if isinstance(progress, Bar):
        yield progress
        return
    bar = Bar(label, total, unit, shown=progress)
    try:
        yield bar
    finally:
        bar.close()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(83), clock(3683)
    ('1:23', '1:01:23')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
