"""Brings loopback up, which is down in a new network namespace. As a program: tells whether that is allowed here."""

import fcntl
import socket
import struct

# From linux/sockios.h and linux/if.h.
SIOCSIFFLAGS = 0x8914
IFF_UP_AND_RUNNING = 0x41


def bring_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_AND_RUNNING))


if __name__ == "__main__":
    bring_up()
