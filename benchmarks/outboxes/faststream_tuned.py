"""faststream-outbox with what its page on performance recommends for a high rate."""

from benchmarks.outboxes.faststream_ import Tuned
from benchmarks.outboxes.workload import compete

if __name__ == "__main__":
    compete("benchmarks.outboxes.faststream_tuned", Tuned)
