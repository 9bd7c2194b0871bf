"""What a Ray that fails raises: one line, whoever called. Imports nothing of Ray."""


class RayFailedError(RuntimeError):
    """Ray does not start or work, though nothing that was given is wrong."""


class RayEndedError(RayFailedError):
    """Ray has ended under this process. The log has said so already."""
