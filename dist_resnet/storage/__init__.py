"""Files on local disks and object stores: found, read by range, written whole, locked, and waited for."""
