"""Scores new images every night: an Airflow DAG with SparkSubmitOperator.

Tested with Airflow 3.3 and provider apache-spark 6.3. Put it into the folder of DAGs. The connection `spark_default`
names the master (local[*], spark://..., yarn). It must use client mode, because in cluster mode Airflow does not get
the job's exit status. `melanoma-spark package melanoma_spark.zip` makes the package for the executors. The Airflow
worker that runs the task is Spark's driver, and needs the packages in /opt/melanoma_spark/.venv.

Alert on failed tasks (in `notify`), and on no batch within N hours (the second task).
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

# Exit statuses for which a retry does not help, and what they mean.
FINAL = {
    2: "a setting is wrong",
    4: "the archive, or the registered model, cannot be used",
    6: "the batch is in scores/ and must be checked before use: its summary and worklist say what to check",
}
BUSY = 5  # another score runs on the warehouse and scores the images of this night


class Score(SparkSubmitOperator):
    """Retries, fails or skips by the job's exit status, instead of retrying every status other than 0."""

    def execute(self, context: Any) -> Any:
        """Run spark-submit and raise the exception that fits the exit status."""
        try:
            return super().execute(context)
        except AirflowException as error:
            code = re.search(r"Error code is: (\d+)", str(error))
            status = int(code[1]) if code else 1
            if status == BUSY:
                raise AirflowSkipException("another score runs on the warehouse") from error
            if status in FINAL:
                raise AirflowFailException(f"exit status {status}: {FINAL[status]}") from error
            raise  # 1 and 3: Spark, MLflow or the file system may be back at the next retry


def notify(context: Any) -> None:
    """Reports a task that has failed after all retries; put your own channel here."""
    logging.getLogger(__name__).error("%s failed: %s", context["task_instance"].task_id, context.get("exception"))


with DAG(
    dag_id="melanoma_score",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # a missed night is not repeated: the next one scores everything new
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=10),
    params={"archive": "/data/landing"},
    default_args={"on_failure_callback": notify},
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
        # The driver of a task whose worker was lost may still run: then the job's lease stops a second driver.
        max_active_tis_per_dag=1,
    )
    check = BashOperator(
        task_id="batch_within_36_hours",
        bash_command=f"{COMMAND} score status warehouse={WAREHOUSE} score.shown=1 score.within=36",
        trigger_rule="all_done",
        retries=0,
    )
    score >> check
