"""The identity of this machine."""

import functools
import uuid
from pathlib import Path


@functools.cache
def machine_id() -> str:
    """An identifier of this machine since its last start; the hardware address of its network card without Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    except OSError:
        return f"{uuid.getnode():x}"
