"""What every job does around its stage: the command line, the context, and the run."""
