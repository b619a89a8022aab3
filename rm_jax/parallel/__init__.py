"""How arrays are sharded over devices (mesh, sharding rules) and how several hosts run as one."""
