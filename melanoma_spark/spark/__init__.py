"""The Spark session, inference on executors, and checks of executors."""
