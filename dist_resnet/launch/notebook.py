"""The bar of a Jupyter notebook, which stays where it is below its cell and is drawn anew in place."""

from collections import deque

from rich.console import Group
from rich.jupyter import JupyterMixin
from rich.progress import Progress
from rich.text import Text

_MOST_LINES = 12


class NotebookBar:
    """The bar, below its name and the newest lines; from any thread. Needs no widgets, for every front end shows it."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        """`progress`: the bar's columns; it is never started."""
        from IPython.display import display  # where there is a notebook, and nowhere else

        self._progress, self._name, self._lines = progress, what, deque[str](maxlen=_MOST_LINES)
        self._task = progress.add_task("", total=total, note="")
        self._shown = display(self._view(), display_id=True)

    def set(self, done: int, note: str = "") -> None:
        """So much is done, with a few words on it."""
        self._progress.update(self._task, completed=done, note=note)
        self._draw()

    def say(self, line: str) -> None:
        """Shows a line above the bar."""
        self._lines.append(line)
        self._draw()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._draw()

    def _draw(self) -> None:
        self._shown.update(self._view())

    def _view(self) -> "_View":
        table = self._progress.make_tasks_table(self._progress.tasks)
        return _View(Text(self._name, "bold"), *(Text(line) for line in self._lines), table)


class _View(Group, JupyterMixin):
    """Lines and a bar that a notebook can show."""
