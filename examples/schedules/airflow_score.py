"""A night's scoring as an Airflow DAG, by SparkSubmitOperator. Parsed by Airflow 3.3 with provider apache-spark 6.3.

Put it into the folder of DAGs. The connection `spark_default` names the master (local[*], spark://..., yarn), in client
mode: only then Airflow gets to know the job's exit status. `melanoma-spark package melanoma_spark.zip` makes what
goes to the executors. The worker of Airflow that runs the task is Spark's driver and needs the packages in
/opt/melanoma_spark/.venv.

Alert on failed tasks (`tell` below is where), and on no batch within N hours: the second task.
"""

from __future__ import annotations

import logging
import re
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

HOME = "/opt/melanoma_spark"
PYTHON = f"{HOME}/.venv/bin/python"
COMMAND = f"{HOME}/.venv/bin/melanoma-spark"
WAREHOUSE = "/data/warehouse"

# Exit statuses that another try would not mend, and what they mean.
FINAL = {
    2: "a setting is wrong",
    4: "the archive, or the registered model, cannot be used",
    6: "the batch is in scores/, and something wants a look: its summary and worklist say what, before anybody uses it",
}
BUSY = 5  # another score is at work on the warehouse, so this night is taken care of


class Score(SparkSubmitOperator):
    """Takes the job's exit status for what it says, instead of trying again whatever is not 0."""

    def execute(self, context: Any) -> Any:
        try:
            return super().execute(context)
        except AirflowException as error:
            found = re.search(r"Error code is: (\d+)", str(error))
            status = int(found[1]) if found else 1
            if status == BUSY:
                raise AirflowSkipException("another score is at work on the warehouse") from error
            if status in FINAL:
                raise AirflowFailException(f"exit status {status}: {FINAL[status]}") from error
            raise  # 1 and 3: Spark, MLflow or the file system may be back at the next try


def tell(context: Any) -> None:
    """Where a person is told of a task that has failed for good; put your own channel here."""
    logging.getLogger(__name__).error("%s failed: %s", context["task_instance"].task_id, context.get("exception"))


with DAG(
    dag_id="melanoma_score",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # a night that was missed is not made up for: the next one takes all that is new
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=10),
    params={"archive": "/data/landing"},
    default_args={"on_failure_callback": tell},
    tags=["melanoma"],
) as dag:
    score = Score(
        task_id="score",
        name="melanoma score",
        application=f"{HOME}/jobs/score.py",
        py_files=f"{HOME}/melanoma_spark.zip",
        properties_file=f"{HOME}/conf/spark-standalone.conf",
        deploy_mode="client",
        env_vars={"PYSPARK_PYTHON": PYTHON, "PYSPARK_DRIVER_PYTHON": PYTHON},
        application_args=[
            *("--conf", "/etc/melanoma/score.yaml"),
            "archive={{ params.archive }}",
            f"warehouse={WAREHOUSE}",
            "log.format=json",
            "wait=600",
        ],
        retries=2,
        retry_delay=timedelta(minutes=10),
        execution_timeout=timedelta(hours=8),
        # A task whose worker was lost may still have its driver: the job's lease meets that, not a second Spark driver.
        max_active_tis_per_dag=1,
    )
    there = BashOperator(
        task_id="batch_within_36_hours",
        bash_command=f"{COMMAND} score status warehouse={WAREHOUSE} score.shown=1 score.within=36",
        trigger_rule="all_done",
        retries=0,
    )
    score >> there
