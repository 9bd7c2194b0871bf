"""Which job of a Ray cluster trains a run, and what can be done with it; as thin as possible over Ray's own job client.

The cluster is the one that `ray job` would talk to: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else the one on this
machine, with the token that Ray's environment variables or files hold.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dist_resnet.launch.ray.address import check_head_of_job_server
from dist_resnet.launch.ray.cluster import first_line
from dist_resnet.launch.ray.internals import release
from dist_resnet.tracking.run_directory import RunDirectory

_FILE = "driver.json"

T = TypeVar("T")


def take_over(directory: RunDirectory, train_run_id: str | None = None) -> None:
    """Writes into a run's or a sweep's directory which job of which node this process, connected to Ray, is, and Ray
    Train's run.

    What an earlier one of the run has reserved in the cluster is free again: a driver or a controller that was killed
    did not give it back. Raises OSError where the directory cannot be read or written.
    """
    earlier = (directory.read_json(_FILE) or {}).get("train_run_id")
    if earlier:
        release(earlier)
    context = ray.get_runtime_context()
    # Jobs are counted from 1 in every cluster; node ids are drawn.
    driver = {"job_id": context.get_job_id(), "node_id": context.get_node_id()}
    directory.write_json(_FILE, driver | {"train_run_id": train_run_id})


class JobServer:
    """The jobs submitted to a cluster. Raises ValueError, here and later, where it does not answer or refuses."""

    def __init__(self) -> None:
        check_head_of_job_server()
        self._client: JobSubmissionClient = _asked(JobSubmissionClient)

    def jobs(self) -> list[JobDetails]:
        """Those that `ray job submit` started, the newest first."""
        submitted = [job for job in _asked(self._client.list_jobs) if job.submission_id]
        return sorted(submitted, key=lambda job: -(job.start_time or 0))

    def resubmit(self, job: JobDetails, working_dir: str | None) -> str:
        """Submits an ended job's command again in its environment and returns the new submission's id.

        `working_dir`: the folder to send in place of the one that was sent with it.
        """
        environment = dict(job.runtime_env or {}) | ({"working_dir": working_dir} if working_dir else {})
        return _asked(
            lambda: self._client.submit_job(
                entrypoint=job.entrypoint, runtime_env=environment, metadata=_own_metadata(job)
            )
        )

    def follow_log(self, job: JobDetails, write: Callable[[str], Any]) -> JobStatus:
        """Writes a job's log from its beginning and on until the job ends, and returns how it ended."""
        assert job.submission_id is not None
        identity = job.submission_id
        if job.status.is_terminal():
            write(_asked(lambda: self._client.get_job_logs(identity)))
        else:
            _asked(lambda: asyncio.run(self._tail(identity, write)))
        return _asked(lambda: self._client.get_job_status(identity))

    async def _tail(self, identity: str, write: Callable[[str], Any]) -> None:
        async for lines in self._client.tail_job_logs(identity):
            write(lines)


def job_of(directory: RunDirectory, jobs: Sequence[JobDetails]) -> JobDetails | None:
    """The job that trains a run or was the last to do so; None where it is none of these."""
    noted = directory.read_json(_FILE) or {}
    driver = noted.get("job_id"), noted.get("node_id")
    return next((job for job in jobs if (job.job_id, job.driver_node_id) == driver), None)


def _own_metadata(job: JobDetails) -> dict[str, str]:
    """What was given with a job, without what Ray adds of its own."""
    return {key: value for key, value in (job.metadata or {}).items() if key not in ("job_submission_id", "job_name")}


def _asked(question: Callable[[], T]) -> T:
    """The job server's answer. Raises ValueError with one line where there is none."""
    try:
        return question()
    except AuthenticationError as error:
        raise ValueError(
            "Ray's job server refuses this process; export RAY_AUTH_MODE=token, and have the cluster's token in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ValueError(
            f"Ray's job server cannot be asked ({first_line(error)}); name the cluster by RAY_API_SERVER_ADDRESS, "
            "such as http://HEAD:8265, and give the token as for `ray job`"
        ) from error
