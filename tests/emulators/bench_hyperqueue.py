"""The tasks of `scripts/bench --local` in HyperQueue: a server and a worker in this process."""

import pathlib
import sys

import hyperqueue
from hyperqueue.cluster import LocalCluster, WorkerConfig

inputs, folder, slots = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
with LocalCluster(str(folder / "server"), WorkerConfig(cores=slots)) as cluster:
    client = cluster.client()
    job = hyperqueue.Job()
    for file in sorted(inputs.iterdir()):
        copy = ["sh", "-c", 'cat "$1" > "$2/out/${1##*/}"', "sh", str(file), str(folder)]
        job.program(copy, stdout=None, stderr=None)
    client.wait_for_jobs([client.submit(job)])
