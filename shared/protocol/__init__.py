"""What the services say to one another: message types, subjects, codec. Declared once; no I/O.

`fabric`, `requests`, `facts` and `records` hold the types, by the authority that answers or writes them.
"""

from . import fabric, facts, records, requests, subjects
from ._base import PATIENCE, VERSION, LeaseRef, Message, Reason, Refused
from ._codec import ProtocolError, VersionError, decode, encode, from_builtins, is_json, to_builtins

__all__ = [
    "PATIENCE",
    "VERSION",
    "LeaseRef",
    "Message",
    "ProtocolError",
    "Reason",
    "Refused",
    "VersionError",
    "decode",
    "encode",
    "fabric",
    "facts",
    "from_builtins",
    "is_json",
    "records",
    "requests",
    "subjects",
    "to_builtins",
]
