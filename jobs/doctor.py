"""doctor: checks that this machine, Spark's executors, the warehouse and MLflow are ready for the other jobs.

Give it the settings, the master and the resources of the job that you plan to run. It starts Spark as that job would,
checks every executor, and prints one table, with a remedy below each line that needs one. It removes what it writes,
except an empty folder for the warehouse, and MLflow's experiment.

  Java, Spark      Java is 17 or 21; driver and workers have the same Spark
  uv.lock          the driver has the packages of the lock
  packages         the executors have the driver's Python and packages
  Horovod          loads with the installed TensorFlow, and was built with Gloo
  weights          the backbone's weights are where the job looks for them; a download is no failure
  warehouse        driver and executors write to the same one
  MLflow           accepts a tag and an artifact; its SQLite file can be written, and Spark is not a cluster
  slots            at least as many as ranks
  memory           what an executor's Python workers may take, compared with what the network needs
  cores, GPUs      those of the machines, compared with what Spark gives to tasks
  network          executors reach the driver and each other, on any port
  clock            the executors' clocks agree with the driver's

A warning stops no job. Each job checks what it needs before it starts: all jobs check the settings, the warehouse,
MLflow and, on a cluster, the executors' versions; finetune and pipeline also check slots and network.

It ends with 3 when a check failed.

example: melanoma-spark doctor --conf conf/cluster.yaml --master spark://HOST:7077 warehouse=/shared/warehouse
"""

from melanoma_spark.operations.doctor import doctor
from melanoma_spark.runner.cli import Command, main
from melanoma_spark.runner.stage import run_untracked

COMMAND = Command("doctor", __doc__, doctor, runner=run_untracked, prepared=lambda settings: False)

if __name__ == "__main__":
    main(COMMAND)
