"""The jobs: one file for each, with the text of its --help and the stage that it runs."""
