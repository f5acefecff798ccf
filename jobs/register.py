"""register: the evaluated network -> a self-contained model in MLflow's registry: challenger, and champion if it may.

Image bytes in, probability and decision out; preprocessing, weights, calibration and operating point are inside. Each
model is a version under the alias `challenger`. It takes the alias `champion` when it holds the rules of register.gate,
on the same test images as the champion; every move is kept under registry/ in the warehouse.

`register rollback` gives the alias back to the version before; `register history` tells the moves.

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
