"""Celery: acknowledged late, also when a worker is lost, and with confirms; workers are threads."""

from __future__ import annotations

import os
import sys

from celery import Celery
from celery.signals import worker_ready

from benchmarks.peers.work import CONCURRENCY, LEDGER, PREFETCH, QUEUE, started, work_here
from tests.chaos import lanes

app = Celery("chaos", broker=os.environ["AMQP_URL"].partition("?")[0])
app.conf.update(
    broker_heartbeat=4,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    task_default_queue=QUEUE,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCH // CONCURRENCY,
    worker_enable_remote_control=False,
)


@app.task(name="take")
def take(lane: str, number: int) -> None:
    work_here(lane, number)


@worker_ready.connect
def ready(**_: object) -> None:
    started()


def publish() -> None:
    def answer(lane: str, number: int) -> str:
        try:
            take.delay(lane, number)
        except Exception as error:
            print(f"{lane}/{number}: {type(error).__name__}: {error}"[:300], flush=True)
            return "unknown"
        return "confirmed"

    lanes.publish_from_threads(LEDGER, answer, threads=8)


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish()
    else:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        app.worker_main(
            ["worker", "--pool", "threads", "--concurrency", str(CONCURRENCY), "--loglevel", "INFO", *quiet]
        )
