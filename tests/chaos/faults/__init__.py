"""The faults, each a small class with a name. An injection counts where there was load, and its effect was seen."""

from tests.chaos.faults.broker import (
    BrokerKilled,
    BrokerRestarted,
    BrokerSuspended,
    ConnectionsClosed,
    DiskAlarm,
    MemoryAlarm,
    PasswordChanged,
    RightsTaken,
)
from tests.chaos.faults.cluster import ConnectedNodeKilled, MajorityLost, NodesCut, QueueLeaderKilled, RollingRestart
from tests.chaos.faults.fault import Fault
from tests.chaos.faults.link import ConfirmsLost, CutInMidFrame, LinkBlackHoled, LinkDeaf, LinkReset
from tests.chaos.faults.operated import Migration, PolicyOverrides, RollingRename, TopologyDrifted
from tests.chaos.faults.queues import DeadQueueDeleted, QueueDeleted, QueueFull, Unbound
from tests.chaos.faults.service import (
    ConsumerTimeout,
    DescriptorsExhausted,
    GroupStopped,
    HungWorker,
    Junk,
    Poison,
    ServiceKilled,
    ServiceStopped,
    ServiceSuspended,
)
from tests.chaos.faults.stores import (
    PostgresKilled,
    PostgresSuspended,
    RedisFlushed,
    RedisFull,
    RedisKilled,
    RedisReadOnly,
    RedisStopped,
    RedisSuspended,
    ShardHung,
)

__all__ = ["FAULTS", "Fault"]

_ALL: tuple[type[Fault], ...] = (
    BrokerKilled,
    BrokerRestarted,
    BrokerSuspended,
    ConnectionsClosed,
    MemoryAlarm,
    DiskAlarm,
    PasswordChanged,
    RightsTaken,
    QueueDeleted,
    QueueFull,
    Unbound,
    DeadQueueDeleted,
    TopologyDrifted,
    PolicyOverrides,
    Migration,
    RollingRename,
    LinkReset,
    CutInMidFrame,
    ConfirmsLost,
    LinkBlackHoled,
    LinkDeaf,
    ServiceKilled,
    ServiceStopped,
    GroupStopped,
    ServiceSuspended,
    HungWorker,
    DescriptorsExhausted,
    ConsumerTimeout,
    Poison,
    Junk,
    RedisKilled,
    RedisStopped,
    RedisSuspended,
    RedisFull,
    RedisReadOnly,
    RedisFlushed,
    ShardHung,
    PostgresKilled,
    PostgresSuspended,
    ConnectedNodeKilled,
    QueueLeaderKilled,
    MajorityLost,
    RollingRestart,
    NodesCut,
)

FAULTS: dict[str, type[Fault]] = {fault.name: fault for fault in _ALL}
