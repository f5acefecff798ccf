"""Run by Airflow's own Python (tests/systems/test_schedules.py): what Airflow makes of the example, as JSON.

python airflow_parsed.py FOLDER
"""

import json
import sys

from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException

bag = DagBag(sys.argv[1])
dags = {}
for dag in bag.dags.values():
    dags[dag.dag_id] = {
        "schedule": str(dag.schedule),
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "timeout": dag.dagrun_timeout.total_seconds(),
        "params": dag.params.dump(),
        "tasks": {
            task.task_id: {
                "kind": [kind.__name__ for kind in type(task).__mro__],
                "retries": task.retries,
                "wait": task.retry_delay.total_seconds(),
                "timeout": task.execution_timeout and task.execution_timeout.total_seconds(),
                "downstream": sorted(task.downstream_task_ids),
                "tells": bool(task.on_failure_callback),
                "words": getattr(task, "application_args", None),
            }
            for task in dag.tasks
        },
    }


def ended(task):
    """What becomes of the task, whose spark-submit is another one here."""
    try:
        task.execute({})
    except AirflowException as error:
        return type(error).__name__
    return "done"


outcomes = {}
for status in range(7):
    task = bag.dags["melanoma_score"].get_task("score")
    task.env_vars = {**(task.env_vars or {}), "EXIT_WITH": str(status)}
    task._hook = None
    outcomes[status] = ended(task)
print("\n" + json.dumps({"errors": bag.import_errors, "dags": dags, "outcomes": outcomes}))
