"""The progress bar of a Jupyter notebook, redrawn in place below its cell."""

from collections import deque

from rich.console import Group
from rich.jupyter import JupyterMixin
from rich.progress import Progress
from rich.text import Text

_MOST_LINES = 12


class NotebookBar:
    """The bar, below its name and the newest lines. Works from any thread and in every front end, without widgets."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        """`progress`: the bar's columns; it is never started."""
        from IPython.display import display  # installed wherever a notebook runs

        self._progress, self._name, self._lines = progress, what, deque[str](maxlen=_MOST_LINES)
        self._task = progress.add_task("", total=total, note="")
        self._shown = display(self._view(), display_id=True)

    def set(self, done: int, note: str = "") -> None:
        """Shows how much is done, and a note."""
        self._progress.update(self._task, completed=done, note=note)
        self._draw()

    def say(self, line: str) -> None:
        """Shows a line above the bar."""
        self._lines.append(line)
        self._draw()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._draw()

    def _draw(self) -> None:
        self._shown.update(self._view())

    def _view(self) -> "_View":
        table = self._progress.make_tasks_table(self._progress.tasks)
        return _View(Text(self._name, "bold"), *(Text(line) for line in self._lines), table)


class _View(Group, JupyterMixin):
    """Lines and a bar that a notebook can show."""
