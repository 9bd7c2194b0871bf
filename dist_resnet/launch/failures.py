"""The errors raised if Ray fails, each with a one-line message. Imports nothing of Ray."""


class RayFailedError(RuntimeError):
    """Ray failed although all settings are right."""


class RayEndedError(RayFailedError):
    """Ray has ended under this process, which has logged it."""
