"""Whether events are handled at all, and how fast: a kill switch for what is away, a rate limit for what is limited."""

from rabbitevents_flow.limit import RateLimit
from rabbitevents_flow.switch import KillSwitch

__all__ = ["KillSwitch", "RateLimit"]
