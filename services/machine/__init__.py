"""Simulated hardware: config spaces, links, slots, endpoints and their drivers. Not there on a real host.

Others reach it as they would reach hardware, over a Unix socket, and as a lab would, over the bus. It never asks a
service for anything, and outlives them all. Tests use `Machine` in their own process.
"""

from ._lab import Lab
from ._machine import Machine
from ._socket import MachineSocket
from ._specs import MachineError, TopologyFile
from ._topology_file import load, parse

__all__ = ["Lab", "Machine", "MachineError", "MachineSocket", "TopologyFile", "load", "parse"]
