"""A run's delivery state, `mlflow.json` in its directory: the description, each server's MLflow run, the ending.

Files of an ending are stored under `mlflow/` for later deliveries.
"""

import uuid
from typing import Any

from dist_resnet.storage.uri import without_credentials
from dist_resnet.tracking.journal import read_journal
from dist_resnet.tracking.mlflow.run_description import Ending, RunDescription
from dist_resnet.tracking.run_directory import RunDirectory

_FILE, _FOLDER = "mlflow.json", "mlflow"


class Ledger:
    """The entry of one tracking server in a run's `mlflow.json`; one writing process at a time (the driver)."""

    def __init__(self, directory: RunDirectory, tracking_uri: str) -> None:
        self._directory, self._server = directory, without_credentials(tracking_uri)

    def key(self) -> str:
        """The random key that identifies the run on this server, saved before the run is created there.

        Otherwise a driver that dies or an answer that is lost before the run's id is saved would lead to a second run.
        """
        if "key" not in self._entry():
            self._note_entry(key=uuid.uuid4().hex)
        return self._entry()["key"]

    def run_id(self) -> str | None:
        """The id of the run on this server; None until it is saved."""
        return self._entry().get("run_id")

    def note_run(self, run_id: str) -> None:
        """Saves the id of the run."""
        self._note_entry(run_id=run_id, ended=False)

    def is_delivered(self) -> bool:
        """Whether this server has the last ending and every record of the current journal."""
        entry = self._entry()
        return bool(entry.get("ended")) and entry.get("records") == len(read_journal(self._directory))

    def note_delivered(self, records: int) -> None:
        """Saves that this server has the ending and this many records."""
        self._note_entry(ended=True, records=records)

    def note_description(self, description: RunDescription, *, parent: str | None, every: int) -> None:
        """Saves the description, the parent run's directory and which steps are sent, for later deliveries.

        If a description is saved already, only its experiment changes.
        """
        known = self._read()
        if "card" not in known:
            self._write(known | {"card": description.to_dict(), "parent": parent, "every": every})
        elif known["card"]["experiment"] != description.experiment:
            self._write(known | {"card": known["card"] | {"experiment": description.experiment}})

    def note_ending(self, ending: Ending) -> None:
        """Saves how the run ended, for later deliveries."""
        for name, content in ending.files.items():
            self._directory.write(f"{_FOLDER}/{name}", content)
        kept = {"status": ending.status, "files": sorted(ending.files), "tags": ending.tags}
        known = self._read()
        # Servers may have an earlier ending, not this one.
        servers = {server: entry | {"ended": False} for server, entry in known.get("servers", {}).items()}
        self._write(known | {"ending": kept, "servers": servers})

    def description(self) -> tuple[RunDescription, str | None, int]:
        """The description, the parent's directory, which steps are sent. Raises FileNotFoundError if none is saved."""
        known = self._read()
        if "card" not in known:
            raise FileNotFoundError(f"the run at {self._directory.uri} was never tracked; there is nothing to deliver")
        return RunDescription.from_dict(known["card"]), known["parent"], known["every"]

    def ending(self) -> Ending | None:
        """How the run ended; None if it has not."""
        kept = self._read().get("ending")
        if kept is None:
            return None
        files = {name: self._directory.read(f"{_FOLDER}/{name}") for name in kept["files"]}
        return Ending(status=kept["status"], files=files, tags=kept["tags"])

    def _entry(self) -> dict[str, Any]:
        return self._read().get("servers", {}).get(self._server, {})

    def _note_entry(self, **values: Any) -> None:
        known = self._read()
        servers = known.get("servers", {})
        self._write(known | {"servers": servers | {self._server: servers.get(self._server, {}) | values}})

    def _read(self) -> dict[str, Any]:
        return self._directory.read_json(_FILE) or {}

    def _write(self, known: dict[str, Any]) -> None:
        self._directory.write_json(_FILE, known)


def runs_on_servers(directory: RunDirectory) -> dict[str, str]:
    """The ids of a run's MLflow runs by tracking server."""
    servers = (directory.read_json(_FILE) or {}).get("servers", {})
    return {server: entry["run_id"] for server, entry in servers.items() if "run_id" in entry}


def command_of(directory: RunDirectory) -> str | None:
    """The command that started a run, without credentials; None if it was never tracked."""
    return (directory.read_json(_FILE) or {}).get("card", {}).get("tags", {}).get("command")
