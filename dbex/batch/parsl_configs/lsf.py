"""Parsl on a cluster with LSF: copy this file, set what is in capitals, give it as parsl_config=."""

from parsl.addresses import address_by_hostname
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import JsrunLauncher
from parsl.providers import LSFProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="dbex",
            address=address_by_hostname(),
            max_workers_per_node=32,  # cores of a node; each worker holds about 1 GB
            # A worker that a time limit or a broken node has taken is missed after this, s; its still is done again.
            heartbeat_period=15,
            heartbeat_threshold=60,
            provider=LSFProvider(
                queue="QUEUE",
                project="PROJECT",
                nodes_per_block=1,
                init_blocks=1,
                max_blocks=10,
                walltime="04:00:00",
                worker_init="source /PATH/TO/dbex/.venv/bin/activate; export OMP_NUM_THREADS=1",
                launcher=JsrunLauncher(),
            ),
        )
    ],
    strategy="simple",  # blocks that end are replaced while work is left
)
