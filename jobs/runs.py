"""Shows each run's status, progress, speed, time remaining, checkpoint and failures; stops and resumes runs.

    python jobs/runs.py list --storage /data/runs
    python jobs/runs.py show NAME --storage /data/runs
    python jobs/runs.py logs NAME --storage /data/runs
    python jobs/runs.py stop NAME --storage /data/runs
    python jobs/runs.py resume NAME --storage /data/runs

The status comes from the run's directory, and its job from Ray's job server, the one that `ray job` uses. `stop` saves
a checkpoint first, and waits for it. A sweep is listed, shown, stopped and resumed as a whole under its name; its
trials are the runs under --storage STORAGE/SWEEP.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dist_resnet import cli, logs, terminal
from dist_resnet.recipe import Execution

if TYPE_CHECKING:
    from dist_resnet.launch.ray.jobs import JobDetails
    from dist_resnet.launch.runs import RunOverview, SweepOverview
    from dist_resnet.tracking.run_directory import RunDirectory

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    act: Annotated[Literal["list", "show", "logs", "stop", "resume"], cli.POSITIONAL]
    """list: prints a line for every run under the storage. show: prints one run. logs: follows its job's log until the
    job ends. stop: saves a checkpoint and stops the run. resume: submits its job's command again."""
    name: Annotated[str | None, cli.POSITIONAL] = None
    """Name of the run. Unset: allowed only with list."""
    storage: str = Execution().storage
    """Where runs are stored: the --execution.storage of their jobs."""
    json: Annotated[bool, cli.FLAG] = False
    """Print JSON, with list and show."""
    working_dir: str | None = None
    """With resume: the folder to send to the cluster; by default the one that the job was submitted with."""
    wait_minutes: float = 10.0
    """With stop: minutes to wait for the run's end."""

    def __post_init__(self) -> None:
        if (self.name is None) != (self.act == "list"):
            raise ValueError(f"list takes no name and the other commands need one, got {self.act} {self.name or ''}")


def main() -> None:
    """Reads the options and runs the command."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for Arrow.
    from dist_resnet.tracking.run_directory import RunDirectory

    act = {"list": _list, "show": _show, "logs": _follow, "stop": _stop, "resume": _resume}[options.act]
    with cli.bad_input_exits():
        storage = RunDirectory(options.storage)
        act(options, RunDirectory(storage.child(options.name)) if options.name else storage)


def _list(options: Options, storage: "RunDirectory") -> None:
    from dist_resnet.launch.ray.jobs import job_of
    from dist_resnet.launch.runs import names_of_runs, read_overview
    from dist_resnet.tracking.run_directory import RunDirectory

    jobs = _jobs()
    runs = []
    for name in names_of_runs(storage):
        directory = RunDirectory(storage.child(name))
        try:
            runs.append((read_overview(directory), job_of(directory, jobs)))
        except (ValueError, KeyError, TypeError) as error:
            print(f"{name} cannot be read: {' '.join(str(error).split())}", file=sys.stderr)
    known = {job.submission_id for _, job in runs if job}
    others = [job for job in jobs if job.submission_id not in known and not job.status.is_terminal()]
    if options.json:
        listed = [dataclasses.asdict(overview) | {"job": _facts(job)} for overview, job in runs]
        print(json.dumps({"runs": listed, "other_jobs": [_facts(job) for job in others]}, indent=2))
        return
    for overview, job in runs:
        print(f"{overview.line()}, {job.submission_id} {job.status.value}" if job else overview.line())
    for job in others:
        print(f"job without a run here: {job.submission_id} {job.status.value}: {job.entrypoint}")
    if not runs:
        print(f"no runs under {storage.uri}; give their --execution.storage as --storage", file=sys.stderr)


def _show(options: Options, directory: "RunDirectory") -> None:
    from dist_resnet.launch.ray.jobs import job_of
    from dist_resnet.launch.runs import read_overview

    overview = read_overview(directory)
    job = job_of(directory, _jobs())
    if options.json:
        print(json.dumps(dataclasses.asdict(overview) | {"job": _facts(job)}, indent=2))
        return
    print(overview.details())
    if job:
        print(f"{'job':<11} {job.submission_id} {job.status.value}: {job.message}")


def _follow(options: Options, directory: "RunDirectory") -> None:
    from dist_resnet.launch.ray.jobs import JobServer

    server = JobServer()

    def write(text: str) -> None:
        print(text, end="", flush=True)
        # Otherwise `runs.py logs NAME | head` would never end.
        if terminal.output_loss():
            sys.exit()

    status = server.follow_log(_job(directory, server.jobs()), write)
    print(f"the job is {status.value}", file=sys.stderr)


def _stop(options: Options, directory: "RunDirectory") -> None:
    from dist_resnet.launch.ray.jobs import job_of
    from dist_resnet.launch.runs import read_overview
    from dist_resnet.tracking import stop

    overview, job = read_overview(directory), job_of(directory, _jobs())
    if overview.status != "open" and (job is None or job.status.is_terminal()):
        raise ValueError(f"{overview.name} is not running: it is {overview.status}")
    if job and job.status.is_terminal():
        raise ValueError(f"{overview.name} is not running: its job {job.submission_id} is {job.status.value}")
    deadline = time.monotonic() + 60 * options.wait_minutes
    has_ended = _end_of(directory, overview)
    while not job.status.is_terminal() if job else not has_ended():
        if time.monotonic() > deadline:
            hint = f"`ray job stop {job.submission_id}` ends it at once" if job else "its driver may be dead"
            sys.exit(f"{overview.name} has not stopped within {options.wait_minutes:g} minutes; {hint}")
        # Repeated, because a driver that starts now withdraws an earlier request.
        if not directory.exists(stop.FILE):
            stop.request(directory)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        job = job and job_of(directory, _jobs())
    print(read_overview(directory).line())


def _end_of(directory: "RunDirectory", overview: "RunOverview | SweepOverview") -> Callable[[], bool]:
    """A function that returns whether a run or a sweep has ended or stopped since its overview was read."""
    from dist_resnet.launch.runs import SweepOverview, status_of_sweep
    from dist_resnet.tracking.journal import Tail
    from dist_resnet.tracking.records import ENDINGS

    if isinstance(overview, SweepOverview):
        return lambda: status_of_sweep(directory) != "open"
    tail, has_ended = Tail(directory), overview.status != "open"
    tail.poll()

    def check() -> bool:
        nonlocal has_ended
        has_ended = has_ended or any(isinstance(record, ENDINGS) for record in tail.poll())
        return has_ended

    return check


def _resume(options: Options, directory: "RunDirectory") -> None:
    from dist_resnet.launch.ray.jobs import JobServer
    from dist_resnet.launch.runs import read_overview
    from dist_resnet.tracking.records import FINAL_ENDINGS

    overview = read_overview(directory)
    if overview.status in {ending.kind for ending in FINAL_ENDINGS}:
        raise ValueError(f"{overview.name} is {overview.status}; there is nothing to resume")
    server = JobServer()
    job = _job(directory, server.jobs())
    if not job.status.is_terminal():
        raise ValueError(f"{overview.name} is running already, as {job.submission_id}")
    print(server.resubmit(job, options.working_dir))


def _jobs() -> "list[JobDetails]":
    """The submitted jobs of the cluster; an empty list, with one line that says why, if there is no cluster."""
    from dist_resnet.launch.ray.jobs import JobServer

    try:
        return JobServer().jobs()
    except ValueError as error:
        print(f"showing only what the directory says: {error}", file=sys.stderr)
        return []


def _job(directory: "RunDirectory", jobs: "list[JobDetails]") -> "JobDetails":
    """The job of a run. Raises ValueError if it was not submitted to this cluster."""
    from dist_resnet.launch.ray.jobs import job_of
    from dist_resnet.launch.runs import read_overview
    from dist_resnet.tracking.mlflow.ledger import command_of

    name, job = read_overview(directory).name, job_of(directory, jobs)
    if job is None:
        raise ValueError(
            f"no job of this cluster trained {name}; to resume a run that was not submitted as a job, give its own "
            f"command again{f': {command}' if (command := command_of(directory)) else ''}"
        )
    return job


def _facts(job: "JobDetails | None") -> dict[str, Any] | None:
    if job is None:
        return None
    facts = {"submission_id": job.submission_id, "status": job.status.value, "message": job.message}
    return facts | {"entrypoint": job.entrypoint}


if __name__ == "__main__":
    cli.run(main)
