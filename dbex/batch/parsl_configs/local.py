"""Parsl on this machine alone: to try a run before it goes to a cluster."""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="dbex",
            address="127.0.0.1",
            max_workers_per_node=2,
            heartbeat_period=5,  # a worker that dies is missed after this, s
            heartbeat_threshold=30,
            provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init="export OMP_NUM_THREADS=1"),
        )
    ]
)
