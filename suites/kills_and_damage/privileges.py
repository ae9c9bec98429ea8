"""What a process of Linux may do: another user who reads everything, and root whom file permissions bind.

Another user may not be able to read this checkout, or Python's own library, where a machine keeps them closed. So the
process of another user keeps the capability of reading (or, where root itself has no such capability, of reading and
writing), and only its user id changes, and with it what it owns.
"""

from __future__ import annotations

import ctypes
import os

# From linux/capability.h and linux/prctl.h.
_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2
_PR_SET_KEEPCAPS = 8


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def become(user: int) -> None:
    """Become another user, one that the system need not know, and go on reading every file. Only root can."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    permitted = _capabilities()[1]
    _set_capabilities(_DAC_READ_SEARCH if permitted & _DAC_READ_SEARCH else permitted & _DAC_OVERRIDE)


def obey_permissions() -> None:
    """Be refused what a file's mode forbids its owner, as every user but root is."""
    permitted = _capabilities()[1]
    _set_capabilities(permitted & ~(_DAC_OVERRIDE | _DAC_READ_SEARCH))


def _capabilities() -> tuple[int, int]:
    """The first 32 capabilities of this process: effective and permitted."""
    values = (ctypes.c_uint32 * 6)()
    _check(ctypes.CDLL(None, use_errno=True).capget(ctypes.byref(_Header(_VERSION_3, 0)), values))
    return values[0], values[1]


def _set_capabilities(capabilities: int) -> None:
    values = (ctypes.c_uint32 * 6)(capabilities, capabilities)
    _check(ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(_Header(_VERSION_3, 0)), values))


def _check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
