"""What entrep runs on: versions, device, threads, disk, caches, and a self-test. What `doctor` and `cache` show."""
