"""Which job of a Ray cluster trains a run, and how to follow and resubmit it, by Ray's own job client.

The cluster is the one that `ray job` uses: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else the one on this machine,
with the token of Ray's environment variables or files.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dist_resnet.launch.ray.address import TIMEOUTS, Timeouts, check_head_of_job_server
from dist_resnet.launch.ray.cluster import first_line
from dist_resnet.launch.ray.internals import release
from dist_resnet.tracking.run_directory import RunDirectory

_FILE = "driver.json"

T = TypeVar("T")


def take_over(directory: RunDirectory, train_run_id: str | None = None) -> None:
    """Records in a run's or a sweep's directory this process's job and node, and the id of Ray Train's run.

    Frees what an earlier driver or controller of the run has reserved in the cluster and, if it was killed, did not
    free. Raises OSError if the directory cannot be read or written.
    """
    earlier = (directory.read_json(_FILE) or {}).get("train_run_id")
    if earlier:
        release(earlier)
    context = ray.get_runtime_context()
    # Job ids count from 1 in every cluster; node ids are random.
    driver = {"job_id": context.get_job_id(), "node_id": context.get_node_id()}
    directory.write_json(_FILE, driver | {"train_run_id": train_run_id})


class JobServer:
    """The jobs submitted to a cluster. Its methods raise ValueError if the cluster does not answer or refuses."""

    def __init__(self, timeouts: Timeouts = TIMEOUTS) -> None:
        check_head_of_job_server(timeouts)
        self._client: JobSubmissionClient = _ask(JobSubmissionClient)

    def jobs(self) -> list[JobDetails]:
        """The jobs that `ray job submit` started, newest first."""
        submitted = [job for job in _ask(self._client.list_jobs) if job.submission_id]
        return sorted(submitted, key=lambda job: -(job.start_time or 0))

    def resubmit(self, job: JobDetails, working_dir: str | None) -> str:
        """Submits an ended job's command again in its environment and returns the new submission's id.

        `working_dir`: the folder to send instead of the original one.
        """
        environment = dict(job.runtime_env or {}) | ({"working_dir": working_dir} if working_dir else {})
        return _ask(
            lambda: self._client.submit_job(
                entrypoint=job.entrypoint, runtime_env=environment, metadata=_own_metadata(job)
            )
        )

    def follow_log(self, job: JobDetails, write: Callable[[str], Any]) -> JobStatus:
        """Writes a job's log from the start until the job ends, and returns the job's final status."""
        assert job.submission_id is not None
        identity = job.submission_id
        if job.status.is_terminal():
            write(_ask(lambda: self._client.get_job_logs(identity)))
        else:
            _ask(lambda: asyncio.run(self._tail(identity, write)))
        return _ask(lambda: self._client.get_job_status(identity))

    async def _tail(self, identity: str, write: Callable[[str], Any]) -> None:
        async for lines in self._client.tail_job_logs(identity):
            write(lines)


def job_of(directory: RunDirectory, jobs: Sequence[JobDetails]) -> JobDetails | None:
    """The job that trains a run or was the last to do so; None if it is not in `jobs`."""
    noted = directory.read_json(_FILE) or {}
    driver = noted.get("job_id"), noted.get("node_id")
    return next((job for job in jobs if (job.job_id, job.driver_node_id) == driver), None)


def _own_metadata(job: JobDetails) -> dict[str, str]:
    """The metadata given with a job, without what Ray adds."""
    return {key: value for key, value in (job.metadata or {}).items() if key not in ("job_submission_id", "job_name")}


def _ask(question: Callable[[], T]) -> T:
    """The job server's answer. Raises ValueError with one line if there is none."""
    try:
        return question()
    except AuthenticationError as error:
        raise ValueError(
            "Ray's job server refuses this process; export RAY_AUTH_MODE=token, and put the cluster's token into "
            "~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ValueError(
            f"Ray's job server is unreachable ({first_line(error)}); name the cluster by RAY_API_SERVER_ADDRESS, "
            "such as http://HEAD:8265, and give the token as for `ray job`"
        ) from error
