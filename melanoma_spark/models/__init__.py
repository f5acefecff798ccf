"""The parts of a registered model: network, weights, calibration, operating points, engines."""
