"""Several processes: collective operations, FSDP2 sharding, and what a launcher started.

Import from its modules: `distributed.process_group.World`, `distributed.fsdp.gathered`.
"""
