"""Files on local disks and object stores: addresses, byte ranges, atomic writes, locks, retries."""
