"""Compares VGG16's forward pass by each engine, on one thread, in turns: images per second of processor time.

Processor time is measured because other processes on the machine affect it little.

    .venv/bin/python benchmarks/forward.py              (about 2 minutes on 2 cores)
"""

import argparse
import time

import numpy as np
from side_by_side import Turns

from melanoma_spark.images import decoding, synthetic
from melanoma_spark.models import engines, network

SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images for each call [16]")
    parser.add_argument("--rounds", type=int, default=5, help="turns [5]")
    options = parser.parse_args()
    network.use_threads(1)
    spec = network.Spec(backbone="vgg16", image_size=SIZE, hidden=256, dropout=0.5)
    model = network.scoring_model(spec, network.build(spec).get_weights())
    predictors = {"tensorflow": network.predictor(model)}
    for engine in engines.ENGINES:
        predictors[engine] = engines.predictor(engines.export(model, engine), 1, engine)
    pixels = np.stack([decoding.decode(synthetic.lesion_jpeg(seed, size=SIZE), SIZE) for seed in range(options.batch)])
    for predict in predictors.values():
        predict(pixels)
    turns = Turns(("ncnn", "tensorflow", 1.15), ("onnxruntime", "tensorflow", 0.95))
    for _ in range(options.rounds):
        speeds = {}
        for name, predict in predictors.items():
            started = time.process_time()
            predict(pixels)
            speeds[name] = options.batch / (time.process_time() - started)
        turns.add(**speeds)
    turns.summary()


if __name__ == "__main__":
    main()
