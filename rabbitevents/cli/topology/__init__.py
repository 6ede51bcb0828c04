"""``rabbitevents topology``: what a bus wants at its broker and what stands there; and the ways from the one to the other."""

from rabbitevents.cli.topology import moves as moves
from rabbitevents.cli.topology import plans as plans
from rabbitevents.cli.topology.group import topology as topology
