"""Python runs this file first in Spark's workers and in Horovod's ranks: their writes have crash points, too."""

import os

if os.environ.get("MELANOMA_CRASH_POINTS"):
    import crash_points

    crash_points.install()
