"""Parsl on Kubernetes (package kubernetes): copy this file, set what is in capitals, give it as parsl_config=."""

from parsl.addresses import address_by_route
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import KubernetesProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="dbex",
            address=address_by_route(),
            max_workers_per_node=32,  # cores of a node; each worker holds about 1 GB
            # A worker that a time limit or a broken node has taken is missed after this, s; its still is done again.
            heartbeat_period=15,
            heartbeat_threshold=60,
            provider=KubernetesProvider(
                namespace="NAMESPACE",
                image="IMAGE_WITH_DBEX",
                init_blocks=1,
                max_blocks=10,
                max_cpu=32,
                max_mem="64Gi",
                worker_init="export OMP_NUM_THREADS=1",
                # the stills and the output.directory, where they lie on this machine too
                persistent_volumes=[("VOLUME", "/PATH/OF/THE/DATA")],
            ),
        )
    ],
    strategy="simple",  # blocks that end are replaced while work is left
)
