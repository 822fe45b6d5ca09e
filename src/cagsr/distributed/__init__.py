"""Several processes: collective operations, FSDP2 sharding, and what a launcher started."""
