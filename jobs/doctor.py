"""doctor: whether this machine, Spark's executors, the warehouse and MLflow are as the other jobs need them.

Give it the settings, the master and the resources of the job that you mean to run: it starts Spark as that job would,
asks every executor, and tells all that it found in one table, with a remedy below each line that needs one. It makes
nothing. What it tries to write it removes again; a folder for the warehouse, and MLflow's experiment, stay.

  Java, Spark      17 or 21; the same Spark on driver and workers
  uv.lock          the driver's packages are those of the lock
  packages         the executors' Python and packages are the driver's
  Horovod          loads with the TensorFlow that is there, and was built with Gloo
  weights          of the backbone, where it is looked for; a download is no failure
  warehouse        driver and executors write to the same one
  MLflow           takes a tag and an artifact; its SQLite file may be written, and Spark is no cluster
  slots            as many as ranks, at least
  memory           what the Python workers of an executor may take, against what the network takes
  cores, GPUs      those of the machines, against what Spark gives to tasks
  network          executors reach the driver and each other, on any port
  clock            the executors' clocks and the driver's

A warning is nothing that stops a job. Jobs look at what concerns them by themselves before they begin: all of them at
the settings, the warehouse, MLflow and, on a cluster, the executors' versions; finetune and pipeline at slots and
network.

It ends with 3 when a check failed.

example: melanoma-spark doctor --conf conf/cluster.yaml --master spark://HOST:7077 warehouse=/shared/warehouse
"""

from melanoma_spark.operations.doctor import doctor
from melanoma_spark.runner.cli import Command, main
from melanoma_spark.runner.stage import run_untracked

COMMAND = Command("doctor", __doc__, doctor, runner=run_untracked, prepared=False)

if __name__ == "__main__":
    main(COMMAND)
