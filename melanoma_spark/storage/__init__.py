"""Files and datasets of a warehouse, on local disks, HDFS and S3."""
