"""register: the evaluated network -> a self-contained model in MLflow's registry, as challenger and perhaps champion.

The model takes image bytes and returns probability and decision; preprocessing, weights, calibration and operating
point are inside. Each model is a version with the alias `challenger`. It gets the alias `champion` if it passes the
rules of register.gate on the same test images as the champion. Each move is recorded under registry/ in the warehouse.

`register rollback` moves the alias back to the previous version; `register history` lists the moves.

example: melanoma-spark register warehouse=/data/warehouse register.gate.sensitivity=0.9
"""

from melanoma_spark.registry.register import ACTIONS, register
from melanoma_spark.runner.cli import Command, main

COMMAND = Command(
    "register",
    __doc__,
    register,
    needs_spark=lambda settings: settings.register_.action == "promote",
    words={action: f"register.action={action}" for action in ACTIONS},
)

if __name__ == "__main__":
    main(COMMAND)
