"""`python -m melanoma_spark.drawing`, as it was called up to version 0.1: now `melanoma_spark.images.synthetic`."""

import warnings

from melanoma_spark.images.synthetic import main

if __name__ == "__main__":
    warnings.warn("melanoma_spark.drawing has moved to melanoma_spark.images.synthetic", FutureWarning, stacklevel=1)
    main()
